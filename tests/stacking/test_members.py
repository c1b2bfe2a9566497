"""A stack as arrays: what names mean, what is refused, and what it predicts."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.config.options import ModelConfig, Task
from fl_app.data.client_data import test_table as held_out
from fl_app.errors import ConfigError, DataError
from fl_app.models import estimators
from fl_app.models.registry import build
from fl_app.models.serving import predictor
from fl_app.stacking.members import (
    LS,
    MODEL,
    Member,
    MemberModels,
    Stack,
    StackModel,
    pack,
    pack_members,
    unpack,
    unpack_members,
)
from tests.stacks import Arrays, Ran, bits, config_of, run

D, C = 4, 3


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def kinds_of(task: Task = "classification", outputs: int = C) -> MemberModels:
    name = "softmax" if task == "classification" else "linear"
    config = ModelConfig(name, learning_rate=0.1)
    return MemberModels(build(config, D, outputs, task), task, D, outputs)


KINDS = kinds_of()
X = rng(1).normal(size=(20, D))
Y = np.arange(20) % C


def fitted(kind: str, seed: int = 0, task: Task = "classification") -> Member:
    draw = rng(seed)
    x = X + 0.3 * draw.normal(size=X.shape)
    if kind == MODEL:
        name = {"classification": KINDS, "regression": kinds_of("regression", 2)}[task]
        start = name.model.start(draw)
        return Member(MODEL, {k: a + draw.normal(size=a.shape) for k, a in start.items()})
    if kind == LS:
        return Member(LS, {"weights": 0.3 * draw.normal(size=(D + 1, C))})
    y = Y if task == "classification" else x[:, :2]
    outputs = C if task == "classification" else 2
    arrays = estimators.fit(kind, x, y, task=task, num_outputs=outputs, rng=draw)
    return Member(kind, arrays)


MEMBERS = {3: fitted("logistic", 1), 10: fitted("random_forest", 2), 1200: fitted(MODEL, 3)}
FAMILY = st.sampled_from(["averages", "matrix"])


def stack_of(global_kind: str | None, family: str = "averages", seed: int = 0) -> Stack:
    blocks = len(MEMBERS) + (global_kind is not None)
    draw = rng(seed)
    if family == "averages":
        weights = draw.dirichlet(np.ones(blocks), size=C).T
    else:
        weights = draw.normal(size=(blocks * C + 1, C)) / blocks
    whole = None if global_kind is None else fitted(global_kind, 9)
    return Stack(MEMBERS, whole, weights.astype(np.float32))


# ---------------------------------------------------------------------------- names
@pytest.mark.parametrize("global_kind", [MODEL, LS, None])
@pytest.mark.parametrize("family", ["averages", "matrix"])
def test_a_stack_survives_its_arrays(global_kind: str | None, family: str) -> None:
    """What is packed is unpacked bit for bit, in the order of partitions, whatever their names."""
    stack = stack_of(global_kind, family)
    arrays = stack.to_arrays()
    shuffled = {name: arrays[name] for name in rng(3).permutation(sorted(arrays)).tolist()}
    back = Stack.from_arrays(shuffled)
    assert list(back.members) == [3, 10, 1200]
    assert bits(back.to_arrays()) == bits(arrays)
    assert back.layout == stack.layout
    assert (back.global_member is None) == (global_kind is None)


def test_a_range_makes_a_stack_one_of_targets() -> None:
    """``low`` and ``high`` come with regression, bit for bit, and with nothing else."""
    member = fitted("ridge", task="regression")
    weights = np.ones((1, 2), np.float32)
    stack = Stack({0: member}, None, weights, (-1 / 3, 0.0), (1 / 3, 1e9))
    arrays = stack.to_arrays()
    back = Stack.from_arrays(arrays)
    assert (back.low, back.high) == ((-1 / 3, 0.0), (1 / 3, 1e9))
    assert not back.layout.classes
    assert not {"low", "high"} & set(stack_of(None).to_arrays())


@given(
    names=st.dictionaries(
        st.text("ab/_0", min_size=1, max_size=5), st.integers(0, 9), min_size=1, max_size=4
    ),
    prefix=st.sampled_from(["a", "base", "fold_1"]),
)
def test_a_prefix_is_put_before_and_taken_off(names: dict[str, int], prefix: str) -> None:
    """Unpacking finds what was packed, and nothing of a prefix that only begins alike."""
    arrays = {name: np.array(value) for name, value in names.items()}
    others = pack(f"{prefix}0", arrays) | {prefix: np.array(1)}
    assert unpack(prefix, others | pack(prefix, arrays)) == arrays
    assert unpack(prefix, others) == {}


def test_a_member_has_one_kind() -> None:
    """Two kinds under one prefix are an error; none are no member."""
    arrays = fitted("logistic").to_arrays("base")
    found = Member.from_arrays("base", arrays)
    assert found is not None
    assert found.kind == "logistic"
    assert Member.from_arrays("global", arrays) is None
    with pytest.raises(DataError, match="base=logistic, ridge: one kind"):
        Member.from_arrays("base", arrays | {"base/ridge/coef": np.zeros(2)})


def test_members_keep_to_the_order_of_partitions() -> None:
    """Ten comes after three, though its name does not."""
    arrays = pack_members(MEMBERS)
    assert list(unpack_members(dict(reversed(arrays.items())))) == [3, 10, 1200]


# ---------------------------------------------------------------------------- what is refused
def test_every_honest_member_passes() -> None:
    """What is fitted is accepted, of every kind and task."""
    every: dict[Task, MemberModels] = {
        "classification": KINDS,
        "regression": kinds_of("regression", 2),
    }
    for task, kinds in every.items():
        for name, kind in estimators.ESTIMATORS.items():
            if task in kind.tasks:
                kinds.check(fitted(name, task=task))
        kinds.check(fitted(MODEL, task=task))


@pytest.mark.parametrize(
    ("member", "text"),
    [
        (
            Member(MODEL, {"coef": np.zeros((C, D))}),
            r"model=.*: arrays named coef, intercept",
        ),
        (
            Member(MODEL, {"coef": np.zeros((C, D), "f4"), "intercept": np.zeros(C)}),
            r"model\.coef=float32",
        ),
        (Member(MODEL, {"coef": np.zeros((D, C)), "intercept": np.zeros(C)}), r"\(4, 3\)"),
        (
            Member(MODEL, {"coef": np.full((C, D), np.nan), "intercept": np.zeros(C)}),
            r"model\.coef=.*at most 1e\+30",
        ),
        (
            Member(MODEL, {"coef": np.full((C, D), 1e31), "intercept": np.zeros(C)}),
            r"model\.coef=.*at most 1e\+30",
        ),
        (Member(LS, {"weights": np.zeros((D + 1, C))}), "ls: no such base model"),
        (Member("ridge", {"coef": np.zeros((1, D), "f4")}), "ridge: does not fit"),
        (Member("knn", {"x": X}), "knn: carries raw training rows"),
        (Member("", {}), "no such base model"),
        (Member("logistic", {}), "arrays named coef, intercept, present"),
    ],
)
def test_what_is_no_model_is_refused(member: Member, text: str) -> None:
    """Names, dtypes, shapes, finite values and kinds are checked before anything predicts."""
    with pytest.raises((DataError, ConfigError), match=text):
        KINDS.check(member)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_parameters_within_bounds_never_say_nan(task: Task) -> None:
    """Numbers that pass the check may overflow a product; the row then says nothing, finitely."""
    kinds = KINDS if task == "classification" else kinds_of("regression", 2)
    layout = stacking.Layout(1, kinds.num_outputs, False)
    member = fitted(MODEL, task=task)
    wild = {
        k: np.where(np.arange(a.size).reshape(a.shape) % 2, 1e30, -1e30)
        for k, a in member.arrays.items()
    }
    kinds.check(Member(MODEL, wild))
    out = kinds.outputs(Member(MODEL, wild), np.full((5, D), 1e300), layout)
    assert out.shape == (5, kinds.num_outputs)
    assert np.isfinite(out).all()
    if task == "classification":
        np.testing.assert_allclose(out.sum(axis=1), 1)


# ---------------------------------------------------------------------------- predictions
@pytest.mark.parametrize("kind", ["logistic", "gaussian_nb", "random_forest", MODEL])
def test_a_stack_of_one_is_that_model(kind: str) -> None:
    """Alone and with weight 1 a member's word is the stack's."""
    member = fitted(kind, 4)
    one = Stack({0: member}, None, np.ones((1, C), np.float32))
    out = StackModel(KINDS).predict(one.to_arrays(), X)
    np.testing.assert_allclose(out, KINDS.outputs(member, X, one.layout), atol=1e-12)


def test_a_stack_of_one_target_model_is_that_model() -> None:
    """Within the range of the targets; beyond it the range's end."""
    kinds, member = kinds_of("regression", 2), fitted("ridge", task="regression")
    plain = estimators.predict("ridge", member.arrays, X)
    limit = np.median(plain, axis=0)
    stack = Stack({0: member}, None, np.ones((1, 2), np.float32), (-9.0, -9.0), tuple(limit))
    out = StackModel(kinds).predict(stack.to_arrays(), X)
    np.testing.assert_allclose(out, np.minimum(plain, limit), atol=1e-12)


