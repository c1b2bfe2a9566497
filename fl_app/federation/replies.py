"""Checks replies and brings them into order before a strategy sees them.

Averages carry a NaN on silently, broadcast a wrong shape, and depend in their low bits on the
order of arrival. So a reply counts only if it is what was asked for, and replies are sorted by
partition.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fl_app.errors import FlAppError
from fl_app.federation import protocol
from fl_app.federation.roster import Node
from fl_app.grid.arrays import LazyArray, dtype_name, items_of, read
from fl_app.grid.messages import records_of, sender

__all__ = ["ArraySpec", "ReplySpec", "accept", "overflowed", "spec_of"]

log = logging.getLogger("fl_app")

ArraySpec = Mapping[str, tuple[tuple[int, ...], str]]
_MAX_REASON = 300
_FLOWERS_FORM = re.compile(r"<class '([\w.]+)'>:<'(.*)'>")
_MAX_NUMBER = 1e30  # FedStacking, which squares numbers, takes none beyond it
_MAX_WEIGHT = 2**53  # beyond it float64 has no integers left, and sums of weights no meaning


@dataclass(frozen=True)
class ReplySpec:
    """What a usable reply of one exchange looks like.

    Parameters
    ----------
    arrays : mapping of str to (shape, dtype) or None
        The arrays it must hold, exactly; None if it must hold none.
    metrics : frozenset of str or None
        Names of its metrics without the weight; None for any.
    check : callable (Message) -> None, optional
        In place of ``arrays``: raises FlAppError for arrays that are not usable.
    check_measures : callable (metrics, measures) -> str or None, optional
        Says what is impossible in finite metrics and in the record ``measures``.
    """

    arrays: ArraySpec | None
    metrics: frozenset[str] | None = None
    check: Callable[[Message], None] | None = None
    check_measures: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None] | None = None


def spec_of(arrays: ArrayRecord) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return names, shapes and dtypes of a record."""
    return {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}


def accept(
    replies: Iterable[Message],
    asked: Mapping[int, Node],
    spec: ReplySpec,
    where: str,
    sent: Sequence[Message] = (),
    rows: Mapping[int, tuple[int, int]] | None = None,
) -> tuple[list[Message], dict[int, str]]:
    """Keep the usable replies, sorted by partition; warn once about each of the others.

    Parameters
    ----------
    replies : iterable of Message
        As they came.
    asked : mapping of int to Node
        The nodes that were asked, by node id.
    spec : ReplySpec
        What a usable reply looks like.
    where : str
        The exchange, for the warning, for example ``"round 3, train"``.
    sent : sequence of Message, optional
        The messages that are answered, to name the nodes that are lost.
    rows : mapping of int to (int, int), optional
        The rows of each partition that the exchange is over, and those that it leaves out, as it
        told in the handshake: a reply repeats both.

    Returns
    -------
    (usable, dropped)
        The messages in order of partition, with lazy arrays. The reason for each partition that
        was dropped or did not reply.
    """
    usable: dict[int, Message] = {}
    dropped: dict[int, str] = {}
    for reply in replies:
        node_id = sender(reply, (m.metadata for m in sent))
        node = asked.get(node_id)
        if node is None:
            log.warning("%s: reply of node %d dropped: it was not asked", where, node_id)
            continue
        expected = None if rows is None else rows[node.partition]
        second = node.partition in usable
        problem = "a second reply of the same node" if second else fault(reply, spec, expected)
        if problem is None:
            usable[node.partition] = reply
            continue
        dropped[node.partition] = problem = problem[:_MAX_REASON]
        log.warning("%s: reply of partition %d dropped: %s", where, node.partition, problem)
    for silent in sorted({n.partition for n in asked.values()} - usable.keys() - dropped.keys()):
        dropped[silent] = "no reply in time"
        log.warning("%s: no reply of partition %d in time", where, silent)
    return [usable[p] for p in sorted(usable)], dropped


def overflowed(message: Message) -> bool:
    """Return whether a reply, usable or not, holds numbers that only diverging training makes."""
    if message.has_error() or not message.has_content():
        return False
    records = records_of(message)
    try:
        metrics, arrays = items_of(records[protocol.METRICS]), read(records[protocol.ARRAYS])
        values = [np.asarray(v) for v in (*metrics.values(), *arrays.values())]
        numbers = [v for v in values if v.dtype.kind == "f"]
        return not all((np.abs(v) <= _MAX_NUMBER).all() for v in numbers)
    # Bytes of anybody's making raise anything: MemoryError, TokenError, BadZipFile.
    except Exception:
        return False


