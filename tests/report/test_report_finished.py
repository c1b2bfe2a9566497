"""A method counts where it is finished: each at its end, at equal rounds, at equal bytes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.errors import InputError
from fl_app.report import (
    Comparison,
    Row,
    RunSummary,
    Table,
    TextTable,
    compare,
    comparison_blocks,
    expect,
    read_runs,
    to_markdown,
    to_text,
    write_report,
)
from fl_app.report.writing import as_csv
from fl_app.runtimes.inprocess import run as run_in_process
from tests.report.test_report import run

ROUNDS = "num_server_rounds"


def stack(rounds: int, end: float, seed: int = 0, each: float = 10, **params: Any) -> RunSummary:
    """Make a run of FedStacking: 0.5 while it collects, 2 * each bytes a round."""
    curve = [*[0.5] * rounds, end]
    made = {"num_server_rounds": str(rounds), **params}
    return run("fedstacking", seed, curve, costs=[each], **made)


def fedavg(rounds: int, seed: int = 0, strategy: str = "fedavg", **params: Any) -> RunSummary:
    """Make a run that is at 0.1 r after round r and sends 20 bytes a round."""
    made = {"num_server_rounds": str(rounds), **params}
    return run(strategy, seed, [0.1 * r for r in range(rounds + 1)], costs=[10], **made)


def row(table: Table | None, level: str) -> Row:
    """Return a level's row over all cells."""
    assert table is not None
    (found,) = [row for row in table.overall if row.level == level]
    return found


def free(*runs: RunSummary, **options: Any) -> Comparison:
    """Compare runs whose numbers of rounds may differ."""
    return compare(runs, ignore=[ROUNDS], **options)


def titles(comparison: Comparison) -> list[str]:
    return [b.title for b in comparison_blocks(comparison) if isinstance(b, TextTable)]


def shown(comparison: Comparison, title: str, level: str) -> dict[str, str]:
    """Return a row as it is shown, by its columns."""
    blocks = comparison_blocks(comparison)
    (table,) = [b for b in blocks if isinstance(b, TextTable) and b.title == title]
    (found,) = [r for r in table.rows if r[0] == level]
    return dict(zip(table.columns, found, strict=True))


# ---------------------------------------------------------------------------- equal bytes
def test_a_stack_within_the_bytes_counts_at_its_end() -> None:
    """FedAvg sent 8 * 20 bytes, the stack 6 * 20: the stack's end, and FedAvg's round 6."""
    comparison = compare([fedavg(8), stack(8, 0.9, each=7.5)])
    (pair,) = comparison.at_bytes.pairs["fedstacking"] if comparison.at_bytes else ()
    assert (pair.level.server_round, pair.level.value, pair.level.bytes) == (8, 0.9, 120.0)
    assert (pair.baseline.server_round, pair.baseline.bytes) == (6, 120.0)
    assert pair.difference == pytest.approx(0.9 - 0.6)


def test_a_stack_is_never_cut_off_while_it_collects() -> None:
    """FedAvg's 5 * 20 bytes end in the stack's round 2 of 5 (2 * 40 bytes): there is no stack."""
    comparison = compare([r for s in range(3) for r in (fedavg(5, s), stack(5, 0.9, s, 20))])
    none = row(comparison.at_bytes, "fedstacking")
    assert (none.mark, none.num_runs) == ("none", 3)
    numbers = (none.mean, none.sd, none.baseline_mean, none.server_round, none.bytes)
    assert {*numbers, none.difference, none.worst_cell} == {None}
    assert row(comparison.at_bytes, "fedavg").mean == pytest.approx(0.5)
    assert row(comparison.at_rounds, "fedstacking").mean == pytest.approx(0.9)
    assert (
        "none at equal bytes: strategy=fedstacking (seed 0, 1, 2) has no finished run within the "
        "other's bytes; run it with fewer num_server_rounds"
    ) in comparison.notes


