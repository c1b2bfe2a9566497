"""Base estimators: what leaves a client predicts as scikit-learn does, and nothing else gets in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import ensemble, linear_model, naive_bayes

from fl_app.config.options import Task
from fl_app.config.rules import require_base_model
from fl_app.config.strategy_options import BASE_MODELS
from fl_app.errors import ConfigError, DataError
from fl_app.models import estimators, trees
from fl_app.seeding import one_thread

C, D = 4, 5
SINGLE = float(np.finfo(np.float32).eps)
CLASSIFIERS = ["logistic", "gaussian_nb", "random_forest", "hist_gradient_boosting"]
REGRESSORS = ["ridge", "random_forest", "hist_gradient_boosting"]
EVERY: list[tuple[str, Task]] = [
    *((name, "classification") for name in CLASSIFIERS),
    *((name, "regression") for name in REGRESSORS),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(n: int = 80, classes: int = C, seed: int = 1) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw rows whose class depends on a product of features, every class present."""
    draw = rng(seed)
    x = draw.normal(size=(n, D))
    y = ((x[:, 0] * x[:, 1] > 0) + 2 * (x[:, 2] > 0) + np.arange(n)) % classes
    return x, y.astype(np.int64)


def problem(task: Task, n: int = 80, outputs: int = 2) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Give rows, truth and number of outputs of a task."""
    x, y = rows(n)
    if task == "classification":
        return x, y, C
    return x, np.stack([x[:, 0] * x[:, 1], x @ np.arange(D) + 1e6], axis=1)[:, :outputs], outputs


def fitted(name: str, task: Task, n: int = 80, **params: float) -> dict[str, NDArray[Any]]:
    x, y, outputs = problem(task, n)
    return estimators.fit(
        name, x, y, task=task, num_outputs=outputs, rng=rng(), params=params or None
    )


def same_bits(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> bool:
    return set(a) == set(b) and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a
    )


# ---------------------------------------------------------------------------- as scikit-learn
def reference(name: str, task: Task) -> Any:
    """Make the scikit-learn estimator with the same hyperparameters and the same drawn seed."""
    seed = int(rng().integers(2**31))
    forest = {"n_estimators": 20, "max_depth": 8, "random_state": seed}
    boosting = {
        "max_iter": 20,
        "learning_rate": 0.2,
        "max_leaf_nodes": 15,
        "min_samples_leaf": 10,
        "early_stopping": False,
        "random_state": seed,
    }
    made = {
        ("ridge", "regression"): lambda: linear_model.Ridge(1.0),
        ("logistic", "classification"): lambda: linear_model.LogisticRegression(max_iter=200),
        ("gaussian_nb", "classification"): lambda: naive_bayes.GaussianNB(var_smoothing=0.1),
        ("random_forest", "classification"): lambda: ensemble.RandomForestClassifier(**forest),
        ("random_forest", "regression"): lambda: ensemble.RandomForestRegressor(**forest),
        ("hist_gradient_boosting", "classification"): lambda: (
            ensemble.HistGradientBoostingClassifier(**boosting)
        ),
        ("hist_gradient_boosting", "regression"): lambda: ensemble.HistGradientBoostingRegressor(
            **boosting
        ),
    }
    return made[name, task]()


@pytest.mark.parametrize("classes", [2, 3, C])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_probabilities_are_scikit_learns(name: str, classes: int) -> None:
    """Arrays predict what the estimator that was fitted predicts, to float32's precision."""
    x, y = rows(200, classes)
    x = x.astype(np.float32).astype(np.float64)
    arrays = estimators.fit(name, x, y, task="classification", num_outputs=classes, rng=rng())
    with one_thread():
        expected = reference(name, "classification").fit(x, y).predict_proba(x)
    # A probability moves at most as far as the scores do: sums of some ten rounded terms.
    assert np.abs(estimators.predict(name, arrays, x) - expected).max() < 30 * SINGLE


