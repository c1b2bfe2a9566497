"""The arithmetic that all variants of the benchmark do, in plain NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_app.aggregation import merge_moments, moments
from fl_app.config.schema import Config
from fl_app.data.client_data import encode, partition_of, test_table, whole_table
from fl_app.data.encoding import Encoding, labels_of, scaler

Arrays = dict[str, NDArray[np.float64]]
Rows = tuple[NDArray[np.float64], NDArray[np.int64]]


def prepared(cfg: Config) -> tuple[list[Rows], Rows]:
    """Return each client's encoded rows and the server's test rows."""
    parts = [partition_of(cfg, k) for k in range(cfg.num_clients)]
    table, test = whole_table(cfg), test_table(cfg)
    told = [moments(p.rows.numeric) for p in parts if len(p.rows) >= cfg.min_rows]
    mean, scale = scaler(merge_moments(told), table.numeric.shape[1])
    labels = tuple(labels_of(table.target))
    names = table.columns
    encoding = Encoding(table.task, names, names, mean, scale, (), labels, table.target_names)
    encoded = [encode(p, encoding, cfg.model.dtype) for p in parts]
    return [(e.x, e.y) for e in encoded], (encoding.features(test), encoding.truth(test))


def zeros(rows: Rows) -> Arrays:
    """Return the arrays before training; digits has 10 classes."""
    return {"coef": np.zeros((10, rows[0].shape[1])), "intercept": np.zeros(10)}


def sgd(start: Arrays, rows: Rows, rate: float, size: int, rng: np.random.Generator) -> Arrays:
    """Return the arrays after one epoch."""
    x, y = rows
    coef, intercept = start["coef"].copy(), start["intercept"].copy()
    size = size if size < len(x) else len(x)
    order = rng.permutation(len(x)) if size < len(x) else None
    for first in range(0, len(x), size):
        chosen = None if order is None else order[first : first + size]
        xb, yb = (x, y) if chosen is None else (x[chosen], y[chosen])
        p = predict({"coef": coef, "intercept": intercept}, xb)
        p[np.arange(len(yb)), yb] -= 1
        p *= 1 / len(yb)
        coef -= rate * (p.T @ xb)
        intercept -= rate * p.sum(axis=0)
    return {"coef": coef, "intercept": intercept}


def predict(arrays: Arrays, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities."""
    z = x @ arrays["coef"].T + arrays["intercept"]
    p: NDArray[np.float64] = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def metrics(arrays: Arrays, rows: Rows) -> dict[str, float]:
    """Score arrays on rows."""
    x, y = rows
    p = predict(arrays, x)
    own = p[np.arange(len(y)), y]
    brier = (np.square(p).sum(axis=1) - 2 * own + 1).mean()
    return {
        "log_loss": float(-np.log(np.maximum(own, 1e-300)).mean()),
        "accuracy": float((p.argmax(1) == y).mean()),
        "brier": float(brier),
    }
