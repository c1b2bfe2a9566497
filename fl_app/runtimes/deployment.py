"""``runtime=deployment``: a SuperLink, with SuperNodes that hold their own rows.

Somebody runs them, and the config names the SuperLink; or they are started for the run, on this
machine, and end with it.

The ServerApp runs where the SuperLink runs, so no folder need be common to both ends. What comes
back is the run's status at the SuperLink, which decides, and the run's log, in which one line
holds what ``result.json`` holds on the SuperLink's machine. Where that line is lost, the result has
the status alone.

References
----------
https://flower.ai/docs/framework/how-to-run-flower-with-deployment-engine.html
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from fl_app.config.dataset_options import TabularConfig
from fl_app.config.options import DeploymentConfig, MlflowConfig
from fl_app.config.passwords import whole
from fl_app.config.run_request import NO_PASSWORD, RunRequest, handed_over
from fl_app.config.schema import Config
from fl_app.errors import ConfigError, InputError, RunError, masked, printable
from fl_app.runtimes.bundle import app_dir
from fl_app.runtimes.connections import read_connection
from fl_app.runtimes.result import (
    RunResult,
    RunStoppedError,
    end_of,
    forget_result,
    write_result,
)
from fl_app.runtimes.signals import signals_unwind
from fl_app.runtimes.submit import Outcome, submit
from fl_app.runtimes.superlink import PrivateSuperLink
from fl_app.runtimes.supernodes import SuperNodes, dealt
from fl_app.tracking import replay
from fl_app.tracking.console import RESULT_MARK, own_text
from fl_app.tracking.mlflow.uri import check_uri, default_uri, is_http, sqlite_path

__all__ = ["run"]

_FIELD = "runtime.superlink"
_CONNECT_SECONDS = 5.0
# Flower ends a ServerApp some seconds after its run was stopped.
_STOPPED_SECONDS = 10.0
_ENDS = {"completed": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


def run(request: RunRequest) -> RunResult:
    """Run an experiment at a SuperLink and follow it to its true end.

    Parameters
    ----------
    request : RunRequest
        With ``output_dir`` set to an absolute path.

    Raises
    ------
    InputError
        If there is no such SuperLink, or it does not answer, or the record cannot go where the
        config says.
    RunError
        If the run failed or was stopped, with the ServerApp's own message; if the processes of a
        run that starts its own do not start.
    KeyboardInterrupt, SystemExit
        As they came, after the run has been stopped at the SuperLink.
    """
    config = request.config
    runtime = config.runtime
    assert isinstance(runtime, DeploymentConfig)
    log, output_dir, is_here = _Log(), config.output_dir or "", False
    try:
        with signals_unwind(), _reached(runtime, config.num_clients) as link:
            is_here = link.is_here
            shipped = replace(
                request,
                config=_shipped(config, link),
                overrides=_of_both_ends(request.overrides),
                swept=_of_both_ends(request.swept),
            )
            forget_result(output_dir)
            return _end(_follow(shipped, link, log, output_dir), log, output_dir)
    except BaseException:
        if is_here and log.cut_short and isinstance(config.tracking, MlflowConfig):
            _send_rest()
        raise


def _follow(request: RunRequest, link: _Link, log: _Log, output_dir: str) -> Outcome:
    """Submit the run and wait for its end; where that fails, write down why."""
    handed = handed_over(request) if _stays_here(request, link) else nullcontext(request.to_json())
    try:
        with app_dir() as folder, handed as text:
            return link.submit(folder, run_config={"config-json": text}, on_line=log)
    except BaseException as error:
        write_result(output_dir, log.result(*end_of(error)))
        raise


def _end(outcome: Outcome, log: _Log, output_dir: str) -> RunResult:
    """Write down how the run ended, and raise unless it finished."""
    status = _ENDS[outcome.status]
    details = printable(" ".join(outcome.details.split()))
    data = log.result(status, "" if status == "FINISHED" else details)
    write_result(output_dir, data)
    if status != "FINISHED":
        reason = data.get("error") or "Flower gave no reason"
        raise RunError(f"the run {outcome.status}: {reason}")
    if not log.reported:
        run_id = printable(outcome.run_id)
        print(
            f"the log of run {run_id} ended before its result: result.json has the "
            f"status only; the record has the tag flwr.run_id={run_id}",
            flush=True,
        )
    data.pop("link", None)
    return RunResult(**data)


def _reached(runtime: DeploymentConfig, clients: int) -> AbstractContextManager[_Link]:
    """Look up the SuperLink that is named, or start one."""
    if runtime.superlink is None:
        return _started(runtime.nodes or clients)
    link = _Link.of(runtime.superlink)
    print(printable(f"flwr run: SuperLink {runtime.superlink} at {link.address}"), flush=True)
    return nullcontext(link)


@contextmanager
def _started(number: int) -> Iterator[_Link]:
    """Run a SuperLink with SuperNodes, and wait for them when the ``flwr`` command imports."""
    print(
        f"flwr run: starting a SuperLink and {number} SuperNodes on this machine, for this run",
        flush=True,
    )
    with (
        PrivateSuperLink(simulation=False, wait=False) as own,
        # Its SuperLink ends as well, so nobody needs to know that they have gone.
        SuperNodes(own, dealt(number), grace=0.0, wait=False) as nodes,
    ):

        def ready() -> None:
            own.wait()
            nodes.wait()
            processes = ", ".join(map(str, nodes.pids))
            print(
                f"flwr run: SuperLink at {own.address}, SuperNodes are processes {processes}",
                flush=True,
            )

        def submit_here(folder: Path, on_line: _Log, **arguments: Any) -> Outcome:
            try:
                outcome = submit(
                    folder,
                    own.name,
                    env=own.client_env,
                    flwr_home=own.flwr_home,
                    patience=0.0,
                    ready=ready,
                    on_line=on_line,
                    **arguments,
                )
            except RunError as error:
                # As its record says, where a part of it was killed.
                kind = RunStoppedError if on_line.cut_short else RunError
                raise kind(own.killed() or str(error)) from None
            own.grace = 0.0  # the ServerApp has ended; what is left has nothing to save
            return outcome

        yield _Link(own.address, True, submit_here)


@dataclass(frozen=True)
class _Link:
    """Where a SuperLink is, and what submits a run to it."""

    address: str
    is_here: bool
    submit: Callable[..., Outcome]

    @classmethod
    def of(cls, name: str | None) -> _Link:
        """Look a connection up and knock at its door."""
        connection = read_connection(name, os.environ, _FIELD)
        address = str(connection.get("address") or "")
        if not address or address.startswith(":local"):
            allowed = "a connection with an address; Flower's own simulation is runtime=simulation"
            raise InputError(_FIELD, name, allowed)
        scheme = "http" if connection.get("insecure") else "https"
        certificates = connection.get("root-certificates")
        if certificates is not None and not Path(certificates).is_file():
            allowed = f"the absolute path of a PEM file, in [superlink.{name}] of config.toml"
            raise InputError("root-certificates", certificates, allowed)
        try:
            _knock(f"{scheme}://{address}/health", certificates)
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            allowed = f"a SuperLink that answers: {scheme}://{address} does not ({reason})"
            raise InputError(_FIELD, name, allowed) from None
        here = _is_here(urlsplit(f"//{address}").hostname or "")
        return cls(
            address, here, lambda folder, **arguments: submit(folder, str(name), **arguments)
        )


def _knock(url: str, root_certificates: str | None) -> None:
    """Ask for anything at all, with the client and the certificates that Flower will use."""
    verify: ssl.SSLContext | bool = True
    if root_certificates is not None:
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        verify.load_verify_locations(root_certificates)
    httpx.get(url, verify=verify, timeout=_CONNECT_SECONDS)


def _is_here(host: str) -> bool:
    """Tell whether a host is this machine: only its own addresses can be bound."""
    try:
        addresses = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:  # a name that only the proxy of this shell knows
        return False
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
        except OSError:
            continue
    return False


def _shipped(config: Config, link: _Link) -> Config:
    """Return the config as the ServerApp shall have it, without what means something here only."""
    config = replace(config, output_dir=None)
    if isinstance(config.dataset, TabularConfig) and config.dataset.path is not None:
        print("dataset.path is not sent: each SuperNode reads the file of its own node-config")
        config = replace(config, dataset=replace(config.dataset, path=None))
    if isinstance(config.tracking, MlflowConfig):
        uri = _tracking_uri(config.tracking.uri, link)
        config = replace(config, tracking=replace(config.tracking, uri=uri))
    return config


_OF_THIS_END = ("tracking.uri=", "dataset.path=", "output_dir=")


def _of_both_ends(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what names places of this machine: every SuperNode is handed the run-config."""
    return tuple(o for o in overrides if not o.lstrip("+").startswith(_OF_THIS_END))


