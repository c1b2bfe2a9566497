"""The typed form of an experiment: frozen dataclasses, their JSON form and their digest.

A config is one :class:`Config` with a dataclass for each group. Which class a group takes is
looked up by the option's name in :data:`GROUPS`; nothing in a config is ever imported or called.
:func:`from_dict` turns plain data (from Hydra, from a message, from a file) into a checked
:class:`Config`, or raises one :class:`~fl_app.errors.ConfigError` that names the key, the value
and what is allowed.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from fl_app.errors import ConfigError, printable

__all__ = [
    "GROUPS",
    "MAX_AUTO_LEVELS",
    "MIN_LEVEL_ROWS",
    "SECTIONS",
    "SIGNS",
    "Config",
    "FaultsConfig",
    "Levels",
    "Task",
    "check",
    "check_names",
    "data_name",
    "digest",
    "effective",
    "flatten",
    "from_dict",
    "from_json",
    "has_base_models",
    "having",
    "kept_weights",
    "min_level_rows_of",
    "objective_of",
    "sign",
    "task_of",
    "to_dict",
    "to_json",
    "who_has",
    "without_effect",
]

Task = Literal["regression", "classification"]
T = TypeVar("T")

MIN_LEVEL_ROWS = 5
"""Rows of a node that a level or a class needs before the node names or counts it."""


MAX_AUTO_LEVELS = 20
"""Levels up to which a column of texts becomes categorical by itself."""


SIGNS: Mapping[str, str] = {
    "comma": ",",
    "semicolon": ";",
    "tab": "\t",
    "pipe": "|",
    "dot": ".",
    "space": " ",
    "apostrophe": "'",
}
"""Signs by the word that a command line takes without quotes."""


class Levels(dict[str, tuple[str, ...]]):
    """The levels of columns by name; not to be changed, so that it can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def opt(default: T, text: str, **limits: object) -> T:
    """Declare an option: its default, one sentence on it, and limits (``ge gt le lt choices``)."""
    return field(default=default, metadata={"help": text, **limits})


# ---------------------------------------------------------------------------- dataset
@dataclass(frozen=True)
class DatasetConfig:
    """A data set and its splits."""

    name: str = opt("digits", "Name of the data set.")
    test_fraction: float = opt(
        0.2, "Share of all rows that the server keeps as its test set.", ge=0, lt=1
    )
    val_fraction: float = opt(
        0.1, "Share of its own rows that each client keeps for `eval/`.", ge=0, lt=1
    )
    standardize: bool = opt(
        True,
        "Bring numeric features, and regression targets while a model learns, to mean 0 and "
        "variance 1 with the federation's moments.",
    )


@dataclass(frozen=True)
class TwoLinesConfig(DatasetConfig):
    """y = 2x + 1 on client 0 and y = x + 1 on client 1: every row is for training."""

    test_fraction: float = opt(0.0, "As for every data set.", ge=0, lt=1)
    val_fraction: float = opt(0.0, "As for every data set.", ge=0, lt=1)
    standardize: bool = opt(False, "As for every data set.")
    rows: tuple[int, ...] = opt((2, 2), "Rows of each of the two clients.", ge=1, length=2)


@dataclass(frozen=True)
class HeartDiseaseConfig(DatasetConfig):
    """UCI's four hospitals, the rows of FLamby's Fed-Heart-Disease."""

    split: str = opt(
        "seeded",
        "Test rows: drawn by the seed, or FLamby's fixed ones whatever `test_fraction` says.",
        choices=("seeded", "flamby"),
    )


@dataclass(frozen=True)
class SyntheticConfig(DatasetConfig):
    """Rows drawn by the seed."""

    num_examples: int = opt(1000, "Rows.", ge=2)
    num_features: int = opt(10, "Columns.", ge=1)


@dataclass(frozen=True)
class SyntheticClassificationConfig(SyntheticConfig):
    """Gaussian classes drawn by the seed."""

    num_classes: int = opt(3, "Classes.", ge=2)


@dataclass(frozen=True)
class RingsConfig(DatasetConfig):
    """Noisy rings around one point, drawn by the seed: two columns, for pictures."""

    num_examples: int = opt(400, "Rows.", ge=2)
    num_classes: int = opt(2, "Rings of radius 1, 2, ...; each is a class.", ge=2)
    noise: float = opt(0.25, "Standard deviation of a row's distance from its ring.", ge=0)


@dataclass(frozen=True)
class TabularConfig(DatasetConfig):
    """One CSV or Parquet file of the user's own."""

    path: str | None = opt(None, "The file.")
    target: str | tuple[str, ...] | None = opt(None, "Column to predict; several for regression.")
    task: str = opt(
        "classification", "What the target is.", choices=("regression", "classification")
    )
    features: tuple[str, ...] | None = opt(
        None, "Columns to predict from; null: all others but dates, identifiers and empty ones."
    )
    exclude: tuple[str, ...] = opt((), "Columns that are no features.")
    categorical: tuple[str, ...] | Literal["auto"] = opt(
        "auto",
        "Features taken as texts, one level each; `auto`: columns of texts with 1 to 20 levels "
        "that nodes tell and that no more than a tenth of any node's rows lack.",
    )
    missing: str = opt(
        "error", "What to do about missing cells.", choices=("error", "drop", "mean")
    )
    missing_values: tuple[int | float | str, ...] = opt(
        (), "Cells that are missing, beside blanks and words like NA, None, n/a, ? and -."
    )
    separator: str | None = opt(
        None,
        "What separates the cells of CSV: comma, semicolon, tab, pipe or space, or the sign; null: "
        "told from the file's lines.",
    )
    decimal: str = opt("dot", "What begins the decimals: dot or comma, or the sign.")
    thousands: str | None = opt(
        None,
        "What stands between groups of three digits: comma, dot, space or apostrophe, or the sign.",
    )
    min_level_rows: int = opt(
        MIN_LEVEL_ROWS,
        "Rows of a node that a level or a class needs before the node tells its name or how many.",
        ge=1,
    )
    classes: tuple[int | str, ...] | None = opt(
        None, "All classes, where they are no secret; null: those that a node tells."
    )
    levels: Levels | None = opt(  # noqa: RUF009  (the type is hashable and not written to)
        None, "All levels of categorical columns, likewise: `{column: [level, …]}`."
    )


