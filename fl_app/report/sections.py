"""All that a report on paper says, by what it speaks of: the comparison's blocks, and more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fl_app.models.metrics import FEWEST_ROWS
from fl_app.report.comparing import Comparison
from fl_app.report.expectations import Outcome
from fl_app.report.rendering import (
    Block,
    TextTable,
    comparison_parts,
    decimals_for,
    plus_minus,
    scopes,
)
from fl_app.report.runs import REFERENCES, RunSummary, listed, natural, short
from fl_app.report.targets import reached, spread
from fl_app.report.verdict import sentences
from fl_app.tracking.metric_names import bytes_text

__all__ = ["Sections", "missing", "reference_lines", "report_sections", "target_blocks"]

Sections = Mapping[str, Sequence[Block]]
"""Blocks by heading, in order; none is empty."""

_REFERENCE = {"local": "every client alone", "pooled": "all rows in one place"}
_ROWS = {"train": "train", "validation": "validate", "test": "test"}
_DRAWS = {
    "table": "the whole table",
    "test": "the test rows, and so all others",
    "deal": "only which client has which rows",
    "nothing": "no rows",
}


def report_sections(comparison: Comparison, outcomes: Iterable[Outcome] = ()) -> Sections:
    """Return what a report says, from the sentence that answers to what is not known.

    Parameters
    ----------
    comparison : Comparison
        The comparison.
    outcomes : iterable of Outcome
        Expectations that were checked.
    """
    c, parts = comparison, comparison_parts(comparison, tuple(outcomes))
    sections: dict[str, list[Block]] = {
        "Answer": [*sentences(c)] or ["no sentence: there is no rival to compare with"],
        "Question": parts["Question"],
        "Data and split": [*parts["Data and split"], *_split_lines(c)],
        "Strategies": [_levels(c)],
        "How tuned": parts["How tuned"] or ["nothing was tuned: settings are those of the runs"],
        "Differences": parts["Differences"],
        "Until the target": target_blocks(c),
        "Fairness": _fairness(c),
        "References": [*reference_lines(c)],
        **{name: parts[name] for name in ("Converged", "Expected", "What the intervals speak of")},
        "Failed and missing": _not_counted(c),
        "Notes": parts["Notes"],
        "Made by": parts["Made by"],
    }
    return {name: blocks for name, blocks in sections.items() if blocks}


def target_blocks(c: Comparison) -> list[Block]:
    """Return when each level first reaches the target; nothing where nobody asks for one."""
    rows = reached(c)
    if not rows:
        return []
    which = "at least" if c.higher_is_better else "at most"
    told = [
        (
            row.level,
            str(row.num_runs),
            str(row.num_runs - row.num_reached),
            _number(row.rounds, row.num_reached),
            "-" if row.bytes is None else bytes_text(row.bytes, 4),
        )
        for row in rows
    ]
    heads = (c.design.key.name, "runs", "never", "rounds", "bytes")
    title = f"until {c.metric} is {which} {c.target:g}"
    return [
        _table(c, title, heads, told),
        "medians over the runs; one that never reaches it comes after all that do",
    ]


def _number(value: float | None, num_reached: int) -> str:
    if value is None:
        return "too few reach it" if num_reached else "none reaches it"
    return f"{value:g}"


def _fairness(c: Comparison) -> list[Block]:
    rows = spread(c)
    if not rows:
        who = f"clients with at least {FEWEST_ROWS} validation rows"
        return [f"no run tells how the metric spreads over {who}"]
    digits = decimals_for(end[0] for row in rows for end in (row.worst, row.gap) if end)
    told = [
        (
            row.level,
            str(row.num_runs),
            *("-" if end is None else plus_minus(*end, digits) for end in (row.worst, row.gap)),
        )
        for row in rows
    ]
    name = c.metric.partition("/")[2]
    return [
        _table(
            c,
            f"{name} on the clients' validation rows, after the last round: mean ± sd",
            (c.design.key.name, "runs", "worst client", "gap to the best"),
            told,
        ),
        f"of clients with at least {FEWEST_ROWS} such rows",
    ]


def _table(
    c: Comparison, title: str, heads: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> TextTable:
    """Make a table with a row for each level in each scope, and the scopes' names beside them."""
    names = [scope for scope, _ in scopes(c)]
    if names == [""]:
        return TextTable(title, tuple(heads), tuple(rows))
    size = len(c.levels)
    named = [("" if i % size else names[i // size], *row) for i, row in enumerate(rows)]
    sections = tuple(range(size, len(rows), size))
    return TextTable(title, ("cell", *heads), tuple(named), 2, sections)


def _levels(c: Comparison) -> TextTable:
    """Say of each level what it is: its settings and its seeds."""
    rows = []
    for level in c.levels:
        runs = [run for cell in c.cells for run in c.design.runs[cell.label, level].values()]
        names = {n for run in runs for n in run.params if c.design.key.owns(n)}
        settings = [
            f"{short(name)}={listed(sorted({r.params.get(name, '-') for r in runs}, key=natural))}"
            for name in sorted(names, key=_name_first)
            if name not in c.design.tuning.keys
        ]
        seeds = sorted({run.seed for run in runs}, key=natural)
        rows.append((level, ", ".join(settings), listed(seeds)))
    return TextTable("settings", (c.design.key.name, "settings", "seeds"), tuple(rows), 3)


def _name_first(param: str) -> tuple[bool, str]:
    return not param.endswith(".name"), param


def _split_lines(c: Comparison) -> list[str]:
    """Say how rows were dealt to clients, and how many are for what."""
    found: dict[tuple[str, str], dict[str, set[int]]] = {}
    for run in _counted(c):
        names = [n for n in sorted(run.params, key=_name_first) if n.startswith("partitioner.")]
        names = [n for n in (*names, "num_clients", "dataset.test_fraction") if n in run.params]
        deal = ", ".join(f"{short(name)}={run.params[name]}" for name in names)
        counts = found.setdefault((deal, run.tags.get("data.seed_draws", "")), {})
        for rows, what in _ROWS.items():
            if (count := run.tags.get(f"data.{rows}_rows", "")).isdecimal():
                counts.setdefault(what, set()).add(int(count))
    lines = []
    for (deal, draws), counts in found.items():
        told = [f"{_range(own)} rows {what}" for what, own in counts.items()]
        told = [
            deal or "split not told",
            *told,
            f"the seed draws {_DRAWS[draws]}" if draws in _DRAWS else "",
        ]
        lines.append(f"split: {'; '.join(filter(None, told))}")
    return lines


def _range(values: set[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def reference_lines(c: Comparison) -> list[str]:
    """Say what the references reach, or that they are not there."""
    kinds: dict[str, set[str]] = {}
    for (_, level), seeds in c.design.runs.items():
        for run in seeds.values():
            kinds.setdefault(run.params.get("strategy.name", ""), set()).add(level)
    digits = decimals_for(row.mean for row in c.finished.rows)
    lines = []
    for name in REFERENCES:
        own = [row for row in c.finished.overall if row.level in kinds.get(name, ())]
        head = f"{name} ({_REFERENCE[name]})"
        for row in own:
            where = f" at {row.group}" if row.group else ""
            mean = plus_minus(row.mean or 0.0, row.sd, digits)
            lines.append(f"{head}: {row.level} {mean}{where}, mean ± sd at its end")
        if not own:
            lines.append(f"{head}: no run of it is among these; strategy={name} makes one")
    worse = [run.title for run in _counted(c) if run.tags.get("worse_than_constant") == "true"]
    told = f"worse than it: {listed(worse)}" if worse else "no run is marked as worse than it"
    lines.append(f"constant (a model that ignores its features): its value is not recorded; {told}")
    return lines


def _counted(c: Comparison) -> list[RunSummary]:
    return [run for seeds in c.design.runs.values() for run in seeds.values()]


def missing(c: Comparison) -> list[tuple[str, str]]:
    """Return the seeds that some cells have and others have not, as (cell, seed)."""
    own = {cell.label: set(c.design.runs[cell.label, c.baseline]) for cell in c.cells}
    every = sorted(set().union(*own.values()), key=natural)
    return [(cell, seed) for cell, seeds in own.items() for seed in every if seed not in seeds]


def _not_counted(c: Comparison) -> list[Block]:
    params = c.design.key.params
    rows = [
        (
            run.title,
            " ".join(run.params.get(param, "-") for param in params),
            *(run.seed or "-", run.status, run.error or "-"),
        )
        for run in c.unfinished
    ]
    rows += [("-", "all", seed, "missing", f"no run at {cell}") for cell, seed in missing(c)]
    if not rows:
        return [
            "none: all runs of this comparison have finished, and all cells have the same seeds"
        ]
    heads = ("run", c.design.key.name, "seed", "status", "why")
    return [TextTable("runs that do not count", heads, tuple(rows), 5)]
