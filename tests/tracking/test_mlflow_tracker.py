"""What MlflowTracker records can be read back from a real MLflow store, whatever happened."""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian
from mlflow import MlflowClient

from fl_app import runtimes
from fl_app.config.compose import compose_config
from fl_app.config.options import ModelConfig
from fl_app.config.run_request import RunRequest
from fl_app.data.encoding import Encoding
from fl_app.errors import ConfigError, FlAppError
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.home import Process, new_name
from fl_app.models.serving import Predictor, predictor
from fl_app.report import read_runs
from fl_app.tracking import (
    ClientRecord,
    LoggedModel,
    MlflowTracker,
    RoundRecord,
    RunEnd,
    RunStart,
    TrackedStrategy,
    Trackers,
    check_uri,
    replay,
)
from fl_app.tracking.files import read_npz
from fl_app.tracking.journal import Journal
from fl_app.tracking.mlflow.backend import MlflowStore
from fl_app.tracking.mlflow.upload import Run
from fl_app.tracking.mlflow.uri import masked, sqlite_path
from tests.end_to_end.support import free_port

NUM_CLIENTS, NUM_ROUNDS = 3, 3

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Move every value by an amount of the client's own."""
    partition = int(context.node_config["partition-id"])
    arrays = read(message.content.array_records["arrays"])
    moved = hold({name: a / 3 + partition for name, a in arrays.items()})
    return Message(RecordDict({"a": moved, "m": metrics(partition)}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with metrics of the client's own."""
    partition = int(context.node_config["partition-id"])
    return Message(RecordDict({"m": metrics(partition)}), reply_to=message)


def metrics(partition: int) -> MetricRecord:
    """Return what a client says of itself."""
    return MetricRecord({"mse": 1 / (partition + 3), "num-examples": 10 + partition})


class Recorder:
    """A tracker that keeps the rounds."""

    started = True

    def __init__(self) -> None:
        self.rounds: list[RoundRecord] = []

    def start(self, run: RunStart) -> None:
        pass

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        pass

    def record(self, record: RoundRecord) -> None:
        self.rounds.append(record)

    def finish(self, end: RunEnd) -> None:
        pass


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make one store for all tests of this file: a new one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    MlflowStore(uri, Path()).connect()
    return uri


@pytest.fixture
def client(uri: str) -> MlflowClient:
    """Return MLflow's own client of the store."""
    return MlflowClient(uri)


@pytest.fixture
def grid() -> Iterator[InProcessGrid]:
    """Make a grid of three clients."""
    with InProcessGrid(app, NUM_CLIENTS) as grid:
        yield grid


def run(strategy: TrackedStrategy, grid: InProcessGrid) -> ArrayRecord:
    """Run three rounds of a model with three values and return the final arrays."""
    start = hold({"coef": np.zeros((1, 2)), "intercept": np.ones(1)})
    return strategy.start(
        grid=grid,
        initial_arrays=start,
        num_rounds=NUM_ROUNDS,
        evaluate_fn=lambda r, arrays: MetricRecord({"mse": 1 / (r + 7)}),
    ).arrays


def history(client: MlflowClient, run_id: str, key: str) -> dict[int, float]:
    """Return a metric's values by step."""
    return {m.step: m.value for m in client.get_metric_history(run_id, key)}


def rows(client: MlflowClient, run_id: str) -> list[tuple[str, int, int, float]]:
    """Return every metric row of a run."""
    keys = client.get_run(run_id).data.metrics
    found = [m for key in keys for m in client.get_metric_history(run_id, key)]
    return sorted((m.key, m.step, m.timestamp, m.value) for m in found)


def artifacts(run_id: str, uri: str) -> Path:
    """Return the folder of a run's artifacts."""
    return Path(MlflowClient(uri).get_run(run_id).info.artifact_uri.removeprefix("file://"))


def record(server_round: int, **parts: Any) -> RoundRecord:
    """Make a round with one small array."""
    arrays = {"w": np.full(2, float(server_round))}
    return RoundRecord(server_round, arrays, server={"mse": 1 / (server_round + 3)}, **parts)


def test_a_run_can_be_read_back(
    uri: str, client: MlflowClient, grid: InProcessGrid, tmp_path: Path
) -> None:
    """Every value that an observer saw is in MLflow, bit for bit, at its round and its time."""
    began = time.time_ns() // 1_000_000
    tracker, seen = MlflowTracker(uri, "read back", home=tmp_path), Recorder()
    names = {"coef": ["slope", "curve"], "intercept": [""]}
    trackers = Trackers(tracker, seen)
    trackers.start(RunStart("a name", {"seed": "0"}, {"dataset": "toy"}, {"config/c.yaml": "x"}))
    assert tracker.run_id is not None
    assert (
        tracker.url
        == f"http://127.0.0.1:5000/#/experiments/{experiment_of(tracker, client)}"
        + f"/runs/{tracker.run_id}?workflowType=machine_learning"
    )
    final = run(TrackedStrategy(FedAvg(), trackers, value_names=names), grid)
    trackers.annotate({"data.sha256": "d"}, {"roster.json": "[]"})
    trackers.finish(RunEnd("FINISHED", {"weights.sha256": "w"}, texts={"figures/f.txt": "."}))

    found = client.get_run(tracker.run_id)
    assert found.info.run_name == "a name"
    assert found.info.status == "FINISHED"
    assert began <= found.info.start_time <= found.info.end_time <= time.time_ns() // 1_000_000
    assert found.data.params == {"seed": "0"}
    assert found.data.tags["mlflow.source.name"] == "fl_app"
    for key, value in {"dataset": "toy", "data.sha256": "d", "weights.sha256": "w"}.items():
        assert found.data.tags[key] == value

    for r in seen.rounds:
        expected = {f"server/{k}": v for k, v in r.server.items()}
        expected |= {f"train/{k}": v for k, v in r.train.items()}
        expected |= {f"eval/{k}": v for k, v in r.evaluate.items()}
        expected |= {f"cost/{k}": v for k, v in r.cost.items()}
        expected["model/coef.slope"] = r.arrays["coef"][0, 0]
        expected["model/coef.curve"] = r.arrays["coef"][0, 1]
        expected["model/intercept"] = r.arrays["intercept"][0]
        for c in r.evaluate_clients:
            expected[f"eval_client_mse/{c.partition:03d}"] = c.metrics["mse"]
        for key, number in expected.items():
            assert history(client, tracker.run_id, key)[r.server_round] == number, key
        stamps = client.get_metric_history(tracker.run_id, "server/mse")
        assert r.timestamp_ms in {m.timestamp for m in stamps}
    for key in ("train/mse", "eval/mse", "cost/seconds", "model/update_norm"):
        assert set(history(client, tracker.run_id, key)) == set(range(1, NUM_ROUNDS + 1))
    for key in ("server/mse", "model/intercept"):
        assert set(history(client, tracker.run_id, key)) == set(range(NUM_ROUNDS + 1))

    folder = artifacts(tracker.run_id, uri)
    for r in seen.rounds:
        kept = read_npz(folder / "weights" / f"round_{r.server_round:04d}.npz")
        assert list(kept) == list(r.arrays)
        assert all(np.array_equal(kept[name], r.arrays[name]) for name in kept)
    assert all(np.array_equal(kept[name], a) for name, a in read(final).items())
    told = json.loads((folder / "aggregation" / "round_0002.json").read_text())
    assert told["rule"] == "FedAvg"
    assert told["num_examples"] == sum(10 + k for k in range(NUM_CLIENTS))
    summed = sum(c["weight"] * np.array(c["arrays"]["coef"]) for c in told["clients"])
    assert summed == pytest.approx(np.array(told["aggregate"]["coef"]))
    table = pd.read_json(folder / "clients" / "evaluate.json", orient="split")
    assert len(table) == NUM_CLIENTS * NUM_ROUNDS
    for name in ("config/c.yaml", "roster.json", "figures/f.txt"):
        assert (folder / name).exists()
    assert Journal.pending(tmp_path) == []


def experiment_of(tracker: MlflowTracker, client: MlflowClient) -> str:
    """Return the id of a tracker's experiment."""
    found = client.get_experiment_by_name(tracker.experiment_name)
    assert found is not None
    return str(found.experiment_id)


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian])
def test_alone_in_anybodys_app(
    strategy: Any, uri: str, client: MlflowClient, grid: InProcessGrid, tmp_path: Path
) -> None:
    """Without a word of fl_app's own, a strategy's run is recorded from start to end."""
    tracker = MlflowTracker(uri, "alone", home=tmp_path)
    run(TrackedStrategy(strategy(), tracker), grid)
    assert tracker.run_id is not None
    found = client.get_run(tracker.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", strategy.__name__)
    assert found.data.params["num_server_rounds"] == str(NUM_ROUNDS)
    assert set(history(client, tracker.run_id, "train/mse")) == {1, 2, 3}


def test_runs_of_one_tracker_are_apart(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    """A tracker may record one run after another, and only one at a time."""
    tracker = MlflowTracker(uri, "twice", home=tmp_path)
    with pytest.raises(FlAppError, match="not started"):
        tracker.record(record(0))
    ids = []
    for _ in range(2):
        tracker.start(RunStart())
        with pytest.raises(FlAppError, match="is not finished"):
            tracker.start(RunStart())
        tracker.record(record(0))
        tracker.finish(RunEnd("FINISHED"))
        ids.append(tracker.run_id)
    assert len(set(ids)) == 2
    for run_id in ids:
        assert history(client, str(run_id), "server/mse") == {0: 1 / 3}


def test_names_and_values_that_mlflow_refuses(
    uri: str, client: MlflowClient, tmp_path: Path
) -> None:
    """Bad characters become _, long values move to artifacts, NaN stays, infinity becomes NaN."""
    tracker = MlflowTracker(uri, "refused", params={"w[0]": "1", "": "2"}, home=tmp_path)
    tracker.start(RunStart(params={"long": "x" * 6001, "empty": ""}, tags={"t@": "y" * 8001}))
    server = {"a(b)": 1.0, "/%": 2.0, "nan": math.nan, "inf": math.inf, "k" * 300: 3.0}
    tracker.record(RoundRecord(0, {}, server=server))
    tracker.record(RoundRecord(1, {}, server={"inf": -math.inf}))
    tracker.finish(RunEnd("FINISHED"))
    assert tracker.run_id is not None
    found = client.get_run(tracker.run_id)
    assert found.data.params["w_0_"] == "1"
    assert found.data.params["_"] == "2"
    assert found.data.params["empty"] == ""
    assert found.data.params["long"].endswith("see params/long.txt)")
    assert found.data.tags["t_"].endswith("see tags/t_.txt)")
    assert found.data.tags["infinite_metrics"] == "server/inf"
    folder = artifacts(tracker.run_id, uri)
    assert (folder / "params/long.txt").read_text() == "x" * 6001
    assert (folder / "tags/t_.txt").read_text() == "y" * 8001
    assert found.data.metrics["server/a_b_"] == 1.0
    assert found.data.metrics["server/_/_"] == 2.0
    assert math.isnan(found.data.metrics["server/nan"])
    infinite = history(client, tracker.run_id, "server/inf")
    assert set(infinite) == {0, 1}
    assert all(map(math.isnan, infinite.values()))
    assert sum(value == 3.0 for value in found.data.metrics.values()) == 1


def test_many_clients_are_quantiles_and_a_table(
    uri: str, client: MlflowClient, tmp_path: Path
) -> None:
    """Beyond 20 clients, also if a round asks few of them, there is no curve a client."""
    few = [ClientRecord(k, 1, {"mse": float(k)}) for k in range(5)]
    tracker = MlflowTracker(uri, "many", home=tmp_path)
    tracker.start(RunStart())
    tracker.record(record(1, evaluate_clients=few, num_clients=21))
    tracker.finish(RunEnd("FINISHED"))
    assert tracker.run_id is not None
    found = client.get_run(tracker.run_id).data.metrics
    assert found["eval_client_mse/worst"] == 4.0
    assert "eval_client_mse/000" not in found
    table = json.loads((artifacts(tracker.run_id, uri) / "clients/evaluate.json").read_text())
    assert len(table["data"]) == 5


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("none", []),
        ("last:2", [4, 5]),
        ("last:9", [0, 1, 2, 3, 4, 5]),
        ("every:3", [0, 3, 5]),
        ("every:5", [0, 5]),
    ],
)
def test_the_weights_that_are_asked_for_are_kept(
    keep: str, kept: list[int], uri: str, tmp_path: Path
) -> None:
    """Of which rounds is the user's choice; their metrics are there in any case."""
    tracker = MlflowTracker(uri, "kept", home=tmp_path, keep_weights=keep)
    tracker.start(RunStart())
    for server_round in range(6):
        tracker.record(record(server_round))
    tracker.finish(RunEnd("FINISHED"))
    assert tracker.run_id is not None
    found = sorted((artifacts(tracker.run_id, uri) / "weights").glob("*"))
    assert [path.name for path in found] == [f"round_{r:04d}.npz" for r in kept]
    assert all(read_npz(path)["w"][0] == r for path, r in zip(found, kept, strict=True))
    assert set(history(MlflowClient(uri), tracker.run_id, "server/mse")) == set(range(6))


