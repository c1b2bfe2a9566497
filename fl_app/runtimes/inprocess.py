"""``runtime=inprocess``: the two apps in this process or its workers, over an in-process grid."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fl_app.client_app import app as client_app
from fl_app.config.options import InProcessConfig
from fl_app.config.run_request import RunRequest
from fl_app.grid import run_in_process
from fl_app.runtimes.result import RunResult, forget_result, read_result
from fl_app.server_app import app as server_app

__all__ = ["run"]


def run(request: RunRequest) -> RunResult:
    """Run an experiment in this process and the workers that its config asks for.

    Parameters
    ----------
    request : RunRequest
        With ``output_dir`` set.

    Raises
    ------
    FlAppError
        What ended the run, if it did not finish.
    """
    config = request.config
    runtime = config.runtime
    forget_result(config.output_dir or "")
    nodes = 1 if config.strategy.is_pooled else config.num_clients
    with _quiet():
        run_in_process(
            server_app,
            client_app,
            num_supernodes=nodes,
            run_config={"config-json": request.to_json()},
            num_workers=runtime.num_workers if isinstance(runtime, InProcessConfig) else 1,
        )
    return read_result(config.output_dir or "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Flower's INFO lines and the grid's tracebacks: our console says both."""
    levels = {"flwr": logging.WARNING, "fl_app.grid": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
