"""Partitioners by shards and by quantity: laws that hold for every table and every seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.data.stratification import strata
from fl_app.data.table import Table, numeric_table
from fl_app.data.uneven_partitioners import quantity, shards
from fl_app.errors import ConfigError
from fl_app.seeding import generator


@dataclass(frozen=True)
class Shards:
    classes_per_client: int


@dataclass(frozen=True)
class Quantity:
    alpha: float


def classes(labels: list[object]) -> Table:
    target = np.array(labels, dtype=object if isinstance(labels[0], str) else None)
    return numeric_table("classification", np.zeros((len(labels), 1)), ["x"], target, ["y"])


def targets(values: list[float]) -> Table:
    return numeric_table("regression", np.zeros((len(values), 1)), ["x"], np.array(values), ["y"])


def rng(seed: int = 0) -> np.random.Generator:
    return generator(seed, "partition")


def assert_deals_all(owner: np.ndarray, table: Table, k: int) -> None:
    """Every row has one owner, and every client at least one row."""
    assert owner.shape == (len(table),)
    assert set(owner.tolist()) == set(range(k))


SEEDS = st.integers(0, 2**32)


@st.composite
def deals(draw: st.DrawFn, most_classes: int | None = None) -> tuple[list[int], int, int]:
    """Draw labels, a number of clients and of shards for each, with a row for each shard."""
    k, each = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    top = 6 if most_classes is None else min(most_classes, k * each) - 1
    labels = st.lists(st.integers(0, top), min_size=k * each, max_size=80)
    return draw(labels), k, each


@given(deals(), SEEDS)
def test_shards_deal_every_row_to_one_client_and_leave_none_empty(deal, seed):
    """Shards are a partition of the rows, and the same seed gives the same one."""
    labels, k, each = deal
    table = classes(labels)
    owner = shards(table, Shards(each), k, rng(seed))
    assert_deals_all(owner, table, k)
    assert np.array_equal(owner, shards(table, Shards(each), k, rng(seed)))


@given(deals(most_classes=7), SEEDS)
def test_a_client_has_at_most_its_number_of_classes(deal, seed):
    """With at least as many shards as classes, no client has more than classes_per_client."""
    labels, k, each = deal
    owner = shards(classes(labels), Shards(each), k, rng(seed))
    for client in range(k):
        assert len(set(np.array(labels)[owner == client])) <= each


def test_equal_classes_make_equal_clients():
    """10 classes of 20 rows in 10 x 2 shards of 10 rows: each client has 20 rows."""
    table = classes([str(c) for c in range(10)] * 20)
    owner = shards(table, Shards(2), 10, rng())
    assert np.bincount(owner).tolist() == [20] * 10


def test_fewer_shards_than_classes_still_deal_everything():
    """Then shards are equal cuts of the sorted rows: sizes of clients differ by one at most."""
    table = classes([str(c) for c in range(10)] * 5)
    owner = shards(table, Shards(1), 3, rng())
    sizes = np.bincount(owner, minlength=3)
    assert_deals_all(owner, table, 3)
    assert sizes.max() - sizes.min() <= 1


def test_shards_of_a_regression_are_deciles():
    """A client of two shards sees two deciles of the target at most."""
    table = targets(list(range(200)))
    owner = shards(table, Shards(2), 10, rng())
    assert max(len(set(strata(table)[owner == client])) for client in range(10)) <= 2


def test_more_shards_than_rows_are_refused_by_name():
    """The message says how many classes a client could have."""
    with pytest.raises(ConfigError) as caught:
        shards(classes([0, 1] * 6), Shards(4), 4, rng())
    assert str(caught.value) == (
        "partitioner.classes_per_client=4: at most 3: 4 clients share 12 training rows"
    )


@given(
    st.integers(1, 20), st.integers(0, 60), st.sampled_from([1e-300, 0.01, 0.5, 5.0, 1e6]), SEEDS
)
def test_quantity_deals_every_row_to_one_client_and_leaves_none_empty(k, more, alpha, seed):
    """For every concentration the deal is a partition, and the same seed gives the same one."""
    table = classes([0] * (k + more))
    owner = quantity(table, Quantity(alpha), k, rng(seed))
    assert_deals_all(owner, table, k)
    assert np.array_equal(owner, quantity(table, Quantity(alpha), k, rng(seed)))


def test_quantity_goes_from_one_large_client_to_equal_ones():
    """An alpha near 0 gives all but one row each to one client, a large alpha equal sizes."""
    table = classes([0] * 1000)
    skewed = np.bincount(quantity(table, Quantity(1e-300), 10, rng()))
    even = np.bincount(quantity(table, Quantity(1e9), 10, rng()))
    assert sorted(skewed.tolist()) == [1] * 9 + [991]
    assert even.max() - even.min() <= 1


def test_quantity_knows_nothing_of_classes():
    """Other labels on the same rows change no owner."""
    first = quantity(classes([0, 1] * 50), Quantity(0.5), 7, rng())
    second = quantity(classes(["a"] * 100), Quantity(0.5), 7, rng())
    assert np.array_equal(first, second)


@pytest.mark.parametrize("dealer", [shards, quantity])
def test_another_seed_deals_otherwise(dealer):
    """The deal depends on the seed."""
    config = Shards(2) if dealer is shards else Quantity(0.5)
    table = classes([0, 1, 2, 3] * 25)
    assert not np.array_equal(dealer(table, config, 5, rng(0)), dealer(table, config, 5, rng(1)))


def test_strata_are_classes_or_deciles():
    """Classes are numbered in their order; 100 different targets make ten groups of ten."""
    assert strata(classes(["b", "a", "b"])).tolist() == [1, 0, 1]
    assert np.bincount(strata(targets(list(range(100))))).tolist() == [10] * 10
