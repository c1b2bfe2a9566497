"""A metric's direction: the one table."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest
import sklearn.metrics
from flwr.serverapp.strategy import FedAvg
from sklearn.metrics import get_scorer_names

from fl_app.errors import ConfigError
from fl_app.models.directions import higher_is_better
from fl_app.tracking import TrackedStrategy
from fl_app.tracking.metric_names import directions_of, round_metrics
from fl_app.tracking.recorder import Recorder
from fl_app.tracking.records import ClientRecord, NullTracker, RoundRecord, RunFacts

HIGHER = """
accuracy r2 balanced_accuracy roc_auc top_5_accuracy AUROC auprc sensitivity specificity mIoU
dice dice_coef f1_macro recall@10 precision_at_k MeanIoU F1Score BinaryAUROC MatthewsCorrCoef
NegativePredictiveValue SensitivityAtSpecificity WordInfoPreserved SpearmanCorrCoef BLEUScore
PeakSignalNoiseRatio StructuralSimilarityIndexMeasure PanopticQuality RetrievalMRR InceptionScore
server/accuracy eval_client_accuracy/worst fairness/AUROC_worst true_positive_rate neg_log_loss
"""
LOWER = """
mse mae log_loss brier loss val_loss dice_loss loss_mean hd95 LogLoss cross_entropy error_rate fpr
perplexity CalibrationError HammingDistance WordErrorRate WordInfoLost TranslationEditRate
KLDivergence MinkowskiDistance ContinuousRankedProbabilityScore FrechetInceptionDistance
LearnedPerceptualImagePatchSimilarity RetrievalFallOut DaviesBouldinScore server/mse train/loss
fairness/accuracy_gap cost/bytes_up cost/seconds negative_log_likelihood neg_accuracy
"""
UNKNOWN = """
niceness accuracy_std accuracy_drop learning_rate one_minus_accuracy entropy majority_share
predicted_classes roc_auc_left_out PearsonCorrCoef ConfusionMatrix model/update_norm num_examples
"""


@pytest.mark.parametrize(
    ("names", "higher"), [(HIGHER, True), (LOWER, False), (UNKNOWN, None)], ids=str
)
def test_direction_of_a_metric(names: str, higher: bool | None) -> None:
    """By the name's end: a loss of something is a loss, and what is not known is not guessed."""
    assert {name: higher_is_better(name) for name in names.split()} == dict.fromkeys(
        names.split(), higher
    )


def test_scikit_learns_names() -> None:
    """Every scorer is better when larger; functions are as their names' ends say, as documented."""
    assert {n for n in get_scorer_names() if higher_is_better(n) is not True} == set()
    ends = {"_score": True, "_loss": False, "_error": False, "_distance": False, "_deviance": False}
    for name in dir(sklearn.metrics):
        for end, higher in ends.items():
            if name.endswith(end):
                assert higher_is_better(name) is (higher and name != "davies_bouldin_score"), name


@pytest.mark.parametrize(
    "key", ["n.t", "eval/n.t", "eval_client_n.t/007", "fairness/n.t_worst", "fairness/n.t_p10"]
)
def test_given_directions_come_first(key: str) -> None:
    """Under the metric's name and under each of its keys in a run; another name is another's."""
    assert higher_is_better(key, {"n.t": True}) is True
    assert higher_is_better(key, {"n": True, "nxt": True, "t": True}) is None
    assert higher_is_better("accuracy", {"accuracy": False}) is False
    assert higher_is_better("fairness/n.t_gap", {"n.t": True}) is False


# ---------------------------------------------------------------------------- the record


def evaluated(known: Mapping[str, bool], server_round: int = 1, **more: float) -> RoundRecord:
    """Make a round of ten clients whose metrics are 0 to 9."""
    metrics = ("AUROC", "dice_loss", "niceness", "majority_share")
    clients = [
        ClientRecord(k, 5, {name: float(k) for name in metrics} | {n: float(k) for n in more})
        for k in range(10)
    ]
    return RoundRecord(
        server_round, {}, evaluate_clients=clients, run=RunFacts(higher_is_better=known)
    )


@pytest.mark.parametrize(("known", "worst"), [({}, None), ({"niceness": True}, 0.0)])
def test_worst_client_is_the_worst(known: Mapping[str, bool], worst: float | None) -> None:
    """Low for AUROC, high for a loss; where nobody knows there is none, and the gap is as ever."""
    shown = round_metrics(evaluated(known))
    assert (shown["fairness/AUROC_worst"], shown["fairness/dice_loss_worst"]) == (0.0, 9.0)
    assert (shown["fairness/AUROC_p10"], shown["fairness/dice_loss_p10"]) == (
        pytest.approx(0.9),
        pytest.approx(8.1),
    )
    assert shown.get("fairness/niceness_worst") == worst
    assert ("fairness/niceness_p10" in shown) is (worst is not None)
    assert shown["fairness/niceness_gap"] == 9.0
    many = round_metrics(evaluated(known), many_clients=True)
    assert many.get("eval_client_niceness/worst") == worst
    assert many["eval_client_niceness/p50"] == many["eval_client_AUROC/p50"] == 4.5


class Notes:
    """A journal that keeps its notes."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    def add_round(self, line: Any, **arrays: Any) -> None:
        """Keep nothing."""

    def add_note(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        assert not self.tags
        self.tags |= tags


def test_unknown_direction_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each metric once, in whatever round it comes; what is no score is nothing to ask about."""
    recorder = Recorder(Notes())  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "fl_app"):
        for server_round in (1, 2):
            recorder.record(evaluated({}, server_round))
        recorder.record(evaluated({}, 3, oddness=1.0))
    texts = [record.getMessage() for record in caplog.records]
    assert [text.partition(" better?")[0] for text in texts] == [
        "tracking: is more or less of niceness",
        "tracking: is more or less of oddness",
    ]


def test_given_directions_are_in_the_record(caplog: pytest.LogCaptureFixture) -> None:
    """As a tag, once, from which a report and the live page read them."""
    notes = Notes()
    recorder = Recorder(notes)  # type: ignore[arg-type]
    for server_round in (1, 2):
        recorder.record(evaluated({"niceness": False}, server_round))
    assert directions_of(notes.tags) == {"niceness": False}
    assert not caplog.records
    assert directions_of({"higher_is_better": "no JSON"}) == {}
    assert directions_of({"higher_is_better": json.dumps(["x"])}) == {}


@pytest.mark.parametrize("given", [{"niceness": "yes"}, ["niceness"]])
def test_refuses_what_is_no_direction(given: Any) -> None:
    """Before the run, with the value."""
    with pytest.raises(ConfigError, match=r"higher_is_better=.*True or False"):
        TrackedStrategy(FedAvg(), NullTracker(), higher_is_better=given)
