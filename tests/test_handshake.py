"""The opening exchange: who takes part, what a node tells, and what all agree on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_app import wire
from fl_app.aggregation import moments
from fl_app.client_app import app as client_app
from fl_app.data.encoding import Encoding
from fl_app.data.partition import Partition, partition_of, test_table
from fl_app.data.table import Table, numeric_table
from fl_app.errors import FederationError
from fl_app.federation.handshake import (
    Description,
    describe,
    foreign,
    from_message,
    shake_hands,
    to_record,
)
from fl_app.federation.roster import Node, Roster
from fl_app.grid import InProcessGrid
from fl_app.schema import Config, from_dict, to_json
from tests.messages import reply_of

test_table.__test__ = False  # type: ignore[attr-defined]  # a function of the package, no test

Answer = Callable[[Message, int], RecordDict | Message]


def _config(**options: Any) -> Config:
    return from_dict({"num_clients": 3, "dataset": {"name": "diabetes"}} | options)


def _labelled(labels: list[Any], x: list[float] | None = None) -> Partition:
    values = np.array(x if x is not None else range(len(labels)), dtype=float)[:, None]
    table = numeric_table("classification", values, ["x"], np.array(labels), ["label"])
    return Partition(table, table.take(np.arange(min(1, len(table)))))


def _measured(y: list[float]) -> Partition:
    x = np.arange(float(len(y)))[:, None]
    table = numeric_table("regression", x, ["x"], np.array(y), ["y"])
    return Partition(table, table.take(np.arange(0)))


def _tells(rows: Partition, min_rows: int = 2, **lies: Any) -> Answer:
    """Answer as a node with these rows, but for some lies."""

    def answer(message: Message, partition: int) -> RecordDict:
        truth = describe(rows, partition, 3, min_rows)
        return to_record(replace(truth, **lies))

    return answer


def _says(text: str) -> Answer:
    """Answer with a text of one's own."""
    return lambda message, partition: RecordDict({"config": ConfigRecord({"description": text})})


