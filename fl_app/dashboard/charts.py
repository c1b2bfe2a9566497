"""Charts of runs: a metric over the rounds, several methods, the values of a tiny model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fl_app.colours import ROLES, strategy_style
from fl_app.dashboard.compare import is_stack, last_result
from fl_app.dashboard.line_chart import (
    HEIGHT,
    MAX_POINTS,
    Chart,
    Line,
    bulk,
    described,
    drawn,
    layer,
    plain,
    quantity,
    short,
)
from fl_app.dashboard.metric_values import (
    Metric,
    mean_values,
    shown_rows,
    strip,
    unit,
    values,
    worst_values,
)
from fl_app.dashboard.replies import value_names
from fl_app.dashboard.view import Round, RunView, number_of

__all__ = ["MAX_LINES", "curves", "model_values", "versus"]


MAX_LINES = 24
"""Clients up to which each has a line of its own."""
MAX_VALUES = 4
"""Values of a model up to which they are drawn over the rounds."""
_TALL = 420
_FEW_CLIENTS = 8
# Over all clients' rows, which is no mean of theirs.
_RATIOS = frozenset({"balanced_accuracy", "r2", "roc_auc"})
_DASHES = ((), (6, 3), (2, 2), (8, 2, 2, 2))


def curves(view: RunView, metric: Metric, at: int | None = None) -> Chart:
    """Draw a metric over the rounds: the server's, the clients' mean, the worst, each client.

    Parameters
    ----------
    view : RunView
        The run.
    metric : Metric
        One of :func:`~fl_app.dashboard.metric_values.metrics`.
    at : int, optional
        The chosen round, marked by an upright rule.

    Returns
    -------
    Chart
        Up to 24 clients as thin lines.
    """
    x = [float(r.server_round) for r in view.rounds]
    lines = [*_client_lines(view, metric.name, x), *_roles(view, metric, x)]
    spec, note = drawn(lines, at, view.total, _title(view, metric))
    spec["height"] = _TALL if view.clients > _FEW_CLIENTS else HEIGHT  # as the picture beside it
    rows = shown_rows(view)
    told = [f"{_better(metric)} by round"]
    told += [described(line) for line in lines if line.labelled and line.width > 1]
    if rows and view.clients > MAX_LINES:
        told.append(f"{view.clients} clients, drawn as mean and worst")
    if at is not None:
        told.append(f"round {at} is marked")
    return Chart(spec, "; ".join([*told, *([note] if note else [])]) + ".", note)


def _client_lines(view: RunView, name: str, x: Sequence[float]) -> list[Line]:
    if not 0 < view.clients <= MAX_LINES:
        return []
    role, table = ROLES["clients"], strip(view, name)
    return [
        Line(f"client {k}", x, row.tolist(), role.colour, role.dash, role.width)
        for k, row in enumerate(table)
        if np.isfinite(row).any()
    ]


def _roles(view: RunView, metric: Metric, x: Sequence[float]) -> list[Line]:
    found = {
        "worst": worst_values(view, metric.name),
        "mean": mean_values(view, metric.name),
        **({"server": values(view, metric)} if metric.source == "server" else {}),
    }
    words = {"mean": "all together"} if metric.name in _RATIOS else {}
    if shown_rows(view) == "training" and metric.source != "train":
        words = {name: f"{words.get(name, name)}, training rows" for name in ("mean", "worst")}
    return [
        Line(words.get(name, name), x, own.tolist(), role.colour, role.dash, role.width)
        for name, own in found.items()
        if np.isfinite(own).any() and (role := ROLES[name])
    ]


def _title(view: RunView, metric: Metric) -> str:
    text = unit(view, metric.name)
    return f"{metric.name} [{text}]" if text else metric.name


def _better(metric: Metric) -> str:
    if metric.higher is None:
        return metric.name
    return f"{metric.name} ({'higher' if metric.higher else 'lower'} is better)"


def versus(views: Sequence[RunView], metric: Metric, by: str = "round") -> Chart:
    """Draw a metric of several methods.

    A stack's own result is its last point. Before it the line is the global member's, faint.

    Parameters
    ----------
    views : sequence of RunView
        The runs.
    metric : Metric
        One that all have.
    by : {"round", "MB"}
        Over rounds, or over what was sent so far, up and down.

    Returns
    -------
    Chart
    """
    lines, extra, told = [], [], []
    for view in views:
        x = [r.server_round if by == "round" else r.total_bytes / 1e6 for r in view.rounds]
        x = [0.0 if r.server_round == 0 else v for r, v in zip(view.rounds, x, strict=True)]
        colour, dash = strategy_style(view.strategy)
        y = values(view, metric).tolist()
        points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a)]
        x, y = [a for a, _ in points], [b for _, b in points]
        stack, done = is_stack(view), last_result(view)
        name = view.strategy if not stack or done else f"{view.strategy}, collecting"
        line = Line(name, x, y, colour, dash, 2.0, 0.35 if stack else 1.0)
        lines.append(line)
        told.append(described(line))
        if stack and done and line.end:
            extra.append((line.end, colour))
            told[-1] = f"{name} {short(line.end[1])} at its end, {short(line.end[0])}"
    total = max((view.total for view in views), default=0) if by == "round" else 0.0
    title = _title(views[0], metric) if views else metric.name
    x_title = "round" if by == "round" else "MB sent, up and down"
    low, high, _ = bulk([v for line in lines for v in line.y])
    right = max([total, *(line.end[0] for line in lines if line.end)], default=1.0)
    x_axis = quantity("x", x_title, [0, right or 1], {"grid": False})
    if by == "round":
        x_axis["axis"] |= {"tickMinStep": 1, "format": "d"}
    y_axis = quantity("y", title, [low, high], {"minExtent": 40})
    marks = [
        layer(
            [{"x": plain(end[0]), "y": plain(end[1])}],
            {"type": "point", "shape": "diamond", "size": 130, "filled": True, "color": colour},
            {"x": x_axis, "y": y_axis},
        )
        for end, colour in extra
    ]
    spec, note = drawn(lines, None, total, title, x_title, marks)
    text = f"{_better(metric)} by {'round' if by == 'round' else 'MB sent'}: " + "; ".join(told)
    return Chart(spec, f"{text}{'; ' + note if note else ''}.", note)


def model_values(view: RunView, at: int | None = None) -> list[Chart]:
    """Draw each value of a tiny model over the rounds: the clients' and the global one.

    Parameters
    ----------
    view : RunView
        The run.
    at : int, optional
        The chosen round.

    Returns
    -------
    list of Chart
        One a value; empty where the model has more than four, or clients may not be shown.
    """
    found: dict[str, dict[int, dict[int, float]]] = {}
    for round_ in view.rounds[:: max(1, len(view.rounds) // MAX_POINTS)]:
        told = round_.aggregation
        names = value_names(round_, told.get("aggregate"))
        if len(names) > MAX_VALUES or view.clients > MAX_LINES or view.private:
            return []
        for client in told.get("clients") or ():
            own = _flattened(client.get("arrays"))
            if len(own) == len(names):
                for name, value in zip(names, own, strict=True):
                    by_client = found.setdefault(name, {}).setdefault(number_of(client), {})
                    by_client[round_.server_round] = value
    return [_model_value(view, name, by, at) for name, by in found.items()]


def _flattened(arrays: Any) -> list[float]:
    if not isinstance(arrays, Mapping):
        return []
    try:
        return [float(v) for value in arrays.values() for v in np.ravel(np.array(value, float))]
    except (TypeError, ValueError):
        return []


def _model_value(
    view: RunView, name: str, by: Mapping[int, Mapping[int, float]], at: int | None
) -> Chart:
    role = ROLES["clients"]
    lines = [
        Line(
            f"client {k}",
            [float(r) for r in sorted(own)],
            [own[r] for r in sorted(own)],
            role.colour,
            _DASHES[number % len(_DASHES)],
            1.0,
        )
        for number, (k, own) in enumerate(sorted(by.items()))
    ]
    known: list[tuple[Round, float]] = [
        (r, r.metrics[f"model/{name}"]) for r in view.rounds if f"model/{name}" in r.metrics
    ]
    server = ROLES["server"]
    x = [float(r.server_round) for r, _ in known]
    made = Line("global", x, [v for _, v in known], server.colour, server.dash, server.width)
    lines += [made] if known else []
    spec, note = drawn(lines, at, view.total, name)
    told = "; ".join(described(line) for line in lines[-9:])
    return Chart(spec, f"{name} by round, of each client and of the global model: {told}.", note)
