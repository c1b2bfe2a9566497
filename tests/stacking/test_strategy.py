"""FedStacking over whole runs in this process: rounds, choices, faults, and somebody else's app."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_app import client_app as client_module
from fl_app import stacking
from fl_app.config.compose import compose_config
from fl_app.config.schema import METRICS, RATIOS, Config
from fl_app.config.strategy_options import BASE_MODELS
from fl_app.data.client_data import encode, partition_of
from fl_app.data.client_data import test_table as held_out
from fl_app.errors import ConfigError, FederationError, InputError
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read
from fl_app.models import estimators
from fl_app.stacking.client import StackClient
from fl_app.stacking.members import Stack
from fl_app.stacking.strategy import FAMILY_NUMBERS, PHASES, FedStacking, NAverage
from fl_app.strategies import start_arrays
from tests.stacks import OPEN_SUMS, Arrays, Clients, Ran, bits, calm, config_of, run

T = 4
"""Rounds of most runs here: two collect, one stacks, one selects."""
GLOBAL = ("fedavg", "ls", "none")
LINES: dict[str, Any] = {
    "dataset": {"name": "two_lines", "rows": [100, 100], "val_fraction": 0.2},
    "partitioner": {"name": "natural"},
    "model": {"name": "auto", "local_epochs": 5, "batch_size": 0},
    "num_clients": 2,
    "num_server_rounds": 8,
}


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said of replies: sums that give rows away and small clients are left out."""
    said = [r.getMessage() for r in caplog.records if r.name == "fl_app"]
    other = OPEN_SUMS, "which have fewer than"
    return [text for text in said if not any(words in text for words in other)]


def table(ran: Ran, name: str, server_round: int = -1) -> list[dict[str, Any]]:
    """Read one of the tables of a round."""
    found = json.loads(ran.rounds[server_round].texts[f"stack/{name}.json"])
    return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


# ---------------------------------------------------------------------------- the global member
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dataset": "diabetes", "num_clients": 5, "fraction_train": 0.5, "num_server_rounds": 6},
        {"dataset": "iris", "model": {"name": "mlp", "hidden_units": 4, "dtype": "float32"}},
    ],
    ids=["wine", "diabetes, half of the clients", "iris, a perceptron"],
)
def test_until_the_stack_a_run_is_fedavg(options: dict[str, Any]) -> None:
    """Arrays and metrics of rounds 0 to T-2 are those of ``strategy=fedavg``, bit for bit."""
    stacked = calm(config_of(**options))
    averaged = calm(config_of(strategy={"name": "fedavg"}, **options))
    for own, other in zip(stacked.rounds[:-2], averaged.rounds[:-2], strict=True):
        assert bits(own.arrays) == bits(other.arrays)
        assert own.train == other.train
        assert own.evaluate == other.evaluate
        assert own.server == other.server
    assert bits(stacked.final) != bits(averaged.final)


# ---------------------------------------------------------------------------- rounds
def names_of(ran: Ran) -> list[set[str]]:
    """Return the arrays' names of each round, without partitions and arrays of members."""
    return [{"/".join(name.split("/")[:1]) for name in r.arrays} for r in ran.rounds]


@pytest.mark.parametrize("global_member", GLOBAL)
@pytest.mark.parametrize("dataset", ["wine", "diabetes"])
def test_each_phase_leaves_its_arrays(dataset: str, global_member: str) -> None:
    """Names say what each round's arrays are; targets come with their range."""
    ran = calm(config_of(dataset, {"global_member": global_member}))
    assert [r.extra.get("stack/phase") for r in ran.rounds] == [None, 0, 0, 1, 2]
    limits = {"low", "high"} if dataset == "diabetes" else set()
    alone = {"fedavg": {"coef", "intercept"}, "ls": {"global"} | limits, "none": {"prior"}}
    collected = alone | {"none": {"member", "weights"} | limits}
    stack = {"member", "weights"} | limits | (set() if global_member == "none" else {"global"})
    expected = [alone[global_member], *[collected[global_member]] * (T - 2), stack, stack]
    assert names_of(ran) == expected
    kinds = {name.split("/")[1] for name in ran.final if name.startswith("global/")}
    assert kinds == {"fedavg": {"model"}, "ls": {"ls"}, "none": set()}[global_member]


@pytest.mark.parametrize("global_member", GLOBAL)
def test_every_round_is_recorded_in_full(global_member: str) -> None:
    """A round that changes no array has its metrics, its cost and its replies all the same."""
    ran = calm(config_of("wine", {"global_member": global_member}))
    metrics = set(METRICS["classification"])
    assert [r.server_round for r in ran.rounds] == list(range(T + 1))
    assert all(set(r.server) >= metrics | set(RATIOS["classification"]) for r in ran.rounds)
    for r in ran.rounds[1:]:
        assert set(r.train) == set(r.evaluate) == metrics
        assert [c.partition for c in r.train_clients] == [0, 1, 2, 3]
        assert r.cost["clients_replied"] == 4
        assert r.aggregate is not None
    still = [
        after.server_round
        for before, after in zip(ran.rounds, ran.rounds[1:], strict=False)
        if bits(before.arrays) == bits(after.arrays)
    ]
    # Base models and sums come in the first round: nothing is left to collect in the second.
    assert (2 in still) == (global_member != "fedavg")


@pytest.mark.parametrize("global_member", GLOBAL)
def test_the_metrics_of_a_round_are_those_of_its_phase(global_member: str) -> None:
    """Members, rows and losses come with the stack and stay with the choice."""
    ran = calm(config_of("diabetes", {"global_member": global_member}))
    collect, stack, select = ran.rounds[1].extra, ran.rounds[-2].extra, ran.rounds[-1].extra
    assert collect == {"stack/phase": 0, "stack/base_models": 4}
    families = set(FAMILY_NUMBERS) - {"class_average"}  # of targets it would be the n-average
    families -= {"global"} if global_member == "none" else set()
    losses = {f"stack/loss_{family}" for family in families}
    always = {"stack/phase", "stack/rows", "stack/family", "stack/lambda"} | losses
    assert set(stack) == always | {"stack/members", "stack/open_sums"}
    assert set(select) == always
    rows = sum(node.num_examples for node in ran.roster)
    assert stack["stack/rows"] == select["stack/rows"] == rows
    assert {k: stack[k] for k in losses} == {k: select[k] for k in losses}


@pytest.mark.parametrize(
    ("dataset", "strategy"),
    [
        ("wine", {}),
        ("breast_cancer", {"global_member": "none"}),
        ("diabetes", {"global_member": "ls", "max_members": 2}),
    ],
)
def test_the_tables_agree_with_the_metrics_and_the_arrays(
    dataset: str, strategy: dict[str, Any]
) -> None:
    """The candidates' table explains the choice, the members' table the arrays."""
    ran = calm(config_of(dataset, strategy))
    for number in (-2, -1):
        extra = ran.rounds[number].extra
        candidates = table(ran, "candidates", number)
        (chosen,) = [row for row in candidates if row["chosen"]]
        assert extra["stack/family"] == FAMILY_NUMBERS[chosen["family"]]
        assert extra["stack/lambda"] == chosen["lambda"]
        told = {k.removeprefix("stack/loss_") for k in extra if k.startswith("stack/loss_")}
        priced = [row for row in candidates if row["cv_loss"] is not None]
        assert told == {row["family"] for row in priced}
        for family in told:
            least = min(row["cv_loss"] for row in priced if row["family"] == family)
            assert extra[f"stack/loss_{family}"] == least
        stack = Stack.from_arrays(ran.rounds[number].arrays)
        members = table(ran, "members", number)
        local = [row for row in members if row["member"] != "global"]
        assert sorted(row["member"] for row in local) == [f"{p:03d}" for p in stack.members]
        assert (stack.global_member is not None) == (len(members) > len(local))
        assert sum(row["influence"] for row in members) == pytest.approx(1)
        assert {row["member"]: row["kind"] for row in local} == {
            f"{p:03d}": m.kind for p, m in stack.members.items()
        }
        rows = {f"{node.partition:03d}": node.num_examples for node in ran.roster}
        assert all(row["num_examples"] == rows[row["member"]] for row in local)
    first = table(ran, "candidates", -2)
    (provisional,) = [row for row in first if row["chosen"]]
    assert provisional["cv_loss"] == min(r["cv_loss"] for r in first if r["cv_loss"] is not None)


