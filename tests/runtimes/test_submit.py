"""A submitted run is followed to its true end, which Flower's own exit codes do not tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_app.errors import InputError, RunError
from fl_app.runtimes import submit as submit_module
from fl_app.runtimes.processes import process_table
from fl_app.runtimes.submit import Outcome, interpret, submit
from fl_app.runtimes.superlink import PrivateSuperLink
from fl_app.runtimes.supernodes import SuperNodes, dealt
from tests.flower_apps import FakeFlwr, write_app


def status(state: str, details: str = "N/A") -> dict[str, Any]:
    """Build what ``flwr ls --run-id 7 --format json`` prints."""
    run = {"run-id": "7", "status": state, "status-details": details, "elapsed": 1.0}
    return {"success": True, "runs": [run]}


def trouble(message: str) -> dict[str, Any]:
    """Build what it prints if it fails: its progress notes, a blank line, the message."""
    notes = "Using SuperLink: far (127.0.0.1:1)\n Displaying information for run ID 7...\n"
    return {"success": False, "error-message": f"{notes}\n{message}"}


NOTES = ["Using SuperLink: far (127.0.0.1:1)", "Successfully started run 7"]
DONE = [status("finished:completed")]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app")


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "_POLL_SECONDS", 0.0)


@pytest.mark.parametrize("end", ["completed", "failed", "stopped"])
def test_a_finished_run_has_an_outcome(end: str) -> None:
    """The sub-status is the outcome; "N/A" says that there are no details."""
    assert interpret(json.dumps(status(f"finished:{end}"))) == Outcome("7", end, "")  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["pending", "starting", "running"])
def test_an_unfinished_run_has_none(state: str) -> None:
    """A run that goes on is neither a success nor a failure."""
    assert interpret(json.dumps(status(state))) is None


@settings(deadline=None)
@given(st.text().filter(lambda text: text != "N/A"))
def test_details_arrive_as_they_are(details: str) -> None:
    """Whatever Flower says about the end is kept, pretty-printed JSON or not."""
    for indent in (None, 2):
        answer = json.dumps(status("finished:failed", details), indent=indent)
        assert interpret(f"a warning\n{answer}\n") == Outcome("7", "failed", details)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "flwr ls answered: nothing"),
        ("Traceback\n  boom", "flwr ls answered: Traceback boom"),
        ("{", "flwr ls answered: {"),
        ('{"success": true, "runs": []}', "flwr ls answered"),
        ('{"success": true, "runs": [{"run-id": "7"}]}', "flwr ls answered"),
        (json.dumps(trouble("[code: 16] Run ID\nnot found.")), "[code: 16] Run ID not found."),
        (json.dumps(status("finished:")), "run 7 has the unknown status 'finished:'"),
        (json.dumps(status("exploded")), "run 7 has the unknown status 'exploded'"),
    ],
)
def test_what_is_no_status_is_an_error(answer: str, message: str) -> None:
    """The message is Flower's own, on one line, without the command's progress notes."""
    with pytest.raises(RunError) as error:
        interpret(answer)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_the_log_arrives_line_by_line(app: Path, tmp_path: Path) -> None:
    """Lines of the run, and only those, are handed on in order, blank ones included."""
    log = ["\x1b[92mINFO \x1b[0m:      Starting", "fl_app | round 1", "", "  indented"]
    fake = FakeFlwr(tmp_path / "fake", [*NOTES, *log], DONE)
    lines: list[str] = []
    outcome = submit(app, "far", run_config={}, env=fake.env, on_line=lines.append)
    assert outcome == Outcome("7", "completed", "")
    assert lines == log


def test_a_line_arrives_while_the_run_goes_on(app: Path, tmp_path: Path) -> None:
    """The run waits for a file that is only written when its line has been seen."""
    fake = FakeFlwr(tmp_path / "fake", [*NOTES, "ready", {"wait": "seen"}, "over"], DONE)
    lines: list[str] = []

    def see(line: str) -> None:
        lines.append(line)
        (fake.directory / "seen").touch()

    submit(app, "far", run_config={}, env=fake.env, on_line=see)
    assert lines == ["ready", "over"]


def test_the_status_is_asked_once(app: Path, tmp_path: Path) -> None:
    """A run that has ended when its log has is asked about no more."""
    fake = FakeFlwr(tmp_path / "fake", NOTES, [status("finished:failed", "the server says no")])
    outcome = submit(app, "far", run_config={}, env=fake.env)
    assert outcome == Outcome("7", "failed", "the server says no")
    assert fake.calls("ls") == [["far", "--run-id", "7", "--format", "json"]]
    assert fake.calls("stop") == []


@pytest.mark.usefixtures("no_pause")
def test_a_log_that_ends_early_does_not_end_the_run(app: Path, tmp_path: Path) -> None:
    """The status is asked until the run has ended, through short trouble as well."""
    answers = [status("running"), trouble("unavailable"), status("running"), *DONE]
    fake = FakeFlwr(tmp_path / "fake", NOTES, answers)
    assert submit(app, "far", run_config={}, env=fake.env).status == "completed"
    assert len(fake.calls("ls")) == len(answers)


def test_a_log_that_hangs_does_not_hide_the_end(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was cut without a word ends in a question, not in a wait for ever."""
    monkeypatch.setattr(submit_module, "_SILENT_SECONDS", 0.1)
    fake = FakeFlwr(tmp_path / "fake", [*NOTES, "line", {"wait": "never"}], DONE)
    lines: list[str] = []
    outcome = submit(app, "far", run_config={}, env=fake.env, on_line=lines.append)
    assert (outcome.status, lines) == ("completed", ["line"])


