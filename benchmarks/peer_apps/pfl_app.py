"""The task of ``benchmarks.peers`` in pfl: FederatedAveraging on a SimulatedBackend.

Users are tensors in memory that keep their batches (pfl never shuffles), taken in turn, so that
each trains once a round; the updates are weighted by data points. Clients are scored in its first
round only, which nobody times; the server scores after every other round.
"""

import asyncio
import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, StringMetricName, Weighted, get_overall_value
from pfl.model.pytorch import PyTorchModel


class SoftmaxRegression(torch.nn.Module):
    """A linear layer with the loss and the metrics that pfl asks for."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(num_features, num_classes, dtype=torch.float64)
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.layer(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        right = (self.layer(x).argmax(dim=1) == y).sum().item()
        return {"accuracy": Weighted(right, len(y))}


class Clock(TrainingProcessCallback):
    """Notes when each round ended, and the accuracy that the callback before it found."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.accuracy = 0.0

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.times.append(time.perf_counter())
        if central_iteration:
            name = StringMetricName("Central val | accuracy")
            self.accuracy = get_overall_value(aggregate_metrics[name])
        return False, Metrics()


def main(path: str, num_clients: int, rounds: int, size: int, rate: float) -> None:
    torch.set_num_threads(1)
    asyncio.set_event_loop(asyncio.new_event_loop())  # pfl asks for one that is there
    with np.load(path) as rows:
        x, y, test_x, test_y = (torch.from_numpy(rows[k]) for k in ("x", "y", "test_x", "test_y"))
        sizes = rows["sizes"].tolist()
    pairs = zip(x.split(sizes), y.split(sizes), strict=True)
    users = [PyTorchTensorDataset(own, user_id=str(k)) for k, own in enumerate(pairs)]
    assert len(users) == num_clients
    module = SoftmaxRegression(x.shape[1], int(y.max()) + 1)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    in_turn = MinimizeReuseUserSampler(range(num_clients))
    population = FederatedDataset(users.__getitem__, in_turn)
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds,
            train_cohort_size=num_clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(population, population, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_batch_size=size, local_num_epochs=1, local_learning_rate=rate),
        NNEvalHyperParams(local_batch_size=None),
        [CentralEvaluationCallback(PyTorchTensorDataset((test_x, test_y))), clock],
        send_metrics_to_platform=False,
    )
    told = {
        "seconds_per_round": (clock.times[-1] - clock.times[0]) / (rounds - 1),
        "accuracy": clock.accuracy,
        "version": version("pfl"),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), rate=float(sys.argv[5]))
