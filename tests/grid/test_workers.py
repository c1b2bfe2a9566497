"""Workers: a grid with them is the grid without, and no process is left behind."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from itertools import count
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import ServerApp
from flwr.supercore.run import Run

from fl_app.errors import ConfigError, RunError
from fl_app.grid import InProcessGrid, run_in_process
from fl_app.grid.arrays import LazyArray, hold
from fl_app.grid.client_pool import WorkerNode
from fl_app.grid.workers import Job, WorkerError, WorkerPool
from fl_app.grid.workers.pool import _Exchange
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import UNREADABLE, JournalReader
from tests import worker_apps
from tests.end_to_end.support import BIN, ROOT, processes_with
from tests.worker_apps import W

NODES = 4
RUN_CONFIG = {"lr": 0.1}
BOTH = [1, pytest.param(2, marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep Flower's and the grid's log out of the tests' output."""
    levels = {name: logging.getLogger(name).level for name in ("flwr", "fl_app")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="module")
def grids() -> Iterator[Callable[[int], InProcessGrid]]:
    """Give one grid for each number of workers: processes start once."""
    made: dict[int, InProcessGrid] = {}

    def get(num_workers: int) -> InProcessGrid:
        if num_workers not in made:
            made[num_workers] = InProcessGrid(
                worker_apps.app, NODES, RUN_CONFIG, num_workers=num_workers
            )
        return made[num_workers]

    yield get
    for grid in made.values():
        grid.close()


_runs = count(1)


@pytest.fixture
def grid(
    request: pytest.FixtureRequest, grids: Callable[[int], InProcessGrid]
) -> Iterator[InProcessGrid]:
    """Give a grid with new contexts; ask for its number of workers by an indirect parameter."""
    grid = grids(request.param)
    grid.set_run(Run.create_empty(next(_runs)))
    yield grid
    if request.param == 1:
        grid.close()


both = pytest.mark.parametrize("grid", BOTH, indirect=True)
with_workers = pytest.mark.parametrize(
    "grid", [pytest.param(2, marks=pytest.mark.slow)], indirect=True
)


def do(what: str, **more: Any) -> RecordDict:
    return RecordDict({"do": ConfigRecord({"what": what, **more})})


def ask(grid: InProcessGrid, content: RecordDict | str = "", kind: str = "query") -> list[Message]:
    """Send one content to every node; return the replies in the order of nodes."""
    content = do(content) if isinstance(content, str) else content
    return list(grid.send_and_receive([Message(content, n, kind) for n in grid.get_node_ids()]))


def told(reply: Message, name: str = "n") -> Any:
    return reply.content.config_records["told"][name]


def workers() -> list[int]:
    """Return the process ids of this process's workers."""
    return [p.pid for p in active_children() if p.name.startswith("worker-") and p.pid]


def living(pids: list[int]) -> list[int]:
    """Return the processes that have not ended; those that nobody asks for any more have."""
    return [pid for pid in pids if state(pid) not in "XZ"]


