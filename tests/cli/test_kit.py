"""``fl-kit``: exit statuses and what it says of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit import fl_kit

GOOD = "age,chest pain,y\n30,none,sick\n,typical,well\n50,none,sick\n41,typical,well\n"


def test_usable_file_is_status_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that some ``missing=`` policy can use is said to be usable, with its problem."""
    file = tmp_path / "rows.csv"
    file.write_text(GOOD)
    assert fl_kit(monkeypatch, "check", str(file), "--target", "y") == 0
    out = capsys.readouterr().out
    assert "usable: yes" in out
    assert "age=missing in 1 of 4 rows, first in row 2" in out


@pytest.mark.parametrize("text", ["", "age,y\n", "age,y\nold,a\nyoung,a\n1,b\n2,b\n3,b\n"])
def test_unusable_file_is_status_2(
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Empty, header only, a text among numbers: one sentence each, and exit status 2."""
    file = tmp_path / "rows.csv"
    file.write_text(text)
    assert fl_kit(monkeypatch, "check", str(file), "--target", "y") == 2
    assert "usable: no" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ui", "--port", "0"], "fl-kit: --port=0: an integer from 1 to 65535"),
        (["ui", "--uri", "http://127.0.0.1:1"], "fl-kit: tracking URI=http://127.0.0.1:1: a data"),
        (["check", "x.csv", "--task", "ranking"], "fl-kit: --task=ranking: regression or class"),
        (["nonsense"], "fl-kit: No such command 'nonsense'."),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mistake is one line on stderr and exit status 2."""
    assert fl_kit(monkeypatch, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert len(err.splitlines()) == 1
