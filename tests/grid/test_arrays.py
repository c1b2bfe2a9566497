"""Held arrays against stock ones: the same on every side that Flower can see."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import flwr.common.constant
import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.app.message import make_message
from flwr.common import serde
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fl_app.grid import arrays
from fl_app.grid.arrays import LazyArray, hold, read
from fl_app.grid.messages import metric_record, record_dict, reply, stamp
from fl_app.grid.private_copies import (
    Wrapped,
    is_used,
    private_content,
    private_context,
    private_message,
)

GRID = np.arange(24.0).reshape(2, 3, 4)
CASES: dict[str, NDArray[Any]] = {
    "c order": GRID.astype("f4"),
    "fortran order": np.asfortranarray(GRID),
    "strided": np.arange(20.0)[::3],
    "transposed slice": GRID.reshape(4, 6).T[:, ::2],
    "permuted": GRID.transpose(1, 2, 0),
    "reversed": np.arange(6.0)[::-1],
    "broadcast": np.broadcast_to(np.arange(3.0), (4, 3)),
    "scalar": np.array(3.0),
    "empty": np.zeros((0, 3)),
    "one column": np.zeros((5, 1)),
    "bool": np.array([True, False]),
    "integers": np.arange(5),
    "other byte order": np.arange(5, dtype=">f4"),
    "special values": np.array([np.nan, -0.0, np.inf]),
    "half": np.ones(3, "f2"),
    "complex": np.ones(3, complex),
    "struct": np.zeros(2, [("a", "i4"), ("b", "f8")]),
    "record": np.zeros(2, [("a", "i4"), ("b", "f8")]).view(np.recarray),
    "text": np.array(["ab", "c"]),
    "bytes": np.array([b"ab", b"c"]),
    "dates": np.array(["2026-01-01", "NaT"], "M8[D]"),
    "masked": np.ma.masked_array(np.arange(3.0), [False, True, False]),
    "read-only": np.frombuffer(b"abcd", "u1"),
}
OBJECTS = np.array([{}, None], object)

MAKERS: dict[str, Callable[[NDArray[Any]], LazyArray]] = {
    "copied": LazyArray,
    "given up": lambda ndarray: LazyArray(ndarray, copy=False),
    "wrapped": lambda ndarray: LazyArray.wrap(Array(ndarray)),
}

numbers = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)


@st.composite
def ndarrays(draw: st.DrawFn) -> NDArray[Any]:
    """Draw an ndarray in any memory order, with gaps or without."""
    dense = draw(hnp.arrays(numbers, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
    axes = draw(st.permutations(range(dense.ndim)))
    steps = tuple(slice(None, None, draw(st.sampled_from([1, 2, -1]))) for _ in axes)
    return np.asarray(dense.transpose(axes)[steps])


def observe(array: Array) -> dict[str, Any]:
    """List what Flower or a user can see of an array."""
    ndarray = array.numpy()
    return {
        "fields": dataclasses.asdict(array),
        "values": (ndarray.dtype, ndarray.shape, ndarray.tobytes("A")),
        "memory": (ndarray.flags.c_contiguous, ndarray.flags.f_contiguous, ndarray.flags.writeable),
        "class": type(ndarray),
        "object_id": array.object_id,
        "dirty": array.is_dirty,
        "deflated": array.deflate(),
        "children": list(array.children),
        "protobuf": serde.array_to_proto(array).SerializeToString(),
    }


def stock_record(arrays: dict[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(ndarray) for name, ndarray in arrays.items()})


def contents(arrays: ArrayRecord) -> RecordDict:
    return RecordDict(
        {
            "arrays": arrays,
            "metrics": MetricRecord({"loss": 1.5, "num-examples": 3, "history": [1.0, 2.0]}),
            "config": ConfigRecord({"classes": [1, 2], "name": "a", "flag": True}),
        }
    )


def message(content: RecordDict) -> Message:
    metadata = Metadata(7, "asked", 1, 9, "", "group", 1.8e9, 60.0, "train", 3, 4)
    return make_message(metadata, content)


# ----------------------------------------------------------------------------- one array


@pytest.mark.parametrize("make", MAKERS)
@settings(deadline=None)
@given(ndarray=ndarrays())
def test_any_ndarray_looks_like_stock(make: str, ndarray: NDArray[Any]) -> None:
    """A held array and a stock one of the same values differ in nothing that can be seen."""
    assert observe(MAKERS[make](ndarray)) == observe(Array(ndarray))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_unusual_ndarray_looks_like_stock(make: str, case: str) -> None:
    """The same for dtypes, classes and memory orders that are rarely seen."""
    assert observe(MAKERS[make](CASES[case])) == observe(Array(CASES[case]))


@pytest.mark.parametrize("make", MAKERS)
@settings(deadline=None)
@given(ndarray=ndarrays())
def test_view_has_the_memory_order_of_decoding(make: str, ndarray: NDArray[Any]) -> None:
    """Arithmetic on a view adds in the order in which it would after a wire."""
    view, decoded = MAKERS[make](ndarray).view(), Array(ndarray).numpy()
    assert (view.dtype, view.shape, view.tobytes("A")) == (
        decoded.dtype,
        decoded.shape,
        decoded.tobytes("A"),
    )
    assert (view.flags.c_contiguous, view.flags.f_contiguous) == (
        decoded.flags.c_contiguous,
        decoded.flags.f_contiguous,
    )


def test_encodes_only_when_bytes_are_read() -> None:
    """Nothing but the bytes, and what is made of them, needs an encoding."""
    array = LazyArray(GRID)
    _ = array.dtype, array.shape, array.stype, array.numpy(), array.view(), repr(array)
    assert copy.deepcopy(array) is array
    assert copy.copy(array) is array
    assert "data" not in vars(array)
    assert array.data == Array(GRID).data
    assert array.data is array.data


def test_decodes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapped array is decoded at its first use and never again."""
    load, calls = np.load, []

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return load(*args, **options)

    monkeypatch.setattr(np, "load", counting)
    array = LazyArray.wrap(Array(GRID))
    _ = array.dtype, array.shape, array.data, array.object_id
    assert calls == []
    _ = array.view(), array.numpy(), array.numpy()
    assert calls == [{"allow_pickle": False}]


