"""A Flower grid whose nodes are calls of a ClientApp in this process.

A ServerApp or a strategy cannot tell :class:`InProcessGrid` from the grid of Flower's simulation
engine: contexts, errors and metadata are the engine's, and what one side does to a content after
sending it never reaches the other side. What it saves is Ray, polling and the coding of arrays
that never leave the process.

References
----------
Flower, ``Grid``: https://flower.ai/docs/framework/ref-api/flwr.serverapp.Grid.html
Flower's simulation engine, whose behaviour is followed: ``flwr/server/superlink/fleet/vce`` and
``flwr/superlink/grid/inmemory_grid.py``
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now
from flwr.supercore.run import Run

from fl_app.errors import ConfigError
from fl_app.grid.identities import identities
from fl_app.grid.messages import stamp
from fl_app.grid.private_copies import Wrapped, is_used, private_context, private_message
from fl_app.grid.replies import CallTimes, check_reply, error_reply, link_error
from fl_app.grid.waiting import Waiting
from fl_app.grid.workers import Job, WorkerDiedError, WorkerError, WorkerPool, can_have_workers
from fl_app.seeding import generator

__all__ = ["InProcessGrid", "in_process"]

NodeConfigs = Mapping[int, UserConfig] | Sequence[UserConfig]
_log = logging.getLogger("fl_app.grid")
_in_client: ContextVar[bool] = ContextVar("fl_app_in_client", default=False)


def in_process() -> bool:
    """Say whether the caller runs inside a ClientApp that an :class:`InProcessGrid` has called.

    Returns
    -------
    bool
        False in a ServerApp, in every other runtime, and in threads that a ClientApp starts.
    """
    return _in_client.get()


class InProcessGrid(Grid):
    """A Flower ``Grid`` that calls a ClientApp in this process, or in workers of its own.

    Every node has a Context of its own, whose state outlives the call if the reply can be used,
    and is as it was before if the ClientApp raised. Contents are private to each client: what it
    does to its message, its context or the reply that it has returned reaches nobody else.
    Replies come in the order of their messages.

    Parameters
    ----------
    client_app : ClientApp
        Any Flower ClientApp, with its mods and its lifespan.
    num_supernodes : int
        Number of nodes, at least 1. Node ids are the same in every grid; they are neither
        partition ids nor in their order.
    run_config : mapping of str to bool, int, float or str, optional
        What every ClientApp finds in ``context.run_config``.
    node_configs : mapping of int to mapping, or sequence of mappings, optional
        By partition: what a ClientApp finds in ``context.node_config`` besides ``partition-id``
        and ``num-partitions`` (or in their place).
    shuffle_replies : int, optional
        A seed: return the replies of every exchange in another order, as a network might.
    num_workers : int, default 1
        With 1 all calls are made in this process, one after the other. With more they are made in
        that many processes (but no more than nodes), each with one BLAS and OpenMP thread: the
        replies are the same, sooner where a call takes long. The processes start when a ``with``
        block begins, or with the first exchange, and end as the task identity does.

    Attributes
    ----------
    num_replies, num_failed : int
        Replies that the server has got so far, and how many of them are errors.

    Raises
    ------
    ConfigError
        If one of them cannot be used.

    Notes
    -----
    ``Message(...)`` takes its sender from Flower's ``TaskIdentity``, which is one for the whole
    process. A grid lends its own from its construction to :meth:`close`, the end of a ``with``
    block, or its collection; then the one before holds again. Several grids may live at a time,
    in several threads: the message is given to the run of the grid that sends it.

    An exception of a ClientApp, ``SystemExit`` too, becomes an ``Error`` reply;
    ``KeyboardInterrupt`` is raised. A call is never interrupted. Nodes answer as if side by side:
    each has the whole `timeout`, and the whole time to live of its messages, for its own calls, and
    what comes later costs its own reply alone.

    Nobody joins: a server that asks for the nodes again and again and only sleeps in between, as
    strategies do until enough nodes are there, gets a ``RunError``.

    Workers get a copy of the ClientApp, pickled as loky does it: its functions are imported there,
    or sent along where they stand in no module that could be imported. Nodes keep their Contexts,
    whichever worker calls them, and mostly the same one does, so that what a ClientApp caches in
    its process is found again. What it keeps in global variables is each worker's own. A worker
    that dies is an ``Error`` reply with ``CLIENT_APP_CRASHED``, and another one takes its place.

    Examples
    --------
    >>> from flwr.app import ConfigRecord, Message, RecordDict
    >>> app = ClientApp()
    >>> @app.query()
    ... def query(message, context):
    ...     context.state["seen"] = message.content["config"]
    ...     return Message(RecordDict(), reply_to=message)
    >>> with InProcessGrid(app, num_supernodes=3) as grid:
    ...     content = RecordDict({"config": ConfigRecord({"lr": 0.1})})
    ...     messages = [Message(content, node, "query") for node in grid.get_node_ids()]
    ...     replies = grid.send_and_receive(messages)
    >>> [reply.has_error() for reply in replies]
    [False, False, False]
    """

    _run: Run

    def __init__(
        self,
        client_app: ClientApp,
        num_supernodes: int,
        run_config: Mapping[str, Any] | None = None,
        node_configs: NodeConfigs | None = None,
        shuffle_replies: int | None = None,
        num_workers: int = 1,
    ) -> None:
        _check_count("num_supernodes", num_supernodes, 1)
        _check_count("num_workers", num_workers, 1)
        if shuffle_replies is not None:
            _check_count("shuffle_replies", shuffle_replies, 0)
        self._client_app = client_app
        self._run_config = _flat("run_config", {} if run_config is None else run_config)
        self._node_configs = _node_configs(num_supernodes, node_configs)
        self._shuffle = shuffle_replies
        self._lock = threading.RLock()  # Flower's legacy servers call from many threads
        self._prefix, self._num_messages, self._num_exchanges = uuid.uuid4().hex, 0, 0
        self._replies: dict[str, Message] = {}
        self._waiting = Waiting()
        self.num_replies = self.num_failed = 0
        self._pool: WorkerPool | None = None
        workers = min(num_workers, num_supernodes)
        if workers > 1 and can_have_workers():
            self._pool = WorkerPool(partial(_Node, client_app, self._run_config), workers)
            weakref.finalize(self, self._pool.close, at_once=True)
        # 63 bits: as large as Flower's own, and still an int64 for whoever needs one
        self._enter_run(Run.create_empty(uuid.uuid4().int >> 65))

    # ------------------------------------------------------------------------- the run

    def set_run(self, run: Run) -> None:
        """Set the run; contexts belong to a run, so that another run's are new.

        Raises
        ------
        TypeError
            If `run` is no ``Run``.
        """
        if not isinstance(run, Run):
            raise TypeError(f"`run` must be an instance of Run, got {type(run).__name__}")
        with self._lock:
            if run.run_id == self._run.run_id:
                self._run = run
                return
            self._release()
            self._enter_run(run)

    def _enter_run(self, run: Run) -> None:
        """Take up a run: new contexts, its identity."""
        self._run = run
        self._contexts = {
            _node_id(partition): Context(
                run_id=run.run_id,
                node_id=_node_id(partition),
                node_config=node_config,
                state=RecordDict(),
                run_config=self._run_config,
            )
            for partition, node_config in enumerate(self._node_configs)
        }
        self._release = weakref.finalize(self, identities.release, identities.lend(run.run_id))
        self._release.atexit = False

    @property
    def run(self) -> Run:
        """A copy of the run."""
        return Run(**vars(self._run))

    def close(self) -> None:
        """Give the process's task identity back, end workers; a second call does nothing."""
        self._waiting.is_over()
        self._release()
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> InProcessGrid:
        if self._pool is not None:
            with _clear_errors(self._pool):
                self._pool.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------- nodes

    def get_node_ids(self) -> list[int]:
        """Return all node ids, in the order of their partitions.

        Raises
        ------
        RunError
            If the caller waits for more.
        """
        self._waiting.check(len(self._contexts))
        return list(self._contexts)

    @property
    def partitions(self) -> dict[int, int]:
        """Node id -> ``partition-id`` of its node config, where that is a whole number."""
        told = {
            n: context.node_config.get(PARTITION_ID_KEY) for n, context in self._contexts.items()
        }
        return {node_id: k for node_id, k in told.items() if type(k) is int}

    def get_nodes(self) -> list[NodeInfo]:
        """Return all nodes, online."""
        return [NodeInfo(node_id=n, status=NodeStatus.ONLINE) for n in self._contexts]

    # ------------------------------------------------------------------------- messages

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return ``Message(content, dst_node_id, message_type, ...)``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Call the clients and keep their replies for :meth:`pull_messages`.

        Parameters
        ----------
        messages : iterable of Message
            Their metadata get a message id and the time of delivery, as in Flower's grids.

        Returns
        -------
        list of str
            Message ids, in the order of the messages.

        Raises
        ------
        ValueError
            If a message is a reply, was delivered before or has no time to live. No client has
            been called then.
        """
        arrived = time.time()
        with self._lock:
            accepted = self._accept(messages)
            ids = [message.metadata.message_id for message in accepted]
            self._replies.update(zip(ids, self._exchange(accepted, arrived), strict=True))
            return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, each once; an unknown id has none."""
        with self._lock:
            known = [i for i in dict.fromkeys(message_ids) if i in self._replies]
            return self._arrive([self._replies.pop(i) for i in known])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Call the clients and return their replies.

        Parameters
        ----------
        messages : iterable of Message
            As in :meth:`push_messages`.
        timeout : float or None, default None
            Seconds that each node has for its own calls; a later reply is left out.

        Returns
        -------
        list of Message
            Replies in the order of their messages, unless they are shuffled.

        Raises
        ------
        ValueError
            As :meth:`push_messages`.
        """
        arrived = time.time()
        with self._lock:
            return self._arrive(self._exchange(self._accept(messages), arrived, timeout))

    def _accept(self, messages: Iterable[Message]) -> list[Message]:
        """Check messages and give them to this run, as Flower's grids do when they push."""
        self._waiting.is_over()
        accepted = list(messages)
        for message in accepted:
            metadata = message.metadata
            if metadata.reply_to_message_id or metadata.delivered_at or not metadata.ttl > 0:
                raise ValueError(f"Invalid message: {metadata}")
        for message in accepted:
            stamp(
                message,
                message_id=self._next_id(),
                run_id=self._run.run_id,
                src_node_id=SUPERLINK_NODE_ID,
            )
        return accepted

    def _arrive(self, replies: list[Message]) -> list[Message]:
        """Mark replies as delivered, and shuffle them if asked to."""
        delivered_at = now().isoformat()
        for reply in replies:
            reply.metadata.delivered_at = delivered_at
        self.num_replies += len(replies)
        self.num_failed += sum(reply.has_error() for reply in replies)
        if self._shuffle is None:
            return replies
        self._num_exchanges += 1
        draw = generator(self._shuffle, "replies", self._num_exchanges)
        return [replies[i] for i in draw.permutation(len(replies))]

    def _next_id(self) -> str:
        self._num_messages += 1
        return f"{self._prefix}-{self._num_messages}"

    def _exchange(
        self, messages: list[Message], arrived: float, timeout: float | None = None
    ) -> list[Message]:
        """Map messages to replies in their order.

        Parameters
        ----------
        messages : list of Message
            Accepted ones.
        arrived : float
            Unix time in seconds at which they came; what a node waits for others does not count.
        timeout : float or None, default None
            Seconds that each node has; what has no reply by then is left out.

        Returns
        -------
        list of Message
            Private ones, with ids, not yet marked as delivered.
        """
        times = CallTimes(arrived, timeout)
        delivered_at = now().isoformat()
        replies: dict[int, Message] = {}

        def may_call(i: int) -> bool:
            if times.are_over(messages[i]):
                return False
            messages[i].metadata.delivered_at = delivered_at
            refusal = self._refusal(messages[i], times)
            if refusal is None:
                times.begin(messages[i])
                return True
            replies[i] = refusal
            return False

        def take(i: int, reply: Message) -> None:
            times.end(messages[i])
            if not times.are_over(messages[i]):
                replies[i] = times.expiry(messages[i]) or reply

        if self._pool is not None:
            self._call_by_workers(self._pool, messages, may_call, take)
        else:
            wrapped: Wrapped = {}
            for i, message in enumerate(messages):
                if may_call(i):
                    take(i, self._call(message, private_message(message, wrapped)))
        for i in sorted(replies):
            stamp(replies[i], message_id=self._next_id())
        return [replies[i] for i in sorted(replies)]

    def _call_by_workers(
        self,
        pool: WorkerPool,
        messages: list[Message],
        may_call: Callable[[int], bool],
        take: Callable[[int, Message], None],
    ) -> None:
        """Make the calls in other processes: a node's one by one, nodes side by side.

        Each call carries the node's Context there and back, so that any worker may do it.
        """
        calls: dict[int, list[int]] = {}
        for i, message in enumerate(messages):
            calls.setdefault(message.metadata.dst_node_id, []).append(i)
        partitions = {node_id: k for k, node_id in enumerate(self._contexts)}
        jobs = [Job(partitions.get(node_id, 0), own) for node_id, own in calls.items()]

        def ask(i: int) -> tuple[Message, Context] | None:
            node_id = messages[i].metadata.dst_node_id
            return (messages[i], self._contexts[node_id]) if may_call(i) else None

        def hear(i: int, result: tuple[Message, Context | None] | WorkerError) -> None:
            take(i, self._reply_of_worker(messages[i], result))

        with _clear_errors(pool):
            pool.run(jobs, ask, hear)

    def _reply_of_worker(
        self, message: Message, result: tuple[Message, Context | None] | WorkerError
    ) -> Message:
        """Return the reply that a worker's result stands for; advance the node's Context."""
        if isinstance(result, WorkerError):
            died = isinstance(result, WorkerDiedError)
            _log.error("The call of a ClientApp has no result: %s", result)
            code = ErrorCode.CLIENT_APP_CRASHED if died else ErrorCode.UNKNOWN
            return Message(Error(code, str(result)), reply_to=message)
        reply, after = result
        if after is not None:
            self._contexts[message.metadata.dst_node_id] = after
        return private_message(reply)

    def _refusal(self, message: Message, times: CallTimes) -> Message | None:
        """Return the error that stands for a message that cannot be delivered."""
        node_id = message.metadata.dst_node_id
        if node_id in self._contexts:
            return times.expiry(message)
        return link_error(
            message, ErrorCode.NODE_UNAVAILABLE, f"Node Unavailable: there is no node {node_id}"
        )

    def _call(self, message: Message, own: Message) -> Message:
        """Call the ClientApp with a message of its own; advance the node's Context if it replies.

        The engine hands a copy of the Context to the client and stores what comes back with a
        reply: after an exception the old one is in force.
        """
        node_id = message.metadata.dst_node_id
        before = self._contexts[node_id]
        context = private_context(before)
        calling = _in_client.set(True)
        try:
            reply = self._client_app(message=own, context=context)
        except (Exception, SystemExit) as error:
            # Text: a handler that keeps a record's exc_info would keep the client's data alive.
            trace = "".join(traceback.format_exception(error))
            _log.error("ClientApp of node %s raised an exception\n%s", node_id, trace)
            return error_reply(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, error)
        finally:
            _in_client.reset(calling)
        try:
            check_reply(reply, message)
            reply = private_message(reply)
            after = private_context(context) if is_used(context, before) else before
            if after.run_config != self._run_config:
                raise ValueError(
                    "The `run_config` field of the `Context` object cannot be modified"
                )
        except Exception as error:
            _log.error("ClientApp of node %s cannot be understood: %s", node_id, str(error))
            return error_reply(message, ErrorCode.UNKNOWN, error)
        self._contexts[node_id] = after
        return reply

    def call_for(self, message: Message, context: Context) -> tuple[Message, Context | None]:
        """Make a call for the grid of another process.

        Parameters
        ----------
        message : Message
            As that grid would deliver it.
        context : Context
            The node's.

        Returns
        -------
        reply : Message
        after : Context or None
            The node's from now on; None if it stays as it was.
        """
        metadata = message.metadata
        if metadata.run_id != self._run.run_id:
            self.set_run(Run.create_empty(metadata.run_id))
        self._contexts = {metadata.dst_node_id: context}
        reply = self._call(message, private_message(message))
        after = self._contexts[metadata.dst_node_id]
        return reply, None if after is context else after


