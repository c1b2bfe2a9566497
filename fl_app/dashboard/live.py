"""A run as the page sees it: the one module that knows how a run is found on this machine's disk.

A run ``<name>`` lies in two folders of ``FL_APP_HOME``. What :mod:`fl_app.tracking.outbox` wrote is
in ``spool/<name>/`` while MLflow has not got all of it, else in ``runs/<name>/``; a file may move
from there to here at any moment and keeps its bytes. ``runs/<name>/`` also holds ``events.jsonl``
(what goes on before round 0 and inside a round) and ``models/round_<r>.npz`` of small models.

:class:`Tail` reads what is new and returns a :class:`RunView`; all else is pure. Nothing here
imports or asks MLflow, and no file, whatever is in it, raises.
"""

from __future__ import annotations

import calendar
import json
import math
import os
import re
import shlex
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from fl_app.config.strategy_options import is_pooled
from fl_app.dashboard.view import (
    ACTIVE,
    NOBODY,
    Exchange,
    InRound,
    Metric,
    MlflowLink,
    Own,
    Round,
    RunHead,
    RunView,
    Status,
    mapping,
    metrics,
    number_of,
    parsed,
    phase,
    rows_of,
    texts_of,
    whole,
)
from fl_app.errors import masked
from fl_app.home import Process
from fl_app.tracking.files import read_lines
from fl_app.tracking.mlflow.uri import default_uri, is_http, run_url

__all__ = [
    "ACTIVE",
    "Exchange",
    "InRound",
    "Metric",
    "MlflowLink",
    "Own",
    "Round",
    "RunHead",
    "RunView",
    "Tail",
    "heads_of",
    "metrics",
    "models_dir",
    "phase",
    "runs",
]

LOST = "the process ended without closing the run"

_STAMP = len("20260131-101500")
_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4,32}")
_HEAD, _LAST = 1 << 18, 1 << 19
"""Bytes of the events before round 0, and of a round that is not over: others are not needed."""
_OWN_KEY = re.compile(r"(train|eval)_client_(.+)/(\d{3,})")
_STATUS: Mapping[str, Status] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}


# ---------------------------------------------------------------------------- where files are
def _places(home: Path, name: str, file: str) -> tuple[Path, Path]:
    return home / "spool" / name / file, home / "runs" / name / file


def _read_json(home: Path, name: str, file: str) -> dict[str, Any]:
    """Return a file's JSON object; empty where there is none, or another thing."""
    for path in _places(home, name, file):
        try:
            return parsed(path.read_bytes())
        except OSError:
            continue
    return {}


def models_dir(home: Path, name: str) -> Path:
    """Return the folder of a run's small models, ``round_0003.npz`` and so on.

    Each file holds ``global/<array>`` after the round and ``client/003/<array>`` as sent. There is
    no such folder where the run keeps none.
    """
    return home / "runs" / name / "models"


# ---------------------------------------------------------------------------- the list of runs
@dataclass(frozen=True)
class _Start:
    """What is used of ``run.json``."""

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
    def of(cls, content: Mapping[str, Any]) -> _Start:
        run = mapping(content.get("run"))
        return cls(
            str(run.get("name") or ""),
            texts_of(run.get("params")),
            texts_of(run.get("tags")),
            whole(content.get("start_ms")),
            whole(run.get("num_server_rounds")),
            _output_dir(run),
            str(mapping(content.get("target")).get("uri") or ""),
            _process(content.get("process")),
            str(mapping(run.get("texts")).get("config/config.yaml") or ""),
        )


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
    found = (head for head in heads if head is not None)
    return [head for head, _ in zip(found, range(limit), strict=False)]


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
    if _NAME.fullmatch(shown):
        names = [shown]
    else:  # both begin with the time of their start
        later = (name for name in _names(home) if name[:_STAMP] >= shown[:_STAMP])
        starts = ((name, _start_of(home, name)) for name in later)
        names = [n for n, s in starts if s and _launch_of(home, s.output_dir)[0] == shown]
    found = [head for name in names if (head := _head(home, name)) is not None]
    return sorted(found, key=lambda head: (head.job, head.name))


