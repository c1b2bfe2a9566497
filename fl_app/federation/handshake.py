"""The opening exchange: who is there, with which data, and the encoding that all agree on.

One query to every node before the first round. A node answers with its partition, its row counts,
its columns, its classes and the moments of its columns; a node with fewer than ``min_rows`` rows
answers with its counts and columns only, as a mean of one row is that row. From the answers the
server makes one :class:`Roster` and one :class:`~fl_app.data.encoding.Encoding`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_app import wire
from fl_app.aggregation import Moments, merge_moments, moments
from fl_app.data.encoding import Encoding, labels_of, scaler
from fl_app.data.partition import Partition
from fl_app.data.table import Table
from fl_app.errors import FederationError
from fl_app.federation.replies import sender
from fl_app.federation.roster import Node, Roster
from fl_app.schema import Config, to_json

__all__ = ["Description", "describe", "shake_hands"]

log = logging.getLogger("fl_app")


@dataclass(frozen=True)
class Description:
    """What a node says of itself.

    Parameters
    ----------
    partition, num_partitions : int
        Its partition and how many there are in its federation (0: it does not know).
    num_examples, num_validation : int
        Its rows for training and for ``eval/``.
    task : str
        Its task.
    columns, numeric, categorical, targets : sequence of str
        Its columns: all features, the numeric and the categorical ones, the target's.
    code : str
        Digest of the code it runs.
    labels : sequence or None
        Its classes; None for regression and below ``min_rows`` rows.
    label_counts : sequence of int or None
        Training rows of each of its classes; None where ``labels`` is.
    levels : sequence of sequence of str or None
        The levels of each categorical column; None below ``min_rows`` rows.
    count, mean, m2 : sequence of float or None
        Moments of its numeric columns, or None below ``min_rows`` rows.
    target_count, target_mean, target_m2 : sequence of float or None
        Moments of its targets; None for classification and below ``min_rows`` rows.
    """

    partition: int
    num_partitions: int
    num_examples: int
    num_validation: int
    task: str
    columns: Sequence[str]
    numeric: Sequence[str]
    categorical: Sequence[str]
    targets: Sequence[str]
    code: str
    labels: Sequence[Any] | None = None
    label_counts: Sequence[int] | None = None
    levels: Sequence[Sequence[str]] | None = None
    count: Sequence[float] | None = None
    mean: Sequence[float] | None = None
    m2: Sequence[float] | None = None
    target_count: Sequence[float] | None = None
    target_mean: Sequence[float] | None = None
    target_m2: Sequence[float] | None = None


# ---------------------------------------------------------------------------- the node's side
def describe(rows: Partition, partition: int, num_partitions: int, min_rows: int) -> Description:
    """Describe a node's rows.

    Parameters
    ----------
    rows : Partition
        Its data. Moments and classes come from the training rows alone.
    partition, num_partitions : int
        As the node's configuration says.
    min_rows : int
        Training rows below which neither moments nor classes are told; a column with fewer values
        than that counts as empty.
    """
    table = rows.train
    values: dict[str, Any] = {}
    if len(table) >= min_rows:
        values |= _parts("", _with_values(moments(table.numeric), min_rows))
        values["levels"] = [sorted({v for v in c if v is not None}) for c in table.categorical.T]
        if table.task == "regression":
            values |= _parts("target_", _with_values(moments(table.target), min_rows))
        else:
            labels = labels_of(table.target)
            counts = Counter(table.target.tolist())
            values |= {"labels": labels, "label_counts": [counts[label] for label in labels]}
    return Description(
        partition=partition,
        num_partitions=num_partitions,
        num_examples=len(table),
        num_validation=len(rows.validation),
        task=table.task,
        columns=table.columns,
        numeric=table.numeric_names,
        categorical=table.categorical_names,
        targets=table.target_names,
        code=wire.code_digest(),
        **values,
    )


def foreign(partition: int, num_partitions: int) -> Description:
    """Describe a node whose code is not the server's: its name and its code."""
    return Description(
        partition=partition,
        num_partitions=num_partitions,
        num_examples=0,
        num_validation=0,
        task="",
        columns=(),
        numeric=(),
        categorical=(),
        targets=(),
        code=wire.code_digest(),
    )


def _with_values(part: Moments, min_rows: int) -> Moments:
    """Empty the columns with too few values: the mean of one value is that value."""
    enough = part.count >= min_rows
    return Moments(*(np.where(enough, of, 0.0) for of in (part.count, part.mean, part.m2)))


def _parts(prefix: str, part: Moments) -> dict[str, list[float]]:
    return {f"{prefix}{key}": getattr(part, key).tolist() for key in ("count", "mean", "m2")}


