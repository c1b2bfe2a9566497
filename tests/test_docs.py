"""The pages say what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from fl_app.dashboard.choices import EXAMPLES
from fl_app.schema import GROUPS

ROOT = Path(__file__).parents[1]


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_page", ROOT / "docs" / "config_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_config_page_is_generated() -> None:
    """docs/config.md is what docs/config_page.py makes of the schema."""
    assert (ROOT / "docs" / "config.md").read_text() == _generator().page()


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
    assert len(pictures) == 3
    assert max(picture.stat().st_size for picture in pictures) <= 150_000


@pytest.mark.parametrize("page", [*sorted(p.name for p in ROOT.glob("*.md")), "docs"])
def test_links_lead_somewhere(page: str) -> None:
    """Relative links in the pages name files that exist."""
    pages = ROOT.glob("docs/*.md") if page == "docs" else [ROOT / page]
    for path in pages:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
