"""The relation that defines each strategy, on replies made by hand and through real clients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import Strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_app.aggregation import weighted_mean
from fl_app.client_app import app as client_app
from fl_app.config.options import ModelConfig
from fl_app.config.schema import GROUPS
from fl_app.config.serialization import from_dict
from fl_app.config.strategy_options import (
    FedAdagradConfig,
    FedAdamConfig,
    FedAvgMConfig,
    FedProxConfig,
    FedTrimmedAvgConfig,
    FedYogiConfig,
    KrumConfig,
    MultiKrumConfig,
    QFedAvgConfig,
    StrategyConfig,
)
from fl_app.federation.federated import Federated, Participation
from fl_app.federation.roster import Roster
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.grid.view import GridView
from fl_app.models.softmax import Softmax
from fl_app.seeding import generator
from fl_app.strategies import build_strategy

from .messages import content_of, reply_of, roster_of

Values = NDArray[np.float64]
START = np.array([0.5, -1.0, 2.0])


def aggregate(
    strategy: Strategy,
    clients: list[Values],
    num_examples: list[int] | None = None,
    start: Values = START,
    **metrics: list[float],
) -> Values:
    """Let a strategy aggregate one round of the given arrays."""
    rows = num_examples or [1] * len(clients)
    nodes = zip(roster_of(len(clients)), rows, strict=True)
    roster = Roster(tuple(replace(node, num_examples=n) for node, n in nodes))
    federated = Federated(strategy, roster, Participation(seed=0))
    with InProcessGrid(client_app, num_supernodes=1) as grid:
        view = GridView(grid, [node.node_id for node in roster])
        list(federated.configure_train(1, hold({"w": start}), ConfigRecord(), view))
        replies = []
        for k, node in enumerate(roster):
            told = {name: values[k] for name, values in metrics.items()}
            content = content_of({"w": clients[k]}, {**told, "num-examples": rows[k]})
            replies.append(reply_of(node.node_id, content))
        arrays, _ = federated.aggregate_train(1, replies)
    assert arrays is not None
    return read(arrays)["w"]


def built(config: StrategyConfig, k: int, learning_rate: float = 0.5) -> Strategy:
    return build_strategy(config, roster_of(k), learning_rate)


finite = st.floats(-10, 10, allow_nan=False)
vectors = st.lists(finite, min_size=3, max_size=3).map(np.array)
some = settings(max_examples=25)
AVERAGES: list[StrategyConfig] = [
    StrategyConfig("fedavg"),
    FedProxConfig("fedprox"),
    StrategyConfig("fedmedian"),
    FedTrimmedAvgConfig("fedtrimmedavg"),
    KrumConfig("krum"),
    MultiKrumConfig("multikrum"),
    KrumConfig("bulyan"),
]


@pytest.mark.parametrize("config", AVERAGES, ids=lambda c: c.name)
@some
@given(value=vectors)
def test_identical_replies_are_the_aggregate(config: StrategyConfig, value: Values) -> None:
    """Any average, median or choice of identical replies is that reply."""
    result = aggregate(built(config, 8), [value.copy() for _ in range(8)])
    np.testing.assert_allclose(result, value, rtol=0, atol=1e-12)


@some
@given(values=st.lists(vectors, min_size=3, max_size=6))
def test_trimming_nothing_is_the_mean(values: list[Values]) -> None:
    """The trimmed mean with beta = 0 is FedAvg of equally weighted clients."""
    config = FedTrimmedAvgConfig("fedtrimmedavg", beta=0.0)
    result = aggregate(built(config, len(values)), values)
    mean = aggregate(built(StrategyConfig("fedavg"), len(values)), values)
    np.testing.assert_allclose(result, mean, rtol=0, atol=1e-12)


def test_trimmed_mean_and_median_ignore_one_liar() -> None:
    """One huge value among five moves neither; it moves the mean without bound."""
    honest = [np.full(3, v) for v in (1.0, 2.0, 3.0, 4.0)]
    lie = [*honest, np.full(3, 1e9)]
    assert (aggregate(built(StrategyConfig("fedmedian"), 5), lie) == 3.0).all()
    trimmed = FedTrimmedAvgConfig("fedtrimmedavg", beta=0.2)
    # One of five goes at each end: 2, 3 and 4 are left.
    assert (aggregate(built(trimmed, 5), lie) == 3.0).all()
    assert (aggregate(built(StrategyConfig("fedavg"), 5), lie) > 1e8).all()


@pytest.mark.parametrize("name", ["krum", "multikrum", "bulyan"])
def test_the_crowd_wins(name: str) -> None:
    """One client far from seven that nearly agree has no part in the result."""
    rng = generator(0, "crowd")
    crowd = [np.ones(3) + 0.01 * rng.normal(size=3) for _ in range(7)]
    kind = MultiKrumConfig if name == "multikrum" else KrumConfig
    result = aggregate(built(kind(name), 8), [*crowd, np.full(3, 1e6)])
    assert np.abs(result - 1).max() < 0.05


def test_krum_is_one_of_the_replies() -> None:
    """Krum returns a client's own arrays, bit for bit."""
    values = [np.array([v, v, v]) for v in (0.1, 0.2, 0.3, 0.9, 5.0)]
    result = aggregate(built(KrumConfig("krum"), 5), values)
    assert any((result == v).all() for v in values)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_first_adaptive_step_by_hand(name: str) -> None:
    """Reddi et al. 2021, algorithm 2, from zero moments, with Flower's bias correction for Adam."""
    eta, beta_1, beta_2, tau = 0.1, 0.9, 0.99, 1e-3
    clients = [np.array([1.0, 0.0, 2.0]), np.array([0.0, -1.0, 4.0])]
    delta = np.mean(clients, axis=0) - START
    config: StrategyConfig
    if name == "fedadagrad":
        config = FedAdagradConfig(name, eta=eta, tau=tau)
        # Flower's FedAdagrad has no decay of its first moment: beta_1 = 0.
        m, v, rate = delta, delta**2, eta
    else:
        kind = FedAdamConfig if name == "fedadam" else FedYogiConfig
        config = kind(name, eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)
        # Yogi's v - (1 - b) d^2 sign(v - d^2) is Adam's b v + (1 - b) d^2 where v = 0.
        m, v, rate = (1 - beta_1) * delta, (1 - beta_2) * delta**2, eta
        if name == "fedadam":
            rate = eta * np.sqrt(1 - beta_2**2) / (1 - beta_1**2)
    expected = START + rate * m / (np.sqrt(v) + tau)
    np.testing.assert_allclose(aggregate(built(config, 2), clients), expected, rtol=1e-12)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_momentum_starts_as_a_plain_step(rate: float) -> None:
    """FedAvgM's first step is W + rate (mean - W): momentum has nothing to remember yet."""
    clients = [np.array([1.0, 0.0, 2.0]), np.array([3.0, 2.0, 0.0])]
    config = FedAvgMConfig("fedavgm", server_learning_rate=rate)
    expected = START + rate * (np.mean(clients, axis=0) - START)
    np.testing.assert_allclose(aggregate(built(config, 2), clients), expected, rtol=1e-12)