@pytest.mark.usefixtures("no_pause")
def test_a_superlink_that_is_gone_is_an_error(app: Path, tmp_path: Path) -> None:
    """After the patience has run out, Flower's message is told; nothing is left to stop."""
    fake = FakeFlwr(tmp_path / "fake", NOTES, [trouble("Connection is unavailable.")])
    with pytest.raises(RunError, match=r"^lost sight of run 7: Connection is unavailable\.$"):
        submit(app, "far", run_config={}, env=fake.env, patience=0.0)
    assert fake.calls("stop") == []


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        (["╭─ Error ──╮", "│ Invalid Flower   │", "│ App. │", "╰──╯"], "Invalid Flower App."),
        (["╭─ \x1b[31mError\x1b[0m", "\x1b[31m│\x1b[0m no \x1b[31m│\x1b[0m"], "no"),
        (["Traceback", "ModuleNotFoundError: grpc", ""], "ModuleNotFoundError: grpc"),
        ([], "no reason given"),
    ],
)
def test_a_refusal_is_told_on_one_line(
    printed: list[str], message: str, app: Path, tmp_path: Path
) -> None:
    """The text in Flower's error box, wrapped or coloured, or else the last line."""
    fake = FakeFlwr(tmp_path / "fake", NOTES[:1] + printed if printed else [], DONE)
    with pytest.raises(RunError) as error:
        submit(app, "far", run_config={}, env=fake.env)
    assert str(error.value) == f"Flower refused the run: {message}"
    assert fake.calls("ls") == []


def test_overrides_arrive_as_they_are(app: Path, tmp_path: Path) -> None:
    """Text that no command line could carry, and the type of every value."""
    overrides: dict[str, Any] = {
        "mode": "dataset=tabular dataset.path='a b.csv' dataset.target=\"y\"",
        "text": 'line one\nline "two"\\\t\N{SNOWMAN} = \x00',
        "count": -3,
        "share": 1e-9,
        "flag": True,
    }
    fake = FakeFlwr(tmp_path / "fake", NOTES, DONE)
    submit(app, "far", run_config=overrides, env=fake.env)
    arrived = json.loads((fake.directory / "run-config.json").read_text())
    assert arrived == overrides
    assert [type(v) for v in arrived.values()] == [type(v) for v in overrides.values()]


