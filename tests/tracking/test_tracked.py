"""TrackedStrategy sees every round of any strategy and changes none."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.strategy import FedAvg as OldFedAvg
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    Result,
    Strategy,
)
from numpy.typing import NDArray

from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.tracking import Asked, RoundRecord, RunEnd, RunStart, TrackedStrategy, Trackers
from fl_app.tracking.contents import content_bytes
from fl_app.tracking.metric_names import round_metrics
from fl_app.tracking.records import flat_norm
from fl_app.tracking.round_texts import aggregation_text

NUM_CLIENTS, NUM_ROUNDS = 4, 3
START: dict[str, NDArray[Any]] = {"coef": np.zeros((1, 3)), "intercept": np.ones(1, np.float32)}

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Move every value by an amount of the client's own; refuse where the config says so."""
    partition = int(context.node_config["partition-id"])
    if partition == message.content["config"].get("failing", -1):
        raise ValueError("this client always fails")
    arrays = read(message.content.array_records["arrays"])
    moved = {name: a * a.dtype.type(0.9) + a.dtype.type(partition) for name, a in arrays.items()}
    content = RecordDict({"arrays": hold(moved), "metrics": _metrics(partition)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with metrics of the client's own."""
    metrics = _metrics(int(context.node_config["partition-id"]))
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _metrics(partition: int) -> MetricRecord:
    return MetricRecord({"loss": 1.0 / (partition + 1), "num-examples": _num_examples(partition)})


def _num_examples(partition: int) -> int:
    return 10 * (partition + 1)


class Recorder:
    """A tracker that keeps what it sees."""

    def __init__(self, started: bool = False) -> None:
        self.started = started
        self.starts: list[RunStart] = []
        self.rounds: list[RoundRecord] = []
        self.ends: list[RunEnd] = []

    def start(self, run: RunStart) -> None:
        self.started = True
        self.starts.append(run)

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        pass

    def record(self, record: RoundRecord) -> None:
        self.rounds.append(record)

    def finish(self, end: RunEnd) -> None:
        self.ends.append(end)


class Exploding:
    """A tracker of which every call fails."""

    def start(self, run: RunStart) -> None:
        raise OSError("no start")

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        raise OSError("no note")

    def record(self, record: RoundRecord) -> None:
        raise OSError("no record")

    def finish(self, end: RunEnd) -> None:
        raise OSError("no finish")


@pytest.fixture
def grid() -> Iterator[InProcessGrid]:
    """Make a grid of four clients."""
    with InProcessGrid(app, NUM_CLIENTS) as grid:
        yield grid


@pytest.fixture(autouse=True)
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the chance out of Flower's sampling, which no seed of ours reaches."""
    monkeypatch.setattr("random.sample", lambda nodes, k: sorted(nodes)[:k])


def run(strategy: Strategy, grid: InProcessGrid, **options: Any) -> Result:
    """Run a strategy for three rounds."""
    options = {"num_rounds": NUM_ROUNDS, "evaluate_fn": measure, **options}
    return strategy.start(grid=grid, initial_arrays=hold(START), **options)


def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate on the server: the norm of all arrays."""
    return MetricRecord({"norm": flat_norm(read(arrays))})


def tracked(strategy: Strategy, grid: InProcessGrid, **options: Any) -> list[RoundRecord]:
    """Run a tracked strategy and return its rounds."""
    recorder = Recorder()
    run(TrackedStrategy(strategy, recorder, **options), grid)
    return recorder.rounds


def same(a: Mapping[str, Any] | ArrayRecord, b: Mapping[str, Any] | ArrayRecord) -> bool:
    """Return whether two sets of arrays are equal bit for bit."""
    left: Mapping[str, Any] = read(a) if isinstance(a, ArrayRecord) else a
    right: Mapping[str, Any] = read(b) if isinstance(b, ArrayRecord) else b
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def dp() -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1.0, NUM_CLIENTS)


STRATEGIES: list[Callable[[], Strategy]] = [FedAvg, FedMedian, FedAdam, FedTrimmedAvg, Krum, dp]


@pytest.mark.parametrize("make", STRATEGIES)
@pytest.mark.parametrize("tracker", [Recorder, Exploding])
@pytest.mark.parametrize("options", [{}, {"private": True}])
def test_watching_changes_nothing(
    make: Callable[[], Strategy], tracker: Callable[[], Any], options: Any, grid: InProcessGrid
) -> None:
    """Results are equal bit for bit with a tracker, with one that fails, and without."""
    bare, watched = run(make(), grid), run(TrackedStrategy(make(), tracker(), **options), grid)
    assert same(watched.arrays, bare.arrays)
    assert watched.train_metrics_clientapp == bare.train_metrics_clientapp
    assert watched.evaluate_metrics_clientapp == bare.evaluate_metrics_clientapp
    assert watched.evaluate_metrics_serverapp == bare.evaluate_metrics_serverapp


@pytest.mark.parametrize("make", STRATEGIES)
def test_every_round_is_seen(make: Callable[[], Strategy], grid: InProcessGrid) -> None:
    """Rounds 0 to T are recorded with the arrays and metrics that the strategy's result holds."""
    recorder = Recorder()
    result = run(TrackedStrategy(make(), recorder), grid)
    rounds = recorder.rounds
    assert [r.server_round for r in rounds] == list(range(NUM_ROUNDS + 1))
    assert same(rounds[0].arrays, START)
    assert same(rounds[-1].arrays, result.arrays)
    for r in rounds[1:]:
        assert r.train == result.train_metrics_clientapp[r.server_round]
        assert r.evaluate == result.evaluate_metrics_clientapp[r.server_round]
    for r in rounds:
        assert r.server == {"norm": flat_norm(r.arrays)}


def test_given_directions_are_in_every_round(grid: InProcessGrid) -> None:
    """For metrics whose name does not tell them."""
    records = tracked(FedAvg(), grid, higher_is_better={"niceness": False})
    first = records[0].run
    assert first.higher_is_better == {"niceness": False}
    assert all(record.run is first for record in records[1:])  # kept once a run


def test_average_is_the_sum_of_what_was_seen(grid: InProcessGrid) -> None:
    """FedAvg's arrays are the n_k-weighted mean of the recorded clients' arrays."""
    for r in tracked(FedAvg(), grid)[1:]:
        shares = [c.num_examples for c in r.train_clients]
        for name, array in r.arrays.items():
            parts = [c.arrays[name] for c in r.train_clients if c.arrays is not None]
            assert np.average(parts, axis=0, weights=shares) == pytest.approx(array)
        assert r.aggregate is not None
        assert same(r.aggregate, r.arrays)


def test_replies_are_read_before_the_strategy_empties_them(grid: InProcessGrid) -> None:
    """FedMedian takes the arrays out of the replies; their median still is the aggregate."""
    for r in tracked(FedMedian(), grid)[1:]:
        for name, array in r.arrays.items():
            parts = [c.arrays[name] for c in r.train_clients if c.arrays is not None]
            assert len(parts) == NUM_CLIENTS
            assert np.array_equal(np.median(parts, axis=0), array)


def test_clients_are_their_partitions(grid: InProcessGrid) -> None:
    """With a mapping, even one that is filled later, each client stands under its partition."""
    partitions: dict[int, int] = {}
    recorder = Recorder()
    strategy = TrackedStrategy(FedAvg(), recorder, partitions=partitions)
    partitions |= {node: k for k, node in enumerate(grid.get_node_ids())}
    run(strategy, grid)
    for r in recorder.rounds[1:]:
        for clients in (r.train_clients, r.evaluate_clients):
            assert [(c.partition, c.num_examples) for c in clients] == [
                (k, _num_examples(k)) for k in range(NUM_CLIENTS)
            ]
        assert r.num_clients == NUM_CLIENTS


def test_unknown_nodes_are_numbered_as_they_appear(
    grid: InProcessGrid, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without partitions a round's new nodes follow those of earlier rounds, by node id."""
    monkeypatch.setattr(InProcessGrid, "partitions", None)
    nodes = sorted(grid.get_node_ids())
    cohorts = iter([[nodes[3]], [nodes[3]], [nodes[1], nodes[2]], [nodes[3]]])
    monkeypatch.setattr("random.sample", lambda *_: next(cohorts))
    recorder = Recorder()
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    run(TrackedStrategy(strategy, recorder), grid, num_rounds=2)
    assert [[c.partition for c in r.train_clients] for r in recorder.rounds] == [[], [0], [1, 2]]
    assert [c.partition for c in recorder.rounds[2].evaluate_clients] == [0]
    told = json.loads(aggregation_text(recorder.rounds[2]))
    assert [set(client) & {"client", "partition"} for client in told["clients"]] == [{"client"}] * 2
    (line,) = [r.getMessage() for r in caplog.records if r.name == "fl_app"]
    assert "which is arbitrary" in line


def test_large_arrays_leave_a_norm(grid: InProcessGrid) -> None:
    """Clients' arrays are kept up to 32 values in all, their norm always."""
    rounds = []
    for size in (32, 33):
        recorder = Recorder()
        start = hold({"w": np.ones(size)})
        TrackedStrategy(FedAvg(), recorder).start(grid=grid, initial_arrays=start, num_rounds=1)
        rounds.append(recorder.rounds[1])
    for client in rounds[0].train_clients:
        assert client.arrays is not None
        assert client.norm == flat_norm(client.arrays)
    for client in rounds[1].train_clients:
        assert client.arrays is None
        assert client.norm is not None


def test_private_clients_leave_no_trace(grid: InProcessGrid) -> None:
    """Under differential privacy no client reaches a tracker, only how many replied."""
    for r in tracked(dp(), grid, private=True)[1:]:
        assert r.train_clients == r.evaluate_clients == ()
        assert r.train
        assert r.evaluate
        assert r.cost["clients_replied"] == NUM_CLIENTS
        told = json.loads(aggregation_text(r))
        assert (told["clients"], told["num_examples"]) == ([], None)
        assert told["aggregate"]
        keys = round_metrics(r)
        assert not any(
            key.startswith(("train_client_", "eval_client_", "fairness/")) for key in keys
        )


@pytest.mark.parametrize("failing", [0, 3])
def test_a_failing_client_is_counted(failing: int, grid: InProcessGrid) -> None:
    """A client whose reply is an error was asked and failed, and is no client of the round."""
    recorder = Recorder()
    config = ConfigRecord({"failing": failing})
    partitions = {node: k for k, node in enumerate(grid.get_node_ids())}
    strategy = TrackedStrategy(FedAvg(), recorder, partitions=partitions)
    run(strategy, grid, train_config=config)
    for r in recorder.rounds[1:]:
        assert r.cost["clients_asked"] == NUM_CLIENTS
        assert r.cost["clients_replied"] == NUM_CLIENTS - 1
        assert r.cost["clients_failed"] == 1
        assert failing not in {c.partition for c in r.train_clients}
        assert r.train_asked.partitions == r.evaluate_asked.partitions == [0, 1, 2, 3]
        (reason,) = r.train_asked.failed.items()
        assert reason[0] == failing
        assert reason[1].startswith("the client failed: ")
        assert "this client always fails" in reason[1]
        assert r.evaluate_asked.failed == {}


class Watcher(Recorder):
    """A tracker that keeps what happens between rounds, and the clients' arrays."""

    keeps_models = True

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.models: list[tuple[int, Mapping[int, Mapping[str, Any]]]] = []

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        self.events.append((kind, dict(facts)))

    def see_models(self, server_round: int, models: Mapping[int, Mapping[str, Any]]) -> None:
        self.models.append((server_round, models))


def test_who_is_asked_and_who_replied_is_told_at_once(grid: InProcessGrid) -> None:
    """Two exchanges a round, two events each; and the arrays whose mean the round's are."""
    watcher = Watcher()
    partitions = {node: k for k, node in enumerate(grid.get_node_ids())}
    strategy = TrackedStrategy(FedAvg(), watcher, partitions=partitions)
    run(strategy, grid, train_config=ConfigRecord({"failing": 2}), num_rounds=1)
    where = [{"round": 1, "exchange": what} for what in ("train", "evaluate")]
    (asked, replied, *others) = watcher.events
    assert asked == ("asked", {**where[0], "clients": [0, 1, 2, 3]})
    assert (replied[0], replied[1]["clients"], set(replied[1]["failed"])) == (
        *("replied", [0, 1, 3]),
        {"2"},
    )
    assert others == [
        ("asked", {**where[1], "clients": [0, 1, 2, 3]}),
        ("replied", {**where[1], "clients": [0, 1, 2, 3], "failed": {}}),
    ]
    ((server_round, models),) = watcher.models
    assert (server_round, set(models)) == (1, {0, 1, 3})
    weights = [_num_examples(k) for k in models]
    for name, array in watcher.rounds[1].arrays.items():
        parts = [own[name] for own in models.values()]
        assert np.average(parts, axis=0, weights=weights) == pytest.approx(array)


def test_private_events_are_counts(grid: InProcessGrid) -> None:
    """Under differential privacy no event names a client, and no arrays are shown."""
    watcher = Watcher()
    strategy = TrackedStrategy(dp(), watcher, private=True)
    run(strategy, grid, num_rounds=1)
    assert [(kind, set(facts) - {"round", "exchange"}) for kind, facts in watcher.events] == [
        ("asked", {"count"}),
        ("replied", {"count", "failed_count"}),
    ] * 2
    assert watcher.models == []
    record = watcher.rounds[1]
    assert record.train_asked == record.evaluate_asked == Asked()
    assert not {"asked", "failed", "evaluate"} & json.loads(aggregation_text(record)).keys()


class Arriving(InProcessGrid):
    """A grid that shows its replies one by one before it returns them."""

    show: Callable[[list[Message]], None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        for reply in replies:
            self.show([reply])
        return replies


@pytest.mark.parametrize(("private", "many"), [(False, False), (True, False), (False, True)])
def test_replies_are_told_as_they_come(
    private: bool, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By client; of a private run, and of very many clients, how many came so far."""
    monkeypatch.setattr("fl_app.tracking.exchanges._MAX_NAMED", 3 if many else 4)
    watcher = Watcher()
    with Arriving(app, NUM_CLIENTS) as grid:
        partitions = {node: k for k, node in enumerate(grid.get_node_ids())}
        strategy = TrackedStrategy(FedAvg(), watcher, partitions=partitions, private=private)
        grid.show = strategy.saw
        run(strategy, grid, num_rounds=1)
    told = [f for kind, f in watcher.events if kind == "reply"]
    key, values = ("count", [1, 2, 3, 4]) if private or many else ("client", [0, 1, 2, 3])
    for what in ("train", "evaluate"):
        assert sorted(f[key] for f in told if f["exchange"] == what) == values
    kinds = [kind for kind, _ in watcher.events]
    assert kinds == [*("asked", *["reply"] * 4, "replied")] * 2
    strategy.saw([])  # between exchanges: nobody was asked
    assert len(watcher.events) == len(kinds)


def test_bytes_are_those_of_the_messages(grid: InProcessGrid) -> None:
    """Both directions grow each round by the size of the contents that were sent."""
    arrays = sum(a.nbytes for a in START.values())
    down = NUM_CLIENTS * 2 * arrays  # to train on, to evaluate; the config is not the algorithm's
    up = NUM_CLIENTS * (arrays + 2 * (8 + 8))  # a loss and num-examples in both replies
    for r in tracked(FedAvg(), grid)[1:]:
        assert r.cost["bytes_down"] == r.server_round * down
        assert r.cost["bytes_up"] == r.server_round * up
        assert r.cost["seconds"] > 0


def test_content_bytes_are_close_to_flowers() -> None:
    """Names and array headers aside, the count is that of Flower's own records."""
    array = Array(np.zeros((4, 5), np.float32))
    records: dict[str, Any] = {
        "a": ArrayRecord({"w": array}),
        "m": MetricRecord({"x": 1.0, "ys": [1, 2, 3]}),
        "c": ConfigRecord({"s": "text", "b": b"12", "t": True, "n": 3, "empty": "x"}),
    }
    header = len(array.data) - 4 * 5 * 4
    flowers = sum(record.count_bytes() for record in records.values())
    names = sum(len(name) for record in records.values() for name in record)
    assert content_bytes(RecordDict(records)) == flowers - header - names


def test_texts_count_by_their_length_on_the_wire() -> None:
    """A config may hold an empty string, at which Flower's own count raises, and umlauts."""
    assert content_bytes(RecordDict({"c": ConfigRecord({"key": "", "other": "ü"})})) == 2


class Undecided(FedAvg):
    """A strategy whose second round has no result."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if server_round == 2:
            return None, None
        return super().aggregate_train(server_round, replies)


def test_a_round_without_a_result_is_a_round(grid: InProcessGrid) -> None:
    """Where aggregation returns nothing the arrays stay and the round is recorded all the same."""
    rounds = tracked(Undecided(), grid)
    assert len(rounds) == NUM_ROUNDS + 1
    assert same(rounds[2].arrays, rounds[1].arrays)
    assert rounds[2].aggregate is None
    assert rounds[2].train == {}
    assert len(rounds[2].train_clients) == NUM_CLIENTS
    assert not same(rounds[3].arrays, rounds[2].arrays)


class Picky(FedAvg):
    """A strategy that uses one reply, says which, and tells more of its rounds."""

    accepted: frozenset[int] = frozenset()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        used = sorted(replies, key=lambda m: m.metadata.src_node_id)[:1]
        self.accepted = frozenset(m.metadata.src_node_id for m in used)
        return super().aggregate_train(server_round, used)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        self.accepted = frozenset(m.metadata.src_node_id for m in replies)
        return super().aggregate_evaluate(server_round, replies)

    def round_metrics(self, server_round: int) -> dict[str, float]:
        return {"stack/phase": float(server_round)}

    def round_texts(self, server_round: int) -> dict[str, str]:
        return {f"stack/{server_round}.txt": "chosen"}


def test_only_accepted_replies_are_clients(grid: InProcessGrid) -> None:
    """What a strategy says it did not use is no client; the others count as failed."""
    first = grid.partitions[min(grid.get_node_ids())]
    others = {*range(NUM_CLIENTS)} - {first}
    for r in tracked(Picky(), grid)[1:]:
        assert [c.partition for c in r.train_clients] == [first]
        assert r.train_asked.failed == dict.fromkeys(others, "the reply was not used")
        assert len(r.evaluate_clients) == NUM_CLIENTS
        assert (r.cost["clients_replied"], r.cost["clients_failed"]) == (1, NUM_CLIENTS - 1)


class Namesake(FedAvg):
    """A strategy with attributes of its own under the names that we would use."""

    def __init__(self, accepted: Any) -> None:
        super().__init__()
        self.accepted, self.dropped, self.is_model = accepted, 3, "cnn"
        self.round_metrics, self.round_texts = {"a": 1.0}, None


@pytest.mark.parametrize("accepted", [7, {0, 1}, [2], frozenset({1, 2}), "no"])
def test_attributes_that_only_have_our_names_are_left_alone(
    accepted: Any, grid: InProcessGrid
) -> None:
    """What is no frozenset of nodes that were asked does not say whose reply counted."""
    for r in tracked(Namesake(accepted), grid)[1:]:
        assert len(r.train_clients) == NUM_CLIENTS
        assert r.train_asked.failed == r.extra == r.texts == {}


class Shell(Strategy):
    """A wrapper that delegates everything and has nothing of its own."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def configure_train(self, *args: Any) -> Iterable[Message]:
        return self.strategy.configure_train(*args)

    def aggregate_train(self, *args: Any) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return self.strategy.aggregate_train(*args)

    def configure_evaluate(self, *args: Any) -> Iterable[Message]:
        return self.strategy.configure_evaluate(*args)

    def aggregate_evaluate(self, *args: Any) -> MetricRecord | None:
        return self.strategy.aggregate_evaluate(*args)

    def summary(self) -> None:
        self.strategy.summary()


def test_strategies_inside_wrappers_are_heard(grid: InProcessGrid) -> None:
    """Rule, accepted replies, metrics and texts come from the innermost strategy that has them."""
    for r in tracked(Shell(Shell(Picky())), grid):
        assert r.run.rule == "Picky"
        if r.server_round:
            assert len(r.train_clients) == 1
            assert r.extra == {"stack/phase": r.server_round}
            assert r.texts == {f"stack/{r.server_round}.txt": "chosen"}
    assert tracked(FedAvg(), grid, rule="mean")[1].run.rule == "mean"


def test_lists_are_flattened_and_the_weight_is_no_metric(grid: InProcessGrid) -> None:
    """A metric with several values has a name for each; the weight has one of its own."""

    def server(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"recall": [0.25, 0.75], "n": 3})

    recorder = Recorder()
    run(TrackedStrategy(FedAvg(), recorder), grid, evaluate_fn=server)
    last = recorder.rounds[-1]
    assert last.server == {"recall.0": 0.25, "recall.1": 0.75, "n": 3.0}
    assert set(last.train) == set(last.train_clients[0].metrics) == {"loss"}


def test_rounds_are_seen_without_an_evaluate_fn(grid: InProcessGrid) -> None:
    """The user need not evaluate on the server: rounds are recorded, results have no metrics."""
    recorder = Recorder()
    result = run(TrackedStrategy(FedAvg(), recorder), grid, evaluate_fn=None)
    assert len(recorder.rounds) == NUM_ROUNDS + 1
    assert result.evaluate_metrics_serverapp == {}
    assert all(r.server == {} for r in recorder.rounds)


def test_rounds_without_evaluation_or_training(grid: InProcessGrid) -> None:
    """A strategy that skips an exchange leaves it empty, and the other one is counted."""
    for r in tracked(FedAvg(fraction_evaluate=0.0), grid)[1:]:
        assert (len(r.train_clients), len(r.evaluate_clients)) == (NUM_CLIENTS, 0)
    for r in tracked(FedAvg(fraction_train=0.0), grid)[1:]:
        assert (len(r.train_clients), len(r.evaluate_clients)) == (0, NUM_CLIENTS)
        assert r.cost["clients_asked"] == NUM_CLIENTS
        assert same(r.arrays, START)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "FAILED")],
)
def test_a_run_ends_as_it_ended(error: BaseException, status: str, grid: InProcessGrid) -> None:
    """An exception passes through, and the tracker that the run started hears of it."""

    def explode(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == 2:
            raise error
        return MetricRecord()

    recorder = Recorder()
    with pytest.raises(type(error)):
        run(TrackedStrategy(FedAvg(), recorder), grid, evaluate_fn=explode)
    assert len(recorder.rounds) == 2
    assert [e.status for e in recorder.ends] == [status]
    assert recorder.ends[0].error.startswith(type(error).__name__)


def test_who_starts_a_tracker_finishes_it(grid: InProcessGrid) -> None:
    """A run starts and finishes a tracker once, and leaves both to whoever started it before."""
    own, given = Recorder(), Recorder(started=True)
    run(TrackedStrategy(FedAvg(), own), grid)
    run(TrackedStrategy(FedAvg(), given), grid)
    assert [s.name for s in own.starts] == ["FedAvg"]
    assert own.starts[0].num_server_rounds == NUM_ROUNDS
    assert [e.status for e in own.ends] == ["FINISHED"]
    assert (given.starts, given.ends) == ([], [])
    assert len(given.rounds) == NUM_ROUNDS + 1


def test_a_second_run_starts_from_zero(grid: InProcessGrid) -> None:
    """A tracked strategy that is started again counts bytes and nodes anew."""
    recorder = Recorder()
    strategy = TrackedStrategy(FedAvg(), recorder)
    run(strategy, grid)
    run(strategy, grid)
    first, second = recorder.rounds[: NUM_ROUNDS + 1], recorder.rounds[NUM_ROUNDS + 1 :]
    for a, b in zip(first, second, strict=True):
        assert same(a.arrays, b.arrays)
        assert {**a.cost, "seconds": 0} == {**b.cost, "seconds": 0}


def test_a_failing_tracker_is_told_of_once_a_kind(
    grid: InProcessGrid, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind of failure makes one log line at level WARNING, and no Python warning."""
    with warnings.catch_warnings(record=True) as raised, caplog.at_level(logging.WARNING, "fl_app"):
        run(TrackedStrategy(FedAvg(), Exploding()), grid)
    lines = [r for r in caplog.records if r.name == "fl_app"]
    assert len(lines) == 3  # start, record, finish
    assert all(r.levelno == logging.WARNING for r in lines)
    assert raised == []


def test_trackers_do_not_notice_each_other(grid: InProcessGrid) -> None:
    """Of several trackers one fails, and the others see all."""
    before, after = Recorder(), Recorder()
    run(TrackedStrategy(FedAvg(), Trackers(before, Exploding(), after)), grid)
    for recorder in (before, after):
        assert len(recorder.starts) == len(recorder.ends) == 1
        assert len(recorder.rounds) == NUM_ROUNDS + 1


def test_started_trackers_count_as_started() -> None:
    """Several trackers are started together, or each by itself."""
    assert not Trackers().started
    assert not Trackers(Recorder(started=True), Recorder()).started
    assert Trackers(Recorder(started=True), Recorder(started=True)).started
    together = Trackers(Exploding(), Recorder())
    together.start(RunStart())
    assert together.started


class Ignoring(FedAvg):
    """A strategy that makes nothing of the replies."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return None, None


def test_arrays_that_are_no_numbers_are_left_out() -> None:
    """Arrays of text have neither values nor a norm, and the client is recorded all the same."""
    names = ClientApp()

    @names.train()
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"names": Array(np.array(["a", "b"]))})
        return Message(RecordDict({"a": arrays, "m": _metrics(0)}), reply_to=message)

    with InProcessGrid(names, NUM_CLIENTS) as grid:
        rounds = tracked(Ignoring(fraction_evaluate=0.0), grid)
    for r in rounds[1:]:
        assert [(c.arrays, c.norm) for c in r.train_clients] == [(None, None)] * NUM_CLIENTS


def test_several_records_of_a_kind_are_all_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """Their values stand under the record's name; a list that is too long is named, once."""
    several = ClientApp()

    @several.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"]
        more = MetricRecord({"few": [1.0, 2.0], "many": [0.5] * 33})
        content = {"a": arrays, "b": arrays, "m": _metrics(1), "n": more}
        return Message(RecordDict(content), reply_to=message)

    with InProcessGrid(several, NUM_CLIENTS) as grid:
        rounds = tracked(Ignoring(fraction_evaluate=0.0), grid)
    for client in [client for r in rounds[1:] for client in r.train_clients]:
        assert client.num_examples == _num_examples(1)
        assert client.metrics == {"m.loss": 0.5, "n.few.0": 1.0, "n.few.1": 2.0}
        assert client.arrays is not None
        assert set(client.arrays) == {"a.coef", "a.intercept", "b.coef", "b.intercept"}
        assert client.norm == flat_norm(client.arrays)
    assert [len(r.train_clients) for r in rounds] == [0, *[NUM_CLIENTS] * NUM_ROUNDS]
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert said == [
        "tracking: train metric n.many of clients has more than 32 values and is left out"
    ]


def test_an_interrupt_waits_until_all_know_the_end() -> None:
    """What one tracker is busy with when it comes keeps the end from no other."""

    class Interrupted(Recorder):
        def finish(self, end: RunEnd) -> None:
            raise KeyboardInterrupt

    after, end = Recorder(), RunEnd("FINISHED")
    with pytest.raises(KeyboardInterrupt):
        Trackers(Interrupted(), after).finish(end)
    assert after.ends == [end]


def test_only_strategies_can_be_tracked() -> None:
    """Anything else is refused with its type, and a strategy of Flower's older API as such."""
    with pytest.raises(TypeError, match=r"of flwr\.serverapp\.strategy, got builtins\.str$"):
        TrackedStrategy("FedAvg", Recorder())  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"got flwr\.server\.strategy\.fedavg\.FedAvg, which.*older"
    ):
        TrackedStrategy(OldFedAvg(), Recorder())  # type: ignore[arg-type]