def state(pid: int) -> str:
    """Return a process's state as Linux writes it, X where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until something is so; return what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return found


# ----------------------------------------------------------------------------- same story


def story(grid: InProcessGrid, plot: list[RecordDict]) -> list[Any]:
    """Tell all that a server sees of a sequence of exchanges, but for ids and times."""
    seen: list[Any] = []
    for content in plot:
        nodes = [*grid.get_node_ids(), 5, grid.get_node_ids()[0]]
        kinds = ["train", "query", "evaluate", "query.nothing", "train", "train"]
        messages = [
            Message(content, node, kind, group_id="3")
            for node, kind in zip(nodes, kinds, strict=True)
        ]
        ids = {m.metadata.message_id: i for i, m in enumerate(messages)}
        replies = grid.send_and_receive(messages)
        ids = {m.metadata.message_id: i for i, m in enumerate(messages)}
        for reply in replies:
            metadata = dict(vars(reply.metadata))
            assert metadata.pop("_message_id").startswith(grid._prefix)
            assert metadata.pop("_delivered_at")
            metadata.pop("_created_at")
            assert 0 < metadata.pop("_ttl") <= messages[0].metadata.ttl
            answered = ids[metadata.pop("_reply_to_message_id")]
            error = reply.error if reply.has_error() else None
            seen.append((answered, metadata, error, reply.content if not error else None))
    return seen


def plot() -> list[RecordDict]:
    arrays = {
        "c": np.random.default_rng(0).normal(size=(3, 4)),
        "f": np.asfortranarray(np.random.default_rng(1).normal(size=(3, 4)).astype("f4")),
        "i": np.arange(3, dtype=np.int8),
        "empty": np.zeros((0, 2)),
        "scalar": np.array(np.nan),
    }
    echo = RecordDict(
        {
            "metrics": MetricRecord({"b": 2**70, "a": 0.1, "l": [1.0, float("inf")]}),
            "do": ConfigRecord({"what": "echo", "bytes": b"\0", "list": [True], "none": []}),
            "held": hold(arrays),
            "stock": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "nothing": ArrayRecord(),
        }
    )
    whats = ["", "raise", "raise mute", "exit", "return 7", "return the message", "reply twice"]
    whats += ["forge", "neither", "error reply", "", "change run_config", "change node_config", ""]
    whats += ["no state", "attribute", "has attribute", "new state", ""]
    return [*map(do, whats), echo, RecordDict()]


@pytest.mark.slow
def test_server_cannot_tell_workers_from_this_process(
    grids: Callable[[int], InProcessGrid],
) -> None:
    """Replies, errors with their texts, metadata, orders and states are those of one process."""
    run = Run.create_empty(77)
    stories = []
    for num_workers in (1, 2):
        grids(num_workers).set_run(run)
        stories.append(story(grids(num_workers), plot()))
    assert stories[0] == stories[1]
    assert len({repr(error) for _, _, error, _ in stories[0]}) == 12
    assert max(c["told"]["n"] for *_, c in stories[0] if c and "told" in c) > 100
    assert sum(len(content) == 5 for *_, content in stories[0] if content) == NODES


@pytest.mark.slow
def test_shuffled_replies_are_in_the_same_order() -> None:
    """A seed shuffles each exchange alike, with and without workers."""

    def orders(num_workers: int) -> list[list[int]]:
        with InProcessGrid(
            worker_apps.app, NODES, shuffle_replies=0, num_workers=num_workers
        ) as grid:
            return [[r.metadata.src_node_id for r in ask(grid)] for _ in range(3)]

    alone = orders(1)
    assert orders(2) == alone
    assert len({tuple(order) for order in alone}) > 1


# ----------------------------------------------------------------------------- contexts, contents


@both
def test_state_lasts_and_is_a_nodes_own(grid: InProcessGrid) -> None:
    """A node counts its own calls, whichever process makes them; another run begins anew."""
    nodes = grid.get_node_ids()
    assert [told(reply) for reply in ask(grid, kind="train")] == [1] * NODES
    list(grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes[:2]]))
    assert [told(reply) for reply in ask(grid, kind="evaluate")] == [3, 3, 2, 2]
    grid.set_run(Run.create_empty(next(_runs)))
    assert [told(reply) for reply in ask(grid)] == [1] * NODES


@both
def test_messages_to_one_node_follow_one_another(grid: InProcessGrid) -> None:
    """Several messages to a node in one exchange are answered in their order, one by one."""
    nodes = [grid.get_node_ids()[i] for i in (0, 1, 0, 1, 2, 0)]
    replies = list(grid.send_and_receive([Message(RecordDict(), n, "train") for n in nodes]))
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert [told(reply) for reply in replies] == [1, 1, 2, 2, 1, 3]


@both
@pytest.mark.parametrize("what", ["raise", "exit", "return 7", "change run_config", "no state"])
def test_state_is_as_before_after_an_error(grid: InProcessGrid, what: str) -> None:
    """A call that has no reply leaves no trace in its node's Context."""
    ask(grid)
    assert all(reply.has_error() for reply in ask(grid, what))
    assert [told(reply) for reply in ask(grid)] == [2] * NODES


@both
def test_hostile_client_harms_nobody(grid: InProcessGrid) -> None:
    """What a client does to its message reaches neither the next one nor the server."""
    content = RecordDict({**do("harm", list=[1, 2]), "arrays": hold({"w": W})})
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    for reply in grid.send_and_receive(messages):
        assert np.array_equal(reply.content.array_records["arrays"]["w"].numpy(), W + 1)
        assert reply.content.config_records["do"]["list"] == [1, 2, 3]
    assert content == RecordDict({**do("harm", list=[1, 2]), "arrays": hold({"w": W})})
    assert [message.metadata.dst_node_id for message in messages] == grid.get_node_ids()


