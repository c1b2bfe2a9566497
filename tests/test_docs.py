"""The pages say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_app.config.checking import facts
from fl_app.config.dataset_options import DatasetConfig
from fl_app.config.schema import GROUPS
from fl_app.config.serialization import from_dict
from fl_app.dashboard.choices import EXAMPLES
from fl_app.errors import ConfigError
from tests.pages import ADDED, ELSEWHERE, PAGES, beginnings, blocks, commands, reader
from tools import site
from tools.conf import written

ROOT = Path(__file__).parents[1]


def test_files_say_what_the_options_say() -> None:
    """``conf/`` and docs/config.md are what ``make conf`` makes of the options."""
    texts = written()
    assert {path: (ROOT / path).read_text() for path in texts} == texts


def test_an_option_says_the_words_of_its_base() -> None:
    """A key whose default alone a class changes keeps the limits and the help of its base."""
    two, base = GROUPS["dataset"]["two_lines"], DatasetConfig
    for key in ("test_fraction", "val_fraction", "standardize"):
        assert facts(two, key) == facts(base, key)
        assert getattr(two, key) != getattr(base, key)
    with pytest.raises(ConfigError, match=r"dataset.test_fraction=1.0: expected .* >= 0 and < 1"):
        from_dict({"dataset": {"name": "two_lines", "test_fraction": 1.0}})


@pytest.mark.parametrize(("page", "group"), [("strategies", "strategy"), ("data", "dataset")])
def test_every_name_has_its_words(page: str, group: str) -> None:
    """Each strategy and each data set of the schema is told on its page."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    assert [name for name in GROUPS[group] if f"`{name}`" not in text] == []


def test_every_ready_example_has_its_words() -> None:
    """Each example of the live page is told on its page, by the name that it has there."""
    text = (ROOT / "docs" / "page.md").read_text()
    assert [name for name in EXAMPLES if f"| {name} |" not in text] == []


def test_pictures_are_small() -> None:
    """A clone does not pay for the pictures: 150 kB each at most."""
    pictures = list((ROOT / "docs" / "pictures").glob("*.png"))
    assert len(pictures) == 4
    assert max(picture.stat().st_size for picture in pictures) <= 150_000


def test_every_page_is_on_the_site(tmp_path: Path) -> None:
    """None is forgotten; what `make check` then builds tells links that lead nowhere."""
    folders = ("", "docs", "examples", "benchmarks")
    pages = {str(p.relative_to(ROOT)) for at in folders for p in (ROOT / at).glob("*.md")}
    assert pages == {name for name in site.named() if not name.startswith("reference/")}
    site.gather(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.md")} == {*site.named()}


PYTHON = [
    pytest.param(page, text, id=f"{page}-{number}")
    for page in PAGES
    for number, (language, text) in enumerate(blocks(page))
    if language == "python"
]
BEFORE = {"docs/mlflow.md": "fl-app dataset=wine"}
"""What a page types for its Python to read."""


@pytest.mark.parametrize(("page", "text"), PYTHON)
def test_python_is_complete(page: str, text: str, tmp_path: Path) -> None:
    """Each block of Python runs by itself, and its run, if it has one, is FINISHED."""
    with reader(tmp_path) as user:
        if page in BEFORE:
            assert ("bash", f"{BEFORE[page]}\n") in blocks(page)
            user.type(BEFORE[page])
        user.type_block("python", text)
        assert user.statuses() == {"FINISHED"}


def test_blocks_are_commands_python_or_what_was_said() -> None:
    """Nothing else stands between fences, as nothing else is tried."""
    assert {language for page in PAGES for language, _ in blocks(page)} == {"bash", "python", ""}


@pytest.mark.parametrize("known", [ADDED, ELSEWHERE], ids=["added", "elsewhere"])
def test_what_is_typed_otherwise_is_printed(known: dict[str, str]) -> None:
    """Each exception of tests/pages.py is about a command that still stands on a page."""
    texts = [text for page in PAGES for language, text in blocks(page) if language == "bash"]
    printed = [command for text in texts for command in commands(text)]
    assert [start for start in known if not any(beginnings(c, [start]) for c in printed)] == []
