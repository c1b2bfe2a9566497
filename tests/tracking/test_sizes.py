"""What runs leave on the disk and in memory stays small, however long they are and many."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.runtimes import run
from fl_app.tracking.journal_reader import JOURNAL, JournalReader

ROUNDS = 50


def done(out: Path, *words: str) -> None:
    """Run digits with ten clients."""
    given = [f"output_dir={out}", *words]
    run(RunRequest(compose_config(given), tuple(given)))


def on_disk(home: Path) -> int:
    """Return the bytes that files take when the log of MLflow's file is in it."""
    with closing(sqlite3.connect(home / "mlflow.db")) as base:
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    stats = [path.stat() for path in home.rglob("*") if path.is_file()]
    return sum(512 * stat.st_blocks for stat in stats)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("FL_APP_HOME", str(home))
    return home


@pytest.mark.parametrize("tracking", ["mlflow", "none"])
def test_a_journal_is_small(tracking: str, home: Path, tmp_path: Path) -> None:
    """After its end 5 MB for 500 rounds of ten clients, with the models `final` and `best` only."""
    words = ["tracking.figures=false"] if tracking == "mlflow" else []
    done(tmp_path, f"num_server_rounds={ROUNDS}", f"tracking={tracking}", *words)
    (folder,) = (home / "runs").iterdir()
    assert [path.name for path in folder.iterdir()] == [JOURNAL]
    assert (folder / JOURNAL).stat().st_size < 5e6 * ROUNDS / 500
    journal = JournalReader(folder)
    assert journal.count_rounds() == ROUNDS + 1
    kinds = {kind for (kind,) in journal._rows("SELECT kind FROM arrays")}
    assert kinds == {"model/final", "model/best"}


@pytest.mark.slow
def test_a_run_of_a_sweep_is_small(home: Path, tmp_path: Path) -> None:
    """200 runs of ten rounds take 300 MB at most: MLflow's file, artifacts, models, figures."""
    done(tmp_path / "0", "seed=0")
    first = on_disk(home)
    for seed in (1, 2, 3):
        done(tmp_path / str(seed), f"seed={seed}")
    each = (on_disk(home) - first) / 3
    assert first + 199 * each < 300e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells its memory")
def test_memory_grows_no_faster_than_a_long_run_may(tmp_path: Path) -> None:
    """5 % and 10 MB from round 300 to 3,000; here for a part of them, with the part of that."""
    code = (
        "import sys; from pathlib import Path; from benchmarks import long\n"
        "long.run(Path(sys.argv[1]), 900, 10, 'none')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "home")]
    folder = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    found = json.loads(said.stdout.splitlines()[-1])
    assert found["at"] == 300
    part = 600 / 2700
    assert found["late"] - found["early"] < part * (0.05 * found["early"] + 10)
    assert found["wal"] < 16
