"""Compares the levels of one param with a baseline, in pairs.

Differences are level minus baseline, whatever the metric; wins follow its direction. Each interval
is a 95 % interval by itself (:mod:`fl_app.report.grounds` says of what): with many levels some
will miss by chance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from fl_app.errors import InputError
from fl_app.report.budgets import (
    NO_BYTES,
    Budget,
    Gap,
    Pair,
    UncountedError,
    at_end,
    equal_bytes,
    equal_rounds,
    pair_up,
    stands_at,
)
from fl_app.report.convergence import Judged, judge_pairs, lack_of
from fl_app.report.grounds import Ground, ground_of, with_ground
from fl_app.report.groups import Key, split_keys
from fl_app.report.intervals import Interval, mean_and_sd, mean_difference
from fl_app.report.origins import DataSet, Maker, data_sets, makers
from fl_app.report.pairing import Cell, Design, arrange
from fl_app.report.runs import (
    RunSummary,
    beside,
    is_better_when_higher,
    known_metrics,
    listed,
    short,
)
from fl_app.report.shared_rows import rather_over_rows

__all__ = ["Comparison", "Outcome", "Row", "Table", "compare", "expect"]


@dataclass(frozen=True)
class Row:
    """A level in one cell, or over all cells.

    Parameters
    ----------
    cell : str or None
        The cell's label; None over all cells of the group, each of which counts alike.
    level : str
        The level.
    num_runs : int
        Its runs.
    mean : float or None
        Mean of the metric; None, as all numbers, where one of the runs has no place in the table.
    sd : float or None
        Standard deviation between seeds, within a cell; None for a single seed.
    baseline_mean : float or None
        Mean of the baseline's runs where they are compared with this level.
    server_round : float or None
        Mean of the rounds at which the level's runs count.
    bytes : float or None
        Mean of the bytes at which they count; None where nobody counted.
    difference : Interval or None
        Mean paired difference; None for the baseline itself.
    wins, ties, losses : int
        Pairs in which the level is better, equal, worse.
    worst_cell : (str, float) or None
        The cell with the worst mean difference, where the row is over several.
    mark : str
        What stands instead of numbers: ``"none"`` where a run is missing that could stand here,
        ``"-"`` where the level has no bytes; "" where there are numbers.
    group : str
        What tells the cells' hyperparameters from those of others: no row is over cells that differ
        in them. "" where all cells have the same.
    beside : float or None
        Mean of the metric that is shown beside (:func:`~fl_app.report.runs.beside`), of the same
        runs at the same rounds; None where there is none.
    """

    cell: str | None
    level: str
    num_runs: int
    mean: float | None
    sd: float | None
    baseline_mean: float | None
    server_round: float | None
    bytes: float | None
    difference: Interval | None = None
    wins: int = 0
    ties: int = 0
    losses: int = 0
    worst_cell: tuple[str, float] | None = None
    mark: str = ""
    group: str = ""
    beside: float | None = None


@dataclass(frozen=True)
class Table:
    """All levels at one budget.

    Parameters
    ----------
    rows : tuple of Row
        By cell, in each the baseline first; over all cells of a group last (alone where there is
        one cell).
    pairs : mapping of str to tuple of Pair
        Level -> its pairs; the baseline's are its runs with themselves, at their end.
    gaps : mapping of str to tuple of Gap
        Level -> what is no pair here. A row with one has no numbers.
    """

    rows: tuple[Row, ...]
    pairs: Mapping[str, tuple[Pair, ...]]
    gaps: Mapping[str, tuple[Gap, ...]]

    @property
    def overall(self) -> tuple[Row, ...]:
        """The rows over all cells of a group."""
        return tuple(row for row in self.rows if row.cell is None)


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
        ``model.learning_rate`` (:mod:`fl_app.report.tuning`).
    by : str
        The metric that chooses, at each run's own last round; by default ``eval/accuracy`` or
        ``eval/mse``.

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
    key = Key.find((name.strip() for name, _, _ in parts), runs)
    design = arrange(runs, key, ignore, tune, by)
    names = map(short, key.params)
    typed = ",".join(f"{n}={value.strip()}" for n, (_, _, value) in zip(names, parts, strict=True))
    base = design.level(typed, "--baseline")
    _check_metric(design, metric)
    higher = is_better_when_higher(metric, runs)
    grounds = _grounds(design, metric)
    maker = _Maker(design, metric, higher, base, tolerance, grounds)
    ends = maker.table(at_end)
    pairs = [pair for own in ends.pairs.values() for pair in own]
    differ = any(pair.level.server_round != pair.baseline.server_round for pair in pairs)
    at_rounds = maker.table(equal_rounds) if differ else ends
    at_bytes, why = _at_bytes(maker)
    found = Comparison(
        metric, higher, base, design, at_rounds, at_bytes, grounds, at_end=ends if differ else None
    )
    judged = _judged(found)
    counted = {one.run_id for one in judged}
    ours = [run for run in runs if run.run_id in counted]  # under the paths that they were given
    notes = [*design.notes, *_short_of(design, found.finished), *why]
    for title, table in found.tables.items():
        notes += _gap_notes(design, title, table)
    return replace(
        found,
        judged=judged,
        data=data_sets(ours),
        made=makers(ours),
        notes=tuple(notes),
        num_runs=sum(run.finished for run in runs),
    )


def _judged(c: Comparison) -> tuple[Judged, ...]:
    """Judge runs at their end and at equal rounds, and those that stand for others at equal bytes.

    Where bytes cut a run, its verdict there is one about the bytes.
    """
    found: dict[Judged, None] = {}
    for table in filter(None, (c.at_end, c.at_rounds)):
        for level, pairs in table.pairs.items():
            found |= dict.fromkeys(judge_pairs(c.design, level, c.baseline, pairs, c.metric))
    own = {one.run_id for one in found}
    for level, pairs in ({} if c.at_bytes is None else c.at_bytes.pairs).items():
        for one in judge_pairs(c.design, level, c.baseline, pairs, c.metric):
            if one.run_id not in own:
                found[replace(one, level=f"{one.level} at equal bytes")] = None
    return tuple(found)


def _at_bytes(maker: _Maker) -> tuple[Table | None, list[str]]:
    """Return the table at equal bytes, or why there is none."""
    design, base = maker.design, maker.baseline
    none = "no table at equal bytes"
    own = [run for cell in design.cells for run in design.runs[cell.label, base].values()]
    if not all(run.federates for run in own):
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


# ---------------------------------------------------------------------------- rows
@dataclass(frozen=True)
class _Maker:
    """Makes the tables of a design."""

    design: Design
    metric: str
    higher: bool
    baseline: str
    tolerance: float
    grounds: Mapping[str, Ground]

    def table(self, budget: Budget) -> Table:
        """Compare all levels with the baseline."""
        levels = (self.baseline, *(x for x in self.design.levels if x != self.baseline))
        pairs: dict[str, tuple[Pair, ...]] = {}
        gaps: dict[str, tuple[Gap, ...]] = {}
        for level in levels:
            pairs[level], gaps[level] = pair_up(
                self.design, level, self.baseline, self.metric, budget
            )
        rows = []
        if len(self.design.cells) > 1:
            for cell in self.design.cells:
                for level in levels:
                    rows.append(self._row(cell.label, level, *_in(pairs, gaps, level, [cell])))
        for group, cells in self.design.groups.items():
            for level in levels:
                row = self._row(None, level, *_in(pairs, gaps, level, cells))
                rows.append(replace(row, group=group))
        return Table(tuple(rows), pairs, gaps)

    def _row(self, cell: str | None, level: str, pairs: Sequence[Pair], gaps: Sequence[Gap]) -> Row:
        if gaps:
            count = len(pairs) + len(gaps)
            mark = max(gap.mark for gap in gaps)  # "none" before "-"
            return Row(cell, level, count, None, None, None, None, None, mark=mark)
        mean, sd = mean_and_sd(_by_cell(pairs, lambda pair: pair.level.value))
        sent = [pair.level.bytes for pair in pairs if pair.level.bytes is not None]
        row = Row(
            cell=cell,
            level=level,
            num_runs=len(pairs),
            mean=mean,
            sd=sd,
            baseline_mean=mean_and_sd(_by_cell(pairs, lambda pair: pair.baseline.value))[0],
            server_round=sum(pair.level.server_round for pair in pairs) / len(pairs),
            bytes=sum(sent) / len(sent) if len(sent) == len(pairs) else None,
            beside=self._beside(level, pairs),
        )
        if level == self.baseline:
            return row
        results = [self._result(pair) for pair in pairs]
        return replace(
            row,
            difference=_difference(self.design, pairs, self.grounds),
            wins=results.count(1),
            ties=results.count(0),
            losses=results.count(-1),
            worst_cell=self._worst(pairs) if len({pair.cell for pair in pairs}) > 1 else None,
        )

    def _beside(self, level: str, pairs: Sequence[Pair]) -> float | None:
        name = beside(self.metric) or ""

        def value(pair: Pair) -> float:
            run = self.design.run(pair.cell, level, pair.seed, pair.level.run_id)
            return run.curves[name][pair.level.server_round]

        try:
            return mean_and_sd(_by_cell(pairs, value))[0]
        except KeyError:  # not every run has it there
            return None

    def _result(self, pair: Pair) -> int:
        """Return 1 for a win, 0 for a tie, -1 for a loss; what is no number loses to a number."""
        broken = math.isnan(pair.level.value), math.isnan(pair.baseline.value)
        if any(broken):
            return broken[1] - broken[0]
        difference = pair.difference if self.higher else -pair.difference
        if pair.level.value == pair.baseline.value or abs(difference) <= self.tolerance:
            return 0
        return 1 if difference > 0 else -1

    def _worst(self, pairs: Sequence[Pair]) -> tuple[str, float]:
        cells = _by_cell(pairs, lambda pair: pair.difference)
        means = {cell: mean_and_sd({cell: values})[0] for cell, values in cells.items()}
        sign = 1 if self.higher else -1
        return min(means.items(), key=lambda item: (not math.isnan(item[1]), sign * item[1]))


def _difference(design: Design, pairs: Sequence[Pair], grounds: Mapping[str, Ground]) -> Interval:
    cells = _by_cell(pairs, lambda pair: pair.difference)
    blocks = {cell.label: cell.dataset for cell in design.cells}
    ratios = {label: ground.ratio for label, ground in grounds.items()}
    values = (abs(point.value) for pair in pairs for point in (pair.level, pair.baseline))
    scale = max(filter(math.isfinite, values), default=0.0)
    found = mean_difference(cells, blocks, ratios, scale)
    return with_ground(found, [grounds[cell] for cell in cells], min(map(len, cells.values())))


def _in(
    pairs: Mapping[str, Sequence[Pair]],
    gaps: Mapping[str, Sequence[Gap]],
    level: str,
    cells: Iterable[Cell],
) -> tuple[list[Pair], list[Gap]]:
    """Return a level's pairs and gaps in some cells."""
    labels = {cell.label for cell in cells}
    return (
        [pair for pair in pairs[level] if pair.cell in labels],
        [gap for gap in gaps[level] if gap.cell in labels],
    )


