"""Where a run belongs: its level of the compared key, its cell. By its params alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

from fl_app.errors import InputError
from fl_app.report.runs import RunSummary, idle, listed, natural, param_of, short, tell_apart

__all__ = [
    "APART",
    "PROBLEM",
    "SPLIT",
    "Grouped",
    "Identity",
    "Key",
    "Place",
    "Placed",
    "Places",
    "matches",
    "split_keys",
]

SPLIT = ("dataset.test_fraction", "dataset.val_fraction", "dataset.split")
"""Params that decide which rows are for what: paired runs must agree on them, ignored or not."""
APART = ("seed", "runtime.*", "tracking.*")
"""Params that make no cell: the pairing unit, and what decides no number of a run."""
PROBLEM = ("dataset", "partitioner", "num_clients", "min_rows", "min_replies", "privacy", "faults")
"""Params that say what is to be solved; all others of a cell are the method's hyperparameters."""

Identity = tuple[tuple[str, str], ...]
"""Params in order: what is equal is comparable."""
Place = tuple[Identity, Identity]
"""(cell, level)."""
Grouped = Mapping[Place, Mapping[str, Sequence[RunSummary]]]
"""Place -> seed -> runs, the one that counts last."""
Placed = Mapping[Place, Mapping[str, RunSummary]]
"""Place -> seed -> the run that counts."""


def split_keys(text: str) -> list[str]:
    """Return the parts of ``KEY=VALUE,KEY=VALUE``; a comma that no key follows is the value's.

    Examples
    --------
    >>> split_keys("strategy=fedstacking,strategy.base_models=[ridge,logistic],model=mlp")
    ['strategy=fedstacking', 'strategy.base_models=[ridge,logistic]', 'model=mlp']
    """
    return re.split(r",(?=[\w.\[\]-]+=)", text)


