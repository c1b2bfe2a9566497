"""Runs that are killed at a drawn instant, in processes of their own, and a home for them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pydoc
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["HOOKS", "PHASES", "ROUNDS", "Kill", "Lab"]

ROUNDS = 6
_JOURNAL, _STORE = "fl_app.tracking.journal.Journal", "fl_app.tracking.mlflow.backend.MlflowStore"
_UPLOAD, HOOKS = "fl_app.tracking.mlflow.upload.Upload", "fl_app.federation.federated.Federated"
_RUN = "fl_app.experiment.run"
PHASES: Mapping[str, Sequence[tuple[str, str, int]]] = {
    "handshake": [(_RUN, "shake_hands", 1)],
    "round": [
        (HOOKS, "configure_train", ROUNDS),
        (HOOKS, "aggregate_train", ROUNDS),
        (HOOKS, "configure_evaluate", ROUNDS),
        (HOOKS, "aggregate_evaluate", ROUNDS),
    ],
    "commit": [(_JOURNAL, "add_round", ROUNDS + 1)],
    "upload": [(_STORE, "log", 3), (_STORE, "log_file", ROUNDS), (_UPLOAD, "_mark", 3)],
    "models": [(_STORE, "log_model", 2), (_UPLOAD, "_keep_model", 2)],
    "end": [(_JOURNAL, "add_end", 1), (_STORE, "end_run", 1), (_RUN, "kept_result", 1)],
    "resume": [
        ("fl_app.server_app", "take_over", 1),
        ("fl_app.tracking.events.Events", "go_on", 1),
        (_JOURNAL, "reopen", 2),
        (_RUN, "load_state", 1),
        (_STORE, "reopen_run", 1),
    ],
    "timer": [],
}
"""By phase: a module or class, one of its functions, and how often a run calls it."""
_LOADED = (
    *("fl_app.cli.run", "fl_app.cli.kit", "fl_app.runtimes.inprocess", "sklearn.metrics", "pandas"),
    *("fl_app.tracking.mlflow.backend", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store"),
    *("mlflow.sklearn", "rich.table", "fl_app.tracking.mlflow.pyfunc_model"),
)
"""What runs import, which takes longer than they do."""
_processes = multiprocessing.get_context("forkserver")


class Kill(NamedTuple):
    """Where a process ends: before or after a call of a function, or (without one) by a timer."""

    phase: str
    owner: str = ""
    name: str = ""
    after: bool = False
    number: float = 1

    def __str__(self) -> str:
        where = f"{'after' if self.after else 'before'} {self.name} " if self.name else ""
        return f"{self.phase}: {where}{self.number:g}"


def _arm(kill: Kill) -> None:
    """Let this process kill itself."""

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if not kill.name:
        timer = threading.Timer(kill.number, die)
        timer.daemon = True
        timer.start()
        return
    owner, calls = pydoc.locate(kill.owner), []
    call = getattr(owner, kill.name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        last = len(calls) == kill.number
        if last and not kill.after:
            die()
        result = call(*args, **kwargs)
        if last:
            die()
        return result

    setattr(owner, kill.name, counted)


def _command(words: Sequence[str], env: Mapping[str, str], folder: Path, kill: Kill | None) -> None:
    os.environ.update(env)
    os.chdir(folder)
    out = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = [*words]
    if kill is not None:
        _arm(kill)
    command = "kit" if words[0] == "fl-kit" else "run"
    sys.exit(pydoc.locate(f"fl_app.cli.{command}").main())  # type: ignore[attr-defined]


class Lab:
    """A home with an MLflow store, in which all runs of a harness are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.env = {"FL_APP_HOME": str(self.home), "FLWR_HOME": str(folder / "flwr")}
        self.env |= {"FLWR_TELEMETRY_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.restart: Callable[[], None] | None = None
        _processes.set_forkserver_preload(list(_LOADED))
        self._number = 0

    def output(self) -> Path:
        """Make a folder for a run."""
        self._number += 1
        (folder := self.folder / f"out{self._number}").mkdir()
        return folder

    def begin(self, words: Sequence[str], folder: Path, kill: Kill | None = None) -> Any:
        """Start a command in a process of its own."""
        process = _processes.Process(target=_command, args=(words, self.env, folder, kill))
        process.start()
        return process

    def names(self) -> set[str]:
        """Return the names of all runs."""
        return {path.parent.name for path in (self.home / "runs").glob("*/journal.db")}

    def journal(self, name: str) -> Any:
        """Return a run's journal."""
        from fl_app.tracking.journal_reader import JournalReader

        return JournalReader(self.home / "runs" / name)

    @contextlib.contextmanager
    def federation(self) -> Iterator[None]:
        """Run a SuperLink and two SuperNodes, which :attr:`restart` starts anew."""
        from fl_app.runtimes.superlink import PrivateSuperLink
        from fl_app.runtimes.supernodes import SuperNodes, dealt

        home = Path(self.env["FLWR_HOME"])
        link = PrivateSuperLink(name="lab", flwr_home=home, simulation=False, env=self.env)
        with link, contextlib.ExitStack() as nodes:

            def restart() -> None:
                nodes.close()
                nodes.enter_context(SuperNodes(link, dealt(2)))

            restart()
            self.restart = restart
            yield
        self.restart = None
