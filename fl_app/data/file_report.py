"""What a node would say of its file, and the command of a run that uses it.

The functions that load a table judge it here too; all problems are collected instead of the first
one being raised. A report shows cells: it is for the node's own terminal, which no cell commands.
"""

from __future__ import annotations

import math
import os
import shlex
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fl_app.config.checking import sign
from fl_app.config.dataset_options import MAX_AUTO_LEVELS, MIN_LEVEL_ROWS, DatasetConfig
from fl_app.config.options import Task
from fl_app.config.schema import Config
from fl_app.data.columns import (
    MISSING_WORDS,
    Spelling,
    is_date,
    is_measured,
    is_missing,
    is_text,
    no_numbers,
    plain,
    told_spellings,
)
from fl_app.data.encoding import counted, in_company
from fl_app.data.files import read_frame, separator_of, spelt
from fl_app.data.tabular import (
    MAX_CLASSES,
    MISSING,
    Categorical,
    Columns,
    Reading,
    Roles,
    bracket,
    choose,
    identifies_rows,
    kept_rows,
    listed,
    may_be_names,
    notes,
    one_class,
    parse,
    quoted,
    spelling_options,
    target_of,
    told_left_out,
    told_missing,
)
from fl_app.errors import DataError, InputError, printable

__all__ = ["CheckReport", "ColumnReport", "report"]

_LONGEST_LINE = 100_000
_FEW = 20
"""Different whole numbers up to which a target whose task nobody told is taken for classes."""
_FEW_WORDS = 5
"""Different texts in a column of numbers up to which they are taken for missing cells."""
_RARE = 0.1
"""Share of the rows that may be lost, and that a class has where the others outnumber it."""
_SHARE = (1 - DatasetConfig.test_fraction) * (1 - DatasetConfig.val_fraction)
"""Share of the rows that are trained on."""
_RISK = 0.01
"""Chance that no client has rows enough to tell a name, above which the command names it."""
_OPEN = "dataset.min_level_rows=1"
_MOST_CLIENTS = Config.num_clients
_CLIENT_ROWS = 10
"""Training rows that the proposed number of clients leaves to each."""


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
            lines.append(f"target: {listed(self.roles.targets)} ({self.roles.task})")
        for what, counts in (("classes", self.classes), ("sites", self.sites)):
            if counts:
                told = [f"{label}: {count}" for label, count in counts]
                lines.append(f"{len(told)} {what}, rows of each: {listed(told)}")
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
        task = _guess_task(frame, (targets,) if isinstance(targets, str) else targets)
    auto: Categorical = "auto" if categorical is None else categorical
    try:
        roles, left = choose(frame, targets, task, features, auto, key, Reading())
        odd = _among_numbers(frame, roles, features is None, categorical is None)
        labels = _labels(frame, roles)
        if any(odd) or labels:
            spelt_so = Spelling((*MISSING_WORDS, *odd.words), *signs)
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
    classes = _counts(columns.targets) if roles.task == "classification" else ()
    checked = CheckReport(
        str(path),
        len(frame),
        _describe(frame, roles, left),
        roles,
        classes,
        _counts(columns.key),
        policies,
        problems=tuple(problems),
    )
    fits = checked.usable and roles.targets and len(classes) != 1 and len(classes) <= MAX_CLASSES
    run = _propose(columns, policies, list(left), labels) if fits else _Proposal()
    said = [
        *_told_spelling(spellings),
        *odd.told(),
        *told_left_out(left, len(left)),
        *told_missing(frame, roles),
        *_striking(frame, columns, classes, units),
        *notes(columns),
        *_untold(columns, len(frame), _OPEN in run.options),
        *run.notes,
    ]
    if len(classes) > MAX_CLASSES:
        said.append(f"{len(classes)} classes: is {roles.targets[0]} a number or free text?")
    if not fits:
        return replace(checked, notes=tuple(said))
    lists = {
        "features": features,
        "exclude": [*odd.mixed, *odd.texts, *run.exclude],
        "categorical": categorical,
        "missing_values": [*odd.words],
    }
    options = [f"dataset.{name}={bracket(words)}" for name, words in lists.items() if words]
    return replace(
        checked,
        options=(*spelling_options(spelling).split(), *options, *run.options),
        clients=run.clients,
        runs=run.has_rows,
        notes=tuple(said),
    )


