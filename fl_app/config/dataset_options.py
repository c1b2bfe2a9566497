"""Options of ``dataset=``: each data set, and a table of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fl_app.config.registry import opt, register

__all__ = ["MAX_AUTO_LEVELS", "MIN_LEVEL_ROWS", "Levels"]

MIN_LEVEL_ROWS = 5
"""Rows of a node that a level or a class needs before the node names or counts it."""
MAX_AUTO_LEVELS = 20
"""Levels up to which a column of texts becomes categorical by itself."""


class Levels(dict[str, tuple[str, ...]]):
    """The levels of columns by name; not to be changed, so that it can be hashed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


@dataclass(frozen=True)
class DatasetConfig:
    """A data set and its splits; built from itself and the seed into a ``Table``.

    Attributes
    ----------
    task : {"regression", "classification"}
        Its task.
    has_clients : bool
        Whether its rows have natural clients.
    clients : (int, str) or None
        The number of clients that it always has, and why.
    is_drawn : bool
        Whether its rows are drawn by the seed.
    has_no_noise : bool
        Whether new rows of its clients would be those that they have: then the server's test rows
        are these, where ``test_fraction`` is 0.
    """

    if TYPE_CHECKING:  # a table of one's own has a field of this name, in its own place
        task: ClassVar[str]
    group: ClassVar[str] = "dataset"
    has_clients: ClassVar[bool] = False
    clients: ClassVar[tuple[int, str] | None] = None
    is_drawn: ClassVar[bool] = False
    has_no_noise: ClassVar[bool] = False

    name: str = opt("", "Name of the data set.")
    test_fraction: float = opt(
        0.2, "Share of all rows that the server keeps as its test set.", ge=0, lt=1
    )
    val_fraction: float = opt(
        0.1, "Share of its own rows that each client keeps for `eval/`.", ge=0, lt=1
    )
    standardize: bool = opt(
        True,
        "Bring numeric features, and regression targets while a model learns, to mean 0 and "
        "variance 1 with the federation's moments.",
    )


@register
@dataclass(frozen=True)
class DigitsConfig(DatasetConfig):
    """1797 handwritten digits of 8 x 8 pixels."""

    task: ClassVar[str] = "classification"

    name: str = "digits"


@register
@dataclass(frozen=True)
class TwoLinesConfig(DatasetConfig):
    """y = 2x + 1 on client 0, y = x + 1 on client 1: all rows are for training and for the test."""

    task: ClassVar[str] = "regression"
    has_clients: ClassVar[bool] = True
    clients: ClassVar[tuple[int, str] | None] = (2, "one a line")
    has_no_noise: ClassVar[bool] = True

    name: str = "two_lines"
    test_fraction: float = 0.0
    val_fraction: float = 0.0
    standardize: bool = False
    rows: tuple[int, ...] = opt((2, 2), "Rows of each of the two clients.", ge=1, length=2)


@register
@dataclass(frozen=True)
class DiabetesConfig(DatasetConfig):
    """442 patients and their disease's progression."""

    task: ClassVar[str] = "regression"

    name: str = "diabetes"


@register
@dataclass(frozen=True)
class IrisConfig(DatasetConfig):
    """150 irises of three species."""

    task: ClassVar[str] = "classification"

    name: str = "iris"


@register
@dataclass(frozen=True)
class WineConfig(DatasetConfig):
    """178 wines of three cultivars."""

    task: ClassVar[str] = "classification"

    name: str = "wine"


@register
@dataclass(frozen=True)
class BreastCancerConfig(DatasetConfig):
    """569 tumours, malignant or benign."""

    task: ClassVar[str] = "classification"

    name: str = "breast_cancer"


