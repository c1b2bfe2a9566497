"""Models, their metrics, and predictions from final arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from fl_app.config.options import ModelConfig
from fl_app.config.schema import GROUPS, METRICS, RATIOS
from fl_app.data.encoding import Encoding
from fl_app.errors import DataError
from fl_app.models.base import Model, descend
from fl_app.models.directions import higher_is_better
from fl_app.models.linear import Linear
from fl_app.models.metrics import row_losses, score
from fl_app.models.registry import build
from fl_app.models.serving import Predictor, predictor, split_members
from fl_app.models.softmax import Softmax, softmax

Arrays = Mapping[str, NDArray[Any]]
FULL = ModelConfig("linear", batch_size=0, learning_rate=0.1)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _linear(config: ModelConfig = FULL, features: int = 3, outputs: int = 2) -> Linear:
    return Linear(config, features, outputs)


def _softmax(config: ModelConfig = FULL, features: int = 3, outputs: int = 4) -> Softmax:
    return Softmax(config, features, outputs)


def _rows(model: Model, n: int = 11, dtype: str = "float64") -> tuple[NDArray[Any], NDArray[Any]]:
    x = _rng(1).normal(size=(n, 3)).astype(dtype)
    if isinstance(model, Softmax):
        return x, _rng(2).integers(0, 4, size=n)
    return x, _rng(2).normal(size=(n, 2)).astype(dtype)


def _somewhere(model: Model, dtype: str = "float64") -> dict[str, NDArray[Any]]:
    start = model.start(_rng())
    return {k: _rng(3).normal(size=a.shape).astype(dtype) for k, a in start.items()}


def _loss(model: Model, arrays: Arrays, x: NDArray[Any], y: NDArray[Any], l2: float) -> float:
    """Compute the loss that the models' docstrings name, from predictions alone."""
    p = model.predict(arrays, x)
    if isinstance(model, Softmax):
        fit = -np.log(p[np.arange(len(y)), y]).mean()
    else:
        fit = np.square(p - y).sum(axis=1).mean()
    return float(fit + l2 / 2 * np.square(arrays["coef"]).sum())


MODELS = [_linear, _softmax]


# ---------------------------------------------------------------------------- what all models do
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_one_step_descends_along_the_losses_gradient(make: Any, l2: float, mu: float) -> None:
    """A full-batch step of size 1 moves by minus the loss's slope, by central differences."""
    model = make(replace(FULL, l2=l2, learning_rate=1.0))
    (x, y), arrays = _rows(model), _somewhere(model)
    after = model.fit(arrays, x, y, _rng(), mu)  # at the start the proximal term has no slope
    h = 1e-6
    for name, array in arrays.items():
        for index in np.ndindex(array.shape):
            up, down = ({k: a.copy() for k, a in arrays.items()} for _ in range(2))
            up[name][index] += h
            down[name][index] -= h
            slope = (_loss(model, up, x, y, l2) - _loss(model, down, x, y, l2)) / (2 * h)
            # The differences' own error: h^2 from curvature, eps / h from rounding.
            assert array[index] - after[name][index] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_keep_their_names_shapes_and_dtype(make: Any, dtype: str) -> None:
    """Training and prediction stay in the arrays' precision, with l2, mu and mini-batches."""
    model = make(replace(FULL, dtype=dtype, l2=0.1, batch_size=4, local_epochs=2))
    x, y = _rows(model, dtype=dtype)
    start = model.start(_rng())
    after = model.fit(start, x, y, _rng(), 0.5)
    assert {k: (a.shape, a.dtype) for k, a in start.items()} == {
        k: (a.shape, np.dtype(dtype)) for k, a in after.items()
    }
    assert model.predict(after, x).dtype == dtype
    assert all(not a.any() for a in start.values())


