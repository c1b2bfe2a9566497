"""The in-process grid: Flower's rules, private contents, borrowed identity."""

from __future__ import annotations

import copy
import gc
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.clientapp.mod import fixedclipping_mod, message_size_mod
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.compat.client.run_info_store import DeprecatedRunInfoStore
from flwr.proto.task_pb2 import Task
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.superlink.fleet.vce.backend.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.server.superlink.fleet.vce.vce_api import _register_nodes, run_api
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as strategies
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_app.errors import ConfigError, RunError
from fl_app.grid import InProcessGrid, in_process, run_in_process
from fl_app.grid.arrays import LazyArray, hold, read
from fl_app.grid.watched import WatchedGrid

W = np.arange(6.0).reshape(2, 3)
Handler = Callable[[Message, Context], Any]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep Flower's own log out of the tests' output."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _identity_comes_back() -> Iterator[None]:
    """Every test leaves Flower's task identity as it found it."""
    gc.collect()
    before = identity()
    yield
    gc.collect()
    assert identity() == before


def identity() -> tuple[int | None, ...]:
    return TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id


def app_of(handler: Handler, mods: list[Any] | None = None) -> ClientApp:
    """Make a ClientApp that does the same for every kind of message."""
    app = ClientApp(mods=mods)
    for register in (app.train, app.evaluate, app.query):
        register()(handler)
    return app


def answer(message: Message, content: RecordDict | None = None) -> Message:
    return Message(RecordDict() if content is None else content, reply_to=message)


def echo(message: Message, context: Context) -> Message:
    return answer(message, message.content)


def partition(context: Context) -> int:
    value = context.node_config["partition-id"]
    assert isinstance(value, int)
    return value


def ask(grid: Grid, content: RecordDict | None = None, kind: str = "query") -> list[Message]:
    """Send one content to every node; return the replies in the order of nodes."""
    content = RecordDict() if content is None else content
    messages = [Message(content, node, kind) for node in grid.get_node_ids()]
    return list(grid.send_and_receive(messages))


def numbers(**values: float) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({**values})})


def number(reply: Message, name: str) -> Any:
    return reply.content.metric_records["metrics"][name]


# ----------------------------------------------------------------------------- nodes


def test_is_a_flower_grid() -> None:
    """Nothing of Flower's abstract grid is missing, and clients do answer."""
    grid = InProcessGrid(app_of(echo), num_supernodes=3)
    assert isinstance(grid, Grid)
    assert [reply.metadata.src_node_id for reply in ask(grid)] == grid.get_node_ids()


@settings(deadline=None)
@given(num_supernodes=st.integers(1, 300))
def test_node_ids_are_no_partition_ids(num_supernodes: int) -> None:
    """Node ids are fixed, distinct, 63 bits wide, and say nothing of the partition."""
    first, second = (InProcessGrid(app_of(echo), num_supernodes) for _ in range(2))
    ids = first.get_node_ids()
    assert ids == second.get_node_ids()
    assert len(set(ids)) == num_supernodes
    assert not {0, SUPERLINK_NODE_ID, *range(num_supernodes)} & set(ids)
    assert max(ids) < 2**63
    assert num_supernodes < 4 or ids != sorted(ids)
    assert [node.node_id for node in first.get_nodes()] == ids


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num_supernodes": 0}, "num_supernodes=0: an integer of at least 1"),
        ({"num_supernodes": 2.0}, "num_supernodes=2.0: an integer of at least 1"),
        ({"num_supernodes": True}, "num_supernodes=true: an integer of at least 1"),
        ({"shuffle_replies": -1}, "shuffle_replies=-1: an integer of at least 0"),
        ({"run_config": {"a": {"b": 1}}}, "run_config.a={'b': 1}: a bool, int, float or str"),
        ({"run_config": {3: 1}}, "run_config=3: names are str"),
        ({"run_config": "a=1"}, "run_config=a=1: a mapping of names to bool, int, float or str"),
        ({"run_config": []}, "run_config=[]: a mapping of names to bool, int, float or str"),
        ({"node_configs": {2: {}}}, "node_configs=2: keys are partition ids, 0 to 1"),
        ({"node_configs": [{}, {}, {}]}, "node_configs=2: keys are partition ids, 0 to 1"),
        ({"node_configs": [{"a": []}]}, "node_configs.0.a=[]: a bool, int, float or str"),
    ],
)
def test_refuses_wrong_arguments(arguments: dict[str, Any], text: str) -> None:
    """The error names the field, the value and what is allowed; no identity is borrowed."""
    before = identity()
    for make in (
        lambda **given: InProcessGrid(app_of(echo), **given),
        lambda **given: run_in_process(ServerApp(), app_of(echo), **given),
    ):
        with pytest.raises(ConfigError) as error:
            make(**{"num_supernodes": 2, **arguments})
        assert str(error.value) == text
    assert identity() == before


# ----------------------------------------------------------------------------- contexts


@pytest.mark.parametrize("as_list", [True, False])
def test_each_node_has_its_configs(as_list: bool) -> None:
    """A node's config names its partition and what was given for it; the run's is the same."""
    seen: list[Context] = []

    def client(message: Message, context: Context) -> Message:
        seen.append(context)
        return answer(message)

    run_config, extra = {"lr": 0.1}, {"data": "a.csv"}
    configs: Any = [{}, extra] if as_list else {1: extra}
    grid = InProcessGrid(app_of(client), 3, run_config, configs)
    run_config["lr"], extra["data"] = 9.0, "b.csv"
    ask(grid)
    assert [context.node_config for context in seen] == [
        {"partition-id": 0, "num-partitions": 3},
        {"partition-id": 1, "num-partitions": 3, "data": "a.csv"},
        {"partition-id": 2, "num-partitions": 3},
    ]
    assert [context.run_config for context in seen] == [{"lr": 0.1}] * 3
    assert [context.node_id for context in seen] == grid.get_node_ids()
    assert {context.run_id for context in seen} == {grid.run.run_id}


