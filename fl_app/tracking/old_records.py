"""Turns records of version 0.1, ``FL_APP_HOME/spool/<run>/``, into journals, so that they are sent.

To go in the next minor version.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import NDArray

from fl_app.errors import one_line
from fl_app.tracking.files import is_whole_npz, read_npz
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JOURNAL

__all__ = ["convert_spools"]

_LOG = logging.getLogger("fl_app")


def convert_spools(home: Path) -> dict[str, str]:
    """Make a journal of each spool under a home that nobody writes to; the spool goes.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.

    Returns
    -------
    dict of str to str
        Those that cannot be read or written, which stay, with the reason.
    """
    damaged: dict[str, str] = {}
    for spool in sorted((home / "spool").glob("[!.]*")):
        lock = FileLock(spool / "lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # a process of that version writes; or it is no folder
            continue
        try:
            if (spool / "run.json").exists():
                _convert(home, spool)
            shutil.rmtree(spool)
        except Exception as error:
            damaged[spool.name] = f"{spool}: {one_line(error)}"
        finally:
            lock.release()
    with contextlib.suppress(OSError):
        (home / "spool").rmdir()
    return damaged


def _convert(home: Path, spool: Path) -> None:
    for half in (home / "runs" / spool.name).glob(f"{JOURNAL}*"):  # of an attempt that was killed
        half.unlink()
    journal = Journal.create(home, spool.name)
    try:
        facts = {key: _json(spool / f"{key}.json") for key in ("run", "end", "sent")}
        sent = facts["sent"]
        for kind in ("rounds", "notes"):
            contents = [*_lines(spool / f"{kind}.jsonl")]
            done = sum(offset <= sent.get(kind, 0) for _, offset in contents)
            for content, _ in contents:
                if kind == "notes":
                    journal.add_note(content["tags"], content["texts"])
                    continue
                file = spool / "weights" / f"round_{content['server_round']:04d}.npz"
                arrays = _read(file)
                journal.add_round(content, **({} if arrays is None else {"weights": arrays}))
            sent |= {kind: done} if kind in sent else {}
        for model in facts["end"].get("models", []):
            path = spool / "models" / model["name"]
            model["spec"] = _json(path.with_suffix(".json"))
            if (arrays := _read(path.with_suffix(".npz"))) is not None:
                journal.keep_arrays(f"model/{model['name']}", model["server_round"], arrays)
        files = [path for path in (spool / "files").rglob("*") if path.is_file()]
        names = {path.relative_to(spool / "files").as_posix(): path for path in files}
        journal.restore(
            {"start": facts["run"], "end": facts["end"], "sent": sent},
            {name: path.read_bytes() for name, path in names.items()},
        )
    finally:
        journal.release()


def _read(file: Path) -> dict[str, NDArray[Any]] | None:
    """Return arrays; None where there are none, or, with a line, where they are damaged."""
    if is_whole_npz(file):
        return read_npz(file)
    if file.exists():
        _LOG.warning("%s is damaged: MLflow gets the rest of its run", file)
    return None


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the objects of a file of JSON lines, each with the offset after it."""
    offset = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        offset += len(line)
        with contextlib.suppress(ValueError):
            if line.endswith(b"\n") and isinstance(content := json.loads(line), dict):
                yield content, offset
