"""What happened in one run, in one SQLite file: ``FL_APP_HOME/runs/<run>/journal.db``.

It is written once, by one writer, and everybody else reads it
(:mod:`fl_app.tracking.journal_reader`): the uploader, the live page, and whoever sends the rest of
a run that was killed. A round is in it when :meth:`Journal.add_round` returns, whatever kills the
process or the machine.

=========== ======================================================================================
``facts``   ``start`` (where the run goes, its start, its process), ``end``, and ``sent``: how much
            of all this the tracking server has; JSON
``rounds``  one row a round: metrics under their final keys, texts, rows of tables
``notes``   one row for each set of tags and texts that was learnt on the way
``events``  what goes on (:mod:`fl_app.tracking.events`); those inside a round go when it is over
``arrays``  by kind and round: ``weights`` to send, ``model/final``, ``seen`` by the page, and what
            a run that broke off goes on from (``now``, ``best``, ``state``); large ones stand
            beside, in ``arrays/``
``files``   further artifacts of the end
=========== ======================================================================================

JSON is compressed by zlib. While a run goes on there are two more files, ``journal.db-wal`` and
``-shm``, and ``room`` (:mod:`fl_app.tracking.journal_disk`); at its end it is one file that can be
copied. ``lock`` is held by the process that writes, and is there until the run is over and sent.
While it writes it touches it every 5 s, for those on other machines
(:func:`fl_app.tracking.liveness.liveness`).

References
----------
SQLite, write-ahead log: https://www.sqlite.org/wal.html
SQLite, ``synchronous``: https://www.sqlite.org/pragma.html#pragma_synchronous
filelock: https://py-filelock.readthedocs.io
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from filelock import FileLock, Timeout

from fl_app.errors import DiskError, FlAppError, one_line
from fl_app.home import Process, new_name, run_folder
from fl_app.tracking.files import npz_bytes, sync_dir, write_npz
from fl_app.tracking.journal_disk import give_room, keep_room, shared_disk, trouble
from fl_app.tracking.journal_reader import JOURNAL, JournalReader, pack
from fl_app.tracking.records import Arrays, RunEnd, RunStart

__all__ = ["Journal"]

Step = tuple[str, Sequence[Any]]
_LOG = logging.getLogger("fl_app")
_VERSION = 1
_SCHEMA = """
CREATE TABLE facts (key TEXT PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE rounds (id INTEGER PRIMARY KEY, server_round INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE notes (id INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, server_round INTEGER,
                     content BLOB NOT NULL);
CREATE TABLE arrays (kind TEXT, server_round INTEGER, file TEXT, content BLOB,
                     PRIMARY KEY (kind, server_round));
CREATE TABLE files (path TEXT PRIMARY KEY, content BLOB NOT NULL);
"""
_BESIDE_BYTES = 1 << 21
_BUFFER_SECONDS = 0.5
_BUSY_SECONDS = 20.0
_STALE_SECONDS = 3600.0
_BEAT_SECONDS = 5.0


class Journal(JournalReader):
    """One run's journal, held by this process; made by :meth:`create` or :meth:`claim`.

    All who write in one process share one object: each calls :meth:`hold`, but for the one that
    made it, and :meth:`release`.

    Parameters
    ----------
    folder : Path
        The run's folder.
    lock : FileLock
        Its lock, held.
    """

    _open: ClassVar[dict[Path, Journal]] = {}

    def __init__(self, folder: Path, lock: FileLock) -> None:
        super().__init__(folder)
        self._lock = lock
        self._base_lock, self._buffer_lock = threading.RLock(), threading.Lock()
        self._buffer: list[Step] = []
        self._events: list[tuple[int | None, Mapping[str, Any]]] = []
        self._over: int | None = None  # the last round that was recorded
        self._staged: list[tuple[str, int, Arrays, Collection[int]]] = []
        self._due: dict[tuple[str, int], Arrays] = {}  # arrays to write, by kind and round
        self._kept: dict[str, set[int]] = {}  # rounds of a kind that stay then
        self._beside = set[str]()  # files of such arrays
        self._wake, self._closing = threading.Event(), threading.Event()
        self._tended = False
        self._failure: DiskError | None = None  # rounds were lost that nobody was told of
        self._holders = 1
        self._durable, self._warned, self._is_sent = True, False, False
        self._base = sqlite3.connect(
            folder / JOURNAL, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare()
        except BaseException:
            self._base.close()
            raise
        self._open[folder] = self

    def _prepare(self) -> None:
        """Choose how what is written gets to the disk, and make the tables."""
        mode = "wal"
        if kind := shared_disk(self.folder):
            mode = f"delete ({kind})"
        elif (got := self._base.execute("PRAGMA journal_mode=WAL").fetchone()[0]) != "wal":
            mode = f"delete (SQLite: {got})"
        if mode != "wal":
            self._base.execute("PRAGMA journal_mode=DELETE")
            _LOG.info("%s: no write-ahead log on this file system: %s", self.folder, mode)
        self._is_wal = mode == "wal"
        # Without a write-ahead log the removal of SQLite's journal is the commit; EXTRA syncs it.
        self._base.execute(f"PRAGMA synchronous={'FULL' if self._is_wal else 'EXTRA'}")
        # Some builds overwrite with zeros what is deleted, in the log too: 1 MB for 1 MB of arrays.
        self._base.execute("PRAGMA secure_delete=OFF")
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise FlAppError(f"{self.folder}: this journal was written by a later fl_app")
        if version < _VERSION:
            self._base.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")

    @classmethod
    def create(cls, home: Path, name: str = "") -> Self:
        """Begin a run's journal.

        Parameters
        ----------
        home : Path
            As :func:`~fl_app.home.home_dir` returns it; made where it does not exist.
        name : str, optional
            The run's name on this machine; by default a new one.

        Raises
        ------
        DiskError
            If there is no room for it.
        OSError, sqlite3.Error
            If it cannot be made.
        """
        folder = run_folder(home, name or new_name(time.time_ns() // 1_000_000))
        lock = _lock(folder)
        lock.acquire(timeout=0)
        try:
            keep_room(folder)
            journal = cls(folder, lock)
        except BaseException as error:
            lock.release()
            if full := trouble(error):
                give_room(folder)
                raise DiskError(f"{full}: no run can be kept in {folder}") from error
            raise
        sync_dir(folder)
        sync_dir(folder.parent)
        return journal

    @classmethod
    def opened(cls, home: Path, name: str) -> Journal | None:
        """Return the journal of a run that this process writes, held once more."""
        journal = cls._open.get(home / "runs" / name)
        if journal is not None:
            journal.hold()
        return journal

    @classmethod
    def claim(cls, folder: Path) -> Self | None:
        """Take the journal of a run that nobody holds; None if somebody does or there is none."""
        if not (folder / JOURNAL).exists():
            return None
        lock = _lock(folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        try:
            return cls(folder, lock)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def pending(home: Path) -> list[Path]:
        """Return the folders of runs that go on or are not sent, oldest first."""
        folders = []
        for lock in (home / "runs").glob("*/lock"):
            folder = lock.parent
            with contextlib.suppress(FileNotFoundError):  # another process removes it, too
                if (folder / JOURNAL).exists():
                    folders.append(folder)
                elif time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)  # of a start that was killed
        return sorted(folders)

    # ------------------------------------------------------------ the connection

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._base_lock:
            return self._base.execute(query, values).fetchall()

    def _write(self, steps: Iterable[Step], sync: bool = True) -> None:
        """Do all of some steps, or none."""
        with self._base_lock:
            late = not sync and self._durable and self._is_wal
            if late:  # an event is not worth a wait for the disk
                self._base.execute("PRAGMA synchronous=NORMAL")
            try:
                self._base.execute("BEGIN IMMEDIATE")
                for query, values in steps:
                    self._base.execute(query, values)
                self._base.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self._base.execute("ROLLBACK")
                raise self._explained(error) from error
            finally:
                if late:
                    self._base.execute("PRAGMA synchronous=FULL")

    def _explained(self, error: BaseException) -> BaseException:
        """Return a fault of the disk in words, with what is kept there; another one as it is."""
        if not (full := trouble(error)):
            return error
        kept = "what was recorded before"
        with contextlib.suppress(sqlite3.Error):
            last = self._rows("SELECT MAX(server_round) FROM rounds")[0][0]
            kept = "no round" if last is None else f"rounds 0 to {last}" if last else "round 0"
        verb = "are" if "rounds" in kept else "is"
        return DiskError(f"{full}: {kept} {verb} kept in {self.folder}")

    def _rescued(self, error: DiskError) -> DiskError:
        """Write what is buffered where room was kept; return the error with what is there then."""
        give_room(self.folder)
        with self._base_lock, contextlib.suppress(sqlite3.Error):
            self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        try:
            self.flush()
        except DiskError:
            with self._buffer_lock:
                self._buffer.clear()
        again = self._explained(error.__cause__ or error)
        return again if isinstance(again, DiskError) else error

    # ------------------------------------------------------------ writing

    def begin(
        self, target: Mapping[str, Any], run: RunStart, start_ms: int, durable: bool = True
    ) -> None:
        """Keep the start.

        Parameters
        ----------
        target : mapping
            Where the run goes, JSON-ready: what its sender needs to know.
        run : RunStart
            The run's start.
        start_ms : int
            Its Unix time in milliseconds.
        durable : bool, default True
            Whether each round is on the disk before the next; else rounds are written within 0.5 s.
        """
        process = asdict(Process.current())
        start = {
            "target": dict(target),
            "start_ms": start_ms,
            "process": process,
            "run": asdict(run),
        }
        self._set_durable(durable)
        self._write([_put_fact("start", start)])
        self._tend()

    def _set_durable(self, durable: bool) -> None:
        self._durable = durable
        if not durable:
            with self._base_lock:
                self._base.execute("PRAGMA synchronous=OFF")

    def add_round(self, line: Mapping[str, Any], **arrays: Arrays) -> None:
        """Keep a round.

        Parameters
        ----------
        line : mapping
            JSON-ready; NaN is kept. Holds ``server_round``.
        **arrays : mapping of str to ndarray
            Its arrays by kind: ``weights`` to send, or ``last`` to send at the end.

        Raises
        ------
        DiskError
            If there is no room: for this round, which is left out as a whole, or where rounds are
            written later for one before.
        """
        if self._failure is not None and not self._durable:
            raise self._rescued(self._failure)
        number = line["server_round"]
        row = "INSERT INTO rounds (server_round, content) VALUES (?, ?)", (number, pack(line))
        with self._buffer_lock:
            self._over = number  # what went on inside the round is over
            self._events = [e for e in self._events if e[0] is None or e[0] > number]
            self._due |= {(kind, number): values for kind, values in arrays.items()}
            for kind, stage, values, keep in self._staged:
                kept = self._kept[kind] = {*keep, stage}
                for due in [d for d in self._due if d[0] == kind and d[1] not in kept]:
                    del self._due[due]
                self._due[kind, stage] = values
            self._staged = []
        if self._durable:
            self.flush([row], sync=True)
        else:
            self._later(row)

    def stage(
        self, kind: str, server_round: int, arrays: Arrays, keep: Collection[int] = ()
    ) -> None:
        """Keep arrays of a kind with the next round that is added, in the place of all before.

        Parameters
        ----------
        kind : str
            The kind.
        server_round : int
            Their round.
        arrays : mapping of str to ndarray
            The arrays. A mapping that is kept as another kind too stands in one file.
        keep : collection of int, optional
            Other rounds whose arrays of the kind stay.
        """
        self._staged.append((kind, server_round, arrays, keep))

    def keep_arrays(self, kind: str, server_round: int, arrays: Arrays) -> None:
        """Keep arrays of a kind for a round, within 0.5 s."""
        self._later(self._put_arrays(kind, server_round, arrays))

    def drop_arrays(self, kind: str, server_rounds: Sequence[int]) -> None:
        """Forget arrays of a kind."""
        where = f"kind = ? AND server_round IN ({', '.join('?' * len(server_rounds))})"
        values = (kind, *server_rounds)
        files = self._rows(f"SELECT file FROM arrays WHERE {where} AND file IS NOT NULL", *values)
        # A file goes when the disk knows that nobody needs it any more.
        with contextlib.suppress(DiskError):  # then they stay
            self.flush([(f"DELETE FROM arrays WHERE {where}", values)], sync=bool(files))
            self._unlink(file for (file,) in files)

    def _unlink(self, files: Iterable[str | None]) -> None:
        """Remove files that no row names."""
        if gone := {*files} - {None}:
            rows = self._rows("SELECT file FROM arrays WHERE file IS NOT NULL")
            for file in gone - {file for (file,) in rows}:
                (self.folder / str(file)).unlink(missing_ok=True)
                self._beside.discard(str(file))

    def _put_arrays(
        self,
        kind: str,
        server_round: int,
        arrays: Arrays,
        written: dict[int, str] | None = None,
    ) -> Step:
        query = "INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?)"
        if sum(array.nbytes for array in arrays.values()) < _BESIDE_BYTES:
            return query, (kind, server_round, None, npz_bytes(arrays))
        written = {} if written is None else written
        if file := written.get(id(arrays)):
            return query, (kind, server_round, file, None)
        # There, with its name, before the commit that counts on it.
        path = self.folder / "arrays" / f"{kind.replace('/', '_')}_{server_round:04d}.npz"
        is_new = not path.parent.exists()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            write_npz(path, arrays, sync=self._durable)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise self._explained(error) from error
        if self._durable and is_new:
            sync_dir(self.folder)
        written[id(arrays)] = file = f"arrays/{path.name}"
        return query, (kind, server_round, file, None)

    def add_note(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Keep tags and texts that were learnt after the start."""
        content = pack({"tags": dict(tags), "texts": dict(texts)})
        self.flush([("INSERT INTO notes (content) VALUES (?)", (content,))], sync=True)

    def add_event(self, event: Mapping[str, Any], now: bool = False) -> None:
        """Keep an event, within 0.5 s or `now`; one with a ``round`` until that is recorded."""
        with self._buffer_lock:
            self._events.append((event.get("round"), event))
        if now:
            self.flush(sync=True)
        else:
            self._later()

    def add_end(self, end: RunEnd, end_ms: int) -> None:
        """Keep the end, with its models and files.

        Raises
        ------
        DiskError
            If there is no room: then the run has failed, and that is kept without models and files.
        """
        try:
            self._add_end(end, end_ms)
        except DiskError as error:
            error = self._rescued(error)
            status = "FAILED" if end.status == "FINISHED" else end.status
            said = end.error or str(error)
            small = RunEnd(status, end.tags, texts=end.texts, error=said)
            self._add_end(small, end_ms)
            if end.models or end.files or end.status != status:
                raise error from None

    def _add_end(self, end: RunEnd, end_ms: int) -> None:
        old = "FROM arrays WHERE kind LIKE 'model/%'"  # of an end before, where the run went on
        gone = {file for (file,) in self._rows(f"SELECT file {old}")}
        steps: list[Step] = [("DELETE FROM files", ()), (f"DELETE {old}", ())]
        for model in end.models:
            steps.append(self._put_arrays(f"model/{model.name}", model.server_round, model.arrays))
        for path, content in end.files.items():
            steps.append(_put_file(path, content))
        models = [
            {"name": m.name, "server_round": m.server_round, "spec": dict(m.spec)}
            for m in end.models
        ]
        summary = {
            "status": end.status,
            "error": end.error,
            "tags": dict(end.tags),
            "texts": dict(end.texts),
            "end_ms": end_ms,
            "models": models,
        }
        self.flush([*steps, _put_fact("end", summary)], sync=True)
        kept = {file for (file,) in self._rows(f"SELECT file {old}")}
        self._unlink(gone - kept)

    def mark_sent(self, sent: Mapping[str, Any]) -> None:
        """Keep how far sending got. What it forgets is sent again, which does no harm."""
        with contextlib.suppress(DiskError):
            self._write([_put_fact("sent", dict(sent))], sync=False)

    def restore(self, facts: Mapping[str, Mapping[str, Any]], files: Mapping[str, bytes]) -> None:
        """Put facts and files of another kind of record here, all or none; empty facts are none."""
        steps = [_put_fact(key, fact) for key, fact in facts.items() if fact]
        self.flush([*steps, *(_put_file(path, content) for path, content in files.items())], True)

    # ------------------------------------------------------------ later

    def _later(self, *steps: Step) -> None:
        with self._buffer_lock:
            self._buffer += steps
        self._wake.set()
        self._tend()

    def _tend(self) -> None:
        """Begin to write what is buffered, and to touch the lock."""
        with self._buffer_lock:
            if self._tended:
                return
            self._tended = True
        with contextlib.suppress(RuntimeError):  # no more threads: the interpreter ends
            threading.Thread(target=self._tending, name="fl_app-journal", daemon=True).start()

    def _tending(self) -> None:
        touched = 0.0
        while not self._closing.is_set():
            if time.monotonic() - touched > _BEAT_SECONDS:
                touched = time.monotonic()
                with contextlib.suppress(OSError):
                    os.utime(self.folder / "lock")
            if self._wake.wait(_BEAT_SECONDS / 2):
                self._closing.wait(_BUFFER_SECONDS)
                self._wake.clear()
                self._flush_quietly()

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except DiskError as error:  # who adds a round, or the end, is told
            self._failure = error
        except Exception as error:
            if not self._warned:
                self._warned = True
                _LOG.warning("a page cannot follow this run: %s", one_line(error))

    def flush(self, steps: Iterable[Step] = (), sync: bool = False) -> None:
        """Write what is buffered, and `steps` after it, now.

        Raises
        ------
        DiskError, sqlite3.Error
            If it cannot be written; what was buffered is lost, but rounds that are written later.
        """
        with self._base_lock:
            with self._buffer_lock:
                buffered, self._buffer = self._buffer, []
                events, self._events = self._events, []
                over, self._over = self._over, None
                due, self._due = self._due, {}
                kept, self._kept = self._kept, {}
            if over is not None:
                buffered.append(("DELETE FROM events WHERE server_round <= ?", (over,)))
            query = "INSERT INTO events (server_round, content) VALUES (?, ?)"
            for number, event in events:
                with contextlib.suppress(TypeError, ValueError):  # no JSON: it costs itself alone
                    buffered.append((query, (number, pack(event))))
            if buffered or steps or due:
                written: dict[int, str] = {}
                try:
                    arrays = [self._put_arrays(*key, a, written) for key, a in due.items()]
                    arrays += [_drop_others(kind, rounds) for kind, rounds in kept.items()]
                    self._beside.update(written.values() if kept else ())
                    self._write([*buffered, *arrays, *steps], sync)
                    self._unlink(self._beside)
                except DiskError:
                    if not self._durable:  # rounds, which the room for the end may take
                        with self._buffer_lock:
                            self._buffer[:0] = buffered
                            self._due, self._kept = due | self._due, kept | self._kept
                    raise

    # ------------------------------------------------------------ the end

    def reopen(self, durable: bool = True) -> None:
        """Say that a run which has ended goes on, here; `durable` is as for :meth:`begin`."""
        self._is_sent = False
        keep_room(self.folder)
        self._set_durable(durable)
        self._tend()
        start = {**self.start, "process": asdict(Process.current())}
        self.flush([("DELETE FROM facts WHERE key = 'end'", ()), _put_fact("start", start)], True)
        fresh = {"ended": True, "told": False, "models": {}, "model": {}, "registered": False}
        self.mark_sent({**self.sent, **fresh, "whole": False})

    def mark_whole(self) -> None:
        """Say that all of it was sent, or that there is nowhere to send it."""
        self._is_sent = True

    def hold(self) -> None:
        """Say that one more writes."""
        with self._buffer_lock:
            self._holders += 1

    def release(self) -> None:
        """Say that one writes no longer; the last one closes it, as one file, and gives it up."""
        with self._buffer_lock:
            self._holders -= 1
            if self._holders:
                return
        self._flush_quietly()
        self._closing.set()
        self._wake.set()
        give_room(self.folder)
        with self._base_lock:
            with contextlib.suppress(OSError, sqlite3.Error, DiskError):
                if self._is_sent:
                    self._clear()
            for _ in range(20):
                with contextlib.suppress(sqlite3.Error):  # somebody reads: a moment later
                    self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    self._base.execute("PRAGMA journal_mode=DELETE").fetchone()
                    break
                time.sleep(0.02)
            self._base.close()
        self._open.pop(self.folder, None)
        try:
            if self._is_sent:
                with contextlib.suppress(OSError):
                    (self.folder / "lock").unlink(missing_ok=True)
        finally:
            self._lock.release()

    def _clear(self) -> None:
        """Forget arrays and files of a run that was sent.

        But its models' and what a page shows, and what one that is not finished goes on from.
        """
        where = "kind NOT LIKE 'model/%' AND kind != 'seen'"
        if self.end.get("status") != "FINISHED":
            where += " AND kind NOT IN ('now', 'best', 'state')"
        files = self._rows(f"SELECT file FROM arrays WHERE {where}")
        whole = _put_fact("sent", {**self.sent, "whole": True})
        self._write([(f"DELETE FROM arrays WHERE {where}", ()), ("DELETE FROM files", ()), whole])
        self._unlink(file for (file,) in files)
        named = {file for (file,) in self._rows("SELECT file FROM arrays")}
        for path in (self.folder / "arrays").glob("*"):  # of a commit that failed or was killed
            if f"arrays/{path.name}" not in named:
                path.unlink(missing_ok=True)
        for outbox in self.folder.glob("outbox-*"):  # of a sender that was killed
            shutil.rmtree(outbox, ignore_errors=True)
        self._base.execute("VACUUM")


def _put_fact(key: str, content: Mapping[str, Any]) -> Step:
    return "INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, pack(content))


def _drop_others(kind: str, rounds: Collection[int]) -> Step:
    marks = ", ".join("?" * len(rounds))
    query = f"DELETE FROM arrays WHERE kind = ? AND server_round NOT IN ({marks})"
    return query, (kind, *sorted(rounds))


def _put_file(path: str, content: bytes) -> Step:
    return "INSERT OR REPLACE INTO files VALUES (?, ?)", (path, bytes(content))


def _lock(folder: Path) -> FileLock:
    # Taken in the run's thread, given up in the sender's: hence not bound to a thread.
    return FileLock(folder / "lock", thread_local=False, mode=0o600)
