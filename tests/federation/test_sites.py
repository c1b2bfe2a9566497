"""A table by site, as one file and as a file at each node: nobody is lost, and all have names."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fl_app.cli.jobs import Job, with_config
from fl_app.client_app import app as client_app
from fl_app.config.compose import compose_config
from fl_app.config.registry import builder_of
from fl_app.config.run_request import RunRequest
from fl_app.config.schema import Config
from fl_app.config.serialization import from_dict
from fl_app.data.client_data import own_partition, partition_of, whole_table
from fl_app.experiment.description import run_name
from fl_app.federation.handshake import shake_hands
from fl_app.grid import InProcessGrid, run_in_process
from fl_app.grid.view import GridView
from fl_app.home import home_dir
from fl_app.seeding import generator
from fl_app.server_app import app as server_app
from fl_app.tracking.journal_reader import JournalReader
from tests.end_to_end.support import server_context

BOTH = ["a", "b"] * 12
SITES = [BOTH, ["a"] * 20, ["b"], [*BOTH, "ODD"], ["ODD", "a", "ODD"], ["OWN"] * 20, ["ODD"], BOTH]
"""Labels by site: all, one class, one row, a rare class, few rows of it beside a known one, a class
of its own, one row of the rare class, and all again."""
RUNS = [
    ["fedavg"],
    ["local"],
    ["fedstacking", "strategy.base_models=[model,logistic,gaussian_nb,random_forest]"],
]
AT_THEIRS = ("runtime=deployment", "runtime.superlink=lab")


def _rows(site: str, labels: Sequence[str]) -> list[str]:
    """Return a line a label, with two features that tell classes apart."""
    rng = generator(0, site)
    centre = {"a": -1.0, "b": 1.0, "OWN": 3.0, "ODD": 0.0}
    return [f"{site},{centre[y] + rng.normal():.3f},{rng.normal():.3f},{y}" for y in labels]


def _write(path: Path, *sites: Sequence[str]) -> Path:
    path.write_text("\n".join(["site,x1,x2,y", *(row for rows in sites for row in rows)]) + "\n")
    return path


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect what is logged, by whoever, but for what only small sets bring about."""
    found: list[str] = []

    class Collects(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if "balanced_accuracy" not in text and "solve the sums" not in text:
                found.append(text)

    log, handler = logging.getLogger("fl_app"), Collects(logging.WARNING)
    log.addHandler(handler)
    monkeypatch.setattr(log, "level", log.level)
    yield found
    log.removeHandler(handler)


def _config(*words: str) -> Config:
    return compose_config(
        [
            *("dataset=tabular", "dataset.target=y", "partitioner=natural", "partitioner.key=site"),
            *("num_clients=3", "num_server_rounds=3", "tracking=none", *words),
        ]
    )


def _run(folder: Path, sites: Sequence[Sequence[str]], own: bool, *words: str) -> Path:
    """Run some sites, each with its file or all in one; return the run's folder."""
    words = (f"num_clients={len(sites)}", *words)
    if own:
        nodes: Any = {
            k: {"data": str(_write(folder / f"{k}.csv", rows))} for k, rows in enumerate(sites)
        }
        text = RunRequest(_config(*AT_THEIRS, *words)).to_json()
        with InProcessGrid(client_app, len(sites), node_configs=nodes) as grid:
            # Another class of grid than ours: to the ServerApp it is a deployment's.
            far = GridView(grid, sorted(grid.get_node_ids()))
            server_app(far, server_context({"config-json": text}))
    else:
        path = _write(folder / "all.csv", *sites)
        text = RunRequest(_config(f"dataset.path={path}", *words)).to_json()
        run_in_process(server_app, client_app, len(sites), {"config-json": text})
    return max((home_dir() / "runs").iterdir())


# ---------------------------------------------------------------------------- nobody is lost
@pytest.mark.parametrize("own", [False, True], ids=["one file", "a file each"])
@pytest.mark.parametrize("strategy", RUNS, ids=lambda words: words[0])
def test_one_row_or_one_class_never_costs_a_reply(
    strategy: list[str], own: bool, tmp_path: Path, lines: list[str]
) -> None:
    """All take part in each round; what the run has no class for is named once, or sits out."""
    sites = [_rows("pqrstuvw"[k], labels) for k, labels in enumerate(SITES)]
    folder = _run(tmp_path, sites, own, f"strategy={strategy[0]}", *strategy[1:])
    rare = {3: "1 row", 4: "2 rows", 6: "1 row"} if own else {None: "4 rows"}
    left_out = [
        f"{'' if k is None else f'partition {k}: '}y=ODD ({n}): rows of these classes are left out"
        for k, n in rare.items()
    ]
    why = "none of its training rows is of a class of the run: see dataset.classes"
    said = [*left_out, f"partition 6 sits out: num-examples=0 of 1: {why}"]
    assert sorted(lines) == sorted(said)
    rounds = [found["metrics"] for found, _ in JournalReader(folder).rounds()][1:]
    assert [r["cost/clients_asked"] for r in rounds] == [7] * 3
    assert [r["cost/clients_replied"] for r in rounds] == [7] * 3


def test_one_number_of_clients_serves_every_seed(tmp_path: Path) -> None:
    """Sites of one row stay whichever rows the seed draws for the test, the last site too."""
    sites = _rows("p", BOTH), _rows("q", "b"), _rows("r", "a")
    path = _write(tmp_path / "t.csv", *sites)
    sizes = set()
    config = _config(f"dataset.path={path}", "dataset.test_fraction=0.5")
    for seed in range(30):
        parts = [partition_of(replace(config, seed=seed), k).rows for k in range(3)]
        owners = [set(part.owners.tolist()) for part in parts if part.owners is not None]
        assert owners == [{0}, {1}, {2}]
        sizes.add(sum(map(len, parts)))
    # Of 26 rows 13 are the test's, but for one or two that would leave a site nothing.
    assert sizes == {13, 14, 15}


# ---------------------------------------------------------------------------- a site's own file
def test_a_sites_part_of_a_file_is_a_file_of_its_own(tmp_path: Path) -> None:
    """The key column is no feature there either, and a file without it is as good."""
    rows = _rows("Nowhere", BOTH)
    cut = _write(tmp_path / "cut.csv", rows)
    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(line.split(",", 1)[1] for line in cut.read_text().splitlines()))
    config = _config(*AT_THEIRS)
    found = [own_partition(config, 1, str(path)).rows for path in (cut, bare)]
    assert [table.columns for table in found] == [("x1", "x2")] * 2
    assert found[0].sha256 == found[1].sha256


