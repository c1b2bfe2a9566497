"""``runtime=deployment`` over a SuperLink and SuperNodes that are processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.cli.project import init
from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.runtimes import RunResult, run
from fl_app.runtimes.superlink import PrivateSuperLink
from fl_app.runtimes.supernodes import SuperNodes, dealt
from fl_app.seeding import generator

from .support import BIN, command

pytestmark = pytest.mark.slow


@dataclass
class Lab:
    """A user's shell, and a federation of two SuperNodes that rows are dealt to."""

    home: Path
    link: PrivateSuperLink

    @property
    def env(self) -> dict[str, str]:
        return {"FLWR_HOME": str(self.link.flwr_home), "FL_APP_HOME": str(self.home / "fl_app")}

    def words(self, *overrides: str) -> list[str]:
        return ["fl-app", "runtime=deployment", "runtime.superlink=lab", *overrides]

    def fl_app(self, output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        words = self.words(*overrides, f"output_dir={output}")
        return command(*words, cwd=self.home, **self.env)

    def recorded(self, run_id: str | None) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.home}/fl_app/mlflow.db").get_run(run_id)

    def newest_status(self) -> str:
        shown = command("flwr", "ls", "lab", "--format", "json", cwd=self.home, **self.env)
        status: str = json.loads(shown.stdout)["runs"][0]["status"]
        return status


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("lab")
    env = {"FL_APP_HOME": str(home / "fl_app")}
    link = PrivateSuperLink(name="lab", flwr_home=home / "flwr", simulation=False, env=env)
    with link, SuperNodes(link, dealt(2)):
        yield Lab(home, link)


