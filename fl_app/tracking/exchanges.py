"""The exchanges of a run: who was asked, who replied with what, who failed, and how many bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import MethodType
from typing import Any

from flwr.app import Message, Metadata, MetricRecord
from flwr.serverapp.strategy import Strategy

from fl_app.errors import printable
from fl_app.grid.messages import sender
from fl_app.tracking.chain import found
from fl_app.tracking.contents import PARTITION, Reply, scalars, sent_bytes, too_long
from fl_app.tracking.metric_names import MAX_SHOWN_VALUES
from fl_app.tracking.numbers import Numbers
from fl_app.tracking.records import Asked, ClientRecord, Tracker
from fl_app.tracking.trackers import Guard

__all__ = ["Exchange", "Exchanges"]

_MAX_REASON = 300
_MAX_NAMED = 100
"""Clients of an exchange up to which each reply is told of by itself."""


@dataclass
class Exchange:
    """What is known of one exchange: ``train`` or ``evaluate`` of a round of the run."""

    name: str
    number: int | None = None
    asked: int = 0
    replied: int = 0
    arrived: int = 0
    clients: Sequence[ClientRecord] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    sent: Sequence[Metadata] = ()
    nodes: frozenset[int] = frozenset()
    errors: dict[int, str] = field(default_factory=dict)
    participants: Asked = field(default_factory=Asked)
    is_begun: bool = False
    is_done: bool = False


class Exchanges:
    """Reads what goes between a strategy and its clients, and tells a tracker of it at once.

    Parameters
    ----------
    strategy, tracker, partitions, private
        As in :class:`~fl_app.tracking.TrackedStrategy`.
    guard : Guard
        Warns, and calls the tracker where its failure would end more than its own call.

    Attributes
    ----------
    numbers : Numbers
        The clients' numbers.
    bytes_up, bytes_down : int
        All that clients have sent, and were sent, in this run.
    """

    def __init__(
        self,
        strategy: Strategy,
        tracker: Tracker,
        partitions: Mapping[int, int] | None,
        private: bool,
        guard: Guard,
    ) -> None:
        self.private = private
        self._strategy, self._tracker, self._partitions = strategy, tracker, partitions
        self._guard = guard
        self.reset()

    def reset(self) -> None:
        """Forget the run before."""
        self.bytes_up = self.bytes_down = 0
        self.numbers = Numbers(self._partitions)
        self._open: Exchange | None = None

    def leave(self) -> None:
        """Expect no more replies to the exchange that goes on."""
        self._open = None

    def note_messages(self, messages: Sequence[Message], exchange: Exchange) -> None:
        """See what is sent, and who is asked."""
        self._open = exchange
        exchange.sent = [message.metadata for message in messages]
        exchange.asked = len(messages)
        exchange.nodes = frozenset(m.dst_node_id for m in exchange.sent)
        self.numbers.learn(exchange.nodes)
        self.bytes_down += sum(sent_bytes(messages))
        if messages:
            self._tell("asked", exchange, self._who(exchange.nodes))

    def _who(self, nodes: Collection[int]) -> dict[str, Any]:
        if self.private or not all(map(self.numbers.known, nodes)):
            return {"count": len(nodes)}
        return {"clients": sorted(map(self.numbers.of, nodes))}

    def note_arrivals(self, replies: Sequence[Message]) -> None:
        """See replies to the exchange that goes on."""
        exchange = self._open
        if exchange is None:
            return
        nodes = [sender(reply, exchange.sent) for reply in replies]
        nodes = [node for node in nodes if node in exchange.nodes]
        exchange.arrived += len(nodes)
        many = exchange.asked > _MAX_NAMED
        if self.private or many or not all(map(self.numbers.known, nodes)):
            self._tell("reply", exchange, {"count": exchange.arrived})
            return
        for node in nodes:
            self._tell("reply", exchange, {"client": self.numbers.of(node)})

    def read_replies(self, replies: Sequence[Message], exchange: Exchange) -> list[Reply]:
        """Keep of all replies what is recorded: the strategy may empty what it gets."""
        is_model: Callable[[str], bool] | None = None
        if exchange.name == "train" and not self.private:
            is_model = found(self._strategy, "is_model", MethodType) or _is_any
        keep = bool(getattr(self._tracker, "keeps_models", False))
        seen = [Reply.of(m, is_model, self._weight, keep) for m in replies if m.has_content()]
        self.bytes_up += sum(reply.num_bytes for reply in seen)
        self.numbers.learn(reply.node_id for reply in seen)
        for reply in seen:
            partition = reply.partition
            if partition is not None and not self.numbers.tell(reply.node_id, partition):
                self._guard.warn("partition %d is told by several nodes, or not always", partition)
            for name in () if self.private else reply.long:
                self._left_out(f"{exchange.name} metric {name} of clients")
        for message in replies:
            if message.has_error():
                reason = message.error.reason or "no reason given"
                exchange.errors[sender(message, exchange.sent)] = f"the client failed: {reason}"
        return seen

    @property
    def _weight(self) -> str:
        return found(self._strategy, "weighted_by_key", str) or "num-examples"

    def scalars(self, where: str, metrics: Mapping[str, Any] | None) -> dict[str, float]:
        """Return the metrics of an exchange, or of the ``server``, that can be recorded."""
        # A mean of weights, or of partitions, is nobody's.
        leave_out = () if where == "server" else (self._weight, PARTITION)
        kept = {name: value for name, value in (metrics or {}).items() if name not in leave_out}
        for name in too_long(kept):
            self._left_out(f"{where} metric {name}")
        return scalars(kept)

    def _left_out(self, what: str) -> None:
        self._guard.warn("%s has more than %d values and is left out", what, MAX_SHOWN_VALUES)

    def note_replies(
        self, seen: Sequence[Reply] | None, exchange: Exchange, metrics: MetricRecord | None
    ) -> None:
        """See which replies the strategy used, and what it made of their metrics."""
        self._open = None
        if self.numbers.settle() and not self.private:
            self._tell_arbitrary()
        accepted: frozenset[int] | None = found(self._strategy, "accepted", frozenset)
        if accepted is not None and not accepted <= exchange.nodes:
            accepted = None  # something of the strategy's own
        used = [r for r in seen or () if accepted is None or r.node_id in accepted]
        exchange.replied = len(used)
        if not self.private:
            clients = [r.client(self.numbers.of(r.node_id)) for r in used]
            exchange.clients = sorted(clients, key=attrgetter("partition"))
        exchange.metrics = self.scalars(exchange.name, metrics)
        self._note_failures(exchange, {r.node_id for r in used}, {r.node_id for r in seen or ()})
        if exchange.name == "train" and getattr(self._tracker, "keeps_models", False):
            self._show_models(used, exchange)

    def _tell_arbitrary(self) -> None:
        said = "in the order of their node ids, which is arbitrary"
        self._guard.warn(
            "clients are numbered %s: nobody told their partitions (a reply may, as the metric "
            "partition-id, or TrackedStrategy(..., partitions=...))",
            said,
        )
        self._guard(self._tracker.annotate, {"clients.numbered": said}, {})

    def _note_failures(self, exchange: Exchange, used: set[int], came: set[int]) -> None:
        """Keep who was asked and who failed, and tell of it; under privacy only how many."""
        lost = {n: self.numbers.of(n) for n in exchange.nodes if n not in used}
        facts: dict[str, Any] = {"count": exchange.replied, "failed_count": len(lost)}
        if not self.private:
            dropped: Mapping[int, str] = found(self._strategy, "dropped", Mapping) or {}
            failed = {}
            for node_id, number in sorted(lost.items(), key=lambda pair: pair[1]):
                silent = "the reply was not used" if node_id in came else "no reply in time"
                reason = dropped.get(number) or exchange.errors.get(node_id) or silent
                failed[number] = printable(" ".join(str(reason).split()), _MAX_REASON)
            asked = sorted(map(self.numbers.of, exchange.nodes))
            exchange.participants = Asked(asked, failed)
            replied = [k for k in asked if k not in failed]
            facts = {"clients": replied, "failed": {str(k): why for k, why in failed.items()}}
        if exchange.nodes:
            self._tell("replied", exchange, facts)

    def _show_models(self, replies: Sequence[Reply], exchange: Exchange) -> None:
        if not self.private and exchange.number is not None:
            models = {self.numbers.of(r.node_id): r.arrays or {} for r in replies}
            self._tracker.see_models(exchange.number, models)  # type: ignore[attr-defined]

    def _tell(self, kind: str, exchange: Exchange, facts: Mapping[str, Any]) -> None:
        if exchange.number is not None and callable(see := getattr(self._tracker, "event", None)):
            see(kind, {"round": exchange.number, "exchange": exchange.name, **facts})


def _is_any(name: str) -> bool:
    return True
