"""Data sets that come along: their digests, their counts, and FLamby's split cut once more."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets
from sklearn.model_selection import train_test_split

import fl_app
from fl_app.data.sets.synthetic import (
    NOISE,
    SEPARATION,
    rings,
    synthetic_classification,
    synthetic_regression,
)
from fl_app.data.sets.toy import breast_cancer, iris, wine
from fl_app.data.sets.vendored import flamby_split, heart_disease, penguins
from fl_app.errors import ConfigError

FOLDER = Path(fl_app.__file__).parent / "data" / "sets" / "files"
DIGESTS = {
    "heart_disease": "19b39830ba9fbdc48ccb03a314b6e5bf69d9d1ac5d692333db91afe4c2260519",
    "penguins": "1ed049cf0edd4104b1ed9a27bd32885cb91e5dad9a2f48b06ee85509fcc737f3",
}
HOSPITALS = range(4)


def raw(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", DIGESTS)
def test_a_vendored_file_is_the_one_that_was_checked(name):
    """Every byte of a vendored file is pinned."""
    assert hashlib.sha256((FOLDER / f"{name}.json").read_bytes()).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("name", DIGESTS)
def test_a_vendored_file_says_where_it_comes_from(name):
    """Source, licence and attribution stand in the file and in the README beside it."""
    data, readme = raw(name), (FOLDER / "README.md").read_text(encoding="utf-8")
    for key in ("source", "obtained_from", "licence", "attribution", "changes"):
        assert data[key]
    assert f"`{name}.json`" in readme
    assert data["licence"].split(", ")[1] in readme


def test_every_vendored_file_has_a_format_that_a_bundle_carries():
    """Flower drops CSV and npz from a bundle without a word."""
    assert {path.suffix for path in FOLDER.iterdir() if path.is_file()} == {".json", ".md"}


# ---------------------------------------------------------------------------- heart disease
def test_the_heart_file_has_the_rows_of_uci():
    """UCI counts 303 + 294 + 123 + 200 patients; Hungary's first is 28 years old."""
    rows = raw("heart_disease")["rows"]
    assert [Counter(row[0] for row in rows)[h] for h in HOSPITALS] == [303, 294, 123, 200]
    assert next(row[1] for row in rows if row[0] == 1) == 28


def test_heart_disease_has_the_rows_of_flamby():
    """740 rows are complete: 303, 261, 46 and 130 by hospital."""
    table = heart_disease()
    assert len(table) == 740
    assert np.bincount(table.owners).tolist() == [199 + 104, 172 + 89, 30 + 16, 85 + 45]
    assert np.isfinite(table.numeric).all()
    assert set(table.target.tolist()) == {0, 1}


def test_heart_disease_has_the_13_features_of_flamby():
    """Numbers and all but the first level of each category are FLamby's 13 features."""
    table = heart_disease()
    levels = [len(set(table.categorical[:, j])) for j in range(table.categorical.shape[1])]
    assert table.categorical_names == ("cp", "restecg")
    assert levels == [4, 3]
    assert table.numeric.shape[1] + sum(count - 1 for count in levels) == 13
    assert set(table.columns) == {*table.numeric_names, *table.categorical_names}


def test_flambys_split_reproduces_its_counts():
    """Train and test rows by hospital are 199/104, 172/89, 30/16 and 85/45."""
    owners = heart_disease().owners
    train, test = flamby_split()
    counts = [np.bincount(owners[rows], minlength=4).tolist() for rows in (train, test)]
    assert counts == [[199, 172, 30, 85], [104, 89, 16, 45]]
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(740))


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_flambys_split_is_cut_as_flamby_cuts_it(hospital):
    """34 % of a hospital's rows, seed 43, stratified where each class has more than two rows."""
    table = heart_disease()
    mine = np.flatnonzero(table.owners == hospital)
    label = table.target[mine]
    _, expected = train_test_split(
        np.arange(len(mine)),
        test_size=1.0 - 0.66,
        train_size=0.66,
        random_state=43,
        shuffle=True,
        stratify=label if np.bincount(label).min() > 2 else None,
    )
    found = np.intersect1d(flamby_split()[1], mine)
    assert np.array_equal(found, np.sort(mine[expected]))


# ---------------------------------------------------------------------------- penguins
def test_penguins_are_the_333_complete_rows_by_island_and_species():
    """Biscoe has 44 Adelie and 119 Gentoo, Dream 55 and 68 Chinstrap, Torgersen 47 Adelie."""
    table = penguins()
    assert len(raw("penguins")["rows"]) == 344
    assert Counter(zip(table.owners.tolist(), table.target.tolist(), strict=True)) == {
        (0, "Adelie"): 44,
        (0, "Gentoo"): 119,
        (1, "Adelie"): 55,
        (1, "Chinstrap"): 68,
        (2, "Adelie"): 47,
    }
    assert table.numeric.shape == (333, 4)
    assert np.isfinite(table.numeric).all()


def test_loading_twice_gives_equal_tables():
    """Nothing in a loaded table depends on what somebody did to another one."""
    for load in (heart_disease, penguins, iris):
        first = load()
        digest = first.sha256
        first.numeric[:] = 0
        assert load().sha256 == digest


