"""Which data a comparison stands on, and what made its runs: told by the runs' params and tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fl_app.report.runs import PATHS, RunSummary, listed, natural

__all__ = [
    "DataSet",
    "Maker",
    "data_name",
    "data_sets",
    "makers",
    "origin_lines",
    "same_bytes",
    "under_one_path",
]

_PATH, _SHA256 = PATHS[0], "data.sha256"


@dataclass(frozen=True)
class DataSet:
    """Data that runs saw.

    Parameters
    ----------
    names : tuple of str
        The paths of its file, or the name of a built-in set.
    rows : str
        How many, "" where runs do not say.
    sha256 : tuple of str
        Of the whole table; several where each seed has a table of its own.
    clients : tuple of str
        Over how many clients it was dealt.
    """

    names: tuple[str, ...]
    rows: str
    sha256: tuple[str, ...]
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Maker:
    """What made some of the runs.

    Parameters
    ----------
    commit : str
        Of fl_app's own source, "" where that was no git tree.
    versions : str
        Of Python and the packages, "" where runs do not say.
    num_runs : int
        How many runs.
    """

    commit: str
    versions: str
    num_runs: int


def same_bytes(runs: Iterable[RunSummary]) -> dict[str, str]:
    """Return for each path the first path under which runs saw the same bytes.

    Parameters
    ----------
    runs : iterable of RunSummary
        Runs. Paths are the same where some ``data.sha256`` leads from one to the other; a path of
        which a run does not say it is the same as no other.

    Returns
    -------
    dict of str to str
        Paths that have another one's bytes, and these.
    """
    seen: dict[str, set[str]] = {}
    for run in runs:
        if path := run.params.get(_PATH):
            seen.setdefault(path, set()).add(run.tags.get(_SHA256, ""))
    groups: list[tuple[set[str], set[str]]] = []
    for path, digests in sorted(seen.items()):
        if "" in digests:
            continue
        linked = [group for group in groups if group[1] & digests]
        groups = [group for group in groups if group not in linked]
        paths = {path}.union(*(group[0] for group in linked))
        groups.append((paths, digests.union(*(group[1] for group in linked))))
    return {path: min(paths) for paths, _ in groups for path in paths if len(paths) > 1}


def under_one_path(runs: Iterable[RunSummary], paths: Mapping[str, str]) -> list[RunSummary]:
    """Return runs with the first path of their bytes instead of their own."""
    return [
        replace(run, params={**run.params, _PATH: paths[run.params[_PATH]]})
        if run.params.get(_PATH) in paths
        else run
        for run in runs
    ]


def data_sets(runs: Sequence[RunSummary]) -> tuple[DataSet, ...]:
    """Return the data sets of some runs, by name."""
    paths = same_bytes(runs)
    groups: dict[tuple[str, str, str], list[RunSummary]] = {}
    for run in runs:
        own, digest = data_name(run.params) or "?", run.tags.get(_SHA256, "")
        kind = "" if run.tags.get("data.seed_draws") == "table" else digest
        groups.setdefault((paths.get(own, own), run.tags.get("data.rows", ""), kind), []).append(
            run
        )
    return tuple(
        DataSet(
            tuple(sorted({data_name(run.params) or "?" for run in theirs})),
            rows,
            tuple(sorted({run.tags[_SHA256] for run in theirs if _SHA256 in run.tags})),
            tuple(sorted({run.params.get("num_clients", "?") for run in theirs}, key=natural)),
        )
        for (_, rows, _), theirs in sorted(groups.items())
    )


def data_name(params: Mapping[str, str]) -> str:
    """Return what a data set goes by: its file or its name; "" where params do not say."""
    path = params.get(_PATH, "null")
    return params.get("dataset.name", "") if path == "null" else path


def makers(runs: Sequence[RunSummary]) -> tuple[Maker, ...]:
    """Return what made some runs: each commit and set of versions."""
    found = Counter((run.tags.get("git.commit", ""), run.tags.get("versions", "")) for run in runs)
    return tuple(Maker(*which, count) for which, count in sorted(found.items()))


def origin_lines(data: Sequence[DataSet], made: Sequence[Maker]) -> list[str]:
    """Return a line for each data set, and one for each maker."""
    lines = []
    for one in data:
        rows = f"{one.rows} rows" if one.rows else "rows not told"
        digests = listed([digest[:12] for digest in one.sha256], 3)
        sha256 = f"data.sha256 {digests}" if digests else "data.sha256 not told"
        clients = f"{listed(one.clients)} clients"
        lines.append(f"data: {' = '.join(one.names)}, {rows}, {sha256}, {clients}")
    for maker in made:
        several = f"{maker.num_runs} run{'s' if maker.num_runs > 1 else ''}"
        count = "all runs" if len(made) == 1 else several
        commit = f"commit {maker.commit[:12]}" if maker.commit else "no commit told"
        lines.append(f"{count} made by: {commit}, {maker.versions or 'no versions told'}")
    return lines
