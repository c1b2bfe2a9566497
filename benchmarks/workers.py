"""From which local cost on `runtime.num_workers=2` pays, and what the workers' start costs.

``python -m benchmarks.workers`` runs it. Each task is run with 1 and with 2 workers in turn, in one
process, and must end with the same bits; the pool is started once. The table gives medians: what a
client's call takes in this process, all rounds of the run (with the server's part), and the
speed-up. Softmax regression with more and more local epochs gives the break-even: the local cost at
which the speed-up is 1, interpolated on the logarithm of the cost. What the start of two workers
adds to a run is measured by itself, on new pools.

On a machine that is busy otherwise (its load is printed) such times say little. CPU seconds say
more: the last column is the speed-up if nobody else were there and this process and its workers
never worked at the same time, so what a free machine gives is at least that.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.supercore.run import Run as FlowerRun
from numpy.typing import NDArray
from rich.console import Console

from fl_app.client_app import app as client_app
from fl_app.config.run_request import RunRequest
from fl_app.config.schema import Config
from fl_app.config.serialization import from_dict
from fl_app.experiment import Run
from fl_app.federation.handshake import shake_hands
from fl_app.grid import InProcessGrid
from fl_app.seeding import one_thread
from fl_app.tracking.console import ConsoleTracker
from fl_app.tracking.records import RoundRecord

from .machine import machine
from .rounds import Clock

CLIENTS = 8
PACKAGES = ("flwr", "numpy", "scikit-learn", "joblib")
BREAK_EVEN = "softmax, {} local epochs"


@dataclass(frozen=True)
class Task:
    """One row of the table: a name and what differs from the default config."""

    name: str
    config: Mapping[str, Any]


@dataclass
class Times:
    """Seconds of each repeat."""

    rounds: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class TimedGrid(InProcessGrid):
    """A grid that adds up the time and the number of its calls."""

    seconds, calls = 0.0, 0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Time an exchange."""
        begin = time.perf_counter()
        replies = super().send_and_receive(messages, timeout=timeout)
        self.seconds += time.perf_counter() - begin
        self.calls += len(replies)
        return replies


def tasks() -> list[Task]:
    rows = {"name": "synthetic_classification", "num_examples": 20000}
    forests = {"dataset": {**rows, "num_examples": 8000}, "num_server_rounds": 4}
    softmax = [
        Task(
            BREAK_EVEN.format(epochs),
            {"model": {"name": "softmax", "local_epochs": epochs}, "num_server_rounds": 12},
        )
        for epochs in (1, 4, 16, 64)
    ]
    mlp = {"dataset": rows, "model": {"name": "mlp"}, "num_server_rounds": 4}
    return [
        *softmax,
        Task("mlp, 2000 rows a client", mlp),
        *(
            Task(name, {**forests, "strategy": {"name": "fedstacking", "base_models": [name]}})
            for name in ("random_forest", "hist_gradient_boosting")
        ),
    ]


def config_of(task: Task, folder: str) -> Config:
    return from_dict(
        {
            "num_clients": CLIENTS,
            "tracking": {"name": "none"},
            "output_dir": folder,
            **task.config,
        }
    )


@dataclass
class CpuClock(Clock):
    """A clock that also notes the CPU time of this process and of its busiest worker."""

    used: list[NDArray[np.float64]] = field(default_factory=list)

    def record(self, record: RoundRecord) -> None:
        """Note the times."""
        super().record(record)
        workers = [p for p in active_children() if p.name.startswith("worker-")]
        workers.sort(key=lambda worker: worker.name)
        self.used.append(np.array([time.process_time(), *map(cpu_seconds, workers)]))

    @property
    def cpu(self) -> float:
        """CPU seconds from the end of round 0, one after the other."""
        used = self.used[-1] - self.used[0]
        return float(used[0] + max(used[1:], default=0))


