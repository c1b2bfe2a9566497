"""Whole commands beside each other: start-up, Flower's engine, a sweep.

``make bench`` runs it. Commands are timed from start to end, in turn, on stores and folders of
their own; what counts are ratios and differences of medians within one run of this file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.rounds import PACKAGES
from fl_app.runtimes.bundle import app_dir
from fl_app.runtimes.superlink import PrivateSuperLink

BIN = Path(sys.executable).parent

HYDRA_APP = '''
import hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    """Do nothing."""


main()
'''

PYPROJECT = """
[project]
name = "minimal"
version = "1.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "minimal:server"
clientapp = "minimal:client"

[tool.flwr.app.config]
rounds = 20
"""

MINIMAL = """
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid, context):
    FedAvg(fraction_evaluate=0.0).start(
        grid,
        ArrayRecord([np.zeros((64, 10)), np.zeros(10)]),
        num_rounds=context.run_config["rounds"],
    )


@client.train()
def train(message, context):
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
"""


def timed(*words: str, cwd: str, env: Mapping[str, str] | None = None) -> float:
    """Run a command to its end; return seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=cwd,
        env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | dict(env or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode} of {words}: {done.stdout}{done.stderr}")
    return time.perf_counter() - start


def in_turn(repeats: int, commands: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Time commands in turn after one round that fills caches; return medians."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(repeats + 1):
        for name, command in commands.items():
            spent = command()
            if repeat:
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(f"  {name:44} {median:7.2f} s  ({low:.2f} to {high:.2f})", flush=True)
    return medians


def stock_link() -> PrivateSuperLink:
    """Return a SuperLink that looks for work as often as Flower's own does.

    It installs no dependencies, as Flower's own does at each run, in half a second or more.
    """
    return PrivateSuperLink(env={"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1"})


def start_up(repeats: int) -> None:
    """Compare ``--cfg job`` with that of a Hydra app that does nothing."""
    print(f"\nstart-up, medians of {repeats}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(HYDRA_APP)
        Path(folder, "conf").mkdir()
        Path(folder, "conf", "config.yaml").write_text("seed: 0\n")
        ours, bare = "fl-app --cfg job", "a bare Hydra app --cfg job"
        found = in_turn(
            repeats,
            {
                bare: lambda: timed("python", "app.py", "--cfg", "job", cwd=folder),
                ours: lambda: timed("fl-app", "--cfg", "job", cwd=folder),
                "fl-app --help": lambda: timed("fl-app", "--help", cwd=folder),
            },
        )
    print(f"  {found[ours] / found[bare]:.2f} x the bare app")


def simulation(repeats: int) -> None:
    """Compare ``runtime=simulation`` with stock ``flwr run`` at a SuperLink that is up."""
    print(f"\nFlower's engine, 10 clients, 20 rounds, no record, medians of {repeats}")
    overrides = "tracking=none num_server_rounds=20 fraction_evaluate=0"
    federation = "num-supernodes=10 client-resources-num-cpus=1"
    bare, minimal = "flwr run of fl_app, SuperLink up", "flwr run of a minimal app, SuperLink up"
    ours = "fl-app runtime=simulation"
    with tempfile.TemporaryDirectory() as folder, stock_link() as link, app_dir() as app:
        Path(folder, "app").mkdir()
        Path(folder, "app", "pyproject.toml").write_text(PYPROJECT)
        Path(folder, "app", "minimal.py").write_text(MINIMAL)
        common = ("--federation-config", federation, "--stream")
        env = link.client_env | {"FL_APP_HOME": folder}

        def stock(path: str, run_config: str) -> float:
            words = ("flwr", "run", path, link.name, "--run-config", run_config, *common)
            return timed(*words, cwd=folder, env=env)

        found = in_turn(
            repeats,
            {
                minimal: lambda: stock(f"{folder}/app", "rounds=20"),
                bare: lambda: stock(str(app), f"overrides='{overrides}'"),
                ours: lambda: timed(
                    *("fl-app", "runtime=simulation", *overrides.split()),
                    cwd=folder,
                    env={"FL_APP_HOME": folder},
                ),
            },
        )
    print(f"  fl-app over flwr run of the same app: {found[ours] - found[bare]:+.2f} s")
    print(f"  the app over a minimal one: {found[bare] - found[minimal]:+.2f} s", flush=True)


def sweep(jobs: int, singles: int, figures: bool) -> None:
    """Compare one sweep, with its record, with as many ``flwr run``."""
    print(f"\n{jobs} runs on digits, 10 clients, 20 rounds, MLflow on SQLite, figures={figures}")
    overrides = f"num_server_rounds=20 tracking.figures={str(figures).lower()}"
    with tempfile.TemporaryDirectory() as folder, stock_link() as link, app_dir() as app:
        one = f"one sweep of {jobs}"
        sweeps, runs = [], []
        for repeat in range(singles):
            home = {"FL_APP_HOME": f"{folder}/{repeat}"}
            words = ("fl-app", "-m", f"seed=range({jobs})", *overrides.split())
            sweeps.append(timed(*words, cwd=folder, env=home))
            words = ("flwr", "run", str(app), link.name, "--stream")
            words += ("--federation-config", "num-supernodes=10 client-resources-num-cpus=1")
            words += ("--run-config", f"overrides='{overrides} seed={repeat}'")
            runs.append(timed(*words, cwd=folder, env=link.client_env | home))
    whole, single = statistics.median(sweeps), statistics.median(runs)
    print(f"  {one:44} {whole:7.2f} s")
    print(f"  {'one flwr run, SuperLink up':44} {single:7.2f} s")
    print(f"  the sweep takes 1/{jobs * single / whole:.1f} of {jobs} flwr run", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("start_up", "simulation", "sweep"))
    arguments = parser.parse_args()
    print(machine(*PACKAGES), flush=True)
    if arguments.only in (None, "start_up"):
        start_up(7)
    if arguments.only in (None, "simulation"):
        simulation(3)
    if arguments.only in (None, "sweep"):
        sweep(20, 3, figures=True)
        sweep(20, 3, figures=False)


if __name__ == "__main__":
    main()
