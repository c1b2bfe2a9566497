"""TrackedStrategy in somebody else's app: starts, loops and wrappers that are not ours."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Result,
    Strategy,
)
from mlflow import MlflowClient

from fl_app.errors import DiskError, FlAppError
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.tracking import MlflowTracker, RoundRecord, RunEnd, RunStart, TrackedStrategy
from fl_app.tracking.files import read_npz
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JournalReader
from fl_app.tracking.mlflow.backend import MlflowStore
from fl_app.tracking.recorder import JournalTracker
from fl_app.tracking.records import flat_norm
from fl_app.tracking.round_texts import aggregation_text

NUM_CLIENTS, NUM_ROUNDS = 3, 3
START = {"w": np.zeros(2)}

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Move every value by an amount of the client's own."""
    k = int(context.node_config["partition-id"])
    moved = {name: a + k + 1 for name, a in read(message.content["arrays"]).items()}
    metrics = MetricRecord({"loss": 1.0 / (k + 1), "num-examples": 1, "norm_bit": 1})
    return Message(RecordDict({"a": hold(moved), "m": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with the first value, and say which partition it is."""
    k = int(context.node_config["partition-id"])
    metrics = MetricRecord({"first": float(k), "num-examples": 1})
    return Message(RecordDict({"m": metrics}), reply_to=message)


class Seen:
    """A tracker that keeps what it sees."""

    def __init__(self) -> None:
        self.started = False
        self.starts: list[RunStart] = []
        self.rounds: list[RoundRecord] = []
        self.ends: list[RunEnd] = []
        self.tags: dict[str, str] = {}

    def start(self, run: RunStart) -> None:
        self.started = True
        self.starts.append(run)

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        self.tags |= tags

    def record(self, record: RoundRecord) -> None:
        self.rounds.append(record)

    def finish(self, end: RunEnd) -> None:
        self.started = False
        self.ends.append(end)


@pytest.fixture
def grid() -> Iterator[InProcessGrid]:
    """Make a grid of three clients."""
    with InProcessGrid(app, NUM_CLIENTS) as grid:
        yield grid


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make one store for all tests of this file: a new one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    MlflowStore(uri, Path()).connect()
    return uri


def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate on the server: the norm of all arrays."""
    return MetricRecord({"norm": flat_norm(read(arrays))})


def everybody(**options: Any) -> dict[str, Any]:
    """Return what makes Flower's strategies ask all clients."""
    names = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
    return dict.fromkeys(names, NUM_CLIENTS) | options


# What FedAvg makes of the three clients: the mean of k + 1, so every value is 2 x the round.
def check(rounds: list[RoundRecord], server: bool = True) -> None:
    """Check that all rounds were recorded with arrays, clients and the server's metrics."""
    assert [r.server_round for r in rounds] == list(range(NUM_ROUNDS + 1))
    for r in rounds:
        assert r.arrays["w"] == pytest.approx(np.full(2, 2.0 * r.server_round))
        assert dict(r.server) == ({"norm": flat_norm(r.arrays)} if server else {})
    for r in rounds[1:]:
        assert [c.partition for c in r.train_clients] == [0, 1, 2]
        assert [c.metrics["first"] for c in r.evaluate_clients] == [0, 1, 2]
        assert r.cost["clients_replied"] == NUM_CLIENTS
        assert r.aggregate is not None


# ------------------------------------------------------------ a start() of the strategy's own


class Own(FedAvg):
    """A loop of its own: no ``evaluate_fn``, other arguments, keywords."""

    loops = 0

    def start(self, grid: Grid, initial_arrays: ArrayRecord, *, steps: int) -> Result:  # type: ignore[override]
        self.loops += 1
        arrays, config = initial_arrays, ConfigRecord()
        for step in range(1, steps + 1):
            arrays = self.step(step, arrays, config, grid)
        return Result(arrays)

    def step(self, step: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> ArrayRecord:
        messages = self.configure_train(server_round=step, arrays=arrays, config=config, grid=grid)
        found, _ = self.aggregate_train(step, replies=grid.send_and_receive(messages))
        assert found is not None
        messages = self.configure_evaluate(step, found, config, grid)
        self.aggregate_evaluate(step, grid.send_and_receive(messages))
        return found


class FromZero(Own):
    """The same, with rounds from 0 on."""

    def step(self, step: int, *others: Any) -> ArrayRecord:
        return super().step(step - 1, *others)


class AlwaysOne(Own):
    """The same, with round 1 again and again."""

    def step(self, step: int, *others: Any) -> ArrayRecord:
        return super().step(1, *others)


@pytest.mark.parametrize("kind", [Own, FromZero, AlwaysOne])
def test_an_own_start_runs_and_is_seen(kind: type[Own], grid: InProcessGrid) -> None:
    """Its loop runs, every round is recorded, and afterwards it is the strategy that it was."""
    strategy, seen = kind(**everybody()), Seen()
    before = set(vars(strategy))
    result = TrackedStrategy(strategy, seen).start(grid, hold(START), steps=NUM_ROUNDS)
    assert strategy.loops == 1
    check(seen.rounds, server=False)
    assert read(result.arrays)["w"] == pytest.approx(np.full(2, 2.0 * NUM_ROUNDS))
    assert set(vars(strategy)) == before | {"loops"}
    assert [end.status for end in seen.ends] == ["FINISHED"]


class Measured(Own):
    """Measures on the server, in one of three orders."""

    order = "last"

    def start(  # type: ignore[override]
        self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int, evaluate_fn: Any
    ) -> Result:
        arrays, config = initial_arrays, ConfigRecord()
        evaluate_fn(0, arrays)
        for r in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(r, arrays, config, grid))
            arrays = self.aggregate_train(r, replies)[0] or arrays
            if self.order == "between":
                evaluate_fn(server_round=r, arrays=arrays)
            replies = grid.send_and_receive(self.configure_evaluate(r, arrays, config, grid))
            self.aggregate_evaluate(r, replies)
            for _ in range({"last": 1, "twice": 2, "between": 0}[self.order]):
                evaluate_fn(r, arrays)
        return Result(arrays)


@pytest.mark.parametrize("order", ["last", "between", "twice"])
def test_whenever_the_server_measures_it_is_of_its_round(order: str, grid: InProcessGrid) -> None:
    """Before or after the clients' evaluation, or twice: one record a round."""
    strategy, seen = Measured(**everybody()), Seen()
    strategy.order = order
    TrackedStrategy(strategy, seen).start(grid, hold(START), NUM_ROUNDS, measure)
    check(seen.rounds)


class Early(FedAvg):
    """Stops training by itself, around Flower's start, which it calls."""

    def start(self, *args: Any, **kwargs: Any) -> Result:
        result = super().start(*args, **{**kwargs, "num_rounds": NUM_ROUNDS})
        result.arrays = hold({"w": np.full(2, -1.0)})
        return result


class Around(Strategy):
    """A wrapper whose start is the start of what it wraps."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def start(self, *args: Any, **kwargs: Any) -> Result:
        return self.strategy.start(*args, **kwargs)

    def configure_train(self, *args: Any) -> Iterable[Message]:
        raise AssertionError

    aggregate_train = configure_evaluate = aggregate_evaluate = configure_train  # type: ignore[assignment]

    def summary(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    "make",
    [
        lambda: Early(**everybody()),
        lambda: Around(FedAvg(**everybody())),
        lambda: Around(Around(Early(**everybody()))),
        lambda: FedAvg(**everybody()),
    ],
)
@pytest.mark.parametrize("server", [True, False])
def test_starts_around_flowers_are_seen(
    make: Callable[[], Strategy], server: bool, grid: InProcessGrid
) -> None:
    """Also where the hooks that are called are those of a strategy inside."""
    seen, other = Seen(), Seen()
    given = {"evaluate_fn": measure} if server else {}
    strategy = TrackedStrategy(TrackedStrategy(make(), seen), other)
    strategy.start(grid=grid, initial_arrays=hold(START), num_rounds=NUM_ROUNDS, **given)
    check(seen.rounds, server)
    check(other.rounds, server)
    assert [end.status for end in seen.ends + other.ends] == ["FINISHED"] * 2


def test_nobody_gets_an_evaluate_fn_that_was_not_given(grid: InProcessGrid) -> None:
    """A start() that asks for one has other ways without it."""

    class Asking(FedAvg):
        asked: Any = "nobody"

        def start(self, *args: Any, evaluate_fn: Any = None, **kwargs: Any) -> Result:
            self.asked = evaluate_fn
            return super().start(*args, evaluate_fn=evaluate_fn, **kwargs)

    strategy = Asking(**everybody())
    TrackedStrategy(strategy, Seen()).start(grid, hold(START), 1)
    assert strategy.asked is None


class Blind(FedAvg):
    """Makes its own messages and its own mean."""

    sent = 0

    def start(self, grid: Grid, initial_arrays: ArrayRecord, **_: Any) -> Result:  # type: ignore[override]
        for _r in range(2):
            self._exchange(grid, initial_arrays)
        return Result(initial_arrays)

    def _exchange(self, grid: Grid, arrays: ArrayRecord) -> None:
        self.sent += 1
        content = RecordDict({"arrays": arrays})
        grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()])


def test_a_start_that_cannot_be_seen_is_refused(grid: InProcessGrid) -> None:
    """Before it sends anything, with what would help; and the strategy's hooks still work."""
    strategy, seen = Blind(**everybody()), Seen()
    with pytest.raises(FlAppError, match=r"Blind\.start\(\) calls neither its hooks"):
        TrackedStrategy(strategy, seen).start(grid=grid, initial_arrays=hold(START))
    assert (strategy.sent, seen.starts) == (0, [])


class Handed(Blind):
    """Hands itself to somebody, who might call the hooks, and does not."""

    def _exchange(self, *args: Any) -> None:
        len([self])


def test_a_start_that_was_not_seen_has_no_good_record(
    grid: InProcessGrid, caplog: pytest.LogCaptureFixture
) -> None:
    """Where only the end shows it, the result is the user's and the record says what it lacks."""
    seen = Seen()
    result = TrackedStrategy(Handed(), seen).start(grid=grid, initial_arrays=hold(START))
    assert list(result.arrays) == ["w"]
    assert [end.status for end in seen.ends] == ["FAILED"]
    assert seen.ends[0].error.startswith("Handed.start() called neither a hook nor evaluate_fn")
    assert seen.ends[0].error[:40] in caplog.text


# ------------------------------------------------------------ attributes and the log


def test_attributes_are_the_strategys(grid: InProcessGrid) -> None:
    """Read, set and called: those who wrote for the strategy find it."""
    momentum = FedAvgM()
    strategy = TrackedStrategy(momentum, Seen())
    strategy.current_arrays = hold(START)
    strategy.server_learning_rate = 0.5
    assert momentum.current_arrays is strategy.current_arrays
    assert momentum.server_learning_rate == 0.5
    adam: Any = TrackedStrategy(FedAdam(eta=0.25), Seen())
    adam.current_arrays = {"w": np.ones(2)}
    delta, *_ = adam._compute_deltat_and_mt(ArrayRecord({"w": hold({"w": np.full(2, 3.0)})["w"]}))
    assert np.array_equal(delta["w"], [2.0, 2.0])
    assert adam.eta == 0.25
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = adam.nothing_of_the_kind


def test_the_log_is_the_strategys_and_says_where_the_record_is(
    grid: InProcessGrid, caplog: pytest.LogCaptureFixture, uri: str, tmp_path: Path
) -> None:
    """``Starting FedAvg``, the run's address at the end; and what the strategy was, as params."""
    tracker = MlflowTracker(uri, "log", params={"lr": "0.1"}, home=tmp_path)
    strategy = TrackedStrategy(FedAdam(eta=0.25, **everybody()), tracker)
    with caplog.at_level(logging.INFO, "flwr"):
        strategy.start(grid, hold(START), 1, evaluate_config=ConfigRecord({"batch": 8}))
    lines = [r.getMessage() for r in caplog.records]
    assert "Starting FedAdam strategy:" in lines
    assert any(line.endswith(str(tracker.url)) for line in lines)
    params = MlflowClient(tracker.uri).get_run(str(tracker.run_id)).data.params
    expected = {"strategy": "FedAdam", "num_server_rounds": "1", "lr": "0.1"}
    expected |= {"strategy.eta": "0.25", "strategy.fraction_train": "1.0"}
    assert params.items() >= {**expected, "evaluate_config.batch": "8"}.items()


def test_counters_are_no_update(tmp_path: Path) -> None:
    """``model/update_norm`` leaves out integers, also where an average made floats of them."""
    start = {"w": np.zeros(2), "num_batches_tracked": np.array([5])}
    tracker = JournalTracker(tmp_path, "a")
    with InProcessGrid(app, NUM_CLIENTS) as grid:
        TrackedStrategy(FedAvg(**everybody()), tracker).start(grid, hold(start), NUM_ROUNDS)
    norms = [
        line["metrics"].get("model/update_norm")
        for line, _ in JournalReader(tmp_path / "runs" / "a").rounds()
    ]
    assert norms == [None, *[pytest.approx(8**0.5)] * NUM_ROUNDS]


# ------------------------------------------------------------ one run or many


def test_a_start_that_goes_on_is_the_same_run(
    grid: InProcessGrid, uri: str, tmp_path: Path
) -> None:
    """``start(num_rounds=1)`` in a loop: one run of MLflow, all rounds, the whole table."""
    tracker = MlflowTracker(uri, "goes on", home=tmp_path)
    strategy = TrackedStrategy(FedAvg(**everybody()), tracker)
    arrays = hold(START)
    for _ in range(NUM_ROUNDS):
        arrays = strategy.start(grid, arrays, 1, evaluate_fn=measure).arrays
    client = MlflowClient(uri)
    experiment = str(client.get_experiment_by_name("goes on").experiment_id)  # type: ignore[union-attr]
    (found,) = client.search_runs([experiment])
    assert found.info.status == "FINISHED"
    key = "server/norm"
    steps = {m.step: m.value for m in client.get_metric_history(found.info.run_id, key)}
    assert steps == {r: pytest.approx(2 * r * 2**0.5) for r in range(NUM_ROUNDS + 1)}
    moved = client.get_metric_history(found.info.run_id, "model/update_norm")
    assert {m.step: m.value for m in moved} == dict.fromkeys((1, 2, 3), pytest.approx(8**0.5))
    folder = Path(found.info.artifact_uri.removeprefix("file://"))
    for r in range(NUM_ROUNDS + 1):
        kept = read_npz(folder / "weights" / f"round_{r:04d}.npz")
        assert kept["w"] == pytest.approx(np.full(2, 2.0 * r))
    table = pd.read_json(folder / "clients" / "evaluate.json", orient="split")
    assert len(table) == NUM_ROUNDS * NUM_CLIENTS
    assert Journal.pending(tmp_path) == []

    strategy.start(grid, hold(START), 1)  # from the beginning: another run
    assert len(client.search_runs([experiment])) == 2


def test_a_block_is_one_run(grid: InProcessGrid) -> None:
    """Whatever happens to the arrays between two starts."""
    seen = Seen()
    with TrackedStrategy(FedAvg(**everybody()), seen) as strategy:
        for r in range(NUM_ROUNDS):
            strategy.start(grid, hold({"w": np.full(2, 2.0 * r)}), 1, evaluate_fn=measure)
    check(seen.rounds)
    assert (len(seen.starts), [end.status for end in seen.ends]) == (1, ["FINISHED"])


# ------------------------------------------------------------ a loop of one's own


def loop(strategy: Strategy, grid: Grid, rounds: int = NUM_ROUNDS) -> Iterator[ArrayRecord]:
    """Do what Flower's start does without the server's evaluation."""
    arrays, config = hold(START), ConfigRecord()
    for r in range(1, rounds + 1):
        replies = grid.send_and_receive(strategy.configure_train(r, arrays, config, grid))
        arrays = strategy.aggregate_train(r, replies)[0] or arrays
        replies = grid.send_and_receive(strategy.configure_evaluate(r, arrays, config, grid))
        strategy.aggregate_evaluate(r, replies)
        yield arrays


def test_a_loop_over_the_hooks_is_a_run(grid: InProcessGrid) -> None:
    """In a block, with what the server measured; and the error that ends it is the run's."""
    seen = Seen()
    with TrackedStrategy(FedAvg(**everybody()), seen) as strategy:
        strategy.evaluated(0, hold(START), measure(0, hold(START)))
        for r, arrays in enumerate(loop(strategy, grid), start=1):
            strategy.evaluated(r, arrays, measure(r, arrays))
    check(seen.rounds)
    assert [end.status for end in seen.ends] == ["FINISHED"]

    failed = Seen()

    def fail() -> None:
        with TrackedStrategy(FedAvg(**everybody()), failed) as strategy:
            for arrays in loop(strategy, grid):
                _ = len(arrays) / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [r.server_round for r in failed.rounds] == [0, 1]
    assert [end.status for end in failed.ends] == ["FAILED"]


def test_a_loop_that_does_not_say_its_end_ends_with_its_strategy(
    grid: InProcessGrid, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a block the record is whole, and what it cannot know is said once."""
    seen = Seen()
    strategy = TrackedStrategy(FedAvg(**everybody()), seen)
    for _ in loop(strategy, grid):
        assert seen.ends == []
    del strategy
    gc.collect()
    check(seen.rounds, server=False)
    assert [end.status for end in seen.ends] == ["FINISHED"]
    said = [r.getMessage() for r in caplog.records if r.name == "fl_app"]
    assert len(said) == 1
    assert "evaluated()" in said[0]

    half = Seen()
    strategy = TrackedStrategy(FedAvg(**everybody()), half)
    list(strategy.configure_train(1, hold(START), ConfigRecord(), grid))
    del strategy
    grid.close()  # which remembers who asked it for its nodes last
    gc.collect()
    assert [(end.status, end.error) for end in half.ends] == [
        ("FAILED", "the last round was not finished")
    ]


# ------------------------------------------------------------ differential privacy


def wrappers(inner: Strategy) -> list[Strategy]:
    """Return Flower's wrappers, without noise, around a strategy."""
    return [
        DifferentialPrivacyServerSideFixedClipping(inner, 0.0, 100.0, NUM_CLIENTS),
        DifferentialPrivacyClientSideFixedClipping(inner, 0.0, 100.0, NUM_CLIENTS),
        DifferentialPrivacyServerSideAdaptiveClipping(
            inner, 0.0, NUM_CLIENTS, initial_clipping_norm=100.0, clipped_count_stddev=0.0
        ),
        DifferentialPrivacyClientSideAdaptiveClipping(
            inner, 0.0, NUM_CLIENTS, initial_clipping_norm=100.0, clipped_count_stddev=0.0
        ),
    ]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("inside", [False, True])
def test_under_privacy_no_client_is_recorded(which: int, inside: bool, grid: InProcessGrid) -> None:
    """Around Flower's wrappers and inside them, without a word from the user."""
    seen = Seen()
    inner: Strategy = FedAvg(**everybody())
    if inside:
        strategy = wrappers(TrackedStrategy(inner, seen))[which]
    else:
        strategy = TrackedStrategy(wrappers(inner)[which], seen)
    given = {"num_rounds": NUM_ROUNDS, "evaluate_fn": measure}
    result = strategy.start(grid=grid, initial_arrays=hold(START), **given)
    del strategy, inner
    gc.collect()
    assert [r.server_round for r in seen.rounds] == [0, 1, 2, 3]
    assert np.array_equal(seen.rounds[-1].arrays["w"], read(result.arrays)["w"])
    for r in seen.rounds[1:]:
        assert (r.train_clients, r.evaluate_clients) == ((), ())
        assert (r.train_asked.partitions, r.evaluate_asked.partitions) == ((), ())
        assert r.cost["clients_replied"] == NUM_CLIENTS
        assert r.aggregate is not None
        assert '"clients": [\n  \n ]' in aggregation_text(r)
    assert [end.status for end in seen.ends] == ["FINISHED"]


class Noised(DifferentialPrivacyServerSideFixedClipping):
    """Adds 1000 to what is aggregated, in the place of noise."""

    def _add_noise_to_aggregated_arrays(self, aggregated: ArrayRecord) -> ArrayRecord:
        return hold({name: a + 1000 for name, a in read(aggregated).items()})


def test_inside_a_wrapper_only_what_has_noise_is_recorded(grid: InProcessGrid) -> None:
    """What the strategy inside returned is no aggregate that anybody may see."""
    seen = Seen()
    strategy = Noised(TrackedStrategy(FedAvg(**everybody()), seen), 0.0, 100.0, NUM_CLIENTS)
    strategy.start(grid=grid, initial_arrays=hold(START), num_rounds=2)
    del strategy
    gc.collect()
    for r in seen.rounds[1:]:
        assert r.aggregate is not None
        assert (r.arrays["w"] >= 1000).all()
        assert (r.aggregate["w"] >= 1000).all()


# ------------------------------------------------------------ whose number it is


class Foreign(InProcessGrid):
    """A grid that knows no partition, as Flower's own."""

    partitions = None  # type: ignore[assignment]


def test_replies_tell_their_partitions() -> None:
    """So the keys are those of the grid that knows them, and the number is no metric."""
    telling = ClientApp()

    @telling.train()
    def train_(message: Message, context: Context) -> Message:
        reply = train(message, context)
        k = int(context.node_config["partition-id"])
        if k == 2:
            raise ValueError("this one never trains")
        reply.content["m"]["partition-id"] = k
        return reply

    @telling.evaluate()
    def evaluate_(message: Message, context: Context) -> Message:
        reply = evaluate(message, context)
        reply.content["own"] = ConfigRecord({"partition-id": context.node_config["partition-id"]})
        return reply

    records = []
    for kind in (InProcessGrid, Foreign):
        seen = Seen()
        with kind(telling, NUM_CLIENTS, shuffle_replies=1) as grid:
            TrackedStrategy(FedAvg(**everybody()), seen).start(grid, hold(START), 2)
        records.append(seen.rounds)
        for r in seen.rounds[1:]:
            assert [c.partition for c in r.evaluate_clients] == [0, 1, 2]
            assert [c.metrics for c in r.evaluate_clients] == [{"first": k} for k in range(3)]
            assert '"partition": 1' in aggregation_text(r)
            assert set(r.train) == {"loss", "norm_bit"}
        assert seen.tags == {}
    known, told = records
    # Of the node that has said nothing yet it is only known that it is none of the others.
    assert known[1].train_asked.partitions == [0, 1, 2]
    assert told[1].train_asked.partitions == [-1, 0, 1]
    assert set(told[1].train_asked.failed) == {-1}
    assert told[2].train_asked.partitions == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["process", "ray"])
def test_told_partitions_are_the_same_in_every_engine(engine: str) -> None:
    """Whatever ids the nodes have: here each client says its partition as a metric, too."""
    script = Path(__file__).parents[1] / "telling_app.py"
    done = subprocess.run(
        [sys.executable, str(script), engine], check=True, capture_output=True, text=True
    )
    both = [{str(k): float(k)} for k in range(3)] * 2
    assert json.loads(done.stdout.splitlines()[-1]) == [[], both, both]


def test_numbers_that_are_no_partitions_are_not_called_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where nobody tells any they are clients, in a fixed order, and that is said."""
    seen = Seen()
    with Foreign(app, NUM_CLIENTS) as grid:
        TrackedStrategy(FedAvg(**everybody()), seen).start(grid, hold(START), 2)
        nodes = dict(zip(grid.get_node_ids(), range(NUM_CLIENTS), strict=True))
    order = [nodes[node] for node in sorted(nodes)]
    for r in seen.rounds[1:]:
        assert [c.metrics["first"] for c in r.evaluate_clients] == order
        assert '"client": 1' in aggregation_text(r)
        assert '"partition"' not in aggregation_text(r)
    assert "arbitrary" in seen.tags["clients.numbered"]
    assert "arbitrary" in caplog.text


@pytest.mark.parametrize("how", ["start", "block"])
def test_a_full_disk_ends_the_run(
    how: str, grid: InProcessGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has failed then, with the rounds before; in the last round of a block too."""
    add_round = Journal.add_round

    def full(self: Journal, line: dict[str, Any], **arrays: Any) -> None:
        if line["server_round"] == NUM_ROUNDS:
            raise DiskError("the disk is full")
        add_round(self, line, **arrays)

    monkeypatch.setattr(Journal, "add_round", full)
    tracked = TrackedStrategy(FedAvg(), JournalTracker(tmp_path))
    with pytest.raises(DiskError), tracked if how == "block" else contextlib.nullcontext():
        tracked.start(grid=grid, initial_arrays=hold(START), num_rounds=NUM_ROUNDS)
    (folder,) = (tmp_path / "runs").iterdir()
    journal = JournalReader(folder)
    assert (journal.end["status"], journal.end["error"]) == ("FAILED", "the disk is full")
    assert journal.count_rounds() == NUM_ROUNDS
