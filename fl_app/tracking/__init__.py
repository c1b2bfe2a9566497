"""Observes runs and records them: no tracker steers, and none can fail a run.

``TrackedStrategy(FedAvg(), MlflowTracker(experiment_name="x")).start(grid=...)`` records every
round of any Flower strategy. Importing this package does not import MLflow.
"""

from fl_app.tracking.base import (
    ClientRecord,
    LoggedModel,
    NullTracker,
    RoundRecord,
    RunEnd,
    RunStart,
    Tracker,
)
from fl_app.tracking.mlflow import MlflowTracker, replay
from fl_app.tracking.sender import Replay
from fl_app.tracking.store import check_uri
from fl_app.tracking.tracked import TrackedStrategy
from fl_app.tracking.trackers import Trackers

__all__ = [
    "ClientRecord",
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
