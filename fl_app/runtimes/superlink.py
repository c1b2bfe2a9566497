"""A Flower SuperLink that lives exactly as long as a ``with`` block.

``flwr run`` on its own submits to one SuperLink daemon per machine, which nobody ends and whose
environment and working directory are those of the shell that happened to start it. A
:class:`PrivateSuperLink` is started for its owner, on a port of its own, and leaves nothing
behind: no process, no temporary file.

A SuperLink on its own starts ``flower-superexec`` when it is up itself, and either spends two
seconds with imports. Here both begin at the same time (``--isolation process``, Flower's mode for
a SuperExec that somebody else starts).

References
----------
https://flower.ai/docs/framework/ref-api-cli.html#flower-superlink
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from fl_app.config.plugins import VARIABLE
from fl_app.errors import InputError, RunError
from fl_app.runtimes.connections import add_connection, remove_connection
from fl_app.runtimes.processes import ProcessFamily
from fl_app.runtimes.signals import signals_deferred, signals_unwind
from fl_app.temporary import temporary_dir

__all__ = ["PrivateSuperLink", "free_port", "search_path"]

_PORT_ATTEMPTS = 5
_POLL_SECONDS = 0.05
# Ray's longest socket path below its temporary directory, and what the kernel accepts (macOS: 103).
_RAY_SOCKET = len("/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store")
_SOCKET_LIMIT = 103


# What the console script does, once it is told to by a line. Where the process is gone that would
# have sent one, or goes later, it ends the SuperLink, itself and all that they have started. So it
# does where the run's process is killed, which Flower would miss after a minute only.
_SUPEREXEC = """
import os, signal, sys, threading, time
from importlib.metadata import distribution
from fl_app.parent import when_parent_is_gone

owner, superlink = map(int, sys.argv[1:3])

def end():
    from fl_app.runtimes.processes import end_all
    end_all({superlink, os.getpid()})

def look():
    while True:
        try:
            run = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            break
        except ChildProcessError:
            time.sleep(0.5)
    if run.si_code != os.CLD_EXITED:
        print("the run's process was ended by", signal.Signals(run.si_status).name, flush=True)
        end()

when_parent_is_gone(owner, end)
if hasattr(os, "waitid"):
    threading.Thread(target=look, daemon=True).start()
(command,) = distribution("flwr").entry_points.select(name="flower-superexec")
flower_superexec = command.load()
if not sys.stdin.buffer.readline():
    end()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
sys.argv = sys.argv[3:]
flower_superexec()
"""


def search_path(environment: Mapping[str, str]) -> str:
    """Return PATH with this interpreter's commands first: Flower looks its helpers up on it."""
    commands = str(Path(sys.executable).parent)
    return os.pathsep.join([commands, environment.get("PATH", os.defpath)])


