"""The cells of all columns with a role, each brought to its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fl_app.config.overrides import bracket
from fl_app.data.columns import NotANumberError, is_missing, is_text, numbers, plain, texts
from fl_app.data.files import separator_of
from fl_app.data.roles import Roles
from fl_app.data.spelling import told_spellings
from fl_app.errors import DataError

__all__ = ["Columns", "parse", "spelling_options", "text_columns"]

Parser = Callable[[Any], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Columns:
    """The cells of all columns with a role.

    Parameters
    ----------
    roles : Roles
        The roles.
    features : dict of str to ndarray of shape (n,)
        float64 with NaN for numeric features, object with texts and None for categorical ones.
    targets : dict of str to ndarray of shape (n,)
        float64 with NaN for regression; object with int, float, str and None for labels.
    key : dict of str to ndarray of shape (n,)
        The key with its values as labels have them; empty where there is none.
    """

    roles: Roles
    features: dict[str, NDArray[Any]]
    targets: dict[str, NDArray[Any]]
    key: dict[str, NDArray[Any]]


def parse(
    frame: Any, roles: Roles, fail: Callable[[DataError], None], *, empty: bool = False
) -> Columns:
    """Bring the cells of all columns with a role to their type.

    Parameters
    ----------
    frame : pandas.DataFrame
        The file.
    roles : Roles
        What each column is.
    fail : callable
        Is given a DataError for each column that cannot be used; the column is then left out.
    empty : bool, default False
        Whether features may have no value at all.
    """

    def cells(names: Sequence[str], parser: Callable[[str], Parser]) -> dict[str, NDArray[Any]]:
        parsed = {}
        for name in names:
            try:
                parsed[name] = parser(name)(frame[name])
                if is_missing(parsed[name]).all() and not (empty and name in roles.features):
                    raise DataError(name, "missing in every row", "a value in some row")
            except NotANumberError as error:
                fail(DataError(name, str(error), _numbers_wanted(frame, roles, name)))
            except DataError as error:
                fail(error)
        return parsed

    target = numbers if roles.task == "regression" else plain
    return Columns(
        roles,
        cells(roles.features, lambda name: texts if name in roles.categorical else numbers),
        cells(roles.targets, lambda _: target),
        cells([] if roles.key is None else [roles.key], lambda _: plain),
    )


def _numbers_wanted(frame: Any, roles: Roles, name: str) -> str:
    """Say what to do about a column that should hold numbers and does not."""
    if name in roles.targets:
        return "numbers, as dataset.task=regression; for labels set dataset.task=classification"
    if spellings := told_spellings([frame[name]], separator_of(frame)):
        return f"numbers; if these are, set {' or '.join(map(spelling_options, spellings))}"
    columns = {name, *roles.categorical, *text_columns(frame, roles.features)}
    levels = bracket([feature for feature in roles.features if feature in columns])
    return f"numbers; for columns of texts set 'dataset.categorical={levels}'"


def spelling_options(spelling: Mapping[str, str]) -> str:
    """Write what :func:`fl_app.data.spelling.told_spellings` found as overrides."""
    return " ".join(f"dataset.{option}={word}" for option, word in spelling.items())


def text_columns(frame: Any, names: Sequence[str]) -> list[str]:
    """Return the columns of which less than half of the values are numbers."""
    return [name for name in names if is_text(frame[name])]
