"""A stack as named arrays, and what it predicts.

What a federation makes of stacking travels, and is stored, as named arrays like any model's. The
names say what each array is:

==========================  ========================================================================
``coef``, ... (no slash)    the global member alone, as its model names its arrays
``prior``                   no model yet: class shares (C,) or target means (T,)
``global/<kind>/<array>``   the global member; ``<kind>`` is ``model`` or ``ls``
``member/<p>/<kind>/...``   the base model of partition p; ``<kind>`` is ``model`` or a base
                            estimator's name
``weights``                 how they are combined, (B, C) or (D, C), float32
``votes``                   [1] where each model has one vote, uint8; else not there
``low``, ``high``           the targets' range (T,), float64; regression only
==========================  ========================================================================

B, C, D and T are those of :class:`fl_app.stacking.Layout`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.aggregation import checked
from fl_app.config.options import Task
from fl_app.errors import DataError
from fl_app.models import estimators
from fl_app.models.base import Arrays, Model

__all__ = [
    "LS",
    "MODEL",
    "PRIOR",
    "Member",
    "MemberModels",
    "Stack",
    "StackModel",
    "check_like",
    "pack",
    "pack_members",
    "pack_range",
    "unpack",
    "unpack_members",
    "unpack_range",
]

MODEL, LS = "model", "ls"
"""Kinds besides the base estimators: the run's own model, and one-shot least squares."""
WEIGHTS, VOTES, PRIOR, LOW, HIGH = "weights", "votes", "prior", "low", "high"


def pack(prefix: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Put a prefix and a slash before the names of arrays."""
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def unpack(prefix: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Return the arrays under a prefix, without it."""
    start = f"{prefix}/"
    return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}


@dataclass(frozen=True)
class Member:
    """One model of a stack.

    Parameters
    ----------
    kind : str
        ``model``, ``ls`` or the name of a base estimator.
    arrays : mapping of str to ndarray
        Its arrays.
    """

    kind: str
    arrays: Arrays

    def to_arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Return its arrays under ``<prefix>/<kind>/``."""
        return pack(f"{prefix}/{self.kind}", self.arrays)

    @classmethod
    def from_arrays(cls, prefix: str, arrays: Arrays) -> Member | None:
        """Read :meth:`to_arrays`'s form back; None where there is nothing under the prefix.

        Raises
        ------
        DataError
            If there is more than one kind under it.
        """
        named = unpack(prefix, arrays)
        kinds = sorted({name.partition("/")[0] for name in named})
        if len(kinds) > 1:
            raise DataError(prefix, ", ".join(kinds), "one kind")
        return cls(kinds[0], unpack(kinds[0], named)) if kinds else None


@dataclass(frozen=True)
class Stack:
    """Members, global member and how they are combined.

    Parameters
    ----------
    members : mapping of int to Member
        By partition, in rising order.
    global_member : Member or None
        The federation's own model.
    weights : ndarray of shape (B, C) or (D, C)
        As in :func:`fl_app.stacking.combine`.
    low, high : tuple of float
        Range of each target, empty for classification.
    votes : bool, default False
        Whether each model gives its likeliest class 1 and the others 0, the first of equally
        likely ones.
    """

    members: Mapping[int, Member]
    global_member: Member | None
    weights: NDArray[Any]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    votes: bool = False

    @property
    def layout(self) -> stacking.Layout:
        """The columns of the meta-features."""
        return stacking.Layout(
            len(self.members),
            self.weights.shape[1],
            self.global_member is not None,
            self.low,
            self.high,
        )

    @property
    def models(self) -> list[Member]:
        """The members in order, then the global member."""
        return [*self.members.values(), *([self.global_member] if self.global_member else [])]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays."""
        arrays = pack_members(self.members)
        if self.global_member is not None:
            arrays |= self.global_member.to_arrays("global")
        if self.votes:
            arrays[VOTES] = np.ones(1, np.uint8)
        return arrays | {WEIGHTS: self.weights} | pack_range(self.low, self.high)

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Stack:
        """Read :meth:`to_arrays`'s form back."""
        low, high = unpack_range(arrays)
        members = unpack_members(arrays)
        alone = Member.from_arrays("global", arrays)
        return cls(members, alone, arrays[WEIGHTS], low, high, VOTES in arrays)


def pack_members(members: Mapping[int, Member]) -> dict[str, NDArray[Any]]:
    """Return the arrays of members under ``member/<partition>/<kind>/``."""
    arrays: dict[str, NDArray[Any]] = {}
    for partition, member in members.items():
        arrays |= member.to_arrays(f"member/{partition:03d}")
    return arrays


