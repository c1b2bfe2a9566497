"""What a user of the page can choose: as fields, as ready examples and as the page's address.

A value is one of a list, or a number within limits, or the name of a column that is in the user's
own file. Nothing else gets from an address into a config: no path, no key, no free text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fl_app.config.options import FaultsConfig
from fl_app.config.schema import GROUPS
from fl_app.dashboard import uploads
from fl_app.data.encoding import some
from fl_app.errors import ConfigError, InputError, printable

__all__ = [
    "BOTH",
    "EXAMPLES",
    "LIMITS",
    "LOOK_AT",
    "OPTIONS",
    "SPLITS",
    "Choices",
    "from_query",
    "to_query",
]

BOTH = ("fedavg", "fedstacking")
"""Averaging and stacking: the strategies of a run of ``both``."""


OPTIONS: Mapping[str, tuple[str, ...]] = {
    "dataset": tuple(name for name in GROUPS["dataset"] if name != "tabular"),
    "task": ("", "classification", "regression"),
    "partitioner": tuple(GROUPS["partitioner"]),
    "model": tuple(GROUPS["model"]),
    "strategy": tuple(GROUPS["strategy"]),
    "runtime": tuple(name for name in GROUPS["runtime"] if name != "deployment"),
    "fault": next(f.metadata["choices"] for f in fields(FaultsConfig) if f.name == "kind"),
}
"""What a field of :class:`Choices` may be; "" as a task: guessed from the target's cells."""
LIMITS: Mapping[str, tuple[float, float]] = {
    "alpha": (0.01, 100),
    "clients": (1, 1000),
    "rounds": (1, 500),
    "fraction": (0.1, 1),
    "seed": (0, 1_000_000),
    "min_replies": (1, 1000),
    "local_epochs": (1, 100),
    "batch_size": (0, 1024),
    "learning_rate": (0.0001, 10),
    "examples": (0, 100_000),
    "classes": (0, 20),
    "faulty": (0, 1000),
}
"""Smallest and largest number that a field of :class:`Choices` may be."""
SPLITS: Mapping[str, str] = {
    "iid": "iid: like one another",
    "dirichlet": "dirichlet: skewed by label",
    "shards": "shards: a few labels each",
    "quantity": "quantity: unequal sizes",
    "natural": "natural: as collected",
}
"""What partitioners do, in words."""
_COLUMNS = ("target", "task", "key", "features")
_PAGE = ("run", "round", "metric", "token")
_MOST_COMPLAINTS = 10
_LONGEST = 20_000


@dataclass(frozen=True)
class Choices:
    """Everything that can be chosen; each value is checked by itself.

    Parameters
    ----------
    example : str
        The ready example that these choices began as; "" for none.
    dataset : str
        A data set; of no account where there is an `upload`.
    examples, classes : int
        Rows and classes of data that are made (of two lines: rows of client 1), 0 as the data set
        begins; of no account elsewhere.
    upload : str
        Id of the user's own file (:mod:`fl_app.dashboard.uploads`); "" for none.
    target, key : str
        Columns of that file: what to predict, and whose values are the natural clients; "" as a
        target takes the guess of :func:`fl_app.dashboard.uploads.open`.
    task : str
        What the target is; "" to guess.
    features : tuple of str
        Columns to predict from; empty: all others.
    partitioner : str
        How rows are dealt to clients, with `alpha` where it has one.
    clients, rounds, fraction, min_replies, seed
        As ``num_clients``, ``num_server_rounds``, ``fraction_train``, ``min_replies``, ``seed``.
    model : str
        With `local_epochs`, `batch_size` and `learning_rate` (None: the server decides).
    strategy : str
        The strategy; of no account with `both`.
    both : bool
        Whether averaging and stacking run one after the other on the same split.
    runtime : str
        Where clients run.
    faulty : int
        Clients that fail on purpose, in the way that `fault` names.

    Raises
    ------
    ConfigError
        For a value that is not in its list or beyond its limits.
    """

    example: str = ""
    dataset: str = "digits"
    examples: int = 0
    classes: int = 0
    upload: str = ""
    target: str = ""
    task: str = ""
    key: str = ""
    features: tuple[str, ...] = ()
    partitioner: str = "iid"
    alpha: float = 0.5
    clients: int = 10
    model: str = "auto"
    strategy: str = "fedavg"
    both: bool = False
    rounds: int = 20
    fraction: float = 1.0
    min_replies: int = 1
    local_epochs: int = 1
    batch_size: int = 32
    learning_rate: float | None = None
    seed: int = 0
    runtime: str = "inprocess"
    faulty: int = 0
    fault: str = field(default=OPTIONS["fault"][0])

    def __post_init__(self) -> None:
        """Check each value."""
        for name, options in OPTIONS.items():
            if (value := getattr(self, name)) not in options:
                listed = ", ".join(filter(None, options))
                raise ConfigError(name, value, f"one of {listed} is allowed")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not (low <= value <= high if value is not None else name == "learning_rate"):
                raise ConfigError(name, value, f"{low} to {high} is allowed")
        if self.upload and not uploads.is_id(self.upload):
            raise ConfigError("upload", self.upload, "the id of an uploaded file is allowed")

    @property
    def strategies(self) -> tuple[str, ...]:
        """The strategies that will run, one after the other."""
        return BOTH if self.both else (self.strategy,)


