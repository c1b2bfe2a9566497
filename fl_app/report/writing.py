"""Writes a report to a folder: Markdown to read, CSV to plot, JSON with everything.

Two reports of the same runs by the same command are equal but for the line ``made on``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fl_app.errors import InputError
from fl_app.report.budgets import Pair, bytes_by_round
from fl_app.report.comparing import Comparison, Outcome, Table
from fl_app.report.rendering import TextTable, comparison_blocks, to_markdown
from fl_app.report.runs import RunSummary
from fl_app.tracking.store import masked

__all__ = ["as_csv", "as_dict", "as_markdown", "write_report"]

_PACKAGES = ("fl-app", "flwr", "mlflow", "numpy", "scikit-learn", "scipy")


def write_report(
    folder: str | Path, comparison: Comparison, outcomes: Sequence[Outcome] = (), command: str = ""
) -> tuple[Path, ...]:
    """Write ``report.md``, ``report.csv`` and ``report.json``.

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
    made = {"command": command, "machine": _machine(), "versions": _versions()}
    data = {**as_dict(comparison, outcomes), **made}
    texts = {
        "report.md": as_markdown(comparison, outcomes, command),
        "report.csv": as_csv(comparison),
        "report.json": json.dumps(data, indent=1, allow_nan=False) + "\n",
    }
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        return tuple(_write(Path(folder, name), text) for name, text in texts.items())
    except OSError as error:
        why = f"a folder that can be written to ({error.strerror})"
        raise InputError("--out", folder, why) from None


def _write(path: Path, text: str) -> Path:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8", newline="")
    os.replace(partial, path)
    return path


def as_markdown(comparison: Comparison, outcomes: Sequence[Outcome] = (), command: str = "") -> str:
    """Return a report as Markdown, with the run ids of every row and where it was made."""
    head = f"# {comparison.metric} by {comparison.design.key.name}\n"
    told = [
        f"command: `{command}`" if command else "",
        f"machine of this report: {_machine()}",
        f"versions: {', '.join(f'{name} {number}' for name, number in _versions().items())}",
        f"made on {datetime.now(UTC).isoformat(timespec='seconds')}",
    ]
    foot = "## made by\n\n" + "".join(f"- {line}\n" for line in told if line)
    tables = to_markdown([*comparison_blocks(comparison, outcomes), _run_ids(comparison)])
    return f"{head}\n{tables}\n{foot}"


def _run_ids(comparison: Comparison) -> TextTable:
    rows = []
    for cell in comparison.cells:
        for level in comparison.levels:
            runs = comparison.design.runs[cell.label, level]
            points = comparison.at_rounds.pairs[level]
            seeds = [pair.seed for pair in points if pair.cell == cell.label]
            ids = ", ".join(f"{seed}: {runs[seed].run_id}" for seed in seeds)
            rows.append((cell.label or "all", level, ids))
    columns = ("cell", comparison.design.key.name, "seed: run id")
    return TextTable("runs", columns, tuple(rows), texts=3)


_COLUMNS = (
    *("cell", "level", "seed"),
    *("value_at_equal_rounds", "round_at_equal_rounds"),
    *("value_at_equal_bytes", "round_at_equal_bytes", "bytes_at_equal_bytes"),
    *("bytes", "run_id"),
    *("baseline_at_equal_rounds", "baseline_at_equal_bytes", "baseline_run_id"),
    *("interval", "n_test_to_n_train", "chosen"),
)


def as_csv(comparison: Comparison) -> str:
    """Return one line for each run: where it stands, its values at both budgets, its id.

    The values of a level are those of its pairs with the baseline, whose values in that pair stand
    beside them; those of the baseline itself are its own end. ``interval`` is the kind of the
    interval that the level has in that cell at equal rounds, ``n_test_to_n_train`` its ratio.
    ``chosen`` are the values of the tuned params.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    several = len(comparison.cells) > 1
    kinds = {
        (r.cell, r.level): r.difference.kind for r in comparison.at_rounds.rows if r.difference
    }
    for level, pairs in comparison.at_rounds.pairs.items():
        others = _by_place(comparison.at_bytes, level)
        for pair in pairs:
            run = comparison.design.runs[pair.cell, level][pair.seed]
            other = others.get((pair.cell, pair.seed))
            base = level == comparison.baseline
            kind = kinds.get((pair.cell if several else None, level), "")
            ratio = comparison.grounds[pair.cell].ratio if kind == "corrected t" else ""
            values = _values(pair, other, run, base)
            chosen = comparison.design.tuning.chosen(pair.cell, level, pair.seed)
            writer.writerow([pair.cell, level, pair.seed, *values, kind, ratio, chosen])
    return file.getvalue()


def _values(pair: Pair, other: Pair | None, run: RunSummary, base: bool) -> list[object]:
    point = None if other is None else other.level
    sent = bytes_by_round(run)
    return [
        *(pair.level.value, pair.level.server_round),
        *(("", "", "") if point is None else (point.value, point.server_round, point.bytes)),
        *(max(sent.values()) if len(sent) > 1 else "", run.run_id),
        *(
            ("", "", "")
            if base
            else (
                pair.baseline.value,
                "" if other is None else other.baseline.value,
                pair.baseline.run_id,
            )
        ),
    ]


def _by_place(table: Table | None, level: str) -> Mapping[tuple[str, str], Pair]:
    return {} if table is None else {(pair.cell, pair.seed): pair for pair in table.pairs[level]}


def as_dict(comparison: Comparison, outcomes: Sequence[Outcome] = ()) -> dict[str, Any]:
    """Return everything that a report shows as JSON-ready data; what is no number is None."""
    c = comparison
    tables = {"equal_rounds": c.at_rounds, "equal_bytes": c.at_bytes}
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
                }
                for name, table in tables.items()
            },
            "tuning": c.design.tuning.as_dict(),
            "grounds": {cell: asdict(ground) for cell, ground in c.grounds.items()},
            "expectations": [
                {**asdict(outcome), "holds_strictly": outcome.holds_strictly}
                for outcome in outcomes
            ],
            "notes": list(c.notes),
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


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # inside Flower's bundle nothing is installed
            continue
    return found