@pytest.mark.parametrize("make", MODELS)
def test_read_only_inputs_are_enough_and_left_alone(make: Any) -> None:
    """Arrays and rows come read-only from a message; nothing is written to them or returned."""
    model = make(replace(FULL, batch_size=4))
    (x, y), arrays = _rows(model), _somewhere(model)
    before = [a.tobytes() for a in (x, y, *arrays.values())]
    for a in (x, y, *arrays.values()):
        a.setflags(write=False)
    after = model.fit(arrays, x, y, _rng(), 0.1)
    model.predict(arrays, x)
    assert [a.tobytes() for a in (x, y, *arrays.values())] == before
    assert all(a.flags.writeable for a in after.values())


@pytest.mark.parametrize("make", MODELS)
def test_no_proximal_term_is_bitwise_plain_training(make: Any) -> None:
    """``proximal_mu=0`` costs not a bit; a positive one holds arrays back."""
    model = make(replace(FULL, batch_size=4, local_epochs=3))
    (x, y), arrays = _rows(model), _somewhere(model)
    plain = model.fit(arrays, x, y, _rng())
    zero = model.fit(arrays, x, y, _rng(), 0.0)
    held = model.fit(arrays, x, y, _rng(), 2.0)
    for name in arrays:
        assert plain[name].tobytes() == zero[name].tobytes()
    moved = [sum(np.square(a[k] - arrays[k]).sum() for k in arrays) for a in (held, plain)]
    assert 0 < moved[0] < moved[1]


@pytest.mark.parametrize("make", MODELS)
def test_training_is_a_function_of_its_arguments(make: Any) -> None:
    """The same generator gives the same bits, another order of rows gives others."""
    model = make(replace(FULL, batch_size=2))
    (x, y), arrays = _rows(model), _somewhere(model)
    one, two, other = (model.fit(arrays, x, y, _rng(seed)) for seed in (5, 5, 6))
    assert one["coef"].tobytes() == two["coef"].tobytes()
    assert one["coef"].tobytes() != other["coef"].tobytes()


@pytest.mark.parametrize("name", [name for name in GROUPS["model"] if name != "auto"])
def test_every_model_of_the_schema_can_be_built(name: str) -> None:
    """A name that the config allows has a model, which starts and predicts."""
    model = build(GROUPS["model"][name](name=name), 5, 3, "classification")
    start = model.start(_rng())
    assert model.predict(start, np.zeros((2, 5))).shape == (2, 3)


# ---------------------------------------------------------------------------- descend
def _visits(
    n: int, batch_size: int, epochs: int = 1, steps_asked: int | None = None
) -> list[list[int]]:
    """Record the rows of each step."""
    steps: list[list[int]] = []

    def gradient(arrays: Arrays, x: NDArray[Any], y: NDArray[Any]) -> dict[str, NDArray[Any]]:
        assert np.array_equal(x[:, 0], y)
        steps.append(x[:, 0].astype(int).tolist())
        return {name: np.zeros_like(a) for name, a in arrays.items()}

    rows = np.arange(float(n))
    config = replace(FULL, batch_size=batch_size, local_epochs=epochs, local_steps=steps_asked)
    descend(config, gradient, {"w": np.zeros(1)}, rows[:, None], rows, _rng())
    return steps