def test_no_fairness_is_the_plain_mean() -> None:
    """Q = 0 weighs clients alike, whatever their loss and number of rows."""
    clients = [np.array([1.0, 0.0, 2.0]), np.array([3.0, 2.0, 0.0])]
    strategy = built(QFedAvgConfig("qfedavg", q=0.0), 2)
    result = aggregate(strategy, clients, [1, 9], train_loss=[0.1, 5.0])
    np.testing.assert_allclose(result, np.mean(clients, axis=0), rtol=1e-12)


def test_fairness_pulls_towards_the_larger_loss() -> None:
    """With q > 0 the client with the larger loss has more pull than with q = 0."""
    clients, losses = [START + 1.0, START - 1.0], [4.0, 0.25]
    result = aggregate(built(QFedAvgConfig("qfedavg", q=1.0), 2), clients, train_loss=losses)
    assert (result > START).all()


def test_proximal_term_by_hand() -> None:
    """One full-batch step from the global model has no proximal pull; the second pulls by mu."""
    rng = generator(0, "prox")
    x, y = rng.normal(size=(12, 4)), rng.integers(3, size=12)
    one = ModelConfig("softmax", local_epochs=1, batch_size=0, learning_rate=0.3)
    two = ModelConfig("softmax", local_epochs=2, batch_size=0, learning_rate=0.3)
    start = {"coef": rng.normal(size=(3, 4)), "intercept": rng.normal(size=3)}
    first = Softmax(one, 4, 3).fit(start, x, y, rng, proximal_mu=0.7)
    plain = Softmax(one, 4, 3).fit(start, x, y, rng)
    second = Softmax(two, 4, 3).fit(start, x, y, rng, proximal_mu=0.7)
    free = Softmax(one, 4, 3).fit(first, x, y, rng)
    for name in start:
        np.testing.assert_array_equal(first[name], plain[name])
        pulled = free[name] - 0.3 * 0.7 * (first[name] - start[name])
        np.testing.assert_allclose(second[name], pulled, rtol=1e-12, atol=1e-15)


