"""Federated boosted trees: beside xgboost, beside Flower, and through real clients."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedXgbBagging as FlowersBagging
from numpy.typing import NDArray
from scipy.special import softmax

from fl_app.config.compose import compose_config
from fl_app.config.dataset_options import MIN_LEVEL_ROWS
from fl_app.config.run_request import RunRequest
from fl_app.config.serialization import from_dict
from fl_app.config.strategy_options import FedXgbBaggingConfig
from fl_app.data.client_data import test_table as held_out
from fl_app.errors import ConfigError, DataError
from fl_app.federation.ending import Ending
from fl_app.federation.stepping import Stepping
from fl_app.grid import InProcessGrid
from fl_app.models import boosted
from fl_app.models.boosted import START, BoostedTrees
from fl_app.models.serving import predictor as served
from fl_app.models.trees import TREES, Nodes, encode_trees
from fl_app.runtimes.checks import check_before
from fl_app.seeding import generator
from fl_app.tracking.recorder import update_norm
from tests.messages import content_of, reply_of, roster_of
from tests.stacks import bits, run

needs_xgboost = pytest.mark.skipif(find_spec("xgboost") is None, reason="the extra xgboost")
K, T, D = 3, 4, 4
KINDS = {
    "regression": ("regression", 1),
    "two": ("classification", 2),
    "three": ("classification", 3),
}
"""Task and outputs of each kind of ensemble."""
PARAMS = FedXgbBaggingConfig("fedxgbbagging", eta=0.3, max_depth=3, min_child_weight=1.0)
ALONE: dict[str, Any] = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def ensemble_of(kind: str) -> BoostedTrees:
    task, outputs = KINDS[kind]
    return BoostedTrees(task, D, outputs)  # type: ignore[arg-type]


def start_of(kind: str) -> dict[str, NDArray[Any]]:
    """Start where xgboost does with a base score of 0, of 0.5 for classes."""
    task, outputs = KINDS[kind]
    return ensemble_of(kind).begin([0.0] if task == "regression" else [1 / outputs] * outputs)


def rows_of(kind: str, client: int, n: int = 40) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw a client's rows."""
    rng = generator(0, "rows", 0, client)
    x = rng.normal(size=(n, D)).astype(np.float32)
    score = x[:, 0] * x[:, 1] + x[:, 2] + 0.3 * rng.normal(size=n)
    if kind == "regression":
        return x, score[:, None]
    return x, np.digitize(score, [0.0] if kind == "two" else [-0.5, 0.5])


def settings(kind: str, eta: float) -> dict[str, Any]:
    """Return what xgboost is told, written anew: the algorithm, and a base score for all."""
    objectives = {
        "regression": {"objective": "reg:squarederror", "base_score": 0.0},
        "two": {"objective": "binary:logistic", "base_score": 0.5},
        "three": {"objective": "multi:softprob", "num_class": 3, "base_score": 0.5},
    }
    own = {"eta": eta, "max_depth": 3, "min_child_weight": 1.0, "reg_lambda": 1.0}
    return own | objectives[kind] | {"tree_method": "hist", "nthread": 1}


def in_columns(outputs: NDArray[Any]) -> NDArray[Any]:
    """Write xgboost's outputs as ours: a column an output."""
    return outputs[:, None] if outputs.ndim == 1 else outputs


def two_columns(kind: str, outputs: NDArray[Any]) -> NDArray[Any]:
    """Give the first of two classes, which xgboost leaves out, its column."""
    outputs = in_columns(outputs)
    return np.hstack([1 - outputs, outputs]) if kind == "two" else outputs


def grow(kind: str, clients: int = K, rounds: int = T) -> dict[str, NDArray[Any]]:
    """Let clients boost."""
    ensemble, arrays = ensemble_of(kind), start_of(kind)
    for _ in range(rounds):
        fit = partial(ensemble.fit, arrays, params=PARAMS, rng=generator(0, "x"))
        arrays = ensemble.grown(arrays, [fit(*rows_of(kind, k)) for k in range(clients)])
    return arrays


