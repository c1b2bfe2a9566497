"""The benchmark beside other packages skips what it cannot have, and believes no wrong result."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers
from benchmarks.peers import EQUAL, LOOP, OURS, MissingPeerError, Recipe, Timed

TASK = ("--clients", "2", "--rounds", "3", "--repeats", "1")


def script(name: str, text: str) -> None:
    """Write a peer's script where the benchmark looks for it."""
    (peers.APPS / f"{name.replace('-', '_')}_app.py").write_text(text)


def telling(accuracy: float) -> str:
    """Return a script that prints this result."""
    told = {"seconds_per_round": 1.0, "accuracy": accuracy, "version": "7.8"}
    return f"print('a word before')\nprint({json.dumps(told)!r})\n"


@pytest.fixture
def learnt() -> float:
    """Return the accuracy that fl_app ends the task with."""
    cfg = peers.config(2, 3)
    clients, test = peers.prepared(cfg)
    return peers.metrics(peers.final_arrays(cfg, clients, test), test)["accuracy"]


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give the benchmark scripts of the test's own, and this interpreter instead of a new one."""

    def environment(recipes: Sequence[Recipe], folder: Path) -> Path:
        if folder.name == "fluke":
            raise MissingPeerError("ERROR: no such version")
        return Path(sys.executable)

    monkeypatch.setenv("FL_APP_HOME", str(tmp_path))
    monkeypatch.setattr(peers, "APPS", tmp_path)
    monkeypatch.setattr(peers, "environment", environment)


def test_peers_that_cannot_be_had_are_skipped(
    learnt: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line tells why a peer was not installed or did not run; the others go on."""
    script("pfl", "raise RuntimeError('no such operator')")
    script("fed-playground", "print('no result')")
    script("blazefl", telling(learnt))
    names = ("--peers", "fluke", "pfl", "fed-playground", "blazefl")
    peers.main([*TASK, *names, "--envs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "fluke: skipped: ERROR: no such version" in lines
    assert "pfl: skipped: RuntimeError: no such operator" in lines
    assert "fed-playground: skipped: printed 'no result', not its result" in lines
    rows = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert rows == ["fl_app,", "fl_app,", "NumPy", "blazefl"]


@pytest.mark.parametrize("sign", [-1, 1])
def test_another_accuracy_fails(sign: int, learnt: float, tmp_path: Path) -> None:
    """A peer that learnt something else ends the command with both numbers."""
    other = learnt + sign * 1.01 * peers.TOLERANCE
    script("pfl", telling(other))
    with pytest.raises(SystemExit, match=f"{learnt:.4f}: pfl {other:.4f}$") as caught:
        peers.main([*TASK, "--peers", "pfl", "--envs", str(tmp_path)])
    assert isinstance(caught.value.code, str), "a text is printed and ends with status 1"


def test_no_accuracy_is_as_wrong_as_another() -> None:
    """NaN is near nothing."""
    found = {OURS: [Timed(1, 0.9)], LOOP: [Timed(1, 0.9)], "pfl": [Timed(1, np.nan)]}
    with pytest.raises(SystemExit, match="pfl nan"):
        peers.check(found)


def test_ratios_are_those_of_neighbours() -> None:
    """The table gives the median rate, and medians of ratios of runs in the same turn."""
    found = {
        OURS: [Timed(1, 0.9), Timed(2, 0.9), Timed(4, 0.9)],
        EQUAL: [Timed(1, 0.9), Timed(1, 0.9), Timed(2, 0.9)],
        LOOP: [Timed(1, 0.9), Timed(1, 0.9), Timed(1, 0.9)],
        "pfl": [Timed(8, 0.8, "0.6.0"), Timed(4, 0.8, "0.6.0"), Timed(16, 0.8, "0.6.0")],
    }
    (row,) = [line for line in peers.table(found).splitlines() if "pfl" in line]
    of_ours = sorted([8 / 1, 4 / 2, 16 / 4])[1]
    of_equal = sorted([8 / 1, 4 / 1, 16 / 2])[1]
    of_loop = sorted([8 / 1, 4 / 1, 16 / 1])[1]
    assert row.split() == [
        "pfl",
        "0.6.0",
        f"{1 / 8:.2f}",
        f"{of_loop:.2f}",
        f"{of_ours:.2f}",
        f"{of_equal:.2f}",
        "0.8000",
    ]


def test_a_peer_that_fails_once_is_not_asked_again() -> None:
    """Runs of one turn are compared, so what misses a turn leaves the table."""
    asked = []

    def peer() -> Timed:
        asked.append(1)
        raise MissingPeerError("no more memory")

    found, missing = peers.take_turns({OURS: lambda: Timed(1, 0.9), "pfl": peer}, 3)
    assert (list(found), len(found[OURS]), len(asked)) == ([OURS], 3, 1)
    assert missing == {"pfl": "no more memory"}


def test_an_interpreter_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reason tells an interpreter that is not there from a shim that leads nowhere."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    shim = tmp_path / "python9.8"
    shim.write_text("#!/bin/sh\necho 'choose a version' >&2\nexit 127\n")
    shim.chmod(0o700)
    with pytest.raises(MissingPeerError, match=r"^python9\.8 on PATH does not start$"):
        peers.interpreter("python9.8")
    with pytest.raises(MissingPeerError, match=r"^no python9\.9 on PATH$"):
        peers.interpreter("python9.9")


def test_an_environment_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was installed to the end is kept; other pins make it anew, a failure leaves no trace."""
    asked: list[str] = []

    def call(command: Sequence[str]) -> str:
        asked.append(command[-1])
        if command[-1] == "pfl==0":
            raise MissingPeerError("ERROR: no such version")
        return ""

    monkeypatch.setattr(peers, "call", call)
    old, new = Recipe(("pfl==1",)), Recipe(("pfl==2",))
    for recipe in (old, old, new):
        assert peers.installed(recipe, tmp_path) == tmp_path / "bin" / "python"
    assert [word for word in asked if word.startswith("pfl")] == ["pfl==1", "pfl==2"]
    for _ in range(2):
        with pytest.raises(MissingPeerError):
            peers.installed(Recipe(("pfl==0",)), tmp_path)
    assert asked.count("pfl==0") == 2


def test_the_last_word_is_an_error() -> None:
    """Advice after pip's error is not the reason."""
    told = "ERROR: No matching distribution found for pfl\nWARNING: a newer pip is there\n\n"
    assert peers.last_word(told, 1) == "ERROR: No matching distribution found for pfl"
    assert peers.last_word("Traceback:\n  x\nValueError: y\n", 1) == "ValueError: y"
    assert peers.last_word("", 3) == "exit status 3"


def test_exported_rows_are_the_clients_rows(tmp_path: Path) -> None:
    """Cut at the sizes, the file's rows are each client's."""
    clients, test = peers.prepared(peers.config(3, 2))
    peers.export(clients, test, tmp_path / "rows.npz")
    with np.load(tmp_path / "rows.npz") as told:
        cuts = np.cumsum(told["sizes"])[:-1]
        back = zip(np.split(told["x"], cuts), np.split(told["y"], cuts), strict=True)
        for (x, y), (own_x, own_y) in zip(clients, back, strict=True):
            np.testing.assert_array_equal(x, own_x)
            np.testing.assert_array_equal(y, own_y)
        np.testing.assert_array_equal(told["test_x"], test[0])
        np.testing.assert_array_equal(told["test_y"], test[1])