@both
def test_surroundings_of_a_call(grid: InProcessGrid) -> None:
    """A client knows that it is in an in-process grid; arrays are held; `Message()` works."""
    content = RecordDict({**do("tell"), "arrays": ArrayRecord({"w": Array(W)})})
    for reply in ask(grid, content):
        assert told(reply, "in_process") is True
        assert told(reply, "held") == [True]
        assert told(reply, "identity") == [1, grid.run.run_id, SUPERLINK_NODE_ID]
        assert told(reply, "sender") == [grid.run.run_id, SUPERLINK_NODE_ID]


@with_workers
def test_arrays_come_back_as_held_ones(grid: InProcessGrid) -> None:
    """A server reads a worker's arrays, as any other, as often as it likes for one decoding."""
    for reply in ask(grid, RecordDict({**do("echo"), "arrays": hold({"w": W})})):
        assert isinstance(reply.content.array_records["arrays"]["w"], LazyArray)


# ----------------------------------------------------------------------------- workers


def meet(grid: InProcessGrid, folder: Path) -> list[Message]:
    """Let the calls of two nodes wait for each other: both workers are ready afterwards."""
    folder = folder / "meeting"
    folder.mkdir()
    content = do("meet", folder=str(folder))
    messages = [Message(content, node, "train") for node in grid.get_node_ids()[:2]]
    return list(grid.send_and_receive(messages))


@with_workers
def test_calls_are_made_side_by_side(grid: InProcessGrid, tmp_path: Path) -> None:
    """Two calls that wait for each other both end, in other processes, one thread in each."""
    assert [told(reply) for reply in meet(grid, tmp_path)] == [1, 1]
    for reply in ask(grid, "tell"):
        assert told(reply, "pid") in workers()
        assert set(told(reply, "threads")) == {1}


@with_workers
def test_one_call_each_goes_to_the_node_s_own_worker(grid: InProcessGrid, tmp_path: Path) -> None:
    """Where no worker would be idle, a node finds the process that called it before."""
    meet(grid, tmp_path)
    found = set()
    for _ in range(3):
        messages = [Message(do("tell"), n, "train") for n in grid.get_node_ids()[:2]]
        found.add(tuple(told(reply, "pid") for reply in grid.send_and_receive(messages)))
    assert len(found) == 1
    assert len(set(found.pop())) == 2


class FakeWorker:
    """A worker that answers at once, when the exchange listens to it."""

    def __init__(self, number: int) -> None:
        self.number, self.ready, self.call = number, True, None
        self.rest: Any = None


@pytest.mark.parametrize(
    ("homes", "given"),
    [
        ([0, 1, 0, 1], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 0, 0, 0], [0, 3, 1, 2]),
        ([1, 1, 1, 0], [3, 0, 2, 1]),
    ],
)
def test_free_worker_takes_its_own_then_the_last_of_others(
    homes: list[int], given: list[int]
) -> None:
    """Two workers take turns: own jobs in order; then what its worker would do last."""
    order: list[int] = []

    class Worker(FakeWorker):
        def send(self, call: int, request: Any) -> None:
            order.append(call)

    both: Any = [Worker(0), Worker(1)]
    for worker in both:
        worker.rest = []
    jobs = [Job(home, [i]) for i, home in enumerate(homes)]
    exchange = _Exchange(both, jobs, lambda call: call, lambda call, result: None)
    for _ in range(2):
        assert all(exchange._give(worker) for worker in both)
    assert order == given


@pytest.mark.slow
def test_no_more_workers_than_nodes() -> None:
    """Five workers for two nodes are two, until the grid is closed; for one node there is none."""
    others = workers()
    with InProcessGrid(worker_apps.app, 2, num_workers=5) as grid:
        assert len(set(workers()) - set(others)) == 2
        ask(grid)
        pids = set(workers()) - set(others)
        assert len(pids) == 2
    assert not living([*pids])
    with InProcessGrid(worker_apps.app, 1, num_workers=5) as grid:
        assert told(ask(grid, "tell")[0], "pid") == os.getpid()


