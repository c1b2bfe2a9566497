"""What counts of several hyperparameters, what several keys compare, what is never averaged."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from fl_app.cli.jobs import Job
from fl_app.cli.sweep import summarise
from fl_app.errors import InputError
from fl_app.federation.ending import Ending
from fl_app.report import (
    Comparison,
    RunSummary,
    compare,
    comparison_blocks,
    expect,
    read_runs,
    select,
    summary_table,
    to_markdown,
    to_text,
)
from fl_app.report.choosing import diverged
from fl_app.report.writing import as_csv, as_dict
from fl_app.tracking.mlflow.backend import MlflowStore
from tests.kit import fl_kit
from tests.report.test_report import FLAT, SEED_DRAWS_TEST

RATE = "model.learning_rate"
BOTH = "strategy=fedavg,model=mlp"
IDLE = {**SEED_DRAWS_TEST, "config.without_effect": f"model.batch_size {RATE} model.local_epochs"}
"""Tags of a run on which the rate has no effect."""
SEEDS = range(5)
LAST = 12
"""Rounds of a run."""


def run(
    strategy: str = "fedavg",
    seed: int = 0,
    rate: str = "0.1",
    by: float = 0.5,
    end: float = 0.5,
    metric: str = "server/accuracy",
    tags: Mapping[str, str] = SEED_DRAWS_TEST,
    **params: str,
) -> RunSummary:
    """Make a run that has converged: what chooses it, and where the compared metric ends."""
    told = {name.replace("__", "."): value for name, value in params.items()}
    told = {"strategy.name": strategy, "dataset.name": "wine", RATE: rate, **told}
    name = " ".join([strategy, str(seed), rate, *params.values()])
    return RunSummary(
        run_id=name,
        params={**told, "seed": str(seed)},
        tags=tags,
        curves={**FLAT, metric: {1: 0.0, LAST: end}},
        metrics={"eval/accuracy": by, metric: end},
        name=name,
    )


def stack(seed: int, rate: str = "auto", end: float = 0.7, **params: str) -> RunSummary:
    """Make a run of FedStacking, on which the rate has no effect."""
    return run("fedstacking", seed, rate, 0.9, end, tags=IDLE, **params)


def tuned(gain: float = 0.1) -> list[RunSummary]:
    """Make two strategies with three rates over five seeds: the second rate is best everywhere."""
    return [
        run(strategy, seed, rate, by, 0.5 + by + more * (1 + seed / 10))
        for strategy, more in (("fedavg", 0.0), ("fedprox", gain))
        for seed in SEEDS
        for rate, by in (("0.01", 0.1), ("0.04", 0.3), ("0.16", 0.2))
    ]


def chosen(comparison: Comparison, level: str, cell: str = "") -> list[str]:
    """Return the rates that were chosen for a level, by seed."""
    values = comparison.design.tuning.choices[cell, level].chosen
    return [values[seed][0] for seed in sorted(values)]


def tune(runs: Sequence[RunSummary], **options: Any) -> Comparison:
    """Compare with the rate tuned."""
    return compare(runs, **{"tune": [RATE], **options})


# ---------------------------------------------------------------------------- several keys
def two_by_two() -> list[RunSummary]:
    """Make FedAvg with two models and a stack, each with three seeds."""
    return [
        run(strategy, seed, "0.1", end=end + seed / 100, model__name=model)
        for strategy, model, end in (
            ("fedavg", "mlp", 0.5),
            ("fedavg", "softmax", 0.4),
            ("fedstacking", "auto", 0.7),
        )
        for seed in range(3)
    ]


def test_several_keys_are_one_level() -> None:
    """All below the named groups belongs to the level; its label has all values."""
    comparison = compare(two_by_two(), baseline=BOTH)
    assert comparison.levels == ("fedavg mlp", "fedavg softmax", "fedstacking auto")
    means = {r.level: r.difference.mean for r in comparison.at_rounds.overall if r.difference}
    assert means == pytest.approx({"fedavg softmax": -0.1, "fedstacking auto": 0.2})
    assert comparison.design.key.name == "strategy,model"
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert {line["level"] for line in lines} == set(comparison.levels)
    assert as_dict(comparison)["key"] == "strategy,model"
    assert "fedavg softmax" in to_markdown(comparison_blocks(comparison))


@pytest.mark.parametrize(
    "text",
    [
        "fedavg mlp",
        "strategy=fedavg,model=mlp",
        "model=mlp,strategy=fedavg",
        "strategy.name=fedavg,model.name=mlp",
        "model=mlp",
    ],
)
def test_a_level_of_several_keys_is_found(text: str) -> None:
    """By its label, by its keys in any order, by the keys that suffice."""
    comparison = compare(two_by_two(), baseline=BOTH)
    assert comparison.design.level(text, "--expect") == "fedavg mlp"
    outcome = expect(comparison, f"fedstacking auto > {text}+0.05")
    assert outcome.difference.mean == pytest.approx(0.2)


def test_a_level_that_is_not_there_is_refused() -> None:
    """What names several levels, or none, is refused with those that there are."""
    design = compare(two_by_two(), baseline=BOTH).design
    with pytest.raises(InputError, match="one of several with that value: fedavg mlp; fedavg soft"):
        design.level("strategy=fedavg", "--expect")
    with pytest.raises(InputError, match="one that was run: fedavg mlp; fedavg softmax; fedstack"):
        design.level("strategy=fedavg,model=linear", "--expect")
    with pytest.raises(InputError, match="--baseline=strategy: each key once"):
        compare(two_by_two(), baseline="strategy=fedavg,strategy=fedprox")
    with pytest.raises(InputError, match="--baseline=x: a param of the runs"):
        compare(two_by_two(), baseline="strategy=fedavg,x=1")


def test_what_else_differs_is_told() -> None:
    """Levels with equal values are told apart by the rest; lists are typed without quotes."""
    runs = two_by_two()
    for bases in ('["random_forest"]', '["ridge", "logistic"]'):
        runs += [
            run("fedstacking", seed, end=0.8, model__name="auto", strategy__base_models=bases)
            for seed in range(3)
        ]
    comparison = compare(runs, baseline=BOTH)
    assert set(comparison.levels[2:]) == {
        "fedstacking auto base_models=-",
        "fedstacking auto base_models=[random_forest]",
        "fedstacking auto base_models=[ridge,logistic]",
    }
    keys = "strategy=fedstacking,strategy.base_models=[ridge,logistic]"
    found = compare(runs, baseline=f"{keys},model=auto", ignore=["x"])
    assert found.baseline == 'fedstacking ["ridge", "logistic"] auto'
    assert found.notes[0] == (
        "left out: 9 runs without strategy.name or strategy.base_models or model.name"
    )


def test_rounds_may_be_a_key() -> None:
    """A param outside of groups is a key beside a group."""
    runs = [
        run(strategy, seed, end=end + seed / 10, num_server_rounds=rounds)
        for strategy, rounds, end in (("fedavg", "50", 0.5), ("fedstacking", "3", 0.6))
        for seed in range(3)
    ]
    comparison = compare(runs, baseline="strategy=fedavg,num_server_rounds=50")
    assert comparison.levels == ("fedavg 50", "fedstacking 3")


# ---------------------------------------------------------------------------- what is chosen
def test_each_seed_chooses_by_its_own_run() -> None:
    """The best ``eval/accuracy`` of the seed's own runs; of equals the smaller number."""
    scores = {
        0: {"0.01": 0.1, "0.04": 0.3, "0.16": 0.2},
        1: {"0.01": 0.1, "0.04": 0.1, "0.16": 0.9},
        2: {"1e-1": 0.5, "0.02": 0.5, "3": 0.4},
        3: {"0.01": math.nan, "0.04": 0.1, "0.16": math.nan},
        4: {"0.01": math.nan, "0.04": math.nan, "0.16": math.nan},
    }
    runs = [
        run(strategy, seed, rate, by, end=float(rate))
        for strategy in ("fedavg", "fedprox")
        for seed, own in scores.items()
        for rate, by in own.items()
    ]
    comparison = tune(runs)
    assert chosen(comparison, "fedavg") == ["0.04", "0.16", "0.02", "0.04", "0.01"]
    row = comparison.at_rounds.overall[0]
    assert row.mean == pytest.approx((0.04 + 0.16 + 0.02 + 0.04 + 0.01) / 5)
    assert row.num_runs == 5
    assert comparison.notes[0].startswith("no interval for strategy=fedprox: all differences are 0")


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=6, max_size=6), st.randoms())
def test_other_seeds_do_not_choose(scores: list[float], random: Any) -> None:
    """Whatever the runs of seed 1 score, and in whatever order runs come, seed 0 has its choice."""
    rates = ("0.01", "0.04", "0.16")
    runs = [
        run(strategy, seed, rate, scores[3 * seed + i])
        for strategy in ("fedavg", "fedprox")
        for seed in (0, 1)
        for i, rate in enumerate(rates)
    ]
    random.shuffle(runs)
    best = [
        rates[scores[first : first + 3].index(max(scores[first : first + 3]))] for first in (0, 3)
    ]
    assert chosen(tune(runs), "fedprox") == best


