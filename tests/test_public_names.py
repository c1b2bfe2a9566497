"""Every public name stays where it was, or at the place that this file gives.

``public_names.json`` has the names of each ``__all__`` before the modules moved. It is not written
anew: a name that is missing there was never promised, one that stands there is.
``fl_app.dashboard.serve``, which only Streamlit can import, is not in it.
"""

from __future__ import annotations

import json
import warnings
from importlib import import_module, resources
from typing import Any

import pytest

NAMES: dict[str, list[str]] = json.loads(
    resources.files("tests").joinpath("public_names.json").read_text("utf-8")
)
MOVED: dict[str, tuple[str, ...]] = {
    "fl_app.commands": ("fl_app.cli.kit",),
    "fl_app.dashboard.charts": ("fl_app.dashboard.line_chart",),
    "fl_app.dashboard.choices": ("fl_app.dashboard.arguments",),
    "fl_app.dashboard.explain": ("fl_app.dashboard.replies",),
    "fl_app.dashboard.launches": (
        "fl_app.dashboard.process_control",
        "fl_app.dashboard.processes",
    ),
    "fl_app.dashboard.live": (
        "fl_app.dashboard.run_files",
        "fl_app.dashboard.metric_values",
        "fl_app.dashboard.progress",
        "fl_app.dashboard.view",
    ),
    "fl_app.dashboard.view": ("fl_app.dashboard.metric_values", "fl_app.dashboard.progress"),
    "fl_app.data.checkup": ("fl_app.data.file_report",),
    "fl_app.data.columns": ("fl_app.data.spelling",),
    "fl_app.data.dealers": ("fl_app.data.uneven_partitioners",),
    "fl_app.data.partition": ("fl_app.data.client_data",),
    "fl_app.data.strata": ("fl_app.data.stratification",),
    "fl_app.data.synthetic": ("fl_app.data.sets.synthetic",),
    "fl_app.data.toy_sets": ("fl_app.data.sets.toy",),
    "fl_app.data.vendored_sets": ("fl_app.data.sets.vendored",),
    "fl_app.faults": ("fl_app.federation.faults",),
    "fl_app.federation.cohort": ("fl_app.federation.sampling", "fl_app.grid.view"),
    "fl_app.federation.handshake": ("fl_app.federation.description",),
    "fl_app.federation.watched": ("fl_app.grid.watched",),
    "fl_app.fedstacking": ("fl_app.stacking.strategy",),
    "fl_app.fedxgb": ("fl_app.federation.fedxgb",),
    "fl_app.held": (
        "fl_app.grid.arrays",
        "fl_app.grid.messages",
        "fl_app.grid.private_copies",
    ),
    "fl_app.launch": ("fl_app.config.run_request",),
    "fl_app.pipes": ("fl_app.cli.broken_pipe",),
    "fl_app.report.checks": ("fl_app.report.soundness",),
    "fl_app.report.comparing": ("fl_app.report.expectations", "fl_app.report.tables"),
    "fl_app.report.places": ("fl_app.report.groups",),
    "fl_app.report.tuning": ("fl_app.report.choosing",),
    "fl_app.runtimes.base": ("fl_app.runtimes.result",),
    "fl_app.runtimes.submit": ("fl_app.runtimes.connections",),
    "fl_app.runtimes.superlink": ("fl_app.runtimes.signals",),
    "fl_app.schema": ("fl_app.config",),
    "fl_app.stack_client": ("fl_app.stacking.client",),
    "fl_app.sweep": ("fl_app.cli.sweep", "fl_app.cli.jobs", "fl_app.cli.job_processes"),
    "fl_app.tracking.base": ("fl_app.tracking.records",),
    "fl_app.tracking.best": ("fl_app.tracking.best_round",),
    "fl_app.tracking.carrier": ("fl_app.tracking.mlflow.upload",),
    "fl_app.tracking.late": ("fl_app.tracking.journal",),
    "fl_app.tracking.events": ("fl_app.tracking.housekeeping",),
    "fl_app.tracking.keys": ("fl_app.tracking.metric_names", "fl_app.tracking.round_texts"),
    "fl_app.tracking.mlflow_store": ("fl_app.tracking.mlflow.backend",),
    "fl_app.tracking.passwords": ("fl_app.config.passwords",),
    "fl_app.tracking.pyfunc_model": ("fl_app.tracking.mlflow.pyfunc_model",),
    "fl_app.tracking.sender": ("fl_app.tracking.mlflow.uploader",),
    "fl_app.tracking.spool": (
        "fl_app.tracking.journal",
        "fl_app.tracking.files",
        "fl_app.home",
    ),
    "fl_app.tracking.store": ("fl_app.tracking.mlflow.uri",),
    "fl_app.wire": ("fl_app.federation.protocol",),
    "fl_app.workers": ("fl_app.grid.workers",),
}
"""By the old module: the new one, or those that it was divided into."""
RENAMED = {
    "HeldArray": "LazyArray",
    "Launch": "RunRequest",
    "Spool": "Journal",
    "LateFile": "Journal",
    "LateJournal": "Journal",
    "models_dir": "run_dir",
    "Carrier": "Upload",
    "Sender": "Uploader",
    "KeyBook": "MetricNames",
    "replay_spools": "replay_outboxes",
    "Kinds": "MemberModels",
    "Particular": "ReplyContract",
    "everyone": "samples_all",
}
"""By the old name: the new one."""
GONE = frozenset({"append", "json_line", "read_lines", "share"})
"""Helpers of the files that a journal replaced."""
KEPT = (
    "fl_app",
    "fl_app.__main__",
    "fl_app.aggregation",
    "fl_app.client_app",
    "fl_app.data",
    "fl_app.errors",
    "fl_app.federation",
    "fl_app.grid",
    "fl_app.models",
    "fl_app.models.stack",
    "fl_app.report",
    "fl_app.runtimes",
    "fl_app.seeding",
    "fl_app.server_app",
    "fl_app.stacking",
    "fl_app.strategies",
    "fl_app.tracking",
)
"""Packages, and modules that the pages import from: these paths themselves go on to work."""


def found(module: str) -> Any:
    """Return a module, or None where there is none of this name."""
    try:
        with warnings.catch_warnings(action="ignore"):  # MLflow's, of the class it serves
            return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        return None


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_is_there(module: str) -> None:
    """Each name is an attribute of its old module or of one that replaces it."""
    places = [place for name in (module, *MOVED.get(module, ())) if (place := found(name))]
    assert places, f"no {module}, and MOVED gives no other"
    lost = [
        name
        for name in NAMES[module]
        if name not in GONE
        and not any(
            hasattr(place, own) for place in places for own in (name, RENAMED.get(name, ""))
        )
    ]
    assert lost == []


@pytest.mark.parametrize("module", KEPT)
def test_documented_paths_stay(module: str) -> None:
    """What others import from is imported from there for good, with all its names."""
    kept = import_module(module)
    assert [name for name in NAMES.get(module, ()) if not hasattr(kept, name)] == []


def test_moves_are_true() -> None:
    """Only a module that was public has moved, and to a module that exists."""
    assert set(MOVED) <= set(NAMES)
    assert not set(MOVED) & set(KEPT)
    assert [new for places in MOVED.values() for new in places if found(new) is None] == []
