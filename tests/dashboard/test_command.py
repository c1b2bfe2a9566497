"""``fl-kit dashboard``: its flags, its token, its mistakes, and the gate before the page."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_app.dashboard import start
from fl_app.dashboard.gate import HEALTH, Gate
from tests.kit import fl_kit

TOKEN = "0123456789abcdef" * 4
COOKIE = f"fl_app_dashboard_8501={TOKEN}"


Started = list[tuple[list[str], dict[str, str]]]


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Arguments and environment of what would have been started in place of this process."""
    calls: Started = []

    def execve(_: str, words: list[str], env: dict[str, str]) -> None:
        calls.append((words, env))

    monkeypatch.setattr(os, "execve", execve)
    return calls


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------------------- the command
def test_the_server_gets_the_token_by_its_environment_only(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    port: int,
    started: Started,
    tmp_path: Path,
) -> None:
    """The link is printed, the arguments hold no token, no Streamlit variable is handed on."""
    monkeypatch.setenv("STREAMLIT_SERVER_ADDRESS", "0.0.0.0")
    assert fl_kit(monkeypatch, "dashboard", "--port", str(port), "--no-browser") == 0
    [(words, env)] = started
    token = (tmp_path / "fl_app_home" / "dashboard" / "token").read_text().strip()
    assert f"http://127.0.0.1:{port}/?token={token}\n" in capsys.readouterr().out
    assert token not in " ".join(words)
    assert env[start.TOKEN] == token
    assert env[start.BROWSER] == ""
    assert not [name for name in env if name.startswith("STREAMLIT_")]


def test_the_flags_keep_the_page_on_this_machine() -> None:
    """Whatever a config file found on the way says: one address, no telemetry, no details."""
    words = start.argv(8765)
    assert words[:5] == [sys.executable, "-P", "-m", "streamlit", "run"]
    assert Path(words[5]).name == "serve.py"
    assert Path(words[5]).is_file()
    assert {
        "--server.port=8765",
        "--server.address=127.0.0.1",
        "--server.headless=true",
        "--browser.gatherUsageStats=false",
        "--client.showErrorDetails=none",
        "--server.maxUploadSize=20",
        "--server.enableXsrfProtection=true",
    } <= set(words)


def test_every_flag_is_one_of_streamlit() -> None:
    """A flag that this version does not know would end the server at its start."""
    from streamlit import config

    known = set(config.get_config_options())
    assert [word for word in start.argv(1)[6:] if word[2:].partition("=")[0] not in known] == []


