"""Base estimators by name: fitted by scikit-learn, checked, predicted by NumPy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from fl_app.config.options import Task
from fl_app.config.rules import require_base_model
from fl_app.errors import ConfigError, DataError
from fl_app.models.base import Arrays
from fl_app.models.estimators.family import Encoded, Estimator, Floats
from fl_app.models.estimators.gaussian_nb import GaussianNB
from fl_app.models.estimators.hist_gradient_boosting import HistGradientBoosting
from fl_app.models.estimators.logistic import Logistic
from fl_app.models.estimators.random_forest import RandomForest
from fl_app.models.estimators.ridge import Ridge
from fl_app.models.trees import MAX_DEPTH, MAX_VALUE, Received

__all__ = ["DEFAULTS", "ESTIMATORS", "MAX_BYTES", "check", "fit", "predict"]

ESTIMATORS: Mapping[str, type[Estimator]] = {
    "ridge": Ridge,
    "logistic": Logistic,
    "gaussian_nb": GaussianNB,
    "random_forest": RandomForest,
    "hist_gradient_boosting": HistGradientBoosting,
}
"""Base estimators by name; the fields of a class are its hyperparameters."""
DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "gaussian_nb": {"var_smoothing": 1e-9},
    "random_forest": {"n_estimators": 100, "max_depth": MAX_DEPTH, "min_samples_leaf": 1},
    "hist_gradient_boosting": {
        "max_iter": 100,
        "learning_rate": 0.1,
        "max_leaf_nodes": 31,
        "min_samples_leaf": 20,
    },
}
"""scikit-learn's own hyperparameters where ours are others, to be small: for a fit on all rows."""
MAX_BYTES = 2**24
"""Bytes that the arrays of one estimator may have."""


def _require(name: str, task: Task) -> None:
    """Reject a name that is no base estimator of this task.

    Raises
    ------
    ConfigError
        As :func:`fl_app.config.rules.require_base_model`; also for ``model``, which is none.
    """
    require_base_model(name, task)
    if name not in ESTIMATORS:
        fitting = ", ".join(n for n, kind in ESTIMATORS.items() if task in kind.tasks)
        raise ConfigError("estimator", name, f"one of {fitting}")


def fit(
    name: str,
    x: NDArray[Any],
    y: NDArray[Any],
    *,
    task: Task,
    num_outputs: int,
    rng: np.random.Generator,
    params: Mapping[str, float] | None = None,
) -> Encoded:
    """Fit a base estimator on one client's rows.

    Parameters
    ----------
    name : str
        A key of :data:`ESTIMATORS`.
    x : ndarray of shape (n, D)
        Features, finite; n at least 1. Standardise them: penalties and smoothing assume it.
    y : ndarray of shape (n,) or (n, T)
        Class numbers 0..C-1, of which some may be missing, or targets.
    task : {"regression", "classification"}
        The task.
    num_outputs : int
        C or T.
    rng : numpy.random.Generator
        Draws the seed of the estimator; the same state gives the same bits.
    params : mapping of str to float, optional
        Hyperparameters that differ from the defaults of the estimator's class.

    Returns
    -------
    dict of str to ndarray
        Arrays that :func:`check` accepts and :func:`predict` reads.

    Raises
    ------
    ConfigError
        If the name or a hyperparameter is not allowed.
    DataError
        If the rows are not finite numbers of the right shape, or what was fitted is too large.
    """
    _require(name, task)
    estimator = _configured(name, params or {})
    x, y = _rows(x), _target(y, task, num_outputs)
    if len(x) != len(y) or not len(x):
        raise DataError(
            "rows", f"{len(x)} of x, {len(y)} of y", "the same number of both, at least 1"
        )
    with _solvers().limit(limits=1), _quiet():
        arrays = estimator.fit(x, y, task, num_outputs, int(rng.integers(2**31)))
    check(name, arrays, task=task, num_features=x.shape[1], num_outputs=num_outputs)
    return arrays


