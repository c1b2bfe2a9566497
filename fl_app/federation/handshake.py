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

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_app.aggregation import merge_moments
from fl_app.config.dataset_options import MAX_AUTO_LEVELS, TabularConfig
from fl_app.config.schema import Config, min_level_rows_of
from fl_app.config.serialization import to_json
from fl_app.data.catalogue import spelling_of, undecided
from fl_app.data.client_data import public_names
from fl_app.data.columns import cell_text
from fl_app.data.encoding import Encoding, one_kind, scaler, some
from fl_app.data.tabular import told_alike
from fl_app.errors import FederationError
from fl_app.federation import protocol
from fl_app.federation.agreement import (
    Answers,
    called,
    in_line,
    log,
    moments_of,
    sit_out,
    who_agree,
    with_columns,
    with_majority,
    with_same_code,
)
from fl_app.federation.description import Description, from_message
from fl_app.federation.roster import Node, Roster
from fl_app.grid.messages import sender

__all__ = ["shake_hands"]


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
    text = to_json(config)
    mine = protocol.run_digest(text)
    answers = with_same_code(_ask(grid, asked, protocol.run_record(text), timeout, out), mine, out)
    auto, chosen = _is_auto(config), _chosen(config)
    if undecided(config.dataset):
        answers = with_majority(answers, "is_draft", out)
        if answers and answers[0][1].is_draft:
            config, drafts = with_columns(answers, config, out)
            record = protocol.run_record(to_json(config))
            answers = _ask(grid, [n for n, _ in drafts], record, timeout, out)
            answers = with_same_code(answers, mine, out)
    agreed = who_agree([(node, d) for node, d in answers if not _still_draft(d, out)], out)
    for prefix in ("", "target_"):
        agreed = in_line(agreed, prefix, out)
    _require(agreed, len(asked), config, out)
    encoding = _encoding([d for _, d in agreed], config)
    named = public_names(config)[1]
    automatic = [name for name, _ in encoding.levels if auto and name not in {*named, *chosen}]
    encoding = _left_out(encoding, _unfit(encoding, automatic, config))
    automatic = [column for column, _ in encoding.levels if column in automatic]
    doubtful = {node: d for node, d in agreed if automatic or _may_lose_rows(d, encoding, config)}
    if doubtful:
        record = protocol.run_record(to_json(config), encoding)
        second = dict(_ask(grid, doubtful, record, timeout, out))
        agreed = _with_rows(agreed, doubtful, second, out)
        _require(agreed, len(asked), config, out)
        others = {name for node, _ in agreed for name in _others(second.get(node))}
        why = "more than a tenth of some node's texts are none of its levels"
        encoding = _left_out(encoding, {name: why for name in automatic if name in others})
    nodes = tuple(_node(node, d, doubtful.get(node, d)) for node, d in agreed)
    descriptions = [d for _, d in agreed]
    roster, names = _roster(nodes, descriptions, encoding), _who_has(descriptions)
    return replace(roster, config=config, names=names), encoding


def _is_auto(config: Config) -> bool:
    return isinstance(config.dataset, TabularConfig) and config.dataset.categorical == "auto"


def _chosen(config: Config) -> Sequence[str]:
    """Return the features that the config names."""
    return (isinstance(config.dataset, TabularConfig) and config.dataset.features) or ()


def _still_draft(d: Description, out: dict[str, str]) -> bool:
    if d.is_draft:
        sit_out(out, called(d), "is_draft=true: expected an answer to the columns of the run")
    return d.is_draft


def _others(d: Description | None) -> Sequence[str]:
    return (d and d.mostly_other) or ()


def _unfit(encoding: Encoding, automatic: Sequence[str], config: Config) -> dict[str, str]:
    """Return which of a run's own choice of categorical columns have no or too many levels."""
    floor = min_level_rows_of(config.dataset)
    levels = {column: len(names) for column, names in encoding.levels if column in automatic}
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


def _who_has(descriptions: Sequence[Description]) -> dict[str, Any]:
    """Return by class, and by level of each column, the partitions that told of it."""
    classes: dict[str, list[int]] = {}
    levels: dict[str, dict[str, list[int]]] = {}
    for d in descriptions:
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
    return Node(node_id, d.partition, *rows, left_out, left_out_validation, d.file_check)


def _ask(
    grid: Grid, node_ids: Iterable[int], record: ConfigRecord, timeout: float, out: dict[str, str]
) -> Answers:
    """Return the answers that can be read, by node; the others sit out."""
    content = RecordDict({protocol.CONFIG: record})
    messages = [Message(content, node, protocol.DESCRIBE) for node in node_ids]
    sent = [m.metadata for m in messages]
    silent = {m.dst_node_id for m in sent}
    answers: Answers = []
    for message in grid.send_and_receive(messages, timeout=timeout):
        node = sender(message, sent)
        if node not in silent:
            sit_out(out, f"node {node}", "it was not asked, or answers twice")
            continue
        silent.remove(node)
        try:
            answers.append((node, from_message(message)))
        except ValueError as error:
            sit_out(out, f"node {node}", str(error))
    for node in sorted(silent):
        sit_out(out, f"node {node}", f"no answer within {timeout:g} s")
    return answers


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
            sit_out(out, called(d), wrong[0])
        elif not left.num_examples:
            classes = "none of its training rows is of a class of the run: see dataset.classes"
            sit_out(out, called(d), f"num-examples=0 of {d.num_examples}: {classes}")
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
    targets = [moments_of(vars(d), "target_") for d in descriptions if d.target_mean is not None]
    if not targets:
        return Roster(nodes)
    merged = merge_moments(targets)
    return Roster(nodes, (), tuple(merged.mean.tolist()), tuple(merged.variance.tolist()))


def _encoding(descriptions: list[Description], config: Config) -> Encoding:
    first = descriptions[0]
    with_moments = [d for d in descriptions if _has_moments(d)]
    spread = config.dataset.standardize
    if spread and not with_moments:
        raise FederationError(
            f"handshake: no node has min_rows={config.min_rows} rows, so there are no moments to "
            "standardize with; set dataset.standardize=false or a smaller min_rows"
        )
    features = merge_moments([moments_of(vars(d)) for d in with_moments]) if with_moments else None
    mean, scale = scaler(features if spread else None, len(first.numeric))
    fill = (0.0,) * len(first.numeric) if features is None else tuple(features.mean.tolist())
    target_mean, target_scale = _target_scaler(first, with_moments, spread)
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
        seen = tuple(sorted({v for d in descriptions if d.levels for v in d.levels[position]}))
        names = public.get(column, seen)
        for note in told_alike(column, {*names, *seen}):
            log.warning("%s", note)
        if named:
            _warn_of_absent(f"dataset.levels of {column}", names, seen)
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


def _warn_of_absent(option: str, names: Sequence[Any], of_nodes: Sequence[Any]) -> None:
    """Warn of names that the config gives and no node has: they may be mistyped."""
    known = {cell_text(name) for name in of_nodes}
    absent = [str(name) for name in names if cell_text(name) not in known]
    if absent and of_nodes:
        have = some([*map(str, of_nodes)])
        log.warning("%s: no node tells of %s; told are %s", option, some(absent), have)


def _has_moments(d: Description) -> bool:
    return d.mean is not None and (d.task == "classification" or d.target_mean is not None)


def _target_scaler(
    first: Description, descriptions: list[Description], spread: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if first.task == "classification":
        return (), ()
    moments = [moments_of(vars(d), "target_") for d in descriptions]
    merged = merge_moments(moments) if spread else None
    return scaler(merged, len(first.targets))
