"""A run is found on the disk whatever state its files are in, and only what is new is read."""

from __future__ import annotations

import math
import shutil
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.dashboard.known import KeptModels
from fl_app.dashboard.live import Tail
from fl_app.dashboard.metric_values import (
    mean_values,
    metrics,
    shown_rows,
    strip,
    unit,
    values,
    worst_values,
)
from fl_app.dashboard.progress import phase
from fl_app.dashboard.run_files import heads_of, run_dir, runs
from fl_app.dashboard.view import PHASES
from fl_app.stacking.strategy import PHASES as STACKING_PHASES
from fl_app.tracking.journal_reader import JournalReader, pack
from fl_app.tracking.mlflow.uri import run_url
from tests.recorded import GONE, LIVING, NAME, UNSEEN, Record, real_runs, round_line


def models(home: Path, name: str, server_round: int) -> dict[str, Any]:
    """Return what is kept of a round."""
    return dict(KeptModels(run_dir(home, name)).get(server_round, {}))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


# ---------------------------------------------------------------------------- files
@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "20260102-030405", "7345205634270994864"]
)
def test_only_a_runs_name_leads_to_a_folder(home: Path, name: str) -> None:
    (home / "runs").mkdir(parents=True)
    assert Tail(home, name).read() is None
    assert models(home, name, 1) == {}


def test_a_run_that_is_not_there_is_none(home: Path) -> None:
    assert Tail(home, NAME).read() is None
    assert runs(home) == []


def test_nothing_new_is_the_same_view(home: Path) -> None:
    record = Record(home).start().rounds(0, 1)
    tail = Tail(home, NAME)
    view = tail.read()
    assert view is not None
    assert len(view.rounds) == 2
    assert tail.read() is view
    record.rounds(2)
    later = tail.read()
    assert later is not None
    assert later is not view
    assert [r.server_round for r in later.rounds] == [0, 1, 2]
    assert later.rounds[:2] == view.rounds, "rounds that were read are not read again"


def test_a_broken_row_is_skipped(home: Path) -> None:
    record = Record(home).start().rounds(0)
    with record.journal() as journal:
        for content in (pack({"server_round": "x"}), zlib.compress(b"[1, 2]"), b"no zlib"):
            journal._write([("INSERT INTO rounds VALUES (NULL, 1, ?)", (content,))])
    tail = Tail(home, NAME)
    view = tail.read()
    assert view is not None
    assert len(view.rounds) == 1
    record.rounds(1)
    later = tail.read()
    assert later is not None
    assert [r.server_round for r in later.rounds] == [0, 1]


@pytest.mark.parametrize("where", [0, 100, 5000])
def test_a_damaged_journal_costs_nobody_the_page(home: Path, where: int) -> None:
    Record(home).start().rounds(0, 1)
    other = Record(home, "20260102-030406-0123abcd").start().rounds(0, 1)
    with (other.folder / "journal.db").open("r+b") as file:
        file.seek(where)
        file.write(b"x" * 60_000)
    Tail(home, other.name).read()
    assert NAME in [head.name for head in runs(home)]


def test_a_run_that_is_removed_stays_on_the_page(home: Path) -> None:
    record = Record(home).begin(GONE).start(process=GONE).rounds(0, 1).end()
    tail = Tail(home, NAME)
    assert tail.read() is not None
    shutil.rmtree(record.folder)
    view = tail.read()
    assert view is not None
    assert view.vanished
    assert view.status == "finished"
    assert len(view.rounds) == 2


@pytest.mark.parametrize("fact", ["start", "end", "sent"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"null"])
def test_a_broken_fact_is_none(home: Path, fact: str, content: bytes) -> None:
    record = Record(home).begin().rounds(0)
    if fact != "start":
        record.start()
    for content_ in (content, zlib.compress(content)):
        with record.journal() as journal:
            journal._write([("INSERT OR REPLACE INTO facts VALUES (?, ?)", (fact, content_))])
        view = record.view()
        assert view.status == "running"
        assert [head.name for head in runs(home)] == [NAME]


@pytest.mark.parametrize(
    "event", [{"event": "roster", "nodes": [[1]]}, {"event": "asked"}, {"no": 1}, {"event": ["x"]}]
)
def test_a_broken_event_is_skipped(home: Path, event: dict[str, object]) -> None:
    record = Record(home).begin().start()
    with record.journal() as journal:
        journal.add_event(event)
    record.events(("handshake", {"asked": 3}))
    assert record.view().stage == "handshake"


