"""When the metric first reaches a value, and how widely it spreads over clients: level by level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fl_app.config.strategy_options import is_pooled
from fl_app.report.budgets import bytes_by_round, stands_at
from fl_app.report.comparing import Comparison
from fl_app.report.intervals import mean_and_sd
from fl_app.report.pairing import Cell
from fl_app.report.rendering import scopes
from fl_app.report.runs import RunSummary

__all__ = ["Reached", "Spread", "first_reached", "reached", "spread", "spread_of"]


@dataclass(frozen=True)
class Reached:
    """When the runs of a level first reach the target.

    Parameters
    ----------
    cell, level : str
        Whose runs.
    num_runs, num_reached : int
        How many there are, and how many reach it.
    rounds, bytes : float or None
        Medians over the runs, of which those that never reach it come last; None where half of
        them never do, and of the bytes also where nobody counted.
    """

    cell: str
    level: str
    num_runs: int
    num_reached: int
    rounds: float | None
    bytes: float | None


@dataclass(frozen=True)
class Spread:
    """The metric's spread over clients after the last round, mean over seeds.

    Parameters
    ----------
    cell, level : str
        Whose runs.
    num_runs : int
        How many.
    worst, gap : (float, float or None) or None
        Of the worst client, and between it and the best one: mean and standard deviation as in the
        tables; None where a run does not tell, and of ``pooled``, whose one client is all of them.
    """

    cell: str
    level: str
    num_runs: int
    worst: tuple[float, float | None] | None
    gap: tuple[float, float | None] | None


def reached(c: Comparison) -> list[Reached]:
    """Return when each level reaches the target; [] where nobody asks for one."""
    if c.target is None:
        return []
    rows = []
    for scope, level, cells in _places(c):
        runs = [run for cell in cells for run in c.design.runs[cell.label, level].values()]
        found = [first_reached(run, c.metric, c.target, c.higher_is_better) for run in runs]
        rounds, sent = (list(values) for values in zip(*found, strict=True))
        count = sum(map(math.isfinite, rounds))
        rows.append(Reached(scope, level, len(runs), count, _median(rounds), _median(sent)))
    return rows


def first_reached(run: RunSummary, metric: str, target: float, higher: bool) -> tuple[float, float]:
    """Return the first round with at least (at most) the target, and what was sent till then.

    Parameters
    ----------
    run : RunSummary
        With the metric's curve. Only rounds count at which it has a model of its method.
    metric : str
        The metric.
    target : float
        The value.
    higher : bool
        Whether a larger value is better.

    Returns
    -------
    float, float
        Both infinite where it never does; NaN bytes where nobody counted.
    """
    sign, curve, sent = 1 if higher else -1, run.curves[metric], bytes_by_round(run)
    there = [r for r in sorted(stands_at(run, metric)) if sign * curve[r] >= sign * target]
    if not there:
        return math.inf, math.inf
    return there[0], sent.get(there[0], math.nan) if len(sent) > 1 else math.nan


def spread(c: Comparison) -> list[Spread]:
    """Return each level's spread over clients; [] where no run tells any."""
    rows = []
    for scope, level, cells in _places(c):
        told = {
            cell.label: {
                seed: spread_of(run, c.metric)
                for seed, run in c.design.runs[cell.label, level].items()
            }
            for cell in cells
        }
        num_runs = sum(map(len, told.values()))
        rows.append(Spread(scope, level, num_runs, _mean(told, "worst"), _mean(told, "gap")))
    return rows if any(row.worst or row.gap for row in rows) else []


def spread_of(run: RunSummary, metric: str) -> dict[str, float]:
    """Return a run's ``worst`` and ``gap`` over clients after its last round, as far as it tells.

    Parameters
    ----------
    run : RunSummary
        With its last metrics.
    metric : str
        The metric, of the server or of the clients.
    """
    if is_pooled(run.params.get("strategy.name")):
        return {}
    keys = {what: f"fairness/{metric.partition('/')[2]}_{what}" for what in ("worst", "gap")}
    return {what: run.metrics[key] for what, key in keys.items() if key in run.metrics}


def _mean(
    told: Mapping[str, Mapping[str, Mapping[str, float]]], what: str
) -> tuple[float, float | None] | None:
    """Return mean and deviation of what all runs tell; None where one does not."""
    if not all(what in own for seeds in told.values() for own in seeds.values()):
        return None
    return mean_and_sd(
        {cell: {seed: own[what] for seed, own in seeds.items()} for cell, seeds in told.items()}
    )


def _places(c: Comparison) -> Iterator[tuple[str, str, Sequence[Cell]]]:
    """Yield whose runs have a row of their own: a scope's name, a level, the cells."""
    for scope, cells in scopes(c):
        for level in c.levels:
            yield scope, level, cells


def _median(values: Sequence[float]) -> float | None:
    found = math.nan if any(map(math.isnan, values)) else median(values)
    return found if math.isfinite(found) else None
