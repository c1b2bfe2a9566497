"""Trees as named arrays: encoded, checked and walked by NumPy alone.

Trees travel in level order with each inner node's children side by side, so that the j-th inner
node (from 0) has the children ``2j + 1`` and ``2j + 2``: the links need no bytes, and no array can
say a loop (Jacobson 1989, "Space-efficient static trees and graphs",
https://doi.org/10.1109/SFCS.1989.63533). A row goes right where its feature, rounded to float32, is
larger than the threshold.

==============  ====================================================================================
``sizes``       nodes of each tree, (trees,) int32
``feature``     feature of each node, -1 for a leaf, (nodes,) int32
``threshold``   of the inner nodes in order, (inner,) float32
``value``       of the leaves in order, (leaves, width) float32
==============  ====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.aggregation import checked
from fl_app.errors import DataError
from fl_app.models.base import Arrays

__all__ = [
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_VALUE",
    "TREES",
    "Forest",
    "Nodes",
    "Received",
    "check_trees",
    "encode_trees",
    "float32",
    "single",
]

Floats = NDArray[np.float64]
Encoded = dict[str, NDArray[Any]]

TREES = ("sizes", "feature", "threshold", "value")
"""Names of the arrays."""
MAX_NODES = 2**19
"""Nodes that the trees of one estimator may have together."""
MAX_TREES = 2**12
"""Trees that one estimator may have."""
MAX_DEPTH = 32
"""Edges from a root to its farthest leaf."""
MAX_VALUE = 1e30
"""Largest magnitude of a parameter: far from overflow in any product of two."""

_CHUNK = 2**16


@dataclass(frozen=True)
class Received:
    """Arrays of one estimator as they came, read with their expected dtype and shape."""

    name: str
    arrays: Arrays

    def take(self, key: str, dtype: type[Any], shape: tuple[int | None, ...]) -> NDArray[Any]:
        """Return an array of finite, bounded values of this dtype and shape (None: any length)."""
        return checked(f"{self.name}.{key}", self.arrays[key], dtype, shape, MAX_VALUE)

    def demand(self, key: str, condition: bool, allowed: str) -> None:
        """Raise a DataError that names the array unless the condition holds."""
        if not condition:
            raise DataError(f"{self.name}.{key}", self.arrays[key].ravel()[:8], allowed)


@dataclass(frozen=True)
class Nodes:
    """One fitted tree in any order: columns over its nodes, children by position."""

    feature: NDArray[Any]
    threshold: NDArray[Any]
    left: NDArray[Any]
    right: NDArray[Any]
    value: NDArray[Any]

    def level_order(self) -> Nodes:
        """Return the same nodes by level, children side by side; -1 as feature of a leaf."""
        level = np.zeros(1, np.intp)
        levels = []
        while len(level):
            levels.append(level)
            inner = level[self.left[level] > 0]
            level = np.stack([self.left[inner], self.right[inner]], axis=1).ravel()
        order = np.concatenate(levels)
        is_inner = self.left[order] > 0
        return Nodes(
            np.where(is_inner, self.feature[order], -1),
            *(column[order] for column in (self.threshold, self.left, self.right, self.value)),
        )


def encode_trees(trees: Sequence[Nodes]) -> Encoded:
    """Concatenate trees in level order."""
    ordered = [tree.level_order() for tree in trees]
    sizes = np.array([len(tree.feature) for tree in ordered], np.int32)
    if not len(sizes):
        one = np.zeros((0, 1), np.float32)
        return {"sizes": sizes, "feature": sizes.copy(), "threshold": one[:, 0], "value": one}
    feature = np.concatenate([tree.feature for tree in ordered]).astype(np.int32)
    threshold = np.concatenate([tree.threshold for tree in ordered])[feature >= 0]
    value = np.concatenate([tree.value.reshape(len(tree.value), -1) for tree in ordered])
    return {
        "sizes": sizes,
        "feature": feature,
        "threshold": _rounded_down(threshold),
        "value": float32(value[feature < 0]),
    }


def check_trees(reader: Received, num_features: int, width: int) -> NDArray[np.float32]:
    """Check the arrays of trees and return the leaves' values."""
    sizes = reader.take("sizes", np.int32, (None,))
    reader.demand("sizes", len(sizes) <= MAX_TREES, f"at most {MAX_TREES} trees")
    reader.demand("sizes", bool((sizes > 0).all()), "at least 1 node a tree")
    nodes = int(sizes.sum(dtype=np.int64))
    reader.demand("sizes", nodes <= MAX_NODES, f"at most {MAX_NODES} nodes")
    feature = reader.take("feature", np.int32, (nodes,))
    known = bool(((feature >= -1) & (feature < num_features)).all())
    reader.demand("feature", known, f"-1 or a feature below {num_features}")
    inner = int((feature >= 0).sum())
    reader.take("threshold", np.float32, (inner,))
    value = reader.take("value", np.float32, (nodes - inner, width))
    counts = np.add.reduceat(feature >= 0, np.cumsum(sizes) - sizes, dtype=np.int64) if nodes else 0
    full = bool(np.all(sizes == 2 * counts + 1))
    reader.demand("feature", full, "one leaf more than inner nodes in each tree")
    forest = Forest.decode(reader.arrays)
    later = bool((forest.child[forest.inner] > np.flatnonzero(forest.inner)).all())
    reader.demand("feature", later, "children after their parent")
    reader.demand("feature", forest.depth() <= MAX_DEPTH, f"at most {MAX_DEPTH} levels of splits")
    return value