def test_small_models_are_read_and_a_broken_archive_is_none(home: Path) -> None:
    with Record(home).begin().journal() as journal:
        journal.keep_arrays("seen", 3, {"global/coef": np.ones(2), "client/001/coef": np.eye(2)})
        query = "INSERT INTO arrays VALUES ('seen', 4, NULL, ?)"
        journal._write([(query, (b"PK\x03\x04 nothing",))])
    assert sorted(models(home, NAME, 3)) == ["client/001/coef", "global/coef"]
    assert models(home, NAME, 4) == models(home, NAME, 5) == {}


# ---------------------------------------------------------------------------- status and phase
CASES = {
    "nothing but a beginning": ([], [], None, LIVING, "starting"),
    "waits": ([("nodes", {"online": 3, "wanted": 4})], [], None, LIVING, "waiting"),
    "nodes are there": ([("nodes", {"online": 4, "wanted": 4})], [], None, LIVING, "starting"),
    "a round": ([], [0], None, LIVING, "running"),
    "delivers": ([("ending", {})], [0, 1], "FINISHED", LIVING, "running"),
    "is over": (
        [("end", {"status": "FINISHED", "error": ""})],
        [0],
        "FINISHED",
        LIVING,
        "finished",
    ),
    "was killed": ([("end", {"status": "KILLED", "error": "x"})], [0], None, LIVING, "killed"),
    "fell before the tracker": ([("end", {"status": "FAILED"})], [], None, LIVING, "failed"),
    "is gone": ([], [0, 1], None, GONE, "lost"),
    "is of another container": ([], [0, 1], None, UNSEEN, "running"),
    "is gone with an end": ([("ending", {})], [0, 1], "FAILED", GONE, "failed"),
}


@pytest.mark.parametrize("case", CASES)
def test_status(home: Path, case: str) -> None:
    """The list of runs and the view agree."""
    told, rounds, end, process, status = CASES[case]
    record = Record(home).begin(process).start(process=process).events(*told).rounds(*rounds)
    if end:
        record.end(end)
    assert record.view().status == status
    if status not in ("starting", "running"):  # which a list does not tell apart
        assert runs(home)[0].status == status


def test_a_record_without_events_is_over_with_its_end(home: Path) -> None:
    assert Record(home).start().rounds(0).end("KILLED", "Ctrl-C").view().status == "killed"


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([], "starting, 5 s"),
        ([("nodes", {"online": 3, "wanted": 4})], "waiting for nodes: 3 of 4, 5 s"),
        ([("nodes", {"online": 4, "wanted": 4})], "4 nodes are there, 5 s"),
        ([("nodes", {"online": 0, "wanted": 0})], "waiting for nodes, 5 s"),
        ([("tracking", {})], "starting MLflow, 5 s"),
        ([("data", {})], "reading the data, 5 s"),
        ([("handshake", {"asked": 1})], "handshake with 1 client, 5 s"),
        ([("roster", {"nodes": [[0, 9, 1]]})], "building the model, 5 s"),
        ([("model", {"spec": {}})], "scoring the model before training, 5 s"),
        (
            [
                ("asked", {"round": 1, "exchange": "train", "clients": [0, 1]}),
                ("reply", {"round": 1, "exchange": "train", "client": 1}),
            ],
            "round 1: 1 of 2 clients have replied, 5 s",
        ),
        (
            [
                ("asked", {"round": 1, "exchange": "train", "count": 9}),
                ("reply", {"round": 1, "exchange": "train", "count": 7}),
            ],
            "round 1: 7 of 9 clients have replied, 5 s",
        ),
        (
            [("asked", {"round": 1, "exchange": "train", "clients": [0, 1]})],
            "round 1: 2 clients train, 5 s",
        ),
        (
            [
                ("asked", {"round": 1, "exchange": "train", "clients": [0, 1]}),
                ("replied", {"round": 1, "clients": [0], "failed": {"1": "no reply in time"}}),
            ],
            "round 1: combining 1 reply, 1 failed, 5 s",
        ),
        (
            [("asked", {"round": 1, "exchange": "evaluate", "clients": [0]})],
            "round 1: 1 client evaluates, 5 s",
        ),
    ],
)
def test_phase_before_and_inside_a_round(
    home: Path, told: list[tuple[str, dict[str, object]]], sentence: str
) -> None:
    view = Record(home).begin().events(*told).view()
    assert phase(view, 1005.0) == sentence


