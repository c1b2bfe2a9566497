"""Two ways of dealing rows unevenly: few classes a client, and different sizes of clients.

References
----------
McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
section 3 (shards of the rows sorted by class), https://arxiv.org/abs/1602.05629.
Li et al. 2022, "Federated Learning on Non-IID Data Silos: An Experimental Study" (quantity skew:
sizes from a Dirichlet distribution), https://arxiv.org/abs/2102.02079.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app.data.stratification import strata
from fl_app.data.table import Table
from fl_app.errors import ConfigError

__all__ = ["quantity", "shards"]

Rows = NDArray[np.int64]


class _Shards(Protocol):
    @property
    def classes_per_client(self) -> int: ...


class _Quantity(Protocol):
    @property
    def alpha(self) -> float: ...


def shards(table: Table, partitioner: _Shards, k: int, rng: np.random.Generator) -> Rows:
    """Deal each client ``classes_per_client`` shards of the rows sorted by class.

    Cuts fall between classes first: where there are at least as many shards as classes, a shard
    holds one class, so that a client holds at most ``classes_per_client`` classes. Where there are
    fewer, shards are equal cuts of the sorted rows. For regression the classes are the deciles.

    Parameters
    ----------
    table : Table
        The training rows.
    partitioner : PartitionerConfig
        Gives ``classes_per_client``.
    k : int
        Number of clients.
    rng : numpy.random.Generator
        Draws the rows of each shard and the shards of each client.

    Returns
    -------
    ndarray of shape (n,), int64
        The client of each row, 0..k-1; none is left empty.

    Raises
    ------
    ConfigError
        If there are more shards than rows.
    """
    each = partitioner.classes_per_client
    if k * each > len(table):
        allowed = f"at most {len(table) // k}: {k} clients share {len(table)} training rows"
        raise ConfigError("partitioner.classes_per_client", each, allowed)
    owner = np.empty(len(table), dtype=np.int64)
    order = rng.permutation(k * each)
    for position, rows in enumerate(_cut(strata(table), k * each, rng)):
        owner[rows] = order[position] // each
    return owner


def _cut(group: Rows, number: int, rng: np.random.Generator) -> list[Rows]:
    """Cut all rows, in random order within a group, into shards sorted by group."""
    order = rng.permutation(len(group))
    sizes = np.bincount(group)
    if number < len(sizes):
        return np.array_split(order[np.argsort(group[order], kind="stable")], number)
    pieces = _shards_of_groups(sizes, number)
    return [
        part
        for g, count in enumerate(pieces)
        for part in np.array_split(order[group[order] == g], count)
    ]


def _shards_of_groups(sizes: NDArray[np.int64], number: int) -> list[int]:
    """Share out shards over groups: one each, then to the group whose shards are largest."""
    pieces = np.ones(len(sizes), dtype=np.int64)
    for _ in range(number - len(sizes)):
        pieces[np.argmax(sizes / pieces)] += 1
    return [int(count) for count in pieces]


def quantity(table: Table, partitioner: _Quantity, k: int, rng: np.random.Generator) -> Rows:
    """Deal rows at random to clients whose sizes are drawn from a Dirichlet distribution.

    Each client gets one row; the other n - k are shared out by the draw.

    Parameters
    ----------
    table : Table
        The training rows, at least k.
    partitioner : PartitionerConfig
        Gives ``alpha``, the concentration: the smaller, the more unequal.
    k : int
        Number of clients.
    rng : numpy.random.Generator
        Draws sizes and rows.

    Returns
    -------
    ndarray of shape (n,), int64
        The client of each row, 0..k-1; none is left empty.
    """
    shares = rng.dirichlet(np.full(k, partitioner.alpha))
    # Concentrations near 0 underflow to 0/0: one client then gets all that is shared out.
    if not np.isfinite(shares).all():
        shares = np.eye(k)[rng.integers(k)]
    cuts = np.round(np.cumsum(shares)[:-1] * (len(table) - k)).astype(np.int64)
    sizes = 1 + np.diff(cuts, prepend=0, append=len(table) - k)
    owner = np.repeat(np.arange(k), sizes)
    return rng.permutation(owner)
