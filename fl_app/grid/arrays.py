"""Arrays that are encoded only when somebody asks for their bytes.

Flower's :class:`flwr.app.Array` holds the bytes of ``np.save``: making one encodes, reading one
decodes, also where both happen in one process. A :class:`HeldArray` is an ``Array`` that cannot
be changed and so may keep either form, the ndarray or the bytes, and make the other one at its
first use. On a wire it is a stock ``Array`` to the last bit; in one process it costs nothing.

:func:`hold` and :func:`read` turn named ndarrays into a record and back. :func:`metric_record`,
:func:`record_dict` and :func:`reply` make what Flower's constructors make, several times faster.
Whatever fl_app uses of Flower's private fields stands in this module.

References
----------
Flower, ``Array``: https://flower.ai/docs/framework/ref-api/flwr.app.Array.html
NumPy, the npy format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from typing import Any, TypeVar

import numpy as np
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
from flwr.common.constant import SUPERLINK_NODE_ID, SType
from numpy.typing import NDArray

__all__ = [
    "HeldArray",
    "Wrapped",
    "answers",
    "copies_to",
    "dtype_name",
    "expiry",
    "hold",
    "is_kind",
    "is_used",
    "items_of",
    "metric_record",
    "private_content",
    "private_context",
    "private_message",
    "quick_message",
    "read",
    "record_dict",
    "records_of",
    "reply",
    "sender",
    "stamp",
]

Record = ArrayRecord | MetricRecord | ConfigRecord
_KINDS = frozenset({ArrayRecord, MetricRecord, ConfigRecord})  # found faster than by isinstance
_FIELDS = ("dtype", "shape", "stype", "data")
_NO_ARRAYS, _NO_METRICS, _NO_RECORDS = ArrayRecord(), MetricRecord(), RecordDict()


class HeldArray(Array):
    """A Flower ``Array`` that keeps its ndarray and encodes it at the first use of ``data``.

    Equal to ``Array(ndarray)`` in its fields, bytes, protobuf, ``object_id`` and deflated form;
    a pickled one arrives as a stock ``Array``. It differs in two ways: it cannot be changed
    (setting a field raises ``AttributeError``), and its ``repr`` shows no bytes.

    Parameters
    ----------
    ndarray : ndarray
        The values, of any dtype without Python objects.
    copy : bool, default True
        Keep a copy. With False the caller gives the buffer up and nobody writes to it any more;
        it is still copied where its memory order is not the one that decoding would give.

    Raises
    ------
    TypeError
        If `ndarray` is no ndarray.
    ValueError
        If its dtype holds Python objects, which only pickle could encode.

    Examples
    --------
    >>> array = HeldArray(np.arange(3.0))
    >>> array == Array(np.arange(3.0))
    True
    >>> array.view().flags.writeable, array.numpy().flags.writeable
    (False, True)
    """

    def __init__(self, ndarray: NDArray[Any], copy: bool = True) -> None:
        self.__dict__["_ndarray"] = _frozen(ndarray, copy)

    @classmethod
    def wrap(cls, array: Array) -> HeldArray:
        """Take over the bytes of any ``Array``; they are decoded once, at the first use.

        Parameters
        ----------
        array : Array
            Left as it is. A :class:`HeldArray` is returned itself.

        Returns
        -------
        HeldArray
        """
        if isinstance(array, HeldArray):
            return array
        held = cls.__new__(cls)
        held.__dict__.update(_fields(array))
        return held

    @cached_property
    def _ndarray(self) -> NDArray[Any]:
        decoded = super().numpy()
        if isinstance(decoded, np.ndarray):  # an npz's bytes give no ndarray
            owner = decoded if decoded.base is None else decoded.base
            owner.flags.writeable = False  # nobody else has it: fresh from the bytes
        return _frozen(decoded, copy=False)

    @cached_property
    def dtype(self) -> str:  # type: ignore[override]
        """Name of the dtype."""
        return dtype_name(self._ndarray.dtype)

    @cached_property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the ndarray."""
        return tuple(self._ndarray.shape)

    @cached_property
    def stype(self) -> str:  # type: ignore[override]
        """Name of the encoding."""
        return SType.NUMPY

    @cached_property
    def data(self) -> bytes:  # type: ignore[override]
        """The ndarray as Flower encodes it."""
        return Array.from_numpy_ndarray(self._ndarray).data

    @property
    def nbytes(self) -> int:
        """Bytes of the values, without those of the encoding."""
        known = self.__dict__.get("_ndarray")
        if known is not None:
            return int(known.nbytes)
        size = _itemsize(self.dtype)
        return len(self.data) if size is None else size * math.prod(self.shape)

    def sum_of_squares(self) -> float:
        """Return the sum of the squared values in float64; it is computed once.

        For real numbers only. Finite only if all values are; values beyond 1e154 may give infinity
        too.
        """
        known: float | None = self.__dict__.get("_sum_of_squares")
        if known is None:
            values = self._ndarray.ravel(order="K").astype(np.float64, copy=False)
            known = self.__dict__["_sum_of_squares"] = float(values.dot(values))
        return known

    def view(self) -> NDArray[Any]:
        """Return the ndarray itself, read-only, at no cost.

        Raises
        ------
        TypeError, ValueError
            As :meth:`numpy`, for a wrapped ``Array`` that cannot be decoded.
        """
        return self._ndarray

    def numpy(self) -> NDArray[Any]:
        """Return a writable copy, as a stock ``Array`` does.

        Raises
        ------
        TypeError, ValueError
            For a wrapped ``Array`` whose bytes are not those of one ndarray.
        """
        return self._ndarray.copy(order="K")

    def deflate(self) -> bytes:
        """Deflate under the name of the class that inflates it."""
        own = type(self).__qualname__.encode()
        return Array.__qualname__.encode() + super().deflate().removeprefix(own)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIELDS:
            raise AttributeError(f"HeldArray.{name} cannot be set: make a new Array")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        return self is other or _fields(self) == _fields(other)

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> HeldArray:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldArray:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # As a stock Array: no class of ours crosses a process.
        return object.__new__, (Array,), _fields(self)

    def __repr__(self) -> str:
        return f"HeldArray(dtype={self.dtype!r}, shape={self.shape!r})"