@pytest.mark.parametrize(
    ("nodes", "cpus", "federation_config"),
    [
        (None, None, None),
        (3, None, "num-supernodes=3"),
        (3, 0.5, "num-supernodes=3 client-resources-num-cpus=0.5"),
    ],
)
def test_the_simulation_is_configured_only_if_there_is_one(
    nodes: int | None, cpus: float | None, federation_config: str | None, app: Path, tmp_path: Path
) -> None:
    """A SuperLink with real SuperNodes gets no federation config at all."""
    fake = FakeFlwr(tmp_path / "fake", NOTES, DONE)
    submit(app, "far", run_config={}, num_supernodes=nodes, client_num_cpus=cpus, env=fake.env)
    (arguments,) = fake.calls("run")
    assert arguments[:2] == [str(app), "far"]
    assert arguments[-1] == "--stream"
    assert dict(pairwise(arguments)).get("--federation-config") == federation_config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"app_dir": "nowhere"}, "app=.*nowhere: a directory whose pyproject.toml has"),
        ({"superlink": "fra"}, r"superlink=fra: a \[superlink.NAME\] of .*: far"),
        ({"run_config": {"modes": ""}}, "run-config=modes: one of mode, text, count, share, flag"),
        ({"run_config": {"mode": None}}, "mode=null: text, an integer, a number or true/false"),
        ({"num_supernodes": 0}, "num_supernodes=0: at least 1"),
        ({"client_num_cpus": 0.0}, "client_num_cpus=0.0: more than 0"),
        ({"client_num_cpus": float("nan")}, "client_num_cpus=nan: more than 0"),
    ],
)
def test_wrong_arguments_start_nothing(
    wrong: dict[str, Any], message: str, app: Path, tmp_path: Path
) -> None:
    """Each error names the field, the value and what is allowed, and no command is called."""
    fake = FakeFlwr(tmp_path / "fake", NOTES, DONE)
    right: dict[str, Any] = {"app_dir": app, "superlink": "far", "run_config": {}}
    with pytest.raises(InputError, match=message):
        submit(**{**right, **wrong}, env=fake.env)
    assert not (fake.directory / "calls.jsonl").exists()


def test_an_error_of_the_listener_stops_the_run(app: Path, tmp_path: Path) -> None:
    """Nobody would follow the run any more."""
    fake = FakeFlwr(tmp_path / "fake", [*NOTES, "line", {"wait": "never"}], DONE)

    def fail(line: str) -> None:
        raise ZeroDivisionError(line)

    with pytest.raises(ZeroDivisionError, match="line"):
        submit(app, "far", run_config={}, env=fake.env, on_line=fail)
    assert fake.calls("stop") == [["7", "far"]]


_SUBMITTER = """
import json, sys
from fl_app.runtimes.submit import submit

app, env = sys.argv[1], json.loads(sys.argv[2])
submit(app, "far", run_config={}, env=env, on_line=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("accepted", [True, False], ids=["running", "not accepted yet"])
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_stops_the_run(
    signum: signal.Signals, code: int, accepted: bool, app: Path, tmp_path: Path
) -> None:
    """Also a run whose id arrives only after the signal; the process ends as interrupted."""
    script: list[str | dict[str, str]] = [*NOTES, "line", {"wait": "never"}]
    if not accepted:
        script.insert(0, {"wait": "signalled"})
    fake = FakeFlwr(tmp_path / "fake", script, DONE)
    with subprocess.Popen(
        [sys.executable, "-c", _SUBMITTER, str(app), json.dumps(fake.env)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as submitter:
        assert submitter.stdout is not None
        deadline = time.monotonic() + 30
        if accepted:
            assert submitter.stdout.readline() == "line\n"
        while not fake.calls("run"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        submitter.send_signal(signum)
        (fake.directory / "signalled").touch()
        assert submitter.wait(timeout=30) == code
    assert fake.calls("stop") == [["7", "far"]]


@pytest.fixture(scope="module")
def link() -> Iterator[PrivateSuperLink]:
    with PrivateSuperLink() as link:
        yield link


def run_really(link: PrivateSuperLink, app: Path, **run_config: Any) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    outcome = submit(
        app,
        link.name,
        run_config=run_config,
        num_supernodes=2,
        client_num_cpus=1,
        env=link.client_env,
        flwr_home=link.flwr_home,
        on_line=lines.append,
        patience=0.0,
    )
    return outcome, lines


def said(lines: list[str], what: str) -> list[Any]:
    """Pick what the tiny app's ServerApp said."""
    start = f"tiny | {what} "
    return [json.loads(line.removeprefix(start)) for line in lines if line.startswith(start)]


