"""What ``cost/bytes_up`` and ``cost/bytes_down`` count, held against real serialized messages."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fl_app.config.serialization import from_dict
from fl_app.grid import InProcessGrid
from tests.stacks import Ran, run

STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox", "proximal_mu": 0.001},
    "fedadam": {"name": "fedadam"},
    "qfedavg": {"name": "qfedavg"},
    "local": {"name": "local"},
    "fedstacking": {"name": "fedstacking", "base_models": ["logistic", "random_forest"]},
}
if find_spec("xgboost") is not None:
    STRATEGIES["fedxgbbagging"] = {"name": "fedxgbbagging"}


class Spy(InProcessGrid):
    """A grid that keeps what goes out and what comes back after the handshake."""

    down: ClassVar[list[RecordDict]] = []
    up: ClassVar[list[RecordDict]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if messages and messages[0].metadata.message_type in ("train", "evaluate"):
            Spy.down += [m.content for m in messages]
            Spy.up += [m.content for m in replies]
        return replies


@lru_cache
def ran(name: str, dataset: str) -> tuple[Ran, list[RecordDict], list[RecordDict]]:
    """Run a strategy and return what was sent down and up."""
    Spy.down, Spy.up = [], []
    config: dict[str, Any] = {
        "num_clients": 4,
        "num_server_rounds": 4,
        "dataset": {"name": dataset, "test_fraction": 0.0},
    }
    if dataset == "diabetes" and name == "fedstacking":
        config["strategy"] = {"name": name, "base_models": ["ridge"]}
    else:
        config["strategy"] = STRATEGIES[name]
    done = run(from_dict(config), grid=Spy)
    return done, Spy.down, Spy.up


def payload(content: RecordDict, reply: bool) -> tuple[int, int]:
    """Return the bytes of arrays' values and of all else that counts, by the protobuf message.

    An array travels as npy: magic, version and the length of its header are its first 10 bytes.
    """
    arrays = numbers = 0
    for item in recorddict_to_proto(content).items:
        for array in item.array_record.items:
            data = array.value.data
            arrays += len(data) - 10 - int.from_bytes(data[8:10], "little")
        numbers += 8 * len(item.metric_record.items)
        if reply:
            for entry in item.config_record.items:
                kind = entry.value.WhichOneof("value")
                value = getattr(entry.value, kind)
                numbers += 8 * len(value.vals) if kind == "double_list" else len(value)
    return arrays, numbers


@pytest.mark.parametrize("dataset", ["digits", "diabetes"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_costs_are_the_payload_of_the_messages(name: str, dataset: str) -> None:
    """Arrays to the byte, 8 bytes a number, sums and counts by their length: nothing else."""
    done, down, up = ran(name, dataset)
    cost = done.rounds[-1].cost
    arrays = [sum(payload(c, False)[0] for c in down), sum(payload(c, True)[0] for c in up)]
    others = [sum(payload(c, False)[1] for c in down), sum(payload(c, True)[1] for c in up)]
    assert others[0] == 0  # all else that goes down is the run's description
    assert cost["bytes_down"] == arrays[0]
    assert cost["bytes_up"] == arrays[1] + others[1]
    assert arrays[1] > 0
    assert others[1] > 0


@pytest.mark.parametrize("dataset", ["digits", "diabetes"])
def test_what_is_left_out_is_framing(dataset: str) -> None:
    """A message is larger by its config record, and at most 260 bytes an array, 60 a number."""
    for name in STRATEGIES:
        _, down, up = ran(name, dataset)
        for content, reply in [(c, False) for c in down] + [(c, True) for c in up]:
            whole = recorddict_to_proto(content).ByteSize()
            records = list(content.items())
            config = sum(
                recorddict_to_proto(RecordDict({n: r})).ByteSize()
                for n, r in records
                if isinstance(r, ConfigRecord) and not reply
            )
            num_arrays = sum(len(r) for _, r in records if isinstance(r, ArrayRecord))
            num_others = sum(len(r) for _, r in records if isinstance(r, MetricRecord)) + 3
            framing = whole - config - sum(payload(content, reply))
            assert 0 < framing <= 260 * num_arrays + 60 * num_others


@pytest.mark.parametrize("dataset", ["digits", "diabetes"])
def test_fedprox_sends_what_fedavg_sends(dataset: str) -> None:
    """Round by round the same, so that at equal bytes neither loses a round."""
    one, other = ran("fedavg", dataset)[0], ran("fedprox", dataset)[0]
    for name in ("bytes_up", "bytes_down"):
        assert [r.cost.get(name) for r in one.rounds] == [r.cost.get(name) for r in other.rounds]
    finals = [
        np.concatenate([a.ravel() for a in r.rounds[-1].arrays.values()]) for r in (one, other)
    ]
    assert not np.array_equal(*finals)  # though they learn different weights


def test_a_round_of_fedavg_is_its_model_four_times() -> None:
    """Digits: 650 numbers of 8 bytes down twice and up once, 4 metrics twice, one tally."""
    done, _, _ = ran("fedavg", "digits")
    model, metrics = 650 * 8, 2 * 4 * 8
    rows = [n.num_validation for n in done.roster]
    tally = 3 * 10 * 4 * 4 + 10 * sum(rows)  # counts of 10 classes, a byte a row and class
    assert min(rows) >= 5
    cost = done.rounds[1].cost
    assert cost["bytes_down"] == 4 * 2 * model
    assert cost["bytes_up"] == 4 * (model + metrics) + tally
