"""The step that the server decides on: when it grows, when a round is thrown away, and when not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdagrad, FedAvg, FedAvgM, QFedAvg, Strategy
from hypothesis import given
from hypothesis import strategies as st

from fl_app.config.options import ModelConfig
from fl_app.config.serialization import from_dict
from fl_app.data.encoding import Encoding
from fl_app.errors import FederationError
from fl_app.federation import protocol
from fl_app.federation.ending import Ending
from fl_app.federation.federated import Federated, Participation
from fl_app.federation.roster import Node, Roster
from fl_app.federation.stepping import MAX_HALVINGS, Losses, Stepping, first_step, merged
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.models.linear import Linear
from fl_app.models.softmax import Softmax
from tests.stacks import Clients, calm, config_of, run

INF = math.inf
ALL: dict[str, Any] = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def _bits(arrays: Any) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def _everybody(loss: float, clients: int = 3) -> Losses:
    return dict.fromkeys(range(clients), (10.0, loss))


def _after(*rounds: float | Losses, **options: Any) -> tuple[Stepping, list[bool]]:
    stepping = Stepping(1.0, **options)
    losses = (r if isinstance(r, dict) else _everybody(r) for r in rounds)  # type: ignore[arg-type]
    return stepping, [stepping.counts(one) for one in losses]


# ---------------------------------------------------------------------------- the first step
@given(
    st.integers(2, 40),
    st.integers(1, 60),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_the_first_step_never_raises_the_loss(
    n: int, d: int, directions: int, seed: int, classes: bool
) -> None:
    """On standardized columns, however alike, a full-batch step from 0 does not raise the loss.

    Squared loss: the curvature is at most 2 (1 + D) as mean |(1, x)|^2 = 1 + D, and a step below 2
    over it descends. Log loss: at most (1 + D) / 2, which allows 4 / (1 + D); from 0, where
    probabilities are far from 0 and 1, more.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, directions)) @ rng.normal(size=(directions, d))
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    task = "classification" if classes else "regression"
    config = ModelConfig("x", batch_size=0, learning_rate="auto")
    step = first_step("regression", d) * (4 if classes else 1)
    assert step <= first_step(task, d)
    if classes:
        model: Softmax | Linear = Softmax(config, d, 3)
        y = rng.integers(0, 3, n)

        def loss(arrays: Any) -> float:
            return float(-np.log(model.predict(arrays, x)[np.arange(n), y]).mean())
    else:
        model, y = Linear(config, d, 1), rng.normal(size=(n, 1))

        def loss(arrays: Any) -> float:
            return float(np.square(model.predict(arrays, x) - y).mean())

    start = model.start(rng)
    after = model.fit(start, x, y, rng, learning_rate=step)
    assert loss(after) <= loss(start) * (1 + 1e-12)


# ---------------------------------------------------------------------------- the rule
def test_the_step_doubles_while_the_loss_falls() -> None:
    """By more than 3 %: one doubling a round from the second on; less changes nothing."""
    assert _after(8.0, 4.0, 2.0)[0].step == 2.0**2
    assert _after(8.0, 4.0, 3.87)[0].step == 2.0**2
    assert _after(8.0, 4.0, 3.89)[0].step == 2.0
    assert _after(8.0, 4.0, 4.39)[0].step == 2.0


def test_a_rise_throws_the_round_away_and_ends_the_growth() -> None:
    """More than a tenth: half the step, from the same arrays; then the step stays."""
    stepping, counted = _after(8.0, 4.0, 4.5, 3.0, 2.0)
    assert counted == [True, True, False, True, True]
    assert stepping.step == 2.0 / 2
    assert _after(8.0, 4.0, 4.39)[1][-1]


def test_a_rise_is_measured_from_the_last_round_that_counted() -> None:
    """Half the step is thrown away too if the loss is still above what it was."""
    stepping, counted = _after(8.0, 4.0, 400.0, 40.0, 4.5, 4.2)
    assert counted == [True, True, False, False, False, True]
    assert stepping.step == 2.0 / 2**3
    assert stepping.last_loss == pytest.approx(4.2, rel=1e-15)


