"""What a node would say of its file: columns, types, missing values, classes, rows, problems.

The functions that load a table judge it here too; all problems are collected instead of the first
one being raised. A report shows cells: it is for the node's own terminal, which no cell commands.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.config.options import MIN_LEVEL_ROWS, Task
from fl_app.config.schema import Config
from fl_app.data.columns import is_missing, is_text, plain
from fl_app.data.encoding import counted, in_company
from fl_app.data.files import read_frame
from fl_app.data.tabular import (
    MISSING,
    Columns,
    Roles,
    assign_roles,
    bracket,
    kept_rows,
    listed,
    notes,
    one_class,
    parse,
    quoted,
    target_of,
    text_columns,
)
from fl_app.errors import DataError, InputError, printable

__all__ = ["CheckReport", "ColumnReport", "report"]

_LONGEST_LINE = 100_000
_FEW = 20
"""Different whole numbers up to which a target whose task nobody told is taken for classes."""


@dataclass(frozen=True)
class ColumnReport:
    """One column.

    Parameters
    ----------
    name : str
        Its name.
    kind : str
        What its cells are, in words.
    role : str
        ``feature``, ``categorical``, ``target``, ``key`` or nothing.
    missing : int
        Its missing cells.
    values : str
        Range of its numbers, or its levels.
    """

    name: str
    kind: str
    role: str
    missing: int
    values: str


@dataclass(frozen=True)
class CheckReport:
    """What there is to say of a file.

    Parameters
    ----------
    path : str
        The file.
    rows : int
        Its rows; 0 where it cannot be read.
    columns : tuple of ColumnReport
        Its columns.
    roles : Roles or None
        The roles of the columns; None where they contradict the file.
    classes : tuple of (label, int)
        Rows of each class in order; empty for regression.
    policies : tuple of (str, int, str)
        For each value of ``dataset.missing`` the rows that a run would use, and, where that is 0,
        why it cannot.
    problems : tuple of str
        What keeps every run from using the file, each in one sentence.
    notes : tuple of str
        What a run can live with.
    """

    path: str
    rows: int = 0
    columns: tuple[ColumnReport, ...] = ()
    roles: Roles | None = None
    classes: tuple[tuple[int | str, int], ...] = ()
    policies: tuple[tuple[str, int, str], ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether a run could use the file under some value of ``dataset.missing``."""
        return not self.problems and any(rows for _, rows, _ in self.policies)

    def render(self) -> str:
        """Return the report as lines of text."""
        lines = [f"{self.path}: {self.rows} rows, {len(self.columns)} columns"]
        lines += self._table()
        if self.roles is not None and self.roles.targets:
            lines.append(f"target: {listed(self.roles.targets)} ({self.roles.task})")
        if self.classes:
            counts = [f"{label}: {count}" for label, count in self.classes]
            lines.append(f"{len(counts)} classes, rows of each: {listed(counts)}")
        for policy, rows, why in self.policies:
            says = f"{rows} of {self.rows} rows" if rows else f"cannot be used, {why}"
            lines.append(f"dataset.missing={policy}: {says}")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append(f"usable: {'yes' if self.usable else 'no'}")
        if self.usable and self.roles is not None and self.roles.targets and len(self.classes) != 1:
            lines.append(f"try: {self._command(self.roles)}")
        # The command may be long: it names all columns that are texts.
        return "\n".join(printable(line, _LONGEST_LINE) for line in lines)

    def _table(self) -> list[str]:
        """Return the columns in a table whose cells stand below each other."""
        head = ("column", "type", "role", "missing", "values")
        cells = [head, *((c.name, c.kind, c.role, str(c.missing), c.values) for c in self.columns)]
        if len(cells) == 1:
            return []
        shown = [[printable(cell) for cell in row] for row in cells]
        widths = [max(len(row[j]) for row in shown) for j in range(len(head) - 1)]
        return ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in shown]

    def _command(self, roles: Roles) -> str:
        """Return a command that runs on the file, all of its rows if possible."""
        policy = max(self.policies, key=lambda p: p[1])[0]
        one = len(roles.targets) == 1
        overrides = [
            "dataset=tabular",
            f"dataset.path={quoted(str(Path(self.path).absolute()))}",
            f"dataset.target={quoted(roles.targets[0]) if one else bracket(roles.targets)}",
            f"dataset.task={roles.task}",
        ]
        if roles.categorical:
            overrides.append(f"dataset.categorical={bracket(roles.categorical)}")
        if policy != MISSING[0]:
            overrides.append(f"dataset.missing={policy}")
        if roles.key is not None:
            overrides += ["partitioner=natural", f"partitioner.key={quoted(roles.key)}"]
        return shlex.join(["fl-app", *overrides])


