"""Data stays: which file a client reads, and which it does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fl_app.client_app import app
from fl_app.config.serialization import from_dict, to_json
from fl_app.errors import InputError
from fl_app.federation import protocol
from fl_app.federation.description import Description, from_message
from fl_app.grid import InProcessGrid

SHIPPED = "age,y\n" + "".join(f"{30 + i},{i % 2}\n" for i in range(20))
OWN = "age,y\n" + "".join(f"{50 + i},{i % 2}\n" for i in range(8))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Write the file that the config names and one that a node owns."""
    shipped, own = tmp_path / "shipped.csv", tmp_path / "own.csv"
    shipped.write_text(SHIPPED)
    own.write_text(OWN)
    return shipped, own


def asked(shipped: Path, **dataset: Any) -> RecordDict:
    config = from_dict(
        {
            "num_clients": 2,
            "dataset": {
                "name": "tabular",
                "path": str(shipped),
                "target": "y",
                "test_fraction": 0.0,
                "val_fraction": 0.25,
            }
            | dataset,
        }
    )
    return RecordDict({protocol.CONFIG: protocol.run_record(to_json(config))})


def answer(content: RecordDict, node_config: dict[str, Any]) -> Description:
    """Ask a node outside of any in-process grid, as a SuperNode's process would be."""
    with InProcessGrid(app, num_supernodes=1):
        message = Message(content, 7, protocol.DESCRIBE)
    return from_message(app(message, Context(1, 7, node_config, RecordDict(), {})))


def test_a_node_reads_its_own_file(files: tuple[Path, Path]) -> None:
    """``data=`` in the node's configuration counts, whatever path the config ships."""
    shipped, own = files
    told = answer(asked(shipped), {"partition-id": 0, "data": str(own)})
    # All 8 rows are the node's; a quarter is kept for validation.
    assert (told.num_examples, told.num_validation) == (6, 2)


def test_a_nodes_file_is_told_by_few_bits(files: tuple[Path, Path]) -> None:
    """The same whatever the run asks for, and none of few rows: rows cannot be guessed by them."""
    shipped, own = files
    node = {"partition-id": 0, "data": str(own)}
    checks = {
        answer(asked(shipped, features=["age"], categorical=[], **wanted), node).file_check
        for wanted in ({}, {"standardize": False}, {"missing": "mean"}, {"val_fraction": 0.5})
    }
    (check,) = checks
    assert re.fullmatch("[0-9a-f]{4}", str(check))
    own.write_text("\n".join(OWN.splitlines()[:4]) + "\n")
    few = answer(asked(shipped, features=["age"], categorical=[]), node)
    assert few.num_examples
    assert few.file_check is None


def test_a_shipped_path_is_not_read_on_a_supernode(files: tuple[Path, Path]) -> None:
    """Without ``data=`` a SuperNode refuses, though the shipped path could be read."""
    with pytest.raises(InputError, match="node-config data="):
        answer(asked(files[0]), {"partition-id": 0})


def test_no_cell_leaves_in_an_error(files: tuple[Path, Path]) -> None:
    """What a node says of a file that it cannot use names the column and what is wanted only."""
    shipped, own = files
    own.write_text(OWN.replace("53", "Jane Doe"))
    content = asked(shipped, features=["age"], categorical=[])
    with pytest.raises(InputError, match="age=not told: ") as error:
        answer(content, {"partition-id": 0, "data": str(own)})
    assert "Jane Doe" not in str(error.value)
    assert "Jane Doe" in str(error.value.__cause__)


def test_no_path_leaves_in_an_error(files: tuple[Path, Path], tmp_path: Path) -> None:
    """A file that is not there is not named to the server."""
    with pytest.raises(InputError, match="node-config data=not told: there is no such") as error:
        answer(asked(files[0]), {"partition-id": 0, "data": str(tmp_path / "gone.csv")})
    assert "gone.csv" not in str(error.value)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", ["train", "evaluate", protocol.DESCRIBE])
def test_no_text_of_a_library_leaves_a_node_with_a_file(
    kind: str, own: bool, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries repeat cells: of their errors the server gets the class, wherever raised.

    Where rows are dealt, whoever reads the error has them: the text is told.
    """

    def fails(*_: Any) -> None:
        raise ValueError("could not convert string to float: 'Jane Doe'")

    for name in ("_federation", "_raw_rows", "own_columns"):
        monkeypatch.setattr(f"fl_app.client_app.{name}", fails)
    node_config = {"partition-id": 0} | ({"data": str(files[1])} if own else {})
    monkeypatch.setattr("fl_app.client_app.in_process", lambda: True)  # a shipped path counts
    with InProcessGrid(app, num_supernodes=1):
        message = Message(asked(files[0]), 7, kind)
        with pytest.raises(Exception, match="ValueError" if own else "Jane Doe") as error:
            app(message, Context(1, 7, node_config, RecordDict(), {}))
    # What Flower sends of an exception: flwr/supernode/runtime/run_clientapp.py.
    reason = f"{type(error.value)}:<'{error.value}'>"
    assert ("Jane Doe" in reason) == (not own)
    assert own == ("FlAppError'>:<'ValueError; the node's own log" in reason)
    assert not own or "Jane Doe" in str(error.value.__cause__)


def test_a_shipped_path_counts_in_process(files: tuple[Path, Path]) -> None:
    """In an in-process grid the whole federation is one user's: rows are dealt from the file."""
    with InProcessGrid(app, num_supernodes=2) as grid:
        content = asked(files[0])
        messages = [Message(content, node, protocol.DESCRIBE) for node in grid.get_node_ids()]
        told = [from_message(reply) for reply in grid.send_and_receive(messages)]
    assert sum(d.num_examples + d.num_validation for d in told) == 20
