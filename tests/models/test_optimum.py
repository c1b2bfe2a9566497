"""Training to convergence on rows in one place, beside scikit-learn's solvers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from fl_app.config.options import MlpConfig, ModelConfig, Task
from fl_app.config.schema import GROUPS
from fl_app.models import optimum
from fl_app.models.base import Model
from fl_app.models.registry import build

D = 4


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def model_of(name: str, outputs: int, l2: float = 0.0, dtype: str = "float64") -> Model:
    task: Task = "regression" if name == "linear" else "classification"
    config: ModelConfig = GROUPS["model"][name](name=name, l2=l2, dtype=dtype, learning_rate=1.0)
    return build(replace(config, batch_size=0), D, outputs, task)


def classes(n: int = 60, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    x = rng(seed).normal(size=(n, D))
    noisy = x[:, :3] + rng(seed + 1).normal(size=(n, 3))
    return x, noisy.argmax(axis=1)


@pytest.mark.parametrize("name", ["softmax", "mlp"])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_the_gradient_is_that_of_a_full_step(name: str, l2: float) -> None:
    """A step of rate 1 over all rows moves by minus :meth:`Model.gradient`, penalty and all."""
    model, (x, y) = model_of(name, 3, l2), classes()
    start = model.start(rng())
    after, gradient = model.fit(start, x, y, rng()), model.gradient(start, x, y)
    for key, array in start.items():
        np.testing.assert_allclose(array - after[key], gradient[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_softmax_ends_where_scikit_learns_regression_does(l2: float) -> None:
    """Mean log loss + l2/2 |coef|^2 is scikit-learn's objective over n C, with C = 1 / (n l2)."""
    (x, y), model = classes(), model_of("softmax", 3, l2)
    found, _ = optimum.minimize(model, model.start(rng()), x, y, l2)
    theirs = LogisticRegression(C=1 / (len(x) * l2), tol=1e-9, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(model.predict(found, x), theirs.predict_proba(x), atol=2e-3)


@pytest.mark.parametrize("l2", [1.0, 1e-2])
def test_linear_ends_at_the_ridge_solution(l2: float) -> None:
    """Mean squared error + l2/2 |coef|^2 is ridge regression's objective over n, alpha = n l2/2."""
    x = rng().normal(size=(60, D))
    y = x @ rng(1).normal(size=(D, 2)) + rng(2).normal(size=(60, 2)) + 5.0
    model = model_of("linear", 2, l2)
    found, _ = optimum.minimize(model, model.start(rng()), x, y, l2)
    theirs = Ridge(alpha=len(x) * l2 / 2).fit(x, y)
    np.testing.assert_allclose(found["coef"], theirs.coef_, atol=1e-3)
    np.testing.assert_allclose(found["intercept"], theirs.intercept_, atol=1e-3)


def test_a_penalty_that_is_given_is_taken() -> None:
    """With ``model.l2`` set nothing is searched."""
    (x, y), l2 = classes(), 0.05
    start = model_of("softmax", 3).start(rng())
    one = optimum.converge(lambda p: model_of("softmax", 3, p), start, x, y, rng(), l2)
    two, _ = optimum.minimize(model_of("softmax", 3, l2), start, x, y, l2)
    assert {k: a.tobytes() for k, a in one.items()} == {k: a.tobytes() for k, a in two.items()}


@pytest.mark.parametrize("signal", [False, True])
def test_the_penalty_follows_what_rows_left_out_say(signal: bool) -> None:
    """Features that say nothing get the largest penalty, a clear rule a small one."""
    tried: list[float] = []

    def make(l2: float) -> Model:
        tried.append(l2)
        return model_of("softmax", 2, l2)

    x = rng().normal(size=(80, D))
    y = (x[:, 0] > 0).astype(int) if signal else rng(1).integers(0, 2, size=80)
    optimum.converge(make, model_of("softmax", 2).start(rng()), x, y, rng())
    chosen, seen = tried[-1], tried[:-1]
    assert seen == list(optimum.PENALTIES[: len(seen)])
    if signal:
        assert chosen <= 1e-3
    else:
        assert (chosen, seen) == (1.0, [1.0, 0.1])


def test_training_has_no_draws_but_the_folds_and_keeps_the_dtype() -> None:
    """The same rows give the same bits; float32 comes back; nothing that came is written to."""
    (x, y), make = classes(), lambda l2: model_of("mlp", 3, l2, "float32")
    start = make(0.0).start(rng())
    for array in (x, y, *start.values()):
        array.setflags(write=False)
    one, two = (optimum.converge(make, start, x, y, rng(5)) for _ in range(2))
    assert {k: (a.dtype, a.shape) for k, a in one.items()} == {
        k: (a.dtype, a.shape) for k, a in start.items()
    }
    assert all(one[k].tobytes() == two[k].tobytes() for k in one)


def test_a_few_rows_are_fitted_without_a_search() -> None:
    """With fewer than two rows a fold there is no penalty: four rows of two lines get theirs."""
    x, y = np.array([[-1.0], [1.0], [-1.0], [1.0]]), np.array([[-1.0], [3.0], [0.0], [2.0]])
    config = ModelConfig("linear", learning_rate=0.1)
    found = optimum.converge(
        lambda l2: build(replace(config, l2=l2), 1, 1, "regression"),
        {"coef": np.zeros((1, 1)), "intercept": np.zeros(1)},
        x,
        y,
        rng(),
    )
    assert found["coef"][0, 0] == pytest.approx(1.5, abs=1e-6)  # the mean of 2 and 1
    assert found["intercept"][0] == pytest.approx(1.0, abs=1e-6)


def test_a_perceptron_learns_what_no_line_can() -> None:
    """On rings of radius 1 and 2 a line is right for 2/3 at most, the perceptron nearly always."""
    draw = rng(3)
    y = np.arange(200) % 2
    angle, radius = draw.uniform(0, 2 * np.pi, 200), 1 + y + 0.1 * draw.normal(size=200)
    x = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    config = MlpConfig("mlp", hidden_units=16, learning_rate=1.0)

    def make(l2: float) -> Model:
        return build(replace(config, l2=l2), 2, 2, "classification")

    found = optimum.converge(make, make(0.0).start(rng()), x[:100], y[:100], rng())
    assert (make(0.0).predict(found, x[100:]).argmax(axis=1) == y[100:]).mean() > 0.95


def test_a_minimum_that_is_not_reached_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the iterations do not suffice, one warning says so; where they do, there is none."""
    (x, y), model = classes(), model_of("softmax", 3, 1e-4)
    for iterations, warnings in ((optimum.MAX_ITERATIONS, 0), (1, 1)):
        monkeypatch.setattr(optimum, "MAX_ITERATIONS", iterations)
        caplog.clear()
        optimum.converge(lambda l2: model, model.start(rng()), x, y, rng(), 1e-4)
        assert sum("not at its optimum" in r.getMessage() for r in caplog.records) == warnings
