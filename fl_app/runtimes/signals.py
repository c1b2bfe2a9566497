"""Signals while something is running that must be cleaned up: to unwind, or to wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["signals_deferred", "signals_unwind"]


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into :class:`SystemExit` inside a ``with`` block.

    Their default action ends the process without unwinding, so nothing that it started would be
    cleaned up. A handler that somebody else installed stays, and so does an ignored signal
    (``nohup``). Outside the main thread, where Python delivers no signals, nothing happens.

    Yields
    ------
    None
        Control, with exit status ``128 + signal number`` for a signal that arrives meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    ours = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is signal.SIG_DFL]
    for signum in ours:
        signal.signal(signum, leave)
    try:
        yield
    finally:
        for signum in ours:
            signal.signal(signum, signal.SIG_DFL)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back until the block is done, then deliver them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def wait(signum: int, _frame: FrameType | None) -> None:
        waiting.append(signum)

    # A handler is used, since a blocked or ignored signal would stay so in a child started here.
    callables = (s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    before = {s: signal.getsignal(s) for s in callables}
    caught = {s: handler for s, handler in before.items() if callable(handler)}
    for signum in caught:
        signal.signal(signum, wait)
    try:
        yield
    finally:
        for signum, handler in caught.items():
            signal.signal(signum, handler)
        for number in waiting:
            signal.raise_signal(number)
