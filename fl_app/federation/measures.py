"""Sums and counts that clients add to their replies, for metrics that are no mean over clients.

``r2``, balanced accuracy and ROC AUC of a federation are ratios over all rows. A client sends what
they are made of (:mod:`fl_app.models.metrics`) in the record ``measures`` of its reply, of a size
that follows from its number of rows alone; the server checks it against the reply's own metrics,
adds it up in order of partition and puts the ratio in the place of the strategy's mean. A client
with too few rows sends nothing: the sums of one row are its label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fl_app.config.options import Task
from fl_app.config.schema import Config
from fl_app.data.encoding import Encoding
from fl_app.federation import protocol
from fl_app.grid.arrays import items_of
from fl_app.grid.messages import records_of
from fl_app.models.metrics import (
    BINS,
    FEWEST_ROWS,
    Tally,
    class_counts,
    limits,
    merged_r2,
    score,
    score_places,
    squares,
)

__all__ = ["Exchange", "Measures"]

Exchange = Literal["train", "evaluate"]

_SUMS, _CLASSES, _SCORES = "r2-sums", "class-counts", "score-bins"
_LISTED = 2 * BINS * 4
"""Rows up to which the bins are listed, a byte each; beyond, their counts take no more."""


@dataclass(frozen=True)
class Measures:
    """What the replies of a run hold beside metrics and arrays.

    ``train`` and ``evaluate`` replies of a regression have the sums behind ``r2``, ``evaluate``
    replies of a classification a tally of classes and scores.

    Parameters
    ----------
    task : {"regression", "classification"}
        The task.
    num_outputs : int
        C classes or T targets.
    min_rows : int
        Rows below which a client sends no sums of targets. The tally's floor is
        :data:`fl_app.models.metrics.FEWEST_ROWS`.
    """

    task: Task
    num_outputs: int
    min_rows: int

    @classmethod
    def of(cls, config: Config, encoding: Encoding) -> Measures:
        """Return those of a run."""
        return cls(encoding.task, len(encoding.output_names), config.min_rows)

    def fewest(self, exchange: Exchange) -> int | None:
        """Return the rows from which on a reply has measures; None where it never has any."""
        if self.task == "regression":
            return self.min_rows
        return FEWEST_ROWS if exchange == "evaluate" else None

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that they decide."""
        return ("r2",) if self.task == "regression" else ("balanced_accuracy", "roc_auc")

    # ------------------------------------------------------------------------ the client's side
    def score(
        self,
        exchange: Exchange,
        outputs: NDArray[Any],
        truth: NDArray[Any],
        center: Sequence[float] = (),
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Score outputs.

        Parameters
        ----------
        exchange : {"train", "evaluate"}
            What the reply answers.
        outputs, truth : ndarray
            As for :func:`fl_app.models.metrics.score`.
        center : sequence of float, default ()
            The federation's mean of each target; empty where nobody knows it.

        Returns
        -------
        (metrics, measures)
            Of the reply.
        """
        metrics, fewest = score(self.task, outputs, truth), self.fewest(exchange)
        if fewest is None or len(truth) < fewest:
            return metrics, {}
        if self.task == "regression":
            sums = squares(outputs, truth, np.array(center) if center else 0.0)
            return metrics, {_SUMS: sums.ravel().tolist()}
        counts = class_counts(outputs, truth).astype("<u4").tobytes()
        return metrics, {_CLASSES: counts, _SCORES: _packed(score_places(outputs, truth))}

    # ------------------------------------------------------------------------ the server's side
    def fault(
        self, exchange: Exchange, metrics: Mapping[str, Any], record: Mapping[str, Any]
    ) -> str | None:
        """Return what is impossible in a reply's metrics and measures, or None.

        Parameters
        ----------
        exchange : {"train", "evaluate"}
            What the reply answers.
        metrics : mapping of str to number
            Finite ones, with the weight.
        record : mapping
            The record ``measures``.
        """
        for name, (low, high) in self._limits.items():
            if not low <= metrics.get(name, low) <= high:
                return f"metric {name}={metrics[name]!r}: expected {low:g} to {high:g}"
        fewest, rows = self.fewest(exchange), metrics[protocol.NUM_EXAMPLES]
        wanted = fewest is not None and rows >= fewest
        names = {_SUMS} if self.task == "regression" else {_CLASSES, _SCORES}
        if record.keys() - {protocol.LEFT_OUT} != (names if wanted else set()):
            expected = ", ".join(sorted(names)) if wanted else "none"
            return f"measures {sorted(record)}: expected {expected} with {rows} rows"
        if not wanted:
            return None
        check = self._sums_fault if self.task == "regression" else self._tally_fault
        return check(metrics, record, rows)

    def merge(self, exchange: Exchange, replies: Sequence[Message]) -> dict[str, float]:
        """Return the metrics of all rows behind replies that were checked, in order of partition.

        Empty where no reply has measures.
        """
        parts = [(protocol.measures(m), _rows(m)) for m in replies]
        parts = [(record, rows) for record, rows in parts if record.keys() - {protocol.LEFT_OUT}]
        if not parts:
            return {}
        if self.task == "regression":
            sums = sum(np.array(record[_SUMS]) for record, _ in parts)
            rows = sum(rows for _, rows in parts)
            return {"r2": merged_r2(rows, np.reshape(sums, (3, -1)))}
        classes = np.sum([_counts(record[_CLASSES]) for record, _ in parts], axis=0)
        return Tally(classes, self._scores(parts)).metrics()

    @cached_property
    def _limits(self) -> dict[str, tuple[float, float]]:
        of = limits(self.task, self.num_outputs)
        loss = of["mse" if self.task == "regression" else "log_loss"]
        return of | {protocol.TRAIN_LOSS: loss}

    def _sums_fault(
        self, metrics: Mapping[str, Any], record: Mapping[str, Any], rows: float
    ) -> str | None:
        values, width = record[_SUMS], 3 * self.num_outputs
        if not (
            isinstance(values, list)
            and len(values) == width
            and all(type(value) is float and math.isfinite(value) for value in values)
        ):
            return f"{_SUMS}={str(values)[:80]}: expected {width} finite numbers"
        third = self.num_outputs
        away, spread, residual = values[:third], values[third:-third], values[-third:]
        bound = rows * (1 + 1e-9)  # Cauchy and Schwarz
        possible = all(a * a <= bound * s for a, s in zip(away, spread, strict=True))
        if not possible or min(residual) < 0:
            return f"{_SUMS}={str(values)[:80]}: expected sums of numbers and of their squares"
        error, told_error = metrics["mse"] * rows * third, sum(residual)
        if not abs(told_error - error) <= 1e-6 * error:
            return f"{_SUMS}: squared errors of {told_error:g}, and mse says {error:g}"
        return None

    def _tally_fault(
        self, metrics: Mapping[str, Any], record: Mapping[str, Any], rows: float
    ) -> str | None:
        counts, bins = record[_CLASSES], record[_SCORES]
        size = self._num_scores * (rows if rows <= _LISTED else _LISTED)
        for name, value, wanted in (
            (_CLASSES, counts, 12 * self.num_outputs),
            (_SCORES, bins, size),
        ):
            if not isinstance(value, bytes) or len(value) != wanted:
                length = len(value) if isinstance(value, bytes) else type(value).__name__
                return f"{name}: {length}, expected {wanted:g} bytes"
        class_rows, right, guessed = _counts(counts)
        total = right.sum()
        if (
            class_rows.sum() != rows
            or guessed.sum() != rows
            or (right > class_rows).any()
            or (right > guessed).any()
            or abs(metrics["accuracy"] * rows - total) > 1e-6 * rows
        ):
            return f"{_CLASSES}: expected {rows} rows, of which accuracy says how many are right"
        if rows > _LISTED:
            sums = self._scores([(record, int(rows))]).sum(axis=2)
            class_rows = class_rows[-self._num_scores :]
            if (sums != np.stack([class_rows, rows - class_rows], axis=1)).any():
                return f"{_SCORES}: expected the rows of each class and all others"
        return None

    @property
    def _num_scores(self) -> int:
        return 1 if self.num_outputs == 2 else self.num_outputs

    def _scores(self, parts: Sequence[tuple[Mapping[str, Any], int]]) -> NDArray[np.int64]:
        """Add up histograms whose lengths are right, (S, 2, 256)."""
        size = 2 * BINS * self._num_scores
        total, positions = np.zeros(size, np.int64), [np.zeros(0, np.int64)]
        for record, rows in parts:
            if rows > _LISTED:
                total += np.frombuffer(record[_SCORES], "<u4")
            else:
                class_rows = _counts(record[_CLASSES])[0, -self._num_scores :]
                lengths = np.stack([class_rows, rows - class_rows], axis=1).ravel()
                first = np.arange(0, size, BINS).repeat(lengths)
                positions.append(first + np.frombuffer(record[_SCORES], np.uint8))
        total += np.bincount(np.concatenate(positions), minlength=size)
        return total.reshape(-1, 2, BINS)


def _packed(positions: NDArray[np.int64]) -> bytes:
    """Return the bins of each class's rows and of all others, in order; or beyond 2048 rows counts.

    A place's last byte is its bin.
    """
    if positions.shape[1] > _LISTED:
        counts = np.bincount(positions.ravel(), minlength=2 * BINS * len(positions))
        return counts.astype("<u4").tobytes()
    return np.sort(positions, axis=1).astype(np.uint8).tobytes()


def _counts(data: bytes) -> NDArray[np.int64]:
    return np.frombuffer(data, "<u4").astype(np.int64).reshape(3, -1)


def _rows(message: Message) -> int:
    return int(items_of(records_of(message)[protocol.METRICS])[protocol.NUM_EXAMPLES])
