"""Stacking as relations: between sums and rows, one client and many, a fold and the rest."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.errors import DataError
from fl_app.models import estimators
from fl_app.stacking import Layout, SumFolds, Sums

V = 4
CLASSES = Layout(num_members=3, num_outputs=3, has_global=True)
TWO = Layout(num_members=2, num_outputs=2, has_global=True)
TARGETS = Layout(2, 2, True, low=(-8.0, 90.0), high=(8.0, 110.0))
SINGLE = float(np.finfo(np.float32).eps)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@dataclass
class Client:
    """One client's meta-features, truth and split."""

    features: NDArray[Any]
    truth: NDArray[Any]
    split: SumFolds
    y: NDArray[Any]

    @property
    def sums(self) -> Sums:
        return stacking.sums(self.features, self.truth, self.split)


def client(layout: Layout, n: int = 60, seed: int = 0, floor: int = 1, **split: Any) -> Client:
    """Make a client whose models know something of the truth and disagree."""
    draw = rng(seed)
    if layout.classes:
        y = draw.integers(layout.num_outputs, size=n)
        clean = np.eye(layout.num_outputs)[y]
        noise = draw.dirichlet(np.ones(layout.num_outputs), size=(layout.num_blocks, n))
        blocks = [0.4 * clean + 0.6 * part for part in noise]
    else:
        middle = (np.array(layout.low) + np.array(layout.high)) / 2
        y = middle + 2 * draw.normal(size=(n, layout.num_outputs))
        blocks = [y + draw.normal(size=y.shape) for _ in range(layout.num_blocks)]
    folds = stacking.sum_folds(y, V, floor, draw, classes=layout.classes, **split)
    features = stacking.features(layout, blocks)
    return Client(features, stacking.targets(layout, y), folds, y)


def counts(layout: Layout) -> NDArray[Any]:
    """Give the members' rows of each class, or all their rows."""
    columns = layout.num_outputs if layout.classes else 1
    return 1.0 + np.arange(layout.num_members * columns).reshape(-1, columns)


def told(layout: Layout) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give the members' rows, and those of each class."""
    return counts(layout).sum(axis=1), counts(layout)


def solved(layout: Layout, clients: list[Client]) -> tuple[stacking.Candidate, ...]:
    pooled = stacking.pool({k: c.sums for k, c in enumerate(clients)}, V)
    return stacking.candidates(layout, pooled, *told(layout))


def named(table: tuple[stacking.Candidate, ...], family: str) -> stacking.Candidate:
    return next(candidate for candidate in table if candidate.family == family)


EVERY = pytest.mark.parametrize("layout", [CLASSES, TWO, TARGETS], ids=["3", "2", "targets"])


# ---------------------------------------------------------------------------- members
def test_members_cover_every_class() -> None:
    """The only client with a class is a member, however few rows it has."""
    rows = np.array([[50, 50, 0], [60, 40, 0], [40, 60, 0], [0, 0, 1]])
    assert stacking.choose_members(rows.sum(axis=1), rows, 2) == [0, 3]


def test_regression_takes_the_clients_with_most_rows() -> None:
    """Members come back in partition order; a tie goes to the first."""
    for rows, limit, chosen in (([5, 9, 9, 1, 9], 3, [1, 2, 4]), ([5, 5, 5], 2, [0, 1])):
        n = np.array(rows)
        assert stacking.choose_members(n, n[:, None], limit) == chosen


def test_where_no_class_is_told_members_go_by_rows() -> None:
    """Counts below the floor come as 0: with nothing else told, the largest clients are members."""
    n = np.array([6, 9, 4, 12, 9])
    for told in (np.zeros((5, 3)), np.tile([7, 0, 0], (5, 1))):
        assert stacking.choose_members(n, told, 2) == [1, 3]
        assert stacking.choose_members(n, told, 3) == [1, 3, 4]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000))
def test_members_are_distinct_and_no_more_than_allowed(k: int, limit: int, seed: int) -> None:
    """As many members as allowed or as there are clients."""
    counts = rng(seed).integers(0, 9, size=(k, 3))
    chosen = stacking.choose_members(counts.sum(axis=1), counts, limit)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(k, limit)
    assert set(chosen) <= set(range(k))


@pytest.mark.parametrize(("outputs", "limit"), [(1, 32), (10, 32), (26, 16), (420, 1), (999, 1)])
def test_the_number_of_members_falls_with_the_number_of_classes(outputs: int, limit: int) -> None:
    """min(32, 420 // C), at least one."""
    assert stacking.max_members(outputs) == limit


# ---------------------------------------------------------------------------- folds
@given(st.lists(st.integers(0, 4), max_size=40), st.integers(2, 9), st.integers(0, 99))
def test_row_folds_are_even_over_all_and_in_each_class(y: list[int], v: int, seed: int) -> None:
    """Sizes differ by at most one, also where there are more folds than rows."""
    labels = np.array(y, dtype=np.int64)
    folds = stacking.row_folds(labels, v, rng(seed), classes=True)
    assert folds.shape == labels.shape
    for group in [np.ones(len(labels), bool), *(labels == c for c in range(5))]:
        sizes = np.bincount(folds[group], minlength=v)
        assert len(sizes) == v
        assert sizes.max() - sizes.min() <= 1


def test_one_fold_is_no_fold() -> None:
    """Out-of-fold predictions need two folds."""
    with pytest.raises(DataError, match=r"^folds=1: at least 2"):
        stacking.row_folds(np.zeros(5), 1, rng(), classes=False)


