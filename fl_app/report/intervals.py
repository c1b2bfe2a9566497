r"""The interval of a mean paired difference: over seeds, in cells that count alike, or over rows.

A *pair* is two runs with one seed in one cell (one data set, one partitioner, ...); its difference
is :math:`d_{cs}`. With :math:`C` cells of :math:`n_c` seeds each, the estimate is the mean over
cells of the cell's mean, :math:`D = \frac1C \sum_c \bar d_c`: a cell with more seeds weighs no
more. Cells are chosen by somebody and are taken as they are; seeds stand for all seeds. The
interval therefore says what other seeds would give in the same cells, not what other cells would.

**Over seeds** (:func:`mean_difference`). On one data set a seed draws the same test rows and the
same start in every cell, so pairs of one seed are not independent: they are summed before anything
is squared. With the residuals :math:`e_{cs} = \sqrt{n_c / (n_c - 1)} (d_{cs} - \bar d_c)` and

.. math:: V_b = \sum_s \Big(\sum_{c \in b} \tfrac{1}{C n_c} e_{cs}\Big)^2
              + \sum_s \Big(\sum_{c \in b} \tfrac{\sqrt{n_c \rho_c}}{C n_c} e_{cs}\Big)^2

over the cells :math:`b` of one data set, the variance of :math:`D` is the sum of :math:`V_b` over
data sets (whose seeds have nothing in common), and Student's t has
:math:`(\sum_b V_b)^2 / \sum_b V_b^2 / f_b` degrees of freedom, :math:`f_b = \min_c n_c - 1`.

The second sum is the correction of Nadeau and Bengio. Where each seed draws its test rows from one
and the same table, two seeds' training sets share most of their rows, and their differences have a
correlation that no number of seeds averages away. Taken as :math:`r = n_{test} / n`, it makes the
variance of a mean of :math:`J` differences :math:`\sigma^2 (1/J + r (J - 1) / J)` and the expected
:math:`s^2` only :math:`\sigma^2 (1 - r)`; hence :math:`s^2 (1/J + \rho)` with
:math:`\rho = r / (1 - r) = n_{test} / n_{train}`. Of two cells :math:`c, c'` of one data set the
covariance within a seed, :math:`s_{cc'}`, counts likewise: :math:`1/J` of it from seeds,
:math:`\sqrt{\rho_c \rho_{c'}}` of it from the common table, which is the product above.
:math:`\rho_c = 0` leaves Student's t: seeds with data of their own, or no claim about other rows.

This is the (corrected) paired t-test for one cell, :math:`V = s^2 (1/J + \rho)`; the one on each
seed's mean over cells where the cells of one data set have the same seeds,
:math:`V_b (1 + J \rho)` times what it is uncorrected; Welch's interval where each cell is a data
set of its own. Where seeds differ between cells of one data set it is an approximation.

**Over rows** (:func:`over_rows`). Where all seeds share their test rows, these are what other
samples would differ in: rows are drawn again, with replacement, and the mean of their differences
is taken each time (BCa: bias-corrected and accelerated quantiles).

References
----------
Student 1908, "The Probable Error of a Mean", https://doi.org/10.1093/biomet/6.1.1.
Welch 1947, "The generalization of 'Student's' problem when several different population variances
are involved", https://doi.org/10.1093/biomet/34.1-2.28.
Liang and Zeger 1986, "Longitudinal data analysis using generalized linear models" (sums over what
belongs together before squaring), https://doi.org/10.1093/biomet/73.1.13.
Nadeau and Bengio 2003, "Inference for the Generalization Error" (the corrected resampled t),
https://doi.org/10.1023/A:1024068626366.
Efron 1987, "Better Bootstrap Confidence Intervals" (BCa), https://doi.org/10.2307/2289144.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_app.seeding import generator

__all__ = [
    "CONFIDENCE",
    "FEWEST_PAIRS",
    "Interval",
    "mean_and_sd",
    "mean_difference",
    "over_rows",
]

CONFIDENCE = 0.95
FEWEST_PAIRS = 3
"""Pairs in a cell below which there is no interval: two that differ by one row would have one."""
RESAMPLES = 10_000
_ROUNDING = 1e-12
_CHUNK = 2**22

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
        Ends of the 95 % interval; None where there is none.
    num_pairs : int
        Pairs behind it.
    kind : str
        ``"t"``, ``"corrected t"`` or ``"bootstrap"``; ``"none"``, or ``"undecided"`` where all
        differences are 0. What knows the runs may say it more exactly (:mod:`.grounds`).
    lack : str
        Why there is no interval, or none that a strict claim may rest on; "" where one may.
    """

    mean: float
    low: float | None
    high: float | None
    num_pairs: int
    kind: str = "t"
    lack: str = ""


