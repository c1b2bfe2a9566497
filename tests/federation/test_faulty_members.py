"""``benchmarks.stacking``: faulty members lie about their base model, and about nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stacking import faulty_app, wrapped
from fl_app.client_app import app as client_app
from fl_app.config.run_request import RunRequest
from fl_app.config.serialization import from_dict
from fl_app.federation.protocol import ARRAYS
from fl_app.grid import run_in_process
from fl_app.grid.arrays import read
from fl_app.server_app import app as server_app

FAULTY = 2
SETTINGS = {
    "num_clients": 4,
    "num_server_rounds": 3,
    "strategy": {"name": "fedstacking"},
    "tracking": {"name": "none"},
}


def _uploads(app: Any, folder: Path) -> dict[int, dict[str, Any]]:
    """Run it; return what each client sends in the round that collects."""
    seen: dict[int, dict[str, Any]] = {}

    def note(message: Any, context: Any, call: Any) -> Any:
        reply = call(message, context)
        if ARRAYS in reply.content and "counts" in (arrays := read(reply.content[ARRAYS])):
            seen[context.node_config["partition-id"]] = dict(arrays)
        return reply

    config = from_dict({**SETTINGS, "output_dir": str(folder)})
    run_config = {"config-json": RunRequest(config).to_json()}
    run_in_process(server_app, wrapped(app, note), config.num_clients, run_config)
    return seen


def test_only_the_base_model_of_a_faulty_client_is_another(tmp_path: Path) -> None:
    """Its part of the global member and its counts are honest, and all that the others send."""
    honest = _uploads(client_app, tmp_path)
    spoiled = _uploads(faulty_app(client_app, frozenset({FAULTY})), tmp_path)
    assert honest.keys() == spoiled.keys() == set(range(4))
    differing = {
        (partition, name)
        for partition, arrays in honest.items()
        for name in arrays.keys() | spoiled[partition].keys()
        if not np.array_equal(arrays[name], spoiled[partition][name])
    }
    assert differing == {(FAULTY, "base/logistic/coef"), (FAULTY, "base/logistic/intercept")}
    assert not spoiled[FAULTY]["base/logistic/coef"].any()
