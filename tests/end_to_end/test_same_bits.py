"""Same config and seed, same bits: twice, in any order of replies, with part of the clients."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from fl_app.client_app import app as client_app
from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.config.schema import Config
from fl_app.data.client_data import test_table as held_out
from fl_app.data.table import Table
from fl_app.errors import FederationError
from fl_app.grid import InProcessGrid
from fl_app.models.metrics import NO_SCORES
from fl_app.server_app import app as server_app

from .support import server_context

needs_xgboost = pytest.mark.skipif(find_spec("xgboost") is None, reason="the extra xgboost")
BOOSTED = pytest.param("fedxgbbagging", marks=needs_xgboost)
STRATEGIES = ("fedavg", "fedadam", "fedmedian", "local", "fedstacking", BOOSTED)


def digest(tmp_path: Path, shuffle: int | None, *overrides: str) -> str:
    output = tmp_path / f"out-{shuffle}"
    config = compose_config(
        ["tracking=none", "num_server_rounds=3", f"output_dir={output}", *overrides]
    )
    grid = InProcessGrid(client_app, num_supernodes=config.num_clients, shuffle_replies=shuffle)
    server_app(grid, server_context({"config-json": RunRequest(config).to_json()}))
    found: str = json.loads((output / "result.json").read_text())["weights_sha256"]
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_order_of_replies_changes_no_bit(strategy: str, tmp_path: Path) -> None:
    """Replies come back in another order in each exchange: the final weights are equal."""
    overrides = [f"strategy={strategy}", "num_clients=5", "partitioner=dirichlet"]
    first = digest(tmp_path, None, *overrides)
    assert digest(tmp_path, 1, *overrides) == first
    assert digest(tmp_path, 2, *overrides) == first


@pytest.mark.parametrize("strategy", ["fedavg", "fedstacking"])
def test_part_of_the_clients_is_drawn_by_the_seed(strategy: str, tmp_path: Path) -> None:
    """With ``fraction_train=0.5`` the same seed gives the same bits, another seed others."""
    overrides = [f"strategy={strategy}", "num_clients=6", "fraction_train=0.5"]
    first = digest(tmp_path, None, *overrides)
    assert digest(tmp_path, 7, *overrides) == first
    assert digest(tmp_path, None, *overrides, "seed=1") != first


def test_test_rows_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other labels on all the server's test rows its metrics change, and no weight does."""
    overrides = ["strategy=fedstacking", "dataset=wine", "num_clients=4", "num_server_rounds=4"]
    first = digest(tmp_path, None, *overrides)
    result = tmp_path / "out-None" / "result.json"
    honest = json.loads(result.read_text())["metrics"]

    def other_labels(config: Config) -> Table:
        table = held_out(config)
        return replace(table, target=(table.target + 1) % 3)

    monkeypatch.setattr("fl_app.experiment.run.test_table", other_labels)
    assert digest(tmp_path, None, *overrides) == first
    other = json.loads(result.read_text())["metrics"]
    assert other["server/accuracy"] < 0.5 < honest["server/accuracy"]
    apart = {key for key in honest if honest[key] != other[key]}
    shared = {f"server/{name}" for name in NO_SCORES}  # labels in turn: as many of each kind
    assert apart == {key for key in honest if key.startswith("server/")} - shared


def test_float32_stays_float32(tmp_path: Path) -> None:
    """FedAdam computes in float64; what is sent keeps the model's dtype, so no reply is dropped."""
    overrides = ["strategy=fedadam", "model.dtype=float32", "num_clients=3"]
    assert digest(tmp_path, None, *overrides) == digest(tmp_path, 3, *overrides)


def test_a_round_without_a_usable_reply_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All clients raise in training: the run fails, and ``result.json`` says so."""
    from fl_app import client_app as module

    def broken(*_: object) -> None:
        raise RuntimeError("no disk")

    monkeypatch.setattr(module, "_federation", broken)
    with pytest.raises(FederationError, match=r"round 1: 0 usable replies of 2 asked.*no disk"):
        digest(tmp_path, None, "num_clients=2")
    result = json.loads((tmp_path / "out-None" / "result.json").read_text())
    assert result["status"] == "FAILED"
    assert "no disk" in result["error"]
