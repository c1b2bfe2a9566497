"""Client-level differential privacy: our own mean of clipped updates, noised before any optimizer.

A round asks K clients. Each reply's update (its arrays minus what was sent) is clipped to the norm
C; the sum over the replies is divided by K, whoever replied, and Gaussian noise of deviation z C/K
is added. What was sent plus this noised mean is all that the strategy gets, as one reply, so FedAvg
returns it and a server optimizer only post-processes it. Flower's wrappers noise the strategy's
*output* instead, which one client moves by many times C/K where there is an optimizer.

**What epsilon is for**: one client's reply present or absent, K and the cohort being public. An
absent reply adds 0 to every noised sum, a present one at most C (and 1/2 to the count below), so
z is the noise multiplier of the round. One client *replaced* by another moves the sums by twice
that. A round counts once its messages are made, also if too few replies come back. Flower's Rényi
accountant (dp-accounting) adds up, without amplification by sampling: cohorts are drawn by the
run's seed, which is no secret.

**What it leaves out** (:data:`LEFT_OUT`): what the handshake tells, metrics, who replied.

``dp_adaptive`` lets C follow a quantile of the updates' norms, by a noised count of those within
C. Noise comes from the operating system's entropy and has no seed. It is Gaussian in double
precision: attacks on the last bits of floating-point noise (Mironov 2012,
https://doi.org/10.1145/2382196.2382264) are not defended against.

References
----------
McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models" (clipped updates,
a fixed denominator), https://arxiv.org/abs/1710.06963.
Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping",
https://arxiv.org/abs/1905.03871.
Mironov 2017, "Rényi Differential Privacy", https://arxiv.org/abs/1702.07476.
Dwork and Roth 2014, "The Algorithmic Foundations of Differential Privacy" (post-processing,
proposition 2.1), https://doi.org/10.1561/0400000042.
Box and Muller 1958, "A Note on the Generation of Random Normal Deviates",
https://doi.org/10.1214/aoms/1177706645.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import (
    GaussianPrivacyEvent,
    Grid,
    NeighboringRelation,
    PrivacyConfig,
    SamplingMethod,
)
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray

from fl_app.config import options
from fl_app.config.options import DpAdaptiveConfig, DpFixedConfig
from fl_app.config.registry import builder_of, register
from fl_app.config.schema import Config
from fl_app.errors import ConfigError, FederationError
from fl_app.federation import protocol
from fl_app.grid.arrays import hold, read
from fl_app.grid.messages import metric_record

__all__ = [
    "LEFT_OUT",
    "Private",
    "clipped",
    "count_deviation",
    "require_accountant",
    "system_normal",
    "update_multiplier",
    "with_privacy",
]

Arrays = Mapping[str, NDArray[Any]]
Noise = Callable[[tuple[int, ...]], NDArray[np.float64]]
"""Gives independent standard normal values of a shape."""

LEFT_OUT = "what the handshake tells (moments, label counts), train/ and eval/ metrics, who replied"
"""What is told un-noised, as the line with epsilon says it."""


def require_accountant(config: Config) -> None:
    """Check that the accountant's package is there, if the config needs it.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    if config.privacy.is_private and find_spec("dp_accounting") is None:
        allowed = "none, or install the accountant: pip install 'fl-app[privacy]'"
        raise ConfigError("privacy", config.privacy.name, allowed)


def with_privacy(strategy: Strategy, config: Config, num_nodes: int) -> Strategy:
    """Wrap a strategy as ``privacy=`` says.

    Parameters
    ----------
    strategy : Strategy
        With privacy one of Flower's that average, see ``schema.check``.
    config : Config
        The run's config.
    num_nodes : int
        Nodes of the run.
    """
    wrapped: Strategy = builder_of(config.privacy)(config, strategy, num_nodes)
    return wrapped


def _private(config: Config, strategy: FedAvg, num_nodes: int) -> Private:
    require_accountant(config)
    privacy = cast(DpFixedConfig | DpAdaptiveConfig, config.privacy)
    return Private(strategy, privacy, num_nodes)


