"""What the phases on the server know of a run, and what they make of a round.

The phases are pure: mappings of arrays in, mappings of arrays out. Flower's messages are the
strategy's (:mod:`fl_app.stacking.strategy`). A phase lasts as long as a run and knows the one
before it: :class:`~fl_app.stacking.collecting.Collect`, then
:class:`~fl_app.stacking.choosing.SolveStack`, then :class:`~fl_app.stacking.choosing.Select`. Each
has a ``name``, the class of its ``reply``, and three methods. Clients are known by a key, in a run
of ours their partition.

``ask(sent, keys, server_round)``
    Takes the arrays that the strategy has and the clients that it asks; yields the phase's own
    settings, a message, and the clients that are sent it.
``check(reply, rows)``
    Raises for a reply over so many rows that does not keep the contract.
``take(answers)``
    Makes the model of the replies and their rows, by client in rising order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_app import stacking
from fl_app.aggregation import checked
from fl_app.config.checking import allowed, facts, is_within
from fl_app.config.strategy_options import FedStackingConfig
from fl_app.errors import ConfigError, DataError
from fl_app.models.base import Arrays
from fl_app.models.estimators import MAX_VALUE
from fl_app.stacking.members import Member
from fl_app.stacking.messages import Bounds, Packed

__all__ = ["Asked", "Made", "Plan", "check_finite", "check_sums"]

Asked = Iterable[tuple[Mapping[str, Any], Packed, Sequence[int]]]
"""Settings, the message, and the clients that are sent it."""


def check_finite(member: Member) -> None:
    """Reject a base model whose arrays are not finite, bounded numbers, or that has none."""
    if not member.arrays:
        raise DataError(f"base/{member.kind}", "no arrays", "at least one")
    for name, array in member.arrays.items():
        where = f"base/{member.kind}/{name}"
        if array.dtype.kind not in "fiub":
            raise DataError(where, array.ravel()[:8], "numbers")
        checked(where, array, array.dtype, array.shape, MAX_VALUE)


@dataclass(frozen=True)
class Plan:
    """The parameters of :class:`fl_app.stacking.strategy.FedStacking` that its phases need."""

    num_outputs: int
    bounds: Bounds = ((), ())
    combine: str = "rows"
    global_member: str = "none"
    num_folds: int = 4
    client_folds: bool = False
    min_rows_per_sum: int = 3
    max_members: int | None = None
    personal_gate: bool = False
    check_member: Callable[[Member], None] = check_finite
    num_features: int | None = None

    def __post_init__(self) -> None:
        for key in ("num_folds", "min_rows_per_sum", "max_members", "global_member"):
            value, limits = getattr(self, key), facts(FedStackingConfig, key)
            if value is not None and not is_within(value, limits):
                expected = f"expected {allowed(FedStackingConfig, key)}"
                raise ConfigError(f"strategy.{key}", value, expected)
        if self.num_outputs < 1 + self.has_classes:
            raise ConfigError("num_outputs", self.num_outputs, "expected 2 classes or 1 target")
        if self.combine not in ("rows", "classes", "votes")[: 3 if self.has_classes else 1]:
            expected = "rows; for classes also classes, votes"
            raise ConfigError("strategy.combine", self.combine, expected)
        self.layout(1)  # rejects the range

    @property
    def has_classes(self) -> bool:
        """Whether the outputs are classes, not targets, which have a range."""
        return not self.bounds[0]

    def layout(self, num_members: int) -> stacking.Layout:
        """Return what the columns of the meta-features are."""
        has_global = self.global_member != "none"
        return stacking.Layout(num_members, self.num_outputs, has_global, *self.bounds)


@dataclass(frozen=True)
class Made:
    """What a phase made of a round: the model, metrics ``stack/…``, and tables."""

    arrays: Arrays
    metrics: Mapping[str, float]
    texts: Mapping[str, str] = field(default_factory=dict)


def check_sums(plan: Plan, part: stacking.Sums, width: int, rows: int, *, bounded: bool) -> None:
    """Reject sums that are not of the plan's form or not over so many rows."""
    form = {"width": width, "num_outputs": plan.num_outputs, "num_folds": plan.num_folds}
    stacking.check_sums(part, **form, num_examples=rows, bounded=bounded)
