"""What a run says on the terminal before its first round and at its end."""

from __future__ import annotations

import io
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from rich.console import Console

from fl_app.client_app import app
from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.models.metrics import score_all
from fl_app.runtimes import run
from fl_app.tracking.console import ConsoleTracker
from fl_app.tracking.records import ClientRecord, RoundRecord, RunEnd, RunStart

TRUTH = np.array([0] * 9 + [1])
COST = {
    "clients_replied": 1.0,
    "clients_asked": 1.0,
    "seconds": 1.0,
    "bytes_up": 0,
    "bytes_down": 0,
}


def closing(server: np.ndarray | None, evaluated: np.ndarray | None = None) -> str:
    """Return what a run prints whose last round has these probabilities of the second class."""

    def scored(second: np.ndarray | None) -> dict[str, float]:
        if second is None:
            return {}
        return score_all("classification", np.column_stack([1 - second, second]), TRUTH)

    out = io.StringIO()
    tracker = ConsoleTracker(console=Console(file=out, width=200))
    tracker.start(RunStart("run", num_server_rounds=1))
    tracker.record(RoundRecord(1, {}, server=scored(server), evaluate=scored(evaluated), cost=COST))
    tracker.finish(RunEnd("FINISHED"))
    return out.getvalue()


ALWAYS, RIGHT = np.full(10, 0.2), np.where(TRUTH == 1, 0.9, 0.1)


@pytest.mark.parametrize(
    ("server", "evaluated", "source"),
    [(ALWAYS, None, "server"), (None, ALWAYS, "eval"), (ALWAYS, ALWAYS, "server")],
)
def test_a_model_that_says_one_class_is_noted(
    server: np.ndarray | None, evaluated: np.ndarray | None, source: str
) -> None:
    """One note, of the server's rows or in a deployment of the clients', beside its accuracy."""
    said = closing(server, evaluated)
    assert said.count("note:") == 1
    assert f"note: the model says one class for every row of {source}/" in said
    assert "has accuracy 0.9000" in said


def test_a_model_that_tells_rows_apart_is_not_noted() -> None:
    """The share of the most frequent class stands in the table all the same."""
    said = closing(RIGHT)
    assert "note:" not in said
    (row,) = [line for line in said.splitlines() if "majority_share" in line]
    assert "0.9000" in row


def test_a_round_that_was_thrown_away_is_said_to_be() -> None:
    """On its line and below the table, as ``train`` is then of what was thrown away."""
    out = io.StringIO()
    tracker = ConsoleTracker(console=Console(file=out, width=200))
    tracker.start(RunStart("run", num_server_rounds=2))
    for server_round, back in ((1, 0.0), (2, 1.0)):
        extra = {"model/went_back": back}
        tracker.record(RoundRecord(server_round, {}, train={"mse": 1.0}, cost=COST, extra=extra))
    tracker.finish(RunEnd("FINISHED"))
    lines = [line for line in out.getvalue().splitlines() if "thrown away" in line]
    assert [line[:9] for line in lines] == ["round 2/2", "note: tra"]


@pytest.mark.parametrize(("sizes", "shown"), [((2, 2), 1), ((2, 1), 0), ((1, 1), 0)])
def test_the_sum_is_shown_where_replies_are_models(sizes: tuple[int, ...], shown: int) -> None:
    """Replies of other shapes than the model's, as members of a stack are, add up to nothing."""
    out = io.StringIO()
    tracker = ConsoleTracker(console=Console(file=out, width=200))
    clients = [ClientRecord(k, 1, {}, {"w": np.ones(n)}) for k, n in enumerate(sizes)]
    tracker.record(RoundRecord(1, {"w": np.ones(2)}, train_clients=clients, cost=COST))
    assert out.getvalue().count("W(1) = ") == shown


@pytest.mark.parametrize(("patience", "said"), [(0.0, True), (3600.0, False)])
def test_a_long_silence_says_what_it_waits_for(
    patience: float,
    said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before round 0 nodes may start and read for a minute; where they are quick nothing is said.

    Here a node answers when the line was said.
    """
    monkeypatch.setattr("fl_app.tracking.console._PATIENCE", patience)
    heard, say = Event(), ConsoleTracker.say

    def hear(self: ConsoleTracker, text: str) -> None:
        say(self, text)
        if text == "waiting for 2 nodes to say what rows they have":
            heard.set()

    def answer(message: Message, context: Context) -> Message:
        assert not said or heard.wait(60)
        return app(message, context)

    slow = ClientApp()
    for kind in (slow.query("describe"), slow.train(), slow.evaluate()):
        kind(answer)
    monkeypatch.setattr(ConsoleTracker, "say", hear)
    monkeypatch.setattr("fl_app.runtimes.inprocess.client_app", slow)
    words = ["dataset=iris", "num_clients=2", "num_server_rounds=1", "tracking=none"]
    run(RunRequest(compose_config([*words, f"output_dir={tmp_path}"])))
    assert ("waiting for" in capsys.readouterr().out.partition("round 0")[0]) == said
