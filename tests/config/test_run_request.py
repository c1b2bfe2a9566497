"""How a run is asked for: our launcher's JSON, or Flower's run-config."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fl_app.config.compose import compose_config
from fl_app.config.options import MlflowConfig
from fl_app.config.rules import check
from fl_app.config.run_request import (
    RunRequest,
    git_commit,
    read_launch,
    read_num_clients,
    read_runtime,
)
from fl_app.config.schema import Config
from fl_app.config.serialization import from_dict
from fl_app.errors import ConfigError

EMPTY = dict.fromkeys(
    (
        "overrides",
        "experiment",
        "dataset",
        "partitioner",
        "model",
        "strategy",
        "num-server-rounds",
        "seed",
        "tracking-uri",
        "output-dir",
        "config-json",
    ),
    "",
)


# ---------------------------------------------------------------------------- run-config
def test_an_empty_run_config_is_the_default_config() -> None:
    """All keys "" say nothing, as does no key at all; the nodes decide the number of clients."""
    for run_config in ({}, EMPTY):
        launch = read_launch(run_config, 7)
        assert launch.config == compose_config(["num_clients=7"])
        assert launch.overrides == ()


@pytest.mark.parametrize(
    ("run_config", "overrides"),
    [
        ({"dataset": "diabetes"}, ["dataset=diabetes"]),
        ({"partitioner": "dirichlet"}, ["partitioner=dirichlet"]),
        ({"model": "softmax"}, ["model=softmax"]),
        ({"strategy": "fedadam"}, ["strategy=fedadam"]),
        ({"num-server-rounds": 3}, ["num_server_rounds=3"]),
        ({"num-server-rounds": "3"}, ["num_server_rounds=3"]),
        ({"seed": 0}, ["seed=0"]),
        ({"seed": 5}, ["seed=5"]),
        ({"overrides": "model=softmax model.l2=0.1"}, ["model=softmax", "model.l2=0.1"]),
        ({"overrides": " 'model.l2=0.1'\n\"seed=2\" "}, ["model.l2=0.1", "seed=2"]),
    ],
)
def test_a_key_stands_for_an_override(run_config: dict[str, Any], overrides: list[str]) -> None:
    """Flower's habitual keys are overrides by another name, typed as text or as number."""
    launch = read_launch(EMPTY | run_config, 4)
    assert launch.config == compose_config([*overrides, "num_clients=4"])
    assert launch.overrides == tuple(overrides)


def test_an_experiment_is_named_by_its_key() -> None:
    """``experiment="two_lines"`` in a run-config is ``experiment=two_lines``."""
    assert read_launch(EMPTY | {"experiment": "two_lines"}, 2).config == compose_config(
        ["experiment=two_lines"]
    )


def test_keys_win_over_overrides() -> None:
    """Where both name a thing, Flower's key counts; where one does, that one."""
    run_config = {
        "overrides": "dataset=diabetes seed=1 num_server_rounds=9 model.l2=0.5 num_clients=99",
        "dataset": "digits",
        "seed": "2",
    }
    config = read_launch(EMPTY | run_config, 4).config
    assert (config.dataset.name, config.seed) == ("digits", 2)
    assert (config.num_server_rounds, config.model.l2) == (9, 0.5)
    assert config.num_clients == 4


def test_a_tracking_uri_and_an_output_folder_are_taken_as_they_are() -> None:
    """They are no overrides: no quoting, and no part of the recorded overrides."""
    uri = "sqlite:////a b/x=1,2.db"
    launch = read_launch(EMPTY | {"tracking-uri": uri, "output-dir": "/a b/{c}"}, 3)
    assert isinstance(launch.config.tracking, MlflowConfig)
    assert launch.config.tracking.uri == uri
    assert launch.config.output_dir == "/a b/{c}"
    assert launch.overrides == ()


def test_the_run_config_is_left_as_it_is() -> None:
    """Reading changes nothing in Flower's context."""
    run_config = EMPTY | {"seed": 3}
    read_launch(run_config, 2)
    assert run_config == EMPTY | {"seed": 3}


KEYS = (
    "overrides, experiment, dataset, partitioner, model, strategy, num-server-rounds, seed, "
    "tracking-uri, output-dir, config-json"
)


