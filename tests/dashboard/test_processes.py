"""Launches of the page: processes that outlive it, found and stopped from anywhere."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fl_app.dashboard import process_control, processes, uploads
from fl_app.dashboard.arguments import overrides
from fl_app.dashboard.choices import EXAMPLES, Choices, to_query
from fl_app.dashboard.process_control import start, stop
from fl_app.dashboard.processes import Launch, find, get, log_tail, tidy
from fl_app.errors import InputError
from fl_app.home import Process

# What stands for fl-app: the first override says what it does.
FAKE = """
import json, pathlib, signal, sys, time
def end(status, job=0):
    folder = pathlib.Path(str(job))
    folder.mkdir(exist_ok=True)
    error = "" if status == "FINISHED" else "no clients"
    (folder / "result.json").write_text(json.dumps({"status": status, "error": error}))
def interrupted(*_):
    end("KILLED")
    print("fl-app: interrupted")
    sys.exit(130)
act = next(word for word in sys.argv[1:] if word != "-m")
signal.signal(signal.SIGINT, signal.SIG_IGN if act in ("deaf", "stone") else interrupted)
if act == "stone":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("begun", flush=True)
if act in ("wait", "deaf", "stone"):
    time.sleep(60)
if act == "fail":
    end("FAILED")
    sys.exit("fl-app: no clients")
if act == "refuse":
    sys.exit("fl-app: seed=-1: expected an integer >= 0")
if act == "half":
    end("FINISHED")
    end("FAILED", 1)
    sys.exit(1)
if act == "crash":
    raise ZeroDivisionError
if act == "look":
    import os
    print(json.dumps([os.getcwd(), sys.argv[1:], dict(os.environ), os.getsid(0) == os.getpid()]))
end("FINISHED")
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Launch]]:
    """Return a function that starts the fake; what still runs in the end is killed."""
    monkeypatch.setattr(process_control, "_COMMAND", (sys.executable, "-c", FAKE))
    started: list[Launch] = []

    def launch(*words: str, sweep: bool = False) -> Launch:
        started.append(start(None, words, sweep))
        return started[-1]

    yield launch
    for one in started:
        if one.running:
            os.killpg(one.process.pid, signal.SIGKILL)
            until(lambda one=one: not one.running)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def begun(launch: Launch) -> Launch:
    until(lambda: log_tail(launch) == ["begun"])
    return launch


def later(launch: Launch) -> None:
    """Let the last signal be sent so long ago that patience is over."""
    file = launch.folder / "stop.json"
    times = [moment - launch.patience for moment in json.loads(file.read_text())["times"]]
    file.write_text(json.dumps({"times": times}))


# ---------------------------------------------------------------------------- start and end
@pytest.mark.parametrize(
    ("act", "state", "reason"),
    [
        ("finish", "finished", ""),
        ("fail", "failed", "no clients"),
        ("refuse", "failed", "seed=-1: expected an integer >= 0"),
        ("crash", "failed", "ZeroDivisionError"),
    ],
)
def test_how_a_launch_ends_is_told_by_its_result_its_log_and_its_status(fake, act, state, reason):
    launch = fake(act)
    assert launch.state in ("running", state)
    until(lambda: not launch.running)
    assert (launch.state, launch.reason) == (state, reason)
    exits = json.loads((launch.folder / "exit.json").read_text())
    assert (exits["code"] == 0) == (state == "finished")


def test_the_state_is_told_without_the_server_that_started_it(fake):
    """A later server has no exit status: result and log suffice, a crash alone is lost."""
    for act, state in (("finish", "finished"), ("refuse", "failed"), ("crash", "lost")):
        launch = fake(act)
        until(lambda launch=launch: not launch.running)
        (launch.folder / "exit.json").unlink()
        assert launch.state == state


def test_all_jobs_of_a_sweep_count(fake):
    words = ("half", "strategy=fedavg,fedstacking")
    launch = fake(*words, sweep=True)
    assert launch.jobs == (launch.folder / "0", launch.folder / "1")
    assert launch.argv == ("-m", *words, f"hydra.sweep.dir={launch.folder}")
    until(lambda: not launch.running)
    assert (launch.state, launch.reason) == ("failed", "no clients")


def test_the_process_has_a_session_and_a_folder_of_its_own_and_no_token(fake, monkeypatch):
    """Relative places of the environment mean the same in that folder."""
    monkeypatch.setenv(process_control.TOKEN, "secret")
    monkeypatch.setenv("FL_APP_HOME", "home")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    monkeypatch.setenv("PYTHONPATH", "lib")
    launch = fake("look", "a=b")
    until(lambda: not launch.running)
    where, argv, environment, leads = json.loads(log_tail_raw(launch).splitlines()[1])
    out = launch.folder / "0"
    assert where == str(launch.folder)
    assert argv == ["look", "a=b", f"output_dir={out}", f"hydra.run.dir={out}"]
    assert leads
    assert "secret" not in json.dumps(environment)
    assert environment["FL_APP_HOME"] == str(Path.cwd() / "home")
    assert environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{Path.cwd() / 'runs.db'}"
    assert environment["PYTHONPATH"] == str(Path.cwd() / "lib")


