"""From a comparison to lines and tables of text, and those to a terminal, a pipe or Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from fl_app.errors import printable
from fl_app.report.comparing import Comparison
from fl_app.report.convergence import verdict_lines
from fl_app.report.expectations import Outcome
from fl_app.report.grounds import KINDS
from fl_app.report.intervals import Interval
from fl_app.report.origins import origin_lines
from fl_app.report.pairing import Cell
from fl_app.report.runs import beside, listed, natural, short
from fl_app.report.tables import Row, Table
from fl_app.tracking.metric_names import bytes_text

__all__ = [
    "Block",
    "TextTable",
    "clean",
    "comparison_blocks",
    "comparison_parts",
    "decimals_for",
    "outcome_line",
    "plus_minus",
    "scopes",
    "show",
    "to_markdown",
    "to_text",
]

MAX_SHOWN_CELLS = 8
"""Cells up to which each has rows of its own."""
_FRAME = ("num_clients", "num_server_rounds", "partitioner.alpha", "fraction_train")


@dataclass(frozen=True)
class TextTable:
    """A table of texts, before anybody decided how it looks.

    Parameters
    ----------
    title : str
        What it shows.
    columns : tuple of str
        Heads.
    rows : tuple of tuple of str
        Cells.
    texts : int, default 1
        Leading columns that hold texts; the others hold numbers and stand at the right.
    sections : tuple of int
        Rows before which a new section begins.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    sections: tuple[int, ...] = ()


Block = str | TextTable
"""A line, or a table."""


# ---------------------------------------------------------------------------- comparison -> blocks
def comparison_blocks(
    comparison: Comparison, outcomes: Iterable[Outcome] = ()
) -> tuple[Block, ...]:
    """Return what a report shows of a comparison.

    Parameters
    ----------
    comparison : Comparison
        The comparison.
    outcomes : iterable of Outcome
        Expectations that were checked.

    Returns
    -------
    tuple of Block
        What is compared, on what data, what was chosen for it, the tables (each run at its end,
        where rounds differ; at equal rounds; at equal bytes) with their worst cells, which runs
        have not converged, the expectations, what each kind of interval speaks of, the notes.
    """
    parts = comparison_parts(comparison, tuple(outcomes))
    return tuple(block for part in parts.values() for block in part)


def comparison_parts(c: Comparison, outcomes: Sequence[Outcome]) -> dict[str, list[Block]]:
    """Return the same by what it speaks of."""
    direction = "higher is better" if c.higher_is_better else "lower is better"
    if beside(c.metric) and c.metric.endswith("/mse"):
        direction += ", in squared units of the target"
    seeds = sorted({seed for runs in c.design.runs.values() for seed in runs}, key=natural)
    question = [
        f"{c.metric} ({direction}): {c.design.key.name}, each against {c.baseline}, "
        f"paired by seed ({listed(seeds)})"
    ]
    if frame := _frame(c):
        question.append(f"all runs: {frame}")
    differences: list[Block] = []
    for title, table in c.tables.items():
        differences += [_table(c, table, title), *_worst_lines(table, title)]
    return {
        "Question": [*question],
        "Data and split": [*origin_lines(c.data, ())],
        "Made by": [*origin_lines((), c.made)],
        "How tuned": [
            *c.design.tuning.lines([cell.label for cell in c.cells], c.levels, MAX_SHOWN_CELLS)
        ],
        "Differences": differences,
        "Converged": [*verdict_lines(c.judged)],
        "Expected": [outcome_line(outcome, c) for outcome in outcomes],
        "What the intervals speak of": [*_kind_lines(c, outcomes)],
        "Notes": [f"note: {note}" for note in c.notes],
    }


def scopes(c: Comparison) -> list[tuple[str, tuple[Cell, ...]]]:
    """Return what has rows of its own, by its name: each cell, or the cells of a group."""
    if 1 < len(c.cells) <= MAX_SHOWN_CELLS:
        return [(cell.label, (cell,)) for cell in c.cells]
    return [(_over(its, group), its) for group, its in c.design.groups.items()]


