"""How runs end: who tells the truth of it, and that nothing goes on, for each fault and runtime.

Real commands in a user's shell. What is measured in seconds is printed (``pytest -rP``): a busy
machine may take its time, so limits are several times what is promised.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fl_app.tracking.journal_reader import UNREADABLE, JournalReader

from .support import ROOT, command, end_processes, processes_with, until

pytestmark = pytest.mark.slow

SMALL = ("dataset=wine", "num_clients=2", "tracking.figures=false", "fraction_evaluate=0")
ENDLESS = (*SMALL, "num_server_rounds=100000")
SIMULATED = ("runtime=simulation", *ENDLESS)
KILLED = {"result.json": "KILLED", "journal": "KILLED", "MLflow": "KILLED"}
NOT_YET = {"result.json": None, "journal": None, "MLflow": "RUNNING"}
NEXT = {"result.json": None, "journal": "KILLED", "MLflow": "KILLED"}


@dataclass
class Shell:
    """A user's shell: one home for all, and a folder for each test."""

    home: Path
    folder: Path
    known: set[Path] = field(default_factory=set)

    @property
    def env(self) -> dict[str, str]:
        own = {"FL_APP_HOME": str(self.home), "FLWR_HOME": str(self.home / "flwr")}
        own |= {"TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        return os.environ | own

    @property
    def temporary(self) -> Path:
        """A short one, in which Ray has room for its sockets."""
        return Path(f"/tmp/e{os.getpid()}")

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "fl_app", f"hydra.run.dir={self.folder}/out", *words]

    def start(self, *words: str, **how: Any) -> subprocess.Popen[bytes]:
        log = (self.folder / "log").open("wb")
        how = {"stdout": log, "stderr": log, "start_new_session": True} | how
        with log:
            return subprocess.Popen(self.words(*words), cwd=self.folder, env=self.env, **how)

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def runs(self) -> list[Path]:
        return sorted({*self.home.glob("runs/*")} - self.known)

    def rounds(self) -> int:
        """Return how many rounds this test's runs have recorded."""
        try:
            return sum(1 for run in self.runs() for _ in JournalReader(run).rounds())
        except UNREADABLE:
            return 0

    def trains(self) -> bool:
        """Return whether rounds are recorded, and MLflow knows all runs that began."""
        try:
            return self.rounds() > 2 and all("run_id" in JournalReader(r).sent for r in self.runs())
        except UNREADABLE:
            return False

    def pids(self) -> list[int]:
        return processes_with("FL_APP_HOME", str(self.home))

    def pid(self, words: str) -> int:
        """Return the process that was started with some words."""
        for pid in self.pids():
            if words in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode():
                return pid
        raise AssertionError(f"no {words}")

    def told(self) -> dict[str, str | None]:
        """Return what each says of the one run of this test."""
        from mlflow import MlflowClient

        (folder,) = self.runs()
        result, journal = self.folder / "out" / "result.json", JournalReader(folder)
        run = MlflowClient(f"sqlite:///{self.home}/mlflow.db").get_run(journal.sent["run_id"])
        return {
            "result.json": json.loads(result.read_text())["status"] if result.exists() else None,
            "journal": journal.end.get("status"),
            "MLflow": run.info.status,
        }

    def sync(self) -> None:
        """Type the next command; MLflow has all rounds then."""
        from mlflow import MlflowClient

        done = command("fl-kit", "sync", cwd=self.folder, **self.env)
        # Not its exit status: another test's run waits for a server that is gone.
        assert not [run for run in self.runs() if (run / "lock").exists()], done.stderr
        client = MlflowClient(f"sqlite:///{self.home}/mlflow.db")
        for journal in map(JournalReader, self.runs()):
            curve = client.get_metric_history(journal.sent["run_id"], "train/log_loss")
            assert len(curve) == sum(1 for _ in journal.rounds()) - 1

    def tidies(self) -> None:
        """Type any command: no temporary file is left."""
        again = self.words("dataset=nothing")
        assert subprocess.run(again, env=self.env, cwd=self.folder, check=False).returncode == 2
        assert not [*self.temporary.iterdir()]

    def nothing_is_left(self, what: str) -> None:
        """Wait until none of the processes runs, and say how long they did."""
        seconds = until(lambda: not self.pids(), 60)
        print(f"{what}: the last process ended after {seconds:.1f} s")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def shell(home: Path, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(home, tmp_path, {*home.glob("runs/*")})
    shell.temporary.mkdir(exist_ok=True)
    try:
        yield shell
    finally:
        end_processes("FL_APP_HOME", str(home))
        shutil.rmtree(shell.temporary, ignore_errors=True)


def _end(process: subprocess.Popen[bytes], signum: int, what: str) -> int:
    """Signal a process, and say how long it took to end."""
    process.send_signal(signum)
    begin = time.monotonic()
    status = process.wait(120)
    print(f"{what}: exit status {status} after {time.monotonic() - begin:.1f} s")
    return status


ASKED = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("signum", "status"), ASKED)
def test_a_run_that_is_asked_to_end(shell: Shell, signum: signal.Signals, status: int) -> None:
    """Told at once by all, with the shell's exit status."""
    process = shell.start(*ENDLESS, f"runtime.num_workers={1 + (signum != signal.SIGHUP)}")
    until(shell.trains)
    assert _end(process, signum, signum.name) == status
    shell.nothing_is_left(signum.name)
    assert shell.told() == KILLED
    shell.sync()
    assert shell.said().splitlines()[-1].startswith("fl-app: interrupted")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_killed(shell: Shell, workers: int) -> None:
    """Told by the next command; nothing claims anything before, and no worker goes on."""
    process = shell.start(*ENDLESS, f"runtime.num_workers={workers}")
    until(shell.trains)
    assert _end(process, signal.SIGKILL, "kill -9") == -signal.SIGKILL
    shell.nothing_is_left("kill -9 of a run")
    assert shell.told() == NOT_YET
    shell.sync()
    assert shell.told() == NEXT


