"""Keeps chart views in MLflow: how good, how fair, what it costs, the rest closed.

MLflow's page of an experiment has "Saved views", each an experiment tag that a link opens. The
format is one of MLflow's UI, no API, so it is written for the versions whose UI was tried, and all
that knows it is here. A view of ours holds a digest of itself: what somebody has changed in the UI
is theirs, and is neither replaced nor removed.

References
----------
MLflow, tracking: https://mlflow.org/docs/latest/ml/tracking/
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from fl_app.tracking.mlflow.upload import Run
from fl_app.tracking.mlflow.uri import is_http

__all__ = [
    "KEPT",
    "KNOWN",
    "View",
    "is_ours",
    "keep_view",
    "keep_view_of_run",
    "state_of",
    "tag_of",
    "view_key",
]

KNOWN = frozenset({"3.17.2"})
"""Versions of MLflow whose UI reads these views: a wrong word in one breaks the whole page."""
KEPT = 10
"""Views of sweeps, and as many of runs, that an experiment keeps: MLflow's UI allows 40 in all."""
LONGEST = 20_000
"""Characters of an experiment's tag."""
_TAG, _PREFIX, _OWN = "mlflow.sharedViewState.", "fl_app-", "fl_app"
_PACKED = "deflate;"
_WITHOUT_SLASH = "Model metrics"
_UP = "cost/bytes_up"
_COSTS = (_UP, "cost/bytes_down", "cost/seconds")
_PREFIXES = ("eval", "fairness", "model", "server", "train")


@dataclass(frozen=True)
class View:
    """What a view shows.

    Parameters
    ----------
    name : str
        What the UI lists it as.
    where : str
        Which runs, as MLflow's search takes it.
    groups : sequence of str
        Params whose values make a line each, its mean and range over all else; none: a line a run.
    good : sequence of tuples of str
        Metrics that say how good runs are, those of a tuple in one chart.
    fair : sequence of str
        Metrics that say how fair they are.
    metrics : collection of str
        All that the runs have.
    num_runs : int
        How many runs there are.
    """

    name: str
    where: str
    groups: Sequence[str]
    good: Sequence[tuple[str, ...]]
    fair: Sequence[str]
    metrics: Collection[str]
    num_runs: int


def view_key(kind: Literal["sweep", "run"], name: str) -> str:
    """Return the key of the view of a sweep or a run, by its id."""
    return f"{_PREFIX}{kind}-{name}"


def keep_view(client: Any, uri: str, experiment_id: str, key: str, view: View) -> bool:
    """Keep a view in an experiment, in place of the one that it had under this key.

    Of our views the newest :data:`KEPT` stay; what somebody changed stays in any case.

    Parameters
    ----------
    client : MlflowClient
        Of the store.
    uri : str
        Its tracking URI.
    experiment_id : str
        MLflow's id.
    key : str
        As :func:`view_key` returns it.
    view : View
        What it shows.

    Returns
    -------
    bool
        Whether there is a view to open under this key. There is none where the UI is of another
        version, the store takes nothing, or the view would be too large.
    """
    # A link less is no failure of the sweep, whatever the store, the server or a proxy raises.
    with contextlib.suppress(Exception):
        if _version(uri) not in KNOWN:
            return False
        tags = client.get_experiment(experiment_id).tags
        there = tags.get(_TAG + key)
        if there is not None and not is_ours(there):
            return True
        value = tag_of(view, int(time.time() * 1000))
        if len(value) > LONGEST:
            return False
        client.set_experiment_tag(experiment_id, _TAG + key, value)
        kind = _TAG + "-".join(key.split("-")[:2])
        alike = {name: of for name, of in tags.items() if name.startswith(kind)}
        _remove_old(client, experiment_id, {**alike, _TAG + key: value})
        return True
    return False


def keep_view_of_run(client: Any, uri: str, run: Run, name: str, tags: Mapping[str, str]) -> bool:
    """Keep a view of a single run that begins; return whether there is one.

    None is kept of a run of a sweep, which has a view of all its runs, nor of a run without a
    config: nobody knows which metrics say how good an app of somebody's own is.

    Parameters
    ----------
    client, uri
        As :func:`keep_view` takes them.
    run : Run
        The run.
    name : str
        What it is called.
    tags : mapping of str to str
        What it begins with.
    """
    if "config.sha256" not in tags or "sweep.id" in tags:
        return False
    kinds = ("accuracy", "mse")  # the charts of the other one have no values, and are not shown
    view = View(
        name=f"run {name} ({run.run_id[:8]})",
        where=f"attributes.run_id = '{run.run_id}'",
        groups=(),
        good=[tuple(f"{of}/{kind}" for of in ("server", "eval", "train")) for kind in kinds],
        fair=[f"fairness/{kind}_{of}" for kind in kinds for of in ("worst", "gap")],
        metrics=[*_COSTS, *(f"{prefix}/" for prefix in _PREFIXES)],
        num_runs=1,
    )
    return keep_view(client, uri, run.experiment_id, view_key("run", run.run_id), view)


