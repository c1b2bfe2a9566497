"""Submit one run to a SuperLink through the stock ``flwr`` command and learn how it truly ended.

``flwr run --stream`` exits with 0 for a failed run, ``--format json`` does so even when the command
itself failed, and Ctrl-C leaves the run going. :func:`submit` therefore reads the run's id from the
command's output, asks ``flwr ls`` for the status once the log stream is over, and stops the run
when its own process is interrupted.

References
----------
https://flower.ai/docs/framework/ref-api-cli.html#flwr-run
"""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from fl_app.errors import InputError, RunError
from fl_app.runtimes.connections import read_connection
from fl_app.runtimes.flwr_command import Command, Flwr
from fl_app.runtimes.signals import signals_unwind
from fl_app.temporary import temporary_dir

__all__ = ["Outcome", "Scalar", "interpret", "submit"]

Scalar = str | int | float | bool
Status = Literal["completed", "failed", "stopped"]

_ENDS: dict[str, Status] = {s: s for s in ("completed", "failed", "stopped")}
_STARTED = re.compile(r"Successfully started run (\d+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Bounds of a silence: of a submission, a question, a stop; of a log, until the status is asked.
_ACCEPT_SECONDS = 300.0
_ASK_SECONDS = 60.0
_STOP_SECONDS = 20.0
_SILENT_SECONDS = 300.0
_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Parameters
    ----------
    run_id : str
        Flower's id of the run.
    status : {"completed", "failed", "stopped"}
        Its status in the SuperLink. Flower calls a run "completed" as soon as its ServerApp
        returned, also if every client failed.
    details : str
        What Flower says about it, empty if nothing.
    """

    run_id: str
    status: Status
    details: str


def submit(
    app_dir: str | Path,
    superlink: str,
    *,
    run_config: Mapping[str, Scalar],
    num_supernodes: int | None = None,
    client_num_cpus: float | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    flwr_home: Path | None = None,
    patience: float = 30.0,
    ready: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a Flower app on a SuperLink and wait for its end.

    Parameters
    ----------
    app_dir : str or Path
        Directory with the app's ``pyproject.toml``.
    superlink : str
        Name of a connection in ``config.toml`` of `flwr_home`.
    run_config : mapping of str to str, int, float or bool
        Overrides of the app's run-config; any text survives.
    num_supernodes : int or None, default: None
        SuperNodes to simulate. None for a SuperLink with real SuperNodes.
    client_num_cpus : float or None, default: None
        CPUs that a simulated client holds, which bounds how many train at once. None is
        Flower's default, 2.
    env : mapping of str to str, optional
        Variables to set in the environment of the ``flwr`` commands.
    on_line : callable, optional
        Gets each line of the run's log, without its newline, as soon as it arrives.
    flwr_home : Path or None, default: None
        Flower's directory, None for the one of the environment.
    patience : float, default: 30
        Seconds that the SuperLink may be unreachable before the run is given up.
    ready : callable, optional
        Returns when the SuperLink can be reached; called while the ``flwr`` command imports.

    Returns
    -------
    Outcome
        The true end of the run, whatever it is.

    Raises
    ------
    InputError
        If an argument is wrong, before anything is started.
    RunError
        If Flower refuses the run, or the SuperLink no longer answers.
    KeyboardInterrupt, SystemExit
        As they came, on Ctrl-C and SIGTERM, after the run has been stopped. The same holds for
        an exception of `on_line`.
    """
    app = Path(app_dir).expanduser().absolute()
    _check_run_config(app, run_config)
    federation = _federation_config(num_supernodes, client_num_cpus)
    environment = os.environ | dict(env or {})
    if flwr_home is not None:
        environment["FLWR_HOME"] = str(flwr_home.absolute())
    read_connection(superlink, environment)
    with ExitStack() as stack:
        stack.enter_context(signals_unwind())
        # `flwr ls NAME` takes NAME for a path if there is an app at it: work where there is none.
        scratch = stack.enter_context(temporary_dir())
        overrides = scratch / "run-config.toml"
        overrides.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        flwr = stack.enter_context(Flwr(environment, scratch))
        run = _Run(flwr, superlink, on_line, patience)
        return run.carry_out(
            ["run", str(app), superlink, "--run-config", str(overrides), *federation, "--stream"],
            ready,
        )


def interpret(answer: str) -> Outcome | None:
    """Read what ``flwr ls --run-id ID --format json`` printed.

    Parameters
    ----------
    answer : str
        Its output; lines before the JSON are passed over.

    Returns
    -------
    Outcome or None
        The end of the run, None if it is still going on.

    Raises
    ------
    RunError
        If this is no status of a run; the message is Flower's own, on one line.
    """
    try:
        status, _ = json.JSONDecoder().raw_decode(answer, answer.index("{"))
        if not status["success"]:
            # The command's progress notes stand before the message, a blank line between them.
            raise RunError(_one_line(status["error-message"].strip().rpartition("\n\n")[2]))
        (run,) = status["runs"]
        run_id, state, details = str(run["run-id"]), str(run["status"]), str(run["status-details"])
    except (KeyError, TypeError, ValueError):
        raise RunError(f"flwr ls answered: {_one_line(answer) or 'nothing'}") from None
    phase, _, end = state.partition(":")
    if phase in ("pending", "starting", "running"):
        return None
    if phase != "finished" or end not in _ENDS:
        raise RunError(f"run {run_id} has the unknown status {state!r}")
    return Outcome(run_id, _ENDS[end], "" if details == "N/A" else details)


class _Run:
    """One run, from its submission to its end."""

    def __init__(
        self, flwr: Flwr, superlink: str, on_line: Callable[[str], None], patience: float
    ) -> None:
        self._flwr = flwr
        self._superlink = superlink
        self._on_line = on_line
        self._patience = patience
        self._run_id = ""

    def carry_out(self, arguments: Sequence[str], ready: Callable[[], None]) -> Outcome:
        """Submit the run, hand on its log and wait for its end; stop it on any exception."""
        command = self._flwr.new()
        ready()
        command.tell(arguments)
        try:
            self._wait_for_id(command)
            return self._wait_for_end(command)
        except _LostRunError:
            raise
        except BaseException:
            self._stop(command)
            raise

    def _wait_for_id(self, command: Command) -> None:
        said = []
        for line in command.lines(_ACCEPT_SECONDS):
            if self._accepted(line):
                return
            said.append(line)
        raise RunError(f"Flower refused the run: {_refusal(said)}")

    def _accepted(self, line: str) -> bool:
        if started := _STARTED.search(line):
            self._run_id = started[1]
            self._flwr.prepare()
        return bool(started)

    def _wait_for_end(self, command: Command) -> Outcome:
        """Hand on the log; where it ends or falls silent, ask for the status."""
        question = ["ls", self._superlink, "--run-id", self._run_id, "--format", "json"]
        lost_since: float | None = None
        while True:
            for line in command.lines(_SILENT_SECONDS if lost_since is None else _POLL_SECONDS):
                self._on_line(line)
            try:
                if outcome := interpret(self._flwr.ask(question, _ASK_SECONDS)):
                    return outcome
                lost_since = None
            except RunError as error:
                now = time.monotonic()
                lost_since = now if lost_since is None else lost_since
                if now - lost_since >= self._patience:
                    raise _LostRunError(f"lost sight of run {self._run_id}: {error}") from None
            if command.ended:
                time.sleep(_POLL_SECONDS)

    def _stop(self, command: Command) -> None:
        """Stop the run; if its id is not known yet, wait first whether it was accepted."""
        if not self._run_id:
            any(self._accepted(line) for line in command.lines(_STOP_SECONDS))
        if self._run_id:
            with suppress(RunError):
                self._flwr.ask(["stop", self._run_id, self._superlink], _STOP_SECONDS)


class _LostRunError(RunError):
    """A run that may go on, at a SuperLink that no longer answers."""


def _check_run_config(app: Path, run_config: Mapping[str, Scalar]) -> None:
    """Refuse what Flower would refuse without naming the key."""
    for key, value in run_config.items():
        if type(value) not in (str, int, float, bool):
            raise InputError(key, value, "text, an integer, a number or true/false")
    try:
        project = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
        declared = list(_flat(project["tool"]["flwr"]["app"].get("config", {})))
    except (OSError, ValueError, LookupError, AttributeError):
        allowed = "a directory whose pyproject.toml has [tool.flwr.app]"
        raise InputError("app", app, allowed) from None
    for key in run_config:
        if key not in declared:
            raise InputError("run-config", key, f"one of {', '.join(declared)}")


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _federation_config(num_supernodes: int | None, client_num_cpus: float | None) -> list[str]:
    settings = []
    if num_supernodes is not None:
        if num_supernodes < 1:  # Flower takes 0, and waits for its nodes for ever
            raise InputError("num_supernodes", num_supernodes, "at least 1")
        settings.append(f"num-supernodes={num_supernodes}")
    if client_num_cpus is not None:
        if not client_num_cpus > 0:
            raise InputError("client_num_cpus", client_num_cpus, "more than 0")
        settings.append(f"client-resources-num-cpus={client_num_cpus}")
    return ["--federation-config", " ".join(settings)] if settings else []


def _refusal(said: Sequence[str]) -> str:
    """Find the error in what ``flwr run`` printed: the text in its box, or else its last line."""
    plain = [_COLOUR.sub("", line).strip() for line in said]
    boxed = [line.strip("│ ") for line in plain if line.startswith("│")]
    return _one_line(" ".join(boxed or [line for line in plain if line][-1:])) or "no reason given"


def _one_line(text: str) -> str:
    return " ".join(text.split())
