"""The opening exchange: who is there, with which data, and the encoding that all agree on.

One query to every node before the first round. A node answers with its partition, its row counts,
its columns, its classes and the moments of its columns. Nodes with files of their own, whose
columns the config does not name, first answer with a draft: their columns, and which are numbers
and which texts. From these the server chooses the columns by name, and asks again.

What a node tells of its rows it tells of all of them, for training and for ``eval/`` alike, so that
nothing depends on the run's seed: from moments of training rows that another seed draws each time,
its rows could be solved for. A node with fewer than ``min_rows`` rows answers with its counts and
columns only, as a mean of one row is that row, and a class or a level goes by name only where
``min_level_rows`` rows of the node have it. From the answers the server makes one :class:`Roster`
and one :class:`~fl_app.data.encoding.Encoding`.

Nodes that may have rows of classes which nobody named, and all where columns of texts become
categorical by themselves, are asked once more, with that encoding: how many rows are left to them,
and of which columns more than a tenth of the texts would be OTHER. A node without training rows
sits out, and such a column is left out.

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
from itertools import accumulate
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_app import wire
from fl_app.aggregation import Moments, merge_moments, moments
from fl_app.config.options import MAX_AUTO_LEVELS, MIN_LEVEL_ROWS, Levels, TabularConfig
from fl_app.config.schema import Config, min_level_rows_of
from fl_app.config.serialization import to_json
from fl_app.data.catalogue import spelling_of, undecided
from fl_app.data.client_data import Partition, public_names
from fl_app.data.columns import alike, cell_text
from fl_app.data.encoding import Encoding, in_company, one_kind, scaler, some
from fl_app.data.tabular import Found, bracket, mostly_other, told_alike
from fl_app.errors import FederationError
from fl_app.federation.roster import Node, Roster
from fl_app.grid.messages import sender

__all__ = ["Description", "describe", "describe_left", "draft", "shake_hands"]

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
    is_draft : bool
        Whether the nodes have to agree on columns before it can say more.
    mostly_other : sequence of str or None
        In a second answer the categorical columns of which more than a tenth of its texts would be
        OTHER; None below ``min_rows`` rows.

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
    is_draft: bool = False
    mostly_other: Sequence[str] | None = None


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
    rows: Partition,
    partition: int,
    num_partitions: int,
    encoding: Encoding,
    min_rows: int = sys.maxsize,
) -> Description:
    """Describe how many of a node's rows are of a class of the run.

    And, with at least ``min_rows`` of them, of which columns too many texts are of no level.
    """
    left = Partition(*(t.take(encoding.known(t)) for t in (rows.train, rows.validation)))
    table = rows.rows
    columns = dict(zip(table.categorical_names, table.categorical.T, strict=True))
    others = [name for name, levels in encoding.levels if mostly_other(columns[name], levels)]
    told = describe(left, partition, num_partitions, sys.maxsize)
    return replace(told, mostly_other=others if len(table) >= min_rows else None)


def draft(
    found: Found,
    rows: tuple[int, int],
    partition: int,
    num_partitions: int,
    min_rows: int,
    names_levels: bool,
) -> Description:
    """Describe what a node's own file has to offer.

    Parameters
    ----------
    found : Found
        What it has.
    rows : (int, int)
        Its rows for training and for ``eval/``.
    partition, num_partitions, min_rows : int
        As for :func:`describe`.
    names_levels : bool
        Whether levels decide on columns; of more levels than are taken no further ones are named.
    """
    roles = found.roles
    tells = names_levels and found.rows >= min_rows
    return replace(
        foreign(partition, num_partitions),
        num_examples=rows[0],
        num_validation=rows[1],
        task=roles.task,
        columns=roles.features,
        numeric=[name for name in roles.features if name not in roles.categorical],
        categorical=roles.categorical,
        targets=roles.targets,
        levels=[levels[: MAX_AUTO_LEVELS + 1] for levels in found.levels] if tells else None,
        is_draft=True,
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
    "is_draft": (lambda value: isinstance(value, bool), "true or false"),
    "mostly_other": (lambda value: value is None or _are_texts(value), "texts"),
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
    asked, out = sorted(node_ids), dict[str, str]()
    answers = _ask(grid, asked, wire.run_record(to_json(config)), timeout, out)
    answers = _same_code(answers, out)
    auto = _is_auto(config)
    if undecided(config.dataset):
        answers = _majority(answers, "is_draft", out)
        if answers and answers[0][1].is_draft:
            config, drafts = _with_columns(answers, config, out)
            record = wire.run_record(to_json(config))
            answers = _same_code(_ask(grid, [n for n, _ in drafts], record, timeout, out), out)
    agreed = _agree([(node, d) for node, d in answers if not _still_draft(d, out)], out)
    for prefix in ("", "target_"):
        agreed = _in_line(agreed, prefix, out)
    _require(agreed, len(asked), config, out)
    encoding = _encoding([d for _, d in agreed], config)
    named = public_names(config)[1]
    own = [column for column, _ in encoding.levels if auto and column not in named]
    encoding = _left_out(encoding, _unfit(encoding, own, config))
    own = [column for column, _ in encoding.levels if column in own]
    doubtful = {node: d for node, d in agreed if own or _may_lose_rows(d, encoding, config)}
    if doubtful:
        record = wire.run_record(to_json(config), encoding)
        second = dict(_ask(grid, doubtful, record, timeout, out))
        agreed = _with_rows(agreed, doubtful, second, out)
        _require(agreed, len(asked), config, out)
        others = {name for node, _ in agreed for name in _others(second.get(node))}
        why = "more than a tenth of some node's texts are none of its levels"
        encoding = _left_out(encoding, {name: why for name in own if name in others})
    nodes = tuple(_node(node, d, doubtful.get(node, d)) for node, d in agreed)
    told = [d for _, d in agreed]
    return replace(_roster(nodes, told, encoding), config=config, names=_who_has(told)), encoding


def _is_auto(config: Config) -> bool:
    return isinstance(config.dataset, TabularConfig) and config.dataset.categorical == "auto"


def _still_draft(d: Description, out: dict[str, str]) -> bool:
    if d.is_draft:
        _sit_out(out, _who(d), "is_draft=true: expected an answer to the columns of the run")
    return d.is_draft


def _others(d: Description | None) -> Sequence[str]:
    return (d and d.mostly_other) or ()


def _unfit(encoding: Encoding, own: Sequence[str], config: Config) -> dict[str, str]:
    """Return which of a run's own choice of categorical columns have no or too many levels."""
    floor = min_level_rows_of(config.dataset)
    levels = {column: len(names) for column, names in encoding.levels if column in own}
    none = f"no level that {floor} rows of a node have"
    return {
        column: f"{number} levels, more than {MAX_AUTO_LEVELS}" if number else none
        for column, number in levels.items()
        if not 1 <= number <= MAX_AUTO_LEVELS
    }


