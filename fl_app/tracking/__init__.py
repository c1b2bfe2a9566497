"""Observes runs and records them: no tracker steers, and none can fail a run.

``TrackedStrategy(FedAvg(), MlflowTracker(experiment_name="x")).start(grid=...)`` records every
round of any Flower strategy. Importing this package does not import MLflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_app.tracking.base import (
        Asked,
        ClientRecord,
        LoggedModel,
        NullTracker,
        RoundRecord,
        RunEnd,
        RunStart,
        Tracker,
    )
    from fl_app.tracking.events import Events
    from fl_app.tracking.mlflow import MlflowTracker, replay
    from fl_app.tracking.sender import Replay
    from fl_app.tracking.store import check_uri
    from fl_app.tracking.tracked import TrackedStrategy
    from fl_app.tracking.trackers import Trackers

__all__ = [
    "Asked",
    "ClientRecord",
    "Events",
    "LoggedModel",
    "MlflowTracker",
    "NullTracker",
    "Replay",
    "RoundRecord",
    "RunEnd",
    "RunStart",
    "TrackedStrategy",
    "Tracker",
    "Trackers",
    "check_uri",
    "replay",
]

# Whoever needs the paths of this package alone, as a launcher does, need not import Flower too.
_HOMES = {
    "Events": "events",
    "MlflowTracker": "mlflow",
    "replay": "mlflow",
    "Replay": "sender",
    "check_uri": "store",
    "TrackedStrategy": "tracked",
    "Trackers": "trackers",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'base')}"), name)
