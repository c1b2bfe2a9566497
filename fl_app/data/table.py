"""A table of raw rows: numeric and categorical columns, a target, and who owns each row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import Task

__all__ = ["Table"]


@dataclass(frozen=True, eq=False)
class Table:
    """Raw rows of one data set or of one client.

    Parameters
    ----------
    task : {"regression", "classification"}
        What the target is for.
    columns : tuple of str
        All feature columns in the order of the raw data.
    numeric : ndarray of shape (n, d_numeric), float64
        Numeric columns; a missing cell is NaN.
    numeric_names : tuple of str
        Their names.
    categorical : ndarray of shape (n, d_categorical), object
        Text columns; a missing cell is None.
    categorical_names : tuple of str
        Their names.
    target : ndarray
        Labels of shape (n,), or float64 targets of shape (n, T).
    target_names : tuple of str
        Names of the T targets; one name for labels.
    owners : ndarray of shape (n,) or None
        The natural client of each row as 0..K-1, where the data has one.
    owner_names : tuple of str
        Names of these K clients in their order, where they have any.
    """

    task: Task
    columns: tuple[str, ...]
    numeric: NDArray[np.float64]
    numeric_names: tuple[str, ...]
    categorical: NDArray[Any]
    categorical_names: tuple[str, ...]
    target: NDArray[Any]
    target_names: tuple[str, ...]
    owners: NDArray[np.int64] | None = None
    owner_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows n."""
        return len(self.target)

    def take(self, rows: NDArray[np.int64]) -> Table:
        """Return the given rows as a table of their own."""
        return Table(
            self.task,
            self.columns,
            self.numeric[rows],
            self.numeric_names,
            self.categorical[rows],
            self.categorical_names,
            self.target[rows],
            self.target_names,
            None if self.owners is None else self.owners[rows],
            self.owner_names,
        )

    def join(self, other: Table) -> Table:
        """Return these rows and then those of a table with the same columns."""
        owners = self.owners is not None and other.owners is not None
        return Table(
            self.task,
            self.columns,
            np.concatenate([self.numeric, other.numeric]),
            self.numeric_names,
            np.concatenate([self.categorical, other.categorical]),
            self.categorical_names,
            np.concatenate([self.target, other.target]),
            self.target_names,
            np.concatenate([self.owners, other.owners]) if owners else None,
            self.owner_names,
        )

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over names and values."""
        state = hashlib.sha256()
        for names in (self.columns, self.numeric_names, self.categorical_names, self.target_names):
            state.update(repr(names).encode())
        state.update(np.ascontiguousarray(self.numeric).tobytes())
        state.update(repr(self.categorical.tolist()).encode())
        state.update(repr(self.target.tolist()).encode())
        state.update(b"" if self.owners is None else np.ascontiguousarray(self.owners).tobytes())
        return state.hexdigest()


def numeric_table(
    task: Task,
    features: NDArray[Any],
    names: Sequence[str],
    target: NDArray[Any],
    target_names: Sequence[str],
    owners: NDArray[np.int64] | None = None,
    owner_names: Sequence[str] = (),
) -> Table:
    """Make a table of numeric columns only.

    Parameters
    ----------
    task : {"regression", "classification"}
        The task.
    features : ndarray of shape (n, d)
        Numbers.
    names : sequence of str
        The d column names.
    target : ndarray of shape (n,) or (n, T)
        Labels or numbers.
    target_names : sequence of str
        One name, or T names.
    owners : ndarray of shape (n,), optional
        Natural client of each row.
    owner_names : sequence of str, optional
        Names of the natural clients.
    """
    if task == "regression":
        target = np.asarray(target, dtype=np.float64)
        target = target[:, None] if target.ndim == 1 else target
    return Table(
        task,
        tuple(names),
        np.asarray(features, dtype=np.float64),
        tuple(names),
        np.empty((len(target), 0), dtype=object),
        (),
        target,
        tuple(target_names),
        owners,
        tuple(owner_names),
    )
