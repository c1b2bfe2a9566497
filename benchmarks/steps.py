"""Does ``model.learning_rate=auto`` hold? Ten tables, the best of ten constant steps beside it.

``python -m benchmarks.steps``: ten clients, IID, 20 rounds, all else as it is by default; constant
steps .01 * 2^k for k = 0 ... 9; three seeds. What is told is accuracy or R2 on the server's test
rows after the last round, mean over seeds; a step with which a run fails or ends below the constant
model (R2 < 0) counts as diverged. Exit status 1 if a run with ``auto`` fails, or if it is more than
.02 below the best constant step on more than two tables.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.config.run_request import RunRequest
from fl_app.config.schema import METRICS, task_of
from fl_app.config.serialization import from_dict
from fl_app.errors import FlAppError
from fl_app.runtimes.inprocess import run

STEPS = [0.01 * 2**k for k in range(10)]
WIDE = 82
CLOSE, TABLES = 0.02, 8

Settings = Mapping[str, Any]


def write_wide(path: Path, rows: int = 2000, columns: int = WIDE) -> None:
    """Write a regression table whose columns lie close to six directions, the first the longest.

    The largest eigenvalue of their correlations is .44 of the sum of all, that of 100 columns drawn
    apart .017; the target's noise is a ninth of the variance that they explain.
    """
    rng = np.random.default_rng(0)
    lengths = np.array([3.0, 2.0, 1.0, 0.7, 0.5, 0.3])[:, None]
    common = rng.normal(size=(rows, 6)) @ (rng.normal(size=(6, columns)) * lengths)
    x = common + rng.normal(size=(rows, columns)) * rng.uniform(0.05, 1, size=columns)
    y = x @ rng.normal(size=columns)
    y += rng.normal(size=rows) * y.std() / 3
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{i}" for i in range(columns)), "y"])
        writer.writerows(np.column_stack([x, y]).tolist())


def tables(folder: Path) -> dict[str, Settings]:
    """Return the ten data sets by the name that the table has."""
    wide = folder / "wide.csv"
    write_wide(wide)
    names = ("digits", "wine", "breast_cancer", "iris", "diabetes", "heart_disease", "penguins")
    return {
        **{name: {"name": name} for name in names},
        "synthetic_classification": {"name": "synthetic_classification"},
        "synthetic_regression, 100 columns": {"name": "synthetic_regression", "num_features": 100},
        f"tabular, {WIDE} correlated columns": {
            "name": "tabular",
            "path": str(wide),
            "target": "y",
            "task": "regression",
        },
    }


def score(dataset: Settings, step: float | str, seed: int, model: str) -> float:
    """Run a config and return its last accuracy or R2; NaN if it failed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = from_dict(
            {
                "dataset": dataset,
                "model": {"name": model, "learning_rate": step},
                "seed": seed,
                "num_server_rounds": 20,
                "tracking": {"name": "none"},
                "output_dir": folder,
            }
        )
        metric = {"regression": "r2", "classification": "accuracy"}[task_of(config.dataset)]
        assert metric in METRICS[task_of(config.dataset)]
        try:
            run(RunRequest(config))
        except FlAppError:
            return float("nan")
        metrics = json.loads((Path(folder) / "result.json").read_text())["metrics"]
        return float(metrics[f"server/{metric}"])


def shown(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "diverged"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="auto")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args(arguments)
    close = failed = 0
    print("| table | auto | best constant | its step | difference | constants that diverge |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset in tables(Path(folder)).items():

            def mean(step: float | str, dataset: Settings = dataset) -> float:
                seeds = range(chosen.seeds)
                return float(np.mean([score(dataset, step, s, chosen.model) for s in seeds]))

            own, by_step = mean("auto"), {step: mean(step) for step in STEPS}
            good = {step: value for step, value in by_step.items() if value >= 0}
            best = max(good, key=lambda step: good[step])
            bad = [f"{step:g}" for step in STEPS if step not in good]
            close += own >= good[best] - CLOSE
            failed += not own >= 0
            cells = [shown(own), shown(good[best]), f"{best:g}", f"{own - good[best]:+.3f}"]
            print(f"| {name} | {' | '.join(cells)} | {', '.join(bad) or '–'} |", flush=True)
    print(f"\nwithin {CLOSE} of the best constant step: {close} of 10; diverged: {failed}")
    if failed or close < TABLES:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
