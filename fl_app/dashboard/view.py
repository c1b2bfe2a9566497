"""What the page knows of a run, as plain data, and what can be worked out of it.

:mod:`fl_app.dashboard.live` makes it of files; nothing here knows of any.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_app.models.directions import higher_is_better
from fl_app.models.metrics import FEWEST_ROWS, NO_SCORES
from fl_app.tracking.metric_names import directions_of

__all__ = [
    "ACTIVE",
    "PHASES",
    "Exchange",
    "InRound",
    "Metric",
    "MlflowLink",
    "Own",
    "Round",
    "RunHead",
    "RunView",
    "Status",
    "counted",
    "mean_values",
    "metrics",
    "own_values",
    "phase",
    "shown_rows",
    "strip",
    "unit",
    "values",
    "worst_values",
]

Status = Literal["waiting", "starting", "running", "finished", "failed", "killed", "lost"]
ACTIVE = frozenset({"waiting", "starting", "running"})
"""Statuses of a run that goes on."""
PHASES = ("collect", "stack", "select")
"""What a round of FedStacking does, by ``stack/phase``."""
WHY_PRIVATE = (
    "Under differential privacy the record shows no client: neither who was asked or replied, nor "
    "a client's rows, metrics or arrays, as they would tell what the noise hides."
)

_FIRST = ("accuracy", "mse", "log_loss", "mae", "brier", "r2", "balanced_accuracy", "roc_auc")
_ROWS = {
    "server": "the server's test rows",
    "eval": "the clients' validation rows",
    "train": "the clients' training rows, each by its own model",
}
Floats = NDArray[np.float64]


# ---------------------------------------------------------------------------- what is known
@dataclass(frozen=True, slots=True)
class Exchange:
    """Who took part in a round's training or evaluation, by partition.

    Parameters
    ----------
    asked, replied : tuple of int
        In order; empty where the record names no client.
    failed : mapping of int to str
        Those that were asked in vain, with the reason.
    num_asked, num_replied, num_failed : int
        Counts, which are there under privacy too.
    """

    asked: tuple[int, ...] = ()
    replied: tuple[int, ...] = ()
    failed: Mapping[int, str] = field(default_factory=dict)
    num_asked: int = 0
    num_replied: int = 0
    num_failed: int = 0


@dataclass(frozen=True, slots=True)
class InRound:
    """A round that is not over.

    Parameters
    ----------
    server_round : int
        The round.
    exchange : {"train", "evaluate"}
        What goes on.
    train, evaluate : Exchange
        As far as they are known.
    closed : bool
        Whether the exchange is over: the server works on its replies.
    one_by_one : bool
        Whether replies were seen one by one.
    """

    server_round: int
    exchange: str
    train: Exchange = Exchange()
    evaluate: Exchange = Exchange()
    closed: bool = False
    one_by_one: bool = False

    @property
    def now(self) -> Exchange:
        """The exchange that goes on."""
        return self.train if self.exchange == "train" else self.evaluate


@dataclass(frozen=True, slots=True)
class Own:
    """Clients' own metrics in a round.

    Parameters
    ----------
    partitions : ndarray of shape (k,)
        The clients, in order.
    rows : ndarray of shape (k,)
        Rows behind each client's values; NaN where unknown.
    values : mapping of str to ndarray of shape (k,)
        Metric -> values, NaN where a client has none.
    """

    partitions: NDArray[np.int32]
    rows: Floats
    values: Mapping[str, Floats]


NOBODY = Own(np.empty(0, np.int32), np.empty(0), {})


@dataclass(frozen=True, slots=True)
class Round:
    """What one round left behind.

    Parameters
    ----------
    server_round : int
        0 before training.
    time_ms : int
        Unix time of its end.
    metrics : mapping of str to float
        Under the keys of MLflow, without the clients' own; NaN where a value is not finite.
    up, down : float
        Bytes of this round alone, of all clients; NaN where nobody counted.
    train, evaluate : Exchange
        Who took part.
    validation, training : Own
        The clients' own metrics on their validation and on their training rows.
    sizes : mapping of int to int
        Training rows of each client that replied.
    packed : bytes
        The round's texts, compressed: see :attr:`aggregation`.
    """

    server_round: int
    time_ms: int
    metrics: Mapping[str, float]
    up: float
    down: float
    train: Exchange
    evaluate: Exchange
    validation: Own
    training: Own
    sizes: Mapping[int, int]
    packed: bytes = b""

    @property
    def aggregation(self) -> dict[str, Any]:
        """What :func:`~fl_app.tracking.round_texts.aggregation_text` says; empty without a text."""
        return parsed(_unpacked(self.packed).get("aggregation", ""))

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The rows of FedStacking's table of candidates; empty in other rounds."""
        return rows_of(parsed(_unpacked(self.packed).get("candidates", "")))

    @property
    def members(self) -> list[dict[str, Any]]:
        """The rows of FedStacking's table of members; empty in other rounds."""
        return rows_of(parsed(_unpacked(self.packed).get("members", "")))

    @property
    def went_back(self) -> bool:
        """Whether the round was thrown away (:mod:`fl_app.federation.stepping`)."""
        return self.metrics.get("model/went_back", 0.0) == 1

    @property
    def total_bytes(self) -> float:
        """Bytes up and down since the start."""
        get = self.metrics.get
        return get("cost/bytes_up", math.nan) + get("cost/bytes_down", math.nan)


