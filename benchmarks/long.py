"""What a long run costs: resident memory and the time of a round, early and late.

::

    python -m benchmarks.long                  # 3,000 rounds of each variant, half an hour
    python -m benchmarks.long --rounds 600 --only digits

Each variant is one run in a process of its own with its journal, and with MLflow on SQLite where it
says so, while another process reads it every second as the live page does. Softmax regression on
digits, ten clients; and a perceptron whose arrays have 1 MB, four clients.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

VARIANTS: dict[str, dict[str, Any]] = {
    "digits, mlflow": {"num_clients": 10, "tracking": "mlflow"},
    "digits, none": {"num_clients": 10, "tracking": "none"},
    "1 MB arrays, mlflow": {"num_clients": 4, "tracking": "mlflow", "hidden": 1730},
    "1 MB arrays, none": {"num_clients": 4, "tracking": "none", "hidden": 1730},
}
EARLY = 300
"""The round whose memory is compared with the last one's."""
SPAN = 500
"""Rounds whose times are compared: those after the first 300, and the last."""
READER = """
import sys, time
from pathlib import Path
from fl_app.dashboard.live import Tail
from fl_app.dashboard.run_files import runs
home = Path(sys.argv[1])
while not (found := runs(home)):
    time.sleep(0.2)
tail = Tail(home, found[0].name)
while True:
    tail.read()
    time.sleep(1)
"""


@dataclass
class Gauge:
    """A tracker that notes times and memory at the end of each round."""

    home: Path
    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    wal: int = 0

    def start(self, run: Any) -> None:
        """Do nothing."""

    def annotate(self, tags: Any, texts: Any) -> None:
        """Do nothing."""

    def record(self, record: Any) -> None:
        """Note them."""
        self.times.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.megabytes.append(resident())
        for file in self.home.glob("runs/*/*-wal"):
            self.wal = max(self.wal, file.stat().st_size)

    def finish(self, end: Any) -> None:
        """Do nothing."""


def resident() -> float:
    """Return this process's resident memory in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(home: Path, rounds: int, num_clients: int, tracking: str, hidden: int = 0) -> None:
    """Do one run in this process, and print what it cost."""
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp
    from rich.console import Console

    from fl_app.client_app import app as client_app
    from fl_app.config.run_request import RunRequest
    from fl_app.config.serialization import from_dict
    from fl_app.experiment import Run
    from fl_app.grid import run_in_process
    from fl_app.seeding import one_thread
    from fl_app.tracking import Events
    from fl_app.tracking.console import ConsoleTracker

    logging.getLogger("flwr").setLevel(logging.ERROR)
    os.environ["FL_APP_HOME"] = str(home)
    model: dict[str, Any] = {"name": "softmax", "learning_rate": 0.5}
    if hidden:
        model = {"name": "mlp", "hidden_units": hidden, "batch_size": 0, "dtype": "float64"}
    config = {
        "num_clients": num_clients,
        "num_server_rounds": rounds,
        "model": model,
        "output_dir": str(home / "out"),
        "tracking": {"name": tracking},
    }
    gauge, server_app = Gauge(home), ServerApp()
    console = ConsoleTracker(console=Console(file=io.StringIO(), highlight=False))

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        with one_thread(), Events("inprocess") as events:
            request = RunRequest(from_dict(config))
            Run(grid, request, "inprocess", console, 0, (gauge,), events).execute(
                sorted(grid.get_node_ids())
            )

    run_in_process(server_app, client_app, num_supernodes=num_clients)
    (folder,) = (home / "runs").iterdir()
    early = min(EARLY, rounds // 2)
    span = min(SPAN, rounds - early)
    found = {
        "early": gauge.megabytes[early],
        "late": gauge.megabytes[rounds],
        "wall": _medians(gauge.times, early, span),
        "cpu": _medians(gauge.cpu, early, span),
        "wal": gauge.wal / 1e6,
        "journal": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
        "at": early,
        "curve": [round(m, 1) for m in gauge.megabytes[:: max(1, rounds // 12)]],
    }
    print(json.dumps(found))


def _medians(clock: list[float], early: int, span: int) -> tuple[float, float]:
    """Return the median milliseconds of a round in the early span and in the last one."""
    spans = [1e3 * (b - a) for a, b in itertools.pairwise(clock)]
    return statistics.median(spans[early : early + span]), statistics.median(spans[-span:])


def measure(name: str, rounds: int) -> None:
    """Run a variant in a process, beside a reader, and print its line."""
    with tempfile.TemporaryDirectory() as folder:
        reader = subprocess.Popen([sys.executable, "-c", READER, folder])
        command = [sys.executable, "-m", "benchmarks.long", "--rounds", str(rounds)]
        command += ["--run", name, "--home", folder]
        try:
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        finally:
            reader.terminate()
            reader.wait()
    found = json.loads(done.stdout.splitlines()[-1])
    grown = found["late"] - found["early"]
    allowed = 0.05 * found["early"] + 10
    (wall, last_wall), (cpu, last_cpu) = found["wall"], found["cpu"]
    print(
        f"{name:20} round {found['at']}: {found['early']:.0f} MB, {rounds}: {found['late']:.0f} MB"
        f" ({grown:+.1f} of {allowed:.1f} allowed); a round {wall:.1f} and {last_wall:.1f} ms"
        f" ({last_wall / wall:.2f}), of processor time {cpu:.1f} and {last_cpu:.1f} ms"
        f" ({last_cpu / cpu:.2f});"
        f" log at most {found['wal']:.1f} MB, journal {found['journal']:.1f} MB\n"
        f"    MB on the way: {found['curve']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--only", default="", help="variants that begin so")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.home, arguments.rounds, **VARIANTS[arguments.run])
        return
    print(machine("flwr", "numpy", "mlflow"), flush=True)
    for name in VARIANTS:
        if name.startswith(arguments.only):
            measure(name, arguments.rounds)


if __name__ == "__main__":
    main()
