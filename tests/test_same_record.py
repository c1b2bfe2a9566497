"""The command that compares records says what differs, and finds the same the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from tools.same_record import FILE, Record, Scratch, differences, shorten, shortened

RUN, KEY = "fedavg on digits", "server/accuracy"


@pytest.fixture(scope="module")
def held() -> Record:
    record: Record = json.loads(FILE.read_text("utf-8"))["record"]
    return record


def test_the_record_has_all_runs(held: Record) -> None:
    """Seven strategies on four data sets, all of them finished, and at least 20 bad configs."""
    runs = [kinds for kinds in held.values() if "weights.sha256" in kinds.get("tags", {})]
    assert len(runs) == 7 * 4
    assert {run["run"]["status"] for run in runs} == {"FINISHED"}
    bad = [kinds["printed"] for name, kinds in held.items() if name.startswith("bad: ")]
    assert len(bad) >= 20
    assert {printed["status"] for printed in bad} == {"2"}
    assert FILE.stat().st_size < 300_000


def test_a_difference_is_named(held: Record) -> None:
    """One changed metric, one lost artifact and one new tag are three lines with both values."""
    other = copy.deepcopy(held)
    before = held[RUN]["metrics"][KEY]
    other[RUN]["metrics"][KEY] = "0.5 #00000000"
    lost = other[RUN]["artifacts"].pop("losses/final.npz")
    other[RUN]["tags"]["new"] = "1"
    assert differences(held, other) == [
        f"{RUN}, artifacts losses/final.npz: {lost!r} -> absent",
        f"{RUN}, metrics {KEY}: {before!r} -> '0.5 #00000000'",
        f"{RUN}, tags new: absent -> '1'",
    ]
    assert differences(held, copy.deepcopy(held)) == []


def test_a_series_differs_wherever_it_does() -> None:
    """The last value is shown, and the digest is of all rounds to the last bit."""
    series = [f"1:{0.1 + 0.2!r} 2:0.25 3:{1 / 3!r}", f"1:{0.3!r} 2:0.25 3:{1 / 3!r}"]
    short = [shorten(text + " 4:0.125 5:0.1234567890123456") for text in series]
    assert short[0] != short[1]
    assert all(text.startswith("5:0.1234567890123456 #") for text in short)
    record: Record = {"x": {"printed": {"stderr": "y" * 99, "stdout": "y" * 99}}}
    assert shortened(record)["x"]["printed"]["stderr"] == "y" * 99


def test_contents_count_and_not_their_format(tmp_path: Path) -> None:
    """Arrays are compared by name, dtype, shape and bytes, compressed or not; texts without ids."""
    scratch = Scratch(tmp_path)
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    np.savez(one, a=np.arange(3.0), b=np.ones(2))
    np.savez_compressed(two, b=np.ones(2), a=np.arange(3.0))
    assert scratch.content(one) == scratch.content(two)
    np.savez(two, a=np.arange(3.0), b=np.nextafter(np.ones(2), 2))
    assert scratch.content(one) != scratch.content(two)
    text = f"run {'0a' * 16} in {tmp_path}/x took 1.25 s of sweep 2026-01-02-03-04-05-678"
    assert scratch.tidy(text) == "run ID in SCRATCH/x took SECONDS of sweep SWEEP"