@with_workers
def test_worker_starts_no_workers(grid: InProcessGrid) -> None:
    """A federation inside a ClientApp runs in the worker itself."""
    for reply in ask(grid, "nest"):
        assert reply.content.config_records["nested"]["failed"] == [False, False]


@with_workers
def test_logs_come_to_this_process(grid: InProcessGrid, caplog: pytest.LogCaptureFixture) -> None:
    """What a client logs is logged here, at the levels of this process."""
    ask(grid, do("log", only=1))
    records = [(r.name, r.levelno, r.getMessage()) for r in caplog.records]
    assert records == [("tests.client", logging.WARNING, "partition 1")]


# ----------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("timeout", "called", "answered"), [(0.0, 0, 0), (0.5, 4, 0), (99.0, 4, 4)]
)
@both
def test_timeout_is_a_nodes_own(
    grid: InProcessGrid,
    monkeypatch: pytest.MonkeyPatch,
    timeout: float,
    called: int,
    answered: int,
) -> None:
    """Each look at the clock costs a second, so a call at least one: what has begun ends."""
    ask(grid)
    ticks = map(float, count())
    clock = SimpleNamespace(monotonic=lambda: next(ticks), time=time.time)
    messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
    for name in ("inprocess", "replies"):
        monkeypatch.setattr(f"fl_app.grid.{name}.time", clock)
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    monkeypatch.undo()
    assert len(replies) == answered
    assert sum(told(reply) == 3 for reply in ask(grid)) == called


@both
@pytest.mark.parametrize(("late", "calls"), [("before", 0), ("after", 1)])
def test_message_is_lost_when_its_time_is_over(
    grid: InProcessGrid, monkeypatch: pytest.MonkeyPatch, late: str, calls: int
) -> None:
    """A message that has expired is not delivered; one that expires in a call has no reply."""
    ask(grid)
    message = Message(RecordDict(), grid.get_node_ids()[1], "train", ttl=60.0)
    sent = message.metadata.created_at + (61 if late == "before" else 0)
    looks = map(float, count(step=61))
    clock = SimpleNamespace(monotonic=lambda: next(looks), time=lambda: sent)
    for name in ("inprocess", "replies"):
        monkeypatch.setattr(f"fl_app.grid.{name}.time", clock)
    (reply,) = grid.send_and_receive([message])
    monkeypatch.undo()
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert [told(reply) for reply in ask(grid)] == [2, 2 + calls, 2, 2]


@both
def test_keyboard_interrupt_of_a_client_is_raised(grid: InProcessGrid) -> None:
    """It ends the exchange, and the grid can be used afterwards: the call leaves no trace."""
    ask(grid)
    with pytest.raises(KeyboardInterrupt):
        ask(grid, do("interrupt", only=1))
    assert told(ask(grid)[1]) == 2


@with_workers
def test_ctrl_c_ends_all_workers(grid: InProcessGrid, tmp_path: Path) -> None:
    """SIGINT here, in the midst of calls, is raised here at once; no worker outlives it."""
    (tmp_path / "calls").mkdir()
    begun: list[int] = []

    def interrupt() -> None:
        while len(list((tmp_path / "calls").iterdir())) < 2:
            time.sleep(0.001)
        begun.extend(workers())
        for pid in [*begun, os.getpid()]:  # as a terminal does: to all
            os.kill(pid, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ask(grid, do("stay", folder=str(tmp_path / "calls")))
    thread.join()
    assert len(begun) == 2
    until(lambda: not living(begun))
    assert [told(reply) for reply in ask(grid)] == [1] * NODES


@with_workers
def test_ctrl_c_is_not_for_workers(grid: InProcessGrid) -> None:
    """SIGINT, which a terminal sends to workers too, does not end their calls by itself."""
    assert [told(reply) for reply in ask(grid, "get SIGINT")] == [1] * NODES


@with_workers
@pytest.mark.parametrize(("what", "end"), [("die", "exit status 3"), ("kill", "SIGKILL")])
def test_dead_worker_is_an_error_reply(grid: InProcessGrid, what: str, end: str) -> None:
    """Only the call that it had fails, with what has happened; its node's Context is as before."""
    ask(grid)
    replies = ask(grid, do(what, only=2))
    assert [reply.has_error() for reply in replies] == [False, False, True, False]
    assert replies[2].error.code == ErrorCode.CLIENT_APP_CRASHED
    assert str(replies[2].error.reason).startswith("worker ")
    assert str(replies[2].error.reason).endswith(f"ended in the midst of it: {end}")
    assert replies[2].metadata.src_node_id == grid.get_node_ids()[2]
    assert [told(reply) for reply in ask(grid)] == [3, 3, 2, 3]


@with_workers
def test_every_call_may_kill_its_worker(grid: InProcessGrid) -> None:
    """Workers are replaced as long as there are calls; an exchange always ends."""
    assert [r.error.code for r in ask(grid, "kill")] == [ErrorCode.CLIENT_APP_CRASHED] * NODES
    assert [told(reply) for reply in ask(grid)] == [1] * NODES


@with_workers
def test_worker_that_died_idle_is_replaced(grid: InProcessGrid, tmp_path: Path) -> None:
    """A worker that is killed between exchanges costs no reply."""
    assert not any(reply.has_error() for reply in meet(grid, tmp_path))
    pids = workers()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not set(workers()) & set(pids))
    assert [told(reply) for reply in ask(grid)] == [2, 2, 1, 1]