@given(n=st.integers(1, 20), batch_size=st.integers(0, 25), epochs=st.integers(1, 3))
def test_every_epoch_visits_every_row_once(n: int, batch_size: int, epochs: int) -> None:
    """Batches of an epoch part the rows, all of the batch size but the last."""
    steps = _visits(n, batch_size, epochs)
    size = batch_size if 0 < batch_size < n else n
    per_epoch = -(-n // size)
    assert len(steps) == per_epoch * epochs
    for epoch in range(epochs):
        batches = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(chain(*batches)) == list(range(n))
        assert [len(b) for b in batches[:-1]] == [size] * (per_epoch - 1)


def test_each_epoch_has_an_order_of_its_own_and_a_full_batch_none() -> None:
    """Mini-batches are shuffled anew; a batch of all rows keeps their order, whatever its name."""
    steps = _visits(40, 20, 2)
    assert list(chain(*steps[:2])) != list(chain(*steps[2:]))
    for batch_size in (0, 40, 99):
        assert _visits(40, batch_size, 2) == [list(range(40))] * 2


@given(n=st.integers(1, 20), batch_size=st.integers(0, 8), steps=st.integers(1, 40))
def test_local_steps_are_counted_whatever_the_rows(n: int, batch_size: int, steps: int) -> None:
    """Clients of all sizes take equally many steps; they are the first ones of enough epochs."""
    found = _visits(n, batch_size, steps_asked=steps)
    assert len(found) == steps
    size = batch_size if 0 < batch_size < n else n
    epochs = -(-steps // -(-n // size))
    assert found == _visits(n, batch_size, epochs)[:steps]


def test_a_step_that_nobody_decided_on_is_refused() -> None:
    """With ``auto`` the step comes with the round; a model never guesses one."""
    model = _linear(replace(FULL, learning_rate="auto"))
    with pytest.raises(ValueError, match="learning_rate=auto: the server's step"):
        model.fit(model.start(_rng()), *_rows(model), _rng())


# ---------------------------------------------------------------------------- linear
@pytest.mark.parametrize("epochs", [1, 2, 17])
@pytest.mark.parametrize("mu", [0.0, 0.4])
def test_full_batch_descent_on_a_line_has_a_closed_form(epochs: int, mu: float) -> None:
    """With Z = [x 1] a step is affine: theta <- A theta + c, so t steps are a power of A.

    The loss |Z theta - y|^2 / n + mu/2 |theta - theta_0|^2 has the gradient
    2/n Z'(Z theta - y) + mu (theta - theta_0), so A = I - r (2/n Z'Z + mu I) and its fixed point
    theta* solves (2/n Z'Z + mu I) theta* = 2/n Z'y + mu theta_0:
    theta_t = theta* + A^t (theta_0 - theta*).
    """
    rate = 0.05
    model = _linear(replace(FULL, learning_rate=rate, local_epochs=epochs))
    (x, y), start = _rows(model), _somewhere(model)
    z = np.column_stack([x, np.ones(len(x))])
    theta = np.column_stack([start["coef"], start["intercept"]]).T
    h = 2 / len(x) * z.T @ z + mu * np.eye(4)
    fixed = np.linalg.solve(h, 2 / len(x) * z.T @ y + mu * theta)
    expected = fixed + np.linalg.matrix_power(np.eye(4) - rate * h, epochs) @ (theta - fixed)
    found = model.fit(start, x, y, _rng(), mu)
    np.testing.assert_allclose(found["coef"], expected[:3].T, rtol=0, atol=1e-13)
    np.testing.assert_allclose(found["intercept"], expected[3], rtol=0, atol=1e-13)


def test_the_lessons_first_steps_by_hand() -> None:
    """On y = 2x + 1 at x = -1, 1 from 0 with rate r: w_t = 2 (1 - (1-2r)^t), b_t = 1 - (1-2r)^t.

    Both rows together have mean x = 0 and mean x^2 = 1, so that slope and intercept decouple: the
    gradients are 2 (w - 2) and 2 (b - 1).
    """
    x, y = np.array([[-1.0], [1.0]]), np.array([[-1.0], [3.0]])
    model = _linear(replace(FULL, learning_rate=0.1, local_epochs=5), 1, 1)
    found = model.fit(model.start(_rng()), x, y, _rng())
    assert found["coef"][0, 0] == pytest.approx(2 * (1 - 0.8**5), rel=1e-14)
    assert found["intercept"][0] == pytest.approx(1 - 0.8**5, rel=1e-14)


# ---------------------------------------------------------------------------- softmax
@pytest.mark.parametrize("steps", [1, 7])
def test_two_columns_at_half_the_rate_are_one_logistic_output(steps: int) -> None:
    """From 0, z = w1 - w0 at rate r/2 moves as the weights of a logistic output do at rate r.

    The gradient of the log loss is +g for the one column and -g for the other, with g that of the
    single output s(z'x): each step of r/2 moves the difference by r g.
    """
    rate = 0.3
    config = replace(FULL, batch_size=4, local_steps=steps, learning_rate=rate / 2)
    x, y = _rng(1).normal(size=(11, 3)), _rng(2).integers(0, 2, size=11)
    model = _softmax(config, outputs=2)
    found = model.fit(model.start(_rng()), x, y, _rng())

    def logistic(arrays: Arrays, x: NDArray[Any], y: NDArray[Any]) -> dict[str, NDArray[Any]]:
        error = (1 / (1 + np.exp(-(x @ arrays["w"] + arrays["b"]))) - y) / len(x)
        return {"w": x.T @ error, "b": error.sum(keepdims=True)}

    start = {"w": np.zeros(3), "b": np.zeros(1)}
    one = descend(replace(config, learning_rate=rate), logistic, start, x, y.astype(float), _rng())
    np.testing.assert_allclose(found["coef"][1] - found["coef"][0], one["w"], rtol=1e-12)
    np.testing.assert_allclose(np.diff(found["intercept"]), one["b"], rtol=1e-12)


def test_a_class_that_a_client_lacks_keeps_its_weights_in_shape() -> None:
    """All C classes stay, finite; the one without rows becomes less likely."""
    model = _softmax(replace(FULL, local_epochs=20, batch_size=4))
    x, _ = _rows(model)
    y = np.array([0, 1, 3] * 4)[: len(x)]
    found = model.fit(model.start(_rng()), x, y, _rng())
    assert found["coef"].shape == (4, 3)
    assert all(np.isfinite(a).all() for a in found.values())
    assert found["intercept"][2] == found["intercept"].min() < 0


@given(
    scores=st.lists(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3), max_size=5),
)
def test_probabilities_are_safe_for_large_scores(scores: list[list[float]]) -> None:
    """Rows sum to 1, without overflow, and an added constant changes nothing but rounding."""
    z = np.array(scores).reshape(-1, 3)
    p = softmax(z)
    assert ((p >= 0) & (p <= 1)).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-15)
    small = np.clip(z, -10, 10)
    np.testing.assert_allclose(softmax(small + 3.0), softmax(small), rtol=1e-13)


