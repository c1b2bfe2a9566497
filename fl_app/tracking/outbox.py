"""The journal of one run on this machine's disk: what was recorded here is not lost.

A spool is a directory ``FL_APP_HOME/spool/<run>/``. Its files are appended to line by line or
written under another name and renamed, each followed by ``fsync``; so whatever kills the process,
a reader finds whole rounds, and at most one torn last line that was never acknowledged.

================================ ================================================================
``run.json``                     where the run goes, its start, the process that it runs in
``rounds.jsonl``                 one line a round: metrics under their final keys, texts, table rows
``notes.jsonl``                  one line for each set of tags and texts that was learnt on the way
``weights/round_0007.npz``       the global arrays, named, without pickle; there before the line
``models/<name>.npz``, ``.json`` arrays and description of a model to log; there before ``end.json``
``end.json``                     how the run ended
``sent.json``                    how much of all this the tracking server has
``lock``                         held by the process that writes or sends
================================ ================================================================

A spool belongs to whoever holds its lock: the run while it lives, then whoever replays it. Once all
of it was sent, what does not hold arrays stays for a while in ``FL_APP_HOME/runs/<run>/``, which a
page may read while the run goes on (:mod:`fl_app.tracking.events`). A file is in one of the two
folders or in both; its bytes, and so a reader's offset, are the same.

References
----------
Linux, ``fsync(2)``, ``rename(2)``: https://man7.org/linux/man-pages/man2/fsync.2.html
filelock: https://py-filelock.readthedocs.io
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fl_app.home import new_name, run_folder
from fl_app.tracking.files import (
    json_or_empty,
    plain,
    read_lines,
    share,
    sync_dir,
    write,
    write_npz,
)
from fl_app.tracking.journal import Journal
from fl_app.tracking.records import Arrays, LoggedModel, RunEnd, RunStart

__all__ = ["Outbox"]

_STALE_SECONDS = 3600.0
_KEPT = ("rounds.jsonl", "notes.jsonl", "end.json", "sent.json", "run.json")


class Outbox(Journal):
    """One run's journal, held by this object.

    Made by :meth:`create` or :meth:`claim`; ended by :meth:`release` or :meth:`remove`.

    Parameters
    ----------
    path : Path
        The directory.
    lock : FileLock
        Its lock, held.
    """

    _sync = True

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(path)
        self._lock = lock

    @classmethod
    def create(
        cls,
        home: Path,
        target: Mapping[str, Any],
        run: RunStart,
        start_ms: int,
        name: str = "",
    ) -> Outbox:
        """Begin the journal of a run.

        Parameters
        ----------
        home : Path
            As :func:`home_dir` returns it; made where it does not exist.
        target : mapping
            Where the run goes, JSON-ready: what its sender needs to know.
        run : RunStart
            The run's start.
        start_ms : int
            Its Unix time in milliseconds.
        name : str, optional
            The run's name on this machine; by default a new one.

        Returns
        -------
        Outbox
            On the disk, with its start.
        """
        folder = home / "spool"
        folder.mkdir(parents=True, exist_ok=True)
        name = name or new_name(start_ms)
        # Hidden until the lock is held and the start is written: a spool is whole or not there.
        hidden = folder / f".{name}"
        hidden.mkdir(mode=0o700)
        (hidden / "weights").mkdir()
        (hidden / "models").mkdir()
        lock = _lock(hidden)
        lock.acquire(timeout=0)
        cls(hidden, lock).begin(target, run, start_ms)
        sync_dir(hidden)
        hidden.rename(folder / name)
        sync_dir(folder)
        return cls(folder / name, lock)

    @classmethod
    def claim(cls, path: Path) -> Outbox | None:
        """Take a spool that nobody holds.

        Parameters
        ----------
        path : Path
            The directory.

        Returns
        -------
        Outbox or None
            None if somebody holds it, or if there was nothing in it (it is removed).
        """
        if not path.is_dir():
            return None
        lock = _lock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        if (path / "run.json").exists():
            return cls(path, lock)
        shutil.rmtree(path, ignore_errors=True)
        lock.release()
        return None

    @classmethod
    def reopen(cls, home: Path, name: str) -> Outbox | None:
        """Go on with the journal of a run that has ended, whether it was sent or waits.

        Returns
        -------
        Outbox or None
            None where the run is held by somebody, or its record is not there any more.
        """
        path, kept = home / "spool" / name, home / "runs" / name
        if not path.exists() and (kept / "sent.json").exists():
            hidden = path.with_name(f".{name}")
            for part in ("weights", "models"):
                (hidden / part).mkdir(mode=0o700, parents=True)
            for file in _KEPT:
                if (kept / file).exists():
                    share(kept / file, hidden / file)
            hidden.rename(path)
        spool = cls.claim(path)
        if spool is not None:
            for folder in (path, kept):
                (folder / "end.json").unlink(missing_ok=True)
            spool.mark_sent({**spool.sent, "ended": True})
        return spool

    @staticmethod
    def paths(home: Path) -> list[Path]:
        """Return the spools under a home, oldest first; leftovers of a killed start go."""
        folder = home / "spool"
        if not folder.is_dir():
            return []
        for path in folder.glob(".*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    @property
    def name(self) -> str:
        """The run's name on this machine, the same on every replay."""
        return self.path.name

    # ------------------------------------------------------------ writing

    def add_round(self, line: Mapping[str, Any], arrays: Arrays | None) -> None:
        """Keep a round: first its arrays, if any, then the line that makes it count."""
        if arrays is not None:
            write_npz(self.weights(line["server_round"]), arrays)
        super().add_round(line, arrays)

    def keep_last(self, server_round: int, arrays: Arrays | None) -> None:
        """Keep a round's arrays among the files sent at the end, or with None no longer."""
        path = self.files / "weights" / self.weights(server_round).name
        if arrays is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_npz(path, arrays)

    def add_end(self, end: RunEnd, end_ms: int) -> None:
        """Keep the end: first its models and files, then the file that makes it count."""
        models = [self._add_model(model) for model in end.models]
        for path, content in end.files.items():
            file = self.files / path
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, content)
        self._write_end(end, end_ms, models)
        sync_dir(self.path)

    def _add_model(self, model: LoggedModel) -> dict[str, Any]:
        write_npz(self.path / "models" / f"{model.name}.npz", model.arrays)
        spec = json.dumps(dict(model.spec), default=plain)
        write(self.path / "models" / f"{model.name}.json", spec.encode())
        return {"name": model.name, "server_round": model.server_round}

    def mark_sent(self, sent: Mapping[str, Any]) -> None:
        """Keep how far sending got. What it forgets is sent again, which does no harm."""
        write(self.path / "sent.json", json.dumps(dict(sent)).encode(), sync=False)

    # ------------------------------------------------------------ reading

    @property
    def start(self) -> dict[str, Any]:
        """What :meth:`create` got: ``target``, ``start_ms``, ``process`` and ``run``."""
        return dict(json.loads((self.path / "run.json").read_text()))

    @property
    def sent(self) -> dict[str, Any]:
        """What :meth:`mark_sent` kept; empty at first."""
        return json_or_empty(self.path / "sent.json")

    @property
    def end(self) -> dict[str, Any]:
        """The end, or an empty dict while there is none."""
        return json_or_empty(self.path / "end.json")

    @property
    def files(self) -> Path:
        """Folder of the run's further artifacts; there may be none."""
        return self.path / "files"

    def weights(self, server_round: int) -> Path:
        """Return where a round's arrays are."""
        return self.path / "weights" / f"round_{server_round:04d}.npz"

    def rounds(self, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each round's line from a byte offset on, with the offset after it."""
        return read_lines(self.path / "rounds.jsonl", offset)

    def notes(self, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each note from a byte offset on, with the offset after it."""
        return read_lines(self.path / "notes.jsonl", offset)

    def last_sign_ms(self) -> int:
        """Return the Unix time in milliseconds of the last thing that the run wrote."""
        written = ("run.json", "rounds.jsonl", "notes.jsonl", "end.json")
        times = [p.stat().st_mtime for n in written if (p := self.path / n).exists()]
        return int(max(times) * 1000)

    # ------------------------------------------------------------ the end

    def release(self) -> None:
        """Give the spool up, so that it can be claimed."""
        self._lock.release()

    def remove(self) -> None:
        """Remove the spool: everything in it was sent. Its record stays in ``runs/``, if it can."""
        with contextlib.suppress(OSError):
            folder = run_folder(self.path.parents[1], self.name)
            # Linked, not moved: until the spool goes as a whole it can be sent again.
            for file in (self.path / name for name in _KEPT):
                if file.exists():
                    share(file, folder / file.name)
        gone = self.path.with_name(f".gone-{self.name}")
        with contextlib.suppress(OSError):
            self.path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        self.release()


def _lock(path: Path) -> FileLock:
    # Taken in the run's thread, given up in the sender's: hence not bound to a thread.
    return FileLock(path / "lock", thread_local=False)