@dataclass(frozen=True)
class Forest:
    """Trees ready to be walked: a leaf is its own child, so that a row stays once it is there."""

    root: NDArray[np.int64]
    child: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    inner: NDArray[np.bool_]

    @classmethod
    def decode(cls, arrays: Arrays) -> Forest:
        """Rebuild the links from the order of the nodes."""
        sizes = arrays["sizes"].astype(np.int64)
        root = np.cumsum(sizes) - sizes
        inner = arrays["feature"] >= 0
        before: NDArray[np.int64] = np.cumsum(inner) - inner
        first = np.repeat(root, sizes)
        child = np.where(inner, first + 2 * (before - before[first]) + 1, np.arange(len(inner)))
        threshold = np.full(len(inner), np.inf, np.float32)
        threshold[inner] = arrays["threshold"]
        feature = np.maximum(arrays["feature"], 0).astype(np.int64)
        return cls(root, child, feature, threshold, inner)

    def depth(self) -> int:
        """Return the levels of splits, or one more than allowed where there are more."""
        level = self.root
        for depth in range(MAX_DEPTH + 1):
            level = self.child[level[self.inner[level]]]
            if not len(level):
                return depth
            level = np.concatenate([level, level + 1])
        return MAX_DEPTH + 1

    def leaves(self, x: Floats) -> Iterator[NDArray[np.int64]]:
        """Yield the leaves (numbered over all trees) that chunks of rows reach, (rows, trees)."""
        number = np.cumsum(~self.inner) - 1
        rows = single(x)
        step = max(1, _CHUNK // max(1, len(self.root)))
        for first in range(0, max(1, len(rows)), step):
            yield number[self._walk(rows[first : first + step])]

    def _walk(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        cells = rows.ravel()
        offset = (np.arange(len(rows)) * rows.shape[1])[:, None]
        node = np.broadcast_to(self.root, (len(rows), len(self.root)))
        for _ in range(MAX_DEPTH):
            right = cells[offset + self.feature[node]] > self.threshold[node]
            following = self.child[node] + right
            if np.array_equal(following, node):
                break
            node = following
        return node


def float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return values in float32, side by side in memory."""
    return np.ascontiguousarray(values, dtype=np.float32)


def _rounded_down(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return the largest float32 that is not above each value."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def single(x: Floats) -> NDArray[np.float32]:
    """Round features as trees see them."""
    return x.astype(np.float32)