@pytest.mark.parametrize(
    ("run_config", "num_clients", "message"),
    [
        (
            {"overrides": "seed='1"},
            4,
            "overrides=seed='1: overrides as on a command line (No closing quotation)",
        ),
        ({"overrides": "seed=-1"}, 4, "seed=-1: expected an integer >= 0"),
        ({"seed": "x"}, 4, "seed=x: expected an integer >= 0"),
        ({"seed": True}, 4, "seed=true: expected an integer >= 0"),
        ({"seed": 1.5}, 4, "seed=1.5: expected an integer >= 0"),
        ({"num-server-rounds": 0}, 4, "num_server_rounds=0: expected an integer >= 1"),
        ({"strategy": "pooled", "overrides": "runtime=simulation"}, 4, None),
        ({"overrides": "min_replies=5"}, 4, "min_replies=5: at most num_clients=4"),
        (
            {"dataset": "two_lines"},
            10,
            "num_clients=10: dataset=two_lines has exactly 2 clients, one a line: num_clients=2",
        ),
        (
            {"output-dir": "outputs"},
            4,
            "output-dir=outputs: an absolute path: a SuperLink has its own folder",
        ),
        ({"strategie": "fedavg"}, 4, f"strategie=fedavg: no such key; allowed are {KEYS}"),
        ({"config-json": "{}", "seed": 1}, 4, "seed=1: nothing beside config-json"),
        ({"config-json": "{}"}, 4, None),
        ({"config-json": "nonsense"}, 4, None),
        ({"config-json": "[]"}, 4, None),
        (
            {"config-json": '{"config": [], "overrides": [], "sweep_id": "", "commit": ""}'},
            4,
            "config=[]: a mapping of keys to values",
        ),
    ],
)
def test_a_mistake_in_a_run_config_is_one_line(
    run_config: dict[str, Any], num_clients: int, message: str | None
) -> None:
    """The error names the key; what is not from our launcher is no ``config-json``."""
    with pytest.raises(ConfigError) as caught:
        read_launch(EMPTY | run_config, num_clients)
    if message is not None:
        assert str(caught.value) == message
    elif "config-json" in run_config:
        assert "the launcher's own JSON, not to be typed" in str(caught.value)
        assert caught.value.field == "config-json"
    else:
        assert caught.value.field == "strategy"
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- config-json
def _launch(**options: Any) -> RunRequest:
    return RunRequest(from_dict(options), ("seed=1", "a='b c'"), "sweep", "c0ffee")


def test_our_launchers_json_reads_back_exactly() -> None:
    """Everything of a launch arrives, floats to the last bit; it is a single text."""
    launch = _launch(num_clients=3, output_dir="/a b", model={"name": "softmax", "l2": 0.1 + 0.2})
    assert RunRequest.from_json(launch.to_json()) == launch
    assert read_launch(EMPTY | {"config-json": launch.to_json()}, 3) == launch


def test_the_nodes_decide_the_number_of_clients() -> None:
    """A config for 3 clients in a federation of 5 nodes is one for 5, checked again."""
    launch = _launch(num_clients=3)
    found = read_launch({"config-json": launch.to_json()}, 5)
    assert found == replace(launch, config=replace(launch.config, num_clients=5))
    strict = _launch(num_clients=3, min_replies=3)
    with pytest.raises(ConfigError, match="min_replies=3: at most num_clients=2"):
        read_launch({"config-json": strict.to_json()}, 2)


def test_a_launchers_config_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ServerApp looks at it before its nodes are counted, and checks its rules with their number.

    So rules that the launcher's number breaks, and the nodes' does not, are no mistake.
    """
    launch = _launch(num_clients=3)
    fewer = replace(launch, config=replace(launch.config, num_clients=1, min_replies=2))
    checked: list[int] = []

    def counted(config: Config) -> Config:
        checked.append(config.num_clients)
        return check(config)

    monkeypatch.setattr("fl_app.config.run_request.check", counted)
    run_config = {"config-json": fewer.to_json()}
    assert read_runtime(run_config) == launch.config.runtime
    assert (read_num_clients(run_config), read_num_clients({})) == (1, 0)
    assert read_launch(run_config, 2).config == replace(fewer.config, num_clients=2)
    assert checked == [2]


def test_pooled_rows_are_still_dealt_to_all_clients() -> None:
    """``strategy=pooled`` has one node, but the rows of ``num_clients`` clients."""
    launch = _launch(num_clients=7, strategy={"name": "pooled"})
    assert read_launch({"config-json": launch.to_json()}, 1) == launch


def test_a_launch_carries_no_nan() -> None:
    """The JSON of a launch is JSON: other readers than Python's can read it too."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    json.loads(_launch().to_json(), parse_constant=refuse)


# ---------------------------------------------------------------------------- git_commit
def test_the_commit_is_that_of_the_sources_own_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a full hash or "", whatever tree the working directory belongs to."""
    git_commit.cache_clear()
    first = git_commit()
    assert first == "" or (len(first) == 40 and int(first, 16) >= 0)
    git_commit.cache_clear()
    monkeypatch.chdir(tmp_path)
    assert git_commit() == first


def test_no_git_means_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without git runs experiments all the same."""
    git_commit.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert git_commit() == ""
    git_commit.cache_clear()