# ---------------------------------------------------------------------------- partitioner
@dataclass(frozen=True)
class PartitionerConfig:
    """How training rows are dealt to clients."""

    name: str = opt("iid", "Name of the partitioner.")


@dataclass(frozen=True)
class DirichletConfig(PartitionerConfig):
    """Class shares of each client drawn from a Dirichlet distribution."""

    alpha: float = opt(0.5, "Concentration: the smaller, the more skewed.", gt=0)


@dataclass(frozen=True)
class ShardsConfig(PartitionerConfig):
    """Shards of the rows sorted by class."""

    classes_per_client: int = opt(2, "Shards of each client, and so at most its classes.", ge=1)


@dataclass(frozen=True)
class QuantityConfig(PartitionerConfig):
    """Sizes of clients drawn from a Dirichlet distribution."""

    alpha: float = opt(0.5, "Concentration: the smaller, the more unequal.", gt=0)


@dataclass(frozen=True)
class NaturalConfig(PartitionerConfig):
    """The data's own clients."""

    key: str | None = opt(None, "For `dataset=tabular`: the column that names each row's client.")


# ---------------------------------------------------------------------------- model
@dataclass(frozen=True)
class ModelConfig:
    """A model and its local training."""

    name: str = opt("auto", "Name of the model; `auto` is `linear` or `softmax` by the task.")
    local_epochs: int = opt(1, "Passes over a client's rows in one round.", ge=1)
    local_steps: int | None = opt(
        None,
        "Mini-batch steps of one round, whatever a client's rows, in place of `local_epochs`; they "
        "go on over as many passes as it takes.",
        ge=1,
    )
    batch_size: int = opt(32, "Rows of one step; 0 takes all rows.", ge=0)
    learning_rate: float | Literal["auto"] = opt(
        "auto",
        "Step size of local gradient descent; `auto`: the server decides on it and sends it with "
        "each round (docs/strategies.md).",
        gt=0,
    )
    l2: float = opt(0.0, "Weight of the penalty l2/2 * |coef|^2 in the loss.", ge=0)
    dtype: str = opt("float64", "Type of the arrays.", choices=("float32", "float64"))


@dataclass(frozen=True)
class MlpConfig(ModelConfig):
    """A perceptron."""

    hidden_units: int = opt(32, "Units of the hidden layer.", ge=1)


# ---------------------------------------------------------------------------- strategy
@dataclass(frozen=True)
class StrategyConfig:
    """A strategy without parameters of its own."""

    name: str = opt("fedavg", "Name of the strategy.")

    @property
    def trains_model(self) -> bool:
        """Whether anybody trains the run's own model."""
        return True

    @property
    def descends(self) -> bool:
        """Whether it is trained in steps of local gradient descent."""
        return self.trains_model

    @property
    def unused(self) -> tuple[str, ...]:
        """Its own options that change no number of the run, given the others."""
        return ()


@dataclass(frozen=True)
class FedProxConfig(StrategyConfig):
    """FedProx: a proximal term in each client's loss."""

    proximal_mu: float = opt(0.1, "Weight of the term mu/2 |w - w_global|^2.", ge=0)


@dataclass(frozen=True)
class FedAvgMConfig(StrategyConfig):
    """FedAvg with momentum on the server."""

    server_learning_rate: float = opt(1.0, "Step size of the server.", gt=0)
    server_momentum: float = opt(0.9, "Momentum of the server.", ge=0, lt=1)


@dataclass(frozen=True)
class FedAdagradConfig(StrategyConfig):
    """FedAdagrad: adaptive steps on the server."""

    eta: float = opt(0.1, "Server learning rate.", gt=0)
    tau: float = opt(1e-3, "Degree of adaptivity.", gt=0)


@dataclass(frozen=True)
class FedTrimmedAvgConfig(StrategyConfig):
    """The mean of each value without its smallest and largest shares."""

    beta: float = opt(0.2, "Share that is cut off at each end.", ge=0, lt=0.5)


@dataclass(frozen=True)
class KrumConfig(StrategyConfig):
    """The reply nearest to its neighbours."""

    num_malicious_nodes: int = opt(1, "Faulty clients to withstand (f).", ge=0)


@dataclass(frozen=True)
class MultiKrumConfig(KrumConfig):
    """The mean of the replies nearest to their neighbours."""

    num_nodes_to_select: int = opt(3, "Replies to average (m).", ge=1)


@dataclass(frozen=True)
class QFedAvgConfig(StrategyConfig):
    """q-FedAvg: clients with a larger loss weigh more."""

    q: float = opt(0.1, "Fairness; 0 weighs all clients alike.", ge=0)


@dataclass(frozen=True)
class FedAdamConfig(StrategyConfig):
    """FedAdam: adaptive steps on the server."""

    eta: float = opt(0.1, "Server learning rate.", gt=0)
    beta_1: float = opt(0.9, "Decay of the first moment.", ge=0, lt=1)
    beta_2: float = opt(0.99, "Decay of the second moment.", ge=0, lt=1)
    tau: float = opt(1e-3, "Degree of adaptivity.", gt=0)


@dataclass(frozen=True)
class FedYogiConfig(FedAdamConfig):
    """FedYogi: as FedAdam, with a second moment that grows more gently."""


BASE_MODELS: Mapping[str, tuple[Task, ...]] = {
    "model": ("regression", "classification"),
    "ridge": ("regression",),
    "logistic": ("classification",),
    "gaussian_nb": ("classification",),
    "random_forest": ("regression", "classification"),
    "hist_gradient_boosting": ("regression", "classification"),
}
"""Base models of a stack, by name, with the tasks that they do; ``model`` is the run's own."""
_ROWS = "carries raw training rows in every format, and would be sent to every client"
REFUSED: Mapping[str, str] = dict.fromkeys(
    (
        *("knn", "k_neighbors", "kneighbors", "nearest_neighbors", "radius_neighbors"),
        *("svm", "svc", "svr", "nu_svc", "nu_svr", "kernel_svm", "kernel_ridge"),
        *("gaussian_process", "label_propagation", "label_spreading"),
    ),
    _ROWS,
)
"""Names of base models that are refused on purpose, with the reason."""


