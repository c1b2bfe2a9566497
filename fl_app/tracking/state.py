"""What a strategy remembers, as text and named arrays, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from fl_app.grid.arrays import hold, read

__all__ = ["pack_state", "unpack_state"]


def pack_state(tree: Any, name_of: Callable[[NDArray[Any]], str]) -> str:
    """Return a tree as JSON, in which arrays stand by name.

    Parameters
    ----------
    tree : object
        None, bool, int, float, str, ndarray, ArrayRecord; lists, tuples, sets and mappings of them,
        whose keys are plain values too.
    name_of : callable
        Keeps an array, and returns what it is called.

    Raises
    ------
    TypeError
        For anything else, which it names.
    """

    def packed(value: Any) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.ndarray):
            return ["array", name_of(value)]
        if isinstance(value, ArrayRecord):
            return ["record", packed(dict(read(value)))]
        if isinstance(value, Mapping):
            return ["mapping", [[packed(k), packed(v)] for k, v in value.items()]]
        for kind in (list, tuple, frozenset, set):
            if isinstance(value, kind):
                return [kind.__name__, [packed(item) for item in value]]
        raise TypeError(f"a state holds {type(value).__name__}, which cannot be kept")

    return json.dumps(packed(tree))


def unpack_state(text: str, array: Callable[[str], NDArray[Any]]) -> Any:
    """Read :func:`pack_state`'s form back; `array` returns an array by its name."""
    kinds = {"list": list, "tuple": tuple, "frozenset": frozenset, "set": set}

    def unpacked(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        kind, content = value
        if kind == "array":
            return array(content)
        if kind == "record":
            return hold(unpacked(content), copy=False)
        if kind == "mapping":
            return {unpacked(k): unpacked(v) for k, v in content}
        return kinds[kind](unpacked(item) for item in content)

    return unpacked(json.loads(text))
