"""Training that diverged is not finished: a run's losses beside those of a constant model.

What is judged is the loss of the clients' training rows, ``train/mse`` or ``train/log_loss``: not
``eval/`` or ``server/``, which skew alone can spoil, and which choose nothing here. Everybody's
model can say the mean target or the classes' shares; a loss of many times that is no result.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl_app.config.schema import METRICS, Config, task_of
from fl_app.config.strategy_options import FedStackingConfig, FedXgbBaggingConfig
from fl_app.errors import DIVERGED, FederationError
from fl_app.federation.roster import Roster

__all__ = ["DivergenceError", "Ending", "constant_loss"]

log = logging.getLogger("fl_app")

AT_ONCE: Mapping[str, float] = {"mse": 1000.0}
"""Times the constant model's loss above which a run fails in that round; a log loss is bounded."""
AT_THE_END: Mapping[str, float] = {"mse": 10.0, "log_loss": 3.0}
"""Times the constant model's loss above which a run fails after its last round."""
_ROUNDING = 1e-9
_SERVER_RATES = ("eta", "server_learning_rate")


class DivergenceError(FederationError):
    """Training whose numbers are no result."""


def constant_loss(roster: Roster, num_classes: int) -> float | None:
    """Return the least loss of a model that ignores its features; None where nobody can know it.

    Parameters
    ----------
    roster : Roster
        Gives the moments of the targets or the shares of the classes.
    num_classes : int
        C; 0 for regression.

    Returns
    -------
    float or None
        Regression: the variance of the targets in their raw unit, the mean over targets. Otherwise
        the entropy of the classes' shares, of equal ones where no node told its counts. None
        without moments, and where there is only one target value or class.
    """
    if num_classes:
        shares = np.array(roster.label_shares if any(roster.label_shares) else [1.0] * num_classes)
        shares = shares[shares > 0] / shares.sum()
        loss = -float(shares @ np.log(shares))
    else:
        loss = float(np.mean(roster.target_variance)) if roster.target_variance else 0.0
    return loss if loss > 0 and math.isfinite(loss) else None


@dataclass
class Ending:
    """Watches a run's training loss and says how the run ends.

    Parameters
    ----------
    loss : str
        Name of the loss: ``mse`` or ``log_loss``.
    constant : float, optional
        The constant model's loss; without it only numbers that are not finite fail a run.
    remedy : str
        What to lower, for the error.
    lenient : bool, default False
        Whether only numbers that are not finite fail the run: where models are not meant to fit
        all rows (``local``), noise is added to them, or clients work against them.
    optimizes : bool, default False
        Whether the server makes steps of its own: then it may be its arrays, and not the clients'
        step, for which a round is thrown away.
    whose : str, default ""
        The model that is judged, where it is not the run's.

    Attributes
    ----------
    last : float or None
        The loss that the run's end is judged by.
    """

    loss: str = "loss"
    constant: float | None = None
    remedy: str = "lower model.learning_rate"
    lenient: bool = False
    optimizes: bool = False
    whose: str = ""
    last: float | None = None

    @classmethod
    def of(cls, config: Config, roster: Roster, num_classes: int) -> Ending:
        """Make the watch of a run with this config, these nodes and C classes."""
        attacked = config.faults.clients > 0 and config.faults.kind == "flip"
        return cls(
            METRICS[task_of(config.dataset)][0],
            constant_loss(roster, num_classes),
            _remedy(config),
            lenient=attacked or config.strategy.is_alone or config.privacy.is_private,
            whose="the global member's " if isinstance(config.strategy, FedStackingConfig) else "",
            optimizes=any(hasattr(config.strategy, name) for name in _SERVER_RATES),
        )

    @property
    def limit(self) -> float:
        """The loss above which a run fails at its end; infinity where there is none."""
        return math.inf if self.constant is None else AT_THE_END[self.loss] * self.constant

    def watch(self, server_round: int, loss: float | None) -> None:
        """Take in a round's training loss.

        Raises
        ------
        DivergenceError
            If it is not finite, or beyond all doubt.
        """
        if loss is None:
            return
        if not math.isfinite(loss):
            raise self.diverged(f"round {server_round}: train/{self.loss} is {loss}")
        self.last = loss
        factor = AT_ONCE.get(self.loss, math.inf)
        if not self.lenient and self.constant is not None and loss > factor * self.constant:
            raise self.diverged(f"round {server_round}: {self._beside_constant(loss)}")

    def stay(self, loss: float) -> None:
        """Take in the loss of a round that is thrown away; infinity where no reply was finite.

        A client's step that was too large leaves nothing behind. A server's does: the arrays that
        the clients began with, and end with if this was the last round.
        """
        if self.optimizes:
            self.last = loss

    def close(self) -> bool:
        """Judge the last round.

        Returns
        -------
        bool
            Whether the run, though finished, is worse than the constant model, which is warned of.

        Raises
        ------
        DivergenceError
            If its loss is no result.
        """
        if self.last is None:
            return False
        if not math.isfinite(self.last):
            raise self.diverged("no client could train on the last round's arrays")
        if self.constant is None:
            return False
        if not self.lenient and self.last > self.limit:
            raise self.diverged(self._beside_constant(self.last))
        worse = self.last > self.constant * (1 + _ROUNDING)
        if worse:
            log.warning("worse than a constant model: %s", self._beside_constant(self.last))
        return worse

    def diverged(self, what: str) -> DivergenceError:
        """Return the error: what was seen, and what to lower."""
        return DivergenceError(f"{what}: {DIVERGED}; {self.remedy}")

    def _beside_constant(self, loss: float) -> str:
        beside = f"a constant model's {self.constant:.4g}"
        return f"{self.whose}train/{self.loss} is {loss:.4g}, {beside}"


def _remedy(config: Config) -> str:
    """Say what to lower, as it is typed."""
    if isinstance(config.strategy, FedXgbBaggingConfig):  # it trains no model by steps
        return f"lower strategy.eta ({config.strategy.eta:g})"
    rate = config.model.learning_rate
    rates = [] if rate == "auto" else [f"model.learning_rate ({rate:g})"]
    for name in _SERVER_RATES:
        if hasattr(config.strategy, name):
            rates.append(f"strategy.{name} ({getattr(config.strategy, name):g})")
    parts = [f"lower {' or '.join(rates)}"] if rates else []
    if rate == "auto":
        parts.append("set a small model.learning_rate (it is auto)")
    return ", or ".join(parts)