def test_phase_of_what_is_not_there_yet_and_of_what_is_over(home: Path) -> None:
    assert phase(None, 12.0, since=10.0) == "importing, 2 s"
    assert "Flower's engine" in phase(None, 12.0, runtime="simulation")
    record = Record(home).begin().start().rounds(0, 1)
    assert phase(record.view(), 1001.0) == "round 1 of 3 is over"
    record.events(("ending", {}))
    assert phase(record.view(), 1000.0) == "all rounds are over: writing models and figures"
    record.end()
    assert phase(record.view(), 1000.0) == "sending the rest to MLflow"
    record.events(("end", {"status": "FAILED", "error": "too few replies"}))
    assert phase(record.view(), 1000.0) == "failed in round 2: too few replies"
    record.events(("end", {"status": "KILLED", "error": "KeyboardInterrupt"}))
    assert phase(record.view(), 1000.0) == "stopped in round 2"


def test_who_replied_in_a_round_that_failed_is_known(home: Path) -> None:
    told = {"round": 2, "exchange": "train"}
    record = Record(home).begin().start().rounds(0, 1)
    record.events(
        ("asked", told | {"clients": [0, 1, 2]}),
        ("replied", told | {"clients": [], "failed": {"0": "a", "1": "b", "2": "c"}}),
        ("end", {"status": "FAILED", "error": "round 2: 0 usable replies"}),
    )
    at = record.view().in_round
    assert at is not None
    assert at.server_round == 2
    assert at.train.failed == {0: "a", 1: "b", 2: "c"}
    record.rounds(2)
    assert record.view().in_round is None, "a round that is recorded is over"


def test_events_of_rounds_that_are_over_are_not_kept(home: Path) -> None:
    record = Record(home).begin().events(("roster", {"nodes": [[0, 5, 2], [1, 7, 0]]}))
    for server_round in range(1, 6):
        told = {"round": server_round, "exchange": "train"}
        record.events(("asked", told | {"clients": [0, 1]}), ("reply", told | {"client": 1}))
        if server_round < 5:
            record.rounds(server_round)
    assert sum(1 for _ in JournalReader(record.folder).events()) == 4
    view = record.view()
    assert view.roster == {0: (5, 2), 1: (7, 0)}
    assert view.in_round is not None
    assert view.in_round.server_round == 5
    assert view.in_round.train.replied == (1,)


# ---------------------------------------------------------------------------- what a round says
def test_bytes_of_a_round_are_differences(home: Path) -> None:
    view = Record(home).start().rounds(0, 1, 2).view()
    assert [(r.up, r.down) for r in view.rounds] == [(0, 0), (10, 20), (10, 20)]
    assert view.rounds[2].total_bytes == 60


def test_own_values_worst_and_mean(home: Path) -> None:
    view = Record(home).start().rounds(0, 1).view()
    np.testing.assert_allclose(
        strip(view, "accuracy"), [[np.nan, 0.1], [np.nan, 0.2], [np.nan, 0.3]]
    )
    assert worst_values(view, "accuracy")[1] == 0.1
    assert mean_values(view, "accuracy")[1] == 0.2
    assert values(view, metrics(view)[0]).tolist() == [0.5, 0.51]


def test_a_private_mean_is_on_validation_rows_like_any(tmp_path: Path) -> None:
    """No client is there to tell which; training rows where the run has no others."""
    record = Record(tmp_path).start(params={"privacy.name": "dp_fixed"})
    for number in (1, 2):
        scores = {"train/accuracy": 0.9, "train/loss": 3.0, "eval/accuracy": 0.3}
        record.rounds(number, clients=(), metrics=scores)
    view = record.view()
    assert mean_values(view, "accuracy").tolist() == [0.2, 0.2]
    assert mean_values(view, "loss").tolist() == [3.0, 3.0]


def test_a_client_of_few_rows_is_not_the_worst_where_others_have_more(home: Path) -> None:
    rows = [{"partition": k, "num_examples": n, "mse": v} for k, n, v in ((0, 1, 9.0), (1, 5, 2.0))]
    record = Record(home).start().rounds(0)
    record.line(round_line(1, clients=()) | {"clients": rows})
    record.line(round_line(2) | {"clients": rows[:1]})
    assert worst_values(record.view(), "mse").tolist()[1:] == [2.0, 9.0]


