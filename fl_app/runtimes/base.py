"""What every runtime gives back. Imported while nothing runs yet, so it imports little itself."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.errors import ConfigError, RunError
from fl_app.schema import ray_head

__all__ = ["RunResult", "check_ray", "read_result", "write_result"]

_CONNECT_SECONDS = 5.0


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
        The last round's ``train/``, ``eval/`` and ``server/`` metrics; None where not finite.
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
    path = Path(output_dir) / "result.json"
    partial = path.with_name("result.json.part")
    partial.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


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
