"""Deals training rows to clients: every row to exactly one, none left empty.

References
----------
Hsu, Qi and Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification" (Dirichlet shares), https://arxiv.org/abs/1909.06335.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import (
    DirichletConfig,
    IidConfig,
    NaturalConfig,
    PartitionerConfig,
    QuantityConfig,
    ShardsConfig,
)
from fl_app.config.registry import builder_of, register
from fl_app.data.stratification import strata
from fl_app.data.table import Table
from fl_app.data.uneven_partitioners import quantity, shards
from fl_app.errors import ConfigError
from fl_app.seeding import generator

__all__ = ["deal"]

Rows = NDArray[np.int64]


def deal(table: Table, partitioner: PartitionerConfig, num_clients: int, seed: int) -> list[Rows]:
    """Deal the rows of a table to clients.

    Parameters
    ----------
    table : Table
        The training rows.
    partitioner : PartitionerConfig
        How.
    num_clients : int
        K.
    seed : int
        The run's seed.

    Returns
    -------
    list of K ndarray of int64
        Sorted row numbers of each client; disjoint, non-empty, together all rows.

    Raises
    ------
    ConfigError
        If there are more clients than rows, or natural clients of another number.
    """
    if num_clients > len(table):
        raise ConfigError(
            "num_clients",
            num_clients,
            f"at most one client a training row, of which are {len(table)}",
        )
    owner = builder_of(partitioner)(table, partitioner, num_clients, generator(seed, "partition"))
    owner = _fill_empty(owner, num_clients)
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner, minlength=num_clients))[:-1])


def _iid(table: Table, _: PartitionerConfig, k: int, rng: np.random.Generator) -> Rows:
    owner = np.empty(len(table), dtype=np.int64)
    owner[rng.permutation(len(table))] = np.arange(len(table)) % k
    return owner


def _dirichlet(
    table: Table, partitioner: DirichletConfig, k: int, rng: np.random.Generator
) -> Rows:
    owner = np.empty(len(table), dtype=np.int64)
    group = strata(table)
    for g in range(int(group.max()) + 1):
        rows = rng.permutation(np.flatnonzero(group == g))
        # Far beyond equal shares the sum of draws would overflow, and all shares be 0.
        shares = rng.dirichlet(np.full(k, min(partitioner.alpha, 1e100)))
        cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for client, part in enumerate(np.split(rows, cuts)):
            owner[part] = client
    return owner


def _how(clients: int) -> str:
    return f"num_clients={clients}, under `flwr run` --federation-config 'num-supernodes={clients}'"


def _natural(table: Table, _: PartitionerConfig, k: int, rng: np.random.Generator) -> Rows:
    if table.owners is None:
        raise ConfigError("partitioner", "natural", "this data set has no natural clients")
    found = int(table.owners.max()) + 1
    if found != k:
        allowed = f"this data set has {found} natural clients: {_how(found)}"
        raise ConfigError("num_clients", k, allowed)
    return table.owners


register(IidConfig, build=_iid)
register(DirichletConfig, build=_dirichlet)
register(ShardsConfig, build=shards)
register(QuantityConfig, build=quantity)
register(NaturalConfig, build=_natural)


def _fill_empty(owner: Rows, k: int) -> Rows:
    """Give each empty client one row of the client that then has most."""
    owner = owner.copy()
    counts = np.bincount(owner, minlength=k)
    for client in np.flatnonzero(counts == 0):
        richest = int(np.argmax(counts))
        owner[np.flatnonzero(owner == richest)[-1]] = client
        counts[richest] -= 1
        counts[client] += 1
    return owner
