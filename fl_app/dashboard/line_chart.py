"""Lines in a Vega-Lite chart: their names stand at their ends, pushed apart.

Single and layered views alone: they are the ones that stretch with the page. What tells lines apart
is style and name, colour comes on top. Text that stands on the page has a line's colour or the
theme's, so both themes can be read.

References
----------
Vega-Lite: https://vega.github.io/vega-lite/docs/
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_app.colours import QUIET, letters

__all__ = ["Chart", "Line", "apart", "bulk", "draw_lines", "short"]

Spec = dict[str, Any]
MAX_POINTS = 200
"""Points of a line at most."""
_FEW_ROUNDS = 30
_RULE = "#8A929B"
HEIGHT = 280
"""Of a chart, in pixels."""
_AXIS = 44  # pixels of the x axis
_LINE = 13  # of a line of text


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
class Line:
    """One line: where it is and how it is drawn; a result of its own at its end is a diamond."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dash: tuple[int, ...] = ()
    width: float = 2.0
    opacity: float = 1.0
    result: bool = False

    @property
    def end(self) -> tuple[float, float] | None:
        """The last point that is there."""
        points = [(a, b) for a, b in zip(self.x, self.y, strict=True) if math.isfinite(b)]
        return points[-1] if points else None


def in_words(line: Line) -> str:
    """Say where a line begins and ends."""
    if line.end is None:
        return f"{line.name} not measured"
    if line.result:
        return f"{line.name} {short(line.end[1])} at its end, {short(line.end[0])}"
    points = zip(line.x, line.y, strict=True)
    first = next((a, b) for a, b in points if math.isfinite(b))
    if first == line.end:
        return f"{line.name} {short(first[1])} at {short(first[0])}"
    (a, b), (c, d) = first, line.end
    return f"{line.name} from {short(b)} at {short(a)} to {short(d)} at {short(c)}"


def draw_lines(
    lines: Sequence[Line], at: float | None, total: float, title: str, x_title: str = "round"
) -> tuple[Spec, str]:
    """Return a chart of lines, labels and a rule, and what was cut.

    Parameters
    ----------
    lines : sequence of Line
        The last one is on top.
    at : float or None
        Where there is an upright rule.
    total : float
        Least right end of the x axis.
    title, x_title : str
        Of the axes.
    """
    low, high, note = bulk([v for line in lines for v in line.y])
    ends = [line.end[0] for line in lines if line.end]
    starts = [line.x[0] for line in lines if line.end]
    whole = x_title == "round"
    right = max([total, *ends, *([at] if at is not None else [])], default=1.0)
    left = min(starts, default=0.0)
    axis = {"grid": False, **({"tickMinStep": 1, "format": "d"} if whole else {})}
    wide = [left, right if right > left else left + 1]
    x = quantity("x", x_title, [*map(plain, wide)], axis)
    y = quantity("y", title, [plain(low), plain(high)], {"minExtent": 40})
    layers = [_line_layer(line, x, y, whole) for line in lines if line.end]
    if at is not None:
        mark = {"type": "rule", "color": _RULE, "strokeDash": [4, 3]}
        layers.append(layer([{"x": at}], mark, {"x": x}))
    layers += [_diamond(line, x, y) for line in lines if line.end and line.result]
    # Vega fits what hangs over the right end in by itself.
    layers += _labels(lines, low, high, right, x, y)
    spec: Spec = {
        "height": HEIGHT,
        **frame(),
        "layer": layers or [layer([], {"type": "point"}, {"x": x, "y": y})],
    }
    return spec, note


def quantity(field: str, title: str, domain: Sequence[float | None], axis: Spec) -> Spec:
    """Return the encoding of a number on an axis that is just as long as its domain."""
    scale = {"domain": [*domain], "nice": False, "zero": False}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def frame() -> Spec:
    """Return what a chart has around it."""
    # Streamlit writes into the padding: a number alone would break the page.
    padding = {"left": 5, "top": 8, "bottom": 5, "right": 5}
    return {"padding": padding, "config": {"axis": {"labelColor": QUIET, "titleColor": QUIET}}}


