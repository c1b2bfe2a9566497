"""The closing table of a sweep: every configuration over its seeds, the best one, what failed."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from fl_app.models.directions import higher_is_better
from fl_app.report.groups import APART, matches
from fl_app.report.intervals import mean_and_sd
from fl_app.report.origins import data_name
from fl_app.report.rendering import (
    Block,
    TextTable,
    decimals_for,
    plus_minus,
)
from fl_app.report.runs import (
    REFERENCES,
    RunSummary,
    label_order,
    natural,
    tell_apart,
)
from fl_app.tracking.metric_names import equal

__all__ = ["Summary", "SummaryRow", "summary_blocks", "summary_table"]


@dataclass(frozen=True)
class SummaryRow:
    """A configuration over its seeds.

    Parameters
    ----------
    label : str
        What tells it from the others of the sweep.
    seeds : tuple of str
        Its seeds.
    objective : str
        The metric that picks the best: the config's, or ``eval/accuracy`` or ``eval/mse``; "" where
        its runs have none of them.
    mean, sd : float or None
        The objective after the last round, over seeds; None where there is none, or one seed.
    server_metric : str
        The same metric on the server's test rows, "" where there is none.
    server_mean, server_sd : float or None
        As ``mean`` and ``sd``. For information: nothing is chosen by it.
    best : bool
        Whether no other configuration with this objective on this data set is better; the
        references ``local`` and ``pooled`` count only among themselves, and configurations with
        differential privacy not at all: rows without noise would choose.
    """

    label: str
    seeds: tuple[str, ...]
    objective: str
    mean: float | None
    sd: float | None
    server_metric: str
    server_mean: float | None
    server_sd: float | None
    best: bool = False


@dataclass(frozen=True)
class Summary:
    """A sweep.

    Parameters
    ----------
    rows : tuple of SummaryRow
        Its configurations.
    unfinished : tuple of RunSummary
        Runs that failed, were killed or still go on.
    """

    rows: tuple[SummaryRow, ...]
    unfinished: tuple[RunSummary, ...] = ()


def summary_table(runs: Sequence[RunSummary], keys: Collection[str] = ()) -> Summary:
    """Summarise the runs of a sweep.

    Parameters
    ----------
    runs : sequence of RunSummary
        Of any status; a job that never became a run can be told by a summary made by hand with its
        ``status`` and ``error``. Only ``params`` and the last ``metrics`` are read. Of runs with
        the same config and seed the newest that FINISHED counts.
    keys : collection of str
        Params that were swept over: labels name them, also where others would do.

    Returns
    -------
    Summary
    """
    groups: dict[tuple[tuple[str, str], ...], dict[str, RunSummary]] = {}
    for run in sorted(runs, key=lambda r: (r.start_ms, r.run_id)):
        if run.finished:
            kept = {n: v for n, v in run.params.items() if not matches(n, APART)}
            groups.setdefault(tuple(sorted(kept.items())), {})[run.seed] = run
    labels = tell_apart([dict(params) for params in groups], keys)
    found: list[tuple[str | None, SummaryRow]] = [
        (
            None if _is_apart(dict(params)) else data_name(dict(params)),
            _row(label, seeds),
        )
        for label, (params, seeds) in zip(labels, groups.items(), strict=True)
    ]
    if all(_is_reference(dict(params)) for params in groups):
        found = [("", row) for _, row in found]
    rows = tuple(replace(row, best=_is_best(row, dataset, found)) for dataset, row in found)
    unfinished = sorted(
        (r for r in runs if not r.finished), key=lambda r: (_in_order(r.title), r.run_id)
    )
    return Summary(tuple(sorted(rows, key=lambda row: label_order(row.label))), tuple(unfinished))


def _row(label: str, seeds: dict[str, RunSummary]) -> SummaryRow:
    names = sorted(seeds, key=natural)
    objective = _objective(seeds[names[0]])
    server = f"server/{objective.partition('/')[2]}" if objective else ""
    mean, sd = _over_seeds(seeds, objective)
    server_mean, server_sd = _over_seeds(seeds, server)
    return SummaryRow(
        label,
        tuple(names),
        objective if mean is not None else "",
        mean,
        sd,
        server if server_mean is not None else "",
        server_mean,
        server_sd,
    )


def _objective(run: RunSummary) -> str:
    """Return the metric that the run itself chose its best round by."""
    told = run.params.get("objective", "null")
    if told not in ("null", ""):
        return told
    accuracy = any(name.endswith("/accuracy") for name in run.metrics)
    return "eval/accuracy" if accuracy else "eval/mse"


def _in_order(text: str) -> list[tuple[float, str]]:
    """Return a sort key by which job 2 comes before job 10."""
    return [natural(part) for part in re.split(r"(\d+)", text)]


def _over_seeds(seeds: dict[str, RunSummary], metric: str) -> tuple[float | None, float | None]:
    values = {seed: run.metrics[metric] for seed, run in seeds.items() if metric in run.metrics}
    return mean_and_sd({"": values}) if len(values) == len(seeds) else (None, None)


def _is_reference(params: Mapping[str, str]) -> bool:
    """Return whether a configuration federates nothing: it is there to be compared with."""
    return params.get("strategy.name") in REFERENCES


def _is_apart(params: Mapping[str, str]) -> bool:
    """Return whether a configuration competes with none: a reference, or one that is private."""
    return _is_reference(params) or params.get("privacy.name", "none") != "none"


def _is_best(
    row: SummaryRow, dataset: str | None, found: Sequence[tuple[str | None, SummaryRow]]
) -> bool:
    """Return whether no rival is better; a configuration without rivals is no best one."""
    rivals = [
        other.mean
        for where, other in found
        if other is not row and (where, other.objective) == (dataset, row.objective)
    ]
    if dataset is None or row.mean is None or math.isnan(row.mean) or not rivals:
        return False
    sign = 1 if higher_is_better(row.objective) else -1
    means = [mean for mean in rivals if mean is not None and not math.isnan(mean)]
    return all(sign * row.mean >= sign * mean or equal(row.mean, mean) for mean in means)


def summary_blocks(summary: Summary) -> tuple[Block, ...]:
    """Return what to show of a sweep: a table, and a line for each run that did not finish."""
    rows = summary.rows
    blocks: list[Block] = []
    if rows:
        names = list(dict.fromkeys(row.objective for row in rows if row.objective))
        servers = list(dict.fromkeys(row.server_metric for row in rows if row.server_metric))
        digits = decimals_for(row.mean for row in rows if row.mean is not None)
        cells = tuple(
            (
                row.label or "all runs",
                str(len(row.seeds)),
                _value(row.objective, row.mean, row.sd, digits, len(names) > 1),
                _value(row.server_metric, row.server_mean, row.server_sd, digits, len(servers) > 1),
                "best" if row.best else "",
            )
            for row in rows
        )
        objective, server = (
            found[0] if len(found) == 1 else name
            for found, name in ((names, "objective"), (servers, "server"))
        )
        columns = ("configuration", "seeds", objective, server, "")
        blocks.append(TextTable("mean ± sd over seeds, after the last round", columns, cells))
    for run in summary.unfinished:
        blocks.append(f"{run.status}: {run.title}{f': {run.error}' if run.error else ''}")
    return tuple(blocks)


def _value(metric: str, mean: float | None, sd: float | None, digits: int, named: bool) -> str:
    if mean is None:
        return "-"
    return f"{f'{metric} ' if named else ''}{plus_minus(mean, sd, digits)}"
