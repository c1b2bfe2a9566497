"""What the models know: each client's rows under its own model, the averaged one and the stack.

Where a model sees two numbers, its predictions are areas of a plane; where it sees one and predicts
one, they are a line. :func:`draw` makes the pictures of one round, one Vega-Lite chart a model, all
on the same axes in every round.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.colours import CLASSES, QUIET, ROLES
from fl_app.config.schema import Config
from fl_app.dashboard.known import KeptModels, Known, known
from fl_app.data.client_data import partition_of
from fl_app.data.encoding import Encoding
from fl_app.data.table import Table, numeric_table
from fl_app.models.base import Arrays

__all__ = ["KeptModels", "Mark", "Panel", "Pictures", "draw", "rows_of", "why_not"]

MAX_CLIENTS = 24
"""Clients whose models a run keeps at most."""
CELLS = 60
"""Points of the grid along each axis."""
LEVELS = 8
"""Steps of an area's strength."""
STRENGTHS = (0.15, 0.65)
"""Strength of an area whose class is as likely as chance, and of one that is certain."""
_ROOM: dict[str, Any] = {"titlePadding": 2, "labelPadding": 3, "minExtent": 24, "maxExtent": 24}
_AXIS = _ROOM | {"labelColor": QUIET, "titleColor": QUIET}
"""Axes take the same room in all charts, so that these line up and stand still."""
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


def rows_of(config: Config) -> dict[int, Table]:
    """Return the training rows of each partition, where rows are dealt.

    Raises
    ------
    ConfigError
        If the data cannot be dealt.
    """
    clients = 1 if config.strategy.is_pooled else config.num_clients
    return {k: partition_of(config, k).train for k in range(clients)}


def why_not(
    spec: Mapping[str, Any],
    *,
    runtime: str = "inprocess",
    private: bool = False,
    num_clients: int = 1,
    kept: bool = True,
    over: bool = False,
) -> str:
    """Say in one sentence why there is no picture; empty where there is one.

    Parameters
    ----------
    spec : mapping
        :meth:`fl_app.models.serving.Predictor.to_spec` of the run; empty before it is known.
    runtime : str
        Where the run's clients are.
    private : bool
        Whether it runs under differential privacy.
    num_clients : int
        Its clients.
    kept : bool
        Whether models of any round are there.
    over : bool
        Whether the run is over: what it has not told it never will.
    """
    if private:
        return "Under differential privacy no client's model is kept, so there is no picture."
    if runtime == "deployment":
        return "In a deployment the rows stay at their nodes, so there is no picture."
    if not spec and not over:
        return "The pictures come with the first round."
    if not spec:
        return "What kind of models these are is not recorded, so there is no picture."
    encoding = Encoding.from_dict(spec["encoding"])
    features, classes = len(encoding.feature_names), len(encoding.labels)
    if encoding.numeric != encoding.columns:
        return "A picture needs numbers as features; this data has texts."
    if encoding.task == "regression":
        if features != 1 or len(encoding.targets) != 1:
            return (
                "A picture of a regression needs one feature and one target; this one has "
                f"{features} and {len(encoding.targets)}."
            )
    elif features != 2:
        return f"A picture of classes needs two features; this data has {features}."
    elif classes > len(CLASSES):
        return f"A picture shows at most {len(CLASSES)} classes; this data has {classes}."
    if num_clients > MAX_CLIENTS:
        return f"The models of at most {MAX_CLIENTS} clients are kept; this run has {num_clients}."
    return "" if kept else "No model of this run is kept any more, so there is no picture."


@dataclass(frozen=True)
class Mark:
    """How a class is shown: its label, its colour, its points' sign, and how many rows it has."""

    label: str
    colour: str
    sign: str
    rows: int


@dataclass(frozen=True)
class Panel:
    """One model's picture.

    Parameters
    ----------
    kind : {"client", "server", "stack"}
        Whose model it is.
    title : str
        Its name.
    text : str
        What the picture shows, for who cannot see it.
    chart : dict
        A Vega-Lite chart with its data.
    """

    kind: str
    title: str
    text: str
    chart: dict[str, Any]


@dataclass(frozen=True)
class Pictures:
    """One round's pictures; the legend of classes is empty for a regression."""

    server_round: int
    panels: tuple[Panel, ...]
    legend: tuple[Mark, ...]


