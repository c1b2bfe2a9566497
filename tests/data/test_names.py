"""Names with company, end to end: a run's classes and rows, and what is said of the rest."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from fl_app.client_app import app as client_app
from fl_app.config.schema import Config
from fl_app.config.serialization import from_dict, to_dict
from fl_app.data.client_data import encode, partition_of, test_table
from fl_app.errors import FederationError
from fl_app.federation import protocol
from fl_app.federation.handshake import shake_hands
from fl_app.grid import InProcessGrid, run_in_process
from fl_app.server_app import app as server_app

test_table.__test__ = False  # type: ignore[attr-defined]  # a function of the package, no test


def _config(dataset: Mapping[str, Any], num_clients: int, **options: Any) -> Config:
    base = {"num_clients": num_clients, "dataset": dataset, "tracking": {"name": "none"}}
    return from_dict(base | {"num_server_rounds": 2} | options)


def _own(**dataset: Any) -> dict[str, Any]:
    """Make the dataset of nodes with files of their own."""
    return {"name": "tabular", "path": "unused.csv", "target": "y"} | dataset


def _files(folder: Path, *texts: str) -> dict[int, dict[str, str]]:
    """Write each node its file, and return the nodes' configurations."""
    for k, text in enumerate(texts):
        (folder / f"{k}.csv").write_text(text)
    return {k: {"data": str(folder / f"{k}.csv")} for k in range(len(texts))}


