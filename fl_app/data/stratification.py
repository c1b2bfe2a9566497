"""Groups rows by what a partitioner spreads over clients: classes, or deciles of a target."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.table import Table

__all__ = ["classes_of", "strata"]


def strata(table: Table) -> NDArray[np.int64]:
    """Return the class of each row as 0..C-1; for regression the decile of the (first) target.

    Deciles that hold no row because of ties have no number.
    """
    if table.task == "classification":
        return classes_of(table.target)
    value = table.target[:, 0]
    edges = np.quantile(value, np.arange(1, 10) / 10)
    return np.unique(np.searchsorted(edges, value, side="right"), return_inverse=True)[1]


def classes_of(target: NDArray[Any]) -> NDArray[np.int64]:
    """Return the class of each row as 0..C-1, from labels or targets of shape (n,) or (n, T)."""
    # Texts and numbers together have no order.
    comparable = target.astype(str) if target.dtype == object else target
    return np.unique(comparable, return_inverse=True)[1]
