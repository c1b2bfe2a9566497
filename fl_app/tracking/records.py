"""What a tracker sees: the start of a run, each round, the end. Plain data, no Flower, no MLflow.

A tracker observes. It never steers, and an exception in it never reaches the training
(:class:`fl_app.tracking.TrackedStrategy` turns it into one warning), but for ``DiskError``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import NoTrackingConfig
from fl_app.config.registry import register

__all__ = [
    "Asked",
    "ClientRecord",
    "LoggedModel",
    "NullTracker",
    "RoundRecord",
    "RunEnd",
    "RunFacts",
    "RunStart",
    "Tracker",
]

Arrays = Mapping[str, NDArray[Any]]
Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class RunStart:
    """What is known before the first exchange.

    Parameters
    ----------
    name : str
        Run name, its distinguishing part first (the UI shows about 18 characters).
    params : mapping of str to str
        Flat dotted parameters; never changed later.
    tags : mapping of str to str
        Tags known at the start.
    texts : mapping of str to str
        Artifacts known at the start: path -> text, for example ``config/config.yaml``.
    num_server_rounds : int
        Rounds that the run will have; 0 if unknown.
    dataset : mapping of str to str
        What the run learns from, for the tracker's list of inputs: ``name``, ``digest``,
        ``source``; empty where nobody knows.
    output_dir : str
        Folder of the run's ``result.json``; empty where there is none on this machine.
    continues : bool
        Whether this is the run that the tracker finished last, which goes on.
    """

    name: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    num_server_rounds: int = 0
    dataset: Mapping[str, str] = field(default_factory=dict)
    output_dir: str = ""
    continues: bool = False


@dataclass(frozen=True)
class Asked:
    """Who was asked in one exchange, and who failed.

    Parameters
    ----------
    partitions : sequence of int
        Numbers of the clients that were asked, sorted.
    failed : mapping of int to str
        The reason, one printable line of at most 300 characters, for each of them whose reply was
        not used or did not come.
    """

    partitions: Sequence[int] = ()
    failed: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientRecord:
    """One accepted reply of one client.

    Parameters
    ----------
    partition : int
        Number of the client in every record: the partition of its data, unless the round's
        ``client_key`` says otherwise; negative for one of unknown partition among known ones.
    num_examples : float
        Rows behind the reply, its weight in the average.
    metrics : mapping of str to float
        The client's metrics without the weight.
    arrays : mapping of str to ndarray or None
        The client's arrays where they have at most 32 values in all and may be shown, else None.
    norm : float or None
        Euclidean norm over all the client's arrays, or None where it may not be shown.
    """

    partition: int
    num_examples: float
    metrics: Mapping[str, float]
    arrays: Arrays | None = None
    norm: float | None = None


@dataclass(frozen=True)
class RunFacts:
    """What holds for all rounds of a run, and is not known yet when it starts.

    Parameters
    ----------
    rule : str
        Name of the aggregation, for example ``"FedAvg"``.
    value_names : mapping of str to sequence of str
        For each array the names of its values in C order, for example
        ``{"coef": ["setosa.petal_length", ...], "intercept": ["setosa", ...]}``; an empty name
        stands for the array's own. Known only after the handshake, which is why it is not in
        :class:`RunStart`; given to :class:`~fl_app.tracking.TrackedStrategy` as ``value_names``.
    higher_is_better : mapping of str to bool
        For metrics whose name does not tell it: whether a larger value is better.
    """

    rule: str = ""
    value_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundRecord:
    """Everything that one round left behind.

    Parameters
    ----------
    server_round : int
        0 for the state before training, then 1 to T.
    arrays : mapping of str to ndarray
        Global arrays after the round (round 0: the initial ones).
    train, evaluate, server : mapping of str to float
        Aggregated client metrics of training and evaluation, and the server's own.
    train_clients, evaluate_clients : sequence of ClientRecord
        Accepted replies in order of partition.
    train_asked, evaluate_asked : Asked
        Who was asked to train and to evaluate, and who failed; empty where no client may be shown.
    aggregate : mapping of str to ndarray or None
        What the strategy's aggregation returned in this round, None where it returned nothing (then
        ``arrays`` are those of the round before).
    num_clients : int
        Clients that the federation is known to have; 0 if unknown.
    cost : mapping of str to float
        ``bytes_up``, ``bytes_down`` (both cumulative), ``seconds``, ``clients_asked``,
        ``clients_replied``, ``clients_failed``.
    extra : mapping of str to float
        Metrics of the strategy's own under their full key, for example ``stack/lambda``.
    texts : mapping of str to str
        Further text artifacts of the round: path -> text.
    timestamp_ms : int
        Unix time of the round's end in milliseconds.
    client_key : {"partition", "client"}
        What the clients' numbers are called: ``client`` where they are no partitions, which is
        known when the first of them have replied.
    run : RunFacts
        What holds for all rounds of the run: the same object in each.
    """

    server_round: int
    arrays: Arrays
    train: Mapping[str, float] = field(default_factory=dict)
    evaluate: Mapping[str, float] = field(default_factory=dict)
    server: Mapping[str, float] = field(default_factory=dict)
    train_clients: Sequence[ClientRecord] = ()
    evaluate_clients: Sequence[ClientRecord] = ()
    train_asked: Asked = Asked()
    evaluate_asked: Asked = Asked()
    aggregate: Arrays | None = None
    num_clients: int = 0
    cost: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    timestamp_ms: int = 0
    client_key: str = "partition"
    run: RunFacts = RunFacts()


@dataclass(frozen=True)
class LoggedModel:
    """A model to log at the end of a run.

    Parameters
    ----------
    name : str
        ``"final"`` or ``"best"``.
    server_round : int
        Round whose arrays it holds.
    arrays : mapping of str to ndarray
        The arrays.
    spec : mapping
        JSON-ready description from which :mod:`fl_app.models.serving` rebuilds the predictor:
        model, encoding of raw columns, labels.
    """

    name: str
    server_round: int
    arrays: Arrays
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Parameters
    ----------
    status : {"FINISHED", "FAILED", "KILLED"}
        MLflow's word for it.
    tags : mapping of str to str
        Tags known only now, for example ``weights.sha256``.
    models : sequence of LoggedModel
        Models to log.
    texts : mapping of str to str
        Further text artifacts: path -> text.
    files : mapping of str to bytes
        Further binary artifacts, for example figures: path -> content.
    error : str
        The error's one line where the status is not FINISHED.
    """

    status: Status
    tags: Mapping[str, str] = field(default_factory=dict)
    models: Sequence[LoggedModel] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


