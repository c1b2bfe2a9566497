"""Starting and stopping ``fl-app`` for the page.

Stopping takes up to three acts of the user, so that no record is lost for haste. The first sends
SIGINT, as Ctrl-C does: the run ends as ``KILLED``, its rounds are delivered. One that comes 20
seconds later (60 with ``runtime=simulation``, which ends a SuperLink and Ray first) sends SIGTERM;
a third one, as much later still, SIGKILL to the launch's process group. Even then every finished
round is on the disk, in its journal, and the next run delivers it.
"""

from __future__ import annotations

import contextlib
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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from fl_app.config.overrides import quoted
from fl_app.dashboard import uploads
from fl_app.dashboard.processes import (
    Launch,
    State,
    awaited,
    find,
    launches_dir,
    read_launch,
    stops_of,
    tidy,
    write_json,
)
from fl_app.dashboard.start import TOKEN
from fl_app.errors import InputError
from fl_app.home import Process, home_dir
from fl_app.tracking.mlflow.uri import check_uri

__all__ = ["MOST", "start", "stop"]

MOST = 4
"""Launches that run at a time."""
_TWICE_SECONDS = 2.0
_COMMAND = (sys.executable, "-m", "fl_app")
# A server that was started in the background of a script ignores SIGINT, and so would its children.
_HEEDING = (
    sys.executable,
    "-ISc",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.argv[1], sys.argv[1:])",
)
_STAGES = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


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
    folder = launches_dir(root)
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
    root: Path, parent: Path, overrides: tuple[str, ...], sweep: bool, choices: Mapping[str, str]
) -> Launch:
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    folder = parent / f"{stamp}-{int(now % 1 * 1000):03d}-{secrets.token_hex(4)}"
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
        write_json(folder / "launch.json.part", begun)  # a full disk shows before anything runs
        child = _popen(argv, folder, environment)
        begun["process"] = asdict(_process(child))
        write_json(folder / "launch.json", begun)
    except BaseException:
        if child is not None:
            child.kill()
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    awaited.add(folder)
    threading.Thread(target=_await, args=(child, folder), daemon=True).start()
    for name in re.findall(r"/uploads/([0-9a-f]{16})\.csv", " ".join(overrides)):
        uploads.touch(name, root)
    return read_launch(folder)


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
    environment = {name: value for name, value in os.environ.items() if name != TOKEN}
    environment |= {"FL_APP_HOME": str(root), "PYTHONUNBUFFERED": "1"}
    if path := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    if home := environment.get("FLWR_HOME"):
        environment["FLWR_HOME"] = os.path.abspath(home)
    if (uri := environment.get("MLFLOW_TRACKING_URI", "")).startswith("sqlite"):
        environment["MLFLOW_TRACKING_URI"] = check_uri(uri, "MLFLOW_TRACKING_URI")
    return environment


def _process(child: subprocess.Popen[bytes]) -> Process:
    process = Process.of(child.pid)
    if not process.started and child.poll() is not None:
        return replace(process, started="gone before it could be looked at")
    return process


def _await(child: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the end, so that no zombie stays, and keep the exit status."""
    code = child.wait()
    with contextlib.suppress(OSError):
        write_json(folder / "exit.json", {"code": code})
    awaited.discard(folder)


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
        asked, now = stops_of(launch), time.time()
        if asked and abs(now - asked[-1]) < launch.patience:
            return launch.state
        stage = _STAGES[min(len(asked), len(_STAGES) - 1)]
        with contextlib.suppress(OSError):  # a full disk must not keep anybody from stopping
            write_json(launch.folder / "stop.json", {"times": [*asked, now]})
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
        descriptor = os.pidfd_open(process.pid)
        try:
            if process.is_gone():
                return
            if signum == signal.SIGKILL:
                _kill(process.pid, signum)
            else:
                signal.pidfd_send_signal(descriptor, signum)
        finally:
            os.close(descriptor)


def _kill(pid: int, signum: signal.Signals) -> None:
    # It leads a session, and so a group, of its own; its workers, in theirs, end by themselves.
    (os.killpg if signum == signal.SIGKILL else os.kill)(pid, signum)
