"""Charts of a run and of a split as Vega-Lite dicts, each with its text alternative.

Single and layered views alone: they are the ones that stretch with the page. Lines carry their
names at their ends, pushed apart; what tells them apart is style and name, colour comes on top.
Text that stands on the page has a line's colour or the theme's, so both themes can be read.

References
----------
Vega-Lite: https://vega.github.io/vega-lite/docs/
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.colours import CIVIDIS, QUIET, ROLES, letters, strategy_style
from fl_app.dashboard.compare import is_stack, last_result
from fl_app.dashboard.explain import value_names
from fl_app.dashboard.metric_values import (
    Metric,
    mean_values,
    shown_rows,
    strip,
    unit,
    values,
    worst_values,
)
from fl_app.dashboard.view import Round, RunView, number_of

__all__ = [
    "MAX_LINES",
    "Chart",
    "apart",
    "bulk",
    "curves",
    "model_values",
    "split_heat",
    "split_histogram",
    "split_sizes",
    "versus",
]

Floats = NDArray[np.float64]
Spec = dict[str, Any]

MAX_LINES = 24
"""Clients up to which each has a line of its own."""
MAX_VALUES = 4
"""Values of a model up to which they are drawn over the rounds."""
MAX_COUNTS = 12
"""Clients, and labels, up to which a heat map writes its counts."""
_MAX_POINTS = 200
_FEW_ROUNDS = 30
_RULE = "#8A929B"
_HEIGHT, _TALL, _AXIS, _LINE = 280, 420, 44, 13  # pixels: charts, x axis, line of text
_FEW_CLIENTS = 8
_RATIOS = frozenset(
    {"balanced_accuracy", "r2", "roc_auc"}
)  # over all clients' rows, which is no mean of theirs
_DASHES = ((), (6, 3), (2, 2), (8, 2, 2, 2))


@dataclass(frozen=True)
class Chart:
    """A chart.

    Parameters
    ----------
    spec : dict
        Vega-Lite, with its data; JSON-ready, without NaN.
    alt : str
        What it shows, in words.
    note : str
        What stands below it; mostly empty.
    """

    spec: Spec
    alt: str
    note: str = ""


@dataclass(frozen=True)
class _Line:
    """One line: where it is and how it is drawn."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dash: tuple[int, ...] = ()
    width: float = 2.0
    opacity: float = 1.0
    labelled: bool = True

    @property
    def end(self) -> tuple[float, float] | None:
        """The last point that is there."""
        points = [(a, b) for a, b in zip(self.x, self.y, strict=True) if math.isfinite(b)]
        return points[-1] if points else None


# ---------------------------------------------------------------------------- curves of one run
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
    spec, note = _drawn(lines, at, view.total, _title(view, metric))
    spec["height"] = _TALL if view.clients > _FEW_CLIENTS else _HEIGHT  # as the picture beside it
    rows = shown_rows(view)
    told = [f"{_better(metric)} by round"]
    told += [_told(line) for line in lines if line.labelled and line.width > 1]
    if rows and view.clients > MAX_LINES:
        told.append(f"{view.clients} clients, drawn as mean and worst")
    if at is not None:
        told.append(f"round {at} is marked")
    return Chart(spec, "; ".join([*told, *([note] if note else [])]) + ".", note)


def _client_lines(view: RunView, name: str, x: Sequence[float]) -> list[_Line]:
    if not 0 < view.clients <= MAX_LINES:
        return []
    role, table = ROLES["clients"], strip(view, name)
    return [
        _Line(f"client {k}", x, row.tolist(), role.colour, role.dash, role.width)
        for k, row in enumerate(table)
        if np.isfinite(row).any()
    ]


