"""The typed form of an experiment, and what can be told by its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fl_app.config.dataset_options import MIN_LEVEL_ROWS, DatasetConfig, DigitsConfig, TabularConfig
from fl_app.config.options import (
    FaultsConfig,
    IidConfig,
    InProcessConfig,
    MlflowConfig,
    ModelConfig,
    PartitionerConfig,
    PrivacyConfig,
    RuntimeConfig,
    Task,
    TrackingConfig,
)
from fl_app.config.registry import GROUPS, opt
from fl_app.config.strategy_options import FedAvgConfig, StrategyConfig
from fl_app.errors import printable

__all__ = [
    "GROUPS",
    "LAST",
    "SECTIONS",
    "Config",
    "data_name",
    "min_level_rows_of",
    "objective_of",
    "task_of",
]

SECTIONS: Mapping[str, type[Any]] = {"faults": FaultsConfig}
"""Keys below a common name that is no group: there is nothing to choose between."""
LAST = "last"
"""``resume=last``: the newest run of a config that broke off."""
BUNDLES = ("experiment", "method", "sweep")
"""Groups of files that set keys of the others, and are no part of a config."""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    seed: int = opt(0, "Seed of every draw.", ge=0)
    num_clients: int = opt(
        10, "Clients; under `flwr run` and in a deployment the federation's nodes decide.", ge=1
    )
    num_server_rounds: int = opt(10, "Rounds of the run.", ge=1)
    fraction_train: float = opt(1.0, "Share of the clients that train in a round.", gt=0, le=1)
    fraction_evaluate: float = opt(
        1.0, "Share of the clients that evaluate in a round; 0 for none.", ge=0, le=1
    )
    min_replies: int = opt(1, "Usable replies below which a round fails.", ge=1)
    min_rows: int = opt(
        5,
        "Rows for training and for `eval/` together below which a client tells their number only, "
        "no moments, no classes and no levels.",
        ge=1,
    )
    objective: str | None = opt(
        None, "Metric that picks the best round; null: `eval/accuracy` or `eval/mse`."
    )
    skip_finished: bool = opt(
        False, "Whether a run is left out if one of the same config and data is FINISHED in MLflow."
    )
    resume: str | None = opt(
        None,
        "A run that broke off and goes on: its name (`fl-kit runs`), its id in MLflow, or `last` "
        "for the newest one of this config.",
    )
    resume_anyway: bool = opt(
        False, "Whether a run goes on with other code or package versions than it began with."
    )
    output_dir: str | None = opt(
        None, "Folder of `result.json`; null takes Hydra's own folder of the run."
    )
    dataset: DatasetConfig = field(default_factory=DigitsConfig)
    partitioner: PartitionerConfig = field(default_factory=IidConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    strategy: StrategyConfig = field(default_factory=FedAvgConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    runtime: RuntimeConfig = field(default_factory=InProcessConfig)
    tracking: TrackingConfig = field(default_factory=MlflowConfig)


def task_of(dataset: DatasetConfig) -> Task:
    """Return the task of a data set: "regression" or "classification"."""
    return cast(Task, dataset.task)


def data_name(config: Config) -> str:
    """Return what the rows are called: the data set's name, for ``tabular`` the file's.

    In a deployment each node has a file, whose name is the node's alone: there it is ``tabular``.
    """
    dataset = config.dataset
    if not isinstance(dataset, TabularConfig) or config.runtime.name == "deployment":
        return dataset.name
    return printable(Path(dataset.path or "").name) or dataset.name


def min_level_rows_of(dataset: DatasetConfig) -> int:
    """Return the rows that a class or a level needs before a node names or counts it."""
    return dataset.min_level_rows if isinstance(dataset, TabularConfig) else MIN_LEVEL_ROWS


METRICS: Mapping[Task, tuple[str, ...]] = {
    "regression": ("mse", "mae", "r2"),
    "classification": ("log_loss", "accuracy", "brier"),
}
"""Metrics of every reply, by task, in the order of the closing table."""
RATIOS: Mapping[Task, tuple[str, ...]] = {
    "regression": (),
    "classification": ("balanced_accuracy", "roc_auc"),
}
"""Further metrics of ``eval/`` and ``server/``, which are made of counts and in no reply."""


def objective_of(config: Config) -> str:
    """Return the metric that picks the best round and that sweepers optimise."""
    classes = task_of(config.dataset) == "classification"
    return config.objective or ("eval/accuracy" if classes else "eval/mse")


def cohort_size(config: Config) -> int:
    """Return how many clients train in a round, if all are there."""
    if config.strategy.is_pooled:
        return 1
    return max(int(config.num_clients * config.fraction_train), config.min_replies)
