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

Stopping takes up to three acts of the user, so that no record is lost for haste. The first sends
SIGINT, as Ctrl-C does: the run ends as ``KILLED``, its rounds are delivered. One that comes 20
seconds later (60 with ``runtime=simulation``, which ends a SuperLink and Ray first) sends SIGTERM;
a third one, as much later still, SIGKILL to the launch's process group. Even then every finished
round is in the spool on the disk, and the next run delivers it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from fl_app.config.overrides import quoted
from fl_app.dashboard import uploads
from fl_app.dashboard.start import TOKEN
from fl_app.dashboard.view import parsed
from fl_app.errors import InputError, printable
from fl_app.home import Process, home_dir, write
from fl_app.tracking.mlflow.uri import check_uri

__all__ = ["MOST", "Launch", "State", "find", "get", "log_tail", "start", "stop", "tidy"]

State = Literal["running", "stopping", "finished", "failed", "stopped", "lost"]

MOST = 4
"""Launches that run at a time."""
PATIENCE = {"inprocess": 20.0, "simulation": 60.0}
"""Seconds that a launch has to end before it can be told in a harder way, by runtime."""
_KEEP_DAYS, _KEEP = 7, 500
_TWICE_SECONDS = 2.0
_LAST_BYTES = 65_536
_ID = re.compile(r"\d{8}-\d{6}-\d{3}-[0-9a-f]{8}")
_COMMAND = (sys.executable, "-m", "fl_app")
# A server that was started in the background of a script ignores SIGINT, and so would its children.
_HEEDING = (
    sys.executable,
    "-ISc",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.argv[1], sys.argv[1:])",
)
_INTERRUPTED = (130, -signal.SIGINT)
_STAGES = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


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
        The choices as :func:`fl_app.dashboard.address.to_query` writes them.
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
    def patience(self) -> float:
        """Seconds between a stop and a harder one."""
        found = (PATIENCE[name] for name in PATIENCE if f"runtime={name}" in self.overrides)
        return next(found, PATIENCE["inprocess"])

    @property
    def state(self) -> State:
        """How it goes.

        ``stopping`` until the process is gone, whatever the jobs have written; ``lost``: gone
        without a result and without a word, as after SIGKILL or a loss of power.
        """
        asked = bool(_asked(self))
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
        """Whether its process is still there."""
        return self.folder in _awaited or not self.process.is_gone()

    @property
    def reason(self) -> str:
        """Why it ended early, in one line: what its jobs or its log say; else "".

        While it runs, what a job of a sweep failed of already.
        """
        errors = [_read(job / "result.json").get("error") for job in self.jobs]
        if told := next(filter(None, errors), None):
            return printable(told)
        words = _own_words(self)
        if not words and self.state in ("failed", "lost"):
            words = log_tail(self, 1)
        return words[-1] if words else ""


def _own_words(launch: Launch) -> list[str]:
    """Return what ``fl-app`` says where it ends early, in the last lines of the log."""
    said = [line for line in log_tail(launch, 50) if line.startswith("fl-app: ")]
    return [line.removeprefix("fl-app: ") for line in said]


# ---------------------------------------------------------------------------- start
_awaited: set[Path] = set()
"""Folders of this process's children whose exit status is not written yet."""


def start(
    home: Path | None,
    overrides: Sequence[str],
    sweep: bool = False,
    choices: Mapping[str, str] | None = None,
) -> Launch:
    """Start ``fl-app`` in a session of its own: it goes on when the page's server ends.

    Parameters
    ----------
    home : Path or None
        See :func:`fl_app.home.home_dir`.
    overrides : sequence of str
        What to run (:func:`fl_app.dashboard.arguments.overrides`).
    sweep : bool, default False
        Whether they are a sweep over strategies.
    choices : mapping of str to str, optional
        To be kept beside it.

    Returns
    -------
    Launch
        The one that is there already where the same was started less than 2 seconds ago.

    Raises
    ------
    InputError
        If 4 launches run already, or if it cannot be started or kept.
    """
    root = home_dir(home)
    folder = _root(root)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.parent.chmod(0o700)
        with FileLock(folder / ".lock", timeout=10):
            known = find(root)
            same = (tuple(overrides), sweep)
            for launch in known:
                if time.time() - launch.time < _TWICE_SECONDS and same == (
                    launch.overrides,
                    launch.sweep,
                ):
                    return launch
            if sum(launch.running for launch in known) >= MOST:
                allowed = f"at most {MOST} runs at a time: wait for one to end, or stop one"
                raise InputError("start", f"run {MOST + 1}", allowed)
            tidy(root)
            return _start(root, folder, tuple(overrides), sweep, choices or {})
    except (OSError, ValueError) as error:  # Timeout of the lock is an OSError
        why = getattr(error, "strerror", None) or error
        allowed = f"the run cannot be started: {why}"
        raise InputError("FL_APP_HOME", root, allowed) from None


