"""The sentence that a sweep of methods ends with: what it claims, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fl_app.errors import InputError
from fl_app.report import Comparison, RunSummary, compare, sentences, verdict
from tests.report.test_report import ACCURACY, NOTHING_TO_TUNE, run

ROUNDS = 20
CONVERGED = {r: max(0.1, 1 - r / 5) for r in range(1, ROUNDS + 1)}
"""An eval loss that has long been still."""
BEST = (0.80, 0.82, 0.81, 0.79, 0.83)
GOOD = (0.90, 0.93, 0.90, 0.88, 0.94)


def ending(strategy: str, ends: Sequence[float], cost: float, metric: str) -> list[RunSummary]:
    """Make finished runs with seeds 0, 1, … that end with given values."""
    runs = []
    for seed, end in enumerate(ends):
        curve = [0.5] * ROUNDS + [end]
        made = run(strategy, seed, curve, metric, (cost,), NOTHING_TO_TUNE)
        loss = "eval/mse" if metric == "server/mse" else "eval/log_loss"
        metrics = made.metrics | {loss: 0.1}
        runs.append(replace(made, curves=made.curves | {loss: CONVERGED}, metrics=metrics))
    return runs


def against_fedavg(
    ends: Sequence[float], others: Sequence[float] = BEST, metric: str = "server/accuracy"
) -> Comparison:
    """Compare a stack that sends half as much again with FedAvg."""
    runs = [*ending("fedavg", others, 10, metric), *ending("fedstacking", ends, 15, metric)]
    return compare(runs, metric=metric)


@pytest.mark.parametrize(
    ("ends", "others", "metric", "word"),
    [
        (GOOD, BEST, "server/accuracy", "better than"),
        (BEST, GOOD, "server/accuracy", "worse than"),
        (BEST, GOOD, "server/mse", "better than"),
        (GOOD, BEST, "server/mse", "worse than"),
    ],
)
def test_a_claim(ends: Sequence[float], others: Sequence[float], metric: str, word: str) -> None:
    """Better or worse by the metric's direction, the difference, its interval, the price."""
    text = verdict(against_fedavg(ends, others, metric), "fedstacking")
    assert text.startswith(f"fedstacking is {word} fedavg: {'+' if ends is GOOD else '-'}0.1000 [")
    lower = ", lower is better" if metric == "server/mse" else ""
    assert text.endswith(f"] in {metric}{lower}, at 1.5 × its bytes")


def test_an_interval_with_0_in_it_decides_nothing() -> None:
    """Whatever the mean."""
    text = verdict(against_fedavg((0.9, 0.7, 0.95, 0.8, 0.9)), "fedstacking")
    assert text.startswith("fedstacking is undecided against fedavg: +0.0400 [-")
    assert text.endswith("× its bytes (the interval contains 0)")


@pytest.mark.parametrize(("count", "lack"), [(4, "4 of the 5 pairs"), (2, "2 of the 3 pairs")])
def test_too_few_seeds_decide_nothing(count: int, lack: str) -> None:
    """What a strict claim lacks is said in the place of a claim."""
    text = verdict(against_fedavg(GOOD[:count], BEST[:count]), "fedstacking")
    assert "is undecided against fedavg: +" in text
    assert lack in text


def test_an_untuned_rate_decides_nothing() -> None:
    """Where a rate has an effect and was not chosen, nothing is claimed."""
    runs = [
        *ending("fedavg", BEST, 10, "server/accuracy"),
        *ending("fedadam", GOOD, 10, "server/accuracy"),
    ]
    tags = {k: v for k, v in NOTHING_TO_TUNE.items() if k != "config.without_effect"}
    text = verdict(compare([replace(one, tags=tags) for one in runs]), "fedadam")
    assert "fedadam is undecided against fedavg: +0.1000 [+" in text
    assert "is untuned (--tune model.learning_rate)" in text


def test_groups_are_named_before_what_only_some_have() -> None:
    """Where models differ between cells they are what is named, and not a param of one of them."""
    models = {"mlp": {"model.hidden_units": "32"}, "softmax": {}}
    runs = [
        replace(r, run_id=f"{r.run_id} {m}", params={**r.params, "model.name": m, **own})
        for name, ends in (("fedavg", BEST), ("fedstacking", GOOD))
        for r in ending(name, ends, 10, "server/accuracy")
        for m, own in models.items()
    ]
    comparison = compare(runs)
    with pytest.raises(InputError, match=r"^model=mlp and softmax: .*: choose runs with --where m"):
        verdict(comparison, "fedstacking")
    assert any(n.startswith("cells differ in model, model.hidden_units") for n in comparison.notes)


def test_runs_worse_than_a_constant_decide_nothing() -> None:
    """As ``--strict`` refuses them."""
    runs = [
        *ending("fedavg", BEST, 10, "server/accuracy"),
        *ending("fedadam", GOOD, 10, "server/accuracy"),
    ]
    runs[0] = replace(runs[0], tags={**runs[0].tags, "worse_than_constant": "true"})
    text = verdict(compare(runs), "fedadam")
    assert "is undecided against" in text
    assert "worse_than_constant" in text


def test_a_stack_that_ends_later_is_compared_at_its_end() -> None:
    """It has no place at equal rounds; the sentence is of the finished methods, and their bytes."""
    short = [
        replace(one, curves={k: {r: v for r, v in c.items() if r <= 15} for k, c in curves.items()})
        for one in ending("fedavg", BEST, 10, "server/accuracy")
        for curves in [one.curves]
    ]
    comparison = compare([*short, *ending("fedstacking", GOOD, 15, "server/accuracy")])
    assert comparison.at_rounds.pairs["fedstacking"] == ()
    assert verdict(comparison, "fedstacking").endswith("at 2 × its bytes")


def test_a_level_may_be_called_anything() -> None:
    """Marks that an expectation is read by are no marks in a label."""
    c = compare([*ending("fedavg", BEST, 10, ACCURACY), *ending("a>b-0.1", GOOD, 15, ACCURACY)])
    assert sentences(c) == [verdict(c, "a>b-0.1")]
    assert sentences(c)[0].startswith("a>b-0.1 is better than fedavg: +0.1000 [")


def test_references_are_no_rivals() -> None:
    """A sentence is said of each level but the baseline, and what federates nothing."""
    names = ("fedavg", "local", "pooled", "fedadam", "krum")
    c = compare([one for name in names for one in ending(name, GOOD, 10, ACCURACY)])
    assert [text.partition(" is ")[0] for text in sentences(c)] == ["fedadam", "krum"]