@with_workers
def test_context_that_cannot_travel_is_an_error_reply(grid: InProcessGrid) -> None:
    """What cannot be copied to this process is the call's error, and leaves no trace."""
    ask(grid)
    replies = ask(grid, do("not picklable", only=1))
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert replies[1].error.code == ErrorCode.UNKNOWN
    assert "pickle" in str(replies[1].error.reason)
    assert [told(reply) for reply in ask(grid)] == [3, 2, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["close", "kill"])
def test_calls_may_start_processes(end: str, tmp_path: Path) -> None:
    """As a DataLoader does; what they leave ends with the worker, however it ends."""
    others = workers()
    with InProcessGrid(worker_apps.app, NODES, num_workers=2) as grid:
        meet(grid, tmp_path)
        pids = [pid for pid in workers() if pid not in others]
        replies = ask(grid, do("start", end=""))
        assert [told(reply, "lengths") for reply in replies] == [[1, 2, 3]] * NODES
        left = [told(reply, "left") for reply in replies]
        assert len(living(left)) == NODES
        if end == "kill":
            replies = ask(grid, do("start", end="kill", only=1))
            assert [reply.has_error() for reply in replies] == [False, True, False, False]
            assert str(replies[1].error.reason).endswith("ended in the midst of it: SIGKILL")
            until(lambda: len(living(left)) < NODES)
    until(lambda: not living(left + pids))


# ----------------------------------------------------------------------------- start


def test_refuses_a_wrong_number() -> None:
    """The error names the field, the value and what is allowed."""
    for wrong in (0, -1, 2.0, True, "2"):
        with pytest.raises(ConfigError, match=r"num_workers=.*: an integer of at least 1"):
            InProcessGrid(worker_apps.app, 2, num_workers=wrong)  # type: ignore[arg-type]


def test_config_asks_for_workers() -> None:
    """The option is in the config, at least 1, and no part of what makes a run's numbers."""
    from fl_app.config.compose import compose_config
    from fl_app.config.serialization import digest as config_digest

    two = compose_config(["runtime.num_workers=2"])
    assert config_digest(two) == config_digest(compose_config([]))
    with pytest.raises(ConfigError, match=r"^runtime.num_workers=0: expected an integer >= 1$"):
        compose_config(["runtime.num_workers=0"])
    with pytest.raises(ConfigError, match=r"num_workers"):
        compose_config(["runtime=simulation", "runtime.num_workers=2"])


def test_client_app_that_cannot_be_pickled_is_named() -> None:
    """An app that holds what only this process has: one line, and no process is started."""
    lock = threading.Lock()
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Any) -> Message:
        with lock:
            return Message(RecordDict(), reply_to=message)

    server, others = ServerApp(), workers()
    with pytest.raises(ConfigError, match=r"num_workers=2: 1 for a ClientApp that cannot be pick"):
        run_in_process(server, app, num_supernodes=2, num_workers=2)
    assert set(workers()) <= set(others)


