"""A model trained to convergence on rows in one place: what ``strategy=pooled`` promises.

L-BFGS on the loss of all rows has neither step nor batches that would have to be chosen. Where the
config names no penalty, cross-validation over the training rows chooses one: a loss without any has
no minimum on classes that can be separated, and a perceptron without any learns rows by heart.

References
----------
Liu and Nocedal 1989, "On the limited memory BFGS method for large scale optimization",
https://doi.org/10.1007/BF01589116.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.models.base import Arrays, Model
from fl_app.stacking.folds import row_folds

__all__ = ["FOLDS", "PENALTIES", "converge", "minimize"]

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Values of ``l2`` that are tried, until one is no better than that before."""
FOLDS = 4
MAX_ITERATIONS = 200
"""Of L-BFGS, for a penalty that is tried; the chosen one has ten times as many."""

log = logging.getLogger("fl_app")


def converge(
    make: Callable[[float], Model],
    start: Arrays,
    x: NDArray[Any],
    y: NDArray[Any],
    rng: np.random.Generator,
    l2: float = 0.0,
) -> dict[str, NDArray[Any]]:
    """Train a model to convergence, with a penalty that is given or cross-validated.

    Parameters
    ----------
    make : callable (l2) -> Model
        Builds the model with this penalty in its loss.
    start : mapping of str to ndarray
        Arrays to start from; not written to.
    x : ndarray of shape (n, D)
        All training rows.
    y : ndarray of shape (n,) or (n, T)
        Class numbers or targets.
    rng : numpy.random.Generator
        Deals the rows to :data:`FOLDS` folds.
    l2 : float, default 0
        The penalty; 0 chooses one of :data:`PENALTIES` by the loss on rows left out, and none where
        there are fewer than two rows a fold.

    Returns
    -------
    dict of str to ndarray
        In the dtype of ``start``.
    """
    if not l2 and len(x) >= 2 * FOLDS:
        folds, least = row_folds(y, FOLDS, rng, classes=y.ndim == 1), np.inf
        for penalty in PENALTIES:
            loss = _left_out(make(penalty), penalty, start, x, y, folds)
            if not loss < least:
                break
            l2, least = penalty, loss
    limit = 10 * MAX_ITERATIONS
    arrays, reached = minimize(make(l2), start, x, y, l2, limit)
    if not reached:
        log.warning(
            "strategy=pooled: the loss still falls after %d iterations of L-BFGS, so the model is "
            "not at its optimum; dataset.standardize=true or a larger model.l2 may help",
            limit,
        )
    return arrays


def minimize(
    model: Model,
    start: Arrays,
    x: NDArray[Any],
    y: NDArray[Any],
    l2: float = 0.0,
    limit: int = MAX_ITERATIONS,
) -> tuple[dict[str, NDArray[Any]], bool]:
    """Return a minimum of a model's training loss, by L-BFGS in float64, and whether it is one.

    Parameters
    ----------
    model : Model
        With ``l2`` in its loss.
    start, x, y
        As for :func:`converge`.
    l2 : float, default 0
        The model's penalty.
    limit : int, default :data:`MAX_ITERATIONS`
        Iterations at most.
    """
    from scipy import optimize

    x, y = _double(x), _double(y)

    def value(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        arrays = _unpack(vector, start)
        weights = [array for name, array in arrays.items() if name.endswith("coef")]
        penalty = l2 / 2 * sum(float(np.square(array).sum()) for array in weights)
        gradient = model.gradient(arrays, x, y)
        return _loss(model.predict(arrays, x), y) + penalty, _pack(gradient, start)

    options = {"maxiter": limit, "maxfun": 10 * limit}
    solution = optimize.minimize(
        value, _pack(start, start), jac=True, method="L-BFGS-B", options=options
    )
    arrays = _unpack(solution.x, start)
    typed = {name: array.astype(start[name].dtype) for name, array in arrays.items()}
    return typed, solution.nit < limit


def _left_out(
    model: Model,
    l2: float,
    start: Arrays,
    x: NDArray[Any],
    y: NDArray[Any],
    folds: NDArray[np.int64],
) -> float:
    """Return the summed loss of the rows of each fold, by the model of the others."""
    total = 0.0
    for fold in np.unique(folds):
        in_fold = folds == fold
        arrays, _ = minimize(model, start, x[~in_fold], y[~in_fold], l2)
        total += float(in_fold.sum()) * _loss(model.predict(arrays, x[in_fold]), y[in_fold])
    return total


def _loss(outputs: NDArray[Any], y: NDArray[Any]) -> float:
    """Return the mean log loss, or the mean squared error summed over targets."""
    if y.ndim == 1:
        likely = np.maximum(outputs[np.arange(len(y)), y], np.finfo(np.float64).tiny)
        return -float(np.log(likely).mean())
    return float(np.square(outputs - y).sum(axis=1).mean())


def _double(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.float64) if values.dtype.kind == "f" else values


def _pack(arrays: Arrays, like: Arrays) -> NDArray[np.float64]:
    """Return arrays as one vector, in the order of another mapping."""
    return np.concatenate([arrays[name].ravel() for name in like]).astype(np.float64)


def _unpack(vector: NDArray[np.float64], like: Arrays) -> dict[str, NDArray[np.float64]]:
    """Read :func:`_pack`'s vector back."""
    ends = np.cumsum([array.size for array in like.values()])
    parts = np.split(vector, ends[:-1])
    return {n: p.reshape(a.shape) for (n, a), p in zip(like.items(), parts, strict=True)}
