"""From raw columns to the numbers a model sees, agreed once for the whole federation.

An :class:`Encoding` is made by the server from the clients' merged moments and levels, shipped as
JSON to every client and stored beside every logged model. It never sees a row before it is made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.aggregation import Moments
from fl_app.data.table import Table
from fl_app.errors import DataError
from fl_app.schema import Task

__all__ = ["Encoding"]

Label = int | str

log = logging.getLogger("fl_app")


@dataclass(frozen=True)
class Encoding:
    """How raw columns become features and outputs become predictions.

    Parameters
    ----------
    task : {"regression", "classification"}
        The task.
    columns : tuple of str
        Raw feature columns in their order.
    numeric : tuple of str
        The numeric ones among them.
    mean, scale : tuple of float
        What is subtracted from and divided out of each numeric column.
    levels : tuple of (str, tuple of str)
        Each categorical column with its levels, one feature a level.
    labels : tuple of int or str
        The C classes in their order; empty for regression.
    targets : tuple of str
        Names of the T targets; for classification the name of the label.
    target_mean, target_scale : tuple of float
        What is subtracted from and divided out of each target while a model learns, so that step
        sizes do not depend on its unit; empty for classification. Metrics and predictions are in
        the raw unit.
    fill : tuple of float
        What stands in for a missing cell of each numeric column: the federation's mean. Empty:
        ``mean``, which is the same where features are standardized.
    """

    task: Task
    columns: tuple[str, ...]
    numeric: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    levels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    labels: tuple[Label, ...] = ()
    targets: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_scale: tuple[float, ...] = ()
    fill: tuple[float, ...] = ()

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the D features: numeric columns, then ``column=level``."""
        return self.numeric + tuple(f"{c}={v}" for c, vs in self.levels for v in vs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the model's outputs: the C labels or the T targets."""
        return tuple(str(v) for v in (self.labels or self.targets))

    def features(self, table: Table) -> NDArray[np.float64]:
        """Return the features of shape (n, D).

        A missing number counts as its column's mean. A missing text has no level, and so has one
        that no client told of: all zeros, with one warning.
        """
        numeric = np.where(np.isnan(table.numeric), self._fill, table.numeric)
        scaled = (numeric - self._mean) / self._scale
        parts = [scaled]
        for position, (name, levels) in enumerate(self.levels):
            column = table.categorical[:, position]
            _warn_of_unknown(name, frozenset(column.tolist()) - {None, *levels}, levels)
            parts.append(np.stack([column == level for level in levels], axis=1).astype(np.float64))
        return np.ascontiguousarray(np.hstack(parts)) if len(parts) > 1 else scaled

    def truth(self, table: Table) -> NDArray[Any]:
        """Return class numbers of shape (n,), int64, or raw targets of shape (n, T), float64.

        Raises
        ------
        DataError
            For a label that no client told of in the handshake.
        """
        if self.task == "regression":
            return np.asarray(table.target, dtype=np.float64)
        index = self._index
        try:
            return np.array([index[label] for label in table.target.tolist()], dtype=np.int64)
        except KeyError as error:
            known = ", ".join(map(str, self.labels))
            raise DataError(self.targets[0], error.args[0], f"one of the labels {known}") from None

    def target(self, table: Table) -> NDArray[Any]:
        """Return what a model learns: class numbers, or standardized targets of shape (n, T)."""
        truth = self.truth(table)
        if self.task == "classification":
            return truth
        return np.asarray((truth - np.array(self.target_mean)) / np.array(self.target_scale))

    def in_units(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Bring a model's outputs of shape (n, T) into the raw unit; probabilities stay."""
        if self.task == "classification":
            return outputs
        return np.asarray(outputs * np.array(self.target_scale) + np.array(self.target_mean))

    def predictions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Turn outputs of shape (n, C) or (n, T), in raw units, into labels or numbers.

        Labels come as (n,), numbers as (n,) for one target and (n, T) for several.
        """
        if self.task == "regression":
            return outputs[:, 0] if outputs.shape[1] == 1 else outputs
        text = any(isinstance(label, str) for label in self.labels)
        labels = np.array(self.labels, dtype=object if text else None)
        return np.asarray(labels[np.argmax(outputs, axis=1)])

    @cached_property
    def _index(self) -> dict[Label, int]:
        return {label: position for position, label in enumerate(self.labels)}

    @cached_property
    def _mean(self) -> NDArray[np.float64]:
        return np.array(self.mean, dtype=np.float64)

    @cached_property
    def _fill(self) -> NDArray[np.float64]:
        return np.array(self.fill or self.mean, dtype=np.float64)

    @cached_property
    def _scale(self) -> NDArray[np.float64]:
        return np.array(self.scale, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {
            "task": self.task,
            "columns": list(self.columns),
            "numeric": list(self.numeric),
            "mean": list(self.mean),
            "scale": list(self.scale),
            "fill": list(self.fill),
            "levels": [[c, list(vs)] for c, vs in self.levels],
            "labels": list(self.labels),
            "targets": list(self.targets),
            "target_mean": list(self.target_mean),
            "target_scale": list(self.target_scale),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Encoding:
        """Read :meth:`to_dict`'s form back."""
        return cls(
            task=data["task"],
            columns=tuple(data["columns"]),
            numeric=tuple(data["numeric"]),
            mean=tuple(data["mean"]),
            scale=tuple(data["scale"]),
            fill=tuple(data["fill"]),
            levels=tuple((c, tuple(vs)) for c, vs in data["levels"]),
            labels=tuple(data["labels"]),
            targets=tuple(data["targets"]),
            target_mean=tuple(data["target_mean"]),
            target_scale=tuple(data["target_scale"]),
        )


@lru_cache(maxsize=1024)
def _warn_of_unknown(column: str, unknown: frozenset[str], levels: tuple[str, ...]) -> None:
    """Warn once a process; the cache is what remembers."""
    if unknown:
        log.warning(
            "%s=%s: no client told of this level, it counts as none of %s",
            column,
            ", ".join(sorted(unknown)),
            ", ".join(levels),
        )


def scaler(merged: Moments | None, width: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and scale of each numeric column.

    Parameters
    ----------
    merged : Moments or None
        The federation's moments; None leaves columns as they are.
    width : int
        Number of numeric columns.

    Returns
    -------
    (mean, scale)
        A column without spread has scale 1.
    """
    if merged is None:
        return (0.0,) * width, (1.0,) * width
    deviation = np.sqrt(merged.variance)
    flat = deviation <= 10 * np.finfo(np.float64).eps * np.abs(merged.mean)
    scale = np.where(flat, 1.0, deviation)
    return tuple(merged.mean.tolist()), tuple(scale.tolist())


def labels_of(values: Iterable[Any]) -> list[Label]:
    """Return the distinct labels of raw values in order: numbers by value, then texts by letter."""
    plain = {v.item() if isinstance(v, np.generic) else v for v in values}
    return sorted(plain, key=lambda v: (isinstance(v, str), v))
