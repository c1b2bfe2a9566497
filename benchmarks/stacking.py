"""What the product cannot do: FedStacking with faulty members, beside averages without any.

A share of the clients, drawn by the seed, uploads a constant in the place of its base model; all
else that it sends is honest, its part of the global member too. FedAvg has no members, so that its
runs are the same at every share. Data, rounds, local epochs and rates are those of
``experiment=stacking_vs_averaging``, under two kinds of label skew. Runs are recorded in a store
that goes when this ends; rates, intervals and the reasons for which no strict claim is made are
those of ``fl-kit report --tune model.learning_rate --by eval/accuracy``. ``--out`` keeps its files.
The number of processes changes no value.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.clientapp import ClientApp

from benchmarks.machine import machine
from fl_app import report
from fl_app.client_app import app as client_app
from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest, git_commit
from fl_app.config.schema import Config
from fl_app.errors import DIVERGED, FlAppError
from fl_app.federation.protocol import ARRAYS
from fl_app.grid import run_in_process
from fl_app.grid.arrays import hold, read
from fl_app.seeding import generator
from fl_app.server_app import app as server_app

RATE, BY = "model.learning_rate", "eval/accuracy"
RATES = (0.01, 0.04, 0.16, 0.64, 2.56)
SHARES, ALPHAS = (0.2, 0.4), (0.5, 0.1)
AVERAGES, STACK = ("fedavg_softmax", "fedavg_mlp"), "fedstacking"
BASELINE = "strategy=fedavg,model=softmax"
EXPECTED = ("fedstacking softmax>fedavg softmax", "fedstacking softmax>fedavg mlp")
"""In the report's words: a level is a strategy and its model, here that of the global member."""


class Job(NamedTuple):
    """One run: a method at a rate and a seed, a kind of skew, and the share of faulty members."""

    method: str
    alpha: float
    share: float
    rate: float
    seed: int


def experiment(alpha: float, share: float) -> str:
    """Return the name of a setting, of MLflow's experiment too that holds its runs."""
    return f"alpha {alpha:g}, faulty {share:g}"


def run_job(job: Job) -> None:
    """Run it in this process, into the store of ``FL_APP_HOME``; a rate may diverge."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        overrides = (
            "experiment=stacking_vs_averaging",
            "hydra.mode=RUN",
            f"method={job.method}",
            f"partitioner.alpha={job.alpha}",
            f"{RATE}={job.rate}",
            f"seed={job.seed}",
            f"tracking.experiment_name='{experiment(job.alpha, job.share)}'",
            "tracking.figures=false",
            f"output_dir={folder}",
        )
        config = compose_config(overrides)
        app = faulty_app(client_app, faulty(config, job.share)) if job.share else client_app
        run_config = {"config-json": RunRequest(config, commit=git_commit()).to_json()}
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                run_in_process(server_app, app, config.num_clients, run_config)
        except FlAppError as error:
            if DIVERGED not in str(error):
                raise


def faulty(config: Config, share: float) -> frozenset[int]:
    """Return the partitions of the faulty clients, drawn by the seed."""
    drawn = generator(config.seed, "faulty").permutation(config.num_clients)
    return frozenset(drawn[: round(share * config.num_clients)].tolist())


def faulty_app(inner: ClientApp, partitions: frozenset[int]) -> ClientApp:
    """Wrap a ClientApp: some clients upload a constant base model."""

    def spoil(message: Any, context: Any, call: Callable[[Any, Any], Any]) -> Any:
        reply = call(message, context)
        partition = context.node_config["partition-id"]
        if partition in partitions and reply.has_content() and ARRAYS in reply.content:
            arrays = read(reply.content[ARRAYS])
            if "counts" in arrays:  # the reply that brings the base model
                reply.content[ARRAYS] = hold(arrays | constant(arrays, partition))
        return reply

    return wrapped(inner, spoil)


def wrapped(inner: ClientApp, mod: Any) -> ClientApp:
    """Return a ClientApp that calls another one through a mod of Flower's."""
    app = ClientApp(mods=[mod])
    for register in (app.train, app.evaluate, partial(app.query, "describe")):
        register()(inner)
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


def jobs_of(alpha: float, share: float, seeds: Sequence[int]) -> list[Job]:
    """Return the runs that are compared at one share; averages have no faulty member."""
    shares = dict.fromkeys(AVERAGES, 0.0) | {STACK: share}
    trials = product(shares.items(), RATES, seeds)
    return [Job(method, alpha, own, rate, seed) for (method, own), rate, seed in trials]


def compared(alpha: float, share: float) -> tuple[report.Comparison, list[report.Outcome]]:
    """Return what ``fl-kit report`` says of the runs at one share."""
    names = (experiment(alpha, 0.0), experiment(alpha, share))
    runs = [run for name in names for run in report.read_runs(experiment=name, by=BY)]
    found = report.compare(runs, baseline=BASELINE, tune=[RATE], by=BY)
    return found, [report.expect(found, text) for text in EXPECTED]


def main(words: Sequence[str] | None = None) -> None:
    settings = [(alpha, share) for share in SHARES for alpha in ALPHAS]
    named = {experiment(*setting): setting for setting in settings}
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 (default 5)")
    parser.add_argument("--only", choices=named, nargs="+", default=list(named), metavar="NAME")
    parser.add_argument("--out", type=Path, help="folder for the reports, one folder a name")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args(words)
    print(f"{machine('flwr', 'numpy', 'scikit-learn')}; seeds 0–{options.seeds - 1}", flush=True)
    done: set[Job] = set()
    with tempfile.TemporaryDirectory() as home:
        os.environ["FL_APP_HOME"] = home
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
            for name in options.only:
                jobs = set(jobs_of(*named[name], range(options.seeds))) - done
                list(pool.map(run_job, sorted(jobs)))
                done |= jobs
                found, outcomes = compared(*named[name])
                blocks = report.comparison_blocks(found, outcomes)
                print(f"\n# {name}\n\n{report.to_markdown(blocks)}", flush=True)
                if options.out is not None:
                    command = f"python -m benchmarks.stacking --seeds {options.seeds}"
                    folder = options.out / name.replace(", ", "-").replace(" ", "")
                    report.write_report(folder, found, outcomes, f"{command} --only '{name}'")


if __name__ == "__main__":
    main()
