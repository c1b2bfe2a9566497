"""The task of ``benchmarks.peers`` in BlazeFL: the FedAvg of its ``contrib``, one client at a time.

Its DataLoaders give whole batches (PyTorch's ``batch_size=None`` with a batch sampler) and are
made once a client: collating single rows would cost more than the round. The loop is that of its
documentation, by count, as the question whether to stop has a name of its own in each release.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from blazefl.contrib import FedAvgBaseClientTrainer, FedAvgBaseServerHandler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data import TensorDataset as Tensors


class Selector:
    """Makes the one model, as a ModelSelector."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        self.shape = (num_features, num_classes)

    def select_model(self, model_name: str) -> torch.nn.Module:
        model = torch.nn.Linear(*self.shape, dtype=torch.float64)
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        return model


class Rows:
    """Holds each client's rows and the test rows, as a PartitionedDataset."""

    def __init__(self, clients: list[Tensors], test: Tensors) -> None:
        self.clients, self.test = clients, test
        self.loaders: dict[int | None, DataLoader] = {}

    def get_dataset(self, type_: str, cid: int | None) -> Tensors:
        return self.test if cid is None else self.clients[cid]

    def get_dataloader(
        self,
        type_: str,
        cid: int | None,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> DataLoader:
        if cid not in self.loaders:
            rows = self.get_dataset(type_, cid)
            whole = cid is None or batch_size is None or batch_size >= len(rows)
            order = SequentialSampler(rows) if whole else RandomSampler(rows, generator=generator)
            batches = BatchSampler(order, len(rows) if whole else batch_size, drop_last=False)
            self.loaders[cid] = DataLoader(rows, sampler=batches, batch_size=None)
        return self.loaders[cid]


def main(path: str, num_clients: int, rounds: int, size: int, rate: float) -> None:
    torch.set_num_threads(1)
    with np.load(path) as rows:
        x, y, test_x, test_y = (torch.from_numpy(rows[k]) for k in ("x", "y", "test_x", "test_y"))
        sizes = rows["sizes"].tolist()
    clients = [Tensors(*own) for own in zip(x.split(sizes), y.split(sizes), strict=True)]
    assert len(clients) == num_clients
    same = {
        "model_selector": Selector(x.shape[1], int(y.max()) + 1),
        "model_name": "softmax",
        "dataset": Rows(clients, Tensors(test_x, test_y)),
        "device": "cpu",
        "num_clients": num_clients,
        "batch_size": size,
        "seed": 0,
    }
    handler = FedAvgBaseServerHandler(global_round=rounds, sample_ratio=1.0, **same)
    trainer = FedAvgBaseClientTrainer(epochs=1, lr=rate, **same)
    times, summary = [], {}
    for _ in range(rounds):
        sampled = handler.sample_clients()
        trainer.local_process(handler.downlink_package(), sampled)
        for package in trainer.uplink_package():
            handler.load(package)
        summary = handler.get_summary()
        times.append(time.perf_counter())
    told = {
        "seconds_per_round": (times[-1] - times[0]) / (rounds - 1),
        "accuracy": summary["server_acc"],
        "version": version("blazefl"),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), rate=float(sys.argv[5]))
