"""Folds of rows: those that members are fitted without, and those that sums are kept by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import DataError

__all__ = ["SumFolds", "out_of_fold", "row_folds", "sum_folds"]


def row_folds(
    y: NDArray[Any], num_folds: int, rng: np.random.Generator, classes: bool
) -> NDArray[np.int64]:
    """Deal a client's rows to folds for out-of-fold predictions.

    Parameters
    ----------
    y : ndarray of shape (n,) or (n, T)
        Class numbers or targets.
    num_folds : int
        V, at least 2. With fewer rows than folds some folds are empty.
    rng : numpy.random.Generator
        Draws the order and the first fold.
    classes : bool
        Whether each class is spread evenly.

    Returns
    -------
    ndarray of shape (n,)
        Folds 0..V-1, whose sizes (over all, and within each class) differ by at most 1.

    Raises
    ------
    DataError
        If ``num_folds`` is below 2.
    """
    if num_folds < 2:
        raise DataError("folds", num_folds, "at least 2")
    order = rng.permutation(len(y))
    if classes:
        order = order[np.argsort(y[order], kind="stable")]
    folds = np.empty(len(y), dtype=np.int64)
    folds[order] = (rng.integers(num_folds) + np.arange(len(y))) % num_folds
    return folds


def out_of_fold(predictions: Sequence[NDArray[Any]], folds: NDArray[np.int64]) -> NDArray[Any]:
    """Take each row's prediction from the model that has not seen its fold.

    Parameters
    ----------
    predictions : sequence of V ndarray of shape (n, C)
        ``predictions[f]`` by the model fitted without fold f, for all rows.
    folds : ndarray of shape (n,)
        Fold of each row.

    Returns
    -------
    ndarray of shape (n, C)
    """
    return np.asarray(np.stack(predictions)[folds, np.arange(len(folds))])


@dataclass(frozen=True)
class SumFolds:
    """To which sum each row goes.

    Parameters
    ----------
    fold : ndarray of shape (n,)
        Fold of each row, 0..V-1. Rows that no sum holds are scored in the first fold that has a
        sum, or in fold 0.
    kept : ndarray of bool, shape (n,)
        Whether the row goes into a sum at all.
    """

    fold: NDArray[np.int64]
    kept: NDArray[np.bool_]


def sum_folds(
    y: NDArray[Any],
    num_folds: int,
    floor: int,
    rng: np.random.Generator,
    *,
    classes: bool,
    by_client: bool = False,
    min_total: int = 1,
) -> SumFolds:
    """Deal a client's rows to sums so that none holds fewer rows of a class than the floor.

    A class is spread over as many folds as it can fill: folds merge, class by class, before rows
    are left out. Each row's label is drawn apart from :func:`row_folds`, so that a class that
    fills one sum alone still has out-of-fold predictions.

    Parameters
    ----------
    y : ndarray of shape (n,) or (n, T)
        Class numbers or targets.
    num_folds : int
        V.
    floor : int
        Rows of a class (regression: rows) that a sum holds at least, if any.
    rng : numpy.random.Generator
        Draws the order and the first fold.
    classes : bool
        Whether the floor counts rows by class.
    by_client : bool, default False
        Whether all of the client's rows go to one fold: a V-th of the bytes.
    min_total : int, default 1
        Rows of all classes that a sum holds at least.

    Returns
    -------
    SumFolds
        A class with fewer rows than the floor is left out; everything is if fewer than
        ``min_total`` rows remain.
    """
    groups = y.astype(np.int64) if classes else np.zeros(len(y), dtype=np.int64)
    order = rng.permutation(len(y))
    order = order[np.argsort(groups[order], kind="stable")]
    first = int(rng.integers(num_folds))
    fold, kept = np.zeros(len(y), np.int64), np.zeros(len(y), np.bool_)
    for used in range(1 if by_client else num_folds, 0, -1):
        dealt, enough = _deal(groups[order], used, floor)
        sizes = np.bincount(dealt[enough])
        if (sizes[sizes > 0] >= min_total).all():
            fold[order], kept[order] = (first + dealt) % num_folds, enough
            break
    fold[~kept] = fold[kept].min(initial=num_folds) % num_folds
    return SumFolds(fold, kept)


def _deal(
    groups: NDArray[np.int64], num_folds: int, floor: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Deal rows sorted by group to folds of at least ``floor`` rows of a group each."""
    fold, enough = np.zeros(len(groups), np.int64), np.zeros(len(groups), np.bool_)
    following = 0
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        share = min(num_folds, len(rows) // max(1, floor))
        if share:
            fold[rows] = (following + np.arange(len(rows)) % share) % num_folds
            enough[rows] = True
        following += share
    return fold, enough
