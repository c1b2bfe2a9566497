"""The colours of every picture of a run, chosen once: on white, and for colour-blind eyes.

Hues are those of Okabe and Ito where a line in them stands out on white (contrast 3:1, WCAG 1.4.11)
and darker ones of their kind where not. No picture tells things apart by colour alone: lines have
a style and a label too, classes a shape.

References
----------
Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
Nuñez, Anderton and Renslow 2018, "Optimizing colormaps with consideration for color vision
deficiency" (cividis), https://doi.org/10.1371/journal.pone.0199239.
WCAG 2.2, 1.4.11 and 1.4.3, https://www.w3.org/TR/WCAG22/#non-text-contrast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "CIVIDIS",
    "CLASSES",
    "HUES",
    "QUIET",
    "ROLES",
    "STRATEGIES",
    "Role",
    "letters",
    "strategy_style",
]

Dash = tuple[int, ...]
"""Lengths of dashes and gaps in pixels in turn; () is a solid line."""
SOLID: Dash = ()
DASHED: Dash = (6, 3)
DOTTED: Dash = (2, 2)
DASH_DOTTED: Dash = (6, 3, 2, 3)


class Role(NamedTuple):
    """How a line is drawn: its colour, its dashes and its width in pixels."""

    colour: str
    dash: Dash
    width: float


ROLES: Mapping[str, Role] = {
    "server": Role("#0072B2", SOLID, 2.5),
    "mean": Role("#007A5A", DASHED, 2.0),
    "worst": Role("#D55E00", DOTTED, 2.0),
    "clients": Role("#9AA3AD", SOLID, 1.0),
}
"""Lines over the rounds of one run: the server's, the clients' mean, the worst, each client."""

HUES = (
    *("#0072B2", "#D55E00", "#007A5A", "#CC79A7"),
    *("#000000", "#332288", "#661100", "#7F7F7F"),
)
"""Blue, vermilion, green, purple, black, indigo, brown, grey."""

STRATEGIES: Mapping[str, tuple[str, Dash]] = {
    name: (HUES[number % len(HUES)], (SOLID, DASHED, DASH_DOTTED)[number // len(HUES)])
    for number, name in enumerate(
        (
            *("fedavg", "fedstacking", "fedprox", "fedadam", "fedmedian", "krum", "qfedavg"),
            *("fedavgm", "n_average", "local", "pooled", "fedyogi", "fedtrimmedavg"),
            *("multikrum", "bulyan", "fedadagrad", "fedxgbbagging"),
        )
    )
}
"""Colour and dashes of every built-in strategy, no two alike."""

CLASSES = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
    *("#56B4E9", "#D55E00", "#F0E442", "#555555"),
)
"""Areas and points of up to eight classes; lines on white need :data:`HUES`."""

CIVIDIS = (
    *("#00224E", "#123570", "#3B496C", "#575D6D", "#707173"),
    *("#8A8678", "#A59C74", "#C3B369", "#E1CC55", "#FEE838"),
)
"""Dark to light at equal steps: values from low to high, or from good to bad."""

QUIET = "#5F6770"
"""Letters that need not be seen first, such as those of axes."""
_LETTERS = 1.05 / 4.6 - 0.05
"""Largest luminance of letters on white: WCAG 1.4.3 asks for 4.5:1."""


def letters(colour: str) -> str:
    """Return a line's colour, if need be darker, for its name on white.

    Parameters
    ----------
    colour : str
        As ``#RRGGBB``.

    Examples
    --------
    >>> letters("#0072B2"), letters("#D55E00")
    ('#0072B2', '#C15400')
    """
    shares = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    if luminance <= _LETTERS:
        return colour
    dimmed = [s * _LETTERS / luminance for s in linear]
    shares = [12.92 * s if s <= 0.0031308 else 1.055 * s ** (1 / 2.4) - 0.055 for s in dimmed]
    return "#" + "".join(f"{int(255 * s):02X}" for s in shares)


def strategy_style(name: str) -> tuple[str, Dash]:
    """Return a strategy's colour and dashes, the same in every picture and process.

    A strategy that is not built in is dotted, in a hue that its name gives.

    Parameters
    ----------
    name : str
        As ``strategy=`` takes it.

    Examples
    --------
    >>> strategy_style("fedavg")
    ('#0072B2', ())
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return HUES[number % len(HUES)], DOTTED
