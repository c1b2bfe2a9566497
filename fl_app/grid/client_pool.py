"""Calls of a ClientApp in workers: a node's one by one, nodes side by side."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fl_app.errors import ConfigError
from fl_app.grid.client_call import call_client
from fl_app.grid.identities import identities
from fl_app.grid.private_copies import private_message
from fl_app.grid.workers import Job, WorkerDiedError, WorkerError, WorkerPool

__all__ = ["ClientPool", "WorkerNode"]

_log = logging.getLogger("fl_app.grid")


class ClientPool:
    """Workers that call a ClientApp.

    Parameters
    ----------
    client_app : ClientApp
        The app, which each worker gets a copy of.
    num_workers : int
        Number of processes, at least 1.
    """

    def __init__(self, client_app: ClientApp, num_workers: int) -> None:
        self._pool = WorkerPool(partial(WorkerNode, client_app), num_workers)

    def start(self) -> None:
        """Start the workers that do not run.

        Raises
        ------
        ConfigError
            If the ClientApp cannot be pickled.
        RunError
            If the system refuses a process.
        """
        with self._clear_errors():
            self._pool.start()

    def close(self, at_once: bool = False) -> None:
        """End all workers, as :meth:`WorkerPool.close` does."""
        self._pool.close(at_once)

    def call(
        self,
        messages: Sequence[Message],
        contexts: Mapping[int, Context],
        may_call: Callable[[int], bool],
        take: Callable[[int, Message, Context | None], None],
    ) -> None:
        """Make the calls of an exchange; each carries the node's Context there and back.

        Parameters
        ----------
        messages : sequence of Message
            What to call with.
        contexts : mapping of int to Context
            By node, as they are whenever a call begins: any worker may do it.
        may_call : callable (number of a message) -> bool
            Asked right before a call.
        take : callable (number of a message, reply, Context from now on or None) -> None
            Called after each call.

        Raises
        ------
        ConfigError, RunError
            As :meth:`start`.
        """
        calls: dict[int, list[int]] = {}
        for i, message in enumerate(messages):
            calls.setdefault(message.metadata.dst_node_id, []).append(i)
        partitions = {node_id: k for k, node_id in enumerate(contexts)}
        jobs = [Job(partitions.get(node_id, 0), numbers) for node_id, numbers in calls.items()]

        def ask(i: int) -> tuple[Message, Context] | None:
            node_id = messages[i].metadata.dst_node_id
            return (messages[i], contexts[node_id]) if may_call(i) else None

        def hear(i: int, result: tuple[Message, Context | None] | WorkerError) -> None:
            if isinstance(result, WorkerError):
                take(i, _error(messages[i], result), None)
            else:
                take(i, private_message(result[0]), result[1])

        with self._clear_errors():
            self._pool.run(jobs, ask, hear)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Name the option where workers cannot be had."""
        try:
            yield
        except WorkerError as error:
            allowed = f"1 for a ClientApp that cannot be pickled ({error})"
            raise ConfigError("num_workers", self._pool.num_workers, allowed) from error


class WorkerNode:
    """What a worker does with a message and a Context: the call, as the message's run."""

    def __init__(self, client_app: ClientApp) -> None:
        self._client_app = client_app
        self._run_id: int | None = None
        self._loan: object = None

    def __call__(self, request: tuple[Message, Context]) -> tuple[Message, Context | None]:
        """Return the reply and the node's Context from now on, as ``call_client`` does."""
        message, context = request
        run_id = message.metadata.run_id
        if run_id != self._run_id:
            if self._run_id is not None:
                identities.release(self._loan)
            self._run_id, self._loan = run_id, identities.lend(run_id)
        return call_client(self._client_app, message, private_message(message), context)


def _error(message: Message, error: WorkerError) -> Message:
    """Return the error reply that stands for a call without a result."""
    _log.error("The call of a ClientApp has no result: %s", error)
    died = isinstance(error, WorkerDiedError)
    code = ErrorCode.CLIENT_APP_CRASHED if died else ErrorCode.UNKNOWN
    return Message(Error(code, str(error)), reply_to=message)
