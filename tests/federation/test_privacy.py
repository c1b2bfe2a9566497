"""Differential privacy: what one client can move, what is spent, what an optimizer sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from scipy import stats

from fl_app.client_app import app as client_app
from fl_app.config.options import DpAdaptiveConfig, DpFixedConfig
from fl_app.config.schema import GROUPS
from fl_app.errors import FederationError
from fl_app.federation.federated import Federated, Participation
from fl_app.federation.privacy import (
    Noise,
    Private,
    clipped,
    count_deviation,
    system_normal,
    update_multiplier,
)
from fl_app.federation.roster import Node, Roster
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.grid.view import GridView
from fl_app.strategies import build_strategy

from .messages import content_of, reply_of

ALLOWED = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
OPTIMIZERS = ALLOWED[2:]
START = {"w": np.array([0.5, -1.0, 2.0]), "b": np.array([0.25])}
Arrays = Mapping[str, NDArray[Any]]
Privacy = DpFixedConfig | DpAdaptiveConfig


@pytest.fixture(autouse=True, scope="module")
def _run() -> Iterator[None]:
    """Messages are made inside of a run only."""
    with InProcessGrid(client_app, num_supernodes=1):
        yield


def nothing(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Noise that is off."""
    return np.zeros(shape)


def nodes(count: int, rows: Sequence[int] = ()) -> Roster:
    rows = rows or [10 + k for k in range(count)]
    return Roster(tuple(Node(100 + k, k, rows[k], 2) for k in range(count)))


def answer(node: Node, arrays: Arrays, times: int = 1) -> Message:
    rows = times * node.num_examples
    return reply_of(node.node_id, content_of(arrays, {"mse": 0.5, "num-examples": rows}))


def inner(name: str) -> FedAvg:
    """Build a strategy as a config does; it keeps what the last round gave it to aggregate."""
    strategy = build_strategy(GROUPS["strategy"][name](name), nodes(1))

    class Listening(type(strategy)):  # type: ignore[misc]
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            (one,) = replies
            assert dict(one.content["metrics"]) == {"num-examples": 1}
            self.heard = read(one.content["arrays"])
            return super().aggregate_train(server_round, [one])

    strategy.__class__ = Listening
    assert isinstance(strategy, FedAvg)
    return strategy


class World:
    """A federation whose replies are made by hand."""

    def __init__(
        self,
        privacy: Privacy,
        num_nodes: int,
        name: str = "fedavg",
        noise: Noise | None = None,
        min_replies: int = 1,
        rows: Sequence[int] = (),
    ) -> None:
        self.roster, self.min_replies = nodes(num_nodes, rows), min_replies
        self.private = Private(inner(name), privacy, num_nodes, noise)

    def silent(self) -> World:
        """Return a world of the same released history, with the noise off."""
        other = copy(self)
        other.private = copy(self.private)
        other.private.strategy = deepcopy(self.private.strategy)
        other.private._noise = nothing
        return other

    def round(self, server_round: int, sent: Arrays, replies: Iterable[Message]) -> Arrays:
        """Do one round and return the arrays that come of it."""
        participation = Participation(seed=0, min_replies=self.min_replies)
        federated = Federated(self.private, self.roster, participation)
        view = GridView(cast(Any, None), [node.node_id for node in self.roster])
        list(federated.configure_train(server_round, hold(sent), ConfigRecord(), view))
        with np.errstate(over="ignore"):  # the squares of what is beyond 1e154
            arrays, self.metrics = federated.aggregate_train(server_round, replies)
        assert arrays is not None
        return read(arrays)

    @property
    def heard(self) -> Arrays:
        """What the last round gave the inner strategy."""
        return cast(Any, self.private.strategy).heard

    @property
    def norm(self) -> float:
        """The norm that clips in the next round."""
        return self.private._next_norm


def moved(sent: Arrays, by: NDArray[Any]) -> Arrays:
    """Add four numbers to the arrays of START's shapes."""
    return {"w": sent["w"] + by[:3], "b": sent["b"] + by[3:]}


def flat(arrays: Arrays) -> NDArray[Any]:
    return np.concatenate([arrays["w"], arrays["b"]])