# ---------------------------------------------------------------------------- scikit-learn
@pytest.mark.parametrize(
    ("load", "source"),
    [
        (iris, datasets.load_iris),
        (wine, datasets.load_wine),
        (breast_cancer, datasets.load_breast_cancer),
    ],
)
def test_toy_sets_are_scikit_learns(load, source):
    """Columns, cells and integer labels are those of scikit-learn."""
    table, bunch = load(), source()
    assert table.columns == tuple(bunch.feature_names)
    assert np.array_equal(table.numeric, bunch.data)
    assert np.array_equal(table.target, bunch.target)
    assert table.target.dtype.kind == "i"


# ---------------------------------------------------------------------------- synthetic
def test_synthetic_data_is_a_function_of_the_seed():
    """The same seed draws the same table, another seed another one."""
    for draw in (
        lambda seed: synthetic_regression(50, 3, seed),
        lambda seed: synthetic_classification(50, 3, 4, seed),
        lambda seed: rings(50, 3, 0.25, seed),
    ):
        assert draw(0).sha256 == draw(0).sha256
        assert draw(0).sha256 != draw(1).sha256


def test_synthetic_regression_leaves_the_noise_that_it_says():
    """Residuals of least squares have the variance NOISE^2 within four standard errors."""
    n, d = 5000, 7
    table = synthetic_regression(n, d, 0)
    assert table.numeric.shape == (n, d)
    assert table.target.shape == (n, 1)
    _, residual, *_ = np.linalg.lstsq(table.numeric, table.target[:, 0], rcond=None)
    standard_error = NOISE**2 * math.sqrt(2 / (n - d))
    assert abs(residual[0] / (n - d) - NOISE**2) < 4 * standard_error


def test_synthetic_classes_are_as_far_apart_as_they_say():
    """Two Gaussian classes at distance s are told apart with accuracy Phi(s / 2)."""
    n = 20_000
    table = synthetic_classification(n, 10, 2, 0)
    centres = np.stack([table.numeric[table.target == c].mean(axis=0) for c in (0, 1)])
    distance = np.linalg.norm(centres[1] - centres[0])
    nearest = ((table.numeric[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    expected = 0.5 * (1 + math.erf(distance / 2 / math.sqrt(2)))
    standard_error = math.sqrt(expected * (1 - expected) / n)
    assert abs((nearest == table.target).mean() - expected) < 4 * standard_error


def test_synthetic_centres_are_drawn_at_their_separation():
    """The mean squared distance of two centres is SEPARATION^2 within four standard errors."""
    c, d, rows = 50, 50, 100
    table = synthetic_classification(c * rows, d, c, 0)
    centres = np.stack([table.numeric[table.target == label].mean(axis=0) for label in range(c)])
    # Twice the summed variance of centres; a mean over rows adds variance 1/rows in each column.
    squared = 2 * centres.var(axis=0, ddof=1).sum()
    expected = SEPARATION**2 + 2 * d / rows
    assert abs(squared - expected) < 4 * expected * np.sqrt(2 / (d * (c - 1)))


CLASSES = {
    "Gaussian": lambda n, c: synthetic_classification(n, 2, c, 0),
    "rings": lambda n, c: rings(n, c, 0.25, 0),
}


@pytest.mark.parametrize("name", CLASSES)
def test_synthetic_classes_have_equal_sizes(name):
    """Sizes of classes differ by one row at most."""
    sizes = np.bincount(CLASSES[name](100, 7).target)
    assert len(sizes) == 7
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("name", CLASSES)
def test_synthetic_classification_needs_a_row_a_class(name):
    """Fewer rows than classes is an error that names both."""
    with pytest.raises(ConfigError) as caught:
        CLASSES[name](3, 4)
    assert str(caught.value) == ("dataset.num_examples=3: at least one row a class, of which are 4")


def test_rings_without_noise_are_circles():
    """Class c then lies at distance c + 1 from the origin, in every direction."""
    n = 4000
    table = rings(n, 3, 0.0, 0)
    assert table.columns == ("x0", "x1")
    assert np.allclose(np.hypot(*table.numeric.T), table.target + 1, rtol=0, atol=1e-12)
    quadrants = np.bincount((table.numeric > 0) @ [1, 2], minlength=4)
    assert (abs(quadrants - n / 4) < 4 * math.sqrt(n * 0.25 * 0.75)).all()


def test_the_nearest_circle_is_right_as_often_as_rings_say():
    """Two rings whose rows stray by noise are told apart with accuracy Phi(1 / (2 noise))."""
    n, noise = 20_000, 0.25
    table = rings(n, 2, noise, 0)
    outer = np.hypot(*table.numeric.T) > 1.5
    expected = 0.5 * (1 + math.erf(1 / (2 * noise) / math.sqrt(2)))
    standard_error = math.sqrt(expected * (1 - expected) / n)
    assert abs((outer == table.target).mean() - expected) < 4 * standard_error


def test_no_line_separates_rings():
    """A line is right for at most 2/3 of two circles' rows, where it touches the inner circle.

    A third of the outer one lies beyond it: the angles whose cosine is above 1/2.
    """
    n = 9000
    table = rings(n, 2, 0.0, 0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    along = table.numeric @ np.stack([np.cos(angles), np.sin(angles)])
    beyond = along[:, :, None] > np.linspace(-2, 2, 41)
    right = (beyond == (table.target == 1)[:, None, None]).mean(axis=0)
    assert abs(right.max() - 2 / 3) < 4 * math.sqrt(2 / 9 / n)
