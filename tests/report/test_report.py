"""The comparison: which runs are paired, what is refused, what the numbers are, what is written."""

from __future__ import annotations

import csv
import io
import json
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from rich.console import Console
from scipy import stats

from fl_app.cli.jobs import Job
from fl_app.cli.sweep import summarise
from fl_app.config.schema import Config
from fl_app.config.serialization import flatten, from_dict
from fl_app.errors import InputError
from fl_app.report import (
    Comparison,
    Interval,
    RunSummary,
    TextTable,
    check_sound,
    compare,
    comparison_blocks,
    expect,
    find_finished,
    read_runs,
    read_these,
    select,
    show,
    summary_blocks,
    summary_table,
    to_markdown,
    to_text,
    write_report,
)
from fl_app.report.intervals import mean_and_sd, mean_difference
from fl_app.report.rendering import decimals_for
from fl_app.report.runs import is_better_when_higher, tell_apart
from fl_app.report.writing import as_csv, as_dict
from fl_app.tracking.mlflow.backend import MlflowStore
from tests.kit import fl_kit

ACCURACY = "server/accuracy"
SEED_DRAWS_TEST = {
    "data.sha256": "d" * 64,
    "data.seed_draws": "test",
    "data.rows": "100",
    "data.test_rows": "20",
    "data.train_rows": "72",
    "data.validation_rows": "8",
}
"""Tags of runs whose seed draws 20 of 100 rows for the test: n_test / n_train is 20 / 80."""
NOTHING_TO_TUNE = {**SEED_DRAWS_TEST, "config.without_effect": "model.learning_rate"}
"""The same, of which strict claims are made untuned; what is tuned is in test_tuning.py."""
VALUES = st.floats(-100, 100, allow_nan=False).map(lambda v: round(v, 3))


def run(
    strategy: str = "fedavg",
    seed: int = 0,
    curve: Sequence[float] = (0.1, 0.5),
    metric: str = ACCURACY,
    costs: Sequence[float] | None = (10.0,),
    tags: Mapping[str, str] | None = None,
    **params: Any,
) -> RunSummary:
    """Make a run by hand: a value for each round, and what each round sends up (down: the same)."""
    base = {"strategy.name": strategy, "seed": str(seed), "dataset.name": "wine"}
    curves = {metric: dict(enumerate(curve))}
    if costs is not None:
        each = [costs[min(r, len(costs) - 1)] for r in range(len(curve) - 1)]
        sent = dict(enumerate(np.cumsum(each).tolist(), start=1))
        curves |= {"cost/bytes_up": sent, "cost/bytes_down": sent}
    return RunSummary(
        run_id=f"{strategy}-{seed}-{'-'.join(params.values())}",
        params=base | {name.replace("__", "."): value for name, value in params.items()},
        tags=SEED_DRAWS_TEST if tags is None else tags,
        curves=curves,
        metrics={name: values[max(values)] for name, values in curves.items() if values},
        name=f"{strategy} s{seed}",
    )


def ending(strategy: str, ends: Sequence[float], **params: Any) -> list[RunSummary]:
    """Make runs with seeds 0, 1, ... that end with given values."""
    return [run(strategy, seed, (0.0, end), **params) for seed, end in enumerate(ends)]


FLAT = {"eval/log_loss": {1: 1.0} | dict.fromkeys(range(2, 13), 0.5)}
"""The curve of a run of 12 rounds that has converged."""


def settled(runs: Sequence[RunSummary], metric: str = ACCURACY) -> list[RunSummary]:
    """Let runs go on to round 12 without any change, with an eval loss that says so."""
    return [
        replace(r, curves={**FLAT, **r.curves, metric: {**curve, **dict.fromkeys(rest, end)}})
        for r in runs
        for curve in [r.curves[metric]]
        for rest, end in [(range(max(curve), 13), curve[max(curve)])]
    ]


def difference(comparison: Comparison, level: str) -> Interval:
    """Return a level's difference over all cells."""
    rows = {row.level: row for row in comparison.at_rounds.overall}
    found = rows[level].difference
    assert found is not None
    return found


def ends(interval: Interval) -> tuple[float, float]:
    """Return both ends of an interval that has them."""
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


# ---------------------------------------------------------------------------- statistics
pairs_of_values = st.lists(
    st.tuples(VALUES, VALUES), min_size=3, max_size=8, unique_by=lambda p: round(p[0] - p[1], 3)
)


@given(pairs_of_values)
def test_one_cell_is_the_paired_t_test(values: list[tuple[float, float]]) -> None:
    """In one cell the plain interval is that of scipy's paired t-test."""
    ours, theirs = (np.array(column) for column in zip(*values, strict=True))
    found = mean_difference({"": {str(i): a - b for i, (a, b) in enumerate(values)}})
    assert found.mean == pytest.approx(float(np.mean(ours - theirs)), abs=1e-9)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert ends(found) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)
    assert found.kind == "t"


@given(pairs_of_values, st.floats(0.01, 3))
def test_one_cell_is_nadeaus_and_bengios_t(values: list[tuple[float, float]], ratio: float) -> None:
    """Corrected, the variance of the mean is s^2 (1/J + n_test/n_train), with J - 1 degrees."""
    d = np.array([a - b for a, b in values])
    found = mean_difference({"": {str(i): v for i, v in enumerate(d)}}, None, {"": ratio})
    half = stats.t.ppf(0.975, len(d) - 1) * math.sqrt(d.var(ddof=1) * (1 / len(d) + ratio))
    assert ends(found) == pytest.approx((d.mean() - half, d.mean() + half), rel=1e-6, abs=1e-9)
    assert found.kind == "corrected t"


@given(st.lists(st.lists(VALUES, min_size=4, max_size=4), min_size=1, max_size=4))
def test_correction_of_cells_with_the_same_seeds(cells: list[list[float]]) -> None:
    """Cells of one data set: the corrected t on each seed's mean over the cells."""
    made = {str(c): {str(s): v for s, v in enumerate(row)} for c, row in enumerate(cells)}
    means = np.mean(cells, axis=0)
    one = mean_difference({"": {str(s): v for s, v in enumerate(means)}}, None, {"": 0.25})
    if np.ptp(means) > 1e-6:
        found = mean_difference(made, None, dict.fromkeys(made, 0.25))
        assert ends(found) == pytest.approx(ends(one), rel=1e-5, abs=1e-7)


def test_correction_of_two_data_sets_is_each_ones_own() -> None:
    """Variances of data sets add up, each with its ratio; degrees of freedom by their shares."""
    x, y = np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0, 1.0, 5.0])
    cells = {n: {str(s): float(v) for s, v in enumerate(c)} for n, c in (("x", x), ("y", y))}
    found = mean_difference(cells, {"x": "wine", "y": "iris"}, {"x": 0.25, "y": 1.0})
    one, two = x.var(ddof=1) * (1 / 3 + 0.25) / 4, y.var(ddof=1) * (1 / 4 + 1.0) / 4
    freedom = (one + two) ** 2 / (one**2 / 2 + two**2 / 3)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(one + two)
    assert ends(found) == pytest.approx((found.mean - half, found.mean + half))


@given(
    st.integers(3, 5).flatmap(
        lambda n: st.lists(st.lists(VALUES, min_size=n, max_size=n), min_size=1, max_size=4)
    )
)
def test_cells_of_one_data_set_are_one_value_a_seed(cells: list[list[float]]) -> None:
    """Cells with the same seeds: the interval is that of each seed's mean over the cells."""
    found = mean_difference(
        {str(c): {str(s): v for s, v in enumerate(row)} for c, row in enumerate(cells)}
    )
    seeds = np.mean(cells, axis=0)
    if np.ptp(seeds) > 1e-6:
        expected = stats.ttest_1samp(seeds, 0).confidence_interval(0.95)
        assert ends(found) == pytest.approx((expected.low, expected.high), rel=1e-5, abs=1e-7)


@given(
    st.lists(VALUES, min_size=3, max_size=6, unique=True),
    st.lists(VALUES, min_size=3, max_size=6, unique=True),
)
def test_cells_of_two_data_sets_are_welchs(one: list[float], other: list[float]) -> None:
    """Two data sets have nothing in common: half of Welch's interval for a - (-b)."""
    cells = {
        "x": {str(s): v for s, v in enumerate(one)},
        "y": {str(s): v for s, v in enumerate(other)},
    }
    found = mean_difference(cells, {"x": "wine", "y": "iris"})
    welch = stats.ttest_ind(one, [-v for v in other], equal_var=False).confidence_interval(0.95)
    assert ends(found) == pytest.approx((welch.low / 2, welch.high / 2), rel=1e-6, abs=1e-9)


def test_a_cell_counts_once_whatever_its_seeds() -> None:
    """The estimate is the mean of the cells' means, not of the pairs."""
    cells = {"x": dict.fromkeys("0123", 1.0), "y": {"0": -1.0, "1": 0.0, "2": 1.0}}
    found = mean_difference(cells)
    assert (found.mean, found.num_pairs) == ((1.0 + 0.0) / 2, 7)
    mean, sd = mean_and_sd({"x": {"0": 1.0, "1": 3.0}, "y": {"0": 0.0, "1": 0.0}})
    assert mean == 1.0
    assert sd == pytest.approx(math.sqrt((2.0 + 0.0) / 2))


def test_too_few_or_equal_differences_have_no_interval() -> None:
    """Two pairs that differ by one row, or any number that all do, tell nothing of the spread."""
    row = 2.0**-5
    for pairs, kind, lack in (
        ([row], "none", "1 of the 3 pairs that an interval needs"),
        ([row, row], "none", "2 of the 3 pairs that an interval needs"),
        ([row] * 6, "none", "all differences are equal, which tells nothing of the spread"),
        ([0.0] * 6, "undecided", "all differences are 0"),
    ):
        found = mean_difference({"": {str(s): v for s, v in enumerate(pairs)}}, None, {"": 0.25})
        assert found == Interval(pairs[0], None, None, len(pairs), kind, lack)
    assert mean_difference({"x": dict.fromkeys("0123", 0.5), "y": {"0": 0.0, "1": 1.0}}).low is None


def test_rounding_is_no_difference() -> None:
    """0.7 - 0.6 and 0.8 - 0.7 are equal though their floats are not; so are 0.1 + 0.2 and 0.3."""
    assert 0.7 - 0.6 != 0.8 - 0.7
    equal = compare([*ending("fedavg", [0.6, 0.7, 0.5]), *ending("x", [0.7, 0.8, 0.6])])
    assert difference(equal, "x").kind == "none"
    same = compare([*ending("fedavg", [0.3, 0.3, 0.3]), *ending("x", [0.1 + 0.2, 0.3, 0.3])])
    assert difference(same, "x").kind == "undecided"