def test_out_of_fold_takes_each_row_from_its_own_fold() -> None:
    """Row r comes from the model that was fitted without the fold of r."""
    predictions = [np.full((5, 2), f, float) for f in range(3)]
    folds = np.array([2, 0, 1, 1, 0])
    assert (stacking.out_of_fold(predictions, folds) == folds[:, None]).all()


SPLITS = st.fixed_dictionaries(
    {
        "y": st.lists(st.integers(0, 4), max_size=50),
        "v": st.integers(1, 6),
        "floor": st.integers(1, 7),
        "by_client": st.booleans(),
        "min_total": st.integers(1, 20),
        "classes": st.booleans(),
        "seed": st.integers(0, 999),
    }
)


def split_of(case: dict[str, Any]) -> tuple[NDArray[Any], SumFolds]:
    y = np.array(case["y"], dtype=np.int64)
    return y, stacking.sum_folds(
        y if case["classes"] else y + 0.5,
        case["v"],
        case["floor"],
        rng(case["seed"]),
        classes=case["classes"],
        by_client=case["by_client"],
        min_total=case["min_total"],
    )


@given(SPLITS)
@settings(max_examples=300)
def test_no_sum_is_handed_out_below_its_floors(case: dict[str, Any]) -> None:
    """A sum holds no row of a class or at least the floor's, and at least the total asked for."""
    y, split = split_of(case)
    groups = y if case["classes"] else np.zeros(len(y), np.int64)
    truth = np.eye(5)[groups]
    part = stacking.sums(np.ones((len(y), 1)), truth, split)
    by_class = part.cross[:, 0, :]
    assert ((by_class == 0) | (by_class >= case["floor"])).all()
    assert (part.gram[:, -1] >= case["min_total"]).all()
    assert not case["by_client"] or len(part.fold) <= 1


@given(SPLITS)
@settings(max_examples=300)
def test_rows_are_left_out_only_where_merging_does_not_help(case: dict[str, Any]) -> None:
    """All rows of a class are kept, or none: none if it is below the floor."""
    case["min_total"] = 1
    y, split = split_of(case)
    groups = y if case["classes"] else np.zeros(len(y), np.int64)
    sizes = np.bincount(groups, minlength=5)
    assert (split.kept == (sizes[groups] >= case["floor"])).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_row_without_a_sum_joins_the_only_fold(seed: int) -> None:
    """The one row of a class is scored where the client's other rows are."""
    split = stacking.sum_folds(
        np.array([0] * 6 + [1]), V, 2, rng(seed), classes=True, by_client=True
    )
    assert split.kept.tolist() == [True] * 6 + [False]
    assert len(set(split.fold)) == 1


@given(SPLITS)
def test_rows_without_a_sum_are_scored_in_a_fold_that_the_server_knows(
    case: dict[str, Any],
) -> None:
    """The folds of a split are those of its sums, or fold 0."""
    y, split = split_of(case)
    part = stacking.sums(np.ones((len(y), 1)), np.ones((len(y), 1)), split)
    assert set(split.fold) <= (set(part.fold) or {0})


# ---------------------------------------------------------------------------- meta-features
def test_a_model_writes_a_unit_vector() -> None:
    """The roots of probabilities have length 1, whatever the model says."""
    c = client(CLASSES)
    blocks = c.features[:, :-1].reshape(-1, CLASSES.num_blocks, CLASSES.num_outputs)
    assert np.allclose(np.square(blocks).sum(axis=2), 1)
    assert c.features.shape[1] == CLASSES.width
    assert (c.features[:, -1] == 1).all()


def test_targets_are_clipped_to_their_range() -> None:
    """A member that is out of range counts as its end, so that one wild member breaks no sum."""
    wild = np.array([[1e300, -1e300]])
    features = stacking.features(TARGETS, [wild, wild, np.array([[0.0, 100.0]])])
    assert features.tolist() == [[1, -1, 1, -1, 0, 0, 1]]


@pytest.mark.parametrize(
    "blocks",
    [
        [np.zeros((2, 3))] * 3,
        [np.zeros((2, 3))] * 3 + [np.zeros((2, 2))],
        [np.zeros((2, 3))] * 3 + [np.zeros((3, 3))],
        [np.zeros((2, 3))] * 3 + [np.full((2, 3), np.nan)],
    ],
)
def test_wrong_blocks_are_refused(blocks: list[NDArray[Any]]) -> None:
    """Every model must say something finite of every row."""
    with pytest.raises(DataError, match=r"^block"):
        stacking.features(CLASSES, blocks)


@pytest.mark.parametrize("bad", [((0.0,), (0.0,)), ((0.0,), (np.inf,)), ((0.0, 1.0), (1.0, 2.0))])
def test_wrong_ranges_are_refused(bad: tuple[Any, Any]) -> None:
    """A range needs two finite ends for each target, the lower first."""
    with pytest.raises(DataError, match=r"^bounds="):
        Layout(1, 1, False, *bad)
    with pytest.raises(DataError, match=r"^members=0"):
        Layout(0, 1, False)


def test_bounds_hold_a_constant_target() -> None:
    """A target without variance has a range all the same."""
    low, high = stacking.bounds(np.array([0.0, 7.0, 1.0]), np.array([0.0, 0.0, 4.0]))
    assert low == (-1.0, 0.0, -7.0)
    assert high == (1.0, 14.0, 9.0)


