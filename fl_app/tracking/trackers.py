"""Keeps a failing tracker away from the training and from the other trackers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from fl_app.errors import DiskError, one_line
from fl_app.tracking.records import Arrays, RoundRecord, RunEnd, RunStart, Tracker

__all__ = ["Guard", "Trackers"]

_LOG = logging.getLogger("fl_app")
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Guard:
    """Calls what must not disturb its caller: an exception becomes one log line of its kind.

    A kind is the function and the type of the exception. ``KeyboardInterrupt`` and ``SystemExit``
    pass: they are the user's; and ``DiskError``, which ends the run. Whatever else there is to warn
    of is said once, too.

    Parameters
    ----------
    name : str
        Who is guarded, for the log line.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._failures: set[tuple[str, type[Exception]]] = set()
        self._warnings: set[str] = set()

    def __call__(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """Return what `call` returns, or None where it raises."""
        try:
            return call(*args, **kwargs)
        except DiskError:
            raise
        except Exception as error:
            what = getattr(call, "__name__", type(call).__name__)
            if (what, type(error)) not in self._failures:
                self._failures.add((what, type(error)))
                _LOG.warning(
                    "%s: %s failed (%s); the run goes on, further failures of this kind "
                    "are not reported",
                    self.name,
                    what,
                    one_line(error),
                )
            return None

    def warn(self, text: str, *values: object) -> None:
        """Log a warning, once."""
        if text % values not in self._warnings:
            self._warnings.add(text % values)
            _LOG.warning(f"{self.name}: {text}", *values)


class Trackers:
    """Several trackers as one; none notices another one's failure, but for a full disk.

    Parameters
    ----------
    *trackers : Tracker
        Called in this order.

    Attributes
    ----------
    started : bool
        Whether ``start`` was called here, or on every member by itself.
    keeps_models : bool
        Whether a member keeps the clients' arrays.
    """

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers
        self._started = False
        self._without: list[Tracker] = []
        self._guards = [Guard(type(tracker).__name__) for tracker in trackers]

    @property
    def started(self) -> bool:
        """Whether somebody started the trackers."""
        members = [getattr(tracker, "started", False) for tracker in self.trackers]
        return self._started or (bool(members) and all(members))

    @property
    def keeps_models(self) -> bool:
        """Whether a member keeps the clients' arrays."""
        return any(getattr(tracker, "keeps_models", False) for tracker in self.trackers)

    def start(self, run: RunStart) -> None:
        """Start each tracker."""
        self._started = True
        self._each("start", run)

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Annotate each tracker."""
        for guard, tracker in zip(self._guards, self.trackers, strict=True):
            guard(tracker.annotate, tags, texts)

    def record(self, record: RoundRecord) -> None:
        """Give the round to each tracker."""
        for guard, tracker in zip(self._guards, self.trackers, strict=True):
            guard(tracker.record, record)

    def finish(self, end: RunEnd) -> None:
        """Finish each tracker; an interrupt is raised when all know the end."""
        self._started = False
        self._each("finish", end)

    def _each(self, what: str, given: RunStart | RunEnd) -> None:
        """Tell each tracker but those that could not start.

        Then raise what a full disk said, or the interrupt that came meanwhile.
        """
        raised: DiskError | KeyboardInterrupt | None = None
        for guard, tracker in zip(self._guards, self.trackers, strict=True):
            if tracker in self._without:
                continue
            try:
                guard(getattr(tracker, what), given)
            except DiskError as error:
                raised = raised or error
                if what == "start":
                    self._without.append(tracker)
            except KeyboardInterrupt as error:
                if what == "start":
                    raise
                raised = error
        if raised is not None:
            raise raised

    def event(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Tell each tracker that wants to know what happens between rounds."""
        for guard, tracker in zip(self._guards, self.trackers, strict=True):
            if callable(see := getattr(tracker, "event", None)):
                guard(see, kind, facts)

    def see_models(self, server_round: int, models: Mapping[int, Arrays]) -> None:
        """Show the clients' arrays to each tracker that keeps them."""
        for guard, tracker in zip(self._guards, self.trackers, strict=True):
            if getattr(tracker, "keeps_models", False):
                guard(tracker.see_models, server_round, models)  # type: ignore[attr-defined]
