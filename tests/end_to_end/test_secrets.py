"""A password in the tracking URI stands nowhere in what a run writes, prints or hands on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fl_app.cli import kit
from fl_app.report.reading import _summary
from fl_app.runtimes.bundle import app_dir
from fl_app.tracking import replay
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JOURNAL, JournalReader
from fl_app.tracking.mlflow.uri import run_url
from tests.servers import mlflow_server

from .support import ROOT, command, free_port

SECRET = "sekret-word"
SMALL = ("dataset=digits", "num_clients=2", "num_server_rounds=1", "tracking.figures=false")


def found(folder: Path, *texts: str) -> list[str]:
    """Return the files below a folder, and the texts, in which the password stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    held = [str(path) for path in files if SECRET.encode() in path.read_bytes()]
    for journal in (JournalReader(path.parent) for path in files if path.name == JOURNAL):
        rows = (
            row
            for table in ("facts", "notes", "events", "rounds")
            for row in _texts(journal, table)
        )
        held += [str(journal.folder) for text in rows if SECRET in text]
    return held + [text for text in texts if SECRET in text]


def _texts(journal: JournalReader, table: str) -> list[str]:
    """Return what the rows of a journal's table say."""
    rows = journal._rows(f"SELECT content FROM {table}")
    assert rows or table != "facts"
    return [zlib.decompress(content).decode() for (content,) in rows]


def run(tmp_path: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return command("fl-app", *words, cwd=tmp_path, **env)


@pytest.fixture
def nobody() -> str:
    """Return a server's URI that has a password and that nobody listens at."""
    return f"http://me:{SECRET}@127.0.0.1:{free_port()}"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(SMALL, id="run"),
        pytest.param(("-m", *SMALL, "seed=0,1"), id="sweep", marks=pytest.mark.slow),
        pytest.param((*SMALL, "runtime=simulation"), id="simulation", marks=pytest.mark.slow),
        pytest.param((*SMALL, "num_clients=0"), id="mistake"),
    ],
)
def test_a_server_that_is_down(words: tuple[str, ...], tmp_path: Path, nobody: str) -> None:
    """What waits here, the warnings with MLflow's reason, Hydra's folders, a mistake."""
    done = run(tmp_path, *words, f"tracking.uri={nobody}")
    assert done.returncode == (2 if "num_clients=0" in words else 0), done.stderr
    assert found(tmp_path, done.stdout, done.stderr) == []
    kept = [path for path in tmp_path.rglob("*.yaml") if "me:***@" in path.read_text()]
    assert ("num_clients=0" in words) or len(kept) >= 3  # .hydra holds it, masked


@pytest.mark.parametrize("sign", [" ", "'", "/", "#", "?"])
def test_a_password_that_no_uri_holds(sign: str, tmp_path: Path) -> None:
    """What has to be percent-encoded is refused, and not repeated by anybody."""
    word = f'tracking.uri="http://me:{SECRET}{sign}{SECRET}@127.0.0.1:1"'
    done = run(tmp_path, *SMALL, word)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert found(tmp_path, done.stdout, done.stderr) == []


@pytest.mark.parametrize(
    "word",
    [
        f"tracking.uri=me:{SECRET}@h",
        f"tracking.uri={SECRET}@h",
        f"tracking.uri=databricks://{SECRET}@h",
        f"tracking={{name: mlflow, uri: me:{SECRET}@h}}",
        f'tracking.uri="me:{SECRET} {SECRET}@h"',
    ],
)
def test_a_password_in_what_is_no_tracking_uri(word: str, tmp_path: Path) -> None:
    """A scheme that was forgotten, or that is none of ours: refused, without its secret."""
    done = run(tmp_path, *SMALL[:3], word)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "must be sqlite:" in done.stderr or "a URI holds no blanks" in done.stderr
    assert found(tmp_path, done.stdout, done.stderr) == []


def test_a_password_in_a_mapping(tmp_path: Path, nobody: str) -> None:
    """What closes the mapping is not taken for the URI's."""
    mapping = f"tracking={{name: mlflow, figures: false, uri: {nobody}}}"
    done = run(tmp_path, *SMALL[:3], mapping)
    assert done.returncode == 0, done.stderr
    assert found(tmp_path, done.stdout, done.stderr) == []


@pytest.mark.slow
def test_a_password_in_a_yaml_file(tmp_path: Path, nobody: str) -> None:
    """A site's own file is the site's; the copies that Hydra and the record make are masked."""
    site = tmp_path / "site" / "tracking"
    site.mkdir(parents=True)
    (site / "ours.yaml").write_text(f"name: mlflow\nuri: {nobody}\nfigures: false\n")
    words = [f"--config-dir={site.parent}", "-m", "tracking=ours", *SMALL[:3], "seed=0,1"]
    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert found(tmp_path, done.stdout, done.stderr) == [str(site / "ours.yaml")]


@pytest.mark.slow
def test_a_password_in_the_environment(tmp_path: Path, nobody: str) -> None:
    """MLFLOW_TRACKING_URI is no less a secret than what was typed."""
    done = run(tmp_path, *SMALL, MLFLOW_TRACKING_URI=nobody)
    assert done.returncode == 0, done.stderr
    assert found(tmp_path, done.stdout, done.stderr) == []


