"""What the end-to-end tests share."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def until(true: Callable[[], Any], seconds: float = 600) -> float:
    """Wait for something; return how long it took, in seconds."""
    begin = time.monotonic()
    while not true():
        assert time.monotonic() < begin + seconds
        time.sleep(0.05)
    return time.monotonic() - begin


def server_context(run_config: Mapping[str, str]) -> Context:
    """Return a ServerApp's context with a run-config."""
    return Context(1, 0, {}, RecordDict(), dict(run_config))


def command(
    *words: str, cwd: Path, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands as a user does, in a folder of its own."""
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=cwd,
        env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def processes_with(variable: str, value: str) -> list[int]:
    """Return the ids of the processes that have a variable of this value in their environment."""
    wanted = f"{variable}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def end_processes(variable: str, value: str, seconds: float = 20) -> None:
    """End the processes that a test started, told by a variable that only they have."""
    deadline = time.monotonic() + seconds
    while pids := processes_with(variable, value):
        late = time.monotonic() > deadline - seconds / 2
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        if time.monotonic() > deadline:
            raise AssertionError(f"processes {pids} do not end")
        time.sleep(0.1)