def _kind_lines(c: Comparison, outcomes: Iterable[Outcome]) -> list[str]:
    """Say of each kind of interval what it speaks of."""
    rows = [row for table in c.tables.values() for row in table.rows]
    shown = [row.difference for row in rows if row.difference]
    kinds = {interval.kind for interval in (*shown, *(o.difference for o in outcomes))}
    ratios = sorted({f"{ground.ratio:.3g}" for ground in c.grounds.values() if ground.ratio})
    told = f"; n_test/n_train = {listed(ratios, 4)}"
    return [
        f"{kind}: {meaning}{told if kind == 'corrected t' else ''}"
        for kind, meaning in KINDS.items()
        if kind in kinds
    ]


def _frame(c: Comparison) -> str:
    """Return what all runs share, as far as it says what was run."""
    first, *others = [cell.params for cell in c.cells]
    shared = [p for p in first if all(other.get(p) == first[p] for other in others)]
    told = [p for p in shared if p in _FRAME or p.endswith(".name")]
    told.sort(key=lambda p: (not p.endswith(".name"), p))
    return ", ".join(f"{short(p)}={first[p]}" for p in told)


def _table(c: Comparison, table: Table, title: str) -> TextTable:
    """Show a table, with the baseline's mean beside each row if that depends on the row."""
    several, with_bytes = len(c.cells) > 1, table is not c.at_rounds
    groups = c.design.groups
    shown: Sequence[Row] = table.overall
    if several and len(c.cells) <= MAX_SHOWN_CELLS:
        shown = [row for row in table.rows if row.cell or len(groups[row.group]) > 1]
    digits = decimals_for(value for row in shown for value in (row.mean, row.baseline_mean))
    other = beside(c.metric) if any(row.beside is not None for row in shown) else None
    heads = [c.design.key.name, "runs" if several else "seeds", "mean ± sd"]
    own = {(r.cell, r.group): r.baseline_mean for r in table.rows if r.level == c.baseline}
    with_base = any(
        row.baseline_mean not in (None, own[row.cell, row.group])
        and not math.isnan(row.baseline_mean)
        for row in shown
    )
    heads += [other.partition("/")[2]] if other else []
    heads += [c.baseline] if with_base else []
    heads += ["difference [95 %]", "w/t/l", "round", *(["bytes"] if with_bytes else [])]
    rows = [_cells(row, digits, c.baseline, bool(other), with_base, with_bytes) for row in shown]
    if not several:
        return TextTable(title, tuple(heads), tuple(rows))
    sections = range(0, len(rows), len(c.levels))
    labels = [row.cell or _over(groups[row.group], row.group) for row in shown]
    named = [(label if i in sections else "", *rows[i]) for i, label in enumerate(labels)]
    return TextTable(title, ("cell", *heads), tuple(named), 2, tuple(sections)[1:])


def _over(cells: Sequence[Cell], group: str) -> str:
    """Return what a row over all cells of a group is over."""
    if len(cells) == 1:
        return cells[0].label
    return f"all {len(cells)} cells{f', {group}' if group else ''}"


def _cells(
    row: Row, digits: int, baseline: str, with_other: bool, with_base: bool, with_bytes: bool
) -> tuple[str, ...]:
    mean = row.mark if row.mean is None else plus_minus(row.mean, row.sd, digits)
    cells = [row.level, str(row.num_runs), mean]
    if with_other:
        none = "" if row.mean is None else "-"
        cells.append(none if row.beside is None else f"{row.beside:.4g}")
    if with_base:
        told = None if row.level == baseline else row.baseline_mean
        cells.append("" if told is None else f"{told:.{digits}f}")
    cells.append("" if row.difference is None else _named(row.difference, digits))
    cells.append("" if row.difference is None else f"{row.wins}/{row.ties}/{row.losses}")
    cells.append("" if row.server_round is None else f"{row.server_round:.4g}")
    if with_bytes:
        cells.append("" if row.bytes is None else bytes_text(row.bytes, 4))
    return tuple(cells)


def _worst_lines(table: Table, where: str) -> list[str]:
    digits = decimals_for(row.mean for row in table.rows)
    return [
        f"worst cell of {row.level} {where}{f' with {row.group}' if row.group else ''}: "
        f"{row.worst_cell[1]:+.{digits}f} ({row.worst_cell[0]})"
        for row in table.overall
        if row.worst_cell is not None
    ]


def outcome_line(outcome: Outcome, comparison: Comparison) -> str:
    """Return an expectation's result in one line."""
    c = comparison
    digits = decimals_for(row.mean for row in c.finished.rows)
    found = outcome.difference
    verdict = "holds" if outcome.holds else "does not hold"
    told = [f"difference {_named(found, digits)}"]
    if c.at_end is not None:
        told.append("each at its end")
    if not c.higher_is_better:
        told.append("lower is better")
    if found.lack:
        told.append(found.lack if found.low is None else f"no strict claim: {found.lack}")
    return f"expected {outcome.text}: {verdict} ({'; '.join(told)})"


