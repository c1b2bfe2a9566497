"""A round as its lines say: one of the record once it is over, those of the events before."""

from __future__ import annotations

import json
import math
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.dashboard.view import (
    NOBODY,
    Exchange,
    InRound,
    Own,
    Round,
    mapping,
    number_of,
    parsed,
    whole,
)

__all__ = ["OpenRound", "round_of"]

_OWN_KEY = re.compile(r"(train|eval)_client_(.+)/(\d{3,})")


def round_of(line: Mapping[str, Any], before: Round | None, seen: dict[Any, Any]) -> Round:
    """Make a round of its line; `seen` holds equal keys and tuples once."""
    given = {str(key): _float(value) for key, value in line["metrics"].items()}
    texts = mapping(line.get("texts"))
    by_part = {
        part: str(text)
        for path, text in texts.items()
        for part, prefix in (
            ("aggregation", "aggregation/"),
            ("candidates", "stack/candidates"),
            ("members", "stack/members"),
        )
        if path.startswith(prefix)
    }
    aggregation = parsed(by_part.get("aggregation", ""))
    clients = [mapping(client) for client in aggregation.get("clients") or ()]
    rows = [mapping(row) for row in line.get("clients") or ()]
    train, evaluate = _participation(aggregation, clients, rows, given)
    sizes = {number_of(c): whole(c["num_examples"]) for c in clients}
    kept = {sys.intern(key): v for key, v in given.items() if not _OWN_KEY.fullmatch(key)}
    return Round(
        server_round=int(line["server_round"]),
        time_ms=whole(line.get("timestamp_ms")),
        metrics=kept,
        up=_step(kept, before, "cost/bytes_up"),
        down=_step(kept, before, "cost/bytes_down"),
        train=_once(train, seen),
        evaluate=_once(evaluate, seen),
        validation=_validation(rows, seen),
        training=_training(given, seen),
        sizes=seen.setdefault(tuple(sizes.items()), sizes),
        packed=zlib.compress(json.dumps(by_part).encode(), 1) if by_part else b"",
    )


def _step(metrics: Mapping[str, float], before: Round | None, key: str) -> float:
    """Return what a cumulative count grew by in this round."""
    if before is None:
        return metrics.get(key, 0.0)
    start = 0.0 if before.server_round == 0 else math.nan
    return metrics.get(key, math.nan) - before.metrics.get(key, start)


def _participation(
    aggregation: Mapping[str, Any],
    clients: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
) -> tuple[Exchange, Exchange]:
    """Return who trained and who evaluated."""
    evaluation = mapping(aggregation.get("evaluate"))
    replied = [number_of(client) for client in clients]
    counts = {"count": metrics.get("cost/clients_asked", 0.0)}
    answered = whole(metrics.get("cost/clients_replied"))
    asked = aggregation.get("asked") or (replied if len(replied) == counts["count"] else ())
    train = _exchange(asked, replied, aggregation.get("failed"), counts, answered)
    lost = whole(metrics.get("cost/clients_failed"))
    train = replace(train, num_failed=train.num_failed or lost)
    scored = [number_of(row) for row in rows]
    evaluate = _exchange(evaluation.get("asked") or scored, scored, evaluation.get("failed"), {}, 0)
    return train, evaluate


def _exchange(
    asked: Any, replied: Any, failed: Any, counts: Mapping[str, Any], num_replied: int
) -> Exchange:
    """Build an exchange of lists, or of counts where nobody is named."""
    asked, replied = tuple(sorted(map(int, asked or ()))), tuple(sorted(map(int, replied or ())))
    reasons = {int(k): str(why) for k, why in sorted(mapping(failed).items())}
    num_asked = len(asked) or whole(counts.get("count"))
    return Exchange(asked, replied, reasons, num_asked, len(replied) or num_replied, len(reasons))


