"""Which runs are flagged as cut short, which are not, and of which nobody can tell."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.report import RunSummary, Verdict, compare, comparison_blocks, expect, judge, to_text
from fl_app.report.origins import data_sets, makers, origin_lines
from fl_app.report.runs import BYTES
from fl_app.report.writing import as_csv, as_dict

from .recorded import real_runs

LOSS, ACCURACY = "eval/log_loss", "server/accuracy"
LOSSES = st.lists(st.floats(0, 100), min_size=10, max_size=60)


def made(
    losses: Sequence[float] | Mapping[int, float],
    strategy: str = "fedavg",
    seed: int = 0,
    **params: str,
) -> RunSummary:
    """Make a run with an eval loss, from round 1 on or by round, and a score that says nothing."""
    curve = losses if isinstance(losses, Mapping) else dict(enumerate(losses, start=1))
    own = {name.replace("__", "."): value for name, value in params.items()}
    return RunSummary(
        f"{strategy}-{seed}",
        {"strategy.name": strategy, "seed": str(seed)} | own,
        curves={LOSS: curve, ACCURACY: dict.fromkeys(curve, 0.5 + seed / 100)},
    )


def falling(rounds: int) -> list[float]:
    """Return losses that fall by the same in each round."""
    return [2 - r / rounds for r in range(rounds)]


def flat(rounds: int) -> list[float]:
    """Return losses that fall once."""
    return [1.0] + [0.5] * (rounds - 1)


# ---------------------------------------------------------------------------- the rule
def test_one_per_cent_of_what_was_gained_decides() -> None:
    """50 rounds: the mean of 41-50 against that of 31-40; gained is 1 - 0.5, so 0.005 is the limit.

    The least loss is that of one round before both fifths, so that only the fall differs.
    """
    for fall, word in ((0.0049, "converged"), (0.0051, "not converged"), (-0.1, "converged")):
        losses = [1.0, 0.5] + [0.7] * 38 + [0.7 - fall] * 10
        assert judge(made(losses)).word == word
        assert judge(made([10 * loss for loss in losses])).word == word


@pytest.mark.parametrize(("rounds", "fifth"), [(10, 2), (14, 2), (15, 3), (50, 10), (54, 10)])
def test_a_fifth_is_rounded_down(rounds: int, fifth: int) -> None:
    """A step of .0052 of .5052 gained is enough, but only where the last fifth begins with it."""
    for after in range(fifth - 1, fifth + 2):
        losses = [1.0] + [0.5] * (rounds - after - 1) + [0.5 - 0.0052] * after
        assert judge(made(losses)).word == ("not converged" if after == fifth else "converged")


@given(LOSSES)
def test_a_rising_loss_is_not_flagged(losses: list[float]) -> None:
    """Whatever it did before: a loss that rises to the end is no reason for more rounds."""
    rising = sorted(losses)
    assert judge(made(rising)).word == "converged"
    third = len(rising) // 3  # overfitting: down for a third of the rounds, then up again
    assert judge(made([200.0] * third + rising[third:])).word == "converged"


@given(LOSSES, st.integers(-3, 3))
def test_the_unit_does_not_matter(losses: list[float], power: int) -> None:
    """A loss in another unit has the same verdict (powers of two: without rounding)."""
    assert judge(made(losses)).word == judge(made([loss * 2.0**power for loss in losses])).word


def test_nothing_gained_counts_any_fall_but_rounding() -> None:
    """Where round 1 is the best there is no gain: 1 % of it is 0."""
    assert judge(made([1.0] * 20)).word == "converged"
    assert judge(made([0.1 + 0.2] * 16 + [0.3] * 4)).word == "converged"  # 4e-17 apart
    assert judge(made([1.0, *[5.0] * 10, 4, 4, 4, 4, 3, 3, 3, 3])).word == "not converged"


def test_later_rounds_are_not_looked_at() -> None:
    """A run that is compared at round 12 is judged by its rounds up to there, round 0 never."""
    losses = {0: 99.0} | dict(enumerate([*falling(12), *[0.5] * 38], start=1))
    assert judge(made(losses)).word == "converged"
    assert judge(made(losses), 12).word == "not converged"
    assert judge(made(losses), 9) == Verdict("cannot tell", "fewer than 10 averaged rounds")
    assert judge(made({0: math.nan, **dict(enumerate(flat(10), start=1))})).word == "converged"


# ---------------------------------------------------------------------------- who is judged
def test_fedstacking_is_its_global_member() -> None:
    """Rounds T-1 and T are the stack's: neither their fall nor their number counts."""
    stack = {"strategy": "fedstacking", "strategy__global_member": "fedavg"}
    jump = [*flat(12), 0.1, 0.1]
    assert judge(made(jump)).word == "not converged"
    assert judge(made(jump, num_server_rounds="14", **stack)).word == "converged"
    assert judge(made([*falling(12), 9, 9], num_server_rounds="14", **stack)).word == (
        "not converged"
    )
    assert judge(made(flat(11), num_server_rounds="11", **stack)).word == "cannot tell"
    assert judge(made(flat(12), num_server_rounds="12", **stack)).word == "converged"
    # Compared while it still collects it is that global member, and nothing is taken off.
    assert judge(made(flat(30), num_server_rounds="30", **stack), 10).word == "converged"


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"strategy": "fedstacking", "strategy__global_member": "none"}, "not judged"),
        ({"strategy": "fedstacking", "strategy__global_member": "ls"}, "not judged"),
        ({"strategy": "n_average"}, "not judged"),
        ({"strategy": "pooled", "strategy__base_models": "[ridge]"}, "not judged"),
        ({"strategy": "pooled"}, "not judged"),
        ({"strategy": "local"}, "not converged"),
        ({"strategy": "fedxgbbagging"}, "not converged"),
    ],
)
def test_what_has_no_curve_is_not_judged(params: dict[str, str], word: str) -> None:
    """Models that are made at once do not converge; references by their own loss do."""
    assert judge(made(falling(20), **params)).word == word
    assert judge(made([0.5] * 3, **params)).allows_claims is (word == "not judged")


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ({}, "no eval loss"),
        (flat(9), "fewer than 10 averaged rounds"),
        ({r: 1 / r for r in range(2, 21)}, "eval/log_loss lacks rounds that decide"),
        ({r: 1 / r for r in [*range(1, 17), 20]}, "eval/log_loss lacks rounds that decide"),
        ([*flat(19), math.inf], "eval/log_loss is not finite"),
        ([1.0, math.nan, *flat(18)], "eval/log_loss is not finite"),
        ([1e308] * 20, "eval/log_loss is not finite"),
    ],
)
def test_where_nobody_can_tell(losses: Sequence[float] | dict[int, float], why: str) -> None:
    """Too few rounds, no loss, none where it decides, no number: said, and no claim."""
    found = judge(made(losses, num_server_rounds="20" if len(losses) > 9 else "9"))
    if not losses:
        found = judge(RunSummary("x", {"num_server_rounds": "20"}, curves={ACCURACY: {20: 1.0}}))
    assert found == Verdict("cannot tell", why)
    assert not found.allows_claims


