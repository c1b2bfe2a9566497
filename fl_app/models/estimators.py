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

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from fl_app.config.options import Task
from fl_app.config.rules import require_base_model
from fl_app.errors import ConfigError, DataError
from fl_app.models.base import Arrays
from fl_app.models.trees import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_VALUE,
    TREES,
    Forest,
    Nodes,
    Received,
    check_trees,
    encode_trees,
    float32,
    single,
)

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

Floats = NDArray[np.float64]
Encoded = dict[str, NDArray[Any]]

MAX_BYTES = 2**24
"""Bytes that the arrays of one estimator may have."""


# ---------------------------------------------------------------------------- what the others use
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


class Estimator(Protocol):
    """A family of base estimators: hyperparameters in the instance, everything else static."""

    tasks: ClassVar[Sequence[Task]]
    names: ClassVar[Sequence[str]]

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return the arrays of an estimator fitted on checked rows."""
        ...

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check the arrays besides ``present`` and ``baseline`` for a number of seen outputs."""
        ...

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return probabilities of the classes seen, (n, k), or distances from ``baseline``."""
        ...


def _param(default: float, low: float, high: float) -> Any:
    """Declare a hyperparameter with its default and its closed range."""
    return field(default=default, metadata={"low": low, "high": high})


# ---------------------------------------------------------------------------- linear, naive Bayes
@dataclass(frozen=True)
class Ridge:
    """Ridge regression, ``|y - x w - b|^2 + alpha |w|^2``.

    Arrays: ``coef`` (T, D) float32 and ``baseline`` (T,) float64, since a target may have a large
    offset.
    """

    alpha: float = _param(1.0, 1e-9, 1e9)

    tasks: ClassVar[Sequence[Task]] = ("regression",)
    names: ClassVar[Sequence[str]] = ("coef",)

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return ``coef`` and ``baseline``."""
        from sklearn.linear_model import Ridge as Solver

        # svd alone needs no well-conditioned matrix, whatever the number of rows.
        model = Solver(alpha=self.alpha, solver="svd").fit(x, y)
        return {
            "coef": float32(model.coef_).reshape(num_outputs, x.shape[1]),
            "baseline": np.asarray(model.intercept_, np.float64).reshape(num_outputs),
        }

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check ``coef``."""
        reader.take("coef", np.float32, (outputs, num_features))

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return ``x coef'``."""
        return np.asarray(x @ arrays["coef"].astype(np.float64).T)


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression over the classes that the client has.

    Arrays: ``coef`` (R, D) and ``intercept`` (R,) float32, ``present`` (C,) uint8. R is the number
    of classes seen, but 1 for two (log odds of the second) and 0 for one.
    """

    C: float = _param(1.0, 1e-9, 1e9)
    max_iter: int = _param(200, 1, 100_000)

    tasks: ClassVar[Sequence[Task]] = ("classification",)
    names: ClassVar[Sequence[str]] = ("coef", "intercept")

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return ``coef``, ``intercept`` and ``present``."""
        present = _present(y, num_outputs)
        if present.sum() == 1:
            nothing = {"coef": np.zeros((0, x.shape[1])), "intercept": np.zeros(0)}
            return {k: float32(v) for k, v in nothing.items()} | {"present": present}
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=self.C, max_iter=int(self.max_iter)).fit(x, y)
        parameters = {"coef": model.coef_, "intercept": model.intercept_}
        return {k: float32(v) for k, v in parameters.items()} | {"present": present}

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check ``coef`` and ``intercept``."""
        rows = num_scores(outputs)
        reader.take("coef", np.float32, (rows, num_features))
        reader.take("intercept", np.float32, (rows,))

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return the softmax of ``x coef' + intercept``."""
        coef, intercept = (arrays[k].astype(np.float64) for k in ("coef", "intercept"))
        return probabilities(x @ coef.T + intercept)