@pytest.mark.parametrize("name", REGRESSORS)
def test_targets_are_scikit_learns_whatever_their_offset(name: str) -> None:
    """A large offset costs no precision: only distances from it are rounded."""
    x, _ = rows(200)
    x = x.astype(np.float32).astype(np.float64)
    spread = x[:, 0] * x[:, 1] + x[:, 2]
    y = spread + 2.0**40
    arrays = estimators.fit(name, x, y, task="regression", num_outputs=1, rng=rng())
    with one_thread():
        expected = reference(name, "regression").fit(x, y - y.mean()).predict(x) + y.mean()
    error = np.abs(estimators.predict(name, arrays, x)[:, 0] - expected).max()
    offset_rounding = 4 * float(np.spacing(2.0**40))
    assert error < 30 * SINGLE * np.abs(spread).max() + offset_rounding


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("random_forest", "classification"),
        ("random_forest", "regression"),
        ("hist_gradient_boosting", "regression"),
    ],
)
def test_rows_beside_a_threshold_keep_their_side(name: str, task: Task) -> None:
    """A threshold rounded to float32 parts even neighbouring float32 numbers as fitted."""
    params = {"n_estimators": 1} if name == "random_forest" else None
    for step in range(8):
        low = np.float32(1024 + step * 2.0**-13)
        pair = np.array([[low], [np.nextafter(low, np.float32(2048))]], np.float64)
        x, y = np.repeat(pair, 20, axis=0), np.repeat([0, 1], 20)
        truth = y if task == "classification" else y.astype(np.float64)
        outputs = 2 if task == "classification" else 1
        arrays = estimators.fit(
            name, x, truth, task=task, num_outputs=outputs, rng=rng(), params=params
        )
        below, above = estimators.predict(name, arrays, pair)[:, -1]
        assert below < 0.5 < above


# ---------------------------------------------------------------------------- small and odd clients
@pytest.mark.parametrize(("name", "task"), EVERY)
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_a_few_rows_are_enough(name: str, task: Task, n: int) -> None:
    """A client with one row or a few has a model, and its outputs are finite."""
    x, y, outputs = problem(task, n)
    arrays = estimators.fit(name, x, y, task=task, num_outputs=outputs, rng=rng())
    out = estimators.predict(name, arrays, rows(50, seed=2)[0])
    assert out.shape == (50, outputs)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_that_is_missing_has_probability_zero(name: str) -> None:
    """All C columns come back, those of classes that the client never saw as 0."""
    x, y = rows()
    some = np.isin(y, [1, 3])
    arrays = estimators.fit(name, x[some], y[some], task="classification", num_outputs=C, rng=rng())
    p = estimators.predict(name, arrays, x)
    assert (p[:, [0, 2]] == 0).all()
    assert p[:, [1, 3]].max() > 0.5
    assert np.allclose(p.sum(axis=1), 1, atol=30 * SINGLE)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("n", [1, 20])
def test_one_class_is_a_constant(name: str, n: int) -> None:
    """A client with one class predicts it always."""
    x, _ = rows(n)
    arrays = estimators.fit(name, x, np.full(n, 2), task="classification", num_outputs=C, rng=rng())
    p = estimators.predict(name, arrays, rows(30, seed=3)[0])
    assert np.allclose(p, np.eye(C)[2], atol=SINGLE)


@pytest.mark.parametrize("name", REGRESSORS)
def test_a_constant_target_is_a_constant(name: str) -> None:
    """A target without variance is predicted as it is."""
    x, _ = rows()
    arrays = estimators.fit(
        name, x, np.full(len(x), -7.25), task="regression", num_outputs=1, rng=rng()
    )
    assert np.allclose(estimators.predict(name, arrays, x), -7.25, rtol=1e-12)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_equal_rows_of_two_classes_predict_the_prior(name: str) -> None:
    """Features without variance leave the share of each class."""
    x, y = np.ones((40, D)), np.array([0] * 30 + [1] * 10)
    params = {"n_estimators": 500} if name == "random_forest" else None
    arrays = estimators.fit(
        name, x, y, task="classification", num_outputs=2, rng=rng(), params=params
    )
    # The forest sees the prior through bootstraps: a share of 40 rows, averaged over 500 trees.
    error = 5 * (0.75 * 0.25 / 40 / 500) ** 0.5 if name == "random_forest" else 0.01
    assert np.allclose(estimators.predict(name, arrays, x), [0.75, 0.25], atol=error)


