"""Choices by counting on rows that are new: members, candidates, a gate for each client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.aggregation import checked
from fl_app.errors import DataError
from fl_app.stacking.combining import combine
from fl_app.stacking.families import Candidate
from fl_app.stacking.folds import SumFolds
from fl_app.stacking.layout import Floats, Layout, scale

__all__ = [
    "GATES",
    "by_fold",
    "check_scores",
    "choose",
    "choose_members",
    "gate",
    "max_members",
    "pool_scores",
    "scores",
]

GATES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a client's own model that the personal gate tries."""


def max_members(num_outputs: int) -> int:
    """Return how many members a stack may have: ``min(32, 420 // C)``, at least 1."""
    return max(1, min(32, 420 // num_outputs))


def choose_members(num_examples: NDArray[Any], counts: NDArray[Any], limit: int) -> list[int]:
    """Choose whose base models are stacked.

    Parameters
    ----------
    num_examples : ndarray of shape (K,)
        Rows of each client, in partition order.
    counts : ndarray of shape (K, C) or (K, 1)
        Its rows of each class as it tells them, or all its rows for regression.
    limit : int
        Members at most.

    Returns
    -------
    list of int
        Sorted positions. One after the other: for regression the client with most rows, for
        classification the one that brings most new classes, then the one that raises
        ``sum_c log(1 + rows of class c)`` most. Ties, and so all choices where no client tells of
        any class, go to the one with more rows, then to the first.

    Examples
    --------
    >>> choose_members(np.array([5, 9, 7]), np.array([[5, 0], [9, 0], [0, 7]]), 2)
    [1, 2]
    >>> choose_members(np.array([5, 9, 7]), np.zeros((3, 2)), 2)
    [1, 2]
    """
    counts = np.asarray(counts, dtype=np.float64)
    covered = np.zeros(counts.shape[1])
    left = list(range(len(counts)))
    chosen: list[int] = []
    while left and len(chosen) < limit:
        new = ((counts[left] > 0) & (covered == 0)).sum(axis=1)
        gain = np.log1p(covered + counts[left]).sum(axis=1)
        ranks = zip(new.tolist(), gain.tolist(), num_examples[left].tolist(), strict=True)
        best = left.pop(max(enumerate(ranks), key=lambda pair: pair[1])[0])
        chosen.append(best)
        if counts.shape[1] > 1:
            covered += counts[best]
    return sorted(chosen)


def scores(
    layout: Layout,
    meta_features: Floats,
    truth: Floats,
    split: SumFolds,
    fold_weights: Sequence[Mapping[int, NDArray[Any]]],
    floor: int,
) -> Floats:
    """Count what each candidate gets right on a client's rows, each by weights that it is new to.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    meta_features, truth : ndarray of shape (n, D) and (n, C)
        As they went into :func:`sums`; rows that no sum holds are scored too.
    split : SumFolds
        As it went into :func:`sums`.
    fold_weights : sequence of A mappings of int to ndarray
        For each candidate its ``fold_weights`` of (at least) the folds that ``split`` has.
    floor : int
        Rows below which the client says nothing.

    Returns
    -------
    ndarray of shape (A, 3)
        Rows; rows predicted right (0 for regression); squared error. Zeros below the floor.
    """
    table = np.zeros((len(fold_weights), 3))
    if len(truth) >= max(1, floor):
        for row, weights in zip(table, fold_weights, strict=True):
            judged = _judge(layout, by_fold(layout, meta_features, split, weights), truth)
            row[:] = len(truth), *(column.sum() for column in judged)
    return table


def by_fold(
    layout: Layout,
    meta_features: Floats,
    split: SumFolds,
    weights: Mapping[int, NDArray[Any]],
) -> Floats:
    """Combine each row with the weights that its fold did not help to find.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    meta_features : ndarray of shape (n, D)
        From :func:`features`.
    split : SumFolds
        Fold of each row.
    weights : mapping of int to ndarray
        A candidate's ``fold_weights`` of (at least) the folds that ``split`` has.

    Returns
    -------
    ndarray of shape (n, C) or (n, T)
        As :func:`combine`'s.
    """
    outputs = np.empty((len(meta_features), layout.num_outputs))
    for fold in np.unique(split.fold).tolist():
        rows = split.fold == fold
        outputs[rows] = combine(layout, meta_features[rows], weights[fold])
    return outputs


def _judge(layout: Layout, outputs: Floats, truth: Floats) -> tuple[Floats, Floats]:
    """Return for each row whether it is right, and its squared error in scaled units."""
    if not layout.classes:
        error = np.square(scale(layout, outputs) - truth).sum(axis=1)
        return np.zeros(len(truth)), error
    right = outputs.argmax(axis=1) == truth.argmax(axis=1)
    return right.astype(np.float64), np.square(outputs - truth).sum(axis=1)


def check_scores(
    layout: Layout, table: NDArray[Any], num_candidates: int, num_examples: int
) -> None:
    """Reject counts that no client with this many rows can have.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    table : ndarray of shape (A, 3)
        As received.
    num_candidates, num_examples : int
        Candidates A that were sent, rows that the client has said it has.

    Raises
    ------
    DataError
        Naming what is allowed.
    """
    checked("scores", table, np.float64, (num_candidates, 3))
    if (table < 0).any():
        raise DataError("scores", table.ravel()[:8], "numbers of at least 0")
    rows, right = table[:, 0], table[:, 1]
    if (rows != rows[0]).any() or rows[0] > num_examples or (right > rows).any():
        allowed = f"one count of at most {num_examples} rows, and no more rows right"
        raise DataError("scores", table[:, :2].ravel()[:8], allowed)
    # Two points of the simplex are at most sqrt(2) apart.
    if layout.classes and (table[:, 2] > 4 * (rows[0] + 1)).any():
        raise DataError("scores", float(table[:, 2].max()), "at most 4 a row")


def pool_scores(parts: Mapping[int, NDArray[Any]]) -> Floats:
    """Add up clients' counts in the order of their partitions.

    Parameters
    ----------
    parts : mapping of int to ndarray of shape (A, 3)
        Partition -> checked counts.

    Raises
    ------
    DataError
        If they hold no row at all.
    """
    if not any(part[0, 0] for part in parts.values()):
        raise DataError("scores", f"no rows from {len(parts)} clients", "at least one row")
    # A reduction over the first axis adds in the order of the partitions.
    return np.asarray(np.add.reduce([parts[partition] for partition in sorted(parts)]))


def choose(layout: Layout, table: Sequence[Candidate], pooled_scores: Floats) -> Candidate:
    """Choose a candidate by the clients' counts.

    Of more than two classes the ridge with most rows right stands unless a simpler family has more
    of them right *and* the smaller squared error: rows right are a coarse measure, and without a
    fold the full matrix is solved from fewer rows than in the end, which costs it more of them
    than it costs a simpler family. Else squared error decides alone (for two classes it is the
    Brier score).

    Parameters
    ----------
    layout : Layout
        What is stacked.
    table : sequence of A Candidate
        In the order of the counts.
    pooled_scores : ndarray of shape (A, 3)
        From :func:`pool_scores`.

    Returns
    -------
    Candidate
        Ties go to the smaller error, then to the earlier candidate.
    """
    _, right, loss = pooled_scores.T
    value = right if layout.by_accuracy else -loss

    def rank(number: int) -> tuple[float, float]:
        return value[number], -loss[number]

    full = [k for k, candidate in enumerate(table) if candidate.family == "ridge"]
    best = max(full, key=rank)
    better = np.flatnonzero((value > value[best]) & (loss < loss[best])).tolist()
    return table[max([best, *better], key=rank)]


def gate(
    layout: Layout, own: Floats, stack: Floats, truth: Floats, min_examples: int = 30
) -> float:
    """Choose a client's own share between its own model (1) and the stack (0).

    Parameters
    ----------
    layout : Layout
        What is stacked.
    own : ndarray of shape (n, C)
        Out-of-fold outputs of the client's own model.
    stack : ndarray of shape (n, C)
        The chosen candidate's outputs, each row by the weights without its fold.
    truth : ndarray of shape (n, C)
        From :func:`targets`.
    min_examples : int, default 30
        Rows below which the stack is kept.

    Returns
    -------
    float
        The best of :data:`GATES` if its mean gain over the stack exceeds one standard error of
        the gain, else 0.
    """
    rows = len(truth)
    if rows < min_examples:
        return 0.0

    def value(share: float) -> Floats:
        right, loss = _judge(layout, share * own + (1 - share) * stack, truth)
        return right if layout.by_accuracy else -loss

    base, best, best_gain = value(0.0), 0.0, 0.0
    for share in GATES[1:]:
        gain = value(share) - base
        mean, error = float(gain.mean()), float(gain.std(ddof=1)) / rows**0.5
        if mean > max(error, best_gain):
            best, best_gain = share, mean
    return best
