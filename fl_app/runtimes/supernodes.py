"""SuperNodes on this machine that live exactly as long as a ``with`` block.

Each is Flower's own ``flower-supernode``, at a :class:`PrivateSuperLink`. It is told where that is
when it is up: until then the SuperNodes import what they need, which takes them as long.

References
----------
https://flower.ai/docs/framework/ref-api-cli.html#flower-supernode
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fl_app.errors import RunError
from fl_app.runtimes.processes import ProcessFamily
from fl_app.runtimes.signals import signals_deferred
from fl_app.runtimes.superlink import PrivateSuperLink, free_port

__all__ = ["SuperNodes", "dealt"]

_PORT_ATTEMPTS = 5
_POLL_SECONDS = 0.05

# What the console script does, with the arguments read after the imports. Where the process is gone
# that has started it, it ends itself and all that it has started.
_SUPERNODE = """
import json, os, sys
from importlib.metadata import distribution
from fl_app.parent import when_parent_is_gone

def end():
    from fl_app.runtimes.processes import end_all
    end_all({os.getpid()})

when_parent_is_gone(int(sys.argv[1]), end)
(command,) = distribution("flwr").entry_points.select(name=sys.argv[2])
flower_supernode = command.load()
arguments = sys.stdin.readline()
if not arguments:
    end()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
sys.argv = [sys.argv[2], *json.loads(arguments)]
flower_supernode()
"""


def dealt(number: int) -> list[str]:
    """Return the node-configs of SuperNodes that know their partition and nothing else."""
    return [f"partition-id={k} num-partitions={number}" for k in range(number)]


class SuperNodes:
    """Run SuperNodes for the length of a ``with`` block.

    Parameters
    ----------
    link : PrivateSuperLink
        Where they belong; entered before.
    node_configs : sequence of str
        The node-config of each.
    startup_timeout : float, default: 60
        Seconds to wait until they have started.
    grace : float, default: 5
        Seconds that they have to sign off and end before they are killed. One that is killed counts
        as online at the SuperLink for a while.
    wait : bool, default: True
        Wait on entry until they have started. False leaves that to :meth:`wait`, for a SuperLink
        that does not answer yet.

    Raises
    ------
    RunError
        On entry, if one dies or does not start in time; the message ends with its last words.
    """

    def __init__(
        self,
        link: PrivateSuperLink,
        node_configs: Sequence[str],
        *,
        startup_timeout: float = 60.0,
        grace: float = 5.0,
        wait: bool = True,
    ) -> None:
        self.startup_timeout = startup_timeout
        self.grace = grace
        self._waits = wait
        self._nodes = [_Node(link, number, text) for number, text in enumerate(node_configs)]

    @property
    def pids(self) -> list[int]:
        """Return the number of each SuperNode's process."""
        return [node.process.pid for node in self._nodes if node.process is not None]

    def __enter__(self) -> SuperNodes:
        """Start them, and unless told otherwise wait for them."""
        try:
            for node in self._nodes:
                node.begin()
            if self._waits:
                self.wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them and all that they have started."""
        self._end()

    def wait(self) -> None:
        """Tell them where the SuperLink is, and wait until they have started.

        Raises
        ------
        RunError
            If one dies or does not start in time.
        """
        deadline = time.monotonic() + self.startup_timeout
        for node in self._nodes:
            node.tell()
        for node in self._nodes:
            for _ in range(_PORT_ATTEMPTS):
                if node.has_started(deadline):
                    break
                node.begin()  # somebody took its port first
                node.tell()
            else:
                raise RunError(f"no free port for {node.name} in {_PORT_ATTEMPTS} attempts")

    def _end(self) -> None:
        with signals_deferred():
            if begun := [node.process for node in self._nodes if node.process is not None]:
                family = ProcessFamily(begun[0])
                for process in begun[1:]:
                    family.add(process)
                family.end(self.grace)
            for node in self._nodes:
                node.process = None


class _Node:
    """One SuperNode."""

    def __init__(self, link: PrivateSuperLink, number: int, node_config: str) -> None:
        self.name = f"SuperNode {number}"
        self.process: subprocess.Popen[bytes] | None = None
        self._link, self._number, self._node_config = link, number, node_config
        self._port = 0

    def begin(self) -> None:
        """Let it import what it needs; it then waits for its arguments."""
        if self.process is not None:
            ProcessFamily(self.process).end(0.0)
        with signals_deferred(), self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SUPERNODE, str(os.getpid()), "flower-supernode"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._link.flwr_home,
                env=self._link.environment(),
                start_new_session=True,
            )

    def tell(self) -> None:
        """Hand over its arguments."""
        self._port = free_port()
        arguments = ["--insecure", "--superlink", self._link.address]
        arguments += ["--host", "127.0.0.1", "--port", str(self._port)]
        arguments += ["--node-config", self._node_config]
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # its last words are in the log
            self.process.stdin.write(json.dumps(arguments).encode() + b"\n")
            self.process.stdin.flush()

    def has_started(self, deadline: float) -> bool:
        """Wait until it has started; return False if its port was taken by somebody else."""
        assert self.process is not None
        while f"Uvicorn running on http://127.0.0.1:{self._port}" not in (said := self._said()):
            if self.process.poll() is not None and "address already in use" in said.lower():
                return False
            if self.process.poll() is not None or time.monotonic() > deadline:
                last_words = "\n".join(said.splitlines()[-20:]) or "it printed nothing"
                raise RunError(f"{self.name} did not start: {last_words}")
            time.sleep(_POLL_SECONDS)
        return True

    @property
    def _log(self) -> Path:
        return self._link.folder / f"supernode-{self._number}.log"

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")
