"""A report on paper: one page that needs nothing else, figures, LaTeX; all say the same."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from fl_app.cli.reports import deal_of
from fl_app.colours import STRATEGIES, strategy_style
from fl_app.config.compose import compose_config
from fl_app.config.serialization import to_dict
from fl_app.data.client_data import partition_of, whole_table
from fl_app.errors import InputError
from fl_app.report import Comparison, RunSummary, TextTable, compare, expect
from fl_app.report.clients import Recorded, read_clients
from fl_app.report.figures import MAX_POINTS, Deal, Picture, draw_figures, level_styles
from fl_app.report.html import to_html
from fl_app.report.latex import to_latex
from fl_app.report.rendering import clean, to_markdown
from fl_app.report.targets import first_reached, reached, spread
from fl_app.report.writing import as_csv, as_dict, whole_report
from fl_app.tracking.mlflow.backend import MlflowStore
from tests.kit import fl_kit
from tests.report.test_report import ACCURACY, ending, log, run
from tests.report.test_report_finished import fedavg, stack

EVIL = "<script>alert(1)</script>"
SVG = "{http://www.w3.org/2000/svg}"
DEAL = Deal(("a", EVIL), (0, 2), ((3, 0), (1, 4)), "seed 0")
ENDS = {0: (0.2, 0.9), 1: (0.3, 0.5)}


def fair(made: Sequence[RunSummary], worst: float = 0.5, gap: float = 0.25) -> list[RunSummary]:
    """Let runs tell how accuracy spreads over their clients."""
    told = {"fairness/accuracy_worst": worst, "fairness/accuracy_gap": gap}
    return [replace(r, metrics={**r.metrics, **told}) for r in made]


def everything() -> Comparison:
    """Return a comparison of which each section has something to say."""
    runs = [
        *fair(ending("fedavg", [0.5, 0.6, 0.7])),
        *fair(ending(EVIL, [0.6, 0.8, 0.7]), 0.4),
        *fair(ending("pooled", [0.9, 0.8, 0.9]), 0.9, 0.0),  # its one client is all of them
        replace(run("fedavg", 3), status="FAILED", error=f"{EVIL} is out of memory"),
    ]
    return compare(runs, target=0.7)


def page(comparison: Comparison, pictures: Sequence[Picture] = ()) -> str:
    """Return a comparison's page, its pictures after the differences."""
    outcomes = [expect(comparison, f"{level}>fedavg") for level in comparison.levels[1:][-1:]]
    sections = whole_report(comparison, outcomes, "fl-kit report")
    return to_html(ACCURACY, sections, {"Differences": pictures})


class Elements(HTMLParser):
    """Gathers the elements of a page, and its texts but for its style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep an element."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Keep a text."""
        self.texts.append(data)


# ---------------------------------------------------------------------------- the page
def test_a_page_says_what_markdown_says() -> None:
    """Each heading, line and cell of a report is in its page and in its Markdown."""
    sections = whole_report(everything(), (), "fl-kit report")
    assert list(sections)[:3] == ["Answer", "Question", "Data and split"]
    html = to_html("x", sections)
    for name, blocks in sections.items():
        assert f"<h2>{name}</h2>" in html
        markdown = to_markdown(blocks).replace("\\", "")
        for block in map(clean, blocks):
            cells = [block]
            if isinstance(block, TextTable):
                cells = [block.title, *block.columns, *(cell for row in block.rows for cell in row)]
            for cell in map(str, cells):
                assert escape(cell) in html
                assert cell in markdown


