"""The perceptron: its gradient by finite differences, its start, and what a client may hold."""

from __future__ import annotations

import numpy as np
import pytest

from fl_app.config.options import ModelConfig
from fl_app.models.mlp import Mlp
from fl_app.seeding import generator

TASKS = ("classification", "regression")


def config(**options) -> ModelConfig:
    return ModelConfig(name="mlp", **{"learning_rate": 0.1, "batch_size": 0, **options})


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, "test")


def rows(task: str, n: int = 20, d: int = 3, outputs: int = 2, dtype: str = "float64"):
    draw = rng(1)
    x = draw.normal(size=(n, d)).astype(dtype)
    if task == "classification":
        return x, draw.integers(outputs, size=n)
    return x, draw.normal(size=(n, outputs)).astype(dtype)


def loss(model: Mlp, arrays, x, y) -> float:
    """Say the loss of the docstring once more, in the plainest way."""
    outputs = model.predict(arrays, x)
    penalty = sum((arrays[name] ** 2).sum() for name in ("hidden.coef", "output.coef"))
    if model.task == "classification":
        data = -np.log(outputs[np.arange(len(y)), y]).mean()
    else:
        data = ((outputs - y) ** 2).sum(axis=1).mean()
    return float(data + model.config.l2 / 2 * penalty)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_one_full_step_follows_the_gradient(task, l2):
    """(start - after) / learning_rate is the loss's gradient by central differences."""
    model = Mlp(config(l2=l2), 3, 2, task, hidden_units=4)
    x, y = rows(task)
    start = model.start(rng())
    after = model.fit(start, x, y, rng())
    for name, array in start.items():
        for index in np.ndindex(array.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = {k: v.copy() for k, v in start.items()}
                moved[name][index] += step
                sides.append(loss(model, moved, x, y))
            slope = (sides[0] - sides[1]) / 2e-6
            taken = (array[index] - after[name][index]) / 0.1
            assert taken == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_names_shapes_and_dtype_never_change(task, dtype):
    """The arrays have the documented names, shapes and dtype before and after training."""
    model = Mlp(config(dtype=dtype, batch_size=8, l2=0.1), 3, 2, task, hidden_units=5)
    x, y = rows(task, dtype=dtype)
    start = model.start(rng())
    after = model.fit(start, x, y, rng(), proximal_mu=0.1)
    shapes = {
        "hidden.coef": (5, 3),
        "hidden.intercept": (5,),
        "output.coef": (2, 5),
        "output.intercept": (2,),
    }
    for arrays in (start, after):
        assert {name: array.shape for name, array in arrays.items()} == shapes
        assert {array.dtype for array in arrays.values()} == {np.dtype(dtype)}
    assert model.predict(after, x).dtype == np.dtype(dtype)


def test_the_start_is_drawn_with_variance_two_over_inputs():
    """He's start: mean 0, variance 2 / inputs within four standard errors, intercepts 0."""
    model = Mlp(config(), 50, 50, "regression", hidden_units=400)
    start = model.start(rng())
    for name, inputs in (("hidden.coef", 50), ("output.coef", 400)):
        weights, variance = start[name], 2 / inputs
        assert abs(weights.mean()) < 4 * np.sqrt(variance / weights.size)
        assert abs(weights.var() - variance) < 4 * variance * np.sqrt(2 / weights.size)
    assert not start["hidden.intercept"].any()
    assert not start["output.intercept"].any()


def test_the_start_is_a_function_of_the_generator():
    """The same generator gives the same arrays bit for bit, another one others."""
    model = Mlp(config(), 3, 2, "classification")
    first, same, other = (model.start(rng(seed)) for seed in (0, 0, 1))
    for name, array in first.items():
        assert np.array_equal(array, same[name])
    assert not np.array_equal(first["hidden.coef"], other["hidden.coef"])
    assert first["hidden.coef"].shape == (32, 3)


@pytest.mark.parametrize("task", TASKS)
def test_fitting_writes_to_no_input(task):
    """Arrays and rows are what they were before training."""
    model = Mlp(config(local_epochs=3), 3, 2, task)
    x, y = rows(task)
    start = model.start(rng())
    before = {name: array.copy() for name, array in start.items()}
    for array in (*start.values(), x, y):
        array.setflags(write=False)
    model.fit(start, x, y, rng())
    assert all(np.array_equal(start[name], before[name]) for name in start)


def test_probabilities_sum_to_one_even_for_large_scores():
    """Outputs of a classifier are probabilities however large the features are."""
    model = Mlp(config(), 3, 4, "classification")
    p = model.predict(model.start(rng()), 1e6 * rng().normal(size=(7, 3)))
    assert (p >= 0).all()
    assert p.sum(axis=1) == pytest.approx(np.ones(7))


def test_hidden_units_are_interchangeable():
    """Permuting the hidden units permutes the arrays and changes no prediction."""
    model = Mlp(config(), 3, 2, "regression", hidden_units=6)
    arrays = model.start(rng())
    order = rng(3).permutation(6)
    permuted = {
        "hidden.coef": arrays["hidden.coef"][order],
        "hidden.intercept": arrays["hidden.intercept"][order],
        "output.coef": arrays["output.coef"][:, order],
        "output.intercept": arrays["output.intercept"],
    }
    x = rng(4).normal(size=(9, 3))
    assert model.predict(permuted, x) == pytest.approx(model.predict(arrays, x))


def test_a_client_with_one_class_trains_towards_it():
    """A class that a client lacks is no special case: its probability falls."""
    model = Mlp(config(), 3, 3, "classification")
    x, y = rng().normal(size=(10, 3)), np.full(10, 2)
    start = model.start(rng())
    after = model.fit(start, x, y, rng())
    assert loss(model, after, x, y) < loss(model, start, x, y)


def test_it_learns_what_no_linear_model_can():
    """Exclusive or: four points that no line separates are all told apart."""
    x = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    y = np.array([0, 1, 1, 0])
    model = Mlp(config(local_epochs=500, learning_rate=0.3), 2, 2, "classification")
    arrays = model.fit(model.start(rng()), x, y, rng())
    assert model.predict(arrays, x).argmax(axis=1).tolist() == y.tolist()


def test_the_proximal_term_pulls_towards_the_start():
    """A mu of 0 changes no bit; the larger mu, the nearer the arrays stay to their start."""
    model = Mlp(config(local_epochs=50, learning_rate=0.01), 3, 2, "regression")
    x, y = rows("regression")
    start = model.start(rng())
    plain, zero, weak, strong = (
        model.fit(start, x, y, rng(), *mu) for mu in ((), (0.0,), (0.5,), (5.0,))
    )

    def moved(arrays) -> float:
        return sum(float(((arrays[name] - start[name]) ** 2).sum()) for name in start)

    assert all(np.array_equal(plain[name], zero[name]) for name in plain)
    assert moved(strong) < moved(weak) < moved(plain)
