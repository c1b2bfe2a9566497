"""What a file is taken for where nobody says: its task, its levels, its words for missing cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from fl_app.config.dataset_options import MAX_AUTO_LEVELS
from fl_app.config.options import Task
from fl_app.data.columns import is_text, no_numbers, plain
from fl_app.data.encoding import some
from fl_app.data.files import spelt
from fl_app.data.missing import may_be_names
from fl_app.data.roles import Roles

__all__ = ["FEW", "RARE", "OddTexts", "guess_task", "label_words", "odd_texts"]

FEW = 20
"""Different whole numbers up to which a target whose task nobody told is taken for classes."""
_FEW_WORDS = 5
"""Different texts in a column of numbers up to which they are taken for missing cells."""
RARE = 0.1
"""Share of the rows that may be lost, and that a class has where the others outnumber it."""


class OddTexts(NamedTuple):
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
        return [f"{what}: {some(things)}" for what, things in by_fate.items() if things]


def odd_texts(frame: Any, roles: Roles, free: bool, auto: bool) -> OddTexts:
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
    odd = OddTexts({}, [], {}, [])
    texts = {*roles.categorical, roles.key, *(roles.targets if roles.task != "regression" else ())}
    taken = {
        str(cell).strip() for name in texts if name is not None for cell in frame[name].dropna()
    }
    for name in (*roles.features, *roles.targets):
        column = frame[name]
        if name in texts or column.dtype.kind in "biufmM":
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
    return odd


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