FIXED = DpFixedConfig("dp_fixed", noise_multiplier=1.0, clipping_norm=0.1)
ADAPTIVE = DpAdaptiveConfig("dp_adaptive", initial_clipping_norm=0.1)
SMALL = 1e-4
"""How far the other clients move: what hides least where an optimizer divides by it."""


def others(roster: Roster, sent: Arrays, server_round: int) -> list[Message]:
    """Answer as all clients but the last one do."""
    rng = np.random.default_rng(server_round)
    return [answer(node, moved(sent, SMALL * rng.normal(size=4))) for node in [*roster][:-1]]


def fates(node: Node, sent: Arrays, server_round: int) -> dict[str, list[Message]]:
    """Return all that one client may do in a round."""
    there = moved(sent, np.random.default_rng([server_round, 7]).normal(size=4))
    away = {name: values - 1e9 for name, values in sent.items()}
    beyond = {name: np.full(values.shape, -1.7e308) for name, values in sent.items()}
    return {
        "absent": [],
        "present": [answer(node, there)],
        "failed": [reply_of(node.node_id, error="out of memory")],
        "1000 times its rows": [answer(node, there, 1000)],
        "not moved": [answer(node, sent)],
        "far away": [answer(node, away)],
        "beyond float64": [answer(node, beyond)],
    }


@pytest.mark.parametrize("privacy", [FIXED, ADAPTIVE], ids=lambda p: p.name)
@pytest.mark.parametrize("name", ALLOWED)
def test_one_client_moves_what_is_noised_by_at_most_c_over_k(name: str, privacy: Privacy) -> None:
    """Present in any way or absent, given the same history: a distance of at most C/K.

    Here K = 8 of 8 asked, also where 7 replied. The largest distance is reached: by whoever is
    longer than C and replied.
    """
    world, sent = World(privacy, 8, name), START
    for server_round in range(1, 21):
        norm, means, last = world.norm, {}, [*world.roster][-1]
        replies = others(world.roster, sent, server_round)
        for fate, own in fates(last, sent, server_round).items():
            one = world.silent()
            one.round(server_round, sent, [*replies, *own])
            means[fate] = flat(one.heard) - flat(sent)
        moves = {f: float(np.linalg.norm(mean - means["absent"])) for f, mean in means.items()}
        rounding = 1e-15 * (1 + float(np.abs(flat(sent)).max()))
        assert max(moves.values()) == pytest.approx(norm / 8, rel=1e-9, abs=rounding * 8)
        assert moves["failed"] == moves["not moved"] == moves["beyond float64"] == 0
        assert moves["1000 times its rows"] == 0  # dropped: the handshake said less
        sent = world.round(server_round, sent, [*replies, answer(last, moved(sent, np.ones(4)))])


@pytest.mark.parametrize("name", ALLOWED)
def test_an_optimizer_only_post_processes(name: str) -> None:
    """From the noised means alone a fresh strategy makes the same arrays and state, bit for bit."""
    world, sent = World(FIXED, 8, name), START
    replayed = build_strategy(GROUPS["strategy"][name](name), nodes(1))
    for server_round in range(1, 21):
        view = GridView(cast(Any, None), [1])
        list(replayed.configure_train(server_round, hold(sent), ConfigRecord(), view))
        replies = others(world.roster, sent, server_round)
        after = world.round(server_round, sent, replies)
        one = reply_of(1, content_of(world.heard, {"num-examples": 1}))
        arrays, _ = replayed.aggregate_train(server_round, [one])
        assert arrays is not None
        assert _bits(read(arrays)) == _bits(after)
        for state in ("m_t", "v_t", "momentum_vector"):
            own = getattr(world.private.strategy, state, None)
            assert _bits(own) == _bits(getattr(replayed, state, None))
        sent = after


def _bits(arrays: Any) -> Any:
    values = arrays.values() if isinstance(arrays, Mapping) else arrays or ()
    return [a.tobytes() for a in values]


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_an_average_returns_the_noised_mean(name: str) -> None:
    """FedAvg and FedProx return what they are given, to the bit, in the dtype that was sent."""
    sent = {key: values.astype(np.float32) for key, values in START.items()}
    world = World(FIXED, 3, name)
    result = world.round(1, sent, [answer(node, sent) for node in world.roster])
    assert _bits(result) == _bits(world.heard)
    assert {a.dtype for a in result.values()} == {np.dtype(np.float32)}
    assert all((result[key] != sent[key]).all() for key in sent)


