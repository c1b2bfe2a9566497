"""Arrays that are encoded only when somebody asks for their bytes.

Flower's :class:`flwr.app.Array` holds the bytes of ``np.save``: making one encodes, reading one
decodes, also where both happen in one process. A :class:`LazyArray` is an ``Array`` that cannot
be changed and so may keep either form, the ndarray or the bytes, and make the other one at its
first use. On a wire it is a stock ``Array`` to the last bit; in one process it costs nothing.

:func:`hold` and :func:`read` turn named ndarrays into a record and back.

References
----------
Flower, ``Array``: https://flower.ai/docs/framework/ref-api/flwr.app.Array.html
NumPy, the npy format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, cached_property
from typing import Any, TypeVar

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
)
from flwr.app.message.typeddict import TypedDict
from flwr.common.constant import SType
from numpy.typing import NDArray

__all__ = ["LazyArray", "dtype_name", "filled", "hold", "items_of", "read"]

_FIELDS = ("dtype", "shape", "stype", "data")
_NO_ARRAYS = ArrayRecord()


class LazyArray(Array):
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
    >>> array = LazyArray(np.arange(3.0))
    >>> array == Array(np.arange(3.0))
    True
    >>> array.view().flags.writeable, array.numpy().flags.writeable
    (False, True)
    """

    def __init__(self, ndarray: NDArray[Any], copy: bool = True) -> None:
        self.__dict__["_ndarray"] = _frozen(ndarray, copy)

    @classmethod
    def wrap(cls, array: Array) -> LazyArray:
        """Take over the bytes of any ``Array``; they are decoded once, at the first use.

        Parameters
        ----------
        array : Array
            Left as it is. A :class:`LazyArray` is returned itself.

        Returns
        -------
        LazyArray
        """
        if isinstance(array, LazyArray):
            return array
        lazy = cls.__new__(cls)
        lazy.__dict__.update(_fields(array))
        return lazy

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
        name = type(self).__qualname__.encode()
        return Array.__qualname__.encode() + super().deflate().removeprefix(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIELDS:
            raise AttributeError(f"LazyArray.{name} cannot be set: make a new Array")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        return self is other or _fields(self) == _fields(other)

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> LazyArray:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyArray:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # As a stock Array: no class of ours crosses a process.
        return object.__new__, (Array,), _fields(self)

    def __repr__(self) -> str:
        return f"LazyArray(dtype={self.dtype!r}, shape={self.shape!r})"


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
        As in :class:`LazyArray`.

    Returns
    -------
    ArrayRecord
        Equal to ``ArrayRecord({name: Array(ndarray), ...})``.

    Raises
    ------
    TypeError, ValueError
        As :class:`LazyArray`; also for a name that is no str.

    Notes
    -----
    ``ArrayRecord(dict(record))`` copies bytes and so encodes every array: use ``record.copy()``.
    """
    for name in arrays:
        if not isinstance(name, str):
            raise TypeError(f"names of arrays must be str: {list(arrays)}")
    return filled(_NO_ARRAYS, {name: LazyArray(ndarray, copy) for name, ndarray in arrays.items()})


def read(record: ArrayRecord, writable: bool = False) -> dict[str, NDArray[Any]]:
    """Return a record's named ndarrays; no pickle is ever loaded.

    Parameters
    ----------
    record : ArrayRecord
        Of stock or lazy arrays; left as it is.
    writable : bool, default False
        Return copies that may be changed. Otherwise all are read-only, and lazy ones are handed
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
        name: array._ndarray if type(array) is LazyArray else LazyArray.wrap(array).view()
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


_R = TypeVar("_R", bound=TypedDict[Any, Any])


def filled(template: _R, items: dict[str, Any], kind: type[_R] | None = None) -> _R:
    """Copy a record with other items, without the setter's checks: the caller has made them."""
    new: _R = object.__new__(kind or type(template))
    given, fields = template.__dict__, new.__dict__
    fields["_check_key_fn"] = given["_check_key_fn"]
    fields["_check_value_fn"] = given["_check_value_fn"]
    fields["_data"] = items
    return new