# ---------------------------------------------------------------------------- beside xgboost
@needs_xgboost
@pytest.mark.parametrize("kind", KINDS)
def test_one_client_is_xgboost(kind: str) -> None:
    """A federation of one client, round by round, is xgboost's own boosting."""
    import xgboost

    x, y = rows_of(kind, 0)
    data = xgboost.DMatrix(x, label=y)
    theirs = xgboost.train(settings(kind, 0.3), data, num_boost_round=T).predict(data)
    ours = ensemble_of(kind).predict(grow(kind, clients=1), x)
    np.testing.assert_allclose(ours, two_columns(kind, theirs), atol=2e-6)


@needs_xgboost
@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_is_the_start_and_the_mean_of_the_steps(kind: str) -> None:
    """By hand: each client's raw outputs after one round of xgboost, minus the start, over K."""
    import xgboost

    x, _ = rows_of(kind, 9)
    raw = np.zeros((len(x), ensemble_of(kind).columns))
    for k in range(K):
        data = xgboost.DMatrix(rows_of(kind, k)[0], label=rows_of(kind, k)[1])
        booster = xgboost.train(settings(kind, 0.3), data, num_boost_round=1)
        margin = in_columns(booster.predict(xgboost.DMatrix(x), output_margin=True))
        raw += (margin - (0.5 if kind == "three" else 0.0)) / K
    if kind == "two":
        raw = np.hstack([np.zeros_like(raw), raw])
    arrays = grow(kind, rounds=1)
    expected = raw if kind == "regression" else softmax(raw, axis=1)
    np.testing.assert_allclose(ensemble_of(kind).predict(arrays, x), expected, atol=1e-6)
    assert len(arrays["sizes"]) == K * ensemble_of(kind).columns


@needs_xgboost
def test_several_targets_have_a_tree_each() -> None:
    """Two targets are what each of them is alone."""
    (x, one), (_, other) = rows_of("regression", 0), rows_of("regression", 0)
    other = np.abs(other)
    both = BoostedTrees("regression", D, 2)
    trees = both.fit(both.begin([0, 0]), x, np.hstack([one, other]), PARAMS, generator(0, "x"))
    alone = BoostedTrees("regression", D, 1)
    for column, y in enumerate((one, other)):
        own = alone.fit(alone.begin([0]), x, y, PARAMS, generator(0, "x"))
        np.testing.assert_allclose(
            both.predict(both.begin([0, 0]), x, trees)[:, column],
            alone.predict(alone.begin([0]), x, own)[:, 0],
            atol=1e-6,
        )


@needs_xgboost
def test_a_leaf_of_a_regression_has_five_rows() -> None:
    """By default: of one row, a leaf is that row's target, shrunk by a factor that all know."""
    x, y = rows_of("regression", 0)
    ensemble = ensemble_of("regression")
    for least, few in ((None, False), (1.0, True)):
        params = replace(PARAMS, min_child_weight=least, max_depth=8)
        trees = ensemble.fit(start_of("regression"), x, y, params, generator(0, "x"))
        said = ensemble.predict(start_of("regression"), x, trees)
        _, rows = np.unique(said, return_counts=True)
        assert (rows.min() < MIN_LEVEL_ROWS) == few


@needs_xgboost
@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_are_values_of_rows(kind: str) -> None:
    """What a tree reveals: each threshold is the float32 below some row's value of that feature."""
    x, y = rows_of(kind, 0, n=600)
    trees = ensemble_of(kind).fit(start_of(kind), x, y, PARAMS, generator(0, "x"))
    features = trees["feature"][trees["feature"] >= 0]
    above = np.nextafter(trees["threshold"], np.float32(np.inf))
    assert len(features) > 3
    assert all(value in x[:, d] for d, value in zip(features, above, strict=True))


# ---------------------------------------------------------------------------- beside Flower
def flowers(kind: str) -> bytes:
    """Let Flower's strategy merge what xgboost's boosters of K clients add in T rounds.

    Clients do what Flower's example does, with ``scaled_lr``: its eta is ours over K.
    """
    import xgboost

    strategy = FlowersBagging(**ALONE)
    model = b""
    for server_round in range(1, T + 1):
        arrays = ArrayRecord({"0": Array(np.frombuffer(model, np.uint8))})
        with InProcessGrid(lambda m, c: m, num_supernodes=1) as grid:
            list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        replies = []
        for k, node in enumerate(roster_of(K)):
            x, y = rows_of(kind, k)
            data = xgboost.DMatrix(x, label=y)
            booster = xgboost.Booster(settings(kind, 0.3 / K), [data])
            if model:
                booster.load_model(bytearray(model))
            booster.set_param(settings(kind, 0.3 / K))
            booster.update(data, booster.num_boosted_rounds())
            last = booster[booster.num_boosted_rounds() - 1 : booster.num_boosted_rounds()]
            content = content_of({"0": np.frombuffer(last.save_raw("json"), np.uint8)})
            replies.append(reply_of(node.node_id, content))
        merged, _ = strategy.aggregate_train(server_round, replies)
        assert merged is not None
        model = merged["0"].numpy().tobytes()
    return model


