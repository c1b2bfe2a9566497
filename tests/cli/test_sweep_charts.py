"""Where a sweep's runs are: a link to its charts for each experiment, whatever the store allows."""

from __future__ import annotations

import base64
import json
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import count, product
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from fl_app.cli import sweep_charts
from fl_app.cli.jobs import Job
from fl_app.cli.sweep_charts import where
from fl_app.tracking.mlflow.backend import MlflowStore

_numbers = count()
METRICS = ("server/accuracy", "eval/accuracy", "fairness/accuracy_worst", "cost/bytes_up")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a store that all tests of this file write to."""
    folder = tmp_path_factory.mktemp("store")
    made = f"sqlite:///{folder}/mlflow.db"
    MlflowStore(made, folder).connect()
    return made


class Sweep:
    """The runs of one sweep in a store, made by hand, and its jobs.

    Parameters
    ----------
    uri : str
        The store's.
    sweep_id : str
        Its id.
    """

    def __init__(self, uri: str, sweep_id: str) -> None:
        self.client, self.uri, self.id = MlflowClient(uri), uri, sweep_id
        self.jobs: list[Job] = []

    def add(
        self,
        *overrides: str,
        place: str,
        metrics: Sequence[str] = METRICS,
        status: str = "FINISHED",
        run_id: str = "",
        **params: str,
    ) -> str:
        """Add a job, and its run where no id names an earlier one; return the run's id."""
        params = {"seed": "0", "strategy.name": "fedavg"} | params
        words = [o.partition("=")[::2] for o in overrides]
        params |= {_param(key): value for key, value in words if key != "method"}
        if not run_id:
            found = self.client.get_experiment_by_name(place)
            where = found.experiment_id if found else self.client.create_experiment(place)
            tags = {"sweep.id": self.id, "strategy": params["strategy.name"]}
            run_id = self.client.create_run(where, tags=tags).info.run_id
            self.client.log_batch(
                run_id,
                [Metric(name, 0.5, 1, 1) for name in metrics],
                [Param(*pair) for pair in params.items()],
            )
        told = {"run_id": run_id, "sweep_id": self.id, "uri": self.uri, "experiment": place}
        self.jobs.append(
            Job(len(self.jobs), overrides, status, params=params, tracked=True, **told)
        )
        return run_id

    def links(self) -> list[tuple[str, Mapping[str, str]]]:
        """Return experiment and query of each link of the closing text."""
        first, *links = where(self.jobs).splitlines()
        assert first.startswith("the runs in MLflow: fl-kit ui --uri sqlite:///")
        found = []
        for line in links:
            name, _, url = line.strip().partition(": ")
            page, _, query = url.partition("?")
            place = self.client.get_experiment_by_name(name)
            assert place is not None
            assert page == f"http://127.0.0.1:5000/#/experiments/{place.experiment_id}/runs"
            said = {key: values[0] for key, values in parse_qs(query).items()}
            assert said.pop("workflowType") == "machine_learning"
            assert said.pop("compareRunsMode") == "CHART"
            found.append((name, said))
        return found

    def view(self, place: str) -> dict[str, Any]:
        """Return the state of its view in an experiment."""
        found = self.client.get_experiment_by_name(place)
        assert found is not None
        value = found.tags[f"mlflow.sharedViewState.fl_app-sweep-{self.id}"]
        packed = json.loads(value)["state"].removeprefix("deflate;")
        state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
        return state

    def groups(self, place: str) -> list[str]:
        """Return the params by which its view groups runs."""
        by = self.view(place)["groupBy"]
        return [key["groupByData"] for key in by["groupByKeys"]] if by else []

    def seen(self, place: str) -> set[str]:
        """Return the ids of the runs that its view finds."""
        found = self.client.get_experiment_by_name(place)
        assert found is not None
        runs = self.client.search_runs([found.experiment_id], self.view(place)["searchFilter"])
        return {run.info.run_id for run in runs}


def _param(key: str) -> str:
    return f"{key}.name" if key in ("strategy", "model", "dataset") else key


