"""How a run is found on this machine's disk, and the list of runs; no other module knows.

A run ``<name>`` lies in two folders of ``FL_APP_HOME``. What :mod:`fl_app.tracking.outbox` wrote is
in ``spool/<name>/`` while MLflow has not got all of it, else in ``runs/<name>/``; a file may move
from there to here at any moment and keeps its bytes. ``runs/<name>/`` also holds ``events.jsonl``
(what goes on before round 0 and inside a round) and ``models/round_<r>.npz`` of small models.

No file, whatever is in it, raises.
"""

from __future__ import annotations

import calendar
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from fl_app.dashboard import processes
from fl_app.dashboard.choices import from_query
from fl_app.dashboard.processes import Launch, launches_dir
from fl_app.dashboard.view import ACTIVE, RunHead, Status, mapping, parsed, texts_of, whole
from fl_app.errors import printable
from fl_app.home import Process
from fl_app.tracking.files import read_lines

__all__ = ["RunStart", "goes_on", "heads_of", "launch_of", "listed", "models_dir", "runs"]

MOST_LISTED = 40
"""Entries of the list of runs at most."""
_STAMP = len("20260131-101500")
RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4,32}")
ENDS: Mapping[str, Status] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}


def paths_of(home: Path, name: str, file: str) -> tuple[Path, Path]:
    """Return the two places where a run's file may be, the first one first."""
    return home / "spool" / name / file, home / "runs" / name / file


def read_json(home: Path, name: str, file: str) -> dict[str, Any]:
    """Return a file's JSON object; empty where there is none, or another thing."""
    for path in paths_of(home, name, file):
        with suppress(OSError):
            return parsed(path.read_bytes())
    return {}


def models_dir(home: Path, name: str) -> Path:
    """Return the folder of a run's small models, ``round_0003.npz`` and so on.

    Each file holds ``global/<array>`` after the round and ``client/003/<array>`` as sent. There is
    no such folder where the run keeps none.
    """
    return home / "runs" / name / "models"


@dataclass(frozen=True)
class RunStart:
    """What the page uses of ``run.json``."""

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
        """Read the file's content."""
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
        """Make one of the first event, where there is no such file yet."""
        return cls(process=_process_of(event))

    @property
    def strategy(self) -> str:
        """Name of the strategy; empty where unknown."""
        return self.params.get("strategy.name") or self.tags.get("strategy", "")

    @property
    def gone(self) -> bool:
        """Whether the run's process is known to have ended."""
        return self.process is not None and self.process.is_gone()


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
    names: set[str] = set()
    for folder in ("spool", "runs"):
        with suppress(OSError):
            names |= {name for name in os.listdir(home / folder) if RUN_NAME.fullmatch(name)}
    return names


def _head(home: Path, name: str) -> RunHead | None:
    start = _start_of(home, name)
    events = home / "runs" / name / "events.jsonl"
    if start is None:
        first = next((event for event, _ in lines_from(events, 0)), None)
        if not first:
            return None
        start = RunStart.early(first)
    last = _last_event(events)
    end = last if last.get("event") == "end" else {}
    if not end and (last.get("event") is None or start.gone):
        end = read_json(home, name, "end.json")
    status = ENDS.get(str(end.get("status")))
    if status is None:
        waiting = waits_for_nodes(last)
        active: Status = "waiting" if waiting else "running" if start.title else "starting"
        status = "lost" if start.gone else active
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
    for path in paths_of(home, name, "run.json"):
        with suppress(OSError):
            return _cached_start(path, path.stat().st_mtime_ns)
    return None


@lru_cache(maxsize=512)
def _cached_start(path: Path, mtime_ns: int) -> RunStart:
    return RunStart.of(parsed(path.read_bytes()))


def _last_event(path: Path) -> dict[str, Any]:
    """Return the last whole line of a file of events, without reading all of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    return next((event for line in reversed(lines) if (event := parsed(line))), {})


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


def lines_from(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the lines of a file from an offset on, each with where it ends; none if it is gone."""
    with suppress(OSError):
        yield from read_lines(path, offset)
