"""The wrapper of a strategy: seeded cohorts before it, checked and sorted replies after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Result, Strategy
from numpy.typing import NDArray

from fl_app.errors import FederationError
from fl_app.federation.federated import Federated, Participation
from fl_app.federation.replies import ReplySpec, spec_of
from fl_app.federation.roster import Node, Roster
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.tracking.records import RoundRecord, RunEnd, RunStart
from fl_app.tracking.tracked import TrackedStrategy

ALL: dict[str, Any] = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
START = {"w": np.array([0.1, 0.2, 0.3]), "b": np.array([1.0])}
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fedavg": lambda: FedAvg(**ALL),
    "fedadam": lambda: FedAdam(eta=0.5, **ALL),
    "fedmedian": lambda: FedMedian(**ALL),
}
Asked = list[tuple[str, int, int]]


def _app(asked: Asked | None = None, broken: Mapping[int, Any] | None = None) -> ClientApp:
    """Make clients that move arrays by a number of their own; some are broken.

    ``asked`` notes (what, round, partition); ``broken`` maps partitions to an exception to raise
    or a content to answer.
    """
    app = ClientApp()

    def answer(message: Message, context: Context, train: bool) -> Message:
        partition = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        if asked is not None:
            asked.append(("train" if train else "evaluate", server_round, partition))
        fault = (broken or {}).get(partition)
        if isinstance(fault, Exception):
            raise fault
        rows = (10 if train else 2) + partition
        if isinstance(fault, RecordDict):
            told = dict(fault.get("metrics", {}))
            weight = {"num-examples": rows} if "num-examples" in told else {}
            own = {"metrics": MetricRecord(told | weight)} if told else {}
            return Message(RecordDict({**fault, **own}), reply_to=message)
        rng = np.random.default_rng([partition, server_round])
        metrics = {"mse": float(rng.random()), "num-examples": rows}
        content = RecordDict({"metrics": MetricRecord(metrics)})
        if train:
            moved = {
                k: a + rng.normal(size=a.shape).astype(a.dtype)
                for k, a in read(message.content["arrays"]).items()
            }
            content["arrays"] = hold(moved)
        return Message(content, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, True)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, False)

    return app


def _roster(grid: InProcessGrid, validation: int = 2) -> Roster:
    """Partition k has 10 + k rows to train on and 2 + k to validate on, or none."""
    return Roster(
        tuple(
            Node(n, k, 10 + k, validation and validation + k)
            for k, n in enumerate(grid.get_node_ids())
        )
    )


def _run(
    strategy: Strategy,
    app: ClientApp | None = None,
    num_nodes: int = 6,
    num_rounds: int = 3,
    shuffle: int | None = None,
    start: Mapping[str, NDArray[Any]] = START,
    validation: int = 2,
    **participation: Any,
) -> tuple[Federated, Result]:
    with InProcessGrid(app or _app(), num_nodes, shuffle_replies=shuffle) as grid:
        federated = Federated(
            strategy,
            _roster(grid, validation),
            Participation(**({"seed": 0} | participation)),
            train_metrics=frozenset({"mse"}),
            evaluate_metrics=frozenset({"mse"}),
        )
        return federated, federated.start(grid, hold(start), num_rounds=num_rounds)


def _bits(result: Result) -> dict[str, bytes]:
    return {name: a.tobytes() for name, a in read(result.arrays).items()}


# ---------------------------------------------------------------------------- the same bits
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_the_order_of_arrival_changes_no_bit(name: str, fraction: float) -> None:
    """Arrays and metrics of every round are the same bits, in whatever order replies come."""
    results = [
        _run(STRATEGIES[name](), shuffle=order, fraction_train=fraction)[1]
        for order in (None, 1, 2, 3)
    ]
    first = results[0]
    for other in results[1:]:
        assert _bits(other) == _bits(first)
        assert other.train_metrics_clientapp == first.train_metrics_clientapp
        assert other.evaluate_metrics_clientapp == first.evaluate_metrics_clientapp


class Emptying(FedAvg):
    """Empties the replies that it gets, as FedMedian does."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        averaged = super().aggregate_train(server_round, replies)
        for reply in replies:
            reply.content["arrays"].clear()
            reply.content["metrics"]["mse"] = 99.0
        return averaged