def _names(home: Path) -> set[str]:
    names: set[str] = set()
    for folder in ("spool", "runs"):
        try:
            names |= {name for name in os.listdir(home / folder) if _NAME.fullmatch(name)}
        except OSError:
            continue
    return names


def _head(home: Path, name: str) -> RunHead | None:
    start = _start_of(home, name)
    events = home / "runs" / name / "events.jsonl"
    began = _first_event(events) if start is None else {}
    if start is None and not began:
        return None
    start = start or _Start(process=_process(began.get("process")))
    last = _last_event(events)
    end = last if last.get("event") == "end" else {}
    if not end and (last.get("event") is None or _is_gone(start.process)):
        end = _read_json(home, name, "end.json")
    status = _STATUS.get(str(end.get("status")))
    if status is None:
        active: Status = "waiting" if _waits(last) else "starting" if not start.title else "running"
        status = "lost" if _is_gone(start.process) else active
    launch, job = _launch_of(home, start.output_dir)
    params = start.params
    return RunHead(
        name,
        start.title,
        status,
        params.get("strategy.name") or start.tags.get("strategy", ""),
        params.get("dataset.name", ""),
        params.get("seed", ""),
        start.start_ms or _time_of(name),
        launch,
        job,
    )


def _start_of(home: Path, name: str) -> _Start | None:
    for path in _places(home, name, "run.json"):
        try:
            return _cached_start(path, path.stat().st_mtime_ns)
        except OSError:
            continue
    return None


@lru_cache(maxsize=512)
def _cached_start(path: Path, mtime_ns: int) -> _Start:
    return _Start.of(parsed(path.read_bytes()))


def _first_event(path: Path) -> dict[str, Any]:
    return next((event for event, _ in _lines(path, 0)), {})