def test_a_loss_chooses_the_smallest() -> None:
    """The metric's direction decides; without accuracies ``eval/mse`` chooses by default."""
    runs = []
    for one in tuned():
        values = {"eval/mse": one.metrics["eval/accuracy"], "server/mse": 1.0, "eval/r2": 0.5}
        curves = {"server/mse": {LAST: 1.0}}
        runs.append(replace(one, metrics=values, curves=curves))
    comparison = tune(runs, metric="server/mse")
    assert comparison.design.tuning.by == "eval/mse"
    assert chosen(comparison, "fedavg") == ["0.01"] * 5
    with pytest.raises(InputError, match=r"--by=eval/x: .* it has eval/mse, eval/r2, server/mse$"):
        tune(runs, metric="server/mse", by="eval/x")


def test_several_params_are_tuned_together() -> None:
    """Candidates are the combinations; each param has its own edge."""
    runs = [
        run(strategy, seed, rate, by + (l2 == "0.1"), model__l2=l2)
        for strategy in ("fedavg", "fedprox")
        for seed in range(3)
        for rate, by in (("0.01", 0.1), ("0.04", 0.3), ("0.16", 0.2))
        for l2 in ("0.0", "0.1")
    ]
    comparison = compare(runs, tune=["learning_rate", "model.l2"])
    choice = comparison.design.tuning.choices["", "fedavg"]
    assert (choice.num_candidates, choice.chosen["0"]) == (6, ("0.04", "0.1"))
    assert choice.at_the_edge() == {"model.l2=0.1": ["0", "1", "2"]}
    assert "fedavg 6 candidates (0.01/0.0, 0.01/0.1, 0.04/0.0" in to_text(
        comparison_blocks(comparison)
    )


