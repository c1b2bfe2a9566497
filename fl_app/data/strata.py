"""Groups rows by what a partitioner spreads over clients: classes, or deciles of a target."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_app.data.table import Table

__all__ = ["strata"]


def strata(table: Table) -> NDArray[np.int64]:
    """Return the class of each row as 0..C-1; for regression the decile of the (first) target.

    Deciles that hold no row because of ties have no number.
    """
    if table.task == "classification":
        return np.unique(table.target, return_inverse=True)[1]
    value = table.target[:, 0]
    edges = np.quantile(value, np.arange(1, 10) / 10)
    return np.unique(np.searchsorted(edges, value, side="right"), return_inverse=True)[1]
