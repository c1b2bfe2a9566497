"""What a config says is without effect has none, to the last bit; what has one is not said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fl_app.config.schema import GROUPS, Config, task_of
from fl_app.config.serialization import digest, flatten, from_dict, to_dict, without_effect
from tests.stacks import Ran, bits, calm

MODEL = ("batch_size", "l2", "learning_rate", "local_epochs", "local_steps", "name")
UNTRAINED = tuple(f"model.{key}" for key in MODEL)
STEPS = tuple(f"model.{k}" for k in ("batch_size", "learning_rate", "local_epochs", "local_steps"))
LS_ROWS = "strategy.ls_rows_per_feature"
OTHERS: dict[str, Any] = {
    "batch_size": 3,
    "hidden_units": 5,
    "l2": 0.5,
    "learning_rate": 0.25,
    "local_epochs": 4,
    "local_steps": 3,
    "ls_rows_per_feature": 4.0,
}
"""Another value than the default of each."""


def config_of(
    dataset: str, strategy: dict[str, Any], model: str = "auto", **options: Any
) -> Config:
    """Make a small run."""
    base = {"num_clients": 4, "num_server_rounds": 4, "model": {"name": model}}
    return from_dict(base | {"dataset": {"name": dataset}, "strategy": strategy} | options)


def changed(config: Config, param: str) -> Config:
    """Return the config with another value of one param."""
    group, _, key = param.partition(".")
    data = to_dict(config)
    if key == "name":
        usual = "linear" if task_of(config.dataset) == "regression" else "softmax"
        name = usual if config.model.name == "mlp" else "mlp"
        return from_dict(data | {group: {"name": name}})
    assert data[group][key] != OTHERS[key]
    return from_dict(data | {group: data[group] | {key: OTHERS[key]}})


def told(ran: Ran) -> list[dict[str, Any]]:
    """Return all that a run's rounds say but for times."""
    return [
        {
            "arrays": bits(r.arrays),
            "cost": {name: v for name, v in r.cost.items() if name != "seconds"},
            "train": [r.train, *((c.partition, c.metrics, c.norm) for c in r.train_clients)],
            "evaluate": [r.evaluate, *((c.partition, c.metrics) for c in r.evaluate_clients)],
            "rest": [r.server, r.extra, r.texts],
        }
        for r in ran.rounds
    ]


STACKS = [
    {"name": "n_average"},
    {"name": "n_average", "base_models": ["random_forest", "gaussian_nb"]},
    {"name": "fedstacking"},
    {"name": "fedstacking", "global_member": "none"},
    {"name": "fedstacking", "global_member": "none", "personal_gate": True},
    {"name": "fedstacking", "global_member": "ls", "ls_rows_per_feature": 1.0},
    {"name": "fedstacking", "global_member": "none", "base_models": ["logistic", "model"]},
    {"name": "n_average", "base_models": ["model"]},
]


@pytest.mark.parametrize(
    ("dataset", "strategy", "model"),
    [
        ("wine", {"name": "pooled", "base_models": ["logistic"]}, "auto"),
        *(("wine", strategy, model) for strategy in STACKS for model in ("auto", "mlp")),
        ("diabetes", {"name": "n_average"}, "auto"),
        ("diabetes", {"name": "fedstacking", "global_member": "none"}, "mlp"),
        ("diabetes", {"name": "fedstacking", "global_member": "ls"}, "auto"),
    ],
)
def test_what_is_said_to_have_no_effect_has_none(
    dataset: str, strategy: dict[str, Any], model: str
) -> None:
    """Arrays, metrics, costs and tables of every round are equal bit for bit, and the digest is."""
    config = config_of(dataset, strategy, model)
    for param in without_effect(config):
        other = changed(config, param)
        assert digest(other) == digest(config), param
        assert told(calm(other)) == told(calm(config)), param


@pytest.mark.parametrize("name", sorted(GROUPS["strategy"]))
def test_every_strategy_tells_the_truth(name: str) -> None:
    """Of each strategy's defaults: no number depends on what is said to have no effect."""
    if name == "fedxgbbagging":
        pytest.importorskip("xgboost")
    config = config_of("wine", {"name": name}, num_clients=7)
    for param in without_effect(config):
        other = changed(config, param)
        assert told(calm(other)) == told(calm(config)), param


def test_what_is_said() -> None:
    """By name: nothing of what is averaged; of a stack that trains no model, all but its dtype."""
    none = {"name": "fedstacking", "global_member": "none"}
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"name": "fedavg"}, ()),
        ({"name": "local"}, ()),
        ({"name": "fedstacking"}, (LS_ROWS,)),
        ({"name": "fedstacking", "global_member": "ls"}, UNTRAINED),
        (none, (*UNTRAINED, LS_ROWS)),
        (none | {"base_models": ["ridge", "model"]}, (LS_ROWS,)),
        ({"name": "n_average"}, UNTRAINED),
        ({"name": "n_average", "base_models": ["model"]}, ()),
        ({"name": "pooled"}, STEPS),
        ({"name": "pooled", "base_models": ["ridge"]}, UNTRAINED),
        ({"name": "fedxgbbagging"}, UNTRAINED),
    ]
    for strategy, expected in cases:
        assert without_effect(config_of("diabetes", strategy)) == expected, strategy
    counted = config_of("wine", {"name": "fedavg"})
    counted = replace(counted, model=replace(counted.model, local_steps=3))
    assert without_effect(counted) == ("model.local_epochs",)
    mlp = without_effect(config_of("wine", {"name": "n_average"}, "mlp"))
    assert set(mlp) == {*UNTRAINED, "model.hidden_units"}


@pytest.mark.parametrize(
    ("strategy", "param"),
    [
        ({"name": "fedavg"}, "model.learning_rate"),
        ({"name": "fedstacking"}, "model.learning_rate"),
        ({"name": "n_average", "base_models": ["model"]}, "model.local_epochs"),
        ({"name": "fedstacking", "global_member": "ls"}, LS_ROWS),
    ],
)
def test_what_has_an_effect_is_not_said_to_have_none(strategy: dict[str, Any], param: str) -> None:
    """Another value gives other numbers and another digest."""
    few_rows = {"partitioner": {"name": "quantity"}} if param == LS_ROWS else {}
    config = config_of("diabetes", strategy, **few_rows)
    other = changed(config, param)
    assert param not in without_effect(config)
    assert digest(other) != digest(config)
    assert told(calm(other)) != told(calm(config))


def test_the_type_of_the_rows_counts() -> None:
    """``model.dtype`` is the rows' too, so base models depend on it."""
    config = config_of("wine", {"name": "n_average"})
    other = replace(config, model=replace(config.model, dtype="float32"))
    assert "model.dtype" not in without_effect(config)
    assert told(calm(other)) != told(calm(config))


def test_params_are_those_of_the_record() -> None:
    """Each is a key of the recorded params."""
    for name in GROUPS["strategy"]:
        config = config_of("wine", {"name": name}, num_clients=7)
        assert set(without_effect(config)) <= set(flatten(config))