def to_record(description: Description) -> RecordDict:
    """Return the content of a node's answer."""
    return RecordDict({wire.CONFIG: ConfigRecord({"description": json.dumps(vars(description))})})


def from_message(message: Message) -> Description:
    """Read a node's answer.

    Raises
    ------
    ValueError
        If it is none, with the reason.
    """
    if message.has_error():
        raise ValueError(f"it failed: {' '.join((message.error.reason or '').split())}")
    try:
        data = json.loads(str(message.content.config_records[wire.CONFIG]["description"]))
        description = Description(**data)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its answer cannot be read: {error!r}") from None
    for name, (is_valid, expected) in _FORM.items():
        value = getattr(description, name)
        if not is_valid(value):
            raise ValueError(f"{name}={str(value)[:80]}: expected {expected}")
    if len(description.labels or ()) != len(description.label_counts or ()):
        count = len(description.labels or ())
        raise ValueError(f"label_counts={description.label_counts}: expected {count} integers")
    _check_moments(description, "", len(description.numeric))
    _check_moments(description, "target_", len(description.targets))
    return description


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_labels(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(isinstance(v, str) or _is_number(v) for v in value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


_FORM: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("partition", "num_partitions", "num_examples", "num_validation"),
        (_is_count, "an integer from 0"),
    ),
    **dict.fromkeys(("task", "code"), (lambda value: isinstance(value, str), "a text")),
    **dict.fromkeys(("columns", "numeric", "categorical", "targets"), (_is_texts, "texts")),
    "labels": (_is_labels, "texts or finite numbers"),
    "label_counts": (
        lambda value: value is None or (isinstance(value, list) and all(map(_is_count, value))),
        "integers from 0",
    ),
}
"""The fields of a node's answer: nothing that it says is believed to have the right type."""


def _check_moments(description: Description, prefix: str, width: int) -> None:
    """Raise ValueError unless moments are all absent, or of one width, finite and possible."""
    parts = {key: getattr(description, f"{prefix}{key}") for key in ("count", "mean", "m2")}
    if all(part is None for part in parts.values()):
        return
    for key, part in parts.items():
        if not (isinstance(part, list) and len(part) == width and all(map(_is_number, part))):
            raise ValueError(f"{prefix}{key}={str(part)[:80]}: expected {width} finite numbers")
        if key != "mean" and any(value < 0 for value in part):
            raise ValueError(f"{prefix}{key}={str(part)[:80]}: expected no negative numbers")


# ---------------------------------------------------------------------------- the server's side
def shake_hands(
    grid: Grid, node_ids: Iterable[int], config: Config, test: Table | None, timeout: float
) -> tuple[Roster, Encoding]:
    """Ask every node, and agree on who takes part and on one encoding.

    Parameters
    ----------
    grid : Grid
        Where the nodes are.
    node_ids : iterable of int
        Whom to ask.
    config : Config
        The run's config with the true number of clients.
    test : Table or None
        The server's test rows; their labels belong to the label set too.
    timeout : float
        Seconds to wait for the answers.

    Returns
    -------
    (Roster, Encoding)

    Raises
    ------
    FederationError
        If fewer than ``min_replies`` nodes agree.
    """
    content = RecordDict({wire.CONFIG: wire.run_record(to_json(config))})
    messages = [Message(content, node, wire.DESCRIBE) for node in sorted(node_ids)]
    answers: list[tuple[int, Description]] = []
    out: dict[str, str] = {}
    asked = {m.metadata.dst_node_id for m in messages}
    for message in grid.send_and_receive(messages, timeout=timeout):
        node = sender(message, messages)
        try:
            if node not in asked:
                raise ValueError("it was not asked")
            answers.append((node, from_message(message)))
        except ValueError as error:
            out[f"node {node}"] = str(error)
    for node in sorted(asked - {node for node, _ in answers}):
        out.setdefault(f"node {node}", f"no answer within {timeout:g} s")
    agreed = _agree(answers, out)
    for who, why in out.items():
        log.warning("%s sits out: %s", who, why)
    if len(agreed) < config.min_replies:
        reasons = "; ".join(f"{who}: {why}" for who, why in list(out.items())[:3])
        raise FederationError(
            f"handshake: {len(agreed)} of {len(messages)} nodes can take part, "
            f"min_replies={config.min_replies}. {reasons}"
        )
    nodes = tuple(Node(n, d.partition, d.num_examples, d.num_validation) for n, d in agreed)
    descriptions = [d for _, d in agreed]
    encoding = _encoding(descriptions, config, test)
    return _roster(nodes, descriptions, encoding), encoding


