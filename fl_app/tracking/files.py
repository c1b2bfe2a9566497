"""Arrays as files and as bytes, without pickle."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fl_app.tracking.records import Arrays

__all__ = ["is_whole_npz", "npz_bytes", "plain", "read_npz", "sync_dir", "write_npz"]


def write_npz(path: Path, arrays: Arrays, sync: bool = True) -> None:
    """Write named arrays; no pickle. The bytes depend on names, order and values alone.

    A file of its own name at once: what makes it count comes later.

    Parameters
    ----------
    path : Path
        Where to; its directory exists.
    arrays : mapping of str to ndarray
        The arrays.
    sync : bool, default True
        Whether it is on the disk, with its name, when this returns.

    Raises
    ------
    ValueError
        For an array of Python objects.
    """
    with open(path, "wb") as file:
        _write_npz(file, arrays)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    if sync:
        # Of a new file most systems have written the name by then, so this costs little.
        sync_dir(path.parent)


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


def read_npz(path: Path | IO[bytes]) -> dict[str, NDArray[Any]]:
    """Read named arrays; no pickle is loaded.

    Parameters
    ----------
    path : Path or binary file
        A file of :func:`write_npz` or ``numpy.savez``.

    Returns
    -------
    dict of str to ndarray
    """
    # Given a path, NumPy leaves a file that is no archive open.
    opened = path.open("rb") if isinstance(path, Path) else path
    with opened as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def is_whole_npz(path: Path) -> bool:
    """Return whether a file is there and every byte of its arrays as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (FileNotFoundError, EOFError, ValueError, zipfile.BadZipFile):
        return False


def sync_dir(path: Path) -> None:
    """Put a folder's entries on the disk."""
    with contextlib.suppress(OSError):  # not every system can
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def plain(value: Any) -> Any:
    """Turn what NumPy adds to JSON's types into them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-ready")