@pytest.mark.parametrize("port", ["0", "65536", "-1", "page"])
def test_a_bad_port_is_one_line(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number out of range, or none, is one line and exit status 2."""
    assert fl_kit(monkeypatch, "dashboard", "--port", port) == 2
    err = capsys.readouterr().err
    assert "--port" in err
    assert len(err.splitlines()) == 1


def test_a_taken_port_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A port that somebody listens on is said to be taken before anything starts."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert fl_kit(monkeypatch, "dashboard", "--port", str(port)) == 2
    message = f"fl-kit: --port={port}: a free port (Address already in use)\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("home", ["file", "file/below", "~nobody-of-this-name/x", "/proc/nothing"])
def test_a_home_that_cannot_be_used_is_one_line(
    home: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    port: int,
    tmp_path: Path,
) -> None:
    """A file, what lies below one, a user who is none, where nobody may write: exit status 2."""
    (tmp_path / "file").write_text("")
    given = str(tmp_path / home) if home.startswith("file") else home
    monkeypatch.setenv("FL_APP_HOME", given)
    assert fl_kit(monkeypatch, "dashboard", "--port", str(port)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fl-kit: FL_APP_HOME={given}: ")
    assert len(err.splitlines()) == 1


def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: int
) -> None:
    """Streamlit is an extra: who has not got it is told its name."""
    monkeypatch.setattr(start, "find_spec", lambda _: None)
    assert fl_kit(monkeypatch, "dashboard", "--port", str(port)) == 2
    err = capsys.readouterr().err
    assert err.endswith("not installed; pip install 'fl-app[dashboard]'\n")
    assert len(err.splitlines()) == 1


def test_starting_needs_no_streamlit_in_the_launcher() -> None:
    """The modules of the command load without the extra."""
    for name in ("fl_app.dashboard.start", "fl_app.dashboard.gate"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        assert "import streamlit" not in Path(spec.origin).read_text()


# ---------------------------------------------------------------------------- the token
def test_the_token_is_made_once_and_is_private(tmp_path: Path) -> None:
    """64 hexadecimal digits, readable by their owner only, the same at the next start."""
    token = start.token_of(tmp_path)
    path = tmp_path / "dashboard" / "token"
    assert len(token) == 64
    assert int(token, 16) >= 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert start.token_of(tmp_path) == token
    assert [entry.name for entry in path.parent.iterdir()] == ["token"]
    path.unlink()
    assert start.token_of(tmp_path) != token


@pytest.mark.parametrize(("text", "mode"), [("", 0o600), ("secret\n", 0o600), (TOKEN, 0o644)])
def test_a_token_that_cannot_be_trusted_is_renewed(text: str, mode: int, tmp_path: Path) -> None:
    """Nothing, too little, or what others could read is not a token."""
    path = tmp_path / "dashboard" / "token"
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(mode)
    token = start.token_of(tmp_path)
    assert token not in ("", text.strip())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert start.token_of(tmp_path) == token


def test_a_link_in_place_of_the_token_is_not_followed(tmp_path: Path) -> None:
    """What a link points to keeps its content."""
    (tmp_path / "dashboard").mkdir()
    other = tmp_path / "other"
    other.write_text(TOKEN)
    other.chmod(0o600)
    (tmp_path / "dashboard" / "token").symlink_to(other)
    assert start.token_of(tmp_path) != TOKEN
    assert other.read_text() == TOKEN


# ---------------------------------------------------------------------------- the gate
def ask(
    path: str = "/", query: str = "", kind: str = "http", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Return status, headers and text of an answer; status 200 and "inside" from the page."""
    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": "127.0.0.1:8501", **headers}
    scope = {
        "type": kind,
        "path": path,
        "query_string": query.encode(),
        "headers": [(key.encode(), value.encode("latin-1")) for key, value in given.items()],
    }
    asyncio.run(Gate(page, TOKEN, 8501)(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return sent[0]["code"], {}, ""
    back = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], back, sent[1]["body"].decode()


@pytest.mark.parametrize("path", ["/", "/static/x.js", "/_stcore/upload_file/a/b", "/media/x"])
def test_nothing_without_the_token(path: str) -> None:
    """Page, static file, upload, media: 403 and how to get in."""
    status, headers, text = ask(path)
    assert status == 403
    assert text.startswith("This page needs its token: open the link")
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert ask(path, cookie=COOKIE)[::2] == (200, "inside")


@pytest.mark.parametrize(
    "cookie", ["", "=", f"fl_app_dashboard_8502={TOKEN}", COOKIE[:-1], COOKIE + "0", "é=é; \xff"]
)
def test_a_wrong_cookie_does_not_open(cookie: str) -> None:
    """Another port's, a part of the token, the token and more, or rubbish."""
    assert ask(cookie=cookie)[0] == 403
    assert ask(cookie=f"{cookie}; {COOKIE} ;a=b")[0] == 200


def test_the_token_becomes_a_cookie_and_leaves_the_address() -> None:
    """The other choices in the address stay; no other host can be led to."""
    status, headers, text = ask("//elsewhere.example/x", f"a=1&token={TOKEN}&b=x%22%3Ey&c=")
    assert status == 200
    assert headers["set-cookie"] == f"{COOKIE}; Path=/; HttpOnly; SameSite=Strict"
    assert headers["cache-control"] == "no-store"
    assert 'content="0; url=/?a=1&amp;b=x%22%3Ey&amp;c="' in text
    assert TOKEN not in text
    assert "elsewhere" not in text
    assert 'content="0; url=/"' in ask("/", f"token={TOKEN}")[2]


@pytest.mark.parametrize("token", ["", "0", TOKEN[1:], "%C3%A9", "%ff", TOKEN.upper()])
def test_a_wrong_token_is_said_to_be_wrong(token: str) -> None:
    """Also beside a cookie that is right: the link is of another server."""
    for headers in ({}, {"cookie": COOKIE}):
        status, back, text = ask(query=f"token={token}", **headers)
        assert status == 403
        assert text.startswith("This is not the token of this page")
        assert "set-cookie" not in back


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example:8501", "0.0.0.0"])
def test_another_name_for_this_machine_is_refused(host: str) -> None:
    """A name that somebody made point here (DNS rebinding) opens nothing, not even health."""
    for path in ("/", HEALTH):
        status, _, text = ask(path, host=host, cookie=COOKIE)
        assert (status, text) == (
            403,
            "This page answers to http://127.0.0.1 and http://localhost only.\n",
        )


def test_another_page_of_this_machine_is_refused() -> None:
    """Pages on other ports get our cookie, as cookies ignore ports: their origin gives them off."""
    for kind, refused in (("http", 403), ("websocket", 4403)):
        for origin in ("http://127.0.0.1:3000", "http://localhost:8501", "null"):
            assert ask(kind=kind, cookie=COOKIE, origin=origin)[0] == refused
        assert ask(kind=kind, cookie=COOKIE, origin="http://127.0.0.1:8501")[0] == 200


def test_a_websocket_needs_the_cookie() -> None:
    """The token in its address is not looked at: only our own page opens one."""
    assert ask(kind="websocket")[0] == 4403
    assert ask(kind="websocket", query=f"token={TOKEN}")[0] == 4403
    assert ask(kind="websocket", cookie=COOKIE)[0] == 200


def test_health_is_open() -> None:
    """Who waits for the server need not know the token, and learns nothing but that."""
    assert ask(HEALTH)[0] == 200
    assert "set-cookie" not in ask(HEALTH, f"token={TOKEN}")[1]
    assert ask(HEALTH + "/../host-config")[0] == 403


def test_the_browser_is_told_to_stay_here() -> None:
    """A browser refuses what the page would load from outside, and to frame the page."""
    headers = ask(cookie=COOKIE)[1]
    policy = headers["content-security-policy"]
    assert "default-src 'self' data: blob:;" in policy
    assert "connect-src 'self' data: blob: ws://127.0.0.1:8501;" in policy
    assert "https:" not in policy
    assert headers["x-frame-options"] == "DENY"
