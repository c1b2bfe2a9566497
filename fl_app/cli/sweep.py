"""The table that a sweep closes with: means over seeds, what failed, and who is better."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from fl_app.cli.jobs import Job
from fl_app.cli.sweep_charts import METHOD, where
from fl_app.config.options import MlflowConfig
from fl_app.config.run_request import param_of
from fl_app.config.schema import Config
from fl_app.config.serialization import digest
from fl_app.errors import DIVERGED, FlAppError, printable

if TYPE_CHECKING:
    from fl_app.report import Comparison, RunSummary

__all__ = ["cut_short", "finished_before", "has_failed", "summarise"]

COMPARED, _FEDAVG = "strategy.name", "fedavg"
_BASELINE = f"strategy={_FEDAVG}"
_RATE = "model.learning_rate"
_NO_RIVALS = (_FEDAVG, "local", "pooled")
"""Strategies of which no sentence is said: they are what others are compared with."""


def cut_short(jobs: Sequence[Job]) -> str:
    """Say what is left of a sweep that joblib gave up, since one of its processes was killed.

    Such a job has said of itself that its process was killed, and nothing since.
    """
    names = [f"job {j.number} ({' '.join(j.overrides)})" for j in jobs if j.status == "KILLED"]
    return (
        "a process of the joblib launcher was killed, and joblib ends the others with it: "
        f"{', '.join(names) or 'no job'} cut short, none begins; skip_finished=true runs the rest"
    )


def finished_before(config: Config) -> RunSummary | None:
    """Return the FINISHED run of the same config and the same data, where ``skip_finished`` asks.

    A deployment's server does not know the data, so nothing is ever left out there.
    """
    if not config.skip_finished or config.runtime.name == "deployment":
        return None
    from fl_app.data.client_data import whole_table
    from fl_app.report import find_finished

    tracking = config.tracking
    uri = tracking.uri if isinstance(tracking, MlflowConfig) else None
    tags = {"config.sha256": digest(config), "data.sha256": whole_table(config).sha256}
    return find_finished(uri, tags)


def has_failed(jobs: Sequence[Job]) -> bool:
    """Return whether a sweep did less than it was started for.

    Where rates are tried for a comparison, one whose training diverges has been tried, as long as
    another one of the same method, seed and data is left to choose.
    """
    question = _question([job for job in jobs if not job.failed and job.params])
    tuned = () if question is None else question.tune

    def place(job: Job) -> frozenset[tuple[str, str]]:
        return frozenset((k, v) for k, v in job.params.items() if k not in tuned)

    left = {place(j) for j in jobs if tuned and not j.failed and j.same_as is None}
    return any(j.failed and not (DIVERGED in j.error and place(j) in left) for j in jobs)


def summarise(jobs: Sequence[Job], compared: bool = True) -> str:
    """Return the text that closes a sweep.

    A mean over seeds for each configuration, the best one, and a line for each job that failed.
    Where strategies or methods were swept beside FedAvg and the runs are in MLflow, also the
    comparison of ``fl-kit report``, which is stored there too, and a sentence for each of them.
    Last, where the runs are. A job that was not run, being the same as another, is in none of it.

    Parameters
    ----------
    jobs : sequence of Job
        All jobs that began.
    compared : bool, default True
        Whether to compare strategies and to link to charts, which asks MLflow.
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
    keys |= {*METHOD} if "method" in keys else set()
    comparison = _comparison(jobs) if compared else ""
    parts = [to_text(summary_blocks(summary_table(runs, keys))), comparison, where(jobs, compared)]
    return "\n\n".join(part.strip("\n") for part in parts if part)


@dataclass(frozen=True)
class _Question:
    """What a sweep is compared by: the options of ``fl-kit report``."""

    baseline: str
    metric: str
    tune: tuple[str, ...]
    by: str

    def command(self, sweep_id: str, uri: str) -> str:
        """Return the command that compares the same again."""
        words = ["fl-kit", "report", "--sweep", sweep_id]
        words += ["--baseline", self.baseline] if self.baseline != _BASELINE else []
        words += ["--metric", self.metric] if not self.metric.endswith("/accuracy") else []
        words += [word for key in self.tune for word in ("--tune", key)]
        words += ["--by", self.by] if self.tune else []
        return shlex.join(words + (["--uri", uri] if uri else []))


