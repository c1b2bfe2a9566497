"""Sends journals: a live one in the background, and those that others left behind."""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_app.errors import FlAppError, one_line
from fl_app.home import Process
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_disk import is_full, trouble
from fl_app.tracking.journal_reader import BROKEN, UNREADABLE, JournalReader
from fl_app.tracking.liveness import liveness, process_of
from fl_app.tracking.mlflow.upload import (
    MAX_REASON,
    Pace,
    Run,
    RunDeletedError,
    StoppedError,
    Store,
    Upload,
)
from fl_app.tracking.old_records import convert_spools
from fl_app.tracking.records import RunEnd, Status

__all__ = ["Replay", "Uploader", "replay_outboxes"]

_LOG = logging.getLogger("fl_app")
_FLUSH_SECONDS, _MAX_BACKOFF_SECONDS = 1.0, 30.0
_LAST_TRY_SECONDS = 8.0
_UNSAID = "the process ended without closing the run"
_DAMAGED = "the end of its journal is damaged: its models and figures are lost"
_NEVER = threading.Event()


@dataclass(frozen=True)
class Replay:
    """What :func:`replay_outboxes` did.

    Parameters
    ----------
    sent : sequence of str
        Runs that were sent to the end.
    live : sequence of str
        Runs that still write, or that somebody else sends.
    deleted : sequence of str
        Runs whose rest nobody waits for: they were deleted in the tracking server.
    waiting : mapping of str to str
        Runs that wait, with the reason.
    damaged : sequence of str
        Those of them that cannot be read: nobody but ``fl-kit clean`` ends their wait.
    """

    sent: Sequence[str] = ()
    live: Sequence[str] = ()
    deleted: Sequence[str] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)
    damaged: Sequence[str] = ()


def replay_outboxes(
    home: Path, connect: Callable[[str], Store], pace: Pace | None = None
) -> Replay:
    """Send the rest of every run under a home that nobody holds.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    connect : callable
        Makes the store of a tracking URI.
    pace : Pace, optional
        By default there are no rests.

    Returns
    -------
    Replay
    """
    pace = pace or Pace()
    sent, live, deleted = [], [], []
    waiting = convert_spools(home)
    damaged: list[str] = []
    silent: dict[str, str] = {}
    for path in [path for path in Journal.pending(home) if path.name not in waiting]:
        if not (path / "lock").exists():  # somebody else has sent it meanwhile
            continue
        if (where := _elsewhere(path)) is not None:
            if where:
                waiting[path.name] = f"whether it goes on at {where} is not known here"
            else:
                live.append(path.name)
            continue
        try:
            journal = Journal.claim(path)
        except Exception as error:  # a damaged file
            waiting[path.name] = one_line(error, MAX_REASON)
            if _is_damage(error):
                damaged.append(path.name)
            continue
        if journal is None:
            if path.exists():
                live.append(path.name)
            continue
        try:
            if journal.sent.get("whole"):  # by somebody else, between the list and the lock
                journal.mark_whole()
                journal.release()
                continue
            _replay(journal, connect, pace, silent)
        except RunDeletedError:
            deleted.append(journal.name)
        except StoppedError as error:
            journal.release()
            waiting[journal.name] = str(error)
            break
        except Exception as error:
            journal.release()
            waiting[journal.name] = one_line(error, MAX_REASON)
            if _is_damage(error):
                damaged.append(journal.name)
            continue
        else:
            sent.append(journal.name)
        journal.mark_whole()
        journal.release()
    return Replay(sent, live, deleted, waiting, damaged)


def _is_damage(error: Exception) -> bool:
    """Return whether a journal cannot be read, today or ever."""
    not_now = isinstance(error, sqlite3.OperationalError)
    return isinstance(error, sqlite3.DatabaseError | zlib.error) and not not_now