@pytest.mark.parametrize("name", ["ridge", "hist_gradient_boosting"])
def test_targets_are_fitted_apart(name: str) -> None:
    """Several targets are predicted as each would be alone."""
    x, y, _ = problem("regression")
    both = estimators.fit(name, x, y, task="regression", num_outputs=2, rng=rng())
    out = estimators.predict(name, both, x)
    for t in range(2):
        one = estimators.fit(name, x, y[:, t], task="regression", num_outputs=1, rng=rng())
        assert np.allclose(out[:, t], estimators.predict(name, one, x)[:, 0], rtol=1e-9)


# ---------------------------------------------------------------------------- bits
@pytest.mark.parametrize(("name", "task"), EVERY)
def test_the_same_generator_gives_the_same_bits(name: str, task: Task) -> None:
    """Bits depend on the rows and the generator alone, not on NumPy's global state."""
    np.random.seed(1)
    first = fitted(name, task)
    np.random.seed(2)
    assert same_bits(first, fitted(name, task))


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_inputs_are_left_alone(name: str, task: Task) -> None:
    """Rows can be read-only."""
    x, y, outputs = problem(task)
    x.setflags(write=False)
    y.setflags(write=False)
    arrays = estimators.fit(name, x, y, task=task, num_outputs=outputs, rng=rng())
    for array in arrays.values():
        array.setflags(write=False)
    estimators.check(name, arrays, task=task, num_features=D, num_outputs=outputs)
    estimators.predict(name, arrays, x)


@pytest.mark.parametrize("name", ["random_forest", "hist_gradient_boosting"])
def test_rows_do_not_influence_each_other(name: str) -> None:
    """A tree's prediction of a row has the same bits alone and among others, chunk by chunk."""
    arrays = fitted(name, "classification", 200)
    trees = len(arrays["sizes"])
    x = rows(2 * (2**16 // trees) + 3, seed=4)[0]
    whole = estimators.predict(name, arrays, x)
    for part in (slice(0, 1), slice(5, 9), slice(len(x) - 2, None)):
        assert whole[part].tobytes() == estimators.predict(name, arrays, x[part]).tobytes()
    assert estimators.predict(name, arrays, x[:0]).shape == (0, C)


def test_arrays_are_plain_numbers() -> None:
    """What leaves a client has a number type, and is small: no object, no text."""
    for name, task in EVERY:
        for array in fitted(name, task).values():
            assert array.dtype in (np.float32, np.float64, np.int32, np.uint8)


# ---------------------------------------------------------------------------- refused by name
@pytest.mark.parametrize("name", ["knn", "KNN", "svm", "svc", "kernel_ridge"])
def test_row_carriers_are_refused_with_the_reason(name: str) -> None:
    """Nearest neighbours and kernel machines are refused for carrying rows, not as unknown."""
    with pytest.raises(ConfigError, match="raw training rows") as caught:
        require_base_model(name, "classification")
    assert str(caught.value).startswith(f"strategy.base_models={name}:")


@pytest.mark.parametrize(
    ("name", "task", "text"),
    [
        ("ridge", "classification", "does not fit a classification task"),
        ("logistic", "regression", "does not fit a regression task"),
        ("forest", "regression", "no such base model"),
        ("sklearn.linear_model.Ridge", "regression", "no such base model"),
    ],
)
def test_wrong_names_are_refused(name: str, task: Task, text: str) -> None:
    """The message says what is wrong with a name and which names fit."""
    with pytest.raises(ConfigError, match=f"{text}; allowed are .*random_forest"):
        require_base_model(name, task)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"max_depth": 0}, "random_forest.max_depth=0: an integer from 1 to 32"),
        ({"max_depth": 33}, "random_forest.max_depth=33: an integer from 1 to 32"),
        ({"max_depth": 2.5}, "random_forest.max_depth=2.5: an integer from 1 to 32"),
        ({"max_depth": True}, "random_forest.max_depth=true: an integer from 1 to 32"),
        ({"depth": 3}, "random_forest.depth=3: no such key; allowed are n_estimators"),
    ],
)
def test_wrong_hyperparameters_are_refused(params: dict[str, Any], text: str) -> None:
    """A hyperparameter is named with its value and its range."""
    with pytest.raises(ConfigError) as caught:
        fitted("random_forest", "classification", **params)
    assert str(caught.value).startswith(text)