def _in_terminal(shell: Shell, words: list[str]) -> tuple[int, int]:
    """Start a command that leads a terminal; return its number and the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(shell.folder)
        os.execvpe(words[0], words, shell.env)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, b"\x28\0\xc8\0\0\0\0\0")
    return pid, terminal


def _read(terminal: int, seen: bytearray) -> None:
    """Read what is there, so that whoever writes can go on."""
    with suppress(OSError):  # nobody has it open any more
        while select.select([terminal], [], [], 0)[0]:
            seen += os.read(terminal, 65536)


def test_a_terminal_that_is_closed(shell: Shell) -> None:
    """As SIGHUP: told at once by all."""
    pid, terminal = _in_terminal(shell, shell.words(*ENDLESS))
    seen = bytearray()
    until(lambda: (_read(terminal, seen), shell.trains())[1])
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 129
    shell.nothing_is_left("closed terminal")
    assert shell.told() == KILLED


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this system")
def test_ctrl_z_and_fg(shell: Shell) -> None:
    """It rests, workers too, and goes on to its end as if nothing had been."""
    pid, terminal = _in_terminal(shell, ["bash", "--norc", "-i"])
    seen = bytearray()

    def typed(text: str) -> None:
        os.write(terminal, text.encode())

    words = shell.words(*SMALL, "num_server_rounds=600", "runtime.num_workers=2")
    typed(f"exec 2>&1; {' '.join(words)}\n")
    until(lambda: (_read(terminal, seen), shell.trains())[1])
    typed("\x1a")
    until(lambda: (_read(terminal, seen), b"Stopped" in seen)[1])
    rounds = shell.rounds()
    assert rounds < 600
    time.sleep(1)
    assert shell.rounds() == rounds
    typed("fg\n")
    until(lambda: (_read(terminal, seen), (shell.folder / "out/result.json").exists())[1])
    typed("echo status=$?; exit\n")
    until(lambda: (_read(terminal, seen), b"status=0\r" in seen)[1])
    os.waitpid(pid, 0)
    os.close(terminal)
    assert shell.told() == dict.fromkeys(KILLED, "FINISHED")
    assert shell.rounds() == 601


def test_an_ignored_signal_stays_ignored(shell: Shell) -> None:
    """As after ``nohup``: the run goes on, and SIGTERM still ends it."""
    ignore = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    words = [sys.executable, "-c", f"{ignore}os.execv(sys.argv[1], sys.argv[1:])"]
    with (shell.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*words, *shell.words(*ENDLESS)],
            cwd=shell.folder,
            env=shell.env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    until(shell.trains)
    process.send_signal(signal.SIGHUP)
    rounds = shell.rounds()
    until(lambda: shell.rounds() > rounds + 2)
    assert _end(process, signal.SIGTERM, "SIGTERM after nohup") == 143
    assert shell.told() == KILLED


@pytest.fixture
def silent() -> Iterator[str]:
    """Yield the address of a tracking server that takes what is sent and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_during_the_final_sending(
    shell: Shell, silent: str, signum: signal.Signals, status: int
) -> None:
    """The run has FINISHED and says so; what was not sent is the next command's."""
    process = shell.start(*SMALL, "num_server_rounds=2", f"tracking.uri={silent}")
    result = shell.folder / "out" / "result.json"
    until(result.exists)
    if signum == signal.SIGKILL:
        until(lambda: JournalReader(shell.runs()[0]).end)
    assert _end(process, signum, f"{signum.name} during the final sending") == status
    shell.nothing_is_left(signum.name)
    assert json.loads(result.read_text())["status"] == "FINISHED"
    (folder,) = shell.runs()
    assert JournalReader(folder).end["status"] == "FINISHED"
    uri = f"sqlite:///{shell.home}/mlflow.db"
    done = command("fl-kit", "sync", "--uri", uri, cwd=shell.folder, **shell.env)
    assert done.returncode == 0, done.stderr
    assert shell.told() == dict.fromkeys(KILLED, "FINISHED")


