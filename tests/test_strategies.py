"""Strategies by name: Flower's own, and every client alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Result
from numpy.typing import NDArray
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB

from fl_app.client_app import app as client_app
from fl_app.config.compose import compose_config
from fl_app.config.options import ModelConfig
from fl_app.config.schema import GROUPS, Config
from fl_app.config.serialization import from_dict, to_json
from fl_app.config.strategy_options import FedAdamConfig, StrategyConfig
from fl_app.data.client_data import Encoded, encode, partition_of
from fl_app.data.encoding import Encoding
from fl_app.errors import ConfigError, FederationError
from fl_app.experiment import federated_of
from fl_app.federation import protocol
from fl_app.federation.handshake import shake_hands
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.models.base import Model
from fl_app.models.metrics import score
from fl_app.models.optimum import converge
from fl_app.models.registry import build
from fl_app.models.serving import Predictor
from fl_app.seeding import generator, one_thread
from fl_app.strategies import Local, build_strategy, start_arrays
from tests.messages import NODE_IDS, asked_of, content_of, reply_of, roster_of

Arrays = Mapping[str, NDArray[Any]]


def _config(**options: Any) -> Config:
    base = {
        "num_clients": 4,
        "num_server_rounds": 3,
        "dataset": {"name": "diabetes"},
        "model": {"name": "auto", "learning_rate": 0.1},
    }
    return from_dict(base | options)


def _federate(
    config: Config, app: ClientApp = client_app, shuffle: int | None = None
) -> tuple[Encoding, Result]:
    """Run a config's rounds in this process, without tracking or a server's test."""
    nodes = 1 if config.strategy.name == "pooled" else config.num_clients
    with InProcessGrid(app, nodes, shuffle_replies=shuffle) as grid, one_thread():
        roster, encoding = shake_hands(grid, grid.get_node_ids(), config, 60.0)
        predictor = Predictor(encoding, config.model)
        federated = federated_of(config, roster, predictor)
        record = protocol.run_record(to_json(config), encoding, roster.target_mean)
        result = federated.start(
            grid,
            hold(start_arrays(config, roster, predictor)),
            num_rounds=config.num_server_rounds,
            train_config=record,
            evaluate_config=record.copy(),
        )
    return encoding, result


def _bits(arrays: Arrays) -> dict[str, bytes]:
    return {name: a.tobytes() for name, a in arrays.items()}


def _rows(config: Config, encoding: Encoding, partition: int) -> Encoded:
    return encode(partition_of(config, partition), encoding, config.model.dtype)


# ---------------------------------------------------------------------------- by name
@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (StrategyConfig("fedavg"), FedAvg),
        (StrategyConfig("fedmedian"), FedMedian),
        (FedAdamConfig("fedadam"), FedAdam),
        (StrategyConfig("local"), Local),
        (StrategyConfig("pooled"), FedAvg),
    ],
)
def test_a_name_stands_for_a_strategy(config: StrategyConfig, kind: type) -> None:
    """Flower's own class, unforked, which takes every node that it is shown."""
    strategy = build_strategy(config, roster_of(2))
    assert type(strategy) is kind
    assert isinstance(strategy, FedAvg)
    assert (strategy.fraction_train, strategy.fraction_evaluate) == (1.0, 1.0)
    least = (strategy.min_train_nodes, strategy.min_evaluate_nodes, strategy.min_available_nodes)
    assert least == (1, 1, 1)


def test_every_parameter_reaches_the_strategy() -> None:
    """No key of the config is decoration."""
    values = {"eta": 0.5, "beta_1": 0.75, "beta_2": 0.125, "tau": 0.0625}
    strategy = build_strategy(FedAdamConfig("fedadam", **values), roster_of(2))
    assert {name: getattr(strategy, name) for name in values} == values


@pytest.mark.parametrize("name", GROUPS["strategy"])
def test_every_strategy_of_the_schema_runs(name: str) -> None:
    """A name that the config allows trains and evaluates, the same bits in any order of arrival."""
    if name == "fedxgbbagging":
        pytest.importorskip("xgboost")
    config = _config(strategy={"name": name}, num_clients=8)
    _, result = _federate(config)
    arrays = read(result.arrays)
    assert any(a.any() for a in arrays.values())
    assert all(np.isfinite(a).all() for a in arrays.values())
    assert set(result.train_metrics_clientapp) == {1, 2, 3}
    assert set(result.evaluate_metrics_clientapp) == {1, 2, 3}
    _, other = _federate(config, shuffle=3)
    assert _bits(read(other.arrays)) == _bits(arrays)


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedmedian"])
def test_float32_stays_float32_in_every_strategy(name: str) -> None:
    """The configured precision is that of the final model."""
    config = _config(strategy={"name": name}, model={"name": "auto", "dtype": "float32"})
    assert {str(a.dtype) for a in read(_federate(config)[1].arrays).values()} == {"float32"}


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "qfedavg"])
def test_the_servers_step_is_the_same_for_shuffled_replies(name: str) -> None:
    """What is merged is sorted first: weights, metrics and steps do not depend on arrival."""
    rows = {"name": "synthetic_regression", "num_features": 30, "num_examples": 600}

    def options(**model: Any) -> Config:
        named = {"name": "linear", **model}
        return _config(dataset=rows, model=named, strategy={"name": name}, num_server_rounds=8)

    results = [_federate(options(), shuffle=order)[1] for order in (None, 1, 2)]
    assert len({str(_bits(read(r.arrays))) for r in results}) == 1
    assert len({str(r.train_metrics_clientapp) for r in results}) == 1
    given = _federate(options(learning_rate=1 / 31))[1]  # the first step, and then no other
    assert _bits(read(results[0].arrays)) != _bits(read(given.arrays))


