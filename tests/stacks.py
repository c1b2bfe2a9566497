"""Federations of stacking in this process: our clients, their faults, and all that a run left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fl_app.client_app import app as client_app
from fl_app.config.schema import Config
from fl_app.config.serialization import from_dict, to_json
from fl_app.data.client_data import Encoded, encode, partition_of, test_table
from fl_app.data.encoding import Encoding
from fl_app.experiment import federated_of
from fl_app.federation import protocol
from fl_app.federation.handshake import shake_hands
from fl_app.federation.roster import Roster
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.models.serving import Predictor
from fl_app.seeding import one_thread
from fl_app.stacking.members import Stack
from fl_app.strategies import start_arrays
from fl_app.tracking import TrackedStrategy
from fl_app.tracking.records import NullTracker, RoundRecord

Arrays = dict[str, NDArray[Any]]
Tamper = Callable[[str, int, Arrays, dict[str, Any]], None]
"""Changes a reply in place: phase, partition, arrays, metrics."""
OPEN_SUMS = "may solve the sums of"
"""What the warning before the sums says."""


def config_of(dataset: Any = "wine", strategy: Any = None, **options: Any) -> Config:
    """Make a small stacking config: wine, 4 clients, 4 rounds; floors of 2, as rows are few.

    The step is a number, so that what a test works out by hand needs no server.
    """
    named = dataset if isinstance(dataset, Mapping) else {"name": dataset}
    classes = named["name"] not in ("diabetes", "synthetic_regression", "two_lines")
    model = {"name": "auto", "learning_rate": 0.5 if classes else 0.1}
    base = {"num_clients": 4, "num_server_rounds": 4, "min_rows": 2}
    base |= {"dataset": named, "model": model}
    own = {"name": "fedstacking"} | (strategy or {})
    if own["name"] == "fedstacking":
        own = {"min_rows_per_sum": 2} | own
    return from_dict(base | {"strategy": own} | options)


@dataclass
class Reply:
    """What one client answered, with what it was sent."""

    server_round: int
    phase: str
    partition: int
    sent: Arrays
    settings: dict[str, Any]
    arrays: Arrays
    metrics: dict[str, Any]


@dataclass
class Clients:
    """Our client app with faults, and a diary of what was said in training.

    Parameters
    ----------
    away : callable (server_round, partition) -> bool
        Who does not answer in a training round.
    tamper : callable, optional
        Changes replies before they leave.
    forget : bool
        Whether nodes lose their state after every message.
    """

    away: Callable[[int, int], bool] = lambda server_round, partition: False
    tamper: Tamper | None = None
    forget: bool = False
    diary: list[Reply] = field(default_factory=list)

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.query("describe")
        def describe(message: Message, context: Context) -> Message:
            return client_app(message, context)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            return self._train(message, context)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            return client_app(message, context)

        return app

    def _train(self, message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        server_round = protocol.server_round(message)
        if self.away(server_round, partition):
            raise RuntimeError("away")
        settings = dict(message.content["config"])
        sent = read(message.content.array_records["arrays"])
        answer = client_app(message, context)
        if self.forget:
            context.state.clear()
        arrays = {k: a.copy() for k, a in read(answer.content.array_records["arrays"]).items()}
        metrics: dict[str, Any] = dict(answer.content.metric_records["metrics"])
        phase = str(settings.get("stack-phase", ""))
        if self.tamper is not None:
            self.tamper(phase, partition, arrays, metrics)
            answer.content["arrays"] = hold(arrays)
            answer.content["metrics"] = MetricRecord(metrics)
        self.diary.append(Reply(server_round, phase, partition, sent, settings, arrays, metrics))
        return answer

    def replies(self, phase: str) -> list[Reply]:
        return [reply for reply in self.diary if reply.phase == phase]


class Kept(NullTracker):
    """Keeps the rounds."""

    started = True

    def __init__(self) -> None:
        self.rounds: list[RoundRecord] = []

    def record(self, record: RoundRecord) -> None:
        self.rounds.append(record)


@dataclass
class Ran:
    """A run that is over."""

    config: Config
    encoding: Encoding
    roster: Roster
    predictor: Predictor
    rounds: list[RoundRecord]
    clients: Clients

    @property
    def final(self) -> Arrays:
        return dict(self.rounds[-1].arrays)

    @property
    def stack(self) -> Stack:
        return Stack.from_arrays(self.final)

    @property
    def extra(self) -> Mapping[str, float]:
        return self.rounds[-1].extra

    def rows(self, partition: int) -> Encoded:
        return encode(partition_of(self.config, partition), self.encoding, self.config.model.dtype)

    def score(self, name: str) -> float:
        return self.rounds[-1].server[name]


def run(
    config: Config,
    clients: Clients | None = None,
    shuffle: int | None = None,
    grid: type[InProcessGrid] = InProcessGrid,
) -> Ran:
    """Run a config's rounds in this process, without MLflow."""
    clients = clients or Clients()
    kept = Kept()
    num_nodes = 1 if config.strategy.name == "pooled" else config.num_clients
    with grid(clients.app(), num_nodes, shuffle_replies=shuffle) as nodes, one_thread():
        test = test_table(config)
        roster, encoding = shake_hands(nodes, nodes.get_node_ids(), config, 60.0)
        many = config.strategy.name == "local"
        predictor = Predictor.of(config, encoding, many)
        federated = federated_of(config, roster, predictor)
        tracked = TrackedStrategy(federated, kept, partitions=roster.partitions)
        record = protocol.run_record(to_json(config), encoding, roster.target_mean)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if not len(test):
                return None
            x = encoding.features(test).astype(config.model.dtype)
            use = replace(predictor, many=many and server_round > 0)
            return MetricRecord(dict(use.score(read(arrays), x, encoding.truth(test))))

        tracked.start(
            nodes,
            hold(start_arrays(config, roster, predictor)),
            num_rounds=config.num_server_rounds,
            train_config=record,
            evaluate_config=record.copy(),
            evaluate_fn=evaluate,
        )
    return Ran(config, encoding, roster, predictor, kept.rounds, clients)


@lru_cache(maxsize=32)
def calm(config: Config) -> Ran:
    """Run a config without faults once for all tests, which only read it."""
    return run(config)


def bits(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return what two equal mappings of arrays agree on, to the last bit."""
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}
