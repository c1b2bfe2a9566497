"""What a sweep's jobs tell the process that started them, and the table that it closes with.

A job may run in another process (Hydra's joblib launcher), so each appends one line to a file that
an environment variable names. The parent reads the lines when Hydra has returned.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fl_app.errors import FlAppError, printable
from fl_app.launch import param_of
from fl_app.schema import Config, MlflowConfig, digest, effective

if TYPE_CHECKING:
    from fl_app.config import Sweep
    from fl_app.report import RunSummary

__all__ = [
    "Job",
    "finished_before",
    "job_log",
    "note",
    "read_jobs",
    "same_as",
    "summarise",
    "swept",
    "tell_swept",
    "with_config",
]

_LOG, _KEYS, _SAME = "FL_APP_SWEEP_LOG", "FL_APP_SWEEP_KEYS", "FL_APP_SWEEP_SAME"
COMPARED, BASELINE = "strategy.name", "fedavg"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Parameters
    ----------
    number : int
        Its number in the sweep.
    overrides : sequence of str
        What was swept over for it.
    status : str
        ``FINISHED``, ``FAILED``, ``KILLED`` or ``SKIPPED``.
    error : str
        Why it failed, in one line.
    params : mapping of str to str
        Its flattened config without what changes no number of it; empty where there was none.
    metrics : mapping of str to float
        Its last metrics.
    run_id : str
        MLflow run id, "" without one.
    sweep_id : str
        Name of the sweep's folder.
    uri : str
        Tracking URI of its config, "" for the default.
    tracked : bool
        Whether it was recorded in MLflow.
    same_as : int or None
        Number of the earlier job whose run would have been the same; None where it has its own.
    """

    number: int
    overrides: Sequence[str]
    status: str
    error: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    run_id: str = ""
    sweep_id: str = ""
    uri: str = ""
    tracked: bool = False
    same_as: int | None = None

    @property
    def failed(self) -> bool:
        """Whether it did not do what it was started for."""
        return self.status in ("FAILED", "KILLED")


@contextmanager
def job_log() -> Iterator[Path]:
    """Give jobs of this process and of those that it starts a file to append to."""
    descriptor, name = tempfile.mkstemp(prefix="fl_app-sweep-", suffix=".jsonl")
    os.close(descriptor)
    os.environ[_LOG] = name
    path = Path(name)
    try:
        yield path
    finally:
        for name in (_LOG, _KEYS, _SAME):
            os.environ.pop(name, None)
        path.unlink(missing_ok=True)


def tell_swept(sweep: Sweep) -> None:
    """Tell the jobs, in whatever process, what the sweep is over and which are the same run."""
    os.environ[_KEYS] = " ".join(sweep.keys)
    os.environ[_SAME] = json.dumps(dict(sweep.same))


def swept(overrides: Sequence[str]) -> list[str]:
    """Return those of a job's overrides that differ from job to job.

    All of them where nobody has told (a sweeper of somebody else's).
    """
    keys = os.environ.get(_KEYS, "").split()
    return [o for o in overrides if o.partition("=")[0] in keys] or list(overrides)


def same_as(number: int) -> int | None:
    """Return the number of the first job that is the same run as a job; None where it has its own.

    Known before the first job starts: jobs may run at the same time.
    """
    found: int | None = json.loads(os.environ.get(_SAME, "{}")).get(str(number))
    return found


def note(job: Job) -> None:
    """Append a job to the log, where there is one."""
    path = os.environ.get(_LOG)
    if path and Path(path).exists():
        # One write of one line: processes that append at a time do not mix theirs.
        with open(path, "ab", buffering=0) as file:
            file.write((json.dumps(asdict(job)) + "\n").encode())


def read_jobs(path: Path) -> list[Job]:
    """Return the jobs of a log by their number; one that was not run has its first one's run id."""
    jobs = {
        job.number: job for job in (Job(**json.loads(x)) for x in path.read_text().splitlines())
    }
    for job in jobs.values():
        if (first := jobs.get(-1 if job.same_as is None else job.same_as)) is not None:
            jobs[job.number] = replace(job, run_id=first.run_id, metrics=first.metrics)
    return [jobs[number] for number in sorted(jobs)]


