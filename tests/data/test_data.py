"""Data of a run: catalogue, splits, partitioners, encoding, frames and what a client sees."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_app.aggregation import merge_moments, moments
from fl_app.config.dataset_options import TwoLinesConfig
from fl_app.config.options import DirichletConfig, PartitionerConfig
from fl_app.config.schema import GROUPS, Config, task_of
from fl_app.config.serialization import from_dict
from fl_app.data.catalogue import load
from fl_app.data.client_data import (
    Partition,
    encode,
    partition_of,
    seed_draws,
    test_table,
    whole_table,
)
from fl_app.data.encoding import Encoding, labels_of, scaler
from fl_app.data.frames import features_from_frame
from fl_app.data.partitioners import deal
from fl_app.data.sets import toy
from fl_app.data.splits import split_test, split_validation
from fl_app.data.table import Table, numeric_table
from fl_app.errors import ConfigError, DataError

test_table.__test__ = False  # type: ignore[attr-defined]  # a function of the package, no test


def _labels(labels: list[Any], owners: NDArray[np.int64] | None = None) -> Table:
    x = np.arange(float(len(labels)))[:, None]
    return numeric_table("classification", x, ["row"], np.array(labels), ["label"], owners)


def _targets(targets: list[float]) -> Table:
    x = np.arange(float(len(targets)))[:, None]
    return numeric_table("regression", x, ["row"], np.array(targets), ["y"])


# ---------------------------------------------------------------------------- catalogue
@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_a_toy_set_is_scikit_learns(name: str) -> None:
    """Rows, columns and targets are those of scikit-learn's raw data."""
    from sklearn import datasets

    bunch = datasets.load_digits() if name == "digits" else datasets.load_diabetes(scaled=False)
    dataset = GROUPS["dataset"][name]()
    table = load(dataset, 0)
    assert table.task == task_of(dataset)
    assert table.columns == table.numeric_names == tuple(bunch.feature_names)
    assert np.array_equal(table.numeric, bunch.data)
    assert np.array_equal(table.target.ravel(), bunch.target)
    assert len(table.target_names) == 1