def _last_event(path: Path) -> dict[str, Any]:
    """Return the last whole line of a file of events, without reading all of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    return next((event for line in reversed(lines) if (event := parsed(line))), {})


def _time_of(name: str) -> int:
    try:
        return 1000 * calendar.timegm(time.strptime(name[:15], "%Y%m%d-%H%M%S"))
    except ValueError:
        return 0


def _launch_of(home: Path, output_dir: str) -> tuple[str, str]:
    """Return the page's launch that a run's folder belongs to, and its job there."""
    folder = home / "dashboard" / "launches"
    try:
        launch, job, *_ = (*Path(output_dir).relative_to(folder).parts, "")
    except ValueError:
        return "", ""
    return launch, job


# ---------------------------------------------------------------------------- plain values
def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _process(value: Any) -> Process | None:
    told = mapping(value)
    pid = whole(told.get("pid"))
    if pid <= 0:
        return None
    return Process(str(told.get("host")), pid, str(told.get("started", "")))


def _is_gone(process: Process | None) -> bool:
    return process is not None and process.is_gone()


# ---------------------------------------------------------------------------- reading a run
def _lines(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    try:
        yield from read_lines(path, offset)
    except OSError:
        return


def _line_after(path: Path, offset: int) -> int:
    """Return where the first line begins after an offset."""
    with path.open("rb") as file:
        file.seek(offset)
        return offset + len(file.readline())


class Tail:
    """Reads a run's files as they grow. One object serves any number of tabs and threads.

    Parameters
    ----------
    home : Path
        As :func:`~fl_app.home.home_dir` returns it.
    name : str
        The run's name on this machine; another text is a run that is not there.
    """

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.name = home, name
        self._lock = threading.Lock()
        self._offsets: dict[str, int] = {}
        self._start: _Start | None = None
        self._begin: Mapping[str, Any] = {}
        self._end: Mapping[str, Any] = {}
        self._sent: Mapping[str, Any] = {}
        self._rounds: list[Round] = []
        self._keys: dict[str, None] = {}
        self._seen: dict[Any, Any] = {}
        self._tags: dict[str, str] = {}
        self._roster: dict[int, tuple[int, int]] = {}
        self._sizes: dict[int, int] = {}
        self._count = 0
        self._spec: Mapping[str, Any] = {}
        self._event: Mapping[str, Any] = {}
        self._in_round: _Watch | None = None
        self._view: RunView | None = None
        self._state: _State | None = None

    def read(self) -> RunView | None:
        """Read what is new.

        Returns
        -------
        RunView or None
            The same object as before where nothing changed; None where there is no such run. Once
            seen, a run whose files are removed stays as it was, ``vanished``.
        """
        with self._lock:
            if not _NAME.fullmatch(self.name):
                return None
            changed = self._read_events() | self._read_start() | self._read_rounds()
            changed |= self._read_notes() | self._read_end()
            state = self._now()
            if changed or self._view is None or state != self._state:
                self._state, self._view = state, self._make(state)
            return self._view if self._start or self._begin else None

    # ------------------------------------------------------------ files
    def _new_lines(self, file: str, skip: bool = False) -> Iterator[dict[str, Any]]:
        """Yield what is new; with `skip` not what lies between a file's head and its end."""
        offset = self._offsets.get(file, 0)
        for path in _places(self.home, self.name, file):
            try:
                size = path.stat().st_size
            except OSError:
                continue
            if size > offset:
                for line, self._offsets[file] in _lines(path, offset):
                    yield line
                    if skip and _HEAD < self._offsets[file] < size - _LAST:
                        self._offsets[file] = _line_after(path, size - _LAST)
                        yield from self._new_lines(file)
                        return
            return

    def _read_start(self) -> bool:
        if self._start is not None:
            return False
        content = _read_json(self.home, self.name, "run.json")
        self._start = _Start.of(content) if content else None
        return self._start is not None

    def _read_events(self) -> bool:
        changed = False
        for event in self._new_lines("events.jsonl", skip=True):
            changed = True
            try:
                self._take(event)
            except (TypeError, ValueError, KeyError, AttributeError):
                continue
        return changed

    def _take(self, event: Mapping[str, Any]) -> None:
        what = event["event"]
        if what != "reply":
            self._event = event
        match what:
            case "begin":
                self._begin = event
            case "roster":
                nodes = event.get("nodes") or ()
                self._roster = {int(k): (int(n), int(v)) for k, n, v in nodes}
                self._count = len(nodes) or whole(event.get("count"))
            case "model":
                self._spec = mapping(event.get("spec"))
                self._event = {**event, "spec": None}
            case "asked":
                server_round = int(event["round"])
                if self._in_round is None or self._in_round.server_round != server_round:
                    self._in_round = _Watch(server_round)
                self._in_round.ask(event)
            case "reply" | "replied":
                if self._in_round and self._in_round.server_round == event["round"]:
                    self._in_round.answer(event)

    def _read_rounds(self) -> bool:
        changed = False
        for line in self._new_lines("rounds.jsonl"):
            before = self._rounds[-1] if self._rounds else None
            try:
                found = _round(line, before, self._seen)
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
                continue
            if before is None or found.server_round > before.server_round:
                changed = True
                self._rounds.append(found)
                self._keys |= dict.fromkeys(found.metrics)
                self._sizes |= found.sizes
        return changed

    def _read_notes(self) -> bool:
        changed = False
        for note in self._new_lines("notes.jsonl"):
            changed = True
            self._tags |= texts_of(note.get("tags"))
            if not self._roster:
                table = parsed(str(mapping(note.get("texts")).get("clients/roster.json", "")))
                self._roster = {
                    whole(row.get("partition")): (
                        whole(row.get("num_examples")),
                        whole(row.get("num_validation")),
                    )
                    for row in rows_of(table)
                }
        return changed

    def _read_end(self) -> bool:
        before = self._end, self._sent
        if not self._end:
            self._end = _read_json(self.home, self.name, "end.json")
        if "run_id" not in self._sent:
            sent = _read_json(self.home, self.name, "sent.json")
            self._sent = sent if sent.get("run_id") else {}
        return (self._end, self._sent) != before

    # ------------------------------------------------------------ the view
    def _now(self) -> _State:
        spooled = (self.home / "spool" / self.name).is_dir()
        vanished = not spooled and not (self.home / "runs" / self.name).is_dir()
        gone = _is_gone(
            self._start.process if self._start else _process(self._begin.get("process"))
        )
        status, error, closing = self._status(gone)
        if vanished and status in ACTIVE:
            status, error = "lost", "its files were removed from this machine"
        return _State(status, error, closing, spooled, gone, vanished)

    def _status(self, gone: bool) -> tuple[Status, str, bool]:
        last = self._event if self._event.get("event") == "end" else {}
        end = last or self._end
        over = _STATUS.get(str(end.get("status")))
        if over and (last or not self._begin or gone):
            return over, str(end.get("error") or ""), False
        if gone:
            return "lost", LOST, False
        if self._rounds or self._in_round:
            return "running", "", bool(over)
        return "waiting" if _waits(self._event) else "starting", "", bool(over)

    def _make(self, state: _State) -> RunView:
        start = self._start or _Start()
        params, rounds = start.params, tuple(self._rounds)
        launch, job = _launch_of(self.home, start.output_dir)
        private = params.get("privacy.name", "none") != "none"
        watch = self._in_round
        if watch and rounds and watch.server_round <= rounds[-1].server_round:
            watch = None
        count = self._count or len(self._roster) or _number(params.get("num_clients", ""))
        if is_pooled(params.get("strategy.name")):
            count = 1
        signs = [whole(self._event.get("time_ms")), start.start_ms, whole(self._end.get("end_ms"))]
        signs += [watch.sign_ms] if watch else []
        signs += [rounds[-1].time_ms] if rounds else []
        return RunView(
            name=self.name,
            title=start.title,
            strategy=params.get("strategy.name") or start.tags.get("strategy", ""),
            runtime=str(self._begin.get("runtime") or params.get("runtime.name", "")),
            output_dir=start.output_dir,
            launch=launch,
            job=job,
            config=start.config,
            params=params,
            tags={**start.tags, **self._tags, **texts_of(self._end.get("tags"))},
            status=state.status,
            error=state.error,
            start_ms=whole(self._begin.get("time_ms")) or start.start_ms or _time_of(self.name),
            sign_ms=max(signs),
            total=start.total,
            clients=max([count, *(k + 1 for k in self._sizes)]),
            roster=self._roster or {k: (n, 0) for k, n in sorted(self._sizes.items())},
            rounds=rounds,
            keys=tuple(self._keys),
            in_round=watch.view() if watch else None,
            stage=str(self._event.get("event", "")),
            facts={k: v for k, v in self._event.items() if k not in ("event", "spec", "nodes")},
            spec=self._spec,
            mlflow=self._link(start, state),
            private=private,
            closing=state.closing,
            vanished=state.vanished,
        )

    def _link(self, start: _Start, state: _State) -> MlflowLink:
        told = start.params.get("tracking.name", "mlflow" if start.uri else "")
        if not start.uri or told == "none":
            none = "This run is not recorded in MLflow (tracking=none)." if told == "none" else ""
            return MlflowLink("", "", none)
        rest = ""
        if state.spooled and state.status not in ACTIVE:
            rest = "MLflow has not got all of this run: the record waits in the spool"
            rest += ", and the next run sends it." if state.gone else "."
        if "run_id" not in self._sent:
            return MlflowLink("", "", rest or "MLflow has not got this run yet.")
        url = run_url(start.uri, str(self._sent.get("experiment_id")), str(self._sent["run_id"]))
        return MlflowLink(url, _ui(start.uri, self.home), rest)


