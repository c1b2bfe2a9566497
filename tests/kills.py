"""Runs that are killed at a drawn instant, in processes of their own, and what went on after it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.kills_preload"])

Kill = tuple[str, int]
"""Where a process kills itself, and at which call: a name of :data:`POINTS`."""


def _points() -> dict[str, tuple[Any, str, bool]]:
    """Return the method at which a process ends, and whether it ends after the call."""
    from fl_app.federation.federated import Federated
    from fl_app.federation.handshake import shake_hands  # noqa: F401
    from fl_app.tracking.journal import Journal

    return {
        "before commit": (Journal, "add_round", False),
        "after commit": (Journal, "add_round", True),
        "asked": (Federated, "configure_train", True),
        "aggregated": (Federated, "aggregate_train", True),
        "end": (Journal, "add_end", False),
    }


def _die(point: str, number: int) -> None:
    owner, name, after = _points()[point]
    method, calls = getattr(owner, name), []

    def end() -> None:
        from fl_app.tracking.journal import Journal

        for journal in Journal._open.values():
            journal.flush()  # as within half a second
        os.kill(os.getpid(), signal.SIGKILL)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        last = len(calls) == number
        if last and not after:
            end()
        result = method(*args, **kwargs)
        if last:
            end()
        return result

    setattr(owner, name, call)


def _child(words: Sequence[str], home: str, folder: str, kill: Kill | None) -> None:
    os.environ["FL_APP_HOME"] = home
    os.chdir(folder)
    Path(folder, "result.json").unlink(missing_ok=True)
    if kill is not None:
        _die(*kill)
    from fl_app.config.compose import compose_config
    from fl_app.config.run_request import RunRequest
    from fl_app.errors import FlAppError
    from fl_app.runtimes import run

    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open("out.txt", "a"))
        stack.enter_context(contextlib.redirect_stdout(out))
        try:
            config = compose_config([*words, f"output_dir={folder}"])
            run(RunRequest(config, tuple(words)))
        except FlAppError as error:
            print(error, flush=True)
            os._exit(error.exit_status)


def run(words: Sequence[str], home: Path, folder: Path, kill: Kill | None = None) -> int:
    """Run a config in a process of its own; return its exit code, negative where it was killed."""
    folder.mkdir(exist_ok=True)
    process = _PROCESSES.Process(target=_child, args=(words, str(home), str(folder), kill))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def result(folder: Path) -> dict[str, Any]:
    """Return a run's ``result.json``."""
    read: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return read
