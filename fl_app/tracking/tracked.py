"""Observes any Flower strategy round by round: what was sent, what came back, what it became.

Flower's ``Strategy.start()`` calls four hooks and, at the end of each round, ``evaluate_fn``. A
wrapper that delegates the hooks and wraps ``evaluate_fn`` therefore sees every round of every
strategy, and never has to copy ``start()``. It changes nothing: messages, replies and results pass
through as they are, and an exception of its own never reaches the training.

References
----------
Flower, ``Strategy``: https://flower.ai/docs/framework/ref-api/flwr.serverapp.strategy.Strategy.html
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_app.errors import ConfigError, one_line, printable
from fl_app.held import HeldArray, is_kind, items_of, read, records_of, sender
from fl_app.tracking.base import (
    Arrays,
    Asked,
    ClientRecord,
    RoundRecord,
    RunEnd,
    RunStart,
    Status,
    Tracker,
)
from fl_app.tracking.keys import MAX_SHOWN_VALUES
from fl_app.tracking.trackers import Guard

__all__ = ["TrackedStrategy", "content_bytes"]

_LOG = logging.getLogger("fl_app")
_MAX_REASON = 300
_MAX_NAMED = 100
"""Clients of an exchange up to which each reply is told of by itself."""
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class TrackedStrategy(Strategy):
    """A strategy that shows every round of the strategy it wraps to a tracker.

    Usable alone in any Flower app. A tracker that nobody started is started with the run and
    finished with it: ``FINISHED``, ``KILLED`` after Ctrl-C, ``FAILED`` after any other exception.

    Parameters
    ----------
    strategy : Strategy
        The strategy to observe. Where it (or a strategy inside it, found through attributes named
        ``strategy``) has them, these are used: ``accepted``, the node ids whose replies counted in
        the last exchange; ``dropped``, partition -> reason for the others;
        ``is_model(name)``, whether an array of a reply belongs to a model: others are not recorded;
        ``round_metrics(server_round)``, metrics of its own under their full key;
        ``round_texts(server_round)``, text artifacts; ``weighted_by_key``, the weight's name.
        Without ``accepted`` a client is any reply without error that holds one MetricRecord (and
        one ArrayRecord in training); without ``dropped`` the reason is the reply's error, or that
        none came in time.
    tracker : Tracker
        Sees the run; several are joined by :class:`fl_app.tracking.Trackers`.
    partitions : mapping of int to int, optional
        Node id -> partition. Read when needed, so it may be filled later. Nodes without an entry
        are numbered by sorted node id in the order in which rounds ask them.
    value_names : mapping of str to sequence of str, optional
        Names of the arrays' values, as in :class:`~fl_app.tracking.base.RoundRecord`. Read when
        needed.
    private : bool, default False
        Whether clients are protected (differential privacy): then no client is recorded, neither
        its arrays and their norm nor its metrics, only how many were asked and replied.
    higher_is_better : mapping of str to bool, optional
        For metrics whose name does not tell it: whether a larger value is better. Without it such a
        metric has no worst client, which is said once.
    rule : str, optional
        Name of the aggregation; by default the class name of the innermost strategy.

    Raises
    ------
    TypeError
        If `strategy` is no Flower strategy.
    ConfigError
        If `higher_is_better` is no mapping of names to bool.

    Notes
    -----
    ``cost/bytes_down`` and ``cost/bytes_up`` sum :func:`content_bytes` over all messages sent and
    all replies received, evaluation included; of messages to clients without their ConfigRecords,
    which are instructions and the run's description. ``cost/clients_*`` count the training exchange
    of the round (the evaluation's where there was no training); a node that was asked and whose
    reply did not count has failed. ``cost/seconds`` is what a clock on the wall shows between the
    ends of two rounds, whatever was done meanwhile; the first one counts from the start, with the
    evaluation before training. A strategy with a ``start()`` of its own loses it: only its hooks
    run.

    Examples
    --------
    ::

        TrackedStrategy(FedAvg(), MlflowTracker(experiment_name="x")).start(
            grid=grid, initial_arrays=arrays, num_rounds=3
        )
    """

    def __init__(
        self,
        strategy: Strategy,
        tracker: Tracker,
        *,
        partitions: Mapping[int, int] | None = None,
        value_names: Mapping[str, Sequence[str]] | None = None,
        private: bool = False,
        rule: str | None = None,
        higher_is_better: Mapping[str, bool] | None = None,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise TypeError(f"strategy must be a flwr Strategy, got {type(strategy).__name__}")
        self.strategy, self.tracker = strategy, tracker
        self.partitions, self.value_names, self.private = partitions, value_names, private
        self.higher_is_better = _directions(higher_is_better or {})
        self.rule = rule or type([*_chain(strategy)][-1]).__name__
        self._guard = Guard("tracking")
        self._reset()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run Flower's own ``start`` with an `evaluate_fn` that also closes the round's record."""
        self._reset()
        owner = not getattr(self.tracker, "started", False)
        if owner:
            self._guard(self.tracker.start, self._run_start(num_rounds, train_config))
        if type(self.strategy).start is not Strategy.start:
            _LOG.info("tracking: %s.start() is not used, only its hooks", self.rule)
        self._round_began = time.perf_counter()

        def watched(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = None if evaluate_fn is None else evaluate_fn(server_round, arrays)
            self._guard(self._close_round, server_round, arrays, metrics)
            return metrics

        try:
            result = super().start(
                grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, watched
            )
        except BaseException as error:
            if owner:
                self._guard(self.tracker.finish, _end_of(error))
            raise
        if owner:
            self._guard(self.tracker.finish, RunEnd("FINISHED"))
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, and note who is asked."""
        self._round = _Round(server_round)
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._guard(self._note_messages, messages, self._round.train)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate, and note the replies and what became of them."""
        replies = list(replies)
        # Read first: a strategy may empty the replies that it aggregates (FedMedian does).
        exchange = self._round.train
        seen = self._guard(self._read_replies, replies, exchange)
        try:
            arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        except Exception:  # too few replies, perhaps: who failed is why
            self._guard(self._note_replies, seen, exchange, None)
            raise
        self._guard(self._note_replies, seen, exchange, metrics)
        self._round.aggregate = arrays
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate, and note who is asked."""
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self._guard(self._note_messages, messages, self._round.evaluate)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Delegate, and note the replies and what became of them."""
        replies = list(replies)
        exchange = self._round.evaluate
        seen = self._guard(self._read_replies, replies, exchange)
        metrics = self.strategy.aggregate_evaluate(server_round, replies)
        self._guard(self._note_replies, seen, exchange, metrics)
        return metrics

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        self.strategy.summary()

    def saw(self, replies: Sequence[Message]) -> None:
        """Tell the tracker of replies to an exchange that is not over; for a grid that sees them.

        Parameters
        ----------
        replies : sequence of Message
            Those that came together.
        """
        self._guard(self._note_arrivals, replies)

    # ------------------------------------------------------------ observation

    def _reset(self) -> None:
        self._bytes_up = self._bytes_down = 0
        self._numbers = _Numbers(self.partitions)
        self._round = _Round(0)
        self._exchange: _Exchange | None = None
        self._round_began = time.perf_counter()

    def _run_start(self, num_rounds: int, train_config: ConfigRecord | None) -> RunStart:
        params = {"strategy": self.rule, "num_server_rounds": str(num_rounds)}
        params |= {f"train_config.{k}": str(v) for k, v in (train_config or {}).items()}
        return RunStart(self.rule, params, {"strategy": self.rule}, num_server_rounds=num_rounds)

    def _note_messages(self, messages: Sequence[Message], exchange: _Exchange) -> None:
        self._exchange = exchange
        exchange.sent = [message.metadata for message in messages]
        exchange.asked = len(messages)
        self._numbers.learn(m.dst_node_id for m in exchange.sent)
        self._bytes_down += sum(_counted(messages))
        exchange.nodes = {m.dst_node_id: self._numbers.of(m.dst_node_id) for m in exchange.sent}
        if messages:
            clients = sorted(exchange.nodes.values())
            who = {"count": len(clients)} if self.private else {"clients": clients}
            self._tell("asked", exchange, who)

    def _note_arrivals(self, replies: Sequence[Message]) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        nodes = [sender(reply, exchange.sent) for reply in replies]
        known = [exchange.nodes[node] for node in nodes if node in exchange.nodes]
        exchange.arrived += len(known)
        if self.private or exchange.asked > _MAX_NAMED:
            self._tell("reply", exchange, {"count": exchange.arrived})
            return
        for partition in known:
            self._tell("reply", exchange, {"client": partition})

    def _read_replies(self, replies: Sequence[Message], exchange: _Exchange) -> list[_Reply]:
        weight = _found(self.strategy, "weighted_by_key") or "num-examples"
        train = exchange.name == "train"
        shown = train and not self.private
        is_model = (_found(self.strategy, "is_model") or _is_any) if shown else None
        seen = [_Reply.of(m, train, is_model, weight) for m in replies if m.has_content()]
        self._bytes_up += sum(reply.num_bytes for reply in seen)
        self._numbers.learn(reply.node_id for reply in seen)
        for reply in replies:
            if reply.has_error():
                reason = reply.error.reason or "no reason given"
                exchange.errors[sender(reply, exchange.sent)] = f"the client failed: {reason}"
        return seen

    def _note_replies(
        self, seen: Sequence[_Reply] | None, exchange: _Exchange, metrics: MetricRecord | None
    ) -> None:
        self._exchange = None
        accepted: Collection[int] | None = _found(self.strategy, "accepted")
        used = [r for r in seen or () if accepted is None or r.node_id in accepted]
        clients = [r for r in used if r.complete or accepted is not None]
        exchange.replied = len(used)
        if not self.private:
            with np.errstate(over="ignore"):
                exchange.clients = sorted(
                    [r.client(self._numbers.of(r.node_id)) for r in clients],
                    key=attrgetter("partition"),
                )
        weight = _found(self.strategy, "weighted_by_key") or "num-examples"
        exchange.metrics = _scalars(metrics or {}, weight)
        self._note_failures(exchange, {r.node_id for r in used}, {r.node_id for r in seen or ()})
        if exchange.name == "train" and getattr(self.tracker, "keeps_models", False):
            self._show_models(clients)

    def _note_failures(self, exchange: _Exchange, used: set[int], came: set[int]) -> None:
        """Keep who was asked and who failed, and tell of it; under privacy only how many."""
        lost = {n: k for n, k in exchange.nodes.items() if n not in used}
        facts: dict[str, Any] = {"count": exchange.replied, "failed_count": len(lost)}
        if not self.private:
            told: Mapping[int, str] = (_found(self.strategy, "dropped") or {}) if lost else {}
            failed = {}
            for node_id, partition in sorted(lost.items(), key=lambda pair: pair[1]):
                silent = "the reply was not used" if node_id in came else "no reply in time"
                reason = told.get(partition) or exchange.errors.get(node_id) or silent
                failed[partition] = printable(" ".join(reason.split()), _MAX_REASON)
            asked = sorted(exchange.nodes.values())
            exchange.told = Asked(asked, failed)
            replied = [k for k in asked if k not in failed]
            facts = {"clients": replied, "failed": {str(k): why for k, why in failed.items()}}
        if exchange.nodes:
            self._tell("replied", exchange, facts)

    def _show_models(self, replies: Sequence[_Reply]) -> None:
        if not self.private:
            models = {self._numbers.of(r.node_id): r.values() for r in replies}
            self.tracker.see_models(self._round.server_round, models)  # type: ignore[attr-defined]

    def _tell(self, kind: str, exchange: _Exchange, facts: Mapping[str, Any]) -> None:
        if callable(see := getattr(self.tracker, "event", None)):
            where = {"round": self._round.server_round, "exchange": exchange.name}
            see(kind, {**where, **facts})

    def _close_round(
        self, server_round: int, arrays: ArrayRecord, server: MetricRecord | None
    ) -> None:
        round_, self._round = self._round, _Round(server_round)
        now, aggregate = read(arrays), None
        if round_.aggregate is not None:
            aggregate = now if round_.aggregate is arrays else read(round_.aggregate)
        strategies = [*_chain(self.strategy)][::-1] if server_round else []
        self.tracker.record(
            RoundRecord(
                server_round=server_round,
                arrays=now,
                train=round_.train.metrics,
                evaluate=round_.evaluate.metrics,
                server=_scalars(server or {}),
                train_clients=round_.train.clients,
                evaluate_clients=round_.evaluate.clients,
                train_asked=round_.train.told,
                evaluate_asked=round_.evaluate.told,
                aggregate=aggregate,
                num_clients=max(len(self.partitions or ()), self._numbers.seen),
                rule=self.rule,
                cost=self._cost(round_) if server_round else {},
                extra=self._ask(strategies, "round_metrics", server_round),
                texts=self._ask(strategies, "round_texts", server_round),
                timestamp_ms=time.time_ns() // 1_000_000,
                value_names=self.value_names or {},
                higher_is_better=self.higher_is_better,
            )
        )

    def _cost(self, round_: _Round) -> dict[str, float]:
        counted = round_.train if round_.train.asked else round_.evaluate
        # The next round begins where this one ends: what trackers do with it is in the next.
        began, self._round_began = self._round_began, time.perf_counter()
        return {
            "bytes_up": self._bytes_up,
            "bytes_down": self._bytes_down,
            "seconds": self._round_began - began,
            "clients_asked": counted.asked,
            "clients_replied": counted.replied,
            "clients_failed": counted.asked - counted.replied,
        }

    def _ask(
        self, strategies: Sequence[Strategy], method: str, server_round: int
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for strategy in strategies:
            if callable(own := getattr(strategy, method, None)):
                found |= self._guard(own, server_round) or {}
        return found


def _directions(given: Mapping[str, bool]) -> dict[str, bool]:
    if not isinstance(given, Mapping) or not all(isinstance(v, bool) for v in given.values()):
        raise ConfigError("higher_is_better", given, "a mapping of metrics' names to True or False")
    return {str(name): higher for name, higher in given.items()}


@dataclass
class _Exchange:
    """What is known of one exchange."""

    name: str
    asked: int = 0
    replied: int = 0
    arrived: int = 0
    clients: Sequence[ClientRecord] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    sent: Sequence[Metadata] = ()
    nodes: Mapping[int, int] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    told: Asked = field(default_factory=Asked)


@dataclass
class _Round:
    """What is known of a round that is not over."""

    server_round: int
    train: _Exchange = field(default_factory=lambda: _Exchange("train"))
    evaluate: _Exchange = field(default_factory=lambda: _Exchange("evaluate"))
    aggregate: ArrayRecord | None = None


@dataclass(slots=True)
class _Reply:
    """What is kept of a reply before the strategy gets it."""

    node_id: int
    num_bytes: int
    complete: bool
    num_examples: float
    metrics: Mapping[str, float]
    arrays: Mapping[str, Array] | None

    @classmethod
    def of(
        cls, message: Message, train: bool, is_model: Callable[[str], bool] | None, weight: str
    ) -> _Reply:
        arrays, metrics = [], []
        records = records_of(message)
        for record in records.values():
            if is_kind(record, MetricRecord):
                metrics.append(record)
            elif is_kind(record, ArrayRecord):
                arrays.append(record)
        values = items_of(metrics[0]) if metrics else {}
        num_examples = values.get(weight, math.nan)
        return cls(
            message.metadata.src_node_id,
            _records_bytes(records.values()),
            len(metrics) == 1 and (not train or len(arrays) == 1),
            math.nan if isinstance(num_examples, list) else float(num_examples),
            _scalars(values, weight),
            None if is_model is None or len(arrays) != 1 else _models(arrays[0], is_model),
        )

    def values(self) -> Arrays:
        arrays = self.arrays or {}
        return {name: HeldArray.wrap(array).view() for name, array in arrays.items()}

    def client(self, partition: int) -> ClientRecord:
        if self.arrays is None:
            return ClientRecord(partition, self.num_examples, self.metrics)
        # The same as flat_norm(arrays); whoever checked the reply has the sums already.
        squares, size, arrays = 0.0, 0, {}
        for name, array in self.arrays.items():
            held = HeldArray.wrap(array)
            arrays[name] = values = held.view()
            if values.dtype.kind not in "fiub":
                return ClientRecord(partition, self.num_examples, self.metrics)
            squares += held.sum_of_squares()
            size += values.size
        shown = arrays if size <= MAX_SHOWN_VALUES else None
        return ClientRecord(partition, self.num_examples, self.metrics, shown, math.sqrt(squares))


def _models(arrays: ArrayRecord, is_model: Callable[[str], bool]) -> Mapping[str, Array] | None:
    """Return the arrays that are a model's; None where all are something else."""
    found = {name: array for name, array in items_of(arrays).items() if is_model(name)}
    return found if found or not arrays else None


def _is_any(name: str) -> bool:
    return True


class _Numbers:
    """Partitions of nodes: the given ones, and numbers for the nodes that have none."""

    def __init__(self, given: Mapping[int, int] | None) -> None:
        self._given: Mapping[int, int] = {} if given is None else given
        self._own: dict[int, int] = {}
        self._seen: set[int] = set()

    @property
    def seen(self) -> int:
        """Number of nodes seen so far."""
        return len(self._seen)

    def learn(self, node_ids: Iterable[int]) -> None:
        """Give the nodes that are new their numbers, by sorted node id."""
        new = set(node_ids) - self._seen
        self._seen |= new
        for node_id in sorted(new - self._given.keys()):
            self._own[node_id] = max([*self._given.values(), *self._own.values()], default=-1) + 1

    def of(self, node_id: int) -> int:
        """Return a node's partition."""
        given = self._given.get(node_id)
        return self._own[node_id] if given is None else given


def content_bytes(content: RecordDict) -> int:
    """Count the bytes of what a message says, without encoding it.

    Parameters
    ----------
    content : RecordDict
        Left as it is.

    Returns
    -------
    int
        The values of arrays (``ndarray.nbytes``), 8 a number, 1 a bool, the length of texts (in
        UTF-8) and bytes. How they are wrapped is not counted: names of records and of values, an
        array's header, dtype and shape, a message's metadata.
    """
    return _records_bytes(items_of(content).values())


def _records_bytes(records: Iterable[Any]) -> int:
    total = 0
    for record in records:
        for value in items_of(record).values():
            kind = type(value)
            total += 8 if kind is float else value.nbytes if kind is HeldArray else _size(value)
    return total


def _size(value: Any) -> int:
    kind = type(value)
    if kind is int or kind is float:
        return 8
    if isinstance(value, Array):
        return HeldArray.wrap(value).nbytes
    if kind is list:
        return sum(8 if type(v) is float else _size(v) for v in value)
    return 1 if kind is bool else len(value.encode() if kind is str else value)


def _counted(messages: Sequence[Message]) -> Iterator[int]:
    """Yield the bytes of messages to clients; a content that they share is measured once."""
    contents = [message.content for message in messages if message.has_content()]
    sizes: dict[int, int] = {}
    for content in contents:  # which live as long as their ids are used
        if id(content) not in sizes:
            records = items_of(content).values()
            sizes[id(content)] = _records_bytes(r for r in records if not is_kind(r, ConfigRecord))
        yield sizes[id(content)]


def _scalars(metrics: Mapping[str, Any], leave_out: str | None = None) -> dict[str, float]:
    """Return metrics as floats; a list becomes ``name.0``, ``name.1`` and so on."""
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if name == leave_out:
            continue
        if type(value) is float:
            values[name] = value
        elif not isinstance(value, list):
            values[name] = float(value)
        elif len(value) <= MAX_SHOWN_VALUES:
            values |= {f"{name}.{i}": float(v) for i, v in enumerate(value)}
    return values


def _chain(strategy: object) -> Iterator[Strategy]:
    """Yield a strategy and the strategies inside it, from outside to inside."""
    while isinstance(strategy, Strategy):
        yield strategy
        strategy = getattr(strategy, "strategy", None)


def _found(strategy: Strategy, attribute: str) -> Any:
    """Return the first attribute of this name from outside to inside, None where there is none."""
    found = (getattr(s, attribute, None) for s in _chain(strategy))
    return next((value for value in found if value is not None), None)


def _end_of(error: BaseException) -> RunEnd:
    status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    return RunEnd(status, error=one_line(error))