@needs_xgboost
@pytest.mark.parametrize("kind", ["regression", "two"])
def test_flowers_merge_is_ours(kind: str) -> None:
    """Regression and two classes: the same trees, so the same predictions."""
    import xgboost

    x, _ = rows_of(kind, 9)
    booster = xgboost.Booster(model_file=bytearray(flowers(kind)))
    theirs = two_columns(kind, booster.predict(xgboost.DMatrix(x)))
    np.testing.assert_allclose(ensemble_of(kind).predict(grow(kind), x), theirs, atol=5e-6)


@needs_xgboost
def test_flowers_merge_loses_trees_of_three_classes() -> None:
    """Of each further reply one tree of three stays, and counts for the first class."""
    import xgboost

    x, _ = rows_of("three", 9)
    model = json.loads(flowers("three"))["learner"]["gradient_booster"]["model"]
    kept = len(model["trees"])
    # The first client's reply of the first round is taken whole: 3 trees.
    assert kept == 3 + (K * T - 1)
    assert model["tree_info"] == [0, 1, 2] + [0] * (K * T - 1)
    ours = grow("three")
    assert len(ours["sizes"]) == 3 * K * T
    theirs = xgboost.Booster(model_file=bytearray(flowers("three"))).predict(xgboost.DMatrix(x))
    assert np.abs(ensemble_of("three").predict(ours, x) - theirs).max() > 0.1


# ---------------------------------------------------------------------------- one ensemble
@pytest.mark.parametrize("shares", [[0.2, 0.8], [0.2, 0.5, 0.3]])
def test_an_ensemble_without_trees_says_the_shares(shares: list[float]) -> None:
    """Before the first round it is the constant model."""
    ensemble = BoostedTrees("classification", D, len(shares))
    said = ensemble.predict(ensemble.begin(shares), np.zeros((2, D)))
    np.testing.assert_allclose(said, [shares, shares], rtol=1e-12)


@needs_xgboost
def test_of_one_class_there_is_nothing_to_learn() -> None:
    """Where the federation knows one class only, no tree is grown and it is certain."""
    ensemble = BoostedTrees("classification", D, 1)
    x, arrays = rows_of("two", 0)[0], ensemble.begin([1.0])
    trees = ensemble.fit(arrays, x, np.zeros(len(x), np.int64), PARAMS, generator(0, "x"))
    ensemble.check(trees)
    assert (ensemble.predict(ensemble.grown(arrays, [trees] * 2), x) == np.ones((len(x), 1))).all()


def stump(feature: int = 0, value: float = 1.0) -> Nodes:
    """Make a tree with one split at 0."""
    children = np.array([1, 0, 0]), np.array([2, 0, 0])
    return Nodes(np.array([feature, 0, 0]), np.zeros(3), *children, np.array([0, -value, value]))


def chain(depth: int) -> Nodes:
    """Make a tree whose inner nodes are one below the other."""
    inner = np.arange(0, 2 * depth, 2)
    left, right = np.zeros(2 * depth + 1, int), np.zeros(2 * depth + 1, int)
    left[inner], right[inner] = inner + 1, inner + 2
    return Nodes(np.zeros(2 * depth + 1, int), np.zeros(2 * depth + 1), left, right, left * 0.0)


