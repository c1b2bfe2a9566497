"""A perceptron with one hidden layer of rectified linear units, for both tasks.

References
----------
He, Zhang, Ren and Sun 2015, "Delving Deep into Rectifiers" (weights at the start),
https://arxiv.org/abs/1502.01852.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import Task
from fl_app.models.base import Arrays, Descending
from fl_app.models.softmax import softmax

__all__ = ["Mlp"]


@dataclass(frozen=True)
class Mlp(Descending):
    """Multi-layer perceptron ``output(relu(hidden(x)))``, then softmax for classification.

    Arrays: ``hidden.coef`` of shape (H, D), ``hidden.intercept`` of shape (H,), ``output.coef`` of
    shape (C or T, H) and ``output.intercept`` of shape (C or T,). The loss is the mean log loss or
    ``mean((y - y_hat)^2)`` (sum over targets), ``+ l2/2 (|hidden.coef|^2 + |output.coef|^2)``.

    Parameters
    ----------
    config : ModelConfig
        Local training and dtype.
    num_features, num_outputs : int
        D, and C classes or T targets.
    task : {"regression", "classification"}
        What the outputs are.
    hidden_units : int, default 32
        H, at least 1. Only :meth:`start` needs it: elsewhere the arrays say it.
    """

    task: Task
    hidden_units: int = 32

    def start(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Return coefficients drawn from N(0, 2 / inputs) and intercepts of 0."""
        return {
            **_layer("hidden", self.num_features, self.hidden_units, self.config.dtype, rng),
            **_layer("output", self.hidden_units, self.num_outputs, self.config.dtype, rng),
        }

    def predict(self, arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
        """Return probabilities of shape (n, C) or targets of shape (n, T)."""
        return self._outputs(arrays, _hidden(arrays, x))

    def _outputs(self, arrays: Arrays, hidden: NDArray[Any]) -> NDArray[Any]:
        outputs = hidden @ arrays["output.coef"].T + arrays["output.intercept"]
        return softmax(outputs) if self.task == "classification" else np.asarray(outputs)

    def _gradient(
        self, arrays: Arrays, x: NDArray[Any], truth: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        hidden = _hidden(arrays, x)
        error = self._outputs(arrays, hidden)
        if self.task == "classification":
            error[np.arange(len(x)), truth] -= 1
            error *= error.dtype.type(1 / len(x))
        else:
            error = (error - truth) * error.dtype.type(2 / len(x))
        back = (error @ arrays["output.coef"]) * (hidden > 0)
        return {
            **self._layer_gradient("hidden", arrays, x, back),
            **self._layer_gradient("output", arrays, hidden, error),
        }

    def _layer_gradient(
        self, layer: str, arrays: Arrays, inputs: NDArray[Any], error: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        """Return a layer's gradient from the gradient of its outputs."""
        coef = error.T @ inputs
        if self.config.l2:
            coef += coef.dtype.type(self.config.l2) * arrays[f"{layer}.coef"]
        return {f"{layer}.coef": coef, f"{layer}.intercept": error.sum(axis=0)}


def _layer(
    name: str, inputs: int, outputs: int, dtype: str, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    coef = rng.normal(scale=np.sqrt(2 / inputs), size=(outputs, inputs))
    return {f"{name}.coef": coef.astype(dtype), f"{name}.intercept": np.zeros(outputs, dtype)}


def _hidden(arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
    """Return the hidden units' values of shape (n, H)."""
    return np.asarray(np.maximum(x @ arrays["hidden.coef"].T + arrays["hidden.intercept"], 0))
