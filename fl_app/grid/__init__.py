"""Grids of this process, and all that touches what Flower keeps private."""

from typing import TYPE_CHECKING

from fl_app.lazy import exporter

if TYPE_CHECKING:
    from fl_app.grid.client_call import in_process
    from fl_app.grid.inprocess import InProcessGrid
    from fl_app.grid.run import has_main, run_in_process

__all__ = ["InProcessGrid", "has_main", "in_process", "run_in_process"]

_HOMES = {
    "client_call": ["in_process"],
    "inprocess": ["InProcessGrid"],
    "run": ["has_main", "run_in_process"],
}

__getattr__ = exporter(__name__, _HOMES)
