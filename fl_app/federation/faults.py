"""Clients that fail on purpose, to see what a federation makes of them.

References
----------
Sign-flipping attack: Li et al. 2019 (RSA), https://arxiv.org/abs/1811.03761.
Averages that withstand it: :mod:`fl_app.strategies`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.schema import Config
from fl_app.errors import FlAppError
from fl_app.seeding import generator

__all__ = ["CRASH_SHARE", "FLIP", "fault_of", "may_crash", "spoiled"]

CRASH_SHARE = 0.5
"""Probability of an error in a round."""
FLIP = -4.0
"""What a flipping client's move is multiplied by."""


def fault_of(config: Config, partition: int) -> str:
    """Return how a client fails (``faults.kind``); "" if it does not."""
    faults = config.faults
    return faults.kind if partition >= config.num_clients - faults.clients else ""


def may_crash(seed: int, server_round: int, partition: int) -> None:
    """Raise in the rounds that the seed draws for a client.

    Raises
    ------
    FlAppError
        With probability :data:`CRASH_SHARE`, the same in every runtime.
    """
    if generator(seed, "crash", server_round, partition).random() < CRASH_SHARE:
        raise FlAppError("crashed on purpose (faults.kind=crash)")


def spoiled(
    kind: str, received: Mapping[str, NDArray[Any]], arrays: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Return what a faulty client sends in the place of its arrays.

    Parameters
    ----------
    kind : {"nan", "flip"}
        NaN in every float array; or each array that it received and sends back moved by
        :data:`FLIP` times its own move.
    received, arrays : mapping of str to ndarray
        What it started from, and what it would send; neither is written to.

    Examples
    --------
    >>> spoiled("flip", {"w": np.array([1.0])}, {"w": np.array([1.5])})
    {'w': array([-1.])}
    """

    def one(name: str, array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype.kind != "f":
            return array
        if kind == "nan":
            return np.full_like(array, np.nan)
        start = received.get(name)
        return array if start is None else (start + FLIP * (array - start)).astype(array.dtype)

    return {name: one(name, array) for name, array in arrays.items()}
