"""The interval over test rows that all seeds share, from the losses of each run's final model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fl_app.report.budgets import Pair, Point
from fl_app.report.grounds import Ground, shares_test_rows, with_ground
from fl_app.report.intervals import FEWEST_PAIRS, Interval, over_rows
from fl_app.report.pairing import Design
from fl_app.report.runs import RunSummary
from fl_app.tracking.metric_names import FINAL_LOSSES

__all__ = ["rather_over_rows"]

_NEAR = 1e-4
"""Share by which the mean of losses in single precision may miss the metric."""


def rather_over_rows(
    interval: Interval, design: Design, pairs: Sequence[Pair], metric: str
) -> Interval:
    """Replace an interval over seeds that share their test rows by one over these rows.

    Parameters
    ----------
    interval : Interval
        The one over seeds.
    design : Design
        The runs in their places.
    pairs : sequence of Pair
        The pairs behind it.
    metric : str
        The metric.

    Returns
    -------
    Interval
        The bootstrap's, or the given one with what that lacks; the given one as it is where seeds
        have test rows of their own, where there are too few pairs, or none that differ.
    """
    runs = {run.run_id: run for seeds in design.runs.values() for run in seeds.values()}
    sizes = Counter(pair.cell for pair in pairs)
    fewest = min(sizes.values())
    shared = [shares_test_rows(runs[pair.level.run_id], metric) for pair in pairs]
    if not any(shared) or fewest < FEWEST_PAIRS or interval.kind == "undecided":
        return interval
    if not all(shared):
        return replace(interval, lack="only in some of the cells the seeds share their test rows")
    sums: dict[str, NDArray[np.float64]] = {}
    rows: dict[str, int] = {}
    for pair in pairs:
        table = runs[pair.level.run_id].tags.get("data.sha256", "")
        both = []
        for point in (pair.level, pair.baseline):
            own = _losses(runs[point.run_id], point, metric)
            if own is None or len(own) != rows.setdefault(table, len(own)):
                title = runs[point.run_id].title
                lack = f"all seeds share their test rows, and {title} has no {FINAL_LOSSES}"
                return replace(interval, lack=f"{lack} for {metric} there")
            both.append(own)
        # Cells count alike, and the seeds of a cell; cells of one table have the same test rows.
        difference = (both[0] - both[1]) / (len(sizes) * sizes[pair.cell])
        sums[table] = sums[table] + difference if table in sums else difference
    found = over_rows([sums[table] for table in sorted(sums)], len(pairs))
    return with_ground(found, [Ground(found.kind)], fewest)


def _losses(run: RunSummary, point: Point, metric: str) -> NDArray[np.float64] | None:
    """Return a run's losses if they are those of a point: a file may be of another round."""
    if run.losses is None or point.server_round != max(run.curves[metric]):
        return None
    mean = float(run.losses.mean())
    return run.losses if abs(mean - point.value) <= _NEAR * max(abs(point.value), 1e-3) else None
