"""What is said may be lost, the work is not."""

from __future__ import annotations

import errno
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fl_app.outputs import Steady, outputs_may_fail
from fl_app.tracking.console import ConsoleTracker
from fl_app.tracking.records import RunEnd, RunStart


class Full(io.StringIO):
    """An output on a full disk."""

    def write(self, text: str) -> int:
        """Fail."""
        raise OSError(errno.ENOSPC, "No space left on device")


class Ascii(io.StringIO):
    """An output that cannot be told to replace what its encoding lacks."""

    encoding = "ascii"  # type: ignore[assignment]

    def write(self, text: str) -> int:
        """Fail for what is not ASCII."""
        text.encode("ascii")
        return super().write(text)


def closed() -> io.StringIO:
    """Return a file that is closed."""
    file = io.StringIO()
    file.close()
    return file


@pytest.mark.parametrize("file", [Full(), closed(), None])
def test_an_output_that_fails_is_written_to_no_more(file: io.StringIO | None) -> None:
    """No write raises; the first failure is kept."""
    out = Steady(file)
    assert out.write("abc") == 3
    out.flush()
    out.write("def")
    assert (out.failure is None) == (file is None)


def test_what_an_encoding_lacks_is_said_in_plain_characters() -> None:
    """Also where the output cannot be told so."""
    file = Ascii()
    Steady(file).write("0.5 \N{PLUS-MINUS SIGN} 0.1")
    assert file.getvalue() == "0.5 +/- 0.1"


@pytest.mark.parametrize("prefix", ["", "fl_app | "])
def test_the_console_of_a_run_never_raises(prefix: str) -> None:
    """A tracker that prints to a full disk says nothing and fails nothing."""
    tracker = ConsoleTracker(prefix, Console(file=Full()))
    tracker.start(RunStart("run", num_server_rounds=1))
    tracker.say("waiting")
    tracker.finish(RunEnd("FAILED", error="no reason"))


def test_the_outputs_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printing in the block never raises; a block inside a block changes nothing."""
    full = Full()
    monkeypatch.setattr("sys.stdout", full)
    with outputs_may_fail() as out, outputs_may_fail() as inner:
        assert inner is out
        print("abc")
    assert out.failure is not None
    assert sys.stdout is full


@pytest.mark.parametrize(
    ("fault", "jobs"), [("no reader", 1), ("full", 2), ("closed", 1), ("ascii", 1)]
)
def test_a_run_ends_as_it_would_whatever_its_output_does(
    fault: str, jobs: int, tmp_path: Path
) -> None:
    """Exit status 0, FINISHED in ``result.json`` and in MLflow; a run that fails exits with 1."""
    redirect = {
        "no reader": "| true",
        "full": "> /dev/full 2> /dev/full",
        "closed": ">&- 2>&-",
        "ascii": "| cat > out",
    }[fault]
    words = ["dataset=two_lines", "num_clients=2", "num_server_rounds=2", "hydra.sweep.dir=s"]
    words += ["-m", "seed=0,1"] if jobs == 2 else ["hydra.run.dir=s/0"]
    command = [sys.executable, "-m", "fl_app", *words]
    line = f"set -o pipefail; {' '.join(command)} {redirect}"
    env = {**os.environ, "FL_APP_HOME": str(tmp_path / "home")}
    if fault == "ascii":
        env["PYTHONIOENCODING"] = "ascii"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0
    for number in range(jobs):
        assert json.loads((tmp_path / f"s/{number}/result.json").read_text())["status"] == (
            "FINISHED"
        )
    with sqlite3.connect(tmp_path / "home" / "mlflow.db") as base:
        assert base.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)] * jobs


@pytest.mark.parametrize(
    ("words", "status"), [(["--help"], 1), (["strategy=none"], 2), (["--version"], 1)]
)
def test_a_command_that_only_prints_has_failed(
    words: list[str], status: int, tmp_path: Path
) -> None:
    """Where nothing runs, what cannot be printed was all there was to do; bad input stays 2."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fl_app", *words],
            stdout=full,
            stderr=full,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == status


def test_a_run_without_a_result_has_failed_everywhere(tmp_path: Path) -> None:
    """Where ``result.json`` cannot be written, exit status and MLflow say the same."""
    (tmp_path / "out" / "result.json").mkdir(parents=True)
    words = ["dataset=two_lines", "num_clients=2", "num_server_rounds=2", "output_dir=out"]
    done = subprocess.run(
        [sys.executable, "-m", "fl_app", *words],
        cwd=tmp_path,
        env={**os.environ, "FL_APP_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "result.json cannot be written" in line
    with sqlite3.connect(tmp_path / "home" / "mlflow.db") as base:
        assert base.execute("SELECT status FROM runs").fetchall() == [("FAILED",)]
        tag = "SELECT value FROM tags WHERE key = 'error'"
        assert "result.json cannot be written" in base.execute(tag).fetchone()[0]
