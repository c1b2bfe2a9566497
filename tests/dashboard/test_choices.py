"""Choices of the page: what an address can say, and the arguments that become of them."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_app.config.compose import compose_config
from fl_app.config.dataset_options import TabularConfig
from fl_app.config.overrides import quoted
from fl_app.config.schema import GROUPS
from fl_app.config.sweep import check_sweep
from fl_app.dashboard import uploads
from fl_app.dashboard.arguments import (
    check,
    command,
    five_seeds,
    fixed_clients,
    jobs,
    offered,
    overrides,
    task_for,
)
from fl_app.dashboard.choices import (
    BOTH,
    EXAMPLES,
    LIMITS,
    LOOK_AT,
    OPTIONS,
    Choices,
    from_query,
    to_query,
)
from fl_app.errors import ConfigError, InputError, printable

HEAD = b"""age,chest pain,"a,b",hospital,y
"""
ROWS = b"""1,p,3,A,0
2,q,1,A,1
3,p,4,B,0
4,q,1,B,1
5,p,5,C,1
6,q,9,C,0
7,p,2,C,1
8,q,6,C,0
"""
TABLE = HEAD + 5 * ROWS
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Return the id of an upload in the test's home."""
    return uploads.save(None, TABLE, "own.csv").id


# ---------------------------------------------------------------------------- fields
def test_every_option_is_the_schemas_and_tabular_is_by_upload_only():
    """No option is typed here: a data set or strategy that is added there can be chosen here."""
    assert set(OPTIONS["dataset"]) == set(GROUPS["dataset"]) - {"tabular"}
    assert OPTIONS["strategy"] == tuple(GROUPS["strategy"])
    assert set(OPTIONS["runtime"]) == set(GROUPS["runtime"]) - {"deployment"}
    for name in (*OPTIONS, *LIMITS):
        assert name in {f.name for f in fields(Choices)}


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("rounds", 501, "1 to 500 is allowed"),
        ("clients", 0, "1 to 1000 is allowed"),
        ("alpha", float("nan"), "0.01 to 100 is allowed"),
        ("fraction", 1.01, "0.1 to 1 is allowed"),
        ("dataset", "tabular", "one of digits, "),
        ("strategy", "both", "one of fedavg, "),
        ("upload", "../../etc/passwd", "the id of an uploaded file is allowed"),
    ],
)
def test_a_value_out_of_its_list_or_limits_is_refused(field, value, allowed):
    with pytest.raises(ConfigError, match=f"^{field}=.*{allowed}"):
        Choices(**{field: value})


def test_what_fits_the_data_is_offered(own):
    """A regression has no softmax, and natural clients are offered where the data have some."""
    assert "softmax" not in offered(Choices(dataset="diabetes"))["model"]
    assert "linear" not in offered(Choices(dataset="digits"))["model"]
    assert "natural" not in offered(Choices(dataset="digits"))["partitioner"]
    assert "natural" in offered(Choices(dataset="penguins"))["partitioner"]
    mine = Choices(upload=own, target="age", task="regression")
    assert task_for(mine) == "regression"
    assert "softmax" not in offered(mine)["model"]
    assert "natural" in offered(mine)["partitioner"]


def test_clients_are_fixed_where_the_data_say_who_they_are(own):
    """Two lines, four hospitals, three islands, and the different values of a key."""
    assert fixed_clients(Choices(dataset="two_lines")) == 2
    assert fixed_clients(Choices(dataset="heart_disease", partitioner="natural")) == 4
    assert fixed_clients(Choices(dataset="penguins", partitioner="natural")) == 3
    assert fixed_clients(Choices(upload=own, partitioner="natural", key="hospital")) == 3
    for free in (
        Choices(),
        Choices(dataset="heart_disease"),
        Choices(partitioner="natural"),
        Choices(upload=own, partitioner="natural"),
    ):
        assert fixed_clients(free) is None


# ---------------------------------------------------------------------------- the address
CHOICES = st.builds(
    Choices,
    example=st.sampled_from(["", *EXAMPLES]),
    dataset=st.sampled_from(OPTIONS["dataset"]),
    partitioner=st.sampled_from(OPTIONS["partitioner"]),
    alpha=st.floats(*LIMITS["alpha"]),
    clients=st.integers(*map(int, LIMITS["clients"])),
    model=st.sampled_from(OPTIONS["model"]),
    strategy=st.sampled_from(OPTIONS["strategy"]),
    both=st.booleans(),
    rounds=st.integers(*map(int, LIMITS["rounds"])),
    fraction=st.floats(*LIMITS["fraction"]),
    learning_rate=st.none() | st.floats(*LIMITS["learning_rate"]),
    seed=st.integers(*map(int, LIMITS["seed"])),
    examples=st.integers(*map(int, LIMITS["examples"])),
    classes=st.integers(*map(int, LIMITS["classes"])),
    runtime=st.sampled_from(OPTIONS["runtime"]),
    fault=st.sampled_from(OPTIONS["fault"]),
)


