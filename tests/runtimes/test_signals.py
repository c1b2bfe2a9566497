"""A signal unwinds what is running, or waits until it is cleaned up."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fl_app.cli.run import main
from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.errors import InputError, SignalInterrupt
from fl_app.runtimes import run, signals
from fl_app.runtimes.signals import (
    raise_if_interrupted,
    signals_deferred,
    signals_interrupt,
    signals_unwind,
)
from fl_app.tracking import replay
from fl_app.tracking.journal_reader import UNREADABLE, JournalReader

ENDLESS = ["num_server_rounds=100000", "num_clients=4", "dataset=wine", "fraction_evaluate=0"]


def until(true: Callable[[], object], seconds: float = 240) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert true()


def _rounds(home: Path) -> int:
    """Return how many rounds runs under a home have recorded."""
    try:
        found = (home / "runs").glob("*/journal.db")
        return sum(1 for path in found for _ in JournalReader(path.parent).rounds())
    except UNREADABLE:
        return 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds(signum: signal.Signals) -> None:
    """It becomes SystemExit with the shell's status, and its default action comes back."""
    with pytest.raises(SystemExit) as exit_info, signals_unwind():
        signal.raise_signal(signum)
    assert exit_info.value.code == 128 + signum
    assert signal.getsignal(signum) is signal.SIG_DFL


def test_a_handler_of_somebody_else_stays() -> None:
    """A signal that is handled or ignored already is left alone."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with signals_unwind():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_other_threads_are_left_alone() -> None:
    """Outside the main thread Python cannot handle signals: the block runs as it is."""
    ran: list[bool] = []

    def work() -> None:
        with signals_unwind():
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]


def test_a_signal_during_the_clean_up_waits_for_its_end() -> None:
    """A second Ctrl-C does not leave half of the processes running."""
    done: list[str] = []

    def clean_up() -> None:
        with signals_deferred():
            signal.raise_signal(signal.SIGINT)
            done.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        clean_up()
    assert done == ["cleaned up"]


def _is_in_mlflow(home: Path) -> bool:
    (path,) = (home / "runs").glob("*/journal.db")
    return "run_id" in JournalReader(path.parent).sent


ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("signum", ENDS)
def test_an_interrupt_says_who_asked(signum: signal.Signals) -> None:
    """Whoever knows Ctrl-C knows it; the status is the shell's; the handlers come back."""
    before = [signal.getsignal(s) for s in ENDS]
    with pytest.raises(KeyboardInterrupt) as info, signals_interrupt():
        signal.raise_signal(signum)
    assert isinstance(info.value, SignalInterrupt)
    assert info.value.exit_status == 128 + signum
    assert "interrupted" in str(info.value)
    assert (signum.name in str(info.value)) == (signum != signal.SIGINT)
    assert [signal.getsignal(s) for s in ENDS] == before


