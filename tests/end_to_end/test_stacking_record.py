"""Runs of FedStacking through the real apps and a real MLflow store, read back as a user would."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fl_app.config.compose import compose_config
from fl_app.data.client_data import test_table as held_out
from fl_app.stacking.strategy import FAMILY_NUMBERS

from .support import command
from .test_record import Recorded, recorded

T = 4
RUNS: dict[str, tuple[str, ...]] = {
    "kinds": (
        "dataset=wine",
        "num_clients=4",
        "strategy.base_models=[logistic,gaussian_nb,random_forest,hist_gradient_boosting]",
        "strategy.personal_gate=true",
    ),
    "none": (
        "dataset=penguins",
        "partitioner=natural",
        "num_clients=3",
        "strategy.global_member=none",
        "strategy.base_models=[model]",
        "model=mlp",
    ),
    "numbers": (
        "dataset=diabetes",
        "num_clients=3",
        "strategy.global_member=ls",
        "strategy.base_models=[random_forest]",
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stacking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_APP_HOME", str(folder))
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        yield folder


def overrides_of(name: str) -> tuple[str, ...]:
    return (
        "strategy=fedstacking",
        f"num_server_rounds={T}",
        "tracking.figures=false",
        *RUNS[name],
    )


@pytest.fixture(scope="module")
def runs(home: Path) -> dict[str, Recorded]:
    return {name: recorded(home, *overrides_of(name)) for name in RUNS}


def table(run_: Recorded, path: str) -> list[dict[str, Any]]:
    found = json.loads(run_.artifact(path).read_text())
    assert set(found) == {"columns", "data"}  # pandas' orient="split", as mlflow.log_table writes
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


@pytest.mark.parametrize("name", RUNS)
def test_the_record_has_every_round(name: str, runs: dict[str, Recorded]) -> None:
    """Metrics of all parts, weights and aggregations are there, also where no array changed."""
    run_ = runs[name]
    metric = "mse" if name == "numbers" else "accuracy"
    assert run_.steps(f"server/{metric}") == [0, 1, 2, 3, 4]
    for part in ("train", "eval"):
        assert run_.steps(f"{part}/{metric}") == [1, 2, 3, 4]
    assert run_.values("stack/phase") == [0, 0, 1, 2]
    for key in ("family", "lambda", "rows"):
        assert run_.steps(f"stack/{key}") == [3, 4]
    assert run_.steps("stack/members") == [3]
    assert run_.paths("weights") == [f"weights/round_{r:04d}.npz" for r in range(T + 1)]
    assert len(run_.paths("aggregation")) == T
    assert run_.run.data.tags["strategy"] == run_.run.data.params["strategy.name"] == "fedstacking"
    # Where the arrays' names or shapes change there is no update to measure.
    shapes = [{n: a.shape for n, a in run_.weights(r).items()} for r in range(T + 1)]
    same = [r for r in range(1, T + 1) if shapes[r] == shapes[r - 1]]
    assert run_.steps("model/update_norm") == same


@pytest.mark.parametrize("name", RUNS)
def test_the_tables_in_mlflow_explain_the_choice(name: str, runs: dict[str, Recorded]) -> None:
    """Tables in MLflow's form hold the last round, and agree with its metrics and weights."""
    run_ = runs[name]
    (chosen,) = [row for row in table(run_, "stack/candidates.json") if row["chosen"]]
    assert FAMILY_NUMBERS[chosen["family"]] == run_.values("stack/family")[-1]
    assert chosen["lambda"] == run_.values("stack/lambda")[-1]
    assert chosen["rows"] == run_.values("stack/rows")[-1]
    members = {row["member"]: row for row in table(run_, "stack/members.json")}
    stored = {n.split("/")[1] for n in run_.weights(T) if n.startswith("member/")}
    assert set(members) - {"global"} == stored


@pytest.mark.parametrize("name", RUNS)
def test_the_final_model_predicts_what_was_reported(name: str, runs: dict[str, Recorded]) -> None:
    """The stored model, fed the raw rows of the test set, has the server's last metric."""
    run_ = runs[name]
    test = held_out(compose_config([*overrides_of(name)]))
    frame = pd.DataFrame(test.numeric, columns=list(test.numeric_names))
    for position, column in enumerate(test.categorical_names):
        frame[column] = test.categorical[:, position]
    found = np.asarray(run_.model("final").predict(frame[list(test.columns)]))
    if name == "numbers":
        error = np.square(found - test.target[:, 0]).mean()
        assert error == pytest.approx(run_.values("server/mse")[-1], rel=1e-12)
    else:
        assert (found == test.target).mean() == run_.values("server/accuracy")[-1]


def test_the_gate_is_reported_apart(runs: dict[str, Recorded]) -> None:
    """What it would do stands in the last round, beside the model that it does not change."""
    run_ = runs["kinds"]
    for key in ("gate_open", "gated_accuracy", "ungated_accuracy"):
        assert run_.steps(f"stack/{key}") == [T]
    ungated = run_.values("stack/ungated_accuracy")[-1]
    assert ungated == pytest.approx(run_.values("eval/accuracy")[-1], rel=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["strategy.base_models=[logistic,knn]"],
            "strategy.base_models=knn: carries raw training rows in every format",
        ),
        (
            ["dataset=iris", "strategy.num_folds=99"],
            "strategy.num_folds=99: at most 11, the training rows of the largest client",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(words: list[str], message: str, tmp_path: Path) -> None:
    """A mistake in the config, or one that only the rows tell, ends with status 2."""
    home = str(tmp_path / "home")
    done = command("fl-app", "strategy=fedstacking", *words, cwd=tmp_path, FL_APP_HOME=home)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"fl-app: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "home" / "mlflow.db").exists()


@pytest.mark.parametrize("name", RUNS)
def test_tables_are_tables_to_mlflow(name: str, runs: dict[str, Recorded]) -> None:
    """MLflow's own reader finds them, and so does its UI."""
    import mlflow

    run_ = runs[name]
    mlflow.set_tracking_uri(run_.client.tracking_uri)
    mlflow.set_experiment(experiment_id=run_.run.info.experiment_id)
    for path in ("stack/candidates.json", "stack/members.json", "clients/evaluate.json"):
        assert len(mlflow.load_table(path, run_ids=[run_.result.run_id])) == len(table(run_, path))
