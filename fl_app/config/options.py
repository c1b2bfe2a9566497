"""Options of every group but the strategies: frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fl_app.config.registry import opt, register

__all__ = ["MAX_AUTO_LEVELS", "MIN_LEVEL_ROWS", "FaultsConfig", "Levels", "Task"]

Task = Literal["regression", "classification"]
MIN_LEVEL_ROWS = 5
"""Rows of a node that a level or a class needs before the node names or counts it."""
MAX_AUTO_LEVELS = 20
"""Levels up to which a column of texts becomes categorical by itself."""


class Levels(dict[str, tuple[str, ...]]):
    """The levels of columns by name; not to be changed, so that it can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


# ---------------------------------------------------------------------------- dataset
@dataclass(frozen=True)
class DatasetConfig:
    """A data set and its splits; built from itself and the seed into a ``Table``.

    Attributes
    ----------
    task : {"regression", "classification"}
        Its task.
    has_clients : bool
        Whether its rows have natural clients.
    clients : (int, str) or None
        The number of clients that it always has, and why.
    is_drawn : bool
        Whether its rows are drawn by the seed.
    """

    if TYPE_CHECKING:  # a table of one's own has a field of this name, in its own place
        task: ClassVar[str]
    group: ClassVar[str] = "dataset"
    has_clients: ClassVar[bool] = False
    clients: ClassVar[tuple[int, str] | None] = None
    is_drawn: ClassVar[bool] = False

    name: str = opt("", "Name of the data set.")
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


@register
@dataclass(frozen=True)
class DigitsConfig(DatasetConfig):
    """1797 handwritten digits of 8 x 8 pixels."""

    task: ClassVar[str] = "classification"

    name: str = "digits"


@register
@dataclass(frozen=True)
class TwoLinesConfig(DatasetConfig):
    """y = 2x + 1 on client 0 and y = x + 1 on client 1: every row is for training."""

    task: ClassVar[str] = "regression"
    has_clients: ClassVar[bool] = True
    clients: ClassVar[tuple[int, str] | None] = (2, "one a line")

    name: str = "two_lines"
    test_fraction: float = 0.0
    val_fraction: float = 0.0
    standardize: bool = False
    rows: tuple[int, ...] = opt((2, 2), "Rows of each of the two clients.", ge=1, length=2)


@register
@dataclass(frozen=True)
class DiabetesConfig(DatasetConfig):
    """442 patients and their disease's progression."""

    task: ClassVar[str] = "regression"

    name: str = "diabetes"


@register
@dataclass(frozen=True)
class IrisConfig(DatasetConfig):
    """150 irises of three species."""

    task: ClassVar[str] = "classification"

    name: str = "iris"


@register
@dataclass(frozen=True)
class WineConfig(DatasetConfig):
    """178 wines of three cultivars."""

    task: ClassVar[str] = "classification"

    name: str = "wine"


@register
@dataclass(frozen=True)
class BreastCancerConfig(DatasetConfig):
    """569 tumours, malignant or benign."""

    task: ClassVar[str] = "classification"

    name: str = "breast_cancer"


@register
@dataclass(frozen=True)
class HeartDiseaseConfig(DatasetConfig):
    """UCI's four hospitals, the rows of FLamby's Fed-Heart-Disease."""

    task: ClassVar[str] = "classification"
    has_clients: ClassVar[bool] = True

    name: str = "heart_disease"
    split: str = opt(
        "seeded",
        "Test rows: drawn by the seed, or FLamby's fixed ones whatever `test_fraction` says.",
        choices=("seeded", "flamby"),
    )


@register
@dataclass(frozen=True)
class PenguinsConfig(DatasetConfig):
    """Penguins of three species on three islands."""

    task: ClassVar[str] = "classification"
    has_clients: ClassVar[bool] = True

    name: str = "penguins"


@dataclass(frozen=True)
class SyntheticConfig(DatasetConfig):
    """Rows drawn by the seed."""

    is_drawn: ClassVar[bool] = True

    num_examples: int = opt(1000, "Rows.", ge=2)
    num_features: int = opt(10, "Columns.", ge=1)


@register
@dataclass(frozen=True)
class SyntheticRegressionConfig(SyntheticConfig):
    """A noisy line drawn by the seed."""

    task: ClassVar[str] = "regression"

    name: str = "synthetic_regression"


@register
@dataclass(frozen=True)
class SyntheticClassificationConfig(SyntheticConfig):
    """Gaussian classes drawn by the seed."""

    task: ClassVar[str] = "classification"

    name: str = "synthetic_classification"
    num_classes: int = opt(3, "Classes.", ge=2)


@register
@dataclass(frozen=True)
class RingsConfig(DatasetConfig):
    """Noisy rings around one point, drawn by the seed: two columns, for pictures."""

    task: ClassVar[str] = "classification"
    is_drawn: ClassVar[bool] = True

    name: str = "rings"
    num_examples: int = opt(400, "Rows.", ge=2)
    num_classes: int = opt(2, "Rings of radius 1, 2, ...; each is a class.", ge=2)
    noise: float = opt(0.25, "Standard deviation of a row's distance from its ring.", ge=0)


