"""Compares the levels of one param with a baseline, in pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fl_app.errors import InputError
from fl_app.report.budgets import (
    NO_BYTES,
    UncountedError,
    at_end,
    equal_bytes,
    equal_rounds,
    stands_at,
)
from fl_app.report.convergence import Judged, judge_pairs
from fl_app.report.grounds import Ground, ground_of
from fl_app.report.groups import Key, split_keys
from fl_app.report.origins import DataSet, Maker, data_sets, makers
from fl_app.report.pairing import Cell, Design, arrange
from fl_app.report.runs import RunSummary, is_better_when_higher, known_metrics, listed, short
from fl_app.report.tables import Table, TableMaker

__all__ = ["Comparison", "check_target", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Everything that a report says.

    Parameters
    ----------
    metric : str
        What is compared.
    higher_is_better : bool
        Its direction.
    baseline : str
        The level that all others are compared with.
    design : Design
        The runs in their places.
    at_rounds : Table
        At equal rounds.
    at_bytes : Table or None
        At equal bytes; None where nobody counted them, or the baseline has none.
    grounds : mapping of str to Ground
        Cell's label -> what an interval over its seeds rests on.
    judged : tuple of Judged
        For each run at its end, and at each round at which it counts at equal rounds, whether it
        has converged.
    data : tuple of DataSet
        What the runs saw.
    made : tuple of Maker
        What made them.
    notes : tuple of str
        What a reader should know.
    at_end : Table or None
        Each run at its own last round; None where that is the same as at equal rounds.
    num_runs : int
        The finished runs that were given: those that count, and those that they were chosen from.
    unfinished : tuple of RunSummary
        The other runs that were given.
    target : float or None
        The value of the metric that somebody asks when it is first reached.
    """

    metric: str
    higher_is_better: bool
    baseline: str
    design: Design
    at_rounds: Table
    at_bytes: Table | None
    grounds: Mapping[str, Ground]
    judged: tuple[Judged, ...] = ()
    data: tuple[DataSet, ...] = ()
    made: tuple[Maker, ...] = ()
    notes: tuple[str, ...] = ()
    at_end: Table | None = None
    num_runs: int = 0
    unfinished: tuple[RunSummary, ...] = ()
    target: float | None = None

    @property
    def finished(self) -> Table:
        """The table of the finished methods, on which expectations are judged."""
        return self.at_rounds if self.at_end is None else self.at_end

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that there are, by what a reader calls them."""
        named = {
            "each at its end": self.at_end,
            "at equal rounds": self.at_rounds,
            "at equal bytes": self.at_bytes,
        }
        return {name: table for name, table in named.items() if table is not None}

    @property
    def levels(self) -> tuple[str, ...]:
        """All levels, the baseline first."""
        return tuple(self.at_rounds.pairs)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells."""
        return self.design.cells


def compare(
    runs: Sequence[RunSummary],
    *,
    baseline: str = "strategy=fedavg",
    metric: str = "server/accuracy",
    ignore: Iterable[str] = (),
    tolerance: float = 0.0,
    tune: Iterable[str] = (),
    by: str = "",
    target: float | None = None,
) -> Comparison:
    """Compare runs with a baseline, in pairs that agree on everything else.

    Parameters
    ----------
    runs : sequence of RunSummary
        Runs of any status, in any order.
    baseline : str, default "strategy=fedavg"
        ``KEY=VALUE[,KEY=VALUE…]``: the compared params and their values to compare with. Of a group
        key, all below it belongs to the level.
    metric : str, default "server/accuracy"
        The metric; its name tells its direction.
    ignore : iterable of str
        Params that may differ between paired runs; ``*`` as in a shell.
    tolerance : float, default 0
        Differences up to which a pair is a tie.
    tune : iterable of str
        Params of which the best value counts, chosen within each cell, level and seed, for example
        ``model.learning_rate`` (:mod:`fl_app.report.choosing`).
    by : str
        The metric that chooses, at each run's own last round; by default ``eval/accuracy`` or
        ``eval/mse``.
    target : float, optional
        A value of the metric, of which is told when it is first reached.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        If there is nothing to compare, or what there is cannot be compared.
    """
    parts = [part.partition("=") for part in split_keys(baseline)]
    if not all(equals and name.strip() and value.strip() for name, equals, value in parts):
        raise InputError("--baseline", baseline, "KEY=VALUE, for example strategy=fedavg")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError("--tolerance", tolerance, "a finite number >= 0")
    check_target(target)
    key = Key.find((name.strip() for name, _, _ in parts), runs)
    design = arrange(runs, key, ignore, tune, by)
    names = map(short, key.params)
    typed = ",".join(f"{n}={value.strip()}" for n, (_, _, value) in zip(names, parts, strict=True))
    base = design.level(typed, "--baseline")
    _check_metric(design, metric)
    higher = is_better_when_higher(metric, runs)
    grounds = _grounds(design, metric)
    maker = TableMaker(design, metric, higher, base, tolerance, grounds)
    ends = maker.table(at_end)
    pairs = [pair for its in ends.pairs.values() for pair in its]
    differ = any(pair.level.server_round != pair.baseline.server_round for pair in pairs)
    at_rounds = maker.table(equal_rounds) if differ else ends
    at_bytes, why = _at_bytes(maker)
    comparison = Comparison(
        metric, higher, base, design, at_rounds, at_bytes, grounds, at_end=ends if differ else None
    )
    judged = _judged(comparison)
    counted = {one.run_id for one in judged}
    ours = [run for run in runs if run.run_id in counted]  # under the paths that they were given
    notes = [*design.notes, *_short_of(design, comparison.finished), *why]
    for title, table in comparison.tables.items():
        notes += _gap_notes(design, title, table)
    return replace(
        comparison,
        judged=judged,
        data=data_sets(ours),
        made=makers(ours),
        notes=tuple(notes),
        num_runs=sum(run.finished for run in runs),
        unfinished=tuple(sorted((r for r in runs if not r.finished), key=lambda r: r.title)),
        target=target,
    )


