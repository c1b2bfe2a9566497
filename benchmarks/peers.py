"""Rounds a second of other federated-learning packages beside fl_app, on the task of ``rounds``.

``python -m benchmarks.peers`` makes the table of *Other kits* in README.md again. Each peer has an
environment of its own, made once below a cache folder; its Python runs this file with the peer's
name (``task`` below), so that nothing of fl_app is imported at the top. A peer does the task with
its own FedAvg, in one process with one thread. All train on the same encoded rows; only the order
of batches is each one's own, so that accuracies need not be equal but near (exit status 1
otherwise). A peer that cannot be installed or run here is skipped with its reason.

fl_app, the plain NumPy loop and the peers are timed in turn, from the end of the first round to the
end of the last. As it is, fl_app also scores each client's rows after training, which the peers are
spared: a second row of fl_app, whose clients only train as the others' do, gives the ratios at
equal arithmetic.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

TORCH = "torch==2.13.0"
OURS, EQUAL, LOOP = "fl_app, no record", "fl_app, clients unscored", "NumPy loop"
TOLERANCE = 0.015  # of accuracy, between two orders of batches
MANY, FEWER = 1000, 10  # with that many clients, that many rounds are enough
MINUTES = 30  # for one command of a peer
QUIET = {"TQDM_DISABLE": "1"} | {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")
}
PINS: Mapping[str, tuple[str, ...]] = {
    "fed-playground": ("fed-playground==0.2.1",),
    "blazefl": ("blazefl[contrib,reproducibility]==2.0.3", TORCH),  # 3 needs Python 3.14
    "pfl": ("pfl==0.6.0", TORCH),
    "fluke": ("fluke-fl==0.8.1", TORCH),
}
PYTHONS = {"blazefl": "python3.13"}
"""On PATH; of the others this one."""


# ---------------------------------------------------------------------------- the peers' task
@dataclass(frozen=True)
class Task:
    """Softmax regression by FedAvg from zeros: one epoch of SGD a client and round."""

    x: Any
    y: Any
    sizes: list[int]
    test_x: Any
    test_y: Any
    rounds: int
    batch_size: int
    learning_rate: float

    @property
    def num_classes(self) -> int:
        return int(self.y.max()) + 1

    def torch(self) -> Task:
        """Return the same task with tensors, on one thread."""
        import torch

        torch.set_num_threads(1)
        names = ("x", "y", "test_x", "test_y")
        return Task(**vars(self) | {k: torch.from_numpy(getattr(self, k)) for k in names})

    def clients(self) -> list[tuple[Any, Any]]:
        """Return each client's tensors."""
        return [*zip(self.x.split(self.sizes), self.y.split(self.sizes), strict=True)]

    def linear(self) -> Any:
        """Return a linear layer of zeros."""
        import torch

        layer = torch.nn.Linear(self.x.shape[1], self.num_classes, dtype=torch.float64)
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
        return layer


Told = tuple[list[float], float]
"""When each round ended, and the accuracy after the last."""