def test_ctrl_c_twice(shell: Shell, silent: str) -> None:
    """The second one waits for no server; the journal and ``result.json`` have the end already."""
    process = shell.start(*ENDLESS, f"tracking.uri={silent}")
    until(lambda: shell.rounds() > 2)
    process.send_signal(signal.SIGINT)
    until((shell.folder / "out" / "result.json").exists)
    time.sleep(0.6)
    assert _end(process, signal.SIGINT, "the second Ctrl-C") == 130
    shell.nothing_is_left("Ctrl-C twice")
    (folder,) = shell.runs()
    result = json.loads((shell.folder / "out" / "result.json").read_text())
    assert JournalReader(folder).end["status"] == result["status"] == "KILLED"


def _sweep(shell: Shell, launcher: str) -> subprocess.Popen[bytes]:
    """Start six jobs, two at a time in joblib's processes, and wait until the first ones train."""
    words = ("-m", "seed=range(6)", f"hydra.sweep.dir={shell.folder}/out", *ENDLESS)
    own = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2") if launcher == "joblib" else ()
    process = shell.start(*words, *own)
    running = 2 if own else 1
    until(lambda: len(shell.runs()) == running and shell.trains())
    return process


def _results(shell: Shell) -> list[str]:
    found = sorted(shell.folder.rglob("result.json"))
    return [json.loads(file.read_text())["status"] for file in found]


def _in_mlflow(shell: Shell) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{shell.home}/mlflow.db")
    ids = [JournalReader(folder).sent["run_id"] for folder in shell.runs()]
    return [client.get_run(run_id).info.status for run_id in ids]


@pytest.mark.parametrize(
    ("launcher", "signum", "status"),
    [("basic", *ASKED[0]), ("joblib", *ASKED[1]), ("joblib", *ASKED[2])],
)
def test_a_sweep_that_is_asked_to_end(
    shell: Shell, launcher: str, signum: signal.Signals, status: int
) -> None:
    """What trains is KILLED, at once and for all who tell; no other job begins."""
    process = _sweep(shell, launcher)
    assert _end(process, signum, f"{signum.name} to a sweep, {launcher}") == status
    shell.nothing_is_left(f"{signum.name}, {launcher}")
    assert _results(shell) == _in_mlflow(shell) == ["KILLED"] * (2 if launcher == "joblib" else 1)
    assert not [*shell.temporary.iterdir()]


def test_a_sweep_that_is_killed(shell: Shell) -> None:
    """Its one process is gone: told by the next command, which also removes its folder."""
    process = _sweep(shell, "basic")
    assert _end(process, signal.SIGKILL, "kill -9 of a sweep") == -signal.SIGKILL
    shell.nothing_is_left("kill -9 of a sweep")
    assert (len(shell.runs()), _results(shell)) == (1, [])
    assert len([*shell.temporary.iterdir()]) == 1
    shell.sync()
    assert _in_mlflow(shell) == ["KILLED"]
    shell.tidies()


def test_a_sweep_that_is_killed_with_jobs_in_processes(shell: Shell) -> None:
    """They end KILLED by themselves, at once, and none begins."""
    process = _sweep(shell, "joblib")
    assert _end(process, signal.SIGKILL, "kill -9 of a sweep, joblib") == -signal.SIGKILL
    shell.nothing_is_left("kill -9 of a sweep, joblib")
    assert _results(shell) == _in_mlflow(shell) == ["KILLED"] * 2


