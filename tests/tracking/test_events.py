"""Whoever watches a run finds on the disk what goes on, and no run waits for that."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Context, Message
from flwr.clientapp import ClientApp

import fl_app.grid.run
from fl_app import server_app
from fl_app.client_app import app as client_app
from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.dashboard.known import KeptModels, known
from fl_app.errors import FlAppError
from fl_app.grid import InProcessGrid, run_in_process
from fl_app.home import Process, home_dir
from fl_app.models.serving import Predictor
from fl_app.runtimes.result import RunResult, RunStoppedError, read_result, result_written
from fl_app.tracking import Events, RoundRecord, RunEnd, RunStart, Trackers
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JOURNAL, JournalReader, unpack
from fl_app.tracking.recorder import JournalTracker

NUM_CLIENTS = 4
TABLES = ("facts", "rounds", "notes", "events", "arrays", "files")
NAME = "20260102-030405-0123abcd"


@pytest.fixture(autouse=True)
def _hear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hear every event: those inside a round do not stay."""
    heard.clear()
    add = Journal.add_event

    def add_event(self: Journal, event: Mapping[str, Any], now: bool = False) -> None:
        heard.setdefault(self.folder, []).append(json.loads(json.dumps(event)))
        add(self, event, now)

    monkeypatch.setattr(Journal, "add_event", add_event)


heard: dict[Path, list[dict[str, Any]]] = {}


def kept(folder: Path, table: str) -> list[dict[str, Any]]:
    """Read what is left of a run."""
    return [content for content, _ in getattr(JournalReader(folder), table)()]


def folders() -> list[Path]:
    """Return the folders of runs, the oldest first."""
    return sorted((home_dir() / "runs").iterdir())


def quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.WARNING)
    logging.getLogger("fl_app.grid").setLevel(logging.CRITICAL)


def run(tmp_path: Path, *overrides: str, app: ClientApp = client_app) -> Path:
    """Run a config in this process; return the folder that a page reads."""
    quiet()
    words = [f"num_clients={NUM_CLIENTS}", "num_server_rounds=2", f"output_dir={tmp_path}/out"]
    config = compose_config([*words, "tracking=none", *overrides])
    launch = {"config-json": RunRequest(config).to_json()}
    run_in_process(server_app.app, app, config.num_clients, launch)
    return folders()[-1]


# ---------------------------------------------------------------------------- a run's events
def test_a_run_tells_what_it_does_in_order(tmp_path: Path) -> None:
    """From the first line, before anything is waited for, to the last one, after result.json."""
    events = heard[run(tmp_path)]
    exchanges = [(r, what) for r in (1, 2) for what in ("train", "evaluate")]
    told = [(e["event"], e.get("round"), e.get("exchange")) for e in events]
    assert told == [
        *((kind, None, None) for kind in ("begin", "data", "handshake", "roster", "model")),
        *((kind, *exchange) for exchange in exchanges for kind in ("asked", "replied")),
        *((kind, None, None) for kind in ("ending", "end")),
    ]
    by_kind = {e["event"]: e for e in events}
    assert by_kind["begin"]["runtime"] == "inprocess"
    assert Process(**by_kind["begin"]["process"]) == Process.current()
    assert by_kind["handshake"]["asked"] == NUM_CLIENTS
    assert by_kind["asked"]["clients"] == by_kind["replied"]["clients"] == [0, 1, 2, 3]
    assert by_kind["replied"]["failed"] == {}
    assert (by_kind["end"]["status"], by_kind["end"]["error"]) == ("FINISHED", "")
    stamps = [e["time_ms"] for e in events]
    assert stamps == sorted(stamps)
    assert Predictor.from_spec(by_kind["model"]["spec"]).encoding.task == "classification"