@dataclass(frozen=True)
class Key:
    """The params whose values are compared.

    Parameters
    ----------
    params : tuple of str
        One or more: ``strategy.name``. All that is below a group (``strategy.*``) belongs to it.
    """

    params: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the user types it: ``strategy``, ``partitioner.alpha``, ``strategy,model``."""
        return ",".join(map(short, self.params))

    @classmethod
    def find(cls, names: Iterable[str], runs: Iterable[RunSummary]) -> Key:
        """Look keys up in the runs' params.

        Raises
        ------
        InputError
            If no run has one, it is the seed, or it is there twice.
        """
        runs, params = tuple(runs), []
        for name in names:
            param = param_of(name, runs)
            if param is None:
                groups = {
                    p.partition(".")[0] for run in runs for p in run.params if p.endswith(".name")
                }
                there = f"a param of the runs as the key, for example {listed(sorted(groups))}"
                raise InputError("--baseline", name, there)
            if param == "seed":
                raise InputError("--baseline", name, "another key: runs are paired by their seed")
            if param in params:
                raise InputError("--baseline", name, "each key once")
            params.append(param)
        return cls(tuple(params))

    def owns(self, param: str) -> bool:
        """Return whether a param belongs to the key."""
        groups = (p.removesuffix(".name") for p in self.params if p.endswith(".name"))
        return param in self.params or any(param.startswith(f"{group}.") for group in groups)

    def named(self, text: str) -> dict[str, str]:
        """Return the values that a text gives by name, param -> value; none where it does not."""
        known = {name: p for p in self.params for name in (p, short(p))}
        parts = split_keys(text) if len(self.params) > 1 else [text]
        pairs = [part.strip().partition("=") for part in parts]
        if not all(equals and name in known for name, equals, _ in pairs):
            return {}
        return {known[name]: value.strip() for name, _, value in pairs}


@dataclass(frozen=True)
class Places:
    """Where a run belongs, by its params.

    Parameters
    ----------
    key : Key
        What is compared.
    ignore : tuple of str
        Patterns of params that may differ between paired runs.
    tuned : tuple of str
        Params whose value is chosen for each run: part of no place.
    """

    key: Key
    ignore: tuple[str, ...]
    tuned: tuple[str, ...] = ()

    def cell(self, run: RunSummary) -> Identity:
        """Return all that paired runs must agree on."""
        return tuple(
            (name, value)
            for name, value in self._told(run)
            if not self.key.owns(name) and not matches(name, APART) and not self.ignores(name)
        )

    def level(self, run: RunSummary) -> Identity:
        """Return all that belongs to the compared key."""
        return tuple(
            (name, value)
            for name, value in self._told(run)
            if name in self.key.params or (self.key.owns(name) and not self.ignores(name))
        )

    def _told(self, run: RunSummary) -> list[tuple[str, str]]:
        """Return the params that tell a run from others: not those without effect on it."""
        without = idle(run) - set(self.key.params)
        items = sorted(run.params.items())
        return [(n, v) for n, v in items if n not in without and n not in self.tuned]

    def grouped(self, runs: Iterable[RunSummary], among: Iterable[RunSummary] = ()) -> Grouped:
        """Put runs in their places.

        A run on which a param has no effect stands for all values of it: it is in each place that
        differs in such params only. Of several there with other values of them the smallest counts,
        then the newest.

        Parameters
        ----------
        runs : iterable of RunSummary
            The runs.
        among : iterable of RunSummary, optional
            Those whose places are there; by default `runs`.
        """
        runs = sorted(runs, key=lambda run: (run.start_ms, run.run_id))
        runs.sort(key=_without_effect, reverse=True)
        places = [(self.cell(run), self.level(run)) for run in (tuple(among) or runs)]
        cells, levels = ({place[i] for place in places} for i in (0, 1))
        found: dict[Place, dict[str, list[RunSummary]]] = {}
        for run in runs:
            own = (_fitting(self.cell(run), cells, run), _fitting(self.level(run), levels, run))
            for place in product(*own):
                found.setdefault(place, {}).setdefault(run.seed, []).append(run)
        return found

    def ignores(self, param: str) -> bool:
        """Return whether a param may differ between paired runs."""
        return matches(param, self.ignore)

    def labels(self, levels: Iterable[Identity]) -> dict[Identity, str]:
        """Label levels by their values, and those with the same values by what else differs."""
        by_value: dict[str, list[Identity]] = {}
        for level in sorted(set(levels)):
            value = " ".join(dict(level)[param] for param in self.key.params)
            by_value.setdefault(value, []).append(level)
        labels = {}
        for value, same in by_value.items():
            for level, rest in zip(same, tell_apart(list(map(dict, same))), strict=True):
                labels[level] = f"{value} {rest}".strip()
        return labels

    def require_same(self, one: RunSummary, other: RunSummary) -> None:
        """Refuse two runs of one place that are no repetition of each other."""
        its = " ".join(one.params[param] for param in self.key.params)
        level = f"{self.key.name}={its} with seed={one.seed}"
        without = idle(one) | idle(other)
        for name in sorted((one.params.keys() | other.params.keys()) - without):
            values = [run.params.get(name, "none") for run in (one, other)]
            if values[0] != values[1] and (self.key.owns(name) or not matches(name, APART)):
                text = f"one value for {level}: choose runs with --where {name}=... or --sweep"
                raise InputError(name, " and ".join(values), text)


def _without_effect(run: RunSummary) -> list[tuple[float, str]]:
    """Return a sort key: the values that have no effect on a run."""
    return [natural(run.params.get(name, "")) for name in sorted(idle(run))]


def _fitting(own: Identity, known: Collection[Identity], run: RunSummary) -> list[Identity]:
    """Return the identities that tell nothing more of a run than params without effect on it."""
    without, mine = idle(run), set(own)
    if not without:
        return [own]
    fits = {one for one in known if mine <= set(one) and {n for n, _ in set(one) - mine} <= without}
    return sorted(one for one in fits if not any(set(one) < set(other) for other in fits)) or [own]


def matches(param: str, patterns: Iterable[str]) -> bool:
    """Return whether a param has one of some names: with ``*``, or a group for all below it."""
    return any(fnmatchcase(param, p) or param.startswith(f"{p}.") for p in patterns)
