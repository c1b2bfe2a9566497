"""Ways of combining members, solved from sums and priced by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import DataError
from fl_app.stacking.layout import Floats, Layout
from fl_app.stacking.pooled_sums import Pooled

__all__ = [
    "AVERAGES",
    "FAMILIES",
    "INTERCEPT",
    "PENALTIES",
    "Candidate",
    "candidates",
    "class_shares",
    "expand",
    "provisional",
    "shrunk",
]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Penalties of the full ridge family, as multiples of the mean squared meta-feature."""
INTERCEPT = 1e-3
"""Penalty of the intercept beside that of a weight."""


@dataclass(frozen=True)
class Candidate:
    """One way of combining the models.

    Parameters
    ----------
    family : str
        A key of :data:`AVERAGES` or :data:`FAMILIES`, or ``"ridge"``.
    penalty : float
        Of ``"ridge"``, else 0.
    loss : float
        Cross-validated squared error of a row before it is repaired; NaN for averages of
        probabilities, which sums over their roots do not tell.
    weights : ndarray of float32, shape (B, C) or (D, C)
        From all folds: of the models' outputs, or of the meta-features.
    fold_weights : ndarray of float32, shape (V, B, C) or (V, D, C)
        The same without each fold.
    """

    family: str
    penalty: float
    loss: float
    weights: NDArray[np.float32]
    fold_weights: NDArray[np.float32]

    @property
    def name(self) -> str:
        """The family, with its penalty if it has one: unlike any other candidate's."""
        return f"{self.family}_{self.penalty:g}" if self.penalty else self.family


@dataclass(frozen=True)
class _Problem:
    """Sums to solve, (D, D), (D, C) and a number, beside the members' rows, (m,) and by class."""

    layout: Layout
    gram: Floats
    cross: Floats
    squares: float
    rows: Floats
    counts: Floats

    def shares(self) -> Floats:
        """Return :func:`class_shares` of the members."""
        return class_shares(self.rows, self.counts, self.layout.num_outputs)

    def start(self) -> Floats:
        """Return W0, (B, C): half shares, half global member."""
        if not self.layout.has_global:
            return self.shares()
        half = np.full((1, self.layout.num_outputs), 0.5)
        return np.concatenate([self.shares() * half, half])

    def by_output(self) -> tuple[Floats, Floats]:
        """Return the sums of each output's own columns, (C, B, B) and (C, B)."""
        blocks, outputs = self.layout.num_blocks, self.layout.num_outputs
        gram = self.gram[:-1, :-1].reshape(blocks, outputs, blocks, outputs)
        cross = self.cross[:-1].reshape(blocks, outputs, outputs)
        return np.einsum("kclc->ckl", gram), np.einsum("kcc->ck", cross)


def candidates(
    layout: Layout,
    pooled: Pooled,
    num_examples: NDArray[Any],
    counts: NDArray[Any],
    penalties: Sequence[float] = PENALTIES,
) -> tuple[Candidate, ...]:
    """Solve every family on all folds and without each fold.

    Parameters
    ----------
    layout : Layout
        What is stacked.
    pooled : Pooled
        The federation's sums.
    num_examples : ndarray of shape (m,)
        Rows of the members' clients.
    counts : ndarray of shape (m, C) or (m, 1)
        Their rows of each class (regression: all rows) as they tell them; a class of which none
        tells goes by ``num_examples``.
    penalties : sequence of float
        Tried for the full ridge family; the largest of equally good ones is taken.

    Returns
    -------
    tuple of Candidate
        Averages, then families with one weight for each model and output, then ``"ridge"`` with
        the penalty of least cross-validated error and the next two smaller ones: squared error
        likes larger penalties than the number of right answers does.
    """
    rows, class_rows = (np.asarray(a, dtype=np.float64) for a in (num_examples, counts))
    problems = _problems(layout, pooled, rows, class_rows)
    averages = {name: solve for name, solve in AVERAGES.items() if layout.has(name)}
    solved = {name: [solve(p) for p in problems] for name, solve in averages.items()} | {
        name: [expand(layout, solve(p)) for p in problems] for name, solve in FAMILIES.items()
    }
    simple = [_candidate(name, 0.0, w, layout, pooled) for name, w in solved.items()]
    ridges = [
        _candidate("ridge", lam, [_ridge(p, lam) for p in problems], layout, pooled)
        for lam in sorted(penalties, reverse=True)
    ]
    best = min(range(len(ridges)), key=lambda k: ridges[k].loss)
    return (*simple, *ridges[best : best + 3])


