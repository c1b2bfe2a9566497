"""Strategies by name: Flower's own, unforked, FedStacking, and the baselines.

References
----------
Flower strategies: https://flower.ai/docs/framework/ref-api/flwr.serverapp.strategy.html
FedAvg: McMahan et al. 2017, https://arxiv.org/abs/1602.05629.
FedAdam: Reddi et al. 2021, https://arxiv.org/abs/2003.00295.
FedYogi, FedAdagrad: the same paper.
FedProx: Li et al. 2020, https://arxiv.org/abs/1812.06127.
FedAvgM: Hsu et al. 2019, https://arxiv.org/abs/1909.06335.
FedMedian, FedTrimmedAvg: Yin et al. 2018, https://arxiv.org/abs/1803.01498.
Krum, MultiKrum: Blanchard et al. 2017, https://arxiv.org/abs/1703.02757.
FedStacking: :mod:`fl_app.stacking.strategy`. FedXgbBagging: :mod:`fl_app.federation.fedxgb`.
Bulyan: El Mhamdi et al. 2018, https://arxiv.org/abs/1802.07927.
QFedAvg: Li et al. 2020, https://arxiv.org/abs/1905.10497.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from numpy.typing import NDArray

from fl_app.config.registry import builder_of, register
from fl_app.config.schema import Config
from fl_app.config.strategy_options import (
    BaseModelsConfig,
    BulyanConfig,
    FedAdagradConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedAvgMConfig,
    FedMedianConfig,
    FedProxConfig,
    FedStackingConfig,
    FedTrimmedAvgConfig,
    FedXgbBaggingConfig,
    FedYogiConfig,
    KrumConfig,
    LocalConfig,
    MultiKrumConfig,
    NAverageConfig,
    PooledConfig,
    QFedAvgConfig,
    StrategyConfig,
    has_base_models,
)
from fl_app.errors import ConfigError, FederationError
from fl_app.federation.fedxgb import FedXgbBagging
from fl_app.federation.local import Local
from fl_app.federation.protocol import TRAIN_LOSS
from fl_app.federation.roster import Roster
from fl_app.models.boosted import require_xgboost
from fl_app.models.estimators import DEFAULTS
from fl_app.models.serving import Predictor
from fl_app.models.trees import MAX_TREES
from fl_app.seeding import generator
from fl_app.stacking.layout import bounds
from fl_app.stacking.members import LS, PRIOR, Member, pack_range
from fl_app.stacking.strategy import FedStacking, NAverage

__all__ = [
    "FedStacking",
    "Local",
    "NAverage",
    "build_strategy",
    "check_rows",
    "start_arrays",
    "strategy_of",
]

CLIENT_FOLDS_FROM = 50
"""Clients from which on FedStacking puts all rows of a client into one fold of the sums."""

# Flower's strategies take all nodes of the grid they see, which is the cohort: see federation/.
_ALL: dict[str, Any] = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}


def build_strategy(
    config: StrategyConfig, roster: Roster, learning_rate: float | None = None
) -> Strategy:
    """Build one of Flower's strategies, or the clients' own models, from its config alone.

    Parameters
    ----------
    config : StrategyConfig
        Name and parameters.
    roster : Roster
        The nodes of the run, for strategies that treat nodes as individuals.
    learning_rate : float, optional
        The clients' step size, from which q-FedAvg estimates a Lipschitz constant.
    """
    strategy: Strategy = builder_of(config)(config, roster, learning_rate, None, None)
    return strategy


def strategy_of(
    config: Config, roster: Roster, predictor: Predictor, learning_rate: float | None = None
) -> Strategy:
    """Build the strategy of a run.

    Parameters
    ----------
    config : Config
        The run's config.
    roster : Roster
        The nodes of the run.
    predictor : Predictor
        Gives FedStacking and boosted trees the shape of the models.
    learning_rate : float, optional
        The clients' first step, where the config says ``auto``.

    Raises
    ------
    ConfigError
        Where the nodes' rows do not suffice for what FedStacking is asked to do, or the package
        is missing that a strategy needs.
    """
    chosen = config.model.learning_rate
    rate = learning_rate if chosen == "auto" else chosen
    strategy: Strategy = builder_of(config.strategy)(
        config.strategy, roster, rate, config, predictor
    )
    return strategy


def _flower(kind: Callable[..., Strategy], **more: Any) -> Callable[..., Strategy]:
    """Return what builds a class of Flower's: its arguments have the names of the options."""

    def build(option: StrategyConfig, *_: Any) -> Strategy:
        options = {f.name: getattr(option, f.name) for f in fields(option)}
        del options["name"]
        return kind(**options, **more, **_ALL)

    return build


