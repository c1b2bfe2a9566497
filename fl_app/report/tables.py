"""The levels of a comparison side by side, at one budget.

Differences are level minus baseline, whatever the metric; wins follow its direction. Each interval
is a 95 % interval by itself (:mod:`fl_app.report.grounds` says of what): with many levels some
will miss by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fl_app.report.budgets import Budget, Gap, Pair, pair_up
from fl_app.report.grounds import Ground, with_ground
from fl_app.report.intervals import Interval, mean_and_sd, mean_difference
from fl_app.report.pairing import Cell, Design
from fl_app.report.runs import beside

__all__ = ["Row", "Table", "TableMaker", "paired_difference"]


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
class TableMaker:
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
            difference=paired_difference(self.design, pairs, self.grounds),
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


def paired_difference(
    design: Design, pairs: Sequence[Pair], grounds: Mapping[str, Ground]
) -> Interval:
    """Return the mean difference of some pairs, each cell of which counts alike."""
    cells = _by_cell(pairs, lambda pair: pair.difference)
    blocks = {cell.label: cell.dataset for cell in design.cells}
    ratios = {label: ground.ratio for label, ground in grounds.items()}
    values = (abs(point.value) for pair in pairs for point in (pair.level, pair.baseline))
    scale = max(filter(math.isfinite, values), default=0.0)
    interval = mean_difference(cells, blocks, ratios, scale)
    return with_ground(interval, [grounds[cell] for cell in cells], min(map(len, cells.values())))


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