def fed_playground(task: Task) -> Told:
    """Run its Orchestrator and a Party a client.

    It has neither a softmax regression nor a mean weighted by rows, so that both are written here
    at its extension points, ``Model`` and ``AggregationStrategy``. Its Environment would divide the
    rows itself and score every client in every round.
    """
    from fed_playground import AggregationStrategy, Model, NoEncryption, Orchestrator, Party

    num_features, num_classes = task.x.shape[1], task.num_classes
    rng = np.random.default_rng(0)

    class SoftmaxRegression(Model):
        def __init__(self) -> None:
            self.set_parameters(np.zeros((num_features + 1) * num_classes))

        def get_parameters(self) -> Any:
            return self.flat

        def set_parameters(self, params: Any) -> None:
            self.flat = params.copy()
            self.weights = self.flat[:-num_classes].reshape(num_features, num_classes)
            self.bias = self.flat[-num_classes:]

        def train(self, X: Any, y: Any) -> None:
            size = task.batch_size
            order = rng.permutation(len(X)) if len(X) > size else None
            for first in range(0, len(X), size):
                chosen = None if order is None else order[first : first + size]
                xb, yb = (X, y) if chosen is None else (X[chosen], y[chosen])
                z = xb @ self.weights + self.bias
                p = np.exp(z - z.max(axis=1, keepdims=True))
                p /= p.sum(axis=1, keepdims=True)
                p[np.arange(len(yb)), yb] -= 1
                p *= task.learning_rate / len(yb)
                self.weights -= xb.T @ p
                self.bias -= p.sum(axis=0)

        def predict(self, X: Any) -> Any:
            return (X @ self.weights + self.bias).argmax(axis=1)

        def evaluate(self, X: Any, y: Any) -> float:
            return float((self.predict(X) == y).mean())

    class WeightedMean(AggregationStrategy):
        def aggregate(self, encrypted_models: list[Any], encryption_scheme: Any) -> Any:
            return np.array(task.sizes) / sum(task.sizes) @ np.stack(encrypted_models)

    ends = np.cumsum(task.sizes)[:-1]
    model, scheme = SoftmaxRegression(), NoEncryption()
    server = Orchestrator(WeightedMean(), scheme, model.get_parameters())
    for k, own in enumerate(zip(np.split(task.x, ends), np.split(task.y, ends), strict=True)):
        server.register_party(Party(k, SoftmaxRegression(), own, scheme))
    times, accuracy = [], 0.0
    for _ in range(task.rounds):
        server.distribute_model()
        for party in server.parties:
            party.train_local_model()
        server.aggregate_models()
        model.set_parameters(server.global_model_params)
        accuracy = model.evaluate(task.test_x, task.test_y)
        times.append(time.perf_counter())
    return times, accuracy


def blazefl(task: Task) -> Told:
    """Run the FedAvg of its ``contrib``, one client at a time.

    Its DataLoaders give whole batches (PyTorch's ``batch_size=None`` with a batch sampler) and are
    made once a client: collating single rows would cost more than the round.
    """
    from blazefl.contrib import FedAvgBaseClientTrainer, FedAvgBaseServerHandler
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
    from torch.utils.data import TensorDataset as Tensors

    task = task.torch()

    class Selector:
        def select_model(self, model_name: str) -> Any:
            return task.linear()

    class Rows:
        def __init__(self) -> None:
            self.clients = [Tensors(*own) for own in task.clients()]
            self.test = Tensors(task.test_x, task.test_y)
            self.loaders: dict[int | None, Any] = {}

        def get_dataset(self, type_: str, cid: int | None) -> Any:
            return self.test if cid is None else self.clients[cid]

        def get_dataloader(
            self, type_: str, cid: int | None, batch_size: int | None = None, generator: Any = None
        ) -> Any:
            if cid not in self.loaders:
                rows = self.get_dataset(type_, cid)
                whole = cid is None or batch_size is None or batch_size >= len(rows)
                order = (
                    SequentialSampler(rows) if whole else RandomSampler(rows, generator=generator)
                )
                batches = BatchSampler(order, len(rows) if whole else batch_size, drop_last=False)
                self.loaders[cid] = DataLoader(rows, sampler=batches, batch_size=None)
            return self.loaders[cid]

    same = {
        "model_selector": Selector(),
        "model_name": "softmax",
        "dataset": Rows(),
        "device": "cpu",
        "num_clients": len(task.sizes),
        "batch_size": task.batch_size,
        "seed": 0,
    }
    handler = FedAvgBaseServerHandler(global_round=task.rounds, sample_ratio=1.0, **same)
    trainer = FedAvgBaseClientTrainer(epochs=1, lr=task.learning_rate, **same)
    times, summary = [], {}
    for _ in range(task.rounds):
        sampled = handler.sample_clients()
        trainer.local_process(handler.downlink_package(), sampled)
        for package in trainer.uplink_package():
            handler.load(package)
        summary = handler.get_summary()
        times.append(time.perf_counter())
    return times, summary["server_acc"]


