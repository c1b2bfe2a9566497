"""Multinomial logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import Task
from fl_app.models.base import Arrays
from fl_app.models.estimators.family import (
    Encoded,
    Floats,
    classes_seen,
    num_scores,
    param,
    probabilities,
)
from fl_app.models.trees import Received, float32

__all__ = ["Logistic"]


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression over the classes that the client has.

    Arrays: ``coef`` (R, D) and ``intercept`` (R,) float32, ``present`` (C,) uint8. R is the number
    of classes seen, but 1 for two (log odds of the second) and 0 for one.
    """

    C: float = param(1.0, 1e-9, 1e9)
    max_iter: int = param(200, 1, 100_000)

    tasks: ClassVar[Sequence[Task]] = ("classification",)
    names: ClassVar[Sequence[str]] = ("coef", "intercept")

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return ``coef``, ``intercept`` and ``present``."""
        present = classes_seen(y, num_outputs)
        if present.sum() == 1:
            nothing = {"coef": np.zeros((0, x.shape[1])), "intercept": np.zeros(0)}
            return {k: float32(v) for k, v in nothing.items()} | {"present": present}
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=self.C, max_iter=int(self.max_iter)).fit(x, y)
        parameters = {"coef": model.coef_, "intercept": model.intercept_}
        return {k: float32(v) for k, v in parameters.items()} | {"present": present}

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check ``coef`` and ``intercept``."""
        rows = num_scores(outputs)
        reader.take("coef", np.float32, (rows, num_features))
        reader.take("intercept", np.float32, (rows,))

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return the softmax of ``x coef' + intercept``."""
        coef, intercept = (arrays[k].astype(np.float64) for k in ("coef", "intercept"))
        return probabilities(x @ coef.T + intercept)
