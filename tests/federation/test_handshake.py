"""The opening exchange: who takes part, what a node tells, and what all agree on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_app.aggregation import moments
from fl_app.client_app import app as client_app
from fl_app.config.schema import Config
from fl_app.config.serialization import from_dict, to_json
from fl_app.data.client_data import Partition, own_partition, partition_of
from fl_app.data.encoding import Encoding
from fl_app.data.table import Table, numeric_table
from fl_app.errors import FederationError
from fl_app.federation import agreement, protocol
from fl_app.federation.agreement import MAX_MOVE
from fl_app.federation.description import (
    MAX_ANSWER,
    MAX_MEAN,
    MAX_NAMES,
    MAX_TEXT,
    Description,
    describe,
    describe_left,
    foreign,
    from_message,
    to_record,
)
from fl_app.federation.handshake import shake_hands
from fl_app.federation.roster import Node, Roster
from fl_app.grid import InProcessGrid
from fl_app.seeding import generator
from tests.messages import reply_of

Answer = Callable[[Message, int], RecordDict | Message]


def _config(**options: Any) -> Config:
    return from_dict({"num_clients": 3, "dataset": {"name": "diabetes"}} | options)


def _files(num_clients: int = 3, /, **dataset: Any) -> Config:
    """Make the config of a federation of files, whose names the nodes tell."""
    own = {"name": "tabular", "path": "own.csv", "target": "y"} | dataset
    return from_dict({"num_clients": num_clients, "dataset": own})


def _labelled(labels: list[Any], x: list[float] | None = None) -> Partition:
    values = np.array(x if x is not None else range(len(labels)), dtype=float)[:, None]
    table = numeric_table("classification", values, ["x"], np.array(labels), ["label"])
    return Partition(table, table.take(np.arange(0)))


def _texts(cells: list[str | None], labels: list[Any] | None = None) -> Partition:
    """Make rows of one categorical column; the classes are 0 and 1 in turn by default."""
    n = len(cells)
    table = Table(
        "classification",
        ("c",),
        np.empty((n, 0)),
        (),
        np.array(cells, dtype=object)[:, None],
        ("c",),
        np.array([i % 2 for i in range(n)] if labels is None else labels),
        ("label",),
    )
    return Partition(table, table.take(np.arange(0)))


def _measured(y: list[float]) -> Partition:
    x = np.arange(float(len(y)))[:, None]
    table = numeric_table("regression", x, ["x"], np.array(y), ["y"])
    return Partition(table, table.take(np.arange(0)))


def _tells(
    rows: Partition, min_rows: int = 2, min_level_rows: int = 1, again: Any = None, **lies: Any
) -> Answer:
    """Answer as a node with these rows, but for some lies; ``again``: those of a second answer."""

    def answer(message: Message, partition: int) -> RecordDict:
        if encoding := protocol.texts(message)[1]:
            left = describe_left(rows, partition, 3, protocol.read_encoding(encoding))
            return to_record(replace(left, **(again or {})))
        truth = describe(rows, partition, 3, min_rows, min_level_rows)
        return to_record(replace(truth, **lies))

    return answer


def _says(text: str) -> Answer:
    """Answer with a text of one's own."""
    return lambda message, partition: RecordDict({"config": ConfigRecord({"description": text})})