def _roles(view: RunView, metric: Metric, x: Sequence[float]) -> list[_Line]:
    found = {
        "worst": worst_values(view, metric.name),
        "mean": mean_values(view, metric.name),
        **({"server": values(view, metric)} if metric.source == "server" else {}),
    }
    words = {"mean": "all together"} if metric.name in _RATIOS else {}
    if shown_rows(view) == "training" and metric.source != "train":
        words = {name: f"{words.get(name, name)}, training rows" for name in ("mean", "worst")}
    return [
        _Line(words.get(name, name), x, own.tolist(), role.colour, role.dash, role.width)
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


def _told(line: _Line) -> str:
    if line.end is None:
        return f"{line.name} not measured"
    points = zip(line.x, line.y, strict=True)
    first = next((a, b) for a, b in points if math.isfinite(b))
    if first == line.end:
        return f"{line.name} {_short(first[1])} at {_short(first[0])}"
    (a, b), (c, d) = first, line.end
    return f"{line.name} from {_short(b)} at {_short(a)} to {_short(d)} at {_short(c)}"


def _drawn(
    lines: Sequence[_Line],
    at: float | None,
    total: float,
    title: str,
    x_title: str = "round",
    extra: Sequence[Spec] = (),
) -> tuple[Spec, str]:
    """Return the layers of lines, labels and rule, and what was cut."""
    low, high, note = bulk([v for line in lines for v in line.y])
    ends = [line.end[0] for line in lines if line.end]
    starts = [line.x[0] for line in lines if line.end]
    whole = x_title == "round"
    right = max([total, *ends, *([at] if at is not None else [])], default=1.0)
    left = min(starts, default=0.0)
    axis = {"grid": False, **({"tickMinStep": 1, "format": "d"} if whole else {})}
    x = _quantity("x", x_title, [left, right if right > left else left + 1], axis)
    y = _quantity("y", title, [low, high], {"minExtent": 40})
    layers = [_layer(line, x, y, whole) for line in lines if line.end]
    if at is not None:
        mark = {"type": "rule", "color": _RULE, "strokeDash": [4, 3]}
        layers.append(_view([{"x": at}], mark, {"x": x}))
    layers += extra
    # Vega fits what hangs over the right end in by itself.
    layers += _labels(lines, low, high, right, x, y)
    spec: Spec = {
        "height": _HEIGHT,
        **_frame(),
        "layer": layers or [_view([], {"type": "point"}, {"x": x, "y": y})],
    }
    return spec, note


def _quantity(field: str, title: str, domain: Sequence[float], axis: Spec) -> Spec:
    scale = {"domain": [_plain(v) for v in domain], "nice": False, "zero": False}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _frame() -> Spec:
    # Streamlit writes into the padding: a number alone would break the page.
    padding = {"left": 5, "top": 8, "bottom": 5, "right": 5}
    return {"padding": padding, "config": {"axis": {"labelColor": QUIET, "titleColor": QUIET}}}


def _view(rows: Sequence[Spec], mark: Spec, encoding: Spec) -> Spec:
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}


def _layer(line: _Line, x: Spec, y: Spec, whole: bool) -> Spec:
    mark: Spec = {
        "type": "line",
        "color": line.colour,
        "strokeWidth": line.width,
        "opacity": line.opacity,
        "clip": True,
    }
    if line.dash:
        mark["strokeDash"] = list(line.dash)
    known = sum(math.isfinite(v) for v in line.y)
    if known == 1 or (line.width > 1 and known <= _FEW_ROUNDS):
        point = {"color": line.colour, "size": 22, "filled": True, "opacity": line.opacity}
        mark["point"] = point
    name = "round" if whole else "x"
    tooltip = [
        {"field": "line", "type": "nominal"},
        {"field": "x", "type": "quantitative", "title": name},
        {"field": "y", "type": "quantitative", "title": str(y["title"]), "format": ".4~g"},
    ]
    rows = [{"x": _plain(a), "y": _plain(b), "line": line.name} for a, b in _thinned(line)]
    return _view(rows, mark, {"x": x, "y": y, "tooltip": tooltip})


def _thinned(line: _Line) -> list[tuple[float, float]]:
    """Return a line's points, of many every n-th and the last."""
    points = list(zip(line.x, line.y, strict=True))
    every = math.ceil(len(points) / _MAX_POINTS)
    if every <= 1:
        return points
    return points[::every] + ([] if (len(points) - 1) % every == 0 else [points[-1]])