def _qfedavg(option: StrategyConfig, roster: Roster, rate: float | None, *_: Any) -> Strategy:
    return _flower(QFedAvg, client_learning_rate=rate, train_loss_key=TRAIN_LOSS)(option)


def _boosted(
    option: StrategyConfig, roster: Roster, rate: float | None, config: Config, predictor: Predictor
) -> Strategy:
    if config.runtime.name != "deployment":  # there its nodes need the package
        require_xgboost()
    return FedXgbBagging(predictor.ensemble, **_ALL)


def _pooled(option: PooledConfig, roster: Roster, rate: float | None, *run: Any) -> Strategy:
    if not has_base_models(option):
        return FedAvg(**_ALL)
    _check_trees(option, run[1].kinds().num_outputs)
    return NAverage(combine="rows", **_shape(roster, *run), **_ALL)


def _average(option: NAverageConfig, roster: Roster, rate: float | None, *run: Any) -> Strategy:
    return NAverage(combine=option.combine, **_shape(roster, *run), **_ALL)


def _stacking(
    option: FedStackingConfig,
    roster: Roster,
    rate: float | None,
    config: Config,
    predictor: Predictor,
) -> Strategy:
    shape = _shape(roster, config, predictor)
    check_rows(option, max(node.num_examples for node in roster), predictor.kinds().num_features)
    return FedStacking(
        num_rounds=config.num_server_rounds,
        global_member=option.global_member,
        num_folds=option.num_folds,
        client_folds=len(roster) >= CLIENT_FOLDS_FROM,
        min_rows_per_sum=option.min_rows_per_sum,
        max_members=option.max_members,
        personal_gate=option.personal_gate,
        num_features=len(predictor.encoding.columns),
        **shape,
        **_ALL,
    )


def _shape(roster: Roster, config: Config, predictor: Predictor) -> dict[str, Any]:
    """Return what strategies of base models are told of them."""
    members = predictor.kinds()
    return {
        "num_outputs": members.num_outputs,
        "bounds": _bounds(config, roster, predictor),
        "partitions": roster.partitions,
        "check_member": members.check,
    }


def _check_trees(option: BaseModelsConfig, num_outputs: int) -> None:
    """Refuse more classes than the trees of a pooled reference have arrays for."""
    most = MAX_TREES // int(DEFAULTS["hist_gradient_boosting"]["max_iter"])
    if option.base_models == ("hist_gradient_boosting",) and num_outputs > most:
        names = list(option.base_models)
        raise ConfigError("strategy.base_models", names, f"another for more than {most} classes")


def check_rows(strategy: StrategyConfig, most: int, num_features: int) -> None:
    """Refuse FedStacking's folds and sums where no client has rows enough.

    Parameters
    ----------
    strategy : StrategyConfig
        Any strategy's config.
    most : int
        Training rows of the largest client.
    num_features : int
        D.

    Raises
    ------
    ConfigError
        For more folds than rows, or least squares over too few rows.
    """
    if not isinstance(strategy, FedStackingConfig):
        return
    if strategy.num_folds > most:
        allowed = f"at most {most}, the training rows of the largest client"
        raise ConfigError("strategy.num_folds", strategy.num_folds, allowed)
    needed = int(np.ceil(strategy.ls_rows_per_feature * (num_features + 1)))
    if strategy.global_member == LS and most < needed:
        raise ConfigError(
            "strategy.global_member",
            LS,
            f"fedavg or none: the largest client has {most} training rows, and sums over fewer "
            f"than {needed} with {num_features} features are not made",
        )


