"""A sweep's report as one file, opened from the disk as a colleague would who got it by mail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fl_app.report.html import to_html
from fl_app.report.rendering import TextTable

from .browser import WIDE, browsing
from .support import command

pytestmark = pytest.mark.slow
SMALL = ("dataset=wine", "num_clients=3", "num_server_rounds=3", "tracking.figures=false")
HEADINGS = ("Answer", "Question", "Data and split", "Strategies", "How tuned", "Differences")
HEADINGS += ("Until the target", "Fairness", "References", "Failed and missing", "Made by")
MOST_BYTES = 5_000_000


def test_a_page_opens_from_the_disk(tmp_path: Path) -> None:
    """Headings, tables and four figures are there; it asks nobody, complains of nothing, prints."""
    env = {"FL_APP_HOME": str(tmp_path / "home"), "FLWR_HOME": str(tmp_path / "flwr")}
    words = ("fl-app", "-m", *SMALL, "strategy=fedavg,fedadam,pooled", "seed=range(3)")
    done = command(*words, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = re.findall(r"tags\.`sweep\.id` = '([\w-]+)'", done.stdout)
    words = ("fl-kit", "report", "--sweep", sweep, "--target", "0.5", "--html", "report.html")
    done = command(*words, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "report.html"
    assert path.stat().st_size < MOST_BYTES
    with browsing() as browser:
        tab = browser.new_page(viewport=WIDE)
        asked: list[str] = []
        said: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(path.as_uri())
        shown = tab.locator("h2").all_inner_texts()
        assert [name for name in HEADINGS if name not in shown] == []
        svgs = tab.locator("figure svg")
        assert svgs.count() == 4
        assert all(svgs.nth(i).is_visible() for i in range(4))
        boxes = [svgs.nth(i).bounding_box() for i in range(4)]
        assert all(box is not None and box["width"] > 200 and box["height"] > 100 for box in boxes)
        assert tab.locator("figure text", has_text="fedadam").first.is_visible()
        assert tab.get_by_text("seed 0, dealt again from its config and data").is_visible()
        wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert tab.evaluate(wide)
        tab.screenshot(path=str(tmp_path / "screen.png"), full_page=True)
        tab.pdf(path=str(tmp_path / "print.pdf"), format="A4", prefer_css_page_size=True)
        assert (tmp_path / "print.pdf").read_bytes().startswith(b"%PDF")
        assert (asked, said) == ([path.as_uri()], [])


def test_a_long_name_leaves_the_numbers_beside_it_in_sight(tmp_path: Path) -> None:
    """It is broken into lines, as nobody scrolls a table whose first column fills the page."""
    table = TextTable("ends", ("strategy", "mean"), (("x" * 400, "0.5"),), 1)
    page = tmp_path / "page.html"
    page.write_text(to_html("title", {"Differences": [table]}), "utf-8")
    with browsing() as browser:
        tab = browser.new_page(viewport=WIDE)
        tab.goto(page.as_uri())
        box = tab.get_by_role("cell", name="0.5").bounding_box()
        assert box is not None
        room = tab.locator(".wide").bounding_box()
        assert room is not None
        assert box["x"] + box["width"] <= room["x"] + room["width"]
