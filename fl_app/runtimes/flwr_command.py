"""The stock ``flwr`` command, in processes that import what they need before anybody waits for it.

Each ``flwr`` command spends seconds on imports before it does anything. One is therefore started
before it is needed, and told its arguments when they are known.

References
----------
https://flower.ai/docs/framework/ref-api-cli.html
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fl_app.errors import RunError
from fl_app.runtimes.superlink import search_path

__all__ = ["Command", "Flwr"]

_JOIN_SECONDS = 5.0

# What the console script `flwr` does, with the arguments read after the imports, and without the
# shutdown of the interpreter, for which somebody would wait. The exit status means nothing anyway.
_FLWR = """
import json, os, sys
from importlib.metadata import distribution
from fl_app.parent import when_parent_is_gone

when_parent_is_gone(int(sys.argv[1]), lambda: os._exit(1))
(command,) = distribution("flwr").entry_points.select(name="flwr")
app = command.load()
arguments = sys.stdin.readline()
if arguments:
    sys.argv = ["flwr", *json.loads(arguments)]
    try:
        app()
    except SystemExit:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
"""


class Flwr:
    """The stock ``flwr`` command, each call in a process of its own."""

    def __init__(self, environment: Mapping[str, str], cwd: Path) -> None:
        ours = {
            "PATH": search_path(environment),
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",  # whatever the terminal takes: this is read
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            # Errors come in a box as wide as the terminal: one line of it shall hold any message.
            "COLUMNS": "4000",
        }
        self._environment = {**environment, **ours}
        self._cwd = cwd
        self._commands: list[Command] = []
        self._prepared: Command | None = None

    def __enter__(self) -> Flwr:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the processes that are still there."""
        for command in self._commands:
            command.kill()

    def prepare(self) -> None:
        """Let a process import what the next :meth:`ask` needs, where nobody waits for it."""
        self._prepared = self.new()

    def ask(self, arguments: Sequence[str], seconds: float) -> str:
        """Carry out a command that ends soon, and return what it printed."""
        command, self._prepared = self._prepared or self.new(), None
        command.tell(arguments)
        answer = "\n".join(command.lines(seconds))
        if not command.ended:
            command.kill()
            raise RunError(f"flwr {arguments[0]} did not answer within {seconds:g} s")
        return answer

    def new(self) -> Command:
        """Let a command begin with its imports; it waits for its arguments."""
        command = Command(_FLWR, self._environment, self._cwd)
        self._commands.append(command)
        return command


class Command:
    """A Python process that gets its arguments as JSON on standard input."""

    def __init__(self, code: str, environment: Mapping[str, str], cwd: Path) -> None:
        self.ended = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
            cwd=cwd,
            # Ctrl-C in a terminal goes to a whole process group; this one shall outlive it.
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def tell(self, arguments: Sequence[str]) -> None:
        """Hand over the arguments; the command starts as soon as its imports are done."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its output says why it ended
            self._process.stdin.write(json.dumps(list(arguments)) + "\n")
            self._process.stdin.close()

    def lines(self, silence: float) -> Iterator[str]:
        """Yield its output line by line, until it ends or is silent for so many seconds."""
        while not self.ended:
            try:
                line = self._lines.get(timeout=silence)
            except queue.Empty:
                return
            if line is None:
                self.ended = True
            else:
                yield line.rstrip("\n")

    def kill(self) -> None:
        """End it, if it has not ended by itself."""
        self._process.kill()
        self._process.wait()
        self._reader.join(_JOIN_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)