@dataclass(frozen=True)
class GaussianNB:
    """Gaussian naive Bayes over the classes that the client has.

    Arrays: ``log_prior`` (k,), ``mean`` and ``variance`` (k, D), all float32, and ``present`` (C,)
    uint8, for k classes seen.
    """

    var_smoothing: float = _param(0.1, 1e-15, 1e6)

    tasks: ClassVar[Sequence[Task]] = ("classification",)
    names: ClassVar[Sequence[str]] = ("log_prior", "mean", "variance")

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return the moments of each class."""
        from sklearn.naive_bayes import GaussianNB as Solver

        model = Solver(var_smoothing=self.var_smoothing).fit(x, y)
        # Equal rows have no variance to smooth with; any common one leaves the prior to decide.
        variance = model.var_ if model.epsilon_ > 0 else np.ones_like(model.var_)
        return {
            "log_prior": float32(np.log(model.class_prior_)),
            "mean": float32(model.theta_),
            "variance": float32(np.maximum(variance, 1 / MAX_VALUE)),
            "present": _present(y, num_outputs),
        }

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check the moments."""
        reader.take("log_prior", np.float32, (outputs,))
        reader.take("mean", np.float32, (outputs, num_features))
        variance = reader.take("variance", np.float32, (outputs, num_features))
        floor = np.float32(1 / MAX_VALUE)
        reader.demand("variance", bool((variance >= floor).all()), f"at least {floor:g}")

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return the softmax of the joint log likelihoods."""
        moments = (arrays[k].astype(np.float64) for k in ("log_prior", "mean", "variance"))
        columns = [
            prior - 0.5 * (np.log(2 * np.pi * var).sum() + (np.square(x - mean) / var).sum(axis=1))
            for prior, mean, var in zip(*moments, strict=True)
        ]
        return _softmax(np.stack(columns, axis=1))


# ---------------------------------------------------------------------------- trees


@dataclass(frozen=True)
class RandomForest:
    """Random forest: the mean over its trees.

    Arrays: ``sizes`` (trees,) int32, ``feature`` (nodes,) int32 (-1 marks a leaf), ``threshold``
    (inner nodes,) float32, ``value`` (leaves, k or T) float32: class shares that sum to 1, or
    distances from ``baseline`` (T,) float64.
    """

    n_estimators: int = _param(20, 1, 500)
    max_depth: int = _param(8, 1, MAX_DEPTH)
    min_samples_leaf: int = _param(1, 1, 10_000)

    tasks: ClassVar[Sequence[Task]] = ("regression", "classification")
    names: ClassVar[Sequence[str]] = TREES

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return the encoded trees with ``present`` or ``baseline``."""
        from sklearn import ensemble

        classes = task == "classification"
        kind = ensemble.RandomForestClassifier if classes else ensemble.RandomForestRegressor
        offset = np.zeros(1) if classes else y.mean(axis=0)
        model = kind(
            n_estimators=int(self.n_estimators),
            max_depth=int(self.max_depth),
            min_samples_leaf=int(self.min_samples_leaf),
            # Drawn from a few rows, a sample may be one row over and over, and its leaf that row.
            bootstrap=len(x) >= 10,
            random_state=seed,
            n_jobs=1,
        ).fit(single(x), y if classes else _flat(y - offset))
        nodes = [
            Nodes(t.feature, t.threshold, t.children_left, t.children_right, t.value)
            for t in (e.tree_ for e in model.estimators_)
        ]
        own = {"present": _present(y, num_outputs)} if classes else {"baseline": offset}
        return encode_trees(nodes) | own

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check the trees, at least one, and that class shares are shares."""
        value = check_trees(reader, num_features, outputs)
        reader.demand("sizes", len(reader.arrays["sizes"]) > 0, "at least one tree")
        if task == "classification":
            shares = bool((value >= 0).all() and np.allclose(value.sum(axis=1), 1, atol=1e-4))
            reader.demand("value", shares, "shares of at least 0 that sum to 1")

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return the mean of the leaves' values."""
        forest = Forest.decode(arrays)
        value = arrays["value"].astype(np.float64)
        parts = [value[leaves].sum(axis=1) for leaves in forest.leaves(x)]
        return np.asarray(np.concatenate(parts) / len(arrays["sizes"]))


