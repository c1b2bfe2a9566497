"""Which run is compared with which, and what is refused.

Runs are a *level* of the compared key (``strategy=fedavg``), in a *cell* (all params besides that
are not ignored), with a *seed*. Two levels are paired within a cell and a seed. A comparison needs
every level in every cell with the same seeds, on the same data and the same split; what falls short
of that is refused, never repaired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fl_app.errors import InputError
from fl_app.report.choosing import choose, default_by, diverged, find_tuned
from fl_app.report.groups import PROBLEM, Grouped, Key, Place, Placed, Places, matches
from fl_app.report.origins import data_name, same_bytes, under_one_path
from fl_app.report.runs import (
    PATHS,
    ROUNDS,
    RunSummary,
    idle,
    label_order,
    listed,
    natural,
    plain,
    same_value,
    short,
    tell_apart,
)
from fl_app.report.shorter import Shorter, aside_note, shorter_runs, without_lone
from fl_app.report.soundness import check_complete, check_data
from fl_app.report.tuning import Choice, Tuning

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
        Its data set, by its name or file; "" where runs do not say.
    group : str
        What tells its hyperparameters from those of other cells; "" where all have the same.
    """

    label: str
    params: Mapping[str, str]
    dataset: str
    group: str = ""

    @property
    def method(self) -> dict[str, str]:
        """Its hyperparameters: all params that do not say what is to be solved."""
        return {name: value for name, value in self.params.items() if not matches(name, PROBLEM)}


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
    values : mapping of str to (mapping of str to str)
        Level -> the key's params and their values.
    tuning : Tuning
        What was chosen by a metric.
    notes : tuple of str
        What was left out, and why.
    shorter : mapping of str to tuple of RunSummary
        Of a run whose model is finished in its last round only, by its id: the runs that differ
        from it in having fewer rounds, longest first. They may be levels of their own, or none.
    """

    key: Key
    levels: tuple[str, ...]
    cells: tuple[Cell, ...]
    runs: Mapping[tuple[str, str], Mapping[str, RunSummary]]
    values: Mapping[str, Mapping[str, str]]
    tuning: Tuning
    notes: tuple[str, ...] = ()
    shorter: Shorter = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, tuple[Cell, ...]]:
        """The cells whose hyperparameters agree, by their label."""
        labels = dict.fromkeys(cell.group for cell in self.cells)
        return {label: tuple(c for c in self.cells if c.group == label) for label in labels}

    @property
    def mixed(self) -> dict[str, list[str]]:
        """Hyperparameters in which cells differ, each with its values; groups' names first."""
        methods = [cell.method for cell in self.cells]
        names = sorted({n for own in methods for n in own}, key=lambda n: (n == short(n), n))
        values = {n: sorted({m.get(n, "none") for m in methods}, key=natural) for n in names}
        return {name: own for name, own in values.items() if len(own) > 1}

    def run(self, cell: str, level: str, seed: str, run_id: str) -> RunSummary:
        """Return the run of a place, or the shorter one of this id that stands for it."""
        own = self.runs[cell, level][seed]
        return next(r for r in (own, *self.shorter.get(own.run_id, ())) if r.run_id == run_id)

    def level(self, text: str, field: str) -> str:
        """Return the level that a user's text names.

        Parameters
        ----------
        text : str
            A label, the key's value (several with blanks between), or either after ``KEY=``; of
            several keys also some: ``KEY=VALUE,KEY=VALUE``.
        field : str
            What the user calls it.

        Raises
        ------
        InputError
            If there is none, or several have that value.
        """
        named = self.key.named(text)
        whole = len(named) == len(self.key.params)
        value = " ".join(named[p] for p in self.key.params) if whole else text.strip()
        if exact := [label for label in self.levels if plain(label) == plain(value)]:
            return exact[0]
        found = [label for label in self.levels if self._has(label, value, named)]
        if len(found) == 1:
            return found[0]
        those = found or self.levels
        which = "one of several with that value" if found else "one that was run"
        raise InputError(field, text, f"{which}: {'; '.join(those)}")

    def _has(self, label: str, value: str, named: Mapping[str, str]) -> bool:
        """Return whether a level has the values of a user's text, or a label that begins so."""
        own = self.values[label]
        if not named:
            words = value.split(" ") if len(own) > 1 else [value]
            named = dict(zip(own, words, strict=True)) if len(words) == len(own) else {}
        same = bool(named) and all(same_value(text, own[param]) for param, text in named.items())
        return same or plain(label).startswith(f"{plain(value)} ")


