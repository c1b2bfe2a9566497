"""Keeps a sweep's comparison in MLflow: one run named ``comparison`` beside the sweep's own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence

from fl_app.errors import InputError
from fl_app.home import home_dir
from fl_app.report.comparing import Comparison
from fl_app.report.expectations import Outcome
from fl_app.report.reading import existing, failures_named, pages
from fl_app.report.runs import FINISHED
from fl_app.report.writing import write_report
from fl_app.tracking.metric_names import REPORT_TAG
from fl_app.tracking.mlflow.backend import MlflowStore, load_mlflow, no_progress_bars, quiet

__all__ = ["store_report"]

_NAME, _RUNS = "comparison", f"{REPORT_TAG}.runs"


def store_report(
    uri: str | None,
    sweep: str,
    comparison: Comparison,
    outcomes: Sequence[Outcome] = (),
    command: str = "",
    experiment: str = "",
) -> str:
    """Store the files of :func:`~fl_app.report.write_report` as artifacts of one run of MLflow.

    The run has the tags ``sweep.id``, ``fl_app.report``, which tells it from a run that trained,
    and ``fl_app.report.runs``, the number of finished runs that it looked at. A sweep has one such
    run: what it holds is replaced, unless by less. Runs that ``skip_finished`` found in other
    sweeps are not read with ``--sweep``: a comparison made of them is not lost to one of the rest.

    Parameters
    ----------
    uri : str, optional
        Tracking URI; by default where runs are logged.
    sweep : str
        The tag ``sweep.id`` of its runs.
    comparison, outcomes, command
        As in :func:`~fl_app.report.write_report`.
    experiment : str
        Where the run is made, by its name; by default beside the comparison's first run.

    Returns
    -------
    str
        The run's id.

    Raises
    ------
    InputError
        If the store cannot be read or written to (its run is then FAILED, where the store still
        takes that), or what it holds is of more finished runs.
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
        experiments = [one.experiment_id for one in pages(client.search_experiments)]
        if found := client.search_runs(experiments, where, max_results=1):
            run_id = str(found[0].info.run_id)
            _require_no_fewer(comparison.num_runs, found[0].data.tags)
        else:
            place = client.get_run(first.run_id).info.experiment_id
            if experiment:
                place = MlflowStore(store, home_dir()).experiment_id(experiment)
            run_id = str(client.create_run(place, tags=tags, run_name=_NAME).info.run_id)
        status = "FAILED"
        try:
            client.log_artifacts(run_id, folder)
            client.set_tag(run_id, _RUNS, str(comparison.num_runs))
            status = FINISHED
        finally:
            client.set_terminated(run_id, status)
    return run_id


def _require_no_fewer(count: int, tags: Mapping[str, str]) -> None:
    """Refuse to replace a stored comparison by one that looked at fewer runs."""
    kept = int(tags.get(_RUNS, "0"))
    if count < kept:
        text = (
            f"at least the {kept} finished runs that the stored comparison of this sweep looked at "
            "(skip_finished may have found some in other sweeps); keep this one with --out"
        )
        raise InputError("--store", f"{count} runs", text)
