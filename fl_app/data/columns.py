"""One column of a pandas DataFrame as an array: numbers, texts, or values as they are.

A missing cell is NaN among numbers and None elsewhere. Equal values become equal cells whatever
file they came from: 1, 1.0, True and the texts ``1``, ``1.0``, `` 1`` and ``true`` are the same
level and label. A text with a leading zero is a code and no number: ``01`` is not 1.
"""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import DataError

__all__ = [
    "ANY_NUMBER",
    "NUMBER",
    "NotANumberError",
    "alike",
    "as_objects",
    "canonical",
    "cell_text",
    "is_date",
    "is_missing",
    "is_text",
    "no_numbers",
    "numbers",
    "place",
    "plain",
    "texts",
]

Cell = int | float | str | None


class NotANumberError(ValueError):
    """A cell that is no number.

    Parameters
    ----------
    row : int
        Its position from 0.
    cell : object
        What it holds.
    """

    def __init__(self, row: int, cell: object) -> None:
        self.row, self.cell = row, cell
        shown = repr(cell) if isinstance(cell, str) else str(cell)
        super().__init__(f"{shown} {place(row)}")


# A leading zero makes a code; an exponent without a sign may be one too (1E5).
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]\d+)?", re.ASCII)
ANY_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_TRUTH = {"true": 1, "false": 0}


def canonical(cell: Any) -> Cell:
    """Return a cell as a value that is equal where the cells mean the same.

    Whole numbers come as int, also where they are spelt, and so do true (1) and false (0); other
    numbers as float; a missing cell as None; any other text as it is.

    Examples
    --------
    >>> [canonical(cell) for cell in (1.0, " 1", "true", "1.50", "01", "1E5", "Sick ", "", None)]
    [1, 1, 1, 1.5, '01', '1E5', 'Sick ', None, None]
    """
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, str):
        text = cell.strip()
        if len(text) < 400 and NUMBER.fullmatch(text):
            return int(text) if _WHOLE.fullmatch(text) else canonical(float(text))
        return _TRUTH.get(text.lower(), cell) if text else None
    if cell is None or cell != cell:
        return None
    if isinstance(cell, int | float | Decimal):
        if math.isinf(cell):
            return float(cell)
        return int(cell) if cell == int(cell) else float(cell)
    return str(cell)


def alike(names: Iterable[object]) -> list[tuple[str, ...]]:
    """Return the groups of names that differ in case, blanks or leading zeros alone.

    Examples
    --------
    >>> alike(["sick", "Sick ", "well", "01", "1"])
    [('01', '1'), ('Sick ', 'sick')]
    """
    groups: dict[str, set[str]] = {}
    for name in names:
        key = " ".join(str(name).casefold().split())
        key = key.lstrip("0") or "0" if key.isdigit() else key
        groups.setdefault(key, set()).add(str(name))
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def numbers(column: Any) -> NDArray[np.float64]:
    """Return a column as numbers; true is 1 and false 0, a text that spells a number is one.

    Parameters
    ----------
    column : pandas.Series of length n
        Any column.

    Raises
    ------
    NotANumberError
        At the first cell that is no number.
    DataError
        At the first infinite one.
    """
    if column.dtype.kind in "biuf":
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        values = np.array([_number(row, cell) for row, cell in enumerate(_cells(column))])
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        row = int(infinite[0])
        raise _infinite(column, values[row], row)
    return np.asarray(values, dtype=np.float64)


def no_numbers(column: Any) -> Counter[str]:
    """Return a column's texts that :func:`numbers` would take for no number, with their cells."""
    counts: Counter[str] = Counter()
    for cell, count in column.dropna().value_counts().items():
        try:
            _number(0, cell)
        except NotANumberError:
            counts[str(cell).strip()] += count
    return counts


def texts(column: Any) -> NDArray[Any]:
    """Return a column as an object array of texts."""
    return as_objects([cell_text(cell) for cell in _cells(column)])


def plain(column: Any) -> NDArray[Any]:
    """Return a column as an object array of int (also for 1.0, " 1" and True), float and str.

    Raises
    ------
    DataError
        At the first infinite number.
    """
    cells = [canonical(cell) for cell in _cells(column)]
    for row, cell in enumerate(cells):
        if isinstance(cell, float) and math.isinf(cell):
            raise _infinite(column, cell, row)
    return as_objects([_whole(cell) if isinstance(cell, int) else cell for cell in cells])