def test_the_roster_adds_up_to_the_data(tmp_path: Path) -> None:
    """Each node's rows stand in an event and in a table of the record; their sums are the tags'."""
    folder = run(tmp_path)
    (roster,) = [e["nodes"] for e in heard[folder] if e["event"] == "roster"]
    notes = kept(folder, "notes")
    tags = {k: v for note in notes for k, v in note["tags"].items()}
    texts = {k: v for note in notes for k, v in note["texts"].items()}
    table = json.loads(texts["clients/roster.json"])
    assert table == {"columns": ["partition", "num_examples", "num_validation"], "data": roster}
    assert [row[0] for row in roster] == list(range(NUM_CLIENTS))
    assert sum(row[1] for row in roster) == int(tags["data.train_rows"])
    assert sum(row[2] for row in roster) == int(tags["data.validation_rows"])


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    """The last line has the status and the reason, whether or not the run got to its rounds."""
    with pytest.raises(FlAppError, match="min_rows"):
        run(tmp_path, "min_rows=100000")
    end = heard[folders()[-1]][-1]
    assert (end["event"], end["status"]) == ("end", "FAILED")
    assert "min_rows=100000" in end["error"]
    with pytest.raises(FlAppError, match="config-json"):
        run_in_process(server_app.app, client_app, 2, {"config-json": "nonsense"})
    begin, end = heard[folders()[-1]]
    assert (begin["event"], end["status"]) == ("begin", "FAILED")


def test_waiting_for_nodes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of nodes is told once, from the first look on."""
    monkeypatch.setattr("fl_app.server_app._REMOTE_POLL", 0.0)
    monkeypatch.setattr("fl_app.server_app._NODES_STABLE", 0.0)
    seen: list[int] = []

    class Growing:
        counts = iter([1, 1, 2, 4, 4, 4])

        def get_node_ids(self) -> Iterable[int]:
            return range(next(self.counts))

    grid: Any = Growing()
    assert len(server_app.wait_for_online(grid, 4, lambda text: None, seen.append)) == 4
    assert seen == [1, 2, 4]
    seen.clear()
    Growing.counts = iter([0, 3, 3])
    assert len(server_app.wait_for_nodes(grid, seen.append)) == 3
    assert seen == [0, 3]


# ---------------------------------------------------------------------------- who failed
def clients(change: Callable[[int, Message], Message]) -> ClientApp:
    """Make the project's clients, whose training replies are changed by partition."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return change(int(context.node_config["partition-id"]), client_app(message, context))

    app.query("describe")(client_app)
    app.evaluate()(client_app)
    return app


def crashing_and_nan(partition: int, reply: Message) -> Message:
    """Let client 1 fail, with a line end and a control character, and client 2 reply NaN."""
    if partition == 1:
        raise RuntimeError("no\nGPU\x1b[2J here")
    if partition == 2:
        name, array = next(iter(reply.content["arrays"].items()))
        reply.content["arrays"][name] = Array(np.full_like(array.numpy(), np.nan))
    return reply


class Losing(InProcessGrid):
    """A grid that loses the training reply of partition 3."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        last = self.get_node_ids()[-1]
        return [
            reply
            for reply in replies
            if (reply.metadata.src_node_id, reply.metadata.message_type) != (last, "train")
        ]


def test_who_failed_is_known_by_partition_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash, a NaN and a silence stand in the record of the round, and in the events."""
    monkeypatch.setattr(fl_app.grid.run, "InProcessGrid", Losing)
    folder = run(tmp_path, app=clients(crashing_and_nan))
    for r in (1, 2):
        (line,) = [x for x in kept(folder, "rounds") if x["server_round"] == r]
        told = json.loads(line["texts"][f"aggregation/round_{r:04d}.json"])
        assert told["asked"] == [0, 1, 2, 3]
        assert set(told["failed"]) == {"1", "2", "3"}
        assert told["failed"]["1"].startswith("the client failed: ")
        assert "no GPU?[2J here" in told["failed"]["1"]
        assert "holds NaN or infinity" in told["failed"]["2"]
        assert told["failed"]["3"] == "no reply in time"
        assert told["evaluate"] == {"asked": [0, 1, 2, 3], "failed": {}}
        assert [c["partition"] for c in told["clients"]] == [0]
        (event,) = [
            e
            for e in heard[folder]
            if (e["event"], e.get("round"), e.get("exchange")) == ("replied", r, "train")
        ]
        assert (event["clients"], event["failed"]) == ([0], told["failed"])


