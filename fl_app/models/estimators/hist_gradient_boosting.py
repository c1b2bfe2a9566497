"""Histogram gradient boosting."""

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
from fl_app.models.trees import (
    MAX_DEPTH,
    TREES,
    Forest,
    Nodes,
    Received,
    check_trees,
    encode_trees,
    single,
)

__all__ = ["HistGradientBoosting"]


@dataclass(frozen=True)
class HistGradientBoosting:
    """Histogram gradient boosting: the sum over its trees, dealt in turn to R outputs.

    Arrays: ``sizes``, ``feature``, ``threshold`` as for a random forest, ``value`` (leaves, 1)
    float32 and ``start`` (R,) float64, the raw outputs before the first tree. R as for a logistic
    regression, or T; no trees where there is nothing to learn.
    """

    max_iter: int = param(20, 1, 200)
    learning_rate: float = param(0.2, 1e-6, 1.0)
    max_leaf_nodes: int = param(15, 2, MAX_DEPTH)
    min_samples_leaf: int = param(10, 1, 10_000)

    tasks: ClassVar[Sequence[Task]] = ("regression", "classification")
    names: ClassVar[Sequence[str]] = (*TREES, "start")

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return the encoded trees with ``start`` and ``present`` or ``baseline``."""
        if task == "classification":
            present = classes_seen(y, num_outputs)
            models = [self._boost(task, x, y, seed)] if present.sum() > 1 else []
            reference: Encoded = {"present": present}
        else:
            offset = y.mean(axis=0)
            models = [self._boost(task, x, column, seed) for column in (y - offset).T]
            reference = {"baseline": offset}
        # One model has its outputs in the inner lists; one model a target has one output each.
        rounds = zip(*(model._predictors for model in models), strict=True)
        nodes = [_boosted(tree) for parts in rounds for trees in parts for tree in trees]
        starts = [np.ravel(model._baseline_prediction) for model in models]
        start = np.concatenate([np.zeros(0), *starts])
        return encode_trees(nodes) | reference | {"start": start}

    def _boost(self, task: Task, x: Floats, y: NDArray[Any], seed: int) -> Any:
        from sklearn import ensemble

        solvers = {
            "regression": ensemble.HistGradientBoostingRegressor,
            "classification": ensemble.HistGradientBoostingClassifier,
        }
        return solvers[task](
            max_iter=int(self.max_iter),
            learning_rate=self.learning_rate,
            max_leaf_nodes=int(self.max_leaf_nodes),
            min_samples_leaf=int(self.min_samples_leaf),
            early_stopping=False,
            random_state=seed,
        ).fit(single(x), y)

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check the trees and that they can be dealt to the outputs."""
        check_trees(reader, num_features, 1)
        columns = num_scores(outputs) if task == "classification" else outputs
        reader.take("start", np.float64, (columns,))
        trees = len(reader.arrays["sizes"])
        fair = trees % columns == 0 if columns else trees == 0
        reader.demand("sizes", fair, f"a multiple of {columns} trees")

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return ``start`` plus the sums of the leaves' values, as probabilities for classes."""
        columns = len(arrays["start"])
        raw = np.zeros((len(x), columns))
        if columns:
            value = arrays["value"][:, 0].astype(np.float64)
            rounds = len(arrays["sizes"]) // columns
            sums = [
                value[leaves].reshape(len(leaves), rounds, columns).sum(axis=1)
                for leaves in Forest.decode(arrays).leaves(x)
            ]
            raw = np.concatenate(sums) + arrays["start"]
        return probabilities(raw) if "present" in arrays else raw


def _boosted(tree: Any) -> Nodes:
    """Read one tree of scikit-learn's histogram gradient boosting."""
    nodes = tree.nodes
    inner = nodes["is_leaf"] == 0
    left, right = (np.where(inner, nodes[side], 0).astype(np.int64) for side in ("left", "right"))
    return Nodes(nodes["feature_idx"], nodes["num_threshold"], left, right, nodes["value"])
