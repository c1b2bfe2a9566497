"""The disk under a run's journal: what kind it is, when it is full, and room kept for the end.

A run whose disk is full ends, and its journal says so: for that a file ``room`` of 1 MB lies beside
it while the run goes on, and goes when nothing else fits any more.

References
----------
SQLite, result codes: https://www.sqlite.org/rescode.html
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from pathlib import Path

from fl_app.errors import one_line

__all__ = ["give_room", "is_full", "keep_room", "shared_disk", "trouble"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ROOM = "room"
_ROOM_BYTES = 1 << 20
_LITTLE = 4 << 20
_SHARED_DISKS = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "gpfs", "ceph", "glusterfs", "afs")


def trouble(error: BaseException) -> str:
    """Return what an error says of the disk that was written to, or "" where it is of another kind.

    Parameters
    ----------
    error : BaseException
        Of the system, or of SQLite, which tells a full disk from a quota or a limit of a file's
        size only by the first being called full.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"the disk is full ({os.strerror(error.errno)})"
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return "the disk is full"
        if code == sqlite3.SQLITE_IOERR:
            return f"the disk takes no more ({one_line(error)})"
    return ""


def is_full(folder: Path) -> bool:
    """Return whether next to nothing fits on the disk of a folder."""
    return shutil.disk_usage(folder).free < _LITTLE


def keep_room(folder: Path) -> None:
    """Keep room for a run's end in its folder.

    Raises
    ------
    OSError
        If there is none.
    """
    path = folder / _ROOM
    if path.exists() or not hasattr(os, "posix_fallocate"):
        return
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(file, 0, _ROOM_BYTES)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in _FULL:  # others: not every file system can
            raise
    finally:
        os.close(file)


def give_room(folder: Path) -> None:
    """Let others have the room that was kept."""
    with contextlib.suppress(OSError):
        (folder / _ROOM).unlink(missing_ok=True)


def shared_disk(folder: Path) -> str:
    """Return the kind of the file system where it may be that of several machines, else ''."""
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        parents = {str(parent) for parent in (folder.resolve(), *folder.resolve().parents)}
        found = [(len(m[1]), m[2]) for m in mounts if m[1].replace("\\040", " ") in parents]
        kind = max(found, default=(0, ""))[1]
        return kind if kind.startswith(_SHARED_DISKS) else ""
    return ""
