"""Where runs leave what they know: ``FL_APP_HOME``, its folders, and who still writes there."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["RUN_NAME", "Process", "home_dir", "new_name", "run_folder", "whole", "write"]


RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4,32}")
"""What :func:`new_name` makes, and made in earlier versions."""


def home_dir(home: str | Path | None = None) -> Path:
    """Return the directory in which fl_app keeps things.

    Parameters
    ----------
    home : path, optional
        By default the environment variable ``FL_APP_HOME``, else ``~/.fl_app``.

    Returns
    -------
    Path
        Absolute. It need not exist.
    """
    given = home or os.environ.get("FL_APP_HOME") or "~/.fl_app"
    return Path(given).expanduser().absolute()


def new_name(start_ms: int) -> str:
    """Return a name for a run on this machine: names are in the order of their starts.

    Parameters
    ----------
    start_ms : int
        Unix time in milliseconds.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(start_ms / 1000))
    return f"{stamp}-{start_ms % 1000:03x}{secrets.token_hex(3)[:5]}"


def run_folder(home: Path, name: str) -> Path:
    """Make the folder in which a run's record stays; only its owner reads it.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    folder = home / "runs" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write(
    path: Path, content: bytes | memoryview | str, sync: bool = True, mode: int = 0o666
) -> None:
    """Write a file that is whole or not there, text in UTF-8; `mode` as for ``os.open``.

    The new name itself is not synced: what is written next and makes the file count (a line, an
    end) is, which commits the name too where file systems keep a journal. Elsewhere a loss of
    power may cost the file.
    """
    with whole(path, sync, mode) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole(path: Path, sync: bool = True, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Open a file that gets its name when it is written."""
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    part.rename(path)


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one that got the same number.

    Parameters
    ----------
    host : str
        Name of the machine.
    pid : int
        Number of the process.
    started : str
        What the system says of its start; empty where it says nothing.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return a process of this machine; of one that is gone the start is empty."""
        return cls(socket.gethostname(), pid, _start_of(pid))

    def is_gone(self) -> bool:
        """Return whether the process is known to have ended; False where that cannot be known.

        One that has ended and that its parent did not ask for yet (a zombie) is gone.
        """
        if self.host != socket.gethostname() or not self.started:
            return False
        return _start_of(self.pid) != self.started

    @property
    def boot(self) -> str:
        """The start of its machine, as the system calls it; empty where it is not known."""
        parts = self.started.split("-")
        return parts[0] if len(parts) == 3 else ""

    def is_near(self) -> bool:
        """Return whether this process can see it while it lives: same boot, same PID namespace.

        Containers of one host may have one name; a number there is another process here.
        """
        own = Process.current()
        ours, its = own.started.rsplit("-", 1)[0], self.started.rsplit("-", 1)[0]
        return bool(ours) and (self.host, its) == (own.host, ours)

    def is_hidden(self) -> bool:
        """Return whether it may live unseen: same boot, another PID namespace (a container)."""
        boot = Process.current().started.partition("-")[0]
        is_here = self.host == socket.gethostname() and self.started.startswith(f"{boot}-")
        return is_here and not self.is_near()


def _start_of(pid: int) -> str:
    """Return boot, pid namespace and start tick of a process; empty if it has none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program stands in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in ("Z", "X"):
            return ""
        return f"{boot[:8]}-{os.readlink('/proc/self/ns/pid')[5:-1]}-{fields[19]}"
    except (OSError, IndexError):
        return ""