@dataclass(frozen=True)
class HistGradientBoosting:
    """Histogram gradient boosting: the sum over its trees, dealt in turn to R outputs.

    Arrays: ``sizes``, ``feature``, ``threshold`` as for a random forest, ``value`` (leaves, 1)
    float32 and ``start`` (R,) float64, the raw outputs before the first tree. R as for a logistic
    regression, or T; no trees where there is nothing to learn.
    """

    max_iter: int = _param(20, 1, 200)
    learning_rate: float = _param(0.2, 1e-6, 1.0)
    max_leaf_nodes: int = _param(15, 2, MAX_DEPTH)
    min_samples_leaf: int = _param(10, 1, 10_000)

    tasks: ClassVar[Sequence[Task]] = ("regression", "classification")
    names: ClassVar[Sequence[str]] = (*TREES, "start")

    def fit(self, x: Floats, y: NDArray[Any], task: Task, num_outputs: int, seed: int) -> Encoded:
        """Return the encoded trees with ``start`` and ``present`` or ``baseline``."""
        if task == "classification":
            present = _present(y, num_outputs)
            models = [self._boost(task, x, y, seed)] if present.sum() > 1 else []
            own: Encoded = {"present": present}
        else:
            offset = y.mean(axis=0)
            models = [self._boost(task, x, column, seed) for column in (y - offset).T]
            own = {"baseline": offset}
        # One model has its outputs in the inner lists; one model a target has one output each.
        rounds = zip(*(model._predictors for model in models), strict=True)
        nodes = [_boosted(tree) for parts in rounds for trees in parts for tree in trees]
        starts = [np.ravel(model._baseline_prediction) for model in models]
        return encode_trees(nodes) | own | {"start": np.concatenate([np.zeros(0), *starts])}

    def _boost(self, task: Task, x: Floats, y: NDArray[Any], seed: int) -> Any:
        from sklearn import ensemble

        kinds = {
            "regression": ensemble.HistGradientBoostingRegressor,
            "classification": ensemble.HistGradientBoostingClassifier,
        }
        return kinds[task](
            max_iter=int(self.max_iter),
            learning_rate=self.learning_rate,
            max_leaf_nodes=int(self.max_leaf_nodes),
            min_samples_leaf=int(self.min_samples_leaf),
            early_stopping=False,
            random_state=seed,
        ).fit(single(x), y)

    @staticmethod
    def check(reader: Received, task: Task, num_features: int, outputs: int) -> None:
        """Check the trees and that they can be dealt to the outputs."""
        check_trees(reader, num_features, 1)
        columns = num_scores(outputs) if task == "classification" else outputs
        reader.take("start", np.float64, (columns,))
        trees = len(reader.arrays["sizes"])
        fair = trees % columns == 0 if columns else trees == 0
        reader.demand("sizes", fair, f"a multiple of {columns} trees")

    @staticmethod
    def outputs(arrays: Arrays, x: Floats) -> Floats:
        """Return ``start`` plus the sums of the leaves' values, as probabilities for classes."""
        columns = len(arrays["start"])
        raw = np.zeros((len(x), columns))
        if columns:
            value = arrays["value"][:, 0].astype(np.float64)
            rounds = len(arrays["sizes"]) // columns
            sums = [
                value[leaves].reshape(len(leaves), rounds, columns).sum(axis=1)
                for leaves in Forest.decode(arrays).leaves(x)
            ]
            raw = np.concatenate(sums) + arrays["start"]
        return probabilities(raw) if "present" in arrays else raw


def _boosted(tree: Any) -> Nodes:
    """Read one tree of scikit-learn's histogram gradient boosting."""
    nodes = tree.nodes
    inner = nodes["is_leaf"] == 0
    left, right = (np.where(inner, nodes[side], 0).astype(np.int64) for side in ("left", "right"))
    return Nodes(nodes["feature_idx"], nodes["num_threshold"], left, right, nodes["value"])


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


# ---------------------------------------------------------------------------- helpers
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


def _flat(y: Floats) -> Floats:
    """Return one target as a vector, as scikit-learn wants it."""
    return y[:, 0] if y.shape[1] == 1 else y


def _present(y: NDArray[Any], num_outputs: int) -> NDArray[np.uint8]:
    """Mark the classes that occur."""
    return (np.bincount(y, minlength=num_outputs) > 0).astype(np.uint8)


def num_scores(classes: int) -> int:
    """Return how many raw scores tell classes apart: one fewer for one class or two."""
    return {1: 0, 2: 1}.get(classes, classes)


def probabilities(raw: Floats) -> Floats:
    """Turn raw scores into probabilities; one class or two have their first score, 0, left out."""
    if raw.shape[1] <= 1:
        raw = np.concatenate([np.zeros((len(raw), 1)), raw], axis=1)
    return _softmax(raw)


def _softmax(scores: Floats) -> Floats:
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(p / p.sum(axis=1, keepdims=True))
