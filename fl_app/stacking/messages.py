"""What FedStacking's two ends say to each other, one message and one reply a phase.

A field's name says how it travels: :data:`_FORMS` is all there is of encoding and decoding, at both
ends. Decoding raises :class:`~fl_app.errors.DataError` for names that make no message; whether the
numbers make sense is checked by the phase (:mod:`fl_app.stacking.phases`). The arrays' names are
those of the contract in :class:`~fl_app.stacking.strategy.FedStacking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from itertools import count, takewhile
from typing import Any, Self

from numpy.typing import NDArray

from fl_app.errors import DataError
from fl_app.models.base import Arrays
from fl_app.stacking import members as models
from fl_app.stacking.layout import Layout
from fl_app.stacking.members import Member, pack, unpack
from fl_app.stacking.pooled_sums import Sums

__all__ = [
    "BaseModel",
    "Bounds",
    "CollectMessage",
    "CollectReply",
    "Packed",
    "SelectMessage",
    "SelectReply",
    "StackMessage",
    "StackReply",
]

Bounds = tuple[tuple[float, ...], tuple[float, ...]]
"""Lowest and highest value of each target; empty for classification."""


@dataclass(frozen=True)
class Packed:
    """A message or a reply."""

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the named arrays that travel."""
        arrays: dict[str, NDArray[Any]] = {}
        for part in fields(self):
            encode, _ = _FORMS[part.name]
            value = getattr(self, part.name)
            arrays |= {} if value is None else encode(value)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Read :meth:`to_arrays`'s form back."""
        values = {}
        for part in fields(cls):
            _, decode = _FORMS[part.name]
            values[part.name] = value = decode(arrays)
            if value is None and part.default is MISSING:
                raise DataError("arrays", ", ".join(sorted(arrays)), f"an array {part.name}")
        return cls(**values)


@dataclass(frozen=True)
class CollectMessage(Packed):
    """The targets' range, and the global member to train, if there is one."""

    bounds: Bounds
    trained: Arrays


@dataclass(frozen=True)
class BaseModel(Packed):
    """A client's base model, its rows of each class, and its sums for least squares, if any."""

    member: Member
    counts: NDArray[Any]
    linear: Sums | None = None


@dataclass(frozen=True)
class CollectReply(Packed):
    """The global member after local training, and once the base model."""

    trained: Arrays
    base: BaseModel | None = None


@dataclass(frozen=True)
class StackMessage(Packed):
    """All models of the stack.

    Parameters
    ----------
    bounds : (tuple of float, tuple of float)
        The targets' range; empty for classification.
    members : mapping of int to Member
        By partition.
    folds : sequence of Member
        Of least squares the models without each fold.
    weights : ndarray of shape (m, C), optional
        The members' average, where there is no global member.
    global_member : Member, optional
        The federation's own model.
    """

    bounds: Bounds
    members: Mapping[int, Member]
    folds: Sequence[Member] = ()
    weights: NDArray[Any] | None = None
    global_member: Member | None = None

    def layout(self, num_outputs: int) -> Layout:
        """Return what the columns of the meta-features are."""
        has_global = bool(self.folds) or self.global_member is not None
        return Layout(len(self.members), num_outputs, has_global, *self.bounds)


@dataclass(frozen=True)
class SelectMessage(StackMessage):
    """All models, and the candidates' weights by fold; with the gate those of all folds too."""

    candidates: Sequence[Mapping[int, NDArray[Any]]] = ()
    finals: Sequence[NDArray[Any]] = ()


@dataclass(frozen=True)
class StackReply(Packed):
    """A client's sums."""

    sums: Sums


@dataclass(frozen=True)
class SelectReply(Packed):
    """Counts of each candidate, (A, 3), and with the gate what it is worth, (A, 4)."""

    scores: NDArray[Any]
    gates: NDArray[Any] | None = None


Form = tuple[Callable[[Any], Arrays], Callable[[Arrays], Any]]


def _array(name: str) -> Form:
    return lambda array: {name: array}, lambda arrays: arrays.get(name)


def _member(prefix: str) -> Form:
    return partial(Member.to_arrays, prefix=prefix), partial(Member.from_arrays, prefix)


def _sums(prefix: str) -> Form:
    return (
        lambda sums: pack(prefix, sums.to_arrays()),
        lambda arrays: Sums.from_arrays(named) if (named := unpack(prefix, arrays)) else None,
    )


def _decode_base(arrays: Arrays) -> BaseModel | None:
    return BaseModel.from_arrays(arrays) if unpack("base", arrays) else None


def _encode_folds(folds: Sequence[Member]) -> Arrays:
    named = (member.to_arrays(f"fold_{fold}") for fold, member in enumerate(folds))
    return {name: array for arrays in named for name, array in arrays.items()}


def _decode_folds(arrays: Arrays) -> list[Member | None]:
    return [*takewhile(bool, (Member.from_arrays(f"fold_{fold}", arrays) for fold in count()))]


def _encode_candidates(candidates: Sequence[Mapping[int, NDArray[Any]]]) -> Arrays:
    return {
        f"candidate/{number:02d}/{fold}": weights
        for number, by_fold in enumerate(candidates)
        for fold, weights in by_fold.items()
    }


def _decode_candidates(arrays: Arrays) -> list[dict[int, NDArray[Any]]]:
    table: dict[str, dict[int, NDArray[Any]]] = {}
    for name, weights in unpack("candidate", arrays).items():
        number, _, fold = name.partition("/")
        table.setdefault(number, {})[int(fold)] = weights
    return [table[number] for number in sorted(table)]


_FORMS: Mapping[str, Form] = {
    **{name: _array(name) for name in ("counts", "weights", "scores", "gates")},
    **{name: _sums(name) for name in ("linear", "sums")},
    "bounds": (lambda bounds: models.pack_range(*bounds), models.unpack_range),
    "trained": (partial(pack, "global"), partial(unpack, "global")),
    "base": (BaseModel.to_arrays, _decode_base),
    "member": _member("base"),
    "members": (models.pack_members, models.unpack_members),
    "folds": (_encode_folds, _decode_folds),
    "global_member": _member("global"),
    "candidates": (_encode_candidates, _decode_candidates),
    "finals": (
        lambda finals: {f"final/{number:02d}": weights for number, weights in enumerate(finals)},
        lambda arrays: [weights for _, weights in sorted(unpack("final", arrays).items())],
    ),
}
"""How each field is encoded and decoded; decoding gives None for an array that is not there."""
