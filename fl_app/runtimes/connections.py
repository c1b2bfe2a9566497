"""The connections to SuperLinks in Flower's ``config.toml``: one is read, added, taken out again.

References
----------
https://flower.ai/docs/framework/ref-flower-configuration.html
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_app.errors import InputError

__all__ = ["add_connection", "read_connection", "remove_connection"]

# Connections that Flower itself writes into a config.toml that does not exist yet.
_BUILT_IN = ("local", "supergrid")


def read_connection(
    superlink: str | None, environment: Mapping[str, str], field: str = "superlink"
) -> dict[str, Any]:
    """Read a connection from Flower's ``config.toml``.

    Parameters
    ----------
    superlink : str or None
        Its name.
    environment : mapping of str to str
        Where ``FLWR_HOME`` may stand.
    field : str, default: "superlink"
        What the user calls the name.

    Returns
    -------
    dict
        What stands in ``[superlink.NAME]``.

    Raises
    ------
    InputError
        If there is none of this name; the message lists those that there are.
    """
    home = environment.get("FLWR_HOME")
    path = (Path(home) if home else Path.home() / ".flwr") / "config.toml"
    known: dict[str, dict[str, Any]] = {name: {} for name in _BUILT_IN}
    if path.exists():
        try:
            links = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
        except ValueError as error:
            raise InputError("config.toml", path, f"valid TOML ({error})") from None
        known = {name: link for name, link in links.items() if isinstance(link, dict)}
    if superlink not in known:
        allowed = f"a [superlink.NAME] of {path}: {', '.join(known) or 'it has none'}"
        raise InputError(field, superlink, allowed)
    return known[superlink]


def _entry(name: str, address: str) -> str:
    return f'\n[superlink.{name}]\naddress = "{address}"\ninsecure = true\n'


def add_connection(path: Path, name: str, address: str) -> None:
    """Append a connection as text: a rewrite of the file would lose the user's comments."""
    text = _text(path)
    if f"[superlink.{name}]" in text:
        raise InputError("superlink", name, f"a name that {path} does not have yet")
    path.write_text(text + _entry(name, address), encoding="utf-8")


def remove_connection(path: Path, name: str, address: str) -> None:
    """Take a connection out as it was added; a file with nothing else in it goes too."""
    text = _text(path)
    rest = text.replace(_entry(name, address), "")
    if rest == text:
        return
    if rest:
        path.write_text(rest, encoding="utf-8")
    else:
        path.unlink()


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
