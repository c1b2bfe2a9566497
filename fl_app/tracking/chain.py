"""A strategy and the strategies around and inside it: what they are, hold and would do."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import CodeType, FunctionType
from typing import Any

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

__all__ = [
    "HOOKS",
    "callers",
    "chain",
    "found",
    "is_private",
    "may_be_observed",
    "parameters",
    "replaced_hooks",
]

HOOKS = {
    "configure_train": ("server_round", "arrays", "config", "grid"),
    "aggregate_train": ("server_round", "replies"),
    "configure_evaluate": ("server_round", "arrays", "config", "grid"),
    "aggregate_evaluate": ("server_round", "replies"),
}
"""What ``start()`` calls in each round, and what with."""
_PRIVATE = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)


def chain(strategy: object) -> Iterator[Strategy]:
    """Yield a strategy and the strategies inside it, from outside to inside."""
    while isinstance(strategy, Strategy):
        yield strategy
        strategy = getattr(strategy, "strategy", None)


def found(strategy: Strategy, attribute: str, kind: type[Any] | tuple[type[Any], ...]) -> Any:
    """Return the first attribute of this name and kind from outside to inside, else None."""
    values = (getattr(s, attribute, None) for s in chain(strategy))
    return next((value for value in values if isinstance(value, kind)), None)


def callers() -> Iterator[Strategy]:
    """Yield the strategies whose methods are being called now, from inside to outside."""
    frame = sys._getframe(1)
    while frame is not None:
        # A look at a frame's locals keeps them alive: methods only, which end sooner than a main.
        if frame.f_code.co_varnames[:1] == ("self",):
            own = frame.f_locals.get("self")
            if isinstance(own, Strategy):
                yield own
        frame = frame.f_back  # type: ignore[assignment]


def is_private(strategy: Strategy) -> bool:
    """Return whether a strategy is one of Flower's wrappers for differential privacy."""
    return isinstance(strategy, _PRIVATE)


def parameters(strategy: Strategy) -> dict[str, str]:
    """Return the public attributes of a strategy, and of those inside it, that are one value."""
    return {
        f"strategy.{name}": str(value)
        for own in chain(strategy)
        for name, value in vars(own).items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str)
    }


@contextmanager
def replaced_hooks(
    strategy: Strategy, replace: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Put others in the place of a strategy's hooks, on the instance, while its start() runs.

    A ``start()`` of its own may be the start of a strategy inside it: then those have others too.
    """
    own_start = type(strategy).start is not Strategy.start
    with ExitStack() as stack:
        for each in chain(strategy) if own_start else (strategy,):
            before = {name: vars(each)[name] for name in HOOKS if name in vars(each)}
            for name in HOOKS:
                # As object does it, whatever the strategy says of setting attributes.
                object.__setattr__(each, name, replace(name, getattr(each, name)))
            stack.callback(_restore, each, before)
        yield


def _restore(strategy: Strategy, before: Mapping[str, Any]) -> None:
    for name in HOOKS:
        if name in before:
            object.__setattr__(strategy, name, before[name])
        else:
            object.__delattr__(strategy, name)


def may_be_observed(strategy: Strategy) -> bool:
    """Return False where it is sure that ``start()`` never calls a hook or ``evaluate_fn``.

    Read is the code of ``start()``, of the methods that it names, of those that these name, and so
    on. Whoever is handed the strategy itself may call them.
    """
    known = {**HOOKS, "evaluate_fn": None}
    waiting: list[Any] = [type(strategy).start]
    seen: set[CodeType] = set()
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or function.__code__ in seen:
            continue
        names = _names(function.__code__, seen)
        if function is Strategy.start or names is None or names & known.keys():
            return True
        own = [vars(c).get(name) for c in type(strategy).__mro__ for name in names]
        waiting += [each.fget if isinstance(each, property) else each for each in own]
    return False


def _names(code: CodeType, seen: set[CodeType], own: str = "") -> set[str] | None:
    """Return all names and texts that code uses; None where it hands its first argument on."""
    seen.add(code)
    if not own and not code.co_argcount:
        return None
    own = own or code.co_varnames[0]
    names: set[str] = set()
    # `self.x += 1` copies self, for one more attribute of it.
    instructions = [i for i in dis.get_instructions(code) if i.opname not in ("COPY", "DUP_TOP")]
    for each, following in zip(instructions, [*instructions[1:], instructions[-1]], strict=True):
        if isinstance(each.argval, CodeType):
            inner = _names(each.argval, seen, own)
            if inner is None:
                return None
            names |= inner
        used = each.argval if isinstance(each.argval, tuple) else (each.argval,)
        if own in used and each.opname.startswith("LOAD_") and each.opname != "LOAD_CLOSURE":
            if "ATTR" not in following.opname and following.opname != "LOAD_METHOD":
                return None
        elif not each.opname.startswith("STORE_FAST"):
            names.update(name for name in used if isinstance(name, str))
    return names
