"""One column of a pandas DataFrame as an array: numbers, texts, or values as they are.

A missing cell is NaN among numbers and None elsewhere; an empty text is a missing cell. Equal
values become equal cells whatever file they came from: 1 and 1.0 are the same level and label.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import DataError

__all__ = [
    "NotANumberError",
    "cell_text",
    "is_missing",
    "is_text",
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
        cells = _cells(column)
        values = np.array([_number(row, cell) for row, cell in enumerate(cells)])
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        row = int(infinite[0])
        raise _infinite(column, values[row], row)
    return np.asarray(values, dtype=np.float64)


def texts(column: Any) -> NDArray[Any]:
    """Return a column as an object array of texts."""
    return _objects([cell_text(cell) for cell in _cells(column)])


def plain(column: Any) -> NDArray[Any]:
    """Return a column as an object array of int (also for 1.0 and True), float and str.

    Raises
    ------
    DataError
        At the first infinite number.
    """
    cells = [_plain(cell) for cell in _cells(column)]
    for row, cell in enumerate(cells):
        if isinstance(cell, float) and math.isinf(cell):
            raise _infinite(column, cell, row)
    return _objects(cells)


def cell_text(cell: object) -> str | None:
    """Return a cell as the text of a level, None where it is missing.

    Examples
    --------
    >>> [cell_text(cell) for cell in (1, 1.0, "1", True, "", float("nan"))]
    ['1', '1', '1', 'True', None, None]
    """
    if cell is None or cell == "" or cell != cell:
        return None
    if isinstance(cell, float | Decimal | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell)


def is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which cells of a column of this module are missing."""
    if values.dtype == object:
        return np.array([value is None for value in values], dtype=bool)
    return np.asarray(np.isnan(values))


def is_text(column: Any) -> bool:
    """Return whether less than half of a column's values are numbers, or spell some."""
    import pandas as pd

    filled = column.dropna()
    if column.dtype.kind in "biuf" or not len(filled):
        return False
    return bool(pd.to_numeric(filled.astype(str), errors="coerce").notna().mean() < 0.5)


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
    return [None if cell == "" else cell for cell in cells]


def _number(row: int, cell: Any) -> float:
    if cell is None:
        return math.nan
    if isinstance(cell, bool | int | float | str | Decimal | np.number | np.bool_):
        try:
            return float(cell)
        except ValueError:
            pass
    raise NotANumberError(row, cell)


def _plain(cell: Any) -> Cell:
    if isinstance(cell, np.generic):
        cell = cell.item()
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, int | float | Decimal):
        return _whole(int(cell)) if float(cell).is_integer() else float(cell)
    return str(cell)


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
