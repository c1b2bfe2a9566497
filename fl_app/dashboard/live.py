"""A run as the page sees it, read while its journal grows.

:class:`Tail` reads what is new and returns a :class:`~fl_app.dashboard.view.RunView`. Nothing here
imports or asks MLflow, and no file, whatever is in it, raises.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.config.strategy_options import is_pooled
from fl_app.dashboard import run_files
from fl_app.dashboard.round_lines import OpenRound, round_of
from fl_app.dashboard.run_files import RunStart
from fl_app.dashboard.view import (
    ACTIVE,
    MlflowLink,
    Round,
    RunView,
    Status,
    mapping,
    parsed,
    rows_of,
    texts_of,
    whole,
)
from fl_app.errors import masked
from fl_app.home import RUN_NAME
from fl_app.tracking.journal_reader import UNREADABLE, JournalReader
from fl_app.tracking.liveness import Liveness
from fl_app.tracking.mlflow.uri import default_uri, is_http, run_url

__all__ = ["Tail"]

LOST = "the process ended without closing the run"


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


class Tail:
    """Reads a run's journal as it grows. One object serves any number of tabs and threads.

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
        self._journal = JournalReader(run_files.run_dir(home, name))
        self._positions = {"events": 0, "rounds": 0, "notes": 0}
        self._start: RunStart | None = None
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
        self._in_round: OpenRound | None = None
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
            if not RUN_NAME.fullmatch(self.name):
                return None
            changed = False
            with suppress(*UNREADABLE), self._journal.reading():
                changed = self._read_events() | self._read_start() | self._read_rounds()
                changed |= self._read_notes() | self._read_end()
            state = self._now()
            if changed or self._view is None or state != self._state:
                self._state, self._view = state, self._make(state)
            return self._view if self._start or self._begin else None

    # ------------------------------------------------------------ the journal
    def _new(self, table: str) -> Iterator[dict[str, Any]]:
        """Yield what is new."""
        read = getattr(self._journal, table)
        for content, position in read(self._positions[table]):
            self._positions[table] = position
            yield content

    def _read_start(self) -> bool:
        if self._start is not None:
            return False
        content = run_files.whole_fact(lambda: self._journal.start)
        self._start = RunStart.of(content) if content else None
        return self._start is not None

    def _read_events(self) -> bool:
        changed = False
        for event in self._new("events"):
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
                if self._begin:  # the run goes on, in another process
                    self._start, self._end, self._in_round = None, {}, None
                self._begin = {**event, "time_ms": self._begin.get("time_ms", event["time_ms"])}
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
                    self._in_round = OpenRound(server_round)
                self._in_round.ask(event)
            case "reply" | "replied":
                if self._in_round and self._in_round.server_round == event["round"]:
                    self._in_round.answer(event)

    def _read_rounds(self) -> bool:
        changed = False
        for line in self._new("rounds"):
            before = self._rounds[-1] if self._rounds else None
            try:
                new = round_of(line, before, self._seen)
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
                continue
            if before is None or new.server_round > before.server_round:
                changed = True
                self._rounds.append(new)
                self._keys |= dict.fromkeys(new.metrics)
                self._sizes |= new.sizes
        return changed

    def _read_notes(self) -> bool:
        changed = False
        for note in self._new("notes"):
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
            self._end = run_files.whole_fact(lambda: self._journal.end)
        if "run_id" not in self._sent:
            sent = run_files.whole_fact(lambda: self._journal.sent)
            self._sent = sent if sent.get("run_id") else {}
        return (self._end, self._sent) != before

    # ------------------------------------------------------------ the view
    def _now(self) -> _State:
        waits = (self._journal.folder / "lock").exists()
        vanished = not self._journal.folder.is_dir()
        start = self._start or RunStart.early(self._begin)
        known = start.liveness(self._journal.folder)
        status, error, closing = self._status(known)
        if status == "unknown" and start.process is not None:
            error = f"it ran on {start.process.host}, which has given no sign of it for a minute"
        if vanished and status in ACTIVE:
            status, error = "lost", "its files were removed from this machine"
        return _State(status, error, closing, waits, known == "gone", vanished)

    def _status(self, known: Liveness) -> tuple[Status, str, bool]:
        last = self._event if self._event.get("event") == "end" else {}
        end = last or self._end
        over = run_files.ENDS.get(str(end.get("status")))
        if over and (last or not self._begin or known != "alive"):
            return over, str(end.get("error") or ""), False
        if known == "gone":
            return "lost", LOST, False
        if known == "unknown":
            return "unknown", "", False
        if self._rounds or self._in_round:
            return "running", "", bool(over)
        return "waiting" if run_files.waits_for_nodes(self._event) else "starting", "", bool(over)

    def _make(self, state: _State) -> RunView:
        start = self._start or RunStart()
        params, rounds = start.params, tuple(self._rounds)
        launch, job = run_files.launch_of(self.home, start.output_dir)
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
        begun = whole(self._begin.get("time_ms"))
        return RunView(
            name=self.name,
            title=start.title,
            strategy=start.strategy,
            runtime=str(self._begin.get("runtime") or params.get("runtime.name", "")),
            output_dir=start.output_dir,
            launch=launch,
            job=job,
            config=start.config,
            params=params,
            tags={**start.tags, **self._tags, **texts_of(self._end.get("tags"))},
            status=state.status,
            error=state.error,
            start_ms=begun or start.start_ms or run_files.start_of_name(self.name),
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

    def _link(self, start: RunStart, state: _State) -> MlflowLink:
        if start.params.get("tracking.name") == "none":
            return MlflowLink("", "", "This run is not recorded in MLflow (tracking=none).")
        if not start.uri:
            return MlflowLink()
        rest = ""
        if state.waits and state.status not in ACTIVE:
            rest = "MLflow has not got all of this run: the rest waits on this machine"
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
    waits: bool
    gone: bool
    vanished: bool


def _ui(uri: str, home: Path) -> str:
    """Return the command that opens the page of a store."""
    if is_http(uri):
        return ""
    default = masked(default_uri(home))
    return "fl-kit ui" if uri == default else f"fl-kit ui --uri {shlex.quote(uri)}"