def _roster(nodes: tuple[Node, ...], descriptions: list[Description], encoding: Encoding) -> Roster:
    """Add what the nodes told of their targets together."""
    if encoding.task == "classification":
        counts = dict.fromkeys(encoding.labels, 0)
        for d in descriptions:
            for label, count in zip(d.labels or (), d.label_counts or (), strict=True):
                counts[label] += count
        total = sum(counts.values())
        return Roster(nodes, tuple(n / total if total else 0.0 for n in counts.values()))
    told = [_moments(vars(d), "target_") for d in descriptions if d.target_mean is not None]
    if not told:
        return Roster(nodes)
    merged = merge_moments(told)
    return Roster(nodes, (), tuple(merged.mean.tolist()), tuple(merged.variance.tolist()))


_MUST_AGREE = ("task", "columns", "numeric", "categorical", "targets")


def _agree(
    answers: list[tuple[int, Description]], out: dict[str, str]
) -> list[tuple[int, Description]]:
    """Keep the nodes that agree with this code and with the most common columns."""
    answers = sorted(answers, key=lambda a: (a[1].partition, a[0]))
    same_code, mine = [], wire.code_digest()
    for node, d in answers:
        if d.code != mine:
            out[_who(d)] = (
                f"code={d.code[:12]}: it runs other code of fl_app than the server ({mine[:12]})"
            )
        elif d.num_examples < 1:
            out[_who(d)] = f"num-examples={d.num_examples}: it has no training rows"
        else:
            same_code.append((node, d))
    for name in _MUST_AGREE:
        same_code = _majority(same_code, name, out)
    kept: dict[int, tuple[int, Description]] = {}
    for node, d in same_code:
        if d.partition in kept:
            out[f"node {node}"] = f"partition-id={d.partition}: another node has this partition"
        else:
            kept[d.partition] = (node, d)
    return list(kept.values())


def _majority(
    answers: list[tuple[int, Description]], name: str, out: dict[str, str]
) -> list[tuple[int, Description]]:
    values = [json.dumps(getattr(d, name)) for _, d in answers]
    if not values:
        return []
    # Counter keeps first-seen order among equals: the lowest partition decides a tie.
    common = Counter(values).most_common(1)[0][0]
    for (_, d), value in zip(answers, values, strict=True):
        if value != common:
            out[_who(d)] = f"{name}={value[:80]}: most nodes have {common[:80]}"
    return [a for a, value in zip(answers, values, strict=True) if value == common]


def _who(d: Description) -> str:
    return f"partition {d.partition}"


def _encoding(descriptions: list[Description], config: Config, test: Table | None) -> Encoding:
    first = descriptions[0]
    told = [d for d in descriptions if _has_moments(d)]
    if config.dataset.standardize and not told:
        raise FederationError(
            f"handshake: no node has min_rows={config.min_rows} training rows, so there are no "
            "moments to standardize with; set dataset.standardize=false or a smaller min_rows"
        )
    spread = config.dataset.standardize
    features = merge_moments([_moments(vars(d)) for d in told]) if told else None
    mean, scale = scaler(features if spread else None, len(first.numeric))
    fill = (0.0,) * len(first.numeric) if features is None else tuple(features.mean.tolist())
    target_mean, target_scale = _target_scaler(first, told, spread)
    labels: list[Any] = []
    if first.task == "classification":
        labels = [label for d in told for label in d.labels or ()]
        labels = labels_of([*labels, *(test.target.tolist() if test is not None else ())])
        if len(labels) < 2:
            raise FederationError(f"handshake: the nodes told of {len(labels)} classes, need 2")
    return Encoding(
        task=first.task,  # type: ignore[arg-type]
        columns=tuple(first.columns),
        numeric=tuple(first.numeric),
        mean=mean,
        scale=scale,
        fill=fill,
        levels=_levels(first, told),
        labels=tuple(labels),
        targets=tuple(first.targets),
        target_mean=target_mean,
        target_scale=target_scale,
    )


def _levels(first: Description, told: list[Description]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return each categorical column with all levels that a node told of, in order."""
    merged = []
    for position, column in enumerate(first.categorical):
        levels = sorted({level for d in told if d.levels for level in d.levels[position]})
        if not levels:
            raise FederationError(f"handshake: no node told a level of the column {column}")
        merged.append((column, tuple(levels)))
    return tuple(merged)


def _has_moments(d: Description) -> bool:
    return d.mean is not None and (d.task == "classification" or d.target_mean is not None)


def _target_scaler(
    first: Description, told: list[Description], spread: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if first.task == "classification":
        return (), ()
    merged = merge_moments([_moments(vars(d), "target_") for d in told]) if spread else None
    return scaler(merged, len(first.targets))


def _moments(d: Mapping[str, Any], prefix: str = "") -> Moments:
    keys = (f"{prefix}count", f"{prefix}mean", f"{prefix}m2")
    return Moments(*(np.array(d[key], dtype=np.float64) for key in keys))
