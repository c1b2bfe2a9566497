"""Which of several hyperparameters counts: chosen for each run by a metric at its own last round.

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
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fl_app.errors import DIVERGED, InputError
from fl_app.report.grounds import source_of
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
from fl_app.tracking.metric_names import equal, sanitise

__all__ = [
    "DEFAULT_BY",
    "RATE",
    "Choice",
    "Tuning",
    "as_text",
    "choose",
    "default_by",
    "diverged",
    "find_tuned",
]

DEFAULT_BY = ("eval/accuracy", "eval/mse")
"""What chooses by default, of a classification and of a regression."""
RATE = "model.learning_rate"
"""The hyperparameter without whose choice no strict claim is made."""
_NOTHING = "nothing to tune"
_DATA = "data.sha256"
_MOST_SEEDS = 12
"""Choices up to which they are shown one by one."""

Values = tuple[str, ...]
"""A candidate: the values of the tuned params."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for a level in a cell.

    Parameters
    ----------
    keys : tuple of str
        Tuned params that have an effect there; none: nothing to tune.
    tried : mapping of str to tuple of (tuple of str)
        Seed -> its candidates, from small to large: values of `keys`.
    chosen : mapping of str to (tuple of str)
        Seed -> the candidate whose run counts.
    """

    keys: tuple[str, ...]
    tried: Mapping[str, tuple[Values, ...]]
    chosen: Mapping[str, Values]

    @property
    def num_candidates(self) -> int:
        """Candidates for each seed."""
        return max(map(len, self.tried.values()))

    def untuned(self) -> list[str]:
        """Return tuned params of which some seed has one value beside the other chosen ones."""
        values = {key: self._values(key) for key in self.keys}
        return [key for key, own in values.items() if any(len(v) < 2 for v in own.values())]

    def at_the_edge(self) -> dict[str, list[str]]:
        """Return choices at an end of their list, or beside its numbers: ``key=value`` -> seeds.

        A param's list are the candidates that have the chosen values of all other params.
        """
        found: dict[str, list[str]] = {}
        for i, key in enumerate(self.keys):
            for seed, values in self._values(key).items():
                numbers = [v for v in values if math.isfinite(natural(v)[0])]
                value = self.chosen[seed][i]
                if len(values) > 1 and numbers and value not in numbers[1:-1]:
                    found.setdefault(f"{key}={value}", []).append(seed)
        return found

    def _values(self, key: str) -> dict[str, list[str]]:
        """Return a param's values by seed, of candidates with the other params' chosen values."""
        i = self.keys.index(key)
        return {
            seed: sorted(
                {v[i] for v in tried if _without(v, i) == _without(self.chosen[seed], i)},
                key=natural,
            )
            for seed, tried in self.tried.items()
        }


@dataclass(frozen=True)
class Tuning:
    """What was chosen in a design.

    Parameters
    ----------
    keys : tuple of str
        The tuned params; none where nothing was to be tuned.
    by : str
        The metric that chose.
    choices : mapping of (str, str) to Choice
        (cell's label, level) -> what was chosen.
    """

    keys: tuple[str, ...] = ()
    by: str = ""
    choices: Mapping[tuple[str, str], Choice] = field(default_factory=dict)

    def chosen(self, cell: str, level: str, seed: str) -> str:
        """Return the values that were chosen for a run; "" where nothing was to be tuned."""
        choice = self.choices.get((cell, level))
        if choice is None:
            return ""
        pairs = zip(choice.keys, choice.chosen[seed], strict=True)
        return " ".join(f"{key}={value}" for key, value in pairs) or _NOTHING

    def as_dict(self) -> dict[str, Any] | None:
        """Return everything as JSON-ready data; None where nothing was to be tuned."""
        if not self.keys:
            return None
        choices = [
            {"cell": cell, "level": level, **asdict(choice)}
            for (cell, level), choice in sorted(self.choices.items())
        ]
        return {"keys": list(self.keys), "by": self.by, "choices": choices}

    def lines(self, cells: Sequence[str], levels: Sequence[str], most: int) -> list[str]:
        """Say how many candidates each level had and which were chosen.

        Parameters
        ----------
        cells : sequence of str
            Labels of cells: a line for each, one line for all where there are many.
        levels : sequence of str
            Levels, in order.
        most : int
            Cells up to which each has a line.
        """
        if not self.keys:
            return []
        shown = [[cell] for cell in cells] if len(cells) <= most else [list(cells)]
        lines = []
        for its in shown:
            where = f" at {its[0]}" if len(its) == 1 and its[0] else ""
            texts = [_told(level, [self.choices[c, level] for c in its]) for level in levels]
            lines.append(f"{', '.join(self.keys)} by {self.by}{where}: {'; '.join(texts)}")
        return lines

    def lack(
        self,
        levels: Sequence[str],
        runs: Mapping[tuple[str, str], Mapping[str, RunSummary]],
        key: Key,
        metric: str,
    ) -> str:
        """Return why no strict claim is made of some levels; "" where one may be.

        Parameters
        ----------
        levels : sequence of str
            The levels that are compared.
        runs : mapping of (str, str) to (mapping of str to RunSummary)
            (cell's label, level) -> seed -> the run that counts.
        key : Key
            What is compared: levels that differ in nothing but the rate need no choice of it.
        metric : str
            What is compared.
        """
        reasons, untuned = [], []
        ours = {
            level: [r for (_, its), seeds in runs.items() if its == level for r in seeds.values()]
            for level in levels
        }
        of_rates = RATE in key.params and self._differ_in_nothing_but_rate(ours.values(), key)
        for level, its in ours.items():
            choices = [choice for (_, name), choice in self.choices.items() if name == level]
            if RATE not in self.keys and not of_rates and any(RATE not in idle(r) for r in its):
                untuned.append(level)
            ones = dict.fromkeys(name for choice in choices for name in choice.untuned())
            reasons += [
                f"{level} is untuned, with one candidate of {name}"
                f"{' beside its other chosen values' if len(self.keys) > 1 else ''}"
                for name in ones
            ]
            edges: dict[str, list[str]] = {}
            for choice in choices:
                for value, seeds in choice.at_the_edge().items():
                    edges.setdefault(value, []).extend(seeds)
            reasons += [
                f"{value} of {level} is at the edge of its candidates with seed "
                f"{listed(sorted(set(seeds), key=natural))}"
                for value, seeds in edges.items()
            ]
        picked = [c for (_, level), c in self.choices.items() if level in levels]
        rows = source_of(metric)
        if rows and rows == source_of(self.by) and any(c.num_candidates > 1 for c in picked):
            reasons.append(f"{metric} is measured on the rows that chose, by {self.by}")
        if untuned:
            how = f"--tune {RATE}{', not in --baseline' if RATE in key.params else ''}"
            reasons.insert(0, f"{RATE} of {' and '.join(untuned)} is untuned ({how})")
        return "; ".join(reasons)

    def _differ_in_nothing_but_rate(self, levels: Iterable[Sequence[RunSummary]], key: Key) -> bool:
        """Return whether the rate is all that tells the methods of some levels' runs apart."""
        methods = {
            frozenset(
                (name, value)
                for name, value in run.params.items()
                if key.owns(name) and name not in (RATE, *self.keys) and name not in idle(run)
            )
            for runs in levels
            for run in runs
        }
        return len(methods) == 1


def _told(level: str, choices: Sequence[Choice]) -> str:
    """Say of a level how many candidates it had, in some cells, and which were chosen."""
    if not any(choice.keys for choice in choices):
        return f"{level}: {_NOTHING}"
    tried = {values for choice in choices for own in choice.tried.values() for values in own}
    counts = sorted({str(choice.num_candidates) for choice in choices}, key=natural)
    noun = "candidate" if counts == ["1"] else "candidates"
    candidates = listed([as_text(values) for values in sorted(tried, key=_order)])
    chosen = [
        as_text(choice.chosen[seed])
        for choice in choices
        for seed in sorted(choice.chosen, key=natural)
    ]
    text = ", ".join(chosen)
    if len(chosen) > _MOST_SEEDS:
        numbers = Counter(chosen).most_common()
        text = ", ".join(f"{value} ({count} of {len(chosen)})" for value, count in numbers)
    return f"{level} {' or '.join(counts)} {noun} ({candidates}), chosen {text}"


def _without(values: Values, i: int) -> Values:
    return (*values[:i], *values[i + 1 :])


def as_text(values: Values) -> str:
    """Return a candidate as one text."""
    return "/".join(values)


# ---------------------------------------------------------------------------- what is asked
def find_tuned(names: Iterable[str], key: Key, runs: Sequence[RunSummary]) -> tuple[str, ...]:
    """Look the tuned params up in the runs.

    Raises
    ------
    InputError
        If no run has one, or it is what is compared, or says what is to be solved and not how.
    """
    found = []
    for name in names:
        param = param_of(name, runs)
        if param is None:
            raise InputError("--tune", name, f"a param of the runs, for example {RATE}")
        if param in key.params:
            raise InputError("--tune", name, "another param than the compared one")
        if matches(param, (*APART, *PROBLEM)):
            raise InputError("--tune", name, f"a param of the method, for example {RATE}")
        found.append(param)
    return tuple(dict.fromkeys(found))


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
            own = _candidates(runs, keys, places)
            ranks = {values: _rank(same[-1], by, higher) for values, same in own.items()}
            broken, top = min(ranks.values())
            ties = [v for v, rank in ranks.items() if rank[0] == broken and equal(rank[1], top)]
            best = min(ties, key=_order)
            seen = {digest for run in runs if (digest := run.tags.get(_DATA))}
            alike = [r for r in lost.get(place, {}).get(seed, ()) if _may_be_of(r, seen)]
            failed = _candidates(alike, keys, places)
            tried[seed] = tuple(sorted({*own, *failed}, key=_order))
            chosen[seed], kept.setdefault(place, {})[seed] = best, own[best]
        choices[place] = Choice(keys, tried, chosen)
    _check_equal(choices, places)
    return kept, choices


def _candidates(
    runs: Iterable[RunSummary], keys: Sequence[str], places: Places
) -> dict[Values, list[RunSummary]]:
    """Return the runs of each candidate, the one that counts last."""
    found: dict[Values, list[RunSummary]] = {}
    data: dict[str, RunSummary] = {}
    for run in runs:
        same = found.setdefault(tuple(run.params.get(key, "none") for key in keys), [])
        if same:
            places.require_same(same[-1], run)
        same.append(run)
        data.setdefault(run.tags.get(_DATA, "none"), run)
    if len(data) > 1:
        (one, first), (other, second) = list(data.items())[:2]
        text = f"other data: {first.title} and {second.title} are candidates; run both on the same"
        raise InputError(_DATA, f"{one[:12]} and {other[:12]}", text)
    return found


def _may_be_of(run: RunSummary, seen: Collection[str]) -> bool:
    """Return whether a run saw one of some data, or it or they do not say."""
    digest = run.tags.get(_DATA)
    return not digest or not seen or digest in seen


def _order(values: Values) -> list[tuple[float, str]]:
    return list(map(natural, values))


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
            others += [o for n, own in by_size.items() if n < size for o in own if o[0] > most[0]]
            if others:
                break
        else:
            continue
        told = [
            f"{places.key.name}={labels[level]} has {count} "
            f"({listed([as_text(values) for values in tried])}) with seed={seed}"
            for count, (_, seed), level, tried in (most, min(others))
        ]
        text = f"the same number of candidates on each side{f' at {where}' if where else ''}: "
        remedy = "; run what is missing, or choose runs with --where"
        raise InputError("--tune", " ".join(places.tuned), f"{text}{', '.join(told)}{remedy}")