def test_digits_need_no_file_of_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its file is not found, scikit-learn itself gives the same table."""
    read = toy.digits()
    monkeypatch.setattr(toy, "find_spec", lambda name: None)
    loaded = toy.digits()
    assert (loaded.sha256, loaded.columns) == (read.sha256, read.columns)


def test_two_lines_are_two_lines() -> None:
    """Owner 0 has y = 2x + 1 and owner 1 has y = x + 1, at x = -1 and 1 in turn."""
    table = load(TwoLinesConfig(name="two_lines", rows=(2, 3)), 0)
    x, y = table.numeric[:, 0], table.target[:, 0]
    assert table.owners is not None
    assert table.owners.tolist() == [0, 0, 1, 1, 1]
    assert x.tolist() == [-1, 1, -1, 1, -1]
    assert y.tolist() == (np.where(table.owners == 0, 2 * x, x) + 1).tolist()


def test_a_tables_digest_depends_on_its_values_and_names() -> None:
    """Two tables have one digest exactly if they hold the same."""
    table = _labels([0, 1, 1])
    other = [
        _labels([0, 1, 0]),
        _labels([0, 1]),
        _labels(["0", "1", "1"]),
        _labels([0, 1, 1], np.array([0, 0, 1])),
        numeric_table("classification", table.numeric, ["x"], table.target, ["label"]),
        numeric_table("classification", table.numeric + 1, ["row"], table.target, ["label"]),
    ]
    assert _labels([0, 1, 1]).sha256 == table.sha256
    assert len({table.sha256, *(t.sha256 for t in other)}) == 1 + len(other)


# ---------------------------------------------------------------------------- splits
fractions = st.floats(0, 0.999)
seeds = st.integers(0, 2**32)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=fractions,
    seed=seeds,
    stratify=st.booleans(),
)
def test_a_test_split_parts_all_rows(
    labels: list[int], fraction: float, seed: int, stratify: bool
) -> None:
    """Train and test rows are disjoint, sorted, together all; ``round(n * fraction)`` are test."""
    target = np.array(labels)
    train, test = split_test(target, fraction, seed, stratify)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    assert test.tolist() == sorted(test.tolist())
    assert len(test) == round(len(labels) * fraction)
    if stratify:
        for label in set(labels):
            members = np.flatnonzero(target == label)
            taken = len(np.intersect1d(members, test))
            assert abs(taken - len(members) * fraction) < 1 + 1e-9


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=40),
    fraction=fractions,
    seed=seeds,
    stratify=st.booleans(),
)
def test_each_owner_keeps_a_row_to_train_on(
    rows: list[tuple[int, int]], fraction: float, seed: int, stratify: bool
) -> None:
    """One row of each owner who would have none comes back; no other row changes its side."""
    target, owners = np.array(rows).T
    before, drawn = split_test(target, fraction, seed, stratify)
    train, test = split_test(target, fraction, seed, stratify, owners)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(rows)))
    assert train.tolist() == sorted(train.tolist())
    back = np.setdiff1d(train, before)
    assert set(before) <= set(train)
    assert sorted(owners[back].tolist()) == sorted(set(owners.tolist()) - set(owners[before]))
    assert set(back) <= set(drawn)


@pytest.mark.parametrize("stratify", [True, False])
def test_a_test_split_is_drawn_by_the_seed_alone(stratify: bool) -> None:
    """The same seed gives the same rows, in another process too; another seed other rows."""
    target = np.arange(40) % 4
    found = split_test(target, 0.25, 3, stratify)[1].tolist()
    code = (
        "import numpy as np; from fl_app.data.splits import split_test;"
        f"print(split_test(np.arange(40) % 4, 0.25, 3, {stratify})[1].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == found == split_test(target, 0.25, 3, stratify)[1].tolist()
    others = {tuple(split_test(target, 0.25, seed, stratify)[1].tolist()) for seed in range(10)}
    assert len(others) == 10


@given(n=st.integers(1, 50), fraction=fractions, partition=st.integers(0, 999))
def test_a_validation_split_leaves_a_row_to_train_on(
    n: int, fraction: float, partition: int
) -> None:
    """Validation rows are ``round(n * fraction)``, but never all; both parts are all rows."""
    train, validation = split_validation(n, fraction, partition)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(n))
    assert len(validation) == min(round(n * fraction), n - 1)
    assert len(train) >= 1


def test_validation_rows_of_two_partitions_are_drawn_apart() -> None:
    """Partitions of equal size keep different positions: their draws are independent."""
    kept = {tuple(split_validation(50, 0.2, k)[1].tolist()) for k in range(10)}
    assert len(kept) == 10


# ---------------------------------------------------------------------------- partitioners
partitioners = st.one_of(
    st.just(PartitionerConfig(name="iid")),
    st.floats(1e-6, 1e6).map(lambda alpha: DirichletConfig(name="dirichlet", alpha=alpha)),
    st.sampled_from([5e-324, 1e-300, 1e100, 1.7e308]).map(
        lambda alpha: DirichletConfig(name="dirichlet", alpha=alpha)
    ),
)
anything = st.one_of(
    st.lists(st.integers(0, 4), min_size=1, max_size=40).map(_labels),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40).map(_targets),
    st.integers(1, 40).map(lambda n: _targets([0.1] * n)),
)


def _check_deal(parts: list[NDArray[np.int64]], num_rows: int, num_clients: int) -> None:
    assert len(parts) == num_clients
    assert all(len(part) > 0 for part in parts)
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(num_rows))


@given(table=anything, partitioner=partitioners, share=st.floats(0, 1), seed=seeds)
def test_every_row_goes_to_one_client_and_no_client_is_empty(
    table: Table, partitioner: PartitionerConfig, share: float, seed: int
) -> None:
    """A deal is a partition of all rows into K sorted, non-empty parts, up to a client a row."""
    num_clients = max(1, round(share * len(table)))
    _check_deal(deal(table, partitioner, num_clients, seed), len(table), num_clients)


@pytest.mark.parametrize("alpha", [1e-6, 1.0, 1e6, 1.7e308])
@pytest.mark.parametrize("num_clients", [1, 7, 60])
def test_extreme_skew_still_deals_to_everybody(alpha: float, num_clients: int) -> None:
    """Also with as many clients as rows, each of a tiny and of a huge alpha."""
    table = _labels([i % 3 for i in range(60)])
    parts = deal(table, DirichletConfig(name="dirichlet", alpha=alpha), num_clients, 0)
    _check_deal(parts, 60, num_clients)


def test_alpha_goes_from_one_client_a_class_to_equal_shares() -> None:
    """Near 0 each class lies with one client (but for rows given to empty ones); large: evenly."""
    table = _labels([i % 4 for i in range(400)])
    skewed = deal(table, DirichletConfig(name="dirichlet", alpha=1e-6), 4, 0)
    # A client that would be empty gets one row, so that at most 3 rows leave their class's client.
    owner = np.concatenate([np.full(len(part), k) for k, part in enumerate(skewed)])
    label = table.target[np.concatenate(skewed)]
    largest = sum(np.bincount(owner[label == c]).max() for c in range(4))
    assert largest >= 400 - 3
    for alpha in (1e9, 1.7e308):
        even = deal(table, DirichletConfig(name="dirichlet", alpha=alpha), 4, 0)
        assert [np.bincount(table.target[part]).tolist() for part in even] == [[25] * 4] * 4


def test_iid_parts_differ_by_one_row_at_most() -> None:
    """An iid deal is even, and neither in the table's order nor the same for two seeds."""
    table = _labels([0] * 103)
    parts = deal(table, PartitionerConfig(name="iid"), 10, 0)
    assert sorted(map(len, parts)) == [10] * 7 + [11] * 3
    assert parts[0].tolist() != list(range(0, 103, 10))
    assert parts[0].tolist() != deal(table, PartitionerConfig(name="iid"), 10, 1)[0].tolist()


