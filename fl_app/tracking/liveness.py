"""Whether a run goes on, told from this process, which may be on another machine.

On the same machine the system knows. From another one that shares ``FL_APP_HOME`` nothing is known
but the heartbeat: the process that writes a run touches the journal's lock every 5 s.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from fl_app.home import Process

__all__ = ["SILENT_SECONDS", "Liveness", "is_held", "last_sign", "liveness", "process_of"]

Liveness = Literal["alive", "gone", "unknown"]
SILENT_SECONDS = 60.0
"""Age of a heartbeat from which nobody on another machine knows whether the run goes on."""


def liveness(folder: Path, process: Process | None) -> Liveness:
    """Return whether the process of a run lives, as far as this machine can know.

    Parameters
    ----------
    folder : Path
        The run's folder.
    process : Process or None
        Which process it is; None where the run has not said it yet.

    Returns
    -------
    {"alive", "gone", "unknown"}
        ``gone`` only where that is certain: never of a process on another machine.
    """
    own = Process.current()
    if process is not None and process.host != own.host:
        return _by_heartbeat(folder)
    if process is None or not process.started:
        return _by_lock(folder)
    if process.is_near():
        return "gone" if process.is_gone() else "alive"
    if process.boot and process.boot == own.boot:  # in another container, whose numbers are its own
        known = _by_heartbeat(folder)
        return known if known == "alive" else _by_lock(folder)
    # Before this machine was started last, or on another one of the same name.
    sign, booted = last_sign(folder), _boot_time()
    if process.boot and own.boot and sign is not None and booted is not None and sign > booted:
        return _by_heartbeat(folder)
    return "gone" if process.is_gone() else "alive"


def process_of(start: Mapping[str, Any]) -> Process | None:
    """Return the process that a run's start names; None where it names none."""
    try:
        known = start["process"]
        return Process(str(known["host"]), int(known["pid"]), str(known["started"]))
    except (KeyError, TypeError, ValueError):
        return None


def is_held(folder: Path) -> bool:
    """Return whether a process of this machine holds a run's journal."""
    if not (folder / "lock").exists():
        return False
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def last_sign(folder: Path) -> float | None:
    """Return the Unix time of a run's last heartbeat; None where there is none."""
    with contextlib.suppress(OSError), open(folder / "lock", "rb") as file:
        # Opened, a file of another machine is asked for its time anew.
        return os.fstat(file.fileno()).st_mtime
    return None


def _by_lock(folder: Path) -> Liveness:
    return "alive" if is_held(folder) else "gone"


def _by_heartbeat(folder: Path) -> Liveness:
    sign = last_sign(folder)
    return "alive" if sign is not None and time.time() - sign < SILENT_SECONDS else "unknown"


def _boot_time() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/stat").read_text().splitlines()
        return float(next(line for line in lines if line.startswith("btime")).split()[1])
    return None