def test_own_values_are_of_training_rows_where_nobody_validates(home: Path) -> None:
    record = Record(home).start()
    own = {"train_client_mse/000": 1.0, "train_client_mse/012": 3.0, "train/mse": 2.0}
    line = round_line(1, metrics=own)
    del line["metrics"]["server/accuracy"], line["metrics"]["eval/accuracy"]
    record.line(line | {"clients": []})
    view = record.view()
    assert shown_rows(view) == "training"
    assert view.rounds[0].training.partitions.tolist() == [0, 12]
    assert [(m.name, m.source, m.higher) for m in metrics(view)] == [("mse", "train", False)]
    assert strip(view, "mse").shape == (13, 1)
    assert not any("_client_" in key for key in view.keys), "they are held as arrays only"


def test_metrics_take_the_server_before_eval_before_train(home: Path) -> None:
    record = Record(home).start()
    record.rounds(0, metrics={"eval/brier": 0.1, "train/brier": 0.2, "train/log_loss": 0.3})
    record.rounds(1, metrics={"server/majority_share": 0.5, "train/train_loss": 1.0})
    found = [(m.name, m.source) for m in metrics(record.view())]
    assert found == [("accuracy", "server"), ("log_loss", "train"), ("brier", "eval")]


def test_values_that_are_no_numbers_are_nan(home: Path) -> None:
    record = Record(home).start()
    record.rounds(1, metrics={"server/accuracy": math.nan, "server/brier": None})  # type: ignore[dict-item]
    view = record.view()
    assert math.isnan(view.rounds[0].metrics["server/accuracy"])
    assert math.isnan(view.rounds[0].metrics["server/brier"])


def test_who_was_asked_and_who_failed(home: Path) -> None:
    told = {
        "clients": [{"partition": 0, "num_examples": 5, "weight": 1.0, "arrays": None}],
        "asked": [0, 1],
        "failed": {"1": "the client failed: out of memory"},
        "evaluate": {"asked": [0, 1, 2], "failed": {"2": "no reply in time"}},
    }
    record = (
        Record(home).start().rounds(1, clients=[0, 1], texts={"aggregation/round_0001.json": told})
    )
    round_ = record.view().rounds[0]
    assert round_.train.asked == (0, 1)
    assert round_.train.replied == (0,)
    assert round_.train.failed == {1: "the client failed: out of memory"}
    assert round_.evaluate.asked == (0, 1, 2)
    assert round_.evaluate.replied == (0, 1)
    assert round_.evaluate.failed == {2: "no reply in time"}
    assert round_.sizes == {0: 5}


def test_privacy_is_counts_and_a_sentence(home: Path) -> None:
    told = {"rule": "FedAvg", "num_examples": None, "clients": [], "aggregate": {"norm": 1.0}}
    cost = {"cost/clients_asked": 4, "cost/clients_replied": 3, "cost/clients_failed": 1}
    record = Record(home).begin().start(params={"privacy.name": "dp_fixed", "num_clients": "4"})
    record.events(("roster", {"count": 4}))
    record.rounds(1, clients=(), metrics=cost, texts={"aggregation/round_0001.json": told})
    view = record.view()
    assert view.private
    assert "differential privacy" in view.why_private
    train = view.rounds[0].train
    assert (train.num_asked, train.num_replied, train.num_failed) == (4, 3, 1)
    assert train.asked == ()
    assert view.roster == {}
    assert view.clients == 4


def test_pooled_has_one_client(home: Path) -> None:
    assert Record(home).start(params={"strategy.name": "pooled"}).view().clients == 1


def test_unit_of_a_squared_error(home: Path) -> None:
    spec = {"encoding": {"targets": ["price"]}}
    view = Record(home).begin().start().events(("model", {"spec": spec})).view()
    assert (unit(view, "mse"), unit(view, "mae"), unit(view, "r2")) == ("price²", "price", "")
    assert view.spec == spec


def test_phases_are_the_strategys() -> None:
    assert PHASES == STACKING_PHASES


# ---------------------------------------------------------------------------- where it belongs
def test_a_run_belongs_to_the_launch_whose_folder_it_writes_to(home: Path) -> None:
    folder = home / "dashboard" / "launches" / "abc" / "1"
    Record(home).start(output_dir=str(folder))
    assert [(h.launch, h.job) for h in runs(home)] == [("abc", "1")]
    other = "20260102-030406-0123abcd"
    Record(home, other).start(texts={"config/config.yaml": f"seed: 0\noutput_dir: {folder}\n"})
    newest, _ = runs(home)
    assert (newest.name, newest.launch, newest.job) == (other, "abc", "1")
    third = "20260102-030407-0123abcd"
    Record(home, third).start(output_dir="/elsewhere/0")
    assert runs(home, limit=1)[0].launch == ""