def test_rounds_between_may_be_missing() -> None:
    """Where only every second round was evaluated, a fifth is the mean of those in it."""
    every = dict(enumerate(falling(50), start=1))
    odd = {r: loss for r, loss in every.items() if r % 2}
    assert judge(made(odd, num_server_rounds="50")).word == "not converged"


def test_a_table_of_400_rows_is_flagged_at_10_rounds_and_not_at_50(tmp_path: Path) -> None:
    """FedAvg's linear model at a rate of .03: at 10 rounds it still learns, at 50 no more.

    Of some seeds the eval loss rises after its best round, which is not flagged. The runs' tags say
    which rows they saw, and by which versions they were made.
    """
    table = ("dataset=synthetic_regression", "dataset.num_examples=400", "num_clients=5")
    jobs = [
        (*table, "model.learning_rate=0.03", f"num_server_rounds={rounds}", f"seed={seed}")
        for rounds in (10, 50)
        for seed in range(3)
    ]
    runs = [
        RunSummary(
            view.name,
            view.params,
            view.tags,
            curves={"eval/mse": {r.server_round: r.metrics["eval/mse"] for r in view.rounds[1:]}},
        )
        for view in real_runs(tmp_path, *jobs)
    ]
    assert [judge(one).word for one in runs] == ["not converged"] * 3 + ["converged"] * 3
    assert [judge(one, 10) for one in runs[3:]] == [judge(one) for one in runs[:3]]
    curves = [one.curves["eval/mse"] for one in runs[3:]]
    assert any(curve[50] > 1.01 * min(curve.values()) for curve in curves)
    data, maker = origin_lines(data_sets(runs), makers(runs))
    digests = ", ".join(sorted(one.tags["data.sha256"][:12] for one in runs[:3]))
    assert data == f"data: synthetic_regression, 400 rows, data.sha256 {digests}, 5 clients"
    assert maker.startswith("all runs made by: ")
    assert f"Python {platform.python_version()}, fl-app " in maker
    assert f"numpy {np.__version__}" in maker


