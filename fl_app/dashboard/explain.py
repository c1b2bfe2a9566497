"""What the server made of a round, in tables, a formula and sentences; pure functions.

Everything is of the round's record (:func:`fl_app.tracking.round_texts.aggregation_text`); nothing
is worked out anew but the products and their sum, which are held against what the rule returned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_app.config.strategy_options import is_pooled
from fl_app.dashboard.replies import (
    AVERAGES,
    Cell,
    Reply,
    Table,
    norm_of,
    products_table,
    replies_of,
    replies_table,
    table_of,
    value_names,
    vector_of,
)
from fl_app.dashboard.view import Floats, Round, RunView

__all__ = ["Explanation", "explain"]

TOLERANCE = 1e-6
"""Share of the largest value by which a sum may miss what the rule returned."""
NOT_FINITE = "NaN or infinity"
"""What the reason says of a reply that throws a round away (:mod:`fl_app.federation.replies`)."""
SERVER_STEPS = frozenset({"FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"})
"""Rules that take a step from the weighted average."""
OTHERS: Mapping[str, str] = {
    "FedMedian": "takes the median of the replies, value by value; rows do not weigh.",
    "FedTrimmedAvg": "leaves the largest and smallest replies out, value by value, and takes the "
    "plain mean of the rest; rows do not weigh.",
    "Krum": "takes the one reply that is nearest to its neighbours; rows do not weigh.",
    "MultiKrum": "chooses the replies nearest to their neighbours and averages them by rows.",
    "Bulyan": "chooses replies as Krum does and, value by value, averages those nearest to their "
    "median; rows do not weigh.",
    "FedXgbBagging": "adds the new trees of every client, each at the same share of its step; "
    "rows do not weigh.",
    "QFedAvg": "weighs each reply by a power of its client's loss: whoever does badly counts more.",
}
FAMILIES: Mapping[str, str] = {
    "n_average": "average by rows",
    "class_average": "average by rows of each class",
    "global": "the global member alone",
    "simplex": "one weight a member",
    "non_negative": "one weight a member and class",
    "ridge": "full matrix",
}


@dataclass(frozen=True)
class Explanation:
    """What the page says of a round.

    Parameters
    ----------
    title : str
        One line.
    formula : str or None
        LaTeX, where the rule is a weighted average.
    tables : tuple of Table
        In order.
    sentences : tuple of str
        In order.
    """

    title: str
    formula: str | None = None
    tables: tuple[Table, ...] = ()
    sentences: tuple[str, ...] = ()


_Made = tuple[str | None, tuple[Table, ...], tuple[str, ...]]
"""An explanation without its title: formula, tables and sentences."""


def explain(view: RunView, server_round: int) -> Explanation:
    """Explain a round.

    Parameters
    ----------
    view : RunView
        The run.
    server_round : int
        The round.

    Returns
    -------
    Explanation
        With a sentence alone where there is nothing to show.
    """
    title = f"What the server made of round {server_round}"
    round_ = view.round(server_round)
    if round_ is None:
        return Explanation(title, sentences=("This round is not recorded (yet).",))
    if server_round == 0:
        start = "Nothing was sent yet: every client starts from the same arrays."
        return Explanation(title, sentences=(start,))
    aggregation = round_.aggregation
    make = _private if view.private else _stacking if view.stack_phase(round_) else _averaging
    unreadable: _Made = (None, (), ("The record of this round's replies cannot be read.",))
    try:
        known = aggregation or view.private
        formula, tables, sentences = make(view, round_, aggregation) if known else unreadable
    except (KeyError, TypeError, ValueError, AttributeError):
        formula, tables, sentences = unreadable
    failed, why = _who(round_)
    return Explanation(title, formula, (*tables, *failed), (*sentences, *why, *_faulty(view)))


# ---------------------------------------------------------------------------- who took part
def _who(round_: Round) -> tuple[list[Table], list[str]]:
    """Return who was asked in vain, with the reasons, and a sentence on each exchange."""
    rows: list[tuple[Cell, ...]] = []
    sentences = []
    for word, exchange in (("train", round_.train), ("evaluate", round_.evaluate)):
        rows += [(k, word, why) for k, why in exchange.failed.items()]
        if exchange.num_failed:
            asked, failed = exchange.num_asked, exchange.num_failed
            sentences.append(f"{asked} clients were asked to {word}; {failed} of them failed.")
    tables = [Table("Who failed, and why", ("client", "to", "reason"), tuple(rows))] if rows else []
    return tables, sentences


FAULTS: Mapping[str, str] = {
    "crash": "crash in about half of the rounds",
    "nan": "send NaN in place of numbers",
    "flip": "send the start minus four times their own move",
}


def _faulty(view: RunView) -> list[str]:
    """Say which clients fail on purpose."""
    number, kind = view.params.get("faults.clients", "0"), view.params.get("faults.kind", "")
    if view.private or not number.isdecimal() or not int(number) or kind not in FAULTS:
        return []
    last = range(view.clients - int(number), view.clients)
    return [f"On purpose, clients {', '.join(map(str, last))} {FAULTS[kind]}."]


# ---------------------------------------------------------------------------- averaging
def _averaging(view: RunView, round_: Round, aggregation: Mapping[str, Any]) -> _Made:
    rule = str(aggregation.get("rule") or view.strategy)
    replies = replies_of(aggregation)
    aggregate = aggregation.get("aggregate")
    returned, norm = vector_of(aggregate), norm_of(aggregate)
    names = value_names(round_, aggregate)
    sizes = {None if reply.values is None else len(reply.values) for reply in replies}
    small = returned is not None and sizes == {len(returned)}
    if round_.went_back:
        tables = replies_table(replies, names if small else None)
        return None, tables, (_went_back(view, round_),)
    sentences = _about(view, round_, rule, replies)
    if rule == "Local" or not replies:
        return None, replies_table(replies, None), sentences
    if rule not in AVERAGES | SERVER_STEPS:
        tables = replies_table(replies, names if small else None, rule, returned, norm)
        return None, tables, (*sentences, *_large(small, replies))
    formula = _formula(round_, aggregation, "" if rule in AVERAGES else r"\bar W")
    if not small:
        tables = replies_table(replies, None, rule, None, norm)
        return formula, tables, (*sentences, *_large(False, replies))
    assert returned is not None
    total = sum((r.product for r in replies), np.zeros(len(returned)))
    if rule in AVERAGES:
        sentences = (*sentences, _check(total, returned, rule))
    return formula, products_table(replies, names, total, returned, rule), sentences


def _formula(round_: Round, aggregation: Mapping[str, Any], left: str = "") -> str:
    """Return the weighted average as LaTeX."""
    left = left or f"W^{{({round_.server_round})}}"
    total = aggregation.get("num_examples")
    n = rf",\quad N = {total}" if isinstance(total, int) else ""
    return rf"{left} = \sum_k \frac{{n_k}}{{N}}\, W_k{n}"


def _about(view: RunView, round_: Round, rule: str, replies: Sequence[Reply]) -> tuple[str, ...]:
    if is_pooled(view.strategy):
        return ("All rows lie in one place here: there is one reply, and nothing to average.",)
    if rule == "Local":
        alone = "Nothing is combined: each client keeps the model that it trained, and what the "
        return (alone + "server holds are all of them side by side.",)
    if rule == "NAverage":
        return (
            "Models are not averaged: each client sends its base model once, and what is averaged "
            "are the models' outputs, by rows, n_k/N, or by the rows of each class, or their votes "
            "(strategy.combine).",
        )
    if rule in SERVER_STEPS:
        return (
            f"{rule} starts from the weighted average W̄ of the replies, then takes a server step "
            "from the model of the round before towards it, with what it remembers of earlier "
            "rounds.",
        )
    if rule in OTHERS:
        return (f"{rule} {OTHERS[rule]}",)
    if rule in AVERAGES:
        prox = "FedProx averages as FedAvg does; what it changes is the clients' loss."
        return (prox,) if rule == "FedProx" else ()
    return (f"{rule} makes something of its own of these replies.",)


def _large(small: bool, replies: Sequence[Reply]) -> tuple[str, ...]:
    if small or not replies:
        return ()
    text = "The model has more than 32 values: the replies are shown by their norm ‖W_k‖."
    return (text,) if any(reply.norm is not None for reply in replies) else ()


def _went_back(view: RunView, round_: Round) -> str:
    get = round_.metrics.get
    step, last, loss = get("model/learning_rate"), get("model/last_loss"), _loss(round_)
    used = "" if step is None else f" with the step {step:.4g}"
    # With other clients than in the rounds before, the two losses need not be those compared.
    rose = (
        "" if last is None or loss is None or loss <= last else f": from {last:.4g} to {loss:.4g}"
    )
    why = f"the loss rose too far{used}{rose}"
    if not rose and any(NOT_FINITE in reason for reason in round_.train.failed.values()):
        why = f"not all replies were finite numbers{used}"
    over = 0 < view.total <= round_.server_round
    then = "" if over else ", and the next round repeats it at half the step"
    kept = "The model stays what it was before the round"
    return f"This round was thrown away: {why}. {kept}{then}."


def _loss(round_: Round) -> float | None:
    for name in ("log_loss", "mse"):
        if math.isfinite(round_.metrics.get(f"train/{name}", math.nan)):
            return round_.metrics[f"train/{name}"]
    return None


def _check(total: Floats, returned: Floats, rule: str) -> str:
    off = float(np.max(np.abs(total - returned), initial=0.0))
    if off <= TOLERANCE * max(1.0, float(np.max(np.abs(returned), initial=0.0))):
        how = f"largest difference {off:.1e}" if off else "to the last bit"
        return f"The products add up to what {rule} returned ({how})."
    return f"The products miss what {rule} returned by up to {off:.3g}."


# ---------------------------------------------------------------------------- privacy
def _private(view: RunView, round_: Round, aggregation: Mapping[str, Any]) -> _Made:
    get = round_.metrics.get
    train = round_.train
    bound, spent = get("privacy/clipping_norm"), get("privacy/epsilon")
    clip = "a norm" if bound is None else f"the norm {bound:.4g}"
    sentences = [
        view.why_private,
        f"{train.num_asked} clients were asked, {train.num_replied} replied. Each reply's update "
        f"was clipped to {clip}; their sum was divided by the {train.num_asked} that were asked, "
        "whoever replied and whatever their rows, and noised. So there is no n_k/N to show.",
    ]
    if spent is not None:
        delta = get("privacy/delta", math.nan)
        sentences.append(f"Spent so far: epsilon {spent:.4g} at delta {delta:g}.")
    if round_.went_back:
        sentences.append(_went_back(view, round_))
    aggregate, rule = aggregation.get("aggregate"), str(aggregation.get("rule") or view.strategy)
    returned, norm = vector_of(aggregate), norm_of(aggregate)
    tables: tuple[Table, ...] = ()
    if returned is not None:
        columns, row = ["rule", *value_names(round_, aggregate)], [rule, *returned.tolist()]
        tables = (table_of(f"What {rule} returned, noise and all", columns, [row]),)
    elif norm is not None:
        tables = (table_of(f"What {rule} returned", ["rule", "‖W‖"], [[rule, norm]]),)
    return None, tables, tuple(sentences)


# ---------------------------------------------------------------------------- stacking
def _stacking(view: RunView, round_: Round, aggregation: Mapping[str, Any]) -> _Made:
    phase, get = view.stack_phase(round_), round_.metrics.get
    replies = replies_table(replies_of(aggregation), None)
    if round_.went_back:
        return None, replies, (_went_back(view, round_), *_bases(get("stack/base_models")))
    if phase == "collect":
        return None, replies, _collected(view, round_)
    rows = int(get("stack/rows", 0))
    tables = (*_candidates(round_), *_members(round_))
    chosen = _family(next((c for c in round_.candidates if c.get("chosen")), {}))
    if phase == "stack":
        sentences = [
            "Stack: the members went to the clients, and from the sums that came back the server "
            f"solved every way of combining them, over {rows} rows.",
            f"Provisional: the stack of this round ({chosen}) is the best by cross-validation from "
            "the sums. The next round lets the clients count, and may choose another; until then "
            "metrics may dip.",
        ]
    else:
        counted = any(candidate.get("right") for candidate in round_.candidates)
        what = "counted what each has right" if counted else "added up the errors of each"
        sentences = [
            f"Select: the candidates went to all clients, which {what}, over {rows} training rows "
            f"that each is new to. The choice: {chosen}."
        ]
    return None, tables, tuple(sentences)


def _bases(number: float | None) -> tuple[str, ...]:
    if number is None:
        return ()
    return (f"The server has {number:.0f} base models so far; a client sends its own once.",)


def _collected(view: RunView, round_: Round) -> tuple[str, ...]:
    member = view.params.get("strategy.global_member", "fedavg")
    step = {
        "fedavg": "Collect: one step of FedAvg for the global member, by n_k/N.",
        "ls": "Collect: the global member is solved by least squares from the clients' sums.",
        "none": "Collect: the base models' outputs are averaged by rows until the stack is there.",
    }.get(member, "Collect.")
    last = f"rounds {view.total - 1} and {view.total}" if view.total else "the last two rounds"
    norm = "‖W_k‖ is of the whole reply: global member and base model."
    wait = f"There is no stack yet: {last} make it, and what is scored now is no result of it."
    return (step, *_bases(round_.metrics.get("stack/base_models")), wait, norm)


def _family(candidate: Mapping[str, Any]) -> str:
    name = str(candidate.get("family", "unknown"))
    words = FAMILIES.get(name, name)
    penalty = candidate.get("lambda")
    return f"{words}, λ = {penalty:g}" if name == "ridge" and penalty is not None else words


def _candidates(round_: Round) -> tuple[Table, ...]:
    """Return the families that were tried, in words, with what was counted of each."""
    candidates = round_.candidates
    if not candidates:
        return ()
    # A regression counts no row as right.
    counted = any(candidate.get("right") for candidate in candidates)
    wanted = {
        "cv_loss": "cross-validated loss",
        "rows": "rows",
        **({"right": "right"} if counted else {}),
        "loss": "loss",
    }
    names = {key: title for key, title in wanted.items() if any(key in c for c in candidates)}
    rows = [
        [
            "✔" if candidate.get("chosen") else "",
            _family(candidate),
            *(candidate.get(key) for key in names),
        ]
        for candidate in candidates
    ]
    return (table_of("Ways of combining", ["chosen", "family", *names.values()], rows),)


def _members(round_: Round) -> tuple[Table, ...]:
    members = round_.members
    if not members:
        return ()
    rows = [
        [
            _member(str(member.get("member", ""))),
            member.get("kind"),
            member.get("num_examples"),
            member.get("influence"),
        ]
        for member in members
    ]
    return (table_of("Members and their share", ["member", "kind", "n_k", "share"], rows),)


def _member(name: str) -> str:
    return f"client {int(name)}" if name.isdecimal() else name
