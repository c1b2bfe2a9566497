"""Ridge regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import Task
from fl_app.models.base import Arrays
from fl_app.models.estimators.family import Encoded, Floats, param
from fl_app.models.trees import Received, float32

__all__ = ["Ridge"]


@dataclass(frozen=True)
class Ridge:
    """Ridge regression, ``|y - x w - b|^2 + alpha |w|^2``.

    Arrays: ``coef`` (T, D) float32 and ``baseline`` (T,) float64, since a target may have a large
    offset.
    """

    alpha: float = param(1.0, 1e-9, 1e9)

    tasks: ClassVar[Sequence[Task]] = ("regression",)
    names: ClassVar[Sequence[str]] = ("coef",)

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return ``coef`` and ``baseline``."""
        from sklearn.linear_model import Ridge as Solver

        # svd alone needs no well-conditioned matrix, whatever the number of rows.
        model = Solver(alpha=self.alpha, solver="svd").fit(x, y)
        return {
            "coef": float32(model.coef_).reshape(num_outputs, x.shape[1]),
            "baseline": np.asarray(model.intercept_, np.float64).reshape(num_outputs),
        }

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check ``coef``."""
        reader.take("coef", np.float32, (outputs, num_features))

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return ``x coef'``."""
        return np.asarray(x @ arrays["coef"].astype(np.float64).T)
