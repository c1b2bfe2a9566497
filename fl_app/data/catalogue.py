"""The data sets that a config can name, each as one :class:`~fl_app.data.table.Table`.

Sources
-------
digits, diabetes: scikit-learn's toy data sets,
https://scikit-learn.org/stable/datasets/toy_dataset.html.
two_lines: y = 2x + 1 and y = x + 1 at x = -1 and x = +1 in turn, computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from fl_app.data.table import Table, numeric_table
from fl_app.schema import DatasetConfig, TwoLinesConfig

__all__ = ["load"]


@lru_cache(maxsize=8)
def load(dataset: DatasetConfig, seed: int) -> Table:
    """Load a data set.

    Parameters
    ----------
    dataset : DatasetConfig
        Which one, with its options.
    seed : int
        Seed of the data that is drawn rather than read.

    Returns
    -------
    Table
        Shared by all callers: do not write to it.
    """
    return _LOADERS[dataset.name](dataset, seed)


def _digits(dataset: DatasetConfig, seed: int) -> Table:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return numeric_table("classification", bunch.data, bunch.feature_names, bunch.target, ["digit"])


def _diabetes(dataset: DatasetConfig, seed: int) -> Table:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return numeric_table(
        "regression", bunch.data, bunch.feature_names, bunch.target, ["progression"]
    )


def _two_lines(dataset: DatasetConfig, seed: int) -> Table:
    assert isinstance(dataset, TwoLinesConfig)
    slopes = (2.0, 1.0)
    x = [np.resize([-1.0, 1.0], n) for n in dataset.rows]
    y = [slope * part + 1.0 for slope, part in zip(slopes, x, strict=True)]
    owners = np.repeat(np.arange(len(slopes)), dataset.rows)
    return numeric_table(
        "regression", np.concatenate(x)[:, None], ["x"], np.concatenate(y), ["y"], owners
    )


_LOADERS: Mapping[str, Callable[[DatasetConfig, int], Table]] = {
    "digits": _digits,
    "diabetes": _diabetes,
    "two_lines": _two_lines,
}
