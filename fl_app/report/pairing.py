"""Which run is compared with which, and what is refused.

Runs are a *level* of the compared key (``strategy=fedavg``), in a *cell* (all params besides that
are not ignored), with a *seed*. Two levels are paired within a cell and a seed. A comparison needs
every level in every cell with the same seeds, on the same data and the same split; what falls short
of that is refused, never repaired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fl_app.errors import InputError
from fl_app.report.checks import check_complete, check_data
from fl_app.report.origins import same_bytes, under_one_path
from fl_app.report.places import Identity, Key, Placed, Places, matches
from fl_app.report.runs import PATHS, RunSummary, label_order, listed, same_value, tell_apart

__all__ = ["Cell", "Design", "arrange"]


@dataclass(frozen=True)
class Cell:
    """Runs that agree on everything but the compared key and the seed.

    Parameters
    ----------
    label : str
        What tells it from the other cells; "" for the only one.
    params : mapping of str to str
        All that its runs agree on.
    dataset : str
        Its data set, "" where runs do not say.
    """

    label: str
    params: Mapping[str, str]
    dataset: str


@dataclass(frozen=True)
class Design:
    """Runs in their places: the same seeds for every level of a cell.

    Parameters
    ----------
    key : Key
        What is compared.
    levels : tuple of str
        Labels: a value of the key, and what else tells configurations of that value apart.
    cells : tuple of Cell
        At least one.
    runs : mapping of (str, str) to (mapping of str to RunSummary)
        (cell's label, level) -> seed -> run.
    notes : tuple of str
        What was left out, and why.
    """

    key: Key
    levels: tuple[str, ...]
    cells: tuple[Cell, ...]
    runs: Mapping[tuple[str, str], Mapping[str, RunSummary]]
    notes: tuple[str, ...] = ()

    def level(self, text: str, field: str) -> str:
        """Return the level that a user's text names.

        Parameters
        ----------
        text : str
            A label, a value of the key, or either after ``KEY=``.
        field : str
            What the user calls it.

        Raises
        ------
        InputError
            If there is none, or several have that value.
        """
        value = text.strip().removeprefix(f"{self.key.name}=").removeprefix(f"{self.key.param}=")
        if value in self.levels:
            return value
        found = [
            label
            for label in self.levels
            if label.startswith(f"{value} ") or same_value(value, label.partition(" ")[0])
        ]
        if len(found) == 1:
            return found[0]
        those = found or self.levels
        which = "one of several with that value" if found else "one that was run"
        raise InputError(field, text, f"{which}: {'; '.join(those)}")


def arrange(runs: Sequence[RunSummary], key: Key, ignore: Iterable[str] = ()) -> Design:
    """Put runs in their places.

    Parameters
    ----------
    runs : sequence of RunSummary
        Runs of any status, in any order. Of runs with the same params the newest FINISHED counts.
        The same bytes under two paths are one data set.
    key : Key
        What is compared.
    ignore : iterable of str
        Params that may differ between paired runs; ``*`` as in a shell, a group means all below it.

    Returns
    -------
    Design

    Raises
    ------
    InputError
        If there is nothing to compare, or what there is cannot be compared.
    """
    places = Places(key, tuple(ignore))
    ours = [run for run in runs if key.param in run.params]
    if not any(map(key.owns, PATHS)):
        ours = under_one_path(ours, same_bytes(run for run in ours if run.finished))
    finished = [run for run in ours if run.finished]
    if not finished:
        rest = listed(sorted({run.status for run in ours}))
        raise InputError(key.name, rest or "none", "runs that FINISHED; there is none")
    if unseeded := [run for run in finished if not run.seed]:
        raise InputError("seed", None, f"a seed in every run; {unseeded[0].title} has none")
    placed: dict[tuple[Identity, Identity], dict[str, RunSummary]] = {}
    repeated = 0
    for run in sorted(finished, key=lambda r: (r.start_ms, r.run_id)):
        seeds = placed.setdefault((places.cell(run), places.level(run)), {})
        if run.seed in seeds:
            places.require_same(seeds[run.seed], run)
            repeated += 1
        seeds[run.seed] = run
    unfinished = sorted((r for r in ours if not r.finished), key=lambda r: (r.start_ms, r.run_id))
    check_complete(placed, places, unfinished)
    check_data(placed, places)
    notes = [*_left_out(unfinished), *_not_counted(runs, ours, places, repeated), *_origins(placed)]
    return _labelled(placed, places, notes)


def _not_counted(
    runs: Sequence[RunSummary], ours: Sequence[RunSummary], places: Places, repeated: int
) -> list[str]:
    """Say what was given and did not count."""
    notes = []
    if others := len(runs) - len(ours):
        notes.append(f"left out: {_runs(others)} without {places.key.param}")
    if repeated:
        which = "repeat others" if repeated > 1 else "repeats another"
        text = "with the same config and seed; the newest FINISHED one counts"
        notes.append(f"{_runs(repeated)} {which} {text}")
    known = {name for run in ours for name in run.params}
    for pattern in places.ignore:
        if not any(matches(name, (pattern,)) for name in known):
            notes.append(f"--ignore {pattern}: no run has such a param")
    return notes


def _left_out(unfinished: Sequence[RunSummary]) -> list[str]:
    if not unfinished:
        return []
    parts = []
    for status in sorted({run.status for run in unfinished}):
        its = [run for run in unfinished if run.status == status]
        why = list(dict.fromkeys(f"{run.title}: {run.error}" for run in its if run.error))
        parts.append(f"{len(its)} {status}" + (f" ({listed(why, 3)})" if why else ""))
    return [f"left out: {', '.join(parts)}"]


def _origins(placed: Placed) -> list[str]:
    """Say what runs do not share and need not, but a reader should know."""
    runs = [run for seeds in placed.values() for run in seeds.values()]
    if any("data.sha256" not in run.tags for run in runs):
        return ["runs do not say which rows they saw (data.sha256); taken for the same"]
    return []


def _labelled(placed: Placed, places: Places, notes: Sequence[str]) -> Design:
    """Give levels and cells their names, in natural order."""
    levels = places.labels(level for _, level in placed)
    identities = sorted({cell for cell, _ in placed})
    labels = tell_apart([dict(cell) for cell in identities])
    cells = {
        identity: Cell(label, dict(identity), dict(identity).get("dataset.name", ""))
        for identity, label in zip(identities, labels, strict=True)
    }
    return Design(
        places.key,
        tuple(sorted(levels.values(), key=label_order)),
        tuple(sorted(cells.values(), key=lambda cell: label_order(cell.label))),
        {
            (cells[cell].label, levels[level]): dict(seeds)
            for (cell, level), seeds in placed.items()
        },
        tuple(notes),
    )


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"