def test_candidates_on_a_diagonal_are_no_grid() -> None:
    """A param is tuned beside the chosen values of the others, not by what else was changed."""
    runs = [
        run(name, seed, rate, by, 0.5 + by + more * (1 + seed / 10), model__local_epochs=epochs)
        for name, more in (("fedavg", 0.0), ("fedprox", 0.1))
        for seed in SEEDS
        for rate, by, epochs in (("0.01", 0.1, "1"), ("0.04", 0.3, "2"), ("0.16", 0.2, "4"))
    ]
    keys = [RATE, "model.local_epochs"]
    told = [
        f"{name} is untuned, with one candidate of {key} beside its other chosen values"
        for name in ("fedprox", "fedavg")
        for key in keys
    ]
    assert lack(runs, tune=keys) == "; ".join(told)
    cross = [
        run(r.params["strategy.name"], int(r.seed), rate, 0.0, 0.9, model__local_epochs=epochs)
        for r in runs
        if r.params[RATE] == "0.04"
        for rate, epochs in (("0.01", "2"), ("0.16", "2"), ("0.04", "1"), ("0.04", "4"))
    ]
    assert lack([*runs, *cross], tune=keys) == ""


def test_of_equals_but_for_rounding_the_smaller_rate_counts() -> None:
    """Means over clients of equally many right rows may differ in their last digits."""
    for one, other in ((12 / 13, 0.923076923076923), (0.923076923076923, 12 / 13)):
        scores = {"0.01": 0.9, "0.04": one, "0.16": other, "0.64": 0.9}
        runs = [
            run(name, seed, rate, by)
            for name in ("fedavg", "fedprox")
            for seed in range(3)
            for rate, by in scores.items()
        ]
        assert chosen(tune(runs), "fedavg") == ["0.04"] * 3
        rows = summary_table([r for r in runs if r.params["strategy.name"] == "fedavg"]).rows
        assert [row.best for row in rows] == [False, True, True, False]


def test_the_newest_of_a_candidate_counts() -> None:
    """A rate that was run twice is one candidate, by its newest run."""
    old = replace(run(rate="0.01", by=0.9), run_id="old", start_ms=1)
    new = replace(run(rate="0.01", by=0.1), run_id="new", start_ms=2)
    other = [run("fedprox", rate=rate) for rate in ("0.01", "0.04")]
    comparison = tune([new, old, run(rate="0.04", by=0.5), *other])
    assert comparison.design.tuning.choices["", "fedavg"].num_candidates == 2
    assert chosen(comparison, "fedavg") == ["0.04"]


def test_what_is_ignored_never_chooses_a_candidate() -> None:
    """Two runs of one rate that differ in an ignored param are refused."""
    runs = [run(rate=rate, model__l2=l2) for rate in ("0.01", "0.04") for l2 in ("0.0", "0.1")]
    with pytest.raises(InputError, match=r"model.l2=0.0 and 0.1: one value for strategy=fedavg"):
        tune(runs, ignore=["model.l2"])


def test_candidates_see_the_same_data() -> None:
    """A run on other rows is no candidate."""
    runs = tuned()
    runs[0] = replace(runs[0], tags={**SEED_DRAWS_TEST, "data.sha256": "e" * 64})
    with pytest.raises(InputError, match=f"data.sha256={'e' * 12} and {'d' * 12}: other data: fed"):
        tune(runs)


def test_the_same_bytes_under_two_paths_are_candidates_of_one_choice() -> None:
    """Rates that were run on copies of a file, the largest diverged, are three of one cell."""
    runs = []
    for one in tuned():
        path = {"0.01": "/a/x.csv", "0.04": "/b/y.csv", "0.16": "/c/z.csv"}[one.params[RATE]]
        told = {**one.params, "dataset.name": "tabular", "dataset.path": path}
        runs.append(replace(one, params=told))
        if path == "/c/z.csv":
            runs[-1] = replace(runs[-1], status="FAILED", error="training diverged", curves={})
    comparison = tune(runs)
    assert [cell.label for cell in comparison.cells] == [""]
    assert comparison.design.tuning.choices["", "fedavg"].num_candidates == 3
    assert chosen(comparison, "fedprox") == ["0.04"] * 5
    (data,) = comparison.data
    assert data.names == ("/b/y.csv",)  # of the runs that count
    both = [r for r in runs if r.params[RATE] == "0.01" or r.finished]
    parted = compare(both, ignore=["dataset.path"])
    assert list(parted.design.groups) == ["learning_rate=0.01", "learning_rate=0.04"]


