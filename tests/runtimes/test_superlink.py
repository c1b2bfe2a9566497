"""A private SuperLink comes up or says why not, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fl_app.errors import InputError, RunError
from fl_app.runtimes import superlink
from fl_app.runtimes.superlink import PrivateSuperLink
from tests.flower_apps import write_app, write_fake_superlink


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Tell whether a process lives; one that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a ``flower-superlink`` beside the interpreter that starts in a moment."""
    monkeypatch.setattr(sys, "executable", str(write_fake_superlink(tmp_path / "bin")))


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        yield somebody.getsockname()[1]


@pytest.mark.parametrize("name", ["", "two words", "a.b", 'a"b', "default"])
def test_a_name_that_config_toml_cannot_hold_is_refused(name: str) -> None:
    """The message names the field and what is allowed."""
    with pytest.raises(InputError, match=r"superlink=.*: letters, digits"):
        PrivateSuperLink(name=name)


@pytest.mark.usefixtures("fake")
def test_a_flwr_command_finds_it_while_it_runs() -> None:
    """Inside the block config.toml of its FLWR_HOME holds its address, and it answers there."""
    with PrivateSuperLink(name="mine") as link:
        config = tomllib.loads((link.flwr_home / "config.toml").read_text())
        assert config == {"superlink": {"mine": {"address": link.address, "insecure": True}}}
        assert link.client_env["FLWR_HOME"] == str(link.flwr_home)
        host, port = link.address.split(":")
        socket.create_connection((host, int(port)), timeout=5).close()


@pytest.mark.usefixtures("fake")
def test_nothing_is_left_of_it() -> None:
    """Stubborn members, orphans in another session and its files are gone after the block."""
    with PrivateSuperLink(grace=0.2) as link:
        said = {"helper stays", "orphan stays", "superexec goes"}
        wait_until(lambda: said <= set(link.log_tail().splitlines()))
        pids, files = link.pids(), link.flwr_home.parent
        assert len(pids) == 4
        assert all(map(is_alive, pids))
    assert not any(map(is_alive, pids))
    assert link.pids() == []
    assert not files.exists()


@pytest.mark.usefixtures("fake")
def test_an_exception_in_the_block_passes_through() -> None:
    """It ends the SuperLink as the block's regular end does, and is not replaced."""
    link = PrivateSuperLink(grace=0.2)
    pids: list[int] = []

    def fail() -> None:
        with link:
            pids.extend(link.pids())
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert pids
    assert not any(map(is_alive, pids))


@pytest.mark.usefixtures("fake")
def test_a_given_flwr_home_is_kept_as_it_was(tmp_path: Path) -> None:
    """The user's config.toml, comments included, is the same before and after."""
    before = '# my links\n[superlink]\ndefault = "far"\n\n[superlink.far]\naddress = "far:1"\n'
    config = tmp_path / "config.toml"
    config.write_text(before)
    with PrivateSuperLink(name="mine", flwr_home=tmp_path, grace=0.2) as link:
        assert set(tomllib.loads(config.read_text())["superlink"]) == {"default", "far", "mine"}
        assert link.flwr_home == tmp_path
    assert config.read_text() == before


@pytest.mark.usefixtures("fake")
def test_a_name_is_not_taken_from_somebody_else(tmp_path: Path) -> None:
    """A connection of that name in a given FLWR_HOME is an error, and stays untouched."""
    before = '[superlink.mine]\naddress = "far:1"\n'
    (tmp_path / "config.toml").write_text(before)
    link = PrivateSuperLink(name="mine", flwr_home=tmp_path, grace=0.2)
    with pytest.raises(InputError, match="superlink=mine"), link:
        pass
    assert (tmp_path / "config.toml").read_text() == before
    assert link.pids() == []


@pytest.mark.usefixtures("fake")
def test_a_port_that_somebody_takes_first_is_given_up(
    monkeypatch: pytest.MonkeyPatch, taken_port: int
) -> None:
    """It comes up on the next port, though somebody answers on the first one."""
    free_port = superlink.free_port
    ports = iter([taken_port])
    monkeypatch.setattr(superlink, "free_port", lambda: next(ports, None) or free_port())
    with PrivateSuperLink(grace=0.2) as link:
        assert link.address != f"127.0.0.1:{taken_port}"


