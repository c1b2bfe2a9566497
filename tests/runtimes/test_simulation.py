"""``runtime=simulation``: what Flower says only in its log. The engine itself is in end_to_end/."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.errors import RunError
from fl_app.runtimes import simulation
from fl_app.runtimes.submit import Outcome


class Link(SimpleNamespace):
    """A SuperLink that is none."""

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.parametrize("words", ["An exception occured!!", "An exception occurred !!"])
def test_an_engine_that_does_not_start_says_why(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flower's status names no reason; its log does, among lines that nobody is shown."""

    def submit(*_: object, on_line: Any, **__: object) -> Outcome:
        on_line(f"\x1b[91mERROR \x1b[0m:     {words} The current node timed out.")
        return Outcome("1", "failed", "Simulation failed with exception: Ending simulation.")

    link = Link(name="fl-app", client_env={}, flwr_home=tmp_path, grace=5.0)
    monkeypatch.setattr(simulation, "PrivateSuperLink", lambda **_: link)
    monkeypatch.setattr(simulation, "submit", submit)
    own = ["dataset=iris", "runtime=simulation", "tracking=none", f"output_dir={tmp_path}"]
    told = "exception: Ending simulation. The current node timed out.$"
    with pytest.raises(RunError, match=told):
        simulation.run(RunRequest(compose_config(own)))
    assert capsys.readouterr().out == ""
