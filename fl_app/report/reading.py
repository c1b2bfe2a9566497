"""From a tracking store to plain run summaries. Reads only: it makes no store and no experiment.

Measured with 200 runs of 21 rounds and 49 metrics, two cores: on SQLite the runs take 0.6 s and
their 600 curves 0.8 s (in threads longer); on a server 1.4 s and 6 s, which threads hide as far as
it is the way there and not the server that takes the time. MLflow's call for many curves at once is
no part of its client, and twice as fast at best.

References
----------
MLflow, searching runs: https://mlflow.org/docs/latest/ml/search/search-runs/
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.errors import InputError
from fl_app.report.choosing import DEFAULT_BY
from fl_app.report.convergence import EVAL_LOSSES
from fl_app.report.grounds import shares_test_rows
from fl_app.report.runs import BYTES, FINISHED, PATHS, RunSummary, beside, listed, one_line
from fl_app.tracking.files import read_npz
from fl_app.tracking.metric_names import FINAL_LOSSES, REPORT_TAG, sanitise
from fl_app.tracking.mlflow.backend import load_mlflow, no_progress_bars, quiet
from fl_app.tracking.mlflow.uri import check_uri, default_uri, is_http, masked, sqlite_path

__all__ = ["existing", "failures_named", "find_finished", "pages", "read_runs", "read_these"]

_THREADS = 8
_UNREADABLE = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile)
_PAGE = {True: 100, False: 1000}  # a server's page must arrive within MLflow's time limit


def read_runs(
    uri: str | None = None,
    *,
    experiment: str | None = None,
    sweep: str | None = None,
    metric: str = "server/accuracy",
    by: str | None = None,
) -> tuple[RunSummary, ...]:
    """Read runs with their params, tags and the curves of one metric and of the bytes.

    Read too: the curve of the eval loss, by which a run is judged, and of ``r2`` with ``mse``.
    Where all seeds share the test rows, the final model's losses on these rows are read too.

    Parameters
    ----------
    uri : str, optional
        Tracking URI; by default where runs are logged.
    experiment : str, optional
        Name of MLflow's experiment; by default all of them.
    sweep : str, optional
        The tag ``sweep.id`` that runs must have.
    metric : str, default "server/accuracy"
        The metric whose curve is read; also by a name that MLflow would not take as it is.
    by : str, optional
        The metric that chooses where something is tuned, "" for the default ones: read too, as a
        run counts with its last round only.

    Returns
    -------
    tuple of RunSummary
        Runs of every status, curves of the FINISHED ones only.

    Raises
    ------
    InputError
        If the store, the experiment or the sweep is not there, or holds no run.
    """
    store = existing(uri)
    with quiet(), failures_named(store):
        client = load_mlflow().MlflowClient(store)
        names = {e.experiment_id: e.name for e in pages(client.search_experiments)}
        found = _search(client, store, _chosen(names, experiment), sweep)
        return _with_curves(client, store, found, metric, by)


def read_these(
    uri: str | None,
    run_ids: Sequence[str],
    metric: str = "server/accuracy",
    by: str | None = None,
) -> tuple[RunSummary, ...]:
    """Read given runs, as :func:`read_runs` does.

    Parameters
    ----------
    uri : str, optional
        Tracking URI; by default where runs are logged.
    run_ids : sequence of str
        MLflow's ids.
    metric, by
        As there.

    Raises
    ------
    InputError
        If the store or one of the runs is not there.
    """
    store = existing(uri)
    with quiet(), failures_named(store):
        client = load_mlflow().MlflowClient(store)
        found = [client.get_run(run_id) for run_id in dict.fromkeys(run_ids)]
        return _with_curves(client, store, found, metric, by)


def find_finished(uri: str | None, tags: Mapping[str, str]) -> RunSummary | None:
    """Return the newest FINISHED run that has these tags, without curves; None where none has.

    Parameters
    ----------
    uri : str, optional
        Tracking URI; by default where runs are logged. A store that is not there has no run.
    tags : mapping of str to str
        Names to values.

    Raises
    ------
    InputError
        If the store cannot be read.
    """
    path = sqlite_path(uri or default_uri())
    if path is not None and not path.exists():
        return None
    store = existing(uri)
    where = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    with quiet(), failures_named(store):
        client = load_mlflow().MlflowClient(store)
        ids = [e.experiment_id for e in pages(client.search_experiments)]
        if not ids:
            return None
        only = f"attributes.status = '{FINISHED}' and {where}"
        newest = _runs(client, ids, only, max_results=10, order_by=["start_time DESC"])
        found = next(newest, None)
        return _summary(found, {}) if found else None


def existing(uri: str | None) -> str:
    """Return the URI of a store that is there; MLflow would make the file of one that is not."""
    from_env = not uri and bool(os.environ.get("MLFLOW_TRACKING_URI"))
    field = "MLFLOW_TRACKING_URI" if from_env else "tracking URI"
    store = uri or default_uri()
    path = sqlite_path(store)
    if path is None:
        return check_uri(store, field)
    if not path.exists():
        raise InputError(field, masked(store), "a store that exists; fl-app makes it with a run")
    store = check_uri(store, field)
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            where = "type = 'table' AND name = 'alembic_version'"
            made = database.execute(f"SELECT 1 FROM sqlite_master WHERE {where}").fetchone()
    except sqlite3.Error as error:
        raise InputError(field, masked(store), f"a database that can be read ({error})") from None
    if not made:
        raise InputError(field, masked(store), "a database of MLflow; this one has not its tables")
    return store


@contextlib.contextmanager
def failures_named(store: str) -> Iterator[None]:
    """Turn what MLflow raises, and what its artifacts' store does, into one line that names it."""
    try:
        yield
    except (load_mlflow().exceptions.MlflowException, OSError) as error:
        what = "server that answers" if is_http(store) else "store that MLflow can use"
        why = str(error).partition("Caused by ")[2] or str(error)
        raise InputError("tracking URI", masked(store), f"a {what} ({one_line(why)})") from None


