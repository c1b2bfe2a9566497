"""A run as a report sees it, and words for what tells runs apart. Plain data, no MLflow."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fl_app.config.schema import GROUPS
from fl_app.errors import InputError, printable
from fl_app.models.directions import higher_is_better
from fl_app.tracking.metric_names import directions_of, sanitise

__all__ = [
    "BYTES",
    "PATHS",
    "REFERENCES",
    "ROUNDS",
    "RunSummary",
    "beside",
    "is_better_when_higher",
    "select",
    "tell_apart",
]

BYTES = ("cost/bytes_up", "cost/bytes_down")
"""Metrics whose sum is what a run has sent so far."""

ROUNDS = "num_server_rounds"
REFERENCES = tuple(name for name, kind in GROUPS["strategy"].items() if kind().is_reference)
"""Strategies that federate nothing: what their clients and the server exchange is no bytes."""
PATHS = ("dataset.path",)
"""Params that are a path on this machine."""

FINISHED = "FINISHED"
_FINISHED_LAST = ("fedstacking",)
WITHOUT_EFFECT = "config.without_effect"
"""Tag with the params that cannot change a run's numbers, separated by blanks."""
_LONG_NUMBER = 8
_FIRST = (
    "dataset.name",
    "partitioner.name",
    "partitioner.alpha",
    "num_clients",
    "model.name",
    "strategy.name",
)
"""Params that name a configuration best, before all others in alphabetical order."""


@dataclass(frozen=True)
class RunSummary:
    """One run: what it was asked for, how it ended, and the curves that a report needs.

    Parameters
    ----------
    run_id : str
        MLflow's id, or any other.
    params : mapping of str to str
        Flattened dotted config, as :func:`fl_app.config.serialization.flatten` gives it.
    tags : mapping of str to str
        Of which ``data.sha256`` decides whether runs are comparable.
    curves : mapping of str to (mapping of int to float)
        For each metric that was asked for, its value by round; empty for runs that did not finish.
    metrics : mapping of str to float
        The last value of every metric.
    status : str, default "FINISHED"
        MLflow's word for how it ended.
    error : str
        Why it failed, in one line, where anybody knows.
    name : str
        Its name in the UI.
    start_ms : int
        When it started, Unix time in milliseconds.
    losses : ndarray of shape (n,) or None
        The final model's loss on each test row, whose mean is the metric that was asked for; None
        where nobody needs them or the run does not tell.
    """

    run_id: str
    params: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    status: str = FINISHED
    error: str = ""
    name: str = ""
    start_ms: int = 0
    losses: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """Whether it ended well."""
        return self.status == FINISHED

    @property
    def seed(self) -> str:
        """Its seed, "" where it has none."""
        return self.params.get("seed", "")

    @property
    def federates(self) -> bool:
        """Whether it is a federation, and no reference."""
        return self.params.get("strategy.name") not in REFERENCES

    @property
    def finished_last(self) -> bool:
        """Whether its model is finished in its last round only; before it is another method's."""
        return self.params.get("strategy.name") in _FINISHED_LAST

    @property
    def last_round(self) -> int:
        """The last round of all its curves, 0 where it has none."""
        return max((max(curve) for curve in self.curves.values() if curve), default=0)

    @property
    def title(self) -> str:
        """Its name, or its id where it has none."""
        return self.name or self.run_id


def is_better_when_higher(metric: str, runs: Iterable[RunSummary], field: str = "--metric") -> bool:
    """Return whether a larger value of a metric is better, judged by its key and by what runs tell.

    Parameters
    ----------
    metric : str
        A full key, for example ``server/accuracy``.
    runs : iterable of RunSummary
        Their tags may tell it.
    field : str
        Who names the metric, for the error.

    Returns
    -------
    bool

    Raises
    ------
    InputError
        If nobody knows.
    """
    known: dict[str, bool] = {}
    for run in runs:
        known |= directions_of(run.tags)
    higher = higher_is_better(metric, known)
    if higher is None:
        allowed = "a metric whose direction its name tells, or TrackedStrategy's higher_is_better"
        raise InputError(field, metric, allowed)
    return higher


def idle(run: RunSummary) -> frozenset[str]:
    """Return the params that have no effect on a run's numbers, as its tag says."""
    return frozenset(run.tags.get(WITHOUT_EFFECT, "").split())


def known_metrics(run: RunSummary) -> str:
    """Return the metrics that a run has and a user may mean, as one text."""
    told = ("server", "eval", "train")
    names = sorted(run.metrics, key=lambda n: (n.partition("/")[0] not in told, n))
    known = [n for n in names if "_client_" not in n and not n.startswith("model/")]
    return listed(known) or "none"


def beside(metric: str) -> str | None:
    """Return what is shown beside a metric: ``r2`` beside ``mse``, whose unit is squared, and back.

    Examples
    --------
    >>> beside("server/mse"), beside("eval/r2"), beside("server/accuracy")
    ('server/r2', 'eval/mse', None)
    """
    group, _, name = metric.partition("/")
    other = {"mse": "r2", "r2": "mse"}.get(name) if group in ("server", "eval") else None
    return other and f"{group}/{other}"


def natural(text: str) -> tuple[float, str]:
    """Return a sort key that puts numbers in their order, before all other texts."""
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    return (math.inf if math.isnan(number) else number), text


def label_order(label: str) -> list[tuple[float, str]]:
    """Return a sort key that puts labels with numbers in the order of the numbers."""
    return [natural(word.rpartition("=")[2].rstrip(",")) for word in label.split(" ")]


