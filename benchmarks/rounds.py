"""Rounds a second in process beside a plain NumPy loop, and what the record adds to a round.

``make bench`` runs it. Softmax regression on digits, one local epoch in batches of 32, all
clients, evaluation on the server after each round. The loop does the same arithmetic and must
end with the same bits. All variants are timed in turn in one process; the table gives medians and
ratios, as absolute times differ from machine to machine.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from fl_app.aggregation import arrays_digest, merge_moments, moments
from fl_app.client_app import app as client_app
from fl_app.data.encoding import Encoding, labels_of, scaler
from fl_app.data.partition import encode, partition_of, test_table, whole_table
from fl_app.grid import InProcessGrid
from fl_app.launch import Launch
from fl_app.schema import Config, from_dict
from fl_app.seeding import generator, one_thread
from fl_app.server_app import Run
from fl_app.tracking.base import RoundRecord, RunEnd, RunStart
from fl_app.tracking.console import ConsoleTracker

Arrays = dict[str, NDArray[np.float64]]


@dataclass
class Clock:
    """A tracker that notes when each round ended."""

    times: list[float] = field(default_factory=list)
    digest: str = ""

    def start(self, run: RunStart) -> None:
        """Forget nothing, start nothing."""

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Do nothing."""

    def record(self, record: RoundRecord) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())
        self.digest = arrays_digest(record.arrays)

    def finish(self, end: RunEnd) -> None:
        """Do nothing."""

    @property
    def seconds_a_round(self) -> float:
        """Mean time from the end of round 1 to the end of the last: the first one warms caches."""
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2)


def config(num_clients: int, rounds: int, tracking: dict[str, str], folder: str) -> Config:
    return from_dict(
        {
            "num_clients": num_clients,
            "num_server_rounds": rounds,
            "fraction_evaluate": 0.0,
            "output_dir": folder,
            "tracking": tracking,
        }
    )


def ours(num_clients: int, rounds: int, tracked: bool) -> tuple[float, str]:
    """Time fl_app in process."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FL_APP_HOME"] = folder
        uri = f"sqlite:///{folder}/mlflow.db"
        tracking = {"name": "mlflow", "uri": uri} if tracked else {"name": "none"}
        launch = Launch(config(num_clients, rounds, tracking, folder))
        clock = Clock()
        console = ConsoleTracker(console=Console(file=io.StringIO()))
        grid = InProcessGrid(client_app, num_supernodes=num_clients)
        with one_thread():
            Run(grid, launch, "inprocess", console, 0, (clock,)).execute(
                sorted(grid.get_node_ids())
            )
    return clock.seconds_a_round, clock.digest


def loop(num_clients: int, rounds: int) -> tuple[float, str]:
    """Time the same arithmetic as a plain loop over NumPy arrays."""
    cfg = config(num_clients, rounds, {"name": "none"}, "")
    rows, x_test, y_test = prepared(cfg)
    rate, times = float(cfg.model.learning_rate or 0), []
    classes, features = 10, x_test.shape[1]
    arrays: Arrays = {"coef": np.zeros((classes, features)), "intercept": np.zeros(classes)}
    total = sum(len(x) for x, _ in rows)
    with one_thread():
        for server_round in range(1, rounds + 1):
            mean: Arrays = {}
            for k, (x, y) in enumerate(rows):
                rng = generator(cfg.seed, "train", server_round, k)
                own = sgd(arrays, x, y, rate, cfg.model.batch_size, rng)
                metrics(predict(own, x), y)
                for name, array in own.items():
                    term = array * (len(x) / total)
                    mean[name] = mean[name] + term if name in mean else term
            arrays = mean
            metrics(predict(arrays, x_test), y_test)
            times.append(time.perf_counter())
    return (times[-1] - times[0]) / (rounds - 1), arrays_digest(arrays)


def prepared(
    cfg: Config,
) -> tuple[
    list[tuple[NDArray[np.float64], NDArray[np.int64]]], NDArray[np.float64], NDArray[np.int64]
]:
    parts = [partition_of(cfg, k) for k in range(cfg.num_clients)]
    table, test = whole_table(cfg), test_table(cfg)
    told = [moments(p.train.numeric) for p in parts if len(p.train) >= cfg.min_rows]
    mean, scale = scaler(merge_moments(told), table.numeric.shape[1])
    labels = tuple(labels_of(table.target))
    names = table.columns
    encoding = Encoding(table.task, names, names, mean, scale, (), labels, table.target_names)
    encoded = [encode(p, encoding, cfg.model.dtype) for p in parts]
    return [(e.x, e.y) for e in encoded], encoding.features(test), encoding.truth(test)


def sgd(
    start: Arrays,
    x: NDArray[np.float64],
    y: NDArray[np.int64],
    rate: float,
    size: int,
    rng: np.random.Generator,
) -> Arrays:
    coef, intercept = start["coef"].copy(), start["intercept"].copy()
    size = size if size < len(x) else len(x)
    order = rng.permutation(len(x)) if size < len(x) else None
    for first in range(0, len(x), size):
        xb, yb = (
            (x, y)
            if order is None
            else (x[order[first : first + size]], y[order[first : first + size]])
        )
        p = predict({"coef": coef, "intercept": intercept}, xb)
        p[np.arange(len(yb)), yb] -= 1
        p *= 1 / len(yb)
        coef -= rate * (p.T @ xb)
        intercept -= rate * p.sum(axis=0)
    return {"coef": coef, "intercept": intercept}


def predict(arrays: Arrays, x: NDArray[np.float64]) -> NDArray[np.float64]:
    z = x @ arrays["coef"].T + arrays["intercept"]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def metrics(p: NDArray[np.float64], y: NDArray[np.int64]) -> tuple[float, float, float]:
    own = p[np.arange(len(y)), y]
    brier = (np.square(p).sum(axis=1) - 2 * own + 1).mean()
    return (
        float(-np.log(np.maximum(own, 1e-300)).mean()),
        float((p.argmax(1) == y).mean()),
        float(brier),
    )


def measure(num_clients: int, rounds: int, repeats: int) -> None:
    variants: dict[str, Callable[[], tuple[float, str]]] = {
        "NumPy loop": lambda: loop(num_clients, rounds),
        "fl_app, no record": lambda: ours(num_clients, rounds, tracked=False),
        "fl_app, MLflow on SQLite": lambda: ours(num_clients, rounds, tracked=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    digests = set()
    for _ in range(repeats):
        for name, variant in variants.items():
            spent, digest = variant()
            seconds[name].append(spent)
            digests.add(digest)
    if len(digests) != 1:
        raise SystemExit(f"final weights differ between variants: {digests}")
    base = statistics.median(seconds["NumPy loop"])
    print(f"\nK={num_clients}, {rounds} rounds, medians of {repeats} interleaved runs, equal bits")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"  {name:26} {1 / median:8.1f} rounds/s   {median / base:5.2f} x the loop's time")
    added = statistics.median(
        b - a
        for a, b in zip(
            seconds["fl_app, no record"], seconds["fl_app, MLflow on SQLite"], strict=True
        )
    )
    print(f"  the record adds {added * 1e3:.2f} ms a round")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    packages = ("flwr", "numpy", "scikit-learn", "mlflow")
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores; "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )
    measure(10, 60, arguments.repeats)
    measure(100, 20, arguments.repeats)


if __name__ == "__main__":
    main()