def cpu_seconds(process: BaseProcess) -> float:
    """Return the CPU seconds of a process so far, on Linux; NaN elsewhere."""
    try:
        threads = Path(f"/proc/{process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except OSError:
        return float("nan")


def megabytes(process: BaseProcess) -> float:
    """Return the resident memory of a process, on Linux; NaN elsewhere."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024
    except OSError:
        return float("nan")


def run(grid: TimedGrid, config: Config) -> tuple[float, float, float, str]:
    """Run a config; return seconds of all rounds, a call, CPU seconds, and the weights' digest."""
    clock = CpuClock()
    grid.set_run(FlowerRun.create_empty(time.monotonic_ns()))
    console = ConsoleTracker(console=Console(file=io.StringIO()))
    with one_thread():
        grid.seconds, grid.calls = 0.0, 0
        Run(grid, RunRequest(config), "inprocess", console, 0, (clock,)).execute(
            sorted(grid.get_node_ids())
        )
    return clock.times[-1] - clock.times[0], grid.seconds / grid.calls, clock.cpu, clock.digest


def measure(task: Task, grids: Sequence[TimedGrid], repeats: int, folder: str) -> list[Times]:
    """Run a task with each grid in turn; the first repeat warms caches and does not count."""
    config, times, digests = config_of(task, folder), [Times() for _ in grids], set()
    for repeat in range(repeats + 1):
        for grid, found in zip(grids, times, strict=True):
            rounds, call, cpu, digest = run(grid, config)
            digests.add(digest)
            if repeat:
                found.rounds.append(rounds)
                found.calls.append(call)
                found.cpu.append(cpu)
    if len(digests) != 1:
        raise SystemExit(f"{task.name}: final weights differ: {digests}")
    return times


def start_up(repeats: int, folder: str) -> tuple[float, float, float]:
    """Return what 2 workers add to the handshake of a new grid, and CPU seconds and MB of each."""
    config = config_of(Task("", {}), folder)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    used: list[float] = []
    memory = 0.0
    for _ in range(repeats):
        for workers, found in seconds.items():
            before = _children()
            begin = time.perf_counter()
            with InProcessGrid(client_app, CLIENTS, num_workers=workers) as grid:
                shake_hands(grid, grid.get_node_ids(), config, 600.0)
                found.append(time.perf_counter() - begin)
                memory = max([memory, *map(megabytes, active_children())])
            if workers > 1:
                used.append((_children() - before) / workers)
    added = statistics.median(b - a for a, b in zip(seconds[1], seconds[2], strict=True))
    return added, statistics.median(used), memory


def _children() -> float:
    """Return the CPU seconds of all processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def break_even(points: Sequence[tuple[float, float]]) -> str:
    """Interpolate the cost at which the speed-up is 1."""
    costs, gains = zip(*sorted(points), strict=True)
    for i in range(len(costs) - 1):
        if gains[i] < 1 <= gains[i + 1]:
            share = (1 - gains[i]) / (gains[i + 1] - gains[i])
            low, high = np.log(costs[i]), np.log(costs[i + 1])
            return f"{np.exp(low + share * (high - low)) * 1e3:.2g} ms a call"
    side = "below" if gains[0] >= 1 else "above"
    return f"{side} {(costs[0] if gains[0] >= 1 else costs[-1]) * 1e3:.2g} ms a call"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="run tasks whose name contains this")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    wall, cpu = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FL_APP_HOME"] = folder
        print(machine(*PACKAGES))
        print(f"{CLIENTS} clients, medians of {arguments.repeats} interleaved runs")
        heads = ("a call", "1 worker", "2 workers", "speed-up", "by CPU")
        print(f"\n{'task':30} " + " ".join(f"{head:>10}" for head in heads))
        alone, pooled = (TimedGrid(client_app, CLIENTS, num_workers=n) for n in (1, 2))
        with alone, pooled:
            for task in tasks():
                if arguments.only not in task.name:
                    continue
                one, two = measure(task, (alone, pooled), arguments.repeats, folder)
                call = statistics.median(one.calls)
                first, second = statistics.median(one.rounds), statistics.median(two.rounds)
                by_cpu = statistics.median(one.cpu) / statistics.median(two.cpu)
                if task.name.startswith("softmax"):
                    wall.append((call, first / second))
                    cpu.append((call, by_cpu))
                print(
                    f"{task.name:30} {call * 1e3:7.2f} ms {first:8.3f} s {second:8.3f} s "
                    f"{first / second:9.2f}x {by_cpu:9.2f}x",
                    flush=True,
                )
        if len(wall) > 1:
            print(f"\nbreak-even (softmax): {break_even(wall)}; by CPU {break_even(cpu)}")
        added, used, memory = start_up(3, folder)
        print(
            f"start-up: 2 workers add {added:.1f} s to a run ({used:.1f} CPU seconds and "
            f"{memory:.0f} MB each); load {os.getloadavg()[0]:.1f} at the end"
        )


if __name__ == "__main__":
    main()