def _labels(
    lines: Sequence[_Line], low: float, high: float, right: float, x: Spec, y: Spec
) -> list[Spec]:
    """Return each line's name and last value at its end, pushed apart; without clients if many."""
    named = [line for line in lines if line.end and line.labelled]
    room = (_HEIGHT - _AXIS) / _LINE
    if len(named) > room:
        named = [line for line in named if line.width > 1]
    span = high - low
    wanted = [min(max(line.end[1], low), high) for line in named if line.end]
    places = apart(wanted, span * _LINE / (_HEIGHT - _AXIS), low, high)
    layers = []
    for line, place in zip(named, places, strict=True):
        assert line.end is not None
        text = f"{line.name}: {_short(line.end[1])}"
        mark: Spec = {"type": "text", "align": "left", "baseline": "middle", "dx": 7}
        mark |= {"fontSize": 11, "color": letters(line.colour)}
        mark |= {"fontWeight": "bold"} if line.width > 1 else {}
        row = {"x": _plain(line.end[0]), "y": _plain(place), "text": text}
        encoding = {"x": x, "y": y, "text": {"field": "text", "type": "nominal"}}
        if line.end[0] < right:  # on the chart, where another line may pass
            halo = {"stroke": "white", "strokeWidth": 4, "opacity": 0.85}
            layers.append(_view([row], mark | halo, encoding))
        layers.append(_view([row], mark, encoding))
    return layers


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Push places apart.

    Parameters
    ----------
    wanted : sequence of float
        Where each wants to be.
    gap : float
        Least distance of two; less where there is no room for it.
    low, high : float
        Between which all stay.

    Returns
    -------
    list of float
        In the order given; equal ones stay in their order, the first on top.

    Examples
    --------
    >>> apart([1.0, 1.0, 5.0], 1.0, 0.0, 10.0)
    [1.5, 0.5, 5.0]
    """
    if len(wanted) < 2:
        return list(wanted)
    gap = min(gap, (high - low) / (len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], -i))
    groups: list[tuple[list[int], float]] = []  # members from below, and their middle
    for i in order:
        groups.append(([i], wanted[i]))
        while len(groups) > 1 and _touch(groups[-2], groups[-1], gap):
            (a, _), (b, _) = groups[-2:]
            members = a + b
            groups[-2:] = [(members, _middle(members, wanted, gap, low, high))]
    places = [0.0] * len(wanted)
    for members, middle in groups:
        middle = _middle(members, wanted, gap, low, high) if len(members) == 1 else middle
        for number, i in enumerate(members):
            places[i] = middle + gap * (number - (len(members) - 1) / 2)
    return places


def _touch(below: tuple[list[int], float], above: tuple[list[int], float], gap: float) -> bool:
    (a, low), (b, high) = below, above
    return low + gap * (len(a) - 1) / 2 + gap > high - gap * (len(b) - 1) / 2 + 1e-12 * abs(high)


def _middle(
    members: Sequence[int], wanted: Sequence[float], gap: float, low: float, high: float
) -> float:
    half = gap * (len(members) - 1) / 2
    mean = sum(wanted[i] for i in members) / len(members)
    return min(max(mean, low + half), high - half)


def bulk(found: Iterable[float]) -> tuple[float, float, str]:
    """Return a range that shows the bulk of values, and a note where it leaves some out.

    Values count as far off where they would squeeze the middle nine tenths into a thirtieth of the
    chart.

    Parameters
    ----------
    found : iterable of float
        NaN and infinity do not count.

    Returns
    -------
    (low, high, note)
        low < high.

    Examples
    --------
    >>> bulk([0.5, 0.6, 0.7])[2]
    ''
    """
    known = np.array([v for v in found if math.isfinite(v)])
    if not len(known):
        return 0.0, 1.0, ""
    low, high, note = float(known.min()), float(known.max()), ""
    inner_low, inner_high = (float(v) for v in np.quantile(known, (0.05, 0.95)))
    with np.errstate(over="ignore"):
        middle = inner_high - inner_low
        if middle > 0 and (high - low) > 30 * middle:
            cut = max(low, inner_low - middle), min(high, inner_high + middle)
            note = f"values run from {_short(low)} to {_short(high)}; the chart shows their bulk"
            low, high = cut
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin, note


def _plain(value: float) -> float | None:
    """Return a number of few digits; None for what JSON does not have."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _short(value: float) -> str:
    return f"{value:.4g}"


# ---------------------------------------------------------------------------- several runs
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
        line = _Line(name, x, y, colour, dash, 2.0, 0.35 if stack else 1.0)
        lines.append(line)
        told.append(_told(line))
        if stack and done and line.end:
            extra.append((line.end, colour))
            told[-1] = f"{name} {_short(line.end[1])} at its end, {_short(line.end[0])}"
    total = max((view.total for view in views), default=0) if by == "round" else 0.0
    title = _title(views[0], metric) if views else metric.name
    x_title = "round" if by == "round" else "MB sent, up and down"
    low, high, _ = bulk([v for line in lines for v in line.y])
    right = max([total, *(line.end[0] for line in lines if line.end)], default=1.0)
    x_axis = _quantity("x", x_title, [0, right or 1], {"grid": False})
    if by == "round":
        x_axis["axis"] |= {"tickMinStep": 1, "format": "d"}
    y_axis = _quantity("y", title, [low, high], {"minExtent": 40})
    marks = [
        _view(
            [{"x": _plain(end[0]), "y": _plain(end[1])}],
            {"type": "point", "shape": "diamond", "size": 130, "filled": True, "color": colour},
            {"x": x_axis, "y": y_axis},
        )
        for end, colour in extra
    ]
    spec, note = _drawn(lines, None, total, title, x_title, marks)
    text = f"{_better(metric)} by {'round' if by == 'round' else 'MB sent'}: " + "; ".join(told)
    return Chart(spec, f"{text}{'; ' + note if note else ''}.", note)


