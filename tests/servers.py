"""MLflow's own server, a proxy before it that is slow or fails, and PostgreSQL."""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import urlopen

from fl_app.tracking import replay
from fl_app.tracking.journal import Journal
from tests.end_to_end.support import free_port

Fault = str
"""Empty for none; ``drop`` the request, answer ``500``, or ``lose`` the server's answer."""


def until(true: Callable[[], object], seconds: float = 90) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert true()


def sent(home: Path) -> None:
    """Send what waits, as ``fl-kit sync`` does, also of a run whose own thread still sends."""
    until(lambda: replay(home) and not Journal.pending(home), 200)


@contextmanager
def mlflow_server(
    folder: Path, *words: str, store: str = "", port: int = 0, **env: str
) -> Iterator[int]:
    """Run MLflow's server on 127.0.0.1 until the block ends; yield its port when it answers.

    Parameters
    ----------
    folder : Path
        Where its artifacts, its log and, unless `store` says another, its database are.
    *words : str
        Further words of its command.
    store : str, optional
        URI of its database.
    port : int, optional
        By default a free one.
    **env : str
        Further variables of its environment.
    """
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "artifacts"), *words]
    # Not in its arguments, which every user of the machine can read.
    env |= {"MLFLOW_BACKEND_STORE_URI": store or f"sqlite:///{folder}/mlflow.db"}
    env |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **env}, cwd=folder, stdout=log, stderr=log
        )
    try:
        answers(port, server, folder / "log")
        yield port
    finally:
        server.terminate()
        server.wait()


def answers(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until MLflow's server answers, or fail with what it has said."""
    deadline = time.monotonic() + 300
    while True:
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            said = log.read_text()[-2000:]
            assert time.monotonic() < deadline, said
            assert server.poll() is None, said
            time.sleep(0.2)


class FaultyProxy:
    """What a test says to its proxy, and what went through it.

    Parameters
    ----------
    port : int
        The server's, on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.server_port, self.port = port, 0
        self.delay = 0.0
        self.fault: Callable[[str, str], Fault] = lambda method, path: ""
        self.passed: list[tuple[str, str]] = []
        """Method and path of each request that the server has answered."""

    @property
    def uri(self) -> str:
        """The tracking URI through the proxy."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def files(self) -> list[str]:
        """The artifacts that the server was sent, in order."""
        return [path for method, path in self.passed if method == "PUT"]


@contextmanager
def faulty_proxy(port: int) -> Iterator[FaultyProxy]:
    """Run a proxy before a server of this machine, on a port of its own."""
    proxy = FaultyProxy(port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            begin = time.monotonic()
            while time.monotonic() < begin + proxy.delay:  # until a test says less
                time.sleep(0.02)
            fault = proxy.fault(self.command, self.path)
            if fault == "drop":
                self.hang_up()
            elif fault == "500":
                self.answer(500, [], b"the proxy's own")
            else:
                status, headers, content = self.asked(body)
                proxy.passed.append((self.command, self.path))
                if fault == "lose":
                    self.hang_up()
                else:
                    self.answer(status, headers, content)

        def asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            server = http.client.HTTPConnection("127.0.0.1", proxy.server_port, timeout=60)
            with contextlib.closing(server):
                server.request(self.command, self.path, body, dict(self.headers))
                reply = server.getresponse()
                return reply.status, reply.getheaders(), reply.read()

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def hang_up(self) -> None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that was killed

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()


POSTGRES = max(
    Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda p: int(p.parts[-2])
)
"""Where Debian has PostgreSQL's programs; None where it is not installed."""


class PostgresServer:
    """PostgreSQL on 127.0.0.1, which does not run as root.

    Parameters
    ----------
    folder : Path
        Empty, and open to the user who it runs as.
    password : str
        Of its user ``me``.
    """

    def __init__(self, folder: Path, password: str) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"postgresql://me:{password}@127.0.0.1:{self.port}/postgres"
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = pwd.getpwnam("nobody")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self._user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        secret = folder / "secret"
        secret.write_text(unquote(password))
        secret.chmod(0o644)
        self._call("initdb", "-U", "me", "-A", "scram-sha-256", f"--pwfile={secret}", "-N")
        secret.unlink()
        self._process: subprocess.Popen[bytes] | None = None

    def _call(self, program: str, *words: str) -> None:
        command = [str(POSTGRES / program), "-D", str(self.folder / "data"), *words]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, **self._user)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["-c", f"port={self.port}", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        words += ["-c", f"unix_socket_directories={self.folder}"]
        self._process = subprocess.Popen(
            [str(POSTGRES / "postgres"), "-D", str(self.folder / "data"), *words],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._user,
        )
        deadline = time.monotonic() + 60
        asked = [str(POSTGRES / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(asked, check=False, capture_output=True).returncode:
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it, whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            self._process = None


@contextmanager
def postgres_server(password: str) -> Iterator[PostgresServer]:
    """Run PostgreSQL until the block ends."""
    # Not below a test's folder, which is its user's own.
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder), password)
        server.start()
        try:
            yield server
        finally:
            server.stop()
