"""What is no mistake in a file and still deserves a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fl_app.config.dataset_options import MIN_LEVEL_ROWS
from fl_app.config.schema import Config
from fl_app.data.columns import is_missing
from fl_app.data.encoding import counted, in_company, some
from fl_app.data.file_guesses import FEW, RARE
from fl_app.data.parsing import Columns, spelling_options
from fl_app.data.roles import identifies_rows
from fl_app.data.tabular import one_class

__all__ = ["striking", "told_spelling", "untold"]


def told_spelling(spellings: Sequence[Mapping[str, str]]) -> list[str]:
    """Say how numbers are spelt: so below, or else so."""
    ways = map(spelling_options, spellings)
    return [f"numbers are spelt otherwise: {' or '.join(ways)}"] if spellings else []


def striking(
    frame: Any,
    columns: Columns,
    classes: Sequence[tuple[int | str, int]],
    units: Mapping[str, str],
) -> list[str]:
    """Say what is no mistake and still deserves a look.

    Parameters
    ----------
    frame : pandas.DataFrame
        The file.
    columns : Columns
        Its cells.
    classes : sequence of (label, int)
        Rows of each class.
    units : mapping of str to str
        By column of numbers with a unit the first of them.
    """
    roles, said = columns.roles, []
    gaps = {name: float(np.mean(is_missing(cells))) for name, cells in columns.features.items()}
    bare = [f"{name} ({share:.0%} missing)" for name, share in gaps.items() if share > 0.5]
    if bare:
        said.append(f"mostly empty: {some(bare)}; dataset.exclude leaves columns out")
    counting = [name for name in roles.features if identifies_rows(frame[name])]
    if counting and len(frame) > FEW:
        said.append(
            f"another whole number in each row: {some(counting)}; if these are identifiers, "
            "dataset.exclude leaves them out"
        )
    if units:
        shown = some([f"{name} ({cell!r})" for name, cell in units.items()])
        said.append(f"numbers with a unit are texts: {shown}; write the numbers alone")
    same = [name for name, v in columns.features.items() if len({*v[~is_missing(v)].tolist()}) == 1]
    if same:
        said.append(f"one value in every row: {some(same)}")
    counts = dict(classes)
    n = sum(counts.values())
    rare = {label: count for label, count in counts.items() if count < RARE * n / len(counts) * 2}
    if rare and len(counts) > 1:
        most = max(counts, key=lambda label: counts[label])
        shares = [f"{label} ({count / n:.1%})" for label, count in rare.items()]
        said.append(
            f"rare classes of {roles.targets[0]}: {some(shares)}; to say {most} of every row is "
            f"right in {counts[most] / n:.1%}: look at balanced_accuracy and roc_auc too"
        )
    return said


def untold(columns: Columns, rows: int, is_open: bool) -> list[str]:
    """Say what a node with this file of its own keeps to itself, and what comes of that."""
    roles, said = columns.roles, []
    if rows < Config.min_rows:
        said.append(f"{rows} rows: below min_rows={Config.min_rows} only their number is told")
    few = f"fewer than dataset.min_level_rows={MIN_LEVEL_ROWS} rows have them, so a node tells none"
    for name, values in columns.targets.items():
        if roles.task == "regression":
            break
        labels = values[~is_missing(values)]
        if rare := counted(labels.tolist(), in_company(labels.tolist(), MIN_LEVEL_ROWS)):
            lost = "these rows are left out unless another node or dataset.classes names the class"
            said.append(f"{name}={rare}: {few}; {lost}")
        if len(set(labels.tolist())) == 1:
            said.append(f"{one_class(name, labels)}, in the other nodes' files at least")
    rare_levels = []
    for name in () if is_open else roles.categorical:
        levels = [v for v in columns.features.get(name, np.empty(0)).tolist() if v is not None]
        if few_rows := {*levels} - {*in_company(levels, MIN_LEVEL_ROWS)}:
            rare_levels.append(f"{name} ({len(few_rows)})")
    if rare_levels:
        said.append(
            f"levels of fewer than dataset.min_level_rows={MIN_LEVEL_ROWS} rows: "
            f"{some(rare_levels)}: a node tells none, and they count as OTHER unless another "
            "node or dataset.levels names them"
        )
    return said
