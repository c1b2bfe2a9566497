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
from fl_app.schema import GROUPS, Config, MlflowConfig, digest, flatten

if TYPE_CHECKING:
    from fl_app.report import RunSummary

__all__ = [
    "Job",
    "finished_before",
    "job_log",
    "note",
    "read_jobs",
    "summarise",
    "swept",
    "tell_swept",
    "with_config",
]

_LOG, _KEYS = "FL_APP_SWEEP_LOG", "FL_APP_SWEEP_KEYS"
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
        Its flattened config, empty where there was none.
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
        for name in (_LOG, _KEYS):
            os.environ.pop(name, None)
        path.unlink(missing_ok=True)


def tell_swept(keys: Sequence[str]) -> None:
    """Tell the jobs, in whatever process, which keys the sweep is over."""
    os.environ[_KEYS] = " ".join(keys)


def swept(overrides: Sequence[str]) -> list[str]:
    """Return those of a job's overrides that differ from job to job.

    All of them where nobody has told (a sweeper of somebody else's).
    """
    keys = os.environ.get(_KEYS, "").split()
    return [o for o in overrides if o.partition("=")[0] in keys] or list(overrides)


def note(job: Job) -> None:
    """Append a job to the log, where there is one."""
    path = os.environ.get(_LOG)
    if path and Path(path).exists():
        # One write of one line: processes that append at a time do not mix theirs.
        with open(path, "ab", buffering=0) as file:
            file.write((json.dumps(asdict(job)) + "\n").encode())


def read_jobs(path: Path) -> list[Job]:
    """Return the jobs of a log by their number."""
    jobs = [Job(**json.loads(line)) for line in path.read_text().splitlines()]
    return sorted(jobs, key=lambda job: job.number)


def with_config(job: Job, config: Config) -> Job:
    """Return a job that says what its config is."""
    tracking = config.tracking
    uri = (tracking.uri or "") if isinstance(tracking, MlflowConfig) else ""
    tracked = isinstance(tracking, MlflowConfig)
    return replace(job, params=flatten(config), tracked=tracked, uri=uri)


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
    ``fl-kit report``, which is stored there too.

    Parameters
    ----------
    jobs : sequence of Job
        All jobs that began.
    """
    from fl_app.report import RunSummary, summary_blocks, summary_table, to_text

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
    keys = {_param(override) for job in jobs for override in job.overrides}
    parts = [to_text(summary_blocks(summary_table(runs, keys))), _comparison(jobs), _where(jobs)]
    return "\n\n".join(part.strip("\n") for part in parts if part)


def _param(override: str) -> str:
    """Return the param that an override sets."""
    key = override.partition("=")[0].lstrip("+~")
    return f"{key}.name" if key in GROUPS else key


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
    from fl_app.report import compare, comparison_blocks, read_these, store_report, to_text

    metrics = sorted(name for name in first.metrics if name.startswith("server/"))
    metric = next((m for m in metrics if m.endswith("/accuracy")), "server/mse")
    try:
        # By id: a job that was skipped is a run of an earlier sweep.
        runs = read_these(first.uri or None, [job.run_id for job in done], metric)
        compared = compare(runs, baseline=f"strategy={BASELINE}", metric=metric)
    except FlAppError as error:
        return f"no comparison: {error}"
    lines = [to_text(comparison_blocks(compared, []))]
    again = ""
    if not any(job.status == "SKIPPED" for job in done):
        by = "" if metric.endswith("/accuracy") else f" --metric {metric}"
        again = f"fl-kit report --sweep {first.sweep_id}{by}"
        lines.append(f"the same again: {printable(again)}")
    try:
        store_report(first.uri or None, first.sweep_id, compared, (), again)
        lines.append("stored in MLflow as the run comparison, with the same sweep.id")
    except FlAppError as error:
        lines.append(f"the comparison is not stored in MLflow: {error}")
    return "\n".join(lines)