def test_training_that_diverges_is_said_once_and_by_partition() -> None:
    """Numbers that overflow end the run with the metric's name, not with NumPy's warnings."""
    config = _config(model={"name": "linear", "learning_rate": 1e3, "local_epochs": 50})
    with pytest.raises(FederationError, match="0 usable replies of 4 asked") as caught:
        _federate(config)
    assert "partition 0: metric mae=nan: expected a finite number; " in str(caught.value)


# ---------------------------------------------------------------------------- averaging
@pytest.mark.parametrize("rows", [(2, 2), (2, 6), (4, 2)])
def test_the_lesson_in_closed_form(rows: tuple[int, int]) -> None:
    """On y = s_k x + 1 the slope after T rounds of E epochs is s (1 - (1-2r)^(ET)).

    A full-batch step takes a slope w to w - 2r (w - s_k), as mean x = 0 and mean x^2 = 1; E steps
    to (1-2r)^E w + (1 - (1-2r)^E) s_k. The average keeps that form, with s = sum_k n_k/N s_k.
    """
    text = f"dataset.rows=[{rows[0]},{rows[1]}]"
    _, result = _federate(compose_config(["experiment=two_lines", text]))
    arrays = read(result.arrays)
    far = 1 - (1 - 2 * 0.1) ** (5 * 5)
    slope = (rows[0] * 2 + rows[1] * 1) / sum(rows)
    assert arrays["coef"].ravel() == pytest.approx([slope * far], rel=1e-13)
    assert arrays["intercept"] == pytest.approx([far], rel=1e-13)


def _same_rows(num_clients: int) -> ClientApp:
    """Make clients that all train on the same rows, by full-batch descent."""
    config = ModelConfig("softmax", batch_size=0, learning_rate=0.5, local_epochs=3)
    model = build(config, 4, 3, "classification")
    x = np.random.default_rng(0).normal(size=(9, 4))
    y = np.random.default_rng(1).integers(0, 3, size=9)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = model.fit(read(message.content["arrays"]), x, y, np.random.default_rng(0))
        return protocol.reply(message, {"log_loss": 1.0}, 9, arrays)

    return app


@pytest.mark.parametrize("num_clients", [2, 3, 8])
@pytest.mark.parametrize("name", ["fedavg", "fedmedian"])
def test_clients_with_identical_data_are_one_client(name: str, num_clients: int) -> None:
    """K equal clients end where one ends: bit for bit for the median and for a pair."""
    found = []
    for k in (1, num_clients):
        with InProcessGrid(_same_rows(k), k) as grid:
            roster = roster_of(0)
            strategy = build_strategy(StrategyConfig(name), roster)
            start = {"coef": np.zeros((3, 4)), "intercept": np.zeros(3)}
            found.append(read(strategy.start(grid, hold(start), num_rounds=4).arrays))
    one, many = found
    if name == "fedmedian" or num_clients == 2:
        assert _bits(one) == _bits(many)
    for key in one:
        np.testing.assert_allclose(many[key], one[key], rtol=1e-12, atol=1e-14)


def test_pooled_is_one_client_with_all_rows() -> None:
    """``strategy=pooled`` trains to convergence on all training rows, in the first round."""
    config = _config(strategy={"name": "pooled"})
    encoding, result = _federate(config)
    rows = _rows(config, encoding, 0)

    def make(l2: float) -> Model:
        own = replace(config.model, l2=l2)
        return build(own, len(encoding.feature_names), 1, "regression")

    start = make(0.0).start(generator(0, "model"))
    with one_thread():
        arrays = converge(make, start, rows.x, rows.y, generator(config.seed, "pooled"))
    losses = [m["mse"] for m in result.evaluate_metrics_clientapp.values()]
    assert len(losses) == 3
    assert len(set(losses)) == 1
    assert len(rows.x) == sum(
        len(partition_of(_config(), k).train) for k in range(config.num_clients)
    )
    assert _bits(read(result.arrays)) == _bits(arrays)


