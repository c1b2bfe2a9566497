"""Laws of metric keys, of what is computed over clients, and of the round's artifacts."""

import json
import math
import posixpath
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.tracking import ClientRecord, RoundRecord, RunFacts
from fl_app.tracking.metric_names import (
    MAX_SHOWN_CLIENTS,
    MAX_SHOWN_VALUES,
    MetricNames,
    array_metrics,
    artifact_path,
    bytes_text,
    round_metrics,
    sanitise,
    update_norm,
)
from fl_app.tracking.records import flat_norm
from fl_app.tracking.round_texts import aggregation_text, client_rows, client_table


def mlflow_takes(key: str) -> bool:
    """State MLflow's rule: these characters, at most 250, and a path that means itself."""
    characters = re.fullmatch(r"[/\w.\- :]*", key)
    norm = posixpath.normpath(key)
    plain = norm == key and norm != "." and not norm.startswith(("..", "/"))
    return bool(characters) and plain and len(key) <= 250


paths = st.text(st.sampled_from(["a", "/", ".", "_", " ", "[", "%", "\n", "ü", "\0"]), max_size=12)
any_text = st.text(max_size=300) | paths


@given(any_text)
def test_sanitised_keys_are_taken_by_mlflow(key: str) -> None:
    """Whatever a key is, its sanitised form is one that MLflow takes."""
    assert mlflow_takes(sanitise(key))


@given(any_text)
def test_sanitising_changes_nothing_that_is_good(key: str) -> None:
    """A good key stays as it is, and so sanitising twice is sanitising once."""
    if mlflow_takes(key):
        assert sanitise(key) == key
    assert sanitise(sanitise(key)) == sanitise(key)


@given(path=st.text(st.sampled_from(["a", "/", ".", "\0", "\\"]), max_size=8))
def test_artifacts_stay_in_their_run(path: str) -> None:
    """No path leads out of its folder or means another one; a good path stays as it is."""
    inside = artifact_path(path)
    assert posixpath.normpath(inside) == inside
    assert not inside.startswith(("/", ".."))
    assert artifact_path(inside) == inside


def test_long_keys_stay_apart() -> None:
    """Keys that differ only where they are cut get different names."""
    assert sanitise("k" * 300) != sanitise("k" * 299 + "l")


@given(st.lists(any_text, unique=True, max_size=8), st.randoms())
def test_names_do_not_depend_on_the_order_of_keys(keys: list[str], random: object) -> None:
    """Keys that arrive together get the same distinct names in every order."""
    shuffled = keys.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    names = MetricNames()({key: key for key in keys})
    assert len(names) == len(keys)
    assert all(mlflow_takes(name) for name in names)
    assert MetricNames()({key: key for key in shuffled}) == names


@given(st.lists(any_text, unique=True, max_size=6), st.lists(any_text, unique=True, max_size=6))
def test_names_are_kept_for_the_whole_run(first: list[str], second: list[str]) -> None:
    """What arrives later never takes or changes the name of what was there."""
    book = MetricNames()
    before = {key: name for name, key in book({k: k for k in first}).items()}
    book({k: k for k in second})
    after = {key: name for name, key in book({k: k for k in {*first, *second}}).items()}
    assert before.items() <= after.items()
    assert len(set(after.values())) == len(after)


def test_a_key_that_needs_no_change_keeps_its_name() -> None:
    """In a collision the key that MLflow takes as it is wins."""
    assert set(MetricNames()({"w[0]": 1, "w_0_": 2}).items()) > {("w_0_", 2)}


def client(partition: int, num_examples: float = 5, **metrics: float) -> ClientRecord:
    """Make a client without arrays."""
    return ClientRecord(partition, num_examples, metrics)


def evaluated(*clients: ClientRecord, many: bool = False) -> dict[str, float]:
    """Return the metrics of a round that these clients evaluated."""
    return round_metrics(RoundRecord(1, {}, evaluate_clients=clients), many)


def test_each_source_has_its_prefix() -> None:
    """Every part of a record arrives under the prefix of the contract, with its value."""
    record = RoundRecord(
        3,
        {},
        train={"mse": 1.0},
        evaluate={"mse": 2.0},
        server={"mse": 3.0},
        train_clients=[client(7, mse=4.0)],
        evaluate_clients=[client(12, mse=5.0)],
        cost={"seconds": 6.0},
        extra={"stack/lambda": 7.0},
    )
    assert round_metrics(record) == {
        "train/mse": 1.0,
        "eval/mse": 2.0,
        "server/mse": 3.0,
        "train_client_mse/007": 4.0,
        "eval_client_mse/012": 5.0,
        "fairness/mse_worst": 5.0,
        "fairness/mse_p10": 5.0,
        "fairness/mse_gap": 0.0,
        "cost/seconds": 6.0,
        "stack/lambda": 7.0,
    }


