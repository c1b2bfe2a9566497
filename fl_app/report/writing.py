"""Writes a report to a folder: Markdown to read, CSV to plot, JSON with everything, LaTeX to print.

Two reports of the same runs by the same command are equal but for the line ``made on``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fl_app.config.run_request import versions
from fl_app.errors import InputError
from fl_app.home import write
from fl_app.report.budgets import Pair, bytes_by_round
from fl_app.report.comparing import Comparison
from fl_app.report.convergence import judge
from fl_app.report.expectations import Outcome
from fl_app.report.latex import to_latex
from fl_app.report.rendering import TextTable, comparison_parts, to_markdown
from fl_app.report.runs import RunSummary, natural
from fl_app.report.sections import Sections, missing, reference_lines, report_sections
from fl_app.report.tables import Table
from fl_app.report.targets import first_reached, reached, spread, spread_of
from fl_app.report.verdict import sentences
from fl_app.tracking.mlflow.uri import masked

__all__ = ["as_csv", "as_dict", "as_markdown", "check_place", "whole_report", "write_report"]


def check_place(option: str, path: str | Path, is_folder: bool) -> None:
    """Refuse a place that cannot be written to, before anything is read.

    Parameters
    ----------
    option : str
        Who names it.
    path : path
        A file or a folder; what stands above it is made where it is not there.
    is_folder : bool
        Which of them it is.

    Raises
    ------
    InputError
        Naming option and path.
    """
    place, kind = Path(path), "folder" if is_folder else "file"
    there = next(p for p in (place, *place.absolute().parents) if p.exists())
    why = f"a {kind} that can be written to"
    if there == place and not (place.is_dir() if is_folder else place.is_file()):
        kind = "folder" if place.is_dir() else "file" if place.is_file() else "device or pipe"
        raise InputError(option, path, f"{why} (it is a {kind})")
    if there != place and not there.is_dir():
        raise InputError(option, path, f"{why} ({there} is no folder)")
    try:  # rather than ask for permissions, which some file systems and root have and cannot use
        with tempfile.TemporaryFile(dir=there if there.is_dir() else there.parent):
            pass
    except OSError as error:
        raise InputError(option, path, f"{why} ({error.strerror})") from None


def write_report(
    folder: str | Path, comparison: Comparison, outcomes: Sequence[Outcome] = (), command: str = ""
) -> tuple[Path, ...]:
    """Write ``report.md``, ``report.csv``, ``report.json`` and ``report.tex``.

    Parameters
    ----------
    folder : path
        Made where it is not there; reports in it are replaced.
    comparison : Comparison
        The comparison.
    outcomes : sequence of Outcome
        Expectations that were checked.
    command : str
        The command line that made it; a password in a URI is not written.

    Returns
    -------
    tuple of Path
        The files.

    Raises
    ------
    InputError
        If the folder cannot be written to.
    """
    command = masked(command)
    made = {"command": command, "machine": _machine(), "versions": versions()}
    data = {**as_dict(comparison, outcomes), **made}
    texts = {
        "report.md": as_markdown(comparison, outcomes, command),
        "report.csv": as_csv(comparison),
        "report.json": _as_json(data),
        "report.tex": as_latex(comparison),
    }
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write(Path(folder, name), text, sync=False)
    except OSError as error:
        why = f"a folder that can be written to ({error.strerror})"
        raise InputError("--out", folder, why) from None
    return tuple(Path(folder, name) for name in texts)


def _as_json(data: Mapping[str, Any]) -> str:
    """Write an object with a line for each of its keys: indented it would be twice as long."""
    lines = (f'"{key}": {json.dumps(value, allow_nan=False)}' for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def as_markdown(comparison: Comparison, outcomes: Sequence[Outcome] = (), command: str = "") -> str:
    """Return a report as Markdown, with the run ids of every row and where it was made."""
    sections = whole_report(comparison, outcomes, command)
    parts = [f"# {comparison.metric} by {comparison.design.key.name}\n"]
    for name, blocks in sections.items():
        parts.append(f"## {name}\n\n{to_markdown(blocks, '###')}")
    return "\n".join(parts)


def whole_report(
    comparison: Comparison, outcomes: Sequence[Outcome] = (), command: str = ""
) -> Sections:
    """Return all sections of a report, with the runs' ids and what made it."""
    told = [
        f"command: {masked(command)}" if command else "",
        f"machine of this report: {_machine()}",
        f"versions: {', '.join(f'{name} {number}' for name, number in versions().items())}",
        f"made on {datetime.now(UTC).isoformat(timespec='seconds')}",
    ]
    sections = dict(report_sections(comparison, outcomes))
    made = [*sections.pop("Made by", ()), *filter(None, told)]
    return {**sections, "Runs": [_run_ids(comparison)], "Made by": made}


