"""A table of the user's own, from one CSV or Parquet file.

Every column has a role: target, feature or key of the natural clients. A feature is numeric unless
``categorical`` names it: types are never guessed from cells, so that all nodes of a federation
agree on them. Rows count from 1, the first below the header.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.columns import NotANumberError, is_missing, is_text, numbers, place, plain, texts
from fl_app.data.files import read_frame
from fl_app.data.table import Table
from fl_app.errors import ConfigError, DataError
from fl_app.schema import Task

__all__ = ["MAX_CLASSES", "MISSING", "load_tabular"]

log = logging.getLogger("fl_app")

MAX_CLASSES = 100
"""Different whole numbers up to which a target of numbers can be classes."""
MISSING = ("error", "drop", "mean")
"""What can be done about missing cells."""

Parser = Callable[[Any], NDArray[Any]]


def load_tabular(
    path: str | Path,
    target: str | Sequence[str],
    task: Task,
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    missing: str = "error",
    key: str | None = None,
    *,
    own: bool = False,
    text_labels: bool | None = None,
) -> Table:
    """Read one CSV or Parquet file.

    Parameters
    ----------
    path : str or Path
        The file, see :func:`fl_app.data.files.read_frame`.
    target : str or sequence of str
        Column to predict; several for regression only.
    task : {"regression", "classification"}
        Labels may be texts or whole numbers, which come as ``int`` (also 1.0 and True).
    features : sequence of str, optional
        Columns to predict from, in their order; by default all but targets and key.
    categorical : sequence of str
        Features taken as texts, one level each; the others must be numbers, or true and false,
        which count as 1 and 0. An empty text is a missing cell.
    missing : {"error", "drop", "mean"}
        What to do about missing cells. ``error``: raise. ``drop``: leave out each row that misses a
        feature, a target or its key, and log how many. ``mean``: keep missing features, as NaN
        (the federation's mean stands in for it later) and as None (no level at all); a missing
        target or key is an error, as nothing can stand in for it.
    key : str, optional
        Column whose sorted values are the natural clients 0..K-1; no feature unless ``features``
        names it.
    own : bool, default False
        Whether all rows are one node's, whose file may hold one class, as others may have the other
        classes, and need not have the key column.
    text_labels : bool, optional
        Whether labels are texts, though all in this file may look like numbers; False: only those
        are that do not. By default all are where one is.

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
    frame = read_frame(path)
    names = list(frame.columns)
    if own:
        names = names if features is not None else [name for name in names if name != key]
        key = None
    roles = assign_roles(names, target, task, features, categorical, key)
    columns = parse(frame, roles, _raise)
    kept = kept_rows(columns, missing)
    table = build_table(columns, kept, text_labels)
    if task == "classification" and not own and len(set(table.target.tolist())) < 2:
        raise one_class(table.target_names[0], table.target)
    for note in [*dropped(kept), *notes(columns)]:
        log.warning("%s: %s", Path(path).name, note)
    return table


def _raise(error: DataError) -> None:
    raise error


# ---------------------------------------------------------------------------- roles
@dataclass(frozen=True)
class Roles:
    """Which column is what.

    Parameters
    ----------
    task : {"regression", "classification"}
        The task.
    targets, features, categorical : tuple of str
        Columns to predict, to predict from, and the categorical ones among these.
    key : str or None
        Column of the natural clients.
    """

    task: Task
    targets: tuple[str, ...]
    features: tuple[str, ...]
    categorical: tuple[str, ...]
    key: str | None


def assign_roles(
    names: Sequence[str],
    target: str | Sequence[str],
    task: Task,
    features: Sequence[str] | None,
    categorical: Sequence[str],
    key: str | None,
) -> Roles:
    """Check the columns that a user names against the file's ``names`` and against each other.

    Raises
    ------
    ConfigError
        For a task that does not exist.
    DataError
        Naming the option, the column and what is allowed.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    if task not in ("regression", "classification"):
        raise ConfigError("dataset.task", task, "one of regression, classification")
    if task == "classification" and len(targets) > 1:
        allowed = "one column; several only with dataset.task=regression"
        raise DataError("dataset.target", bracket(targets), allowed)
    _check_known("dataset.target", targets, names)
    _check_known("partitioner.key", () if key is None else (key,), names)
    chosen = tuple(n for n in names if n not in (*targets, key)) if features is None else features
    _check_known("dataset.features", chosen, names)
    _check_known("dataset.categorical", categorical, names)
    for name in chosen:
        if name in targets:
            raise DataError("dataset.features", name, "columns other than the target, as this is")
    for name in categorical:
        if name not in chosen:
            raise DataError("dataset.categorical", name, f"features only: {listed(chosen)}")
    if not chosen:
        raise DataError("dataset.features", "[]", "at least one column beside target and key")
    levels = tuple(name for name in chosen if name in categorical)
    return Roles(task, targets, tuple(chosen), levels, key)


def _check_known(option: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    for position, name in enumerate(wanted):
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(option, name, f"no such column; {hint}the file has {listed(names)}")
        if name in wanted[:position]:
            raise DataError(option, name, "each column once")


def listed(names: Sequence[str], most: int = 20) -> str:
    """List names, the first ``most`` of them where there are more."""
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def bracket(names: Sequence[str]) -> str:
    """Write names as Hydra reads a list of them."""
    return f"[{','.join(map(quoted, names))}]"


def quoted(text: str) -> str:
    """Write a text as Hydra reads it: in quotes unless it is a plain word or path."""
    is_word = re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII)
    is_value = text.lower() in ("null", "true", "false", "nan", "inf")
    return text if is_word and not is_value else json.dumps(text, ensure_ascii=False)


# ---------------------------------------------------------------------------- cells
@dataclass(frozen=True, eq=False)
class Columns:
    """The cells of all columns with a role.

    Parameters
    ----------
    roles : Roles
        The roles.
    features : dict of str to ndarray of shape (n,)
        float64 with NaN for numeric features, object with texts and None for categorical ones.
    targets : dict of str to ndarray of shape (n,)
        float64 with NaN for regression; object with int, float, str and None for labels.
    key : dict of str to ndarray of shape (n,)
        The key with its values as labels have them; empty where there is none.
    """

    roles: Roles
    features: dict[str, NDArray[Any]]
    targets: dict[str, NDArray[Any]]
    key: dict[str, NDArray[Any]]


def parse(frame: Any, roles: Roles, fail: Callable[[DataError], None]) -> Columns:
    """Bring the cells of all columns with a role to their type.

    Parameters
    ----------
    frame : pandas.DataFrame
        The file.
    roles : Roles
        What each column is.
    fail : callable
        Is given a DataError for each column that cannot be used; the column is then left out.
    """

    def cells(names: Sequence[str], parser: Callable[[str], Parser]) -> dict[str, NDArray[Any]]:
        parsed = {}
        for name in names:
            try:
                parsed[name] = parser(name)(frame[name])
                if is_missing(parsed[name]).all():
                    raise DataError(name, "missing in every row", "a value in some row")
            except NotANumberError as error:
                fail(DataError(name, str(error), _numbers_wanted(frame, roles, name)))
            except DataError as error:
                fail(error)
        return parsed

    target = numbers if roles.task == "regression" else plain
    return Columns(
        roles,
        cells(roles.features, lambda name: texts if name in roles.categorical else numbers),
        cells(roles.targets, lambda _: target),
        cells([] if roles.key is None else [roles.key], lambda _: plain),
    )


def _numbers_wanted(frame: Any, roles: Roles, name: str) -> str:
    """Say what to do about a column that should hold numbers and does not."""
    if name in roles.targets:
        return "numbers, as dataset.task=regression; for labels set dataset.task=classification"
    columns = {name, *roles.categorical, *text_columns(frame, roles.features)}
    levels = bracket([feature for feature in roles.features if feature in columns])
    return f"numbers; for columns of texts set 'dataset.categorical={levels}'"


def text_columns(frame: Any, names: Sequence[str]) -> list[str]:
    """Return the columns of which less than half of the values are numbers."""
    return [name for name in names if is_text(frame[name])]


# ---------------------------------------------------------------------------- missing cells
def kept_rows(columns: Columns, missing: str) -> NDArray[np.bool_]:
    """Return which of the n rows stay under a value of ``dataset.missing``.

    Raises
    ------
    DataError
        If a cell is missing that must not be, or no row stays.
    """
    must = {**columns.targets, **columns.key}
    every = {**columns.features, **must}
    gaps = {name: is_missing(values) for name, values in every.items()}
    if missing == "drop":
        kept = ~np.any(list(gaps.values()), axis=0)
        if not kept.any():
            allowed = f"a row without missing cells; each of the {len(kept)} rows has one"
            raise DataError("dataset.missing", "drop", allowed)
        return np.asarray(kept)
    for name, gap in gaps.items():
        if gap.any() and (missing == "error" or name in must):
            value = f"missing in {gap.sum()} of {len(gap)} rows, first {place(int(gap.argmax()))}"
            raise DataError(name, value, _value_wanted(name, columns.roles))
    return np.ones(len(next(iter(gaps.values()))), dtype=bool)


def _value_wanted(name: str, roles: Roles) -> str:
    drop = "a value in each row, or dataset.missing=drop to leave such rows out"
    if name in roles.categorical:
        return f"{drop}, or dataset.missing=mean to count such a cell as no level"
    if name in roles.features:
        return f"{drop}, or dataset.missing=mean to fill in the federation's mean"
    return f"{drop}, as nothing stands in for a target or a key"


# ---------------------------------------------------------------------------- the table
def build_table(
    columns: Columns, kept: NDArray[np.bool_], text_labels: bool | None = None
) -> Table:
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
        target=target_of(columns, kept, text_labels),
        target_names=roles.targets,
        owners=owners,
        owner_names=owner_names,
    )


def _stack(parts: Sequence[NDArray[Any]], n: int, dtype: type) -> NDArray[Any]:
    return np.stack(parts, axis=1) if parts else np.empty((n, 0), dtype=dtype)


def target_of(
    columns: Columns, kept: NDArray[np.bool_], text_labels: bool | None = None
) -> NDArray[Any]:
    """Return targets of shape (n, T), or labels of shape (n,): int64 or texts as objects."""
    parts = [values[kept] for values in columns.targets.values()]
    if columns.roles.task == "regression":
        return np.stack(parts, axis=1)
    name, rows = columns.roles.targets[0], np.flatnonzero(kept)
    labels = parts[0].tolist()
    if text_labels is False:  # beside one text, whole numbers come as texts too
        labels = [int(v) if re.fullmatch(r"-?\d{1,18}", str(v)) else v for v in labels]
    mixed = any(isinstance(label, str) for label in labels)
    if text_labels or (mixed and text_labels is None):
        labels = [str(label) for label in labels]
    for row, label in zip(rows, labels, strict=True):
        if isinstance(label, float):
            value = f"{label} {place(int(row))}"
            raise DataError(name, value, f"whole numbers or texts as classes; {_NUMBER}")
    if text_labels or mixed:
        return np.array(labels, dtype=object)
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


# ---------------------------------------------------------------------------- worth a word
def dropped(kept: NDArray[np.bool_]) -> list[str]:
    """Say how many rows are left out, if any."""
    gone = int((~kept).sum())
    return [f"dataset.missing=drop leaves out {gone} of {len(kept)} rows"] if gone else []


def notes(columns: Columns) -> list[str]:
    """Say what a run can live with and its user should know."""
    found = []
    for name in columns.roles.categorical:
        values = columns.features.get(name)
        if values is None:
            continue
        filled = values[~is_missing(values)].tolist()
        if 1 < len(filled) == len(set(filled)):
            found.append(
                f"{name} has another level in each of its {len(filled)} rows: is it an identifier? "
                "dataset.features can leave it out"
            )
    return found
