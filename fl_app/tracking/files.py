"""Files that are whole or not there: lines, JSON and arrays."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import FlAppError
from fl_app.home import whole, write
from fl_app.tracking.records import Arrays

__all__ = [
    "append",
    "json_line",
    "json_or_empty",
    "npz_bytes",
    "plain",
    "read_lines",
    "read_npz",
    "share",
    "sync_dir",
    "write",
    "write_npz",
]


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the objects of a file of JSON lines.

    Parameters
    ----------
    path : Path
        The file; one that does not exist has no lines.
    offset : int, default 0
        Byte at which a line begins.

    Yields
    ------
    dict, int
        The object, and the offset after its line. A last line without its end is not there yet;
        a line that is no JSON object (a disk that lost power can leave one) is skipped.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict):
                yield content, offset


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write named arrays so that the file is whole or not there; no pickle.

    The bytes depend on names, order and values alone.

    Parameters
    ----------
    path : Path
        Where to; its directory exists.
    arrays : mapping of str to ndarray
        The arrays.

    Raises
    ------
    ValueError
        For an array of Python objects.
    """
    with whole(path) as file:
        _write_npz(file, arrays)


def npz_bytes(arrays: Arrays) -> memoryview:
    """Return named arrays as the content of an ``.npz``: equal arrays, equal bytes.

    Raises
    ------
    ValueError
        For an array of Python objects.
    """
    buffer = io.BytesIO()
    _write_npz(buffer, arrays)
    return buffer.getbuffer()


def _write_npz(file: IO[bytes], arrays: Arrays) -> None:
    # numpy.savez stores the time of day and cannot take an array that is named "file".
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            info.external_attr = 0o600 << 16
            with archive.open(info, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read named arrays; no pickle is loaded.

    Parameters
    ----------
    path : Path
        A file of :func:`write_npz` or ``numpy.savez``.

    Returns
    -------
    dict of str to ndarray
    """
    # Given a path, NumPy leaves a file that is no archive open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def append(path: Path, lines: bytes, sync: bool = True) -> None:
    """Append whole lines; what could not be written whole leaves nothing behind.

    Parameters
    ----------
    path : Path
        The file; made where it does not exist, for its owner alone.
    lines : bytes
        They end with a line's end.
    sync : bool, default True
        Whether they are on the disk when this returns, whatever the machine does next.

    Raises
    ------
    OSError, FlAppError
        If they could not be written.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(file).st_size
        try:
            written = os.write(file, lines)
            if written < len(lines):
                raise FlAppError(f"{path}: only {written} of {len(lines)} bytes were written")
            if sync:
                os.fsync(file)
        except (OSError, FlAppError):
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def json_line(content: Mapping[str, Any]) -> bytes:
    """Return an object as a line of JSON, NumPy's values as JSON's."""
    return _JSON.encode(dict(content)).encode() + b"\n"


def share(file: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def sync_dir(path: Path) -> None:
    """Put a folder's entries on the disk."""
    with contextlib.suppress(OSError):  # not every system can
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def json_or_empty(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there is an empty one."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}


def plain(value: Any) -> Any:
    """Turn what NumPy adds to JSON's types into them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-ready")


_JSON = json.JSONEncoder(default=plain)