@dataclass(frozen=True)
class BaseModelsConfig(StrategyConfig):
    """A strategy whose clients fit base models."""

    base_models: tuple[str, ...] | None = opt(
        None,
        "Base models, dealt over the partitions in turn: model (the run's own), ridge, logistic, "
        "gaussian_nb, random_forest, hist_gradient_boosting; null: logistic, or ridge for "
        "regression.",
    )

    def kind_of(self, partition: int) -> str:
        """Return the base model of a partition, once the config is checked."""
        assert self.base_models is not None
        return self.base_models[partition % len(self.base_models)]

    @property
    def trains_model(self) -> bool:
        """Only where it is a base model."""
        return "model" in (self.base_models or ())


@dataclass(frozen=True)
class PooledConfig(BaseModelsConfig):
    """All rows in one place: the run's model trained to convergence, or one of scikit-learn's."""

    base_models: tuple[str, ...] | None = opt(
        None,
        "One of ridge, logistic, gaussian_nb, random_forest, hist_gradient_boosting, fitted once "
        "with scikit-learn's own defaults; null: the run's model.",
    )

    @property
    def trains_model(self) -> bool:
        """Unless one of scikit-learn's takes its place."""
        return self.base_models is None

    @property
    def descends(self) -> bool:
        """Never: it is brought to its optimum at once."""
        return False


def has_base_models(strategy: StrategyConfig) -> TypeGuard[BaseModelsConfig]:
    """Return whether clients fit base models under a strategy of a checked config."""
    return isinstance(strategy, BaseModelsConfig) and strategy.base_models is not None


@dataclass(frozen=True)
class NAverageConfig(BaseModelsConfig):
    """An ensemble of the clients' base models, made once: their average or majority vote."""

    combine: str = opt(
        "rows",
        "How: average weighted by the clients' rows, or for each class by their rows of it; or one "
        "vote a model (classification), a tie for the class that comes first.",
        choices=("rows", "classes", "votes"),
    )


@dataclass(frozen=True)
class FedStackingConfig(BaseModelsConfig):
    """FedStacking: base models of the clients, combined by what sums over their rows say."""

    global_member: str = opt(
        "fedavg",
        "The federation's own model in the stack: trained by averaging, one-shot least squares, or "
        "none.",
        choices=("fedavg", "ls", "none"),
    )
    num_folds: int = opt(4, "Folds of out-of-fold predictions and of the sums.", ge=2)
    min_rows_per_sum: int = opt(
        3, "Rows of a class (regression: rows) below which they are left out of a sum.", ge=1
    )
    ls_rows_per_feature: float = opt(
        2.0, "Rows for each feature below which a sum for `global_member=ls` is not made.", ge=1
    )
    max_members: int | None = opt(
        None, "Base models that go to all clients at most; null: min(32, 420 // classes).", ge=1
    )
    personal_gate: bool = opt(
        False, "Whether clients also try to mix the stack with their own model, reported apart."
    )

    @property
    def trains_model(self) -> bool:
        """Where it is the global member or a base model."""
        return self.global_member == "fedavg" or super().trains_model

    @property
    def unused(self) -> tuple[str, ...]:
        """What is for least squares alone."""
        return () if self.global_member == "ls" else ("ls_rows_per_feature",)


@dataclass(frozen=True)
class FedXgbBaggingConfig(StrategyConfig):
    """Federated boosted trees: each round adds one boosting round's trees of every client."""

    eta: float = opt(0.3, "Step of a round: that of the mean of its clients' trees.", gt=0, le=1)
    max_depth: int = opt(6, "Levels of splits of a tree at most.", ge=1, le=16)
    min_child_weight: float | None = opt(
        None,
        "Sum of Hessians that a leaf needs, which for regression is its rows; null: 5 for "
        "regression, 1 for classes.",
        ge=0,
    )
    reg_lambda: float = opt(1.0, "Weight of the penalty on the squares of leaves.", ge=0)
    subsample: float = opt(1.0, "Share of a client's rows that a tree is grown on.", gt=0, le=1)

    @property
    def trains_model(self) -> bool:
        """Never: trees are all there is."""
        return False


# ---------------------------------------------------------------------------- the other groups
@dataclass(frozen=True)
class PrivacyConfig:
    """No differential privacy."""

    name: str = opt("none", "Name of the privacy wrapper.")


@dataclass(frozen=True)
class DpFixedConfig(PrivacyConfig):
    """Client-level differential privacy on the server: clip at a fixed norm, add noise."""

    noise_multiplier: float = opt(
        1.0, "Deviation of the noise on the summed updates, over the clipping norm (z).", gt=0
    )
    clipping_norm: float = opt(1.0, "Largest norm of a client's update.", gt=0)
    delta: float = opt(1e-5, "The delta at which epsilon is logged.", gt=0, lt=1)


@dataclass(frozen=True)
class DpAdaptiveConfig(PrivacyConfig):
    """Client-level differential privacy on the server: the clipping norm follows a quantile."""

    noise_multiplier: float = opt(
        1.0, "Noise of a round, as of `dp_fixed`: on the updates and on the count together.", gt=0
    )
    initial_clipping_norm: float = opt(0.1, "Norm in the first round.", gt=0)
    target_clipped_quantile: float = opt(
        0.5, "Share of updates to leave *un*clipped, whatever Flower's name says.", gt=0, lt=1
    )
    clip_norm_lr: float = opt(0.2, "Learning rate of the norm.", gt=0)
    delta: float = opt(1e-5, "The delta at which epsilon is logged.", gt=0, lt=1)


@dataclass(frozen=True)
class FaultsConfig:
    """Clients that fail on purpose."""

    clients: int = opt(0, "How many: the last ones by partition.", ge=0)
    kind: str = opt(
        "crash",
        "How: by an error in every other round, drawn by the seed; by NaN in what they send; by "
        "moving four times as far the other way (docs/strategies.md).",
        choices=("crash", "nan", "flip"),
    )


