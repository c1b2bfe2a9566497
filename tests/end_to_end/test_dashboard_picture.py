"""The picture in a real browser: what it says, how a round is chosen, how it plays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.browser import browsing
from tests.end_to_end.support import free_port

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = pytest.mark.slow

APP = """
import numpy as np, streamlit as st
from fl_app.dashboard.picture import assets, picture
from fl_app.dashboard.metric_values import Metric
from fl_app.dashboard.view import Exchange, Own, Round, RunView

def a_round(r):
    accuracy = np.array([0.50, 0.60, 0.70, 0.80]) + r / 100
    failed = {2: "no <b>memory</b>"} if r == 3 else {}
    replied = tuple({0, 1, 2} - set(failed))
    train = Exchange((0, 1, 2), replied, failed, 3, len(replied), len(failed)) if r else Exchange()
    own = Own(np.arange(4, dtype=np.int32), np.full(4, 9.0), {"accuracy": accuracy})
    metrics = {"server/accuracy": 0.9 + r / 100}
    return Round(r, 0, metrics, 150.0, 228.0, train, Exchange(), own, own, {0: 30, 1: 60, 2: 90})

html, css, js = assets()
component = st.components.v2.component("picture", html=html, css=css, js=js)
status = "running" if "live" in st.query_params else "finished"
view = RunView("run", status=status, rounds=tuple(map(a_round, range(6))), clients=4, total=5)
data = picture(view, Metric("accuracy", "server", True))
found = component(data=data, key="p", default={"round": None}, on_round_change=lambda: None)
st.write(f"chosen {found.round}")
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a page with the picture alone."""
    root = tmp_path_factory.mktemp("picture")
    (root / "alone.py").write_text(APP)
    port = free_port()
    flags = ["--server.address=127.0.0.1", f"--server.port={port}", "--server.headless=true"]
    flags += ["--browser.gatherUsageStats=false", "--server.fileWatcherType=none"]
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", "alone.py", *flags],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as found:
        yield found


class Shown:
    """The picture in a tab of its own."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.bad = page, []
        page.on("console", lambda m: self.bad.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.bad.append(str(error)))
        here = (address.partition("?")[0].rstrip("/"), "blob:", "data:")
        page.on("request", lambda r: None if r.url.startswith(here) else self.bad.append(r.url))
        page.goto(address)
        self.part("scene rect.box").first.wait_for(timeout=60_000)

    def part(self, name: str) -> Any:
        return self.page.locator(f".picture .{name}")

    def says(self, text: str) -> None:
        sync_api.expect(self.part("say")).to_contain_text(text, timeout=20_000)

    def told(self, chosen: str) -> None:
        """Wait until the page's script knows of the choice."""
        self.page.get_by_text(f"chosen {chosen}", exact=True).wait_for(timeout=20_000)


@pytest.fixture(params=[1280, 430])
def shown(request: pytest.FixtureRequest, browser: Any, base: str) -> Iterator[Shown]:
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    found = Shown(page, base)
    yield found
    assert found.bad == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_a_line_says_what_the_picture_shows(shown: Shown) -> None:
    """The newest round first; who was asked, replied, failed and why, bytes, the server's value."""
    tail = "228 B down, 150 B up; accuracy 0.9500 on the server's test rows"
    shown.says(f"round 5 of 5: 3 of 4 clients asked, 3 replied; {tail}")
    shown.part("round").fill("3")
    shown.says("2 replied, client 2 failed: no <b>memory</b>; 228 B down")
    failed = shown.page.get_by_role("img", name="client 2, 90 rows: failed")
    assert failed.get_attribute("tabindex") == "0"
    assert failed.get_attribute("aria-label").endswith("; no <b>memory</b>")
    assert shown.page.locator(".picture b:not(.cross)").count() == 0
    other = shown.page.get_by_role("img", name="client 3: not asked, accuracy 0.8300")
    assert other.locator(".disc.off").count() == 1
    shown.part("round").fill("0")
    shown.says("round 0 of 5, before training: accuracy 0.9000")


def test_a_round_is_chosen_by_keyboard(shown: Shown) -> None:
    """Left and right choose a round, up and down a client, Home the first; Python hears of it."""
    shown.part("pad").focus()
    shown.page.keyboard.press("ArrowLeft")
    shown.page.keyboard.press("ArrowLeft")
    shown.told("3")
    shown.says("round 3 of 5")
    for _ in range(3):
        shown.page.keyboard.press("ArrowDown")
    expected = "client 2 in round 3: failed, accuracy 0.7300, no <b>memory</b>"
    assert shown.part("tip").inner_text() == expected
    assert shown.part("pad").get_attribute("aria-valuetext") == expected
    shown.page.keyboard.press("Home")
    shown.told("0")


def test_a_round_is_chosen_by_pointer(shown: Shown) -> None:
    """A click on the strip, the slider and the buttons lead to the same place."""
    box = shown.part("pad").bounding_box()
    shown.page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.1)
    shown.told("3")
    shown.part("next").click()
    shown.told("4")
    shown.part("round").fill("2")
    shown.told("2")
    shown.part("back").click()
    shown.told("1")


def test_it_plays_and_pauses(shown: Shown) -> None:
    """Space plays from where one is; the end is kept; the label says what the button would do."""
    shown.part("speed").select_option("fast")
    shown.part("round").fill("3")
    shown.part("pad").focus()
    shown.page.keyboard.press("Space")
    assert shown.part("play").get_attribute("aria-label") == "pause"
    shown.says("round 4 of 5")
    shown.says("round 5 of 5")
    sync_api.expect(shown.part("play")).to_have_attribute("aria-label", "play")
    shown.told("5")
    shown.part("speed").select_option("slow")
    shown.part("play").click()
    shown.says("round 1 of 5")
    shown.part("play").click()
    shown.told("1")


def test_who_prefers_no_motion_gets_none(browser: Any, base: str) -> None:
    """Rounds follow each other, but nothing travels: the marks lie on the wires."""
    page = browser.new_page(reduced_motion="reduce")
    shown = Shown(page, base)
    shown.part("play").click()
    places = set()
    for _ in range(8):
        places.add(shown.part("mover.down").first.get_attribute("cy"))
        page.wait_for_timeout(50)
    assert len(places) == 1
    page.close()


def test_a_live_run_is_followed_until_one_looks_back(browser: Any, base: str) -> None:
    """Follow appears once a round was chosen, and leads back to the newest."""
    page = browser.new_page()
    shown = Shown(page, f"{base}/?live=1")
    assert not shown.part("follow").is_visible()
    shown.part("back").click()
    shown.told("4")
    shown.part("follow").click()
    shown.told("None")
    assert not shown.part("follow").is_visible()
    assert shown.bad == []
    page.close()