# ---------------------------------------------------------------------------- sums
@EVERY
def test_merged_sums_are_the_sums_of_all_rows(layout: Layout) -> None:
    """Clients' sums add up to those that one client with all rows would send."""
    clients = [client(layout, seed=s) for s in range(3)]
    features = np.concatenate([c.features for c in clients])
    truth = np.concatenate([c.truth for c in clients])
    split = SumFolds(
        *(np.concatenate([getattr(c.split, f) for c in clients]) for f in ("fold", "kept"))
    )
    pooled = stacking.pool({k: c.sums for k, c in enumerate(clients)}, V)
    together = stacking.pool({0: stacking.sums(features, truth, split)}, V)
    rows = 2 * len(features) * SINGLE
    for one, other in ((pooled.gram, together.gram), (pooled.cross, together.cross)):
        assert np.abs(one - other).max() < rows
    assert pooled.num_examples == len(features)


def test_arrival_order_changes_no_bit() -> None:
    """Sums and counts are added in the order of partitions, whatever order they come in."""
    parts = {}
    for k in range(5):
        # Sums of like size add up without rounding in float64: their order would not show.
        part, size = client(CLASSES, seed=k).sums, np.float32(10.0 ** (4 * k))
        parts[k] = replace(part, gram=part.gram * size, cross=part.cross * size)
    shuffled = {k: parts[k] for k in (3, 0, 4, 2, 1)}
    one, other = stacking.pool(parts, V), stacking.pool(shuffled, V)
    assert one.gram.tobytes() == other.gram.tobytes()
    assert one.cross.tobytes() == other.cross.tobytes()
    tables = {k: rng(k).random((2, 3)) for k in range(5)}
    backwards = dict(reversed(tables.items()))
    assert stacking.pool_scores(tables).tobytes() == stacking.pool_scores(backwards).tobytes()


@EVERY
def test_sums_survive_the_wire(layout: Layout) -> None:
    """Named arrays of plain numbers carry the sums."""
    part = client(layout).sums
    arrays = part.to_arrays()
    back = Sums.from_arrays({k: a.copy() for k, a in arrays.items()})
    assert all((back.to_arrays()[k] == arrays[k]).all() for k in arrays)
    with pytest.raises(DataError, match="arrays named fold, gram, cross, squares"):
        Sums.from_arrays({"gram": part.gram})


def accept(layout: Layout, part: Sums, rows: int = 60) -> None:
    stacking.check_sums(
        part,
        width=layout.width,
        num_outputs=layout.num_outputs,
        num_folds=V,
        num_examples=rows,
        bounded=True,
    )


@given(n=st.integers(1, 40), seed=st.integers(0, 9999), floor=st.integers(1, 5), one=st.booleans())
def test_honest_sums_are_accepted(n: int, seed: int, floor: int, one: bool) -> None:
    """No client is refused for its rows, not even one whose rows are all left out."""
    for layout in (CLASSES, TWO, TARGETS):
        accept(layout, client(layout, n, seed, floor, by_client=one).sums, rows=n)


@EVERY
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: replace(p, gram=p.gram * np.float32(np.nan)), "sums.gram=.*: finite values"),
        (lambda p: replace(p, cross=p.cross + np.float32(1e30)), "sums.cross="),
        (lambda p: replace(p, gram=p.gram * np.float32(2)), "sums.gram=.*in all folds together"),
        (lambda p: replace(p, gram=-p.gram), "sums.gram="),
        (lambda p: replace(p, gram=p.gram.astype(np.float64)), "sums.gram=float64"),
        (lambda p: replace(p, gram=p.gram[:, 1:]), "sums.gram=float32"),
        (lambda p: replace(p, cross=p.cross[1:]), "sums.cross=float32"),
        (lambda p: replace(p, squares=p.squares[:, :0]), "sums.squares=float32"),
        (lambda p: replace(p, fold=p.fold[::-1].copy()), "sums.fold=.*rising numbers below 4"),
        (lambda p: replace(p, fold=p.fold + 1), "sums.fold=.*rising numbers below 4"),
        (lambda p: replace(p, fold=p.fold[None]), "sums.fold=int64"),
    ],
)
def test_impossible_sums_are_refused(layout: Layout, change: Any, text: str) -> None:
    """Sums that no rows give are refused by name, so that one client cannot drown the others."""
    with pytest.raises(DataError, match=text):
        accept(layout, change(client(layout).sums))


def test_no_rows_at_all_is_an_error() -> None:
    """Where every row was left out there is nothing to solve or to choose by."""
    empty = client(CLASSES, n=3, floor=5).sums
    with pytest.raises(DataError, match="no rows from 1 clients"):
        stacking.pool({0: empty}, V)
    with pytest.raises(DataError, match="no rows from 2 clients"):
        stacking.pool_scores({0: np.zeros((1, 3)), 1: np.zeros((1, 3))})