def test_regression_is_dealt_by_deciles_of_the_target() -> None:
    """With a tiny alpha each decile of the target lies with one client, but for given rows."""
    table = _targets([float(i) for i in np.random.default_rng(0).permutation(100)])
    parts = deal(table, DirichletConfig(name="dirichlet", alpha=1e-6), 2, 0)
    owner = np.empty(100, dtype=int)
    for k, part in enumerate(parts):
        owner[part] = k
    decile = table.target[:, 0].astype(int) // 10
    assert sum(np.bincount(owner[decile == d]).max() for d in range(10)) >= 100 - 1


def test_natural_clients_keep_their_rows() -> None:
    """A natural deal is the owners', row by row."""
    parts = deal(_labels([0, 1, 0, 1], np.array([1, 0, 1, 1])), PartitionerConfig("natural"), 2, 0)
    assert [part.tolist() for part in parts] == [[1], [0, 2, 3]]


@pytest.mark.parametrize(
    ("table", "partitioner", "num_clients", "message"),
    [
        (
            _labels([0, 1, 1]),
            PartitionerConfig("iid"),
            4,
            "num_clients=4: at most one client a training row, of which are 3",
        ),
        (
            _labels([0, 1, 1]).take(np.array([], dtype=np.int64)),
            PartitionerConfig("iid"),
            1,
            "num_clients=1: at most one client a training row, of which are 0",
        ),
        (
            _labels([0, 1, 1]),
            PartitionerConfig("natural"),
            2,
            "partitioner=natural: this data set has no natural clients",
        ),
        (
            _labels([0, 1, 1], np.array([0, 1, 2])),
            PartitionerConfig("natural"),
            2,
            "num_clients=2: this data set has 3 natural clients: num_clients=3, "
            "under `flwr run` --federation-config 'num-supernodes=3'",
        ),
        (
            _labels([0, 1, 1], np.array([0, 0, 1])),
            PartitionerConfig("natural"),
            3,
            "num_clients=3: this data set has 2 natural clients: num_clients=2, "
            "under `flwr run` --federation-config 'num-supernodes=2'",
        ),
    ],
)
def test_what_cannot_be_dealt_is_refused(
    table: Table, partitioner: PartitionerConfig, num_clients: int, message: str
) -> None:
    """The error names the key and the numbers; no client ever gets another owner's rows."""
    with pytest.raises(ConfigError) as caught:
        deal(table, partitioner, num_clients, 0)
    assert str(caught.value) == message


