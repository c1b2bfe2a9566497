"""What runs have left under ``FL_APP_HOME/runs``: which there are, what waits, what may go."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fl_app.errors import DIVERGED, InputError
from fl_app.home import RUN_NAME, Process
from fl_app.tracking.journal_reader import JOURNAL, UNREADABLE, JournalReader
from fl_app.tracking.liveness import Liveness, is_held, liveness, process_of

__all__ = [
    "JOURNAL_DAYS",
    "LeftRun",
    "cannot_resume",
    "clean",
    "left_runs",
    "prune",
    "waiting_bytes",
]

JOURNAL_DAYS = 7.0
"""Days for which a run stays after the last thing that was written of it."""
_MAX_RUNS = 500
_DAY = 24 * 3600.0

State = Literal["running", "finished", "failed", "killed", "broken off", "unknown", "damaged"]


@dataclass(frozen=True)
class LeftRun:
    """A run of this home.

    Parameters
    ----------
    folder : Path
        Its folder, which is called like the run.
    title : str
        The run's name in MLflow; empty where it never began.
    state : str
        ``running`` while a process holds its journal, ``broken off`` where it ended without a word,
        ``unknown`` where it ran on another machine and has given no sign of life for 60 s,
        ``damaged`` where its journal cannot be read.
    rounds : int
        Rounds that are recorded, round 0 included.
    waiting : int or None
        Rounds that the tracking server does not have; 0 with ``is_waiting`` means that only the
        end is missing there. None where the run goes nowhere.
    is_waiting : bool
        Whether anything has to be sent yet.
    size : int
        Bytes on the disk.
    written : float
        Unix time in seconds of the last thing that was written.
    cannot_resume : str
        Why it cannot go on; empty where it can.
    """

    folder: Path
    title: str
    state: State
    rounds: int
    waiting: int | None
    is_waiting: bool
    size: int
    written: float
    cannot_resume: str = ""

    def until(self, days: float = JOURNAL_DAYS) -> float | None:
        """Return the Unix time from which it may go; None where it stays."""
        stays = self.is_waiting or self.state in ("running", "unknown")
        return None if stays else self.written + days * _DAY


def left_runs(home: Path) -> list[LeftRun]:
    """Return the runs that a home knows, the newest first.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    """
    return [_left(folder) for folder in reversed(_folders(home / "runs"))]


def clean(home: Path, names: Sequence[str] = (), days: float = JOURNAL_DAYS) -> list[LeftRun]:
    """Remove runs.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    names : sequence of str, optional
        These runs, also those that wait for a tracking server; by default all others that were last
        written more than `days` ago.
    days : float, default 7
        See `names`.

    Returns
    -------
    list of LeftRun
        Those that are gone.

    Raises
    ------
    InputError
        For a name of no run, or of one that goes on; then nothing is removed.
    """
    known = {run.folder.name: run for run in left_runs(home)}
    for name in names:
        if name not in known:
            raise InputError("run", name, f"a run of {home} (fl-kit runs lists them)")
        if known[name].state == "running":
            raise InputError("run", name, "a run that is over: this one goes on")
    now = time.time()
    old = [run for run in known.values() if (until := run.until(days)) is not None and until < now]
    gone = [known[name] for name in names] or old
    for run in gone:
        shutil.rmtree(run.folder)
    return gone


def prune(home: Path, days: float = JOURNAL_DAYS) -> None:
    """Remove what :func:`clean` would, and all but the 500 newest; quick, and without a word.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    days : float, default 7
        Days after the last thing that was written.
    """
    oldest = time.time() - days * _DAY
    for position, folder in enumerate(reversed(_folders(home / "runs"))):
        if (position >= _MAX_RUNS or _written(folder) < oldest) and not _stays(folder):
            shutil.rmtree(folder, ignore_errors=True)


def waiting_bytes(home: Path) -> int:
    """Return the bytes of all runs that are not sent."""
    return sum(_size(lock.parent) for lock in (home / "runs").glob("*/lock"))


def _folders(runs: Path) -> list[Path]:
    """Return the folders that are called like runs, oldest first."""
    return sorted(
        path for path in runs.glob("*") if RUN_NAME.fullmatch(path.name) and path.is_dir()
    )


def _left(folder: Path) -> LeftRun:
    journal, waits = JournalReader(folder), (folder / "lock").exists()
    size, written = _size(folder), _written(folder)
    try:
        with journal.reading():
            start, end, sent = journal.start, journal.end, journal.sent
            rounds, after = journal.count_rounds(), journal.count_rounds(sent.get("rounds", 0))
            has_checkpoint = journal.has_checkpoint()
    except UNREADABLE:
        why = "this one's journal is damaged"
        return LeftRun(folder, "", "damaged", 0, None, waits, size, written, why)
    goes = bool(start.get("target"))
    state: State = "broken off"
    known = _liveness(folder, start, end)
    if known != "gone":
        state = "running" if known == "alive" else "unknown"
    elif (status := str(end.get("status", "")).lower()) in ("finished", "failed", "killed"):
        state = status  # type: ignore[assignment]
    title = str(start.get("run", {}).get("name", ""))
    waiting = (after if waits else 0) if goes else None
    why = cannot_resume(state, str(end.get("error", "")), has_checkpoint)
    return LeftRun(folder, title, state, rounds, waiting, waits and goes, size, written, why)


def cannot_resume(state: str, error: str, has_checkpoint: bool) -> str:
    """Say why a run cannot go on; "" where it can.

    Parameters
    ----------
    state : str
        As in :class:`LeftRun`, or MLflow's word for it.
    error : str
        What its end says.
    has_checkpoint : bool
        Whether it has kept its last round.
    """
    told = {"running": "goes on", "finished": "is finished", "unknown": "may go on elsewhere"}
    if state.lower() in told:
        return f"this one {told[state.lower()]}"
    if DIVERGED in error:
        return "this one's training diverged, and would again"
    return "" if has_checkpoint else "this one has kept no round to go on from"


def _liveness(folder: Path, start: Mapping[str, Any], end: Mapping[str, Any]) -> Liveness:
    """Return whether a run goes on; after its end, whether somebody sends it."""
    process = process_of(start)
    known = liveness(folder, process)
    if known == "alive" and process is not None and process.host == Process.current().host:
        return "alive" if is_held(folder) else "gone"  # it may do other things by now
    return "gone" if end and known == "unknown" else known


def _stays(folder: Path) -> bool:
    """Return whether a run goes on or waits; what is damaged for good may go."""
    if not (folder / "lock").exists():
        return False
    if is_held(folder):
        return True
    try:
        start, end = JournalReader(folder).start, JournalReader(folder).end
        return bool(start.get("target")) or _liveness(folder, start, end) != "gone"
    except (OSError, sqlite3.OperationalError):  # not now
        return True
    except UNREADABLE:
        return False


def _written(folder: Path) -> float:
    """Return when a run was last written to; of another kind of folder when it was made."""
    paths = (folder / JOURNAL, folder / f"{JOURNAL}-wal")
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return max(times, default=0.0)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