def mean_difference(
    differences: Cells,
    blocks: Mapping[str, str] | None = None,
    ratios: Mapping[str, float] | None = None,
    scale: float = 0.0,
) -> Interval:
    """Estimate the mean difference over cells, as this module's description says.

    Parameters
    ----------
    differences : mapping of str to (mapping of str to float)
        Cell -> seed -> difference of the pair; at least one of each.
    blocks : mapping of str to str, optional
        Cell -> its data set; by default all cells are of one.
    ratios : mapping of str to float, optional
        Cell -> n_test / n_train where the seed draws the test rows, else 0; by default 0.
    scale : float, default 0
        Size of the values that were subtracted: what differs by less than 1e-12 of it is equal.

    Returns
    -------
    Interval
        Without ends where a cell has fewer than three pairs, or where all of a cell's differences
        are equal in every cell: they tell nothing of the spread.

    Examples
    --------
    >>> pairs = {"": {"0": 0.0, "1": 1.0, "2": 2.0}}
    >>> plain, corrected = mean_difference(pairs), mean_difference(pairs, ratios={"": 0.25})
    >>> plain.kind, plain.low, plain.high
    ('t', -1.4841377117503298, 3.48413771175033)
    >>> corrected.kind, (corrected.high - 1) / (plain.high - 1), (1 + 3 * 0.25) ** 0.5
    ('corrected t', 1.3228756555322954, 1.3228756555322954)
    """
    ratios = ratios or {}
    columns = _columns(differences)
    mean = _mean([_mean(column) for column in columns])
    num_pairs, fewest = sum(map(len, columns)), min(map(len, columns))
    equal = _ROUNDING * max(scale, *(abs(v) for column in columns for v in column))
    if all(abs(v) <= equal for column in columns for v in column):
        return Interval(mean, None, None, num_pairs, "undecided", "all differences are 0")
    if fewest < FEWEST_PAIRS:
        lack = f"{fewest} of the {FEWEST_PAIRS} pairs that an interval needs"
        return Interval(mean, None, None, num_pairs, "none", lack)
    by_block: dict[str, dict[str, Mapping[str, float]]] = {}
    for cell, pairs in sorted(differences.items()):
        by_block.setdefault("" if blocks is None else blocks[cell], {})[cell] = pairs
    variances = [_variance(cells, ratios, len(differences)) for cells in by_block.values()]
    freedoms = [min(map(len, cells.values())) - 1 for cells in by_block.values()]
    total = sum(variances)
    if total == 0 or all(max(column) - min(column) <= equal for column in columns):
        lack = "all differences are equal, which tells nothing of the spread"
        return Interval(mean, None, None, num_pairs, "none", lack)
    half = _quantile(variances, freedoms) * math.sqrt(total)
    kind = "corrected t" if any(ratios.values()) else "t"
    return Interval(mean, mean - half, mean + half, num_pairs, kind)


def _variance(cells: Cells, ratios: Mapping[str, float], num_cells: int) -> float:
    """Return a data set's share V_b of the estimate's variance."""
    own: dict[str, float] = {}
    common: dict[str, float] = {}
    for name, column in zip(sorted(cells), _columns(cells), strict=True):
        pairs, n, mean = cells[name], len(column), _mean(column)
        weight = math.sqrt(n / (n - 1)) / (num_cells * n)
        root = math.sqrt(n * ratios.get(name, 0.0))
        for seed in sorted(pairs):
            score = weight * (pairs[seed] - mean)
            own[seed] = own.get(seed, 0.0) + score
            common[seed] = common.get(seed, 0.0) + root * score
    return sum(score * score for scores in (own, common) for score in scores.values())


def over_rows(differences: Sequence[NDArray[np.float64]], num_pairs: int) -> Interval:
    """Estimate the sum of means over sets of rows, each set drawn again by itself.

    Parameters
    ----------
    differences : sequence of ndarray of shape (n_b,)
        For each set of test rows, every row's difference: means over seeds, and sums over the cells
        that share the rows, each with the weight it has in the estimate.
    num_pairs : int
        Pairs of runs behind them.

    Returns
    -------
    Interval
        From 10,000 resamples, the same ones each time; without ends where no set's rows differ.
    """
    from scipy.special import ndtr, ndtri

    means = [float(rows.mean()) for rows in differences]
    mean = sum(means)
    if not any(rows.any() for rows in differences):
        return Interval(mean, None, None, num_pairs, "undecided", "all rows' differences are 0")
    shares = [(rows - m) / len(rows) for rows, m in zip(differences, means, strict=True)]
    spread = sum(float(np.square(share).sum()) for share in shares)
    if not (math.isfinite(spread) and spread > (_ROUNDING * mean) ** 2):
        lack = "the rows' differences are all equal, or no finite numbers"
        return Interval(mean, None, None, num_pairs, "none", lack)
    drawn = np.sort(sum(_resampled(rows, block) for block, rows in enumerate(differences)))
    tie = 1e-9 * math.sqrt(spread)  # of few different values many means are equal but for rounding
    below = (np.count_nonzero(drawn < mean - tie) + np.count_nonzero(drawn <= mean + tie)) / 2
    bias = ndtri(min(max(below, 0.5), RESAMPLES - 0.5) / RESAMPLES)
    acceleration = sum(float((share**3).sum()) for share in shares) / (6 * spread**1.5)
    ends = bias + ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    levels = ndtr(bias + ends / (1 - acceleration * ends))
    low, high = (float(end) for end in np.quantile(drawn, levels))
    return Interval(mean, low, high, num_pairs, "bootstrap")


def _resampled(rows: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Return the means of all resamples of a set of rows."""
    rng, n = generator(0, "bootstrap", 0, block), len(rows)
    size = max(1, _CHUNK // n)
    counts = [min(size, RESAMPLES - first) for first in range(0, RESAMPLES, size)]
    return np.concatenate([rows[rng.integers(n, size=(k, n))].mean(axis=1) for k in counts])


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
