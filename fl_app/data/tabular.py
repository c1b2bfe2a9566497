"""A table of the user's own, from one CSV or Parquet file.

Every column has a role: target, feature or key of the natural clients. A feature is numeric unless
``categorical`` names it. Where nobody names features or categorical ones, this file's cells decide:
texts are categorical; dates, identifiers and columns without a value are left out, and said to be.
Nodes with files of their own tell each what it found and then agree, see
:mod:`fl_app.federation.handshake`. Rows count from 1, the first below the header.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_app.config.dataset_options import MAX_AUTO_LEVELS, MIN_LEVEL_ROWS
from fl_app.config.options import Task
from fl_app.data.columns import (
    PLAIN,
    NotANumberError,
    Spelling,
    alike,
    is_date,
    is_missing,
    is_text,
    numbers,
    place,
    plain,
    texts,
    told_spellings,
)
from fl_app.data.encoding import in_company, some
from fl_app.data.files import read_frame, separator_of, spelt
from fl_app.data.table import Table
from fl_app.errors import ConfigError, DataError

__all__ = ["MAX_CLASSES", "MISSING", "Found", "Reading", "find_columns", "load_tabular"]

log = logging.getLogger("fl_app")

MAX_CLASSES = 100
"""Different whole numbers up to which a target of numbers can be classes."""
MISSING = ("error", "drop", "mean")
"""What can be done about missing cells."""

Parser = Callable[[Any], NDArray[Any]]


@dataclass(frozen=True)
class Reading:
    """How a file is read, beyond the roles of its columns.

    Parameters
    ----------
    exclude : tuple of str
        Columns that are no features.
    min_level_rows : int
        Rows that a level needs to be one, where texts become categorical by themselves.
    separator : str or None
        What separates the cells of CSV; None: told from its body.
    spelling : Spelling
        How texts spell missing cells and numbers.
    values : tuple of (str, tuple of str)
        By column the texts that are values, though the same words are missing cells elsewhere.
    own : bool
        Whether it is a node's own file. It may hold one class and lack an excluded column, and
        where ``missing`` is ``mean`` a column that it does not have is one of missing cells.
    """

    exclude: tuple[str, ...] = ()
    min_level_rows: int = MIN_LEVEL_ROWS
    separator: str | None = None
    spelling: Spelling = PLAIN
    values: tuple[tuple[str, tuple[str, ...]], ...] = ()
    own: bool = False

    def frame(self, path: str | Path) -> Any:
        """Read a file, see :func:`fl_app.data.files.read_frame`."""
        return read_frame(path, self.separator, self.spelling, dict(self.values))


DEALT = Reading()
"""As a file is read whose rows are all the rows there are."""
Categorical = Sequence[str] | Literal["auto"]


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
            told = frame.attrs
            frame = frame.reindex(columns=[*frame.columns, *lacking])
            frame.attrs = told
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
        said.append(f"it has no {listed(lacking, 5)}: missing cells, dataset.missing=mean")
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
            reasons = f"at least one column to predict from; left out are {_reasons(left)}"
            raise DataError("dataset.features", "null", reasons)
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


def _reasons(left: Mapping[str, str]) -> str:
    return some([f"{name} ({why})" for name, why in left.items()])


def told_left_out(left: Mapping[str, str], most: int = 5) -> list[str]:
    """Say which columns are left out, and why; the first ``most`` where there are more."""
    told = some([f"{name} ({why})" for name, why in left.items()], most)
    return [f"left out as features: {told}; dataset.features names those to take"] if left else []


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
    return some([*map(str, names)], most)


def bracket(names: Sequence[str]) -> str:
    """Write names as Hydra reads a list of them."""
    return f"[{','.join(map(quoted, names))}]"


def quoted(text: str) -> str:
    r"""Write a text as Hydra reads it, whatever it holds: as it is if it is a plain word or path.

    In quotes, Hydra takes backslashes as they are unless a quotation mark follows them, and
    OmegaConf unless ``${`` does: only those are doubled.

    Examples
    --------
    >>> print(quoted("plain"), quoted("7"), quoted('a "b" ${c}\\'))
    plain "7" "a \"b\" \${c}\\"
    """
    is_word = re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII)
    if is_word and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)
    text = re.sub(r'(\\*)("|\Z)', lambda m: m[1] * 2 + (m[2] and '\\"'), text)
    return f'"{text}"'


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


def parse(
    frame: Any, roles: Roles, fail: Callable[[DataError], None], *, empty: bool = False
) -> Columns:
    """Bring the cells of all columns with a role to their type.

    Parameters
    ----------
    frame : pandas.DataFrame
        The file.
    roles : Roles
        What each column is.
    fail : callable
        Is given a DataError for each column that cannot be used; the column is then left out.
    empty : bool, default False
        Whether features may have no value at all.
    """

    def cells(names: Sequence[str], parser: Callable[[str], Parser]) -> dict[str, NDArray[Any]]:
        parsed = {}
        for name in names:
            try:
                parsed[name] = parser(name)(frame[name])
                if is_missing(parsed[name]).all() and not (empty and name in roles.features):
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
    if spellings := told_spellings([frame[name]], separator_of(frame)):
        return f"numbers; if these are, set {' or '.join(map(spelling_options, spellings))}"
    columns = {name, *roles.categorical, *text_columns(frame, roles.features)}
    levels = bracket([feature for feature in roles.features if feature in columns])
    return f"numbers; for columns of texts set 'dataset.categorical={levels}'"


def spelling_options(spelling: Mapping[str, str]) -> str:
    """Write what :func:`fl_app.data.columns.told_spellings` found as overrides."""
    return " ".join(f"dataset.{option}={word}" for option, word in spelling.items())


def text_columns(frame: Any, names: Sequence[str]) -> list[str]:
    """Return the columns of which less than half of the values are numbers."""
    return [name for name in names if is_text(frame[name])]


# ---------------------------------------------------------------------------- missing cells
def kept_rows(
    columns: Columns, missing: str, words: Mapping[str, Counter[str]] | None = None
) -> NDArray[np.bool_]:
    """Return which of the n rows stay under a value of ``dataset.missing``.

    Parameters
    ----------
    columns : Columns
        The cells.
    missing : {"error", "drop", "mean"}
        The policy.
    words : mapping of str to Counter, optional
        How missing cells are spelt by column, see :func:`fl_app.data.files.spelt`.

    Raises
    ------
    DataError
        If a cell is missing that must not be, or no row stays.
    """
    must = {**columns.targets, **columns.key}
    gaps = {name: is_missing(values) for name, values in {**columns.features, **must}.items()}
    if missing == "error":
        for name, gap in gaps.items():
            if gap.any():
                told = [word for word in (words or {}).get(name, ()) if word]
                spelt_ = f" ({', '.join(map(repr, told[:5]))})" if told else ""
                first = place(int(gap.argmax()))
                value = f"missing{spelt_} in {gap.sum()} of {len(gap)} rows, first {first}"
                raise DataError(name, value, _value_wanted(name, columns.roles, told))
    lost = [gap for name, gap in gaps.items() if missing == "drop" or name in must]
    kept = ~np.any(lost, axis=0) if lost else np.ones(len(next(iter(gaps.values()))), dtype=bool)
    if not kept.any():
        cells = "cells" if missing == "drop" else "target or key"
        allowed = f"a row without missing {cells}; each of the {len(kept)} rows has one"
        raise DataError("dataset.missing", missing, allowed)
    return np.asarray(kept)


def _value_wanted(name: str, roles: Roles, words: Sequence[str]) -> str:
    if word := _maybe_name(name, roles, words):
        return f"a value in each row; {word}"
    drop = "a value in each row, or dataset.missing=drop to leave such rows out"
    if name in roles.categorical:
        return f"{drop}, or dataset.missing=mean to count such a cell as no level"
    if name in roles.features:
        return f"{drop}, or dataset.missing=mean to fill in the federation's mean"
    return f"{drop}, as mean does too: nothing stands in for a target or a key"


def may_be_names(words: Iterable[str]) -> list[str]:
    """Return those of the words for a missing cell that may be a name."""
    return [word for word in words if re.match(r"[^\W\d_]", word) and word.lower() != "nan"]


def _maybe_name(name: str, roles: Roles, words: Sequence[str]) -> str:
    """Say what to do about a class or a client whose name is read as a missing cell."""
    if not may_be_names(words):
        return ""
    if name in roles.targets and roles.task == "classification":
        return "if a word that is read as missing is a class, name all classes in dataset.classes"
    client = "if a word that is read as missing is a client, give it another name"
    return client if name == roles.key else ""


def told_missing(frame: Any, roles: Roles) -> list[str]:
    """Say which texts are read as missing cells, and where."""
    used = {*roles.features, *roles.targets, roles.key}
    words = {name: counts for name, counts in spelt(frame).items() if name in used and counts}
    total: Counter[str] = Counter()
    for counts in words.values():
        total.update(counts)
    if not any(total):  # blanks alone are what everybody takes for missing
        return []
    where = {word: some([name for name, counts in words.items() if counts[word]]) for word in total}
    cells = [
        f"{repr(word) if word else 'blank'} ({count} cell{'s'[: count > 1]} of {where[word]})"
        for word, count in sorted(total.items())
    ]
    found = [f"read as missing: {some(cells)}"]
    for name, counts in words.items():
        if says := _maybe_name(name, roles, [word for word in counts if word]):
            found.append(f"{name}: {says}")
    return found


# ---------------------------------------------------------------------------- the table
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


# ---------------------------------------------------------------------------- worth a word
def dropped(kept: NDArray[np.bool_], missing: str) -> list[str]:
    """Say how many rows are left out, if any."""
    gone = int((~kept).sum())
    why = " without a target or a key" if missing == "mean" else ""
    return [f"dataset.missing={missing} leaves out {gone} of {len(kept)} rows{why}"] if gone else []


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
                "dataset.exclude can leave it out"
            )
    names = {name: columns.features.get(name) for name in columns.roles.categorical}
    names |= columns.key | ({} if columns.roles.task == "regression" else columns.targets)
    for name, values in names.items():
        found += told_alike(name, () if values is None else set(values[~is_missing(values)]))
    return found


def told_alike(name: str, values: Iterable[object]) -> list[str]:
    """Say which values of a column differ in case, blanks or leading zeros alone."""
    groups = [" and ".join(map(repr, group[:5])) for group in alike(values)]
    return [f"{name}: {some(groups)} are different values"] if groups else []
