"""The page's real server: who gets in, where it listens, what it leaves on the disk."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.browser import Server, serving

pytestmark = pytest.mark.slow

WEBSOCKET = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
PATHS = ["/", "/index.html", "/static/js/x.js", "/_stcore/host-config", "/_stcore/metrics"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return one server for the tests of this module that do not end it."""
    with serving(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.mark.parametrize("path", PATHS)
def test_every_path_wants_the_token(server: Server, path: str) -> None:
    """Without cookie or with a wrong one: 403 in plain words; with it, an answer."""
    name = server.cookie["Cookie"].partition("=")[0]
    for headers in ({}, {"Cookie": f"{name}={'0' * 64}"}):
        status, _, body = server.ask(path, **headers)
        assert status == 403
        assert body.startswith(b"This page needs its token")
    assert server.ask(path, **server.cookie)[0] in (200, 404)


def test_uploads_and_websockets_want_the_token(server: Server) -> None:
    """What changes something, and what starts the page's script, are closed as well."""
    assert server.ask("/_stcore/upload_file/a/b", "PUT")[0] == 403
    assert server.ask("/_stcore/stream", **WEBSOCKET)[0] == 403
    assert server.ask(f"/_stcore/stream?token={server.token}", **WEBSOCKET)[0] == 403
    assert server.ask("/_stcore/stream", **WEBSOCKET, **server.cookie)[0] == 101
    # Streamlit's own protection stands behind the gate.
    assert server.ask("/_stcore/upload_file/a/b", "PUT", **server.cookie)[0] in (400, 403)


def test_the_link_opens_the_page_once_and_for_all(server: Server) -> None:
    """The token turns into a cookie that no script and no other page gets; choices stay."""
    status, headers, body = server.ask(f"/?rounds=3&token={server.token}")
    assert status == 200
    assert headers["set-cookie"].split("; ") == [
        server.cookie["Cookie"],
        "Path=/",
        "HttpOnly",
        "SameSite=Strict",
    ]
    assert b'url=/?rounds=3"' in body
    assert server.token.encode() not in body
    assert server.ask(f"/?token={'0' * 64}")[0] == 403


def test_other_names_and_other_pages_are_refused(server: Server) -> None:
    """A name that points here, and a page from another port, get nothing in spite of the cookie."""
    own = f"http://127.0.0.1:{server.port}"
    assert server.ask("/", Host="rebound.example", **server.cookie)[0] == 403
    assert server.ask("/_stcore/health", Host="rebound.example")[0] == 403
    assert server.ask("/", Host=f"localhost:{server.port}", **server.cookie)[0] == 200
    for origin, status in ((own, 101), ("http://127.0.0.1:1", 403), ("null", 403)):
        headers = {**WEBSOCKET, **server.cookie, "Origin": origin}
        assert server.ask("/_stcore/stream", **headers)[0] == status


def test_it_listens_on_this_machine_only(server: Server) -> None:
    """Every socket that the process listens on has the address 127.0.0.1."""
    listening, others = server.sockets()
    assert listening == [f"127.0.0.1:{server.port}"]
    assert all(address.startswith("127.0.0.1:") for address in others)


def test_the_token_is_in_no_argument(server: Server) -> None:
    """Every user of a machine sees the arguments of a process."""
    words = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert b"serve.py" in words
    assert server.token.encode() not in words


def test_it_ends_by_ctrl_c_and_leaves_nothing_elsewhere(tmp_path: Path) -> None:
    """Exit status 0, the link and a word on the runs printed, no file outside its home."""
    with serving(tmp_path) as server:
        assert server.ask("/_stcore/stream", **WEBSOCKET, **server.cookie)[0] == 101
        server.end(signal.SIGINT)
    out = server.log.read_text()
    assert server.process.returncode == 0, out
    lines = out.splitlines()
    assert lines[0] == f"http://127.0.0.1:{server.port}/?token={server.token}"
    assert lines[1].startswith("Ctrl-C ends the page; the runs that it started go on")
    assert "Traceback" not in out
    assert [*server.user.rglob("*"), *server.cwd.rglob("*")] == []
    assert [path.name for path in server.home.rglob("*")] == ["dashboard", "token"]
