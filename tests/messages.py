"""Messages, replies and nodes as a grid would make them, without one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from numpy.typing import NDArray

from fl_app.federation.roster import Node, Roster

NODE_IDS = (901, 17, 355, 620, 44, 7003, 512, 80)
"""Node ids by partition: in no order, as Flower draws them."""


def roster_of(num_nodes: int) -> Roster:
    """Make the roster of the first nodes: partition k has 10 + k rows and 2 to validate on."""
    return Roster(tuple(Node(NODE_IDS[k], k, 10 + k, 2) for k in range(num_nodes)))


def asked_of(roster: Roster) -> dict[int, Node]:
    """Return the nodes that were asked: all."""
    return {node.node_id: node for node in roster}


def content_of(
    arrays: Mapping[str, NDArray[Any]] | None,
    metrics: Mapping[str, Any] | None = None,
    num_examples: Any = 10,
) -> RecordDict:
    """Make the content of a reply as a client of ours does."""
    values = {"mse": 0.5, "num-examples": num_examples} if metrics is None else dict(metrics)
    content = RecordDict({"metrics": MetricRecord(values)})
    if arrays is not None:
        content["arrays"] = ArrayRecord({k: Array(a) for k, a in arrays.items()})
    return content


def reply_of(
    node_id: int,
    content: RecordDict | None = None,
    error: str | None = None,
    answers: str = "",
) -> Message:
    """Make a node's reply: a content, an error, or neither."""
    metadata = Metadata(
        run_id=1,
        message_id=f"reply-{node_id}",
        src_node_id=node_id,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=answers or f"asked-{node_id}",
        group_id="",
        created_at=time.time(),
        ttl=3600.0,
        message_type="train",
    )
    if error is not None:
        return make_message(metadata, error=Error(0, error))
    if content is not None:
        return make_message(metadata, content=content)
    message = make_message(metadata, content=RecordDict())
    message.__dict__["_content"] = None
    return message


def sent_to(node_id: int) -> Message:
    """Make the message that :func:`reply_of` answers by default, with the id a grid gave it."""
    metadata = Metadata(
        run_id=1,
        message_id=f"asked-{node_id}",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=node_id,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=3600.0,
        message_type="train",
    )
    return make_message(metadata, content=RecordDict())


def lost(node_id: int) -> Message:
    """Make the error that the SuperLink sends in the stead of a node that is gone."""
    return reply_of(SUPERLINK_NODE_ID, error="Node Unavailable", answers=f"asked-{node_id}")
