"""Who takes part in an exchange, and what a strategy sees of the grid."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fl_app.federation.roster import Node
from fl_app.federation.sampling import choose_cohort
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold
from fl_app.grid.view import GridView


def _nodes(num: int, ids: list[int] | None = None) -> list[Node]:
    return [Node(ids[k] if ids else 1000 + k, k, 10, 2) for k in range(num)]


def _chosen(num: int, fraction: float, at_least: int = 1, **where: int | str) -> list[int]:
    place = {"seed": 0, "purpose": "train", "server_round": 1} | where
    cohort = choose_cohort(_nodes(num), fraction, at_least, **place)  # type: ignore[arg-type]
    return [node.partition for node in cohort]


@given(num=st.integers(1, 40), fraction=st.floats(0, 1), at_least=st.integers(1, 50))
def test_a_cohort_is_as_large_as_flowers(num: int, fraction: float, at_least: int) -> None:
    """It has ``max(int(num * fraction), at_least)`` nodes if there are, sorted, each once."""
    chosen = _chosen(num, fraction, at_least)
    assert len(chosen) == min(num, max(int(num * fraction), at_least))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(num))


@pytest.mark.parametrize("fraction", [0.29, 0.5, 0.77, 1.0])
def test_the_size_is_what_flowers_fedavg_would_sample(fraction: float) -> None:
    """int(100 * 0.29) is 28 in floating point, in Flower and here."""
    strategy = FedAvg(fraction_train=fraction, min_train_nodes=1, min_available_nodes=1)
    with InProcessGrid(ClientApp(), 100) as grid:
        messages = list(strategy.configure_train(1, hold({}), ConfigRecord(), grid))
    assert len(_chosen(100, fraction)) == len(messages)


@given(ids=st.permutations(range(500, 512)), server_round=st.integers(1, 99))
def test_partitions_are_drawn_whatever_ids_nodes_have(ids: list[int], server_round: int) -> None:
    """Node ids are new in each run; the draw is over partitions."""
    one = choose_cohort(_nodes(12), 0.5, 1, 3, "train", server_round)
    two = choose_cohort(_nodes(12, ids), 0.5, 1, 3, "train", server_round)
    assert [n.partition for n in one] == [n.partition for n in two]
    assert [n.node_id for n in two] == [ids[n.partition] for n in two]


def test_rounds_purposes_and_seeds_draw_apart() -> None:
    """The same words give the same cohort, each other word another one."""
    base = _chosen(40, 0.5)
    assert _chosen(40, 0.5) == base
    assert _chosen(40, 0.5, server_round=2) != base
    assert _chosen(40, 0.5, purpose="evaluate") != base
    assert _chosen(40, 0.5, seed=1) != base


def test_every_node_has_its_turn() -> None:
    """Over 200 rounds of 5 in 10 each node is drawn about 100 times: within 5 sigma = 5 * 7.1."""
    counts = [0] * 10
    for server_round in range(1, 201):
        for partition in _chosen(10, 0.5, server_round=server_round):
            counts[partition] += 1
    assert sum(counts) == 1000
    assert all(abs(count - 100) < 36 for count in counts)


def test_all_nodes_are_no_draw() -> None:
    """A fraction of 1 takes everybody in order, in any round."""
    assert _chosen(7, 1.0, server_round=9) == list(range(7))


def test_a_view_shows_some_nodes_and_is_the_grid_otherwise() -> None:
    """Messages through a view reach the grid's clients; only the list of nodes is shorter."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        answer = RecordDict({"config": ConfigRecord({"partition": partition})})
        return Message(answer, reply_to=message)

    with InProcessGrid(app, 4) as grid:
        ids = grid.get_node_ids()
        shown = [ids[3], ids[1]]
        view = GridView(grid, shown)
        assert list(view.get_node_ids()) == [ids[3], ids[1]]
        shown.clear()
        assert len(list(view.get_node_ids())) == 2
        assert view.run == grid.run
        replies = view.send_and_receive([Message(RecordDict(), n, "query") for n in ids[:1]])
        assert [r.content["config"]["partition"] for r in replies] == [0]
        sent = view.push_messages([view.create_message(RecordDict(), "query", ids[2], "")])
        [reply] = view.pull_messages(sent)
        assert reply.content["config"]["partition"] == 2
        view.set_run(grid.run)
