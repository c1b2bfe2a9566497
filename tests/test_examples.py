"""The options of examples/ do what they say."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


def run(folder: Path, *overrides: str) -> dict[str, float]:
    """Run the examples' project; return the last metrics."""
    words = [sys.executable, "-m", "fl_app", "--app", str(ROOT / "examples"), *overrides]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"FL_APP_HOME": str(folder), "PYTHONPATH": path}
    words.append(f"output_dir={folder}")
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics: dict[str, float] = json.loads((folder / "result.json").read_text())["metrics"]
    return metrics


def test_files_of_a_folder_a_strategy_and_a_tracker(tmp_path: Path) -> None:
    """One pass of one step of length 1 over all rows of y = x fits it; halfway goes half as far."""
    for name, x in (("a", [-1.0, 1.0]), ("b", [1.0, -1.0])):
        pd.DataFrame({"x": x, "y": x}).to_parquet(tmp_path / f"{name}.parquet")
    own = [f"dataset.folder={tmp_path}", "dataset.test_fraction=0", "dataset.val_fraction=0"]
    own += ["partitioner=natural", "num_clients=2", "num_server_rounds=2", "min_rows=1"]
    own += ["model.batch_size=0", "model.learning_rate=1", "fraction_evaluate=0"]
    names = ["dataset=parquet_folder", "strategy=halfway", "tracking=csv"]
    run(tmp_path, *names, *own, f"tracking.path={tmp_path}/m.csv")
    lines = list(csv.DictReader((tmp_path / "m.csv").read_text().splitlines()))
    mse = [float(x["value"]) for x in lines if x["metric"] == "train/mse"]
    # The gradient of the clients' loss decides on a step; what is left after a round is a share
    # of the distance, so that the ratio of errors is the same from round to round.
    assert len(mse) == 2
    assert 0 <= mse[1] < mse[0]
    assert np.isfinite(mse).all()


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_a_model_of_torch_learns(tmp_path: Path) -> None:
    """It is better than the share of the largest of three classes, which is 71 of 178."""
    own = ["dataset=wine", "num_clients=2", "num_server_rounds=10", "tracking=none"]
    metrics = run(tmp_path, "model=torch_mlp", "model.learning_rate=0.1", *own)
    assert metrics["server/accuracy"] > 0.8