@given(pairs_of_values, VALUES)
def test_shifting_a_level_shifts_its_difference(
    values: list[tuple[float, float]], shift: float
) -> None:
    """All values of one level up by d: the difference is up by d and as wide as before."""
    base = ending("fedavg", [b for _, b in values])
    before, after = (
        difference(compare([*base, *ending("fedadam", [a + d for a, _ in values])]), "fedadam")
        for d in (0.0, shift)
    )
    assert after.mean - before.mean == pytest.approx(shift, abs=1e-9)
    widths = [end[1] - end[0] for end in (ends(before), ends(after))]
    assert widths[1] == pytest.approx(widths[0], abs=1e-9)


@given(pairs_of_values)
def test_exchanging_level_and_baseline_mirrors_everything(
    values: list[tuple[float, float]],
) -> None:
    """With the other level as the baseline signs change, and wins are losses."""
    runs = [*ending("fedavg", [b for _, b in values]), *ending("fedadam", [a for a, _ in values])]
    one = compare(runs, baseline="strategy=fedavg").at_rounds.overall[1]
    other = compare(runs, baseline="strategy=fedadam").at_rounds.overall[1]
    assert one.difference is not None
    assert other.difference is not None
    assert one.difference.mean == -other.difference.mean
    assert ends(one.difference) == pytest.approx([-e for e in ends(other.difference)[::-1]])
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)


# ---------------------------------------------------------------------------- pairing
def grid() -> list[RunSummary]:
    """Make three strategies, one of them twice, in two cells with three seeds."""
    mu: dict[str, Any] = {"strategy__proximal_mu": "0.01"}
    other_mu: dict[str, Any] = {"strategy__proximal_mu": "0.1"}
    made = []
    for alpha in ("0.1", "0.5"):
        for seed in range(3):
            base = 0.1 * seed + float(alpha)
            cell: dict[str, Any] = {"partitioner__alpha": alpha}
            made += [
                run("fedavg", seed, (0, base), **cell),
                run("fedadam", seed, (0, base + 0.2 / (1 + seed)), **cell),
                run("fedprox", seed, (0, base + 0.1), **cell, **mu),
                run("fedprox", seed, (0, base + 0.3), **cell, **other_mu),
            ]
    return made


@given(st.permutations(grid()))
def test_order_of_runs_changes_nothing(shuffled: list[RunSummary]) -> None:
    """Runs in any order: the same comparison, bit for bit."""
    assert compare(shuffled) == compare(grid())
    assert as_dict(compare(shuffled)) == as_dict(compare(grid()))


def test_levels_are_told_apart() -> None:
    """A value with several configurations has a row for each, labelled by what differs."""
    assert compare(grid()).levels == (
        "fedavg",
        "fedadam",
        "fedprox proximal_mu=0.01",
        "fedprox proximal_mu=0.1",
    )
    text = "--baseline=strategy=fedprox: one of several with that value: "
    with pytest.raises(InputError, match=text + "fedprox proximal_mu=0.01; fedprox prox"):
        compare(grid(), baseline="strategy=fedprox")
    chosen = compare(grid(), baseline="strategy=fedprox proximal_mu=0.1")
    assert difference(chosen, "fedprox proximal_mu=0.01").mean == pytest.approx(0.1 - 0.3)


def test_cells_are_paired_within() -> None:
    """Each cell has rows of its own; over all cells the worst is named."""
    comparison = compare(grid())
    assert [cell.label for cell in comparison.cells] == [
        "alpha=0.1",
        "alpha=0.5",
    ]
    changed = [
        replace(r, curves={ACCURACY: {1: r.curves[ACCURACY][1] - 0.06}})
        if (r.params["partitioner.alpha"], r.params["strategy.name"]) == ("0.5", "fedadam")
        else r
        for r in grid()
    ]
    row = compare(changed).at_rounds.overall[1]
    mean = 0.2 * (1 + 1 / 2 + 1 / 3) / 3
    assert row.worst_cell is not None
    assert row.worst_cell[0] == "alpha=0.5"
    assert row.worst_cell[1] == pytest.approx(mean - 0.06)
    assert row.difference is not None
    assert row.difference.mean == pytest.approx(mean - 0.06 / 2)
    assert (row.num_runs, row.wins) == (6, 6)


def config_runs() -> list[RunSummary]:
    """Make two strategies with three seeds and every param of a real config."""
    made = []
    for strategy in ("fedavg", "fedadam"):
        for seed in range(3):
            params = flatten(from_dict({"strategy": {"name": strategy}, "seed": seed}))
            made.append(replace(run(strategy, seed), params=params))
    return made


@pytest.mark.parametrize("name", flatten(Config()))
def test_pairing_ignores_nothing_but_the_stated(name: str) -> None:
    """A run that differs in any param but the key's, seed, runtime and tracking has no partner."""
    runs = config_runs()
    runs[0] = replace(runs[0], params={**runs[0].params, name: "other"})
    if name.startswith(("runtime.", "tracking.")):
        before, after = as_dict(compare(config_runs())), as_dict(compare(runs))
        assert before == after
        return
    with pytest.raises(InputError) as caught:
        compare(runs)
    assert caught.value.field == {"seed": "seed", "strategy.name": "seed"}.get(name, name)


def test_ignored_params_may_differ() -> None:
    """What is ignored makes no cell, by its name, by a pattern, by its group."""
    runs = [
        *ending("fedavg", [0.1, 0.2], model__learning_rate="0.1"),
        *ending("fedadam", [0.2, 0.3], model__learning_rate="0.5", strategy__eta="1"),
    ]
    with pytest.raises(InputError) as caught:
        compare(runs)
    assert str(caught.value) == (
        "model.learning_rate=0.5 and 0.1: strategy=fedadam was run with 0.5, strategy=fedavg only "
        "with 0.1; run both alike, choose runs with --where model.learning_rate=... or --sweep, or "
        "--ignore model.learning_rate if paired runs may differ in it"
    )
    for pattern in ("model.learning_rate", "*.learning_rate", "model"):
        assert difference(compare(runs, ignore=[pattern]), "fedadam").mean == pytest.approx(0.1)
    assert (
        "--ignore model.l3: no run has such a param"
        in compare(runs, ignore=["model", "model.l3"]).notes
    )


def test_ignoring_works_below_the_key() -> None:
    """An option of the compared group that is ignored makes no level of its own."""
    runs = [*ending("fedavg", [0.1, 0.2]), *ending("fedadam", [0.2], strategy__eta="1")]
    runs.append(run("fedadam", 1, (0, 0.3), strategy__eta="2"))
    assert compare(runs, ignore=["strategy.eta"]).levels == ("fedavg", "fedadam")
    with pytest.raises(InputError, match="seed=1: another seed set: strategy=fedadam eta=1 has no"):
        compare(runs)


def test_what_is_ignored_never_chooses_a_run() -> None:
    """Two runs of one level and seed that differ in an ignored param are refused, not picked."""
    runs = [
        *ending("fedavg", [0.1, 0.2]),
        *ending("fedadam", [0.2, 0.3], model__learning_rate="0.5"),
        *ending("fedadam", [0.2, 0.3], model__learning_rate="0.1"),
    ]
    with pytest.raises(
        InputError, match=r"model.learning_rate=0.5 and 0.1|=0.1 and 0.5: one value"
    ):
        compare(runs, ignore=["model.learning_rate"])
    chosen = select(runs, ["strategy=fedavg,fedadam"])
    assert len(chosen) == len(runs)
    assert len(select(runs, ["model.learning_rate=.5"])) == 2


def test_any_param_can_be_the_key() -> None:
    """A param outside of groups, a number typed otherwise, a model: all compare."""
    runs = [
        *ending("fedavg", [0.1, 0.2], num_clients="2"),
        *ending("fedavg", [0.3, 0.5], num_clients="10"),
    ]
    comparison = compare(runs, baseline="num_clients=2.0")
    assert comparison.levels == ("2", "10")
    assert difference(comparison, "10").mean == pytest.approx((0.2 + 0.3) / 2)
    assert compare(grid(), baseline="alpha=.1") == compare(grid(), baseline="partitioner.alpha=0.1")
    alpha = compare(grid(), baseline="partitioner.alpha=.1")
    assert difference(alpha, "0.5").mean == pytest.approx(0.4)
    models = [*ending("fedavg", [0.1, 0.2], model__name="mlp", model__hidden_units="8")]
    models += ending("fedavg", [0.1, 0.3], model__name="softmax")
    assert difference(compare(models, baseline="model=mlp"), "softmax").mean == pytest.approx(0.05)


def test_newest_of_repeated_runs_counts() -> None:
    """Of runs with one config and seed the newest FINISHED one counts, and a note says so."""
    old = replace(run("fedavg", 0, (0, 0.9)), run_id="old", start_ms=1)
    new = replace(run("fedavg", 0, (0, 0.4)), run_id="new", start_ms=2)
    later = replace(run("fedavg", 0, (0, 0.9)), run_id="bad", start_ms=3, status="FAILED")
    comparison = compare([new, later, old, run("fedadam", 0, (0, 0.5))])
    assert difference(comparison, "fedadam").mean == pytest.approx(0.1)
    assert (
        "1 run repeats another with the same config and seed; the newest FINISHED one counts"
        in (comparison.notes)
    )


def test_unfinished_runs_are_told() -> None:
    """Runs that did not finish are counted, with why they failed."""
    failed = replace(run("krum", 3), status="FAILED", error="DataError: no rows")
    running = replace(run("krum", 4), status="RUNNING", curves={})
    finished = [*ending("fedavg", [1, 2, 3]), *ending("fedadam", [1, 2, 4])]
    comparison = compare([*finished, failed, running])
    assert comparison.levels == ("fedavg", "fedadam")
    assert comparison.notes == ("left out: 1 FAILED (krum s3: DataError: no rows), 1 RUNNING",)


# ---------------------------------------------------------------------------- refusals
def _with(runs: list[RunSummary], index: int, **changes: Any) -> list[RunSummary]:
    params = changes.pop("params", {})
    changed = replace(runs[index], **changes)
    runs[index] = replace(changed, params={**changed.params, **params})
    return runs


def both() -> list[RunSummary]:
    """Make two strategies with seeds 0 and 1."""
    split = {"dataset__test_fraction": "0.2"}
    return [*ending("fedavg", [0.1, 0.2], **split), *ending("fedadam", [0.3, 0.2], **split)]


