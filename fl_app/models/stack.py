"""The members of a stack by their older place and names: :mod:`fl_app.stacking.members`."""

from fl_app.stacking.members import (
    LS,
    MODEL,
    PRIOR,
    Member,
    Stack,
    StackModel,
    pack,
    pack_members,
    pack_range,
    unpack,
    unpack_members,
    unpack_range,
)
from fl_app.stacking.members import MemberModels as Kinds

__all__ = [
    "LS",
    "MODEL",
    "PRIOR",
    "Kinds",
    "Member",
    "Stack",
    "StackModel",
    "pack",
    "pack_members",
    "pack_range",
    "unpack",
    "unpack_members",
    "unpack_range",
]
