"""Options of ``strategy=``, and the base models that some of them take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar, TypeGuard

from fl_app.config.options import Task
from fl_app.config.registry import GROUPS, opt, register

__all__ = ["has_base_models", "is_pooled"]


@dataclass(frozen=True)
class StrategyConfig:
    """What the server makes of the clients' replies; built into a ``Strategy`` of Flower's.

    What builds it is given the config, the run's ``Roster``, the clients' step size (or None), the
    run's ``Config`` and its ``Predictor``; the grid that it sees holds the cohort of a round alone.

    Attributes
    ----------
    takes_noise : bool
        Whether differential privacy's noise may be added: what it sums is bounded updates.
    is_alone : bool
        Whether every client keeps a model of its own.
    is_pooled : bool
        Whether all rows are in one place.
    weighs_loss : bool
        Whether clients tell the loss of what they are sent, before they train.
    """

    group: ClassVar[str] = "strategy"
    takes_noise: ClassVar[bool] = False
    is_alone: ClassVar[bool] = False
    is_pooled: ClassVar[bool] = False
    weighs_loss: ClassVar[bool] = False

    name: str = opt("", "Name of the strategy.")

    @property
    def is_reference(self) -> bool:
        """Whether it stands beside federations: each client alone, or all rows in one place."""
        return self.is_alone or self.is_pooled

    @property
    def fewest_replies(self) -> tuple[int, str]:
        """The fewest replies for which it keeps its guarantee, and that bound in words."""
        return 1, "1"

    @property
    def unmoved(self) -> str:
        """The option by which no client moves a model that it was sent; "" where they do."""
        return ""

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


@register
@dataclass(frozen=True)
class FedAvgConfig(StrategyConfig):
    """The mean of the clients' arrays, weighted by their rows."""

    takes_noise: ClassVar[bool] = True

    name: str = "fedavg"


@register
@dataclass(frozen=True)
class FedProxConfig(StrategyConfig):
    """FedProx: a proximal term in each client's loss."""

    takes_noise: ClassVar[bool] = True

    name: str = "fedprox"
    proximal_mu: float = opt(0.1, "Weight of the term mu/2 |w - w_global|^2.", ge=0)


@register
@dataclass(frozen=True)
class FedAvgMConfig(StrategyConfig):
    """FedAvg with momentum on the server."""

    takes_noise: ClassVar[bool] = True

    name: str = "fedavgm"
    server_learning_rate: float = opt(1.0, "Step size of the server.", gt=0)
    server_momentum: float = opt(0.9, "Momentum of the server.", ge=0, lt=1)


@register
@dataclass(frozen=True)
class FedAdamConfig(StrategyConfig):
    """FedAdam: adaptive steps on the server."""

    takes_noise: ClassVar[bool] = True

    name: str = "fedadam"
    eta: float = opt(0.1, "Server learning rate.", gt=0)
    beta_1: float = opt(0.9, "Decay of the first moment.", ge=0, lt=1)
    beta_2: float = opt(0.99, "Decay of the second moment.", ge=0, lt=1)
    tau: float = opt(1e-3, "Degree of adaptivity.", gt=0)


@register
@dataclass(frozen=True)
class FedYogiConfig(FedAdamConfig):
    """FedYogi: as FedAdam, with a second moment that grows more gently."""

    name: str = "fedyogi"


@register
@dataclass(frozen=True)
class FedAdagradConfig(StrategyConfig):
    """FedAdagrad: adaptive steps on the server."""

    takes_noise: ClassVar[bool] = True

    name: str = "fedadagrad"
    eta: float = opt(0.1, "Server learning rate.", gt=0)
    tau: float = opt(1e-3, "Degree of adaptivity.", gt=0)


@register
@dataclass(frozen=True)
class FedMedianConfig(StrategyConfig):
    """The median of each value."""

    name: str = "fedmedian"

    @property
    def fewest_replies(self) -> tuple[int, str]:
        """One and two others (Yin et al. 2018, https://arxiv.org/abs/1803.01498)."""
        return 3, "3, to withstand one faulty reply"


