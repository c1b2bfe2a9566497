"""CSV files that a user of the page brought along: kept under names of ours, for their owner alone.

A file's name is the begin of its content's SHA-256: the same file is kept once. What there is to
say of it is what ``fl-kit check`` says.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

from fl_app.config.options import Task
from fl_app.data.file_report import CheckReport, report
from fl_app.data.files import read_frame
from fl_app.errors import DataError, InputError, printable
from fl_app.home import home_dir

__all__ = [
    "KEEP_DAYS",
    "MAX_BYTES",
    "MAX_COLUMNS",
    "MAX_TEXTS",
    "Upload",
    "columns",
    "is_id",
    "open",
    "save",
    "tidy",
    "touch",
]

MAX_BYTES = 20 * 10**6
"""Size of the largest file."""
MAX_COLUMNS = 500
"""Most columns of a file."""
MAX_TEXTS = 500_000
"""Most cells of a file that are no numbers: to look at them takes long."""
KEEP_DAYS = 7
"""Days that a file stays after it was last looked at or run on."""
_LONGEST_HEADER = 50_000
_ID = re.compile(r"[0-9a-f]{16}")
_FORMAT = "one CSV file: UTF-8 text, the names of the columns in its first line"
_GUESSES = ("target", "label", "class", "y", "outcome")


@dataclass(frozen=True)
class Upload:
    """A file, and what a run would make of it with the target that was chosen.

    Parameters
    ----------
    id : str
        16 hexadecimal digits.
    path : Path
        Where it is.
    columns : tuple of str
        Names of its columns.
    target : str
        Column to predict: as chosen, else one called ``target``, ``label``, ``class``, ``y`` or
        ``outcome``, else the last.
    task : {"regression", "classification"}
        As chosen, else guessed from the target's cells.
    options : tuple of str
        The further overrides ``dataset.…`` of a run.
    sentences : tuple of str
        What ``fl-kit check`` says of it.
    usable : bool
        Whether a run can use it.
    """

    id: str
    path: Path
    columns: tuple[str, ...]
    target: str
    task: Task
    options: tuple[str, ...]
    sentences: tuple[str, ...]
    usable: bool


def is_id(text: str) -> bool:
    """Return whether a text has the form of an upload's id."""
    return _ID.fullmatch(text) is not None


def save(home: Path | None, content: bytes, filename: str) -> Upload:
    """Keep a file, if it is a table.

    Parameters
    ----------
    home : Path or None
        See :func:`fl_app.home.home_dir`.
    content : bytes
        The file.
    filename : str
        What the user calls it, for messages alone.

    Returns
    -------
    Upload
        With the guessed target; perhaps not usable so.

    Raises
    ------
    InputError
        If it is too large or no table of two columns or more, or if it cannot be kept.
    """
    _check_bytes(content, filename)
    name = hashlib.sha256(content).hexdigest()[:16]
    folder = _folder(home)
    if (folder / f"{name}.csv").exists():
        touch(name, home)
        return open(name, home)
    part = folder / f".{name}-{os.getpid()}-{time.monotonic_ns()}.csv"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.parent.chmod(0o700)
        _write(part, content)
        try:
            frame = read_frame(part)
        except DataError as error:
            why = error.allowed.replace(part.name, shlex.quote(filename))
            raise InputError("file", filename, why) from None
        _check_columns(tuple(frame.columns), filename)
        texts = len(frame) * sum(column.kind not in "biuf" for column in frame.dtypes)
        if texts > MAX_TEXTS:
            allowed = (
                f"it has {texts} cells of text, at most {MAX_TEXTS} are taken; numbers are free"
            )
            raise InputError("file", filename, allowed)
        part.rename(folder / f"{name}.csv")
    except OSError as error:
        allowed = f"it cannot be kept in {folder} ({error.strerror or error})"
        raise InputError("file", filename, allowed) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return open(name, home)


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _check_bytes(content: bytes, filename: str) -> None:
    """Refuse what a reader of CSV would take long over, or take for something else."""
    if len(content) > MAX_BYTES:
        size = f"it has {len(content) / 1e6:.1f} MB, at most {MAX_BYTES // 10**6} MB are taken"
        raise InputError("file", filename, size)
    if not content.strip():
        raise InputError("file", filename, f"it is empty; give {_FORMAT}")
    if b"\0" in content:
        raise InputError("file", filename, f"it is no text; give {_FORMAT}")
    lines = io.BytesIO(content.replace(b"\r", b"\n"))
    if max(line.count(sign) for line in lines for sign in b",;\t|") >= 20 * MAX_COLUMNS:
        raise InputError("file", filename, f"a line is too long; at most {MAX_COLUMNS} columns")


