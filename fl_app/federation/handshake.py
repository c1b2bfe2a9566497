"""The opening exchange: who is there, with which data, and the encoding that all agree on.

One query to every node before the first round. A node answers with its partition, its row counts,
its columns, its classes and the moments of its columns. What it tells of its rows it tells of all
of them, for training and for ``eval/`` alike, so that nothing depends on the run's seed: from
moments of training rows that another seed draws each time, its rows could be solved for. A node
with fewer than ``min_rows`` rows answers with its counts and columns only, as a mean of one row is
that row, and a class or a level goes by name only where ``min_level_rows`` rows of the node have
it. From the answers the server makes one :class:`Roster` and one
:class:`~fl_app.data.encoding.Encoding`.

Nodes that may have rows of classes which nobody named are asked once more, with that encoding: how
many rows are left to them. One without training rows sits out.

Nothing that a node says is believed: it is held against what else the node says and against
bounds, and what cannot be costs that node, and no other, the run.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_app import wire
from fl_app.aggregation import Moments, merge_moments, moments
from fl_app.data.encoding import Encoding, in_company, labels_of, scaler
from fl_app.data.partition import Partition, public_names
from fl_app.errors import FederationError
from fl_app.federation.roster import Node, Roster
from fl_app.held import sender
from fl_app.schema import MIN_LEVEL_ROWS, Config, TabularConfig, min_level_rows_of, to_json

__all__ = ["Description", "describe", "describe_left", "shake_hands"]

log = logging.getLogger("fl_app")

MAX_NAMES = 1000
"""Classes, and levels of one column, that a node may name: each is a row or column of a model."""
MAX_TEXT = 1000
"""Characters of a name."""
MAX_ANSWER = 2**24
"""Characters of a node's answer: more than 100,000 columns fit in."""
MAX_MEAN = 1e100
"""Largest mean that is plausible, and largest deviation: sums of their squares do not overflow."""
MAX_MOVE = 100.0
"""Deviations of all other rows by which one node may move a column's mean or deviation."""


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
        Those of its classes that have company; None for regression and below ``min_rows`` rows.
    label_counts : sequence of int or None
        Rows of each of these; None where ``labels`` is.
    levels : sequence of sequence of str or None
        The levels of each categorical column that have company; None below ``min_rows`` rows.
    count, mean, m2 : sequence of float or None
        Moments of its numeric columns, or None below ``min_rows`` rows.
    target_count, target_mean, target_m2 : sequence of float or None
        Moments of its targets; None for classification and below ``min_rows`` rows.

    All of these are over the rows for training and for ``eval/`` together.
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
def describe(
    rows: Partition,
    partition: int,
    num_partitions: int,
    min_rows: int,
    min_level_rows: int = MIN_LEVEL_ROWS,
) -> Description:
    """Describe a node's rows.

    Parameters
    ----------
    rows : Partition
        Its data.
    partition, num_partitions : int
        As the node's configuration says.
    min_rows : int
        Rows below which neither moments nor names are told; a column with fewer values than that
        counts as empty.
    min_level_rows : int, default 5
        Rows below which a class or a level is neither named nor counted.
    """
    table = rows.rows
    values: dict[str, Any] = {}
    if len(table) >= min_rows:
        values |= _parts("", _with_values(moments(table.numeric), min_rows))
        columns = (column.tolist() for column in table.categorical.T)
        values["levels"] = [list(in_company(column, min_level_rows)) for column in columns]
        if table.task == "regression":
            values |= _parts("target_", _with_values(moments(table.target), min_rows))
        else:
            counts = in_company(table.target.tolist(), min_level_rows)
            values |= {"labels": list(counts), "label_counts": list(counts.values())}
    return Description(
        partition=partition,
        num_partitions=num_partitions,
        num_examples=len(rows.train),
        num_validation=len(rows.validation),
        task=table.task,
        columns=table.columns,
        numeric=table.numeric_names,
        categorical=table.categorical_names,
        targets=table.target_names,
        code=wire.code_digest(),
        **values,
    )


