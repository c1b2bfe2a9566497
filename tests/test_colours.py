"""Colours tell things apart, on white and for colour-blind eyes."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_app.colours import (
    CIVIDIS,
    CLASSES,
    HUES,
    QUIET,
    ROLES,
    STRATEGIES,
    letters,
    strategy_style,
)
from fl_app.config.schema import GROUPS

SIGHTS = {
    "whole": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""What eyes make of linear RGB: Machado, Oliveira and Fernandes 2009, severity 1."""
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193, 0.1192, 0.9503]]
)


def linear(colour: str) -> NDArray[np.float64]:
    """Return linear RGB of ``#RRGGBB``."""
    value = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return CIE L*a*b* of linear RGB, against sRGB's white."""
    value = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(axis=1)
    x, y, z = np.where(value > 0.008856, np.cbrt(value), 7.787 * value + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(one: str, other: str, sight: str) -> float:
    """Return how far two colours are from each other; 2.3 is just seen."""
    eye = np.array(SIGHTS[sight])
    return float(np.linalg.norm(lab(eye @ linear(one)) - lab(eye @ linear(other))))


def contrast_on_white(colour: str) -> float:
    """Return WCAG's contrast ratio."""
    return 1.05 / (float(TO_XYZ[1] @ linear(colour)) + 0.05)


def test_every_strategy_has_a_style_of_its_own() -> None:
    """All built-in strategies stand in the table, and no two of them are drawn alike."""
    names = list(GROUPS["strategy"])
    assert set(STRATEGIES) == set(names)
    assert len({strategy_style(name) for name in names}) == len(names)


def test_a_foreign_strategy_is_drawn_by_its_name() -> None:
    """It has one style in all processes, and never a built-in's; names spread over the hues."""
    names = [f"mine{k}" for k in range(40)]
    code = f"from fl_app.colours import strategy_style as s; print([s(n) for n in {names}])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    styles = [strategy_style(name) for name in names]
    assert told.stdout.strip() == repr(styles)
    assert not set(styles) & set(STRATEGIES.values())
    assert {colour for colour, _ in styles} == set(HUES)


@pytest.mark.parametrize("sight", SIGHTS)
def test_hues_differ_for_every_eye(sight: str) -> None:
    """Two hues of lines are four times what is just seen apart, or more."""
    assert min(apart(a, b, sight) for a, b in combinations(HUES, 2)) > 4 * 2.3


def test_lines_stand_out_on_white() -> None:
    """WCAG 1.4.11 asks for 3:1; the thin lines of many clients may be a background."""
    lines = {*HUES, *(role.colour for name, role in ROLES.items() if name != "clients")}
    assert min(map(contrast_on_white, lines)) >= 3


def test_names_of_lines_can_be_read_on_white() -> None:
    """WCAG 1.4.3 asks for 4.5:1; what has it already stays as it is."""
    drawn = {*HUES, *(role.colour for role in ROLES.values())}
    assert min(contrast_on_white(letters(colour)) for colour in drawn | {QUIET}) >= 4.5
    assert all(letters(colour) == colour for colour in drawn if contrast_on_white(colour) > 4.6)


def test_roles_differ_in_more_than_colour() -> None:
    """Each role has its own dashes or width."""
    assert len({(role.dash, role.width) for role in ROLES.values()}) == len(ROLES)


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_first_classes_differ_for_every_eye(sight: str) -> None:
    """Two of the first three classes' areas are far apart; all eight are told apart."""
    assert min(apart(a, b, sight) for a, b in combinations(CLASSES[:3], 2)) > 7 * 2.3
    assert min(apart(a, b, sight) for a, b in combinations(CLASSES, 2)) > 2 * 2.3


def test_the_ramp_rises_evenly() -> None:
    """Lightness rises from step to step, no step more than twice another."""
    steps = np.diff([lab(linear(colour))[0] for colour in CIVIDIS])
    assert (steps > 0).all()
    assert steps.max() < 2 * steps.min()
