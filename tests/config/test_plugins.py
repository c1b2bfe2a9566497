"""Options of others: a project's folder, an installed distribution, and their code's digest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fl_app import server_app
from fl_app.cli.project import init, options
from fl_app.config import plugins
from fl_app.config.compose import compose_config
from fl_app.config.plugins import Project, project_in
from fl_app.config.run_request import RunRequest
from fl_app.errors import ConfigError, InputError
from fl_app.federation import protocol
from fl_app.federation.agreement import with_same_code
from fl_app.grid import stock
from fl_app.home import home_dir
from fl_app.runtimes import run as run_request
from fl_app.runtimes.bundle import app_dir
from tests.end_to_end.support import BIN, ROOT, free_port, server_context
from tests.kit import fl_kit

TABLES = """
[tool.flwr.app.components]
clientapp = "own.client_app:app"
serverapp = "own.server_app:app"
"""
OPTION = """
from dataclasses import dataclass
from fl_app.config import ModelConfig, opt, register

@register
@dataclass(frozen=True)
class TinyConfig(ModelConfig):
    '''A tiny model. It is small.'''

    name: str = "tiny"
    size: int = opt(3, "How tiny.", ge=1)
"""


def run(*words: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, with this source tree and perhaps one more folder on the path."""
    env = {k: v for k, v in os.environ.items() if k != plugins.VARIABLE}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [path])])}
    env |= {"FL_APP_HOME": str(cwd / "home")}
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)