def provisional(table: Sequence[Candidate]) -> Candidate:
    """Return the candidate of least cross-validated error: the model until clients have chosen."""
    return min(table, key=lambda candidate: np.nan_to_num(candidate.loss, nan=np.inf))


def class_shares(
    num_examples: NDArray[Any], counts: NDArray[Any], num_outputs: int
) -> NDArray[np.float64]:
    """Return each member's share of the rows of a class; of all rows where none told of it.

    Parameters
    ----------
    num_examples : ndarray of shape (m,)
        Rows of the members' clients.
    counts : ndarray of shape (m, C) or (m, 1)
        Their rows of each class (regression: all rows) as they tell them.
    num_outputs : int
        C, or T targets.

    Returns
    -------
    ndarray of shape (m, C) or (m, T)
        Columns sum to 1.
    """
    total = counts.sum(axis=0)
    whole = (num_examples / num_examples.sum())[:, None]
    shares = np.where(total > 0, counts / np.where(total > 0, total, 1.0), whole)
    return np.broadcast_to(shares, (len(shares), num_outputs))


def _problems(layout: Layout, pooled: Pooled, rows: Floats, counts: Floats) -> list[_Problem]:
    """Return the problem without each fold, then that of all folds."""
    if not len(rows) == len(counts) == layout.num_members or not rows.sum() > 0:
        raise DataError("num_examples", rows, f"rows of {layout.num_members} members")
    squares = pooled.squares.sum(axis=1)
    everything = (pooled.gram.sum(axis=0), pooled.cross.sum(axis=0), float(squares.sum()))
    problems = [
        tuple(total - part for total, part in zip(everything, parts, strict=True))
        for parts in zip(pooled.gram, pooled.cross, squares, strict=True)
    ]
    return [_Problem(layout, g, q, float(s), rows, counts) for g, q, s in [*problems, everything]]


def _candidate(
    name: str, penalty: float, solved: Sequence[Floats], layout: Layout, pooled: Pooled
) -> Candidate:
    """Price solved weights, the last from all folds, on the folds that the others leave out."""
    loss = np.nan
    if not (layout.classes and name in AVERAGES):
        parts = zip(solved[:-1], pooled.gram, pooled.cross, pooled.squares, strict=True)
        loss = sum(_squared_error(expand(layout, w), *sums) for w, *sums in parts)
        loss = max(0.0, loss) / pooled.num_examples
    by_fold = np.stack(solved[:-1]).astype(np.float32)
    return Candidate(name, penalty, loss, solved[-1].astype(np.float32), by_fold)


def _squared_error(weights: Floats, gram: Floats, cross: Floats, squares: Floats) -> float:
    """Return ``|F W - Y|^2`` from the sums over its rows."""
    return float(squares.sum() - 2 * (weights * cross).sum() + (weights * (gram @ weights)).sum())


def _members(problem: _Problem, weights: Floats) -> Floats:
    """Give the global member, if there is one, the weight 0."""
    layout = problem.layout
    full = np.zeros((layout.num_blocks, layout.num_outputs))
    full[: layout.num_members] = weights
    return full


def _n_average(problem: _Problem) -> Floats:
    """Weigh the members by their rows."""
    return _members(problem, problem.rows[:, None] / problem.rows.sum())


def _class_average(problem: _Problem) -> Floats:
    """Weigh the members, for each class, by their rows of it."""
    return _members(problem, problem.shares())


def _global(problem: _Problem) -> Floats:
    """Take the global member alone."""
    weights = np.zeros((problem.layout.num_blocks, problem.layout.num_outputs))
    weights[-1] = 1.0
    return weights


