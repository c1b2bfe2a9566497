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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.checking import sign
from fl_app.errors import DataError

__all__ = [
    "MISSING_WORDS",
    "PLAIN",
    "VERBATIM",
    "NotANumberError",
    "Spelling",
    "alike",
    "canonical",
    "cell_text",
    "is_date",
    "is_measured",
    "is_missing",
    "is_text",
    "no_numbers",
    "numbers",
    "place",
    "plain",
    "texts",
    "tidied",
    "told_spellings",
]

Cell = int | float | str | None

_NUMERIC_WORDS = ("NaN", "nan", "-NaN", "-nan", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN")
_WORDS = ("#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "None", "n/a", "null", "?", "-")
MISSING_WORDS = (*_NUMERIC_WORDS, *_WORDS)
"""Texts that are missing cells: those of ``pandas.read_csv``, ``?`` and ``-``; and blanks."""


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


# ---------------------------------------------------------------------------- spelling
@dataclass(frozen=True)
class Spelling:
    """How the texts of a table spell missing cells and numbers.

    Parameters
    ----------
    missing : tuple of str
        Cells that are missing beside blanks, also as numbers (``-99``).
    decimal : str, default "."
        What begins the decimals.
    thousands : str, default ""
        What stands between groups of three digits.
    """

    missing: tuple[str, ...] = MISSING_WORDS
    decimal: str = "."
    thousands: str = ""

    def number(self, text: str) -> str:
        """Return a number's text as programs write it; any other text as it is.

        Examples
        --------
        >>> Spelling(decimal=",", thousands=".").number("1.234,5"), Spelling().number("1,234")
        ('1234.5', '1,234')
        """
        if self.thousands:
            group, point = re.escape(self.thousands), re.escape(self.decimal)
            if re.fullmatch(rf"\s*[+-]?[1-9]\d{{0,2}}({group}\d{{3}})+({point}\d*)?\s*", text):
                text = text.replace(self.thousands, "")
        if self.decimal != "." and re.fullmatch(
            rf"\s*[+-]?\d*{re.escape(self.decimal)}\d*([eE][+-]?\d+)?\s*", text
        ):
            text = text.replace(self.decimal, ".")
        return text


def told_spellings(columns: Iterable[Any], separator: str = "") -> list[dict[str, str]]:
    """Tell by their texts how numbers are spelt that programs would not read.

    Parameters
    ----------
    columns : iterable of pandas.Series
        As the file has them.
    separator : str, optional
        What separates cells: beside semicolons ``1,234`` has decimals, beside others thousands.

    Returns
    -------
    list of dict
        ``decimal`` and ``thousands`` as words of ``SIGNS``, the likelier first; empty
        where no column becomes one of numbers by them.
    """
    texts = [_counted(column) for column in columns if column.dtype.kind not in "biufmM"]
    best, found = (0, 0, 0), list[dict[str, str]]()
    for decimal, thousands in _READINGS if separator == ";" else _READINGS[::-1]:
        spelling = Spelling(decimal=sign(decimal), thousands=sign(thousands))
        scores = [_gained(counts, spelling) for counts in texts]
        gained, changed = (sum(score[k] for score in scores if score) for k in (0, 1))
        options = {"decimal": decimal} if decimal != "dot" else {}
        options |= {"thousands": thousands} if thousands else {}
        score = gained, changed, -len(options)
        if None in scores or not gained or score < best:
            continue
        best, found = score, [*(found if score == best else ()), options]
    return found


def _counted(column: Any) -> dict[str, int]:
    """Count the texts of a column that are no missing cells."""
    cells = (cell.strip() for cell in column if isinstance(cell, str))
    counts = Counter(cell for cell in cells if cell)
    return {text: count for text, count in counts.items() if text not in MISSING_WORDS}


def _gained(counts: Mapping[str, int], spelling: Spelling) -> tuple[int, int] | None:
    """Return how many cells become numbers by a spelling, and how many it changes.

    (0, 0) where the column does not become one of numbers, None where its dot begins decimals.
    """
    new = {text: spelling.number(text) for text in counts}
    numeric = [text for text in counts if _ANY_NUMBER.fullmatch(new[text])]
    if sum(counts[text] for text in numeric) < _MOSTLY * sum(counts.values()):
        return 0, 0
    if spelling.thousands == "." and any("." in text and text == new[text] for text in numeric):
        return None
    gained = sum(counts[text] for text in numeric if not _ANY_NUMBER.fullmatch(text))
    return gained, sum(counts[text] for text in numeric if text != new[text])


_MOSTLY = 0.9
"""Share of a column's texts that are numbers where it is one of numbers spelt otherwise."""
_READINGS = (
    ("comma", ""),
    ("comma", "dot"),
    ("comma", "space"),
    ("comma", "apostrophe"),
    ("dot", "space"),
    ("dot", "apostrophe"),
    ("dot", "comma"),
)
"""Decimal and thousands signs: of equally good ones the first, or the last beside commas."""

PLAIN = Spelling()
"""As programs write tables."""
VERBATIM = Spelling(())
"""Where no word is a missing cell."""


def tidied(
    column: Any, spelling: Spelling = PLAIN, values: Iterable[str] = ()
) -> tuple[Any, Counter[str]]:
    """Return a column whose missing cells are NaN, of numbers where all others are numbers.

    Parameters
    ----------
    column : pandas.Series
        As a file has it; left as it is.
    spelling : Spelling
        How its texts are spelt.
    values : iterable of str
        Texts that are values here, though the same words are missing cells elsewhere.

    Returns
    -------
    (pandas.Series, Counter)
        And the cells of each spelling of a missing one (``""``: a blank).
    """
    import pandas as pd

    blank = int(column.isna().sum())
    spelt: Counter[str] = Counter({"": blank} if blank else {})
    custom = {cell_text(_spelt(word, spelling)) for word in spelling.missing}
    if column.dtype.kind in "biuf":
        wrong = {word for word in custom if word is not None and _NUMBER.fullmatch(word)}
        for word in sorted(wrong):
            found = (column == float(word)).fillna(False).to_numpy(dtype=bool)
            if found.any():
                column, spelt[word] = column.where(~found), int(found.sum())
        return column, spelt
    if column.dtype.kind in "mM":
        return column, spelt
    kept, words = frozenset(values), frozenset(spelling.missing)
    try:
        codes, uniques = pd.factorize(column, use_na_sentinel=True)
    except TypeError:  # lists and the like, which are refused where they are used
        return column, spelt
    counts = np.bincount(codes[codes >= 0], minlength=len(uniques))
    cells: list[Any] = []
    for cell, count in zip(list(uniques), counts.tolist(), strict=True):
        new = _spelt(cell, spelling)
        if isinstance(cell, str) and cell not in kept:
            word = cell.strip()
            if not word or word in words or cell_text(new) in custom:
                spelt[word] += count
                new = None
        elif not isinstance(cell, str) and custom and cell_text(cell) in custom:
            spelt[str(cell_text(cell))] += count
            new = None
        cells.append(new)
    told = [canonical(cell) for cell in cells]
    present = [cell for cell in told if cell is not None]
    if present and all(isinstance(cell, int | float) for cell in present):
        cells = told
    array = _objects([*cells, None])[codes]
    if cells is told and -1 not in codes and None not in told and _are_int64(told):
        return pd.Series(array.astype(np.int64), column.index, name=column.name), spelt
    if cells is told and all(abs(cell) <= 2**53 for cell in present if isinstance(cell, int)):
        values_ = np.array([math.nan if cell is None else float(cell) for cell in array])
        return pd.Series(values_, column.index, name=column.name), spelt
    return pd.Series(array, column.index, dtype=object, name=column.name), spelt


def _are_int64(cells: Sequence[Any]) -> bool:
    return all(isinstance(cell, int) and -(2**63) <= cell < 2**63 for cell in cells)


def _spelt(cell: Any, spelling: Spelling) -> Any:
    return spelling.number(cell) if isinstance(cell, str) else cell


# A leading zero makes a code; an exponent without a sign may be one too (1E5).
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]\d+)?", re.ASCII)
_ANY_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
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
        if len(text) < 400 and _NUMBER.fullmatch(text):
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


