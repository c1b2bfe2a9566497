"""Says where a sweep's runs are in MLflow, with a link to its charts for each experiment.

The sweep's parent writes the view that a link opens, once, when all jobs are over. Where it cannot
be written the link has the filter alone.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fl_app.config.run_request import param_of
from fl_app.errors import FlAppError, masked, printable

if TYPE_CHECKING:
    from fl_app.cli.jobs import Job

__all__ = ["METHOD", "where"]

METHOD = ("strategy.name", "model.name", "num_server_rounds")
"""Params of which a method may have its own."""
_MOST_NAMED = 100
"""Runs that a filter names one by one, where they are of several sweeps."""
_LONGEST_LINE = 10_000
_PAGE = 100  # a server's page must arrive within MLflow's time limit


def where(jobs: Sequence[Job], asks: bool = True) -> str:
    """Say where the runs of a sweep are; "" where MLflow has none of them.

    Parameters
    ----------
    jobs : sequence of Job
        Those with a run of their own, or of an earlier sweep.
    asks : bool, default True
        Whether MLflow may be asked, for the links.
    """
    recorded = [job for job in jobs if job.tracked and job.run_id]
    if not recorded:
        return ""
    lines = [_command(recorded)]
    if asks:
        with contextlib.suppress(FlAppError):  # what is wrong with a store the comparison says
            lines += _links(recorded)
    return "\n".join(printable(line, _LONGEST_LINE) for line in lines)


def _command(jobs: Sequence[Job]) -> str:
    """Return the line with which anybody finds the runs: what opens the UI, and their filter."""
    from fl_app.tracking.mlflow.uri import default_uri, is_http

    job = jobs[0]
    uri = f" --uri {shlex.quote(job.uri)}" if job.uri else ""
    words = [] if is_http(job.uri or default_uri()) else [f"fl-kit ui{uri}"]
    if any(job.status != "SKIPPED" for job in jobs):
        words.append(f"filter tags.`sweep.id` = '{job.sweep_id}'")
    return f"the runs in MLflow: {', '.join(words) or masked(job.uri or default_uri())}"


def _links(jobs: Sequence[Job]) -> list[str]:
    """Keep the views of a sweep, one for each experiment that has runs of it; link to them."""
    from fl_app.report.reading import existing, failures_named, pages
    from fl_app.tracking.mlflow.backend import load_mlflow, quiet
    from fl_app.tracking.mlflow.uri import charts_url

    uri, sweep = existing(jobs[0].uri or None), jobs[0].sweep_id
    # The second part leaves out the run that holds the comparison.
    own = f"tags.`sweep.id` = '{sweep}' and tags.strategy LIKE '%'"
    lines = []
    with quiet(), failures_named(uri):
        client = load_mlflow().MlflowClient(uri)
        names = {one.experiment_id: one.name for one in pages(client.search_experiments)}
        words = {"max_results": _PAGE, "order_by": ["attributes.start_time ASC"]}
        own_runs = pages(client.search_runs, [*names], own, **words)
        found = {run.info.run_id: run for run in own_runs}
        new = set(found)
        for job in jobs:
            if job.run_id not in found:
                found[job.run_id] = client.get_run(job.run_id)
        for place in dict.fromkeys(run.info.experiment_id for run in found.values()):
            runs = [run for run in found.values() if run.info.experiment_id == place]
            ids = [run.info.run_id for run in runs]
            is_mixed = not new.issuperset(ids) and len(ids) <= _MOST_NAMED
            only = f"attributes.run_id IN ({', '.join(map(repr, ids))})" if is_mixed else own
            key = _kept(client, uri, place, only, runs, jobs)
            lines.append(f"  {names[place]}: {charts_url(uri, place, only, key)}")
    return lines


def _kept(
    client: Any, uri: str, place: str, only: str, runs: Sequence[Any], jobs: Sequence[Job]
) -> str:
    """Keep the view of a sweep in an experiment; return its key, "" where there is none."""
    from fl_app.tracking.mlflow.chart_view import View, keep_view, view_key

    metrics = {name for run in runs for name in run.data.metrics}
    main = _main(metrics, jobs[0].params.get("objective", "null"))
    good = [key for key in (f"server/{main}", f"eval/{main}") if key in metrics]
    groups = _groups(jobs, [run.data.params for run in runs])
    if len({tuple(run.data.params.get(key) for key in groups) for run in runs}) == len(runs):
        groups = []  # a line a run, in its own colour
    fair = [f"fairness/{main}_worst", f"fairness/{main}_gap", *good[1:]]
    view = View(
        name=f"sweep {jobs[0].sweep_id}",
        where=only,
        groups=groups,
        good=[(key,) for key in good[:1]],
        fair=[key for key in fair if key in metrics],
        metrics=metrics,
        num_runs=len(runs),
    )
    key = view_key("sweep", jobs[0].sweep_id)
    return key if keep_view(client, uri, place, key, view) else ""


def _groups(jobs: Sequence[Job], params: Sequence[dict[str, str]]) -> list[str]:
    """Return what was swept and differs between runs, but for the seed; else the strategy."""
    keys = dict.fromkeys(param_of(override) for job in jobs for override in job.overrides)
    if "method" in keys:
        keys = dict.fromkeys((*METHOD, *keys))
    chosen = [key for key in keys if key != "seed" and len({one.get(key) for one in params}) > 1]
    if "method" in keys:  # of one strategy with its model there may be several
        for key in sorted({key for one in params for key in one if key.startswith("strategy.")}):
            if key not in chosen and _tells(key, chosen, params):
                chosen.append(key)
    return chosen or ["strategy.name"]


def _tells(key: str, chosen: Sequence[str], params: Sequence[dict[str, str]]) -> bool:
    """Return whether a param tells runs apart that chosen ones and the seed do not."""
    values: dict[tuple[str | None, ...], set[str | None]] = {}
    for one in params:
        values.setdefault(tuple(one.get(k) for k in (*chosen, "seed")), set()).add(one.get(key))
    return any(len(several) > 1 for several in values.values())


def _main(metrics: set[str], objective: str) -> str:
    """Return the metric that says how good runs are: the objective's, else the usual ones."""
    kinds = (objective.partition("/")[2], "accuracy", "mse")
    known = [kind for kind in kinds if {f"server/{kind}", f"eval/{kind}"} & metrics]
    return known[0] if known else "accuracy"