# ---------------------------------------------------------------------------- partition
def _config(**options: Any) -> Config:
    return from_dict(options)


@pytest.mark.parametrize("name", ["digits", "diabetes"])
@pytest.mark.parametrize("strategy", ["fedavg", "pooled"])
def test_training_validation_and_test_rows_are_all_rows(name: str, strategy: str) -> None:
    """No row is in two places: the clients' and the server's rows together are the data set."""
    config = _config(num_clients=7, dataset={"name": name}, strategy={"name": strategy})
    clients = [0] if strategy == "pooled" else range(7)
    seen = [test_table(config)]
    for k in clients:
        part = partition_of(config, k)
        seen += [part.train, part.validation]
    rows = np.concatenate([np.column_stack([t.numeric, t.target]) for t in seen])
    table = whole_table(config)
    everything = np.column_stack([table.numeric, table.target])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, everything))


def test_pooled_rows_are_all_clients_rows_with_the_same_validation_split() -> None:
    """``strategy=pooled`` differs from a federation in the place of the rows alone."""
    config = _config(num_clients=5, dataset={"name": "diabetes"})
    pooled = partition_of(
        _config(num_clients=5, dataset={"name": "diabetes"}, strategy={"name": "pooled"}), 0
    )
    parts = [partition_of(config, k) for k in range(5)]
    for name in ("train", "validation"):
        together = np.concatenate([getattr(part, name).numeric for part in parts])
        assert np.array_equal(getattr(pooled, name).numeric, together)