@pytest.mark.parametrize("ignored", [True, False], ids=["ignored", "cells"])
def test_the_stack_gets_the_rounds_that_the_bytes_buy(ignored: bool) -> None:
    """FedAvg sent 5 * 20; of stacks of 4, 3 and 5 rounds of 30 bytes the one of 3 is within."""
    others = [stack(4, 0.8, each=15), stack(3, 0.7, each=15)]
    runs = [fedavg(5), stack(5, 0.9, each=15), *others]
    comparison = free(*runs) if ignored else compare(runs)
    assert comparison.levels == ("fedavg", "fedstacking")
    (pair,) = comparison.at_bytes.pairs["fedstacking"] if comparison.at_bytes else ()
    assert (pair.level.run_id, pair.level.server_round) == (others[1].run_id, 3)
    assert (pair.level.value, pair.level.bytes) == (0.7, 90.0)
    # The budget is FedAvg's total, so that it stands at its own end.
    assert (pair.baseline.server_round, pair.baseline.value) == (5, 0.5)
    assert row(comparison.at_rounds, "fedstacking").mean == pytest.approx(0.9)
    assert (
        "2 runs of fedstacking with num_server_rounds=3, 4 count only at equal bytes, for longer "
        "runs of the same config and seed"
    ) in comparison.notes


@pytest.mark.parametrize(
    "changes", [{"seed": "1"}, {"model.l2": "1"}, {"strategy.base_models": "[ridge]"}, None]
)
def test_only_a_run_of_the_same_method_stands_in(changes: Mapping[str, str] | None) -> None:
    """Another seed, another param of any kind or other data: that is no shorter run of this one."""
    shorter = stack(3, 0.7, each=15)
    if changes is None:
        shorter = replace(shorter, tags={**shorter.tags, "data.sha256": "e" * 64})
    else:
        shorter = replace(shorter, params={**shorter.params, **changes})
    with pytest.raises(InputError, match="run both alike"):
        compare([fedavg(5), stack(5, 0.9, each=15), shorter])
    again = replace(shorter, params={**shorter.params, "runtime.name": "simulation"})
    same = {**stack(3, 0.7, each=15).params, "runtime.name": "simulation"}
    good = replace(again, params=same, tags=fedavg(5).tags)
    assert row(compare([fedavg(5), stack(5, 0.9, each=15), good]).at_bytes, "fedstacking").mean


def test_the_newest_of_repeated_shorter_runs_stands_in() -> None:
    """As everywhere, of two runs with the same config and seed the newest counts."""
    old, new = (replace(stack(3, v, each=15), run_id=str(v), start_ms=int(v * 10)) for v in (1, 2))
    for order in ((old, new), (new, old)):
        found = compare([fedavg(5), stack(5, 0.9, each=15), *order])
        assert row(found.at_bytes, "fedstacking").mean == 2


def test_a_seed_without_a_run_leaves_no_row() -> None:
    """A mean over some of the seeds is no mean of the method: the row is none, the note says it."""
    runs = [r for s in range(3) for r in (fedavg(5, s), stack(5, 0.9, s, 15))]
    comparison = compare([*runs, stack(3, 0.7, 0, 15), stack(3, 0.7, 2, 15)])
    assert row(comparison.at_bytes, "fedstacking").mark == "none"
    (note,) = [note for note in comparison.notes if note.startswith("none at equal bytes")]
    assert note.startswith("none at equal bytes: strategy=fedstacking (seed 1) has no finished run")
    assert comparison.at_bytes is not None
    assert [pair.seed for pair in comparison.at_bytes.pairs["fedstacking"]] == ["0", "2"]


def test_two_stacks_are_held_to_the_smaller_total() -> None:
    """Both sides may be a shorter run: 5 * 30 bytes and 5 * 20; of 3 rounds the first sends 90."""
    small, large = {"strategy__c": "1"}, {"strategy__c": "2"}
    runs = [stack(5, 0.8, **small), stack(5, 0.9, each=15, **large), stack(3, 0.7, 0, 15, **large)]
    for baseline, level, gain in (("1", "2", 0.7 - 0.8), ("2", "1", 0.8 - 0.7)):
        found = compare(runs, baseline=f"strategy=fedstacking c={baseline}")
        (pair,) = found.at_bytes.pairs[f"fedstacking c={level}"] if found.at_bytes else ()
        assert pair.difference == pytest.approx(gain)
    none = compare(runs[:2], baseline="strategy=fedstacking c=2")
    assert row(none.at_bytes, "fedstacking c=1").mark == "none"
    assert any(
        "none at equal bytes for strategy=fedstacking c=1: strategy=fedstacking c=2 (seed 0) has no"
        in note
        for note in none.notes
    )


