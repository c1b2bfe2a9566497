"""The replies of a round as its record holds them, and as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_app.dashboard.view import Floats, Round, number_of

__all__ = ["Cell", "Reply", "Table", "value_names"]
Cell = str | int | float | None
NARROW = 4
"""Values of a model up to which one table holds them beside their products."""
AVERAGES = frozenset({"FedAvg", "FedProx"})
"""Rules that return the weighted average itself."""


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


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Make a table; a column of clients and words is one of texts."""
    made = [tuple(row) for row in rows]
    if any(isinstance(row[0], str) for row in made):
        made = [(str(row[0]), *row[1:]) for row in made]
    shares = frozenset({"n_k/N", "share"} & set(columns))
    return Table(title, tuple(columns), tuple(made), shares)


@dataclass(frozen=True)
class Reply:
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


def replies_of(aggregation: Mapping[str, Any]) -> list[Reply]:
    replies = []
    for client in aggregation.get("clients") or ():
        arrays = client.get("arrays")
        replies.append(
            Reply(
                number_of(client),
                client.get("num_examples"),
                client.get("weight"),
                vector_of(arrays),
                norm_of(arrays),
            )
        )
    return replies


def _is_norm(arrays: Any) -> bool:
    return isinstance(arrays, Mapping) and set(arrays) == {"norm"} and np.ndim(arrays["norm"]) == 0


def norm_of(arrays: Any) -> float | None:
    return arrays["norm"] if _is_norm(arrays) else None


def vector_of(arrays: Any) -> Floats | None:
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
        named = [k.removeprefix("model/") for k in round_.metrics if _is_of(k, key, shapes)]
        if len(named) != math.prod(shape):
            indices = [",".join(map(str, index)) for index in np.ndindex(shape)]
            named = [array] if len(indices) == 1 else [f"{array}[{index}]" for index in indices]
        names += named
    return names


def _is_of(key: str, array: str, shapes: Mapping[str, Any]) -> bool:
    """Say whether a metric is a value of an array, and not of one with a longer name."""
    if key != array and not key.startswith(f"{array}."):
        return False
    longer = (f"model/{name}" for name in shapes if len(f"model/{name}") > len(array))
    return not any(key == name or key.startswith(f"{name}.") for name in longer)


def replies_table(
    replies: Sequence[Reply],
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
    return (table_of("Replies", columns, rows),)


def products_table(
    replies: Sequence[Reply], names: Sequence[str], total: Floats, returned: Floats, rule: str
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
        return (table_of("Replies W_k and their share in the average", columns, rows),)
    terms: list[list[Cell]] = [[r.partition, *r.product.tolist()] for r in replies]
    terms.append([made, *total.tolist()])
    terms.append([f"{rule} returned", *returned.tolist()])
    return (
        *replies_table(replies, names),
        table_of("Products n_k/N · W_k and their sum", ["client", *products], terms),
    )
