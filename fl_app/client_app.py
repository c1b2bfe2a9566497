"""Flower's ClientApp: decode a message, do what it asks, encode the answer.

A client composes no config and keeps no state: config and encoding come with each message, rows
are a function of the config and the partition, and the same text is prepared once a process. It
loads neither Hydra nor MLflow.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from fl_app.config.dataset_options import TabularConfig
from fl_app.config.plugins import find_project
from fl_app.config.schema import METRICS, Config, min_level_rows_of
from fl_app.config.strategy_options import FedXgbBaggingConfig, has_base_models
from fl_app.data.catalogue import undecided
from fl_app.data.client_data import (
    Encoded,
    Partition,
    encode,
    own_columns,
    own_partition,
    partition_of,
)
from fl_app.data.encoding import Encoding
from fl_app.errors import FlAppError, InputError
from fl_app.federation import protocol
from fl_app.federation.description import Description, describe_left, draft, foreign, to_record
from fl_app.federation.description import describe as describe_rows
from fl_app.federation.faults import fault_of, may_crash, spoiled
from fl_app.federation.measures import Exchange, Measures
from fl_app.grid import in_process
from fl_app.grid.arrays import hold
from fl_app.grid.messages import records_of
from fl_app.models.base import Arrays, Model
from fl_app.models.optimum import converge
from fl_app.models.serving import Predictor
from fl_app.seeding import generator, later, one_thread
from fl_app.stacking.client import StackClient

__all__ = ["app"]

if Path(sys.argv[0]).name == "flwr-simulation":
    # Ray puts the working directory of this process first on its workers' path. Where a SuperLink
    # was started in another project, workers would import that project's modules.
    project = find_project()
    os.chdir(Path(__file__).parents[1] if project is None else project.root)

_SAID = "names-said"
"""Mark in a node's state: it has said which names of its file the run does not know."""

log = logging.getLogger("fl_app")


def _discreet(message: Message, context: Context, answer: ClientAppCallable) -> Message:
    """Keep what stands in a node's own file out of its errors: Flower sends their text.

    What pandas or NumPy say may hold a cell, so of an exception that is not ours only the class is
    told. The node's own log has all of it. Where rows are dealt, all is one user's and told.
    """
    try:
        return answer(message, context)
    except Exception as error:
        if context.node_config.get("data") is None:
            raise
        if not isinstance(error, InputError):
            text = f"{type(error).__name__}; the node's own log says more"
            raise FlAppError(text) from error
        field = "node-config data" if error.field == "dataset.path" else error.field
        raise InputError(field, "not told", error.allowed) from error