@pytest.mark.parametrize("dataset", ["wine", "breast_cancer", "diabetes"])
def test_the_choice_is_that_of_the_summed_counts(dataset: str) -> None:
    """Rows, rows right and losses of the table are sums over replies, and the best is taken."""
    ran = calm(config_of(dataset))
    replies = ran.clients.replies("select")
    summed = np.sum([reply.arrays["scores"] for reply in replies], axis=0)
    candidates = table(ran, "candidates")
    assert [row["rows"] for row in candidates] == summed[:, 0].tolist()
    assert [row["right"] for row in candidates] == summed[:, 1].tolist()
    loss = summed[:, 2] / summed[:, 0]
    np.testing.assert_allclose([row["loss"] for row in candidates], loss, rtol=1e-12)
    (chosen,) = [k for k, row in enumerate(candidates) if row["chosen"]]
    if dataset == "wine":
        ridges = [k for k, row in enumerate(candidates) if row["family"] == "ridge"]
        assert summed[chosen, 1] >= max(summed[ridges, 1])
    else:
        assert loss[chosen] == loss.min()


def test_client_folds_send_one_sum_a_client() -> None:
    """From 50 clients on, a client's rows are in one fold, and it gets that fold's weights only."""
    ran = calm(config_of("breast_cancer", num_clients=50, num_server_rounds=3))
    folds = [reply.arrays["sums/fold"] for reply in ran.clients.replies("stack")]
    assert {len(fold) for fold in folds} == {1}
    assert {int(fold[0]) for fold in folds} == {0, 1, 2, 3}
    for reply, fold in zip(ran.clients.replies("select"), folds, strict=True):
        sent = {name.split("/")[2] for name in reply.sent if name.startswith("candidate/")}
        assert sent == {str(fold[0])}


# ---------------------------------------------------------------------------- the same bits
@pytest.mark.parametrize("global_member", GLOBAL)
def test_the_order_of_replies_changes_no_bit(global_member: str) -> None:
    """Arrays, metrics and tables of every round are the same in whatever order replies come."""
    options = {"partitioner": {"name": "dirichlet"}, "num_clients": 5, "num_server_rounds": 5}
    strategy = {"global_member": global_member, "personal_gate": True}
    first = calm(config_of("wine", strategy, **options))
    other = run(config_of("wine", strategy, **options), shuffle=1)
    for a, b in zip(first.rounds, other.rounds, strict=True):
        assert bits(a.arrays) == bits(b.arrays)
        assert (a.train, a.evaluate, a.extra, a.texts) == (b.train, b.evaluate, b.extra, b.texts)


@pytest.mark.parametrize("global_member", GLOBAL)
def test_a_node_that_forgets_says_the_same(global_member: str) -> None:
    """Folds and fits are made again, the same, where a node's state is lost."""
    config = config_of("iris", {"global_member": global_member, "personal_gate": True})
    kept, lost = calm(config), run(config, Clients(forget=True))
    for a, b in zip(kept.clients.diary, lost.clients.diary, strict=True):
        assert (a.phase, a.partition, a.metrics) == (b.phase, b.partition, b.metrics)
        assert bits(a.arrays) == bits(b.arrays)
    assert bits(kept.final) == bits(lost.final)


def test_identical_clients_are_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients with the same rows send the same base model, and their average is that model."""
    monkeypatch.setattr(client_module, "partition_of", lambda config, k: partition_of(config, 0))
    ran = run(config_of("iris", {"global_member": "none"}, seed=11))
    first, *others = Stack.from_arrays(ran.rounds[1].arrays).members.values()
    assert all(bits(member.arrays) == bits(first.arrays) for member in others)
    x = ran.rows(1).x
    average = ran.predictor.outputs(ran.rounds[1].arrays, x)
    alone = ran.predictor.kinds().outputs(first, x, ran.stack.layout)
    np.testing.assert_allclose(average, alone, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------- honest choices
@pytest.mark.parametrize("strategy", [{}, {"personal_gate": True}])
def test_validation_rows_change_no_choice(
    strategy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all their labels changed, ``eval/`` and the gate's price change and no array does."""
    config = config_of("iris", strategy)
    honest = calm(config)

    def blind(*args: Any) -> Any:
        rows = encode(*args)
        wrong = (rows.truth_eval + 1) % 3
        return type(rows)(rows.x, rows.y, rows.truth, rows.x_eval, wrong)

    monkeypatch.setattr(client_module, "encode", blind)
    client_module._federation.cache_clear()
    other = run(config)
    client_module._federation.cache_clear()
    for a, b in zip(honest.rounds, other.rounds, strict=True):
        assert bits(a.arrays) == bits(b.arrays)
        assert a.train == b.train
    assert honest.rounds[-1].evaluate["accuracy"] > 0.5 > other.rounds[-1].evaluate["accuracy"]
    if strategy:
        assert other.extra["stack/gated_accuracy"] < honest.extra["stack/gated_accuracy"]


def noisy_forest(**strategy: Any) -> Config:
    """Forests on few rows of classes that overlap: in-sample they are always right."""
    dataset = {"name": "synthetic_classification", "num_examples": 300, "num_features": 3}
    own = {"base_models": ["random_forest"], "global_member": "none"} | strategy
    return config_of(dataset, own, num_clients=3, num_server_rounds=3)


def test_in_sample_features_would_change_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on rows that it has learnt by heart, a forest looks far better than it is."""
    honest = calm(noisy_forest())

    def by_heart(self: StackClient, request: Any, layout: Any) -> NDArray[Any]:
        return self.models.outputs(self._base(request), self.rows.x, layout)

    monkeypatch.setattr(StackClient, "_own_block", by_heart)
    naive = run(noisy_forest())
    assert naive.extra["stack/lambda"] < honest.extra["stack/lambda"]
    assert bits(naive.final) != bits(honest.final)
    # A squared error of one-hot rows is what the Brier score of the server's test is.
    assert abs(honest.extra["stack/loss_ridge"] - honest.score("brier")) < 0.05
    assert naive.extra["stack/loss_ridge"] < naive.score("brier") - 0.05


@pytest.mark.parametrize("max_members", [1, 2, 4])
def test_only_members_fit_fold_models(max_members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """K base models and V more for each member are fitted, and none again in the choice."""
    fitted: list[str] = []
    real = estimators.fit

    def counted(name: str, *args: Any, **kwargs: Any) -> dict[str, NDArray[Any]]:
        fitted.append(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(estimators, "fit", counted)
    ran = run(config_of("wine", {"max_members": max_members}))
    assert ran.rounds[-2].extra["stack/members"] == len(ran.stack.members) == max_members
    assert len(fitted) == 4 + 4 * max_members


def one_bit(phase: str, partition: int, arrays: Arrays, metrics: dict[str, Any]) -> None:
    """Change one bit of partition 1's base model as it leaves."""
    if phase == "collect" and partition == 1 and "base/random_forest/value" in arrays:
        value = arrays["base/random_forest/threshold"]
        value[0] = np.nextafter(value[0], np.float32(np.inf))


def test_a_member_that_is_not_its_own_is_like_any_others() -> None:
    """A client whose upload came back one bit different takes it as it came, and fits no folds."""
    honest = calm(noisy_forest())
    other = run(noisy_forest(), Clients(tamper=one_bit))
    for a, b in zip(honest.clients.replies("stack"), other.clients.replies("stack"), strict=True):
        assert (bits(a.arrays) == bits(b.arrays)) == (a.partition != 1)
    # Its own block is now in-sample: a forest is right about rows that it knows.
    own = slice(3, 6)
    right = [
        {r.partition: np.trace(r.arrays["sums/cross"].sum(axis=0)[own]) for r in replies}[1]
        for replies in (honest.clients.replies("stack"), other.clients.replies("stack"))
    ]
    assert right[1] > 1.1 * right[0]


