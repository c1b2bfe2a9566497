"""What a phase is on the server, what all of them know, and the checks of arrays that they share.

The phases are pure: mappings of arrays in, mappings of arrays out. Flower's messages are the
strategy's (:mod:`fl_app.stacking.strategy`). A phase lasts as long as a run and knows the one
before it: :class:`~fl_app.stacking.collecting.Collect`, then
:class:`~fl_app.stacking.choosing.SolveStack`, then :class:`~fl_app.stacking.choosing.Select`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.errors import ConfigError, DataError
from fl_app.models.base import Arrays
from fl_app.models.estimators import MAX_VALUE
from fl_app.stacking.members import Member
from fl_app.stacking.messages import Packed

__all__ = [
    "Made",
    "Phase",
    "Plan",
    "check_bounded",
    "check_finite",
    "check_form",
    "check_like",
    "check_sums",
]

GLOBAL_MEMBERS = ("fedavg", "ls", "none")


def check_finite(member: Member) -> None:
    """Reject a base model whose arrays are not finite, bounded numbers, or that has none."""
    if not member.arrays:
        raise DataError(f"base/{member.kind}", "no arrays", "at least one")
    for name, array in member.arrays.items():
        check_bounded(f"base/{member.kind}/{name}", array)


@dataclass(frozen=True)
class Plan:
    """The parameters of :class:`fl_app.stacking.strategy.FedStacking` that its phases need."""

    num_outputs: int
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
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
        most = 1 if self.max_members is None else self.max_members
        limits = (
            ("strategy.num_folds", self.num_folds, 2, "expected an integer >= 2"),
            ("strategy.min_rows_per_sum", self.min_rows_per_sum, 1, "expected an integer >= 1"),
            ("strategy.max_members", most, 1, "at least 1"),
            (
                "num_outputs",
                self.num_outputs,
                1 if self.low else 2,
                "expected 2 classes or 1 target",
            ),
        )
        for name, value, least, allowed in limits:
            if value < least:
                raise ConfigError(name, value, allowed)
        if self.global_member not in GLOBAL_MEMBERS:
            allowed = f"one of {', '.join(GLOBAL_MEMBERS)}"
            raise ConfigError("strategy.global_member", self.global_member, allowed)
        if self.combine not in ("rows", "classes", "votes")[: 1 if self.low else 3]:
            allowed = "rows; for classes also classes, votes"
            raise ConfigError("strategy.combine", self.combine, allowed)
        self.layout(1)  # rejects the range

    def layout(self, num_members: int) -> stacking.Layout:
        """Return what the columns of the meta-features are."""
        has_global = self.global_member != "none"
        return stacking.Layout(num_members, self.num_outputs, has_global, self.low, self.high)


@dataclass(frozen=True)
class Made:
    """What a phase made of a round: the model, metrics ``stack/…``, and tables."""

    arrays: Arrays
    metrics: Mapping[str, float]
    texts: Mapping[str, str] = field(default_factory=dict)


class Phase(Protocol):
    """What a round does."""

    name: ClassVar[str]
    reply: ClassVar[type[Packed]]

    def begin(self, sent: Arrays, keys: Sequence[int], server_round: int) -> None:
        """Begin a round with the arrays that the strategy has and the clients that it asks."""

    def group(self, key: int) -> Hashable:
        """Return all that makes one client's message differ from another's."""

    def ask(self, group: Any) -> tuple[Mapping[str, Any], Packed]:
        """Return the phase's own settings, and what clients of a group are sent."""

    def check(self, reply: Any, rows: int) -> None:
        """Raise for a reply over so many rows that does not keep the contract."""

    def take(self, replies: Mapping[int, Any], rows: Mapping[int, int]) -> Made:
        """Make the model of the replies and their rows, both by client in rising order."""


def check_sums(plan: Plan, part: stacking.Sums, width: int, rows: int, *, bounded: bool) -> None:
    """Reject sums that are not of the plan's form or not over so many rows."""
    stacking.check_sums(
        part,
        width=width,
        num_outputs=plan.num_outputs,
        num_folds=plan.num_folds,
        num_examples=rows,
        bounded=bounded,
    )


def check_form(name: str, array: NDArray[Any], dtype: type[Any], shape: tuple[int, ...]) -> None:
    """Reject an array of another dtype or shape."""
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        allowed = f"{np.dtype(dtype).name} of shape {shape}"
        raise DataError(name, f"{array.dtype} {array.shape}", allowed)


def check_like(prefix: str, arrays: Arrays, pattern: Arrays) -> None:
    """Reject arrays that differ from a pattern in names, dtypes or shapes, or are not bounded."""
    if arrays.keys() != pattern.keys():
        raise DataError(prefix, ", ".join(sorted(arrays)), f"arrays {', '.join(pattern)}")
    for name, like in pattern.items():
        check_form(name, arrays[name], like.dtype.type, like.shape)
        check_bounded(f"{prefix}/{name}", arrays[name])


def check_bounded(name: str, array: NDArray[Any]) -> None:
    """Reject what is no number, or one whose square a sum could not hold."""
    numeric = array.dtype.kind in "fiub"
    if not numeric or not (np.abs(array.astype(np.float64)) <= MAX_VALUE).all():
        allowed = f"finite numbers of at most {MAX_VALUE:g}"
        raise DataError(name, array.ravel()[:8], allowed)