@pytest.mark.parametrize("signum", ENDS)
def test_an_ignored_signal_stays_ignored(signum: signal.Signals) -> None:
    """As for what ``nohup`` or a ``&`` in a script has started."""
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with signals_interrupt():
            signal.raise_signal(signum)
            assert signal.getsignal(signum) is signal.SIG_IGN
    finally:
        signal.signal(signum, before)


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one in the same breath: ``timeout`` signals a process and its group."""
    ends: list[tuple[object, ...]] = []
    monkeypatch.setattr(signals, "_after", lambda *given: ends.append(given))
    with signals_interrupt():
        with pytest.raises(SignalInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert ends == []
        monkeypatch.setattr(signals, "_TWICE_SECONDS", 0.0)
        with pytest.raises(SignalInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert ends == [(signals._AT_ONCE_SECONDS, os._exit, 130)]


def test_an_interrupt_that_python_forgets_comes_again() -> None:
    """What is raised in a callback of the collector is printed and lost."""

    def interrupted(phase: str, _info: dict[str, int]) -> None:
        gc.callbacks.remove(interrupted)
        signal.raise_signal(signal.SIGTERM)

    def collect() -> None:
        gc.collect()
        time.sleep(5)

    gc.callbacks.append(interrupted)
    with pytest.raises(SignalInterrupt), signals_interrupt():
        collect()


def test_a_swallowed_interrupt_is_found() -> None:
    """By whoever asks: a sweep before its next job and at its end."""
    with signals_interrupt():
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SignalInterrupt, match="SIGTERM"):
            raise_if_interrupted()
    raise_if_interrupted()


@pytest.mark.parametrize(
    ("signum", "tracking", "workers"),
    [
        (signal.SIGTERM, "none", 1),
        (signal.SIGHUP, "none", 2),
        (signal.SIGTERM, "mlflow", 1),
        (signal.SIGINT, "mlflow", 2),
    ],
)
def test_a_run_ends_as_killed(
    tmp_path: Path, signum: signal.Signals, tracking: str, workers: int
) -> None:
    """``result.json``, journal and MLflow tell the same, and no worker is left."""
    from mlflow import MlflowClient

    home = Path(os.environ["FL_APP_HOME"])
    words = [f"tracking={tracking}", f"runtime.num_workers={workers}", f"output_dir={tmp_path}"]
    config = compose_config([*words, *ENDLESS])
    old = tmp_path / "result.json"
    old.write_text('{"status": "FINISHED"}')
    seen: list[bool] = []

    def ask() -> None:
        until(lambda: _rounds(home) > 2 and (tracking == "none" or _is_in_mlflow(home)))
        seen.append(old.exists())
        os.kill(os.getpid(), signum)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    with pytest.raises(SignalInterrupt), signals_interrupt():
        run(RunRequest(config, ()))
    assert seen == [False], "an old result tells nothing of a run that goes on"
    result = json.loads(old.read_text())
    assert result["status"] == "KILLED"
    assert result["error"] == str(SignalInterrupt(signum))
    assert not multiprocessing.active_children()
    (folder,) = (home / "runs").iterdir()
    end = JournalReader(folder).end
    assert (end["status"], end["error"]) == ("KILLED", result["error"])
    if tracking == "mlflow":
        found = MlflowClient(f"sqlite:///{home}/mlflow.db").get_run(result["run_id"])
        assert found.info.status == "KILLED"


@pytest.mark.parametrize("moment", ["before", "sending"])
def test_a_run_that_is_over_when_the_signal_comes_is_whole(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its training is done: all say FINISHED, the exit status too; what waits is said and sent."""
    from mlflow import MlflowClient

    home = Path(os.environ["FL_APP_HOME"])

    places = {
        "before": "fl_app.experiment.run.kept_result",  # anybody knows of the end
        "sending": "fl_app.tracking.mlflow.upload.Upload._send_models",
    }

    def interrupt(*_: object, **__: object) -> None:
        patched.undo()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    patched = pytest.MonkeyPatch()
    patched.setattr(places[moment], interrupt)
    monkeypatch.chdir(tmp_path)
    words = ["dataset=wine", "num_clients=3", "num_server_rounds=2", f"output_dir={tmp_path}/out"]
    monkeypatch.setattr(sys, "argv", ["fl-app", *words])
    main()  # and leaves with 0
    said = capsys.readouterr()
    assert said.err.startswith("fl-app: interrupted by SIGTERM")
    assert "the run was over and is whole" in said.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "FINISHED"
    (folder,) = (home / "runs").iterdir()
    assert JournalReader(folder).end["status"] == "FINISHED"
    store = MlflowClient(f"sqlite:///{home}/mlflow.db")
    assert store.get_run(result["run_id"]).info.status == "FINISHED"
    if moment == "sending":
        last = said.out.splitlines()[-1]
        assert "(model final, model best): it waits in" in last
        assert "fl-kit sync" in last
        until(lambda: replay(home) and not (folder / "lock").exists())


def test_bad_input_leaves_an_old_result(tmp_path: Path) -> None:
    """What was refused was no run: the result in its folder is still that of the last one."""
    (tmp_path / "result.json").write_text("old")
    words = ["num_clients=100000", "dataset=wine", "tracking=none", f"output_dir={tmp_path}"]
    with pytest.raises(InputError):
        run(RunRequest(compose_config(words), ()))
    assert (tmp_path / "result.json").read_text() == "old"