class _Node:
    """What a worker does with a message and a Context: the call of a grid of its own."""

    def __init__(self, client_app: ClientApp, run_config: UserConfig) -> None:
        self._grid = InProcessGrid(client_app, num_supernodes=1, run_config=run_config)

    def __call__(self, request: tuple[Message, Context]) -> tuple[Message, Context | None]:
        return self._grid.call_for(*request)


@contextmanager
def _clear_errors(pool: WorkerPool) -> Iterator[None]:
    """Name the option where workers cannot be had."""
    try:
        yield
    except WorkerError as error:
        allowed = f"1 for a ClientApp that cannot be pickled ({error})"
        raise ConfigError("num_workers", pool.num_workers, allowed) from error


def _node_id(partition: int) -> int:
    """Return a node id below 2**63 that nobody takes for a partition id.

    An odd factor permutes the integers modulo a power of two, so that ids are distinct; this one
    (2**64 over the golden ratio) also scatters them.
    """
    return (partition + 2) * 0x9E3779B97F4A7C15 % 2**63


def _check_count(field: str, value: object, least: int) -> None:
    """Raise ConfigError unless a value is an int of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(field, value, f"an integer of at least {least}")


def _flat(field: str, config: object) -> UserConfig:
    """Copy a config after checking that Flower could carry it."""
    if not isinstance(config, Mapping):
        raise ConfigError(field, config, "a mapping of names to bool, int, float or str")
    for name, value in config.items():
        if not isinstance(name, str):
            raise ConfigError(field, name, "names are str")
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"{field}.{name}", value, "a bool, int, float or str")
    return dict(config)


def _node_configs(num_supernodes: int, node_configs: NodeConfigs | None) -> list[UserConfig]:
    """Return the config of each node, in the order of partitions."""
    given = node_configs if node_configs is not None else {}
    if not isinstance(given, Mapping):
        given = dict(enumerate(given))
    for partition in given:
        if partition not in range(num_supernodes):
            allowed = f"keys are partition ids, 0 to {num_supernodes - 1}"
            raise ConfigError("node_configs", partition, allowed)
    return [
        {PARTITION_ID_KEY: i, NUM_PARTITIONS_KEY: num_supernodes}
        | _flat(f"node_configs.{i}", given.get(i, {}))
        for i in range(num_supernodes)
    ]