def test_what_is_remembered_changes_no_bit() -> None:
    """Rows that nobody can write to are walked by new trees alone, of an ensemble that grew."""
    ensemble = BoostedTrees("classification", D, 3)
    rng = generator(0, "memory")
    x = rng.normal(size=(5, D))
    fixed = x.copy()
    fixed.setflags(write=False)
    arrays = ensemble.begin([0.2, 0.5, 0.3])
    seen = [arrays]
    for _ in range(6):
        replies = [
            encode_trees([stump(f, v) for f, v in enumerate(rng.normal(size=3))]) for _ in range(2)
        ]
        arrays = ensemble.grown(arrays, replies)
        seen.append(arrays)
        assert ensemble.predict(arrays, fixed).tobytes() == ensemble.predict(arrays, x).tobytes()
    for arrays in reversed(seen):
        assert ensemble.predict(arrays, fixed).tobytes() == ensemble.predict(arrays, x).tobytes()
    assert len(ensemble._memory) == 1
    del fixed
    assert not ensemble._memory


def test_equal_clients_are_one_client() -> None:
    """The mean of equal steps is the step, whatever the number of clients."""
    ensemble = BoostedTrees("regression", D, 1)
    trees, x = encode_trees([stump()]), np.array([[-1.0] * D, [1.0] * D])
    for clients in (1, 2, 8):
        grown = ensemble.grown(ensemble.begin([3.0]), [trees] * clients)
        np.testing.assert_allclose(ensemble.predict(grown, x), [[2.0], [4.0]], rtol=1e-6)


BROKEN: dict[str, tuple[Any, str]] = {
    "no array": (lambda a: a.pop("value"), "arrays sizes, feature, threshold, value"),
    "one array more": (lambda a: a.update(start=np.zeros(3)), "arrays sizes, feature"),
    "a tree too few": (lambda a: a.update(encode_trees([stump()] * 2)), "the 3 new trees"),
    "a round too many": (lambda a: a.update(encode_trees([stump()] * 6)), "the 3 new trees"),
    "feature": (lambda a: a.update(encode_trees([stump(D)] * 3)), f"a feature below {D}"),
    "value": (lambda a: a["value"].fill(np.nan), "finite values"),
    "threshold": (lambda a: a["threshold"].fill(np.inf), "finite values"),
    "dtype": (lambda a: a.update(value=a["value"].astype(float)), "float32 of shape"),
    "a negative size": (lambda a: a.update(sizes=-a["sizes"]), "at least 1 node a tree"),
    "too deep": (lambda a: a.update(encode_trees([chain(40)] * 3)), "at most 32 levels"),
    "leaves of another tree": (lambda a: a["sizes"].__setitem__([0, 1], [1, 5]), "one leaf more"),
}


@pytest.mark.parametrize(("spoil", "allowed"), BROKEN.values(), ids=BROKEN)
def test_a_reply_is_one_rounds_trees_and_nothing_else(spoil: Any, allowed: str) -> None:
    """What could not be walked, or is no new round, is refused with what is allowed."""
    ensemble = BoostedTrees("classification", D, 3)
    arrays = encode_trees([stump()] * 3)
    ensemble.check(arrays)
    spoil(arrays)
    with pytest.raises(DataError, match=allowed):
        ensemble.check(arrays)


# ---------------------------------------------------------------------------- what is refused
def test_without_the_package_there_is_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line before any work says what to install; a deployment's server does not need it."""
    monkeypatch.setenv("FL_APP_HOME", str(tmp_path))
    monkeypatch.setattr(boosted, "find_spec", lambda name: None)
    config = compose_config(["strategy=fedxgbbagging", "tracking=none"])
    told = r"^strategy=fedxgbbagging: needs the extra xgboost: pip install 'fl-app\[xgboost\]'$"
    with pytest.raises(ConfigError, match=told):
        check_before(RunRequest(config))
    with pytest.raises(ConfigError, match=told):
        run(config)
    words = ["strategy=fedxgbbagging", "tracking=none", "runtime=deployment"]
    check_before(RunRequest(compose_config([*words, "runtime.superlink=lab"])))
    with pytest.raises(ConfigError, match=told):
        check_before(RunRequest(compose_config(words)))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("privacy=dp_fixed", "privacy=dp_fixed: none with strategy=fedxgbbagging"),
        ("faults.clients=1 faults.kind=flip", "faults.kind=flip: crash or nan with strategy=fedx"),
        ("strategy.eta=0", "strategy.eta=0: expected a finite number > 0 and <= 1"),
        ("strategy.max_depth=17", "strategy.max_depth=17: expected an integer >= 1 and <= 16"),
        ("strategy.subsample=0", "strategy.subsample=0: expected a finite number > 0 and <= 1"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: str, told: str) -> None:
    """Noise on trees, a flip of what no client moves, and parameters out of range."""
    with pytest.raises(ConfigError, match=told):
        compose_config(["strategy=fedxgbbagging", *overrides.split()])