app = ClientApp(mods=[_discreet])


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Answer the handshake."""
    if not in_process():
        find_project()
    description = replace(_described(message, context), code=protocol.own_code(message))
    return Message(to_record(description), reply_to=message)


def _described(message: Message, context: Context) -> Description:
    partition, num_partitions = _place(context)
    if not protocol.same_code(message):
        # Another version may not even be able to read the config.
        return foreign(partition, num_partitions)
    config_json, encoding_json = protocol.texts(message)
    config = protocol.read_config(config_json)
    path = _own_file(config, context)
    if path is not None and not encoding_json and undecided(config.dataset):
        auto = isinstance(config.dataset, TabularConfig) and config.dataset.categorical == "auto"
        columns, sizes = own_columns(config, partition, path)
        return draft(columns, sizes, partition, num_partitions, config.min_rows, auto)
    with one_thread():
        rows = _raw_rows(config, partition, path)
        if encoding_json:  # asked again: how many of its rows are of a class of the run?
            encoding, least_rows = protocol.read_encoding(encoding_json), config.min_rows
            _say_strangers(rows, partition, path, encoding, context)
            return describe_left(rows, partition, num_partitions, encoding, least_rows)
        least = config.min_rows, min_level_rows_of(config.dataset)
        return describe_rows(rows, partition, num_partitions, *least, path)


def _faulty(message: Message, context: Context, answer: ClientAppCallable) -> Message:
    """Let the clients that ``faults`` names fail."""
    config = protocol.read_config(protocol.texts(message)[0])
    partition, _ = _place(context)
    kind = fault_of(config, partition)
    if kind == "crash":
        may_crash(config.seed, protocol.server_round(message), partition)
    reply = answer(message, context)
    if kind in ("nan", "flip"):
        records = records_of(reply)
        honest = protocol.read_arrays(reply)
        records[protocol.ARRAYS] = hold(
            spoiled(kind, protocol.read_arrays(message), honest), copy=False
        )
    return reply


@app.train(mods=[_faulty])
def train(message: Message, context: Context) -> Message:
    """Train on this client's rows, starting from the arrays that came."""
    partition, _ = _place(context)
    federation = _federation(*protocol.texts(message))
    config, model = federation.config, federation.model
    rows = federation.rows(partition, context)
    if has_base_models(config.strategy):
        return _stack(message, context, federation, rows)
    if isinstance(config.strategy, FedXgbBaggingConfig):
        return _boost(message, config.strategy, partition, federation, rows)
    rng = later(config.seed, "train", protocol.server_round(message), partition)
    mu, center = protocol.setting(message, "proximal-mu", 0.0), protocol.center(message)
    with one_thread(), _no_warnings():
        start = protocol.read_arrays(message)
        if config.strategy.is_pooled:
            arrays = _converged(message, start, federation, rows)
        else:
            step = protocol.learning_rate(message)
            arrays = model.fit(start, rows.x, rows.y, rng, mu, step)
        metrics, measures = federation.score("train", arrays, rows.x, rows.truth, center)
        if config.strategy.weighs_loss:
            loss = METRICS[federation.encoding.task][0]
            before, _ = federation.score("train", start, rows.x, rows.truth)
            metrics[protocol.TRAIN_LOSS] = before[loss]
    return protocol.reply(
        message, metrics, len(rows.x), arrays, measures | _left_out(rows.left_out)
    )


def _converged(message: Message, start: Arrays, federation: _Federation, rows: Encoded) -> Arrays:
    """Train on all rows to convergence in the first round; nothing is left for the others."""
    config = federation.config
    if protocol.server_round(message) > 1:
        return start
    rng = generator(config.seed, "pooled")
    return converge(federation.model_with, start, rows.x, rows.y, rng, config.model.l2)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the arrays that came on this client's validation rows."""
    partition, _ = _place(context)
    federation = _federation(*protocol.texts(message))
    rows = federation.rows(partition, context)
    with one_thread(), _no_warnings():
        arrays = protocol.read_arrays(message)
        metrics, measures = federation.score(
            "evaluate", arrays, rows.x_eval, rows.truth_eval, protocol.center(message)
        )
    measures |= _left_out(rows.left_out_eval)
    return protocol.reply(message, metrics, len(rows.x_eval), measures=measures)


def _left_out(rows: int) -> dict[str, int]:
    """Return what a reply says of rows that were left out: nothing where there are none."""
    return {protocol.LEFT_OUT: rows} if rows else {}


def _stack(message: Message, context: Context, federation: _Federation, rows: Encoded) -> Message:
    """Do this client's part of a round of FedStacking."""
    partition, _ = _place(context)
    client = StackClient(
        federation.config,
        federation.encoding,
        federation.predictor.kinds(),
        partition,
        rows,
        context.state,
    )
    with one_thread(), _no_warnings():
        arrays, outputs = client.answer(
            protocol.stack_request(message), protocol.read_arrays(message)
        )
        metrics, measures = federation.measures.score(
            "train", outputs, rows.truth, protocol.center(message)
        )
    return protocol.reply(
        message, metrics, len(rows.x), arrays, measures | _left_out(rows.left_out)
    )


