"""Runs that the page has started: ordinary ``fl-app`` processes that outlive it.

A launch is a folder ``FL_APP_HOME/dashboard/launches/<id>/``, so that any page, tab or server finds
it again:

=================== ============================================================================
``launch.json``     what was started, by which choices, and the process; written once, whole
``log.txt``         what ``fl-app`` printed
``0/``, ``1/``      the jobs' output folders, each with ``result.json`` once it has ended
``stop.json``       the signals that were sent to stop it
``exit.json``       the exit status, if the server that started it was still there
=================== ============================================================================

How a launch goes is read off these and the process table, never off MLflow.
:mod:`~fl_app.dashboard.process_control` starts and stops them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from fl_app.dashboard.view import parsed
from fl_app.errors import printable
from fl_app.home import Process, home_dir, write

__all__ = ["Launch", "State", "find", "get", "log_tail", "tidy"]

State = Literal["running", "stopping", "finished", "failed", "stopped", "lost"]

PATIENCE = {"inprocess": 20.0, "simulation": 60.0}
"""Seconds that a launch has to end before it can be asked in a harder way, by runtime."""
_KEEP_DAYS, _KEEP = 7, 500
_LAST_BYTES = 65_536
_ID = re.compile(r"\d{8}-\d{6}-\d{3}-[0-9a-f]{8}")
_INTERRUPTED = (130, -signal.SIGINT)
awaited: set[Path] = set()
"""Folders of this process's children whose exit status is not written yet."""


@dataclass(frozen=True)
class Launch:
    """One start by the page.

    Parameters
    ----------
    folder : Path
        Its folder, whose name is the id.
    argv : tuple of str
        The arguments of ``fl-app``.
    process : Process
        The process.
    time : float
        Unix time of the start.
    overrides : tuple of str
        The choices as overrides.
    sweep : bool
        Whether these are several jobs, one a strategy.
    choices : mapping of str to str
        The choices as :func:`fl_app.dashboard.choices.to_query` writes them.
    """

    folder: Path
    argv: tuple[str, ...]
    process: Process
    time: float
    overrides: tuple[str, ...]
    sweep: bool
    choices: Mapping[str, str]

    @property
    def id(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def jobs(self) -> tuple[Path, ...]:
        """The jobs' output folders, in their order; they need not exist yet."""
        names = next((o for o in self.overrides if o.startswith("strategy=")), "")
        number = len(names.split(",")) if self.sweep else 1
        return tuple(self.folder / str(job) for job in range(number))

    @property
    def runtime(self) -> str:
        """Where its clients run: ``inprocess`` or ``simulation``."""
        return "simulation" if "runtime=simulation" in self.overrides else "inprocess"

    @property
    def patience(self) -> float:
        """Seconds between a stop and a harder one."""
        return PATIENCE[self.runtime]

    @property
    def state(self) -> State:
        """How it goes.

        ``stopping`` until the process is gone, whatever the jobs have written; ``lost``: gone
        without a result and without a word, as after SIGKILL or a loss of power.
        """
        asked = bool(stops_of(self))
        if self.running:
            return "stopping" if asked else "running"
        ends = [_read(job / "result.json").get("status") for job in self.jobs]
        if all(end == "FINISHED" for end in ends):
            return "finished"
        code = _read(self.folder / "exit.json").get("code")
        words = _own_words(self)
        if asked or "KILLED" in ends or code in _INTERRUPTED or words[-1:] == ["interrupted"]:
            return "stopped"
        said = bool(words) or (isinstance(code, int) and code > 0)
        return "failed" if "FAILED" in ends or said else "lost"

    @property
    def running(self) -> bool:
        """Whether its process is still there, as far as this one can see."""
        return self.folder in awaited or not self.process.is_gone() or self.process.is_hidden()

    @property
    def reason(self) -> str:
        """Why it ended early, in one line: what its jobs or its log say; else "".

        While it runs, what a job of a sweep failed of already.
        """
        errors = [_read(job / "result.json").get("error") for job in self.jobs]
        if error := next(filter(None, errors), None):
            return printable(error)
        words = _own_words(self)
        if not words and self.state in ("failed", "lost"):
            words = log_tail(self, 1)
        return words[-1] if words else ""


def _own_words(launch: Launch) -> list[str]:
    """Return what ``fl-app`` says where it ends early, in the last lines of the log."""
    said = [line for line in log_tail(launch, 50) if line.startswith("fl-app: ")]
    return [line.removeprefix("fl-app: ") for line in said]


def stops_of(launch: Launch) -> list[float]:
    times = _read(launch.folder / "stop.json").get("times", [])
    if not isinstance(times, list):
        return []
    return [float(moment) for moment in times if isinstance(moment, int | float)]


def find(home: Path | None = None) -> list[Launch]:
    """Return all launches under a home, newest first; a folder without a whole record is none."""
    try:
        names = [name for name in os.listdir(launches_dir(home)) if _ID.fullmatch(name)]
    except OSError:
        return []
    launches = [launch for name in names if (launch := get(name, home)) is not None]
    return sorted(launches, key=lambda launch: (launch.time, launch.id), reverse=True)


def get(name: str, home: Path | None = None) -> Launch | None:
    """Return the launch of an id, or None if there is none."""
    folder = launches_dir(home) / name
    if not _ID.fullmatch(name) or not folder.is_dir():
        return None
    try:
        return read_launch(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=2 * _KEEP)
def read_launch(folder: Path) -> Launch:
    begun = json.loads((folder / "launch.json").read_text())
    process = begun["process"]
    return Launch(
        folder,
        tuple(map(str, begun["argv"])),
        Process(str(process["host"]), int(process["pid"]), str(process["started"])),
        float(begun["time"]),
        tuple(map(str, begun["overrides"])),
        bool(begun["sweep"]),
        {str(key): str(value) for key, value in begun["choices"].items()},
    )


def log_tail(launch: Launch, n: int = 20) -> list[str]:
    """Return the last lines that a launch has printed, fit to be shown, without empty ones.

    Parameters
    ----------
    launch : Launch
        The launch.
    n : int, default 20
        Lines at most. The last one says what is going on before the run's own record begins.
    """
    try:
        with (launch.folder / "log.txt").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_BYTES))
            text = file.read(_LAST_BYTES).decode(errors="replace")
    except OSError:
        return []
    lines = (printable(line) for line in re.split(r"[\r\n]+", text)[-4 * n - 4 :])
    return [line for line in lines if line.strip()][-n:]


def tidy(home: Path | None = None) -> int:
    """Remove launches that ended, beyond a week and beyond the newest 500; MLflow has their runs.

    Returns
    -------
    int
        How many.
    """
    oldest = time.time() - _KEEP_DAYS * 86400
    removed = 0
    for place, launch in enumerate(find(home)):
        if (place >= _KEEP or launch.time < oldest) and not launch.running:
            shutil.rmtree(launch.folder, ignore_errors=True)
            removed += 1
    return removed


def launches_dir(home: Path | None) -> Path:
    """Return the folder of all launches under a home."""
    return home_dir(home) / "dashboard" / "launches"


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object, or nothing where there is none."""
    with suppress(OSError):
        return parsed(path.read_bytes())
    return {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is whole or not there, for its owner alone."""
    write(path, json.dumps(dict(content), ensure_ascii=False), sync=False, mode=0o600)
