"""Random forests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import Task
from fl_app.models.base import Arrays
from fl_app.models.estimators.family import Encoded, Floats, classes_seen, param
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

__all__ = ["RandomForest"]


@dataclass(frozen=True)
class RandomForest:
    """Random forest: the mean over its trees.

    Arrays: ``sizes`` (trees,) int32, ``feature`` (nodes,) int32 (-1 marks a leaf), ``threshold``
    (inner nodes,) float32, ``value`` (leaves, k or T) float32: class shares that sum to 1, or
    distances from ``baseline`` (T,) float64.
    """

    n_estimators: int = param(20, 1, 500)
    max_depth: int = param(8, 1, MAX_DEPTH)
    min_samples_leaf: int = param(1, 1, 10_000)

    tasks: ClassVar[Sequence[Task]] = ("regression", "classification")
    names: ClassVar[Sequence[str]] = TREES

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return the encoded trees with ``present`` or ``baseline``."""
        from sklearn import ensemble

        classes = task == "classification"
        kind = ensemble.RandomForestClassifier if classes else ensemble.RandomForestRegressor
        offset = np.zeros(1) if classes else y.mean(axis=0)
        model = kind(
            n_estimators=int(self.n_estimators),
            max_depth=int(self.max_depth),
            min_samples_leaf=int(self.min_samples_leaf),
            # Drawn from a few rows, a sample may be one row over and over, and its leaf that row.
            bootstrap=len(x) >= 10,
            random_state=seed,
            n_jobs=1,
        ).fit(single(x), y if classes else _flat(y - offset))
        nodes = [
            Nodes(t.feature, t.threshold, t.children_left, t.children_right, t.value)
            for t in (e.tree_ for e in model.estimators_)
        ]
        reference = {"present": classes_seen(y, num_outputs)} if classes else {"baseline": offset}
        return encode_trees(nodes) | reference

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check the trees, at least one, and that class shares are shares."""
        value = check_trees(reader, num_features, outputs)
        reader.demand("sizes", len(reader.arrays["sizes"]) > 0, "at least one tree")
        if task == "classification":
            shares = bool((value >= 0).all() and np.allclose(value.sum(axis=1), 1, atol=1e-4))
            reader.demand("value", shares, "shares of at least 0 that sum to 1")

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return the mean of the leaves' values."""
        forest = Forest.decode(arrays)
        value = arrays["value"].astype(np.float64)
        parts = [value[leaves].sum(axis=1) for leaves in forest.leaves(x)]
        return np.asarray(np.concatenate(parts) / len(arrays["sizes"]))


def _flat(y: Floats) -> Floats:
    """Return one target as a vector, as scikit-learn wants it."""
    return y[:, 0] if y.shape[1] == 1 else y