@given(family=FAMILY, has_global=st.booleans(), seed=st.integers(0, 99))
def test_the_order_of_members_is_no_matter(family: str, has_global: bool, seed: int) -> None:
    """Members in reverse, with their weights in reverse, predict the same."""
    stack = stack_of(MODEL if has_global else None, family, seed)
    names = dict(zip(MEMBERS, reversed(MEMBERS), strict=True))
    renamed = {names[p]: member for p, member in reversed(MEMBERS.items())}
    m = len(MEMBERS)
    blocks = [*reversed(range(m)), *range(m, stack.layout.num_blocks)]
    if family == "averages":
        weights = stack.weights[blocks]
    else:
        rows = np.arange(stack.layout.num_blocks * C).reshape(-1, C)[blocks].ravel()
        weights = stack.weights[[*rows, -1]]
    other = Stack(renamed, stack.global_member, weights)
    model = StackModel(KINDS)
    found, expected = model.predict(other.to_arrays(), X), model.predict(stack.to_arrays(), X)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # The order of names in a file, or of a mapping, is no matter at all.
    arrays = dict(reversed(stack.to_arrays().items()))
    assert np.array_equal(model.predict(arrays, X), expected)


@pytest.mark.parametrize("global_kind", [MODEL, LS, None])
@pytest.mark.parametrize("family", ["averages", "matrix"])
def test_a_stack_predicts_what_its_models_say_combined(
    global_kind: str | None, family: str
) -> None:
    """The arrays' prediction is :func:`fl_app.stacking.predict` of the models."""
    stack = stack_of(global_kind, family)
    layout = stack.layout
    models = [lambda x, m=m: KINDS.outputs(m, x, layout) for m in stack.members.values()]
    whole = stack.global_member
    last = None if whole is None else (lambda x: KINDS.outputs(whole, x, layout))
    expected = stacking.predict(layout, models, last, stack.weights, X)
    out = StackModel(KINDS).predict(stack.to_arrays(), X)
    np.testing.assert_allclose(out, expected, atol=1e-12)
    np.testing.assert_allclose(out.sum(axis=1), 1, atol=1e-5)


