"""What runs in a worker: one call after the other, until nobody is there who could send one."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import current_process
from multiprocessing.connection import Connection
from typing import Any

from fl_app.outputs import outputs_may_fail
from fl_app.parent import when_parent_is_gone
from fl_app.seeding import one_thread

__all__ = ["Handler", "can_have_workers", "error_text", "work"]

Handler = Callable[[Any], Any]
Logged = list[tuple[str, int, str]]

_is_worker = False


def can_have_workers() -> bool:
    """Say whether this process may start workers: a worker itself may not."""
    return not (_is_worker or current_process().daemon)


def work(pipe: Connection, made: bytes, levels: Mapping[str, int], parent: int) -> None:
    """Do one call after the other until the pipe ends, and this process with it."""
    _leave_interrupts_to_the_parent()
    _lead()
    # In the midst of a call too; and where a fork of the parent holds the pipe, it does not end.
    when_parent_is_gone(parent, _end)
    with suppress(EOFError, OSError):
        try:
            handler = pickle.loads(made)()
        except BaseException as error:
            pipe.send(("broken", error_text(error), []))
        else:
            log = _Log(levels)
            pipe.send(("ready", None, []))
            with outputs_may_fail():
                _serve(pipe, handler, log)
    _end()


def _serve(pipe: Connection, handler: Handler, log: _Log) -> None:
    """Answer requests until there is nobody who could send one."""
    with one_thread():
        while True:
            request = pipe.recv_bytes()
            with one_thread():  # for what was imported since
                answer = _answer(handler, request, log)
            sys.stdout.flush()
            pipe.send_bytes(answer)


def _answer(handler: Handler, request: bytes, log: _Log) -> bytes:
    """Do one call; pickle its end."""
    try:
        result = handler(pickle.loads(request))
        return pickle.dumps(("done", result, log.records), pickle.HIGHEST_PROTOCOL)
    except KeyboardInterrupt:
        return pickle.dumps(("interrupt", None, log.records))
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        logging.getLogger(__package__).error("a worker's call has no result\n%s", text)
        return pickle.dumps(("error", error_text(error), log.records))
    finally:
        log.records = []


def _lead() -> None:
    """Let calls start processes, in a group that ends with this one."""
    global _is_worker
    _is_worker = True
    # To its parent it is a daemon, which may have no children, as nobody would end them.
    current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    if hasattr(os, "setsid"):
        os.setsid()


def _end() -> None:
    """End this process and what its calls have started."""
    # At once: an interpreter that ends in order takes long after many imports.
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _leave_interrupts_to_the_parent() -> None:
    """Let Ctrl-C in a terminal, which reaches all of its processes, be the parent's to handle."""
    # A handler, as an ignored signal would stay ignored in programs that are started here.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class _Log(logging.Handler):
    """Keeps what is logged, for the parent; the levels are the parent's."""

    def __init__(self, levels: Mapping[str, int]) -> None:
        super().__init__()
        self.records: Logged = []
        for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
            if isinstance(logger, logging.Logger):
                logger.handlers, logger.propagate = [], True
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as text: what it refers to may not leave this process."""
        self.records.append((record.name, record.levelno, self.format(record)))


def error_text(error: BaseException) -> str:
    """Show an error on one line."""
    try:
        text = " ".join(str(error).split())
    except Exception as second:
        text = f"no text: {type(second).__name__}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
