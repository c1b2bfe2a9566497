"""Servers that wait for nodes which nobody will start."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

from flwr.server.client_manager import ClientManager

from fl_app.errors import RunError

__all__ = ["Waiting"]


class Waiting:
    """Finds a server that waits for nodes, which in a grid that nobody joins it would do for ever.

    It waits if one loop asks for the nodes for the third time, has sent nothing meanwhile and has
    slept for nearly all of the time.
    """

    _SECONDS, _BUSY = 2.0, 0.1

    def __init__(self) -> None:
        self._frame: FrameType | None = None
        self._calls, self._since, self._busy_since = 0, 0.0, 0.0

    def is_over(self) -> None:
        """Note that something was sent."""
        self._frame = None

    def check(self, num_nodes: int) -> None:
        """Raise RunError if the caller of ``get_node_ids`` waits for more than these."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_name == "get_node_ids":  # of wrappers
            frame = frame.f_back
        manager = frame.f_locals.get("client_manager")
        if isinstance(manager, ClientManager):
            _refuse_to_wait(manager, num_nodes)
            return
        if frame is not self._frame:
            self._frame, self._calls = frame, 0
            self._since, self._busy_since = time.monotonic(), time.thread_time()
        self._calls += 1
        waited = time.monotonic() - self._since
        busy = time.thread_time() - self._busy_since
        if self._calls > 2 and waited >= self._SECONDS and busy < self._BUSY * waited:
            self.is_over()
            raise _too_few("more nodes", num_nodes)


def _refuse_to_wait(manager: ClientManager, num_nodes: int) -> None:
    """Let a client manager of Flower's old servers refuse what it would wait a day for.

    Flower replaces methods of it likewise: by those that ask the grid for its nodes first.
    """
    if not isinstance(manager.wait_for, partial):
        wait_for = partial(_wait_for, num_nodes, manager.wait_for)
        manager.wait_for = wait_for  # type: ignore[method-assign]


def _wait_for(
    num_nodes: int, wait: Callable[..., bool], num_clients: int, timeout: int | None = None
) -> bool:
    if timeout is not None:
        return wait(num_clients, timeout)
    if num_clients > num_nodes:
        raise _too_few(f"{num_clients} nodes", num_nodes)
    return wait(num_clients)


def _too_few(wanted: str, num_nodes: int) -> RunError:
    return RunError(
        f"the server waits for {wanted}, but this grid has {num_nodes} and nobody can join it: "
        "lower what it waits for (min_available_nodes and the like), or start with more nodes"
    )
