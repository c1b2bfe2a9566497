"""Messages of Flower, made and read without the detours of its own constructors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import SUPERLINK_NODE_ID

from fl_app.grid.arrays import filled

__all__ = [
    "answers",
    "copies_to",
    "expiry",
    "is_kind",
    "message_of",
    "metric_record",
    "record_dict",
    "records_of",
    "reply",
    "sender",
    "shallow_copy",
    "stamp",
]

Record = ArrayRecord | MetricRecord | ConfigRecord
KINDS = frozenset({ArrayRecord, MetricRecord, ConfigRecord})  # found faster than by isinstance
_NO_METRICS, _NO_RECORDS = MetricRecord(), RecordDict()
_T = TypeVar("_T", Metadata, Context)


def is_kind(record: object, kind: type) -> bool:
    """Say ``isinstance(record, kind)`` of a kind of record, which Flower makes slow to ask."""
    exact = type(record)
    return exact is kind or (exact not in KINDS and isinstance(record, kind))


def metric_record(metrics: Mapping[str, Any]) -> MetricRecord:
    """Make ``MetricRecord(metrics)``, faster where every value is a Python int or float.

    Parameters
    ----------
    metrics : mapping of str to int, float or a list of them

    Returns
    -------
    MetricRecord

    Raises
    ------
    TypeError
        As Flower's constructor.
    """
    items = dict(metrics)
    for name, value in items.items():
        if not isinstance(name, str) or (type(value) is not float and type(value) is not int):
            return MetricRecord(items)
    return filled(_NO_METRICS, items)


def record_dict(records: Mapping[str, Record]) -> RecordDict:
    """Make ``RecordDict(records)``, faster.

    Parameters
    ----------
    records : mapping of str to ArrayRecord, MetricRecord or ConfigRecord
        Not copied, as in Flower's constructor.

    Returns
    -------
    RecordDict

    Raises
    ------
    TypeError
        As Flower's constructor.
    """
    items: dict[Any, Any] = dict(records)
    for name, record in items.items():
        if not isinstance(name, str) or (
            type(record) not in KINDS and not isinstance(record, Record)
        ):
            return RecordDict(items)  # raises
    return filled(_NO_RECORDS, items)


def reply(message: Message, content: RecordDict) -> Message:
    """Make ``Message(content, reply_to=message)``, faster.

    Parameters
    ----------
    message : Message
        The message to answer; left as it is.
    content : RecordDict
        Not copied.

    Returns
    -------
    Message
    """
    given = message.__dict__["_metadata"]
    metadata, asked, created_at = shallow_copy(given), given.__dict__, time.time()
    metadata.__dict__.update(
        _message_id="",
        _src_node_id=asked["_dst_node_id"],
        _dst_node_id=asked["_src_node_id"],
        _src_task_id=asked["_dst_task_id"],
        _dst_task_id=asked["_src_task_id"],
        _reply_to_message_id=asked["_message_id"],
        _created_at=created_at,
        _ttl=asked["_created_at"] + asked["_ttl"] - created_at,
        _delivered_at="",
    )
    return message_of(metadata, content, None)


def copies_to(message: Message, node_ids: Iterable[int]) -> list[Message]:
    """Make ``Message(message.content, node_id, ...)`` for each of these nodes, faster.

    Parameters
    ----------
    message : Message
        One that nobody has sent yet; left as it is.
    node_ids : iterable of int
        Whom to address.

    Returns
    -------
    list of Message
        With metadata of their own; they share the content, as Flower's strategies have it.
    """
    parts, made = message.__dict__, []
    for node_id in node_ids:
        metadata = shallow_copy(parts["_metadata"])
        metadata.__dict__["_dst_node_id"] = node_id
        made.append(message_of(metadata, parts["_content"], parts["_error"]))
    return made


def stamp(message: Message, **fields: Any) -> None:
    """Set fields of a message's metadata that have no setter, as Flower's own grids do.

    Parameters
    ----------
    message : Message
        Changed in place.
    **fields : object
        Names of :class:`flwr.app.Metadata`'s properties with their values.
    """
    metadata = message.__dict__["_metadata"].__dict__
    for name, value in fields.items():
        metadata[f"_{name}"] = value


def expiry(message: Message) -> float:
    """Return the Unix time in seconds at which a message's time to live is over."""
    metadata = message.__dict__["_metadata"].__dict__
    ends: float = metadata["_created_at"] + metadata["_ttl"]
    return ends


def answers(reply: Message, message: Message) -> bool:
    """Return whether a message's metadata are those of a reply to another one."""
    mine = reply.__dict__["_metadata"].__dict__
    asked = message.__dict__["_metadata"].__dict__
    return bool(
        mine["_reply_to_message_id"] == asked["_message_id"]
        and mine["_src_node_id"] == asked["_dst_node_id"]
        and mine["_dst_node_id"] == asked["_src_node_id"]
        and mine["_run_id"] == asked["_run_id"]
    )


def sender(reply: Message, sent: Iterable[Metadata]) -> int:
    """Return the id of the node whose reply it is.

    Parameters
    ----------
    reply : Message
        A reply. Where a node is lost, it is an error from the SuperLink in the node's stead.
    sent : iterable of Metadata
        Those of the exchange's messages, with the ids that the grid gave them.
    """
    node_id = reply.metadata.src_node_id
    if node_id != SUPERLINK_NODE_ID:
        return node_id
    answered = reply.metadata.reply_to_message_id
    return next((m.dst_node_id for m in sent if m.message_id == answered), node_id)


def records_of(message: Message) -> dict[str, Any]:
    """Return the records of a message's content, to look at, as ``items_of`` does.

    Raises
    ------
    ValueError
        If the message has no content.
    """
    content = message.__dict__["_content"]
    items: dict[str, Any] = (message.content if content is None else content).__dict__["_data"]
    return items


def shallow_copy(instance: _T) -> _T:
    """Copy an object shallowly (``copy.copy`` takes four times as long)."""
    new = object.__new__(type(instance))
    new.__dict__.update(instance.__dict__)
    return new


def message_of(metadata: Metadata, content: RecordDict | None, error: Error | None) -> Message:
    """Make a message of its three parts."""
    new = object.__new__(Message)
    fields = new.__dict__
    fields["_metadata"], fields["_content"], fields["_error"] = metadata, content, error
    return new
