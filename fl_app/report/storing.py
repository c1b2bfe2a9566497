"""Keeps a sweep's comparison in MLflow: one run named ``comparison`` beside the sweep's own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from fl_app.report.comparing import Comparison, Outcome
from fl_app.report.reading import existing, failures_named
from fl_app.report.runs import FINISHED
from fl_app.report.writing import write_report
from fl_app.tracking.keys import REPORT_TAG
from fl_app.tracking.mlflow_store import load_mlflow, no_progress_bars, quiet

__all__ = ["store_report"]

_NAME = "comparison"


def store_report(
    uri: str | None,
    sweep: str,
    comparison: Comparison,
    outcomes: Sequence[Outcome] = (),
    command: str = "",
) -> str:
    """Store ``report.md``, ``report.csv`` and ``report.json`` as artifacts of one run of MLflow.

    The run has the tags ``sweep.id`` and ``fl_app.report``, which tells it from a run that trained,
    and stands in the experiment of the comparison's first run. A sweep has one such run: what it
    holds is replaced.

    Parameters
    ----------
    uri : str, optional
        Tracking URI; by default where runs are logged.
    sweep : str
        The tag ``sweep.id`` of its runs.
    comparison, outcomes, command
        As in :func:`~fl_app.report.write_report`.

    Returns
    -------
    str
        The run's id.

    Raises
    ------
    InputError
        If the store cannot be read or written to. Its run is then FAILED, where the store still
        takes that.
    """
    store = existing(uri)
    with (
        quiet(),
        no_progress_bars(),
        failures_named(store),
        tempfile.TemporaryDirectory() as folder,
    ):
        write_report(folder, comparison, outcomes, command)
        client = load_mlflow().MlflowClient(store)
        first = next(iter(next(iter(comparison.design.runs.values())).values()))
        tags = {"sweep.id": sweep, REPORT_TAG: "true"}
        where = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        experiments = [one.experiment_id for one in client.search_experiments()]
        if found := client.search_runs(experiments, where, max_results=1):
            run_id = str(found[0].info.run_id)
        else:
            experiment = client.get_run(first.run_id).info.experiment_id
            run_id = str(client.create_run(experiment, tags=tags, run_name=_NAME).info.run_id)
        status = "FAILED"
        try:
            client.log_artifacts(run_id, folder)
            status = FINISHED
        finally:
            client.set_terminated(run_id, status)
    return run_id
