"""What is stacked: the blocks of members and outputs, and the meta-features and targets of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import DataError

__all__ = ["Layout", "bounds", "features", "scale", "targets", "unscale", "with_ones"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """The columns of the meta-features: one block a member, the global member's block, a 1.

    Parameters
    ----------
    num_members : int
        m, at least 1.
    num_outputs : int
        C classes or T targets: the columns of a block.
    has_global : bool
        Whether the last block is a global member's.
    low, high : tuple of float, optional
        Range of each target, for regression only; outputs beyond it are clipped.
    """

    num_members: int
    num_outputs: int
    has_global: bool
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.num_members < 1:
            raise DataError("members", self.num_members, "at least 1")
        ranges = zip(self.low, self.high, strict=True)
        if self.low and (
            len(self.low) != self.num_outputs
            or not all(np.isfinite([a, b]).all() and a < b for a, b in ranges)
        ):
            raise DataError("bounds", (self.low, self.high), f"{self.num_outputs} pairs low < high")

    @property
    def classes(self) -> bool:
        """Whether the task is classification."""
        return not self.low

    @property
    def by_accuracy(self) -> bool:
        """Whether candidates are judged by rows right, rather than by squared error."""
        return self.classes and self.num_outputs > 2

    @property
    def num_blocks(self) -> int:
        """Number B of blocks: the members' and the global member's."""
        return self.num_members + self.has_global

    @property
    def width(self) -> int:
        """Number D of meta-features, ``B C + 1``."""
        return self.num_blocks * self.num_outputs + 1

    def has(self, family: str) -> bool:
        """Whether a family differs here from every other one."""
        return self.has_global if family == "global" else self.classes or family != "class_average"


def bounds(
    mean: NDArray[Any], variance: NDArray[Any], deviations: float = 4.0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return a range for each target from its moments: no row's own value is asked for.

    Parameters
    ----------
    mean, variance : ndarray of shape (T,)
        Moments of the targets over the federation.
    deviations : float, default 4
        Standard deviations on either side.

    Returns
    -------
    (low, high) : tuple of T floats each
        ``low < high``, also for a constant target.

    Examples
    --------
    >>> bounds(np.array([10.0]), np.array([4.0]))
    ((2.0,), (18.0,))
    """
    reach = deviations * np.sqrt(np.asarray(variance, dtype=np.float64))
    reach = np.where(reach > 0, reach, np.maximum(1.0, np.abs(mean)))
    low, high = (mean - reach).tolist(), (mean + reach).tolist()
    return tuple(low), tuple(high)


def features(layout: Layout, blocks: Sequence[NDArray[Any]]) -> Floats:
    """Write the models' outputs side by side, with a column of ones.

    Parameters
    ----------
    layout : Layout
        What the columns are.
    blocks : sequence of B ndarray of shape (n, C) or (n, T)
        Outputs of the members in order, then of the global member. On rows that the client trains
        on, its own block must be out-of-fold (:func:`out_of_fold`) if the member sent as its own
        is the one that it fitted.

    Returns
    -------
    ndarray of shape (n, D)
        Square roots of probabilities, so that each model writes a unit vector; targets clipped to
        their range and brought to [-1, 1].

    Raises
    ------
    DataError
        If a block is missing or one has another shape or a value that is not finite.
    """
    if len(blocks) != layout.num_blocks:
        raise DataError("blocks", len(blocks), f"{layout.num_blocks}, one a model")
    rows = len(blocks[0])
    for number, block in enumerate(blocks):
        if block.shape != (rows, layout.num_outputs) or not np.isfinite(block).all():
            allowed = f"finite numbers of shape {(rows, layout.num_outputs)}"
            raise DataError(f"block {number}", block.shape, allowed)
    if layout.classes:
        scaled = [np.sqrt(np.clip(block, 0.0, 1.0)) for block in blocks]
    else:
        scaled = [np.clip(scale(layout, block), -1.0, 1.0) for block in blocks]
    return with_ones(np.concatenate(scaled, axis=1))


def targets(layout: Layout, y: NDArray[Any]) -> Floats:
    """Return the truth beside the meta-features, (n, C): one-hot, or targets scaled alike.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    y : ndarray of shape (n,) or (n, T)
        Class numbers or targets.
    """
    if layout.classes:
        return np.asarray(np.eye(layout.num_outputs)[y])
    return scale(layout, y[:, None] if y.ndim == 1 else y)


def scale(layout: Layout, values: NDArray[Any]) -> Floats:
    """Map targets (n, T) between their bounds to [-1, 1]."""
    low, high = np.array(layout.low), np.array(layout.high)
    return np.asarray((values - (low + high) / 2) / ((high - low) / 2))


def unscale(layout: Layout, values: Floats) -> Floats:
    """Undo :func:`scale`."""
    low, high = np.array(layout.low), np.array(layout.high)
    return np.asarray(values * ((high - low) / 2) + (low + high) / 2)


def with_ones(x: NDArray[Any]) -> Floats:
    """Add a column of ones to features (n, D), for the intercept."""
    return np.concatenate([x, np.ones((len(x), 1))], axis=1, dtype=np.float64)