REFUSED: dict[str, tuple[list[RunSummary], dict[str, Any], str]] = {
    "data": (
        _with(both(), 1, tags={"data.sha256": "e" * 64}),
        {},
        f"data.sha256={'e' * 12} and {'d' * 12}|{'d' * 12} and {'e' * 12}: other data: strategy=",
    ),
    "data unknown of one": (
        _with(both(), 1, tags={}),
        {},
        f"data.sha256={'d' * 12} and none: other data: strategy=fedadam and fedavg with seed=1",
    ),
    "split": (
        [_with(both(), i, params={"dataset.test_fraction": "0.3"})[i] for i in (0, 1)] + both()[2:],
        {},
        "dataset.test_fraction=0.3 and 0.2: another split: strategy=fedavg was run with 0.3, "
        "strategy=fedadam only with 0.2; run both alike, choose runs with .* or --sweep$",
    ),
    "ignored split": (
        _with(both(), 0, params={"dataset.test_fraction": "0.3"}),
        {"ignore": ["dataset.*"]},
        "dataset.test_fraction=0.2 and 0.3: another split: strategy=fedadam and fedavg with seed=0",
    ),
    "seeds": (
        [*both(), run("fedavg", 7, dataset__test_fraction="0.2")],
        {},
        "seed=7: another seed set: strategy=fedadam has no FINISHED run with it, others have",
    ),
    "seed failed": (
        _with(both(), 3, status="FAILED", error="DataError: why"),
        {},
        r"seed=1: .*=fedadam has no FINISHED run with it \(seed=1 is FAILED: DataError: why\)",
    ),
    "all seeds of a cell failed": (
        [
            *both(),
            run("fedavg", 0, num_clients="3", dataset__test_fraction="0.2"),
            replace(
                run("fedadam", 0, num_clients="3", dataset__test_fraction="0.2"),
                status="FAILED",
                error="broke",
            ),
        ],
        {},
        r"seed=0: .* with it at num_clients=3 \(seed=0 is FAILED: broke\)",
    ),
    "metric": (
        _with(both(), 2, curves={}, metrics={"server/mse": 1.0}),
        {},
        "--metric=server/accuracy: fedadam s0 has no such metric; it has server/mse",
    ),
    "curve not read": (both(), {"metric": "cost/bytes"}, "--metric=cost/bytes: .* it has server/a"),
    "no such level": (
        both(),
        {"baseline": "strategy=krum"},
        "--baseline=strategy=krum: one that was run: fedadam; fedavg",
    ),
    "no such key": (both(), {"baseline": "x=1"}, "--baseline=x: a param .* example dataset, str"),
    "no key": (both(), {"baseline": "fedavg"}, "--baseline=fedavg: KEY=VALUE, for example strat"),
    "seed as key": (both(), {"baseline": "seed=0"}, "runs are paired by their seed"),
    "no seed": (
        [replace(r, params={"strategy.name": "fedavg"}) for r in both()],
        {},
        "seed=null: a seed in every run; fedavg s0 has none",
    ),
    "nothing finished": (
        [replace(r, status="RUNNING") for r in both()],
        {},
        "status=RUNNING: runs that FINISHED; there is none",
    ),
    "no run": ([], {}, "--baseline=strategy: a param of the runs"),
    "tolerance": (both(), {"tolerance": -1.0}, "--tolerance=-1.0: a finite number >= 0"),
    "no common round": (
        _with(both(), 0, curves={ACCURACY: {9: 0.1}}),
        {},
        "--metric=server/accuracy: a round in common; fedadam s0 and fedavg s0 have none",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_comparable_is_refused(case: str) -> None:
    """Each mistake is one line that names the field, both values and what to do."""
    runs, options, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        compare(runs, **options)
    assert "\n" not in str(caught.value)


def test_files_are_data_sets_as_names_are() -> None:
    """Seeds of two files have nothing in common: the interval is that of two named sets."""
    gains = {"a": (0.1, 0.2, 0.35), "b": (0.3, 0.15, 0.1)}

    def compared(params_of: Callable[[str], dict[str, str]]) -> Interval:
        runs = [
            replace(
                r,
                params={**r.params, **params_of(name)},
                tags={**SEED_DRAWS_TEST, "data.sha256": name},
            )
            for name, own in gains.items()
            for r in [*ending("fedavg", (0.5,) * 3), *ending("fedadam", [0.5 + g for g in own])]
        ]
        return difference(compare(runs), "fedadam")

    by_name = compared(lambda name: {"dataset.name": name})
    by_file = compared(lambda name: {"dataset.name": "tabular", "dataset.path": f"{name}.csv"})
    as_one = compared(lambda name: {"dataset.name": "tabular", "partitioner.alpha": name})
    assert by_file == by_name
    assert ends(by_file) != ends(as_one)


def test_data_sets_are_cells_and_never_levels() -> None:
    """Runs on two data sets make two cells; compared with each other they are refused."""
    wine, iris = (
        both(),
        [
            replace(r, params={**r.params, "dataset.name": "iris"}, tags={"data.sha256": "i" * 64})
            for r in both()
        ],
    )
    assert [c.label for c in compare([*wine, *iris]).cells] == ["dataset=iris", "dataset=wine"]
    with pytest.raises(InputError, match=r"data.sha256=.*: other data: .*dataset=(iris|wine) and"):
        compare([*wine, *iris], baseline="dataset=wine")


def test_nothing_known_of_the_data_is_a_note() -> None:
    """Where no run knows its data, as in a deployment, the report says so."""
    runs = [replace(r, tags={}) for r in both()]
    assert any("data.sha256" in note for note in compare(runs).notes)


# ---------------------------------------------------------------------------- data and makers
def of_file(path: str, sha256: str, strategy: str = "fedavg", **params: Any) -> list[RunSummary]:
    """Make runs on a table of somebody's own."""
    tags = SEED_DRAWS_TEST | {"data.sha256": sha256 * 64}
    where = {"dataset__name": "tabular", "dataset__path": path, "num_clients": "4"}
    return ending(strategy, [0.1, 0.3], tags=tags, **where, **params)


def test_a_report_names_its_data() -> None:
    """A line for each data set: file or name, rows, digest, clients; the JSON has it whole."""
    runs = [
        one
        for name in ("fedavg", "x")
        for one in (
            *ending(name, [0.1, 0.2], num_clients="10"),
            *ending(name, [0.1, 0.2], num_clients="9"),
            *of_file("/data/x.csv", "e", name),
        )
    ]
    comparison = compare(runs)
    lines = [b for b in comparison_blocks(comparison) if isinstance(b, str)]
    assert [line for line in lines if line.startswith("data: ")] == [
        "data: /data/x.csv, 100 rows, data.sha256 eeeeeeeeeeee, 4 clients",
        "data: wine, 100 rows, data.sha256 dddddddddddd, 9, 10 clients",
    ]
    told = as_dict(comparison)["data"]
    assert [(one["names"], one["sha256"]) for one in told] == [
        (["/data/x.csv"], ["e" * 64]),
        (["wine"], ["d" * 64]),
    ]


def test_each_seed_may_have_a_table_of_its_own() -> None:
    """Of synthetic sets a line names some of the digests; runs that tell nothing are said to."""
    runs = [
        replace(one, tags={**SYNTHETIC, "data.sha256": one.seed * 64})
        for name in ("fedavg", "x")
        for one in ending(name, [0.1, 0.2, 0.3, 0.4, 0.5])
    ]
    text = to_text(comparison_blocks(compare(runs)))
    digests = ", ".join(seed * 12 for seed in "012")
    assert f"data: wine, 100 rows, data.sha256 {digests} and 2 more, ? clients" in text
    text = to_text(comparison_blocks(compare([replace(one, tags={}) for one in runs])))
    assert "data: wine, rows not told, data.sha256 not told, ? clients" in text
    assert "all runs made by: no commit told, no versions told" in text


def test_a_report_names_what_made_its_runs() -> None:
    """Commit and versions are those of the runs, with how many have them where they differ."""
    tags = {**SEED_DRAWS_TEST, "git.commit": "abc" * 12, "versions": "Python 3.12.3, numpy 2.4.0"}
    runs = [replace(one, tags=tags) for one in both()]
    comparison = compare(runs)
    line = "all runs made by: commit abcabcabcabc, Python 3.12.3, numpy 2.4.0"
    assert line in comparison_blocks(comparison)
    assert f"- {line}\n" in to_markdown(comparison_blocks(comparison))
    runs[0] = replace(runs[0], tags={**tags, "git.commit": "f" * 40})
    text = to_text(comparison_blocks(compare(runs)))
    assert "3 runs made by: commit abcabcabcabc, Python" in text
    assert "1 run made by: commit ffffffffffff, Python" in text


def test_the_same_bytes_under_two_paths_are_one_data_set() -> None:
    """Where digests are equal seed by seed, the path keeps no levels apart; it is named twice."""
    runs = [*of_file("/a/x.csv", "e"), *of_file("/b/y.csv", "e", "x")]
    comparison = compare(runs)
    assert [cell.label for cell in comparison.cells] == [""]
    assert difference(comparison, "x").num_pairs == 2
    text = to_text(comparison_blocks(comparison))
    assert "data: /a/x.csv = /b/y.csv, 100 rows, data.sha256 eeeeeeeeeeee, 4 clients" in text
    # The third path has these bytes by way of the second: one seed each.
    third = [of_file("/c/z.csv", "f", "x")[1], of_file("/b/y.csv", "e", "x")[0]]
    third += [of_file("/a/x.csv", "e")[0], of_file("/b/y.csv", "f")[1]]
    third = [replace(one, tags={**one.tags, "data.seed_draws": "table"}) for one in third]
    assert [cell.label for cell in compare(third).cells] == [""]
    with pytest.raises(InputError, match=r"--baseline=dataset.path=/b/y.csv: one that was run"):
        compare(of_file("/a/x.csv", "e"), baseline="dataset.path=/b/y.csv")
    assert compare(
        runs[:2] + of_file("/b/y.csv", "e"), baseline="dataset.path=/a/x.csv"
    ).levels == (
        "/a/x.csv",
        "/b/y.csv",
    )


def test_seeds_of_a_level_saw_the_same_data() -> None:
    """A file that changed between seeds is not averaged over, though each pair saw one of both."""
    runs = [
        replace(one, tags={**one.tags, "data.sha256": ("a" if one.seed < "2" else "b") * 64})
        for name in ("fedavg", "x")
        for one in ending(name, [0.1, 0.2, 0.3, 0.4], tags=SEED_DRAWS_TEST)
    ]
    with pytest.raises(InputError) as caught:
        compare(runs)
    assert str(caught.value) == (
        f"data.sha256={'a' * 12} and {'b' * 12}: other data: strategy=fedavg saw one with "
        "seed=0,1, another with seed=2,3; choose runs with --sweep, or run all seeds on the same"
    )
    drawn = [replace(one, tags={**one.tags, "data.seed_draws": "table"}) for one in runs]
    assert difference(compare(drawn), "x").num_pairs == 4


def test_other_bytes_are_another_data_set() -> None:
    """Different bytes keep paths apart, and are refused under one; unknown ones are no other's."""
    a, b = of_file("/a/x.csv", "e"), of_file("/b/y.csv", "f", "x")
    with pytest.raises(InputError, match=r"dataset.path=/b/y.csv and /a/x.csv: .* only with"):
        compare([*a, *b])
    with pytest.raises(InputError, match=r"data.sha256=.*: other data: strategy="):
        compare([*a, *of_file("/a/x.csv", "f", "x")])
    with pytest.raises(InputError, match=r"data.sha256=.*: other data: strategy="):
        compare([*a, b[1], of_file("/b/y.csv", "e", "x")[0]])
    silent = [replace(one, tags={}) for one in of_file("/b/y.csv", "e", "x")]
    with pytest.raises(InputError, match=r"dataset.path=/b/y.csv and /a/x.csv"):
        compare([*a, *silent])


def test_where_takes_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is meant from the current folder; others are texts as before, and lists work."""
    monkeypatch.chdir(tmp_path)
    runs = [*of_file(f"{tmp_path}/data/x.csv", "e"), *of_file(f"{tmp_path}/y.csv", "f", "x")]
    for text in ("data/x.csv", "./data/../data/x.csv", f"{tmp_path}/data/x.csv"):
        assert select(runs, [f"dataset.path={text}"]) == tuple(runs[:2])
    assert select(runs, [f"path=y.csv,{tmp_path}/data/x.csv"]) == tuple(runs)
    copy = of_file("/b/copy.csv", "e", "z")
    assert select([*runs, *copy], ["dataset.path=data/x.csv"]) == (*runs[:2], *copy)
    assert select([*runs, *copy], ["path=y.csv"]) == tuple(runs[2:])
    odd = [replace(r, params={**r.params, "dataset.path": f"{tmp_path}/a, b.csv"}) for r in copy]
    odd = [replace(r, tags={"data.sha256": "odd"}) for r in odd]
    assert select([*runs, *odd], ["path=a, b.csv"]) == tuple(odd)
    for both in ("a, b.csv,y.csv", "y.csv, a, b.csv"):
        assert select([*runs, *odd], [f"path={both}"]) == (*runs[2:], *odd)
    values = ('["a", "b"]', '["c"]')
    lists = [replace(r, params={"m": m}) for r, m in zip(runs[:2], values, strict=True)]
    assert select(lists, ["m=[c],[a,b]"]) == tuple(lists)
    assert select(lists, ["m=[a,b]"]) == (lists[0],)
    for text in ("dataset.path=z.csv", "dataset.path=y.csv,z.csv", "strategy=./x"):
        with pytest.raises(InputError, match=r"--where=.*: values that runs have: "):
            select(runs, [text])


# ---------------------------------------------------------------------------- r2 beside mse
def test_r2_stands_beside_mse() -> None:
    """Of the same runs at the same rounds, with the unit of the mse; beside r2 stands mse."""
    mse, r2 = {1: 9.0, 2: 4.0}, {1: 0.1, 2: 0.6}
    runs = [
        replace(one, curves={"server/mse": mse, "server/r2": {r: v + gain for r, v in r2.items()}})
        for name, gain in (("fedavg", 0.0), ("x", 0.2))
        for one in ending(name, [0, 0, 0])
    ]
    comparison = compare(runs, metric="server/mse")
    head, *_ = blocks = comparison_blocks(comparison)
    assert str(head).startswith("server/mse (lower is better, in squared units of the target): ")
    table = next(b for b in blocks if isinstance(b, TextTable))
    assert table.columns[:4] == ("strategy", "seeds", "mean ± sd", "r2")
    assert [row[3] for row in table.rows] == ["0.6", "0.8"]
    assert as_dict(comparison)["tables"]["equal_rounds"]["rows"][1]["beside"] == pytest.approx(0.8)
    assert [row.beside for row in compare(runs, metric="server/r2").at_rounds.rows] == [4.0, 4.0]
    short = [
        *runs[:3],
        *(replace(r, curves={**r.curves, "server/mse": {1: 9.0}}) for r in runs[3:]),
    ]
    rows = compare(short, metric="server/mse").at_rounds.rows
    assert rows[1].beside == pytest.approx(0.3)  # both at round 1
    without = [replace(r, curves={"server/mse": mse}) for r in runs]
    assert "r2" not in to_text(comparison_blocks(compare(without, metric="server/mse")))


# ---------------------------------------------------------------------------- budgets
def test_equal_rounds_is_the_last_round_of_both() -> None:
    """A longer run counts at the shorter one's last round."""
    runs = [run("fedavg", 0, (0, 0.5, 0.6)), run("fedadam", 0, (0, 0.4, 0.7, 0.9))]
    (pair,) = compare(runs).at_rounds.pairs["fedadam"]
    assert (pair.level.server_round, pair.baseline.server_round) == (2, 2)
    assert pair.difference == pytest.approx(0.7 - 0.6)


def test_equal_bytes_is_the_last_round_within_the_smaller_total() -> None:
    """Rounds of 10 + 10 bytes against rounds of 35 + 35: the budget is 40, the other's round 0."""
    cheap = run("fedavg", 0, (0.1, 0.5, 0.6), costs=[10])
    dear = run("fedadam", 0, (0.2, 0.8, 0.9), costs=[35])
    table = compare([cheap, dear]).at_bytes
    assert table is not None
    (pair,) = table.pairs["fedadam"]
    assert (pair.level.server_round, pair.level.value, pair.level.bytes) == (0, 0.2, 0.0)
    assert (pair.baseline.server_round, pair.baseline.value, pair.baseline.bytes) == (2, 0.6, 40.0)


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    st.lists(st.integers(1, 1000), min_size=1, max_size=6),
)
def test_no_run_exceeds_the_budget(one: list[int], other: list[int]) -> None:
    """Both runs count within the smaller total, and one of them at its end."""
    runs = [
        run("fedavg", 0, [0.0] * (len(one) + 1), costs=one),
        run("fedadam", 0, [0.0] * (len(other) + 1), costs=other),
    ]
    table = compare(runs).at_bytes
    assert table is not None
    (pair,) = table.pairs["fedadam"]
    totals = [2.0 * sum(costs) for costs in (other, one)]
    sent = [pair.level.bytes, pair.baseline.bytes]
    assert all(b is not None and b <= min(totals) for b in sent)
    assert sent[totals.index(min(totals))] == min(totals)


def test_one_byte_too_many_costs_the_round() -> None:
    """There is no slack: who sends more than the other one's total counts a round earlier."""
    runs = [run("fedavg", 0, (0, 0.5, 0.6), costs=[1000]), run("x", 0, (0, 0.4, 0.7), costs=[1001])]
    table = compare(runs).at_bytes
    assert table is not None
    assert [p.level.server_round for p in table.pairs["x"]] == [1]


@pytest.mark.parametrize("broken", ["no bytes", "no value in reach", "older bytes"])
def test_without_bytes_there_is_no_such_table(broken: str) -> None:
    """Where bytes are unknown, or no value is within the budget, a note stands for the table."""
    if broken == "no bytes":
        runs = [run("fedavg", 0), run("fedadam", 0, costs=None)]
    elif broken == "older bytes":  # which counted the run's description too
        runs = [run("fedavg", 0), run("fedadam", 0, costs=[1000.0])]
        tags = {k: v for k, v in runs[0].tags.items() if k != "data.seed_draws"}
        runs = [
            replace(runs[0], tags=tags),
            replace(runs[1], tags={"data.seed_draws": "test"} | runs[1].tags),
        ]
    else:
        later = {1: 0.4}
        runs = [run("fedavg", 0), run("fedadam", 0, costs=[1000.0])]
        runs = [replace(r, curves={**r.curves, ACCURACY: later}) for r in runs]
    comparison = compare(runs)
    assert comparison.at_bytes is None
    assert any("equal bytes" in note for note in comparison.notes)


# ---------------------------------------------------------------------------- wins, directions
@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("server/accuracy", True),
        ("eval_client_accuracy/worst", True),
        ("fairness/accuracy_gap", False),
        ("server/mse", False),
        ("server/log_loss", False),
        ("cost/bytes_up", False),
    ],
)
def test_direction_follows_the_name(metric: str, higher: bool) -> None:
    """Accuracies are better when higher; losses, costs and gaps when lower."""
    assert is_better_when_higher(metric, ()) is higher


