"""Stacked generalization of a federation's models, from sums over rows alone; pure NumPy.

Clients hold rows, the server holds none. Each client writes down what the chosen members' models
and one global model say about its rows (meta-features F) beside the truth Y, and sends the sums
F'F and F'Y by fold. From these sums the server solves every way of combining the models, prices
each by cross-validation, and lets the clients count what the candidates get right on rows that
they are new to. Every function is pure: rows or sums in, numbers out. A federation calls them so:

=======  =======================================================================================
who      what
=======  =======================================================================================
client   :func:`row_folds`; fits its base model and one without each fold
server   :func:`choose_members`, :class:`Layout`
client   :func:`out_of_fold`, :func:`features`, :func:`targets`, :func:`sum_folds`, :func:`sums`
server   :func:`check_sums`, :func:`pool`, :func:`candidates`, :func:`provisional`
client   :func:`scores`
server   :func:`check_scores`, :func:`pool_scores`, :func:`choose`
anybody  :func:`predict`; a client, if it likes, :func:`gate`
=======  =======================================================================================

Only a client's *own* block is out-of-fold, and that of a global member solved by least squares:
every other member is new to its rows anyway, and a global member trained by averaging is taken as
it is, for copies of it, each without a fold, would cost more than they gain (docs/stacking.md). A
meta-feature is the square root of a probability. A model then writes a unit vector (the inner
product of two is their Bhattacharyya coefficient), and a linear map sees how sure it is, which
plain probabilities hide by always summing to 1.

**Sums are no hiding place.** Whoever knows the members can solve a client's sums for its rows:
:func:`equations` counts where that is possible, and a test does it.

References
----------
Wolpert 1992, "Stacked generalization", https://doi.org/10.1016/S0893-6080(05)80023-1.
Breiman 1996, "Stacked regressions" (non-negative weights), https://doi.org/10.1007/BF00117832.
Allouah et al. 2024, "Revisiting Ensembling in One-Shot Federated Learning" (FENS: federated
training of the combiner), https://arxiv.org/abs/2411.07182.
Guha, Talwalkar and Smith 2019, "One-Shot Federated Learning" (choosing members),
https://arxiv.org/abs/1902.11175.
Lawson and Hanson 1974, "Solving Least Squares Problems" (non-negative least squares).
Duchi et al. 2008, "Efficient Projections onto the l1-Ball", https://doi.org/10.1145/1390156.1390191.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import DataError

__all__ = [
    "AVERAGES",
    "FAMILIES",
    "PENALTIES",
    "Candidate",
    "Layout",
    "Pooled",
    "SumFolds",
    "Sums",
    "bounds",
    "by_fold",
    "can_be_solved_for",
    "candidates",
    "check_scores",
    "check_sums",
    "choose",
    "choose_members",
    "class_shares",
    "combine",
    "equations",
    "features",
    "gate",
    "influence",
    "least_squares",
    "linear_sums",
    "max_members",
    "out_of_fold",
    "pool",
    "pool_scores",
    "predict",
    "predict_linear",
    "provisional",
    "row_folds",
    "scores",
    "sum_folds",
    "sums",
    "targets",
]

Floats = NDArray[np.float64]
Predictor = Callable[[NDArray[Any]], NDArray[Any]]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Penalties of the full ridge family, as multiples of the mean squared meta-feature."""
GATES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a client's own model that the personal gate tries."""
INTERCEPT = 1e-3
"""Penalty of the intercept beside that of a weight."""
DOUBT = 0.01
"""Probability that a re-mapped row spreads over all classes: least squares cannot say "never"."""


# ---------------------------------------------------------------------------- what is stacked
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