def test_what_is_no_stack_yet_predicts_too() -> None:
    """A prior is the same for every row; the run's model is itself, alone or under ``global/``."""
    model = StackModel(KINDS)
    prior = np.array([0.5, 0.3, 0.2])
    np.testing.assert_array_equal(model.predict({"prior": prior}, X), np.tile(prior, (20, 1)))
    plain = fitted(MODEL, 5)
    expected = KINDS.model.predict(plain.arrays, X)
    np.testing.assert_array_equal(model.predict(plain.arrays, X), expected)
    alone = model.predict(plain.to_arrays("global"), X)
    np.testing.assert_allclose(alone, expected, atol=1e-7)


def test_least_squares_alone_says_probabilities() -> None:
    """Scores that leave [0, 1] become probabilities as in a stack of that one model."""
    whole = fitted(LS, 6)
    out = StackModel(KINDS).predict(whole.to_arrays("global"), 5 * X)
    raw = stacking.predict_linear(stacking.Layout(1, C, False), whole.arrays["weights"], 5 * X)
    assert (raw < 0).any()
    assert (raw > 1).any()
    assert (out >= 0).all()
    np.testing.assert_allclose(out.sum(axis=1), 1)


# ---------------------------------------------------------------------------- votes
def test_votes_by_hand() -> None:
    """Three models, three classes: each has one vote, whatever its weight or certainty.

    Row 0: votes 0, 1, 1. Row 1: one vote each, a tie that the first class wins. Row 2: the first
    model finds classes 1 and 2 equally likely and votes for 1, as does the third.
    """
    said = [
        [[0.98, 0.02, 0.0], [0.9, 0.1, 0.0], [0.2, 0.4, 0.4]],
        [[0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]],
        [[0.3, 0.4, 0.3], [0.3, 0.3, 0.4], [0.1, 0.6, 0.3]],
    ]

    class Said(MemberModels):
        def outputs(self, member: Member, x: Any, layout: Any) -> NDArray[np.float64]:
            return np.array(said[int(member.arrays["number"][0])])

    members = {k: Member(MODEL, {"number": np.array([k])}) for k in range(3)}
    third = np.full((3, 3), 1 / 3, np.float32)
    arrays = stored(Stack(members, None, third, votes=True).to_arrays())
    assert Stack.from_arrays(arrays).votes
    own = KINDS
    model = StackModel(Said(own.model, own.task, own.num_features, own.num_outputs))
    found = model.predict(arrays, X[:3])
    np.testing.assert_allclose(found * 3, [[1, 2, 0], [1, 1, 1], [0, 2, 1]], atol=1e-6)
    assert found.argmax(axis=1).tolist() == [1, 0, 1]


