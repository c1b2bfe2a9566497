"""MLflow's own page in a real browser, opened by the links that the terminal shows."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import answers

from .browser import PATIENCE, WIDE, browsing
from .support import BIN, command, end_processes, free_port

pytestmark = pytest.mark.slow

SMALL = ("dataset=wine", "num_clients=3", "num_server_rounds=3", "tracking.figures=false")
BROKEN = "Something went wrong"
"""What MLflow's page shows where a view has a word that it does not know."""


@contextmanager
def ui(home: Path) -> Iterator[int]:
    """Start ``fl-kit ui`` on a free port; end it, and what it started."""
    port = free_port()
    with (home / "ui.txt").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / "fl-kit"), "ui", "--port", str(port)],
            env=os.environ | {"FL_APP_HOME": str(home)},
            stdout=log,
            stderr=log,
        )
    try:
        answers(port, process, home / "ui.txt")
        yield port
    finally:
        process.terminate()
        process.wait()
        end_processes("FL_APP_HOME", str(home))


@contextmanager
def opened(link: str, port: int) -> Iterator[Any]:
    """Open a link that was printed for the default port; the page is whole at the end."""
    with browsing() as browser:
        page = browser.new_page(viewport=WIDE)
        page.set_default_timeout(PATIENCE)
        page.goto(link.replace(":5000/", f":{port}/"))
        yield page
        assert page.get_by_text(BROKEN).count() == 0
        page.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an empty home."""
    return tmp_path_factory.mktemp("home")


def said(home: Path, *words: str) -> str:
    """Type ``fl-app`` with this home; return what it says."""
    env = {"FL_APP_HOME": str(home), "FLWR_HOME": str(home / "flwr")}
    done = command("fl-app", *words, *SMALL, cwd=home, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sections(page: Any) -> list[tuple[str, bool]]:
    """Return the names of the sections, and which are open, once there are any."""
    headers = page.get_by_test_id("experiment-view-compare-runs-section-header")
    headers.first.wait_for()
    read = """all => all.map(one => [one.innerText.split("\\n")[0].replace(/ *\\([0-9]+\\)/, ""),
        one.closest("[aria-expanded]").ariaExpanded === "true"])"""
    return [tuple(one) for one in headers.evaluate_all(read)]


def cards(page: Any, name: str) -> Any:
    """Return the titles of the charts in a section."""
    section = page.locator(".du-bois-light-collapse-item").filter(
        has=page.get_by_test_id("experiment-view-compare-runs-section-header").get_by_text(name)
    )
    return section.get_by_test_id("experiment-view-compare-runs-card").locator("h4")


def test_links_open_mlflow_on_the_comparison_and_on_the_run(home: Path) -> None:
    """A sweep's runs are grouped by strategy, how good they are comes first; a run has its own."""
    out = said(home, "-m", "strategy=fedavg,fedprox", "seed=0,1")
    (sweep,) = re.findall(r"^  wine: (http\S+)$", out, re.M)
    (run,) = re.findall(r"^its charts: (http\S+)$", said(home, "strategy=fedadam"), re.M)
    first = [("How good", True), ("How fair", True), ("What it costs", True)]
    with ui(home) as port:
        with opened(sweep, port) as page:
            for name in ("fedavg", "fedprox"):
                page.get_by_text(f"Group: {name}").wait_for()
            page.get_by_text("4 matching runs").wait_for()
            shown = sections(page)
            assert shown[:3] == first
            assert {"eval", "server", "train"} <= {name for name, is_open in shown[3:]}
            assert not any(is_open for _, is_open in shown[3:])
            good = cards(page, "How good")
            good.nth(2).wait_for()
            names = ["server/accuracy", "cost/bytes_up vs. server/accuracy", "server/accuracy"]
            assert good.all_inner_texts() == names
            page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
            page.locator(".js-plotly-plot .barlayer .trace").first.wait_for()
        with opened(run, port) as page:
            page.get_by_text("1 matching run", exact=True).wait_for()
            page.get_by_text("fedadam s0").first.wait_for()
            assert sections(page)[:3] == first
            good = cards(page, "How good")
            good.nth(1).wait_for()
            assert (
                good.all_inner_texts() == ["server/accuracy vs eval/accuracy vs train/accuracy"] * 2
            )
            page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
