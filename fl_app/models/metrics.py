"""Metrics of predictions, by scikit-learn's definitions, as plain floats.

``brier`` is the mean squared distance between probabilities and the one-hot label, halved for two
classes, as :func:`sklearn.metrics.brier_score_loss` scales it. ``r2`` of a constant target is 1
if predicted exactly, else 0 (``force_finite``), so that a client with one row has one too; a
target counts as constant where its values are equal, whatever the rounding of their mean.

Ratios of several clients are no mean of the clients' ratios. What they are made of is added up
instead: a :class:`Tally` for balanced accuracy and ROC AUC, :func:`squares` for ``r2``. Over one
client's rows they give that client's own values, ROC AUC to the width of a bin.

References
----------
Hand and Till 2001, "A Simple Generalisation of the Area Under the ROC Curve for Multiple Class
Classification Problems", https://doi.org/10.1023/A:1010920819831. The one-vs-rest mean here is
that of :func:`sklearn.metrics.roc_auc_score` with ``multi_class="ovr"``, ``average="macro"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import Task

__all__ = [
    "BINS",
    "FEWEST_ROWS",
    "NO_SCORES",
    "Tally",
    "class_counts",
    "limits",
    "merged_r2",
    "row_losses",
    "score",
    "score_all",
    "score_places",
    "squares",
]

_EPS = float(np.finfo(np.float64).eps)

NO_SCORES = frozenset({"majority_share", "predicted_classes", "roc_auc_left_out"})
"""What stands beside the metrics and says nothing of how good a model is."""
FEWEST_ROWS = 5
"""Validation rows from which on a client counts in ``fairness/`` and in a federation's tally."""
BINS = 256
"""Bins of a class's scores, of equal width in their logit between -16 and 16."""
_EDGES = 1 / (1 + np.exp(16 - np.arange(1, BINS) * (32 / BINS)))


def score(task: Task, outputs: NDArray[Any], target: NDArray[Any]) -> dict[str, float]:
    """Score outputs against the truth.

    Parameters
    ----------
    task : {"regression", "classification"}
        The task.
    outputs : ndarray of shape (n, C) or (n, T)
        Probabilities or numbers; n at least 1.
    target : ndarray of shape (n,) or (n, T)
        Class numbers or numbers.

    Returns
    -------
    dict of str to float
        ``log_loss``, ``accuracy``, ``brier`` or ``mse``, ``mae``, ``r2`` (the mean over targets).
    """
    if task == "regression":
        target = target.astype(np.float64, copy=False)
    return _SCORES[task](outputs.astype(np.float64, copy=False), target)


