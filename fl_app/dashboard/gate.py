"""Who may talk to the page: whoever has its token, from this machine, to this machine's name.

The page starts and stops processes, so everybody who reaches its port could do that as its user.
The link that ``fl-kit dashboard`` prints holds a token; the browser gets it as a cookie, and loses
it from its address. Nothing here knows Streamlit: the gate stands before any ASGI application.

References
----------
ASGI: https://asgi.readthedocs.io/en/latest/specs/www.html
Jupyter Server, the same for the same reason: https://jupyter-server.readthedocs.io/en/latest/operators/security.html
DNS rebinding: https://en.wikipedia.org/wiki/DNS_rebinding
SameSite=Strict and redirects: https://www.rfc-editor.org/rfc/rfc6265#section-5.3
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

__all__ = ["HEALTH", "Gate"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEALTH = "/_stcore/health"
"""The one path that answers without a token: whether the server is up."""

_HOSTS = ("127.0.0.1", "localhost")
_NO_TOKEN = (
    "This page needs its token: open the link that `fl-kit dashboard` printed when it started.\n"
)
_WRONG_TOKEN = (
    "This is not the token of this page: open the link that `fl-kit dashboard` printed when it "
    "started last.\n"
)
_WRONG_HOST = "This page answers to http://127.0.0.1 and http://localhost only.\n"
_WRONG_ORIGIN = "This page does not answer to other pages.\n"
_OPENING = """<!doctype html>
<html lang="en"><title>Opening the page</title>
<meta http-equiv="refresh" content="0; url={address}">
<p>Opening the page. <a href="{address}">Go on</a> if nothing happens.</p></html>
"""


class Gate:
    """ASGI middleware that lets in what has the token, and tells the browser to stay inside.

    ``?token=`` once gives a cookie (``HttpOnly``, ``SameSite=Strict``, named after the port, as
    cookies ignore ports) and leads to the address without the token. It leads there by a page and
    not by a redirect, as a browser sends no strict cookie along a redirect that another page's link
    began.

    Parameters
    ----------
    app : ASGI application
        What stands behind the gate.
    token : str
        What is asked for.
    port : int
        Where the page listens.
    """

    def __init__(self, app: App, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._cookie = f"fl_app_dashboard_{port}"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, refuse or pass on one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        hosts = _all(scope, b"host")
        complaint = self._complaint(scope, hosts)
        if complaint is not None and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4403})
        elif complaint is not None:
            await _answer(send, 403, complaint)
        elif (left := self._query_without_token(scope)) is not None:
            await self._hand_over(send, left)
        else:
            await self._app(scope, receive, _with_headers(send, hosts[0]))

    def _complaint(self, scope: Message, hosts: list[str]) -> str | None:
        """Return why a connection is refused; None where it is not."""
        if len(hosts) != 1 or hosts[0].partition(":")[0] not in _HOSTS:
            return _WRONG_HOST
        if any(origin != f"http://{hosts[0]}" for origin in _all(scope, b"origin")):
            return _WRONG_ORIGIN
        if scope["type"] == "http" and scope["path"] == HEALTH:
            return None
        given = _given(scope)
        if given is not None:
            return None if self._is_token(given) else _WRONG_TOKEN
        pairs = [pair.partition("=") for line in _all(scope, b"cookie") for pair in line.split(";")]
        cookies = [value.strip() for name, _, value in pairs if name.strip() == self._cookie]
        return None if any(map(self._is_token, cookies)) else _NO_TOKEN

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _query_without_token(self, scope: Message) -> str | None:
        """Return what is left of a query that brings the token; None where it brings none."""
        if _given(scope) is None or scope["path"] == HEALTH:
            return None
        return urlencode([pair for pair in _query(scope) if pair[0] != "token"])

    async def _hand_over(self, send: Send, query: str) -> None:
        address = f"/?{query}" if query else "/"
        cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        page = _OPENING.format(address=address.replace("&", "&amp;"))
        await _answer(send, 200, page, "text/html", [(b"set-cookie", cookie.encode())])


def _all(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _query(scope: Message) -> list[tuple[str, str]]:
    text = scope.get("query_string", b"").decode("latin-1")
    return parse_qsl(text, keep_blank_values=True, errors="replace")


def _given(scope: Message) -> str | None:
    """Return the token in an address; a websocket's is not read, as only our page opens one."""
    if scope["type"] != "http":
        return None
    return next((value for name, value in _query(scope) if name == "token"), None)


async def _answer(
    send: Send,
    status: int,
    text: str,
    kind: str = "text/plain",
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    body = text.encode()
    about = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*about, *headers]})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send, host: str) -> Send:
    """Return a sender that forbids the browser to load from elsewhere or to frame the page."""
    policy = (
        "default-src 'self' data: blob:; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; "
        f"connect-src 'self' data: blob: ws://{host}; frame-ancestors 'none'; form-action 'self'"
    )
    more = [
        (b"content-security-policy", policy.encode("latin-1")),
        (b"referrer-policy", b"no-referrer"),
        (b"x-frame-options", b"DENY"),
    ]

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return wrapped
