"""A round as texts: what the server made of it, and a table of its clients."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fl_app.tracking.metric_names import MAX_SHOWN_VALUES
from fl_app.tracking.records import Arrays, Asked, ClientRecord, RoundRecord, flat_norm

__all__ = ["aggregation_text", "client_rows", "client_table", "table_pieces"]


def aggregation_text(record: RoundRecord) -> str:
    """Return the explanation of a round's aggregation as JSON.

    Parameters
    ----------
    record : RoundRecord
        The round.

    Returns
    -------
    str
        ``{"server_round", "rule", "num_examples", "clients": [{"partition", "num_examples",
        "weight", "arrays"}], "aggregate", "asked", "failed", "evaluate": {"asked", "failed"}}``.
        ``weight`` is n_k/N. ``arrays`` and ``aggregate`` are nested lists up to 32 values in all,
        ``{"norm": ...}`` beyond, null where there are none. ``asked`` are partitions, ``failed``
        the reason by partition, of training and of evaluation; each is left out where nobody was
        asked. Where no client may be shown, ``clients`` is empty, ``num_examples`` null, and these
        are left out. A number that is not finite is null. ``client`` stands in the place of
        ``partition`` where clients' numbers are arbitrary.
    """
    total = sum(client.num_examples for client in record.train_clients)
    clients = [
        {
            record.client_key: client.partition,
            "num_examples": _whole(client.num_examples),
            "weight": client.num_examples / total if total else None,
            "arrays": _shown(client.arrays, client.norm),
        }
        for client in record.train_clients
    ]
    aggregate = record.aggregate
    norm = None if aggregate is None else flat_norm(aggregate)
    small = aggregate is not None and _size(aggregate) <= MAX_SHOWN_VALUES
    # A client a line: to read as a table, and json's fast encoder takes no `indent`.
    head = {
        "server_round": record.server_round,
        "rule": record.run.rule,
        "num_examples": _whole(total) if clients else None,
    }
    # Inside a string the quotation marks would have backslashes.
    key = f'{{"{record.client_key}": '
    lines = _line(clients)[1:-1].replace(f"}}, {key}", f"}},\n  {key}")
    shown = _line(_shown(aggregate if small else None, norm))
    text = f'{_line(head)[:-1]},\n "clients": [\n  {lines}\n ],\n "aggregate": {shown}'
    tail = _asked(record.train_asked)
    if evaluate := _asked(record.evaluate_asked):
        tail["evaluate"] = evaluate
    return f"{text},\n {_line(tail)[1:]}\n" if tail else f"{text}}}\n"


def _asked(asked: Asked) -> dict[str, Any]:
    if not asked.partitions:
        return {}
    failed = {str(partition): reason for partition, reason in asked.failed.items()}
    return {"asked": list(asked.partitions), "failed": failed}


def _line(value: Any) -> str:
    try:
        return _STRICT.encode(value)
    except ValueError:  # a number that is not finite, which is rare
        return _STRICT.encode(_finite(value))


_STRICT = json.JSONEncoder(allow_nan=False)


def _shown(arrays: Arrays | None, norm: float | None) -> Any:
    if arrays is not None:
        return {name: array.tolist() for name, array in arrays.items()}
    return None if norm is None else {"norm": norm}


def _size(arrays: Arrays) -> int:
    return sum(a.size for a in arrays.values())


def _whole(value: float) -> float | int:
    return int(value) if math.isfinite(value) and value == int(value) else value


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def client_rows(
    server_round: int, clients: Sequence[ClientRecord], client_key: str = "partition"
) -> list[dict[str, Any]]:
    """Return one table row for each client of a round.

    Parameters
    ----------
    server_round : int
        The round.
    clients : sequence of ClientRecord
        Its clients.
    client_key : str, default "partition"
        What their numbers are called.

    Returns
    -------
    list of dict
        ``server_round``, the client's number, ``num_examples`` and the client's metrics.
    """
    return [
        {
            "server_round": server_round,
            client_key: client.partition,
            "num_examples": _whole(client.num_examples),
            **client.metrics,
        }
        for client in clients
    ]


def client_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an MLflow table artifact.

    Parameters
    ----------
    rows : sequence of mapping
        As :func:`client_rows` gives them; their keys may differ.

    Returns
    -------
    str
        ``{"columns": [...], "data": [[...], ...]}``; a missing or not finite cell is null.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return "".join(table_pieces(columns, rows))


def table_pieces(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the text of :func:`client_table` row by row, for tables that are long.

    Parameters
    ----------
    columns : sequence of str
        Keys of the rows.
    rows : iterable of mapping
        As in :func:`client_table`.
    """
    yield f'{{"columns": {json.dumps([*columns])}, "data": ['
    for number, row in enumerate(rows):
        cells = json.dumps([_finite(row.get(column)) for column in columns], allow_nan=False)
        yield f", {cells}" if number else cells
    yield "]}"
