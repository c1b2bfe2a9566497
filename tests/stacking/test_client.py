"""A stacking client alone: what it fits, what it adds up, what it keeps to itself."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.config.dataset_options import MIN_LEVEL_ROWS
from fl_app.config.serialization import from_dict
from fl_app.errors import DataError
from fl_app.federation.protocol import StackRequest
from fl_app.models import estimators
from fl_app.models.metrics import score
from fl_app.seeding import generator, one_thread
from fl_app.stacking.client import StackClient
from fl_app.stacking.members import Member, Stack, unpack, unpack_members, unpack_range
from fl_app.stacking.messages import SelectMessage, StackMessage
from tests.stacks import Arrays, Clients, Ran, Reply, bits, config_of, run

V = 4
KINDS = ("model", "logistic", "gaussian_nb", "random_forest", "hist_gradient_boosting")


@lru_cache
def ran(
    dataset: str = "wine",
    kind: str = "logistic",
    global_member: str = "fedavg",
    alpha: float = 0.0,
    num_clients: int = 4,
    gate: bool = True,
) -> Ran:
    """Run once; the tests only read it."""
    strategy = {"base_models": [kind], "global_member": global_member, "personal_gate": gate}
    deal = {"name": "dirichlet", "alpha": alpha} if alpha else {"name": "iid"}
    data: dict[str, Any] = {"name": dataset}
    if dataset.startswith("synthetic"):
        data |= {"num_examples": 300, "num_features": 5}
    return run(config_of(data, strategy, partitioner=deal, num_clients=num_clients))


def client_of(source: Ran, partition: int, memory: RecordDict | None = None) -> StackClient:
    return StackClient(
        source.config,
        source.encoding,
        source.predictor.kinds(),
        partition,
        source.rows(partition),
        RecordDict() if memory is None else memory,
    )


def request_of(reply: Reply) -> StackRequest:
    said = reply.settings
    return StackRequest(
        reply.phase,
        reply.server_round,
        num_folds=said["stack-num-folds"],
        min_rows=said["stack-min-rows"],
        client_folds=said["stack-client-folds"],
        send_base=said.get("stack-send-base", False),
        is_new=said.get("stack-is-new", False),
        provisional=said.get("stack-provisional", 0),
        gate=said.get("stack-gate", False),
    )


def answer(client: StackClient, reply: Reply, **changes: Any) -> tuple[Arrays, dict[str, float]]:
    with one_thread():
        arrays, outputs = client.answer(replace(request_of(reply), **changes), reply.sent)
    return arrays, score(client.encoding.task, outputs, client.rows.truth)


def reply_of(source: Ran, phase: str, partition: int) -> Reply:
    return next(r for r in source.clients.replies(phase) if r.partition == partition)


# ---------------------------------------------------------------------------- nothing but the seed
@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_follows_from_its_message(kind: str) -> None:
    """A client that has never been asked before says what the one in the run said."""
    source = ran(kind=kind)
    for reply in source.clients.diary:
        arrays, metrics = answer(client_of(source, reply.partition), reply)
        assert bits(arrays) == bits(reply.arrays)
        assert metrics == {k: v for k, v in reply.metrics.items() if k != "num-examples"}


@pytest.mark.parametrize("partition", [0, 3])
def test_a_memory_saves_fits_only(partition: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its memory a client fits a base model and its fold models once for all rounds."""
    source, memory, fitted = ran(), RecordDict(), []
    real = estimators.fit
    monkeypatch.setattr(
        estimators,
        "fit",
        lambda *a, **k: fitted.append(a[0]) or real(*a, **k),  # type: ignore[func-returns-value]
    )
    for reply in source.clients.diary:
        if reply.partition == partition:
            arrays, _ = answer(client_of(source, partition, memory), reply)
            assert bits(arrays) == bits(reply.arrays)
    assert len(fitted) == 1 + V
    assert set(memory) == {"stack-base", "stack-own"}


# ---------------------------------------------------------------------------- folds of all seeds
SEEDS = 1000


def solved_rows(draws: NDArray[Any], sums: NDArray[Any], rows: NDArray[Any]) -> int:
    """Solve sums over known choices of rows for the rows, and count those that come out right.

    Parameters
    ----------
    draws : ndarray of bool, shape (s, n)
        Which rows the server takes each sum to hold.
    sums : ndarray of shape (s, k)
        The sums that it was told.
    rows : ndarray of shape (n, k)
        The truth.
    """
    found = np.linalg.lstsq(draws.astype(np.float64), sums, rcond=None)[0]
    return int((np.abs(found - rows).max(axis=1) < 1e-3).sum())


