"""What docstrings show is what the code does."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import fl_app

PACKAGE = Path(fl_app.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each ``>>>`` prints what stands below it."""
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed, capsys.readouterr().out
