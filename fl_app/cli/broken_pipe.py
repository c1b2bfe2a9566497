"""Commands whose reader may leave before they are done (``fl-app --help | head``).

What the reader's encoding lacks is said in plain characters.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fl_app.errors import plain_where_needed

__all__ = ["reader_may_leave"]


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End with exit status 1 and without a traceback if nobody reads standard output any more.

    https://docs.python.org/3/library/signal.html#note-on-sigpipe

    Raises
    ------
    SystemExit
        In place of :class:`BrokenPipeError`.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by whoever started us
            plain_where_needed(stream)
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _is_broken():
            raise  # of a socket or a process: no matter of ours
        # The interpreter flushes once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _is_broken() -> bool:
    """Return whether standard output is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors are told whatever is asked for
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