def layer(rows: Sequence[Spec], mark: Spec, encoding: Spec) -> Spec:
    """Return one layer of a chart, or a chart of one."""
    return {"data": {"values": list(rows)}, "mark": mark, "encoding": encoding}


def _diamond(line: Line, x: Spec, y: Spec) -> Spec:
    assert line.end is not None
    mark = {"type": "point", "shape": "diamond", "size": 130, "filled": True, "color": line.colour}
    return layer([{"x": plain(line.end[0]), "y": plain(line.end[1])}], mark, {"x": x, "y": y})


def _line_layer(line: Line, x: Spec, y: Spec, whole: bool) -> Spec:
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
    rows = [{"x": plain(a), "y": plain(b), "line": line.name} for a, b in _thinned(line)]
    return layer(rows, mark, {"x": x, "y": y, "tooltip": tooltip})


def _thinned(line: Line) -> list[tuple[float, float]]:
    """Return a line's points, of many every n-th and the last."""
    points = list(zip(line.x, line.y, strict=True))
    every = math.ceil(len(points) / MAX_POINTS)
    if every <= 1:
        return points
    return points[::every] + ([] if (len(points) - 1) % every == 0 else [points[-1]])


def _labels(
    lines: Sequence[Line], low: float, high: float, right: float, x: Spec, y: Spec
) -> list[Spec]:
    """Return each line's name and last value at its end, pushed apart; without clients if many."""
    named = [line for line in lines if line.end]
    room = (HEIGHT - _AXIS) / _LINE
    if len(named) > room:
        named = [line for line in named if line.width > 1]
    wanted = [min(max(line.end[1], low), high) for line in named if line.end]
    places = apart(wanted, (high - low) * _LINE / (HEIGHT - _AXIS), low, high)
    layers = []
    for line, place in zip(named, places, strict=True):
        assert line.end is not None
        text = f"{line.name}: {short(line.end[1])}"
        mark: Spec = {"type": "text", "align": "left", "baseline": "middle", "dx": 7}
        mark |= {"fontSize": 11, "color": letters(line.colour)}
        mark |= {"fontWeight": "bold"} if line.width > 1 else {}
        row = {"x": plain(line.end[0]), "y": plain(place), "text": text}
        encoding = {"x": x, "y": y, "text": {"field": "text", "type": "nominal"}}
        if line.end[0] < right:  # on the chart, where another line may pass
            halo = {"stroke": "white", "strokeWidth": 4, "opacity": 0.85}
            layers.append(layer([row], mark | halo, encoding))
        layers.append(layer([row], mark, encoding))
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


def bulk(values: Iterable[float]) -> tuple[float, float, str]:
    """Return a range that shows the bulk of values, and a note where it leaves some out.

    Values count as far off where they would squeeze the middle nine tenths into a thirtieth of the
    chart.

    Parameters
    ----------
    values : iterable of float
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
    known = np.array([v for v in values if math.isfinite(v)])
    if not len(known):
        return 0.0, 1.0, ""
    low, high, note = float(known.min()), float(known.max()), ""
    inner_low, inner_high = (float(v) for v in np.quantile(known, (0.05, 0.95)))
    with np.errstate(over="ignore"):
        middle = inner_high - inner_low
        if middle > 0 and (high - low) > 30 * middle:
            cut = max(low, inner_low - middle), min(high, inner_high + middle)
            note = f"values run from {short(low)} to {short(high)}; the chart shows their bulk"
            low, high = cut
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin, note


def plain(value: float) -> float | None:
    """Return a number of few digits; None for what JSON does not have."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def short(value: float) -> str:
    """Return a number for a text."""
    return f"{value:.4g}"