def test_a_process_of_joblib_that_is_killed(shell: Shell) -> None:
    """One sentence names what it has cut short; exit status 1; MLflow knows at once."""
    process = _sweep(shell, "joblib")
    (first, _) = (int(p.name) for p in shell.temporary.glob("fl-*/running/*"))
    os.kill(first, signal.SIGKILL)
    seconds = until(lambda: process.poll() is not None)
    print(f"kill -9 of joblib's process: exit status {process.returncode} after {seconds:.1f} s")
    assert process.returncode == 1
    shell.nothing_is_left("kill -9 of joblib's process")
    assert "job 0 (seed=0), job 1 (seed=1) cut short, none begins" in shell.said()
    assert "Traceback" not in shell.said()
    assert _in_mlflow(shell) == ["KILLED"] * 2


def _simulated(shell: Shell) -> subprocess.Popen[bytes]:
    """Start a simulation that trains; again where Ray gives a busy machine too little time."""
    for _ in range(3):
        process = shell.start(*SIMULATED)
        seconds = until(lambda p=process: shell.trains() or p.poll() is not None)  # type: ignore[misc]
        if process.poll() is None:
            print(f"the simulation trained after {seconds:.1f} s")
            return process
        assert "timed out during startup" in shell.said(), shell.said()
        shell.known |= {*shell.runs()}
    pytest.skip("this machine is too busy for Ray")


def test_a_launcher_that_is_asked_to_end(shell: Shell) -> None:
    """SIGTERM in the midst of Flower's simulation: all of it ends, and all tell the same."""
    process = _simulated(shell)
    assert _end(process, signal.SIGTERM, "SIGTERM to a launcher") == 143
    shell.nothing_is_left("SIGTERM to a launcher")
    assert shell.told() == KILLED
    assert not [*shell.temporary.iterdir()]


def test_a_launcher_that_is_asked_to_end_while_it_starts(shell: Shell) -> None:
    """SIGHUP before the run is known to anybody."""
    process = shell.start(*SIMULATED)
    until(lambda: any("superlink" in p for p in map(_words, shell.pids())))
    assert _end(process, signal.SIGHUP, "SIGHUP to a launcher that starts") == 129
    shell.nothing_is_left("SIGHUP to a launcher that starts")
    assert _results(shell) == ["KILLED"]
    assert not [*shell.temporary.iterdir()]


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_a_launcher_that_is_killed(shell: Shell) -> None:
    """Flower and Ray end with it; told by the next command, which removes its folders too."""
    process = _simulated(shell)
    assert _end(process, signal.SIGKILL, "kill -9 of a launcher") == -signal.SIGKILL
    shell.nothing_is_left("kill -9 of a launcher")
    assert shell.told() == NOT_YET
    shell.sync()
    assert shell.told() == NEXT
    shell.tidies()


def _stop(shell: Shell) -> None:
    """Stop the one run at its SuperLink by Flower's own command."""
    (home,) = shell.temporary.glob("fl-*/flwr")
    env = shell.env | {"FLWR_HOME": str(home)}
    listed = command("flwr", "ls", "fl-app", "--format", "json", cwd=home, **env)
    (run,) = json.loads(listed.stdout)["runs"]
    done = command("flwr", "stop", str(run["run-id"]), "fl-app", cwd=home, **env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("victim", "status", "says"),
    [
        ("flwr-simulation", "KILLED", "the run's process was ended by SIGKILL"),
        ("flower-superlink", "KILLED", "lost sight of run"),
        ("ray::ClientAppActor", "FAILED", "0 usable replies"),
        ("flwr stop", "KILLED", "stopped"),
    ],
)
def test_a_part_of_a_simulation_that_is_killed(
    shell: Shell, victim: str, status: str, says: str
) -> None:
    """The launcher tells at once what it knows, with exit status 1, and all tell the same."""
    process = _simulated(shell)
    if victim == "flwr stop":
        _stop(shell)
    else:
        os.kill(shell.pid(victim), signal.SIGKILL)
    seconds = until(lambda: process.poll() is not None)
    print(f"{victim}: exit status {process.returncode} after {seconds:.1f} s")
    assert process.returncode == 1
    shell.nothing_is_left(victim)
    assert shell.told() == dict.fromkeys(KILLED, status)
    assert says in shell.said().splitlines()[-1]
