"""The plane of two numbers on which models are drawn: areas, lines and points as layers of a chart.

An area's colour is the class that is most likely there, stronger where it is more likely. The areas
of a chart are one PNG of about a kilobyte: thousands of rectangles are slow to draw.

References
----------
PNG, https://www.w3.org/TR/png-3/. Vega-Lite, https://vega.github.io/vega-lite/docs/image.html.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_app.colours import CLASSES, ROLES
from fl_app.dashboard.known import Known
from fl_app.dashboard.line_chart import Spec, layer, quantity
from fl_app.dashboard.view import Floats
from fl_app.data.encoding import Encoding
from fl_app.data.table import Table, numeric_table

__all__ = ["CELLS", "LEVELS", "MAX_POINTS", "SHAPES", "STRENGTHS", "Plane", "areas_png"]

CELLS = 60
"""Points of the grid along each axis."""
LEVELS = 8
"""Steps of an area's strength."""
STRENGTHS = (0.15, 0.65)
"""Strength of an area whose class is as likely as chance, and of one that is certain."""
MAX_POINTS = 400
"""Rows that one chart shows."""
MAX_LABELS = 8
"""Lines up to which each has a name at its end."""
LABEL_HEIGHT = 12
"""Pixels from one name to the next."""
MARGIN = 0.06
"""Share of the rows' range that is left free at either end of an axis."""
SHAPES = (
    *(("circle", "●"), ("square", "■"), ("triangle-up", "▲"), ("diamond", "◆")),
    *(("cross", "✚"), ("triangle-down", "▼"), ("triangle-left", "◀"), ("triangle-right", "▶")),
)
"""A point's shape by class, and its sign in a text."""