# ---------------------------------------------------------------------------- small models
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
    for round_ in view.rounds[:: max(1, len(view.rounds) // _MAX_POINTS)]:
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
        _Line(
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
    made = _Line("global", x, [v for _, v in known], server.colour, server.dash, server.width)
    lines += [made] if known else []
    spec, note = _drawn(lines, at, view.total, name)
    told = "; ".join(_told(line) for line in lines[-9:])
    return Chart(spec, f"{name} by round, of each client and of the global model: {told}.", note)


# ---------------------------------------------------------------------------- the split
def split_sizes(sizes: Sequence[int]) -> Chart:
    """Draw the training rows n_k of each client as bars."""
    rows = [{"client": k, "n": int(n)} for k, n in enumerate(sizes)]
    mark = {"type": "bar", "color": ROLES["server"].colour}
    most = max((*sizes, 1))
    y = _quantity("n", "rows n_k", [0, 1.05 * most], {"minExtent": 40}) | {"stack": None}
    tooltip = [{"field": f, "type": "quantitative"} for f in ("client", "n")]
    spec = _view(rows, mark, {"x": _clients(len(sizes)), "y": y, "tooltip": tooltip})
    alt = f"Training rows of {len(sizes)} clients"
    if len(sizes):
        total, least, most = sum(sizes), min(sizes), max(sizes)
        alt += f": {total} in all, from {least} to {most}"
    return Chart(spec | {"height": 120, **_frame()}, f"{alt}.")


def _clients(count: int) -> Spec:
    axis: Spec = {"labelAngle": 0, "labelOverlap": True, "ticks": count <= 60}
    return {"field": "client", "type": "ordinal", "title": "client", "sort": None, "axis": axis}


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
    x["scale"] = {"domain": list(range(table.shape[1]))}
    tooltip = [{"field": f, "type": "nominal"} for f in ("client", "label", "rows")]
    most = int(table.max(initial=0))
    encoding = {"x": x, "y": y, "color": _shade(most), "tooltip": tooltip}
    layers = [_view(rows, {"type": "rect"}, encoding)]
    if max(table.shape, default=0) <= MAX_COUNTS:
        # On cells, not on the page: dark ones need white letters in any theme.
        ink = {"condition": {"test": f"datum.rows > {0.45 * most}", "value": "#FFFFFF"}}
        text = {"field": "rows", "type": "quantitative"}
        encoding = {"x": x, "y": y, "text": text, "color": ink | {"value": "#000000"}}
        layers.append(_view(rows, {"type": "text", "fontSize": 11}, encoding))
    spec = {
        "height": max(120, min(320, 60 + 20 * len(labels))),
        **_frame(),
        "layer": layers,
    }
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
        {"client": k, "low": _plain(edges[b]), "high": _plain(edges[b + 1]), "rows": int(n)}
        for b, row in enumerate(table)
        for k, n in enumerate(row)
        if n
    ]
    domain = [_plain(edges[0]), _plain(edges[-1])]
    y: Spec = {"field": "low", "type": "quantitative", "title": target, "axis": {"minExtent": 40}}
    y["scale"] = {"domain": domain, "nice": False, "zero": False}
    x = _clients(table.shape[1])
    x["scale"] = {"domain": list(range(table.shape[1]))}
    tooltip = [{"field": f, "type": "quantitative"} for f in ("client", "low", "high", "rows")]
    encoding = {
        "x": x,
        "y": y,
        "y2": {"field": "high"},
        "color": _shade(float(table.max(initial=0))),
    }
    spec = _view(rows, {"type": "rect"}, encoding | {"tooltip": tooltip})
    alt = f"{target} of the training rows of {table.shape[1]} clients, "
    alt += f"from {_short(edges[0])} to {_short(edges[-1])}, in {len(table)} bins."
    return Chart(spec | {"height": 220, **_frame()}, alt)
