"""Options of ``strategy=``, and the base models that some of them take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from fl_app.config.options import Task, opt

__all__ = ["has_base_models"]


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
