"""``runtime=inprocess``: the two apps in this process, over an in-process grid."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fl_app.client_app import app as client_app
from fl_app.grid import run_in_process
from fl_app.launch import Launch
from fl_app.runtimes.base import RunResult, read_result
from fl_app.server_app import app as server_app

__all__ = ["run"]


def run(launch: Launch) -> RunResult:
    """Run an experiment in this process.

    Parameters
    ----------
    launch : Launch
        With ``output_dir`` set.

    Raises
    ------
    FlAppError
        What ended the run, if it did not finish.
    """
    config = launch.config
    nodes = 1 if config.strategy.name == "pooled" else config.num_clients
    with _quiet_flower():
        run_in_process(
            server_app,
            client_app,
            num_supernodes=nodes,
            run_config={"config-json": launch.to_json()},
        )
    return read_result(config.output_dir or "")


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Hold back Flower's INFO lines: our console says each round in one."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
