"""Signals while something is running that must be cleaned up: to unwind, or to wait."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from fl_app.errors import SignalInterrupt

__all__ = [
    "forget_interrupt",
    "raise_if_interrupted",
    "signals_deferred",
    "signals_interrupt",
    "signals_unwind",
]

_TWICE_SECONDS = 0.5
_AT_ONCE_SECONDS = 1.0
_SOON_SECONDS = 0.05
_interrupted: list[int] = []
"""The signals that have come inside :func:`signals_interrupt`."""


@contextmanager
def signals_interrupt(first: Callable[[int], None] = lambda signum: None) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into :class:`SignalInterrupt` inside a ``with`` block.

    A second SIGINT or SIGTERM ends the process within 1 s, whatever it does; what comes within
    0.5 s of the first is the same request, as ``timeout`` and a terminal that is closed signal
    twice. A handler that somebody else installed stays, and so does an ignored signal (``nohup``,
    ``&``). Outside the main thread nothing happens.

    Python prints and forgets what is raised in a ``__del__`` or in a callback of the garbage
    collector. An interrupt that is lost so comes again; :func:`raise_if_interrupted` finds the
    others.

    Parameters
    ----------
    first : callable, optional
        Called with the first signal before it is raised, to pass it on.

    Yields
    ------
    None
        Control.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    came: list[float] = []
    again: list[threading.Timer] = []

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            _drop(terminals)
        if again:
            again.clear()
        elif came:
            if signum == signal.SIGHUP or time.monotonic() - came[0] < _TWICE_SECONDS:
                return
            _after(_AT_ONCE_SECONDS, os._exit, 128 + signum)
        else:
            came.append(time.monotonic())
            _interrupted.append(signum)
            first(signum)
        raise SignalInterrupt(signum)

    def lost(found: sys.UnraisableHookArgs) -> None:
        if not isinstance(found.exc_value, SignalInterrupt):
            before_hook(found)
        elif not again:
            again.append(_after(_SOON_SECONDS, os.kill, os.getpid(), found.exc_value.signum))

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    unhandled = (signal.SIG_DFL, signal.default_int_handler)
    before = {s: signal.getsignal(s) for s in ends if signal.getsignal(s) in unhandled}
    before_hook, sys.unraisablehook = sys.unraisablehook, lost
    for signum in before:
        signal.signal(signum, interrupt)
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        for signum, handler in before.items():
            signal.signal(signum, handler)
        sys.unraisablehook = before_hook
        _interrupted.clear()


def raise_if_interrupted() -> None:
    """Raise the interrupt that has come inside :func:`signals_interrupt`, if it was swallowed.

    Raises
    ------
    SignalInterrupt
        If there was one.
    """
    if _interrupted:
        raise SignalInterrupt(_interrupted[0])


def forget_interrupt() -> str:
    """Forget the interrupt that has come inside :func:`signals_interrupt`, and say which it was.

    Returns
    -------
    str
        "" if there was none.
    """
    came = [*_interrupted]
    _interrupted.clear()
    return str(SignalInterrupt(came[0])) if came else ""


def _after(seconds: float, call: Any, *args: int) -> threading.Timer:
    timer = threading.Timer(seconds, call, args)
    timer.daemon = True
    timer.start()
    return timer


def _drop(terminals: list[int]) -> None:
    """Let what is printed go nowhere: a terminal that was closed raises an error."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for fd in terminals:
            os.dup2(nowhere, fd)
        os.close(nowhere)


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