@dataclass(frozen=True)
class _State:
    """What changes without a new line."""

    status: Status
    error: str
    closing: bool
    spooled: bool
    gone: bool
    vanished: bool


def _waits(event: Mapping[str, Any]) -> bool:
    wanted = max(1, whole(event.get("wanted")))
    return event.get("event") == "nodes" and whole(event.get("online")) < wanted


def _ui(uri: str, home: Path) -> str:
    """Return the command that opens the page of a store."""
    if is_http(uri):
        return ""
    own = masked(default_uri(home))
    return "fl-kit ui" if uri == own else f"fl-kit ui --uri {shlex.quote(uri)}"


class _Watch:
    """Collects the events of a round that is not over."""

    def __init__(self, server_round: int) -> None:
        self.server_round, self.exchange, self.sign_ms = server_round, "train", 0
        self._asked: dict[str, Mapping[str, Any]] = {}
        self._replied: dict[str, list[int]] = {}
        self._count: dict[str, int] = {}
        self._closed: dict[str, Mapping[str, Any]] = {}

    def ask(self, event: Mapping[str, Any]) -> None:
        """Take who is asked."""
        self.exchange = _exchange_of(event)
        self._asked[self.exchange] = event
        self.sign_ms = whole(event.get("time_ms"))

    def answer(self, event: Mapping[str, Any]) -> None:
        """Take a reply, or all of an exchange."""
        exchange = _exchange_of(event)
        self.sign_ms = whole(event.get("time_ms"))
        if event["event"] == "replied":
            self._closed[exchange] = event
            return
        self._count[exchange] = whole(event.get("count")) or self._count.get(exchange, 0) + 1
        if "client" in event:
            self._replied.setdefault(exchange, []).append(int(event["client"]))

    def view(self) -> InRound:
        """Return what is known."""
        train, evaluate = self._made("train"), self._made("evaluate")
        closed, seen = self.exchange in self._closed, self._count.get(self.exchange, 0) > 0
        return InRound(self.server_round, self.exchange, train, evaluate, closed, seen)

    def _made(self, exchange: str) -> Exchange:
        asked, closed = self._asked.get(exchange, {}), self._closed.get(exchange)
        if closed is None:
            replied: Sequence[int] = self._replied.get(exchange, [])
            return _exchange(asked.get("clients"), replied, {}, asked, self._count.get(exchange, 0))
        named, count = closed.get("clients"), whole(closed.get("count"))
        made = _exchange(asked.get("clients"), named, closed.get("failed"), asked, count)
        return replace(made, num_failed=made.num_failed or whole(closed.get("failed_count")))


