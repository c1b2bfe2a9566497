"""Which metrics a run has, and their values: the server's by round, the clients' by round too.

A client's own values are on its validation rows; where a run has none, on its training rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fl_app.dashboard.view import Floats, Own, Round, RunView, mapping
from fl_app.models.directions import higher_is_better
from fl_app.models.metrics import FEWEST_ROWS, NO_SCORES
from fl_app.tracking.metric_names import directions_of

__all__ = [
    "Metric",
    "mean_values",
    "metrics",
    "own_values",
    "shown_rows",
    "strip",
    "unit",
    "values",
    "worst_values",
]
_FIRST = ("accuracy", "mse", "log_loss", "mae", "brier", "r2", "balanced_accuracy", "roc_auc")
_ROWS = {
    "server": "the server's test rows",
    "eval": "the clients' validation rows",
    "train": "the clients' training rows, each by its own model",
}


@dataclass(frozen=True)
class Metric:
    """A metric that the page can show.

    Parameters
    ----------
    name : str
        For example ``accuracy``.
    source : {"server", "eval", "train"}
        Whose value stands for the run: the first of these that any round has.
    higher : bool or None
        Whether larger is better; None where nobody knows.
    """

    name: str
    source: str
    higher: bool | None

    @property
    def key(self) -> str:
        """The key in :attr:`Round.metrics`."""
        return f"{self.source}/{self.name}"

    @property
    def rows(self) -> str:
        """On which rows it is measured, in words."""
        return _ROWS[self.source]


def metrics(view: RunView) -> list[Metric]:
    """Return what can be shown of a run, the default first.

    Parameters
    ----------
    view : RunView
        The run.

    Returns
    -------
    list of Metric
        One a name; empty before the first round.
    """
    best: dict[str, str] = {}
    for source in ("train", "eval", "server"):
        for key in view.keys:
            first, _, name = key.partition("/")
            if first == source and name not in NO_SCORES and name != "train_loss":
                best[name] = source
    places = {name: place for place, name in enumerate(_FIRST)}
    names = sorted(best, key=lambda name: (places.get(name, len(places)), name))
    known = directions_of(view.tags)
    return [Metric(name, best[name], higher_is_better(name, known)) for name in names]


def unit(view: RunView, metric: str) -> str:
    """Return a metric's unit in words, empty where it has none."""
    targets = [*(mapping(view.spec.get("encoding")).get("targets") or ())]
    name = str(targets[0]) if len(targets) == 1 else "target"
    return {"mse": f"{name}²", "mae": name}.get(metric, "")


def values(view: RunView, metric: Metric) -> Floats:
    """Return the run's value in each of its rounds, shape (R,), NaN where there is none."""
    return np.array([r.metrics.get(metric.key, math.nan) for r in view.rounds])


def shown_rows(view: RunView) -> str:
    """Return on which rows clients' own values are: ``validation``, ``training`` or nothing."""
    if any(len(r.validation.partitions) for r in view.rounds):
        return "validation"
    return "training" if any(len(r.training.partitions) for r in view.rounds) else ""


def own_values(view: RunView, round_: Round) -> Own:
    """Return the clients' own values in a round, on the rows that :func:`shown_rows` names."""
    return round_.validation if shown_rows(view) == "validation" else round_.training


def strip(view: RunView, name: str) -> Floats:
    """Return each client's value of a metric in each round.

    Parameters
    ----------
    view : RunView
        The run.
    name : str
        The metric.

    Returns
    -------
    ndarray of shape (K, R)
        NaN where a client was not measured.
    """
    validation = shown_rows(view) == "validation"
    measured = [r.validation if validation else r.training for r in view.rounds]
    largest = max((int(o.partitions[-1]) for o in measured if len(o.partitions)), default=-1)
    table = np.full((max(view.clients, largest + 1), len(measured)), np.nan)
    for place, o in enumerate(measured):
        if name in o.values:
            table[o.partitions, place] = o.values[name]
    return table


def mean_values(view: RunView, name: str) -> Floats:
    """Return the clients' mean in each round, weighted by rows as the server does it, (R,).

    On the rows that :func:`shown_rows` names; under privacy, where it names none, on those of
    ``eval/`` if the run has any.
    """
    rows = shown_rows(view)
    validation = rows == "validation" or (not rows and f"eval/{name}" in view.keys)
    key = f"{'eval' if validation else 'train'}/{name}"
    return np.array([r.metrics.get(key, math.nan) for r in view.rounds])


def worst_values(view: RunView, name: str) -> Floats:
    """Return the worst client's value in each round, (R,); NaN where nobody knows what is worse.

    Clients with fewer than five validation rows do not count where others have more.
    """
    higher = higher_is_better(name, directions_of(view.tags))
    worst = np.min if higher else np.max
    curve = np.full(len(view.rounds), np.nan)
    if higher is None:
        return curve
    validation = shown_rows(view) == "validation"
    for place, r in enumerate(view.rounds):
        measured = r.validation if validation else r.training
        if name in measured.values:
            known = measured.values[name]
            enough = known[~(measured.rows < FEWEST_ROWS)]
            finite = [part[~np.isnan(part)] for part in (enough, known)]
            part = finite[0] if len(finite[0]) else finite[1]
            curve[place] = worst(part) if len(part) else np.nan
    return curve
