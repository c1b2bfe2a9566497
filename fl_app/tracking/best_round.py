"""Keeps the arrays of the best round, by a metric of the clients' validation or training rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fl_app.models.directions import higher_is_better
from fl_app.tracking.records import RoundRecord, RunEnd, RunStart

__all__ = ["BestRound"]


class BestRound:
    """A tracker that remembers the best and the last round.

    Parameters
    ----------
    objective : str
        ``eval/<metric>`` or ``train/<metric>``; never the server's test rows. The earliest of
        equal rounds wins.

    Attributes
    ----------
    best, last : RoundRecord or None
        The best round, None where no round has the metric; the last round.
    rounds : list of RoundRecord
        The metrics of all rounds, for the figures, and nothing else of them: memory is flat.
    """

    def __init__(self, objective: str) -> None:
        self._source, _, self._metric = objective.partition("/")
        self.objective = objective
        self.best: RoundRecord | None = None
        self.last: RoundRecord | None = None
        self.rounds: list[RoundRecord] = []

    def value(self, record: RoundRecord) -> float | None:
        """Return the objective of a round, or None where it has none."""
        metrics = {"eval": record.evaluate, "train": record.train}[self._source]
        return metrics.get(self._metric)

    def start(self, run: RunStart) -> None:
        """Do nothing."""

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Do nothing."""

    def record(self, record: RoundRecord) -> None:
        """Compare a round with the best so far."""
        self.last = record
        metrics = {name: getattr(record, name) for name in ("train", "evaluate", "server")}
        self.rounds.append(RoundRecord(record.server_round, {}, **metrics))
        value = self.value(record)
        if value is None or not np.isfinite(value):
            return
        best = None if self.best is None else self.value(self.best)
        if best is None or (value > best if higher_is_better(self._metric) else value < best):
            self.best = record

    def finish(self, end: RunEnd) -> None:
        """Do nothing."""