def test_refused_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has no process to give ends the run with its reason."""

    def refuse(number: int, made: bytes) -> None:
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr("fl_app.grid.workers.pool.Worker", refuse)
    with (
        pytest.raises(RunError, match=r"^worker 0 cannot be started: .*no more processes"),
        InProcessGrid(worker_apps.app, 2, num_workers=2) as grid,
    ):
        ask(grid)


class Refusing:
    """Fails where it is unpickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return (os._exit, (7,)) if self.how == "dies" else (int, ("no number",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("raises", r"worker \d \(process \d+\) cannot start: ValueError: invalid literal for int"),
        ("dies", r"worker \d \(process \d+\) ended before its first call: exit status 7"),
    ],
)
def test_worker_that_cannot_start_ends_the_run(how: str, text: str) -> None:
    """Where no worker could do better there is one clear line, and no end of new processes."""
    others = workers()
    pool = WorkerPool(partial(WorkerNode, Refusing(how)), num_workers=2)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=text):
        pool.run([Job(0, [0])], lambda call: call, lambda call, result: None)
    assert set(workers()) <= set(others)


def square(number: int) -> int:
    print(f"{number}\n", end="")  # one write, also where output is not buffered
    if number == 3:
        raise LookupError("no three")
    return number**2


def squares() -> Callable[[int], int]:
    return square