def arrange(
    runs: Sequence[RunSummary],
    key: Key,
    ignore: Iterable[str] = (),
    tune: Iterable[str] = (),
    by: str = "",
) -> Design:
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
    tune : iterable of str
        Params whose value is chosen for each cell, level and seed.
    by : str
        The metric that chooses; by default ``eval/accuracy`` or ``eval/mse``.

    Returns
    -------
    Design

    Raises
    ------
    InputError
        If there is nothing to compare, or what there is cannot be compared.
    """
    places = Places(key, tuple(ignore), find_tuned(tune, key, runs))
    ours = [run for run in runs if all(param in run.params for param in key.params)]
    if not any(map(key.owns, PATHS)):
        ours = under_one_path(ours, same_bytes(r for r in ours if r.finished or diverged(r)))
    finished = [run for run in ours if run.finished]
    if not finished:
        rest = listed(sorted({run.status for run in ours}))
        raise InputError("status", rest or "none", "runs that FINISHED; there is none")
    if unseeded := [run for run in finished if not run.seed]:
        raise InputError("seed", None, f"a seed in every run; {unseeded[0].title} has none")
    unfinished = sorted((r for r in ours if not r.finished), key=lambda r: (r.start_ms, r.run_id))
    shorter = shorter_runs(finished)
    fewer = frozenset(run.run_id for others in shorter.values() for run in others)
    longest = [r for r in finished if not (r.run_id in fewer and places.ignores(ROUNDS))]
    groups = without_lone(places.grouped(longest), places.grouped(unfinished, longest), fewer)
    aside = aside_note(finished, groups, fewer)
    choices: Mapping[Place, Choice] = {}
    if places.tuned:
        by = by or default_by(finished)
        lost = places.grouped(filter(diverged, unfinished), finished)
        groups, choices = choose(groups, lost, places, by)
    placed = {place: {s: its[-1] for s, its in seeds.items()} for place, seeds in groups.items()}
    check_complete(placed, places, places.grouped(unfinished, finished))
    check_data(placed, places)
    notes = [
        *_left_out(unfinished),
        *_without_key(runs, ours, places),
        *_not_counted(groups, places),
        *aside,
        *_origins(placed),
    ]
    return replace(_labelled(placed, places, choices, by, notes), shorter=shorter)


def _not_counted(groups: Grouped, places: Places) -> list[str]:
    """Say which runs of a place did not count, and refuse those that are no repetition."""
    repeated: set[str] = set()
    alike: set[str] = set()
    for runs in (runs for seeds in groups.values() for runs in seeds.values()):
        for run in runs[:-1]:
            places.require_same(run, runs[-1])
            without = idle(run) & idle(runs[-1])
            same = all(run.params.get(n) == runs[-1].params.get(n) for n in without)
            (repeated if same else alike).add(run.run_id)
    notes = []
    if repeated:
        which = "repeat others" if len(repeated) > 1 else "repeats another"
        text = "with the same config and seed; the newest FINISHED one counts"
        notes.append(f"{_runs(len(repeated))} {which} {text}")
    if alike:
        text = "from another only in params without effect on it; one of them counts"
        notes.append(f"{_runs(len(alike))} differ{'' if len(alike) > 1 else 's'} {text}")
    return notes


def _without_key(
    runs: Sequence[RunSummary], ours: Sequence[RunSummary], places: Places
) -> list[str]:
    """Say what was given and is no part of the comparison."""
    notes = []
    if others := len(runs) - len(ours):
        notes.append(f"left out: {_runs(others)} without {' or '.join(places.key.params)}")
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


def _labelled(
    placed: Placed,
    places: Places,
    choices: Mapping[Place, Choice],
    by: str,
    notes: Sequence[str],
) -> Design:
    """Give levels and cells their names, in natural order."""
    levels = places.labels(level for _, level in placed)
    identities = sorted({cell for cell, _ in placed})
    labels = tell_apart([dict(cell) for cell in identities])
    cells = {
        identity: Cell(label, dict(identity), data_name(dict(identity)))
        for identity, label in zip(identities, labels, strict=True)
    }
    methods = list({tuple(cell.method.items()): cell.method for cell in cells.values()}.values())
    groups = tell_apart(methods)
    cells = {
        identity: replace(cell, group=groups[methods.index(cell.method)])
        for identity, cell in cells.items()
    }
    return Design(
        places.key,
        tuple(sorted(levels.values(), key=label_order)),
        tuple(sorted(cells.values(), key=lambda cell: label_order(cell.label))),
        {
            (cells[cell].label, levels[level]): dict(seeds)
            for (cell, level), seeds in placed.items()
        },
        {
            label: {param: dict(level)[param] for param in places.key.params}
            for level, label in levels.items()
        },
        Tuning(
            places.tuned,
            by if places.tuned else "",
            {(cells[c].label, levels[level]): choice for (c, level), choice in choices.items()},
        ),
        tuple(notes),
    )


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"
