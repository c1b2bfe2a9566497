"""Runs ``fl-kit`` in this process."""

from __future__ import annotations

import sys

import pytest

from fl_app.cli import kit


def fl_kit(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["fl-kit", *words])
    try:
        kit.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
