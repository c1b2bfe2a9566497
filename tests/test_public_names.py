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
MOVED: dict[str, tuple[str, ...]] = {}
"""By the old module: the new one, or those that it was divided into."""
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
    assert [n for n in NAMES[module] if not any(hasattr(place, n) for place in places)] == []


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
