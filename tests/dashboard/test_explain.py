"""What the page says of a round is what the server did: sums add up, a rule has its own name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.config.schema import GROUPS
from fl_app.dashboard import explain as module
from fl_app.dashboard.explain import Explanation, explain
from fl_app.dashboard.replies import Table, value_names
from fl_app.dashboard.view import RunView
from fl_app.strategies import build_strategy
from fl_app.tracking.records import ClientRecord, RoundRecord, RunFacts
from tests.recorded import Record, real_runs

SMALL = ["dataset=iris", "num_clients=3", "num_server_rounds=5", "model.learning_rate=0.5"]
IRIS = 4 * 3 + 3  # values of a softmax model of four features and three classes


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunView]:
    """Small runs of all kinds."""
    jobs = {
        "lesson": ["experiment=two_lines"],
        "unequal": ["experiment=two_lines", "dataset.rows=[2,6]", "num_server_rounds=3"],
        "iris": SMALL,
        "stack": [*SMALL, "strategy=fedstacking"],
        "adam": [*SMALL, "strategy=fedadam", "num_server_rounds=2"],
        "pooled": [*SMALL, "strategy=pooled", "num_server_rounds=1"],
        "local": [*SMALL, "strategy=local", "num_server_rounds=1"],
        "n_average": [*SMALL, "strategy=n_average", "num_server_rounds=1"],
        "nan": [
            *("dataset=iris", "num_clients=3", "num_server_rounds=2"),
            *("faults.clients=2", "faults.kind=nan"),
        ],
    }
    views = real_runs(tmp_path_factory.mktemp("home"), *jobs.values())
    return dict(zip(jobs, views, strict=True))


def table_of(explanation: Explanation, title: str) -> Table:
    """Return a table by the beginning of its title."""
    return next(table for table in explanation.tables if table.title.startswith(title))


def aggregate_of(view: RunView, server_round: int) -> list[float]:
    """Return the values that the record says the rule returned."""
    round_ = view.round(server_round)
    assert round_ is not None
    arrays = round_.aggregation["aggregate"]
    return [float(v) for values in arrays.values() for v in np.ravel(values)]


def recorded(tmp_path: Path, rule: str = "FedAvg", **more: Any) -> Record:
    """Record one round of two clients with 1 and 3 rows, whose values are 1, 2 and 5, 6."""
    clients = [
        ClientRecord(k, n, {}, {"w": np.array(values)}, float(np.linalg.norm(values)))
        for k, n, values in ((0, 1, [1.0, 2.0]), (1, 3, [5.0, 6.0]))
    ]
    facts = {"train_clients": clients, "aggregate": {"w": np.array([4.0, 5.0])}, **more}
    record = RoundRecord(1, {}, run=RunFacts(rule), **facts)
    return Record(tmp_path).start().rounds(0).rounds(1, record=record)


# ---------------------------------------------------------------------------- averages
def test_the_products_of_the_lesson_add_up_to_what_the_server_recorded(
    real: dict[str, RunView],
) -> None:
    """Round 3: each product is n_k/N times W_k, and their sum is W(3) within 1e-6."""
    made = explain(real["lesson"], 3)
    (table,) = made.tables
    names = ("coef.x", "intercept")
    assert table.columns[3:] == (*names, *(f"n_k/N · {name}" for name in names))
    *clients, total, returned = table.records()
    for name in names:
        product = f"n_k/N · {name}"
        for client in clients:
            assert client[product] == pytest.approx(client["n_k/N"] * client[name], abs=1e-12)
        assert total[product] == pytest.approx(sum(c[product] for c in clients), abs=1e-12)
        assert total[product] == pytest.approx(returned[product], abs=1e-6)
    shown = [returned[f"n_k/N · {name}"] for name in names]
    assert shown == aggregate_of(real["lesson"], 3)
    assert (total["n_k"], total["n_k/N"]) == (4, 1.0)
    assert made.formula == r"W^{(3)} = \sum_k \frac{n_k}{N}\, W_k,\quad N = 4"
    assert "add up to what FedAvg returned" in made.sentences[0]
    assert table.shares == {"n_k/N"}


def test_rows_are_the_weights(real: dict[str, RunView]) -> None:
    (table,) = explain(real["unequal"], 2).tables
    assert [(row["n_k"], row["n_k/N"]) for row in table.records()[:2]] == [(2, 0.25), (6, 0.75)]


def test_a_model_of_more_values_has_its_products_apart(real: dict[str, RunView]) -> None:
    made = explain(real["iris"], 2)
    replies, products = made.tables
    assert len(replies.columns) == 3 + IRIS
    assert len(products.columns) == 1 + IRIS
    *clients, total, returned = (np.array(row[1:], float) for row in products.rows)
    np.testing.assert_allclose(np.sum(clients, axis=0), total, atol=1e-12)
    np.testing.assert_allclose(total, returned, atol=1e-6)
    np.testing.assert_array_equal(returned, aggregate_of(real["iris"], 2))


def test_a_sum_that_misses_is_told(tmp_path: Path) -> None:
    """1/4 (1, 2) + 3/4 (5, 6) is (4, 5); a record of (4, 6) misses it by 1."""
    made = explain(recorded(tmp_path).view(), 1)
    assert "add up" in made.sentences[0]
    other = explain(recorded(tmp_path / "b", aggregate={"w": np.array([4.0, 6.0])}).view(), 1)
    assert other.sentences == ("The products miss what FedAvg returned by up to 1.",)


def test_large_models_are_shares_and_norms(tmp_path: Path) -> None:
    clients = [ClientRecord(k, 5, {}, None, 2.0 + k) for k in range(2)]
    view = recorded(tmp_path, train_clients=clients, aggregate={"w": np.ones(64)}).view()
    made = explain(view, 1)
    replies = table_of(made, "Replies")
    assert replies.columns == ("client", "n_k", "n_k/N", "‖W_k‖")
    returned = ("FedAvg returned", None, None, 8.0)
    assert replies.rows == (("0", 5, 0.5, 2.0), ("1", 5, 0.5, 3.0), returned)
    assert "more than 32 values" in made.sentences[0]
    assert made.formula is not None


# ---------------------------------------------------------------------------- other rules
@pytest.mark.parametrize("rule", sorted(module.OTHERS))
def test_another_rule_shows_replies_and_what_it_returned(tmp_path: Path, rule: str) -> None:
    made = explain(recorded(tmp_path / "small", rule).view(), 1)
    (table,) = made.tables
    assert table.rows[-1] == (f"{rule} returned", None, None, 4.0, 5.0)
    assert made.formula is None
    clients = [ClientRecord(k, 5, {}, None, 2.0 + k) for k in range(2)]
    many = {"w": np.ones(64)}
    large = recorded(tmp_path / "large", rule, train_clients=clients, aggregate=many)
    (table,) = explain(large.view(), 1).tables
    assert table.rows[-1] == (f"{rule} returned", None, None, 8.0)
    assert not any("Σ" in str(cell) for row in table.rows for cell in row)
    assert made.sentences[0].startswith(rule)


def test_a_server_step_starts_from_the_average(real: dict[str, RunView]) -> None:
    made = explain(real["adam"], 2)
    assert made.formula is not None
    assert made.formula.startswith(r"\bar W =")
    assert "starts from the weighted average" in made.sentences[0]
    assert "then takes a server step" in made.sentences[0]
    products = table_of(made, "Products")
    assert [row[0] for row in products.rows[-2:]] == ["Σ = W̄", "FedAdam returned"]
    assert products.rows[-1][1:] == tuple(aggregate_of(real["adam"], 2))


def test_every_strategy_of_flower_is_explained() -> None:
    known = module.AVERAGES | module.SERVER_STEPS | set(module.OTHERS)
    ours = {"fedxgbbagging", "fedstacking", "n_average", "local"}
    named = {name: kind() for name, kind in GROUPS["strategy"].items() if name not in ours}
    built = [build_strategy(own, (), 0.1) for own in named.values()]  # type: ignore[arg-type]
    assert {type(strategy).__module__.split(".")[0] for strategy in built} == {"flwr"}
    assert {type(strategy).__name__ for strategy in built} <= known


def test_a_rule_of_ones_own_is_not_called_an_average(tmp_path: Path) -> None:
    made = explain(recorded(tmp_path, "Mine").view(), 1)
    assert made.formula is None
    assert made.sentences == ("Mine makes something of its own of these replies.",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pooled", "All rows lie in one place"),
        ("local", "Nothing is combined"),
        ("n_average", "Models are not averaged"),
    ],
)
def test_what_is_no_average_of_models(real: dict[str, RunView], name: str, words: str) -> None:
    made = explain(real[name], 1)
    assert made.sentences[0].startswith(words)
    assert (made.formula is None) == (name != "pooled")


def test_a_round_that_was_thrown_away(tmp_path: Path) -> None:
    cost = {"model/went_back": 1.0, "model/learning_rate": 2.0, "model/last_loss": 0.5}
    record = Record(tmp_path).start().rounds(0)
    clients = [ClientRecord(0, 1, {}, {"w": np.ones(1)}, 1.0)]
    told = RoundRecord(
        1, {}, run=RunFacts("FedAvg"), train_clients=clients, aggregate={"w": np.zeros(1)}
    )
    record.rounds(1, metrics=cost | {"train/mse": 7.0}, record=told)
    made = explain(record.view(), 1)
    assert made.formula is None
    assert "thrown away" in made.sentences[0]
    assert "the step 2: from 0.5 to 7" in made.sentences[0]
    assert made.sentences[0].endswith("and the next round repeats it at half the step.")
    record.rounds(2, metrics=cost | {"train/mse": 0.4}, record=replace(told, server_round=2))
    assert "the step 2. The model stays" in explain(record.view(), 2).sentences[0]


def test_a_round_that_was_thrown_away_for_what_is_no_number(real: dict[str, RunView]) -> None:
    """The loss did not rise; the last round is not repeated by any."""
    view = real["nan"]
    words = [explain(view, r).sentences[0] for r in (1, 2)]
    assert all("thrown away: not all replies were finite numbers" in each for each in words)
    assert ["next round" in each for each in words] == [True, False]


# ---------------------------------------------------------------------------- who failed
def test_who_was_asked_in_vain_is_named_with_the_reason(tmp_path: Path) -> None:
    told = {
        "rule": "FedAvg",
        "num_examples": 2,
        "clients": [{"partition": 0, "num_examples": 2, "weight": 1.0, "arrays": {"w": [1.0]}}],
        "aggregate": {"w": [1.0]},
        "asked": [0, 1],
        "failed": {"1": "the client failed: no such file"},
        "evaluate": {"asked": [0, 1, 2], "failed": {"2": "no reply in time"}},
    }
    record = Record(tmp_path).start().rounds(0)
    record.rounds(1, texts={"aggregation/round_0001.json": told})
    made = explain(record.view(), 1)
    assert table_of(made, "Who failed, and why").rows == (
        (1, "train", "the client failed: no such file"),
        (2, "evaluate", "no reply in time"),
    )
    assert made.sentences[-2:] == (
        "2 clients were asked to train; 1 of them failed.",
        "3 clients were asked to evaluate; 1 of them failed.",
    )


# ---------------------------------------------------------------------------- privacy
def test_under_privacy_no_client_is_shown_and_it_is_said_why(tmp_path: Path) -> None:
    metrics = {
        "cost/clients_asked": 4.0,
        "cost/clients_replied": 3.0,
        "privacy/epsilon": 2.5,
        "privacy/delta": 1e-5,
        "privacy/clipping_norm": 0.5,
    }
    told = RoundRecord(1, {}, run=RunFacts("FedAvg"), aggregate={"w": np.array([1.0, 2.0])})
    record = Record(tmp_path).start(params={"privacy.name": "dp_fixed"}).rounds(0)
    record.line({"server_round": 1, "metrics": metrics, "clients": [], "texts": {}})
    assert explain(record.view(), 1).sentences[0].startswith("Under differential privacy")
    other = Record(tmp_path / "b").start(params={"privacy.name": "dp_fixed"}).rounds(0)
    other.rounds(1, clients=(), metrics=metrics, record=told)
    made = explain(other.view(), 1)
    assert made.formula is None
    assert [table.title for table in made.tables] == ["What FedAvg returned, noise and all"]
    assert "4 clients were asked, 3 replied" in made.sentences[1]
    assert "clipped to the norm 0.5" in made.sentences[1]
    assert made.sentences[2] == "Spent so far: epsilon 2.5 at delta 1e-05."


# ---------------------------------------------------------------------------- stacking
def test_a_collecting_round_says_that_there_is_no_stack(real: dict[str, RunView]) -> None:
    made = explain(real["stack"], 1)
    text = " ".join(made.sentences)
    assert "3 base models so far" in text
    assert "There is no stack yet: rounds 4 and 5 make it" in text
    assert made.formula is None


def test_the_stack_round_is_provisional_and_the_last_one_chooses(real: dict[str, RunView]) -> None:
    stack, select = explain(real["stack"], 4), explain(real["stack"], 5)
    assert any(sentence.startswith("Provisional:") for sentence in stack.sentences)
    assert "right" not in table_of(stack, "Ways").columns
    candidates = table_of(select, "Ways").records()
    assert [c["chosen"] for c in candidates].count("✔") == 1
    chosen = next(c for c in candidates if c["chosen"])
    assert f"The choice: {chosen['family']}." in select.sentences[0]
    assert {"average by rows", "one weight a member"} <= {c["family"] for c in candidates}
    view = real["stack"]
    rows = sum(n for n, _ in view.roster.values())
    assert all(c["rows"] == rows and 0 <= c["right"] <= rows for c in candidates)
    members = table_of(select, "Members")
    assert sorted(str(row[0]) for row in members.rows) == [
        "client 0",
        "client 1",
        "client 2",
        "global",
    ]
    assert sum(float(row[3] or 0) for row in members.rows) == pytest.approx(1.0)
    assert members.shares == {"share"}


def test_a_regression_counts_nothing_as_right(tmp_path: Path) -> None:
    row = ["global", "global", 0.0, 0.03, 318, 0, 0.03, True]
    names = ["candidate", "family", "lambda", "cv_loss", "rows", "right", "loss", "chosen"]
    texts = {"aggregation/round_0001.json": {"rule": "FedStacking", "clients": []}}
    texts |= {"stack/candidates.json": {"columns": names, "data": [row]}}
    record = Record(tmp_path).start(params={"strategy.name": "fedstacking"}).rounds(0)
    record.rounds(1, metrics={"stack/phase": 2.0, "stack/rows": 318.0}, texts=texts)
    made = explain(record.view(), 1)
    assert table_of(made, "Ways").columns[2:] == ("cross-validated loss", "rows", "loss")
    assert "added up the errors" in made.sentences[0]


# ---------------------------------------------------------------------------- nothing to show
def test_round_0_and_a_round_that_is_not_there(tmp_path: Path) -> None:
    view = recorded(tmp_path).view()
    assert "every client starts from the same arrays" in explain(view, 0).sentences[0]
    assert explain(view, 7).sentences == ("This round is not recorded (yet).",)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"clients": [1]}', '{"clients": [{}]}', '{"clients": 5}', '{"a": 1}']
)
def test_a_broken_record_of_a_round_is_a_sentence(tmp_path: Path, text: str) -> None:
    texts = {"aggregation/round_0001.json": text}
    record = Record(tmp_path).start().rounds(0)
    record.rounds(1, texts=texts)
    view = record.view()
    made = explain(view, 1)
    assert made.sentences
    assert not made.tables


def test_values_are_named_by_their_metrics_or_by_index(tmp_path: Path) -> None:
    arrays = {"a": [[1.0, 2.0]], "a.b": [3.0], "c": [4.0, 5.0]}
    metrics = {"model/a.x": 1.0, "model/a.y": 2.0, "model/a.b": 3.0, "model/update_norm": 9.0}
    round_ = Record(tmp_path).start().rounds(1, metrics=metrics).view().rounds[0]
    assert value_names(round_, arrays) == ["a.x", "a.y", "a.b", "c[0]", "c[1]"]
    assert value_names(round_, {"norm": 2.0}) == []


def test_tables_hold_plain_values_alone(real: dict[str, RunView]) -> None:
    for name, view in real.items():
        for round_ in view.rounds:
            made = explain(view, round_.server_round)
            for table in made.tables:
                assert len(set(table.columns)) == len(table.columns), name
                json.dumps(table.records())