def test_a_report_on_paper_answers_first_and_names_what_is_missing() -> None:
    """The sentence, the target, the worst client, the references, and who failed with why."""
    sections = whole_report(everything())
    (answer,) = sections["Answer"]
    assert str(answer).startswith(f"{EVIL} is undecided against fedavg: +0.1000 [")
    tables = {b.title: b for own in sections.values() for b in own if isinstance(b, TextTable)}
    rows = tables["until server/accuracy is at least 0.7"].rows
    # By seed: fedavg .5 .6 .7, the other .6 .8 .7, pooled .9 .8 .9, each in round 1.
    assert [row[:4] for row in rows] == [
        ("fedavg", "3", "2", "too few reach it"),
        (EVIL, "3", "1", "1"),
        ("pooled", "3", "0", "1"),
    ]
    assert [row[-1] for row in rows] == ["-", "20 B", "-"]
    (fairness,) = [t for title, t in tables.items() if title.startswith("accuracy on the clients'")]
    assert [row[2:] for row in fairness.rows] == [
        ("0.5000 ± 0.0000", "0.2500 ± 0.0000"),
        ("0.4000 ± 0.0000", "0.2500 ± 0.0000"),
        ("-", "-"),
    ]
    local, pooled, constant = map(str, sections["References"])
    assert "no run of it" in local
    assert "pooled 0.8667 ± 0.0577" in pooled
    assert "not recorded; no run is marked" in constant
    failed = tables["runs that do not count"].rows
    assert failed == (("fedavg s3", "fedavg", "3", "FAILED", f"{EVIL} is out of memory"),)


def test_what_nobody_can_say_is_said() -> None:
    """Of one seed, of one strategy and of runs that tell little, a page says what is lacking."""
    one = page(compare([*ending("fedavg", [0.5]), *ending("fedadam", [0.6])]))
    assert "1 of the 3 pairs that an interval needs" in one
    assert "undecided against fedavg" in one
    alone = page(compare(ending("fedavg", [0.5, 0.6])))
    assert "nothing to compare with: every run has strategy=fedavg" in alone
    assert "no sentence: there is no rival to compare with" in alone
    assert "no run tells how the metric spreads over clients with at least 5" in alone


def test_a_seed_that_a_cell_lacks_is_named() -> None:
    """Cells may have other seeds: those that one has and another has not are told."""
    runs = [
        *ending("fedavg", [0.5, 0.6], num_clients="3"),
        *ending("fedavg", [0.5], num_clients="5"),
    ]
    (table,) = whole_report(compare(runs))["Failed and missing"]
    assert isinstance(table, TextTable)
    assert table.rows == (("-", "all", "1", "missing", "no run at num_clients=5"),)


def test_a_name_is_never_markup() -> None:
    """Whatever a strategy is called, a page has no element of its name, in a picture neither."""
    c = everything()
    pictures = draw_figures(c, DEAL, dict.fromkeys(c.levels, ENDS))
    assert all(picture.files for picture in pictures.values())
    found = Elements(page(c, list(pictures.values())))
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "link", "iframe", "object", "img", "foreignobject"}
    assert [tag for tag, _ in found.tags].count("svg") == 4
    svgs = [ElementTree.fromstring(p.files["svg"]) for p in pictures.values()]
    assert all(EVIL in [text.text for text in svg.iter(f"{SVG}text")] for svg in svgs)
    assert sum(EVIL in text for text in found.texts) > 10