# ---------------------------------------------------------------------------- solving
def complement(clients: list[Client], fold: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give the rows of all clients without one fold (-1: with all)."""
    rows = [c.split.fold != fold for c in clients]
    features = np.concatenate([c.features[r] for c, r in zip(clients, rows, strict=True)])
    return features, np.concatenate([c.truth[r] for c, r in zip(clients, rows, strict=True)])


@EVERY
def test_ridge_solves_the_normal_equations_of_the_rows(layout: Layout) -> None:
    """From sums comes what least squares on all rows, with the penalty as rows, would give."""
    clients = [client(layout, seed=s) for s in range(3)]
    candidate = solved(layout, clients)[-1]
    assert candidate.family == "ridge"
    heavy = solved_with(layout, clients, 1e12)
    for fold, weights in [*enumerate(candidate.fold_weights), (-1, candidate.weights)]:
        features, truth = complement(clients, fold)
        tau = candidate.penalty * np.square(features).sum() / layout.width
        root = np.sqrt(np.append(np.full(layout.width - 1, tau), tau * stacking.INTERCEPT))
        rows = np.concatenate([features, np.diag(root)])
        wanted = np.concatenate([truth, root[:, None] * heavy])
        expected = np.linalg.lstsq(rows, wanted)[0]
        assert np.allclose(weights, expected, atol=1e-3 * np.abs(expected).max())


def solved_with(layout: Layout, clients: list[Client], penalty: float) -> NDArray[Any]:
    """Give the full matrix of one penalty."""
    pooled = stacking.pool({k: c.sums for k, c in enumerate(clients)}, V)
    return stacking.candidates(layout, pooled, *told(layout), [penalty])[-1].weights


@EVERY
def test_an_infinite_penalty_leaves_half_shares_and_half_the_global_member(layout: Layout) -> None:
    """W0: for each output the members' shares of its rows, halved, and half the global member."""
    weights = solved_with(layout, [client(layout)], 1e12)
    rows = np.broadcast_to(counts(layout), (layout.num_members, layout.num_outputs))
    shares = np.concatenate([rows / rows.sum(axis=0) / 2, np.full((1, layout.num_outputs), 0.5)])
    for output in range(layout.num_outputs):
        own = weights[output :: layout.num_outputs, output][: layout.num_blocks]
        assert np.allclose(own, shares[:, output], atol=1e-6)
    assert np.isclose(np.abs(weights).sum(), layout.num_outputs, atol=1e-3)


@pytest.mark.parametrize("known", [[1, 0, 1], [0, 0, 0]])
@pytest.mark.parametrize("has_global", [True, False])
def test_a_class_that_nobody_tells_of_starts_at_the_shares_of_all_rows(
    known: list[int], has_global: bool
) -> None:
    """Counts below the floor come as 0: W0 then takes n_k / N, beside half the global member."""
    layout, n = replace(CLASSES, has_global=has_global), np.array([10.0, 30.0, 60.0])
    pooled = stacking.pool({0: client(layout).sums}, V)
    table = stacking.candidates(layout, pooled, n, counts(layout) * known, [1e12])
    weights, whole = table[-1].weights, 0.5 if has_global else 1.0
    assert np.allclose(weights[[1, 4, 7], 1], whole * n / 100, atol=1e-6)
    if has_global:
        assert np.isclose(weights[9 + 1, 1], 0.5, atol=1e-6)
    assert np.allclose(named(table, "class_average").weights[:3, 1], n / 100)
    assert np.allclose(named(table, "n_average").weights[:3], n[:, None] / 100)


def test_without_a_global_member_the_shares_are_whole() -> None:
    """``global_member=none``: W0 holds the members alone, and no candidate is the global member."""
    layout = replace(CLASSES, has_global=False)
    table = solved(layout, [client(layout)])
    assert [c.family for c in table if c.family == "global"] == []
    weights = solved_with(layout, [client(layout)], 1e12)
    assert np.allclose([weights[c::3, c][:3].sum() for c in range(3)], 1, atol=1e-6)


@EVERY
def test_cross_validated_loss_is_the_error_on_rows_left_out(layout: Layout) -> None:
    """The loss from sums is what each fold's weights lose on the fold's own rows."""
    clients = [client(layout, seed=s) for s in range(3)]
    for candidate in solved(layout, clients):
        if np.isnan(candidate.loss):
            assert layout.classes
            assert candidate.family in stacking.AVERAGES
            continue
        lost = sum(
            np.square(c.truth[r] - c.features[r] @ spread(layout, w)).sum()
            for c in clients
            for f, w in enumerate(candidate.fold_weights)
            for r in [c.split.fold == f]
        )
        rows = sum(len(c.truth) for c in clients)
        assert np.isclose(candidate.loss, lost / rows, rtol=1e-3, atol=1e-6)


def spread(layout: Layout, weights: NDArray[Any]) -> NDArray[Any]:
    """Write weights of outputs as a matrix over meta-features."""
    if len(weights) == layout.width:
        return weights
    return np.concatenate([*(np.diag(w) for w in weights), np.zeros((1, layout.num_outputs))])


@EVERY
def test_families_beat_every_other_point_of_theirs(layout: Layout) -> None:
    """Simplex and non-negative weights are feasible and no random feasible point does better."""
    clients = [client(layout, seed=s) for s in range(3)]
    table = solved(layout, clients)
    features, truth = complement(clients, -1)
    outputs, blocks = layout.num_outputs, layout.num_blocks

    def error(full: NDArray[Any]) -> float:
        return float(np.square(truth - features @ full).sum())

    simplex, free = named(table, "simplex").weights, named(table, "non_negative").weights
    own = [simplex[c::outputs, c][:blocks] for c in range(outputs)]
    assert np.allclose(own, own[0])
    assert np.isclose(own[0].sum(), 1)
    assert (simplex >= 0).all()
    assert (free >= 0).all()
    draw = rng(5)
    for _ in range(50):
        point = draw.dirichlet(np.full(blocks, 0.5))
        rival = spread(layout, np.repeat(point[:, None], outputs, axis=1))
        assert error(simplex) <= error(rival) * (1 + 1e-4)
        near = np.maximum(free + 0.1 * draw.normal(size=free.shape) * (free != 0), 0)
        assert error(free) <= error(rival) * (1 + 1e-4)
        assert error(free) <= error(near) * (1 + 1e-4)


def test_equal_members_are_no_trouble() -> None:
    """Members that say the same leave a singular problem that is solved all the same."""
    c = client(CLASSES)
    c.features[:, 3:6] = c.features[:, 0:3]
    c.features[:, 6:9] = 0.5
    for candidate in solved(CLASSES, [c]):
        assert np.isfinite(candidate.weights).all()
        assert np.isfinite(stacking.combine(CLASSES, c.features, candidate.weights)).all()


def test_one_fold_with_rows_is_no_trouble() -> None:
    """Where all rows share a fold, there is nothing without it: the weights are W0 there."""
    c = client(CLASSES, by_client=True)
    table = solved(CLASSES, [c])
    full = table[-1].fold_weights
    (used,) = set(c.split.fold)
    assert np.allclose(full[used], solved_with(CLASSES, [c], 1e12), atol=1e-3)
    assert np.allclose(np.delete(full, used, axis=0), table[-1].weights)


# ---------------------------------------------------------------------------- combining
@EVERY
def test_a_stack_of_one_is_that_model(layout: Layout) -> None:
    """One member, or the global member alone, predicts as it does without a stack."""
    one = replace(layout, num_members=1)
    c = client(one)
    x = np.arange(5.0)[:, None]
    draw = rng(2)
    if one.classes:
        outputs = draw.dirichlet(np.ones(one.num_outputs), size=(2, 5))
    else:
        outputs = draw.uniform(one.low, one.high, size=(2, 5, one.num_outputs))
    models = [lambda x, k=k: outputs[k] for k in range(2)]
    table = solved(one, [c])
    for family, number in (("n_average", 0), ("global", 1)):
        out = stacking.predict(one, models[:1], models[1], named(table, family).weights, x)
        assert np.allclose(out, outputs[number], rtol=1e-12)


def test_averages_weigh_by_rows() -> None:
    """``n_average`` weighs members by all their rows, ``class_average`` by those of each class."""
    shares = stacking.class_shares(np.array([30, 10]), np.array([[3, 0, 0], [1, 5, 0]]), 3)
    assert shares.tolist() == [[0.75, 0.0, 0.75], [0.25, 1.0, 0.25]]  # nobody told of the third
    c = client(CLASSES, n=8)
    table = solved(CLASSES, [c])
    p = np.square(c.features[:, :-1].reshape(8, 4, 3))[:, :3]
    rows = counts(CLASSES)
    by_n = np.einsum("nkc,k->nc", p, rows.sum(axis=1) / rows.sum())
    assert np.allclose(
        stacking.combine(CLASSES, c.features, named(table, "n_average").weights), by_n, atol=1e-6
    )
    by_class = np.einsum("nkc,kc->nc", p, rows / rows.sum(axis=0))
    out = stacking.combine(CLASSES, c.features, named(table, "class_average").weights)
    assert (out.argmax(axis=1) == by_class.argmax(axis=1)).all()


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_repaired_rows_are_probabilities_in_the_same_order(seed: int, scale: float) -> None:
    """Whatever a linear map gives, its order stays and it becomes a distribution without zeros."""
    raw = rng(seed).normal(size=(4, 5)) * scale
    layout = Layout(1, 5, False)
    features = np.concatenate([raw, np.ones((4, 1))], axis=1)
    p = stacking.combine(layout, features, np.eye(6)[:, :5])
    assert np.allclose(p.sum(axis=1), 1)
    assert (p >= stacking.DOUBT / 5 * (1 - 1e-9)).all()
    assert (p.argmax(axis=1) == raw.argmax(axis=1)).all()
    order = np.argsort(raw, axis=1)
    assert (np.diff(np.take_along_axis(p, order, axis=1), axis=1) >= -1e-12).all()


def test_targets_keep_their_units() -> None:
    """Moving and stretching the targets and their ranges moves and stretches the predictions."""
    c = client(TARGETS)
    moved = replace(TARGETS, low=(-80.0, 1e6 + 90), high=(80.0, 1e6 + 110))
    for candidate in solved(TARGETS, [c]):
        out = stacking.combine(TARGETS, c.features, candidate.weights)
        other = stacking.combine(moved, c.features, candidate.weights)
        assert np.allclose(out * [10, 1] + [0, 1e6], other)


def test_influence_sums_to_one_and_is_the_models_own() -> None:
    """A model with weight 0 has no influence, all together have 1."""
    table = solved(CLASSES, [client(CLASSES)])
    assert stacking.influence(CLASSES, named(table, "global").weights).tolist() == [0, 0, 0, 1]
    for candidate in table:
        assert np.isclose(stacking.influence(CLASSES, candidate.weights).sum(), 1)


# ---------------------------------------------------------------------------- choosing
def fold_maps(table: tuple[stacking.Candidate, ...]) -> list[dict[int, NDArray[Any]]]:
    return [dict(enumerate(candidate.fold_weights)) for candidate in table]


@EVERY
def test_scores_of_clients_add_up_to_those_of_their_rows(layout: Layout) -> None:
    """Counting at each client and adding is counting over all rows."""
    clients = [client(layout, seed=s) for s in range(3)]
    maps = fold_maps(solved(layout, clients))
    parts = {
        k: stacking.scores(layout, c.features, c.truth, c.split, maps, 1)
        for k, c in enumerate(clients)
    }
    for part in parts.values():
        stacking.check_scores(layout, part, len(maps), 60)
    split = SumFolds(
        *(np.concatenate([getattr(c.split, f) for c in clients]) for f in ("fold", "kept"))
    )
    together = stacking.scores(
        layout,
        np.concatenate([c.features for c in clients]),
        np.concatenate([c.truth for c in clients]),
        split,
        maps,
        1,
    )
    assert np.allclose(stacking.pool_scores(parts), together)


def test_scores_count_what_each_candidate_gets_right() -> None:
    """Rows, rows right and Brier sum, written out for two models on four rows."""
    layout = Layout(2, 3, False)
    y = np.array([0, 1, 2, 2])
    right, wrong = np.eye(3)[y], np.eye(3)[[0, 1, 0, 1]]
    features = stacking.features(layout, [right, wrong])
    first, second = np.array([[1.0] * 3, [0.0] * 3]), np.array([[0.0] * 3, [1.0] * 3])
    split = SumFolds(np.zeros(4, np.int64), np.ones(4, bool))
    truth = stacking.targets(layout, y)
    table = stacking.scores(layout, features, truth, split, [{0: first}, {0: second}], 1)
    assert table.tolist() == [[4, 4, 0], [4, 2, 4]]


def test_few_rows_are_not_scored() -> None:
    """Below the floor a client says nothing at all."""
    c = client(CLASSES, n=2)
    maps = fold_maps(solved(CLASSES, [client(CLASSES)]))
    assert not stacking.scores(CLASSES, c.features, c.truth, c.split, maps, 3).any()
    assert stacking.scores(CLASSES, c.features, c.truth, c.split, maps, 2)[0, 0] == 2


def some(*names: str) -> list[stacking.Candidate]:
    """Make candidates of these families, with weights that nobody reads."""
    nothing = np.zeros((1, 1), np.float32)
    return [
        stacking.Candidate(n, 0.0, float(k), nothing, nothing[None]) for k, n in enumerate(names)
    ]


def test_two_classes_and_targets_go_by_squared_error() -> None:
    """The least sum wins, however many rows are right."""
    table = some("global", "simplex", "ridge")
    counted = np.array([[100, 90, 20.0], [100, 80, 19.0], [100, 95, 21.0]])
    for layout in (TWO, TARGETS):
        assert stacking.choose(layout, table, counted).family == "simplex"


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ((80, 22.0), (87, 23.0), 1),  # better in both
        ((80, 22.0), (87, 25.0), 3),  # no smaller error than the ridge with most rows right
        ((80, 22.0), (95, 25.5), 3),
        ((80, 22.0), (86, 20.0), 3),  # no more rows right
        ((88, 22.0), (89, 23.0), 1),  # both are: more rows right decide
        ((88, 23.0), (88, 22.0), 1),  # then the error
    ],
)
def test_a_simpler_family_must_be_better_in_both(first: Any, second: Any, winner: int) -> None:
    """More rows right than the ridge that has most of them, and a smaller error."""
    table = some("global", "simplex", "ridge", "ridge")
    counted = np.array([(100, *c) for c in (first, second, (84, 19.0), (86, 25.0))])
    assert stacking.choose(CLASSES, table, counted) is table[winner]