def draw(
    spec: Mapping[str, Any],
    kept: Mapping[int, Arrays],
    rows: Mapping[int, Table],
    server_round: int,
    *,
    strategy: str = "fedavg",
    num_rounds: int = 0,
    size: int = 160,
) -> Pictures | None:
    """Draw what each model knew after a round.

    Parameters
    ----------
    spec, kept, server_round, strategy, num_rounds
        As for :func:`fl_app.dashboard.known.known`, where :func:`why_not` has nothing to say.
    rows : mapping of int to Table
        Training rows of each client in raw units, as :func:`rows_of` gives them.
    size : int, default 160
        Width and height of a chart without its axes, in pixels.

    Returns
    -------
    Pictures or None
        A panel for each client, with or without a model, then the server's, then the stack's; None
        if nothing of the round is kept.
    """
    if server_round not in kept:
        return None
    models = known(spec, kept, server_round, strategy=strategy, num_rounds=num_rounds)
    encoding = Encoding.from_dict(spec["encoding"])
    usable = {k: table.take(encoding.known(table)) for k, table in sorted(rows.items())}
    scene = _Scene(encoding, usable, models, server_round, size)
    panels = [scene.client(partition) for partition in usable]
    panels += [scene.server(model) for model in models if model.kind != "client"]
    return Pictures(server_round, tuple(panels), scene.legend)


