"""Charts of a split: each client's rows, and its labels or targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.colours import CIVIDIS, ROLES
from fl_app.dashboard.line_chart import Chart, Spec, frame, layer, plain, quantity, short

__all__ = ["MAX_COUNTS", "split_heat", "split_histogram", "split_sizes"]
MAX_COUNTS = 12
"""Clients, and labels, up to which a heat map writes its counts."""


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
    layers = [layer(rows, {"type": "rect"}, encoding)]
    if max(table.shape, default=0) <= MAX_COUNTS:
        # On cells, not on the page: dark ones need white letters in any theme.
        ink = {"condition": {"test": f"datum.rows > {0.45 * most}", "value": "#FFFFFF"}}
        text = {"field": "rows", "type": "quantitative"}
        encoding = {"x": x, "y": y, "text": text, "color": ink | {"value": "#000000"}}
        layers.append(layer(rows, {"type": "text", "fontSize": 11}, encoding))
    spec = {
        "height": max(120, min(320, 60 + 20 * len(labels))),
        **frame(),
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
        {"client": k, "low": plain(edges[b]), "high": plain(edges[b + 1]), "rows": int(n)}
        for b, row in enumerate(table)
        for k, n in enumerate(row)
        if n
    ]
    domain = [plain(edges[0]), plain(edges[-1])]
    y = quantity("low", target, domain, {"minExtent": 40})
    x = _clients(table.shape[1])
    x["scale"] = {"domain": list(range(table.shape[1]))}
    tooltip = [{"field": f, "type": "quantitative"} for f in ("client", "low", "high", "rows")]
    colour = _shade(float(table.max(initial=0)))
    encoding = {"x": x, "y": y, "y2": {"field": "high"}, "color": colour, "tooltip": tooltip}
    spec = layer(rows, {"type": "rect"}, encoding)
    alt = f"{target} of the training rows of {table.shape[1]} clients, "
    alt += f"from {short(edges[0])} to {short(edges[-1])}, in {len(table)} bins."
    return Chart(spec | {"height": 220, **frame()}, alt)