def test_a_rise_that_half_the_step_does_not_mend_is_none_of_its_fault() -> None:
    """A server optimizer, or skew, raises the loss: the round counts, and the step is as before."""
    stepping, counted = _after(8.0, 4.0, 40.0, 39.0, 45.0)
    assert counted == [True, True, False, True, False]
    assert stepping.step == 2.0 / 2  # of the next rise; in between it was 2
    assert _after(8.0, 4.0, 40.0, 39.0)[0].step == 2.0


def test_losses_near_0_are_noise() -> None:
    """A rise must also be a hundredth of the constant model's loss: .001 to .01 is none of 1."""
    assert _after(0.5, 0.001, 0.01, constant=1.0)[1] == [True, True, True]
    assert _after(0.5, 0.001, 0.012, constant=1.0)[1] == [True, True, False]


def test_each_client_is_held_against_its_own_last_loss() -> None:
    """With one client a round nobody replied in the round before: a rise is seen all the same."""
    first, second = {0: (10.0, 8.0)}, {1: (10.0, 7.0)}
    stepping, counted = _after(first, second, {0: (10.0, 8.9)}, {1: (10.0, 7.0)})
    assert counted == [True, True, False, True]
    # Client 1's 7.0 was no rise: half the step stays.
    assert stepping.step == 1.0 / 2


def test_new_clients_are_held_against_the_limit() -> None:
    """As in the first round: another client's loss says nothing of theirs, the limit does."""
    assert _after({0: (10.0, 1.0)}, {1: (10.0, 9.0)}, limit=10.0)[1] == [True, True]
    assert _after({0: (10.0, 1.0)}, {1: (10.0, 12.0)}, limit=10.0)[1] == [True, False]


def test_new_clients_do_not_throw_rounds_away_for_ever() -> None:
    """Where each has other clients nobody can say whether half the step helped: three at most."""
    rounds = [{k: (10.0, 12.0)} for k in range(1, 6)]
    assert _after({0: (10.0, 1.0)}, *rounds, limit=10.0)[1][:5] == [True, False, False, False, True]


def test_the_step_does_not_grow_into_the_last_round() -> None:
    """What it would spoil nothing could repair: of three rounds the second is followed by none."""
    assert _after(8.0, 4.0, num_rounds=3)[0].step == 1.0
    assert _after(8.0, 4.0, num_rounds=4)[0].step == 2.0


def test_the_first_round_is_beside_the_limit() -> None:
    """Before anything counted, the loss that fails a run at its end throws a round away."""
    assert _after(12.0, limit=10.0)[1] == [False]
    assert _after(9.0, limit=10.0)[1] == [True]


def test_only_clients_of_both_rounds_are_compared() -> None:
    """Another cohort's loss says nothing; where no client is in both, nothing is judged."""
    first = {0: (10.0, 1.0), 1: (30.0, 2.0)}
    assert merged(first, {1: (5.0, 7.0), 2: (5.0, 9.0)}) == (2.0, 7.0)
    stepping, counted = _after(first, {1: (30.0, 1.7), 2: (90.0, 50.0)})
    assert counted == [True, True]
    assert stepping.step == 2.0
    stepping, counted = _after(first, {2: (10.0, 50.0)})
    assert counted == [True, True]
    assert stepping.step == 1.0
    assert _after(first, {0: (10.0, 0.1), 1: (30.0, 3.0)})[1][-1] is False  # (1 + 90)/40 > 1.1 7/4


def test_rows_weigh_and_order_does_not() -> None:
    """The merged loss is that of all rows together, the same bits for shuffled replies."""
    rng = np.random.default_rng(0)
    rounds = [
        {k: (float(rng.integers(1, 99)), float(rng.random())) for k in range(9)} for _ in "ab"
    ]
    total = sum(n for n, _ in rounds[0].values())
    expected = sum(n * loss for n, loss in rounds[0].values()) / total
    assert merged(rounds[0], rounds[0])[0] == pytest.approx(expected, rel=1e-15)
    shuffled = [dict(sorted(r.items(), key=lambda item: -item[0])) for r in rounds]
    one, other = _after(*rounds)[0], _after(*shuffled)[0]
    assert (one.step, one.last_loss) == (other.step, other.last_loss)


