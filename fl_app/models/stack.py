"""The stack of a FedStacking run by its older name: :mod:`fl_app.stacking.members`."""

from fl_app.stacking.members import Member, Stack, unpack, unpack_members

__all__ = ["Member", "Stack", "unpack", "unpack_members"]