def _left_out(encoding: Encoding, left: Mapping[str, str]) -> Encoding:
    """Return an encoding without some categorical columns, and say so."""
    if not left:
        return encoding
    reasons = some([f"{name} ({why})" for name, why in left.items()])
    columns = tuple(name for name in encoding.columns if name not in left)
    if not columns:
        raise FederationError(f"handshake: no column is left to predict from; left out: {reasons}")
    log.warning("left out as features: %s; dataset.categorical names those to take", reasons)
    levels = tuple((name, names) for name, names in encoding.levels if name not in left)
    return replace(encoding, columns=columns, levels=levels)


def _who_has(told: Sequence[Description]) -> dict[str, Any]:
    """Return by class, and by level of each column, the partitions that told of it."""
    classes: dict[str, list[int]] = {}
    levels: dict[str, dict[str, list[int]]] = {}
    for d in told:
        for label in d.labels or ():
            classes.setdefault(str(cell_text(label)), []).append(d.partition)
        for column, names in zip(d.categorical, d.levels or (), strict=False):
            for level in names:
                levels.setdefault(column, {}).setdefault(level, []).append(d.partition)
    return {"classes": classes, "levels": levels}


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
    labels = {cell_text(label): label for label in encoding.labels}
    counts: Counter[Any] = Counter()
    for label, count in zip(d.labels or (), d.label_counts or (), strict=True):
        if (known := cell_text(label)) in labels:
            counts[labels[known]] += count
    return counts


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


# ---------------------------------------------------------------------------- columns
def _with_columns(answers: Answers, config: Config, out: dict[str, str]) -> tuple[Config, Answers]:
    """Choose the columns that nodes with files of their own have in common, by name.

    A node that has fewer than half of the columns that most have sits out, under
    ``dataset.missing=mean`` one that has none of them. Of what the others have, a column stays that
    all have, under ``mean`` that half of them have or that ``dataset.features`` names.

    Returns
    -------
    (Config, Answers)
        With the columns in ``dataset.features`` and ``dataset.categorical``, and the nodes left.
    """
    dataset = config.dataset
    assert isinstance(dataset, TabularConfig)
    answers = _majority(_majority(answers, "task", out), "targets", out)
    mean = dataset.missing == "mean"
    answers = _with_most(answers, 0.0 if mean else 0.5, out)
    kinds: dict[str, dict[str, list[int]]] = {}
    for _, d in answers:
        for name in d.columns:
            kind = "texts" if name in d.categorical else "numbers"
            kinds.setdefault(name, {}).setdefault(kind, []).append(d.partition)
    texts, left = [], {}
    least = 1 if dataset.features is not None else (len(answers) + 1) // 2
    least = least if mean else len(answers)
    for name, have in kinds.items():
        found, as_texts = sum(map(len, have.values())), len(have.get("texts", ()))
        if found < least:
            left[name] = f"at {found} of {len(answers)} nodes"
        elif len(have) > 1 and 2 * as_texts <= found:
            left[name] = f"numbers at partition {have['numbers'][0]}, texts at {have['texts'][0]}"
        elif as_texts:
            texts.append(name)
    features = tuple(name for name in kinds if name not in left)
    reasons = some([f"{name} ({why})" for name, why in left.items()])
    if not features and answers:
        told = reasons or "no node has one"
        raise FederationError(f"handshake: no column is left to predict from; left out: {told}")
    if left:
        log.warning(
            "the nodes' columns differ, left out: %s%s; dataset.features names those to take, "
            "dataset.missing=mean keeps nodes that lack some",
            reasons,
            _near(kinds),
        )
    levels = {c: v for c, v in (dataset.levels or {}).items() if c in texts}
    agreed = replace(
        dataset,
        features=features,
        categorical=tuple(texts),
        levels=Levels(levels) if levels else None,
    )
    return replace(config, dataset=agreed), answers