def test_direction_that_only_the_run_knows() -> None:
    """What TrackedStrategy was told is the run's tag; without it the metric is refused."""
    told = replace(run("fedavg", 0, (1, 0.5)), tags={"higher_is_better": '{"niceness": true}'})
    assert is_better_when_higher("eval/niceness", [told]) is True
    with pytest.raises(InputError, match="--metric=eval/niceness"):
        is_better_when_higher("eval/niceness", [run("fedavg", 0, (1, 0.5))])


def test_wins_follow_the_direction_and_differences_do_not() -> None:
    """For mse a smaller value wins, and the difference is shown raw."""
    metric = "server/mse"
    runs = [run("fedavg", s, (9, 1.0), metric) for s in range(3)]
    runs += [run("fedadam", s, (9, end), metric) for s, end in enumerate([0.5, 1.0, 1.25])]
    comparison = compare(runs, metric=metric)
    row = comparison.at_rounds.overall[1]
    assert (row.wins, row.ties, row.losses) == (1, 1, 1)
    assert row.difference is not None
    assert row.difference.mean == pytest.approx((-0.5 + 0 + 0.25) / 3)
    wide = compare(runs, metric=metric, tolerance=0.25).at_rounds.overall[1]
    assert (wide.wins, wide.ties, wide.losses) == (1, 2, 0)
    assert "lower is better" in to_text(comparison_blocks(comparison))


