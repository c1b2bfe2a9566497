"""Processes of this machine that do calls for this one, side by side.

A :class:`WorkerPool` maps calls to results. It starts loky's processes, which neither import this
process's main module nor share its threads, and gives each a pipe of its own. That is what loky's
executor, with its one queue for all, cannot tell: which call a dead process had, so that only that
one is lost; and which process has seen a call's data before, so that it gets the next call too.

No process is left behind: a worker ends with its pipe, and in the midst of a call within a second
of this process's death, be it by SIGKILL, and so do the processes that calls have started there, as
torch's DataLoader does. Ctrl-C is this process's alone: it ends the workers. Each worker has one
BLAS and one OpenMP thread, and no workers of its own.

Requests and results are pickled. They pass between processes of one user on one machine, through
a pipe that nobody else can open, and the worker runs that user's code already: unlike a wire
between machines, the pipe gives nobody a way to run code that they could not run before.

References
----------
loky: https://loky.readthedocs.io
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import current_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from fl_app.errors import RunError
from fl_app.seeding import one_thread

__all__ = ["Job", "WorkerDiedError", "WorkerError", "WorkerPool", "can_have_workers"]

Handler = Callable[[Any], Any]
Logged = list[tuple[str, int, str]]

_THREADS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR")
_ENVIRONMENT = {f"{name}_NUM_THREADS": "1" for name in _THREADS} | {
    "VECLIB_MAXIMUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",  # what joblib's n_jobs=-1 stands for
}
_LEAVE_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_PARENT_SECONDS = 0.5
_is_worker = False


class WorkerError(Exception):
    """A call that has no result."""


class WorkerDiedError(WorkerError):
    """A call whose process ended before the call did."""


@dataclass(frozen=True)
class Job:
    """Calls that follow one another, each after the one before.

    Parameters
    ----------
    home : int
        A number of the data that the calls work on; jobs with one number go to one worker unless
        another one would be idle.
    calls : sequence of int
        Numbers of the calls.
    """

    home: int
    calls: Sequence[int]


def can_have_workers() -> bool:
    """Say whether this process may start workers: a worker itself may not."""
    return not (_is_worker or current_process().daemon)


class WorkerPool:
    """A fixed number of processes that each do one call after the other.

    Parameters
    ----------
    make : callable () -> handler
        Called once in each worker, for the function that does the calls. It is pickled as loky
        does it: what an importable module holds is imported there, all else goes by value.
    num_workers : int
        Number of processes, at least 1.

    Notes
    -----
    What a handler logs is logged here, by the loggers of the same names, when its call has ended;
    what it prints goes to this process's streams. Functions that it registers with :mod:`atexit`
    are not called.
    """

    def __init__(self, make: Callable[[], Handler], num_workers: int) -> None:
        self._make, self.num_workers = make, num_workers
        self._workers: list[_Worker] = []
        self._owner = os.getpid()

    def start(self) -> None:
        """Start the workers that do not run; they get ready by themselves.

        Raises
        ------
        WorkerError
            If `make` cannot be pickled.
        RunError
            If the system refuses a process.
        """
        for number in range(self.num_workers):
            if number == len(self._workers):
                self._workers.append(self._new(number))
            elif self._workers[number].has_died():
                self._restart(self._workers[number])

    def run(
        self,
        jobs: Sequence[Job],
        ask: Callable[[int], Any],
        take: Callable[[int, Any], None],
    ) -> None:
        """Do all calls of all jobs; return when the last one has ended.

        Parameters
        ----------
        jobs : sequence of Job
            Each worker takes those of its number in their order, then the last ones of others.
        ask : callable (call) -> request or None
            Called right before a call; None leaves the call out.
        take : callable (call, result) -> None
            Called after each call with what the handler returned; with a :class:`WorkerError` if
            there is nothing, in which case the other calls go on, with a new worker if need be.

        Raises
        ------
        WorkerError
            As :meth:`start`.
        RunError
            As :meth:`start`; if a worker ends before it is ready.
        KeyboardInterrupt
            If this process is interrupted, or a handler raises it.
        Exception
            Whatever `ask` and `take` raise. After any exception no worker is left.
        """
        try:
            self.start()
            exchange = _Exchange(self._workers, jobs, ask, take)
            while worker := exchange.step():
                self._restart(worker)
        except BaseException:
            self.close(at_once=True)
            raise

    def close(self, at_once: bool = False) -> None:
        """End all workers; a later :meth:`run` starts new ones.

        Parameters
        ----------
        at_once : bool, default False
            Do not give them time to finish a call.
        """
        if os.getpid() != self._owner:  # a fork's copy of the pool: the processes are not its own
            return
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.leave(at_once)
        for worker in workers:
            worker.join()

    def _restart(self, worker: _Worker) -> None:
        worker.leave(at_once=True)
        worker.join()
        self._workers[worker.number] = self._new(worker.number)

    def _new(self, number: int) -> _Worker:
        # Imported here: whoever has no workers need not wait for it.
        from joblib.externals.loky.backend.reduction import dumps

        try:
            made = bytes(dumps(self._make))
        except Exception as error:
            raise WorkerError(_text(error)) from error
        try:
            return _Worker(number, made)
        except OSError as error:
            raise RunError(f"worker {number} cannot be started: {error}") from error


class _Exchange:
    """One :meth:`WorkerPool.run`: which calls wait, and which worker does which."""

    def __init__(
        self,
        workers: list[_Worker],
        jobs: Sequence[Job],
        ask: Callable[[int], Any],
        take: Callable[[int, Any], None],
    ) -> None:
        self._workers, self._ask, self._take = workers, ask, take
        self._lanes: list[deque[deque[int]]] = [deque() for _ in workers]
        for job in jobs:
            self._lanes[job.home % len(workers)].append(deque(job.calls))

    def step(self) -> _Worker | None:
        """Go on until all is done (None), or to where a worker has to be replaced."""
        while True:
            for worker in self._workers:
                if worker.is_free() and not self._give(worker):
                    return worker
            if not any(self._lanes) and all(worker.call is None for worker in self._workers):
                return None
            awaited: dict[Any, _Worker] = {}
            for worker in self._workers:
                if not worker.is_free():
                    awaited |= {worker.pipe: worker, worker.sentinel: worker}
            # What a call has started may hold a dead worker's pipe and sentinel.
            heard = {awaited[ready] for ready in wait([*awaited], _LOOK_SECONDS)}
            for worker in heard or {w for w in awaited.values() if w.has_died()}:
                if not self._hear(worker):
                    return worker

    def _give(self, worker: _Worker) -> bool:
        """Send a free worker its next call, if there is one; False if it is dead."""
        while True:
            if not worker.rest:
                lane = self._lanes[worker.number] or max(self._lanes, key=len)
                if not lane:
                    return True
                own = lane is self._lanes[worker.number]
                worker.rest = lane.popleft() if own else lane.pop()
                continue
            call = worker.rest.popleft()
            request = self._ask(call)
            if request is None:
                continue
            try:
                worker.send(call, request)
            except OSError:
                return self._bury(worker)
            except Exception as error:  # from pickle: anything that an object's own method raises
                worker.call = None
                self._take(call, WorkerError(f"it cannot be sent: {_text(error)}"))
                continue
            return True

    def _hear(self, worker: _Worker) -> bool:
        """Take what a worker has to say; False if it is dead."""
        call = worker.call
        try:
            result = worker.receive()
        except (EOFError, OSError):
            return self._bury(worker)
        if call is not None:
            self._take(call, result)
        return True

    def _bury(self, worker: _Worker) -> bool:
        """Give up the call of a dead worker; what would have followed is for others."""
        call, end = worker.call, worker.end()
        if not worker.ready:
            raise RunError(f"{worker} ended before its first call: {end}")
        if worker.rest:
            self._lanes[worker.number].appendleft(worker.rest)
        if call is not None:
            self._take(call, WorkerDiedError(f"{worker} ended in the midst of it: {end}"))
        return False


# ----------------------------------------------------------------------------- this side


class _Worker:
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
            target=_work,
            args=(theirs, made, _levels(), os.getpid()),
            name=f"worker-{number}",
            daemon=True,
            env=_ENVIRONMENT,
        )
        try:
            with _interrupts_held():
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
            return WorkerError(f"its result cannot be read: {_text(error)}")
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
            wait([self.sentinel], _PARENT_SECONDS / 10)  # which others may hold
        if self._process.is_alive():
            # Windows knows no SIGKILL: there `terminate` cannot be refused.
            os.kill(self._process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            self._process.join()
        _end_group(self._process.pid)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back, also in a process that is started meanwhile: it has no handler yet."""
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