def _with_most(answers: Answers, share: float, out: dict[str, str]) -> Answers:
    """Keep the nodes that have a share of the columns that most nodes have, and one at least."""
    counts = Counter(name for _, d in answers for name in d.columns)
    common = [name for name, count in counts.items() if 2 * count > len(answers)]
    common = common or [*answers[0][1].columns] if answers else []
    kept: Answers = []
    for node, d in answers:
        if len({*d.columns} & {*common}) >= max(1, share * len(common)):
            kept.append((node, d))
        else:
            _sit_out(out, _who(d), _difference("columns", d.columns, common))
    return kept


def _difference(field: str, own: Sequence[str], common: Sequence[str]) -> str:
    """Say by which names a node differs from most."""
    lacks = [name for name in common if name not in own]
    more = [name for name in own if name not in common]
    parts = [
        *([f"lacks {some(lacks)}"] if lacks else []),
        *([f"has {some(more)}"] if more else []),
    ]
    says = f"{field}: it {' and '.join(parts) or 'has another order'}{_near([*lacks, *more])}"
    both = [name for name in common if name in own]
    cure = f"; dataset.features={bracket(both)} is what it shares with most" if both else ""
    return says + (cure if field == "columns" and len(both) <= 20 else "")


def _near(names: Iterable[str]) -> str:
    """Say which names differ in case, blanks or leading zeros alone."""
    groups = [" and ".join(map(repr, group[:5])) for group in alike(names)]
    return f"; {some(groups)} are different names" if groups else ""


# ---------------------------------------------------------------------------- agreement
_MUST_AGREE = ("task", "columns", "numeric", "categorical", "targets")


def _same_code(answers: Answers, out: dict[str, str]) -> Answers:
    """Keep the nodes that run this code and have rows, in order of partition."""
    kept, mine = [], wire.code_digest()
    for node, d in sorted(answers, key=lambda a: (a[1].partition, a[0])):
        if d.code != mine:
            other = f"it runs other code of fl_app than the server ({mine[:12]})"
            _sit_out(out, _who(d), f"code={d.code[:12]}: {other}")
        elif d.num_examples < 1:
            _sit_out(out, _who(d), f"num-examples={d.num_examples}: it has no training rows")
        else:
            kept.append((node, d))
    return kept


def _agree(answers: Answers, out: dict[str, str]) -> Answers:
    """Keep the nodes that agree with the most common columns, one of each partition."""
    for name in _MUST_AGREE:
        answers = _majority(answers, name, out)
    kept: dict[int, tuple[int, Description]] = {}
    for node, d in answers:
        if d.partition in kept:
            taken = f"partition-id={d.partition}: another node has this partition"
            _sit_out(out, f"node {node}", taken)
        else:
            kept[d.partition] = (node, d)
    return list(kept.values())


def _majority(answers: Answers, field: str, out: dict[str, str]) -> Answers:
    """Keep the nodes with the most common value of a field."""
    values = [json.dumps(getattr(d, field)) for _, d in answers]
    if not values:
        return answers
    # Counter keeps first-seen order among equals: the lowest partition decides a tie.
    common = Counter(values).most_common(1)[0][0]
    kept: Answers = []
    for (node, d), value in zip(answers, values, strict=True):
        own, most = getattr(d, field), json.loads(common)
        if value == common:
            kept.append((node, d))
        elif isinstance(most, list):
            _sit_out(out, _who(d), _difference(field, own, most))
        else:
            _sit_out(out, _who(d), f"{field}={value[:80]}: most nodes have {common[:80]}")
    return kept


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
        spelling=spelling_of(config.dataset),
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
        for note in told_alike(column, {*names, *told}):
            log.warning("%s", note)
        if named:
            _warn_of_absent(f"dataset.levels of {column}", names, told)
        levels.append((column, names))
    if first.task == "regression":
        return (), tuple(levels)
    classes = one_kind(v for d in descriptions for v in d.labels or ())
    for note in told_alike(first.targets[0], {*map(str, (*labels, *classes))}):
        log.warning("%s", note)
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
    known = {cell_text(name) for name in told}
    absent = [str(name) for name in names if cell_text(name) not in known]
    if absent and told:
        have = some([*map(str, told)])
        log.warning("%s: no node tells of %s; told are %s", option, some(absent), have)


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