finite = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(finite)
def test_fairness_is_numpy_over_the_clients(values: list[float]) -> None:
    """Worst and worse tail are minimum and 10 % quantile where more is better, else mirrored."""
    metrics = evaluated(*(client(k, accuracy=v, mse=v) for k, v in enumerate(values)))
    assert metrics["fairness/accuracy_worst"] == min(values)
    assert metrics["fairness/mse_worst"] == max(values)
    assert metrics["fairness/accuracy_p10"] == pytest.approx(np.quantile(values, 0.1))
    assert metrics["fairness/mse_p10"] == pytest.approx(np.quantile(values, 0.9))
    for name in ("accuracy", "mse"):
        assert metrics[f"fairness/{name}_gap"] == max(values) - min(values)


@given(st.floats(allow_infinity=True, allow_nan=False), st.integers(1, 30))
def test_identical_clients_are_one_client(value: float, count: int) -> None:
    """Clients that agree have no gap, and every quantile is their value."""
    one = evaluated(client(0, mse=value), many=True)
    many = evaluated(*(client(k, mse=value) for k in range(count)), many=True)
    assert many == one
    assert many["eval_client_mse/p50"] == value
    assert many["fairness/mse_gap"] == 0


def test_a_client_without_a_number_has_no_rank() -> None:
    """One NaN makes every statistic over the clients NaN: no client is passed over."""
    metrics = evaluated(client(0, mse=1.0), client(1, mse=math.nan))
    assert all(math.isnan(metrics[f"fairness/mse_{s}"]) for s in ("worst", "p10", "gap"))


def test_few_rows_decide_no_spread() -> None:
    """Clients with fewer than 5 rows are told of and rank nowhere; without any other no key is."""
    few = [client(k, rows, accuracy=0.1 * k) for k, rows in enumerate((1, 4, 5, 9))]
    metrics = evaluated(*few)
    assert metrics["fairness/accuracy_worst"] == pytest.approx(0.2)
    assert metrics["fairness/accuracy_gap"] == pytest.approx(0.1)
    assert {f"eval_client_accuracy/{k:03d}" for k in range(4)} <= metrics.keys()
    assert [row["num_examples"] for row in client_rows(1, few)] == [1, 4, 5, 9]
    assert not [key for key in evaluated(*few[:2]) if key.startswith("fairness/")]


def test_clients_of_unknown_size_count() -> None:
    """In an app that weighs by nothing known every client is in."""
    assert evaluated(client(0, math.nan, mse=2.0))["fairness/mse_worst"] == 2.0


def test_many_clients_are_shown_by_quantiles() -> None:
    """With many clients there are three curves a metric instead of one a client."""
    clients = [client(k, accuracy=k / 40) for k in range(MAX_SHOWN_CLIENTS + 1)]
    keys = [k for k in evaluated(*clients, many=True) if k.startswith("eval_client_accuracy/")]
    assert sorted(keys) == [f"eval_client_accuracy/{s}" for s in ("p10", "p50", "worst")]


def test_small_arrays_are_curves() -> None:
    """Each value has its given name, its index without names, and the array's own when alone."""
    arrays = {
        "coef": np.array([[1.0, 2.0]]),
        "intercept": np.array([3.0]),
        "hidden": np.array([[4.0], [5.0]]),
    }
    names = {"coef": ["a/b", "c"], "intercept": [""]}
    assert array_metrics(arrays, names) == {
        "model/coef.a_b": 1.0,
        "model/coef.c": 2.0,
        "model/intercept": 3.0,
        "model/hidden.0.0": 4.0,
        "model/hidden.1.0": 5.0,
    }


def test_large_arrays_are_no_curves() -> None:
    """One value too many in all arrays together, and none is shown."""
    arrays = {"a": np.zeros(MAX_SHOWN_VALUES - 1), "b": np.zeros(1)}
    assert len(array_metrics(arrays, {})) == MAX_SHOWN_VALUES
    assert array_metrics({**arrays, "c": np.zeros(1)}, {}) == {}