def as_latex(comparison: Comparison) -> str:
    """Return the tables of a comparison as LaTeX, those of the finished methods first."""
    parts = comparison_parts(comparison, ())["Differences"]
    return to_latex([block for block in parts if isinstance(block, TextTable)])


def _run_ids(comparison: Comparison) -> TextTable:
    """List the runs, and at last the shorter ones that stand for others at equal bytes."""
    c = comparison
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for cell in c.cells:
        for level in c.levels:
            runs = c.design.runs[cell.label, level]
            seeds = sorted(runs, key=natural)
            found[cell.label, level] = [(seed, runs[seed].run_id) for seed in seeds]
    for level, pairs in ({} if c.at_bytes is None else c.at_bytes.pairs).items():
        for pair in pairs:
            for label, point in ((level, pair.level), (c.baseline, pair.baseline)):
                own, more = found[pair.cell, label], (pair.cell, f"{label} at equal bytes")
                if (one := (pair.seed, point.run_id)) not in (*own, *found.get(more, ())):
                    found.setdefault(more, []).append(one)
    rows = tuple(
        (cell or "all", level, ", ".join(f"{seed}: {run_id}" for seed, run_id in runs))
        for (cell, level), runs in found.items()
    )
    return TextTable("runs", ("cell", c.design.key.name, "seed: run id"), rows, texts=3)


_FAILED = ("seed", "status", "error")
_PAIR = ("value", "round", "baseline", "baseline_round")
_PLACES = {
    "end": _PAIR,
    "equal_rounds": _PAIR,
    "equal_bytes": (*_PAIR, "bytes", "run_id", "baseline_run_id"),
}
_COLUMNS = (
    *("cell", "level", "seed", "bytes", "run_id", "baseline_run_id"),
    *(f"{name}_at_{place}" for place, names in _PLACES.items() for name in names),
    *("rounds_to_target", "bytes_to_target", "worst_client", "client_gap", "status"),
    *("interval", "n_test_to_n_train", "chosen", "convergence"),
)


