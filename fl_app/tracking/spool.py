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
import io
import json
import os
import secrets
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from fl_app.errors import FlAppError
from fl_app.tracking.base import Arrays, LoggedModel, RunEnd, RunStart

__all__ = [
    "Journal",
    "Process",
    "Spool",
    "append",
    "home_dir",
    "json_line",
    "new_name",
    "npz_bytes",
    "read_lines",
    "read_npz",
    "run_folder",
    "share",
    "write",
    "write_npz",
]

_STALE_SECONDS = 3600.0
_KEPT = ("rounds.jsonl", "notes.jsonl", "end.json", "sent.json", "run.json")


def home_dir(home: str | Path | None = None) -> Path:
    """Return the directory in which fl_app keeps things.

    Parameters
    ----------
    home : path, optional
        By default the environment variable ``FL_APP_HOME``, else ``~/.fl_app``.

    Returns
    -------
    Path
        Absolute. It need not exist.
    """
    given = home or os.environ.get("FL_APP_HOME") or "~/.fl_app"
    return Path(given).expanduser().absolute()


def new_name(start_ms: int) -> str:
    """Return a name for a run on this machine: names are in the order of their starts.

    Parameters
    ----------
    start_ms : int
        Unix time in milliseconds.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(start_ms / 1000))
    return f"{stamp}-{start_ms % 1000:03x}{secrets.token_hex(3)[:5]}"


def run_folder(home: Path, name: str) -> Path:
    """Make the folder in which a run's record stays; only its owner reads it.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    folder = home / "runs" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one that got the same number.

    Parameters
    ----------
    host : str
        Name of the machine.
    pid : int
        Number of the process.
    started : str
        What the system says of its start; empty where it says nothing.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Process:
        """Return this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return a process of this machine; of one that is gone the start is empty."""
        return cls(socket.gethostname(), pid, _start_of(pid))

    def is_gone(self) -> bool:
        """Return whether the process is known to have ended; False where that cannot be known.

        One that has ended and that its parent did not ask for yet (a zombie) is gone.
        """
        if self.host != socket.gethostname() or not self.started:
            return False
        return _start_of(self.pid) != self.started


def _start_of(pid: int) -> str:
    """Return boot, pid namespace and start tick of a process; empty if it has none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program stands in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in ("Z", "X"):
            return ""
        return f"{boot[:8]}-{os.readlink('/proc/self/ns/pid')[5:-1]}-{fields[19]}"
    except (OSError, IndexError):
        return ""


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
        """Keep the start; the parameters are those of :meth:`Spool.create`."""
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


class Spool(Journal):
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
    ) -> Spool:
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
        Spool
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
        _sync_dir(hidden)
        hidden.rename(folder / name)
        _sync_dir(folder)
        return cls(folder / name, lock)

    @classmethod
    def claim(cls, path: Path) -> Spool | None:
        """Take a spool that nobody holds.

        Parameters
        ----------
        path : Path
            The directory.

        Returns
        -------
        Spool or None
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
    def reopen(cls, home: Path, name: str) -> Spool | None:
        """Go on with the journal of a run that has ended, whether it was sent or waits.

        Returns
        -------
        Spool or None
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
        _sync_dir(self.path)

    def _add_model(self, model: LoggedModel) -> dict[str, Any]:
        write_npz(self.path / "models" / f"{model.name}.npz", model.arrays)
        spec = json.dumps(dict(model.spec), default=_plain)
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
        return _json_or_empty(self.path / "sent.json")

    @property
    def end(self) -> dict[str, Any]:
        """The end, or an empty dict while there is none."""
        return _json_or_empty(self.path / "end.json")

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


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the objects of a file of JSON lines.

    Parameters
    ----------
    path : Path
        The file; one that does not exist has no lines.
    offset : int, default 0
        Byte at which a line begins.

    Yields
    ------
    dict, int
        The object, and the offset after its line. A last line without its end is not there yet;
        a line that is no JSON object (a disk that lost power can leave one) is skipped.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict):
                yield content, offset


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write named arrays so that the file is whole or not there; no pickle.

    The bytes depend on names, order and values alone.

    Parameters
    ----------
    path : Path
        Where to; its directory exists.
    arrays : mapping of str to ndarray
        The arrays.

    Raises
    ------
    ValueError
        For an array of Python objects.
    """
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        _write_npz(file, arrays)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def npz_bytes(arrays: Arrays) -> memoryview:
    """Return named arrays as the content of an ``.npz``: equal arrays, equal bytes.

    Raises
    ------
    ValueError
        For an array of Python objects.
    """
    buffer = io.BytesIO()
    _write_npz(buffer, arrays)
    return buffer.getbuffer()


def _write_npz(file: IO[bytes], arrays: Arrays) -> None:
    # numpy.savez stores the time of day and cannot take an array that is named "file".
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            info.external_attr = 0o600 << 16
            with archive.open(info, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read named arrays; no pickle is loaded.

    Parameters
    ----------
    path : Path
        A file of :func:`write_npz` or ``numpy.savez``.

    Returns
    -------
    dict of str to ndarray
    """
    # Given a path, NumPy leaves a file that is no archive open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def append(path: Path, lines: bytes, sync: bool = True) -> None:
    """Append whole lines; what could not be written whole leaves nothing behind.

    Parameters
    ----------
    path : Path
        The file; made where it does not exist, for its owner alone.
    lines : bytes
        They end with a line's end.
    sync : bool, default True
        Whether they are on the disk when this returns, whatever the machine does next.

    Raises
    ------
    OSError, FlAppError
        If they could not be written.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(file).st_size
        try:
            written = os.write(file, lines)
            if written < len(lines):
                raise FlAppError(f"{path}: only {written} of {len(lines)} bytes were written")
            if sync:
                os.fsync(file)
        except (OSError, FlAppError):
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def json_line(content: Mapping[str, Any]) -> bytes:
    """Return an object as a line of JSON, NumPy's values as JSON's."""
    return _JSON.encode(dict(content)).encode() + b"\n"


def write(path: Path, content: bytes | memoryview, sync: bool = True) -> None:
    """Write a file that is whole or not there.

    The new name itself is not synced: what is written next and makes the file count (a line, an
    end) is, which commits the name too where file systems keep a journal. Elsewhere a loss of
    power may cost the file.
    """
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    part.rename(path)


def share(file: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _sync_dir(path: Path) -> None:
    with contextlib.suppress(OSError):  # not every system can
        directory = os.open(path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _json_or_empty(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}


def _plain(value: Any) -> Any:
    """Turn what NumPy adds to JSON's types into them."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-ready")


_JSON = json.JSONEncoder(default=_plain)
