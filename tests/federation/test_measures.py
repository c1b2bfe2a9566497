"""Metrics of a federation that are no mean over clients: what they are, what is sent for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier

from fl_app.client_app import app as client_app
from fl_app.config.schema import METRICS, Config
from fl_app.config.serialization import from_dict, to_json
from fl_app.data.client_data import encode, own_partition, partition_of
from fl_app.data.encoding import Encoding
from fl_app.experiment import federated_of
from fl_app.federation import protocol
from fl_app.federation.federated import Federated, Participation
from fl_app.federation.handshake import shake_hands
from fl_app.federation.measures import Exchange, Measures
from fl_app.federation.replies import ReplySpec, accept
from fl_app.federation.roster import Roster
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold
from fl_app.models.metrics import (
    BINS,
    FEWEST_ROWS,
    Tally,
    merged_r2,
    score,
    score_all,
    squares,
)
from fl_app.models.serving import Predictor
from fl_app.seeding import generator, one_thread
from fl_app.strategies import start_arrays, strategy_of
from fl_app.tracking.records import RoundRecord, RunEnd, RunStart
from fl_app.tracking.tracked import TrackedStrategy
from tests.messages import asked_of, content_of, reply_of, roster_of

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]


# ---------------------------------------------------------------------------- against scikit-learn
def _digits() -> Rows:
    x, y = load_digits(return_X_y=True)
    fitted = LogisticRegression(max_iter=200).fit(x[:600] / 16, y[:600])
    return fitted.predict_proba(x[600:] / 16), y[600:]


def _saturated() -> Rows:
    """Probabilities of an overfitted MLP: half of them are beyond the outermost edges."""
    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    fitted = MLPClassifier((30,), alpha=0, learning_rate_init=0.01, random_state=0)
    for _ in range(300):
        fitted.partial_fit(x[:150], y[:150], classes=[0, 1])
    p = fitted.predict_proba(x[150:])
    assert (np.abs(np.log(p[:, 1] / np.maximum(p[:, 0], 1e-300))) > 16).mean() > 0.4
    return p, y[150:]


def _rare() -> Rows:
    """3 % of 4000 rows are positive; the model always says the other class."""
    rng = np.random.default_rng(0)
    y = (np.arange(4000) % 100 < 3).astype(np.int64)
    x = rng.normal(size=(4000, 5)) + 0.8 * y[:, None]
    fitted = LogisticRegression().fit(x[:2000], y[:2000])
    return fitted.predict_proba(x[2000:]), y[2000:]


def _wine() -> Rows:
    """Naive Bayes on few columns, whose probabilities run up to 0 and 1."""
    x, y = load_wine(return_X_y=True)
    fitted = GaussianNB().fit(x[::3, :6], y[::3])
    rest = np.arange(len(y)) % 3 != 0
    return fitted.predict_proba(x[rest, :6]), y[rest]


SETS = {"digits": _digits, "saturated MLP": _saturated, "3 % positives": _rare, "wine": _wine}


@lru_cache
def _rows(name: str) -> Rows:
    return SETS[name]()


def _auc(p: NDArray[Any], y: NDArray[Any]) -> float:
    if p.shape[1] == 2:
        return float(reference.roc_auc_score(y, p[:, 1]))
    return float(reference.roc_auc_score(y, p, multi_class="ovr", average="macro"))


@pytest.mark.parametrize("clients", [1, 7])
@pytest.mark.parametrize("name", SETS)
def test_added_tallies_are_scikit_learns_metrics(name: str, clients: int) -> None:
    """Over all rows: balanced accuracy exactly, ROC AUC within .002, whoever holds which rows."""
    p, y = _rows(name)
    deal = np.random.default_rng(1).integers(0, clients, len(y))
    parts = [Tally.of(p[deal == k], y[deal == k]) for k in range(clients)]
    classes, scores = sum(t.classes for t in parts), sum(t.scores for t in parts)
    found = Tally(np.asarray(classes), np.asarray(scores)).metrics()
    assert found["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(y, p.argmax(axis=1)), abs=1e-12
    )
    assert found["roc_auc"] == pytest.approx(_auc(p, y), abs=0.002)
    assert found["majority_share"] == np.bincount(y).max() / len(y)
    assert found["predicted_classes"] == len(np.unique(p.argmax(axis=1)))
    assert "roc_auc_left_out" not in found
    exact = {"roc_auc": pytest.approx(_auc(p, y), abs=1e-12)}
    assert score_all("classification", p, y) == score("classification", p, y) | found | exact


def test_a_model_of_one_class_shows() -> None:
    """97 % accuracy, and yet: the majority's share is as high, one class is said, and a half."""
    p, y = _rows("3 % positives")
    p = np.column_stack([p[:, 0] + 9, p[:, 1]]) / 10
    found = score_all("classification", p, y)
    assert found["accuracy"] == found["majority_share"] == pytest.approx(0.97)
    assert found["predicted_classes"] == 1
    assert found["balanced_accuracy"] == 0.5
    assert found["roc_auc"] > 0.8