def _simplex(problem: _Problem) -> Floats:
    """Weigh the models by non-negative numbers that sum to 1, the same for all outputs.

    There ``|F w - y|^2 = w' M w`` with ``M = H - q 1' - 1 q' + |y|^2 1 1'``, and the non-negative
    minimum of ``w' M w + (1'w - 1)^2`` is a multiple of the minimum on the simplex.
    """
    gram, cross = problem.by_output()
    if problem.squares <= 0:
        return problem.start()
    q = cross.sum(axis=0) / problem.squares
    m = gram.sum(axis=0) / problem.squares - q[:, None] - q[None, :] + 1.0
    weights = _nnls(m + 1.0, np.ones(len(q)))
    return np.outer(weights / weights.sum(), np.ones(problem.layout.num_outputs))


def _non_negative(problem: _Problem) -> Floats:
    """Weigh the models by non-negative numbers, for each output apart."""
    if not np.trace(problem.gram) > 0:
        return problem.start()
    grams, crosses = problem.by_output()
    return np.stack([_nnls(g, q) for g, q in zip(grams, crosses, strict=True)], axis=1)


AVERAGES: Mapping[str, Callable[[_Problem], Floats]] = {
    "n_average": _n_average,
    "class_average": _class_average,
    "global": _global,
}
"""Families that average the models' outputs with weights known beforehand, (B, C)."""
FAMILIES: Mapping[str, Callable[[_Problem], Floats]] = {
    "simplex": _simplex,
    "non_negative": _non_negative,
}
"""Families that solve for one weight of each model and output, (D, C) with zeros elsewhere."""


def _ridge(problem: _Problem, penalty: float) -> Floats:
    """Solve for the full matrix, shrunk towards W0."""
    start = expand(problem.layout, problem.start())
    return shrunk(problem.gram, problem.cross, start, penalty)


def shrunk(gram: Floats, cross: Floats, start: Floats, penalty: float) -> Floats:
    """Solve ``(G + tau I) W = Q + tau W0``, the intercept nearly without penalty."""
    tau = penalty * float(np.trace(gram)) / len(gram)
    if tau <= 0:
        return start
    diagonal = np.full(len(gram), tau)
    diagonal[-1] *= INTERCEPT
    return np.asarray(np.linalg.solve(gram + np.diag(diagonal), cross + diagonal[:, None] * start))


def _nnls(gram: Floats, cross: Floats) -> Floats:
    """Minimise ``w' G w - 2 w' q`` over ``w >= 0`` by Lawson and Hanson's active sets."""
    size = len(cross)
    # Equal members make G singular; float32 sums leave noise of this order in it anyway.
    gram = gram + np.eye(size) * (1e-6 * np.trace(gram) / size)
    weights, active = np.zeros(size), np.zeros(size, np.bool_)
    tolerance = 1e-9 * max(1.0, float(np.abs(cross).max()))
    for _ in range(3 * size):
        slope = np.where(active, -np.inf, cross - gram @ weights)
        if slope.max() <= tolerance:
            break
        active[int(np.argmax(slope))] = True
        while True:
            wanted = np.zeros(size)
            wanted[active] = np.linalg.solve(gram[np.ix_(active, active)], cross[active])
            low = active & (wanted <= 0)
            if not low.any():
                break
            step = (weights[low] / np.maximum(weights[low] - wanted[low], 1e-300)).min()
            weights = weights + step * (wanted - weights)
            active &= weights > 1e-12
            weights[~active] = 0.0
        weights = wanted
    return weights


def expand(layout: Layout, weights: NDArray[Any]) -> Floats:
    """Return weights as the full matrix of shape (D, C)."""
    if len(weights) == layout.width:
        return weights.astype(np.float64)
    outputs = layout.num_outputs
    full = np.zeros((layout.num_blocks, outputs, outputs))
    full[:, np.arange(outputs), np.arange(outputs)] = weights
    return np.concatenate([full.reshape(-1, outputs), np.zeros((1, outputs))])
