"""``fl-kit runs``, ``sync`` and ``clean``: what this machine has kept of runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_app.errors import printable
from fl_app.tracking.housekeeping import LeftRun, clean, left_runs

__all__ = ["remove", "send", "table"]

_WATCH_SECONDS = 10.0


def table(home: Path, last: int) -> None:
    """Print the runs of a home, the newest first.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    last : int
        So many; 0 for all.
    """
    known = left_runs(home)
    shown = known[:last] if last > 0 else known
    if not known:
        print(printable(f"no runs in {home}"))
        return
    rows = Table(
        "run", "name", "state", "rounds", "waits for MLflow", "resumes", "size", "stays until"
    )
    for run in shown:
        cells = (run.folder.name, run.title, run.state, str(run.rounds), _waits(run))
        resumes = "" if run.cannot_resume else "yes"
        rows.add_row(*map(_cell, (*cells, resumes, _size(run.size), _until(run))))
    # As wide as it is: whoever cuts or searches the lines needs all of them.
    Console(width=1000, soft_wrap=True).print(rows)
    size = _size(sum(run.size for run in known))
    print(printable(f"{len(shown)} of {len(known)} runs, {size} in {home}"))


def send(home: Path, uri: str | None, watch: bool) -> bool:
    """Send what waits, and say what came of it; return whether nothing waits any more.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    uri : str or None
        Another store for all of them.
    watch : bool
        Whether to do so every 10 s for ever.

    Raises
    ------
    ConfigError
        If `uri` can never work.
    """
    from fl_app.tracking import replay

    said: dict[str, str] = {}
    while True:
        report = replay(home, uri)
        for name in report.sent:
            print(printable(f"{name}: sent"), flush=True)
        for name in report.deleted:
            print(
                printable(f"{name}: was deleted in MLflow, nobody waits for the rest"), flush=True
            )
        for name, reason in report.waiting.items():
            if said.get(name) != reason:
                print(printable(f"{name}: waits: {reason}"), flush=True)
        said = dict(report.waiting)
        if not watch:
            if not (report.sent or report.deleted or report.waiting):
                goes_on = f"; {len(report.live)} go on" if report.live else ""
                print(f"nothing waits{goes_on}")
            return not report.waiting
        time.sleep(_WATCH_SECONDS)


def remove(home: Path, names: Sequence[str], days: float) -> None:
    """Remove runs, and say which.

    Raises
    ------
    InputError
        For a name of no run, or of one that goes on.
    """
    gone = clean(home, names, days)
    for run in gone:
        lost = f", {_waits(run)} lost" if run.is_waiting else ""
        print(printable(f"{run.folder.name}: removed, {_size(run.size)}{lost}"))
    if not gone:
        print("nothing to remove")


def _cell(text: str) -> str:
    return escape(printable(text))


def _waits(run: LeftRun) -> str:
    if run.state == "running":
        return ""
    if not run.is_waiting:
        return "" if run.waiting is None else "no"
    return f"{run.waiting} rounds" if run.waiting else "the end"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _until(run: LeftRun) -> str:
    until = run.until()
    return "" if until is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(until))