def unpack_members(arrays: Arrays) -> dict[int, Member]:
    """Read :func:`pack_members`'s form back, in the order of partitions."""
    named = unpack("member", arrays)
    partitions = sorted({name.partition("/")[0] for name in named}, key=int)
    members = {int(number): Member.from_arrays(number, named) for number in partitions}
    return {partition: member for partition, member in members.items() if member is not None}


def pack_range(low: Sequence[float], high: Sequence[float]) -> dict[str, NDArray[Any]]:
    """Return the targets' range as arrays; nothing for classification."""
    return {LOW: np.array(low), HIGH: np.array(high)} if low else {}


def unpack_range(arrays: Arrays) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read :func:`pack_range`'s form back."""
    if LOW not in arrays:
        return (), ()
    return tuple(arrays[LOW].tolist()), tuple(arrays[HIGH].tolist())


def check_like(field: str, arrays: Arrays, pattern: Arrays) -> None:
    """Reject arrays that differ from a pattern in names, dtypes or shapes, or are not bounded."""
    if arrays.keys() != pattern.keys():
        raise DataError(field, ", ".join(sorted(arrays)), f"arrays named {', '.join(pattern)}")
    for name, like in pattern.items():
        checked(f"{field}.{name}", arrays[name], like.dtype, like.shape, estimators.MAX_VALUE)


@dataclass(frozen=True)
class MemberModels:
    """What a federation's models are, whatever their kind.

    Parameters
    ----------
    model : Model
        The run's own model, of kind ``model``.
    task : {"regression", "classification"}
        The task.
    num_features, num_outputs : int
        D, and C or T.
    """

    model: Model
    task: Task
    num_features: int
    num_outputs: int

    def check(self, member: Member) -> None:
        """Reject arrays that are no complete, finite model of their kind.

        Raises
        ------
        DataError, ConfigError
            Naming the array, or the kind, and what is allowed.
        """
        if member.kind != MODEL:
            return estimators.check(
                member.kind,
                member.arrays,
                task=self.task,
                num_features=self.num_features,
                num_outputs=self.num_outputs,
            )
        return check_like(MODEL, member.arrays, self.model.start(np.random.default_rng(0)))

    def outputs(
        self, member: Member, x: NDArray[Any], layout: stacking.Layout
    ) -> NDArray[np.float64]:
        """Return what one model says of rows x of shape (n, D): (n, C) or (n, T)."""
        if member.kind == MODEL:
            with np.errstate(over="ignore", invalid="ignore"):
                outputs = self.model.predict(member.arrays, x).astype(np.float64)
            # Large parameters pass the check and may still overflow: such a row says nothing.
            nothing = 1 / self.num_outputs if self.task == "classification" else 0.0
            bound = estimators.MAX_VALUE
            return np.nan_to_num(outputs, nan=nothing, posinf=bound, neginf=-bound)
        if member.kind == LS:
            return stacking.predict_linear(layout, member.arrays[WEIGHTS], x)
        return estimators.predict(member.kind, member.arrays, x)


@dataclass(frozen=True)
class StackModel:
    """Predicts from the global arrays of any round of a stacking run.

    Parameters
    ----------
    models : MemberModels
        What its models are.
    """

    models: MemberModels

    def predict(self, arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
        """Return probabilities of shape (n, C), or targets of shape (n, T) in the models' unit."""
        if PRIOR in arrays:
            return np.tile(np.asarray(arrays[PRIOR], dtype=np.float64), (len(x), 1))
        if WEIGHTS in arrays:
            return self._combined(Stack.from_arrays(arrays), x)
        alone = Member.from_arrays("global", arrays)
        if alone is None:
            return self.models.model.predict(arrays, x)
        # Scores of least squares become probabilities as a stack of one model would make them.
        one = np.ones((1, self.models.num_outputs), np.float32)
        return self._combined(Stack({0: alone}, None, one, *unpack_range(arrays)), x)

    def _combined(self, stack: Stack, x: NDArray[Any]) -> NDArray[Any]:
        layout = stack.layout
        blocks = [self.models.outputs(model, x, layout) for model in stack.models]
        if stack.votes:
            blocks = [np.eye(layout.num_outputs)[block.argmax(axis=1)] for block in blocks]
        features = stacking.features(layout, blocks)
        return stacking.combine(layout, features, stack.weights)
