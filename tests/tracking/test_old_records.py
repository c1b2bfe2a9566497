"""What version 0.1 left to send is sent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from fl_app.home import Process
from fl_app.tracking import replay
from fl_app.tracking.files import write_npz
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JOURNAL
from fl_app.tracking.old_records import convert_spools

NAME = "20260102-030405-0123abcd"
ROUNDS = [
    {"server_round": r, "timestamp_ms": 5 + r, "metrics": {"m": r / 3}, "texts": {}, "clients": []}
    for r in range(3)
]
NOTES = [{"tags": {"a": "1"}, "texts": {}}, {"tags": {}, "texts": {"b.txt": "2"}}]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Write a spool as that version did: two of three rounds and the first note are sent."""
    spool = tmp_path / "spool" / NAME
    for folder in ("weights", "models", "files/figures"):
        (spool / folder).mkdir(parents=True)
    rounds = [json.dumps(line).encode() + b"\n" for line in ROUNDS]
    (spool / "rounds.jsonl").write_bytes(b"".join(rounds) + b'{"server_round": 3, "torn')
    notes = [json.dumps(line).encode() + b"\n" for line in NOTES]
    (spool / "notes.jsonl").write_bytes(b"".join(notes))
    write_npz(spool / "weights" / "round_0002.npz", {"w": np.arange(2.0)})
    write_npz(spool / "models" / "final.npz", {"w": np.ones(2)})
    (spool / "models" / "final.json").write_text('{"model": "linear"}')
    (spool / "files" / "figures" / "a.png").write_bytes(b"x")
    run = {"name": "fedavg s0", "params": {"seed": "0"}, "tags": {}, "texts": {}}
    start = {
        "target": {"uri": "u", "experiment": "x"},
        "start_ms": 1,
        "process": vars(Process.current()),
        "run": run,
    }
    models = [{"name": "final", "server_round": 2}]
    end = {"status": "FINISHED", "error": "", "tags": {}, "texts": {}, "end_ms": 9}
    sent = {"rounds": sum(map(len, rounds[:2])), "notes": len(notes[0])}
    contents: dict[str, Any] = {"run": start, "end": end | {"models": models}, "sent": sent}
    for name, content in contents.items():
        (spool / f"{name}.json").write_text(json.dumps(content))
    return spool


def test_a_spool_becomes_a_journal(spool: Path, tmp_path: Path) -> None:
    """With all that was in it; what was sent is not sent again."""
    half = tmp_path / "runs" / NAME / JOURNAL
    half.parent.mkdir(parents=True)
    half.write_bytes(b"of an attempt that was killed")
    convert_spools(tmp_path)
    assert not spool.parent.exists()
    (folder,) = Journal.pending(tmp_path)
    journal = Journal.claim(folder)
    assert journal is not None
    assert journal.name == NAME
    assert journal.start["run"]["params"] == {"seed": "0"}
    assert [line for line, _ in journal.rounds()] == ROUNDS
    assert [note for note, _ in journal.notes()] == NOTES
    sent = journal.sent
    assert [line for line, _ in journal.rounds(sent["rounds"])] == ROUNDS[2:]
    assert [note for note, _ in journal.notes(sent["notes"])] == NOTES[1:]
    assert journal.arrays("weights", 2)["w"].tolist() == [0, 1]
    assert journal.arrays("model/final", 2)["w"].tolist() == [1, 1]
    assert journal.end["models"][0]["spec"] == {"model": "linear"}
    assert list(journal.files()) == [("figures/a.png", b"x")]
    journal.release()


def test_a_damaged_one_stays_and_says_why(spool: Path, tmp_path: Path) -> None:
    """The others are converted, and the attempt is made again when it can be read."""
    good = spool.with_name("20260102-030406-0123abcd")
    shutil.copytree(spool, good)
    whole = (spool / "end.json").read_text()
    (spool / "end.json").write_text("{")
    report = replay(tmp_path, f"sqlite:///{tmp_path}/m.db")
    assert (list(report.sent), list(report.waiting)) == ([good.name], [NAME])
    assert str(spool) in report.waiting[NAME]
    (spool / "end.json").write_text(whole)
    assert convert_spools(tmp_path) == {}
    assert not spool.exists()


def test_one_that_is_written_to_or_is_none_stays(spool: Path, tmp_path: Path) -> None:
    (spool.parent / "a file").touch()
    with FileLock(spool / "lock"):
        convert_spools(tmp_path)
    assert spool.exists()
    convert_spools(tmp_path)
    assert not spool.exists()
    convert_spools(tmp_path / "nowhere")