def test_a_diverged_run_is_a_loss_and_no_number() -> None:
    """NaN loses to a number, makes the mean NaN and holds no expectation; JSON says null."""
    nan = math.nan
    runs = [*ending("fedavg", [0.5, 0.5, nan, nan]), *ending("fedadam", [nan, nan, 0.5, nan])]
    comparison = compare(runs)
    row = comparison.at_rounds.overall[1]
    assert (row.wins, row.ties, row.losses) == (1, 1, 2)
    assert "strategy=fedadam has no finite value with seed 0, 1, 3" in comparison.notes
    assert not expect(comparison, "fedadam>fedavg-9").holds
    assert "nan" in to_text(comparison_blocks(comparison))
    assert as_dict(comparison)["tables"]["equal_rounds"]["rows"][1]["mean"] is None
    huge = compare([*ending("fedavg", [1e300, -1e300]), *ending("x", [1, math.inf])])
    assert "x" in to_text(comparison_blocks(huge))


# ---------------------------------------------------------------------------- expectations
def gains(values: Sequence[float], metric: str = ACCURACY) -> Comparison:
    """Compare b, whose runs are 0.5, with a, which differs by given values."""
    runs = [run("b", s, (0, 0.5), metric, tags=NOTHING_TO_TUNE) for s in range(len(values))]
    runs += [run("a", s, (0, 0.5 + v), metric, tags=NOTHING_TO_TUNE) for s, v in enumerate(values)]
    return compare(settled(runs, metric), baseline="strategy=b", metric=metric)


def test_an_expectation_holds_beyond_the_intervals_end() -> None:
    """It holds exactly if the margin is below the interval's lower end."""
    comparison = gains([0.025, 0.03, 0.035])
    low, high = ends(difference(comparison, "a"))
    assert 0 < low < 0.03 < high
    for text, holds in {
        "a>b": True,
        " strategy=a > strategy=b ": True,
        f"a>b+{low - 1e-6:.9f}": True,
        f"a > b + {low + 1e-6:.9f}": False,
        "a>b-0.01": True,
        "b>a": False,
        f"b>a-{high + 1e-6:.9f}": True,
        f"b>a-{high - 1e-6:.9f}": False,
    }.items():
        assert expect(comparison, text).holds is holds, text


def test_an_expectation_follows_the_direction() -> None:
    """For a loss a>b says that a is lower."""
    comparison = gains([-0.02, -0.03, -0.04], "server/mse")
    half = stats.t.ppf(0.975, 2) * math.sqrt(0.01**2 * (1 / 3 + 20 / 80))
    assert half > 0.03
    assert not expect(comparison, "a>b").holds
    comparison = gains([-0.025, -0.03, -0.035], "server/mse")
    assert expect(comparison, "a>b").holds
    assert expect(comparison, "a>b+0.001").holds
    assert not expect(comparison, "a>b+0.03").holds
    assert not expect(comparison, "b>a").holds
    line = to_text(comparison_blocks(comparison, [expect(comparison, "a>b")]))
    half /= 2
    text = f"expected a>b: holds (difference -0.0300 [{-0.03 - half:.4f}, {-0.03 + half:+.4f}] "
    why = "3 of the 5 pairs that it needs"
    assert f"{text}corrected t; lower is better; no strict claim: {why})" in line


def test_an_expectation_may_be_of_any_two_levels() -> None:
    """Neither need be the baseline; labels with spaces and margins that look like numbers."""
    comparison = compare(grid())
    outcome = expect(comparison, "fedprox proximal_mu=0.1>fedadam-1.0")
    assert outcome.holds
    assert outcome.difference.mean == pytest.approx(0.3 - 0.2 * (1 + 1 / 2 + 1 / 3) / 3)
    mu: dict[str, Any] = {"strategy__mu": "1e-3"}
    tiny = [*ending("a", [1, 2, 3.1], **mu), *ending("a", [0, 1, 2], strategy__mu="1e-4")]
    small = compare(tiny, baseline="strategy=a mu=1e-4")
    assert expect(small, "a mu=1e-3>a mu=1e-4").difference.mean == pytest.approx((1 + 1 + 1.1) / 3)
    assert expect(small, "a mu=1e-3>a mu=1e-4+1e-3").holds


def test_a_level_may_look_like_a_margin() -> None:
    """What is a level as a whole is one, however it is typed; else what follows is a margin."""
    key: dict[str, Any] = {"model__learning_rate": "0.001"}
    runs = ending("a", [1, 2, 3.1], **key)
    runs += ending("a", [0, 1, 2], model__learning_rate="1e-05")
    comparison = compare(runs, baseline="model.learning_rate=1e-5")
    for text in ("0.001>1e-5", "1e-3>0.00001"):
        assert expect(comparison, text).difference.mean == pytest.approx((1 + 1 + 1.1) / 3)
    assert expect(comparison, "0.001>1e-5+0.5").holds
    assert not expect(comparison, "0.001>1e-5 + 2").holds
    assert expect(comparison, "1e-5>1e-3-9").holds


def test_one_pair_holds_no_expectation() -> None:
    """Without an interval nothing holds, and the line says why."""
    comparison = gains([0.5])
    outcome = expect(comparison, "a>b")
    assert not outcome.holds
    text = to_text(comparison_blocks(comparison, [outcome]))
    why = "1 of the 3 pairs that an interval needs"
    assert f"does not hold (difference +0.5000 [no interval]; {why})" in text
    assert f"note: no interval for strategy=a: {why}" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "--expect=a: A>B, A>B"),
        ("a>", "--expect=a>: A>B, A>B"),
        ("a>c", "--expect=c: one that was run: a; b"),
        ("a>a", "--expect=a>a: two different levels"),
        ("a>b+x", r"--expect=b\+x: one that was run: a; b"),
    ],
)
def test_mistaken_expectations(text: str, message: str) -> None:
    """An expectation that cannot be checked is refused."""
    with pytest.raises(InputError, match=message):
        expect(gains([0.1, 0.2]), text)


# ---------------------------------------------------------------------------- grounds
SYNTHETIC = {**NOTHING_TO_TUNE, "data.seed_draws": "table"}
DEAL = {**NOTHING_TO_TUNE, "data.seed_draws": "deal"}
FIXED = {**NOTHING_TO_TUNE, "data.seed_draws": "nothing"}
GROUNDS: list[tuple[dict[str, str], str, str, float, str]] = [
    (NOTHING_TO_TUNE, "server/accuracy", "corrected t", 20 / 80, ""),
    (NOTHING_TO_TUNE, "eval/accuracy", "corrected t", 8 / 72, ""),
    (NOTHING_TO_TUNE, "eval_client_mse/worst", "corrected t", 8 / 72, ""),
    (NOTHING_TO_TUNE, "fairness/accuracy_worst", "corrected t", 8 / 72, ""),
    (NOTHING_TO_TUNE, "train/accuracy", "t over seeds", 0, "strict claims are of server/, eva"),
    (SYNTHETIC, "server/accuracy", "t", 0, ""),
    (DEAL, "server/accuracy", "t over seeds", 0, "all seeds share their test rows"),
    (DEAL, "eval/accuracy", "corrected t", 8 / 72, ""),
    (FIXED, "server/mse", "t over seeds", 0, "all seeds share their test rows"),
    (FIXED, "eval/mse", "t over seeds", 0, "all seeds share their validation rows"),
    ({"data.sha256": "d"}, "server/mse", "uncorrected t", 0, "the record does not say what the se"),
    ({**FIXED, "data.seed_draws": "x"}, "eval/mse", "uncorrected t", 0, "the record does not say"),
    (
        NOTHING_TO_TUNE | {"data.rows": "20"},
        "server/mse",
        "uncorrected t",
        0,
        "the record does not",
    ),
    (NOTHING_TO_TUNE | {"data.rows": "?"}, "server/mse", "uncorrected t", 0, "the record does not"),
    (NOTHING_TO_TUNE | {"data.train_rows": "0"}, "eval/mse", "uncorrected t", 0, "the record does"),
]


@pytest.mark.parametrize(("tags", "metric", "kind", "ratio", "lack"), GROUNDS)
def test_what_an_interval_rests_on(
    tags: dict[str, str], metric: str, kind: str, ratio: float, lack: str
) -> None:
    """The kind follows who draws the rows that are scored; if nobody says it, nothing is strict."""
    told = [
        run(name, seed, (0, end), metric, tags=tags)
        for name, ends in (("fedavg", [0.5] * 5), ("x", [0.61, 0.62, 0.63, 0.64, 0.65]))
        for seed, end in enumerate(ends)
    ]
    comparison = compare(settled(told, metric), metric=metric)
    found = difference(comparison, "x")
    spread = np.std([1, 2, 3, 4, 5], ddof=1) / 100
    half = stats.t.ppf(0.975, 4) * spread * math.sqrt(1 / 5 + ratio)
    assert ends(found) == pytest.approx((0.13 - half, 0.13 + half))
    assert (found.kind, found.lack.startswith(lack), not found.lack) == (kind, True, not lack)
    better = "x>fedavg" if is_better_when_higher(metric, ()) else "fedavg>x"
    outcome = expect(comparison, better)
    assert (outcome.holds, outcome.holds_strictly) == (True, not lack)
    text = to_text(comparison_blocks(comparison, [outcome]))
    assert f"\n{kind}: " in text
    assert f"] {kind}" in text
    assert (f"no strict claim: {lack}" in text) is bool(lack)


def test_the_weakest_cell_counts() -> None:
    """Each cell has a ratio of its own; one without a ground leaves no strict claim over all."""
    wine = settled([*ending("fedavg", [0.5] * 5), *ending("x", [0.61, 0.62, 0.63, 0.64, 0.65])])
    iris = [
        replace(r, params={**r.params, "dataset.name": "iris"}, tags={**SEED_DRAWS_TEST, **more})
        for r in wine
        for more in [{"data.sha256": "i", "data.rows": "40"}]
    ]
    comparison = compare([*wine, *iris])
    assert {label: g.ratio for label, g in comparison.grounds.items()} == {
        "dataset=iris": 20 / 20,
        "dataset=wine": 20 / 80,
    }
    # Both have the differences' variance; each data set is half of the mean.
    spread = np.var([1, 2, 3, 4, 5], ddof=1) / 100**2
    one, two = spread * (1 / 5 + 1) / 4, spread * (1 / 5 + 0.25) / 4
    freedom = (one + two) ** 2 / (one**2 / 4 + two**2 / 4)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(one + two)
    found = difference(comparison, "x")
    assert ends(found) == pytest.approx((0.13 - half, 0.13 + half))
    assert (found.kind, found.lack) == ("corrected t", "")
    old = [replace(r, tags={"data.sha256": "i"}) for r in iris]
    assert difference(compare([*wine, *old]), "x").kind == "uncorrected t"
    assert not expect(compare([*wine, *old]), "x>fedavg").holds_strictly


