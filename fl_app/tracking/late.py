"""Writes lines a little later, so that nobody waits for the disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_app.errors import one_line
from fl_app.tracking.files import append, json_line
from fl_app.tracking.journal import Journal
from fl_app.tracking.records import Arrays, RunEnd

__all__ = ["LateFile", "LateJournal"]

_LOG = logging.getLogger("fl_app")
_SECONDS = 0.5


class LateFile:
    """A file whose lines are written together, at most 0.5 s late, without ``fsync``.

    Lines that cannot be written are lost, with one warning.

    Parameters
    ----------
    path : Path
        The file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._lines: list[bytes] = []
        self._timer: threading.Timer | None = None
        self._warned = False

    def add(self, line: bytes) -> None:
        """Take a line with its end."""
        with self._lock:
            self._lines.append(line)
            if self._timer is None:
                self._timer = threading.Timer(_SECONDS, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write what is there now."""
        with self._writing:  # which nobody waits for who adds a line
            with self._lock:
                lines, self._lines = self._lines, []
                timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            try:
                if lines:
                    append(self.path, b"".join(lines), sync=False)
            except Exception as error:
                if not self._warned:
                    self._warned = True
                    _LOG.warning("a page cannot follow this run: %s", one_line(error))


class LateJournal(Journal):
    """The record of one run in a folder, whose rounds are written a little later.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rounds = LateFile(path / "rounds.jsonl")

    def add_round(self, line: Mapping[str, Any], arrays: Arrays | None) -> None:
        """Keep a round, without its arrays."""
        self._rounds.add(json_line(line))

    def add_end(self, end: RunEnd, end_ms: int) -> None:
        """Keep the end, without its models and files, after all rounds."""
        self._rounds.flush()
        super().add_end(end, end_ms)
