"""Reads what a run's journal (:mod:`fl_app.tracking.journal`) says, also while it is written."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl_app.tracking.files import plain, read_npz
from fl_app.tracking.records import Arrays

__all__ = ["BROKEN", "JOURNAL", "UNREADABLE", "JournalReader", "pack", "unpack"]

JOURNAL = "journal.db"
"""Name of the file in a run's folder."""
BROKEN = (ValueError, TypeError, RecursionError, EOFError, zlib.error, zipfile.BadZipFile)
"""What reading one damaged row raises."""
UNREADABLE = (OSError, sqlite3.Error, *BROKEN)
"""What reading raises where there is no journal, or a damaged one."""
_READ_SECONDS = 1.0
_PAGE = 200  # rows of a read: none takes long


def pack(content: Any) -> bytes:
    """Return JSON, NumPy's values as JSON's, compressed."""
    return zlib.compress(json.dumps(content, default=plain).encode(), 1)


def unpack(content: bytes) -> dict[str, Any]:
    """Return the object that :func:`pack` wrote; for another thing raise one of `UNREADABLE`."""
    return dict(json.loads(zlib.decompress(content)))


class JournalReader:
    """Reads a run's journal, which may be written meanwhile; nothing is held between two reads.

    Parameters
    ----------
    folder : Path
        The run's folder.

    Notes
    -----
    Every method raises one of :data:`UNREADABLE` where there is no journal, or where it is damaged.
    Damaged rows of rounds, notes and events are left out.

    Attributes
    ----------
    damaged : set of str
        The rows that were left out, as ``rounds 3``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: set[str] = set()
        self._reading: sqlite3.Connection | None = None

    def __eq__(self, other: object) -> bool:
        """Return whether it is of the same run."""
        return isinstance(other, JournalReader) and other.folder == self.folder

    def __hash__(self) -> int:
        """Return a hash of the run's folder."""
        return hash(self.folder)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Open the file once for all that is read in this block, by one thread."""
        with self._opened() as self._reading:
            try:
                yield
            finally:
                self._reading = None

    def _opened(self) -> contextlib.closing[sqlite3.Connection]:
        path = (self.folder / JOURNAL).as_uri()
        base = sqlite3.connect(f"{path}?mode=ro", timeout=_READ_SECONDS, uri=True)
        return contextlib.closing(base)

    @property
    def name(self) -> str:
        """The run's name on this machine."""
        return self.folder.name

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        if self._reading is not None:
            return self._reading.execute(query, values).fetchall()
        with self._opened() as base:
            return base.execute(query, values).fetchall()

    def check(self) -> None:
        """Read the whole file, and raise one of :data:`UNREADABLE` where a page is damaged."""
        ((said,),) = self._rows("PRAGMA quick_check(1)")
        if said != "ok":
            raise ValueError(" ".join(said.split()))

    def fact(self, key: str) -> dict[str, Any]:
        """Return a fact; an empty dict where there is none."""
        return self._one("SELECT content FROM facts WHERE key = ?", key)

    @property
    def start(self) -> dict[str, Any]:
        """The start: ``target``, ``start_ms``, ``process`` and ``run``."""
        return self.fact("start")

    @property
    def sent(self) -> dict[str, Any]:
        """What :meth:`Journal.mark_sent` kept; empty at first.

        Also where that is damaged: to send all again changes nothing.
        """
        with contextlib.suppress(*BROKEN):
            return self.fact("sent")
        return {}

    @property
    def end(self) -> dict[str, Any]:
        """The end, or an empty dict while there is none."""
        return self.fact("end")

    def rounds(self, after: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each round after a position, with its own position."""
        return self._each("rounds", after)

    def count_rounds(self, after: int = 0) -> int:
        """Return how many rounds there are after a position."""
        return int(self._rows("SELECT COUNT(*) FROM rounds WHERE id > ?", after)[0][0])

    def has_checkpoint(self) -> bool:
        """Return whether the last round was kept so that the run can go on after it."""
        last = self._rows("SELECT server_round FROM rounds ORDER BY id DESC LIMIT 1")
        return bool(last) and self.kept("state")[-1:] == [last[0][0]]

    def notes(self, after: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each note after a position, with its own position."""
        return self._each("notes", after)

    def events(self, after: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each event after a position, with its own position."""
        return self._each("events", after)

    def first_event(self) -> dict[str, Any]:
        """Return the first event; an empty dict where there is none."""
        return self._event("ORDER BY id")

    def last_event(self) -> dict[str, Any]:
        """Return the last event; an empty dict where there is none."""
        return self._event("ORDER BY id DESC")

    def _event(self, order: str) -> dict[str, Any]:
        return self._one(f"SELECT content FROM events {order} LIMIT 1")

    def _one(self, query: str, *values: Any) -> dict[str, Any]:
        rows = self._rows(query, *values)
        return unpack(rows[0][0]) if rows else {}

    def _each(self, table: str, after: int) -> Iterator[tuple[dict[str, Any], int]]:
        query = f"SELECT content, id FROM {table} WHERE id > ? ORDER BY id LIMIT {_PAGE}"
        while rows := self._readable(query, table, after):
            for content, after in rows:
                try:
                    unpacked = unpack(content)
                except BROKEN:
                    self.damaged.add(f"{table} {after}")
                else:
                    yield unpacked, after

    def _readable(self, query: str, table: str, after: int) -> list[tuple[Any, ...]]:
        """Return rows; where a page of the file is damaged one by one, b"" for what was there."""
        try:
            return self._rows(query, after)
        except sqlite3.OperationalError:  # not now
            raise
        except sqlite3.DatabaseError:
            ((last,),) = self._rows(f"SELECT MAX(id) FROM {table}")
        rows: list[tuple[Any, ...]] = []
        for number in range(after + 1, min(last, after + _PAGE) + 1):
            try:
                rows += self._rows(f"SELECT content, id FROM {table} WHERE id = ?", number)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                rows.append((b"", number))
        return rows

    def kept(self, kind: str) -> list[int]:
        """Return the rounds of which there are arrays of a kind, in order."""
        query = "SELECT server_round FROM arrays WHERE kind = ? ORDER BY server_round"
        return [number for (number,) in self._rows(query, kind)]

    def arrays(self, kind: str, server_round: int) -> Arrays:
        """Return the arrays of a kind and a round; KeyError where there are none."""
        found = self._content(kind, server_round)
        if found is None:
            raise KeyError(f"no arrays {kind!r} of round {server_round}")
        return read_npz(found)

    def _content(self, kind: str, server_round: int) -> Path | io.BytesIO | None:
        query = "SELECT file, content FROM arrays WHERE kind = ? AND server_round = ?"
        for file, content in self._rows(query, kind, server_round):
            return self.folder / file if file else io.BytesIO(content)
        return None

    def copy_arrays(self, kind: str, server_round: int, target: Path) -> bool:
        """Write arrays into an ``.npz`` file; return whether there were any."""
        found = self._content(kind, server_round)
        if isinstance(found, Path):
            if not found.exists():  # it was sent: the machine fell before that was on the disk
                return False
            try:
                target.hardlink_to(found)
            except OSError:
                shutil.copyfile(found, target)
        elif found is not None:
            target.write_bytes(found.getbuffer())
        return found is not None

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of the end's further artifacts."""
        for (path,) in self._rows("SELECT path FROM files ORDER BY path"):
            for (content,) in self._rows("SELECT content FROM files WHERE path = ?", path):
                yield path, content

    def last_sign_ms(self) -> int:
        """Return the Unix time in milliseconds of the last thing that is known of the run."""
        last = self._one("SELECT content FROM rounds ORDER BY id DESC LIMIT 1")
        signs = self.last_event().get("time_ms"), last.get("timestamp_ms"), self.start["start_ms"]
        return max(int(sign or 0) for sign in signs)
