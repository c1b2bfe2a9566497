"""What the server made of a round, in tables, a formula and sentences; pure functions.

Everything is of the round's record (:func:`fl_app.tracking.round_texts.aggregation_text`); nothing
is worked out anew but the products and their sum, which are held against what the rule returned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.strategy_options import is_pooled
from fl_app.dashboard.view import Exchange, Round, RunView, number_of

__all__ = ["Explanation", "Table", "explain", "value_names"]

Floats = NDArray[np.float64]
Cell = str | int | float | None

NARROW = 4
"""Values of a model up to which one table holds them beside their products."""
TOLERANCE = 1e-6
"""Share of the largest value by which a sum may miss what the rule returned."""
NOT_FINITE = "NaN or infinity"
"""What the reason says of a reply that throws a round away (:mod:`fl_app.federation.replies`)."""
AVERAGES = frozenset({"FedAvg", "FedProx"})
"""Rules that return the weighted average itself."""
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
class Table:
    """A table of plain values.

    Parameters
    ----------
    title : str
        What it shows.
    columns : tuple of str
        Names, no two alike.
    rows : tuple of tuple
        A value a column; None is an empty cell.
    shares : frozenset of str
        Columns that hold shares from 0 to 1.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shares: frozenset[str] = frozenset()

    def records(self) -> list[dict[str, Cell]]:
        """Return a mapping a row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


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
    told = round_.aggregation
    make = _private if view.private else _stacking if view.stack_phase(round_) else _averaging
    unreadable = Explanation("", sentences=("The record of this round's replies cannot be read.",))
    try:
        made = make(view, round_, told) if told or view.private else unreadable
    except (KeyError, TypeError, ValueError, AttributeError):
        made = unreadable
    who = _who(round_)
    sentences = (*made.sentences, *who[1], *_faulty(view))
    return Explanation(title, made.formula, (*made.tables, *who[0]), sentences)


# ---------------------------------------------------------------------------- who took part
def _who(round_: Round) -> tuple[list[Table], list[str]]:
    """Return who was asked in vain, with the reasons, and a sentence on each exchange."""
    rows: list[tuple[Cell, ...]] = []
    sentences = []
    for word, exchange in (("train", round_.train), ("evaluate", round_.evaluate)):
        rows += [(k, word, why) for k, why in exchange.failed.items()]
        if exchange.num_failed:
            sentences.append(_asked(word, exchange))
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


def _asked(word: str, exchange: Exchange) -> str:
    return (
        f"{exchange.num_asked} clients were asked to {word}; {exchange.num_failed} of them failed."
    )


# ---------------------------------------------------------------------------- averaging
def _averaging(view: RunView, round_: Round, told: Mapping[str, Any]) -> Explanation:
    rule = str(told.get("rule") or view.strategy)
    replies = _replies(told)
    returned = _flat(told.get("aggregate"))
    names = value_names(round_, told.get("aggregate"))
    sizes = {None if reply.values is None else len(reply.values) for reply in replies}
    small = returned is not None and sizes == {len(returned)}
    if round_.went_back:
        tables = _replies_table(replies, names if small else None)
        return Explanation("", None, tables, (_went_back(view, round_),))
    sentences = _about(view, round_, rule, replies)
    if rule == "Local" or not replies:
        return Explanation("", None, _replies_table(replies, None), sentences)
    if rule not in AVERAGES | SERVER_STEPS:
        norm = _norm(told.get("aggregate"))
        tables = _replies_table(replies, names if small else None, rule, returned, norm)
        return Explanation("", None, tables, (*sentences, *_large(small, replies)))
    formula = _formula(round_, told) if rule in AVERAGES else _formula(round_, told, r"\bar W")
    if not small:
        tables = _replies_table(replies, None, rule, None, _norm(told.get("aggregate")))
        return Explanation("", formula, tables, (*sentences, *_large(False, replies)))
    assert returned is not None
    total = sum((r.product for r in replies), np.zeros(len(returned)))
    if rule in AVERAGES:
        sentences = (*sentences, _check(total, returned, rule))
    return Explanation("", formula, _products(replies, names, total, returned, rule), sentences)


def _formula(round_: Round, told: Mapping[str, Any], left: str = "") -> str:
    """Return the weighted average as LaTeX."""
    left = left or f"W^{{({round_.server_round})}}"
    total = told.get("num_examples")
    n = rf",\quad N = {total}" if isinstance(total, int) else ""
    return rf"{left} = \sum_k \frac{{n_k}}{{N}}\, W_k{n}"


def _about(view: RunView, round_: Round, rule: str, replies: Sequence[_Reply]) -> tuple[str, ...]:
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


def _large(small: bool, replies: Sequence[_Reply]) -> tuple[str, ...]:
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


# ---------------------------------------------------------------------------- replies
@dataclass(frozen=True)
class _Reply:
    """One client's reply as it was recorded."""

    partition: int
    num_examples: Cell
    weight: float | None
    values: Floats | None
    norm: float | None

    @property
    def product(self) -> Floats:
        """n_k/N times W_k."""
        assert self.values is not None
        return (math.nan if self.weight is None else self.weight) * self.values