def test_rows_do_not_depend_on_model_strategy_or_runtime() -> None:
    """What a client sees is a function of data set, partitioner, number of clients and seed."""
    one = partition_of(_config(num_clients=3), 1)
    other = partition_of(
        _config(
            num_clients=3,
            num_server_rounds=99,
            strategy={"name": "fedadam"},
            model={"name": "softmax", "l2": 3.0},
        ),
        1,
    )
    assert one.train.sha256 == other.train.sha256
    assert one.validation.sha256 == other.validation.sha256
    seeds = {partition_of(_config(num_clients=3, seed=s), 1).train.sha256 for s in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize("partition", [-1, 3])
def test_a_partition_that_is_not_there_is_refused(partition: int) -> None:
    """A node's partition-id beyond the number of clients is named, -1 too."""
    with pytest.raises(ConfigError) as caught:
        partition_of(_config(num_clients=3), partition)
    assert str(caught.value) == f"partition-id={partition}: 0 to 2, as num_clients=3"


def test_a_test_share_of_natural_clients_never_mixes_them() -> None:
    """Whichever rows the server tests on, each owner has rows to train on, and only its own."""
    for seed in range(20):
        config = _config(
            seed=seed,
            num_clients=2,
            dataset={"name": "two_lines", "rows": [1, 3], "test_fraction": 0.5},
            partitioner={"name": "natural"},
        )
        owners = [partition_of(config, k).train.owners for k in range(2)]
        assert [set(part.tolist()) for part in owners if part is not None] == [{0}, {1}]


NATURAL: dict[str, Any] = {"partitioner": {"name": "natural"}}
FLAMBY = {"name": "heart_disease", "split": "flamby"}
DRAWN: list[tuple[dict[str, Any], str]] = [
    ({"dataset": {"name": "wine"}}, "test"),
    ({"dataset": {"name": "penguins"}, "num_clients": 3, **NATURAL}, "test"),
    ({"dataset": {"name": "synthetic_regression", "num_examples": 40}}, "table"),
    ({"dataset": {"name": "synthetic_classification", "num_examples": 40}}, "table"),
    ({"dataset": {"name": "rings", "num_examples": 40}}, "table"),
    ({"dataset": {"name": "wine", "test_fraction": 0.0}}, "deal"),
    ({"dataset": FLAMBY, "num_clients": 4}, "deal"),
    ({"dataset": {"name": "heart_disease"}, "num_clients": 4, **NATURAL}, "test"),
    ({"dataset": FLAMBY, "num_clients": 4, **NATURAL}, "nothing"),
    ({"dataset": {"name": "two_lines", "rows": [4, 4]}, "num_clients": 2, **NATURAL}, "nothing"),
]


@pytest.mark.parametrize(("settings", "drawn"), DRAWN)
def test_what_the_seed_draws(settings: dict[str, Any], drawn: str) -> None:
    """Whether two seeds have other tables, test rows, clients' rows is what ``seed_draws`` says."""

    def rows(table: Table) -> list[Any]:
        return sorted(map(repr, zip(table.numeric.tolist(), table.target.tolist(), strict=True)))

    def client(config: Config) -> list[Any]:
        own = partition_of(config, 0)
        return sorted(rows(own.train) + rows(own.validation))

    configs = [from_dict({"num_clients": 5, **settings, "seed": seed}) for seed in (0, 1)]
    table, test, deal = (
        rows_of[0] != rows_of[1]
        for rows_of in (
            [rows(whole_table(config)) for config in configs],
            [rows(test_table(config)) for config in configs],
            [client(config) for config in configs],
        )
    )
    found = "table" if table else "test" if test else "deal" if deal else "nothing"
    assert [seed_draws(config) for config in configs] == [found, found] == [drawn, drawn]


# ---------------------------------------------------------------------------- encoding
NAN = float("nan")
MIXED = Encoding(
    task="classification",
    columns=("age", "sex", "weight"),
    numeric=("age", "weight"),
    mean=(50.0, 70.0),
    scale=(10.0, 5.0),
    levels=(("sex", ("f", "m")),),
    labels=("ill", "well"),
    targets=("state",),
)


def _mixed(age: list[float], sex: list[str | None], weight: list[float]) -> Table:
    return Table(
        "classification",
        ("age", "sex", "weight"),
        np.column_stack([age, weight]),
        ("age", "weight"),
        np.array(sex, dtype=object)[:, None],
        ("sex",),
        np.array(["ill"] * len(age), dtype=object),
        ("state",),
    )


def test_features_are_scaled_numbers_and_one_column_a_level() -> None:
    """(x - mean) / scale, then one column a level and OTHER's; a missing level is all 0."""
    table = _mixed([60.0, 50.0, 40.0], ["m", None, "x"], [75.0, 60.0, 70.0])
    assert MIXED.feature_names == ("age", "weight", "sex=f", "sex=m", "sex=OTHER")
    assert MIXED.features(table).tolist() == [
        [1, 1, 0, 1, 0],
        [0, -2, 0, 0, 0],
        [-1, 0, 0, 0, 1],
    ]


def test_a_missing_number_counts_as_the_mean() -> None:
    """A NaN cell becomes the scaled mean 0, so that no prediction turns into NaN."""
    table = _mixed([NAN, 60.0], ["f", "f"], [75.0, NAN])
    assert MIXED.features(table).tolist() == [[0, 1, 1, 0, 0], [1, 0, 1, 0, 0]]
    assert np.isnan(table.numeric).sum() == 2


def test_an_unknown_label_is_a_data_error() -> None:
    """A label that nobody told of in the handshake is named with those that are known."""
    table = replace(_mixed([1.0], ["f"], [1.0]), target=np.array(["dead"], dtype=object))
    with pytest.raises(DataError) as caught:
        MIXED.truth(table)
    assert str(caught.value) == "state=dead: one of the labels ill, well"


def test_an_encoding_survives_json() -> None:
    """The JSON form reads back equal, with floats to the last bit and types of labels."""
    kinds: list[tuple[Any, ...]] = [("a", "b"), (0, 1, 2), (1, "a"), (False, True), (0.5, 1.5)]
    for labels in kinds:
        encoding = replace(MIXED, labels=labels, mean=(0.1 + 0.2, 1e-308), scale=(1 / 3, 5e-324))
        back = Encoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
        assert back == encoding
        assert [type(v) for v in back.labels] == [type(v) for v in labels]


@pytest.mark.parametrize("labels", [(0, 7), ("a", "b"), (1, "a"), (False, True)])
def test_predicted_labels_are_the_raw_ones(labels: tuple[Any, ...]) -> None:
    """The label comes back in value and type as it is in the raw data."""
    found = replace(MIXED, labels=labels).predictions(np.array([[0.2, 0.8], [0.9, 0.1]]))
    assert found.tolist() == [labels[1], labels[0]]
    assert [type(v) for v in found.tolist()] == [type(labels[1]), type(labels[0])]


def test_regression_targets_are_learnt_scaled_and_predicted_in_their_unit() -> None:
    """``in_units`` undoes ``target``; one target comes as (n,), several as (n, T)."""
    encoding = Encoding(
        "regression",
        ("row",),
        ("row",),
        (0.0,),
        (1.0,),
        targets=("y",),
        target_mean=(10.0,),
        target_scale=(4.0,),
    )
    table = _targets([6.0, 14.0])
    assert encoding.target(table).tolist() == [[-1], [1]]
    assert encoding.truth(table).tolist() == [[6], [14]]
    assert encoding.predictions(encoding.in_units(encoding.target(table))).tolist() == [6, 14]
    two = replace(encoding, targets=("a", "b"), target_mean=(0.0, 1.0), target_scale=(1.0, 2.0))
    assert two.predictions(two.in_units(np.array([[1.0, 1.0]]))).tolist() == [[1, 3]]


def test_labels_are_plain_distinct_and_in_order() -> None:
    """NumPy's integers and texts become Python's; numbers come before texts."""
    assert labels_of(np.array([3, 1, 3, 10])) == [1, 3, 10]
    assert labels_of(["b", 2, "a", np.int64(1), np.str_("b")]) == [1, 2, "a", "b"]
    plain = labels_of([np.int64(1), np.str_("b"), np.float32(0.5)])
    assert [type(v) for v in plain] == [float, int, str]
    assert json.loads(json.dumps(plain)) == [0.5, 1, "b"]


def test_a_scaler_leaves_flat_and_unknown_columns_in_their_unit() -> None:
    """Scale is 1 without spread, also where the mean of a constant is rounded, or without rows."""
    constant = np.full((7, 1), 0.1) * np.array([[1.0, 1e9, 0.0]])
    mean, scale = scaler(moments(constant), 3)
    assert scale == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(mean, [0.1, 1e8, 0.0])
    assert scaler(moments(np.full((3, 1), NAN)), 1) == ((0.0,), (1.0,))
    assert scaler(None, 2) == ((0.0, 0.0), (1.0, 1.0))


def test_a_merged_scaler_is_the_pooled_standard_scaler() -> None:
    """Clients' merged moments give scikit-learn's ``StandardScaler`` of all training rows."""
    from sklearn.preprocessing import StandardScaler

    config = _config(num_clients=9, dataset={"name": "diabetes"}, partitioner={"name": "dirichlet"})
    rows = [partition_of(config, k).train.numeric for k in range(9)]
    mean, scale = scaler(merge_moments([moments(part) for part in rows]), rows[0].shape[1])
    pooled = StandardScaler().fit(np.concatenate(rows))
    np.testing.assert_allclose(mean, pooled.mean_, rtol=1e-12)
    np.testing.assert_allclose(scale, pooled.scale_, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_encoded_rows_are_read_only_and_of_the_models_dtype(name: str, dtype: str) -> None:
    """A client cannot spoil the rows that it keeps, and trains in the configured precision."""
    config = _config(num_clients=4, dataset={"name": name})
    rows = partition_of(config, 0)
    before = rows.train.sha256
    encoding = Encoding(
        rows.train.task,
        rows.train.columns,
        rows.train.numeric_names,
        *scaler(moments(rows.train.numeric), rows.train.numeric.shape[1]),
        labels=tuple(range(10)) if name == "digits" else (),
        targets=rows.train.target_names,
        target_mean=(0.0,) if name == "diabetes" else (),
        target_scale=(1.0,) if name == "diabetes" else (),
    )
    found = encode(rows, encoding, dtype)
    assert found.x.dtype == found.x_eval.dtype == dtype
    assert found.y.dtype == ("int64" if name == "digits" else dtype)
    assert len(found.x) == len(found.y) == len(rows.train)
    assert len(found.x_eval) == len(found.truth_eval) == len(rows.validation)
    assert (found.left_out, found.left_out_eval) == (0, 0)
    for array in (found.x, found.y, found.truth, found.x_eval, found.truth_eval):
        assert not array.flags.writeable
    assert replace(rows.train).sha256 == before


# ---------------------------------------------------------------------------- frames
NUMBERS = replace(MIXED, columns=("age", "weight"), levels=())


@pytest.mark.parametrize(
    "column",
    [
        [1, 2],
        pd.array([1, 2], dtype="Int64"),
        np.array([1, 2], dtype=np.int8),
        np.array([1.0, 2.0], dtype=np.float32),
        np.array([1, 2], dtype=object),
        ["1", "2.0"],
    ],
)
def test_numbers_of_any_type_are_numbers(column: Any) -> None:
    """Integers, floats and texts of numbers are the same cells."""
    table = features_from_frame(pd.DataFrame({"age": column, "weight": [3, 4]}), NUMBERS)
    assert table.numeric.tolist() == [[1, 3], [2, 4]]
    assert len(table) == 2


@pytest.mark.parametrize(
    "column",
    [
        [1, None],
        [1, NAN],
        pd.array([1, None], dtype="Int64"),
        pd.array([1.0, None], dtype="Float64"),
        np.array([1, None], dtype=object),
        np.array([1, pd.NA], dtype=object),
        np.array(["1", pd.NaT], dtype=object),
    ],
)
def test_a_missing_number_is_nan_whatever_stands_for_it(column: Any) -> None:
    """None, NaN, NA and NaT all become NaN."""
    table = features_from_frame(pd.DataFrame({"age": column, "weight": [3, 4]}), NUMBERS)
    assert np.isnan(table.numeric).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize("missing", [None, NAN, pd.NA])
def test_a_missing_text_has_no_level(missing: Any) -> None:
    """A missing cell of a categorical column is None, and none of the levels."""
    frame = pd.DataFrame({"weight": [70, 70], "sex": ["m", missing], "age": [50, 50], "id": [1, 2]})
    table = features_from_frame(frame, MIXED)
    assert table.categorical[:, 0].tolist() == ["m", None]
    assert MIXED.features(table).tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            pd.DataFrame({"age": [1]}),
            "weight=a missing column: the columns age, weight, each once",
        ),
        (
            pd.DataFrame([[1, 2, 3]], columns=["age", "age", "weight"]),
            "age=2 columns: the columns age, weight, each once",
        ),
        (
            pd.DataFrame({"age": ["old"], "weight": [1]}),
            "age='old' in row 1: numbers or missing cells",
        ),
        (
            pd.DataFrame({"age": [float("inf")], "weight": [1]}),
            "age=inf in row 1: finite numbers",
        ),
        (
            pd.DataFrame({"age": pd.to_datetime(["2020-01-01"]), "weight": [1]}),
            "age=2020-01-01 00:00:00 in row 1: numbers or missing cells",
        ),
    ],
)
def test_a_wrong_frame_is_a_data_error(frame: pd.DataFrame, message: str) -> None:
    """The error names the column and what is wrong with it."""
    with pytest.raises(DataError) as caught:
        features_from_frame(frame, NUMBERS)
    assert str(caught.value) == message