def _exchange_of(event: Mapping[str, Any]) -> str:
    return "evaluate" if event.get("exchange") == "evaluate" else "train"


def _exchange(
    asked: Any, replied: Any, failed: Any, counts: Mapping[str, Any], num_replied: int
) -> Exchange:
    """Build an exchange of lists, or of counts where nobody is named."""
    asked, replied = tuple(sorted(map(int, asked or ()))), tuple(sorted(map(int, replied or ())))
    reasons = {int(k): str(why) for k, why in sorted(mapping(failed).items())}
    num_asked = len(asked) or whole(counts.get("count"))
    return Exchange(asked, replied, reasons, num_asked, len(replied) or num_replied, len(reasons))


# ---------------------------------------------------------------------------- a round's line
def _round(line: Mapping[str, Any], before: Round | None, seen: dict[Any, Any]) -> Round:
    """Make a round of its line; `seen` holds equal keys and tuples once."""
    given = {str(key): _float(value) for key, value in line["metrics"].items()}
    texts = mapping(line.get("texts"))
    told = {
        part: str(text)
        for path, text in texts.items()
        for part, prefix in (
            ("aggregation", "aggregation/"),
            ("candidates", "stack/candidates"),
            ("members", "stack/members"),
        )
        if path.startswith(prefix)
    }
    aggregation = parsed(told.get("aggregation", ""))
    clients = [mapping(client) for client in aggregation.get("clients") or ()]
    rows = [mapping(row) for row in line.get("clients") or ()]
    train, evaluate = _participation(aggregation, clients, rows, given)
    kept = {sys.intern(key): v for key, v in given.items() if not _OWN_KEY.fullmatch(key)}
    return Round(
        server_round=int(line["server_round"]),
        time_ms=whole(line.get("timestamp_ms")),
        metrics=kept,
        up=_step(kept, before, "cost/bytes_up"),
        down=_step(kept, before, "cost/bytes_down"),
        train=_once(train, seen),
        evaluate=_once(evaluate, seen),
        validation=_validation(rows, seen),
        training=_training(given, seen),
        sizes=_shared({number_of(c): whole(c["num_examples"]) for c in clients}, seen),
        packed=zlib.compress(json.dumps(told).encode(), 1) if told else b"",
    )


