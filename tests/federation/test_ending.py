"""How a run ends: diverged, worse than a constant model, or well."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import log_loss, mean_squared_error

from benchmarks.steps import write_wide
from fl_app.client_app import app as client_app
from fl_app.config.run_request import RunRequest
from fl_app.config.serialization import from_dict
from fl_app.data.client_data import whole_table
from fl_app.experiment import Run
from fl_app.federation.ending import DivergenceError, Ending, constant_loss
from fl_app.federation.roster import Node, Roster
from fl_app.grid import InProcessGrid
from fl_app.models.serving import Predictor
from fl_app.seeding import one_thread
from fl_app.server_app import _warnings_on
from fl_app.tracking.console import ConsoleTracker
from fl_app.tracking.records import NullTracker, RoundRecord, RunEnd

NODES = (Node(1, 0, 10, 2),)


@dataclass
class Ran(NullTracker):
    """What an observer saw of a run, and what stood on the terminal."""

    rounds: list[RoundRecord]
    end: RunEnd | None = None
    said: str = ""

    def record(self, record: RoundRecord) -> None:
        self.rounds.append(record)

    def finish(self, end: RunEnd) -> None:
        self.end = end

    @property
    def status(self) -> str:
        assert self.end is not None
        return self.end.status

    @property
    def error(self) -> str:
        assert self.end is not None
        return self.end.error

    @property
    def tagged(self) -> bool:
        assert self.end is not None
        return self.end.tags.get("worse_than_constant") == "true"


def ran(folder: Path, runtime: str = "inprocess", **options: Any) -> Ran:
    """Run a config through the real apps, whatever its end."""
    config = from_dict({"tracking": {"name": "none"}, "output_dir": str(folder)} | options)
    seen, text = Ran([]), io.StringIO()
    console = ConsoleTracker(console=Console(file=text, highlight=False, width=500))
    with InProcessGrid(client_app, config.num_clients) as grid, one_thread(), _warnings_on(console):
        run = Run(grid, RunRequest(config), runtime, console, 1, (seen,))
        with contextlib.suppress(DivergenceError):
            run.execute(grid.get_node_ids())
    seen.said = text.getvalue()
    written = json.loads((folder / "result.json").read_text())
    assert (written["status"], written.get("error", "")) == (seen.status, seen.error)
    return seen


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Write a table of 82 columns, many of them alike."""
    path = tmp_path_factory.mktemp("wide") / "wide.csv"
    write_wide(path, rows=600)
    return {"name": "tabular", "path": str(path), "target": "y", "task": "regression"}


# ---------------------------------------------------------------------------- the reference
def test_the_reference_is_scikit_learns_constant_model() -> None:
    """Variance of the target, entropy of the shares; several targets: the mean."""
    rng = np.random.default_rng(0)
    y = rng.normal(5, 3, size=(40, 2)) * (1, 10)
    dummy = DummyRegressor().fit(y, y).predict(y)
    roster = Roster(NODES, target_variance=tuple(y.var(axis=0)))
    assert constant_loss(roster, 0) == pytest.approx(mean_squared_error(y, dummy), rel=1e-14)
    labels = rng.choice(3, size=50, p=(0.7, 0.2, 0.1))
    guessed = DummyClassifier(strategy="prior").fit(labels, labels).predict_proba(labels)
    roster = Roster(NODES, label_shares=tuple(np.bincount(labels) / 50))
    assert constant_loss(roster, 3) == pytest.approx(log_loss(labels, guessed), rel=1e-14)


def test_without_shares_classes_are_equal_and_without_moments_nothing_is_known() -> None:
    """Label counts below the floor are all 0; a constant target has no scale to judge by."""
    assert constant_loss(Roster(NODES, label_shares=(0.0, 0.0)), 2) == pytest.approx(math.log(2))
    assert constant_loss(Roster(NODES), 4) == pytest.approx(math.log(4))
    assert constant_loss(Roster(NODES), 0) is None
    assert constant_loss(Roster(NODES, target_variance=(0.0,)), 0) is None
    assert constant_loss(Roster(NODES, label_shares=(1.0, 0.0)), 2) is None


