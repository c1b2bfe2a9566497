"""Runs of one method that differ in their number of rounds alone, where that makes another model.

FedStacking has its model in its last round only. What it is worth for fewer bytes is told by a run
of its own with fewer rounds, and by no earlier round of a longer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fl_app.report.groups import APART, Grouped, Identity, matches
from fl_app.report.runs import ROUNDS, RunSummary, idle, listed, natural

__all__ = ["Shorter", "aside_note", "shorter_runs", "without_lone"]

Shorter = Mapping[str, tuple[RunSummary, ...]]
"""A run's id -> the runs of the same method, seed and data with fewer rounds, longest first."""


def shorter_runs(runs: Iterable[RunSummary]) -> dict[str, tuple[RunSummary, ...]]:
    """Return, for each run that is finished only at its end, its method's shorter runs.

    Parameters
    ----------
    runs : iterable of RunSummary
        FINISHED runs.

    Returns
    -------
    dict of str to tuple of RunSummary
        Without runs that have none; of repeated ones the newest stands first.
    """
    families: dict[Identity, list[RunSummary]] = {}
    for run in runs:
        if run.finished_last and ROUNDS in run.params:
            families.setdefault(_family(run), []).append(run)
    found = {}
    for family in families.values():
        family.sort(key=lambda r: (r.last_round, r.start_ms, r.run_id), reverse=True)
        for run in family:
            if own := tuple(other for other in family if other.last_round < run.last_round):
                found[run.run_id] = own
    return found


def without_lone(groups: Grouped, tried: Grouped, short: frozenset[str]) -> Grouped:
    """Leave out cells of shorter runs alone, which lack levels that other cells have.

    Parameters
    ----------
    groups, tried : mapping
        The FINISHED runs and the others in their places: a cell where another method was tried is
        no cell of these alone.
    short : frozenset of str
        Ids of the runs that are shorter ones.

    Returns
    -------
    mapping
        The other places.
    """
    levels: dict[Identity, set[Identity]] = {}
    others = set()
    for (cell, level), seeds in groups.items():
        levels.setdefault(cell, set()).add(level)
        if not all(run.run_id in short for runs in seeds.values() for run in runs):
            others.add(cell)
    for (cell, _), seeds in tried.items():
        if not all(run.finished_last for runs in seeds.values() for run in runs):
            others.add(cell)
    count = len(set().union(*levels.values()))
    return {
        (cell, level): seeds
        for (cell, level), seeds in groups.items()
        if cell in others or len(levels[cell]) == count
    }


def aside_note(runs: Iterable[RunSummary], groups: Grouped, short: frozenset[str]) -> list[str]:
    """Say which shorter runs are no level of their own."""
    there = {run.run_id for seeds in groups.values() for its in seeds.values() for run in its}
    aside = [run for run in runs if run.run_id in short - there]
    if not aside:
        return []
    rounds = listed(sorted({run.params[ROUNDS] for run in aside}, key=natural))
    names = listed(sorted({run.params["strategy.name"] for run in aside}))
    count, many = len(aside), len(aside) > 1
    return [
        f"{count} run{'s' if many else ''} of {names} with {ROUNDS}={rounds} "
        f"count{'' if many else 's'} only at equal bytes, for longer runs of the same config and "
        "seed"
    ]


def _family(run: RunSummary) -> Identity:
    """Return all that runs of one method share, their seed and data with it."""
    kept = (
        (name, value)
        for name, value in run.params.items()
        if name not in {ROUNDS, *idle(run)} and (name == "seed" or not matches(name, APART))
    )
    return (*sorted(kept), ("data.sha256", run.tags.get("data.sha256", "")))