def counting(message: Message, context: Context) -> Message:
    """Count calls in the state; in the way that the message asks for, fail afterwards."""
    state = context.state
    calls = state.metric_records["calls"]["n"] if "calls" in state else 0
    assert isinstance(calls, int)
    state["calls"] = MetricRecord({"n": calls + 1})
    history: Any = state.config_records["history"]["calls"] if "history" in state else []
    history.append(calls + 1)
    state["history"] = ConfigRecord({"calls": history})
    state["arrays"] = ArrayRecord({"w": Array(W + calls)})
    match message.content.config_records["do"]["what"] if "do" in message.content else "":
        case "raise":
            raise RuntimeError("boom")
        case "exit":
            raise SystemExit(3)
        case "return 7":
            return 7  # type: ignore[return-value]
        case "change run_config":
            context.run_config["lr"] = 9.0
        case "new state":
            context.state = RecordDict({"calls": MetricRecord({"n": 100})})
        case "new node_config":
            context.node_config["seen"] = True
        case "no state":
            context.state = None  # type: ignore[assignment]
        case "error reply":
            return Message(Error(17, "refused"), reply_to=message)
    return answer(message, numbers(n=calls + 1, length=len(history)))


def do(what: str) -> RecordDict:
    return RecordDict({"do": ConfigRecord({"what": what})})


def test_state_lasts_and_is_a_nodes_own() -> None:
    """A node counts its own calls, over exchanges and kinds of message."""
    grid = InProcessGrid(app_of(counting), num_supernodes=2)
    first, _ = grid.get_node_ids()
    assert [number(reply, "n") for reply in ask(grid, kind="train")] == [1, 1]
    assert [number(r, "n") for r in grid.send_and_receive([Message(RecordDict(), first, "query")])]
    assert [number(reply, "n") for reply in ask(grid, kind="evaluate")] == [3, 2]


@pytest.mark.parametrize("what", ["raise", "exit", "return 7", "change run_config", "no state"])
def test_state_is_as_before_after_an_error(what: str) -> None:
    """A call that has no reply leaves no trace in its node's Context."""
    grid = InProcessGrid(app_of(counting), 2, {"lr": 0.1})
    ask(grid)
    assert all(reply.has_error() for reply in ask(grid, do(what)))
    replies = ask(grid)
    assert [(number(reply, "n"), number(reply, "length")) for reply in replies] == [(2, 2)] * 2


@pytest.mark.parametrize(("what", "calls"), [("error reply", 3), ("new state", 101)])
def test_state_goes_on_with_a_reply(what: str, calls: int) -> None:
    """A state that is replaced, or left with an error that the client returns, counts."""
    grid = InProcessGrid(app_of(counting), num_supernodes=1)
    ask(grid)
    ask(grid, do(what))
    assert number(ask(grid)[0], "n") == calls


def test_contexts_cannot_be_reached_from_outside() -> None:
    """A Context that a client has kept is not the one of its node's next call."""
    kept: list[Context] = []

    def client(message: Message, context: Context) -> Message:
        kept.append(context)
        return counting(message, context)

    grid = InProcessGrid(app_of(client), 1, {"lr": 0.1})
    ask(grid)
    kept[0].state.clear()
    kept[0].run_config["lr"] = 9.0
    kept[0].node_config["partition-id"] = 5
    assert number(ask(grid)[0], "n") == 2
    assert kept[1].run_config == {"lr": 0.1}
    assert partition(kept[1]) == 0
    history: Any = kept[1].state.config_records["history"]["calls"]
    history.clear()
    assert number(ask(grid)[0], "length") == 3


def test_another_run_has_new_contexts() -> None:
    """States belong to a run: setting the same one keeps them, another one does not."""
    grid = InProcessGrid(app_of(counting), num_supernodes=1)
    ask(grid)
    grid.set_run(grid.run)
    assert number(ask(grid)[0], "n") == 2
    grid.set_run(Run.create_empty(77))
    replies = ask(grid)
    assert number(replies[0], "n") == 1
    assert grid.run.run_id == replies[0].metadata.run_id == TaskIdentity.run_id == 77
    with pytest.raises(TypeError, match="must be an instance of Run"):
        grid.set_run(3)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------- privacy


@pytest.mark.parametrize("arrays", [hold({"w": W}), ArrayRecord({"w": Array(W)})])
def test_hostile_client_harms_nobody(arrays: ArrayRecord) -> None:
    """What a client does to its message reaches neither the next one nor the server."""

    def client(message: Message, context: Context) -> Message:
        content = message.content
        config, record = content.config_records["config"], content.array_records["arrays"]
        assert (dict(config), list(content)) == ({"list": [1, 2]}, ["arrays", "config"])
        assert np.array_equal(record["w"].numpy(), W)
        classes: Any = config["list"]
        classes.append(3)
        config["more"] = 1
        content["junk"] = MetricRecord()
        mine = record["w"].numpy()
        mine += partition(context)
        record["w"] = Array(mine)
        reply = answer(message, content)
        message.metadata.dst_node_id = 5
        message.metadata.ttl = 0.1
        message.content = RecordDict()
        return reply

    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"list": [1, 2]})})
    grid = InProcessGrid(app_of(client), num_supernodes=3)
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    replies = grid.send_and_receive(messages)
    for i, reply in enumerate(replies):
        assert np.array_equal(reply.content.array_records["arrays"]["w"].numpy(), W + i)
    assert content == RecordDict(
        {"arrays": ArrayRecord({"w": Array(W)}), "config": ConfigRecord({"list": [1, 2]})}
    )
    assert [m.metadata.dst_node_id for m in messages] == grid.get_node_ids()
    assert all(m.content is content and m.metadata.ttl > 1 for m in messages)


def test_reply_cannot_be_changed_afterwards() -> None:
    """A client that keeps its reply, its records and its ndarrays has no hand in the reply."""
    kept: list[tuple[Message, NDArray[Any]]] = []

    def client(message: Message, context: Context) -> Message:
        mine = W.copy()
        metrics = MetricRecord({"history": [1.0]})
        reply = answer(message, RecordDict({"arrays": hold({"w": mine}), "metrics": metrics}))
        for old, ndarray in kept:
            old.content.array_records["arrays"].clear()
            history: Any = old.content.metric_records["metrics"]["history"]
            history.append(9.0)
            old.metadata.dst_node_id = 5
            ndarray += 1
        kept.append((reply, mine))
        return reply

    grid = InProcessGrid(app_of(client), num_supernodes=3)
    for reply in ask(grid):
        assert np.array_equal(reply.content.array_records["arrays"]["w"].numpy(), W)
        assert number(reply, "history") == [1.0]
        assert reply.metadata.dst_node_id == SUPERLINK_NODE_ID


