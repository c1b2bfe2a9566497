"""Processes that a command starts import nothing of the folder that it was typed in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["folder_stays_off_the_path"]

_VARIABLE = "PYTHONSAFEPATH"


@contextmanager
def folder_stays_off_the_path() -> Iterator[None]:
    """Keep the working directory off the path of Python processes that start meanwhile.

    A command's script does not have it on its own, but ``python -m`` and ``-c`` do, which is how
    joblib starts its processes: a ``numpy.py`` in the folder would run. Processes that are to
    import what this one can are told its path.

    https://docs.python.org/3/using/cmdline.html#envvar-PYTHONSAFEPATH
    """
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
