"""Reads one CSV or Parquet file into a pandas DataFrame, or says in one line why it cannot.

CSV is read as ``pandas.read_csv`` reads it by default (comma, header in the first line, its words
for a missing cell), so that rows which a user reads so are the rows that a model has seen.

References
----------
pandas, ``read_csv``: https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html
"""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_app.errors import DataError

__all__ = ["read_frame"]

log = logging.getLogger("fl_app")

_WANTED = "give one CSV (.csv) or Parquet (.parquet) file"


def read_frame(path: str | Path) -> Any:
    """Read a file.

    Parameters
    ----------
    path : str or Path
        A file whose name ends in ``.csv`` (UTF-8, with or without byte order mark), ``.parquet`` or
        ``.pq``.

    Returns
    -------
    pandas.DataFrame
        At least one row; column names are distinct texts. Columns without a name are left out
        with a warning: as a rule they are row numbers that pandas wrote.

    Raises
    ------
    DataError
        If there is no such file, or it cannot be read, or it holds no rows, or two of its columns
        have the same name.
    """
    file = Path(path)
    if file.is_dir():
        raise _refuse(file, f"it is a directory; {_WANTED}")
    if not file.exists():
        raise _refuse(file, f"there is no such file; {_WANTED}")
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise _refuse(file, f"its name ends in {file.suffix or 'nothing'}; {_WANTED}")
    try:
        if file.stat().st_size == 0:
            raise _refuse(file, f"it is empty (0 bytes); {_WANTED}")
        frame = reader(file)
    except OSError as error:
        raise _refuse(file, f"it cannot be read ({error.strerror or error}); {_WANTED}") from None
    if not len(frame):
        raise _refuse(file, "it has a header but no rows; give at least one row")
    return frame


def _read_csv(file: Path) -> Any:
    import pandas as pd

    header = _check_head(file)
    try:
        frame = pd.read_csv(file, encoding="utf-8", low_memory=False)
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None
    except pd.errors.ParserError as error:
        raise _refuse(file, _explain(str(error))) from None
    unnamed = [j for j, name in enumerate(header) if not name]
    if unnamed:
        log.warning("%s: left out %d column(s) without a name", file.name, len(unnamed))
    return frame[[c for j, c in enumerate(frame.columns) if j not in unnamed]]


def _check_head(file: Path) -> list[str]:
    """Return the header after checking what pandas would silently change."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            filled = (record for record in csv.reader(lines) if record)
            header, first = next(filled, []), next(filled, [])
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None
    except csv.Error as error:
        raise _refuse(file, f"it is no CSV text ({error})") from None
    if not header:
        raise _refuse(file, "it has no header; the first line must name the columns")
    if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])):
        sign = "tabs" if found[0] == "\t" else repr(found[0])
        raise _refuse(file, f"its cells are separated by {sign}; separate them by commas")
    if len(first) > len(header):
        raise _refuse(
            file,
            f"row 1 has {len(first)} cells, the header {len(header)}; give each column one name",
        )
    _check_names(file, [name for name in header if name])
    return header


def _read_parquet(file: Path) -> Any:
    import pandas as pd
    import pyarrow
    import pyarrow.parquet

    try:
        _check_names(file, pyarrow.parquet.read_schema(file).names)
        frame = pd.read_parquet(file, engine="pyarrow").reset_index(drop=True)
    except pyarrow.ArrowException as error:
        reason = str(error).partition(".")[0]
        raise _refuse(file, f"it is no Parquet file ({reason})") from None
    return frame.set_axis([str(name) for name in frame.columns], axis=1)


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}


def _check_names(file: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _refuse(file, f"two columns are named {twice[0]!r}; give each its own name")


def _explain(text: str) -> str:
    """Say pandas' parser error in the words of a table."""
    found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", text)
    if found:
        expected, line, saw = found.groups()
        return f"line {line} has {saw} cells, the header {expected}; quote cells that hold commas"
    found = re.search(r"EOF inside string starting at row (\d+)", text)
    if found:
        return f"a quote opened in row {found[1]} is never closed"
    return f"it is no CSV text ({text.removeprefix('Error tokenizing data. C error: ')})"


def _not_utf8(file: Path, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return _refuse(file, f"it is not UTF-8 text (byte 0x{byte:02x}); save it as UTF-8")


def _refuse(file: Path, why: str) -> DataError:
    """Name the file by the end of its path, which tells it apart."""
    name = str(file)
    return DataError("dataset.path", name if len(name) <= 80 else f"...{name[-77:]}", why)