@cache
def _itemsize(dtype: str) -> int | None:
    try:
        return np.dtype(dtype).itemsize
    except TypeError:  # of another framework
        return None


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return ``str(dtype)``; NumPy puts it together anew, in some 10 us, at every call."""
    return _NAMES.get(dtype) or str(dtype)


_NAMES = {np.dtype(code): str(np.dtype(code)) for code in np.typecodes["AllFloat"] + "?bhilqBHILQ"}


def hold(arrays: Mapping[str, NDArray[Any]], copy: bool = True) -> ArrayRecord:
    """Make the record of named ndarrays without encoding them.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Any shapes, any dtypes without Python objects.
    copy : bool, default True
        As in :class:`HeldArray`.

    Returns
    -------
    ArrayRecord
        Equal to ``ArrayRecord({name: Array(ndarray), ...})``.

    Raises
    ------
    TypeError, ValueError
        As :class:`HeldArray`; also for a name that is no str.

    Notes
    -----
    ``ArrayRecord(dict(record))`` copies bytes and so encodes every array: use ``record.copy()``.
    """
    for name in arrays:
        if not isinstance(name, str):
            raise TypeError(f"names of arrays must be str: {list(arrays)}")
    return _filled(_NO_ARRAYS, {name: HeldArray(ndarray, copy) for name, ndarray in arrays.items()})


def read(record: ArrayRecord, writable: bool = False) -> dict[str, NDArray[Any]]:
    """Return a record's named ndarrays; no pickle is ever loaded.

    Parameters
    ----------
    record : ArrayRecord
        Of stock or held arrays; left as it is.
    writable : bool, default False
        Return copies that may be changed. Otherwise all are read-only, and held ones are handed
        over without copying.

    Returns
    -------
    dict of str to ndarray
        In the record's order.

    Raises
    ------
    TypeError, ValueError
        For an array whose bytes are not those of one ndarray without Python objects.
    """
    if writable:
        return {name: array.numpy() for name, array in record.items()}
    return {
        name: array._ndarray if type(array) is HeldArray else HeldArray.wrap(array).view()
        for name, array in items_of(record).items()
    }


def items_of(record: TypedDict[str, Any]) -> dict[str, Any]:
    """Return the dictionary inside a record, to look at: each access of Flower's own builds types.

    Parameters
    ----------
    record : RecordDict, ArrayRecord, MetricRecord or ConfigRecord

    Returns
    -------
    dict
        The record's own; whoever changes it changes the record, without its checks.
    """
    items: dict[str, Any] = record.__dict__["_data"]
    return items


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
    return _filled(_NO_METRICS, own)


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
    return _filled(_NO_RECORDS, own)


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


Wrapped = dict[int, tuple[Array, HeldArray]]


def private_content(content: RecordDict, wrapped: Wrapped | None = None) -> RecordDict:
    """Copy a content so deep that nothing which can be changed is shared with the original.

    Parameters
    ----------
    content : RecordDict
        Left as it is.
    wrapped : dict or None, default None
        Memory of arrays seen so far. Copies that are made with one memory share one
        :class:`HeldArray` for each stock ``Array``, so that it is decoded at most once.

    Returns
    -------
    RecordDict
        Equal to the original; its arrays are held ones.
    """
    return _filled(content, _private_records(content, wrapped))


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
    own = _filled(content, _private_records(content, None), _QuickContent)
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


def _fields(array: Array) -> dict[str, Any]:
    """Return the four fields of an array."""
    return {name: getattr(array, name) for name in _FIELDS}


def _frozen(ndarray: NDArray[Any], copy: bool) -> NDArray[Any]:
    """Return a read-only ndarray in the memory order that decoding would give.

    The order matters for more than speed: sums over another order have other last bits.
    """
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"Expected NumPy ndarray, got {type(ndarray)}")
    if ndarray.dtype.hasobject:
        raise ValueError(f"dtype {ndarray.dtype}: Python objects can only be pickled, never sent")
    flags, plain = ndarray.flags, ndarray
    if copy or not flags.c_contiguous or type(ndarray) is not np.ndarray:
        fortran = flags.f_contiguous and not flags.c_contiguous
        # None: where the order asks for it
        plain = np.array(ndarray, order="F" if fortran else "C", copy=True if copy else None)
        if plain is not ndarray:
            plain.setflags(write=False)
    view = plain.view()  # whose flag cannot be set back where its base is read-only
    view.setflags(write=False)
    return view


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


_R = TypeVar("_R", bound=TypedDict[Any, Any])


def _filled(template: _R, items: dict[str, Any], kind: type[_R] | None = None) -> _R:
    """Copy a record with other items, without the setter's checks: the caller has made them."""
    new: _R = object.__new__(kind or type(template))
    given, own = template.__dict__, new.__dict__
    own["_check_key_fn"] = given["_check_key_fn"]
    own["_check_value_fn"] = given["_check_value_fn"]
    own["_data"] = items
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
        records[name] = _filled(record, own)
    return records


def _wrapped(arrays: dict[str, Array], wrapped: Wrapped) -> dict[str, Array]:
    """Wrap arrays, each at most once in the lifetime of `wrapped`."""
    held = arrays.copy()
    for name, array in arrays.items():
        if type(array) is HeldArray:
            continue
        if id(array) not in wrapped:  # the original is kept, so that its id stays its own
            wrapped[id(array)] = (array, HeldArray.wrap(array))
        held[name] = wrapped[id(array)][1]
    return held
