"""What is kept of a reply, and how many bytes a message holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fl_app.grid.arrays import LazyArray, items_of
from fl_app.grid.messages import is_kind, records_of
from fl_app.tracking.metric_names import MAX_SHOWN_VALUES
from fl_app.tracking.records import Arrays, ClientRecord

__all__ = ["PARTITION", "Reply", "content_bytes", "scalars", "sent_bytes", "too_long"]

PARTITION = "partition-id"
"""Name under which a node's config, or a reply, tells the partition of its data."""


@dataclass(slots=True)
class Reply:
    """What is kept of a reply before the strategy gets it.

    The arrays themselves only where they are few or `keep` asks for them: a strategy may hold or
    empty what it aggregates, and a second copy of all replies would be as large again.
    """

    node_id: int
    num_bytes: int
    num_examples: float
    metrics: Mapping[str, float]
    long: Sequence[str]
    partition: int | None
    shown: Arrays | None = None
    norm: float | None = None
    arrays: Arrays | None = None

    @classmethod
    def of(
        cls,
        message: Message,
        is_model: Callable[[str], bool] | None,
        weight: str,
        keep: bool,
    ) -> Reply:
        """Read a reply and leave it as it is.

        Parameters
        ----------
        message : Message
            A reply with content.
        is_model : callable or None
            Which arrays may be recorded; None where none may.
        weight : str
            Name of the metric that weighs the client.
        keep : bool
            Whether to keep the arrays, whatever their size.
        """
        records = records_of(message)
        others = [items_of(r) for r in records.values() if not is_kind(r, ArrayRecord)]
        told = {name: r[name] for name in (weight, PARTITION) for r in others if name in r}
        num_examples, partition = told.get(weight), told.get(PARTITION)
        own = _joined(records, MetricRecord, told)
        reply = cls(
            message.metadata.src_node_id,
            _records_bytes(records.values()),
            float(num_examples) if isinstance(num_examples, int | float) else math.nan,
            scalars(own),
            too_long(own),
            partition if type(partition) is int and partition >= 0 else None,
        )
        if is_model is not None:
            arrays = _joined(records, ArrayRecord)
            models = {name: array for name, array in arrays.items() if is_model(name)}
            if models or not arrays:
                reply._look_at(models, keep)
        return reply

    def _look_at(self, models: Mapping[str, Array], keep: bool) -> None:
        """Note the norm over arrays, one decoded at a time, and the arrays where they are few."""
        squares, size, shown = 0.0, 0, {}
        if keep:
            models = {name: LazyArray.wrap(array) for name, array in models.items()}
            self.arrays = {name: held.view() for name, held in models.items()}  # type: ignore[attr-defined]
        try:
            for name, array in models.items():
                held = LazyArray.wrap(array)
                values = held.view()
                if values.dtype.kind not in "fiub":
                    return
                with np.errstate(over="ignore", invalid="ignore"):
                    squares += held.sum_of_squares()
                size += values.size
                if size <= MAX_SHOWN_VALUES:
                    shown[name] = values
        except (TypeError, ValueError):  # bytes that are no ndarray: the strategy's to refuse
            return
        self.shown, self.norm = shown if size <= MAX_SHOWN_VALUES else None, math.sqrt(squares)

    def client(self, number: int) -> ClientRecord:
        """Return the reply as the client of that number."""
        return ClientRecord(number, self.num_examples, self.metrics, self.shown, self.norm)


def _joined(
    records: Mapping[str, Any], kind: type, leave_out: Collection[str] = ()
) -> dict[str, Any]:
    """Return the values of all records of a kind; of several ones under ``record.name``."""
    found = {name: items_of(record) for name, record in records.items() if is_kind(record, kind)}
    return {
        key if len(found) == 1 else f"{name}.{key}": value
        for name, items in found.items()
        for key, value in items.items()
        if key not in leave_out
    }


def content_bytes(content: RecordDict) -> int:
    """Count the bytes of what a message says, without encoding it.

    Parameters
    ----------
    content : RecordDict
        Left as it is.

    Returns
    -------
    int
        The values of arrays (``ndarray.nbytes``), 8 a number, 1 a bool, the length of texts (in
        UTF-8) and bytes. How they are wrapped is not counted: names of records and of values, an
        array's header, dtype and shape, a message's metadata.
    """
    return _records_bytes(items_of(content).values())


def _records_bytes(records: Iterable[Any]) -> int:
    total = 0
    for record in records:
        for value in items_of(record).values():
            kind = type(value)
            total += 8 if kind is float else value.nbytes if kind is LazyArray else _size(value)
    return total


def _size(value: Any) -> int:
    kind = type(value)
    if kind is int or kind is float:
        return 8
    if isinstance(value, Array):
        return LazyArray.wrap(value).nbytes
    if kind is list:
        return sum(8 if type(v) is float else _size(v) for v in value)
    return 1 if kind is bool else len(value.encode() if kind is str else value)


def sent_bytes(messages: Sequence[Message]) -> Iterator[int]:
    """Yield the bytes of messages to clients; a content that they share is measured once."""
    contents = [message.content for message in messages if message.has_content()]
    sizes: dict[int, int] = {}
    for content in contents:  # which live as long as their ids are used
        if id(content) not in sizes:
            records = items_of(content).values()
            sizes[id(content)] = _records_bytes(r for r in records if not is_kind(r, ConfigRecord))
        yield sizes[id(content)]


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as floats; a list of up to 32 becomes ``name.0``, ``name.1`` and so on."""
    values: dict[str, float] = {}
    for name, value in metrics.items():
        if type(value) is float:
            values[name] = value
        elif not isinstance(value, list):
            values[name] = float(value)
        elif len(value) <= MAX_SHOWN_VALUES:
            values |= {f"{name}.{i}": float(v) for i, v in enumerate(value)}
    return values


def too_long(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of metrics that :func:`scalars` leaves out."""
    return [
        name
        for name, value in metrics.items()
        if type(value) is list and len(value) > MAX_SHOWN_VALUES
    ]