class Private(Strategy):
    """Hands a strategy one reply a round, the noised mean of updates, and adds up what is spent.

    Parameters
    ----------
    strategy : FedAvg
        Of Flower's FedAvg family: whatever it does to one reply of weight 1 is post-processing.
    privacy : DpFixedConfig or DpAdaptiveConfig
        Noise multiplier, clipping norm and delta.
    num_nodes : int
        Nodes of the run.
    noise : callable (shape) -> ndarray, optional
        Standard normal values; by default :func:`system_normal`. For tests only: a seeded source,
        or zeros, is no privacy.

    Attributes
    ----------
    before_release : callable (int) -> None
        Called with the number of clients before any of them is asked: who keeps it can say after a
        crash what was spent.
    """

    def __init__(
        self,
        strategy: FedAvg,
        privacy: DpFixedConfig | DpAdaptiveConfig,
        num_nodes: int,
        noise: Noise | None = None,
    ) -> None:
        from flwr.serverapp import RdpAccountant

        self.strategy, self._privacy, self._nodes = strategy, privacy, num_nodes
        self._noise = noise or system_normal
        self._accountant = RdpAccountant(
            PrivacyConfig(
                privacy.delta,
                num_nodes,
                NeighboringRelation.ADD_OR_REMOVE_ONE,
                SamplingMethod.NO_AMPLIFICATION,
            )
        )
        self._norm = self._next_norm = (
            privacy.initial_clipping_norm
            if isinstance(privacy, DpAdaptiveConfig)
            else privacy.clipping_norm
        )
        self._sent: Arrays = {}
        self._asked = 0
        self.before_release: Callable[[int], None] = lambda asked: None

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, note what is sent and to how many, and count the round's release.

        Raises
        ------
        FederationError
            For an array that is not of floating-point numbers, to which no noise can be added.
        """
        self._sent = read(arrays)
        for name, values in self._sent.items():
            if values.dtype.kind != "f":
                raise FederationError(
                    f"privacy={self._privacy.name}: array {name} has dtype {values.dtype}; noise "
                    "is for floating-point numbers"
                )
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self.before_release(len(messages))
        self.spend(len(messages))
        return messages

    def spend(self, asked: int) -> None:
        """Count the release of a round that asks so many clients."""
        self._asked = asked
        multiplier = self._privacy.noise_multiplier
        self._accountant.compose(GaussianPrivacyEvent(multiplier, asked, self._nodes))

    def state_dict(self) -> dict[str, Any]:
        """Return the norm of the next round; what was spent is whoever's who keeps releases."""
        return {"norm": self._norm, "next_norm": self._next_norm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in :meth:`state_dict`."""
        self._norm, self._next_norm = state["norm"], state["next_norm"]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give the strategy what was sent plus the noised mean, as one reply of weight 1.

        The metrics are the strategy's own mean over the replies, by their rows and without noise.
        """
        replies = [message for message in replies if message.has_content()]
        mean = self._noised_mean([protocol.read_arrays(message) for message in replies])
        with np.errstate(over="ignore"):  # Federated refuses infinity
            moved = {
                name: (values + mean[name]).astype(values.dtype)
                for name, values in self._sent.items()
            }
        metrics = metric_record({self.strategy.weighted_by_key: 1})
        content = RecordDict({protocol.ARRAYS: hold(moved, copy=False), protocol.METRICS: metrics})
        one = Message(content, 0, MessageType.TRAIN)
        arrays, _ = self.strategy.aggregate_train(server_round, [one])
        contents = [message.content for message in replies]
        if not contents:
            return arrays, None
        return arrays, self.strategy.train_metrics_aggr_fn(contents, self.strategy.weighted_by_key)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Delegate."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def round_metrics(self, server_round: int) -> Mapping[str, float]:
        """Return epsilon and delta spent so far, and the norm that clipped in the round."""
        return {
            "privacy/epsilon": self.epsilon,
            "privacy/delta": self._privacy.delta,
            "privacy/clipping_norm": self._norm,
        }

    @property
    def epsilon(self) -> float:
        """Epsilon spent so far, with the round that is under way or failed."""
        return float(self._accountant.get_privacy_spent().epsilon)

    def statement(self) -> str:
        """Say in one line what was spent so far, for what, and what that leaves out."""
        rounds = self._accountant.num_releases
        return (
            f"privacy: epsilon {self.epsilon:.4g} at delta {self._privacy.delta:g} after {rounds} "
            f"round{'s' if rounds != 1 else ''}, for one client's reply present or absent; "
            f"not in it: {LEFT_OUT}"
        )

    def _noised_mean(self, replies: Iterable[Arrays]) -> dict[str, NDArray[np.float64]]:
        """Return the noised sum of clipped updates over the number of clients that were asked.

        Under ``dp_adaptive`` also set the norm of the next round, from the same replies.
        """
        privacy, asked = self._privacy, self._asked
        norm = self._norm = self._next_norm
        total = {name: np.zeros(values.shape) for name, values in self._sent.items()}
        within = 0.0  # sum over replies of b - 1/2, where b = 1 for an update within the norm
        for reply in replies:
            update, length = clipped(self._sent, reply, norm)
            within += 0.5 if length <= norm else -0.5
            for name, values in update.items():
                total[name] += values
        multiplier = privacy.noise_multiplier
        if isinstance(privacy, DpAdaptiveConfig):
            deviation = count_deviation(multiplier, asked)
            multiplier = update_multiplier(multiplier, deviation)
            share = 0.5 + (within + deviation * float(self._noise(()))) / asked
            self._next_norm = _followed(norm, share, privacy)
        scale = multiplier * norm / asked
        return {
            name: values / asked + scale * self._noise(values.shape)
            for name, values in total.items()
        }


def _followed(norm: float, share: float, privacy: DpAdaptiveConfig) -> float:
    """Return the norm of the next round, given the noised share of updates within this one."""
    above = share - privacy.target_clipped_quantile
    with np.errstate(over="ignore"):
        next_norm = norm * float(np.exp(-privacy.clip_norm_lr * above))
    if 0 < next_norm < math.inf:
        return next_norm
    raise FederationError(
        f"privacy=dp_adaptive: the clipping norm went from {norm:g} to {next_norm:g}; a smaller "
        "privacy.noise_multiplier or privacy.clip_norm_lr, or more clients, help"
    )


def clipped(
    sent: Arrays, reply: Arrays, norm: float
) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Return a reply's update, shortened to a norm.

    Parameters
    ----------
    sent, reply : mapping of str to ndarray
        Arrays of the same names and shapes, finite; left as they are.
    norm : float
        C, the largest Euclidean norm over all values of all arrays.

    Returns
    -------
    (update, length)
        In float64, and its norm before. An update whose norm is beyond float64 counts as 0.

    Examples
    --------
    >>> update, length = clipped({"w": np.zeros(2)}, {"w": np.array([3.0, 4.0])}, 2.5)
    >>> update["w"].tolist(), length
    ([1.5, 2.0], 5.0)
    """
    with np.errstate(over="ignore"):
        update = {n: np.subtract(reply[n], a, dtype=np.float64) for n, a in sent.items()}
        length = math.sqrt(sum(float(np.sum(np.square(a))) for a in update.values()))
    if not math.isfinite(length):
        return {name: np.zeros_like(values) for name, values in update.items()}, length
    if length > norm:
        update = {name: values * (norm / length) for name, values in update.items()}
    return update, length


def count_deviation(noise_multiplier: float, num_asked: int) -> float:
    """Return sigma_b, the deviation of the noise on the count of updates within the norm.

    Andrew et al. take K/20, which for few clients would leave the updates hardly any of the round's
    budget. It is at least z, so that the updates' own multiplier is at most 2/sqrt(3) = 1.155 z.
    """
    return max(num_asked / 20, noise_multiplier)


def update_multiplier(noise_multiplier: float, deviation: float) -> float:
    """Return z_delta, with which updates are noised where a count is released beside them.

    ``z_delta = (z^-2 - (2 sigma_b)^-2)^-1/2``: both releases together cost what one of multiplier z
    does, as one client moves the count by 1/2 (Andrew et al. 2021, theorem 1).

    Parameters
    ----------
    noise_multiplier : float
        z of the whole round.
    deviation : float
        sigma_b of the noise on the count.

    Raises
    ------
    ValueError
        Where the count alone costs as much as the round may: ``z < 2 sigma_b`` must hold.

    Examples
    --------
    >>> round(update_multiplier(1.0, 1.0), 4)
    1.1547
    """
    if not 0 < noise_multiplier < 2 * deviation:
        raise ValueError(
            f"noise_multiplier={noise_multiplier}, deviation of the count {deviation}: need "
            "0 < noise_multiplier < 2 * deviation"
        )
    return float(noise_multiplier / math.sqrt(1 - (noise_multiplier / (2 * deviation)) ** 2))


def system_normal(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Draw standard normal values from the operating system's entropy.

    NumPy's generators are not made for secrets: from the noise of one round one could work out
    that of the next. So every bit is the system's, by Box and Muller's method.
    """
    size = math.prod(shape)
    half = (size + 1) // 2
    words = np.frombuffer(os.urandom(16 * half), np.uint64).reshape(2, half)
    uniform = ((words >> np.uint64(11)) + 1.0) * 2.0**-53  # in (0, 1]
    radius, angle = np.sqrt(-2 * np.log(uniform[0])), 2 * np.pi * uniform[1]
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return np.asarray(values[:size].reshape(shape))


register(options.PrivacyConfig, build=lambda config, strategy, num_nodes: strategy)
register(DpFixedConfig, build=_private)
register(DpAdaptiveConfig, build=_private)
