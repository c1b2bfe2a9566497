"""What the models know: each client's rows under its own model, the averaged one and the stack.

Where a model sees two numbers, its predictions are areas of a plane; where it sees one and predicts
one, they are a line. :func:`draw` makes the pictures of one round, one Vega-Lite chart a model, all
on the same axes in every round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fl_app.colours import CLASSES, QUIET
from fl_app.config.schema import Config
from fl_app.dashboard.known import KeptModels, Known, known
from fl_app.dashboard.plane import SHAPES, Plane
from fl_app.data.client_data import partition_of
from fl_app.data.encoding import Encoding
from fl_app.data.table import Table
from fl_app.models.base import Arrays

__all__ = ["KeptModels", "Mark", "Panel", "Pictures", "draw", "rows_of", "why_not"]

MAX_CLIENTS = 24
"""Clients whose models a run keeps at most."""
_ROOM: dict[str, Any] = {"titlePadding": 2, "labelPadding": 3, "minExtent": 24, "maxExtent": 24}
_AXIS = _ROOM | {"labelColor": QUIET, "titleColor": QUIET}
"""Axes take the same room in all charts, so that these line up and stand still."""


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
        Whether the run is over: what it has not recorded it never will.
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
        rows, title = self.rows[partition], f"client {partition}"
        model = self._own.get(partition)
        text = f"{title}: {self._counted(rows)}."
        if model is None or not len(rows):
            later = "has not trained yet" if self.server_round == 0 else "has sent no model so far"
            later = later if len(rows) else "has no row of the run's classes"
            return self._panel(
                "client", title, [later, *self._share(None)], f"{text} It {later}.", rows, []
            )
        here, everywhere = self._score(model, rows), self._score(model, self._everybody)
        text += f" {model.what}{self._equation(model)} {here.long} them"
        text += f" and {everywhere.also} {self._all}.{_shared(model)}"
        about = [f"own rows {here.short}, all {everywhere.short}", *self._share(model)]
        server = [m for m in self.models if m.kind == "server"]
        head = f"{title}: base model" if model.base else title
        return self._panel("client", title, about, text, rows, [model, *server], head)

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
        points = self._plane.points(rows)
        if self.encoding.task == "classification":
            layers = [*map(self._plane.areas, models[:1]), points]
        else:
            layers = [points, *self._plane.lines(models)]
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
            "layer": layers,
            "padding": 0,
            "config": {"view": {"stroke": "#D0D4D9"}, "axis": _AXIS},
        }
        return Panel(kind, title, text, chart)

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

    @cached_property
    def _plane(self) -> Plane:
        return Plane(self.encoding, self._everybody, self.size)

    @property
    def _all(self) -> str:
        return f"all clients' {len(self._everybody)} training rows"

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
        x, y = self._plane.line(model).T
        slope = (y[-1] - y[0]) / (x[-1] - x[0])
        start = y[0] - slope * x[0]
        straight = np.allclose(y, start + slope * x, rtol=0, atol=1e-6 * (1 + np.abs(y).max()))
        if not straight:
            return ""
        (x_name, y_name), sign = self._plane.names, "-" if start < 0 else "+"
        return f", {y_name} = {slope:.4g} {x_name} {sign} {abs(start):.4g},"

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


def _percent(share: float) -> str:
    """Write a share; only what is all, or nothing, is 100 or 0 %."""
    digits = 1 if 0 < share < 0.005 or 0.995 <= share < 1 else 0
    return f"{min(100 * share, 99.9) if share < 1 else 100:.{digits}f} %"
