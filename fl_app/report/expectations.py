"""What somebody expects of a comparison (``a>b+0.01``), and whether the runs say so."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace

from fl_app.errors import InputError
from fl_app.report.budgets import at_end, pair_up
from fl_app.report.comparing import Comparison
from fl_app.report.convergence import judge_pairs, lack_of
from fl_app.report.intervals import Interval
from fl_app.report.pairing import Design
from fl_app.report.runs import short
from fl_app.report.shared_rows import rather_over_rows
from fl_app.report.tables import paired_difference

__all__ = ["Outcome", "difference_of", "expect"]


@dataclass(frozen=True)
class Outcome:
    """An expectation and what the runs say of it.

    Parameters
    ----------
    text : str
        As it was typed.
    holds : bool
        Whether the whole interval is beyond the margin, in the better direction.
    difference : Interval
        First level minus second, each at its end; over the test rows where all seeds share them
        and runs tell their losses. It lacks something where a run of both has not converged, or
        counts untuned.
    """

    text: str
    holds: bool
    difference: Interval

    @property
    def holds_strictly(self) -> bool:
        """Whether it holds, and its interval lacks nothing that a strict claim needs."""
        return self.holds and not self.difference.lack


def _split_margin(design: Design, text: str) -> tuple[str, float]:
    """Split a level and a margin; what is a level as a whole (``1e-5``) has none."""
    match = _MARGIN.fullmatch(text)
    if text in design.levels or match is None:
        return text, 0.0
    if not match[0][match.end("level")].isspace():
        with suppress(InputError):
            return design.level(text, "--expect"), 0.0
    return match["level"], float(match["margin"].replace(" ", ""))


_MARGIN = re.compile(r"(?P<level>.+?)\s*(?P<margin>[+-]\s*(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)")


def expect(comparison: Comparison, text: str) -> Outcome:
    """Check whether one level, each run at its end, is better than another by a margin.

    Parameters
    ----------
    comparison : Comparison
        The comparison.
    text : str
        ``a>b``: a is better, also for a metric that is better when lower; ``a>b+0.01``: by more
        than that; ``a>b-0.01``: not worse by that much.

    Returns
    -------
    Outcome
        It holds if the whole 95 % interval is beyond the margin; never without an interval.

    Raises
    ------
    InputError
        If it is malformed or names a level that no run has, or cells differ in a hyperparameter.
    """
    better, sign, rest = text.partition(">")
    if not sign or not better.strip() or not rest.strip():
        raise InputError("--expect", text, "A>B, A>B+0.01 or A>B-0.01 with two levels A and B")
    design = comparison.design
    rest, margin = _split_margin(design, rest.strip())
    one, other = (design.level(name, "--expect") for name in (better, rest))
    if one == other:
        raise InputError("--expect", text, "two different levels")
    difference = difference_of(comparison, one, other, f"--expect {text}")
    if difference.low is None or difference.high is None:
        return Outcome(text, False, difference)
    gain = difference.low if comparison.higher_is_better else -difference.high
    return Outcome(text, gain > margin, difference)


def difference_of(comparison: Comparison, one: str, other: str, what: str) -> Interval:
    """Return the difference of two levels, each at its end, with what a strict claim lacks.

    Parameters
    ----------
    comparison : Comparison
        The comparison.
    one, other : str
        Labels of two levels: the first minus the second.
    what : str
        What it is for, for the error.

    Raises
    ------
    InputError
        If cells differ in a hyperparameter.
    """
    design = comparison.design
    for name, values in design.mixed.items():
        remedy = f"choose runs with --where {short(name)}=..."
        if name == short(name):
            remedy = f"choose it with --tune {name}, or runs with --where {name}=..."
        raise InputError(short(name), " and ".join(values), f"one value for {what}: {remedy}")
    pairs, _ = pair_up(design, one, other, comparison.metric, at_end)
    over_seeds = paired_difference(design, pairs, comparison.grounds)
    difference = rather_over_rows(over_seeds, design, pairs, comparison.metric)
    if difference.low is not None:
        untuned = design.tuning.lack((one, other), design.runs, design.key, comparison.metric)
        cut = lack_of(judge_pairs(design, one, other, pairs, comparison.metric))
        lack = "; ".join(filter(None, (difference.lack, untuned, cut)))
        difference = replace(difference, lack=lack)
    return difference