@pytest.mark.parametrize("member", ["none", "fedavg"])
def test_three_rounds_cannot_be_fewer(member: str) -> None:
    """The other one has to go on for longer; with another global member it is another method."""
    runs = [fedavg(2), stack(3, 0.9, strategy__global_member=member)]
    (note,) = [n for n in free(*runs).notes if "equal bytes" in n]
    assert note.endswith("other's bytes; no fewer rounds exist: run the other with more")


def test_references_have_no_bytes() -> None:
    """``pooled`` and ``local`` federate nothing: a dash, no difference, no baseline there."""
    runs = [
        fedavg(5, seed, strategy) for seed in range(3) for strategy in ("fedavg", "pooled", "local")
    ]
    comparison = compare([*runs, *(fedavg(5, seed, "fedadam") for seed in range(3))])
    for name in ("pooled", "local"):
        dash = row(comparison.at_bytes, name)
        assert (dash.mark, dash.mean, dash.bytes, dash.difference) == ("-", None, None, None)
        assert shown(comparison, "at equal bytes", name)["mean ± sd"] == "-"
        assert row(comparison.at_rounds, name).mean == pytest.approx(0.5)
        assert row(comparison.at_rounds, name).bytes is None
        assert f"strategy={name} federates nothing and has no bytes" in comparison.notes
    assert row(comparison.at_bytes, "fedadam").mean == pytest.approx(0.5)
    sent = {
        line["level"]: line["bytes"] for line in csv.DictReader(io.StringIO(as_csv(comparison)))
    }
    assert sent == {"fedavg": "100", "fedadam": "100", "pooled": "", "local": ""}
    held = compare(runs, baseline="strategy=pooled")
    assert held.at_bytes is None
    why = "no table at equal bytes: strategy=pooled federates nothing and has no bytes"
    assert why in held.notes


# ---------------------------------------------------------------------------- at the end
def test_methods_of_other_rounds_have_three_tables() -> None:
    """FedAvg's 8 rounds, a stack's 5: its end beside round 8, round 5, and the bytes' round."""
    runs = [r for s in range(3) for r in (fedavg(8, s), stack(5, 0.7 + 0.01 * s, s))]
    comparison = free(*runs)
    assert titles(comparison) == ["each at its end", "at equal rounds", "at equal bytes"]
    mean = 0.71
    for table, base in ((comparison.at_end, 0.8), (comparison.at_rounds, 0.5)):
        found = row(table, "fedstacking")
        assert found.difference is not None
        assert (found.mean, found.baseline_mean) == pytest.approx((mean, base))
        assert found.difference.mean == pytest.approx(mean - base)
    assert comparison.finished is comparison.at_end
    # Only at its end FedAvg's own row is what the level is compared with.
    assert "fedavg" not in shown(comparison, "each at its end", "fedstacking")
    assert shown(comparison, "each at its end", "fedstacking")["bytes"] == "100 B"
    assert shown(comparison, "at equal rounds", "fedstacking")["fedavg"] == "0.5000"
    assert shown(comparison, "at equal rounds", "fedavg")["mean ± sd"].startswith("0.8000")


def test_methods_of_the_same_rounds_have_two() -> None:
    """Their end is the last common round."""
    comparison = compare([fedavg(5), stack(5, 0.9)])
    assert titles(comparison) == ["at equal rounds", "at equal bytes"]
    assert comparison.at_end is None
    assert comparison.finished is comparison.at_rounds
    assert "fedavg" not in shown(comparison, "at equal rounds", "fedstacking")


def test_a_stack_that_ends_later_has_no_equal_round() -> None:
    """Its round 5 of 8 is the global member's; only at its end, or a run of 5 rounds, it counts."""
    comparison = free(*[r for s in range(3) for r in (fedavg(5, s), stack(8, 0.9, s))])
    assert row(comparison.at_rounds, "fedstacking").mark == "none"
    assert row(comparison.at_end, "fedstacking").mean == pytest.approx(0.9)
    assert (
        "none at equal rounds: strategy=fedstacking (seed 0, 1, 2) has its model only in round 8, "
        "which the other has not"
    ) in comparison.notes
    turned = free(fedavg(5), stack(8, 0.9), baseline="strategy=fedstacking")
    assert row(turned.at_rounds, "fedavg").mark == "none"
    assert row(turned.at_rounds, "fedstacking").mean == pytest.approx(0.9)


