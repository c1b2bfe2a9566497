"""A grid that shows replies as they come, which Flower's own returns all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fl_app.grid.view import GridView

__all__ = ["WatchedGrid"]

_SHORTEST, _LONGEST = 0.1, 3.0  # seconds between two looks: Flower's in a simulation and deployed


class WatchedGrid(GridView):
    """A grid of Flower's whose exchanges can be watched; all else is the grid's own.

    :meth:`send_and_receive` returns what the grid's would, and looks for replies at least as often.
    Deployed, Flower looks every 3 s; here the time between two looks is a tenth of the time so far,
    from 0.1 s up to these 3.

    Parameters
    ----------
    grid : Grid
        The grid.
    see : callable
        Gets the replies that came together, as soon as they are there.
    """

    def __init__(self, grid: Grid, see: Callable[[Sequence[Message]], None]) -> None:
        super().__init__(grid, ())
        self._see = see
        self._longest = float(getattr(grid, "pull_interval", _LONGEST))

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the grid's nodes."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the grid's nodes."""
        return self._grid.get_nodes()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for the replies, as Flower's grids do.

        Parameters
        ----------
        messages : iterable of Message
            What to send.
        timeout : float, optional
            Seconds after which no further reply is waited for; by default there is no limit.

        Returns
        -------
        list of Message
            Replies as they came.
        """
        waiting = set(self._grid.push_messages(messages))
        del messages
        begin = time.time()
        replies: list[Message] = []
        while timeout is None or time.time() < begin + timeout:
            came = list(self._grid.pull_messages(waiting))
            if came:
                self._see(came)
                replies += came
                waiting -= {reply.metadata.reply_to_message_id for reply in came}
            if not waiting:
                break
            elapsed = time.time() - begin
            time.sleep(min(max(elapsed / 10, _SHORTEST), self._longest))
        return replies
