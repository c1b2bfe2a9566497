"""What strategies remember from round to round, so that a run can go on in another process.

A strategy that remembers anything has PyTorch's two methods: ``state_dict()`` returns it as plain
data and arrays, ``load_state_dict(state)`` takes it in. Flower's have neither: what they remember
is in attributes, which :data:`FLOWERS` names.

References
----------
PyTorch, ``Optimizer.state_dict``:
https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.state_dict.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from fl_app.tracking.chain import chain

__all__ = ["FLOWERS", "cannot_resume", "load_state", "state_of"]

_MOMENTS = ("current_arrays", "m_t", "v_t")
FLOWERS: Mapping[type[Strategy], tuple[str, ...]] = {
    **dict.fromkeys((FedAvg, FedProx, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan), ()),
    **dict.fromkeys((FedAdagrad, FedAdam, FedYogi), _MOMENTS),
    FedAvgM: ("current_arrays", "momentum_vector"),
    QFedAvg: (),  # what it sends, which it notes in each round
}
"""Flower's strategies, and the attributes that a round leaves for the next."""


def cannot_resume(strategy: Strategy) -> str:
    """Say which strategy of a chain keeps a run from being resumed, and why; "" if none does."""
    for own in chain(strategy):
        name = type(own).__name__
        if type(own).start is not Strategy.start:
            return f"{name} has a start() of its own"
        if type(own) not in FLOWERS and not hasattr(own, "state_dict"):
            return f"{name} has no state_dict() and load_state_dict() that tell what it remembers"
    return ""


def state_of(strategy: Strategy) -> list[dict[str, Any]]:
    """Return what a strategy and those inside it remember, from outside to inside."""
    return [
        {name: getattr(own, name) for name in FLOWERS[type(own)]}
        if type(own) in FLOWERS
        else own.state_dict()  # type: ignore[attr-defined]
        for own in chain(strategy)
    ]


def load_state(strategy: Strategy, state: Sequence[Mapping[str, Any]]) -> None:
    """Take in what :func:`state_of` returned for a strategy that was made in the same way."""
    for own, kept in zip(chain(strategy), state, strict=True):
        if type(own) in FLOWERS:
            vars(own).update(kept)
        else:
            own.load_state_dict(kept)  # type: ignore[attr-defined]
