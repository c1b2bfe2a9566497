"""Stand-ins for Flower's two sides: a tiny app for the real thing, and fakes of its commands.

The fakes are programs, not mocks: the code under test starts, reads and ends processes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PROJECT = """
[project]
name = "tiny"
version = "0.1.0"
description = "Asks its clients for their partition."
license = "Apache-2.0"
dependencies = ["flwr[simulation]>=1.41"]

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "tiny.server:app"
clientapp = "tiny.client:app"

[tool.flwr.app.config]
mode = ""
text = ""
count = 0
share = 0.0
flag = false
"""

_SERVER = """
import json, sys, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


def say(what, value):
    sys.stdout.write(f"tiny | {what} {json.dumps(value)}\\n")


def ask(grid, mode):
    partitions = None
    while partitions is None or len(list(grid.get_node_ids())) < partitions:
        nodes = list(grid.get_node_ids())
        content = RecordDict({"config": ConfigRecord({"mode": mode})})
        replies = grid.send_and_receive([Message(content, n, "train") for n in nodes[:1]])
        for reply in replies:
            if reply.has_error():
                return [reply]
            partitions = reply.content["answer"]["num-partitions"]
        time.sleep(0.1)
    content = RecordDict({"config": ConfigRecord({"mode": mode})})
    nodes = list(grid.get_node_ids())
    return list(grid.send_and_receive([Message(content, n, "train") for n in nodes]))


@app.main()
def main(grid, context):
    say("config", dict(context.run_config))
    mode = context.run_config["mode"]
    if mode == "server-raises":
        raise ValueError("the server says no")
    for server_round in (1, 2):
        replies = ask(grid, mode)
        good = [r.content["answer"]["partition-id"] for r in replies if r.has_content()]
        say("round", [server_round, sorted(good)])
    while mode == "endless":
        say("still", "here")
        time.sleep(0.2)
"""

_CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    if message.content["config"]["mode"] == "clients-raise":
        raise RuntimeError("the client says no")
    answer = ConfigRecord(dict(context.node_config))
    return Message(RecordDict({"answer": answer}), reply_to=message)
"""


def write_app(directory: Path) -> Path:
    """Write the tiny Flower app and return its directory."""
    package = directory / "tiny"
    package.mkdir(parents=True)
    (directory / "pyproject.toml").write_text(_PROJECT)
    (package / "__init__.py").touch()
    (package / "server.py").write_text(_SERVER)
    (package / "client.py").write_text(_CLIENT)
    return directory


_FLWR = """
import json, sys, time, tomllib
from pathlib import Path

HERE = Path(__file__).parents[2]


def app():
    verb, *arguments = sys.argv[1:]
    with (HERE / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps([verb, *arguments]) + "\\n")
    if verb == "run":
        if "--run-config" in arguments:
            overrides = Path(arguments[arguments.index("--run-config") + 1])
            (HERE / "run-config.json").write_text(json.dumps(tomllib.loads(overrides.read_text())))
        for line in json.loads((HERE / "run.json").read_text()):
            if isinstance(line, str):
                print(line)
            else:  # {"wait": NAME}: until a file of that name is there
                deadline = time.monotonic() + 60
                while not (HERE / line["wait"]).exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
    elif verb == "ls":
        answers = json.loads((HERE / "ls.json").read_text())
        (HERE / "ls.json").write_text(json.dumps(answers[1:] or answers))
        print(json.dumps(answers[0], indent=2))
    sys.exit(0)
"""


class FakeFlwr:
    """A scripted ``flwr`` command.

    Parameters
    ----------
    directory : Path
        Where it keeps its script and its diary; also the ``FLWR_HOME`` to use with it.
    run : sequence
        Lines that ``flwr run`` prints; ``{"wait": NAME}`` waits for a file in `directory`.
    ls : sequence of dict
        Answers of successive calls of ``flwr ls``; the last one is repeated.
    """

    def __init__(
        self, directory: Path, run: Sequence[str | dict[str, str]], ls: Sequence[dict[str, Any]]
    ) -> None:
        self.directory = directory
        package = directory / "flwr" / "cli"
        package.mkdir(parents=True)
        (directory / "flwr" / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "app.py").write_text(_FLWR)
        (directory / "run.json").write_text(json.dumps(list(run)))
        (directory / "ls.json").write_text(json.dumps(list(ls)))
        (directory / "config.toml").write_text(
            '[superlink]\ndefault = "far"\n\n[superlink.far]\naddress = "127.0.0.1:1"\n'
        )

    @property
    def env(self) -> dict[str, str]:
        """Return the variables that put this command in the place of Flower's."""
        path = os.pathsep.join([str(self.directory), str(Path(__file__).parents[1])])
        return {"PYTHONPATH": path, "FLWR_HOME": str(self.directory)}

    def calls(self, verb: str) -> list[list[str]]:
        """Return the arguments of every call of a verb so far."""
        diary = self.directory / "calls.jsonl"
        lines = diary.read_text().splitlines() if diary.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == verb]


_SUPERLINK = """#!{python} -SE
import http.server, os, signal, subprocess, sys, time


def start(role, **how):
    return subprocess.Popen([sys.executable, "-SE", __file__, role], **how)


def stay(role):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(f"{{role}} stays", flush=True)
    time.sleep(60)


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args):
        pass


def superlink():
    behaviour = os.environ.get("FAKE_SUPERLINK", "")
    if behaviour == "dies":
        sys.exit("the database is broken")
    if behaviour == "sleeps":
        time.sleep(60)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    try:
        server = http.server.HTTPServer(("127.0.0.1", port), Health)
    except OSError as error:
        sys.exit(f"[Errno {{error.errno}}] address already in use")
    start("helper", start_new_session=True)
    print(f"Uvicorn running on http://127.0.0.1:{{port}} (Press CTRL+C to quit)", flush=True)
    server.serve_forever()


# What Flower's and Ray's processes look like from outside: a helper in a session of its own that
# does not end on SIGTERM, and a grandchild whose parent has ended.
if sys.argv[1] == "helper":
    start("parent").wait()
    stay("helper")
elif sys.argv[1] == "parent":
    start("orphan")
elif sys.argv[1] == "orphan":
    stay("orphan")
else:
    superlink()
"""


# An interpreter that is asked for a SuperExec: it waits for a line, and then for its end.
_PYTHON = """#!{python} -SE
import sys, time
if sys.stdin.readline():
    print("superexec goes", flush=True)
    time.sleep(60)
"""


def write_fake_superlink(directory: Path) -> Path:
    """Write a ``flower-superlink`` that starts at once; return the interpreter's path beside it."""
    directory.mkdir(parents=True)
    for name, text in (("flower-superlink", _SUPERLINK), ("python", _PYTHON)):
        (directory / name).write_text(text.format(python=sys.executable))
        (directory / name).chmod(0o755)
    return directory / "python"