def test_neither_steps_nor_rounds_change_the_pooled_model() -> None:
    """There is nothing to tune: rate, batches, epochs, steps and rounds have no effect."""
    plain = _federate(_config(strategy={"name": "pooled"}, num_server_rounds=1))[1]
    model = {"name": "auto", "batch_size": 7, "local_epochs": 3, "local_steps": 2}
    other = _federate(_config(strategy={"name": "pooled"}, model=model, num_server_rounds=4))[1]
    assert _bits(read(plain.arrays)) == _bits(read(other.arrays))


@pytest.mark.parametrize(
    ("name", "dataset", "theirs"),
    [
        ("logistic", "wine", LogisticRegression(max_iter=200)),
        ("gaussian_nb", "wine", GaussianNB()),
        ("hist_gradient_boosting", "wine", HistGradientBoostingClassifier(early_stopping=False)),
        ("hist_gradient_boosting", "diabetes", HistGradientBoostingRegressor(early_stopping=False)),
        ("ridge", "diabetes", Ridge()),
        ("random_forest", "wine", RandomForestClassifier()),
    ],
    ids=str,
)
def test_a_pooled_base_model_is_scikit_learns_with_its_defaults(
    name: str, dataset: str, theirs: Any
) -> None:
    """A reference without federation says what scikit-learn's own class says of the same rows."""
    strategy = {"name": "pooled", "base_models": [name]}
    config = _config(strategy=strategy, dataset={"name": dataset})
    encoding, result = _federate(config)
    rows = _rows(config, encoding, 0)
    x, y = rows.x.astype(np.float32).astype(np.float64), rows.y
    if hasattr(theirs, "random_state"):
        draw = generator(config.seed, "base", 0, 0).integers(2**31)
        theirs.set_params(random_state=int(draw) if name != "logistic" else None)
    theirs.fit(x, y[:, 0] if y.ndim == 2 else y)
    predictor = Predictor(encoding, config.model, stacked=True)
    found = predictor.outputs(read(result.arrays), rows.x_eval)
    if y.ndim == 2:
        expected = encoding.in_units(theirs.predict(rows.x_eval).reshape(-1, 1))
    else:
        expected = theirs.predict_proba(rows.x_eval)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_pooled_base_model_is_not_clipped(tmp_path: Path) -> None:
    """Of targets with a long tail, price = 3 x, the largest are beyond 4 standard deviations."""
    x = np.exp(1.5 * generator(0, "tail").normal(size=400))
    path = tmp_path / "tail.csv"
    path.write_text("x,price\n" + "".join(f"{v!r},{3 * v!r}\n" for v in x.tolist()))
    assert (3 * x > (3 * x).mean() + 4 * (3 * x).std()).any()
    dataset = {"name": "tabular", "path": str(path), "target": "price", "task": "regression"}
    strategy = {"name": "pooled", "base_models": ["ridge"]}
    config = _config(strategy=strategy, dataset=dataset)
    encoding, result = _federate(config)
    rows = _rows(config, encoding, 0)
    predictor = Predictor(encoding, config.model, stacked=True)
    found = predictor.outputs(read(result.arrays), rows.x)
    theirs = Ridge().fit(rows.x, rows.y).predict(rows.x)
    np.testing.assert_allclose(found, encoding.in_units(theirs.reshape(-1, 1)), rtol=1e-4)


def test_more_classes_than_trees_can_be_sent_are_refused() -> None:
    """4096 trees at most, 100 a class by scikit-learn's defaults: 41 classes are too many."""
    dataset = {"name": "synthetic_classification", "num_classes": 41, "num_examples": 1000}
    strategy = {"name": "pooled", "base_models": ["hist_gradient_boosting"]}
    with pytest.raises(ConfigError, match=r"strategy.base_models=.*more than 40 classes"):
        _federate(_config(strategy=strategy, dataset=dataset))


# ---------------------------------------------------------------------------- local
def _alone(config: Config, encoding: Encoding, skipped: Mapping[int, int] | None = None) -> Arrays:
    """Train every client with its model alone; ``skipped`` maps a round to who misses it."""
    model = build(
        config.model,
        len(encoding.feature_names),
        len(encoding.output_names),
        encoding.task,
    )
    found: dict[str, NDArray[Any]] = {}
    for k in range(config.num_clients):
        rows = _rows(config, encoding, k)
        arrays = model.start(generator(config.seed, "model"))
        with one_thread():
            for t in range(1, config.num_server_rounds + 1):
                if (skipped or {}).get(t) != k:
                    rng = generator(config.seed, "train", t, k)
                    arrays = model.fit(arrays, rows.x, rows.y, rng)
        found |= {f"{k:03d}/{name}": a for name, a in arrays.items()}
    return found


