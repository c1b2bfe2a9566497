"""The wheel in an empty environment, and there what ``fl-kit init`` makes: each of its commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_app.tracking.console import RESULT_MARK, own_text
from tests.wheel import build_wheel

from .support import ROOT, end_processes, free_port

pytestmark = pytest.mark.slow

SMALL = ("num_clients=2", "num_server_rounds=1")


@dataclass
class Made:
    """A user's shell, with an environment that only the wheel is in, and a project."""

    home: Path
    wheel: Path

    @property
    def bin(self) -> Path:
        return self.home / "venv" / "bin"

    @property
    def project(self) -> Path:
        return self.home / "gauges"

    def __call__(
        self, *words: str, cwd: Path | None = None, **own: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, in the project; nothing of this source tree is on its path."""
        left_out = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
        env = {name: value for name, value in os.environ.items() if name not in left_out}
        env |= {"PATH": f"{self.bin}{os.pathsep}{env['PATH']}"}
        env |= {"FL_APP_HOME": str(self.home / "fl_app"), "FLWR_HOME": str(self.home / "flwr")}
        program = [str(self.bin / words[0]), *words[1:]]
        return subprocess.run(
            program, cwd=cwd or self.project, env=env | own, capture_output=True, text=True
        )

    def fl_app(self, output: Path, *overrides: str) -> dict[str, Any]:
        """Run an experiment; return its result."""
        done = self("fl-app", *overrides, *SMALL, f"output_dir={output}")
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads((output / "result.json").read_text())
        return result

    def flwr_run(self, project: Path, overrides: str, **env: str) -> tuple[dict[str, Any], str]:
        """Run a project by stock Flower, with a SuperLink of its own; return result and log."""
        own = {"FLWR_HOME": str(project.parent / "flwr"), **env}
        own["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] = str(free_port())
        own["FLWR_LOCAL_CONTROL_API_PORT"] = str(free_port())
        words = ("flwr", "run", ".", "--stream", "-c", f'overrides="{overrides} {SMALL[1]}"')
        try:
            done = self(*words, cwd=project, **own)
        finally:
            end_processes("FLWR_HOME", own["FLWR_HOME"])
        lines = [own_text(line) or "" for line in done.stdout.splitlines()]
        told = [x.removeprefix(RESULT_MARK) for x in lines if x.startswith(RESULT_MARK)]
        assert len(told) == 1, done.stdout + done.stderr
        return json.loads(told[0]), done.stdout

    def recorded(self, run_id: str) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.home}/fl_app/mlflow.db").get_run(run_id).data


def install(environment: Path, packages: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Install packages with the pinned versions of whatever they need."""
    python = ["--python", str(environment / "bin" / "python")]
    words = ["uv", "pip", "install", "--quiet", *python, "-c", str(ROOT / "constraints.txt")]
    return subprocess.run([sys.executable, "-m", *words, *packages], capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    home = tmp_path_factory.mktemp("made")
    made = Made(home, build_wheel(home / "dist"))
    venv = [sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable]
    subprocess.run([*venv, str(home / "venv")], check=True)
    if (first := install(home / "venv", ["pytest"])).returncode:
        pytest.skip(f"nothing can be installed here: {first.stderr.strip().splitlines()[-1]}")
    done = install(home / "venv", [f"{made.wheel}[sweep]"])
    assert done.returncode == 0, done.stderr
    # Flower and Ray wait a fixed time for what they start, and uv compiles nothing.
    site = next((home / "venv" / "lib").glob("python*/site-packages"))
    skipped = ("-x", "rllib|tune|serve|train|data")
    assert (
        made("python", "-m", "compileall", "-q", "flwr", "ray", *skipped, cwd=site).returncode == 0
    )
    told = made("fl-kit", "init", "gauges", cwd=home)
    assert told.returncode == 0, told.stderr
    return made


def test_its_own_test_passes(made: Made) -> None:
    """As it is written."""
    done = made("python", "-m", "pytest")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_its_model_learns_the_same_here_in_ray_and_under_flwr_run(
    made: Made, tmp_path: Path
) -> None:
    """To the last bit, and MLflow says which model it was.

    The SuperLink of ``flwr run`` takes what is installed.
    """
    here = made.fl_app(tmp_path / "here", "dataset=readings", "model=huber")
    ray = made.fl_app(tmp_path / "ray", "experiment=gauges", "runtime=simulation")
    (project := tmp_path / "stock" / "gauges").parent.mkdir()
    shutil.copytree(made.project, project)
    off = {"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
    stock, log = made.flwr_run(project, "experiment=gauges", **off)
    assert "Installed: [" not in log
    for result in (here, ray, stock):
        assert result["status"] == "FINISHED"
        assert result["weights_sha256"] == here["weights_sha256"]
        assert made.recorded(result["run_id"]).params["model.name"] == "huber"


def test_flower_installs_the_wheel_by_its_address(made: Made, tmp_path: Path) -> None:
    """Into an environment of the run, where a SuperLink installs what the project names."""
    shutil.copytree(made.project, project := tmp_path / "gauges")
    file = project / "pyproject.toml"
    own = f'dependencies = ["fl-app @ {made.wheel.as_uri()}", '
    file.write_text(file.read_text().replace("dependencies = [", own))
    result, log = made.flwr_run(project, "experiment=gauges tracking=none")
    assert f"fl-app==0.1.0 (from {made.wheel.as_uri()})" in log
    assert "fedavg s0 iid K2 huber" in log
    assert result["status"] == "FINISHED"


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_its_models_are_swept(launcher: str, made: Made, tmp_path: Path) -> None:
    """Two jobs, one with its own model, in one process and in one each."""
    own = ("dataset=readings", "model=huber,linear", "tracking=none", *SMALL)
    jobs = (f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}")
    done = made("fl-app", "-m", *jobs, *own)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads((tmp_path / job / "result.json").read_text()) for job in ("0", "1")]
    assert [result["status"] for result in results] == ["FINISHED"] * 2
    assert results[0]["weights_sha256"] != results[1]["weights_sha256"]