# ---------------------------------------------------------------------------- metrics
def _probabilities(classes: int, n: int, seed: int) -> NDArray[np.float64]:
    p = _rng(seed).dirichlet(np.full(classes, 0.3), size=n)
    p[0] = np.eye(classes)[seed % classes]  # certain, and so either exactly right or clipped
    return np.asarray(p / p.sum(axis=1, keepdims=True))


@given(classes=st.integers(2, 5), n=st.integers(1, 9), seed=st.integers(0, 999))
def test_classification_metrics_are_scikit_learns(classes: int, n: int, seed: int) -> None:
    """Log loss, accuracy and Brier score, for one row and for classes that have none."""
    p, y = _probabilities(classes, n, seed), _rng(seed).integers(0, classes, size=n)
    found, every = score("classification", p, y), list(range(classes))
    assert tuple(found) == METRICS["classification"]
    assert found["log_loss"] == pytest.approx(reference.log_loss(y, p, labels=every), abs=1e-12)
    assert found["accuracy"] == reference.accuracy_score(y, p.argmax(axis=1))
    given_p = p[:, 1] if classes == 2 else p
    brier = reference.brier_score_loss(y, given_p, labels=every)
    assert found["brier"] == pytest.approx(brier, abs=1e-12)
    one_by_one = [score("classification", p[i : i + 1], y[i : i + 1]) for i in range(n)]
    for name, losses in row_losses("classification", p, y).items():
        assert losses.tolist() == pytest.approx([own[name] for own in one_by_one], abs=1e-12)
        assert losses.mean() == pytest.approx(found[name], abs=1e-12)