@pytest.mark.slow
def test_importing_the_package_does_not_import_mlflow() -> None:
    """A process that tracks nothing does not pay for MLflow."""
    code = "import sys, fl_app.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_median_has_no_second_copy_of_its_replies(grid: InProcessGrid) -> None:
    """What is kept of large replies while they are aggregated is their norms."""
    peaks = []
    for wrap in (FedMedian, lambda: TrackedStrategy(FedMedian(), Recorder())):
        strategy = wrap()
        contents = [RecordDict({"a": large(k), "m": _metrics(k)}) for k in range(10)]
        replies = [Message(c, dst_node_id=1, message_type="train") for c in contents]
        tracemalloc.start()
        strategy.aggregate_train(1, replies)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # One array is decoded at a time, and its squares are summed in float64.
    assert peaks[1] < peaks[0] + 5 * len(large(0)["w"].data)


def large(k: int) -> ArrayRecord:
    """Return a stock record of 2 MB."""
    return ArrayRecord({"w": Array(np.full(500_000, k, np.float32))})


class Clock:
    """A clock that moves only where somebody lets time pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_seconds_are_those_of_the_clock_on_the_wall(
    grid: InProcessGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second between start and the end of round T is in one round's ``cost/seconds``.

    Evaluating on the server takes 3 s, a tracker 5 s, configuring 7 s, the closing of a round
    nothing else. Round 1 has the evaluation before training too, and what the tracker did with it;
    what it does with round T is after the end.
    """
    clock = Clock()
    monkeypatch.setattr("fl_app.tracking.watch.time.perf_counter", clock.perf_counter)

    class Slow(Recorder):
        def record(self, record: RoundRecord) -> None:
            clock.now += 5
            super().record(record)

    class Thinking(FedAvg):
        def configure_train(self, *words: Any) -> Any:
            clock.now += 7
            return super().configure_train(*words)

    def evaluated(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        clock.now += 3
        return measure(server_round, arrays)

    recorder = Slow()
    for began in (clock.now, None):  # used again, it counts anew
        began = clock.now if began is None else began
        recorder.rounds.clear()
        run(TrackedStrategy(Thinking(), recorder), grid, evaluate_fn=evaluated)
        seconds = [r.cost["seconds"] for r in recorder.rounds[1:]]
        assert seconds == [3 + 5 + 7 + 3] + [5 + 7 + 3] * (NUM_ROUNDS - 1)
        assert sum(seconds) == clock.now - began - 5