def test_two_classes_need_one_histogram() -> None:
    """The first class's AUC is the second's: the logits of p and 1 - p are mirror images."""
    p, y = _rows("3 % positives")
    first, second = Tally.of(p, y), Tally.of(p[:, ::-1], 1 - y)
    assert first.scores.shape == (1, 2, BINS)
    np.testing.assert_array_equal(first.scores[0], second.scores[0, ::-1, ::-1])
    assert first.metrics()["roc_auc"] == second.metrics()["roc_auc"]


def test_ties_in_a_bin_count_half() -> None:
    """One positive ties with one of three negatives and beats one: (1/2 + 1 + 0) / 3."""
    p = np.array([0.5, 0.5, 0.1, 0.9])
    found = Tally.of(np.column_stack([1 - p, p]), np.array([1, 0, 0, 0])).metrics()
    assert found["roc_auc"] == 0.5


@pytest.mark.parametrize(
    ("labels", "left_out", "auc"),
    [([0, 1, 1], 1, 1.0), ([1, 1, 1], 3, None), ([0, 1, 2], None, 1.0)],
)
def test_classes_that_cannot_be_ranked_are_left_out(
    labels: list[int], left_out: int | None, auc: float | None
) -> None:
    """A class without rows, or alone, has no AUC; where none remains there is no key."""
    found = Tally.of(np.eye(3)[labels] * 0.7 + 0.1, np.array(labels)).metrics()
    assert found.get("roc_auc") == auc
    assert found.get("roc_auc_left_out") == left_out
    assert found["balanced_accuracy"] == 1.0


def test_of_two_classes_either_both_are_ranked_or_none() -> None:
    """Rows of one class only leave both out."""
    found = Tally.of(np.array([[0.2, 0.8]]), np.array([1])).metrics()
    assert "roc_auc" not in found
    assert found["roc_auc_left_out"] == 2