@given(CHOICES)
def test_an_address_reads_back_as_the_choices(choices):
    assert from_query(to_query(choices)) == (choices, [])


def test_an_address_holds_what_differs_only(own):
    assert to_query(Choices()) == {}
    assert to_query(Choices(rounds=7)) == {"rounds": "7"}
    for name, choices in EXAMPLES.items():
        assert to_query(choices) == {"example": name}
        assert to_query(replace(choices, seed=3)) == {"example": name, "seed": "3"}
    mine = Choices(upload=own, target="a,b", features=("age", "chest pain"))
    assert from_query(to_query(mine)) == (mine, [])


@given(st.dictionaries(st.sampled_from([f.name for f in fields(Choices)]) | st.text(), st.text()))
@example({"features": "[" * 20_000})
@example({"clients": "9" * 5000})
@example({"upload": "0" * 16})
def test_any_address_gives_choices(query):
    """Whatever somebody types: choices that are allowed, and few words."""
    choices, complaints = from_query(query)
    assert isinstance(choices, Choices)
    assert len(complaints) <= 10
    assert all(len(text) < 400 and printable(text) == text for text in complaints)


def test_each_value_that_is_not_used_is_told(own):
    query = {
        "rounds": "9999",
        "seed": "x",
        "both": "maybe",
        "dataset": "tabular",
        "strategy.eta": "1",
        "run": "20260101-000000-aa",
        "upload": own,
        "target": "the moon",
        "features": '["age", "tide"]',
    }
    chosen, complaints = from_query(query)
    assert chosen == Choices(upload=own)
    datasets, columns = ", ".join(OPTIONS["dataset"]), "age, chest pain, a,b, hospital, y"
    assert complaints == [
        "rounds=9999: 1 to 500 is allowed; 20 is used",
        "seed=x: a whole number, 0 to 1000000 is allowed; 0 is used",
        "both=maybe: true or false is allowed; false is used",
        f"dataset=tabular: one of {datasets} is allowed; digits is used",
        "strategy.eta: no such choice; it is left out",
        f"target=the moon: one of {columns} is allowed; none is used",
        f"features=tide: one of {columns} is allowed; none is used",
    ]


@pytest.mark.parametrize(
    "upload", ["../../etc/passwd", "/etc/passwd", "0" * 16, "A" * 16, "0" * 17, "http://x"]
)
def test_no_path_gets_in_through_the_address(upload):
    """Only an id of a file that is there; the columns go with it."""
    chosen, complaints = from_query({"upload": upload, "rounds": "3"})
    assert chosen == Choices(rounds=3)
    assert len(complaints) == 1
    chosen, complaints = from_query({"target": "y"})
    assert (chosen, complaints) == (
        Choices(),
        ["target=y: of an uploaded file, and there is none; none is used"],
    )


# ---------------------------------------------------------------------------- arguments
ODD_NAMES = [
    "${seed}",
    "a\\${b}",
    "\\",
    '\\"',
    "a = b, 'c' [d] {e: f}",
    "Größe in m²",
    "null",
    "1.0",
    " x ",
    "~+@:/$%",
]


def named(name: str) -> list[str]:
    words = ["dataset=tabular", "dataset.path=x.csv", f"dataset.target={quoted(name)}"]
    return [*words, f"dataset.features=[{quoted(name)},{quoted(name + 'x')}]"]


@settings(max_examples=25)
@given(NAMES.filter(lambda name: name != "???"))  # OmegaConf's own word for what is missing
def test_a_column_of_any_name_reaches_the_config(name):
    """Through Hydra's grammar and OmegaConf's."""
    dataset = compose_config(named(name)).dataset
    assert isinstance(dataset, TabularConfig)
    assert (dataset.target, dataset.features) == (name, (name, name + "x"))


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_column_of_an_odd_name_reaches_each_job_of_a_sweep(name):
    """Hydra writes the arguments of a job anew, from what it has read."""
    parsed = OverridesParser.create().parse_overrides([*named(name), "seed=1,2"])
    for job in BasicSweeper.split_arguments(parsed, None)[0]:
        dataset = compose_config(job).dataset
        assert isinstance(dataset, TabularConfig)
        assert (dataset.target, dataset.features) == (name, (name, name + "x"))


