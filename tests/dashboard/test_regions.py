"""Pictures show what the models say: lines are the arrays, areas are the predictions."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_app.colours import CLASSES
from fl_app.config.compose import compose_config
from fl_app.config.schema import Config
from fl_app.config.serialization import from_dict
from fl_app.dashboard import regions
from fl_app.dashboard.known import KeptModels, Known, known
from fl_app.dashboard.plane import CELLS, LEVELS, MAX_POINTS, STRENGTHS, areas_png
from fl_app.dashboard.regions import draw, rows_of, why_not
from fl_app.data.table import Table, numeric_table
from fl_app.models.serving import predictor
from fl_app.stacking.members import pack
from fl_app.tracking.journal import Journal
from tests.stacks import Arrays, Ran, calm, config_of

T = 4
RINGS: dict[str, Any] = {
    "dataset": {"name": "rings", "num_examples": 200, "num_classes": 3},
    "partitioner": {"name": "dirichlet", "alpha": 0.5},
    "num_clients": 3,
    "model": {"name": "mlp", "hidden_units": 8, "learning_rate": 0.3},
}


def rings(strategy: dict[str, Any]) -> Ran:
    """Run three clients on three rings."""
    return calm(config_of(strategy=strategy, **RINGS))


@pytest.fixture(scope="module")
def lesson() -> Ran:
    """Run the lesson's five rounds."""
    return calm(compose_config(["experiment=two_lines"]))


def kept_of(ran: Ran) -> dict[int, Arrays]:
    """Return what a run keeps of each round: the global arrays and each client's."""
    kept = {r.server_round: dict(pack("global", r.arrays)) for r in ran.rounds}
    for reply in ran.clients.diary:
        kept[reply.server_round] |= pack(f"client/{reply.partition:03d}", reply.arrays)
    return kept


def models(ran: Ran, server_round: int) -> dict[str, Known]:
    """Return the models after a round by title."""
    config = ran.config
    found = known(
        ran.predictor.to_spec(),
        kept_of(ran),
        server_round,
        strategy=config.strategy.name,
        num_rounds=config.num_server_rounds,
    )
    return {model.title: model for model in found}


def drawn(ran: Ran, server_round: int) -> dict[str, regions.Panel]:
    """Return a round's pictures by title."""
    config = ran.config
    pictures = draw(
        ran.predictor.to_spec(),
        kept_of(ran),
        rows_of(config),
        server_round,
        strategy=config.strategy.name,
        num_rounds=config.num_server_rounds,
    )
    assert pictures is not None
    json.dumps([panel.chart for panel in pictures.panels], allow_nan=False)
    return {panel.title: panel for panel in pictures.panels}


def plane(*points: tuple[float, float]) -> Table:
    """Make rows of two features."""
    x = np.array(points)
    return numeric_table("classification", x, ["x0", "x1"], np.zeros(len(x)), ["class"])


# ---------------------------------------------------------------------------- lines
def test_a_line_is_coef_and_intercept(lesson: Ran) -> None:
    """In round 3 of the lesson each line drawn is y = coef x + intercept of its arrays."""
    kept = kept_of(lesson)[3]
    panels = drawn(lesson, 3)
    assert list(panels) == ["client 0", "client 1", "averaged model"]
    for title, prefix in (
        ("client 0", "client/000"),
        ("client 1", "client/001"),
        ("averaged model", "global"),
    ):
        slope, start = kept[f"{prefix}/coef"].item(), kept[f"{prefix}/intercept"].item()
        layer = panels[title].chart["layer"][-2]  # the last one names the lines
        x, y = np.array([[p["x"], p["y"]] for p in layer["data"]["values"]]).T
        assert np.allclose(y, slope * x + start, rtol=0, atol=1e-5)
        assert f"y = {slope:.4g} x + {start:.4g}," in panels[title].text


