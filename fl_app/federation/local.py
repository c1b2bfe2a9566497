"""The baseline without a federation: every client trains alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_app.federation.replies import ReplySpec, spec_of
from fl_app.federation.roster import Roster

__all__ = ["Local"]


class Local(FedAvg):
    """Every client trains alone: the server hands each its own arrays back.

    The arrays of a round are those of all clients, named ``007/coef`` after the partition. The
    first round starts all clients from the same arrays.

    Parameters
    ----------
    roster : Roster
        Gives each node its partition.
    **kwargs
        As for Flower's FedAvg.
    """

    def __init__(self, roster: Roster, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._names = {node.node_id: f"{node.partition:03d}" for node in roster}
        self._own: dict[int, ArrayRecord] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each node its own arrays."""
        return self._send(MessageType.TRAIN, server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send each node its own arrays."""
        return self._send(MessageType.EVALUATE, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Collect the clients' arrays; a client that did not reply keeps those it had."""
        replies = list(replies)
        for message in replies:
            arrays = message.content.array_records[self.arrayrecord_key]
            self._own[message.metadata.src_node_id] = arrays
        merged = ArrayRecord()
        for node_id, name in self._names.items():
            for key, array in self._own[node_id].items():
                merged[f"{name}/{key}"] = array
        contents = [message.content for message in replies]
        return merged, self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def reply_spec(self, server_round: int, arrays: ArrayRecord) -> ReplySpec:
        """Expect arrays like one client's own."""
        return ReplySpec(spec_of(next(iter(self._divide(arrays).values()))))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the arrays that are sent are all that a round leaves."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in :meth:`state_dict`."""

    def samples_all(self, server_round: int) -> bool:
        """All clients train in every round."""
        return True

    def _send(
        self,
        message_type: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        self._own = self._divide(arrays)
        config["server-round"] = server_round
        return [
            Message(
                RecordDict({self.arrayrecord_key: self._own[node], self.configrecord_key: config}),
                node,
                message_type,
            )
            for node in grid.get_node_ids()
        ]

    def _divide(self, arrays: ArrayRecord) -> dict[int, ArrayRecord]:
        """Give each node its arrays; before the first round all have the same."""
        if not any("/" in key for key in arrays):
            return {node_id: arrays.copy() for node_id in self._names}
        divided = {name: ArrayRecord() for name in self._names.values()}
        for key, array in arrays.items():
            client, _, inner = key.partition("/")
            divided[client][inner] = array
        return {node_id: divided[name] for node_id, name in self._names.items()}