def _bounds(
    config: Config, roster: Roster, predictor: Predictor
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the range of the targets in the models' unit; None for classification.

    What several clients' models say is clipped to it; of a model of all rows nothing is.
    """
    encoding = predictor.encoding
    if encoding.task == "classification":
        return None
    if not roster.target_mean:
        raise FederationError(
            f"no node has min_rows={config.min_rows} rows, so there are no moments of the target, "
            f"which strategy={config.strategy.name} needs; set a smaller min_rows"
        )
    scale = np.array(encoding.target_scale)
    mean = (np.array(roster.target_mean) - np.array(encoding.target_mean)) / scale
    variance = np.array(roster.target_variance) / np.square(scale)
    return bounds(mean, variance, *([1e6] if config.strategy.is_pooled else []))


def start_arrays(config: Config, roster: Roster, predictor: Predictor) -> dict[str, NDArray[Any]]:
    """Return the global arrays before the first round.

    Parameters
    ----------
    config : Config
        The run's config.
    roster : Roster
        The nodes of the run; gives class shares and target moments.
    predictor : Predictor
        Builds the model.
    """
    strategy = config.strategy
    if isinstance(strategy, FedXgbBaggingConfig):
        return predictor.ensemble.begin(_constant(roster, predictor))
    global_member = getattr(strategy, "global_member", "none")
    if not has_base_models(strategy) or global_member == "fedavg":
        return predictor.build().start(generator(config.seed, "model"))
    members, limits = predictor.kinds(), _bounds(config, roster, predictor)
    if global_member == LS:
        nothing = Member(LS, {"weights": np.zeros((members.num_features + 1, members.num_outputs))})
        return nothing.to_arrays("global") | pack_range(*(limits or ((), ())))
    if limits is None:
        return {PRIOR: np.array(_constant(roster, predictor))}
    return {PRIOR: (np.array(limits[0]) + np.array(limits[1])) / 2}


def _constant(roster: Roster, predictor: Predictor) -> list[float]:
    """Return the classes' shares, or the targets' mean in the models' unit; else equal ones, 0."""
    encoding = predictor.encoding
    if encoding.task == "classification":
        shares = list(roster.label_shares)
        return shares if any(shares) else [1 / len(encoding.labels)] * len(encoding.labels)
    targets = zip(roster.target_mean, encoding.target_mean, encoding.target_scale, strict=False)
    known = [(mean - model_mean) / scale for mean, model_mean, scale in targets]
    return known or [0.0] * len(encoding.targets)


register(FedAvgConfig, build=_flower(FedAvg))
register(FedProxConfig, build=_flower(FedProx))
register(FedAvgMConfig, build=_flower(FedAvgM))
register(FedAdamConfig, build=_flower(FedAdam))
register(FedYogiConfig, build=_flower(FedYogi))
register(FedAdagradConfig, build=_flower(FedAdagrad))
register(FedMedianConfig, build=_flower(FedMedian))
register(FedTrimmedAvgConfig, build=_flower(FedTrimmedAvg))
register(KrumConfig, build=_flower(Krum))
register(MultiKrumConfig, build=_flower(MultiKrum))
register(BulyanConfig, build=_flower(Bulyan))
register(QFedAvgConfig, build=_qfedavg)
register(FedXgbBaggingConfig, build=_boosted)
register(FedStackingConfig, build=_stacking)
register(NAverageConfig, build=_average)
register(LocalConfig, build=lambda own, roster, *_: Local(roster, **_ALL))
register(PooledConfig, build=_pooled)