def test_only_the_last_round_makes_a_candidate() -> None:
    """A run that has what chooses in earlier rounds only is refused by name."""
    runs = tuned()
    runs[0] = replace(runs[0], curves={**runs[0].curves, "eval/accuracy": {LAST - 1: 0.9}})
    with pytest.raises(InputError) as caught:
        tune(runs)
    assert str(caught.value) == (
        "--by=eval/accuracy: no candidate: fedavg 0 0.01 has no such value in its last round (12)"
    )
    curves = {"eval/accuracy": {LAST - 1: 0.9, LAST: 0.1}}
    runs[0] = replace(runs[0], curves={**runs[0].curves, **curves})
    assert chosen(tune(runs), "fedavg") == ["0.04"] * 5


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("x", "--tune=x: a param of the runs, for example model.learning_rate"),
        ("strategy", "--tune=strategy: another param than the compared one"),
        ("dataset", "--tune=dataset: a param of the method, for example model.learning_rate"),
        ("seed", "--tune=seed: a param of the method"),
    ],
)
def test_what_cannot_be_tuned(name: str, why: str) -> None:
    """The data, the seed and what is compared are no hyperparameters."""
    with pytest.raises(InputError, match=why):
        tune(tuned(), tune=[name])


# ---------------------------------------------------------------------------- equal candidates
def test_each_side_has_as_many_candidates() -> None:
    """A level that was tried less often for one seed is refused, with who has how many."""
    runs = [r for r in tuned() if r.title != "fedprox 3 0.16"]
    with pytest.raises(InputError) as caught:
        tune(runs)
    assert str(caught.value) == (
        "--tune=model.learning_rate: the same number of candidates on each side: strategy=fedprox "
        "has 3 (0.01, 0.04, 0.16) with seed=4, strategy=fedprox has 2 (0.01, 0.04) with seed=3; "
        "run what is missing, or choose runs with --where"
    )
    fewer = [
        r for r in tuned() if r.params["strategy.name"] == "fedavg" or r.params[RATE] == "0.01"
    ]
    with pytest.raises(InputError, match=r"fedavg has 3 .*, strategy=fedprox has 1 \(0.01\)"):
        tune(fewer)


def test_a_diverged_run_was_tried() -> None:
    """It is a candidate that is never chosen; a run that failed otherwise is none."""
    error = str(Ending.diverged(_Remedy(), "round 2: train/mse is nan"))  # type: ignore[arg-type]
    lost = [
        replace(r, status="FAILED", error=error, curves={}, metrics={})
        if (r.params["strategy.name"], r.params[RATE]) == ("fedavg", "0.16")
        else r
        for r in tuned()
    ]
    assert diverged(next(r for r in lost if not r.finished))
    comparison = tune(lost)
    assert comparison.design.tuning.choices["", "fedavg"].num_candidates == 3
    assert chosen(comparison, "fedavg") == ["0.04"] * 5
    assert expect(comparison, "fedprox>fedavg").holds_strictly
    broken = [r if r.finished else replace(r, error="OSError: disk full") for r in lost]
    with pytest.raises(InputError, match=r"=fedprox has 3 .*=fedavg has 2 \(0.01, 0.04\)"):
        tune(broken)


def test_a_diverged_run_on_other_data_was_not_tried() -> None:
    """It fills no gap in the candidates of runs that saw other rows."""
    lost = [
        replace(r, status="FAILED", error="training diverged", curves={}, metrics={})
        if (r.params["strategy.name"], r.params[RATE]) == ("fedavg", "0.16")
        else r
        for r in tuned()
    ]
    other = [r if r.finished else replace(r, tags={"data.sha256": "f" * 64}) for r in lost]
    with pytest.raises(InputError, match=r"=fedprox has 3 .*=fedavg has 2 \(0.01, 0.04\)"):
        tune(other)
    silent = [r if r.finished else replace(r, tags={}) for r in lost]
    assert tune(silent).design.tuning.choices["", "fedavg"].num_candidates == 3


def test_levels_that_tune_the_same_have_as_many_candidates() -> None:
    """Also where a third level tunes more; those that tune fewer params may have fewer."""
    epochs = {**SEED_DRAWS_TEST, "config.without_effect": "model.local_epochs"}
    rates = ("0.01", "0.04", "0.16", "0.64")
    third = [
        run("fedavg", seed, rate, model__local_epochs=count)
        for seed in range(3)
        for rate in rates
        for count in ("1", "5")
    ]
    two = [
        run(name, seed, rate, tags=epochs, model__local_epochs="1")
        for name, own in (("b", rates[:3]), ("c", rates))
        for seed in range(3)
        for rate in own
    ]
    keys = [RATE, "model.local_epochs"]
    with pytest.raises(InputError, match=r"strategy=c has 4 .*strategy=b has 3 "):
        tune([*third, *two], tune=keys)
    equal = [r for r in two if r.params[RATE] != "0.64"]
    assert tune([*third, *equal], tune=keys).design.tuning.choices["", "c"].num_candidates == 3


class _Remedy:
    """All that the error's text needs of an Ending."""

    remedy = "lower model.learning_rate (0.16)"


def test_nothing_to_tune() -> None:
    """A strategy on which the rate has no effect runs once a seed, counts as tuned, and says so."""
    runs = [r for r in tuned() if r.params["strategy.name"] == "fedavg"]
    runs += [stack(seed, end=0.85 + seed / 100) for seed in SEEDS]
    comparison = tune(runs)
    assert comparison.levels == ("fedavg", "fedstacking")
    outcome = expect(comparison, "fedstacking>fedavg")
    assert outcome.difference.mean == pytest.approx(0.85 + 0.02 - 0.8)
    assert outcome.difference.lack == ""
    text = to_text(comparison_blocks(comparison, [outcome]))
    assert (
        "model.learning_rate by eval/accuracy: fedavg 3 candidates (0.01, 0.04, 0.16), chosen "
        "0.04, 0.04, 0.04, 0.04, 0.04; fedstacking: nothing to tune\n"
    ) in text


