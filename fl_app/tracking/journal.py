"""The lines of a run, on the disk before anything else is done with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fl_app.home import Process
from fl_app.tracking.files import append, json_line, write
from fl_app.tracking.records import Arrays, RunEnd, RunStart

__all__ = ["Journal"]


class Journal:
    """The record of one run in a folder, without arrays and without promises about a crash.

    Parameters
    ----------
    path : Path
        The folder.
    """

    _sync = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, target: Mapping[str, Any], run: RunStart, start_ms: int) -> None:
        """Keep the start; the parameters are those of :meth:`Outbox.create`."""
        start = {
            "target": dict(target),
            "start_ms": start_ms,
            "process": asdict(Process.current()),
            "run": asdict(run),
        }
        write(self.path / "run.json", json.dumps(start).encode(), self._sync)
        (self.path / "rounds.jsonl").touch()
        (self.path / "notes.jsonl").touch()

    def add_round(self, line: Mapping[str, Any], arrays: Arrays | None) -> None:
        """Keep a round.

        Parameters
        ----------
        line : mapping
            JSON-ready; NaN is kept. Holds ``server_round``.
        arrays : mapping of str to ndarray or None
            Global arrays; here they are left out.
        """
        append(self.path / "rounds.jsonl", json_line(line), self._sync)

    def keep_last(self, server_round: int, arrays: Arrays | None) -> None:
        """Keep a round's arrays until the end, or with None no longer; here they are left out."""

    def add_note(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Keep tags and texts that were learnt after the start."""
        note = {"tags": dict(tags), "texts": dict(texts)}
        append(self.path / "notes.jsonl", json_line(note), self._sync)

    def add_end(self, end: RunEnd, end_ms: int) -> None:
        """Keep the end, without its models and files."""
        self._write_end(end, end_ms, [])

    def _write_end(self, end: RunEnd, end_ms: int, models: list[dict[str, Any]]) -> None:
        summary = {
            "status": end.status,
            "error": end.error,
            "tags": dict(end.tags),
            "texts": dict(end.texts),
            "end_ms": end_ms,
            "models": models,
        }
        write(self.path / "end.json", json.dumps(summary).encode(), self._sync)
