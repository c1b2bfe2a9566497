"""From a pandas DataFrame of raw columns to a table of features."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.columns import NotANumberError, numbers, texts
from fl_app.data.encoding import Encoding, nearly
from fl_app.data.spelling import tidied
from fl_app.data.table import Table
from fl_app.errors import DataError

__all__ = ["features_from_frame"]

log = logging.getLogger("fl_app")


def features_from_frame(frame: Any, encoding: Encoding) -> Table:
    """Read the features of raw rows; there is no target.

    Parameters
    ----------
    frame : pandas.DataFrame
        Raw rows; columns beyond the encoding's are ignored.
    encoding : Encoding
        Names the columns.

    Returns
    -------
    Table
        With an empty target of shape (n, 0).

    Raises
    ------
    DataError
        If a column is missing or there twice, or a numeric one holds text or an infinite number.
    """
    for column in encoding.columns:
        times = int((frame.columns == column).sum())
        if times != 1:
            found = "a missing column" if times == 0 else f"{times} columns"
            raise DataError(column, found, f"the columns {', '.join(encoding.columns)}, each once")
    n = len(frame)
    numeric = np.empty((n, len(encoding.numeric)))
    for position, column in enumerate(encoding.numeric):
        numeric[:, position] = _numbers(column, tidied(frame[column], encoding.spelling)[0])
    names = tuple(name for name, _ in encoding.levels)
    categorical = np.empty((n, len(names)), dtype=object)
    for position, (column, levels) in enumerate(encoding.levels):
        cells = texts(tidied(frame[column], encoding.spelling, levels)[0])
        categorical[:, position] = cells
        if near := nearly(cells, levels):
            log.warning("%s: %s; a cell that is no level counts as OTHER", column, near)
    return Table(
        encoding.task,
        encoding.columns,
        numeric,
        encoding.numeric,
        categorical,
        names,
        np.empty((n, 0)),
        (),
    )


def _numbers(name: str, column: Any) -> NDArray[np.float64]:
    """Return a column's cells as numbers; NaN where one is missing, whatever stands for it."""
    try:
        return numbers(column)
    except NotANumberError as error:
        raise DataError(name, error, "numbers or missing cells") from None
