"""Flower's ClientApp: decode a message, do what it asks, encode the answer.

A client composes no config and keeps no state: config and encoding come with each message, rows
are a function of the config and the partition, and the same text is prepared once a process. It
loads neither Hydra nor MLflow.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fl_app import wire
from fl_app.data.encoding import Encoding
from fl_app.data.partition import Encoded, encode, partition_of
from fl_app.errors import InputError
from fl_app.federation import handshake
from fl_app.held import read
from fl_app.models.base import Arrays, Model
from fl_app.models.metrics import score
from fl_app.models.registry import build
from fl_app.schema import Config
from fl_app.seeding import generator, one_thread

__all__ = ["app"]

if Path(sys.argv[0]).name == "flwr-simulation":
    # Ray puts the working directory of this process first on its workers' path. Where a SuperLink
    # was started in another project, workers would import that project's fl_app.
    os.chdir(Path(__file__).parents[1])

app = ClientApp()


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Answer the handshake."""
    partition, num_partitions = _place(context)
    if not wire.same_code(message):
        # Another version may not even be able to read the config.
        foreign = handshake.foreign(partition, num_partitions)
        return Message(handshake.to_record(foreign), reply_to=message)
    config = wire.read_config(wire.texts(message)[0])
    with one_thread():
        rows = partition_of(config, partition)
        description = handshake.describe(rows, partition, num_partitions, config.min_rows)
    return Message(handshake.to_record(description), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's rows, starting from the arrays that came."""
    partition, _ = _place(context)
    federation = _federation(*wire.texts(message))
    config, model, rows = federation.config, federation.model, federation.rows(partition)
    rng = generator(config.seed, "train", wire.server_round(message), partition)
    mu = wire.setting(message, "proximal-mu", 0.0)
    with one_thread(), _no_warnings():
        arrays = model.fit(
            read(message.content.array_records[wire.ARRAYS]), rows.x, rows.y, rng, mu
        )
        metrics = federation.score(arrays, rows.x, rows.truth)
    return wire.reply(message, metrics, len(rows.x), arrays)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the arrays that came on this client's validation rows."""
    partition, _ = _place(context)
    federation = _federation(*wire.texts(message))
    rows = federation.rows(partition)
    with one_thread(), _no_warnings():
        arrays = read(message.content.array_records[wire.ARRAYS])
        metrics = federation.score(arrays, rows.x_eval, rows.truth_eval)
    return wire.reply(message, metrics, len(rows.x_eval))


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


@dataclass(frozen=True)
class _Federation:
    """A run as its clients see it; their encoded rows are kept while the run is in use."""

    config: Config
    encoding: Encoding
    model: Model
    _rows: dict[int, Encoded] = field(default_factory=dict)

    def score(self, arrays: Arrays, x: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
        """Score arrays on encoded rows, in the raw unit of the target."""
        outputs = self.encoding.in_units(self.model.predict(arrays, x))
        return score(self.encoding.task, outputs, truth)

    def rows(self, partition: int) -> Encoded:
        found = self._rows.get(partition)
        if found is None:
            raw = partition_of(self.config, partition)
            found = self._rows[partition] = encode(raw, self.encoding, self.config.model.dtype)
        return found


@lru_cache(maxsize=4)
def _federation(config_json: str, encoding_json: str) -> _Federation:
    config, encoding = wire.read_config(config_json), wire.read_encoding(encoding_json)
    model = build(config.model, len(encoding.feature_names), len(encoding.output_names))
    return _Federation(config, encoding, model)
