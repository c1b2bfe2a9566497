"""A run of another machine is never said to be gone: its heartbeat is all that is known here."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fl_app.dashboard.live import Tail
from fl_app.dashboard.progress import phase
from fl_app.dashboard.run_files import runs
from fl_app.home import Process
from fl_app.tracking import MlflowTracker, RunEnd, RunStart, replay
from fl_app.tracking.housekeeping import clean, left_runs, prune
from fl_app.tracking.journal import Journal
from fl_app.tracking.liveness import last_sign, liveness

WRITER = """
import pathlib, sys
from fl_app.tracking import RunStart
from fl_app.tracking.journal import Journal
journal = Journal.create(pathlib.Path(sys.argv[1]))
journal.begin({"uri": sys.argv[2]}, RunStart("name"), 0)
journal.add_round({"server_round": 0, "timestamp_ms": 1, "metrics": {}, "texts": {}, "clients": []})
print("begun", flush=True)
sys.stdin.read()
"""


class Writer:
    """A process that writes a run."""

    def __init__(self, home: Path, uri: str = "x") -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(home), uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.child.stdout is not None
        assert self.child.stdout.readline() == b"begun\n"
        (self.folder,) = (home / "runs").iterdir()

    def kill(self) -> None:
        self.child.kill()
        self.child.communicate()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    yield writer
    writer.kill()


def silent(folder: Path, seconds: float = 61) -> None:
    """Let the last heartbeat be so long ago."""
    os.utime(folder / "lock", (time.time() - seconds,) * 2)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look from another machine, which does not see who holds a lock there."""
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    monkeypatch.setattr("fl_app.tracking.liveness.is_held", lambda _: False)


def state(home: Path) -> str:
    (run,) = left_runs(home)
    (head,) = runs(home)
    assert head.status == {"broken off": "lost"}.get(run.state, run.state)
    return run.state


def test_the_heart_beats_while_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is touched every few seconds, and no more."""
    monkeypatch.setattr("fl_app.tracking.journal._BEAT_SECONDS", 0.1)
    journal = Journal.create(tmp_path)
    journal.begin({}, RunStart(), 0)
    silent(journal.folder)
    deadline = time.monotonic() + 20
    while time.time() - (last_sign(journal.folder) or 0) > 30:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    journal.release()


def test_on_its_own_machine_the_system_knows(writer: Writer, tmp_path: Path) -> None:
    """Whatever the heartbeat says: a process that is stopped for an hour lives."""
    silent(writer.folder, 3600)
    assert state(tmp_path) == "running"
    writer.kill()
    assert state(tmp_path) == "broken off"


@pytest.mark.usefixtures("elsewhere")
def test_from_another_machine_the_heartbeat_does(writer: Writer, tmp_path: Path) -> None:
    """Fresh: it goes on. Old: unknown; then nothing is closed, sent, cleaned or said to be over."""
    assert state(tmp_path) == "running"
    assert replay(tmp_path).live == [writer.folder.name]
    writer.kill()
    silent(writer.folder, 59)
    assert state(tmp_path) == "running"
    silent(writer.folder)
    assert state(tmp_path) == "unknown"
    (why,) = replay(tmp_path).waiting.values()
    assert "whether it goes on at" in why
    prune(tmp_path, days=-1)
    assert clean(tmp_path, days=-1) == []
    assert writer.folder.exists()
    view = Tail(tmp_path, writer.folder.name).read()
    assert view is not None
    assert (view.status, view.active) == ("unknown", True)
    assert "perhaps running: it ran on" in phase(view, time.time())


def test_after_its_end_another_machine_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sends what waits."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    journal = Journal.create(tmp_path)
    journal.begin({"uri": uri, "experiment": "e", "register_as": None}, RunStart("name"), 1)
    journal.add_end(RunEnd("FAILED"), 9)
    journal.release()
    silent(journal.folder)
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert state(tmp_path) == "failed"
    assert replay(tmp_path).sent == [journal.name]


@pytest.mark.usefixtures("elsewhere")
def test_nobody_closes_the_run_of_another_machine(writer: Writer, tmp_path: Path) -> None:
    """A start in the same home: the run is RUNNING in MLflow still."""
    writer.kill()
    silent(writer.folder, 3600)
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", home=tmp_path)
    tracker.start(RunStart("mine"))
    tracker.finish(RunEnd("FINISHED"))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as base:
        assert base.execute("SELECT name, status FROM runs").fetchall() == [("mine", "FINISHED")]
    assert {run.state for run in left_runs(tmp_path)} == {"unknown", "finished"}


def test_a_machine_that_was_started_again_has_ended_its_processes(tmp_path: Path) -> None:
    """A heartbeat before this machine's start is its own; a later one is another machine's."""
    own = Process.current()
    if not own.boot:
        pytest.skip("the system does not tell its boots apart")
    journal = Journal.create(tmp_path)
    other = replace(own, started=f"0123abcd-{own.started.split('-', 1)[1]}")
    assert liveness(journal.folder, other) == "alive"
    silent(journal.folder)
    assert liveness(journal.folder, other) == "unknown"
    silent(journal.folder, 1e9)
    assert liveness(journal.folder, other) == "gone"
    journal.release()


def test_in_another_container_of_this_machine_the_lock_tells(tmp_path: Path) -> None:
    """Whose processes nobody sees from here: held it lives, given up and silent it is gone."""
    own = Process.current()
    if not own.boot:
        pytest.skip("the system does not tell its boots apart")
    boot, space, tick = own.started.split("-")
    hidden = replace(own, started=f"{boot}-1{space}-{tick}")
    journal = Journal.create(tmp_path)
    silent(journal.folder)
    assert liveness(journal.folder, hidden) == "alive"
    journal.release()
    assert liveness(journal.folder, hidden) == "gone"


@pytest.mark.parametrize("process", [None, {}, "x", {"host": "a", "pid": "b", "started": ""}])
def test_a_start_that_names_no_process_is_told_by_its_lock(process: object, tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    journal.restore({"start": {"target": {}, "run": {}, "process": process}}, {})
    (run,) = left_runs(tmp_path)
    assert run.state == "running"
    journal.release()
    (run,) = left_runs(tmp_path)
    assert run.state == "broken off"