def _shake(
    answers: list[Answer], config: Config | None = None, test: Table | None = None
) -> tuple[Roster, Encoding]:
    """Shake hands with one node for each answer, in this process."""
    app = ClientApp()

    @app.query("describe")
    def query(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        answer = answers[partition](message, partition)
        return answer if isinstance(answer, Message) else Message(answer, reply_to=message)

    config = config or _config(num_clients=len(answers))
    with InProcessGrid(app, len(answers)) as grid:
        return shake_hands(grid, grid.get_node_ids(), config, test, 60.0)


# ---------------------------------------------------------------------------- agreement
@pytest.mark.parametrize("name", ["digits", "diabetes"])
@pytest.mark.parametrize("partitioner", ["iid", "dirichlet"])
def test_the_encoding_is_that_of_the_pooled_rows(name: str, partitioner: str) -> None:
    """Merged moments give scikit-learn's scaler of all training rows, targets included."""
    from sklearn.preprocessing import StandardScaler

    config = _config(
        num_clients=6, dataset={"name": name}, partitioner={"name": partitioner}, min_rows=1
    )
    with InProcessGrid(client_app, 6) as grid:
        roster, encoding = shake_hands(grid, grid.get_node_ids(), config, None, 60.0)
        node_ids = grid.get_node_ids()
    parts = [partition_of(config, k) for k in range(6)]
    assert [node.partition for node in roster] == list(range(6))
    assert [node.node_id for node in roster] == node_ids
    assert [node.num_examples for node in roster] == [len(p.train) for p in parts]
    assert [node.num_validation for node in roster] == [len(p.validation) for p in parts]
    pooled = StandardScaler().fit(np.concatenate([p.train.numeric for p in parts]))
    np.testing.assert_allclose(encoding.mean, pooled.mean_, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(encoding.scale, pooled.scale_, rtol=1e-12)
    assert encoding.columns == parts[0].train.columns
    if name == "digits":
        assert encoding.labels == tuple(range(10))
    else:
        y = StandardScaler().fit(np.concatenate([p.train.target for p in parts]))
        np.testing.assert_allclose(encoding.target_mean, y.mean_, rtol=1e-12)
        np.testing.assert_allclose(encoding.target_scale, y.scale_, rtol=1e-12)


def test_the_order_of_answers_changes_no_bit() -> None:
    """Moments are merged by partition, whenever they arrive."""
    config = _config(num_clients=5)
    encodings = set()
    for order in (None, 1, 2, 3):
        with InProcessGrid(client_app, 5, shuffle_replies=order) as grid:
            roster, encoding = shake_hands(grid, grid.get_node_ids(), config, None, 60.0)
            assert [node.partition for node in roster] == list(range(5))
            encodings.add(json.dumps(encoding.to_dict()))
    assert len(encodings) == 1


def test_without_standardizing_columns_keep_their_unit() -> None:
    """``dataset.standardize=false`` asks for no moments and works with nodes of one row."""
    config = _config(
        num_clients=2,
        dataset={"name": "two_lines", "rows": [1, 1]},
        partitioner={"name": "natural"},
    )
    with InProcessGrid(client_app, 2) as grid:
        roster, encoding = shake_hands(grid, grid.get_node_ids(), config, None, 60.0)
    assert len(roster) == 2
    assert (encoding.mean, encoding.scale) == ((0.0,), (1.0,))
    assert (encoding.target_mean, encoding.target_scale) == ((0.0,), (1.0,))


def test_labels_are_those_of_all_nodes_and_of_the_test_set() -> None:
    """A class that only the server tests, or only one client has, belongs to the label set."""
    test = _labelled([9, 1]).train
    _, encoding = _shake([_tells(_labelled([3, 1, 1])), _tells(_labelled([5, 5]))], test=test)
    assert encoding.labels == (1, 3, 5, 9)
    assert all(type(label) is int for label in encoding.labels)
    _, texts = _shake([_tells(_labelled(["b", "a"]))])
    assert texts.labels == ("a", "b")


# ---------------------------------------------------------------------------- privacy
SECRET = 123456789.0


def _encoded(rows: Partition, min_rows: int) -> str:
    content = to_record(describe(rows, 0, 3, min_rows))
    return str(content[wire.CONFIG]["description"])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_node_with_few_rows_tells_its_counts_only(n: int) -> None:
    """Below ``min_rows`` neither a moment nor a class is in the bytes that leave the node."""
    rows = _labelled([777] * n, [SECRET] * n)
    told, silent = _encoded(rows, n), _encoded(rows, n + 1)
    assert "123456789" in told
    assert "777" in told
    assert "123456789" not in silent
    assert "777" not in silent
    data = json.loads(silent)
    assert data["num_examples"] == n
    assert {key for key, value in data.items() if value is None} == {
        *("count", "mean", "m2", "target_count", "target_mean", "target_m2"),
        *("labels", "label_counts", "levels"),
    }
    assert "123456789" not in _encoded(_measured([SECRET] * n), n + 1)
    assert "123456789" in _encoded(_measured([SECRET] * n), n)


def test_a_column_with_few_values_tells_nothing() -> None:
    """The mean of a column with one present cell is that cell, however many rows there are."""
    x = np.array([[1.0, SECRET], [2.0, np.nan], [3.0, np.nan]])
    table = numeric_table("classification", x, ["a", "b"], np.array([0, 1, 1]), ["label"])
    description = describe(Partition(table, table), 0, 1, 2)
    assert list(description.count or ()) == [3, 0]
    assert list(description.mean or ()) == [2, 0]
    assert list(description.m2 or ()) == [2, 0]
    assert "123456789" not in json.dumps(asdict(description))


def test_validation_rows_are_not_told() -> None:
    """Moments and classes come from training rows: ``eval/`` stays unseen."""
    train, other = _labelled([0, 1], [1.0, 2.0]).train, _labelled([777], [SECRET]).train
    told = _encoded(Partition(train, other), 1)
    assert "777" not in told
    assert "123456789" not in told
    assert json.loads(told)["num_validation"] == 1


def test_a_node_below_the_floor_still_takes_part() -> None:
    """Its rows count; the encoding is made of the others' moments."""
    big, small = _measured([1.0, 2.0, 3.0]), _measured([SECRET])
    roster, encoding = _shake([_tells(small), _tells(big)])
    assert [node.num_examples for node in roster] == [1, 3]
    assert encoding.mean == (1.0,)
    assert encoding.target_mean == (2.0,)


def test_nobody_to_tell_moments_is_an_error_with_a_way_out() -> None:
    """With every node below the floor there is nothing to standardize with."""
    with pytest.raises(FederationError) as caught:
        _shake([_tells(_measured([1.0]))] * 3)
    assert str(caught.value) == (
        "handshake: no node has min_rows=2 training rows, so there are no moments to standardize "
        "with; set dataset.standardize=false or a smaller min_rows"
    )


def test_one_class_is_no_classification() -> None:
    """A label set of one is an error before any training."""
    with pytest.raises(FederationError, match="handshake: the nodes told of 1 classes, need 2"):
        _shake([_tells(_labelled([1, 1, 1]))] * 2)


# ---------------------------------------------------------------------------- disagreement
def _fails(message: Message, partition: int) -> RecordDict:
    raise RuntimeError("no\nfile")


GOOD = _measured([1.0, 2.0, 3.0])
OTHER_COLUMNS = Partition(
    *(numeric_table("regression", np.zeros((n, 1)), ["z"], np.zeros(n), ["y"]) for n in (4, 0))
)
CODE = wire.code_digest()[:12]
SIT_OUT = [
    (
        _tells(GOOD, code="0123456789abcdef"),
        f"partition 1 sits out: code=0123456789ab: it runs other code of fl_app than the server "
        f"({CODE})",
    ),
    (
        _tells(OTHER_COLUMNS),
        'partition 1 sits out: columns=["z"]: most nodes have ["x"]',
    ),
    (
        _tells(GOOD, targets=("price",)),
        'partition 1 sits out: targets=["price"]: most nodes have ["y"]',
    ),
    (
        _tells(_labelled([0, 1])),
        'partition 1 sits out: task="classification": most nodes have "regression"',
    ),
    (
        _tells(GOOD, num_examples=0),
        "partition 1 sits out: num-examples=0: it has no training rows",
    ),
    (_fails, "it failed: <class 'RuntimeError'>:<'no file'>"),
    (_says("nonsense"), "its answer cannot be read: JSONDecodeError("),
    (_says("[]"), "its answer cannot be read: TypeError("),
    (_says("[" * 100_000), "its answer cannot be read: RecursionError("),
    (_says("{}"), "its answer cannot be read: TypeError("),
    (lambda message, partition: RecordDict(), "its answer cannot be read: KeyError("),
    (_tells(GOOD, partition="1"), "partition=1: expected an integer from 0"),
    (_tells(GOOD, partition=-1), "partition=-1: expected an integer from 0"),
    (_tells(GOOD, partition=True), "partition=True: expected an integer from 0"),
    (_tells(GOOD, num_examples=2.5), "num_examples=2.5: expected an integer from 0"),
    (_tells(GOOD, num_validation=None), "num_validation=None: expected an integer from 0"),
    (_tells(GOOD, code=3), "code=3: expected a text"),
    (_tells(GOOD, columns="x"), "columns=x: expected texts"),
    (_tells(GOOD, columns=[["x"]]), "columns=[['x']]: expected texts"),
    (_tells(GOOD, labels=[{}]), "labels=[{}]: expected texts or finite numbers"),
    (_tells(GOOD, labels=[float("nan")]), "labels=[nan]: expected texts or finite numbers"),
    (_tells(GOOD, mean=[float("nan")]), "mean=[nan]: expected 1 finite numbers"),
    (_tells(GOOD, mean=[1.0, 2.0]), "mean=[1.0, 2.0]: expected 1 finite numbers"),
    (_tells(GOOD, mean=None), "mean=None: expected 1 finite numbers"),
    (_tells(GOOD, m2=[float("inf")]), "m2=[inf]: expected 1 finite numbers"),
    (_tells(GOOD, m2=[-1.0]), "m2=[-1.0]: expected no negative numbers"),
    (_tells(GOOD, count=[10**400]), "count=[1"),
    (_tells(GOOD, target_mean="abc"), "target_mean=abc: expected 1 finite numbers"),
    (
        _tells(GOOD, partition=0),
        "partition-id=0: another node has this partition",
    ),
]


@pytest.mark.parametrize(("answer", "said"), SIT_OUT, ids=[said[:50] for _, said in SIT_OUT])
def test_a_node_that_disagrees_sits_out(
    answer: Answer, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The others agree without it; one warning names it, the field and what is wrong."""
    roster, encoding = _shake([_tells(GOOD), answer, _tells(GOOD)])
    assert [node.partition for node in roster] == [0, 2]
    assert encoding.mean == (1.0,)
    [record] = caplog.records[-1:]
    assert said in record.getMessage()
    assert "sits out" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert sum("sits out" in r.getMessage() for r in caplog.records) == 1


def test_the_majority_decides_and_the_lowest_partition_a_tie() -> None:
    """Two against one, whoever comes first; one against one, the lower partition."""
    roster, encoding = _shake([_tells(OTHER_COLUMNS), _tells(GOOD), _tells(GOOD)])
    assert [node.partition for node in roster] == [1, 2]
    assert encoding.columns == ("x",)
    roster, encoding = _shake([_tells(OTHER_COLUMNS), _tells(GOOD)])
    assert [node.partition for node in roster] == [0]
    assert encoding.columns == ("z",)


def test_too_few_nodes_that_agree_are_an_error_with_the_reasons() -> None:
    """Below ``min_replies`` the run ends, and says who sat out and why."""
    answers = [_tells(GOOD), _tells(GOOD, num_examples=0), _tells(GOOD, code="ffff")]
    with pytest.raises(FederationError) as caught:
        _shake(answers, _config(min_replies=2))
    assert str(caught.value) == (
        "handshake: 1 of 3 nodes can take part, min_replies=2. "
        "partition 1: num-examples=0: it has no training rows; "
        f"partition 2: code=ffff: it runs other code of fl_app than the server ({CODE})"
    )
    with pytest.raises(FederationError, match="handshake: 0 of 3 nodes can take part"):
        _shake([_fails] * 3)


def test_no_answer_in_time_is_said_once_a_node(caplog: pytest.LogCaptureFixture) -> None:
    """A node that does not answer is named with the time it had."""
    with InProcessGrid(client_app, 2) as grid, pytest.raises(FederationError):
        shake_hands(grid, grid.get_node_ids(), _config(num_clients=2), None, 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        f"node {node} sits out: no answer within 0 s" for node in sorted(grid.get_node_ids())
    ]


def test_a_node_that_is_not_there_is_named_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    """The SuperLink answers for a lost node; the warning names the node, not the SuperLink."""
    config = _config(num_clients=2)
    with InProcessGrid(client_app, 2) as grid:
        roster, _ = shake_hands(grid, [*grid.get_node_ids(), 4711], config, None, 60.0)
    assert len(roster) == 2
    [record] = caplog.records
    assert record.getMessage().startswith("node 4711 sits out: it failed: Node Unavailable")


# ---------------------------------------------------------------------------- other code
def test_a_node_with_other_code_says_so_without_reading_the_config(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A config of another version may be unreadable: the digest is compared before."""
    config = _config(num_clients=2)
    text = to_json(config).replace('"seed"', '"seed_of_a_later_version"')
    monkeypatch.setattr("fl_app.federation.handshake.to_json", lambda config: text)
    record = wire.run_record(text)
    record["code-digest"] = "another"
    monkeypatch.setattr(wire, "run_record", lambda *_: record)
    answered = []

    class Spying(InProcessGrid):
        def send_and_receive(self, *args: Any, **kwargs: Any) -> list[Message]:
            answered.extend(super().send_and_receive(*args, **kwargs))
            return answered

    with Spying(client_app, 2) as grid, pytest.raises(FederationError, match="no training rows"):
        shake_hands(grid, grid.get_node_ids(), config, None, 60.0)
    assert [from_message(m) for m in answered] == [
        replace(foreign(k, 2), columns=[], numeric=[], categorical=[], targets=[]) for k in range(2)
    ]


def test_an_answer_reads_back_exactly() -> None:
    """Moments arrive to the last bit: the federation's scaler is the same everywhere."""
    rows = partition_of(_config(), 1)
    description = describe(rows, 1, 3, 2)
    back = from_message(reply_of(5, to_record(description)))
    found = moments(rows.train.numeric)
    assert back.mean == found.mean.tolist()
    assert back.m2 == found.m2.tolist()
    assert back == Description(**json.loads(json.dumps(asdict(description))))


# ---------------------------------------------------------------------------- roster
def test_a_roster_is_sorted_and_finds_nodes_by_id() -> None:
    """Partitions are unique and in order; ids lead to them."""
    nodes = (Node(70, 0, 1, 0), Node(3, 2, 1, 0))
    roster = Roster(nodes)
    assert (len(roster), list(roster)) == (2, list(nodes))
    assert (roster.partition(3), roster.partition(4)) == (2, None)
    assert roster.partitions == {70: 0, 3: 2}
    for wrong in (nodes[::-1], (nodes[0], nodes[0])):
        with pytest.raises(ValueError, match="expected them sorted and unique"):
            Roster(wrong)