def told_under_seeds(source: Ran, num_seeds: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Let one client say its sums for least squares under many seeds, over the same rows.

    Return which rows each sum would hold if the seed dealt them, and what was told of those of
    each fold: the sums of all features and of the target.
    """
    client, reply = client_of(source, 0), reply_of(source, "collect", 0)
    draws, sums = [], []
    for seed in range(num_seeds):
        own = replace(client, config=replace(client.config, seed=seed))
        part, _ = own._linear(request_of(reply), unpack_range(reply.sent))
        # Targets fall into no classes: whoever knows the seed would know the folds.
        layout = stacking.Layout(1, 1, False, (-1.0,), (1.0,))
        draw = generator(seed, "linear", 0, 0)
        x, y, least = client.rows.x, client.rows.y, source.config.strategy.ls_rows_per_feature
        _, split = stacking.linear_sums(layout, x, y, V, 2, draw, least)
        for number, fold in enumerate(part.fold.tolist()):
            draws.append(split.kept & (split.fold == fold))
            sums.append(np.append(whole_gram(part.gram)[number, :-1, -1], part.cross[number, -1]))
    return np.array(draws), np.array(sums)


@pytest.mark.parametrize("dataset", ["wine", "synthetic_regression"])
def test_no_seed_deals_other_rows(dataset: str) -> None:
    """Row folds, sums and sums for least squares hold the same rows under every seed."""
    source = ran(dataset, "ridge" if "regression" in dataset else "logistic", "ls", gate=False)
    client, reply = client_of(source, 1), reply_of(source, "collect", 1)
    request, told = request_of(reply), set()
    for seed in range(SEEDS):
        own = replace(client, config=replace(client.config, seed=seed))
        sums, linear = own._split(request), own._linear(request, unpack_range(reply.sent))[1]
        rows = own._row_folds(request)
        told.add(b"".join(a.tobytes() for a in (rows, sums.fold, sums.kept, linear)))
    assert len(told) == 1


def test_exact_sums_of_many_seeds_solve_for_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the seed dealt the rows, 60 seeds would tell 240 sums over known choices of 54 rows.

    All features and the target of every row come out then, by linear algebra alone; as they are
    dealt, 60 seeds tell what one does.
    """
    source = ran("synthetic_regression", "ridge", "ls", gate=False)
    rows = source.rows(0)
    low, high = (np.array(side) for side in (source.stack.low, source.stack.high))
    scaled = (rows.y - (low + high) / 2) / ((high - low) / 2)
    truth = np.column_stack([rows.x, scaled])
    draws, sums = told_under_seeds(source, 60)
    assert np.linalg.matrix_rank(draws.astype(float)) == len(truth)  # it would suffice
    assert solved_rows(draws, sums, truth) == 0
    assert len(np.unique(sums, axis=0)) == V

    def by_seed(client: StackClient, purpose: str) -> np.random.Generator:
        return generator(client.config.seed, purpose, 0, client.partition)

    monkeypatch.setattr(StackClient, "_row_generator", by_seed)
    draws, sums = told_under_seeds(source, 60)
    assert solved_rows(draws, sums, truth) == len(truth)


# ---------------------------------------------------------------------------- out-of-fold
def features_of(source: Ran, partition: int) -> tuple[NDArray[Any], stacking.Layout]:
    """Return the meta-features of a client's rows, (n, D), and what their columns are."""
    reply, client = reply_of(source, "stack", partition), client_of(source, partition)
    message = StackMessage.from_arrays(reply.sent)
    with one_thread():
        features, _ = client._features(request_of(reply), message)
    return features, message.layout(source.predictor.kinds().num_outputs)


def blocks_of(source: Ran, partition: int) -> tuple[NDArray[Any], list[Member], StackClient]:
    """Return the meta-features of a client's rows as (n, B, C) probabilities, and the members."""
    features, layout = features_of(source, partition)
    members = unpack_members(reply_of(source, "stack", partition).sent)
    shape = (-1, layout.num_blocks, layout.num_outputs)
    blocks = np.square(features[:, :-1]).reshape(shape)
    return blocks, list(members.values()), client_of(source, partition)


@pytest.mark.parametrize("kind", ["logistic", "random_forest", "gaussian_nb"])
def test_the_own_block_is_out_of_fold_and_no_other(kind: str) -> None:
    """A member's word on its own rows is that of models that have not seen them."""
    source, own = ran(kind=kind), 2
    blocks, members, client = blocks_of(source, own)
    x, y = client.rows.x, client.rows.y
    seed = source.config.seed
    folds = stacking.row_folds(y, V, generator(0, "folds", 0, own), True)
    floor = {"min_samples_leaf": 2} if kind == "random_forest" else {}
    for fold in range(V):
        seen, new = folds != fold, folds == fold
        if kind == "gaussian_nb":
            seen = seen & (np.bincount(y[seen], minlength=3)[y] >= 3)
        arrays = estimators.fit(
            kind,
            x[seen],
            y[seen],
            task="classification",
            num_outputs=3,
            rng=generator(seed, f"base-fold-{fold}", 0, own),
            params=floor,
        )
        expected = estimators.predict(kind, arrays, x[new])
        np.testing.assert_allclose(blocks[new, own], expected, atol=1e-12)
    for k, member in enumerate(members):
        plain = estimators.predict(kind, member.arrays, x)
        assert np.allclose(blocks[:, k], plain, atol=1e-12) == (k != own)


def test_a_member_one_bit_off_is_not_its_own() -> None:
    """The own block is left out of fold only where the member is the model that was fitted."""
    source, own = ran(kind="random_forest"), 2
    reply = reply_of(source, "stack", own)
    name = f"member/{own:03d}/random_forest/value"
    value = reply.sent[name].copy()
    value[0, 0] = np.nextafter(value[0, 0], np.float32(0.5))
    received = reply.sent | {name: value}
    client = client_of(source, own)
    message = StackMessage.from_arrays(received)
    features, _ = client._features(request_of(reply), message)
    block = np.square(features[:, own * 3 : own * 3 + 3])
    plain = estimators.predict("random_forest", message.members[own].arrays, client.rows.x)
    np.testing.assert_allclose(block, plain, atol=1e-12)


@pytest.mark.parametrize("dataset", ["wine", "diabetes"])
def test_the_global_block_is_what_the_global_member_says(dataset: str) -> None:
    """One trained by averaging is taken as it is, of all of a client's rows alike."""
    source, own = ran(dataset, "logistic" if dataset == "wine" else "ridge"), 3
    sent, client = reply_of(source, "stack", own).sent, client_of(source, own)
    assert not any(name.startswith("fold_") for name in sent)
    said = client.models.model.predict(unpack("global/model", sent), client.rows.x)
    features, layout = features_of(source, own)
    columns = stacking.features(replace(layout, num_members=1, has_global=False), [said])
    np.testing.assert_allclose(features[:, -1 - layout.num_outputs :], columns, rtol=1e-12)


@pytest.mark.parametrize("dataset", ["iris", "diabetes"])
def test_least_squares_says_of_a_row_what_it_says_without_it(dataset: str) -> None:
    """Each row's word of a global member of sums is that of the model without its fold."""
    source, own = ran(dataset, "logistic" if dataset == "iris" else "ridge", "ls"), 3
    reply, client = reply_of(source, "stack", own), client_of(source, own)
    features, layout = features_of(source, own)
    _, folds = client._linear(request_of(reply), unpack_range(reply.sent))
    assert len(np.unique(folds)) > 1
    for v in np.unique(folds):
        x, weights = client.rows.x[folds == v], reply.sent[f"fold_{v}/ls/weights"]
        said = stacking.predict_linear(layout, weights, x)
        columns = stacking.features(replace(layout, num_members=1, has_global=False), [said])
        np.testing.assert_allclose(
            features[folds == v, -1 - layout.num_outputs :], columns, rtol=1e-12
        )


@pytest.mark.parametrize("dataset", ["wine", "diabetes"])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_the_global_member_is_trained_as_fedavgs_model_is(dataset: str, kind: str) -> None:
    """What a client sends of it in each round is its reply to FedAvg, bit for bit."""
    kind = kind if dataset == "wine" or kind == "model" else "ridge"
    source = ran(dataset, kind)
    averaged = run(replace(source.config, strategy=from_dict({}).strategy)).clients.diary
    fedavg = {(r.server_round, r.partition): bits(r.arrays) for r in averaged}
    for reply in source.clients.replies("collect"):
        mine = bits(unpack("global", reply.arrays))
        assert mine == fedavg[reply.server_round, reply.partition]
        rest = {name.split("/")[0] for name in reply.arrays} - {"global"}
        assert rest == ({"base", "counts"} if reply.server_round == 1 else set())


# ---------------------------------------------------------------------------- metrics
@pytest.mark.parametrize("dataset", ["wine", "diabetes"])
@pytest.mark.parametrize("global_member", ["fedavg", "ls", "none"])
def test_metrics_are_those_of_the_model_of_the_phase(dataset: str, global_member: str) -> None:
    """In the choice they are the provisional candidate's, on rows that it is new to."""
    kind = "logistic" if dataset == "wine" else "ridge"
    source = ran(dataset, kind, global_member)
    task = source.encoding.task
    for reply in source.clients.diary:
        told = {k: v for k, v in reply.metrics.items() if k != "num-examples"}
        rows = source.rows(reply.partition)
        assert reply.metrics["num-examples"] == len(rows.x)
        if reply.phase == "collect" and global_member != "fedavg":
            arrays = unpack(f"base/{kind}", answer(client_of(source, reply.partition), reply)[0])
            if arrays:
                outputs = estimators.predict(kind, arrays, rows.x)
                assert told == score(task, source.encoding.in_units(outputs), rows.truth)
        if reply.phase == "select" and task == "classification":
            number = reply.settings["stack-provisional"]
            right = reply.arrays["scores"][number, 1]
            assert told["accuracy"] == pytest.approx(right / len(rows.x), rel=1e-12)
            loss = reply.arrays["scores"][number, 2]
            assert told["brier"] == pytest.approx(loss / len(rows.x), rel=1e-9)


def test_new_rows_are_scored_by_the_final_weights() -> None:
    """A client that is in no sum is new to the weights of all folds together."""
    away = Clients(away=lambda server_round, partition: (server_round, partition) == (3, 2))
    source = run(config_of("wine", {"global_member": "none"}), away)
    reply = reply_of(source, "select", 2)
    assert reply.settings["stack-is-new"]
    weights = {name: a for name, a in reply.sent.items() if name.startswith("candidate/")}
    final = source.stack.weights
    assert any(a.shape == final.shape and np.array_equal(a, final) for a in weights.values())
    client = client_of(source, 2)
    message = SelectMessage.from_arrays(reply.sent)
    features, _ = client._features(request_of(reply), message)
    layout = message.layout(3)
    for number in range(len(weights)):
        out = stacking.combine(layout, features, weights[f"candidate/{number:02d}/0"])
        right = (out.argmax(axis=1) == client.rows.y).sum()
        assert reply.arrays["scores"][number, 1] == right


# ---------------------------------------------------------------------------- the personal gate
@pytest.mark.parametrize("dataset", ["wine", "diabetes"])
def test_the_gate_is_priced_on_validation_rows(dataset: str) -> None:
    """Its columns are a share, all validation rows, and their worth without and with it."""
    source = ran(dataset, "logistic" if dataset == "wine" else "ridge")
    for reply in source.clients.replies("select"):
        rows, gates = source.rows(reply.partition), reply.arrays["gates"]
        assert set(gates[:, 0]) <= set(stacking.GATES)
        assert (gates[:, 1] == len(rows.x_eval)).all()
        shut = gates[:, 0] == 0
        assert (gates[shut, 2] == gates[shut, 3]).all()
        # The chosen candidate without the gate is the final model.
        outputs = source.predictor.outputs(source.final, rows.x_eval)
        if dataset == "wine":
            worth = float((outputs.argmax(axis=1) == rows.truth_eval).sum())
        else:
            worth = float(np.square(outputs - rows.truth_eval).sum())
        assert np.isclose(gates[:, 2], worth, rtol=1e-6).any()


def test_a_client_without_validation_rows_prices_no_gate() -> None:
    """It says 0 rows, and the gate's metrics are those of the others; nobody's: none."""
    source = run(config_of({"name": "wine", "val_fraction": 0.0}, {"personal_gate": True}))
    for reply in source.clients.replies("select"):
        assert (reply.arrays["gates"][:, 1:] == 0).all()
    assert [name for name in source.extra if "gate" in name] == ["stack/gate_open"]


# ---------------------------------------------------------------------------- small clients
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 2, 3])
@pytest.mark.parametrize("one_class", [True, False])
def test_any_rows_give_an_answer(kind: str, num_rows: int, one_class: bool) -> None:
    """A client of one to three rows answers every phase with what the server's checks accept."""
    source = ran(kind=kind)
    for phase in ("collect", "stack", "select"):
        reply = reply_of(source, phase, 0)
        client = client_of(source, 0)
        if one_class:
            kept = np.flatnonzero(client.rows.y == client.rows.y[0])[:num_rows]
        else:
            kept = np.unique(client.rows.y, return_index=True)[1][:num_rows]
        rows = replace(
            client.rows, x=client.rows.x[kept], y=client.rows.y[kept], truth=client.rows.truth[kept]
        )
        arrays, metrics = answer(replace(client, rows=rows), reply)
        assert all(np.isfinite(a).all() for a in arrays.values())
        assert all(np.isfinite(v) for v in metrics.values())
        base = Member.from_arrays("base", arrays)
        assert (base is not None) == (phase == "collect" and num_rows >= 2)
        if base is not None:
            client.models.check(base)
            assert (arrays["counts"] == 0).all()  # three rows are too few to be counted
        if phase == "stack":
            part = stacking.Sums.from_arrays(unpack("sums", arrays))
            whole = one_class and num_rows >= 2
            assert part.num_examples == (num_rows if whole else 0)
        if phase == "select":
            assert arrays["scores"][0, 0] == (num_rows if num_rows >= 2 else 0)


