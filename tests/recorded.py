"""Runs on a disk for tests of the live page: written by hand, and real ones without MLflow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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
from fl_app.tracking.records import RoundRecord
from fl_app.tracking.round_texts import aggregation_text

NAME = "20260102-030405-0123abcd"
LIVING, GONE = asdict(Process.current()), asdict(replace(Process.current(), started="never"))


class Record:
    """A run's files, written as the record of a run is.

    Parameters
    ----------
    home : Path
        The home.
    name : str
        The run's name.
    where : str
        ``spool`` or ``runs``: the folder of all files but the events.
    """

    def __init__(self, home: Path, name: str = NAME, where: str = "spool") -> None:
        self.home, self.name = home, name
        self.folder, self.own = home / where / name, home / "runs" / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        params: Mapping[str, str] = {},
        process: Mapping[str, Any] = LIVING,
        uri: str = "http://127.0.0.1:9",
        **run_facts: Any,
    ) -> Record:
        """Write run.json."""
        known = {"strategy.name": "fedavg", "num_clients": "3", "dataset.name": "iris", "seed": "0"}
        run_ = {"name": "fedavg s0", "params": {**known, **params}, "tags": {}, "texts": {}}
        start = {
            "target": {"uri": uri},
            "start_ms": 1_000_000,
            "process": dict(process),
            "run": {**run_, "num_server_rounds": 3, **run_facts},
        }
        self.write("run.json", start)
        return self

    def write(self, file: str, content: Any) -> None:
        """Write a JSON file."""
        (self.folder / file).write_text(json.dumps(content))

    def line(self, file: str, content: Mapping[str, Any], folder: Path | None = None) -> None:
        """Append a line."""
        folder = folder or self.folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("a") as lines:
            lines.write(json.dumps(content) + "\n")

    def events(self, *told: tuple[str, Mapping[str, Any]], time_ms: int = 1_000_000) -> Record:
        """Append events, all of one time."""
        for kind, facts in told:
            event = {"time_ms": time_ms, "event": kind, **facts}
            self.line("events.jsonl", event, self.own)
        return self

    def begin(self, process: Mapping[str, Any] = LIVING, runtime: str = "inprocess") -> Record:
        """Append the first event."""
        return self.events(("begin", {"runtime": runtime, "process": dict(process)}))

    def rounds(self, *numbers: int, **facts: Any) -> Record:
        """Append rounds as :func:`round_line` makes them."""
        for number in numbers:
            self.line("rounds.jsonl", round_line(number, **facts))
        return self

    def end(self, status: str = "FINISHED", error: str = "") -> Record:
        """Write end.json."""
        self.write("end.json", {"status": status, "error": error, "end_ms": 2_000_000})
        return self

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
