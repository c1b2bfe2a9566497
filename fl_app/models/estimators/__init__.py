"""Base estimators of a stack: fitted by scikit-learn, carried by named arrays, predicted by NumPy.

A fitted estimator leaves a client as numbers only, in arrays whose every value is checked before
use: no pickle, no object, no code. What cannot be written so without its training rows (nearest
neighbours, kernel machines) is refused by name.

Linear models and naive Bayes travel as their parameters in float32, trees as
:mod:`fl_app.models.trees` has them. Features of trees are rounded to float32 when fitted and when
predicted; a threshold rounded down to float32 then splits exactly as the fitted one does.

References
----------
scikit-learn, "Model persistence": https://scikit-learn.org/stable/model_persistence.html
"""

from typing import TYPE_CHECKING

from fl_app.lazy import exporter
from fl_app.models.trees import MAX_DEPTH, MAX_NODES, MAX_VALUE

if TYPE_CHECKING:
    from fl_app.models.estimators.catalogue import (
        DEFAULTS,
        ESTIMATORS,
        MAX_BYTES,
        check,
        fit,
        predict,
    )
    from fl_app.models.estimators.family import num_scores, probabilities

__all__ = [
    "DEFAULTS",
    "ESTIMATORS",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_NODES",
    "MAX_VALUE",
    "check",
    "fit",
    "num_scores",
    "predict",
    "probabilities",
]

_HOMES = {
    "catalogue": ["DEFAULTS", "ESTIMATORS", "MAX_BYTES", "check", "fit", "predict"],
    "family": ["num_scores", "probabilities"],
}

__getattr__ = exporter(__name__, _HOMES)
