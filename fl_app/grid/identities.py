"""The one identity that Flower keeps in a process, lent to its grids."""

from __future__ import annotations

import threading

from flwr.common.constant import (
    SUPERLINK_NODE_ID,
)
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Identities", "identities"]


class Identities:
    """Lends Flower's one ``TaskIdentity`` to the grids of this process.

    The grid that came last holds it; when one leaves, the last of the others does, and after all
    of them whoever held it before.
    """

    _NAMES = ("task_id", "run_id", "node_id")

    def __init__(self) -> None:
        # Reentrant: a collection inside these methods may release another grid's loan.
        self._lock = threading.RLock()
        self._loans: dict[object, tuple[int | None, ...]] = {}
        self._before: tuple[int | None, ...] = ()

    def lend(self, run_id: int) -> object:
        """Make a run the process's identity; return what :meth:`release` needs."""
        loan = object()
        with self._lock:
            if not self._loans:
                self._before = self._get()
            self._loans[loan] = (1, run_id, SUPERLINK_NODE_ID)
            self._set(self._loans[loan])
        return loan

    def release(self, loan: object) -> None:
        """End a loan."""
        with self._lock:
            values = self._loans.pop(loan)
            if self._get() == values:  # else another one holds it, perhaps not a grid
                self._set([*self._loans.values()][-1] if self._loans else self._before)

    def _get(self) -> tuple[int | None, ...]:
        """Read the identity; what is not set is None."""
        values: list[int | None] = []
        for name in self._NAMES:
            try:
                values.append(getattr(TaskIdentity, name))
            except RuntimeError:
                values.append(None)
        return tuple(values)

    def _set(self, values: tuple[int | None, ...]) -> None:
        """Set the identity; None makes it unset."""
        for name, value in zip(self._NAMES, values, strict=True):
            setattr(TaskIdentity, name, value)


identities = Identities()
