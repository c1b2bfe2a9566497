"""What is allowed for a field, as a test and in words."""

from __future__ import annotations

import json
import math
import operator
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fl_app.config.dataset_options import Levels
from fl_app.config.schema import GROUPS

__all__ = [
    "SIGNS",
    "allowed",
    "describe",
    "facts",
    "having",
    "hints",
    "is_within",
    "sign",
    "to_text",
    "who_has",
]

SIGNS: Mapping[str, str] = {
    "comma": ",",
    "semicolon": ";",
    "tab": "\t",
    "pipe": "|",
    "dot": ".",
    "space": " ",
    "apostrophe": "'",
}
"""Signs by the word that a command line takes without quotes."""


def having(group: str, key: str) -> list[str]:
    """Return the options of a group that have a key."""
    options = GROUPS.get(group, {}).items()
    return [name for name, kind in options if key in {f.name for f in fields(kind)}]


def who_has(group: str, key: str) -> str:
    """Say which options of a group have a key."""
    found = having(group, key)
    return f"{', '.join(found)} {'has' if len(found) == 1 else 'have'} it"


@cache
def hints(kind: type[Any]) -> dict[str, Any]:
    """Return the types of a class's fields."""
    return get_type_hints(kind)


_LIMITS: Mapping[str, tuple[Callable[[Any, Any], bool], str]] = {
    "ge": (operator.ge, ">="),
    "gt": (operator.gt, ">"),
    "le": (operator.le, "<="),
    "lt": (operator.lt, "<"),
}


def is_within(value: Any, meta: Mapping[str, Any]) -> bool:
    """Say whether a value is within the limits of its field."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if "choices" in meta and value not in meta["choices"]:
        return False
    if isinstance(value, str):  # a word beside numbers, which alone have limits
        return True
    return all(test(value, meta[k]) for k, (test, _) in _LIMITS.items() if k in meta)


def describe(hint: Any, meta: Mapping[str, Any]) -> str:
    """Say what a key allows, for example ``a number > 0 and <= 1``."""
    if "choices" in meta:
        return "one of " + ", ".join(map(str, meta["choices"]))
    bounds = " and ".join(f"{sign} {meta[k]}" for k, (_, sign) in _LIMITS.items() if k in meta)
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    others = [*(word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))]
    others += ["null"] if type(None) in kinds else []
    plain = [kind for kind in kinds if kind is not type(None) and get_origin(kind) is not Literal]
    text = f"{' or '.join(map(_words, plain))} {bounds}".rstrip()
    text += f" ({meta['length']} of them)" if "length" in meta else ""
    return ", or ".join([text, *others])


def facts(kind: Any, key: str) -> Mapping[str, Any]:
    """Return a key's help and limits, by the nearest class that says them."""
    kinds = [own for own in kind.__mro__ if is_dataclass(own)]
    said = (f.metadata for own in kinds for f in fields(own) if f.name == key and f.metadata)
    return next(said, {})


def allowed(kind: Any, key: str) -> str:
    """Say what a key of one of the dataclasses allows, as its error does."""
    return describe(hints(kind)[key], facts(kind, key))


def to_text(value: Any) -> str:
    """Return a value as it is typed on the command line and recorded as a parameter."""
    if isinstance(value, tuple):
        value = list(value)
    return value if isinstance(value, str) else json.dumps(value)


def _words(hint: Any) -> str:
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        kinds = get_args(item) if isinstance(item, types.UnionType) else (item,)
        return "a list of " + " or ".join(f"{_words(kind).split(' ', 1)[1]}s" for kind in kinds)
    return {
        int: "an integer",
        float: "a finite number",
        bool: "true or false",
        str: "a text",
        Levels: "lists of texts by column",
    }[hint]


def sign(word: str) -> str:
    """Return the sign that a word of :data:`SIGNS` stands for; any other text as it is."""
    return SIGNS.get(word, word)