def test_a_page_asks_nobody_for_anything() -> None:
    """Links and sources of a page are places in it; its policy forbids all else."""
    found = Elements(page(everything(), list(draw_figures(everything()).values())))
    for _, attributes in found.tags:
        for name in ("href", "src", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
        assert "url(http" not in (attributes.get("style") or "")
    policies = [a["content"] for _, a in found.tags if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_a_page_of_many_runs_is_small() -> None:
    """Twenty strategies with ten seeds and a thousand rounds are a page of at most 5 MB."""
    curve = [1 - 1 / (2 + r) for r in range(1001)]
    names = [*[*STRATEGIES][:17], "mine", "yours", "theirs"]
    curves = {seed: [v - seed / 100 for v in curve] for seed in range(10)}
    runs = [run(name, seed, own) for name in names for seed, own in curves.items()]
    c = compare(runs, target=0.9)
    pictures = draw_figures(c, DEAL, dict.fromkeys(c.levels, ENDS))
    text = page(c, list(pictures.values()))
    assert len(text.encode()) <= 5e6
    assert "300 of 1001 rounds are drawn" in text


# ---------------------------------------------------------------------------- figures
def test_the_same_runs_give_the_same_figures() -> None:
    """Figures are equal byte by byte, as SVG and as PDF, in whatever order runs come."""
    runs = [*ending("fedavg", [0.5, 0.6]), *ending("$x_1", [0.6, 0.8]), *ending("_y", [0.6, 0.7])]
    both = [
        draw_figures(compare(own), DEAL, {"fedavg": ENDS}, "seed 0", ("svg", "pdf"))
        for own in (runs, runs[::-1])
    ]
    assert both[0] == both[1]
    assert [*both[0]] == ["curves", "bytes", "split", "clients"]
    assert all([*picture.files] == ["svg", "pdf"] for picture in both[0].values())
    texts = [t.text for t in ElementTree.fromstring(both[0]["curves"].files["svg"]).iter()]
    assert {"fedavg", "$x_1", "_y"} <= set(texts)
    assert both[0]["curves"].files["pdf"].startswith(b"%PDF")


def test_what_is_not_known_is_not_drawn() -> None:
    """Without bytes, clients or rows there is a sentence in the place of a figure."""
    pictures = draw_figures(compare([run("fedavg", costs=None), run("fedadam", costs=None)]))
    assert [name for name, picture in pictures.items() if picture.files] == ["curves"]
    assert all("no run" in p.caption for p in pictures.values() if not p.files)


def test_curves_have_few_points() -> None:
    """A line has at most 300 points, the first and the last round among them."""
    picture = draw_figures(compare([run("fedavg", curve=[0.5, *[0.1] * 998, 0.9])]))["curves"]
    paths = re.findall(rb' d="(M[^"]*)"', picture.files["svg"])
    assert max(path.count(b"L") for path in paths) < MAX_POINTS


def test_levels_have_their_strategys_style() -> None:
    """A built-in strategy looks as everywhere; of several kinds of one no two look the same."""
    names = [*STRATEGIES, "mine", "yours"]
    runs = [run(name, model__name=kind) for name in names for kind in ("mlp", "softmax")]
    c = compare(runs, baseline="strategy=fedavg,model=mlp")
    styles = level_styles(c)
    assert len(set(styles.values())) == min(32, len(c.levels))
    few = level_styles(compare(runs[:4], baseline="strategy=fedavg,model=mlp"))
    assert len({hue for hue, _ in few.values()}) == len(few) == 4
    for name in STRATEGIES:
        own = [style for level, style in styles.items() if level.split()[0] == name]
        assert strategy_style(name) in own


def test_rows_are_dealt_again_if_they_are_those_recorded() -> None:
    """Rows by class sum up to what each client that took part has recorded; else they are not."""
    config = compose_config(["dataset=wine", "num_clients=3", "partitioner=dirichlet"])
    sizes = {k: len(partition_of(config, k).train.target) for k in range(3)}
    text, digest = yaml.safe_dump(to_dict(config)), whole_table(config).sha256
    two = {k: sizes[k] for k in (0, 2)}
    deal = deal_of(Recorded("seed 0", text, digest, two, {}))
    assert deal is not None
    assert (deal.labels, deal.clients) == (("0", "1", "2"), (0, 2))
    assert [sum(own) for own in zip(*deal.counts, strict=True)] == [*two.values()]
    other = {**two, 2: sizes[2] + 1}
    for rows, sha256, settings in ((other, digest, text), (two, "0" * 64, text), (two, "", "")):
        deal = deal_of(Recorded("seed 0", settings, sha256, rows, {}))
        assert deal is not None
        assert (deal.labels, deal.counts) == (("all rows",), (tuple(rows.values()),))
    assert deal_of(Recorded("seed 0", text, digest, {}, {})) is None


# ---------------------------------------------------------------------------- to a target
VALUES = st.lists(st.floats(0, 1).map(lambda v: round(v, 2)), min_size=1, max_size=8)


@given(VALUES, st.floats(0, 1).map(lambda v: round(v, 2)), st.booleans())
def test_the_target_is_reached_there_and_not_before(
    curve: list[float], target: float, higher: bool
) -> None:
    """The round found has the target, none before has; 20 bytes a round were sent till then."""
    good = [v >= target if higher else v <= target for v in curve]
    found, sent = first_reached(run(curve=curve), ACCURACY, target, higher)
    expected = good.index(True) if any(good) else math.inf
    assert found == expected
    if len(curve) > 1:
        assert sent == 20 * expected
    else:  # nothing was sent, so nobody counted
        assert math.isnan(sent) == (True in good)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_medians_count_who_never_reaches_it_last(firsts: list[int]) -> None:
    """A seed that never reaches the target counts as later than all; 9 stands for never here."""
    runs = [run("fedavg", k, [0.0] * r + [1.0] * (9 - r)) for k, r in enumerate(firsts)]
    (row,) = reached(compare(runs, target=0.5))
    expected = median([math.inf if r == 9 else r for r in firsts])
    assert row.num_reached == sum(r < 9 for r in firsts)
    assert row.rounds == (expected if math.isfinite(expected) else None)
    assert row.bytes == (None if row.rounds is None else 20 * row.rounds)


def test_a_method_that_is_finished_last_reaches_it_last() -> None:
    """What FedStacking scores before its last round is another method's."""
    c = compare([stack(3, 0.9), fedavg(3)], ignore=["num_server_rounds"], target=0.1)
    assert {row.level: row.rounds for row in reached(c)} == {"fedavg": 1, "fedstacking": 3}


def test_without_a_target_nothing_is_told_of_one() -> None:
    """No section, no rows, empty columns."""
    c = compare([*ending("fedavg", [0.5]), *ending("fedadam", [0.6])])
    assert "Until the target" not in whole_report(c)
    assert as_dict(c)["target"] == {"value": None, "rows": []}
    assert {line["rounds_to_target"] for line in csv.DictReader(io.StringIO(as_csv(c)))} == {""}


# ---------------------------------------------------------------------------- files
def test_json_and_csv_say_it_too() -> None:
    """Target, fairness, references and failed runs are in both; the CSV has a row for each run."""
    c = everything()
    data = json.loads(json.dumps(as_dict(c), allow_nan=False))
    assert [row["num_reached"] for row in data["target"]["rows"]] == [1, 2, 3]
    assert data["fairness"][1]["worst"] == [pytest.approx(0.4), pytest.approx(0)]
    assert [run["status"] for run in data["unfinished"]] == ["FAILED"]
    assert len(data["references"]) == 3
    assert data["answer"][0].startswith(EVIL)
    lines = list(csv.DictReader(io.StringIO(as_csv(c))))
    assert [line["status"] for line in lines] == ["FINISHED"] * 9 + ["FAILED"]
    assert [line["rounds_to_target"] for line in lines[:3]] == ["", "", "1"]
    assert [line["worst_client"] for line in lines[2:4]] == ["0.5", "0.4"]


def test_spread_is_a_mean_over_seeds() -> None:
    """The worst client's mean over seeds, unless one of them does not tell."""
    two = [fair([r], w)[0] for r, w in zip(ending("fedavg", [0.5, 0.6]), (0.2, 0.4), strict=True)]
    (row,) = spread(compare(two))
    assert row.worst == (pytest.approx(0.3), pytest.approx(0.02**0.5))
    assert spread(compare([two[0], *ending("fedavg", [0.5, 0.6])[1:]])) == []


def test_latex_has_a_row_for_each_row() -> None:
    """What LaTeX would obey is escaped; each row has as many cells as the head."""
    table = TextTable("t", ("a", "b"), (("x_1 & $y$ #5 {z} ^ ~ \\", "1 ± 2"), ("[0]", "50 %")))
    lines = [x for x in to_latex([table]).splitlines() if x.endswith(r"\\")]
    assert len(lines) == 3
    assert all(len(re.findall(r"(?<!\\)&", line)) == 1 for line in lines)
    assert lines[1].startswith(r"x\_1 \& \$y\$ \#5 \{z\} \textasciicircum{} \textasciitilde{} ")
    assert lines[2].startswith("{[}0{]} & 50 \\%")


# ---------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a store with two strategies, two seeds; the baseline's first run tells its clients."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    MlflowStore(uri, Path()).connect()
    client = MlflowClient(uri)
    client.create_experiment("e", artifact_location=str(tmp_path_factory.mktemp("artifacts")))
    for one in [*ending(EVIL, [0.6, 0.8]), *ending("fedavg", [0.5, 0.7])[::-1]]:
        run_id = log(uri, "e", one)
    told = {"columns": ["server_round", "partition", "num_examples", "accuracy"]}
    table = {**told, "data": [[2, 1, 9, 0.5], [1, 1, 9, 0.3], [1, 0, 9, 0.2], [2, 0, 9, None]]}
    client.log_text(run_id, json.dumps(table), "clients/evaluate.json")
    roster = {"columns": ["partition", "num_examples"], "data": [[0, 4], [1, 5]]}
    client.log_text(run_id, json.dumps(roster), "clients/roster.json")
    return uri


def test_clients_are_read_as_recorded(store: str) -> None:
    """Each client's first and last value and rows; a client with one value has no two ends."""
    from fl_app.report import read_runs

    found = read_clients(store, compare(read_runs(store)))
    assert found.ends == {"fedavg": {1: (0.3, 0.5)}, EVIL: {}}
    assert (found.rows, found.told, found.config) == ({0: 4, 1: 5}, "seed 0", "")


def test_the_command_writes_page_and_figures(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One page, each figure in two formats; the target on the terminal too, the answer last."""
    places = ("--html", str(tmp_path / "a" / "page.html"), "--figures", str(tmp_path / "b"))
    assert fl_kit(monkeypatch, "report", "--uri", store, "--target", "0.7", *places) == 0
    out = capsys.readouterr().out
    assert "until server/accuracy is at least 0.7" in out
    names = ("bytes", "clients", "curves", "split")
    files = [f"{name}.{kind}" for name in names for kind in ("pdf", "svg")]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == files
    text = (tmp_path / "a" / "page.html").read_text("utf-8")
    assert text.count("<figure>") == 4
    assert "as recorded, all classes together" in text
    assert EVIL not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "much"), "Invalid value for '--target': 'much' is not a valid float."),
        (("--target", "nan"), "--target=nan: a finite number"),
        (("--html", "."), "(it is a folder)"),
        (("--html", "/dev/null"), "(it is a device or pipe)"),
        (("--html", "file/page.html"), "file is no folder)"),
        (("--figures", "file"), "(it is a file)"),
        (("--out", "file/x"), "file is no folder)"),
        (("--html", "/proc/page.html"), "--html=/proc/page.html: a file that can be written to ("),
        (("--metric", "server/what", "--html", "x.html"), "--metric=server/what"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    words: tuple[str, ...],
    message: str,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One sentence and exit status 2; nothing is printed, and no file is there that was not."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert fl_kit(monkeypatch, "report", "--uri", store, *words) == 2
    told = capsys.readouterr()
    assert not told.out
    assert message in told.err
    assert told.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_page_behind_a_link_is_replaced_and_the_link_stays(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a link points to is written, not the link's own name."""
    link, page = tmp_path / "link.html", tmp_path / "page.html"
    link.symlink_to(page)
    assert fl_kit(monkeypatch, "report", "--uri", store, "--html", str(link)) == 0
    assert link.is_symlink()
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")


def test_a_target_must_be_a_number() -> None:
    """In Python as on the command line."""
    with pytest.raises(InputError, match="--target=inf"):
        compare(ending("fedavg", [0.5]), target=math.inf)
