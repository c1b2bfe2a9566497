"""Which replies count, and in what order."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl_app.federation.replies import ReplySpec, accept, spec_of
from fl_app.grid.arrays import LazyArray, hold, read
from fl_app.grid.messages import sender
from tests.messages import NODE_IDS, asked_of, content_of, lost, reply_of, roster_of, sent_to

ARRAYS = {"coef": np.arange(6.0).reshape(2, 3), "intercept": np.array([1.0, 2.0])}
SPEC = ReplySpec(spec_of(hold(ARRAYS)), frozenset({"mse"}))
NAN, INF = float("nan"), float("inf")


def _good(node_id: int) -> Message:
    return reply_of(node_id, content_of(ARRAYS))


def _metrics(**values: Any) -> RecordDict:
    names = {name.replace("_", "-"): value for name, value in values.items()}
    return content_of(ARRAYS, {"mse": 0.5, "num-examples": 10} | names)


def _forged(key: str, value: Any) -> RecordDict:
    """Make a content whose metrics hold what Flower's setter would refuse."""
    content = content_of(ARRAYS)
    content["metrics"].__dict__["_data"][key] = value
    return content


def _arrays(**values: Any) -> RecordDict:
    return content_of({k: v for k, v in (ARRAYS | values).items() if v is not None})


def _bytes(data: bytes, stype: str = "numpy.ndarray") -> RecordDict:
    content = content_of(ARRAYS)
    content["arrays"]["coef"] = Array(dtype="float64", shape=(2, 3), stype=stype, data=data)
    return content


def _records(**records: Any) -> RecordDict:
    content = content_of(ARRAYS)
    for name, record in records.items():
        if record is None:
            del content[name]
        else:
            content[name] = record
    return content


def _npy(header: str, version: bytes = b"\x01\x00") -> bytes:
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


class _Trap:
    """An object whose unpickling writes a file."""

    path = ""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (Path(self.path), "sprung")


