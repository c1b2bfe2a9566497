"""What FedStacking's sums give away, by the attack that does it, and the rule that foretells it."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from logging import LogRecord

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.stacking import Layout, can_be_solved_for, equations
from tests.stacks import OPEN_SUMS, Ran, Reply, config_of, run
from tests.sum_attack import Told, pair, told


@lru_cache
def ran(dataset: str, num_clients: int) -> Ran:
    """Run with the default floor; the tests only read it."""
    return run(config_of(dataset, {"min_rows_per_sum": 3}, num_clients=num_clients))


def sums_of(source: Ran, partition: int) -> list[Told]:
    return told(reply_of(source, partition), source.predictor.kinds().num_outputs)


def reply_of(source: Ran, partition: int) -> Reply:
    return next(r for r in source.clients.replies("stack") if r.partition == partition)


def layout_of(source: Ran) -> Layout:
    """Return the layout that the server sees, with every member's block."""
    return source.stack.layout


def apart(
    source: Ran, partition: int, sum_: Told, found: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far each row that was found is from the client's, in standard deviations."""
    rows = source.rows(partition)
    nearest = rows.x[pair(found, sum_.labels, rows.x, rows.y)]
    return np.asarray(np.sqrt(np.square(found - nearest).mean(axis=1)))


# ---------------------------------------------------------------------------- the attack
def test_the_server_can_solve_small_sums_for_their_rows() -> None:
    """Wine, ten clients, the default floor: each row of each sum comes back, to float32."""
    source, found = ran("wine", 10), 0
    for partition in range(2):
        for sum_ in sums_of(source, partition):
            rows = sum_.solve()
            assert can_be_solved_for(layout_of(source), len(rows), rows.shape[1])
            assert apart(source, partition, sum_, rows).max() < 1e-3
            found += len(rows)
    # Twelve or thirteen rows a client; those of a class with fewer than three are in no sum.
    assert found >= 20


@pytest.mark.slow
def test_the_server_can_solve_sums_of_digits_for_their_pixels() -> None:
    """Digits, 20 clients, the default floor: all 64 grey values of every digit in the sums."""
    source, found = ran("digits", 20), 0
    mean, scale = (np.array(v) for v in (source.encoding.mean, source.encoding.scale))
    for sum_ in sums_of(source, 0):
        rows, own = sum_.solve(starts=3), source.rows(0)
        assert can_be_solved_for(layout_of(source), *rows.shape)
        true = own.x[pair(rows, sum_.labels, own.x, own.y)]
        grey, wanted = (np.round(x * scale + mean) for x in (rows, true))
        assert (grey == wanted).all()
        found += len(rows)
    assert found > 50  # of some 64 rows, which four sums share


@pytest.mark.parametrize(("dataset", "num_clients"), [("wine", 2), ("breast_cancer", 4)])
def test_rows_of_large_sums_are_not_found(dataset: str, num_clients: int) -> None:
    """Where r p is far above 2 E, what has the sums is not the rows: none is near."""
    source = ran(dataset, num_clients)
    for sum_ in sums_of(source, 0)[:2]:
        rows = sum_.solve(starts=2)
        assert rows.size > 2 * 2 * equations(layout_of(source))
        assert not can_be_solved_for(layout_of(source), *rows.shape)
        assert sum_.loss(rows.ravel(), 0.0)[0] < 1e-3  # the sums were met all the same
        assert apart(source, 0, sum_, rows).min() > 0.1


def test_a_sum_counts_the_rows_of_each_class() -> None:
    """The last row of F'Y is the sum's label counts: how many rows of a class are in which sum."""
    source = ran("wine", 10)
    for reply in source.clients.replies("stack"):
        y = source.rows(reply.partition).y
        inside = sum(np.bincount(s.labels, minlength=3) for s in sums_of(source, reply.partition))
        counts = np.bincount(y, minlength=3)
        np.testing.assert_array_equal(inside, np.where(counts < 3, 0, counts))


# ---------------------------------------------------------------------------- the rule
def drawn(
    layout: Layout, num_rows: int, num_features: int, seed: int = 0
) -> tuple[Told, NDArray[np.float64]]:
    """Draw models and rows; return the sum as it is told, in float32, and the rows."""
    draw, outputs = np.random.default_rng(seed), layout.num_outputs
    coef = draw.normal(size=(layout.num_blocks, outputs, num_features)) / 2
    intercept, nothing = draw.normal(size=coef.shape[:2]) / 2, np.zeros(0)
    x = draw.normal(size=(num_rows, num_features))
    y = np.sort(draw.integers(outputs, size=num_rows))
    blocks = np.square(Told(coef, intercept, nothing, nothing).blocks(x))
    f = stacking.features(layout, list(blocks.swapaxes(0, 1)))
    sent = (a.astype(np.float32) for a in (f.T @ f, f.T @ stacking.targets(layout, y)))
    return Told(coef, intercept, *(a.astype(np.float64) for a in sent)), x


@pytest.mark.parametrize("outputs", [2, 3, 5])
@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_no_sum_states_more_equations_than_the_rule_counts(outputs: int, blocks: int) -> None:
    """With rows enough the derivatives' rank is the number of independent equations: <= 2 E.

    Of D (D + 1) / 2 + D C numbers, the count of rows, a square in each block, a column of F'Y and
    the rest of its last row say nothing new about the rows.
    """
    layout, features = Layout(blocks, outputs, False), 25
    width = blocks * outputs + 1
    expected = width * (width + 1) // 2 - blocks - 1 + (width - 1) * (outputs - 1)
    num_rows = expected // features + 20
    sum_, x = drawn(layout, num_rows, features)
    assert np.linalg.matrix_rank(sum_.slopes(x.ravel()), tol=1e-8) == expected
    assert expected <= 2 * equations(layout)


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 4])
def test_targets_state_no_more_equations_either(outputs: int, blocks: int) -> None:
    """The functions that a sum adds up, over rows of anything: as many as are independent."""
    layout = Layout(blocks, outputs, False, (-1.0,) * outputs, (1.0,) * outputs)
    draw = np.random.default_rng(0)
    f = draw.normal(size=(2000, layout.width))
    f[:, -1], y = 1.0, draw.normal(size=(2000, outputs))
    i, j = np.triu_indices(layout.width)
    products = [f[:, i] * f[:, j], (f[:, :, None] * y[:, None]).reshape(2000, -1), np.square(y)]
    stated = np.linalg.matrix_rank(np.concatenate(products, axis=1)) - 1  # one counts the rows
    d = blocks * outputs + 1
    assert stated == d * (d + 1) // 2 - 1 + d * outputs + outputs
    assert stated <= 2 * equations(layout)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        # members, outputs, global member; d (d + 1) / 2 + d c with d = B (C - 1) + 1, c = C - 1
        (Layout(20, 10, True), 190 * 191 // 2 + 190 * 9),
        (Layout(20, 10, False), 181 * 182 // 2 + 181 * 9),
        (Layout(2, 3, True), 7 * 8 // 2 + 7 * 2),
        # targets: d = B T + 1, c = T
        (Layout(8, 1, True, (0.0,), (1.0,)), 10 * 11 // 2 + 10),
        (Layout(8, 2, False, (0.0, 0.0), (1.0, 1.0)), 17 * 18 // 2 + 17 * 2),
        # two classes, 11 blocks: D = 23, half of 23 * 24 / 2 - 11 - 1 + 22 is more than 90
        (Layout(10, 2, True), (23 * 24 // 2 - 12 + 22) // 2),
    ],
)
def test_the_rule_is_the_smaller_of_rows_and_equations(layout: Layout, expected: int) -> None:
    """Open: r p < 2 E, or fewer rows than d free meta-features, whatever p is."""
    assert equations(layout) == expected
    d = layout.num_blocks * (layout.num_outputs - layout.classes) + 1
    for features in (1, 4, 64):
        for rows in (1, d - 1, d, d + 1, 2 * expected // features, 2 * expected // features + 1):
            wanted = rows < d or rows * features < 2 * expected
            assert can_be_solved_for(layout, rows, features) == wanted
    assert can_be_solved_for(layout, d - 1, 10**9)


def test_two_classes_give_away_more_than_their_free_probabilities() -> None:
    """Eleven models of two classes, 19 rows of 10 features: 190 unknowns are found.

    By the C - 1 free columns of a block there would be 2 (12 * 13 / 2 + 12) = 180 equations, and
    there are more rows than 12; but the roots of two probabilities state 286.
    """
    layout = Layout(11, 2, False)
    sum_, x = drawn(layout, 19, 10)
    found, y = sum_.solve(), sum_.labels
    assert np.abs(found - x[pair(found, y, x, y)]).max() < 1e-3
    assert can_be_solved_for(layout, 19, 10)


# ---------------------------------------------------------------------------- the warning
WARNING = re.compile(
    r"strategy=fedstacking: whoever knows the members may solve the sums of (\d+) of (\d+) clients "
    r"heard so far for their rows: r = (\d+) to (\d+) rows of p = (\d+) features in a sum, which "
    r"is up to 2 E equations, E = (\d+) \(docs/stacking\.md, What it reveals\)"
)


def test_a_run_is_told_once_how_many_sums_are_open(caplog: pytest.LogCaptureFixture) -> None:
    """Before the sums are made, with numbers; and the record counts those that came."""
    source = run(config_of("wine", {"min_rows_per_sum": 3}, num_clients=10))
    (said,) = [r for r in caplog.records if OPEN_SUMS in r.getMessage()]
    assert said.levelno == logging.WARNING
    found = WARNING.fullmatch(said.getMessage())
    assert found is not None
    sizes = [len(source.rows(k).y) // 4 for k in range(10)]
    layout = Layout(10, 3, True)
    expected = (10, 10, max(3, min(sizes)), max(3, *sizes), 13, equations(layout))
    assert tuple(map(int, found.groups())) == expected
    came = [
        int(size) for r in source.clients.replies("stack") for size in r.arrays["sums/gram"][:, -1]
    ]
    opened = sum(can_be_solved_for(layout, size, 13) for size in came)
    assert opened == len(came)
    assert source.rounds[-2].extra["stack/open_sums"] == opened


def test_a_run_with_large_sums_is_not_warned(caplog: pytest.LogCaptureFixture) -> None:
    """Wine on two clients: 16 rows of 13 features a sum, far above 2 E = 84."""
    source = run(config_of("wine", {"min_rows_per_sum": 3}, num_clients=2))
    assert not any(OPEN_SUMS in r.getMessage() for r in caplog.records)
    assert source.rounds[-2].extra["stack/open_sums"] == 0


def test_unknowns_of_a_row_are_the_columns_of_its_table(caplog: pytest.LogCaptureFixture) -> None:
    """A category of many levels is one unknown, not one for each of the model's features."""
    source = run(config_of("penguins", {"min_rows_per_sum": 3}, num_clients=10))
    assert source.predictor.kinds().num_features >= len(source.encoding.columns)
    (said,) = [text for text in map(LogRecord.getMessage, caplog.records) if OPEN_SUMS in text]
    assert f"p = {len(source.encoding.columns)} features" in said