@pytest.mark.parametrize("dataset", ["diabetes", "digits"])
def test_local_is_every_client_alone(dataset: str) -> None:
    """Bit for bit what each client's model gives on its rows, without the federation."""
    config = _config(strategy={"name": "local"}, dataset={"name": dataset})
    encoding, result = _federate(config, shuffle=5)
    arrays = read(result.arrays)
    assert list(arrays) == [f"{k:03d}/{name}" for k in range(4) for name in ("coef", "intercept")]
    assert _bits(arrays) == _bits(_alone(config, encoding))


def _spied(fails: Mapping[int, int], scored: dict[tuple[int, int], dict[str, bytes]]) -> ClientApp:
    """Wrap our client app: partition ``fails[t]`` breaks in round t; note what is evaluated."""
    app = ClientApp()

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return client_app(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if fails.get(protocol.server_round(message)) == context.node_config["partition-id"]:
            raise RuntimeError("away")
        return client_app(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        place = (protocol.server_round(message), int(context.node_config["partition-id"]))
        scored[place] = _bits(read(message.content["arrays"]))
        return client_app(message, context)

    return app


def test_a_client_that_misses_a_round_keeps_its_arrays() -> None:
    """Its arrays stand still in that round; the others go on, and it does in the next."""
    config = _config(strategy={"name": "local"})
    scored: dict[tuple[int, int], dict[str, bytes]] = {}
    encoding, result = _federate(config, _spied({1: 0, 2: 1}, scored))
    assert _bits(read(result.arrays)) == _bits(_alone(config, encoding, {1: 0, 2: 1}))
    assert scored[2, 1] == scored[1, 1]
    assert scored[2, 2] != scored[1, 2]


def test_each_client_evaluates_its_own_arrays() -> None:
    """``eval/`` under ``local`` is the mean of the clients' scores of their own models."""
    config = _config(strategy={"name": "local"}, num_server_rounds=2)
    scored: dict[tuple[int, int], dict[str, bytes]] = {}
    encoding, result = _federate(config, _spied({}, scored))
    arrays = read(result.arrays)
    model = build(config.model, len(encoding.feature_names), 1, "regression")
    total, mse = 0, 0.0
    for k in range(4):
        own = {name: arrays[f"{k:03d}/{name}"] for name in ("coef", "intercept")}
        assert scored[2, k] == _bits(own)
        rows = _rows(config, encoding, k)
        outputs = encoding.in_units(model.predict(own, rows.x_eval))
        mse += len(rows.x_eval) * score("regression", outputs, rows.truth_eval)["mse"]
        total += len(rows.x_eval)
    assert result.evaluate_metrics_clientapp[2]["mse"] == pytest.approx(mse / total, rel=1e-12)


def test_a_share_of_the_clients_may_evaluate_under_local() -> None:
    """``fraction_evaluate`` works as everywhere: others' arrays are not lost by it."""
    config = _config(strategy={"name": "local"}, fraction_evaluate=0.5)
    scored: dict[tuple[int, int], dict[str, bytes]] = {}
    encoding, result = _federate(config, _spied({}, scored))
    assert [len([1 for t, _ in scored if t == i]) for i in (1, 2, 3)] == [2, 2, 2]
    assert _bits(read(result.arrays)) == _bits(_alone(config, encoding))


def test_local_checks_replies_against_one_clients_arrays() -> None:
    """A reply must look like a client's own arrays, before and after the first round."""
    roster = roster_of(3)
    strategy = Local(roster)
    plain = hold({"w": np.zeros(2)})
    spec = strategy.reply_spec(1, plain)
    assert spec.arrays == {"w": ((2,), "float64")}
    grid = InProcessGrid(ClientApp(), 1)
    with grid:
        view = _Ids(roster_of(3))
        strategy.configure_train(1, plain, ConfigRecord(), view)  # type: ignore[arg-type]
    replies = [reply_of(n, content_of({"w": np.full(2, float(n))})) for n in asked_of(roster)]
    merged, _ = strategy.aggregate_train(1, replies[:2])
    assert merged is not None
    assert strategy.reply_spec(2, merged).arrays == spec.arrays
    values = {name: a.tolist() for name, a in read(merged).items()}
    first, second = NODE_IDS[:2]
    assert values == {"000/w": [first] * 2, "001/w": [second] * 2, "002/w": [0.0, 0.0]}
    assert strategy.samples_all(1)


class _Ids:
    """As much of a grid as a strategy asks for its node ids."""

    def __init__(self, roster: Any) -> None:
        self._roster = roster

    def get_node_ids(self) -> list[int]:
        return [node.node_id for node in self._roster]