# ---------------------------------------------------------------------------- clients come and go
def away(*absences: tuple[range | list[int], list[int]]) -> Clients:
    """Make clients of which some do not answer in some rounds."""
    return Clients(away=lambda r, p: any(r in rounds and p in who for rounds, who in absences))


@pytest.mark.parametrize("global_member", GLOBAL)
@pytest.mark.parametrize(
    "rounds", [range(3, 5), [3], [4], [2, 3, 4]], ids=["collect", "stack", "select", "first round"]
)
def test_clients_may_vanish_after_any_round(global_member: str, rounds: Any) -> None:
    """A member that is gone stays a member; its rows are missing from the sums and counts."""
    config = config_of("iris", {"global_member": global_member}, num_clients=5)
    whole, ran = calm(config), run(config, away((rounds, [1, 3])))
    assert set(ran.stack.members) == {0, 1, 2, 3, 4}
    size = {node.partition: node.num_examples for node in ran.roster}
    gone = size[1] + size[3]
    for number, name in ((3, "stack/rows"), (4, "stack/rows")):
        missing = gone if number in rounds else 0
        assert ran.rounds[number].extra[name] == whole.rounds[number].extra[name] - missing
    assert ran.score("accuracy") > whole.score("accuracy") - 0.1


@pytest.mark.parametrize("global_member", GLOBAL)
def test_late_clients_stack_and_select(global_member: str) -> None:
    """Who missed all base rounds is no member, yet its rows help to combine and to choose."""
    config = config_of("iris", {"global_member": global_member}, num_clients=5)
    whole, late = calm(config), run(config, away(([1, 2], [1]), ([1, 2, 3], [2])))
    assert set(late.stack.members) == {0, 3, 4}
    size = {node.partition: node.num_examples for node in late.roster}
    assert late.rounds[3].extra["stack/rows"] == whole.rounds[3].extra["stack/rows"] - size[2]
    assert late.rounds[4].extra["stack/rows"] == whole.rounds[4].extra["stack/rows"]
    news = {r.partition: r.settings["stack-is-new"] for r in late.clients.replies("select")}
    assert news == {0: False, 1: False, 2: True, 3: False, 4: False}
    for reply in late.clients.replies("select"):
        folds = {n.split("/")[2] for n in reply.sent if n.startswith("candidate/")}
        assert folds == ({"0"} if reply.partition == 2 else {"0", "1", "2", "3"})
    assert late.score("accuracy") > whole.score("accuracy") - 0.1


def test_a_base_model_that_comes_late_is_a_member() -> None:
    """Base models are asked for until they are here, and only then."""
    ran = run(config_of("wine", num_server_rounds=5), away(([1, 2], [2])))
    asked = {
        (r.server_round, r.partition): r.settings["stack-send-base"]
        for r in ran.clients.diary
        if r.phase == "collect"
    }
    assert {place for place, wanted in asked.items() if wanted} == {(1, 0), (1, 1), (1, 3), (3, 2)}
    assert set(ran.stack.members) == {0, 1, 2, 3}
    assert [r.extra["stack/base_models"] for r in ran.rounds[1:4]] == [3, 3, 4]


class Fading(InProcessGrid):
    """A grid that loses its first node for good once sums have been asked for."""

    def get_node_ids(self) -> list[int]:
        ids = super().get_node_ids()
        return ids[1:] if getattr(self, "stacked", False) else ids

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        phases = {m.content["config"].get("stack-phase") for m in messages}
        replies = super().send_and_receive(messages, timeout=timeout)
        self.stacked = getattr(self, "stacked", False) or "stack" in phases
        return replies


def test_a_node_that_went_offline_is_not_asked() -> None:
    """The choice is made by the nodes that are there."""
    ran = run(config_of("wine"), grid=Fading)
    assert [r.partition for r in ran.clients.replies("select")] == [1, 2, 3]
    assert ran.rounds[-1].cost["clients_asked"] == 3
    assert 0 in ran.stack.members


class Noting(InProcessGrid):
    """A grid that notes whom each phase asks."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[tuple[Any, int]] = []

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == "train":
                phase = message.content.config_records["config"]["stack-phase"]
                self.asked.append((phase, message.metadata.dst_node_id))
        return super().send_and_receive(messages, timeout=timeout)


def test_the_sums_and_the_choice_are_over_everyone() -> None:
    """A fraction holds for rounds that collect; the strategy by itself asks all in the others."""
    strategy = FedStacking(
        num_rounds=5, num_outputs=3, fraction_train=0.2, min_train_nodes=1, min_available_nodes=1
    )
    with Noting(own_app(PARTS), len(PARTS)) as grid:
        strategy.start(grid, hold({"w": np.zeros((3, 3))}, copy=False), num_rounds=5)
        asked = {phase: [node for p, node in grid.asked if p == phase] for phase in PHASES}
        assert len(asked["collect"]) == 3
        assert sorted(asked["stack"]) == sorted(asked["select"]) == sorted(grid.get_node_ids())


def test_a_small_fraction_does_not_skew_the_sums() -> None:
    """Four of twenty skewed clients a round: the model of the sums is as good as the choice.

    Sums over four of them alone are over few classes: they gave .73 here, and the choice .81.
    """
    deal = {"partitioner": {"name": "dirichlet", "alpha": 0.1}, "num_clients": 20, "seed": 1}
    options = deal | {"fraction_train": 0.2, "num_server_rounds": 5}
    ran = run(config_of("digits", {"global_member": "none"}, **options))
    collected, stacked, chosen = (r.server["accuracy"] for r in ran.rounds[-3:])
    assert ran.rounds[-3].cost["clients_asked"] == 4
    assert ran.rounds[-2].cost["clients_asked"] == ran.rounds[-1].cost["clients_asked"] == 20
    assert abs(stacked - chosen) < 0.03
    assert stacked > collected + 0.1


@pytest.mark.parametrize("server_round", [1, 3, 4])
def test_too_few_replies_fail_the_round(server_round: int) -> None:
    """Below ``min_replies`` the run ends with the round, the counts and a reason."""
    config = config_of("wine", min_replies=3)
    with pytest.raises(FederationError) as caught:
        run(config, away(([server_round], [0, 3])))
    begin = f"round {server_round}: 2 usable replies of 4 asked, min_replies=3. partition 0: the"
    assert str(caught.value).startswith(begin)


@pytest.mark.parametrize("global_member", ["ls", "none"])
def test_a_round_of_small_clients_is_no_failure(global_member: str) -> None:
    """Where the first cohort has too few rows, a later one's may be enough."""
    config = config_of(
        "wine",
        {"global_member": global_member},
        num_clients=8,
        num_server_rounds=6,
        fraction_train=0.25,
        partitioner={"name": "quantity", "alpha": 0.3},
    )
    needed = 2 if global_member == "none" else 2 * (13 + 1)
    ran = calm(config)
    size = {node.partition: node.num_examples for node in ran.roster}
    first = [r.partition for r in ran.clients.diary if r.server_round == 1]
    assert (max(size[p] for p in first) < needed) == (global_member == "ls")
    if global_member == "ls":
        assert bits(ran.rounds[1].arrays) == bits(ran.rounds[0].arrays)
    assert ran.score("accuracy") > 0.8


@pytest.mark.parametrize(
    ("strategy", "options", "text"),
    [
        ({"min_rows_per_sum": 40}, {}, "round 3: no client has sent a base model"),
        (
            {"min_rows_per_sum": 40, "global_member": "none"},
            {},
            "round 3: no client has sent a base model",
        ),
        (
            {"min_rows_per_sum": 25},
            {},
            r"round 3, stack: sums=no rows from 4 clients: at least one row",
        ),
    ],
)
def test_rows_below_every_floor_are_an_error(
    strategy: dict[str, Any], options: dict[str, Any], text: str
) -> None:
    """A federation that has nothing to add up says so, with the round."""
    with pytest.raises(FederationError, match=text):
        calm(config_of("wine", strategy, **options))