def param_of(key: str, runs: Iterable[RunSummary]) -> str | None:
    """Return the param that a user's key names, None if no run has it.

    Parameters
    ----------
    key : str
        A group (``strategy`` is ``strategy.name``), a dotted key, its last part where no other
        param has the same, or a key that MLflow would not take as it is.
    runs : iterable of RunSummary
        Where to look.
    """
    known = {param for run in runs for param in run.params}
    names = (f"{key}.name", key, sanitise(f"{key}.name"), sanitise(key))
    found = [name for name in names if name in known]
    ends = [name for name in known if name.endswith(f".{key}")]
    return found[0] if found else ends[0] if len(ends) == 1 else None


def plain(text: str) -> str:
    """Return a text as it may be typed: a list without quotation marks and blanks."""
    return text.replace('"', "").replace(", ", ",")


def same_value(one: str, other: str) -> bool:
    """Return whether two texts are the same value: as typed, or as numbers (``.1`` and ``0.1``)."""
    if plain(one) == plain(other):
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def select(runs: Sequence[RunSummary], where: Iterable[str]) -> tuple[RunSummary, ...]:
    """Return the runs that have given params.

    Parameters
    ----------
    runs : sequence of RunSummary
        Runs.
    where : iterable of str
        Each ``KEY=VALUE`` or ``KEY=VALUE,VALUE``; all must hold. A path may be relative to the
        current folder, and means all runs that saw the same bytes (``data.sha256``). A run on
        which a param has no effect has every value of it.

    Returns
    -------
    tuple of RunSummary

    Raises
    ------
    InputError
        If one is malformed, or names a param or a value that no run has.
    """
    kept = tuple(runs)
    for text in where:
        key, equals, value = text.partition("=")
        param = param_of(key.strip(), runs)
        if not equals or param is None:
            raise InputError("--where", text, "KEY=VALUE[,VALUE] with a param of the runs as KEY")
        found = sorted({r.params[param] for r in kept if param in r.params}, key=natural)
        same = _same_path if param in PATHS else same_value
        wanted = _named(value, lambda one: any(same(one, known) for known in found))  # noqa: B023
        if not wanted:
            raise InputError("--where", text, f"values that runs have: {listed(found)}")
        ours = [
            run
            for run in kept
            if param in run.params
            and (param in idle(run) or any(same(w, run.params[param]) for w in wanted))
        ]
        ids = {run.run_id for run in ours}
        seen = {_bytes_at(run, param) for run in ours} - {""}
        kept = tuple(run for run in kept if run.run_id in ids or _bytes_at(run, param) in seen)
    return kept


def _named(text: str, known: Callable[[str], bool]) -> list[str]:
    """Return the known values of a list, which may hold commas themselves; [] if one is not known.

    Examples
    --------
    >>> _named("a, b,c", {"a", "b,c"}.__contains__)
    ['a', 'b,c']
    """
    parts, values = text.split(","), list[str]()
    while parts:
        longest = range(len(parts), 0, -1)
        size = next((n for n in longest if known(",".join(parts[:n]).strip())), 0)
        if not size:
            return []
        values.append(",".join(parts[:size]).strip())
        parts = parts[size:]
    return values


def _bytes_at(run: RunSummary, param: str) -> str:
    """Return the digest of what a run read at a path; "" where the param is none."""
    is_path = param in PATHS and run.params.get(param, "null") != "null"
    return run.tags.get("data.sha256", "") if is_path else ""


def _same_path(one: str, other: str) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def short(param: str) -> str:
    """Return a param as it is typed on the command line: ``strategy`` for ``strategy.name``."""
    return param.removesuffix(".name")


def tell_apart(items: Sequence[Mapping[str, str]], keys: Collection[str] = ()) -> list[str]:
    """Return a label for each set of params, from as few of them as tell all sets apart.

    Parameters
    ----------
    items : sequence of mapping of str to str
        Sets of params, no two equal.
    keys : collection of str
        Params that are named wherever they differ, needed or not.

    Returns
    -------
    list of str
        For example ``["dataset=iris, alpha=0.1", "dataset=wine, alpha=0.1"]``; ``[""]`` for a
        single one. A param that a set does not have shows as ``-``.

    Examples
    --------
    >>> tell_apart([{"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "c": "2"}])
    ['b=1', 'b=2']
    """
    names = {name for item in items for name in item}
    rank = {name: position for position, name in enumerate(_FIRST)}
    chosen: list[str] = []
    count = 1
    # What some sets do not have says little of the others: it comes last.
    some = {name for name in names if any(name not in item for item in items)}
    order = {n: (n not in keys, rank.get(n, len(rank)), n in some, n) for n in names}
    for name in sorted(names, key=lambda n: order[n]):
        tried = [*chosen, name]
        apart = len({tuple(item.get(n) for n in tried) for item in items})
        if apart > count or (name in keys and len({item.get(name) for item in items}) > 1):
            chosen, count = tried, apart
    words = [short(name) for name in chosen]
    last = [word.rpartition(".")[2] for word in words]
    shown = [end if last.count(end) == 1 else word for word, end in zip(words, last, strict=True)]
    for show in (_brief, str):
        labels = [
            ", ".join(
                f"{word}={show(item.get(n, '-'))}" for n, word in zip(chosen, shown, strict=True)
            )
            for item in items
        ]
        if len(set(labels)) == len(labels):
            break
    return labels


def _brief(value: str) -> str:
    """Return a number with four digits where it has many more, a list as it is typed."""
    if value.startswith("["):
        return plain(value)
    if len(value) <= _LONG_NUMBER:
        return value
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def listed(texts: Sequence[str], most: int = 12) -> str:
    """Return texts as one, the first of them where there are many."""
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")


def one_line(text: str, most: int = 160) -> str:
    """Return a text in one line of limited length."""
    return printable(" ".join(text.split()), most)
