"""One run: handshake, strategy, start, result."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_app.aggregation import arrays_digest
from fl_app.config.options import DeploymentConfig, NoTrackingConfig
from fl_app.config.registry import builder_of
from fl_app.config.run_request import RunRequest, unheeded
from fl_app.config.schema import METRICS, Config, objective_of, task_of
from fl_app.config.serialization import to_json
from fl_app.data.client_data import test_table, whole_table
from fl_app.data.table import Table
from fl_app.errors import DIVERGED, ConfigError, DiskError, FlAppError, one_line
from fl_app.experiment.description import row_tags, run_start, site_names, value_names
from fl_app.experiment.result import (
    draw_figures,
    kept_result,
    logged_models,
    result_of,
    show_result,
)
from fl_app.experiment.resuming import Resumed, code_of
from fl_app.experiment.strategy_state import cannot_resume, load_state, state_of
from fl_app.federation import protocol
from fl_app.federation.ending import Ending
from fl_app.federation.federated import Federated, Participation
from fl_app.federation.handshake import shake_hands
from fl_app.federation.measures import Measures
from fl_app.federation.privacy import Private, with_privacy
from fl_app.federation.roster import Roster
from fl_app.federation.stepping import Stepping
from fl_app.grid.arrays import hold, read
from fl_app.grid.stock import HttpGrid, InMemoryGrid
from fl_app.grid.watched import WatchedGrid
from fl_app.home import home_dir
from fl_app.models.serving import Predictor
from fl_app.strategies import start_arrays, strategy_of
from fl_app.tracking import Events, MlflowTracker, TrackedStrategy, Trackers
from fl_app.tracking.best_round import BestRound
from fl_app.tracking.checkpoints import Checkpoints
from fl_app.tracking.console import ConsoleTracker
from fl_app.tracking.events import MAX_MODEL_CLIENTS
from fl_app.tracking.files import npz_bytes
from fl_app.tracking.metric_names import FINAL_LOSSES
from fl_app.tracking.recorder import JournalTracker
from fl_app.tracking.records import RunEnd, Status, Tracker
from fl_app.tracking.round_texts import client_table

__all__ = ["Run", "federated_of"]

_REPLY_TIMEOUT = 3600.0
_MAX_LOSS_ROWS = 50_000  # 600 kB
_MAX_PICTURED = 2  # features of a model that a picture can show
_log = logging.getLogger("fl_app")


@dataclass
class Run:
    """One run from handshake to result.

    Parameters
    ----------
    grid : Grid
        The federation.
    request : RunRequest
        The config and where it came from.
    runtime : str
        What really runs it.
    console : ConsoleTracker
        The terminal.
    flwr_run_id : int
        Flower's id of the run.
    observers : sequence of Tracker, default ()
        Further trackers that see the run.
    events : Events, optional
        Tells whoever watches, and names the run on this machine; its folder holds the record where
        there is no other.
    resumed : Resumed, optional
        The run that goes on, which `events` and `request` are of.
    """

    grid: Grid
    request: RunRequest
    runtime: str
    console: ConsoleTracker
    flwr_run_id: int
    observers: Sequence[Tracker] = ()
    events: Events | None = None
    resumed: Resumed | None = None

    def __post_init__(self) -> None:
        config = self.request.config
        self.config = config
        self.best = BestRound(objective_of(config))
        events = self.events
        name = "" if events is None else events.name
        tracker: Tracker | None = builder_of(config.tracking)(config, name)
        self.mlflow = tracker if isinstance(tracker, MlflowTracker) else None
        members: list[Tracker] = [self.console, self.best, *self.observers]
        if events is not None:
            members.append(events)  # knows the end before MLflow, which Ctrl-C may interrupt
        journal = None if events is None else events.journal
        # Under privacy there is no best model: rows without noise would choose it.
        best = None if config.privacy.is_private else self.best
        self.checkpoints = None if journal is None else Checkpoints(journal, best)
        if self.checkpoints is not None:
            members.append(self.checkpoints)  # goes into the journal with the round, which is next
        if tracker is not None:
            members.append(tracker)
        if self.mlflow is None and events is not None and events.folder is not None:
            members.append(
                JournalTracker(events.folder.parents[1], events.name, config.tracking.journal_days)
            )
        self.trackers = Trackers(*members)
        self.predictor: Predictor | None = None
        self.private: Private | None = None
        self.ending = Ending()
        self.console.at_end = self._say_last
        self._has_link = False
        self.test_rows: tuple[NDArray[Any], NDArray[Any]] | None = None
        runtime = config.runtime
        self.reply_timeout = (
            runtime.round_timeout if isinstance(runtime, DeploymentConfig) else _REPLY_TIMEOUT
        )

    def execute(self, node_ids: list[int]) -> None:
        """Run it, and write down how it ended, whatever happens."""
        begin = time.monotonic() - (self.resumed.seconds if self.resumed else 0.0)
        if self.runtime != "deployment":
            self.trackers.event("data", {})
        start = run_start(self.request, self.runtime, self.flwr_run_id)
        start = replace(start, continues=self.resumed is not None)
        if self.mlflow is not None:
            self.trackers.event("tracking", {})
        try:
            with self.console.waiting("the tracker to take the run"):
                self.trackers.start(start)
            if self.resumed is not None:
                self._recall(self.resumed)
            text = unheeded(self.config, self.request.overrides)
            if text and not self.console.brief:
                self.console.say(text)
            self._federate(node_ids)
            worse = self.ending.close()
            seconds = time.monotonic() - begin
            end = self._finished({"worse_than_constant": "true"} if worse else {})
        except BaseException as error:
            status: Status = "FAILED" if isinstance(error, Exception) else "KILLED"
            if self.resumed is not None and isinstance(error, ConfigError):
                status = self.resumed.status  # refused: it is what it was
            self._finish(RunEnd(status, error=one_line(error)), time.monotonic() - begin)
            raise
        self._finish(end, seconds)

    def _recall(self, resumed: Resumed) -> None:
        """Learn what is known of the rounds of a run that goes on."""
        for record in resumed.rounds:
            self.best.record(record)
        self.console.go_on(resumed.rounds[-1])
        key, own = "flwr.run_ids", str(self.flwr_run_id)
        before = resumed.facts.get(key) or resumed.journal.start["run"]["tags"]["flwr.run_id"]
        self.trackers.annotate({key: f"{before} {own}"}, {})

    def _learn(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Tell trackers what was learnt of data and nodes; of a run that goes on it is known."""
        if self.resumed is None:
            self.trackers.annotate(tags, texts)
            return
        for key, value in {**tags, **texts}.items():
            self.resumed.check(key, value)

    def _federate(self, node_ids: list[int]) -> None:
        """Shake hands and let the strategy do all rounds."""
        config = self.config
        # In a deployment the rows are the nodes' own: the server has neither data nor a test set.
        test = None if self.runtime == "deployment" else test_table(config)
        if test is not None:
            self._learn({"data.sha256": whole_table(config).sha256}, {})
        # The store's address may hold a password, and folders here mean nothing to a client.
        nowhere = NoTrackingConfig()
        shipped = replace(config, tracking=nowhere, output_dir=None, skip_finished=False)
        shipped = replace(shipped, resume=None, resume_anyway=False)
        self.trackers.event("handshake", {"asked": len(node_ids)})
        # A simulation starts its processes now, and a node reads its rows.
        with self.console.waiting(f"{len(node_ids)} nodes to say what rows they have"):
            roster, encoding = shake_hands(self.grid, node_ids, shipped, self.reply_timeout)
        shipped = roster.config or shipped
        if test is not None:
            # Here all rows are at hand; a node with a file of its own says it in its own log.
            for line in encoding.strangers(whole_table(config)):
                _log.warning("%s", line)
            test = test.take(encoding.known(test))
        self._tell_roster(roster, row_tags(config, self.runtime, roster, test))
        agreed = encoding.to_dict()
        if not config.privacy.is_private:  # which else counts clients only
            agreed |= {"told_by": roster.names}
        self._learn({}, {"config/encoding.json": json.dumps(agreed, indent=1)})
        self.predictor = Predictor.of(config, encoding, many=config.strategy.is_alone)
        self.trackers.event("model", {"spec": self.predictor.to_spec()})
        federated = federated_of(config, roster, self.predictor)
        self.ending, inner = federated.ending, federated.strategy
        self.private = inner if isinstance(inner, Private) else None
        features, outputs = encoding.feature_names, encoding.output_names
        private = config.privacy.is_private
        if self.events is not None:
            few = len(features) <= _MAX_PICTURED and len(roster) <= MAX_MODEL_CLIENTS
            self.events.keeps_models = few and not private
        start = start_arrays(config, roster, self.predictor)
        strategy = TrackedStrategy(
            federated,
            self.trackers,
            partitions=roster.partitions,
            private=private,
            value_names=value_names(start, features, outputs, roster),
        )
        arrays, num_rounds = hold(start), config.num_server_rounds
        self._prepare(federated)
        if self.resumed is not None:
            kept = self.resumed.checkpoint
            arrays, num_rounds = hold(kept.arrays), num_rounds - kept.server_round
            strategy.go_on(kept.server_round, arrays, kept.bytes_up, kept.bytes_down)
        record = protocol.run_record(to_json(shipped), encoding, roster.target_mean)
        evaluate_fn = self._evaluate_fn(test)
        if not num_rounds:
            return  # Flower's start() would return no arrays
        # Anybody else's grid may wait for replies in a way of its own.
        flowers = isinstance(self.grid, HttpGrid | InMemoryGrid)
        strategy.start(
            grid=WatchedGrid(self.grid, strategy.saw) if flowers else self.grid,
            initial_arrays=arrays,
            num_rounds=num_rounds,
            timeout=self.reply_timeout,
            train_config=record,
            evaluate_config=record.copy(),
            evaluate_fn=evaluate_fn,
        )

    def _prepare(self, federated: Federated) -> None:
        """Let the strategy go on from what it has kept, and keep what it will."""
        if self.private is not None and self.events is not None:
            events = self.events
            self.private.before_release = lambda asked: events.event(
                "release", {"count": asked}, now=True
            )
        if why := cannot_resume(federated):
            if not self.console.brief:
                self.console.say(f"if it breaks off, this run cannot be resumed: {why}")
        elif self.checkpoints is not None:
            code = code_of(self.config)
            self.checkpoints.state = lambda: {"strategy": state_of(federated), "code": code}
        if self.resumed is not None:
            load_state(federated, self.resumed.checkpoint.state["strategy"])
            for asked in self.resumed.releases:
                assert self.private is not None
                self.private.spend(asked)

    def _evaluate_fn(self, test: Table | None) -> Callable[[int, ArrayRecord], MetricRecord | None]:
        """Score global arrays on the server's test rows; without any there are no such metrics."""
        predictor = self.predictor
        assert predictor is not None
        if test is None or not len(test):
            return lambda server_round, arrays: None
        x = predictor.encoding.features(test).astype(self.config.model.dtype)
        x.setflags(write=False)
        y = predictor.encoding.truth(test)
        self.test_rows = x, y
        before = replace(predictor, many=False)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            # Before the first round all clients have the same arrays, under their plain names.
            use = predictor if server_round else before
            with np.errstate(over="ignore", invalid="ignore"):
                scores = use.score(read(arrays), x, y)
            wrong = [f"server/{m} is {v}" for m, v in scores.items() if not math.isfinite(v)]
            if wrong:
                raise self.ending.diverged(f"round {server_round}: {wrong[0]}")
            return MetricRecord(dict(scores))

        return evaluate

    def _tell_roster(self, roster: Roster, tags: Mapping[str, str]) -> None:
        """Say who takes part with how many rows; under differential privacy only how many do."""
        if self.config.privacy.is_private:
            self._learn(tags, {})
            self.trackers.event("roster", {"count": len(roster)})
            return
        names = ("partition", "num_examples", "num_validation")
        rows = [{name: getattr(node, name) for name in names} for node in roster]
        sites = site_names(self.config, self.runtime)
        table = [{**row, "site": sites.get(row["partition"])} for row in rows] if sites else rows
        if checks := {n.partition: n.file_check for n in roster if n.file_check}:
            table = [{**row, "file_check": checks.get(row["partition"])} for row in table]
        self._learn(tags, {"clients/roster.json": client_table(table)})
        self.trackers.event("roster", {"nodes": [list(row.values()) for row in rows]})

    def _finished(self, tags: dict[str, str]) -> RunEnd:
        """Make the end of a run that has done all its rounds: models, figures, digest."""
        self.trackers.event("ending", {})
        last, predictor, is_private = self.best.last, self.predictor, self.private is not None
        if last is not None:
            tags["weights.sha256"] = arrays_digest(last.arrays)
        if predictor is None:
            return RunEnd("FINISHED", tags)
        models = logged_models(self.best, predictor, is_private)
        swept = bool(self.request.sweep_id)
        files = draw_figures(self.config, self.runtime, self.best, predictor, is_private, swept)
        return RunEnd("FINISHED", tags, models, files={**files, **self._losses(predictor)})

    def _finish(self, end: RunEnd, seconds: float) -> None:
        """Tell how it ended, also where an interrupt comes first, which is raised then."""
        try:
            self._tell(end, seconds)
        except KeyboardInterrupt:
            if self.trackers.started:  # before they were told
                self._tell(end, seconds)
            raise

    def _tell(self, end: RunEnd, seconds: float) -> None:
        if end.status != "FINISHED":
            self.trackers.event("ending", {})
        if self.private is not None:  # also of a round that failed and so has no record
            tags = {**end.tags, "privacy.epsilon": f"{self.private.epsilon:.6g}"}
            end = replace(end, tags=tags)

        def result() -> dict[str, Any]:
            weights = end.tags.get("weights.sha256")
            epsilon = None if self.private is None else self.private.epsilon
            return result_of(
                end.status, self.best.last, seconds, weights, end.error, self.mlflow, epsilon
            )

        # Before the end is told: a run without a result has failed, whoever asks.
        kept = result()
        failure = kept_result(kept, self._folder())
        lost: FlAppError | None = None
        if failure and end.status == "FINISHED":
            lost = FlAppError(failure)
            end = replace(end, status="FAILED", error=failure, models=[])
        try:
            self.trackers.finish(end)
        except DiskError as error:
            if end.status == "FINISHED":
                lost = error
                end = replace(end, status="FAILED", error=str(error), models=[])
                if self.events is not None:
                    self.events.finish(end)
        finally:  # the address of the run may be known by now
            known = result()
            if known != kept:
                kept_result(known, self._folder())
            if self.runtime != "inprocess" and self.config.output_dir is None:
                show_result(known)
        if lost is not None:
            raise lost
        if not self._has_link:  # MLflow was not there before
            self._say_where()
        if end.status != "FINISHED" and DIVERGED not in end.error and not self.console.brief:
            self._say_how_to_go_on()

    def _say_how_to_go_on(self) -> None:
        began = self.resumed is not None
        if self.checkpoints is not None and (began or self.checkpoints.last is not None):
            assert self.events is not None
            self.console.say(f"go on with: fl-app resume={self.events.name}")

    def _folder(self) -> Path:
        """Return where ``result.json`` goes."""
        folder = None if self.events is None else self.events.folder
        folder = folder or home_dir() / "runs" / str(self.flwr_run_id)
        return Path(self.config.output_dir or folder)

    def _losses(self, predictor: Predictor) -> dict[str, bytes]:
        """Return the final model's loss on each test row; none under differential privacy."""
        last, rows = self.best.last, self.test_rows
        if last is None or rows is None or len(rows[1]) > _MAX_LOSS_ROWS:
            return {}
        if self.config.privacy.is_private:
            return {}
        return {FINAL_LOSSES: bytes(npz_bytes(predictor.row_losses(last.arrays, *rows)))}

    def _say_last(self) -> None:
        if self.private is not None:
            self.console.say(self.private.statement())
        self._say_where()

    def _say_where(self) -> None:
        if self.mlflow is None or not self.mlflow.url or self.console.brief:
            return
        self._has_link = True
        self.console.say(f"MLflow run: {self.mlflow.url}")
        if self.mlflow.charts_url:
            self.console.say(f"its charts: {self.mlflow.charts_url}")
        if self.mlflow.ui_command:
            self.console.say("open the MLflow UI first: fl-kit ui, which runs")
            self.console.say(f"  {self.mlflow.ui_command}")


def federated_of(config: Config, roster: Roster, predictor: Predictor) -> Federated:
    """Build a run's strategy with its wrappers: privacy, and around it the federation.

    Parameters
    ----------
    config : Config
        The run's config.
    roster : Roster
        The nodes of the run.
    predictor : Predictor
        What a model is.
    """
    ending = Ending.of(config, roster, len(predictor.encoding.labels))
    features = len(predictor.encoding.feature_names)
    stepping = Stepping.of(config, features, ending.limit, ending.constant)
    step = None if stepping is None else stepping.step
    fewest = max(config.min_replies, config.strategy.fewest_replies[0])
    metrics = frozenset(METRICS[task_of(config.dataset)])
    return Federated(
        with_privacy(strategy_of(config, roster, predictor, step), config, len(roster)),
        roster,
        Participation(config.seed, config.fraction_train, config.fraction_evaluate, fewest),
        train_metrics=metrics,
        evaluate_metrics=metrics,
        measures=Measures.of(config, predictor.encoding),
        ending=ending,
        stepping=stepping,
    )