@dataclass(frozen=True)
class MlflowLink:
    """Where a run is in MLflow.

    Parameters
    ----------
    url : str
        Its page, empty where MLflow has not got the run.
    command : str
        What must run for the page to open; empty where a server is its own page.
    sentence : str
        What there is to know.
    """

    url: str = ""
    command: str = ""
    sentence: str = ""


@dataclass(frozen=True)
class RunHead:
    """A run in a list of runs.

    Parameters
    ----------
    name : str
        The run's name on this machine.
    title : str
        The run's name in MLflow; empty before it is recorded.
    status : str
        See :class:`RunView`.
    strategy, dataset, seed : str
        From its params.
    start_ms : int
        Unix time of its start.
    launch, job : str
        The launch of the page that it belongs to and its place in there; empty for others.
    """

    name: str
    title: str
    status: Status
    strategy: str
    dataset: str
    seed: str
    start_ms: int
    launch: str
    job: str


@dataclass(frozen=True)
class RunView:
    """All that the page shows of a run; a new one whenever something changed.

    Parameters
    ----------
    name, title, strategy, runtime, output_dir, launch, job : str
        As in :class:`RunHead`; empty where unknown.
    config : str
        Its config as YAML; empty where unknown.
    params, tags : mapping of str to str
        Of the run.
    status : str
        ``waiting`` (for nodes), ``starting``, ``running``, ``finished``, ``failed``, ``killed``,
        or ``lost``: the process is gone and nobody wrote an end.
    error : str
        One line where it did not finish.
    start_ms, sign_ms : int
        Unix times of the start and of the last sign of life.
    total : int
        Rounds that the run will have; 0 if unknown.
    clients : int
        K; 0 if unknown.
    roster : mapping of int to (int, int)
        Training and validation rows of each client, as far as known; empty under privacy.
    rounds : tuple of Round
        From round 0 on, in order.
    keys : tuple of str
        Keys of metrics that any round has.
    in_round : InRound or None
        The round that is not over.
    stage : str
        The last event's name.
    facts : mapping
        The last event's facts.
    spec : mapping
        ``Predictor.to_spec()``; empty before it is known.
    mlflow : MlflowLink
        Where the run is in MLflow.
    private : bool
        Whether clients are protected.
    closing : bool
        Whether the end is written and its delivery goes on.
    vanished : bool
        Whether its files were removed since.
    """

    name: str
    title: str = ""
    strategy: str = ""
    runtime: str = ""
    output_dir: str = ""
    launch: str = ""
    job: str = ""
    config: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    status: Status = "starting"
    error: str = ""
    start_ms: int = 0
    sign_ms: int = 0
    total: int = 0
    clients: int = 0
    roster: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    rounds: tuple[Round, ...] = ()
    keys: tuple[str, ...] = ()
    in_round: InRound | None = None
    stage: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    mlflow: MlflowLink = MlflowLink()
    private: bool = False
    closing: bool = False
    vanished: bool = False

    @property
    def active(self) -> bool:
        """Whether the run goes on."""
        return self.status in ACTIVE

    @property
    def why_private(self) -> str:
        """Why no client is shown; empty where they are."""
        return WHY_PRIVATE if self.private else ""

    def stack_phase(self, round_: Round) -> str:
        """Return what FedStacking did: ``collect``, ``stack``, ``select``; else nothing."""
        number = round_.metrics.get("stack/phase", math.nan)
        return PHASES[int(number)] if self.strategy != "n_average" and number in (0, 1, 2) else ""

    def round(self, server_round: int) -> Round | None:
        """Return a round by its number, None where it is not recorded."""
        at = server_round - self.rounds[0].server_round if self.rounds else -1
        if 0 <= at < len(self.rounds) and self.rounds[at].server_round == server_round:
            return self.rounds[at]
        return next((r for r in self.rounds if r.server_round == server_round), None)