def test_ties_go_to_the_smaller_error_then_to_the_earlier() -> None:
    """As many rows right: the better probabilities win; those equal, the larger penalty."""
    table = [
        replace(c, penalty=p)
        for c, p in zip(some("ridge", "ridge", "ridge"), (3, 2, 1), strict=True)
    ]
    counted = np.array([[10, 8, 3.0], [10, 8, 2.0], [10, 8, 2.0]])
    assert stacking.choose(CLASSES, table, counted).penalty == 2


def test_the_provisional_model_is_the_best_by_cross_validation() -> None:
    """Candidates without a loss are passed over until the clients have counted."""
    table = some("global", "simplex", "ridge")
    table[0] = replace(table[0], loss=float("nan"))
    assert stacking.provisional(table).family == "simplex"


@EVERY
def test_ridges_fall_from_the_best_penalty(layout: Layout) -> None:
    """The penalty of least cross-validated error comes first, then the next smaller two."""
    c = client(layout)
    pooled = stacking.pool({0: c.sums}, V)
    each = {
        p: stacking.candidates(layout, pooled, *told(layout), [p])[-1].loss
        for p in stacking.PENALTIES
    }
    best = min(each, key=lambda p: each[p])
    ladder = [p for p in sorted(each, reverse=True) if p <= best][:3]
    table = solved(layout, [c])
    assert [x.penalty for x in table if x.family == "ridge"] == ladder


