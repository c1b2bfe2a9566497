"""What every runtime gives back, and what is checked before any of them starts."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.data.partition import largest_partition, partition_of
from fl_app.errors import ConfigError, RunError
from fl_app.federation.privacy import require_accountant
from fl_app.launch import Launch
from fl_app.schema import FedStackingConfig, MlflowConfig, ray_head
from fl_app.strategies import check_rows
from fl_app.tracking.spool import home_dir
from fl_app.tracking.store import check_uri, default_uri

__all__ = ["RunResult", "check_before", "check_ray", "read_result", "write_result"]

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


def check_before(launch: Launch) -> None:
    """Find what would fail for certain, before anything starts.

    Raises
    ------
    InputError
        If the data cannot be dealt to the clients, or where output goes cannot be used.
    """
    require_accountant(launch.config)
    if launch.config.runtime.name != "deployment":
        # There the nodes that are online decide how the rows are dealt, if they are.
        partition_of(launch.config, 0)
        if isinstance(launch.config.strategy, FedStackingConfig):
            check_rows(launch.config.strategy, *largest_partition(launch.config))
    _check_folder("FL_APP_HOME", home_dir())
    if launch.config.output_dir is not None:
        _check_folder("output_dir", Path(launch.config.output_dir))
    if isinstance(launch.config.tracking, MlflowConfig):
        check_uri(launch.config.tracking.uri or default_uri())


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


def _check_folder(name: str, folder: Path) -> None:
    """Make a folder and try it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        allowed = f"a folder that can be written to ({error.strerror})"
        raise ConfigError(name, folder, allowed) from None