def test_runs_alike_by_construction_are_one() -> None:
    """Of runs that differ in params without effect the smallest value's counts, once a seed."""
    fedavg = [r for r in tuned() if r.params["strategy.name"] == "fedavg"]
    stacks = [stack(s, rate, end) for s in SEEDS for rate, end in (("0.16", 0.1), ("0.04", 0.9))]
    comparison = tune([*fedavg, *stacks])
    row = comparison.at_rounds.overall[1]
    assert (row.level, row.num_runs, row.mean) == ("fedstacking", 5, 0.9)
    note = "5 runs differ from another only in params without effect on it; one of them counts"
    assert note in comparison.notes
    both = [replace(r, params={**r.params, "model.name": "auto"}) for r in stacks]
    levels = compare(
        [*both, *(replace(r, params={**r.params, "model.name": "mlp"}) for r in fedavg[::3])],
        baseline=BOTH,
    )
    assert levels.levels == ("fedavg mlp", "fedstacking auto")
    assert levels.at_rounds.overall[1].num_runs == 5


def test_a_run_without_effect_stands_for_all_values() -> None:
    """One stack a seed is paired with each rate of its rival, and chosen with any of them."""
    fedavg = [
        run(seed=seed, rate=rate, end=float(rate)) for seed in SEEDS for rate in ("0.1", "0.2")
    ]
    runs = [*fedavg, *(stack(seed, end=0.5) for seed in SEEDS)]
    comparison = compare(runs)
    assert [cell.label for cell in comparison.cells] == ["learning_rate=0.1", "learning_rate=0.2"]
    means = [row.difference.mean for row in comparison.at_rounds.overall if row.difference]
    assert means == pytest.approx([0.5 - 0.1, 0.5 - 0.2])
    one = compare(select(runs, [f"{RATE}=0.2"]))
    assert expect(one, "fedstacking>fedavg").difference.mean == pytest.approx(0.3)
    late = replace(stack(5), status="FAILED", error="DataError: no rows")
    with pytest.raises(InputError, match=r"seed=5 is FAILED: DataError: no rows"):
        compare([*runs, late, *(run(seed=5, rate=rate) for rate in ("0.1", "0.2"))])


# ---------------------------------------------------------------------------- strict claims
def lack(runs: Sequence[RunSummary], expectation: str = "fedprox>fedavg", **options: Any) -> str:
    """Return why a claim that holds is not strict."""
    comparison = compare(runs, **options)
    outcome = expect(comparison, expectation)
    assert outcome.holds
    assert outcome.holds_strictly is not bool(outcome.difference.lack)
    line = to_text(comparison_blocks(comparison, [outcome]))
    assert ("no strict claim: " in line) is bool(outcome.difference.lack)
    return outcome.difference.lack


def test_a_tuned_claim_is_strict() -> None:
    """Both rates chosen inside of their lists, by other rows than those compared."""
    assert lack(tuned(), tune=[RATE]) == ""


@pytest.mark.parametrize("rate", ["0.04", "auto"])
def test_untuned_is_no_strict_claim(rate: str) -> None:
    """Without ``--tune`` of the rate, with a number or ``auto``, where it has an effect."""
    runs = [
        replace(r, params={**r.params, RATE: rate}) for r in tuned() if r.params[RATE] == "0.04"
    ]
    both = "model.learning_rate of fedprox and fedavg is untuned (--tune model.learning_rate)"
    assert lack(runs) == both
    idle = [replace(r, tags=IDLE) if r.params["strategy.name"] == "fedprox" else r for r in runs]
    assert lack(idle) == both.replace("fedprox and ", "")
    assert lack([replace(r, tags=IDLE) for r in runs]) == ""
    one = [f"{name} is untuned, with one candidate of {RATE}" for name in ("fedprox", "fedavg")]
    assert lack(runs, tune=[RATE]) == "; ".join(one)


@pytest.mark.parametrize("best", ["0.01", "0.16", "auto"])
def test_the_edge_is_no_strict_claim(best: str) -> None:
    """A choice at an end of its list, or beside its numbers, for one seed of one level."""
    runs = [
        replace(r, metrics={**r.metrics, "eval/accuracy": 0.9})
        if (r.params["strategy.name"], r.seed, r.params[RATE]) == ("fedprox", "3", best)
        else r
        for r in [
            *tuned(),
            *(run(name, s, "auto", 0.0, 0.9) for name in ("fedavg", "fedprox") for s in SEEDS),
        ]
    ]
    text = f"{RATE}={best} of fedprox is at the edge of its candidates with seed 3"
    assert lack(runs, "fedprox>fedavg-9", tune=[RATE]) == text
    assert lack(runs, "fedavg>fedprox-9", tune=[RATE]) == text


