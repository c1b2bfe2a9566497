"""PostgreSQL as MLflow's store: directly, behind MLflow's server, and away for a while."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from fl_app.errors import ConfigError
from fl_app.tracking import (
    LoggedModel,
    MlflowTracker,
    RoundRecord,
    RunEnd,
    RunStart,
    check_uri,
)
from fl_app.tracking.mlflow.upload import Pace
from tests.servers import POSTGRES, PostgresServer, mlflow_server, postgres_server, sent, until

from .support import BIN
from .test_secrets import SECRET, found

WORDS = ["dataset=wine", "num_clients=2", "num_server_rounds=2", "tracking.figures=false"]
needs_postgres = [
    pytest.mark.slow,
    pytest.mark.skipif(
        POSTGRES is None, reason="PostgreSQL is not installed (apt-get install postgresql)"
    ),
    pytest.mark.skipif(
        find_spec("psycopg") is None, reason="psycopg is not installed (make test-slow does)"
    ),
]


def slow(test: object) -> object:
    """Mark a test that needs PostgreSQL."""
    for mark in needs_postgres:
        test = mark(test)
    return test


def test_a_missing_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the extra, and not the password."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError) as raised:
        check_uri(f"postgresql://me:{SECRET}@h/db")
    said = str(raised.value)
    assert said.startswith("tracking.uri=postgresql://me:***@h/db: its driver is missing")
    assert "pip install 'fl-app[postgres]'" in said
    assert raised.value.exit_status == 2
    assert len(said.splitlines()) == 1


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """Run the server that the tests of this module share; its password has to be quoted."""
    with postgres_server(f"{SECRET}%2F1") as server:
        yield server


def whole(uri: str, experiment: str) -> dict[str, str]:
    """Return the status of each run of an experiment by name, with its models."""
    client = MlflowClient(uri)
    there = client.get_experiment_by_name(experiment)
    assert there is not None
    logged = client.search_logged_models([there.experiment_id])
    names = {m.name for m in logged if str(m.status) == "READY"}
    return {
        run.info.run_name: f"{run.info.status} {' '.join(sorted(names))}"
        for run in client.search_runs([there.experiment_id])
    }


def titles() -> str:
    """Return the titles of all processes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return "\n".join(found)


@slow
def test_a_run_goes_to_postgres(database: PostgresServer, tmp_path: Path) -> None:
    """All of it; the password is in no file, tag, line or process title."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": database.uri}
    words = [*WORDS, "runtime.num_workers=2", f"output_dir={tmp_path}/out"]
    told = []
    with subprocess.Popen(
        [str(BIN / "fl-app"), *words],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            told += [line, titles()]
    assert run.returncode == 0, told
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", database.uri)
        sent(tmp_path / "fl_app_home")
    assert set(whole(database.uri, "wine").values()) == {"FINISHED best final"}
    assert found(tmp_path, *told) == []
    client = MlflowClient(database.uri)
    (kept,) = client.search_runs([client.get_experiment_by_name("wine").experiment_id])
    assert SECRET not in str(kept.to_dictionary())


@slow
def test_a_wrong_password_is_one_line(
    database: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It waits for the right one; nothing of either is told."""
    wrong = database.uri.replace(SECRET, f"{SECRET}-wrong")
    tracker = MlflowTracker(wrong, "wrong", home=tmp_path)
    with caplog.at_level(logging.WARNING, "fl_app"):
        tracker.start(RunStart("wrong"))
        tracker.finish(RunEnd("FINISHED"))
    first, last = (r.getMessage() for r in caplog.records if r.name == "fl_app")
    assert "cannot be used now" in first
    assert "password authentication failed" in first
    assert "it waits in" in last
    assert found(tmp_path, first, last) == []


@slow
def test_a_database_that_is_away_for_a_while(
    database: PostgresServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line when it is lost, one when it is back; no round waits, and all arrives."""
    monkeypatch.setattr(Pace, "_due", lambda self: 0.0)
    tracker = MlflowTracker(database.uri, "away", home=tmp_path)

    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "fl_app"]

    with caplog.at_level(logging.WARNING, "fl_app"):
        tracker.start(RunStart("away"))
        until(lambda: tracker.run_id, 200)  # MLflow makes its tables first
        database.stop()
        try:
            for server_round in range(3):
                begin = time.monotonic()
                tracker.record(RoundRecord(server_round, {"w": np.ones(2)}, server={"mse": 1.0}))
                assert time.monotonic() - begin < 1
            until(lines)
        finally:
            database.start()
        until(lambda: len(lines()) > 1)
        tracker.finish(RunEnd("FINISHED"))
    first, second = lines()
    assert "cannot be used now" in first
    assert "answers again" in second
    assert SECRET not in first + second
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database.uri)
    sent(tmp_path)
    assert whole(database.uri, "away") == {"away": "FINISHED "}
    assert found(tmp_path) == []


@slow
def test_postgres_behind_mlflows_server(database: PostgresServer, tmp_path: Path) -> None:
    """The password is in no title, in nothing of ours, and not in the server's log."""
    folder = tmp_path / "server"
    folder.mkdir()
    with mlflow_server(folder, store=database.uri) as port:
        uri = f"http://127.0.0.1:{port}"
        tracker = MlflowTracker(uri, "behind", home=tmp_path / "home")
        tracker.start(RunStart("behind", {"a": "1"}))
        tracker.record(RoundRecord(0, {"w": np.ones(2)}, server={"mse": 1.0}))
        models = [LoggedModel("final", 0, {"w": np.ones(2)}, {"columns": ["a"]})]
        shown = titles()
        tracker.finish(RunEnd("FINISHED", models=models))
        sent(tmp_path / "home")
        assert whole(uri, "behind") == {"behind": "FINISHED final"}
    assert found(tmp_path, shown) == []
