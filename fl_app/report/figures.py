"""Figures of a comparison for a page or a paper: curves over seeds, the split, each client.

The same comparison gives the same bytes, as SVG and as PDF. Texts stay texts in both.

References
----------
matplotlib, reproducible output:
https://matplotlib.org/stable/users/explain/figure/backends.html
"""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.colours import DASH_DOTTED, DASHED, DOTTED, HUES, ROLES, strategy_style
from fl_app.errors import printable
from fl_app.report.budgets import bytes_by_round, stands_at
from fl_app.report.comparing import Comparison
from fl_app.report.rendering import MAX_SHOWN_CELLS
from fl_app.report.runs import RunSummary, natural

__all__ = ["Deal", "Ends", "Picture", "draw_figures", "level_styles"]

MAX_POINTS = 300
"""Rounds of a curve that are drawn."""
MAX_CLIENTS = 60
"""Clients of a heat map."""
_MOST_PANELS, _MOST_BARS = 9, 30
_MOST_NUMBERS = 200
_LONGEST = 44
_WIDTH = 1.6

Ends = Mapping[int, tuple[float, float]]
"""Client -> its metric in its first and in its last round."""
Style = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Deal:
    """Rows of each client.

    Parameters
    ----------
    labels : tuple of str
        What rows are told apart by, classes or bins of the target; one word for all of them.
    clients : tuple of int
        Their numbers.
    counts : tuple of tuple of int
        Rows of each label, then of each client.
    told : str
        Whose rows they are and where that is known from.
    """

    labels: tuple[str, ...]
    clients: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    told: str


@dataclass(frozen=True)
class Picture:
    """A figure, or why there is none.

    Parameters
    ----------
    name : str
        Of its files.
    caption : str
        What it shows; without files why nothing is shown.
    files : mapping of str to bytes
        By format; empty where nothing is shown.
    """

    name: str
    caption: str
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def draw_figures(
    comparison: Comparison,
    deal: Deal | None = None,
    ends: Mapping[str, Ends] | None = None,
    ends_told: str = "",
    formats: Sequence[str] = ("svg",),
) -> dict[str, Picture]:
    """Draw all figures of a comparison.

    Parameters
    ----------
    comparison : Comparison
        The comparison.
    deal : Deal, optional
        Rows of each client, where anybody knows.
    ends : mapping of str to Ends, optional
        Level -> its clients.
    ends_told : str
        Which run of each level that is.
    formats : sequence of str
        ``svg``, ``pdf``.

    Returns
    -------
    dict of str to Picture
        ``curves``, ``bytes``, ``split``, ``clients``.
    """
    c, styles = comparison, level_styles(comparison)
    every = _rounds_told(c)
    band = "mean over seeds, in a band from the least seed to the greatest"
    drawn: dict[str, tuple[str, Callable[[], Any] | None]] = {
        "curves": (f"{c.metric} by round: {band}{every}", lambda: _curves(c, styles, False)),
        "bytes": (
            f"{c.metric} by what was sent, up and down, mean over seeds{every}",
            lambda: _curves(c, styles, True),
        ),
        "split": ("no run tells how many rows each client has", None),
        "clients": (f"no run tells {c.metric.partition('/')[2]} of its clients", None),
    }
    if not any(_points(seeds, c.metric, True) for seeds in c.design.runs.values()):
        drawn["bytes"] = ("no run says how many bytes it has sent", None)
    if deal is not None and deal.labels and deal.clients:
        size = len(deal.clients)
        left = f" (the first {MAX_CLIENTS} of {size} clients)" if size > MAX_CLIENTS else ""
        drawn["split"] = (f"training rows of each client{left}: {deal.told}", lambda: _heat(deal))
    if shown := {level: ends[level] for level in c.levels if ends and ends.get(level)}:
        caption = "each client, however few its rows, in its first round (open) and its last one"
        caption += f" (filled), {ends_told}"
        drawn["clients"] = (caption + _left_out(shown), lambda: _before_and_after(c, shown, styles))
    return {name: _picture(name, *made, formats) for name, made in drawn.items()}


def _picture(
    name: str, caption: str, draw: Callable[[], Any] | None, formats: Sequence[str]
) -> Picture:
    if draw is None:
        return Picture(name, caption)
    from matplotlib import rc_context

    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,  # a name may have a dollar
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "pdf.fonttype": 42,
    }
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    files = {}
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = draw()
        for kind in formats:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=dates[kind])
            files[kind] = buffer.getvalue()
    return Picture(name, caption, files)