@dataclass(frozen=True)
class _Scene:
    """All rows and models of a round, and the axes on which they are drawn."""

    encoding: Encoding
    rows: Mapping[int, Table]
    models: Sequence[Known]
    server_round: int
    size: int

    # ------------------------------------------------------------------------- panels
    def client(self, partition: int) -> Panel:
        """Return a client's panel: its rows, and its model where one is known."""
        own, title = self.rows[partition], f"client {partition}"
        model = self._own.get(partition)
        text = f"{title}: {self._counted(own)}."
        if model is None or not len(own):
            later = "has not trained yet" if self.server_round == 0 else "has sent no model so far"
            later = later if len(own) else "has no row of the run's classes"
            return self._panel(
                "client", title, [later, *self._share(None)], f"{text} It {later}.", own, []
            )
        here, everywhere = self._score(model, own), self._score(model, self._everybody)
        text += f" {model.what}{self._equation(model)} {here.long} them"
        text += f" and {everywhere.also} {self._all}.{_shared(model)}"
        about = [f"own rows {here.short}, all {everywhere.short}", *self._share(model)]
        server = [m for m in self.models if m.kind == "server"]
        head = f"{title}: base model" if model.base else title
        return self._panel("client", title, about, text, own, [model, *server], head)

    def server(self, model: Known) -> Panel:
        """Return the server's or the stack's panel: all rows, and beside a line the clients'."""
        score = self._score(model, self._everybody)
        what = model.what
        if self.server_round:
            what = f"After round {self.server_round} {what[0].lower()}{what[1:]}"
        text = f"{what}{self._equation(model)} {score.long} {self._all}.{_shared(model)}"
        about = [f"all rows {score.short}", *self._share(model)]
        beside = list(self._own.values())
        return self._panel(model.kind, model.title, about, text, self._everybody, [model, *beside])

    def _share(self, model: Known | None) -> list[str]:
        """Return a line of every panel's title where some models are members of a stack."""
        if all(other.share is None for other in self.models):
            return []
        share = None if model is None else model.share
        return [" " if share is None else f"{_percent(share)} of the stack"]

    def _panel(
        self,
        kind: str,
        title: str,
        about: Sequence[str],
        text: str,
        rows: Table,
        models: Sequence[Known],
        head: str = "",
    ) -> Panel:
        """Draw rows and the first model; for a regression also the other ones' lines."""
        areas = self.encoding.task == "classification"
        layers = self._areas(models[:1]) if areas else self._lines(kind, models)
        chart = {
            "title": {
                "text": head or title,
                "subtitle": [*about],
                "anchor": "start",
                "frame": "group",
                "fontSize": 13,
                "offset": 6,
            },
            "description": text,
            "width": self.size,
            "height": self.size,
            "autosize": {"type": "pad"},
            "layer": [*layers, self._points(rows)] if areas else [self._points(rows), *layers],
            "padding": 0,
            "config": {"view": {"stroke": "#D0D4D9"}, "axis": _AXIS},
        }
        return Panel(kind, title, text, chart)

    # ------------------------------------------------------------------------- layers
    def _points(self, rows: Table) -> dict[str, Any]:
        """Return the rows as points, at most so many."""
        step = max(1, -(-len(rows) // MAX_POINTS))
        values = self._numbers(rows)[::step]
        points = [{"x": x, "y": y} for x, y in values.round(4).tolist()]
        mark: dict[str, Any] = {"type": "point", "filled": True, "opacity": 1, "clip": True}
        encoding = self._axes()
        if self.legend:
            labels = [mark.label for mark in self.legend]
            for point, label in zip(points, rows.target[::step].tolist(), strict=True):
                point["class"] = str(label)
            mark |= {"size": 32, "stroke": "white", "strokeWidth": 0.7}
            colours = [mark.colour for mark in self.legend]
            shapes = [shape for shape, _ in SHAPES[: len(labels)]]
            for channel, values_of in (("color", colours), ("shape", shapes)):
                scale = {"domain": labels, "range": values_of}
                encoding[channel] = {
                    "field": "class", "type": "nominal", "scale": scale, "legend": None
                }  # fmt: skip
        else:
            mark |= {"size": 36, "color": "black"}
        return {"data": {"values": points}, "mark": mark, "encoding": encoding}

    def _areas(self, models: Sequence[Known]) -> list[dict[str, Any]]:
        """Return the classes' areas as an image that fills the axes."""
        (left, right), (bottom, top) = self._limits
        edges = {"left": left, "right": right, "bottom": bottom, "top": top}
        ends = {"x2": {"field": "right"}, "y2": {"field": "top"}}
        layers = []
        for model in models:
            probabilities = model.outputs(self._grid).reshape(CELLS, CELLS, -1)
            picture = base64.b64encode(areas_png(probabilities)).decode()
            data = {"values": [{"url": f"data:image/png;base64,{picture}", **edges}]}
            layers.append(
                {
                    "data": data,
                    "mark": {"type": "image", "aspect": False},
                    "encoding": self._axes("left", "bottom") | ends | {"url": {"field": "url"}},
                }
            )
        return layers

    def _lines(self, kind: str, models: Sequence[Known]) -> list[dict[str, Any]]:
        """Return each model's line, the panel's own on top, and at its end whose it is."""
        layers, ends = [], []
        for model in reversed(models):
            first, client = model is models[0], model.kind == "client"
            role = ROLES["clients" if client else "server"]
            values = self._line(model).round(6).tolist()
            mark = {
                "type": "line",
                "color": "black" if first and client else role.colour,
                "strokeDash": [*role.dash] if first or client else [4, 3],
                "strokeWidth": 2.5 if first else 1.2,
                "clip": True,
            }
            data = {"values": [{"x": x, "y": y} for x, y in values]}
            layers.append({"data": data, "mark": mark, "encoding": self._axes()})
            name = "own" if first and client else str(model.partition) if client else "server"
            ends.append((values[-1][1], name))
        return [*layers, *self._ends(ends if len(ends) <= MAX_LABELS else ends[-1:])]

    def _ends(self, ends: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
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
        encoding = self._axes() | {"text": {"field": "name"}, "opacity": shown}
        return [{"data": {"values": points}, "mark": mark, "encoding": encoding}]

    def _axes(self, x: str = "x", y: str = "y") -> dict[str, Any]:
        """Return the encoding of two fields on the run's axes."""
        axes = {}
        for channel, field, limits, name in zip(
            "xy", (x, y), self._limits, self._names, strict=True
        ):
            axes[channel] = {
                "field": field,
                "type": "quantitative",
                "title": name,
                "scale": {"domain": limits, "nice": False, "zero": False},
                "axis": {"tickCount": 4, "grid": False},
            }
        return axes

    # ------------------------------------------------------------------------- numbers
    @cached_property
    def _own(self) -> dict[int | None, Known]:
        return {model.partition: model for model in self.models if model.kind == "client"}

    @cached_property
    def _everybody(self) -> Table:
        first, *others = self.rows.values()
        for table in others:
            first = first.join(table)
        return first

    @property
    def _all(self) -> str:
        return f"all clients' {len(self._everybody)} training rows"

    def _numbers(self, rows: Table) -> NDArray[np.float64]:
        """Return what stands on the two axes, of shape (n, 2)."""
        if self.encoding.task == "classification":
            return rows.numeric
        return np.hstack([rows.numeric, np.asarray(rows.target, np.float64)])

    @cached_property
    def _limits(self) -> list[list[float]]:
        """Ends of the axes."""
        numbers = self._numbers(self._everybody)
        low, high = np.nanmin(numbers, axis=0), np.nanmax(numbers, axis=0)
        margin = np.where(high > low, MARGIN * (high - low), 1.0)
        ends: list[list[float]] = np.stack([low - margin, high + margin], axis=1).tolist()
        return ends

    @property
    def _names(self) -> tuple[str, ...]:
        return (*self.encoding.columns, *self.encoding.targets)[:2]

    @cached_property
    def _grid(self) -> Table:
        """The middles of the cells, row by row from the top."""
        (left, right), (bottom, top) = self._limits
        steps = (np.arange(CELLS) + 0.5) / CELLS
        x, y = np.meshgrid(left + steps * (right - left), top - steps * (top - bottom))
        return self._table(np.stack([x.ravel(), y.ravel()], axis=1))

    def _table(self, numbers: NDArray[np.float64]) -> Table:
        task, columns = self.encoding.task, self.encoding.columns
        return numeric_table(task, numbers, columns, np.zeros(len(numbers)), [""])

    def _line(self, model: Known) -> NDArray[np.float64]:
        """Return points of a model's line from end to end, (n, 2)."""
        left, right = self._limits[0]
        x = np.linspace(left, right, CELLS)
        return np.stack([x, model.outputs(self._table(x[:, None]))[:, 0]], axis=1)

    def _score(self, model: Known, rows: Table) -> _Score:
        outputs, truth = model.outputs(rows), self.encoding.truth(rows)
        if self.encoding.task == "classification":
            right = _percent(float((outputs.argmax(axis=1) == truth).mean()))
            return _Score(right, f"is right on {right} of", f"on {right} of")
        error = f"{np.square(outputs - truth).mean():.3g}"
        return _Score(f"mse {error}", f"has a mean squared error of {error} on", f"of {error} on")

    def _equation(self, model: Known) -> str:
        """Return ``, y = 2 x + 1,`` where a model is a straight line."""
        if self.encoding.task == "classification":
            return ""
        x, y = self._line(model).T
        slope = (y[-1] - y[0]) / (x[-1] - x[0])
        start = y[0] - slope * x[0]
        straight = np.allclose(y, start + slope * x, rtol=0, atol=1e-6 * (1 + np.abs(y).max()))
        if not straight:
            return ""
        sign = "-" if start < 0 else "+"
        return f", {self._names[1]} = {slope:.4g} {self._names[0]} {sign} {abs(start):.4g},"

    # ------------------------------------------------------------------------- classes
    @cached_property
    def legend(self) -> tuple[Mark, ...]:
        """The classes in their order."""
        counts = self._counts(self._everybody)
        signs = [sign for _, sign in SHAPES]
        return tuple(map(Mark, map(str, self.encoding.labels), CLASSES, signs, counts))

    def _counts(self, rows: Table) -> list[int]:
        labels = self.encoding.labels
        if not labels:
            return []
        return [int(n) for n in np.bincount(self.encoding.truth(rows), minlength=len(labels))]

    def _counted(self, rows: Table) -> str:
        """Say how many rows there are, and of which class."""
        n = len(rows)
        text = "1 training row" if n == 1 else f"{n} training rows"
        named = zip(self._counts(rows), self.encoding.labels, strict=True)
        parts = [f"{count} of class {label}" for count, label in named if count]
        return f"{text} ({', '.join(parts)})" if parts else text


@dataclass(frozen=True)
class _Score:
    """How good a model is on some rows: for a title, for a sentence, and for its second half."""

    short: str
    long: str
    also: str


def _shared(model: Known) -> str:
    share = model.share
    return "" if share is None else f" Its share in the stack is {_percent(share)}."


def areas_png(probabilities: NDArray[np.float64]) -> bytes:
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


def _percent(share: float) -> str:
    """Write a share; only what is all, or nothing, is 100 or 0 %."""
    digits = 1 if 0 < share < 0.005 or 0.995 <= share < 1 else 0
    return f"{min(100 * share, 99.9) if share < 1 else 100:.{digits}f} %"