def test_a_strategy_may_empty_its_replies() -> None:
    """The messages that came stay whole: a strategy around this one may hold them."""
    came: list[Message] = []

    class Watching(Federated):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            came.extend(replies := list(replies))
            return super().aggregate_train(server_round, replies)

    with InProcessGrid(_app(), 3) as grid:
        federated = Watching(Emptying(**ALL), _roster(grid), Participation(seed=0))
        federated.start(grid, hold(START), num_rounds=1)
    assert [set(reply.content["arrays"]) for reply in came] == [set(START)] * 3
    assert all(reply.content["metrics"]["mse"] < 1 for reply in came)


def test_unsorted_sums_would_differ() -> None:
    """The clients here are such that the order of a plain FedAvg's sum shows in the bits."""
    bits = set()
    for order in range(8):
        with InProcessGrid(_app(), 6, shuffle_replies=order) as grid:
            result = FedAvg(**ALL).start(grid, hold(START), num_rounds=2)
        bits.add(tuple(_bits(result).values()))
    assert len(bits) > 1


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_aggregate_keeps_the_dtype(name: str, dtype: str) -> None:
    """FedAdam makes float64 of float32; the next round's clients get what they are used to."""
    start = {k: a.astype(dtype) for k, a in START.items()}
    result = _run(STRATEGIES[name](), start=start)[1]
    assert {k: (a.shape, str(a.dtype)) for k, a in read(result.arrays).items()} == {
        k: (a.shape, dtype) for k, a in START.items()
    }


def test_a_wrapped_strategy_is_the_strategy() -> None:
    """With all clients, no faults and sorted replies the wrapper changes no number."""
    with InProcessGrid(_app(), 6) as grid:

        class Sorted(FedAvg):
            def configure_train(self, *args: Any) -> Iterable[Message]:
                ids = list(args[3].get_node_ids())
                return sorted(
                    super().configure_train(*args), key=lambda m: ids.index(m.metadata.dst_node_id)
                )

            def configure_evaluate(self, *args: Any) -> Iterable[Message]:
                ids = list(args[3].get_node_ids())
                return sorted(
                    super().configure_evaluate(*args),
                    key=lambda m: ids.index(m.metadata.dst_node_id),
                )

        plain = Sorted(**ALL).start(grid, hold(START), num_rounds=3)
    _, wrapped = _run(FedAvg(**ALL))
    assert _bits(wrapped) == _bits(plain)
    assert wrapped.train_metrics_clientapp == plain.train_metrics_clientapp
    assert wrapped.evaluate_metrics_clientapp == plain.evaluate_metrics_clientapp


# ---------------------------------------------------------------------------- who is asked
def test_cohorts_are_the_same_in_every_run_and_differ_by_round() -> None:
    """The seed decides who trains and who evaluates; Flower's global generator does not."""
    asked: list[Asked] = [[], []]
    for notes in asked:
        _run(FedAvg(**ALL), _app(notes), num_nodes=20, fraction_train=0.3, fraction_evaluate=0.2)
    assert asked[0] == asked[1]
    cohorts = {
        (what, server_round): [p for w, r, p in asked[0] if (w, r) == (what, server_round)]
        for what, server_round, _ in asked[0]
    }
    assert {len(c) for (what, _), c in cohorts.items() if what == "train"} == {6}
    assert {len(c) for (what, _), c in cohorts.items() if what == "evaluate"} == {4}
    assert len({tuple(c) for c in cohorts.values()}) == len(cohorts) == 6


def test_only_nodes_with_validation_rows_evaluate() -> None:
    """A node without validation rows has no ``eval/`` metrics to give."""
    asked: Asked = []
    with InProcessGrid(_app(asked), 4) as grid:
        nodes = [Node(n, k, 10, k % 2) for k, n in enumerate(grid.get_node_ids())]
        federated = Federated(FedAvg(**ALL), Roster(tuple(nodes)), Participation(0))
        federated.start(grid, hold(START), num_rounds=1)
    assert [p for what, _, p in asked if what == "evaluate"] == [1, 3]


