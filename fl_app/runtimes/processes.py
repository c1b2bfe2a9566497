"""Processes that are ended together: session leaders and all that they have started.

What it takes to end a SuperLink: ``flower-superexec``, which stands in a session of its own, starts
``flwr-simulation``, which starts Ray. Ray's processes outlive their parent and then belong to
process 1, but they stay in the session of ``flower-superexec``. A family of processes is therefore
known by its sessions, not by its parents.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["ProcessFamily", "end_all", "process_table", "ps_table"]

_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0


class Process(NamedTuple):
    """One row of the process table; on systems without /proc the group stands for the session."""

    pid: int
    parent: int
    session: int
    zombie: bool


class ProcessFamily:
    """Session leaders, their descendants, and whoever shares a session with one of them."""

    def __init__(self, leader: subprocess.Popen[bytes]) -> None:
        self._leaders = [leader]
        self._sessions = {leader.pid}

    def add(self, leader: subprocess.Popen[bytes]) -> None:
        """Take in another session's leader."""
        self._leaders.append(leader)
        self._sessions.add(leader.pid)

    def is_alive(self) -> bool:
        """Tell whether all leaders live; reaps those that do not."""
        return all(leader.poll() is None for leader in self._leaders)

    def go(self) -> None:
        """Tell the leaders that wait for a line to go on."""
        for leader in self._leaders:
            if leader.stdin is not None:
                with suppress(BrokenPipeError):  # its last words are in the log
                    leader.stdin.write(b"\n")
                    leader.stdin.flush()

    def pids(self) -> list[int]:
        """List the members that are alive, and remember the sessions that they are in."""
        return _members(self._sessions)

    def end(self, grace: float) -> None:
        """Ask all members to end, kill those that have not within `grace` seconds."""
        stages = ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_SECONDS))
        for signum, seconds in stages:
            deadline = time.monotonic() + seconds
            signalled: set[int] = set()
            while alive := self.pids():
                _send(signum, set(alive) - signalled)
                signalled.update(alive)
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_SECONDS)
            else:
                for leader in self._leaders:
                    leader.wait(_KILL_SECONDS)
                    if leader.stdin is not None:
                        with suppress(BrokenPipeError):
                            leader.stdin.close()
                return
        warnings.warn(f"processes {alive} survived SIGKILL", RuntimeWarning, stacklevel=2)


def end_all(sessions: set[int]) -> None:
    """Kill all who are in some sessions or descend from them, and this process at last."""
    deadline = time.monotonic() + _KILL_SECONDS
    while (others := set(_members(sessions)) - {os.getpid()}) and time.monotonic() < deadline:
        _send(signal.SIGKILL, others)
        time.sleep(_POLL_SECONDS)
    os._exit(128 + signal.SIGKILL)


def _members(sessions: set[int]) -> list[int]:
    """List who is in some sessions or descends from them, and take in their sessions."""
    table, members = process_table(), set[int]()
    while True:
        related = {p.pid for p in table if p.session in sessions or p.parent in members}
        if related <= members:
            break
        members |= related
        sessions |= {p.session for p in table if p.pid in members}
    return sorted(p.pid for p in table if p.pid in members and not p.zombie)


def _send(signum: int, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


def process_table() -> list[Process]:
    """List all processes of this machine."""
    if not Path("/proc/self/stat").exists():
        return ps_table()
    rows = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # ended since it was listed
                # The name before the last ")" may hold blanks and parentheses.
                fields = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2]
                state, parent, _group, session = fields.split()[:4]
                rows.append(Process(int(entry.name), int(parent), int(session), state in "ZX"))
    return rows


def ps_table() -> list[Process]:
    """List them by ``ps``, where there is no /proc."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = (line.split() for line in listing.stdout.splitlines())
    return [Process(int(p), int(pp), int(g), state.startswith("Z")) for p, pp, g, state in rows]