@register
@dataclass(frozen=True)
class TabularConfig(DatasetConfig):
    """One CSV or Parquet file of the user's own."""

    has_clients: ClassVar[bool] = True

    name: str = "tabular"
    path: str | None = opt(None, "The file.")
    target: str | tuple[str, ...] | None = opt(None, "Column to predict; several for regression.")
    task: str = opt(  # type: ignore[misc]
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
    """How training rows are dealt to clients; built into each row's client.

    What builds it is given the training rows as a ``Table``, the config, the number of clients and
    a ``numpy.random.Generator``.
    """

    group: ClassVar[str] = "partitioner"

    name: str = opt("", "Name of the partitioner.")


@register
@dataclass(frozen=True)
class IidConfig(PartitionerConfig):
    """Rows in random order, an equal share to each client."""

    name: str = "iid"


@register
@dataclass(frozen=True)
class DirichletConfig(PartitionerConfig):
    """Class shares of each client drawn from a Dirichlet distribution."""

    name: str = "dirichlet"
    alpha: float = opt(0.5, "Concentration: the smaller, the more skewed.", gt=0)


@register
@dataclass(frozen=True)
class ShardsConfig(PartitionerConfig):
    """Shards of the rows sorted by class."""

    name: str = "shards"
    classes_per_client: int = opt(2, "Shards of each client, and so at most its classes.", ge=1)


@register
@dataclass(frozen=True)
class QuantityConfig(PartitionerConfig):
    """Sizes of clients drawn from a Dirichlet distribution."""

    name: str = "quantity"
    alpha: float = opt(0.5, "Concentration: the smaller, the more unequal.", gt=0)


@register
@dataclass(frozen=True)
class NaturalConfig(PartitionerConfig):
    """The data's own clients."""

    name: str = "natural"
    key: str | None = opt(None, "For `dataset=tabular`: the column that names each row's client.")


# ---------------------------------------------------------------------------- model
@dataclass(frozen=True)
class ModelConfig:
    """The linear or the softmax model, by the task; built into a ``Model``.

    What builds it is given the config, the numbers of features and outputs, and the task.

    Attributes
    ----------
    tasks : tuple of str
        The tasks that it does.
    """

    group: ClassVar[str] = "model"
    tasks: ClassVar[tuple[str, ...]] = ("regression", "classification")

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


register(ModelConfig)


@register
@dataclass(frozen=True)
class LinearConfig(ModelConfig):
    """Least squares."""

    tasks: ClassVar[tuple[str, ...]] = ("regression",)

    name: str = "linear"


@register
@dataclass(frozen=True)
class SoftmaxConfig(ModelConfig):
    """Logistic regression of all classes."""

    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    name: str = "softmax"


@register
@dataclass(frozen=True)
class MlpConfig(ModelConfig):
    """A perceptron."""

    name: str = "mlp"

    hidden_units: int = opt(32, "Units of the hidden layer.", ge=1)


# ---------------------------------------------------------------------------- the other groups
@dataclass(frozen=True)
class PrivacyConfig:
    """No differential privacy; built into a strategy around the run's own.

    What builds it is given the run's ``Config``, the strategy and the number of nodes.

    Attributes
    ----------
    is_private : bool
        Whether noise is added, so that what single clients send is in no record.
    """

    group: ClassVar[str] = "privacy"
    is_private: ClassVar[bool] = False

    name: str = opt("none", "Name of the privacy wrapper.")


register(PrivacyConfig)


@register
@dataclass(frozen=True)
class DpFixedConfig(PrivacyConfig):
    """Client-level differential privacy on the server: clip at a fixed norm, add noise."""

    is_private: ClassVar[bool] = True

    name: str = "dp_fixed"
    noise_multiplier: float = opt(
        1.0, "Deviation of the noise on the summed updates, over the clipping norm (z).", gt=0
    )
    clipping_norm: float = opt(1.0, "Largest norm of a client's update.", gt=0)
    delta: float = opt(1e-5, "The delta at which epsilon is logged.", gt=0, lt=1)


@register
@dataclass(frozen=True)
class DpAdaptiveConfig(PrivacyConfig):
    """Client-level differential privacy on the server: the clipping norm follows a quantile."""

    is_private: ClassVar[bool] = True

    name: str = "dp_adaptive"
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

    group: ClassVar[str] = "runtime"

    name: str = opt("", "Name of the runtime.")


@register
@dataclass(frozen=True)
class InProcessConfig(RuntimeConfig):
    """All clients in this process, or in a pool of processes of this machine."""

    name: str = "inprocess"
    num_workers: int = opt(
        1,
        "Processes that call the clients, at most one a client; 1: this process calls them itself. "
        "It changes no number, and saves time where a client works long (`docs/runtimes.md`).",
        ge=1,
    )


@register
@dataclass(frozen=True)
class SimulationConfig(RuntimeConfig):
    """Flower's simulation engine on a SuperLink of the run's own."""

    name: str = "simulation"
    num_cpus: int = opt(1, "CPUs that the engine sets aside for each client.", ge=1)
    ray_address: str | None = opt(
        None, "HOST:PORT of an existing Ray cluster's head; null: the run starts its own Ray."
    )


@register
@dataclass(frozen=True)
class DeploymentConfig(RuntimeConfig):
    """SuperNodes at a SuperLink: each client a process of its own, on a machine of its own."""

    name: str = "deployment"
    superlink: str | None = opt(None, "Name of the connection in Flower's `config.toml`.")
    wait_for_nodes: int = opt(2, "SuperNodes that must be online before the handshake.", ge=1)
    round_timeout: float = opt(3600.0, "Seconds that an exchange waits for replies.", gt=0)


@dataclass(frozen=True)
class TrackingConfig:
    """A record of the run; built into a ``Tracker``, or None.

    What builds it is given the run's ``Config`` and the run's name on this machine.
    """

    group: ClassVar[str] = "tracking"

    name: str = opt("", "Name of the tracker.")


@register
@dataclass(frozen=True)
class MlflowConfig(TrackingConfig):
    """The record in MLflow."""

    name: str = "mlflow"
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


@register
@dataclass(frozen=True)
class NoTrackingConfig(TrackingConfig):
    """No MLflow: `result.json`, and the rounds in FL_APP_HOME for 7 days."""

    name: str = "none"