def test_a_config_says_which_weights_are_kept(uri: str, tmp_path: Path) -> None:
    """A run of a config keeps the rounds that it names."""
    words = ["dataset=iris", "num_clients=2", "num_server_rounds=3", f"output_dir={tmp_path}"]
    words += [f"tracking.uri='{uri}'", "tracking.keep_weights=last:1", "tracking.figures=false"]
    runtimes.run(RunRequest(compose_config(words)))
    run_id = json.loads((tmp_path / "result.json").read_text())["run_id"]
    found = sorted((artifacts(run_id, uri) / "weights").glob("*"))
    assert [path.name for path in found] == ["round_0003.npz"]


@pytest.mark.parametrize("keep", ["", "last", "last:0", "every:-1", "last:x", "ALL", "all:3"])
def test_other_rules_for_weights_are_refused(keep: str) -> None:
    """With field, value and what is allowed, before anything is done."""
    with pytest.raises(ConfigError, match=r"tracking\.keep_weights.*last:K"):
        MlflowTracker(keep_weights=keep)


def test_mlflows_globals_are_left_alone(uri: str, tmp_path: Path) -> None:
    """The user's own MLflow keeps its server, its active run and its switches."""
    before = mlflow.get_tracking_uri(), mlflow.active_run()
    tracker = MlflowTracker(uri, "globals", register_as="global", home=tmp_path)
    tracker.start(RunStart())
    tracker.finish(RunEnd("FINISHED", models=[model("final")]))
    assert (mlflow.get_tracking_uri(), mlflow.active_run()) == before
    assert "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR" not in os.environ


