r"""The interval of a mean paired difference, over cells that count alike.

A *pair* is two runs with one seed in one cell (one data set, one partitioner, ...); its difference
is :math:`d_{cs}`. With :math:`C` cells of :math:`n_c` seeds each, the estimate is the mean over
cells of the cell's mean, :math:`D = \frac1C \sum_c \bar d_c`: a cell with more seeds weighs no
more. Cells are chosen by somebody and are taken as they are; seeds stand for all seeds. The
interval therefore says what other seeds would give in the same cells, not what other cells would.

On one data set a seed draws the same test rows and the same start in every cell, so pairs of one
seed are not independent: they are summed before anything is squared. With

.. math:: V_b = \sum_s \Big(\sum_{c \in b} \tfrac{1}{C n_c} \sqrt{\tfrac{n_c}{n_c - 1}}
          (d_{cs} - \bar d_c)\Big)^2

over the cells :math:`b` of one data set, the variance of :math:`D` is the sum of :math:`V_b` over
data sets (whose seeds have nothing in common), and Student's t has
:math:`(\sum_b V_b)^2 / \sum_b V_b^2 / f_b` degrees of freedom, :math:`f_b = \min_c n_c - 1`.

This is the paired t-test for one cell; the t-test on each seed's mean over cells where the cells of
one data set have the same seeds; Welch's interval where each cell is a data set of its own. Where
seeds differ between cells of one data set it is an approximation.

References
----------
Student 1908, "The Probable Error of a Mean", https://doi.org/10.1093/biomet/6.1.1.
Welch 1947, "The generalization of 'Student's' problem when several different population variances
are involved", https://doi.org/10.1093/biomet/34.1-2.28.
Liang and Zeger 1986, "Longitudinal data analysis using generalized linear models" (sums over what
belongs together before squaring), https://doi.org/10.1093/biomet/73.1.13.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CONFIDENCE", "Interval", "mean_and_sd", "mean_difference"]

CONFIDENCE = 0.95

Cells = Mapping[str, Mapping[str, float]]
"""Cell -> seed -> value."""


@dataclass(frozen=True)
class Interval:
    """A mean difference and how sure it is.

    Parameters
    ----------
    mean : float
        The estimate.
    low, high : float or None
        Ends of the 95 % interval; None where a cell has a single pair, which says nothing of the
        spread.
    num_pairs : int
        Pairs behind it.
    """

    mean: float
    low: float | None
    high: float | None
    num_pairs: int


def mean_difference(differences: Cells, blocks: Mapping[str, str] | None = None) -> Interval:
    """Estimate the mean difference over cells, as this module's description says.

    Parameters
    ----------
    differences : mapping of str to (mapping of str to float)
        Cell -> seed -> difference of the pair; at least one of each.
    blocks : mapping of str to str, optional
        Cell -> its data set; by default all cells are of one.

    Returns
    -------
    Interval

    Examples
    --------
    >>> mean_difference({"": {"0": 0.0, "1": 1.0, "2": 2.0}})
    Interval(mean=1.0, low=-1.4841377117503298, high=3.48413771175033, num_pairs=3)
    """
    mean = _mean([_mean(cell) for cell in _columns(differences)])
    num_pairs = sum(len(pairs) for pairs in differences.values())
    if min(len(pairs) for pairs in differences.values()) < 2:
        return Interval(mean, None, None, num_pairs)
    by_block: dict[str, dict[str, Mapping[str, float]]] = {}
    for cell, pairs in sorted(differences.items()):
        by_block.setdefault("" if blocks is None else blocks[cell], {})[cell] = pairs
    variances = [_variance(cells, len(differences)) for cells in by_block.values()]
    freedoms = [min(map(len, cells.values())) - 1 for cells in by_block.values()]
    total = sum(variances)
    half = _quantile(variances, freedoms) * math.sqrt(total) if total else total
    return Interval(mean, mean - half, mean + half, num_pairs)


def _variance(cells: Cells, num_cells: int) -> float:
    """Return a data set's share V_b of the estimate's variance."""
    scores: dict[str, float] = {}
    for pairs, column in zip((cells[name] for name in sorted(cells)), _columns(cells), strict=True):
        n, mean = len(pairs), _mean(column)
        weight = math.sqrt(n / (n - 1)) / (num_cells * n)
        for seed in sorted(pairs):
            scores[seed] = scores.get(seed, 0.0) + weight * (pairs[seed] - mean)
    return sum(score * score for score in scores.values())


def _columns(cells: Cells) -> list[list[float]]:
    """Return each cell's values, always in the same order: sums keep their bits."""
    return [[cells[cell][seed] for seed in sorted(cells[cell])] for cell in sorted(cells)]


def _mean(values: Sequence[float]) -> float:
    # Not fsum: it raises where a run diverged to infinity.
    return sum(values) / len(values)


def _quantile(variances: Sequence[float], freedoms: Sequence[int]) -> float:
    """Return Student's quantile for the 95 % interval, with Welch's degrees of freedom."""
    from scipy.special import stdtrit  # scipy.stats takes half a second to import

    # Shares first: the squares of tiny variances would vanish.
    shares = [variance / sum(variances) for variance in variances]
    freedom = 1 / sum(share**2 / f for share, f in zip(shares, freedoms, strict=True))
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def mean_and_sd(values: Cells) -> tuple[float, float | None]:
    """Return the mean over cells of the cells' means, and the deviation within a cell.

    Parameters
    ----------
    values : mapping of str to (mapping of str to float)
        Cell -> seed -> value; at least one of each.

    Returns
    -------
    mean : float
        Every cell counts alike.
    sd : float or None
        Root of the mean over cells of the variances between seeds (n - 1 in the denominator); None
        where a cell has a single value.
    """
    cells = _columns(values)
    means = [_mean(cell) for cell in cells]
    if min(map(len, cells)) < 2:
        return _mean(means), None
    variances = [
        sum((value - mean) * (value - mean) for value in cell) / (len(cell) - 1)
        for cell, mean in zip(cells, means, strict=True)
    ]
    return _mean(means), math.sqrt(_mean(variances))
