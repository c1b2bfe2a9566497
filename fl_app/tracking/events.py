"""What goes on in a run, for whoever watches: the events of its journal.

A run says more than its rounds: what it waits for before round 0, who was asked, who replied, who
failed and why, and that it is over. None of that is worth a wait for the disk, so events are
collected and written at most 0.5 s later, and those inside a round go when it is recorded. Each is
a JSON object with ``time_ms``, ``event`` and facts:

============= ====================================================================================
``begin``     the first line: ``runtime``, ``process`` (host, pid, started); again, with the round
              ``after`` which it goes on, where the run is resumed
``nodes``     SuperNodes that are ``online``, and how many are ``wanted`` (0: nobody knows)
``data``      reads the data
``tracking``  starts MLflow
``handshake`` ``asked`` nodes describe their data
``roster``    ``nodes``: partition, training rows, validation rows of each; ``count`` under privacy
``model``     ``spec`` of :class:`fl_app.models.serving.Predictor`
``release``   under privacy, before a round asks anybody: the ``count`` of clients that it asks
``asked``     and ``reply``, ``replied``: see :class:`fl_app.tracking.records.Tracker`
``ending``    the rounds are over: models, figures, what MLflow does not have yet
``end``       the last line: ``status``, ``error``
============= ====================================================================================

Where pictures of models can be drawn, the journal also keeps arrays of the kind ``seen`` for each
round: ``global/<array>`` after it and ``client/007/<array>``, what an accepted client sent in
training.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from fl_app.errors import DiskError, one_line
from fl_app.home import Process, home_dir, new_name
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import UNREADABLE
from fl_app.tracking.recorder import now_ms
from fl_app.tracking.records import Arrays, RoundRecord, RunEnd, RunStart

__all__ = ["MAX_MODEL_CLIENTS", "Events"]

_LOG = logging.getLogger("fl_app")
_MAX_MODEL_BYTES = 64_000_000
MAX_MODEL_CLIENTS = 24
"""Clients up to which each one's arrays are kept."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Events:
    """The events of one run, from its construction to :meth:`close`; a tracker too.

    A home that cannot be written to costs one warning; a disk that is full, too, before any tracker
    of the journal has started.

    Parameters
    ----------
    runtime : str
        What runs it: ``inprocess``, ``simulation`` or ``deployment``.
    home : path, optional
        As in :func:`~fl_app.home.home_dir`.

    Attributes
    ----------
    name : str
        The run's name on this machine.
    folder : Path or None
        Its folder; None where there is none.
    keeps_models : bool, default False
        Whether arrays are kept: to be set before the first round.

    Examples
    --------
    ::

        with Events("inprocess") as events:
            events.event("handshake", {"asked": 4})
            TrackedStrategy(FedAvg(), Trackers(events, MlflowTracker(name=events.name))).start(...)
    """

    def __init__(self, runtime: str, home: str | Path | None = None) -> None:
        self.name = new_name(now_ms())
        self.folder: Path | None = None
        self.keeps_models = False
        self._journal: Journal | None = None
        self._end: tuple[str, str] | None = None
        self._models: Mapping[int, Arrays] = {}
        self._model_bytes = 0
        try:
            self._journal = Journal.create(home_dir(home), self.name)
            self.folder = self._journal.folder
            self._begin(runtime)
        except (*UNREADABLE, DiskError) as error:
            _LOG.warning("a page cannot follow this run: %s", one_line(error))

    def _begin(self, runtime: str, **more: Any) -> None:
        process = asdict(Process.current())
        self.event("begin", {"runtime": runtime, "process": process, **more}, now=True)

    @property
    def journal(self) -> Journal | None:
        """The run's journal, None where there is none."""
        return self._journal

    def go_on(self, journal: Journal, runtime: str, server_round: int) -> None:
        """Be the events of a run that broke off after a round, in the place of the new one's.

        Parameters
        ----------
        journal : Journal
            That run's, held; given up with :meth:`close`.
        runtime : str
            What runs it now.
        server_round : int
            Its last round.
        """
        new, self._journal = self._journal, journal
        self.name, self.folder = journal.name, journal.folder
        if new is not None:
            new.mark_whole()
            new.release()
            shutil.rmtree(new.folder, ignore_errors=True)
        journal.reopen()  # before it is told: who reads then finds neither the old process nor end
        self._begin(runtime, after=server_round)

    def event(self, kind: str, facts: Mapping[str, Any] = _NOTHING, now: bool = False) -> None:
        """Tell of something; it is in the file within 0.5 s, or on the disk `now`.

        Parameters
        ----------
        kind : str
            A word of the table above.
        facts : mapping of str to object
            JSON-ready.
        """
        if self._journal is not None:
            self._journal.add_event({"time_ms": now_ms(), "event": kind, **facts}, now)

    def close(self, status: str = "KILLED", error: str = "") -> None:
        """Write what is left and the last line: how :meth:`finish` said that the run ended.

        Parameters
        ----------
        status, error : str
            How it ended where nobody called :meth:`finish`.
        """
        status, error = self._end or (status, error)
        self.event("end", {"status": status, "error": error})
        journal, self._journal = self._journal, None
        if journal is not None:
            with contextlib.suppress(*UNREADABLE):
                if not journal.start:  # it was over before any tracker knew of it
                    journal.mark_whole()
            journal.release()

    def __enter__(self) -> Events:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, with the exception that ended the block."""
        if error is None:
            self.close("FINISHED")
        else:
            self.close("FAILED" if isinstance(error, Exception) else "KILLED", one_line(error))

    # ------------------------------------------------------------ the tracker

    def start(self, run: RunStart) -> None:
        """Do nothing: a tracker of the journal keeps the start."""

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Do nothing: a tracker of the journal keeps tags and texts."""

    def see_models(self, server_round: int, models: Mapping[int, Arrays]) -> None:
        """Hold the arrays of a round's clients until the round is over."""
        self._models = models if len(models) <= MAX_MODEL_CLIENTS else {}

    def record(self, record: RoundRecord) -> None:
        """Keep a round's arrays, where that was asked for."""
        models, self._models = self._models, {}
        if not self.keeps_models or self._journal is None:
            return
        arrays = {f"global/{name}": array for name, array in record.arrays.items()}
        for partition, own in sorted(models.items()):
            arrays |= {f"client/{partition:03d}/{name}": array for name, array in own.items()}
        self._model_bytes += sum(array.nbytes for array in arrays.values())
        if self._model_bytes > _MAX_MODEL_BYTES:
            self.keeps_models = False
            return
        self._journal.keep_arrays("seen", record.server_round, arrays)

    def finish(self, end: RunEnd) -> None:
        """Note how the run ended, for :meth:`close`: other trackers may still have to send."""
        self._end = end.status, end.error