def _shake(answers: list[Answer], config: Config | None = None) -> tuple[Roster, Encoding]:
    """Shake hands with one node for each answer, in this process."""
    app = ClientApp()

    @app.query("describe")
    def query(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        answer = answers[partition](message, partition)
        return answer if isinstance(answer, Message) else Message(answer, reply_to=message)

    config = config or _files(len(answers))
    with InProcessGrid(app, len(answers)) as grid:
        return shake_hands(grid, grid.get_node_ids(), config, 60.0)


# ---------------------------------------------------------------------------- agreement
@pytest.mark.parametrize("name", ["digits", "diabetes"])
@pytest.mark.parametrize("partitioner", ["iid", "dirichlet"])
def test_the_encoding_is_that_of_the_pooled_rows(name: str, partitioner: str) -> None:
    """Merged moments give scikit-learn's scaler of all the clients' rows, targets included."""
    from sklearn.preprocessing import StandardScaler

    config = _config(
        num_clients=6, dataset={"name": name}, partitioner={"name": partitioner}, min_rows=1
    )
    with InProcessGrid(client_app, 6) as grid:
        roster, encoding = shake_hands(grid, grid.get_node_ids(), config, 60.0)
        node_ids = grid.get_node_ids()
    parts = [partition_of(config, k) for k in range(6)]
    assert [node.partition for node in roster] == list(range(6))
    assert [node.node_id for node in roster] == node_ids
    assert [node.num_examples for node in roster] == [len(p.train) for p in parts]
    assert [node.num_validation for node in roster] == [len(p.validation) for p in parts]
    pooled = StandardScaler().fit(np.concatenate([p.rows.numeric for p in parts]))
    np.testing.assert_allclose(encoding.mean, pooled.mean_, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(encoding.scale, pooled.scale_, rtol=1e-12)
    assert encoding.columns == parts[0].train.columns
    if name == "digits":
        assert encoding.labels == tuple(range(10))
    else:
        y = StandardScaler().fit(np.concatenate([p.rows.target for p in parts]))
        np.testing.assert_allclose(encoding.target_mean, y.mean_, rtol=1e-12)
        np.testing.assert_allclose(encoding.target_scale, y.scale_, rtol=1e-12)


def test_the_order_of_answers_changes_no_bit() -> None:
    """Moments are merged by partition, whenever they arrive."""
    config = _config(num_clients=5)
    encodings = set()
    for order in (None, 1, 2, 3):
        with InProcessGrid(client_app, 5, shuffle_replies=order) as grid:
            roster, encoding = shake_hands(grid, grid.get_node_ids(), config, 60.0)
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
        roster, encoding = shake_hands(grid, grid.get_node_ids(), config, 60.0)
    assert len(roster) == 2
    assert (encoding.mean, encoding.scale) == ((0.0,), (1.0,))
    assert (encoding.target_mean, encoding.target_scale) == ((0.0,), (1.0,))


def test_labels_are_those_of_all_nodes() -> None:
    """A class that only one client has belongs to the label set."""
    _, encoding = _shake([_tells(_labelled([3, 1, 1])), _tells(_labelled([5, 5]))])
    assert encoding.labels == (1, 3, 5)
    assert all(type(label) is int for label in encoding.labels)
    _, texts = _shake([_tells(_labelled(["b", "a"]))])
    assert texts.labels == ("a", "b")


# ---------------------------------------------------------------------------- privacy
SECRET = 123456789.0


def _encoded(rows: Partition, min_rows: int) -> str:
    content = to_record(describe(rows, 0, 3, min_rows, 1))
    return str(content[protocol.CONFIG]["description"])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_node_with_few_rows_tells_its_counts_only(n: int) -> None:
    """Below ``min_rows`` neither a moment nor a class is in the bytes that leave the node."""
    rows = _labelled([7770007] * n, [SECRET] * n)
    told, silent = _encoded(rows, n), _encoded(rows, n + 1)
    assert "123456789" in told
    assert "7770007" in told
    assert "123456789" not in silent
    assert "7770007" not in silent
    data = json.loads(silent)
    assert data["num_examples"] == n
    assert {key for key, value in data.items() if value is None} == {
        *("count", "mean", "m2", "target_count", "target_mean", "target_m2"),
        *("labels", "label_counts", "levels", "mostly_other", "file_check"),
    }
    assert "123456789" not in _encoded(_measured([SECRET] * n), n + 1)
    assert "123456789" in _encoded(_measured([SECRET] * n), n)


def test_a_column_with_few_values_tells_nothing() -> None:
    """The mean of a column with one present cell is that cell, however many rows there are."""
    x = np.array([[1.0, SECRET], [2.0, np.nan], [3.0, np.nan]])
    table = numeric_table("classification", x, ["a", "b"], np.array([0, 1, 1]), ["label"])
    description = describe(Partition(table, table.take(np.arange(0))), 0, 1, 2)
    assert list(description.count or ()) == [3, 0]
    assert list(description.mean or ()) == [2, 0]
    assert list(description.m2 or ()) == [2, 0]
    assert "123456789" not in json.dumps(asdict(description))


def test_moments_and_classes_are_those_of_all_rows() -> None:
    """Training and validation rows count alike: which is which changes the two numbers only."""
    both = _labelled([0, 1, 7, 7], [1.0, 2.0, 3.0, 6.0]).train
    told = [
        json.loads(_encoded(Partition(both.take(np.arange(n)), both.take(np.arange(n, 4))), 4))
        for n in (1, 2, 3)
    ]
    assert [(d.pop("num_examples"), d.pop("num_validation")) for d in told] == [
        (1, 3),
        (2, 2),
        (3, 1),
    ]
    assert told[0] == told[1] == told[2]
    assert (told[0]["count"], told[0]["mean"], told[0]["m2"]) == ([4], [3], [14])
    assert (told[0]["labels"], told[0]["label_counts"]) == ([0, 1, 7], [1, 1, 2])


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
        "handshake: no node has min_rows=5 rows, so there are no moments to standardize with; set "
        "dataset.standardize=false or a smaller min_rows"
    )


def test_one_class_is_no_classification() -> None:
    """A label set of one is an error before any training."""
    with pytest.raises(FederationError, match="handshake: the nodes told of 1 classes, need 2"):
        _shake([_tells(_labelled([1, 1, 1]))] * 2)


# ---------------------------------------------------------------------------- names with company
def test_a_name_that_few_rows_have_does_not_leave_the_node() -> None:
    """Of classes and levels with 4 and 5 rows the latter is in the bytes, with its count."""
    cells = ["JANE"] * 4 + ["common"] * 5
    rows = _texts(cells, [7770007] * 4 + [5550005] * 5)
    content = to_record(describe(rows, 0, 3, 5))
    told = str(content[protocol.CONFIG]["description"])
    assert "JANE" not in told
    assert "7770007" not in told
    data = json.loads(told)
    assert (data["levels"], data["labels"], data["label_counts"]) == ([["common"]], [5550005], [5])
    assert '[["JANE", "common"]]' in json.dumps(describe(rows, 0, 3, 5, 4).levels)


def test_classes_of_a_known_set_come_from_the_set_and_small_counts_are_none() -> None:
    """No client of wine has 5 rows of each class; the label set has all, the shares those told."""
    config = _config(num_clients=20, dataset={"name": "wine"})
    with InProcessGrid(client_app, 20) as grid:
        roster, encoding = shake_hands(grid, grid.get_node_ids(), config, 60.0)
    assert encoding.labels == (0, 1, 2)
    targets = [partition_of(config, k).rows.target for k in range(20)]
    counts = np.array([[np.sum(y == label) for label in range(3)] for y in targets])
    told = np.where(counts >= 5, counts, 0).sum(axis=0)
    assert 0 < told.sum() < counts.sum() / 2
    np.testing.assert_allclose(roster.label_shares, told / told.sum(), rtol=1e-15)


def test_without_any_count_all_classes_have_one_share() -> None:
    """Where each client has 3 rows, as wine among 47, every count is below the floor."""
    config = _config(num_clients=47, dataset={"name": "wine", "standardize": False})
    with InProcessGrid(client_app, 47) as grid:
        roster, _ = shake_hands(grid, grid.get_node_ids(), config, 60.0)
    assert roster.label_shares == (1 / 3, 1 / 3, 1 / 3)


def test_names_of_the_config_need_no_node_to_tell_them() -> None:
    """``dataset.classes`` and ``dataset.levels`` are the whole sets, in order, told or not."""
    config = _files(
        classes=["b", "a", "z"], levels={"c": ["w", "v"]}, categorical=["c"], standardize=False
    )
    rows = _texts(["v", "u", "u", "t"], ["a", "a", "q", "q"])
    roster, encoding = _shake([_tells(rows)] * 3, config)
    assert encoding.labels == ("a", "b", "z")
    assert encoding.levels == (("c", ("v", "w")),)
    # 2 of the 4 rows of each node are of a class of the run, all of class a.
    assert roster.label_shares == (1.0, 0.0, 0.0)
    assert [(node.num_examples, node.left_out) for node in roster] == [(2, 2)] * 3


def test_a_name_of_the_config_that_no_node_has_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may be mistyped: then all rows of the class that was meant would be left out."""
    config = _files(
        classes=["well", "sik"], levels={"c": ["u", "vv"]}, categorical=["c"], standardize=False
    )
    _shake([_tells(_texts(["v", "u", "u", "u"], ["well", "sick", "sick", "well"]))] * 3, config)
    said = [r.getMessage() for r in caplog.records if r.name == "fl_app"]
    assert "dataset.levels of c: no node tells of vv; told are u, v" in said
    assert "dataset.classes: no node tells of sik; told are sick, well" in said


def test_a_column_without_a_level_in_company_stays_a_column() -> None:
    """Where each cell is another one, all are OTHER: who named the column shall have it."""
    config = _files(2, categorical=["c"])
    _, encoding = _shake([_tells(_texts([*"abcd"]), min_level_rows=2)] * 2, config)
    assert encoding.levels == (("c", ()),)
    assert encoding.feature_names == ("c=OTHER",)


def test_a_node_without_a_row_of_a_known_class_sits_out(caplog: pytest.LogCaptureFixture) -> None:
    """It is asked once more, told nothing but two numbers, and sits out before the first round."""
    asked: list[int] = []

    def odd(message: Message, partition: int) -> RecordDict:
        asked.append(partition)
        answer = _tells(_labelled([8, 9]), min_level_rows=5)(message, partition)
        assert isinstance(answer, RecordDict)
        return answer

    roster, encoding = _shake([_tells(CLASSES), odd, _tells(CLASSES)])
    assert [node.partition for node in roster] == [0, 2]
    assert asked == [1, 1]
    assert encoding.labels == (0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "partition 1 sits out: num-examples=0 of 2: none of its training rows is of a class of "
        "the run: see dataset.classes"
    ]


def test_a_second_answer_tells_two_numbers() -> None:
    """Not one moment of the rows that are left: the others would be the difference."""
    rows = _labelled([0, 0, 7], [1.0, 2.0, SECRET])
    encoding = Encoding("classification", ("x",), ("x",), (0.0,), (1.0,), labels=(0, 1))
    left = describe_left(Partition(rows.train, rows.train.take(np.array([0, 2]))), 0, 3, encoding)
    assert (left.num_examples, left.num_validation) == (2, 1)
    assert left.mean is left.labels is left.label_counts is left.levels is None


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ({"num_examples": 9}, "num_examples=9: expected at most 3, as it said first"),
        ({"num_validation": 1}, "num_validation=1: expected at most 0, as it said first"),
        ({"partition": 2}, "partition=2: expected the 1, as it said first"),
        ({"partition": None}, "partition=None: expected an integer from 0"),
    ],
)
def test_a_second_answer_is_held_against_the_first(
    again: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that contradicts itself sits out."""
    doubtful = _tells(_labelled([0, 0, 7]), min_level_rows=2, again=again)
    roster, _ = _shake([_tells(CLASSES), doubtful, _tells(CLASSES)])
    assert [node.partition for node in roster] == [0, 2]
    [record] = caplog.records
    assert said in record.getMessage()


def test_a_node_whose_validation_rows_are_left_out_is_not_asked_to_evaluate() -> None:
    """There would be nothing to reply with."""
    train, validation = _labelled([0, 0, 0]).train, _labelled([7]).train
    doubtful = _tells(Partition(train, validation), min_level_rows=2)
    roster, _ = _shake([_tells(CLASSES), doubtful])
    assert [(n.num_examples, n.num_validation) for n in roster] == [(4, 0), (3, 0)]


# ---------------------------------------------------------------------------- seeds
def _told_under(seed: int, path: Path) -> str:
    """Return all that a node with a file of its own tells under a seed, to the last bit."""
    config = replace(_files(classes=None, val_fraction=0.25), seed=seed)
    rows = own_partition(config, 3, str(path))
    content = to_record(describe(rows, 3, 4, config.min_rows))
    encoding = Encoding("classification", ("a",), ("a",), (0.0,), (1.0,), labels=(0, 1))
    left = to_record(describe_left(rows, 3, 4, encoding))
    return str(content[protocol.CONFIG]["description"]) + str(left[protocol.CONFIG]["description"])


def _solved(tellings: list[tuple[NDArray[np.int64], list[float], list[float]]]) -> NDArray[Any]:
    """Solve for the rows behind counts and means of known choices of them."""
    n = max(int(rows.max()) for rows, _, _ in tellings) + 1
    chosen = np.zeros((len(tellings), n))
    for line, (rows, _, _) in zip(chosen, tellings, strict=True):
        line[rows] = 1.0
    sums = np.array([np.multiply(count, mean) for _, count, mean in tellings])
    return np.linalg.lstsq(chosen, sums, rcond=None)[0]


def test_a_thousand_seeds_tell_no_more_than_one(tmp_path: Path) -> None:
    """The server knows which rows a seed draws; what depended on them would give every row away.

    The attack is run on moments of training rows that the seed draws, where it finds all 40 rows
    of 3 columns, and then on what a node says of its file: 1000 tellings that are one.
    """
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    path = tmp_path / "own.csv"
    lines = [f"{a!r},{b!r},{c!r},{label}" for (a, b, c), label in zip(x.tolist(), y, strict=True)]
    path.write_text("a,b,c,y\n" + "\n".join(lines) + "\n")

    seeded = []
    for seed in range(60):
        rows = np.sort(generator(seed, "validation-split", 0, 3).permutation(40)[10:])
        part = moments(x[rows])
        seeded.append((rows, part.count.tolist(), part.mean.tolist()))
    np.testing.assert_allclose(_solved(seeded), x, atol=1e-10)

    told = {_told_under(seed, path) for seed in range(1000)}
    assert len(told) == 1
    kept = {own_partition(replace(_files(), seed=s), 3, str(path)).rows.sha256 for s in range(3)}
    assert len(kept) == 1
    data = json.JSONDecoder().raw_decode(told.pop())[0]
    np.testing.assert_allclose(data["mean"], x.mean(axis=0), atol=1e-15)
    assert (data["num_examples"], data["label_counts"]) == (30, [20, 20])


# ---------------------------------------------------------------------------- disagreement
def _fails(message: Message, partition: int) -> RecordDict:
    raise RuntimeError("no\nfile")


GOOD = _measured([1.0, 2.0, 3.0])
CLASSES = _labelled([0, 1, 0, 1])
TEXTS = _texts(["a", "a", "b", "b"])
NAMES = f"up to {MAX_NAMES} different texts or integers of 64 bits"
OTHER_COLUMNS = Partition(
    *(numeric_table("regression", np.zeros((n, 1)), ["z"], np.zeros(n), ["y"]) for n in (4, 0))
)
CODE = protocol.code_digest()[:12]
SIT_OUT = [
    (
        _tells(GOOD, code="0123456789abcdef"),
        f"partition 1 sits out: code=0123456789ab: it runs other code of fl_app than the server "
        f"({CODE})",
    ),
    (
        _tells(OTHER_COLUMNS),
        "partition 1 sits out: columns: it lacks x and has z",
    ),
    (
        _tells(GOOD, targets=("price",)),
        "partition 1 sits out: targets: it lacks y and has price",
    ),
    (
        _tells(_labelled([0, 1])),
        'partition 1 sits out: task="classification": most nodes have "regression"',
    ),
    (
        _tells(_measured([])),
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
    (_tells(GOOD, num_examples=0), "count=[3.0]: expected integers from 0 to 0 rows"),
    (_says("9" * (MAX_ANSWER + 1)), f"{MAX_ANSWER + 1} characters, at most {MAX_ANSWER}"),
    (_tells(GOOD, columns=["x", "x"]), "columns=['x', 'x']: expected texts"),
    (_tells(GOOD, columns=["\ud800"]), "expected texts"),
    (_tells(GOOD, columns=["y" * (MAX_TEXT + 1)]), "expected texts"),
    (
        _tells(GOOD, columns=["x", "w"]),
        "columns=['x', 'w']: expected the numeric and the categorical ones",
    ),
    *(
        (_tells(CLASSES, labels=wrong), f"labels={str(wrong)[:80]}: expected {NAMES}")
        for wrong in (
            [{}],
            [float("nan")],
            [0.0, 1.0],
            [True, 0],
            [0, 2**63],
            [0, 0],
            ["a", "a"],
            5,
            "ab",
            {"0": 1},
            [*range(MAX_NAMES + 1)],
        )
    ),
    (
        _tells(CLASSES, labels=[*range(100_000)], label_counts=[1] * 100_000),
        f"expected {NAMES}",
    ),
    (_tells(CLASSES, labels=["a" * (MAX_TEXT + 1), "b"]), f"expected {NAMES}"),
    (_tells(CLASSES, label_counts=[2]), "label_counts=[2]: expected 2 integers"),
    (_tells(CLASSES, label_counts=None), "label_counts=None: expected one for each of labels"),
    (_tells(CLASSES, labels=None), "label_counts=[2, 2]: expected one for each of labels"),
    (_tells(CLASSES, label_counts=[2, 2.0]), "label_counts=[2, 2.0]: expected integers from 0"),
    (_tells(CLASSES, label_counts=[True, 2]), "label_counts=[True, 2]: expected integers from 0"),
    *(
        (
            _tells(CLASSES, label_counts=wrong),
            f"label_counts={wrong}: expected integers from 1 with a sum of at most 4 rows",
        )
        for wrong in ([2, 3], [4, 0], [2**50, 1])
    ),
    (_tells(GOOD, labels=[0], label_counts=[1]), "labels=[0]: expected null, as task=regression"),
    *(
        (_tells(TEXTS, levels=wrong), f"levels={str(wrong)[:80]}: expected lists of up to")
        for wrong in (
            5,
            "a",
            {},
            [5],
            ["ab"],
            [[1, "a"]],
            [[{}]],
            [[None]],
            [["a", "a"]],
            [["\udfff"]],
            [[*map(str, range(MAX_NAMES + 1))]],
        )
    ),
    (_tells(TEXTS, levels=[]), "levels=[]: expected 1 lists, one a categorical column"),
    (_tells(TEXTS, levels=[["a"], ["b"]]), "expected 1 lists, one a categorical column"),
    (
        _tells(TEXTS, levels=[[*"abcde"]]),
        "levels=[['a', 'b', 'c', 'd', 'e']]: expected at most 4 of a column, as many as rows",
    ),
    (_tells(GOOD, mean=[float("nan")]), "mean=[nan]: expected 1 finite numbers"),
    (_tells(GOOD, mean=[1.0, 2.0]), "mean=[1.0, 2.0]: expected 1 finite numbers"),
    (_tells(GOOD, mean=None), "mean=None: expected 1 finite numbers"),
    (_tells(GOOD, m2=[float("inf")]), "m2=[inf]: expected 1 finite numbers"),
    *(
        (_tells(GOOD, m2=[wrong]), f"m2=[{wrong}]: expected numbers from 0")
        for wrong in (-1.0, 1e300)
    ),
    (_tells(GOOD, mean=[True]), "mean=[True]: expected 1 finite numbers"),
    (_tells(GOOD, mean=[-1e308]), "mean=[-1e+308]: expected numbers up to 1e+100"),
    (_tells(GOOD, target_mean=[1e101]), "target_mean=[1e+101]: expected numbers up to 1e+100"),
    *(
        (_tells(GOOD, count=[wrong]), f"count=[{wrong}]: expected integers from 0 to 3 rows")
        for wrong in (4, 1e300, 2.5, -1)
    ),
    (_tells(GOOD, target_count=[1e300]), "target_count=[1e+300]: expected integers from 0 to 3"),
    (_tells(GOOD, count=[0]), "mean=[1.0]: expected numbers up to 1e+100, 0 of no values"),
    (_tells(GOOD, count=[1]), "m2=[2.0]: expected numbers from 0 to 1e+200 a row, 0 of fewer"),
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
    assert (encoding.mean, encoding.labels, encoding.levels) == ((1.0,), (), ())
    [record] = caplog.records[-1:]
    assert said in record.getMessage()
    assert "sits out" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert sum("sits out" in r.getMessage() for r in caplog.records) == 1


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 3, -1, 2**53, 2**63, 10**400, 1e300, -1e308, 5e-324, "", "x", "y"])
    | st.floats()
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)
FIELDS = sorted(vars(describe(CLASSES, 0, 1, 1)))


