"""A journal keeps whatever was acknowledged, however its writer ends."""

from __future__ import annotations

import math
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import Timeout
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fl_app import home
from fl_app.errors import FlAppError
from fl_app.home import Process, home_dir, new_name
from fl_app.tracking import LoggedModel, RunEnd, RunStart
from fl_app.tracking.files import read_npz, write_npz
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JOURNAL, JournalReader, pack
from fl_app.tracking.recorder import JournalTracker

ARRAYS: dict[str, NDArray[Any]] = {
    "coef": np.arange(6.0).reshape(2, 3),
    "intercept": np.array([1, 2], np.float32),
}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Begin a journal, and give it up at the end."""
    journal = begun(tmp_path, 1234)
    yield journal
    if journal._holders:
        journal.release()


def begun(home: Path, start_ms: int = 0) -> Journal:
    """Begin a journal."""
    journal = Journal.create(home, new_name(start_ms))
    journal.begin({"uri": "x"}, RunStart("name", {"a": "1"}), start_ms)
    return journal


def line(server_round: int, **metrics: float) -> dict[str, Any]:
    """Make a round's line."""
    return {"server_round": server_round, "metrics": metrics}


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Return whether two arrays are equal bit for bit."""
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_what_is_written_is_read(journal: Journal) -> None:
    """Start, rounds, notes, end and marker come back as they were given, to others too."""
    journal.add_round(line(0, a=0.1), weights=ARRAYS)
    journal.add_round(line(1, a=math.nan))
    journal.add_note({"tag": "1"}, {"path.txt": "text"})
    model = LoggedModel("final", 1, ARRAYS, {"columns": ["x"], "n": np.int64(3)})
    end = RunEnd("FAILED", {"t": "2"}, [model], {"p": "q"}, "why", {"a/b.png": b"x"})
    journal.add_end(end, 99)
    journal.mark_sent({"rounds": 5})
    for reader in (journal, JournalReader(journal.folder)):
        assert reader.start["run"]["params"] == {"a": "1"}
        assert (reader.start["start_ms"], reader.start["target"]) == (1234, {"uri": "x"})
        assert Process(**reader.start["process"]) == Process.current()
        first, second = (content for content, _ in reader.rounds())
        assert first == line(0, a=0.1)
        assert math.isnan(second["metrics"]["a"])
        assert [n for n, _ in reader.notes()] == [
            {"tags": {"tag": "1"}, "texts": {"path.txt": "text"}}
        ]
        told = reader.end
        assert told["models"] == [
            {"name": "final", "server_round": 1, "spec": {"columns": ["x"], "n": 3}}
        ]
        assert (told["status"], told["end_ms"], told["error"]) == ("FAILED", 99, "why")
        assert reader.sent == {"rounds": 5}
        for kind, number in (("weights", 0), ("model/final", 1)):
            arrays = reader.arrays(kind, number)
            assert list(arrays) == list(ARRAYS)
            assert all(same(arrays[name], ARRAYS[name]) for name in ARRAYS)
        assert reader.kept("weights") == [0]
        assert list(reader.files()) == [("a/b.png", b"x")]
        with pytest.raises(KeyError):
            reader.arrays("weights", 1)


def test_reading_goes_on_where_it_stopped(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position of a round is where the next one is found, also over several reads."""
    monkeypatch.setattr("fl_app.tracking.journal_reader._PAGE", 2)
    for server_round in range(5):
        journal.add_round(line(server_round))
    positions = [0, *(position for _, position in journal.rounds())]
    for done, position in enumerate(positions):
        rest = [content["server_round"] for content, _ in journal.rounds(position)]
        assert rest == list(range(done, 5))


def test_large_arrays_stand_beside(journal: Journal, tmp_path: Path) -> None:
    """There before the round counts; gone when they are not needed any more."""
    large = {"w": np.arange(400_000.0)}
    journal.add_round(line(0), weights=large)
    journal.add_round(line(1), weights=ARRAYS)
    (file,) = (journal.folder / "arrays").iterdir()
    assert same(read_npz(file)["w"], large["w"])
    assert same(journal.arrays("weights", 0)["w"], large["w"])
    for number in (0, 1):
        assert journal.copy_arrays("weights", number, tmp_path / f"{number}.npz")
    assert same(read_npz(tmp_path / "0.npz")["w"], large["w"])
    assert list(read_npz(tmp_path / "1.npz")) == list(ARRAYS)
    journal.drop_arrays("weights", [0, 1])
    assert journal.kept("weights") == []
    assert list((journal.folder / "arrays").iterdir()) == []
    assert not journal.copy_arrays("weights", 0, tmp_path / "2.npz")