def cell_text(cell: object) -> str | None:
    """Return a cell as the text of a level, None where it is missing.

    Examples
    --------
    >>> [cell_text(cell) for cell in (1, 1.0, "1", " 1.0", True, "01", "", float("nan"))]
    ['1', '1', '1', '1', '1', '01', None, None]
    """
    value = canonical(cell)
    return None if value is None else str(value)


def is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which cells of a column of this module are missing."""
    if values.dtype == object:
        return np.array([value is None for value in values], dtype=bool)
    return np.asarray(np.isnan(values))


def is_text(column: Any) -> bool:
    """Return whether a column has a code, or less than half of its values are numbers."""
    if column.dtype.kind in "biuf":
        return False
    counts = column.astype(str).where(column.notna()).value_counts()
    if any(_CODE.fullmatch(text.strip()) for text in counts.index):
        return True
    spelt = [isinstance(canonical(text), int | float) for text in counts.index]
    return bool(len(counts)) and bool(counts[spelt].sum() < counts.sum() / 2)


_CODE = re.compile(r"0\d+", re.ASCII)
_DAY = r"\d{4}[-/.]\d{1,2}(?:[-/.]\d{1,2})?|\d{1,2}[-/. ](?:\d{1,2}|[^\W\d_]{3,9})[-/. ,]+\d{2,4}"
_TIME = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[AaPp][Mm])?(?: ?(?:Z|[+-]\d{2}:?\d{2}))?"
_DATE = re.compile(rf"(?:{_DAY}|[^\W\d_]{{3,9}} \d{{1,2}},? \d{{4}})(?:[T ]+{_TIME})?|{_TIME}")


def is_date(column: Any) -> bool:
    """Return whether all of a column's values are dates or times, or spell some.

    Examples
    --------
    >>> import pandas as pd
    >>> [is_date(pd.Series([cell])) for cell in ("2020-02-01 10:30", "1.2.2020", "1 Feb 2020", "1")]
    [True, True, True, False]
    """
    if column.dtype.kind in "mM":
        return True
    if column.dtype.kind in "biuf":
        return False
    values, when = column.dropna().tolist(), (datetime.date, datetime.time)
    return len(values) > 0 and all(
        isinstance(v, when) or (isinstance(v, str) and _DATE.fullmatch(v.strip()) is not None)
        for v in values
    )


def place(row: int) -> str:
    """Name a row by its number in the file, 1 for the first below the header."""
    return f"in row {row + 1}"


def _cells(column: Any) -> list[Any]:
    """Return the cells with None where one is missing.

    Raises
    ------
    DataError
        If cells are lists or the like.
    """
    missing = column.isna().to_numpy()
    cells = [None if m else c for c, m in zip(column.tolist(), missing, strict=True)]
    for row, cell in enumerate(cells):
        if isinstance(cell, list | dict | tuple | set | bytes | np.ndarray):
            kind = type(cell).__name__
            raise DataError(column.name, f"a {kind} {place(row)}", "one number or text a cell")
    return cells


def _number(row: int, cell: Any) -> float:
    if isinstance(cell, str):
        text = cell.strip()
        if not text or ANY_NUMBER.fullmatch(text) or text.lower().lstrip("+-") == "inf":
            return float(text or "nan")
        if text.lower() in _TRUTH:
            return float(_TRUTH[text.lower()])
    elif cell is None:
        return math.nan
    elif isinstance(cell, bool | int | float | Decimal | np.number | np.bool_):
        return float(cell)
    raise NotANumberError(row, cell)


def _whole(number: int) -> int | str:
    """Return a number as it is where 64 bits hold it, else as a text."""
    return number if -(2**63) <= number < 2**63 else str(number)


def _infinite(column: Any, cell: float, row: int) -> DataError:
    return DataError(column.name, f"{cell} {place(row)}", "finite numbers")


def as_objects(cells: list[Any]) -> NDArray[Any]:
    """Return an array that holds the cells as they are."""
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array