def test_server_cannot_empty_a_clients_state() -> None:
    """A record in a client's reply and its state is two: FedMedian empties the replies it reads."""

    def client(message: Message, context: Context) -> Message:
        if "own" not in context.state:
            context.state["own"] = ArrayRecord({"w": Array(W)})
        return answer(message, RecordDict({"own": context.state["own"]}))

    grid = InProcessGrid(app_of(client), num_supernodes=1)
    for _ in range(2):
        (reply,) = ask(grid)
        ndarrays = reply.content.array_records["own"].to_numpy_ndarrays(keep_input=False)
        assert np.array_equal(ndarrays, [W])


def test_contents_may_change_between_exchanges() -> None:
    """A server that sends the same record again, changed, sends what it holds now."""
    grid = InProcessGrid(app_of(echo), num_supernodes=2)
    arrays = ArrayRecord({"w": Array(W)})
    content = RecordDict({"arrays": arrays})
    for step in range(3):
        arrays["w"].data = Array(W + step).data
        for reply in ask(grid, content):
            assert np.array_equal(reply.content.array_records["arrays"]["w"].numpy(), W + step)


def test_stock_arrays_are_decoded_once_an_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients share the decoding of an array, and arrays that nobody encodes cost none at all."""
    calls = {"load": 0, "save": 0}

    def counted(name: str) -> Callable[..., Any]:
        stock = getattr(np, name)

        def function(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return stock(*args, **options)

        return function

    for name in calls:
        monkeypatch.setattr(np, name, counted(name))

    def client(message: Message, context: Context) -> Message:
        ndarrays = read(message.content.array_records["arrays"], writable=True)
        return answer(message, RecordDict({"arrays": hold(ndarrays, copy=False)}))

    grid = InProcessGrid(app_of(client), num_supernodes=5)
    arrays = ArrayRecord({"w": Array(W), "b": Array(W[0])})
    calls.update(load=0, save=0)
    # a content and a record for each node, as a strategy may build them; the same arrays
    messages = []
    for node in grid.get_node_ids():
        record = ArrayRecord()
        record.update(arrays)
        messages.append(Message(RecordDict({"arrays": record}), node, "train"))
    replies = grid.send_and_receive(messages)
    assert calls == {"load": len(arrays), "save": 0}
    calls.update(load=0, save=0)
    ask(grid, replies[0].content, "train")
    assert calls == {"load": 0, "save": 0}


# ----------------------------------------------------------------------------- errors


class MuteError(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("boom"), "<class 'RuntimeError'>:<'boom'>"),
        (KeyError("w"), "<class 'KeyError'>:<''w''>"),
        (SystemExit(3), "<class 'SystemExit'>:<'3'>"),
        (MuteError(), f"{MuteError}:<'no text: ValueError'>"),
    ],
)
def test_exception_becomes_an_error_reply(error: BaseException, reason: str) -> None:
    """A client that raises answers with Flower's code and form; the others are not concerned."""

    def client(message: Message, context: Context) -> Message:
        if partition(context) == 1:
            raise error
        return answer(message)

    with InProcessGrid(app_of(client), num_supernodes=3) as grid:
        replies = ask(grid)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error == Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
    assert replies[1].metadata.src_node_id == grid.get_node_ids()[1]


def test_keyboard_interrupt_is_raised() -> None:
    """Ctrl-C ends the exchange; the grid can be used afterwards."""

    def client(message: Message, context: Context) -> Message:
        reply = counting(message, context)
        if "do" in message.content:
            raise KeyboardInterrupt
        return reply

    grid = InProcessGrid(app_of(client), num_supernodes=1)
    with pytest.raises(KeyboardInterrupt):
        ask(grid, do("interrupt"))
    assert not in_process()
    assert number(ask(grid)[0], "n") == 1


def both(message: Message) -> Message:
    reply = answer(message)
    vars(reply)["_error"] = Error(1, "")
    return reply


def neither(message: Message) -> Message:
    reply = answer(message)
    vars(reply)["_content"] = None
    return reply


def forged(message: Message) -> Message:
    reply = answer(message)
    vars(reply.metadata)["_src_node_id"] += 1
    return reply


def no_records(message: Message) -> Message:
    reply = answer(message)
    reply.content = 7  # type: ignore[assignment]
    return reply


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda message: 7, "returns a Message, not int"),
        (lambda message: None, "returns a Message, not NoneType"),
        (lambda message: message, "no reply to the one received"),
        (lambda message: answer(answer(message)), "no reply to the one received"),
        (forged, "no reply to the one received"),
        (both, "either a content or an error"),
        (neither, "either a content or an error"),
        (no_records, "a content is a RecordDict, not int"),
    ],
)
def test_wrong_return_value_becomes_an_error_reply(
    make: Callable[[Message], Any], text: str
) -> None:
    """What Flower's link would not take is an error of the node, said in words."""
    grid = InProcessGrid(app_of(lambda message, context: make(message)), num_supernodes=1)
    (reply,) = ask(grid)
    assert reply.error.code == ErrorCode.UNKNOWN
    assert text in str(reply.error.reason)
    assert reply.metadata.src_node_id == grid.get_node_ids()[0]


def test_reply_to_an_older_message_is_refused() -> None:
    """A client cannot answer twice to one message and never to the next."""
    kept: list[Message] = []

    def client(message: Message, context: Context) -> Message:
        kept.append(message)
        return answer(kept[0])

    grid = InProcessGrid(app_of(client), num_supernodes=1)
    assert [ask(grid)[0].has_error() for _ in range(2)] == [False, True]


def test_unknown_kind_of_message_is_an_error_reply() -> None:
    """A ClientApp without the asked function has raised."""
    app = ClientApp()
    app.train()(echo)
    (reply,) = ask(InProcessGrid(app, num_supernodes=1), kind="query")
    assert "No query function registered" in str(reply.error.reason)


def test_unknown_node_is_flowers_error() -> None:
    """A node that is not there is answered for by the link, field by field as in Flower."""
    grid = InProcessGrid(app_of(echo), num_supernodes=1)
    messages = [Message(RecordDict(), 5, "train", group_id="3"), Message(RecordDict(), 5, "query")]
    for message, reply in zip(messages, grid.send_and_receive(messages), strict=True):
        expected = create_message_error_unavailable_res_message(message.metadata, "node_unavail")
        assert reply.error.code == expected.error.code == ErrorCode.NODE_UNAVAILABLE
        assert "there is no node 5" in str(reply.error.reason)
        ours, flowers = vars(reply.metadata), vars(expected.metadata)
        own = ("_message_id", "_created_at", "_ttl", "_delivered_at")
        assert {k: ours[k] for k in ours if k not in own} == {
            k: flowers[k] for k in flowers if k not in own
        }


