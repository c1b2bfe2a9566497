"""Rounds a second in process, beside a plain NumPy loop and beside Flower's own parts.

``make bench`` runs it. Softmax regression on digits (64 features, 10 classes), one local epoch in
batches of 32, all clients train, the server evaluates after each round. All variants do the same
arithmetic and must end with the same bits. They are timed in turn in one process, from the end of
the first round to the end of the last; the table gives medians, and medians of the ratios of
neighbours, as absolute times differ from machine to machine. Flower's Ray engine runs apart, in
processes of its own, for fewer rounds and less often: what counts is also the time after its first
round.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from benchmarks.arithmetic import Arrays, metrics, prepared, sgd, zeros
from benchmarks.machine import machine
from benchmarks.stock import stock
from fl_app.aggregation import arrays_digest
from fl_app.client_app import _Federation
from fl_app.client_app import app as client_app
from fl_app.config.run_request import RunRequest
from fl_app.config.schema import Config
from fl_app.config.serialization import from_dict
from fl_app.experiment import Run
from fl_app.grid import run_in_process
from fl_app.seeding import generator, one_thread
from fl_app.tracking.console import ConsoleTracker
from fl_app.tracking.records import RoundRecord, RunEnd, RunStart

LOOP, STOCK, OURS, TRACKED, RAY = (
    "NumPy loop",
    "Flower's own parts",
    "fl_app, no record",
    "fl_app, MLflow on SQLite",
    "Flower's Ray engine",
)

PACKAGES = ("flwr", "numpy", "scikit-learn", "mlflow", "hydra-core", "ray")

Seconds = dict[str, list[float]]
"""Seconds a round of each variant, one number a repeat."""


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
            "min_rows": 1,
            "num_clients": num_clients,
            "num_server_rounds": rounds,
            "fraction_evaluate": 0.0,
            # A number, and not the server's own step: the loops below know no more.
            "model": {"name": "softmax", "learning_rate": 0.5},
            "output_dir": folder,
            "tracking": tracking or {"name": "none"},
        }
    )


def unscored(num_clients: int, rounds: int) -> tuple[float, str]:
    """Time fl_app with clients that train and tell metrics without computing them."""

    def score(*_: object) -> tuple[dict[str, float], dict[str, object]]:
        return dict.fromkeys(("log_loss", "accuracy", "brier"), 0.0), {}

    with mock.patch.object(_Federation, "score", score):
        return ours(num_clients, rounds, tracked=False)


def ours(num_clients: int, rounds: int, tracked: bool) -> tuple[float, str]:
    """Time fl_app as ``runtime=inprocess`` runs it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FL_APP_HOME"] = folder
        uri = f"sqlite:///{folder}/mlflow.db"
        tracking = {"name": "mlflow", "uri": uri} if tracked else None
        launch = RunRequest(config(num_clients, rounds, tracking, folder))
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
    times, arrays = looped(config(num_clients, rounds))
    return (times[-1] - times[0]) / (rounds - 1), arrays_digest(arrays)


def looped(cfg: Config) -> tuple[list[float], Arrays]:
    """Return when each round of the plain loop ended, and its last arrays."""
    clients, test = prepared(cfg)
    rate, times = float(cfg.model.learning_rate), []
    arrays = zeros(test)
    total = sum(len(rows[0]) for rows in clients)
    with one_thread():
        for server_round in range(1, cfg.num_server_rounds + 1):
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
    return times, arrays