# ---------------------------------------------------------------------------- faulty clients
Change = Callable[[Arrays, dict[str, Any]], None]


def put(name: str, value: Any) -> Change:
    def change(arrays: Arrays, metrics: dict[str, Any]) -> None:
        arrays[name] = np.asarray(value)

    return change


def spoil(name: str, value: Any) -> Change:
    """Fill an array that is there, keeping dtype and shape."""

    def change(arrays: Arrays, metrics: dict[str, Any]) -> None:
        arrays[name][...] = value

    return change


def recast(name: str, dtype: str) -> Change:
    def change(arrays: Arrays, metrics: dict[str, Any]) -> None:
        arrays[name] = arrays[name].astype(dtype)

    return change


def drop(name: str) -> Change:
    def change(arrays: Arrays, metrics: dict[str, Any]) -> None:
        del arrays[name]

    return change


def longer(name: str) -> Change:
    def change(arrays: Arrays, metrics: dict[str, Any]) -> None:
        arrays[name] = np.concatenate([arrays[name], arrays[name][:1]])

    return change


def weigh(value: Any) -> Change:
    def change(arrays: Arrays, metrics: dict[str, Any]) -> None:
        metrics["num-examples"] = value

    return change


def rename(start: str, new: str) -> Change:
    def change(arrays: Arrays, metrics: dict[str, Any]) -> None:
        for name in [name for name in arrays if name.startswith(start)]:
            arrays[new + name.removeprefix(start)] = arrays.pop(name)

    return change


def more_rows(arrays: Arrays, metrics: dict[str, Any]) -> None:
    """Claim one row more in the sums than there are."""
    arrays["sums/gram"][0, -1] += metrics["num-examples"]


def more_right(arrays: Arrays, metrics: dict[str, Any]) -> None:
    arrays["scores"][:, 1] = arrays["scores"][:, 0] + 1


FAULTS: Mapping[str, tuple[str, Change, str]] = {
    "global with NaN": ("collect", spoil("global/coef", np.nan), "global.coef="),
    "global beyond all bounds": ("collect", spoil("global/coef", 1.7e308), "at most 1e+30"),
    "global of another dtype": ("collect", recast("global/coef", "f4"), "float64 of shape"),
    "global of another shape": ("collect", longer("global/intercept"), "float64 of shape"),
    "global without an array": ("collect", drop("global/coef"), "global=intercept"),
    "a model too many": ("collect", put("fold_0/coef", np.zeros(2)), "nothing but the collect"),
    "base with NaN": ("collect", spoil("base/logistic/coef", np.nan), "logistic.coef="),
    "base beyond all bounds": ("collect", spoil("base/logistic/coef", 1e31), "at most 1e+30"),
    "base of another dtype": ("collect", recast("base/logistic/coef", "f8"), "float32 of shape"),
    "base of another shape": ("collect", longer("base/logistic/intercept"), "float32 of shape"),
    "base without an array": ("collect", drop("base/logistic/present"), "arrays named"),
    "base of no kind": ("collect", rename("base/logistic", "base/oracle"), "no such base model"),
    "base of the other task": ("collect", rename("base/logistic", "base/ridge"), "does not fit"),
    "base that is least squares": ("collect", rename("base/logistic", "base/ls"), "no such base"),
    "base that carries rows": ("collect", rename("base/logistic", "base/knn"), "carries raw"),
    "bases of two kinds": ("collect", put("base/ridge/coef", np.zeros(2)), "one kind"),
    "counts of more rows": ("collect", spoil("counts", 10**6), "rows over all classes"),
    "counts below zero": ("collect", put("counts", np.array([-9, 9, 22])), "counts="),
    "counts that are missing": ("collect", drop("counts"), "an array counts"),
    "sums nobody asked for": ("collect", put("linear/gram", np.zeros(2)), "sums="),
    "weight of nothing": ("collect", weigh(0), "num-examples=0"),
    "weight that is no number": ("stack", weigh([1.0]), "num-examples="),
    "sums of more rows": ("stack", more_rows, "rows in all folds together"),
    "sums with NaN": ("stack", spoil("sums/cross", np.nan), "sums.cross="),
    "sums beyond all bounds": ("stack", spoil("sums/gram", 1e30), "sums.gram="),
    "truth beyond all bounds": ("stack", spoil("sums/cross", 1e30), "sums.cross="),
    "sums of another dtype": ("stack", recast("sums/gram", "f8"), "float32 of shape"),
    "sums of another shape": ("stack", longer("sums/squares"), "float32 of shape"),
    "sums of no fold": ("stack", spoil("sums/fold", 7), "sums.fold="),
    "sums that are missing": ("stack", drop("sums/cross"), "arrays named"),
    "sums of something else": ("stack", put("sums/x", np.zeros(3)), "arrays named"),
    "more than sums": ("stack", put("rows", np.zeros(3)), "nothing but the stack"),
    "more right than rows": ("select", more_right, "no more rows right"),
    "more rows than there are": ("select", spoil("scores", 10.0**6), "rows, and no more"),
    "counts with NaN": ("select", spoil("scores", np.nan), "scores="),
    "counts of another shape": ("select", longer("scores"), "float64 of shape"),
    "counts of another dtype": ("select", recast("scores", "f4"), "float64 of shape"),
    "no counts": ("select", drop("scores"), "an array scores"),
    "gates nobody asked for": ("select", put("gates", np.zeros((2, 4))), "nothing but the select"),
}
"""What a client may do wrong: in which phase, how, and a part of what is said of it."""


def faulty(fault: str, only: int = 1) -> Clients:
    """Make clients of which one does something wrong in each round of a phase."""
    where, change, _ = FAULTS[fault]

    def tamper(phase: str, partition: int, arrays: Arrays, metrics: dict[str, Any]) -> None:
        if (phase, partition) == (where, only):
            change(arrays, metrics)

    return Clients(tamper=tamper)


