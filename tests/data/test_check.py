"""``fl-kit check``: its advice is right and runs as printed, on a zoo of files."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import pytest
from pandas import DataFrame

from fl_app.config import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.data.client_data import whole_table
from fl_app.data.file_report import report
from fl_app.runtimes import run
from tests.zoo import ZOO, numbers


def as_typed(command: str) -> list[str]:
    """Return the overrides of a command as a shell hands them over."""
    words = shlex.split(command)
    assert words[0] == "fl-app"
    return words[1:]


@pytest.mark.parametrize("name", ZOO)
def test_what_check_says_to_try_runs(name: str, tmp_path: Path, caplog) -> None:
    """A finished run that loses no column and no row without a word, and learns something."""
    animal = ZOO[name]
    path = animal.write(tmp_path)
    found = report(path, animal.target, **animal.asked)
    text = found.render()
    for words in animal.says:
        assert words in text, text
    assert ("far from all other numbers" in text) == ("-999" in name)
    caplog.set_level(logging.WARNING, "fl_app")
    assert found.command, text
    more = "tracking=none", f"output_dir={tmp_path / 'out'}"
    config = compose_config([*as_typed(found.command), *more])
    table = whole_table(config)
    gone = {*animal.make().reset_index().columns} - {"index", *table.columns, *table.target_names}
    gone -= {config.partitioner.key} if config.partitioner.name == "natural" else set()
    assert gone == {*animal.named} | ({"key"} if "key" in gone else set())
    assert all(column in text for column in animal.named)
    assert len(table) >= 0.9 * found.rows or animal.loses
    result = run(RunRequest(config))
    assert result.status == "FINISHED"
    scores = result.metrics
    if config.dataset.task == "regression":
        assert scores["server/r2"] >= 0
    else:
        assert scores["server/accuracy"] >= scores["server/majority_share"]
    said = caplog.text
    assert "left out as features" not in said or animal.named, said
    assert "rows of these classes are left out" not in said, said


def test_a_target_with_a_unit_is_no_class(tmp_path: Path) -> None:
    """Each of its many values would be one."""
    path = tmp_path / "t.csv"
    path.write_text("x;y\n" + "".join(f"{k};{k / 7:.2f} %\n" for k in range(60)).replace(".", ","))
    for task in (None, "regression"):
        found = report(path, "y", task)  # type: ignore[arg-type]
        assert not found.usable
        assert found.problems[0].startswith("y='0,00 %': numbers alone, without a unit")
        assert not found.command


def test_numbers_written_for_missing_cells_are_noticed_where_they_stand_out(tmp_path: Path) -> None:
    """Several times; below by the others' range, above by thrice that, or alone below zero."""
    rows = range(100)
    columns: dict[str, tuple[list[object], str]] = {
        "far": ([999 if k < 3 else k for k in rows], "999"),  # 999 > 99 + 3 * (99 - 3)
        "twice": ([-999 if k < 2 else k for k in rows], ""),
        "near": ([-99 if k < 9 else k - 98 for k in rows], ""),  # the others from -89 on
        "a top price": ([999 if k < 9 else 3 * k for k in rows], ""),  # 999 < 297 + 3 * (297 - 27)
        "below": ([-999 if k < 9 else 1000 + 30 * k for k in rows], "-999"),
        "one digit": ([-9 if k < 9 else k % 5 for k in rows], "-9"),  # -9 < 0 - (4 - 0)
        "a constant": ([777 if k < 9 else 1 for k in rows], ""),
        "round": ([-1000 if k < 9 else k for k in rows], ""),
        "words": (["unknown" if k < 2 else 8888 if k < 9 else k for k in rows], "unknown,8888"),
    }
    for name, (cells, words) in columns.items():
        DataFrame({"x": cells, "y": [0, 1] * 50}).to_csv(path := tmp_path / "t.csv", index=False)
        found = report(path, "y")
        code = words.rpartition(",")[2]
        says = f"far from all other numbers, and several times: {code} (x)"
        assert any(says in note for note in found.notes) == bool(code), name
        options = [option for option in found.options if "missing_values" in option]
        assert options == ([f"dataset.missing_values=[{words}]"] if words else []), name
        assert found.columns[0].missing == (0 if not words else 3 if name == "far" else 9), name


def test_a_number_that_another_column_has_stays(tmp_path: Path) -> None:
    """The option is for all columns, so it would take values for missing cells."""
    path = tmp_path / "t.csv"
    sure, also = [999 if k < 9 else k % 7 for k in range(100)], [993 + k % 9 for k in range(100)]
    table = DataFrame({"sure": sure, "also": also, "y": [0, 1] * 50})
    table.to_csv(path, index=False)
    found = report(path, "y")
    (note,) = (note for note in found.notes if "far from all other numbers" in note)
    assert "999 (sure); left as they are" in note
    assert "missing_values" not in found.command
    assert [column.missing for column in found.columns] == [0, 0, 0]
    table.assign(also=[999, *range(99)]).to_csv(path, index=False)  # far there too, if once
    found = report(path, "y")
    assert "dataset.missing_values=[999]" in found.options
    assert [column.missing for column in found.columns] == [9, 1, 0]


def test_texts_beside_those_that_are_named_are_left_out_by_name(tmp_path: Path, caplog) -> None:
    """As a run would refuse them; and all texts of the features that are named are taken."""
    frame = numbers(400).assign(a=["p", "q"] * 200, b=[f"level {k % 25}" for k in range(400)])
    frame.to_csv(path := tmp_path / "t.csv", index=False)
    found = report(path, "y", categorical=["b"])
    assert "left out below, as texts that are not named as categorical: a" in found.notes
    assert "dataset.exclude=[a]" in found.options
    words = as_typed(report(path, "y", features=["x1", "b"]).command)
    config = compose_config([*words, "tracking=none", f"output_dir={tmp_path / 'out'}"])
    result = run(RunRequest(config))
    assert result.status == "FINISHED"
    assert "left out as features" not in caplog.text  # though b has 25 levels
