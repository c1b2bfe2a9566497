"""Messages and contexts of Flower, made and read without the detours of its own constructors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.app.message.recorddict import _SyncedDict
from flwr.app.message.typeddict import TypedDict
from flwr.common.constant import SUPERLINK_NODE_ID

from fl_app.grid.arrays import LazyArray, filled, items_of

__all__ = [
    "Wrapped",
    "answers",
    "copies_to",
    "expiry",
    "is_kind",
    "is_used",
    "metric_record",
    "private_content",
    "private_context",
    "private_message",
    "quick_message",
    "record_dict",
    "records_of",
    "reply",
    "sender",
    "stamp",
]

Record = ArrayRecord | MetricRecord | ConfigRecord
_KINDS = frozenset({ArrayRecord, MetricRecord, ConfigRecord})  # found faster than by isinstance
_NO_METRICS, _NO_RECORDS = MetricRecord(), RecordDict()


def is_kind(record: object, kind: type) -> bool:
    """Say ``isinstance(record, kind)`` of a kind of record, which Flower makes slow to ask."""
    exact = type(record)
    return exact is kind or (exact not in _KINDS and isinstance(record, kind))


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
    own = dict(metrics)
    for name, value in own.items():
        if not isinstance(name, str) or (type(value) is not float and type(value) is not int):
            return MetricRecord(own)
    return filled(_NO_METRICS, own)


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
    own: dict[Any, Any] = dict(records)
    for name, record in own.items():
        if not isinstance(name, str) or (
            type(record) not in _KINDS and not isinstance(record, Record)
        ):
            return RecordDict(own)  # raises
    return filled(_NO_RECORDS, own)


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
    metadata, asked, created_at = _same(given), given.__dict__, time.time()
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
    return _message(metadata, content, None)


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
        metadata = _same(parts["_metadata"])
        metadata.__dict__["_dst_node_id"] = node_id
        made.append(_message(metadata, parts["_content"], parts["_error"]))
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
    """Return the records of a message's content, to look at, as :func:`items_of` does.

    Raises
    ------
    ValueError
        If the message has no content.
    """
    content = message.__dict__["_content"]
    items: dict[str, Any] = (message.content if content is None else content).__dict__["_data"]
    return items


Wrapped = dict[int, tuple[Array, LazyArray]]


def private_content(content: RecordDict, wrapped: Wrapped | None = None) -> RecordDict:
    """Copy a content so deep that nothing which can be changed is shared with the original.

    Parameters
    ----------
    content : RecordDict
        Left as it is.
    wrapped : dict or None, default None
        Memory of arrays seen so far. Copies that are made with one memory share one
        :class:`LazyArray` for each stock ``Array``, so that it is decoded at most once.

    Returns
    -------
    RecordDict
        Equal to the original; its arrays are held ones.
    """
    return filled(content, _private_records(content, wrapped))


def private_message(message: Message, wrapped: Wrapped | None = None) -> Message:
    """Copy a message: metadata of its own and the :func:`private_content` of its content.

    Parameters
    ----------
    message : Message
        Left as it is.
    wrapped : dict or None, default None
        As in :func:`private_content`.

    Returns
    -------
    Message
    """
    parts = message.__dict__
    content = parts["_content"]
    own = None if content is None else private_content(content, wrapped)
    return _message(_same(parts["_metadata"]), own, parts["_error"])


def quick_message(message: Message) -> Message:
    """Make a :func:`private_message` whose content lists its records quickly.

    Flower's strategies ask each reply several times for its ``array_records`` and its
    ``metric_records``, and a content builds them anew at every look. What is built here is the
    same in a tenth of the time.

    Parameters
    ----------
    message : Message
        Left as it is.

    Returns
    -------
    Message
    """
    parts = message.__dict__
    content = parts["_content"]
    if type(content) is not RecordDict:
        return private_message(message)
    own = filled(content, _private_records(content, None), _QuickContent)
    return _message(_same(parts["_metadata"]), own, parts["_error"])


def private_context(context: Context) -> Context:
    """Copy a context: configs of its own and the :func:`private_content` of its state.

    Parameters
    ----------
    context : Context
        Left as it is.

    Returns
    -------
    Context
        Also carries whatever attributes were added to the original.
    """
    own = _same(context)
    own.state = private_content(context.state)
    own.node_config = dict(context.node_config)
    own.run_config = dict(context.run_config)
    return own


def is_used(context: Context, before: Context) -> bool:
    """Return whether a context differs from another one, or either has state.

    Parameters
    ----------
    context, before : Context
        Left as they are. State is not compared: what is there counts as a difference.
    """
    mine, known = vars(context), vars(before)
    if items_of(mine["state"]) or items_of(known["state"]):
        return True
    return {**mine, "state": None} != {**known, "state": None}


class _QuickContent(RecordDict):
    """A RecordDict that lists its records by kind without Flower's checks: it holds nothing else.

    What it lists writes through to it and checks what is written, as Flower's own does.
    """

    @property
    def array_records(self) -> TypedDict[str, ArrayRecord]:
        """Dictionary holding only ArrayRecord instances."""
        return _listed(self, ArrayRecord)

    @property
    def metric_records(self) -> TypedDict[str, MetricRecord]:
        """Dictionary holding only MetricRecord instances."""
        return _listed(self, MetricRecord)

    @property
    def config_records(self) -> TypedDict[str, ConfigRecord]:
        """Dictionary holding only ConfigRecord instances."""
        return _listed(self, ConfigRecord)

    def __getitem__(self, item: str) -> Record:
        record: Record = self.__dict__["_data"][item]
        return record

    def deflate(self) -> bytes:
        """Deflate under the name of the class that inflates it."""
        own = type(self).__qualname__.encode()
        return RecordDict.__qualname__.encode() + super().deflate().removeprefix(own)

    def __reduce__(self) -> tuple[Any, ...]:
        # As a stock one: no class of ours crosses a process.
        return object.__new__, (RecordDict,), self.__dict__


_K = TypeVar("_K", ArrayRecord, MetricRecord, ConfigRecord)


def _listed(content: RecordDict, kind: type[_K]) -> TypedDict[str, _K]:
    """Make what ``RecordDict.array_records`` and its like make."""
    items = content.__dict__["_data"].items()
    records = {}
    for name, record in items:
        if is_kind(record, kind):
            records[name] = record
    new: _SyncedDict[_K] = object.__new__(_SyncedDict)
    # With it the check of another one, so that only a collection is spared: Flower's own holds a
    # method of itself.
    new.__dict__.update(_LISTS[kind].__dict__, _data=records, recorddict=content)
    return new


_LISTS = {kind: _SyncedDict[Any](RecordDict(), kind) for kind in _KINDS}
_T = TypeVar("_T", Metadata, Context)


def _same(instance: _T) -> _T:
    """Copy an object shallowly (``copy.copy`` takes four times as long)."""
    new = object.__new__(type(instance))
    new.__dict__.update(instance.__dict__)
    return new


def _message(metadata: Metadata, content: RecordDict | None, error: Error | None) -> Message:
    """Make a message of its three parts."""
    new = object.__new__(Message)
    own = new.__dict__
    own["_metadata"], own["_content"], own["_error"] = metadata, content, error
    return new


def _private_records(content: RecordDict, wrapped: Wrapped | None) -> dict[str, Record]:
    """Copy the records of a content as :func:`private_content` promises."""
    wrapped = {} if wrapped is None else wrapped
    records: dict[str, Record] = {}
    for name, record in content.__dict__["_data"].items():
        items = record.__dict__["_data"]
        if is_kind(record, ArrayRecord):
            own = _wrapped(items, wrapped)
        else:
            own = items.copy()
            for key, value in items.items():
                if isinstance(value, list):
                    own[key] = list(value)
        records[name] = filled(record, own)
    return records


def _wrapped(arrays: dict[str, Array], wrapped: Wrapped) -> dict[str, Array]:
    """Wrap arrays, each at most once in the lifetime of `wrapped`."""
    held = arrays.copy()
    for name, array in arrays.items():
        if type(array) is LazyArray:
            continue
        if id(array) not in wrapped:  # the original is kept, so that its id stays its own
            wrapped[id(array)] = (array, LazyArray.wrap(array))
        held[name] = wrapped[id(array)][1]
    return held
