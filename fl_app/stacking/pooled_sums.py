"""Sums over rows: what a client sends, what the server adds up, and what they give away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.aggregation import checked
from fl_app.errors import DataError
from fl_app.stacking.folds import SumFolds
from fl_app.stacking.layout import Floats, Layout

__all__ = ["Pooled", "Sums", "can_be_solved_for", "check_sums", "equations", "pool", "sums"]


@dataclass(frozen=True)
class Sums:
    """One client's sums over its rows, by fold, as they travel.

    Parameters
    ----------
    fold : ndarray of int64, shape (s,)
        Folds that have rows, rising.
    gram : ndarray of float32, shape (s, D (D + 1) / 2)
        Upper triangle of F'F, row by row; its last number is the count of rows.
    cross : ndarray of float32, shape (s, D, C)
        F'Y.
    squares : ndarray of float32, shape (s, C)
        Column sums of Y * Y.
    """

    fold: NDArray[np.int64]
    gram: NDArray[np.float32]
    cross: NDArray[np.float32]
    squares: NDArray[np.float32]

    @property
    def num_examples(self) -> int:
        """Rows that the sums hold."""
        return int(self.gram[:, -1].sum())

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays that travel."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Sums:
        """Read :meth:`to_arrays`'s form back; :func:`check_sums` says whether it makes sense."""
        names = [field.name for field in fields(cls)]
        if set(arrays) != set(names):
            raise DataError("sums", sorted(arrays), f"arrays named {', '.join(names)}")
        return cls(**arrays)