@dataclass(frozen=True)
class RuntimeConfig:
    """Where clients run."""

    name: str = opt("inprocess", "Name of the runtime.")


@dataclass(frozen=True)
class InProcessConfig(RuntimeConfig):
    """All clients in this process, or in a pool of processes of this machine."""

    num_workers: int = opt(
        1,
        "Processes that call the clients, at most one a client; 1: this process calls them itself. "
        "It changes no number, and saves time where a client works long (`docs/runtimes.md`).",
        ge=1,
    )


@dataclass(frozen=True)
class SimulationConfig(RuntimeConfig):
    """Flower's simulation engine on a SuperLink of the run's own."""

    num_cpus: int = opt(1, "CPUs that the engine sets aside for each client.", ge=1)
    ray_address: str | None = opt(
        None, "HOST:PORT of an existing Ray cluster's head; null: the run starts its own Ray."
    )


@dataclass(frozen=True)
class DeploymentConfig(RuntimeConfig):
    """SuperNodes at a SuperLink: each client a process of its own, on a machine of its own."""

    superlink: str | None = opt(None, "Name of the connection in Flower's `config.toml`.")
    wait_for_nodes: int = opt(2, "SuperNodes that must be online before the handshake.", ge=1)
    round_timeout: float = opt(3600.0, "Seconds that an exchange waits for replies.", gt=0)


@dataclass(frozen=True)
class TrackingConfig:
    """No MLflow: `result.json`, and the rounds in FL_APP_HOME for 7 days."""

    name: str = opt("mlflow", "Name of the tracker.")


@dataclass(frozen=True)
class MlflowConfig(TrackingConfig):
    """The record in MLflow."""

    uri: str | None = opt(
        None, "Tracking URI; null: MLFLOW_TRACKING_URI, else the store in FL_APP_HOME."
    )
    experiment_name: str | None = opt(
        None, "MLflow experiment; null: the data set's name, for `tabular` the file's."
    )
    register_as: str | None = opt(
        None, "Name under which the best model is registered, with the alias `champion`."
    )
    keep_weights: str = opt(
        "all", "Rounds whose weights are kept: `all`, `none`, `last:K`, or `every:K` and the last."
    )
    figures: bool = opt(True, "Draw learning curves, data and clients as PNG artifacts.")


