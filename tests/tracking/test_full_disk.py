"""A full disk under a journal ends the run, truly told, with all that was recorded readable."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.errors import DiskError
from fl_app.home import new_name
from fl_app.runtimes import run
from fl_app.tracking import LoggedModel, RunEnd, RunStart, replay
from fl_app.tracking.housekeeping import left_runs
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JOURNAL, JournalReader

LARGE = {"w": np.random.default_rng(0).random(300_000)}  # stands beside the journal


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Make a disk of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    size = ["-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *size], capture_output=True, check=False).returncode:
        pytest.skip("a file system of its own can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> None:
    """Leave no more than so many bytes."""
    room = shutil.disk_usage(folder).free - leave
    with suppress(OSError), open(folder / "filler", "ab", buffering=0) as file:
        while room > 0:
            room -= file.write(bytes(min(room, 4096)))


def make_room(folder: Path) -> None:
    (folder / "filler").unlink()


def begun(home: Path) -> Journal:
    journal = Journal.create(home, new_name(0))
    journal.begin({"uri": "x"}, RunStart("name"), 0)
    return journal


def line(number: int) -> dict[str, Any]:
    return {"server_round": number, "metrics": {"m": float(number)}, "texts": {}, "clients": []}


def add_rounds(journal: Journal, arrays: dict[str, Any]) -> None:
    for number in range(1, 200):
        journal.add_round(line(number), weights=arrays)


def is_whole(folder: Path) -> bool:
    """Return whether SQLite finds nothing wrong in it."""
    with closing(sqlite3.connect(f"file:{folder / JOURNAL}?mode=ro", uri=True)) as base:
        return bool(base.execute("PRAGMA integrity_check").fetchone() == ("ok",))


def rounds(folder: Path) -> list[int]:
    return [content["server_round"] for content, _ in JournalReader(folder).rounds()]


@pytest.mark.parametrize("leave", [0, 50_000, 1_000_000])
@pytest.mark.parametrize("arrays", [{"w": np.ones(40_000)}, LARGE], ids=["inside", "beside"])
def test_the_round_that_does_not_fit_is_none(
    disk: Path, arrays: dict[str, Any], leave: int
) -> None:
    """Those before it and the end are read, on the full disk too; with room again it goes on."""
    journal = begun(disk)
    journal.add_round(line(0), weights=arrays)
    fill(disk, leave)
    with pytest.raises(DiskError, match="the disk is full") as caught:
        add_rounds(journal, arrays)
    journal.add_end(RunEnd("FAILED", error=str(caught.value)), 9)
    journal.release()
    there = rounds(journal.folder)
    said = "round 0 is kept" if there == [0] else f"rounds 0 to {there[-1]} are kept"
    assert f"{said} in {journal.folder}" in str(caught.value)
    assert there == list(range(len(there)))
    reader = JournalReader(journal.folder)
    assert (reader.end["status"], reader.end["error"]) == ("FAILED", str(caught.value))
    for number in there:
        kept = reader.arrays("weights", number)["w"]
        assert kept.tobytes() == arrays["w"].tobytes()
    assert is_whole(journal.folder)
    make_room(disk)
    again = Journal.claim(journal.folder)
    assert again is not None
    again.reopen()
    again.add_round(line(len(there)), weights=arrays)
    again.add_end(RunEnd("FINISHED"), 10)
    again.mark_whole()
    again.release()
    assert rounds(journal.folder) == [*there, len(there)]
    assert [path.name for path in journal.folder.iterdir() if path.is_file()] == [JOURNAL]
    assert is_whole(journal.folder)


@pytest.mark.parametrize("durable", [True, False])
def test_an_end_that_does_not_fit_is_a_failure(disk: Path, durable: bool) -> None:
    """Without its models the run has failed: the end says so, and whoever ends is told."""
    journal = Journal.create(disk)
    journal.begin({}, RunStart(), 0, durable=durable)
    journal.add_round(line(0))
    journal.flush()
    fill(disk)
    with pytest.raises(DiskError):
        journal.add_end(RunEnd("FINISHED", models=[LoggedModel("final", 0, LARGE, {})]), 9)
    journal.release()
    end = JournalReader(journal.folder).end
    assert (end["status"], end["models"]) == ("FAILED", [])
    assert "round 0 is kept" in end["error"]
    assert not list(journal.folder.glob("arrays/*"))


def test_rounds_that_are_written_later_are_missed_soon(disk: Path) -> None:
    """Without ``durable`` the round after the loss is refused."""
    journal = Journal.create(disk)
    journal.begin({}, RunStart(), 0, durable=False)
    fill(disk)
    journal.add_round({**line(0), "x": "".join(map(str, range(100_000)))})
    journal._flush_quietly()
    with pytest.raises(DiskError, match="round 0 is kept"):  # in the room for the end
        journal.add_round(line(1))
    journal.release()
    assert rounds(journal.folder) == [0]


def test_no_run_begins_on_a_full_disk(disk: Path) -> None:
    fill(disk, 500_000)
    with pytest.raises(DiskError, match="no run can be kept in"):
        Journal.create(disk)


@pytest.fixture
def told(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep journals on the small disk, and MLflow's store on another."""
    monkeypatch.setenv("FL_APP_HOME", str(disk))
    return tmp_path / "store.db"