# ----------------------------------------------------------------------------- messages


def test_metadata_are_those_of_a_real_grid() -> None:
    """Ids are set and unique, replies name their message, both are marked as delivered."""
    received: list[Message] = []

    def client(message: Message, context: Context) -> Message:
        received.append(message)
        return answer(message)

    grids = [InProcessGrid(app_of(client), num_supernodes=2) for _ in range(2)]
    sent, replies = [], []
    for grid in grids:
        for _ in range(2):
            messages = [
                Message(RecordDict(), n, "train", group_id="3") for n in grid.get_node_ids()
            ]
            replies += list(grid.send_and_receive(iter(messages)))
            sent += messages
    ids = [message.metadata.message_id for message in sent + replies]
    assert len(set(ids)) == len(ids) == 16
    assert "" not in ids
    for message, own, reply in zip(sent, received, replies, strict=True):
        assert own is not message
        assert own.metadata == message.metadata
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        assert reply.metadata.src_node_id == message.metadata.dst_node_id
        assert reply.metadata.dst_node_id == message.metadata.src_node_id == SUPERLINK_NODE_ID
        assert reply.metadata.group_id == "3"
        assert reply.metadata.message_type == "train"
        assert "" not in (message.metadata.delivered_at, reply.metadata.delivered_at)


def test_push_and_pull() -> None:
    """Pulled replies are those of the ids asked for, each once; an unknown id has none."""
    calls: list[int] = []

    def client(message: Message, context: Context) -> Message:
        calls.append(partition(context))
        return answer(message)

    grid = InProcessGrid(app_of(client), num_supernodes=3)
    ids = grid.push_messages(Message(RecordDict(), n, "train") for n in grid.get_node_ids())
    assert calls == [0, 1, 2]
    for asked in ([ids[2], ids[2], "unknown"], [ids[1], ids[0]], ids):
        pulled = [reply.metadata.reply_to_message_id for reply in grid.pull_messages(asked)]
        expected = {ids[2]: [ids[2]], ids[1]: [ids[1], ids[0]], ids[0]: []}[asked[0]]
        assert pulled == expected
    assert calls == [0, 1, 2]
    assert grid.push_messages([]) == []


@pytest.mark.parametrize("how", ["again", "reply", "no time to live"])
@pytest.mark.parametrize("send", [InProcessGrid.push_messages, InProcessGrid.send_and_receive])
def test_refuses_what_a_real_grid_refuses(send: Callable[..., Any], how: str) -> None:
    """A delivered message, a reply or a dead one is a ValueError before any client is called."""
    calls: list[int] = []

    def client(message: Message, context: Context) -> Message:
        calls.append(1)
        return answer(message)

    grid = InProcessGrid(app_of(client), num_supernodes=1)
    (node,) = grid.get_node_ids()
    good, bad = (Message(RecordDict(), node, "train") for _ in range(2))
    if how == "again":
        grid.send_and_receive([bad])
    elif how == "reply":
        (bad,) = ask(grid)
    else:
        bad.metadata.ttl = 0.0
    calls.clear()
    with pytest.raises(ValueError, match="Invalid message"):
        send(grid, [good, bad])
    assert calls == []
    assert len(list(grid.send_and_receive([good]))) == 1