def test_a_round_that_fails_tells_who_was_missing(tmp_path: Path) -> None:
    """Below ``min_replies`` there is no record of the round, but the events name the clients."""

    def fail(partition: int, reply: Message) -> Message:
        raise RuntimeError("x" * 1000)

    with pytest.raises(FlAppError, match="0 usable replies"):
        run(tmp_path, app=clients(fail))
    *_, replied, ending, _ = heard[folders()[-1]]
    assert (replied["event"], ending["event"]) == ("replied", "ending")
    assert (replied["clients"], set(replied["failed"])) == ([], {"0", "1", "2", "3"})
    assert {len(reason) for reason in replied["failed"].values()} == {300}


def everywhere(value: Any) -> Iterable[Any]:
    """Yield every mapping inside a JSON value, texts that hold JSON included."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except ValueError:
            return
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from everywhere(item)
    elif isinstance(value, list):
        for item in value:
            yield from everywhere(item)


@pytest.mark.parametrize("tracking", ["none", "mlflow"])
def test_a_private_run_names_no_client(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no row of the journal, even of a run with failures, is anything by partition."""

    def crash(partition: int, reply: Message) -> Message:
        if partition == 1:
            raise RuntimeError("failed")
        return reply

    whole: list[Any] = []

    def look(self: Journal) -> None:  # before anything goes
        whole.append({t: self._rows(f"SELECT * FROM {t}") for t in TABLES})
        self._is_sent = True

    monkeypatch.setattr(Journal, "mark_whole", look)
    uri = [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"] if tracking == "mlflow" else []
    folder = run(
        tmp_path,
        *("privacy=dp_fixed", "privacy.noise_multiplier=0.5", "dataset=diabetes"),
        *(f"tracking={tracking}", *uri),
        app=clients(crash),
    )
    (tables,) = whole
    assert len(tables["rounds"]) == 3
    kinds = {kind for kind, *_ in tables["arrays"]}
    assert kinds <= {"model/final", "weights", "now", "state"}
    rows = [row[-1] for name in ("facts", "rounds", "notes", "events") for row in tables[name]]
    for value in (v for row in rows for v in everywhere(unpack(row))):
        assert not {"partition", "client", "asked", "failed", "nodes"} & value.keys() or (
            value.get("event") == "handshake"  # how many, before the run knows its clients
        ), value
        assert not value.get("clients"), value
        keys = {key for key in value if "client_" in key and key[-3:].isdigit()}
        assert not keys, keys
    events = [e for e in heard[folder] if e["event"] in ("asked", "replied")]
    trained = [e for e in events if e["exchange"] == "train"]
    assert [e["count"] for e in trained] == [4, 3, 4, 3]
    assert [e.get("failed_count") for e in trained] == [None, 1, None, 1]


# ---------------------------------------------------------------------------- the record
def test_a_run_without_mlflow_keeps_the_same_rounds(tmp_path: Path) -> None:
    """Metrics, texts and rows are those of MLflow's record, but for the clock; arrays are not."""
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    there = run(tmp_path, "tracking=mlflow", uri)
    run_id = read_result(f"{tmp_path}/out").run_id
    here = run(tmp_path)
    assert here != there

    def rounds(folder: Path) -> list[dict[str, Any]]:
        found = kept(folder, "rounds")
        for line in found:
            line["metrics"].pop("cost/seconds", None)
            line.pop("timestamp_ms")
        return found

    assert [x["server_round"] for x in rounds(here)] == [0, 1, 2]
    assert rounds(here) == rounds(there)
    for folder in (here, there):
        reader = JournalReader(folder)
        assert reader.start["run"]["output_dir"] == f"{tmp_path}/out"
        assert reader.end["status"] == "FINISHED"
        assert reader.kept("weights") == []
        assert (len(reader.kept("model/final")), len(reader.kept("model/best"))) == (1, 1)
        assert folder.stat().st_mode & 0o077 == 0
        assert [path.name for path in folder.iterdir()] == [JOURNAL]
    assert JournalReader(there).sent["run_id"] == run_id


def test_nothing_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without MLflow not one fsync in a round, and few writes."""
    levels: set[Any] = set()
    writes: list[int] = []
    add, write = Journal.add_round, Journal._write

    def add_round(self: Journal, line: Mapping[str, Any], **arrays: Any) -> None:
        levels.update(self._rows("PRAGMA synchronous"))
        add(self, line, **arrays)
        writes.append(0)

    def count(self: Journal, *args: Any, **kwargs: Any) -> None:
        write(self, *args, **kwargs)
        if writes:
            writes[-1] += 1

    monkeypatch.setattr(Journal, "add_round", add_round)
    monkeypatch.setattr(Journal, "_write", count)
    begin = time.monotonic()
    run(tmp_path, "num_server_rounds=30")
    assert levels == {(0,)}
    assert sum(writes[:-1]) <= 1 + (time.monotonic() - begin) / 0.5


def test_a_full_disk_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Events that do not fit are lost; the next ones are written when there is room again."""
    with Events("inprocess", tmp_path) as events:
        assert events.folder is not None
        journal = events._journal
        assert journal is not None

        def full(*_: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "fl_app"):
            patch.setattr(Journal, "_write", full)
            for server_round in range(3):
                events.event("asked", {"round": server_round})
                journal._flush_quietly()
    assert [e["event"] for e in kept(events.folder, "events")] == ["begin", "end"]
    assert len(caplog.messages) == 1


def test_a_home_that_cannot_be_written_to_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then there is no folder, and nothing else changes."""
    (tmp_path / "runs").touch()
    with caplog.at_level(logging.WARNING, "fl_app"), Events("inprocess", tmp_path) as events:
        assert events.folder is None
        events.event("data", {})
        events.record(RoundRecord(0, {"w": np.ones(1)}))
    assert len(caplog.messages) == 1


# ---------------------------------------------------------------------------- models
def test_small_models_are_kept_round_by_round(tmp_path: Path) -> None:
    """Of the lesson: round 0's arrays, and what each client sent, whose mean is the new model."""
    folder = run(tmp_path, "experiment=two_lines", "num_clients=2")
    rounds = [JournalReader(folder).arrays("seen", r) for r in range(3)]
    assert set(rounds[0]) == {"global/coef", "global/intercept"}
    for arrays in rounds[1:]:
        for name in ("coef", "intercept"):
            own = [arrays[f"client/{k:03d}/{name}"] for k in range(2)]
            assert np.mean(own, axis=0) == pytest.approx(arrays[f"global/{name}"])


def test_of_a_stack_only_models_are_kept(tmp_path: Path) -> None:
    """A client's models, neither its sums and scores nor the models that leave out a fold."""
    data = ("dataset=synthetic_classification", "dataset.num_features=2")
    folder = run(tmp_path, *data, "strategy=fedstacking", "num_server_rounds=4")
    rounds = [JournalReader(folder).arrays("seen", r) for r in range(5)]
    kinds = [{n.split("/")[2] for n in arrays if n.startswith("client/")} for arrays in rounds]
    assert kinds == [set(), {"global", "base"}, {"global"}, set(), set()]
    assert any(name.startswith("global/member/") for name in rounds[-1])


def test_of_boosted_trees_only_the_ensemble_is_kept(tmp_path: Path) -> None:
    """A client's trees of one round are no model; the page draws the ensemble alone."""
    pytest.importorskip("xgboost")
    data = ("dataset=synthetic_classification", "dataset.num_features=2")
    folder = run(tmp_path, *data, "strategy=fedxgbbagging", "num_server_rounds=2")
    models = KeptModels(folder)
    assert [{name.split("/")[0] for name in models[r]} for r in range(3)] == [{"global"}] * 3
    spec = next(e["spec"] for e in heard[folder] if e["event"] == "model")
    (only,) = known(spec, models, 2, strategy="fedxgbbagging", num_rounds=2)
    assert only.title == "boosted trees"


def test_models_have_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 24 clients theirs are left out, beyond the budget of a run all are."""
    monkeypatch.setattr("fl_app.tracking.events._MAX_MODEL_BYTES", 3000)
    with Events("inprocess", tmp_path) as events:
        events.keeps_models = True
        trackers = Trackers(events)
        assert trackers.keeps_models
        for server_round in range(5):
            trackers.see_models(server_round, {k: {"w": np.ones(1)} for k in range(25)})
            trackers.record(RoundRecord(server_round, {"w": np.ones(100)}))
    assert events.folder is not None
    reader = JournalReader(events.folder)
    rounds = [reader.arrays("seen", r) for r in reader.kept("seen")]
    assert 0 < len(rounds) < 5
    assert sum(array.nbytes for arrays in rounds for array in arrays.values()) <= 3000
    assert all(set(arrays) == {"global/w"} for arrays in rounds)
    assert not trackers.keeps_models


def test_large_or_private_models_are_not_kept(tmp_path: Path) -> None:
    """Where no picture can be drawn, or no client may be shown, none is kept."""
    assert JournalReader(run(tmp_path)).kept("seen") == []
    private = ("experiment=two_lines", "num_clients=2", "privacy=dp_fixed")
    assert JournalReader(run(tmp_path, *private)).kept("seen") == []


# ---------------------------------------------------------------------------- trackers
class Foreign:
    """A tracker that knows nothing of events and models."""

    def start(self, run: RunStart) -> None:
        pass

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        pass

    def record(self, record: RoundRecord) -> None:
        pass

    def finish(self, end: RunEnd) -> None:
        pass


class Nosy(Foreign):
    """A tracker that fails at every event."""

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        raise OSError(kind)


def test_a_tracker_without_events_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Events reach those that have the method, and a failing one disturbs nobody."""
    with (
        Events("inprocess", tmp_path) as events,
        caplog.at_level(logging.WARNING, "fl_app"),
    ):
        trackers = Trackers(Foreign(), Nosy(), events)
        trackers.event("data", {"a": 1})
        trackers.event("data", {"a": 2})
        trackers.see_models(1, {0: {"w": np.ones(1)}})
        assert not trackers.keeps_models
    assert events.folder is not None
    told = [e["a"] for e in heard[events.folder] if e["event"] == "data"]
    assert told == [1, 2]
    assert len(caplog.messages) == 1


def test_the_end_is_the_trackers_end(tmp_path: Path) -> None:
    """``finish`` is only noted: the last line comes with ``close``, when all is sent."""
    with Events("inprocess", tmp_path) as events:
        events.finish(RunEnd("FAILED", error="why"))
        events.event("later", {})
    assert events.folder is not None
    *_, later, end = heard[events.folder]
    assert (later["event"], end["status"], end["error"]) == ("later", "FAILED", "why")
    events.event("too late", {})
    events.close()
    assert heard[events.folder][-1] == end


def test_rounds_are_there_before_the_end(tmp_path: Path) -> None:
    """Whoever finds the end finds every round."""
    tracker = JournalTracker(tmp_path, NAME)
    with pytest.raises(FlAppError, match="not started"):
        tracker.record(RoundRecord(0, {}))
    tracker.start(RunStart("name", num_server_rounds=1))
    assert tracker.started
    for server_round in range(2):
        tracker.record(RoundRecord(server_round, {"w": np.ones(3)}, server={"mse": np.inf}))
    tracker.finish(RunEnd("FINISHED"))
    assert not tracker.started
    folder = tmp_path / "runs" / NAME
    assert JournalReader(folder).end["status"] == "FINISHED"
    assert [x["server_round"] for x in kept(folder, "rounds")] == [0, 1]
    (note,) = kept(folder, "notes")
    assert note["tags"] == {"infinite_metrics": "server/mse"}


# ---------------------------------------------------------------------------- result.json
@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), "KILLED", "interrupted"),
        (SystemExit(143), "KILLED", "interrupted"),
        (RunStoppedError("the run stopped: by you"), "KILLED", "the run stopped: by you"),
        (FlAppError("no nodes"), "FAILED", "no nodes"),
        (ValueError("odd"), "FAILED", "ValueError: odd"),
    ],
)
def test_every_end_leaves_a_result(
    error: BaseException, status: str, reason: str, tmp_path: Path
) -> None:
    """Whatever ends a run before it wrote a result, there is one, with the reason."""
    folder = tmp_path / "new"
    with pytest.raises(type(error)), result_written(str(folder)):
        raise error
    result = read_result(str(folder))
    assert (result.status, result.error, result.run_id) == (status, reason, None)
    # One of an earlier run is replaced.
    with pytest.raises(FlAppError), result_written(str(folder)):
        raise FlAppError("again")
    assert read_result(str(folder)).error == "again"


