"""The server's test set, drawn by the seed, and each client's validation rows, which are not.

Were validation rows drawn by the seed, a server that sees what a node tells of its training rows
under many seeds, and knows the draw, could solve for each of its rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.stratification import classes_of
from fl_app.seeding import generator

__all__ = ["split_test", "split_validation"]

Rows = NDArray[np.int64]


def split_test(
    target: NDArray[Any],
    fraction: float,
    seed: int,
    stratify: bool,
    owners: NDArray[np.int64] | None = None,
) -> tuple[Rows, Rows]:
    """Split all rows into the clients' and the server's.

    Parameters
    ----------
    target : ndarray of shape (n,) or (n, T)
        Labels or targets of all rows.
    fraction : float
        Share of the test rows, at least 0 and below 1.
    seed : int
        The run's seed.
    stratify : bool
        Whether each class gives the same share (by largest remainder, so that the test set has
        ``round(n * fraction)`` rows).
    owners : ndarray of shape (n,), optional
        The natural client of each row. One whose rows all would be test rows keeps the first of
        them, so that every seed has the same clients: the test set is as much smaller.

    Returns
    -------
    (train, test) : tuple of ndarray of int64
        Sorted row numbers; disjoint, together all rows.
    """
    n = len(target)
    size = round(n * fraction)
    rng = generator(seed, "test-split")
    order = rng.permutation(n)
    if not stratify:
        return _with_each_owner(order[size:], order[:size], owners)
    group = classes_of(target)
    members = [order[group[order] == g] for g in range(int(group.max()) + 1)]
    quota = np.array([len(m) * fraction for m in members])
    take = np.floor(quota).astype(int)
    rest = np.argsort(-(quota - take), kind="stable")[: size - int(take.sum())]
    take[rest] += 1
    test = np.concatenate([m[:k] for m, k in zip(members, take, strict=True)])
    train = np.concatenate([m[k:] for m, k in zip(members, take, strict=True)])
    return _with_each_owner(train, test, owners)


def _with_each_owner(
    train: Rows, test: Rows, owners: NDArray[np.int64] | None
) -> tuple[Rows, Rows]:
    """Sort both, after each owner who has no training row got one back."""
    test = np.sort(test)
    if owners is not None:
        tested, first = np.unique(owners[test], return_index=True)
        back = test[first[~np.isin(tested, owners[train])]]
        train, test = np.concatenate([train, back]), np.setdiff1d(test, back)
    return np.sort(train), test


def split_validation(n: int, fraction: float, partition: int) -> tuple[Rows, Rows]:
    """Split one client's rows into training and validation rows, the same for every seed.

    Parameters
    ----------
    n : int
        The client's rows.
    fraction : float
        Share of the validation rows; at least one row stays for training.
    partition : int
        The client's partition.

    Returns
    -------
    (train, validation) : tuple of ndarray of int64
        Sorted positions within the client's rows.
    """
    size = min(round(n * fraction), n - 1)
    order = generator(0, "validation-split", 0, partition).permutation(n)
    return np.sort(order[size:]), np.sort(order[:size])