# ---------------------------------------------------------------------------- in a report
def five(
    losses: Sequence[float], strategy: str, gain: float = 0.0, **params: str
) -> list[RunSummary]:
    """Make five seeds whose scores differ, each with a gain of its own."""
    told = {"data.seed_draws": "table", "data.sha256": "d" * 64}
    told["config.without_effect"] = "model.learning_rate"
    runs = [made(losses, strategy, seed, **params) for seed in range(5)]
    return [
        RunSummary(
            one.run_id,
            one.params,
            told,
            {**one.curves, ACCURACY: dict.fromkeys(one.curves[LOSS], 0.5 + gain * (1 + seed / 10))},
        )
        for seed, one in enumerate(runs)
    ]


def test_strict_claims_need_converged_runs() -> None:
    """One run of ten that still falls, or too few rounds, and ``--strict`` refuses; it says why."""
    good = [*five(flat(20), "fedavg"), *five(flat(20), "x", 0.1)]
    assert expect(compare(good), "x>fedavg").holds_strictly
    assert "converged by eval/log_loss: all runs that are judged\n" in to_text(
        comparison_blocks(compare(good))
    )
    one = [*good[:4], five(falling(20), "fedavg")[4], *good[5:]]
    outcome = expect(compare(one), "x>fedavg")
    assert (outcome.holds, outcome.holds_strictly) == (True, False)
    line = "not converged: fedavg 1 of 5 (eval/log_loss still falls)"
    assert outcome.difference.lack == line
    text = to_text(comparison_blocks(compare(one), [outcome]))
    assert f"\n{line}\n" in text
    assert f"no strict claim: {line})" in text
    assert "converged by" not in text
    short = [*five(flat(5), "fedavg"), *five(flat(5), "x", 0.1)]
    lack = expect(compare(short), "x>fedavg").difference.lack
    assert lack == "; ".join(
        f"cannot tell: {name} 5 of 5 (fewer than 10 averaged rounds)" for name in ("x", "fedavg")
    )


def test_a_level_beside_says_nothing_of_a_claim() -> None:
    """An expectation is about its two levels: a third that still falls does not matter."""
    runs = [
        *five(flat(20), "fedavg"),
        *five(flat(20), "x", 0.1),
        *five(falling(20), "y", 0.2),
    ]
    assert expect(compare(runs), "x>fedavg").holds_strictly
    assert not expect(compare(runs), "y>x").holds_strictly


def test_a_run_is_judged_where_it_is_compared() -> None:
    """Each at its end a long run counts whole; beside a stack of three rounds it is told too.

    At equal rounds that is round 3, where nobody can tell. The expectation is not about round 3.
    """
    stack = {"strategy__global_member": "none", "num_server_rounds": "3"}
    runs = [
        *five(flat(50), "fedavg", num_server_rounds="50"),
        *five([1.0, 0.5, 0.5], "fedstacking", 0.1, **stack),
    ]
    comparison = compare(runs, ignore=["num_server_rounds"])
    outcome = expect(comparison, "fedstacking>fedavg")
    assert outcome.holds_strictly
    text = to_text(comparison_blocks(comparison))
    assert "cannot tell: fedavg 5 of 5 at round 3 (fewer than 10 averaged rounds)" in text
    assert "not judged: fedstacking 5 of 5 (global_member=none is not averaged)" in text