DEFAULTS = Choices()

# ---------------------------------------------------------------------------- ready examples
_EXAMPLES: Mapping[str, tuple[dict[str, Any], str]] = {
    "The lesson: a weighted average": (
        {
            "dataset": "two_lines",
            "partitioner": "natural",
            "clients": 2,
            "model": "linear",
            "local_epochs": 5,
            "batch_size": 0,
            "learning_rate": 0.1,
        },
        "Client 0 holds points of y = 2x + 1, client 1 of y = x + 1: look at the slope of each "
        "client's model and at their average, round by round; then give client 1 six rows.",
    ),
    "Label skew: averaging or stacking": (
        {"dataset": "digits", "partitioner": "dirichlet", "alpha": 0.1, "both": True},
        "Each client has many rows of a few digits and few or none of the others: look at the "
        "server's curves of the two strategies, at equal rounds and at equal bytes.",
    ),
    "Four hospitals": (
        {"dataset": "heart_disease", "partitioner": "natural", "clients": 4},
        "Every client is a hospital of its own size, with its own share of ill patients: look at "
        "the hospitals' curves beside their mean, and at the rows that stand behind each.",
    ),
    "Faulty members": (
        {"dataset": "digits", "faulty": 3, "fault": "crash"},
        "The last three of the ten clients crash in about half of the rounds: look at who failed "
        "and why, and at the shares n_k/N of those that replied.",
    ),
    "Hostile members": (
        {"dataset": "digits", "faulty": 3, "fault": "flip", "strategy": "fedmedian"},
        "The last three of the ten clients send a step the other way, four times as long: look at "
        "the server's curve under the median, then choose fedavg and start again.",
    ),
    "Rings: what the models know": (
        {
            "dataset": "rings",
            "examples": 600,
            "classes": 3,
            "partitioner": "dirichlet",
            "alpha": 0.3,
            "clients": 4,
            "model": "mlp",
            "local_epochs": 5,
            "learning_rate": 0.3,
            "rounds": 8,
            "both": True,
        },
        "No line separates the three rings, and no client has many rows of all of them: look at "
        "what each client's model takes the plane for, at their average, and at the stack in the "
        "last round. A stack sends more bytes: see side by side.",
    ),
}


EXAMPLES: Mapping[str, Choices] = {
    name: Choices(example=name, **values) for name, (values, _) in _EXAMPLES.items()
}
"""Ready examples by name."""
LOOK_AT: Mapping[str, str] = {name: sentence for name, (_, sentence) in _EXAMPLES.items()}
"""What to look at in each of them, in one sentence."""


