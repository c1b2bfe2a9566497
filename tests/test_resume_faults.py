"""Resuming where something is not as it should be: exit 2 with a sentence, and nothing lost."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.config.compose import compose_config
from fl_app.dashboard.live import Tail
from fl_app.errors import ConfigError
from fl_app.experiment.resuming import Resumed, take_over
from fl_app.home import home_dir
from fl_app.tracking import journal as journals
from fl_app.tracking.files import read_npz
from fl_app.tracking.journal import Journal
from tests.test_resume import (
    ROUNDS,
    broken_off,
    history,
    interrupted,
    newest,
    run,
    same,
    words_of,
)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put all arrays beside the journal, as large ones are."""
    monkeypatch.setattr(journals, "_BESIDE_BYTES", 1)


@pytest.mark.parametrize("kind", ["now", "best", "state"])
@pytest.mark.parametrize("damage", ["missing", "short", "other"])
@pytest.mark.usefixtures("beside")
def test_damaged_arrays(kind: str, damage: str, tmp_path: Path) -> None:
    """They are named; with the file as it was the run goes on."""
    given = words_of("strategy=fedadam")
    whole = run(tmp_path, given)
    name = broken_off(tmp_path, "strategy=fedadam")
    number = newest().kept(kind)[-1]
    ((file,),) = newest()._rows(
        "SELECT file FROM arrays WHERE kind = ? AND server_round = ?", kind, number
    )
    path, copy = newest().folder / file, tmp_path / "copy"
    shutil.copy(path, copy)
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(copy.read_bytes()[:-100])
    else:
        path.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match=f"resume={name}: a whole journal"):
        run(tmp_path, [f"resume={name}"])
    shutil.copy(copy, path)
    assert run(tmp_path, [f"resume={name}"]).weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize("page", [0, 1, -1])
def test_a_damaged_journal(page: int, tmp_path: Path) -> None:
    """A page of zeros anywhere is seen before the run goes on, and not after its last round."""
    name = broken_off(tmp_path)
    path = newest().folder / "journal.db"
    whole = path.read_bytes()
    begin = page * 4096 % len(whole)
    path.write_bytes(whole[:begin] + bytes(4096) + whole[begin + 4096 :])
    for word in (name, "last"):
        with pytest.raises(ConfigError, match=r"damaged|whole journal|readable|broke off"):
            run(tmp_path, [*words_of(), f"resume={word}"])
    path.write_bytes(whole)
    assert run(tmp_path, [f"resume={name}"]).status == "FINISHED"


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("tracking", ["none", "mlflow"])
def test_large_arrays_go_on_and_leave_no_files(tracking: str, tmp_path: Path) -> None:
    """Beside the journal are those of the models only, as after a run that nobody interrupted."""
    given = words_of("strategy=fedyogi", f"tracking={tracking}")
    given += ["tracking.figures=false"] * (tracking == "mlflow")
    run(tmp_path, given)
    uninterrupted = newest()
    with interrupted("aggregate_train", 3):
        run(tmp_path, given)
    with interrupted("configure_train", 2):
        run(tmp_path, [*given, "resume=last"])
    run(tmp_path, [*given, "resume=last"])
    same(newest(), uninterrupted)
    files = [{p.name for p in (j.folder / "arrays").iterdir()} for j in (newest(), uninterrupted)]
    assert files[0] == files[1]


def test_weights_of_the_last_rounds_are_kept(tmp_path: Path) -> None:
    """`keep_weights=last:2`: also of those that an earlier process has recorded."""
    import mlflow

    given = words_of("tracking=mlflow", "tracking.figures=false", "tracking.keep_weights=last:2")
    runs = [run(tmp_path, given)]
    with interrupted("aggregate_train", ROUNDS):
        run(tmp_path, given)
    runs.append(run(tmp_path, [*given, "resume=last"]))
    client = mlflow.MlflowClient(f"sqlite:///{home_dir()}/mlflow.db")
    kept = []
    for one in runs:
        root = Path(client.get_run(str(one.run_id)).info.artifact_uri.removeprefix("file://"))
        kept.append({p.name: read_npz(p) for p in (root / "weights").iterdir()})
    names = [f"round_{number:04d}.npz" for number in (ROUNDS - 1, ROUNDS)]
    assert sorted(kept[0]) == names
    assert kept[1].keys() >= kept[0].keys()
    np.testing.assert_equal({n: kept[1][n] for n in names}, kept[0])


def test_a_copied_run_goes_on_in_another_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's folder is all that it needs."""
    whole = run(tmp_path, words_of("strategy=fedadam"))
    name = broken_off(tmp_path, "strategy=fedadam")
    folder = newest().folder
    monkeypatch.setenv("FL_APP_HOME", str(tmp_path / "elsewhere"))
    shutil.copytree(folder, home_dir() / "runs" / name)
    assert run(tmp_path, [f"resume={name}"]).weights_sha256 == whole.weights_sha256


def test_one_of_two_goes_on(tmp_path: Path) -> None:
    """Whoever comes at the same moment is told that it is taken."""
    name = broken_off(tmp_path)
    config = compose_config([*words_of(), f"resume={name}"])

    def take(barrier: threading.Barrier) -> Resumed | str:
        barrier.wait()
        try:
            return take_over(config)
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(2) as both:
        for _ in range(10):
            barrier = threading.Barrier(2)
            ends = [done.result() for done in [both.submit(take, barrier) for _ in range(2)]]
            (refused,) = [end for end in ends if isinstance(end, str)]
            assert "a run that nobody writes or sends now" in refused
            (taken,) = [end for end in ends if not isinstance(end, str)]
            taken.journal.release()
    assert run(tmp_path, [f"resume={name}"]).status == "FINISHED"


def test_a_page_follows_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it looks: running again, all rounds, and the right end."""
    name = broken_off(tmp_path)
    tail = Tail(home_dir(), name)
    view = tail.read()
    assert view is not None
    assert view.status == "killed"
    seen: list[str] = []
    flush = Journal.flush

    def look(self: Journal, *args: Any, **kwargs: Any) -> None:
        flush(self, *args, **kwargs)
        if (now := tail.read()) is not None:
            seen.append(now.status)

    monkeypatch.setattr(Journal, "flush", look)
    run(tmp_path, [f"resume={name}"])
    view = tail.read()
    assert view is not None
    assert view.status == "finished"
    assert [r.server_round for r in view.rounds] == [*range(ROUNDS + 1)]
    begun = seen.index("running")
    assert set(seen[:begun]) <= {"killed"}
    assert set(seen[begun:]) <= {"running", "finished", "ending"}
    assert sorted(history(newest())) == [*range(ROUNDS + 1)]