def test_candidates_have_names_of_their_own() -> None:
    """Names can key a record: a penalty tells ridges apart."""
    names = [c.name for c in solved(CLASSES, [client(CLASSES)])]
    assert len(names) == len(set(names))
    assert names[:5] == ["n_average", "class_average", "global", "simplex", "non_negative"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t[:, :-1], "float64 .*: float64 of shape"),
        (lambda t: t.astype(np.float32), "float32 .*: float64 of shape"),
        (lambda t: t * np.nan, "finite values"),
        (lambda t: -t, "numbers of at least 0"),
        (lambda t: t * 2, "one count of at most 60 rows"),
        (lambda t: t + np.eye(*t.shape), "one count of at most 60 rows"),
        (lambda t: t + 60 * (np.arange(t.shape[1]) == 1), "no more rows right"),
        (lambda t: t + 1e9 * (np.arange(t.shape[1]) == 2), "at most 4 a row"),
    ],
)
def test_impossible_scores_are_refused(change: Any, text: str) -> None:
    """Counts that no rows give are refused, so that one client cannot decide alone."""
    c = client(CLASSES)
    maps = fold_maps(solved(CLASSES, [c]))
    table = stacking.scores(CLASSES, c.features, c.truth, c.split, maps, 1)
    stacking.check_scores(CLASSES, table, len(maps), 60)
    with pytest.raises(DataError, match=f"^scores=.*{text}"):
        stacking.check_scores(CLASSES, change(table), len(maps), 60)


