"""What an interval over seeds may speak of: who draws the rows that a metric is measured on.

``server/`` metrics are measured on the server's test rows, ``eval`` and ``fairness/`` metrics on
the clients' validation rows. A run's tags say which rows depend on its seed (``data.seed_draws``:
the whole ``table`` anew; the ``test`` rows, and so all others; only the ``deal`` to clients, or
``nothing``) and how many there are (``data.rows``, ``data.test_rows``, ``data.train_rows``,
``data.validation_rows``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fl_app.report.intervals import Interval
from fl_app.report.runs import RunSummary

__all__ = [
    "FEWEST_STRICT",
    "KINDS",
    "Ground",
    "ground_of",
    "shares_test_rows",
    "source_of",
    "with_ground",
]

FEWEST_STRICT = 5
"""Pairs in a cell below which no strict claim is made."""

KINDS: Mapping[str, str] = {
    "corrected t": "corrected resampled t over seeds, which draw the rows that are scored from one "
    "table: speaks of other rows like these",
    "t": "Student's t over seeds, each with data of its own",
    "t over seeds": "Student's t over training seeds on these rows only: says nothing of others",
    "uncorrected t": "Student's t over seeds: too narrow where they draw the rows that are scored "
    "from one table",
    "bootstrap": "over the test rows, which all seeds share, with each row's mean over seeds: "
    "speaks of other test rows like these",
}
"""Kinds of intervals, and what each speaks of."""

_DRAWN = {"server": {"test"}, "eval": {"test", "deal"}}
_COUNTS = {
    "server": ("data.test_rows", "data.rows"),
    "eval": ("data.validation_rows", "data.train_rows"),
}


@dataclass(frozen=True)
class Ground:
    """What an interval over the seeds of a cell rests on.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    ratio : float, default 0
        n_test / n_train of the corrected t.
    lack : str
        Why no strict claim rests on it; "" where one may.
    """

    kind: str
    ratio: float = 0.0
    lack: str = ""


def ground_of(runs: Iterable[RunSummary], metric: str) -> Ground:
    """Return what an interval over the seeds of one cell rests on.

    Parameters
    ----------
    runs : iterable of RunSummary
        The cell's runs, of all levels.
    metric : str
        The metric; its name tells which rows are scored.

    Returns
    -------
    Ground
        With the largest ratio of the runs, where they differ.
    """
    source = source_of(metric)
    if source is None:
        return Ground(
            "t over seeds", lack="strict claims are of server/, eval and fairness/ metrics"
        )
    runs = tuple(runs)
    draws = {run.tags.get("data.seed_draws", "") for run in runs}
    ratios = [_ratio(run, source) for run in runs]
    if draws == {"table"}:
        return Ground("t")
    if draws <= {"test", "deal", "nothing"} - _DRAWN[source]:
        rows = "test" if source == "server" else "validation"
        return Ground("t over seeds", lack=f"all seeds share their {rows} rows")
    if draws <= _DRAWN[source] and None not in ratios:
        return Ground("corrected t", max(ratio for ratio in ratios if ratio is not None))
    tags = ", ".join(("data.seed_draws", *_COUNTS[source]))
    return Ground("uncorrected t", lack=f"the record does not say what the seed draws ({tags})")


def shares_test_rows(run: RunSummary, metric: str) -> bool:
    """Return whether a metric is measured on test rows that are the same for every seed."""
    return source_of(metric) == "server" and run.tags.get("data.seed_draws") in ("deal", "nothing")


def source_of(metric: str) -> str | None:
    """Return which rows a metric is measured on: ``server``'s, the clients' ``eval``, or others."""
    group = metric.partition("/")[0]
    if group == "server":
        return group
    return "eval" if group in ("eval", "fairness") or group.startswith("eval_client_") else None


def _ratio(run: RunSummary, source: str) -> float | None:
    """Return n_test / n_train of a run, None where it does not say."""
    try:
        tested, others = (int(run.tags[name]) for name in _COUNTS[source])
    except (KeyError, ValueError):
        return None
    trained = others - tested if source == "server" else others
    return tested / trained if tested > 0 and trained > 0 else None


def with_ground(interval: Interval, grounds: Sequence[Ground], fewest: int) -> Interval:
    """Name an interval by what it rests on, and say what a strict claim lacks.

    Parameters
    ----------
    interval : Interval
        Over the seeds of some cells.
    grounds : sequence of Ground
        Of these cells; the weakest counts.
    fewest : int
        Pairs in the cell that has fewest.

    Returns
    -------
    Interval
    """
    if interval.low is None:
        return interval
    weakest = max(grounds, key=lambda ground: (bool(ground.lack), ground.ratio))
    few = f"{fewest} of the {FEWEST_STRICT} pairs that it needs" if fewest < FEWEST_STRICT else ""
    lack = "; ".join(filter(None, (weakest.lack, few)))
    return replace(interval, kind=weakest.kind, lack=lack)
