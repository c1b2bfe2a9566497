"""A config as plain values, JSON, flat params and a digest, and back."""

from __future__ import annotations

import hashlib
import json
import math
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin

from fl_app.config.checking import describe, facts, having, hints, is_within, to_text, who_has
from fl_app.config.dataset_options import Levels
from fl_app.config.plugins import look_for
from fl_app.config.rules import check
from fl_app.config.schema import GROUPS, SECTIONS, Config
from fl_app.errors import ConfigError

__all__ = [
    "digest",
    "effective",
    "flatten",
    "from_dict",
    "from_json",
    "parse",
    "to_dict",
    "to_json",
    "without_effect",
]

_NOT_RECORDED = ("output_dir", "resume", "resume_anyway", "skip_finished")


# ---------------------------------------------------------------------------- plain data -> Config
def from_dict(data: Mapping[str, Any]) -> Config:
    """Build a checked config from plain nested data.

    Parameters
    ----------
    data : mapping
        Keys of :class:`Config`; each group is a mapping with its ``name`` and options. What is
        left out takes its default.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        At the first key that is unknown or whose value has a wrong type or lies out of range.

    Examples
    --------
    >>> from_dict({"seed": 3, "dataset": {"name": "diabetes"}}).dataset.name
    'diabetes'
    """
    return check(parse(data))


def parse(data: Mapping[str, Any]) -> Config:
    """Build a config from plain nested data and check each key, but no rule between them.

    The parameter and errors are those of :func:`from_dict`.
    """
    if not isinstance(data, Mapping):
        raise ConfigError("config", data, "a mapping of keys to values")
    values: dict[str, Any] = {}
    known = {f.name for f in fields(Config)}
    for key, value in data.items():
        if key not in known:
            raise _unknown(str(key), value, known)
        if key in GROUPS:
            values[key] = _group(key, value)
        elif key in SECTIONS:
            values[key] = _options(SECTIONS[key], key, value)
        else:
            values[key] = _option(Config, key, key, value)
    return Config(**values)