def test_a_member_that_came_broken_is_not_used() -> None:
    """A client checks what it is sent too: a broken member is an error, not a number."""
    source = ran()
    reply = reply_of(source, "stack", 0)
    broken = np.full_like(reply.sent["member/001/logistic/coef"], np.nan)
    received = reply.sent | {"member/001/logistic/coef": broken}
    with pytest.raises(DataError, match=r"logistic\.coef=.*finite"):
        client_of(source, 0).answer(request_of(reply), received)


# ---------------------------------------------------------------------------- rows stay
def found_rows(array: NDArray[Any], x: NDArray[Any]) -> set[int]:
    """Return which rows stand in an array, along its last axis or across it, to float32."""
    if array.dtype.kind not in "fiu":
        return set()
    found: set[int] = set()
    rest = array.reshape(-1, *array.shape[-2:]) if array.ndim > 2 else [array]
    for part in rest:
        for values in {id(a): a for a in (part.ravel(), part.T.ravel())}.values():
            if values.size < x.shape[1]:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(
                values.astype(np.float64), x.shape[1]
            )
            for row, wanted in enumerate(x):
                start = windows[np.abs(windows[:, 0] - wanted[0]) < 1e-5]
                if len(start) and (np.abs(start - wanted) < 1e-5).all(axis=1).any():
                    found.add(row)
    return found