def pfl(task: Task) -> Told:
    """Run FederatedAveraging on a SimulatedBackend.

    Users are tensors in memory that keep their batches (pfl never shuffles), taken in turn, so that
    each trains once a round; the updates are weighted by data points. Clients are scored in its
    first round only, which nobody times; the server scores after every other round.
    """
    import asyncio

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

    task = task.torch()
    asyncio.set_event_loop(asyncio.new_event_loop())  # pfl asks for one that is there
    times: list[float] = []
    accuracy = [0.0]

    class SoftmaxRegression(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = task.linear()

        def forward(self, x: Any) -> Any:
            return self.layer(x)

        def loss(self, x: Any, y: Any) -> Any:
            return torch.nn.functional.cross_entropy(self.layer(x), y)

        @torch.no_grad()
        def metrics(self, x: Any, y: Any) -> dict[str, Any]:
            right = (self.layer(x).argmax(dim=1) == y).sum().item()
            return {"accuracy": Weighted(right, len(y))}

    class Clock(TrainingProcessCallback):
        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            times.append(time.perf_counter())
            if central_iteration:
                name = StringMetricName("Central val | accuracy")
                accuracy[0] = get_overall_value(aggregate_metrics[name])
            return False, Metrics()

    num_clients = len(task.sizes)
    users = [PyTorchTensorDataset(own, user_id=str(k)) for k, own in enumerate(task.clients())]
    module = SoftmaxRegression()
    in_turn = MinimizeReuseUserSampler(range(num_clients))
    population = FederatedDataset(users.__getitem__, in_turn)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds,
            train_cohort_size=num_clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(population, population, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_batch_size=task.batch_size,
            local_num_epochs=1,
            local_learning_rate=task.learning_rate,
        ),
        NNEvalHyperParams(local_batch_size=None),
        [
            CentralEvaluationCallback(PyTorchTensorDataset((task.test_x, task.test_y))),
            Clock(),
        ],
        send_metrics_to_platform=False,
    )
    return times, accuracy[0]


def fluke(task: Task) -> Told:
    """Run its FedAVG on clients whose rows are fixed.

    Models and optimisers stay in memory with their clients, batches come from its FastDataLoader,
    and the evaluator computes accuracy alone, on the server. Batches of a single row, which fluke
    leaves out unless told otherwise, are kept: with many clients they are all the rows there are.
    """
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

    task = task.torch()
    num_classes, times, accuracy = task.num_classes, list[float](), [0.0]

    class Clock(FederationObserver, ServerObserver):
        def server_evaluation(
            self, round: int, eval_type: str, evals: dict[str, float], **kwargs: object
        ) -> None:
            accuracy[0] = evals["accuracy"]

        def end_round(self, round: int) -> None:
            times.append(time.perf_counter())

    env = FlukeENV()
    env.set_seed(0)
    env.set_device("cpu")
    env.set_inmemory(True)
    env.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=True)
    judge = Accuracy(task="multiclass", num_classes=num_classes)
    env.set_evaluator(ClassificationEval(1, num_classes, accuracy=judge))
    live = env.get_live_renderer()
    live.auto_refresh, live.console.quiet = False, True
    for name in ("FL", "clients", "server"):
        env.get_progress_bar(name).disable = True

    same = {"num_labels": num_classes, "skip_singleton": False}
    size, num_clients = task.batch_size, len(task.sizes)
    clients = [
        FastDataLoader(*own, batch_size=size, shuffle=len(own[0]) > size, **same)
        for own in task.clients()
    ]
    test = FastDataLoader(task.test_x, task.test_y, batch_size=len(task.test_y), **same)
    hyper_params = DDict(
        model=task.linear(),
        client=DDict(
            batch_size=size,
            local_epochs=1,
            loss="CrossEntropyLoss",
            optimizer=DDict(name="SGD", lr=task.learning_rate),
            scheduler=DDict(name="StepLR", step_size=1, gamma=1.0),
        ),
        server=DDict(weighted=True),
    )
    data = DummyDataContainer(clients, [None] * num_clients, test, num_classes)
    algorithm = FedAVG(num_clients, DataSplitter(data), hyper_params)
    algorithm.set_callbacks([Clock()])
    algorithm.run(task.rounds, 1.0)
    return times, accuracy[0]


