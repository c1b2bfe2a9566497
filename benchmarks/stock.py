"""The same rounds with Flower's own parts alone, in one process.

Its FedAvg and ``start``, its records with arrays as bytes, a ClientApp that decodes, trains and
encodes, and the least grid that keeps a client's content its own.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from benchmarks.arithmetic import Arrays, Rows, metrics, prepared, sgd, zeros
from fl_app.aggregation import arrays_digest
from fl_app.config.schema import Config
from fl_app.seeding import generator, one_thread


class LeastGrid(Grid):
    """Calls a ClientApp with copies of the records; replies come in order of node."""

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        self.app = app
        self.contexts = {
            k + 1: Context(1, k + 1, {"partition-id": k}, RecordDict(), {})
            for k in range(num_nodes)
        }

    def set_run(self, run: Run) -> None:
        """Not used by a strategy."""
        raise NotImplementedError

    @property
    def run(self) -> Run:
        """Not used by a strategy."""
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Not used by a strategy."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not used by a strategy."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used by a strategy."""
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        """Return all nodes."""
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Call the app once a message."""
        replies = []
        for i, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(i)
            content = message.content
            message.content = content.copy()
            for name, record in content.items():
                message.content[name] = record.copy()
            replies.append(self.app(message, self.contexts[message.metadata.dst_node_id]))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def client(rows: list[Rows], rate: float, size: int, seed: int) -> ClientApp:
    """Make the ClientApp."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        k, arrays, asked = context.node_config["partition-id"], *message.content.values()
        assert isinstance(k, int)
        assert isinstance(arrays, ArrayRecord)
        rng = generator(seed, "train", int(str(asked["server-round"])), k)
        own = sgd(decoded(arrays), rows[k], rate, size, rng)
        told = MetricRecord({**metrics(own, rows[k]), "num-examples": len(rows[k][0])})
        return Message(RecordDict({"arrays": encoded(own), "metrics": told}), reply_to=message)

    return app


def decoded(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def encoded(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items()})


def stock(cfg: Config) -> tuple[float, str]:
    """Time it; return seconds a round and the digest of the final arrays."""
    rows, test = prepared(cfg)
    times: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        told = MetricRecord(dict(metrics(decoded(arrays), test)))
        times.append(time.perf_counter())
        return told

    app = client(rows, float(cfg.model.learning_rate), cfg.model.batch_size, cfg.seed)
    with as_a_task(), one_thread():
        result = FedAvg(fraction_evaluate=0.0).start(
            LeastGrid(app, cfg.num_clients),
            encoded(zeros(test)),
            num_rounds=cfg.num_server_rounds,
            evaluate_fn=evaluate,
        )
    seconds = (times[-1] - times[1]) / (len(times) - 2)
    return seconds, arrays_digest(decoded(result.arrays))


@contextmanager
def as_a_task() -> Iterator[None]:
    """Give Flower its identity, and the collector no more to do than a process of its own would."""
    names = ("task_id", "run_id", "node_id")
    for name in names:
        setattr(TaskIdentity, name, 1)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        for name in names:
            setattr(TaskIdentity, name, None)
