"""Figures hold what the rounds and the data hold."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from fl_app.tracking import figures
from fl_app.tracking.records import ClientRecord, RoundRecord


def size_of(png: bytes | None) -> tuple[int, int]:
    """Return width and height from a PNG's header."""
    assert png is not None
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


class Drawn:
    """Keeps the figure that is drawn, to look into it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.figure: Any = None
        png = figures._png

        def keep(figure: Any) -> bytes:
            self.figure = figure
            return png(figure)

        monkeypatch.setattr(figures, "_png", keep)


def test_curves_are_the_rounds_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """One panel a metric; the server's line starts at round 0, the others at 1."""
    drawn = Drawn(monkeypatch)
    rounds = [
        RoundRecord(0, {}, server={"mse": 4.0}),
        RoundRecord(1, {}, train={"mse": 1.0}, evaluate={"mse": 2.0}, server={"mse": 3.0}),
    ]
    size_of(figures.draw_curves(rounds))
    (panel,) = drawn.figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
    assert lines == {"server": [[0, 4], [1, 3]], "eval": [[1, 2]], "train": [[1, 1]]}


def test_no_metric_no_picture() -> None:
    """Rounds without metrics give no figure rather than an empty one."""
    assert figures.draw_curves([RoundRecord(0, {})]) is None
    assert figures.draw_clients(RoundRecord(1, {}), "mse") is None


@pytest.mark.parametrize(
    ("metric", "order"), [("mse", ["002", "001", "000"]), ("accuracy", ["000", "001", "002"])]
)
def test_worst_client_stands_first(
    metric: str, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst is the largest error, or the smallest accuracy."""
    drawn = Drawn(monkeypatch)
    clients = [ClientRecord(p, 1.0, {metric: 0.1 * (p + 1)}) for p in range(3)]
    size_of(figures.draw_clients(RoundRecord(1, {}, evaluate_clients=clients), metric))
    shown = [label.get_text() for label in drawn.figure.axes[0].get_xticklabels()]
    assert shown == order


def test_bars_stack_to_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client's bar is as high as it has rows, whatever the classes."""
    drawn = Drawn(monkeypatch)
    targets = {0: np.array(["a", "b", "b"]), 1: np.array(["c"])}
    size_of(figures.draw_data(targets, ["a", "b", "c"], 2))
    tops, rows = np.zeros(2), []
    for bars in drawn.figure.axes[0].collections:
        extents = [bar.get_extents() for bar in bars.get_paths()]
        assert [round(extent.x0 + 0.4) for extent in extents] == [0, 1]
        assert [extent.y0 for extent in extents] == tops.tolist(), "on top of the class before"
        tops = np.array([extent.y1 for extent in extents])
        rows.append([extent.height for extent in extents])
    assert rows == [[1, 0], [2, 0], [0, 1]]
    assert tops.tolist() == [3, 1]


def test_many_clients_fit_one_page() -> None:
    """A thousand clients give a figure no wider than its bound of 12 inches at 90 dots."""
    clients = [ClientRecord(p, 1.0, {"mse": float(p)}) for p in range(1000)]
    width, _ = size_of(figures.draw_clients(RoundRecord(1, {}, evaluate_clients=clients), "mse"))
    assert width <= 12 * 90