# ---------------------------------------------------------------------------- cells
class _Odd(NamedTuple):
    """Columns in which texts stand among numbers, or beside those that somebody named.

    Parameters
    ----------
    words : dict of str to list of str
        Texts that may be missing cells, with their columns.
    levels : list of str
        Columns of few values, which are levels.
    mixed : dict of str to int
        Columns of too many texts to be either, with their number.
    texts : list of str
        Columns of texts that are none of the categorical ones that somebody named.
    """

    words: dict[str, list[str]]
    levels: list[str]
    mixed: dict[str, int]
    texts: list[str]

    def told(self) -> list[str]:
        """Say what becomes of them."""
        words = [f"{word!r} ({listed(names, 2)})" for word, names in self.words.items()]
        mixed = [f"{name} ({count} different)" for name, count in self.mixed.items()]
        told = {
            "texts among numbers, below read as missing cells": words,
            "texts among few numbers, below taken as levels": self.levels,
            "left out below, as texts stand among their numbers": mixed,
            "left out below, as texts that are not named as categorical": self.texts,
        }
        return [f"{what}: {listed(things, 5)}" for what, things in told.items() if things]


def _among_numbers(frame: Any, roles: Roles, free: bool, auto: bool) -> _Odd:
    """Look for texts among numbers.

    Parameters
    ----------
    frame : pandas.DataFrame
        The file.
    roles : Roles
        Of its columns.
    free, auto : bool
        Whether nobody named the features, and whether nobody named the categorical ones.
    """
    odd = _Odd({}, [], {}, [])
    texts = {*roles.categorical, roles.key, *(roles.targets if roles.task != "regression" else ())}
    taken = {
        str(cell).strip() for name in texts if name is not None for cell in frame[name].dropna()
    }
    for name in (*roles.features, *roles.targets):
        column = frame[name]
        if name in texts or column.dtype.kind in "biufmM":
            continue
        found, own = no_numbers(column), name in roles.features
        few = column.nunique() <= MAX_AUTO_LEVELS
        if own and auto and few and sum(found.values()) >= _RARE * column.count():
            odd.levels.append(name)
        elif own and free and is_text(column):
            odd.texts.append(name)
        elif own and free and (len(found) > _FEW_WORDS or taken & {*found}):
            odd.mixed[name] = len(found)
        elif len(found) <= _FEW_WORDS and not taken & {*found} and not is_text(column):
            for word in found:
                odd.words.setdefault(word, []).append(name)
    return odd


def _told_spelling(spellings: Sequence[Mapping[str, str]]) -> list[str]:
    """Say how numbers are spelt: so below, or else so."""
    ways = map(spelling_options, spellings)
    return [f"numbers are spelt otherwise: {' or '.join(ways)}"] if spellings else []


def _labels(frame: Any, roles: Roles) -> list[str]:
    """Return the words of a tenth of the rows or more that may be classes, and no missing cells."""
    if roles.task == "regression" or not roles.targets:
        return []
    counts = spelt(frame).get(roles.targets[0], Counter())
    return [word for word in may_be_names(counts) if counts[word] >= _RARE * len(frame)]