def test_a_number_that_is_none_is_refused() -> None:
    """NaN lies in no range."""
    with pytest.raises(ConfigError, match=r"ridge.alpha=nan: a number from"):
        fitted("ridge", "regression", alpha=float("nan"))


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (np.zeros((3, D)), np.zeros(2, int), "rows=3 of x, 2 of y"),
        (np.zeros((0, D)), np.zeros(0, int), "rows=0 of x, 0 of y"),
        (np.zeros(3), np.zeros(3, int), "x=float64 (3,)"),
        (np.full((2, D), np.nan), np.zeros(2, int), "x=float64 (2, 5), some not finite"),
        (np.array([["a"]]), np.zeros(1, int), "x=<U1 (1, 1)"),
        (np.zeros((2, D)), np.array([0, C]), "y=[0 4]: class numbers below 4"),
        (np.zeros((2, D)), np.array([0.0, 1.0]), "y=[0. 1.]: class numbers below 4"),
    ],
)
def test_wrong_rows_are_refused(x: NDArray[Any], y: NDArray[Any], text: str) -> None:
    """Rows that cannot be fitted are named."""
    with pytest.raises(DataError) as caught:
        estimators.fit("logistic", x, y, task="classification", num_outputs=C, rng=rng())
    assert str(caught.value).startswith(text)


def test_wrong_targets_are_refused() -> None:
    """Targets need a column each and finite numbers."""
    x = np.zeros((2, D))
    for y in (np.zeros((2, 3)), np.array([1.0, np.inf])):
        with pytest.raises(DataError, match=r"^y=.*finite numbers of shape"):
            estimators.fit("ridge", x, y, task="regression", num_outputs=1, rng=rng())


# ---------------------------------------------------------------------------- received arrays
def chain(levels: int) -> dict[str, NDArray[Any]]:
    """Make a tree of this many splits in which every left child is a leaf."""
    return {
        "sizes": np.array([2 * levels + 1], np.int32),
        "feature": np.array([0, *[-1, 0] * (levels - 1), -1, -1], np.int32),
        "threshold": np.zeros(levels, np.float32),
        "value": np.tile(np.float32([0.5, 0.5]), (levels + 1, 1)),
        "present": np.ones(2, np.uint8),
    }


def check_tree(arrays: dict[str, NDArray[Any]]) -> None:
    estimators.check("random_forest", arrays, task="classification", num_features=D, num_outputs=2)


def test_depth_is_bounded() -> None:
    """A tree may be 32 levels deep and no deeper, so that a walk ends."""
    check_tree(chain(estimators.MAX_DEPTH))
    with pytest.raises(DataError, match=r"random_forest.feature=.*at most 32 levels"):
        check_tree(chain(estimators.MAX_DEPTH + 1))


def swap(**arrays: Any) -> dict[str, NDArray[Any]]:
    return chain(2) | {key: np.asarray(array) for key, array in arrays.items()}