def test_the_runs_of_a_launch_are_found_in_the_order_of_its_jobs(home: Path) -> None:
    launch, late = "20260102-030404-123-0123abcd", "20260102-030406-0123abcd"
    folder = home / "dashboard" / "launches" / launch
    Record(home, late).start(output_dir=str(folder / "0"))
    Record(home).start(output_dir=str(folder / "1"))
    Record(home, "20260102-030407-0123abcd").start(output_dir="/elsewhere/0")
    assert [(h.name, h.job) for h in heads_of(home, launch)] == [(late, "0"), (NAME, "1")]
    assert [h.name for h in heads_of(home, NAME)] == [NAME]
    assert heads_of(home, "20260102-030409-123-0123abcd") == heads_of(home, "../x") == []


def test_the_link_to_mlflow_says_what_must_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(home).begin().start(uri="https://mlflow.example").rounds(0)
    assert record.view().mlflow.sentence == "MLflow has not got this run yet."
    record.fact("sent", {"run_id": "r", "experiment_id": "7"}).whole()
    link = record.view().mlflow
    assert link.url == run_url("https://mlflow.example", "7", "r")
    assert (link.command, link.sentence) == ("", "")
    for uri, command in (
        (f"sqlite:///{home}/mlflow.db", "fl-kit ui"),
        ("sqlite:////data/a b.db", "fl-kit ui --uri 'sqlite:////data/a b.db'"),
    ):
        record.start(uri=uri)
        assert record.view().mlflow.command == command


def test_what_waits_is_told(home: Path) -> None:
    record = Record(home).begin(GONE).start(process=GONE).rounds(0).end()
    assert "the rest waits" in record.view().mlflow.sentence
    none = Record(home, "20260102-030406-0123abcd", sent=True)
    none.start(uri="", params={"tracking.name": "none"}).end()
    assert none.view().mlflow.sentence == "This run is not recorded in MLflow (tracking=none)."


# ---------------------------------------------------------------------------- cost
def test_many_clients_and_rounds_cost_little(home: Path) -> None:
    """A tick without news costs less than 5 ms, 100 clients in 100 rounds less than 6 MB."""
    record = Record(home).start(params={"num_clients": "100"})
    clients = [
        {"partition": k, "num_examples": 13, "weight": 0.01, "arrays": {"norm": 1 / (k + 3)}}
        for k in range(100)
    ]
    told = {"rule": "FedAvg", "clients": clients, "asked": list(range(100)), "failed": {}}
    for server_round in range(101):
        texts = {"aggregation/round.json": told | {"server_round": server_round}}
        line = round_line(server_round, clients=range(100), texts=texts if server_round else {})
        record.line(line)
    tail = Tail(home, NAME)
    tracemalloc.start()
    try:
        view = tail.read()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert view is not None
    assert len(view.rounds) == 101
    assert held < 6e6, "so 500 rounds stay below 30 MB"
    took = []
    for _ in range(20):
        begin = time.perf_counter()
        assert tail.read() is view
        took.append(time.perf_counter() - begin)
    assert min(took) < 5e-3
    assert len(view.rounds[-1].aggregation["clients"]) == 100


# ---------------------------------------------------------------------------- a real run
def test_a_real_run_is_read_from_begin_to_end(home: Path) -> None:
    """The lesson without MLflow: what the record side writes is what this side reads."""
    (view,) = real_runs(home, ["experiment=two_lines"])
    assert view.status == "finished"
    assert view.total == 5
    assert view.clients == 2
    assert [r.server_round for r in view.rounds] == list(range(6))
    assert view.roster == {0: (2, 0), 1: (2, 0)}
    assert view.rounds[3].train.asked == view.rounds[3].train.replied == (0, 1)
    assert view.rounds[3].up == 2 * (2 + 4) * 8, "two clients' two values, three metrics and n"
    assert view.spec["encoding"]["task"] == "regression"
    assert sorted(models(home, view.name, 3)) == [
        f"{who}/{array}"
        for who in ("client/000", "client/001", "global")
        for array in ("coef", "intercept")
    ]
    assert phase(view, time.time()) == "finished after 5 rounds"
    assert [m.key for m in metrics(view)] == ["server/mse", "server/mae", "server/r2"]
    (head,) = runs(home)
    assert (head.status, head.strategy, head.dataset) == ("finished", "fedavg", "two_lines")
