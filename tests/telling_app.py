"""An app whose replies tell their partitions, run by an engine: ``telling_app.py ray|process``.

Its last line is, for each round, whose replies were recorded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_app.grid import run_in_process
from fl_app.tracking import NullTracker, RoundRecord, RunEnd, TrackedStrategy

NUM_CLIENTS = 3
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
@client_app.evaluate()
def reply(message: Message, context: Context) -> Message:
    """Return the partition, as a metric, and the arrays where they were sent to be trained."""
    k = int(context.node_config["partition-id"])
    content = RecordDict({"m": MetricRecord({"k": k, "num-examples": k + 1, "partition-id": k})})
    if message.metadata.message_type == "train":
        content["a"] = message.content["arrays"]
    return Message(content, reply_to=message)


class Printer(NullTracker):
    """Prints which client said what."""

    def __init__(self) -> None:
        self.rounds: list[list[Mapping[str, float]]] = []

    def record(self, record: RoundRecord) -> None:
        clients = (*record.train_clients, *record.evaluate_clients)
        self.rounds.append([{str(c.partition): c.metrics["k"]} for c in clients])

    def finish(self, end: RunEnd) -> None:
        print(json.dumps(self.rounds))


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run two rounds of Flower's FedAvg, tracked."""
    least = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes"), NUM_CLIENTS)
    strategy = FedAvg(min_available_nodes=NUM_CLIENTS, **least)  # type: ignore[arg-type]
    arrays = ArrayRecord({"w": Array(np.zeros(2))})
    TrackedStrategy(strategy, Printer()).start(grid, arrays, 2)


if __name__ == "__main__":
    if sys.argv[1] == "ray":
        from flwr.simulation import run_simulation

        run_simulation(server_app, client_app, NUM_CLIENTS)
    else:
        run_in_process(server_app, client_app, NUM_CLIENTS)
