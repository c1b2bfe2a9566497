"""Missing cells: which rows stay under a value of ``dataset.missing``, and what was read as one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.columns import is_missing, place
from fl_app.data.encoding import some
from fl_app.data.files import spelt
from fl_app.data.parsing import Columns
from fl_app.data.roles import Roles
from fl_app.errors import DataError

__all__ = ["MISSING", "dropped", "kept_rows", "may_be_names", "told_missing"]

MISSING = ("error", "drop", "mean")
"""What can be done about missing cells."""


def kept_rows(
    columns: Columns, missing: str, words: Mapping[str, Counter[str]] | None = None
) -> NDArray[np.bool_]:
    """Return which of the n rows stay under a value of ``dataset.missing``.

    Parameters
    ----------
    columns : Columns
        The cells.
    missing : {"error", "drop", "mean"}
        The policy.
    words : mapping of str to Counter, optional
        How missing cells are spelt by column, see :func:`fl_app.data.files.spelt`.

    Raises
    ------
    DataError
        If a cell is missing that must not be, or no row stays.
    """
    must = {**columns.targets, **columns.key}
    gaps = {name: is_missing(values) for name, values in {**columns.features, **must}.items()}
    if missing == "error":
        for name, gap in gaps.items():
            if gap.any():
                spellings = [word for word in (words or {}).get(name, ()) if word]
                shown = f" ({', '.join(map(repr, spellings[:5]))})" if spellings else ""
                first = place(int(gap.argmax()))
                value = f"missing{shown} in {gap.sum()} of {len(gap)} rows, first {first}"
                raise DataError(name, value, _value_wanted(name, columns.roles, spellings))
    lost = [gap for name, gap in gaps.items() if missing == "drop" or name in must]
    kept = ~np.any(lost, axis=0) if lost else np.ones(len(next(iter(gaps.values()))), dtype=bool)
    if not kept.any():
        cells = "cells" if missing == "drop" else "target or key"
        allowed = f"a row without missing {cells}; each of the {len(kept)} rows has one"
        raise DataError("dataset.missing", missing, allowed)
    return np.asarray(kept)


def _value_wanted(name: str, roles: Roles, words: Sequence[str]) -> str:
    if word := _maybe_name(name, roles, words):
        return f"a value in each row; {word}"
    drop = "a value in each row, or dataset.missing=drop to leave such rows out"
    if name in roles.categorical:
        return f"{drop}, or dataset.missing=mean to count such a cell as no level"
    if name in roles.features:
        return f"{drop}, or dataset.missing=mean to fill in the federation's mean"
    return f"{drop}, as mean does too: nothing stands in for a target or a key"


def may_be_names(words: Iterable[str]) -> list[str]:
    """Return those of the words for a missing cell that may be a name."""
    return [word for word in words if re.match(r"[^\W\d_]", word) and word.lower() != "nan"]


def _maybe_name(name: str, roles: Roles, words: Sequence[str]) -> str:
    """Say what to do about a class or a client whose name is read as a missing cell."""
    if not may_be_names(words):
        return ""
    if name in roles.targets and roles.task == "classification":
        return "if a word that is read as missing is a class, name all classes in dataset.classes"
    client = "if a word that is read as missing is a client, give it another name"
    return client if name == roles.key else ""


def told_missing(frame: Any, roles: Roles) -> list[str]:
    """Say which texts are read as missing cells, and where."""
    used = {*roles.features, *roles.targets, roles.key}
    words = {name: counts for name, counts in spelt(frame).items() if name in used and counts}
    total: Counter[str] = Counter()
    for counts in words.values():
        total.update(counts)
    if not any(total):  # blanks alone are what everybody takes for missing
        return []
    where = {word: some([name for name, counts in words.items() if counts[word]]) for word in total}
    cells = [
        f"{repr(word) if word else 'blank'} ({count} cell{'s'[: count > 1]} of {where[word]})"
        for word, count in sorted(total.items())
    ]
    said = [f"read as missing: {some(cells)}"]
    for name, counts in words.items():
        if says := _maybe_name(name, roles, [word for word in counts if word]):
            said.append(f"{name}: {says}")
    return said


def dropped(kept: NDArray[np.bool_], missing: str) -> list[str]:
    """Say how many rows are left out, if any."""
    gone = int((~kept).sum())
    why = " without a target or a key" if missing == "mean" else ""
    return [f"dataset.missing={missing} leaves out {gone} of {len(kept)} rows{why}"] if gone else []
