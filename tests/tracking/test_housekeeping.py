"""What has been sent goes in time; what goes on, or waits, never does by itself."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fl_app.errors import InputError
from fl_app.home import new_name
from fl_app.tracking import Events, RunEnd, RunStart
from fl_app.tracking.housekeeping import clean, left_runs, prune, waiting_bytes
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JOURNAL
from fl_app.tracking.recorder import JournalTracker

DAY = 24 * 3600.0


class Home:
    """A home with runs of all kinds."""

    def __init__(self, path: Path) -> None:
        self.path, self.live = path, list[Journal]()

    def made(self, days: float, how: str) -> str:
        """Make a run that was written to so many days ago; return its name."""
        name = new_name(int((time.time() - days * DAY) * 1000))
        if how == "old kind":  # of an earlier version
            (self.path / "runs" / name).mkdir(parents=True)
            return name
        journal = Journal.create(self.path, name)
        if how in ("waits", "sent"):
            journal.begin({"uri": "x"} if how == "waits" else {}, RunStart("fedavg"), 0)
            for number in range(3):
                journal.add_round({"server_round": number}, weights={"w": np.ones(2)})
            journal.mark_sent({"rounds": 2})
            journal.add_end(RunEnd("FINISHED"), 9)
        if how == "sent":
            journal.mark_whole()
        if how == "goes on":
            self.live.append(journal)
        else:
            journal.release()
        for file in (self.path / "runs" / name).glob(f"{JOURNAL}*"):
            os.utime(file, (time.time() - days * DAY,) * 2)
        return name

    def names(self) -> set[str]:
        """Return what is there."""
        return {path.name for path in (self.path / "runs").iterdir()}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    for journal in home.live:
        journal.release()


def test_old_runs_go_and_live_ones_stay(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older than 7 days or beyond the number that stays; never one that goes on or waits."""
    monkeypatch.setattr("fl_app.tracking.housekeeping._MAX_RUNS", 4)
    stay = [home.made(0, "sent"), home.made(1, "killed"), home.made(2, "goes on")]
    stay += [home.made(6.9, "sent"), home.made(7.1, "goes on"), home.made(30, "goes on")]
    stay += [home.made(8, "waits")]
    go = [home.made(7.2, "sent"), home.made(8, "old kind"), home.made(6.95, "sent")]
    go += [home.made(20, "killed")]
    other = home.path / "runs" / "12345678901234567890"
    other.mkdir()
    prune(home.path)
    assert home.names() == {*stay, other.name}
    assert not home.names() & {*go}
    prune(home.path / "nowhere")


def test_how_long_is_ones_own_choice(home: Home) -> None:
    young, old = home.made(1, "sent"), home.made(3, "sent")
    prune(home.path, 2)
    assert home.names() == {young}
    prune(home.path, 0)
    assert home.names() == set()
    assert old


def test_a_run_that_is_long_is_not_old(home: Home) -> None:
    """What counts is the last thing that was written."""
    name = home.made(30, "sent")
    os.utime(home.path / "runs" / name / JOURNAL)
    prune(home.path)
    assert home.names() == {name}


def test_a_new_run_prunes(home: Home) -> None:
    """Whoever starts a run clears what is old."""
    old = home.made(8, "sent")
    tracker = JournalTracker(home.path)
    tracker.start(RunStart())
    tracker.finish(RunEnd("FINISHED"))
    assert old not in home.names()
    assert len(home.names()) == 1


def test_what_there_is(home: Home) -> None:
    """The newest first, each with its state, its rounds and what waits."""
    names = [
        home.made(days, how) for days, how in enumerate(("goes on", "sent", "waits", "killed"))
    ]
    damaged = home.made(9, "sent")
    (home.path / "runs" / damaged / JOURNAL).write_bytes(b"x" * 5000)
    runs = left_runs(home.path)
    assert [run.folder.name for run in runs] == [*names, damaged]
    states = ["running", "finished", "finished", "broken off", "damaged"]
    assert [run.state for run in runs] == states
    assert [run.rounds for run in runs] == [0, 3, 3, 0, 0]
    assert [run.waiting for run in runs] == [None, None, 1, None, None]
    assert [run.is_waiting for run in runs] == [False, False, True, False, False]
    assert [run.until() is None for run in runs] == [True, False, True, False, False]
    assert runs[1].title == "fedavg"
    assert all(run.size > 1000 for run in runs)
    assert waiting_bytes(home.path) >= runs[2].size


def test_by_name_also_what_waits_goes(home: Home) -> None:
    """But nothing by a wrong name, and nothing that goes on."""
    sent, waits, live = home.made(1, "sent"), home.made(9, "waits"), home.made(9, "goes on")
    for wrong in ("nobody", live, "../.."):
        with pytest.raises(InputError):
            clean(home.path, [waits, wrong])
    assert clean(home.path) == []
    assert [run.folder.name for run in clean(home.path, days=0.5)] == [sent]
    assert [run.folder.name for run in clean(home.path, [waits])] == [waits]
    assert home.names() == {live}


def test_what_cannot_be_read_now_stays(home: Home) -> None:
    """Of a later version, or locked for a moment; what is damaged for good goes."""
    later, locked, damaged = (home.made(8, "waits") for _ in range(3))
    with closing(sqlite3.connect(home.path / "runs" / later / JOURNAL)) as base:
        base.execute("PRAGMA user_version = 99")
    taken = Journal.claim(home.path / "runs" / damaged)
    assert taken is not None
    taken._write([("UPDATE facts SET content = ? WHERE key = 'start'", (b"{",))])
    taken.release()
    for name in (later, damaged):
        os.utime(home.path / "runs" / name / JOURNAL, (0, 0))
    base = sqlite3.connect(home.path / "runs" / locked / JOURNAL, isolation_level=None)
    base.execute("BEGIN EXCLUSIVE")
    Events("inprocess", home.path).close()
    prune(home.path)
    base.close()
    assert {later, locked} <= home.names()
    assert damaged not in home.names()