def test_expectations_are_of_finished_methods() -> None:
    """The stack is .2 ahead at equal rounds and .1 behind each at its end: it is not better."""
    ends = [0.71, 0.7, 0.69, 0.7, 0.7]
    runs = [r for s, end in enumerate(ends) for r in (fedavg(8, s), stack(5, end, s))]
    comparison = free(*runs)
    outcome = expect(comparison, "fedstacking>fedavg")
    assert not outcome.holds
    assert outcome.difference.mean == pytest.approx(-0.1)
    behind = expect(comparison, "fedavg>fedstacking")
    assert behind.holds
    text = to_text(comparison_blocks(comparison, [behind]))
    assert "corrected t; each at its end" in text
    same = compare([r for s in range(5) for r in (fedavg(5, s), stack(5, 0.6 + s / 100, s))])
    text = to_text(comparison_blocks(same, [expect(same, "fedstacking>fedavg")]))
    assert "each at its end" not in text


def test_a_metric_that_the_end_does_not_have_is_refused() -> None:
    """What a stack says of an earlier round is said of another model."""
    made = stack(5, 0.9)
    curves = {**made.curves, "server/accuracy": {3: 0.5}}
    text = r"fedstacking s0 has no such value in its last round \(5\), where its model is finished"
    with pytest.raises(InputError, match=text):
        compare([fedavg(5), replace(made, curves=curves)])


def test_r2_is_of_the_run_that_stands_there() -> None:
    """Beside the mse of a stack of 3 rounds stands its own r2; in a row of none, nothing."""
    runs = [
        replace(one, curves={**one.curves, "server/mse": mse, "server/r2": r2})
        for one, gain in (
            (fedavg(5), 0.0),
            (stack(5, 0.9, each=15), 0.2),
            (stack(3, 0.7, each=15), 0.1),
            (stack(5, 0.9, each=15, strategy__global_member="ls"), 0.3),
        )
        for mse in [one.curves["server/accuracy"]]
        for r2 in [{r: gain + 0.01 * r for r in mse}]
    ]
    comparison = compare(runs, metric="server/mse")
    own, dear = "fedstacking global_member=-", "fedstacking global_member=ls"
    assert row(comparison.at_rounds, own).beside == pytest.approx(0.25)
    assert row(comparison.at_bytes, own).beside == pytest.approx(0.13)
    assert shown(comparison, "at equal bytes", own)["r2"] == "0.13"
    assert shown(comparison, "at equal bytes", dear)["r2"] == ""


# ---------------------------------------------------------------------------- cells
def test_cells_of_shorter_stacks_alone_are_set_aside() -> None:
    """A cell where the rival was tried, or where the longer run is missing, is refused as ever."""
    runs = [fedavg(5), stack(5, 0.9, each=15)]
    shorter = stack(3, 0.7, each=15)
    assert len(compare([*runs, shorter]).cells) == 1
    failed = replace(fedavg(3), status="FAILED", error="why")
    with pytest.raises(InputError, match=r"fedavg has no FINISHED run with it .* FAILED: why"):
        compare([*runs, shorter, failed])
    with pytest.raises(InputError, match=r"num_server_rounds=5 and 3: .*only with 3"):
        compare([runs[0], shorter])
    with pytest.raises(InputError, match=r"num_server_rounds=5 and 8: .*only with 8|=8 and 5"):
        compare([*runs, stack(8, 0.95)])
    other = fedavg(3, strategy="fedadam")
    with pytest.raises(InputError, match="num_server_rounds"):
        compare([*runs, fedavg(5, strategy="fedadam"), shorter, other])


