"""``fl-kit runs``, ``sync`` and ``clean`` say what there is, send what waits, and remove."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from fl_app.home import home_dir
from fl_app.tracking import RunEnd, RunStart
from fl_app.tracking.journal import Journal
from tests.kit import fl_kit


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/m.db"


def left(uri: str, end: bool = True) -> Journal:
    """Leave a run that MLflow has nothing of."""
    journal = Journal.create(home_dir())
    journal.begin({"uri": uri, "experiment": "x"}, RunStart("fed[avg] s0"), 1_000)
    for number in range(3):
        line = {"server_round": number, "timestamp_ms": 2_000 + number, "metrics": {"m": 1.0}}
        journal.add_round(line | {"texts": {}, "clients": []}, weights={"w": np.ones(2)})
    if end:
        journal.add_end(RunEnd("FINISHED"), 9_000)
    journal.release()
    return journal


def test_nothing_is_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fl_kit(monkeypatch, "runs") == 0
    assert capsys.readouterr().out == f"no runs in {home_dir()}\n"
    assert fl_kit(monkeypatch, "sync") == 0
    assert capsys.readouterr().out == "nothing waits\n"
    assert fl_kit(monkeypatch, "clean") == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_what_waits_is_listed_sent_and_removed(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, broken = left(uri), left(uri, end=False)
    assert fl_kit(monkeypatch, "runs") == 0
    out = capsys.readouterr().out
    for words in ("fed[avg] s0", "finished", "broken off", "3 rounds", "2 of 2 runs"):
        assert words in out
    assert fl_kit(monkeypatch, "runs", "-n", "1") == 0
    assert journal.name not in capsys.readouterr().out, "the newest only"
    assert fl_kit(monkeypatch, "sync") == 0
    assert capsys.readouterr().out == f"{journal.name}: sent\n{broken.name}: sent\n"
    found = MlflowClient(uri).search_runs(
        [MlflowClient(uri).get_experiment_by_name("x").experiment_id]
    )  # type: ignore[union-attr]
    assert {run.info.status for run in found} == {"FINISHED", "KILLED"}
    assert fl_kit(monkeypatch, "clean", journal.name) == 0
    assert capsys.readouterr().out.startswith(f"{journal.name}: removed, ")
    assert fl_kit(monkeypatch, "clean", "--days", "0") == 0
    assert not [*(home_dir() / "runs").iterdir()]


def test_what_cannot_be_sent_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    """With its reason, and exit status 1; it can go to another store."""
    journal = left("sqlite:////proc/nowhere/m.db")
    assert fl_kit(monkeypatch, "sync") == 1
    assert capsys.readouterr().out.startswith(f"{journal.name}: waits: ")
    assert fl_kit(monkeypatch, "clean") == 0
    assert capsys.readouterr().out == "nothing to remove\n"
    assert fl_kit(monkeypatch, "sync", "--uri", uri) == 0
    assert capsys.readouterr().out == f"{journal.name}: sent\n"


def test_what_is_removed_unsent_is_told(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = left(uri)
    assert fl_kit(monkeypatch, "clean", journal.name) == 0
    assert capsys.readouterr().out.endswith(", 3 rounds lost\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["clean", "nobody"], "run=nobody: a run of "),
        (["clean", "--days", "-1"], "--days=-1.0: a number from 0"),
        (["sync", "--uri", "ftp://x"], "uri=ftp://x"),
    ],
)
def test_bad_words_are_one_line(
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fl_kit(monkeypatch, *words) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


def test_watching_goes_on_until_it_is_ended(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes meanwhile is sent."""
    sent: list[str] = []

    def sleep(seconds: float) -> None:
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(left(uri).name)

    monkeypatch.setattr("fl_app.cli.runs.time.sleep", sleep)
    assert fl_kit(monkeypatch, "sync", "--watch") == 130
    assert capsys.readouterr().out.splitlines() == [f"{name}: sent" for name in sent]