def with_config(job: Job, config: Config) -> Job:
    """Return a job that says what its config is."""
    tracking = config.tracking
    uri = (tracking.uri or "") if isinstance(tracking, MlflowConfig) else ""
    tracked = isinstance(tracking, MlflowConfig)
    return replace(job, params=effective(config), tracked=tracked, uri=uri)


def finished_before(config: Config) -> RunSummary | None:
    """Return the FINISHED run of the same config and the same data, where ``skip_finished`` asks.

    A deployment's server does not know the data, so nothing is ever left out there.
    """
    if not config.skip_finished or config.runtime.name == "deployment":
        return None
    from fl_app.data.partition import whole_table
    from fl_app.report import find_finished

    tracking = config.tracking
    uri = tracking.uri if isinstance(tracking, MlflowConfig) else None
    tags = {"config.sha256": digest(config), "data.sha256": whole_table(config).sha256}
    return find_finished(uri, tags)


def summarise(jobs: Sequence[Job]) -> str:
    """Return the text that closes a sweep.

    A mean over seeds for each configuration, the best one, and a line for each job that failed.
    Where strategies were swept beside FedAvg and the runs are in MLflow, also the comparison of
    ``fl-kit report``.

    Parameters
    ----------
    jobs : sequence of Job
        All jobs that began.
    """
    from fl_app.report import RunSummary, summary_blocks, summary_table, to_text

    jobs = [job for job in jobs if job.same_as is None]
    runs = [
        RunSummary(
            run_id=job.run_id or f"job {job.number}",
            params=job.params,
            metrics=job.metrics,
            status="FINISHED" if job.status == "SKIPPED" else job.status,
            error=job.error,
            name=" ".join([f"job {job.number}:", *job.overrides]),
        )
        for job in jobs
    ]
    keys = {param_of(override) for job in jobs for override in job.overrides}
    parts = [to_text(summary_blocks(summary_table(runs, keys))), _comparison(jobs), _where(jobs)]
    return "\n\n".join(part.strip("\n") for part in parts if part)


def _where(jobs: Sequence[Job]) -> str:
    """Say where the runs are."""
    recorded = (job for job in jobs if job.tracked and job.run_id and job.status != "SKIPPED")
    tracked = next(recorded, None)
    if tracked is None:
        return ""
    uri = f" --uri {tracked.uri}" if tracked.uri else ""
    return printable(f"the runs in MLflow: fl-kit ui{uri}, tag sweep.id = {tracked.sweep_id}")


def _comparison(jobs: Sequence[Job]) -> str:
    """Compare the strategies of a sweep with FedAvg; "" where it was no such sweep."""
    done = [job for job in jobs if not job.failed and job.params]
    levels = {job.params.get(COMPARED) for job in done}
    first = done[0] if done else None
    if first is None or BASELINE not in levels or len(levels) < 2 or not first.tracked:
        return ""
    from fl_app.report import compare, comparison_blocks, read_these, to_text

    metrics = sorted(name for name in first.metrics if name.startswith("server/"))
    metric = next((m for m in metrics if m.endswith("/accuracy")), "server/mse")
    try:
        # By id: a job that was skipped is a run of an earlier sweep.
        runs = read_these(first.uri or None, [job.run_id for job in done], metric)
        compared = compare(runs, baseline=f"strategy={BASELINE}", metric=metric)
    except FlAppError as error:
        return f"no comparison: {error}"
    text = to_text(comparison_blocks(compared, []))
    if any(job.status == "SKIPPED" for job in done):
        return text
    by = "" if metric.endswith("/accuracy") else f" --metric {metric}"
    again = printable(f"the same again: fl-kit report --sweep {first.sweep_id}{by}")
    return f"{text}\n{again}"
