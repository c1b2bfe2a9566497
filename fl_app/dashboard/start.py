"""Starting the page's server: its token, its flags, its link. Nothing here imports Streamlit."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
import time
import urllib.request
import webbrowser
from importlib.util import find_spec
from pathlib import Path

from fl_app.dashboard.gate import HEALTH
from fl_app.errors import InputError
from fl_app.home import home_dir

__all__ = ["BROWSER", "TOKEN", "argv", "going_on", "link", "open_when_up", "serve", "token_of"]

TOKEN = "FL_APP_DASHBOARD_TOKEN"
"""Variable that hands the token to the server: every user of a machine sees arguments."""
BROWSER = "FL_APP_DASHBOARD_BROWSER"
"""Variable that tells the server to open a browser; empty: not."""

_FEWEST_DIGITS = 32
_UP_SECONDS = 60.0

# What a page that runs processes must not leave to a `.streamlit/config.toml` found on the way.
_FLAGS = [
    "--server.address=127.0.0.1",  # default: all interfaces, and asks outside for its address
    "--server.baseUrlPath=",
    "--server.headless=true",
    "--server.allowedHosts=127.0.0.1",
    "--server.allowedHosts=localhost",
    "--server.enableCORS=true",
    "--server.enableXsrfProtection=true",
    "--server.enableStaticServing=false",
    "--server.enableAgentApi=false",
    "--server.fileWatcherType=none",
    "--server.maxUploadSize=20",
    "--browser.gatherUsageStats=false",
    "--client.toolbarMode=minimal",
    "--client.showErrorDetails=none",
    "--client.showErrorLinks=false",
    "--runner.magicEnabled=false",
    "--logger.level=error",
    "--logger.hideWelcomeMessage=true",
    "--global.developmentMode=false",
    "--theme.base=light",  # with a colour, this is the only one: what the palette is made for
    "--theme.primaryColor=#0072B2",
]


def argv(port: int) -> list[str]:
    """Return the command that serves the page.

    Parameters
    ----------
    port : int
        On 127.0.0.1.

    Returns
    -------
    list of str
        For ``exec``. What stands in the working directory is not imported.
    """
    script = Path(__file__).with_name("serve.py")
    words = [sys.executable, "-P", "-m", "streamlit", "run", str(script)]
    return [*words, f"--server.port={port}", *_FLAGS]


def token_of(home: Path) -> str:
    """Return the page's token, made at the first call and kept, so that open tabs stay open.

    Parameters
    ----------
    home : Path
        ``FL_APP_HOME``; the token is in ``dashboard/token`` there. Without that file there will be
        a new one, also where the file is not ours alone or holds something else.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    InputError
        If the home cannot be read and written.
    """
    folder = home / "dashboard"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # logs, uploads, the token
        if not (text := _read(folder / "token")):
            (folder / "token").unlink(missing_ok=True)
            text = _make(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise InputError(
            "FL_APP_HOME", home, f"a folder that can be written ({error.strerror})"
        ) from None
    return text


def _read(path: Path) -> str:
    """Return the token in a file; empty where the file is none that can be trusted."""
    try:
        about, text = path.lstat(), path.read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
    ours = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
    private = not about.st_mode & 0o077
    digits = len(text) >= _FEWEST_DIGITS and set(text) <= set("0123456789abcdef")
    return text if ours and private and digits else ""


def _make(folder: Path) -> str:
    """Write a new token; of two that start at once, both return that of the first."""
    path, new = folder / "token", folder / f".token-{secrets.token_hex(8)}"
    text = secrets.token_hex(32)
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)
    return _read(path) or text


def link(port: int, token: str) -> str:
    """Return the address to open, token included."""
    return f"http://127.0.0.1:{port}/?token={token}"


def going_on(home: Path) -> list[str]:
    """Return the names of the launches that have not ended."""
    from fl_app.dashboard import processes  # which loads Hydra

    return [each.id for each in processes.find(home) if each.state in ("running", "stopping")]


def open_when_up(port: int, token: str, folder: Path) -> None:
    """Open the page in the user's browser as soon as it answers; nothing where there is no screen.

    Parameters
    ----------
    port : int
        Where it will listen.
    token : str
        Its token. It goes to the browser in a file that only the user can read: every user of a
        machine sees the arguments of a process.
    folder : Path
        For that file.
    """
    screen = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform not in ("darwin", "win32") and not any(map(os.environ.get, screen)):
        return  # else a browser in the terminal would take it over
    if _is_up(port):
        page = folder / "open.html"
        with contextlib.suppress(OSError, webbrowser.Error):
            page.unlink(missing_ok=True)
            with open(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(f'<meta http-equiv="refresh" content="0; url={link(port, token)}">\n')
            webbrowser.open(page.as_uri())


def _is_up(port: int) -> bool:
    end = time.monotonic() + _UP_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    address = f"http://127.0.0.1:{port}{HEALTH}"
    while time.monotonic() < end:
        with contextlib.suppress(OSError), direct.open(address, timeout=2):
            return True
        time.sleep(0.2)
    return False


def serve(port: int, browser: bool) -> None:
    """Become the page's server, after saying where it is.

    Parameters
    ----------
    port : int
        Free, on 127.0.0.1.
    browser : bool
        Open the page, where there is a screen.

    Raises
    ------
    InputError
        If Streamlit is not installed, or ``FL_APP_HOME`` cannot be used.
    """
    if find_spec("streamlit") is None:
        raise InputError("dashboard", "streamlit", "not installed; pip install 'fl-app[dashboard]'")
    try:
        home = home_dir()
    except RuntimeError as error:
        raise InputError("FL_APP_HOME", os.environ.get("FL_APP_HOME", ""), str(error)) from None
    token = token_of(home)
    print(link(port, token))
    if names := going_on(home):
        print(f"still running: {', '.join(names)}")
    print("Ctrl-C ends the page; the runs that it started go on, and the next page finds them.")
    sys.stdout.flush()
    words = argv(port)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIT_")}
    os.execve(words[0], words, kept | {TOKEN: token, BROWSER: "1" if browser else ""})
