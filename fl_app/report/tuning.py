"""What was chosen of several hyperparameters, and what it lacks for a strict claim."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fl_app.report.grounds import source_of
from fl_app.report.groups import Key
from fl_app.report.runs import RunSummary, idle, listed, natural

__all__ = ["RATE", "Choice", "Tuning", "Values", "as_text", "value_order"]

RATE = "model.learning_rate"
"""The hyperparameter without whose choice no strict claim is made."""
_NOTHING = "nothing to tune"
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
        return [key for key, seeds in values.items() if any(len(v) < 2 for v in seeds.values())]

    def at_the_edge(self) -> dict[str, list[str]]:
        """Return choices at an end of their list, or beside its numbers: ``key=value`` -> seeds.

        A param's list are the candidates that have the chosen values of all other params.
        """
        edges: dict[str, list[str]] = {}
        for i, key in enumerate(self.keys):
            for seed, values in self._values(key).items():
                numbers = [v for v in values if math.isfinite(natural(v)[0])]
                value = self.chosen[seed][i]
                if len(values) > 1 and numbers and value not in numbers[1:-1]:
                    edges.setdefault(f"{key}={value}", []).append(seed)
        return edges

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
    tried = {values for choice in choices for its in choice.tried.values() for values in its}
    counts = sorted({str(choice.num_candidates) for choice in choices}, key=natural)
    noun = "candidate" if counts == ["1"] else "candidates"
    candidates = listed([as_text(values) for values in sorted(tried, key=value_order)])
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


def value_order(values: Values) -> list[tuple[float, str]]:
    """Return a sort key that puts small values first."""
    return list(map(natural, values))
