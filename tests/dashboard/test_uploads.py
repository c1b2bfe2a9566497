"""Files that a user brings along: kept privately, or refused in one sentence."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.dashboard import uploads
from fl_app.errors import InputError

GOOD = b"age,town,y\n1,Ulm,0\n2,Bonn,1\n3,Ulm,0\n4,Bonn,1\n"
BAD = {
    "empty": (b"", "it is empty; give one CSV file"),
    "blank": (b" \n\n", "it is empty; give one CSV file"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "it is no text; give one CSV file"),
    "utf-16": ("a,y\n1,2\n".encode("utf-16"), "it is no text; give one CSV file"),
    "latin-1": ("größe,y\n1,2\n".encode("latin-1"), "it is not UTF-8 text (byte 0xf6 in line 1)"),
    "a page": (b"<html>\n<p>hi</p>\n</html>", "it has one column only"),
    "one column": (b"y\n1\n2\n", "it has one column only"),
    "no rows": (b"a,y\n", "it has a header but no rows"),
    "two names": (b"a,a,y\n1,2,3\n", "two columns are named 'a'"),
    "ragged": (b"a,y\n1,2\n1,2,3\n", "line 3 has 3 cells, the header 2"),
    "ragged at once": (b"a,y\n1,2,3\n", "row 1 has 3 cells, the header 2"),
    "an open quote": (b'a,y\n1,"2\n3,4\n', "a quote opened in row"),
    "a long cell": (b'a,y\n1,"' + b"x" * 200_000 + b'"\n', "it is no CSV text"),
    "too large": (b"a" * (uploads.MAX_BYTES + 1), "at most 20 MB are taken"),
    "only commas": (b"," * 10**6, "a line is too long; at most 500 columns"),
    "only tabs": (b"x" + b"\t" * 10**6 + b"x", "a line is too long; at most 500 columns"),
    "too wide": (b"," * 600 + b"\n", "it has a header but no rows"),
    "many columns": (
        ",".join(f"c{i}" for i in range(501)).encode() + b"\n" + b"1," * 500 + b"1\n",
        "it has 501 columns, at most 500 are taken",
    ),
    "long names": (b"a" * 60_000 + b",y\n1,2\n", "the names of its columns are too long"),
    "a hidden name": (b"a\x1b[2J,y\n1,2\n", "the column 'a?[2J' has line ends or signs"),
    "a password": (b"http://u:secret@h,y\n1,2\n", "the column 'http://u:***@h' has line ends"),
    "many texts": (b"a,y\n" + b"x,1\n" * 500_001, "at most 500000 are taken"),
}
UNUSABLE = {
    "one class": (b"a,y\n1,0\n2,0\n", "problem: y is the same in every row: at least 2 classes"),
    "no target": (b"a,y\n1,\n2,\n", "problem: y=missing in every row: a value in some row"),
    "an infinite cell": (b"a,y\ninf,0\n2,1\n", "problem: a=inf in row 1: finite numbers"),
    "all missing": (
        b"a,y\nNaN,0\nNaN,1\n",
        "problem: dataset.features=null: at least one column to predict from; left out",
    ),
    "texts alone": (
        b"a,y\nz,0\nw,1\nv,1\nx,0\n",
        "problem: dataset.features=null: at least one column to predict from; left out",
    ),
}


def folder() -> Path:
    return Path(os.environ["FL_APP_HOME"], "dashboard", "uploads")


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_table_is_refused_in_one_sentence(kind):
    """And nothing of it stays."""
    content, says = BAD[kind]
    with pytest.raises(InputError) as caught:
        uploads.save(None, content, "my\nfile.csv")
    text = str(caught.value)
    assert text.startswith("file=my file.csv: ")
    assert says in text
    assert "secret" not in text
    assert list(folder().glob("*")) == []


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_table_that_no_run_can_use_says_why(kind):
    content, says = UNUSABLE[kind]
    found = uploads.save(None, content, "own.csv")
    assert not found.usable
    assert any(sentence.startswith(says) for sentence in found.sentences), found.sentences


@given(st.binary(max_size=60) | st.text(alphabet='a1,"\n;\r \t.-é', max_size=60).map(str.encode))
def test_any_bytes_are_kept_or_refused(content):
    """No other exception, whatever is in the file."""
    with contextlib.suppress(InputError):
        assert len(uploads.save(None, content, "own.csv").columns) > 1


def test_a_file_is_kept_once_for_its_owner_alone():
    """Under a name of ours that tells nothing; folder 0700, file 0600."""
    first, again = (uploads.save(None, GOOD, name) for name in ("a.csv", "../../b.csv"))
    assert first == again
    assert first.path == folder() / f"{first.id}.csv"
    assert uploads.is_id(first.id)
    assert first.path.read_bytes() == GOOD
    assert [file.name for file in folder().iterdir()] == [first.path.name]
    for path, mode in ((first.path, 0o600), (folder(), 0o700), (folder().parent, 0o700)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_what_check_says_without_the_table_and_the_path():
    found = uploads.save(None, GOOD, "own.csv")
    assert found.columns == ("age", "town", "y")
    assert (found.target, found.task) == ("y", "classification")
    assert found.usable
    assert found.sentences[:3] == (
        "4 rows, 3 columns",
        "target: y (classification)",
        "2 classes, rows of each: 0: 2, 1: 2",
    )
    assert not any(str(folder()) in sentence for sentence in found.sentences)


def test_a_target_can_be_chosen_and_another_task():
    name = uploads.save(None, GOOD, "own.csv").id
    other = uploads.open(name, target="age", task="regression", features=("y",))
    assert (other.target, other.task, other.usable) == ("age", "regression", True)
    assert other.options == ("dataset.features=[y]",)
    town = uploads.open(name, target="town", task="regression")
    assert not town.usable


@pytest.mark.parametrize(
    ("header", "guess"), [("Target,b", "Target"), ("a,Label,c", "Label"), ("a,b,c", "c")]
)
def test_a_target_is_guessed_by_its_name_or_is_the_last_column(header, guess):
    rows = ["1," * header.count(",") + "0", "2," * header.count(",") + "1"]
    found = uploads.save(None, "\n".join([header, *rows]).encode(), "own.csv")
    assert found.target == guess


def test_missing_cells_are_met_by_the_policy_that_keeps_most_rows():
    def missing(content: bytes) -> list[str]:
        options = uploads.save(None, content, "own.csv").options
        return [option for option in options if option.startswith("dataset.missing=")]

    assert missing(b"a,y\n1,0\n,1\n3,1\n") == ["dataset.missing=mean"]
    assert missing(b"a,y\n1,0\n2,\n3,1\n4,0\n") == ["dataset.missing=drop"]
    assert missing(GOOD) == []


@pytest.mark.parametrize("name", ["", "../x", "0" * 16, "0" * 15 + "/", "0123456789ABCDEF"])
def test_an_upload_that_is_not_there_is_one_sentence(name):
    with pytest.raises(InputError, match="there is no such file any more; upload it again"):
        uploads.open(name)


def test_a_home_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"it cannot be kept in .*Not a directory"):
        uploads.save(tmp_path / "file", GOOD, "own.csv")


def test_files_go_a_week_after_their_last_use():
    """One that was used stays, however long ago it came; so do those of others."""
    old, used = (uploads.save(None, GOOD + row, "own.csv") for row in (b"", b"5,Ulm,1\n"))
    fresh = uploads.save(None, GOOD + b"6,Ulm,1\n", "own.csv")
    long_ago = time.time() - uploads.KEEP_DAYS * 86400 - 60
    left = folder() / ".0123-1-2.csv"
    left.write_bytes(GOOD)
    for file in (old.path, used.path, left):
        os.utime(file, (long_ago, long_ago))
    uploads.touch(used.id)
    assert uploads.tidy() == 2
    assert {file.name for file in folder().iterdir()} == {used.path.name, fresh.path.name}
    assert uploads.tidy(Path("/nowhere")) == 0
