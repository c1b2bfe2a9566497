"""What a node says of its data, in the form that is believed."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fl_app.aggregation import Moments, moments
from fl_app.config.dataset_options import MAX_AUTO_LEVELS, MIN_LEVEL_ROWS
from fl_app.data.client_data import Partition
from fl_app.data.encoding import Encoding, in_company
from fl_app.data.roles import mostly_other
from fl_app.data.tabular import Found
from fl_app.federation import protocol

__all__ = ["Description", "describe", "describe_left", "draft"]

MAX_NAMES = 1000
"""Classes, and levels of one column, that a node may name: each is a row or column of a model."""
MAX_TEXT = 1000
"""Characters of a name."""
MAX_ANSWER = 2**24
"""Characters of a node's answer: more than 100,000 columns fit in."""
MAX_MEAN = 1e100
"""Largest mean that is plausible, and largest deviation: sums of their squares do not overflow."""


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
    file_check : str or None
        The first 16 bits of its own file's SHA-256, in hexadecimal: too few to guess rows by,
        enough to see that a run which goes on has another file. None where rows are dealt, and
        below ``min_rows`` rows.

    All of these but the last are over the rows for training and for ``eval/`` together.
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
    file_check: str | None = None


def describe(
    rows: Partition,
    partition: int,
    num_partitions: int,
    min_rows: int,
    min_level_rows: int = MIN_LEVEL_ROWS,
    path: str | None = None,
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
    path : str, optional
        The node's own file, where it has one.
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
        if path is not None:
            with open(path, "rb") as file:
                values["file_check"] = hashlib.file_digest(file, "sha256").hexdigest()[:4]
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
        code=protocol.code_digest(),
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
    description = describe(left, partition, num_partitions, sys.maxsize)
    return replace(description, mostly_other=others if len(table) >= min_rows else None)


def draft(
    columns: Found,
    rows: tuple[int, int],
    partition: int,
    num_partitions: int,
    min_rows: int,
    names_levels: bool,
) -> Description:
    """Describe what a node's own file has to offer.

    Parameters
    ----------
    columns : Found
        What it has.
    rows : (int, int)
        Its rows for training and for ``eval/``.
    partition, num_partitions, min_rows : int
        As for :func:`describe`.
    names_levels : bool
        Whether levels decide on columns; of more levels than are taken no further ones are named.
    """
    roles = columns.roles
    tells = names_levels and columns.rows >= min_rows
    return replace(
        foreign(partition, num_partitions),
        num_examples=rows[0],
        num_validation=rows[1],
        task=roles.task,
        columns=roles.features,
        numeric=[name for name in roles.features if name not in roles.categorical],
        categorical=roles.categorical,
        targets=roles.targets,
        levels=[levels[: MAX_AUTO_LEVELS + 1] for levels in columns.levels] if tells else None,
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
        code=protocol.code_digest(),
    )


def _with_values(part: Moments, min_rows: int) -> Moments:
    """Empty the columns with too few values: the mean of one value is that value."""
    enough = part.count >= min_rows
    return Moments(*(np.where(enough, of, 0.0) for of in (part.count, part.mean, part.m2)))


def _parts(prefix: str, part: Moments) -> dict[str, list[float]]:
    return {f"{prefix}{key}": getattr(part, key).tolist() for key in ("count", "mean", "m2")}


def to_record(description: Description) -> RecordDict:
    """Return the content of a node's answer."""
    return RecordDict(
        {protocol.CONFIG: ConfigRecord({"description": json.dumps(vars(description))})}
    )


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
        text = str(message.content.config_records[protocol.CONFIG]["description"])
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


def is_text(value: Any) -> bool:
    # Half of a surrogate pair is a text to JSON, and cannot be written anywhere.
    return isinstance(value, str) and len(value) <= MAX_TEXT and not _SURROGATES.search(value)


_SURROGATES = re.compile("[\ud800-\udfff]")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value)) and len({*value}) == len(value)


def _are_levels(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(_are_texts(v) and len(v) <= MAX_NAMES for v in value)
    )


def _are_labels(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and len(value) <= MAX_NAMES
        and all(is_text(v) or _is_whole(v) for v in value)
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
    **dict.fromkeys(("task", "code"), (is_text, "a text")),
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
    "file_check": (
        lambda v: v is None or (is_text(v) and re.fullmatch("[0-9a-f]{4}", v) is not None),
        "4 hexadecimal digits",
    ),
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