def as_csv(comparison: Comparison) -> str:
    """Return one line for each run: where it stands, its values in each table, its id.

    The values of a level are those of its pairs with the baseline, whose values in that pair stand
    beside them; those of the baseline itself are its own end. Empty is what has no place in a
    table; at equal bytes a run may be one with fewer rounds. ``interval`` is the kind of the
    interval that the level has in that cell at its end, ``n_test_to_n_train`` its ratio.
    ``chosen`` are the values of the tuned params, ``convergence`` is the verdict on the whole run.
    ``worst_client`` and ``client_gap`` are of its last round; a run that never reaches the target
    has empty cells there. Runs that do not count come last, with their ``status`` alone.
    """
    c = comparison
    file = io.StringIO()
    writer = csv.DictWriter(file, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    kinds = {(r.cell, r.level): r.difference.kind for r in c.finished.rows if r.difference}
    tables = {"end": c.finished, "equal_rounds": c.at_rounds, "equal_bytes": c.at_bytes}
    for level in c.levels:
        pairs = {place: _by_place(table, level) for place, table in tables.items()}
        for cell, seed in pairs["end"]:
            run = c.design.runs[cell, level][seed]
            sent = bytes_by_round(run)
            line: dict[str, object] = {"cell": cell, "level": level, "seed": seed}
            line["chosen"] = c.design.tuning.chosen(cell, level, seed)
            line["convergence"] = judge(run).word
            line |= {"bytes": max(sent.values()) if len(sent) > 1 else "", "run_id": run.run_id}
            for place, names in _PLACES.items():
                if (pair := pairs[place].get((cell, seed))) is not None:
                    values = _values(pair, level == c.baseline)
                    line |= {f"{name}_at_{place}": values[name] for name in names}
            if level != c.baseline:
                line["baseline_run_id"] = c.design.runs[cell, c.baseline][seed].run_id
                kind = kinds.get((cell if len(c.cells) > 1 else None, level), "")
                ratio = c.grounds[cell].ratio if kind == "corrected t" else ""
                line |= {"interval": kind, "n_test_to_n_train": ratio}
            writer.writerow(line | _further(c, run))
    for run in c.unfinished:
        level = " ".join(run.params.get(param, "") for param in c.design.key.params)
        told = {"level": level, "seed": run.seed, "run_id": run.run_id, "status": run.status}
        writer.writerow(told)
    return file.getvalue()


def _further(c: Comparison, run: RunSummary) -> dict[str, object]:
    """Return when a run reaches the target, its worst client, and that it has finished."""
    told = spread_of(run, c.metric)
    line: dict[str, object] = {"worst_client": told.get("worst", ""), "status": run.status}
    line["client_gap"] = told.get("gap", "")
    if c.target is not None:
        found = first_reached(run, c.metric, c.target, c.higher_is_better)
        rounds, sent = (value if math.isfinite(value) else "" for value in found)
        line |= {"rounds_to_target": rounds, "bytes_to_target": sent}
    return line


def _values(pair: Pair, is_baseline: bool) -> dict[str, object]:
    own, base = pair.level, pair.baseline
    values = {
        "value": own.value,
        "round": own.server_round,
        "bytes": own.bytes,
        "run_id": own.run_id,
    }
    other = {
        "baseline": base.value,
        "baseline_round": base.server_round,
        "baseline_run_id": base.run_id,
    }
    return {**values, **(dict.fromkeys(other, "") if is_baseline else other)}


def _by_place(table: Table | None, level: str) -> Mapping[tuple[str, str], Pair]:
    return {} if table is None else {(pair.cell, pair.seed): pair for pair in table.pairs[level]}


def as_dict(comparison: Comparison, outcomes: Sequence[Outcome] = ()) -> dict[str, Any]:
    """Return everything that a report shows as JSON-ready data; what is no number is None."""
    c = comparison
    tables = {"end": c.at_end, "equal_rounds": c.at_rounds, "equal_bytes": c.at_bytes}
    data: dict[str, Any] = _finite(
        {
            "metric": c.metric,
            "higher_is_better": c.higher_is_better,
            "key": c.design.key.name,
            "baseline": c.baseline,
            "levels": list(c.levels),
            "cells": [asdict(cell) for cell in c.cells],
            "tables": {
                name: None
                if table is None
                else {
                    "rows": [asdict(row) for row in table.rows],
                    "pairs": {
                        level: [{**asdict(pair), "difference": pair.difference} for pair in pairs]
                        for level, pairs in table.pairs.items()
                    },
                    "gaps": {
                        level: [asdict(gap) for gap in gaps] for level, gaps in table.gaps.items()
                    },
                }
                for name, table in tables.items()
            },
            "tuning": c.design.tuning.as_dict(),
            "data": [asdict(one) for one in c.data],
            "runs_made_by": [asdict(maker) for maker in c.made],
            "convergence": [asdict(one) for one in c.judged],
            "grounds": {cell: asdict(ground) for cell, ground in c.grounds.items()},
            "expectations": [
                {**asdict(outcome), "holds_strictly": outcome.holds_strictly}
                for outcome in outcomes
            ],
            "notes": list(c.notes),
            "answer": sentences(c),
            "target": {"value": c.target, "rows": [asdict(row) for row in reached(c)]},
            "fairness": [asdict(row) for row in spread(c)],
            "references": reference_lines(c),
            "unfinished": [
                {name: getattr(run, name) for name in ("run_id", "title", *_FAILED)}
                for run in c.unfinished
            ],
            "missing": [{"cell": cell, "seed": seed} for cell, seed in missing(c)],
        }
    )
    return data


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPUs, {memory:.0f} GB, {platform.system()} {platform.machine()}"