class PrivateSuperLink:
    """Run a SuperLink for the length of a ``with`` block.

    Parameters
    ----------
    name : str, default: "fl-app"
        Name of the connection in Flower's ``config.toml``: letters, digits, ``-`` and ``_``.
    flwr_home : Path or None, default: None
        Directory for Flower's own files. None means a temporary one. A given directory is kept;
        the connection's entry in its ``config.toml`` stands there only as long as the block runs.
    simulation : bool, default: True
        Simulate the SuperNodes in this SuperLink; False waits for real ones to connect.
    install_dependencies : bool, default: False
        Let Flower install the app's dependencies into a fresh environment at every run.
    env : mapping of str to str, optional
        Variables to set in the environment of all its processes.
    startup_timeout : float, default: 60
        Seconds to wait until it answers.
    grace : float, default: 5
        Seconds that its processes have to end by themselves before they are killed.
    wait : bool, default: True
        Wait on entry until it answers. False leaves that to :meth:`wait`: it takes seconds in which
        there may be something else to do.

    Raises
    ------
    InputError
        If `name` cannot be a connection name, or is taken in the given `flwr_home`.
    RunError
        On entry, if it dies or does not answer in time; the message ends with its last words.

    Examples
    --------
    >>> with PrivateSuperLink(name="lab") as link:  # for submit("my-app", link.name, ...)
    ...     link.client_env["FLWR_HOME"] == str(link.flwr_home)
    True
    """

    def __init__(
        self,
        *,
        name: str = "fl-app",
        flwr_home: Path | None = None,
        simulation: bool = True,
        install_dependencies: bool = False,
        env: Mapping[str, str] | None = None,
        startup_timeout: float = 60.0,
        grace: float = 5.0,
        wait: bool = True,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == "default":
            raise InputError("superlink", name, "letters, digits, '-' and '_', not 'default'")
        self.name = name
        self.simulation = simulation
        self.install_dependencies = install_dependencies
        self.env = dict(env or {})
        self.startup_timeout = startup_timeout
        self.grace = grace
        self._waits = wait
        self._given_home = flwr_home
        self._scratch: Path | None = None
        self._address = ""
        self._family: ProcessFamily | None = None
        self._cleanup = ExitStack()

    @property
    def address(self) -> str:
        """Return ``host:port``, at which both submitters and SuperNodes reach it."""
        return self._address

    @property
    def flwr_home(self) -> Path:
        """Return the directory with Flower's files, for ``FLWR_HOME`` of whoever submits."""
        return (self._given_home or self.folder / "flwr").absolute()

    @property
    def client_env(self) -> dict[str, str]:
        """Return the variables that a process needs which talks to this SuperLink."""
        return _no_proxy() | {"FLWR_HOME": str(self.flwr_home), "FLWR_DISABLE_UPDATE_CHECK": "1"}

    def pids(self) -> list[int]:
        """List the processes of this SuperLink that are alive, all descendants included."""
        return [] if self._family is None else self._family.pids()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that the SuperLink and its SuperExec have printed."""
        return "\n".join(_read(self._log).splitlines()[-lines:])

    def killed(self) -> str:
        """Say in one line that somebody has killed the run's process; empty if nobody has."""
        found = re.search(r"^the run's process was ended by \w+$", self.log_tail(), re.MULTILINE)
        return found[0] if found else ""

    def __enter__(self) -> PrivateSuperLink:
        """Start it, wait until it answers and enter it in ``config.toml``."""
        with ExitStack() as stack:
            stack.enter_context(signals_unwind())
            self._scratch = stack.enter_context(temporary_dir(_short_tmp()))
            stack.callback(self._clean)
            self.flwr_home.mkdir(parents=True, exist_ok=True)
            self._start()
            if self._waits:
                self.wait()
            self._cleanup = stack.pop_all()
        return self

    def wait(self) -> None:
        """Wait until it answers; start it on another port if somebody took its port first.

        Raises
        ------
        RunError
            If it dies or does not answer in time.
        """
        for _ in range(_PORT_ATTEMPTS):
            assert self._family is not None
            if self._answers(self._family, int(self._address.rpartition(":")[2])):
                self._family.go()
                return
            self._family.end(self.grace)
            self._leave()
            self._start()
        raise RunError(f"no free port for flower-superlink in {_PORT_ATTEMPTS} attempts")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all its processes and remove what it wrote."""
        self._cleanup.close()

    def _clean(self) -> None:
        with signals_deferred():
            if self._family is not None:
                self._family.end(self.grace)
                self._family = None
            if self._scratch is not None:
                self._leave()
                shutil.rmtree(self._scratch, ignore_errors=True)
                self._scratch = None

    @property
    def folder(self) -> Path:
        """Return the temporary directory that goes with it."""
        if self._scratch is None:
            raise RuntimeError("PrivateSuperLink is not running: use it in a with statement")
        return self._scratch

    @property
    def _log(self) -> Path:
        return self.folder / "superlink.log"

    def _start(self) -> None:
        """Start it on a free port and enter it in ``config.toml``."""
        port = free_port()
        self._address = f"127.0.0.1:{port}"
        add_connection(self.flwr_home / "config.toml", self.name, self._address)
        with signals_deferred():
            leader = self._spawn(port)
            self._family = ProcessFamily(leader)
            self._family.add(self._spawn_superexec(port, leader.pid))

    def _leave(self) -> None:
        """Take its entry out of ``config.toml``."""
        remove_connection(self.flwr_home / "config.toml", self.name, self._address)

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        command = [str(_executable("flower-superlink")), "--insecure", "--isolation", "process"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        if self.simulation:
            command.append("--simulation")
        if not self.install_dependencies:
            command.append("--disable-runtime-dependency-installation")
        self._log.unlink(missing_ok=True)
        return self._begin(command, subprocess.DEVNULL)

    def _spawn_superexec(self, port: int, superlink: int) -> subprocess.Popen[bytes]:
        """Let the SuperExec import what it needs; it then waits for a line, and ends with both."""
        command = [sys.executable, "-c", _SUPEREXEC, str(os.getpid()), str(superlink)]
        command += ["flower-superexec", "--insecure"]
        command += ["--runtime-api-address", f"127.0.0.1:{port}", "--parent-pid", str(superlink)]
        if self.install_dependencies:
            command.append("--allow-runtime-dependency-installation")
        return self._begin(command, subprocess.PIPE)

    def _begin(self, command: Sequence[str], stdin: int) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ray puts this directory first on the workers' sys.path: a package in it that is
                # named like the app's would run in place of the app's.
                cwd=self.flwr_home,
                env=self.environment(),
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        """Return the whole environment of its processes, and of SuperNodes beside it."""
        inherited = dict(os.environ)
        # A dependency switch or a Ray cluster of the surrounding shell is not ours.
        inherited.pop("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", None)
        inherited.pop("RAY_ADDRESS", None)
        inherited.pop(VARIABLE, None)  # a project's modules are those of the bundle
        ours = {
            "PATH": search_path(inherited),
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",  # whatever the terminal takes: this is read
            "RAY_TMPDIR": str(self.folder),
            # Half of this is the mean wait between submission and start; Flower's default is 1.
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        }
        return inherited | ours | self.client_env | self.env

    def _answers(self, family: ProcessFamily, port: int) -> bool:
        """Wait until it answers; return False if its port was taken by somebody else."""
        deadline = time.monotonic() + self.startup_timeout
        while time.monotonic() < deadline:
            family.pids()  # learns the session of flower-superexec while its parent lives
            if not family.is_alive():
                if "address already in use" in _read(self._log).lower():
                    return False
                raise RunError(f"Flower's SuperLink did not start: {self._last_words()}")
            # An answer alone could come from somebody else's SuperLink on the same port.
            if f"Uvicorn running on http://127.0.0.1:{port}" in _read(self._log) and _healthy(port):
                return True
            time.sleep(_POLL_SECONDS)
        waited = f"Flower's SuperLink did not answer within {self.startup_timeout:g} s"
        raise RunError(f"{waited}: {self._last_words()}")

    def _last_words(self) -> str:
        return self.log_tail() or "it printed nothing"


def _executable(command: str) -> Path:
    path = Path(sys.executable).parent / command
    if not path.exists():
        raise RunError(f"{command} is not installed beside {sys.executable}")
    return path


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _no_proxy() -> dict[str, str]:
    """Keep traffic to this machine away from an HTTP proxy of the surrounding shell."""
    known = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = ",".join(filter(None, [known, "127.0.0.1", "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def _short_tmp() -> str | None:
    """Choose a directory for temporary files in which Ray's socket paths are short enough."""
    scratch = len("/fl-12345678")
    if len(tempfile.gettempdir()) + scratch + _RAY_SOCKET <= _SOCKET_LIMIT:
        return None
    return "/tmp" if os.access("/tmp", os.W_OK) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
