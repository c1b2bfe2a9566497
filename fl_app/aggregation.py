"""Averages and moments over clients, in pure NumPy: the arithmetic of a federation.

Every sum runs in the order of its input, in the input's precision, and nothing else decides its
bits: give clients in order of partition.

References
----------
McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data"
(FedAvg), https://arxiv.org/abs/1602.05629.
Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance" (merging moments),
https://doi.org/10.1080/00031305.1983.10483115.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fl_app.errors import DataError

__all__ = ["Moments", "arrays_digest", "checked", "merge_moments", "moments", "weighted_mean"]

Arrays = Mapping[str, NDArray[Any]]


def checked(
    field: str,
    array: NDArray[Any],
    dtype: DTypeLike,
    shape: tuple[int | None, ...],
    most: float | None = None,
) -> NDArray[Any]:
    """Return an array that came over a wire, if it is what was expected.

    Parameters
    ----------
    field : str
        Its name in an error.
    array : ndarray
        As received.
    dtype : dtype
        What it must be of.
    shape : tuple of int or None
        What it must have; None for any length.
    most : float, optional
        Largest magnitude of a floating number; by default any finite one.

    Raises
    ------
    DataError
        Naming the array and what is allowed.
    """
    wanted = np.dtype(dtype)
    fits = len(array.shape) == len(shape) and all(
        want in (None, have) for have, want in zip(array.shape, shape, strict=True)
    )
    if array.dtype != wanted or not fits:
        allowed = f"{wanted.name} of shape {shape}".replace("None", "any")
        raise DataError(field, f"{array.dtype} {array.shape}", allowed)
    if wanted.kind == "f":
        limit = None if most is None else min(most, np.finfo(wanted).max)
        good = np.isfinite(array) if limit is None else np.abs(array) <= limit
        if not good.all():
            bound = "" if most is None else f" of at most {most:g}"
            raise DataError(field, array.ravel()[:8], f"finite values{bound}")
    return array


def weighted_mean(
    clients: Sequence[Arrays], num_examples: Sequence[float]
) -> dict[str, NDArray[Any]]:
    """Average named arrays: ``W(t+1) = sum_k n_k/N W_k``.

    Parameters
    ----------
    clients : sequence of mapping of str to ndarray
        The K clients' arrays; the same names and shapes for each.
    num_examples : sequence of float
        The K weights n_k, positive.

    Returns
    -------
    dict of str to ndarray
        The average, in the arrays' own dtype (float64 for integers).

    Raises
    ------
    ValueError
        If there is no client, the lengths differ, a weight is negative or all are 0.

    Examples
    --------
    >>> w = weighted_mean([{"coef": np.array([2.0])}, {"coef": np.array([1.0])}], [2, 6])
    >>> float(w["coef"][0])
    1.25
    """
    if not clients or len(clients) != len(num_examples):
        raise ValueError(
            f"{len(clients)} clients and {len(num_examples)} weights: need K >= 1 of each"
        )
    total = sum(num_examples)
    if not (total > 0 and min(num_examples) >= 0):
        raise ValueError(
            f"weights {min(num_examples)} to {max(num_examples)}: need positive numbers"
        )
    # Python's floats: a NumPy float64 would make float64 of float32 arrays.
    shares = [float(n / total) for n in num_examples]
    return {
        name: _weighted_sum([arrays[name] for arrays in clients], shares) for name in clients[0]
    }


def _weighted_sum(arrays: Sequence[NDArray[Any]], shares: Sequence[float]) -> NDArray[Any]:
    """Return ``sum_k shares_k arrays_k``, added in their order; in place where they are alike."""
    total = np.asarray(arrays[0] * shares[0])
    kind, term = (arrays[0].dtype, total.shape), np.empty_like(total)
    for array, share in zip(arrays[1:], shares[1:], strict=True):
        if (array.dtype, array.shape) == kind:
            np.multiply(array, share, out=term)
            np.add(total, term, out=total)
        else:
            total = np.asarray(total + array * share)
            kind, term = (kind[0], total.shape), np.empty_like(total)
    return total


def arrays_digest(arrays: Arrays) -> str:
    """Return the SHA-256 over arrays sorted by name: name, dtype, shape and bytes of each."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name}\n{array.dtype.str}\n{arrays[name].shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each of d columns.

    Parameters
    ----------
    count : ndarray of shape (d,)
        Rows that have a value.
    mean : ndarray of shape (d,)
        Their mean; 0 where there are none.
    m2 : ndarray of shape (d,)
        Sum of squared deviations from that mean.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance of shape (d,); 0 where there are no rows."""
        return np.asarray(self.m2 / np.maximum(self.count, 1.0), dtype=np.float64)


def moments(values: NDArray[np.float64]) -> Moments:
    """Return the moments of each column; NaN cells do not count.

    Parameters
    ----------
    values : ndarray of shape (n, d)
        Rows; n may be 0.
    """
    present = ~np.isnan(values)
    count = present.sum(axis=0).astype(np.float64)
    filled = np.where(present, values, 0.0)
    mean = filled.sum(axis=0) / np.maximum(count, 1.0)
    deviation = np.where(present, values - mean, 0.0)
    return Moments(count, mean, np.square(deviation).sum(axis=0))


def merge_moments(parts: Sequence[Moments]) -> Moments:
    """Merge moments of disjoint rows by Chan's formula; exact where a sum of squares is not.

    Parameters
    ----------
    parts : sequence of Moments
        At least one, all of the same d.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not parts:
        raise ValueError("no moments to merge: need at least one")
    merged = parts[0]
    for part in parts[1:]:
        count = merged.count + part.count
        share = part.count / np.maximum(count, 1.0)
        delta = part.mean - merged.mean
        merged = Moments(
            count,
            merged.mean + delta * share,
            merged.m2 + part.m2 + np.square(delta) * merged.count * share,
        )
    return merged
