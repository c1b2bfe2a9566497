"""Memory is flat: what a run keeps does not grow by a model a round."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.runtimes import run
from fl_app.tracking.records import RoundRecord
from fl_app.tracking.trackers import Trackers

HIDDEN = 12_500
MODEL_BYTES = 8 * (4 * HIDDEN + HIDDEN + HIDDEN * 3 + 3)  # iris: 4 features, 3 classes; 0.8 MB


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Note the bytes that are new since round 0 after each round, once all trackers have it."""
    seen: list[int] = []
    record = Trackers.record

    def watched(self: Trackers, what: RoundRecord) -> None:
        record(self, what)
        gc.collect()
        if not seen:  # imports would take long while traced
            tracemalloc.start()
        seen.append(tracemalloc.get_traced_memory()[0])

    monkeypatch.setattr(Trackers, "record", watched)
    yield seen
    tracemalloc.stop()


@pytest.mark.parametrize(
    "words",
    [
        ["tracking=none"],
        ["tracking=none", "strategy=fedadam"],
        ["tracking=none", "strategy=local"],
        pytest.param(["tracking.figures=false"], marks=pytest.mark.slow),
    ],
    ids=lambda words: words[-1],
)
def test_rounds_leave_no_model_behind(words: list[str], traced: list[int], tmp_path: Path) -> None:
    """Ten rounds more hold not ten models more.

    The best round and the last may be one and the same at first, and part later: one model.
    MLflow's sender works beside the rounds, so what is in its hands varies by a few models.
    """
    common = ["dataset=iris", "num_clients=2", "model=mlp", f"model.hidden_units={HIDDEN}"]
    common += ["num_server_rounds=14", f"output_dir={tmp_path}"]
    run(RunRequest(compose_config([*common, *words])))
    assert len(traced) == 15
    grown = traced[-1] - traced[4]
    assert grown < (1.5 if "tracking=none" in words else 3) * MODEL_BYTES