def _remove_old(client: Any, experiment_id: str, tags: Mapping[str, str]) -> None:
    ours = [key for key in tags if is_ours(tags[key])]
    ours.sort(key=lambda key: int(json.loads(tags[key])["createdAt"]))
    for key in ours[:-KEPT]:
        with contextlib.suppress(Exception):  # another sweep has removed it
            client.delete_experiment_tag(experiment_id, key)


def _version(uri: str) -> str:
    """Return the version of the UI: a server's own, for a database what ``fl-kit ui`` starts."""
    if not is_http(uri):
        return version("mlflow")
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET", timeout=5, max_retries=0)
    return str(answer.text).strip()


# ------------------------------------------------------------ the format


def tag_of(view: View, now_ms: int) -> str:
    """Return a view as the tag's value.

    Parameters
    ----------
    view : View
        What it shows.
    now_ms : int
        Unix time in milliseconds.
    """
    state = state_of(view)
    state[_OWN] = _digest(view.name, state)
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    times = {"createdAt": now_ms, "updatedAt": now_ms}
    return json.dumps({"name": view.name, **times, "state": _PACKED + packed})


def is_ours(value: str) -> bool:
    """Return whether a tag's value is still what :func:`tag_of` made."""
    try:
        view = json.loads(value)
        packed = base64.b64decode(view["state"].removeprefix(_PACKED))
        state = json.loads(zlib.decompress(packed))
        told = state.pop(_OWN)
        return bool(told == _digest(view["name"], state)) and isinstance(view["createdAt"], int)
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return False


def _digest(name: str, state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([name, state], sort_keys=True).encode()).hexdigest()


def state_of(view: View) -> dict[str, Any]:
    """Return a view as the UI's own state of its page.

    Parameters
    ----------
    view : View
        What it shows.
    """
    sections: list[dict[str, Any]] = []
    charts: list[dict[str, Any]] = []
    for number, (name, cards, is_open) in enumerate(_sections(view)):
        section = f"{_PREFIX}section-{number}"
        sections.append(
            {
                "uuid": section,
                "name": name,
                "display": is_open,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        )
        for card in cards:
            charts.append(
                {
                    "uuid": f"{_PREFIX}chart-{len(charts)}",
                    "metricSectionId": section,
                    "deleted": False,
                    "isGenerated": False,
                    "runsCountToCompare": max(view.num_runs, 10),
                    **card,
                }
            )
    columns = [f"params.`{name}`" for name in dict.fromkeys((*view.groups, "seed"))]
    group_keys = [{"mode": "param", "groupByData": name} for name in view.groups]
    return {
        "searchFilter": view.where,
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns + [f"metrics.`{keys[0]}`" for keys in view.good],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": group_keys}
        if group_keys
        else None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _sections(view: View) -> Iterator[tuple[str, list[dict[str, Any]], bool]]:
    """Yield the sections with their charts, and whether they are open.

    What has no chart in the first ones MLflow draws by itself, in the section that has the name of
    the key's prefix: so the closed ones hold nothing of ours.
    """
    good = [_line(keys) for keys in view.good]
    if _UP in view.metrics:
        # Of a group MLflow would join the points of all runs, to and fro between the seeds.
        good += [_points(keys[0], _UP) if view.groups else _line(keys, _UP) for keys in view.good]
    if view.num_runs > 1:
        good += [_bar(keys[0]) for keys in view.good]
    fair = [_line((key,)) for key in view.fair]
    costs = [_line((key,)) for key in _COSTS if key in view.metrics]
    for name, cards in (("How good", good), ("How fair", fair), ("What it costs", costs)):
        if cards:
            yield name, cards, True
    for prefix in sorted({key.rpartition("/")[0] or _WITHOUT_SLASH for key in view.metrics}):
        yield prefix, [], False


def _line(keys: Sequence[str], over: str = "") -> dict[str, Any]:
    """Return curves over rounds, or over another metric."""
    return {
        "type": "LINE",
        "metricKey": keys[0],
        "selectedMetricKeys": list(keys),
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "metric" if over else "step",
        "selectedXAxisMetricKey": over,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": not over,
        "useGlobalLineSmoothing": True,
    }


def _points(key: str, over: str) -> dict[str, Any]:
    """Return last values over those of another metric."""
    axes = {"yaxis": {"key": key, "type": "METRIC"}, "xaxis": {"key": over, "type": "METRIC"}}
    return {"type": "SCATTER", **axes}


def _bar(key: str) -> dict[str, Any]:
    """Return the last values as bars."""
    return {"type": "BAR", "metricKey": key, "selectedMetricKeys": [key]}