@given(targets=st.integers(1, 3), n=st.integers(2, 9), seed=st.integers(0, 999))
def test_regression_metrics_are_scikit_learns(targets: int, n: int, seed: int) -> None:
    """MSE, MAE and R2, the mean over the targets."""
    y, outputs = _rng(seed).normal(size=(2, n, targets))
    found = score("regression", outputs, y)
    assert tuple(found) == METRICS["regression"]
    assert found["mse"] == pytest.approx(reference.mean_squared_error(y, outputs))
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(y, outputs))
    assert found["r2"] == pytest.approx(reference.r2_score(y, outputs))
    losses = row_losses("regression", outputs, y)
    assert {name: pytest.approx(own.mean()) for name, own in losses.items()} == {
        name: found[name] for name in ("mse", "mae")
    }
    assert losses["mse"].shape == (n,)


@pytest.mark.parametrize(
    ("target", "output", "r2"),
    [
        ([3.0], [3.0], 1.0),
        ([3.0], [2.0], 0.0),
        ([0.1] * 3, [0.1] * 3, 1.0),
        ([0.1] * 3, [0.2] * 3, 0.0),
    ],
)
def test_a_constant_target_has_an_r2_of_one_or_zero(
    target: list[float], output: list[float], r2: float
) -> None:
    """One row, or equal ones whose mean is rounded, are exact or not: never -1e31."""
    found = score("regression", np.array(output)[:, None], np.array(target)[:, None])
    assert found["r2"] == r2


def test_metrics_of_float32_are_computed_in_float64() -> None:
    """A large offset in float32 does not swallow the spread: at 2^24 the next number is 2 away."""
    y = np.array([[2.0**24], [2.0**24 + 2], [2.0**24 + 4]], dtype=np.float32)
    found = score("regression", y + np.float32(2), y)
    # Each error is 2 and the sum of squares about the mean 4 + 0 + 4: r2 = 1 - 12/8.
    assert found == {"mse": 4.0, "mae": 2.0, "r2": -0.5}


