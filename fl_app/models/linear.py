"""Linear regression on the mean squared error: ``y = x coef' + intercept``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import ModelConfig
from fl_app.models.base import Arrays, Descending

__all__ = ["Linear"]


@dataclass(frozen=True)
class Linear(Descending):
    """Linear model for any number of targets.

    Arrays: ``coef`` of shape (T, D) and ``intercept`` of shape (T,), both 0 at the start. The loss
    is ``mean((y - y_hat)^2) + l2/2 |coef|^2``, the mean over the rows and the sum over targets.

    Parameters
    ----------
    config : ModelConfig
        Local training and dtype.
    num_features, num_outputs : int
        D and T.
    """

    def start(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Return zeros."""
        return zeros(self.config, self.num_features, self.num_outputs)

    def predict(self, arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
        """Return targets of shape (n, T)."""
        return affine(arrays, x)

    def _gradient(
        self, arrays: Arrays, x: NDArray[Any], truth: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        error = (affine(arrays, x) - truth) * x.dtype.type(2 / len(x))
        return affine_gradient(arrays, x, error, self.config.l2)


def zeros(config: ModelConfig, num_features: int, num_outputs: int) -> dict[str, NDArray[Any]]:
    """Return ``coef`` and ``intercept`` of zeros."""
    return {
        "coef": np.zeros((num_outputs, num_features), config.dtype),
        "intercept": np.zeros(num_outputs, config.dtype),
    }


def affine(arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
    """Return ``x coef' + intercept``."""
    # `dot` gives the bits of `@`, sooner where rows are few.
    outputs, intercept = x.dot(arrays["coef"].T), arrays["intercept"]
    if outputs.dtype != intercept.dtype:
        return np.asarray(outputs + intercept)
    outputs += intercept
    return np.asarray(outputs)


def affine_gradient(
    arrays: Arrays, x: NDArray[Any], error: NDArray[Any], l2: float
) -> dict[str, NDArray[Any]]:
    """Return the gradient of ``coef`` and ``intercept`` from the gradient of their outputs."""
    coef = error.T.dot(x)
    if l2:
        coef += coef.dtype.type(l2) * arrays["coef"]
    return {"coef": coef, "intercept": np.add.reduce(error, axis=0)}
