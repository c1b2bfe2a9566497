"""Runs of one method that differ in their number of rounds alone, where that makes another model.

FedStacking has its model in its last round only. What it is worth for fewer bytes is told by a run
of its own with fewer rounds, and by no earlier round of a longer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fl_app.report.places import APART, Identity, Placed, Places, matches
from fl_app.report.runs import ROUNDS, RunSummary, listed, natural

__all__ = ["Shorter", "aside_note", "longer_exist", "shorter_runs", "without_lone"]

Shorter = Mapping[str, tuple[RunSummary, ...]]
"""A run's id -> the runs of the same method, seed and data with fewer rounds, longest first."""


def shorter_runs(runs: Iterable[RunSummary]) -> dict[str, tuple[RunSummary, ...]]:
    """Return, for each run that is finished only at its end, its method's shorter runs.

    Parameters
    ----------
    runs : iterable of RunSummary
        FINISHED runs; of those with the same params the newest counts.

    Returns
    -------
    dict of str to tuple of RunSummary
        Without runs that have none.
    """
    runs = sorted(filter(_counts, runs), key=lambda r: (r.start_ms, r.run_id))
    families: dict[Identity, dict[int, RunSummary]] = {}
    for run in runs:
        families.setdefault(_family(run), {})[run.last_round] = run
    found = {}
    for run in runs:
        own = families[_family(run)]
        if rounds := sorted((r for r in own if r < run.last_round), reverse=True):
            found[run.run_id] = tuple(own[r] for r in rounds)
    return found


def longer_exist(runs: Iterable[RunSummary]) -> frozenset[str]:
    """Return the ids of the runs that are a shorter run of another one."""
    runs = tuple(filter(_counts, runs))
    longest: dict[Identity, int] = {}
    for run in runs:
        longest[_family(run)] = max(longest.get(_family(run), 0), run.last_round)
    return frozenset(run.run_id for run in runs if run.last_round < longest[_family(run)])


def without_lone(
    placed: Placed, places: Places, short: frozenset[str], unfinished: Iterable[RunSummary]
) -> Placed:
    """Leave out cells of shorter runs alone, which lack levels that other cells have.

    Parameters
    ----------
    placed : mapping
        The runs that count.
    places : Places
        Where runs belong.
    short : frozenset of str
        Ids of the runs that are shorter ones.
    unfinished : iterable of RunSummary
        Runs that did not finish: a cell where another method was tried is no cell of these alone.

    Returns
    -------
    mapping
        The others.
    """
    tried = {places.cell(run) for run in unfinished if not run.finished_last}
    levels: dict[Identity, set[Identity]] = {}
    others = set(tried)
    for (cell, level), seeds in placed.items():
        levels.setdefault(cell, set()).add(level)
        if not all(run.run_id in short for run in seeds.values()):
            others.add(cell)
    count = len(set().union(*levels.values()))
    return {
        (cell, level): seeds
        for (cell, level), seeds in placed.items()
        if cell in others or len(levels[cell]) == count
    }


def aside_note(runs: Iterable[RunSummary], placed: Placed, short: frozenset[str]) -> list[str]:
    """Say which shorter runs are no level of their own."""
    there = {run.run_id for seeds in placed.values() for run in seeds.values()}
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


def _counts(run: RunSummary) -> bool:
    return run.finished_last and ROUNDS in run.params


def _family(run: RunSummary) -> Identity:
    """Return all that runs of one method share, their seed and data with it."""
    kept = (
        (name, value)
        for name, value in run.params.items()
        if name != ROUNDS and (name == "seed" or not matches(name, APART))
    )
    return (*sorted(kept), ("data.sha256", run.tags.get("data.sha256", "")))
