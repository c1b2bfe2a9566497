"""What the jobs of a sweep tell whoever started it, and the text that it closes with."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fl_app.cli import sweep
from fl_app.cli.job_processes import job_log
from fl_app.cli.jobs import Job, note, read_jobs, same_as, tell_swept, with_config
from fl_app.cli.sweep import has_failed, summarise
from fl_app.config.serialization import from_dict
from fl_app.config.sweep import Sweep


def job(number: int, strategy: str, seed: int, accuracy: float, status: str = "FINISHED") -> Job:
    """Make a job that is not recorded anywhere else."""
    data = {"strategy": {"name": strategy}, "seed": seed, "tracking": {"name": "none"}}
    config = from_dict(data)
    told = with_config(Job(number, [f"strategy={strategy}", f"seed={seed}"], status), config)
    return replace(told, metrics={"eval/accuracy": accuracy, "server/accuracy": accuracy})


def test_jobs_come_back_as_they_were_noted() -> None:
    """Whatever jobs note, at a time and in any order, is read back whole and by number."""
    jobs = [job(number, "fedavg", number, 0.5 + number / 100) for number in range(40)]
    with job_log() as path:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(note, reversed(jobs)))
        assert read_jobs(path) == jobs


def test_a_job_that_was_not_run_is_counted_once() -> None:
    """It has the id of the run that it would have been, and is in no mean; it did not fail."""
    first = replace(job(0, "n_average", 0, 0.8), run_id="r0")
    again = replace(job(1, "n_average", 0, 0.0, "SKIPPED"), metrics={}, same_as=0)
    with job_log() as path:
        for one in (again, first, job(2, "fedavg", 0, 0.5)):
            note(one)
        jobs = read_jobs(path)
    assert [one.run_id for one in jobs] == ["r0", "r0", ""]
    assert not jobs[1].failed
    lines = [line for line in summarise(jobs).splitlines() if "strategy=" in line]
    assert [line.split()[:3] for line in lines] == [
        ["strategy=fedavg", "1", "0.5000"],
        ["strategy=n_average", "1", "0.8000"],
    ]


def tried(number: int, method: str, rate: float, accuracy: float, **changes: Any) -> Job:
    """Make a job of a sweep of methods and rates."""
    strategy, _, model = method.partition("_")
    data = {"strategy": {"name": strategy}, "model": {"name": model or "softmax"}}
    data["model"] |= {"learning_rate": rate}
    told = Job(number, [f"method={method}", f"model.learning_rate={rate}"], "FINISHED")
    metrics = {"eval/accuracy": accuracy, "server/accuracy": 1 - accuracy}
    return replace(with_config(told, from_dict(data)), metrics=metrics, **changes)


def test_the_strongest_averaging_is_the_baseline() -> None:
    """The FedAvg whose best rate is best by ``eval/``, never by test rows; the rate is tuned."""
    rates = {"fedavg_softmax": (0.7, 0.8), "fedavg_mlp": (0.1, 0.9), "fedstacking": (0.5, 0.5)}
    jobs = [
        tried(2 * i + k, method, 0.1 + k, accuracy)
        for i, (method, own) in enumerate(rates.items())
        for k, accuracy in enumerate(own)
    ]
    question = sweep._question(jobs)
    assert question is not None
    assert question == sweep._Question(
        "strategy=fedavg,model=mlp", "server/accuracy", ("model.learning_rate",), "eval/accuracy"
    )
    assert question.command("7", "") == (
        "fl-kit report --sweep 7 --baseline strategy=fedavg,model=mlp "
        "--tune model.learning_rate --by eval/accuracy"
    )
    assert sweep._question(jobs[:4]) is None
    assert sweep._question(jobs[4:]) is None


def test_of_equal_averagings_rounding_chooses_no_baseline() -> None:
    """Means of equally many right rows may differ in their last digits; the first name counts."""
    for one, other in ((12 / 13, 0.923076923076923), (0.923076923076923, 12 / 13)):
        rates = {"fedavg_softmax": one, "fedavg_mlp": other, "fedstacking": 0.5}
        jobs = [tried(i, method, 0.1, own) for i, (method, own) in enumerate(rates.items())]
        question = sweep._question(jobs)
        assert question is not None
        assert question.baseline == "strategy=fedavg,model=mlp"


def test_a_rate_that_diverges_has_been_tried() -> None:
    """Where rates are tuned it fails no sweep, unless none of its method and seed is left."""
    bad = {"status": "FAILED", "error": "round 3: server/mse is nan: training diverged; lower it"}
    good = [tried(0, "fedavg_mlp", 0.1, 0.9), tried(1, "fedstacking", 0.1, 0.9)]
    lost = tried(2, "fedavg_mlp", 4.0, 0.0, **bad)
    assert not has_failed([*good, lost])
    assert has_failed([*good, replace(lost, error="no disk")])
    assert has_failed([*good, tried(2, "fedavg_softmax", 4.0, 0.0, **bad)])
    assert has_failed([good[0], lost])  # nothing is compared


def test_which_jobs_are_the_same_is_told_to_all_processes() -> None:
    """By number, in the environment, until the command is over."""
    with job_log():
        tell_swept(Sweep(("seed",), {7: 2}))
        assert (same_as(7), same_as(2)) == (2, None)
    assert same_as(7) is None


def test_the_log_is_gone_afterwards() -> None:
    """Neither the file nor the variable outlives the command; a note then goes nowhere."""
    with job_log() as path:
        assert os.environ["FL_APP_SWEEP_LOG"] == str(path)
    assert not path.exists()
    assert "FL_APP_SWEEP_LOG" not in os.environ
    note(job(0, "fedavg", 0, 0.5))


def test_a_sweep_is_summarised_over_seeds() -> None:
    """A configuration is one row with the mean of its seeds; the best by ``eval/`` is marked."""
    jobs = [
        job(0, "fedavg", 0, 0.80),
        job(1, "fedavg", 1, 0.90),
        job(2, "fedadam", 0, 0.70),
        job(3, "fedadam", 1, 0.60),
    ]
    rows = {line.split()[0]: line for line in summarise(jobs).splitlines() if "=" in line}
    assert "0.8500 ± 0.0707" in rows["strategy=fedavg"]
    assert rows["strategy=fedavg"].endswith("best")
    assert "0.6500" in rows["strategy=fedadam"]
    assert not rows["strategy=fedadam"].endswith("best")


def test_a_failed_job_has_its_line() -> None:
    """What failed is told with its overrides and its reason, and is in no mean."""
    bad = replace(job(1, "fedavg", 1, 0.0, "FAILED"), error="no disk")
    text = summarise([job(0, "fedavg", 0, 0.8), bad])
    assert "FAILED: job 1: strategy=fedavg seed=1: no disk" in text
    assert "0.8000" in text
    assert bad.failed
    assert not job(0, "fedavg", 0, 0.8).failed


def test_failed_jobs_stand_in_their_order() -> None:
    """Job 2 comes before job 10."""
    bad = [replace(job(n, "fedavg", n, 0.0, "FAILED"), error="no disk") for n in (10, 2, 1)]
    lines = summarise([job(0, "fedavg", 0, 0.8), *bad]).splitlines()
    assert [line.split()[2] for line in lines if "FAILED" in line] == ["1:", "2:", "10:"]


def test_untracked_sweeps_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison needs the record; without one there is a summary only, and no store is made."""
    monkeypatch.setenv("FL_APP_HOME", str(tmp_path / "home"))
    text = summarise([job(0, "fedavg", 0, 0.8), job(1, "fedadam", 0, 0.9)])
    assert "at equal rounds" not in text
    assert not (tmp_path / "home").exists()