PEERS: Mapping[str, Callable[[Task], Told]] = {
    "fed-playground": fed_playground,
    "blazefl": blazefl,
    "pfl": pfl,
    "fluke": fluke,
}


def do_task(name: str, path: str, rounds: int, batch_size: int, learning_rate: float) -> None:
    """Do the task in a peer's own environment, and print its result as a JSON line."""
    with np.load(path) as rows:
        arrays = {k: rows[k] for k in rows.files if k != "sizes"}
        sizes = rows["sizes"].tolist()
    how = {"rounds": rounds, "batch_size": batch_size, "learning_rate": learning_rate}
    times, accuracy = PEERS[name](Task(**arrays, sizes=sizes, **how))
    seconds = (times[-1] - times[0]) / (rounds - 1)
    _, _, release = PINS[name][0].partition("==")
    print(json.dumps({"seconds": seconds, "accuracy": accuracy, "version": release}))


# ---------------------------------------------------------------------------- all in turn
@dataclass(frozen=True)
class Timed:
    """One run: seconds a round, the final accuracy on the test rows, and the package's version."""

    seconds: float
    accuracy: float
    version: str = ""


class MissingPeerError(Exception):
    """A peer cannot be had; the text says why in one line."""


def environment(name: str, folder: Path) -> Path:
    """Return the Python of a peer's environment; a file that is written last says it is there."""
    python, done, wanted = folder / "bin" / "python", folder / "pins", "\n".join(PINS[name])
    if not (done.exists() and done.read_text() == wanted):
        own = shutil.which(PYTHONS[name]) if name in PYTHONS else sys.executable
        if own is None:
            raise MissingPeerError(f"no {PYTHONS[name]} on PATH")
        call([own, "-m", "venv", "--clear", str(folder)])
        call([str(python), "-m", "pip", "install", "--quiet", *PINS[name]])
        done.write_text(wanted)
    return python


