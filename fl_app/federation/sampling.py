"""Who trains or evaluates in a round.

Flower's strategies draw nodes with a global, unseeded generator from a set without order. Here
the cohort is drawn by the run's seed over partitions, and the strategy is shown a grid that holds
just that cohort, from which it takes all.
"""

from __future__ import annotations

from collections.abc import Sequence

from fl_app.federation.roster import Node
from fl_app.seeding import generator

__all__ = ["choose_cohort"]


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
