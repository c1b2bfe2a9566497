"""The options of every group by name: facts of each in its class, and what builds it.

An option is one frozen dataclass. Its fields are what a config may set; its class attributes are
facts that others need. :func:`register` makes it known, and names what builds it, in the module
that knows how: the built-in options are known before any library of theirs is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Set
from dataclasses import field
from typing import Any, TypeVar

__all__ = ["GROUPS", "builder_of", "modules_of", "opt", "register"]

T = TypeVar("T")
_GROUPS = ("dataset", "partitioner", "model", "strategy", "privacy", "runtime", "tracking")
_OPTIONS: dict[str, dict[str, type[Any]]] = {group: {} for group in _GROUPS}
GROUPS: Mapping[str, Mapping[str, type[Any]]] = _OPTIONS
"""Every group's options and the class of each."""
_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {}
_MODULES: dict[tuple[str, str], set[str]] = {}


def opt(default: T, text: str, **limits: object) -> T:
    """Declare a field: its default, one sentence on it, and limits (``ge gt le lt choices``)."""
    return field(default=default, metadata={"help": text, **limits})


def register(option: type[T], *, build: Callable[..., Any] | None = None) -> type[T]:
    """Make an option known, or say what builds it.

    Parameters
    ----------
    option : type
        A frozen dataclass that extends one of the groups' own: ``DatasetConfig``,
        ``PartitionerConfig``, ``ModelConfig``, ``StrategyConfig``, ``PrivacyConfig``,
        ``RuntimeConfig`` or ``TrackingConfig``. The default of its field ``name`` is its name.
    build : callable, optional
        What builds it from its config; the group says what else it is given.

    Returns
    -------
    type
        The option, so that this is a decorator as well.

    Raises
    ------
    TypeError
        If it is no frozen dataclass of a group, or has no name; if a data set has no task.
    ValueError
        If another option has its name.
    """
    group, name = str(getattr(option, "group", "")), str(getattr(option, "name", ""))
    own = vars(option).get("__dataclass_params__")
    if not (own is not None and own.frozen and group in _OPTIONS and name):
        raise TypeError(f"{option!r} is no frozen dataclass that extends a group's and has a name")
    if group == "dataset" and not hasattr(option, "task"):
        raise TypeError(f"{option!r} needs a task: ClassVar[str], regression or classification")
    known = _OPTIONS[group].setdefault(name, option)
    if known is not option:
        raise ValueError(f"{group}={name} is {known.__module__}.{known.__qualname__} already")
    caller = str(sys._getframe(1).f_globals.get("__name__", ""))
    _MODULES.setdefault((group, name), {option.__module__}).add(caller)
    if build is not None:
        _BUILDERS[group, name] = build
    return option


def builder_of(config: Any) -> Callable[..., Any]:
    """Return what builds an option from its config.

    Raises
    ------
    LookupError
        If nothing does, or the module that says so is not imported.
    """
    try:
        return _BUILDERS[config.group, config.name]
    except KeyError:
        raise LookupError(f"nothing builds {config.group}={config.name}") from None


def modules_of(option: type[Any]) -> Set[str]:
    """Return the modules that have registered an option: its class, and what builds it."""
    return _MODULES.get((option.group, option.name), {option.__module__})