@register
@dataclass(frozen=True)
class HeartDiseaseConfig(DatasetConfig):
    """UCI's four hospitals, the rows of FLamby's Fed-Heart-Disease."""

    task: ClassVar[str] = "classification"
    has_clients: ClassVar[bool] = True

    name: str = "heart_disease"
    split: str = opt(
        "seeded",
        "Test rows: drawn by the seed, or FLamby's fixed ones whatever `test_fraction` says.",
        choices=("seeded", "flamby"),
    )


@register
@dataclass(frozen=True)
class PenguinsConfig(DatasetConfig):
    """Penguins of three species on three islands."""

    task: ClassVar[str] = "classification"
    has_clients: ClassVar[bool] = True

    name: str = "penguins"


@dataclass(frozen=True)
class SyntheticConfig(DatasetConfig):
    """Rows drawn by the seed."""

    is_drawn: ClassVar[bool] = True

    num_examples: int = opt(1000, "Rows.", ge=2)
    num_features: int = opt(10, "Columns.", ge=1)


@register
@dataclass(frozen=True)
class SyntheticRegressionConfig(SyntheticConfig):
    """A noisy line drawn by the seed."""

    task: ClassVar[str] = "regression"

    name: str = "synthetic_regression"


@register
@dataclass(frozen=True)
class SyntheticClassificationConfig(SyntheticConfig):
    """Gaussian classes drawn by the seed."""

    task: ClassVar[str] = "classification"

    name: str = "synthetic_classification"
    num_classes: int = opt(3, "Classes.", ge=2)


@register
@dataclass(frozen=True)
class RingsConfig(DatasetConfig):
    """Noisy rings around one point, drawn by the seed: two columns, for pictures."""

    task: ClassVar[str] = "classification"
    is_drawn: ClassVar[bool] = True

    name: str = "rings"
    num_examples: int = opt(400, "Rows.", ge=2)
    num_classes: int = opt(2, "Rings of radius 1, 2, ...; each is a class.", ge=2)
    noise: float = opt(0.25, "Standard deviation of a row's distance from its ring.", ge=0)


@register
@dataclass(frozen=True)
class TabularConfig(DatasetConfig):
    """One CSV or Parquet file of the user's own."""

    has_clients: ClassVar[bool] = True

    name: str = "tabular"
    path: str | None = opt(None, "The file.")
    target: str | tuple[str, ...] | None = opt(None, "Column to predict; several for regression.")
    task: str = opt(  # type: ignore[misc]
        "classification", "What the target is.", choices=("regression", "classification")
    )
    features: tuple[str, ...] | None = opt(
        None, "Columns to predict from; null: all others but dates, identifiers and empty ones."
    )
    exclude: tuple[str, ...] = opt((), "Columns that are no features.")
    categorical: tuple[str, ...] | Literal["auto"] = opt(
        "auto",
        "Features taken as texts, one level each; `auto`: columns of texts with 1 to 20 levels "
        "that nodes tell and that no more than a tenth of any node's rows lack.",
    )
    missing: str = opt(
        "error", "What to do about missing cells.", choices=("error", "drop", "mean")
    )
    missing_values: tuple[int | float | str, ...] = opt(
        (), "Cells that are missing, beside blanks and words like NA, None, n/a, ? and -."
    )
    separator: str | None = opt(
        None,
        "What separates the cells of CSV: comma, semicolon, tab, pipe or space, or the sign; null: "
        "told from the file's lines.",
    )
    decimal: str = opt("dot", "What begins the decimals: dot or comma, or the sign.")
    thousands: str | None = opt(
        None,
        "What stands between groups of three digits: comma, dot, space or apostrophe, or the sign.",
    )
    min_level_rows: int = opt(
        MIN_LEVEL_ROWS,
        "Rows of a node that a level or a class needs before the node tells its name or how many.",
        ge=1,
    )
    classes: tuple[int | str, ...] | None = opt(
        None, "All classes, where they are no secret; null: those that a node tells."
    )
    levels: Levels | None = opt(  # noqa: RUF009  (the type is hashable and not written to)
        None, "All levels of categorical columns, likewise: `{column: [level, …]}`."
    )