def test_a_round_whose_arrays_could_not_be_kept_is_no_round(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", _fail)
        with pytest.raises(OSError, match="no disk"):
            journal.add_round(line(0), weights={"w": np.arange(400_000.0)})
    journal.add_round(line(1))
    assert [content["server_round"] for content, _ in journal.rounds()] == [1]
    assert journal.kept("weights") == []


def test_a_full_disk_leaves_whole_rounds(tmp_path: Path) -> None:
    """The round that does not fit is refused as a whole; those before it are read by others."""
    code = (
        "import resource, signal, sys, numpy as np, pathlib\n"
        "from fl_app.tracking import RunStart\n"
        "from fl_app.tracking.journal import Journal\n"
        "journal = Journal.create(pathlib.Path(sys.argv[1]))\n"
        "journal.begin({}, RunStart(), 0)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, -1))\n"
        "for r in range(10**6):\n"
        "    line = {'server_round': r, 'x': list(np.random.random(500))}\n"
        "    journal.add_round(line, weights={'w': np.random.random(4000)})\n"
        "    print(r, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert f"rounds 0 to {len(done.stdout.split()) - 1} are kept in" in done.stderr
    said = len(done.stdout.split())
    assert said > 5
    (folder,) = Journal.pending(tmp_path)
    reader = JournalReader(folder)
    assert [content["server_round"] for content, _ in reader.rounds()] == list(range(said))
    assert reader.kept("weights") == list(range(said))


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


def test_python_objects_are_refused(journal: Journal) -> None:
    """An array that only pickle could write is refused, and its round with it."""
    for size in (1, 400_000):
        with pytest.raises(ValueError, match="allow_pickle=False"):
            journal.add_round(line(0), weights={"bad": np.full(size, {}, dtype=object)})
    assert list(journal.rounds()) == []


def test_a_live_journal_is_left_alone(journal: Journal) -> None:
    """Whoever holds a journal has it alone; given up, it can be taken and holds what it held."""
    journal.add_round(line(0))
    assert Journal.claim(journal.folder) is None
    journal.release()
    taken = Journal.claim(journal.folder)
    assert taken is not None
    assert [content["server_round"] for content, _ in taken.rounds()] == [0]
    assert Journal.claim(journal.folder) is None
    taken.release()


def test_those_who_write_in_one_process_share_one(journal: Journal, tmp_path: Path) -> None:
    """It is closed by the last of them."""
    other = Journal.opened(tmp_path, journal.name)
    assert other is journal
    journal.release()
    other.add_round(line(0))
    other.release()
    assert Journal.opened(tmp_path, journal.name) is None


def test_at_its_end_it_is_one_small_file(journal: Journal, tmp_path: Path) -> None:
    """Without arrays but the models' and the page's; with its rounds, wherever it is copied."""
    for number in range(50):
        journal.add_round(line(number), weights={"w": np.random.random(5000)})
    journal.keep_arrays("seen", 1, ARRAYS)
    models = [LoggedModel("final", 49, ARRAYS, {})]
    journal.add_end(RunEnd("FINISHED", models=models, files={"a.png": b"x" * 100_000}), 99)
    journal.mark_whole()
    journal.release()
    assert [p.name for p in journal.folder.iterdir()] == [JOURNAL]
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / JOURNAL).write_bytes((journal.folder / JOURNAL).read_bytes())
    reader = JournalReader(copy)
    assert sum(1 for _ in reader.rounds()) == 50
    assert reader.kept("weights") == list(reader.files()) == []
    assert (reader.kept("seen"), reader.kept("model/final")) == ([1], [49])
    assert (copy / JOURNAL).stat().st_size < 100_000
    assert Journal.pending(tmp_path) == []


def test_what_killed_processes_left_goes_when_all_is_sent(journal: Journal) -> None:
    """Arrays that no row names, and a sender's folder."""
    for name in ("arrays/weights_0009.npz", "outbox-x/weights/round_0001.npz"):
        file = journal.folder / name
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
    journal.mark_whole()
    journal.release()
    assert [p.name for p in journal.folder.iterdir() if p.is_file()] == [JOURNAL]
    assert list(journal.folder.glob("*/*")) == []


def test_a_run_that_goes_on_keeps_the_last_models(journal: Journal) -> None:
    """Not those of each of its ends."""
    for number, size in enumerate((3, 400_000, 400_001)):
        model = LoggedModel("final", number, {"w": np.ones(size)}, {})
        journal.add_end(RunEnd("FINISHED", models=[model]), 99)
        journal.reopen()
    assert journal.kept("model/final") == [2]
    assert len([*(journal.folder / "arrays").iterdir()]) == 1


def test_an_event_that_is_no_json_costs_itself_alone(journal: Journal) -> None:
    journal.add_event({"event": "asked", "what": {1, 2}})
    journal.add_event({"event": "data"})
    journal.add_round(line(0))
    assert [event["event"] for event, _ in journal.events()] == ["data"]
    assert len(list(journal.rounds())) == 1


def test_a_file_that_was_sent_already_is_none(journal: Journal, tmp_path: Path) -> None:
    """The machine fell between its removal and the row's."""
    journal.add_round(line(0), weights={"w": np.arange(400_000.0)})
    (file,) = (journal.folder / "arrays").iterdir()
    assert file.stat().st_mode & 0o044, "a tracking server of another user reads it"
    file.unlink()
    assert not journal.copy_arrays("weights", 0, tmp_path / "0.npz")


def test_what_goes_on_is_there_soon_and_rounds_that_need_no_disk_too(journal: Journal) -> None:
    """Without ``durable`` rounds are buffered as events are, in their order."""
    journal.begin({}, RunStart(), 0, durable=False)
    journal.add_event({"event": "asked", "round": 1})
    journal.add_round(line(0))
    reader = JournalReader(journal.folder)
    deadline = time.monotonic() + 20
    while not list(reader.rounds()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [event["event"] for event, _ in reader.events()] == ["asked"]
    journal.add_round(line(1))
    journal.flush()
    assert list(reader.events()) == []


def test_a_journal_may_be_named(tmp_path: Path) -> None:
    """Whoever watches knows the name before the tracker is there."""
    name = new_name(1_700_000_000_123)
    journal = Journal.create(tmp_path, name)
    assert journal.name == name
    with pytest.raises(Timeout):
        Journal.create(tmp_path, name)
    journal.release()


def test_a_journal_of_a_later_version_is_left_alone(journal: Journal) -> None:
    journal.release()
    with closing(sqlite3.connect(journal.folder / JOURNAL)) as base:
        base.execute("PRAGMA user_version = 99")
    with pytest.raises(FlAppError, match="later fl_app"):
        Journal.claim(journal.folder)


@pytest.mark.parametrize("kind", ["", "nfs4"])
def test_no_write_ahead_log_on_a_disk_of_several_machines(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fl_app.tracking.journal.shared_disk", lambda _: kind)
    with caplog.at_level("INFO", "fl_app"):
        journal = begun(tmp_path)
    journal.add_round(line(0), weights=ARRAYS)
    journal.add_event({"event": "x"})
    journal.flush()
    assert (journal.folder / f"{JOURNAL}-wal").exists() == (not kind)
    assert ("no write-ahead log" in caplog.text) == bool(kind)
    assert len(list(JournalReader(journal.folder).rounds())) == 1
    journal.release()


def test_names_are_in_the_order_of_their_starts() -> None:
    """To the millisecond, so that the last name is the newest run."""
    names = [new_name(1_700_000_000_000 + ms) for ms in (0, 1, 15, 16, 255, 999, 1000, 60_000)]
    assert sorted(names) == names
    assert new_name(5) != new_name(5)


def test_half_made_journals_are_not_seen(tmp_path: Path) -> None:
    """What a start was killed in is none; it goes after an hour, not under a start's hands."""
    young, old = tmp_path / "runs" / "young", tmp_path / "runs" / "old"
    for path in (young, old):
        path.mkdir(parents=True)
        (path / "lock").touch()
    long_ago = time.time() - 2 * 3600
    os.utime(old, (long_ago, long_ago))
    assert Journal.pending(tmp_path) == []
    assert (young.exists(), old.exists()) == (True, False)
    assert Journal.pending(tmp_path / "nowhere") == []


def test_what_is_pending_is_sorted_by_start(tmp_path: Path) -> None:
    """The older run is the earlier one in the list."""
    journals = [begun(tmp_path, ms) for ms in (5_000, 1_000, 9_000)]
    starts = [JournalReader(path).start["start_ms"] for path in Journal.pending(tmp_path)]
    assert starts == [1_000, 5_000, 9_000]
    for journal in journals:
        journal.release()


def test_only_the_owner_reads_a_journal(journal: Journal) -> None:
    """Its config may say what is nobody's business."""
    assert journal.folder.stat().st_mode & 0o077 == 0


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


def test_a_process_of_another_container_is_hidden() -> None:
    """Same machine and name, other PID namespace: its numbers are others; a new boot ends all."""
    own = Process.current()
    if not own.started:
        pytest.skip("this system does not tell when a process began")
    boot, space, tick = own.started.split("-")
    assert Process(own.host, own.pid, f"{boot}-1{space}-{tick}").is_hidden()
    for other in (own.started, f"{boot}-{space}-1{tick}", f"x{boot}-{space}-{tick}", "", "never"):
        assert not Process(own.host, own.pid, other).is_hidden()
    assert not Process(f"not-{own.host}", own.pid, f"{boot}-1{space}-{tick}").is_hidden()


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
from fl_app.tracking.journal import Journal

journal = Journal.create(Path(sys.argv[1]))
journal.begin({}, RunStart(), 0)
for number in range(10**6):
    weights = {"w": np.full(99 if number % 3 else 400_000, number)}
    journal.add_round({"server_round": number, "metrics": {"x": 1.0}}, weights=weights)
    print(number, flush=True)
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
    (folder,) = Journal.pending(tmp_path)
    journal = Journal.claim(folder)
    assert journal is not None
    rounds = [content["server_round"] for content, _ in journal.rounds()]
    assert rounds[: acknowledged + 1] == list(range(acknowledged + 1))
    for number in rounds:
        assert (journal.arrays("weights", number)["w"] == number).all()
    journal.release()


READER = """
import sys
from pathlib import Path
from fl_app.tracking.journal_reader import UNREADABLE, JournalReader
reader, held = JournalReader(Path(sys.argv[1])), sys.argv[2] == "held"
while True:
    try:
        if held:
            with reader.reading():
                print(len(list(reader.rounds())), flush=True)
                sys.stdin.read()
        print(len(list(reader.rounds())), flush=True)
    except UNREADABLE:
        pass
"""


@pytest.mark.parametrize("how", ["again and again", "held"])
def test_readers_that_never_rest_leave_it_one_file(
    how: str, journal: Journal, tmp_path: Path
) -> None:
    """The file alone is the whole journal; of readers that open it anew nothing lies beside."""
    for number in range(50):
        journal.add_round(line(number))
    command = [sys.executable, "-c", READER, str(journal.folder), how]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"50\n"
        journal.add_end(RunEnd("FINISHED"), 9)
        journal.mark_whole()
        journal.release()
        reader.kill()
    (tmp_path / JOURNAL).write_bytes((journal.folder / JOURNAL).read_bytes())
    copy = JournalReader(tmp_path)
    assert (copy.count_rounds(), copy.end["status"]) == (50, "FINISHED")
    left = {path.name: path.stat().st_size for path in journal.folder.iterdir()}
    assert left.pop(JOURNAL) > 0
    assert left == {} if how != "held" else left[f"{JOURNAL}-wal"] == 0


def test_the_log_stays_small_beside_a_reader(journal: Journal) -> None:
    """At most 16 MB, also where the arrays of many rounds are dropped at once."""
    reader, top = JournalReader(journal.folder), 0
    weights = {"w": np.random.default_rng(0).random(130_000)}
    for number in range(80):
        journal.add_round(line(number), weights=weights)
        if number % 20 == 19:
            journal.drop_arrays("weights", range(number - 19, number + 1))
        assert reader.count_rounds() == number + 1
        top = max(top, (journal.folder / f"{JOURNAL}-wal").stat().st_size)
    assert top < 16e6


def test_no_read_lasts(journal: Journal) -> None:
    """3,000 rounds of a hundred clients: each read transaction is over in 100 ms."""
    row = {f"m{k}": float(k) / 7 for k in range(300)}
    journal._set_durable(False)
    journal._write(
        [
            ("INSERT INTO rounds (server_round, content) VALUES (?, ?)", (n, pack(line(n, **row))))
            for n in range(3000)
        ]
    )
    reader, spent = JournalReader(journal.folder), list[float]()
    read = reader._rows

    def timed(query: str, *values: Any) -> list[tuple[Any, ...]]:
        begin = time.thread_time()
        rows = read(query, *values)
        spent.append(time.thread_time() - begin)
        return rows

    reader._rows = timed  # type: ignore[method-assign]
    assert sum(1 for _ in reader.rounds()) == reader.count_rounds() == 3000
    assert reader.last_sign_ms() == 1234
    assert max(spent) < 0.1


def test_an_interrupt_costs_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the end is written: it is kept all the same, and the interrupt is raised."""
    tracker = JournalTracker(tmp_path, "a")
    tracker.start(RunStart())
    flush, calls = Journal.flush, list[int]()

    def interrupted(self: Journal, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        flush(self, *args, **kwargs)

    monkeypatch.setattr(Journal, "flush", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracker.finish(RunEnd("FINISHED"))
    assert JournalReader(tmp_path / "runs" / "a").end["status"] == "FINISHED"
