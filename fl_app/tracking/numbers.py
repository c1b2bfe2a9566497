"""Numbers for clients: the partitions of their data, where anybody tells them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Numbers"]


class Numbers:
    """Gives every node of a run one number.

    That is its partition: as the caller says, else as the grid knows it, else as the node's replies
    tell it. Where nobody told any partition by the end of the first exchange, numbers are arbitrary
    for the whole run: from 0 on, by sorted node id, in the order in which rounds ask nodes. Where
    some are told, nodes of unknown partition are -1, -2 and so on.

    Parameters
    ----------
    given : mapping of int to int or None
        Node id -> partition; read when needed.
    """

    def __init__(self, given: Mapping[int, int] | None) -> None:
        self._given: Mapping[int, int] = {} if given is None else given
        self._told: dict[int, int] = {}
        self._order: dict[int, int] = {}
        self._unknown: dict[int, int] = {}
        self.arbitrary: bool | None = None if given is None else False
        """Whether numbers are no partitions; None while nobody can know."""

    @property
    def count(self) -> int:
        """Number of nodes that the run is known to have so far."""
        return max(len(self._given), len(self._order))

    def ask(self, grid: object) -> None:
        """Take the partitions that a grid knows, where each node has one of its own."""
        known = getattr(grid, "partitions", None)
        if isinstance(known, Mapping) and len(set(known.values())) == len(known):
            self._told |= known

    def tell(self, node_id: int, partition: int) -> bool:
        """Take what a node says of itself; False where it contradicts what is known."""
        others = (known for other, known in self._told.items() if other != node_id)
        if self._told.get(node_id, partition) != partition or partition in others:
            return False
        self._told[node_id] = partition
        return True

    def learn(self, node_ids: Iterable[int]) -> None:
        """See nodes."""
        for node_id in sorted(set(node_ids) - self._order.keys()):
            self._order[node_id] = len(self._order)

    def settle(self) -> bool:
        """Decide, after an exchange, what numbers are; True where they are found arbitrary."""
        if self.arbitrary is not None or not self._order:
            return False
        self.arbitrary = not any(node_id in self._told for node_id in self._order)
        return self.arbitrary

    def known(self, node_id: int) -> bool:
        """Return whether a node has a number before :meth:`settle` was called."""
        return self.arbitrary is not None or node_id in self._told

    def of(self, node_id: int) -> int:
        """Return a node's number."""
        if self.arbitrary:
            return self._order[node_id]
        number = self._given.get(node_id, self._told.get(node_id))
        return (
            number
            if number is not None
            else self._unknown.setdefault(node_id, -1 - len(self._unknown))
        )
