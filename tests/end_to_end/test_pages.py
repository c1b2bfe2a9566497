"""README.md and docs/*.md, typed as they are printed, in order, in an empty home."""

from __future__ import annotations

import re
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.pages import PAGES, reader

pytestmark = pytest.mark.slow
needs_xgboost = pytest.mark.skipif(find_spec("xgboost") is None, reason="the extra xgboost")
MARKS = {"docs/strategies.md": [needs_xgboost]}


@pytest.mark.parametrize("page", [pytest.param(page, marks=MARKS.get(page, [])) for page in PAGES])
def test_a_page_does_what_it_says(page: str, tmp_path: Path) -> None:
    """Each command ends with 0 and each run is FINISHED, at MLflow and at stock Flower's SuperLink.

    Some are typed with :data:`tests.pages.ADDED`: fewer rounds, seeds, clients.
    """
    with reader(tmp_path) as user:
        said = user.read(page)
        assert user.statuses() <= {"FINISHED"}
        for link in re.findall(r"http://127\.0\.0\.1:\d+/\?token=\w+", said):
            with urlopen(link) as answer:
                assert answer.status == 200
        if "flwr run" in said:
            runs = user.type("flwr ls")
            assert set(re.findall(r"finished:\w+", runs)) == {"finished:completed"}
        if page == "docs/deployment.md":
            # Of the page's last SuperLink, which knows one node's key.
            assert "SuperNode authentication is enabled" in user.terminal("9702")
            deadline = time.monotonic() + 60
            while "online" not in user.type("flwr supernode list safe"):
                assert time.monotonic() < deadline, user.terminal("9701")
                time.sleep(0.5)