def check_target(target: float | None) -> None:
    """Refuse a target that is no finite number; None is none.

    Raises
    ------
    InputError
        Naming it.
    """
    if target is not None and not math.isfinite(target):
        raise InputError("--target", target, "a finite number")


def _judged(c: Comparison) -> tuple[Judged, ...]:
    """Judge runs at their end and at equal rounds, and those that stand for others at equal bytes.

    Where bytes cut a run, its verdict there is one about the bytes.
    """
    judged: dict[Judged, None] = {}
    for table in filter(None, (c.at_end, c.at_rounds)):
        for level, pairs in table.pairs.items():
            judged |= dict.fromkeys(judge_pairs(c.design, level, c.baseline, pairs, c.metric))
    run_ids = {one.run_id for one in judged}
    for level, pairs in ({} if c.at_bytes is None else c.at_bytes.pairs).items():
        for one in judge_pairs(c.design, level, c.baseline, pairs, c.metric):
            if one.run_id not in run_ids:
                judged[replace(one, level=f"{one.level} at equal bytes")] = None
    return tuple(judged)


def _at_bytes(maker: TableMaker) -> tuple[Table | None, list[str]]:
    """Return the table at equal bytes, or why there is none."""
    design, base = maker.design, maker.baseline
    none = "no table at equal bytes"
    runs = [run for cell in design.cells for run in design.runs[cell.label, base].values()]
    if not all(run.federates for run in runs):
        return None, [f"{none}: {design.key.name}={base} federates nothing and has no bytes"]
    try:
        return maker.table(partial(equal_bytes, shorter=design.shorter)), []
    except UncountedError:
        wanted = "its bytes, by one definition, with a value in reach"
        return None, [f"{none}: not every run says {wanted}"]


def _grounds(design: Design, metric: str) -> dict[str, Ground]:
    cells: dict[str, list[RunSummary]] = {}
    for (cell, _), seeds in design.runs.items():
        cells.setdefault(cell, []).extend(seeds.values())
    return {cell.label: ground_of(cells[cell.label], metric) for cell in design.cells}


def _check_metric(design: Design, metric: str) -> None:
    """Refuse a metric that a run does not have."""
    for run in (run for seeds in design.runs.values() for run in seeds.values()):
        if stands_at(run, metric):
            continue
        if run.curves.get(metric):
            last = f"in its last round ({run.last_round}), where its model is finished"
            raise InputError("--metric", metric, f"{run.title} has no such value {last}")
        if metric in run.metrics:
            raise InputError("--metric", metric, "a metric whose curve was read (read_runs)")
        text = f"{run.title} has no such metric; it has {known_metrics(run)}"
        raise InputError("--metric", metric, text)


def _gap_notes(design: Design, title: str, table: Table) -> list[str]:
    """Say which runs have no place in a table, and what to do."""
    by_reason: dict[tuple[str, str, str, str], dict[str, list[str]]] = {}
    for level, gaps in table.gaps.items():
        for gap in gaps:
            cells = by_reason.setdefault((level, gap.level, gap.mark, gap.why), {})
            cells.setdefault(gap.cell, []).append(gap.seed)
    notes = []
    for (level, lacking, mark, why), cells in by_reason.items():
        name = f"{design.key.name}={lacking}"
        if mark == NO_BYTES:
            notes.append(f"{name} {why}")
            continue
        where = [f"{cell} seed {listed(seeds)}".lstrip() for cell, seeds in cells.items()]
        row = f" for {design.key.name}={level}" if lacking != level else ""
        notes.append(f"{mark} {title}{row}: {name} ({listed(where, 4)}) {why}")
    return notes


def _short_of(design: Design, table: Table) -> list[str]:
    """Say where there is too little, or no number."""
    notes = []
    if len(design.levels) == 1:
        notes.append(f"nothing to compare with: every run has {design.key.name}={design.levels[0]}")
    if mixed := design.mixed:
        name = next(iter(mixed))
        tune = f"with --tune {name}, or " if name == short(name) else ""
        notes.append(
            f"cells differ in {listed(list(map(short, mixed)), 4)}, so no row is over all of them; "
            f"choose {tune}runs with --where {short(name)}=..."
        )
    without: dict[str, list[str]] = {}
    for row in table.overall:
        if row.difference is not None and row.difference.low is None:
            name = f"{design.key.name}={row.level}{f' at {row.group}' if row.group else ''}"
            without.setdefault(row.difference.lack, []).append(name)
    notes += [f"no interval for {listed(names, 4)}: {why}" for why, names in without.items()]
    for level, pairs in table.pairs.items():
        broken = [pair.seed for pair in pairs if not math.isfinite(pair.level.value)]
        if broken:
            seeds = listed(list(dict.fromkeys(broken)))
            notes.append(f"{design.key.name}={level} has no finite value with seed {seeds}")
    return notes
