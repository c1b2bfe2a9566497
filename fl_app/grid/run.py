"""A whole run, ServerApp and ClientApp, in this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import (
    SUPERLINK_NODE_ID,
)
from flwr.serverapp import ServerApp

from fl_app.grid.inprocess import InProcessGrid
from fl_app.grid.node_configs import NodeConfigs

__all__ = ["has_main", "run_in_process"]


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    run_config: Mapping[str, Any] | None = None,
    node_configs: NodeConfigs | None = None,
    shuffle_replies: int | None = None,
    num_workers: int = 1,
) -> Context:
    """Run a Flower app, a ServerApp with its ClientApp, in this process.

    Parameters
    ----------
    server_app : ServerApp
        Called once, with a new :class:`InProcessGrid` and a Context.
    client_app, num_supernodes, run_config, node_configs, shuffle_replies, num_workers
        As in :class:`InProcessGrid`; the ServerApp's Context has `run_config` too.

    Returns
    -------
    Context
        The ServerApp's Context after the run.

    Raises
    ------
    ConfigError
        As :class:`InProcessGrid`.
    Exception
        Whatever the ServerApp raises.

    Notes
    -----
    While it runs, garbage collections pass over the objects that were there before
    (``gc.freeze``): a round of 1000 clients sets off a full one, which in a process with Flower,
    MLflow and scikit-learn takes as long as the round. Where something is frozen already, it is
    left at that.
    """
    with (
        _few_collections(num_supernodes),
        InProcessGrid(
            client_app, num_supernodes, run_config, node_configs, shuffle_replies, num_workers
        ) as grid,
    ):
        context = Context(
            run_id=grid.run.run_id,
            node_id=SUPERLINK_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=dict(run_config or {}),
        )
        server_app(grid=grid, context=context)
        return context


def has_main(server_app: ServerApp) -> bool:
    """Say whether a ServerApp has a function for a grid, and no strategy of Flower's old kind."""
    return server_app._main is not None


@contextmanager
def _few_collections(num_supernodes: int) -> Iterator[None]:
    """Let collections be fewer, and pass over what is there already.

    What one exchange keeps sets none off, so that they come only where garbage has grown to as
    much.
    """
    if gc.get_freeze_count():  # by an outer run, or by somebody who knows better
        yield
        return
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(max(_OBJECTS_A_NODE * num_supernodes, before[0]), *before[1:])
    try:
        yield
    finally:
        gc.collect()  # or the next run would freeze this one's garbage
        gc.unfreeze()
        gc.set_threshold(*before)


_OBJECTS_A_NODE = 50
"""Above the number of containers that a node's message, its reply and its Context consist of."""