class Clock(SimpleNamespace):
    """A clock that only clients move."""

    def __init__(self) -> None:
        super().__init__(seconds=1.8e9)

    def time(self) -> float:
        return float(self.seconds)

    monotonic = time

    def thread_time(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in ("inprocess", "replies", "waiting"):
        monkeypatch.setattr(f"fl_app.grid.{name}.time", clock)
    return clock


def slow_grid(clock: Clock, seconds: Sequence[float]) -> tuple[InProcessGrid, list[int]]:
    """Make a grid whose clients take that long; return the partitions it calls, too."""
    calls: list[int] = []

    def client(message: Message, context: Context) -> Message:
        calls.append(partition(context))
        clock.seconds += seconds[partition(context)]
        return answer(message)

    return InProcessGrid(app_of(client), num_supernodes=len(seconds)), calls


def messages_at(
    clock: Clock, grid: Grid, ttl: float | None = None, times: int = 1
) -> list[Message]:
    """Make messages to every node, as many times, at the clock's time."""
    nodes = [*grid.get_node_ids()] * times
    messages = [Message(RecordDict(), node, "train", ttl=ttl) for node in nodes]
    for message in messages:
        message.metadata.created_at = clock.seconds
    return messages


def partitions_of(grid: InProcessGrid, replies: Iterable[Message]) -> list[int]:
    nodes = grid.get_node_ids()
    return [nodes.index(reply.metadata.src_node_id) for reply in replies]


@pytest.mark.parametrize(
    ("timeout", "called", "answered"),
    [
        (None, [0, 1, 2, 3], [0, 1, 2, 3]),
        (0.0, [], []),
        (4.0, [0, 1, 2, 3], []),
        (9.0, [0, 1, 2, 3], [1, 2, 3]),
        (60.0, [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_slow_client_costs_its_own_reply(
    clock: Clock, timeout: float | None, called: list[int], answered: list[int]
) -> None:
    """Of 50 s and three times 5 s, a timeout leaves what takes less: a node waits for no other."""
    grid, calls = slow_grid(clock, [50.0, 5.0, 5.0, 5.0])
    replies = list(grid.send_and_receive(messages_at(clock, grid), timeout=timeout))
    assert partitions_of(grid, replies) == answered
    assert calls == called


def test_a_nodes_own_calls_count_together(clock: Clock) -> None:
    """Of three messages to each node, 10 s allow one reply at 8 s a call, and all at 3 s."""
    grid, calls = slow_grid(clock, [8.0, 3.0])
    replies = list(grid.send_and_receive(messages_at(clock, grid, times=3), timeout=10))
    assert partitions_of(grid, replies) == [0, 1, 1, 1]
    assert calls == [0, 1, 0, 1, 1]


def test_secure_sum_goes_on_without_a_slow_client(clock: Clock) -> None:
    """Flower's SecAgg+ demo: one of five clients sleeps past the timeout of the masked vectors."""
    results: list[NDArray[Any]] = []

    class Client(NumPyClient):
        def __init__(self, own: int) -> None:
            self.own = own

        def fit(self, parameters: Any, config: Any) -> Any:
            clock.seconds += 1 if self.own else 30
            return [np.full(3, 1.0 + self.own)], 1, {}

    class Keeping(LegacyFedAvg):
        def aggregate_fit(self, server_round: int, replies: Any, failures: Any) -> Any:
            parameters, metrics = super().aggregate_fit(server_round, replies, failures)
            assert parameters is not None
            results.extend(parameters_to_ndarrays(parameters))
            return parameters, metrics

    def main(grid: Grid, context: Context) -> None:
        initial = ndarrays_to_parameters([np.zeros(3)])
        strategy = Keeping(fraction_evaluate=0.0, initial_parameters=initial)
        secure = SecAggPlusWorkflow(1.0, 0.5, max_weight=1.0, timeout=10)
        legacy = LegacyContext(context, ServerConfig(num_rounds=1), strategy)
        DefaultWorkflow(fit_workflow=secure)(grid, legacy)

    clock.seconds = time.time()  # Flower's workflow makes the messages
    server_app = ServerApp()
    server_app.main()(main)
    client_app = ClientApp(
        client_fn=lambda context: Client(partition(context)).to_client(), mods=[secaggplus_mod]
    )
    run_in_process(server_app, client_app, num_supernodes=5)
    # Clients 1 to 4 send 2, 3, 4, 5, each rounded to one of 2**22 steps of [-8, 8].
    assert results[0] == pytest.approx(np.full(3, 3.5), abs=16 / 2**22)


def test_message_is_lost_when_its_time_is_over(clock: Clock) -> None:
    """A time to live of 15 s: 10 s are in time, 20 s too late, and then no more is delivered."""
    grid, calls = slow_grid(clock, [20.0, 10.0, 10.0])
    replies = list(grid.send_and_receive(messages_at(clock, grid, ttl=15.0, times=2)))
    lost = [reply.has_error() for reply in replies]
    assert lost == [True, False, False, True, True, True]
    codes = {reply.error.code for reply in replies if reply.has_error()}
    assert codes == {ErrorCode.MESSAGE_UNAVAILABLE}
    assert calls == [0, 1, 2, 1, 2]


def test_message_that_comes_too_late_is_not_delivered(clock: Clock) -> None:
    """What a message has lived before it was sent counts."""
    grid, calls = slow_grid(clock, [1.0])
    messages = messages_at(clock, grid, ttl=15.0)
    clock.seconds += 16
    (reply,) = grid.send_and_receive(messages)
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert calls == []


def test_create_message_is_the_constructor() -> None:
    """The deprecated maker of messages gives what ``Message`` gives."""
    grid = InProcessGrid(app_of(echo), num_supernodes=1)
    (node,) = grid.get_node_ids()
    message = grid.create_message(numbers(a=1), "train", node, "3", ttl=60.0)
    (reply,) = grid.send_and_receive([message])
    assert (reply.metadata.group_id, message.metadata.ttl) == ("3", 60.0)
    assert number(reply, "a") == 1


def test_replies_are_in_order_unless_shuffled() -> None:
    """A seed gives each exchange an order of its own, the same in every grid, and loses nothing."""

    def orders(seed: int | None) -> list[list[int]]:
        grid = InProcessGrid(app_of(echo), 20, shuffle_replies=seed)
        return [[reply.metadata.src_node_id for reply in ask(grid)] for _ in range(3)]

    straight, shuffled = orders(None), orders(0)
    assert straight[0] == straight[1] == straight[2]
    assert shuffled == orders(0) != orders(1)
    assert len({tuple(order) for order in [*shuffled, straight[0]]}) == 4
    assert all(sorted(order) == sorted(straight[0]) for order in shuffled)


# ----------------------------------------------------------------------------- waiting

TOO_FEW = "waits for .* nodes, but this grid has 4 and nobody can join it"


def test_strategy_that_waits_for_too_many_nodes_is_told(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's strategies look every second until ``min_available_nodes`` are there."""
    monkeypatch.setattr(strategies.strategy_utils, "sleep", clock.sleep)
    grid = InProcessGrid(app_of(echo), num_supernodes=4)
    strategy = strategies.FedAvg(min_available_nodes=5)
    begun = clock.seconds
    with pytest.raises(RunError, match=TOO_FEW):
        strategy.start(grid, hold({"w": W}), num_rounds=1)
    assert clock.seconds - begun < 10


@pytest.mark.parametrize("seconds", [0.1, 5.0])
def test_own_loop_that_waits_is_told(clock: Clock, seconds: float) -> None:
    """However often it looks, and through a wrapper of the grid too."""
    grid = InProcessGrid(app_of(echo), num_supernodes=4)
    seen = WatchedGrid(grid, lambda replies: None)

    def wait() -> None:
        while len(list(seen.get_node_ids())) < 5:
            clock.sleep(seconds)

    with pytest.raises(RunError, match=TOO_FEW):
        wait()
    with pytest.raises(RunError, match=TOO_FEW):
        wait()


def test_who_works_or_sends_does_not_wait(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds may be long, in sleep or in work, and in between nothing need be sent."""
    grid = InProcessGrid(app_of(echo), num_supernodes=4)
    for _ in range(5):
        ask(grid)
        clock.sleep(100)

    def look() -> int:
        return len(grid.get_node_ids())

    for _ in range(5):  # as a strategy that selects nobody
        assert look() == 4
        clock.sleep(100)
    monkeypatch.setattr(clock, "thread_time", clock.time)
    for _ in range(5):
        assert len(grid.get_node_ids()) == 4
        clock.seconds += 100


def test_old_strategy_that_waits_for_too_many_nodes_is_told() -> None:
    """Flower's old client manager would sleep for a day; a wait with a timeout is left alone."""
    waited: list[bool] = []

    class Asking(LegacyFedAvg):
        def initialize_parameters(self, client_manager: Any) -> Any:
            client_manager.num_available()
            waited.extend(client_manager.wait_for(n, timeout=0) for n in (4, 5))
            return ndarrays_to_parameters([W])

    components = ServerAppComponents(
        strategy=Asking(min_available_clients=5), config=ServerConfig(num_rounds=1)
    )
    server_app = ServerApp(server_fn=lambda context: components)
    with pytest.raises(RunError, match=TOO_FEW):
        run_in_process(server_app, app_of(echo), num_supernodes=4)
    assert waited == [True, False]


# ----------------------------------------------------------------------------- identity


def test_identity_lasts_as_long_as_a_grid() -> None:
    """``Message(...)`` works while a grid lives, also without ``with``, and not afterwards."""
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 5, "train")
    grid = InProcessGrid(app_of(echo), num_supernodes=1)
    assert Message(RecordDict(), 5, "train").metadata.run_id == grid.run.run_id
    del grid
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 5, "train")
    with InProcessGrid(app_of(echo), num_supernodes=1) as grid:
        grid.close()
        grid.close()
        with pytest.raises(RuntimeError, match="not set"):
            Message(RecordDict(), 5, "train")


@settings(deadline=None)
@given(order=st.permutations(range(4)))
def test_identity_is_a_living_grids(order: list[int]) -> None:
    """In whatever order grids are closed, the last one that lives holds the identity."""
    before = identity()
    grids = {i: InProcessGrid(app_of(echo), num_supernodes=1) for i in range(len(order))}
    for i in order:
        assert TaskIdentity.run_id == grids[max(grids)].run.run_id
        assert len(ask(grids[i])) == 1
        grids.pop(i).close()
    assert identity() == before


def test_identity_of_somebody_else_is_kept() -> None:
    """An identity from before a grid comes back; one that was set meanwhile stays."""
    before = identity()
    try:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 4, 5, 6
        with InProcessGrid(app_of(echo), num_supernodes=1) as grid:
            assert identity() == (1, grid.run.run_id, SUPERLINK_NODE_ID)
        assert identity() == (4, 5, 6)
        with InProcessGrid(app_of(echo), num_supernodes=1):
            TaskIdentity.run_id = 7
        assert identity() == (1, 7, SUPERLINK_NODE_ID)
    finally:
        for name, value in zip(("_task_id", "_run_id", "_node_id"), before, strict=True):
            setattr(TaskIdentity, name, value)


def test_message_belongs_to_the_grid_that_sends_it() -> None:
    """A message that was made under another grid's identity is answered all the same."""
    first = InProcessGrid(app_of(echo), num_supernodes=1)
    second = InProcessGrid(app_of(echo), num_supernodes=1)
    message = Message(RecordDict(), first.get_node_ids()[0], "train")
    assert message.metadata.run_id == second.run.run_id
    (reply,) = first.send_and_receive([message])
    assert not reply.has_error()
    assert reply.metadata.run_id == message.metadata.run_id == first.run.run_id


# ----------------------------------------------------------------------------- in_process


def test_in_process_is_true_in_a_client_only() -> None:
    """It holds in the ClientApp, its mods and its lifespan, and nowhere else."""
    seen: dict[str, bool] = {}

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        seen["mod"] = in_process()
        return call_next(message, context)  # type: ignore[no-any-return]

    def client(message: Message, context: Context) -> Message:
        seen["client"] = in_process()
        thread = threading.Thread(target=lambda: seen.update(thread=in_process()))
        thread.start()
        thread.join()
        raise RuntimeError("boom")

    app = app_of(client, [mod])

    @app.lifespan()
    def lifespan(context: Context) -> Iterator[None]:
        seen["before"] = in_process()
        yield
        seen["after"] = in_process()

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        seen["server"] = in_process()
        ask(grid)
        seen["server later"] = in_process()

    run_in_process(server, app, num_supernodes=1)
    assert {name for name, inside in seen.items() if inside} == {"before", "mod", "client", "after"}
    assert {name for name, inside in seen.items() if not inside} == {
        "server",
        "server later",
        "thread",
    }
    assert not in_process()


# ----------------------------------------------------------------------------- Flower's apps


def test_mods_and_lifespan_wrap_a_call() -> None:
    """Mods run around the function, the lifespan around all, and both see the node's state."""

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        message.content["from mod"] = MetricRecord({"n": 1})
        context.state["mod"] = MetricRecord()
        reply: Message = call_next(message, context)
        reply.content["also from mod"] = MetricRecord()
        return reply

    def client(message: Message, context: Context) -> Message:
        content = message.content.copy()
        content["state"] = ConfigRecord({"names": sorted(context.state)})
        return answer(message, content)

    app = app_of(client, [message_size_mod, mod])

    @app.lifespan()
    def lifespan(context: Context) -> Iterator[None]:
        context.state["entered"] = MetricRecord()
        yield
        context.state["left"] = MetricRecord()

    grid = InProcessGrid(app, num_supernodes=1)
    for names in (["entered", "mod"], ["entered", "left", "mod"]):
        (reply,) = ask(grid)
        assert list(reply.content) == ["from mod", "state", "also from mod"]
        assert reply.content.config_records["state"]["names"] == names


def drifting_app(held: bool) -> ClientApp:
    """Make a ClientApp whose step depends on its partition and on what it receives."""

    def train(message: Message, context: Context) -> Message:
        record = message.content.array_records["arrays"]
        ndarrays = {name: array.numpy() for name, array in record.items()}
        for name, ndarray in ndarrays.items():
            draw = np.random.default_rng([partition(context), ndarray.size])
            ndarray += (0.1 * draw.normal(size=ndarray.shape)).astype(ndarray.dtype)
            ndarray *= np.float32(0.9) if name == "w" else np.float32(1.0)
        arrays = hold(ndarrays) if held else ArrayRecord({k: Array(v) for k, v in ndarrays.items()})
        loss = float(sum(np.square(v).sum() for v in ndarrays.values()))
        metrics = MetricRecord({"train_loss": loss, "num-examples": 5 + partition(context)})
        return answer(message, RecordDict({"arrays": arrays, "metrics": metrics}))

    def evaluate(message: Message, context: Context) -> Message:
        arrays = read(message.content.array_records["arrays"])
        loss = float(sum(np.abs(v).sum() for v in arrays.values())) * (1 + partition(context))
        return answer(message, numbers(**{"loss": loss, "num-examples": 5.0}))

    app = ClientApp()
    app.train()(train)
    app.evaluate()(evaluate)
    return app


START = {
    "w": np.random.default_rng(0).normal(size=(4, 3)).astype("f4"),
    "b": np.zeros(3, "f4"),
    "f": np.asfortranarray(np.random.default_rng(1).normal(size=(3, 2))),
}
STRATEGIES: dict[str, Callable[[], strategies.Strategy]] = {
    "FedAvg": strategies.FedAvg,
    "FedAvgM": lambda: strategies.FedAvgM(server_momentum=0.5),
    "FedAdam": strategies.FedAdam,
    "FedAdagrad": strategies.FedAdagrad,
    "FedYogi": strategies.FedYogi,
    "FedMedian": strategies.FedMedian,
    "FedTrimmedAvg": strategies.FedTrimmedAvg,
    "FedProx": lambda: strategies.FedProx(proximal_mu=0.1),
    "QFedAvg": lambda: strategies.QFedAvg(client_learning_rate=0.1),
    "Krum": lambda: strategies.Krum(num_malicious_nodes=2),
    "MultiKrum": lambda: strategies.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=5),
    "Bulyan": lambda: strategies.Bulyan(num_malicious_nodes=1),
    "DP fixed": lambda: strategies.DifferentialPrivacyServerSideFixedClipping(
        strategies.FedAvg(), 0.1, 1.0, 8
    ),
    "DP adaptive": lambda: strategies.DifferentialPrivacyServerSideAdaptiveClipping(
        strategies.FedAvg(), 0.5, 8
    ),
}


def train(name: str, held: bool, rounds: int = 3) -> strategies.Result:
    """Run a strategy over 8 nodes that all train."""
    random.seed(0)
    np.random.seed(0)  # Flower's noise knows no other generator
    arrays = hold(START) if held else ArrayRecord({k: Array(v) for k, v in START.items()})
    with InProcessGrid(drifting_app(held), num_supernodes=8) as grid:
        return STRATEGIES[name]().start(grid, arrays, num_rounds=rounds)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_cannot_tell_held_from_stock(name: str) -> None:
    """Arrays and metrics of a run are equal to the last bit with held and with stock arrays."""
    held, stock = train(name, held=True), train(name, held=False)
    assert held.arrays == stock.arrays
    assert set(held.arrays) == set(START)
    assert held.train_metrics_clientapp == stock.train_metrics_clientapp
    assert held.evaluate_metrics_clientapp == stock.evaluate_metrics_clientapp
    assert len(held.evaluate_metrics_clientapp) == 3
    assert not np.array_equal(held.arrays["w"].numpy(), START["w"])


def test_fedavg_is_the_weighted_mean() -> None:
    """Stock FedAvg over a stock ClientApp gives the mean that its definition gives."""

    def client(message: Message, context: Context) -> Message:
        (ndarray,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        arrays = ArrayRecord([ndarray + partition(context)])
        metrics = MetricRecord({"num-examples": 1 + partition(context)})
        return answer(message, RecordDict({"arrays": arrays, "metrics": metrics}))

    rounds, parts = 3, np.arange(4)
    step = (parts * (1 + parts)).sum() / (1 + parts).sum()
    grid = InProcessGrid(app_of(client), num_supernodes=len(parts))
    strategy = strategies.FedAvg(fraction_evaluate=0.0)
    result = strategy.start(grid, ArrayRecord([W]), num_rounds=rounds)
    assert result.arrays["0"].numpy() == pytest.approx(W + rounds * step)


def test_client_side_privacy_mod_works() -> None:
    """A Flower mod that reads the received arrays and replaces the reply's clips the update."""

    def client(message: Message, context: Context) -> Message:
        ndarrays = read(message.content.array_records["arrays"], writable=True)
        content = {"arrays": hold({k: v + 100 for k, v in ndarrays.items()})}
        metrics = MetricRecord({"num-examples": 1})
        return answer(message, RecordDict({**content, "metrics": metrics}))

    app = ClientApp()
    app.train(mods=[fixedclipping_mod])(client)
    norm = 0.5
    strategy = strategies.DifferentialPrivacyClientSideFixedClipping(
        strategies.FedAvg(fraction_evaluate=0.0), 1e-9, norm, 3
    )
    grid = InProcessGrid(app, num_supernodes=3)
    result = strategy.start(grid, hold({"w": W}), num_rounds=1)
    assert np.linalg.norm(result.arrays["w"].numpy() - W) == pytest.approx(norm, rel=1e-3)


def test_legacy_apps_work() -> None:
    """Flower's old pair, ``server_fn`` and ``client_fn``, runs with its threads and bytes."""
    results: list[list[NDArray[Any]]] = []

    class Client(NumPyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            return [p + 1 for p in parameters], 1, {}

        def evaluate(self, parameters: Any, config: Any) -> Any:
            return float(parameters[0].sum()), 1, {}

    class Keeping(LegacyFedAvg):
        def aggregate_fit(self, server_round: int, replies: Any, failures: Any) -> Any:
            parameters, metrics = super().aggregate_fit(server_round, replies, failures)
            assert not failures
            assert parameters is not None
            results.append(parameters_to_ndarrays(parameters))
            return parameters, metrics

    def server_fn(context: Context) -> Any:
        strategy = Keeping(initial_parameters=ndarrays_to_parameters([W]))
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))

    client_app = ClientApp(client_fn=lambda context: Client().to_client())
    run_in_process(ServerApp(server_fn=server_fn), client_app, num_supernodes=4)
    assert np.array_equal(results, [[W + 1], [W + 2]])


# ----------------------------------------------------------------------------- Flower's engine


class InlineBackend(Backend):
    """The engine's backend without Ray: copies go in and out, exceptions are wrapped alike."""

    app: ClientApp

    def __init__(self) -> None:
        super().__init__({})

    def build(self, app_fn: Callable[[], ClientApp]) -> None:
        self.app = app_fn()

    @property
    def num_workers(self) -> int:
        return 1

    def is_worker_idle(self) -> bool:
        return True

    def terminate(self) -> None:
        pass

    def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
        message, context = copy.deepcopy((message, context))
        try:
            reply = self.app(message=message, context=context)
        except Exception as error:
            raise ClientAppException(str(error)) from error
        return copy.deepcopy((reply, context))


@contextmanager
def engine(client_app: ClientApp, num_supernodes: int, run_config: Any) -> Iterator[Grid]:
    """Run Flower's simulation engine; give its grid."""
    factory = LinkStateFactory(
        FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
    )
    run = Run.create_empty(run_id=7)
    run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
    state: Any = factory.state()
    state.run_ids[run.run_id] = RunRecord(run=run)
    state.task_store[1] = Task(task_id=1, run_id=run.run_id)
    nodes = _register_nodes(num_supernodes, factory)
    stores = {n: DeprecatedRunInfoStore(n, {"partition-id": i}) for n, i in nodes.items()}
    for store in stores.values():
        store.register_context(run.run_id)
        store.run_infos[run.run_id].initial_run_config = dict(run_config)
        store.run_infos[run.run_id].context.run_config = dict(run_config)
    stop = threading.Event()
    arguments = (lambda: client_app, InlineBackend, nodes, factory, stores, stop, VceMetrics())
    thread = threading.Thread(target=run_api, args=arguments)
    thread.start()
    grid = InMemoryGrid(factory, pull_interval=0.01)
    grid.set_run(run)
    # a living grid lends its identity, which names the link's node as the engine's does
    with InProcessGrid(client_app, num_supernodes=1) as lender:
        lender.set_run(run)
        try:
            yield grid
        finally:
            stop.set()
            thread.join()


def story(grid: Grid, plot: list[str]) -> list[Any]:
    """Tell what a server sees of a sequence of exchanges, node ids apart."""
    told: list[Any] = []
    for what in plot:
        messages = [
            Message(do(what), node, "train.again", group_id=what) for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(messages))
        ids = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        for reply in replies:
            metadata = reply.metadata
            assert metadata.src_node_id == ids[metadata.reply_to_message_id]
            told.append(
                (
                    what,
                    (metadata.group_id, metadata.message_type, metadata.dst_node_id),
                    (metadata.run_id == grid.run.run_id, bool(metadata.message_id)),
                    (metadata.src_task_id, metadata.dst_task_id, bool(metadata.delivered_at)),
                    reply.error.code if reply.has_error() else dict(reply.content["metrics"]),
                )
            )
    return told


def test_server_cannot_tell_it_from_flowers_engine() -> None:
    """Replies, errors, metadata and states of an eventful run are those of the real engine."""
    app = ClientApp()
    app.train("again")(counting)
    plot = ["", "raise", "", "change run_config", "", "new state", "new node_config", ""]
    plot += ["error reply", "no function", ""]
    run_config = {"lr": 0.1}
    with engine(app, 2, run_config) as grid:
        real = story(grid, plot)
    with InProcessGrid(app, 2, run_config) as ours:
        assert story(ours, plot) == real
    assert {told[-1]["n"] for told in real if isinstance(told[-1], dict)} > {1, 2, 101}


# ----------------------------------------------------------------------------- whole runs


def counting_server(rounds: int = 1) -> ServerApp:
    """Make a ServerApp that sends `rounds` times to all and keeps the last counts."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for _ in range(rounds):
            replies = ask(grid)
        context.state["counts"] = MetricRecord({"n": [number(reply, "n") for reply in replies]})

    return app


def test_run_in_process_returns_the_servers_context() -> None:
    """Two runs in sequence know nothing of each other; configs arrive; states come back."""
    config = {"lr": 0.1, "name": "a"}
    before = identity()
    contexts = [
        run_in_process(counting_server(2), app_of(counting), num_supernodes=3, run_config=config)
        for _ in range(2)
    ]
    for context in contexts:
        assert context.state.metric_records["counts"]["n"] == [2, 2, 2]
        assert context.run_config == config
        assert context.run_config is not config
        assert context.node_id == SUPERLINK_NODE_ID
    assert contexts[0].run_id != contexts[1].run_id
    assert identity() == before


def test_exception_of_the_server_is_raised() -> None:
    """The run fails as the ServerApp fails, and gives the identity back."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        raise LookupError("boom")

    before = identity()
    with pytest.raises(LookupError, match="boom"):
        run_in_process(app, app_of(echo), num_supernodes=1)
    assert identity() == before


def test_runs_can_be_nested() -> None:
    """A client that runs a federation of its own leaves the outer one as it was."""

    def client(message: Message, context: Context) -> Message:
        inner = run_in_process(counting_server(3), app_of(counting), num_supernodes=2)
        counts: Any = inner.state.metric_records["counts"]["n"]
        return answer(message, numbers(n=sum(counts)))

    context = run_in_process(counting_server(2), app_of(client), num_supernodes=2)
    assert context.state.metric_records["counts"]["n"] == [3 + 3] * 2


def test_runs_in_two_threads() -> None:
    """Runs that take turns, message by message, end as they end alone."""
    barrier = threading.Barrier(2, timeout=30)

    def client(message: Message, context: Context) -> Message:
        barrier.wait()
        return counting(message, context)

    contexts: dict[int, Context] = {}

    def run(i: int) -> None:
        contexts[i] = run_in_process(
            counting_server(3), app_of(client), num_supernodes=4, run_config={"i": i}
        )

    before = identity()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {i: context.run_config["i"] for i, context in contexts.items()} == {0: 0, 1: 1}
    for context in contexts.values():
        assert context.state.metric_records["counts"]["n"] == [3] * 4
    assert identity() == before


def test_one_grid_in_many_threads() -> None:
    """Exchanges of one grid take turns: no call is lost, and none overlaps another."""
    inside: list[int] = []

    def client(message: Message, context: Context) -> Message:
        inside.append(1)
        reply = counting(message, context)
        assert len(inside) == 1
        inside.pop()
        return reply

    grid = InProcessGrid(app_of(client), num_supernodes=2)
    errors: list[bool] = []

    def run() -> None:
        errors.extend(reply.has_error() for _ in range(50) for reply in ask(grid))

    threads = [threading.Thread(target=run) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads change places within nearly every call
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == [False] * (4 * 50 * 2)
    assert [number(reply, "n") for reply in ask(grid)] == [4 * 50 + 1] * 2


def test_arrays_reach_a_client_as_held_ones() -> None:
    """A client finds arrays that it can look at without a copy, from either kind of server."""

    def client(message: Message, context: Context) -> Message:
        array = message.content.array_records["arrays"]["w"]
        assert isinstance(array, LazyArray)
        assert not array.view().flags.writeable
        return answer(message)

    grid = InProcessGrid(app_of(client), num_supernodes=2)
    for arrays in (hold({"w": W}), ArrayRecord({"w": Array(W)})):
        assert not any(r.has_error() for r in ask(grid, RecordDict({"arrays": arrays})))


def test_a_run_gives_collections_back_as_they_were() -> None:
    """What was there before is passed over while it runs, unless somebody froze something."""
    app, seen = ServerApp(), []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        seen.append((gc.get_freeze_count() > 0, gc.get_threshold()[0]))

    frozen, before = gc.get_freeze_count(), gc.get_threshold()
    assert frozen > 0
    run_in_process(app, ClientApp(), num_supernodes=1000)
    assert 0 < gc.get_freeze_count() <= frozen  # some of it may have ended by itself
    gc.unfreeze()
    try:
        run_in_process(app, ClientApp(), num_supernodes=1000)
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()
    assert gc.get_threshold() == before
    assert seen == [(True, before[0]), (True, 50 * 1000)]
