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

from typing import TYPE_CHECKING

from fl_app.lazy import exporter

if TYPE_CHECKING:
    from fl_app.grid.workers.child import can_have_workers
    from fl_app.grid.workers.pool import Job, WorkerPool
    from fl_app.grid.workers.process import WorkerDiedError, WorkerError

__all__ = ["Job", "WorkerDiedError", "WorkerError", "WorkerPool", "can_have_workers"]

_HOMES = {
    "child": ["can_have_workers"],
    "pool": ["Job", "WorkerPool"],
    "process": ["WorkerDiedError", "WorkerError"],
}

__getattr__ = exporter(__name__, _HOMES)
