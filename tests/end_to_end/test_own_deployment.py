"""``runtime=deployment`` with a SuperLink and SuperNodes of the run's own: ``make deployment``."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.errors import RunError
from fl_app.runtimes import run, supernodes
from fl_app.runtimes.superlink import free_port
from fl_app.runtimes.supernodes import SuperNodes, dealt
from fl_app.tracking.journal_reader import JournalReader

from .support import BIN, ROOT, command, end_processes, processes_with, until

pytestmark = pytest.mark.slow

ENDLESS = ("runtime=deployment", "experiment=two_lines", "num_server_rounds=500")


@dataclass
class Shell:
    """A user's shell with an empty home, a folder for temporary files and no file of Flower's."""

    folder: Path

    @property
    def temporary(self) -> Path:
        return Path(f"/tmp/o{os.getpid()}")

    @property
    def env(self) -> dict[str, str]:
        own = {"HOME": str(self.folder), "FL_APP_HOME": str(self.folder / "fl_app")}
        return own | {"TMPDIR": str(self.temporary), "PYTHONUNBUFFERED": "1"}

    def fl_app(self, *words: str) -> subprocess.CompletedProcess[str]:
        out = f"output_dir={self.folder}/out"
        return command("fl-app", *words, out, cwd=self.folder, **self.env)

    def start(self) -> subprocess.Popen[bytes]:
        words = [str(BIN / "fl-app"), *ENDLESS, f"output_dir={self.folder}/out"]
        env = {k: v for k, v in os.environ.items() if k != "FLWR_HOME"} | self.env
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(words, cwd=self.folder, env=env, stdout=log, stderr=log)

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "out" / "result.json").read_text())
        return found

    def journal(self) -> JournalReader:
        (folder,) = (self.folder / "fl_app" / "runs").iterdir()
        return JournalReader(folder)

    def nothing_is_left(self, what: str, files: bool = False) -> None:
        """Wait until no process of this shell runs, say how long that took, and look around."""
        seconds = until(lambda: not processes_with("HOME", str(self.folder)), 60)
        print(f"{what}: the last process ended after {seconds:.1f} s")
        assert not (self.folder / ".flwr").exists()
        assert files or not [*self.temporary.iterdir()]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.delenv("FLWR_HOME", raising=False)
    shell = Shell(tmp_path)
    shell.temporary.mkdir()
    try:
        yield shell
    finally:
        end_processes("HOME", str(tmp_path))
        shutil.rmtree(shell.temporary)


def test_the_lesson_is_one_command(shell: Shell, tmp_path: Path) -> None:
    """What ``make deployment`` types learns the weights of one process, and leaves no process."""
    makefile = (ROOT / "Makefile").read_text()
    (line,) = re.findall(r"^deployment:.*\n\t\$\(BIN\)/fl-app (.*)", makefile, re.MULTILINE)
    done = shell.fl_app(*line.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "starting a SuperLink and 2 SuperNodes on this machine" in done.stdout
    shell.nothing_is_left("the lesson")
    words = ["experiment=two_lines", "tracking=none", f"output_dir={tmp_path}/here"]
    here = run(RunRequest(compose_config(words)))
    there = shell.result()
    assert (there["status"], there["weights_sha256"]) == ("FINISHED", here.weights_sha256)
    assert there["metrics"] == {k: v for k, v in here.metrics.items() if "server/" not in k}
    assert "round 5/5" in done.stdout
    assert shell.journal().end["status"] == "FINISHED"


def test_a_run_that_fails(shell: Shell) -> None:
    """Exit status 1 with the ServerApp's reason, and no process is left."""
    done = shell.fl_app("runtime=deployment", "dataset=diabetes", "model.learning_rate=100")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "training diverged; lower model.learning_rate (100)" in done.stderr
    shell.nothing_is_left("a run that failed")
    assert shell.result()["status"] == shell.journal().end["status"] == "FAILED"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_ended(shell: Shell, signum: signal.Signals, status: int) -> None:
    """All of its processes end with it, in the midst of the rounds; a next command tidies up."""
    process = shell.start()
    until(lambda: "round   1/500" in shell.said() or process.poll() is not None, 300)
    process.send_signal(signum)
    assert process.wait(120) == status, shell.said()
    killed = signum == signal.SIGKILL
    shell.nothing_is_left(signum.name, files=killed)
    if killed:
        assert shell.fl_app("dataset=nothing").returncode == 2
        assert not [*shell.temporary.iterdir()]
        assert command("fl-kit", "sync", cwd=shell.folder, **shell.env).returncode == 0
    else:
        assert shell.said().splitlines()[-1] == "fl-app: interrupted"
        assert shell.result()["status"] == "KILLED"
    assert shell.journal().end["status"] == "KILLED"


@pytest.mark.parametrize(
    ("victim", "says"),
    [
        ("flwr-serverapp", "the run's process was ended by SIGKILL"),
        ("flower-superlink", "lost sight of run"),
    ],
)
def test_a_part_that_is_killed(shell: Shell, victim: str, says: str) -> None:
    """The command says so with exit status 1, ends the rest, and all tell the same."""
    process = shell.start()
    until(lambda: "round   1/500" in shell.said() or process.poll() is not None, 300)
    words = f"/{victim}\0".encode()
    for pid in processes_with("HOME", str(shell.folder)):
        if words in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    assert process.wait(120) == 1, shell.said()
    assert says in shell.said().splitlines()[-1]
    shell.nothing_is_left(victim)
    assert shell.result()["status"] == shell.journal().end["status"] == "KILLED"


def test_a_run_that_is_ended_while_it_starts(shell: Shell) -> None:
    """SIGTERM before there is a run: the SuperLink, its helper, both SuperNodes and flwr end."""
    process = shell.start()
    until(lambda: len(processes_with("HOME", str(shell.folder))) > 5, 300)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143, shell.said()
    shell.nothing_is_left("SIGTERM")


# ---------------------------------------------------------------------------- SuperNodes alone
@pytest.fixture
def link(tmp_path: Path) -> Any:
    """Stand in for a SuperLink: before it looks for one, a SuperNode opens its own port."""
    env = os.environ | {"FLWR_HOME": str(tmp_path)}
    address = f"127.0.0.1:{free_port()}"
    return SimpleNamespace(
        address=address, folder=tmp_path, flwr_home=tmp_path, environment=lambda: env
    )


def test_a_port_that_somebody_took_first(link: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SuperNode starts again at another one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(supernodes, "free_port", lambda: next(ports, None) or free_port())
        with SuperNodes(link, dealt(1)) as nodes:
            (pid,) = nodes.pids
            assert processes_with("FLWR_HOME", str(link.folder)) == [pid]
            assert not [*ports]
    assert not processes_with("FLWR_HOME", str(link.folder))


def test_a_supernode_that_does_not_start(link: Any) -> None:
    """Its last words are the error, and the others end."""
    with (
        pytest.raises(RunError, match=r"(?s)^SuperNode 1 did not start: .*invalid format"),
        SuperNodes(link, ["partition-id=0", "partition-id=["]),
    ):
        pass
    assert not processes_with("FLWR_HOME", str(link.folder))
