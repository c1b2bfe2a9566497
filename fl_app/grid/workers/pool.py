"""A pool of processes: which calls wait, and which worker does which."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from fl_app.errors import RunError
from fl_app.grid.workers.child import Handler, error_text
from fl_app.grid.workers.process import Worker, WorkerDiedError, WorkerError

__all__ = ["Job", "WorkerPool"]

_LOOK_SECONDS = 1.0


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
        self._workers: list[Worker] = []
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

    def _restart(self, worker: Worker) -> None:
        worker.leave(at_once=True)
        worker.join()
        self._workers[worker.number] = self._new(worker.number)

    def _new(self, number: int) -> Worker:
        # Imported here: whoever has no workers need not wait for it.
        from joblib.externals.loky.backend.reduction import dumps

        try:
            made = bytes(dumps(self._make))
        except Exception as error:
            raise WorkerError(error_text(error)) from error
        try:
            return Worker(number, made)
        except OSError as error:
            raise RunError(f"worker {number} cannot be started: {error}") from error


class _Exchange:
    """One :meth:`WorkerPool.run`: which calls wait, and which worker does which."""

    def __init__(
        self,
        workers: list[Worker],
        jobs: Sequence[Job],
        ask: Callable[[int], Any],
        take: Callable[[int, Any], None],
    ) -> None:
        self._workers, self._ask, self._take = workers, ask, take
        self._lanes: list[deque[deque[int]]] = [deque() for _ in workers]
        for job in jobs:
            self._lanes[job.home % len(workers)].append(deque(job.calls))

    def step(self) -> Worker | None:
        """Go on until all is done (None), or to where a worker has to be replaced."""
        while True:
            for worker in self._workers:
                if worker.is_free() and not self._give(worker):
                    return worker
            if not any(self._lanes) and all(worker.call is None for worker in self._workers):
                return None
            awaited: dict[Any, Worker] = {}
            for worker in self._workers:
                if not worker.is_free():
                    awaited |= {worker.pipe: worker, worker.sentinel: worker}
            # What a call has started may hold a dead worker's pipe and sentinel.
            heard = {awaited[ready] for ready in wait([*awaited], _LOOK_SECONDS)}
            for worker in heard or {w for w in awaited.values() if w.has_died()}:
                if not self._hear(worker):
                    return worker

    def _give(self, worker: Worker) -> bool:
        """Send a free worker its next call, if there is one; False if it is dead."""
        while True:
            if not worker.rest:
                lane = self._lanes[worker.number] or max(self._lanes, key=len)
                if not lane:
                    return True
                is_home = lane is self._lanes[worker.number]
                worker.rest = lane.popleft() if is_home else lane.pop()
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
                self._take(call, WorkerError(f"it cannot be sent: {error_text(error)}"))
                continue
            return True

    def _hear(self, worker: Worker) -> bool:
        """Take what a worker has to say; False if it is dead."""
        call = worker.call
        try:
            result = worker.receive()
        except (EOFError, OSError):
            return self._bury(worker)
        if call is not None:
            self._take(call, result)
        return True

    def _bury(self, worker: Worker) -> bool:
        """Give up the call of a dead worker; what would have followed is for others."""
        call, end = worker.call, worker.end()
        if not worker.ready:
            raise RunError(f"{worker} ended before its first call: {end}")
        if worker.rest:
            self._lanes[worker.number].appendleft(worker.rest)
        if call is not None:
            self._take(call, WorkerDiedError(f"{worker} ended in the midst of it: {end}"))
        return False
