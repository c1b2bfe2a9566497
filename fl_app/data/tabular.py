"""A table of the user's own, from one CSV or Parquet file.

Every column has a role (:mod:`fl_app.data.roles`), by which its cells are read. Nodes with files of
their own tell each what it found and then agree, see :mod:`fl_app.federation.handshake`. Rows count
from 1, the first below the header.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import Task
from fl_app.config.overrides import bracket
from fl_app.data.columns import alike, is_missing, place, texts
from fl_app.data.encoding import in_company, some
from fl_app.data.files import spelt
from fl_app.data.missing import MISSING, dropped, kept_rows, told_missing
from fl_app.data.parsing import Columns, parse
from fl_app.data.reading import DEALT, Reading
from fl_app.data.roles import Categorical, Roles, choose, told_left_out
from fl_app.data.table import Table
from fl_app.errors import ConfigError, DataError

__all__ = ["MAX_CLASSES", "MISSING", "Found", "Reading", "find_columns", "load_tabular"]

log = logging.getLogger("fl_app")

MAX_CLASSES = 100
"""Different whole numbers up to which a target of numbers can be classes."""


def load_tabular(
    path: str | Path,
    target: str | Sequence[str],
    task: Task,
    features: Sequence[str] | None = None,
    categorical: Categorical = (),
    missing: str = "error",
    key: str | None = None,
    reading: Reading = DEALT,
) -> Table:
    """Read one CSV or Parquet file.

    Parameters
    ----------
    path : str or Path
        The file, see :func:`fl_app.data.files.read_frame`.
    target : str or sequence of str
        Column to predict; several for regression only.
    task : {"regression", "classification"}
        Labels may be texts or whole numbers, which come as ``int`` (also 1.0, " 1" and True).
    features : sequence of str, optional
        Columns to predict from, in their order; by default all but targets, key, dates,
        identifiers and columns without a value.
    categorical : sequence of str or "auto"
        Features taken as texts, one level each; the others must be numbers, or true and false,
        which count as 1 and 0. ``auto``: columns of texts; without ``features`` those of them with
        1 to 20 levels of at least ``min_level_rows`` rows that no more than a tenth of the rows
        lack, the other ones are left out.
    missing : {"error", "drop", "mean"}
        What to do about missing cells. ``error``: raise. ``drop``: leave out each row that misses a
        feature, a target or its key, and log how many. ``mean``: keep missing features, as NaN
        (the federation's mean stands in for it later) and as None (no level at all); a row that
        misses a target or its key is left out, as nothing can stand in for it.
    key : str, optional
        Column whose sorted values are the natural clients 0..K-1; no feature unless ``features``
        names it.
    reading : Reading
        How it is read.

    Returns
    -------
    Table

    Raises
    ------
    DataError
        For a file, a column or a cell that cannot be used.
    ConfigError
        For a ``task`` or ``missing`` that does not exist.
    """
    if missing not in MISSING:
        raise ConfigError("dataset.missing", missing, f"one of {', '.join(MISSING)}")
    frame = reading.frame(path)
    lacking: list[str] = []
    if reading.own:  # all rows are one client's
        reading = _without(reading, key)
        key = None
        if missing == "mean":
            lacking = [name for name in features or () if name not in frame.columns]
            if lacking and len(lacking) == len(features or ()):
                raise DataError("dataset.features", bracket(lacking), "a column of the file")
            attrs = frame.attrs
            frame = frame.reindex(columns=[*frame.columns, *lacking])
            frame.attrs = attrs
    roles, left = choose(frame, target, task, features, categorical, key, reading)
    columns = parse(frame, roles, _raise, empty=reading.own and missing == "mean")
    kept = kept_rows(columns, missing, spelt(frame))
    table = build_table(columns, kept)
    fewest = 1 if reading.own else 2
    if task == "classification" and len(set(table.target.tolist())) < fewest:
        raise one_class(table.target_names[0], table.target)
    said = [
        *told_left_out(left),
        *told_missing(frame, roles),
        *dropped(kept, missing),
        *notes(columns),
    ]
    if lacking:
        said.append(f"it has no {some(lacking)}: missing cells, dataset.missing=mean")
    for note in said:
        log.warning("%s: %s", Path(path).name, note)
    return table


def _without(reading: Reading, key: str | None) -> Reading:
    return reading if key is None else replace(reading, exclude=(*reading.exclude, key))


@dataclass(frozen=True)
class Found:
    """What a node's own file has to offer, before the federation agrees on columns.

    Parameters
    ----------
    rows : int
        Its rows.
    roles : Roles
        The columns that may be features, those of texts as categorical ones.
    levels : tuple of tuple of str
        Of each column of texts the levels that have company.
    """

    rows: int
    roles: Roles
    levels: tuple[tuple[str, ...], ...]


def find_columns(
    path: str | Path,
    target: str | Sequence[str],
    task: Task,
    features: Sequence[str] | None,
    categorical: Categorical,
    missing: str,
    key: str | None,
    reading: Reading,
) -> Found:
    """Look at a node's own file before the federation agrees on columns.

    Parameters and errors are those of :func:`load_tabular`; the cells are not judged yet.
    """
    frame = reading.frame(path)
    if features is not None and missing == "mean":
        features = [name for name in features if name in frame.columns]
    reading = _without(reading, key)
    roles, left = choose(frame, target, task, features, categorical, None, reading, dealt=False)
    for note in told_left_out(left):
        log.warning("%s: %s", Path(path).name, note)
    floor = reading.min_level_rows
    levels = (tuple(in_company(texts(frame[name]), floor)) for name in roles.categorical)
    return Found(len(frame), roles, tuple(levels))


def _raise(error: DataError) -> None:
    raise error


def build_table(columns: Columns, kept: NDArray[np.bool_]) -> Table:
    """Put the kept rows together.

    Raises
    ------
    DataError
        If their labels cannot be classes.
    """
    roles = columns.roles
    numeric = tuple(name for name in roles.features if name not in roles.categorical)
    owners, owner_names = _owners(columns, kept)
    return Table(
        task=roles.task,
        columns=roles.features,
        numeric=_stack([columns.features[n][kept] for n in numeric], int(kept.sum()), np.float64),
        numeric_names=numeric,
        categorical=_stack(
            [columns.features[n][kept] for n in roles.categorical], int(kept.sum()), object
        ),
        categorical_names=roles.categorical,
        target=target_of(columns, kept),
        target_names=roles.targets,
        owners=owners,
        owner_names=owner_names,
    )


def _stack(parts: Sequence[NDArray[Any]], n: int, dtype: type) -> NDArray[Any]:
    return np.stack(parts, axis=1) if parts else np.empty((n, 0), dtype=dtype)


def target_of(columns: Columns, kept: NDArray[np.bool_]) -> NDArray[Any]:
    """Return targets of shape (n, T), or labels of shape (n,): int64 or texts as objects."""
    parts = [values[kept] for values in columns.targets.values()]
    if columns.roles.task == "regression":
        return np.stack(parts, axis=1)
    name, rows = columns.roles.targets[0], np.flatnonzero(kept)
    labels = parts[0].tolist()
    if any(isinstance(label, str) for label in labels):
        return np.array([str(label) for label in labels], dtype=object)
    for row, label in zip(rows, labels, strict=True):
        if isinstance(label, float):
            value = f"{label} {place(int(row))}"
            raise DataError(name, value, f"whole numbers or texts as classes; {_NUMBER}")
    if len(set(labels)) > MAX_CLASSES:
        value = f"{len(set(labels))} different numbers"
        raise DataError(name, value, f"at most {MAX_CLASSES} numbers as classes; {_NUMBER}")
    return np.array(labels, dtype=np.int64)


def one_class(name: str, labels: NDArray[Any]) -> DataError:
    """Refuse labels of which there is one only."""
    return DataError(name, f"{labels.tolist()[0]!r} in every row", "at least 2 classes")


_NUMBER = "to predict a number set dataset.task=regression"


def _owners(
    columns: Columns, kept: NDArray[np.bool_]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Return the place of each row's key among the sorted keys, numbers before texts, and these."""
    for values in columns.key.values():
        keys = values[kept].tolist()
        order = sorted(set(keys), key=lambda value: (isinstance(value, str), value))
        number = {value: position for position, value in enumerate(order)}
        return np.array([number[value] for value in keys], dtype=np.int64), tuple(map(str, order))
    return None, ()


def notes(columns: Columns) -> list[str]:
    """Say what a run can live with and its user should know."""
    said = []
    for name in columns.roles.categorical:
        values = columns.features.get(name)
        if values is None:
            continue
        filled = values[~is_missing(values)].tolist()
        if 1 < len(filled) == len(set(filled)):
            said.append(
                f"{name} has another level in each of its {len(filled)} rows: is it an identifier? "
                "dataset.exclude can leave it out"
            )
    names = {name: columns.features.get(name) for name in columns.roles.categorical}
    names |= columns.key | ({} if columns.roles.task == "regression" else columns.targets)
    for name, values in names.items():
        said += told_alike(name, () if values is None else set(values[~is_missing(values)]))
    return said


def told_alike(name: str, values: Iterable[object]) -> list[str]:
    """Say which values of a column differ in case, blanks or leading zeros alone."""
    groups = [" and ".join(map(repr, group[:5])) for group in alike(values)]
    return [f"{name}: {some(groups)} are different values"] if groups else []
