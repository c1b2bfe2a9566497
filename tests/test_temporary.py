"""Temporary folders are gone with their block, and those of the dead with the next one's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fl_app.home import Process
from fl_app.temporary import temporary_dir


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_it_is_gone_with_its_block(tmp_path: Path) -> None:
    """Also where an exception ends that; meanwhile nobody else reads it."""

    def fail() -> None:
        with temporary_dir() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700
            assert len(folder.name) == len("fl-12345678")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not [*tmp_path.iterdir()]


def test_the_dead_leave_nothing_for_good(tmp_path: Path) -> None:
    """The folder of a process that was killed goes; one of the living, or of whom nobody knows."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as killed:
        dead = Process.of(killed.pid)
        killed.kill()
    stays = {"fl-alive": Process.current(), "fl-far": Process("far", dead.pid, dead.started)}
    stays["fl-other"] = Process(dead.host, dead.pid, "0-0-0")  # of another PID namespace
    for name, process in {"fl-dead": dead, **stays}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / ".owner").write_text(json.dumps(vars(process)))
    (tmp_path / "fl-nobody").mkdir()
    with temporary_dir():
        pass
    assert {path.name for path in tmp_path.iterdir()} == {*stays, "fl-nobody"}
