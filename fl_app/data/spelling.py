"""How the texts of a table spell missing cells and numbers: as it is said, and as a file tells."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_app.config.checking import sign
from fl_app.data.columns import ANY_NUMBER, NUMBER, as_objects, canonical, cell_text

__all__ = [
    "MISSING_WORDS",
    "PLAIN",
    "VERBATIM",
    "Spelling",
    "is_measured",
    "tidied",
    "told_spellings",
]

_NUMERIC_WORDS = ("NaN", "nan", "-NaN", "-nan", "1.#IND", "1.#QNAN", "-1.#IND", "-1.#QNAN")
_WORDS = ("#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "None", "n/a", "null", "?", "-")
MISSING_WORDS = (*_NUMERIC_WORDS, *_WORDS)
"""Texts that are missing cells: those of ``pandas.read_csv``, ``?`` and ``-``; and blanks."""


@dataclass(frozen=True)
class Spelling:
    """How the texts of a table spell missing cells and numbers.

    Parameters
    ----------
    missing : tuple of str
        Cells that are missing beside blanks, also as numbers (``-99``).
    decimal : str, default "."
        What begins the decimals.
    thousands : str, default ""
        What stands between groups of three digits.
    """

    missing: tuple[str, ...] = MISSING_WORDS
    decimal: str = "."
    thousands: str = ""

    def number(self, text: str) -> str:
        """Return a number's text as programs write it; any other text as it is.

        Examples
        --------
        >>> Spelling(decimal=",", thousands=".").number("1.234,5"), Spelling().number("1,234")
        ('1234.5', '1,234')
        """
        if self.thousands:
            group, point = re.escape(self.thousands), re.escape(self.decimal)
            if re.fullmatch(rf"\s*[+-]?[1-9]\d{{0,2}}({group}\d{{3}})+({point}\d*)?\s*", text):
                text = text.replace(self.thousands, "")
        if self.decimal != "." and re.fullmatch(
            rf"\s*[+-]?\d*{re.escape(self.decimal)}\d*([eE][+-]?\d+)?\s*", text
        ):
            text = text.replace(self.decimal, ".")
        return text


PLAIN = Spelling()
"""As programs write tables."""
VERBATIM = Spelling(())
"""Where no word is a missing cell."""


def tidied(
    column: Any, spelling: Spelling = PLAIN, values: Iterable[str] = ()
) -> tuple[Any, Counter[str]]:
    """Return a column whose missing cells are NaN, of numbers where all others are numbers.

    Parameters
    ----------
    column : pandas.Series
        As a file has it; left as it is.
    spelling : Spelling
        How its texts are spelt.
    values : iterable of str
        Texts that are values here, though the same words are missing cells elsewhere.

    Returns
    -------
    (pandas.Series, Counter)
        And the cells of each spelling of a missing one (``""``: a blank).
    """
    import pandas as pd

    blank = int(column.isna().sum())
    spelt: Counter[str] = Counter({"": blank} if blank else {})
    custom = {cell_text(_spelt(word, spelling)) for word in spelling.missing}
    if column.dtype.kind in "biuf":
        wrong = {word for word in custom if word is not None and NUMBER.fullmatch(word)}
        for word in sorted(wrong):
            is_word = (column == float(word)).fillna(False).to_numpy(dtype=bool)
            if is_word.any():
                column, spelt[word] = column.where(~is_word), int(is_word.sum())
        return column, spelt
    if column.dtype.kind in "mM":
        return column, spelt
    kept, words = frozenset(values), frozenset(spelling.missing)
    try:
        codes, uniques = pd.factorize(column, use_na_sentinel=True)
    except TypeError:  # lists and the like, which are refused where they are used
        return column, spelt
    counts = np.bincount(codes[codes >= 0], minlength=len(uniques))
    cells: list[Any] = []
    for cell, count in zip(list(uniques), counts.tolist(), strict=True):
        new = _spelt(cell, spelling)
        if isinstance(cell, str) and cell not in kept:
            word = cell.strip()
            if not word or word in words or cell_text(new) in custom:
                spelt[word] += count
                new = None
        elif not isinstance(cell, str) and custom and cell_text(cell) in custom:
            spelt[str(cell_text(cell))] += count
            new = None
        cells.append(new)
    plain = [canonical(cell) for cell in cells]
    present = [cell for cell in plain if cell is not None]
    if present and all(isinstance(cell, int | float) for cell in present):
        cells = plain
    array = as_objects([*cells, None])[codes]
    if cells is plain and -1 not in codes and None not in plain and _are_int64(plain):
        return pd.Series(array.astype(np.int64), column.index, name=column.name), spelt
    if cells is plain and all(abs(cell) <= 2**53 for cell in present if isinstance(cell, int)):
        values_ = np.array([math.nan if cell is None else float(cell) for cell in array])
        return pd.Series(values_, column.index, name=column.name), spelt
    return pd.Series(array, column.index, dtype=object, name=column.name), spelt


def _are_int64(cells: Sequence[Any]) -> bool:
    return all(isinstance(cell, int) and -(2**63) <= cell < 2**63 for cell in cells)


def _spelt(cell: Any, spelling: Spelling) -> Any:
    return spelling.number(cell) if isinstance(cell, str) else cell


def told_spellings(columns: Iterable[Any], separator: str = "") -> list[dict[str, str]]:
    """Tell by their texts how numbers are spelt that programs would not read.

    Parameters
    ----------
    columns : iterable of pandas.Series
        As the file has them.
    separator : str, optional
        What separates cells: beside semicolons ``1,234`` has decimals, beside others thousands.

    Returns
    -------
    list of dict
        ``decimal`` and ``thousands`` as words of ``SIGNS``, the likelier first; empty
        where no column becomes one of numbers by them.
    """
    texts = [_counted(column) for column in columns if column.dtype.kind not in "biufmM"]
    best, ways = (0, 0, 0), list[dict[str, str]]()
    for decimal, thousands in _READINGS if separator == ";" else _READINGS[::-1]:
        spelling = Spelling(decimal=sign(decimal), thousands=sign(thousands))
        scores = [_gained(counts, spelling) for counts in texts]
        gained, changed = (sum(score[k] for score in scores if score) for k in (0, 1))
        options = {"decimal": decimal} if decimal != "dot" else {}
        options |= {"thousands": thousands} if thousands else {}
        score = gained, changed, -len(options)
        if None in scores or not gained or score < best:
            continue
        best, ways = score, [*(ways if score == best else ()), options]
    return ways


def _counted(column: Any) -> dict[str, int]:
    """Count the texts of a column that are no missing cells."""
    cells = (cell.strip() for cell in column if isinstance(cell, str))
    counts = Counter(cell for cell in cells if cell)
    return {text: count for text, count in counts.items() if text not in MISSING_WORDS}


def _gained(counts: Mapping[str, int], spelling: Spelling) -> tuple[int, int] | None:
    """Return how many cells become numbers by a spelling, and how many it changes.

    (0, 0) where the column does not become one of numbers, None where its dot begins decimals.
    """
    new = {text: spelling.number(text) for text in counts}
    numeric = [text for text in counts if ANY_NUMBER.fullmatch(new[text])]
    if sum(counts[text] for text in numeric) < _MOSTLY * sum(counts.values()):
        return 0, 0
    if spelling.thousands == "." and any("." in text and text == new[text] for text in numeric):
        return None
    gained = sum(counts[text] for text in numeric if not ANY_NUMBER.fullmatch(text))
    return gained, sum(counts[text] for text in numeric if text != new[text])


_MOSTLY = 0.9
"""Share of a column's texts that are numbers where it is one of numbers spelt otherwise."""
_READINGS = (
    ("comma", ""),
    ("comma", "dot"),
    ("comma", "space"),
    ("comma", "apostrophe"),
    ("dot", "space"),
    ("dot", "apostrophe"),
    ("dot", "comma"),
)
"""Decimal and thousands signs: of equally good ones the first, or the last beside commas."""


def is_measured(column: Any) -> bool:
    """Return whether a column of more than 20 different texts holds numbers with a unit.

    Examples
    --------
    >>> import pandas as pd
    >>> [is_measured(pd.Series(f"{k}{unit}" for k in range(30))) for unit in (" %", ",00 EUR", "")]
    [True, True, False]
    """
    if column.dtype.kind in "biufmM":
        return False
    matches = [
        _MEASURED.fullmatch(cell.strip()) for cell in column.dropna() if isinstance(cell, str)
    ]
    units = {match.groups() for match in matches if match and any(match.groups())}
    fitting = sum(match is not None and any(match.groups()) for match in matches)
    return 0 < len(units) <= 2 and fitting >= _MOSTLY * len(matches) and column.nunique() > 20


_MEASURED = re.compile(r"([€$£¥]|[A-Z]{3} )? ?[+-]?\d[\d.,' ]*?\s?([%‰€$£¥]|°?[A-Za-z]{1,4})?")