def test_the_mean_weighs_all_alike_and_clips() -> None:
    """Without noise: the sum of updates, each at most C long, over the clients that were asked."""
    sent = {"w": np.array([0.5, -1.0, 2.0])}
    privacy = DpFixedConfig("dp_fixed", clipping_norm=1.0)
    world = World(privacy, 3, noise=nothing, rows=[1, 99, 10])
    one, two, _ = world.roster
    replies = [
        answer(one, {"w": sent["w"] + np.array([3.0, 4.0, 0.0])}),  # 5 long, cut to 1
        answer(two, {"w": sent["w"] + np.array([0.0, 0.3, 0.4])}),  # .5 long: it stays
    ]
    expected = sent["w"] + (np.array([0.6, 0.8, 0.0]) + np.array([0.0, 0.3, 0.4])) / 3
    np.testing.assert_allclose(world.round(1, sent, replies)["w"], expected, rtol=1e-12)


def test_noise_has_the_deviation_that_is_accounted() -> None:
    """Z C over the clients that were asked, whoever replied: here 2 * 0.5 / 4 = 0.25."""
    size, privacy = 4000, DpFixedConfig("dp_fixed", noise_multiplier=2.0, clipping_norm=0.5)
    start = {"w": np.zeros(size)}
    for replied in (4, 1):
        world = World(privacy, 4)
        replies = [answer(node, start) for node in [*world.roster][:replied]]
        noise = world.round(1, start, replies)["w"]
        # A sample's deviation has the deviation s / sqrt(2 n): five of them.
        assert abs(noise.std() - 0.25) < 5 * 0.25 / np.sqrt(2 * size)


def test_metrics_are_the_strategys_own_mean_of_the_replies() -> None:
    """As without privacy: by rows and without noise. Nothing of the one reply is in it."""
    world = World(FIXED, 2, rows=[30, 10])
    one, two = world.roster
    contents = [
        content_of(START, {"mse": 1.0, "num-examples": 30}),
        content_of(START, {"mse": 3.0, "num-examples": 10}),
    ]
    replies = [reply_of(one.node_id, contents[0]), reply_of(two.node_id, contents[1])]
    world.round(1, START, replies)
    assert world.metrics == MetricRecord({"mse": 1.0 * 0.75 + 3.0 * 0.25})


def test_other_arrays_than_of_floats_are_refused() -> None:
    """No noise can be added to whole numbers, so nothing is asked."""
    world = World(FIXED, 2)
    with pytest.raises(FederationError, match="array n has dtype int64; noise is for floating"):
        world.round(1, START | {"n": np.array([1])}, [])


# ------------------------------------------------------------------------- what is spent
def test_a_round_that_was_asked_has_been_paid() -> None:
    """Epsilon counts a round whose replies are too few to go on: they may have come one by one."""
    told = []
    for replied in (3, 1):
        world = World(FIXED, 3, min_replies=2)
        replies = [answer(node, START) for node in [*world.roster][:replied]]
        if replied < 2:
            with pytest.raises(FederationError, match="1 usable replies of 3 asked"):
                world.round(1, START, replies)
        else:
            world.round(1, START, replies)
        told.append(world.private.epsilon)
        assert f"epsilon {told[-1]:.4g} at delta 1e-05 after 1 round," in world.private.statement()
    assert told[0] == told[1] > 0


def test_epsilon_grows_with_rounds_and_shrinks_with_noise() -> None:
    """More releases spend more, more noise spends less; delta is what was asked for."""
    spent = {}
    for noise in (1.0, 4.0):
        world = World(DpFixedConfig("dp_fixed", noise_multiplier=noise), 3)
        for server_round in (1, 2):
            world.round(server_round, START, [answer(node, START) for node in world.roster])
            told = world.private.round_metrics(server_round)
            spent[noise, server_round] = told["privacy/epsilon"]
            assert told["privacy/delta"] == 1e-5
    assert spent[1.0, 2] > spent[1.0, 1] > spent[4.0, 1] > 0


