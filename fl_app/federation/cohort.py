"""Who trains or evaluates in a round, and the part of the grid that a strategy sees.

Flower's strategies draw nodes with a global, unseeded generator from a set without order. Here
the cohort is drawn by the run's seed over partitions, and the strategy is shown a grid that holds
just that cohort, from which it takes all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fl_app.federation.roster import Node
from fl_app.seeding import generator

__all__ = ["GridView", "choose_cohort"]


def choose_cohort(
    nodes: Sequence[Node],
    fraction: float,
    at_least: int,
    seed: int,
    purpose: str,
    server_round: int,
) -> list[Node]:
    """Choose the nodes of one exchange.

    Parameters
    ----------
    nodes : sequence of Node
        Candidates, sorted by partition.
    fraction : float
        Share of them to take, rounded down as Flower does.
    at_least : int
        Take at least as many, if there are.
    seed : int
        The run's seed.
    purpose : str
        What the cohort is for; another word gives another draw.
    server_round : int
        The round.

    Returns
    -------
    list of Node
        Sorted by partition.
    """
    size = min(len(nodes), max(int(len(nodes) * fraction), at_least))
    if size == len(nodes):
        return list(nodes)
    rng = generator(seed, f"cohort-{purpose}", server_round)
    return [nodes[i] for i in sorted(rng.permutation(len(nodes))[:size].tolist())]


class GridView(Grid):
    """A grid that shows only some of its nodes; everything else is the grid's.

    Parameters
    ----------
    grid : Grid
        The whole grid.
    node_ids : sequence of int
        The nodes to show.
    """

    def __init__(self, grid: Grid, node_ids: Sequence[int]) -> None:
        self._grid, self._node_ids = grid, list(node_ids)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the shown nodes."""
        return list(self._node_ids)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)
