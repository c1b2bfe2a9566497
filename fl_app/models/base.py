"""What a model is: named arrays, how they start, learn from rows and predict.

A model holds no state: its arrays go in and come out, so that a client can be thrown away after
every message. Array names, shapes and dtype never change in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import ModelConfig

__all__ = ["Arrays", "Descending", "Gradient", "Model", "descend"]

Arrays = Mapping[str, NDArray[Any]]
Gradient = Callable[[Arrays, NDArray[Any], NDArray[Any]], dict[str, NDArray[Any]]]


class Model(Protocol):
    """A model of one task with D features and, as outputs, C classes or T targets."""

    def start(self, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Return the arrays before training."""
        ...

    def fit(
        self,
        arrays: Arrays,
        x: NDArray[Any],
        y: NDArray[Any],
        rng: np.random.Generator,
        proximal_mu: float = 0.0,
        learning_rate: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays after a round's steps on x of shape (n, D) and y.

        ``proximal_mu`` adds ``mu/2 |w - w_start|^2`` to the loss (FedProx). ``learning_rate`` is
        the round's step where the config says ``auto``; None: the config's.
        """
        ...

    def gradient(self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the gradient of the training loss, with its penalty, over the rows."""
        ...

    def predict(self, arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
        """Return probabilities of shape (n, C) or targets of shape (n, T)."""
        ...


@dataclass(frozen=True)
class Descending:
    """What is the same in all models that learn by gradient descent.

    Parameters
    ----------
    config : ModelConfig
        Local training and dtype.
    num_features, num_outputs : int
        D, and C classes or T targets.
    """

    config: ModelConfig
    num_features: int
    num_outputs: int

    def fit(
        self,
        arrays: Arrays,
        x: NDArray[Any],
        y: NDArray[Any],
        rng: np.random.Generator,
        proximal_mu: float = 0.0,
        learning_rate: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays after local training; y holds class numbers or targets."""
        truth = self._truth(x, y)
        return descend(
            self.config, self._gradient, arrays, x, truth, rng, proximal_mu, learning_rate
        )

    def gradient(self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the gradient of the loss over the rows; y holds class numbers or targets."""
        return self._gradient(arrays, x, self._truth(x, y))

    def _truth(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        """Return y in the form that the gradient takes, made once for all batches."""
        return y

    def _gradient(
        self, arrays: Arrays, x: NDArray[Any], truth: NDArray[Any]
    ) -> dict[str, NDArray[Any]]:
        raise NotImplementedError


def descend(
    config: ModelConfig,
    gradient: Gradient,
    start: Arrays,
    x: NDArray[Any],
    y: NDArray[Any],
    rng: np.random.Generator,
    proximal_mu: float = 0.0,
    learning_rate: float | None = None,
) -> dict[str, NDArray[Any]]:
    """Run mini-batch gradient descent.

    Parameters
    ----------
    config : ModelConfig
        Gives ``local_epochs`` or ``local_steps``, ``batch_size`` (0: all rows, no shuffling) and
        ``learning_rate``.
    gradient : callable (arrays, x, y) -> arrays
        Gradient of the mean loss over the rows.
    start : mapping of str to ndarray
        Arrays at the start; not written to.
    x, y : ndarray
        Rows.
    rng : numpy.random.Generator
        Draws the order of rows in each pass.
    proximal_mu : float, default 0
        Weight of FedProx's proximal term; at 0 it is not computed at all.
    learning_rate : float, optional
        The step; by default the config's, which must be a number then.

    Returns
    -------
    dict of str to ndarray
    """
    step_size = config.learning_rate if learning_rate is None else learning_rate
    if step_size == "auto":
        raise ValueError("learning_rate=auto: the server's step of this round must be given")
    arrays = {name: array.copy() for name, array in start.items()}
    rate = next(iter(arrays.values())).dtype.type(step_size)
    n = len(x)
    size = config.batch_size if 0 < config.batch_size < n else n
    steps = config.local_steps or config.local_epochs * -(-n // size)
    for rows in islice(_batches(n, size, rng), steps):
        if rows is None:
            grad = gradient(arrays, x, y)
        else:
            grad = gradient(arrays, x.take(rows, axis=0), y.take(rows, axis=0))
        for name, array in arrays.items():
            step = grad[name]
            if proximal_mu:
                step = step + array.dtype.type(proximal_mu) * (array - start[name])
            array -= rate * step
    return arrays


def _batches(n: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64] | None]:
    """Yield the rows of one mini-batch after another, each pass in a new order; None for all."""
    while True:
        order = rng.permutation(n) if size < n else None
        for first in range(0, n, size):
            yield None if order is None else order[first : first + size]
