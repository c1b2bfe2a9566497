"""What one client sees of a config's data, and what the server keeps for its test.

The same config gives the same rows in every process: data set, test split, deal and validation
split are functions of it alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.catalogue import load, load_own
from fl_app.data.encoding import Encoding
from fl_app.data.partitioners import deal
from fl_app.data.splits import split_test, split_validation
from fl_app.data.table import Table
from fl_app.data.vendored_sets import flamby_split
from fl_app.errors import ConfigError
from fl_app.schema import (
    Config,
    HeartDiseaseConfig,
    NaturalConfig,
    PartitionerConfig,
    SyntheticConfig,
)

__all__ = [
    "Encoded",
    "Partition",
    "encode",
    "largest_partition",
    "own_partition",
    "partition_of",
    "seed_draws",
    "test_table",
]


@dataclass(frozen=True, eq=False)
class Partition:
    """One client's rows.

    Parameters
    ----------
    train : Table
        Rows it trains on.
    validation : Table
        Rows it keeps for ``eval/``; may be empty.
    """

    train: Table
    validation: Table


@dataclass(frozen=True, eq=False)
class Encoded:
    """One client's rows as numbers; read-only.

    Parameters
    ----------
    x, x_eval : ndarray of shape (n, D)
        Features of the training and of the validation rows, in the model's dtype.
    y : ndarray
        What a model learns: class numbers of shape (n,), or standardized targets of shape (n, T).
    truth, truth_eval : ndarray
        What predictions are scored against: class numbers, or targets in their raw unit.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    truth: NDArray[Any]
    x_eval: NDArray[Any]
    truth_eval: NDArray[Any]


def partition_of(config: Config, partition: int) -> Partition:
    """Return the rows of one partition, or of all together under ``strategy=pooled``.

    Parameters
    ----------
    config : Config
        The run's config; ``num_clients`` is the number of partitions.
    partition : int
        0..K-1.

    Raises
    ------
    ConfigError
        If the data cannot be dealt to that many clients, or there is no such partition.
    """
    table, parts = _dealt(config)
    if not 0 <= partition < len(parts):
        allowed = f"0 to {len(parts) - 1}, as num_clients={len(parts)}"
        raise ConfigError("partition-id", partition, allowed)
    wanted = range(len(parts)) if config.strategy.name == "pooled" else [partition]
    train, held = [], []
    for k in wanted:
        fit, keep = split_validation(len(parts[k]), config.dataset.val_fraction, config.seed, k)
        train.append(parts[k][fit])
        held.append(parts[k][keep])
    return Partition(table.take(np.concatenate(train)), table.take(np.concatenate(held)))


def largest_partition(config: Config) -> tuple[int, int]:
    """Return the training rows of the largest partition, and the features of the data set."""
    table, parts = _dealt(config)
    most = max(len(part) for part in parts)
    fit, _ = split_validation(most, config.dataset.val_fraction, config.seed, 0)
    levels = sum(len({v for v in column if v is not None}) for column in table.categorical.T)
    return len(fit), len(table.numeric_names) + levels


def own_partition(config: Config, partition: int, path: str) -> Partition:
    """Return the rows of a node's own file: all are the node's, there is no test set.

    Parameters
    ----------
    config : Config
        The run's config, with ``dataset=tabular``.
    partition : int
        The node's partition id, which draws its validation rows.
    path : str
        The file.
    """
    table = load_own(config.dataset, path)
    fit, keep = split_validation(len(table), config.dataset.val_fraction, config.seed, partition)
    return Partition(table.take(fit), table.take(keep))


def test_table(config: Config) -> Table:
    """Return the server's test rows; empty where ``dataset.test_fraction`` is 0."""
    return whole_table(config).take(_test_split(config)[1])


def seed_draws(config: Config) -> str:
    """Return which rows depend on the seed, where rows are dealt to clients.

    Returns
    -------
    {"table", "test", "deal", "nothing"}
        All of them, anew; which are the test rows, and so all others; which client has which;
        none: every seed has the same rows everywhere.
    """
    dataset = config.dataset
    if isinstance(dataset, SyntheticConfig):
        return "table"
    fixed = isinstance(dataset, HeartDiseaseConfig) and dataset.split == "flamby"
    if dataset.test_fraction and not fixed:
        return "test"
    return "nothing" if isinstance(config.partitioner, NaturalConfig) else "deal"


def whole_table(config: Config) -> Table:
    """Return all rows of the data set."""
    return load(config.dataset, config.seed, _natural_key(config))


def encode(partition: Partition, encoding: Encoding, dtype: str) -> Encoded:
    """Turn a client's raw rows into read-only numbers."""
    y = encoding.target(partition.train)
    arrays = [
        encoding.features(partition.train).astype(dtype),
        y.astype(dtype) if encoding.task == "regression" else y,
        encoding.truth(partition.train),
        encoding.features(partition.validation).astype(dtype),
        encoding.truth(partition.validation),
    ]
    for array in arrays:
        array.setflags(write=False)
    return Encoded(*arrays)


def _natural_key(config: Config) -> str | None:
    return config.partitioner.key if isinstance(config.partitioner, NaturalConfig) else None


def _test_split(config: Config) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if isinstance(config.dataset, HeartDiseaseConfig) and config.dataset.split == "flamby":
        return flamby_split()
    return _drawn_split(whole_table(config), config.dataset.test_fraction, config.seed)


@lru_cache(maxsize=8)
def _drawn_split(
    table: Table, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return split_test(table.target, fraction, seed, table.task == "classification")


def _dealt(config: Config) -> tuple[Table, list[NDArray[np.int64]]]:
    """Return the clients' table and the rows of each client in it."""
    split = config.dataset.split if isinstance(config.dataset, HeartDiseaseConfig) else ""
    return _deal_once(
        whole_table(config),
        config.dataset.test_fraction,
        split,
        config.partitioner,
        config.num_clients,
        config.seed,
    )


@lru_cache(maxsize=8)
def _deal_once(
    table: Table,
    fraction: float,
    split: str,
    partitioner: PartitionerConfig,
    num_clients: int,
    seed: int,
) -> tuple[Table, list[NDArray[np.int64]]]:
    rows = flamby_split()[0] if split == "flamby" else _drawn_split(table, fraction, seed)[0]
    train = table.take(rows)
    return train, deal(train, partitioner, num_clients, seed)