def test_the_lessons_scores_are_worked_out(lesson: Ran) -> None:
    """Client 0 has y = 2x + 1 at x = -1, 1: a line a x + b misses by b - a + 1 and a + b - 3."""
    kept = kept_of(lesson)[3]
    a, b = (kept[f"client/000/{name}"].item() for name in ("coef", "intercept"))
    own = ((b - a + 1) ** 2 + (a + b - 3) ** 2) / 2
    other = ((b - a) ** 2 + (a + b - 2) ** 2) / 2
    text = drawn(lesson, 3)["client 0"].text
    assert text.startswith("client 0: 2 training rows. Its own model, y = ")
    assert f"has a mean squared error of {own:.3g} on them" in text
    assert f"and of {(own + other) / 2:.3g} on all clients' 4 training rows" in text


def test_axes_stand_still_over_the_rounds(lesson: Ran) -> None:
    """All charts of a run have the same axes, so that one sees what moves."""
    axes = [
        layer["encoding"][channel]["scale"]["domain"]
        for server_round in (0, 3, 5)
        for panel in drawn(lesson, server_round).values()
        for layer in panel.chart["layer"]
        for channel in "xy"
    ]
    x, y = axes[0], axes[1]
    assert axes == [x, y] * (len(axes) // 2)
    assert x[0] < -1 < 1 < x[1]
    assert y[0] < -1 < 3 < y[1]


# ---------------------------------------------------------------------------- areas
def softmax_spec(mean: float = 0.0) -> dict[str, Any]:
    """Describe softmax regression of two classes on two standardized features."""
    encoding = {
        "task": "classification",
        "columns": ["x0", "x1"],
        "numeric": ["x0", "x1"],
        "mean": [mean, 0.0],
        "scale": [2.0, 1.0],
        "fill": [mean, 0.0],
        "levels": [],
        "labels": [0, 1],
        "targets": ["class"],
        "target_mean": [],
        "target_scale": [],
    }
    model = {"name": "softmax", "dtype": "float64"}
    return {"columns": ["x0", "x1"], "encoding": encoding, "model": model, "many": False}


SEPARATING: Arrays = {"coef": np.array([[0.0, 0.0], [2.0, 0.0]]), "intercept": np.zeros(2)}
"""Class 1 where 2 z0 > 0: right of x0 = the mean."""


def pixels(panel: regions.Panel) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return an area image's colours by number, and the colours."""
    image = panel.chart["layer"][0]
    assert image["mark"]["type"] == "image"
    url = image["data"]["values"][0]["url"]
    return read_png(base64.b64decode(url.removeprefix("data:image/png;base64,")))


def read_png(png: bytes) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read a PNG of colours by number, whose lines are not filtered; checksums must be right."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + data
        )
        chunks[kind], at = data, at + 12 + size
    assert at == len(png)
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 3)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:].astype(int), np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)


