"""The page's real server, and a real browser that looks at it."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.support import end_processes, free_port

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 800, "height": 900}
PATIENCE = 120_000
"""Milliseconds after which something that should be there is missed, on a busy machine too."""
_FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_AWAY = re.compile(
    "ERR_(CONNECTION|EMPTY)|WebSocket|disconnected from server|reaching server endpoint|"
    "server is not responding"
)
"""What Chromium and Streamlit say of a server that is not there."""


# ---------------------------------------------------------------------------- the server
@dataclass
class Server:
    """A page's server, and the folders that it may know."""

    port: int
    root: Path
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        for folder in (self.user, self.cwd):
            folder.mkdir(exist_ok=True)
        self.start()

    @property
    def home(self) -> Path:
        """``FL_APP_HOME``."""
        return self.root / "fl_app"

    @property
    def user(self) -> Path:
        """``HOME``."""
        return self.root / "user"

    @property
    def cwd(self) -> Path:
        """The folder that it was started in."""
        return self.root / "cwd"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.root / "server.txt"

    @property
    def token(self) -> str:
        """What is in the token's file."""
        return (self.home / "dashboard" / "token").read_text().strip()

    @property
    def cookie(self) -> dict[str, str]:
        """The header that opens the page."""
        return {"Cookie": f"fl_app_dashboard_{self.port}={self.token}"}

    def link(self, **query: object) -> str:
        """Return the address of the page with choices."""
        words = urllib.parse.urlencode({"token": self.token, **query})
        return f"http://127.0.0.1:{self.port}/?{words}"

    def start(self) -> None:
        """Start the command as a user does, and wait until it answers."""
        screen = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
        env = {name: value for name, value in os.environ.items() if name not in screen}
        env |= {"FL_APP_HOME": str(self.home), "FLWR_HOME": str(self.root / "flwr")}
        env |= {"HOME": str(self.user), "STREAMLIT_SERVER_ADDRESS": "0.0.0.0", **self.env}
        words = [sys.executable, "-m", "fl_app.cli.kit", "dashboard", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, env=env, cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                assert self.ask("/_stcore/health")[::2] == (200, b"ok")
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal and wait until it is gone."""
        self.process.send_signal(how)
        self.process.wait(30)

    def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body; of a websocket that opens, no body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            body = b"" if answer.status == 101 else answer.read()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body
        finally:
            connection.close()

    def sockets(self) -> tuple[list[str], list[str]]:
        """Return where the process listens, and with whom it speaks, as address:port."""
        if not Path("/proc/net/tcp").exists():
            pytest.skip("no /proc/net/tcp on this system")
        proc = Path(f"/proc/{self.process.pid}")
        links = []
        for fd in (proc / "fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(fd))
        mine = {link[8:-1] for link in links if link.startswith("socket:")}
        tables = [p for p in (proc / "net/tcp", proc / "net/tcp6") if p.exists()]
        rows = [row.split() for p in tables for row in p.read_text().splitlines()[1:]]
        rows = [row for row in rows if row[9] in mine]
        listening = [_address(row[1]) for row in rows if row[3] == "0A"]
        return listening, [_address(row[2]) for row in rows if row[3] != "0A"]


def _address(text: str) -> str:
    number, _, port = text.partition(":")
    raw = bytes.fromhex(number)
    words = [raw[at : at + 4] for at in range(0, len(raw), 4)]
    raw = b"".join(word[::-1] for word in words) if sys.byteorder == "little" else raw
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, raw)}:{int(port, 16)}"


@contextlib.contextmanager
def serving(root: Path, **env: str) -> Iterator[Server]:
    """Start a page's server in a home of its own; end it, and what it started."""
    found = Server(free_port(), root, env)
    try:
        yield found
    finally:
        found.end()
        end_processes("FL_APP_HOME", str(found.home))


# ---------------------------------------------------------------------------- the browser
@contextlib.contextmanager
def browsing() -> Iterator[Any]:
    """Start Debian's Chromium, or skip with a sentence.

    Its sandbox is off: it has none as root and in many containers, and sees our own page alone.
    """
    reason = "Playwright is not installed (make test-slow does)"
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=_FLAGS)
        yield found
        found.close()