def _by_cell(pairs: Sequence[Pair], value: Callable[[Pair], float]) -> dict[str, dict[str, float]]:
    cells: dict[str, dict[str, float]] = {}
    for pair in pairs:
        cells.setdefault(pair.cell, {})[pair.seed] = value(pair)
    return cells


def _gap_notes(design: Design, title: str, table: Table) -> list[str]:
    """Say which runs have no place in a table, and what to do."""
    told: dict[tuple[str, str, str, str], dict[str, list[str]]] = {}
    for level, gaps in table.gaps.items():
        for gap in gaps:
            cells = told.setdefault((level, gap.level, gap.mark, gap.why), {})
            cells.setdefault(gap.cell, []).append(gap.seed)
    notes = []
    for (level, lacking, mark, why), cells in told.items():
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


# ---------------------------------------------------------------------------- expectations
@dataclass(frozen=True)
class Outcome:
    """An expectation and what the runs say of it.

    Parameters
    ----------
    text : str
        As it was typed.
    holds : bool
        Whether the whole interval is beyond the margin, in the better direction.
    difference : Interval
        First level minus second, each at its end; over the test rows where all seeds share them
        and runs tell their losses. It lacks something where a run of both has not converged, or
        counts untuned.
    """

    text: str
    holds: bool
    difference: Interval

    @property
    def holds_strictly(self) -> bool:
        """Whether it holds, and its interval lacks nothing that a strict claim needs."""
        return self.holds and not self.difference.lack