def _striking(
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
        said.append(f"mostly empty: {listed(bare, 5)}; dataset.exclude leaves columns out")
    counting = [name for name in roles.features if identifies_rows(frame[name])]
    if counting and len(frame) > _FEW:
        said.append(
            f"another whole number in each row: {listed(counting, 5)}; if these are identifiers, "
            "dataset.exclude leaves them out"
        )
    if units:
        shown = listed([f"{name} ({cell!r})" for name, cell in units.items()], 5)
        said.append(f"numbers with a unit are texts: {shown}; write the numbers alone")
    same = [name for name, v in columns.features.items() if len({*v[~is_missing(v)].tolist()}) == 1]
    if same:
        said.append(f"one value in every row: {listed(same, 5)}")
    counts = dict(classes)
    n = sum(counts.values())
    rare = {label: count for label, count in counts.items() if count < _RARE * n / len(counts) * 2}
    if rare and len(counts) > 1:
        most = max(counts, key=lambda label: counts[label])
        told = [f"{label} ({count / n:.1%})" for label, count in rare.items()]
        said.append(
            f"rare classes of {roles.targets[0]}: {listed(told, 5)}; to say {most} of every row is "
            f"right in {counts[most] / n:.1%}: look at balanced_accuracy and roc_auc too"
        )
    return said


def _untold(columns: Columns, rows: int, is_open: bool) -> list[str]:
    """Say what a node with this file of its own keeps to itself, and what comes of that."""
    roles, found = columns.roles, []
    if rows < Config.min_rows:
        found.append(f"{rows} rows: below min_rows={Config.min_rows} only their number is told")
    few = f"fewer than dataset.min_level_rows={MIN_LEVEL_ROWS} rows have them, so a node tells none"
    for name, values in columns.targets.items():
        if roles.task == "regression":
            break
        labels = values[~is_missing(values)]
        if rare := counted(labels.tolist(), in_company(labels.tolist(), MIN_LEVEL_ROWS)):
            lost = "these rows are left out unless another node or dataset.classes names the class"
            found.append(f"{name}={rare}: {few}; {lost}")
        if len(set(labels.tolist())) == 1:
            found.append(f"{one_class(name, labels)}, in the other nodes' files at least")
    rare_levels = []
    for name in () if is_open else roles.categorical:
        levels = [v for v in columns.features.get(name, np.empty(0)).tolist() if v is not None]
        if few_rows := {*levels} - {*in_company(levels, MIN_LEVEL_ROWS)}:
            rare_levels.append(f"{name} ({len(few_rows)})")
    if rare_levels:
        found.append(
            f"levels of fewer than dataset.min_level_rows={MIN_LEVEL_ROWS} rows: "
            f"{listed(rare_levels, 5)}: a node tells none, and they count as OTHER unless another "
            "node or dataset.levels names them"
        )
    return found


def _guess_task(frame: Any, targets: Sequence[str]) -> Task:
    if len(targets) != 1 or targets[0] not in frame.columns:  # several are one task only
        return "regression"
    column = frame[targets[0]]
    values = {value for value in plain(column).tolist() if value is not None}
    if any(isinstance(value, str) for value in values) and is_text(column):
        return "classification"
    whole = all(isinstance(value, int) for value in values)
    return "classification" if whole and len(values) <= _FEW else "regression"


# ---------------------------------------------------------------------------- rows
def _policy(columns: Columns, missing: str) -> tuple[str, int, str]:
    try:
        kept = kept_rows(columns, missing)
        if columns.roles.targets:
            target_of(columns, kept)
    except DataError as error:
        return missing, 0, str(error)
    return missing, int(kept.sum()), ""


class _Proposal(NamedTuple):
    """A run on the file alone.

    Parameters
    ----------
    options, clients : tuple of str
        Overrides of the data set, and those that make the clients.
    exclude : tuple of str
        Columns to leave out.
    notes : tuple of str
        Why.
    has_rows : bool
        Whether there are rows enough to train on.
    """

    options: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    has_rows: bool = False


def _propose(
    columns: Columns,
    policies: Sequence[tuple[str, int, str]],
    left: Sequence[str],
    words: Sequence[str],
) -> _Proposal:
    """Propose a run.

    Parameters
    ----------
    columns : Columns
        The cells of a usable file with a target.
    policies : sequence of (str, int, str)
        The rows that each value of ``dataset.missing`` leaves.
    left : sequence of str
        Columns that are no features by themselves.
    words : sequence of str
        Classes whose names are read as missing cells elsewhere.
    """
    policy = max(policies, key=lambda policy: policy[1])[0]
    rows = kept_rows(columns, policy)
    number, clients = _clients(columns, rows)
    run = _names(columns, rows, number, left, words)
    missing = () if policy == MISSING[0] else (f"dataset.missing={policy}",)
    return run._replace(
        options=(*missing, *run.options),
        clients=clients,
        has_rows=bool(rows.sum() * _SHARE >= Config.min_rows),
    )


def _clients(columns: Columns, rows: Any) -> tuple[int, tuple[str, ...]]:
    """Return a number of clients that have rows enough, and the overrides that make them."""
    if columns.roles.key is not None:
        number = len(_counts(columns.key, rows))
        natural = ("partitioner=natural", f"partitioner.key={quoted(columns.roles.key)}")
        return number, (*natural, f"num_clients={number}")
    number = int(rows.sum() * (1 - DatasetConfig.test_fraction)) // _CLIENT_ROWS
    number = min(max(number, 1), _MOST_CLIENTS)
    return number, () if number == _MOST_CLIENTS else (f"num_clients={number}",)


def _counts(values: dict[str, Any], rows: Any = None) -> tuple[tuple[int | str, int], ...]:
    """Count the rows of each value of one column."""
    for cells in values.values():
        cells = cells if rows is None else cells[rows]
        counts = Counter(cells[~is_missing(cells)].tolist())
        return tuple(sorted(counts.items(), key=lambda c: (isinstance(c[0], str), c[0])))
    return ()


def _names(
    columns: Columns, rows: Any, number: int, left: Sequence[str], words: Sequence[str]
) -> _Proposal:
    """Return what names the classes and levels of which no client may have rows enough to tell."""
    sites = next(iter(columns.key.values()), np.zeros(len(rows)))
    alike = 1 if columns.key else number

    def rare(cells: Any) -> dict[Any, int]:
        """Return the rows of the names that may well be told by no client."""
        pairs = zip(cells[rows].tolist(), sites[rows].tolist(), strict=True)
        hidden: dict[Any, float] = {}
        for (cell, _), count in Counter(pairs).items():
            mean = count * _SHARE / alike
            few = sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(MIN_LEVEL_ROWS))
            hidden[cell] = hidden.get(cell, 1.0) * few**alike
        counts = Counter(cells[rows].tolist())
        return {c: counts[c] for c, p in hidden.items() if c is not None and p > _RISK}

    hidden = [
        name
        for name in columns.roles.categorical
        if sum(rare(columns.features[name]).values()) > _RARE / 2 * rows.sum()
    ]
    why = f"fewer than dataset.min_level_rows={MIN_LEVEL_ROWS} rows at each client"
    if hidden and not words:
        said = (
            f"{listed(hidden, 5)}: too many rows may be of levels with {why}, so "
            "dataset.min_level_rows=1 below: all rows are in one file; where clients have files "
            "of their own, dataset.levels names levels that are no secret"
        )
        return _Proposal((_OPEN,), exclude=tuple(left), notes=(said,))
    if columns.roles.task == "regression":
        return _Proposal()
    cells = next(iter(columns.targets.values()))
    short = {*rare(cells), *words}
    if not short:
        return _Proposal()
    labels = [label for label, _ in _counts(columns.targets, rows)]
    told = ",".join(str(v) if isinstance(v, int) else quoted(str(v)) for v in labels)
    some = listed([str(label) for label in labels if label in short], 5)
    if words:
        why = "is read as missing unless dataset.classes names it, as it does below"
    else:
        why = f"may have {why}, so dataset.classes below names all classes"
    said = f"class {some}: {why}"
    return _Proposal((f"dataset.classes=[{told}]",), notes=(said,))


# ---------------------------------------------------------------------------- columns
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
    return f"{len(levels)} different: {listed(levels, 5)}"
