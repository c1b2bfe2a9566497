"""Classification toy sets of scikit-learn, with its column names and its integer labels.

References
----------
scikit-learn, "Toy datasets": https://scikit-learn.org/stable/datasets/toy_dataset.html
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.data.table import Table, numeric_table

__all__ = ["breast_cancer", "digits", "iris", "wine"]


def digits() -> Table:
    """Load digits: 1797 rows, 64 pixels, digits 0 to 9.

    To import scikit-learn takes a second, in each actor of a simulation and in each worker, so its
    file is read without it where it is found.
    """
    found = find_spec("sklearn")
    package = Path(found.origin).parent if found is not None and found.origin else Path()
    file = package / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",") if file.is_file() else _loaded_digits()
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    return numeric_table(
        "classification", rows[:, :-1], names, rows[:, -1].astype(np.int64), ["digit"]
    )


def _loaded_digits() -> NDArray[Any]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def iris() -> Table:
    """Load iris: 150 rows, 4 columns, species 0 setosa, 1 versicolor, 2 virginica."""
    from sklearn.datasets import load_iris

    return _table(load_iris(), "species")


def wine() -> Table:
    """Load wine: 178 rows, 13 columns, cultivars 0, 1 and 2."""
    from sklearn.datasets import load_wine

    return _table(load_wine(), "cultivar")


def breast_cancer() -> Table:
    """Load breast cancer: 569 rows, 30 columns, diagnosis 0 malignant, 1 benign."""
    from sklearn.datasets import load_breast_cancer

    return _table(load_breast_cancer(), "diagnosis")


def _table(bunch: Any, label: str) -> Table:
    names = [str(name) for name in bunch.feature_names]
    return numeric_table("classification", bunch.data, names, bunch.target, [label])
