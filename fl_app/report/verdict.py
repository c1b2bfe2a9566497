"""The sentence that a comparison ends with: better, worse or undecided, by how much, at what price.

*Better* and *worse* are strict claims: the interval excludes 0, and nothing is missing for which
``fl-kit report --strict`` would refuse it. All else is *undecided*, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fl_app.errors import InputError
from fl_app.report.budgets import Pair
from fl_app.report.comparing import Comparison
from fl_app.report.expectations import difference_of
from fl_app.report.intervals import Interval
from fl_app.report.rendering import decimals_for, interval_text
from fl_app.report.runs import REFERENCES
from fl_app.report.soundness import check_sound

__all__ = ["sentences", "verdict"]


def verdict(comparison: Comparison, level: str) -> str:
    """Say of one level whether it is better than the baseline.

    Parameters
    ----------
    comparison : Comparison
        The comparison.
    level : str
        A level other than the baseline.

    Returns
    -------
    str
        For example ``fedstacking is better than fedavg mlp: +0.0120 [+0.0030, +0.0210] in
        server/accuracy, at 1.4 x its bytes``.

    Raises
    ------
    InputError
        If cells differ in a hyperparameter.
    """
    base = comparison.baseline
    found = difference_of(comparison, level, base, f"{level} against {base}")
    lack = "; ".join(filter(None, (_undecided(found), found.lack, _unsound(comparison, level))))
    is_better = (found.mean > 0) == comparison.higher_is_better
    word = "undecided against" if lack else "better than" if is_better else "worse than"
    pairs = comparison.finished.pairs[level]
    digits = decimals_for(point.value for pair in pairs for point in (pair.level, pair.baseline))
    parts = [f"{interval_text(found, digits)} in {comparison.metric}"]
    parts += [] if comparison.higher_is_better else ["lower is better"]
    parts += _price(pairs)
    text = f"{level} is {word} {comparison.baseline}: {', '.join(parts)}"
    return f"{text} ({lack})" if lack else text


def sentences(comparison: Comparison, levels: Iterable[str] | None = None) -> list[str]:
    """Say of levels whether they are better than the baseline, or why nobody can say.

    Parameters
    ----------
    comparison : Comparison
        The comparison.
    levels : iterable of str, optional
        By default all but the baseline, and but the references, which are no rivals.
    """
    c = comparison
    if levels is None:
        kinds = {level: c.design.values[level].get("strategy.name") for level in c.levels[1:]}
        levels = [level for level, kind in kinds.items() if kind not in REFERENCES]
    try:
        return [verdict(c, level) for level in levels]
    except InputError as error:
        return [f"no sentence: {error}"]


def _undecided(found: Interval) -> str:
    if found.low is None or found.high is None:
        return "" if found.lack else "no interval"
    return "the interval contains 0" if found.low <= 0 <= found.high else ""


def _unsound(comparison: Comparison, level: str) -> str:
    """Return why one of the two levels' runs are no ground for a claim; "" where they are."""
    ours = (level, comparison.baseline)
    try:
        for (_, own), seeds in comparison.design.runs.items():
            if own in ours:
                check_sound(tuple(seeds.values()))
    except InputError as error:
        return str(error)
    return ""


def _price(pairs: Sequence[Pair]) -> list[str]:
    """Return the bytes of the level over those of the baseline, where both were counted."""
    sent = [(pair.level.bytes or 0.0, pair.baseline.bytes or 0.0) for pair in pairs]
    ours, theirs = (sum(side) for side in zip(*sent, strict=True))
    return [f"at {ours / theirs:.2g} \N{MULTIPLICATION SIGN} its bytes"] if ours and theirs else []