# ---------------------------------------------------------------------------- metrics of a view
@dataclass(frozen=True)
class Metric:
    """A metric that the page can show.

    Parameters
    ----------
    name : str
        For example ``accuracy``.
    source : {"server", "eval", "train"}
        Whose value stands for the run: the first of these that any round has.
    higher : bool or None
        Whether larger is better; None where nobody knows.
    """

    name: str
    source: str
    higher: bool | None

    @property
    def key(self) -> str:
        """The key in :attr:`Round.metrics`."""
        return f"{self.source}/{self.name}"

    @property
    def rows(self) -> str:
        """On which rows it is measured, in words."""
        return _ROWS[self.source]


def metrics(view: RunView) -> list[Metric]:
    """Return what can be shown of a run, the default first.

    Parameters
    ----------
    view : RunView
        The run.

    Returns
    -------
    list of Metric
        One a name; empty before the first round.
    """
    best: dict[str, str] = {}
    for source in ("train", "eval", "server"):
        for key in view.keys:
            first, _, name = key.partition("/")
            if first == source and name not in NO_SCORES and name != "train_loss":
                best[name] = source
    places = {name: place for place, name in enumerate(_FIRST)}
    names = sorted(best, key=lambda name: (places.get(name, len(places)), name))
    known = directions_of(view.tags)
    return [Metric(name, best[name], higher_is_better(name, known)) for name in names]


def unit(view: RunView, metric: str) -> str:
    """Return a metric's unit in words, empty where it has none."""
    targets = [*(mapping(view.spec.get("encoding")).get("targets") or ())]
    name = str(targets[0]) if len(targets) == 1 else "target"
    return {"mse": f"{name}²", "mae": name}.get(metric, "")


def values(view: RunView, metric: Metric) -> Floats:
    """Return the run's value in each of its rounds, shape (R,), NaN where there is none."""
    return np.array([r.metrics.get(metric.key, math.nan) for r in view.rounds])


def shown_rows(view: RunView) -> str:
    """Return on which rows clients' own values are: ``validation``, ``training`` or nothing."""
    if any(len(r.validation.partitions) for r in view.rounds):
        return "validation"
    return "training" if any(len(r.training.partitions) for r in view.rounds) else ""


def own_values(view: RunView, round_: Round) -> Own:
    """Return the clients' own values in a round, on the rows that :func:`shown_rows` names."""
    return round_.validation if shown_rows(view) == "validation" else round_.training


def strip(view: RunView, name: str) -> Floats:
    """Return each client's value of a metric in each round.

    Parameters
    ----------
    view : RunView
        The run.
    name : str
        The metric.

    Returns
    -------
    ndarray of shape (K, R)
        NaN where a client was not measured.
    """
    validation = shown_rows(view) == "validation"
    own = [r.validation if validation else r.training for r in view.rounds]
    largest = max((int(o.partitions[-1]) for o in own if len(o.partitions)), default=-1)
    table = np.full((max(view.clients, largest + 1), len(own)), np.nan)
    for place, o in enumerate(own):
        if name in o.values:
            table[o.partitions, place] = o.values[name]
    return table


def mean_values(view: RunView, name: str) -> Floats:
    """Return the clients' mean in each round, weighted by rows as the server does it, (R,).

    On the rows that :func:`shown_rows` names; under privacy, where it names none, on those of
    ``eval/`` if the run has any.
    """
    rows = shown_rows(view)
    validation = rows == "validation" or (not rows and f"eval/{name}" in view.keys)
    key = f"{'eval' if validation else 'train'}/{name}"
    return np.array([r.metrics.get(key, math.nan) for r in view.rounds])


def worst_values(view: RunView, name: str) -> Floats:
    """Return the worst client's value in each round, (R,); NaN where nobody knows what is worse.

    Clients with fewer than five validation rows do not count where others have more.
    """
    higher = higher_is_better(name, directions_of(view.tags))
    worst = np.min if higher else np.max
    found = np.full(len(view.rounds), np.nan)
    if higher is None:
        return found
    validation = shown_rows(view) == "validation"
    for place, r in enumerate(view.rounds):
        own = r.validation if validation else r.training
        if name in own.values:
            known = own.values[name]
            enough = known[~(own.rows < FEWEST_ROWS)]
            finite = [part[~np.isnan(part)] for part in (enough, known)]
            part = finite[0] if len(finite[0]) else finite[1]
            found[place] = worst(part) if len(part) else np.nan
    return found


