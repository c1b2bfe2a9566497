"""Writes a run into a journal: a line a round, with everything that MLflow will show of it.

:class:`JournalTracker` keeps a run without MLflow (``tracking=none``): the same lines, without
waiting for the disk, and of the arrays only those of the models.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_app.errors import FlAppError
from fl_app.models.directions import higher_is_better
from fl_app.models.metrics import NO_SCORES
from fl_app.tracking.housekeeping import JOURNAL_DAYS, prune
from fl_app.tracking.journal import Journal
from fl_app.tracking.metric_names import (
    DIRECTIONS_TAG,
    MAX_SHOWN_CLIENTS,
    MetricNames,
    array_metrics,
    round_metrics,
    update_norm,
)
from fl_app.tracking.records import Arrays, RoundRecord, RunEnd, RunStart
from fl_app.tracking.round_texts import aggregation_text, client_rows

__all__ = ["JournalTracker", "Recorder", "keep_end", "now_ms"]

_LOG = logging.getLogger("fl_app")


class Recorder:
    """Turns the rounds of one run into lines of its journal.

    Infinite values become NaN, and the tag ``infinite_metrics`` names their keys.

    Parameters
    ----------
    journal : Journal
        Where the lines go.
    keep : (int, int), default (1, 0)
        Which rounds' weights go with them (:func:`~fl_app.config.rules.kept_weights`): all.
    """

    def __init__(self, journal: Journal, keep: tuple[int, int] = (1, 0)) -> None:
        self._journal = journal
        self._every, self._num_last = keep
        self._names, self._infinite = MetricNames(), set[str]()
        self._clients: set[int] = set()
        self._previous: Arrays = {}
        self._told: set[str] = set()
        self._no_floats: set[str] = set()
        self._last: list[int] = []

    def move(self, journal: Journal) -> None:
        """Go on with the same run, whose journal was closed meanwhile."""
        self._journal = journal

    def recall(self) -> Recorder:
        """Learn what the journal holds of a run that another process has begun; return itself."""
        journal = self._journal
        self._last = journal.kept("last")
        for note, _ in journal.notes():
            infinite = note["tags"].get("infinite_metrics", "")
            self._infinite.update(infinite.split(", ") if infinite else ())
            self._told |= note["tags"].keys() & {DIRECTIONS_TAG}
        for line, _ in journal.rounds():
            self._clients.update(row["partition"] for row in line["clients"] if "partition" in row)
        for number in journal.kept("now"):
            self._previous = journal.arrays("now", number)
        return self

    def record(self, record: RoundRecord) -> None:
        """Keep a round."""
        metrics = self._metrics(record)
        texts = dict(record.texts)
        if record.server_round:
            path = f"aggregation/round_{record.server_round:04d}.json"
            texts[path] = aggregation_text(record)
        line = {
            "server_round": record.server_round,
            "timestamp_ms": record.timestamp_ms or now_ms(),
            "metrics": metrics,
            "texts": texts,
            "clients": client_rows(record.server_round, record.evaluate_clients, record.client_key),
        }
        kept = bool(self._every) and record.server_round % self._every == 0
        kind = "weights" if kept else "last" if self._num_last else None
        self._journal.add_round(line, **({} if kind is None else {kind: record.arrays}))
        if self._num_last:
            self._last.append(record.server_round)
            if dropped := self._last[: -self._num_last]:
                self._journal.drop_arrays("last", dropped)
                del self._last[: len(dropped)]

    def _metrics(self, record: RoundRecord) -> dict[str, float]:
        """Return a round's metrics under their final keys."""
        for clients in (record.train_clients, record.evaluate_clients):
            self._clients.update(client.partition for client in clients)
        many = max(len(self._clients), record.num_clients) > MAX_SHOWN_CLIENTS
        self._note_directions(record, many)
        metrics = round_metrics(record, many)
        metrics |= array_metrics(record.arrays, record.run.value_names)
        self._no_floats |= {k for k, array in record.arrays.items() if array.dtype.kind != "f"}
        moved = None
        if record.server_round:
            moved = update_norm(record.arrays, self._previous, self._no_floats)
        if moved is not None:
            metrics["model/update_norm"] = moved
        self._previous = record.arrays
        named = self._names(metrics)
        infinite = [key for key, value in named.items() if math.isinf(value)]
        if infinite:
            self._note_infinite(infinite)
            named |= dict.fromkeys(infinite, math.nan)
        return named

    def _note_directions(self, record: RoundRecord, many: bool) -> None:
        """Keep the directions that the user has given; name once the metrics that have none."""
        known = record.run.higher_is_better
        if known and DIRECTIONS_TAG not in self._told:
            self._told.add(DIRECTIONS_TAG)
            self._journal.add_note({DIRECTIONS_TAG: json.dumps(known, sort_keys=True)}, {})
        clients = [*record.evaluate_clients, *(record.train_clients if many else ())]
        names = {name for client in clients for name in client.metrics} - self._told - NO_SCORES
        self._told |= names
        if unknown := sorted(name for name in names if higher_is_better(name, known) is None):
            _LOG.warning(
                "tracking: is more or less of %s better? Its name does not tell, so no worst "
                "client is recorded; TrackedStrategy(..., higher_is_better={%r: True}) tells",
                ", ".join(unknown),
                unknown[0],
            )

    def _note_infinite(self, keys: Sequence[str]) -> None:
        if not self._infinite.issuperset(keys):
            self._infinite.update(keys)
            note = {"infinite_metrics": ", ".join(sorted(self._infinite))}
            self._journal.add_note(note, {})