class Tab:
    """A page in a tab, with all that it complained of and all that it asked others for.

    Parameters
    ----------
    context : BrowserContext
        The browser, with its cookies.
    address : str
        What is opened.
    viewport : mapping, optional
        Another size.
    """

    def __init__(self, context: Any, address: str, viewport: Mapping[str, int] = WIDE) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.set_viewport_size(dict(viewport))
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        base = address.partition("/?")[0]
        own = (f"{base}/", f"{base.replace('http', 'ws', 1)}/", "data:", "blob:")
        for kind in ("request", "websocket"):
            self.page.on(kind, lambda r: None if r.url.startswith(own) else self._left(r.url))
        self.page.goto(address)

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _left(self, url: str) -> None:
        self.outside.append(url)

    def forgive_an_absent_server(self) -> None:
        """Leave out what is said of a server that is not there."""
        self.errors = [text for text in self.errors if not _AWAY.search(text)]

    def close(self) -> None:
        """Close it; it had no error, and asked nobody else for anything."""
        exceptions = self.page.locator("[data-testid=stException]").all_inner_texts()
        self.page.close()
        found = [*self.errors, *self.outside, *exceptions]
        assert not found, found

    # ------------------------------------------------------------ what is on it
    def sees(self, text: str | re.Pattern[str]) -> Any:
        """Wait for a text and return where it is."""
        found = self.page.get_by_text(text).first
        found.wait_for()
        return found

    def button(self, name: str, **more: Any) -> Any:
        """Return a button of the page itself."""
        return self.page.get_by_role("button", name=name, exact=True, **more)

    def ready(self) -> Tab:
        """Wait until choices can be made."""
        self.button("Start").wait_for()
        return self

    def start(self) -> str:
        """Press Start as soon as it can be pressed; return the launch's id."""
        self.button("Start", disabled=False).click()
        return self.shown()

    def shown(self) -> str:
        """Wait until the address names a run and return it."""
        self.page.wait_for_url(re.compile(r"[?&]run="))
        return self.query["run"]

    @property
    def query(self) -> dict[str, str]:
        """What stands in the address."""
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.page.url).query))

    def badge(self, *states: str) -> None:
        """Wait until the run's state is one of these."""
        words = re.compile(rf"\b({'|'.join(states)})$")
        self.page.locator(".st-key-headline .stMarkdownBadge", has_text=words).first.wait_for()

    def picture(self, part: str) -> Any:
        """Return a part of the picture."""
        return self.page.locator(f".picture .{part}").first

    def until(self, is_so: Callable[[], bool], seconds: float = PATIENCE / 1000) -> None:
        """Wait for what no element says."""
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(50)

    def table(self, *columns: str) -> list[dict[str, str]]:
        """Wait for the table that has these columns, as the browser gives it to screen readers."""
        found: list[list[dict[str, str]]] = []

        def is_there() -> bool:
            found[:] = [table for table in self.tables() if set(columns) <= set(table[0])]
            return bool(found)

        self.until(is_there)
        return found[0]

    def tables(self) -> list[list[dict[str, str]]]:
        """Return all tables that have rows."""
        read = """frames => frames.map(frame => [...frame.querySelectorAll('canvas table tr')].map(
            row => [...row.querySelectorAll('th, td')].map(cell => cell.textContent)))"""
        frames: Sequence[Sequence[Sequence[str]]] = self.page.locator(
            "[data-testid=stDataFrame]"
        ).evaluate_all(read)
        return [
            [dict(zip(head, row, strict=True)) for row in rows]
            for head, *rows in (frame for frame in frames if len(frame) > 1)
        ]