def _pains(*levels: str) -> Encoding:
    return Encoding(
        task="classification",
        columns=("pain", "pain=mild"),
        numeric=(),
        mean=(),
        scale=(),
        levels=(("pain", levels), ("pain=mild", ())),
        labels=(0, 1),
        targets=("y",),
    )


@pytest.mark.parametrize("known", [(), ("mild",), ("OTHER", "OTHER_", "mild", "other")])
@pytest.mark.parametrize("word", ["other", "OTHER", "OTHER_", "odd level", "nan", "None"])
def test_a_level_that_nobody_told_of_is_other_by_position(
    word: str, known: tuple[str, ...]
) -> None:
    """Whatever the cell says: it shares no feature, and no name of one, with any level."""
    cells = np.array([["mild", None], [word, "x"], [None, None]], dtype=object)
    empty = np.empty((3, 0))
    names = ("pain", "pain=mild")
    table = Table("classification", names, empty, (), cells, names, np.zeros(3, int), ("y",))
    encoding = Encoding.from_dict(json.loads(json.dumps(_pains(*known).to_dict())))
    assert len({*encoding.feature_names}) == len(encoding.feature_names) == len(known) + 2
    places = [np.flatnonzero(row).tolist() for row in encoding.features(table)]
    other, others = len(known), len(known) + 1
    mild = known.index("mild") if "mild" in known else other
    assert places == [[mild], [known.index(word) if word in known else other, others], []]