def _elsewhere(folder: Path) -> str | None:
    """Return where a run went on, if perhaps it does, "" if it does; None if it may be sent here.

    Another machine that shares the home need not see who holds a lock here.
    """
    with contextlib.suppress(*UNREADABLE):
        journal = JournalReader(folder)
        if process := process_of(journal.start):
            known = liveness(folder, process)
            if known == "alive" and process.host != Process.current().host:
                return ""
            if known == "unknown" and not journal.end:
                return process.host
    return None


def _replay(
    journal: Journal,
    connect: Callable[[str], Store],
    pace: Pace,
    silent: dict[str, str],
) -> None:
    """Send one run; a server that does not answer is asked once, whatever waits for it."""
    if not (start := journal.start):  # of a process that was killed before a tracker knew of it
        return
    try:
        is_unsaid = not journal.end
    except BROKEN:
        last = journal.last_event()  # which says it, too
        status: Status = last["status"] if last.get("event") == "end" else "KILLED"
        _LOG.warning("the end of run %s is damaged: MLflow gets the rest", journal.name)
        journal.add_end(RunEnd(status, error=_DAMAGED), journal.last_sign_ms())
    else:
        if is_unsaid:
            journal.add_end(RunEnd("KILLED", error=_UNSAID), journal.last_sign_ms())
    uri = start["target"].get("uri")
    if not uri:  # of a run that goes nowhere
        return
    if reason := silent.get(uri):
        raise FlAppError(reason)
    store = connect(uri)
    try:
        store.connect()
    except Exception as error:
        silent[uri] = one_line(error, MAX_REASON)
        raise
    Upload(journal, store, pace).close(journal.end)