# ---------------------------------------------------------------------------- shared test rows
def on_rows(name: str, losses: Sequence[Sequence[float]], **params: Any) -> list[RunSummary]:
    """Make runs whose seeds share their test rows, each with its losses on them."""
    made = ending(name, [float(np.mean(own)) for own in losses], tags=FIXED, **params)
    return [
        replace(one, losses=np.array(own, float))
        for one, own in zip(settled(made), losses, strict=True)
    ]


def right(rows: int, seeds: int, share: float, rng: np.random.Generator) -> list[list[float]]:
    return (rng.random((seeds, rows)) < share).astype(float).tolist()


def test_shared_rows_are_drawn_again() -> None:
    """Seeds are averaged for each row first; the interval is scipy's BCa of these means."""
    rng = np.random.default_rng(0)
    ours, theirs = right(200, 5, 0.9, rng), right(200, 5, 0.8, rng)
    comparison = compare([*on_rows("x", ours), *on_rows("fedavg", theirs)])
    outcome = expect(comparison, "x>fedavg")
    rows = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    scipys = stats.bootstrap((rows,), np.mean, n_resamples=10_000, rng=1).confidence_interval
    low, high = ends(outcome.difference)
    assert outcome.difference.mean == pytest.approx(rows.mean())
    assert (low, high) == pytest.approx((scipys.low, scipys.high), abs=0.02 * (high - low))
    assert (outcome.difference.kind, outcome.holds_strictly) == ("bootstrap", low > 0)
    assert expect(comparison, "x>fedavg") == outcome
    shown = difference(comparison, "x")
    assert (shown.kind, shown.lack) == ("t over seeds", "all seeds share their test rows")
    text = to_text(comparison_blocks(comparison, [outcome]))
    assert "bootstrap: over the test rows" in text
    few = compare([*on_rows("x", ours[:4]), *on_rows("fedavg", theirs[:4])])
    assert expect(few, "x>fedavg").difference.lack == "4 of the 5 pairs that it needs"


def test_cells_that_share_rows_are_one_sample() -> None:
    """Two cells on the same rows: the interval of each row's mean over cells and seeds."""
    rng = np.random.default_rng(1)
    told, rows = [], []
    for clients in ("2", "4"):
        ours, theirs = right(100, 5, 0.9, rng), right(100, 5, 0.8, rng)
        told += [*on_rows("x", ours, num_clients=clients)]
        told += [*on_rows("fedavg", theirs, num_clients=clients)]
        rows.append(np.mean(ours, axis=0) - np.mean(theirs, axis=0))
    found = expect(compare(told), "x>fedavg").difference
    scipys = stats.bootstrap((np.mean(rows, axis=0),), np.mean, rng=1).confidence_interval
    low, high = ends(found)
    assert found.mean == pytest.approx(float(np.mean(rows)))
    assert (low, high) == pytest.approx((scipys.low, scipys.high), abs=0.05 * (high - low))
    assert found.num_pairs == 10


def test_equal_seeds_leave_the_rows() -> None:
    """Where the seed changes nothing the rows still differ; where they do not, no interval."""
    losses = [[0.0, 1.0, 1.0, 1.0] * 10] * 5
    base = [[0.0, 0.0, 1.0, 1.0] * 10] * 5
    found = expect(compare([*on_rows("x", losses), *on_rows("fedavg", base)]), "x>fedavg")
    assert (found.difference.kind, found.holds_strictly) == ("bootstrap", True)
    same = expect(compare([*on_rows("x", base), *on_rows("fedavg", base)]), "x>fedavg-0.1")
    assert (same.difference.kind, same.holds) == ("undecided", False)
    all_rows = [[1.0] * 40] * 5, [[0.0] * 40] * 5
    one = expect(compare([*on_rows("x", all_rows[0]), *on_rows("fedavg", all_rows[1])]), "x>fedavg")
    assert (one.difference.kind, one.holds) == ("none", False)


@pytest.mark.parametrize("broken", ["none", "other round", "other rows", "other metric"])
def test_without_losses_there_is_no_strict_claim(broken: str) -> None:
    """A run without losses, or with those of something else: the plain interval, and why."""
    rng = np.random.default_rng(2)
    told = [*on_rows("x", right(50, 5, 0.95, rng)), *on_rows("fedavg", right(50, 5, 0.6, rng))]
    assert expect(compare(told), "x>fedavg").holds_strictly
    if broken == "none":
        told[0] = replace(told[0], losses=None)
    elif broken == "other round":
        longer = {ACCURACY: {**told[0].curves[ACCURACY], 13: 0.9}}
        told[0] = replace(told[0], curves={**told[0].curves, **longer})
    elif broken == "other rows":
        told[0] = replace(told[0], losses=np.repeat(told[0].losses, 2))
    else:
        told[0] = replace(told[0], losses=told[0].losses + 0.01)
    outcome = expect(compare(told), "x>fedavg")
    assert (outcome.holds, outcome.holds_strictly) == (True, False)
    why = "all seeds share their test rows, and "
    assert outcome.difference.lack.startswith(why)
    assert outcome.difference.lack.endswith(" s0 has no losses/final.npz for server/accuracy there")


def test_seeds_that_share_rows_in_one_cell_only() -> None:
    """Cells of both kinds have no interval that speaks of other rows."""
    rng = np.random.default_rng(3)
    told = [*on_rows("x", right(50, 5, 0.95, rng)), *on_rows("fedavg", right(50, 5, 0.6, rng))]
    other = [
        replace(r, run_id=f"{r.run_id}9", params={**r.params, "num_clients": "9"}, tags=SYNTHETIC)
        for r in told
    ]
    outcome = expect(compare([*told, *other]), "x>fedavg")
    assert not outcome.holds_strictly
    assert outcome.difference.lack == "only in some of the cells the seeds share their test rows"


# ---------------------------------------------------------------------------- words and tables
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3),
        min_size=1,
        max_size=6,
        unique_by=lambda item: tuple(sorted(item.items())),
    )
)
def test_labels_are_unique(items: list[dict[str, str]]) -> None:
    """No two sets of params have one label."""
    assert len(set(tell_apart(items))) == len(items)


def test_labels_name_what_was_swept() -> None:
    """A key that was swept is named though another one tells all apart; long numbers are cut."""
    items = [
        {"lr": "0.123456789", "passes": "1", "k": "3"},
        {"lr": "0.2", "passes": "1", "k": "3"},
        {"lr": "0.3", "passes": "2", "k": "3"},
    ]
    assert tell_apart(items) == ["lr=0.1235", "lr=0.2", "lr=0.3"]
    assert tell_apart(items, ["lr", "passes", "k"]) == [
        "lr=0.1235, passes=1",
        "lr=0.2, passes=1",
        "lr=0.3, passes=2",
    ]
    close = [{"lr": "0.12345678"}, {"lr": "0.12345679"}]
    assert tell_apart(close) == ["lr=0.12345678", "lr=0.12345679"]


def test_references_are_not_the_best() -> None:
    """``pooled`` and ``local`` federate nothing: they are the best only among themselves."""
    runs = [
        replace(run(name), metrics={"eval/accuracy": value})
        for name, value in {"fedavg": 0.7, "fedadam": 0.8, "pooled": 0.9}.items()
    ]
    best = {row.label: row.best for row in summary_table(runs).rows}
    assert best == {"strategy=fedadam": True, "strategy=fedavg": False, "strategy=pooled": False}
    alone = [
        replace(run("pooled", partitioner=name), metrics={"eval/accuracy": value})
        for name, value in {"iid": 0.9, "dirichlet": 0.8}.items()
    ]
    assert sorted(row.best for row in summary_table(alone).rows) == [False, True]


def test_private_runs_are_not_the_best() -> None:
    """Under differential privacy no validation row chooses; the others compete among themselves."""
    scores = {"none": 0.7, "dp_fixed": 0.8, "dp_adaptive": 0.9}
    runs = [
        replace(run(privacy__name=name), metrics={"eval/accuracy": value})
        for name, value in scores.items()
    ]
    assert [row.best for row in summary_table(runs).rows] == [False] * 3
    better = replace(run("fedadam", privacy__name="none"), metrics={"eval/accuracy": 0.75})
    best = [row.label for row in summary_table([*runs, better]).rows if row.best]
    assert best == ["strategy=fedadam, privacy=none"]
    assert [row.best for row in summary_table(runs[1:]).rows] == [False, False]


def test_select_names_what_there_is() -> None:
    """A condition that no run meets, in whole or in part, is refused."""
    assert {r.seed for r in select(grid(), ["seed=0,2", "partitioner.alpha=.1"])} == {"0", "2"}
    for text in ("seed=9", "seed=0,9", "foo=1", "seed"):
        with pytest.raises(InputError, match=f"--where={text}: "):
            select(grid(), [text])


@pytest.mark.parametrize(
    ("largest", "decimals"), [(0.95, 4), (1.0, 4), (12.0, 3), (2900.0, 1), (0.05, 5), (0.0, 4)]
)
def test_decimals_follow_the_scale(largest: float, decimals: int) -> None:
    """About four digits of the largest value are shown."""
    assert decimals_for([largest, -largest / 2, math.nan]) == decimals


def table_of(comparison: Comparison) -> TextTable:
    """Return the table at equal rounds."""
    return next(b for b in comparison_blocks(comparison) if isinstance(b, TextTable))


def test_a_table_says_what_the_rows_say() -> None:
    """One cell: level, seeds, mean and deviation, difference and its kind, wins, round."""
    comparison = compare([*ending("fedavg", [0.5, 0.7, 0.6]), *ending("fedadam", [0.6, 0.8, 0.8])])
    half = stats.t.ppf(0.975, 2) * math.sqrt(0.02 / 6 * (1 / 3 + 20 / 80))
    mean = 0.4 / 3
    interval = f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"
    sds = [np.std(values, ddof=1) for values in ([0.5, 0.7, 0.6], [0.6, 0.8, 0.8])]
    assert table_of(comparison) == TextTable(
        "at equal rounds",
        ("strategy", "seeds", "mean ± sd", "difference [95 %]", "w/t/l", "round"),
        (
            ("fedavg", "3", f"0.6000 ± {sds[0]:.4f}", "", "", "1"),
            ("fedadam", "3", f"0.7333 ± {sds[1]:.4f}", f"{interval} corrected t", "3/0/0", "1"),
        ),
    )