def test_whole_cells_of_stacks_stay() -> None:
    """Stacks among themselves, at two numbers of rounds: two cells, nothing set aside."""
    runs = [
        stack(rounds, 0.1 * rounds + 0.01 * int(c), strategy__c=c)
        for rounds in (3, 5)
        for c in ("1", "2")
    ]
    comparison = compare(runs, baseline="strategy=fedstacking c=1")
    assert [cell.label for cell in comparison.cells] == [f"{ROUNDS}=3", f"{ROUNDS}=5"]
    assert not any("count only" in note for note in comparison.notes)


def test_a_cell_without_a_run_leaves_no_row_over_all() -> None:
    """One cell has its stack within the bytes; over both there is no mean of the method."""
    runs = [
        r
        for k, each in (("2", 10), ("9", 20))
        for r in (fedavg(5, num_clients=k), stack(5, 0.9, each=each, num_clients=k))
    ]
    comparison = compare(runs)
    assert comparison.at_bytes is not None
    marks = {r.cell: r.mark for r in comparison.at_bytes.rows if r.level == "fedstacking"}
    assert marks == {"num_clients=2": "", "num_clients=9": "none", None: "none"}
    (note,) = [note for note in comparison.notes if note.startswith("none")]
    assert "(num_clients=9 seed 0)" in note


# ---------------------------------------------------------------------------- side by side
@given(
    st.lists(st.integers(1, 8), min_size=2, max_size=2),
    st.lists(st.integers(1, 40), min_size=2, max_size=2),
    st.lists(st.integers(3, 8), min_size=1, max_size=4, unique=True),
)
def test_what_stands_side_by_side_is_of_the_same_points(
    rounds: Sequence[int], costs: Sequence[int], stacks: Sequence[int]
) -> None:
    """In every table mean - baseline's mean = difference, and a stack is at its end or absent."""
    runs = []
    for seed in range(2):
        for strategy, last, cost in zip(("fedavg", "fedadam"), rounds, costs, strict=True):
            curve = [0.01 * (seed + 1) * r * r for r in range(last + 1)]
            params = {"num_server_rounds": str(last)}
            runs.append(run(strategy, seed, curve, costs=[cost], **params))
        runs += [stack(last, 0.1 * last, seed, costs[0]) for last in stacks]
    lasts = {r.run_id: r.last_round for r in runs}
    for table in free(*runs).tables.values():
        for found in table.overall:
            if found.difference is not None:
                assert found.mean is not None
                assert found.baseline_mean is not None
                gain = found.mean - found.baseline_mean
                assert found.difference.mean == pytest.approx(gain, abs=1e-12)
        for pair in table.pairs["fedstacking"]:
            assert pair.level.server_round == lasts[pair.level.run_id]
            assert pair.level.value == pytest.approx(0.1 * pair.level.server_round)


def test_none_is_written_as_none(tmp_path: Path) -> None:
    """JSON has null, CSV nothing, Markdown the word; a stand-in's run id is in each of them."""
    dear = {"strategy__global_member": "ls"}
    runs = [fedavg(5), stack(5, 0.9, each=15), stack(5, 0.9, each=15, **dear)]
    shorter = stack(3, 0.7, each=15)
    comparison = compare([*runs, shorter])
    markdown, table, data, _ = (p.read_text() for p in write_report(tmp_path, comparison))
    rows = json.loads(data)["tables"]["equal_bytes"]["rows"]
    held = {r["level"]: r for r in rows}
    none, found = held["fedstacking global_member=ls"], held["fedstacking global_member=-"]
    assert (none["mean"], none["baseline_mean"], none["difference"], none["mark"]) == (
        *[None] * 3,
        "none",
    )
    assert (found["mean"], found["mark"]) == (0.7, "")
    assert json.loads(data)["tables"]["end"] is None
    gaps = json.loads(data)["tables"]["equal_bytes"]["gaps"]["fedstacking global_member=ls"]
    assert [gap["seed"] for gap in gaps] == ["0"]
    lines = {line["level"]: line for line in csv.DictReader(io.StringIO(table))}
    empty, full = lines["fedstacking global_member=ls"], lines["fedstacking global_member=-"]
    assert (empty["value_at_equal_bytes"], empty["baseline_at_equal_bytes"]) == ("", "")
    assert (empty["value_at_end"], empty["value_at_equal_rounds"]) == ("0.9", "0.9")
    assert (full["value_at_equal_bytes"], full["round_at_equal_bytes"]) == ("0.7", "3")
    assert (full["run_id_at_equal_bytes"], full["run_id"]) == (shorter.run_id, runs[1].run_id)
    assert "| fedstacking global_member=ls | 1 | none |" in to_markdown(
        comparison_blocks(comparison)
    )
    assert f"fedstacking global_member=- at equal bytes | 0: {shorter.run_id} |" in markdown


