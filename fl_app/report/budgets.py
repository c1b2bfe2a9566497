"""Where two runs are compared: each at its end, at equal rounds, or at equal bytes.

*At its end*: each run at its last round. *Equal rounds*: both runs of a pair at the last round that
both have. *Equal bytes*: the budget of a pair is the smaller of the two runs' totals (up and down);
each run counts at its last round within it, round 0 (nothing sent) if need be.

A method whose model is finished in its last round only counts with no other round: what it scores
before is another method's model with more bytes. Where its end is not within the bytes, the longest
run of the same method counts that is, if there is one; where the other run has not its last round,
it has no place at equal rounds. What federates nothing has no bytes, and no place at equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fl_app.errors import InputError
from fl_app.report.pairing import Design
from fl_app.report.runs import BYTES, RunSummary, natural
from fl_app.report.shorter import Shorter

__all__ = [
    "NO_BYTES",
    "NO_RUN",
    "Budget",
    "Gap",
    "Pair",
    "Point",
    "UncountedError",
    "at_end",
    "bytes_by_round",
    "equal_bytes",
    "equal_rounds",
    "pair_up",
]


class UncountedError(Exception):
    """A pair that has no point at equal bytes: nobody counted, or no value is within the budget."""


NO_RUN, NO_BYTES = "none", "-"
"""What a table shows instead of numbers: no run of the method can stand there; it has no bytes."""


class _NowhereError(Exception):
    """A run that has no place at a budget."""

    def __init__(self, run: RunSummary, mark: str, why: str) -> None:
        super().__init__(why)
        self.run, self.mark = run, mark


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


@dataclass(frozen=True)
class Gap:
    """Two runs of one cell and one seed of which one has no place at a budget.

    Parameters
    ----------
    cell, seed : str
        Where they belong.
    level : str
        The level, of the two, that has no place.
    mark : str
        ``"none"`` where a run of it is missing, ``"-"`` where it has no bytes.
    why : str
        The reason, and what to do.
    """

    cell: str
    seed: str
    level: str
    mark: str
    why: str


_FEWEST_ROUNDS = 3  # of FedStacking
_COUNTS_CONTENT = "data.seed_draws"
"""A tag of runs whose bytes are those that the algorithm sends: it came with them."""

Budget = Callable[[RunSummary, RunSummary, str], tuple[Point, Point]]
"""Two runs and a metric -> where each of them counts."""


def stands_at(run: RunSummary, metric: str) -> set[int]:
    """Return the rounds at which a run has a model of its method, and a value of the metric."""
    rounds = set(run.curves.get(metric, {}))
    return rounds & {run.last_round} if run.finished_last else rounds


def at_end(one: RunSummary, other: RunSummary, metric: str) -> tuple[Point, Point]:
    """Return two runs, each at its last round."""
    first, second = (_point(run, metric, max(stands_at(run, metric))) for run in (one, other))
    return first, second


def equal_rounds(one: RunSummary, other: RunSummary, metric: str) -> tuple[Point, Point]:
    """Return two runs at the last round that both have.

    Raises
    ------
    InputError
        If they have none in common.
    """
    common = stands_at(one, metric) & stands_at(other, metric)
    last = [run for run in (one, other) if run.finished_last]
    if last and not common:
        late = max(last, key=lambda run: run.last_round)
        why = f"in round {late.last_round}, which the other has not"
        raise _NowhereError(late, NO_RUN, f"has its model only {why}")
    if not common:
        text = f"a round in common; {one.title} and {other.title} have none"
        raise InputError("--metric", metric, text)
    return _point(one, metric, max(common)), _point(other, metric, max(common))


def equal_bytes(
    one: RunSummary, other: RunSummary, metric: str, shorter: Shorter
) -> tuple[Point, Point]:
    """Return two runs, each at its last round within the smaller of their totals.

    Parameters
    ----------
    one, other : RunSummary
        The runs.
    metric : str
        The metric.
    shorter : mapping of str to tuple of RunSummary
        Run's id -> runs of its method with fewer rounds, which may stand for it.

    Raises
    ------
    UncountedError
        If a run's bytes are not known, it has no value within the budget, or only one of the two
        counts the run's description among its bytes, as records of older versions do.
    """
    for run in (one, other):
        if not run.federates:
            raise _NowhereError(run, NO_BYTES, "federates nothing and has no bytes")
    sent = [bytes_by_round(run) for run in (one, other)]
    if min(map(len, sent)) < 2 or (_COUNTS_CONTENT in one.tags) != (_COUNTS_CONTENT in other.tags):
        raise UncountedError
    budget = min(max(own.values()) for own in sent)
    first, second = (
        _within((run, *shorter.get(run.run_id, ())), metric, budget) for run in (one, other)
    )
    return first, second


def _within(runs: Sequence[RunSummary], metric: str, budget: float) -> Point:
    """Return the first of some runs, or one that may stand for it, at its last round in reach."""
    found = []
    for run in runs:
        if (_COUNTS_CONTENT in run.tags) == (_COUNTS_CONTENT in runs[0].tags):
            sent = bytes_by_round(run)
            rounds = stands_at(run, metric)
            found += [(r, run) for r in rounds if sent.get(r, math.inf) <= budget]
    if found:
        server_round, run = max(found, key=lambda pair: pair[0])
        return _point(run, metric, server_round)
    if not runs[0].finished_last:
        raise UncountedError
    raise _NowhereError(runs[0], NO_RUN, _too_dear(runs[-1]))


def _too_dear(run: RunSummary) -> str:
    """Say of a method whose shortest run sends more than the other one which run to make."""
    advice = "run it with fewer num_server_rounds"
    if run.last_round <= _FEWEST_ROUNDS:
        advice = "no fewer rounds exist: run the other with more"
    return f"has no finished run within the other's bytes; {advice}"


def pair_up(
    design: Design, level: str, baseline: str, metric: str, budget: Budget
) -> tuple[tuple[Pair, ...], tuple[Gap, ...]]:
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
    tuple of Pair, tuple of Gap
        By cell and seed: the pairs, and those that are none at this budget.
    """
    pairs, gaps = [], []
    for cell in design.cells:
        ours, theirs = design.runs[cell.label, level], design.runs[cell.label, baseline]
        for seed in sorted(ours, key=natural):
            try:
                pairs.append(Pair(cell.label, seed, *budget(ours[seed], theirs[seed], metric)))
            except _NowhereError as error:
                lacking = level if error.run is ours[seed] else baseline
                gaps.append(Gap(cell.label, seed, lacking, error.mark, str(error)))
    return tuple(pairs), tuple(gaps)


def bytes_by_round(run: RunSummary) -> dict[int, float]:
    """Return what a run had sent after each round, 0 before the first; of a reference only that."""
    up, down = (run.curves.get(name, {}) if run.federates else {} for name in BYTES)
    return {0: 0.0} | {r: up[r] + down[r] for r in sorted(up.keys() & down.keys())}


def _point(run: RunSummary, metric: str, server_round: int) -> Point:
    sent = bytes_by_round(run)
    value = run.curves[metric][server_round]
    return Point(run.run_id, server_round, value, sent.get(server_round) if len(sent) > 1 else None)
