"""Standard output and standard error that may fail without harm to the work.

A terminal can be closed, a reader can leave, a disk can be full, and an encoding can lack a
character: what is said is lost then, and a run goes on to its end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from fl_app.errors import plain_where_needed, sayable

__all__ = ["Steady", "outputs_may_fail"]


class Steady:
    """A text file whose writes never raise; all else is the file's.

    After the first write that fails, nothing more is written.

    Parameters
    ----------
    file : text file or None
        What is written to; None (a process without standard output) is one that takes anything.

    Attributes
    ----------
    failure : Exception or None
        Why the first write failed.
    """

    def __init__(self, file: IO[str] | None) -> None:
        self.file = file
        self.failure: Exception | None = None
        if file is not None:
            plain_where_needed(file)

    def write(self, text: str) -> int:
        """Write, or not."""
        if self.file is not None and self.failure is None:
            try:
                try:
                    self.file.write(text)
                except UnicodeError:
                    self.file.write(sayable(text, getattr(self.file, "encoding", None) or "ascii"))
            except (OSError, ValueError) as error:  # ValueError: it is closed
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        if self.file is not None and self.failure is None:
            try:
                self.file.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.failure = error
        # What is buffered is written once more as the interpreter ends, which would then exit 120.
        if self.file in (sys.__stdout__, sys.__stderr__):
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.file.fileno())  # type: ignore[union-attr]
                os.close(null)

    def __getattr__(self, name: str) -> Any:
        """Return the file's attribute."""
        if self.file is None and name == "isatty":
            return lambda: False
        return getattr(self.file, name)


@contextmanager
def outputs_may_fail() -> Iterator[Steady]:
    """Let nothing that is printed in the block raise; a block inside another changes nothing.

    Yields
    ------
    Steady
        Standard output, which says afterwards whether it failed.
    """
    for number in (1, 2):  # closed by whoever started us: the next file would get the number
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    before = sys.stdout, sys.stderr
    out, err = (s if isinstance(s, Steady) else Steady(s) for s in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