# ---------------------------------------------------------------------------- real runs
def test_real_runs(tmp_path: Path) -> None:
    """A stack of 3 rounds stands for one of 6 where FedAvg's bytes buy no more."""
    jobs = (
        ("strategy=fedavg", 19),
        ("strategy=fedstacking", 6),
        ("strategy=fedstacking", 3),
    )
    for strategy, rounds in jobs:
        words = ["dataset=iris", "num_clients=3", "partitioner=iid", f"{ROUNDS}={rounds}"]
        words += [strategy, "tracking.figures=false", f"output_dir={tmp_path / 'out'}"]
        run_in_process(RunRequest(compose_config(words)))
    runs = read_runs(experiment="iris")
    averages, long, short = (
        next(r for r in runs if f"strategy={r.params['strategy.name']}" == s and r.last_round == t)
        for s, t in jobs
    )
    assert [r.metrics["cost/bytes_up"] + r.metrics["cost/bytes_down"] for r in (long, averages)] > [
        short.metrics["cost/bytes_up"] + short.metrics["cost/bytes_down"]
    ] * 2
    comparison = free(*runs)
    (pair,) = comparison.at_bytes.pairs["fedstacking"] if comparison.at_bytes else ()
    assert (pair.level.run_id, pair.level.value) == (
        short.run_id,
        short.metrics["server/accuracy"],
    )
    assert (pair.baseline.run_id, pair.baseline.server_round) == (averages.run_id, 19)
    (at_end,) = comparison.finished.pairs["fedstacking"]
    assert (at_end.level.run_id, at_end.level.value) == (
        long.run_id,
        long.metrics["server/accuracy"],
    )
    (equal,) = comparison.at_rounds.pairs["fedstacking"]
    assert (equal.level.server_round, equal.baseline.server_round) == (6, 6)


# ---------------------------------------------------------------------------- with other keys
def test_rounds_may_belong_to_the_level() -> None:
    """FedAvg's 8 rounds against stacks of 5 and 3: each at its end, whatever it is called."""
    runs = [fedavg(8), stack(5, 0.9, each=20), stack(3, 0.7, each=20)]
    comparison = compare(runs, baseline=f"strategy=fedavg,{ROUNDS}=8")
    assert comparison.levels == ("fedavg 8", "fedstacking 3", "fedstacking 5")
    for level, mean in (("fedstacking 3", 0.7), ("fedstacking 5", 0.9)):
        assert row(comparison.at_end, level).baseline_mean == pytest.approx(0.8)
        assert row(comparison.at_end, level).mean == mean
        # 160 bytes: five rounds of 40 are beyond them, and three of 40 are not.
        assert row(comparison.at_bytes, level).mean == 0.7
    assert not any("count" in note for note in comparison.notes)


def test_the_shorter_run_has_the_rate_that_was_chosen() -> None:
    """The stack of 5 rounds takes rate 2 by its own eval/; so does the one of 3 that stands in."""
    runs = []
    for rate, chosen in (("1", 0.1), ("2", 0.2)):
        for made in (
            fedavg(5, model__learning_rate=rate),
            stack(5, 0.9, each=15, model__learning_rate=rate),
            stack(3, 0.6 + chosen, each=15, model__learning_rate=rate),
        ):
            curves = {**made.curves, "eval/accuracy": {made.last_round: chosen}}
            runs.append(
                replace(made, curves=curves, metrics={**made.metrics, "eval/accuracy": chosen})
            )
    comparison = compare(runs, tune=["model.learning_rate"], by="eval/accuracy")
    assert row(comparison.at_bytes, "fedstacking").mean == pytest.approx(0.6 + 0.2)
    assert any(note.startswith("2 runs of fedstacking with num") for note in comparison.notes)