@settings(max_examples=300)
@given(
    lies=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, min_size=1, max_size=4),
    again=st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=2),
    rows=st.sampled_from([GOOD, CLASSES, TEXTS]),
)
def test_whatever_a_node_says_the_handshake_ends_well(
    lies: dict[str, Any], again: dict[str, Any], rows: Partition
) -> None:
    """Beside two honest nodes no lie ends the run, spoils a number or makes a model large."""
    lies.pop("code", None)
    answer = _tells(rows, 2, 3, again, **lies)
    roster, encoding = _shake([_tells(rows), answer, _tells(rows)])
    assert {0, 2} <= {node.partition for node in roster} or lies.keys() & {"partition"}
    assert np.isfinite([*encoding.mean, *encoding.scale, *encoding.fill]).all()
    assert np.isfinite([*encoding.target_mean, *encoding.target_scale]).all()
    assert len(encoding.labels) <= 2 + 4
    assert len(encoding.feature_names) <= 3 + 4
    assert json.loads(json.dumps(encoding.to_dict()))
    json.dumps(encoding.to_dict(), ensure_ascii=False).encode()
    assert np.isfinite([*roster.label_shares, *roster.target_mean, *roster.target_variance]).all()


def test_the_largest_moments_that_are_plausible_merge_to_finite_ones() -> None:
    """Two nodes at the bound and of opposite signs: no square overflows."""
    huge = {"mean": [MAX_MEAN], "m2": [3 * MAX_MEAN**2]}
    other = {"mean": [-MAX_MEAN], "m2": [3 * MAX_MEAN**2]}
    roster, encoding = _shake([_tells(GOOD, **huge), _tells(GOOD, **other), _tells(GOOD)])
    assert len(roster) == 3
    assert 0 < encoding.scale[0] <= 2 * MAX_MEAN


