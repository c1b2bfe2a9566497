"""Charts of runs and splits: metrics over the rounds, methods, tiny models, who has which rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.colours import CIVIDIS, ROLES, strategy_style
from fl_app.dashboard.compare import is_stack, last_result
from fl_app.dashboard.line_chart import (
    HEIGHT,
    MAX_POINTS,
    Chart,
    Line,
    Spec,
    draw_lines,
    frame,
    in_words,
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
from fl_app.dashboard.replies import replies_of, value_names
from fl_app.dashboard.view import RunView

__all__ = [
    "MAX_LINES",
    "curves",
    "model_values",
    "split_heat",
    "split_histogram",
    "split_sizes",
    "versus",
]


MAX_LINES = 24
"""Clients up to which each has a line of its own."""
MAX_VALUES = 4
"""Values of a model up to which they are drawn over the rounds."""
MAX_COUNTS = 12
"""Clients, and labels, up to which a heat map writes its counts."""
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
    spec, note = draw_lines(lines, at, view.total, _title(view, metric))
    spec["height"] = _TALL if view.clients > _FEW_CLIENTS else HEIGHT  # as the picture beside it
    parts = [f"{_better(metric)} by round"]
    parts += [in_words(line) for line in lines if line.width > 1]
    if shown_rows(view) and view.clients > MAX_LINES:
        parts.append(f"{view.clients} clients, drawn as mean and worst")
    if at is not None:
        parts.append(f"round {at} is marked")
    return Chart(spec, "; ".join(filter(None, [*parts, note])) + ".", note)


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
    curve_of = {
        "worst": worst_values(view, metric.name),
        "mean": mean_values(view, metric.name),
        **({"server": values(view, metric)} if metric.source == "server" else {}),
    }
    words = {"mean": "all together"} if metric.name in _RATIOS else {}
    if shown_rows(view) == "training" and metric.source != "train":
        words = {name: f"{words.get(name, name)}, training rows" for name in ("mean", "worst")}
    return [
        Line(words.get(name, name), x, curve.tolist(), role.colour, role.dash, role.width)
        for name, curve in curve_of.items()
        if np.isfinite(curve).any() and (role := ROLES[name])
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
    lines = []
    for view in views:
        at = [r.server_round if by == "round" else r.total_bytes / 1e6 for r in view.rounds]
        at = [0.0 if r.server_round == 0 else x for r, x in zip(view.rounds, at, strict=True)]
        points = [(x, y) for x, y in zip(at, values(view, metric), strict=True) if np.isfinite(x)]
        stack, done = is_stack(view), last_result(view) is not None
        lines.append(
            Line(
                view.strategy if done or not stack else f"{view.strategy}, collecting",
                [x for x, _ in points],
                [float(y) for _, y in points],
                *strategy_style(view.strategy),
                opacity=0.35 if stack else 1.0,
                result=stack and done,
            )
        )
    total = max((view.total for view in views), default=0) if by == "round" else 0.0
    title = _title(views[0], metric) if views else metric.name
    x_title = "round" if by == "round" else "MB sent, up and down"
    spec, note = draw_lines(lines, None, total, title, x_title)
    text = f"{_better(metric)} by {'round' if by == 'round' else 'MB sent'}: "
    text += "; ".join(map(in_words, lines))
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
    curves_of: dict[str, dict[int, dict[int, float]]] = {}
    for round_ in view.rounds[:: max(1, len(view.rounds) // MAX_POINTS)]:
        aggregation = round_.aggregation
        names = value_names(round_, aggregation.get("aggregate"))
        if len(names) > MAX_VALUES or view.clients > MAX_LINES or view.private:
            return []
        for reply in replies_of(aggregation):
            if reply.values is not None and len(reply.values) == len(names):
                for name, value in zip(names, reply.values.tolist(), strict=True):
                    by_client = curves_of.setdefault(name, {}).setdefault(reply.partition, {})
                    by_client[round_.server_round] = value
    return [_model_value(view, name, by_client, at) for name, by_client in curves_of.items()]


def _model_value(
    view: RunView, name: str, by_client: Mapping[int, Mapping[int, float]], at: int | None
) -> Chart:
    lines = []
    for number, (k, curve) in enumerate(sorted(by_client.items())):
        x = sorted(curve)
        dash = _DASHES[number % len(_DASHES)]
        lines.append(
            Line(f"client {k}", x, [curve[r] for r in x], ROLES["clients"].colour, dash, 1.0)
        )
    key, server = f"model/{name}", ROLES["server"]
    known = {r.server_round: r.metrics[key] for r in view.rounds if key in r.metrics}
    if known:
        x, y = [*known], [*known.values()]
        lines.append(Line("global", x, y, server.colour, server.dash, server.width))
    spec, note = draw_lines(lines, at, view.total, name)
    text = "; ".join(map(in_words, lines[-9:]))
    return Chart(spec, f"{name} by round, of each client and of the global model: {text}.", note)


# ---------------------------------------------------------------------------- the split
def split_sizes(sizes: Sequence[int]) -> Chart:
    """Draw the training rows n_k of each client as bars."""
    rows = [{"client": k, "n": int(n)} for k, n in enumerate(sizes)]
    mark = {"type": "bar", "color": ROLES["server"].colour}
    most = max((*sizes, 1))
    y = quantity("n", "rows n_k", [0.0, plain(1.05 * most)], {"minExtent": 40}) | {"stack": None}
    tooltip = [{"field": f, "type": "quantitative"} for f in ("client", "n")]
    spec = layer(rows, mark, {"x": _clients(len(sizes)), "y": y, "tooltip": tooltip})
    alt = f"Training rows of {len(sizes)} clients"
    if len(sizes):
        total, least, most = sum(sizes), min(sizes), max(sizes)
        alt += f": {total} in all, from {least} to {most}"
    return Chart(spec | {"height": 120, **frame()}, f"{alt}.")


def _clients(count: int) -> Spec:
    axis: Spec = {"labelAngle": 0, "labelOverlap": True, "ticks": count <= 60}
    scale = {"domain": list(range(count))}
    encoding = {"field": "client", "type": "ordinal", "title": "client", "sort": None}
    return {**encoding, "axis": axis, "scale": scale}


def _shade(most: float) -> Spec:
    """Return the colour of a count: the more, the darker."""
    return {
        "field": "rows",
        "type": "quantitative",
        "scale": {"range": list(reversed(CIVIDIS)), "domain": [0, max(1.0, most)]},
        "legend": None,
    }


def split_heat(labels: Sequence[str], counts: NDArray[Any]) -> Chart:
    """Draw how many rows of each label each client has.

    Parameters
    ----------
    labels : sequence of str
        The L labels.
    counts : ndarray of shape (L, K)
        Training rows. A label that a client lacks is left blank.

    Returns
    -------
    Chart
        With the counts written where there are few.
    """
    table = np.asarray(counts)
    rows = [
        {"client": k, "label": str(label), "rows": int(table[i, k])}
        for i, label in enumerate(labels)
        for k in range(table.shape[1])
        if table[i, k]
    ]
    y: Spec = {"field": "label", "type": "ordinal", "title": "label"}
    y["axis"] = {"minExtent": 40, "labelOverlap": len(labels) > MAX_COUNTS}
    y["scale"] = {"domain": [str(label) for label in labels]}
    x = _clients(table.shape[1])
    tooltip = [{"field": f, "type": "nominal"} for f in ("client", "label", "rows")]
    most = int(table.max(initial=0))
    encoding = {"x": x, "y": y, "color": _shade(most), "tooltip": tooltip}
    layers = [layer(rows, {"type": "rect"}, encoding)]
    if max(table.shape, default=0) <= MAX_COUNTS:
        # On cells, not on the page: dark ones need white letters in any theme.
        ink = {"condition": {"test": f"datum.rows > {0.45 * most}", "value": "#FFFFFF"}}
        text = {"field": "rows", "type": "quantitative"}
        encoding = {"x": x, "y": y, "text": text, "color": ink | {"value": "#000000"}}
        layers.append(layer(rows, {"type": "text", "fontSize": 11}, encoding))
    spec = {"height": max(120, min(320, 60 + 20 * len(labels))), **frame(), "layer": layers}
    return Chart(spec, _split_alt(labels, table))


def _split_alt(labels: Sequence[str], table: NDArray[Any]) -> str:
    present = (table > 0).sum(axis=0)
    alt = f"Training rows of each of {len(labels)} labels on {table.shape[1]} clients"
    if not table.size:
        return f"{alt}."
    return f"{alt}: a client has from {present.min()} to {present.max()} of the labels."


def split_histogram(edges: Sequence[float], counts: NDArray[Any], target: str = "target") -> Chart:
    """Draw how the target is spread over each client, for a regression.

    Parameters
    ----------
    edges : sequence of float
        The B + 1 edges of the bins.
    counts : ndarray of shape (B, K)
        Training rows of each bin.
    target : str, default "target"
        What it is called.

    Returns
    -------
    Chart
    """
    table = np.asarray(counts)
    rows = [
        {"client": k, "low": plain(edges[b]), "high": plain(edges[b + 1]), "rows": int(n)}
        for b, row in enumerate(table)
        for k, n in enumerate(row)
        if n
    ]
    domain = [plain(edges[0]), plain(edges[-1])]
    y = quantity("low", target, domain, {"minExtent": 40})
    x = _clients(table.shape[1])
    tooltip = [{"field": f, "type": "quantitative"} for f in ("client", "low", "high", "rows")]
    colour = _shade(float(table.max(initial=0)))
    encoding = {"x": x, "y": y, "y2": {"field": "high"}, "color": colour, "tooltip": tooltip}
    spec = layer(rows, {"type": "rect"}, encoding)
    alt = f"{target} of the training rows of {table.shape[1]} clients, "
    alt += f"from {short(edges[0])} to {short(edges[-1])}, in {len(table)} bins."
    return Chart(spec | {"height": 220, **frame()}, alt)
