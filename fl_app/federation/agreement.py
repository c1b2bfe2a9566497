"""Which nodes agree on columns, code and scale; the others sit out, with a warning."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.aggregation import Moments, merge_moments
from fl_app.config.dataset_options import Levels, TabularConfig
from fl_app.config.overrides import bracket
from fl_app.config.schema import Config
from fl_app.data.columns import alike
from fl_app.data.encoding import some
from fl_app.errors import FederationError, printable
from fl_app.federation import protocol
from fl_app.federation.description import Description

log = logging.getLogger("fl_app")
MAX_MOVE = 100.0
"""Deviations of all other rows by which one node may move a column's mean or deviation."""
Answers = list[tuple[int, Description]]


def sit_out(out: dict[str, str], who: str, why: str) -> None:
    """Leave a node out, and say why."""
    out[who] = why
    log.warning("%s sits out: %s", who, why)


def with_columns(answers: Answers, config: Config, out: dict[str, str]) -> tuple[Config, Answers]:
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
    answers = with_majority(with_majority(answers, "task", out), "targets", out)
    mean = dataset.missing == "mean"
    answers = _with_most(answers, 0.0 if mean else 0.5, out)
    partitions_by_kind: dict[str, dict[str, list[int]]] = {}
    for _, d in answers:
        for name in d.columns:
            kind = "texts" if name in d.categorical else "numbers"
            partitions_by_kind.setdefault(name, {}).setdefault(kind, []).append(d.partition)
    texts, left = [], {}
    least = 1 if dataset.features is not None else (len(answers) + 1) // 2
    least = least if mean else len(answers)
    for name, have in partitions_by_kind.items():
        num_nodes, as_texts = sum(map(len, have.values())), len(have.get("texts", ()))
        if num_nodes < least:
            left[name] = f"at {num_nodes} of {len(answers)} nodes"
        elif len(have) > 1 and 2 * as_texts <= num_nodes:
            left[name] = f"numbers at partition {have['numbers'][0]}, texts at {have['texts'][0]}"
        elif as_texts:
            texts.append(name)
    features = tuple(name for name in partitions_by_kind if name not in left)
    reasons = some([f"{name} ({why})" for name, why in left.items()])
    if not features and answers:
        why_left = reasons or "no node has one"
        raise FederationError(f"handshake: no column is left to predict from; left out: {why_left}")
    if left:
        log.warning(
            "the nodes' columns differ, left out: %s%s; dataset.features names those to take, "
            "dataset.missing=mean keeps nodes that lack some",
            reasons,
            _near(partitions_by_kind),
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
            sit_out(out, called(d), _difference("columns", d.columns, common))
    return kept


def _difference(field: str, columns: Sequence[str], common: Sequence[str]) -> str:
    """Say by which names a node differs from most."""
    lacks = [name for name in common if name not in columns]
    more = [name for name in columns if name not in common]
    parts = [
        *([f"lacks {some(lacks)}"] if lacks else []),
        *([f"has {some(more)}"] if more else []),
    ]
    says = f"{field}: it {' and '.join(parts) or 'has another order'}{_near([*lacks, *more])}"
    both = [name for name in common if name in columns]
    cure = f"; dataset.features={bracket(both)} is what it shares with most" if both else ""
    return says + (cure if field == "columns" and len(both) <= 20 else "")


def _near(names: Iterable[str]) -> str:
    """Say which names differ in case, blanks or leading zeros alone."""
    groups = [" and ".join(map(repr, group[:5])) for group in alike(names)]
    return f"; {some(groups)} are different names" if groups else ""


_MUST_AGREE = ("task", "columns", "numeric", "categorical", "targets")


def with_same_code(answers: Answers, mine: str, out: dict[str, str]) -> Answers:
    """Keep the nodes that run the server's code, by digest, and have rows; sort by partition."""
    kept = []
    options = "" if mine == protocol.code_digest() else " or of the run's options"
    for node, d in sorted(answers, key=lambda a: (a[1].partition, a[0])):
        if d.code.startswith(protocol.LACKS):
            cure = "start it where the package with it is installed"
            sit_out(out, called(d), f"it {printable(d.code, 80)}, an option of others: {cure}")
        elif d.code != mine:
            other = f"it runs other code of fl_app{options} than the server ({mine[:12]})"
            sit_out(out, called(d), f"code={d.code[:12]}: {other}")
        elif d.num_examples < 1:
            sit_out(out, called(d), f"num-examples={d.num_examples}: it has no training rows")
        else:
            kept.append((node, d))
    return kept


def who_agree(answers: Answers, out: dict[str, str]) -> Answers:
    """Keep the nodes that agree with the most common columns, one of each partition."""
    for name in _MUST_AGREE:
        answers = with_majority(answers, name, out)
    kept: dict[int, tuple[int, Description]] = {}
    for node, d in answers:
        if d.partition in kept:
            taken = f"partition-id={d.partition}: another node has this partition"
            sit_out(out, f"node {node}", taken)
        else:
            kept[d.partition] = (node, d)
    return list(kept.values())


def with_majority(answers: Answers, field: str, out: dict[str, str]) -> Answers:
    """Keep the nodes with the most common value of a field."""
    values = [json.dumps(getattr(d, field)) for _, d in answers]
    if not values:
        return answers
    # Counter keeps first-seen order among equals: the lowest partition decides a tie.
    common = Counter(values).most_common(1)[0][0]
    kept: Answers = []
    for (node, d), value in zip(answers, values, strict=True):
        columns, most = getattr(d, field), json.loads(common)
        if value == common:
            kept.append((node, d))
        elif isinstance(most, list):
            sit_out(out, called(d), _difference(field, columns, most))
        else:
            sit_out(out, called(d), f"{field}={value[:80]}: most nodes have {common[:80]}")
    return kept


def in_line(answers: Answers, prefix: str, out: dict[str, str]) -> Answers:
    """Keep the nodes whose moments do not move the federation's out of all proportion.

    One after the other, the one that moves a column's mean or deviation most sits out, if that is
    more than :data:`MAX_MOVE` deviations of all others' rows. Of two nodes nobody knows which is
    wrong: then both are named.
    """
    while True:
        with_moments = [(node, d) for node, d in answers if getattr(d, f"{prefix}mean") is not None]
        moves = _moves([moments_of(vars(d), prefix) for _, d in with_moments])
        if not moves.size or moves.max() <= MAX_MOVE:
            return answers
        place, column = np.unravel_index(int(moves.argmax()), moves.shape)
        node, d = with_moments[int(place)]
        name = (d.targets if prefix else d.numeric)[int(column)]
        what = f"moments of {name}: they move the federation's by {moves.max():.3g} deviations"
        if len(with_moments) == 2:
            log.warning("%s and %s: %s of the other's", *(called(d) for _, d in with_moments), what)
            return answers
        sit_out(out, called(d), f"{what} of all others' rows, expected at most {MAX_MOVE:g}")
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


def called(d: Description) -> str:
    """Name a node as warnings do."""
    return f"partition {d.partition}"


def moments_of(d: Mapping[str, Any], prefix: str = "") -> Moments:
    """Read moments of a node's answer, those of its columns or of what the prefix names."""
    names = (f"{prefix}count", f"{prefix}mean", f"{prefix}m2")
    return Moments(*(np.array(d[name], dtype=np.float64) for name in names))