GROUPS: Mapping[str, Mapping[str, type[Any]]] = {
    "dataset": {
        "digits": DatasetConfig,
        "two_lines": TwoLinesConfig,
        "diabetes": DatasetConfig,
        "iris": DatasetConfig,
        "wine": DatasetConfig,
        "breast_cancer": DatasetConfig,
        "heart_disease": HeartDiseaseConfig,
        "penguins": DatasetConfig,
        "synthetic_regression": SyntheticConfig,
        "synthetic_classification": SyntheticClassificationConfig,
        "rings": RingsConfig,
        "tabular": TabularConfig,
    },
    "partitioner": {
        "iid": PartitionerConfig,
        "dirichlet": DirichletConfig,
        "shards": ShardsConfig,
        "quantity": QuantityConfig,
        "natural": NaturalConfig,
    },
    "model": {"auto": ModelConfig, "linear": ModelConfig, "softmax": ModelConfig, "mlp": MlpConfig},
    "strategy": {
        "fedavg": StrategyConfig,
        "fedprox": FedProxConfig,
        "fedavgm": FedAvgMConfig,
        "fedadam": FedAdamConfig,
        "fedyogi": FedYogiConfig,
        "fedadagrad": FedAdagradConfig,
        "fedmedian": StrategyConfig,
        "fedtrimmedavg": FedTrimmedAvgConfig,
        "krum": KrumConfig,
        "multikrum": MultiKrumConfig,
        "bulyan": KrumConfig,
        "qfedavg": QFedAvgConfig,
        "fedxgbbagging": FedXgbBaggingConfig,
        "fedstacking": FedStackingConfig,
        "n_average": NAverageConfig,
        "local": StrategyConfig,
        "pooled": PooledConfig,
    },
    "privacy": {"none": PrivacyConfig, "dp_fixed": DpFixedConfig, "dp_adaptive": DpAdaptiveConfig},
    "runtime": {
        "inprocess": InProcessConfig,
        "simulation": SimulationConfig,
        "deployment": DeploymentConfig,
    },
    "tracking": {"mlflow": MlflowConfig, "none": TrackingConfig},
}
"""Every group's options and the class that types each."""
SECTIONS: Mapping[str, type[Any]] = {"faults": FaultsConfig}
"""Keys below a common name that is no group: there is nothing to choose between."""


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
    output_dir: str | None = opt(
        None, "Folder of `result.json`; null takes Hydra's own folder of the run."
    )
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    partitioner: PartitionerConfig = field(default_factory=PartitionerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    runtime: RuntimeConfig = field(default_factory=InProcessConfig)
    tracking: TrackingConfig = field(default_factory=MlflowConfig)


_TASKS: Mapping[str, Task] = {
    "digits": "classification",
    "two_lines": "regression",
    "diabetes": "regression",
    "iris": "classification",
    "wine": "classification",
    "breast_cancer": "classification",
    "heart_disease": "classification",
    "penguins": "classification",
    "synthetic_regression": "regression",
    "synthetic_classification": "classification",
    "rings": "classification",
}
_NOT_RECORDED = ("output_dir", "skip_finished")


def task_of(dataset: DatasetConfig) -> Task:
    """Return the task of a data set: "regression" or "classification"."""
    if isinstance(dataset, TabularConfig):
        return dataset.task  # type: ignore[return-value]
    return _TASKS[dataset.name]


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


# ---------------------------------------------------------------------------- plain data -> Config
def from_dict(data: Mapping[str, Any]) -> Config:
    """Build a checked config from plain nested data.

    Parameters
    ----------
    data : mapping
        Keys of :class:`Config`; each group is a mapping with its ``name`` and options. What is
        left out takes its default.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        At the first key that is unknown or whose value has a wrong type or lies out of range.

    Examples
    --------
    >>> from_dict({"seed": 3, "dataset": {"name": "diabetes"}}).dataset.name
    'diabetes'
    """
    if not isinstance(data, Mapping):
        raise ConfigError("config", data, "a mapping of keys to values")
    values: dict[str, Any] = {}
    known = {f.name for f in fields(Config)}
    for key, value in data.items():
        if key not in known:
            raise _unknown(str(key), value, known)
        if key in GROUPS:
            values[key] = _group(key, value)
        elif key in SECTIONS:
            values[key] = _options(SECTIONS[key], key, value)
        else:
            values[key] = _option(Config, key, key, value)
    return check(Config(**values))


def _group(group: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(group, value, f"a mapping with one of {', '.join(GROUPS[group])} as name")
    options = GROUPS[group]
    name = value.get("name")
    if not isinstance(name, str) or name not in options:
        raise ConfigError(f"{group}.name", name, f"one of {', '.join(options)}")
    return _options(options[name], group, value)


def _options(kind: type[Any], where: str, value: Any) -> Any:
    known = {f.name for f in fields(kind)}
    if not isinstance(value, Mapping):
        keys = ", ".join(f"{where}.{key}" for key in sorted(known))
        raise ConfigError(where, value, f"a mapping: set {keys}")
    values = {}
    for key, item in value.items():
        if key not in known:
            if having(where, key):
                allowed = f"no such key of the chosen {where}; {who_has(where, key)}"
                raise ConfigError(f"{where}.{key}", item, allowed)
            raise _unknown(f"{where}.{key}", item, known)
        values[key] = _option(kind, key, f"{where}.{key}", item)
    return kind(**values)


def having(group: str, key: str) -> list[str]:
    """Return the options of a group that have a key."""
    options = GROUPS.get(group, {}).items()
    return [name for name, kind in options if key in {f.name for f in fields(kind)}]


def who_has(group: str, key: str) -> str:
    """Say which options of a group have a key."""
    found = having(group, key)
    return f"{', '.join(found)} {'has' if len(found) == 1 else 'have'} it"


def _unknown(dotted: str, value: object, known: set[str]) -> ConfigError:
    key = dotted.rpartition(".")[2]
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ConfigError(dotted, value, f"no such key; {hint}allowed are {', '.join(sorted(known))}")


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _option(kind: Any, key: str, dotted: str, value: Any) -> Any:
    """Bring one value to its declared type and check its limits."""
    meta = next(f.metadata for f in fields(kind) if f.name == key)
    hint = _hints(kind)[key]
    ok, result = _convert(hint, value)
    if not ok:
        but = _but(value) or _in_quotes(hint, dotted, value)
        raise ConfigError(dotted, value, f"expected {_describe(hint, meta)}{but}")
    items = result if isinstance(result, tuple) else (result,)
    within = all(_within(item, meta) for item in items if item is not None)
    if not within or len(items) != meta.get("length", len(items)):
        raise ConfigError(dotted, value, f"expected {_describe(hint, meta)}")
    return result


def _but(value: Any) -> str:
    """Say what a value is that does not look it."""
    if isinstance(value, list | tuple) and any(isinstance(item, bool) for item in value):
        return "; true and false in a file are the classes 1 and 0"
    with suppress(TypeError, ValueError):
        if isinstance(value, str) and math.isfinite(float(value)):
            return ", not a text (${oc.decode:...} makes a number of one)"
    return ""


def _in_quotes(hint: Any, dotted: str, value: Any) -> str:
    """Say how to write digits that are a text, such as a column's name."""
    many = isinstance(value, list | tuple)
    items = value if many else [value]
    texts = [str(item) for item in items if isinstance(item, str) or type(item) is int]
    if len(texts) < len(items) or not _convert(hint, texts if many else texts[0])[0]:
        return ""
    written = ",".join(f'"{text}"' for text in texts)
    return f"; digits that are a text in quotes: '{dotted}={f'[{written}]' if many else written}'"


def _convert(hint: Any, value: Any) -> tuple[bool, Any]:
    """Return whether the value has the type, and the value in it."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return type(None) in get_args(hint), None
        return next(
            (
                r
                for r in (_convert(a, value) for a in get_args(hint) if a is not type(None))
                if r[0]
            ),
            (False, None),
        )
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint), value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False, None
        parts = [_convert(get_args(hint)[0], item) for item in value]
        return all(ok for ok, _ in parts), tuple(item for _, item in parts)
    if hint is Levels:
        return _levels(value)
    if hint is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            return good, float(value) if good else None
        except OverflowError:
            return False, None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is str and isinstance(value, float) and math.isnan(value):
        return True, "nan"  # a number to Hydra
    return isinstance(value, hint), value


def _levels(value: Any) -> tuple[bool, Any]:
    """Read ``{column: [level, …]}``; a whole number is the level that a file's cell of it is."""
    if not isinstance(value, Mapping):
        return False, None
    good = all(
        isinstance(names, list | tuple)
        and names
        and all(isinstance(name, int | str) and not isinstance(name, bool) for name in names)
        for names in value.values()
    )
    if not good:
        return False, None
    return True, Levels({str(c): tuple(map(str, names)) for c, names in value.items()})


_LIMITS: Mapping[str, tuple[Callable[[Any, Any], bool], str]] = {
    "ge": (operator.ge, ">="),
    "gt": (operator.gt, ">"),
    "le": (operator.le, "<="),
    "lt": (operator.lt, "<"),
}


def _within(value: Any, meta: Mapping[str, Any]) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if "choices" in meta and value not in meta["choices"]:
        return False
    if isinstance(value, str):  # a word beside numbers, which alone have limits
        return True
    return all(test(value, meta[k]) for k, (test, _) in _LIMITS.items() if k in meta)


def _describe(hint: Any, meta: Mapping[str, Any]) -> str:
    """Say what a key allows, for example ``a number > 0 and <= 1``."""
    if "choices" in meta:
        return "one of " + ", ".join(map(str, meta["choices"]))
    bounds = " and ".join(f"{sign} {meta[k]}" for k, (_, sign) in _LIMITS.items() if k in meta)
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    others = [*(word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))]
    others += ["null"] if type(None) in kinds else []
    plain = [kind for kind in kinds if kind is not type(None) and get_origin(kind) is not Literal]
    text = f"{' or '.join(map(_words, plain))} {bounds}".rstrip()
    text += f" ({meta['length']} of them)" if "length" in meta else ""
    return ", or ".join([text, *others])


def allowed(kind: Any, key: str) -> str:
    """Say what a key of one of the dataclasses allows, as its error does."""
    meta = next(f.metadata for f in fields(kind) if f.name == key)
    return _describe(_hints(kind)[key], meta)


def to_text(value: Any) -> str:
    """Return a value as it is typed on the command line and recorded as a parameter."""
    if isinstance(value, tuple):
        value = list(value)
    return value if isinstance(value, str) else json.dumps(value)


def _words(hint: Any) -> str:
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        kinds = get_args(item) if isinstance(item, types.UnionType) else (item,)
        return "a list of " + " or ".join(f"{_words(kind).split(' ', 1)[1]}s" for kind in kinds)
    return {
        int: "an integer",
        float: "a finite number",
        bool: "true or false",
        str: "a text",
        Levels: "lists of texts by column",
    }[hint]


# ---------------------------------------------------------------------------- keys at odds
def check(config: Config) -> Config:
    """Check what no key can say alone, and resolve ``model=auto``.

    Raises
    ------
    ConfigError
        Where two keys contradict each other.
    """
    task = task_of(config.dataset)
    config = replace(config, model=_resolve_model(config.model, config.dataset, task))
    if isinstance(config.strategy, BaseModelsConfig):
        config = replace(config, strategy=_resolve_base_models(config.strategy, task))
    if config.min_replies > config.num_clients:
        allowed = f"at most num_clients={config.num_clients}"
        raise ConfigError("min_replies", config.min_replies, allowed)
    _check_objective(config, task)
    _check_tabular(config)
    _check_clients(config)
    _check_cohort(config)
    _check_privacy(config)
    _check_faults(config)
    _check_baselines(config)
    _check_stacking(config)
    if isinstance(config.tracking, MlflowConfig):
        check_names(config.tracking.experiment_name, config.tracking.register_as)
        kept_weights(config.tracking.keep_weights)
    if isinstance(config.runtime, SimulationConfig) and config.runtime.ray_address is not None:
        ray_head(config.runtime.ray_address)
    if config.skip_finished and not isinstance(config.tracking, MlflowConfig):
        allowed = f"false with tracking={config.tracking.name}: finished runs are found in MLflow"
        raise ConfigError("skip_finished", True, allowed)
    return config


def check_names(experiment_name: str | None, register_as: str | None) -> None:
    """Reject names under which MLflow cannot keep, search or load; None is no name.

    Raises
    ------
    ConfigError
        For the first such name.
    """
    if experiment_name is not None and not 1 <= len(experiment_name) <= 500:
        raise ConfigError("tracking.experiment_name", experiment_name, "1 to 500 characters")
    if register_as is None:
        return
    # A search quotes the name, and `models:/NAME@champion` is a URI.
    bad = set(register_as) & set("/:@?#'\"`") or not register_as.isprintable()
    if bad or not register_as.strip(" .") or len(register_as) > 256:
        allowed = "a name of 1 to 256 characters, none of them / : @ ? # or a quotation mark"
        raise ConfigError("tracking.register_as", register_as, allowed)


def kept_weights(text: str) -> tuple[int, int]:
    """Read which rounds' weights a record keeps: ``all``, ``none``, ``last:K`` or ``every:K``.

    Returns
    -------
    tuple of (int, int)
        `every`: rounds 0, `every`, 2 `every` and so on are kept as they end, 0 for none; and as
        many of the last rounds are kept, too.

    Raises
    ------
    ConfigError
        For anything else.
    """
    word, colon, number = str(text).partition(":")
    if not colon and word in ("all", "none"):
        return int(word == "all"), 0
    if word in ("last", "every") and number.isdecimal() and number.isascii() and int(number):
        return (0, int(number)) if word == "last" else (int(number), 1)
    allowed = "all, none, last:K (the last K rounds) or every:K (each Kth and the last), K from 1"
    raise ConfigError("tracking.keep_weights", text, allowed)


def ray_head(address: str) -> tuple[str, int]:
    """Read ``runtime.ray_address``.

    Returns
    -------
    tuple of (str, int)
        Host and port.

    Raises
    ------
    ConfigError
        If it is not ``HOST:PORT``. Ray's own ``auto`` and ``ray://`` are refused: which cluster a
        run used shall be told by its config, and Ray Client is no driver for Flower's engine.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in address or not (port.isascii() and port.isdigit() and int(port) < 2**16):
        allowed = "HOST:PORT of a Ray head, as `ray start --head` prints it"
        raise ConfigError("runtime.ray_address", address, allowed)
    return host, int(port)


def _resolve_model(model: ModelConfig, dataset: DatasetConfig, task: Task) -> ModelConfig:
    by_task = {"linear": "regression", "softmax": "classification"}
    if model.name == "auto":
        model = replace(model, name="linear" if task == "regression" else "softmax")
    if by_task.get(model.name, task) != task:
        fitting = [n for n in GROUPS["model"] if by_task.get(n, task) == task]
        allowed = f"dataset={dataset.name} is a {task} task; allowed are {', '.join(fitting)}"
        raise ConfigError("model", model.name, allowed)
    return model


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


def _check_objective(config: Config, task: Task) -> None:
    own = METRICS[task]
    allowed = [f"eval/{m}" for m in own + RATIOS[task]] + [f"train/{m}" for m in own]
    if config.objective is not None and config.objective not in allowed:
        raise ConfigError("objective", config.objective, f"one of {', '.join(allowed)}, or null")


def _check_clients(config: Config) -> None:
    if config.dataset.name == "two_lines" and config.num_clients != 2:
        raise ConfigError(
            "num_clients",
            config.num_clients,
            "dataset=two_lines has exactly 2 clients, one a line: num_clients=2",
        )
    natural = {"two_lines", "heart_disease", "penguins", "tabular"}
    if config.partitioner.name == "natural" and config.dataset.name not in natural:
        raise ConfigError(
            "partitioner",
            "natural",
            f"dataset={config.dataset.name} has no natural clients; "
            f"data sets that have: {', '.join(sorted(natural))}",
        )


def _check_tabular(config: Config) -> None:
    dataset, partitioner = config.dataset, config.partitioner
    natural = isinstance(partitioner, NaturalConfig)
    key = partitioner.key if isinstance(partitioner, NaturalConfig) else None
    if not isinstance(dataset, TabularConfig):
        if key is not None:
            raise ConfigError(
                "partitioner.key", key, "null: only dataset=tabular has columns to name"
            )
        return
    if not dataset.target:
        raise ConfigError("dataset.target", dataset.target, "the name of the column to predict")
    if dataset.path is None and config.runtime.name != "deployment":
        raise ConfigError("dataset.path", None, "the path of a CSV or Parquet file")
    if natural and key is None:
        allowed = "the column that names each row's client, for partitioner=natural"
        raise ConfigError("partitioner.key", key, allowed)
    _check_names(dataset)
    _check_signs(dataset)
    for column in dataset.exclude:
        if column in (dataset.features or ()):
            allowed = "a column that dataset.features does not name"
            raise ConfigError("dataset.exclude", column, allowed)


def _check_signs(dataset: TabularConfig) -> None:
    """Check what separates cells, decimals and groups of digits."""
    signs = {
        "separator": (dataset.separator, ("comma", "semicolon", "tab", "pipe", "space")),
        "decimal": (dataset.decimal, ("dot", "comma")),
        "thousands": (dataset.thousands, ("comma", "dot", "space", "apostrophe")),
    }
    for name, (value, words) in signs.items():
        known = {None, *words, *map(sign, words)}
        if value not in known:
            raise ConfigError(f"dataset.{name}", value, f"one of {', '.join(words)}")
    if dataset.thousands is not None and sign(dataset.thousands) == sign(dataset.decimal):
        allowed = f"another sign than dataset.decimal={dataset.decimal}"
        raise ConfigError("dataset.thousands", dataset.thousands, allowed)


def sign(word: str) -> str:
    """Return the sign that a word of :data:`SIGNS` stands for; any other text as it is."""
    return SIGNS.get(word, word)


def _check_names(dataset: TabularConfig) -> None:
    """Check the classes and levels that the config names."""
    classes = dataset.classes
    if classes is not None:
        if dataset.task != "classification":
            raise ConfigError("dataset.classes", list(classes), "null, as dataset.task=regression")
        # A column of labels holds texts alone or numbers alone.
        if len(set(classes)) < max(2, len(classes)) or len(set(map(type, classes))) > 1:
            allowed = "at least 2 different classes, all whole numbers or all texts"
            raise ConfigError("dataset.classes", list(classes), allowed)
    for column, levels in (dataset.levels or {}).items():
        if dataset.categorical != "auto" and column not in dataset.categorical:
            allowed = "a column that dataset.categorical names"
            raise ConfigError("dataset.levels", column, allowed)
        if len(set(levels)) < len(levels) or "" in levels:
            allowed = "each level once; an empty cell is a missing one"
            raise ConfigError(f"dataset.levels.{column}", list(levels), allowed)


def cohort_size(config: Config) -> int:
    """Return how many clients train in a round, if all are there."""
    if config.strategy.name == "pooled":
        return 1
    return max(int(config.num_clients * config.fraction_train), config.min_replies)


def fewest_replies(strategy: StrategyConfig) -> tuple[int, str]:
    """Return the fewest replies for which a strategy keeps its guarantee, and that bound in words.

    References
    ----------
    Krum: n >= 2f + 3 (Blanchard et al. 2017, https://arxiv.org/abs/1703.02757). Bulyan:
    n >= 4f + 3 (El Mhamdi et al. 2018, https://arxiv.org/abs/1802.07927). Median and trimmed mean
    withstand one faulty reply of three (Yin et al. 2018, https://arxiv.org/abs/1803.01498).
    """
    if strategy.name == "fedmedian":
        return 3, "3, to withstand one faulty reply"
    if isinstance(strategy, FedTrimmedAvgConfig) and strategy.beta > 0:
        fewest = math.ceil(1 / strategy.beta)
        return fewest, f"1/beta = {fewest}, to cut one reply off at each end"
    if isinstance(strategy, KrumConfig):
        f = strategy.num_malicious_nodes
        fewest = 4 * f + 3 if strategy.name == "bulyan" else 2 * f + 3
        rule = "4f + 3" if strategy.name == "bulyan" else "2f + 3"
        if isinstance(strategy, MultiKrumConfig) and strategy.num_nodes_to_select + f + 2 > fewest:
            return strategy.num_nodes_to_select + f + 2, f"m + f + 2 with f={f}"
        return fewest, f"{rule} with f={f}"
    return 1, "1"


def _check_cohort(config: Config) -> None:
    size, (fewest, rule) = cohort_size(config), fewest_replies(config.strategy)
    if size < fewest:
        raise ConfigError(
            "num_clients",
            config.num_clients,
            f"strategy={config.strategy.name} needs at least {fewest} clients in a round ({rule}), "
            f"fraction_train={config.fraction_train:g} gives {size}",
        )


_PRIVATE = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad")


def _check_privacy(config: Config) -> None:
    name = config.privacy.name
    if name == "none":
        return
    if config.strategy.name not in _PRIVATE:
        allowed = f"none with strategy={config.strategy.name}; noise is for {', '.join(_PRIVATE)}"
        raise ConfigError("privacy", name, allowed)


_UNMOVED = (
    "strategy=n_average",
    "strategy=fedxgbbagging",
    "strategy.global_member=ls",
    "strategy.global_member=none",
)


def _check_faults(config: Config) -> None:
    count, strategy = config.faults.clients, config.strategy
    if not count:
        return
    if config.runtime.name == "deployment":
        allowed = "0 with runtime=deployment: faults are for simulated clients"
        raise ConfigError("faults.clients", count, allowed)
    if strategy.name in ("local", "pooled"):
        allowed = f"0 with strategy={strategy.name}: it has no clients that train together"
        raise ConfigError("faults.clients", count, allowed)
    if count > config.num_clients:
        raise ConfigError("faults.clients", count, f"at most num_clients={config.num_clients}")
    own = f"strategy={strategy.name}"
    if isinstance(strategy, FedStackingConfig):
        own = f"strategy.global_member={strategy.global_member}"
    if config.faults.kind == "flip" and own in _UNMOVED:
        allowed = f"crash or nan with {own}: no client moves a model that it was sent"
        raise ConfigError("faults.kind", "flip", allowed)


def _check_baselines(config: Config) -> None:
    name = config.strategy.name
    if name == "pooled" and config.runtime.name != "inprocess":
        raise ConfigError(
            "strategy",
            "pooled",
            f"all rows in one place exist with runtime=inprocess only, not {config.runtime.name}",
        )
    if name == "pooled" and config.min_replies != 1:
        raise ConfigError("min_replies", config.min_replies, "strategy=pooled has one client: 1")
    if name in ("local", "pooled") and config.fraction_train != 1:
        raise ConfigError(
            "fraction_train", config.fraction_train, f"strategy={name} trains every client: 1"
        )


def require_base_model(name: str, task: Task, field_name: str = "strategy.base_models") -> None:
    """Reject a name that is no base model or does not fit the task.

    Parameters
    ----------
    name : str
        A key of :data:`BASE_MODELS`.
    task : {"regression", "classification"}
        The task of the run.
    field_name : str, default "strategy.base_models"
        Config key that the message names.

    Raises
    ------
    ConfigError
        If the name is unknown, refused on purpose, or of the other task.
    """
    fitting = ", ".join(n for n, tasks in BASE_MODELS.items() if task in tasks)
    if name.lower() in REFUSED:
        raise ConfigError(field_name, name, f"{REFUSED[name.lower()]}; allowed are {fitting}")
    if name not in BASE_MODELS:
        raise ConfigError(field_name, name, f"no such base model; allowed are {fitting}")
    if task not in BASE_MODELS[name]:
        raise ConfigError(field_name, name, f"does not fit a {task} task; allowed are {fitting}")


def _resolve_base_models(strategy: BaseModelsConfig, task: Task) -> BaseModelsConfig:
    pooled = isinstance(strategy, PooledConfig)
    if strategy.base_models is None:
        if pooled:
            return strategy
        default = "ridge" if task == "regression" else "logistic"
        return replace(strategy, base_models=(default,))
    if not strategy.base_models:
        fitting = ", ".join(n for n, tasks in BASE_MODELS.items() if task in tasks)
        raise ConfigError("strategy.base_models", [], f"at least one of {fitting}")
    for name in strategy.base_models:
        require_base_model(name, task)
    if pooled and (len(strategy.base_models) > 1 or "model" in strategy.base_models):
        allowed = "one of scikit-learn's with strategy=pooled; null: the run's model"
        raise ConfigError("strategy.base_models", list(strategy.base_models), allowed)
    return strategy


def _check_stacking(config: Config) -> None:
    own = config.strategy
    regression = task_of(config.dataset) == "regression"
    if isinstance(own, NAverageConfig) and own.combine != "rows" and regression:
        allowed = "rows for a regression task, which has no classes"
        raise ConfigError("strategy.combine", own.combine, allowed)
    if not isinstance(own, FedStackingConfig):
        return
    if config.num_server_rounds < 3:
        raise ConfigError(
            "num_server_rounds",
            config.num_server_rounds,
            "strategy=fedstacking needs at least 3: to collect, to stack, to select",
        )


# ---------------------------------------------------------------------------- Config -> plain data
def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain nested data (tuples become lists)."""
    result: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, Levels):
            value = {column: list(levels) for column, levels in value.items()}
        result[f.name] = list(value) if isinstance(value, tuple) else value
    return result


def to_json(config: Config) -> str:
    """Return the canonical JSON form: keys sorted, no spaces, numbers that read back exactly."""
    return json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(text: str) -> Config:
    """Read :func:`to_json`'s form back.

    Raises
    ------
    ConfigError
        If the text is no JSON object or no valid config.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError("config-json", text, f"a JSON object ({error})") from None
    if not isinstance(data, dict):
        raise ConfigError("config-json", text, "a JSON object")
    return from_dict(data)


def flatten(config: Config) -> dict[str, str]:
    """Return the recorded parameters, dotted key -> text, without where output goes."""
    return dict(_flat("", {k: v for k, v in to_dict(config).items() if k not in _NOT_RECORDED}))


def _flat(prefix: str, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, dict) and (key in GROUPS or key in SECTIONS):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", to_text(value)


_STEPS = ("batch_size", "learning_rate", "local_epochs", "local_steps")


def without_effect(config: Config) -> tuple[str, ...]:
    """Return the parameters that change no number of this run, whatever their value.

    A model that nobody trains has no effect but for its ``dtype``, which is that of the rows too.

    Returns
    -------
    tuple of str
        Dotted keys as in :func:`flatten`, sorted; () for most configs.
    """
    strategy, model = config.strategy, config.model
    found = [f"strategy.{name}" for name in strategy.unused]
    if not strategy.trains_model:
        found += [f"model.{f.name}" for f in fields(model) if f.name != "dtype"]
    elif not strategy.descends:
        found += [f"model.{name}" for name in _STEPS]
    elif model.local_steps is not None:
        found.append("model.local_epochs")
    return tuple(sorted(found))


def effective(config: Config) -> dict[str, str]:
    """Return the recorded parameters but for those that are :func:`without_effect`."""
    none = without_effect(config)
    return {param: value for param, value in flatten(config).items() if param not in none}


def digest(config: Config) -> str:
    """Return the SHA-256 of what decides a run's numbers: all but runtime, tracking and folders.

    Where no client fails on purpose, ``faults`` decides nothing; nor does what is
    :func:`without_effect`.
    """
    left_out = (*_NOT_RECORDED, "runtime", "tracking", *([] if config.faults.clients else SECTIONS))
    kept = {key: value for key, value in to_dict(config).items() if key not in left_out}
    for group, _, key in (param.partition(".") for param in without_effect(config)):
        del kept[group][key]
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
