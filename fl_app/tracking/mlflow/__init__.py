"""Runs in MLflow: the tracker, its uploads, the store that they go to."""

from typing import TYPE_CHECKING

from fl_app.lazy import exporter

if TYPE_CHECKING:
    from fl_app.tracking.mlflow.tracker import MlflowTracker, replay

__all__ = [
    "MlflowTracker",
    "replay",
]

_HOMES = {
    "tracker": ["MlflowTracker", "replay"],
}

__getattr__ = exporter(__name__, _HOMES)