i32, f32 = np.int32, np.float32


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        (swap(sizes=i32([3])), r"feature=int32 \(5,\): int32 of shape \(3,\)"),
        (swap(sizes=i32([0, 5])), "sizes=.*at least 1 node a tree"),
        (swap(sizes=i32([2**30, 2**30])), f"sizes=.*at most {estimators.MAX_NODES} nodes"),
        (
            swap(sizes=np.ones(trees.MAX_TREES + 1, i32)),
            f"sizes=.*at most {trees.MAX_TREES} trees",
        ),
        (swap(sizes=np.zeros(0, i32)), "feature="),
        (swap(sizes=np.array([5])), "sizes=int64"),
        (swap(feature=i32([0, -1, 5, -1, -1])), "feature=.*-1 or a feature below 5"),
        (swap(feature=i32([0, -1, -2, -1, -1])), "feature=.*-1 or a feature below 5"),
        (swap(feature=i32([-1, 0, 0, -1, -1])), "feature=.*children after their parent"),
        (swap(feature=i32([0, -1, -1, -1, -1])), "threshold="),
        (swap(threshold=f32([0, np.nan])), "threshold=.*finite"),
        (swap(threshold=f32([0, np.inf])), "threshold=.*finite"),
        (swap(threshold=np.zeros(2)), "threshold=float64"),
        (swap(value=np.full((3, 2), 0.4, f32)), "value=.*sum to 1"),
        (swap(value=np.tile(f32([1.5, -0.5]), (3, 1))), "value=.*sum to 1"),
        (swap(value=np.full((3, 3), 1 / 3, f32)), "value="),
        (swap(present=np.uint8([0, 0])), "present=.*at least one 1"),
        (swap(present=np.uint8([1, 2])), "present=.*0 or 1"),
        (swap(present=np.uint8([1, 1, 1])), "present=uint8"),
        (swap(extra=np.zeros(1)), "random_forest=.*arrays named"),
        ({k: v for k, v in chain(2).items() if k != "value"}, "random_forest=.*arrays named"),
        (chain(2) | {"value": [[0.5, 0.5]] * 3}, "random_forest=.*arrays named"),
    ],
)
def test_broken_trees_are_refused(arrays: dict[str, NDArray[Any]], text: str) -> None:
    """Whatever is wrong with received arrays, the message names the array and what is allowed."""
    check_tree(chain(2))
    with pytest.raises(DataError, match=text):
        check_tree(arrays)


@pytest.mark.parametrize("variance", [0.0, -1.0, 1e-38])
def test_a_variance_must_be_positive(variance: float) -> None:
    """Naive Bayes divides by it."""
    arrays = FITTED["gaussian_nb", "classification"]
    broken = arrays | {"variance": np.full_like(arrays["variance"], variance)}
    with pytest.raises(DataError, match=r"^gaussian_nb.variance=.*at least 1e-30"):
        estimators.check(
            "gaussian_nb", broken, task="classification", num_features=D, num_outputs=C
        )


def test_two_trees_must_each_be_whole() -> None:
    """Nodes that one tree lacks cannot come from the next."""
    one = chain(1)
    both = {key: np.concatenate([array, array]) for key, array in one.items()}
    both["present"] = one["present"]
    check_tree(both)
    with pytest.raises(DataError, match="one leaf more than inner nodes in each tree"):
        check_tree(both | {"sizes": i32([2, 4])})