# ------------------------------------------------------------------ models


SERVED = Predictor(
    Encoding("regression", ("a", "b"), ("a", "b"), (1.0, 2.0), (2.0, 1.0), targets=("y",),
             target_mean=(0.0,), target_scale=(1.0,)),
    ModelConfig(name="linear"),
)  # fmt: skip
COEF = {"coef": np.array([[1.0, 10.0]]), "intercept": np.array([100.0])}
RAW = pd.DataFrame({"a": [1, 3], "b": [2.0, None]})  # integers and a missing cell


def model(name: str, server_round: int = 0) -> LoggedModel:
    """Make a linear model of two raw columns."""
    return LoggedModel(name, server_round, COEF, SERVED.to_spec())


@pytest.fixture
def logged(uri: str, tmp_path: Path) -> MlflowTracker:
    """Record a run with a final and a best model, registered."""
    tracker = MlflowTracker(uri, "models", register_as="served", home=tmp_path)
    tracker.start(RunStart())
    for server_round in range(3):
        tracker.record(record(server_round))
    tracker.finish(RunEnd("FINISHED", models=[model("final", 2), model("best", 1)]))
    assert Journal.pending(tmp_path) == []
    return tracker


def test_models_predict_from_raw_rows(
    logged: MlflowTracker, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both models load without pickle and predict what the run's own predictor predicts."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", uri)
    expected = predictor(SERVED.to_spec(), COEF)(RAW)
    assert expected == pytest.approx([0 / 2 + 0 + 100, 2 / 2 + 0 + 100])
    for name in ("final", "best"):
        loaded = mlflow.pyfunc.load_model(f"runs:/{logged.run_id}/{name}")
        assert np.array_equal(loaded.predict(RAW), expected)
    champion = mlflow.pyfunc.load_model("models:/served@champion")
    assert np.array_equal(champion.predict(RAW), expected)


def test_a_home_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records and models of a home with what URIs or SQL quote are where every reader looks."""
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    home = tmp_path / "it's" / 'a%20b %2F? #"&=;c'
    tracker = MlflowTracker(None, "models", register_as="served", home=home)
    assert sqlite_path(tracker.uri) == sqlite_path(check_uri(tracker.uri)) == home / "mlflow.db"
    tracker.start(RunStart())
    tracker.record(record(0))
    tracker.finish(RunEnd("FINISHED", models=[model("best")]))
    assert Journal.pending(home) == []
    assert [path.name for path in home.parent.iterdir()] == [home.name]
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", tracker.uri)
    # From a local folder itself MLflow would load what `%20` stands for.
    champion = mlflow.pyfunc.load_model("models:/served@champion", dst_path=str(tmp_path))
    assert np.array_equal(champion.predict(RAW), predictor(SERVED.to_spec(), COEF)(RAW))
    assert [run.run_id for run in read_runs(tracker.uri, experiment="models")] == [tracker.run_id]


def test_models_belong_to_their_run(logged: MlflowTracker, client: MlflowClient) -> None:
    """Each model is an output of the run at its round, with that round's metrics, ready."""
    assert logged.run_id is not None
    outputs = client.get_run(logged.run_id).outputs.model_outputs
    models = {client.get_logged_model(o.model_id).name: o for o in outputs}
    assert {name: o.step for name, o in models.items()} == {"final": 2, "best": 1}
    for output in models.values():
        found = client.get_logged_model(output.model_id)
        assert str(found.status) == "READY"
        assert found.source_run_id == logged.run_id
        assert {m.key: m.value for m in found.metrics} == {"server/mse": 1 / (output.step + 3)}


def test_a_run_that_goes_on_has_one_model_of_each_name(
    logged: MlflowTracker, client: MlflowClient, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its last end, and of the registered ones the version of its best."""
    run_id = logged.run_id
    for last in (3, 4):
        logged.start(RunStart(continues=True))
        logged.record(record(last))
        logged.finish(RunEnd("FINISHED", models=[model("final", last), model("best", 1)]))
    assert logged.run_id == run_id
    assert run_id is not None
    where = f"source_run_id = '{run_id}'"
    found = client.search_logged_models([experiment_of(logged, client)], where)
    steps = {o.model_id: o.step for o in client.get_run(run_id).outputs.model_outputs}
    assert {m.name: steps[m.model_id] for m in found} == {"final": 4, "best": 1}
    assert len(found) == 2
    assert [str(m.status) for m in found] == ["READY"] * 2
    (version,) = client.search_model_versions(f"name = 'served' AND run_id = '{run_id}'")
    assert version.source == next(m.artifact_location for m in found if m.name == "best")
    assert client.get_model_version_by_alias("served", "champion").version == version.version
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", uri)
    assert len(mlflow.pyfunc.load_model(f"runs:/{run_id}/final").predict(RAW)) == len(RAW)


def test_the_best_model_is_registered(logged: MlflowTracker, client: MlflowClient) -> None:
    """The champion is the best model; an older run that is sent later does not depose it."""
    champion = client.get_model_version_by_alias("served", "champion")
    assert champion.run_id == logged.run_id
    (best,) = client.search_logged_models(
        [experiment_of(logged, client)], f"name = 'best' AND source_run_id = '{logged.run_id}'"
    )
    assert champion.source == best.artifact_location
    target = {"uri": logged.uri, "experiment": "models", "register_as": "served"}
    old = Journal.create(logged.home)
    old.begin(target, RunStart(), 1_000)
    old.add_end(RunEnd("FINISHED", models=[model("final")]), 2_000)
    old.release()
    assert replay(logged.home).sent == [old.name]
    assert client.get_model_version_by_alias("served", "champion").run_id == logged.run_id
    assert len(client.search_model_versions("name = 'served'")) > 1


# ------------------------------------------------------------------ journals and replay


def left_behind(home: Path, uri: str, experiment: str, end: RunEnd | None = None) -> Journal:
    """Make the journal of a run of another time."""
    journal = Journal.create(home)
    target = {"uri": uri, "experiment": experiment}
    journal.begin(target, RunStart("old", {"a": "1"}), 1_000)
    for server_round in range(4):
        line = {
            "server_round": server_round,
            "timestamp_ms": 2_000 + server_round,
            "metrics": {"server/mse": server_round / 7, "server/nan": math.nan},
            "texts": {},
            "clients": [],
        }
        journal.add_round(line, weights={"w": np.ones(1)})
    if end is not None:
        journal.add_end(end, 9_000)
    journal.release()
    return journal


def replayed(client: MlflowClient, experiment: str) -> Any:
    """Return the only run of an experiment."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (only,) = client.search_runs([found.experiment_id])
    return only


def test_a_replayed_run_has_its_own_times(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    """Start, end and every value stand at the time at which they happened."""
    journal = left_behind(tmp_path, uri, "times", RunEnd("FAILED", error="why"))
    assert replay(tmp_path).sent == [journal.name]
    found = replayed(client, "times")
    assert (found.info.start_time, found.info.end_time) == (1_000, 9_000)
    assert (found.info.status, found.data.tags["error"]) == ("FAILED", "why")
    stamps = {
        m.step: m.timestamp for m in client.get_metric_history(found.info.run_id, "server/mse")
    }
    assert stamps == {r: 2_000 + r for r in range(4)}


def test_replaying_twice_is_replaying_once(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    """A journal that is sent again in full adds no run, no row and no model."""
    target = RunEnd("FINISHED", models=[model("final")])
    journal = left_behind(tmp_path, uri, "idempotent", target)
    content = {p: p.read_bytes() for p in journal.folder.rglob("*") if p.is_file()}
    replay(tmp_path)
    first = replayed(client, "idempotent")
    before = rows(client, first.info.run_id)
    for path, data in content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert replay(tmp_path).sent == [journal.name]
    assert replayed(client, "idempotent").info.run_id == first.info.run_id
    # repr, because a NaN differs from itself
    assert repr(rows(client, first.info.run_id)) == repr(before)
    assert len(client.search_logged_models([first.info.experiment_id])) == 1
    assert replay(tmp_path).sent == []


def test_the_next_start_sends_what_was_left(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    """Any tracker with the same home replays: a killed run is closed, with all its rounds.

    Records that stayed here go when they are old, also where nobody tells of events.
    """
    left_behind(tmp_path, uri, "left behind")
    old = tmp_path / "runs" / new_name(0)
    old.mkdir(parents=True)
    tracker = MlflowTracker(uri, "next", home=tmp_path)
    tracker.start(RunStart())
    tracker.finish(RunEnd("FINISHED"))
    found = replayed(client, "left behind")
    assert found.info.status == "KILLED"
    assert set(history(client, found.info.run_id, "server/mse")) == set(range(4))
    assert Journal.pending(tmp_path) == []
    assert not old.exists()


def test_runs_of_dead_processes_are_closed(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    """RUNNING means running: a run whose process is gone, and whose journal is lost, is KILLED.

    But not that of another container with this host's name: its processes cannot be seen from here,
    unless the run is one of this home, whose journal nobody holds.
    """
    own = Process.current()
    if not own.started:
        pytest.skip("this system does not tell when a process began")
    experiment = client.create_experiment("reaped", tmp_path.as_uri())
    processes = {
        "dead": f"{own.host}/{own.pid}/{own.started}0",
        "elsewhere": f"{own.host}/{own.pid}/{own.started.replace('-', '-1', 1)}",
        "live": f"{own.host}/{own.pid}/{own.started}",
        "far": f"not-{own.host}/{own.pid}/other",
    }
    ids = {
        name: client.create_run(experiment, 1_000, {"fl_app.process": process}).info.run_id
        for name, process in processes.items()
    }
    client.log_metric(ids["dead"], "x", 1.0, timestamp=5_000)
    MlflowStore(uri, tmp_path).reap(set())
    status = {name: client.get_run(run_id).info for name, run_id in ids.items()}
    assert status["dead"].status == "KILLED"
    assert status["dead"].end_time == 5_000
    for name in ("live", "far", "elsewhere"):
        assert status[name].status == "RUNNING"
    tags = {"fl_app.process": processes["elsewhere"], "fl_app.spool": "sent"}
    own_run = client.create_run(experiment, 1, tags).info.run_id
    (tmp_path / "runs" / "sent").mkdir(parents=True)
    MlflowStore(uri, tmp_path).reap(set())
    assert client.get_run(own_run).info.status == "KILLED"
    pending_run = client.create_run(
        experiment, 1, {"fl_app.process": processes["dead"], "fl_app.spool": "here"}
    ).info.run_id
    MlflowStore(uri, tmp_path).reap({"here"})
    assert client.get_run(pending_run).info.status == "RUNNING"
    for name in ("live", "far", "elsewhere"):
        client.set_terminated(ids[name])
    client.set_terminated(pending_run)


def test_a_deleted_run_stays_deleted(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    """A run that a user deletes while it goes on neither comes back nor leaves anything to send."""
    tracker = MlflowTracker(uri, "deleted", home=tmp_path)
    tracker.start(RunStart())
    assert tracker.run_id is not None
    client.delete_run(tracker.run_id)
    tracker.record(record(0))
    tracker.finish(RunEnd("FINISHED"))
    assert client.get_run(tracker.run_id).info.lifecycle_stage == "deleted"
    assert Journal.pending(tmp_path) == []


def test_a_run_is_trashed_with_its_experiment_or_deleted_by_itself(
    uri: str, client: MlflowClient, tmp_path: Path
) -> None:
    """MLflow says of both runs that they are deleted; the first comes back with its experiment."""
    states = []
    for name in ("trashed", "deleted"):
        left_behind(tmp_path, uri, f"state-{name}")
        replay(tmp_path)
        found = replayed(client, f"state-{name}").info
        if name == "trashed":
            client.delete_experiment(found.experiment_id)
        else:
            client.delete_run(found.run_id)
        store = MlflowStore(uri, tmp_path)
        states.append(store.run_state(Run(found.run_id, found.experiment_id)))
    assert states == ["trashed", "deleted"]


def test_models_need_no_room_in_the_systems_folder(
    uri: str, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary files, MLflow's too, are in the run's own folder, and gone afterwards."""
    journal = left_behind(tmp_path, uri, "no room", RunEnd("FINISHED", models=[model("final")]))
    monkeypatch.setattr("tempfile.tempdir", "/dev/full")
    assert replay(tmp_path).sent == [journal.name]
    found = replayed(client, "no room").info
    (logged_model,) = client.search_logged_models([found.experiment_id])
    assert str(logged_model.status) == "READY"
    assert {path.name for path in journal.folder.iterdir() if path.is_dir()} <= {"arrays"}


def test_a_deleted_experiment_is_restored(uri: str, client: MlflowClient, tmp_path: Path) -> None:
    """A user who runs into a deleted experiment's name wants it back."""
    client.delete_experiment(client.create_experiment("restored", tmp_path.as_uri()))
    tracker = MlflowTracker(uri, "restored", home=tmp_path)
    tracker.start(RunStart())
    tracker.finish(RunEnd("FINISHED"))
    assert replayed(client, "restored").info.run_id == tracker.run_id


def test_a_server_that_is_down_costs_a_line(
    uri: str,
    client: MlflowClient,
    grid: InProcessGrid,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Training goes on with the same result, and all rounds reach the store that is there later."""
    down, seen = (
        MlflowTracker(f"http://127.0.0.1:{free_port()}", "down", home=tmp_path),
        Recorder(),
    )
    partitions = {node: k for k, node in enumerate(grid.get_node_ids())}
    down.start(RunStart("down"))
    with caplog.at_level(logging.WARNING):
        final = run(TrackedStrategy(FedAvg(), Trackers(down, seen), partitions=partitions), grid)
        down.finish(RunEnd("FINISHED"))
    assert same(read(final), seen.rounds[-1].arrays)
    assert down.run_id is None
    lines = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert {r.name for r in lines} <= {"fl_app"}
    assert len(lines) <= 2  # it is down; the rest waits
    assert len(Journal.pending(tmp_path)) == 1
    assert replay(tmp_path, uri).waiting == {}
    found = replayed(client, "down")
    assert found.info.status == "FINISHED"
    assert history(client, found.info.run_id, "train/mse") == {
        r.server_round: r.train["mse"] for r in seen.rounds[1:]
    }


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two sets of arrays are equal."""
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "mlruns",
        "file:///tmp/mlruns",
        "sqlite",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:////dev/null/mlflow.db",
        "http://",
        "http:/localhost",
        "http://localhost:port",
        "https://:5000",
        "ftp://localhost",
        "postgresql://",
        "postgresql+nodriver://user:secret@host/db",
        "databricks",
    ],
)
def test_bad_uris_are_refused(bad: str) -> None:
    """A URI that can never work is named with its field, its value and what is allowed."""
    with pytest.raises(ConfigError, match="sqlite:////absolute") as raised:
        check_uri(bad)
    assert raised.value.field == "tracking.uri"
    assert raised.value.value == masked(bad)
    assert "secret" not in str(raised.value)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """A file of something else, and a folder, are told before any work; the file is not touched."""
    other = tmp_path / "other.db"
    other.write_text("this is a text, and longer than a header")
    for path in (other, tmp_path):
        with pytest.raises(ConfigError, match=r"tracking\.uri=sqlite"):
            check_uri(f"sqlite:///{path}")
    assert other.read_text().startswith("this is")


def test_good_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative SQLite path is made absolute; servers are not asked."""
    monkeypatch.chdir(tmp_path)
    assert check_uri("sqlite:///sub/m.db") == f"sqlite:///{tmp_path}/sub/m.db"
    assert not (tmp_path / "sub" / "m.db").exists()
    assert check_uri("https://nowhere.invalid:5000/") == "https://nowhere.invalid:5000"
    monkeypatch.setenv("HOME", str(tmp_path))
    for same in ("a b.db", "a%20b.db", "./a%20b.db", f"{tmp_path}/a b.db", "~/a b.db"):
        assert check_uri(f"sqlite:///{same}") == f"sqlite:///{tmp_path}/a b.db"
    odd = check_uri("sqlite:///what%3F%2520.db")
    assert sqlite_path(odd) == tmp_path / "what?%20.db"
    assert check_uri(odd) == odd
    with pytest.raises(ConfigError, match="in whose path %3F stands for a question mark"):
        check_uri("sqlite:///what?.db")


def test_a_check_keeps_the_locks_of_this_process(tmp_path: Path) -> None:
    """A check between two writes, while another process comes and goes, loses no write.

    Without this process's locks the other one would take the log away that is still written to.
    """
    path = tmp_path / "m.db"
    other = f"import sqlite3; d = sqlite3.connect({str(path)!r}); d.execute('SELECT * FROM t'); "
    with closing(sqlite3.connect(path)) as ours:
        ours.execute("PRAGMA journal_mode=WAL")
        ours.execute("CREATE TABLE t (x)")
        ours.commit()
        check_uri(f"sqlite:///{path}")
        subprocess.run([sys.executable, "-c", other + "d.close()"], check=True)
        ours.execute("INSERT INTO t VALUES (1)")
        ours.commit()
        with closing(sqlite3.connect(path)) as fresh:
            assert fresh.execute("SELECT * FROM t").fetchall() == [(1,)]
    with closing(sqlite3.connect(path)) as later:
        assert later.execute("SELECT * FROM t").fetchall() == [(1,)]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("tracking.experiment_name", {"experiment_name": ""}),
        ("tracking.register_as", {"register_as": "a/b"}),
        ("tracking.register_as", {"register_as": "it's"}),
        ("tracking.uri", {"uri": "nonsense"}),
        ("FL_APP_HOME", {"home": "/dev/null/home"}),
    ],
)
def test_a_tracker_refuses_bad_input_at_once(field: str, options: dict[str, Any]) -> None:
    """The constructor names the field, before anything runs."""
    with pytest.raises(ConfigError) as raised:
        MlflowTracker(**options)
    assert raised.value.field == field


def test_where_records_go_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given wins over MLflow's variable, which wins over the home."""
    at_home = MlflowTracker(home=tmp_path)
    assert at_home.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert at_home.uri in at_home.ui_command
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:1")
    assert MlflowTracker(home=tmp_path).uri == "http://server:1"
    assert MlflowTracker("http://other:1", home=tmp_path).uri == "http://other:1"
    assert MlflowTracker("http://other:1", home=tmp_path).ui_command == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI=mlruns"):
        MlflowTracker(home=tmp_path)


def test_passwords_are_not_shown() -> None:
    """A URI that may be shown has its user but not the password."""
    assert masked("postgresql://user:secret@host/db") == "postgresql://user:***@host/db"
    assert masked("http://host:5000/a@b") == "http://host:5000/a@b"


# ------------------------------------------------------------------ real processes


RUN = """
import sys, time
import numpy as np
from fl_app.tracking import MlflowTracker, RoundRecord, RunEnd, RunStart

experiment, num_rounds, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tracker = MlflowTracker(experiment_name=experiment)
tracker.start(RunStart(experiment))
for r in range(num_rounds):
    tracker.record(RoundRecord(r, {"w": np.ones(99)}, server={"mse": r / 7}))
    print(r, flush=True)
if end == "hang":
    time.sleep(600)
tracker.finish(RunEnd("FINISHED"))
"""


def environment(home: Path) -> dict[str, str]:
    """Return an environment whose home is `home`."""
    return {**os.environ, "FL_APP_HOME": str(home)}


@pytest.mark.slow
def test_eight_processes_may_start_on_a_store_that_does_not_exist(tmp_path: Path) -> None:
    """None of them fails, and each finds its run in the one store."""

    def start(n: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", RUN, f"e{n % 3}", "2", "finish"]
        return subprocess.run(
            command, env=environment(tmp_path), capture_output=True, text=True, check=False
        )

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(start, range(8)))
    assert [(p.returncode, p.stderr) for p in done] == [(0, "")] * 8
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    assert len(experiments) == 3
    runs = client.search_runs(experiments)
    assert [r.info.status for r in runs] == ["FINISHED"] * 8
    for r in runs:
        assert history(client, r.info.run_id, "server/mse") == {0: 0.0, 1: 1 / 7}
    assert Journal.pending(tmp_path) == []


@pytest.mark.slow
def test_a_store_whose_making_was_killed_is_made_again(tmp_path: Path) -> None:
    """What a killed process left of a new store is not mistaken for a store."""
    (tmp_path / "mlflow.db.part").write_bytes(b"SQLite format 3\0, and then nothing")
    (tmp_path / "mlflow.db.part-journal").write_bytes(b"half")
    (tmp_path / "mlflow.db").touch()
    MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", tmp_path).connect()
    assert [p.name for p in tmp_path.glob("*.part*")] == []
    assert MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()


@pytest.mark.slow
def test_a_killed_run_loses_no_round(tmp_path: Path) -> None:
    """After kill -9 in the middle a replay brings every acknowledged round and closes the run."""
    command = [sys.executable, "-c", RUN, "killed", "40", "hang"]
    with subprocess.Popen(
        command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for told in process.stdout:
            if int(told) == 39:
                break
        assert len(replay(tmp_path).live) == 1
        process.kill()
    report = replay(tmp_path)
    assert len(report.sent) == 1
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    found = replayed(client, "killed")
    assert found.info.status == "KILLED"
    assert history(client, found.info.run_id, "server/mse") == {r: r / 7 for r in range(40)}
    folder = Path(found.info.artifact_uri.removeprefix("file://")) / "weights"
    assert len(list(folder.iterdir())) == 40


LOAD = """
import sys
import mlflow, numpy as np, pandas as pd

class NoFlApp:
    def find_spec(self, name, path=None, target=None):
        if name == "fl_app" and not any(p.endswith("fl_app.zip") for p in sys.path):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoFlApp())
sys.path = [p for p in sys.path if p != sys.argv[3]]
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import fl_app
assert not fl_app.__file__.startswith(sys.argv[3]), fl_app.__file__
assert not {"flwr", "hydra"} & set(sys.modules), "needs more than it says"
print(model.predict(pd.DataFrame({"a": [1, 3], "b": [2.0, None]})).tolist())
"""


@pytest.mark.slow
def test_a_model_loads_where_fl_app_is_not(logged: MlflowTracker, uri: str, tmp_path: Path) -> None:
    """The model carries the code that predicts, and needs no pickle, no Flower and no Hydra."""
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    source = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", LOAD, uri, f"runs:/{logged.run_id}/final", source],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(done.stdout.splitlines()[-1]) == predictor(SERVED.to_spec(), COEF)(RAW).tolist()
    )