class _Diary:
    """Our client app, and what it replied: (what, partition, num-examples, left-out)."""

    def __init__(self, lie: Callable[[str, int, int], int] = lambda what, k, n: n) -> None:
        self.lines: list[tuple[str, int, int, int]] = []
        self.app, self._lie = ClientApp(), lie
        self.app.query("describe")(lambda message, context: client_app(message, context))
        self.app.train()(lambda message, context: self._noted("train", message, context))
        self.app.evaluate()(lambda message, context: self._noted("evaluate", message, context))

    def _noted(self, what: str, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        k = int(context.node_config["partition-id"])
        metrics = dict(reply.content.metric_records["metrics"])
        rows = int(metrics[protocol.NUM_EXAMPLES])  # type: ignore[arg-type]
        self.lines.append((what, k, rows, protocol.measures(reply).get(protocol.LEFT_OUT, 0)))
        if (told := self._lie(what, k, rows)) != rows:
            reply.content["metrics"] = MetricRecord({**metrics, protocol.NUM_EXAMPLES: told})
        return reply


def _run(config: Config, diary: _Diary, nodes: Any = None) -> dict[str, Any]:
    """Run a config in this process; return what ``result.json`` says."""
    launch = {"config": to_dict(config), "overrides": [], "sweep_id": "", "commit": "", "swept": []}
    run_in_process(
        server_app,
        diary.app,
        config.num_clients,
        {"config-json": json.dumps(launch)},
        node_configs=nodes,
    )
    found: dict[str, Any] = json.loads((Path(config.output_dir or "") / "result.json").read_text())
    return found


def _rows_and_classes(config: Config) -> tuple[int, int, tuple[Any, ...]]:
    """Return the clients' rows that take part, those left out, and the classes of the run."""
    with InProcessGrid(client_app, config.num_clients) as grid:
        roster, encoding = shake_hands(grid, grid.get_node_ids(), config, 60.0)
    assert [node.partition for node in roster] == list(range(config.num_clients))
    found = [encode(partition_of(config, k), encoding, "float64") for k in range(len(roster))]
    left_out = sum(rows.left_out + rows.left_out_eval for rows in found)
    return sum(len(rows.x) + len(rows.x_eval) for rows in found), left_out, encoding.labels


# ---------------------------------------------------------------------------- nothing is lost
@pytest.mark.parametrize("min_rows", [1, 5])
def test_digits_lose_no_class_and_no_row_among_fifty_skewed_clients(min_rows: int) -> None:
    """Names of a known set are public: whoever has few rows of a class keeps them."""
    skew = {"name": "dirichlet", "alpha": 0.1}
    config = _config({"name": "digits"}, 50, partitioner=skew, min_rows=min_rows)
    rows, left_out, classes = _rows_and_classes(config)
    assert rows + len(test_table(config)) == 1797
    assert (left_out, classes) == (0, tuple(range(10)))


def test_wine_among_fifty_is_refused_by_default_and_whole_with_a_smaller_floor() -> None:
    """142 rows are 2 or 3 for each of 50 clients: below ``min_rows``, which the error names."""
    with pytest.raises(FederationError) as caught:
        _rows_and_classes(_config({"name": "wine"}, 50))
    assert str(caught.value) == (
        "handshake: no node has min_rows=5 rows, so there are no moments to standardize with; set "
        "dataset.standardize=false or a smaller min_rows"
    )
    rows, left_out, classes = _rows_and_classes(_config({"name": "wine"}, 50, min_rows=1))
    assert (rows, left_out, classes) == (142, 0, (0, 1, 2))


THREE = [f"x,y\n1.{k},{label}\n2.{k},{label}\n3.{k},{label}\n" for k, label in enumerate("abc")]


@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        ({"min_level_rows": 3}, {"min_rows": 3}),
        ({"classes": ["a", "b", "c"], "standardize": False}, {}),
        ({"classes": ["a", "b", "c"]}, {"min_rows": 3}),
    ],
)
def test_three_nodes_of_one_class_each_make_a_federation(
    dataset: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    """A node's file may hold one class; told or named by the config, all 9 rows take part."""
    output = str(tmp_path / "out")
    config = _config(_own(val_fraction=0.34, **dataset), 3, output_dir=output, **options)
    with InProcessGrid(client_app, 3, node_configs=_files(tmp_path, *THREE)) as grid:
        roster, encoding = shake_hands(grid, grid.get_node_ids(), config, 60.0)
    assert encoding.labels == ("a", "b", "c")
    assert roster.label_shares == (1 / 3, 1 / 3, 1 / 3)
    assert [(n.num_examples, n.num_validation) for n in roster] == [(2, 1)] * 3


def test_three_nodes_of_one_class_each_are_told_what_to_do(tmp_path: Path) -> None:
    """By default none of them names its class, and the error says what would help."""
    config = _config(_own(standardize=False), 3)
    with (
        InProcessGrid(client_app, 3, node_configs=_files(tmp_path, *THREE)) as grid,
        pytest.raises(FederationError) as caught,
    ):
        shake_hands(grid, grid.get_node_ids(), config, 60.0)
    assert str(caught.value) == (
        "handshake: the nodes told of 0 classes, need 2: a node with fewer than min_rows=5 rows "
        "tells none, nor one of fewer than 5 of its rows; dataset.classes names them for all"
    )


# ---------------------------------------------------------------------------- what is left out
def _table(rows: Iterable[tuple[float, str, str]]) -> str:
    return "x,colour,y\n" + "".join(f"{x},{c},{y}\n" for x, c, y in rows)


PLAIN = _table((i, "red" if i % 3 else "blue", "no" if i % 2 else "yes") for i in range(24))
RARE = _table(
    (i, "PUCE" if i < 2 else "red", ("SECRET" if i < 3 else "no") if i % 2 else "yes")
    for i in range(24)
)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is logged, by whoever."""
    found: list[str] = []

    class Collects(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    log, handler = logging.getLogger("fl_app"), Collects(logging.WARNING)
    log.addHandler(handler)
    monkeypatch.setattr(log, "level", log.level)
    yield found  # type: ignore[misc]
    log.removeHandler(handler)


def test_a_node_leaves_rare_rows_out_says_so_and_weighs_less(
    tmp_path: Path, lines: list[str]
) -> None:
    """Row 1 is of a class nobody knows: 23 of 24 rows count; the node's log says it once."""
    nodes = _files(tmp_path, PLAIN, RARE)
    dataset = _own(categorical=["colour"], test_fraction=0, val_fraction=0.25)
    # The path of the config is for the server's own table, which must not matter to the nodes.
    dataset["path"] = nodes[0]["data"]
    diary = _Diary()
    result = _run(_config(dataset, 2, output_dir=str(tmp_path / "out")), diary, nodes)
    assert result["status"] == "FINISHED"
    sums = {
        k: [sum(line[2:]) for line in diary.lines if line[1] == k and line[0] == "train"]
        for k in (0, 1)
    }
    assert sums == {0: [18, 18], 1: [18, 18]}
    left = {(what, k): out for what, k, _, out in diary.lines if out}
    assert list(left.values()) == [1]
    assert {k for _, k in left} == {1}
    assert [line for line in lines if "partition" in line] == [
        "partition 1: y=SECRET (1 row): rows of these classes are left out",
        "partition 1: colour=PUCE (2 rows): these levels count as OTHER",
    ]


def test_dealt_rows_of_a_rare_class_are_named_once_on_the_terminal(
    tmp_path: Path, lines: list[str]
) -> None:
    """Clients, ``eval/`` and the server's test rows go without them; one line has their number."""
    path = tmp_path / "all.csv"
    path.write_text(PLAIN + "".join(f"{i},red,odd\n" for i in range(10)))
    config = _config(
        _own(path=str(path), features=["x"], test_fraction=0.3),
        2,
        output_dir=str(tmp_path / "out"),
        partitioner={"name": "iid"},
    )
    dealt = [np.sum(partition_of(config, k).rows.target == "odd") for k in (0, 1)]
    assert max(dealt) < 5
    assert sum(dealt) + np.sum(test_table(config).target == "odd") == 10
    diary = _Diary()
    assert _run(config, diary)["status"] == "FINISHED"
    named = [line for line in lines if "odd" in line]
    assert named == ["y=odd (10 rows): rows of these classes are left out"]
    assert sum(out for what, _, _, out in diary.lines if what == "train") > 0


# ---------------------------------------------------------------------------- a reply's weight
@pytest.mark.parametrize("strategy", ["fedavg", "fedmedian", "qfedavg", "local", "fedstacking"])
@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_a_client_that_claims_a_thousand_times_its_rows_is_dropped(
    strategy: str, what: str, tmp_path: Path, lines: list[str]
) -> None:
    """Its replies are faults, named, and no number has its weight in it."""

    def lie(told: str, k: int, n: int) -> int:
        return 1000 * n if told == what and k == 2 else n

    config = _config(
        {"name": "wine"},
        4,
        num_server_rounds=3,
        strategy={"name": strategy},
        output_dir=str(tmp_path / "out"),
    )
    diary = _Diary(lie)
    result = _run(config, diary)
    rows = {(told, k): n for told, k, n, _ in diary.lines}
    assert result["status"] == "FINISHED"
    assert [line for line in lines if "partition 2" in line] == [
        f"round {i}, {what}: reply of partition 2 dropped: num-examples={1000 * rows[what, 2]} and "
        f"left-out=0: expected {rows[what, 2]} and 0 rows, as in the handshake"
        for i in (1, 2, 3)
    ]
    assert not any("dropped" in line for line in lines if "partition 2" not in line)


def test_a_false_weight_moves_no_bit_beyond_a_missing_client(tmp_path: Path) -> None:
    """The run with the liar is, bit for bit, the run in which that client fails."""

    def fails(told: str, k: int, n: int) -> int:
        if told == "train" and k == 2:
            raise RuntimeError("away")
        return n

    digests = []
    for lie in (lambda told, k, n: 1000 * n if (told, k) == ("train", 2) else n, fails):
        output = str(tmp_path / f"out{len(digests)}")
        config = _config({"name": "wine"}, 4, output_dir=output)
        digests.append(_run(config, _Diary(lie))["weights_sha256"])
    assert digests[0] == digests[1]