def describe_left(
    rows: Partition, partition: int, num_partitions: int, encoding: Encoding
) -> Description:
    """Describe how many of a node's rows are of a class of the run, and nothing else of them."""
    left = Partition(*(t.take(encoding.known(t)) for t in (rows.train, rows.validation)))
    return describe(left, partition, num_partitions, sys.maxsize)


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
        If it is none or contradicts itself, with the reason.
    """
    if message.has_error():
        raise ValueError(f"it failed: {' '.join((message.error.reason or '').split())}")
    try:
        text = str(message.content.config_records[wire.CONFIG]["description"])
        if len(text) > MAX_ANSWER:
            raise ValueError(f"{len(text)} characters, at most {MAX_ANSWER}")
        description = Description(**json.loads(text))
    # An answer of anybody's making raises anything.
    except Exception as error:
        raise ValueError(f"its answer cannot be read: {error!r:.200}") from None
    for name, (is_valid, expected) in _FORM.items():
        if not is_valid(getattr(description, name)):
            raise _wrong(description, name, expected)
    _check_columns(description)
    _check_names(description)
    _check_moments(description, "", len(description.numeric))
    _check_moments(description, "target_", len(description.targets))
    return description


def _wrong(description: Description, name: str, expected: str) -> ValueError:
    return ValueError(f"{name}={str(getattr(description, name))[:80]}: expected {expected}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def _is_text(value: Any) -> bool:
    # Half of a surrogate pair is a text to JSON, and cannot be written anywhere.
    return isinstance(value, str) and len(value) <= MAX_TEXT and not _SURROGATES.search(value)


_SURROGATES = re.compile("[\ud800-\udfff]")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len({*value}) == len(value)


def _are_levels(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(_are_texts(v) and len(v) <= MAX_NAMES for v in value)
    )


def _are_labels(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and len(value) <= MAX_NAMES
        and all(_is_text(v) or _is_whole(v) for v in value)
        and len({*value}) == len(value)
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


_FORM: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("partition", "num_partitions", "num_examples", "num_validation"),
        (_is_count, "an integer from 0"),
    ),
    **dict.fromkeys(("task", "code"), (_is_text, "a text")),
    **dict.fromkeys(("columns", "numeric", "categorical", "targets"), (_are_texts, "texts")),
    "labels": (
        _are_labels,
        f"up to {MAX_NAMES} different texts or integers of 64 bits",
    ),
    "label_counts": (
        lambda value: value is None or (isinstance(value, list) and all(map(_is_count, value))),
        "integers from 0",
    ),
    "levels": (_are_levels, f"lists of up to {MAX_NAMES} different texts"),
}
"""The fields of a node's answer: nothing that it says is believed to have the right type."""


def _check_columns(d: Description) -> None:
    """Raise ValueError unless each column is either numeric or categorical."""
    if sorted(d.columns) != sorted([*d.numeric, *d.categorical]):
        raise _wrong(d, "columns", "the numeric and the categorical ones")


def _check_names(d: Description) -> None:
    """Raise ValueError unless classes and levels are those of as many rows as there are."""
    rows = d.num_examples + d.num_validation
    if (d.labels is None) != (d.label_counts is None):
        raise _wrong(d, "label_counts", "one for each of labels, or null for both")
    if d.labels is not None and d.label_counts is not None:
        if d.task == "regression":
            raise _wrong(d, "labels", "null, as task=regression")
        if len(d.labels) != len(d.label_counts):
            raise _wrong(d, "label_counts", f"{len(d.labels)} integers")
        if 0 in d.label_counts or sum(d.label_counts) > rows:
            raise _wrong(d, "label_counts", f"integers from 1 with a sum of at most {rows} rows")
    if d.levels is not None:
        if len(d.levels) != len(d.categorical):
            raise _wrong(d, "levels", f"{len(d.categorical)} lists, one a categorical column")
        if any(len(levels) > rows for levels in d.levels):
            raise _wrong(d, "levels", f"at most {rows} of a column, as many as rows")


def _check_moments(d: Description, prefix: str, width: int) -> None:
    """Raise ValueError unless moments are all absent, or those of some rows of this node."""
    parts = {key: getattr(d, f"{prefix}{key}") for key in ("count", "mean", "m2")}
    if all(part is None for part in parts.values()):
        return
    for key, part in parts.items():
        if not (isinstance(part, list) and len(part) == width and all(map(_is_number, part))):
            raise _wrong(d, f"{prefix}{key}", f"{width} finite numbers")
    rows = d.num_examples + d.num_validation
    for count, mean, m2 in zip(*parts.values(), strict=True):
        if not (0 <= count <= rows and count == int(count)):
            raise _wrong(d, f"{prefix}count", f"integers from 0 to {rows} rows")
        if abs(mean) > (MAX_MEAN if count else 0):
            raise _wrong(d, f"{prefix}mean", f"numbers up to {MAX_MEAN:g}, 0 of no values")
        if not 0 <= m2 <= (count * MAX_MEAN**2 if count > 1 else 0):
            allowed = f"numbers from 0 to {MAX_MEAN**2:g} a row, 0 of fewer than 2 values"
            raise _wrong(d, f"{prefix}m2", allowed)