def pages(search: Any, *words: Any, **named: Any) -> Iterator[Any]:
    """Yield everything that a paged search of MLflow finds."""
    token = None
    while True:
        page = search(*words, page_token=token, **named)
        yield from page
        token = page.token
        if not token:
            return


def _runs(client: Any, experiments: Sequence[str], where: str, **named: Any) -> Iterator[Any]:
    """Yield the runs that a search finds, without those that hold a report."""
    found = pages(client.search_runs, experiments, where, **named)
    return (run for run in found if REPORT_TAG not in run.data.tags)


def _chosen(names: dict[str, str], experiment: str | None) -> dict[str, str]:
    chosen = {id_: name for id_, name in names.items() if experiment in (None, name)}
    if chosen:
        return chosen
    there = f"one of {listed(sorted(names.values()))}" if names else "the store has no experiment"
    raise InputError("--mlflow-experiment", experiment, there)


def _search(client: Any, store: str, names: dict[str, str], sweep: str | None) -> list[Any]:
    """Return the runs of some experiments (id -> name), those of one sweep where one is named."""
    experiments = list(names)
    size = _PAGE[is_http(store)]
    if sweep is not None and not re.fullmatch(r"[^'\"`%\\]+", sweep):
        raise InputError("--sweep", sweep, "the tag sweep.id of a run")
    where = "" if sweep is None else f"tags.`sweep.id` = '{sweep}'"
    found = list(_runs(client, experiments, where, max_results=size))
    if found:
        return found
    if sweep is None:
        there = ", ".join(names[id_] for id_ in experiments)
        raise InputError("--mlflow-experiment", there, "an experiment that has runs")
    newest = islice(_runs(client, experiments, "", max_results=size), size)
    ids = list(dict.fromkeys(r.data.tags["sweep.id"] for r in newest if "sweep.id" in r.data.tags))
    raise InputError("--sweep", sweep, f"a sweep that has runs; newest: {listed(ids, 5) or 'none'}")


def _with_curves(
    client: Any, store: str, found: Sequence[Any], metric: str, by: str | None
) -> tuple[RunSummary, ...]:
    """Fetch the curves that a report needs, and only of runs that finished."""
    choosing = () if by is None else (by,) if by else DEFAULT_BY
    needed = (metric, *choosing, *BYTES, *EVAL_LOSSES, beside(metric))
    names = [name for name in dict.fromkeys(needed) if name]
    wanted = [
        (run.info.run_id, name, key)
        for run in found
        if run.info.status == FINISHED
        for name in names
        for key in [name if name in run.data.metrics else sanitise(name)]
        if key in run.data.metrics
    ]
    by_run: dict[str, dict[str, dict[int, float]]] = {}
    with ThreadPoolExecutor(_THREADS) as pool, no_progress_bars():
        do = pool.map if is_http(store) else map
        curves = do(lambda one: _curve(client, one[0], one[2]), wanted)
        for (run_id, name, _), curve in zip(wanted, curves, strict=True):
            by_run.setdefault(run_id, {})[name] = curve
        runs = [_summary(run, by_run.get(run.info.run_id, {})) for run in found]
        ids = [run.run_id for run in runs if run.finished and shares_test_rows(run, metric)]
        losses = dict(zip(ids, do(lambda r: _losses(client, r, metric), ids), strict=True))
    return tuple(replace(run, losses=losses.get(run.run_id)) for run in runs)


def _curve(client: Any, run_id: str, key: str) -> dict[int, float]:
    """Return a metric by step; of a step that was logged twice, the value logged last."""
    with quiet():
        history = client.get_metric_history(run_id, key)
    ordered = sorted(history, key=lambda m: (m.step, m.timestamp))
    return {int(m.step): float(m.value) for m in ordered}


def _losses(client: Any, run_id: str, metric: str) -> NDArray[np.float64] | None:
    """Return the final model's losses by test row; None where the run has none for the metric."""
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(run_id, FINAL_LOSSES, folder)
            losses = read_npz(Path(path))[metric.partition("/")[2]].astype(np.float64)
    except (*_UNREADABLE, load_mlflow().exceptions.MlflowException):
        return None
    return losses if losses.ndim == 1 and len(losses) and np.isfinite(losses).all() else None


def _summary(run: Any, curves: dict[str, dict[int, float]]) -> RunSummary:
    tags = {name: masked(value) for name, value in run.data.tags.items()}
    return RunSummary(
        run_id=str(run.info.run_id),
        params={name: _as_typed(name, masked(v)) for name, v in run.data.params.items()},
        tags=tags,
        curves=curves,
        metrics={key: float(value) for key, value in run.data.metrics.items()},
        status=str(run.info.status),
        error=one_line(tags.get("error", "")),
        name=run.info.run_name or "",
        start_ms=int(run.info.start_time or 0),
    )


def _as_typed(param: str, value: str) -> str:
    """Return a param, paths below the current folder as they would be typed there."""
    here = f"{os.getcwd()}{os.sep}"
    return value.replace(here, "") if param in PATHS else value
