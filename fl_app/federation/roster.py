"""Who takes part in a run: one entry a node, in order of partition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fl_app.config.schema import Config

__all__ = ["Node", "Roster"]


@dataclass(frozen=True)
class Node:
    """A node that passed the handshake.

    Parameters
    ----------
    node_id : int
        Flower's id, random for each run.
    partition : int
        The partition of its data, the node's name in every record.
    num_examples : int
        Training rows, as it told in the handshake.
    num_validation : int
        Rows kept for ``eval/``, likewise.
    left_out, left_out_validation : int, default 0
        Further rows of each kind that it leaves out, as they are of no class of the run.
    file_check : str or None, default None
        What tells its own file from another one.
    """

    node_id: int
    partition: int
    num_examples: int
    num_validation: int
    left_out: int = 0
    left_out_validation: int = 0
    file_check: str | None = None


@dataclass(frozen=True)
class Roster:
    """The nodes of a run, sorted by partition; node ids and partitions are unique.

    Parameters
    ----------
    nodes : tuple of Node
        Sorted by partition.
    label_shares : tuple of float
        Share of each of the C classes in the rows that nodes told of, training and validation rows
        together; uniform where none told of any; empty for regression.
    target_mean, target_variance : tuple of float
        Moments of the T targets in their raw unit, likewise; empty for classification.
    config : Config or None
        The run's config with the columns that its nodes agreed on, for messages to them.
    names : dict
        By class, and by level of each column, the partitions that told of it.
    """

    nodes: tuple[Node, ...]
    label_shares: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_variance: tuple[float, ...] = ()
    config: Config | None = None
    names: dict[str, Any] = field(default_factory=dict, compare=False)
    partitions: dict[int, int] = field(init=False, repr=False, compare=False)
    """Partition of each node id."""

    def __post_init__(self) -> None:
        partitions = [node.partition for node in self.nodes]
        if sorted(set(partitions)) != partitions:
            raise ValueError(f"partitions {partitions}: expected them sorted and unique")
        object.__setattr__(self, "partitions", {n.node_id: n.partition for n in self.nodes})

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        """Go through the nodes in order of partition."""
        return iter(self.nodes)
