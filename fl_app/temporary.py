"""Folders for temporary files, which no process leaves for good, however it ends."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_app.home import Process

__all__ = ["temporary_dir"]

_PREFIX, _OWNER = "fl-", ".owner"


@contextmanager
def temporary_dir(within: str | None = None) -> Iterator[Path]:
    """Yield a new folder, which only its owner reads and which is gone after the block.

    A process that is killed leaves its own: those of this user whose process is known to be gone
    are removed here, before anything else happens.

    Parameters
    ----------
    within : str, optional
        The folder in which it is made; by default the system's for temporary files. Its name is
        11 characters long.
    """
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=within))
    try:
        (folder / _OWNER).write_text(json.dumps(vars(Process.current())))
        for owner in folder.parent.glob(f"{_PREFIX}*/{_OWNER}"):
            if _is_left(owner, folder.stat().st_uid):
                shutil.rmtree(owner.parent, ignore_errors=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(owner: Path, user: int) -> bool:
    try:
        if owner.parent.stat().st_uid != user:
            return False
        process = Process(**json.loads(owner.read_text()))
        return process.is_near() and process.is_gone()
    except (OSError, TypeError, ValueError):  # just made, or gone
        return False