# ---------------------------------------------------------------------------- arrays
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
    found: Counter[str] = Counter()
    for cell, count in column.dropna().value_counts().items():
        try:
            _number(0, cell)
        except NotANumberError:
            found[str(cell).strip()] += count
    return found


def texts(column: Any) -> NDArray[Any]:
    """Return a column as an object array of texts."""
    return _objects([cell_text(cell) for cell in _cells(column)])


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
    return _objects([_whole(cell) if isinstance(cell, int) else cell for cell in cells])


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


def is_measured(column: Any) -> bool:
    """Return whether a column of more than 20 different texts holds numbers with a unit.

    Examples
    --------
    >>> import pandas as pd
    >>> [is_measured(pd.Series(f"{k}{unit}" for k in range(30))) for unit in (" %", ",00 EUR", "")]
    [True, True, False]
    """
    if column.dtype.kind in "biufmM":
        return False
    found = [_MEASURED.fullmatch(cell.strip()) for cell in column.dropna() if isinstance(cell, str)]
    units = {match.groups() for match in found if match and any(match.groups())}
    fitting = sum(match is not None and any(match.groups()) for match in found)
    return 0 < len(units) <= 2 and fitting >= _MOSTLY * len(found) and column.nunique() > 20


_MEASURED = re.compile(r"([€$£¥]|[A-Z]{3} )? ?[+-]?\d[\d.,' ]*?\s?([%‰€$£¥]|°?[A-Za-z]{1,4})?")


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
        if not text or _ANY_NUMBER.fullmatch(text) or text.lower().lstrip("+-") == "inf":
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


def _objects(cells: list[Any]) -> NDArray[Any]:
    """Return an array that holds the cells as they are."""
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array