def _step(metrics: Mapping[str, float], before: Round | None, key: str) -> float:
    """Return what a cumulative count grew by in this round."""
    if before is None:
        return metrics.get(key, 0.0)
    start = 0.0 if before.server_round == 0 else math.nan
    return metrics.get(key, math.nan) - before.metrics.get(key, start)


def _participation(
    aggregation: Mapping[str, Any],
    clients: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, float],
) -> tuple[Exchange, Exchange]:
    """Return who trained and who evaluated."""
    own = mapping(aggregation.get("evaluate"))
    replied = [number_of(client) for client in clients]
    counts = {"count": metrics.get("cost/clients_asked", 0.0)}
    answered = whole(metrics.get("cost/clients_replied"))
    asked = aggregation.get("asked") or (replied if len(replied) == counts["count"] else ())
    train = _exchange(asked, replied, aggregation.get("failed"), counts, answered)
    lost = whole(metrics.get("cost/clients_failed"))
    train = replace(train, num_failed=train.num_failed or lost)
    scored = [number_of(row) for row in rows]
    evaluate = _exchange(own.get("asked") or scored, scored, own.get("failed"), {}, 0)
    return train, evaluate


def _validation(rows: Sequence[Mapping[str, Any]], seen: dict[Any, Any]) -> Own:
    """Return the clients' metrics from the rows of the evaluating clients."""
    if not rows:
        return NOBODY
    rows = sorted(rows, key=number_of)
    besides = ("server_round", "partition", "client", "num_examples")
    names = dict.fromkeys(key for row in rows for key in row if key not in besides)
    partitions = _array([number_of(row) for row in rows], np.int32, seen)
    sizes = _array([_float(row.get("num_examples")) for row in rows], np.float64, seen)
    values = {sys.intern(n): np.array([_float(row.get(n)) for row in rows]) for n in names}
    return Own(partitions, sizes, values)


def _training(metrics: Mapping[str, float], seen: dict[Any, Any]) -> Own:
    """Return the clients' metrics from ``train_client_<metric>/NNN``."""
    found: dict[str, dict[int, float]] = {}
    for key, value in metrics.items():
        match = _OWN_KEY.fullmatch(key)
        if match and match[1] == "train":
            found.setdefault(match[2], {})[int(match[3])] = value
    partitions = sorted({k for values in found.values() for k in values})
    if not partitions:
        return NOBODY
    own = {
        sys.intern(name): np.array([by.get(k, math.nan) for k in partitions])
        for name, by in found.items()
    }
    unknown = _array([math.nan] * len(partitions), np.float64, seen)
    return Own(_array(partitions, np.int32, seen), unknown, own)


def _array(values: Sequence[float], dtype: type[Any], seen: dict[Any, Any]) -> NDArray[Any]:
    """Return an array, the same object for the same values: most rounds have the same clients."""
    array = np.array(values, dtype)
    found: NDArray[Any] = seen.setdefault((array.dtype.char, array.tobytes()), array)
    return found


def _once(exchange: Exchange, seen: dict[Any, Any]) -> Exchange:
    reasons, counts = tuple(exchange.failed.items()), (exchange.num_asked, exchange.num_replied)
    key = exchange.asked, exchange.replied, reasons, counts, exchange.num_failed
    found: Exchange = seen.setdefault(key, exchange)
    return found


def _shared(sizes: dict[int, int], seen: dict[Any, Any]) -> Mapping[int, int]:
    found: Mapping[int, int] = seen.setdefault(tuple(sizes.items()), sizes)
    return found