@pytest.mark.parametrize("make", MAKERS)
def test_cannot_be_changed(make: str) -> None:
    """No field can be set, and the view stays read-only."""
    array = MAKERS[make](GRID)
    for name, value in dataclasses.asdict(array).items():
        with pytest.raises(AttributeError, match=rf"LazyArray\.{name} cannot be set"):
            setattr(array, name, value)
    with pytest.raises(ValueError, match="read-only"):
        array.view()[...] = 0
    if make != "given up":  # there the caller's own buffer lies below
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.view().flags.writeable = True


@pytest.mark.parametrize("make", ["copied", "wrapped"])
def test_shares_no_memory_that_can_be_written(make: str) -> None:
    """Neither the source nor a result of ``numpy()`` reaches into a held array."""
    source = GRID.copy()
    array = MAKERS[make](source)
    source += 1
    decoded = array.numpy()
    decoded += 1
    assert np.array_equal(array.view(), GRID)
    assert source.flags.writeable


def test_gives_up_a_buffer_without_copying() -> None:
    """``copy=False`` keeps the buffer itself and leaves the caller's ndarray as it was."""
    source = GRID.copy()
    assert np.shares_memory(LazyArray(source, copy=False).view(), source)
    assert source.flags.writeable


@pytest.mark.parametrize("module", [pickle, cloudpickle])
@pytest.mark.parametrize("make", MAKERS)
def test_pickle_arrives_as_stock(make: str, module: Any) -> None:
    """Another process needs no class of ours to read one."""
    array = MAKERS[make](GRID)
    arrived = module.loads(module.dumps(array))
    assert type(arrived) is Array
    assert arrived == array
    assert b"fl_app" not in module.dumps(array)


def test_equality() -> None:
    """Equality is that of the four fields, from both sides; nothing else is equal."""
    stock, array, other = Array(GRID), LazyArray(GRID), LazyArray(GRID + 1)
    assert array == stock
    assert stock == array
    assert array == LazyArray(GRID)
    assert array != other
    assert other != stock
    assert stock != other
    assert array != GRID.tolist()
    with pytest.raises(TypeError, match="unhashable"):
        hash(array)