def _start(
    root: Path,
    launches: Path,
    overrides: tuple[str, ...],
    sweep: bool,
    choices: Mapping[str, str],
) -> Launch:
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    folder = launches / f"{stamp}-{int(now % 1 * 1000):03d}-{secrets.token_hex(4)}"
    environment = _environment(root)
    folder.mkdir(mode=0o700)
    child = None
    try:
        out = quoted(str(folder / "0"))
        places = [f"output_dir={out}", f"hydra.run.dir={out}"]
        if sweep:
            places = [f"hydra.sweep.dir={quoted(str(folder))}"]
        argv = (*["-m"] * sweep, *overrides, *places)
        begun: dict[str, Any] = {"argv": argv, "time": now, "overrides": overrides, "sweep": sweep}
        begun["choices"] = dict(choices)
        _write(folder / "launch.json.part", begun)  # a full disk shows before anything runs
        child = _popen(argv, folder, environment)
        begun["process"] = asdict(_process(child))
        _write(folder / "launch.json", begun)
    except BaseException:
        if child is not None:
            child.kill()
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _awaited.add(folder)
    threading.Thread(target=_await, args=(child, folder), daemon=True).start()
    for name in re.findall(r"/uploads/([0-9a-f]{16})\.csv", " ".join(overrides)):
        uploads.touch(name, root)
    return _launch(folder)


def _popen(
    argv: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    words = [*_COMMAND, *argv]
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        words = [*_HEEDING, *words]
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,
        )
    finally:
        os.close(log)


def _environment(root: Path) -> dict[str, str]:
    """Return this process's environment for one in another folder, without the page's token.

    Raises
    ------
    ConfigError
        If ``MLFLOW_TRACKING_URI`` names a database that cannot be.
    """
    found = {name: value for name, value in os.environ.items() if name != TOKEN}
    found |= {"FL_APP_HOME": str(root), "PYTHONUNBUFFERED": "1"}
    if path := found.get("PYTHONPATH"):
        found["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    if home := found.get("FLWR_HOME"):
        found["FLWR_HOME"] = os.path.abspath(home)
    if (uri := found.get("MLFLOW_TRACKING_URI", "")).startswith("sqlite"):
        found["MLFLOW_TRACKING_URI"] = check_uri(uri, "MLFLOW_TRACKING_URI")
    return found


def _process(child: subprocess.Popen[bytes]) -> Process:
    found = Process.of(child.pid)
    if not found.started and child.poll() is not None:
        return replace(found, started="gone before it could be looked at")
    return found


def _await(child: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end, so that no zombie stays, and keep the exit status."""
    code = child.wait()
    with contextlib.suppress(OSError):
        _write(folder / "exit.json", {"code": code})
    _awaited.discard(folder)


# ---------------------------------------------------------------------------- stop
def stop(launch: Launch) -> State:
    """Ask a launch to end; see the top of this module for what a second and a third time do.

    Returns
    -------
    State
        ``stopping``, or how it ended if it has.

    Raises
    ------
    InputError
        If the process is another machine's or another user's, or cannot be told apart.
    """
    if not launch.running:
        return launch.state
    if launch.process.host != socket.gethostname() or not launch.process.started:
        allowed = f"it runs on {launch.process.host}: stop it there"
        raise InputError("stop", launch.id, allowed)
    with _stopping:  # two clicks at a time are one
        asked, now = _asked(launch), time.time()
        if asked and abs(now - asked[-1]) < launch.patience:
            return launch.state
        stage = _STAGES[min(len(asked), len(_STAGES) - 1)]
        with contextlib.suppress(OSError):  # a full disk must not keep anybody from stopping
            _write(launch.folder / "stop.json", {"times": [*asked, now]})
        try:
            _send(launch.process, stage)
        except PermissionError:
            allowed = "it is another user's: only that user can"
            raise InputError("stop", launch.id, allowed) from None
    return launch.state


_stopping = threading.Lock()


def _send(process: Process, signum: signal.Signals) -> None:
    """Send a signal to a process, never to a later one that got its number."""
    with contextlib.suppress(ProcessLookupError):
        if not hasattr(os, "pidfd_open"):
            if not process.is_gone():
                _kill(process.pid, signum)
            return
        held = os.pidfd_open(process.pid)
        try:
            if process.is_gone():
                return
            if signum == signal.SIGKILL:
                _kill(process.pid, signum)
            else:
                signal.pidfd_send_signal(held, signum)
        finally:
            os.close(held)


def _kill(pid: int, signum: signal.Signals) -> None:
    # It leads a session, and so a group, of its own; its workers, in theirs, end by themselves.
    (os.killpg if signum == signal.SIGKILL else os.kill)(pid, signum)


def _asked(launch: Launch) -> list[float]:
    times = _read(launch.folder / "stop.json").get("times", [])
    if not isinstance(times, list):
        return []
    return [float(moment) for moment in times if isinstance(moment, int | float)]


# ---------------------------------------------------------------------------- find
def find(home: Path | None = None) -> list[Launch]:
    """Return all launches under a home, newest first; a folder without a whole record is none."""
    try:
        names = [name for name in os.listdir(_root(home)) if _ID.fullmatch(name)]
    except OSError:
        return []
    found = [launch for name in names if (launch := get(name, home)) is not None]
    return sorted(found, key=lambda launch: (launch.time, launch.id), reverse=True)


def get(name: str, home: Path | None = None) -> Launch | None:
    """Return the launch of an id, or None if there is none."""
    folder = _root(home) / name
    if not _ID.fullmatch(name) or not folder.is_dir():
        return None
    try:
        return _launch(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=2 * _KEEP)
def _launch(folder: Path) -> Launch:
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


def _root(home: Path | None) -> Path:
    return home_dir(home) / "dashboard" / "launches"


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object, or nothing where there is none."""
    try:
        return parsed(path.read_bytes())
    except OSError:
        return {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is whole or not there, for its owner alone."""
    write(path, json.dumps(dict(content), ensure_ascii=False), sync=False, mode=0o600)