def _split_margin(design: Design, text: str) -> tuple[str, float]:
    """Split a level and a margin; what is a level as a whole (``1e-5``) has none."""
    found = _MARGIN.fullmatch(text)
    if text in design.levels or found is None:
        return text, 0.0
    if not found[0][found.end("level")].isspace():
        with suppress(InputError):
            return design.level(text, "--expect"), 0.0
    return found["level"], float(found["margin"].replace(" ", ""))


_MARGIN = re.compile(r"(?P<level>.+?)\s*(?P<margin>[+-]\s*(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)")


def expect(comparison: Comparison, text: str) -> Outcome:
    """Check whether one level, each run at its end, is better than another by a margin.

    Parameters
    ----------
    comparison : Comparison
        The comparison.
    text : str
        ``a>b``: a is better, also for a metric that is better when lower; ``a>b+0.01``: by more
        than that; ``a>b-0.01``: not worse by that much.

    Returns
    -------
    Outcome
        It holds if the whole 95 % interval is beyond the margin; never without an interval.

    Raises
    ------
    InputError
        If it is malformed or names a level that no run has, or cells differ in a hyperparameter.
    """
    better, sign, rest = text.partition(">")
    if not sign or not better.strip() or not rest.strip():
        raise InputError("--expect", text, "A>B, A>B+0.01 or A>B-0.01 with two levels A and B")
    design = comparison.design
    rest, margin = _split_margin(design, rest.strip())
    one, other = (design.level(name, "--expect") for name in (better, rest))
    if one == other:
        raise InputError("--expect", text, "two different levels")
    for name, values in design.mixed.items():
        remedy = f"choose runs with --where {short(name)}=..."
        if name == short(name):
            remedy = f"choose it with --tune {name}, or runs with --where {name}=..."
        raise InputError(
            short(name), " and ".join(values), f"one value for --expect {text}: {remedy}"
        )
    pairs, _ = pair_up(design, one, other, comparison.metric, at_end)
    over_seeds = _difference(design, pairs, comparison.grounds)
    difference = rather_over_rows(over_seeds, design, pairs, comparison.metric)
    if difference.low is not None:
        untuned = design.tuning.lack((one, other), design.runs, design.key, comparison.metric)
        cut = lack_of(judge_pairs(design, one, other, pairs, comparison.metric))
        lack = "; ".join(filter(None, (difference.lack, untuned, cut)))
        difference = replace(difference, lack=lack)
    if difference.low is None or difference.high is None:
        return Outcome(text, False, difference)
    gain = difference.low if comparison.higher_is_better else -difference.high
    return Outcome(text, gain > margin, difference)
