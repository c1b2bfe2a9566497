"""From a round's record to what MLflow shows: keys, values, tables. Pure functions, no MLflow.

MLflow's UI makes a chart section of a key's prefix before its last slash, so a client's number
stands last: ``train_client_loss/007`` is one section of many curves.

References
----------
MLflow's rules for names: https://mlflow.org/docs/latest/ml/tracking/tracking-api/
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_app.models.directions import higher_is_better
from fl_app.models.metrics import FEWEST_ROWS
from fl_app.tracking.records import Arrays, ClientRecord, RoundRecord

__all__ = [
    "DIRECTIONS_TAG",
    "FINAL_LOSSES",
    "MAX_SHOWN_CLIENTS",
    "MAX_SHOWN_VALUES",
    "REPORT_TAG",
    "MetricNames",
    "array_metrics",
    "artifact_path",
    "bytes_text",
    "directions_of",
    "equal",
    "round_metrics",
    "sanitise",
    "update_norm",
]

MAX_SHOWN_CLIENTS = 20
"""Clients up to which each has a curve of its own."""
MAX_SHOWN_VALUES = 32
"""Values in all arrays up to which they are shown one by one."""
MAX_KEY_LENGTH = 250
FINAL_LOSSES = "losses/final.npz"
"""Artifact with the final model's losses, one a test row, by the metric whose mean they are."""
DIRECTIONS_TAG = "higher_is_better"
"""Tag with the directions of metrics that the user has given, as JSON: name -> bool."""
REPORT_TAG = "fl_app.report"
"""Tag of a run of MLflow that holds a report: it trained nothing."""
_REFUSED = re.compile(r"[^/\w.\- :]")
_ROUNDING = 1e-9
_BLOCK = 1 << 20
_T = TypeVar("_T")


def equal(one: float, other: float) -> bool:
    """Return whether two values of a metric are equal but for rounding (1e-9 of their size).

    Means over clients of equally many right rows may differ in their last digits.

    Examples
    --------
    >>> equal(12 / 13, 0.923076923076923), equal(0.92, 0.93)
    (True, False)
    """
    return math.isclose(one, other, rel_tol=_ROUNDING)


def artifact_path(path: str) -> str:
    """Return the nearest path of an artifact inside its run.

    Parameters
    ----------
    path : str
        Meant to be relative, with forward slashes.

    Returns
    -------
    str
        `path` itself where it is; otherwise parts that lead elsewhere become ``_``.

    Examples
    --------
    >>> artifact_path("config/config.yaml"), artifact_path("../../etc/x"), artifact_path("")
    ('config/config.yaml', '_/_/etc/x', '_')
    """
    parts = path.replace("\0", "_").replace("\\", "_").split("/")
    inside = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    # MLflow takes any leading ".." for a way out.
    return f"_{inside[1:]}" if inside.startswith("..") else inside


def sanitise(key: str) -> str:
    """Return the nearest key that MLflow takes.

    Characters that it refuses become ``_``, as do the parts of a path that it would resolve
    (empty, ``.``, ``..``). A key longer than 250 characters is cut and ends in a checksum of the
    whole.

    Parameters
    ----------
    key : str
        Any text.

    Returns
    -------
    str
        `key` itself where MLflow takes it.

    Examples
    --------
    >>> sanitise("train/w[0]"), sanitise("/a//b/.."), sanitise("")
    ('train/w_0_', '_/a/_/b/_', '_')
    """
    name = artifact_path(_REFUSED.sub("_", key))
    if len(name) <= MAX_KEY_LENGTH:
        return name
    return f"{name[: MAX_KEY_LENGTH - 9]}_{_checksum(key):08x}"


class MetricNames:
    """Keys of one run: each raw key gets one sanitised name, and no two get the same.

    Among keys that arrive together, one that needs no change keeps its name, then order is
    alphabetical; a key whose name is taken ends in a checksum of its raw form. So the names depend
    on the keys alone and not on their order.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()

    def __call__(self, values: Mapping[str, _T]) -> dict[str, _T]:
        """Return the same values under their names."""
        if new := [key for key in values if key not in self._names]:
            self._assign(new)
        return {self._names[key]: value for key, value in values.items()}

    def _assign(self, keys: Iterable[str]) -> None:
        for key in sorted(keys, key=lambda k: (sanitise(k) != k, k)):
            name, count = sanitise(key), 0
            while name in self._taken:
                tail = f"_{_checksum(key) + count:08x}"
                name = sanitise(key)[: MAX_KEY_LENGTH - len(tail)] + tail
                count += 1
            self._names[key] = name
            self._taken.add(name)


def _checksum(key: str) -> int:
    return zlib.crc32(key.encode("utf-8", "surrogatepass"))


def directions_of(tags: Mapping[str, str]) -> dict[str, bool]:
    """Return the directions of metrics that a run's tags tell, name -> whether higher is better."""
    try:
        directions = json.loads(tags.get(DIRECTIONS_TAG, "{}"))
    except ValueError:
        return {}
    pairs = directions.items() if isinstance(directions, dict) else ()
    return {name: higher for name, higher in pairs if isinstance(higher, bool)}


def bytes_text(count: float, digits: int = 3) -> str:
    """Return a number of bytes for people.

    Examples
    --------
    >>> bytes_text(999.6), bytes_text(12_345_678, 4)
    ('1 kB', '12.35 MB')
    """
    for unit in ("B", "kB", "MB"):
        if float(f"{count:.{digits}g}") < 1000:
            return f"{count:.{digits}g} {unit}"
        count /= 1000
    return f"{count:.{digits}g} GB"


