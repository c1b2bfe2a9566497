"""Where two runs are compared: at equal rounds, or at equal bytes.

*Equal rounds*: both runs of a pair at the last round that both have. *Equal bytes*: the budget of a
pair is the smaller of the two runs' totals (up and down); each run counts at its last round within
it, round 0 (nothing sent) if need be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fl_app.errors import InputError
from fl_app.report.pairing import Design
from fl_app.report.runs import BYTES, RunSummary, natural

__all__ = [
    "Budget",
    "Pair",
    "Point",
    "UncountedError",
    "equal_bytes",
    "equal_rounds",
    "pair_up",
]


class UncountedError(Exception):
    """A pair that has no point at equal bytes: nobody counted, or no value is within the budget."""


@dataclass(frozen=True)
class Point:
    """A run at one of its rounds.

    Parameters
    ----------
    run_id : str
        The run.
    server_round : int
        The round.
    value : float
        The metric there.
    bytes : float or None
        What was sent up and down so far; None where nobody counted.
    """

    run_id: str
    server_round: int
    value: float
    bytes: float | None


@dataclass(frozen=True)
class Pair:
    """Two runs of one cell and one seed.

    Parameters
    ----------
    cell, seed : str
        Where they belong.
    level, baseline : Point
        The two runs.
    """

    cell: str
    seed: str
    level: Point
    baseline: Point

    @property
    def difference(self) -> float:
        """The level's value minus the baseline's."""
        return self.level.value - self.baseline.value


_COUNTS_CONTENT = "data.seed_draws"
"""A tag of runs whose bytes are those that the algorithm sends: it came with them."""

Budget = Callable[[RunSummary, RunSummary, str], tuple[Point, Point]]
"""Two runs and a metric -> where each of them counts."""


def equal_rounds(one: RunSummary, other: RunSummary, metric: str) -> tuple[Point, Point]:
    """Return two runs at the last round that both have.

    Raises
    ------
    InputError
        If they have none in common.
    """
    common = one.curves[metric].keys() & other.curves[metric].keys()
    if not common:
        text = f"a round in common; {one.title} and {other.title} have none"
        raise InputError("--metric", metric, text)
    return _point(one, metric, max(common)), _point(other, metric, max(common))


def equal_bytes(one: RunSummary, other: RunSummary, metric: str) -> tuple[Point, Point]:
    """Return two runs, each at its last round within the smaller of their totals.

    Raises
    ------
    UncountedError
        If a run's bytes are not known, it has no value within the budget, or only one of the two
        counts the run's description among its bytes, as records of older versions do.
    """
    sent = [bytes_by_round(run) for run in (one, other)]
    if min(map(len, sent)) < 2 or (_COUNTS_CONTENT in one.tags) != (_COUNTS_CONTENT in other.tags):
        raise UncountedError
    budget = min(max(own.values()) for own in sent)
    points = []
    for run, own in zip((one, other), sent, strict=True):
        within = [r for r, count in own.items() if count <= budget and r in run.curves[metric]]
        if not within:
            raise UncountedError
        points.append(_point(run, metric, max(within)))
    return points[0], points[1]


def pair_up(
    design: Design, level: str, baseline: str, metric: str, budget: Budget
) -> tuple[Pair, ...]:
    """Pair two levels in every cell and seed.

    Parameters
    ----------
    design : Design
        The runs in their places.
    level, baseline : str
        Labels of two levels, or one twice.
    metric : str
        The metric.
    budget : Budget
        Where two runs are compared.

    Returns
    -------
    tuple of Pair
        By cell and seed.
    """
    found = []
    for cell in design.cells:
        ours, theirs = design.runs[cell.label, level], design.runs[cell.label, baseline]
        for seed in sorted(ours, key=natural):
            found.append(Pair(cell.label, seed, *budget(ours[seed], theirs[seed], metric)))
    return tuple(found)


def bytes_by_round(run: RunSummary) -> dict[int, float]:
    """Return what a run had sent after each round, 0 before the first."""
    up, down = (run.curves.get(name, {}) for name in BYTES)
    return {0: 0.0} | {r: up[r] + down[r] for r in sorted(up.keys() & down.keys())}


def _point(run: RunSummary, metric: str, server_round: int) -> Point:
    sent = bytes_by_round(run)
    value = run.curves[metric][server_round]
    return Point(run.run_id, server_round, value, sent.get(server_round) if len(sent) > 1 else None)
