"""Multinomial logistic regression with one row of weights a class.

All C classes have weights on every client, so a client without a class is no special case
(scikit-learn's ``LogisticRegression(warm_start=True)`` raises there).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.models.base import Arrays, Descending
from fl_app.models.linear import affine, affine_gradient, zeros

__all__ = ["Softmax"]


@dataclass(frozen=True)
class Softmax(Descending):
    """Softmax regression.

    Arrays: ``coef`` of shape (C, D) and ``intercept`` of shape (C,), both 0 at the start. The loss
    is the mean log loss ``+ l2/2 |coef|^2``.

    Parameters
    ----------
    config : ModelConfig
        Local training and dtype.
    num_features, num_outputs : int
        D and C.
    """

    def start(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Return zeros."""
        return zeros(self.config, self.num_features, self.num_outputs)

    def predict(self, arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
        """Return probabilities of shape (n, C)."""
        return _exponential(affine(arrays, x))

    def _truth(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        return _one_hot(self.num_outputs, x.dtype).take(y, axis=0)

    def _gradient(
        self, arrays: Arrays, x: NDArray[Any], truth: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        error = _exponential(affine(arrays, x))
        error -= truth
        error *= 1 / len(x)
        return affine_gradient(arrays, x, error, self.config.l2)


@lru_cache(maxsize=8)
def _one_hot(num_classes: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the identity matrix, whose rows are the classes."""
    rows = np.eye(num_classes, dtype=dtype)
    rows.setflags(write=False)
    return rows


def softmax(scores: NDArray[Any]) -> NDArray[Any]:
    """Return probabilities from scores of shape (n, C), safe for large scores."""
    return _exponential(scores.copy() if scores.dtype.kind == "f" else scores.astype(np.float64))


def _exponential(scores: NDArray[Any]) -> NDArray[Any]:
    """Turn scores into their softmax, in place."""
    # The methods of an ndarray are Python around these ufuncs, which shows in small batches.
    scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= np.add.reduce(scores, axis=1, keepdims=True)
    return scores
