"""What every runtime gives back. Imported while nothing runs yet, so it imports little itself."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.config.rules import ray_head
from fl_app.errors import ConfigError, InputError, RunError, SignalInterrupt, one_line
from fl_app.home import write

__all__ = [
    "RunResult",
    "RunStoppedError",
    "check_ray",
    "end_of",
    "forget_result",
    "has_result",
    "read_result",
    "result_written",
    "write_result",
]

_CONNECT_SECONDS = 5.0


class RunStoppedError(RunError):
    """A run that somebody stopped."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Parameters
    ----------
    run_id : str or None
        MLflow run id, None without one.
    status : str
        ``FINISHED``, ``FAILED`` or ``KILLED``.
    metrics : mapping of str to float or None
        The last round's ``train/``, ``eval/`` and ``server/`` metrics, and under privacy
        ``privacy/epsilon``, spent in all; None where not finite.
    weights_sha256 : str or None
        Digest of the final arrays.
    seconds : float
        Wall time of the run.
    error : str
        What went wrong, in one line.
    """

    run_id: str | None
    status: str
    metrics: Mapping[str, float | None]
    weights_sha256: str | None
    seconds: float
    error: str = ""


def read_result(output_dir: str) -> RunResult:
    """Read ``result.json`` of a run.

    Raises
    ------
    RunError
        If the run left none.
    """
    path = Path(output_dir) / "result.json"
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"the run left no result: {error}") from None
    data.pop("link", None)
    return RunResult(**data)


def write_result(output_dir: str, result: Mapping[str, Any]) -> None:
    """Write ``result.json`` of a run that was recorded elsewhere; the file is whole or not there.

    Parameters
    ----------
    output_dir : str
        Its folder.
    result : mapping
        The fields of :class:`RunResult`, JSON-ready.
    """
    text = json.dumps(result, indent=2, allow_nan=False)
    write(Path(output_dir) / "result.json", f"{text}\n", sync=False)


def forget_result(output_dir: str) -> None:
    """Remove ``result.json`` of an earlier run, which would tell of a run that now begins."""
    with suppress(OSError):  # writing the new one will say it
        (Path(output_dir) / "result.json").unlink(missing_ok=True)


def has_result(output_dir: str) -> bool:
    """Return whether a run has said how it ended."""
    return (Path(output_dir) / "result.json").exists()


def end_of(error: BaseException) -> tuple[str, str]:
    """Return the status and the reason of a run that an exception ended."""
    if isinstance(error, RunStoppedError):
        return "KILLED", str(error)
    if isinstance(error, Exception):
        return "FAILED", one_line(error)
    return "KILLED", str(error) if isinstance(error, SignalInterrupt) else "interrupted"


@contextmanager
def result_written(output_dir: str) -> Iterator[None]:
    """Write ``result.json`` of a run that ends with an exception before it wrote one.

    For a mistake of the user's nothing is written: nothing ran. An interrupt that comes when the
    run has finished, while MLflow still gets the rest, ends the block only.

    Parameters
    ----------
    output_dir : str
        The run's folder.
    """
    path, begin = Path(output_dir) / "result.json", time.monotonic()
    before = _version(path)
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        is_new = _version(path) not in (before, None)
        if is_new and isinstance(error, KeyboardInterrupt) and _is_finished(output_dir):
            return
        if not is_new:
            status, reason = end_of(error)
            result = RunResult(None, status, {}, None, round(time.monotonic() - begin, 3), reason)
            with suppress(OSError):  # the error is what has to be said
                path.parent.mkdir(parents=True, exist_ok=True)
                write_result(output_dir, vars(result))
        raise


def _is_finished(output_dir: str) -> bool:
    with suppress(RunError):
        return read_result(output_dir).status == "FINISHED"
    return False


def _version(path: Path) -> tuple[int, int] | None:
    """Tell one file of this name from another."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def check_ray(address: str) -> None:
    """Try whether somebody listens where a Ray head shall be.

    Raises
    ------
    ConfigError
        If nobody does within 5 s.
    """
    try:
        socket.create_connection(ray_head(address), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        allowed = f"HOST:PORT of a Ray head that answers ({error.strerror or error})"
        raise ConfigError("runtime.ray_address", address, allowed) from None