# ---------------------------------------------------------------------------- what goes on
def phase(
    view: RunView | None, now: float, since: float | None = None, runtime: str = "inprocess"
) -> str:
    """Say in one sentence what is going on, or how it ended.

    Parameters
    ----------
    view : RunView or None
        The run; None while a launch has none yet.
    now : float
        Unix time in seconds.
    since : float, optional
        Unix time at which a run that is not there yet was launched.
    runtime : str, default "inprocess"
        Of a run that is not there yet.

    Returns
    -------
    str
        With the seconds since the last sign of life while the run goes on.
    """
    if view is None:
        early = (
            "importing" if runtime == "inprocess" else "importing, then starting Flower's engine"
        )
        return f"{early}{_ago(now - since if since else math.nan)}"
    done = view.rounds[-1].server_round if view.rounds else -1
    match view.status:
        case "finished":
            return f"finished after {counted(max(done, 0), 'round')}"
        case "failed" | "killed" | "lost":
            word = {"failed": "failed", "killed": "stopped", "lost": "ended"}[view.status]
            where = f" in round {done + 1}" if 0 <= done < view.total else ""
            why = "" if view.error in ("", "KeyboardInterrupt") else f": {view.error}"
            return f"{word}{where if done >= 0 else ' before round 0'}{why}"
    return f"{_activity(view, done)}{_ago(now - view.sign_ms / 1000)}"


def _activity(view: RunView, done: int) -> str:
    told = view.facts
    if view.closing:
        recorded = view.params.get("tracking.name") != "none"
        return "sending the rest to MLflow" if recorded else "writing the end"
    if view.stage == "ending":
        return "all rounds are over: writing models and figures"
    if view.in_round is not None:
        return _inside(view.in_round, view.total)
    if done >= 0:
        of = f" of {view.total}" if view.total else ""
        return f"round {done}{of} is over" if done else "round 0 is over: the model before training"
    online, wanted = whole(told.get("online")), whole(told.get("wanted"))
    waiting = f"waiting for nodes: {online} of {wanted}" if wanted else "waiting for nodes"
    there = f"{counted(online, 'node is', 'nodes are')} there"
    return {
        "nodes": waiting if online < max(1, wanted) else there,
        "tracking": "starting MLflow",
        "data": "reading the data",
        "handshake": f"handshake with {counted(whole(told.get('asked')), 'client')}",
        "roster": "building the model",
        "model": "scoring the model before training",
    }.get(view.stage, "starting")


def _inside(at: InRound, total: int) -> str:
    where = f"round {at.server_round}" + (f" of {total}" if total else "")
    now, trains = at.now, at.exchange == "train"
    if at.closed:
        work = "combining" if trains else "adding up the scores of"
        lost = f", {now.num_failed} failed" if now.num_failed else ""
        return f"{where}: {work} {counted(now.num_replied, 'reply', 'replies')}{lost}"
    if at.one_by_one:
        verb = "replied" if trains else "sent their scores"
        return f"{where}: {now.num_replied} of {counted(now.num_asked, 'client')} have {verb}"
    verb = "train" if trains else "evaluate"
    return f"{where}: {counted(now.num_asked, 'client')} {verb}{'s' if now.num_asked == 1 else ''}"


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: ``1 reply``, ``2 replies``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _ago(seconds: float) -> str:
    if not seconds >= 1:
        return ""
    if seconds < 120:
        return f", {seconds:.0f} s"
    return f", {seconds / 60:.0f} min" if seconds < 7200 else f", {seconds / 3600:.0f} h"


# ---------------------------------------------------------------------------- plain values
def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def texts_of(value: Any) -> dict[str, str]:
    return {str(key): str(text) for key, text in mapping(value).items()}


def number_of(client: Mapping[str, Any]) -> int:
    """Return the number of a client in a record: its partition, or one that is arbitrary."""
    return whole(client.get("partition", client.get("client")))


def whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def parsed(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def rows_of(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of ``{"columns": …, "data": …}``."""
    try:
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    except (KeyError, TypeError, ValueError):
        return []


def _unpacked(packed: bytes) -> dict[str, str]:
    return texts_of(parsed(zlib.decompress(packed))) if packed else {}