def test_no_name_of_a_site_leaves_its_node(tmp_path: Path) -> None:
    """Neither the file's name nor its key column is in what a node answers."""
    answers: list[str] = []
    app = ClientApp()

    @app.query("describe")
    def query(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        answers.append(str(reply.content))
        return reply

    files = [_write(tmp_path / f"Secretville{k}.csv", _rows("Nowhere", BOTH)) for k in range(2)]
    nodes: Any = {k: {"data": str(path)} for k, path in enumerate(files)}
    config = _config(*AT_THEIRS, "num_clients=2")
    with InProcessGrid(app, 2, node_configs=nodes) as grid:
        roster, _ = shake_hands(grid, grid.get_node_ids(), config, 60.0)
    assert len(roster) == 2
    assert len(answers) == 4  # columns are agreed on first
    assert all("x1" in answer for answer in answers)
    assert not any("Nowhere" in answer or "Secretville" in answer for answer in answers)


# ---------------------------------------------------------------------------- names in the record
def _roster(folder: Path) -> dict[str, Any]:
    """Return the recorded table of who took part."""
    notes = [note["texts"] for note, _ in JournalReader(folder).notes()]
    (text,) = [texts[key] for texts in notes for key in texts if key == "clients/roster.json"]
    found: dict[str, Any] = json.loads(text)
    return found


def test_sites_keep_their_names_in_the_record(tmp_path: Path) -> None:
    """The key's value stands beside each partition of one file; a node of its own has none."""
    sites = [_rows(name, BOTH) for name in ("St. Mary", "Charité", "Ost")]
    table = _roster(_run(tmp_path, sites, False))
    assert table["columns"] == ["partition", "num_examples", "num_validation", "site"]
    assert [(row[0], row[3]) for row in table["data"]] == [
        (0, "Charité"),
        (1, "Ost"),
        (2, "St. Mary"),
    ]
    assert "site" not in _roster(_run(tmp_path, sites, True))["columns"]


def test_a_site_that_sits_out_does_not_move_the_names(tmp_path: Path) -> None:
    """A name is that of its partition, whoever else is there; numbers are names too."""
    sites = [_rows("10", BOTH), _rows("8", ["ODD"]), _rows("7", BOTH)]
    table = _roster(_run(tmp_path, sites, False))
    assert [(row[0], row[3]) for row in table["data"]] == [(0, "7"), (2, "10")]


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ("heart_disease", ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")),
        ("penguins", ("Biscoe", "Dream", "Torgersen")),
        ("digits", ()),
    ],
)
def test_known_natural_clients_have_names(dataset: str, names: tuple[str, ...]) -> None:
    """As the data set's own documentation calls its owners."""
    assert whole_table(from_dict({"dataset": {"name": dataset}})).owner_names == names


@pytest.mark.parametrize(
    ("words", "experiment", "end"),
    [
        (["dataset.path=/some/where/patients 2.csv"], "patients 2.csv", "softmax patients 2.csv"),
        (["dataset.path=/x/iris.csv.gz"], "iris.csv.gz", "softmax iris.csv.gz"),
        (["dataset.path=/x/p.csv", "tracking.experiment_name=mine"], "mine", "softmax p.csv"),
        (["dataset.path=/x/p.csv", *AT_THEIRS], "tabular", "softmax y"),
        (
            [*AT_THEIRS, "dataset.task=regression", "dataset.target=[y,z]"],
            "tabular",
            "linear y z",
        ),
    ],
)
def test_a_table_of_ones_own_is_in_the_names(words: list[str], experiment: str, end: str) -> None:
    """The experiment is the file's, and the run's name ends with it; nodes' files stay unnamed."""
    config = compose_config(
        [
            *("dataset=tabular", "dataset.target=y", "partitioner=natural", "partitioner.key=site"),
            *("num_clients=3", *words),
        ]
    )
    assert run_name(config).endswith(end)
    tracker = builder_of(config.tracking)(config, "")
    assert tracker is not None
    assert tracker.experiment_name == with_config(Job(0, (), ""), config).experiment == experiment
