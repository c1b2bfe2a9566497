"""``fl-kit check``: its advice is right and runs as printed, on a zoo of files."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import pytest

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