# ---------------------------------------------------------------------------- the address
def from_query(
    params: Mapping[str, str], home: Path | None = None, others: Collection[str] = _PAGE
) -> tuple[Choices, list[str]]:
    """Read the address of the page; whatever stands there, there are choices in the end.

    Parameters
    ----------
    params : mapping of str to str
        The query.
    home : Path, optional
        Where uploads are, see :func:`fl_app.home.home_dir`.
    others : collection of str
        Keys that are the page's own.

    Returns
    -------
    Choices
        What is not named, unknown, unreadable or out of range is as in the example that the
        address names, or else as :class:`Choices` begins.
    list of str
        A sentence on each value that was not used, 10 at most.
    """
    given = {str(key): str(text) for key, text in params.items() if str(key) not in others}
    complaints: list[str] = []
    chosen = DEFAULTS
    if name := given.pop("example", ""):
        chosen = EXAMPLES.get(name, chosen)
        if name not in EXAMPLES:
            complaints.append(_complaint("example", name, f"one of {', '.join(EXAMPLES)}", ""))
    known = {f.name for f in fields(Choices)}
    for key, text in given.items():
        if key not in known:
            complaints.append(f"{printable(key, 40)}: no such choice; it is left out")
            continue
        try:
            chosen = replace(chosen, **{key: _parse(key, text)})
        except (ValueError, RecursionError):
            allowed = f"{_allowed(key)} is allowed"
            complaints.append(_complaint(key, text, allowed, _text(key, getattr(chosen, key))))
        except ConfigError as error:
            used = _text(key, getattr(chosen, key))
            complaints.append(_complaint(key, text, error.allowed, used))
    chosen, wrong = _with_columns(chosen, home)
    complaints += wrong
    return chosen, complaints[:_MOST_COMPLAINTS]


def to_query(choices: Choices) -> dict[str, str]:
    """Return the address of choices: what differs from their example, or from the defaults."""
    base = EXAMPLES.get(choices.example, DEFAULTS)
    query = {"example": choices.example} if choices.example in EXAMPLES else {}
    for f in fields(Choices):
        value = getattr(choices, f.name)
        if f.name != "example" and value != getattr(base, f.name):
            query[f.name] = _text(f.name, value)
    return query


def _parse(name: str, text: str) -> Any:
    """Read one value.

    Raises
    ------
    ValueError, RecursionError
        If it is none of the field's type.
    """
    default = getattr(DEFAULTS, name)
    if isinstance(default, bool):
        return bool(("false", "true").index(text.lower()))
    if name == "features":
        names = json.loads(text) if len(text) <= _LONGEST else None
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ValueError("no list of texts")
        return tuple(dict.fromkeys(names))
    if name == "learning_rate":
        return None if text == "auto" else float(text)
    if name in LIMITS:
        return type(default)(text)
    return text


def _text(name: str, value: Any) -> str:
    """Write one value as :func:`_parse` reads it."""
    if name == "features":
        return json.dumps(list(value), ensure_ascii=False) if value else ""
    if isinstance(value, bool):
        return str(value).lower()
    return "auto" if value is None else str(value)


def _allowed(name: str) -> str:
    if name in LIMITS:
        low, high = LIMITS[name]
        whole = "" if isinstance(getattr(DEFAULTS, name), float | None) else "a whole number, "
        return f"{whole}{low} to {high}"
    return "a list of columns" if name == "features" else "true or false"


def _complaint(key: str, text: str, allowed: str, used: str) -> str:
    return f"{ConfigError(key, text, allowed)}; {used or 'none'} is used"


def _with_columns(choices: Choices, home: Path | None) -> tuple[Choices, list[str]]:
    """Leave out an upload that is not there, and columns that its file does not have."""
    without = replace(choices, upload="", **{name: getattr(DEFAULTS, name) for name in _COLUMNS})
    if not choices.upload:
        names = [name for name in _COLUMNS if getattr(choices, name) != getattr(DEFAULTS, name)]
        allowed = "of an uploaded file, and there is none"
        return without, [_complaint(n, _text(n, getattr(choices, n)), allowed, "") for n in names]
    try:
        columns = uploads.columns(choices.upload, home)
    except InputError as error:
        return without, [f"{error}; none is used"]
    complaints = []
    for name in ("target", "key", "features"):
        value = getattr(choices, name)
        wanted = value if isinstance(value, tuple) else (value,) * bool(value)
        if strange := [column for column in wanted if column not in columns]:
            allowed = f"one of {some(columns, 20)} is allowed"
            complaints.append(_complaint(name, strange[0], allowed, ""))
            choices = replace(choices, **{name: getattr(DEFAULTS, name)})
    return choices, complaints