# ----------------------------------------------------------------------------- the other side


def _work(pipe: Connection, made: bytes, levels: Mapping[str, int], parent: int) -> None:
    """Do one call after the other until the pipe ends, and this process with it."""
    _leave_interrupts_to_the_parent()
    _lead()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with suppress(EOFError, OSError):
        try:
            handler = pickle.loads(made)()
        except BaseException as error:
            pipe.send(("broken", _text(error), []))
        else:
            log = _Log(levels)
            pipe.send(("ready", None, []))
            _serve(pipe, handler, log)
    _end()


def _serve(pipe: Connection, handler: Handler, log: _Log) -> None:
    """Answer requests until there is nobody who could send one."""
    with one_thread():
        while True:
            request = pipe.recv_bytes()
            with one_thread():  # for what was imported since
                answer = _answer(handler, request, log)
            sys.stdout.flush()
            pipe.send_bytes(answer)


def _answer(handler: Handler, request: bytes, log: _Log) -> bytes:
    """Do one call; pickle its end."""
    try:
        result = handler(pickle.loads(request))
        return pickle.dumps(("done", result, log.records), pickle.HIGHEST_PROTOCOL)
    except KeyboardInterrupt:
        return pickle.dumps(("interrupt", None, log.records))
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        logging.getLogger(__name__).error("a worker's call has no result\n%s", text)
        return pickle.dumps(("error", _text(error), log.records))
    finally:
        log.records = []