# ---------------------------------------------------------------------------- as it is stored
RUNS: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "every kind": (
        "wine",
        {"base_models": ["logistic", "gaussian_nb", "random_forest", "hist_gradient_boosting"]},
        {},
    ),
    "the run's model": (
        "iris",
        {"base_models": ["model"], "global_member": "none"},
        {"model": {"name": "mlp", "dtype": "float32"}},
    ),
    "least squares": ("breast_cancer", {"global_member": "ls"}, {}),
    "majority vote": (
        "wine",
        {"name": "n_average", "combine": "votes", "base_models": ["logistic", "random_forest"]},
        {},
    ),
    "class average": ("wine", {"name": "n_average", "combine": "classes"}, {}),
    "text labels": ("penguins", {}, {"partitioner": {"name": "natural"}, "num_clients": 3}),
    "trees of targets": ("diabetes", {"base_models": ["random_forest"]}, {"num_clients": 2}),
    "least squares of targets": ("diabetes", {"global_member": "ls"}, {}),
    "boosted targets": (
        "diabetes",
        {"base_models": ["hist_gradient_boosting", "ridge", "model"], "global_member": "none"},
        {},
    ),
}


def stored(arrays: Arrays) -> Arrays:
    """Write arrays to a file without pickle and read them back."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        return dict(found)


def raw_rows(ran: Ran) -> tuple[Any, NDArray[Any]]:
    """Return the server's test rows as a user has them, and their truth."""
    test = held_out(ran.config)
    frame = pd.DataFrame(test.numeric, columns=list(test.numeric_names))
    for position, name in enumerate(test.categorical_names):
        frame[name] = test.categorical[:, position]
    return frame[list(test.columns)], test.target


@pytest.mark.parametrize("name", RUNS)
def test_what_is_stored_predicts_what_was_reported(name: str) -> None:
    """From JSON and npz alone, raw rows of the test get the metrics of each round, exactly."""
    dataset, strategy, options = RUNS[name]
    ran = run(config_of(dataset, strategy, **options))
    frame, truth = raw_rows(ran)
    spec = json.loads(json.dumps(ran.predictor.to_spec()))
    for record in ran.rounds:
        found = np.asarray(predictor(spec, stored(dict(record.arrays)))(frame))
        if dataset == "diabetes":
            error = np.square(found - truth[:, 0]).mean()
            assert error == pytest.approx(record.server["mse"], rel=1e-12)
        else:
            assert (found == truth).mean() == record.server["accuracy"]