def _pickled(path: Path) -> bytes:
    _Trap.path = str(path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Trap()] * 6, dtype=object).reshape(2, 3), allow_pickle=True)
    return buffer.getvalue()


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
# What Flower's Ray engine sends in the place of a client's exception.
RAY = """<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ray::ClientAppActor.run()
  File "flwr/clientapp/client_app.py", line 161, in __call__
ValueError: of no interest

The above exception was the direct cause of the following exception:

  File "fl_app/client_app.py", line 66, in train
KeyError: 'column'

The above exception was the direct cause of the following exception:

ray::ClientAppActor.run() (pid=7)
    raise ClientAppException(str(ex)) from ex
flwr.clientapp.client_app.ClientAppException: \nException occurred. Message: 'column''>"""
FAULTS = [
    # what came
    ({"error": "it\n  broke"}, "the client failed: it broke"),
    ({"error": ""}, "the client failed: no reason given"),
    ({"error": RAY}, "the client failed: KeyError: 'column'"),
    ({}, "neither content nor an error"),
    # records
    ({"content": _records(metrics=None)}, "metric records []: expected ['metrics']"),
    (
        {"content": _records(more=MetricRecord({"mse": 1.0}))},
        "metric records ['metrics', 'more']: expected ['metrics']",
    ),
    (
        {"content": _records(metrics=None, other=MetricRecord({"mse": 1.0, "num-examples": 1}))},
        "metric records ['other']: expected ['metrics']",
    ),
    ({"content": _records(arrays=None)}, "array records []: expected ['arrays']"),
    (
        {"content": _records(arrays=None, weights=hold(ARRAYS))},
        "array records ['weights']: expected ['arrays']",
    ),
    (
        {"content": _records(second=hold(ARRAYS))},
        "array records ['arrays', 'second']: expected ['arrays']",
    ),
    # the weight
    (
        {"content": content_of(ARRAYS, {"mse": 0.5})},
        "num-examples=None: expected a positive number",
    ),
    ({"content": _metrics(num_examples=NAN)}, "num-examples=nan: expected a positive number"),
    ({"content": _metrics(num_examples=INF)}, "num-examples=inf: expected a positive number"),
    ({"content": _metrics(num_examples=0)}, "num-examples=0: expected a positive number"),
    ({"content": _metrics(num_examples=-3)}, "num-examples=-3: expected a positive number"),
    ({"content": _metrics(num_examples=[3])}, "num-examples=[3]: expected a positive number"),
    ({"content": _metrics(num_examples=1e300)}, "num-examples=1e+300: expected a positive number"),
    (
        {"content": _metrics(num_examples=10**400)},
        f"num-examples={10**400}"[:300],
    ),
    ({"content": _forged("num-examples", True)}, "num-examples=True: expected a positive number"),
    ({"content": _forged("num-examples", "9")}, "num-examples='9': expected a positive number"),
    # metrics
    ({"content": _metrics(mse=NAN)}, "metric mse=nan: expected a finite number"),
    ({"content": _metrics(mse=-INF)}, "metric mse=-inf: expected a finite number"),
    ({"content": _metrics(mse=[0.5])}, "metric mse=[0.5]: expected a finite number"),
    ({"content": _forged("mse", None)}, "metric mse=None: expected a finite number"),
    ({"content": _metrics(mae=1.0)}, "metrics ['mae', 'mse']: expected ['mse']"),
    ({"content": content_of(ARRAYS, {"num-examples": 1})}, "metrics []: expected ['mse']"),
    # arrays
    (
        {"content": _arrays(intercept=None)},
        "arrays ['coef']: expected ['coef', 'intercept']",
    ),
    (
        {"content": _arrays(bias=np.zeros(1))},
        "arrays ['bias', 'coef', 'intercept']: expected ['coef', 'intercept']",
    ),
    (
        {"content": _arrays(intercept=np.zeros(1))},  # would broadcast
        "array intercept has shape (1,): expected (2,)",
    ),
    (
        {"content": _arrays(intercept=np.array(1.0))},
        "array intercept has shape (): expected (2,)",
    ),
    (
        {"content": _arrays(coef=np.zeros((3, 2)))},
        "array coef has shape (3, 2): expected (2, 3)",
    ),
    (
        {"content": _arrays(coef=np.zeros((2, 3), np.float32))},
        "array coef has dtype float32: expected float64",
    ),
    (
        {"content": _arrays(coef=np.zeros((2, 3), ">f8"))},
        "array coef has dtype >f8: expected float64",
    ),
    (
        {"content": _arrays(coef=np.zeros((2, 3), np.int64))},
        "array coef has dtype int64: expected float64",
    ),
    (
        {"content": _arrays(coef=np.full((2, 3), NAN))},
        "array coef holds NaN or infinity: expected finite numbers",
    ),
    (
        {"content": _arrays(intercept=np.array([0.0, -INF]))},
        "array intercept holds NaN or infinity: expected finite numbers",
    ),
    # bytes
    ({"content": _bytes(b"")}, "arrays cannot be decoded: "),
    ({"content": _bytes(b"\x93NUMPY")}, "arrays cannot be decoded: "),
    ({"content": _bytes(b"PK\x03\x04 no zip")}, "arrays cannot be decoded: "),
    ({"content": _bytes(_npy("{'de("))}, "arrays cannot be decoded: "),
    ({"content": _bytes(_npy(HUGE))}, "arrays cannot be decoded: "),
    ({"content": _bytes(_npy("1" * 100))}, "arrays cannot be decoded: "),
    ({"content": _bytes(b"\x80\x04.")}, "arrays cannot be decoded: "),
    ({"content": _bytes(b"x", stype="pickle")}, "arrays cannot be decoded: "),
]


