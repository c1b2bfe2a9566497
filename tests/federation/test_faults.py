"""Clients that fail on purpose: what a federation makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_app.config.compose import compose_config
from fl_app.config.schema import Config
from fl_app.config.serialization import digest, from_dict
from fl_app.errors import ConfigError, FlAppError
from fl_app.experiment.description import run_name
from fl_app.federation.ending import Ending
from fl_app.federation.faults import CRASH_SHARE, FLIP, fault_of, may_crash, spoiled
from fl_app.federation.roster import Roster
from tests.stacks import bits, calm, run

HOLDS = {
    "fedmedian": {},
    "fedtrimmedavg": {"beta": 0.3},
    "krum": {"num_malicious_nodes": 3},
    "multikrum": {"num_malicious_nodes": 3, "num_nodes_to_select": 4},
}
"""Strategies that withstand three faulty clients of ten, with what they need to be told."""


def config_of(kind: str = "crash", clients: int = 3, **options: Any) -> Config:
    """Ten clients of digits, the last of which fail."""
    faults = {"clients": clients, "kind": kind}
    return from_dict({"num_server_rounds": 6, "faults": faults} | options)


def crashes(config: Config, server_round: int) -> set[int]:
    """Return the partitions that crash in a round."""
    found = set()
    for k in range(config.num_clients):
        if fault_of(config, k) == "crash":
            try:
                may_crash(config.seed, server_round, k)
            except FlAppError:
                found.add(k)
    return found


# ---------------------------------------------------------------------------- who, when, how
def test_the_last_clients_fail() -> None:
    """``faults.clients`` of them, by partition; by default none."""
    for clients in (0, 1, 10):
        config = config_of("nan", clients)
        failing = [k for k in range(10) if fault_of(config, k)]
        assert failing == list(range(10 - clients, 10))
    assert not any(fault_of(from_dict({}), k) for k in range(10))


def test_crashes_are_drawn_by_seed_round_and_partition() -> None:
    """Each of the three changes the draw; of many draws about half are crashes."""

    def crashed(seed: int, server_round: int, partition: int) -> bool:
        try:
            may_crash(seed, server_round, partition)
        except FlAppError:
            return True
        return False

    draws = np.array([[[crashed(s, t, k) for k in range(8)] for t in range(8)] for s in range(8)])
    spread = 4 * np.sqrt(CRASH_SHARE * (1 - CRASH_SHARE) / draws.size)
    assert abs(draws.mean() - CRASH_SHARE) < spread
    for axis in range(3):
        assert (draws.min(axis) < draws.max(axis)).any()
    assert crashed(3, 2, 1) == draws[3, 2, 1]


def test_a_flipping_client_moves_the_other_way() -> None:
    """Start + FLIP (trained - start), in the dtype that came; what it did not receive stays."""
    start = {"w": np.array([1.0, -2.0], np.float32), "n": np.array([3])}
    trained = {"w": np.array([1.5, -2.0], np.float32), "n": np.array([4]), "own": np.ones(2)}
    sent = spoiled("flip", start, trained)
    assert sent["w"].tolist() == [1 + FLIP * 0.5, -2.0]
    assert sent["w"].dtype == np.float32
    assert (sent["n"].tolist(), sent["own"].tolist()) == ([4], [1.0, 1.0])
    assert trained["w"].tolist() == [1.5, -2.0]


def test_nan_is_in_every_float_array() -> None:
    """Shapes and dtypes are those of an honest reply."""
    honest = {"w": np.ones((2, 3), np.float32), "n": np.array([4])}
    sent = spoiled("nan", {}, honest)
    assert {name: (a.shape, a.dtype) for name, a in sent.items()} == {
        name: (a.shape, a.dtype) for name, a in honest.items()
    }
    assert np.isnan(sent["w"]).all()
    assert sent["n"].tolist() == [4]


# ---------------------------------------------------------------------------- runs
def test_a_crash_costs_its_reply_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The round goes on without it; ``cost/clients_failed`` and a warning tell of it."""
    config = config_of("crash")
    ran = run(config)
    expected = {t: crashes(config, t) for t in range(1, 7)}
    failed = {r.server_round: r.cost["clients_failed"] for r in ran.rounds if r.server_round}
    assert failed == {t: len(who) for t, who in expected.items()}
    assert 0 < sum(failed.values()) < 3 * 6
    said = [r.getMessage() for r in caplog.records if r.name == "fl_app"]
    assert said == [
        f"round {t}, train: reply of partition {k} dropped: the client failed: "
        "fl_app.errors.FlAppError: crashed on purpose (faults.kind=crash)"
        for t, who in expected.items()
        for k in sorted(who)
    ]
    assert ran.score("accuracy") > 0.8


def test_nan_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """In each round, by name, and the others' work counts once the step is not to blame."""
    ran = run(config_of("nan"))
    assert [r.cost["clients_failed"] for r in ran.rounds if r.server_round] == [3] * 6
    said = {r.getMessage() for r in caplog.records if r.name == "fl_app"}
    why = "array coef holds NaN or infinity: expected finite numbers"
    for k in (7, 8, 9):
        assert f"round 6, train: reply of partition {k} dropped: {why}" in said
    assert ran.score("accuracy") > 0.8


