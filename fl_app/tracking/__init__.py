"""Observes runs and records them: no tracker steers, and none can fail a run.

``TrackedStrategy(FedAvg(), MlflowTracker(experiment_name="x")).start(grid=...)`` records every
round of any Flower strategy. Importing this package does not import MLflow.
"""

from typing import TYPE_CHECKING

from fl_app.lazy import exporter

if TYPE_CHECKING:
    from fl_app.tracking.events import Events
    from fl_app.tracking.mlflow.tracker import MlflowTracker, replay
    from fl_app.tracking.mlflow.uploader import Replay
    from fl_app.tracking.mlflow.uri import check_uri
    from fl_app.tracking.records import (
        Asked,
        ClientRecord,
        LoggedModel,
        NullTracker,
        RoundRecord,
        RunEnd,
        RunFacts,
        RunStart,
        Tracker,
    )
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
    "RunFacts",
    "RunStart",
    "TrackedStrategy",
    "Tracker",
    "Trackers",
    "check_uri",
    "replay",
]

_HOMES = {
    "records": [
        "Asked",
        "ClientRecord",
        "LoggedModel",
        "NullTracker",
        "RoundRecord",
        "RunEnd",
        "RunFacts",
        "RunStart",
        "Tracker",
    ],
    "events": ["Events"],
    "mlflow.tracker": ["MlflowTracker", "replay"],
    "mlflow.uploader": ["Replay"],
    "mlflow.uri": ["check_uri"],
    "tracked": ["TrackedStrategy"],
    "trackers": ["Trackers"],
}

__getattr__ = exporter(__name__, _HOMES)
