"""Chart views in MLflow: the form that its own UI stores, and whose they are."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

from fl_app.tracking import MlflowTracker
from fl_app.tracking.mlflow import chart_view
from fl_app.tracking.mlflow.backend import MlflowStore
from fl_app.tracking.mlflow.chart_view import (
    KEPT,
    LONGEST,
    View,
    is_ours,
    keep_view,
    keep_view_of_run,
    state_of,
    tag_of,
    view_key,
)
from fl_app.tracking.mlflow.upload import Run
from fl_app.tracking.records import RunEnd, RunStart

URI = "sqlite:////nowhere/mlflow.db"
TAG = "mlflow.sharedViewState."
STORED = json.loads(Path(__file__).with_name("shared_view.json").read_text())
"""What MLflow 3.17.2 stored when "Save as new view" was pressed in a browser: of each object its
keys with their types ("?": some had it), or all words that its code knows where these are few."""

VIEW = View(
    name="sweep 1",
    where="tags.`sweep.id` = '1'",
    groups=["strategy.name"],
    good=[("server/accuracy",)],
    fair=["fairness/accuracy_worst"],
    metrics=["server/accuracy", "fairness/accuracy_worst", "cost/bytes_up", "loss"],
    num_runs=12,
)


class Store:
    """The tags of one experiment, with MLflow's limit."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    def get_experiment(self, experiment_id: str) -> SimpleNamespace:
        """Return the experiment."""
        return SimpleNamespace(tags=dict(self.tags))

    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        """Set a tag."""
        assert len(value) <= MAX_EXPERIMENT_TAG_VAL_LENGTH
        self.tags[key] = value

    def delete_experiment_tag(self, experiment_id: str, key: str) -> None:
        """Remove a tag."""
        del self.tags[key]


