"""Problems drawn by the seed, whose best possible score is known from how they are drawn.

Regression: x ~ N(0, I), y = w'x + e with |w| = 1 and Var(e) = 1/9, so that the best R2 is
1 / (1 + 1/9) = 0.9. Classification: x ~ N(m_c, I) with centres m_c drawn so that two of them are
4 standard deviations apart in the root mean square; softmax regression is then the best model
there is, and two classes just so far apart are told apart with accuracy Phi(2) = 0.977. Rings:
class c lies around the circle of radius c + 1, at a uniform angle and a distance from the origin
drawn from N(c + 1, noise^2); the nearest circle is the best guess, right for two rings with
probability Phi(1 / (2 noise)), which is again 0.977 for noise = 1/4, while no line is right for
more than 2/3 of two circles' rows (a tangent of the inner one is).

References
----------
Hastie, Tibshirani and Friedman 2009, "The Elements of Statistical Learning", section 4.3 (linear
boundaries between Gaussian classes), https://hastie.su.domains/ElemStatLearn/.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_app.data.table import Table, numeric_table
from fl_app.errors import ConfigError
from fl_app.seeding import generator

__all__ = ["NOISE", "SEPARATION", "rings", "synthetic_classification", "synthetic_regression"]

NOISE = 1 / 3
"""Standard deviation of a regression target around w'x."""
SEPARATION = 4.0
"""Root mean square of the distance between two class centres."""


def synthetic_regression(num_examples: int, num_features: int, seed: int) -> Table:
    """Draw a linear regression problem.

    Parameters
    ----------
    num_examples, num_features : int
        Rows and columns, at least 1.
    seed : int
        The run's seed.

    Returns
    -------
    Table
        Columns ``x0`` to ``x{num_features - 1}`` and the target ``y``.
    """
    rng = generator(seed, "synthetic-regression")
    weights = rng.normal(size=num_features)
    weights /= np.linalg.norm(weights)
    x = rng.normal(size=(num_examples, num_features))
    y = x @ weights + rng.normal(scale=NOISE, size=num_examples)
    return numeric_table("regression", x, _names(num_features), y, ["y"])


def synthetic_classification(
    num_examples: int, num_features: int, num_classes: int, seed: int
) -> Table:
    """Draw a classification problem with classes of equal size (plus or minus one row).

    Parameters
    ----------
    num_examples, num_features : int
        Rows and columns, at least 1.
    num_classes : int
        C, at least 2; the labels are 0 to C - 1.
    seed : int
        The run's seed.

    Returns
    -------
    Table
        Columns ``x0`` to ``x{num_features - 1}`` and the label ``class``.

    Raises
    ------
    ConfigError
        If there are fewer rows than classes.
    """
    rng = generator(seed, "synthetic-classification")
    # E|m_a - m_b|^2 = 2 d s^2 for centres with entries N(0, s^2).
    centres = rng.normal(size=(num_classes, num_features)) * SEPARATION / np.sqrt(2 * num_features)
    labels = _labels(num_examples, num_classes, rng)
    x = centres[labels] + rng.normal(size=(num_examples, num_features))
    return numeric_table("classification", x, _names(num_features), labels, ["class"])


def rings(num_examples: int, num_classes: int, noise: float, seed: int) -> Table:
    """Draw rings around the origin, with classes of equal size (plus or minus one row).

    Parameters
    ----------
    num_examples : int
        Rows, at least one a class.
    num_classes : int
        C, at least 2; class c is the ring of radius c + 1.
    noise : float
        Standard deviation of a row's distance from its circle.
    seed : int
        The run's seed.

    Returns
    -------
    Table
        Columns ``x0`` and ``x1`` and the label ``class``.

    Raises
    ------
    ConfigError
        If there are fewer rows than classes.
    """
    rng = generator(seed, "rings")
    labels = _labels(num_examples, num_classes, rng)
    angle = rng.uniform(0, 2 * np.pi, num_examples)
    radius = labels + 1 + noise * rng.normal(size=num_examples)
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return numeric_table("classification", x, _names(2), labels, ["class"])


def _labels(num_examples: int, num_classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if num_examples < num_classes:
        allowed = f"at least one row a class, of which are {num_classes}"
        raise ConfigError("dataset.num_examples", num_examples, allowed)
    return np.asarray(rng.permutation(np.arange(num_examples) % num_classes))


def _names(num_features: int) -> list[str]:
    return [f"x{j}" for j in range(num_features)]