def test_all_that_is_lacking_is_told_once() -> None:
    """Three seeds of two cells, cut short, by rows that chose, at the edge: each reason once."""
    falls = {"eval/log_loss": {r: 2 - r / LAST for r in range(1, LAST + 1)}}
    runs = [
        replace(
            r,
            run_id=f"{r.run_id} {k}",
            params={**r.params, "num_clients": k},
            curves={**falls, "eval/accuracy": r.curves["server/accuracy"]},
        )
        for r in tuned()
        for k in ("2", "3")
        if r.seed in "012" and r.params[RATE] != "0.16"
    ]
    edges = [
        f"{RATE}=0.04 of {name} is at the edge of its candidates with seed 0, 1, 2"
        for name in ("fedprox", "fedavg")
    ]
    falling = [
        f"not converged: {name} 6 of 6 (eval/log_loss still falls)"
        for name in ("fedprox", "fedavg")
    ]
    assert lack(runs, tune=[RATE], metric="eval/accuracy", by="eval/accuracy") == "; ".join(
        [
            "3 of the 5 pairs that it needs",
            *edges,
            "eval/accuracy is measured on the rows that chose, by eval/accuracy",
            *falling,
        ]
    )


def test_two_candidates_have_no_inside() -> None:
    """Either end of a list of two is its edge."""
    runs = [r for r in tuned() if r.params[RATE] != "0.16"]
    assert "fedavg is at the edge of its candidates with seed 0, 1, 2, 3, 4" in lack(
        runs, tune=[RATE]
    )


@pytest.mark.parametrize(
    ("metric", "by", "same"),
    [
        ("server/accuracy", "eval/accuracy", False),
        ("server/accuracy", "server/log_loss", True),
        ("eval/accuracy", "eval/accuracy", True),
        ("fairness/accuracy_worst", "eval/accuracy", True),
        ("eval/accuracy", "server/accuracy", False),
    ],
)
def test_what_chose_does_not_judge(metric: str, by: str, same: bool) -> None:
    """A metric of the rows by which the rates were chosen allows no strict claim."""
    runs = []
    for one in tuned():
        best = 0.3 - abs(one.metrics["eval/accuracy"] - 0.3)
        runs.append(
            replace(
                one,
                curves={**FLAT, metric: one.curves["server/accuracy"]},
                metrics={by: -best if by.endswith("loss") else best, metric: best},
            )
        )
    text = f"{metric} is measured on the rows that chose, by {by}"
    assert lack(runs, tune=[RATE], by=by, metric=metric) == (text if same else "")


def test_a_claim_about_rates_needs_no_tuned_rate() -> None:
    """Where the rate is what is compared it cannot be tuned."""
    runs = [r for r in tuned() if r.params["strategy.name"] == "fedavg"]
    made = [
        replace(r, curves={"server/accuracy": {2: 0.5 + int(r.seed) * float(r.params[RATE])}})
        for r in runs
    ]
    comparison = compare(made, baseline=f"{RATE}=0.01")
    assert "untuned" not in expect(comparison, "0.16>0.01-1").difference.lack

    both = [
        replace(r, params={**r.params, RATE: rate})
        for r in tuned()
        if r.params[RATE] == "0.04"
        for rate in (["0.01", "0.04"] if r.params["strategy.name"] == "fedavg" else ["0.64"])
    ]
    comparison = compare(both, baseline=f"strategy=fedavg,{RATE}=0.01")
    text = f"{RATE} of fedprox 0.64 and fedavg 0.01 is untuned (--tune {RATE}, not in --baseline)"
    assert text in expect(comparison, "fedprox 0.64>fedavg 0.01").difference.lack
    made = [
        replace(r, curves={**FLAT, "server/accuracy": {LAST: int(r.seed) * float(r.params[RATE])}})
        for r in both
    ]
    comparison = compare(made, baseline=f"strategy=fedavg,{RATE}=0.01")
    assert "untuned" not in expect(comparison, "fedavg 0.04>fedavg 0.01").difference.lack


# ---------------------------------------------------------------------------- what is not averaged
def test_untuned_values_are_not_averaged() -> None:
    """Three rates of a method are three rows of six runs, not one of eighteen."""
    runs = [
        run(strategy, seed, rate, end=end + seed / 10)
        for strategy, end in (("fedavg", 0.1), ("fedprox", 0.2))
        for rate in ("0.01", "0.04", "0.16")
        for seed in range(6)
    ]
    comparison = compare(runs)
    assert [(r.group, r.level, r.num_runs) for r in comparison.at_rounds.overall] == [
        (f"learning_rate={rate}", level, 6)
        for rate in ("0.01", "0.04", "0.16")
        for level in ("fedavg", "fedprox")
    ]
    note = (
        "cells differ in model.learning_rate, so no row is over all of them; choose with --tune "
        "model.learning_rate, or runs with --where model.learning_rate=..."
    )
    assert note in comparison.notes
    text = to_text(comparison_blocks(comparison))
    assert text.count("\nlearning_rate=0.04 ") == 1  # the cell's own rows, and none over it alone
    assert "all 3 cells" not in text
    with pytest.raises(InputError) as caught:
        expect(comparison, "fedprox>fedavg")
    assert str(caught.value) == (
        "model.learning_rate=0.01 and 0.04 and 0.16: one value for --expect fedprox>fedavg: choose "
        "it with --tune model.learning_rate, or runs with --where model.learning_rate=..."
    )
    one = compare(select(runs, [f"{RATE}=.04"]))
    assert expect(one, "fedprox>fedavg").difference.mean == pytest.approx(0.1)