@pytest.mark.parametrize("without", [{"fraction_evaluate": 0.0}, {"validation": 0}])
def test_no_evaluation_means_no_metrics(without: dict[str, Any]) -> None:
    """A share of 0, or no validation rows, leaves ``eval/`` out and training as it is."""
    asked: Asked = []
    _, result = _run(FedAvg(**ALL), _app(asked), **without)
    assert result.evaluate_metrics_clientapp == {}
    assert {what for what, _, _ in asked} == {"train"}
    assert _bits(result) == _bits(_run(FedAvg(**ALL))[1])


def test_nodes_that_are_not_in_the_roster_are_never_asked() -> None:
    """Who sat out in the handshake, or came late, gets no message."""
    asked: Asked = []
    with InProcessGrid(_app(asked), 5) as grid:
        nodes = [n for n in _roster(grid) if n.partition != 2]
        Federated(FedAvg(**ALL), Roster(tuple(nodes)), Participation(0)).start(
            grid, hold(START), num_rounds=1
        )
    assert {p for _, _, p in asked} == {0, 1, 3, 4}


class _Fading(InProcessGrid):
    """A grid whose node 0 goes offline after the first look."""

    looks = 0

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        return super().get_node_ids() if self.looks <= 2 else super().get_node_ids()[1:]


def test_a_node_that_went_offline_is_left_out() -> None:
    """The round goes on with those who are there; too few are an error that counts them."""
    asked: Asked = []
    with _Fading(_app(asked), 3) as grid:
        roster = _roster(grid)
        Federated(FedAvg(**ALL), roster, Participation(0)).start(grid, hold(START), num_rounds=2)
    assert [p for what, r, p in asked if (what, r) == ("train", 2)] == [1, 2]
    with _Fading(_app(), 3) as grid:
        roster = _roster(grid)
        strict = Federated(FedAvg(**ALL), roster, Participation(0, min_replies=3))
        with pytest.raises(FederationError, match="round 2: 2 nodes are there, min_replies=3"):
            strict.start(grid, hold(START), num_rounds=2)


# ---------------------------------------------------------------------------- faults
NAN = float("nan")


def _content(metrics: dict[str, Any], **arrays: NDArray[Any]) -> RecordDict:
    content = RecordDict({"metrics": MetricRecord(metrics)})
    if arrays:
        content["arrays"] = hold(arrays)
    return content