# ---------------------------------------------------------------------------- the judge
@pytest.mark.parametrize(
    ("name", "losses", "end"),
    [
        ("mse", [0.5], "well"),
        ("mse", [1.0], "well"),
        ("mse", [900.0, 0.9], "well"),
        ("mse", [1.1], "worse"),
        ("mse", [9.9], "worse"),
        ("mse", [10.1], "end"),
        ("mse", [1001.0], "round"),
        ("mse", [0.5, math.nan], "round"),
        ("log_loss", [2.9], "worse"),
        ("log_loss", [3.1], "end"),
        ("log_loss", [36.0, 0.5], "well"),
        ("log_loss", [math.inf], "round"),
    ],
)
def test_the_ends(name: str, losses: list[float], end: str) -> None:
    """mse: 1000 times the constant at once, 10 times at the end; log loss: 3 times at the end."""
    ending, found = Ending(name, 1.0), "well"
    try:
        for number, loss in enumerate(losses, 1):
            ending.watch(number, loss)
    except DivergenceError:
        found = "round"
    else:
        try:
            found = "worse" if ending.close() else "well"
        except DivergenceError:
            found = "end"
    assert found == end
    lenient = Ending(name, 1.0, lenient=True)
    finite = [loss for loss in losses if math.isfinite(loss)]
    for loss in finite:
        lenient.watch(1, loss)
    assert lenient.close() == bool(finite and finite[-1] > 1)
    if len(finite) < len(losses):
        with pytest.raises(DivergenceError):
            lenient.watch(1, losses[-1])


def test_without_a_reference_only_numbers_that_are_not_finite_fail() -> None:
    """Where no node told moments nobody knows what is much."""
    ending = Ending("mse", None)
    ending.watch(1, 1e300)
    assert not ending.close()
    with pytest.raises(DivergenceError, match="round 2: train/mse is inf: training diverged"):
        ending.watch(2, math.inf)


def test_what_to_lower_is_named_as_it_is_typed() -> None:
    """The clients' step, and the server's where the strategy has one."""
    base: dict[str, Any] = {"model": {"name": "auto", "learning_rate": 0.5}}

    def remedy(**options: Any) -> str:
        return Ending.of(from_dict(base | options), Roster(NODES), 10).remedy

    assert remedy() == "lower model.learning_rate (0.5)"
    assert remedy(strategy={"name": "fedadam"}) == (
        "lower model.learning_rate (0.5) or strategy.eta (0.1)"
    )
    assert remedy(strategy={"name": "fedavgm"}) == (
        "lower model.learning_rate (0.5) or strategy.server_learning_rate (1)"
    )
    auto = remedy(strategy={"name": "fedadam"}, model={"name": "auto"})
    assert auto == "lower strategy.eta (0.1), or set a small model.learning_rate (it is auto)"
    assert remedy(model={"name": "auto"}) == "set a small model.learning_rate (it is auto)"


# ---------------------------------------------------------------------------- whole runs
def test_a_wide_table_at_the_former_default_step_fails(
    wide: dict[str, Any], tmp_path: Path
) -> None:
    """It ended FINISHED, exit status 0, with an mse of 1e91; now in an early round."""
    model = {"name": "linear", "learning_rate": 0.1}
    found = ran(tmp_path, dataset=wide, model=model)
    assert found.status == "FAILED"
    assert re.match(r"round [12]: train/mse is \S+, a constant model's \S+: ", found.error)
    assert found.error.endswith(": training diverged; lower model.learning_rate (0.1)")


def test_a_wide_table_is_learnt_by_default(wide: dict[str, Any], tmp_path: Path) -> None:
    """The step that the server decides on holds, and the model is better than a constant."""
    found = ran(tmp_path, dataset=wide)
    assert (found.status, found.tagged) == ("FINISHED", False)
    assert found.rounds[-1].server["r2"] > 0.8
    assert {"model/learning_rate", "model/last_loss"} <= found.rounds[-1].extra.keys()