@pytest.mark.parametrize(("reply", "problem"), FAULTS, ids=[text[:60] for _, text in FAULTS])
def test_a_faulty_reply_is_dropped_with_one_warning(
    reply: dict[str, Any], problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The others count, in order; the one warning names the exchange, the partition and why."""
    roster = roster_of(3)
    replies = [_good(NODE_IDS[2]), reply_of(NODE_IDS[1], **reply), _good(NODE_IDS[0])]
    usable, dropped = accept(replies, asked_of(roster), SPEC, "round 3, train")
    assert [m.metadata.src_node_id for m in usable] == [NODE_IDS[0], NODE_IDS[2]]
    assert list(dropped) == [1]
    [record] = caplog.records
    assert record.levelname == "WARNING"
    said = record.getMessage()
    assert said == f"round 3, train: reply of partition 1 dropped: {dropped[1]}"
    assert "\n" not in said
    if problem.endswith("decoded: "):
        assert dropped[1].startswith(problem)
    else:
        assert dropped[1] == problem


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    """An array of objects, whose loading would run code, is refused unread."""
    trap = tmp_path / "trap"
    data = _pickled(trap)
    with io.BytesIO(data) as buffer:  # the trap works where pickle is allowed
        np.load(buffer, allow_pickle=True)
    assert trap.read_text() == "sprung"
    trap.unlink()
    for content in (_bytes(data), _bytes(pickle.dumps(_Trap()))):
        usable, dropped = accept(
            [reply_of(NODE_IDS[0], content)], asked_of(roster_of(1)), SPEC, "round 1, train"
        )
        assert usable == []
        assert dropped[0].startswith("arrays cannot be decoded: ")
    assert not trap.exists()


@given(
    data=st.binary(max_size=40), prefix=st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
)
def test_no_bytes_stop_a_round(data: bytes, prefix: bytes) -> None:
    """Whatever bytes stand for an array, the reply is dropped and the others count."""
    usable, dropped = accept(
        [reply_of(NODE_IDS[0], _bytes(prefix + data)), _good(NODE_IDS[1])],
        asked_of(roster_of(2)),
        SPEC,
        "round 1, train",
    )
    assert len(usable) == 1
    assert list(dropped) == [0]


@pytest.mark.parametrize(
    ("strange", "said"),
    [
        ([_good(4711)], ["x: reply of node 4711 dropped: it was not asked"]),
        (
            [_good(NODE_IDS[1])],
            ["x: reply of partition 1 dropped: a second reply of the same node"],
        ),
        (
            [reply_of(NODE_IDS[1], error="late")],
            ["x: reply of partition 1 dropped: a second reply of the same node"],
        ),
    ],
)
def test_a_reply_too_many_is_dropped(
    strange: list[Message], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A node that was not asked, or answers twice, changes nothing but the log."""
    replies = [_good(NODE_IDS[1]), _good(NODE_IDS[0]), *strange]
    usable, _ = accept(replies, asked_of(roster_of(2)), SPEC, "x")
    assert [m.metadata.src_node_id for m in usable] == [NODE_IDS[0], NODE_IDS[1]]
    assert [record.getMessage() for record in caplog.records] == said


def test_a_node_that_is_lost_or_silent_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The SuperLink answers for a lost node under an id of its own; a silent one is seen too."""
    roster = roster_of(3)
    sent = [sent_to(node.node_id) for node in roster]
    replies = [lost(NODE_IDS[2]), _good(NODE_IDS[0])]
    asked = [message.metadata for message in sent]
    assert [sender(reply, asked) for reply in replies] == [NODE_IDS[2], NODE_IDS[0]]
    usable, dropped = accept(replies, asked_of(roster), SPEC, "x", sent)
    assert len(usable) == 1
    assert dropped == {1: "no reply in time", 2: "the client failed: Node Unavailable"}
    assert [record.getMessage() for record in caplog.records] == [
        "x: reply of partition 2 dropped: the client failed: Node Unavailable",
        "x: no reply of partition 1 in time",
    ]


@given(order=st.permutations(range(6)))
def test_usable_replies_come_by_partition(order: list[int]) -> None:
    """The order of arrival is forgotten."""
    replies = [_good(NODE_IDS[k]) for k in order]
    usable, dropped = accept(replies, asked_of(roster_of(6)), SPEC, "x")
    assert [m.metadata.src_node_id for m in usable] == list(NODE_IDS[:6])
    assert dropped == {}


@pytest.mark.parametrize(
    "spec", [SPEC, ReplySpec(None, frozenset({"mse"}), check=lambda message: None)]
)
def test_arrays_are_decoded_once(spec: ReplySpec) -> None:
    """What the check has decoded is there for whoever reads the arrays next."""
    reply = _good(NODE_IDS[0])
    assert not any(isinstance(array, LazyArray) for array in reply.content["arrays"].values())
    [usable], _ = accept([reply], asked_of(roster_of(1)), spec, "x")
    first, second = (read(usable.content["arrays"]) for _ in range(2))
    assert first["coef"] is second["coef"]
    assert first["coef"].tolist() == ARRAYS["coef"].tolist()


@pytest.mark.parametrize(
    ("spec", "content", "problem"),
    [
        (ReplySpec(None, frozenset({"mse"})), content_of(None), None),
        (
            ReplySpec(None, frozenset({"mse"})),
            content_of(ARRAYS),
            "array records ['arrays']: expected []",
        ),
        (ReplySpec(None, None), content_of(None, {"any": 1.0, "num-examples": 1}), None),
        (ReplySpec(None, frozenset()), content_of(None, {"num-examples": 1}), None),
        (ReplySpec({}, None), _records(arrays=ArrayRecord()), None),
        (SPEC, _metrics(num_examples=0.5), None),
        (SPEC, _metrics(num_examples=np.float64(3)), None),
        (SPEC, _records(notes=ConfigRecord({"a": 1})), None),
        (SPEC, content_of({k: np.asfortranarray(a) for k, a in ARRAYS.items()}), None),
    ],
)
def test_a_reply_is_what_its_spec_says(
    spec: ReplySpec, content: RecordDict, problem: str | None
) -> None:
    """An evaluation has no arrays; weights may be fractions; other records are left alone."""
    usable, dropped = accept([reply_of(NODE_IDS[0], content)], asked_of(roster_of(1)), spec, "x")
    assert dropped.get(0) == problem
    assert len(usable) == (problem is None)
