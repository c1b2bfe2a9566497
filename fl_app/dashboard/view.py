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

__all__ = [
    "ACTIVE",
    "PHASES",
    "Exchange",
    "InRound",
    "MlflowLink",
    "Own",
    "Round",
    "RunHead",
    "RunView",
    "Status",
    "counted",
]

Status = Literal[
    "waiting", "starting", "running", "unknown", "finished", "failed", "killed", "lost"
]
ACTIVE = frozenset({"waiting", "starting", "running", "unknown"})
"""Statuses of a run that goes on, or may."""
PHASES = ("collect", "stack", "select")
"""What a round of FedStacking does, by ``stack/phase``."""
WHY_PRIVATE = (
    "Under differential privacy the record shows no client: neither who was asked or replied, nor "
    "a client's rows, metrics or arrays, as they would tell what the noise hides."
)

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
        or ``lost``: the process is gone and nobody wrote an end; ``unknown``: on another machine.
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


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: ``1 reply``, ``2 replies``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


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
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def rows_of(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of ``{"columns": …, "data": …}``."""
    try:
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    except (KeyError, TypeError, ValueError):
        return []


def _unpacked(packed: bytes) -> dict[str, str]:
    return texts_of(parsed(zlib.decompress(packed))) if packed else {}
