"""Charts are plain JSON, name their lines apart, and neither squash nor invent values."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.colours import ROLES, strategy_style
from fl_app.dashboard.charts import (
    curves,
    model_values,
    split_heat,
    split_histogram,
    split_sizes,
    versus,
)
from fl_app.dashboard.line_chart import Chart, apart, bulk
from fl_app.dashboard.metric_values import metrics
from fl_app.dashboard.view import RunView
from fl_app.tracking.journal_reader import JournalReader
from fl_app.tracking.records import ClientRecord, RoundRecord, RunFacts
from tests.recorded import GONE, Record, round_line

finite = st.floats(-1e3, 1e3, allow_nan=False)


def marks(chart: Chart, kind: str) -> list[dict[str, Any]]:
    """Return the layers of one kind of mark."""
    return [layer for layer in chart.spec["layer"] if layer["mark"]["type"] == kind]


def texts(chart: Chart) -> list[str]:
    """Return what is written; a halo behind it counts once."""
    written = [layer for layer in marks(chart, "text") if "stroke" not in layer["mark"]]
    return [layer["data"]["values"][0]["text"] for layer in written]


def check(chart: Chart) -> None:
    """Hold a chart to strict JSON, words, a view that stretches, and a padding of its own."""
    json.dumps(chart.spec, allow_nan=False)
    assert isinstance(chart.spec["padding"], dict)
    assert not {"facet", "hconcat", "vconcat", "repeat", "width"} & set(chart.spec)
    assert chart.alt.endswith(".")
    text = json.dumps(chart.spec).lower()
    assert "infinity" not in text


def view_of(home: Path, rounds: int = 4, clients: int = 3, **facts: Any) -> RunView:
    record = Record(home).start(params={"num_clients": str(clients)})
    for r in range(rounds + 1):
        record.line(round_line(r, clients=range(clients), **facts))
    return record.view()


# ---------------------------------------------------------------------------- curves
def test_curves_have_a_line_and_a_name_for_each(tmp_path: Path) -> None:
    view = view_of(tmp_path)
    chart = curves(view, metrics(view)[0], at=2)
    check(chart)
    lines = {layer["data"]["values"][0]["line"]: layer["mark"] for layer in marks(chart, "line")}
    assert set(lines) == {"server", "mean", "worst", "client 0", "client 1", "client 2"}
    for role in ("server", "mean", "worst"):
        assert lines[role]["color"] == ROLES[role].colour
        assert tuple(lines[role].get("strokeDash", ())) == ROLES[role].dash
    assert "server: 0.54" in texts(chart)
    assert [rule["data"]["values"] for rule in marks(chart, "rule")] == [[{"x": 2}]]
    assert "server from 0.5 at 0 to 0.54 at 4" in chart.alt
    assert "round 2 is marked" in chart.alt


def test_more_than_24_clients_are_mean_and_worst(tmp_path: Path) -> None:
    view = view_of(tmp_path, rounds=2, clients=25)
    chart = curves(view, metrics(view)[0])
    assert len(marks(chart, "line")) == 3
    assert "25 clients, drawn as mean and worst" in chart.alt


def test_many_clients_have_lines_but_no_names(tmp_path: Path) -> None:
    view = view_of(tmp_path, rounds=2, clients=24)
    chart = curves(view, metrics(view)[0])
    assert len(marks(chart, "line")) == 24 + 3
    assert len(texts(chart)) == 3


def test_one_round_alone_is_a_point(tmp_path: Path) -> None:
    view = view_of(tmp_path, rounds=0)
    chart = curves(view, metrics(view)[0])
    check(chart)
    (line,) = marks(chart, "line")
    assert line["mark"]["point"]
    assert chart.spec["layer"][0]["encoding"]["x"]["scale"]["domain"][1] > 0


def test_missing_values_are_gaps(tmp_path: Path) -> None:
    record = Record(tmp_path).start().rounds(0)
    record.rounds(1, metrics={"server/accuracy": math.nan}).rounds(2)
    _, (line, _), _ = JournalReader(record.folder).rounds()
    del line["metrics"]["server/accuracy"]
    record.line(line | {"server_round": 3})
    chart = curves(record.view(), metrics(record.view())[0])
    check(chart)
    server = next(
        layer for layer in marks(chart, "line") if layer["data"]["values"][0]["line"] == "server"
    )
    assert [row["y"] for row in server["data"]["values"]] == [0.5, None, 0.52, None]


def test_no_metric_at_all_is_an_empty_chart(tmp_path: Path) -> None:
    view = view_of(tmp_path, rounds=1)
    other = Record(tmp_path, "20260102-030406-0123abcd").start()
    other.line({"server_round": 0, "metrics": {}})
    chart = curves(other.view(), metrics(view)[0])
    check(chart)
    assert chart.alt == "accuracy (higher is better) by round."


def test_without_a_test_set_the_mean_stands_alone(tmp_path: Path) -> None:
    record = Record(tmp_path).start()
    for r in range(1, 3):
        own = {
            "train_client_mse/000": 1.0 / r,
            "train_client_mse/001": 2.0 / r,
            "train/mse": 1.5 / r,
        }
        line = round_line(r) | {"metrics": own, "clients": []}
        record.line(line)
    view = record.view()
    chart = curves(view, metrics(view)[0])
    names = {layer["data"]["values"][0]["line"] for layer in marks(chart, "line")}
    assert names == {"mean", "worst", "client 0", "client 1"}


def test_what_is_over_all_rows_is_not_called_a_mean(tmp_path: Path) -> None:
    record = Record(tmp_path).start()
    told = {"train_client_r2/000": 0.4, "train_client_r2/001": 0.6, "train/r2": 0.7}
    record.line(round_line(1) | {"metrics": told, "clients": []})
    view = record.view()
    chart = curves(view, metrics(view)[0])
    names = {layer["data"]["values"][0]["line"] for layer in marks(chart, "line")}
    assert names == {"all together", "worst", "client 0", "client 1"}


def test_a_long_run_is_drawn_by_few_points_and_its_last(tmp_path: Path) -> None:
    view = view_of(tmp_path, rounds=500, clients=1)
    chart = curves(view, metrics(view)[0])
    for layer in marks(chart, "line"):
        rounds = [row["x"] for row in layer["data"]["values"]]
        assert len(rounds) <= 202
        assert rounds[-1] == 500


# ---------------------------------------------------------------------------- ranges
def test_values_that_diverged_do_not_squash_the_chart(tmp_path: Path) -> None:
    values = [0.5 + 0.001 * i for i in range(100)]
    low, high, note = bulk([*values, 1e30, math.nan, math.inf])
    assert low < 0.5
    assert 0.6 <= high < 1
    assert "the chart shows their bulk" in note


@given(st.lists(finite, max_size=40))
def test_a_range_is_never_empty(found: list[float]) -> None:
    low, high, note = bulk(found)
    assert low < high
    if found and not note:
        assert low <= min(found)
        assert max(found) <= high


def test_a_loss_that_falls_fast_is_shown_whole() -> None:
    """From 2.3 down to 0.1 in twenty rounds: nothing of it is far off."""
    assert bulk([2.3 * 0.85**r for r in range(21)])[2] == ""


@given(st.lists(finite, min_size=1, max_size=15), st.floats(0.1, 100), st.floats(0, 500))
def test_labels_are_apart_in_order_and_inside(wanted: list[float], gap: float, room: float) -> None:
    low, high = min(wanted), max(wanted) + room
    places = apart(wanted, gap, low, high)
    assert len(places) == len(wanted)
    least = min(gap, (high - low) / max(1, len(wanted) - 1))
    slack = 1e-6 * (1 + abs(low) + abs(high))
    ordered = sorted(places)
    assert all(b - a >= least - slack for a, b in itertools.pairwise(ordered))
    assert low - slack <= ordered[0]
    assert ordered[-1] <= high + slack
    for i in range(len(wanted)):
        for j in range(len(wanted)):
            if wanted[i] < wanted[j]:
                assert places[i] <= places[j] + slack


def test_labels_that_have_room_stay() -> None:
    assert apart([0.0, 5.0, 2.0], 1.0, 0.0, 10.0) == [0.0, 5.0, 2.0]


# ---------------------------------------------------------------------------- several runs
def stack(home: Path, last: int) -> RunView:
    record = Record(home, "20260102-030406-0123abcd")
    record.start({"strategy.name": "fedstacking"}, process=GONE, num_server_rounds=4).rounds(0)
    for r in range(1, last + 1):
        record.rounds(r, metrics={"stack/phase": float(max(0, r - 2)), "server/accuracy": 0.8})
    return record.end("FINISHED" if last == 4 else "KILLED").view()


@pytest.mark.parametrize("by", ["round", "MB"])
def test_versus_wears_the_strategys_style_and_marks_the_stacks_end(tmp_path: Path, by: str) -> None:
    views = [view_of(tmp_path), stack(tmp_path, 4)]
    chart = versus(views, metrics(views[0])[0], by)
    check(chart)
    lines = {layer["data"]["values"][0]["line"]: layer["mark"] for layer in marks(chart, "line")}
    for name in ("fedavg", "fedstacking"):
        colour, dash = strategy_style(name)
        assert lines[name]["color"] == colour
        assert tuple(lines[name].get("strokeDash", ())) == dash
    assert lines["fedstacking"]["opacity"] < lines["fedavg"]["opacity"]
    (end,) = marks(chart, "point")
    assert end["data"]["values"][0]["y"] == 0.8
    assert "fedstacking 0.8 at its end" in chart.alt


def test_a_stack_that_is_cut_off_has_no_end(tmp_path: Path) -> None:
    views = [view_of(tmp_path), stack(tmp_path, 3)]
    chart = versus(views, metrics(views[0])[0])
    assert marks(chart, "point") == []
    assert "fedstacking, collecting: 0.8" in texts(chart)


# ---------------------------------------------------------------------------- small models
def test_values_of_a_tiny_model_are_drawn_of_each_client_and_the_global_one(tmp_path: Path) -> None:
    record = Record(tmp_path).start(params={"num_clients": "2"})
    record.rounds(0, metrics={"model/w.a": 0.0, "model/w.b": 0.0})
    for r in (1, 2):
        clients = [ClientRecord(k, 1, {}, {"w": np.array([r + k, 10.0 * r])}) for k in range(2)]
        told = RoundRecord(
            r,
            {},
            run=RunFacts("FedAvg"),
            train_clients=clients,
            aggregate={"w": np.array([r, 10.0 * r])},
        )
        record.rounds(r, metrics={"model/w.a": float(r), "model/w.b": 10.0 * r}, record=told)
    a, b = model_values(record.view(), at=1)
    for chart in (a, b):
        check(chart)
    assert a.alt.startswith("w.a by round")
    assert sorted(texts(a)) == ["client 0: 2", "client 1: 3", "global: 2"]
    dashes = {str(layer["mark"].get("strokeDash")) for layer in marks(a, "line")[:2]}
    assert len(dashes) == 2, "clients differ in style, not in colour"


def test_values_of_larger_models_are_not_drawn(tmp_path: Path) -> None:
    record = Record(tmp_path).start()
    clients = [ClientRecord(0, 1, {}, {"w": np.zeros(5)})]
    told = RoundRecord(1, {}, train_clients=clients, aggregate={"w": np.zeros(5)})
    assert model_values(record.rounds(1, record=told).view()) == []


# ---------------------------------------------------------------------------- the split
def test_a_label_that_a_client_lacks_is_blank() -> None:
    chart = split_heat(["a", "b"], np.array([[3, 0], [1, 8]]))
    check(chart)
    cells = chart.spec["layer"][0]["data"]["values"]
    assert [(c["client"], c["label"], c["rows"]) for c in cells] == [
        (0, "a", 3),
        (0, "b", 1),
        (1, "b", 8),
    ]
    assert len(chart.spec["layer"]) == 2, "few cells have their counts written"
    assert "from 1 to 2 of the labels" in chart.alt


def test_a_large_split_has_no_numbers() -> None:
    chart = split_heat([str(i) for i in range(10)], np.ones((10, 100), int))
    check(chart)
    assert len(chart.spec["layer"]) == 1


def test_sizes_and_histogram() -> None:
    sizes = split_sizes([5, 0, 7])
    check(sizes)
    assert sizes.alt == "Training rows of 3 clients: 12 in all, from 0 to 7."
    spread = split_histogram([0.0, 1.0, 2.0], np.array([[1, 0], [0, 2]]), "price")
    check(spread)
    rows = spread.spec["data"]["values"]
    assert [(r["client"], r["low"], r["high"], r["rows"]) for r in rows] == [
        (0, 0.0, 1.0, 1),
        (1, 1.0, 2.0, 2),
    ]