# ---------------------------------------------------------------------------- the server's side
def shake_hands(
    grid: Grid, node_ids: Iterable[int], config: Config, timeout: float
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
    timeout : float
        Seconds to wait for the answers.

    Returns
    -------
    (Roster, Encoding)

    Raises
    ------
    FederationError
        If fewer than ``min_replies`` nodes agree, or they told too little.
    """
    asked, text = sorted(node_ids), to_json(config)
    out: dict[str, str] = {}
    agreed = _agree(_ask(grid, asked, wire.run_record(text), timeout, out), out)
    for prefix in ("", "target_"):
        agreed = _in_line(agreed, prefix, out)
    _require(agreed, len(asked), config, out)
    encoding = _encoding([d for _, d in agreed], config)
    doubtful = {node: d for node, d in agreed if _may_lose_rows(d, encoding, config)}
    if doubtful:
        answers = _ask(grid, doubtful, wire.run_record(text, encoding), timeout, out)
        agreed = _with_rows(agreed, doubtful, dict(answers), out)
        _require(agreed, len(asked), config, out)
    nodes = tuple(_node(node, d, doubtful.get(node, d)) for node, d in agreed)
    return _roster(nodes, [d for _, d in agreed], encoding), encoding


def _node(node_id: int, d: Description, first: Description) -> Node:
    """Return a node of the run, by what is left of the rows that it told of first."""
    left_out = first.num_examples - d.num_examples
    left_out_validation = first.num_validation - d.num_validation
    rows = d.num_examples, d.num_validation
    return Node(node_id, d.partition, *rows, left_out, left_out_validation)


Answers = list[tuple[int, Description]]


def _ask(
    grid: Grid, node_ids: Iterable[int], record: ConfigRecord, timeout: float, out: dict[str, str]
) -> Answers:
    """Return the answers that can be read, by node; the others sit out."""
    content = RecordDict({wire.CONFIG: record})
    messages = [Message(content, node, wire.DESCRIBE) for node in node_ids]
    sent = [m.metadata for m in messages]
    silent = {m.dst_node_id for m in sent}
    answers: Answers = []
    for message in grid.send_and_receive(messages, timeout=timeout):
        node = sender(message, sent)
        if node not in silent:
            _sit_out(out, f"node {node}", "it was not asked, or answers twice")
            continue
        silent.remove(node)
        try:
            answers.append((node, from_message(message)))
        except ValueError as error:
            _sit_out(out, f"node {node}", str(error))
    for node in sorted(silent):
        _sit_out(out, f"node {node}", f"no answer within {timeout:g} s")
    return answers


def _sit_out(out: dict[str, str], who: str, why: str) -> None:
    out[who] = why
    log.warning("%s sits out: %s", who, why)


def _require(agreed: Answers, asked: int, config: Config, out: Mapping[str, str]) -> None:
    if len(agreed) < config.min_replies:
        reasons = "; ".join(f"{who}: {why}" for who, why in list(out.items())[:3])
        raise FederationError(
            f"handshake: {len(agreed)} of {asked} nodes can take part, "
            f"min_replies={config.min_replies}. {reasons}"
        )


def _may_lose_rows(d: Description, encoding: Encoding, config: Config) -> bool:
    """Return whether a node may have rows of a class that is none of the run's."""
    if not isinstance(config.dataset, TabularConfig) or encoding.task == "regression":
        return False
    return sum(_counts(d, encoding).values()) < d.num_examples + d.num_validation


def _counts(d: Description, encoding: Encoding) -> dict[Any, int]:
    """Return the rows that a node told of by class of the run."""
    told = zip(d.labels or (), d.label_counts or (), strict=True)
    return {label: count for label, count in told if label in encoding.labels}


def _with_rows(
    agreed: Answers,
    doubtful: Mapping[int, Description],
    answers: Mapping[int, Description],
    out: dict[str, str],
) -> Answers:
    """Keep the nodes that have training rows left, by their second answers."""
    kept: Answers = []
    for node, d in agreed:
        left = d if node not in doubtful else answers.get(node)
        if left is None:
            continue
        wrong = [
            f"{name}={getattr(left, name)}: expected {word} {getattr(d, name)}, as it said first"
            for name, word, fits in (
                ("partition", "the", left.partition == d.partition),
                ("num_examples", "at most", left.num_examples <= d.num_examples),
                ("num_validation", "at most", left.num_validation <= d.num_validation),
            )
            if not fits
        ]
        if wrong:
            _sit_out(out, _who(d), wrong[0])
        elif not left.num_examples:
            classes = "none of its training rows is of a class of the run: see dataset.classes"
            _sit_out(out, _who(d), f"num-examples=0 of {d.num_examples}: {classes}")
        else:
            rows = left.num_examples, left.num_validation
            kept.append((node, replace(d, num_examples=rows[0], num_validation=rows[1])))
    return kept


def _roster(nodes: tuple[Node, ...], descriptions: list[Description], encoding: Encoding) -> Roster:
    """Add what the nodes told of their targets together."""
    if encoding.task == "classification":
        counts = dict.fromkeys(encoding.labels, 0)
        for d in descriptions:
            for label, count in _counts(d, encoding).items():
                counts[label] += count
        total = sum(counts.values())
        shares = (n / total if total else 1 / len(counts) for n in counts.values())
        return Roster(nodes, tuple(shares))
    told = [_moments(vars(d), "target_") for d in descriptions if d.target_mean is not None]
    if not told:
        return Roster(nodes)
    merged = merge_moments(told)
    return Roster(nodes, (), tuple(merged.mean.tolist()), tuple(merged.variance.tolist()))


_MUST_AGREE = ("task", "columns", "numeric", "categorical", "targets")


def _agree(answers: Answers, out: dict[str, str]) -> Answers:
    """Keep the nodes that agree with this code and with the most common columns."""
    answers = sorted(answers, key=lambda a: (a[1].partition, a[0]))
    same_code, mine = [], wire.code_digest()
    for node, d in answers:
        if d.code != mine:
            other = f"it runs other code of fl_app than the server ({mine[:12]})"
            _sit_out(out, _who(d), f"code={d.code[:12]}: {other}")
        elif d.num_examples < 1:
            _sit_out(out, _who(d), f"num-examples={d.num_examples}: it has no training rows")
        else:
            same_code.append((node, d))
    for name in _MUST_AGREE:
        value_of, wrong = partial(_value, name=name), partial(_other_value, name=name)
        same_code = _majority(same_code, value_of, wrong, out)
    same_code = _majority(same_code, _kind, _other_kind, out)
    kept: dict[int, tuple[int, Description]] = {}
    for node, d in same_code:
        if d.partition in kept:
            taken = f"partition-id={d.partition}: another node has this partition"
            _sit_out(out, f"node {node}", taken)
        else:
            kept[d.partition] = (node, d)
    return list(kept.values())


def _majority(
    answers: Answers,
    value_of: Callable[[Description], str | None],
    wrong: Callable[[str, str], str],
    out: dict[str, str],
) -> Answers:
    """Keep the nodes with the most common value, and those that tell of none."""
    values = [value_of(d) for _, d in answers]
    # Counter keeps first-seen order among equals: the lowest partition decides a tie.
    counts = Counter(value for value in values if value is not None)
    common = counts.most_common(1)[0][0] if counts else None
    kept: Answers = []
    for (node, d), value in zip(answers, values, strict=True):
        if value is None or common is None or value == common:
            kept.append((node, d))
        else:
            _sit_out(out, _who(d), wrong(value, common))
    return kept


def _value(d: Description, name: str) -> str:
    return json.dumps(getattr(d, name))


def _other_value(value: str, common: str, name: str) -> str:
    return f"{name}={value[:80]}: most nodes have {common[:80]}"


def _kind(d: Description) -> str | None:
    """Return what a node's classes are: 1 is not "1"."""
    if not d.labels:
        return None
    return "texts" if any(isinstance(label, str) for label in d.labels) else "numbers"


def _other_kind(kind: str, common: str) -> str:
    return (
        f"its classes are {kind}: most nodes have {common}; one text among a file's labels makes "
        "texts of all, unless dataset.classes names numbers"
    )


def _in_line(answers: Answers, prefix: str, out: dict[str, str]) -> Answers:
    """Keep the nodes whose moments do not move the federation's out of all proportion.

    One after the other, the one that moves a column's mean or deviation most sits out, if that is
    more than :data:`MAX_MOVE` deviations of all others' rows. Of two nodes nobody knows which is
    wrong: then both are named.
    """
    while True:
        told = [(node, d) for node, d in answers if getattr(d, f"{prefix}mean") is not None]
        moves = _moves([_moments(vars(d), prefix) for _, d in told])
        if not moves.size or moves.max() <= MAX_MOVE:
            return answers
        place, column = np.unravel_index(int(moves.argmax()), moves.shape)
        node, d = told[int(place)]
        name = (d.targets if prefix else d.numeric)[int(column)]
        what = f"moments of {name}: they move the federation's by {moves.max():.3g} deviations"
        if len(told) == 2:
            log.warning("%s and %s: %s of the other's", *(_who(d) for _, d in told), what)
            return answers
        _sit_out(out, _who(d), f"{what} of all others' rows, expected at most {MAX_MOVE:g}")
        answers = [(other, d) for other, d in answers if other != node]


def _moves(parts: list[Moments]) -> NDArray[np.float64]:
    """Return by how much each of K parts moves the merged mean and deviation of d columns, (K, d).

    In deviations of all others' rows; 0 where these have none.
    """
    if len(parts) < 2:
        return np.zeros((0, 0))
    before, after = (list(accumulate(way, _merged)) for way in (parts[:-1], parts[:0:-1]))
    between = [_merged(*pair) for pair in zip(before[:-1], after[-2::-1], strict=True)]
    whole, moves = _merged(before[-1], parts[-1]), []
    for others in (after[-1], *between, before[-1]):
        deviation = np.sqrt(others.variance)
        spread = deviation > 10 * np.finfo(np.float64).eps * np.abs(others.mean)
        farther = np.maximum(np.abs(whole.mean - others.mean), np.sqrt(whole.variance))
        with np.errstate(over="ignore"):
            moves.append(np.where(spread, farther / np.where(spread, deviation, 1.0), 0.0))
    return np.array(moves)


def _merged(one: Moments, other: Moments) -> Moments:
    return merge_moments([one, other])


def _who(d: Description) -> str:
    return f"partition {d.partition}"


def _encoding(descriptions: list[Description], config: Config) -> Encoding:
    first = descriptions[0]
    told = [d for d in descriptions if _has_moments(d)]
    spread = config.dataset.standardize
    if spread and not told:
        raise FederationError(
            f"handshake: no node has min_rows={config.min_rows} rows, so there are no moments to "
            "standardize with; set dataset.standardize=false or a smaller min_rows"
        )
    features = merge_moments([_moments(vars(d)) for d in told]) if told else None
    mean, scale = scaler(features if spread else None, len(first.numeric))
    fill = (0.0,) * len(first.numeric) if features is None else tuple(features.mean.tolist())
    target_mean, target_scale = _target_scaler(first, told, spread)
    labels, levels = _names(descriptions, config)
    return Encoding(
        task=first.task,  # type: ignore[arg-type]
        columns=tuple(first.columns),
        numeric=tuple(first.numeric),
        mean=mean,
        scale=scale,
        fill=fill,
        levels=levels,
        labels=labels,
        targets=tuple(first.targets),
        target_mean=target_mean,
        target_scale=target_scale,
    )


def _names(
    descriptions: list[Description], config: Config
) -> tuple[tuple[Any, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """Return the classes, and each categorical column with its levels: the public or the told."""
    first = descriptions[0]
    if first.task == "regression" and not first.categorical:
        return (), ()
    labels, public = public_names(config)
    named = isinstance(config.dataset, TabularConfig)
    levels = []
    for position, column in enumerate(first.categorical):
        told = tuple(sorted({v for d in descriptions if d.levels for v in d.levels[position]}))
        names = public.get(column, told)
        if named:
            _warn_of_absent(f"dataset.levels of {column}", names, told)
        levels.append((column, names))
    if first.task == "regression":
        return (), tuple(levels)
    classes = tuple(labels_of(v for d in descriptions for v in d.labels or ()))
    if named:
        _warn_of_absent("dataset.classes", labels, classes)
    labels = labels or classes
    if len(labels) < 2:
        raise FederationError(
            f"handshake: the nodes told of {len(labels)} classes, need 2: a node with fewer than "
            f"min_rows={config.min_rows} rows tells none, nor one of fewer than "
            f"{min_level_rows_of(config.dataset)} of its rows; dataset.classes names them for all"
        )
    return labels, tuple(levels)


def _warn_of_absent(option: str, names: Sequence[Any], told: Sequence[Any]) -> None:
    """Warn of names that the config gives and no node has: they may be mistyped."""
    absent = [str(name) for name in names if name not in told]
    if absent and told:
        have = ", ".join(map(str, told[:20]))
        log.warning("%s: no node tells of %s; told are %s", option, ", ".join(absent[:20]), have)


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