@pytest.mark.parametrize("wrong", [OBJECTS, [1.0], np.float64(1)])
@pytest.mark.parametrize("copied", [True, False])
def test_refuses_what_stock_refuses(wrong: Any, copied: bool) -> None:
    """Python objects and what is no ndarray raise what they raise in a stock array."""
    with pytest.raises((TypeError, ValueError)) as stock:
        Array(wrong)
    with pytest.raises(stock.type):
        LazyArray(wrong, copied)
    with pytest.raises(stock.type):
        hold({"w": wrong}, copied)


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (2,), "numpy.ndarray", b""),
        Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY nonsense"),
        Array("float32", (2,), "torch.Tensor", b"bytes"),
        Array("", (), "numpy.ndarray", Array(GRID).data),
    ],
    ids=["no bytes", "wrong bytes", "other encoding", "legacy: no dtype"],
)
def test_wrap_takes_any_array(array: Array) -> None:
    """Wrapping looks at nothing: fields stay, and reading fails as it does for stock."""

    def outcome(array: Array) -> Any:
        try:
            return array.numpy().tolist()
        except (TypeError, ValueError, EOFError) as error:
            return type(error)

    wrapped = LazyArray.wrap(array)
    assert dataclasses.asdict(wrapped) == dataclasses.asdict(array)
    assert (wrapped.object_id, wrapped.deflate()) == (array.object_id, array.deflate())
    assert outcome(wrapped) == outcome(array)
    assert LazyArray.wrap(wrapped) is wrapped


class Bomb:
    """An object that acts when it is unpickled."""

    times = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Bomb, "times", 1)


def test_no_pickle_is_loaded() -> None:
    """Bytes that hold a pickle are refused, not run, by stock and held arrays alike."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], object), allow_pickle=True)
    array = Array("object", (1,), "numpy.ndarray", buffer.getvalue())
    record = ArrayRecord({"w": array})
    for look in (array.numpy, LazyArray.wrap(array).view, lambda: read(record)):
        with pytest.raises(ValueError, match="pickle"):
            look()
    assert Bomb.times == 0


# ----------------------------------------------------------------------------- records


@settings(deadline=None)
@given(arrays=st.dictionaries(st.text(max_size=3), ndarrays(), max_size=3))
def test_hold_is_the_stock_record(arrays: dict[str, NDArray[Any]]) -> None:
    """``hold`` gives the record that Flower would make of encoded arrays."""
    record, stock = hold(arrays), stock_record(arrays)
    assert record == stock
    assert list(record) == list(stock)
    assert record.count_bytes() == stock.count_bytes()
    assert (record.object_id, record.is_dirty) == (stock.object_id, stock.is_dirty)
    assert all(type(array) is LazyArray for array in record.values())


def test_wire_sees_no_difference() -> None:
    """Protobuf, object tree and inflated content of a message are those of stock arrays."""
    arrays = {"w": GRID, "b": np.zeros(3, "f4")}
    ours, stock = contents(hold(arrays)), contents(stock_record(arrays))
    assert serde.recorddict_to_proto(ours).SerializeToString(
        deterministic=True
    ) == serde.recorddict_to_proto(stock).SerializeToString(deterministic=True)
    assert get_object_tree(ours) == get_object_tree(stock)
    objects = {name: obj.deflate() for name, obj in get_all_nested_objects(ours).items()}
    assert objects == {name: obj.deflate() for name, obj in get_all_nested_objects(stock).items()}
    arrived = inflate_object_from_contents(ours.object_id, objects)
    assert arrived == stock
    for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert other == stock


def test_arrays_of_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array longer than Flower's chunk is cut into the same chunks."""
    name = "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"
    assert hasattr(flwr.common.constant, name)
    monkeypatch.setattr(f"flwr.app.message.array.{name}", 64)
    assert len(Array(GRID).children) > 2
    assert observe(LazyArray(GRID)) == observe(Array(GRID))


def test_record_can_be_changed_like_a_stock_one() -> None:
    """A held record takes, checks and drops items, and its ``object_id`` follows."""
    record, stock = hold({"w": GRID, "b": GRID}), stock_record({"w": GRID, "b": GRID})
    before = record.object_id
    for changed in (record, stock):
        changed["v"] = Array(GRID + 1)
        del changed["b"]
        with pytest.raises(TypeError):
            changed["u"] = GRID  # type: ignore[assignment]
        with pytest.raises(TypeError):
            changed[3] = Array(GRID)  # type: ignore[index]
    assert record == stock
    assert record.object_id == stock.object_id != before
    assert hold({}) == {}


def test_copying_constructor_encodes() -> None:
    """``ArrayRecord(dict)`` gives equal stock arrays: the trap that ``hold`` avoids."""
    record = hold({"w": GRID})
    again = ArrayRecord(dict(record))
    assert again == record
    assert type(again["w"]) is Array
    assert type(record.copy()["w"]) is LazyArray


def test_hold_refuses_a_name_that_is_no_str() -> None:
    """Names are checked as Flower's record checks them."""
    wrong: Any = {3: GRID}
    with pytest.raises(TypeError, match="must be str"):
        hold(wrong)