def test_problems_are_averaged_for_each_method() -> None:
    """Cells of several problems have a row over them for each value of the hyperparameters."""
    runs = [
        run(strategy, seed, rate, end=end + float(alpha) * seed, partitioner__alpha=alpha)
        for strategy, end in (("fedavg", 0.1), ("fedprox", 0.2))
        for rate in ("0.01", "0.04")
        for alpha in ("0.1", "0.5")
        for seed in range(3)
    ]
    comparison = compare(runs)
    overall = [(r.group, r.level, r.num_runs) for r in comparison.at_rounds.overall]
    assert overall[:2] == [
        ("learning_rate=0.01", "fedavg", 6),
        ("learning_rate=0.01", "fedprox", 6),
    ]
    assert comparison.at_rounds.overall[1].worst_cell is not None
    text = to_text(comparison_blocks(comparison))
    assert "all 2 cells, learning_rate=0.04" in text
    assert "worst cell of fedprox at equal rounds with learning_rate=0.04: " in text
    assert {c["group"] for c in as_dict(comparison)["cells"]} == {r[0] for r in overall}
    alone = compare([r for r in runs if r.params[RATE] == "0.01"])
    assert [r.group for r in alone.at_rounds.overall] == ["", ""]
    assert "all 2 cells " in to_text(comparison_blocks(alone))


def test_a_sweeps_table_averages_seeds_only() -> None:
    """Each rate is a configuration of its own in the closing table."""
    assert [len(row.seeds) for row in summary_table(tuned()).rows] == [5] * 6


# ---------------------------------------------------------------------------- what is shown
def test_what_was_chosen_is_written() -> None:
    """Candidates and choices are in the lines, a column of the CSV, and the JSON."""
    runs = [*tuned(), *(stack(seed) for seed in SEEDS)]
    comparison = tune(runs)
    line = "fedprox 3 candidates (0.01, 0.04, 0.16), chosen 0.04, 0.04, 0.04, 0.04, 0.04; fedst"
    assert line in to_markdown(comparison_blocks(comparison))
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert {(row["level"], row["chosen"]) for row in rows} == {
        ("fedavg", "model.learning_rate=0.04"),
        ("fedprox", "model.learning_rate=0.04"),
        ("fedstacking", "nothing to tune"),
    }
    data = json.loads(json.dumps(as_dict(comparison)))["tuning"]
    assert (data["keys"], data["by"]) == ([RATE], "eval/accuracy")
    by_level = {choice["level"]: choice for choice in data["choices"]}
    assert by_level["fedprox"]["chosen"] == {str(seed): ["0.04"] for seed in SEEDS}
    assert by_level["fedprox"]["tried"]["0"] == [["0.01"], ["0.04"], ["0.16"]]
    assert by_level["fedstacking"]["keys"] == []
    untuned = compare([stack(seed) for seed in SEEDS], baseline="strategy=fedstacking")
    assert as_dict(untuned)["tuning"] is None
    assert {row["chosen"] for row in csv.DictReader(io.StringIO(as_csv(untuned)))} == {""}


def test_each_cell_chooses() -> None:
    """A choice is of its cell; few cells have a line each, many are counted."""
    runs = [
        replace(r, run_id=f"{r.run_id} {k}", params={**r.params, "num_clients": str(k)})
        for r in tuned()
        for k in range(2, 12)
    ]
    few = [r for r in runs if r.params["num_clients"] in ("2", "3")]
    text = to_text(comparison_blocks(tune(few)))
    assert "model.learning_rate by eval/accuracy at num_clients=3: fedavg 3 candidates (" in text
    text = to_text(comparison_blocks(tune(runs)))
    assert "fedavg 3 candidates (0.01, 0.04, 0.16), chosen 0.04 (50 of 50); fedprox" in text


# ---------------------------------------------------------------------------- through MLflow
@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make one store for the tests of this file."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    MlflowStore(uri, Path()).connect()
    return uri


def log(uri: str, told: RunSummary, by: Mapping[int, float]) -> None:
    """Log a run; the later steps of what chooses are logged first."""
    client = MlflowClient(uri)
    run_id = client.create_run("0", told.start_ms, run_name=told.name).info.run_id
    late = [Metric("eval/accuracy", v, 99 - step, step) for step, v in sorted(by.items())[::-1]]
    curve = [Metric(k, v, 1, s) for k, c in told.curves.items() for s, v in c.items()]
    params = [Param(name, value) for name, value in told.params.items()]
    client.log_batch(run_id, [*curve, *late], params, [RunTag(k, v) for k, v in told.tags.items()])
    client.set_terminated(run_id, told.status)


