"""Client-level differential privacy through Flower's server-side wrappers, with its cost.

Flower's wrappers clip each client's update and add Gaussian noise of deviation
``noise_multiplier * clipping_norm / K`` to the average. That is calibrated for a plain mean over
the K replies that really came, so here each reply weighs the same and K is counted anew in each
round. The privacy spent is added up by Flower's Rényi accountant (dp-accounting) without
amplification by sampling: cohorts are drawn by the run's seed, which is no secret.

What is protected are the weights of each round. The handshake's moments and clients' metrics are
told as they are; so are the figures made of them.

References
----------
McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models" (fixed clipping),
https://arxiv.org/abs/1710.06963.
Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping",
https://arxiv.org/abs/1905.03871.
Mironov 2017, "Rényi Differential Privacy", https://arxiv.org/abs/1702.07476.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from importlib.util import find_spec
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import (
    GaussianPrivacyEvent,
    Grid,
    NeighboringRelation,
    PrivacyConfig,
    SamplingMethod,
)
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)
from numpy.typing import NDArray

from fl_app.errors import ConfigError
from fl_app.held import hold, read
from fl_app.schema import Config, DpAdaptiveConfig, DpFixedConfig
from fl_app.wire import NUM_EXAMPLES

__all__ = ["Private", "require_accountant", "with_privacy"]

Arrays = Mapping[str, NDArray[Any]]


def require_accountant(config: Config) -> None:
    """Check that the accountant's package is there, if the config needs it.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    if config.privacy.name != "none" and find_spec("dp_accounting") is None:
        allowed = "none, or install the accountant: pip install 'fl-app[privacy]'"
        raise ConfigError("privacy", config.privacy.name, allowed)


def with_privacy(strategy: Strategy, config: Config, num_nodes: int) -> Strategy:
    """Wrap a strategy as ``privacy=`` says.

    Parameters
    ----------
    strategy : Strategy
        One that averages.
    config : Config
        The run's config.
    num_nodes : int
        Nodes of the run.
    """
    privacy = config.privacy
    if isinstance(privacy, DpFixedConfig):
        require_accountant(config)
        fixed = DifferentialPrivacyServerSideFixedClipping(
            strategy, privacy.noise_multiplier, privacy.clipping_norm, num_nodes
        )
        return Private(fixed, privacy.noise_multiplier, privacy.delta, num_nodes)
    if isinstance(privacy, DpAdaptiveConfig):
        require_accountant(config)
        noise = privacy.noise_multiplier
        adaptive = DifferentialPrivacyServerSideAdaptiveClipping(
            strategy,
            noise,
            num_nodes,
            privacy.initial_clipping_norm,
            privacy.target_clipped_quantile,
            privacy.clip_norm_lr,
            # Noise on the count of clipped updates: Flower's K/20, but never so little that the
            # noise on the weights would have to grow without bound to make up for it.
            max(num_nodes / 20, noise),
        )
        return Private(adaptive, noise, privacy.delta, num_nodes)
    return strategy


class Private(Strategy):
    """Gives a differential-privacy wrapper replies of equal weight, and adds up what is spent.

    Parameters
    ----------
    strategy : DifferentialPrivacyServerSideFixedClipping or ...AdaptiveClipping
        Flower's wrapper around the strategy.
    noise_multiplier : float
        Total noise multiplier of one round.
    delta : float
        The delta at which epsilon is told.
    num_nodes : int
        Nodes of the run.
    """

    def __init__(
        self,
        strategy: DifferentialPrivacyServerSideFixedClipping
        | DifferentialPrivacyServerSideAdaptiveClipping,
        noise_multiplier: float,
        delta: float,
        num_nodes: int,
    ) -> None:
        from flwr.serverapp import RdpAccountant

        self.strategy = strategy
        self._noise, self._delta, self._nodes = noise_multiplier, delta, num_nodes
        self._accountant = RdpAccountant(
            PrivacyConfig(
                delta,
                num_nodes,
                NeighboringRelation.ADD_OR_REMOVE_ONE,
                SamplingMethod.NO_AMPLIFICATION,
            )
        )
        self._norm = 0.0
        self._start: Arrays = {}

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, and remember what is sent."""
        self._start = read(arrays)
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip, average with equal weights, add noise, and count the release."""
        equal = [_equal_weight(_moved(message, self._start)) for message in replies]
        self.strategy.num_sampled_clients = len(equal)
        self._norm = self.strategy.clipping_norm
        result = self.strategy.aggregate_train(server_round, equal)
        self._accountant.compose(GaussianPrivacyEvent(self._noise, len(equal), self._nodes))
        return result

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Delegate."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def round_metrics(self, server_round: int) -> Mapping[str, float]:
        """Return epsilon and delta spent so far, and the clipping norm of the round."""
        spent = self._accountant.get_privacy_spent()
        return {
            "privacy/epsilon": spent.epsilon,
            "privacy/delta": self._delta,
            "privacy/clipping_norm": self._norm,
        }


def _moved(message: Message, start: Arrays) -> Message:
    """Return a reply whose update is not exactly zero: Flower's clipping divides by its norm.

    A reply that is what was sent is moved in one value by one unit in the last place, which is
    nothing beside the noise.
    """
    name, record = next(iter(message.content.array_records.items()))
    arrays = read(record)
    if any((arrays[key] != start[key]).any() for key in start):
        return message
    key = next(iter(start))
    values = start[key].copy()
    first = values.reshape(-1)[:1]
    first += np.maximum(np.spacing(np.abs(first)), 2 * np.sqrt(np.finfo(values.dtype).tiny))
    moved = copy(message)
    records: dict[str, Any] = dict(message.content.items())
    moved.content = RecordDict({**records, name: hold({**start, key: values})})
    return moved


def _equal_weight(message: Message) -> Message:
    """Return a reply of weight 1; the wrapper writes into what it is given, so it is a copy."""
    records: dict[str, Any] = dict(message.content.items())
    for name, record in message.content.metric_records.items():
        records[name] = MetricRecord({**record, NUM_EXAMPLES: 1})
    equal = copy(message)
    equal.content = RecordDict(records)
    return equal