FINE = {"mse": 0.5, "num-examples": 5}
BROKEN: dict[str, Any] = {
    "raises": ValueError("bad file"),
    "NaN arrays": _content(FINE, w=np.array([NAN, 0, 0]), b=np.zeros(1)),
    "broadcasting shape": _content(FINE, w=np.zeros(1), b=np.zeros(1)),
    "missing array": _content(FINE, w=np.zeros(3)),
    "other dtype": _content(FINE, w=np.zeros(3, np.float32), b=np.zeros(1)),
    "no weight": _content({"mse": 0.5}, w=np.zeros(3), b=np.zeros(1)),
    "other metrics": _content(FINE | {"mae": 1.0}, w=np.zeros(3), b=np.zeros(1)),
    "NaN metric": _content(FINE | {"mse": NAN}, w=np.zeros(3), b=np.zeros(1)),
    "list metric": _content(FINE | {"mse": [0.5]}, w=np.zeros(3), b=np.zeros(1)),
    "nothing": RecordDict(),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_broken_client_counts_as_absent(
    name: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The round is that of the other clients, bit for bit; each exchange has one warning."""
    app = _app(broken={1: BROKEN[fault]})
    federated, result = _run(STRATEGIES[name](), app, num_nodes=4, num_rounds=2)
    said = [r.getMessage() for r in caplog.records if r.name == "fl_app"]
    assert len(said) == 2 * 2
    assert all(", train: reply of partition 1 dropped: " in text for text in said[::2])
    assert all(", evaluate: reply of partition 1 dropped: " in text for text in said[1::2])
    with InProcessGrid(_app(), 4) as grid:
        others = Roster(tuple(n for n in _roster(grid) if n.partition != 1))
        without = Federated(STRATEGIES[name](), others, Participation(0))
        expected = without.start(grid, hold(START), num_rounds=2)
    assert _bits(result) == _bits(expected)
    assert result.train_metrics_clientapp == expected.train_metrics_clientapp
    assert result.evaluate_metrics_clientapp == expected.evaluate_metrics_clientapp
    assert federated.accepted == without.accepted


def test_too_few_usable_replies_end_the_run_with_the_reasons() -> None:
    """Below ``min_replies`` nothing is aggregated, and the error names partitions and faults."""
    broken = {0: BROKEN["no weight"], 2: BROKEN["NaN arrays"]}
    with pytest.raises(FederationError) as caught:
        _run(FedAvg(**ALL), _app(broken=broken), num_nodes=4, min_replies=3)
    assert str(caught.value) == (
        "round 1: 2 usable replies of 4 asked, min_replies=3. "
        "partition 0: num-examples=None: expected a positive number; "
        "partition 2: array w holds NaN or infinity: expected finite numbers"
    )


def test_a_run_where_every_client_fails_does_not_complete() -> None:
    """Flower alone would end well with empty arrays."""
    everybody = dict.fromkeys(range(3), ValueError("no data"))
    with pytest.raises(FederationError, match="round 1: 0 usable replies of 3 asked") as caught:
        _run(FedAvg(**ALL), _app(broken=everybody), num_nodes=3)
    assert "partition 0: the client failed: ValueError: no data" in str(caught.value)


def test_a_failed_evaluation_leaves_training_alone() -> None:
    """A round in which nobody could evaluate has no ``eval/`` metrics, and goes on."""

    def app() -> ClientApp:
        inner = _app()

        @inner.query()
        def query(message: Message, context: Context) -> Message:
            return Message(RecordDict(), reply_to=message)

        return inner

    class Deaf(FedAvg):
        def configure_evaluate(self, *args: Any) -> Iterable[Message]:
            for message in super().configure_evaluate(*args):
                yield Message(RecordDict(), message.metadata.dst_node_id, "query")

    _, result = _run(Deaf(**ALL), app())
    assert result.evaluate_metrics_clientapp == {}
    assert _bits(result) == _bits(_run(FedAvg(**ALL))[1])


@pytest.mark.parametrize(("dtype", "step"), [("float64", 1e308), ("float32", 1e39)])
def test_an_aggregate_that_overflows_ends_the_run(dtype: str, step: float) -> None:
    """Infinite global arrays would be recorded and sent: the run ends and names the array."""

    class Leap(FedAvg):
        def aggregate_train(self, *args: Any) -> tuple[ArrayRecord | None, MetricRecord | None]:
            arrays, metrics = super().aggregate_train(*args)
            assert arrays is not None
            with np.errstate(over="ignore"):
                far = {k: a.astype(np.float64) * step * 1e3 for k, a in read(arrays).items()}
            return hold(far), metrics

    start = {k: a.astype(dtype) for k, a in START.items()}
    with pytest.raises(FederationError) as caught:
        _run(Leap(**ALL), start=start)
    assert str(caught.value) == (
        "round 1: the aggregate of array w holds NaN or infinity: training "
        "diverged; lower model.learning_rate"
    )


# ---------------------------------------------------------------------------- inputs stay whole
def test_configs_and_replies_are_left_as_they_are() -> None:
    """A strategy that writes into its config and empties its replies harms nobody."""
    seen: list[list[str]] = []

    class Watching(Federated):
        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            replies = list(replies)
            result = super().aggregate_train(server_round, replies)
            seen.extend(sorted(m.content["arrays"]) for m in replies)
            return result

    config = ConfigRecord({"a": 1})
    with InProcessGrid(_app(), 3) as grid:
        watching = Watching(FedMedian(**ALL), _roster(grid), Participation(0))
        watching.start(grid, hold(START), num_rounds=1, train_config=config, evaluate_config=config)
    assert config == {"a": 1}
    assert seen == [["b", "w"]] * 3


# ---------------------------------------------------------------------------- particular strategies
class _Picky(FedAvg):
    """A strategy with a word on replies: in even rounds everybody trains, and sends ``c`` alone."""

    def reply_spec(self, server_round: int, arrays: ArrayRecord) -> ReplySpec:
        return ReplySpec({"c": ((2,), "float64")} if server_round == 2 else spec_of(arrays))

    def samples_all(self, server_round: int) -> bool:
        return server_round == 2

    def round_metrics(self, server_round: int) -> Mapping[str, float]:
        return {"stack/x": float(server_round)}

    def round_texts(self, server_round: int) -> Mapping[str, str]:
        return {"x.txt": str(server_round)}


def _two_faced(asked: Asked, extra: bool = False) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        server_round = int(message.content["config"]["server-round"])
        partition = int(context.node_config["partition-id"])
        asked.append(("train", server_round, partition))
        arrays = {"c": np.ones(2)} if server_round == 2 else read(message.content["arrays"])
        metrics = {"mse": 1.0, "num-examples": 10 + partition} | ({"more": 1.0} if extra else {})
        return Message(_content(metrics, **arrays), reply_to=message)

    return app


def test_a_strategy_may_say_what_replies_look_like_and_who_replies() -> None:
    """Its spec and its rounds for everyone count; ``fraction_train`` does in the others."""
    asked: Asked = []
    _, result = _run(
        _Picky(**ALL), _two_faced(asked), num_rounds=2, fraction_train=0.5, fraction_evaluate=0.0
    )
    assert [len([1 for _, r, _ in asked if r == i]) for i in (1, 2)] == [3, 6]
    assert list(read(result.arrays)) == ["c"]


def test_a_spec_without_metrics_asks_for_the_tasks() -> None:
    """A strategy that names no metrics gets no replies with others than the run's."""
    with pytest.raises(FederationError, match=r"metrics \['more', 'mse'\]: expected \['mse'\]"):
        _run(_Picky(**ALL), _two_faced([], extra=True), num_rounds=1)


def test_a_strategys_own_metrics_and_texts_are_recorded_through_it() -> None:
    """The observer asks the wrapped strategy itself; one that has none has none."""
    for strategy, own in (
        (_Picky(**ALL), ({"stack/x": 1.0}, {"x.txt": "1"})),
        (FedAvg(**ALL), ({}, {})),
    ):
        told = _Notes()
        with InProcessGrid(_app(), 2) as grid:
            federated = Federated(strategy, _roster(grid), Participation(0))
            TrackedStrategy(federated, told).start(grid, hold(START), num_rounds=1)
        assert (told.rounds[1].extra, told.rounds[1].texts) == own


# ---------------------------------------------------------------------------- with the observer
class _Notes:
    """A tracker that keeps its rounds."""

    def __init__(self) -> None:
        self.rounds: list[RoundRecord] = []

    def start(self, run: RunStart) -> None: ...
    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None: ...
    def finish(self, end: RunEnd) -> None: ...
    def record(self, record: RoundRecord) -> None:
        self.rounds.append(record)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_observer_outside_sees_whose_replies_counted(name: str) -> None:
    """Tracking around the federation records accepted clients by partition and counts the rest."""
    notes = _Notes()
    with InProcessGrid(_app(broken={1: BROKEN["NaN arrays"]}), 4, shuffle_replies=1) as grid:
        roster = _roster(grid)
        federated = Federated(
            STRATEGIES[name](), roster, Participation(0), frozenset({"mse"}), frozenset({"mse"})
        )
        result = TrackedStrategy(federated, notes, partitions=roster.partitions).start(
            grid, hold(START), num_rounds=2
        )
    for record in notes.rounds[1:]:
        assert [c.partition for c in record.train_clients] == [0, 2, 3]
        assert [c.num_examples for c in record.train_clients] == [10, 12, 13]
        assert record.cost["clients_failed"] == 1
        assert all(
            c.arrays is not None and set(c.arrays) == {"w", "b"} for c in record.train_clients
        )
    assert {k: a.tobytes() for k, a in notes.rounds[-1].arrays.items()} == _bits(result)