def test_the_command_tunes(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last round's value chooses, not the best one's nor the one logged last."""
    runs = [r for r in tuned() if r.params["strategy.name"] == "fedavg"]
    for one in runs:
        log(uri, one, {1: 1 - one.metrics["eval/accuracy"], LAST: one.metrics["eval/accuracy"]})
    for seed in SEEDS:
        log(uri, stack(seed, end=0.9 + seed / 100), {1: 0.1, LAST: 0.9})
    read = read_runs(uri)
    assert {r.params[RATE]: r.metrics["eval/accuracy"] for r in read} == {
        "0.01": 0.1,
        "0.04": 0.3,
        "0.16": 0.2,
        "auto": 0.9,
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ("--tune", RATE, "--by", "eval/accuracy", "--expect", "fedstacking>fedavg", "--strict")
    assert fl_kit(monkeypatch, "report", *words, "--out", str(tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert "chosen 0.04, 0.04, 0.04, 0.04, 0.04; fedstacking: nothing to tune" in out
    assert "nothing to tune" in (tmp_path / "out" / "report.csv").read_text()
    assert fl_kit(monkeypatch, "report", *words[4:], "--where", f"{RATE}=0.04") == 1
    assert "model.learning_rate of fedavg is untuned (--tune model" in capsys.readouterr().out
    assert fl_kit(monkeypatch, "report", *words[4:]) == 2
    assert "model.learning_rate=0.01 and 0.04 and 0.16: one value for --" in capsys.readouterr().err


def test_what_was_not_chosen_need_not_have_learned(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate at which training was worse than a constant is a candidate; chosen, it is refused."""
    for one in tuned():
        bad = {"worse_than_constant": "true"} if one.params[RATE] == "0.01" else {}
        told = replace(one, tags={**one.tags, **bad, "sweep.id": "bad"})
        log(uri, told, {LAST: one.metrics["eval/accuracy"]})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ("--sweep", "bad", "--tune", RATE, "--expect", "fedprox>fedavg", "--strict")
    assert fl_kit(monkeypatch, "report", *words) == 0
    assert (
        fl_kit(
            monkeypatch, "report", *words, "--by", "server/accuracy", "--metric", "eval/accuracy"
        )
        == 1
    )
    capsys.readouterr()
    assert fl_kit(monkeypatch, "report", *words, "--where", f"{RATE}=0.01") == 2
    assert "no claim stands on runs that did not learn" in capsys.readouterr().err


def test_a_tuned_comparison_is_kept(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--store`` keeps the choices; a run without the last round's value is refused there too."""
    for one in tuned():
        log(
            uri,
            replace(one, tags={**one.tags, "sweep.id": "kept"}),
            {LAST: one.metrics["eval/accuracy"]},
        )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ("--sweep", "kept", "--tune", RATE)
    assert (
        fl_kit(monkeypatch, "report", *words, "--expect", "fedprox>fedavg", "--strict", "--store")
        == 0
    )
    run_id = capsys.readouterr().out.split()[-1]
    path = MlflowClient(uri).download_artifacts(run_id, "report.json", str(tmp_path))
    data = json.loads(Path(path).read_text())
    assert {one["level"]: one["chosen"]["0"] for one in data["tuning"]["choices"]} == {
        "fedavg": ["0.04"],
        "fedprox": ["0.04"],
    }
    assert {one["verdict"]["word"] for one in data["convergence"]} == {"converged"}
    again = replace(tuned()[0], start_ms=10**14, tags={**SEED_DRAWS_TEST, "sweep.id": "kept"})
    log(uri, again, {LAST - 1: 0.9})
    assert fl_kit(monkeypatch, "report", *words) == 2
    assert "no candidate: fedavg 0 0.01 has no such value in its last" in capsys.readouterr().err


def test_a_sweep_counts_what_diverged(uri: str) -> None:
    """Its comparison reads the jobs that diverged too; where cells differ there is no sentence."""
    jobs = []
    for told in tuned():
        one = replace(told, tags={**told.tags, "sweep.id": "swept"})
        if (one.params["strategy.name"], one.params[RATE]) == ("fedavg", "0.16"):
            one = replace(one, status="FAILED", tags={**one.tags, "error": "training diverged"})
        log(uri, one, {LAST: one.metrics["eval/accuracy"]} if one.finished else {})
        words = [f"{RATE}={one.params[RATE]}"]
        where = {"sweep_id": "swept", "uri": uri, "tracked": True, "experiment": "its own"}
        own = (one.status, one.tags.get("error", ""), one.params, one.metrics)
        jobs.append(Job(len(jobs), words, *own, **where))
    ids = {r.name: r.run_id for r in read_runs(uri, sweep="swept") if r.finished}
    names = [" ".join([j.params["strategy.name"], j.params["seed"], j.params[RATE]]) for j in jobs]
    jobs = [replace(job, run_id=ids.get(name, "")) for job, name in zip(jobs, names, strict=True)]
    text = summarise(jobs)
    assert "fedavg 3 candidates (0.01, 0.04, 0.16), chosen 0.04, 0.04, 0.04" in text
    assert "\nfedprox is better than fedavg: +0.1200 [" in text
    again = [replace(job, status="SKIPPED") if not job.failed else job for job in jobs]
    assert "\nfedprox is better than fedavg: +0.1200 [" in summarise(again)
    client = MlflowClient(uri)
    own = client.get_experiment_by_name("its own")
    assert [r.info.run_name for r in client.search_runs([own.experiment_id])] == ["comparison"]
    # The rate was not swept here, but two of its values are among the runs.
    apart = summarise([replace(job, overrides=[]) for job in again if job.params[RATE] != "0.16"])
    assert "at equal rounds" in apart
    assert "\nno sentence: model.learning_rate=0.01 and 0.04" in apart
    assert "stored in MLflow" in apart
