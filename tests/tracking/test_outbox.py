"""A spool keeps whatever was acknowledged, however its writer ends."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fl_app import home
from fl_app.home import Process, home_dir, new_name
from fl_app.tracking import LoggedModel, RunEnd, RunStart
from fl_app.tracking.files import read_lines, read_npz, write_npz
from fl_app.tracking.outbox import Outbox

ARRAYS: dict[str, NDArray[Any]] = {
    "coef": np.arange(6.0).reshape(2, 3),
    "intercept": np.array([1, 2], np.float32),
}


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Outbox]:
    """Begin a spool, and give it up at the end."""
    spool = Outbox.create(tmp_path, {"uri": "x"}, RunStart("name", {"a": "1"}), 1234)
    yield spool
    spool.release()


def line(server_round: int, **metrics: float) -> dict[str, Any]:
    """Make a round's line."""
    return {"server_round": server_round, "metrics": metrics}


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Return whether two arrays are equal bit for bit."""
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_what_is_written_is_read(spool: Outbox) -> None:
    """Start, rounds, notes, end and marker come back as they were given."""
    spool.add_round(line(0, a=0.1), ARRAYS)
    spool.add_round(line(1, a=math.nan), None)
    spool.add_note({"tag": "1"}, {"path.txt": "text"})
    model = LoggedModel("final", 1, ARRAYS, {"columns": ["x"], "n": np.int64(3)})
    spool.add_end(RunEnd("FAILED", {"t": "2"}, [model], {"p": "q"}, "why"), 99)
    spool.mark_sent({"rounds": 5})

    assert spool.start["run"]["params"] == {"a": "1"}
    assert (spool.start["start_ms"], spool.start["target"]) == (1234, {"uri": "x"})
    assert Process(**spool.start["process"]) == Process.current()
    first, second = (content for content, _ in spool.rounds())
    assert first == line(0, a=0.1)
    assert math.isnan(second["metrics"]["a"])
    assert [n for n, _ in spool.notes()] == [{"tags": {"tag": "1"}, "texts": {"path.txt": "text"}}]
    assert spool.end["models"] == [{"name": "final", "server_round": 1}]
    assert (spool.end["status"], spool.end["end_ms"], spool.end["error"]) == ("FAILED", 99, "why")
    assert spool.sent == {"rounds": 5}
    for kept in (spool.weights(0), spool.path / "models" / "final.npz"):
        arrays = read_npz(kept)
        assert list(arrays) == list(ARRAYS)
        assert all(same(arrays[name], ARRAYS[name]) for name in ARRAYS)
    spec = json.loads((spool.path / "models" / "final.json").read_text())
    assert spec == {"columns": ["x"], "n": 3}
    assert not spool.weights(1).exists()


def test_reading_goes_on_where_it_stopped(spool: Outbox) -> None:
    """The offset after a line is where the next one is found."""
    for server_round in range(3):
        spool.add_round(line(server_round), None)
    offsets = [0, *(offset for _, offset in spool.rounds())]
    for done, offset in enumerate(offsets):
        rest = [content["server_round"] for content, _ in spool.rounds(offset)]
        assert rest == list(range(done, 3))


@given(data=st.data())
def test_a_torn_file_holds_its_whole_lines(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut anywhere, a file gives exactly the lines whose end is there."""
    contents = [{"n": n, "text": "ü\n" * n} for n in range(4)]
    lines = [json.dumps(c).encode() + b"\n" for c in contents]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("torn") / "rounds.jsonl"
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert [content for content, _ in read_lines(path)] == contents[:complete]


def test_a_broken_line_costs_itself_only(tmp_path: Path) -> None:
    """A line that is no JSON object is skipped, those around it are read."""
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(b'{"n": 1}\n\0\0\0\n[1]\n{"n": 2}\n{"n": 3')
    assert [content["n"] for content, _ in read_lines(path)] == [1, 2]
    assert list(read_lines(tmp_path / "none.jsonl")) == []


