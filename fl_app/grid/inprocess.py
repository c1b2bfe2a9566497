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

import threading
import time
import uuid
import weakref
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now
from flwr.supercore.run import Run

from fl_app.grid.client_call import call_client
from fl_app.grid.client_pool import ClientPool
from fl_app.grid.identities import identities
from fl_app.grid.messages import stamp
from fl_app.grid.node_configs import (
    NodeConfigs,
    check_count,
    flat_config,
    node_configs_of,
    node_id_of,
)
from fl_app.grid.private_copies import Wrapped, private_message
from fl_app.grid.replies import CallTimes, link_error
from fl_app.grid.waiting import Waiting
from fl_app.grid.workers import can_have_workers
from fl_app.seeding import generator

__all__ = ["InProcessGrid"]


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
        check_count("num_supernodes", num_supernodes, 1)
        check_count("num_workers", num_workers, 1)
        if shuffle_replies is not None:
            check_count("shuffle_replies", shuffle_replies, 0)
        self._client_app = client_app
        self._run_config = flat_config("run_config", {} if run_config is None else run_config)
        self._node_configs = node_configs_of(num_supernodes, node_configs)
        self._shuffle = shuffle_replies
        self._lock = threading.RLock()  # Flower's legacy servers call from many threads
        self._prefix, self._num_messages, self._num_exchanges = uuid.uuid4().hex, 0, 0
        self._replies: dict[str, Message] = {}
        self._waiting = Waiting()
        self.num_replies = self.num_failed = 0
        self._pool: ClientPool | None = None
        workers = min(num_workers, num_supernodes)
        if workers > 1 and can_have_workers():
            self._pool = ClientPool(client_app, workers)
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
            node_id_of(partition): Context(
                run_id=run.run_id,
                node_id=node_id_of(partition),
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
        ids = {n: c.node_config.get(PARTITION_ID_KEY) for n, c in self._contexts.items()}
        return {node_id: k for node_id, k in ids.items() if type(k) is int}

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

        def take(i: int, reply: Message, context: Context | None) -> None:
            if context is not None:
                self._contexts[messages[i].metadata.dst_node_id] = context
            times.end(messages[i])
            if not times.are_over(messages[i]):
                replies[i] = times.expiry(messages[i]) or reply

        if self._pool is not None:
            self._pool.call(messages, self._contexts, may_call, take)
        else:
            wrapped: Wrapped = {}
            for i, message in enumerate(messages):
                if may_call(i):
                    private = private_message(message, wrapped)
                    context = self._contexts[message.metadata.dst_node_id]
                    take(i, *call_client(self._client_app, message, private, context))
        for i in sorted(replies):
            stamp(replies[i], message_id=self._next_id())
        return [replies[i] for i in sorted(replies)]

    def _refusal(self, message: Message, times: CallTimes) -> Message | None:
        """Return the error that stands for a message that cannot be delivered."""
        node_id = message.metadata.dst_node_id
        if node_id in self._contexts:
            return times.expiry(message)
        return link_error(
            message, ErrorCode.NODE_UNAVAILABLE, f"Node Unavailable: there is no node {node_id}"
        )