@dataclass(frozen=True)
class Pooled:
    """Sums over clients, by fold, in float64.

    Parameters
    ----------
    gram : ndarray of shape (V, D, D)
        F'F.
    cross : ndarray of shape (V, D, C)
        F'Y.
    squares : ndarray of shape (V, C)
        Column sums of Y * Y.
    """

    gram: Floats
    cross: Floats
    squares: Floats

    @property
    def num_examples(self) -> float:
        """Rows over all folds."""
        return float(self.gram[:, -1, -1].sum())

    def __add__(self, other: Pooled) -> Pooled:
        """Return the sums over the clients of both."""
        return Pooled(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def sums(meta_features: Floats, truth: Floats, split: SumFolds) -> Sums:
    """Sum products of meta-features and truth over the rows of each fold.

    Parameters
    ----------
    meta_features : ndarray of shape (n, D)
        From :func:`features`; the last column is 1.
    truth : ndarray of shape (n, C)
        From :func:`targets`.
    split : SumFolds
        From :func:`sum_folds`.

    Returns
    -------
    Sums
        Without folds that have no rows.
    """
    width, outputs = meta_features.shape[1], truth.shape[1]
    upper = np.triu_indices(width)
    folds = np.unique(split.fold[split.kept])
    gram = np.empty((len(folds), len(upper[0])), np.float32)
    cross = np.empty((len(folds), width, outputs), np.float32)
    squares = np.empty((len(folds), outputs), np.float32)
    for k, fold in enumerate(folds):
        rows = split.kept & (split.fold == fold)
        f, y = meta_features[rows], truth[rows]
        gram[k], cross[k], squares[k] = (f.T @ f)[upper], f.T @ y, np.square(y).sum(axis=0)
    return Sums(folds, gram, cross, squares)


def check_sums(
    part: Sums, *, width: int, num_outputs: int, num_folds: int, num_examples: int, bounded: bool
) -> None:
    """Reject sums that no client with this many rows can have.

    Parameters
    ----------
    part : Sums
        As received.
    width, num_outputs, num_folds : int
        D, C and V.
    num_examples : int
        Rows that the client has said it has.
    bounded : bool
        Whether meta-features lie in [-1, 1] (:func:`features`), so that no product of two can
        exceed the count of rows.

    Raises
    ------
    DataError
        Naming the array and what is allowed.
    """
    s = part.fold.size
    checked("sums.fold", part.fold, np.int64, (s,))
    for name, shape in (
        ("gram", (s, width * (width + 1) // 2)),
        ("cross", (s, width, num_outputs)),
        ("squares", (s, num_outputs)),
    ):
        checked(f"sums.{name}", getattr(part, name), np.float32, shape)
    # Within range first: a difference of any two integers may wrap.
    known = bool(((part.fold >= 0) & (part.fold < num_folds)).all())
    if not known or not (np.diff(part.fold) > 0).all():
        raise DataError("sums.fold", part.fold, f"rising numbers below {num_folds}")
    _check_counts(part, width, num_examples, bounded)


def _check_counts(part: Sums, width: int, num_examples: int, bounded: bool) -> None:
    count = part.gram[:, -1].astype(np.float64)
    if (count < 1).any() or count.sum() > num_examples:
        raise DataError("sums.gram", count, f"1 to {num_examples} rows in all folds together")
    corner = np.arange(width)
    diagonal = part.gram[:, corner * width - corner * (corner - 1) // 2]
    if (diagonal < 0).any():
        raise DataError("sums.gram", float(diagonal.min()), "squares of at least 0")
    top = count * (1 + 1e-5)
    if bounded and (np.abs(part.gram).max(axis=1, initial=0) > top).any():
        raise DataError("sums.gram", float(np.abs(part.gram).max()), "at most the count of rows")
    if (part.squares < 0).any():
        raise DataError("sums.squares", float(part.squares.min()), "squares of at least 0")
    # Cauchy and Schwarz, entry by entry. What squares lose to underflow is below the slack.
    wide, slack = 1 + 1e-5, 1e-18 * count[:, None]
    norm, truth = np.sqrt(diagonal.astype(np.float64)), np.sqrt(part.squares.astype(np.float64))
    row, column = np.triu_indices(width)
    if (np.abs(part.gram) > norm[:, row] * norm[:, column] * wide + slack).any():
        raise DataError("sums.gram", "products", "at most the root of the product of two squares")
    if (np.abs(part.cross) > norm[:, :, None] * truth[:, None] * wide + slack[..., None]).any():
        allowed = "at most the root of the product of the squares"
        raise DataError("sums.cross", float(np.abs(part.cross).max()), allowed)


def pool(parts: Mapping[int, Sums], num_folds: int) -> Pooled:
    """Add up clients' sums in the order of their partitions, so that arrival order changes no bit.

    Parameters
    ----------
    parts : mapping of int to Sums
        Partition -> checked sums; at least one.
    num_folds : int
        V.

    Returns
    -------
    Pooled

    Raises
    ------
    DataError
        If there is none, or they hold no row at all.
    """
    if not sum(part.num_examples for part in parts.values()):
        raise DataError("sums", f"no rows from {len(parts)} clients", "at least one row")
    width, outputs = next(iter(parts.values())).cross.shape[1:]
    upper = np.zeros((num_folds, width * (width + 1) // 2))
    cross, squares = np.zeros((num_folds, width, outputs)), np.zeros((num_folds, outputs))
    for partition in sorted(parts):
        part = parts[partition]
        upper[part.fold] += part.gram
        cross[part.fold] += part.cross
        squares[part.fold] += part.squares
    row, column = np.triu_indices(width)
    gram = np.zeros((num_folds, width, width))
    gram[:, row, column] = upper
    gram[:, column, row] = upper
    return Pooled(gram, cross, squares)


def equations(layout: Layout) -> int:
    """Count the equations that one sum states about its rows.

    Parameters
    ----------
    layout : Layout
        The columns of the meta-features.

    Returns
    -------
    int
        ``E = d (d + 1) / 2 + d c`` with ``d = B (C - 1) + 1`` and ``c = C - 1`` for classes,
        ``d = B T + 1`` and ``c = T`` for targets; or half of the independent ones, if that is more,
        so that there are never more than 2 E. Roots of C probabilities multiply to more functions
        than C - 1 probabilities: of the ``D (D + 1) / 2 + D C`` numbers in F'F and F'Y follow from
        the others only the count of rows, a square in each block (it is a unit vector) and one
        column of F'Y, whose last row counts classes. For two or three classes and many members
        the rest is more than 2 E.

    Examples
    --------
    Nine members and a global one, 3 classes; ten and a global one, 2 classes:

    >>> equations(Layout(9, 3, True)), equations(Layout(10, 2, True))
    (273, 143)
    """
    d, free = _free(layout)
    counted = d * (d + 1) // 2 + d * free
    if not layout.classes:
        return counted
    width = layout.width
    independent = width * (width + 1) // 2 - layout.num_blocks - 1 + (width - 1) * free
    return max(counted, -(-independent // 2))


def can_be_solved_for(layout: Layout, num_examples: int, num_features: int) -> bool:
    """Return whether somebody who knows the members may find the rows of a sum.

    Necessary, not sufficient: with more unknowns than equations, many rows have the same sum. It
    counts one sum alone; base models, updates of the global member and other sums over the same
    rows tell more.

    Parameters
    ----------
    layout : Layout
        The columns of the meta-features.
    num_examples : int
        r, the rows of the sum.
    num_features : int
        p, what is unknown of a row: the columns of its table.

    Returns
    -------
    bool
        Whether ``r p < 2 E`` (:func:`equations`) or ``r < d``.

    Examples
    --------
    Wine, 13 features and 3 classes; with 10 members, and with 2:

    >>> can_be_solved_for(Layout(10, 3, True), 4, 13), can_be_solved_for(Layout(2, 3, True), 16, 13)
    (True, False)
    """
    few = num_examples < _free(layout)[0]
    return few or num_examples * num_features < 2 * equations(layout)


def _free(layout: Layout) -> tuple[int, int]:
    """Return d and c of :func:`equations`: probabilities sum to 1, so that one of C is not free."""
    free = layout.num_outputs - layout.classes
    return layout.num_blocks * free + 1, free