def overrides(store: Path, out: Path, *more: str) -> RunRequest:
    words = [f"tracking.uri=sqlite:///{store}", f"output_dir={out}", "num_clients=3"]
    words += ["num_server_rounds=6", "tracking.figures=false", *more]
    return RunRequest(compose_config(words), tuple(words))


@pytest.mark.parametrize("when", ["round 3", "end"])
@pytest.mark.parametrize("model", ["softmax", "mlp"])
def test_a_run_on_a_full_disk_fails_truly(
    when: str,
    model: str,
    disk: Path,
    told: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One sentence; journal, MLflow and result.json say the same; what was kept is delivered."""
    what = "add_end" if when == "end" else "add_round"
    before = getattr(Journal, what)

    def filled(self: Journal, *args: Any, **kwargs: Any) -> None:
        if what == "add_end" or args[0]["server_round"] == 3:
            fill(disk)
        before(self, *args, **kwargs)

    monkeypatch.setattr(Journal, what, filled)
    with pytest.raises(DiskError) as caught:
        run(overrides(told, tmp_path / "out", f"model={model}"))
    kept = 6 if when == "end" else 2
    (left,) = left_runs(disk)
    assert str(caught.value) == f"the disk is full: rounds 0 to {kept} are kept in {left.folder}"
    assert (left.state, left.rounds) == ("failed", kept + 1)
    assert rounds(left.folder) == list(range(kept + 1))
    assert is_whole(left.folder)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["status"], result["error"]) == ("FAILED", str(caught.value))
    assert not [row for row in capsys.readouterr().out.splitlines() if "warning" in row]
    with closing(sqlite3.connect(told)) as base:
        assert base.execute("SELECT status FROM runs").fetchall() == [("FAILED",)]
        assert base.execute("SELECT MAX(step) FROM metrics").fetchone() == (kept,)
        error = base.execute("SELECT value FROM tags WHERE key = 'error'").fetchall()
        assert error == [(str(caught.value),)]
    make_room(disk)
    assert replay(disk).waiting == {}
    with closing(sqlite3.connect(told)) as base:
        assert base.execute("SELECT status FROM runs").fetchall() == [("FAILED",)]


def test_a_run_that_finds_no_room_has_failed(
    disk: Path, told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before its first round, which nobody would have recorded."""
    fill(disk, 500_000)
    with pytest.raises(DiskError, match="no run can be kept in") as caught:
        run(overrides(told, tmp_path / "out"))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["status"], result["error"]) == ("FAILED", str(caught.value))
    assert result["metrics"] == {}
    said = [row for row in capsys.readouterr().out.splitlines() if "warning" in row]
    assert len(said) == 1
    assert "a page cannot follow this run" in said[0]


