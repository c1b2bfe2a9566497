"""The data sets that a config can name, each as one :class:`~fl_app.data.table.Table`.

Sources
-------
digits, diabetes, iris, wine, breast_cancer: scikit-learn's toy data sets,
https://scikit-learn.org/stable/datasets/toy_dataset.html.
heart_disease, penguins: see ``sets/files/README.md``.
two_lines: y = 2x + 1 and y = x + 1 at x = -1 and x = +1 in turn, computed here.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from fl_app.config.checking import sign
from fl_app.config.dataset_options import (
    BreastCancerConfig,
    DatasetConfig,
    DiabetesConfig,
    DigitsConfig,
    HeartDiseaseConfig,
    IrisConfig,
    PenguinsConfig,
    RingsConfig,
    SyntheticClassificationConfig,
    SyntheticRegressionConfig,
    TabularConfig,
    TwoLinesConfig,
    WineConfig,
)
from fl_app.config.registry import builder_of, register
from fl_app.config.schema import task_of
from fl_app.data.reading import Reading
from fl_app.data.sets import synthetic, toy, vendored
from fl_app.data.spelling import MISSING_WORDS, VERBATIM, Spelling
from fl_app.data.table import Table, numeric_table
from fl_app.data.tabular import Found, find_columns, load_tabular
from fl_app.errors import ConfigError

__all__ = ["load", "load_own", "look_at_own", "spelling_of", "undecided"]


def load(dataset: DatasetConfig, seed: int, key: str | None = None) -> Table:
    """Load a data set; the same one is read once a process.

    Parameters
    ----------
    dataset : DatasetConfig
        Which one, with its options.
    seed : int
        Seed of the data that is drawn rather than read.
    key : str, optional
        For ``tabular``: the column that names each row's natural client.

    Returns
    -------
    Table
        Shared by all callers: do not write to it.
    """
    if isinstance(dataset, TabularConfig):
        path = dataset.path or ""
        return _file(dataset, str(Path(path).absolute()), _stamp(path), key, False)
    return _known(dataset, seed)


def load_own(dataset: DatasetConfig, path: str, key: str | None = None) -> Table:
    """Load a node's own file by the options of ``dataset=tabular``; it may hold one class only.

    Parameters
    ----------
    dataset : DatasetConfig
        With the options.
    path : str
        The file.
    key : str, optional
        Column of the natural clients, which is no feature here either.

    Raises
    ------
    ConfigError
        If the config names another data set.
    DataError
        If the file cannot be used.
    """
    own = _own(dataset)
    return _file(own, str(Path(path).absolute()), _stamp(path), key, True)


def look_at_own(dataset: DatasetConfig, path: str, key: str | None = None) -> Found:
    """Look at a node's own file before the nodes agree on columns.

    Parameters and errors are those of :func:`load_own`.
    """
    own = _own(dataset)
    roles = own.target or "", task_of(own), own.features, own.categorical
    return find_columns(path, *roles, own.missing, key, _reading(own, own=True))


def undecided(dataset: DatasetConfig) -> bool:
    """Return whether nodes with files of their own have to agree on columns."""
    return isinstance(dataset, TabularConfig) and (
        dataset.features is None or dataset.categorical == "auto"
    )


def _own(dataset: DatasetConfig) -> TabularConfig:
    if not isinstance(dataset, TabularConfig):
        raise ConfigError("dataset", dataset.name, "tabular, where a node brings a file of its own")
    return dataset


def spelling_of(dataset: DatasetConfig) -> Spelling:
    """Return how a data set's texts spell missing cells and numbers."""
    if not isinstance(dataset, TabularConfig):
        return VERBATIM
    thousands = "" if dataset.thousands is None else sign(dataset.thousands)
    words = (*MISSING_WORDS, *map(str, dataset.missing_values))
    return Spelling(words, sign(dataset.decimal), thousands)


def _reading(dataset: TabularConfig, own: bool) -> Reading:
    values = dict(dataset.levels or {})
    if dataset.classes and isinstance(dataset.target, str):
        values[dataset.target] = tuple(map(str, dataset.classes))
    return Reading(
        dataset.exclude,
        dataset.min_level_rows,
        None if dataset.separator is None else sign(dataset.separator),
        spelling_of(dataset),
        tuple(values.items()),
        own,
    )


def _stamp(path: str) -> tuple[int, int]:
    """Tell a file's versions apart, so that a changed one is read again."""
    try:
        found = Path(path).stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4)
def _file(
    dataset: TabularConfig, path: str, stamp: tuple[int, int], key: str | None, own: bool
) -> Table:
    return load_tabular(
        path,
        dataset.target or "",
        task_of(dataset),
        dataset.features,
        dataset.categorical,
        dataset.missing,
        key,
        _reading(dataset, own),
    )


@lru_cache(maxsize=8)
def _known(dataset: DatasetConfig, seed: int) -> Table:
    table: Table = builder_of(dataset)(dataset, seed)
    return table


def _diabetes(dataset: DatasetConfig, seed: int) -> Table:
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return numeric_table(
        "regression", bunch.data, bunch.feature_names, bunch.target, ["progression"]
    )


def _two_lines(dataset: TwoLinesConfig, seed: int) -> Table:
    slopes = (2.0, 1.0)
    x = [np.resize([-1.0, 1.0], n) for n in dataset.rows]
    y = [slope * part + 1.0 for slope, part in zip(slopes, x, strict=True)]
    owners = np.repeat(np.arange(len(slopes)), dataset.rows)
    return numeric_table(
        "regression", np.concatenate(x)[:, None], ["x"], np.concatenate(y), ["y"], owners
    )


def _synthetic_classification(dataset: SyntheticClassificationConfig, seed: int) -> Table:
    n, d, c = dataset.num_examples, dataset.num_features, dataset.num_classes
    return synthetic.synthetic_classification(n, d, c, seed)


def _rings(dataset: RingsConfig, seed: int) -> Table:
    return synthetic.rings(dataset.num_examples, dataset.num_classes, dataset.noise, seed)


register(DigitsConfig, build=lambda dataset, seed: toy.digits())
register(TwoLinesConfig, build=_two_lines)
register(DiabetesConfig, build=_diabetes)
register(IrisConfig, build=lambda dataset, seed: toy.iris())
register(WineConfig, build=lambda dataset, seed: toy.wine())
register(BreastCancerConfig, build=lambda dataset, seed: toy.breast_cancer())
register(HeartDiseaseConfig, build=lambda dataset, seed: vendored.heart_disease())
register(PenguinsConfig, build=lambda dataset, seed: vendored.penguins())
register(
    SyntheticRegressionConfig,
    build=lambda own, seed: synthetic.synthetic_regression(
        own.num_examples, own.num_features, seed
    ),
)
register(SyntheticClassificationConfig, build=_synthetic_classification)
register(RingsConfig, build=_rings)
