"""Methods side by side on one split: at equal rounds, and at equal bytes between finished ones.

What FedStacking scores while it collects is the global member's value, and none of the stack's. So
a stack counts with its last round alone, and only when its run is over. Nothing here says who wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fl_app.dashboard.metric_values import Metric, metrics, unit
from fl_app.dashboard.replies import Cell, Table
from fl_app.dashboard.view import Round, RunView
from fl_app.tracking.metric_names import bytes_text

__all__ = ["Comparison", "compare", "is_stack", "last_result"]

STACK = "fedstacking"
ANECDOTE = "One seed is an anecdote: run more of them before you believe a difference."
SAME = ("seed", "num_clients", "dataset.name", "partitioner.name", "partitioner.alpha")
"""Params that two runs on one split have in common."""


@dataclass(frozen=True)
class Comparison:
    """What the page shows of several runs.

    Parameters
    ----------
    tables : tuple of Table
        At equal rounds; at equal bytes, where there is something to say.
    sentences : tuple of str
        What to know beside them.
    """

    tables: tuple[Table, ...]
    sentences: tuple[str, ...]


def is_stack(view: RunView) -> bool:
    """Return whether a run's rounds have no result of their own before the last."""
    return view.strategy == STACK


def last_result(view: RunView) -> Round | None:
    """Return the round that stands for a method: its last one, None where there is none yet.

    A run that goes on has none, nor has a stack that was cut off.

    Parameters
    ----------
    view : RunView
        The run.
    """
    last = view.rounds[-1] if view.rounds else None
    if last is None or view.status != "finished":
        return None
    return None if is_stack(view) and view.stack_phase(last) != "select" else last


def compare(views: Sequence[RunView]) -> Comparison:
    """Compare runs of one launch.

    Parameters
    ----------
    views : sequence of RunView
        Two or more, in the order in which they are shown.

    Returns
    -------
    Comparison
        Without tables where fewer than two runs have begun.
    """
    begun = [view for view in views if view.rounds]
    if len(begun) < 2:
        return Comparison((), ())
    shown = _common(begun)
    sentences = [f"Measured on {shown[0].rows}."] if shown else ["No metric is common to them."]
    sentences += _differences(begun)
    tables: list[Table] = []
    if shown:
        tables.append(_equal_rounds(begun, shown))
        within_budget, more = _equal_bytes(begun, shown)
        tables += within_budget
        sentences += more
    return Comparison(tuple(tables), (*sentences, ANECDOTE))


def _common(views: Sequence[RunView]) -> list[Metric]:
    """Return the metrics that all runs have on the same rows; r2 is never without its mse."""
    first, *others = (metrics(view) for view in views)
    return [metric for metric in first if all(metric in other for other in others)]


def _differences(views: Sequence[RunView]) -> list[str]:
    """Say where runs are not on the same split."""
    different = [key for key in SAME if len({view.params.get(key, "") for view in views}) > 1]
    data = {d for view in views if (d := view.tags.get("data.sha256"))}
    different += ["the data"] if len(data) > 1 else []
    if not different:
        return []
    return [f"These runs are not on the same split: they differ in {', '.join(different)}."]


def _columns(view: RunView, shown: Sequence[Metric]) -> list[str]:
    units = {metric.name: unit(view, metric.name) for metric in shown}
    return [f"{name} [{text}]" if text else name for name, text in units.items()]


# ---------------------------------------------------------------------------- equal rounds
def _equal_rounds(views: Sequence[RunView], shown: Sequence[Metric]) -> Table:
    """Return each method at the last round that all have."""
    at = min(view.rounds[-1].server_round for view in views)
    rows = []
    for view in views:
        round_ = view.round(at)
        state = _lack(view, at)
        cells: list[Cell] = [None if state else _value(round_, metric) for metric in shown]
        rows.append((view.strategy, at, *cells, _megabytes(round_), state))
    columns = ("method", "round", *_columns(views[0], shown), "MB so far", "note")
    return Table(f"At equal rounds: round {at}", columns, tuple(rows))


def _lack(view: RunView, at: int) -> str:
    """Say why a run has no result at a round; empty where it has one."""
    if not is_stack(view):
        return ""
    last = last_result(view)
    if last is None:
        done = view.rounds[-1].server_round
        return f"not finished: round {done} of {view.total}" if view.active else "no result"
    return "" if at == last.server_round else f"collecting: its result is round {last.server_round}"


# ---------------------------------------------------------------------------- equal bytes
def _equal_bytes(
    views: Sequence[RunView], shown: Sequence[Metric]
) -> tuple[list[Table], list[str]]:
    """Return the finished methods within one budget, and what is left to say of it."""
    finished = [(view, last) for view in views if (last := last_result(view)) is not None]
    if len(finished) < 2:
        return [], ["At equal bytes: only between finished methods."]
    if not all(math.isfinite(last.total_bytes) for _, last in finished):
        return [], ["At equal bytes: the bytes of these runs were not counted."]
    stacks = [last.total_bytes for view, last in finished if is_stack(view)]
    # A stack has its result at its last byte: its total is what the others are held to.
    budget = max(stacks) if stacks else min(last.total_bytes for _, last in finished)
    rows, sentences = [], []
    for view, last in finished:
        reached = is_stack(view) or last.total_bytes >= budget
        round_ = last if is_stack(view) else _within(view, budget)
        state = "" if reached else f"not reached: {last.server_round} rounds sent less"
        cells: list[Cell] = [_value(round_, metric) if reached else None for metric in shown]
        server_round = round_.server_round if reached else None
        rows.append((view.strategy, server_round, *cells, _megabytes(round_), state))
        if not reached:
            sentences.append(_when_reached(view, last, budget))
    columns = ("method", "round", *_columns(views[0], shown), "MB so far", "note")
    title = f"At equal bytes: {bytes_text(budget)} up and down"
    return [Table(title, columns, tuple(rows))], sentences


def _within(view: RunView, budget: float) -> Round:
    """Return a run's last round within a budget."""
    inside = [r for r in view.rounds if r.total_bytes <= budget]
    return inside[-1] if inside else view.rounds[0]


def _when_reached(view: RunView, last: Round, budget: float) -> str:
    a_round = last.total_bytes / max(1, last.server_round)
    rounds = math.ceil(budget / a_round) if a_round else 0
    return (
        f"{view.strategy} sent {bytes_text(last.total_bytes)} in {last.server_round} rounds: "
        "not reached"
        + (f"; at {bytes_text(a_round)} a round it would be in round {rounds}." if rounds else ".")
    )


def _value(round_: Round | None, metric: Metric) -> float | None:
    value = math.nan if round_ is None else round_.metrics.get(metric.key, math.nan)
    return value if math.isfinite(value) else None


def _megabytes(round_: Round | None) -> float | None:
    total = math.nan if round_ is None else round_.total_bytes
    return total / 1e6 if math.isfinite(total) else None
