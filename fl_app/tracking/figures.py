"""Pictures of a finished run: learning curves, each client's data, its last metrics."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.colours import ROLES
from fl_app.models.directions import higher_is_better
from fl_app.models.metrics import NO_SCORES
from fl_app.tracking.records import RoundRecord

__all__ = ["MAX_BARS", "draw_clients", "draw_curves", "draw_data"]

MAX_BARS = 60
"""Clients that are drawn one by one."""
MAX_LABELS = 12
"""Classes up to which a legend names them."""


def draw_curves(rounds: Sequence[RoundRecord]) -> bytes | None:
    """Draw each metric over the rounds, one panel a metric.

    Parameters
    ----------
    rounds : sequence of RoundRecord
        From round 0 on.

    Returns
    -------
    bytes or None
        A PNG; None where no round has a metric.
    """
    sources = {
        "server": ("server", "server"),
        "eval": ("evaluate", "mean"),
        "train": ("train", "clients"),
    }
    names = [n for n in _names(rounds) if n != "train_loss" and n not in NO_SCORES]
    if not names:
        return None
    figure, axes = _panels(len(names))
    for name, axis in zip(names, axes, strict=True):
        for label, (attribute, role) in sources.items():
            points = [
                (r.server_round, getattr(r, attribute)[name])
                for r in rounds
                if name in getattr(r, attribute)
            ]
            if points:
                x, y = zip(*points, strict=True)
                axis.plot(x, y, label=label, marker=".", **_line(role))
        better = {True: " (higher is better)", False: " (lower is better)", None: ""}
        _entitle(axis, f"{name}{better[higher_is_better(name)]}")
        axis.set_xlabel("round")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    return _png(figure)


def draw_clients(record: RoundRecord, metric: str) -> bytes | None:
    """Draw one metric of each client in one round, worst first.

    Parameters
    ----------
    record : RoundRecord
        The round.
    metric : str
        The metric.

    Returns
    -------
    bytes or None
        A PNG; None where no client has the metric.
    """
    clients = record.evaluate_clients or record.train_clients
    found = [(c.metrics[metric], c.partition) for c in clients if metric in c.metrics]
    if not found:
        return None
    found.sort(reverse=not higher_is_better(metric))
    values, names = [v for v, _ in found], [f"{p:03d}" for _, p in found]
    figure, (axis,) = _panels(1, width=max(4.0, min(12.0, 0.25 * len(values) + 2)))
    if len(values) <= MAX_BARS:
        axis.bar(names, values, color=ROLES["mean"].colour)
        axis.tick_params(axis="x", rotation=90, labelsize=7)
        axis.set_xlabel("client, worst first")
    else:
        axis.plot(np.linspace(0, 1, len(values)), values, **_line("mean"))
        axis.set_xlabel(f"share of the {len(values)} clients, worst first")
    source = "eval" if record.evaluate_clients else "train"
    _entitle(axis, f"{source} {metric} of each client, round {record.server_round}")
    axis.grid(alpha=0.3, axis="y")
    return _png(figure)


def draw_data(targets: Mapping[int, NDArray[Any]], labels: Sequence[Any], total: int) -> bytes:
    """Draw what each client's training rows are: rows by class, or the spread of the target.

    Parameters
    ----------
    targets : mapping of int to ndarray
        Raw labels of shape (n,) or targets of shape (n, T) of each partition.
    labels : sequence
        The classes in their order; empty for regression.
    total : int
        Clients in all, of which ``targets`` may hold some.

    Returns
    -------
    bytes
        A PNG.
    """
    shown = dict(sorted(targets.items())[:MAX_BARS])
    names = [f"{p:03d}" for p in shown]
    texts = [str(label) for label in labels] if len(labels) <= MAX_LABELS else []
    right = min(2.5, 0.5 + 0.06 * max(map(len, texts))) if texts else 0.0
    figure, (axis,) = _panels(1, max(4.0, min(12.0, 0.25 * len(shown) + 2)), right)
    if labels:
        counts = np.array([[np.sum(y == label) for y in shown.values()] for label in labels])
        _stack_bars(axis, counts, [str(label) for label in labels])
        axis.set_xticks(range(len(names)), names)
        if texts:
            beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
            axis.legend(**beside, frameon=False, fontsize=7, title="class", title_fontsize=8)
        axis.set_ylabel("training rows")
    else:
        axis.boxplot([np.ravel(y[:, 0]) for y in shown.values()], tick_labels=names)
        axis.set_ylabel("target")
    left_out = f" (first {len(shown)} of {total})" if len(shown) < total else ""
    _entitle(axis, f"training data of each client{left_out}")
    axis.set_xlabel("client")
    axis.tick_params(axis="x", rotation=90, labelsize=7)
    return _png(figure)


def _line(role: str) -> dict[str, Any]:
    """Return matplotlib's words for a role's line; dashes are in widths of the line there."""
    colour, dash, width = ROLES[role]
    style = (0, tuple(length / width for length in dash)) if dash else "-"
    return {"color": colour, "linestyle": style, "linewidth": width * 72 / _DPI}


def _entitle(axis: Any, title: str) -> None:
    # Where its place is given, matplotlib does not look for one that no tick stands in.
    axis.set_title(title, fontsize=10, y=1.01)


def _names(rounds: Sequence[RoundRecord]) -> list[str]:
    metrics = (m for r in rounds for part in (r.server, r.evaluate, r.train) for m in part)
    return list(dict.fromkeys(metrics))


def _panels(count: int, width: float = 4.0, right: float = 0.0) -> tuple[Any, list[Any]]:
    """Return a figure with a row of panels and `right` inches beside them.

    There is no pyplot, so no global state and no window. Margins are fixed: to fit them to the
    texts (matplotlib's constrained layout) takes as long as to draw.
    """
    from matplotlib.figure import Figure

    whole, own = width * count + right, width - _LEFT - _RIGHT
    figure = Figure(figsize=(whole, _HEIGHT))
    height = _HEIGHT - _BOTTOM - _TOP
    panels = []
    for i in range(count):
        place = ((width * i + _LEFT) / whole, _BOTTOM / _HEIGHT, own / whole, height / _HEIGHT)
        panels.append(figure.add_axes(place))
        panels[-1].xaxis.set_label_coords(0.5, -0.42 / height)
        panels[-1].yaxis.set_label_coords(-0.6 / own, 0.5)
    return figure, panels


_DPI = 90
_HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 3.2, 0.75, 0.15, 0.6, 0.35  # inches


def _stack_bars(axis: Any, heights: NDArray[Any], labels: Sequence[str]) -> None:
    """Draw stacked bars, one collection a label: a hundred artists take as long as all else."""
    from matplotlib.collections import PolyCollection

    tops = np.cumsum(heights, axis=0)
    left = np.arange(heights.shape[1]) - 0.4
    for position, (top, height) in enumerate(zip(tops, heights, strict=True)):
        corners = [(left, top - height), (left, top), (left + 0.8, top), (left + 0.8, top - height)]
        bars = list(np.moveaxis(np.array(corners), 2, 0))
        colour = _shade(position, len(labels))
        axis.add_collection(PolyCollection(bars, facecolor=colour, label=labels[position]))
    axis.set_xlim(left[0] - 0.2, left[-1] + 1.0)
    axis.set_ylim(0, max(1, 1.05 * tops[-1].max()))


def _shade(position: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](position / max(1, count - 1))


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