def whole_gram(upper: NDArray[Any]) -> NDArray[Any]:
    """Return upper triangles as full matrices, (s, D, D)."""
    width = int(np.sqrt(2 * upper.shape[1]))
    row, column = np.triu_indices(width)
    full = np.zeros((len(upper), width, width))
    full[:, row, column] = full[:, column, row] = upper
    return full


def seen_arrays(reply: Reply) -> Arrays:
    """Return all that leaves a client, triangles unfolded too."""
    grams = {f"{n} whole": whole_gram(a) for n, a in reply.arrays.items() if n.endswith("/gram")}
    return reply.arrays | grams


def test_the_search_finds_rows_that_are_there() -> None:
    """Along rows and columns, within a matrix: what the tests below would not miss."""
    x = np.random.default_rng(0).normal(size=(3, 5))
    hidden = np.zeros((2, 7, 6), np.float32)
    hidden[1, 2, 1:] = x[0]
    hidden[0, 1:6, 3] = x[2]
    assert found_rows(hidden, x) == {0, 2}
    assert found_rows(hidden + 1, x) == set()
    y = np.array([0, 1, 1])
    naive = estimators.fit(
        "gaussian_nb", x, y, task="classification", num_outputs=2, rng=generator(0, "x")
    )
    assert found_rows(naive["mean"], x) == {0}
    np.testing.assert_array_equal(whole_gram((x.T @ x)[np.triu_indices(5)][None])[0], x.T @ x)