def check(name: str, arrays: Arrays, *, task: Task, num_features: int, num_outputs: int) -> None:
    """Reject arrays that are not a complete, bounded estimator of this shape.

    What passes predicts finite numbers in bounded time for any finite rows.

    Parameters
    ----------
    name : str
        A key of :data:`ESTIMATORS`.
    arrays : mapping of str to ndarray
        Arrays as received.
    task : {"regression", "classification"}
        The task that the estimator must be of.
    num_features, num_outputs : int
        D, and C or T.

    Raises
    ------
    ConfigError
        If the name is not allowed.
    DataError
        Naming the array and what is allowed: names, dtype, shape, finite and bounded values,
        feature numbers below D, children after their parent, depth, nodes and bytes in bounds.
    """
    _require(name, task)
    kind = ESTIMATORS[name]
    named = {key: a for key, a in arrays.items() if isinstance(a, np.ndarray)}
    expected = set(kind.names) | {"present" if task == "classification" else "baseline"}
    if set(named) != expected or len(named) != len(arrays):
        raise DataError(
            name, sorted(map(str, arrays)), f"arrays named {', '.join(sorted(expected))}"
        )
    size = sum(array.nbytes for array in named.values())
    if size > MAX_BYTES:
        raise DataError(name, f"{size} bytes", f"at most {MAX_BYTES} bytes")
    reader = Received(name, named)
    if task == "classification":
        present = reader.take("present", np.uint8, (num_outputs,))
        flags = set(present.tolist())
        reader.demand("present", flags in ({1}, {0, 1}), "0 or 1, at least one 1")
        outputs = int(present.sum())
    else:
        outputs = num_outputs
        reader.take("baseline", np.float64, (num_outputs,))
    kind.check(reader, task, num_features, outputs)


def predict(name: str, arrays: Arrays, x: NDArray[Any]) -> Floats:
    """Predict rows from arrays that :func:`fit` returned or :func:`check` accepted.

    Parameters
    ----------
    name : str
        A key of :data:`ESTIMATORS`.
    arrays : mapping of str to ndarray
        The estimator.
    x : ndarray of shape (n, D)
        Features, finite; n may be 0.

    Returns
    -------
    ndarray of shape (n, C) or (n, T)
        Probabilities, 0 for a class that the estimator never saw; or targets.
    """
    x = _rows(x)
    outputs = ESTIMATORS[name].outputs(arrays, x)
    if "baseline" in arrays:
        return np.asarray(outputs + arrays["baseline"])
    present = arrays["present"].astype(bool)
    probabilities = np.zeros((len(x), len(present)))
    probabilities[:, present] = outputs
    return probabilities


def _configured(name: str, params: Mapping[str, float]) -> Estimator:
    """Build an estimator from hyperparameters, each checked against its type and range."""
    kind = ESTIMATORS[name]
    limits = {f.name: f for f in fields(cast(Any, kind))}
    for key, value in params.items():
        dotted = f"{name}.{key}"
        if key not in limits:
            raise ConfigError(dotted, value, f"no such key; allowed are {', '.join(limits)}")
        low, high = limits[key].metadata["low"], limits[key].metadata["high"]
        whole = isinstance(limits[key].default, int)
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            word = "an integer" if whole else "a number"
            raise ConfigError(dotted, value, f"{word} from {low:g} to {high:g}")
    return kind(**params)


@cache
def _solvers() -> ThreadpoolController:
    """Load scikit-learn and return the handle on all threads of its libraries.

    An outer :func:`~fl_app.seeding.one_thread` misses libraries that load after it.
    """
    import sklearn.ensemble
    import sklearn.linear_model
    import sklearn.naive_bayes  # noqa: F401

    return ThreadpoolController()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what scikit-learn says of few rows: an optimiser stops early, classes abound."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


def _rows(x: NDArray[Any]) -> Floats:
    """Return features in float64, held within :data:`MAX_VALUE` so that no product overflows."""
    if x.ndim != 2 or x.dtype.kind not in "fiub" or not np.isfinite(x).all():
        problem = f"{x.dtype} {x.shape}" + (", some not finite" if x.dtype.kind == "f" else "")
        raise DataError("x", problem, "finite numbers of shape (n, D)")
    return np.clip(x.astype(np.float64), -MAX_VALUE, MAX_VALUE)


def _target(y: NDArray[Any], task: Task, num_outputs: int) -> NDArray[Any]:
    if task == "classification":
        good = y.ndim == 1 and y.dtype.kind in "iu" and bool(((y >= 0) & (y < num_outputs)).all())
        if not good:
            raise DataError("y", y.ravel()[:8], f"class numbers below {num_outputs} of shape (n,)")
        return y.astype(np.int64)
    columns = y[:, None] if y.ndim == 1 else y
    if columns.shape[1:] != (num_outputs,) or not np.isfinite(columns).all():
        raise DataError("y", f"{y.dtype} {y.shape}", f"finite numbers of shape (n, {num_outputs})")
    return columns.astype(np.float64)