def opened(value: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a tag's envelope and the state in it, as the UI reads them."""
    envelope = json.loads(value)
    kind, _, packed = envelope["state"].partition(";")
    assert kind == "deflate"
    return envelope, json.loads(zlib.decompress(base64.b64decode(packed)))


def changed(value: str) -> str:
    """Return a view as the UI stores it again: with what it knows of."""
    envelope, state = opened(value)
    own = {key: of for key, of in state.items() if key in STORED["state"]}
    packed = base64.b64encode(zlib.compress(json.dumps(own).encode())).decode()
    return json.dumps(envelope | {"state": f"deflate;{packed}"})


# ---------------------------------------------------------------------------- the form
def kind(value: object) -> str:
    """Return JSON's name of a value's type."""
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return "null" if value is None else names.get(type(value), "object")


def fits(value: dict[str, Any], form: dict[str, Any]) -> None:
    """Require of an object the keys of a form (but for those with "?"), their types and words."""
    known = {key.rstrip("?"): of for key, of in form.items()}
    assert {key for key in form if not key.endswith("?")} <= set(value) <= set(known)
    for key, of in value.items():
        if isinstance(known[key], list):
            assert of in known[key], key
        else:
            assert kind(of) in known[key].split(), (key, of)


@pytest.mark.parametrize("groups", [[], ["strategy.name"], ["strategy.name", "model.name"]])
def test_a_view_has_the_form_of_one_that_the_ui_stored(groups: list[str]) -> None:
    """Each key is one that the UI wrote, of its type; each word one that the UI knows."""
    envelope, state = opened(tag_of(replace(VIEW, groups=groups), 7))
    own = state.pop("fl_app")
    assert isinstance(own, str)
    fits(envelope, STORED["envelope"])
    fits(state, STORED["state"])
    fits(state["globalLineChartConfig"], STORED["globalLineChartConfig"])
    for section in state["compareRunSections"]:
        fits(section, STORED["section"])
    for chart in state["compareRunCharts"]:
        fits(chart, STORED[chart["type"]])
        for axis in ("xaxis", "yaxis"):
            if axis in chart:
                fits(chart[axis], STORED["axis"])
    if groups:
        fits(state["groupBy"], STORED["groupBy"])
        for key in state["groupBy"]["groupByKeys"]:
            fits(key, STORED["groupByKey"])
    else:
        assert state["groupBy"] is None


def test_a_group_is_a_point_by_bytes() -> None:
    """MLflow would join its runs' points to and fro."""
    by_bytes = state_of(VIEW)["compareRunCharts"][1]
    assert by_bytes["type"] == "SCATTER"
    assert by_bytes["xaxis"]["key"] == "cost/bytes_up"
    assert by_bytes["yaxis"]["key"] == "server/accuracy"


def test_charts_are_in_open_sections_and_the_rest_is_closed() -> None:
    """How good, how fair, what it costs; MLflow draws what has no chart, by its key's prefix."""
    state = state_of(replace(VIEW, groups=[]))
    sections = {one["uuid"]: one for one in state["compareRunSections"]}
    shown = [(s["name"], s["display"]) for s in sections.values()]
    assert shown[:3] == [("How good", True), ("How fair", True), ("What it costs", True)]
    rest = ["Model metrics", "cost", "fairness", "server"]
    assert shown[3:] == [(name, False) for name in rest]
    charts = [
        (sections[c["metricSectionId"]]["name"], c["type"], c["metricKey"], c.get("xAxisKey"))
        for c in state["compareRunCharts"]
    ]
    assert charts == [
        ("How good", "LINE", "server/accuracy", "step"),
        ("How good", "LINE", "server/accuracy", "metric"),
        ("How good", "BAR", "server/accuracy", None),
        ("How fair", "LINE", "fairness/accuracy_worst", "step"),
        ("What it costs", "LINE", "cost/bytes_up", "step"),
    ]
    assert state["compareRunCharts"][1]["selectedXAxisMetricKey"] == "cost/bytes_up"


@pytest.mark.parametrize("num_runs", [1, 12, 500])
def test_all_runs_are_shown(num_runs: int) -> None:
    """None is hidden, and no chart stops before the last one."""
    state = state_of(replace(VIEW, num_runs=num_runs))
    assert state["runsHiddenMode"] == "SHOW_ALL"
    assert all(chart["runsCountToCompare"] >= num_runs for chart in state["compareRunCharts"])


def test_what_is_absent_has_no_chart() -> None:
    """Runs without clients' rows, costs or anything: no empty section, no chart."""
    state = state_of(replace(VIEW, good=[], fair=[], metrics=[]))
    assert state["compareRunCharts"] == state["compareRunSections"] == []


def test_a_large_view_fits_into_a_tag() -> None:
    """20 metrics that say how good, 20 how fair, 200 others, 3 params, 100 runs by name."""
    good = [f"server/{'metric' * 4}_{n}" for n in range(20)]
    fair = [f"fairness/{'metric' * 4}_{n}" for n in range(20)]
    rest = [f"client_{n}/{n}" for n in range(200)]
    ids = ", ".join(f"'{chart_view._digest(str(n), {})[:32]}'" for n in range(100))
    view = replace(
        VIEW,
        where=f"attributes.run_id IN ({ids})",
        groups=["strategy.name", "model.learning_rate", "partitioner.alpha"],
        good=[(key,) for key in good],
        fair=fair,
        metrics=[*good, *fair, *rest, "cost/bytes_up"],
    )
    assert len(state_of(view)["compareRunCharts"]) == 3 * 20 + 20 + 1
    assert len(tag_of(view, 7)) <= LONGEST <= MAX_EXPERIMENT_TAG_VAL_LENGTH


# ---------------------------------------------------------------------------- whose it is
def test_a_view_is_ours_until_somebody_changes_it() -> None:
    """Another name or state, or the UI's own: theirs; another time alone changes nothing."""
    value = tag_of(VIEW, 7)
    assert is_ours(value)
    envelope, _ = opened(value)
    assert is_ours(json.dumps(envelope | {"updatedAt": 8}))
    assert not is_ours(json.dumps(envelope | {"name": "mine"}))
    assert not is_ours(changed(value))
    for other in ("", "x", "7", "[]", "{}", '{"state": 7}', '{"state": "deflate;eA=="}'):
        assert not is_ours(other)


def test_a_view_is_written_again_but_not_over_a_changed_one() -> None:
    """A sweep that goes on has its view anew; what somebody made of it stays, and is opened."""
    store, key = Store(), view_key("sweep", "1")
    assert keep_view(store, URI, "0", key, VIEW)
    assert keep_view(store, URI, "0", key, replace(VIEW, num_runs=40))
    _, state = opened(store.tags[TAG + key])
    assert state["compareRunCharts"][0]["runsCountToCompare"] == 40
    store.tags[TAG + key] = theirs = changed(store.tags[TAG + key])
    assert keep_view(store, URI, "0", key, VIEW)
    assert store.tags == {TAG + key: theirs}


def test_the_newest_views_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ours so many as are kept; what somebody changed or made stays whatever its age."""
    monkeypatch.setattr(chart_view, "time", SimpleNamespace(time=iter(range(100)).__next__))
    store = Store()
    store.tags = {TAG + "abc": changed(tag_of(VIEW, 1)), "note": "x", TAG + "fl_app-x": "old"}
    others = dict(store.tags)
    assert keep_view(store, URI, "0", view_key("sweep", "first"), VIEW)
    first = TAG + view_key("sweep", "first")
    others[first] = store.tags[first] = changed(store.tags[first])
    for number in range(KEPT + 5):
        assert keep_view(store, URI, "0", view_key("sweep", str(number)), VIEW)
    newest = {TAG + view_key("sweep", str(number)) for number in range(5, KEPT + 5)}
    assert set(store.tags) == newest | set(others)
    assert {key: store.tags[key] for key in others} == others


def test_nothing_is_written_for_a_ui_that_was_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong word breaks the whole page: another version gets no view, and the link none."""
    monkeypatch.setattr(chart_view, "version", lambda name: "3.18.0")
    store = Store()
    assert not keep_view(store, URI, "0", view_key("sweep", "1"), VIEW)
    assert not store.tags


def test_a_view_that_is_too_large_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow would refuse the tag; there is no view then, and no error."""
    monkeypatch.setattr(chart_view, "LONGEST", 100)
    store = Store()
    assert not keep_view(store, URI, "0", view_key("sweep", "1"), VIEW)
    assert not store.tags


@pytest.mark.parametrize("name", ["get_experiment", "set_experiment_tag"])
def test_a_store_that_refuses_gets_no_view(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises: there is no view, and no error."""
    store = Store()
    monkeypatch.setattr(store, name, None)
    assert not keep_view(store, URI, "0", view_key("sweep", "1"), VIEW)


def test_a_view_that_another_sweep_has_removed_is_no_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two sweeps that end at a time remove the same old views."""
    store = Store()
    for number in range(KEPT):
        assert keep_view(store, URI, "0", view_key("sweep", str(number)), VIEW)
    monkeypatch.setattr(store, "delete_experiment_tag", None)
    assert keep_view(store, URI, "0", view_key("sweep", "last"), VIEW)


# ---------------------------------------------------------------------------- single runs
OWN = {"config.sha256": "x", "strategy": "fedavg"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a home with a store."""
    folder = tmp_path_factory.mktemp("home")
    MlflowStore(f"sqlite:///{folder}/mlflow.db", folder).connect()
    return folder


def tracked(home: Path, tags: dict[str, str]) -> tuple[MlflowTracker, dict[str, str]]:
    """Record a run that begins and ends; return its tracker and its experiment's views."""
    uri = f"sqlite:///{home}/mlflow.db"
    place = f"{len(MlflowClient(uri).search_experiments())}"
    tracker = MlflowTracker(uri, place, home=home)
    tracker.start(RunStart("a run", {}, tags))
    tracker.finish(RunEnd("FINISHED"))
    found = MlflowClient(uri).get_experiment_by_name(place)
    assert found is not None
    return tracker, {key: of for key, of in found.tags.items() if key.startswith(TAG)}


def test_a_single_run_has_a_view_of_its_own(home: Path) -> None:
    """Its link opens it: that run alone, in order, each metric that says how good in one chart."""
    tracker, views = tracked(home, OWN)
    key = view_key("run", str(tracker.run_id))
    assert tracker.charts_url is not None
    assert tracker.charts_url.endswith(f"&compareRunsMode=CHART&viewStateShareKey={key}")
    envelope, state = opened(views[TAG + key])
    assert envelope["name"] == f"run a run ({str(tracker.run_id)[:8]})"
    assert state["searchFilter"] == f"attributes.run_id = '{tracker.run_id}'"
    assert state["groupBy"] is None
    assert [chart["type"] for chart in state["compareRunCharts"]] == ["LINE"] * 11
    for chart in state["compareRunCharts"]:
        fits(chart, STORED["LINE"])
    curves = ["server/accuracy", "eval/accuracy", "train/accuracy"]
    assert state["compareRunCharts"][0]["selectedMetricKeys"] == curves


@pytest.mark.parametrize("tags", [{"strategy": "FedAvg"}, OWN | {"sweep.id": "7"}])
def test_other_runs_have_none(home: Path, tags: dict[str, str]) -> None:
    """Of an app of somebody's own nobody knows what is good; a sweep has one of all its runs."""
    tracker, views = tracked(home, tags)
    assert tracker.run_id
    assert tracker.charts_url is None
    assert not views


def test_a_store_without_permission_costs_the_run_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run is recorded and has its page; there is no second link, and nothing is said."""

    def refuse(*_: object) -> None:
        raise MlflowException("no permission")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    tracker, views = tracked(home, OWN)
    assert tracker.url
    assert tracker.charts_url is None
    assert not views
    assert not caplog.records


def test_runs_do_not_push_sweeps_out() -> None:
    """The newest of each kind stay."""
    store, run = Store(), Run("", "0")
    assert keep_view(store, URI, "0", view_key("sweep", "1"), VIEW)
    for number in range(KEPT + 3):
        assert keep_view_of_run(store, URI, run._replace(run_id=str(number)), "a run", OWN)
    assert len(store.tags) == KEPT + 1
    assert TAG + view_key("sweep", "1") in store.tags
