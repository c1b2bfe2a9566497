"""What a file is taken for where nobody says: its task, its levels, its words for missing cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fl_app.config.dataset_options import MAX_AUTO_LEVELS
from fl_app.config.options import Task
from fl_app.config.overrides import bracket
from fl_app.data.columns import is_text, no_numbers, plain
from fl_app.data.encoding import some
from fl_app.data.files import spelt
from fl_app.data.missing import may_be_names
from fl_app.data.roles import Roles

__all__ = ["FEW", "RARE", "OddCells", "guess_task", "label_words", "odd_cells"]

FEW = 20
"""Different whole numbers up to which a target whose task nobody told is taken for classes."""
_FEW_WORDS = 5
"""Different texts in a column of numbers up to which they are taken for missing cells."""
_CODES = np.array(
    [d * (10**n // 9) for d in (7, 8, 9, -7, -8, -9) for n in range(1, 10) if n > 1 or d < 0]
)
"""Numbers that are written for missing cells: -9, 99, -999, 8888 and the like."""
_SEVERAL = 3
"""Cells from which such a number is no chance."""
RARE = 0.1
"""Share of the rows that may be lost, and that a class has where the others outnumber it."""


class OddCells(NamedTuple):
    """Columns with cells that are none of their numbers, or of texts beside the named ones.

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
    codes : dict of int to list of str
        Numbers that may be missing cells, with their columns.
    shared : dict of int to list of str
        Such numbers that other columns have as values.
    """

    words: dict[str, list[str]]
    levels: list[str]
    mixed: dict[str, int]
    texts: list[str]
    codes: dict[int, list[str]]
    shared: dict[int, list[str]]

    def notes(self) -> list[str]:
        """Say what becomes of them."""
        words = [f"{word!r} ({some(names, 2)})" for word, names in self.words.items()]
        mixed = [f"{name} ({count} different)" for name, count in self.mixed.items()]
        by_fate = {
            "texts among numbers, below read as missing cells": words,
            "texts among few numbers, below taken as levels": self.levels,
            "left out below, as texts stand among their numbers": mixed,
            "left out below, as texts that are not named as categorical": self.texts,
        }
        said = [f"{what}: {some(things)}" for what, things in by_fate.items() if things]
        far = "far from all other numbers, and several times"
        if self.codes:
            option = f"dataset.missing_values={bracket([*self.codes])}"
            said.append(f"{far}: {_with_columns(self.codes)}; below read as missing, by {option}")
        if self.shared:
            why = "dataset.missing_values would take them from other columns too"
            said.append(f"{far}: {_with_columns(self.shared)}; left as they are, as {why}")
        return said


def _with_columns(codes: Mapping[int, Sequence[str]]) -> str:
    return some([f"{code} ({some(names, 2)})" for code, names in codes.items()])


def odd_cells(frame: Any, roles: Roles, free: bool, auto: bool) -> OddCells:
    """Look for texts among numbers, and for numbers that stand for missing cells.

    Parameters
    ----------
    frame : pandas.DataFrame
        The file.
    roles : Roles
        Of its columns.
    free, auto : bool
        Whether nobody named the features, and whether nobody named the categorical ones.
    """
    odd, numeric = OddCells({}, [], {}, [], {}, {}), list[str]()
    texts = {*roles.categorical, roles.key, *(roles.targets if roles.task != "regression" else ())}
    taken = {
        str(cell).strip() for name in texts if name is not None for cell in frame[name].dropna()
    }
    for name in (*roles.features, *roles.targets):
        column = frame[name]
        if name in texts or column.dtype.kind in "bmM":
            continue
        if column.dtype.kind in "iuf":
            numeric.append(name)
            continue
        words, is_feature = no_numbers(column), name in roles.features
        few = column.nunique() <= MAX_AUTO_LEVELS
        if is_feature and auto and few and sum(words.values()) >= RARE * column.count():
            odd.levels.append(name)
        elif is_feature and free and is_text(column):
            odd.texts.append(name)
        elif is_feature and free and (len(words) > _FEW_WORDS or taken & {*words}):
            odd.mixed[name] = len(words)
        elif len(words) <= _FEW_WORDS and not taken & {*words} and not is_text(column):
            for word in words:
                odd.words.setdefault(word, []).append(name)
            numeric.append(name)
    _add_codes(odd, frame, roles, numeric)
    return odd


def _add_codes(odd: OddCells, frame: Any, roles: Roles, numeric: Sequence[str]) -> None:
    """Add the numbers that are far from all others of a numeric column, and several times."""
    far: dict[int, dict[str, int]] = {}
    for name in numeric:
        for code, count in _far_codes(frame[name]).items():
            far.setdefault(code, {})[name] = count
    used = {*roles.features, *roles.targets, roles.key} - {None}
    for code, rows in far.items():
        if max(rows.values()) >= _SEVERAL:
            is_shared = any((_as_numbers(frame[name]) == code).any() for name in used - {*rows})
            (odd.shared if is_shared else odd.codes)[code] = [*rows]


def _far_codes(column: Any) -> dict[int, int]:
    """Count the numbers of a column that are far from all others and written for missing cells.

    Far: below them by their range, above by three times that, as prices end in nines and have a
    long tail; or below zero where none of them is.
    """
    cells = _as_numbers(column)
    values, counts = np.unique(cells[np.isfinite(cells)], return_counts=True)
    is_code = np.isin(values, _CODES)
    others = values[~is_code]
    if len(others) < 2:
        return {}
    low, high = others[0], others[-1]
    reach = high - low
    is_far = (values <= low - reach) | (values >= high + 3 * reach) | ((values < -9) & (low >= 0))
    chosen = is_code & is_far
    return dict(zip(values[chosen].astype(int).tolist(), counts[chosen].tolist(), strict=True))


def _as_numbers(column: Any) -> Any:
    """Return a column as an array of float64, with NaN where a cell is no number."""
    import pandas as pd

    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)


def label_words(frame: Any, roles: Roles) -> list[str]:
    """Return the words of a tenth of the rows or more that may be classes, and no missing cells."""
    if roles.task == "regression" or not roles.targets:
        return []
    counts = spelt(frame).get(roles.targets[0], Counter())
    return [word for word in may_be_names(counts) if counts[word] >= RARE * len(frame)]


def guess_task(frame: Any, targets: Sequence[str]) -> Task:
    """Take targets of texts or of few different whole numbers for classes."""
    if len(targets) != 1 or targets[0] not in frame.columns:  # several are one task only
        return "regression"
    column = frame[targets[0]]
    values = {value for value in plain(column).tolist() if value is not None}
    if any(isinstance(value, str) for value in values) and is_text(column):
        return "classification"
    whole = all(isinstance(value, int) for value in values)
    return "classification" if whole and len(values) <= FEW else "regression"