def interval_text(interval: Interval, digits: int) -> str:
    """Return ``+0.0123 [-0.0045, +0.0291]``."""
    if interval.low is None or interval.high is None:
        what = "undecided" if interval.kind == "undecided" else "no interval"
        return f"{interval.mean:+.{digits}f} [{what}]"
    low, high = (f"{end:+.{digits}f}" for end in (interval.low, interval.high))
    return f"{interval.mean:+.{digits}f} [{low}, {high}]"


def _named(interval: Interval, digits: int) -> str:
    """Return an interval and its kind."""
    kind = "" if interval.low is None else f" {interval.kind}"
    return f"{interval_text(interval, digits)}{kind}"


def plus_minus(mean: float, sd: float | None, digits: int) -> str:
    """Return ``0.9444 ± 0.0123``, without the second part where there is none."""
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def decimals_for(values: Iterable[float | None]) -> int:
    """Return decimals that show about four digits of the largest of some values."""
    numbers = [abs(value) for value in values if value is not None and math.isfinite(value)]
    largest = max(numbers, default=1.0)
    if largest == 0:
        return 4
    exponent = math.floor(math.log10(largest))
    return min(12, max(0, 4 - max(exponent, 0) if exponent >= -1 else 3 - exponent))


# ---------------------------------------------------------------------------- blocks -> text
def to_text(blocks: Iterable[Block]) -> str:
    """Return blocks as plain lines, columns aligned by spaces; blank lines around tables."""
    lines: list[str] = []
    after_table = False
    for block in map(clean, blocks):
        is_table = isinstance(block, TextTable)
        if lines and (is_table or after_table):
            lines.append("")
        lines += [block] if isinstance(block, str) else _plain(block)
        after_table = is_table
    return "\n".join([*lines, ""])


def clean(block: Block) -> Block:
    """Make a block printable: names, params and errors come from a tracking server."""
    if isinstance(block, str):
        return printable(block)
    rows = tuple(tuple(map(printable, row)) for row in block.rows)
    columns = tuple(map(printable, block.columns))
    return replace(block, title=printable(block.title), columns=columns, rows=rows)


def _plain(table: TextTable) -> list[str]:
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    shown = [
        "  ".join(
            cell.ljust(width) if i < table.texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [table.title, *shown]


def to_markdown(blocks: Iterable[Block], mark: str = "##") -> str:
    """Return blocks as Markdown: each line a list item, each table a section under its `mark`."""
    parts: list[str] = []
    after_table = False
    for block in map(clean, blocks):
        is_table = isinstance(block, TextTable)
        if parts and (is_table or after_table):
            parts.append("")
        if isinstance(block, str):
            parts.append(f"- {_escaped(block)}")
        else:
            marks = [":--" if i < block.texts else "--:" for i in range(len(block.columns))]
            rows = [block.columns, marks, *block.rows]
            lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
            parts += [f"{mark} {_escaped(block.title)}", "", *lines]
        after_table = is_table
    return "\n".join([*parts, ""])


def _escaped(text: str) -> str:
    for mark in ("\\", "|", "<", "*", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text


def show(blocks: Sequence[Block], console: Console | None = None) -> None:
    """Print blocks: with lines around tables on a terminal, plain otherwise.

    Parameters
    ----------
    blocks : sequence of Block
        What to print.
    console : rich.console.Console, optional
        Where to; standard output by default.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.file.write(to_text(blocks))
        return
    for block in map(clean, blocks):
        if isinstance(block, str):
            console.print(Text(block), soft_wrap=True)
        else:
            console.print(_rich(block))


def _rich(table: TextTable) -> RichTable:
    # Cells are wrapped in Text: "[...]" in a plain string would be taken for markup.
    shown = RichTable(
        title=Text(table.title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for i, head in enumerate(table.columns):
        left = i < table.texts
        wraps = left or "[" in head  # an interval may take a line of its own, a number may not
        shown.add_column(
            Text(head),
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=not wraps,
        )
    for i, row in enumerate(table.rows):
        if i in table.sections:
            shown.add_section()
        shown.add_row(*(Text(cell) for cell in row))
    return shown
