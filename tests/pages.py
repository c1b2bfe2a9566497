"""The blocks of README.md and docs/*.md, and a user with an empty home who types them in order.

What runs is what stands on the page, but for what a reader has to fill in (an id of a sweep), for
port numbers, which become free ones, and for :data:`ADDED`, which is typed at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fl_app.tracking.journal_reader import JOURNAL, JournalReader
from tests.end_to_end.support import BIN, ROOT, end_processes, free_port

__all__ = ["ADDED", "ELSEWHERE", "PAGES", "User", "beginnings", "blocks", "commands", "reader"]

PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))

ELSEWHERE: Mapping[str, str] = {
    "make run": "installs from the network; .ci/run types it in a fresh clone",
    "python3 -m venv .venv": "as make run, by hand",
    ".venv/bin/": "what the line before would have made",
    "pip install": "installs from the network; `make test-slow` does",
    "make keel": "installs from the network",
    "fl-kit run path/to/app": "tests/runtimes/test_folders.py runs app folders of all kinds so",
    "fl-app -m experiment=stacking_vs_averaging dataset=tabular": "what make keel would have made",
    "fl-kit report --sweep … --baseline strategy=fedavg,model=mlp,num": "as the line before",
}
"""Beginnings of commands ($: its end) that no test types, and why."""

_ONE = "num_server_rounds=3 seed=0 tracking.figures=false"
ADDED: Mapping[str, str] = {
    # One seed, few rounds, one rate: jobs that are then the same are run once.
    "fl-app -m strategy=fedavg,fedadam,fedmedian": _ONE,
    "fl-app -m hydra/launcher=joblib hydra.launcher.n_jobs=4 strategy": "num_server_rounds=3",
    "fl-app -m method=": f"{_ONE} model.learning_rate=.64",
    "fl-app -m sweep=learning_rate": "num_server_rounds=3 hydra.sweeper.n_trials=2",
    "fl-app experiment=stacking_vs_averaging": f"{_ONE} num_clients=5 model.learning_rate=.64",
    "fl-app -m experiment=stacking_vs_averaging num": (
        f"{_ONE} num_clients=5 model.learning_rate=.64"
    ),
    "fl-app -m experiment=stacking_vs_averaging dataset=d": f"{_ONE} model.learning_rate=.01",
    "fl-app -m dataset=digits strategy=fedstacking": f"{_ONE} num_clients=4",
    "fl-app -m dataset=heart_disease": f"{_ONE} model.local_steps=5",
    "fl-app -m dataset=digits,wine": f"{_ONE} dataset=iris model.learning_rate=.64",
    "fl-app -m dataset=wine strategy=pooled": "seed=0",
    "fl-app -m dataset=wine method=": f"{_ONE} model.learning_rate=.16,.64",
    "fl-app -m dataset=iris": _ONE,
    # Runs that are this short hold nothing.
    "fl-kit report --sweep 2026-01-31-10-15-00-123456 --expect": "|| test $? = 1",
    "fl-kit report --sweep 2026-01-31-10-15-00-123456 --baseline": "|| test $? = 1",
    "fl-app strategy=fedxgbbagging": "num_server_rounds=3",
    "fl-app runtime=deployment$": "num_server_rounds=1",
    "fl-app -m hydra/launcher=joblib hydra.launcher.n_jobs=2": "num_server_rounds=2",
    "fl-kit dashboard$": "--port 8501 --no-browser",
    "ray start": "--node-ip-address=127.0.0.1 --num-cpus=2 --include-dashboard=false"
    " --disable-usage-stats --ray-client-server-port=10001 --dashboard-agent-listen-port=52365"
    f" --temp-dir=/tmp/ray-pages-{os.getpid()}",
}
"""Beginnings of commands, and what is typed after them to make them short."""

_SERVERS = ("flower-superlink", "flower-supernode", "fl-kit dashboard")
"""Commands that go on until they are ended, and listen at a port."""
_PORTS = re.compile(r"\b(5000|6379|8501|8600|970\d|10001|52365)\b")
_SECONDS = 1800  # of a command that hangs


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def commands(text: str) -> list[str]:
    """Return the commands of a block, each in one line but for texts that it is given (<<)."""
    found, lines = [], iter(re.sub(r"\s*\\\n\s*", " ", text).splitlines())
    for line in lines:
        command = re.sub(r"(^|\s+)#.*", "", line)
        if given := re.search(r"<<'?(\w+)'?$", command):
            while not command.endswith(f"\n{given[1]}"):
                command += f"\n{next(lines)}"
        if command:
            found.append(command)
    return found


def beginnings(command: str, known: Iterable[str]) -> list[str]:
    """Return those of these that a command begins with."""
    return [start for start in known if f"{command}$".startswith(start)]


class User:
    """Somebody who has cloned the project and activated its environment.

    Parameters
    ----------
    home : path
        An empty folder; ``~``.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cwd = home / "clone"
        for name in ("fl_app", "conf", "docs"):
            junk = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, self.cwd / name, ignore=junk)
        for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
            shutil.copy(ROOT / name, self.cwd)
        self.env = {
            **{k: v for k, v in os.environ.items() if k not in ("FL_APP_HOME", "FLWR_HOME")},
            "HOME": str(home),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
            # Flower would install from the network for each run of stock `flwr run`.
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            # An idle process looks for work five times a second, not once in three.
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        }
        self._ports: dict[str, str] = {}
        self._sweep = ""
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def read(self, page: str) -> str:
        """Type all blocks of a page and return what was printed.

        A block without a language is what was printed before it, without blanks at ends of lines.
        """
        texts = "chest pain" in (ROOT / page).read_text()
        (self.cwd / "patients.csv").write_text(_patients(texts))
        said = ""
        for language, text in blocks(page):
            if language:
                said += self.type_block(language, text)
            assert language or text in re.sub(" +$", "", said, flags=re.M)
        return said

    def type_block(self, language: str, text: str) -> str:
        """Type a block of commands, or run one of Python."""
        if language == "python":
            (self.cwd / "block.py").write_text(text)
            return self.type("python block.py")
        return "".join(map(self.type, commands(text)))

    def type(self, command: str) -> str:
        """Type a command and return what it printed; of a server, when it is there.

        Raises
        ------
        AssertionError
            If its exit status is not 0.
        """
        if beginnings(command, ELSEWHERE):
            return ""
        words = " ".join([command, *(ADDED[start] for start in beginnings(command, ADDED))])
        words = _PORTS.sub(lambda match: self._port(match[0]), words)
        words = re.sub(r"(?<=--sweep )\S+", self._sweep, words)
        if beginnings(command, _SERVERS):
            return self._serve(words)
        place, began = self.home / ".cwd", time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{words}\npwd >{place}"],
            cwd=self.cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}"
        print(f"{time.monotonic() - began:5.1f} s  {words}", flush=True)
        self.cwd = Path(place.read_text().strip())
        if found := re.findall(r"sweep\.id`? = '?([\w-]+)", done.stdout):
            self._sweep = found[-1]
        return done.stdout

    def statuses(self) -> set[str]:
        """Return the ends of the runs so far, whether MLflow has them yet or not."""
        folders = self.home.glob(".fl_app/runs/*")
        ends = [JournalReader(folder).end for folder in folders if (folder / JOURNAL).exists()]
        return {end["status"] for end in ends if end}

    def is_over(self, port: str) -> bool:
        """Say whether the last server at a printed port has ended by itself."""
        return self._servers[self._port(port)].poll() is not None

    def end(self) -> None:
        """End all that still runs."""
        end_processes("HOME", str(self.home))
        for server in self._servers.values():
            server.wait(_SECONDS)

    def _port(self, printed: str) -> str:
        while printed not in self._ports:
            if (port := str(free_port())) not in self._ports.values():
                self._ports[printed] = port
        return self._ports[printed]

    def _serve(self, words: str) -> str:
        """Start a server in the place of one at the same port, and wait until it listens."""
        port = re.findall(r"--port (\d+)", words)[0]
        self._end(port)
        log = self.home / f"{port}.log"
        with log.open("w") as out:
            server = self._servers[port] = subprocess.Popen(
                ["bash", "-c", f"exec {words}"],
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + _SECONDS
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", int(port))):
                assert server.poll() is None, f"{words}\n{log.read_text()}"
                assert time.monotonic() < deadline, f"{words}\n{log.read_text()}"
                time.sleep(0.1)
        return log.read_text()

    def _end(self, port: str) -> None:
        """Press Ctrl-C in a server's terminal."""
        if (server := self._servers.pop(port, None)) is not None:
            server.send_signal(signal.SIGINT)
            server.wait(_SECONDS)


def _patients(texts: bool) -> str:
    """Return a table as the pages speak of it: numbers, texts if asked, some cells empty."""
    rows = ["age,pressure,outcome" + ",chest pain" * texts]
    for k in range(120):
        pain = ",mild" if k % 3 else ",strong"
        rows.append(f"{40 + k % 41},{'' if k % 17 == 0 else 100 + k},{k % 41 // 21}" + pain * texts)
    return "\n".join(rows)


@contextmanager
def reader(home: Path) -> Iterator[User]:
    """Lend a user with this home, and end what it started."""
    user = User(home)
    try:
        yield user
    finally:
        user.end()