def _group(group: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(group, value, f"a mapping with one of {', '.join(GROUPS[group])} as name")
    options = GROUPS[group]
    name = value.get("name")
    if not isinstance(name, str) or look_for(group, name) is None:
        raise ConfigError(f"{group}.name", name, f"one of {', '.join(options)}")
    return _options(options[name], group, value)


def _options(kind: type[Any], where: str, value: Any) -> Any:
    known = {f.name for f in fields(kind)}
    if not isinstance(value, Mapping):
        keys = ", ".join(f"{where}.{key}" for key in sorted(known))
        raise ConfigError(where, value, f"a mapping: set {keys}")
    values = {}
    for key, item in value.items():
        if key not in known:
            if having(where, key):
                allowed = f"no such key of the chosen {where}; {who_has(where, key)}"
                raise ConfigError(f"{where}.{key}", item, allowed)
            raise _unknown(f"{where}.{key}", item, known)
        values[key] = _option(kind, key, f"{where}.{key}", item)
    return kind(**values)


def _unknown(dotted: str, value: object, known: set[str]) -> ConfigError:
    key = dotted.rpartition(".")[2]
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ConfigError(dotted, value, f"no such key; {hint}allowed are {', '.join(sorted(known))}")


def _option(kind: Any, key: str, dotted: str, value: Any) -> Any:
    """Bring one value to its declared type and check its limits."""
    meta = facts(kind, key)
    hint = hints(kind)[key]
    ok, result = _convert(hint, value)
    if not ok:
        but = _but(value) or _in_quotes(hint, dotted, value)
        raise ConfigError(dotted, value, f"expected {describe(hint, meta)}{but}")
    items = result if isinstance(result, tuple) else (result,)
    within = all(is_within(item, meta) for item in items if item is not None)
    if not within or len(items) != meta.get("length", len(items)):
        raise ConfigError(dotted, value, f"expected {describe(hint, meta)}")
    return result


def _but(value: Any) -> str:
    """Say what a value is that does not look it."""
    if isinstance(value, list | tuple) and any(isinstance(item, bool) for item in value):
        return "; true and false in a file are the classes 1 and 0"
    with suppress(TypeError, ValueError):
        if isinstance(value, str) and math.isfinite(float(value)):
            return ", not a text (${oc.decode:...} makes a number of one)"
    return ""


def _in_quotes(hint: Any, dotted: str, value: Any) -> str:
    """Say how to write digits that are a text, such as a column's name."""
    many = isinstance(value, list | tuple)
    items = value if many else [value]
    texts = [str(item) for item in items if isinstance(item, str) or type(item) is int]
    if len(texts) < len(items) or not _convert(hint, texts if many else texts[0])[0]:
        return ""
    written = ",".join(f'"{text}"' for text in texts)
    return f"; digits that are a text in quotes: '{dotted}={f'[{written}]' if many else written}'"


def _convert(hint: Any, value: Any) -> tuple[bool, Any]:
    """Return whether the value has the type, and the value in it."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return type(None) in get_args(hint), None
        return next(
            (
                r
                for r in (_convert(a, value) for a in get_args(hint) if a is not type(None))
                if r[0]
            ),
            (False, None),
        )
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint), value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False, None
        parts = [_convert(get_args(hint)[0], item) for item in value]
        return all(ok for ok, _ in parts), tuple(item for _, item in parts)
    if hint is Levels:
        return _levels(value)
    if hint is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        try:
            return good, float(value) if good else None
        except OverflowError:
            return False, None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is str and isinstance(value, float) and math.isnan(value):
        return True, "nan"  # a number to Hydra
    return isinstance(value, hint), value


def _levels(value: Any) -> tuple[bool, Any]:
    """Read ``{column: [level, …]}``; a whole number is the level that a file's cell of it is."""
    if not isinstance(value, Mapping):
        return False, None
    good = all(
        isinstance(names, list | tuple)
        and names
        and all(isinstance(name, int | str) and not isinstance(name, bool) for name in names)
        for names in value.values()
    )
    if not good:
        return False, None
    return True, Levels({str(c): tuple(map(str, names)) for c, names in value.items()})


# ---------------------------------------------------------------------------- Config -> plain data
def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain nested data (tuples become lists)."""
    result: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, Levels):
            value = {column: list(levels) for column, levels in value.items()}
        result[f.name] = list(value) if isinstance(value, tuple) else value
    return result


def to_json(config: Config) -> str:
    """Return the canonical JSON form: keys sorted, no spaces, numbers that read back exactly."""
    return json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(text: str) -> Config:
    """Read :func:`to_json`'s form back.

    Raises
    ------
    ConfigError
        If the text is no JSON object or no valid config.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError("config-json", text, f"a JSON object ({error})") from None
    if not isinstance(data, dict):
        raise ConfigError("config-json", text, "a JSON object")
    return from_dict(data)


def flatten(config: Config) -> dict[str, str]:
    """Return the recorded parameters, dotted key -> text, without where output goes."""
    return dict(_flat("", {k: v for k, v in to_dict(config).items() if k not in _NOT_RECORDED}))


def _flat(prefix: str, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, dict) and (key in GROUPS or key in SECTIONS):
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", to_text(value)


_STEPS = ("batch_size", "learning_rate", "local_epochs", "local_steps")


def without_effect(config: Config) -> tuple[str, ...]:
    """Return the parameters that change no number of this run, whatever their value.

    A model that nobody trains has no effect but for its ``dtype``, which is that of the rows too.

    Returns
    -------
    tuple of str
        Dotted keys as in :func:`flatten`, sorted; () for most configs.
    """
    strategy, model = config.strategy, config.model
    names = [f"strategy.{name}" for name in strategy.unused]
    if not strategy.trains_model:
        names += [f"model.{f.name}" for f in fields(model) if f.name != "dtype"]
    elif not strategy.descends:
        names += [f"model.{name}" for name in _STEPS]
    elif model.local_steps is not None:
        names.append("model.local_epochs")
    return tuple(sorted(names))


def effective(config: Config) -> dict[str, str]:
    """Return the recorded parameters but for those that are :func:`without_effect`."""
    none = without_effect(config)
    return {param: value for param, value in flatten(config).items() if param not in none}


def digest(config: Config) -> str:
    """Return the SHA-256 of what decides a run's numbers: all but runtime, tracking and folders.

    Where no client fails on purpose, ``faults`` decides nothing; nor does what is
    :func:`without_effect`.
    """
    left_out = (*_NOT_RECORDED, "runtime", "tracking", *([] if config.faults.clients else SECTIONS))
    kept = {key: value for key, value in to_dict(config).items() if key not in left_out}
    for group, _, key in (param.partition(".") for param in without_effect(config)):
        del kept[group][key]
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