def _replies(told: Mapping[str, Any]) -> list[_Reply]:
    found = []
    for client in told.get("clients") or ():
        arrays = client.get("arrays")
        found.append(
            _Reply(
                number_of(client),
                client.get("num_examples"),
                client.get("weight"),
                _flat(arrays),
                _norm(arrays),
            )
        )
    return found


def _is_norm(arrays: Any) -> bool:
    return isinstance(arrays, Mapping) and set(arrays) == {"norm"} and np.ndim(arrays["norm"]) == 0


def _norm(arrays: Any) -> float | None:
    return arrays["norm"] if _is_norm(arrays) else None


def _flat(arrays: Any) -> Floats | None:
    """Return recorded arrays as one vector, None where only a norm, or nothing, is recorded."""
    if not isinstance(arrays, Mapping) or _is_norm(arrays):
        return None
    try:
        parts = [np.ravel(np.array(values, dtype=np.float64)) for values in arrays.values()]
    except (TypeError, ValueError):
        return None
    return np.concatenate(parts) if parts else np.empty(0)


def value_names(round_: Round, arrays: Any) -> list[str]:
    """Return the names of a model's values in the order of its arrays.

    Parameters
    ----------
    round_ : Round
        Its metrics name them: ``model/coef.bmi``.
    arrays : mapping or None
        Nested lists by name, as a record holds them.

    Returns
    -------
    list of str
        ``coef.bmi``; where the metrics do not name them ``coef``, or ``coef[0,1]`` by index.
    """
    if not isinstance(arrays, Mapping) or _is_norm(arrays):
        return []
    shapes = {name: np.shape(values) for name, values in arrays.items()}
    names = []
    for array, shape in shapes.items():
        key = f"model/{array}"
        own = [k.removeprefix("model/") for k in round_.metrics if _is_of(k, key, shapes)]
        if len(own) != math.prod(shape):
            indices = [",".join(map(str, index)) for index in np.ndindex(shape)]
            own = [array] if len(indices) == 1 else [f"{array}[{index}]" for index in indices]
        names += own
    return names


def _is_of(key: str, array: str, shapes: Mapping[str, Any]) -> bool:
    """Say whether a metric is a value of an array, and not of one with a longer name."""
    if key != array and not key.startswith(f"{array}."):
        return False
    longer = (f"model/{name}" for name in shapes if len(f"model/{name}") > len(array))
    return not any(key == name or key.startswith(f"{name}.") for name in longer)


def _replies_table(
    replies: Sequence[_Reply],
    names: Sequence[str] | None,
    rule: str = "",
    returned: Floats | None = None,
    norm: float | None = None,
) -> tuple[Table, ...]:
    """Return the replies, with their values where they are named, and what the rule returned."""
    if not replies:
        return ()
    normed = any(reply.norm is not None for reply in replies)
    columns = ["client", "n_k", "n_k/N", *([] if names is None else names)]
    columns += ["‖W_k‖"] if normed else []
    rows: list[list[Cell]] = []
    for reply in replies:
        row: list[Cell] = [reply.partition, reply.num_examples, reply.weight]
        if names is not None and reply.values is not None:
            row += reply.values.tolist()
        rows.append(row + ([reply.norm] if normed else []))
    if rule and names is not None and returned is not None:
        rows.append([f"{rule} returned", None, None, *returned.tolist()])
    elif norm is not None and normed:
        rows.append([f"{rule} returned", None, None, *[None] * len(names or ()), norm])
    return (_table("Replies", columns, rows),)


def _norms(rule: str, told: Mapping[str, Any]) -> tuple[Table, ...]:
    norm = _norm(told.get("aggregate"))
    if norm is None:
        return ()
    return (_table(f"What {rule} returned", ["rule", "‖W‖"], [[rule, norm]]),)


