"""What a run that broke off goes on from: kept with each round, read when it is resumed.

In the journal, with the round and in its transaction: the global arrays (``now``), those of the
best round (``best``), and the strategy's state (``state``): JSON whose arrays stand beside it.
An array that did not change since an earlier round stays where that round has put it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.tracking.best_round import BestRound
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JournalReader
from fl_app.tracking.records import Arrays, ClientRecord, RoundRecord, RunEnd, RunStart
from fl_app.tracking.state import pack_state, unpack_state

__all__ = ["Checkpoint", "Checkpoints", "read_checkpoint", "read_rounds"]

_TEXT = "text"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Parameters
    ----------
    server_round : int
        The last round that is recorded.
    arrays : mapping of str to ndarray
        The global arrays after it.
    state : object
        What the strategy remembers, as it was kept.
    bytes_up, bytes_down : int
        All that clients have sent, and were sent.
    """

    server_round: int
    arrays: Arrays
    state: Any
    bytes_up: int
    bytes_down: int


class Checkpoints:
    """A tracker that keeps with each round what is needed to go on after it.

    To be called before the tracker that keeps the round in the same journal.

    Parameters
    ----------
    journal : Journal
        The run's journal.
    best : BestRound or None
        Knows the best round, and is called before; None where its arrays are not kept.

    Attributes
    ----------
    state : callable or None
        Returns the strategy's state, in what :func:`~fl_app.tracking.state.pack_state` takes; to be
        set before the first round. Nothing is kept without it.
    last : int or None
        The last round that was kept.
    """

    def __init__(self, journal: Journal, best: BestRound | None) -> None:
        self._journal, self._best = journal, best
        self.state: Callable[[], Any] | None = None
        self.last: int | None = None
        self._known: dict[int, tuple[NDArray[Any], str]] = {}  # arrays of the last state, by id

    def start(self, run: RunStart) -> None:
        """Do nothing."""

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Do nothing."""

    def record(self, record: RoundRecord) -> None:
        """Keep a round."""
        if self.state is None:
            return
        number = record.server_round
        known: dict[int, tuple[NDArray[Any], str]] = {}
        new: dict[str, NDArray[Any]] = {}

        def name_of(array: NDArray[Any]) -> str:
            if id(array) not in known:
                old = self._known.get(id(array))
                if old is None:
                    new[str(len(new))] = array
                known[id(array)] = old or (array, f"{number}/{len(new) - 1}")
            return known[id(array)][1]

        spent = {name: int(record.cost.get(name, 0)) for name in ("bytes_up", "bytes_down")}
        text = pack_state({"state": self.state(), **spent}, name_of)
        self._known, self.last = known, number
        new[_TEXT] = np.frombuffer(text.encode(), np.uint8)
        rounds = {int(name.partition("/")[0]) for _, name in known.values()}
        self._journal.stage("now", number, record.arrays)
        self._journal.stage("state", number, new, rounds)
        if self._best is not None and self._best.best is record:
            self._journal.stage("best", number, record.arrays)

    def finish(self, end: RunEnd) -> None:
        """Do nothing: a journal that ends as FINISHED forgets it all."""


def read_checkpoint(journal: JournalReader) -> Checkpoint | None:
    """Return what a run goes on from; None where it has not kept its last round.

    Raises
    ------
    OSError, sqlite3.Error, ValueError, KeyError
        For a damaged journal.
    """
    rounds = journal.kept("state")
    if not journal.has_checkpoint():
        return None
    parts: dict[str, Arrays] = {}

    def array(name: str) -> NDArray[Any]:
        part, _, number = name.partition("/")
        if part not in parts:
            parts[part] = journal.arrays("state", int(part))
        return parts[part][number]

    parts[str(rounds[-1])] = last = journal.arrays("state", rounds[-1])
    kept = unpack_state(last[_TEXT].tobytes().decode(), array)
    arrays = journal.arrays("now", rounds[-1])
    return Checkpoint(rounds[-1], arrays, kept["state"], kept["bytes_up"], kept["bytes_down"])


def read_rounds(journal: JournalReader, checkpoint: Checkpoint) -> list[RoundRecord]:
    """Return the recorded rounds as a tracker saw them, in so far as the journal holds them.

    That is the metrics of clients and server, what the round cost, and the clients of its
    evaluation; arrays of the best round and of the last one.
    """
    arrays = {number: journal.arrays("best", number) for number in journal.kept("best")}
    arrays[checkpoint.server_round] = checkpoint.arrays
    return [_record(line, arrays) for line, _ in journal.rounds()]


def _record(line: Mapping[str, Any], arrays: Mapping[int, Arrays]) -> RoundRecord:
    groups: dict[str, dict[str, float]] = {"train": {}, "eval": {}, "server": {}, "cost": {}}
    extra: dict[str, float] = {}
    for key, value in line["metrics"].items():
        group, _, name = key.partition("/")
        groups.get(group, extra)[name if group in groups else key] = value
    clients = []
    for row in line["clients"]:
        metrics = {k: v for k, v in row.items() if k not in ("server_round", "num_examples")}
        key = "partition" if "partition" in metrics else "client"
        clients.append(ClientRecord(metrics.pop(key), row["num_examples"], metrics))
    number = line["server_round"]
    return RoundRecord(
        number,
        arrays.get(number, {}),
        groups["train"],
        groups["eval"],
        groups["server"],
        evaluate_clients=clients,
        cost=groups["cost"],
        extra=extra,
        timestamp_ms=line["timestamp_ms"],
    )
