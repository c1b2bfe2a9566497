"""Refuses what cannot be compared: another seed set, other data, another split. Says what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from fl_app.errors import InputError
from fl_app.report.groups import SPLIT, Grouped, Identity, Place, Placed, Places
from fl_app.report.runs import RunSummary, listed, natural, tell_apart

__all__ = ["check_complete", "check_data", "check_sound"]


def check_sound(runs: Iterable[RunSummary]) -> None:
    """Refuse finished runs that a model which ignores its features would beat.

    Raises
    ------
    InputError
        Naming them.
    """
    worse = [r.title for r in runs if r.finished and r.tags.get("worse_than_constant") == "true"]
    if worse:
        raise InputError(
            "worse_than_constant",
            "true",
            f"no claim stands on runs that did not learn: {listed(worse, 3)}; run them with a "
            "smaller step, or leave them out with --where",
        )


def check_complete(placed: Placed, places: Places, unfinished: Grouped) -> None:
    """Refuse cells whose levels do not have the same seeds.

    Parameters
    ----------
    placed : mapping
        The runs that count.
    places : Places
        Where runs belong.
    unfinished : mapping
        Runs that do not count because they did not finish: they explain what is missing.

    Raises
    ------
    InputError
        Naming the seeds and what became of them, or the param that keeps levels apart.
    """
    failed = {
        place: {s: its[-1] for s, its in seeds.items()} for place, seeds in unfinished.items()
    }
    cells = sorted({cell for cell, _ in placed})
    levels = places.labels(level for _, level in placed)
    there = [place for place in product(cells, levels) if place in placed or place in failed]
    if absent := [place for place in product(cells, levels) if place not in there]:
        raise _absence(absent, placed, places)
    for cell, level in there:
        theirs = {seed for (where, _), seeds in placed.items() if where == cell for seed in seeds}
        missing = sorted(theirs - placed.get((cell, level), {}).keys(), key=natural)
        if missing:
            why = _why(missing, failed.get((cell, level), {}))
            text = (
                f"another seed set: {places.key.name}={levels[level]} has no FINISHED run with it"
                f"{_where(cell, cells)}{why}, others have; run it, or choose seeds that all have "
                "with --where seed=..."
            )
            raise InputError("seed", ",".join(missing), text)


def _where(cell: Identity, cells: Sequence[Identity]) -> str:
    label = tell_apart([dict(c) for c in cells])[cells.index(cell)]
    return f" at {label}" if label else ""


def _why(seeds: Iterable[str], failed: dict[str, RunSummary]) -> str:
    """Say what became of missing runs, by the first of them."""
    for seed in seeds:
        if run := failed.get(seed):
            return f" (seed={seed} is {run.status}{f': {run.error}' if run.error else ''})"
    return ""


def _absence(absent: Sequence[Place], placed: Placed, places: Places) -> InputError:
    """Name the param in which a level's runs differ from those that it would be paired with."""

    def nearest(place: Place) -> tuple[int, list[str], Identity]:
        """Return where else the level was run, with the fewest params that differ."""
        found = [_differing(place[0], cell) for cell, level in placed if level == place[1]]
        names, cell = min(found, key=lambda pair: (len(pair[0]), pair))
        return len(names), names, cell

    cell, level = min(absent, key=lambda place: (nearest(place), place))
    count, names, elsewhere = nearest((cell, level))
    name, labels = names[0], places.labels(its for _, its in placed)
    partner = next(its for where, its in sorted(placed) if where == cell)
    here, there = (dict(params).get(name, "none") for params in (cell, elsewhere))
    more = f" (they differ in {listed(names[1:], 4)} too)" if count > 1 else ""
    split = "another split: " if name in SPLIT else ""
    remedy = "" if split else f", or --ignore {name} if paired runs may differ in it"
    return InputError(
        name,
        f"{here} and {there}",
        f"{split}{places.key.name}={labels[partner]} was run with {here}, {places.key.name}="
        f"{labels[level]} only with {there}{more}; run both alike, choose runs with "
        f"--where {name}=... or --sweep{remedy}",
    )


def _differing(one: Identity, other: Identity) -> tuple[list[str], Identity]:
    """Return the params in which two cells differ, groups' names first, and the second cell."""
    left, right = dict(one), dict(other)
    names = [n for n in left.keys() | right.keys() if left.get(n) != right.get(n)]
    return sorted(names, key=lambda n: (not n.endswith(".name"), n)), other


def check_data(placed: Placed, places: Places) -> None:
    """Refuse pairs on other data or another split, whatever is ignored.

    Seeds of a level are averaged: they saw the same data too, where no seed draws its own table.

    Raises
    ------
    InputError
        Naming the field, both values and both levels.
    """
    labels = places.labels(level for _, level in placed)
    first: dict[tuple[Identity, str], tuple[str, RunSummary]] = {}
    for (cell, level), seeds in sorted(placed.items(), key=lambda item: item[0]):
        for seed, run in seeds.items():
            label, other = first.setdefault((cell, seed), (labels[level], run))
            where = f"{places.key.name}={label} and {labels[level]} with seed={seed}"
            one, two = (r.tags.get("data.sha256", "none") for r in (other, run))
            if one != two:
                names = (r.params.get("dataset.name", "?") for r in (other, run))
                sets = " and ".join(dict.fromkeys(names))
                text = f"other data: {where} (dataset={sets}); run both on the same rows"
                raise InputError("data.sha256", f"{one[:12]} and {two[:12]}", text)
            for name in SPLIT:
                one, two = (r.params.get(name, "none") for r in (other, run))
                if one != two:
                    text = f"another split: {where}; run both with the same"
                    raise InputError(name, f"{one} and {two}", text)
    for (_, level), seeds in sorted(placed.items(), key=lambda item: item[0]):
        _check_seeds(f"{places.key.name}={labels[level]}", seeds)


def _check_seeds(title: str, seeds: Mapping[str, RunSummary]) -> None:
    """Refuse seeds of one level and cell that saw different data, and did not draw it."""
    if all(run.tags.get("data.seed_draws") == "table" for run in seeds.values()):
        return
    found: dict[str, list[str]] = {}
    for seed in sorted(seeds, key=natural):
        found.setdefault(seeds[seed].tags.get("data.sha256", "none"), []).append(seed)
    if len(found) > 1:
        (one, ours), (two, theirs) = list(found.items())[:2]
        text = (
            f"other data: {title} saw one with seed={','.join(ours)}, another with "
            f"seed={','.join(theirs)}; choose runs with --sweep, or run all seeds on the same"
        )
        raise InputError("data.sha256", f"{one[:12]} and {two[:12]}", text)