def _comparison(jobs: Sequence[Job]) -> str:
    """Compare the strategies, or methods, of a sweep with FedAvg; "" where it was no such sweep."""
    done = [job for job in jobs if not job.failed and job.params]
    question = _question(done)
    if question is None:
        return ""
    from fl_app.report import (
        compare,
        comparison_blocks,
        read_runs,
        read_these,
        store_report,
        to_text,
    )

    first, by = done[0], question.by if question.tune else None
    # By id: a job that was skipped is a run of an earlier sweep.
    old = [job.run_id for job in done if job.status == "SKIPPED"]
    new = [job for job in jobs if job.status == "FINISHED" or DIVERGED in job.error]
    try:
        runs = read_these(first.uri or None, old, question.metric, by) if old else ()
        if new:  # with those whose training diverged, which have been tried
            runs += read_runs(
                first.uri or None, sweep=first.sweep_id, metric=question.metric, by=by
            )
        compared = compare(
            tuple({run.run_id: run for run in runs}.values()),
            baseline=question.baseline,
            metric=question.metric,
            tune=question.tune,
            by=by or "",
        )
    except FlAppError as error:
        return f"no comparison: {error}"
    lines = [to_text(comparison_blocks(compared, [])), *_sentences(compared)]
    again = "" if old else question.command(first.sweep_id, first.uri)
    if again:
        lines.append(printable(f"the same again: {again}"))
    try:
        store_report(
            first.uri or None, first.sweep_id, compared, (), again, experiment=first.experiment
        )
        lines.append("stored in MLflow as the run comparison, with the same sweep.id")
    except FlAppError as error:
        lines.append(f"the comparison is not stored in MLflow: {error}")
    return "\n".join(lines)


def _sentences(compared: Comparison) -> list[str]:
    """Say of each rival of FedAvg whether it is better; one line where cells do not allow it."""
    from fl_app.report import sentences

    values = compared.design.values
    rivals = [one for one in compared.levels if values[one][COMPARED] not in _NO_RIVALS]
    return [printable(text) for text in sentences(compared, rivals)]


def _question(done: Sequence[Job]) -> _Question | None:
    """Return how finished jobs are compared; None where they are no FedAvg and others, in MLflow.

    Where methods were swept, all that is a method's own belongs to a level. The rate is tuned
    where it was swept. Of several kinds of FedAvg the one that is best on the clients' validation
    rows is the baseline: the strongest rival, chosen without test rows.
    """
    if len({job.params.get(COMPARED) for job in done}) < 2 or not done[0].tracked:
        return None
    from fl_app.models.directions import higher_is_better
    from fl_app.tracking.metric_names import equal

    swept = {param_of(override) for job in done for override in job.overrides}
    keys = METHOD if "method" in swept else (COMPARED,)
    several = [key for key in keys if len({job.params.get(key) for job in done}) > 1]
    tune = tuple({_RATE} & swept)
    kind = "accuracy" if any(n.endswith("/accuracy") for n in done[0].metrics) else "mse"
    objective = done[0].params.get("objective", "null")
    by = f"eval/{kind}" if objective == "null" else objective
    sign = 1 if higher_is_better(by) else -1
    best_values: dict[tuple[str, ...], dict[frozenset[tuple[str, str]], float]] = {}
    for job in done:
        if job.params.get(COMPARED) == _FEDAVG:
            rest = {k: v for k, v in job.params.items() if k not in (*several, *tune)}
            values = best_values.setdefault(tuple(job.params.get(k, "") for k in several), {})
            value, place = sign * job.metrics.get(by, math.nan), frozenset(rest.items())
            values[place] = max(values.get(place, -math.inf), value)
    if not best_values:
        return None
    means = {one: fmean(values.values()) for one, values in best_values.items()}
    level = min(one for one, mean in means.items() if equal(mean, max(means.values())))
    pairs = zip(several, level, strict=True)
    baseline = ",".join(f"{key.removesuffix('.name')}={value}" for key, value in pairs)
    return _Question(baseline, f"server/{kind}", tune, by)
