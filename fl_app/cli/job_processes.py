"""Jobs of a sweep, also in processes of joblib's: what they find, and that they end as it does.

Every ``fl-app`` imports this; what a sweep needs else is in ``fl_app.cli.jobs``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from fl_app.errors import SignalInterrupt
from fl_app.parent import when_parent_is_gone
from fl_app.runtimes.signals import signals_interrupt
from fl_app.temporary import temporary_dir

__all__ = ["end_jobs", "ends_with_its_sweep", "job_log"]

LOG, KEYS, SAME = "FL_APP_SWEEP_LOG", "FL_APP_SWEEP_KEYS", "FL_APP_SWEEP_SAME"
BEGUN, EARLIER = "FL_APP_SWEEP_BEGUN", "FL_APP_SWEEP_EARLIER"
_PARENT, _JOBS = "FL_APP_SWEEP_PARENT", "FL_APP_SWEEP_JOBS"
_LEAVE_SECONDS = 6.0
_watches: list[int] = []
_ended: list[int] = []


@contextmanager
def job_log() -> Iterator[Path]:
    """Give jobs of this process and of those that it starts a file to append to."""
    with temporary_dir() as folder, _jobs_known(folder / "running"):
        path = folder / "jobs.jsonl"
        path.touch()
        os.environ[LOG] = str(path)
        os.environ[BEGUN] = f"{datetime.now():%Y-%m-%d-%H-%M-%S-%f}"
        try:
            yield path
        finally:
            for name in (LOG, BEGUN, EARLIER, KEYS, SAME):
                os.environ.pop(name, None)


@contextmanager
def _jobs_known(folder: Path) -> Iterator[None]:
    """Let jobs in other processes know this one, and this one their numbers.

    Parameters
    ----------
    folder : Path
        Is made; has a file named like each process that does a job now.
    """
    folder.mkdir()
    os.environ[_PARENT], os.environ[_JOBS] = str(os.getpid()), str(folder)
    try:
        yield
    finally:
        for name in (_PARENT, _JOBS):
            os.environ.pop(name, None)


@contextmanager
def ends_with_its_sweep(launcher: str) -> Iterator[None]:
    """Let a job in a process of joblib's end as the sweep does: KILLED, and no other one begins.

    Parameters
    ----------
    launcher : str
        Hydra's launcher. What submitit submits goes on without the process that has submitted it.
    """
    parent = int(os.environ.get(_PARENT, 0))
    if launcher != "joblib" or parent in (0, os.getpid()):
        yield
        return
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)
    if _ended:
        raise SignalInterrupt(_ended[0])
    if not _watches:
        _watches.append(parent)
        when_parent_is_gone(parent, _end)
    mark = Path(os.environ[_JOBS], str(os.getpid()))
    with signals_interrupt(_ended.append):
        try:
            mark.touch()
            yield
        finally:
            mark.unlink(missing_ok=True)


def _end() -> None:
    """End this process, with the time that a run takes to end."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LEAVE_SECONDS)
    os._exit(128 + signal.SIGTERM)


def end_jobs(signum: int) -> None:
    """Pass a signal on to jobs in processes of joblib's, and wait until they have ended.

    Joblib would kill them at once.
    """
    folder = Path(os.environ.get(_JOBS, os.devnull))
    deadline = time.monotonic() + _LEAVE_SECONDS
    told: set[str] = set()
    while folder.is_dir() and time.monotonic() < deadline:
        names = {path.name for path in folder.iterdir()}
        for name in names - told:
            with suppress(ProcessLookupError):
                os.kill(int(name), signum)
        told |= names
        if not names:
            return
        time.sleep(0.05)
