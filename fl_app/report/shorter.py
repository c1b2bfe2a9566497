"""Runs of one method that differ in their number of rounds alone, where that makes another model.

FedStacking has its model in its last round only. What it is worth for fewer bytes is told by a run
of its own with fewer rounds, and by no earlier round of a longer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fl_app.report.places import APART, Identity, Placed, Places, matches
from fl_app.report.runs import ROUNDS, RunSummary, listed, natural

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


def _family(run: RunSummary) -> Identity:
    """Return all that runs of one method share, their seed and data with it."""
    kept = (
        (name, value)
        for name, value in run.params.items()
        if name != ROUNDS and (name == "seed" or not matches(name, APART))
    )
    return (*sorted(kept), ("data.sha256", run.tags.get("data.sha256", "")))
