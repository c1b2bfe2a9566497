"""One run: handshake, strategy, start, result."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_app.aggregation import arrays_digest
from fl_app.config.dataset_options import TabularConfig
from fl_app.config.options import DeploymentConfig, MlflowConfig, NaturalConfig, NoTrackingConfig
from fl_app.config.registry import builder_of
from fl_app.config.run_request import RunRequest, unheeded, versions
from fl_app.config.schema import (
    METRICS,
    Config,
    data_name,
    objective_of,
    task_of,
)
from fl_app.config.serialization import digest, flatten, to_dict, to_json, without_effect
from fl_app.data.client_data import partition_of, seed_draws, test_table, whole_table
from fl_app.data.table import Table
from fl_app.errors import one_line
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
from fl_app.home import home_dir, write
from fl_app.models.serving import Predictor
from fl_app.strategies import start_arrays, strategy_of
from fl_app.tracking import Events, MlflowTracker, TrackedStrategy, Trackers
from fl_app.tracking.best_round import BestRound
from fl_app.tracking.console import LINE_PREFIX, RESULT_MARK, ConsoleTracker
from fl_app.tracking.events import MAX_MODEL_CLIENTS
from fl_app.tracking.files import npz_bytes
from fl_app.tracking.metric_names import FINAL_LOSSES
from fl_app.tracking.recorder import JournalTracker
from fl_app.tracking.records import LoggedModel, RunEnd, RunStart, Status, Tracker
from fl_app.tracking.round_texts import client_table

__all__ = ["Run", "federated_of"]

_REPLY_TIMEOUT = 3600.0
_MAX_LOSS_ROWS = 50_000  # 600 kB
_MAX_PICTURED = 2  # features of a model that a picture can show
log = logging.getLogger("fl_app")


@dataclass
class Run:
    """One run from handshake to result.

    Parameters
    ----------
    grid : Grid
        The federation.
    launch : RunRequest
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
    """

    grid: Grid
    launch: RunRequest
    runtime: str
    console: ConsoleTracker
    flwr_run_id: int
    observers: Sequence[Tracker] = ()
    events: Events | None = None

    def __post_init__(self) -> None:
        config = self.launch.config
        self.config = config
        self.objective = objective_of(config)
        self.best = BestRound(self.objective)
        events = self.events
        name = "" if events is None else events.name
        tracker: Tracker | None = builder_of(config.tracking)(config, name)
        self.mlflow = tracker if isinstance(tracker, MlflowTracker) else None
        members: list[Tracker] = [self.console, self.best, *self.observers]
        if events is not None:
            members.append(events)  # knows the end before MLflow, which Ctrl-C may interrupt
        if tracker is not None:
            members.append(tracker)
        if self.mlflow is None and events is not None and events.folder is not None:
            members.append(JournalTracker(events.folder))
        self.trackers = Trackers(*members)
        self.predictor: Predictor | None = None
        self.private: Private | None = None
        self.ending = Ending()
        self.test_rows: tuple[NDArray[Any], NDArray[Any]] | None = None
        runtime = config.runtime
        self.reply_timeout = (
            runtime.round_timeout if isinstance(runtime, DeploymentConfig) else _REPLY_TIMEOUT
        )

    def execute(self, node_ids: list[int]) -> None:
        """Run it, and write down how it ended, whatever happens."""
        begin = time.monotonic()
        if self.runtime != "deployment":
            self.trackers.event("data", {})
        start = self._start()
        if self.mlflow is not None:
            self.trackers.event("tracking", {})
        try:
            with self.console.waiting("the tracker to take the run"):
                self.trackers.start(start)
            text = unheeded(self.config, self.launch.overrides)
            if text and not self.console.brief:
                self.console.say(text)
            self._federate(node_ids)
            worse = self.ending.close()
        except BaseException as error:
            status: Status = "FAILED" if isinstance(error, Exception) else "KILLED"
            self._finish(status, time.monotonic() - begin, one_line(error))
            raise
        tags = {"worse_than_constant": "true"} if worse else {}
        self._finish("FINISHED", time.monotonic() - begin, "", tags)

    def _federate(self, node_ids: list[int]) -> None:
        """Shake hands and let the strategy do all rounds."""
        config = self.config
        # In a deployment the rows are the nodes' own: the server has neither data nor a test set.
        test = None if self.runtime == "deployment" else test_table(config)
        if test is not None:
            self.trackers.annotate({"data.sha256": whole_table(config).sha256}, {})
        # The store's address may hold a password, and folders here mean nothing to a client.
        nowhere = NoTrackingConfig()
        shipped = replace(config, tracking=nowhere, output_dir=None, skip_finished=False)
        self.trackers.event("handshake", {"asked": len(node_ids)})
        # A simulation starts its processes now, and a node reads its rows.
        with self.console.waiting(f"{len(node_ids)} nodes to say what rows they have"):
            roster, encoding = shake_hands(self.grid, node_ids, shipped, self.reply_timeout)
        shipped = roster.config or shipped
        if test is not None:
            # Here all rows are at hand; a node with a file of its own says it in its own log.
            for line in encoding.strangers(whole_table(config)):
                log.warning("%s", line)
            test = test.take(encoding.known(test))
        self._tell_roster(roster, self._row_tags(roster, test))
        agreed = encoding.to_dict()
        if not config.privacy.is_private:  # which else counts clients only
            agreed |= {"told_by": roster.names}
        self.trackers.annotate({}, {"config/encoding.json": json.dumps(agreed, indent=1)})
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
            value_names=_value_names(start, features, outputs, roster),
        )
        record = protocol.run_record(to_json(shipped), encoding, roster.target_mean)
        # Anybody else's grid may wait for replies in a way of its own.
        flowers = isinstance(self.grid, HttpGrid | InMemoryGrid)
        strategy.start(
            grid=WatchedGrid(self.grid, strategy.saw) if flowers else self.grid,
            initial_arrays=hold(start),
            num_rounds=config.num_server_rounds,
            timeout=self.reply_timeout,
            train_config=record,
            evaluate_config=record.copy(),
            evaluate_fn=self._evaluate_fn(test),
        )

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
            self.trackers.annotate(tags, {})
            self.trackers.event("roster", {"count": len(roster)})
            return
        names = ("partition", "num_examples", "num_validation")
        rows = [{name: getattr(node, name) for name in names} for node in roster]
        sites = self._sites()
        table = [{**row, "site": sites.get(row["partition"])} for row in rows] if sites else rows
        self.trackers.annotate(tags, {"clients/roster.json": client_table(table)})
        self.trackers.event("roster", {"nodes": [list(row.values()) for row in rows]})

    def _sites(self) -> dict[int, str]:
        """Return the natural clients' names by partition, where rows are dealt and they have any.

        A node with a file of its own tells no name beside its partition's number.
        """
        config = self.config
        dealt = self.runtime != "deployment" and isinstance(config.partitioner, NaturalConfig)
        return dict(enumerate(whole_table(config).owner_names)) if dealt else {}

    def _row_tags(self, roster: Roster, test: Table | None) -> dict[str, str]:
        """Say how many rows are for what, and which of them the seed draws."""
        config = self.config
        own_files = self.runtime == "deployment" and isinstance(config.dataset, TabularConfig)
        counts = {
            "data.train_rows": sum(node.num_examples for node in roster),
            "data.validation_rows": sum(node.num_validation for node in roster),
        }
        if test is not None:
            counts |= {"data.rows": len(whole_table(config)), "data.test_rows": len(test)}
        drawn = "nothing" if own_files else seed_draws(config)
        return {"data.seed_draws": drawn} | {name: str(count) for name, count in counts.items()}

    def _start(self) -> RunStart:
        config = self.config
        tags = {
            "strategy": config.strategy.name,
            "dataset": config.dataset.name,
            "model": config.model.name,
            "partitioner": config.partitioner.name,
            "runtime": self.runtime,
            "seed": str(config.seed),
            "config.sha256": digest(config),
            "config.without_effect": " ".join(without_effect(config)),
            "flwr.run_id": str(self.flwr_run_id),
            "sweep.id": self.launch.sweep_id,
            "git.commit": self.launch.commit,
            "mlflow.source.git.commit": self.launch.commit,
            "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        }
        return RunStart(
            name=_run_name(config, self.launch.swept),
            params=flatten(config),
            tags={key: value for key, value in tags.items() if value},
            texts={
                "config/config.yaml": yaml.safe_dump(to_dict(config), sort_keys=False),
                "config/overrides.yaml": yaml.safe_dump(list(self.launch.overrides)),
            },
            num_server_rounds=config.num_server_rounds,
            dataset=self._dataset(),
            output_dir=config.output_dir or "",
        )

    def _dataset(self) -> dict[str, str]:
        """Name the data for MLflow's list of inputs; in a deployment only the nodes know it."""
        config = self.config
        if self.runtime == "deployment":
            return {}
        dataset = config.dataset
        source = dataset.path if isinstance(dataset, TabularConfig) else f"fl_app:{dataset.name}"
        digest_ = whole_table(config).sha256
        return {"name": data_name(config), "digest": digest_, "source": source or dataset.name}

    def _finish(
        self, status: Status, seconds: float, error: str, tags: Mapping[str, str] | None = None
    ) -> None:
        self.trackers.event("ending", {})
        tags = dict(tags or {})
        last = self.best.last
        if last is not None and status == "FINISHED":
            tags["weights.sha256"] = arrays_digest(last.arrays)
        if self.private is not None:  # also of a round that failed and so has no record
            tags["privacy.epsilon"] = f"{self.private.epsilon:.6g}"
        models = self._models() if status == "FINISHED" else []
        files = {**self._figures(status), **self._losses(status)}
        try:
            self.trackers.finish(RunEnd(status, tags, models, {}, error, files))
        finally:  # whoever has no patience with MLflow still has the result
            self._write_result(status, seconds, tags.get("weights.sha256"), error)
        if self.private is not None and not self.console.brief:
            self.console.say(self.private.statement())
        self._say_where()

    def _losses(self, status: Status) -> dict[str, bytes]:
        """Return the final model's loss on each test row; none under differential privacy."""
        last, predictor, rows = self.best.last, self.predictor, self.test_rows
        if status != "FINISHED" or last is None or predictor is None or rows is None:
            return {}
        if self.config.privacy.is_private or len(rows[1]) > _MAX_LOSS_ROWS:
            return {}
        losses = predictor.row_losses(last.arrays, *rows)
        return {FINAL_LOSSES: bytes(npz_bytes(losses))}

    def _figures(self, status: Status) -> dict[str, bytes]:
        """Draw the run; a picture that cannot be drawn costs a warning only."""
        tracking = self.config.tracking
        if status != "FINISHED" or not isinstance(tracking, MlflowConfig) or not tracking.figures:
            return {}
        try:
            return self._draw()
        except Exception as error:
            log.warning("the figures were not drawn: %s", one_line(error))
            return {}

    def _draw(self) -> dict[str, bytes]:
        from fl_app.tracking import figures

        last, encoding = self.best.last, self.predictor.encoding if self.predictor else None
        if last is None or encoding is None:
            return {}
        metric = self.objective.partition("/")[2]
        drawn = {
            "figures/learning_curves.png": figures.draw_curves(self.best.rounds),
            f"figures/clients_{metric}.png": figures.draw_clients(last, metric),
        }
        known = self.runtime != "deployment" and not self.config.strategy.is_pooled
        if known and self.private is None:
            parts = range(min(self.config.num_clients, figures.MAX_BARS))
            targets = {k: partition_of(self.config, k).train.target for k in parts}
            total = self.config.num_clients
            drawn["figures/data.png"] = figures.draw_data(targets, encoding.labels, total)
        return {path: picture for path, picture in drawn.items() if picture is not None}

    def _models(self) -> list[LoggedModel]:
        """Return the final round's model, and the best one where there are validation rows.

        Under differential privacy there is none: rows without noise would choose it.
        """
        if self.predictor is None:
            return []
        spec = self.predictor.to_spec()
        best = None if self.private is not None else self.best.best
        rounds = {"final": self.best.last, "best": best}
        return [
            LoggedModel(name, r.server_round, r.arrays, spec)
            for name, r in rounds.items()
            if r is not None
        ]

    def _write_result(
        self, status: Status, seconds: float, weights: str | None, error: str
    ) -> None:
        last = self.best.last
        metrics: dict[str, float] = {}
        if last is not None:
            parts = {"train": last.train, "eval": last.evaluate, "server": last.server}
            metrics = {f"{p}/{m}": v for p, values in parts.items() for m, v in values.items()}
        result = {
            "run_id": None if self.mlflow is None else self.mlflow.run_id,
            "status": status,
            "metrics": {key: v if math.isfinite(v) else None for key, v in metrics.items()},
            "weights_sha256": weights,
            "seconds": round(seconds, 3),
        }
        if error:
            result["error"] = error
        if self.mlflow is not None:
            result["link"] = self.mlflow.url
        own = None if self.events is None else self.events.folder
        own = own or home_dir() / "runs" / str(self.flwr_run_id)
        folder = Path(self.config.output_dir or own)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=2, allow_nan=False)
        write(folder / "result.json", f"{text}\n", sync=False)
        if self.runtime != "inprocess" and self.config.output_dir is None:
            # A launcher on another machine sees the log, not the folder.
            text = json.dumps(result, allow_nan=False)
            sys.stdout.write(f"{LINE_PREFIX}{RESULT_MARK}{text}\n")
            sys.stdout.flush()

    def _say_where(self) -> None:
        if self.mlflow is None or self.console.brief:
            return
        if self.mlflow.url:
            self.console.say(f"MLflow run: {self.mlflow.url}")
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


