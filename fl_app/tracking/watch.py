"""What is known of a run while it goes on: its rounds, from hooks that are called, to a tracker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from types import MethodType
from typing import Any

from flwr.app import ArrayRecord, Message, Metadata, MetricRecord
from flwr.serverapp.strategy import Strategy

from fl_app.errors import one_line, printable
from fl_app.grid.arrays import read
from fl_app.grid.messages import sender
from fl_app.tracking.chain import HOOKS, callers, chain, found, is_private, parameters
from fl_app.tracking.contents import PARTITION, Reply, scalars, sent_bytes, too_long
from fl_app.tracking.metric_names import MAX_SHOWN_VALUES
from fl_app.tracking.numbers import Numbers
from fl_app.tracking.records import (
    Asked,
    ClientRecord,
    RoundRecord,
    RunEnd,
    RunStart,
    Status,
    Tracker,
)
from fl_app.tracking.trackers import Guard

__all__ = ["Watch"]

_LOG = logging.getLogger("fl_app")
_FLOWERS_LOG = logging.getLogger("flwr")
_MAX_REASON = 300
_MAX_NAMED = 100
"""Clients of an exchange up to which each reply is told of by itself."""


class Watch:
    """Puts together what the hooks of a strategy get and return, and gives a tracker whole rounds.

    A round is over when the next one begins, when ``evaluate_fn`` was called after its evaluation,
    or with the run. A hook that is called without a ``start()`` around it begins a run, too.

    The parameters are those of :class:`~fl_app.tracking.TrackedStrategy`.
    """

    def __init__(
        self,
        strategy: Strategy,
        tracker: Tracker,
        partitions: Mapping[int, int] | None,
        value_names: Mapping[str, Sequence[str]] | None,
        private: bool,
        rule: str,
        higher_is_better: Mapping[str, bool],
    ) -> None:
        self.strategy, self.tracker, self.rule = strategy, tracker, rule
        self._higher_is_better = higher_is_better
        self._partitions, self._value_names = partitions, value_names
        self._private = private or any(map(is_private, chain(strategy)))
        self._guard = Guard("tracking")
        self._said: set[str] = set()
        self._inside = self._in_start = self._in_block = self._owner = False
        self._begun = False
        self._reset()

    def _reset(self) -> None:
        """Forget the run before."""
        self._bytes_up = self._bytes_down = 0
        self._numbers = Numbers(self._partitions)
        self._round: _Round | None = None
        self._exchange: _Exchange | None = None
        self._last, self._offset, self._closed = -1, 0, -1
        self._initial: ArrayRecord | None = None
        self._arrays: ArrayRecord | None = None
        self._wrapped = False
        self._error = ""
        self._round_began = time.perf_counter()

    # ------------------------------------------------------------ the run

    @contextmanager
    def start(self, given: Mapping[str, Any]) -> Iterator[None]:
        """Watch one ``start()`` of the strategy, called with the arguments `given`."""
        self._guard(self._begin, given)
        self._in_start, before = True, self._last
        try:
            yield
        except BaseException as error:
            self._round = None
            if not self._in_block:
                self._finish(_end_of(error))
            raise
        finally:
            self._in_start = False
        self._guard(self._close, None)
        end = RunEnd("FINISHED")
        if self._last <= max(before, 0) and given.get("num_rounds", 1):
            whose = type(self.strategy).__name__
            what = f"{whose}.start() called neither a hook nor evaluate_fn: no round is recorded"
            _LOG.warning("tracking: %s", what)
            end = RunEnd("FAILED", error=f"{what}, though its training ended well")
        if not self._in_block:
            self._finish(end)

    def enter(self) -> None:
        """Make everything until :meth:`leave` one run."""
        self._in_block = True

    def leave(self, error: BaseException | None = None) -> None:
        """Close the round that is whole, and end a run that was begun here."""
        self._in_block = False
        round_, self._exchange = self._round, None
        if round_ is not None and not round_.is_whole:
            self._round, self._error = None, self._error or "the last round was not finished"
        self._guard(self._close, None)
        if error is not None:
            self._finish(_end_of(error))
        else:
            self._finish(RunEnd("FAILED" if self._error else "FINISHED", error=self._error))

    def _begin(self, given: Mapping[str, Any]) -> None:
        """Start the tracker, or go on with the run before where that is what happens."""
        self._initial = arrays = given.get("initial_arrays")
        goes_on = self._begun and (self._in_block or _same(arrays, self._arrays))
        if not goes_on:
            self._reset()
        self._closed, self._offset = -1, max(self._last, 0)
        self._numbers.ask(given.get("grid"))
        if not getattr(self.tracker, "started", False):
            self._owner = True
            self._guard(self.tracker.start, self._run_start(given, goes_on))
        self._begun, self._round_began = True, time.perf_counter()

    def _begin_alone(self) -> None:
        """Begin a run with a hook that a loop of somebody else's calls."""
        known = [*chain(self.strategy)]
        outside = [s for s in callers() if s not in known and vars(s).get("_watch") is not self]
        self._private = self._private or any(map(is_private, outside))
        self._wrapped = bool(outside)
        if self._begun and (self._owner or getattr(self.tracker, "started", False)):
            return
        self._begin({})
        if not self._in_block:
            self._say(
                "the rounds are those of %s: what the server evaluates is recorded only where "
                "evaluated() is told of it, and the run ends when nobody uses the tracked strategy "
                "any more, or with its `with` block",
                f"the start() of {type(outside[-1]).__name__}" if outside else "your own loop",
            )

    def _run_start(self, given: Mapping[str, Any], goes_on: bool) -> RunStart:
        num_rounds = given.get("num_rounds")
        params = {"strategy": self.rule, **parameters(self.strategy)}
        if num_rounds is not None:
            params["num_server_rounds"] = str(num_rounds)
        for config in ("train_config", "evaluate_config"):
            params |= {f"{config}.{k}": str(v) for k, v in (given.get(config) or {}).items()}
        tags = {"strategy": self.rule}
        return RunStart(
            self.rule, params, tags, num_server_rounds=num_rounds or 0, continues=goes_on
        )

    def _finish(self, end: RunEnd) -> None:
        if not self._owner:
            return
        self._owner = False
        self._guard(self.tracker.finish, end)
        for tracker in getattr(self.tracker, "trackers", (self.tracker,)):
            if where := getattr(tracker, "url", None):
                _FLOWERS_LOG.info("The record of this run: %s", where)
                if command := getattr(tracker, "ui_command", ""):
                    _FLOWERS_LOG.info("for which this must run: %s", command)

    def _say(self, text: str, *values: object) -> None:
        """Say something once."""
        if text % values not in self._said:
            self._said.add(text % values)
            _LOG.warning(f"tracking: {text}", *values)

    # ------------------------------------------------------------ what is called

    def hook(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook that does what `call` does, seen."""
        what = name.rpartition("_")[2]
        seen = self._configure if name.startswith("configure") else self._aggregate

        def observed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # of a strategy inside the one that is seen
                return call(*args, **kwargs)
            given = dict(zip(HOOKS[name], args, strict=False)) | kwargs
            self._inside = True
            try:
                return seen(what, given, call, args, kwargs)
            except Exception as error:
                self._error = one_line(error)
                raise
            finally:
                self._inside = False

        return observed

    def _configure(
        self, what: str, given: Mapping[str, Any], call: Callable[..., Any], args: Any, kwargs: Any
    ) -> list[Message]:
        exchange = self._guard(self._enter, what, given)
        messages = list(call(*args, **kwargs) or ())
        if exchange is not None:
            self._guard(self._note_messages, messages, exchange)
        return messages

    def _aggregate(
        self, what: str, given: Mapping[str, Any], call: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        replies = list(given.get("replies") or ())
        if "replies" in kwargs:
            kwargs = {**kwargs, "replies": replies}
        elif len(args) > 1:
            args = (args[0], replies, *args[2:])
        exchange = self._guard(self._enter, what, given) or _Exchange(what)
        # Read first: a strategy may empty the replies that it aggregates (FedMedian does).
        seen = self._guard(self._read_replies, replies, exchange)
        try:
            result = call(*args, **kwargs)
        except Exception:  # too few replies, perhaps: who failed is why
            self._guard(self._note_replies, seen, exchange, None)
            raise
        arrays, metrics = result if what == "train" else (None, result)
        self._guard(self._note_replies, seen, exchange, metrics)
        exchange.is_done = True
        if self._round is not None and arrays is not None:
            self._round.aggregate = arrays
            self._round.now = self._round.now if self._wrapped else arrays
        return result

    def evaluated(self, server_round: Any, arrays: Any, metrics: Any) -> None:
        """Note what the server's own evaluation of a round gave."""
        self._guard(self._note_evaluation, server_round, arrays, metrics)

    def evaluation(self, evaluate_fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does what `evaluate_fn` does, seen."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            metrics = evaluate_fn(*args, **kwargs)
            given = dict(zip(("server_round", "arrays"), args, strict=False)) | kwargs
            self._guard(
                lambda: self._note_evaluation(given["server_round"], given["arrays"], metrics)
            )
            return metrics

        return watched

    def saw(self, replies: Sequence[Message]) -> None:
        """Tell the tracker of replies to an exchange that is not over."""
        self._guard(self._note_arrivals, replies)

    # ------------------------------------------------------------ rounds

    def _enter(self, what: str, given: Mapping[str, Any]) -> _Exchange:
        """Return the exchange that a hook belongs to, after closing the round before."""
        if not self._in_start:
            self._begin_alone()
        self._error = ""
        self._numbers.ask(given.get("grid"))
        configures, arrays = "grid" in given or "config" in given, given.get("arrays")
        own = int(given["server_round"])
        again = False
        if configures and self._round is not None and self._round.own == own:
            again = what == "train" and self._round.train.is_done
            if again:
                self._say("round %d trains once more, which is recorded as a round", own)
            elif getattr(self._round, what).is_done:
                self._say("round %d evaluates once more: its last evaluation is recorded", own)
                self._round.evaluate = _Exchange("evaluate")
        round_ = self._at(own, arrays, again)
        exchange: _Exchange = getattr(round_, what)
        if configures:
            exchange.is_begun = True
            if what == "evaluate" or round_.now is None:
                round_.now = arrays
        return exchange

    def _at(self, own: int, arrays: ArrayRecord | None, again: bool = False) -> _Round:
        """Return the round of a number of the strategy's own; `arrays` are the global ones now."""
        if self._round is not None and self._round.own == own and not again:
            return self._round
        self._close(arrays)
        if self._last < 0:
            start = self._initial if arrays is None else arrays
            if start is not None:
                self._record(_Round(0, 0), start)
            self._last = 0
        if self._offset + own <= self._last:  # it counts from 0, or from 1 once more
            self._offset = self._last + 1 - own
        self._round = _Round(own, self._offset + own)
        return self._round

    def _note_evaluation(
        self, own: int, arrays: ArrayRecord, metrics: Mapping[str, Any] | None
    ) -> None:
        if not self._in_start:
            self._begin_alone()
        if own == self._closed:
            return
        if own == 0 and self._round is None:
            if self._last < 0:
                self._record(_Round(0, 0, server=self._scalars("server", metrics)), arrays)
            return
        round_ = self._at(own, None)
        round_.now, round_.server = arrays, self._scalars("server", metrics)
        round_.is_measured = True
        if round_.evaluate.is_begun:
            self._close(None)
            self._closed = own

    def _close(self, arrays: ArrayRecord | None) -> None:
        """Record the round that goes on; `arrays` are the global ones now, where that is known."""
        round_, self._round = self._round, None
        if round_ is not None:
            known = round_.now if round_.is_measured or arrays is None else arrays
            self._record(round_, known if known is not None else self._arrays or ArrayRecord())

    def _record(self, round_: _Round, arrays: ArrayRecord) -> None:
        now = read(arrays)
        aggregate = None
        if round_.aggregate is not None and not (self._private and self._wrapped):
            aggregate = now if round_.aggregate is arrays else read(round_.aggregate)
        elif round_.aggregate is not None and arrays is not self._arrays:
            aggregate = now  # what the wrapper that adds noise made of it
        self._last, self._arrays = round_.number, arrays
        strategies = [*chain(self.strategy)][::-1] if round_.number else []
        self._guard(
            self.tracker.record,
            RoundRecord(
                server_round=round_.number,
                arrays=now,
                train=round_.train.metrics,
                evaluate=round_.evaluate.metrics,
                server=round_.server,
                train_clients=round_.train.clients,
                evaluate_clients=round_.evaluate.clients,
                train_asked=round_.train.told,
                evaluate_asked=round_.evaluate.told,
                aggregate=aggregate,
                num_clients=max(len(self._partitions or ()), self._numbers.seen),
                rule=self.rule,
                cost=self._cost(round_) if round_.number else {},
                extra=self._ask(strategies, "round_metrics", round_.own),
                texts=self._ask(strategies, "round_texts", round_.own),
                timestamp_ms=time.time_ns() // 1_000_000,
                value_names=self._value_names or {},
                higher_is_better=self._higher_is_better,
                client_key="client" if self._numbers.arbitrary else "partition",
            ),
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

    # ------------------------------------------------------------ exchanges

    def _note_messages(self, messages: Sequence[Message], exchange: _Exchange) -> None:
        self._exchange = exchange
        exchange.sent = [message.metadata for message in messages]
        exchange.asked = len(messages)
        exchange.nodes = frozenset(m.dst_node_id for m in exchange.sent)
        self._numbers.learn(exchange.nodes)
        self._bytes_down += sum(sent_bytes(messages))
        if messages:
            self._tell("asked", exchange, self._who(exchange.nodes))

    def _who(self, nodes: Collection[int]) -> dict[str, Any]:
        if self._private or not all(map(self._numbers.known, nodes)):
            return {"count": len(nodes)}
        return {"clients": sorted(map(self._numbers.of, nodes))}

    def _note_arrivals(self, replies: Sequence[Message]) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        nodes = [sender(reply, exchange.sent) for reply in replies]
        nodes = [node for node in nodes if node in exchange.nodes]
        exchange.arrived += len(nodes)
        many = exchange.asked > _MAX_NAMED
        if self._private or many or not all(map(self._numbers.known, nodes)):
            self._tell("reply", exchange, {"count": exchange.arrived})
            return
        for node in nodes:
            self._tell("reply", exchange, {"client": self._numbers.of(node)})

    def _read_replies(self, replies: Sequence[Message], exchange: _Exchange) -> list[Reply]:
        is_model: Callable[[str], bool] | None = None
        if exchange.name == "train" and not self._private:
            is_model = found(self.strategy, "is_model", MethodType) or _is_any
        keep = bool(getattr(self.tracker, "keeps_models", False))
        seen = [Reply.of(m, is_model, self._weight, keep) for m in replies if m.has_content()]
        self._bytes_up += sum(reply.num_bytes for reply in seen)
        self._numbers.learn(reply.node_id for reply in seen)
        for reply in seen:
            told = reply.partition
            if told is not None and not self._numbers.tell(reply.node_id, told):
                self._say("partition %d is told by several nodes, or not always", told)
            for name in () if self._private else reply.long:
                self._left_out(f"{exchange.name} metric {name} of clients")
        for message in replies:
            if message.has_error():
                reason = message.error.reason or "no reason given"
                exchange.errors[sender(message, exchange.sent)] = f"the client failed: {reason}"
        return seen

    @property
    def _weight(self) -> str:
        return found(self.strategy, "weighted_by_key", str) or "num-examples"

    def _scalars(self, where: str, metrics: Mapping[str, Any] | None) -> dict[str, float]:
        # A mean of weights, or of partitions, is nobody's.
        leave_out = () if where == "server" else (self._weight, PARTITION)
        own = {name: value for name, value in (metrics or {}).items() if name not in leave_out}
        for name in too_long(own):
            self._left_out(f"{where} metric {name}")
        return scalars(own)

    def _left_out(self, what: str) -> None:
        self._say("%s has more than %d values and is left out", what, MAX_SHOWN_VALUES)

    def _note_replies(
        self, seen: Sequence[Reply] | None, exchange: _Exchange, metrics: MetricRecord | None
    ) -> None:
        self._exchange = None
        if self._numbers.settle() and not self._private:
            self._tell_arbitrary()
        accepted: frozenset[int] | None = found(self.strategy, "accepted", frozenset)
        if accepted is not None and not accepted <= exchange.nodes:
            accepted = None  # something of the strategy's own
        used = [r for r in seen or () if accepted is None or r.node_id in accepted]
        exchange.replied = len(used)
        if not self._private:
            clients = [r.client(self._numbers.of(r.node_id)) for r in used]
            exchange.clients = sorted(clients, key=attrgetter("partition"))
        exchange.metrics = self._scalars(exchange.name, metrics)
        self._note_failures(exchange, {r.node_id for r in used}, {r.node_id for r in seen or ()})
        if exchange.name == "train" and getattr(self.tracker, "keeps_models", False):
            self._show_models(used)

    def _tell_arbitrary(self) -> None:
        said = "in the order of their node ids, which is arbitrary"
        self._say(
            "clients are numbered %s: nobody told their partitions (a reply may, as the metric "
            "partition-id, or TrackedStrategy(..., partitions=...))",
            said,
        )
        self._guard(self.tracker.annotate, {"clients.numbered": said}, {})

    def _note_failures(self, exchange: _Exchange, used: set[int], came: set[int]) -> None:
        """Keep who was asked and who failed, and tell of it; under privacy only how many."""
        lost = {n: self._numbers.of(n) for n in exchange.nodes if n not in used}
        facts: dict[str, Any] = {"count": exchange.replied, "failed_count": len(lost)}
        if not self._private:
            told: Mapping[int, str] = found(self.strategy, "dropped", Mapping) or {}
            failed = {}
            for node_id, number in sorted(lost.items(), key=lambda pair: pair[1]):
                silent = "the reply was not used" if node_id in came else "no reply in time"
                reason = told.get(number) or exchange.errors.get(node_id) or silent
                failed[number] = printable(" ".join(str(reason).split()), _MAX_REASON)
            asked = sorted(map(self._numbers.of, exchange.nodes))
            exchange.told = Asked(asked, failed)
            replied = [k for k in asked if k not in failed]
            facts = {"clients": replied, "failed": {str(k): why for k, why in failed.items()}}
        if exchange.nodes:
            self._tell("replied", exchange, facts)

    def _show_models(self, replies: Sequence[Reply]) -> None:
        if not self._private and self._round is not None:
            models = {self._numbers.of(r.node_id): r.arrays or {} for r in replies}
            self.tracker.see_models(self._round.number, models)  # type: ignore[attr-defined]

    def _tell(self, kind: str, exchange: _Exchange, facts: Mapping[str, Any]) -> None:
        if self._round is not None and callable(see := getattr(self.tracker, "event", None)):
            see(kind, {"round": self._round.number, "exchange": exchange.name, **facts})


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
    nodes: frozenset[int] = frozenset()
    errors: dict[int, str] = field(default_factory=dict)
    told: Asked = field(default_factory=Asked)
    is_begun: bool = False
    is_done: bool = False


@dataclass
class _Round:
    """What is known of a round that is not over."""

    own: int
    number: int
    server: Mapping[str, float] = field(default_factory=dict)
    train: _Exchange = field(default_factory=lambda: _Exchange("train"))
    evaluate: _Exchange = field(default_factory=lambda: _Exchange("evaluate"))
    aggregate: ArrayRecord | None = None
    now: ArrayRecord | None = None
    is_measured: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether no exchange of it is open."""
        return all(e.is_done or not e.is_begun for e in (self.train, self.evaluate))


def _is_any(name: str) -> bool:
    return True


def _same(one: ArrayRecord | None, other: ArrayRecord | None) -> bool:
    """Return whether arrays are equal bit for bit, as they are where a start() goes on."""
    if one is None or other is None or list(one) != list(other):
        return False
    left, right = read(one).values(), read(other).values()
    return one is other or all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in zip(left, right, strict=True)
    )


def _end_of(error: BaseException) -> RunEnd:
    status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
    return RunEnd(status, error=one_line(error))
