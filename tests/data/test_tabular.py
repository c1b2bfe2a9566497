"""A table of the user's own: what it becomes, what is refused, and in which words."""

from __future__ import annotations

import datetime
import gzip
import logging
import re
import shutil
import subprocess
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.data.columns import cell_text, is_text, numbers, plain, texts
from fl_app.data.file_report import report
from fl_app.data.files import read_frame
from fl_app.data.reading import Reading
from fl_app.data.stratification import classes_of
from fl_app.data.tabular import load_tabular
from fl_app.errors import ConfigError, DataError, InputError

PATIENTS = """age,chest pain,smoker,hospital,diagnosis
34,typical,True,B,yes
51,"pain, dull",False,A,no
,typical,True,A,no
40,,False,B,yes
33,typical,True,C,no
"""
CLASSES = {"target": "y", "task": "classification"}
NUMBER = {"target": "y", "task": "regression"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a file and returns its path."""

    def write(text: str | bytes, name: str = "own.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path: Path, **options: Any) -> str:
    """Return the message of the one InputError that loading gives, without the folder."""
    with pytest.raises(InputError) as caught:
        load_tabular(path, **options)
    # Of a long path the message shows the end.
    return re.sub(r"=[^=:]*/", "=", str(caught.value), count=1)


# ---------------------------------------------------------------------------- what it becomes
def test_a_file_with_spaces_categories_and_texts_becomes_a_table(write):
    """Names stay as they are; numbers, true and false, levels and labels get their types."""
    table = load_tabular(
        write(PATIENTS),
        "diagnosis",
        "classification",
        categorical=["chest pain"],
        missing="mean",
        key="hospital",
    )
    assert table.columns == ("age", "chest pain", "smoker")
    assert table.numeric_names == ("age", "smoker")
    np.testing.assert_array_equal(table.numeric, [[34, 1], [51, 0], [np.nan, 1], [40, 0], [33, 1]])
    assert table.categorical[:, 0].tolist() == ["typical", "pain, dull", "typical", None, "typical"]
    assert table.target.tolist() == ["yes", "no", "no", "yes", "no"]
    assert table.target_names == ("diagnosis",)
    assert table.owners.tolist() == [1, 0, 0, 1, 2]


def test_the_key_is_a_feature_only_where_features_name_it(write):
    """By default all columns but target and key are features."""
    path = write("a,k,y\n1,3,0\n2,4,1\n")
    assert load_tabular(path, **CLASSES).columns == ("a", "k")
    assert load_tabular(path, **CLASSES, key="k").columns == ("a",)
    named = load_tabular(path, **CLASSES, key="k", features=["k", "a"])
    assert named.columns == ("k", "a")
    assert named.numeric.tolist() == [[3, 1], [4, 2]]
    assert named.owners.tolist() == [0, 1]


def test_keys_are_sorted_as_numbers(write):
    """Client 0 has the smallest key: 2 comes before 10."""
    path = write("a,k,y\n1,10,0\n2,2,1\n3,10,1\n")
    assert load_tabular(path, **CLASSES, key="k").owners.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["1.0", "0.0", "1.0"], [1, 0, 1]),
        (["3", "1", "2"], [3, 1, 2]),
        (["True", "False", "True"], [1, 0, 1]),
        (["b", "a", "b"], ["b", "a", "b"]),
        (["1", "a", "1"], ["1", "a", "1"]),
    ],
)
def test_labels_are_whole_numbers_or_texts(write, cells, labels):
    """Labels equal the raw cells; numbers that are whole and truth values come as int."""
    table = load_tabular(write("a,y\n" + "".join(f"0,{c}\n" for c in cells)), **CLASSES)
    assert table.target.tolist() == labels
    assert {type(label) for label in table.target.tolist()} == {type(labels[0])}


def test_several_targets_are_a_regression(write):
    """T targets come as columns of shape (n, T) in the order given."""
    table = load_tabular(write("a,u,v\n1,2,3\n4,5,6\n"), ["v", "u"], "regression")
    assert table.target.tolist() == [[3, 2], [6, 5]]
    assert table.target_names == ("v", "u")
    assert table.columns == ("a",)


def test_drop_leaves_out_rows_and_says_how_many(write, caplog):
    """Rows that miss a feature are gone, from targets and owners too; one line says so."""
    with caplog.at_level(logging.WARNING, "fl_app"):
        table = load_tabular(
            write(PATIENTS),
            "diagnosis",
            "classification",
            categorical=["chest pain"],
            missing="drop",
            key="hospital",
        )
    assert table.numeric[:, 0].tolist() == [34, 51, 33]
    assert table.target.tolist() == ["yes", "no", "no"]
    assert table.owners.tolist() == [1, 0, 2]
    assert caplog.messages == ["own.csv: dataset.missing=drop leaves out 2 of 5 rows"]


def test_drop_leaves_out_rows_without_target_or_key(write):
    """Only where rows are dropped may a target or a key be missing; clients have no gaps."""
    path = write("a,k,y\n1,p,0\n2,q,\n3,,1\n4,r,1\n")
    table = load_tabular(path, **CLASSES, key="k", missing="drop")
    assert table.numeric[:, 0].tolist() == [1, 4]
    assert table.owners.tolist() == [0, 1]


def test_a_byte_order_mark_belongs_to_no_name(write):
    """A CSV that a spreadsheet saved as UTF-8 reads as any other."""
    assert load_tabular(write("\ufeffa,y\n1,0\n2,1\n"), **CLASSES).columns == ("a",)


def test_a_column_without_a_name_is_left_out_with_a_warning(write, caplog):
    """Row numbers that pandas wrote are no feature."""
    with caplog.at_level(logging.WARNING, "fl_app"):
        table = load_tabular(write(",a,y\n0,1,0\n1,2,1\n"), **CLASSES)
    assert table.columns == ("a",)
    assert caplog.messages == ["own.csv: left out 1 column(s) without a name"]


def test_a_category_with_a_level_a_row_is_worth_a_warning(write, caplog):
    """An identifier is usable and useless."""
    with caplog.at_level(logging.WARNING, "fl_app"):
        load_tabular(write("a,name,y\n1,p,0\n2,q,1\n"), **CLASSES, categorical=["name"])
    assert caplog.messages == [
        "own.csv: name has another level in each of its 2 rows: is it an identifier? "
        "dataset.exclude can leave it out"
    ]


# ---------------------------------------------------------------------------- CSV and Parquet
WORDS = st.sampled_from(["red", "dark blue", "é", "a,b", 'say "x"', "x\ny", "No", "--"])
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=64)


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Draw a frame with a column of every kind, some cells missing."""
    n = draw(st.integers(2, 12))

    def column(cells: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(cells, min_size=n, max_size=n))

    return pd.DataFrame(
        {
            "a number": [0.5, *column(st.none() | FLOATS)[1:]],
            "whole": pd.array([1, *column(st.none() | st.integers(-9, 9))[1:]], dtype="Int64"),
            "flag": column(st.booleans()),
            "word": pd.array(["red", *column(st.none() | WORDS)[1:]], dtype="str"),
            "code": pd.array([7, *column(st.none() | st.integers(0, 3))[1:]], dtype="Int64"),
            "key": column(st.integers(0, 3)),
            "label": pd.array(["red", "No", *column(WORDS)[2:]], dtype="str"),
        }
    )


@given(frames())
def test_csv_and_parquet_give_equal_tables(tmp_path_factory, frame):
    """A table is what its cells say, bit for bit, whichever file holds them."""
    folder = tmp_path_factory.mktemp("files")
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_parquet(folder / "t.parquet")
    options = {"categorical": ["word", "code"], "missing": "mean", "key": "key"}
    csv, parquet = (
        load_tabular(folder / name, "label", "classification", **options)
        for name in ("t.csv", "t.parquet")
    )
    assert csv.sha256 == parquet.sha256
    assert np.array_equal(csv.numeric, parquet.numeric, equal_nan=True)
    assert csv.categorical.tolist() == parquet.categorical.tolist()
    expected = frame["a number"].to_numpy(dtype=float, na_value=np.nan)
    assert np.array_equal(csv.numeric[:, 0], expected, equal_nan=True)


def test_rows_that_a_user_reads_with_pandas_have_the_same_cells(write):
    """Levels and numbers of a file are those of ``pandas.read_csv`` with its defaults."""
    path = write("n,c,y\n1.5,1,0\n,2,1\n2,,1\n")
    table = load_tabular(path, **CLASSES, categorical=["c"], missing="mean")
    frame = pd.read_csv(path)
    assert table.categorical[:, 0].tolist() == texts(frame["c"]).tolist() == ["1", "2", None]
    assert np.array_equal(table.numeric[:, 0], numbers(frame["n"]), equal_nan=True)


def test_cells_of_rarer_types_keep_their_meaning():
    """Dictionaries, decimals and texts that spell numbers are read; a date is no number."""
    assert texts(pd.Series(["b", None, "a"], dtype="category")).tolist() == ["b", None, "a"]
    assert texts(pd.Series([True, None], dtype="boolean")).tolist() == ["1", None]
    np.testing.assert_array_equal(numbers(pd.Series([Decimal("1.5"), None])), [1.5, np.nan])
    np.testing.assert_array_equal(numbers(pd.Series(["2", "", None])), [2, np.nan, np.nan])
    assert plain(pd.Series([Decimal("2"), 1.5, True, "x"])).tolist() == [2, 1.5, 1, "x"]
    assert plain(pd.Series([2**63], dtype="uint64")).tolist() == [str(2**63)]
    with pytest.raises(ValueError, match="in row 1"):
        numbers(pd.Series([datetime.datetime(2020, 1, 1)]))
    assert cell_text(Decimal("1.0")) == "1"
    assert cell_text("") is None
    assert is_text(pd.Series(["a", "1", "b"]))
    assert not is_text(pd.Series(["a", "1", "2"]))


# ---------------------------------------------------------------------------- files
FILES = {
    "empty.csv": (
        "",
        "it is empty (0 bytes); give one CSV (.csv, .tsv, also .gz) or Parquet (.parquet) file",
    ),
    "zero.parquet": (
        "",
        "it is empty (0 bytes); give one CSV (.csv, .tsv, also .gz) or Parquet (.parquet) file",
    ),
    "blank.csv": ("\n\n", "it has no header; the first line must name the columns"),
    "header.csv": ("a,y\n", "it has a header but no rows; give at least one row"),
    "twice.csv": ("a,b,a\n1,2,3\n", "two columns are named 'a'; give each its own name"),
    "wide.csv": ("a,y\n1,2,3\n", "row 1 has 3 cells, the header 2; give each column one name"),
    "ragged.csv": (
        "a,y\n1,2\n1,2,3\n",
        "line 3 has 3 cells, the header 2; quote cells that hold commas",
    ),
    "quote.csv": ('a,y\n"1,2\n', "a quote opened in row 1 is never closed"),
    "latin.csv": (
        "a,y\né,1\n".encode("latin-1"),
        "it is not UTF-8 text (byte 0xe9 in line 2); save it as UTF-8, for example with: "
        "iconv -f WINDOWS-1252 -t UTF-8 latin.csv > utf8.csv",
    ),
    "late.csv": (
        b"a,y\n" + b"1,2\n" * 10_000 + b"\xe9,1\n",
        "it is not UTF-8 text (byte 0xe9 in line 10002); save it as UTF-8, for example with: "
        "iconv -f WINDOWS-1252 -t UTF-8 late.csv > utf8.csv",
    ),
    "utf16.csv": (
        "a,y\n1,2\n".encode("utf-16"),
        "it is not UTF-8 text (byte 0xff in line 1); save it as UTF-8, for example with: "
        "iconv -f UTF-16 -t UTF-8 utf16.csv > utf8.csv",
    ),
    "no.parquet": (
        "no parquet at all",
        "it is no Parquet file (Parquet magic bytes not found in footer)",
    ),
    "own.xlsx": (
        "a",
        "its name ends in .xlsx; give one CSV (.csv, .tsv, also .gz) or Parquet (.parquet) file",
    ),
    "own": (
        "a",
        "its name ends in nothing; give one CSV (.csv, .tsv, also .gz) or Parquet (.parquet) file",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(write, name):
    """The message names the file, what is wrong with it, and what to do."""
    text, why = FILES[name]
    path = write(text, name)
    assert refusal(path, **CLASSES) == f"dataset.path={name}: {why}"
    checked = report(path)
    assert not checked.usable
    assert checked.problems[0].endswith(why)


@pytest.mark.skipif(shutil.which("iconv") is None, reason="no iconv here")
@pytest.mark.parametrize("name", ["its sales.csv", "t.csv.gz", "t.tsv"])
@pytest.mark.parametrize("code", ["cp1252", "latin-1", "utf-16"])
def test_the_command_that_converts_a_file_works(tmp_path, name, code):
    """What it writes is a file that says the same."""
    content = "Stück,y\nä,1\nß,2\n".replace(",", "\t" if "tsv" in name else ",").encode(code)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    command = refusal(path, **CLASSES).partition("for example with: ")[2]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    frame = read_frame(tmp_path / f"utf8{'.tsv' if 'tsv' in name else '.csv'}")
    assert frame.to_dict("list") == {"Stück": ["ä", "ß"], "y": [1, 2]}


def test_a_path_to_nothing_and_a_directory_are_refused(tmp_path):
    """Both are found before anything is read."""
    wanted = "give one CSV (.csv, .tsv, also .gz) or Parquet (.parquet) file"
    assert refusal(tmp_path / "no.csv", **CLASSES) == (
        f"dataset.path=no.csv: there is no such file; {wanted}"
    )
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    assert refusal(folder, **CLASSES) == f"dataset.path=folder.csv: it is a directory; {wanted}"


def test_a_long_path_is_shown_by_its_end(tmp_path):
    """The end of a path tells files apart."""
    path = tmp_path / ("x" * 100) / "own.csv"
    with pytest.raises(DataError) as caught:
        read_frame(path)
    assert str(caught.value).startswith("dataset.path=...xxx")
    assert "xxx/own.csv: there is no such file" in str(caught.value)


def test_parquet_columns_of_one_name_are_refused(tmp_path):
    """Parquet allows what pandas cannot read."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table([[1], [2]], names=["a", "a"])
    parquet.write_table(table, tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet", **CLASSES) == (
        "dataset.path=t.parquet: two columns are named 'a'; give each its own name"
    )


# ---------------------------------------------------------------------------- names of columns
NAMES = "price,size,colour\n1,2,red\n"
OPTIONS = [
    (
        {"target": "prize"},
        "dataset.target=prize: no such column; did you mean 'price'? "
        "the file has price, size, colour",
    ),
    (
        {"target": "weight"},
        "dataset.target=weight: no such column; the file has price, size, colour",
    ),
    (
        {"features": ["size", "hue"]},
        "dataset.features=hue: no such column; the file has price, size, colour",
    ),
    (
        {"features": ["size", "price"]},
        "dataset.features=price: columns other than the target, as this is",
    ),
    ({"features": ["size", "size"]}, "dataset.features=size: each column once"),
    ({"features": []}, "dataset.features=[]: at least one column beside target and key"),
    (
        {"categorical": ["hue"]},
        "dataset.categorical=hue: no such column; the file has price, size, colour",
    ),
    (
        {"categorical": ["price"]},
        "dataset.categorical=price: features only: size, colour",
    ),
    (
        {"features": ["size"], "categorical": ["colour"]},
        "dataset.categorical=colour: features only: size",
    ),
    (
        {"key": "shop"},
        "partitioner.key=shop: no such column; the file has price, size, colour",
    ),
    (
        {"target": ["price", "size"], "task": "classification"},
        "dataset.target=[price,size]: one column; several only with dataset.task=regression",
    ),
    ({"task": "ranking"}, "dataset.task=ranking: one of regression, classification"),
    ({"missing": "median"}, "dataset.missing=median: one of error, drop, mean"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_a_wrong_name_is_refused_in_one_line(write, options, message):
    """The message names the option, its value and what is allowed."""
    assert refusal(write(NAMES), **{"target": "price", "task": "regression", **options}) == message


def test_a_long_list_of_columns_is_cut(write):
    """At most 20 names are listed, then their number."""
    names = [f"c{j}" for j in range(30)]
    path = write(",".join(names) + "\n" + ",".join("1" * 30) + "\n")
    message = refusal(path, **CLASSES)
    assert "c19, … (30 in all)" in message
    assert "c20" not in message


# ---------------------------------------------------------------------------- cells
DROP = "a value in each row, or dataset.missing=drop to leave such rows out"
CELLS = [
    (
        "a,b,y\n1,2,0\n3,x,1\n",
        CLASSES,
        "b='x' in row 2: numbers; for columns of texts set 'dataset.categorical=[b]'",
    ),
    (
        "a,the town,y,land\n1,Ulm,0,B\n3,Bonn,1,N\n",
        CLASSES,
        "the town='Ulm' in row 1: numbers; "
        "for columns of texts set 'dataset.categorical=[\"the town\",land]'",
    ),
    (
        "a,b,y\n1,2,0\n,2,1\n,2,1\n",
        CLASSES,
        "a=missing in 2 of 3 rows, first in row 2: "
        f"{DROP}, or dataset.missing=mean to fill in the federation's mean",
    ),
    (
        "a,b,y\n1,p,0\n2,,1\n",
        {**CLASSES, "categorical": ["b"]},
        "b=missing in 1 of 2 rows, first in row 2: "
        f"{DROP}, or dataset.missing=mean to count such a cell as no level",
    ),
    (
        "a,y\n1,0\n2,\n",
        CLASSES,
        "y=missing in 1 of 2 rows, first in row 2: "
        f"{DROP}, as mean does too: nothing stands in for a target or a key",
    ),
    (
        "a,k,y\n1,p,0\n2,,1\n",
        {**CLASSES, "key": "k"},
        "k=missing in 1 of 2 rows, first in row 2: "
        f"{DROP}, as mean does too: nothing stands in for a target or a key",
    ),
    (
        "a,b,y\n1,,0\n,2,1\n",
        {**CLASSES, "missing": "drop"},
        "dataset.missing=drop: a row without missing cells; each of the 2 rows has one",
    ),
    *(
        (
            "a,b,y\n1,,0\n2,,1\n",
            {**CLASSES, "features": ["a", "b"], "missing": missing},
            "b=missing in every row: a value in some row",
        )
        for missing in ("error", "drop", "mean")
    ),
    ("a,y\n1,0\ninf,1\n", CLASSES, "a=inf in row 2: finite numbers"),
    ("a,y\n1,0\n2,-inf\n", NUMBER, "y=-inf in row 2: finite numbers"),
    ("a,y\n1,0\n2,inf\n", CLASSES, "y=inf in row 2: finite numbers"),
    (
        "a,y\n1,2\n2,0.5\n",
        CLASSES,
        "y=0.5 in row 2: whole numbers or texts as classes; "
        "to predict a number set dataset.task=regression",
    ),
    (
        "a,y\n" + "".join(f"1,{label}\n" for label in range(101)),
        CLASSES,
        "y=101 different numbers: at most 100 numbers as classes; "
        "to predict a number set dataset.task=regression",
    ),
    (
        "a,y\n1,2\n2,much\n",
        NUMBER,
        "y='much' in row 2: numbers, as dataset.task=regression; "
        "for labels set dataset.task=classification",
    ),
]


ONE_CLASS = [
    ("a,y\n1,5\n2,5\n", CLASSES, "y=5 in every row: at least 2 classes"),
    ("a,y\n1,no\n2,no\n", CLASSES, "y='no' in every row: at least 2 classes"),
    (
        "a,y\n1,5\n,6\n2,5\n",
        {**CLASSES, "missing": "drop"},
        "y=5 in every row: at least 2 classes",
    ),
]


@pytest.mark.parametrize(("text", "options", "message"), [*CELLS, *ONE_CLASS])
def test_a_wrong_cell_is_refused_in_one_line(write, text, options, message):
    """The message names the column, the cell with its row, and what is allowed."""
    assert refusal(write(text), **options) == message


@pytest.mark.parametrize(("text", "options", "message"), ONE_CLASS)
def test_a_nodes_own_file_may_hold_one_class(write, text, options, message):
    """Other nodes have the others: it is loaded, and the report says what it would be alone."""
    path = write(text)
    assert len({*load_tabular(path, **options, reading=Reading(own=True)).target.tolist()}) == 1
    checked = report(write("a,y\n1,5\n2,5\n"), target="y")
    assert checked.usable
    assert "y=5 in every row: at least 2 classes, in the other nodes' files at least" in (
        checked.notes
    )
    assert "try:" not in checked.render()


def test_one_text_makes_texts_of_all_labels(write):
    """A stray cell is then one row of a class of its own."""
    target = load_tabular(write("a,y\n1,0\n2,1\n3,x\n"), **CLASSES).target
    assert target.tolist() == ["0", "1", "x"]
    assert classes_of(target).tolist() == [0, 1, 2]


def test_a_hundred_numbers_may_be_classes(write):
    """The limit itself is allowed."""
    path = write("a,y\n" + "".join(f"1,{label}\n" for label in range(100)))
    assert len(set(load_tabular(path, **CLASSES).target.tolist())) == 100


def test_a_cell_that_is_a_list_is_refused(tmp_path):
    """Parquet can nest what no table of features holds."""
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": [[1, 2], [3]], "y": [0, 1]}).to_parquet(path)
    assert refusal(path, **CLASSES) == "a=a ndarray in row 1: one number or text a cell"


# ---------------------------------------------------------------------------- fl-kit check
def test_a_report_says_what_a_node_would_say(write):
    """Columns, types, roles, missing cells, levels, classes, and what each policy would use."""
    head, *rows = PATIENTS.strip().split("\n")
    path = write("\n".join([head, *rows * 4]))
    checked = report(path, target="diagnosis", key="hospital")
    assert checked.render().splitlines() == [
        f"{path}: 20 rows, 5 columns",
        "column      type           role      missing  values",
        "age         whole number   feature   4        33 to 51",
        "chest pain  text           left out  4        2 different: pain, dull, typical",
        "smoker      true or false  feature   0        2 different: False, True",
        "hospital    text           key       0        3 different: A, B, C",
        "diagnosis   text           target    0        2 different: no, yes",
        "target: diagnosis (classification)",
        "2 classes, rows of each: no: 12, yes: 8",
        "3 sites, rows of each: A: 8, B: 8, C: 4",
        "dataset.missing=error: cannot be used, age=missing in 4 of 20 rows, first in row 3: "
        f"{DROP}, or dataset.missing=mean to fill in the federation's mean",
        "dataset.missing=drop: 16 of 20 rows",
        "dataset.missing=mean: 20 of 20 rows",
        "note: left out as features: chest pain (more than a tenth of the rows have texts of fewer "
        "than 5 rows); dataset.features names those to take",
        "note: class no, yes: may have fewer than dataset.min_level_rows=5 rows at each client, so "
        "dataset.classes below names all classes",
        "usable: yes",
        f"try: fl-app dataset=tabular dataset.path={path} dataset.target=diagnosis "
        "dataset.task=classification dataset.missing=mean 'dataset.classes=[no,yes]' "
        "partitioner=natural partitioner.key=hospital num_clients=3",
    ]


def test_a_report_says_every_problem(write):
    """All columns that cannot be used are named, not only the first."""
    checked = report(write("c,b,y\n1,2,0\n1,inf,1\n-inf,3,0\n4,5,1\n"), target="y")
    assert checked.problems == (
        "c=-inf in row 3: finite numbers",
        "b=inf in row 2: finite numbers",
    )
    assert not checked.usable
    assert checked.render().endswith("usable: no")


@pytest.mark.parametrize(("text", "options", "message"), CELLS)
def test_a_report_and_a_run_agree(write, text, options, message):
    """A file is usable if and only if a run can load it; its problems are the run's."""
    path = write(text)
    given = {name: value for name, value in options.items() if name != "missing"}
    checked = report(path, **{"categorical": (), **given})
    own = "missing in every row" not in message  # which a node can live with beside others

    def loads(missing: str) -> bool:
        try:
            load_tabular(path, **given, missing=missing, reading=Reading(own=own))
        except InputError:
            return False
        return True

    if "numbers; for" in message or "numbers, as" in message:  # a text, which it tells to leave out
        assert checked.usable
        assert re.search("among numbers|left out below", str(checked.notes))
        return
    assert checked.usable == any(loads(missing) for missing in ("error", "drop", "mean"))
    said = [*checked.problems, *(why for _, _, why in checked.policies)]
    assert message in said


@pytest.mark.parametrize(
    ("cells", "task"),
    [
        (["a", "b"], "classification"),
        (["True", "False"], "classification"),
        ([*"0101"], "classification"),
        (["0.5", "1.5"], "regression"),
        ([str(v) for v in range(21)], "regression"),
    ],
)
def test_a_report_guesses_a_task_that_nobody_told(write, cells, task):
    """Texts and few whole numbers are classes; other numbers are to be predicted."""
    checked = report(write("a,y\n" + "".join(f"1,{c}\n" for c in cells)), target="y")
    assert checked.roles.task == task
    assert checked.usable


def test_a_report_without_a_target_judges_columns_alone(write):
    """Levels of few rows make no feature, and there is no command to try."""
    checked = report(write(PATIENTS))
    assert checked.usable
    assert [c.name for c in checked.columns if c.role == "feature"] == ["age", "smoker"]
    assert "try:" not in checked.render()


def test_an_unknown_target_is_a_problem_of_a_report(write):
    """The columns are told all the same."""
    checked = report(write(NAMES), target="weight")
    assert checked.problems == (
        "dataset.target=weight: no such column; the file has price, size, colour",
    )
    assert [c.name for c in checked.columns] == ["price", "size", "colour"]
    assert not checked.usable


def test_task_and_policy_are_refused_as_options_of_the_config(write):
    """A name that does not exist is a ConfigError, not a fault of the data."""
    for options in ({"missing": "zero"}, {"task": "ranking"}):
        with pytest.raises(ConfigError):
            load_tabular(write(NAMES), "price", **{"task": "regression", **options})


def test_a_row_without_a_target_is_left_out_by_mean(write, caplog):
    """Nothing stands in for a target; the other cells' means do for theirs."""
    path = write("a,b,y\n1,,0\n2,3,\n3,4,1\n4,5,0\n")
    table = load_tabular(path, **CLASSES, missing="mean")
    assert table.target.tolist() == [0, 1, 0]
    assert np.isnan(table.numeric[0, 1])
    assert "dataset.missing=mean leaves out 1 of 4 rows without a target or a key" in caplog.text
    message = refusal(write("a,y\n1,\n2,\n"), **CLASSES, missing="mean")
    assert message == "y=missing in every row: a value in some row"
