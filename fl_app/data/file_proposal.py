"""A run on one file alone: what it needs beside path, target and task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fl_app.config.dataset_options import MIN_LEVEL_ROWS, DatasetConfig
from fl_app.config.overrides import bracket, quoted
from fl_app.config.schema import Config
from fl_app.data.columns import is_missing
from fl_app.data.encoding import some
from fl_app.data.file_guesses import RARE
from fl_app.data.missing import MISSING, kept_rows
from fl_app.data.parsing import Columns

__all__ = ["OPEN", "Proposal", "propose", "rows_of_each"]

_SHARE = (1 - DatasetConfig.test_fraction) * (1 - DatasetConfig.val_fraction)
"""Share of the rows that are trained on."""
_RISK = 0.01
"""Chance that no client has rows enough to tell a name, above which the command names it."""
OPEN = "dataset.min_level_rows=1"
_MOST_CLIENTS = Config.num_clients
_CLIENT_ROWS = 10
"""Training rows that the proposed number of clients leaves to each."""


class Proposal(NamedTuple):
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


def propose(
    columns: Columns,
    policies: Sequence[tuple[str, int, str]],
    left: Sequence[str],
    words: Sequence[str],
) -> Proposal:
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
        number = len(rows_of_each(columns.key, rows))
        natural = ("partitioner=natural", f"partitioner.key={quoted(columns.roles.key)}")
        return number, (*natural, f"num_clients={number}")
    number = int(rows.sum() * (1 - DatasetConfig.test_fraction)) // _CLIENT_ROWS
    number = min(max(number, 1), _MOST_CLIENTS)
    return number, () if number == _MOST_CLIENTS else (f"num_clients={number}",)


def rows_of_each(values: dict[str, Any], rows: Any = None) -> tuple[tuple[int | str, int], ...]:
    """Count the rows of each value of one column."""
    for cells in values.values():
        cells = cells if rows is None else cells[rows]
        counts = Counter(cells[~is_missing(cells)].tolist())
        return tuple(sorted(counts.items(), key=lambda c: (isinstance(c[0], str), c[0])))
    return ()


def _names(
    columns: Columns, rows: Any, number: int, left: Sequence[str], words: Sequence[str]
) -> Proposal:
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
        if sum(rare(columns.features[name]).values()) > RARE / 2 * rows.sum()
    ]
    why = f"fewer than dataset.min_level_rows={MIN_LEVEL_ROWS} rows at each client"
    if hidden and not words:
        said = (
            f"{some(hidden)}: too many rows may be of levels with {why}, so "
            "dataset.min_level_rows=1 below: all rows are in one file; where clients have files "
            "of their own, dataset.levels names levels that are no secret"
        )
        return Proposal((OPEN,), exclude=tuple(left), notes=(said,))
    if columns.roles.task == "regression":
        return Proposal()
    cells = next(iter(columns.targets.values()))
    short = {*rare(cells), *words}
    if not short:
        return Proposal()
    labels = [label for label, _ in rows_of_each(columns.targets, rows)]
    rare_names = some([str(label) for label in labels if label in short])
    if words:
        why = "is read as missing unless dataset.classes names it, as it does below"
    else:
        why = f"may have {why}, so dataset.classes below names all classes"
    said = f"class {rare_names}: {why}"
    return Proposal((f"dataset.classes={bracket(labels)}",), notes=(said,))
