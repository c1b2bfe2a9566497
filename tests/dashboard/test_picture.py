"""The picture's data: every value once, who took part, nothing of a client under privacy."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_app.dashboard.metric_values import Metric
from fl_app.dashboard.picture import MARKS, assets, picture
from fl_app.dashboard.view import Exchange, InRound, Own, Round, RunView

ACCURACY = Metric("accuracy", "server", True)
NAMES = {number: name for name, number in MARKS.items()}


def exchange(
    asked: Sequence[int], replied: Sequence[int], failed: Mapping[int, str] | None = None
) -> Exchange:
    failed = failed or {}
    return Exchange(tuple(asked), tuple(replied), failed, len(asked), len(replied), len(failed))


def own(**values: float) -> Own:
    """Return accuracies of clients named c0, c1, ..."""
    partitions = np.array([int(name[1:]) for name in values], np.int32)
    return Own(partitions, np.full(len(values), 9.0), {"accuracy": np.array([*values.values()])})


def a_round(
    number: int,
    server: float = math.nan,
    train: Exchange | None = None,
    validation: Own | None = None,
    metrics: Mapping[str, float] | None = None,
    evaluate: Exchange | None = None,
) -> Round:
    return Round(
        number,
        0,
        {"server/accuracy": server, **(metrics or {})},
        76.0 * len(train.replied) if train else math.nan,
        57.0 * len(train.asked) if train else math.nan,
        train or Exchange(),
        evaluate or Exchange(),
        validation or own(),
        own(),
        {},
    )


THREE = (
    a_round(0, 0.1, validation=own(c0=0.1, c1=0.2, c2=0.3)),
    a_round(1, 0.5, exchange([0, 2], [0], {2: "no memory"}), own(c0=0.4, c1=0.5)),
    a_round(2, 0.93123456, exchange([0, 1, 2], [0, 1, 2]), own(c0=0.7, c1=0.8, c2=0.9)),
)


def view(**facts: Any) -> RunView:
    given = {"rounds": THREE, "clients": 3, "total": 5, "keys": ("server/accuracy",)}
    return RunView(**({"name": "run", "status": "running"} | given | facts))


def table(text: str, kind: str, rows: int) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), kind).reshape(rows, -1)


def words(data: Mapping[str, Any]) -> list[list[str]]:
    marks = table(data["marks"], "u1", len(data["rounds"]))
    return [[NAMES[mark] for mark in row] for row in marks]


def test_a_value_is_where_its_round_and_client_are() -> None:
    """A row a round, a column a client, NaN where a client was not measured."""
    data = picture(view(), ACCURACY)
    expected = [[0.1, 0.2, 0.3], [0.4, 0.5, math.nan], [0.7, 0.8, 0.9]]
    np.testing.assert_array_equal(table(data["values"], "<f4", 3), np.array(expected, "<f4"))
    assert data["rounds"] == [0, 1, 2]
    assert data["server"] == [0.1, 0.5, 0.9312]
    assert (data["metric"], data["higher"], data["own"]) == ("accuracy", True, "validation")
    assert data["where"] == "the server's test rows"


def test_what_each_client_did_is_marked() -> None:
    """Before training nothing; then asked in vain, replied, not asked; counts and bytes beside."""
    data = picture(view(), ACCURACY)
    assert words(data) == [
        ["unknown"] * 3,
        ["replied", "not asked", "failed"],
        ["replied"] * 3,
    ]
    assert (data["asked"], data["replied"], data["failed"]) == ([0, 2, 3], [0, 1, 3], [0, 1, 0])
    assert (data["down"], data["up"]) == ([None, 114.0, 171.0], [None, 76.0, 228.0])


def test_failures_name_round_client_and_reason_once() -> None:
    """Reasons are sent once, in evaluation too, and not longer than a screen."""
    train = exchange([0, 1], [], {1: "late", 0: "late"})
    late = a_round(3, 0.5, train, evaluate=exchange([2], [], {2: "x" * 9999}))
    data = picture(view(rounds=(*THREE, late)), ACCURACY)
    assert data["failures"] == [[1, 2, 0, 0], [3, 0, 1, 0], [3, 1, 1, 0], [3, 2, 2, 1]]
    assert data["reasons"] == ["no memory", "late", "x" * 299 + "…"]


def test_the_roster_gives_the_sizes() -> None:
    """Training rows by client; None for one that is not known; nothing without any."""
    assert picture(view(roster={0: (30, 3), 2: (50, 5)}), ACCURACY)["rows"] == [30, None, 50]
    assert picture(view(), ACCURACY)["rows"] == []


def test_phases_of_stacking_are_named() -> None:
    """The stack round is said to be provisional; other strategies have no phases."""
    rounds = tuple(
        a_round(k, 0.5, metrics={} if k == 0 else {"stack/phase": k - 1.0}) for k in range(4)
    )
    phases = picture(view(rounds=rounds), ACCURACY)["phases"]
    assert phases == ["", "collecting base models", "stacking, provisional", "choosing the stack"]
    assert picture(view(), ACCURACY)["phases"] == []


def test_a_round_that_is_not_over_says_who_has_replied() -> None:
    """Asked and silent is waiting; once the round is recorded it is a round like any other."""
    train = exchange([0, 2], [2])
    data = picture(view(in_round=InRound(3, "train", train, one_by_one=True)), ACCURACY)
    assert [NAMES[mark] for mark in data["now"]["marks"]] == ["waiting", "not asked", "replied"]
    assert (data["now"]["round"], data["now"]["asked"], data["now"]["replied"]) == (3, 2, 1)
    assert data["phase"] == "round 3 of 5: 1 of 2 clients have replied"
    assert picture(view(in_round=InRound(2, "train", train)), ACCURACY)["now"] is None
    ended = view(status="failed", in_round=InRound(3, "train", train))
    assert picture(ended, ACCURACY)["now"] is None


def test_a_run_that_waits_for_nodes_counts_them() -> None:
    """Before round 0 there are no values; the picture shows who is there and says what goes on."""
    facts = {"online": 1, "wanted": 4}
    waiting = view(rounds=(), clients=0, status="waiting", stage="nodes", facts=facts, keys=())
    data = picture(waiting, None)
    assert data["nodes"] == [1, 4]
    assert data["phase"] == "waiting for nodes: 1 of 4"
    assert (data["rounds"], data["server"], data["values"], data["metric"]) == ([], [], "", "")
    odd = view(rounds=(), stage="nodes", facts={"online": "many"}, keys=())
    assert picture(odd, None)["nodes"] == []


def test_a_client_beyond_the_known_count_is_drawn() -> None:
    """Whoever is named has a place, also where K is not known yet."""
    late = a_round(1, 0.5, exchange([0, 6], [0]))
    assert picture(view(rounds=(THREE[0], late), clients=0), ACCURACY)["clients"] == 7


def test_nothing_of_a_client_under_privacy() -> None:
    """Counts and the sentence; no value, no mark, no size, no reason, whatever the view holds."""
    counts = Exchange((), (), {}, 4, 3, 1)
    leaky = exchange([0, 3], [0], {3: "its name is Ann"})
    rounds = (a_round(0, 0.1), a_round(1, 0.5, counts), a_round(2, 0.6, leaky, own(c0=0.7)))
    hidden = view(rounds=rounds, clients=4, private=True, roster={0: (9, 9)})
    data = picture(hidden, ACCURACY)
    assert (data["values"], data["marks"], data["rows"], data["failures"]) == ("", "", [], [])
    assert (data["clients"], data["asked"], data["replied"]) == (4, [0, 4, 2], [0, 3, 1])
    assert data["private"].startswith("Under differential privacy")
    now = picture(view(private=True, in_round=InRound(3, "train", leaky)), ACCURACY)["now"]
    assert (now["marks"], now["failures"], now["asked"]) == ([], [], 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_value(value: float) -> None:
    """JSON has no NaN: a browser would refuse the whole of it."""
    data = picture(view(rounds=(a_round(0, value),)), ACCURACY)
    assert data["server"] == [None]
    assert "NaN" not in json.dumps(data)
    assert "Infinity" not in json.dumps(data)


def test_many_clients_and_rounds_stay_small() -> None:
    """100 clients and 500 rounds: four bytes a value and one a mark, packed, and little else."""
    accuracy = {f"c{k}": k / 100 for k in range(100)}
    everybody = exchange(range(100), range(100))
    rounds = tuple(a_round(r, 0.5, everybody, own(**accuracy)) for r in range(500))
    size = len(json.dumps(picture(view(rounds=rounds, clients=100, total=500), ACCURACY)))
    assert size < 1.1 * (4 + 1) * 100 * 500 * 4 / 3


def test_the_component_loads_nothing_and_trusts_no_text() -> None:
    """One component, all inline; what nodes wrote becomes text, never markup."""
    html, css, js = assets()
    for text in (html, css, js):
        assert set(re.findall(r"https?://[^\"'\s)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"innerHTML|insertAdjacentHTML|outerHTML|eval\(|import\(", js)
    assert "@import" not in css
    assert "url(" not in css
    classes = set(re.findall(r'class="([\w ]+)"', html))
    wanted = re.search(r'for \(const part of "([\w ]+)"', js)
    assert wanted is not None
    assert set(wanted[1].split()) <= {name for group in classes for name in group.split()}
