"""What ``streamlit run`` gets: the page behind its gate. Started by ``fl-kit dashboard`` only."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread

import streamlit as st
from starlette.middleware import Middleware

from fl_app.dashboard.gate import Gate
from fl_app.dashboard.start import BROWSER, TOKEN, going_on, open_when_up
from fl_app.home import home_dir

__all__ = ["app"]

# The processes that the page starts inherit the environment, and need no token.
_token = os.environ.pop(TOKEN, "")
if not _token:
    sys.exit("the page is started by: fl-kit dashboard")
_port = int(st.get_option("server.port"))


@asynccontextmanager
async def _lifespan(_: st.App) -> AsyncIterator[None]:
    home = home_dir()
    if os.environ.pop(BROWSER, ""):
        Thread(target=open_when_up, args=(_port, _token, home / "dashboard"), daemon=True).start()
    yield
    # uvicorn now raises Ctrl-C again, for whoever started it: to us that is an end like any other.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if names := going_on(home):
        print(f"going on: {', '.join(names)}; fl-kit dashboard finds them again", flush=True)


app = st.App(
    Path(__file__).with_name("page.py"),
    lifespan=_lifespan,
    middleware=[Middleware(Gate, token=_token, port=_port)],
)
