"""Keeps the passwords of tracking URIs in the process, so that all else may hold masked URIs.

Imports nothing heavy: a command line masks what was typed before anything else sees it.
"""

from __future__ import annotations

import os
import re

from fl_app.errors import ADDRESS, ConfigError, masked

__all__ = ["keep_secrets", "whole"]

_KEPT = "FL_APP_TRACKING_URIS"
"""Names the variable with the whole URIs that this process was given, for those that it starts."""
_URI = re.compile(r"\w[\w+.-]*" + ADDRESS.pattern)  # what is masked is what is kept
_BEHIND = re.compile(r"/*((?:[]},].*)?)")


def keep_secrets(text: str) -> str:
    """Mask the URIs of a text, and keep each whole one where :func:`whole` finds it.

    So everything else holds the masked one: configs, records, what Hydra and Flower write, print
    and hand on. The whole ones stand in this process's environment, where the processes that it
    starts find them, and on no disk.

    Parameters
    ----------
    text : str
        A URI, or what was typed.

    Returns
    -------
    str
        The text as :func:`~fl_app.errors.masked` returns it.
    """
    for uri in _URI.findall(text):
        if masked(uri) != uri:
            others = [known for known in _kept() if masked(known) != masked(uri)]
            os.environ[_KEPT] = " ".join([*others, uri])
    return masked(text)


def whole(uri: str, *known: str) -> str:
    """Return the URI that a masked one stands for.

    Parameters
    ----------
    uri : str
        Any URI; one that is not masked, or has no scheme, stands for itself.
    *known : str
        Whole URIs to look through first; then those of :func:`keep_secrets` and
        ``MLFLOW_TRACKING_URI``.

    Raises
    ------
    ConfigError
        If nobody in this process knows its password.
    """
    if "***" not in uri or "://" not in uri:
        return uri
    begin = uri.rstrip("/")
    for candidate in (*known, *_kept(), os.environ.get("MLFLOW_TRACKING_URI", "")):
        if candidate == uri or not masked(candidate).startswith(begin):
            continue
        # It may have been typed in a mapping or a list, of which the rest stands behind it.
        found = _BEHIND.fullmatch(masked(candidate), len(begin))
        if found and candidate.endswith(found[1]):
            return candidate.removesuffix(found[1])
    allowed = "with its password, which is not kept: give it, or set MLFLOW_TRACKING_URI"
    raise ConfigError("tracking.uri", uri, allowed)


def _kept() -> list[str]:
    return os.environ.get(_KEPT, "").split()