@dataclass(frozen=True)
class Plane:
    """The axes that all charts of a run share, and what is drawn on them.

    Parameters
    ----------
    encoding : Encoding
        Of the run: two numbers as features, or one of them and one target.
    rows : Table
        All clients' training rows, which the axes hold.
    size : int
        Width and height of a chart without its axes, in pixels.
    """

    encoding: Encoding
    rows: Table
    size: int

    @cached_property
    def _classes(self) -> list[str]:
        return [str(label) for label in self.encoding.labels]

    # ------------------------------------------------------------------------- layers
    def points(self, rows: Table) -> Spec:
        """Return rows as points, at most so many."""
        step = max(1, -(-len(rows) // MAX_POINTS))
        values = self._numbers(rows)[::step]
        points: list[Spec] = [{"x": x, "y": y} for x, y in values.round(4).tolist()]
        mark: Spec = {"type": "point", "filled": True, "opacity": 1, "clip": True}
        encoding = self._axes()
        if not self._classes:
            return layer(points, mark | {"size": 36, "color": "black"}, encoding)
        for point, label in zip(points, rows.target[::step].tolist(), strict=True):
            point["class"] = str(label)
        mark |= {"size": 32, "stroke": "white", "strokeWidth": 0.7}
        shapes = [shape for shape, _ in SHAPES]
        for channel, values_of in (("color", CLASSES), ("shape", shapes)):
            scale = {"domain": self._classes, "range": [*values_of[: len(self._classes)]]}
            of_class = {"field": "class", "type": "nominal", "scale": scale, "legend": None}
            encoding[channel] = of_class
        return layer(points, mark, encoding)

    def areas(self, model: Known) -> Spec:
        """Return the classes' areas as an image that fills the axes."""
        (left, right), (bottom, top) = self._limits
        edges = {"left": left, "right": right, "bottom": bottom, "top": top}
        ends = {"x2": {"field": "right"}, "y2": {"field": "top"}}
        probabilities = model.outputs(self._grid).reshape(CELLS, CELLS, -1)
        url = f"data:image/png;base64,{base64.b64encode(areas_png(probabilities)).decode()}"
        encoding = self._axes("left", "bottom") | ends | {"url": {"field": "url"}}
        return layer([{"url": url, **edges}], {"type": "image", "aspect": False}, encoding)

    def lines(self, models: Sequence[Known]) -> list[Spec]:
        """Return each model's line, the first one's on top, and at its end whose it is."""
        layers, ends = [], []
        for model in reversed(models):
            first, client = model is models[0], model.kind == "client"
            role = ROLES["clients" if client else "server"]
            values = self.line(model).round(6).tolist()
            mark = {
                "type": "line",
                "color": "black" if first and client else role.colour,
                "strokeDash": [*role.dash] if first or client else [4, 3],
                "strokeWidth": 2.5 if first else 1.2,
                "clip": True,
            }
            layers.append(layer([{"x": x, "y": y} for x, y in values], mark, self._axes()))
            name = "own" if first and client else str(model.partition) if client else "server"
            ends.append((values[-1][1], name))
        return [*layers, self._ends(ends if len(ends) <= MAX_LABELS else ends[-1:])]

    def _ends(self, ends: Sequence[tuple[float, str]]) -> Spec:
        """Return names right of the lines' ends, one line of text apart from each other."""
        low, high = self._limits[1]
        gap, place = LABEL_HEIGHT * (high - low) / self.size, -np.inf
        points = []
        for end, name in sorted(ends):
            place = max(min(max(end, low), high), place + gap)
            points.append({"x": self._limits[0][1], "y": place, "name": name, "shown": 1})
        # One that is not seen keeps its room where there is no other.
        points.append({"x": self._limits[0][1], "y": low, "name": "server", "shown": 0})
        mark = {"type": "text", "align": "left", "dx": 4, "fontSize": 11, "clip": False}
        shown = {"field": "shown", "type": "quantitative", "scale": None}
        return layer(points, mark, self._axes() | {"text": {"field": "name"}, "opacity": shown})

    def _axes(self, x: str = "x", y: str = "y") -> Spec:
        """Return the encoding of two fields on the run's axes."""
        fields = zip("xy", (x, y), self.names, self._limits, strict=True)
        return {
            channel: quantity(field, name, limits, {"tickCount": 4, "grid": False})
            for channel, field, name, limits in fields
        }

    # ------------------------------------------------------------------------- numbers
    def _numbers(self, rows: Table) -> Floats:
        """Return what stands on the two axes, of shape (n, 2)."""
        if self.encoding.task == "classification":
            return rows.numeric
        return np.hstack([rows.numeric, np.asarray(rows.target, np.float64)])

    @cached_property
    def _limits(self) -> list[list[float]]:
        """Ends of the axes."""
        numbers = self._numbers(self.rows)
        low, high = np.nanmin(numbers, axis=0), np.nanmax(numbers, axis=0)
        margin = np.where(high > low, MARGIN * (high - low), 1.0)
        ends: list[list[float]] = np.stack([low - margin, high + margin], axis=1).tolist()
        return ends

    @property
    def names(self) -> tuple[str, ...]:
        """What stands on the two axes."""
        return (*self.encoding.columns, *self.encoding.targets)[:2]

    @cached_property
    def _grid(self) -> Table:
        """The middles of the cells, row by row from the top."""
        (left, right), (bottom, top) = self._limits
        steps = (np.arange(CELLS) + 0.5) / CELLS
        x, y = np.meshgrid(left + steps * (right - left), top - steps * (top - bottom))
        return self._table(np.stack([x.ravel(), y.ravel()], axis=1))

    def _table(self, numbers: Floats) -> Table:
        task, columns = self.encoding.task, self.encoding.columns
        return numeric_table(task, numbers, columns, np.zeros(len(numbers)), [""])

    def line(self, model: Known) -> Floats:
        """Return points of a model's line from end to end, (n, 2)."""
        left, right = self._limits[0]
        x = np.linspace(left, right, CELLS)
        return np.stack([x, model.outputs(self._table(x[:, None]))[:, 0]], axis=1)


def areas_png(probabilities: Floats) -> bytes:
    """Return a PNG of the most likely class in each cell, stronger where it is more likely.

    Parameters
    ----------
    probabilities : ndarray of shape (height, width, C)
        From the top row on; C is at most 8.
    """
    count = probabilities.shape[2]
    best = probabilities.argmax(axis=2)
    surplus = (probabilities.max(axis=2) - 1 / count) / (1 - 1 / count)
    level = np.clip(np.nan_to_num(surplus) * LEVELS, 0, LEVELS - 1).astype(np.int64)
    strength = np.linspace(STRENGTHS[0], STRENGTHS[1], LEVELS)[:, None]
    hues = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in CLASSES[:count]])
    palette = 255 + strength * (hues[:, None, :] - 255)
    return _png((best * LEVELS + level).astype(np.uint8), palette.round().astype(np.uint8))


def _png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Write a picture of colours by number: pixels of shape (height, width), colours (..., 3)."""
    height, width = pixels.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each line begins with its filter: none
    lines[:, 1:] = pixels
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