def test_the_chosen_run_is_judged() -> None:
    """Of three rates the one that was chosen counts: whether the others have converged is nothing.

    Every seed of x takes rate 2, whose loss falls in the second report only.
    """
    for falls, lack in ((("1", "3"), ""), (("2",), "not converged: x 5 of 5 (eval/log_loss still")):
        runs = []
        for name, gain in (("fedavg", 0.0), ("x", 0.1)):
            for rate, by in (("1", 0.1), ("2", 0.3), ("3", 0.2)):
                losses = falling(20) if name == "x" and rate in falls else flat(20)
                for one in five(losses, name, gain, model__learning_rate=rate):
                    metrics, run_id = {"eval/accuracy": by}, f"{one.run_id} {rate}"
                    tags = {k: v for k, v in one.tags.items() if k != "config.without_effect"}
                    runs.append(replace(one, run_id=run_id, tags=tags, metrics=metrics))
        comparison = compare(runs, tune=["model.learning_rate"])
        outcome = expect(comparison, "x>fedavg")
        assert outcome.difference.lack.startswith(lack)
        assert outcome.holds_strictly is not bool(lack)
        assert {one.run_id[-1] for one in comparison.judged} == {"2"}


def test_a_run_that_stands_for_another_is_judged() -> None:
    """At equal bytes a stack of 11 rounds stands for one of 30: 9 averaged rounds tell nothing."""
    stack = {"strategy__global_member": "fedavg"}
    runs = [
        replace(
            one,
            run_id=f"{one.run_id} {rounds}",
            curves={
                **one.curves,
                **{name: {r: r * each for r in range(1, rounds + 1)} for name in BYTES},
            },
        )
        for strategy, rounds, each, gain, params in (
            ("fedavg", 30, 1, 0.0, {}),
            ("fedstacking", 30, 2, 0.1, stack),
            ("fedstacking", 11, 2, 0.1, stack),
        )
        for one in five(flat(rounds), strategy, gain, num_server_rounds=str(rounds), **params)
    ]
    comparison = compare(runs)
    assert comparison.at_bytes is not None
    assert {p.level.run_id[-2:] for p in comparison.at_bytes.pairs["fedstacking"]} == {"11"}
    text = to_text(comparison_blocks(comparison))
    line = "cannot tell: fedstacking at equal bytes 5 of 5 (fewer than 10 averaged rounds)"
    assert line in text
    assert "\ncannot tell: fedstacking 5" not in text
    assert expect(comparison, "fedstacking>fedavg").holds_strictly
    assert comparison.made[0].num_runs == 15


def test_cells_have_lines_of_their_own_where_they_differ() -> None:
    """A level that is cut short in one cell only: the line names the cell."""
    runs = [
        one
        for alpha, losses in (("0.1", falling(20)), ("1.0", flat(20)))
        for name in ("fedavg", "x")
        for one in five(losses if name == "x" else flat(20), name, partitioner__alpha=alpha)
    ]
    text = to_text(comparison_blocks(compare(runs)))
    assert "not converged: x 5 of 5 at alpha=0.1 (eval/log_loss still falls)" in text
    assert "at alpha=1.0 (" not in text


def test_every_run_has_its_verdict_in_the_files() -> None:
    """The JSON tells each run's verdict and why, the CSV has a column of them."""
    comparison = compare([*five(falling(20), "fedavg"), *five(flat(20), "x", 0.1)])
    told = {one["run_id"]: one["verdict"] for one in as_dict(comparison)["convergence"]}
    assert len(told) == 10
    assert told["fedavg-3"] == {"word": "not converged", "why": "eval/log_loss still falls"}
    head, *lines = as_csv(comparison).splitlines()
    assert head.split(",")[-1] == "convergence"
    assert [line.rpartition(",")[2] for line in lines] == ["not converged"] * 5 + ["converged"] * 5