def test_epsilon_is_that_of_the_noise() -> None:
    """T rounds of multiplier z cost what one Gaussian release of z / sqrt(T) does.

    And that is, by the exact curve of the Gaussian mechanism (Balle and Wang 2018, theorem 8),
    no more than what is told: a distance of C/K under a noise of z C/K.
    """
    z, rounds = 2.0, 4
    world = World(DpFixedConfig("dp_fixed", noise_multiplier=z), 3)
    for server_round in range(1, rounds + 1):
        world.round(server_round, START, [answer(node, START) for node in world.roster])
    once = World(DpFixedConfig("dp_fixed", noise_multiplier=z / np.sqrt(rounds)), 3)
    once.round(1, START, [answer(node, START) for node in once.roster])
    epsilon = world.private.epsilon
    assert epsilon == pytest.approx(once.private.epsilon, rel=1e-9)

    def delta(eps: float, mu: float) -> float:
        inside = stats.norm.cdf(mu / 2 - eps / mu)
        return float(inside - np.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu))

    mu = np.sqrt(rounds) / z
    assert delta(epsilon, mu) <= 1e-5 < delta(0.8 * epsilon, mu)


def test_the_line_says_what_epsilon_leaves_out() -> None:
    """Whoever reads epsilon reads beside it what was told without noise."""
    said = World(FIXED, 3).private.statement()
    for word in ("one client's reply", "moments", "label counts", "metrics", "replied"):
        assert word in said


# ------------------------------------------------------------------- the norm that adapts
def follow(gamma: float, factor: float, rounds: int) -> tuple[NDArray[np.float64], float]:
    """Return the clipping norm of each round, and the quantile of the updates' norms.

    K = 20 clients, anew in each round: the norms' logarithms are normal with deviation 0.3, so the
    quantile is exp(0.3 z_gamma). Broader ones take longer: from a tenth of the 30 % quantile a
    round raises C by at most exp(0.2 * 0.3), 6 %, and ten times takes 39 rounds of them.
    """
    quantile = float(np.exp(0.3 * stats.norm.ppf(gamma)))
    privacy = DpAdaptiveConfig(
        "dp_adaptive",
        initial_clipping_norm=factor * quantile,
        target_clipped_quantile=gamma,
        clip_norm_lr=0.2,
    )
    world = World(privacy, 20, noise=np.random.default_rng(1).standard_normal)
    norms, rng = [], np.random.default_rng(2)
    for server_round in range(1, rounds + 1):
        norms.append(world.norm)
        replies = [
            answer(node, moved(START, np.array([0, length, 0, 0])))
            for node, length in zip(world.roster, np.exp(0.3 * rng.normal(size=20)), strict=True)
        ]
        world.round(server_round, START, replies)
    return np.array(norms), quantile


@pytest.mark.parametrize("factor", [0.1, 10])
@pytest.mark.parametrize("gamma", [0.3, 0.5, 0.9])
def test_the_norm_finds_its_quantile(gamma: float, factor: float) -> None:
    """From a tenth and from ten times it: within 15 % in rounds 41 to 60.

    From ten times the 90 % quantile all updates are within C, so that a round lowers it by
    exp(-0.2 * (1 - 0.9)), 2 %, and ten times takes 115 rounds: there rounds 201 to 260 count.
    """
    first, last = (201, 260) if (gamma, factor) == (0.9, 10) else (41, 60)
    norms, quantile = follow(gamma, factor, last)
    assert norms[first - 1 :].mean() == pytest.approx(quantile, rel=0.15)


def test_one_client_moves_the_count_by_a_half() -> None:
    """A reply within C adds 1/2 to the sum of b - 1/2, a longer one -1/2, an absent one nothing.

    The sum is read off the next norm: C' = C exp(-eta (1/2 + sum/K - gamma)).
    """
    privacy = DpAdaptiveConfig("dp_adaptive", initial_clipping_norm=1.0, clip_norm_lr=0.2)
    sums = {}
    for fate, length in {"absent": None, "within": 0.5, "at": 1.0, "longer": 1.5}.items():
        world = World(privacy, 4, noise=nothing)
        *some, last = world.roster
        replies = [answer(node, {"w": np.array([0.5])}) for node in some]
        if length is not None:
            replies.append(answer(last, {"w": np.array([length])}))
        world.round(1, {"w": np.zeros(1)}, replies)
        sums[fate] = 4 * (privacy.target_clipped_quantile - np.log(world.norm) / 0.2 - 0.5)
    expected = {"absent": 1.5, "within": 2.0, "at": 2.0, "longer": 1.0}  # three others: 3/2
    assert sums == pytest.approx(expected, abs=1e-12)


