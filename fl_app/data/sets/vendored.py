"""Data sets with natural clients that come along with fl_app, as JSON that a Flower bundle carries.

Sources, licences and attribution stand in each file and in ``vendored/README.md``.

References
----------
Janosi, Steinbrunn, Pfisterer and Detrano 1989, "Heart Disease", https://doi.org/10.24432/C52P4X.
Ogier du Terrail et al. 2022, "FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in
Realistic Healthcare Settings" (rows and split of ``heart_disease``), https://arxiv.org/abs/2210.04620.
Gorman, Williams and Fraser 2014 (``penguins``), https://doi.org/10.1371/journal.pone.0090081.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.table import Table, numeric_table

__all__ = ["flamby_split", "heart_disease", "penguins"]

Rows = NDArray[np.int64]

_HEART = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")
_HEART_TEXTS = ("cp", "restecg")
_PENGUINS = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")


def heart_disease() -> Table:
    """Load the 740 complete rows of UCI's heart disease data; the label is 1 with disease, else 0.

    Columns and rows are those of FLamby's Fed-Heart-Disease. ``cp`` and ``restecg`` are codes
    without an order, so they are categorical columns here, with UCI's words as levels. Owners are
    the hospitals: 0 Cleveland, 1 Hungary, 2 Switzerland, 3 VA Long Beach.

    Returns
    -------
    Table
        10 raw columns, 8 numeric and 2 categorical, sorted by hospital in UCI's order.
    """
    data = _heart_rows()
    numbers = tuple(name for name in _HEART if name not in _HEART_TEXTS)
    return Table(
        task="classification",
        columns=_HEART,
        numeric=data.numbers(*numbers),
        numeric_names=numbers,
        categorical=np.stack([data.texts(name) for name in _HEART_TEXTS], axis=1),
        categorical_names=_HEART_TEXTS,
        target=(data.integers("num") > 0).astype(np.int64),
        target_names=("disease",),
        owners=data.integers("hospital"),
        owner_names=tuple(data.levels["hospital"].values()),
    )


def flamby_split() -> tuple[Rows, Rows]:
    """Return FLamby's fixed split of :func:`heart_disease`.

    Returns
    -------
    (train, test) : tuple of ndarray of int64
        Sorted row numbers, 486 and 254; by hospital 199/104, 172/89, 30/16 and 85/45.
    """
    test = _heart_rows().integers("flamby_test") == 1
    return np.flatnonzero(~test), np.flatnonzero(test)


def penguins() -> Table:
    """Load the 333 complete rows of the Palmer penguins; the label is the species' name.

    The columns are the four measurements, all numbers. Sex is no feature, as it was told by
    genetic test and not by looking; rows without it are left out all the same, so that the rows
    are those of the complete set that everybody uses. Owners are the islands: 0 Biscoe, 1 Dream,
    2 Torgersen.
    """
    data = _read("penguins")
    data = data.take(data.complete(*_PENGUINS, "sex"))
    return numeric_table(
        "classification",
        data.numbers(*_PENGUINS),
        _PENGUINS,
        data.texts("species"),
        ("species",),
        data.integers("island"),
        tuple(data.levels["island"].values()),
    )


@dataclass(frozen=True, eq=False)
class _Columns:
    """A vendored file in memory; missing cells are NaN.

    Parameters
    ----------
    names : tuple of str
        Its columns.
    cells : ndarray of shape (n, d), float64
        Its rows.
    levels : dict of str to (dict of str to str)
        For a column of codes, each code's text.
    """

    names: tuple[str, ...]
    cells: NDArray[np.float64]
    levels: dict[str, dict[str, str]]

    def complete(self, *names: str) -> Rows:
        """Return the rows that have a value in each of the columns."""
        return np.flatnonzero(~np.isnan(self.numbers(*names)).any(axis=1))

    def take(self, rows: Rows) -> _Columns:
        return _Columns(self.names, self.cells[rows], self.levels)

    def numbers(self, *names: str) -> NDArray[np.float64]:
        """Return columns of shape (n, len(names))."""
        return self.cells[:, [self.names.index(name) for name in names]]

    def integers(self, name: str) -> NDArray[np.int64]:
        return self.numbers(name)[:, 0].astype(np.int64)

    def texts(self, name: str) -> NDArray[Any]:
        """Return a column of codes as its texts."""
        level = self.levels[name]
        return np.array([level[str(code)] for code in self.integers(name)], dtype=object)


def _heart_rows() -> _Columns:
    data = _read("heart_disease")
    return data.take(data.complete(*_HEART))


@lru_cache(maxsize=2)
def _read(name: str) -> _Columns:
    path = Path(__file__).with_name("files") / f"{name}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    # None becomes NaN.
    cells = np.array(data["rows"], dtype=np.float64)
    cells.setflags(write=False)
    return _Columns(tuple(data["columns"]), cells, data["levels"])
