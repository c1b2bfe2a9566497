"""Options of every group but the data sets and the strategies: frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl_app.config.registry import opt, register

__all__ = ["FaultsConfig", "Task"]

Task = Literal["regression", "classification"]


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
    """SuperNodes at a SuperLink: each client a process of its own.

    Attributes
    ----------
    own_nodes : int
        SuperNodes of a run that starts them, unless ``nodes`` says how many.
    """

    own_nodes: ClassVar[int] = 2

    name: str = "deployment"
    superlink: str | None = opt(
        None,
        "Name of the connection in Flower's `config.toml`; null: the run starts a SuperLink and "
        "SuperNodes of its own on this machine, which end with it.",
    )
    nodes: int | None = opt(
        None,
        "SuperNodes of a run with `superlink=null`, each a client; null: 2. With a named SuperLink "
        "they are somebody else's.",
        ge=1,
    )
    wait_for_nodes: int = opt(2, "SuperNodes that must be online before the handshake.", ge=1)
    round_timeout: float = opt(3600.0, "Seconds that an exchange waits for replies.", gt=0)


@dataclass(frozen=True)
class TrackingConfig:
    """A record of the run; built into a ``Tracker``, or None.

    What builds it is given the run's ``Config`` and the run's name on this machine.
    """

    group: ClassVar[str] = "tracking"

    name: str = opt("", "Name of the tracker.")
    journal_days: float = opt(
        7.0, "Days that a run which is over and sent stays in FL_APP_HOME.", ge=0
    )


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
    figures: bool | None = opt(
        None,
        "Draw learning curves, data and clients as PNG artifacts; null: of a run by itself, not of "
        "each of a sweep, which `fl-kit report --figures` draws.",
    )


@register
@dataclass(frozen=True)
class NoTrackingConfig(TrackingConfig):
    """No MLflow: `result.json`, and the rounds in FL_APP_HOME for some days."""

    name: str = "none"