def row_losses(task: Task, outputs: NDArray[Any], target: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the metrics that are means over rows as they are on each row.

    Parameters
    ----------
    task, outputs, target
        As for :func:`score`.

    Returns
    -------
    dict of str to ndarray of shape (n,), float64
        ``log_loss``, ``accuracy``, ``brier`` or ``mse``, ``mae`` (each row's mean over targets).
    """
    outputs = outputs.astype(np.float64, copy=False)
    if task == "regression":
        error = (outputs - target).reshape(len(target), -1)
        return {"mse": np.square(error).mean(axis=1), "mae": np.abs(error).mean(axis=1)}
    error, at = outputs.copy(), (np.arange(len(target)), target)
    error[at] -= 1
    half = 0.5 if outputs.shape[1] == 2 else 1.0
    return {
        "log_loss": -np.log(np.maximum(outputs[at], _EPS)),
        "accuracy": (outputs.argmax(axis=1) == target).astype(np.float64),
        "brier": half * np.square(error).sum(axis=1),
    }


def score_all(task: Task, outputs: NDArray[Any], target: NDArray[Any]) -> dict[str, float]:
    """Score outputs as :func:`score` does, and for classes by what :meth:`Tally.metrics` has too.

    Here all rows are at hand, so that ``roc_auc`` is exact.

    Parameters
    ----------
    task, outputs, target
        As for :func:`score`.

    Returns
    -------
    dict of str to float
        Without the tally's where outputs are not numbers: training that diverged has no ranks.
    """
    metrics = score(task, outputs, target)
    if task == "regression" or not math.isfinite(metrics["log_loss"]):
        return metrics
    ranks = _ranks(outputs, target)
    of_classes = _of_classes(class_counts(outputs, target))
    return metrics | of_classes | _of_ranks(*ranks, outputs.shape[1])


def limits(task: Task, num_outputs: int) -> dict[str, tuple[float, float]]:
    """Return the lowest and the highest possible value of each of :func:`score`'s metrics.

    Probabilities may be off by rounding, and so may the ends.
    """
    if task == "regression":
        return {"mse": (0.0, math.inf), "mae": (0.0, math.inf), "r2": (-math.inf, 1.0)}
    near = 1e-5
    most = 1.0 if num_outputs == 2 else 2.0
    return {
        "log_loss": (-near, near - math.log(_EPS)),
        "accuracy": (0.0, 1.0),
        "brier": (0.0, most + near),
    }


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of predicted rows, which add up over clients.

    Parameters
    ----------
    classes : ndarray of shape (3, C)
        Of each class: its rows, those of them that are predicted right, the rows that are
        predicted as this class.
    scores : ndarray of shape (S, 2, 256)
        Histograms of a class's probability, in bins that are even in its logit: over the rows of
        the class and over all others. S is C, or 1 for two classes: the second one's alone, as
        the first one's are its mirror image.
    """

    classes: NDArray[np.int64]
    scores: NDArray[np.int64]

    @classmethod
    def of(cls, p: NDArray[Any], y: NDArray[Any]) -> Tally:
        """Count probabilities of shape (n, C) against class numbers of shape (n,)."""
        positions = score_places(p, y)
        scores = np.bincount(positions.ravel(), minlength=2 * BINS * len(positions))
        return cls(class_counts(p, y), scores.reshape(-1, 2, BINS))

    def metrics(self) -> dict[str, float]:
        """Return what the counts say; n at least 1.

        Returns
        -------
        dict of str to float
            ``balanced_accuracy``, over the classes that have rows; ``roc_auc``, macro one-vs-rest,
            over the classes that have rows and are not alone, absent where there are none, and
            ``roc_auc_left_out``, the number of the other classes, where there are any;
            ``majority_share``, the accuracy of whoever always says the most frequent class;
            ``predicted_classes``, how many classes are said at all.
        """
        inside, others = self.scores[:, 0], self.scores[:, 1]
        pairs = inside.sum(axis=1) * others.sum(axis=1)
        # Twice the pairs in which the row of the class has the higher score; ties are halves.
        wins = (inside * (2 * others.cumsum(axis=1) - others)).sum(axis=1)
        return _of_classes(self.classes) | _of_ranks(pairs, wins, self.classes.shape[1])


def _of_classes(classes: NDArray[np.int64]) -> dict[str, float]:
    """Return what :class:`Tally`'s counts of classes say."""
    rows, right, guessed = classes
    there = rows > 0
    return {
        "majority_share": int(rows.max()) / int(rows.sum()),
        "predicted_classes": float(np.count_nonzero(guessed)),
        "balanced_accuracy": float((right[there] / rows[there]).mean()),
    }


def _of_ranks(
    pairs: NDArray[np.int64], wins: NDArray[np.int64], num_classes: int
) -> dict[str, float]:
    """Return the macro ROC AUC of S classes from their pairs and twice the pairs that are won."""
    ranked, metrics = pairs > 0, {}
    if ranked.any():
        metrics["roc_auc"] = float((wins[ranked] / (2 * pairs[ranked])).mean())
    if not ranked.all():
        metrics["roc_auc_left_out"] = num_classes / len(ranked) * np.count_nonzero(~ranked)
    return metrics


def _ranks(p: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of each of S classes and twice those that are won, of the scores as is."""
    pairs, wins = [], []
    for number in range(1 if p.shape[1] == 2 else 0, p.shape[1]):
        column, mine = p[:, number], y == number
        inside, others = column[mine], np.sort(column[~mine])
        below = others.searchsorted(inside, "left") + others.searchsorted(inside, "right")
        pairs.append(len(inside) * len(others))
        wins.append(int(np.add.reduce(below)))
    return np.array(pairs), np.array(wins)


def class_counts(p: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    """Return :class:`Tally`'s counts of classes of probabilities (n, C) and class numbers (n,)."""
    num_classes, guess = p.shape[1], p.argmax(axis=1)
    parts = (y, y[guess == y] + num_classes, guess + 2 * num_classes)
    counts = np.bincount(np.concatenate(parts), minlength=3 * num_classes)
    return np.asarray(counts.reshape(3, -1))


def score_places(p: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each score belongs in the flat form of :class:`Tally`'s histograms, (S, n)."""
    first = 1 if p.shape[1] == 2 else 0
    scores = p.T[first:].astype(np.float64)
    number = np.arange(len(scores))[:, None]
    others = (y != number + first).astype(np.int64)
    return np.asarray(BINS * (2 * number + others) + np.searchsorted(_EDGES, scores, side="right"))


def squares(
    outputs: NDArray[Any], y: NDArray[Any], center: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Return the sums behind ``r2``, which add up over clients.

    Parameters
    ----------
    outputs, y : ndarray of shape (n, T)
        Predictions and the truth.
    center : ndarray of shape (T,) or float
        The same for all clients, near the mean of all targets: sums of squares about a far point
        lose the spread in their rounding.

    Returns
    -------
    ndarray of shape (3, T)
        The sum of the distances from the centre, of their squares, of the squared errors.
    """
    away = y.astype(np.float64, copy=False) - center
    error = outputs - y
    return np.array([away.sum(axis=0), (away * away).sum(axis=0), (error * error).sum(axis=0)])


def merged_r2(num_examples: int, sums: NDArray[np.float64]) -> float:
    """Return ``r2`` over all rows, the mean over targets, from the total of :func:`squares`.

    Parameters
    ----------
    num_examples : int
        Rows behind the sums, at least 1.
    sums : ndarray of shape (3, T)
        The total over clients.
    """
    away, spread, residual = sums
    total = spread - np.square(away) / num_examples
    constant = total <= 64 * _EPS * spread  # what is left of equal targets is rounding
    exact = np.where(residual == 0, 1.0, 0.0)
    r2 = np.where(constant, exact, 1 - residual / np.where(constant, 1.0, total))
    return float(r2.mean())


def _classification(p: NDArray[np.float64], y: NDArray[Any]) -> dict[str, float]:
    n, classes = p.shape
    at = np.arange(0, n * classes, classes) + y  # in the flat form of p
    of_truth, error = p.take(at), p.flatten()
    error.put(at, of_truth - 1)
    # Sums over n: the mean of an ndarray is the same in Python, which shows where n is small.
    return {
        "log_loss": 0.0 - float(np.add.reduce(np.log(np.maximum(of_truth, _EPS)))) / n,
        "accuracy": int(np.count_nonzero(p.argmax(axis=1) == y)) / n,
        "brier": float(error.dot(error)) / n * (0.5 if classes == 2 else 1.0),
    }


def _regression(outputs: NDArray[np.float64], y: NDArray[Any]) -> dict[str, float]:
    error = outputs - y
    residual = np.square(error).sum(axis=0)
    total = np.square(y - y.mean(axis=0)).sum(axis=0)
    # A constant's mean is rounded, so that the sum of its squares may be 1e-34 rather than 0.
    constant = (y == y[0]).all(axis=0) | (total == 0)
    exact = np.where(residual == 0, 1.0, 0.0)
    r2 = np.where(constant, exact, 1 - residual / np.where(constant, 1.0, total))
    return {
        "mse": float(np.square(error).mean()),
        "mae": float(np.abs(error).mean()),
        "r2": float(r2.mean()),
    }


_SCORES: Mapping[Task, Callable[[NDArray[np.float64], NDArray[Any]], dict[str, float]]] = {
    "classification": _classification,
    "regression": _regression,
}