def test_a_report_of_a_server_that_is_down(tmp_path: Path, nobody: str) -> None:
    """The reason that MLflow gives repeats the URI."""
    done = command("fl-kit", "report", "--uri", nobody, cwd=tmp_path)
    assert done.returncode == 2
    assert "me:***@127.0.0.1" in done.stderr
    assert found(tmp_path, done.stdout, done.stderr) == []


def test_the_run_config_of_flwr_run_holds_no_password(tmp_path: Path) -> None:
    """Flower hands it to every node and keeps it: refused before any work, without its value."""
    code = (
        "from fl_app.config.run_request import read_launch\nimport sys\n"
        "for key in ('tracking-uri', 'overrides'):\n"
        "    try: read_launch({key: 'tracking.uri=' * (key == 'overrides') + sys.argv[1]}, 2)\n"
        "    except Exception as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, f"http://me:{SECRET}@h"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    first, second = done.stdout.splitlines()
    assert first.startswith("tracking-uri=http://me:***@h: no password: Flower hands it to every")
    assert second.startswith("overrides=tracking.uri=http://me:***@h: no password")


def test_a_bundle_holds_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to every SuperNode, with the config folder and whatever a site has put into it."""
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    site = conf / "tracking" / "mlflow.yaml"
    site.write_text(f"name: mlflow\nuri: http://me:{SECRET}@h\nfigures: true\n")
    monkeypatch.setattr("fl_app.runtimes.bundle.config_dir", lambda: conf)
    with app_dir() as folder:
        assert found(folder) == []
        assert "uri: http://me:***@h\n" in (folder / "conf/tracking/mlflow.yaml").read_text()
        assert (folder / "conf/config.yaml").read_bytes() == (conf / "config.yaml").read_bytes()


def test_no_process_of_ours_has_the_store_in_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of a machine sees them: ``fl-kit ui`` tells MLflow by its own variable."""
    called: list[list[str]] = []
    monkeypatch.setattr(kit.os, "execv", lambda program, words: called.append(words))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "")
    store = f"sqlite:///{tmp_path}/{SECRET}.db"
    kit.ui(free_port(), store)
    assert len(called) == 1
    assert not any(SECRET in word for word in called[0])
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == store


def test_records_of_old_are_masked_in_a_report() -> None:
    """A run that an older version recorded has the URI in clear in its params."""
    uri = f"http://me:{SECRET}@h"
    data = SimpleNamespace(tags={"error": uri}, params={"tracking.uri": uri}, metrics={})
    info = SimpleNamespace(run_id="a", status="FAILED", run_name="", start_time=0)
    assert SECRET not in repr(_summary(SimpleNamespace(data=data, info=info), {}))


def test_the_link_to_a_run_has_no_user() -> None:
    """A browser would log in with what stands there."""
    assert run_url(f"http://me:{SECRET}@h:1/x", "0", "a").startswith("http://h:1/x/#/experiments")
    assert run_url(f"https://{SECRET}@h", "0", "a").startswith("https://h/#/experiments")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run MLflow's server; yield its HOST:PORT. It takes any password."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder) as port:
        yield f"127.0.0.1:{port}"
        # What the server has of all runs: params, artifacts, its own log.
        assert found(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["inprocess", "simulation"])
def test_a_finished_run(runtime: str, server: str, tmp_path: Path) -> None:
    """Params, artifacts, journal, output, ``FLWR_HOME``, and a report with its files."""
    uri = f"http://me:{SECRET}@{server}"
    env = {} if runtime == "inprocess" else {"MLFLOW_TRACKING_URI": uri}
    words = [f"tracking.uri={uri}"] * (runtime == "inprocess")
    done = run(tmp_path, "-m", *SMALL, f"runtime={runtime}", "seed=0,1", *words, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    report = ["fl-kit", "report", "--uri", uri, "--mlflow-experiment", "digits", "--out", "r"]
    compared = command(*report, "--baseline", "strategy=fedavg", cwd=tmp_path)
    assert found(tmp_path, done.stdout, done.stderr, compared.stdout, compared.stderr) == []
    assert "View run" not in done.stdout
    assert Journal.pending(tmp_path / "fl_app_home") == []


@pytest.mark.slow
def test_what_waited_is_sent_by_whoever_knows_the_password(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal of a run that its server missed has no password, and goes when one is known."""
    uri = f"http://me:{SECRET}@{server}"
    home = tmp_path / "fl_app_home"
    code = (
        "import os\nfrom fl_app.tracking import MlflowTracker\n"
        "from fl_app.tracking.records import RunStart, RoundRecord\nimport sys\n"
        "tracker = MlflowTracker(sys.argv[1], 'waits')\n"
        "tracker._store.connect = tracker._store.create_run = None\n"
        "tracker.start(RunStart('waits'))\ntracker.record(RoundRecord(0, {}))\nos._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, uri], check=False, capture_output=True)
    assert done.returncode == 9, done.stderr
    assert found(home) == []
    (name,) = (path.name for path in Journal.pending(home))
    waiting = replay(home).waiting
    assert list(waiting) == [name]
    assert "password, which is not kept: give it, or set MLFLOW_TRACKING_URI" in waiting[name]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert replay(home).sent == [name]