@pytest.mark.slow
@pytest.mark.parametrize("end", ["close", "exception"])
def test_pool_is_no_matter_of_flower(end: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Results belong to their calls, prints come here, and no process outlives the pool."""
    others = workers()
    pool = WorkerPool(squares, num_workers=3)
    results: dict[int, Any] = {}
    jobs = [Job(k, range(10 * k, 10 * k + 10)) for k in range(5)]
    pool.run(jobs, lambda call: call if call % 2 else None, results.__setitem__)
    lost = results.pop(3)
    assert isinstance(lost, WorkerError)
    assert str(lost) == "LookupError: no three"
    assert results == {i: i**2 for i in range(50) if i % 2 and i != 3}
    pids = [pid for pid in workers() if pid not in others]
    assert len(pids) == 3
    assert sorted(map(int, capfd.readouterr().out.split())) == [*range(1, 50, 2)]
    if end == "exception":

        def fail(call: int, result: Any) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            pool.run(jobs, lambda call: call, fail)
    else:
        pool.close()
        pool.close()
    until(lambda: not living(pids))


@pytest.mark.slow
def test_forgotten_grid_leaves_no_process() -> None:
    """Workers end with the last reference to their grid."""
    others = workers()
    grid = InProcessGrid(worker_apps.app, 2, num_workers=2)
    ask(grid)
    pids = [pid for pid in workers() if pid not in others]
    assert len(pids) == 2
    del grid
    gc.collect()
    until(lambda: not living(pids))


# ----------------------------------------------------------------------------- whole runs

needs_xgboost = pytest.mark.skipif(find_spec("xgboost") is None, reason="the extra xgboost")
BOOSTED = ["strategy=fedxgbbagging", "strategy.subsample=0.7"]
FOREST = ["strategy=fedstacking", "strategy.base_models=[random_forest]"]


def digest(folder: Path, *overrides: str) -> str:
    """Run ``fl-app``'s way through a config in this process; return the final weights' digest."""
    from fl_app.config.compose import compose_config
    from fl_app.config.run_request import RunRequest
    from fl_app.runtimes import inprocess

    folder.mkdir()
    config = compose_config(["tracking=none", f"output_dir={folder}", *overrides])
    result = inprocess.run(RunRequest(config))
    assert result.status == "FINISHED"
    assert result.weights_sha256 is not None
    return result.weights_sha256


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [["strategy=fedavg"], FOREST, pytest.param(BOOSTED, marks=needs_xgboost)],
    ids=["fedavg", "forest", "boosted"],
)
def test_same_bits(strategy: list[str], tmp_path: Path) -> None:
    """Final weights are equal to the last bit, with half of the clients in each round."""
    words = [*strategy, "dataset=wine", "num_clients=6", "fraction_train=0.5"]
    words += ["num_server_rounds=3"]
    alone = digest(tmp_path / "1", *words)
    assert digest(tmp_path / "2", *words, "runtime.num_workers=2") == alone
    assert digest(tmp_path / "other", *words, "seed=1") != alone


def test_pooled_has_one_client_and_no_workers(tmp_path: Path) -> None:
    """``strategy=pooled`` with workers is the same run in this process."""
    words = ["strategy=pooled", "dataset=wine", "num_server_rounds=2"]
    alone = digest(tmp_path / "1", *words)
    assert digest(tmp_path / "2", *words, "runtime.num_workers=2") == alone


def start(tmp_path: Path, *words: str, **env: str) -> tuple[subprocess.Popen[str], str]:
    """Start a command in a process group of its own; return it with what marks its processes."""
    mark = f"{tmp_path.name}-{next(_runs)}"
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=os.environ | {"FL_APP_TEST_MARK": mark, "PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    return process, mark


def marked(mark: str) -> list[int]:
    return processes_with("FL_APP_TEST_MARK", mark)


ENDLESS = ["num_server_rounds=100000", "num_clients=4", "dataset=wine", "fraction_evaluate=0"]


def _rounds(home: Path) -> int:
    """Return how many rounds the only run under a home has recorded."""
    try:
        return sum(1 for path in Journal.pending(home) for _ in JournalReader(path).rounds())
    except UNREADABLE:
        return 0


@pytest.mark.slow
def test_ctrl_c_ends_fl_app(tmp_path: Path) -> None:
    """SIGINT to the whole group: status 130, one line, nothing runs on, the record says KILLED."""
    from mlflow import MlflowClient

    words = [str(BIN / "fl-app"), "runtime.num_workers=2", *ENDLESS]
    process, mark = start(tmp_path, *words)
    home = Path(os.environ["FL_APP_HOME"])
    until(lambda: _rounds(home) > 2 or process.poll() is not None)
    assert len(marked(mark)) >= 3
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert err.strip().splitlines()[-1] == "fl-app: interrupted"
    assert "Traceback" not in err
    until(lambda: not marked(mark), 10)
    client = MlflowClient(f"sqlite:///{os.environ['FL_APP_HOME']}/mlflow.db")
    experiment = client.get_experiment_by_name("wine")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    assert run.data.params["runtime.num_workers"] == "2"


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_leaves_no_process(tmp_path: Path, signum: int) -> None:
    """Workers in the midst of long calls end when their parent is killed."""
    calls = tmp_path / "calls"
    calls.mkdir()
    script = f"""
from flwr.app import ConfigRecord, Message, RecordDict
from fl_app.grid import InProcessGrid
from tests.worker_apps import app
with InProcessGrid(app, 2, num_workers=2) as grid:
    content = RecordDict({{"do": ConfigRecord({{"what": "stay", "folder": {str(calls)!r}}})}})
    grid.send_and_receive([Message(content, n, "query") for n in grid.get_node_ids()])
"""
    process, mark = start(tmp_path, sys.executable, "-c", script)
    until(lambda: len([*calls.iterdir()]) == 2 or process.poll() is not None)
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signum, err
    until(lambda: not marked(mark), 10)


@pytest.mark.slow
def test_failing_client_is_named_in_the_run(tmp_path: Path) -> None:
    """A worker that dies in training sits a client out; the run says which and goes on."""
    script = f"""
import os, sys
from fl_app import client_app
from fl_app.config import compose_config
from fl_app.grid import run_in_process
from fl_app.config.run_request import RunRequest
from fl_app.server_app import app
def die(message, context, call_next):
    if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
        os._exit(9)
    return call_next(message, context)
from flwr.clientapp import ClientApp
mine = ClientApp(mods=[die])
mine.query("describe")(client_app.describe)
mine.train()(client_app.train)
mine.evaluate()(client_app.evaluate)
config = compose_config(["dataset=wine", "num_clients=3", "num_server_rounds=2", "tracking=none",
                         "output_dir={tmp_path}", "runtime.num_workers=2"])
run_in_process(app, mine, 3, {{"config-json": RunRequest(config).to_json()}}, num_workers=2)
"""
    process, mark = start(tmp_path, sys.executable, "-c", script)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    text = " ".join((out + err).split())
    assert "partition 1" in text
    assert "ended in the midst of it: exit status 9" in text
    result: Mapping[str, Any] = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "FINISHED"
    assert not marked(mark)
