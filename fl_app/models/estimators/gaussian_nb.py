"""Gaussian naive Bayes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import Task
from fl_app.models.base import Arrays
from fl_app.models.estimators.family import Encoded, Floats, classes_seen, param, softmax
from fl_app.models.trees import MAX_VALUE, Received, float32

__all__ = ["GaussianNB"]


@dataclass(frozen=True)
class GaussianNB:
    """Gaussian naive Bayes over the classes that the client has.

    Arrays: ``log_prior`` (k,), ``mean`` and ``variance`` (k, D), all float32, and ``present`` (C,)
    uint8, for k classes seen.
    """

    var_smoothing: float = param(0.1, 1e-15, 1e6)

    tasks: ClassVar[Sequence[Task]] = ("classification",)
    names: ClassVar[Sequence[str]] = ("log_prior", "mean", "variance")

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return the moments of each class."""
        from sklearn.naive_bayes import GaussianNB as Solver

        model = Solver(var_smoothing=self.var_smoothing).fit(x, y)
        # Equal rows have no variance to smooth with; any common one leaves the prior to decide.
        variance = model.var_ if model.epsilon_ > 0 else np.ones_like(model.var_)
        return {
            "log_prior": float32(np.log(model.class_prior_)),
            "mean": float32(model.theta_),
            "variance": float32(np.maximum(variance, 1 / MAX_VALUE)),
            "present": classes_seen(y, num_outputs),
        }

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check the moments."""
        reader.take("log_prior", np.float32, (outputs,))
        reader.take("mean", np.float32, (outputs, num_features))
        variance = reader.take("variance", np.float32, (outputs, num_features))
        floor = np.float32(1 / MAX_VALUE)
        reader.demand("variance", bool((variance >= floor).all()), f"at least {floor:g}")

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return the softmax of the joint log likelihoods."""
        moments = (arrays[k].astype(np.float64) for k in ("log_prior", "mean", "variance"))
        columns = [
            prior - 0.5 * (np.log(2 * np.pi * var).sum() + (np.square(x - mean) / var).sum(axis=1))
            for prior, mean, var in zip(*moments, strict=True)
        ]
        return softmax(np.stack(columns, axis=1))