def test_many_cells_are_shown_as_one() -> None:
    """Few cells have rows of their own; of many there are the overall rows and the worst cell."""
    few = table_of(compare(grid()))
    assert [row[0] for row in few.rows if row[0]] == [
        "alpha=0.1",
        "alpha=0.5",
        "all 2 cells",
    ]
    many = [
        run(strategy, seed, (0, 0.1 * seed + k * offset), num_clients=str(k))
        for k in range(2, 22)
        for seed in range(2)
        for strategy, offset in (("fedavg", 0.0), ("fedadam", 0.01))
    ]
    comparison = compare(many)
    assert [row[:2] for row in table_of(comparison).rows] == [
        ("all 20 cells", "fedavg"),
        ("", "fedadam"),
    ]
    text = to_text(comparison_blocks(comparison))
    assert "worst cell of fedadam at equal rounds: +0.0200 (num_clients=2)" in text


def test_plain_terminal_and_markdown_say_the_same() -> None:
    """Every cell of a table is in each of its forms; markup in a label is shown, not obeyed."""
    runs = [*ending("fedavg", [0.5, 0.7]), *ending("[red]a|b<i>", [0.6, 0.8])]
    blocks = comparison_blocks(compare(runs))
    plain, markdown = to_text(blocks), to_markdown(blocks)
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120, highlight=False)
    show(blocks, terminal)
    assert isinstance(terminal.file, io.StringIO)
    for text in (plain, terminal.file.getvalue()):
        assert "[red]a|b<i>" in text
        assert "+0.1000 [no interval]" in text
    assert r"[red]a\|b\<i>" in markdown
    piped = Console(file=io.StringIO(), width=20)
    show(blocks, piped)
    assert isinstance(piped.file, io.StringIO)
    assert piped.file.getvalue() == plain


# ---------------------------------------------------------------------------- files
def test_two_reports_differ_in_one_line(tmp_path: Path) -> None:
    """The same runs give the same files, but for the line that says when."""
    comparison = compare(grid())
    outcomes = [expect(comparison, "fedadam>fedavg")]
    folders = tmp_path / "a" / "b", tmp_path / "c"
    first, second = (
        [p.read_text() for p in write_report(f, comparison, outcomes, "fl-kit report")]
        for f in folders
    )
    assert first[1:] == second[1:]
    lines = [[x for x in t[0].splitlines() if "made on" not in x] for t in (first, second)]
    assert lines[0] == lines[1]
    assert "- command: fl-kit report\n" in first[0]
    assert "fedavg-0-0.1" in first[0]


def test_the_csv_holds_the_differences() -> None:
    """From the lines of a level the report's mean difference can be computed again."""
    comparison = compare(grid())
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison))))
    assert len(lines) == len(grid())
    for row in comparison.at_rounds.overall[1:]:
        own = [x for x in lines if x["level"] == row.level]
        found = np.mean(
            [float(x["value_at_equal_rounds"]) - float(x["baseline_at_equal_rounds"]) for x in own]
        )
        assert row.difference is not None
        assert row.difference.mean == pytest.approx(float(found))
    assert all(float(x["bytes"]) == 20.0 for x in lines)
    kinds = {x["level"]: (x["interval"], x["n_test_to_n_train"]) for x in lines}
    assert kinds["fedavg"] == ("", "")
    assert kinds["fedadam"] == ("corrected t", "0.25")


def test_the_json_is_everything(tmp_path: Path) -> None:
    """The JSON reads back, with every row, pair, expectation and note."""
    comparison = compare([*both(), replace(run("krum"), status="KILLED")])
    outcomes = [expect(comparison, "fedadam>fedavg")]
    path = write_report(tmp_path, comparison, outcomes, "x --uri mysql://me:secret@host/db")[2]
    data = json.loads(path.read_text())
    assert data["command"] == "x --uri mysql://me:***@host/db"
    assert data["levels"] == ["fedavg", "fedadam"]
    why = "2 of the 3 pairs that an interval needs"
    assert data["notes"] == ["left out: 1 KILLED", f"no interval for strategy=fedadam: {why}"]
    assert data["expectations"][0]["holds"] is False
    assert data["expectations"][0]["holds_strictly"] is False
    assert data["expectations"][0]["difference"]["lack"] == why
    assert data["grounds"] == {"": {"kind": "corrected t", "ratio": 20 / 80, "lack": ""}}
    assert len(data["tables"]["equal_bytes"]["pairs"]["fedadam"]) == 2
    assert data["tables"]["equal_rounds"]["rows"][1]["difference"]["mean"] == pytest.approx(0.1)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A file where the folder should be is bad input."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out=.*file: a folder that can be written to"):
        write_report(tmp_path / "file", compare(both()))


# ---------------------------------------------------------------------------- a sweep's end
def test_summary_over_seeds() -> None:
    """Each configuration's mean over seeds, the best by objective, and what failed with why."""
    runs = [
        replace(run(name, seed), metrics={"eval/accuracy": value, "server/accuracy": value - 0.5})
        for name, values in {"fedavg": (0.6, 0.8), "fedadam": (0.8, 0.9)}.items()
        for seed, value in enumerate(values)
    ]
    failed = RunSummary("", {"seed": "2"}, status="FAILED", error="no rows", name="fedadam s2")
    summary = summary_table([*runs, failed])
    best, other = summary.rows
    assert (best.label, best.seeds, best.best) == ("strategy=fedadam", ("0", "1"), True)
    assert best.objective == "eval/accuracy"
    assert best.mean == pytest.approx((0.8 + 0.9) / 2)
    assert best.sd == pytest.approx(0.1 / math.sqrt(2))
    assert best.server_mean == pytest.approx((0.3 + 0.4) / 2)
    assert (other.label, other.best) == ("strategy=fedavg", False)
    text = to_text(summary_blocks(summary))
    assert "FAILED: fedadam s2: no rows" in text
    assert "best" in text


def test_summary_follows_the_objective() -> None:
    """The config's objective decides, in its direction, among runs of one data set."""
    runs = [
        replace(
            run(name, objective="eval/log_loss"),
            metrics={"eval/log_loss": value, "eval/accuracy": value},
        )
        for name, value in {"a": 0.5, "b": 0.4, "c": math.nan}.items()
    ]
    assert [row.best for row in summary_table(runs).rows] == [False, True, False]
    lone = summary_table(runs[:1]).rows[0]
    assert (lone.best, lone.sd, lone.label) == (False, None, "")
    assert summary_table([]).rows == ()
    assert summary_blocks(summary_table([])) == ()
    no_metrics = summary_table([replace(run("a"), metrics={})])
    assert no_metrics.rows[0].mean is None
    assert "all runs" in to_text(summary_blocks(no_metrics))


def test_the_best_is_of_one_data_set() -> None:
    """Accuracies on two data sets are no rivals: each data set has its best."""
    runs = [
        replace(run(name, dataset__name=dataset), metrics={"eval/accuracy": value})
        for dataset, name, value in [
            ("x", "a", 0.9),
            ("x", "b", 0.8),
            ("y", "a", 0.1),
            ("y", "b", 0.2),
        ]
    ]
    best = [row.label for row in summary_table(runs).rows if row.best]
    assert best == ["dataset=x, strategy=a", "dataset=y, strategy=b"]


# ---------------------------------------------------------------------------- reading MLflow
@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make one store for all tests of this file: a new one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    MlflowStore(uri, Path()).connect()
    return uri


@pytest.fixture
def experiment(uri: str, request: pytest.FixtureRequest) -> str:
    """Make an experiment of the test's own and return its name."""
    name = f"{request.node.name} experiment"
    MlflowClient(uri).create_experiment(name)
    return name


def log(uri: str, experiment: str, told: RunSummary) -> str:
    """Log a run that was made by hand, and return MLflow's id."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    run_id = client.create_run(found.experiment_id, told.start_ms, run_name=told.name).info.run_id
    client.log_batch(
        run_id,
        [Metric(k, v, 1, step) for k, curve in told.curves.items() for step, v in curve.items()],
        [Param(name, value) for name, value in told.params.items()],
        [RunTag(name, value) for name, value in told.tags.items()],
    )
    if told.error:
        client.set_tag(run_id, "error", told.error)
    if told.status != "RUNNING":
        client.set_terminated(run_id, told.status)
    return str(run_id)


def test_runs_are_read_as_they_were_logged(
    uri: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Params, tags, curves, status and error come back, over several pages, newest first."""
    monkeypatch.setattr("fl_app.report.reading._PAGE", {False: 2})
    told = [replace(run("fedavg", seed), start_ms=seed + 1) for seed in range(5)]
    told.append(replace(run("krum"), status="FAILED", error="DataError: no rows", start_ms=6))
    ids = [log(uri, experiment, one) for one in told]
    found = read_runs(uri, experiment=experiment)
    assert [r.run_id for r in found] == ids[::-1]
    for one, other in zip(told, found[::-1], strict=True):
        assert (one.params, one.status, one.error) == (other.params, other.status, other.error)
        assert other.tags["data.sha256"] == one.tags["data.sha256"]
        assert other.metrics == one.metrics
        assert other.curves == (one.curves if one.finished else {})
        assert (other.name, other.start_ms) == (one.name, one.start_ms)