def test_flipping_clients_spoil_a_mean() -> None:
    """Three of ten that move four times as far: .7 - 3/10 * 4 < 0, so the mean climbs the loss."""
    assert 0.7 + 0.3 * FLIP < 0
    flipped = run(config_of("flip")).score("accuracy")
    assert flipped < 0.2 < 0.8 < calm(config_of(clients=0)).score("accuracy")


@pytest.mark.parametrize("name", HOLDS)
def test_robust_strategies_hold(name: str) -> None:
    """What the same clients do to FedAvg they do not do to these."""
    strategy = {"name": name, **HOLDS[name]}
    ran = run(config_of("flip", strategy=strategy))
    assert ran.score("accuracy") > 0.75


@pytest.mark.parametrize("kind", ["crash", "nan", "flip"])
def test_fedstacking_goes_on(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """In every phase crashes and NaN cost replies; a flip moves the global member.

    The stack is made of the clients' base models too, which no flip is in.
    """
    dataset, strategy = {"name": "wine"}, {"name": "fedstacking"}
    ran = run(config_of(kind, 1, num_clients=4, dataset=dataset, strategy=strategy))
    failed = [r.cost["clients_failed"] for r in ran.rounds if r.server_round]
    last = [crashes(ran.config, t) for t in range(1, 7)]
    assert failed == {"crash": [len(who) for who in last], "nan": [1] * 6, "flip": [0] * 6}[kind]
    assert ran.score("accuracy") > 0.8
    if kind == "flip":
        sent = {r.partition: r for r in ran.clients.replies("collect") if r.server_round == 1}
        own, honest = (
            sent[3],
            calm(config_of(kind, 0, num_clients=4, dataset=dataset, strategy=strategy)),
        )
        true = next(
            r for r in honest.clients.replies("collect") if (r.partition, r.server_round) == (3, 1)
        )
        for array, moved in true.arrays.items():
            start = own.sent.get(array)
            expected = moved if start is None else start + FLIP * (moved - start)
            assert own.arrays[array].tobytes() == expected.tobytes(), array


def test_the_same_seed_fails_alike() -> None:
    """Same bits in another order of arrival; another seed crashes in other rounds."""
    one = run(config_of("crash"))
    assert bits(run(config_of("crash"), shuffle=2).final) == bits(one.final)
    other = config_of("crash", seed=1)
    assert [crashes(one.config, t) for t in range(6)] != [crashes(other, t) for t in range(6)]


def test_without_faults_nothing_changes() -> None:
    """The kind alone decides nothing: same bits, same ``config.sha256`` as ever."""
    plain = from_dict({"num_server_rounds": 6})
    for kind in ("crash", "nan", "flip"):
        config = config_of(kind, 0)
        assert bits(run(config).final) == bits(calm(plain).final)
        assert digest(config) == digest(plain)
        assert digest(config_of(kind)) != digest(plain)


def test_a_run_is_named_by_its_faults() -> None:
    """Beside an honest run of the same config, also in a sweep over them."""
    swept = ["faults.clients=3", "model.l2=1"]
    assert run_name(config_of("flip"), swept) == "fedavg 3 flip l2=1 s0 iid K10 softmax"
    assert run_name(config_of("flip", 0), ["faults.clients=0"]) == "fedavg s0 iid K10 softmax"


def test_an_attacked_run_has_not_diverged() -> None:
    """Lower steps would not help against flipping clients, so a loss that rose is no error."""
    roster = Roster((), label_shares=(0.5, 0.5))
    lenient = {kind: Ending.of(config_of(kind), roster, 2).lenient for kind in ("crash", "flip")}
    assert lenient == {"crash": False, "flip": True}
    assert not Ending.of(config_of("flip", 0), roster, 2).lenient


# ---------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("faults.clients=11", "faults.clients=11: at most num_clients=10"),
        ("faults.clients=-1", "faults.clients=-1: expected an integer >= 0"),
        ("faults.kind=lazy", "faults.kind=lazy: expected one of crash, nan, flip"),
        ("faults=flip", "faults=flip: a mapping: set faults.clients, faults.kind"),
        (
            "faults.client=1",
            "faults.client=1: no such key; did you mean clients? allowed are clients, kind",
        ),
        (
            "faults.clients=2 runtime=deployment",
            "faults.clients=2: 0 with runtime=deployment: faults are for simulated clients",
        ),
        (
            "faults.clients=2 strategy=local",
            "faults.clients=2: 0 with strategy=local: it has no clients that train together",
        ),
        (
            "faults.clients=1 strategy=pooled",
            "faults.clients=1: 0 with strategy=pooled: it has no clients that train together",
        ),
        (
            "faults.clients=1 faults.kind=flip strategy=n_average",
            "faults.kind=flip: crash or nan with strategy=n_average: no client moves a model that "
            "it was sent",
        ),
        (
            "faults.clients=1 faults.kind=flip strategy=fedstacking strategy.global_member=ls",
            "faults.kind=flip: crash or nan with strategy.global_member=ls: no client moves a "
            "model that it was sent",
        ),
    ],
)
def test_a_mistake_is_named(overrides: str, message: str) -> None:
    """Key, value, what is allowed."""
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides.split())
    assert str(caught.value) == message


def test_hydras_number_nan_is_the_word() -> None:
    """``nan`` is a number in Hydra's grammar, typed bare or swept over."""
    assert compose_config(["faults.kind=nan"]).faults.kind == "nan"
