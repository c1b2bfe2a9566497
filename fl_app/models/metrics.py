"""Metrics of predictions, by scikit-learn's definitions, as plain floats.

``brier`` is the mean squared distance between probabilities and the one-hot label, halved for two
classes, as :func:`sklearn.metrics.brier_score_loss` scales it. ``r2`` of a constant target is 1
if predicted exactly, else 0 (``force_finite``), so that a client with one row has one too; a
target counts as constant where its values are equal, whatever the rounding of their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.schema import Task

__all__ = ["HIGHER_IS_BETTER", "row_losses", "score"]

_EPS = float(np.finfo(np.float64).eps)

HIGHER_IS_BETTER = frozenset({"accuracy", "r2"})
"""Metrics that are better when larger; all others when smaller."""


def score(task: Task, outputs: NDArray[Any], target: NDArray[Any]) -> dict[str, float]:
    """Score outputs against the truth.

    Parameters
    ----------
    task : {"regression", "classification"}
        The task.
    outputs : ndarray of shape (n, C) or (n, T)
        Probabilities or numbers; n at least 1.
    target : ndarray of shape (n,) or (n, T)
        Class numbers or numbers.

    Returns
    -------
    dict of str to float
        ``log_loss``, ``accuracy``, ``brier`` or ``mse``, ``mae``, ``r2`` (the mean over targets).
    """
    if task == "regression":
        target = target.astype(np.float64, copy=False)
    return _SCORES[task](outputs.astype(np.float64, copy=False), target)


def row_losses(task: Task, outputs: NDArray[Any], target: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the metrics that are means over rows as they are on each row.

    Parameters
    ----------
    task, outputs, target
        As for :func:`score`.

    Returns
    -------
    dict of str to ndarray of shape (n,), float64
        ``log_loss``, ``accuracy``, ``brier`` or ``mse``, ``mae`` (each row's mean over targets).
    """
    outputs = outputs.astype(np.float64, copy=False)
    if task == "regression":
        error = (outputs - target).reshape(len(target), -1)
        return {"mse": np.square(error).mean(axis=1), "mae": np.abs(error).mean(axis=1)}
    error, at = outputs.copy(), (np.arange(len(target)), target)
    error[at] -= 1
    half = 0.5 if outputs.shape[1] == 2 else 1.0
    return {
        "log_loss": -np.log(np.maximum(outputs[at], _EPS)),
        "accuracy": (outputs.argmax(axis=1) == target).astype(np.float64),
        "brier": half * np.square(error).sum(axis=1),
    }


def _classification(p: NDArray[np.float64], y: NDArray[Any]) -> dict[str, float]:
    n, classes = p.shape
    at = np.arange(0, n * classes, classes) + y  # in the flat form of p
    own, error = p.take(at), p.flatten()
    error.put(at, own - 1)
    # Sums over n: the mean of an ndarray is the same in Python, which shows where n is small.
    return {
        "log_loss": 0.0 - float(np.add.reduce(np.log(np.maximum(own, _EPS)))) / n,
        "accuracy": int(np.count_nonzero(p.argmax(axis=1) == y)) / n,
        "brier": float(error.dot(error)) / n * (0.5 if classes == 2 else 1.0),
    }


def _regression(outputs: NDArray[np.float64], y: NDArray[Any]) -> dict[str, float]:
    error = outputs - y
    residual = np.square(error).sum(axis=0)
    total = np.square(y - y.mean(axis=0)).sum(axis=0)
    # A constant's mean is rounded, so that the sum of its squares may be 1e-34 rather than 0.
    constant = (y == y[0]).all(axis=0) | (total == 0)
    exact = np.where(residual == 0, 1.0, 0.0)
    r2 = np.where(constant, exact, 1 - residual / np.where(constant, 1.0, total))
    return {
        "mse": float(np.square(error).mean()),
        "mae": float(np.abs(error).mean()),
        "r2": float(r2.mean()),
    }


_SCORES: Mapping[Task, Callable[[NDArray[np.float64], NDArray[Any]], dict[str, float]]] = {
    "classification": _classification,
    "regression": _regression,
}
