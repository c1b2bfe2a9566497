"""Where a run belongs: its level of the compared key, its cell. By its params alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fl_app.errors import InputError
from fl_app.report.runs import RunSummary, listed, param_of, short, tell_apart

__all__ = ["APART", "SPLIT", "Identity", "Key", "Placed", "Places", "matches"]

SPLIT = ("dataset.test_fraction", "dataset.val_fraction", "dataset.split")
"""Params that decide which rows are for what: paired runs must agree on them, ignored or not."""
APART = ("seed", "runtime.*", "tracking.*")
"""Params that make no cell: the pairing unit, and what decides no number of a run."""

Identity = tuple[tuple[str, str], ...]
"""Params in order: what is equal is comparable."""


@dataclass(frozen=True)
class Key:
    """The param whose values are compared.

    Parameters
    ----------
    name : str
        As the user types it, for example ``strategy`` or ``partitioner.alpha``.
    param : str
        The param: ``strategy.name``. All that is below a group (``strategy.*``) belongs to it.
    """

    name: str
    param: str

    @classmethod
    def find(cls, name: str, runs: Iterable[RunSummary]) -> Key:
        """Look a key up in the runs' params.

        Raises
        ------
        InputError
            If no run has it, or it is the seed.
        """
        runs = tuple(runs)
        param = param_of(name, runs)
        if param is None:
            groups = {
                p.partition(".")[0] for run in runs for p in run.params if p.endswith(".name")
            }
            there = f"a param of the runs as the key, for example {listed(sorted(groups))}"
            raise InputError("--baseline", name, there)
        if param == "seed":
            raise InputError("--baseline", name, "another key: runs are paired by their seed")
        return cls(short(param), param)

    def owns(self, param: str) -> bool:
        """Return whether a param belongs to the key."""
        group = self.param.removesuffix(".name")
        return param == self.param or (group != self.param and param.startswith(f"{group}."))


@dataclass(frozen=True)
class Places:
    """Where a run belongs, by its params."""

    key: Key
    ignore: tuple[str, ...]

    def cell(self, run: RunSummary) -> Identity:
        """Return all that paired runs must agree on."""
        kept = {
            name: value
            for name, value in run.params.items()
            if not self.key.owns(name) and not matches(name, APART) and not self.ignores(name)
        }
        return tuple(sorted(kept.items()))

    def level(self, run: RunSummary) -> Identity:
        """Return all that belongs to the compared key."""
        return tuple(
            (name, value)
            for name, value in sorted(run.params.items())
            if name == self.key.param or (self.key.owns(name) and not self.ignores(name))
        )

    def ignores(self, param: str) -> bool:
        """Return whether a param may differ between paired runs."""
        return matches(param, self.ignore)

    def labels(self, levels: Iterable[Identity]) -> dict[Identity, str]:
        """Label levels by their value, and those with the same value by what else differs."""
        by_value: dict[str, list[Identity]] = {}
        for level in sorted(set(levels)):
            by_value.setdefault(dict(level)[self.key.param], []).append(level)
        group = f"{self.key.name}."
        labels = {}
        for value, same in by_value.items():
            own = [{n.removeprefix(group): v for n, v in level} for level in same]
            for level, rest in zip(same, tell_apart(own), strict=True):
                labels[level] = f"{value} {rest}".strip()
        return labels

    def require_same(self, one: RunSummary, other: RunSummary) -> None:
        """Refuse two runs of one place that are no repetition of each other."""
        level = f"{self.key.name}={one.params[self.key.param]} with seed={one.seed}"
        for name in sorted(one.params.keys() | other.params.keys()):
            values = [run.params.get(name, "none") for run in (one, other)]
            if values[0] != values[1] and (self.key.owns(name) or not matches(name, APART)):
                text = f"one value for {level}: choose runs with --where {name}=... or --sweep"
                raise InputError(name, " and ".join(values), text)


def matches(param: str, patterns: Iterable[str]) -> bool:
    """Return whether a param has one of some names: with ``*``, or a group for all below it."""
    return any(fnmatchcase(param, p) or param.startswith(f"{p}.") for p in patterns)


Placed = Mapping[tuple[Identity, Identity], Mapping[str, RunSummary]]
"""(cell, level) -> seed -> run."""
