"""How a file of the user's own is read, beyond the roles of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_app.config.dataset_options import MIN_LEVEL_ROWS
from fl_app.data.files import read_frame
from fl_app.data.spelling import PLAIN, Spelling

__all__ = ["DEALT", "Reading"]


@dataclass(frozen=True)
class Reading:
    """How a file is read, beyond the roles of its columns.

    Parameters
    ----------
    exclude : tuple of str
        Columns that are no features.
    min_level_rows : int
        Rows that a level needs to be one, where texts become categorical by themselves.
    separator : str or None
        What separates the cells of CSV; None: told from its body.
    spelling : Spelling
        How texts spell missing cells and numbers.
    values : tuple of (str, tuple of str)
        By column the texts that are values, though the same words are missing cells elsewhere.
    own : bool
        Whether it is a node's own file. It may hold one class and lack an excluded column, and
        where ``missing`` is ``mean`` a column that it does not have is one of missing cells.
    """

    exclude: tuple[str, ...] = ()
    min_level_rows: int = MIN_LEVEL_ROWS
    separator: str | None = None
    spelling: Spelling = PLAIN
    values: tuple[tuple[str, tuple[str, ...]], ...] = ()
    own: bool = False

    def frame(self, path: str | Path) -> Any:
        """Read a file, see :func:`fl_app.data.files.read_frame`."""
        return read_frame(path, self.separator, self.spelling, dict(self.values))


DEALT = Reading()
"""As a file is read whose rows are all the rows there are."""