class Tracker(Protocol):
    """Sees a run from start to end.

    ``start`` is called once, ``annotate`` any number of times with tags and texts learnt on the
    way (data digest, roster), ``record`` once a round from 0 on, ``finish`` once. A run that was
    finished may go on: then ``start`` says that it ``continues``. A tracker may say in an attribute
    ``started`` that its ``start`` was called: then :class:`fl_app.tracking.TrackedStrategy` leaves
    ``start`` and ``finish`` to whoever did.

    Two more things a tracker may have, and does without where it does not:

    - ``event(kind, facts)`` sees what happens between rounds. From TrackedStrategy: ``asked``
      (``round``, ``exchange``: ``train`` or ``evaluate``, ``clients``: partitions), ``reply``
      (``round``, ``exchange``, ``client``) and ``replied`` (``round``, ``exchange``, ``clients``,
      ``failed``: partition -> reason). Where no client may be shown, or nobody knows their numbers
      yet, there is ``count`` in the place of ``clients`` and ``client``, and ``failed_count`` in
      that of ``failed``.
    - a true ``keeps_models`` and ``see_models(server_round, models)`` get the arrays that each
      accepted client sent in training, partition -> arrays, before the round's ``record``; never
      where no client may be shown.
    """

    def start(self, run: RunStart) -> None:
        """See the run's start."""
        ...

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """See tags and text artifacts that were learnt after the start."""
        ...

    def record(self, record: RoundRecord) -> None:
        """See one finished round."""
        ...

    def finish(self, end: RunEnd) -> None:
        """See the run's end."""
        ...


class NullTracker:
    """A tracker that keeps nothing (``tracking=none``)."""

    def start(self, run: RunStart) -> None:
        """Keep nothing."""

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Keep nothing."""

    def record(self, record: RoundRecord) -> None:
        """Keep nothing."""

    def finish(self, end: RunEnd) -> None:
        """Keep nothing."""


def flat_norm(arrays: Arrays) -> float:
    """Return the Euclidean norm over all values of all arrays."""
    squares = (float(np.sum(np.square(a, dtype=np.float64))) for a in arrays.values())
    return float(np.sqrt(sum(squares)))


register(NoTrackingConfig, build=lambda config, name: None)