def fault(message: Message, spec: ReplySpec, rows: tuple[int, int] | None = None) -> str | None:
    """Return what is wrong with a reply, or None; its arrays are lazy ones from then on.

    ``rows``: those that it is over and those left out, as its node told in the handshake; None:
    nobody knows.
    """
    if message.has_error():
        return f"the client failed: {_raised(message.error.reason or 'no reason given')}"
    if not message.has_content():
        return "neither content nor an error"
    records = records_of(message)
    has_arrays = spec.arrays is not None or spec.check is not None
    problem = _layout_fault(records, has_arrays)
    if problem is None:
        metrics, measures = items_of(records[protocol.METRICS]), protocol.measures(message)
        problem = _metrics_fault(metrics, spec)
        if problem is None and rows is not None:
            problem = _rows_fault(metrics, measures, rows)
        if problem is None and spec.check_measures is not None:
            problem = spec.check_measures(metrics, measures)
    if problem or not has_arrays:
        return problem
    arrays = items_of(records[protocol.ARRAYS])
    for name, array in arrays.items():  # or whoever comes next would decode them again
        arrays[name] = LazyArray.wrap(array)
    if spec.check is not None:
        return _check_fault(message, spec.check)
    return _arrays_fault(arrays, spec.arrays or {})


def _raised(reason: str) -> str:
    """Return a client's error in one line: where Ray sends tracebacks, the line that it wraps."""
    wrapped = reason.rpartition("\n\nThe above exception was the direct cause of")[0].strip()
    line = " ".join((wrapped.rpartition("\n")[2] or reason).split())
    if match := _FLOWERS_FORM.fullmatch(line):
        return f"{match[1]}: {match[2]}"
    return line


def _layout_fault(records: Mapping[str, Any], has_arrays: bool) -> str | None:
    if (
        has_arrays
        and len(records) == 2 + (protocol.MEASURES in records)
        and type(records.get(protocol.METRICS)) is MetricRecord
        and type(records.get(protocol.ARRAYS)) is ArrayRecord
    ):
        return None
    # Flower's strategies look a record up by the name that it has in the first reply.
    for kind, record_type, expected in (
        ("metric", MetricRecord, [protocol.METRICS]),
        ("array", ArrayRecord, [protocol.ARRAYS] if has_arrays else []),
    ):
        names = [name for name, record in records.items() if isinstance(record, record_type)]
        if names != expected:
            return f"{kind} records {names}: expected {expected}"
    return None


def _metrics_fault(metrics: Mapping[str, Any], spec: ReplySpec) -> str | None:
    weight = metrics.get(protocol.NUM_EXAMPLES)
    if not _is_number(weight) or not 0 < weight <= _MAX_WEIGHT:
        return f"{protocol.NUM_EXAMPLES}={weight!r}: expected a positive number"
    if spec.metrics is not None and metrics.keys() ^ spec.metrics != _WEIGHT:
        names = metrics.keys() - {protocol.NUM_EXAMPLES}
        return f"metrics {sorted(names)}: expected {sorted(spec.metrics)}"
    wrong = [name for name, value in metrics.items() if not _is_number(value)]
    if wrong:
        return f"metric {min(wrong)}={metrics[min(wrong)]!r}: expected a finite number"
    return None


_WEIGHT = {protocol.NUM_EXAMPLES}


def _rows_fault(
    metrics: Mapping[str, Any], measures: Mapping[str, Any], expected: tuple[int, int]
) -> str | None:
    """Return what is wrong with a reply's weight, held against the handshake's rows."""
    weight, left_out = metrics[protocol.NUM_EXAMPLES], measures.get(protocol.LEFT_OUT, 0)
    if type(left_out) is int and (weight, left_out) == expected:
        return None
    said = f"{protocol.NUM_EXAMPLES}={weight} and {protocol.LEFT_OUT}={str(left_out)[:80]}"
    return f"{said}: expected {expected[0]} and {expected[1]} rows, as in the handshake"


def _is_number(value: Any) -> TypeGuard[int | float]:
    if type(value) is float:
        return math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def _check_fault(message: Message, check: Callable[[Message], None]) -> str | None:
    try:
        check(message)
    except FlAppError as error:
        return " ".join(str(error).split())
    # Bytes of anybody's making raise anything: MemoryError, TokenError, BadZipFile.
    except Exception as error:
        return f"arrays cannot be read: {' '.join(str(error).split())}"
    return None


def _arrays_fault(arrays: Mapping[str, LazyArray], spec: ArraySpec) -> str | None:
    if arrays.keys() != spec.keys():
        return f"arrays {sorted(arrays)}: expected {sorted(spec)}"
    for name, (shape, dtype) in spec.items():
        lazy = arrays[name]
        try:
            array = lazy.view()
        # Bytes of anybody's making raise anything: MemoryError, TokenError, BadZipFile.
        except Exception as error:
            return f"arrays cannot be decoded: {' '.join(str(error).split())}"
        if array.shape != shape:
            return f"array {name} has shape {array.shape}: expected {shape}"
        if dtype_name(array.dtype) != dtype:
            return f"array {name} has dtype {array.dtype}: expected {dtype}"
        # The sum is kept: whoever tells of a client's norm has it already.
        if not (array.dtype.kind == "f" and math.isfinite(lazy.sum_of_squares())) and (
            not np.isfinite(array).all()
        ):
            return f"array {name} holds NaN or infinity: expected finite numbers"
    return None