def test_a_base_model_of_ones_own_finds_its_step_alone(
    wide: dict[str, Any], tmp_path: Path
) -> None:
    """Each client's own training holds on a wide table too, where half of the former step fails."""
    strategy = {"name": "n_average", "base_models": ["model"]}
    found = ran(tmp_path / "auto", dataset=wide, strategy=strategy, num_server_rounds=20)
    assert found.status == "FINISHED"
    assert found.rounds[-1].server["r2"] > 0.8
    model = {"name": "linear", "learning_rate": 0.05}
    former = ran(tmp_path, dataset=wide, strategy=strategy, num_server_rounds=20, model=model)
    assert former.status == "FAILED" or former.rounds[-1].server["r2"] < 0


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (
            {
                "dataset": {"name": "synthetic_regression", "num_features": 100},
                "model": {"name": "linear", "learning_rate": 0.5},
            },
            "FAILED",
        ),
        (
            {"dataset": {"name": "diabetes"}, "model": {"name": "mlp", "learning_rate": 0.5}},
            "FAILED",
        ),
        ({"model": {"name": "mlp", "learning_rate": 10.0}}, "FAILED"),
        ({"model": {"name": "softmax", "learning_rate": 1000.0}}, "worse"),
        (
            {
                "dataset": {"name": "diabetes"},
                "model": {"name": "linear", "learning_rate": 1.0},
                "strategy": {"name": "fedstacking"},
            },
            "FAILED",
        ),
    ],
    ids=["100 features", "mlp", "mlp classes", "softmax at 1000", "global member"],
)
def test_training_that_diverged_is_not_finished(
    options: dict[str, Any], status: str, tmp_path: Path
) -> None:
    """Whatever the model: FAILED where it is no result, tagged where a constant is better."""
    found = ran(tmp_path, **options)
    assert found.status == ("FAILED" if status == "FAILED" else "FINISHED")
    if status == "FAILED":
        assert "training diverged; lower model.learning_rate (" in found.error
    else:
        assert found.tagged
        assert found.said.count("warning: worse than a constant model: train/log_loss is ") == 1


def test_a_federation_without_a_servers_test_set_is_judged_as_any(
    wide: dict[str, Any], tmp_path: Path
) -> None:
    """A deployment has ``train/`` only, which is what is judged."""
    model = {"name": "linear", "learning_rate": 0.1}
    dataset = wide | {"test_fraction": 0.0, "val_fraction": 0.0}
    found = ran(tmp_path, dataset=dataset, model=model)
    assert found.status == "FAILED"
    assert "training diverged" in found.error
    assert all(not r.server and not r.evaluate for r in found.rounds)


def test_a_spike_that_recovers_is_no_divergence(tmp_path: Path) -> None:
    """FedAdam's first steps throw the loss above ten times the constant's, and it comes back."""
    found = ran(
        tmp_path,
        dataset={"name": "diabetes"},
        model={"name": "linear", "learning_rate": 0.01},
        strategy={"name": "fedadam", "eta": 3.0},
        num_server_rounds=40,
    )
    variance = float(np.var(whole_table(from_dict({"dataset": {"name": "diabetes"}})).target))
    losses = [r.train["mse"] for r in found.rounds[1:]]
    assert 10 * variance < max(losses) < 1000 * variance
    assert (found.status, found.tagged) == ("FINISHED", False)


