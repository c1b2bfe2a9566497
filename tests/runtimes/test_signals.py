"""A signal unwinds what is running, or waits until it is cleaned up."""

from __future__ import annotations

import signal
import threading

import pytest

from fl_app.runtimes.signals import signals_deferred, signals_unwind


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