@lru_cache
def absent_in(server_round: int) -> Ran:
    """Run without partition 1 in one round."""
    return run(config_of("iris", num_server_rounds=3), away(([server_round], [1])))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_reply_counts_as_no_reply(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """It costs one warning that names the partition; the run is that without it, bit for bit."""
    ran = run(config_of("iris", num_server_rounds=3), faulty(fault))
    phase, _, text = FAULTS[fault]
    server_round = 1 + PHASES.index(phase)
    (said,) = warned(caplog)
    assert said.startswith(f"round {server_round}, train: reply of partition 1 dropped: ")
    assert text in said
    for a, b in zip(ran.rounds, absent_in(server_round).rounds, strict=True):
        assert bits(a.arrays) == bits(b.arrays)
        assert (a.train, a.extra, a.texts) == (b.train, b.extra, b.texts)


def constant(arrays: Arrays) -> None:
    for name in ("coef", "intercept"):
        arrays[f"base/logistic/{name}"][...] = 0


def huge(arrays: Arrays) -> None:
    arrays["base/logistic/coef"][...] = 1e30


def other_kind(arrays: Arrays) -> None:
    """Send a forest of one leaf that always says class 0, though logistic models were wanted."""
    for name in ("coef", "intercept"):
        del arrays[f"base/logistic/{name}"]
    arrays["base/random_forest/present"] = arrays.pop("base/logistic/present")
    forest = {"sizes": [1], "feature": [-1]}
    arrays |= {f"base/random_forest/{k}": np.array(v, np.int32) for k, v in forest.items()}
    arrays["base/random_forest/threshold"] = np.zeros(0, np.float32)
    arrays["base/random_forest/value"] = np.eye(3, dtype=np.float32)[:1]


@pytest.mark.parametrize("spoiled", [constant, huge, other_kind])
@pytest.mark.parametrize("global_member", ["fedavg", "none"])
def test_a_faulty_member_gets_no_say(
    spoiled: Callable[[Arrays], None], global_member: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Base models of two of five clients may be rubbish: the stack is not much worse for it."""

    def tamper(phase: str, partition: int, arrays: Arrays, metrics: dict[str, Any]) -> None:
        if phase == "collect" and partition < 2 and "base/logistic/coef" in arrays:
            spoiled(arrays)

    config = config_of("iris", {"global_member": global_member}, num_clients=5)
    honest, ran = calm(config), run(config, Clients(tamper=tamper))
    assert warned(caplog) == []
    assert ran.rounds[-2].extra["stack/members"] == 5
    assert ran.score("accuracy") > honest.score("accuracy") - 0.1


def test_a_global_member_that_one_client_ruins_is_not_the_model() -> None:
    """One client sends numbers of 1e20 in every base round: FedAvg is lost, the stack is not."""

    def tamper(phase: str, partition: int, arrays: Arrays, metrics: dict[str, Any]) -> None:
        if partition == 0 and phase in ("collect", ""):
            for name in arrays:
                if name.rpartition("/")[2] in ("coef", "intercept") and "base/" not in name:
                    arrays[name] = np.where(np.arange(arrays[name].size) % 2, 1e20, -1e20).reshape(
                        arrays[name].shape
                    )

    averaged = run(config_of("iris", {"name": "fedavg"}), Clients(tamper=tamper))
    ran = run(config_of("iris"), Clients(tamper=tamper))
    honest = calm(config_of("iris"))
    assert averaged.score("accuracy") < 0.7
    assert ran.score("accuracy") > honest.score("accuracy") - 0.1


def test_sums_of_another_width_do_not_stop_least_squares(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client whose X'X has other columns than most is left out of them, with one warning."""

    def tamper(phase: str, partition: int, arrays: Arrays, metrics: dict[str, Any]) -> None:
        if partition == 0 and "linear/gram" in arrays:
            folds = len(arrays["linear/gram"])
            narrow = np.zeros((folds, 3), np.float32)
            narrow[:, -1] = arrays["linear/gram"][:, -1]
            arrays["linear/gram"] = narrow
            arrays["linear/cross"] = np.zeros((folds, 2, 3), np.float32)

    ran = run(config_of("iris", {"global_member": "ls"}), Clients(tamper=tamper))
    assert warned(caplog) == ["sums of 0 for least squares left out: 2 columns, most have 5"]
    assert set(ran.stack.members) == {0, 1, 2, 3}


NUMBERS = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -1.0, 1.0, 2.0, 3e38, -3e38, 1e-38, 1e30, np.nan, np.inf, 1e9]),
    st.integers(-5, 300).map(float),
)
DAMAGE = st.sampled_from(["value", "all", "scale", "shorter", "dtype", "shape", "gone", "renamed"])


def damage(draw: st.DataObject, arrays: Arrays) -> None:
    """Damage one array of a reply."""
    name = draw.draw(st.sampled_from(sorted(arrays)))
    array, kind = arrays[name], draw.draw(DAMAGE)
    with np.errstate(all="ignore"):
        new = np.array(draw.draw(NUMBERS)).astype(array.dtype)
        if kind == "value" and array.size:
            array.reshape(-1)[draw.draw(st.integers(0, array.size - 1))] = new
        elif kind == "all":
            array[...] = new
        elif kind == "scale":
            arrays[name] = (array * new).astype(array.dtype)
        elif kind == "shorter":
            arrays[name] = array[: draw.draw(st.integers(0, len(array)))]
        elif kind == "dtype":
            wanted = draw.draw(st.sampled_from(["f4", "f8", "i8", "u1", "c16", "U3", ">f4"]))
            arrays[name] = array.astype(wanted)
    if kind == "shape":
        arrays[name] = array.reshape(draw.draw(st.sampled_from([(-1,), (1, -1), (-1, 1)])))
    elif kind == "gone":
        del arrays[name]
    elif kind == "renamed":
        words = ("", "base", "base/", "base/ridge/coef", "sums/", "linear/gram", "x/y/z", "fold_9/")
        arrays[draw.draw(st.sampled_from(words))] = arrays.pop(name)


@given(draw=st.data())
@settings(max_examples=25)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero):RuntimeWarning")
def test_damaged_replies_never_stop_a_run(draw: st.DataObject) -> None:
    """Whatever one of three clients sends in any phase, the run ends with finite predictions."""
    where = draw.draw(st.sampled_from(PHASES))
    strategy = {"global_member": draw.draw(st.sampled_from(GLOBAL)), "personal_gate": True}
    dataset = draw.draw(st.sampled_from(["iris", "diabetes"]))

    def tamper(phase: str, partition: int, arrays: Arrays, metrics: dict[str, Any]) -> None:
        if phase == where and partition == 0:
            for _ in range(draw.draw(st.integers(1, 2))):
                if arrays:
                    damage(draw, arrays)

    config = config_of(dataset, strategy, num_clients=3, num_server_rounds=3)
    ran = run(config, Clients(tamper=tamper))
    assert all(np.isfinite(value) for r in ran.rounds for value in r.server.values())
    assert all(np.isfinite(a).all() for a in ran.final.values())


# ---------------------------------------------------------------------------- few and strange rows
@pytest.mark.parametrize("global_member", GLOBAL)
@pytest.mark.parametrize("num_clients", [1, 2])
def test_one_client_or_two_are_a_federation(num_clients: int, global_member: str) -> None:
    """The stack of one client's model, or two, is no worse than that model alone."""
    config = config_of("iris", {"global_member": global_member}, num_clients=num_clients)
    ran = run(config)
    assert len(ran.stack.members) == num_clients
    member, *_ = ran.stack.members.values()
    x, truth = held_back(ran)
    alone = ran.predictor.kinds().outputs(member, x, ran.stack.layout).argmax(axis=1)
    assert ran.score("accuracy") > (alone == truth).mean() - 0.05


def held_back(ran: Ran) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the server's test rows, encoded."""
    test = held_out(ran.config)
    return ran.encoding.features(test), ran.encoding.truth(test)


