"""A global member solved by least squares, from sums alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import DataError
from fl_app.stacking.families import shrunk
from fl_app.stacking.folds import SumFolds, sum_folds
from fl_app.stacking.layout import Floats, Layout, targets, unscale, with_ones
from fl_app.stacking.pooled_sums import Pooled, Sums, sums

__all__ = ["least_squares", "linear_sums", "predict_linear"]


def linear_sums(
    layout: Layout,
    x: NDArray[Any],
    y: NDArray[Any],
    num_folds: int,
    floor: int,
    rng: np.random.Generator,
    rows_per_feature: float = 2.0,
) -> tuple[Sums, SumFolds]:
    """Sum X'X and X'Y by fold for the one-shot least-squares global member.

    Parameters
    ----------
    layout : Layout
        Says how the truth is written.
    x, y : ndarray of shape (n, d) and (n,) or (n, T)
        Rows, standardised: the sums travel in float32.
    num_folds, floor, rng
        As for :func:`sum_folds`.
    rows_per_feature : float, default 2
        Rows that a sum needs at least for each of its d + 1 columns: X'X of few rows gives them
        away. Folds merge until each has as many.

    Returns
    -------
    (sums, split) : tuple of Sums and SumFolds
        The split says which model of :func:`least_squares` is new to a row.

    Raises
    ------
    DataError
        If all rows together are too few.
    """
    needed = int(np.ceil(rows_per_feature * (x.shape[1] + 1)))
    split = sum_folds(y, num_folds, floor, rng, classes=layout.classes, min_total=needed)
    if not split.kept.any():
        allowed = f"at least {needed} rows for {x.shape[1]} features; use global_member=fedavg"
        raise DataError("global_member=ls", f"{len(x)} rows", allowed)
    return sums(with_ones(x), targets(layout, y), split), split


def least_squares(pooled: Pooled, penalty: float = 1e-3) -> Floats:
    """Solve the linear model without each fold, by subtraction, and of all folds.

    Parameters
    ----------
    pooled : Pooled
        Of :func:`linear_sums`.
    penalty : float, default 1e-3
        Ridge penalty as a multiple of the mean squared feature.

    Returns
    -------
    ndarray of shape (V + 1, d + 1, C)
        Without each fold, then of all.
    """
    gram, cross = pooled.gram.sum(axis=0), pooled.cross.sum(axis=0)
    sides = [(gram - g, cross - q) for g, q in zip(pooled.gram, pooled.cross, strict=True)]
    return np.stack([shrunk(g, q, np.zeros_like(q), penalty) for g, q in [*sides, (gram, cross)]])


def predict_linear(layout: Layout, weights: NDArray[Any], x: NDArray[Any]) -> Floats:
    """Predict rows with one model of :func:`least_squares`.

    Parameters
    ----------
    layout : Layout
        As for :func:`linear_sums`.
    weights : ndarray of shape (d + 1, C)
        One model.
    x : ndarray of shape (n, d)
        Rows.

    Returns
    -------
    ndarray of shape (n, C) or (n, T)
        Scores of the classes, which may leave [0, 1], or targets in their own units.
    """
    raw = with_ones(x) @ weights
    return raw if layout.classes else unscale(layout, raw)