def test_numbers_that_are_not_finite_halve_the_step_at_most_thirty_times() -> None:
    """Then the step is not what is wrong, and the run ends."""
    stepping, counted = _after(*[INF] * MAX_HALVINGS)
    assert counted == [False] * MAX_HALVINGS
    assert stepping.step == 0.5**MAX_HALVINGS
    with pytest.raises(OverflowError, match=r"30 times half the step, now 9\.31e-10"):
        stepping.counts(_everybody(math.nan))
    stepping, counted = _after(INF, INF, 4.0, 2.0)
    assert counted == [False, False, True, True]
    assert stepping.step == 0.25  # once halved it does not grow


def test_a_few_clients_that_never_give_finite_numbers_cost_three_rounds() -> None:
    """A broken or hostile client among three does not stop the others; it is known from then on."""
    broken = {0: (10.0, 2.0), 1: (10.0, 2.0), 2: (10.0, INF)}
    stepping, counted = _after(*[broken] * 6)
    assert counted == [False] * 3 + [True] * 3
    assert stepping.step == 1.0


def test_the_same_rounds_lead_to_the_same_state() -> None:
    """Losses alone decide, so that a record's rounds give the state back."""
    rounds = [8.0, 4.0, 40.0, 5.0, 3.0, INF, 2.9]
    one, other = _after(*rounds)[0], _after(*rounds)[0]
    assert vars(one) == vars(other)


def test_nothing_adapts_where_it_may_not() -> None:
    """Under ``local`` and under privacy the first step is the step."""
    assert _after(8.0, INF, 4.0, adapts=False)[1] == [True] * 3
    fixed = ({"strategy": {"name": "local"}}, {"privacy": {"name": "dp_fixed"}})
    for options in fixed:
        stepping = Stepping.of(from_dict(options), 64)
        assert stepping is not None
        assert not stepping.adapts
        assert stepping.step == 16 / 65
    assert Stepping.of(from_dict({"model": {"name": "auto", "learning_rate": 0.3}}), 64) is None


