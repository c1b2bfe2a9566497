"""Makes docs/pictures/*.png: ``make pictures``, or ``python -m tools.pictures``.

It starts the live page and MLflow's as a user does, with a home of its own, runs what each picture
shows, and takes it with the system's Chromium. ``python -m tools.pictures lesson`` makes one.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH, COLOURS = 1280, 256


@dataclass(frozen=True)
class Picture:
    """What a picture shows.

    Parameters
    ----------
    choices : mapping of str to str
        The address of the run.
    end : str
        Selector of the first thing that is not in the picture.
    server_round : int or None
        The round that is chosen; None: the last.
    metric : str
        The metric that is chosen; "": the first.
    """

    choices: Mapping[str, str]
    end: str
    server_round: int | None = None
    metric: str = ""


PICTURES: Mapping[str, Picture] = {
    "lesson": Picture(
        {"example": "The lesson: a weighted average"},
        "h3:has-text('What the models know')",
        3,
    ),
    "comparison": Picture(
        {"example": "Label skew: averaging or stacking"},
        "h3:has-text('What the server made')",
    ),
    "many_clients": Picture(
        {"clients": "100", "rounds": "100", "partitioner": "dirichlet", "alpha": "0.3"}
        | {"fraction": "0.3", "model": "mlp"},
        "strong:text-is('Replies')",
        60,
        "log_loss",
    ),
}


MLFLOW = "mlflow"
"""The picture of MLflow's page, with the charts of :data:`SWEEP`."""
SWEEP = (
    *("strategy=fedavg,fedadam,fedmedian", "seed=0,1,2", "num_server_rounds=20"),
    *("partitioner=dirichlet", "partitioner.alpha=0.1"),
)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(home: Path) -> Iterator[str]:
    """Start the page, yield its link, and end it."""
    port = free_port()
    words = ["-m", "fl_app.cli.kit", "dashboard", "--no-browser", "--port", str(port)]
    page = subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | {"FL_APP_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert page.stdout is not None
        link = page.stdout.readline().strip()
        for _ in range(300):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        yield link
    finally:
        page.send_signal(signal.SIGINT)
        page.wait(30)


def compared(page: Page, home: Path) -> bytes:
    """Sweep, open MLflow by the link that the sweep ends with, and return its charts as PNG."""
    env, kit = os.environ | {"FL_APP_HOME": str(home)}, [sys.executable, "-m", "fl_app.cli.kit"]
    sweep = [sys.executable, "-m", "fl_app", "-m", *SWEEP, f"hydra.sweep.dir={home}/sweep"]
    said = subprocess.run(sweep, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    (link,) = re.findall(r"^  digits: (http\S+)$", said, re.M)
    port = free_port()
    ui = subprocess.Popen([*kit, "ui", "--port", str(port)], env=env, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.2)
        page.set_viewport_size({"width": 1700, "height": 900})
        page.goto(link.replace(":5000/", f":{port}/"))
        page.locator(".js-plotly-plot .barlayer .trace").first.wait_for(timeout=120_000)
        for text in ("MLflow Assistant", "You're viewing a shared view"):  # beside and above it
            nearest = page.get_by_text(text).first.locator(
                "xpath=ancestor::*[.//button][1]//button"
            )
            nearest.last.click()
        page.wait_for_timeout(8000)  # the charts move to their places
        return bytes(page.screenshot())
    finally:
        ui.send_signal(signal.SIGINT)
        ui.wait(30)


def taken(page: Page, link: str, picture: Picture) -> bytes:
    """Run what a picture shows and return it as PNG."""
    page.set_viewport_size({"width": WIDTH, "height": 1000})
    page.goto(f"{link}&{urlencode(picture.choices)}", wait_until="load")
    page.get_by_role("button", name="Start", disabled=False).click(timeout=120_000)
    page.locator(".stMarkdownBadge", has_text="finished").wait_for(timeout=600_000)
    page.locator(".picture rect.box").first.wait_for(timeout=60_000)
    if picture.metric:
        page.get_by_role("radio", name=picture.metric, exact=True).click()
    if picture.server_round is not None:
        page.locator(".picture .round").fill(str(picture.server_round))
    page.locator("[data-testid=stVegaLiteChart] svg:visible").first.wait_for(timeout=60_000)
    end = page.locator(picture.end)
    end.wait_for(timeout=60_000)
    page.mouse.move(WIDTH - 2, 2)
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": WIDTH, "height": int(height)})
    page.wait_for_timeout(5000)  # charts are drawn, nothing travels any more
    box = end.bounding_box()
    assert box is not None
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] - 8}
    return bytes(page.screenshot(clip=clip))


def reduced(png: bytes) -> Image.Image:
    """Return a picture with few colours, which makes a small file."""
    return Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)


def main(words: Sequence[str] | None = None) -> None:
    """Make all pictures, or those that are named."""
    parser = argparse.ArgumentParser(description="Make the pictures of README and docs.")
    parser.add_argument("names", nargs="*", choices=[*PICTURES, MLFLOW, []], default=[])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args(words)
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("Chromium is not installed")
    asked.folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as home,
        served(Path(home)) as link,
        sync_playwright() as play,
    ):
        browser = play.chromium.launch(executable_path=browser_path, chromium_sandbox=False)
        for name in asked.names or (*PICTURES, MLFLOW):
            page = browser.new_page(reduced_motion="reduce")
            path = asked.folder / f"{name}.png"
            is_page = name in PICTURES
            png = taken(page, link, PICTURES[name]) if is_page else compared(page, Path(home))
            reduced(png).save(path, optimize=True)
            page.close()
            print(f"{path}: {path.stat().st_size // 1000} kB")
        browser.close()


if __name__ == "__main__":
    main()