def _products(
    replies: Sequence[_Reply], names: Sequence[str], total: Floats, returned: Floats, rule: str
) -> tuple[Table, ...]:
    """Return W_k, the products and their sum: in one table where models are tiny, else in two."""
    products = [f"n_k/N · {name}" for name in names]
    weights = [reply.weight for reply in replies if reply.weight is not None]
    rows_ = [r.num_examples for r in replies if isinstance(r.num_examples, int | float)]
    n = [sum(rows_), math.fsum(weights)]
    made = "Σ" if rule in AVERAGES else "Σ = W̄"
    if len(names) <= NARROW:
        empty: list[Cell] = [None] * len(names)
        rows: list[list[Cell]] = [
            [
                r.partition,
                r.num_examples,
                r.weight,
                *(() if r.values is None else r.values.tolist()),
                *r.product.tolist(),
            ]
            for r in replies
        ]
        rows.append([made, *n, *empty, *total.tolist()])
        rows.append([f"{rule} returned", None, None, *empty, *returned.tolist()])
        columns = ["client", "n_k", "n_k/N", *names, *products]
        return (_table("Replies W_k and their share in the average", columns, rows),)
    terms: list[list[Cell]] = [[r.partition, *r.product.tolist()] for r in replies]
    terms.append([made, *total.tolist()])
    terms.append([f"{rule} returned", *returned.tolist()])
    return (
        *_replies_table(replies, names),
        _table("Products n_k/N · W_k and their sum", ["client", *products], terms),
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Make a table; a column of clients and words is one of texts."""
    made = [tuple(row) for row in rows]
    if any(isinstance(row[0], str) for row in made):
        made = [(str(row[0]), *row[1:]) for row in made]
    shares = frozenset({"n_k/N", "share"} & set(columns))
    return Table(title, tuple(columns), tuple(made), shares)


# ---------------------------------------------------------------------------- privacy
def _private(view: RunView, round_: Round, told: Mapping[str, Any]) -> Explanation:
    get = round_.metrics.get
    train = round_.train
    norm, spent = get("privacy/clipping_norm"), get("privacy/epsilon")
    clip = "a norm" if norm is None else f"the norm {norm:.4g}"
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
    returned, rule = _flat(told.get("aggregate")), str(told.get("rule") or view.strategy)
    tables = _norms(rule, told)
    if returned is not None:
        names = value_names(round_, told.get("aggregate"))
        row = [rule, *returned.tolist()]
        tables = (_table(f"What {rule} returned, noise and all", ["rule", *names], [row]),)
    return Explanation("", None, tables, tuple(sentences))


# ---------------------------------------------------------------------------- stacking
def _stacking(view: RunView, round_: Round, told: Mapping[str, Any]) -> Explanation:
    phase, get = view.stack_phase(round_), round_.metrics.get
    replies = _replies_table(_replies(told), None)
    if round_.went_back:
        return Explanation(
            "", None, replies, (_went_back(view, round_), *_bases(get("stack/base_models")))
        )
    if phase == "collect":
        return Explanation("", None, replies, _collected(view, round_))
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
            f"that each is new to. The choice: {chosen}.",
        ]
    return Explanation("", None, tables, tuple(sentences))


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
    found = round_.candidates
    if not found:
        return ()
    # A regression counts no row as right.
    counted = any(candidate.get("right") for candidate in found)
    wanted = {
        "cv_loss": "cross-validated loss",
        "rows": "rows",
        **({"right": "right"} if counted else {}),
        "loss": "loss",
    }
    names = {key: title for key, title in wanted.items() if any(key in c for c in found)}
    rows = [
        [
            "✔" if candidate.get("chosen") else "",
            _family(candidate),
            *(candidate.get(key) for key in names),
        ]
        for candidate in found
    ]
    return (_table("Ways of combining", ["chosen", "family", *names.values()], rows),)


def _members(round_: Round) -> tuple[Table, ...]:
    found = round_.members
    if not found:
        return ()
    rows = [
        [
            _member(str(member.get("member", ""))),
            member.get("kind"),
            member.get("num_examples"),
            member.get("influence"),
        ]
        for member in found
    ]
    return (_table("Members and their share", ["member", "kind", "n_k", "share"], rows),)


def _member(name: str) -> str:
    return f"client {int(name)}" if name.isdecimal() else name