@pytest.mark.slow
def test_a_real_run_completes(link: PrivateSuperLink, app: Path) -> None:
    """Both SuperNodes answer in both rounds, and the overrides arrive intact."""
    overrides = {
        "mode": "a=b c='d' \"e\"",
        "text": 'one\ntwo = "three"\t\N{SNOWMAN}',
        "count": 7,
        "share": 0.25,
        "flag": True,
    }
    outcome, lines = run_really(link, app, **overrides)
    assert (outcome.status, outcome.details) == ("completed", "")
    assert said(lines, "config") == [overrides]
    assert said(lines, "round") == [[1, [0, 1]], [2, [0, 1]]]


@pytest.mark.slow
def test_a_real_serverapp_that_raises_fails(link: PrivateSuperLink, app: Path) -> None:
    """The outcome says so, with the exception's message, where ``flwr run`` exits with 0."""
    outcome, _ = run_really(link, app, mode="server-raises")
    assert outcome.status == "failed"
    assert "the server says no" in outcome.details


@pytest.mark.slow
def test_real_clients_that_all_raise_do_not_fail_the_run(link: PrivateSuperLink, app: Path) -> None:
    """Flower calls that completed: a ServerApp that wants it otherwise has to raise."""
    outcome, lines = run_really(link, app, mode="clients-raise")
    assert outcome.status == "completed"
    assert said(lines, "round") == [[1, []], [2, []]]


@pytest.mark.slow
def test_a_real_refusal_is_told(link: PrivateSuperLink, app: Path) -> None:
    """Flower's own message about an app that it cannot load arrives on one line."""
    project = app / "pyproject.toml"
    project.write_text(project.read_text().replace("tiny.server:app", "tiny.nowhere:app"))
    with pytest.raises(RunError, match=r"Flower refused the run: .*tiny\.nowhere") as error:
        run_really(link, app)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_real_deployment_completes(app: Path) -> None:
    """A SuperLink with SuperNodes of its own needs nothing but its name."""
    lines: list[str] = []
    with PrivateSuperLink(name="lab", simulation=False) as link, SuperNodes(link, dealt(2)):
        outcome = submit(
            app, "lab", run_config={}, env={"FLWR_HOME": str(link.flwr_home)}, on_line=lines.append
        )
    assert outcome.status == "completed"
    assert said(lines, "round") == [[1, [0, 1]], [2, [0, 1]]]


@pytest.mark.slow
def test_a_real_superlink_that_dies_is_told(app: Path) -> None:
    """The run is given up with Flower's message instead of waiting for ever."""
    with PrivateSuperLink() as link:

        def kill(line: str) -> None:
            if line.startswith("tiny | config"):
                link._family.end(0.0)  # type: ignore[union-attr]

        with pytest.raises(RunError, match=r"lost sight of run \d+: .*unavailable"):
            submit(
                app,
                link.name,
                run_config={},
                num_supernodes=2,
                env=link.client_env,
                flwr_home=link.flwr_home,
                on_line=kill,
                patience=0.0,
            )


_OWNER = """
import os, sys, time
from pathlib import Path
from fl_app.runtimes.flwr_command import Flwr

flwr = Flwr(os.environ, Path(sys.argv[1]))
flwr.prepare()
flwr.new().tell(["run"])
time.sleep(600)
"""


def test_a_killed_owner_leaves_no_command(tmp_path: Path) -> None:
    """One that waits for its arguments ends with it, and so does one in the midst of a run."""
    fake = FakeFlwr(tmp_path / "fake", [*NOTES, {"wait": "never"}], DONE)
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)], env=os.environ | fake.env
    ) as owner:
        deadline = time.monotonic() + 60
        while not fake.calls("run"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        commands = {process for process in process_table() if process.parent == owner.pid}
        assert len(commands) == 2
        owner.kill()
    left = {process.pid for process in commands}
    while left & {process.pid for process in process_table() if not process.zombie}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
