"""Methods are compared where they can be, and a stack that is not finished is no result."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_app.dashboard.compare import ANECDOTE, Comparison, compare, last_result
from fl_app.dashboard.replies import Table
from fl_app.dashboard.view import RunView
from tests.recorded import GONE, Record, real_runs

OTHER = "20260102-030406-0123abcd"
SMALL = ["dataset=iris", "num_clients=3", "num_server_rounds=4", "partitioner=iid"]


def average(home: Path, last: int = 6, each: float = 30.0, status: str = "FINISHED") -> RunView:
    """Write a run of FedAvg that sends `each` bytes a round."""
    record = Record(home).start(process=GONE, num_server_rounds=last)
    for r in range(last + 1):
        cost = {"cost/bytes_up": each * r, "cost/bytes_down": 0.0}
        record.rounds(r, metrics=cost if r else {})
    return record.end(status).view()


def stack(home: Path, last: int = 6, total: float = 100.0, end: str = "FINISHED") -> RunView:
    """Write a run of FedStacking of six rounds that got to one of them."""
    params = {"strategy.name": "fedstacking"}
    record = Record(home, OTHER).start(params, num_server_rounds=6)
    for r in range(last + 1):
        cost = {"cost/bytes_up": total * r / 6, "cost/bytes_down": 0.0}
        phase = {"stack/phase": float(max(0, r - 4))}
        record.rounds(r, metrics=cost | phase | {"server/accuracy": 0.9} if r else {})
    return (record.end(end) if end else record).view()


def rows(table: Table) -> dict[str, dict[str, object]]:
    """Return a table's rows by method."""
    return {str(record["method"]): record for record in table.records()}


def test_at_equal_bytes_the_round_that_the_stacks_bytes_reach(tmp_path: Path) -> None:
    """The stack sent 100 bytes; FedAvg sends 30 a round, so 3 rounds are within them."""
    made = compare([average(tmp_path), stack(tmp_path)])
    equal_rounds, equal_bytes = made.tables
    at = rows(equal_rounds)
    assert {name: row["round"] for name, row in at.items()} == {"fedavg": 6, "fedstacking": 6}
    assert at["fedavg"]["accuracy"] == pytest.approx(0.56)
    assert at["fedstacking"]["accuracy"] == 0.9
    within = rows(equal_bytes)
    assert within["fedavg"]["round"] == 3
    assert within["fedavg"]["accuracy"] == pytest.approx(0.53)
    assert within["fedstacking"]["round"] == 6
    assert equal_bytes.title == "At equal bytes: 100 B up and down"


def test_bytes_that_averaging_never_sent_are_not_reached(tmp_path: Path) -> None:
    """6 rounds of 10 bytes are 60; 100 would be reached in round 10."""
    made = compare([average(tmp_path, each=10.0), stack(tmp_path)])
    row = rows(made.tables[1])["fedavg"]
    assert row["accuracy"] is None
    assert row["round"] is None
    assert str(row["note"]).startswith("not reached")
    assert (
        "fedavg sent 60 B in 6 rounds: not reached; at 10 B a round it would be in round 10."
        in (made.sentences)
    )


@pytest.mark.parametrize(
    ("last", "end"), [(3, ""), (5, ""), (3, "KILLED"), (5, "FAILED"), (4, "FINISHED")]
)
def test_a_stack_that_is_cut_off_is_never_shown(tmp_path: Path, last: int, end: str) -> None:
    """Nor is what its rounds score while it collects, nor its provisional round."""
    view = stack(tmp_path, last, end=end)
    assert last_result(view) is None
    made = compare([average(tmp_path), view])
    (equal_rounds,) = made.tables
    row = rows(equal_rounds)["fedstacking"]
    assert row["accuracy"] is None
    assert row["note"] == (f"not finished: round {last} of 6" if not end else "no result")
    assert "At equal bytes: only between finished methods." in made.sentences


def test_a_stack_has_no_result_at_an_earlier_round(tmp_path: Path) -> None:
    made = compare([average(tmp_path, last=4), stack(tmp_path)])
    row = rows(made.tables[0])["fedstacking"]
    assert row["accuracy"] is None
    assert row["note"] == "collecting: its result is round 6"


def test_one_seed_is_an_anecdote_and_nobody_wins(tmp_path: Path) -> None:
    made = compare([average(tmp_path), stack(tmp_path)])
    assert made.sentences[-1] == ANECDOTE
    assert made.sentences[0] == "Measured on the server's test rows."
    said = " ".join(made.sentences).lower()
    assert not any(word in said for word in ("wins", "winner", "best", "better"))


def test_another_split_is_told(tmp_path: Path) -> None:
    other = Record(tmp_path, OTHER).start(params={"seed": "1", "num_clients": "9"}).rounds(0, 1)
    made = compare([average(tmp_path), other.view()])
    assert "they differ in seed, num_clients." in made.sentences[1]


def test_less_than_two_runs_are_no_comparison(tmp_path: Path) -> None:
    begun = Record(tmp_path, OTHER).start().view()
    assert compare([average(tmp_path), begun]) == compare([]) == Comparison((), ())


def test_averages_are_held_to_the_smaller_total(tmp_path: Path) -> None:
    other = Record(tmp_path, OTHER).start({"strategy.name": "fedprox"}, process=GONE).rounds(0)
    for r in range(1, 7):
        other.rounds(r, metrics={"cost/bytes_up": 10.0 * r, "cost/bytes_down": 0.0})
    within = rows(compare([average(tmp_path), other.end().view()]).tables[1])
    assert {name: row["round"] for name, row in within.items()} == {"fedavg": 2, "fedprox": 6}


def test_a_squared_error_has_its_unit(tmp_path: Path) -> None:
    """And r2 is never without it."""
    views = []
    for name in ("20260102-030405-0123abcd", OTHER):
        record = Record(tmp_path, name).begin(GONE).start(process=GONE)
        record.events(("model", {"spec": {"encoding": {"targets": ["price"]}}}))
        own = {"server/mse": 4.0, "server/r2": 0.5}
        record.rounds(0, 1, metrics=own)
        views.append(record.end().view())
    columns = compare(views).tables[0].columns
    assert {"mse [price²]", "r2"} <= set(columns)


def test_real_runs_of_one_split(tmp_path: Path) -> None:
    """FedStacking's collecting rounds are FedAvg's to the last bit, its bytes are more."""
    views = real_runs(tmp_path, SMALL, [*SMALL, "strategy=fedstacking"])
    made = compare(views)
    assert not any("same split" in sentence for sentence in made.sentences)
    at = rows(made.tables[0])
    assert at["fedstacking"]["note"] == ""
    assert float(str(at["fedstacking"]["MB so far"])) > float(str(at["fedavg"]["MB so far"]))
    last = last_result(views[1])
    assert last is not None
    assert at["fedstacking"]["accuracy"] == last.metrics["server/accuracy"]
    assert (
        views[0].rounds[1].metrics["server/accuracy"]
        == views[1].rounds[1].metrics["server/accuracy"]
    )
    assert str(rows(made.tables[1])["fedavg"]["note"]).startswith("not reached")