@pytest.mark.parametrize("make", [hold, stock_record])
def test_read_gives_read_only_arrays(make: Callable[..., ArrayRecord]) -> None:
    """Held and stock records read alike: in order, read-only, or as copies that are one's own."""
    arrays = {"w": GRID, "b": np.asfortranarray(GRID)}
    record = make(arrays)
    seen, own = read(record), read(record, writable=True)
    assert list(seen) == list(own) == list(arrays)
    for name, ndarray in arrays.items():
        assert np.array_equal(seen[name], ndarray)
        assert not seen[name].flags.writeable
        own[name] += 1
    assert record == stock_record(arrays)


def test_read_hands_held_arrays_over() -> None:
    """Reading a held record costs no copy."""
    record = hold({"w": GRID})
    assert read(record)["w"] is read(record)["w"]


# ----------------------------------------------------------------------------- builders

scalars = st.one_of(
    st.floats(),
    st.integers(),
    st.booleans(),
    st.text(max_size=2),
    st.none(),
    st.just(np.float64(1.5)),
    st.just(np.float32(1.5)),
    st.just(np.int64(2)),
)
names = st.one_of(st.text(max_size=2), st.integers(0, 2))
anything = st.dictionaries(names, st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=3)
records = st.sampled_from(
    [hold({"w": GRID}), MetricRecord({"loss": 1.0}), ConfigRecord({"lr": 0.1}), {"loss": 1.0}, None]
)


def outcome(make: Callable[[Any], Any], items: dict[Any, Any]) -> Any:
    """Return what a constructor makes of its items, or the class of what it raises."""
    try:
        made = make(dict(items))
    except TypeError:
        return TypeError
    return type(made), {name: repr(value) for name, value in made.items()}, set(vars(made))


@settings(deadline=None)
@given(items=anything)
def test_metric_record_is_flowers(items: dict[Any, Any]) -> None:
    """``metric_record`` makes and refuses what ``MetricRecord`` makes and refuses."""
    assert outcome(metric_record, items) == outcome(MetricRecord, items)


@settings(deadline=None)
@given(items=st.dictionaries(names, records, max_size=3))
def test_record_dict_is_flowers(items: dict[Any, Any]) -> None:
    """``record_dict`` makes and refuses what ``RecordDict`` makes and refuses."""
    assert outcome(record_dict, items) == outcome(RecordDict, items)


def test_builders_do_not_keep_the_callers_dict() -> None:
    """A record does not change when the dict that it was made from does."""
    metrics: dict[str, Any] = {"loss": 1.0}
    parts: dict[str, Any] = {"metrics": metric_record(metrics)}
    content = record_dict(parts)
    metrics["loss"], parts["more"] = 2.0, ConfigRecord()
    assert content == RecordDict({"metrics": MetricRecord({"loss": 1.0})})


def test_reply_is_flowers() -> None:
    """``reply`` has the fields of ``Message(..., reply_to=...)`` and the same time of expiry."""
    asked, content = message(RecordDict()), RecordDict()
    before = copy.deepcopy(vars(asked.metadata))
    ours, stock = reply(asked, content), Message(content, reply_to=asked)
    a, b = vars(ours.metadata).copy(), vars(stock.metadata).copy()
    expiries = [part["_created_at"] + part["_ttl"] for part in (a, b)]
    assert expiries == pytest.approx([asked.metadata.created_at + asked.metadata.ttl] * 2)
    assert 0 <= b["_created_at"] - a["_created_at"] < 60
    for part in (a, b):
        del part["_created_at"], part["_ttl"]
    assert a == b
    assert vars(ours).keys() == vars(stock).keys()
    assert ours.content is content
    assert not ours.has_error()
    assert vars(asked.metadata) == before


def test_reply_leaves_marks_of_delivery_behind() -> None:
    """A reply to a delivered message is itself not delivered."""
    asked = message(RecordDict())
    asked.metadata.delivered_at = "now"
    assert reply(asked, RecordDict()).metadata.delivered_at == ""


# --------------------------------------------------------------- Flower's private layout


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        (hold({"w": GRID}), stock_record({"w": GRID})),
        (metric_record({"loss": 1.0}), MetricRecord({"loss": 1.0})),
        (record_dict({"m": MetricRecord()}), RecordDict({"m": MetricRecord()})),
        (private_content(RecordDict()), RecordDict()),
    ],
)
def test_records_have_flowers_layout(ours: Any, stock: Any) -> None:
    """Every private field of a record that Flower makes is one that our builders know."""
    known = {"_check_key_fn", "_check_value_fn", "_data"}
    cached = {"_is_dirty", "_object_id"}  # made again where they are missing
    assert set(vars(ours)) - cached == set(vars(stock)) - cached == known
    assert type(vars(stock)["_data"]) is dict
    for name in ("_check_key_fn", "_check_value_fn"):
        assert vars(ours)[name] is vars(stock)[name]