def _digest(tmp_path: Any, strategy: dict[str, Any], **more: Any) -> str:
    from fl_app.config.run_request import RunRequest
    from fl_app.runtimes import run

    config = from_dict(
        {
            "num_clients": 3,
            "num_server_rounds": 2,
            "strategy": strategy,
            "tracking": {"name": "none"},
            "output_dir": str(tmp_path),
            "model": {"name": "softmax", "local_epochs": 2},
            **more,
        }
    )
    return str(run(RunRequest(config)).weights_sha256)


def test_fedprox_without_mu_is_fedavg(tmp_path: Any) -> None:
    """Mu = 0 gives FedAvg's bits through real clients, mu > 0 others."""
    plain = _digest(tmp_path, {"name": "fedavg"})
    assert _digest(tmp_path, {"name": "fedprox", "proximal_mu": 0.0}) == plain
    assert _digest(tmp_path, {"name": "fedprox", "proximal_mu": 0.1}) != plain


# --------------------------------------------------- what Flower does otherwise than the papers
@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_the_clients_rate_of_flowers_formula_does_nothing(name: str) -> None:
    """FedOpt takes an ``eta_l`` and never uses it, which is why we have no such key."""
    clients, kind = [START + 1.0, START - 3.0], GROUPS["strategy"][name]
    results = []
    for rate in (0.1, 100.0):
        strategy: Any = built(kind(name), 2)
        strategy.eta_l = rate
        results.append(aggregate(strategy, clients).tobytes())
    assert results[0] == results[1]


def test_multikrum_weighs_by_the_rows_that_clients_claim() -> None:
    """Of three chosen of six, the one that claims 8 of 10 rows has 8/10 of the mean."""
    near = [np.full(3, v) for v in (1.0, 1.1, 1.2)]
    values = [*near, np.full(3, 50.0), np.full(3, -90.0), np.full(3, 400.0)]
    config = MultiKrumConfig("multikrum", num_malicious_nodes=1, num_nodes_to_select=3)
    result = aggregate(built(config, 6), values, [8, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(result, np.full(3, (8 * 1.0 + 1.1 + 1.2) / 10), rtol=1e-12)


def test_bulyan_chooses_once() -> None:
    """All n - 2f candidates come of one scoring; the paper scores anew after each choice."""
    calls: list[int] = []
    strategy: Any = built(KrumConfig("bulyan"), 7)
    choose = strategy.selection_rule

    def counted(contents: Any, malicious: int, select: int) -> Any:
        calls.append(select)
        return choose(contents, malicious, select)

    strategy.selection_rule = counted
    aggregate(strategy, [np.full(3, float(v)) for v in range(7)])
    assert calls == [7 - 2 * 1]


def test_weighted_mean_is_what_fedavg_returns() -> None:
    """Our own mean, which explains an aggregation, has FedAvg's bits."""
    rng = generator(0, "mean")
    clients, rows = [rng.normal(size=3) for _ in range(5)], [3, 1, 7, 2, 11]
    result = aggregate(built(StrategyConfig("fedavg"), 5), clients, rows)
    mean = weighted_mean([{"w": c} for c in clients], rows)["w"]
    assert result.tobytes() == mean.tobytes()