def round_metrics(record: RoundRecord, many_clients: bool = False) -> dict[str, float]:
    """Return all metrics of a round except those of its arrays, under their raw keys.

    Parameters
    ----------
    record : RoundRecord
        The round.
    many_clients : bool, default False
        Show quantiles over the clients instead of each client.

    Returns
    -------
    dict of str to float
        ``train/``, ``eval/``, ``server/``, ``train_client_<m>/``, ``eval_client_<m>/``,
        ``fairness/``, ``cost/`` and the strategy's own.
    """
    metrics = {f"train/{name}": value for name, value in record.train.items()}
    metrics |= {f"eval/{name}": value for name, value in record.evaluate.items()}
    metrics |= {f"server/{name}": value for name, value in record.server.items()}
    known = record.run.higher_is_better
    for prefix, clients in (("train", record.train_clients), ("eval", record.evaluate_clients)):
        if many_clients:
            metrics |= _quantiles(f"{prefix}_client", clients, known)
        else:
            metrics |= _each(f"{prefix}_client", clients)
    metrics |= _fairness(record.evaluate_clients, known)
    metrics |= {f"cost/{name}": value for name, value in record.cost.items()}
    return metrics | dict(record.extra)


def _each(prefix: str, clients: Sequence[ClientRecord]) -> dict[str, float]:
    return {
        f"{prefix}_{name}/{client.partition:03d}": value
        for client in clients
        for name, value in client.metrics.items()
    }


def _quantiles(
    prefix: str, clients: Sequence[ClientRecord], known: Mapping[str, bool]
) -> dict[str, float]:
    metrics = {}
    for name, (values, has_worst) in _by_metric(clients, known).items():
        metrics[f"{prefix}_{name}/p50"] = _quantile(values, 0.5)
        if has_worst:
            metrics[f"{prefix}_{name}/p10"] = _quantile(values, 0.1)
            metrics[f"{prefix}_{name}/worst"] = values[0]
    return metrics


def _fairness(clients: Sequence[ClientRecord], known: Mapping[str, bool]) -> dict[str, float]:
    """Return the spread over the clients that are not known to have too few rows."""
    metrics = {}
    enough = [client for client in clients if not client.num_examples < FEWEST_ROWS]
    for name, (values, has_worst) in _by_metric(enough, known).items():
        if has_worst:
            metrics[f"fairness/{name}_worst"] = values[0]
            metrics[f"fairness/{name}_p10"] = _quantile(values, 0.1)
        equal = values[-1] == values[0]  # also where both are infinite
        metrics[f"fairness/{name}_gap"] = 0.0 if equal else abs(values[-1] - values[0])
    return metrics


def _by_metric(
    clients: Sequence[ClientRecord], known: Mapping[str, bool]
) -> dict[str, tuple[list[float], bool]]:
    """Return each metric's values from the worst client to the best; all NaN where one is.

    And whether it is known which is the worst.
    """
    values_by_name: dict[str, list[float]] = {}
    for client in clients:
        for name, value in client.metrics.items():
            values_by_name.setdefault(name, []).append(value)
    ordered = {}
    for name, values in values_by_name.items():
        higher = higher_is_better(name, known)
        if any(map(math.isnan, values)):
            values = [math.nan] * len(values)
        ordered[name] = sorted(values, reverse=higher is False), higher is not None
    return ordered


def _quantile(values: Sequence[float], share: float) -> float:
    """Interpolate linearly, as ``numpy.quantile`` does, which takes 60 times as long."""
    position = share * (len(values) - 1)
    low = int(position)
    below, above = values[low], values[min(low + 1, len(values) - 1)]
    if below == above:  # also where both are infinite
        return below
    return below + (above - below) * (position - low)


def array_metrics(arrays: Arrays, value_names: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return arrays as curves, ``model/<array>.<value>``, or nothing beyond 32 values in all.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        Global arrays.
    value_names : mapping of str to sequence of str
        As in :class:`~fl_app.tracking.records.RunFacts`. Values without names are numbered by
        index, the only value of an array has the array's own name.

    Returns
    -------
    dict of str to float
    """
    if sum(a.size for a in arrays.values()) > MAX_SHOWN_VALUES:
        return {}
    metrics: dict[str, float] = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            continue
        names = value_names.get(name, ())
        if len(names) != array.size:
            names = [".".join(map(str, i)) for i in np.ndindex(array.shape)]
            names = names if array.size > 1 else [""]
        for label, value in zip(names, array.ravel().tolist(), strict=True):
            value_name = label.replace("/", "_")  # a slash would open a section of its own
            metrics[f"model/{name}.{value_name}" if value_name else f"model/{name}"] = float(value)
    return metrics


def update_norm(arrays: Arrays, previous: Arrays, leave_out: Collection[str] = ()) -> float | None:
    """Return the Euclidean norm of the change of all float arrays.

    Parameters
    ----------
    arrays, previous : mapping of str to ndarray
        Global arrays after this round and after the one before.
    leave_out : collection of str
        Arrays that do not count: the counters of batch normalisation are integers, of which
        averaging makes floats.

    Returns
    -------
    float or None
        None where names or shapes changed, or there is no float array.
    """
    if arrays.keys() != previous.keys():
        return None
    total = None
    for name, now in arrays.items():
        if name in leave_out or now.dtype.kind != "f":
            continue
        before = previous[name]
        if now.shape != before.shape or before.dtype.kind != "f":
            return None
        total = (total or 0.0) + _square_distance(now, before)
    return None if total is None else math.sqrt(total)


def _square_distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Sum the squared differences in float64, with a copy of a small part at a time."""
    left, right, total = one.ravel(), other.ravel(), 0.0
    for first in range(0, left.size, _BLOCK):
        part = slice(first, first + _BLOCK)
        total += float(np.sum(np.square(np.subtract(left[part], right[part], dtype=np.float64))))
    return total