@pytest.mark.usefixtures("fake")
def test_ports_are_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch, taken_port: int) -> None:
    """If every port is taken, that is an error."""
    monkeypatch.setattr(superlink, "free_port", lambda: taken_port)
    with pytest.raises(RunError, match="no free port"), PrivateSuperLink():
        pass


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("behaviour", "timeout", "message"),
    [
        ("dies", 20.0, "did not start: the database is broken"),
        ("sleeps", 0.3, "did not answer within 0.3 s: it printed nothing"),
    ],
)
def test_a_failed_start_says_why(behaviour: str, timeout: float, message: str) -> None:
    """The error ends with its last words, and a late one is ended."""
    env = {"FAKE_SUPERLINK": behaviour}
    link = PrivateSuperLink(env=env, startup_timeout=timeout)
    with pytest.raises(RunError, match=message), link:
        pass
    assert link.pids() == []


def test_a_missing_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is looked for beside the interpreter, whatever PATH says."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RunError, match="flower-superlink is not installed beside"):
        PrivateSuperLink().__enter__()


@pytest.mark.parametrize("length", [1, 30, 200])
def test_ray_fits_into_the_temporary_directory(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's socket paths stay below the kernel's limit, also where TMPDIR is long."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/" + "x" * length)
    directory = superlink._short_tmp() or tempfile.gettempdir()
    session = "session_2026-01-31_23-59-59_123456_4194304"  # 4194304: the largest pid of Linux
    assert len(f"{directory}/fl-12345678/ray/{session}/sockets/plasma_store") <= 107


_HOLDER = """
import sys
from fl_app.runtimes.superlink import PrivateSuperLink
from fl_app.runtimes.submit import submit

sys.executable = sys.argv[1]
with PrivateSuperLink(grace=0.5) as link:
    print(link.flwr_home.parent, flush=True)
    if len(sys.argv) == 2:
        print("up", *link.pids(), flush=True)
        sys.stdin.read()
    else:
        def look(line):
            if line.startswith("tiny | still"):
                print("up", *link.pids(), flush=True)
        submit(sys.argv[2], link.name, run_config={"mode": "endless"}, num_supernodes=2,
               client_num_cpus=1, env=link.client_env, flwr_home=link.flwr_home, on_line=look)
"""


def interrupt(signum: signal.Signals, *arguments: str) -> tuple[int, list[int], Path]:
    """Signal a process that holds a SuperLink; return its exit code, all pids, its directory."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        files = Path(holder.stdout.readline().strip())
        pids = [int(pid) for pid in holder.stdout.readline().split()[1:]]
        assert all(map(is_alive, pids))
        holder.send_signal(signum)
        # Read on: a holder that blocks on a full pipe would never end.
        holder.communicate(timeout=60)
    return holder.returncode, pids, files


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_leaves_nothing_behind(
    signum: signal.Signals, status: int, tmp_path: Path
) -> None:
    """Ctrl-C and SIGTERM to the owner end all processes and remove all files."""
    python = write_fake_superlink(tmp_path / "bin")
    returncode, pids, files = interrupt(signum, str(python))
    assert returncode == status
    assert not any(map(is_alive, pids))
    assert not files.exists()


@pytest.mark.parametrize("owner", [os.getpid(), 1], ids=["this", "another"])
def test_a_superexec_does_not_wait_for_the_dead(owner: int) -> None:
    """Where its owner is gone before it said go, it ends the SuperLink and itself."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as link:
        command = [sys.executable, "-c", superlink._SUPEREXEC, str(owner), str(link.pid)]
        done = subprocess.run(
            command, input=b"", capture_output=True, check=False, start_new_session=True
        )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert (done.returncode, link.returncode) == (128 + signal.SIGKILL, -signal.SIGKILL)


@pytest.mark.slow
def test_ctrl_c_ends_flower_and_ray(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a run leaves no process of Flower or Ray and no file."""
    app = write_app(tmp_path / "app")
    returncode, pids, files = interrupt(signal.SIGINT, sys.executable, str(app))
    assert returncode == -signal.SIGINT
    # SuperLink, SuperExec, flwr-simulation, Ray's gcs_server and raylet, at least one worker.
    assert len(pids) >= 6
    assert not any(map(is_alive, pids))
    assert not files.exists()


@pytest.mark.slow
def test_flower_says_that_a_port_is_taken(monkeypatch: pytest.MonkeyPatch, taken_port: int) -> None:
    """The real SuperLink comes up on the second port, and its SuperExec belongs to the family."""
    free_port = superlink.free_port
    ports = iter([taken_port])
    monkeypatch.setattr(superlink, "free_port", lambda: next(ports, None) or free_port())
    with PrivateSuperLink() as link:
        assert link.address != f"127.0.0.1:{taken_port}"
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in link.pids()]
        assert any(b"flower-superexec" in command for command in commands)
        assert os.path.samefile(f"/proc/{link.pids()[0]}/cwd", link.flwr_home)