@pytest.mark.parametrize("global_member", ["fedavg", "none"])
def test_clients_of_one_to_three_rows_take_part(
    global_member: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Below the floors they give no model and no sum, but they train, count and fail nothing."""
    config = config_of(
        "iris",
        {"global_member": global_member},
        num_clients=20,
        partitioner={"name": "quantity", "alpha": 0.15},
    )
    ran = run(config)
    assert warned(caplog) == []
    size = {node.partition: node.num_examples for node in ran.roster}
    assert {1, 2} <= set(size.values())
    assert set(ran.stack.members) == {p for p, n in size.items() if n >= 2}
    summed = {r.partition: r.arrays["sums/gram"][:, -1].sum() for r in ran.clients.replies("stack")}
    assert all(summed[p] == 0 for p, n in size.items() if n == 1)
    counted = {r.partition: r.arrays["scores"][0, 0] for r in ran.clients.replies("select")}
    assert counted == {p: n if n >= 2 else 0 for p, n in size.items()}
    assert all(len(r.train_clients) == 20 for r in ran.rounds[1:])
    assert ran.score("accuracy") > 0.8


def test_fifteen_rows_a_client_are_enough() -> None:
    """Clients too small to learn alone are better together than on average alone."""
    dataset = {"name": "synthetic_classification", "num_examples": 252}
    ran = calm(config_of(dataset, num_clients=12))
    assert max(node.num_examples for node in ran.roster) <= 16
    x, truth = held_back(ran)
    kinds, layout = ran.predictor.kinds(), ran.stack.layout
    alone = [kinds.outputs(m, x, layout).argmax(axis=1) for m in ran.stack.members.values()]
    assert ran.score("accuracy") > np.mean([a == truth for a in alone])


@pytest.mark.parametrize("combine", ["rows", "classes", "votes"])
def test_an_ensemble_weighs_its_models_as_asked(combine: str) -> None:
    """By n_k / N, by the told rows of a class over all told of it, or each model alike.

    Three islands of penguins: Adelie live on all, Chinstrap and Gentoo on one each.
    """
    strategy = {"name": "n_average", "combine": combine}
    deal = {"partitioner": {"name": "natural"}, "num_clients": 3}
    ran = run(config_of("penguins", strategy, **deal))
    counts = np.stack([np.bincount(ran.rows(k).y, minlength=3) for k in range(3)]).astype(float)
    expected = {
        "rows": np.tile(counts.sum(axis=1, keepdims=True) / counts.sum(), 3),
        "classes": counts / counts.sum(axis=0),
        "votes": np.full((3, 3), 1 / 3),
    }[combine]
    np.testing.assert_allclose(ran.final["weights"], expected, rtol=1e-6)
    assert ("votes" in ran.final) == (combine == "votes")
    x, truth = held_back(ran)
    right = ran.predictor.outputs(ran.final, x).argmax(axis=1) == truth
    assert right.mean() == pytest.approx(ran.score("accuracy"), rel=1e-12)
    if combine == "classes":  # who never saw a class has no say in it
        assert right.mean() > 0.95


@pytest.mark.parametrize("combine", ["classes", "votes", "mean"])
def test_targets_have_no_classes_to_weigh_or_vote_for(combine: str) -> None:
    """A library user gets the error that the config gives."""
    with pytest.raises(ConfigError, match=f"strategy.combine={combine}: rows; for classes"):
        NAverage(num_outputs=1, bounds=([0.0], [1.0]), combine=combine)


@pytest.mark.parametrize("shares", [(), (0.0, 0.0, 0.0)])
def test_without_label_shares_the_prior_is_uniform(shares: tuple[float, ...]) -> None:
    """Before the first base model each class is as likely as another where no node told counts."""
    ran = calm(config_of("iris", {"global_member": "none"}))
    roster = replace(ran.roster, label_shares=shares)
    assert start_arrays(ran.config, roster, ran.predictor)["prior"].tolist() == [1 / 3] * 3


@pytest.mark.parametrize("global_member", ["fedavg", "none"])
def test_clients_that_tell_of_no_class_are_stacked_by_rows(global_member: str) -> None:
    """No class has five rows on any client: members and their shares go by all rows, n_k / N."""
    strategy = {"global_member": global_member, "max_members": 5}
    ran = run(config_of("iris", strategy, num_clients=20, min_rows=2))
    told = [r.arrays["counts"] for r in ran.clients.replies("collect") if "counts" in r.arrays]
    assert len(told) == 20
    assert not np.any(told)
    rows = {node.partition: node.num_examples for node in ran.roster}
    largest = sorted(rows, key=lambda k: (-rows[k], k))[:5]
    assert list(ran.stack.members) == sorted(largest)
    shares = np.array([rows[k] for k in sorted(largest)]) / sum(rows[k] for k in largest)
    for candidate in ("n_average", "class_average"):
        number = [row["candidate"] for row in table(ran, "candidates")].index(candidate)
        sent = ran.clients.replies("select")[0].sent
        weights = next(a for n, a in sent.items() if n.startswith(f"candidate/{number:02d}/"))
        np.testing.assert_allclose(weights[:5], np.tile(shares[:, None], 3), rtol=1e-6)
    if global_member == "none":
        np.testing.assert_allclose(ran.rounds[1].arrays["weights"][:, 0], shares, rtol=1e-6)
    members = {row["member"]: row["num_examples"] for row in table(ran, "members")}
    assert all(members[f"{k:03d}"] == rows[k] for k in largest)


@pytest.mark.parametrize("global_member", ["fedavg", "none"])
def test_a_class_that_one_client_has_is_predicted(global_member: str) -> None:
    """Two of three penguin species live on one island each: the stack knows all three."""
    config = config_of(
        "penguins",
        {"global_member": global_member},
        num_clients=3,
        partitioner={"name": "natural"},
    )
    ran = calm(config)
    counts = np.stack([np.bincount(ran.rows(k).y, minlength=3) for k in range(3)])
    assert ((counts > 0).sum(axis=0) == [3, 1, 1]).all()
    x, truth = held_back(ran)
    right = ran.predictor.outputs(ran.final, x).argmax(axis=1) == truth
    assert min(right[truth == c].mean() for c in range(3)) > 0.8


@pytest.fixture
def targets_file(tmp_path: Path) -> dict[str, Any]:
    """Write a table with two targets of very different units and rows of two clients."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(160, 3))
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    frame["metres"] = 1e-3 * (x[:, 0] - np.abs(x[:, 1])) + 1e-4 * draw.normal(size=160)
    frame["pascals"] = 1e6 + 1e5 * (x[:, 2] - x[:, 0]) + 1e4 * draw.normal(size=160)
    path = tmp_path / "targets.csv"
    frame.to_csv(path, index=False)
    return {
        "name": "tabular",
        "path": str(path),
        "target": ["metres", "pascals"],
        "task": "regression",
    }


@pytest.mark.parametrize("global_member", GLOBAL)
@pytest.mark.parametrize("kind", ["ridge", "random_forest"])
def test_several_targets_are_stacked(
    kind: str, global_member: str, targets_file: dict[str, Any]
) -> None:
    """Targets of units a billion times apart are each predicted, far better than by their mean."""
    strategy = {"global_member": global_member, "base_models": [kind]}
    ran = calm(config_of(targets_file, strategy, num_clients=3))
    x, truth = held_back(ran)
    outputs = ran.predictor.outputs(ran.final, x)
    assert outputs.shape == truth.shape == (32, 2)
    error = np.square(outputs - truth).mean(axis=0) / truth.var(axis=0)
    assert (error < 0.75).all()
    assert ran.stack.layout.num_outputs == 2
    assert len(ran.stack.low) == len(ran.stack.high) == 2


# ---------------------------------------------------------------------------- base models
EVERY: list[tuple[str, str]] = [
    (name, dataset)
    for name, tasks in BASE_MODELS.items()
    for dataset, task in (("iris", "classification"), ("diabetes", "regression"))
    if task in tasks
]


@pytest.mark.parametrize(("name", "dataset"), EVERY)
def test_each_base_model_is_stacked(name: str, dataset: str) -> None:
    """Every kind is fitted, sent, checked, stacked and predicts better than a constant."""
    ran = calm(config_of(dataset, {"base_models": [name]}, num_clients=2, num_server_rounds=3))
    assert {member.kind for member in ran.stack.members.values()} == {name}
    if dataset == "iris":
        assert ran.score("accuracy") > 0.8
    else:
        assert ran.score("r2") > 0.2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_runs_own_model_may_be_a_perceptron(dtype: str) -> None:
    """``base_models=[model]`` stacks whatever ``model`` is, in its precision."""
    model = {"name": "mlp", "hidden_units": 8, "dtype": dtype}
    ran = calm(config_of("iris", {"base_models": ["model"]}, model=model, num_clients=2))
    arrays = [m.arrays for m in (*ran.stack.members.values(), ran.stack.global_member) if m]
    assert {str(a.dtype) for own in arrays for a in own.values()} == {dtype}
    assert {len(own) for own in arrays} == {4}
    assert ran.score("accuracy") > 0.8


def test_base_models_are_dealt_over_partitions_in_turn() -> None:
    """Partition p fits the p-th kind, starting over at the end of the list."""
    ran = calm(config_of("wine", {"base_models": ["logistic", "random_forest"]}))
    kinds = {p: member.kind for p, member in ran.stack.members.items()}
    assert kinds == {0: "logistic", 1: "random_forest", 2: "logistic", 3: "random_forest"}
    assert ran.score("accuracy") > 0.8


# ---------------------------------------------------------------------------- the personal gate
@pytest.mark.parametrize("dataset", ["wine", "breast_cancer", "diabetes"])
def test_the_gate_changes_no_global_bit(dataset: str) -> None:
    """It is reported apart: with it, every round's arrays and other metrics are as without it."""
    name = "mse" if dataset == "diabetes" else "accuracy"
    without, gated = calm(config_of(dataset)), calm(config_of(dataset, {"personal_gate": True}))
    for a, b in zip(without.rounds, gated.rounds, strict=True):
        assert bits(a.arrays) == bits(b.arrays)
        assert (a.train, a.evaluate, a.server, a.texts) == (b.train, b.evaluate, b.server, b.texts)
        own = {k: v for k, v in b.extra.items() if "gate" not in k}
        assert own == a.extra
    names = {"stack/gate_open", f"stack/gated_{name}", f"stack/ungated_{name}"}
    assert {k for k in gated.extra if "gate" in k} == names
    # Without the gate the clients' own score of the final model is just eval/.
    told = gated.extra[f"stack/ungated_{name}"]
    assert told == pytest.approx(gated.rounds[-1].evaluate[name], rel=1e-9)


@pytest.mark.parametrize("global_member", GLOBAL)
def test_only_the_gate_serves_two_lines(global_member: str) -> None:
    """Of y = 2x + 1 and y = x + 1 all global models are the mean; each client's own is its line.

    x is -1 or 1, so a ridge on the n = 80 training rows of a client shrinks its slope to about
    80/81, and the mean errs by x/2: a mean squared error of 1/4.
    """
    strategy = {"personal_gate": True, "global_member": global_member}
    ran = calm(config_of(strategy=strategy, **LINES))
    x = np.array([[-0.5], [0.5]])
    low, high = ran.predictor.outputs(ran.final, x)[:, 0]
    assert high - low == pytest.approx(1.5, abs=2 * 1.5 / 81)
    assert ran.extra["stack/gate_open"] == 1
    assert ran.extra["stack/ungated_mse"] == pytest.approx(1 / 4, rel=0.05)
    assert ran.extra["stack/gated_mse"] < (2 / 81) ** 2


# ---------------------------------------------------------------------------- bad input
ALL = "model, logistic, gaussian_nb, random_forest, hist_gradient_boosting"
NUMBERS_ONLY = "model, ridge, random_forest, hist_gradient_boosting"
ROWS = "carries raw training rows in every format, and would be sent to every client"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["num_server_rounds=2"],
            "num_server_rounds=2: strategy=fedstacking needs at least 3: to collect, to stack, to "
            "select",
        ),
        (["strategy.base_models=[]"], f"strategy.base_models=[]: at least one of {ALL}"),
        (["strategy.base_models=[knn]"], f"strategy.base_models=knn: {ROWS}; allowed are {ALL}"),
        (
            ["strategy.base_models=[logistic,svc]"],
            f"strategy.base_models=svc: {ROWS}; allowed are {ALL}",
        ),
        (
            ["strategy.base_models=[forest]"],
            f"strategy.base_models=forest: no such base model; allowed are {ALL}",
        ),
        (
            ["strategy.base_models=[ridge]"],
            "strategy.base_models=ridge: does not fit a classification task; allowed are " + ALL,
        ),
        (
            ["dataset=diabetes", "strategy.base_models=[logistic]"],
            "strategy.base_models=logistic: does not fit a regression task; allowed are "
            + NUMBERS_ONLY,
        ),
        (
            ["strategy.base_models=forest"],
            "strategy.base_models=forest: expected a list of texts, or null",
        ),
        (["strategy.num_folds=1"], "strategy.num_folds=1: expected an integer >= 2"),
        (["strategy.max_members=0"], "strategy.max_members=0: expected an integer >= 1, or null"),
        (["strategy.min_rows_per_sum=0"], "strategy.min_rows_per_sum=0: expected an integer >= 1"),
        (
            ["strategy.ls_rows_per_feature=0.5"],
            "strategy.ls_rows_per_feature=0.5: expected a finite number >= 1",
        ),
        (
            ["strategy.global_member=fedadam"],
            "strategy.global_member=fedadam: expected one of fedavg, ls, none",
        ),
        (
            ["privacy=dp_fixed"],
            "privacy=dp_fixed: none with strategy=fedstacking; noise is for fedavg, fedprox, "
            "fedavgm, fedadam, fedyogi, fedadagrad",
        ),
    ],
)
def test_bad_configs_are_told_in_one_line(overrides: list[str], message: str) -> None:
    """A mistake names the field, the value and what is allowed; its exit status is 2."""
    with pytest.raises(ConfigError) as caught:
        compose_config(["strategy=fedstacking", *overrides])
    assert str(caught.value) == message
    assert caught.value.exit_status == 2


