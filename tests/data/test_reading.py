"""Files of many sites, as they come: equal values, columns by name, missing cells."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fl_app.client_app import app as client_app
from fl_app.config.schema import Config
from fl_app.config.serialization import from_dict, to_dict, to_json
from fl_app.data.catalogue import load
from fl_app.data.client_data import encode, own_partition
from fl_app.data.encoding import Encoding
from fl_app.data.files import read_frame, spelt
from fl_app.data.frames import features_from_frame
from fl_app.data.spelling import MISSING_WORDS, Spelling, tidied
from fl_app.errors import ConfigError, DataError, FederationError
from fl_app.federation import protocol
from fl_app.federation.handshake import shake_hands
from fl_app.federation.roster import Roster
from fl_app.grid import InProcessGrid

Cells = Mapping[str, list[Any]]


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Collect what is said, by whoever."""
    found: list[str] = []

    class Collects(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Collects(logging.WARNING)
    logging.getLogger("fl_app").addHandler(handler)
    yield found
    logging.getLogger("fl_app").removeHandler(handler)


def config_of(num_clients: int, **dataset: Any) -> Config:
    """Make the config of nodes with files of their own."""
    own = {"name": "tabular", "path": "unused.csv", "target": "y", "val_fraction": 0} | dataset
    return from_dict({"num_clients": num_clients, "dataset": own})


def shake(config: Config, *files: Path) -> tuple[Roster, Encoding]:
    """Shake hands with one node a file, in this process."""
    nodes = {k: {"data": str(file)} for k, file in enumerate(files)}
    with InProcessGrid(client_app, len(files), node_configs=nodes) as grid:
        return shake_hands(grid, grid.get_node_ids(), config, 60.0)


def encoded(roster: Roster, encoding: Encoding, partition: int, file: Path) -> Any:
    """Return a node's rows as numbers, by what travels to it."""
    assert roster.config is not None
    config = protocol.read_config(to_json(roster.config))
    return encode(own_partition(config, partition, str(file)), encoding, "float64")


@pytest.fixture
def csv(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a CSV file of texts and returns its path."""

    def write(name: str, cells: Cells, separator: str = ",") -> Path:
        rows = [list(cells), *map(list, zip(*cells.values(), strict=True))]
        path = tmp_path / name
        path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a Parquet file and returns its path."""

    def write(name: str, cells: Cells, **options: Any) -> Path:
        path = tmp_path / name
        pd.DataFrame(dict(cells)).to_parquet(path, **options)
        return path

    return write


X = [0.5, 1.5, -1.0, 2.0, 3.0, 1.0, 0.0, -2.0, 4.0, 2.5]


# ---------------------------------------------------------------------------- equal values
ZERO_ONE: list[list[Any]] = [
    ["0", "1"],
    ["0.0", "1.0"],
    [" 0", "1 "],
    ["false", "true"],
    ["False", "True"],
]
TYPED: list[list[Any]] = [["0", "1"], [0, 1], [0.0, 1.0], [False, True], [" 0", "1.0"]]


@pytest.mark.parametrize("zero_one", ZERO_ONE, ids=str)
@pytest.mark.parametrize("typed", TYPED, ids=str)
def test_labels_and_levels_are_equal_whatever_file_they_come_from(
    csv: Any, parquet: Any, zero_one: list[Any], typed: list[Any]
) -> None:
    """Numbers in a CSV and texts in a Parquet file are two classes, two levels, the same rows."""
    files = (
        csv("a.csv", {"x": X, "c": (zero_one * 5), "y": (zero_one * 5)}),
        parquet("b.parquet", {"x": X, "c": typed * 5, "y": typed * 5}),
    )
    roster, encoding = shake(config_of(2, features=["x", "c"], categorical=["c"]), *files)
    assert encoding.labels == (0, 1)
    assert encoding.levels == (("c", ("0", "1")),)
    first, second = (encoded(roster, encoding, k, file) for k, file in enumerate(files))
    np.testing.assert_array_equal(first.x[:, 1:], [[1, 0, 0], [0, 1, 0]] * 5)
    np.testing.assert_array_equal(first.x, second.x)
    np.testing.assert_array_equal(first.truth, second.truth)
    assert (first.left_out, second.left_out) == (0, 0)


def test_one_text_at_one_site_makes_texts_of_all_sites_labels(csv: Any) -> None:
    """0 and 1 stay the classes that they are beside a third one; nobody sits out."""
    files = (
        csv("a.csv", {"x": X, "y": ["0", "1"] * 5}),
        csv("b.csv", {"x": X, "y": ["0"] * 5 + ["unknown"] * 5}),
    )
    roster, encoding = shake(config_of(2), *files)
    assert encoding.labels == ("0", "1", "unknown")
    assert [node.num_examples for node in roster] == [10, 10]
    np.testing.assert_allclose(roster.label_shares, [10 / 20, 5 / 20, 5 / 20])
    assert encoded(roster, encoding, 0, files[0]).truth.tolist() == [0, 1] * 5


def test_spellings_that_differ_in_case_or_blanks_are_told_and_kept_apart(
    csv: Any, lines: list[str]
) -> None:
    """Nobody knows whether they mean the same: both spellings are in one warning a column."""
    files = (
        csv("a.csv", {"x": X, "c": ["Red"] * 10, "y": ["sick", "well"] * 5}),
        csv("b.csv", {"x": X, "c": ["red"] * 10, "y": ["Sick ", "well"] * 5}),
    )
    _, encoding = shake(config_of(2), *files)
    assert encoding.labels == ("Sick ", "sick", "well")
    assert "y: 'Sick ' and 'sick' are different values" in lines
    assert "c: 'Red' and 'red' are different values" in lines


def test_a_leading_zero_makes_a_code_at_every_site_and_in_predict(
    csv: Any, parquet: Any, lines: list[str]
) -> None:
    """01234 is no 1234; whoever reads codes as numbers is told when the model predicts."""
    codes = ["01234", "20000"] * 5
    files = (
        csv("a.csv", {"x": X, "c": codes, "y": [0, 1] * 5}),
        parquet("b.parquet", {"x": X, "c": codes, "y": [0, 1] * 5}),
    )
    _, encoding = shake(config_of(2), *files)
    assert encoding.levels == (("c", ("01234", "20000")),)
    raw = pd.DataFrame({"x": [0.0, 0.0], "c": ["01234", "20000"]})
    one_hot = encoding.features(features_from_frame(raw, encoding))[:, 1:]
    assert one_hot.tolist() == [[1, 0, 0], [0, 1, 0]]
    lines.clear()
    numbers = raw.assign(c=raw["c"].astype(int))
    one_hot = encoding.features(features_from_frame(numbers, encoding))[:, 1:]
    assert one_hot.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert lines == [
        "c: '01234' and '1234' are different values; a cell that is no level counts as OTHER"
    ]


def test_integers_that_a_missing_cell_turned_into_floats_stay_what_they_are(
    csv: Any, parquet: Any
) -> None:
    """Parquet has 1.0 where a cell is missing, CSV has 1."""
    files = (
        csv("a.csv", {"x": X, "c": ["1", "2"] * 4 + ["", "1"], "y": [0, 1] * 5}),
        parquet("b.parquet", {"x": X, "c": [1.0, 2.0] * 4 + [None, 1.0], "y": [0, 1] * 5}),
    )
    options = {"features": ["x", "c"], "categorical": ["c"], "missing": "mean"}
    config = config_of(2, **options, min_level_rows=4)
    tables = [own_partition(config, 0, str(file)).train for file in files]
    assert tables[0].categorical.tolist() == tables[1].categorical.tolist()
    assert shake(config, *files)[1].levels == (("c", ("1", "2")),)


def test_who_has_which_name_is_recorded(csv: Any) -> None:
    """By class and by level, the partitions that told of it."""
    files = (
        csv("a.csv", {"x": X, "c": ["u"] * 5 + ["v"] * 5, "y": [0, 1] * 5}),
        csv("b.csv", {"x": X, "c": ["v"] * 10, "y": [1, 2] * 5}),
    )
    roster, _ = shake(config_of(2), *files)
    assert roster.names == {
        "classes": {"0": [0], "1": [0, 1], "2": [1]},
        "levels": {"c": {"u": [0], "v": [0, 1]}},
    }


# ---------------------------------------------------------------------------- columns by name
def test_columns_have_names_and_no_order(csv: Any, lines: list[str]) -> None:
    """Each site has its own order, one has a column more: both take part, it is named."""
    y = [0, 1] * 5
    files = (
        csv("a.csv", {"x": X, "z": X[::-1], "y": y}),
        csv("b.csv", {"y": y, "note": ["", *X[1:]], "z": X[::-1], "x": X}),
    )
    roster, encoding = shake(config_of(2), *files)
    assert encoding.columns == ("x", "z")
    assert [node.partition for node in roster] == [0, 1]
    first, second = (encoded(roster, encoding, k, file) for k, file in enumerate(files))
    np.testing.assert_array_equal(first.x, second.x)
    (said,) = [line for line in lines if "columns differ" in line]
    assert "left out: note (at 1 of 2 nodes)" in said
    assert "dataset.features" in said


def test_a_column_that_two_sites_spell_differently_is_named_once(
    csv: Any, lines: list[str]
) -> None:
    """The difference is shown, and that it may be none."""
    y = [0, 1] * 5
    shake(
        config_of(2),
        csv("a.csv", {"x": X, "Age": X, "y": y}),
        csv("b.csv", {"x": X, "age": X, "y": y}),
    )
    (said,) = [line for line in lines if "columns differ" in line]
    assert "'Age' and 'age' are different names" in said


def test_a_column_of_numbers_here_and_texts_there_is_left_out_and_named(
    csv: Any, lines: list[str]
) -> None:
    """No site is lost; named as categorical it is one of texts everywhere."""
    y = [0, 1] * 5
    files = (
        csv("a.csv", {"x": X, "c": [1, 2] * 5, "y": y}),
        csv("b.csv", {"x": X, "c": ["a", "b"] * 5, "y": y}),
    )
    roster, encoding = shake(config_of(2), *files)
    assert (len(roster), encoding.columns) == (2, ("x",))
    assert any("c (numbers at partition 0, texts at 1)" in line for line in lines)
    _, encoding = shake(config_of(2, categorical=["c"]), *files)
    assert encoding.levels == (("c", ("1", "2", "a", "b")),)


def test_a_node_with_a_table_of_something_else_sits_out(csv: Any, lines: list[str]) -> None:
    """Else it would leave the others without a column."""
    y = [0, 1] * 5
    good = [csv(f"{k}.csv", {"x": X, "z": X, "y": y}) for k in range(2)]
    roster, encoding = shake(config_of(3), *good, csv("odd.csv", {"q": X, "y": y}))
    assert ([node.partition for node in roster], encoding.columns) == ([0, 1], ("x", "z"))
    assert "partition 2 sits out: columns: it lacks x, z and has q" in lines


def test_an_index_of_a_parquet_file_is_columns(tmp_path: Path) -> None:
    """One with a name; without one it is left out, as from CSV."""
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1]})
    frame.set_index("x").to_parquet(tmp_path / "named.parquet")
    assert list(read_frame(tmp_path / "named.parquet").columns) == ["x", "y"]
    frame.set_index(pd.Index(["p", "q"])).to_parquet(tmp_path / "unnamed.parquet")
    assert list(read_frame(tmp_path / "unnamed.parquet").columns) == ["x", "y"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_told_from_the_body(tmp_path: Path, separator: str) -> None:
    """A header with another sign in a name does not mislead."""
    path = tmp_path / "own.csv"
    path.write_text(f'"x, ;|"{separator}y\n1{separator}a\n2{separator}b\n')
    frame = read_frame(path)
    assert list(frame.columns) == ["x, ;|", "y"]
    assert frame["y"].tolist() == ["a", "b"]


def test_one_column_is_no_table_of_semicolons(tmp_path: Path) -> None:
    """A sign in the header alone separates nothing."""
    path = tmp_path / "own.csv"
    path.write_text("price; net\n1\n2\n")
    assert list(read_frame(path).columns) == ["price; net"]


@pytest.mark.parametrize("name", ["t.tsv", "t.csv.gz", "t.tsv.gz", "t.csv"])
def test_tsv_and_gz_are_read(tmp_path: Path, name: str) -> None:
    """By the end of the name; the cells are the same."""
    text = ("x\ty\n1\t0\n2\t1\n" if "tsv" in name else "x,y\n1,0\n2,1\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert read_frame(tmp_path / name).to_dict("list") == {"x": [1, 2], "y": [0, 1]}


def test_a_broken_gz_is_refused_in_one_line(tmp_path: Path) -> None:
    """Whether it is none or ends too early."""
    whole = gzip.compress(b"x,y\n" + b"1,2\n" * 1000)
    for content in (b"no gzip", whole[:-10]):
        (tmp_path / "t.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match="it cannot be read"):
            read_frame(tmp_path / "t.csv.gz")


# ---------------------------------------------------------------------------- spelling
def test_decimal_commas_and_thousands_are_read_as_the_options_say(csv: Any, parquet: Any) -> None:
    """As numbers, levels and labels; a site with plain numbers has the same values."""
    cells = {
        "price": ["1.234,5", "2,25", "-3", "1.000.000", "0,5"] * 2,
        "c": ["1,50", "2"] * 5,
        "y": ["1.000", "2"] * 5,
    }
    numbers = {"price": [1234.5, 2.25, -3, 1e6, 0.5] * 2, "c": [1.5, 2] * 5, "y": [1000, 2] * 5}
    files = csv("a.csv", cells, ";"), parquet("b.parquet", numbers)
    config = config_of(2, decimal="comma", thousands="dot", categorical=["c"])
    roster, encoding = shake(config, *files)
    assert (encoding.labels, encoding.levels) == ((2, 1000), (("c", ("1.5", "2")),))
    first, second = (encoded(roster, encoding, k, file) for k, file in enumerate(files))
    np.testing.assert_array_equal(first.x, second.x)
    raw = pd.read_csv(files[0], sep=";", dtype=str)
    np.testing.assert_array_equal(encoding.features(features_from_frame(raw, encoding)), first.x)


@pytest.mark.parametrize(
    ("cells", "cure"),
    [
        (["1,5", "2,25"], "dataset.decimal=comma"),
        (["1,234", "2,345"], "dataset.decimal=comma or dataset.thousands=comma"),
        (["1,234", "12,345,678"], "dataset.thousands=comma"),
        (["1'234", "2'345"], "dataset.thousands=apostrophe"),
        (["1 234", "2 345"], "dataset.thousands=space"),
    ],
)
def test_numbers_spelt_otherwise_are_refused_with_the_option_that_reads_them(
    csv: Any, cells: list[str], cure: str
) -> None:
    """Neither taken for texts nor for other numbers."""
    path = csv("a.csv", {"x": cells * 5, "y": [0, 1] * 5}, ";")
    config = config_of(1, path=str(path), categorical=[])
    with pytest.raises(DataError, match=f"set {cure}"):
        load(config.dataset, 0)
    option, _, word = cure.split()[0].partition("=")
    told = config_of(1, path=str(path), categorical=[], **{option.split(".")[1]: word})
    assert len(load(told.dataset, 0)) == 10


def test_wrong_signs_are_refused(csv: Any) -> None:
    """Before any work, with what is allowed."""
    with pytest.raises(ConfigError, match=r"dataset.separator=xx: one of comma, semicolon, tab"):
        config_of(1, separator="xx")
    with pytest.raises(ConfigError, match=r"dataset.thousands=comma: another sign than dataset.d"):
        config_of(1, decimal=",", thousands="comma")


# ---------------------------------------------------------------------------- missing
@pytest.mark.parametrize("word", [*MISSING_WORDS, "", " ", " ? "])
def test_words_for_a_missing_cell_are_the_same_in_every_file(
    csv: Any, parquet: Any, word: str
) -> None:
    """Among numbers and among texts, in CSV and in Parquet."""
    numbers, names = [word, "1.5", "2"], ["red", "blue", word]
    for file in (
        csv("a.csv", {"n": numbers, "c": names}),
        parquet("b.parquet", {"n": numbers, "c": names}),
    ):
        frame = read_frame(file)
        np.testing.assert_array_equal(frame["n"], [np.nan, 1.5, 2])
        assert frame["c"].isna().tolist() == [False, False, True]
        assert spelt(frame)["n"] == {word.strip(): 1}


def test_further_words_and_numbers_are_missing_where_the_config_says_so(
    csv: Any, parquet: Any
) -> None:
    """-99 is missing as -99, -99.0 and as a text."""
    for file in (
        csv("a.csv", {"n": ["-99", "1", "2"], "c": ["unknown", "a", "b"]}),
        parquet("b.parquet", {"n": [-99.0, 1.0, 2.0], "c": ["unknown", "a", "b"]}),
        parquet("c.parquet", {"n": ["-99.0", "1", "2"], "c": ["unknown", "a", "b"]}),
    ):
        frame = read_frame(file, spelling=Spelling((*MISSING_WORDS, "unknown", "-99")))
        np.testing.assert_array_equal(frame["n"], [np.nan, 1, 2])
        assert frame["c"].isna().tolist() == [True, False, False]


def test_what_was_read_as_missing_is_said(csv: Any, lines: list[str]) -> None:
    """The words, how often, and where."""
    path = csv(
        "own.csv",
        {
            "x": ["NA", "?", *X[2:]],
            "z": ["", *X[1:]],
            "c": ["n/a", *"ab" * 4, "a"],
            "y": [0, 1] * 5,
        },
    )
    load(config_of(1, path=str(path), missing="mean", categorical=["c"]).dataset, 0)
    assert lines[0] == (
        "own.csv: read as missing: blank (1 cell of z), '?' (1 cell of x), 'NA' (1 cell of x), "
        "'n/a' (1 cell of c)"
    )


def test_a_class_that_reads_as_missing_is_not_advised_to_be_dropped(
    csv: Any, lines: list[str]
) -> None:
    """It says how to keep it, and named in ``dataset.classes`` it is a class."""
    path = csv("own.csv", {"x": X, "k": ["NA", "EU"] * 5, "y": ["None", "some"] * 5})
    with pytest.raises(DataError) as caught:
        load(config_of(1, path=str(path), features=["x"]).dataset, 0)
    assert str(caught.value) == (
        "y=missing ('None') in 5 of 10 rows, first in row 1: a value in each row; if a word that "
        "is read as missing is a class, name all classes in dataset.classes"
    )
    named = config_of(1, path=str(path), features=["x"], classes=["None", "some"])
    assert load(named.dataset, 0).target.tolist() == ["None", "some"] * 5
    with pytest.raises(DataError, match="is a client, give it another name"):
        load(named.dataset, 0, "k")


def test_a_level_that_the_config_names_is_no_missing_cell(csv: Any) -> None:
    """Neither in the file nor when the model predicts."""
    path = csv("own.csv", {"c": ["None", "some"] * 5, "y": [0, 1] * 5})
    _, encoding = shake(config_of(1, levels={"c": ["None", "some"]}), path)
    raw = pd.DataFrame({"c": ["None", "some", "NA"]})
    one_hot = encoding.features(features_from_frame(raw, encoding))
    assert one_hot.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("how", ["absent", "blank", "?"])
@pytest.mark.parametrize("features", [None, ["x", "z", "c"]])
def test_a_column_that_a_site_never_measured_is_missing_there(
    csv: Any, lines: list[str], how: str, features: list[str] | None
) -> None:
    """Under ``missing=mean`` the federation's mean stands in for it, and no site is lost."""
    y = [0, 1] * 5
    full = {"x": X, "z": [float(k) for k in range(10)], "c": ["u", "v"] * 5, "y": y}
    word = "" if how == "blank" else how
    poor = {"x": X, "y": y} | ({} if how == "absent" else {"z": [word] * 10, "c": [word] * 10})
    files = csv("a.csv", full), csv("b.csv", poor), csv("c.csv", full)
    config = config_of(3, missing="mean", features=features, categorical="auto")
    roster, encoding = shake(config, *files)
    assert [node.num_examples for node in roster] == [10, 10, 10]
    assert encoding.feature_names == ("x", "z", "c=u", "c=v", "c=OTHER")
    assert encoding.fill[1] == 4.5
    np.testing.assert_array_equal(encoded(roster, encoding, 1, files[1]).x[:, 1:], 0)


def test_the_runtimes_agree_on_what_a_site_never_measured(csv: Any) -> None:
    """One file with a key, dealt, gives the encoding of one file a site."""
    sites = [
        {"x": X, "z": ["" if k == 1 else v for v in X], "y": [0, 1] * 5, "k": [k] * 10}
        for k in range(3)
    ]
    whole = {name: [v for site in sites for v in site[name]] for name in sites[0]}
    path = csv("all.csv", whole)
    dataset = {"path": str(path), "missing": "mean", "test_fraction": 0}
    config = config_of(3, **dataset)
    natural = {"partitioner": {"name": "natural", "key": "k"}}
    dealt = from_dict(to_dict(config) | natural)
    files = [csv(f"{k}.csv", site) for k, site in enumerate(sites)]
    with InProcessGrid(client_app, 3) as grid:
        roster, one = shake_hands(grid, grid.get_node_ids(), dealt, 60.0)
    many_roster, many = shake(dealt, *files)
    assert one == many
    assert [n.num_examples for n in roster] == [n.num_examples for n in many_roster]


def test_without_a_mean_a_column_that_a_site_lacks_is_left_out_and_the_site_stays(
    csv: Any, lines: list[str]
) -> None:
    """A column is the smaller loss; the warning says how to keep it."""
    y = [0, 1] * 5
    files = csv("a.csv", {"x": X, "z": X, "y": y}), csv("b.csv", {"x": X, "y": y})
    roster, encoding = shake(config_of(2), *files)
    assert (len(roster), encoding.columns) == (2, ("x",))
    assert any("z (at 1 of 2 nodes)" in line and "missing=mean" in line for line in lines)


# ---------------------------------------------------------------------------- categorical=auto
def test_texts_become_categories_by_themselves(csv: Any, lines: list[str]) -> None:
    """Those of few levels; names, free text, dates, identifiers and empty columns are named."""
    n = 40
    path = csv(
        "own.csv",
        {
            "patient_id": [1000 + 7 * k for k in range(n)],
            "name": [f"n{k}" for k in range(n)],
            "born": [f"19{k + 10}-01-02" for k in range(n)],
            "empty": [""] * n,
            "x": [k % 7 + 0.5 for k in range(n)],
            "colour": ["red", "blue"] * (n // 2),
            "town": ["a"] * 30 + [f"t{k}" for k in range(10)],
            "y": [0, 1] * (n // 2),
        },
    )
    table = load(config_of(1, path=str(path)).dataset, 0)
    assert table.columns == ("x", "colour")
    assert table.categorical_names == ("colour",)
    assert lines == [
        "own.csv: left out as features: patient_id (an identifier), name (texts of fewer than 5 "
        "rows each), born (dates), empty (no value), town (more than a tenth of the rows have "
        "texts of fewer than 5 rows); dataset.features names those to take"
    ]
    roster, encoding = shake(config_of(2), path, path)
    assert (len(roster), encoding.feature_names) == (
        2,
        ("x", "colour=blue", "colour=red", "colour=OTHER"),
    )


def test_more_than_twenty_levels_of_all_nodes_are_too_many(csv: Any, lines: list[str]) -> None:
    """Each node has eleven; what leaves a node has company."""
    files = [
        csv(
            f"{k}.csv",
            {
                "x": list(range(55)),
                "c": [f"{k}{j % 11:02d}x" for j in range(55)],
                "y": ([0, 1] * 28)[:55],
            },
        )
        for k in range(2)
    ]
    _, encoding = shake(config_of(2), *files)
    assert encoding.columns == ("x",)
    assert any("c (22 levels, more than 20)" in line for line in lines)


def test_a_column_of_which_a_node_knows_too_few_texts_is_left_out(
    csv: Any, lines: list[str]
) -> None:
    """The node says yes or no, and not which: 2 of 12 rows are too many, 1 of 12 is not."""

    def cells(rare: int) -> dict[str, list[Any]]:
        return {"x": list(range(12)), "c": ["u"] * (12 - rare) + ["RARE"] * rare, "y": [0, 1] * 6}

    good = csv("a.csv", cells(0))
    _, encoding = shake(config_of(2), good, csv("b.csv", cells(2)))
    assert encoding.columns == ("x",)
    assert any("c (more than a tenth of some node's texts" in line for line in lines)
    _, encoding = shake(config_of(2), good, csv("c.csv", cells(1)))
    assert encoding.columns == ("x", "c")
    own = [line for line in lines if "RARE" in line]  # which stays in the node's log
    assert all(line.startswith("partition 1: ") for line in own)


def test_no_level_without_company_leaves_a_node(csv: Any) -> None:
    """Neither in the draft, nor in what follows, nor in an error."""
    told: list[str] = []

    class Spies(InProcessGrid):
        def send_and_receive(self, *args: Any, **kwargs: Any) -> Any:
            for message in (found := list(super().send_and_receive(*args, **kwargs))):
                told.append(str(message.content.config_records[protocol.CONFIG]["description"]))
            return found

    path = csv(
        "a.csv", {"x": X, "c": ["SECRET"] * 4 + ["u"] * 6, "y": ["HIDDEN"] + ["b", "d", "d"] * 3}
    )
    nodes = {k: {"data": str(path)} for k in range(2)}
    config = config_of(2, min_level_rows=5, classes=["b", "d"], levels=None)
    with Spies(client_app, 2, node_configs=nodes) as grid:
        shake_hands(grid, grid.get_node_ids(), config, 60.0)
    assert len(told) == 6
    assert not any("SECRET" in text or "HIDDEN" in text for text in told)


def test_excluded_columns_are_no_features(csv: Any) -> None:
    """By name, in one file and at sites; a name that no file has is refused."""
    path = csv("a.csv", {"x": X, "z": X, "y": [0, 1] * 5})
    assert load(config_of(1, path=str(path), exclude=["z"]).dataset, 0).columns == ("x",)
    assert shake(config_of(1, exclude=["z", "elsewhere"]), path)[1].columns == ("x",)
    with pytest.raises(DataError, match=r"dataset.exclude=zz: no such column; did you mean 'z'"):
        load(config_of(1, path=str(path), exclude=["zz"]).dataset, 0)
    with pytest.raises(ConfigError, match=r"dataset.exclude=z: a column that dataset.features"):
        config_of(1, exclude=["z"], features=["z"])


def test_without_a_column_in_common_the_run_ends_with_a_sentence(csv: Any) -> None:
    """It names the columns."""
    path = csv("a.csv", {"name": [f"n{k}" for k in range(10)], "y": [0, 1] * 5})
    with pytest.raises(FederationError, match="no column is left to predict from; left out: name"):
        shake(config_of(2), path, path)


# ---------------------------------------------------------------------------- columns alone
def test_a_tidied_column_is_one_of_numbers_where_all_its_values_are() -> None:
    """Whatever they are written as; one code or text keeps it a column of texts."""

    def kind(*cells: Any) -> str:
        return str(tidied(pd.Series(list(cells), dtype=object))[0].dtype)

    assert kind("1", "2") == "int64"
    assert kind("1", "?", "2.5") == "float64"
    assert kind("true", "NA") == "float64"
    assert kind("01", "2") == kind("1", "x") == kind("1E5", "2") == "object"