def test_messages_have_flowers_layout() -> None:
    """Every private field of a message and its metadata is one that our builders know."""
    stock = message(RecordDict())
    assert set(vars(stock)) == {"_metadata", "_content", "_error"}
    properties = {name for name, kind in vars(Metadata).items() if isinstance(kind, property)}
    assert {name.removeprefix("_") for name in vars(stock.metadata)} == properties
    for made in (private_message(stock), reply(stock, RecordDict())):
        assert vars(made).keys() == vars(stock).keys()
        assert vars(made.metadata).keys() == vars(stock.metadata).keys()
    fields = {name: f"{name}!" for name in sorted(properties)}
    stamp(stock, **fields)
    assert {name: getattr(stock.metadata, name) for name in properties} == fields


def test_stock_arrays_have_four_fields() -> None:
    """The fields that a held array stands for are all that a stock array has."""
    fields = tuple(field.name for field in dataclasses.fields(Array))
    assert fields == arrays._FIELDS
    assert set(vars(Array(GRID))) - {"_is_dirty"} == set(fields)


# ----------------------------------------------------------------------------- privacy


@pytest.mark.parametrize("make", [hold, stock_record])
def test_private_content_shares_nothing(make: Callable[..., ArrayRecord]) -> None:
    """Whatever is done to a private content, the original stays equal to what it was."""
    original, untouched = contents(make({"w": GRID})), contents(make({"w": GRID}))
    own = private_content(original)
    assert own == original
    assert own.object_id == original.object_id
    history: Any = own.metric_records["metrics"]["history"]
    history.append(3.0)
    classes: Any = own.config_records["config"]["classes"]
    classes.clear()
    own.config_records["config"]["name"] = "b"
    own.array_records["arrays"]["w"] = Array(GRID + 1)
    own.array_records["arrays"]["v"] = Array(GRID)
    own["more"] = MetricRecord()
    assert original == untouched
    assert own != original


def test_private_contents_share_one_decoding() -> None:
    """With one memory, copies share an array, and so its decoding; without, they do not."""
    array = Array(GRID)
    content = RecordDict({"a": stock_record({}), "b": ArrayRecord(), "c": hold({"w": GRID})})
    content.array_records["a"]["w"] = content.array_records["b"]["w"] = array
    memory: Wrapped = {}
    first, second = private_content(content, memory), private_content(content, memory)
    one = first.array_records["a"]["w"]
    assert one is first.array_records["b"]["w"] is second.array_records["a"]["w"]
    assert one is not private_content(content).array_records["a"]["w"]
    assert first.array_records["c"]["w"] is content.array_records["c"]["w"]


@pytest.mark.parametrize(
    ("change", "used"),
    [
        (lambda context: None, False),
        (lambda context: context.node_config.update({"partition-id": 3}), True),
        (lambda context: context.run_config.clear(), True),
        (lambda context: setattr(context, "node_id", 4), True),
        (lambda context: setattr(context, "extra", 1), True),
        (lambda context: context.state.update({"n": MetricRecord({"n": 1})}), True),
        (lambda context: setattr(context, "state", RecordDict()), False),
    ],
)
def test_a_used_context_is_told(change: Callable[[Context], None], used: bool) -> None:
    """Whatever a client did to its context shows; what it left as it was does not."""
    before = Context(1, 2, {"partition-id": 0}, RecordDict(), {"lr": 0.1}, 5)
    context = private_context(before)
    change(context)
    assert is_used(context, before) is used
    assert is_used(before, context) is used


def test_private_context_shares_nothing() -> None:
    """Configs and state are copies; what somebody added to a context is kept."""
    original = Context(1, 2, {"partition-id": 0}, contents(hold({"w": GRID})), {"lr": 0.1}, 5)
    vars(original)["extra"] = "kept"
    before = copy.deepcopy(original)
    own = private_context(original)
    assert own == original
    assert vars(own)["extra"] == "kept"
    own.node_config["partition-id"] = 3
    own.run_config["lr"] = 0.2
    del own.state["arrays"]
    own.node_id = 4
    assert original == before
