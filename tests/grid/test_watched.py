"""A watched grid gives what Flower's own would, and shows it as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.superlink.grid import InMemoryGrid

from fl_app.grid.watched import WatchedGrid

from .messages import reply_of, sent_to

NODES = 3


class Slow(InMemoryGrid):
    """Flower's grid over messages of its own: node k's reply is there at the look number k."""

    def __init__(self, silent: int | None = None) -> None:
        self.pull_interval, self.silent = 0.0, silent
        self.looks, self.asked, self.pushed = 0, [], list[Message]()  # type: ignore[var-annotated]

    def get_node_ids(self) -> Iterable[int]:
        return range(1, NODES + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.pushed = list(messages)
        for message in self.pushed:
            message.metadata.__dict__["_message_id"] = f"m{message.metadata.dst_node_id}"
        return [message.metadata.message_id for message in self.pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.looks += 1
        ids = set(message_ids)
        self.asked.append(ids)
        ready = [m for m in self.pushed if m.metadata.dst_node_id <= self.looks]
        due = [m for m in ready if m.metadata.message_id in ids]
        return [
            reply_of(m.metadata.dst_node_id, RecordDict(), answers=m.metadata.message_id)
            for m in reversed(due)
            if m.metadata.dst_node_id != self.silent
        ]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let looks follow each other at once."""
    monkeypatch.setattr("fl_app.grid.watched._SHORTEST", 0.0)


def exchange(grid: Any, timeout: float | None = None) -> list[tuple[int, str]]:
    """Ask all nodes; return whose replies came, in their order."""
    messages = [sent_to(k) for k in grid.get_node_ids()]
    replies = grid.send_and_receive(messages, timeout=timeout)
    return [(m.metadata.src_node_id, m.metadata.reply_to_message_id) for m in replies]


def test_replies_are_those_of_flowers_own_loop_and_are_seen_one_by_one() -> None:
    """Order and number are Flower's; each look's replies are shown before the next look."""
    theirs, ours = Slow(), Slow()
    seen: list[tuple[int, list[str]]] = []

    def see(replies: Sequence[Message]) -> None:
        seen.append((ours.looks, [m.metadata.reply_to_message_id for m in replies]))

    assert exchange(WatchedGrid(ours, see)) == exchange(theirs)
    assert (ours.looks, ours.asked) == (theirs.looks, theirs.asked)
    assert seen == [(1, ["m1"]), (2, ["m2"]), (3, ["m3"])]


def test_a_silent_node_costs_the_timeout_and_no_more() -> None:
    """After the timeout what came is returned, as by Flower; with none left nothing is waited."""
    begin = time.monotonic()
    ours = exchange(WatchedGrid(Slow(silent=2), lambda replies: None), timeout=0.2)
    assert 0.2 <= time.monotonic() - begin < 5
    assert ours == exchange(Slow(silent=2), timeout=0.2)
    assert exchange(WatchedGrid(Slow(), lambda replies: None), timeout=0.0) == []


def test_looks_are_no_rarer_than_flowers(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0.1 s on a tenth of the time so far, never more than the grid's own interval, or 3 s."""
    monkeypatch.setattr("fl_app.grid.watched._SHORTEST", 0.1)
    clock = [0.0]
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("fl_app.grid.watched.time.sleep", sleep)
    monkeypatch.setattr("fl_app.grid.watched.time.time", lambda: clock[0])
    slow = Slow(silent=2)
    del slow.pull_interval  # Flower's grid of a deployment has none
    exchange(WatchedGrid(slow, lambda replies: None), timeout=100.0)
    assert pauses[0] == 0.1
    assert pauses == sorted(pauses)
    assert max(pauses) == 3.0
    simulated = Slow(silent=2)
    simulated.pull_interval = 0.1
    pauses.clear()
    exchange(WatchedGrid(simulated, lambda replies: None), timeout=10.0)
    assert set(pauses) == {0.1}


def test_all_else_is_the_grids() -> None:
    """Nodes and pulled messages come from the grid itself."""
    grid = Slow()
    watched = WatchedGrid(grid, lambda replies: None)
    assert watched.get_node_ids() == grid.get_node_ids()
    assert list(watched.push_messages([sent_to(1)])) == ["m1"]
    assert len(list(watched.pull_messages(["m1"]))) == 1
