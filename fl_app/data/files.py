"""Reads one CSV or Parquet file into a pandas DataFrame, or says in one line why it cannot.

CSV is read as ``pandas.read_csv`` reads it (header in the first line), but for three things: what
separates the cells is told from the body, a column with a code like ``01234`` is one of texts, and
missing cells and numbers are those of :func:`fl_app.data.spelling.tidied`, in Parquet too.

References
----------
pandas, ``read_csv``: https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html
"""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
import shlex
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from fl_app.data.spelling import PLAIN, Spelling, tidied
from fl_app.errors import DataError

__all__ = ["read_frame", "separator_of", "spelt"]

log = logging.getLogger("fl_app")

_WANTED = "give one CSV (.csv, .tsv, also .gz) or Parquet (.parquet) file"
_SEPARATORS = ",;\t|"
_HEAD = 200
"""Lines from which the separator is told."""
_SPELT, _SEPARATOR = "spelt", "separator"


def read_frame(
    path: str | Path,
    separator: str | None = None,
    spelling: Spelling | None = PLAIN,
    values: Mapping[str, Iterable[str]] | None = None,
) -> Any:
    """Read a file.

    Parameters
    ----------
    path : str or Path
        A file whose name ends in ``.csv`` or ``.tsv`` (UTF-8, with or without byte order mark, also
        packed with a further ``.gz``), ``.parquet`` or ``.pq``.
    separator : str, optional
        What separates the cells of CSV; by default the one of comma, semicolon, tab and ``|`` with
        which most of the first lines have as many cells as the header.
    spelling : Spelling or None
        How texts spell missing cells and numbers; None leaves all cells of CSV as they are.
    values : mapping of str to iterable of str, optional
        By column the texts that are values, though the same words are missing cells elsewhere.

    Returns
    -------
    pandas.DataFrame
        At least one row; column names are distinct texts; a missing cell is NaN, and :func:`spelt`
        tells how it is spelt. A named index of a Parquet file is columns. Columns without a name
        are left out with a warning: as a rule they are row numbers that pandas wrote.

    Raises
    ------
    DataError
        If there is no such file, or it cannot be read, or it holds no rows, or two of its columns
        have the same name.
    """
    import pandas as pd

    file = Path(path)
    if file.is_dir():
        raise _refuse(file, f"it is a directory; {_WANTED}")
    if not file.exists():
        raise _refuse(file, f"there is no such file; {_WANTED}")
    ending = re.search(r"\.([ct]sv(\.gz)?|parquet|pq)$", file.name.lower())
    if ending is None:
        raise _refuse(file, f"its name ends in {file.suffix or 'nothing'}; {_WANTED}")
    try:
        if file.stat().st_size == 0:
            raise _refuse(file, f"it is empty (0 bytes); {_WANTED}")
        is_csv = ending[1][1:3] == "sv"
        plain = spelling and replace(spelling, missing=PLAIN.missing)
        frame = _read_csv(file, separator, plain != PLAIN) if is_csv else _read_parquet(file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise _refuse(file, f"it cannot be read ({reason}); {_WANTED}") from None
    if not len(frame):
        raise _refuse(file, "it has a header but no rows; give at least one row")
    if spelling is None:
        return frame
    words, columns, attrs = {}, {}, frame.attrs
    for name in frame.columns:
        columns[name], words[name] = tidied(frame[name], spelling, (values or {}).get(name, ()))
    frame = pd.DataFrame(columns, frame.index)
    frame.attrs = {**attrs, _SPELT: words}
    return frame


def spelt(frame: Any) -> Mapping[str, Counter[str]]:
    """Return the missing cells of each column of :func:`read_frame` by spelling; "" is a blank."""
    return cast("Mapping[str, Counter[str]]", frame.attrs.get(_SPELT, {}))


def separator_of(frame: Any) -> str:
    """Return what separates the cells of the CSV file that a frame was read from, else ""."""
    return str(frame.attrs.get(_SEPARATOR, ""))


# ---------------------------------------------------------------------------- CSV
def _is_packed(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def _open_bytes(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file) if _is_packed(file) else file.open("rb"))


def _open(file: Path) -> TextIO:
    return io.TextIOWrapper(_open_bytes(file), encoding="utf-8-sig", newline="")


def _read_csv(file: Path, separator: str | None, as_texts: bool) -> Any:
    import pandas as pd

    try:
        with _open(file) as lines:
            head = list(islice(lines, _HEAD))
        separator = separator or _separator(head)
        header = _check_head(file, separator)
        options: dict[str, Any] = {
            "sep": separator,
            "encoding": "utf-8",
            "keep_default_na": False,
            "na_values": [""],
            "low_memory": False,
        }
        frame = pd.read_csv(file, dtype=str if as_texts else None, **options)
        numeric = [j for j, dtype in enumerate(frame.dtypes) if dtype.kind in "iuf"]
        if numeric and _has_codes(file, separator):
            texts = pd.read_csv(file, usecols=numeric, dtype=str, **options)
            for name, column in texts.items():
                if column.str.fullmatch(r"\s*0\d+\s*").any():
                    frame[name] = column
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None
    except csv.Error as error:
        raise _refuse(file, f"it is no CSV text ({error})") from None
    except pd.errors.ParserError as error:
        raise _refuse(file, _explain(str(error), separator or ",")) from None
    unnamed = [j for j, name in enumerate(header) if not name]
    if unnamed:
        log.warning("%s: left out %d column(s) without a name", file.name, len(unnamed))
    frame = frame[[c for j, c in enumerate(frame.columns) if j not in unnamed]]
    frame.attrs[_SEPARATOR] = separator
    return frame


def _separator(head: Sequence[str]) -> str:
    """Tell what separates the cells: with it most lines have as many cells as the header."""
    best, fits = ",", 0.0
    for separator in _SEPARATORS:
        try:
            widths = [len(record) for record in csv.reader(head, delimiter=separator) if record]
        except csv.Error:
            continue
        header, *body = widths or [1]
        share = body.count(header) / len(body) if body else 1.0
        if header > 1 and share > fits:
            best, fits = separator, share
    return best


def _has_codes(file: Path, separator: str) -> bool:
    """Return whether a cell may be a whole number with a leading zero, which pandas would drop."""
    edge = rf'["\s{re.escape(separator)}]'
    code = re.compile(rf"(?:^|{edge})0\d+(?:$|{edge})")
    with _open(file) as lines:
        return any(code.search(line) for line in lines)


def _check_head(file: Path, separator: str) -> list[str]:
    """Return the header after checking what pandas would silently change."""
    with _open(file) as lines:
        filled = (record for record in csv.reader(lines, delimiter=separator) if record)
        header, first = next(filled, []), next(filled, [])
    if not header:
        raise _refuse(file, "it has no header; the first line must name the columns")
    if len(first) > len(header):
        raise _refuse(
            file,
            f"row 1 has {len(first)} cells, the header {len(header)}; give each column one name",
        )
    _check_names(file, [name for name in header if name])
    return header


# ---------------------------------------------------------------------------- Parquet
def _read_parquet(file: Path) -> Any:
    import pandas as pd
    import pyarrow
    import pyarrow.parquet

    try:
        _check_names(file, pyarrow.parquet.read_schema(file).names)
        frame = pd.read_parquet(file, engine="pyarrow")
    except pyarrow.ArrowException as error:
        reason = str(error).partition(".")[0]
        raise _refuse(file, f"it is no Parquet file ({reason})") from None
    named = [name for name in frame.index.names if name is not None]
    if named:
        frame = frame.reset_index(named)
    elif not isinstance(frame.index, pd.RangeIndex):
        log.warning("%s: left out 1 column(s) without a name", file.name)
    frame = frame.reset_index(drop=True)
    return frame.set_axis([str(name) for name in frame.columns], axis=1)


def _check_names(file: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _refuse(file, f"two columns are named {twice[0]!r}; give each its own name")


def _explain(text: str, separator: str) -> str:
    """Say pandas' parser error in the words of a table."""
    match = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", text)
    if match:
        expected, line, saw = match.groups()
        names = {",": "commas", ";": "semicolons", "\t": "tabs"}
        sign = names.get(separator, repr(separator))
        return f"line {line} has {saw} cells, the header {expected}; quote cells that hold {sign}"
    match = re.search(r"EOF inside string starting at row (\d+)", text)
    if match:
        return f"a quote opened in row {match[1]} is never closed"
    return f"it is no CSV text ({text.removeprefix('Error tokenizing data. C error: ')})"


def _not_utf8(file: Path, error: UnicodeDecodeError) -> DataError:
    """Name the first line that is none, and a command that converts a file of Windows."""
    byte, number = error.object[error.start], 0
    with _open_bytes(file) as lines, suppress(UnicodeDecodeError):
        for line in lines:
            number += 1
            line.decode()
    code = "UTF-16" if byte in b"\xff\xfe" and number == 1 else "WINDOWS-1252"
    name, ending = shlex.quote(file.name), ".tsv" if ".tsv" in file.name.lower() else ".csv"
    command = f"iconv -f {code} -t UTF-8"
    command = f"gzip -dc {name} | {command}" if _is_packed(file) else f"{command} {name}"
    return _refuse(
        file,
        f"it is not UTF-8 text (byte 0x{byte:02x} in line {number}); save it as UTF-8, for example "
        f"with: {command} > utf8{ending}",
    )


def _refuse(file: Path, why: str) -> DataError:
    """Name the file by the end of its path, which tells it apart."""
    name = str(file)
    return DataError("dataset.path", name if len(name) <= 80 else f"...{name[-77:]}", why)
