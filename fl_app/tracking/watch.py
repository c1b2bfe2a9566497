"""What is known of a run while it goes on: its rounds, from hooks that are called, to a tracker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import Strategy

from fl_app.errors import DiskError, one_line
from fl_app.grid.arrays import read
from fl_app.tracking.chain import HOOKS, callers, chain, is_private, parameters
from fl_app.tracking.exchanges import Exchange, Exchanges
from fl_app.tracking.records import RoundRecord, RunEnd, RunFacts, RunStart, Status, Tracker
from fl_app.tracking.trackers import Guard

__all__ = ["Watch"]

_LOG = logging.getLogger("fl_app")
_FLOWERS_LOG = logging.getLogger("flwr")


class Watch:
    """Puts together what the hooks of a strategy get and return, and gives a tracker whole rounds.

    A round is over when the next one begins, when ``evaluate_fn`` was called after its evaluation,
    or with the run. A hook that is called without a ``start()`` around it begins a run, too.

    The parameters are those of :class:`~fl_app.tracking.TrackedStrategy`, three of them as `facts`.
    """

    def __init__(
        self,
        strategy: Strategy,
        tracker: Tracker,
        partitions: Mapping[int, int] | None,
        private: bool,
        facts: RunFacts,
    ) -> None:
        self.strategy, self.tracker, self.facts = strategy, tracker, facts
        self._guard = Guard("tracking")
        private = private or any(map(is_private, chain(strategy)))
        self._exchanges = Exchanges(strategy, tracker, partitions, private, self._guard)
        self._inside = self._in_start = self._in_block = self._owner = False
        self._begun = False
        self._reset()

    def _reset(self) -> None:
        """Forget the run before."""
        self._exchanges.reset()
        self._round: _Round | None = None
        self._last, self._offset, self._closed, self._after = -1, 0, -1, 0
        self._initial: ArrayRecord | None = None
        self._arrays: ArrayRecord | None = None
        self._wrapped = False
        self._error = ""
        self._round_began = time.perf_counter()

    # ------------------------------------------------------------ the run

    def go_on(self, after: int, arrays: ArrayRecord, bytes_up: int, bytes_down: int) -> None:
        """Take over a run after a round: ``start()`` counts from there."""
        self._begun, self._last, self._after, self._arrays = True, after, after, arrays
        self._exchanges.bytes_up, self._exchanges.bytes_down = bytes_up, bytes_down

    @contextmanager
    def start(self, given: Mapping[str, Any]) -> Iterator[None]:
        """Watch one ``start()`` of the strategy, called with the arguments `given`."""
        self._guard(self._begin, given)
        self._in_start, before = True, self._last
        try:
            yield
            self._guard(self._close, None)
        except BaseException as error:
            self._round = None
            self._exchanges.leave()
            if not self._in_block:
                self._finish(_end_of(error))
            raise
        finally:
            self._in_start = False
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
        self._exchanges.leave()
        round_ = self._round
        if round_ is not None and not round_.is_whole:
            self._round, self._error = None, self._error or "the last round was not finished"
        full: DiskError | None = None
        try:
            self._guard(self._close, None)
        except DiskError as caught:
            error = full = caught
        if error is not None:
            self._finish(_end_of(error))
        else:
            self._finish(RunEnd("FAILED" if self._error else "FINISHED", error=self._error))
        if full is not None:
            raise full

    def _begin(self, given: Mapping[str, Any]) -> None:
        """Start the tracker, or go on with the run before where that is what happens."""
        self._initial = arrays = given.get("initial_arrays")
        goes_on = self._begun and (self._in_block or _same(arrays, self._arrays))
        if not goes_on:
            self._reset()
        self._closed, self._offset = -1, max(self._last, 0) - self._after
        self._exchanges.numbers.ask(given.get("grid"))
        if not getattr(self.tracker, "started", False):
            self._owner = True
            self._guard(self.tracker.start, self._run_start(given, goes_on))
        self._begun, self._round_began = True, time.perf_counter()

    def _begin_alone(self) -> None:
        """Begin a run with a hook that a loop of somebody else's calls."""
        known = [*chain(self.strategy)]
        outside = [s for s in callers() if s not in known and vars(s).get("_watch") is not self]
        self._exchanges.private |= any(map(is_private, outside))
        self._wrapped = bool(outside)
        if self._begun and (self._owner or getattr(self.tracker, "started", False)):
            return
        self._begin({})
        if not self._in_block:
            self._guard.warn(
                "the rounds are those of %s: what the server evaluates is recorded only where "
                "evaluated() is told of it, and the run ends when nobody uses the tracked strategy "
                "any more, or with its `with` block",
                f"the start() of {type(outside[-1]).__name__}" if outside else "your own loop",
            )

    def _run_start(self, given: Mapping[str, Any], goes_on: bool) -> RunStart:
        num_rounds = given.get("num_rounds")
        rule = self.facts.rule
        params = {"strategy": rule, **parameters(self.strategy)}
        if num_rounds is not None:
            params["num_server_rounds"] = str(num_rounds)
        for config in ("train_config", "evaluate_config"):
            params |= {f"{config}.{k}": str(v) for k, v in (given.get(config) or {}).items()}
        tags = {"strategy": rule}
        return RunStart(rule, params, tags, num_server_rounds=num_rounds or 0, continues=goes_on)

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

    # ------------------------------------------------------------ what is called

    def hook(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook that does what `call` does, seen."""
        what = name.rpartition("_")[2]
        seen = self._configure if name.startswith("configure") else self._aggregate

        def observed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # of a strategy inside the one that is seen
                return call(*args, **kwargs)
            args, kwargs = self._counted_on(args, kwargs)
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

    def _counted_on(self, args: Any, kwargs: Any) -> Any:
        """Return arguments whose round is counted from the beginning of the run."""
        if "server_round" in kwargs:
            return args, {**kwargs, "server_round": kwargs["server_round"] + self._after}
        return (args[0] + self._after, *args[1:]), kwargs

    def _configure(
        self, what: str, given: Mapping[str, Any], call: Callable[..., Any], args: Any, kwargs: Any
    ) -> list[Message]:
        exchange = self._guard(self._enter, what, given)
        messages = list(call(*args, **kwargs) or ())
        if exchange is not None:
            self._guard(self._exchanges.note_messages, messages, exchange)
        return messages

    def _aggregate(
        self, what: str, given: Mapping[str, Any], call: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        replies = list(given.get("replies") or ())
        if "replies" in kwargs:
            kwargs = {**kwargs, "replies": replies}
        elif len(args) > 1:
            args = (args[0], replies, *args[2:])
        exchange = self._guard(self._enter, what, given) or Exchange(what)
        # Read first: a strategy may empty the replies that it aggregates (FedMedian does).
        seen = self._guard(self._exchanges.read_replies, replies, exchange)
        try:
            result = call(*args, **kwargs)
        except Exception:  # too few replies, perhaps: who failed is why
            self._guard(self._exchanges.note_replies, seen, exchange, None)
            raise
        arrays, metrics = result if what == "train" else (None, result)
        self._guard(self._exchanges.note_replies, seen, exchange, metrics)
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
            if self._after and 0 in (*args[:1], kwargs.get("server_round")):
                return None  # of arrays that were evaluated when they were made
            args, kwargs = self._counted_on(args, kwargs)
            metrics = evaluate_fn(*args, **kwargs)
            given = dict(zip(("server_round", "arrays"), args, strict=False)) | kwargs
            self._guard(
                lambda: self._note_evaluation(given["server_round"], given["arrays"], metrics)
            )
            return metrics

        return watched

    def saw(self, replies: Sequence[Message]) -> None:
        """Tell the tracker of replies to an exchange that is not over."""
        self._guard(self._exchanges.note_arrivals, replies)

    # ------------------------------------------------------------ rounds

    def _enter(self, what: str, given: Mapping[str, Any]) -> Exchange:
        """Return the exchange that a hook belongs to, after closing the round before."""
        if not self._in_start:
            self._begin_alone()
        self._error = ""
        self._exchanges.numbers.ask(given.get("grid"))
        configures, arrays = "grid" in given or "config" in given, given.get("arrays")
        server_round = int(given["server_round"])
        again = False
        if configures and self._round is not None and self._round.server_round == server_round:
            again = what == "train" and self._round.train.is_done
            if again:
                text = "round %d trains once more, which is recorded as a round"
                self._guard.warn(text, server_round)
            elif getattr(self._round, what).is_done:
                text = "round %d evaluates once more: its last evaluation is recorded"
                self._guard.warn(text, server_round)
                self._round.evaluate = Exchange("evaluate", self._round.number)
        round_ = self._at(server_round, arrays, again)
        exchange: Exchange = getattr(round_, what)
        if configures:
            exchange.is_begun = True
            if what == "evaluate" or round_.now is None:
                round_.now = arrays
        return exchange

    def _at(self, server_round: int, arrays: ArrayRecord | None, again: bool = False) -> _Round:
        """Return the round that the strategy calls so; `arrays` are the global ones now."""
        if self._round is not None and self._round.server_round == server_round and not again:
            return self._round
        self._close(arrays)
        if self._last < 0:
            start = self._initial if arrays is None else arrays
            if start is not None:
                self._record(_Round(0, 0), start)
            self._last = 0
        if self._offset + server_round <= self._last:  # it counts from 0, or from 1 once more
            self._offset = self._last + 1 - server_round
        self._round = _Round(server_round, self._offset + server_round)
        return self._round

    def _note_evaluation(
        self, server_round: int, arrays: ArrayRecord, metrics: Mapping[str, Any] | None
    ) -> None:
        if not self._in_start:
            self._begin_alone()
        if server_round == self._closed:
            return
        if server_round == 0 and self._round is None:
            if self._last < 0:
                self._record(
                    _Round(0, 0, server=self._exchanges.scalars("server", metrics)), arrays
                )
            return
        round_ = self._at(server_round, None)
        round_.now, round_.server = arrays, self._exchanges.scalars("server", metrics)
        round_.is_measured = True
        if round_.evaluate.is_begun:
            self._close(None)
            self._closed = server_round

    def _close(self, arrays: ArrayRecord | None) -> None:
        """Record the round that goes on; `arrays` are the global ones now, where that is known."""
        round_, self._round = self._round, None
        if round_ is not None:
            known = round_.now if round_.is_measured or arrays is None else arrays
            self._record(round_, known if known is not None else self._arrays or ArrayRecord())

    def _record(self, round_: _Round, arrays: ArrayRecord) -> None:
        now = read(arrays)
        aggregate = None
        if round_.aggregate is not None and not (self._exchanges.private and self._wrapped):
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
                train_asked=round_.train.participants,
                evaluate_asked=round_.evaluate.participants,
                aggregate=aggregate,
                num_clients=self._exchanges.numbers.count,
                cost=self._cost(round_) if round_.number else {},
                extra=self._ask(strategies, "round_metrics", round_.server_round),
                texts=self._ask(strategies, "round_texts", round_.server_round),
                timestamp_ms=time.time_ns() // 1_000_000,
                client_key="client" if self._exchanges.numbers.arbitrary else "partition",
                run=self.facts,
            ),
        )

    def _cost(self, round_: _Round) -> dict[str, float]:
        counted = round_.train if round_.train.asked else round_.evaluate
        # The next round begins where this one ends: what trackers do with it is in the next.
        began, self._round_began = self._round_began, time.perf_counter()
        return {
            "bytes_up": self._exchanges.bytes_up,
            "bytes_down": self._exchanges.bytes_down,
            "seconds": self._round_began - began,
            "clients_asked": counted.asked,
            "clients_replied": counted.replied,
            "clients_failed": counted.asked - counted.replied,
        }

    def _ask(
        self, strategies: Sequence[Strategy], method: str, server_round: int
    ) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for strategy in strategies:
            if callable(ask := getattr(strategy, method, None)):
                answers |= self._guard(ask, server_round) or {}
        return answers


@dataclass
class _Round:
    """What is known of a round that is not over.

    The strategy calls it `server_round`; `number` counts the rounds of the run.
    """

    server_round: int
    number: int
    server: Mapping[str, float] = field(default_factory=dict)
    aggregate: ArrayRecord | None = None
    now: ArrayRecord | None = None
    is_measured: bool = False

    def __post_init__(self) -> None:
        self.train = Exchange("train", self.number)
        self.evaluate = Exchange("evaluate", self.number)

    @property
    def is_whole(self) -> bool:
        """Whether no exchange of it is open."""
        return all(e.is_done or not e.is_begun for e in (self.train, self.evaluate))


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