def max_members(num_outputs: int) -> int:
    """Return how many members a stack may have: ``min(32, 420 // C)``, at least 1."""
    return max(1, min(32, 420 // num_outputs))


def choose_members(num_examples: NDArray[Any], counts: NDArray[Any], limit: int) -> list[int]:
    """Choose whose base models are stacked.

    Parameters
    ----------
    num_examples : ndarray of shape (K,)
        Rows of each client, in partition order.
    counts : ndarray of shape (K, C) or (K, 1)
        Its rows of each class as it tells them, or all its rows for regression.
    limit : int
        Members at most.

    Returns
    -------
    list of int
        Sorted positions. One after the other: for regression the client with most rows, for
        classification the one that brings most new classes, then the one that raises
        ``sum_c log(1 + rows of class c)`` most. Ties, and so all choices where no client tells of
        any class, go to the one with more rows, then to the first.

    Examples
    --------
    >>> choose_members(np.array([5, 9, 7]), np.array([[5, 0], [9, 0], [0, 7]]), 2)
    [1, 2]
    >>> choose_members(np.array([5, 9, 7]), np.zeros((3, 2)), 2)
    [1, 2]
    """
    counts = np.asarray(counts, dtype=np.float64)
    covered = np.zeros(counts.shape[1])
    left = list(range(len(counts)))
    chosen: list[int] = []
    while left and len(chosen) < limit:
        new = ((counts[left] > 0) & (covered == 0)).sum(axis=1)
        gain = np.log1p(covered + counts[left]).sum(axis=1)
        ranks = zip(new.tolist(), gain.tolist(), num_examples[left].tolist(), strict=True)
        best = left.pop(max(enumerate(ranks), key=lambda pair: pair[1])[0])
        chosen.append(best)
        if counts.shape[1] > 1:
            covered += counts[best]
    return sorted(chosen)


# ---------------------------------------------------------------------------- meta-features
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
        scaled = [np.clip(_scale(layout, block), -1.0, 1.0) for block in blocks]
    return _with_ones(np.concatenate(scaled, axis=1))


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
    return _scale(layout, y[:, None] if y.ndim == 1 else y)


def _scale(layout: Layout, values: NDArray[Any]) -> Floats:
    low, high = np.array(layout.low), np.array(layout.high)
    return np.asarray((values - (low + high) / 2) / ((high - low) / 2))


def _unscale(layout: Layout, values: Floats) -> Floats:
    low, high = np.array(layout.low), np.array(layout.high)
    return np.asarray(values * ((high - low) / 2) + (low + high) / 2)


# ---------------------------------------------------------------------------- folds
def row_folds(
    y: NDArray[Any], num_folds: int, rng: np.random.Generator, classes: bool
) -> NDArray[np.int64]:
    """Deal a client's rows to folds for out-of-fold predictions.

    Parameters
    ----------
    y : ndarray of shape (n,) or (n, T)
        Class numbers or targets.
    num_folds : int
        V, at least 2. With fewer rows than folds some folds are empty.
    rng : numpy.random.Generator
        Draws the order and the first fold.
    classes : bool
        Whether each class is spread evenly.

    Returns
    -------
    ndarray of shape (n,)
        Folds 0..V-1, whose sizes (over all, and within each class) differ by at most 1.

    Raises
    ------
    DataError
        If ``num_folds`` is below 2.
    """
    if num_folds < 2:
        raise DataError("folds", num_folds, "at least 2")
    order = rng.permutation(len(y))
    if classes:
        order = order[np.argsort(y[order], kind="stable")]
    folds = np.empty(len(y), dtype=np.int64)
    folds[order] = (rng.integers(num_folds) + np.arange(len(y))) % num_folds
    return folds


def out_of_fold(predictions: Sequence[NDArray[Any]], folds: NDArray[np.int64]) -> NDArray[Any]:
    """Take each row's prediction from the model that has not seen its fold.

    Parameters
    ----------
    predictions : sequence of V ndarray of shape (n, C)
        ``predictions[f]`` by the model fitted without fold f, for all rows.
    folds : ndarray of shape (n,)
        Fold of each row.

    Returns
    -------
    ndarray of shape (n, C)
    """
    return np.asarray(np.stack(predictions)[folds, np.arange(len(folds))])


@dataclass(frozen=True)
class SumFolds:
    """To which sum each row goes.

    Parameters
    ----------
    fold : ndarray of shape (n,)
        Fold of each row, 0..V-1. Rows that no sum holds are scored in the first fold that has a
        sum, or in fold 0.
    kept : ndarray of bool, shape (n,)
        Whether the row goes into a sum at all.
    """

    fold: NDArray[np.int64]
    kept: NDArray[np.bool_]


def sum_folds(
    y: NDArray[Any],
    num_folds: int,
    floor: int,
    rng: np.random.Generator,
    *,
    classes: bool,
    by_client: bool = False,
    min_total: int = 1,
) -> SumFolds:
    """Deal a client's rows to sums so that none holds fewer rows of a class than the floor.

    A class is spread over as many folds as it can fill: folds merge, class by class, before rows
    are left out. Each row's label is drawn apart from :func:`row_folds`, so that a class that
    fills one sum alone still has out-of-fold predictions.

    Parameters
    ----------
    y : ndarray of shape (n,) or (n, T)
        Class numbers or targets.
    num_folds : int
        V.
    floor : int
        Rows of a class (regression: rows) that a sum holds at least, if any.
    rng : numpy.random.Generator
        Draws the order and the first fold.
    classes : bool
        Whether the floor counts rows by class.
    by_client : bool, default False
        Whether all of the client's rows go to one fold: a V-th of the bytes.
    min_total : int, default 1
        Rows of all classes that a sum holds at least.

    Returns
    -------
    SumFolds
        A class with fewer rows than the floor is left out; everything is if fewer than
        ``min_total`` rows remain.
    """
    groups = y.astype(np.int64) if classes else np.zeros(len(y), dtype=np.int64)
    order = rng.permutation(len(y))
    order = order[np.argsort(groups[order], kind="stable")]
    first = int(rng.integers(num_folds))
    fold, kept = np.zeros(len(y), np.int64), np.zeros(len(y), np.bool_)
    for used in range(1 if by_client else num_folds, 0, -1):
        dealt, enough = _deal(groups[order], used, floor)
        sizes = np.bincount(dealt[enough])
        if (sizes[sizes > 0] >= min_total).all():
            fold[order], kept[order] = (first + dealt) % num_folds, enough
            break
    fold[~kept] = fold[kept].min(initial=num_folds) % num_folds
    return SumFolds(fold, kept)


def _deal(
    groups: NDArray[np.int64], num_folds: int, floor: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Deal rows sorted by group to folds of at least ``floor`` rows of a group each."""
    fold, enough = np.zeros(len(groups), np.int64), np.zeros(len(groups), np.bool_)
    following = 0
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        share = min(num_folds, len(rows) // max(1, floor))
        if share:
            fold[rows] = (following + np.arange(len(rows)) % share) % num_folds
            enough[rows] = True
        following += share
    return fold, enough


# ---------------------------------------------------------------------------- sums
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
    shapes: Mapping[str, tuple[NDArray[Any], type[Any], tuple[int, ...]]] = {
        "fold": (part.fold, np.int64, (s,)),
        "gram": (part.gram, np.float32, (s, width * (width + 1) // 2)),
        "cross": (part.cross, np.float32, (s, width, num_outputs)),
        "squares": (part.squares, np.float32, (s, num_outputs)),
    }
    for name, (array, dtype, shape) in shapes.items():
        if array.dtype != np.dtype(dtype) or array.shape != shape:
            allowed = f"{np.dtype(dtype).name} of shape {shape}"
            raise DataError(f"sums.{name}", f"{array.dtype} {array.shape}", allowed)
        if not np.isfinite(array).all():
            raise DataError(f"sums.{name}", "not finite", "finite numbers")
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


# ---------------------------------------------------------------------------- what sums give away
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


# ---------------------------------------------------------------------------- candidates
@dataclass(frozen=True)
class Candidate:
    """One way of combining the models.

    Parameters
    ----------
    family : str
        A key of :data:`AVERAGES` or :data:`FAMILIES`, or ``"ridge"``.
    penalty : float
        Of ``"ridge"``, else 0.
    loss : float
        Cross-validated squared error of a row before it is repaired; NaN for averages of
        probabilities, which sums over their roots do not tell.
    weights : ndarray of float32, shape (B, C) or (D, C)
        From all folds: of the models' outputs, or of the meta-features.
    fold_weights : ndarray of float32, shape (V, B, C) or (V, D, C)
        The same without each fold.
    """

    family: str
    penalty: float
    loss: float
    weights: NDArray[np.float32]
    fold_weights: NDArray[np.float32]

    @property
    def name(self) -> str:
        """The family, with its penalty if it has one: unlike any other candidate's."""
        return f"{self.family}_{self.penalty:g}" if self.penalty else self.family


@dataclass(frozen=True)
class _Problem:
    """Sums to solve, (D, D), (D, C) and a number, beside the members' rows, (m,) and by class."""

    layout: Layout
    gram: Floats
    cross: Floats
    squares: float
    rows: Floats
    counts: Floats

    def shares(self) -> Floats:
        """Return :func:`class_shares` of the members."""
        return class_shares(self.rows, self.counts, self.layout.num_outputs)

    def start(self) -> Floats:
        """Return W0, (B, C): half shares, half global member."""
        if not self.layout.has_global:
            return self.shares()
        half = np.full((1, self.layout.num_outputs), 0.5)
        return np.concatenate([self.shares() * half, half])

    def by_output(self) -> tuple[Floats, Floats]:
        """Return the sums of each output's own columns, (C, B, B) and (C, B)."""
        blocks, outputs = self.layout.num_blocks, self.layout.num_outputs
        gram = self.gram[:-1, :-1].reshape(blocks, outputs, blocks, outputs)
        cross = self.cross[:-1].reshape(blocks, outputs, outputs)
        return np.einsum("kclc->ckl", gram), np.einsum("kcc->ck", cross)


def candidates(
    layout: Layout,
    pooled: Pooled,
    num_examples: NDArray[Any],
    counts: NDArray[Any],
    penalties: Sequence[float] = PENALTIES,
) -> tuple[Candidate, ...]:
    """Solve every family on all folds and without each fold.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    pooled : Pooled
        The federation's sums.
    num_examples : ndarray of shape (m,)
        Rows of the members' clients.
    counts : ndarray of shape (m, C) or (m, 1)
        Their rows of each class (regression: all rows) as they tell them; a class of which none
        tells goes by ``num_examples``.
    penalties : sequence of float
        Tried for the full ridge family; the largest of equally good ones is taken.

    Returns
    -------
    tuple of Candidate
        Averages, then families with one weight for each model and output, then ``"ridge"`` with
        the penalty of least cross-validated error and the next two smaller ones: squared error
        likes larger penalties than the number of right answers does.
    """
    rows, told = (np.asarray(a, dtype=np.float64) for a in (num_examples, counts))
    problems = _problems(layout, pooled, rows, told)
    averages = {name: solve for name, solve in AVERAGES.items() if layout.has(name)}
    solved = {name: [solve(p) for p in problems] for name, solve in averages.items()} | {
        name: [_expand(layout, solve(p)) for p in problems] for name, solve in FAMILIES.items()
    }
    simple = [_candidate(name, 0.0, w, layout, pooled) for name, w in solved.items()]
    ridges = [
        _candidate("ridge", lam, [_ridge(p, lam) for p in problems], layout, pooled)
        for lam in sorted(penalties, reverse=True)
    ]
    best = min(range(len(ridges)), key=lambda k: ridges[k].loss)
    return (*simple, *ridges[best : best + 3])


def provisional(table: Sequence[Candidate]) -> Candidate:
    """Return the candidate of least cross-validated error: the model until clients have chosen."""
    return min(table, key=lambda candidate: np.nan_to_num(candidate.loss, nan=np.inf))


def class_shares(
    num_examples: NDArray[Any], counts: NDArray[Any], num_outputs: int
) -> NDArray[np.float64]:
    """Return each member's share of the rows of a class; of all rows where none told of it.

    Parameters
    ----------
    num_examples : ndarray of shape (m,)
        Rows of the members' clients.
    counts : ndarray of shape (m, C) or (m, 1)
        Their rows of each class (regression: all rows) as they tell them.
    num_outputs : int
        C, or T targets.

    Returns
    -------
    ndarray of shape (m, C) or (m, T)
        Columns sum to 1.
    """
    total = counts.sum(axis=0)
    whole = (num_examples / num_examples.sum())[:, None]
    shares = np.where(total > 0, counts / np.where(total > 0, total, 1.0), whole)
    return np.broadcast_to(shares, (len(shares), num_outputs))


def _problems(layout: Layout, pooled: Pooled, rows: Floats, counts: Floats) -> list[_Problem]:
    """Return the problem without each fold, then that of all folds."""
    if not len(rows) == len(counts) == layout.num_members or not rows.sum() > 0:
        raise DataError("num_examples", rows, f"rows of {layout.num_members} members")
    squares = pooled.squares.sum(axis=1)
    everything = (pooled.gram.sum(axis=0), pooled.cross.sum(axis=0), float(squares.sum()))
    problems = [
        tuple(total - part for total, part in zip(everything, parts, strict=True))
        for parts in zip(pooled.gram, pooled.cross, squares, strict=True)
    ]
    return [_Problem(layout, g, q, float(s), rows, counts) for g, q, s in [*problems, everything]]


def _candidate(
    name: str, penalty: float, solved: Sequence[Floats], layout: Layout, pooled: Pooled
) -> Candidate:
    """Price solved weights, the last from all folds, on the folds that the others leave out."""
    loss = np.nan
    if not (layout.classes and name in AVERAGES):
        parts = zip(solved[:-1], pooled.gram, pooled.cross, pooled.squares, strict=True)
        loss = sum(_squared_error(_expand(layout, w), *sums) for w, *sums in parts)
        loss = max(0.0, loss) / pooled.num_examples
    by_fold = np.stack(solved[:-1]).astype(np.float32)
    return Candidate(name, penalty, loss, solved[-1].astype(np.float32), by_fold)


def _squared_error(weights: Floats, gram: Floats, cross: Floats, squares: Floats) -> float:
    """Return ``|F W - Y|^2`` from the sums over its rows."""
    return float(squares.sum() - 2 * (weights * cross).sum() + (weights * (gram @ weights)).sum())


def _members(problem: _Problem, weights: Floats) -> Floats:
    """Give the global member, if there is one, the weight 0."""
    layout = problem.layout
    full = np.zeros((layout.num_blocks, layout.num_outputs))
    full[: layout.num_members] = weights
    return full


def _n_average(problem: _Problem) -> Floats:
    """Weigh the members by their rows."""
    return _members(problem, problem.rows[:, None] / problem.rows.sum())


def _class_average(problem: _Problem) -> Floats:
    """Weigh the members, for each class, by their rows of it."""
    return _members(problem, problem.shares())


def _global(problem: _Problem) -> Floats:
    """Take the global member alone."""
    weights = np.zeros((problem.layout.num_blocks, problem.layout.num_outputs))
    weights[-1] = 1.0
    return weights


def _simplex(problem: _Problem) -> Floats:
    """Weigh the models by non-negative numbers that sum to 1, the same for all outputs.

    There ``|F w - y|^2 = w' M w`` with ``M = H - q 1' - 1 q' + |y|^2 1 1'``, and the non-negative
    minimum of ``w' M w + (1'w - 1)^2`` is a multiple of the minimum on the simplex.
    """
    gram, cross = problem.by_output()
    if problem.squares <= 0:
        return problem.start()
    q = cross.sum(axis=0) / problem.squares
    m = gram.sum(axis=0) / problem.squares - q[:, None] - q[None, :] + 1.0
    weights = _nnls(m + 1.0, np.ones(len(q)))
    return np.outer(weights / weights.sum(), np.ones(problem.layout.num_outputs))


def _non_negative(problem: _Problem) -> Floats:
    """Weigh the models by non-negative numbers, for each output apart."""
    if not np.trace(problem.gram) > 0:
        return problem.start()
    grams, crosses = problem.by_output()
    return np.stack([_nnls(g, q) for g, q in zip(grams, crosses, strict=True)], axis=1)


AVERAGES: Mapping[str, Callable[[_Problem], Floats]] = {
    "n_average": _n_average,
    "class_average": _class_average,
    "global": _global,
}
"""Families that average the models' outputs with weights known beforehand, (B, C)."""
FAMILIES: Mapping[str, Callable[[_Problem], Floats]] = {
    "simplex": _simplex,
    "non_negative": _non_negative,
}
"""Families that solve for one weight of each model and output, (D, C) with zeros elsewhere."""


def _ridge(problem: _Problem, penalty: float) -> Floats:
    """Solve for the full matrix, shrunk towards W0."""
    start = _expand(problem.layout, problem.start())
    return _shrunk(problem.gram, problem.cross, start, penalty)


def _shrunk(gram: Floats, cross: Floats, start: Floats, penalty: float) -> Floats:
    """Solve ``(G + tau I) W = Q + tau W0``, the intercept nearly without penalty."""
    tau = penalty * float(np.trace(gram)) / len(gram)
    if tau <= 0:
        return start
    diagonal = np.full(len(gram), tau)
    diagonal[-1] *= INTERCEPT
    return np.asarray(np.linalg.solve(gram + np.diag(diagonal), cross + diagonal[:, None] * start))


def _nnls(gram: Floats, cross: Floats) -> Floats:
    """Minimise ``w' G w - 2 w' q`` over ``w >= 0`` by Lawson and Hanson's active sets."""
    size = len(cross)
    # Equal members make G singular; float32 sums leave noise of this order in it anyway.
    gram = gram + np.eye(size) * (1e-6 * np.trace(gram) / size)
    weights, active = np.zeros(size), np.zeros(size, np.bool_)
    tolerance = 1e-9 * max(1.0, float(np.abs(cross).max()))
    for _ in range(3 * size):
        slope = np.where(active, -np.inf, cross - gram @ weights)
        if slope.max() <= tolerance:
            break
        active[int(np.argmax(slope))] = True
        while True:
            wanted = np.zeros(size)
            wanted[active] = np.linalg.solve(gram[np.ix_(active, active)], cross[active])
            low = active & (wanted <= 0)
            if not low.any():
                break
            step = (weights[low] / np.maximum(weights[low] - wanted[low], 1e-300)).min()
            weights = weights + step * (wanted - weights)
            active &= weights > 1e-12
            weights[~active] = 0.0
        weights = wanted
    return weights


def _expand(layout: Layout, weights: NDArray[Any]) -> Floats:
    """Return weights as the full matrix of shape (D, C)."""
    if len(weights) == layout.width:
        return weights.astype(np.float64)
    outputs = layout.num_outputs
    full = np.zeros((layout.num_blocks, outputs, outputs))
    full[:, np.arange(outputs), np.arange(outputs)] = weights
    return np.concatenate([full.reshape(-1, outputs), np.zeros((1, outputs))])


# ---------------------------------------------------------------------------- predicting
def combine(layout: Layout, meta_features: Floats, weights: NDArray[Any]) -> Floats:
    """Combine the models' outputs.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    meta_features : ndarray of shape (n, D)
        From :func:`features`.
    weights : ndarray of shape (B, C) or (D, C)
        A candidate's weights, of outputs or of meta-features.

    Returns
    -------
    ndarray of shape (n, C) or (n, T)
        Probabilities, or targets in their own units. Rows that are no probabilities yet are moved
        to the nearest ones, which keeps their order and never raises the Brier score, and keep
        1 % of doubt.
    """
    if len(weights) == layout.width:
        raw = meta_features @ weights.astype(np.float64)
    else:
        outputs = meta_features[:, :-1].reshape(-1, layout.num_blocks, layout.num_outputs)
        outputs = np.square(outputs) if layout.classes else outputs
        raw = (outputs * weights).sum(axis=1)
    return _repair(raw) if layout.classes else _unscale(layout, raw)


def _repair(raw: Floats) -> Floats:
    good = (raw >= 0).all(axis=1) & (np.abs(raw.sum(axis=1) - 1) < 1e-5)
    if good.all():
        return raw
    rows, classes = raw.shape
    falling = -np.sort(-raw, axis=1)
    excess = np.cumsum(falling, axis=1) - 1.0
    support = (falling * np.arange(1, classes + 1) > excess).sum(axis=1)
    theta = excess[np.arange(rows), support - 1] / support
    nearest = np.maximum(raw - theta[:, None], 0.0)
    return np.where(good[:, None], raw, (1 - DOUBT) * nearest + DOUBT / classes)


def predict(
    layout: Layout,
    members: Sequence[Predictor],
    global_member: Predictor | None,
    weights: NDArray[Any],
    x: NDArray[Any],
) -> Floats:
    """Predict rows with the finished stack.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    members : sequence of m callables
        Each returns outputs of shape (n, C) for x.
    global_member : callable, optional
        The global member's; None where the layout has none.
    weights : ndarray of shape (B, C) or (D, C)
        The chosen candidate's weights.
    x : ndarray of shape (n, d)
        Rows.

    Returns
    -------
    ndarray of shape (n, C) or (n, T)
    """
    models = [*members, *([global_member] if global_member else [])]
    return combine(layout, features(layout, [model(x) for model in models]), weights)


def influence(layout: Layout, weights: NDArray[Any]) -> Floats:
    """Return each model's share of the weights' magnitude.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    weights : ndarray of shape (B, C) or (D, C)
        A candidate's weights.

    Returns
    -------
    ndarray of shape (B,)
        Sums to 1: the members in order, then the global member.
    """
    blocks = np.abs(_expand(layout, weights)[:-1]).reshape(layout.num_blocks, -1).sum(axis=1)
    return np.asarray(blocks / max(float(blocks.sum()), 1e-300))


# ---------------------------------------------------------------------------- choosing
def scores(
    layout: Layout,
    meta_features: Floats,
    truth: Floats,
    split: SumFolds,
    fold_weights: Sequence[Mapping[int, NDArray[Any]]],
    floor: int,
) -> Floats:
    """Count what each candidate gets right on a client's rows, each by weights that it is new to.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    meta_features, truth : ndarray of shape (n, D) and (n, C)
        As they went into :func:`sums`; rows that no sum holds are scored too.
    split : SumFolds
        As it went into :func:`sums`.
    fold_weights : sequence of A mappings of int to ndarray
        For each candidate its ``fold_weights`` of (at least) the folds that ``split`` has.
    floor : int
        Rows below which the client says nothing.

    Returns
    -------
    ndarray of shape (A, 3)
        Rows; rows predicted right (0 for regression); squared error. Zeros below the floor.
    """
    table = np.zeros((len(fold_weights), 3))
    if len(truth) >= max(1, floor):
        for row, weights in zip(table, fold_weights, strict=True):
            judged = _judge(layout, by_fold(layout, meta_features, split, weights), truth)
            row[:] = len(truth), *(column.sum() for column in judged)
    return table


def by_fold(
    layout: Layout,
    meta_features: Floats,
    split: SumFolds,
    weights: Mapping[int, NDArray[Any]],
) -> Floats:
    """Combine each row with the weights that its fold did not help to find.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    meta_features : ndarray of shape (n, D)
        From :func:`features`.
    split : SumFolds
        Fold of each row.
    weights : mapping of int to ndarray
        A candidate's ``fold_weights`` of (at least) the folds that ``split`` has.

    Returns
    -------
    ndarray of shape (n, C) or (n, T)
        As :func:`combine`'s.
    """
    outputs = np.empty((len(meta_features), layout.num_outputs))
    for fold in np.unique(split.fold).tolist():
        rows = split.fold == fold
        outputs[rows] = combine(layout, meta_features[rows], weights[fold])
    return outputs


def _judge(layout: Layout, outputs: Floats, truth: Floats) -> tuple[Floats, Floats]:
    """Return for each row whether it is right, and its squared error in scaled units."""
    if not layout.classes:
        error = np.square(_scale(layout, outputs) - truth).sum(axis=1)
        return np.zeros(len(truth)), error
    right = outputs.argmax(axis=1) == truth.argmax(axis=1)
    return right.astype(np.float64), np.square(outputs - truth).sum(axis=1)


def check_scores(
    layout: Layout, table: NDArray[Any], num_candidates: int, num_examples: int
) -> None:
    """Reject counts that no client with this many rows can have.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    table : ndarray of shape (A, 3)
        As received.
    num_candidates, num_examples : int
        Candidates A that were sent, rows that the client has said it has.

    Raises
    ------
    DataError
        Naming what is allowed.
    """
    shape = (num_candidates, 3)
    if table.shape != shape or table.dtype != np.float64:
        raise DataError("scores", f"{table.dtype} {table.shape}", f"float64 of shape {shape}")
    if not np.isfinite(table).all() or (table < 0).any():
        raise DataError("scores", table.ravel()[:8], "finite numbers of at least 0")
    rows, right = table[:, 0], table[:, 1]
    if (rows != rows[0]).any() or rows[0] > num_examples or (right > rows).any():
        allowed = f"one count of at most {num_examples} rows, and no more rows right"
        raise DataError("scores", table[:, :2].ravel()[:8], allowed)
    # Two points of the simplex are at most sqrt(2) apart.
    if layout.classes and (table[:, 2] > 4 * (rows[0] + 1)).any():
        raise DataError("scores", float(table[:, 2].max()), "at most 4 a row")


def pool_scores(parts: Mapping[int, NDArray[Any]]) -> Floats:
    """Add up clients' counts in the order of their partitions.

    Parameters
    ----------
    parts : mapping of int to ndarray of shape (A, 3)
        Partition -> checked counts.

    Raises
    ------
    DataError
        If they hold no row at all.
    """
    if not any(part[0, 0] for part in parts.values()):
        raise DataError("scores", f"no rows from {len(parts)} clients", "at least one row")
    # A reduction over the first axis adds in the order of the partitions.
    return np.asarray(np.add.reduce([parts[partition] for partition in sorted(parts)]))


def choose(layout: Layout, table: Sequence[Candidate], pooled_scores: Floats) -> Candidate:
    """Choose a candidate by the clients' counts.

    Of more than two classes the ridge with most rows right stands unless a simpler family has more
    of them right *and* the smaller squared error: rows right are a coarse measure, and without a
    fold the full matrix is solved from fewer rows than in the end, which costs it more of them
    than it costs a simpler family. Else squared error decides alone (for two classes it is the
    Brier score).

    Parameters
    ----------
    layout : Layout
        What is stacked.
    table : sequence of A Candidate
        In the order of the counts.
    pooled_scores : ndarray of shape (A, 3)
        From :func:`pool_scores`.

    Returns
    -------
    Candidate
        Ties go to the smaller error, then to the earlier candidate.
    """
    _, right, loss = pooled_scores.T
    value = right if layout.by_accuracy else -loss

    def rank(number: int) -> tuple[float, float]:
        return value[number], -loss[number]

    full = [k for k, candidate in enumerate(table) if candidate.family == "ridge"]
    best = max(full, key=rank)
    better = np.flatnonzero((value > value[best]) & (loss < loss[best])).tolist()
    return table[max([best, *better], key=rank)]


def gate(
    layout: Layout, own: Floats, stack: Floats, truth: Floats, min_examples: int = 30
) -> float:
    """Choose a client's own share between its own model (1) and the stack (0).

    Parameters
    ----------
    layout : Layout
        What is stacked.
    own : ndarray of shape (n, C)
        Out-of-fold outputs of the client's own model.
    stack : ndarray of shape (n, C)
        The chosen candidate's outputs, each row by the weights without its fold.
    truth : ndarray of shape (n, C)
        From :func:`targets`.
    min_examples : int, default 30
        Rows below which the stack is kept.

    Returns
    -------
    float
        The best of :data:`GATES` if its mean gain over the stack exceeds one standard error of
        the gain, else 0.
    """
    rows = len(truth)
    if rows < min_examples:
        return 0.0

    def value(share: float) -> Floats:
        right, loss = _judge(layout, share * own + (1 - share) * stack, truth)
        return right if layout.by_accuracy else -loss

    base, best, best_gain = value(0.0), 0.0, 0.0
    for share in GATES[1:]:
        gain = value(share) - base
        mean, error = float(gain.mean()), float(gain.std(ddof=1)) / rows**0.5
        if mean > max(error, best_gain):
            best, best_gain = share, mean
    return best


# ---------------------------------------------------------------------------- global least squares
def linear_sums(
    layout: Layout,
    x: NDArray[Any],
    y: NDArray[Any],
    num_folds: int,
    floor: int,
    rng: np.random.Generator,
    rows_per_feature: float = 2.0,
) -> tuple[Sums, SumFolds]:
    """Sum X'X and X'Y by fold for the one-shot least-squares global member.

    Parameters
    ----------
    layout : Layout
        Says how the truth is written.
    x, y : ndarray of shape (n, d) and (n,) or (n, T)
        Rows, standardised: the sums travel in float32.
    num_folds, floor, rng
        As for :func:`sum_folds`.
    rows_per_feature : float, default 2
        Rows that a sum needs at least for each of its d + 1 columns: X'X of few rows gives them
        away. Folds merge until each has as many.

    Returns
    -------
    (sums, split) : tuple of Sums and SumFolds
        The split says which model of :func:`least_squares` is new to a row.

    Raises
    ------
    DataError
        If all rows together are too few.
    """
    needed = int(np.ceil(rows_per_feature * (x.shape[1] + 1)))
    split = sum_folds(y, num_folds, floor, rng, classes=layout.classes, min_total=needed)
    if not split.kept.any():
        allowed = f"at least {needed} rows for {x.shape[1]} features; use global_member=fedavg"
        raise DataError("global_member=ls", f"{len(x)} rows", allowed)
    return sums(_with_ones(x), targets(layout, y), split), split


def least_squares(pooled: Pooled, penalty: float = 1e-3) -> Floats:
    """Solve the linear model without each fold, by subtraction, and of all folds.

    Parameters
    ----------
    pooled : Pooled
        Of :func:`linear_sums`.
    penalty : float, default 1e-3
        Ridge penalty as a multiple of the mean squared feature.

    Returns
    -------
    ndarray of shape (V + 1, d + 1, C)
        Without each fold, then of all.
    """
    gram, cross = pooled.gram.sum(axis=0), pooled.cross.sum(axis=0)
    sides = [(gram - g, cross - q) for g, q in zip(pooled.gram, pooled.cross, strict=True)]
    return np.stack([_shrunk(g, q, np.zeros_like(q), penalty) for g, q in [*sides, (gram, cross)]])


def predict_linear(layout: Layout, weights: NDArray[Any], x: NDArray[Any]) -> Floats:
    """Predict rows with one model of :func:`least_squares`.

    Parameters
    ----------
    layout : Layout
        As for :func:`linear_sums`.
    weights : ndarray of shape (d + 1, C)
        One model.
    x : ndarray of shape (n, d)
        Rows.

    Returns
    -------
    ndarray of shape (n, C) or (n, T)
        Scores of the classes, which may leave [0, 1], or targets in their own units.
    """
    raw = _with_ones(x) @ weights
    return raw if layout.classes else _unscale(layout, raw)


def _with_ones(x: NDArray[Any]) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1, dtype=np.float64)