def test_without_mlflow_too(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FL_APP_HOME", str(disk))
    words = ["tracking=none", f"output_dir={tmp_path}", "num_clients=2", "num_server_rounds=2"]
    before = Journal.add_end

    def filled(self: Journal, *args: Any) -> None:
        fill(disk)
        before(self, *args)

    monkeypatch.setattr(Journal, "add_end", filled)
    with pytest.raises(DiskError):
        run(RunRequest(compose_config(words), tuple(words)))
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "FAILED"
    (left,) = left_runs(disk)
    assert (left.state, left.rounds) == ("failed", 3)


def test_a_store_on_the_full_disk_is_told_too(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of MLflow's own file in the same home, at the next start at the latest."""
    monkeypatch.setenv("FL_APP_HOME", str(disk))
    before = Journal.add_round

    def filled(self: Journal, line: dict[str, Any], **arrays: Any) -> None:
        if line["server_round"] == 3:
            fill(disk)
        before(self, line, **arrays)

    monkeypatch.setattr(Journal, "add_round", filled)
    with pytest.raises(DiskError):
        run(overrides(disk / "mlflow.db", tmp_path / "out"))
    make_room(disk)
    assert replay(disk).waiting == {}
    with closing(sqlite3.connect(disk / "mlflow.db")) as base:
        assert base.execute("SELECT status FROM runs").fetchall() == [("FAILED",)]
        assert base.execute("SELECT MAX(step) FROM metrics").fetchone() == (2,)


def test_a_full_tmpdir_costs_nothing(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the models, whose files MLflow makes where it is told to."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setenv("FL_APP_HOME", str(tmp_path / "home"))
    fill(disk)
    store = tmp_path / "store.db"
    assert run(overrides(store, tmp_path / "out")).status == "FINISHED"
    with closing(sqlite3.connect(store)) as base:
        assert base.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
        assert base.execute("SELECT COUNT(*) FROM logged_models").fetchone() == (2,)


@pytest.mark.slow
def test_the_command_ends_with_one_sentence(tmp_path: Path) -> None:
    """Where a file may not grow any more: exit status 1, journal and result.json say the same."""
    code = (
        "import resource, sys; from fl_app.cli.run import main; import fl_app.server_app\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_100_000, -1))\n"
        "main()"
    )
    words = ["tracking=none", "num_clients=20", "num_server_rounds=5000", f"output_dir={tmp_path}"]
    env = {**os.environ, "FL_APP_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, *words, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    (left,) = left_runs(tmp_path / "home")
    said = f"rounds 0 to {left.rounds - 1} are kept in {left.folder}"
    assert line.startswith("fl-app: the disk takes no more (")
    assert line.endswith(said)
    assert left.state == "failed"
    assert is_whole(left.folder)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], f"fl-app: {result['error']}") == ("FAILED", line)


def test_with_room_again_a_resume_goes_on(
    disk: Path, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the weights of a run that was never interrupted."""
    whole = run(overrides(tmp_path / "other.db", tmp_path / "whole"))
    for folder in (disk / "runs").iterdir():
        shutil.rmtree(folder)
    before = Journal.add_round

    def filled(self: Journal, line: dict[str, Any], **arrays: Any) -> None:
        if line["server_round"] == 3:
            fill(disk)
        before(self, line, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add_round", filled)
        with pytest.raises(DiskError):
            run(overrides(told, tmp_path / "out"))
    make_room(disk)
    again = run(overrides(told, tmp_path / "out", "resume=last"))
    assert again.status == "FINISHED"
    assert again.weights_sha256 == whole.weights_sha256
    (left,) = left_runs(disk)
    assert rounds(left.folder) == list(range(7))
    with closing(sqlite3.connect(told)) as base:
        assert base.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, True])
def test_hydras_folder_on_a_full_disk_is_one_sentence(
    many: bool, disk: Path, tmp_path: Path
) -> None:
    fill(disk)
    words = ["-m", "seed=0,1", f"hydra.sweep.dir={disk}"] if many else [f"hydra.run.dir={disk}"]
    command = [sys.executable, "-m", "fl_app", "tracking=none", *words]
    env = {**os.environ, "FL_APP_HOME": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    sentence = f"fl-app: the disk is full (No space left on device): no run can begin in {disk}"
    assert done.stderr.splitlines() == [sentence]