@register
@dataclass(frozen=True)
class FedTrimmedAvgConfig(StrategyConfig):
    """The mean of each value without its smallest and largest shares."""

    name: str = "fedtrimmedavg"
    beta: float = opt(0.2, "Share that is cut off at each end.", ge=0, lt=0.5)

    @property
    def fewest_replies(self) -> tuple[int, str]:
        """One for each end, and one more (Yin et al. 2018, https://arxiv.org/abs/1803.01498)."""
        if self.beta == 0:
            return super().fewest_replies
        fewest = ceil(1 / self.beta)
        return fewest, f"1/beta = {fewest}, to cut one reply off at each end"


@register
@dataclass(frozen=True)
class KrumConfig(StrategyConfig):
    """The reply nearest to its neighbours."""

    name: str = "krum"
    num_malicious_nodes: int = opt(1, "Faulty clients to withstand (f).", ge=0)

    @property
    def fewest_replies(self) -> tuple[int, str]:
        """2f + 3 (Blanchard et al. 2017, https://arxiv.org/abs/1703.02757)."""
        f = self.num_malicious_nodes
        return 2 * f + 3, f"2f + 3 with f={f}"


@register
@dataclass(frozen=True)
class MultiKrumConfig(KrumConfig):
    """The mean of the replies nearest to their neighbours."""

    name: str = "multikrum"
    num_nodes_to_select: int = opt(3, "Replies to average (m).", ge=1)

    @property
    def fewest_replies(self) -> tuple[int, str]:
        """As for Krum, and f + 2 more than are averaged."""
        f = self.num_malicious_nodes
        own = self.num_nodes_to_select + f + 2, f"m + f + 2 with f={f}"
        return max(super().fewest_replies, own, key=lambda bound: bound[0])


@register
@dataclass(frozen=True)
class BulyanConfig(KrumConfig):
    """Krum again and again, then the mean of the values nearest to the median."""

    name: str = "bulyan"

    @property
    def fewest_replies(self) -> tuple[int, str]:
        """4f + 3 (El Mhamdi et al. 2018, https://arxiv.org/abs/1802.07927)."""
        f = self.num_malicious_nodes
        return 4 * f + 3, f"4f + 3 with f={f}"


@register
@dataclass(frozen=True)
class QFedAvgConfig(StrategyConfig):
    """q-FedAvg: clients with a larger loss weigh more."""

    weighs_loss: ClassVar[bool] = True

    name: str = "qfedavg"
    q: float = opt(0.1, "Fairness; 0 weighs all clients alike.", ge=0)


@register
@dataclass(frozen=True)
class FedXgbBaggingConfig(StrategyConfig):
    """Federated boosted trees: each round adds one boosting round's trees of every client."""

    name: str = "fedxgbbagging"
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

    @property
    def unmoved(self) -> str:
        """Trees are added."""
        return f"strategy={self.name}"


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


@register
@dataclass(frozen=True)
class FedStackingConfig(BaseModelsConfig):
    """FedStacking: base models of the clients, combined by what sums over their rows say."""

    name: str = "fedstacking"
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

    @property
    def unmoved(self) -> str:
        """Only a global member that is averaged is moved."""
        own = self.global_member
        return "" if own == "fedavg" else f"strategy.global_member={own}"


@register
@dataclass(frozen=True)
class NAverageConfig(BaseModelsConfig):
    """An ensemble of the clients' base models, made once: their average or majority vote."""

    name: str = "n_average"
    combine: str = opt(
        "rows",
        "How: average weighted by the clients' rows, or for each class by their rows of it; or one "
        "vote a model (classification), a tie for the class that comes first.",
        choices=("rows", "classes", "votes"),
    )

    @property
    def unmoved(self) -> str:
        """Models are fitted, none is sent."""
        return f"strategy={self.name}"


@register
@dataclass(frozen=True)
class LocalConfig(StrategyConfig):
    """Every client alone."""

    is_alone: ClassVar[bool] = True

    name: str = "local"


@register
@dataclass(frozen=True)
class PooledConfig(BaseModelsConfig):
    """All rows in one place: the run's model trained to convergence, or one of scikit-learn's."""

    is_pooled: ClassVar[bool] = True

    name: str = "pooled"
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


def is_pooled(name: str | None) -> bool:
    """Return whether a strategy, as a record names it, has all rows in one place."""
    return bool(getattr(GROUPS["strategy"].get(str(name)), "is_pooled", False))