@pytest.mark.parametrize(
    ("kind", "global_member"),
    [*((kind, "fedavg") for kind in KINDS), ("logistic", "none"), ("gaussian_nb", "ls")],
)
def test_no_array_of_any_reply_holds_a_row(kind: str, global_member: str) -> None:
    """Features and labels of no client's row stand in what it says, in any phase."""
    source = ran("wine", kind, global_member, alpha=0.3)
    singles = 0
    for reply in source.clients.diary:
        rows = source.rows(reply.partition)
        counts = np.bincount(rows.y, minlength=3)
        singles += int((counts == 1).any())
        for name, array in seen_arrays(reply).items():
            assert found_rows(array, rows.x) == set(), (reply.phase, name)
            if len(rows.y) > 9 and (counts > 0).sum() > 1:
                labels = rows.y[None].astype(np.float64)
                one_hot = np.eye(3)[rows.y].reshape(1, -1)
                assert found_rows(array, labels) == found_rows(array, one_hot) == set()
    # A class of a single row is where means and sums would be that row.
    assert singles > 0


@pytest.mark.parametrize(("dataset", "alpha"), [("wine", 0.3), ("diabetes", 0.0)])
@pytest.mark.parametrize("global_member", ["fedavg", "ls", "none"])
def test_no_sum_is_over_fewer_rows_than_the_floor(
    dataset: str, alpha: float, global_member: str
) -> None:
    """The row of ones in F'F and F'Y counts the rows of a sum: of each class none, or enough."""
    source = ran(
        dataset, "logistic" if dataset == "wine" else "ridge", global_member, alpha, num_clients=3
    )
    sums = 0
    for reply in source.clients.diary:
        rows = source.rows(reply.partition)
        for prefix, least in (("sums", 2), ("linear", 2 * (rows.x.shape[1] + 1))):
            if f"{prefix}/gram" not in reply.arrays:
                continue
            sums += 1
            total = reply.arrays[f"{prefix}/gram"][:, -1]
            assert (total >= least).all()
            assert total.sum() <= len(rows.x)
            if dataset == "wine":
                by_class = reply.arrays[f"{prefix}/cross"][:, -1]
                np.testing.assert_array_equal(by_class.sum(axis=1), total)
                assert ((by_class == 0) | (by_class >= 2)).all()
                assert (by_class.sum(axis=0) <= np.bincount(rows.y, minlength=3)).all()
    assert sums >= 3 + 3 * (global_member == "ls") - 1