def report(
    path: str | Path,
    target: str | Sequence[str] | None = None,
    task: Task | None = None,
    features: Sequence[str] | None = None,
    categorical: Sequence[str] | None = None,
    key: str | None = None,
) -> CheckReport:
    """Check a file.

    Parameters
    ----------
    path : str or Path
        The file.
    target, task, features, categorical, key : optional
        As for :func:`fl_app.data.tabular.load_tabular`. Without a target, every column is judged
        as a feature. Without a task, a target of texts or of at most 20 different whole numbers is
        taken for classes. Without ``categorical``, columns of which less than half are numbers are
        taken as texts.

    Returns
    -------
    CheckReport
    """
    try:
        frame = read_frame(path)
    except InputError as error:
        return CheckReport(str(path), problems=(str(error),))
    try:
        roles = _roles(frame, target, task, features, categorical, key)
    except InputError as error:
        return CheckReport(str(path), len(frame), _describe(frame, None), problems=(str(error),))
    problems: list[str] = []
    columns = parse(frame, roles, lambda error: problems.append(str(error)))
    policies = () if problems else tuple(_policy(columns, missing) for missing in MISSING)
    if not any(rows for _, rows, _ in policies):
        problems += dict.fromkeys(why for _, _, why in policies)
    return CheckReport(
        str(path),
        len(frame),
        _describe(frame, roles),
        roles,
        _classes(columns),
        policies,
        tuple(problems),
        (*notes(columns), *_untold(columns, len(frame))),
    )


def _untold(columns: Columns, rows: int) -> list[str]:
    """Say what a node with this file of its own keeps to itself, and what comes of that."""
    roles, found = columns.roles, []
    if rows < Config.min_rows:
        found.append(f"{rows} rows: below min_rows={Config.min_rows} only their number is told")
    few = f"fewer than dataset.min_level_rows={MIN_LEVEL_ROWS} rows have them, so a node tells none"
    for name, values in columns.targets.items():
        if roles.task == "regression":
            break
        labels = [label for label in values.tolist() if label is not None]
        if rare := counted(labels, in_company(labels, MIN_LEVEL_ROWS)):
            lost = "these rows are left out unless another node or dataset.classes names the class"
            found.append(f"{name}={rare}: {few}; {lost}")
        if len(set(labels)) == 1:
            found.append(f"{one_class(name, values)}, in the other nodes' files at least")
    for name in roles.categorical:
        levels = columns.features[name].tolist() if name in columns.features else []
        if rare := counted(levels, in_company(levels, MIN_LEVEL_ROWS)):
            other = "these count as OTHER unless another node or dataset.levels names the level"
            found.append(f"{name}={rare}: {few}; {other}")
    return found


def _roles(
    frame: Any,
    target: str | Sequence[str] | None,
    task: Task | None,
    features: Sequence[str] | None,
    categorical: Sequence[str] | None,
    key: str | None,
) -> Roles:
    """Assign roles, and find out what nobody told."""
    told = () if target is None else target
    # Several targets are one task only; labels of one are looked at once it is known to exist.
    roles = assign_roles(
        list(frame.columns), told, task or "regression", features, categorical or (), key
    )
    if task is None and len(roles.targets) == 1:
        roles = replace(roles, task=_guess_task(frame[roles.targets[0]]))
    if categorical is None:
        roles = replace(roles, categorical=tuple(text_columns(frame, roles.features)))
    return roles


def _guess_task(column: Any) -> Task:
    values = {value for value in plain(column).tolist() if value is not None}
    if any(isinstance(value, str) for value in values) and is_text(column):
        return "classification"
    whole = all(isinstance(value, int) for value in values)
    return "classification" if whole and len(values) <= _FEW else "regression"


def _policy(columns: Columns, missing: str) -> tuple[str, int, str]:
    try:
        kept = kept_rows(columns, missing)
        if columns.roles.targets:
            target_of(columns, kept)
    except DataError as error:
        return missing, 0, str(error)
    return missing, int(kept.sum()), ""


def _classes(columns: Columns) -> tuple[tuple[int | str, int], ...]:
    """Count the rows of each class; nothing where the labels cannot be classes."""
    if columns.roles.task == "regression" or not columns.targets:
        return ()
    kept = ~is_missing(next(iter(columns.targets.values())))
    try:
        labels = target_of(columns, kept)
    except DataError:
        return ()
    return tuple(sorted(Counter(labels.tolist()).items()))


def _describe(frame: Any, roles: Roles | None) -> tuple[ColumnReport, ...]:
    return tuple(
        ColumnReport(
            name,
            _kind(frame[name]),
            "" if roles is None else _role(name, roles),
            len(frame) - len(_filled(frame[name])),
            _values(frame[name]),
        )
        for name in frame.columns
    )


def _role(name: str, roles: Roles) -> str:
    if name in roles.targets:
        return "target"
    if name in roles.categorical:
        return "categorical"
    if name in roles.features:
        return "feature"
    return "key" if name == roles.key else ""


def _filled(column: Any) -> Any:
    """Return the cells that are not missing."""
    return column[column.notna() & (column != "")]


def _kind(column: Any) -> str:
    filled = _filled(column)
    if not len(filled):
        return "empty"
    if column.dtype.kind in "mM":
        return "date or time"
    if all(isinstance(value, bool | np.bool_) for value in filled):
        return "true or false"
    if is_text(column):
        return "text"
    if column.dtype.kind not in "biuf":
        return "numbers and text"
    return "whole number" if (filled == filled.round()).all() else "number"


def _values(column: Any) -> str:
    filled = _filled(column)
    if not len(filled):
        return ""
    if column.dtype.kind in "iuf":
        return f"{filled.min():g} to {filled.max():g}"
    levels = sorted({str(value) for value in filled})
    return f"{len(levels)} different: {listed(levels, 5)}"
