"""README.md and docs/*.md, typed as they are printed, in order, in an empty home."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.pages import PAGES, blocks, reader

pytestmark = pytest.mark.slow
needs_xgboost = pytest.mark.skipif(find_spec("xgboost") is None, reason="the extra xgboost")
MARKS = {page: [needs_xgboost] for page in ("docs/strategies.md", "docs/stacking.md")}


@pytest.mark.parametrize("page", [pytest.param(page, marks=MARKS.get(page, [])) for page in PAGES])
def test_a_page_does_what_it_says(page: str, tmp_path: Path) -> None:
    """Each command ends with 0, each run is FINISHED, and Flower says so too where it is asked.

    Some are typed with :data:`tests.pages.ADDED`: fewer rounds, seeds, clients.
    """
    with reader(tmp_path) as user:
        said = user.read(page)
        assert user.statuses() <= {"FINISHED"}
        for link in re.findall(r"http://127\.0\.0\.1:\d+/\?token=\w+", said):
            with urlopen(link) as answer:
                assert answer.status == 200
        if any(text.startswith("flwr run") or "\nflwr run" in text for _, text in blocks(page)):
            runs = user.type("flwr ls --format json")
            assert set(re.findall(r"finished:\w+", runs)) == {"finished:completed"}
        if page == "docs/deployment.md":
            # The page's last SuperLink knows one node's key.
            _wait(lambda: "online" in user.type("flwr supernode list safe --format json"))
            _wait(lambda: user.is_over("9702"))


def _wait(there: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.5)