def test_the_bayes_model_tells_no_class_of_two_rows() -> None:
    """Mean and variance of two rows are those rows: only classes of three or more have both."""
    source = ran("wine", "gaussian_nb", alpha=0.3, num_clients=8, gate=False)
    pairs = 0
    for reply in source.clients.diary:
        if reply.phase == "collect" and "counts" in reply.arrays:
            present = reply.arrays["base/gaussian_nb/present"]
            counts = np.bincount(source.rows(reply.partition).y, minlength=3)
            pairs += int((counts == 2).sum())
            if (counts >= 3).any():
                np.testing.assert_array_equal(present, counts >= 3)
    assert pairs > 0


def test_a_class_of_few_rows_is_not_counted() -> None:
    """Counts below the floor of the handshake's label counts come as 0; the others are exact."""
    source, few = ran("wine", "logistic", alpha=0.3, num_clients=8, gate=False), 0
    for reply in source.clients.diary:
        if "counts" in reply.arrays:
            counts = np.bincount(source.rows(reply.partition).y, minlength=3)
            few += int(((counts > 0) & (counts < MIN_LEVEL_ROWS)).sum())
            wanted = [n if n >= MIN_LEVEL_ROWS else 0 for n in counts]
            np.testing.assert_array_equal(reply.arrays["counts"], wanted)
    assert few > 0


def test_no_leaf_of_a_forest_tells_a_target() -> None:
    """A leaf of one row would hold that row's target: each leaf is a mean of two or more."""
    source = ran("synthetic_regression", "random_forest", gate=False)
    for reply in source.clients.diary:
        base = unpack("base/random_forest", reply.arrays)
        if base:
            told = (base["value"] + base["baseline"]).ravel()
            y = source.rows(reply.partition).y.ravel()
            assert np.abs(told[:, None] - y[None]).min() > 1e-6


def test_a_stack_of_the_run_is_what_members_sent() -> None:
    """The global arrays hold the members' uploads bit for bit."""
    source = ran(kind="random_forest")
    stack = Stack.from_arrays(source.final)
    for reply in source.clients.diary:
        base = unpack("base/random_forest", reply.arrays)
        if base:
            assert bits(stack.members[reply.partition].arrays) == bits(base)