def test_no_step_of_ours_is_in_play() -> None:
    """``model.learning_rate`` decides nothing: a run that diverged is told to lower ``eta``."""
    config = config_of()
    assert config.model.learning_rate == "auto"
    assert Stepping.of(config, D) is None
    assert Ending.of(config, roster_of(2), 3).remedy == "lower strategy.eta (0.3)"


# ---------------------------------------------------------------------------- whole runs
def config_of(dataset: str = "wine", **more: Any) -> Any:
    base: dict[str, Any] = {"num_clients": 4, "num_server_rounds": 3, "dataset": {"name": dataset}}
    return from_dict(base | {"strategy": {"name": "fedxgbbagging"}} | more)


@needs_xgboost
@pytest.mark.parametrize("dataset", ["wine", "breast_cancer", "diabetes"])
def test_rounds_get_better(dataset: str) -> None:
    """Regression, two and three classes: the loss on test rows falls from the constant model's."""
    ran = run(config_of(dataset))
    losses = [r.server["mse" if dataset == "diabetes" else "log_loss"] for r in ran.rounds]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.75 * losses[0]
    sizes = [len(r.arrays["sizes"]) for r in ran.rounds]
    assert sizes == [4 * t * ran.predictor.ensemble.columns for t in range(4)]


@needs_xgboost
def test_every_round_is_the_one_before_and_more() -> None:
    """Trees stay as they are; there is no step of ours, and no norm of a change."""
    ran = run(config_of())
    for before, after in zip(ran.rounds[:-1], ran.rounds[1:], strict=True):
        for name in (START, *TREES):
            kept = after.arrays[name][: len(before.arrays[name])]
            assert kept.tobytes() == before.arrays[name].tobytes()
        assert update_norm(after.arrays, before.arrays) is None
        assert not [name for name in after.extra if name.startswith("model/")]
        assert all(client.arrays is None for client in after.train_clients)


@needs_xgboost
def test_order_of_replies_and_a_smaller_cohort_change_no_bit() -> None:
    """Trees stand in order of partition, and ``subsample`` is drawn by seed, round, partition."""
    config = config_of(fraction_train=0.5, strategy={"name": "fedxgbbagging", "subsample": 0.5})
    first = bits(run(config).final)
    assert bits(run(config, shuffle=3).final) == first
    assert bits(run(replace(config, seed=1)).final) != first


@needs_xgboost
def test_a_spoiled_reply_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """NaN in a leaf: the round goes on with the others, the warning names the partition."""
    with caplog.at_level(logging.WARNING, "fl_app"):
        ran = run(config_of(faults={"clients": 1, "kind": "nan"}))
    told = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
    start = "round {}, train: reply of partition 3 dropped: trees.threshold="
    assert [line.startswith(start.format(t)) for t, line in enumerate(told, 1)] == [True] * 3
    assert len(ran.final["sizes"]) == 3 * 3 * 3  # clients, rounds, classes


@needs_xgboost
@pytest.mark.parametrize("dataset", ["wine", "breast_cancer", "diabetes"])
def test_the_logged_model_needs_no_xgboost(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It predicts raw rows as the server scored them."""
    pandas = pytest.importorskip("pandas")
    ran = run(config_of(dataset))
    monkeypatch.setitem(sys.modules, "xgboost", None)
    spec = json.loads(json.dumps(ran.predictor.to_spec()))
    test = held_out(ran.config)
    frame = pandas.DataFrame(test.numeric, columns=list(ran.encoding.columns))
    said = served(spec, ran.final)(frame)
    if dataset == "diabetes":
        mse = np.square(said - test.target.ravel()).mean()
        assert mse == pytest.approx(ran.score("mse"), rel=1e-9)
    else:
        assert (said == test.target).mean() == pytest.approx(ran.score("accuracy"), abs=1e-12)


@needs_xgboost
def test_clients_without_all_classes_take_part() -> None:
    """A client of one class grows trees for all of them."""
    ran = run(config_of(partitioner={"name": "shards", "classes_per_client": 1}))
    assert len(ran.final["sizes"]) == 4 * 3 * 3
    assert np.isfinite(ran.score("log_loss"))
