"""Runs on a disk for tests of the live page: written by hand, and real ones without MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.dashboard.live import Tail
from fl_app.dashboard.run_files import runs
from fl_app.dashboard.view import RunView
from fl_app.home import Process
from fl_app.runtimes.inprocess import run
from fl_app.tracking.journal import Journal, _put_fact
from fl_app.tracking.records import RoundRecord
from fl_app.tracking.round_texts import aggregation_text

NAME = "20260102-030405-0123abcd"
LIVING, GONE = asdict(Process.current()), asdict(replace(Process.current(), started="never"))
UNSEEN = {**LIVING, "started": LIVING["started"].replace("-", "-1", 1)}
"""A process in another container of this machine."""


class Record:
    """A run's journal, written piece by piece.

    Parameters
    ----------
    home : Path
        The home.
    name : str
        The run's name.
    sent : bool
        Whether MLflow has all of it.
    """

    def __init__(self, home: Path, name: str = NAME, sent: bool = False) -> None:
        self.home, self.name = home, name
        self.folder = home / "runs" / name
        with self.journal() as journal:
            if sent:
                journal.mark_whole()

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """Open it for a moment, as the one who writes."""
        journal = Journal.claim(self.folder) or Journal.create(self.home, self.name)
        try:
            yield journal
        finally:
            journal.release()

    def start(
        self,
        params: Mapping[str, str] = {},
        process: Mapping[str, Any] = LIVING,
        uri: str = "http://127.0.0.1:9",
        **run_facts: Any,
    ) -> Record:
        """Write the start."""
        known = {"strategy.name": "fedavg", "num_clients": "3", "dataset.name": "iris", "seed": "0"}
        run_ = {"name": "fedavg s0", "params": {**known, **params}, "tags": {}, "texts": {}}
        start = {
            "target": {"uri": uri},
            "start_ms": 1_000_000,
            "process": dict(process),
            "run": {**run_, "num_server_rounds": 3, **run_facts},
        }
        return self.fact("start", start)

    def fact(self, key: str, content: Mapping[str, Any]) -> Record:
        """Write a fact."""
        with self.journal() as journal:
            journal._write([_put_fact(key, content)])
        return self

    def events(self, *told: tuple[str, Mapping[str, Any]], time_ms: int = 1_000_000) -> Record:
        """Append events, all of one time."""
        with self.journal() as journal:
            for kind, facts in told:
                journal.add_event({"time_ms": time_ms, "event": kind, **facts})
        return self

    def begin(self, process: Mapping[str, Any] = LIVING, runtime: str = "inprocess") -> Record:
        """Append the first event."""
        return self.events(("begin", {"runtime": runtime, "process": dict(process)}))

    def rounds(self, *numbers: int, **facts: Any) -> Record:
        """Append rounds as :func:`round_line` makes them."""
        with self.journal() as journal:
            for number in numbers:
                journal.add_round(round_line(number, **facts))
        return self

    def line(self, line: Mapping[str, Any]) -> Record:
        """Append a round's line."""
        with self.journal() as journal:
            journal.add_round(line)
        return self

    def whole(self) -> Record:
        """Say that MLflow has all of it."""
        with self.journal() as journal:
            journal.mark_whole()
        return self

    def note(self, tags: Mapping[str, str] = {}, texts: Mapping[str, str] = {}) -> Record:
        """Append a note."""
        with self.journal() as journal:
            journal.add_note(tags, texts)
        return self

    def end(self, status: str = "FINISHED", error: str = "") -> Record:
        """Write the end."""
        return self.fact("end", {"status": status, "error": error, "end_ms": 2_000_000})

    def view(self) -> RunView:
        """Read it."""
        view = Tail(self.home, self.name).read()
        assert view is not None
        return view


def round_line(
    server_round: int,
    metrics: Mapping[str, float] = {},
    clients: Sequence[int] = (0, 1, 2),
    texts: Mapping[str, Any] = {},
    record: RoundRecord | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a round's line: accuracy 0.5 + r/100 on the server, and of client k 0.1 (k + 1)."""
    own = {
        "server/accuracy": 0.5 + server_round / 100,
        "cost/bytes_up": 10.0 * server_round,
        "cost/bytes_down": 20.0 * server_round,
        **metrics,
    }
    rows: list[dict[str, Any]] = []
    if server_round:
        rows = [
            {"server_round": server_round, "partition": k, "num_examples": 9 + k, "accuracy": a}
            for k in clients
            if (a := 0.1 * (k + 1))
        ]
        own |= {"eval/accuracy": 0.2}
    told = {
        path: text if isinstance(text, str) else json.dumps(text) for path, text in texts.items()
    }
    if record is not None:
        told[f"aggregation/round_{server_round:04d}.json"] = aggregation_text(record)
    line = {"server_round": server_round, "timestamp_ms": 1_000_000 + server_round}
    return line | {"metrics": own, "texts": told, "clients": rows} | more


def real_runs(home: Path, *jobs: Iterable[str]) -> list[RunView]:
    """Run experiments in this process without MLflow and return them as the page sees them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_APP_HOME", str(home))
        found = []
        for job, overrides in enumerate(jobs):
            folder = home / "out" / str(job)
            words = [*overrides, "tracking=none", f"output_dir={folder}"]
            run(RunRequest(compose_config(words)))
            known = {view.name for view in found}
            name = next(head.name for head in runs(home) if head.name not in known)
            view = Tail(home, name).read()
            assert view is not None
            found.append(view)
    return found