def call(command: Sequence[str], folder: Path | None = None) -> str:
    """Run a command and return what it prints."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * MINUTES,
            cwd=folder,
            env=os.environ | QUIET,
        )
    except subprocess.TimeoutExpired:
        raise MissingPeerError(f"{command[0]} did not end in {MINUTES} minutes") from None
    if done.returncode:
        *_, last = (done.stderr or done.stdout).split("\n")[:-1] or [f"status {done.returncode}"]
        raise MissingPeerError(last)
    return done.stdout


def timed(command: Sequence[str], folder: Path) -> Timed:
    """Run a peer and read the JSON line that it prints last."""
    *_, line = call(command, folder).splitlines() or [""]
    try:
        return Timed(**json.loads(line))
    except (ValueError, TypeError):
        raise MissingPeerError(f"printed {line!r}, not its result") from None


def take_turns(
    variants: Mapping[str, Callable[[], Timed]], repeats: int
) -> tuple[dict[str, list[Timed]], dict[str, str]]:
    """Call all variants in turn; return the runs, and the reasons of those that are missing."""
    runs: dict[str, list[Timed]] = {name: [] for name in variants}
    missing: dict[str, str] = {}
    for _ in range(repeats):
        for name in list(runs):
            try:
                runs[name].append(variants[name]())
            except MissingPeerError as error:
                missing[name] = str(error)
                del runs[name]
    return runs, missing


def table(runs: Mapping[str, Sequence[Timed]]) -> str:
    """Return medians, and medians of the ratios of neighbours in time."""
    heads = f"{'rounds/s':>10}{'x the loop':>12}{'x fl_app':>10}{'unscored':>10}{'accuracy':>10}"
    lines = [f"  {'':26}{heads}"]
    for name, own in runs.items():
        of_loop, of_ours, of_equal = (
            statistics.median(a.seconds / b.seconds for a, b in zip(own, runs[other], strict=True))
            for other in (LOOP, OURS, EQUAL)
        )
        rate = 1 / statistics.median(run.seconds for run in own)
        lines.append(
            f"  {f'{name} {own[-1].version}':26}{rate:10.2f}"
            f"{of_loop:12.2f}{of_ours:10.2f}{of_equal:10.2f}{own[-1].accuracy:10.4f}"
        )
    return "\n".join(lines)


def measure(
    num_clients: int, rounds: int, repeats: int, pythons: Mapping[str, Path]
) -> dict[str, str]:
    """Print the table for so many clients; return why which peers are missing."""
    from benchmarks.arithmetic import metrics, prepared
    from benchmarks.rounds import config, loop, looped, ours, unscored
    from fl_app.aggregation import arrays_digest

    cfg = config(num_clients, rounds)
    clients, test = prepared(cfg)
    _, arrays = looped(cfg)
    expected, accuracy = arrays_digest(arrays), metrics(arrays, test)["accuracy"]

    def own(run: Callable[[], tuple[float, str]]) -> Timed:
        run()  # a peer's process has worked for seconds when its first round ends
        seconds, digest = run()
        if digest != expected:
            raise SystemExit(f"final weights differ: {digest}, expected {expected}")
        return Timed(seconds, accuracy)

    with tempfile.TemporaryDirectory() as folder:
        file, sizes = Path(folder) / "rows.npz", np.array([len(x) for x, _ in clients])
        x, y = (np.concatenate([rows[k] for rows in clients]) for k in (0, 1))
        np.savez(file, x=x, y=y, sizes=sizes, test_x=test[0], test_y=test[1])
        variants = {
            OURS: partial(own, lambda: ours(num_clients, rounds, tracked=False)),
            EQUAL: partial(own, lambda: unscored(num_clients, rounds)),
            LOOP: partial(own, lambda: loop(num_clients, rounds)),
        }
        take_turns(variants, 1)  # imports and fills caches
        words = [str(file), *map(str, (rounds, cfg.model.batch_size, cfg.model.learning_rate))]
        for name, python in pythons.items():
            command = [str(python), "-I", __file__, "task", name, *words]
            variants[name] = partial(timed, command, Path(folder))
        runs, missing = take_turns(variants, repeats)
    told = {name: run.accuracy for name, own_runs in runs.items() for run in own_runs}
    if wrong := {k: a for k, a in told.items() if not abs(a - accuracy) <= TOLERANCE}:
        raise SystemExit(f"final accuracy differs from fl_app's {accuracy:.4f}: {wrong}")
    print(f"\nK={num_clients}, {rounds} rounds, medians of {repeats} interleaved runs")
    print(table(runs), flush=True)
    return missing


def main() -> None:
    """Measure the peers that can be had."""
    from benchmarks.machine import machine
    from benchmarks.rounds import PACKAGES

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--rounds", type=int, default=20, help=f"at most {FEWER} from {MANY} clients on"
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--envs", type=Path, metavar="DIR", default=cache / "fl_app-peers")
    options = parser.parse_args()
    if options.rounds < 2 or options.repeats < 1:
        parser.error("--rounds must be at least 2, --repeats at least 1")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    print(machine(*PACKAGES), flush=True)
    pythons = {}
    for name in options.peers:
        try:
            pythons[name] = environment(name, options.envs.absolute() / name)
        except MissingPeerError as error:
            print(f"{name}: skipped: {error}", flush=True)
    for k in options.clients:
        rounds = options.rounds if k < MANY else min(options.rounds, FEWER)
        for name, reason in measure(k, rounds, options.repeats, pythons).items():
            print(f"{name}: skipped: {reason}", flush=True)
            del pythons[name]


if __name__ == "__main__":
    if sys.argv[1:2] == ["task"]:
        _, _, peer, npz, count, size, rate = sys.argv
        do_task(peer, npz, int(count), int(size), float(rate))
    else:
        main()