def test_a_server_is_read_in_threads(
    uri: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where calls take the time they run side by side, and every curve lands with its run."""
    told = [run(name, seed, (0, seed)) for name in ("fedavg", "x") for seed in range(8)]
    for one in told:
        log(uri, experiment, one)
    one_by_one = read_runs(uri, experiment=experiment)
    monkeypatch.setattr("fl_app.report.reading.is_http", lambda uri: True)
    assert read_runs(uri, experiment=experiment) == one_by_one
    assert [r.curves[ACCURACY][1] for r in one_by_one] == [float(r.seed) for r in one_by_one]


def test_a_step_that_was_logged_twice_counts_once(uri: str, experiment: str) -> None:
    """Of a step's values the one logged last counts; NaN is read as NaN."""
    run_id = log(uri, experiment, run("fedavg"))
    client = MlflowClient(uri)
    client.log_metric(run_id, ACCURACY, 0.75, timestamp=9, step=1)
    client.log_metric(run_id, ACCURACY, 0.25, timestamp=8, step=1)
    client.log_metric(run_id, ACCURACY, math.nan, timestamp=9, step=2)
    curve = read_runs(uri, experiment=experiment)[0].curves[ACCURACY]
    assert list(curve) == [0, 1, 2]
    assert curve[1] == 0.75
    assert math.isnan(curve[2])


def test_keys_that_mlflow_refuses_are_found(uri: str, experiment: str) -> None:
    """A metric and a param are found by the name that was meant, sanitised or not."""
    for seed in range(2):
        for value in ("1", "2"):
            told = run("x", seed, (0, float(value) + seed), "server/top[5]_accuracy")
            curves = {key.replace("[", "_").replace("]", "_"): c for key, c in told.curves.items()}
            params = {**told.params, "own.w_0_": value}
            log(uri, experiment, replace(told, curves=curves, params=params))
    metric = "server/top[5]_accuracy"
    comparison = compare(
        read_runs(uri, experiment=experiment, metric=metric), baseline="own.w[0]=1", metric=metric
    )
    assert difference(comparison, "2").mean == 1.0


def test_reading_makes_nothing(uri: str, experiment: str, tmp_path: Path) -> None:
    """What is not there is refused with what is; no file, folder or experiment appears."""
    before = {e.name for e in MlflowClient(uri).search_experiments()}
    with pytest.raises(InputError, match=r"--mlflow-experiment=nope: one of .*Default"):
        read_runs(uri, experiment="nope")
    with pytest.raises(InputError, match="an experiment that has runs"):
        read_runs(uri, experiment=experiment)
    assert {e.name for e in MlflowClient(uri).search_experiments()} == before

    missing = tmp_path / "folder" / "mlflow.db"
    with pytest.raises(InputError, match="a store that exists"):
        read_runs(f"sqlite:///{missing}")
    assert not missing.parent.exists()
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (x INTEGER)")
    content = other.read_bytes()
    with pytest.raises(InputError, match="a database of MLflow; this one has not its tables"):
        read_runs(f"sqlite:///{other}")
    assert other.read_bytes() == content
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:1: a server that answers"):
        read_runs("http://127.0.0.1:1")
    with pytest.raises(InputError, match="tracking URI=nonsense: must be sqlite"):
        read_runs("nonsense")


def test_a_sweeps_end(uri: str, experiment: str) -> None:
    """Of a sweep only its runs are told: the summary, the comparison or why there is none."""
    told = [*ending("fedavg", [0.5, 0.6, 0.4]), *ending("fedadam", [0.7, 0.8, 0.61])]
    for one in told:
        metrics = {**one.curves, "eval/accuracy": one.curves[ACCURACY]}
        tags = {**one.tags, "sweep.id": "mine"}
        log(uri, experiment, replace(one, tags=tags, curves=metrics))
    log(uri, experiment, replace(run("krum"), tags={"sweep.id": "another"}))
    runs = read_runs(uri, sweep="mine", metric=ACCURACY)
    failed = RunSummary("", {}, status="FAILED", error="never began", name="job 4")
    text = to_text(summary_blocks(summary_table([*runs, failed])))
    mean, sd = np.mean([0.7, 0.8, 0.61]), np.std([0.7, 0.8, 0.61], ddof=1)
    end = f"{mean:.4f} ± {sd:.4f}"
    assert f"strategy=fedadam      3  {end}  {end}  best" in text
    assert "FAILED: job 4: never began" in text
    comparison = compare(runs, baseline="strategy=fedavg")
    text = to_text(comparison_blocks(comparison, [expect(comparison, "fedadam>fedavg")]))
    assert "expected fedadam>fedavg: holds (difference +0.2033 [+" in text
    assert "krum" not in text
    with pytest.raises(InputError, match="--baseline=strategy=krum: one that was run: fedadam; "):
        compare(runs, baseline="strategy=krum")
    with pytest.raises(InputError, match=r"--sweep=x: a sweep that has runs; newest: .*mine"):
        read_runs(uri, sweep="x")
    with pytest.raises(InputError, match="--sweep=o'clock: the tag"):
        read_runs(uri, sweep="o'clock")


# ---------------------------------------------------------------------------- kept in MLflow
def swept(uri: str, experiment: str, sweep: str) -> list[str]:
    """Log a sweep of two strategies and three seeds, and return its runs' ids."""
    told = [*ending("fedavg", [0.5, 0.6, 0.4]), *ending("x", [0.7, 0.8, 0.61])]
    return [log(uri, experiment, replace(r, tags={**r.tags, "sweep.id": sweep})) for r in told]


def test_a_comparison_is_kept_with_its_sweep(
    uri: str,
    experiment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``--store``: one FINISHED run beside the sweep's, replaced when made again, never read."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ids, client = swept(uri, experiment, "kept"), MlflowClient(uri)
    assert fl_kit(monkeypatch, "report", "--store") == 2
    assert capsys.readouterr().err == (
        "fl-kit: --store=true: only with --sweep, whose comparison it is\n"
    )
    assert fl_kit(monkeypatch, "report", "--strict") == 2
    assert "--strict=true: at least one --expect" in capsys.readouterr().err
    where = ("--sweep", "kept", "--mlflow-experiment", experiment)
    assert fl_kit(monkeypatch, "report", *where, "--store") == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("stored in MLflow as the run comparison, ")
    run_id = told.rpartition(" ")[2]
    kept = client.get_run(run_id)
    assert (kept.info.run_name, kept.info.status) == ("comparison", "FINISHED")
    assert kept.info.experiment_id == client.get_run(ids[0]).info.experiment_id
    assert (kept.data.tags["sweep.id"], kept.data.tags["fl_app.report"]) == ("kept", "true")
    assert [f.path for f in client.list_artifacts(run_id)] == [
        "report.csv",
        "report.json",
        "report.md",
        "report.tex",
    ]
    expectation = ("--expect", "x>fedavg")
    assert fl_kit(monkeypatch, "report", *where, *expectation, "--store") == 0
    assert capsys.readouterr().out.splitlines()[-1] == told
    path = client.download_artifacts(run_id, "report.json", str(tmp_path))
    data = json.loads(Path(path).read_text())
    assert [one["text"] for one in data["expectations"]] == ["x>fedavg"]
    assert data["command"].endswith("--expect 'x>fedavg' --store")

    assert fl_kit(monkeypatch, "report", *where, "--where", "seed=0", "--store") == 2
    assert f"--store={len(ids) // 3} runs: at least the {len(ids)} fini" in capsys.readouterr().err
    again = client.download_artifacts(run_id, "report.json", str(tmp_path))
    assert json.loads(Path(again).read_text()) == data

    assert sorted(r.run_id for r in read_runs(uri, experiment=experiment)) == sorted(ids)
    found = find_finished(uri, {"sweep.id": "kept"})
    assert found is not None
    assert found.run_id in ids
    assert {r.name for r in read_runs(uri, sweep="kept")}.isdisjoint({"comparison"})


def test_a_store_that_takes_no_report_loses_nothing(
    uri: str, experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The comparison is printed, one line says why it is not kept; the runs are as they were."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ids = swept(uri, experiment, "full")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("mlflow.MlflowClient.log_artifacts", full)
    assert fl_kit(monkeypatch, "report", "--sweep", "full", "--store") == 2
    told = capsys.readouterr()
    assert "at equal rounds" in told.out
    assert told.err.endswith("a store that MLflow can use (no space left)\n")
    jobs = [
        Job(n, [], "FINISHED", "", r.params, r.metrics, r.run_id, "full", uri, tracked=True)
        for n, r in enumerate(read_these(uri, ids))
    ]
    text = summarise(jobs)
    assert "at equal rounds" in text
    assert "\nthe comparison is not stored in MLflow: tracking URI=" in text
    monkeypatch.undo()
    text = summarise(jobs)
    assert "\nstored in MLflow as the run comparison, with the same sweep.id" in text
    assert {r.status for r in read_runs(uri, sweep="full")} == {"FINISHED"}
    assert len(read_runs(uri, sweep="full")) == len(ids)
    ours = MlflowClient(uri).search_runs(
        [MlflowClient(uri).get_run(ids[0]).info.experiment_id], "tags.`fl_app.report` = 'true'"
    )
    assert [run.info.status for run in ours] == ["FINISHED"]


# ---------------------------------------------------------------------------- fl-kit report
def test_the_command(
    uri: str,
    experiment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tables on stdout, files in the folder; strict makes a failed expectation exit status 1."""
    ends = {"fedavg": [0.5, 0.6, 0.5, 0.6, 0.5], "fedadam": [0.7, 0.8, 0.71, 0.8, 0.7]}
    rates = {"0.1": -0.1, "0.2": 0.0, "0.4": -0.1}
    for strategy, values in ends.items():
        for rate, more in rates.items():
            made = ending(strategy, [v + more for v in values], model__learning_rate=rate)
            for one in settled(made):
                tags = {k: v for k, v in one.tags.items() if k != "config.without_effect"}
                judged = {**one.curves, "eval/accuracy": {12: 0.5 + more}}
                log(uri, experiment, replace(one, tags=tags, curves=judged))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    runs = ("--mlflow-experiment", experiment, "--tune", "model.learning_rate")
    where = (*runs, "--expect", "fedavg>fedadam")
    assert fl_kit(monkeypatch, "report", *where, "--out", str(tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert "] corrected t  5/0/0" in out
    assert "expected fedavg>fedadam: does not hold (difference -0.2020 [" in out
    assert "corrected t: corrected resampled t over seeds, which draw" in out
    assert "n_test/n_train = 0.25" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "report.csv",
        "report.json",
        "report.md",
        "report.tex",
    ]
    assert fl_kit(monkeypatch, "report", *where, "--strict") == 1
    assert fl_kit(monkeypatch, "report", *runs, "--expect", "fedadam>fedavg", "--strict") == 0
    four = ("--where", "seed=0,1,2,3", "--expect", "fedadam>fedavg")
    assert fl_kit(monkeypatch, "report", *runs, *four) == 0
    assert "4 of the 5 pairs that it needs" in capsys.readouterr().out
    assert fl_kit(monkeypatch, "report", *runs, *four, "--strict") == 1
    capsys.readouterr()
    assert fl_kit(monkeypatch, "report", *runs, "--expect", "fedadam>krum", "--strict") == 2
    error = capsys.readouterr().err
    assert error == "fl-kit: --expect=krum: one that was run: fedadam; fedavg\n"


def test_strict_refuses_runs_that_did_not_learn(
    uri: str,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tagged run is shown, but nothing is claimed of it; one that failed is not refused twice."""
    good, bad = ending("fedavg", [0.5, 0.6, 0.7]), ending("fedadam", [0.1, 0.2, 0.3])
    for one in (
        *good,
        *bad[:2],
        replace(bad[2], tags=bad[2].tags | {"worse_than_constant": "true"}),
    ):
        log(uri, experiment, one)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    where = ("--mlflow-experiment", experiment, "--expect", "fedavg>fedadam")
    assert fl_kit(monkeypatch, "report", *where) == 0
    capsys.readouterr()
    assert fl_kit(monkeypatch, "report", *where, "--strict") == 2
    assert capsys.readouterr().err == (
        "fl-kit: worse_than_constant=true: no claim stands on runs that did not learn: fedadam s2; "
        "run them with a smaller step, or leave them out with --where\n"
    )
    check_sound([replace(bad[2], status="FAILED", tags={"worse_than_constant": "true"})])