def _check_columns(names: Sequence[str], filename: str) -> None:
    if len(names) < 2:
        allowed = "it has one column only; a target and a column to predict it from are needed"
        raise InputError("file", filename, allowed)
    if len(names) > MAX_COLUMNS:
        raise InputError(
            "file", filename, f"it has {len(names)} columns, at most {MAX_COLUMNS} are taken"
        )
    if sum(map(len, names)) > _LONGEST_HEADER:
        raise InputError("file", filename, "the names of its columns are too long")
    if odd := next((name for name in names if printable(name) != name), None):
        allowed = (
            f"the column {printable(odd, 40)!r} has line ends or signs that cannot be shown, or "
            "looks like an address with a password; give it another name"
        )
        raise InputError("file", filename, allowed)


def columns(name: str, home: Path | None = None) -> tuple[str, ...]:
    """Return the names of an upload's columns.

    Raises
    ------
    InputError
        If there is no such upload.
    """
    return open(name, home).columns


def open(
    name: str,
    home: Path | None = None,
    *,
    target: str = "",
    task: str = "",
    key: str = "",
    features: Sequence[str] = (),
) -> Upload:
    """Look at an upload with a target.

    Parameters
    ----------
    name : str
        Its id.
    home : Path, optional
        See :func:`fl_app.home.home_dir`.
    target, task, key : str
        Column to predict, its task and the column of the natural clients; "" to guess, or none.
    features : sequence of str
        Columns to predict from; empty: all others.

    Raises
    ------
    InputError
        If there is no such upload.
    """
    path = _folder(home) / f"{name}.csv"
    try:
        if not is_id(name):
            raise FileNotFoundError
        status = path.stat()
    except OSError:
        raise InputError(
            "upload", name, "there is no such file any more; upload it again"
        ) from None
    stamp = (status.st_mtime_ns, status.st_size)
    return _looked_at(name, path, stamp, target, task, key, tuple(features))


@lru_cache(maxsize=32)
def _looked_at(
    name: str,
    path: Path,
    stamp: tuple[int, int],
    target: str,
    task: str,
    key: str,
    features: tuple[str, ...],
) -> Upload:
    names = _names(path, stamp)
    target = target or _guess(names)
    kind = cast(Task, task) if task else None
    checked = report(path, target, kind, features or None, None, key or None)
    roles = checked.roles
    sentences, one_class = _sentences(checked), len(checked.classes) == 1
    if one_class:  # which a node could live with, whose fellows have other ones
        sentences = [s for s in sentences if not s.endswith("in the other nodes' files at least")]
        sentences.append(f"problem: {target} is the same in every row: at least 2 classes")
    return Upload(
        name,
        path,
        names,
        target,
        "classification" if roles is None else roles.task,
        checked.options,
        tuple(sentences),
        checked.usable and not one_class,
    )


@lru_cache(maxsize=32)
def _names(path: Path, stamp: tuple[int, int]) -> tuple[str, ...]:
    return tuple(read_frame(path).columns)


def _guess(names: Sequence[str]) -> str:
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[guess] for guess in _GUESSES if guess in lower), names[-1])


def _sentences(checked: CheckReport) -> list[str]:
    """Return the report's lines without its table and what names the file."""
    lines = checked.render().split("\n")
    begin = f"{checked.rows} rows, {len(checked.columns)} columns"
    table = len(checked.columns) + 1 if checked.columns else 0
    return [
        begin,
        *(line for line in lines[1 + table :] if not line.startswith(("usable: ", "try: "))),
    ]


def touch(name: str, home: Path | None = None) -> None:
    """Note that an upload is in use, so that :func:`tidy` leaves it."""
    with contextlib.suppress(OSError):
        file = _folder(home) / f"{name}.csv"
        # Only the time of access: the time of its last change tells its content apart.
        os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def tidy(home: Path | None = None) -> int:
    """Remove uploads that were not used for a week, and what a killed :func:`save` left.

    Returns
    -------
    int
        How many.
    """
    removed = 0
    for file in _folder(home).glob("*.csv"):
        with contextlib.suppress(OSError):
            status = file.stat()
            if time.time() - max(status.st_atime, status.st_mtime) > KEEP_DAYS * 86400:
                file.unlink()
                removed += 1
    return removed


def _folder(home: Path | None) -> Path:
    return home_dir(home) / "dashboard" / "uploads"
