"""What travels between server and clients: keys, configs and arrays, and nothing that runs.

Every message carries an ArrayRecord ``arrays``, a ConfigRecord ``config`` or a MetricRecord
``metrics``. Keys are kebab-case here and snake_case in Python; the change happens in this file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from numpy.typing import NDArray

from fl_app.config.plugins import digest_of
from fl_app.config.schema import Config
from fl_app.config.serialization import from_json
from fl_app.data.encoding import Encoding
from fl_app.grid.arrays import hold, items_of, read
from fl_app.grid.messages import Record, metric_record, record_dict, records_of
from fl_app.grid.messages import reply as make_reply

__all__ = [
    "ARRAYS",
    "CONFIG",
    "DESCRIBE",
    "LACKS",
    "LEARNING_RATE",
    "LEFT_OUT",
    "MEASURES",
    "METRICS",
    "NUM_EXAMPLES",
    "TRAIN_LOSS",
    "StackRequest",
    "center",
    "code_digest",
    "learning_rate",
    "measures",
    "own_code",
    "read_arrays",
    "read_config",
    "read_encoding",
    "reply",
    "run_digest",
    "run_record",
    "same_code",
    "server_round",
    "setting",
    "stack_request",
    "texts",
]

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
"""Names of the records in a message (Flower's defaults)."""
MEASURES = "measures"
"""Sums and counts in a reply, for the server to add up: a ConfigRecord, no strategy reads it."""
LEFT_OUT = "left-out"
"""Rows that a client left out of its work, in its measures; 0 where it says nothing."""
LEARNING_RATE = "learning-rate"
"""The round's step where the config says ``auto``, in the config of a training message."""
NUM_EXAMPLES = "num-examples"
"""The weight of a reply, in its metrics (Flower's default)."""
TRAIN_LOSS = "train_loss"
"""The loss at the start of local training, which q-FedAvg weighs clients by (Flower's default)."""
DESCRIBE = "query.describe"
"""Message type of the handshake."""

_CONFIG_JSON, _ENCODING_JSON, _DIGEST = "config-json", "encoding-json", "code-digest"
_CENTER = "target-mean"


def run_record(
    config_json: str, encoding: Encoding | None = None, center: Sequence[float] = ()
) -> ConfigRecord:
    """Make the ``config`` record that ships a run's config and encoding to clients.

    Parameters
    ----------
    config_json : str
        As :func:`fl_app.config.serialization.to_json` gives it.
    encoding : Encoding, optional
        Left out in the handshake, which makes it.
    center : sequence of float, optional
        The federation's mean of each target, about which clients add up squares.
    """
    values: dict[str, Any] = {_CONFIG_JSON: config_json, _DIGEST: run_digest(config_json)}
    if encoding is not None:
        values[_ENCODING_JSON] = json.dumps(encoding.to_dict())
    if center:
        values[_CENTER] = [*center]
    return ConfigRecord(values)


def texts(message: Message) -> tuple[str, str]:
    """Return the config's and the encoding's JSON of a message ("" where there is none)."""
    record = _record(message)
    return str(record[_CONFIG_JSON]), str(record.get(_ENCODING_JSON, ""))


def center(message: Message) -> Sequence[float]:
    """Return the federation's mean of each target; empty where nobody knows it."""
    values: Sequence[float] = _record(message).get(_CENTER, ())
    return values


def same_code(message: Message) -> bool:
    """Return whether the sender runs the same code: this package's, and the run's options'."""
    return bool(_record(message)[_DIGEST] == own_code(message))


def own_code(message: Message) -> str:
    """Return what code this process would run for a message's config, as :func:`run_digest`."""
    return run_digest(texts(message)[0])


def server_round(message: Message) -> int:
    """Return the round that Flower's strategies put into each message."""
    value = _record(message)["server-round"]
    if not isinstance(value, int):
        raise TypeError(f"server-round is {value!r}: expected an int")
    return value


def setting(message: Message, key: str, default: float) -> float:
    """Return a strategy's setting for clients, for example FedProx's ``proximal-mu``."""
    value = _record(message).get(key, default)
    if not isinstance(value, int | float):
        raise TypeError(f"{key} is {value!r}: expected a number")
    return value


def learning_rate(message: Message) -> float | None:
    """Return the step that the server decided on; None where the config has it."""
    return setting(message, LEARNING_RATE, 0.0) or None


@dataclass(frozen=True)
class StackRequest:
    """The settings of a training message of FedStacking.

    Parameters
    ----------
    phase : {"collect", "stack", "select"}
        What to do.
    server_round : int
        The round.
    send_base : bool
        Whether the base model is wanted (*collect*).
    num_folds : int
        V.
    client_folds : bool
        Whether all rows of a client go to one sum.
    min_rows : int
        Rows of a class (regression: rows) that a sum holds at least.
    is_new : bool
        Whether this client's rows are in none of the sums (*select*).
    provisional : int
        Number of the candidate that is the global model so far (*select*).
    gate : bool
        Whether to try the personal gate (*select*).
    learning_rate : float, optional
        The global member's step where the config says ``auto`` (*collect*).
    """

    phase: str
    server_round: int
    num_folds: int
    min_rows: int
    client_folds: bool = False
    send_base: bool = False
    is_new: bool = False
    provisional: int = 0
    gate: bool = False
    learning_rate: float | None = None

    def to_settings(self) -> dict[str, Any]:
        """Return the settings as they travel, for :func:`stack_request` to read."""
        names = ("phase", "num_folds", "client_folds", "min_rows", *_OF_PHASE.get(self.phase, ()))
        settings = {f"stack-{name.replace('_', '-')}": getattr(self, name) for name in names}
        return {"server-round": self.server_round, **settings}


_OF_PHASE = {"collect": ("send_base",), "select": ("is_new", "provisional", "gate")}
"""Settings that one phase alone has."""


def stack_request(message: Message) -> StackRequest:
    """Read what FedStacking asks of a client (:class:`fl_app.stacking.strategy.FedStacking`).

    Raises
    ------
    TypeError
        If a setting that every phase has is missing or of another type.
    """
    record = _record(message)
    phase, folds = record.get("stack-phase"), record.get("stack-num-folds")
    least, provisional = record.get("stack-min-rows"), record.get("stack-provisional", 0)
    if not isinstance(phase, str):
        raise TypeError(f"stack-phase is {phase!r}: expected a text")
    if not (isinstance(folds, int) and isinstance(least, int) and isinstance(provisional, int)):
        raise TypeError(f"stack-… are {folds!r}, {least!r}, {provisional!r}: expected integers")
    return StackRequest(
        phase,
        server_round(message),
        num_folds=folds,
        min_rows=least,
        client_folds=bool(record.get("stack-client-folds")),
        send_base=bool(record.get("stack-send-base")),
        is_new=bool(record.get("stack-is-new")),
        provisional=provisional,
        gate=bool(record.get("stack-gate")),
        learning_rate=learning_rate(message),
    )


def _record(message: Message) -> dict[str, Any]:
    # Not `content.config_records`: Flower builds a synced dictionary at every look.
    record = records_of(message)[CONFIG]
    if not isinstance(record, ConfigRecord):
        raise TypeError(f"record {CONFIG} is a {type(record).__name__}: expected a ConfigRecord")
    return items_of(record)


def read_arrays(message: Message) -> dict[str, NDArray[Any]]:
    """Read the arrays of a message, read-only."""
    record = records_of(message)[ARRAYS]
    if not isinstance(record, ArrayRecord):
        raise TypeError(f"record {ARRAYS} is a {type(record).__name__}: expected an ArrayRecord")
    return read(record)


@lru_cache(maxsize=32)
def read_config(text: str) -> Config:
    """Read a config's JSON; the same text is parsed once a process."""
    return from_json(text)


@lru_cache(maxsize=32)
def read_encoding(text: str) -> Encoding:
    """Read an encoding's JSON; the same text is parsed once a process."""
    return Encoding.from_dict(json.loads(text))


def reply(
    message: Message,
    metrics: Mapping[str, float],
    num_examples: int,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    measures: Mapping[str, Any] | None = None,
) -> Message:
    """Answer a train or evaluate message.

    Parameters
    ----------
    message : Message
        What is answered.
    metrics : mapping of str to float
        The client's metrics.
    num_examples : int
        Rows behind them, the reply's weight.
    arrays : mapping of str to ndarray, optional
        The client's arrays, given up by the caller.
    measures : mapping of str to number, text, bytes or list of one of them, optional
        Sums and counts that the server adds up over clients.
    """
    records: dict[str, Record] = {METRICS: metric_record({**metrics, NUM_EXAMPLES: num_examples})}
    if arrays is not None:
        records[ARRAYS] = hold(arrays, copy=False)
    if measures:
        records[MEASURES] = ConfigRecord(dict(measures))
    return make_reply(message, record_dict(records))


def measures(message: Message) -> dict[str, Any]:
    """Return the sums and counts of a reply; nothing of it is checked."""
    record = records_of(message).get(MEASURES)
    return items_of(record) if isinstance(record, ConfigRecord) else {}


@cache
def code_digest() -> str:
    """Return the SHA-256 of this package's source: both ends of a run must agree on it."""
    root = Path(__file__).parents[1]
    state = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        state.update(path.relative_to(root).as_posix().encode())
        state.update(path.read_bytes())
    return state.hexdigest()


LACKS = "lacks "
"""What a digest begins with where there is none: the process has no such option."""
_ON_CLIENTS = ("dataset", "partitioner", "model", "strategy")


@lru_cache(maxsize=8)
def run_digest(config_json: str) -> str:
    """Return the digest of the code that a run's clients use.

    Parameters
    ----------
    config_json : str
        The run's config, perhaps one that this version cannot read.

    Returns
    -------
    str
        :func:`code_digest`, where other options take part with their modules (so that a changed
        helper of a model is told, a changed tracker is not); ``lacks GROUP=NAME`` without one.
    """
    try:
        config = json.loads(config_json)
        names = {group: str(config[group]["name"]) for group in _ON_CLIENTS}
        more = digest_of(names) if all(names[group] for group in names) else ""
    except (ValueError, KeyError, TypeError):
        return code_digest()
    except LookupError as missing:
        return f"{LACKS}{missing.args[0]}"
    return hashlib.sha256(f"{code_digest()}{more}".encode()).hexdigest() if more else code_digest()
