"""Who gets which rows, seen before anything trains: sizes, labels by client, and points to draw.

Nothing runs here: the same config deals the same rows in every process (``data.client_data``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fl_app.config.compose import compose_config
from fl_app.config.dataset_options import TabularConfig
from fl_app.config.options import Task
from fl_app.config.schema import Config, task_of
from fl_app.config.serialization import from_dict
from fl_app.config.strategy_options import StrategyConfig
from fl_app.dashboard.view import counted
from fl_app.data.client_data import Partition, partition_of, test_table, whole_table
from fl_app.data.stratification import classes_of
from fl_app.data.table import Table
from fl_app.errors import InputError

__all__ = ["GONE", "MAX_POINTS", "Points", "Split", "config_of_text", "split_of", "split_of_text"]

MAX_POINTS = 5000
"""Most rows that are given as points, of all clients together."""
GONE = "The data of this run are not here any more, or are others now: its rows cannot be shown."
"""What there is to say where :func:`config_of_text` returns nothing."""
_BINS = 10


@dataclass(frozen=True)
class Points:
    """Training rows of one client, with one or two numeric features in their raw unit.

    Parameters
    ----------
    x : tuple of tuple of float
        A row each, its features in the order of :attr:`Split.features`.
    y : tuple
        Labels as in :attr:`Split.labels`, or numbers for regression.
    """

    x: tuple[tuple[float, ...], ...]
    y: tuple[str | float, ...]


@dataclass(frozen=True)
class Split:
    """The deal of K clients.

    Parameters
    ----------
    task : {"regression", "classification"}
        The task.
    target : str
        What is predicted; of several targets the first.
    labels : tuple of str
        The classes in their order; for regression the bins of `edges` in words.
    edges : tuple of float
        Edges of the bins that all clients share, one more than `labels`; empty for classification.
    sizes, validation : tuple of K int
        Rows that each client trains on, which are its n_k, and that it keeps for ``eval/``.
    test : int
        Rows of the server's test set.
    counts : tuple of tuple of int
        Training rows of each label, then of each client.
    features : tuple of str
        The one or two numeric features, if those are all there are; else empty.
    points : tuple of K Points
        The clients' rows if there are `features`, else empty; every so many-th row of each client
        where there are more than 5000.
    pooled : bool
        Whether one model trains on the rows of all clients in one place.
    """

    task: Task
    target: str
    labels: tuple[str, ...]
    edges: tuple[float, ...]
    sizes: tuple[int, ...]
    validation: tuple[int, ...]
    test: int
    counts: tuple[tuple[int, ...], ...]
    features: tuple[str, ...] = ()
    points: tuple[Points, ...] = ()
    pooled: bool = False

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the deal comes to, in words."""
        k = len(self.sizes)
        lines = [
            f"{sum(self.sizes)} rows train on {counted(k, 'client')}, {sum(self.validation)} "
            f"validate, {self.test} test on the server"
        ]
        if k > 1:
            lines.append(f"n_k, a client's rows to train on: {_range(self.sizes)}")
        if self.pooled:
            lines.append("strategy=pooled trains on the rows of all clients in one place")
        if self.task == "classification" and k > 1:
            classes = np.count_nonzero(np.array(self.counts), axis=0)
            lines.append(
                f"a client has {_range(classes.tolist())} of the {len(self.labels)} classes"
            )
        if not self.test:
            lines.append("the server has no test rows: look at the clients' own numbers")
        return tuple(lines)


def split_of(overrides: Sequence[str]) -> Split:
    """Return the deal of a run that did not start yet.

    Parameters
    ----------
    overrides : sequence of str
        Of one run, as :func:`fl_app.config.compose_config` takes them.

    Raises
    ------
    InputError
        If the config cannot run, or the data cannot be read or dealt so.
    """
    return _split(compose_config(list(overrides)))


def split_of_text(text: str, sha256: str = "") -> Split | None:
    """Return the deal of a run from its record; None where its rows cannot be had here.

    As :func:`config_of_text`.
    """
    try:
        config = config_of_text(text, sha256)
        return None if config is None else _split(config)
    except InputError:
        return None


def config_of_text(text: str, sha256: str = "") -> Config | None:
    """Return a run's config from its record, if the rows that it deals can be had here.

    Parameters
    ----------
    text : str
        The run's ``config/config.yaml``.
    sha256 : str, optional
        Digest of the data that the run used (its tag ``data.sha256``).

    Returns
    -------
    Config or None
        None where each node has a file of its own, where the file is gone or another one now, and
        where this version cannot read the config.
    """
    try:
        config = from_dict(yaml.safe_load(text))
        if config.runtime.name == "deployment" and isinstance(config.dataset, TabularConfig):
            return None
        return config if whole_table(config).sha256 == sha256 or not sha256 else None
    except (InputError, yaml.YAMLError):
        return None


def _split(config: Config) -> Split:
    pooled = config.strategy.is_pooled
    if pooled:  # whose one client would have all rows
        config = replace(config, strategy=StrategyConfig())
    parts = [partition_of(config, k) for k in range(config.num_clients)]
    task = task_of(config.dataset)
    targets = [part.train.target for part in parts]
    labels, edges, place = _groups(np.concatenate(targets), task)
    sizes = [len(target) for target in targets]
    counts = [
        np.bincount(own, minlength=len(labels)) for own in np.split(place, np.cumsum(sizes)[:-1])
    ]
    table = parts[0].train
    features = _drawable(table)
    return Split(
        task,
        table.target_names[0],
        labels,
        edges,
        tuple(sizes),
        tuple(len(part.validation) for part in parts),
        len(test_table(config)),
        tuple(map(tuple, np.transpose(counts).tolist())),
        features,
        _points(parts, sum(sizes)) if features else (),
        pooled,
    )


def _groups(
    target: NDArray[Any], task: Task
) -> tuple[tuple[str, ...], tuple[float, ...], NDArray[np.int64]]:
    """Return the labels or bins, the bins' edges, and which of them each row has."""
    if task == "classification":
        place = classes_of(target)
        first = np.unique(place, return_index=True)[1]
        return tuple(str(target[row]) for row in first), (), place
    values = target[:, 0]
    edges = np.histogram_bin_edges(values, _BINS)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    names = tuple(f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges))
    return names, tuple(edges.tolist()), place


def _drawable(table: Table) -> tuple[str, ...]:
    plain = not table.categorical_names and 1 <= len(table.numeric_names) <= 2
    return table.numeric_names if plain else ()


def _points(parts: Sequence[Partition], rows: int) -> tuple[Points, ...]:
    step = -(-rows // MAX_POINTS)
    points = []
    for table in (part.train for part in parts):
        kept = np.flatnonzero(~np.isnan(table.numeric).any(axis=1))[::step]
        target = table.target[kept]
        regression = table.task == "regression"
        y = target[:, 0].tolist() if regression else [str(label) for label in target.tolist()]
        points.append(Points(tuple(map(tuple, table.numeric[kept].tolist())), tuple(y)))
    return tuple(points)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