# ---------------------------------------------------------------------------- the gate
def test_the_gate_stays_shut_without_a_reason() -> None:
    """Equal models, a worse own model, or too few rows keep the stack."""
    c = client(CLASSES)
    stack = stacking.combine(CLASSES, c.features, solved(CLASSES, [c])[-1].weights)
    assert stacking.gate(CLASSES, stack, stack, c.truth) == 0
    assert stacking.gate(CLASSES, np.roll(c.truth, 1, axis=1), stack, c.truth) == 0
    assert stacking.gate(CLASSES, c.truth[:29], stack[:29], c.truth[:29]) == 0


def test_the_gate_stays_shut_for_a_gain_within_its_error() -> None:
    """Three rows more and two fewer of forty are no reason."""
    # Where the two disagree evenly, the first class is ahead: the wrong one.
    truth = np.eye(3)[np.full(40, 2)]
    stack, own = truth.copy(), truth.copy()
    stack[:3], own[3:5] = np.eye(3)[0], np.eye(3)[0]
    gain = np.array([1] * 3 + [-1] * 2 + [0] * 35)
    assert 0 < gain.mean() < gain.std(ddof=1) / 40**0.5
    assert stacking.gate(CLASSES, own, stack, truth) == 0


@EVERY
def test_the_gate_opens_for_a_much_better_model(layout: Layout) -> None:
    """An own model that is always right replaces a stack that is always wrong."""
    c = client(layout)
    if layout.classes:
        own, stack = c.truth, np.roll(c.truth, 1, axis=1)
        # From the share on at which the right class is ahead, all shares are right alike.
        assert stacking.gate(layout, own, stack, c.truth) >= 0.5
    else:
        assert stacking.gate(layout, c.y, c.y + 3.0, c.truth) == 1.0


# ---------------------------------------------------------------------------- least squares
def linear_clients(layout: Layout) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Give two clients' features and truth, class by a linear rule."""
    parts = []
    for seed in range(2):
        x = rng(seed).normal(size=(80, 3))
        y = np.digitize(x[:, 0], [-0.5, 0.5]) if layout.classes else x[:, :2] + [0.0, 100.0]
        parts.append((x, y))
    return parts


@pytest.mark.parametrize("layout", [CLASSES, TARGETS], ids=["classes", "targets"])
def test_the_linear_member_is_cross_fitted_by_subtraction(layout: Layout) -> None:
    """Model f equals least squares on the rows outside fold f; the last that on all rows."""
    parts = linear_clients(layout)
    made = [stacking.linear_sums(layout, x, y, V, 2, rng(9)) for x, y in parts]
    pooled = stacking.pool({k: part for k, (part, _) in enumerate(made)}, V)
    models = stacking.least_squares(pooled, penalty=1e-9)
    assert models.shape == (V + 1, 4, layout.num_outputs)
    for fold in [*range(V), -1]:
        rows = [split.fold != fold for _, split in made]
        x = np.concatenate([x[r] for (x, _), r in zip(parts, rows, strict=True)])
        y = np.concatenate([y[r] for (_, y), r in zip(parts, rows, strict=True)])
        ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        truth = np.eye(3)[y] if layout.classes else y
        expected = ones @ np.linalg.lstsq(ones, truth)[0]
        assert np.allclose(stacking.predict_linear(layout, models[fold], x), expected, atol=1e-4)


def test_the_linear_member_is_refused_for_few_rows() -> None:
    """X'X of hardly more rows than features would give rows away."""
    x, y = linear_clients(CLASSES)[0]
    part, _ = stacking.linear_sums(CLASSES, x[:16], y[:16], V, 2, rng())
    assert part.num_examples >= 2 * (3 + 1)
    with pytest.raises(DataError, match=r"global_member=ls=7 rows: at least 8 rows for 3 features"):
        stacking.linear_sums(CLASSES, x[:7], y[:7], V, 2, rng())


@given(n=st.integers(8, 90), floor=st.integers(1, 5), seed=st.integers(0, 99))
def test_sums_of_features_hold_many_more_rows_than_features(n: int, floor: int, seed: int) -> None:
    """Each fold's X'X is over at least twice as many rows as it has columns."""
    x, y = linear_clients(TARGETS)[0]
    draw = rng(seed)
    take = draw.choice(len(x), size=min(n, len(x)), replace=False)
    part, _ = stacking.linear_sums(TARGETS, x[take], y[take], V, floor, draw)
    assert (part.gram[:, -1] >= 2 * (3 + 1)).all()


