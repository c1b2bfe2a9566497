"""What a node would say of its file, and the command of a run that uses it.

The functions that load a table judge it here too; all problems are collected instead of the first
one being raised. A report shows cells: it is for the node's own terminal, which no cell commands.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_app.config.checking import sign
from fl_app.config.options import Task
from fl_app.config.overrides import bracket, quoted
from fl_app.data.columns import is_date, is_text
from fl_app.data.encoding import some
from fl_app.data.file_guesses import guess_task, label_words, odd_cells
from fl_app.data.file_notes import striking, told_spelling, untold
from fl_app.data.file_proposal import OPEN, Proposal, propose, rows_of_each
from fl_app.data.files import read_frame, separator_of
from fl_app.data.missing import MISSING, kept_rows, told_missing
from fl_app.data.parsing import Columns, parse, spelling_options
from fl_app.data.reading import Reading
from fl_app.data.roles import Categorical, Roles, choose, told_left_out
from fl_app.data.spelling import MISSING_WORDS, Spelling, is_measured, told_spellings
from fl_app.data.tabular import MAX_CLASSES, notes, target_of
from fl_app.errors import DataError, InputError, printable

__all__ = ["CheckReport", "ColumnReport", "report"]

_LONGEST_LINE = 100_000


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
    classes, sites : tuple of (label, int)
        Rows of each class in order, and of each value of the key; empty where there are none.
    policies : tuple of (str, int, str)
        For each value of ``dataset.missing`` the rows that a run would use, and, where that is 0,
        why it cannot.
    options : tuple of str
        Overrides ``dataset.…`` that a run needs beside path, target and task.
    clients : tuple of str
        Overrides of the partitioner and the number of clients.
    runs : bool
        Whether a run on this file alone can be proposed.
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
    sites: tuple[tuple[int | str, int], ...] = ()
    policies: tuple[tuple[str, int, str], ...] = ()
    options: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    runs: bool = False
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether a run could use the file under some value of ``dataset.missing``."""
        return not self.problems and any(rows for _, rows, _ in self.policies)

    @property
    def command(self) -> str:
        """A command that runs on the file; "" where there is none."""
        if not self.runs or self.roles is None:
            return ""
        targets = self.roles.targets
        target = quoted(targets[0]) if len(targets) == 1 else bracket(targets)
        overrides = [
            "dataset=tabular",
            f"dataset.path={quoted(os.path.abspath(self.path))}",
            f"dataset.target={target}",
            f"dataset.task={self.roles.task}",
        ]
        return shlex.join(["fl-app", *overrides, *self.options, *self.clients])

    def render(self) -> str:
        """Return the report as lines of text."""
        lines = [f"{self.path}: {self.rows} rows, {len(self.columns)} columns"]
        lines += self._table()
        if self.roles is not None and self.roles.targets:
            lines.append(f"target: {some(self.roles.targets, 20)} ({self.roles.task})")
        for what, counts in (("classes", self.classes), ("sites", self.sites)):
            if counts:
                each = [f"{label}: {count}" for label, count in counts]
                lines.append(f"{len(each)} {what}, rows of each: {some(each, 20)}")
        for policy, rows, why in self.policies:
            says = f"{rows} of {self.rows} rows" if rows else f"cannot be used, {why}"
            lines.append(f"dataset.missing={policy}: {says}")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append(f"usable: {'yes' if self.usable else 'no'}")
        lines += [f"try: {self.command}"] if self.command else []
        # The command may be long: it may name columns.
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
        taken for classes. Without ``categorical``, a run's own choice is made.

    Returns
    -------
    CheckReport
    """
    try:
        raw = read_frame(path, spelling=None)
        spellings = told_spellings([raw[name] for name in raw.columns], separator_of(raw))
        spelling = spellings[0] if spellings else {}
        signs = sign(spelling.get("decimal", "dot")), sign(spelling.get("thousands", ""))
        frame = read_frame(path, spelling=Spelling(MISSING_WORDS, *signs))
    except InputError as error:
        return CheckReport(str(path), problems=(str(error),))
    targets: str | Sequence[str] = () if target is None else target
    if task is None:
        task = guess_task(frame, (targets,) if isinstance(targets, str) else targets)
    auto: Categorical = "auto" if categorical is None else categorical
    try:
        roles, left = choose(frame, targets, task, features, auto, key, Reading())
        odd = odd_cells(frame, roles, features is None, categorical is None)
        labels = label_words(frame, roles)
        if any(odd) or labels:
            spelt_so = Spelling((*MISSING_WORDS, *odd.words, *map(str, odd.codes)), *signs)
            frame = read_frame(path, spelling=spelt_so, values=dict.fromkeys(roles.targets, labels))
            if odd.levels:
                auto = categorical = [*roles.categorical, *odd.levels]
            reading = Reading(exclude=(*odd.mixed, *odd.texts))
            roles, left = choose(frame, targets, task, features, auto, key, reading)
    except InputError as error:
        return CheckReport(str(path), len(frame), _describe(frame, None), problems=(str(error),))
    units = {n: _filled(frame[n]).iloc[0] for n in frame.columns if is_measured(frame[n])}
    problems = [
        f"{name}={units[name]!r}: numbers alone, without a unit, which makes texts of them"
        for name in roles.targets
        if name in units
    ]
    columns = parse(frame, roles, lambda error: problems.append(str(error)))
    policies = () if problems else tuple(_policy(columns, missing) for missing in MISSING)
    if not any(rows for _, rows, _ in policies):
        problems += dict.fromkeys(why for _, _, why in policies)
    classes = rows_of_each(columns.targets) if roles.task == "classification" else ()
    checked = CheckReport(
        str(path),
        len(frame),
        _describe(frame, roles, left),
        roles,
        classes,
        rows_of_each(columns.key),
        policies,
        problems=tuple(problems),
    )
    fits = checked.usable and roles.targets and len(classes) != 1 and len(classes) <= MAX_CLASSES
    run = propose(columns, policies, list(left), labels) if fits else Proposal()
    said = [
        *told_spelling(spellings),
        *odd.notes(),
        *told_left_out(left, len(left)),
        *told_missing(frame, roles),
        *striking(frame, columns, classes, units),
        *notes(columns),
        *untold(columns, len(frame), OPEN in run.options),
        *run.notes,
    ]
    if len(classes) > MAX_CLASSES:
        said.append(f"{len(classes)} classes: is {roles.targets[0]} a number or free text?")
    if not fits:
        return replace(checked, notes=tuple(said))
    lists: dict[str, Sequence[str | int] | None] = {
        "features": features,
        "exclude": [*odd.mixed, *odd.texts, *run.exclude],
        "categorical": categorical,
        "missing_values": [*odd.words, *odd.codes],
    }
    options = [f"dataset.{name}={bracket(words)}" for name, words in lists.items() if words]
    return replace(
        checked,
        options=(*spelling_options(spelling).split(), *options, *run.options),
        clients=run.clients,
        runs=run.has_rows,
        notes=tuple(said),
    )


def _policy(columns: Columns, missing: str) -> tuple[str, int, str]:
    try:
        kept = kept_rows(columns, missing)
        if columns.roles.targets:
            target_of(columns, kept)
    except DataError as error:
        return missing, 0, str(error)
    return missing, int(kept.sum()), ""


def _describe(
    frame: Any, roles: Roles | None, left: Container[str] = ()
) -> tuple[ColumnReport, ...]:
    return tuple(
        ColumnReport(
            name,
            _kind(frame[name]),
            "left out" if name in left else "" if roles is None else _role(name, roles),
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
    if is_date(column):
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
    return f"{len(levels)} different: {some(levels)}"