def test_the_arguments_of_an_upload_say_what_its_file_is(own):
    """Its path, its target, what the check proposes, and natural clients by a key."""
    path = uploads.open(own).path
    mine = Choices(upload=own, target="a,b", task="regression", partitioner="iid", clients=2)
    assert overrides(mine) == [
        "dataset=tabular",
        f"dataset.path={quoted(str(path))}",
        'dataset.target="a,b"',
        "dataset.task=regression",
        "dataset.min_level_rows=1",
        "partitioner=iid",
        "num_clients=2",
        "model=auto",
        "strategy=fedavg",
        "num_server_rounds=20",
        "seed=0",
        "runtime=inprocess",
    ]
    assert check(mine) == ""
    natural = replace(mine, target="y", task="", partitioner="natural", key="hospital")
    config = compose_config(overrides(natural))
    assert (config.num_clients, config.partitioner.key) == (3, "hospital")  # type: ignore[attr-defined]
    assert "hospital" not in config.dataset.categorical  # type: ignore[attr-defined]
    assert check(replace(natural, features=("age",))) == ""
    path.unlink()
    with pytest.raises(InputError, match="upload it again"):
        overrides(mine)
    assert "upload it again" in check(mine)


@pytest.mark.parametrize("name", OPTIONS["dataset"])
def test_every_data_set_can_be_run(name):
    """With natural clients where it has some, and with averaging and stacking."""
    dealer = "natural" if "natural" in offered(Choices(dataset=name))["partitioner"] else "iid"
    choices = Choices(dataset=name, partitioner=dealer, clients=4, both=name != "two_lines")
    assert check(choices) == ""


def test_alpha_goes_to_those_that_have_one():
    for name in OPTIONS["partitioner"]:
        words = overrides(Choices(partitioner=name, alpha=0.2))
        assert ("partitioner.alpha=0.2" in words) == (name in ("dirichlet", "quantity"))


def test_the_command_is_the_run_and_the_sweep():
    """A shell gives back the same words; five seeds are five jobs a strategy."""
    one = Choices(strategy="krum", rounds=3, seed=7)
    assert shlex.split(command(one)) == ["fl-app", *overrides(one)]
    assert jobs(one) == [overrides(one)]
    both = replace(one, both=True)
    assert shlex.split(command(both)) == ["fl-app", "-m", *overrides(both)]
    assert "strategy=fedavg,fedstacking" in overrides(both)
    assert [f"strategy={name}" in job for name, job in zip(BOTH, jobs(both), strict=True)] == [
        True,
        True,
    ]
    words = shlex.split(five_seeds(overrides(both)))
    assert words[:2] == ["fl-app", "-m"]
    assert "seed=range(7,12)" in words
    assert set(check_sweep(words[2:], True).keys) == {"strategy", "seed"}


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        (Choices(strategy="bulyan", clients=3), "num_clients=3: strategy=bulyan needs at least 7"),
        (Choices(both=True, rounds=2), "num_server_rounds=2: strategy=fedstacking needs at least"),
        (Choices(both=True, clients=1000), "strategy.num_folds=4: at most 2, the training rows"),
        (Choices(dataset="iris", clients=500), "num_clients=500: at most one client a training"),
        (Choices(partitioner="natural"), "partitioner=natural: dataset=digits has no natural"),
        (Choices(model="linear"), "model=linear: dataset=digits is a classification task"),
        (Choices(strategy="pooled", runtime="simulation"), "strategy=pooled: all rows in one"),
        (Choices(strategy="local", fraction=0.5), "fraction_train=0.5: strategy=local trains"),
        (Choices(min_replies=11), "min_replies=11: at most num_clients=10"),
    ],
)
def test_what_cannot_run_is_one_sentence(choices, says):
    assert check(choices).startswith(says)


def test_a_home_that_cannot_be_written_to_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FL_APP_HOME", str(tmp_path / "file"))
    assert check(Choices()).startswith("FL_APP_HOME=")


# ---------------------------------------------------------------------------- examples
def test_every_example_runs_and_says_what_to_look_at():
    for name, choices in EXAMPLES.items():
        assert check(choices) == ""
        assert choices.example == name
        assert LOOK_AT[name].endswith(".")
    assert len(EXAMPLES) >= 3


def test_the_lesson_is_the_experiment_of_that_name():
    """So that the page shows the numbers of docs/lesson.md."""
    lesson = next(iter(EXAMPLES.values()))
    written = compose_config(["experiment=two_lines", "num_server_rounds=20"])
    assert compose_config(overrides(lesson)) == written


def test_clients_of_too_few_rows_are_seen_before_a_run():
    """800 clients of 1294 rows: no node could tell its moments."""
    assert check(Choices(clients=800)).startswith(
        "clients=800: as many as leave one of them 5 rows"
    )
    assert check(Choices(clients=200)) == ""


def test_the_lesson_with_unequal_rows():
    config = compose_config(
        overrides(replace(EXAMPLES["The lesson: a weighted average"], examples=6))
    )
    assert config.dataset.rows == (2, 6)
    config = compose_config(overrides(Choices(dataset="rings", examples=90, classes=3)))
    assert (config.dataset.num_examples, config.dataset.num_classes) == (90, 3)


def test_clients_that_fail_on_purpose():
    choices = EXAMPLES["Faulty members"]
    assert f"faults.clients={choices.faulty}" in overrides(choices)
    assert f"faults.kind={choices.fault}" in overrides(choices)