def test_rows_of_a_class_that_nobody_told_of_are_left_out_and_named() -> None:
    """They are in no array; two numbers and one line each say so, with the cells' rows."""
    y = np.array([0, 7, 1, 7, 8, 0])
    x = np.arange(6.0)[:, None]
    cells = np.array([*"aabbc", None], dtype=object)[:, None]
    table = Table("classification", ("x", "c"), x, ("x",), cells, ("c",), y, ("y",))
    encoding = Encoding(
        "classification", ("x", "c"), ("x",), (0.0,), (1.0,), (("c", ("a",)),), (0, 1), ("y",)
    )
    rows = Partition(table.take(np.arange(4)), table.take(np.arange(4, 6)))
    found = encode(rows, encoding, "float64")
    assert found.x.tolist() == [[0, 1, 0], [2, 0, 1]]
    assert found.y.tolist() == found.truth.tolist() == [0, 1]
    assert found.x_eval.tolist() == [[5, 0, 0]]
    assert (found.left_out, found.left_out_eval) == (2, 1)
    assert encoding.strangers(rows.rows) == [
        "y=7 (2 rows), 8 (1 row): rows of these classes are left out",
        "c=b (2 rows), c (1 row): these levels count as OTHER",
    ]
    assert encoding.strangers(table.take(np.array([0, 5]))) == []


def test_a_missing_number_is_the_federations_mean() -> None:
    """Without standardizing, a missing cell becomes ``fill``; with it, 0, which is the mean."""
    rows = np.array([[np.nan], [5.0]])
    table = Table("regression", ("x",), rows, ("x",), np.empty((2, 0), object), (), rows, ("y",))
    raw = Encoding("regression", ("x",), ("x",), (0.0,), (1.0,), targets=("y",), fill=(3.0,))
    scaled = Encoding("regression", ("x",), ("x",), (3.0,), (2.0,), targets=("y",), fill=(3.0,))
    assert raw.features(table).tolist() == [[3.0], [5.0]]
    assert scaled.features(table).tolist() == [[0.0], [1.0]]
