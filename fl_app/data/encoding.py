"""From raw columns to the numbers a model sees, agreed once for the whole federation.

An :class:`Encoding` is made by the server from the clients' merged moments and levels, shipped as
JSON to every client and stored beside every logged model. It never sees a row before it is made.
What it has no name for keeps a place: a cell of no known level is OTHER, a row of no known class is
left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.aggregation import Moments
from fl_app.config.options import Task
from fl_app.data.columns import alike, canonical, cell_text, is_missing
from fl_app.data.spelling import VERBATIM, Spelling
from fl_app.data.table import Table
from fl_app.errors import DataError, printable

__all__ = ["Encoding"]

Label = int | str


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
        Each categorical column with its levels: one feature a level, and one more, OTHER, for a
        cell that holds none of them.
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
    spelling : Spelling
        How raw texts spell missing cells and numbers.
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
    spelling: Spelling = VERBATIM

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the D features: numeric columns, then ``column=level`` and ``column=OTHER``.

        OTHER grows a ``_`` where a level has that name.
        """
        taken = {*self.numeric, *(f"{c}={v}" for c, vs in self.levels for v in vs)}
        names = list(self.numeric)
        for column, levels in self.levels:
            other = f"{column}=OTHER"
            while other in taken:
                other += "_"
            taken.add(other)
            names += [*(f"{column}={level}" for level in levels), other]
        return tuple(names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the model's outputs: the C labels or the T targets."""
        return tuple(str(v) for v in (self.labels or self.targets))

    def features(self, table: Table) -> NDArray[np.float64]:
        """Return the features of shape (n, D); columns of the table are found by name.

        A missing number counts as its column's mean. A missing text has no level: all zeros. A text
        that is none of the levels, whatever it says, is OTHER.
        """
        numeric = table.numeric
        if table.numeric_names != self.numeric:
            numeric = numeric[:, [table.numeric_names.index(name) for name in self.numeric]]
        numeric = np.where(np.isnan(numeric), self._fill, numeric)
        scaled = (numeric - self._mean) / self._scale
        parts = [scaled]
        for column, levels in self.levels:
            cells = table.categorical[:, table.categorical_names.index(column)]
            found = np.zeros((len(cells), len(levels) + 1))
            for place, level in enumerate(map(cell_text, levels)):
                found[:, place] = cells == level
            found[:, -1] = ~(found.any(axis=1) | is_missing(cells))
            parts.append(found)
        return np.ascontiguousarray(np.hstack(parts)) if len(parts) > 1 else scaled

    def known(self, table: Table) -> NDArray[np.int64]:
        """Return the numbers of the rows whose class is one of the C; all rows for regression."""
        if self.task == "regression":
            return np.arange(len(table))
        places = self._places(table.target.tolist())
        return np.flatnonzero([places[label] is not None for label in table.target.tolist()])

    def strangers(self, table: Table) -> list[str]:
        """Say which classes and levels of a table this encoding has no name for, with their rows.

        Of at most five columns, with the number of those that have some. It shows cells: it is for
        the terminal and the log of whoever holds the table.
        """
        found = []
        if self.task == "classification":
            cells = table.target.tolist()
            known = [cell for cell, place in self._places(cells).items() if place is not None]
            if rare := counted(cells, known):
                says = f"{self.targets[0]}={rare}: rows of these classes are left out"
                found.append("; ".join(filter(None, [says, nearly(table.target, self.labels)])))
        others = []
        for column, levels in self.levels:
            cells = table.categorical[:, table.categorical_names.index(column)]
            if rare := counted(cells.tolist(), map(cell_text, levels)):
                says = f"{column}={rare}: these levels count as OTHER"
                others.append("; ".join(filter(None, [says, nearly(cells, levels)])))
        if len(others) > 5:
            others = [*others[:5], f"{len(others)} columns in all have levels that count as OTHER"]
        return found + others

    def truth(self, table: Table) -> NDArray[Any]:
        """Return class numbers of shape (n,), int64, or raw targets of shape (n, T), float64.

        Raises
        ------
        DataError
            For a label that is none of the C, see :meth:`known`.
        """
        if self.task == "regression":
            return np.asarray(table.target, dtype=np.float64)
        cells = table.target.tolist()
        for cell, place in (places := self._places(cells)).items():
            if place is None:
                known = ", ".join(map(str, self.labels))
                raise DataError(self.targets[0], cell, f"one of the labels {known}")
        return np.array([places[cell] for cell in cells], dtype=np.int64)

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

    def _places(self, cells: Iterable[Any]) -> dict[Any, int | None]:
        """Return the class number of each different label; None where it is none of the C.

        A class is the same whether a file has it as a number or as a text.
        """
        index = {cell_text(label): place for place, label in enumerate(self.labels)}
        return {cell: index.get(cell_text(cell)) for cell in dict.fromkeys(cells)}

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
            "spelling": list(astuple(self.spelling)),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Encoding:
        """Read :meth:`to_dict`'s form back."""
        missing, *signs = data.get("spelling", [[], ".", ""])
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
            spelling=Spelling(tuple(missing), *signs),
        )


def counted(values: Iterable[Any], names: Iterable[Any]) -> str:
    """List the values that are none of the names with their rows, see :func:`some`."""
    counts = Counter(values)
    rare = labels_of(counts.keys() - {None, *names})
    return some([f"{printable(value, 80)} ({_rows(counts[value])})" for value in rare])


def some(things: Sequence[object], most: int = 5) -> str:
    """List things, the first ``most`` of them and how many there are in all."""
    more = f", … ({len(things)} in all)" if len(things) > most else ""
    return ", ".join(map(str, things[:most])) + more


def nearly(cells: NDArray[Any], names: Iterable[Any]) -> str:
    """Say which cells differ from one of the names in case, blanks or leading zeros alone."""
    told = {str(name) for name in names}
    others = {str(cell) for cell in cells.tolist() if cell is not None} - told
    near = [group for group in alike({*told, *others}) if told & {*group} and others & {*group}]
    pairs = [" and ".join(map(repr, group[:5])) for group in near]
    return f"{some(pairs)} are different values" if pairs else ""


def _rows(n: int) -> str:
    return "1 row" if n == 1 else f"{n} rows"


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


def one_kind(values: Iterable[Any]) -> tuple[Label, ...]:
    """Return labels as many files have them: all numbers, or all texts where one is none.

    Examples
    --------
    >>> one_kind(["1", 0, 1]), one_kind([1, "1", "x"])
    ((0, 1), ('1', 'x'))
    """
    told = {canonical(value) for value in values}
    if all(isinstance(value, int) for value in told):
        return tuple(labels_of(told))
    return tuple(labels_of(map(str, told)))


def in_company(values: Iterable[Any], min_level_rows: int) -> dict[Any, int]:
    """Return the rows of each value in order, without the values that fewer rows have.

    Parameters
    ----------
    values : iterable
        Labels or levels, one a row; None where one is missing.
    min_level_rows : int
        Rows from which a value may be named and counted.

    Examples
    --------
    >>> in_company(["b", "a", "b", None, "a", "c"], 2)
    {'a': 2, 'b': 2}
    """
    counts = Counter(value for value in values if value is not None)
    return {value: counts[value] for value in labels_of(counts) if counts[value] >= min_level_rows}