class JournalTracker:
    """A tracker that keeps a run's rounds on this machine, without arrays, and sends them nowhere.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    name : str, optional
        The run's name on this machine; by default a new one.
    journal_days : float, default 7
        Days for which runs that are over and sent stay; older ones are removed.
    """

    def __init__(self, home: Path, name: str = "", journal_days: float = JOURNAL_DAYS) -> None:
        self._home, self._name, self._journal_days = home, name, journal_days
        self._journal: Journal | None = None
        self._recorder: Recorder | None = None

    @property
    def started(self) -> bool:
        """Whether a run goes on."""
        return self._journal is not None

    def start(self, run: RunStart) -> None:
        """Keep the start; where `run` says that it continues, the run before goes on."""
        before, name = self._recorder, self._name
        goes_on = before is not None and run.continues
        journal = None
        if goes_on or before is None:
            journal = Journal.opened(self._home, name)
        if goes_on:
            journal = journal or Journal.claim(self._home / "runs" / name)
        if journal is not None and (goes_on or run.continues):
            journal.reopen(durable=False)
            if before is None:
                self._recorder = Recorder(journal, (0, 0)).recall()
            else:
                before.move(journal)
        else:
            journal = journal or Journal.create(self._home, "" if before is not None else name)
            journal.begin({}, run, now_ms(), durable=False)
            self._recorder = Recorder(journal, (0, 0))
            prune(self._home, self._journal_days)
        self._journal, self._name = journal, journal.name

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Keep tags and texts that were learnt after the start."""
        self._running().add_note(tags, texts)

    def record(self, record: RoundRecord) -> None:
        """Keep a round.

        Raises
        ------
        FlAppError
            If no run goes on.
        """
        self._running()
        assert self._recorder is not None
        self._recorder.record(record)

    def finish(self, end: RunEnd) -> None:
        """Keep the end, with its models."""
        journal, self._journal = self._running(), None
        try:
            keep_end(journal, end, now_ms())
        finally:
            journal.mark_whole()
            journal.release()

    def _running(self) -> Journal:
        if self._journal is None:
            raise FlAppError("this tracker was not started")
        return self._journal


def keep_end(journal: Journal, end: RunEnd, end_ms: int) -> None:
    """Keep a run's end, also where an interrupt comes in the midst of it, which is raised then."""
    try:
        journal.add_end(end, end_ms)
    except KeyboardInterrupt:
        journal.add_end(end, end_ms)
        raise


def now_ms() -> int:
    """Return the Unix time in milliseconds."""
    return time.time_ns() // 1_000_000