def _validation(rows: Sequence[Mapping[str, Any]], seen: dict[Any, Any]) -> Own:
    """Return the clients' metrics from the rows of the evaluating clients."""
    if not rows:
        return NOBODY
    rows = sorted(rows, key=number_of)
    besides = ("server_round", "partition", "client", "num_examples")
    names = dict.fromkeys(key for row in rows for key in row if key not in besides)
    partitions = _array([number_of(row) for row in rows], np.int32, seen)
    sizes = _array([_float(row.get("num_examples")) for row in rows], np.float64, seen)
    values = {sys.intern(n): np.array([_float(row.get(n)) for row in rows]) for n in names}
    return Own(partitions, sizes, values)


def _training(metrics: Mapping[str, float], seen: dict[Any, Any]) -> Own:
    """Return the clients' metrics from ``train_client_<metric>/NNN``."""
    by_name: dict[str, dict[int, float]] = {}
    for key, value in metrics.items():
        match = _OWN_KEY.fullmatch(key)
        if match and match[1] == "train":
            by_name.setdefault(match[2], {})[int(match[3])] = value
    partitions = sorted({k for values in by_name.values() for k in values})
    if not partitions:
        return NOBODY
    arrays = {
        sys.intern(name): np.array([by.get(k, math.nan) for k in partitions])
        for name, by in by_name.items()
    }
    unknown = _array([math.nan] * len(partitions), np.float64, seen)
    return Own(_array(partitions, np.int32, seen), unknown, arrays)


def _array(values: Sequence[float], dtype: type[Any], seen: dict[Any, Any]) -> NDArray[Any]:
    """Return an array, the same object for the same values: most rounds have the same clients."""
    array = np.array(values, dtype)
    shared: NDArray[Any] = seen.setdefault((array.dtype.char, array.tobytes()), array)
    return shared


def _once(exchange: Exchange, seen: dict[Any, Any]) -> Exchange:
    reasons, counts = tuple(exchange.failed.items()), (exchange.num_asked, exchange.num_replied)
    key = exchange.asked, exchange.replied, reasons, counts, exchange.num_failed
    shared: Exchange = seen.setdefault(key, exchange)
    return shared


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


class OpenRound:
    """Collects the events of a round that is not over."""

    def __init__(self, server_round: int) -> None:
        self.server_round, self.exchange, self.sign_ms = server_round, "train", 0
        self._asked: dict[str, Mapping[str, Any]] = {}
        self._replied: dict[str, list[int]] = {}
        self._count: dict[str, int] = {}
        self._closed: dict[str, Mapping[str, Any]] = {}

    def ask(self, event: Mapping[str, Any]) -> None:
        """Take who is asked."""
        self.exchange = _exchange_of(event)
        self._asked[self.exchange] = event
        self.sign_ms = whole(event.get("time_ms"))

    def answer(self, event: Mapping[str, Any]) -> None:
        """Take a reply, or all of an exchange."""
        exchange = _exchange_of(event)
        self.sign_ms = whole(event.get("time_ms"))
        if event["event"] == "replied":
            self._closed[exchange] = event
            return
        self._count[exchange] = whole(event.get("count")) or self._count.get(exchange, 0) + 1
        if "client" in event:
            self._replied.setdefault(exchange, []).append(int(event["client"]))

    def view(self) -> InRound:
        """Return what is known."""
        train, evaluate = self._made("train"), self._made("evaluate")
        closed, seen = self.exchange in self._closed, self._count.get(self.exchange, 0) > 0
        return InRound(self.server_round, self.exchange, train, evaluate, closed, seen)

    def _made(self, exchange: str) -> Exchange:
        asked, closed = self._asked.get(exchange, {}), self._closed.get(exchange)
        if closed is None:
            replied: Sequence[int] = self._replied.get(exchange, [])
            return _exchange(asked.get("clients"), replied, {}, asked, self._count.get(exchange, 0))
        named, count = closed.get("clients"), whole(closed.get("count"))
        made = _exchange(asked.get("clients"), named, closed.get("failed"), asked, count)
        return replace(made, num_failed=made.num_failed or whole(closed.get("failed_count")))


def _exchange_of(event: Mapping[str, Any]) -> str:
    return "evaluate" if event.get("exchange") == "evaluate" else "train"
