"""Whether a run was trained until its loss no longer falls: no claim stands on one cut short.

A run is judged by its curve of the clients' loss, ``eval/`` and the first of the task's metrics, up
to the round at which it is compared. Test rows judge nothing.

The rule, over the averaged rounds 1 … R: a fifth is R / 5 rounds, rounded down, at least 2. *Not
converged* is a run whose mean loss of the last fifth is lower than that of the fifth before by more
than 1 % of what it gained in all, its loss of round 1 less its least loss. A loss that rises is not
flagged: more rounds do not help it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fl_app.config.schema import METRICS
from fl_app.config.strategy_options import is_pooled
from fl_app.report.budgets import Pair
from fl_app.report.pairing import Design
from fl_app.report.runs import RunSummary, listed

__all__ = [
    "EVAL_LOSSES",
    "FEWEST_ROUNDS",
    "Judged",
    "Verdict",
    "judge",
    "judge_pairs",
    "lack_of",
    "verdict_lines",
]

EVAL_LOSSES = tuple(f"eval/{metrics[0]}" for metrics in METRICS.values())
"""The losses that judge a run, one a task."""
FEWEST_ROUNDS = 10
"""Averaged rounds below which nobody can tell."""
_FEWEST_IN_FIFTH = 2
_SHARE = 0.01
_ROUNDING = 1e-9
_AFTER_COLLECTING = 2  # FedStacking's rounds T-1 and T, which average nothing

CONVERGED, FALLING, UNKNOWN, CURVELESS = "converged", "not converged", "cannot tell", "not judged"


@dataclass(frozen=True)
class Verdict:
    """What a curve says.

    Parameters
    ----------
    word : {"converged", "not converged", "cannot tell", "not judged"}
        The verdict.
    why : str
        The reason, in one phrase.
    """

    word: str
    why: str

    @property
    def allows_claims(self) -> bool:
        """Whether a strict claim may stand on the run."""
        return self.word in (CONVERGED, CURVELESS)


def judge(run: RunSummary, server_round: int | None = None) -> Verdict:
    """Judge a run by its eval loss.

    Parameters
    ----------
    run : RunSummary
        With the curve of its eval loss, where it has one.
    server_round : int, optional
        The round at which it is compared; by default its last. Later rounds are not looked at.

    Returns
    -------
    Verdict
        Rounds are 1 … T of the param ``num_server_rounds`` (without it, of the curve); of
        FedStacking with a global member that is averaged 1 … T-2. *Not judged*, as they have no
        curve: FedStacking with another global member or none, ``n_average``, and ``pooled``,
        whose model is fitted at once. *Cannot tell*: fewer than ten such rounds; no eval loss;
        none in round 1, or in fewer than two rounds of one of both fifths (a mean is over the
        rounds of its fifth that have a loss); a loss that is not finite, wherever it is. Where no
        loss is below that of round 1, the gain is 0, and any fall from one fifth to the next beyond
        rounding (1e-9 of the loss) counts.
    """
    if why := _lacks_curve(run):
        return Verdict(CURVELESS, why)
    metric = next((name for name in EVAL_LOSSES if run.curves.get(name)), None)
    if metric is None:
        return Verdict(UNKNOWN, "no eval loss")
    curve = run.curves[metric]
    last = _num_rounds(run, curve)
    if run.params.get("strategy.name") == "fedstacking":
        last -= _AFTER_COLLECTING
    last = last if server_round is None else min(last, server_round)
    if last < FEWEST_ROUNDS:
        return Verdict(UNKNOWN, f"fewer than {FEWEST_ROUNDS} averaged rounds")
    losses = {r: loss for r, loss in sorted(curve.items()) if 1 <= r <= last}
    fifth = max(_FEWEST_IN_FIFTH, last // 5)
    later = [loss for r, loss in losses.items() if r > last - fifth]
    before = [loss for r, loss in losses.items() if last - 2 * fifth < r <= last - fifth]
    if 1 not in losses or min(len(later), len(before)) < _FEWEST_IN_FIFTH:
        return Verdict(UNKNOWN, f"{metric} lacks rounds that decide")
    high, low = sum(before) / len(before), sum(later) / len(later)
    if not all(map(math.isfinite, (*losses.values(), high - low))):
        return Verdict(UNKNOWN, f"{metric} is not finite")
    gained = losses[1] - min(losses.values())
    if high - low > _SHARE * gained + _ROUNDING * max(abs(high), abs(low)):
        return Verdict(FALLING, f"{metric} still falls")
    return Verdict(CONVERGED, f"{metric} no longer falls")


def _lacks_curve(run: RunSummary) -> str:
    """Say why a run has no curve of training; "" where it has one."""
    strategy = run.params.get("strategy.name")
    if strategy == "n_average":
        return "its base models are combined once"
    if strategy == "fedstacking":
        member = run.params.get("strategy.global_member", "fedavg")
        return "" if member == "fedavg" else f"global_member={member} is not averaged"
    if is_pooled(strategy):
        return "its model is fitted at once"
    return ""


def _num_rounds(run: RunSummary, curve: Mapping[int, float]) -> int:
    told = run.params.get("num_server_rounds", "")
    return int(told) if told.isdecimal() else max(curve)


# ---------------------------------------------------------------------------- of a comparison
@dataclass(frozen=True)
class Judged:
    """A run at a round at which it is compared.

    Parameters
    ----------
    cell, level, seed, run_id : str
        Which run.
    server_round : int
        Where it counts.
    cut : bool
        Whether it goes on after that round.
    verdict : Verdict
        Of its rounds up to there.
    """

    cell: str
    level: str
    seed: str
    run_id: str
    server_round: int
    cut: bool
    verdict: Verdict


def judge_pairs(
    design: Design, level: str, baseline: str, pairs: Iterable[Pair], metric: str
) -> tuple[Judged, ...]:
    """Judge both runs of each pair, each where it counts: at its end by its whole curve.

    Parameters
    ----------
    design : Design
        The runs in their places.
    level, baseline : str
        The two levels, or one twice.
    pairs : iterable of Pair
        Their pairs.
    metric : str
        The metric that is compared.

    Returns
    -------
    tuple of Judged
        Each run once for each round at which it counts.
    """
    found: dict[Judged, None] = {}
    for pair in pairs:
        for name, point in ((level, pair.level), (baseline, pair.baseline)):
            run = design.run(pair.cell, name, pair.seed, point.run_id)
            cut = point.server_round < max(run.curves[metric])
            verdict = judge(run, point.server_round if cut else None)
            where = (pair.cell, name, pair.seed, run.run_id, point.server_round)
            found[Judged(*where, cut, verdict)] = None
    return tuple(found)


def verdict_lines(judged: Sequence[Judged]) -> list[str]:
    """Return a line for each level whose runs are not all converged; one where all are.

    Where the runs of a level have several verdicts, each cell has a line.
    """
    words = (FALLING, UNKNOWN, CURVELESS)
    found = [line for word in words for line in _lines(judged, word)]
    seen = {one.verdict.word for one in judged}
    if CONVERGED in seen and seen <= {CONVERGED, CURVELESS}:
        losses = {one.verdict.why.split()[0] for one in judged if one.verdict.word == CONVERGED}
        found.insert(0, f"converged by {' and '.join(sorted(losses))}: all runs that are judged")
    return found


def lack_of(judged: Sequence[Judged]) -> str:
    """Return why no strict claim stands on some runs; "" where one may."""
    return "; ".join(line for word in (FALLING, UNKNOWN) for line in _lines(judged, word))


def _lines(judged: Sequence[Judged], word: str) -> list[str]:
    """Return ``not converged: fedavg 4 of 5 (eval/log_loss still falls)`` for each level."""
    lines = []
    for level in dict.fromkeys(one.level for one in judged if one.verdict.word == word):
        own = [one for one in judged if one.level == level]
        alike = all(one.verdict.word == word and not one.cut for one in own)
        groups: dict[tuple[str, int | None], list[Judged]] = {}
        for one in own:
            where = ("" if alike else one.cell, one.server_round if one.cut else None)
            groups.setdefault(where, []).append(one)
        for (cell, server_round), theirs in groups.items():
            why = [one.verdict.why for one in theirs if one.verdict.word == word]
            if why:
                place = f" at {cell}" if cell else ""
                place += "" if server_round is None else f" at round {server_round}"
                reasons = listed(list(dict.fromkeys(why)), 3)
                lines.append(f"{word}: {level} {len(why)} of {len(theirs)}{place} ({reasons})")
    return lines
