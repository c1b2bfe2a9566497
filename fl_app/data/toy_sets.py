"""Classification toy sets of scikit-learn, with its column names and its integer labels.

References
----------
scikit-learn, "Toy datasets": https://scikit-learn.org/stable/datasets/toy_dataset.html
"""

from __future__ import annotations

from typing import Any

from fl_app.data.table import Table, numeric_table

__all__ = ["breast_cancer", "iris", "wine"]


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
