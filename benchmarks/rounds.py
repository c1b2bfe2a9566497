"""Rounds a second in process, beside a plain NumPy loop and beside Flower's own parts.

``make bench`` runs it. Softmax regression on digits (64 features, 10 classes), one local epoch in
batches of 32, all clients train, the server evaluates after each round. All variants do the same
arithmetic and must end with the same bits. They are timed in turn in one process, from the end of
the first round to the end of the last; the table gives medians, and medians of the ratios of
neighbours, as absolute times differ from machine to machine.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from benchmarks.arithmetic import Arrays, metrics, prepared, sgd, zeros
from benchmarks.stock import stock
from fl_app.aggregation import arrays_digest
from fl_app.client_app import app as client_app
from fl_app.grid import run_in_process
from fl_app.launch import Launch
from fl_app.schema import Config, from_dict
from fl_app.seeding import generator, one_thread
from fl_app.server_app import Run
from fl_app.tracking.base import RoundRecord, RunEnd, RunStart
from fl_app.tracking.console import ConsoleTracker

LOOP, STOCK, OURS, TRACKED = (
    "NumPy loop",
    "Flower's own parts",
    "fl_app, no record",
    "fl_app, MLflow on SQLite",
)


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


def config(
    num_clients: int, rounds: int, tracking: dict[str, str] | None = None, folder: str = ""
) -> Config:
    return from_dict(
        {
            "num_clients": num_clients,
            "num_server_rounds": rounds,
            "fraction_evaluate": 0.0,
            "output_dir": folder,
            "tracking": tracking or {"name": "none"},
        }
    )


def ours(num_clients: int, rounds: int, tracked: bool) -> tuple[float, str]:
    """Time fl_app as ``runtime=inprocess`` runs it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FL_APP_HOME"] = folder
        uri = f"sqlite:///{folder}/mlflow.db"
        tracking = {"name": "mlflow", "uri": uri} if tracked else None
        launch = Launch(config(num_clients, rounds, tracking, folder))
        clock, server_app = Clock(), ServerApp()
        console = ConsoleTracker(console=Console(file=io.StringIO(), highlight=False))

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            with one_thread():
                Run(grid, launch, "inprocess", console, 0, (clock,)).execute(
                    sorted(grid.get_node_ids())
                )

        run_in_process(server_app, client_app, num_supernodes=num_clients)
    return clock.seconds_a_round, clock.digest


def loop(num_clients: int, rounds: int) -> tuple[float, str]:
    """Time the same arithmetic as a plain loop over NumPy arrays."""
    cfg = config(num_clients, rounds)
    clients, test = prepared(cfg)
    rate, times = float(cfg.model.learning_rate or 0), []
    arrays = zeros(test)
    total = sum(len(rows[0]) for rows in clients)
    with one_thread():
        for server_round in range(1, rounds + 1):
            mean: Arrays = {}
            for k, rows in enumerate(clients):
                rng = generator(cfg.seed, "train", server_round, k)
                own = sgd(arrays, rows, rate, cfg.model.batch_size, rng)
                metrics(own, rows)
                for name, array in own.items():
                    term = array * (len(rows[0]) / total)
                    mean[name] = mean[name] + term if name in mean else term
            arrays = mean
            metrics(arrays, test)
            times.append(time.perf_counter())
    return (times[-1] - times[0]) / (rounds - 1), arrays_digest(arrays)


def measure(num_clients: int, rounds: int, repeats: int) -> None:
    """Time all variants in turn and print their table."""
    variants: dict[str, Callable[[], tuple[float, str]]] = {
        LOOP: lambda: loop(num_clients, rounds),
        STOCK: lambda: stock(config(num_clients, rounds)),
        OURS: lambda: ours(num_clients, rounds, tracked=False),
        TRACKED: lambda: ours(num_clients, rounds, tracked=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    digests = set()
    for repeat in range(repeats + 1):
        for name, variant in variants.items():
            spent, digest = variant()
            digests.add(digest)
            if repeat:  # the first one imports and fills caches
                seconds[name].append(spent)
    if len(digests) != 1:
        raise SystemExit(f"final weights differ between variants: {digests}")
    print(f"\nK={num_clients}, {rounds} rounds, medians of {repeats} interleaved runs, equal bits")
    for name, values in seconds.items():
        print(
            f"  {name:26} {1 / statistics.median(values):8.1f} rounds/s"
            f"  {_ratio(values, seconds[LOOP]):6.2f} x the loop's time"
        )
    print(f"  Flower's own parts take {_ratio(seconds[STOCK], seconds[OURS]):.2f} x fl_app's time")
    added = [b - a for a, b in zip(seconds[OURS], seconds[TRACKED], strict=True)]
    print(f"  the record adds {statistics.median(added) * 1e3:.2f} ms a round")


def _ratio(values: list[float], base: list[float]) -> float:
    """Return the median of the ratios of neighbours in time."""
    return statistics.median(a / b for a, b in zip(values, base, strict=True))


def peak(num_clients: int) -> None:
    """Print this process's peak memory in MB after five rounds."""
    ours(num_clients, 5, tracked=False)
    scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale)


def measure_memory(few: int, many: int) -> None:
    """Compare the peak memory of two processes."""
    peaks = {}
    for num_clients in (few, many):
        command = [sys.executable, "-m", "benchmarks.rounds", "--peak", str(num_clients)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[num_clients] = float(done.stdout.split()[-1])
    print(
        f"\npeak memory: {peaks[few]:.0f} MB with K={few}, {peaks[many]:.0f} MB with K={many}:"
        f" {peaks[many] - peaks[few]:+.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--peak", type=int, help="only print peak memory with that many clients")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if arguments.peak:
        return peak(arguments.peak)
    packages = ("flwr", "numpy", "scikit-learn", "mlflow")
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores; "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )
    for num_clients in arguments.clients:
        measure(num_clients, arguments.rounds, arguments.repeats)
    measure_memory(min(arguments.clients), max(arguments.clients))
    return None


if __name__ == "__main__":
    main()
