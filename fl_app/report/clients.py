"""What runs have recorded of their clients: how many rows each has, and its metrics by round."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.config.strategy_options import is_pooled
from fl_app.report.comparing import Comparison
from fl_app.report.reading import existing, failures_named
from fl_app.report.runs import RunSummary, natural
from fl_app.tracking.mlflow.backend import load_mlflow, no_progress_bars, quiet

__all__ = ["Recorded", "read_clients"]

_CONFIG, _ROSTER, _TABLE = "config/config.yaml", "clients/roster.json", "clients/evaluate.json"


@dataclass(frozen=True)
class Recorded:
    """Clients of one run of each level: of the first cell and its first seed.

    Parameters
    ----------
    told : str
        Which cell and seed.
    config : str
        The baseline's ``config/config.yaml``, "" where it has none.
    data_sha256 : str
        Of the data that it saw, "" where it does not say.
    rows : mapping of int to int
        Client -> its training rows, as the baseline has recorded them; empty where it has not.
    ends : mapping of str to (mapping of int to (float, float))
        Level -> client -> the metric in its first and in its last round; none of ``pooled``, whose
        one client is all of them.
    """

    told: str
    config: str
    data_sha256: str
    rows: Mapping[int, int]
    ends: Mapping[str, Mapping[int, tuple[float, float]]]


def read_clients(uri: str | None, comparison: Comparison) -> Recorded:
    """Read clients of one run of each level.

    Parameters
    ----------
    uri : str, optional
        Tracking URI; by default where runs are logged.
    comparison : Comparison
        Whose runs.

    Raises
    ------
    InputError
        If the store is not there. What a run has not recorded is left out.
    """
    c = comparison
    cell = c.cells[0].label
    seed = min(c.design.runs[cell, c.baseline], key=natural)
    runs = {level: c.design.runs[cell, level][seed] for level in c.levels}
    base = runs[c.baseline]
    store = existing(uri)
    name = c.metric.partition("/")[2]
    with quiet(), no_progress_bars(), failures_named(store):
        client = load_mlflow().MlflowClient(store)
        tables = {level: _rows(_text(client, run, _TABLE)) for level, run in runs.items()}
        roster = _rows(_text(client, base, _ROSTER))
        config = _text(client, base, _CONFIG)
    told = f"seed {seed}{f' of {cell}' if cell else ''}"
    sizes = {int(row["partition"]): int(row["num_examples"]) for row in roster}
    ends = {
        level: {} if is_pooled(runs[level].params.get("strategy.name")) else _ends(rows, name)
        for level, rows in tables.items()
    }
    return Recorded(told, config, base.tags.get("data.sha256", ""), sizes, ends)


def _text(client: Any, run: RunSummary, path: str) -> str:
    """Return a text artifact, "" where the run has none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = Path(client.download_artifacts(run.run_id, path, folder))
            return found.read_text(encoding="utf-8")
        except (OSError, ValueError, load_mlflow().exceptions.MlflowException):
            return ""


def _rows(text: str) -> list[dict[str, Any]]:
    """Return the rows of a table as MLflow keeps it."""
    try:
        table = json.loads(text or "{}")
    except ValueError:
        return []
    return [dict(zip(table["columns"], row, strict=True)) for row in table.get("data", ())]


def _ends(rows: list[dict[str, Any]], metric: str) -> dict[int, tuple[float, float]]:
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        number = row.get("partition", row.get("client"))
        if number is not None and row.get(metric) is not None:
            found.setdefault(int(number), []).append((int(row["server_round"]), row[metric]))
    return {
        number: (min(own)[1], max(own)[1]) for number, own in sorted(found.items()) if len(own) > 1
    }
