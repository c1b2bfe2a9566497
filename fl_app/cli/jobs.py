"""Jobs of a sweep: what each tells the process that started them, and what it is told.

A job may run in another process (Hydra's joblib launcher), so each appends one line to a file that
an environment variable names. The parent reads the lines when Hydra has returned.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fl_app.cli.job_processes import BEGUN, EARLIER, KEYS, LOG, SAME
from fl_app.config.options import MlflowConfig
from fl_app.config.schema import LAST, Config, data_name
from fl_app.config.serialization import effective

if TYPE_CHECKING:
    from fl_app.config.sweep import Sweep

__all__ = [
    "Job",
    "id_of",
    "note",
    "read_jobs",
    "resumed_or_begun",
    "same_as",
    "swept",
    "tell_swept",
    "with_config",
]

_DATED = re.compile(r"\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d-\d{6}")


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
    experiment : str
        MLflow experiment of its config, "" without one.
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
    experiment: str = ""
    tracked: bool = False
    same_as: int | None = None

    @property
    def failed(self) -> bool:
        """Whether it did not do what it was started for."""
        return self.status in ("FAILED", "KILLED")


def id_of(folder: str, chosen: bool) -> str:
    """Return the id of a sweep: the day and the time that its folder is named by.

    Parameters
    ----------
    folder : str
        The sweep's folder.
    chosen : bool
        Whether somebody chose it: then another sweep may have it too, and the id is the day and
        the time at which this one began.

    Notes
    -----
    A sweep that goes on with another one's runs has that one's id.
    """
    if earlier := os.environ.get(EARLIER):
        return earlier
    dated = "-".join(Path(folder).absolute().parts[-2:])
    is_own = _DATED.fullmatch(dated) and not chosen
    return dated if is_own else os.environ.get(BEGUN, dated)


def tell_swept(sweep: Sweep) -> None:
    """Tell the jobs, in whatever process, what the sweep is over and which are the same run."""
    os.environ[KEYS] = " ".join(key.lstrip("+") for key in sweep.keys)
    os.environ[SAME] = json.dumps(dict(sweep.same))
    if sweep.resumed:
        from fl_app.experiment.resuming import sweep_of

        os.environ[EARLIER] = sweep_of(sweep.resumed)


def resumed_or_begun(config: Config) -> Config:
    """Return a job's config; where ``resume=last`` finds no run of it, one that begins."""
    if config.resume != LAST:
        return config
    from fl_app.experiment.resuming import can_go_on

    return config if can_go_on(config) else replace(config, resume=None)


def swept(overrides: Sequence[str]) -> list[str]:
    """Return those of a job's overrides that differ from job to job.

    All of them where nobody has told (a sweeper of somebody else's).
    """
    keys = os.environ.get(KEYS, "").split()
    return [o for o in overrides if o.partition("=")[0] in keys] or list(overrides)


def same_as(number: int) -> int | None:
    """Return the number of the first job that is the same run as a job; None where it has its own.

    Known before the first job starts: jobs may run at the same time.
    """
    first: int | None = json.loads(os.environ.get(SAME, "{}")).get(str(number))
    return first


def note(job: Job) -> None:
    """Append a job to the log, where there is one; what is noted of it last holds."""
    path = os.environ.get(LOG)
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
    with_params = replace(job, params=effective(config))
    if not isinstance(tracking, MlflowConfig):
        return with_params
    experiment = tracking.experiment_name or data_name(config)
    return replace(with_params, tracked=True, uri=tracking.uri or "", experiment=experiment)
