"""What a stack predicts from the outputs of its members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.stacking.families import expand
from fl_app.stacking.layout import Floats, Layout, features, unscale

__all__ = ["DOUBT", "combine", "influence", "predict"]

Predictor = Callable[[NDArray[Any]], NDArray[Any]]
DOUBT = 0.01
"""Probability that a re-mapped row spreads over all classes: least squares cannot say "never"."""


def combine(layout: Layout, meta_features: Floats, weights: NDArray[Any]) -> Floats:
    """Combine the models' outputs.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    meta_features : ndarray of shape (n, D)
        From :func:`features`.
    weights : ndarray of shape (B, C) or (D, C)
        A candidate's weights, of outputs or of meta-features.

    Returns
    -------
    ndarray of shape (n, C) or (n, T)
        Probabilities, or targets in their own units. Rows that are no probabilities yet are moved
        to the nearest ones, which keeps their order and never raises the Brier score, and keep
        1 % of doubt.
    """
    if len(weights) == layout.width:
        raw = meta_features @ weights.astype(np.float64)
    else:
        outputs = meta_features[:, :-1].reshape(-1, layout.num_blocks, layout.num_outputs)
        outputs = np.square(outputs) if layout.classes else outputs
        raw = (outputs * weights).sum(axis=1)
    return _repair(raw) if layout.classes else unscale(layout, raw)


def _repair(raw: Floats) -> Floats:
    good = (raw >= 0).all(axis=1) & (np.abs(raw.sum(axis=1) - 1) < 1e-5)
    if good.all():
        return raw
    rows, classes = raw.shape
    falling = -np.sort(-raw, axis=1)
    excess = np.cumsum(falling, axis=1) - 1.0
    support = (falling * np.arange(1, classes + 1) > excess).sum(axis=1)
    theta = excess[np.arange(rows), support - 1] / support
    nearest = np.maximum(raw - theta[:, None], 0.0)
    return np.where(good[:, None], raw, (1 - DOUBT) * nearest + DOUBT / classes)


def predict(
    layout: Layout,
    members: Sequence[Predictor],
    global_member: Predictor | None,
    weights: NDArray[Any],
    x: NDArray[Any],
) -> Floats:
    """Predict rows with the finished stack.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    members : sequence of m callables
        Each returns outputs of shape (n, C) for x.
    global_member : callable, optional
        The global member's; None where the layout has none.
    weights : ndarray of shape (B, C) or (D, C)
        The chosen candidate's weights.
    x : ndarray of shape (n, d)
        Rows.

    Returns
    -------
    ndarray of shape (n, C) or (n, T)
    """
    models = [*members, *([global_member] if global_member else [])]
    return combine(layout, features(layout, [model(x) for model in models]), weights)


def influence(layout: Layout, weights: NDArray[Any]) -> Floats:
    """Return each model's share of the weights' magnitude.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    weights : ndarray of shape (B, C) or (D, C)
        A candidate's weights.

    Returns
    -------
    ndarray of shape (B,)
        Sums to 1: the members in order, then the global member.
    """
    blocks = np.abs(expand(layout, weights)[:-1]).reshape(layout.num_blocks, -1).sum(axis=1)
    return np.asarray(blocks / max(float(blocks.sum()), 1e-300))