def test_an_estimator_is_no_model() -> None:
    """``model=random_forest`` is refused: base models of a stack are named elsewhere."""
    with pytest.raises(ConfigError, match=r"^model=random_forest: one of auto, linear, mlp"):
        compose_config(["strategy=fedstacking", "model=random_forest"])


@pytest.mark.parametrize(
    ("dataset", "strategy", "options", "message"),
    [
        (
            "iris",
            {"num_folds": 30},
            {},
            "strategy.num_folds=30: at most 27, the training rows of the largest client",
        ),
        (
            "wine",
            {"global_member": "ls"},
            {"num_clients": 10},
            "strategy.global_member=ls: fedavg or none: the largest client has 13 training rows, "
            "and sums over fewer than 28 with 13 features are not made",
        ),
    ],
)
def test_rows_that_do_not_suffice_are_told(
    dataset: str, strategy: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    """What only the clients' rows can tell is refused before the first round."""
    clients = Clients()
    with pytest.raises(ConfigError) as caught:
        run(config_of(dataset, strategy, **options), clients)
    assert str(caught.value) == message
    assert clients.diary == []


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_rounds": 2}, "num_server_rounds=2: strategy=fedstacking needs at least 3 rounds"),
        ({"num_outputs": 1}, "num_outputs=1: expected 2 classes or 1 target"),
        ({"num_folds": 1}, "strategy.num_folds=1: expected an integer >= 2"),
        ({"min_rows_per_sum": 0}, "strategy.min_rows_per_sum=0: expected an integer >= 1"),
        ({"global_member": "x"}, "strategy.global_member=x: expected one of fedavg, ls, none"),
    ],
)
def test_the_class_refuses_what_it_cannot_do(parameters: dict[str, Any], message: str) -> None:
    """In somebody else's app the constructor tells mistakes, as the config does here."""
    with pytest.raises(ConfigError) as caught:
        FedStacking(**({"num_rounds": 3, "num_outputs": 3} | parameters))
    assert str(caught.value) == message


@pytest.mark.parametrize("bounds", [((0.0,), (1.0, 2.0)), ((0.0, 5.0), (1.0, 5.0))])
def test_the_class_refuses_bounds_that_are_none(bounds: Any) -> None:
    """Every target needs a range that is not empty."""
    with pytest.raises((InputError, ValueError)):
        FedStacking(num_rounds=3, num_outputs=2, bounds=bounds)


# ---------------------------------------------------------------------------- somebody else's app
Rows = tuple[NDArray[Any], NDArray[Any]]
CENTRES = np.array([[0.0, 4.0], [4.0, -3.0], [-4.0, -3.0]])


def scattered(n: int, seed: int, classes: list[int]) -> Rows:
    """Draw rows around the centres of some classes."""
    draw = np.random.default_rng(seed)
    y = np.array(classes)[np.arange(n) % len(classes)]
    return CENTRES[y] + draw.normal(size=(n, 2)), y


def fit_centres(x: NDArray[Any], y: NDArray[Any]) -> Arrays:
    """Fit a model that fl_app knows nothing of: the mean row of each class with two or more."""
    seen = [int((y == c).sum() > 1) for c in range(3)]
    means = [x[y == c].mean(axis=0) if seen[c] else np.zeros(2) for c in range(3)]
    return {"means": np.array(means), "seen": np.array(seen)}


