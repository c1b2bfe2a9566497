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
from tests.zoo import ZOO


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
