"""A worker's process, as the process that has started it sees it."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

from fl_app.errors import RunError
from fl_app.grid.workers.child import error_text, work
from fl_app.parent import LOOK_SECONDS

__all__ = ["Worker", "WorkerDiedError", "WorkerError"]

_THREADS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR")
_ENVIRONMENT = {f"{name}_NUM_THREADS": "1" for name in _THREADS} | {
    "VECLIB_MAXIMUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",  # what joblib's n_jobs=-1 stands for
}
_LEAVE_SECONDS = 5.0


class WorkerError(Exception):
    """A call that has no result."""


class WorkerDiedError(WorkerError):
    """A call whose process ended before the call did."""


class Worker:
    """A process and this side of its pipe.

    ``call`` is the call that it does now, ``rest`` are those that only it may do next.
    """

    def __init__(self, number: int, made: bytes) -> None:
        from joblib.externals.loky.backend import get_context

        context = get_context("loky")
        self.number, self.ready = number, False
        self.call: int | None = None
        self.rest: deque[int] = deque()
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=work,
            args=(theirs, made, _levels(), os.getpid()),
            name=f"worker-{number}",
            daemon=True,
            env=_ENVIRONMENT,
        )
        try:
            with _interrupts_blocked():
                self._process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()

    def __str__(self) -> str:
        return f"worker {self.number} (process {self._process.pid})"

    @property
    def sentinel(self) -> int:
        """What is ready when the process has ended."""
        return int(self._process.sentinel)

    def has_died(self) -> bool:
        """Say whether the process has ended after it was ready."""
        return self.ready and not self._process.is_alive()

    def is_free(self) -> bool:
        """Say whether it can be given a call."""
        return self.ready and self.call is None

    def send(self, call: int, request: Any) -> None:
        """Give it a call."""
        self.call = call
        self.pipe.send_bytes(pickle.dumps(request, pickle.HIGHEST_PROTOCOL))

    def receive(self) -> Any:
        """Return its result or a WorkerError; raise EOFError or OSError if it is dead."""
        if not self.pipe.poll():
            raise EOFError
        data = self.pipe.recv_bytes()
        self.call = None
        try:
            what, result, logged = pickle.loads(data)
        except Exception as error:  # from the result's own classes: anything
            return WorkerError(f"its result cannot be read: {error_text(error)}")
        for name, level, text in logged:
            logging.getLogger(name).log(level, "%s", text)
        match what:
            case "interrupt":
                raise KeyboardInterrupt
            case "broken":
                raise RunError(f"{self} cannot start: {result}")
            case "ready":
                self.ready = True
            case "error":
                return WorkerError(result)
        return result

    def end(self) -> str:
        """Say how the process has ended."""
        self._process.join(_LEAVE_SECONDS)
        code = self._process.exitcode
        if code is None:
            return "its pipe is closed"
        if code >= 0:
            return f"exit status {code}"
        return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"

    def leave(self, at_once: bool) -> None:
        """Tell the process to end."""
        if at_once or not self.ready:
            self._process.terminate()
        self.pipe.close()

    def join(self) -> None:
        """Wait until the process has ended, and make sure of it."""
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._process.is_alive() and time.monotonic() < deadline:
            wait([self.sentinel], LOOK_SECONDS / 10)  # which others may hold
        if self._process.is_alive():
            # Windows knows no SIGKILL: there `terminate` cannot be refused.
            os.kill(self._process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            self._process.join()
        _end_group(self._process.pid)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT, also in a process that is started meanwhile: it has no handler yet."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which would lift the block at its own start
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _levels() -> dict[str, int]:
    """Return the loggers' levels, so that a worker makes no records that nobody wants."""
    known = {"": logging.root, **logging.root.manager.loggerDict}
    return {n: x.level for n, x in known.items() if isinstance(x, logging.Logger) and x.level}


def _end_group(pid: int) -> None:
    """End what the calls of a worker that has ended have left."""
    if not hasattr(os, "killpg"):
        return
    with suppress(ProcessLookupError):
        os.getpgid(pid)
        return  # somebody else's by now, so that the group is gone
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