def _stays_here(request: RunRequest, link: _Link) -> bool:
    """Tell whether the tracking URI is for this machine's ServerApp only.

    A server's address without a password may travel: the SuperLink may be behind a tunnel.
    """
    tracking = request.config.tracking
    if not link.is_here or not isinstance(tracking, MlflowConfig) or tracking.uri is None:
        return False
    return not is_http(tracking.uri) or masked(whole(tracking.uri)) != whole(tracking.uri)


def _tracking_uri(given: str | None, link: _Link) -> str | None:
    """Return the store that the ServerApp writes to; None for the one of its own machine."""
    if link.is_here:
        # The SuperLink has another working directory and environment than this shell.
        return check_uri(given or default_uri())
    uri = given or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        print("the record goes to MLflow on the SuperLink's machine (tracking.uri=null)")
        return None
    field = "tracking.uri" if given else "MLFLOW_TRACKING_URI"
    if masked(whole(uri)) != whole(uri):
        raise ConfigError(field, masked(uri), NO_PASSWORD)
    if sqlite_path(uri) is not None:
        allowed = f"a server that {link.address} reaches; a file of this machine it does not"
        raise ConfigError(field, masked(uri), allowed)
    return check_uri(uri)


class _Log:
    """Shows our lines of the run's log, and keeps the one with the result.

    Attributes
    ----------
    begun : bool
        Whether the ServerApp has said anything.
    reported : dict
        The result as the ServerApp wrote it; empty until then.
    """

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self.begun = False
        self.reported: dict[str, Any] = {}

    @property
    def cut_short(self) -> bool:
        """Tell whether the ServerApp has begun, and not said how it ended."""
        return self.begun and not self.reported

    def __call__(self, line: str) -> None:
        """Take one line."""
        text = own_text(line)
        if text is None:
            return
        self.begun = True
        if text.startswith(RESULT_MARK) and (result := _read(text.removeprefix(RESULT_MARK))):
            self.reported = result
        else:
            print(printable(text), flush=True)

    def result(self, status: str, error: str) -> dict[str, Any]:
        """Return what is known of the run; its end at the SuperLink wins over what it said."""
        known: dict[str, Any] = {
            "run_id": None,
            "status": status,
            "metrics": {},
            "weights_sha256": None,
            "seconds": round(time.monotonic() - self._begin, 3),
        }
        known |= {**self.reported, "status": status}
        if error:
            known.setdefault("error", error)
        return known


_RESULT_KEYS = {"run_id", "status", "metrics", "weights_sha256", "seconds", "error", "link"}


def _read(text: str) -> dict[str, Any]:
    """Read the line with the result; empty if it is none of ours."""
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    known = isinstance(data, dict) and data.keys() <= _RESULT_KEYS
    return data if known and isinstance(data.get("metrics"), Mapping) else {}


def _send_rest() -> None:
    """Send what a stopped ServerApp of this machine left in its journal, once it is gone.

    Flower ends a ServerApp without its ``finally``. One of another machine, or with another
    FL_APP_HOME, leaves that to the next run there.
    """
    deadline = time.monotonic() + _STOPPED_SECONDS
    while replay().live and time.monotonic() < deadline:
        time.sleep(0.2)