def _end_with(parent: int) -> None:
    """End this process when its parent has, also in the midst of a call.

    Nor does the pipe end where a fork of the parent holds it.
    """
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    _end()


def _lead() -> None:
    """Let calls start processes, in a group that ends with this one."""
    global _is_worker
    _is_worker = True
    # To its parent it is a daemon, which may have no children, as nobody would end them.
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    if hasattr(os, "setsid"):
        os.setsid()


def _end() -> None:
    """End this process and what its calls have started."""
    # At once: an interpreter that ends in order takes long after many imports.
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _end_group(pid: int) -> None:
    """End what the calls of a worker that has ended have left."""
    if not hasattr(os, "killpg"):
        return
    with suppress(ProcessLookupError):
        os.getpgid(pid)
        return  # somebody else's by now, so that the group is gone
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _leave_interrupts_to_the_parent() -> None:
    """Let Ctrl-C in a terminal, which reaches all of its processes, be the parent's to handle."""
    # A handler, as an ignored signal would stay ignored in programs that are started here.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class _Log(logging.Handler):
    """Keeps what is logged, for the parent; the levels are the parent's."""

    def __init__(self, levels: Mapping[str, int]) -> None:
        super().__init__()
        self.records: Logged = []
        for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
            if isinstance(logger, logging.Logger):
                logger.handlers, logger.propagate = [], True
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as text: what it refers to may not leave this process."""
        self.records.append((record.name, record.levelno, self.format(record)))


def _text(error: BaseException) -> str:
    """Show an error on one line."""
    try:
        text = " ".join(str(error).split())
    except Exception as second:
        text = f"no text: {type(second).__name__}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
