"""``model.learning_rate=auto``: one step for all clients, which grows and shrinks with the loss.

Before the first round the step is ``c / (1 + D)`` for D features, which is small enough for any
standardized table: 1 + D is the mean square of a row with its 1 for the intercept, so that the
squared loss's curvature is at most 2 (1 + D), and gradient descent is stable below 2 over it. The
log loss bends a quarter as much at most, and far less where it is small, hence the larger ``c``.

From there on it is *bold driver* over rounds: the step doubles after each round in which the loss
fell by more than 3 %, but for the last one, which nothing could repair. Where it rises by more than
a tenth, the round's work is thrown away and repeated at half the step, and from the first such
round on the step no longer grows.

References
----------
Battiti 1989, "Accelerated Backpropagation Learning: Two Optimization Methods" (bold driver),
Complex Systems 3: 331-342.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fl_app.config.options import Task
from fl_app.config.schema import Config, task_of
from fl_app.config.strategy_options import FedStackingConfig

__all__ = ["Losses", "Stepping", "first_step"]

Losses = Mapping[int, tuple[float, float]]
"""Rows and loss by partition; the loss of a reply that is not finite is infinity."""

FIRST: Mapping[Task, float] = {"regression": 1.0, "classification": 16.0}
"""The first step times 1 + D."""
GROWTH = 2.0
FALL = 0.97
"""Times the last loss below which the step grows."""
RISE = 1.1
"""Times the last loss above which a round is thrown away."""
MARGIN = 0.01
"""Share of the constant model's loss that a rise must also have: losses near 0 are noise."""
MAX_HALVINGS, MAX_FOR_FEW = 30, 3


def first_step(task: Task, num_features: int) -> float:
    """Return the step before anything is known of the loss.

    Parameters
    ----------
    task : {"regression", "classification"}
        The task.
    num_features : int
        D, after encoding.
    """
    return FIRST[task] / (1 + num_features)


@dataclass
class Stepping:
    """The step of the next round, from the losses of the rounds before.

    Parameters
    ----------
    step : float
        The first one.
    adapts : bool, default True
        False: the step stays as it is, and every round counts.
    limit : float, default inf
        What stands for the last loss where there is none: in the first round, and in one in which
        all clients are new.
    constant : float, default 0
        The constant model's loss, of which a rise must be more than a hundredth.
    num_rounds : int, optional
        Rounds that will be judged.

    Attributes
    ----------
    used : float
        The step of the last judged round.
    last_loss : float
        The loss of the last round that counted; NaN before there is one.
    went_back : bool
        Whether the last judged round was thrown away.

    Notes
    -----
    Nothing but the losses so far decides: given the same rounds again, it is in the same state.
    """

    step: float
    adapts: bool = True
    limit: float = math.inf
    constant: float = 0.0
    num_rounds: int | None = None
    used: float = field(init=False)
    last_loss: float = field(init=False, default=math.nan)
    went_back: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.used = self.step
        self._last: Losses = {}  # of each client the last that counted
        self._judged = 0
        self._thrown: Losses = {}  # of the round thrown away just before
        self._before = self.step  # the step of the first in a row of those
        self._halvings = 0
        self._grows = True
        self._given_up: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls,
        config: Config,
        num_features: int,
        limit: float = math.inf,
        constant: float | None = None,
    ) -> Stepping | None:
        """Return who decides on the step of a run with D features; None where nobody has to."""
        if config.model.learning_rate != "auto" or not config.strategy.descends:
            return None
        return cls(
            first_step(task_of(config.dataset), num_features),
            # Under `local` clients share no model; under privacy a step would tell of their losses.
            adapts=not config.strategy.is_alone and not config.privacy.is_private,
            limit=limit,
            constant=constant or 0.0,
            num_rounds=config.num_server_rounds - _others(config),
        )

    def counts(self, losses: Losses) -> bool:
        """Judge a round, and set the step of the next.

        A round is thrown away where the loss, merged over the clients that have replied before,
        rose by more than a tenth of what it was when each of them last did in a round that counted,
        and by more than a hundredth of the constant model's; unless half the step did not help:
        then the step is not to blame, the round counts, and the step is what it was. An infinite
        loss always throws a round away, but that of fewer than half of the clients not more than
        three times in a row; nor more rounds in a row whose clients are other ones each time.

        Parameters
        ----------
        losses : mapping of int to (float, float)
            Rows and loss of each reply by partition.

        Returns
        -------
        bool
            Whether the round counts; if not, the next one starts from the same arrays.

        Raises
        ------
        OverflowError
            If halving the step thirty times in a row did not help.
        """
        self.used, self.went_back = self.step, False
        self._judged += 1
        if not self.adapts:
            return True
        finite = {k: losses[k] for k in sorted(losses) if math.isfinite(losses[k][1])}
        lost = losses.keys() - finite.keys() - self._given_up
        few = 2 * len(lost) < len(losses)
        if lost and not (few and self._halvings >= MAX_FOR_FEW):
            return self._go_back({})
        self._given_up |= lost
        mean = merged(finite, finite)[0]
        loss, last = merged(finite, self._last)
        known = not math.isnan(loss)
        if not known:
            loss, last = mean, self.limit
        rose = loss > RISE * last + MARGIN * self.constant
        if rose:
            retried, thrown = merged(finite, self._thrown)
            others = math.isnan(retried) and self._halvings < MAX_FOR_FEW
            if not self._thrown or others or thrown > RISE * retried:
                return self._go_back(finite)
        if self._halvings and (rose or lost):
            self.step = self._before
        elif self._grows and known and loss < FALL * last and self._judged + 1 != self.num_rounds:
            self.step *= GROWTH
        self._last = {**self._last, **finite}
        self._thrown, self._halvings, self.last_loss = {}, 0, mean
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return all that is known of the rounds so far."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in :meth:`state_dict`."""
        vars(self).update(state)

    def _go_back(self, losses: Losses) -> bool:
        """Throw a round away."""
        if self._halvings == MAX_HALVINGS:
            raise OverflowError(f"{MAX_HALVINGS} times half the step, now {self.step:.3g}")
        if not self._halvings:
            self._before = self.step
        self._thrown = losses
        self._halvings += 1
        self._grows, self.went_back = False, True
        self.step /= 2
        return False


def _others(config: Config) -> int:
    """Return the rounds of a run in which no model is trained by steps."""
    return 2 if isinstance(config.strategy, FedStackingConfig) else 0


def merged(losses: Losses, others: Losses) -> tuple[float, float]:
    """Return two rounds' mean losses over the rows of the clients in both, NaN without any."""
    common = [k for k in losses if k in others]
    rows = sum(losses[k][0] for k in common)
    if not rows:
        return math.nan, math.nan
    first = sum(losses[k][0] * losses[k][1] for k in common) / rows
    return first, sum(losses[k][0] * others[k][1] for k in common) / rows
