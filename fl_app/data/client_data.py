"""What one client sees of a config's data, and what the server keeps for its test.

The same config gives the same rows in every process: data set, test split, deal and validation
split are functions of it alone. Of a node's own file not even the seed decides which rows are for
validation: nothing that the node tells of its rows depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.dataset_options import HeartDiseaseConfig, TabularConfig
from fl_app.config.options import NaturalConfig, PartitionerConfig
from fl_app.config.schema import Config, task_of
from fl_app.data.catalogue import load, load_own, look_at_own
from fl_app.data.encoding import Encoding, Label, in_company, labels_of
from fl_app.data.partitioners import deal
from fl_app.data.sets.vendored import flamby_split
from fl_app.data.splits import split_test, split_validation
from fl_app.data.table import Table
from fl_app.data.tabular import Found
from fl_app.errors import ConfigError

__all__ = [
    "Encoded",
    "Partition",
    "encode",
    "largest_partition",
    "most_rows",
    "own_columns",
    "own_partition",
    "partition_of",
    "public_names",
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

    @property
    def rows(self) -> Table:
        """All of them: what a node tells of its rows in the handshake it tells of these."""
        return self.train.join(self.validation)


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
    left_out, left_out_eval : int, default 0
        Training and validation rows that are not among these, as their class is not the run's.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    truth: NDArray[Any]
    x_eval: NDArray[Any]
    truth_eval: NDArray[Any]
    left_out: int = 0
    left_out_eval: int = 0


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
    wanted = range(len(parts)) if config.strategy.is_pooled else [partition]
    train, held = [], []
    for k in wanted:
        fit, keep = split_validation(len(parts[k]), config.dataset.val_fraction, k)
        train.append(parts[k][fit])
        held.append(parts[k][keep])
    return Partition(table.take(np.concatenate(train)), table.take(np.concatenate(held)))


def most_rows(config: Config) -> int:
    """Return the rows of the largest partition, for training and for ``eval/``."""
    return max(len(part) for part in _dealt(config)[1])


def largest_partition(config: Config) -> tuple[int, int]:
    """Return the training rows of the largest partition, and the features of the data set."""
    table, parts = _dealt(config)
    most = max(len(part) for part in parts)
    fit, _ = split_validation(most, config.dataset.val_fraction, 0)
    _, public = public_names(config)
    levels = 0
    for name, column in zip(table.categorical_names, table.categorical.T, strict=True):
        told = public.get(name)
        if told is None:
            assert isinstance(config.dataset, TabularConfig)
            floor = config.dataset.min_level_rows
            enough = [part for part in parts if len(part) >= config.min_rows]
            told = tuple({v for part in enough for v in in_company(column[part].tolist(), floor)})
        levels += len(told) + 1
    return len(fit), len(table.numeric_names) + levels


def public_names(config: Config) -> tuple[tuple[Label, ...], dict[str, tuple[str, ...]]]:
    """Return the classes and the levels by column that no node has to tell, each in order.

    Those of a data set that everybody has, and those that the config names. Where there are no
    classes, or no levels of a column, the nodes tell theirs.
    """
    dataset = config.dataset
    if isinstance(dataset, TabularConfig):
        named = {c: tuple(sorted(levels)) for c, levels in (dataset.levels or {}).items()}
        return tuple(labels_of(dataset.classes or ())), named
    table = whole_table(config)
    columns = zip(table.categorical_names, table.categorical.T, strict=True)
    levels = {name: tuple(in_company(column.tolist(), 1)) for name, column in columns}
    classes = labels_of(table.target) if task_of(dataset) == "classification" else ()
    return tuple(classes), levels


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
    table = load_own(config.dataset, path, _natural_key(config))
    fit, keep = split_validation(len(table), config.dataset.val_fraction, partition)
    return Partition(table.take(fit), table.take(keep))


def own_columns(config: Config, partition: int, path: str) -> tuple[Found, tuple[int, int]]:
    """Look at a node's own file before the nodes agree on columns.

    Returns
    -------
    (Found, (int, int))
        And its rows for training and for ``eval/``, before any is dropped.
    """
    found = look_at_own(config.dataset, path, _natural_key(config))
    fit, keep = split_validation(found.rows, config.dataset.val_fraction, partition)
    return found, (len(fit), len(keep))


def test_table(config: Config) -> Table:
    """Return the server's test rows; empty where ``dataset.test_fraction`` is 0.

    All rows there of a data set without noise, of which new ones would be the same.
    """
    if config.dataset.has_no_noise and not config.dataset.test_fraction:
        return whole_table(config)
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
    if dataset.is_drawn:
        return "table"
    fixed = isinstance(dataset, HeartDiseaseConfig) and dataset.split == "flamby"
    if dataset.test_fraction and not fixed:
        return "test"
    return "nothing" if isinstance(config.partitioner, NaturalConfig) else "deal"


def whole_table(config: Config) -> Table:
    """Return all rows of the data set."""
    return load(config.dataset, config.seed, _natural_key(config))


def encode(partition: Partition, encoding: Encoding, dtype: str) -> Encoded:
    """Turn a client's raw rows into read-only numbers; rows of no known class are left out."""
    train, validation = (t.take(encoding.known(t)) for t in (partition.train, partition.validation))
    y = encoding.target(train)
    encoded = Encoded(
        encoding.features(train).astype(dtype),
        y.astype(dtype) if encoding.task == "regression" else y,
        encoding.truth(train),
        encoding.features(validation).astype(dtype),
        encoding.truth(validation),
        left_out=len(partition.train) - len(train),
        left_out_eval=len(partition.validation) - len(validation),
    )
    for array in (encoded.x, encoded.y, encoded.truth, encoded.x_eval, encoded.truth_eval):
        array.setflags(write=False)
    return encoded


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
    stratify = table.task == "classification"
    return split_test(table.target, fraction, seed, stratify, table.owners)


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