# ---------------------------------------------------------------------------- in a federation
def _app(losses: list[list[float]], told: list[Any] | None = None, nan: float = 0.0) -> ClientApp:
    """Make clients that move by 1 and tell the losses given for each round, in order."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        k, t = int(context.node_config["partition-id"]), protocol.server_round(message)
        start = protocol.read_arrays(message)
        if told is not None:
            told.append((t, k, protocol.learning_rate(message), float(start["w"][0])))
        loss = losses[t - 1][k]
        arrays = {"w": start["w"] + (1.0 if math.isfinite(loss) else math.nan)}
        return protocol.reply(message, {"mse": loss, "train_loss": 1.0}, 10, arrays)

    return app


def _run(
    strategy: Strategy, losses: list[list[float]], told: list[Any] | None = None, **options: Any
) -> tuple[Federated, Any]:
    with InProcessGrid(_app(losses, told), len(losses[0])) as grid:
        nodes = [Node(n, k, 10, 0) for k, n in enumerate(grid.get_node_ids())]
        federated = Federated(
            strategy,
            Roster(tuple(nodes)),
            Participation(0, **options),
            ending=Ending("mse"),
            stepping=Stepping(0.5),
        )
        result = federated.start(grid, hold({"w": np.zeros(1)}), num_rounds=len(losses))
        return federated, result


def test_a_round_that_is_thrown_away_leaves_the_arrays() -> None:
    """Clients start again from what they got, at half the step, and the record says so."""
    told: list[Any] = []
    federated, result = _run(FedAvg(**ALL), [[4, 4], [2, 2], [9, 9], [1, 1]], told)
    by_round = {t: (step, w) for t, _, step, w in told}
    assert by_round == {1: (0.5, 0.0), 2: (0.5, 1.0), 3: (1.0, 2.0), 4: (0.5, 2.0)}
    assert read(result.arrays)["w"].tolist() == [3.0]
    assert result.train_metrics_clientapp[3]["mse"] == 9.0
    expected = {"model/learning_rate": 0.5, "model/last_loss": 1.0, "model/went_back": 0.0}
    assert federated.round_metrics(4) == expected


@pytest.mark.parametrize("kind", [FedAvgM, FedAdagrad])  # FedAdam counts rounds
def test_a_server_optimizer_does_not_see_a_round_that_is_thrown_away(kind: Any) -> None:
    """Its state and its next output are those of a run in which the round never was."""
    losses = [[4.0, 4.0], [2.0, 2.0], [9.0, 9.0], [1.0, 1.0]]
    _, result = _run(kind(**ALL), losses)
    _, without = _run(kind(**ALL), [losses[0], losses[1], losses[3]])
    assert read(result.arrays)["w"].tobytes() == read(without.arrays)["w"].tobytes()


def test_replies_that_are_not_finite_halve_the_step_and_lose_nobody() -> None:
    """A client whose training overflowed is there again at a smaller step."""
    told: list[Any] = []
    _, result = _run(FedAvg(**ALL), [[4, 4], [math.nan, 2], [math.nan] * 2, [1, 1]], told)
    assert {t: step for t, _, step, _ in told} == {1: 0.5, 2: 0.5, 3: 0.25, 4: 0.125}
    assert read(result.arrays)["w"].tolist() == [2.0]
    assert result.train_metrics_clientapp[4]["mse"] == 1.0
    assert 3 not in result.train_metrics_clientapp


def test_training_that_no_step_mends_ends_the_run() -> None:
    """After thirty halvings the error names the round and what to do."""
    with pytest.raises(FederationError) as caught:
        _run(FedAvg(**ALL), [[math.nan, math.nan]] * 40)
    assert str(caught.value) == (
        "round 31: 30 times half the step, now 4.66e-10: training diverged; lower "
        "model.learning_rate"
    )


def test_q_fedavg_estimates_by_the_step_of_the_round() -> None:
    """Its Lipschitz constant is 1 / step, of the step that the clients took."""
    strategy = QFedAvg(client_learning_rate=9.0, train_loss_key="train_loss", **ALL)
    _run(strategy, [[4, 4], [2, 2], [1, 1]])
    assert strategy.client_learning_rate == 1.0


# ---------------------------------------------------------------------------- stacking
def test_fedstacking_gives_the_global_member_the_rounds_step() -> None:
    """A round that is thrown away is asked again as it was."""
    model = {"name": "linear"}
    rows = {"name": "synthetic_regression", "num_features": 30, "num_examples": 600}
    ran = calm(config_of(rows, model=model, num_server_rounds=12))
    steps = [0.0, *(r.extra["model/learning_rate"] for r in ran.rounds[1:11])]
    assert steps[1] == 1 / 31
    first = next(r.server_round for r in ran.rounds[1:] if r.extra["model/went_back"])
    kept = [ran.rounds[t].arrays for t in (first - 1, first)]
    assert _bits(kept[0]) == _bits(kept[1])
    assert steps[first + 1] == steps[first] / 2
    asked = {r.server_round: r for r in ran.clients.diary}
    assert _bits(asked[first].sent) == _bits(asked[first + 1].sent)
    assert asked[first].settings["learning-rate"] == steps[first]


def test_base_models_of_a_round_that_is_thrown_away_are_kept() -> None:
    """What a client sends once is not asked for again because the global member overflowed."""

    def tamper(phase: str, partition: int, arrays: Any, metrics: Any) -> None:
        first = phase == "collect" and "base/logistic/coef" in arrays
        if first and partition:
            arrays["global/coef"] = np.full_like(arrays["global/coef"], np.nan)

    model = {"name": "softmax"}
    ran = run(config_of("wine", model=model, num_server_rounds=6), Clients(tamper=tamper))
    assert ran.rounds[1].extra["model/went_back"] == 1
    assert ran.rounds[1].extra["stack/base_models"] == 1


def test_features_of_the_encoding_are_those_of_the_first_step() -> None:
    """Levels of a category and its OTHER count as features: D is the encoded width, here 4."""
    encoding = Encoding("regression", ("a", "b"), ("a",), (0.0,), (1.0,), (("b", ("x", "y")),))
    assert first_step("regression", len(encoding.feature_names)) == 1 / 5