def test_bytes_are_bounded() -> None:
    """Arrays beyond the cap are refused before anything else is computed from them."""
    big = np.zeros((2, estimators.MAX_BYTES // 8 + 1), np.float32)
    arrays = {"coef": big, "baseline": np.zeros(2)}
    with pytest.raises(DataError, match=r"ridge=16\d+ bytes: at most 16777216 bytes"):
        estimators.check(
            "ridge", arrays, task="regression", num_features=big.shape[1], num_outputs=2
        )


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_an_estimator_of_another_shape_is_refused(name: str, task: Task) -> None:
    """A model for other features, outputs or the other task never passes."""
    _, _, outputs = problem(task)
    arrays = fitted(name, task)
    other: Task = "regression" if task == "classification" else "classification"
    wrong: list[tuple[Task, int, int]] = [(task, D, outputs + 1), (other, D, outputs)]
    if name in ("ridge", "logistic", "gaussian_nb"):
        wrong.append((task, D + 1, outputs))
    for bad_task, features, number in wrong:
        with pytest.raises((DataError, ConfigError)):
            estimators.check(name, arrays, task=bad_task, num_features=features, num_outputs=number)


FITTED = {key: fitted(*key) for key in EVERY}
NUMBERS = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -1.0, 1.0, 2.0, 3.4e38, -3.4e38, 1e-38, 1e30, np.nan, np.inf]),
    st.integers(-5, 300).map(float),
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, Task, dict[str, NDArray[Any]]]:
    """Damage a few arrays of a fitted estimator."""
    name, task = draw(st.sampled_from(EVERY))
    arrays = {key: array.copy() for key, array in FITTED[name, task].items()}
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(arrays)))
        array = arrays[key]
        kind = draw(
            st.sampled_from(["value", "all", "shorter", "longer", "dtype", "shape", "gone"])
        )
        with np.errstate(all="ignore"):
            new = np.array(draw(NUMBERS)).astype(array.dtype)
        if kind == "value" and array.size:
            array.reshape(-1)[draw(st.integers(0, array.size - 1))] = new
        elif kind == "all":
            array[...] = new
        elif kind == "shorter":
            arrays[key] = array[: draw(st.integers(0, len(array)))]
        elif kind == "longer":
            arrays[key] = np.concatenate([array, array[:1]])
        elif kind == "dtype":
            with np.errstate(all="ignore"):
                arrays[key] = array.astype(
                    draw(st.sampled_from(["f4", "f8", "i4", "u1", "O", ">f4"]))
                )
        elif kind == "shape":
            arrays[key] = array.reshape(draw(st.sampled_from([(-1,), (1, -1), (-1, 1)])))
        elif kind == "gone" and len(arrays) > 1:
            del arrays[key]
    return name, task, arrays


@given(case=mutated())
@settings(max_examples=400, deadline=None)
def test_damaged_arrays_are_refused_or_harmless(
    case: tuple[str, Task, dict[str, NDArray[Any]]],
) -> None:
    """Any damage either raises a DataError or leaves a model that predicts finite numbers."""
    name, task, arrays = case
    x, _, outputs = problem(task)
    x = np.concatenate([x, [[1e300] * D, [-1e300] * D]])
    try:
        estimators.check(name, arrays, task=task, num_features=D, num_outputs=outputs)
    except DataError:
        return
    out = estimators.predict(name, arrays, x)
    assert out.shape == (len(x), outputs)
    assert np.isfinite(out).all()
    if task == "classification":
        assert (out >= 0).all()
        assert np.allclose(out.sum(axis=1), 1, atol=1e-3)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), classes=st.integers(1, C))
@settings(max_examples=25, deadline=None)
def test_what_is_fitted_passes_the_check(seed: int, n: int, classes: int) -> None:
    """Every honest client's arrays are accepted, whatever rows it has."""
    draw = rng(seed)
    x, y = draw.normal(size=(n, D)) * 10.0 ** draw.integers(-3, 4), draw.integers(classes, size=n)
    for name, task in EVERY:
        truth = y if task == "classification" else x[:, :2]
        outputs = C if task == "classification" else 2
        arrays = estimators.fit(name, x, truth, task=task, num_outputs=outputs, rng=draw)
        assert np.isfinite(estimators.predict(name, arrays, x)).all()


def test_the_schema_knows_every_estimator() -> None:
    """What a config may name is what can be fitted, for the same tasks, besides the run's model."""
    tasks = {name: tuple(kind.tasks) for name, kind in estimators.ESTIMATORS.items()}
    assert tasks == {name: t for name, t in BASE_MODELS.items() if name != "model"}
