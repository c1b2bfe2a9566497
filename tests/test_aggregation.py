"""The arithmetic of a federation: averages, their digest, and merged moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fl_app.aggregation import Moments, arrays_digest, merge_moments, moments, weighted_mean

SHAPE = (2, 3)
values = hnp.arrays(np.float64, SHAPE, elements=st.floats(-1e6, 1e6))
clients = st.lists(
    st.tuples(values, st.integers(1, 1000)).map(lambda pair: ({"w": pair[0]}, pair[1])),
    min_size=1,
    max_size=6,
)
Clients = list[tuple[dict[str, NDArray[Any]], int]]


def _mean(of: Sequence[tuple[dict[str, NDArray[Any]], int]]) -> NDArray[Any]:
    return weighted_mean([arrays for arrays, _ in of], [n for _, n in of])["w"]


# K additions and K products of numbers up to 1e6 round K times each, by at most 1e6 * eps.
CLOSE: Any = {"rtol": 0.0, "atol": 2 * 12 * 1e6 * np.finfo(np.float64).eps}


# ---------------------------------------------------------------------------- weighted_mean
@given(array=values, weights=st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_identical_clients_are_one_client(array: NDArray[Any], weights: list[int]) -> None:
    """K clients with the same arrays average to those arrays."""
    np.testing.assert_allclose(_mean([({"w": array}, n) for n in weights]), array, **CLOSE)


@given(array=values, n=st.integers(1, 1000))
def test_one_client_and_a_pair_of_twins_are_exact(array: NDArray[Any], n: int) -> None:
    """Shares of 1 and 1/2 round nothing: one client, or two equal ones, average to themselves."""
    one = ({"w": array}, n)
    assert np.array_equal(_mean([one]), array)
    # Half of the smallest numbers is not representable.
    np.testing.assert_array_max_ulp(_mean([one, one]), array, maxulp=1)


@given(of=clients)
def test_an_integer_weight_is_repetition(of: Clients) -> None:
    """A client of weight 3 counts as three clients of weight 1."""
    of = [(arrays, 1 + n % 4) for arrays, n in of]
    repeated = [(arrays, 1) for arrays, n in of for _ in range(n)]
    np.testing.assert_allclose(_mean(of), _mean(repeated), **CLOSE)


@given(of=clients, data=st.data())
def test_the_order_of_clients_changes_rounding_only(of: Clients, data: st.DataObject) -> None:
    """The average is a function of the set of clients, up to rounding."""
    shuffled = data.draw(st.permutations(of))
    np.testing.assert_allclose(_mean(of), _mean(shuffled), **CLOSE)


@given(of=clients)
def test_the_average_lies_among_the_clients(of: Clients) -> None:
    """No value leaves the range of the clients' values, up to rounding."""
    stacked, mean = np.stack([arrays["w"] for arrays, _ in of]), _mean(of)
    assert (mean >= stacked.min(axis=0) - CLOSE["atol"]).all()
    assert (mean <= stacked.max(axis=0) + CLOSE["atol"]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_the_bits_are_those_of_flowers_fedavg(dtype: str) -> None:
    """The explained average equals what Flower's FedAvg computes, in the same dtype."""
    rng = np.random.default_rng(0)
    of = [{"w": (100 * rng.normal(size=SHAPE)).astype(dtype)} for _ in range(7)]
    weights = rng.integers(1, 100, size=7).tolist()
    contents = [
        RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(arrays["w"])}),
                "metrics": MetricRecord({"num-examples": n}),
            }
        )
        for arrays, n in zip(of, weights, strict=True)
    ]
    ours, flowers = weighted_mean(of, weights), aggregate_arrayrecords(contents, "num-examples")
    expected = flowers["w"].numpy()
    assert ours["w"].dtype == expected.dtype
    assert ours["w"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", [int, float, np.int64, np.float64])
def test_the_dtype_is_the_arrays_whatever_type_weights_have(kind: type[Any]) -> None:
    """float32 stays float32, also where a weight is a NumPy scalar."""
    mean = weighted_mean([{"w": np.ones(2, np.float32)}] * 2, [kind(2), kind(6)])
    assert mean["w"].dtype == np.float32


def test_a_scalar_array_stays_an_array() -> None:
    """An array of shape () averages to an ndarray of shape (): (2*1 + 6*3) / 8 = 2.5."""
    mean = weighted_mean([{"b": np.array(1.0)}, {"b": np.array(3.0)}], [2, 6])
    assert isinstance(mean["b"], np.ndarray)
    assert mean["b"].shape == ()
    assert mean["b"] == 2.5


def test_inputs_are_left_as_they_are() -> None:
    """Averaging writes to no client's arrays and returns none of them."""
    of = [{"w": np.ones(3)}, {"w": np.zeros(3)}]
    one = weighted_mean(of[:1], [1])
    weighted_mean(of, [1, 2])
    assert of[0]["w"].tolist() == [1, 1, 1]
    assert of[1]["w"].tolist() == [0, 0, 0]
    assert not np.shares_memory(one["w"], of[0]["w"])


@pytest.mark.parametrize(
    ("num_clients", "weights", "message"),
    [
        (0, [], "0 clients and 0 weights: need K >= 1 of each"),
        (2, [1], "2 clients and 1 weights: need K >= 1 of each"),
        (2, [0, 0], "weights 0 to 0: need positive numbers"),
        (2, [-1, 3], "weights -1 to 3: need positive numbers"),
        (1, [float("nan")], "weights nan to nan: need positive numbers"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    num_clients: int, weights: list[float], message: str
) -> None:
    """No clients, missing and impossible weights are errors that say so."""
    with pytest.raises(ValueError, match="need") as caught:
        weighted_mean([{"w": np.ones(1)}] * num_clients, weights)
    assert str(caught.value) == message


# ---------------------------------------------------------------------------- arrays_digest
def test_a_digest_depends_on_names_dtypes_shapes_and_values_alone() -> None:
    """Order of names and of memory do not count; everything that a model is does."""
    w = np.arange(6.0).reshape(2, 3)
    digest = arrays_digest({"a": w, "b": w[0]})
    same = [{"b": w[0], "a": w}, {"a": np.asfortranarray(w), "b": w[0].copy()}]
    other = [
        {"a": w, "c": w[0]},
        {"a": w, "b": w[1]},
        {"a": w.astype(np.float32), "b": w[0]},
        {"a": w.reshape(3, 2), "b": w[0]},
        {"a": w.reshape(1, 2, 3), "b": w[0]},
        {"a": w},
        {"a": w, "b": w[0], "c": w[0]},
        {"a": -w, "b": w[0]},
        {"a": w.astype(">f8"), "b": w[0]},
    ]
    assert {arrays_digest(arrays) for arrays in same} == {digest}
    assert len({digest, *map(arrays_digest, other)}) == 1 + len(other)
    assert arrays_digest({"a": np.array(1.0)}) != arrays_digest({"a": np.array([1.0])})


# ---------------------------------------------------------------------------- moments
cells = st.one_of(st.floats(-1e3, 1e3), st.just(float("nan")))
tables = hnp.arrays(
    np.float64, st.tuples(st.integers(0, 12), st.just(3)), elements=cells, fill=st.nothing()
)


def _assert_equal(found: Moments, expected: Moments, scale: float) -> None:
    # A mean of up to 36 numbers of size `scale` is off by 36 eps scale at most, a sum of their
    # squared deviations by 36 times that times the deviation.
    eps = np.finfo(np.float64).eps
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=0, atol=100 * eps * scale)
    np.testing.assert_allclose(found.m2, expected.m2, rtol=1e-9, atol=1e4 * eps * scale * 2e3)


@given(parts=st.lists(tables, min_size=1, max_size=3), offset=st.sampled_from([0.0, 1e8]))
def test_merged_moments_are_the_pooled_moments(parts: list[NDArray[Any]], offset: float) -> None:
    """Merging what the parts tell equals the moments of all rows, with missing cells or offset."""
    parts = [part + offset for part in parts]
    merged = merge_moments([moments(part) for part in parts])
    _assert_equal(merged, moments(np.concatenate(parts)), scale=1e3 + offset)


@given(parts=st.lists(tables, min_size=2, max_size=3), data=st.data())
def test_merging_knows_no_order(parts: list[NDArray[Any]], data: st.DataObject) -> None:
    """The merged moments are those of the set of parts, up to rounding."""
    told = [moments(part) for part in parts]
    shuffled = data.draw(st.permutations(told))
    _assert_equal(merge_moments(told), merge_moments(shuffled), scale=1e3)


@given(part=tables)
def test_a_part_without_rows_is_neutral(part: NDArray[Any]) -> None:
    """Merging with the moments of no rows changes no bit."""
    told, empty = moments(part), moments(np.empty((0, 3)))
    for merged in (merge_moments([told, empty]), merge_moments([empty, told])):
        for key in ("count", "mean", "m2"):
            assert np.array_equal(getattr(merged, key), getattr(told, key))


def test_a_large_offset_costs_no_digits_of_the_variance() -> None:
    """At an offset of 1e8 the variance of 0, 1, 2, 3 is 5/4, where a plain sum of squares fails."""
    x = np.arange(4.0)[:, None] + 1e8
    merged = merge_moments([moments(x[:1]), moments(x[1:])])
    # The mean is off by 1e8 eps = 2e-8 at most, and so is the variance.
    np.testing.assert_allclose(merged.variance, [1.25], rtol=1e-7)
    naive = np.square(x.astype(np.float64)).mean() - x.mean() ** 2
    assert abs(naive - 1.25) > 0.1


def test_missing_cells_do_not_count() -> None:
    """NaN cells are left out column by column: of (1, nan, 3) remain count 2, mean 2, m2 2."""
    nan = float("nan")
    found = moments(np.array([[1.0, nan], [nan, nan], [3.0, nan]]))
    assert found.count.tolist() == [2, 0]
    assert found.mean.tolist() == [2, 0]
    assert found.m2.tolist() == [2, 0]
    assert found.variance.tolist() == [1, 0]


def test_no_moments_cannot_be_merged() -> None:
    """Without parts there is no width, so there is nothing to return."""
    with pytest.raises(ValueError, match="no moments to merge: need at least one"):
        merge_moments([])