def test_skew_fails_no_client_that_is_alone(tmp_path: Path) -> None:
    """``local`` on digits, alpha .1: each fits its own rows; on the server's they are poor."""
    found = ran(
        tmp_path,
        partitioner={"name": "dirichlet", "alpha": 0.1},
        strategy={"name": "local"},
        model={"name": "auto", "learning_rate": 0.5},
    )
    assert (found.status, found.tagged) == ("FINISHED", False)
    last = found.rounds[-1]
    assert last.train["log_loss"] < 0.1 < 1.5 < last.server["log_loss"]


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": {"name": "local"}},
        pytest.param(
            {"privacy": {"name": "dp_fixed", "clipping_norm": 1e3}},
            marks=pytest.mark.skipif(find_spec("dp_accounting") is None, reason="no accountant"),
        ),
    ],
    ids=["local", "dp"],
)
def test_local_and_private_runs_are_tagged_only(options: dict[str, Any], tmp_path: Path) -> None:
    """A loss that fails any other run is said of these."""
    model = {"name": "linear", "learning_rate": 0.1, "local_epochs": 1}
    rows = {"name": "synthetic_regression", "num_features": 100}
    found = ran(tmp_path, dataset=rows, model=model | {"learning_rate": 0.3}, **options)
    assert (found.status, found.tagged) == ("FINISHED", True)
    assert "worse than a constant model" in found.said
    plain = ran(tmp_path, dataset=rows, model=model | {"learning_rate": 0.3})
    assert plain.status == "FAILED"


def test_scores_of_the_server_that_are_not_finite_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test row may overflow where no training row did."""
    score = Predictor.score

    def far(self: Predictor, arrays: Any, x: Any, y: Any) -> dict[str, float]:
        scores = score(self, arrays, x, y)
        return scores if not np.any(arrays["coef"]) else {**scores, "mse": math.inf}

    monkeypatch.setattr(Predictor, "score", far)
    found = ran(tmp_path, dataset={"name": "diabetes"})
    assert found.status == "FAILED"
    assert found.error.startswith("round 1: server/mse is inf: training diverged; ")


def test_a_table_whose_numbers_overflow_in_one_round_is_learnt_all_the_same(
    tmp_path: Path,
) -> None:
    """Raw units of 1000: the first step makes NaN; halving it finds one that holds.

    The curvature is 2e6 and not 2 (1 + D) = 8, so that 2^-18 of the first step is enough.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * 1e3
    y = x @ np.array([1e-3, 2e-3, -1e-3]) + rng.normal(size=400) * 0.1
    path = tmp_path / "raw.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c", "y"], *np.column_stack([x, y]).tolist()])
    found = ran(
        tmp_path / "run",
        dataset={
            "name": "tabular",
            "path": str(path),
            "target": "y",
            "task": "regression",
            "standardize": False,
        },
        num_clients=4,
        model={"name": "linear", "local_epochs": 20},
        num_server_rounds=40,
    )
    assert (found.status, found.tagged) == ("FINISHED", False)
    assert "metric mse=" in found.said or "holds NaN" in found.said
    back = sum(r.extra["model/went_back"] for r in found.rounds[1:])
    assert 10 < back <= 20
    assert found.rounds[-1].server["r2"] > 0.9


# ---------------------------------------------------------------------------- rounds thrown away
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": {"name": "fedadam", "eta": 1000.0}, "num_server_rounds": 2},
        {"strategy": {"name": "fedadam", "eta": 1e300}, "num_server_rounds": 4},
        {"strategy": {"name": "fedavgm", "server_learning_rate": 5.0}, "num_server_rounds": 10},
    ],
    ids=lambda options: f"{options['strategy']['name']} {options['num_server_rounds']}",
)
def test_a_server_that_spoils_its_arrays_has_no_result(options: Any, tmp_path: Path) -> None:
    """The clients' rounds are thrown away, but they began with what the server had made."""
    found = ran(tmp_path, dataset={"name": "diabetes", "test_fraction": 0.0}, **options)
    assert found.status == "FAILED"
    assert "training diverged; lower strategy." in found.error


def test_a_step_that_is_too_large_at_the_end_leaves_a_result() -> None:
    """Without a server's own step the arrays are those of the last round that counted."""
    ending = Ending("mse", 1.0)
    ending.watch(1, 0.5)
    ending.stay(math.inf)
    assert not ending.close()
    ending = Ending("mse", 1.0, optimizes=True)
    ending.watch(1, 0.5)
    ending.stay(math.inf)
    with pytest.raises(DivergenceError, match="no client could train on the last round's arrays"):
        ending.close()
    ending.watch(3, 0.5)
    assert not ending.close()