class Uploader(threading.Thread):
    """Sends one live run in the background, and what others left behind.

    It flushes about once a second while the run goes on, rests as :class:`Pace` says, and sends all
    that is left at the end.

    Parameters
    ----------
    journal : Journal
        Held; given up when the thread ends.
    store : Store
        Where to.
    tidy : callable
        Called with a pace once the store answers, to send the rest of other runs.
    quiet : context manager factory
        Entered for the life of the thread.
    fresh : bool, default True
        Whether the journal was just made, so that no run can exist for it yet.
    """

    def __init__(
        self,
        journal: Journal,
        store: Store,
        tidy: Callable[[Pace], None],
        quiet: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        fresh: bool = True,
    ) -> None:
        super().__init__(name=f"fl_app-sender-{journal.name}", daemon=True)
        self.journal, self._store, self._tidy, self._quiet = journal, store, tidy, quiet
        self._uri = journal.start["target"]["uri"]
        self.tried = threading.Event()
        self.complete = self.left = False
        self._finishing = threading.Event()
        self._pace = Pace(hurry=self._finishing, stop=self._is_late)
        self._latest = math.inf
        self._told = False
        self._carrier = Upload(journal, store, self._pace, fresh)
        self._end: Mapping[str, Any] = {}
        self._answers = self._tidied = self._lost = self._given_up = self._no_room = False

    @property
    def tracked_run(self) -> Run | None:
        """The run in the store, None while it is unknown."""
        return self._carrier.run

    @property
    def keeps_up(self) -> bool:
        """Whether the store got all there was at the last try while the run went on."""
        return self._answers

    def finish(self, end: Mapping[str, Any]) -> None:
        """Ask for the end; it is `end` where the journal holds none."""
        self._end = end
        self._finishing.set()

    def hasten(self, seconds: float) -> None:
        """Say the run's end next, and send of the rest what can be sent within some seconds."""
        self._latest = time.monotonic() + seconds

    def _is_late(self) -> bool:
        """Whether to stop: somebody has no time, and more goes out than the end, or it is over."""
        if self._latest == math.inf:
            return False
        return not self._told or time.monotonic() > self._latest

    def run(self) -> None:
        """Send until the end; the journal is given up then."""
        with self._quiet():
            try:
                self._send_while_running()
                self._send_the_rest()
            finally:
                if not self._given_up:
                    self.journal.release()

    def _send_while_running(self) -> None:
        backoff = _FLUSH_SECONDS
        while not self._finishing.is_set():
            self._answers = self._attempt(self._carrier.send)
            self.tried.set()
            if self._answers and not self._tidied:
                self._attempt(self._tidy_once, self._finishing.is_set)
            backoff = _FLUSH_SECONDS if self._answers else min(2 * backoff, _MAX_BACKOFF_SECONDS)
            self._finishing.wait(backoff)
        self.tried.set()

    def _send_the_rest(self) -> None:
        with contextlib.suppress(StoppedError):
            self._pace.rest()
        # A server that has been away all along gets one try, one that was there some more; and one
        # that takes something at each try as many as it needs.
        begin, marks = time.monotonic(), self._carrier.marks
        while not (done := self._attempt(self._close)):
            hasty = self._latest < math.inf
            if hasty and not self._told:
                continue  # stopped, so that the end can be said
            if hasty:
                if time.monotonic() > self._latest:
                    break
            elif self._carrier.marks > marks:
                begin, marks = time.monotonic(), self._carrier.marks
            elif not self._answers or time.monotonic() > begin + _LAST_TRY_SECONDS:
                break
            _NEVER.wait(_FLUSH_SECONDS)
        if not done:
            if self._no_room:  # here, so that the store may be told how it ended
                self._attempt(self._carrier.close_first, self.journal.end or self._end)
            self.leave()
            return
        self.journal.mark_whole()
        self._given_up = True
        self.journal.release()
        self.complete = True
        if not self._tidied and self._latest == math.inf:
            deadline = time.monotonic() + _LAST_TRY_SECONDS
            self._attempt(self._tidy_once, lambda: time.monotonic() > deadline)

    def leave(self) -> None:
        """Say, once, that the rest waits and where."""
        if self.left:
            return
        self.left = True
        _LOG.warning(
            "MLflow does not have all of this run yet (%s): it waits in %s until fl-kit sync or "
            "the next run%s sends it",
            _what_waits(JournalReader(self.journal.folder)),
            self.journal.folder,
            " with this tracking URI, whose password is not kept," if "***" in self._uri else "",
        )

    def _close(self) -> None:
        end = self.journal.end or self._end
        if self._latest < math.inf:
            self._told = True  # what is called from here on may take its time
            self._carrier.close_first(end)
        self._carrier.close(end)

    def _tidy_once(self, stop: Callable[[], bool]) -> None:
        try:
            self._tidy(Pace(hurry=self._finishing, stop=stop))
        finally:
            self._tidied = not stop()

    def _attempt(self, call: Callable[..., None], *args: Any) -> bool:
        try:
            call(*args)
        except RunDeletedError:
            return True  # the rest is of no use to anybody
        except StoppedError:
            return False
        except Exception as error:
            self._no_room = self._no_room or bool(trouble(error))
            # Of the journal's own disk whoever writes there says it.
            if not self._lost and not (self._no_room and is_full(self.journal.folder)):
                self._lost = True
                _LOG.warning(
                    "MLflow at %s cannot be used now; rounds wait in %s and are sent later (%s)",
                    self._uri,
                    self.journal.folder,
                    one_line(error, MAX_REASON),
                )
            return False
        if self._lost:
            self._lost = False
            _LOG.warning("MLflow at %s answers again: it has what waited of this run", self._uri)
        return True


def _what_waits(journal: JournalReader) -> str:
    """Return what the store has not got of a run, in words."""
    try:
        with journal.reading():
            sent, end = journal.sent, journal.end
            rounds = journal.count_rounds(sent.get("rounds", 0))
    except UNREADABLE:
        return "the rest"
    parts = [f"{rounds} rounds"] if rounds else []
    if not sent.get("closed"):
        parts.append("the files of its end" if sent.get("told") else "its end")
    models = (model["name"] for model in end.get("models", []))
    return ", ".join([*parts, *(f"model {m}" for m in models if m not in sent.get("models", {}))])
