"""Chooses which of several hyperparameters counts, for each run by a metric at its own last round.

A choice looks at runs of its own cell, level and seed only. A mean over seeds would look at rows
that are test rows under another seed (Cawley and Talbot 2010: what chooses must not judge). Each
side of a comparison has as many candidates as the other: who may try more often finds more.

References
----------
Cawley and Talbot 2010, "On Over-fitting in Model Selection and Subsequent Selection Bias in
Performance Evaluation", https://jmlr.org/papers/v11/cawley10a.html.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from fl_app.errors import DIVERGED, InputError
from fl_app.report.groups import APART, PROBLEM, Grouped, Identity, Key, Place, Places, matches
from fl_app.report.runs import (
    RunSummary,
    idle,
    is_better_when_higher,
    known_metrics,
    listed,
    natural,
    param_of,
    tell_apart,
)
from fl_app.report.tuning import RATE, Choice, Values, as_text, value_order
from fl_app.tracking.metric_names import equal, sanitise

__all__ = ["DEFAULT_BY", "choose", "default_by", "diverged", "find_tuned"]

DEFAULT_BY = ("eval/accuracy", "eval/mse")
"""What chooses by default, of a classification and of a regression."""
_DATA = "data.sha256"


# ---------------------------------------------------------------------------- what is asked
def find_tuned(names: Iterable[str], key: Key, runs: Sequence[RunSummary]) -> tuple[str, ...]:
    """Look the tuned params up in the runs.

    Raises
    ------
    InputError
        If no run has one, or it is what is compared, or says what is to be solved and not how.
    """
    params = []
    for name in names:
        param = param_of(name, runs)
        if param is None:
            raise InputError("--tune", name, f"a param of the runs, for example {RATE}")
        if param in key.params:
            raise InputError("--tune", name, "another param than the compared one")
        if matches(param, (*APART, *PROBLEM)):
            raise InputError("--tune", name, f"a param of the method, for example {RATE}")
        params.append(param)
    return tuple(dict.fromkeys(params))


def default_by(runs: Iterable[RunSummary]) -> str:
    """Return the metric that chooses by default: of a classification its accuracy, else the mse."""
    names = {name for run in runs for name in run.metrics}
    accuracy, mse = DEFAULT_BY
    return accuracy if any(n.endswith("/accuracy") for n in names) else mse


def diverged(run: RunSummary) -> bool:
    """Return whether a run failed because of its own steps: it was tried, and is no choice."""
    return run.status == "FAILED" and DIVERGED in run.tags.get("error", run.error)


# ---------------------------------------------------------------------------- choosing
def choose(
    groups: Grouped, lost: Grouped, places: Places, by: str
) -> tuple[Grouped, Mapping[Place, Choice]]:
    """Keep of each place and seed the runs of the best candidate.

    The best is the one with the best `by` at its own last round; what is no finite number is never
    better, and of equals the one with the smaller values counts. Where a tuned param has no effect
    on any run of a place, it is not tuned there.

    Parameters
    ----------
    groups : mapping
        The finished runs; of a candidate's runs the last one counts.
    lost : mapping
        Runs that diverged: candidates that cannot be chosen, where they saw the same data.
    places : Places
        Where runs belong, and which params are tuned.
    by : str
        The metric that chooses.

    Returns
    -------
    kept : mapping
        As `groups`.
    choices : mapping of (cell, level) to Choice
        What was chosen, where.

    Raises
    ------
    InputError
        If a run does not have the metric in its last round, candidates saw other data, or levels of
        one cell have another number of candidates.
    """
    every = [run for seeds in groups.values() for runs in seeds.values() for run in runs]
    having = [run for run in every if by in run.metrics]
    higher = bool(having) and is_better_when_higher(by, having, "--by")
    kept: dict[Place, dict[str, Sequence[RunSummary]]] = {}
    choices: dict[Place, Choice] = {}
    for place, seeds in groups.items():
        its = [run for runs in seeds.values() for run in runs]
        keys = tuple(k for k in places.tuned if not all(k in idle(run) for run in its))
        tried, chosen = {}, {}
        for seed, runs in seeds.items():
            candidates = _candidates(runs, keys, places)
            ranks = {values: _rank(same[-1], by, higher) for values, same in candidates.items()}
            broken, top = min(ranks.values())
            ties = [v for v, rank in ranks.items() if rank[0] == broken and equal(rank[1], top)]
            best = min(ties, key=value_order)
            seen = {digest for run in runs if (digest := run.tags.get(_DATA))}
            alike = [r for r in lost.get(place, {}).get(seed, ()) if _may_be_of(r, seen)]
            failed = _candidates(alike, keys, places)
            tried[seed] = tuple(sorted({*candidates, *failed}, key=value_order))
            chosen[seed], kept.setdefault(place, {})[seed] = best, candidates[best]
        choices[place] = Choice(keys, tried, chosen)
    _check_equal(choices, places)
    return kept, choices


def _candidates(
    runs: Iterable[RunSummary], keys: Sequence[str], places: Places
) -> dict[Values, list[RunSummary]]:
    """Return the runs of each candidate, the one that counts last."""
    candidates: dict[Values, list[RunSummary]] = {}
    data: dict[str, RunSummary] = {}
    for run in runs:
        same = candidates.setdefault(tuple(run.params.get(key, "none") for key in keys), [])
        if same:
            places.require_same(same[-1], run)
        same.append(run)
        data.setdefault(run.tags.get(_DATA, "none"), run)
    if len(data) > 1:
        (one, first), (other, second) = list(data.items())[:2]
        text = f"other data: {first.title} and {second.title} are candidates; run both on the same"
        raise InputError(_DATA, f"{one[:12]} and {other[:12]}", text)
    return candidates


def _may_be_of(run: RunSummary, seen: Collection[str]) -> bool:
    """Return whether a run saw one of some data, or it or they do not say."""
    digest = run.tags.get(_DATA)
    return not digest or not seen or digest in seen


def _rank(run: RunSummary, by: str, higher: bool) -> tuple[bool, float]:
    """Return a sort key that puts the best run first, and what is no number last."""
    curve = run.curves.get(by)
    if curve and run.last_round not in curve:
        text = f"no candidate: {run.title} has no such value in its last round ({run.last_round})"
        raise InputError("--by", by, text)
    value = curve[run.last_round] if curve else run.metrics.get(by, run.metrics.get(sanitise(by)))
    if value is None:
        text = f"{run.title} has no such metric to choose by; it has {known_metrics(run)}"
        raise InputError("--by", by, text)
    if not math.isfinite(value):
        return True, 0.0
    return False, -value if higher else value


def _check_equal(choices: Mapping[Place, Choice], places: Places) -> None:
    """Refuse a cell whose levels could try unequally often.

    Levels that tune equally many params have equally many candidates, those that tune fewer have
    no more than those that tune more.
    """
    labels = places.labels(level for _, level in choices)
    cells = sorted({cell for cell, _ in choices})
    for cell, where in zip(cells, tell_apart([dict(c) for c in cells]), strict=True):
        its = {level: choice for (c, level), choice in choices.items() if c == cell}
        counts = [
            (len(tried), natural(seed), level, tried)
            for level, choice in sorted(its.items())
            for seed, tried in choice.tried.items()
        ]
        by_size: dict[int, list[tuple[int, tuple[float, str], Identity, tuple[Values, ...]]]] = {}
        for one in counts:
            by_size.setdefault(len(its[one[2]].keys), []).append(one)
        for size, same in by_size.items():
            most = max(same)
            others = [one for one in same if one[0] < most[0]]
            others += [o for n, its in by_size.items() if n < size for o in its if o[0] > most[0]]
            if others:
                break
        else:
            continue
        counted = [
            f"{places.key.name}={labels[level]} has {count} "
            f"({listed([as_text(values) for values in tried])}) with seed={seed}"
            for count, (_, seed), level, tried in (most, min(others))
        ]
        text = f"the same number of candidates on each side{f' at {where}' if where else ''}: "
        remedy = "; run what is missing, or choose runs with --where"
        raise InputError("--tune", " ".join(places.tuned), f"{text}{', '.join(counted)}{remedy}")