def log_tail_raw(launch: Launch) -> str:
    return (launch.folder / "log.txt").read_text()


def test_what_a_launch_writes_is_its_owners_alone(fake):
    launch = fake("finish")
    until(lambda: not launch.running)
    for name in ("launch.json", "log.txt", "exit.json"):
        assert stat.S_IMODE((launch.folder / name).stat().st_mode) == 0o600
    for folder in (launch.folder, launch.folder.parent, launch.folder.parents[1]):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_double_click_starts_once_and_four_run_at_a_time(fake):
    """From two threads too; another choice is another launch."""
    found: list[Launch] = []
    threads = [threading.Thread(target=lambda: found.append(fake("wait"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    for number in range(3):
        fake("wait", str(number))
    with pytest.raises(InputError, match="start=run 5: at most 4 runs at a time: wait for one"):
        fake("wait", "more")
    assert len(find()) == 4


def test_a_place_that_cannot_be_written_to_is_one_sentence(fake, monkeypatch, tmp_path):
    """Nothing is started, and no folder stays."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"FL_APP_HOME=.*: the run cannot be started: Not a dir"):
        start(tmp_path / "file", ["wait"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(process_control, "write_json", full)
    monkeypatch.setattr(process_control, "_popen", lambda *_: pytest.fail("started"))
    with pytest.raises(InputError, match="the run cannot be started: No space left on device"):
        fake("wait")
    assert [path.name for path in (tmp_path / "fl_app_home/dashboard/launches").iterdir()] == [
        ".lock"
    ]


def test_a_process_whose_record_cannot_be_kept_is_ended(fake, monkeypatch):
    """Or nobody would find it."""
    write, popen, children = process_control.write_json, process_control._popen, []

    def keep(*args):
        children.append(popen(*args))
        return children[-1]

    def fails(path, content):
        if path.name == "launch.json":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(process_control, "_popen", keep)
    monkeypatch.setattr(process_control, "write_json", fails)
    with pytest.raises(InputError, match="No space left on device"):
        fake("wait")
    assert children[0].returncode == -signal.SIGKILL
    assert find() == []


def test_an_argument_that_no_process_can_have_is_one_sentence(fake):
    for word in ("a\0b", "a" * 200_000):
        with pytest.raises(InputError, match="the run cannot be started"):
            fake(word)
    assert find() == []


# ---------------------------------------------------------------------------- stop
def test_the_first_stop_is_ctrl_c(fake):
    """Stopping until the process is gone; a second click changes nothing."""
    launch = begun(fake("wait", "runtime=simulation"))
    assert launch.patience == 60
    assert launch.state == "running"
    assert {stop(launch), stop(launch)} <= {"stopping", "stopped"}
    until(lambda: not launch.running)
    assert (launch.state, launch.reason) == ("stopped", "no clients")
    assert len(processes.stops_of(launch)) == 1
    assert stop(launch) == "stopped"


@pytest.mark.parametrize(("act", "signals"), [("deaf", 2), ("stone", 3)])
def test_a_launch_that_does_not_listen_is_told_in_a_harder_way(fake, act, signals):
    """SIGTERM 20 s after SIGINT, and SIGKILL 20 s after that; never earlier."""
    launch = begun(fake(act))
    for _ in range(signals - 1):
        assert stop(launch) == "stopping"
        time.sleep(0.1)
        assert stop(launch) == launch.state == "stopping"
        later(launch)
    stop(launch)
    until(lambda: not launch.running)
    assert launch.state == "stopped"
    last = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL][signals - 1]
    assert json.loads((launch.folder / "exit.json").read_text()) == {"code": -last}


def test_a_stop_is_heard_although_the_server_ignores_sigint(fake):
    """As one does that a script has started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        launch = begun(fake("wait"))
    finally:
        signal.signal(signal.SIGINT, before)
    stop(launch)
    until(lambda: not launch.running)
    assert launch.state == "stopped"


def test_another_process_with_the_number_is_never_told(fake):
    """A number is used again: the start tick tells."""
    launch = begun(fake("wait"))
    process = replace(launch.process, started=f"{launch.process.started}1")
    other = replace(launch, process=process, folder=launch.folder.with_name("other"))
    assert (stop(other), other.state) == ("lost", "lost")
    process_control._send(process, signal.SIGKILL)
    assert launch.state == "running"


def test_a_run_on_another_machine_is_stopped_there(fake):
    launch = begun(fake("wait"))
    away = replace(launch, process=replace(launch.process, host="elsewhere"))
    with pytest.raises(InputError, match="it runs on elsewhere: stop it there"):
        stop(away)


def test_one_that_is_killed_without_a_word_is_lost(fake):
    launch = begun(fake("wait"))
    os.kill(launch.process.pid, signal.SIGKILL)
    until(lambda: not launch.running)
    assert (launch.state, launch.reason) == ("lost", "begun")


# ---------------------------------------------------------------------------- find
def test_launches_are_found_newest_first_and_broken_ones_are_none(fake):
    first, second = fake("finish", "1"), fake("finish", "2")
    assert find() == [second, first]
    assert get(first.id) == first
    root = first.folder.parent
    for number, text in enumerate(["", "{", "[]", "{}", '{"process": 3}', "null"]):
        broken = root / f"20260101-000000-000-{number:08x}"
        broken.mkdir()
        (broken / "launch.json").write_text(text)
    (root / "20260101-000000-000-0000000a").mkdir()
    (root / "20260101-000000-000-0000000b").write_text("")
    (root / "other").mkdir()
    assert find() == [second, first]
    assert get("../../etc") is None
    assert get("20260101-000000-000-00000000") is None
    assert find(Path("/nowhere")) == []


def test_a_later_server_finds_the_launch_and_its_choices(fake):
    """Read anew from the disk by a process that knows nothing of it."""
    choices = Choices(rounds=3, both=True)
    launch = start(None, ["wait", "strategy=fedavg,fedstacking"], True, to_query(choices))
    code = (
        "from fl_app.dashboard.process_control import stop;"
        "from fl_app.dashboard.processes import find; launch, = find();"
        "print(launch.id, launch.state, dict(launch.choices), len(launch.jobs), stop(launch))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.startswith(f"{launch.id} running {to_query(choices)} 2 stop")
    until(lambda: not launch.running)
    assert launch.state == "stopped"


def test_old_launches_go_and_running_ones_stay(fake, monkeypatch):
    ended, runs = fake("finish"), begun(fake("wait"))
    until(lambda: not ended.running)
    assert tidy() == 0
    monkeypatch.setattr(processes, "_KEEP_DAYS", -1)
    assert tidy() == 1
    assert find() == [runs]
    assert get(ended.id) is None


def test_the_log_is_shown_as_it_can_be(fake):
    """No control characters, no passwords, the last lines only, whatever the size."""
    launch = fake("finish")
    until(lambda: not launch.running)
    lines = [f"line {i} {'x' * 100}" for i in range(5000)]
    (launch.folder / "log.txt").write_bytes(
        "\n".join(lines).encode() + b"\n\x1b[2Jhttp://u:secret@h \xff\r\n\n  \nlast"
    )
    assert log_tail(launch, 3) == [lines[-1], "?[2Jhttp://u:***@h �", "last"]
    (launch.folder / "log.txt").unlink()
    assert log_tail(launch) == []


def test_a_start_keeps_its_upload_from_being_tidied(fake):
    own = uploads.save(None, b"a,y\n1,0\n2,1\n", "own.csv")
    os.utime(own.path, (0, 0))
    fake("finish", *overrides(Choices(upload=own.id, clients=1)))
    assert uploads.tidy() == 0


def test_a_process_that_ended_before_it_was_looked_at_is_gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert process_control._process(child).is_gone()
    assert not Process.current().is_gone()


# ---------------------------------------------------------------------------- the real thing
def test_the_lesson_as_fl_app_runs_it():
    """Two rounds of the lesson, by the page's own choices."""
    lesson = replace(next(iter(EXAMPLES.values())), rounds=2)
    launch = start(None, [*overrides(lesson), "tracking=none"], choices=to_query(lesson))
    deadline = time.monotonic() + 60
    while launch.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (launch.state, launch.reason) == ("finished", ""), log_tail(launch)
    result = json.loads((launch.jobs[0] / "result.json").read_text())
    assert result["status"] == "FINISHED"


@pytest.mark.slow
def test_a_real_sweep_and_a_real_stop():
    """Both strategies end in one launch; a long run is stopped and tells it."""
    both = Choices(dataset="iris", clients=3, both=True, rounds=3)
    sweep = start(None, [*overrides(both), "tracking=none"], sweep=True)
    long = start(None, [*overrides(Choices(rounds=500)), "tracking=none"])
    until_slow(lambda: any("round" in line for line in log_tail(long)))
    stop(long)
    until_slow(lambda: not (sweep.running or long.running))
    assert (sweep.state, long.state) == ("finished", "stopped"), log_tail(sweep)
    assert [job.name for job in sweep.jobs if (job / "result.json").exists()] == ["0", "1"]


def until_slow(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)
