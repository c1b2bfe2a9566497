"""Which column of a file is target, feature or key of the natural clients.

A feature is numeric unless ``categorical`` names it. Where nobody names features or categorical
ones, this file's cells decide: texts are categorical; dates, identifiers and columns without a
value are left out, and said to be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_app.config.dataset_options import MAX_AUTO_LEVELS
from fl_app.config.options import Task
from fl_app.config.overrides import bracket
from fl_app.data.columns import is_date, is_text, texts
from fl_app.data.encoding import in_company, some
from fl_app.data.reading import Reading
from fl_app.errors import ConfigError, DataError

__all__ = [
    "Categorical",
    "Roles",
    "assign_roles",
    "choose",
    "identifies_rows",
    "mostly_other",
    "told_left_out",
    "why_no_levels",
]

Categorical = Sequence[str] | Literal["auto"]


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
            raise DataError("dataset.categorical", name, f"features only: {some(chosen, 20)}")
    if not chosen:
        raise DataError("dataset.features", "[]", "at least one column beside target and key")
    levels = tuple(name for name in chosen if name in categorical)
    return Roles(task, targets, tuple(chosen), levels, key)


def choose(
    frame: Any,
    target: str | Sequence[str],
    task: Task,
    features: Sequence[str] | None,
    categorical: Categorical,
    key: str | None,
    reading: Reading,
    *,
    dealt: bool = True,
) -> tuple[Roles, dict[str, str]]:
    """Assign roles, by the cells where nobody names the columns.

    Parameters
    ----------
    frame : pandas.DataFrame
        The file.
    target, task, features, categorical, key, reading
        As for :func:`load_tabular`.
    dealt : bool, default True
        Whether these are all the rows there are, so that their levels decide which columns of
        texts are categorical; of one node among others they do not.

    Returns
    -------
    (Roles, dict)
        And the columns that are left out, with the reason.

    Raises
    ------
    DataError
        As :func:`assign_roles`.
    """
    names, auto = list(frame.columns), categorical == "auto"
    levels = [name for name, _ in reading.values]
    named = [n for n in levels if n in names] if auto else list(categorical)
    if not reading.own:
        _check_known("dataset.exclude", reading.exclude, names)
    left: dict[str, str] = {}
    if features is None:
        targets = (target,) if isinstance(target, str) else target
        taken = {*targets, key, *reading.exclude}
        others = [name for name in names if name not in taken]
        for name in others:
            why = "" if name in named else _why_not(frame, name, reading, auto and dealt)
            if why:
                left[name] = why
        features = [name for name in others if name not in left]
        if not features:  # whole numbers that count up may be all that there is
            left = {n: why for n, why in left.items() if why != _IDENTIFIER or is_text(frame[n])}
            features = [name for name in others if name not in left]
        if not features and left:
            allowed = f"at least one column to predict from; left out are {_reasons(left)}"
            raise DataError("dataset.features", "null", allowed)
    if auto:
        named = [n for n in features if n in levels or (n in names and is_text(frame[n]))]
    for name in reading.exclude:
        if not reading.own and name in (target if not isinstance(target, str) else (target,)):
            raise DataError("dataset.exclude", name, "columns other than the target, as this is")
    return assign_roles(names, target, task, features, named, key), left


_IDENTIFIER = "an identifier"
_MOST_OTHERS = 0.1
"""Share of a column's texts that may be OTHER where it becomes categorical by itself."""
_ID_WORDS = ("id", "ids", "uid", "uuid", "guid", "pid", "index", "idx", "rowid", "rownames")
"""A word of a name whose different whole numbers identify rows."""
_COUNT_WORDS = ("order", "no", "nr", "num", "number", "row", "record", "case", "obs", "observation")
"""A word of a name whose whole numbers identify rows where they count them."""


def _why_not(frame: Any, name: str, reading: Reading, by_levels: bool) -> str:
    """Say why a column that nobody named is no feature; "" where it is one."""
    column = frame[name]
    if not column.notna().any():
        return "no value"
    if is_date(column):
        return "dates"
    if _is_identifier(name, column):
        return _IDENTIFIER
    if not (by_levels and is_text(column)):
        return ""
    cells = texts(column)
    return why_no_levels(
        in_company(cells.tolist(), reading.min_level_rows), cells, reading.min_level_rows
    )


def why_no_levels(levels: Mapping[Any, int], cells: NDArray[Any], floor: int) -> str:
    """Say why a column of texts is not categorical by itself; "" where it is.

    Parameters
    ----------
    levels : mapping of str
        Its levels that have company.
    cells : ndarray of shape (n,)
        Its cells; None where one is missing.
    floor : int
        Rows that make company.
    """
    if not levels:
        return f"texts of fewer than {floor} rows each"
    if len(levels) > MAX_AUTO_LEVELS:
        return f"{len(levels)} levels, more than {MAX_AUTO_LEVELS}"
    if mostly_other(cells, levels):
        return f"more than a tenth of the rows have texts of fewer than {floor} rows"
    return ""


def mostly_other(cells: NDArray[Any], levels: Sequence[str] | Mapping[str, int]) -> bool:
    """Return whether more than a tenth of the cells that are not missing are none of the levels."""
    filled = [cell for cell in cells.tolist() if cell is not None]
    known = frozenset(levels)
    return sum(cell not in known for cell in filled) > _MOST_OTHERS * len(filled)


def _is_identifier(name: str, column: Any) -> bool:
    """Return whether another whole number stands in each row, and it is named so or counts rows."""
    if not identifies_rows(column):
        return False
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    counts = bool((np.diff(column.to_numpy(dtype=np.float64)) == 1).all())
    return bool(words & {*_ID_WORDS} or (counts and words & {*_COUNT_WORDS}))


def identifies_rows(column: Any) -> bool:
    """Return whether another whole number stands in each row."""
    if column.dtype.kind not in "iuf" or column.isna().any() or len(column) < 2:
        return False
    values = column.to_numpy(dtype=np.float64)
    return len(np.unique(values)) == len(column) and bool((values == np.round(values)).all())


def _reasons(left: Mapping[str, str], most: int = 5) -> str:
    return some([f"{name} ({why})" for name, why in left.items()], most)


def told_left_out(left: Mapping[str, str], most: int = 5) -> list[str]:
    """Say which columns are left out, and why; the first ``most`` where there are more."""
    says = f"left out as features: {_reasons(left, most)}; dataset.features names those to take"
    return [says] if left else []


def _check_known(option: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    for position, name in enumerate(wanted):
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(option, name, f"no such column; {hint}the file has {some(names, 20)}")
        if name in wanted[:position]:
            raise DataError(option, name, "each column once")
