"""How a run is found on this machine's disk, and the list of runs; no other module knows.

A run ``<name>`` is the journal in ``FL_APP_HOME/runs/<name>/`` (:mod:`fl_app.tracking.journal`).
No file, whatever is in it, raises.
"""

from __future__ import annotations

import calendar
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fl_app.dashboard import processes
from fl_app.dashboard.choices import from_query
from fl_app.dashboard.processes import Launch, launches_dir
from fl_app.dashboard.view import ACTIVE, RunHead, Status, mapping, texts_of, whole
from fl_app.errors import printable
from fl_app.home import RUN_NAME, Process
from fl_app.tracking.journal_reader import UNREADABLE, JournalReader
from fl_app.tracking.liveness import Liveness, liveness

__all__ = ["RunStart", "goes_on", "heads_of", "launch_of", "listed", "run_dir", "runs"]

MOST_LISTED = 40
"""Entries of the list of runs at most."""
_STAMP = len("20260131-101500")
ENDS: Mapping[str, Status] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}


_STARTS: dict[Path, RunStart] = {}
_MAX_STARTS = 2000


def run_dir(home: Path, name: str) -> Path:
    """Return the folder of a run."""
    return home / "runs" / name


def whole_fact(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is read of a journal; empty where it is damaged."""
    try:
        return read()
    except UNREADABLE:
        return {}


@dataclass(frozen=True)
class RunStart:
    """What the page uses of a run's start."""

    title: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    start_ms: int = 0
    total: int = 0
    output_dir: str = ""
    uri: str = ""
    process: Process | None = None
    config: str = ""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> RunStart:
        """Read a journal's start."""
        run = mapping(content.get("run"))
        return cls(
            str(run.get("name") or ""),
            texts_of(run.get("params")),
            texts_of(run.get("tags")),
            whole(content.get("start_ms")),
            whole(run.get("num_server_rounds")),
            _output_dir(run),
            str(mapping(content.get("target")).get("uri") or ""),
            _process_of(content),
            str(mapping(run.get("texts")).get("config/config.yaml") or ""),
        )

    @classmethod
    def early(cls, event: Mapping[str, Any]) -> RunStart:
        """Make one of the first event, where no start is known yet."""
        return cls(process=_process_of(event))

    @property
    def strategy(self) -> str:
        """Name of the strategy; empty where unknown."""
        return self.params.get("strategy.name") or self.tags.get("strategy", "")

    def liveness(self, folder: Path) -> Liveness:
        """Return whether the process of the run in a folder lives; it does where none is known."""
        return "alive" if self.process is None else liveness(folder, self.process)


def _process_of(content: Mapping[str, Any]) -> Process | None:
    process = mapping(content.get("process"))
    pid = whole(process.get("pid"))
    if pid <= 0:
        return None
    return Process(str(process.get("host")), pid, str(process.get("started", "")))


def _output_dir(run: Mapping[str, Any]) -> str:
    if run.get("output_dir"):
        return str(run["output_dir"])
    config = str(mapping(run.get("texts")).get("config/config.yaml", ""))
    line = re.search(r"^output_dir:.*$", config, re.MULTILINE)
    try:
        return str(yaml.safe_load(line.group())["output_dir"] or "") if line else ""
    except (yaml.YAMLError, TypeError, KeyError):
        return ""


def runs(home: Path, limit: int = 200) -> list[RunHead]:
    """Return the runs that this machine's disk knows, newest first.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    limit : int, default 200
        Runs at most.

    Returns
    -------
    list of RunHead
    """
    heads = (_head(home, name) for name in sorted(_names(home), reverse=True))
    known = (head for head in heads if head is not None)
    return [head for head, _ in zip(known, range(limit), strict=False)]


def heads_of(home: Path, shown: str) -> list[RunHead]:
    """Return the run of a name, or the runs of a launch of the page in the order of its jobs.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    shown : str
        The run's name on this machine, or the launch's id.

    Returns
    -------
    list of RunHead
        Empty where there is none.
    """
    if RUN_NAME.fullmatch(shown):
        names = [shown]
    else:  # both begin with the time of their start
        later = (name for name in _names(home) if name[:_STAMP] >= shown[:_STAMP])
        starts = ((name, _start_of(home, name)) for name in later)
        names = [n for n, s in starts if s and launch_of(home, s.output_dir)[0] == shown]
    heads = [head for name in names if (head := _head(home, name)) is not None]
    return sorted(heads, key=lambda head: (head.job, head.name))


def listed(home: Path) -> dict[str, str]:
    """Return what can be shown by its name, newest first, with its words in the list."""
    launches = processes.find(home)[:MOST_LISTED]
    items = [(each.time, each.id, f"{_words(each)} ({each.state})") for each in launches]
    items += [
        (head.start_ms / 1000, head.name, f"{_title(head)} ({head.status})")
        for head in runs(home, 3 * MOST_LISTED)
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
    return any(head.status in ACTIVE for head in heads_of(home, shown))


def _names(home: Path) -> set[str]:
    with suppress(OSError):
        return {name for name in os.listdir(home / "runs") if RUN_NAME.fullmatch(name)}
    return set()


def _head(home: Path, name: str) -> RunHead | None:
    journal = JournalReader(run_dir(home, name))
    try:
        with journal.reading():
            start = _start_of(home, name)
            first, last = whole_fact(journal.first_event), whole_fact(journal.last_event)
            end = whole_fact(lambda: journal.end)
    except UNREADABLE:
        return None
    if start is None:
        if not first:
            return None
        start = RunStart.early(first)
    known = start.liveness(journal.folder)
    if known == "gone" and last.get("event") != "end":  # unless it goes on in another process
        _STARTS.pop(run_dir(home, name), None)
        start = _start_of(home, name) or start
        known = start.liveness(journal.folder)
    if last.get("event") == "end":
        end = last
    elif last and known == "alive":
        end = {}  # it is written, and its delivery goes on
    status = ENDS.get(str(end.get("status")))
    if status is None:
        waiting = waits_for_nodes(last)
        active: Status = "waiting" if waiting else "running" if start.title else "starting"
        otherwise: Mapping[Liveness, Status] = {"gone": "lost", "unknown": "unknown"}
        status = otherwise.get(known, active)
    launch, job = launch_of(home, start.output_dir)
    return RunHead(
        name,
        start.title,
        status,
        start.strategy,
        start.params.get("dataset.name", ""),
        start.params.get("seed", ""),
        start.start_ms or start_of_name(name),
        launch,
        job,
    )


def _start_of(home: Path, name: str) -> RunStart | None:
    """Return a run's start, which is written once."""
    folder = run_dir(home, name)
    if folder not in _STARTS:
        content = whole_fact(lambda: JournalReader(folder).start)
        if not content:
            return None
        if len(_STARTS) > _MAX_STARTS:
            _STARTS.clear()
        _STARTS[folder] = RunStart.of(content)
    return _STARTS[folder]


def start_of_name(name: str) -> int:
    """Return the Unix time in ms that a run's name begins with; 0 where it is none."""
    try:
        return 1000 * calendar.timegm(time.strptime(name[:15], "%Y%m%d-%H%M%S"))
    except ValueError:
        return 0


def launch_of(home: Path, output_dir: str) -> tuple[str, str]:
    """Return the page's launch that a run's folder belongs to, and its job there."""
    try:
        launch, job, *_ = (*Path(output_dir).relative_to(launches_dir(home)).parts, "")
    except ValueError:
        return "", ""
    return launch, job


def waits_for_nodes(event: Mapping[str, Any]) -> bool:
    """Return whether a run whose last event this is waits for nodes."""
    wanted = max(1, whole(event.get("wanted")))
    return event.get("event") == "nodes" and whole(event.get("online")) < wanted