def test_areas_part_where_the_model_does() -> None:
    """Cells left of x0 = 1 are class 0, right of it class 1, the stronger the farther."""
    x = np.array([[-1.0, -1.0], [3.0, 1.0]])  # the middle of the axis is x0 = 1
    rows = {0: numeric_table("classification", x, ["x0", "x1"], np.array([0, 1]), ["class"])}
    kept = {1: {**pack("global", SEPARATING), **pack("client/000", SEPARATING)}}
    pictures = draw(softmax_spec(1.0), kept, rows, 1)
    assert pictures is not None
    assert [panel.title for panel in pictures.panels] == ["client 0", "averaged model"]
    number, _ = pixels(pictures.panels[0])
    assert number.shape == (CELLS, CELLS)
    classes, level = np.divmod(number, LEVELS)
    assert (classes == (np.arange(CELLS) >= CELLS // 2)).all()
    outwards = np.diff(level[:, CELLS // 2 :], axis=1)
    assert (outwards >= 0).all()
    assert level.max() > 0
    assert "is right on 100 % of them and on 100 % of all" in pictures.panels[0].text


def test_a_picture_stands_upright() -> None:
    """The first line of the image is the top of the axis: class 1 above x1 = 0 is there."""
    above: Arrays = {"coef": np.array([[0.0, 0.0], [0.0, 2.0]]), "intercept": np.zeros(2)}
    rows = {0: plane((-1.0, -1.0), (1.0, 1.0))}
    pictures = draw(softmax_spec(), {1: pack("global", above)}, rows, 1)
    assert pictures is not None
    classes = pixels(pictures.panels[-1])[0] // LEVELS
    assert (classes[: CELLS // 2] == 1).all()
    assert (classes[CELLS // 2 :] == 0).all()


def test_a_pixel_is_the_class_and_how_likely_it_is() -> None:
    """Chance is the faintest colour of its class, certainty the strongest, both over white."""
    number, palette = read_png(areas_png(np.array([[[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]])))
    assert number.tolist() == [[0, 2 * LEVELS - 1, LEVELS - 1]]
    for position, label, strength in ((0, 0, STRENGTHS[0]), (1, 1, STRENGTHS[1])):
        hue = np.array([int(CLASSES[label][k : k + 2], 16) for k in (1, 3, 5)])
        expected = np.round(255 + strength * (hue - 255.0))
        assert palette[number[0, position]].tolist() == expected.tolist()


# ---------------------------------------------------------------------------- models
@pytest.mark.parametrize("server_round", [T - 1, T])
@pytest.mark.parametrize("kind", ["model", "random_forest"])
def test_a_stacks_areas_are_its_predictions(kind: str, server_round: int) -> None:
    """The stack's image shows, cell by cell, what the logged model of the round predicts."""
    import pandas as pd

    ran = rings({"base_models": [kind]})
    title = "stack" if server_round == T else "stack so far"
    panel = drawn(ran, server_round)[title]
    edges = panel.chart["layer"][0]["data"]["values"][0]
    middles = (np.arange(CELLS) + 0.5) / CELLS
    x = edges["left"] + middles * (edges["right"] - edges["left"])
    y = edges["top"] - middles * (edges["top"] - edges["bottom"])
    grid = pd.DataFrame({"x0": np.tile(x, CELLS), "x1": np.repeat(y, CELLS)})
    arrays = ran.rounds[server_round].arrays
    predicted = predictor(ran.predictor.to_spec(), arrays)(grid)
    assert (pixels(panel)[0].ravel() // LEVELS == predicted).all()
    assert len(set(predicted.tolist())) > 1


def test_who_has_a_model_in_which_round_of_a_stack() -> None:
    """First what each trained and their average, then base models, that average, and the stack."""
    ran = rings({"base_models": ["random_forest"]})
    clients = ["client 0", "client 1", "client 2"]
    assert list(models(ran, 0)) == ["start"]
    assert list(models(ran, 2)) == [*clients, "averaged model"]
    assert list(models(ran, T - 1)) == [*clients, "averaged model", "stack so far"]
    assert list(models(ran, T)) == [*clients, "averaged model", "stack"]
    assert [models(ran, r)["client 0"].what for r in (2, T)] == [
        "Its own model",
        "Its base model (random forest)",
    ]
    shares = [model.share for model in models(ran, T).values() if model.share is not None]
    assert abs(sum(shares) - 1) < 1e-9
    assert len(shares) == 4


def test_a_base_model_is_the_one_that_was_sent() -> None:
    """At the stack's rounds a client's model predicts as the forest of its first reply."""
    from fl_app.models import estimators

    ran = rings({"base_models": ["random_forest"]})
    sent = next(r for r in ran.clients.diary if r.partition == 1 and r.server_round == 1)
    forest = {
        name.removeprefix("base/random_forest/"): array
        for name, array in sent.arrays.items()
        if name.startswith("base/")
    }
    rows = rows_of(ran.config)[1]
    expected = estimators.predict("random_forest", forest, ran.encoding.features(rows))
    assert np.array_equal(models(ran, T)["client 1"].outputs(rows), expected)


def test_the_averaged_model_in_a_stack_is_fedavgs() -> None:
    """It predicts as the global model of the last round that averaged."""
    ran = rings({})
    rows = rows_of(ran.config)[0]
    before, after = models(ran, T - 2)["averaged model"], models(ran, T)["averaged model"]
    assert np.array_equal(before.outputs(rows), after.outputs(rows))


@pytest.mark.parametrize(
    ("strategy", "title"),
    [
        ({"global_member": "ls"}, "least squares"),
        ({"global_member": "none"}, "average"),
        ({"name": "n_average"}, "average"),
    ],
    ids=["ls", "none", "n_average"],
)
def test_models_without_rounds_of_averaging(strategy: dict[str, Any], title: str) -> None:
    """Base models stand for the clients from the first round on, beside what the server makes."""
    ran = rings(strategy)
    clients = ["client 0", "client 1", "client 2"]
    found = models(ran, 2)
    assert list(found) == [*clients, "averaged model" if title == "least squares" else title]
    stacked = strategy.get("name") != "n_average"
    last = list(models(ran, T))
    ends = [] if strategy.get("global_member") == "none" else [title]
    assert last == [*clients, *ends, *(["stack"] if stacked else [])]
    assert drawn(ran, T)


def test_a_client_that_sent_nothing_stands_with_its_last_model() -> None:
    """The text says of which round it is; a client that never sent one has rows only."""
    ran = calm(config_of(strategy={"name": "fedavg"}, **RINGS))
    kept = kept_of(ran)
    for server_round in (1, 2, 3, 4):
        away = "client/002/" if server_round > 2 else "client/001/"
        gone = [name for name in kept[server_round] if name.startswith(away)]
        for name in gone:
            del kept[server_round][name]
    for name in [name for name in kept[4] if name.startswith("client/001/")]:
        del kept[4][name]
    spec, rows = ran.predictor.to_spec(), rows_of(ran.config)
    pictures = draw(spec, kept, rows, 2, strategy="fedavg", num_rounds=T)
    assert pictures is not None
    texts = [panel.text for panel in pictures.panels]
    assert texts[1].endswith("It has sent no model so far.")
    assert "mark" in pictures.panels[1].chart["layer"][0]
    assert len(pictures.panels[1].chart["layer"]) == 1
    pictures = draw(spec, kept, rows, 4, strategy="fedavg", num_rounds=T)
    assert pictures is not None
    assert "Its own model, sent in round 3, is right" in pictures.panels[1].text
    assert "Its own model, sent in round 2, is right" in pictures.panels[2].text


@pytest.mark.parametrize("name", ["local", "pooled", "fedmedian", "fedprox"])
def test_other_strategies_have_pictures_too(name: str) -> None:
    """What the server has goes by another name where it is no average of the clients' arrays."""
    titles = {"local": "client 2", "pooled": "pooled model", "fedmedian": "server's model"}
    config = config_of(
        strategy={"name": name}, **RINGS | ({"num_clients": 1} if name == "pooled" else {})
    )
    ran = calm(config)
    panels = drawn(ran, T)
    assert list(panels)[-1] == titles.get(name, "averaged model")
    assert list(drawn(ran, 0))[-1] == "start"
    assert len(panels) == {"local": 3, "pooled": 2}.get(name, 4)


def test_only_what_is_all_is_a_hundred_percent() -> None:
    shares = (0.0, 0.001, 0.5, 0.996, 0.9999, 1.0)
    written = ["0 %", "0.1 %", "50 %", "99.6 %", "99.9 %", "100 %"]
    assert [regions._percent(share) for share in shares] == written


def test_texts_count_rows_and_what_is_right() -> None:
    """The sentence of each panel holds the numbers of the rows and of the predictions."""
    ran = rings({})
    rows, found = rows_of(ran.config), models(ran, 2)
    whole = rows[0].join(rows[1]).join(rows[2])

    def right(title: str, table: Table) -> str:
        share = (found[title].outputs(table).argmax(axis=1) == table.target).mean()
        return f"{100 * share:.0f} %"

    panels = drawn(ran, 2)
    for k, own in rows.items():
        counts = [f"{n} of class {c}" for c, n in enumerate(np.bincount(own.target)) if n]
        assert panels[f"client {k}"].text == (
            f"client {k}: {len(own)} training rows ({', '.join(counts)}). Its own model is right "
            f"on {right(f'client {k}', own)} of them and on {right(f'client {k}', whole)} "
            f"of all clients' {len(whole)} training rows."
        )
    text = panels["averaged model"].text
    assert text == (
        f"After round 2 the averaged model is right on {right('averaged model', whole)} "
        f"of all clients' {len(whole)} training rows."
    )
    assert panels["averaged model"].chart["description"] == text


def test_the_legend_names_each_class() -> None:
    """It has label, colour, sign and rows of each class; a chart's points use the same."""
    ran = rings({})
    rows = rows_of(ran.config)
    pictures = draw(ran.predictor.to_spec(), kept_of(ran), rows, 1)
    assert pictures is not None
    counts = sum(np.bincount(table.target, minlength=3) for table in rows.values())
    assert [mark.rows for mark in pictures.legend] == np.asarray(counts).tolist()
    assert [mark.label for mark in pictures.legend] == ["0", "1", "2"]
    assert len({mark.sign for mark in pictures.legend}) == 3
    points = pictures.panels[0].chart["layer"][-1]
    assert points["encoding"]["color"]["scale"]["range"] == [m.colour for m in pictures.legend]
    assert len(points["data"]["values"]) == len(rows[0])


def test_a_chart_is_small() -> None:
    """An image of areas is a few kilobytes, and many rows are thinned out."""
    ran = rings({})
    image = drawn(ran, T)["stack"].chart["layer"][0]["data"]["values"][0]["url"]
    assert len(image) < 6000
    many = plane(*np.random.default_rng(0).normal(size=(5 * MAX_POINTS, 2)).tolist())
    pictures = draw(softmax_spec(), {1: pack("global", SEPARATING)}, {0: many}, 1)
    assert pictures is not None
    assert len(pictures.panels[0].chart["layer"][-1]["data"]["values"]) == MAX_POINTS


# ---------------------------------------------------------------------------- none
def spec_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a run's models."""
    return calm(config_of(strategy={"name": "fedavg"}, **options)).predictor.to_spec()


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ("rings", ""),
        ("wine", "A picture of classes needs two features; this data has 13."),
        (
            "diabetes",
            "A picture of a regression needs one feature and one target; this one has 10 and 1.",
        ),
        ("penguins", ""),
    ],
)
def test_why_there_is_no_picture(dataset: str, sentence: str) -> None:
    """One sentence names what a picture needs and what there is."""
    spec = spec_of({"dataset": dataset, "num_server_rounds": 1})
    if dataset == "penguins":
        spec["encoding"]["numeric"] = spec["encoding"]["columns"][1:]
        sentence = "A picture needs numbers as features; this data has texts."
    assert why_not(spec) == sentence


def test_why_a_run_has_no_picture() -> None:
    """Privacy, deployments, many clients and pruned files have a sentence each."""
    spec = softmax_spec()
    assert why_not(spec) == ""
    assert "privacy" in why_not(spec, private=True)
    assert "deployment" in why_not(spec, runtime="deployment")
    assert "25" in why_not(spec, num_clients=25)
    assert "kept" in why_not(spec, kept=False)
    assert "first round" in why_not({})
    spec["encoding"]["labels"] = [*range(9)]
    assert why_not(spec) == "A picture shows at most 8 classes; this data has 9."


def test_a_round_that_was_not_kept_has_no_picture() -> None:
    """Nothing is made up for it."""
    assert draw(softmax_spec(), {1: pack("global", SEPARATING)}, {0: plane((0, 0))}, 2) is None


# ---------------------------------------------------------------------------- the disk
def test_kept_models_are_read_from_the_disk(tmp_path: Path) -> None:
    """Rounds come in order; one that is not there, or is no archive, is no round."""
    journal = Journal.create(tmp_path)
    for server_round in (2, 0, 11):
        journal.keep_arrays("seen", server_round, pack("global", SEPARATING))
    query = "INSERT INTO arrays VALUES ('seen', 3, NULL, ?)"
    journal._write([(query, (b"half an arch",))])
    journal.release()
    kept = KeptModels(journal.folder)
    assert [r for r in kept if r in kept] == [0, 2, 11]
    assert np.array_equal(kept[11]["global/coef"], SEPARATING["coef"])
    assert kept.get(3) is None
    assert kept.get(5) is None
    assert list(KeptModels(tmp_path / "nowhere")) == []


def test_rows_are_the_clients_training_rows() -> None:
    """Of all rows, 20 % are the server's and 10 % of the rest for validation."""
    config: Config = from_dict({"dataset": {"name": "rings"}, "num_clients": 2})
    rows = rows_of(config)
    assert list(rows) == [0, 1]
    assert sum(map(len, rows.values())) == 400 - 80 - 32