_NAMED = {"strategy", "seed", "partitioner", "partitioner.alpha", "num_clients", "model", "privacy"}
_NAMED |= {"faults.clients", "faults.kind", "method"}


def _run_name(config: Config, swept: Sequence[str] = ()) -> str:
    """Name a run, what tells it apart first: the UI shows about 18 characters.

    What else a sweep is over stands between the strategy, or the method, and the seed. A table of
    the user's own is last: its file, or, where each node has a file of its own, its target.
    """
    alpha = getattr(config.partitioner, "alpha", None)
    deal = config.partitioner.name if alpha is None else f"{config.partitioner.name} {alpha:g}"
    private = "" if not config.privacy.is_private else f" {config.privacy.name}"
    faults = config.faults
    faulty = f" {faults.clients} {faults.kind}" if faults.clients else ""
    pairs = [override.lstrip("+").partition("=") for override in swept]
    what = next((value for key, _, value in pairs if key == "method"), config.strategy.name)
    own = [f" {key.rpartition('.')[2]}={value}" for key, _, value in pairs if key not in _NAMED]
    more = "".join(own)
    name = f"{what}{private}{faulty}{more} s{config.seed}"
    name = f"{name} {deal} K{config.num_clients} {config.model.name}"
    if not isinstance(config.dataset, TabularConfig):
        return name
    target = config.dataset.target or ()
    targets = target if isinstance(target, str) else " ".join(target)
    return f"{name} {targets if config.runtime.name == 'deployment' else data_name(config)}"


def _value_names(
    arrays: Mapping[str, Any], features: tuple[str, ...], outputs: tuple[str, ...], roster: Roster
) -> dict[str, list[str]]:
    """Name the values of ``coef`` and ``intercept`` by feature and, of several, by output."""
    if set(arrays) != {"coef", "intercept"}:
        return {}
    one = len(outputs) == 1
    names = {
        "coef": [f if one else f"{o}.{f}" for o in outputs for f in features],
        "intercept": [""] if one else list(outputs),
    }
    own = {f"{n.partition:03d}/{key}": value for n in roster for key, value in names.items()}
    return names | own
