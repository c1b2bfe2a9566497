"""The task of ``benchmarks.peers`` in fluke: its FedAVG on clients whose rows are fixed.

Models and optimisers stay in memory with their clients, batches come from its FastDataLoader, and
the evaluator computes accuracy alone, on the server. Batches of a single row, which fluke leaves
out unless told otherwise, are kept: with many clients they are all the rows there are.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # The wheel's compiled part fits CUDA builds of torch only. fluke, which imports torchvision
    # for its image sets, calls none of it here: that these two operators have names is enough.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from fluke.evaluation import ClassificationEval
from fluke.utils import FederationObserver, ServerObserver
from torchmetrics import Accuracy


class Clock(FederationObserver, ServerObserver):
    """Notes when each round ended, and its accuracy."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.accuracy = 0.0

    def server_evaluation(
        self, round: int, eval_type: str, evals: dict[str, float], **kwargs: object
    ) -> None:
        self.accuracy = evals["accuracy"]

    def end_round(self, round: int) -> None:
        self.times.append(time.perf_counter())


def quiet(num_classes: int) -> None:
    """Score on the server only, and draw no progress bars."""
    env = FlukeENV()
    env.set_seed(0)
    env.set_device("cpu")
    env.set_inmemory(True)
    env.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=True)
    accuracy = Accuracy(task="multiclass", num_classes=num_classes)
    env.set_evaluator(ClassificationEval(1, num_classes, accuracy=accuracy))
    live = env.get_live_renderer()
    live.auto_refresh, live.console.quiet = False, True
    for name in ("FL", "clients", "server"):
        env.get_progress_bar(name).disable = True


def main(path: str, num_clients: int, rounds: int, size: int, rate: float) -> None:
    torch.set_num_threads(1)
    with np.load(path) as rows:
        x, y, test_x, test_y = (torch.from_numpy(rows[k]) for k in ("x", "y", "test_x", "test_y"))
        sizes = rows["sizes"].tolist()
    num_classes = int(y.max()) + 1
    quiet(num_classes)
    same = {"num_labels": num_classes, "skip_singleton": False}
    clients = [
        FastDataLoader(*own, batch_size=size, shuffle=len(own[0]) > size, **same)
        for own in zip(x.split(sizes), y.split(sizes), strict=True)
    ]
    test = FastDataLoader(test_x, test_y, batch_size=len(test_y), **same)
    model = torch.nn.Linear(x.shape[1], num_classes, dtype=torch.float64)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    hyper_params = DDict(
        model=model,
        client=DDict(
            batch_size=size,
            local_epochs=1,
            loss="CrossEntropyLoss",
            optimizer=DDict(name="SGD", lr=rate),
            scheduler=DDict(name="StepLR", step_size=1, gamma=1.0),
        ),
        server=DDict(weighted=True),
    )
    data = DummyDataContainer(clients, [None] * num_clients, test, num_classes)
    algorithm, clock = FedAVG(num_clients, DataSplitter(data), hyper_params), Clock()
    algorithm.set_callbacks([clock])
    algorithm.run(rounds, 1.0)
    told = {
        "seconds_per_round": (clock.times[-1] - clock.times[0]) / (rounds - 1),
        "accuracy": clock.accuracy,
        "version": version("fluke-fl"),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), rate=float(sys.argv[5]))
