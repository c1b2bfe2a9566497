"""Whatever fails on the way, a store ends up with exactly what the journal held."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.tracking import LoggedModel, RunEnd, RunStart
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JournalReader
from fl_app.tracking.mlflow.upload import (
    Metric,
    Pace,
    Run,
    RunDeletedError,
    StoppedError,
    Store,
    Upload,
)
from fl_app.tracking.mlflow.uploader import Uploader, replay_outboxes

NUM_ROUNDS = 5


class MemoryStore:
    """A tracking server in memory, with MLflow's ways: what it has, it does not get twice."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.registered: dict[str, str] = {}
        self.down = False
        self.faults: list[Literal["fine", "before", "after"]] = []
        self.calls = 0
        self.arrived: list[str] = []

    def connect(self) -> None:
        self._call()

    def find_run(self, target: Mapping[str, Any], name: str) -> Run | None:
        self._call()
        found = [Run(i, "1") for i, run in self.runs.items() if run["name"] == name]
        return found[0] if found else None

    def create_run(self, target: Mapping[str, Any], name: str, start: Mapping[str, Any]) -> Run:
        with self._fault():
            run_id = f"run-{len(self.runs)}"
            self.runs[run_id] = {
                "name": name,
                "start_ms": start["start_ms"],
                "metrics": set(),
                "params": {},
                "tags": {},
                "files": {},
                "models": {},
                "end": None,
                "deleted": False,
            }
            return Run(run_id, "1")

    def keep_one(self, run: Run, name: str) -> None:
        self._call()
        for run_id in [i for i, r in self.runs.items() if r["name"] == name and i != run.run_id]:
            del self.runs[run_id]

    def run_state(self, run: Run) -> Literal["active", "deleted", "missing", "trashed"]:
        self._call()
        if run.run_id not in self.runs:
            return "missing"
        return "deleted" if self.runs[run.run_id]["deleted"] else "active"

    def log(
        self,
        run: Run,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        with self._fault():
            own = self._active(run)
            own["metrics"] |= set(metrics)
            own["params"] |= params or {}
            own["tags"] |= tags or {}

    def log_file(self, run: Run, file: Path, path: str) -> None:
        with self._fault():
            assert file.name == Path(path).name
            self._active(run)["files"][path] = file.read_bytes()
            self.arrived.append(path)

    def log_table(self, run: Run, path: str) -> None:
        with self._fault():
            self._active(run)["tags"]["table"] = path

    def log_model(
        self,
        run: Run,
        name: str,
        files: Path,
        metrics: Sequence[Metric],
        step: int,
        known: Mapping[str, Any],
        keep: Callable[[Mapping[str, Any]], None],
    ) -> str:
        for part in ("code", "arrays.npz"):
            if part not in known.get("files", []):
                with self._fault():
                    self.arrived.append(f"{name}/{part}")
                known = {"files": [*known.get("files", []), part]}
                keep(known)
        with self._fault():
            content = {p.name: p.read_bytes() for p in files.iterdir()}
            self._active(run)["models"][name] = (step, content, frozenset(metrics))
            return f"model-{name}"

    def register(self, run: Run, model_id: str, name: str) -> None:
        with self._fault():
            self.registered[name] = model_id

    def end_run(self, run: Run, status: str, end_ms: int) -> None:
        with self._fault():
            self._active(run)["end"] = (status, end_ms)

    def _active(self, run: Run) -> dict[str, Any]:
        own = self.runs[run.run_id]
        if own["deleted"]:
            raise ValueError("the run must be active")
        return own

    def _call(self) -> None:
        with self._fault():
            pass

    def _fault(self) -> Fault:
        self.calls += 1
        fault = self.faults.pop() if self.faults else "fine"
        return Fault("before" if self.down else fault)


class Fault:
    """Fails before the body, or after it: a server can do its work and its answer get lost."""

    def __init__(self, kind: Literal["fine", "before", "after"]) -> None:
        self.kind = kind

    def __enter__(self) -> None:
        if self.kind == "before":
            raise ConnectionError("no server")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.kind == "after" and kind is None:
            raise ConnectionError("no answer")


def recorded(home: Path) -> Journal:
    """Make a journal that holds one of everything."""
    run = RunStart("name", {"a": "1", "long": "x" * 7000}, {"t": "1"}, {"config.yaml": "a: 1"})
    journal = Journal.create(home)
    journal.begin({"uri": "memory", "register_as": "champion"}, run, 1_000)
    journal.add_note({"data": "2"}, {"roster.json": "{}"})
    for server_round in range(NUM_ROUNDS):
        line = {
            "server_round": server_round,
            "timestamp_ms": 2_000 + server_round,
            "metrics": {f"server/m{k}": k / 10 + server_round for k in range(300)},
            "texts": {f"aggregation/{server_round}.json": "{}"},
            "clients": [{"server_round": server_round, "partition": 0, "mse": 1.0}],
        }
        journal.add_round(line, weights={"w": np.full(2, server_round)})
    return journal


def finished(home: Path) -> Journal:
    """Make a journal whose run is over."""
    journal = recorded(home)
    models = [LoggedModel(name, 2, {"w": np.ones(2)}, {"n": name}) for name in ("final", "best")]
    journal.add_end(RunEnd("FINISHED", {"sha": "3"}, models, {"end.txt": "."}), 9_000)
    return journal


def without(run: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return a run without some of its parts."""
    return {key: value for key, value in run.items() if key not in keys}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """Send a journal with nothing failing."""
    store = MemoryStore()
    journal = finished(tmp_path_factory.mktemp("sent"))
    Upload(journal, store, Pace(), fresh=True).close(journal.end)
    journal.release()
    return store


def test_a_store_gets_all_that_the_journal_holds(sent: MemoryStore) -> None:
    """Every part of a journal arrives once, at its own time."""
    (run,) = sent.runs.values()
    assert run["start_ms"] == 1_000
    assert run["end"] == ("FINISHED", 9_000)
    assert run["metrics"] == {
        Metric(f"server/m{k}", k / 10 + r, 2_000 + r, r)
        for k in range(300)
        for r in range(NUM_ROUNDS)
    }
    assert run["params"]["a"] == "1"
    assert run["tags"] == {"t": "1", "data": "2", "sha": "3", "table": "clients/evaluate.json"}
    assert {
        "config.yaml",
        "roster.json",
        "end.txt",
        "clients/evaluate.json",
        *(f"weights/round_{r:04d}.npz" for r in range(NUM_ROUNDS)),
        *(f"aggregation/{r}.json" for r in range(NUM_ROUNDS)),
    } <= set(run["files"])
    assert len(json.loads(run["files"]["clients/evaluate.json"])["data"]) == NUM_ROUNDS
    assert set(run["models"]) == {"final", "best"}
    step, files, metrics = run["models"]["final"]
    assert (step, set(files)) == (2, {"arrays.npz", "spec.json"})
    assert metrics == {m for m in run["metrics"] if m.step == 2}
    assert sent.registered == {"champion": "model-best"}


def test_long_values_are_moved_to_artifacts(sent: MemoryStore) -> None:
    """A param that MLflow would cut says where its whole text is."""
    (run,) = sent.runs.values()
    assert len(run["params"]["long"]) < 6000
    assert "params/long.txt" in run["params"]["long"]
    assert run["files"]["params/long.txt"] == b"x" * 7000


@settings(max_examples=20)
@given(
    faults=st.lists(st.sampled_from(["fine", "before", "after"]), max_size=30),
    restarts=st.lists(st.booleans(), max_size=30),
)
def test_no_fault_changes_what_arrives(
    faults: list[Any],
    restarts: list[bool],
    sent: MemoryStore,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Calls that fail before or after their work, and new processes, end in the same content."""
    store = MemoryStore()
    store.faults = faults
    journal = finished(tmp_path_factory.mktemp("faulty"))
    carrier = Upload(journal, store, Pace(), fresh=True)
    for _ in range(len(faults) + 1):
        try:
            carrier.close(journal.end)
        except ConnectionError:
            if restarts and restarts.pop():
                carrier = Upload(journal, store, Pace())
        else:
            break
    journal.release()
    (wanted,), (got,) = sent.runs.values(), store.runs.values()
    assert without(got, "name") == without(wanted, "name")
    assert store.registered == sent.registered


def test_a_journal_can_be_sent_again(tmp_path: Path) -> None:
    """Sending a copy of a journal a second time, without its marker, changes nothing."""
    store = MemoryStore()
    finished(tmp_path).release()
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "runs", copy)
    (name,) = replay_outboxes(tmp_path, lambda uri: store).sent
    before = json.dumps(store.runs, default=repr, sort_keys=True)
    shutil.rmtree(tmp_path / "runs")
    shutil.copytree(copy, tmp_path / "runs")
    assert replay_outboxes(tmp_path, lambda uri: store).sent == [name]
    assert len(store.runs) == 1
    assert json.loads(json.dumps(store.runs, default=repr, sort_keys=True)) == json.loads(before)
    assert Journal.pending(tmp_path) == []


def test_a_run_without_an_end_was_killed(tmp_path: Path) -> None:
    """A journal whose process said nothing is closed as KILLED, with all its rounds."""
    journal = recorded(tmp_path)
    journal.add_event({"event": "asked", "time_ms": 7_000})
    journal.release()
    last = 7_000
    store = MemoryStore()
    assert replay_outboxes(tmp_path, lambda uri: store).sent == [journal.name]
    (run,) = store.runs.values()
    assert run["end"] == ("KILLED", last)
    assert {m.step for m in run["metrics"]} == set(range(NUM_ROUNDS))
    kept = JournalReader(journal.folder).end
    assert (kept["status"], kept["end_ms"]) == ("KILLED", last), "a page says so too"


@pytest.mark.parametrize("begun", [False, True])
def test_what_goes_nowhere_does_not_wait(begun: bool, tmp_path: Path) -> None:
    """A process killed before a tracker knew of the run, and a run without a tracking server."""
    journal = Journal.create(tmp_path)
    journal.add_event({"event": "begin", "time_ms": 7})
    if begun:
        journal.begin({}, RunStart(), 5, durable=False)
    journal.release()
    assert replay_outboxes(tmp_path, lambda uri: MemoryStore()).sent == [journal.name]
    assert Journal.pending(tmp_path) == []
    end = JournalReader(journal.folder).end
    assert (end.get("status"), end.get("end_ms")) == (("KILLED", 7) if begun else (None, None))


def test_a_store_that_was_made_anew_gets_a_new_run(tmp_path: Path) -> None:
    """A run that the store has forgotten is made again, with all rounds."""
    store = MemoryStore()
    journal = recorded(tmp_path)
    carrier = Upload(journal, store, Pace(), fresh=True)
    carrier.send()
    store.runs.clear()
    journal.add_end(RunEnd("FINISHED"), 9_000)
    journal.add_note({"late": "1"}, {})
    carrier.close(journal.end)
    (run,) = store.runs.values()
    assert run["end"] == ("FINISHED", 9_000)
    assert {m.step for m in run["metrics"]} == set(range(NUM_ROUNDS))
    journal.release()


def test_nobody_waits_for_a_deleted_run(tmp_path: Path) -> None:
    """A run that a user deleted is not brought back: the rest is given up."""
    store = MemoryStore()
    journal = recorded(tmp_path)
    Upload(journal, store, Pace(), fresh=True).send()
    store.runs["run-0"]["deleted"] = True
    journal.add_note({"late": "1"}, {})
    with pytest.raises(RunDeletedError):
        Upload(journal, store, Pace()).send()
    journal.release()
    assert replay_outboxes(tmp_path, lambda uri: store).deleted == [journal.name]
    assert Journal.pending(tmp_path) == []


def test_a_model_that_cannot_be_logged_does_not_hold_the_run_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run is closed, the failure is told, and the journal does not wait for ever."""

    class NoModels(MemoryStore):
        def log_model(self, *_: Any) -> str:
            raise ValueError("bad model")

    store = NoModels()
    finished(tmp_path).release()
    with caplog.at_level(logging.WARNING, "fl_app"):
        while not (report := replay_outboxes(tmp_path, lambda uri: store)).sent:
            (run,) = store.runs.values()
            assert run["end"] == ("FINISHED", 9_000)
            (reason,) = report.waiting.values()
            assert "bad model" in reason
    assert "bad model" in caplog.text
    assert Journal.pending(tmp_path) == []


def test_replay_tells_what_it_did(tmp_path: Path) -> None:
    """Live journals are skipped, a silent server is asked once, what it should get stays."""
    live = recorded(tmp_path)
    waiting = [finished(tmp_path) for _ in range(2)]
    for journal in waiting:
        journal.release()
    store = MemoryStore()
    store.down = True
    report = replay_outboxes(tmp_path, lambda uri: store)
    assert report.live == [live.name]
    assert set(report.waiting) == {journal.name for journal in waiting}
    assert "no server" in report.waiting[waiting[0].name]
    assert store.calls == 1
    store.down = False
    assert set(replay_outboxes(tmp_path, lambda uri: store).sent) == set(report.waiting)
    live.release()


def test_what_another_process_has_sent_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two read the list, and the second comes to a run when the first has done with it."""
    journal = finished(tmp_path)
    folder = journal.folder
    journal.release()
    store = MemoryStore()
    replay_outboxes(tmp_path, lambda uri: store)
    calls = store.calls
    monkeypatch.setattr(Journal, "pending", lambda home: [folder])
    assert replay_outboxes(tmp_path, lambda uri: store).sent == []
    (folder / "lock").touch()
    assert replay_outboxes(tmp_path, lambda uri: store).sent == []
    assert store.calls == calls
    assert not (folder / "lock").exists()


def test_a_folder_that_cannot_be_written_to_stops_nobody(tmp_path: Path) -> None:
    bad, good = finished(tmp_path), finished(tmp_path)
    for journal in (bad, good):
        journal.release()
    bad.folder.chmod(0o500)
    try:
        sent = replay_outboxes(tmp_path, lambda uri: MemoryStore()).sent
    finally:
        bad.folder.chmod(0o700)
    assert good.name in sent


def test_one_bad_journal_does_not_stop_the_others(tmp_path: Path) -> None:
    """A journal that cannot be read waits, and the one after it is sent."""
    bad, good = finished(tmp_path), finished(tmp_path)
    for journal in (bad, good):
        journal.release()
    taken = Journal.claim(bad.folder)
    assert taken is not None
    taken._write([("UPDATE facts SET content = ? WHERE key = 'start'", (b"{",))])
    taken.release()
    report = replay_outboxes(tmp_path, lambda uri: MemoryStore())
    assert (report.sent, list(report.waiting)) == ([good.name], [bad.name])


class Waits:
    """An event that is never set and keeps how long it was waited for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False


@pytest.mark.parametrize("others", [0.0, 0.5, 1.0])
def test_a_sender_rests_in_proportion(others: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a share of 1/5 a rest takes four times what was computed, less where nobody else works."""
    clock = {"thread_time": 0.0, "process_time": 0.0, "monotonic": 0.0}
    for name in clock:
        monkeypatch.setattr(f"time.{name}", lambda name=name: clock[name])
    waits: Any = Waits()
    pace = Pace(waits, share=1 / 5)
    pace.rest()
    for computed, elapsed in ((3.0, 10.0), (0.5, 4.0)):
        clock["thread_time"] += computed
        clock["process_time"] += computed + others * elapsed
        clock["monotonic"] += elapsed
        pace.rest()
    assert waits.seconds == pytest.approx([0, 4 * 3.0 * others, 4 * 0.5 * others])


def test_a_sender_can_be_stopped_between_calls(tmp_path: Path) -> None:
    """What was sent before is marked, the rest waits."""
    stops = iter([False, False, False, True])
    journal = finished(tmp_path)
    journal.release()
    store = MemoryStore()
    pace = Pace(stop=lambda: next(stops))
    report = replay_outboxes(tmp_path, lambda uri: store, pace)
    assert report.waiting == {journal.name: "stopped"}
    assert store.runs
    assert replay_outboxes(tmp_path, lambda uri: store).sent == [journal.name]
    assert len(store.runs) == 1
    with pytest.raises(StoppedError):
        Pace(stop=lambda: True).rest()


def no_tidying(pace: Pace) -> None:
    """Replay nothing."""


def sender(journal: Journal, store: Store) -> Uploader:
    """Start a sender."""
    thread = Uploader(journal, store, no_tidying)
    thread.start()
    assert thread.tried.wait(30)
    return thread


def test_a_sender_gives_its_journal_up(tmp_path: Path) -> None:
    """At the end the store has all and nothing waits."""
    store, journal = MemoryStore(), recorded(tmp_path)
    thread = sender(journal, store)
    assert thread.tracked_run == Run("run-0", "1")
    journal.add_end(RunEnd("FINISHED"), 9_000)
    thread.finish({})
    thread.join(30)
    assert thread.complete
    assert store.runs["run-0"]["end"] == ("FINISHED", 9_000)
    assert Journal.pending(tmp_path) == []


def test_who_has_no_time_has_the_end_said_first(tmp_path: Path) -> None:
    """Of a slow store: it gets the end at once, and the rest with the next run."""

    class Slow(MemoryStore):
        def log_file(self, run: Run, file: Path, path: str) -> None:
            asked.set()
            time.sleep(0.5)
            super().log_file(run, file, path)

    asked = threading.Event()
    store, journal = Slow(), finished(tmp_path)
    end = journal.end
    thread = Uploader(journal, store, no_tidying)
    thread.start()
    assert asked.wait(30)
    thread.finish({})
    thread.hasten(0.1)
    thread.join(30)
    (run,) = store.runs.values()
    assert run["end"] == (end["status"], end["end_ms"])
    assert not thread.complete
    assert [*replay_outboxes(tmp_path, lambda uri: MemoryStore()).sent] == [journal.name]


def test_a_server_that_comes_back_gets_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage costs one line in the log; what it missed is sent when it is over."""
    monkeypatch.setattr("fl_app.tracking.mlflow.uploader._FLUSH_SECONDS", 0.01)
    store, journal = MemoryStore(), recorded(tmp_path)
    store.down = True
    back = threading.Event()
    monkeypatch.setattr(store, "end_run", lambda *_: back.set())
    with caplog.at_level(logging.WARNING, "fl_app"):
        thread = sender(journal, store)
        store.down = False
        thread.finish({"status": "FINISHED", "end_ms": 1})
        thread.join(30)
    assert back.is_set()
    assert thread.complete
    assert caplog.text.count("cannot be used now") == 1


def test_a_server_that_stays_away_costs_nothing_but_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The end does not wait for a server that was never there; its journal does."""
    store, journal = MemoryStore(), recorded(tmp_path)
    store.down = True
    with caplog.at_level(logging.WARNING, "fl_app"):
        thread = sender(journal, store)
        thread.finish({"status": "FAILED", "end_ms": 1})
        thread.join(30)
    assert not thread.is_alive()
    assert not thread.complete
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2
    assert [p.name for p in Journal.pending(tmp_path)] == [journal.name]
    again = Journal.claim(journal.folder)
    assert again is not None
    again.release()


class SlowStore(MemoryStore):
    """A server that answers every call, after a time."""

    seconds = 0.1

    def _fault(self) -> Fault:
        threading.Event().wait(self.seconds)
        return super()._fault()


def once(store: MemoryStore) -> bool:
    """Say whether every file arrived once, but the table, which grows."""
    arrived = [path for path in store.arrived if path != "clients/evaluate.json"]
    return len(arrived) == len(set(arrived))


def test_a_slow_server_gets_all_while_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each call takes a tenth of the patience, all together many times of it."""
    monkeypatch.setattr("fl_app.tracking.mlflow.uploader._LAST_TRY_SECONDS", 1.0)
    store, journal = SlowStore(), finished(tmp_path)
    with caplog.at_level(logging.WARNING, "fl_app"):
        thread = sender(journal, store)
        thread.finish({})
        thread.join()
    assert thread.complete
    assert store.calls * store.seconds > 2
    assert once(store)
    assert caplog.records == []


@pytest.mark.parametrize("kept", [6, 12, 20])
def test_sending_goes_on_where_it_stopped(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that fails after some calls, again and again, gets no file twice."""
    monkeypatch.setattr("fl_app.tracking.mlflow.upload._MODEL_TRIES", 1000)
    store = MemoryStore()
    finished(tmp_path).release()
    for _ in range(200):
        store.faults = ["before", *["fine"] * kept]
        if replay_outboxes(tmp_path, lambda uri: store).sent:
            break
    (run,) = store.runs.values()
    assert set(run["models"]) == {"final", "best"}
    assert once(store)


def test_a_server_that_takes_something_at_each_try_gets_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end does not count the tries, as long as each of them gets on."""
    monkeypatch.setattr("fl_app.tracking.mlflow.uploader._LAST_TRY_SECONDS", 0.0)
    monkeypatch.setattr("fl_app.tracking.mlflow.uploader._FLUSH_SECONDS", 0.001)
    store, journal = MemoryStore(), finished(tmp_path)
    store.faults = ["before", *["fine"] * 6] * 50
    thread = sender(journal, store)
    thread.finish({})
    thread.join(60)
    assert thread.complete
    assert once(store)


def test_a_trashed_experiment_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It can be restored: until then the rest waits, which one line says; then all is sent."""
    store, journal = MemoryStore(), recorded(tmp_path)
    Upload(journal, store, Pace(), fresh=True).send()
    run = store.runs["run-0"]
    run["deleted"] = True
    monkeypatch.setattr(store, "run_state", lambda run: "trashed")
    journal.add_note({"late": "1"}, {})
    with caplog.at_level(logging.WARNING, "fl_app"):
        thread = sender(journal, store)
        thread.finish({"status": "FINISHED", "end_ms": 1})
        thread.join(30)
    said = [record.getMessage() for record in caplog.records]
    assert sum("experiment was deleted" in line for line in said) == 1
    report = replay_outboxes(tmp_path, lambda uri: store)
    assert (report.deleted, list(report.waiting)) == ([], [journal.name])
    run["deleted"] = False
    assert replay_outboxes(tmp_path, lambda uri: store).sent == [journal.name]
    assert run["tags"]["late"] == "1"


def test_a_disk_without_room_gives_no_model_up(tmp_path: Path) -> None:
    """However often it fails; a model that is given up leaves a tag in the run."""

    class NoRoom(MemoryStore):
        number = errno.ENOSPC

        def log_model(self, *_: Any) -> str:
            raise OSError(self.number, "no room")

    store = NoRoom()
    finished(tmp_path).release()
    for _ in range(8):
        assert not replay_outboxes(tmp_path, lambda uri: store).sent
    store.number = errno.EIO
    while not replay_outboxes(tmp_path, lambda uri: store).sent:
        pass
    (run,) = store.runs.values()
    assert "no room" in run["tags"]["models.error"]


def test_a_loss_and_a_return_are_one_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the kinds of the failures in between."""
    store, journal = MemoryStore(), recorded(tmp_path)
    thread = Uploader(journal, store, no_tidying)
    errors = iter([ConnectionError("a"), TimeoutError("b"), ConnectionError("c")])

    def fail() -> None:
        raise next(errors)

    with caplog.at_level(logging.WARNING, "fl_app"):
        for call in (store.connect, fail, fail, fail, store.connect, store.connect):
            thread._attempt(call)
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" at ")[0] for line in said] == ["MLflow", "MLflow"]
    assert "cannot be used now" in said[0]
    assert "answers again" in said[1]
    journal.release()


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        ("UPDATE arrays SET content = zeroblob(9) WHERE kind = 'weights' AND server_round = 1", 1),
        ("UPDATE arrays SET content = NULL, file = 'arrays/gone.npz' WHERE server_round = 3", 1),
        ("UPDATE arrays SET content = substr(content, 1, 90) WHERE kind = 'model/final'", 1),
        ("UPDATE rounds SET content = zeroblob(9) WHERE server_round = 1", 1),
        ("UPDATE facts SET content = zeroblob(9) WHERE key = 'end'", 1),
        ("INSERT OR REPLACE INTO facts VALUES ('sent', zeroblob(9))", 0),
    ],
)
def test_what_is_damaged_here_keeps_nothing_else_back(
    damage: str, lost: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line names it, the run has a tag; all else is sent, and nothing waits."""
    journal = finished(tmp_path)
    journal.add_event({"event": "end", "status": "FINISHED", "error": "", "time_ms": 9_000})
    journal.flush()
    journal._base.execute(damage)
    journal.release()
    store = MemoryStore()
    with caplog.at_level(logging.WARNING, "fl_app"):
        assert replay_outboxes(tmp_path, lambda uri: store).sent == [journal.name]
    assert Journal.pending(tmp_path) == []
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == lost
    assert all("damaged" in line and "MLflow gets the rest" in line for line in lines)
    (run,) = store.runs.values()
    assert run["end"][0] == "FINISHED"
    rounds = {m.step for m in run["metrics"]}
    weights = {path for path in run["files"] if path.startswith("weights/")}
    gone = (NUM_ROUNDS - len(rounds), NUM_ROUNDS - len(weights), 2 - len(run["models"]))
    table, _, where = damage.partition(" SET ")[0].removeprefix("UPDATE "), "", damage
    expected = {"rounds": (1, 1, 0), "facts": (0, 0, 2)}.get(table, (0, 0, 0))
    if table == "arrays":
        expected = (0, 0, 1) if "model" in where else (0, 1, 0)
    assert gone == expected
    assert ("damaged" in run["tags"]) == (table in ("arrays", "rounds"))


def test_a_damaged_page_costs_its_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite refuses a page; the rows of the others are sent."""
    journal = finished(tmp_path)
    journal.release()
    file = journal.folder / "journal.db"
    content = file.read_bytes()
    (size,) = struct.unpack(">H", content[16:18])
    with closing(sqlite3.connect(file)) as base:
        (root,) = base.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'rounds'"
        ).fetchone()
    page = content[(root - 1) * size : root * size]
    assert page[0] == 5, "a table of several pages"
    begin = struct.unpack(">H", page[12:14])[0]
    (leaf,) = struct.unpack(">I", page[begin : begin + 4])
    damaged = bytearray(content)
    damaged[(leaf - 1) * size : leaf * size] = b"\xff" * size
    file.write_bytes(damaged)
    store = MemoryStore()
    with caplog.at_level(logging.WARNING, "fl_app"):
        assert replay_outboxes(tmp_path, lambda uri: store).sent == [journal.name]
    assert "row 1 of its rounds" in caplog.text
    (run,) = store.runs.values()
    steps = {m.step for m in run["metrics"]}
    assert steps
    assert steps < set(range(NUM_ROUNDS))
    assert run["end"] == ("FINISHED", 9_000)
    assert set(run["models"]) == {"final", "best"}


def test_a_file_that_is_no_journal_is_said(tmp_path: Path) -> None:
    """It waits, since nothing of it can be read; whoever sends is told."""
    good, bad = finished(tmp_path), finished(tmp_path)
    for journal in (good, bad):
        journal.release()
    (bad.folder / "journal.db").write_bytes(b"x" * 5000)
    report = replay_outboxes(tmp_path, lambda uri: MemoryStore())
    assert report.sent == [good.name]
    assert list(report.waiting) == list(report.damaged) == [bad.name]
