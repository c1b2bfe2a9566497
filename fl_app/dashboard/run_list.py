"""What this machine has to show, in words: what the page has started, and the runs of others."""

from __future__ import annotations

import time
from pathlib import Path

from fl_app.dashboard import processes, run_files
from fl_app.dashboard.address import from_query
from fl_app.dashboard.processes import Launch
from fl_app.dashboard.view import ACTIVE, RunHead
from fl_app.errors import printable

__all__ = ["goes_on", "listed"]

MOST_LISTED = 40
"""Entries of the list at most."""


def listed(home: Path) -> dict[str, str]:
    """Return what can be shown by its name, newest first, with its words in the list."""
    launches = processes.find(home)[:MOST_LISTED]
    items = [(each.time, each.id, f"{_words(each)} ({each.state})") for each in launches]
    items += [
        (head.start_ms / 1000, head.name, f"{_title(head)} ({head.status})")
        for head in run_files.runs(home, 3 * MOST_LISTED)
        if not head.launch
    ]
    newest = sorted(items, reverse=True)[:MOST_LISTED]
    return {name: f"{_clock(at)} {words}" for at, name, words in newest}


def _clock(at: float) -> str:
    """Return the time of day, with the day where that is another one."""
    then = time.localtime(at)
    today = time.strftime("%F", then) == time.strftime("%F")
    return time.strftime("%H:%M:%S" if today else "%d %b %H:%M", then)


def _words(launch: Launch) -> str:
    chosen, _ = from_query(launch.choices, None)
    data = "own file" if "upload" in launch.choices else chosen.dataset
    return f"{data} {' and '.join(chosen.strategies)} seed {chosen.seed}"


def _title(head: RunHead) -> str:
    words = (head.dataset, head.strategy, f"seed {head.seed}" if head.seed else "")
    return printable(" ".join(filter(None, words)) or head.title or "a run that begins")


def goes_on(shown: str, home: Path) -> bool:
    """Return whether a run, or what the page has started, still goes on."""
    launch = processes.get(shown, home)
    if launch is not None:
        return launch.running
    return any(head.status in ACTIVE for head in run_files.heads_of(home, shown))
