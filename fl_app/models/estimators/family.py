"""What a family of base estimators is, and what several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import Task
from fl_app.models.base import Arrays
from fl_app.models.trees import Received

__all__ = [
    "Encoded",
    "Estimator",
    "Floats",
    "classes_seen",
    "num_scores",
    "param",
    "probabilities",
    "softmax",
]

Floats = NDArray[np.float64]
Encoded = dict[str, NDArray[Any]]


class Estimator(Protocol):
    """A family of base estimators: hyperparameters in the instance, everything else static."""

    tasks: ClassVar[Sequence[Task]]
    names: ClassVar[Sequence[str]]

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return the arrays of an estimator fitted on checked rows."""
        ...

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check the arrays besides ``present`` and ``baseline`` for a number of seen outputs."""
        ...

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return probabilities of the classes seen, (n, k), or distances from ``baseline``."""
        ...


def param(default: float, low: float, high: float) -> Any:
    """Declare a hyperparameter with its default and its closed range."""
    return field(default=default, metadata={"low": low, "high": high})


def classes_seen(y: NDArray[Any], num_outputs: int) -> NDArray[np.uint8]:
    """Mark the classes that occur."""
    return (np.bincount(y, minlength=num_outputs) > 0).astype(np.uint8)


def num_scores(classes: int) -> int:
    """Return how many raw scores tell classes apart: one fewer for one class or two."""
    return {1: 0, 2: 1}.get(classes, classes)


def probabilities(raw: Floats) -> Floats:
    """Turn raw scores into probabilities; one class or two have their first score, 0, left out."""
    if raw.shape[1] <= 1:
        raw = np.concatenate([np.zeros((len(raw), 1)), raw], axis=1)
    return softmax(raw)


def softmax(scores: Floats) -> Floats:
    """Turn scores into probabilities, (n, C) both."""
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))