# ---------------------------------------------------------------------------- with real models
@dataclass
class Federation:
    """Clients with base models, stacked without a global member."""

    parts: list[tuple[NDArray[Any], NDArray[Any]]]
    name: str
    layout: Layout

    def fit(self, k: int, rows: NDArray[Any], draw: int) -> dict[str, NDArray[Any]]:
        x, y = self.parts[k]
        return estimators.fit(
            self.name,
            x[rows],
            y[rows],
            task="classification",
            num_outputs=self.layout.num_outputs,
            rng=rng(draw),
        )

    def members(self) -> list[dict[str, NDArray[Any]]]:
        return [self.fit(k, np.arange(len(x)), k) for k, (x, _) in enumerate(self.parts)]

    def client(self, k: int, members: list[dict[str, NDArray[Any]]], honest: bool = True) -> Client:
        x, y = self.parts[k]
        blocks = [estimators.predict(self.name, member, x) for member in members]
        if honest:
            folds = stacking.row_folds(y, V, rng(100 + k), classes=True)
            left_out = [self.fit(k, np.flatnonzero(folds != f), 10 * k + f) for f in range(V)]
            own = [estimators.predict(self.name, model, x) for model in left_out]
            blocks[k] = stacking.out_of_fold(own, folds)
        split = stacking.sum_folds(y, V, 2, rng(200 + k), classes=True)
        return Client(
            stacking.features(self.layout, blocks), stacking.targets(self.layout, y), split, y
        )

    def ridge(self, clients: list[Client]) -> stacking.Candidate:
        pooled = stacking.pool({k: c.sums for k, c in enumerate(clients)}, V)
        rows = np.array([np.bincount(y, minlength=self.layout.num_outputs) for _, y in self.parts])
        return stacking.candidates(self.layout, pooled, rows.sum(axis=1), rows, [1e-3])[-1]

    def predict(
        self, members: list[dict[str, NDArray[Any]]], weights: NDArray[Any], x: NDArray[Any]
    ) -> NDArray[Any]:
        models = [lambda x, m=m: estimators.predict(self.name, m, x) for m in members]
        return stacking.predict(self.layout, models, None, weights, x)


def noisy(n: int, seed: int, region: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw rows of one region whose label is wrong in three of ten."""
    draw = rng(seed)
    x = draw.normal(size=(n, 4)) + np.array([region, 0, 0, 0])
    y = (x[:, 1] > 0) ^ (draw.random(n) < 0.3)
    return x, y.astype(np.int64)


def test_in_sample_features_would_change_the_answer_for_trees() -> None:
    """A forest knows its own rows by heart: counted in-sample, its word is worth far too much."""
    parts = [noisy(150, seed, region) for seed, region in ((0, -1), (1, 0), (2, 1))]
    federation = Federation(parts, "random_forest", Layout(3, 2, False))
    members = federation.members()
    honest, naive = (
        federation.ridge([federation.client(k, members, honest=h) for k in range(3)])
        for h in (True, False)
    )
    x, y = (
        np.concatenate(z) for z in zip(*(noisy(700, 9 + r, r) for r in (-1, 0, 1)), strict=True)
    )
    truth = np.eye(2)[y]

    def error(candidate: stacking.Candidate) -> float:
        out = federation.predict(members, candidate.weights, x)
        return float(np.square(out - truth).sum(axis=1).mean())

    assert error(honest) < error(naive)
    assert abs(honest.loss - error(honest)) < 0.1
    # Three labels in ten are noise: no model's squared error is below 2 * 0.3 * 0.7 on new rows.
    assert naive.loss < 2 * 0.3 * 0.7 - 0.1 < error(naive)


def test_a_class_seen_by_one_client_only_is_predicted() -> None:
    """The stack knows a class that a single client has, though all others deny it."""
    draw = rng(0)
    centres = np.array([[0.0, 6.0], [5.0, -4.0], [-5.0, -4.0]])
    labels = [np.repeat([0, 1], 30), np.repeat([0, 1], 30), np.repeat([1, 2], 30)]
    parts = [(centres[y] + draw.normal(size=(60, 2)), y) for y in labels]
    federation = Federation(parts, "logistic", Layout(3, 3, False))
    members = federation.members()
    ridge = federation.ridge([federation.client(k, members) for k in range(3)])
    y = np.repeat([0, 1, 2], 50)
    x = centres[y] + draw.normal(size=(150, 2))
    right = federation.predict(members, ridge.weights, x).argmax(axis=1) == y
    # The centres lie some ten standard deviations apart.
    assert right.reshape(3, 50).mean(axis=1).min() > 0.9


def test_no_choice_is_given_test_rows() -> None:
    """What decides takes sums and counts of clients: no rows, no model, no test set."""
    deciders = {
        stacking.choose_members: {"num_examples", "counts", "limit"},
        stacking.candidates: {"layout", "pooled", "num_examples", "counts", "penalties"},
        stacking.provisional: {"table"},
        stacking.choose: {"layout", "table", "pooled_scores"},
    }
    for function, wanted in deciders.items():
        assert set(inspect.signature(function).parameters) == wanted


@pytest.mark.parametrize(
    ("name", "place", "value", "text"),
    [
        ("fold", -1, -(2**63), "rising numbers below 4"),
        ("squares", (0, 0), -1.0, "squares of at least 0"),
        ("cross", (0, 0, 0), 1.0, "root of the product"),
    ],
)
def test_sums_that_would_stop_the_server_are_refused(
    name: str, place: Any, value: float, text: str
) -> None:
    """A fold that wraps, a negative square, a product with a column of zeros."""
    part = client(CLASSES).sums
    arrays = {key: array.copy() for key, array in part.to_arrays().items()}
    if name == "cross":  # the first meta-feature is 0 on all rows
        arrays["gram"][:, : CLASSES.width] = 0
        arrays["cross"][:, 0] = 0
    arrays[name][place] = value
    with pytest.raises(DataError, match=text):
        accept(CLASSES, Sums(**arrays))
