"""Flower's ServerApp: waits for its nodes, reads what is asked for, and runs the experiment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fl_app.config.options import DeploymentConfig
from fl_app.config.plugins import find_project, open_project
from fl_app.config.rules import check
from fl_app.config.run_request import RunRequest, read_launch, read_num_clients, read_runtime
from fl_app.config.schema import (
    GROUPS,
)
from fl_app.errors import FederationError
from fl_app.experiment import Run, federated_of
from fl_app.experiment.resuming import same_run, take_over
from fl_app.grid import InProcessGrid
from fl_app.grid.stock import InMemoryGrid, loading
from fl_app.seeding import one_thread
from fl_app.tracking import Events
from fl_app.tracking.console import LINE_PREFIX, ConsoleTracker

__all__ = ["app", "federated_of"]

_NODES_TIMEOUT, _NODES_STABLE, _POLL = 20.0, 0.2, 0.02
_ONLINE_TIMEOUT, _REMOTE_POLL = 60.0, 0.5
log = logging.getLogger("fl_app")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment; an exception ends the run as failed."""
    runtime = _runtime_name(grid)
    if runtime != "inprocess":
        with loading:  # the simulation loads its ClientApp meanwhile, and takes half a module too
            open_project(find_project())
    prefix = "" if runtime == "inprocess" else LINE_PREFIX
    console = ConsoleTracker(prefix)
    with _warnings_on(console), one_thread(), Events(runtime) as events:
        if runtime == "deployment":
            fewest = _wait_for(context.run_config)
            node_ids = wait_for_online(grid, fewest, console.say, _counter(events, fewest))
        else:
            wanted = read_num_clients(context.run_config) if runtime == "simulation" else 0
            node_ids = wait_for_nodes(grid, _counter(events, wanted))
        request = same_run(read_launch(context.run_config, len(node_ids)))
        request = _as_it_runs(request, runtime)
        console.brief = bool(request.sweep_id)
        resumed = None if request.config.resume is None else take_over(request.config)
        if resumed is not None:
            events.go_on(resumed.journal, runtime, resumed.checkpoint.server_round)
        Run(
            grid, request, runtime, console, context.run_id, events=events, resumed=resumed
        ).execute(node_ids)


def _counter(events: Events, wanted: int) -> Callable[[int], None]:
    return lambda online: events.event("nodes", {"online": online, "wanted": wanted})


def wait_for_nodes(
    grid: Grid,
    see: Callable[[int], None] = lambda online: None,
    timeout: float = _NODES_TIMEOUT,
) -> list[int]:
    """Wait until nodes are there and their number stands still.

    Flower's simulation registers its nodes one by one while the ServerApp already runs.

    Parameters
    ----------
    grid : Grid
        The federation.
    see : callable, optional
        Gets the number of nodes whenever it changes.
    timeout : float, default 20
        Seconds to wait for the first one.

    Raises
    ------
    FederationError
        If there is no node after ``timeout`` seconds, with what to do.
    """
    if isinstance(grid, InProcessGrid):
        return sorted(grid.get_node_ids())
    begin = since = time.monotonic()
    nodes: list[int] = []
    see(0)
    while not nodes or time.monotonic() - since < _NODES_STABLE:
        time.sleep(_POLL)
        now = sorted(grid.get_node_ids())
        if now != nodes:
            nodes, since = now, time.monotonic()
            see(len(nodes))
        if not nodes and time.monotonic() - begin > timeout:
            raise FederationError(
                f"num-supernodes=0: no SuperNode within {timeout:g} s; start SuperNodes, or give a "
                "simulation some with --federation-config 'num-supernodes=10'"
            )
    return nodes


def wait_for_online(
    grid: Grid,
    fewest: int,
    say: Callable[[str], None],
    see: Callable[[int], None] = lambda online: None,
    timeout: float = _ONLINE_TIMEOUT,
) -> list[int]:
    """Wait until enough SuperNodes of a deployment are online.

    Parameters
    ----------
    grid : Grid
        The federation.
    fewest : int
        How many are enough.
    say : callable
        Gets a line for the terminal, where there are too few at first.
    see : callable, optional
        Gets the number of nodes whenever it changes.
    timeout : float, default 60
        Seconds to wait.

    Raises
    ------
    FederationError
        If there are too few after ``timeout`` seconds, with how many there are.
    """
    begin = time.monotonic()
    nodes = sorted(grid.get_node_ids())
    see(len(nodes))
    if len(nodes) < fewest:
        say(f"waiting for {fewest} SuperNodes, {len(nodes)} online")
    while len(nodes) < fewest:
        if time.monotonic() - begin > timeout:
            raise FederationError(
                f"runtime.wait_for_nodes={fewest}: {len(nodes)} SuperNodes online after "
                f"{timeout:g} s; start more, or ask for fewer"
            )
        time.sleep(_REMOTE_POLL)
        before, nodes = len(nodes), sorted(grid.get_node_ids())
        if len(nodes) != before:
            see(len(nodes))
    return nodes


def _wait_for(run_config: Mapping[str, Any]) -> int:
    """Return how many SuperNodes a run in a deployment waits for."""
    runtime = read_runtime(run_config)
    # Stock `flwr run` names no runtime: then Flower's connection has decided on it.
    known = runtime if isinstance(runtime, DeploymentConfig) else DeploymentConfig()
    return known.wait_for_nodes


def _runtime_name(grid: Grid) -> str:
    if isinstance(grid, InProcessGrid):
        return "inprocess"
    return "simulation" if isinstance(grid, InMemoryGrid) else "deployment"


def _as_it_runs(request: RunRequest, runtime: str) -> RunRequest:
    """Name the runtime that really runs in the config, and check the config against it."""
    config = request.config
    if config.runtime.name != runtime:
        config = check(replace(config, runtime=GROUPS["runtime"][runtime](name=runtime)))
    return replace(request, config=config)


class _warnings_on:  # noqa: N801
    """Sends the package's warnings to the console while a run is on."""

    def __init__(self, console: ConsoleTracker) -> None:
        self._handler = _ConsoleHandler(console)

    def __enter__(self) -> None:
        log.addHandler(self._handler)
        log.propagate = False

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self._handler)
        log.propagate = True


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: ConsoleTracker) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.say(f"{record.levelname.lower()}: {record.getMessage()}")
