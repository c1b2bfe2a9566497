"""What FedStacking's two ends say to each other, one message and one reply a phase.

Each has one encoder, ``to_arrays``, and one decoder, ``from_arrays``, which both ends use. Decoders
raise :class:`~fl_app.errors.DataError` for names that make no message; whether the numbers make
sense is checked by the phase (:mod:`fl_app.stacking.phases`). The names are those of the contract
in :class:`~fl_app.stacking.strategy.FedStacking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any, Protocol, Self

from numpy.typing import NDArray

from fl_app.errors import DataError
from fl_app.models.base import Arrays
from fl_app.stacking.layout import Layout
from fl_app.stacking.members import (
    WEIGHTS,
    Member,
    pack,
    pack_members,
    pack_range,
    unpack,
    unpack_members,
    unpack_range,
)
from fl_app.stacking.pooled_sums import Sums

__all__ = [
    "BaseModel",
    "CollectMessage",
    "CollectReply",
    "Packed",
    "SelectMessage",
    "SelectReply",
    "StackMessage",
    "StackReply",
]


class Packed(Protocol):
    """A message or a reply."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays that travel."""

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Read :meth:`to_arrays`'s form back."""


@dataclass(frozen=True)
class CollectMessage:
    """The global member to train, if there is one, and the targets' range."""

    trained: Arrays
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays that travel."""
        return pack_range(self.low, self.high) | pack("global", self.trained)

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> CollectMessage:
        """Read :meth:`to_arrays`'s form back."""
        return cls(unpack("global", arrays), *unpack_range(arrays))


@dataclass(frozen=True)
class BaseModel:
    """A client's base model, its rows of each class, and its sums for least squares, if any."""

    member: Member
    counts: NDArray[Any]
    linear: Sums | None = None


@dataclass(frozen=True)
class CollectReply:
    """The global member after local training, and once the base model."""

    trained: Arrays
    base: BaseModel | None = None

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays that travel."""
        arrays = pack("global", self.trained)
        if self.base is not None:
            arrays |= self.base.member.to_arrays("base") | {"counts": self.base.counts}
            if self.base.linear is not None:
                arrays |= pack("linear", self.base.linear.to_arrays())
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> CollectReply:
        """Read :meth:`to_arrays`'s form back."""
        member, base = Member.from_arrays("base", arrays), None
        if member is not None:
            linear = unpack("linear", arrays)
            sums = Sums.from_arrays(linear) if linear else None
            base = BaseModel(member, _named("counts", arrays), sums)
        return cls(unpack("global", arrays), base)


@dataclass(frozen=True)
class StackMessage:
    """All models of the stack.

    Parameters
    ----------
    members : mapping of int to Member
        By partition.
    folds : sequence of Member
        Of least squares the models without each fold.
    weights : ndarray of shape (m, C), optional
        The members' average, where there is no global member.
    global_member : Member, optional
        The federation's own model.
    low, high : tuple of float
        The targets' range; empty for classification.
    """

    members: Mapping[int, Member]
    folds: Sequence[Member] = ()
    weights: NDArray[Any] | None = None
    global_member: Member | None = None
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def layout(self, num_outputs: int) -> Layout:
        """Return what the columns of the meta-features are."""
        has_global = bool(self.folds) or self.global_member is not None
        return Layout(len(self.members), num_outputs, has_global, self.low, self.high)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays that travel."""
        arrays = pack_range(self.low, self.high) | pack_members(self.members)
        for fold, without in enumerate(self.folds):
            arrays |= without.to_arrays(f"fold_{fold}")
        if self.weights is not None:
            arrays[WEIGHTS] = self.weights
        if self.global_member is not None:
            arrays |= self.global_member.to_arrays("global")
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Read :meth:`to_arrays`'s form back."""
        folds = (Member.from_arrays(f"fold_{fold}", arrays) for fold in count())
        return cls(
            unpack_members(arrays),
            [member for member in takewhile(bool, folds) if member],
            arrays.get(WEIGHTS),
            Member.from_arrays("global", arrays),
            *unpack_range(arrays),
        )


@dataclass(frozen=True)
class SelectMessage(StackMessage):
    """All models, and the candidates' weights by fold; with the gate those of all folds too."""

    candidates: Sequence[Mapping[int, NDArray[Any]]] = ()
    finals: Sequence[NDArray[Any]] = ()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays that travel."""
        arrays = super().to_arrays()
        for number, folds in enumerate(self.candidates):
            arrays |= {f"candidate/{number:02d}/{fold}": own for fold, own in folds.items()}
        return arrays | {f"final/{number:02d}": own for number, own in enumerate(self.finals)}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Read :meth:`to_arrays`'s form back."""
        table: dict[str, dict[int, NDArray[Any]]] = {}
        for name, array in unpack("candidate", arrays).items():
            number, _, fold = name.partition("/")
            table.setdefault(number, {})[int(fold)] = array
        return cls(
            **vars(StackMessage.from_arrays(arrays)),
            candidates=[table[number] for number in sorted(table)],
            finals=[array for _, array in sorted(unpack("final", arrays).items())],
        )


@dataclass(frozen=True)
class StackReply:
    """A client's sums."""

    sums: Sums

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays that travel."""
        return pack("sums", self.sums.to_arrays())

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> StackReply:
        """Read :meth:`to_arrays`'s form back."""
        return cls(Sums.from_arrays(unpack("sums", arrays)))


@dataclass(frozen=True)
class SelectReply:
    """Counts of each candidate, (A, 3), and with the gate what it is worth, (A, 4)."""

    scores: NDArray[Any]
    gates: NDArray[Any] | None = None

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays that travel."""
        return {"scores": self.scores} | ({} if self.gates is None else {"gates": self.gates})

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> SelectReply:
        """Read :meth:`to_arrays`'s form back."""
        return cls(_named("scores", arrays), arrays.get("gates"))


def _named(name: str, arrays: Arrays) -> NDArray[Any]:
    if name not in arrays:
        raise DataError("arrays", ", ".join(sorted(arrays)), f"an array {name}")
    return arrays[name]