def test_an_impossible_class_costs_a_finite_loss() -> None:
    """Probability 0 of the true class is clipped as in scikit-learn: a client never sends inf."""
    found = score("classification", np.array([[1.0, 0.0]]), np.array([1]))
    assert found["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps))
    assert found["brier"] == 1.0


def test_metrics_are_plain_floats_and_inputs_are_left_alone() -> None:
    """Values go into a MetricRecord and into JSON as they are."""
    p, y = _probabilities(3, 4, 0), np.array([0, 1, 2, 0])
    for a in (p, y):
        a.setflags(write=False)
    assert {type(v) for v in score("classification", p, y).values()} == {float}
    assert {type(v) for v in score("regression", p, p).values()} == {float}
    known = {name for names in (*METRICS.values(), *RATIOS.values()) for name in names}
    assert {name for name in known if higher_is_better(name)} == {
        *("accuracy", "r2", "balanced_accuracy", "roc_auc")
    }
    assert None not in map(higher_is_better, known)


# ---------------------------------------------------------------------------- serving
LABELS = ("blue", "green", "red")
ENCODING = Encoding(
    task="classification",
    columns=("age", "sex", "weight"),
    numeric=("age", "weight"),
    mean=(50.0, 70.0),
    scale=(10.0, 5.0),
    levels=(("sex", ("f", "m")),),
    labels=LABELS,
    targets=("state",),
)
ARRAYS = {"coef": _rng(4).normal(size=(3, 5)), "intercept": _rng(5).normal(size=3)}
RAW = pd.DataFrame(
    {"age": [60, 41, 50, 35], "sex": ["m", "f", "f", "m"], "weight": [75, 60, 70, 99]}
)
SPEC = Predictor(ENCODING, ModelConfig("softmax")).to_spec()


def test_a_prediction_is_the_label_of_the_largest_score() -> None:
    """By hand: scaled numbers and levels times coef plus intercept, the largest wins."""
    x = np.column_stack(
        [
            (RAW["age"] - 50) / 10,
            (RAW["weight"] - 70) / 5,
            RAW["sex"] == "f",
            RAW["sex"] == "m",
            ~RAW["sex"].isin(["f", "m"]),
        ]
    ).astype(float)
    expected = [LABELS[i] for i in (x @ ARRAYS["coef"].T + ARRAYS["intercept"]).argmax(axis=1)]
    assert predictor(SPEC, ARRAYS)(RAW).tolist() == expected


@pytest.mark.parametrize(
    "frame",
    [
        RAW[["weight", "age", "sex"]],
        RAW.assign(id=1, name="x"),
        RAW.assign(age=RAW["age"].astype(float)),
        RAW.assign(age=RAW["age"].astype(object)),
        RAW.assign(sex=RAW["sex"].astype("category")),
        RAW.set_index(pd.Index([7, 7, 3, 1])),
    ],
)
def test_the_form_of_a_frame_does_not_matter(frame: pd.DataFrame) -> None:
    """Columns in another order, further columns, other types and indices: the same labels."""
    assert predictor(SPEC, ARRAYS)(frame).tolist() == predictor(SPEC, ARRAYS)(RAW).tolist()


def test_rows_are_predicted_one_by_one_as_together() -> None:
    """A row's prediction does not depend on the rows beside it."""
    predict = predictor(SPEC, ARRAYS)
    alone = [predict(RAW.iloc[[i]]).tolist()[0] for i in range(len(RAW))]
    assert alone == predict(RAW).tolist()
    assert predict(RAW.iloc[:0]).tolist() == []


def test_a_missing_cell_is_predicted_as_the_mean_or_no_level() -> None:
    """A row of missing cells is the intercept alone: mean numbers and no level."""
    missing = pd.DataFrame({"age": [None], "sex": [None], "weight": [np.nan]})
    predict = predictor(SPEC, ARRAYS)
    assert predict(missing).tolist() == [LABELS[int(ARRAYS["intercept"].argmax())]]


@pytest.mark.parametrize("word", ["?", "OTHER", "other", "f ", "F"])
def test_an_unknown_level_is_predicted_as_other(word: str) -> None:
    """It adds the fifth column of ``coef``, whatever it says; a missing cell does not."""
    odd = pd.DataFrame({"age": [50], "sex": [word], "weight": [70]})
    push = np.zeros((3, 5))
    push[:, 4] = [0.0, 9.0, 0.0]
    predict = predictor(SPEC, {"coef": push, "intercept": np.array([1.0, 0.0, 0.0])})
    assert predict(odd).tolist() == ["green"]
    assert predict(odd.assign(sex=None)).tolist() == ["blue"]


def test_a_wrong_column_is_a_data_error() -> None:
    """A column that is not there, or holds something else, is named."""
    predict = predictor(SPEC, ARRAYS)
    with pytest.raises(DataError, match="age=a missing column: the columns age, sex, weight"):
        predict(RAW.drop(columns="age"))
    with pytest.raises(DataError, match="weight='heavy' in row 1: numbers or missing cells"):
        predict(RAW.assign(weight="heavy"))


def test_probabilities_are_those_of_the_labels_in_order() -> None:
    """Rows sum to 1, and the largest column's label is the prediction."""
    predict = predictor(SPEC, ARRAYS)
    p = predict(RAW, "probabilities")
    assert p.shape == (len(RAW), len(LABELS))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert [SPEC["encoding"]["labels"][i] for i in p.argmax(axis=1)] == predict(RAW).tolist()


def test_another_output_is_a_data_error() -> None:
    """What a model cannot give is named, with what it can: a regression has no probabilities."""
    with pytest.raises(DataError, match="output=logits: predictions or probabilities, for a class"):
        predictor(SPEC, ARRAYS)(RAW, "logits")
    numbers = Predictor(
        Encoding("regression", ("x",), ("x",), (0.0,), (1.0,), targets=("y",)),
        ModelConfig("linear"),
    ).to_spec()
    with pytest.raises(DataError, match="output=probabilities: predictions, for a regression"):
        predictor(numbers, {})(RAW, "probabilities")


def test_a_spec_is_json_and_all_that_a_predictor_needs() -> None:
    """A logged model's spec, read back from JSON, predicts the same."""
    back = json.loads(json.dumps(SPEC))
    assert Predictor.from_spec(back).to_spec() == SPEC
    assert predictor(back, ARRAYS)(RAW).tolist() == predictor(SPEC, ARRAYS)(RAW).tolist()


def test_what_a_run_reports_is_what_its_model_predicts() -> None:
    """The accuracy of ``score`` is that of the predicted labels."""
    served = Predictor(ENCODING, ModelConfig("softmax"))
    x = _rng(6).normal(size=(50, 5))
    y = _rng(7).integers(0, 3, size=50)
    labels = ENCODING.predictions(served.outputs(ARRAYS, x))
    accuracy = np.mean([LABELS[k] == label for k, label in zip(y, labels, strict=True)])
    assert served.score(ARRAYS, x, y)["accuracy"] == pytest.approx(accuracy, rel=1e-15)


LINE = Encoding(
    "regression",
    ("x",),
    ("x",),
    (2.0,),
    (4.0,),
    targets=("y",),
    target_mean=(10.0,),
    target_scale=(3.0,),
)


def test_numbers_are_predicted_in_their_raw_unit() -> None:
    """At x = 6 the scaled feature is 1: slope 2 and intercept 1 give 3, in units 3 * 3 + 10."""
    arrays = {"coef": np.array([[2.0]]), "intercept": np.array([1.0])}
    spec = Predictor(LINE, ModelConfig("linear")).to_spec()
    assert predictor(spec, arrays)(pd.DataFrame({"x": [6, None]})).tolist() == [19.0, 13.0]


def test_several_targets_come_as_columns() -> None:
    """T targets are predicted as (n, T)."""
    encoding = replace(LINE, targets=("a", "b"), target_mean=(0.0, 0.0), target_scale=(1.0, 1.0))
    arrays = {"coef": np.array([[1.0], [2.0]]), "intercept": np.zeros(2)}
    spec = Predictor(encoding, ModelConfig("linear")).to_spec()
    assert predictor(spec, arrays)(pd.DataFrame({"x": [6]})).tolist() == [[1.0, 2.0]]


def test_many_models_score_and_predict_by_their_mean() -> None:
    """Under ``strategy=local`` a score is the mean of the scores, a prediction that of outputs."""
    members = {
        f"{k:03d}": {"coef": np.array([[float(k)]]), "intercept": np.zeros(1)} for k in (0, 2, 10)
    }
    arrays = {f"{c}/{name}": a for c, own in reversed(members.items()) for name, a in own.items()}
    assert list(split_members(arrays)) == ["000", "002", "010"]
    many, one = (Predictor(LINE, ModelConfig("linear"), many=m) for m in (True, False))
    x, y = np.array([[1.0], [-1.0]]), np.array([[12.0], [9.0]])
    scores = [one.score(own, x, y) for own in members.values()]
    assert many.score(arrays, x, y) == {
        name: pytest.approx(np.mean([s[name] for s in scores])) for name in scores[0]
    }
    losses = many.row_losses(arrays, x, y)
    assert set(losses) == {"mse", "mae"}
    for name, own in losses.items():
        assert own.dtype == np.float32
        assert own.mean() == pytest.approx(many.score(arrays, x, y)[name], rel=1e-6)
    # At x = 6 the feature is 1 and the outputs are 0, 2 and 10: their mean 4, in units 4 * 3 + 10.
    assert predictor(many.to_spec(), arrays)(pd.DataFrame({"x": [6]})).tolist() == [22.0]