def ray(num_clients: int, rounds: int) -> tuple[float, str]:
    """Time Flower's Ray engine by the lines that ``runtime=simulation`` prints after each round."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *("runtime=simulation", "tracking=none", "fraction_evaluate=0"),
            *("min_rows=1", "model.learning_rate=0.5", f"output_dir={folder}"),
            *(f"num_clients={num_clients}", f"num_server_rounds={rounds}"),
        ]
        times = []
        with subprocess.Popen(
            [str(Path(sys.executable).parent / "fl-app"), *words],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"FL_APP_HOME": folder},
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if re.match(r"round +[1-9]", line):
                    times.append(time.perf_counter())
        result = json.loads((Path(folder) / "result.json").read_text())
    if len(times) != rounds:
        raise SystemExit(f"{len(times)} of {rounds} rounds of {words}: {result}")
    return (times[-1] - times[0]) / (rounds - 1), str(result["weights_sha256"])


def measure(num_clients: int, rounds: int, repeats: int, ray_repeats: int) -> Seconds:
    """Time all variants in turn and print their table."""
    variants: dict[str, Callable[[], tuple[float, str]]] = {
        LOOP: lambda: loop(num_clients, rounds),
        STOCK: lambda: stock(config(num_clients, rounds)),
        OURS: lambda: ours(num_clients, rounds, tracked=False),
        TRACKED: lambda: ours(num_clients, rounds, tracked=True),
    }
    seconds: Seconds = {name: [] for name in variants}
    digests = set()
    for repeat in range(repeats + 1):
        for name, variant in variants.items():
            spent, digest = variant()
            digests.add(digest)
            if repeat:  # the first one imports and fills caches
                seconds[name].append(spent)
    if len(digests) != 1:
        raise SystemExit(f"final weights differ between variants: {digests}")
    if ray_repeats:
        seconds[RAY] = measure_ray(num_clients, rounds, ray_repeats)
    print(f"\nK={num_clients}, {rounds} rounds, medians of {repeats} interleaved runs, equal bits")
    for name, values in seconds.items():
        print(
            f"  {name:26} {1 / statistics.median(values):8.2f} rounds/s"
            f"  {_ratio(values, seconds[LOOP]):8.2f} x the loop's time"
        )
    print(f"  Flower's own parts take {_ratio(seconds[STOCK], seconds[OURS]):.2f} x fl_app's time")
    if ray_repeats:
        print(
            f"  Flower's Ray engine takes {_ratio(seconds[RAY], seconds[OURS]):.0f} x fl_app's time"
        )
    added = [b - a for a, b in zip(seconds[OURS], seconds[TRACKED], strict=True)]
    print(f"  the record adds {statistics.median(added) * 1e3:.2f} ms a round", flush=True)
    return seconds


def measure_ray(num_clients: int, rounds: int, repeats: int) -> list[float]:
    """Time Flower's Ray engine for rounds that fit into a minute, and check the bits."""
    fewer = max(3, min(rounds, 1000 // num_clients))
    _, expected = loop(num_clients, fewer)
    seconds = []
    for _ in range(repeats):
        spent, digest = ray(num_clients, fewer)
        if digest != expected:
            raise SystemExit(f"final weights differ in Ray: {digest}, expected {expected}")
        seconds.append(spent)
    return seconds


def _ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the ratios of neighbours in time, or the ratio of medians."""
    if len(values) != len(base):
        return statistics.median(values) / statistics.median(base)
    return statistics.median(a / b for a, b in zip(values, base, strict=True))


def draw(found: Mapping[int, Seconds], path: Path) -> None:
    """Draw rounds a second over the number of clients."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "rounds"
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name in next(iter(found.values())):
        rates = [1 / statistics.median(found[k][name]) for k in found]
        axes.loglog(list(found), rates, marker="o", label=name)
    axes.set(xlabel="clients (K)", ylabel="rounds a second", xticks=list(found))
    axes.set_xticklabels([str(k) for k in found])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def peak(num_clients: int) -> None:
    """Print this process's peak memory in MB after five rounds."""
    ours(num_clients, 5, tracked=False)
    print(_peak_megabytes())


def _peak_megabytes() -> float:
    """Return this process's peak memory, without what the process that started it had (Linux)."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmHWM")]
        return int(line.split()[1]) / 2**10
    scale = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


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
    parser.add_argument("--ray-repeats", type=int, default=1, help="0: without Ray")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw rounds/s over clients")
    parser.add_argument("--peak", type=int, help="only print peak memory with that many clients")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if arguments.peak:
        return peak(arguments.peak)
    print(machine(*PACKAGES), flush=True)
    found = {
        k: measure(k, arguments.rounds, arguments.repeats, arguments.ray_repeats)
        for k in arguments.clients
    }
    measure_memory(min(arguments.clients), max(arguments.clients))
    if arguments.draw is not None:
        draw(found, arguments.draw)
    return None


if __name__ == "__main__":
    main()