def test_updates_are_noised_with_the_norm_that_clipped_them() -> None:
    """z_delta C / K with the C of this round, though the next one is e^10 times as large.

    z = 1 and K = 20: sigma_b = 1, z_delta = (1 - 1/4)^-1/2. The updates are 1000 C long, so
    b = 0 for each, and the next norm is C exp(-20 (0 - 0.5)).
    """
    size = 4000
    privacy = DpAdaptiveConfig("dp_adaptive", initial_clipping_norm=0.1, clip_norm_lr=20.0)
    draw = np.random.default_rng(0).standard_normal
    world = World(privacy, 20, noise=lambda shape: draw(shape) if shape else np.zeros(()))
    start, far = {"w": np.zeros(size)}, np.zeros(size)
    far[0] = 100.0
    result = world.round(1, start, [answer(node, {"w": far}) for node in world.roster])["w"]
    deviation = (1 - 1 / 4) ** -0.5 * 0.1 / 20
    assert abs(result[1:].std() - deviation) < 5 * deviation / np.sqrt(2 * size)
    assert world.norm == pytest.approx(0.1 * np.exp(10))
    assert world.private.round_metrics(1)["privacy/clipping_norm"] == 0.1


@pytest.mark.parametrize("asked", [1, 8, 20, 500])
@pytest.mark.parametrize("z", [0.1, 1.0, 3.0, 30.0])
def test_count_and_updates_together_cost_one_release(z: float, asked: int) -> None:
    """z^-2 = z_delta^-2 + (2 sigma_b)^-2, and z_delta stays below 2/sqrt(3) z for few clients."""
    deviation = count_deviation(z, asked)
    updates = update_multiplier(z, deviation)
    assert updates**-2 + (2 * deviation) ** -2 == pytest.approx(z**-2)
    assert z < updates <= 2 / np.sqrt(3) * z * (1 + 1e-12)


def test_a_count_that_costs_all_is_refused() -> None:
    """Z = 2 sigma_b leaves nothing for the updates."""
    with pytest.raises(ValueError, match="0 < noise_multiplier < 2"):
        update_multiplier(1.0, 0.5)


def test_a_norm_that_runs_away_is_an_error() -> None:
    """A step that no number holds ends the run with what to change."""
    privacy = DpAdaptiveConfig("dp_adaptive", clip_norm_lr=1e9)
    world = World(privacy, 2, noise=nothing)
    with pytest.raises(FederationError, match="clip_norm_lr, or more clients"):
        world.round(1, START, [answer(node, START) for node in world.roster])


# ------------------------------------------------------------------------------ arithmetic
def test_clipping_is_over_all_arrays_and_leaves_short_updates_alone() -> None:
    """One norm for the whole update; what is within it keeps its bits, in float64."""
    sent = {"a": np.float32([1.0, 2.0]), "b": np.float64([[3.0]])}
    reply = {"a": np.float32([3.0, 2.0]), "b": np.float64([[4.5]])}  # by (2, 0, 1.5): 2.5 long
    update, length = clipped(sent, reply, 0.5)
    assert length == 2.5
    assert update["a"].tolist() == [0.4, 0.0]
    assert update["b"].tolist() == [[pytest.approx(0.3)]]
    whole, _ = clipped(sent, reply, 2.5)
    assert whole["a"].tolist() == [2.0, 0.0]
    assert whole["a"].dtype == np.float64


def test_the_systems_noise_is_standard_normal() -> None:
    """By Kolmogorov and Smirnov, and no draw like another; the bound is of one in a million."""
    values = system_normal((50_001,))
    assert stats.kstest(values, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(values[:25_000], values[25_001:])[0, 1]) < 5 / np.sqrt(25_000)
    assert system_normal((2, 3)).shape == (2, 3)
    assert system_normal(()).shape == ()
    assert np.isfinite(values).all()
    assert len(np.unique(values)) == values.size