def python(*words: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python, which has the folder on its path."""
    return run(sys.executable, *words, cwd=cwd, path=path)


def script(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as it is typed, which has not."""
    return run(str(BIN / name), *words, cwd=cwd)


def project(root: Path, table: str = "[tool.fl_app]\n", option: str = OPTION) -> Path:
    """Write a small project."""
    (root / "own").mkdir(parents=True)
    (root / "pyproject.toml").write_text(f'[project]\nname = "own"\n{table}{TABLES}')
    (root / "own" / "__init__.py").touch()
    (root / "own" / "client_app.py").write_text("from own import model\n")
    (root / "own" / "server_app.py").write_text("from own import model\n")
    (root / "own" / "model.py").write_text(option)
    return root


def test_a_folder_without_the_table_is_not_imported(tmp_path: Path) -> None:
    """fl-app in a stranger's folder runs none of his code."""
    folder = project(tmp_path / "app", table="", option="open('was_here', 'w')\n")
    done = python("-m", "fl_app", "--cfg", "job", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / "was_here").exists()
    assert project_in(folder) is None
    with pytest.raises(ConfigError, match="--app"):
        project_in(folder, asked=True)


def test_what_fl_app_starts_imports_nothing_of_a_strangers_folder(tmp_path: Path) -> None:
    """Nor do workers and joblib's jobs, which ``python -m`` starts, if names there are theirs."""
    folder = project(tmp_path / "app", table="", option="1 / 0\n")
    for name in ("joblib", "numpy", "secrets", "flwr", "hydra"):
        (folder / f"{name}.py").write_text("1 / 0\n")
    own = ["dataset=iris", "num_clients=2", "num_server_rounds=1", "tracking=none"]
    jobs = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "runtime.num_workers=2"]
    done = script("fl-app", *jobs, *own, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2/2 clients" in done.stdout


def test_commands_around_a_run_import_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a project whose modules fail, and whose names are MLflow's and Streamlit's, they go on."""
    folder = project(tmp_path / "app", option="1 / 0\n")
    for name in ("mlflow", "uvicorn", "streamlit", "sqlalchemy"):
        (folder / f"{name}.py").write_text("1 / 0\n")
    own = ["dataset=iris", "num_clients=2", "num_server_rounds=1", f"output_dir={tmp_path}"]
    run_request(RunRequest(compose_config([*own, "tracking.figures=false"])))
    (folder / "home").symlink_to(home_dir())
    told = script("fl-kit", "report", "--metric", "server/accuracy", cwd=folder)
    assert told.returncode == 0, told.stderr
    assert "fedavg" in told.stdout
    started: list[tuple[list[str], str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: started.append((words, os.getcwd())))
    monkeypatch.setattr(os, "execve", lambda _, words, env: started.append((words, os.getcwd())))
    for command in ("ui", "dashboard"):
        monkeypatch.chdir(folder)
        assert fl_kit(monkeypatch, command, "--port", str(free_port())) == 0
    assert not {"own", "own.model"} & set(sys.modules)
    (ui, where), (page, _) = started
    assert ui[1:4] == ["-m", "mlflow", "server"]
    assert where == str(home_dir())
    assert page[1:4] == ["-P", "-m", "streamlit"]


def test_an_option_needs_a_class_alone(tmp_path: Path) -> None:
    """Without a YAML file its keys and their values are the class's; its limits are checked."""
    folder = project(tmp_path / "app")
    own = ("-m", "fl_app", "--app", str(folder), "--cfg", "job", "model=tiny", "model.size=5")
    done = python(*own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "  size: 5\n" in done.stdout
    bad = python("-m", "fl_app", "model=tiny", "model.size=0", cwd=folder)
    assert (bad.returncode, bad.stderr) == (
        2,
        "fl-app: model.size=0: expected an integer >= 1\n",
    )


def test_a_module_that_fails_is_told_by_file_and_line(tmp_path: Path) -> None:
    """Exit status 2, one line."""
    folder = project(tmp_path / "app", option="\n\n1 / 0\n")
    done = python("-m", "fl_app", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{folder}/own/model.py:3: ZeroDivisionError" in done.stderr


def test_a_distribution_is_imported_when_it_is_named(tmp_path: Path) -> None:
    """It is told from whom; where nobody names an option of others, nothing is imported."""
    (site := tmp_path / "site").mkdir()
    (site / "tinies.py").write_text("open('was_here', 'w')\n" + OPTION)
    (info := site / "tinies-1.0.dist-info").mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fl_app.options]\ntinies = tinies\n")
    plain = python("-m", "fl_app", "--cfg", "job", "model=mlp", cwd=tmp_path, path=str(site))
    assert plain.returncode == 0, plain.stderr
    assert not (tmp_path / "was_here").exists()
    own = python("-m", "fl_app", "--cfg", "job", "model=tiny", cwd=tmp_path, path=str(site))
    assert "  size: 3\n" in own.stdout, own.stderr
    told = python("-m", "fl_app.cli.kit", "options", "model", cwd=tmp_path, path=str(site))
    assert "model=tiny     A tiny model. [tinies]\n" in told.stdout


def test_a_changed_helper_changes_the_code_and_a_changed_tracker_does_not(tmp_path: Path) -> None:
    """The digest covers the module that registers an option, and what beside it that imports."""
    folder = project(tmp_path / "app", option="from . import helper\n" + OPTION)
    (folder / "own" / "helper.py").write_text("def later():\n    from own.far import x\n")
    script = (
        "from fl_app.config.plugins import *\n"
        f"open_project(project_in({str(folder)!r}))\n"
        "print(digest_of({'model': 'tiny'}), digest_of({'model': 'mlp'}) == '')"
    )

    def digest() -> str:
        done = python("-c", script, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(" True\n")
        return done.stdout

    (folder / "own" / "far.py").write_text("x = 1\n")
    (folder / "own" / "tracker.py").write_text("x = 1\n")
    first = digest()
    (folder / "own" / "tracker.py").write_text("x = 2\n")
    assert digest() == first
    (folder / "own" / "far.py").write_text("x = 2\n")
    assert digest() != first


def test_a_node_without_an_option_sits_out(caplog: pytest.LogCaptureFixture) -> None:
    """It says which one, and the server what to do."""
    names = {"dataset": "iris", "partitioner": "iid", "model": "tiny", "strategy": "fedavg"}
    code = protocol.run_digest(json.dumps({g: {"name": n} for g, n in names.items()}))
    assert code == "lacks model=tiny"
    known = protocol.run_digest(
        json.dumps({g: {"name": n} for g, n in (names | {"model": "mlp"}).items()})
    )
    assert known == protocol.code_digest()
    out: dict[str, str] = {}
    told = SimpleNamespace(code=code, partition=3, num_partitions=4, num_examples=9)
    assert with_same_code(cast(Any, [(1, told)]), known, out) == []
    assert [*out.values()] == [
        "it lacks model=tiny, an option of others: start it where the package with it is installed"
    ]


def test_the_bundle_is_code_and_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data, no tests, no conf/local; the keys of the run-config are there."""
    init(root := tmp_path / "gauges")
    for junk in ("conf/local/default.yaml", "data.csv", "outputs/x.yaml", "gauges/data.parquet"):
        (root / junk).parent.mkdir(parents=True, exist_ok=True)
        (root / junk).touch()
    monkeypatch.setattr(plugins, "_project", project_in(root))
    with app_dir() as folder:
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "pyproject.toml",
        *(f"gauges/{x}.py" for x in ("__init__", "client_app", "dataset", "model", "server_app")),
        "conf/dataset/readings.yaml",
        "conf/experiment/gauges.yaml",
        "conf/model/huber.yaml",
    }


def test_init_writes_into_a_new_folder_only(tmp_path: Path) -> None:
    """Nothing is overwritten, and no module's name is taken."""
    with pytest.raises(InputError, match="new or empty"):
        init(tmp_path.parent)
    with pytest.raises(InputError, match="a new package"):
        init(tmp_path / "json")


def test_options_say_from_whom() -> None:
    """One line each."""
    lines = [*options("strategy")]
    assert any(x.startswith("strategy=fedmedian ") for x in lines)
    assert all(x.endswith("[fl_app]") for x in lines if "strategy=fed" in x)
    with pytest.raises(InputError, match="GROUP=modle: one of dataset"):
        next(options("modle"))


def test_a_project_runs_with_workers(tmp_path: Path) -> None:
    """What init writes runs, in worker processes too."""
    init(root := tmp_path / "gauges")
    own = ["experiment=gauges", "num_server_rounds=1", "runtime.num_workers=2", "tracking=none"]
    done = python("-m", "fl_app", *own, f"output_dir={tmp_path}", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "FINISHED"


def test_a_project_runs_in_jobs_of_joblib(tmp_path: Path) -> None:
    """Each is a process that knows nothing of the project, one option of which has no file."""
    init(root := tmp_path / "gauges")
    (root / "conf" / "model" / "huber.yaml").unlink()
    jobs = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "dataset=readings"]
    own = ["num_clients=2", "num_server_rounds=1", "tracking=none", "model.learning_rate=0.1"]
    done = script("fl-app", *jobs, *own, "model=huber,linear", cwd=root)
    assert (done.returncode, done.stdout.count("2/2 clients")) == (0, 2), done.stderr
    assert {"model=huber", "model=linear"} <= set(done.stdout.split())


def test_a_server_app_opens_a_project_while_flower_loads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower's simulation loads the ClientApp in another thread, and takes half a module as it is.

    ``load_app`` looks into ``sys.modules``, where a module is before it has run.
    """

    def opens(project: Project | None) -> None:
        assert stock.loading.locked()
        raise LookupError

    monkeypatch.setattr(server_app, "open_project", opens)
    with pytest.raises(LookupError):
        server_app.main(cast(Any, object()), server_context({}))
    assert not stock.loading.locked()


def test_a_project_is_read_without_importing_it(tmp_path: Path) -> None:
    """Its name and its two modules."""
    folder = project(tmp_path / "app")
    assert project_in(folder) == Project(folder, "own", ("own.client_app", "own.server_app"))