def _boost(
    message: Message,
    params: FedXgbBaggingConfig,
    partition: int,
    federation: _Federation,
    rows: Encoded,
) -> Message:
    """Grow the trees of one boosting round on this client's rows."""
    rng = later(federation.config.seed, "boost", protocol.server_round(message), partition)
    ensemble = federation.predictor.ensemble
    with one_thread(), _no_warnings():
        start = protocol.read_arrays(message)
        trees = ensemble.fit(start, rows.x, rows.y, params, rng)
        outputs = federation.encoding.in_units(ensemble.predict(start, rows.x, trees))
        metrics, measures = federation.measures.score(
            "train", outputs, rows.truth, protocol.center(message)
        )
    return protocol.reply(message, metrics, len(rows.x), trees, measures | _left_out(rows.left_out))


def _no_warnings() -> np.errstate:
    """Leave it to the server to say, once and by partition, that training diverged."""
    return np.errstate(over="ignore", invalid="ignore")


def _place(context: Context) -> tuple[int, int]:
    """Return partition id and number of partitions (0 if unknown) of this node."""
    partition = context.node_config.get("partition-id")
    if not isinstance(partition, int) or isinstance(partition, bool) or partition < 0:
        raise InputError(
            "node-config partition-id", partition, "an integer from 0, another one for each node"
        )
    num_partitions = context.node_config.get("num-partitions", 0)
    return partition, num_partitions if isinstance(num_partitions, int) else 0


def _own_file(config: Config, context: Context) -> str | None:
    """Return the file that this node's own configuration names; None where rows are dealt.

    A path in a shipped config is read only where the whole federation is one user's: in an
    in-process grid and in a worker of Flower's simulation. A SuperNode reads its own file.
    """
    path = context.node_config.get("data")
    if path is not None:
        return str(path)
    if isinstance(config.dataset, TabularConfig) and not (in_process() or _in_simulation()):
        raise InputError(
            "node-config data", "", "the path of this node's own file: data='\"/path/file.csv\"'"
        )
    return None


def _in_simulation() -> bool:
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    return bool(ray.get_runtime_context().worker.mode == ray.WORKER_MODE)


def _raw_rows(config: Config, partition: int, path: str | None) -> Partition:
    return (
        partition_of(config, partition) if path is None else own_partition(config, partition, path)
    )


def _say_strangers(
    rows: Partition, partition: int, path: str | None, encoding: Encoding, context: Context
) -> None:
    """Say once, in the log of a node with a file of its own, what of it the run cannot name."""
    if path is None or _SAID in context.state:
        return
    context.state[_SAID] = ConfigRecord()
    for line in encoding.strangers(rows.rows):
        log.warning("partition %d: %s", partition, line)


@dataclass(frozen=True)
class _Federation:
    """A run as its clients see it; their encoded rows are kept while the run is in use."""

    config: Config
    encoding: Encoding
    model: Model
    predictor: Predictor
    measures: Measures
    _rows: dict[tuple[int, str | None], Encoded] = field(default_factory=dict)

    def model_with(self, l2: float) -> Model:
        """Return the run's model with another penalty."""
        return replace(self.predictor, model=replace(self.config.model, l2=l2)).build()

    def score(
        self,
        exchange: Exchange,
        arrays: Arrays,
        x: NDArray[Any],
        truth: NDArray[Any],
        center: Sequence[float] = (),
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Return a reply's metrics and measures on encoded rows, in the raw unit of the target."""
        return self.measures.score(exchange, self.predictor.outputs(arrays, x), truth, center)

    def rows(self, partition: int, context: Context) -> Encoded:
        """Return a client's rows; its log says once what in its own file the run cannot name."""
        path = _own_file(self.config, context)
        encoded = self._rows.get((partition, path))
        if encoded is None:
            raw = _raw_rows(self.config, partition, path)
            encoded = encode(raw, self.encoding, self.config.model.dtype)
            _say_strangers(raw, partition, path, self.encoding, context)
            self._rows[partition, path] = encoded
        return encoded


@lru_cache(maxsize=4)
def _federation(config_json: str, encoding_json: str) -> _Federation:
    config, encoding = protocol.read_config(config_json), protocol.read_encoding(encoding_json)
    # Also under `local`, where each client gets its own arrays only, under their plain names.
    predictor = Predictor.of(config, encoding)
    measures = Measures.of(config, encoding)
    return _Federation(config, encoding, predictor.build(), predictor, measures)