@pytest.fixture
def made(uri: str) -> Sweep:
    """Begin a sweep of its own."""
    return Sweep(uri, f"2026-{next(_numbers)}")


def test_a_sweep_opens_on_its_runs_by_what_was_swept(made: Sweep) -> None:
    """The link opens its view: all of its runs but the comparison, grouped by all but the seed."""
    place = made.id
    ids = {
        made.add(f"strategy={name}", f"model.learning_rate={rate}", f"seed={seed}", place=place)
        for name in ("fedavg", "fedadam")
        for rate in ("0.1", "0.2")
        for seed in "01"
    }
    experiment = made.client.get_experiment_by_name(place)
    assert experiment is not None
    made.client.create_run(experiment.experiment_id, tags={"sweep.id": made.id}, run_name="x")
    other = Sweep(made.uri, f"{made.id}-other")
    other.add("seed=0", place=place)
    assert made.links() == [(place, {"viewStateShareKey": f"fl_app-sweep-{made.id}"})]
    assert made.seen(place) == ids
    assert made.groups(place) == ["strategy.name", "model.learning_rate"]
    state = made.view(place)
    assert state["compareRunCharts"][0]["metricKey"] == "server/accuracy"
    assert min(c["runsCountToCompare"] for c in state["compareRunCharts"]) >= len(ids)


def test_a_sweep_over_seeds_alone_is_one_group(made: Sweep) -> None:
    """Mean and range over the seeds of its one strategy."""
    for seed in "012":
        made.add(f"seed={seed}", place=made.id)
    made.links()
    assert made.groups(made.id) == ["strategy.name"]


def test_each_data_set_has_its_view(made: Sweep) -> None:
    """An experiment each; what has one value there groups nothing."""
    places = [f"{made.id}-{name}" for name in ("iris", "wine")]
    ids: dict[str, set[str]] = {place: set() for place in places}
    for place in places:
        for name, seed in product(("fedavg", "fedprox"), "01"):
            words = (f"dataset={place}", f"strategy={name}", f"seed={seed}")
            ids[place].add(made.add(*words, place=place))
    key = {"viewStateShareKey": f"fl_app-sweep-{made.id}"}
    assert sorted(made.links()) == [(place, key) for place in places]
    for place in places:
        assert made.seen(place) == ids[place]
        assert made.groups(place) == ["strategy.name"]


def test_methods_are_told_apart_by_what_differs(made: Sweep) -> None:
    """A method is no param: strategy and model are, and a setting where these are equal."""
    for name, model, combine in (
        ("fedavg", "mlp", "-"),
        ("n_average", "mlp", "rows"),
        ("n_average", "mlp", "votes"),
    ):
        more = {"strategy.name": name, "model.name": model, "strategy.combine": combine}
        for seed in "01":
            made.add(f"method={name}", f"seed={seed}", place=made.id, **more)
    made.links()
    assert made.groups(made.id) == ["strategy.name", "strategy.combine"]


def test_of_one_seed_a_line_is_a_run(made: Sweep) -> None:
    """There is nothing to take a mean of."""
    for name in ("fedavg", "fedprox"):
        made.add(f"strategy={name}", place=made.id)
    made.links()
    assert made.groups(made.id) == []


def test_runs_of_an_earlier_sweep_are_in_the_view(made: Sweep) -> None:
    """Those that ``skip_finished`` found are named one by one, with the new ones."""
    old = Sweep(made.uri, f"{made.id}-old")
    ids = {old.add(f"seed={seed}", place=made.id) for seed in "01"}
    for number, run_id in enumerate(sorted(ids)):
        made.add(f"seed={number}", place=made.id, status="SKIPPED", run_id=run_id)
    assert where(made.jobs).splitlines()[0] == f"the runs in MLflow: fl-kit ui --uri {made.uri}"
    made.links()
    assert made.seen(made.id) == ids
    new = made.add("seed=2", place=made.id)
    made.links()
    assert made.seen(made.id) == ids | {new}


