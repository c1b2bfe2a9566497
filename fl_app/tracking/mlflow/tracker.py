"""Records runs in MLflow: first on the local disk, then in the store, at a time that costs least.

:class:`MlflowTracker` writes every round to a :class:`~fl_app.tracking.journal.Journal` and
returns; a :class:`~fl_app.tracking.mlflow.uploader.Uploader` carries it to a
:class:`~fl_app.tracking.mlflow.backend.MlflowStore`. MLflow itself is imported when the first run
starts, never with this module.

References
----------
MLflow, tracking: https://mlflow.org/docs/latest/ml/tracking/
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fl_app.config.options import MlflowConfig
from fl_app.config.passwords import whole
from fl_app.config.registry import register
from fl_app.config.rules import check_names, kept_weights
from fl_app.config.schema import Config, data_name
from fl_app.errors import ConfigError, DiskError, FlAppError
from fl_app.home import home_dir
from fl_app.tracking.housekeeping import JOURNAL_DAYS, prune, waiting_bytes
from fl_app.tracking.journal import Journal
from fl_app.tracking.mlflow.backend import MlflowStore, load_mlflow, quiet
from fl_app.tracking.mlflow.chart_view import view_key
from fl_app.tracking.mlflow.upload import Pace, Run
from fl_app.tracking.mlflow.uploader import Replay, Uploader, replay_outboxes
from fl_app.tracking.mlflow.uri import (
    charts_url,
    check_uri,
    default_uri,
    masked,
    run_url,
    sqlite_path,
    ui_command,
)
from fl_app.tracking.recorder import Recorder, keep_end, now_ms
from fl_app.tracking.records import RoundRecord, RunEnd, RunStart

__all__ = ["MlflowTracker", "replay"]

_LOG = logging.getLogger("fl_app")
_CONNECT_SECONDS = 5.0
_MUCH_WAITING = 5e9  # bytes
_HASTY_SECONDS = 3.0
_FINISH_SECONDS = {False: 6.5, True: 120.0}  # a local file may be busy, but it is there
_behind: set[str] = set()
"""Stores that have cost a run of this process its patience: the next one spends none on them."""


class MlflowTracker:
    """A tracker that records a run in MLflow and loses no round, whatever MLflow does.

    Every event is on the disk when its call returns; a thread sends it to MLflow about once a
    second and sends the rest at :meth:`finish`. A server that is down costs a warning. What it
    missed, also from a process that was killed, is sent when the next tracker with this home
    starts, or by :func:`replay`. Runs of killed processes are closed as ``KILLED``. A password in
    the URI is not written down, so whoever sends the rest of such a run must know it: the next
    tracker with the same URI, or a process with it in ``MLFLOW_TRACKING_URI``. A disk without room
    for a round ends the run: ``DiskError``.

    Parameters
    ----------
    uri : str, optional
        Tracking URI; by default ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the home.
    experiment_name : str, default "fl_app"
        MLflow's experiment; made where it does not exist.
    run_name : str, optional
        Wins over the name that the run start gives.
    params, tags : mapping of str to str, optional
        Added to those of the run start, over which they win: ``params=context.run_config`` in a
        ServerApp, whose run config no strategy knows. Other values are recorded as text.
    register_as : str, optional
        Register the best model (the final one where there is no best) under this name, with the
        alias ``champion``.
    home : path, optional
        Where the journal is, and the default store; by default ``FL_APP_HOME``, else ``~/.fl_app``.
    name : str, optional
        Name of the next run on this machine, as :func:`~fl_app.home.new_name` gives it;
        by default a new one for each run.
    keep_weights : str, default "all"
        Whose weights are kept as artifacts: those of ``all`` rounds, of ``none``, of the last K
        (``last:K``, sent at the end), or of each Kth and the last one (``every:K``). With a model
        of 100 MB the record of each round is as large.
    journal_days : float, default 7
        Days for which runs that are over and sent stay in `home`; older ones are removed.

    Raises
    ------
    ConfigError
        For a URI that can never work, a name that MLflow refuses, or another `keep_weights`.

    Notes
    -----
    Infinite values are recorded as NaN, and the tag ``infinite_metrics`` names their keys: MLflow
    would store 1.8e308, which ruins a chart's axis.

    Where they are not set, this sets ``MLFLOW_HTTP_REQUEST_MAX_RETRIES`` to 1 and
    ``MLFLOW_HTTP_REQUEST_TIMEOUT`` to 5 (a server that hangs would block a call for 20 minutes),
    and ``MLFLOW_DISABLE_TELEMETRY`` and ``MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT`` to true.

    Examples
    --------
    ::

        TrackedStrategy(FedAvg(), MlflowTracker(experiment_name="x")).start(grid=grid, ...)
    """

    def __init__(
        self,
        uri: str | None = None,
        experiment_name: str = "fl_app",
        run_name: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        register_as: str | None = None,
        home: str | Path | None = None,
        name: str = "",
        keep_weights: str = "all",
        journal_days: float = JOURNAL_DAYS,
    ) -> None:
        self._name, self._keep = name, kept_weights(keep_weights)
        self._journal_days = journal_days
        self.home = _usable(home_dir(home))
        from_env = not uri and bool(os.environ.get("MLFLOW_TRACKING_URI"))
        field = "MLFLOW_TRACKING_URI" if from_env else "tracking.uri"
        self.uri = check_uri(uri or default_uri(self.home), field)
        check_names(experiment_name, register_as)
        self.experiment_name, self.run_name = experiment_name, run_name
        self.register_as = register_as
        self.params = {key: str(value) for key, value in (params or {}).items()}
        self.tags = {key: str(value) for key, value in (tags or {}).items()}
        self._store = MlflowStore(self.uri, self.home)
        self._journal: Journal | None = None
        self._sender: Uploader | None = None
        self._recorder: Recorder | None = None

    # ------------------------------------------------------------ what a caller may ask

    @property
    def started(self) -> bool:
        """Whether a run goes on."""
        return self._journal is not None

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until MLflow has it."""
        run = self._tracked_run
        return None if run is None else run.run_id

    @property
    def url(self) -> str | None:
        """Address of the run's page in the UI; None until MLflow has the run."""
        run = self._tracked_run
        return None if run is None else run_url(self.uri, run.experiment_id, run.run_id)

    @property
    def charts_url(self) -> str | None:
        """Address of the run's charts in order; None where MLflow has no view of them."""
        run = self._tracked_run
        if run is None or run.run_id not in self._store.viewed:
            return None
        return charts_url(self.uri, run.experiment_id, view=view_key("run", run.run_id))

    @property
    def ui_command(self) -> str:
        """The command that opens the UI; empty where the server is the UI."""
        return ui_command(self.uri)

    @property
    def _tracked_run(self) -> Run | None:
        return None if self._sender is None else self._sender.tracked_run

    # ------------------------------------------------------------ the tracker's four events

    def start(self, run: RunStart) -> None:
        """Begin the run's journal and its uploader; wait up to 5 s for MLflow to have the run.

        Raises
        ------
        FlAppError
            If a run goes on.

        Notes
        -----
        Where `run` says that it continues, the run that was finished last goes on, with the
        parameters and tags that it has.
        """
        if self._journal is not None:
            raise FlAppError("this tracker was started before and is not finished")
        given = replace(
            run,
            name=self.run_name or run.name,
            params={**run.params, **self.params},
            tags={**run.tags, **self.tags},
        )
        target = {
            "uri": masked(self.uri),
            "experiment": self.experiment_name,
            "register_as": self.register_as,
        }
        journal = self._reopened() if run.continues else None
        fresh = journal is None
        if journal is None:
            name, self._name = self._name, ""
            journal = Journal.opened(self.home, name) or Journal.create(self.home, name)
            journal.begin(target, given, now_ms())
            self._recorder = Recorder(journal, self._keep)
        self._journal = journal
        self._sender = Uploader(journal, self._store, self._tidy, quiet, fresh)
        with quiet():
            # Here and not in the sender: while two threads import, either can find half a module.
            load_mlflow()
        self._sender.start()
        if self.uri not in _behind:
            self._sender.tried.wait(_CONNECT_SECONDS)

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Keep tags and texts that were learnt after the start."""
        self._running().add_note(tags, texts)

    def record(self, record: RoundRecord) -> None:
        """Keep a round; it is on the disk when this returns."""
        self._running()
        assert self._recorder is not None
        self._recorder.record(record)

    def finish(self, end: RunEnd) -> None:
        """Keep the end, and wait until MLflow has all, for 10 s at most.

        In the last 3 s MLflow gets the end first; what is left waits for the next run. A run of
        this process after one that was left so does not wait, unless MLflow kept up with its
        rounds. A run that was killed, or an interrupt while the rest is sent, leaves the 3 s. A
        local store is given two minutes.

        Raises
        ------
        DiskError
            If there is no room for the end: then the run has failed, which MLflow is told.
        """
        journal, sender = self._running(), self._sender
        end_ms, hasty = now_ms(), end.status == "KILLED"
        try:
            keep_end(journal, end, end_ms)
        except DiskError as error:
            if end.status == "FINISHED":
                end = replace(end, status="FAILED", error=str(error))
            raise
        except KeyboardInterrupt:
            hasty = True
            raise
        finally:
            self._journal = None
            if sender is not None and sender.is_alive():
                sender.finish({"status": end.status, "error": end.error, "end_ms": end_ms})
                try:
                    self._wait_for(sender, hasty)
                except KeyboardInterrupt:
                    self._wait_for(sender, True)
                    raise
            else:
                journal.release()

    # ------------------------------------------------------------ parts

    def _wait_for(self, sender: Uploader, hasty: bool) -> None:
        """Wait for the rest to be sent; where there is haste, for 3 s."""
        patience = _FINISH_SECONDS[sqlite_path(self.uri) is not None]
        if waits := self.uri not in _behind or sender.keeps_up:
            sender.join(0.0 if hasty else patience)
        if sender.is_alive() and not sender.complete:
            sender.hasten(_HASTY_SECONDS)
            sender.join(_HASTY_SECONDS + 0.5 if hasty or waits else 0.0)
        if sender.complete:
            _behind.discard(self.uri)
            return
        sender.leave()
        if not hasty:
            _behind.add(self.uri)

    def _reopened(self) -> Journal | None:
        """Go on with the run before, if it can be."""
        if self._sender is None or self._recorder is None:
            journal = Journal.opened(self.home, self._name)  # another process has begun the run
            if journal is not None:
                journal.reopen()
                self._recorder = Recorder(journal, self._keep).recall()
            return journal
        journal = None
        if not self._sender.is_alive():
            folder = self._sender.journal.folder
            journal = Journal.opened(self.home, folder.name) or Journal.claim(folder)
        if journal is None:
            _LOG.warning("the record of the run before is not there any more: this is a new run")
        else:
            journal.reopen()
            self._recorder.move(journal)
        return journal

    def _running(self) -> Journal:
        if self._journal is None:
            raise FlAppError("this tracker was not started")
        return self._journal

    def _tidy(self, pace: Pace) -> None:
        """Send what others left behind, and close runs whose process is gone."""
        report = replay_outboxes(
            self.home, lambda uri: MlflowStore(whole(uri, self.uri), self.home), pace
        )
        for name, reason in report.waiting.items():
            if name in report.damaged:
                _LOG.warning(
                    "run %s cannot be sent (%s): fl-kit clean %s removes it", name, reason, name
                )
            else:
                _LOG.info("run %s still waits: %s", name, reason)
        self._store.reap({path.name for path in Journal.pending(self.home)})
        prune(self.home, self._journal_days)
        if (size := waiting_bytes(self.home)) > _MUCH_WAITING:
            _LOG.warning(
                "%.1f GB of runs in %s wait for MLflow: fl-kit runs lists them, fl-kit sync sends "
                "them",
                size / 1e9,
                self.home,
            )


def replay(home: str | Path | None = None, uri: str | None = None) -> Replay:
    """Send the rest of every run that is over to the store that it was meant for.

    Safe to call at any time and any number of times: runs of live processes are left alone, and
    what a store has already it does not get twice.

    Parameters
    ----------
    home : path, optional
        By default ``FL_APP_HOME``, else ``~/.fl_app``.
    uri : str, optional
        Send all of them to this store instead, for example because their server is gone for good,
        or has a password, which journals do not hold.

    Returns
    -------
    Replay
        Names of the runs that were sent, that are live, and that still wait, with the reason.

    Raises
    ------
    ConfigError
        If `uri` can never work.
    """
    folder = home_dir(home)
    instead = None if uri is None else check_uri(uri, "uri")
    with quiet():
        return replay_outboxes(folder, lambda meant: MlflowStore(instead or whole(meant), folder))


def _usable(home: Path) -> Path:
    """Make the home and try it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ConfigError("FL_APP_HOME", home, f"{error}; must be a writable directory") from None
    return home


def _of(config: Config, name: str) -> MlflowTracker:
    own = cast(MlflowConfig, config.tracking)
    return MlflowTracker(
        uri=own.uri,
        experiment_name=own.experiment_name or data_name(config),
        register_as=own.register_as,
        name=name,
        keep_weights=own.keep_weights,
        journal_days=own.journal_days,
    )


register(MlflowConfig, build=_of)
