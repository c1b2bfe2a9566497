"""Multinomial logistic regression with one row of weights a class.

All C classes have weights on every client, so a client without a class is no special case
(scikit-learn's ``LogisticRegression(warm_start=True)`` raises there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.models.base import Arrays, descend
from fl_app.models.linear import affine, affine_gradient, zeros
from fl_app.schema import ModelConfig

__all__ = ["Softmax"]


@dataclass(frozen=True)
class Softmax:
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

    config: ModelConfig
    num_features: int
    num_outputs: int

    def start(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Return zeros."""
        return zeros(self.config, self.num_features, self.num_outputs)

    def fit(
        self,
        arrays: Arrays,
        x: NDArray[Any],
        y: NDArray[Any],
        rng: np.random.Generator,
        proximal_mu: float = 0.0,
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays after local training; y holds class numbers."""
        return descend(self.config, self._gradient, arrays, x, y, rng, proximal_mu)

    def predict(self, arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
        """Return probabilities of shape (n, C)."""
        return softmax(affine(arrays, x))

    def _gradient(
        self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        error = softmax(affine(arrays, x))
        error[np.arange(len(y)), y] -= 1
        error *= error.dtype.type(1 / len(y))
        return affine_gradient(arrays, x, error, self.config.l2)


def softmax(scores: NDArray[Any]) -> NDArray[Any]:
    """Return probabilities from scores of shape (n, C), safe for large scores."""
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return np.asarray(p)
