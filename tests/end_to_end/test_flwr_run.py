"""Stock ``flwr run`` and ``runtime=simulation`` with the real engine, read back from MLflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fl_app.home import Process
from fl_app.tracking.journal_reader import JournalReader

from .support import BIN, ROOT, command, end_processes, free_port, processes_with

pytestmark = pytest.mark.slow


@dataclass
class Stock:
    """A user's shell with a Flower home and a SuperLink daemon of its own."""

    home: Path
    cwd: Path
    env: dict[str, str]

    def flwr_run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return command("flwr", "run", str(ROOT), *words, "--stream", cwd=self.cwd, **self.env)

    def last_status(self) -> dict[str, Any]:
        shown = command("flwr", "ls", "--format", "json", cwd=self.cwd, **self.env)
        runs: list[dict[str, Any]] = json.loads(shown.stdout)["runs"]
        return runs[0]

    def newest_run(self) -> Any:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.home}/fl_app/mlflow.db")
        experiments = [e.experiment_id for e in client.search_experiments()]
        return client.search_runs(experiments, order_by=["attributes.start_time DESC"])[0]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    home = tmp_path_factory.mktemp("stock")
    # The daemon starts in a folder that holds another fl_app: its clients must not take that one.
    cwd = home / "elsewhere"
    (cwd / "fl_app").mkdir(parents=True)
    (cwd / "fl_app" / "__init__.py").write_text("raise RuntimeError('the wrong fl_app')\n")
    env = {
        "FLWR_HOME": str(home / "flwr"),
        "FL_APP_HOME": str(home / "fl_app"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    try:
        yield Stock(home, cwd, env)
    finally:
        end_processes("FLWR_HOME", env["FLWR_HOME"])


def test_stock_flwr_run_trains_and_records(stock: Stock) -> None:
    """Plain ``flwr run`` with two nodes: our lines in its log, a FINISHED run in MLflow."""
    done = stock.flwr_run("-c", 'dataset="diabetes" num-server-rounds=3')
    lines = [line for line in done.stdout.splitlines() if line.startswith("fl_app | ")]
    assert any("round 3/3 | server mse" in line for line in lines), done.stdout + done.stderr
    assert any("MLflow run: http://127.0.0.1:5000/#/" in line for line in lines)
    run = stock.newest_run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["runtime"] == run.data.params["runtime.name"] == "simulation"
    assert run.data.params["num_clients"] == "2"
    assert run.data.params["dataset.name"] == "diabetes"
    assert stock.last_status()["status"] == "finished:completed"


def test_stock_flwr_run_shows_the_lesson(stock: Stock) -> None:
    """``experiment="two_lines"`` prints each client's share and their sum into Flower's log."""
    done = stock.flwr_run("-c", 'experiment="two_lines"')
    assert "W(5) = Σ n_k/N · W_k" in done.stdout, done.stdout + done.stderr
    metrics = stock.newest_run().data.metrics
    assert metrics["model/coef.x"] == pytest.approx(1.5, abs=0.02)
    assert metrics["model/intercept"] == pytest.approx(1.0, abs=0.02)


def test_no_nodes_end_the_run_with_a_clear_message(stock: Stock) -> None:
    """``num-supernodes=0`` fails and says what to do, rather than waiting for ever."""
    done = stock.flwr_run("--federation-config", "num-supernodes=0")
    assert "num-supernodes=0: no SuperNode" in done.stdout, done.stdout + done.stderr
    assert stock.last_status()["status"] == "finished:failed"


def test_bad_override_ends_the_run_with_its_line(stock: Stock) -> None:
    """A wrong option under ``flwr run`` fails the run with the line that ``fl-app`` would print."""
    done = stock.flwr_run("-c", 'strategy="nope"')
    assert "strategy=nope: one of " in done.stdout, done.stdout + done.stderr
    assert stock.last_status()["status"] == "finished:failed"


OVERRIDES = ("num_clients=4", "num_server_rounds=2", "fraction_train=0.5")
needs_xgboost = pytest.mark.skipif(find_spec("xgboost") is None, reason="the extra xgboost")


@pytest.mark.parametrize(
    "strategy", ["fedadam", pytest.param("fedxgbbagging", marks=needs_xgboost)]
)
def test_simulation_has_the_bits_of_inprocess(strategy: str, tmp_path: Path) -> None:
    """The same config gives equal final weights in Ray's actors and in this process."""
    results = {}
    for runtime in ("inprocess", "simulation"):
        output = tmp_path / runtime
        done = command(
            "fl-app",
            f"runtime={runtime}",
            *OVERRIDES,
            f"strategy={strategy}",
            f"output_dir={output}",
            cwd=tmp_path,
            FL_APP_HOME=str(tmp_path / "home"),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results[runtime] = json.loads((output / "result.json").read_text())
    assert results["inprocess"]["weights_sha256"] == results["simulation"]["weights_sha256"]
    assert results["inprocess"]["metrics"] == results["simulation"]["metrics"]


def test_failed_simulation_exits_with_1(tmp_path: Path) -> None:
    """A run that Flower calls failed is one of ours with exit status 1 and its reason."""
    done = command(
        "fl-app",
        "runtime=simulation",
        "num_clients=2",
        # No client has that many rows, so nobody tells moments and the handshake fails.
        "min_rows=100000",
        f"output_dir={tmp_path}/out",
        cwd=tmp_path,
        FL_APP_HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "min_rows=100000" in done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "FAILED"


def _clients_that_reply(folder: Path) -> set[int]:
    """Watch a run until both clients were seen to reply."""
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < deadline:
        events = [event for event, _ in JournalReader(folder).events()]
        seen |= {event["client"] for event in events if event["event"] == "reply"}
        time.sleep(0.05)
    return seen


def test_interrupted_simulation_leaves_nothing_running(tmp_path: Path) -> None:
    """Ctrl-C during the rounds: status 130, no process is left; all records say KILLED."""
    from mlflow import MlflowClient

    marker = str(tmp_path / "home")
    words = ["runtime=simulation", "num_clients=2", "num_server_rounds=500"]
    process = subprocess.Popen(
        [str(BIN / "fl-app"), *words, f"output_dir={tmp_path}/out"],
        cwd=tmp_path,
        env=os.environ | {"FL_APP_HOME": marker},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any("round   1/500" in line for line in process.stdout)
        (folder,) = (tmp_path / "home" / "runs").iterdir()
        assert _clients_that_reply(folder) == {0, 1}, "each is seen when it replies"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
        assert process.returncode == 130
        assert processes_with("FL_APP_HOME", marker) == []
        client = MlflowClient(f"sqlite:///{marker}/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
        assert run.info.status == "KILLED"
        assert run.data.metrics["server/accuracy"] > 0
        result = json.loads((tmp_path / "out" / "result.json").read_text())
        assert (result["status"], result["error"]) == ("KILLED", "interrupted")
        journal = JournalReader(folder)
        assert sum(1 for _ in journal.rounds()) > 1
        assert journal.start["run"]["output_dir"] == f"{tmp_path}/out"
        assert Process(**journal.start["process"]).is_gone()
        waits = [e for e, _ in journal.events() if e["event"] == "nodes"]
        assert (waits[-1]["online"], waits[-1]["wanted"]) == (2, 2)
    finally:
        end_processes("FL_APP_HOME", marker)