def in_process(*overrides: str, output: Path) -> RunResult:
    """Run the same config in this process, without a record."""
    words = [*overrides, "num_clients=2", "tracking=none", f"output_dir={output}"]
    return run(RunRequest(compose_config(words)))


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=two_lines", "num_server_rounds=2"],
        ["dataset=wine", "num_server_rounds=1"],
        ["dataset=wine", "strategy=fedstacking", "num_server_rounds=4", "fraction_evaluate=0"],
    ],
    ids=["two_lines", "fedavg", "fedstacking"],
)
def test_deployment_has_the_bits_of_inprocess(
    overrides: list[str], lab: Lab, tmp_path: Path
) -> None:
    """Two real processes learn the weights that one process does; MLflow and result say so."""
    done = lab.fl_app(tmp_path / "there", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    here = in_process(*overrides, output=tmp_path / "here")
    result = json.loads((tmp_path / "there" / "result.json").read_text())
    assert result["weights_sha256"] == here.weights_sha256
    assert result["status"] == "FINISHED"
    assert f"MLflow run: {result['link']}" in done.stdout
    found = lab.recorded(result["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.tags["weights.sha256"] == here.weights_sha256
    assert found.data.tags["runtime"] == found.data.params["runtime.name"] == "deployment"
    assert found.data.params["num_clients"] == "2"
    # All that is measured on the clients' rows is the same; the server has none of its own.
    assert result["metrics"] == {k: v for k, v in here.metrics.items() if "server/" not in k}
    assert "data.sha256" not in found.data.tags
    assert lab.newest_status() == "finished:completed"


def test_failed_run_exits_with_1(lab: Lab, tmp_path: Path) -> None:
    """No node can answer in a tenth of a second: the run fails, with its reason in one line."""
    done = lab.fl_app(tmp_path, "dataset=wine", "runtime.round_timeout=0.1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no answer within 0.1 s" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == lab.recorded(result["run_id"]).info.status == "FAILED"


def test_training_that_diverged_has_failed(lab: Lab, tmp_path: Path) -> None:
    """The server has no test rows; what the clients tell of their own is enough."""
    done = lab.fl_app(tmp_path, "dataset=diabetes", "model.learning_rate=100")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "training diverged; lower model.learning_rate (100)" in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == lab.recorded(result["run_id"]).info.status == "FAILED"
    assert result["error"].startswith("round 1: ")


def test_interrupted_run_is_stopped_at_the_superlink(lab: Lab, tmp_path: Path) -> None:
    """Ctrl-C during the rounds: status 130, the SuperLink has stopped the run, MLflow knows."""
    words = lab.words("experiment=two_lines", "num_server_rounds=500", "seed=130")
    with subprocess.Popen(
        [str(BIN / words[0]), *words[1:], f"output_dir={tmp_path}"],
        cwd=tmp_path,
        env=os.environ | lab.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert any("round   1/500" in line for line in process.stdout)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, errors.strip()) == (130, "fl-app: interrupted")
    assert lab.newest_status() == "finished:stopped"
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "KILLED"
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{lab.home}/fl_app/mlflow.db")
    experiment = client.get_experiment_by_name("two_lines")
    (found,) = client.search_runs([experiment.experiment_id], "tags.seed = '130'")
    assert found.info.status == "KILLED"
    assert "train/mse" in found.data.metrics


def write_tables(folder: Path) -> None:
    """Write a table of two hospitals as one file, and as a file of each hospital's own.

    One of these is cut out of the one file as it is, with the column that names the hospital.
    """
    import pandas as pd

    rng = generator(0, "csv")
    age, dose = rng.normal(50, 10, size=60).round(), rng.integers(1, 9, size=60)
    sick = age + 3 * dose > 63
    table = pd.DataFrame({"age": age, "dose": dose, "state": np.where(sick, "sick", "well")})
    table["hospital"] = np.where(np.arange(60) % 3 == 0, "north", "south")
    table.to_csv(folder / "both.csv", index=False)
    for name, rows in table.groupby("hospital"):
        own = rows if name == "north" else rows.drop(columns="hospital")
        own.to_csv(folder / f"{name}.csv", index=False)


def test_each_supernode_reads_its_own_file(lab: Lab, tmp_path: Path) -> None:
    """Two SuperNodes with a CSV each learn what one process does from both files' rows.

    The two SuperNodes without a file sit out, although a path was typed that they could read.
    """
    write_tables(tmp_path)
    hospitals = enumerate(("north", "south"))
    nodes = [f'partition-id={k} data="{tmp_path}/{name}.csv"' for k, name in hospitals]
    options = ["dataset=tabular", "dataset.target=state", "num_server_rounds=1"]
    options += ["partitioner=natural", "partitioner.key=hospital"]
    path = f"dataset.path={tmp_path}/both.csv"
    with SuperNodes(lab.link, nodes):
        words = [*options, path, "runtime.wait_for_nodes=4", "fraction_evaluate=0"]
        done = lab.fl_app(tmp_path / "there", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("sits out: it failed") == 2
    assert done.stdout.count("node-config data=: the path of this node's own file") == 2
    assert "2/2 clients" in done.stdout
    here = in_process(*options, path, "dataset.test_fraction=0", output=tmp_path / "here")
    result = json.loads((tmp_path / "there" / "result.json").read_text())
    assert result["weights_sha256"] == here.weights_sha256
    train = {k: v for k, v in here.metrics.items() if k.startswith("train/")}
    assert result["metrics"] == train


def test_supernodes_have_the_options_of_a_project(lab: Lab, tmp_path: Path) -> None:
    """The bundle brings them: two processes learn what one does, and MLflow names the model."""
    init(project := tmp_path / "gauges")
    own = [f"--app={project}", "experiment=gauges", "num_server_rounds=1", "fraction_evaluate=0"]
    own.append("dataset.test_fraction=0")
    there = lab.fl_app(tmp_path / "there", *own)
    assert there.returncode == 0, there.stdout + there.stderr
    words = ["fl-app", *own, "num_clients=2", "tracking=none", f"output_dir={tmp_path / 'here'}"]
    here = command(*words, cwd=tmp_path, **lab.env)
    assert here.returncode == 0, here.stderr
    results = [json.loads((tmp_path / x / "result.json").read_text()) for x in ("there", "here")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert lab.recorded(results[0]["run_id"]).data.params["model.name"] == "huber"
