"""``fl-app`` as a user meets it: exit statuses, one line for a mistake, runs without a tracker."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JournalReader

from .support import BIN, command, free_port


def fl_app(tmp_path: Path, *words: str, **env: str) -> tuple[int, str, str]:
    done = command("fl-app", *words, cwd=tmp_path, FL_APP_HOME=str(tmp_path / "home"), **env)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["strategy=nope"], "strategy=nope: one of "),
        (["num_clients=2000"], "num_clients=2000: at most one client a training row"),
        (["tracking.uri=nonsense://x"], "tracking.uri=nonsense://x: "),
        (
            ["tracking.uri=sqlite:////proc/no/where.db"],
            "tracking.uri=sqlite:////proc/no/where.db: ",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(words: list[str], message: str, tmp_path: Path) -> None:
    """A mistake gives one line on stderr, exit status 2, and nothing was started."""
    status, out, err = fl_app(tmp_path, *words)
    assert status == 2
    assert out == ""
    assert err.startswith(f"fl-app: {message}")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "home" / "mlflow.db").exists()


def test_help_and_config_need_no_run(tmp_path: Path) -> None:
    """``--help`` names the groups' options and ``--cfg job`` shows the composed config."""
    status, out, _ = fl_app(tmp_path, "--help")
    assert status == 0
    assert all(line.startswith("  fl-app ") for line in out.splitlines()[4:7])
    assert "strategy: bulyan, fedadagrad" in out
    status, out, _ = fl_app(tmp_path, "--cfg", "job", "strategy=fedadam")
    assert status == 0
    assert "eta: 0.1" in out


@pytest.mark.parametrize("name", ["fl-app", "fl-kit"])
def test_a_reader_may_leave(name: str, tmp_path: Path) -> None:
    """Whoever reads a part only (``| head``) gets no traceback: exit status 1, nothing said."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [str(BIN / name), "--help"], stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["--cfg", "job", "model=mlp"]])
def test_start_up_imports_little(words: list[str], tmp_path: Path) -> None:
    """To show help or a config, nothing heavy is imported, and nothing that sweeps alone need."""
    code = (
        "import sys; from fl_app.cli.run import main\n"
        "try: main()\n"
        "finally: print({'mlflow', 'sklearn', 'ray', 'flwr', 'numpy', 'fl_app.cli.sweep', "
        "'fl_app.cli.jobs', 'fl_app.config.sweep'} & {*sys.modules}, "
        "'hydra' in sys.modules, file=sys.stderr)"
    )
    done = command("python", "-c", code, *words, cwd=tmp_path, FL_APP_HOME=str(tmp_path / "home"))
    assert done.stderr.splitlines()[-1] == "set() True", done.stderr


def test_the_checks_import_neither_flower_nor_scikit_learn(tmp_path: Path) -> None:
    """A simulation is checked while Flower's processes start, which need the processors."""
    code = (
        "import sys; from fl_app.config.run_request import RunRequest\n"
        "from fl_app.runtimes.checks import *\n"
        "from fl_app.config.serialization import from_dict\n"
        "check_before(RunRequest(with_whole_uri(RunRequest(from_dict({}))).config))\n"
        "print({'mlflow', 'sklearn', 'ray', 'flwr', 'pandas'} & {*sys.modules})"
    )
    done = command("python", "-c", code, cwd=tmp_path, FL_APP_HOME=str(tmp_path / "home"))
    assert done.stdout == "set()\n", done.stderr


def test_second_job_of_a_sweep_imports_nothing(tmp_path: Path) -> None:
    """All modules of a job are there when the second one of the same kind starts."""
    code = (
        "import sys\n"
        "from fl_app import __main__, runtimes\n"
        "counts, run = [], runtimes.run\n"
        "def counted(launch):\n"
        "    before = set(sys.modules)\n"
        "    try: return run(launch)\n"
        "    finally: counts.append(len([name for name in set(sys.modules) - before\n"
        "        if not name.startswith('code_model_')]))\n"  # MLflow's name for a model's code
        "runtimes.run = counted\n"
        "try: __main__.main()\n"
        "finally: print(*counts, file=sys.stderr)"
    )
    words = ["-m", "seed=0,1", "num_clients=3", "num_server_rounds=2"]
    done = command("python", "-c", code, *words, cwd=tmp_path, FL_APP_HOME=str(tmp_path / "home"))
    first, second = map(int, done.stderr.split()[-2:])
    assert first > 100, done.stderr
    assert second == 0


def test_failed_run_exits_with_1(tmp_path: Path) -> None:
    """A run that cannot go on ends with its reason and exit status 1."""
    status, _, err = fl_app(tmp_path, "tracking=none", "num_clients=3", "min_rows=100000")
    assert status == 1
    assert "min_rows=100000" in err
    assert "Traceback" not in err


def test_server_that_is_down_costs_a_warning_only(tmp_path: Path) -> None:
    """With a dead tracking server the run trains to its end and keeps its record."""
    uri = f"http://127.0.0.1:{free_port()}"
    words = ["num_clients=3", "num_server_rounds=2", f"tracking.uri={uri}", "output_dir=out"]
    status, out, err = fl_app(tmp_path, *words)
    assert status == 0, out + err
    assert uri in out + err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "FINISHED"
    (folder,) = Journal.pending(tmp_path / "home")
    assert JournalReader(folder).kept("weights") == [0, 1, 2]


def test_multirun_gives_flat_runs_with_a_sweep_id(tmp_path: Path) -> None:
    """``-m`` over strategies and seeds: each job one FINISHED run, with one ``sweep.id``."""
    from mlflow import MlflowClient

    words = ["-m", "strategy=fedavg,fedadam", "seed=0,1", "partitioner=dirichlet"]
    words += ["num_clients=3", "num_server_rounds=2", "tracking.figures=false"]
    status, out, err = fl_app(tmp_path, *words)
    assert status == 0, out + err
    client = MlflowClient(f"sqlite:///{tmp_path}/home/mlflow.db")
    experiment = client.get_experiment_by_name("digits")
    found = client.search_runs([experiment.experiment_id])
    runs = [r for r in found if "fl_app.report" not in r.data.tags]
    assert len(found) == len(runs) + 1
    assert {(r.data.tags["strategy"], r.data.tags["seed"]) for r in runs} == {
        (strategy, seed) for strategy in ("fedavg", "fedadam") for seed in "01"
    }
    assert len(runs) == 4
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert len({r.data.tags["sweep.id"] for r in runs}) == 1
