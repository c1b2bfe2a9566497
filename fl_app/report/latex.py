"""Tables as LaTeX, for the package ``booktabs``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fl_app.report.rendering import TextTable, clean

__all__ = ["to_latex"]

_ESCAPED = str.maketrans(
    {
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': "''",
        "±": r"$\pm$",
        "\N{MULTIPLICATION SIGN}": r"$\times$",
        "\N{MINUS SIGN}": "$-$",
        # After a row's end it would be taken for an option.
        "[": "{[}",
        "]": "{]}",
    }
)

_MINUS = re.compile(r"(?<![\w.-])-(?=\d)")


def to_latex(tables: Iterable[TextTable]) -> str:
    r"""Return each table as a ``tabular`` under a comment with its title.

    Examples
    --------
    >>> print(to_latex([TextTable("t", ("a_b", "mean ± sd"), (("100 %", "1 ± 2"),))]))
    % t
    \begin{tabular}{lr}
    \toprule
    a\_b & mean $\pm$ sd \\
    \midrule
    100 \% & 1 $\pm$ 2 \\
    \bottomrule
    \end{tabular}
    <BLANKLINE>
    """
    parts = []
    for table in tables:
        shown = clean(table)
        assert isinstance(shown, TextTable)
        columns = "".join("l" if i < shown.texts else "r" for i in range(len(shown.columns)))
        parts += [f"% {shown.title}", f"\\begin{{tabular}}{{{columns}}}", r"\toprule"]
        parts += [_row(shown.columns), r"\midrule"]
        for number, row in enumerate(shown.rows):
            parts += [r"\midrule"] if number in shown.sections else []
            parts.append(_row(row))
        parts += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(parts)


def _row(cells: Iterable[str]) -> str:
    shown = (_MINUS.sub("$-$", cell.translate(_ESCAPED)) for cell in cells)
    return " & ".join(shown) + r" \\"