def test_too_many_runs_to_name_are_those_of_the_sweep(
    made: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter has an end: beyond it the view shows the sweep's own."""
    monkeypatch.setattr(sweep_charts, "_MOST_NAMED", 2)
    old = Sweep(made.uri, f"{made.id}-old")
    for seed in "01":
        run_id = old.add(f"seed={seed}", place=made.id)
        made.add(f"seed={seed}", place=made.id, status="SKIPPED", run_id=run_id)
    new = made.add("seed=2", place=made.id)
    made.links()
    assert made.seen(made.id) == {new}


@pytest.mark.parametrize(
    ("objective", "metrics", "good"),
    [
        ("null", ["server/accuracy", "eval/accuracy"], "server/accuracy"),
        ("null", ["eval/accuracy", "train/accuracy"], "eval/accuracy"),
        ("null", ["server/mse", "server/r2", "eval/mse"], "server/mse"),
        ("eval/r2", ["server/mse", "server/r2", "eval/r2"], "server/r2"),
        ("eval/r2", ["server/mse", "eval/mse"], "server/mse"),
    ],
)
def test_the_first_chart_is_how_good_they_are(
    made: Sweep, objective: str, metrics: list[str], good: str
) -> None:
    """The objective's metric, else the usual one; on the server's test rows, where there are."""
    made.add("seed=0", place=made.id, metrics=metrics, objective=objective)
    made.links()
    assert made.view(made.id)["compareRunCharts"][0]["metricKey"] == good


def test_a_failed_run_changes_nothing(made: Sweep) -> None:
    """It is in the view, and needs no metrics."""
    good = made.add("strategy=fedavg", place=made.id)
    bad = made.add("strategy=fedadam", place=made.id, metrics=(), status="FAILED")
    made.links()
    assert made.seen(made.id) == {good, bad}


def test_a_store_that_takes_nothing_gives_a_plain_link(
    made: Sweep, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that can only be read: the filter stands in the link, and nothing else is said."""
    made.add("seed=0", place=made.id)
    path = tmp_path / "mlflow.db"
    source = sqlite3.connect(made.uri.removeprefix("sqlite:///"))
    with closing(source), closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
        copy.execute(
            "CREATE TRIGGER no BEFORE INSERT ON experiment_tags"
            " BEGIN SELECT RAISE(ABORT, 'no permission'); END"
        )
    before, made.uri = made.uri, f"sqlite:///{path}"
    made.jobs = [Job(**vars(job) | {"uri": made.uri}) for job in made.jobs]
    ((place, query),) = made.links()
    assert (place, set(query)) == (made.id, {"searchFilter"})
    assert unquote(query["searchFilter"]).startswith(f"tags.`sweep.id` = '{made.id}'")
    assert not caplog.records
    assert MlflowClient(before).get_experiment_by_name(made.id).tags == {}


def test_a_store_that_is_away_gives_no_link(made: Sweep) -> None:
    """What finds the runs later stands there all the same."""
    made.add("seed=0", place=made.id)
    gone = [Job(**vars(job) | {"uri": "sqlite:////nowhere/x.db"}) for job in made.jobs]
    (line,) = where(gone).splitlines()
    assert line.endswith(f"filter tags.`sweep.id` = '{made.id}'")
    assert where(made.jobs, asks=False).count("\n") == 0


def test_a_server_is_its_own_ui(made: Sweep) -> None:
    """No command opens it; a password stands in no line."""
    made.add("seed=0", place=made.id)
    there = [Job(**vars(job) | {"uri": "http://me:pw@127.0.0.1:9"}) for job in made.jobs]
    line = where(there, asks=False)
    assert line == f"the runs in MLflow: filter tags.`sweep.id` = '{made.id}'"
    skipped = [Job(**vars(job) | {"status": "SKIPPED"}) for job in there]
    assert where(skipped, asks=False) == "the runs in MLflow: http://me:***@127.0.0.1:9"


def test_what_is_not_recorded_is_nowhere(made: Sweep) -> None:
    """Without MLflow, or where no run has arrived, nothing is said."""
    assert where([]) == ""
    assert where([Job(0, [], "FINISHED", run_id="x")]) == ""
    assert where([Job(0, [], "FAILED", tracked=True)]) == ""