def test_update_norm() -> None:
    """It is the norm of the difference, over all arrays as one vector; none where names change."""
    before: dict[str, Any] = {"a": np.zeros(2), "b": np.zeros((1, 1), np.float32)}
    after: dict[str, Any] = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]], np.float32)}
    assert update_norm(after, before) == math.hypot(3, 4)
    assert update_norm(after, after) == 0
    assert update_norm(after, {"a": before["a"]}) is None
    assert update_norm(after, {"a": before["a"], "b": np.zeros(5)}) is None
    counted, more = {**before, "n": np.array([1])}, {**after, "n": np.array([9])}
    assert update_norm(more, counted) == 5
    assert update_norm({**after, "n": np.array([9.0])}, counted) is None
    assert update_norm({**after, "n": np.array([9.0])}, counted, {"n"}) == 5
    assert update_norm({"n": more["n"]}, {"n": counted["n"]}) is None
    large = {"w": np.full(3_000_000, 0.5, np.float32)}
    assert update_norm(large, {"w": np.zeros(3_000_000, np.float32)}) == math.sqrt(750_000)


def with_arrays(partition: int, num_examples: float, values: np.ndarray) -> ClientRecord:
    """Make a client with one array, shown."""
    arrays = {"w": values}
    return ClientRecord(partition, num_examples, {}, arrays, flat_norm(arrays))


def test_aggregation_can_be_checked_by_hand() -> None:
    """Weights are n_k/N, and the weighted sum of the shown arrays is the shown aggregate."""
    values = np.array([[1.0, 2.0], [5.0, -1.0]])
    clients = [with_arrays(0, 10, values[0]), with_arrays(1, 30, values[1])]
    mean = {"w": np.average(values, axis=0, weights=[10, 30])}
    record = RoundRecord(3, mean, train_clients=clients, aggregate=mean, run=RunFacts("FedAvg"))
    told = json.loads(aggregation_text(record))
    assert (told["server_round"], told["rule"], told["num_examples"]) == (3, "FedAvg", 40)
    assert [c["partition"] for c in told["clients"]] == [0, 1]
    assert [c["num_examples"] for c in told["clients"]] == [10, 30]
    weighted = sum(c["weight"] * np.array(c["arrays"]["w"]) for c in told["clients"])
    assert weighted == pytest.approx(told["aggregate"]["w"])


def test_large_aggregations_tell_norms() -> None:
    """Beyond the limit only norms are told, of the clients' arrays and of the aggregate."""
    large = {"w": np.ones(MAX_SHOWN_VALUES + 4)}
    record = RoundRecord(
        1, large, train_clients=[ClientRecord(0, 2, {}, None, 5.0)], aggregate=large
    )
    told = json.loads(aggregation_text(record))
    assert told["clients"][0]["arrays"] == {"norm": 5.0}
    assert told["aggregate"] == {"norm": 6.0}  # sqrt(36)


def test_what_may_not_be_shown_is_null() -> None:
    """A private client has neither arrays nor norm, and no aggregate is null, not old arrays."""
    record = RoundRecord(1, {"w": np.ones(1)}, train_clients=[ClientRecord(0, math.nan, {})])
    told = json.loads(aggregation_text(record))
    assert told["clients"] == [
        {"partition": 0, "num_examples": None, "weight": None, "arrays": None}
    ]
    assert told["aggregate"] is None


def test_artifacts_are_strict_json() -> None:
    """A number that JSON does not have is null, so that any reader can read the file."""
    record = RoundRecord(1, {}, aggregate={"w": np.array([math.nan, math.inf, 1.0])})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    told = json.loads(aggregation_text(record), parse_constant=refuse)
    assert told["aggregate"]["w"] == [None, None, 1.0]
    rows = client_rows(1, [client(0, mse=math.inf)])
    table = json.loads(client_table(rows), parse_constant=refuse)
    assert table["data"] == [[1, 0, 5, None]]


def test_table_has_one_row_a_client_and_round() -> None:
    """Rows keep their order; a metric that a client lacks is null."""
    rows = client_rows(1, [client(0, 3, mse=1.0)]) + client_rows(2, [client(1, 4, mae=2.0)])
    table = json.loads(client_table(rows))
    assert table["columns"] == ["server_round", "partition", "num_examples", "mse", "mae"]
    assert table["data"] == [[1, 0, 3, 1.0, None], [2, 1, 4, None, 2.0]]


@pytest.mark.parametrize(
    ("count", "digits", "text"),
    [
        (0, 3, "0 B"),
        (999, 3, "999 B"),
        (999_499, 3, "999 kB"),
        (999_500, 3, "1 MB"),
        (999_500, 4, "999.5 kB"),
        (2.5e12, 3, "2.5e+03 GB"),
    ],
)
def test_bytes_are_said_in_few_digits(count: float, digits: int, text: str) -> None:
    """A number that rounds to 1000 of a unit is 1 of the next one."""
    assert bytes_text(count, digits) == text
