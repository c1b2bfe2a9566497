"""What was chosen, as the address of the page."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fl_app.dashboard import uploads
from fl_app.dashboard.choices import DEFAULTS, EXAMPLES, LIMITS, Choices
from fl_app.data.encoding import some
from fl_app.errors import ConfigError, InputError, printable

__all__ = ["from_query", "to_query"]
_COLUMNS = ("target", "task", "key", "features")
_PAGE = ("run", "round", "metric", "token")
_MOST_COMPLAINTS = 10
_LONGEST = 20_000


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