def test_a_line_that_does_not_fit_leaves_nothing(
    spool: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk the round is refused as a whole, and the next one is not glued to it."""
    spool.add_round(line(0), None)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, content: write(file, content[:7]))
        with pytest.raises(Exception, match="only 7 of"):
            spool.add_round(line(1), None)
    spool.add_round(line(2), None)
    assert [content["server_round"] for content, _ in spool.rounds()] == [0, 2]


def test_weights_are_there_before_the_line(spool: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round whose arrays could not be kept is no round."""
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", _fail)
        with pytest.raises(OSError, match="no disk"):
            spool.add_round(line(0), ARRAYS)
    assert list(spool.rounds()) == []
    assert not spool.weights(0).exists()


def _fail(*_: object) -> None:
    raise OSError("no disk")


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
values = hnp.arrays(
    hnp.floating_dtypes() | hnp.integer_dtypes() | hnp.boolean_dtypes(),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(
    arrays=st.dictionaries(names | st.sampled_from(["file", "arr_0", "a/b"]), values, max_size=3)
)
def test_arrays_come_back_bit_for_bit(
    arrays: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any names, dtypes and shapes survive, and the bytes of the file depend on nothing else."""
    folder = tmp_path_factory.mktemp("npz")
    write_npz(folder / "a.npz", arrays)
    write_npz(folder / "b.npz", arrays)
    read = read_npz(folder / "a.npz")
    assert list(read) == list(arrays)
    assert all(
        same(read[name], np.ascontiguousarray(arrays[name]).reshape(arrays[name].shape))
        for name in arrays
    )
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == ["a.npz", "b.npz"]


def test_python_objects_are_refused(tmp_path: Path) -> None:
    """An array that only pickle could write is refused, and the file before it stays."""
    path = tmp_path / "a.npz"
    write_npz(path, ARRAYS)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        write_npz(path, {"bad": np.array([{}], dtype=object)})
    assert list(read_npz(path)) == list(ARRAYS)


def test_a_live_spool_is_left_alone(spool: Outbox) -> None:
    """Whoever holds a spool has it alone; given up, it can be taken and holds what it held."""
    spool.add_round(line(0), None)
    assert Outbox.claim(spool.path) is None
    spool.release()
    taken = Outbox.claim(spool.path)
    assert taken is not None
    assert [content["server_round"] for content, _ in taken.rounds()] == [0]
    assert Outbox.claim(spool.path) is None
    taken.release()


def test_a_removed_spool_is_gone(spool: Outbox, tmp_path: Path) -> None:
    """Nothing of it stays under spool/, and asking for it is no error."""
    spool.remove()
    assert Outbox.paths(tmp_path) == []
    assert Outbox.claim(spool.path) is None
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_the_record_stays_under_runs(
    links: bool, spool: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, without arrays, for its owner; a reader goes on at the offset it had."""
    if not links:
        monkeypatch.setattr(os, "link", _fail)
    spool.add_round(line(0, a=0.1), ARRAYS)
    (_, offset), *_ = spool.rounds()
    spool.add_round(line(1), ARRAYS)
    spool.add_note({"tag": "1"}, {})
    model = LoggedModel("final", 1, ARRAYS, {})
    spool.add_end(RunEnd("FINISHED", models=[model], files={"a.png": b"x"}), 99)
    spool.mark_sent({"run_id": "7"})
    before = {p.name: p.read_bytes() for p in spool.path.iterdir() if p.suffix.startswith(".json")}
    kept = tmp_path / "runs" / spool.name
    kept.mkdir(parents=True, mode=0o700)
    (kept / "rounds.jsonl").write_text("left by a process that was killed while it did this")
    spool.remove()
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == before
    assert set(before) == {"run.json", "rounds.jsonl", "notes.jsonl", "end.json", "sent.json"}
    assert [c["server_round"] for c, _ in read_lines(kept / "rounds.jsonl", offset)] == [1]
    assert kept.stat().st_mode & 0o077 == 0


def test_a_home_without_room_for_the_record_is_cleared(spool: Outbox, tmp_path: Path) -> None:
    """Where runs/ cannot be made, the spool is removed all the same."""
    (tmp_path / "runs").touch()
    spool.remove()
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_spool_may_be_named(tmp_path: Path) -> None:
    """Whoever watches knows the name before the spool is there."""
    name = new_name(1_700_000_000_123)
    spool = Outbox.create(tmp_path, {}, RunStart(output_dir="/out"), 0, name)
    assert spool.name == name
    assert spool.start["run"]["output_dir"] == "/out"
    spool.release()


def test_names_are_in_the_order_of_their_starts() -> None:
    """To the millisecond, so that the last name is the newest run."""
    names = [new_name(1_700_000_000_000 + ms) for ms in (0, 1, 15, 16, 255, 999, 1000, 60_000)]
    assert sorted(names) == names
    assert new_name(5) != new_name(5)


def test_half_made_spools_are_not_seen(tmp_path: Path) -> None:
    """What a start was killed in is no spool; it goes after an hour, not under a start's hands."""
    young, old = tmp_path / "spool" / ".young", tmp_path / "spool" / ".old"
    for path in (young, old):
        path.mkdir(parents=True)
    long_ago = time.time() - 2 * 3600
    os.utime(old, (long_ago, long_ago))
    assert Outbox.paths(tmp_path) == []
    assert (young.exists(), old.exists()) == (True, False)
    assert Outbox.paths(tmp_path / "nowhere") == []


def test_spools_are_sorted_by_start(tmp_path: Path) -> None:
    """The older run is the earlier one in the list."""
    spools = [Outbox.create(tmp_path, {}, RunStart(), ms) for ms in (5_000, 1_000, 9_000)]
    starts = [json.loads((p / "run.json").read_text())["start_ms"] for p in Outbox.paths(tmp_path)]
    assert starts == [1_000, 5_000, 9_000]
    for spool in spools:
        spool.release()


def test_only_the_owner_reads_a_spool(spool: Outbox) -> None:
    """Its target may hold a password."""
    assert spool.path.stat().st_mode & 0o077 == 0


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is given wins over the environment, which wins over the user's directory."""
    monkeypatch.setenv("FL_APP_HOME", str(tmp_path / "env"))
    assert home_dir(tmp_path / "given") == tmp_path / "given"
    assert home_dir() == tmp_path / "env"
    monkeypatch.delenv("FL_APP_HOME")
    assert home_dir() == Path("~/.fl_app").expanduser()


def test_a_process_is_known_by_more_than_its_number() -> None:
    """The own process lives; its number with another start is gone; elsewhere is unknown."""
    own = Process.current()
    assert own.pid == os.getpid()
    assert not own.is_gone()
    if not own.started:
        pytest.skip("this system does not tell when a process began")
    assert Process(own.host, own.pid, "another").is_gone()
    assert not Process(f"not-{socket.gethostname()}", own.pid, "another").is_gone()
    assert not Process(own.host, own.pid, "").is_gone()
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert Process(own.host, ended.pid, own.started).is_gone()


def test_a_zombie_is_gone() -> None:
    """A child that has ended is gone, although nobody asked for its status yet."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        started = home._start_of(child.pid)
        if not started:
            pytest.skip("this system does not tell when a process began")
        process = Process(socket.gethostname(), child.pid, started)
        assert not process.is_gone()
        assert child.stdin is not None
        child.stdin.close()
        state = Path(f"/proc/{child.pid}/stat")
        deadline = time.monotonic() + 10
        while state.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.is_gone()


WRITER = """
import sys
import numpy as np
from pathlib import Path
from fl_app.tracking import RunStart
from fl_app.tracking.outbox import Outbox

spool = Outbox.create(Path(sys.argv[1]), {}, RunStart(), 0)
for server_round in range(10**6):
    spool.add_round({"server_round": server_round, "metrics": {"x": 1.0}}, {"w": np.ones(999)})
    print(server_round, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [1, 30, 177])
def test_killing_the_writer_loses_nothing(wanted: int, tmp_path: Path) -> None:
    """After kill -9 every round that the writer was told is kept is there, with its arrays."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for told in writer.stdout:
            if int(told) >= wanted:
                writer.kill()
                break
        rest = writer.stdout.read().split()
    acknowledged = max([wanted, *map(int, rest)])
    (path,) = Outbox.paths(tmp_path)
    spool = Outbox.claim(path)
    assert spool is not None
    rounds = [content["server_round"] for content, _ in spool.rounds()]
    assert rounds[: acknowledged + 1] == list(range(acknowledged + 1))
    for server_round in rounds:
        assert np.array_equal(read_npz(spool.weights(server_round))["w"], np.ones(999))
    spool.release()