def near_centres(model: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> NDArray[Any]:
    far = np.square(x[:, None] - model["means"][None]).sum(axis=2)
    near = np.exp(-far / 2) * model["seen"] + 1e-9
    return np.asarray(near / near.sum(axis=1, keepdims=True))


def step(arrays: Mapping[str, NDArray[Any]], x: NDArray[Any], y: NDArray[Any]) -> Arrays:
    """Take a step of softmax regression, the global member of this app."""
    p = linear(arrays, x)
    return {"w": arrays["w"] - (with_one(x).T @ (p - np.eye(3)[y])) / len(x)}


def linear(arrays: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> NDArray[Any]:
    scores = np.exp(with_one(x) @ arrays["w"])
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def with_one(x: NDArray[Any]) -> NDArray[Any]:
    return np.column_stack([x, np.ones(len(x))])


def own_app(parts: list[Rows]) -> ClientApp:
    """Write a ClientApp from the contract in FedStacking's docstring and nothing else."""
    app = ClientApp()

    def features(
        k: int, got: Arrays, config: Mapping[str, Any], layout: stacking.Layout
    ) -> tuple[NDArray[Any], stacking.SumFolds]:
        (x, y), folds = parts[k], config["stack-num-folds"]
        split = stacking.sum_folds(
            y, folds, config["stack-min-rows"], np.random.default_rng(k), classes=True
        )
        names = sorted({int(n.split("/")[1]) for n in got if n.startswith("member/")})
        blocks = []
        for name in names:
            start = f"member/{name:03d}/centres/"
            model = {n.removeprefix(start): a for n, a in got.items() if n.startswith(start)}
            if all(np.array_equal(a, model[n]) for n, a in fit_centres(x, y).items()):
                mine = stacking.row_folds(y, folds, np.random.default_rng(k), classes=True)
                models = [fit_centres(x[mine != f], y[mine != f]) for f in range(folds)]
                blocks.append(stacking.out_of_fold([near_centres(m, x) for m in models], mine))
            else:
                blocks.append(near_centres(model, x))
        if layout.has_global:
            blocks.append(linear({"w": got["global/model/w"]}, x))
        return stacking.features(layout, blocks), split

    @app.train()
    def train(message: Message, context: Context) -> Message:
        k = int(context.node_config["partition-id"])
        x, y = parts[k]
        config: dict[str, Any] = dict(message.content.config_records["config"])
        got = {name: a.numpy() for name, a in message.content.array_records["arrays"].items()}
        out: Arrays = {}
        members = len({n.split("/")[1] for n in got if n.startswith("member/")})
        has_global = any(n.startswith("global/") for n in got)
        if config["stack-phase"] == "collect":
            if has_global:
                out["global/w"] = step({"w": got["global/w"]}, x, y)["w"]
            if config["stack-send-base"]:
                out |= {f"base/centres/{n}": a for n, a in fit_centres(x, y).items()}
                out["counts"] = np.bincount(y, minlength=3)
        else:
            layout = stacking.Layout(members, 3, has_global)
            meta, split = features(k, got, config, layout)
            truth = stacking.targets(layout, y)
            if config["stack-phase"] == "stack":
                part = stacking.sums(meta, truth, split)
                out = {f"sums/{n}": a for n, a in part.to_arrays().items()}
            else:
                weights: dict[int, dict[int, NDArray[Any]]] = {}
                for name, array in got.items():
                    if name.startswith("candidate/"):
                        _, number, without = name.split("/")
                        weights.setdefault(int(number), {})[int(without)] = array
                if config["stack-is-new"]:
                    split = stacking.SumFolds(np.zeros(len(y), int), np.ones(len(y), bool))
                rule = [weights[number] for number in sorted(weights)]
                least = config["stack-min-rows"]
                out["scores"] = stacking.scores(layout, meta, truth, split, rule, least)
        content = RecordDict({"metrics": MetricRecord({"num-examples": len(y)})})
        content["arrays"] = ArrayRecord({name: Array(a) for name, a in out.items()})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    return app


PARTS = [
    scattered(24, 1, [0, 1]),
    scattered(18, 2, [1, 2]),
    scattered(30, 3, [2, 0]),
    scattered(9, 4, [0, 1, 2]),
]


@pytest.mark.parametrize("global_member", ["fedavg", "none"])
def test_somebody_elses_app_needs_the_contract_only(
    global_member: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Models that fl_app does not know are stacked without its config, handshake or client."""
    strategy = FedStacking(num_rounds=5, num_outputs=3, global_member=global_member)
    with InProcessGrid(own_app(PARTS), len(PARTS)) as grid:
        result = strategy.start(grid, hold({"w": np.zeros((3, 3))}, copy=False), num_rounds=5)
    assert warned(caplog) == []
    stack = Stack.from_arrays(read(result.arrays))
    assert [member.kind for member in stack.members.values()] == ["centres"] * 4
    x, y = scattered(300, 9, [0, 1, 2])
    whole = stack.global_member
    models = [lambda rows, m=m: near_centres(m.arrays, rows) for m in stack.members.values()]
    out = stacking.predict(
        stack.layout,
        models,
        (lambda rows: linear(whole.arrays, rows)) if whole else None,
        stack.weights,
        x,
    )
    best = (near_centres({"means": CENTRES, "seen": np.ones(3)}, x).argmax(axis=1) == y).mean()
    assert (out.argmax(axis=1) == y).mean() > best - 0.05


def test_members_of_a_foreign_app_are_named_by_partition_or_node() -> None:
    """Without ``partitions`` a member's name is its node's id; with them it is the partition."""
    for named in (False, True):
        with InProcessGrid(own_app(PARTS), len(PARTS)) as grid:
            nodes = grid.get_node_ids()
            partitions = {node: k for k, node in enumerate(nodes)}
            strategy = FedStacking(
                num_rounds=3,
                num_outputs=3,
                global_member="none",
                partitions=partitions if named else None,
            )
            result = strategy.start(grid, hold({"w": np.zeros(1)}), num_rounds=3)
        members = set(Stack.from_arrays(read(result.arrays)).members)
        assert members == set(range(4) if named else nodes)


def test_a_strategy_may_run_again() -> None:
    """A second ``start`` knows nothing of the first: the same bits, also with fewer clients."""
    start = {"w": np.zeros((3, 3))}
    used, found = FedStacking(num_rounds=3, num_outputs=3), []
    for parts, strategy in ((PARTS, used), (PARTS[:3], used), (PARTS[:3], None)):
        with InProcessGrid(own_app(parts), len(parts)) as grid:
            own = strategy or FedStacking(num_rounds=3, num_outputs=3)
            found.append(bits(read(own.start(grid, hold(start), num_rounds=3).arrays)))
    assert found[0] != found[1] == found[2]


def test_more_rounds_than_told_are_refused() -> None:
    """After the choice there is nothing left to do, and the error says so."""
    strategy = FedStacking(num_rounds=3, num_outputs=3, global_member="none")
    with (
        InProcessGrid(own_app(PARTS), len(PARTS)) as grid,
        pytest.raises(FederationError, match="round 4: num_rounds=3 are over"),
    ):
        strategy.start(grid, hold({"w": np.zeros(1)}), num_rounds=4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num-examples", 0),
        ("num-examples", -3),
        ("num-examples", float("inf")),
        ("num-examples", float("nan")),
        ("num-examples", [3]),
        ("base/centres/means", np.full((3, 2), np.inf)),
        ("base/centres/means", np.full((3, 2), "x")),
        ("base/centres", np.zeros(2)),
        ("base/other/means", np.zeros(2)),
        ("counts", np.array([0, 0, 19])),
        ("global/w", np.zeros((3, 3), np.float32)),
    ],
)
def test_foreign_faults_cost_one_warning(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With no wrapper before it the strategy itself drops what breaks the contract."""
    inner, app = own_app(PARTS), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = inner(message, context)
        arrays = reply.content.array_records["arrays"]
        if context.node_config["partition-id"] == 1 and "counts" in arrays:
            if name == "num-examples":
                reply.content.metric_records["metrics"][name] = value
            elif name == "base/centres":
                for key in [key for key in arrays if key.startswith("base/")]:
                    del arrays[key]
            if isinstance(value, np.ndarray):
                arrays[name] = Array(value)
        return reply

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return inner(message, context)

    with InProcessGrid(app, len(PARTS)) as grid:
        partitions = {node: k for k, node in enumerate(grid.get_node_ids())}
        strategy = FedStacking(num_rounds=3, num_outputs=3, partitions=partitions)
        result = strategy.start(grid, hold({"w": np.zeros((3, 3))}), num_rounds=3)
    (said,) = warned(caplog)
    assert said.startswith("round 1: reply of 1 dropped: ")
    assert set(Stack.from_arrays(read(result.arrays)).members) == {0, 2, 3}
