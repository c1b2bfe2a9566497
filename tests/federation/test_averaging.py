"""One pass over checked replies gives the records of Flower's own FedAvg, to the last bit."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    Krum,
    QFedAvg,
    Strategy,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fl_app.federation.averaging import average_evaluate, average_train, messages_to
from fl_app.grid import InProcessGrid
from fl_app.grid.arrays import hold, read

from .messages import NODE_IDS, content_of, reply_of

ALL: dict[str, Any] = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
DTYPES = st.sampled_from([np.float64, np.float32, np.int64])


@st.composite
def federations(draw: st.DrawFn) -> list[tuple[dict[str, NDArray[Any]], dict[str, Any]]]:
    """Draw the arrays and metrics of some clients: one layout, any numbers."""
    names = draw(st.lists(st.text("abw/.", min_size=1, max_size=3), min_size=1, unique=True))
    layout = {
        name: (draw(DTYPES), draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
        for name in names
    }
    told = draw(st.lists(st.sampled_from(["loss", "acc", "brier"]), unique=True))

    def client() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays = {}
        for name, (dtype, shape) in layout.items():
            whole = draw(hnp.arrays(dtype, shape, elements=st.integers(-999, 999)))
            arrays[name] = whole if dtype is np.int64 else np.asarray(whole / dtype(7))
        metrics = {name: draw(NUMBERS) for name in told}
        return arrays, metrics | {"num-examples": draw(st.integers(1, 10**6))}

    return [client() for _ in range(draw(st.integers(1, len(NODE_IDS))))]


def messages(
    clients: list[tuple[dict[str, NDArray[Any]], dict[str, Any]]], arrays: bool = True
) -> list[Message]:
    return [
        reply_of(NODE_IDS[k], content_of(own if arrays else None, metrics))
        for k, (own, metrics) in enumerate(clients)
    ]


def same(ours: MetricRecord | None, flowers: MetricRecord | None) -> bool:
    assert ours is not None
    assert flowers is not None
    return list(ours.items()) == list(flowers.items())


@given(clients=federations(), kind=st.sampled_from([FedAvg, FedProx]))
def test_training_is_flowers(clients: Any, kind: type[FedAvg]) -> None:
    """Arrays, their order and dtypes, and metrics are those of ``aggregate_train``."""
    strategy = kind(**ALL) if kind is FedAvg else FedProx(proximal_mu=0.1, **ALL)
    arrays, metrics = strategy.aggregate_train(1, messages(clients))
    found = average_train(strategy, messages(clients))
    assert found is not None
    assert arrays is not None
    flowers = {name: array.numpy() for name, array in arrays.items()}
    own = read(found[0])
    assert list(own) == list(flowers)
    for name, array in own.items():
        assert (array.dtype, array.shape) == (flowers[name].dtype, flowers[name].shape)
        assert array.tobytes() == flowers[name].tobytes()
    assert same(found[1], metrics)


@given(clients=federations())
def test_evaluation_is_flowers(clients: Any) -> None:
    """Metrics are those of ``aggregate_evaluate``."""
    strategy = FedAvg(**ALL)
    replies = messages(clients, arrays=False)
    assert same(average_evaluate(strategy, replies), strategy.aggregate_evaluate(1, replies))


def own_messages(
    strategy: Strategy, what: Literal["train", "evaluate"], node_ids: list[int]
) -> list[Message] | None:
    config = ConfigRecord({"lr": 0.1})
    return messages_to(strategy, what, 3, hold({"w": np.ones(2)}), config, node_ids)


@pytest.mark.parametrize("what", ["train", "evaluate"])
@pytest.mark.parametrize("num_nodes", [1, 2, 5])
def test_messages_are_flowers(what: Literal["train", "evaluate"], num_nodes: int) -> None:
    """Contents and metadata are those of ``configure_train`` and ``configure_evaluate``."""
    app = ClientApp()
    strategy = FedAvg(arrayrecord_key="model", configrecord_key="told", **ALL)
    with InProcessGrid(app, num_nodes) as grid:
        node_ids = grid.get_node_ids()
        found = own_messages(strategy, what, node_ids)
        configure = getattr(strategy, f"configure_{what}")
        asked = configure(3, hold({"w": np.ones(2)}), ConfigRecord({"lr": 0.1}), grid)
        flowers = {m.metadata.dst_node_id: m for m in asked}
        assert found is not None
        assert [m.metadata.dst_node_id for m in found] == node_ids
        assert len({id(m.metadata) for m in found}) == num_nodes
        for message in found:
            flower = flowers[message.metadata.dst_node_id]
            assert message.content == flower.content
            assert message.content is found[0].content
            created = {"_created_at": 0.0}
            assert vars(message.metadata) | created == vars(flower.metadata) | created


class Own(FedAvg):
    def aggregate_train(self, *args: Any) -> Any:
        return None, None


class Asking(FedAvg):
    def configure_train(self, *args: Any) -> Any:
        return []


@pytest.mark.parametrize(
    "strategy",
    [
        Asking(**ALL),
        FedProx(proximal_mu=0.1, **ALL),
        FedAvg(fraction_train=0.5, **ALL),
        FedAvg(fraction_train=0.0, **ALL),
        FedAvg(min_train_nodes=1, min_available_nodes=3),
        FedAvg(min_train_nodes=3, min_available_nodes=1),
    ],
    ids=["own", "fedprox", "half", "none", "available", "least"],
)
def test_other_strategies_ask_themselves(strategy: Strategy) -> None:
    """Whoever does not ask all nodes, or tells them more, makes the messages."""
    with InProcessGrid(ClientApp(), 2) as grid:
        assert own_messages(strategy, "train", grid.get_node_ids()) is None


@pytest.mark.parametrize(
    "strategy",
    [
        Own(**ALL),
        FedAvg(train_metrics_aggr_fn=lambda *_: MetricRecord({}), **ALL),
        FedMedian(**ALL),
        Krum(**ALL),
        QFedAvg(client_learning_rate=0.1, **ALL),
        FedAvgM(**ALL),
        FedAdam(**ALL),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_other_strategies_do_it_themselves(strategy: Strategy) -> None:
    """Whatever is not FedAvg's own way of averaging is left to the strategy."""
    clients = [({"w": np.ones(2)}, {"loss": 1.0, "num-examples": 3})] * 2
    assert average_train(strategy, messages(clients)) is None


def test_replies_without_the_weight_are_left_to_flower() -> None:
    """A strategy that weighs by another key, or replies that lack it, are not averaged here."""
    clients = [({"w": np.ones(2)}, {"loss": 1.0, "num-examples": 3})] * 2
    assert average_train(FedAvg(weighted_by_key="rows", **ALL), messages(clients)) is None