def test_outputs_that_are_no_numbers_have_no_ranks() -> None:
    """Training that diverged keeps its NaN in log_loss and gets no ROC AUC."""
    found = score_all("classification", np.full((6, 3), np.nan), np.array([0, 1, 2] * 2))
    assert found.keys() == {"log_loss", "accuracy", "brier"}


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    targets=st.integers(1, 3),
    offset=st.sampled_from([0.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_added_squares_are_r2_of_all_rows(
    sizes: list[int], targets: int, offset: float, seed: int
) -> None:
    """About a centre near the mean r2 is scikit-learn's, also of targets around a million."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(sum(sizes) + 1, targets)) + offset
    outputs = y + rng.normal(size=y.shape)
    ends = np.cumsum([1, *sizes])
    parts = [slice(0, 1), *(slice(a, b) for a, b in pairwise(ends))]
    center = np.full(targets, offset + 0.5)
    total = sum(squares(outputs[part], y[part], center) for part in parts)
    expected = reference.r2_score(y, outputs)
    assert merged_r2(len(y), np.asarray(total)) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("output", "r2"), [(0.1, 1.0), (0.2, 0.0)])
def test_equal_targets_have_an_r2_of_one_or_zero(output: float, r2: float) -> None:
    """As for one client: equal values about a centre that is rounded are exact or not."""
    y = np.full((7, 1), 0.1)
    for center in (0.0, 0.1, 0.3):
        assert merged_r2(7, squares(np.full((7, 1), output), y, center)) == r2


# ---------------------------------------------------------------------------- on the wire
CLASSES = Measures("classification", 3, 2)
NUMBERS = Measures("regression", 2, 4)


def _told(measures: Measures, rows: int, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    if measures.task == "regression":
        outputs, truth = rng.normal(size=(2, rows, measures.num_outputs))
    else:
        outputs = rng.dirichlet(np.ones(measures.num_outputs), rows)
        truth = rng.integers(0, measures.num_outputs, rows)
    metrics, told = measures.score("evaluate", outputs, truth, (0.5,) * measures.num_outputs)
    return metrics | {protocol.NUM_EXAMPLES: rows}, told


@pytest.mark.parametrize("num_classes", [2, 3, 11])
@pytest.mark.parametrize("rows", [5, 14, 2048, 2049, 5000])
def test_a_tally_comes_back_whole(num_classes: int, rows: int) -> None:
    """Listed or counted, the histograms that arrive are those that were made."""
    measures = Measures("classification", num_classes, 2)
    metrics, told = _told(measures, rows)
    assert measures.fault("evaluate", metrics, told) is None
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(num_classes), rows)
    y = rng.integers(0, num_classes, rows)
    reply = reply_of(1, content_of(None, metrics))
    reply.content[protocol.MEASURES] = ConfigRecord(dict(told))
    assert measures.merge("evaluate", [reply]) == Tally.of(p, y).metrics()


@pytest.mark.parametrize("rows", [5, 14, 3000])
def test_the_size_follows_from_the_number_of_rows(rows: int) -> None:
    """No client sends more for its rows' sake: equal bytes stay equal between strategies."""
    for measures in (CLASSES, NUMBERS, Measures("classification", 2, 2)):
        sizes = {
            tuple(len(value) for value in _told(measures, rows, seed)[1].values())
            for seed in range(5)
        }
        assert len(sizes) == 1
    assert _told(CLASSES, 14)[1]["score-bins"].__len__() == 14 * 3  # a byte a row and class


@pytest.mark.parametrize("rows", range(1, 7))
def test_too_few_rows_say_nothing(rows: int) -> None:
    """A tally is of at least 5 rows, sums of targets of at least ``min_rows``."""
    assert bool(_told(CLASSES, rows)[1]) == (rows >= FEWEST_ROWS == 5)
    assert bool(_told(NUMBERS, rows)[1]) == (rows >= 4)
    assert CLASSES.score("train", np.eye(3)[[0] * 9], np.zeros(9, np.int64))[1] == {}


def _words(values: list[int]) -> bytes:
    return np.array(values, "<u4").tobytes()


# Of 6 rows 2 belong to each class; 4 are predicted right, and 3, 2, 1 as each class.
GOOD: Mapping[str, Any] = {
    "class-counts": _words([2, 2, 2, 2, 1, 1, 3, 2, 1]),
    "score-bins": bytes(range(18)),
}
SCORES: Mapping[str, Any] = {
    "log_loss": 0.5,
    "accuracy": 4 / 6,
    "brier": 0.3,
    "num-examples": 6,
}
# Two targets over 6 rows: 12 squared errors that add up to mse · 12 = 12.
SUMS = [1.0, -2.0, 3.0, 4.0, 7.0, 5.0]
ERRORS: Mapping[str, Any] = {"mse": 1.0, "mae": 0.9, "r2": -9.0, "num-examples": 6}

FAULTS: list[tuple[Measures, dict[str, Any], dict[str, Any], str]] = [
    # metrics
    (CLASSES, {"accuracy": 1e9}, {}, "metric accuracy=1000000000.0: expected 0 to 1"),
    (CLASSES, {"accuracy": -0.1}, {}, "metric accuracy=-0.1: expected 0 to 1"),
    (CLASSES, {"log_loss": -1.0}, {}, "metric log_loss=-1.0: expected -1e-05 to 36"),
    (CLASSES, {"log_loss": 50.0}, {}, "metric log_loss=50.0: expected -1e-05 to 36"),
    (CLASSES, {"brier": 2.1}, {}, "metric brier=2.1: expected 0 to 2"),
    (CLASSES, {"train_loss": -1.0}, {}, "metric train_loss=-1.0: expected -1e-05 to 36"),
    (NUMBERS, {"r2": 1.5}, {}, "metric r2=1.5: expected -inf to 1"),
    (NUMBERS, {"mse": -1.0}, {}, "metric mse=-1.0: expected 0 to inf"),
    (NUMBERS, {"mae": -1.0}, {}, "metric mae=-1.0: expected 0 to inf"),
    # what there is
    (CLASSES, {}, {"class-counts": None}, "measures ['score-bins']: expected class-counts, score-"),
    (CLASSES, {}, {"more": 1}, "measures ['class-counts', 'more', 'score-bins']: expected class"),
    (CLASSES, {"num-examples": 4}, {}, "expected none with 4 rows"),
    (NUMBERS, {"num-examples": 3}, {}, "expected none with 3 rows"),
    (NUMBERS, {}, {"r2-sums": None}, "measures []: expected r2-sums with 6 rows"),
    # forms
    (CLASSES, {}, {"class-counts": [2] * 9}, "class-counts: list, expected 36 bytes"),
    (CLASSES, {}, {"class-counts": b"1" * 35}, "class-counts: 35, expected 36 bytes"),
    (CLASSES, {}, {"score-bins": bytes(17)}, "score-bins: 17, expected 18 bytes"),
    (CLASSES, {"num-examples": 6.5}, {}, "score-bins: 18, expected 19.5 bytes"),
    (CLASSES, {"num-examples": 2**53}, {}, "score-bins: 18, expected 6144 bytes"),
    (NUMBERS, {}, {"r2-sums": SUMS[:5]}, "expected 6 finite numbers"),
    (NUMBERS, {}, {"r2-sums": "123456"}, "expected 6 finite numbers"),
    (NUMBERS, {}, {"r2-sums": [*SUMS[:5], float("nan")]}, "expected 6 finite numbers"),
    (NUMBERS, {}, {"r2-sums": [*SUMS[:5], 10**400]}, "expected 6 finite numbers"),
    # what they say
    *(
        (CLASSES, {}, {"class-counts": _words(counts)}, "class-counts: expected 6 rows")
        for counts in (
            [2, 2, 3, 2, 1, 1, 3, 2, 1],  # 7 rows
            [2, 2, 2, 2, 1, 1, 3, 2, 2],  # 7 predicted
            [1, 3, 2, 2, 1, 1, 3, 2, 1],  # 2 of 1 right
            [2, 2, 2, 1, 1, 2, 3, 2, 1],  # 2 right, 1 predicted
            [2, 2, 2, 2, 1, 0, 3, 2, 1],  # 3 of 6 right, accuracy 4/6
            [2**32 - 1, 2, 2, 2, 1, 1, 3, 2, 1],
        )
    ),
    (NUMBERS, {}, {"r2-sums": [9.0, *SUMS[1:]]}, "expected sums of numbers and of their squares"),
    (NUMBERS, {}, {"r2-sums": [*SUMS[:2], -1e9, *SUMS[3:]]}, "expected sums of numbers"),
    (NUMBERS, {}, {"r2-sums": [*SUMS[:4], 13.0, -1.0]}, "expected sums of numbers"),
    (NUMBERS, {}, {"r2-sums": [*SUMS[:4], 7.0, 6.0]}, "squared errors of 13, and mse says 12"),
]


@pytest.mark.parametrize(("measures", "metrics", "told", "problem"), FAULTS)
def test_what_cannot_be_costs_the_reply(
    measures: Measures, metrics: dict[str, Any], told: dict[str, Any], problem: str
) -> None:
    """Metrics out of range, and measures that contradict them, are a fault of that reply, named."""
    classes = measures.task == "classification"
    good = GOOD if classes else {"r2-sums": SUMS}
    right = SCORES if classes else ERRORS
    assert measures.fault("evaluate", right, good) is None
    wrong = {name: value for name, value in {**good, **told}.items() if value is not None}
    found = measures.fault("evaluate", {**right, **metrics}, wrong)
    assert found is not None
    assert problem in found


@pytest.mark.parametrize("sums", [[1, 0, 2], [2, 0, 1]])
def test_counted_scores_are_those_of_the_classes(sums: list[int]) -> None:
    """Beyond 2048 rows histograms are counts, and count the rows of each class and the others."""
    measures, rows = Measures("classification", 2, 2), 3000
    metrics, told = _told(measures, rows)
    scores = np.frombuffer(told["score-bins"], "<u4").copy()
    scores[np.flatnonzero(scores)[0]] += 1
    found = measures.fault("evaluate", metrics, told | {"score-bins": scores.tobytes()})
    assert found == "score-bins: expected the rows of each class and all others"


def test_a_reply_with_an_impossible_metric_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Its partition is named, the others count."""
    roster = roster_of(3)
    spec = ReplySpec(None, None, check_measures=lambda *said: CLASSES.fault("train", *said))
    replies = [
        reply_of(node.node_id, content_of(None, dict(SCORES) | {"accuracy": accuracy}))
        for node, accuracy in zip(roster, (0.5, 1e9, 1.0), strict=True)
    ]
    usable, dropped = accept(replies, asked_of(roster), spec, "round 1, train")
    assert [m.metadata.src_node_id for m in usable] == [
        roster.nodes[0].node_id,
        roster.nodes[2].node_id,
    ]
    assert dropped == {1: "metric accuracy=1000000000.0: expected 0 to 1"}
    assert "partition 1" in caplog.text


# ---------------------------------------------------------------------------- a federation's
class Kept:
    """A tracker that keeps every round."""

    started = True

    def __init__(self) -> None:
        self.rounds: list[RoundRecord] = []

    def start(self, run: RunStart) -> None:
        """Keep nothing."""

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Keep nothing."""

    def record(self, record: RoundRecord) -> None:
        """Keep the round."""
        self.rounds.append(record)

    def finish(self, end: RunEnd) -> None:
        """Keep nothing."""


class Ran:
    """A run's rounds with all that scores its arrays again."""

    def __init__(self, config: Config, shuffle: int | None = None) -> None:
        kept, self.config = Kept(), config
        nodes = 1 if config.strategy.name == "pooled" else config.num_clients
        self.sent: list[Message] = []
        with InProcessGrid(client_app, nodes, shuffle_replies=shuffle) as grid, one_thread():
            self.roster, self.encoding = shake_hands(grid, grid.get_node_ids(), config, 60.0)
            stacked = config.strategy.name == "fedstacking"
            self.predictor = Predictor(self.encoding, config.model, stacked=stacked)
            federated = federated_of(config, self.roster, self.predictor)
            record = protocol.run_record(to_json(config), self.encoding, self.roster.target_mean)
            TrackedStrategy(federated, kept, partitions=self.roster.partitions).start(
                grid=grid,
                initial_arrays=hold(start_arrays(config, self.roster, self.predictor)),
                num_rounds=config.num_server_rounds,
                train_config=record,
                evaluate_config=record.copy(),
            )
        self.rounds = kept.rounds

    def outputs(self, what: Exchange, arrays: Any, fewest: int = 1) -> tuple[Any, Any]:
        """Return predictions and truth of all rows of the clients that have enough of them."""
        outputs, truths = [], []
        for node in self.roster:
            rows = encode(partition_of(self.config, node.partition), self.encoding, "float64")
            x, truth = (rows.x, rows.truth) if what == "train" else (rows.x_eval, rows.truth_eval)
            if len(x) >= fewest:
                own = arrays(node.partition) if callable(arrays) else arrays
                outputs.append(self.predictor.outputs(own, x))
                truths.append(truth)
        return np.concatenate(outputs), np.concatenate(truths)


def _config(**options: Any) -> Config:
    base = {"num_clients": 10, "num_server_rounds": 3, "dataset": {"name": "diabetes"}}
    return from_dict(base | options)


@lru_cache
def _ran(config: Config) -> Ran:
    return Ran(config)


STRATEGIES: list[dict[str, Any]] = [
    {"name": "fedavg"},
    {"name": "fedprox", "proximal_mu": 0.1},
    {"name": "fedadam", "eta": 0.1},
    {"name": "fedmedian"},
    {"name": "fedtrimmedavg"},
    {"name": "krum", "num_malicious_nodes": 1},
    {"name": "qfedavg"},
    {"name": "fedstacking", "base_models": ["ridge"]},
    {"name": "n_average", "base_models": ["ridge"]},
    {"name": "pooled"},
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s["name"])
def test_r2_is_that_of_all_validation_rows(strategy: dict[str, Any]) -> None:
    """``eval/r2`` is scikit-learn's over the rows of all clients, under every strategy."""
    ran = _ran(_config(strategy=strategy, min_rows=3))
    last = ran.rounds[-1]
    if strategy["name"] == "n_average":
        ran.predictor = replace(ran.predictor, stacked=True)
    outputs, truth = ran.outputs("evaluate", last.arrays, 3)
    assert last.evaluate["r2"] == pytest.approx(reference.r2_score(truth, outputs), abs=1e-9)
    clients = [c.metrics["r2"] for c in last.evaluate_clients]
    if len(clients) > 1:
        assert np.mean(clients) < last.evaluate["r2"] - 0.05  # a mean is another number
    assert list(last.evaluate) == [*(n for n in last.evaluate if n != "r2"), "r2"]


def test_train_r2_is_that_of_all_training_rows() -> None:
    """Each client's own model on its own rows, all rows together."""
    ran = _ran(_config(strategy={"name": "fedavg"}, min_rows=3))
    last = ran.rounds[-1]
    own = {c.partition: c.arrays for c in last.train_clients}
    outputs, truth = ran.outputs("train", lambda k: own[k])
    assert last.train["r2"] == pytest.approx(reference.r2_score(truth, outputs), abs=1e-9)


@pytest.mark.parametrize("exchange", ["train", "evaluate"])
def test_fedstackings_replies_have_their_sums(exchange: str) -> None:
    """In every phase r2 and mse say the same of the same rows: r2 = 1 - mse / variance."""
    ran = _ran(_config(strategy={"name": "fedstacking", "base_models": ["ridge"]}, min_rows=3))
    parts = [partition_of(ran.config, node.partition) for node in ran.roster]
    tables = [p.train if exchange == "train" else p.validation for p in parts]
    variance = np.concatenate([t.target for t in tables]).var()
    for record in ran.rounds[1:]:
        told = record.train if exchange == "train" else record.evaluate
        assert told["r2"] == pytest.approx(1 - told["mse"] / variance, abs=1e-9)


@pytest.mark.parametrize("standardize", [True, False])
def test_sums_are_about_the_federations_mean(standardize: bool) -> None:
    """Also without standardizing, where the encoding's mean is 0."""
    name = {"name": "diabetes", "standardize": standardize}
    ran = _ran(_config(dataset=name, num_clients=3, num_server_rounds=1))
    (mean,) = ran.roster.target_mean
    assert 100 < mean < 200
    with InProcessGrid(client_app, 3) as grid:
        record = protocol.run_record(to_json(ran.config), ran.encoding, ran.roster.target_mean)
        message = Message(
            content_of(ran.rounds[-1].arrays, {"num-examples": 1}),
            grid.get_node_ids()[0],
            "evaluate",
        )
        message.content["config"] = record
        (reply,) = grid.send_and_receive([message])
    away, _, _ = protocol.measures(reply)["r2-sums"]
    rows = partition_of(ran.config, 0).validation.target
    assert away == pytest.approx(float((rows - mean).sum()), rel=1e-9)


def test_classes_are_scored_over_all_rows_of_larger_clients() -> None:
    """``eval/`` has both metrics over the clients with 5 rows, ``train/`` has neither."""
    ran = _ran(
        _config(dataset={"name": "wine", "val_fraction": 0.3}, partitioner={"name": "quantity"})
    )
    few = [n for n in ran.roster if n.num_validation < FEWEST_ROWS]
    assert few
    assert len(few) < 10
    last = ran.rounds[-1]
    p, y = ran.outputs("evaluate", last.arrays, FEWEST_ROWS)
    guess = p.argmax(axis=1)
    expected = reference.balanced_accuracy_score(y, guess)
    assert last.evaluate["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert last.evaluate["roc_auc"] == pytest.approx(_auc(p, y), abs=0.01)
    assert last.train.keys() == set(METRICS["classification"])
    assert all(c.metrics.keys() == set(METRICS["classification"]) for c in last.evaluate_clients)


@pytest.mark.parametrize("dataset", ["diabetes", "wine"])
def test_where_nobody_has_rows_enough_there_is_no_ratio(
    dataset: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One to two validation rows each: no key at all, and one warning a run with the numbers."""
    clients = {"diabetes": 30, "wine": 10}[dataset]  # 11 to 15 rows each: 1 or 2 to validate on
    config = _config(
        dataset={"name": dataset}, num_clients=clients, min_rows=3, num_server_rounds=2
    )
    with caplog.at_level(logging.WARNING, "fl_app"):
        ran = Ran(config)
    rows = [n.num_validation for n in ran.roster if n.num_validation]
    assert set(rows) <= {1, 2}
    for record in ran.rounds[1:]:
        assert not record.evaluate.keys() & {"r2", "balanced_accuracy", "roc_auc"}
    names = "eval/r2" if dataset == "diabetes" else "eval/balanced_accuracy and eval/roc_auc"
    few = 3 if dataset == "diabetes" else 5
    (told,) = [r.getMessage() for r in caplog.records if "eval/" in r.getMessage()]
    assert told == (
        f"{names}: without {len(rows)} of {clients} clients, which have fewer than {few} rows "
        f"({sum(rows)} of {sum(rows)} rows)"
    )


@pytest.mark.parametrize("dataset", ["diabetes", "wine"])
def test_the_order_of_arrival_changes_no_ratio(dataset: str) -> None:
    """Sums are added in order of partition, so the bits are the same."""
    config = _config(dataset={"name": dataset, "val_fraction": 0.3}, num_server_rounds=2)
    first = _ran(config)
    for order in (1, 2):
        other = Ran(config, shuffle=order)
        for one, two in zip(first.rounds, other.rounds, strict=True):
            assert (one.train, one.evaluate) == (two.train, two.evaluate)


def test_a_federation_without_measures_is_left_alone() -> None:
    """Whoever uses Federated without them gets the strategy's own means."""
    federated = Federated(
        strategy_of(_config(), Roster(()), _nobody()), Roster(()), Participation(0)
    )
    assert federated._with_ratios("evaluate", [], None) is None


def _nobody() -> Predictor:
    encoding = Encoding("regression", ("a",), ("a",), (0.0,), (1.0,), targets=("y",))
    return Predictor(encoding, _config().model)


# ---------------------------------------------------------------------------- over many seeds
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_thousand_seeds_tell_no_more_sums_than_one(task: Any, tmp_path: Path) -> None:
    """What replies to the same model say of a node's own file is the same for every seed.

    Otherwise sums of targets over rows that a seed draws, 60 of them, solve for all 40 targets.
    """
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(size=40),
        np.arange(40) % 2 if task == "classification" else rng.normal(size=40),
    )
    path = tmp_path / "own.csv"
    path.write_text(
        "x,y\n" + "".join(f"{a!r},{b!r}\n" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    )

    drawn = [generator(s, "validation-split", 0, 3).permutation(40)[:10] for s in range(60)]
    chosen = np.array([np.isin(np.arange(40), rows) for rows in drawn], dtype=float)
    sums = np.array([squares(np.zeros((10, 1)), y[rows, None], 0.0)[0] for rows in drawn])
    np.testing.assert_allclose(np.linalg.lstsq(chosen, sums, rcond=None)[0][:, 0], y, atol=1e-10)

    dataset = {"name": "tabular", "path": "own.csv", "target": "y", "task": task}
    config = from_dict({"dataset": dataset | {"val_fraction": 0.25}})
    encoding = Encoding(
        task,
        ("x",),
        ("x",),
        (0.0,),
        (1.0,),
        labels=(0, 1) if task == "classification" else (),
        targets=("y",),
        target_mean=(0.0,) if task == "regression" else (),
        target_scale=(1.0,) if task == "regression" else (),
    )
    told, measures = set(), Measures.of(config, encoding)
    for seed in range(1000):
        rows = encode(own_partition(replace(config, seed=seed), 3, str(path)), encoding, "float64")
        for what, at, truth in (
            ("train", rows.x, rows.truth),
            ("evaluate", rows.x_eval, rows.truth_eval),
        ):
            share = 1 / (1 + np.exp(-at))
            outputs = at if task == "regression" else np.hstack([1 - share, share])
            told.add((what, repr(measures.score(what, outputs, truth, (0.0,)))))
    assert sorted(what for what, _ in told) == ["evaluate", "train"]
