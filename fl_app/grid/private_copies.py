"""Copies of messages and contexts that share nothing which can be changed with the original."""

from __future__ import annotations

from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.message.recorddict import _SyncedDict
from flwr.app.message.typeddict import TypedDict

from fl_app.grid.arrays import LazyArray, filled, items_of
from fl_app.grid.messages import KINDS, Record, is_kind, message_of, shallow_copy

__all__ = [
    "Wrapped",
    "is_used",
    "private_content",
    "private_context",
    "private_message",
    "quick_message",
]

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
        Equal to the original; its arrays are lazy ones.
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
    copied = None if content is None else private_content(content, wrapped)
    return message_of(shallow_copy(parts["_metadata"]), copied, parts["_error"])


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
    copied = filled(content, _private_records(content, None), _QuickContent)
    return message_of(shallow_copy(parts["_metadata"]), copied, parts["_error"])


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
    copied = shallow_copy(context)
    copied.state = private_content(context.state)
    copied.node_config = dict(context.node_config)
    copied.run_config = dict(context.run_config)
    return copied


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
        name = type(self).__qualname__.encode()
        return RecordDict.__qualname__.encode() + super().deflate().removeprefix(name)

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


_LISTS = {kind: _SyncedDict[Any](RecordDict(), kind) for kind in KINDS}


def _private_records(content: RecordDict, wrapped: Wrapped | None) -> dict[str, Record]:
    """Copy the records of a content as :func:`private_content` promises."""
    wrapped = {} if wrapped is None else wrapped
    records: dict[str, Record] = {}
    for name, record in content.__dict__["_data"].items():
        items = record.__dict__["_data"]
        if is_kind(record, ArrayRecord):
            copied = _wrapped(items, wrapped)
        else:
            copied = items.copy()
            for key, value in items.items():
                if isinstance(value, list):
                    copied[key] = list(value)
        records[name] = filled(record, copied)
    return records


def _wrapped(arrays: dict[str, Array], wrapped: Wrapped) -> dict[str, Array]:
    """Wrap arrays, each at most once in the lifetime of `wrapped`."""
    lazy = arrays.copy()
    for name, array in arrays.items():
        if type(array) is LazyArray:
            continue
        if id(array) not in wrapped:  # the original is kept, so that its id stays its own
            wrapped[id(array)] = (array, LazyArray.wrap(array))
        lazy[name] = wrapped[id(array)][1]
    return lazy