def test_a_result_of_the_runs_own_stays(tmp_path: Path) -> None:
    """What the run wrote itself before it failed says more."""

    def write_and_fail() -> None:
        with result_written(str(tmp_path)):
            own = RunResult("id", "FAILED", {}, None, 1.0, "own")
            (tmp_path / "result.json").write_text(json.dumps(vars(own)))
            raise FlAppError("other")

    with pytest.raises(FlAppError, match="other"):
        write_and_fail()
    assert read_result(str(tmp_path)).error == "own"


def test_bad_input_leaves_no_result(tmp_path: Path) -> None:
    """Nothing ran: there is nothing to say but the line on the terminal."""
    from fl_app.runtimes import run as run_launch

    config = compose_config(["dataset=diabetes", "num_clients=2000", f"output_dir={tmp_path}/out"])
    with pytest.raises(FlAppError, match="num_clients=2000"):
        run_launch(RunRequest(config))
    assert not (tmp_path / "out" / "result.json").exists()


def test_an_interrupt_before_the_tracker_leaves_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a run in this process reads its data: KILLED, as later."""
    from fl_app.runtimes import run as run_launch

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fl_app.experiment.description.whole_table", interrupt)
    config = compose_config(["dataset=wine", "tracking=none", f"output_dir={tmp_path}/out"])
    with pytest.raises(KeyboardInterrupt):
        run_launch(RunRequest(config))
    assert read_result(f"{tmp_path}/out").status == "KILLED"
    begin, *_, end = heard[folders()[-1]]
    assert (begin["event"], end["status"]) == ("begin", "KILLED")


def test_an_interrupt_while_the_record_is_sent_leaves_the_end_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says FINISHED and will be sent later, so the events say no other thing."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fl_app.tracking.recorder.JournalTracker.finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    end = heard[folders()[-1]][-1]
    assert (end["event"], end["status"], end["error"]) == ("end", "FINISHED", "")


@pytest.mark.parametrize("member", ["fedavg", "ls"])
def test_no_clients_sums_are_in_the_record(tmp_path: Path, member: str) -> None:
    """What FedStacking's clients sum over their rows is in no file; their models are."""
    data = ["dataset=synthetic_regression", "dataset.num_features=2", "num_server_rounds=4"]
    stack = ["strategy=fedstacking", f"strategy.global_member={member}"]
    folder = run(tmp_path, *data, *stack, "strategy.base_models=[ridge]")
    reader = JournalReader(folder)
    seen = [name for r in reader.kept("seen") for name in reader.arrays("seen", r)]
    seen = [name.split("/", 2)[2] for name in seen if name.startswith("client/")]
    told = [
        name
        for line in kept(folder, "rounds")[1:]
        for client in json.loads(
            line["texts"][f"aggregation/round_{line['server_round']:04d}.json"]
        )["clients"]
        for name in client["arrays"] or {}
    ]
    assert any(name.startswith("base/") for name in seen)
    assert {name.partition("/")[0] for name in seen} <= {"base", "global"}
    assert {name.partition("/")[0] for name in told} <= {"base", "global", "norm"}