def level_styles(c: Comparison) -> dict[str, Style]:
    """Return colour and dashes of each level: its strategy's, where no level before has them.

    Others get the hue that fewest have, with dashes that nobody has in it; beyond 32 levels some
    look alike.
    """
    styles: dict[str, Style] = {}
    for level in c.levels:
        own = strategy_style(c.design.values[level].get("strategy.name", level))
        if own not in styles.values():
            styles[level] = own
    dashes = (DOTTED, DASHED, DASH_DOTTED, ())
    for level in (level for level in c.levels if level not in styles):
        taken = [*styles.values()]
        used = Counter(hue for hue, _ in taken)
        each = [(hue, dash) for dash in dashes for hue in HUES]
        styles[level] = min(each, key=lambda one: (one in taken, used[one[0]]))
    return styles


# ---------------------------------------------------------------------------- curves
def _curves(c: Comparison, styles: Mapping[str, Style], by_bytes: bool) -> Any:
    """Draw a panel for each cell, a line for each level."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    cells = c.cells[:MAX_SHOWN_CELLS]
    names = {level: _short(level) for level in c.levels}
    columns = min(2, len(cells))
    rows = -(-len(cells) // columns)
    beside = 0.5 + 0.075 * max(map(len, names.values()))
    height = max(3.3 * rows, 0.5 + 0.17 * len(names))
    figure, panels = _figure(5.0 * columns + beside, height, rows, columns, len(cells))
    handles: dict[str, Any] = {}
    for cell, axis in zip(cells, panels, strict=True):
        totals = []
        for level in c.levels:
            points = _points(c.design.runs[cell.label, level], c.metric, by_bytes)
            if points is None:
                continue
            x, mean, low, high = points
            line = _line(styles[level])
            (handle,) = axis.plot(x, mean, marker="o" if len(x) == 1 else None, ms=4, **line)
            handles.setdefault(names[level], handle)
            colour = styles[level][0]
            if len(x) == 1:
                axis.vlines(x, low, high, color=colour)
            elif not by_bytes and (high > low).any():
                axis.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            totals.append(max(x))
        if c.target is not None:
            axis.axhline(c.target, color="#5F6770", linewidth=0.8, linestyle=(0, (1, 2)))
        if by_bytes and totals and max(totals) > 20 * min(totals):
            axis.set_xscale("symlog", linthresh=max(1.0, min(totals) / 10))
        if by_bytes:
            axis.xaxis.set_major_formatter(EngFormatter(unit="B"))
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(_short(cell.label), fontsize=9)
        axis.set_xlabel("bytes sent, up and down" if by_bytes else "round")
        axis.set_ylabel(c.metric)
        axis.grid(alpha=0.3)
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=8
    )
    return figure


def _points(
    seeds: Mapping[str, RunSummary], metric: str, by_bytes: bool
) -> tuple[list[float], NDArray[Any], NDArray[Any], NDArray[Any]] | None:
    """Return x, mean, least and greatest value over seeds, at rounds that all of them have."""
    runs = [seeds[seed] for seed in sorted(seeds, key=natural)]
    sent = [bytes_by_round(run) for run in runs] if by_bytes else []
    there = [stands_at(run, metric) for run in runs]
    there += [set(own) if len(own) > 1 else set() for own in sent]
    common = set.intersection(*there)
    if not common:
        return None
    rounds = sorted(common)
    kept = np.unique(np.linspace(0, len(rounds) - 1, MAX_POINTS).round().astype(int))
    rounds = [rounds[i] for i in kept]
    values = np.array([[_drawable(run.curves[metric][r]) for r in rounds] for run in runs])
    x = [float(sum(own[r] for own in sent) / len(sent)) if by_bytes else float(r) for r in rounds]
    return x, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def _rounds_told(c: Comparison) -> str:
    """Say which rounds and cells are left out, where there are many."""
    longest = max(len(r.curves[c.metric]) for own in c.design.runs.values() for r in own.values())
    told = f"; {MAX_POINTS} of {longest} rounds are drawn" if longest > MAX_POINTS else ""
    if len(c.cells) > MAX_SHOWN_CELLS:
        told += f"; the first {MAX_SHOWN_CELLS} of {len(c.cells)} cells"
    return told


# ---------------------------------------------------------------------------- clients
def _heat(deal: Deal) -> Any:
    """Draw rows by label and client, with their numbers where there are few."""
    from matplotlib.colors import ListedColormap

    from fl_app.colours import CIVIDIS

    counts = np.array([own[:MAX_CLIENTS] for own in deal.counts])
    labels, clients = counts.shape
    longest = max(map(len, deal.labels))
    width = max(4.0, min(11.0, 0.34 * clients + 1.6 + 0.06 * min(longest, _LONGEST)))
    figure, (axis,) = _figure(width, max(1.8, 0.24 * labels + 1.2), 1, 1, 1)
    colours = ListedColormap(CIVIDIS)
    top = max(1, int(counts.max()))
    mesh = axis.pcolormesh(counts, cmap=colours, vmin=0, vmax=top, edgecolors="white", linewidth=1)
    if counts.size <= _MOST_NUMBERS:
        for (y, x), count in np.ndenumerate(counts):
            ink = "#000000" if count > 0.5 * top else "#FFFFFF"
            axis.text(x + 0.5, y + 0.5, str(count), ha="center", va="center", fontsize=7, color=ink)
    axis.set_yticks(np.arange(labels) + 0.5, [_short(label) for label in deal.labels])
    step = -(-clients // 30)
    axis.set_xticks(np.arange(0, clients, step) + 0.5, deal.clients[:clients:step])
    axis.invert_yaxis()
    axis.set_xlabel("client")
    axis.set_ylabel("target" if labels > 1 else "")
    figure.colorbar(mesh, ax=axis, label="training rows")
    return figure


def _before_and_after(c: Comparison, ends: Mapping[str, Ends], styles: Mapping[str, Style]) -> Any:
    """Draw a panel for each level: each client's two values, the worst at the top."""
    shown = list(ends.items())[:_MOST_PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    bars = min(_MOST_BARS, max(len(own) for _, own in shown))
    figure, panels = _figure(
        3.3 * columns, max(1.8, 0.9 + 0.15 * bars) * rows, rows, columns, len(shown)
    )
    for (level, own), axis in zip(shown, panels, strict=True):
        sign = 1 if c.higher_is_better else -1
        order = sorted(own, key=lambda k: (sign * own[k][1], k))[:_MOST_BARS]
        place = np.arange(len(order))
        first, last = (np.array([_drawable(own[k][i]) for k in order]) for i in (0, 1))
        colour = styles[level][0]
        axis.hlines(place, first, last, color=colour, alpha=0.5, linewidth=1.2)
        axis.plot(first, place, "o", ms=4, mfc="white", mec=colour, label="first")
        axis.plot(last, place, "o", ms=4, color=colour, label="last")
        axis.sharex(panels[0])
        axis.set_yticks(place, [f"{k:03d}" for k in order], fontsize=7)
        axis.set_ylim(len(order) - 0.4, -0.6)
        axis.set_title(_short(level), fontsize=9)
        axis.set_xlabel(c.metric.partition("/")[2])
        axis.set_ylabel("client, worst first")
        axis.grid(alpha=0.3, axis="x")
    return figure


def _left_out(ends: Mapping[str, Ends]) -> str:
    told = f"; the first {_MOST_PANELS} of {len(ends)}" if len(ends) > _MOST_PANELS else ""
    most = max(map(len, ends.values()))
    return told + (f"; the worst {_MOST_BARS} of {most} clients" if most > _MOST_BARS else "")


# ---------------------------------------------------------------------------- drawing
def _figure(width: float, height: float, rows: int, columns: int, count: int) -> Any:
    """Return a figure and its panels. No pyplot, so no window and nothing left behind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _line(style: Style) -> dict[str, Any]:
    """Return matplotlib's words for a line; dashes are in widths of the line there."""
    colour, dash = style
    lengths = (0, tuple(length / ROLES["server"].width for length in dash)) if dash else "-"
    return {"color": colour, "linestyle": lengths, "linewidth": _WIDTH}


def _short(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _drawable(value: float) -> float:
    """Return a value, or NaN where it is none that an axis can hold (MLflow's infinity)."""
    return value if abs(value) < 1e300 else math.nan