@pytest.mark.parametrize(
    ("field", "lies"),
    [
        ("x", {"mean": [1e90], "m2": [0.0]}),
        ("x", {"mean": [1e6], "m2": [0.0]}),
        ("x", {"m2": [1e50]}),
        ("y", {"target_mean": [-1e9], "target_m2": [0.0]}),
    ],
    ids=str,
)
def test_a_node_out_of_line_with_all_others_sits_out(
    field: str, lies: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Its moments would spoil everybody's scaling; without it the encoding is the others'."""
    rows = _measured([1.0, 2.0, 3.0, 5.0])
    config = _files(task="regression")
    roster, encoding = _shake([_tells(rows)] * 2 + [_tells(rows, **lies)] + [_tells(rows)], config)
    assert [node.partition for node in roster] == [0, 1, 3]
    assert encoding == _shake([_tells(rows)] * 3, config)[1]
    (said,) = [r.getMessage() for r in caplog.records if r.name == "fl_app"]
    assert said.startswith(f"partition 2 sits out: moments of {field}: they move the federation's")


def test_two_liars_of_different_size_both_sit_out() -> None:
    """Beside the larger one the smaller one is small: so one after the other."""
    small, large = _tells(GOOD, mean=[1e6], m2=[0.0]), _tells(GOOD, mean=[1e60], m2=[0.0])
    roster, _ = _shake([_tells(GOOD), small, _tells(GOOD), large, _tells(GOOD)])
    assert [node.partition for node in roster] == [0, 2, 4]


def test_of_two_nodes_nobody_knows_which_is_out_of_line(caplog: pytest.LogCaptureFixture) -> None:
    """Both stay and both are named."""
    roster, _ = _shake([_tells(GOOD), _tells(GOOD, mean=[1e6])])
    assert len(roster) == 2
    (said,) = [r.getMessage() for r in caplog.records if r.name == "fl_app"]
    assert said.startswith("partition 0 and partition 1: moments of x: they move the federation's")


@pytest.mark.parametrize(
    ("dataset", "partitioner", "num_clients"),
    [
        ("digits", {"name": "dirichlet", "alpha": 0.1}, 50),
        ("digits", {"name": "shards"}, 20),
        ("wine", {"name": "quantity", "alpha": 0.1}, 10),
        ("breast_cancer", {"name": "dirichlet", "alpha": 0.05}, 20),
        ("diabetes", {"name": "dirichlet", "alpha": 0.1}, 20),
        ("heart_disease", {"name": "natural"}, 4),
        ("penguins", {"name": "natural"}, 3),
    ],
    ids=str,
)
def test_honest_nodes_are_in_line(dataset: str, partitioner: Any, num_clients: int) -> None:
    """The bound is ten times what the most skewed deals of real rows come to."""
    config = _config(num_clients=num_clients, dataset={"name": dataset}, partitioner=partitioner)
    parts = [partition_of(config, k).rows for k in range(num_clients)]
    parts = [rows for rows in parts if len(rows) >= config.min_rows]
    assert agreement._moves([moments(rows.numeric) for rows in parts]).max() < MAX_MOVE / 10


def test_the_majority_decides_and_the_lowest_partition_a_tie() -> None:
    """Two against one, whoever comes first; one against one, the lower partition."""
    roster, encoding = _shake([_tells(OTHER_COLUMNS), _tells(GOOD), _tells(GOOD)])
    assert [node.partition for node in roster] == [1, 2]
    assert encoding.columns == ("x",)
    roster, encoding = _shake([_tells(OTHER_COLUMNS), _tells(GOOD)])
    assert [node.partition for node in roster] == [0]
    assert encoding.columns == ("z",)


def test_classes_are_the_same_as_texts_and_as_numbers() -> None:
    """One text at one node makes texts of all; 0 and "0" are one class."""
    numbers, texts = _tells(_labelled([0, 1, 0, 1])), _tells(_labelled(["0", "1", "0", "x"]))
    roster, encoding = _shake([numbers, texts, numbers])
    assert [node.partition for node in roster] == [0, 1, 2]
    assert encoding.labels == ("0", "1", "x")
    np.testing.assert_allclose(roster.label_shares, [6 / 12, 5 / 12, 1 / 12])


def test_too_few_nodes_that_agree_are_an_error_with_the_reasons() -> None:
    """Below ``min_replies`` the run ends, and says who sat out and why."""
    answers = [_tells(GOOD), _tells(_measured([])), _tells(GOOD, code="ffff")]
    with pytest.raises(FederationError) as caught:
        _shake(answers, replace(_files(), min_replies=2))
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
        shake_hands(grid, grid.get_node_ids(), _config(num_clients=2), 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        f"node {node} sits out: no answer within 0 s" for node in sorted(grid.get_node_ids())
    ]


def test_a_node_that_is_not_there_is_named_by_its_id(caplog: pytest.LogCaptureFixture) -> None:
    """The SuperLink answers for a lost node; the warning names the node, not the SuperLink."""
    config = _config(num_clients=2)
    with InProcessGrid(client_app, 2) as grid:
        roster, _ = shake_hands(grid, [*grid.get_node_ids(), 4711], config, 60.0)
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
    record = protocol.run_record(text)
    record["code-digest"] = "another"
    monkeypatch.setattr(protocol, "run_record", lambda *_: record)
    answered = []

    class Spying(InProcessGrid):
        def send_and_receive(self, *args: Any, **kwargs: Any) -> list[Message]:
            answered.extend(super().send_and_receive(*args, **kwargs))
            return answered

    with Spying(client_app, 2) as grid, pytest.raises(FederationError, match="no training rows"):
        shake_hands(grid, grid.get_node_ids(), config, 60.0)
    assert [from_message(m) for m in answered] == [
        replace(foreign(k, 2), columns=[], numeric=[], categorical=[], targets=[]) for k in range(2)
    ]


def test_an_answer_reads_back_exactly() -> None:
    """Moments arrive to the last bit: the federation's scaler is the same everywhere."""
    rows = partition_of(_config(), 1)
    description = describe(rows, 1, 3, 2)
    back = from_message(reply_of(5, to_record(description)))
    found = moments(rows.rows.numeric)
    assert back.mean == found.mean.tolist()
    assert back.m2 == found.m2.tolist()
    assert back == Description(**json.loads(json.dumps(asdict(description))))


# ---------------------------------------------------------------------------- roster
def test_a_roster_is_sorted_and_knows_partitions_by_id() -> None:
    """Partitions are unique and in order; ids lead to them."""
    nodes = (Node(70, 0, 1, 0), Node(3, 2, 1, 0))
    roster = Roster(nodes)
    assert (len(roster), list(roster)) == (2, list(nodes))
    assert roster.partitions == {70: 0, 3: 2}
    for wrong in (nodes[::-1], (nodes[0], nodes[0])):
        with pytest.raises(ValueError, match="expected them sorted and unique"):
            Roster(wrong)
