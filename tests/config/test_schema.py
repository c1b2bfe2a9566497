"""The typed config: checks, JSON form, recorded parameters and digest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_app.config.checking import facts
from fl_app.config.options import FaultsConfig, ModelConfig
from fl_app.config.rules import check
from fl_app.config.schema import GROUPS, METRICS, SECTIONS, Config, task_of
from fl_app.config.serialization import (
    digest,
    flatten,
    from_dict,
    from_json,
    to_dict,
    to_json,
    without_effect,
)
from fl_app.errors import ConfigError

KINDS = sorted({kind for options in GROUPS.values() for kind in options.values()}, key=repr)
KINDS += SECTIONS.values()
OPTIONS = [(group, name) for group, options in GROUPS.items() for name in options]
KEYS = ", ".join(sorted(f.name for f in fields(Config)))


def _names(group: str) -> str:
    return ", ".join(GROUPS[group])


# ---------------------------------------------------------------------------- defaults
def test_nothing_given_is_the_checked_default() -> None:
    """An empty mapping is ``Config()`` with the model resolved, and every group typed."""
    assert from_dict({}) == check(Config())
    assert from_dict({}).model.name != "auto"
    assert from_dict({}).model.learning_rate == "auto"


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_has_defaults_that_are_allowed(group: str, name: str) -> None:
    """Each option's defaults pass the checks of their own keys."""
    kind = GROUPS[group][name]
    values = to_dict(kind(name=name))
    base = {"dataset": {"name": "two_lines"}, "num_clients": 2} if name == "natural" else {}
    task = {"linear": "diabetes", "softmax": "digits"}.get(name) if group == "model" else None
    base |= {"dataset": {"name": task}} if task else {}
    base |= {"num_clients": 2} if name == "two_lines" else {}
    if name == "tabular":
        # Which file and which column, nobody can know by default.
        values |= {"path": "rows.csv", "target": "y"}
        made = getattr(from_dict({group: values}), group)
        assert made == kind(name=name, path="rows.csv", target="y")
        return
    made = getattr(from_dict(base | {group: values}), group)
    assert (type(made) is kind) == (name != "auto")  # which stands for another
    if name != "auto":
        own = {"base_models": ("logistic",)} if name in ("fedstacking", "n_average") else {}
        assert made == kind(name=name, **own)


@pytest.mark.parametrize("kind", [Config, *KINDS])
def test_every_key_is_explained(kind: type[Any]) -> None:
    """Each key has a sentence of help, from which the documentation is made, and each option."""
    first = str(kind.__doc__).split("\n")[0]
    assert first.endswith((".", ";", "`")), first
    for f in fields(kind):
        if f.name not in (*GROUPS, *SECTIONS, "name"):
            assert facts(kind, f.name)["help"].endswith("."), f.name


@pytest.mark.parametrize("name", GROUPS["dataset"])
def test_every_data_set_has_a_task_with_metrics(name: str) -> None:
    """The task decides the model and the metrics, so each data set has one."""
    assert METRICS[task_of(GROUPS["dataset"][name](name=name))]


def test_a_config_is_frozen_and_hashable() -> None:
    """A config is a key of caches: nobody can change it under them."""
    config = from_dict({})
    with pytest.raises(FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
    assert hash(config) == hash(from_dict({}))


# ---------------------------------------------------------------------------- JSON
any_float = st.floats(min_value=5e-324, max_value=1.7e308, exclude_min=False)
configs = st.builds(
    lambda seed, clients, share, l2, rate, alpha, val: from_dict(
        {
            "seed": seed,
            "num_clients": clients,
            "fraction_train": share,
            "model": {"name": "auto", "l2": l2, "learning_rate": rate},
            "partitioner": {"name": "dirichlet", "alpha": alpha},
            "dataset": {"name": "diabetes", "val_fraction": val},
        }
    ),
    st.integers(0, 2**63),
    st.integers(1, 10**6),
    st.floats(0, 1, exclude_min=True),
    any_float,
    st.one_of(st.just("auto"), any_float),
    any_float,
    st.floats(0, 1, exclude_max=True),
)


@given(config=configs)
def test_json_reads_back_exactly(config: Config) -> None:
    """``from_json(to_json(c)) == c`` for every float, and a second time gives the same text."""
    text = to_json(config)
    assert from_json(text) == config
    assert to_json(from_json(text)) == text
    assert digest(from_json(text)) == digest(config)


@given(config=configs)
def test_checking_twice_changes_nothing(config: Config) -> None:
    """A resolved config is its own resolution."""
    assert check(config) == config


def test_json_is_canonical() -> None:
    """Keys are sorted and the text has no spaces, whatever order the keys came in."""
    one = from_dict({"seed": 1, "num_clients": 3})
    two = from_dict({"num_clients": 3, "seed": 1})
    assert to_json(one) == to_json(two)
    assert to_json(one) == json.dumps(
        json.loads(to_json(one)), sort_keys=True, separators=(",", ":")
    )


# ---------------------------------------------------------------------------- digest
NOT_DIGESTED = {"runtime", "tracking", "output_dir", "resume", "resume_anyway", "skip_finished"}


def _changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return (*value, 1)
    return f"{value}x"


def _variants() -> Iterator[tuple[str, Config, Config]]:
    """Yield each key with a config and the same config with that key changed alone."""
    base = Config()
    for f in fields(Config):
        value = getattr(base, f.name)
        if not is_dataclass(value):
            yield f.name, base, replace(base, **{f.name: _changed(value)})
    for group, name in OPTIONS:
        chosen = GROUPS[group][name](name=name)
        before = replace(base, **{group: chosen})
        for f in fields(chosen):
            after = replace(chosen, **{f.name: _changed(getattr(chosen, f.name))})
            yield f"{group}.{f.name}", before, replace(base, **{group: after})
    for key, value in {"clients": 2, "kind": "nan"}.items():
        before = FaultsConfig(clients=1)
        after = replace(before, **{key: value})
        yield f"faults.{key}", replace(base, faults=before), replace(base, faults=after)


def test_a_digest_sees_every_key_but_where_a_run_runs_and_writes() -> None:
    """Changing a key changes the digest, unless it cannot change a number of the run."""
    for key, before, after in _variants():
        ignored = key.split(".")[0] in NOT_DIGESTED or key in without_effect(before)
        assert (digest(before) == digest(after)) == ignored, key


def test_a_digest_does_not_see_how_the_model_was_named() -> None:
    """``auto`` is what it resolves to: the same run has the same digest."""
    named = from_dict({"model": {"name": "softmax"}})
    assert digest(named) == digest(from_dict({}))


def test_flat_parameters_are_dotted_texts_without_folders() -> None:
    """Every key is recorded once as text; what says only where output goes is not."""
    config = from_dict({"output_dir": "/x", "dataset": {"name": "two_lines"}, "num_clients": 2})
    params = flatten(config)
    assert "output_dir" not in params
    assert params["seed"] == "0"
    assert params["dataset.name"] == "two_lines"
    assert params["dataset.standardize"] == "false"
    assert params["dataset.rows"] == "[2, 2]"
    assert params["objective"] == "null"
    assert all(isinstance(value, str) for value in params.values())
    number = {f"{g}.{f.name}" for g in (*GROUPS, *SECTIONS) for f in fields(getattr(config, g))}
    assert number <= params.keys()


# ---------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sede": 1}, f"sede=1: no such key; did you mean seed? allowed are {KEYS}"),
        ({1: 2}, f"1=2: no such key; allowed are {KEYS}"),
        ({"seed": 1.0}, "seed=1.0: expected an integer >= 0"),
        ({"seed": True}, "seed=true: expected an integer >= 0"),
        (
            {"seed": "1"},
            "seed=1: expected an integer >= 0, not a text (${oc.decode:...} makes a number of one)",
        ),
        ({"seed": None}, "seed=null: expected an integer >= 0"),
        ({"fraction_train": 0}, "fraction_train=0: expected a finite number > 0 and <= 1"),
        ({"fraction_train": 10**400}, None),
        (
            {"output_dir": 3},
            "output_dir=3: expected a text, or null; digits that are a text in quotes: "
            "'output_dir=\"3\"'",
        ),
        (
            {"dataset": "digits"},
            f"dataset=digits: a mapping with one of {_names('dataset')} as name",
        ),
        ({"dataset": {}}, f"dataset.name=null: one of {_names('dataset')}"),
        ({"dataset": {"name": "x"}}, f"dataset.name=x: one of {_names('dataset')}"),
        ({"dataset": {"name": ["digits"]}}, f"dataset.name=['digits']: one of {_names('dataset')}"),
        (
            {"dataset": {"name": "digits", "standardize": 1}},
            "dataset.standardize=1: expected true or false",
        ),
        (
            {"model": {"name": "auto", "learning_rate": float("nan")}},
            "model.learning_rate=nan: expected a finite number > 0, or auto",
        ),
        (
            {"model": {"name": "auto", "learning_rate": 10**400}},
            None,
        ),
        (
            {"model": {"name": "auto", "dtype": "float16"}},
            "model.dtype=float16: expected one of float32, float64",
        ),
        (
            {"dataset": {"name": "two_lines", "rows": [2, 0]}, "num_clients": 2},
            "dataset.rows=[2, 0]: expected a list of integers >= 1 (2 of them)",
        ),
        (
            {"dataset": {"name": "two_lines", "rows": [2, 2, 2]}, "num_clients": 2},
            "dataset.rows=[2, 2, 2]: expected a list of integers >= 1 (2 of them)",
        ),
        ([], "config=[]: a mapping of keys to values"),
        (None, "config=null: a mapping of keys to values"),
    ],
)
def test_a_wrong_key_type_or_value_is_named(data: Any, message: str | None) -> None:
    """The one error names the key, its value and what is allowed, in one line."""
    with pytest.raises(ConfigError) as caught:
        from_dict(data)
    if message is None:  # a number too long to show
        message = f"{caught.value.field}={'1' + '0' * 76}...: expected a finite number"
        assert str(caught.value).startswith(message)
    else:
        assert str(caught.value) == message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"seed": 1e}'])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    """A broken ``config-json`` is one error of that name."""
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    assert caught.value.field == "config-json"
    assert "a JSON object" in str(caught.value)


def test_null_in_json_is_no_number() -> None:
    """JSON's extensions NaN and Infinity are read, and then refused like any other value."""
    text = to_json(from_dict({})).replace('"min_rows":5', '"min_rows":NaN')
    with pytest.raises(ConfigError) as caught:
        from_json(text)
    assert str(caught.value) == "min_rows=nan: expected an integer >= 1"


@given(
    key=st.sampled_from(["seed", "num_clients", "fraction_train", "objective", "min_rows"]),
    value=st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=4,
    ),
)
def test_any_json_value_is_taken_or_refused_by_name(key: str, value: Any) -> None:
    """Whatever stands at a key, the answer is a config that holds it or an error that names it."""
    try:
        found = getattr(from_dict({key: value}), key)
    except ConfigError as error:
        found, value = error.field, key
    assert found == value


@given(
    group=st.sampled_from(sorted(GROUPS)),
    value=st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["name", "x"]), inner),
        max_leaves=4,
    ),
)
def test_any_json_value_for_a_group_is_refused_by_name(group: str, value: Any) -> None:
    """What is no group of known options never becomes another exception."""
    with pytest.raises(ConfigError) as caught:
        from_dict({group: value})
    assert caught.value.field.split(".")[0] == group


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"min_replies": 11}, "min_replies=11: at most num_clients=10"),
        (
            {"objective": "eval/mse"},
            "objective=eval/mse: one of eval/log_loss, eval/accuracy, eval/brier, "
            "eval/balanced_accuracy, eval/roc_auc, "
            "train/log_loss, train/accuracy, train/brier, or null",
        ),
        (
            {"strategy": {"name": "pooled"}, "runtime": {"name": "simulation"}},
            "strategy=pooled: all rows in one place exist with runtime=inprocess only, "
            "not simulation",
        ),
        (
            {"strategy": {"name": "pooled"}, "min_replies": 2},
            "min_replies=2: strategy=pooled has one client: 1",
        ),
        (
            {"strategy": {"name": "pooled"}, "fraction_train": 0.5},
            "fraction_train=0.5: strategy=pooled trains every client: 1",
        ),
        (
            {"strategy": {"name": "pooled", "base_models": ["logistic", "random_forest"]}},
            "strategy.base_models=['logistic', 'random_forest']: one of scikit-learn's with "
            "strategy=pooled; null: the run's model",
        ),
        (
            {"strategy": {"name": "pooled", "base_models": ["model"]}},
            "strategy.base_models=['model']: one of scikit-learn's with strategy=pooled; "
            "null: the run's model",
        ),
        (
            {
                "strategy": {"name": "n_average", "combine": "votes"},
                "dataset": {"name": "diabetes"},
            },
            "strategy.combine=votes: rows for a regression task, which has no classes",
        ),
        *(
            (
                {"tracking": {"name": "mlflow", "register_as": name}},
                f"tracking.register_as={name}: a name of 1 to 256 characters, none of them "
                "/ : @ ? # or a quotation mark",
            )
            for name in ("", "it's", 'say "a"', "a`b", "a/b", "a:b", "a@b", "..", "x" * 75 + "?")
        ),
        (
            {"tracking": {"name": "mlflow", "keep_weights": "last"}},
            "tracking.keep_weights=last: all, none, last:K (the last K rounds) or every:K (each "
            "Kth and the last), K from 1",
        ),
        (
            {"tracking": {"name": "mlflow", "experiment_name": ""}},
            "tracking.experiment_name=: 1 to 500 characters",
        ),
        (
            {"strategy": {"name": "local"}, "fraction_train": 0.5},
            "fraction_train=0.5: strategy=local trains every client: 1",
        ),
    ],
)
def test_keys_at_odds_are_named(data: dict[str, Any], message: str) -> None:
    """Where two keys contradict each other, the error names both."""
    with pytest.raises(ConfigError) as caught:
        from_dict(data)
    assert str(caught.value) == message


def test_inputs_are_left_as_they_are() -> None:
    """Building and checking a config changes neither the data nor the config it was given."""
    two_lines = {"name": "two_lines", "rows": [1, 2]}
    data = {"model": {"name": "auto"}, "dataset": two_lines, "num_clients": 2}
    before = json.dumps(data)
    config = from_dict(data)
    assert json.dumps(data) == before
    unresolved = Config(dataset=GROUPS["dataset"]["diabetes"](), model=ModelConfig(name="auto"))
    assert check(unresolved).model.name == "linear"
    assert unresolved.model.name == "auto"
    assert to_dict(config)["dataset"]["rows"] == [1, 2]


# ---------------------------------------------------------------------------- names
TABLE = {"name": "tabular", "path": "rows.csv", "target": "y", "categorical": ["q", "chest pain"]}


def test_named_levels_survive_json_and_are_one_recorded_parameter() -> None:
    """Whole numbers are the texts of their cells; the order of columns makes no other config."""
    levels = {"q": ["b", "a"], "chest pain": [1, 2]}
    one = from_dict({"dataset": TABLE | {"levels": levels, "classes": ["no", "yes"]}})
    turned = {"chest pain": ["1", "2"], "q": ["b", "a"]}
    other = from_dict({"dataset": TABLE | {"levels": turned, "classes": ["no", "yes"]}})
    assert from_json(to_json(one)) == one == other
    assert hash(from_json(to_json(one))) == hash(one) == hash(other)
    assert (digest(one), to_json(one)) == (digest(other), to_json(other))
    assert flatten(one)["dataset.levels"] == '{"q": ["b", "a"], "chest pain": ["1", "2"]}'
    assert flatten(one)["dataset.classes"] == '["no", "yes"]'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            (
                {"classes": wrong},
                f"dataset.classes={wrong}: at least 2 different classes, all whole numbers or "
                "all texts",
            )
            for wrong in ([], [1], [1, 1], [1, "a"])
        ),
        *(
            (
                {"classes": wrong},
                f"dataset.classes={wrong}: expected a list of integers or texts, or null",
            )
            for wrong in ("ab", [0.5, 1])
        ),
        (
            {"classes": [True, False]},
            "dataset.classes=[True, False]: expected a list of integers or texts, or null; "
            "true and false in a file are the classes 1 and 0",
        ),
        (
            {"classes": [1, 2], "task": "regression"},
            "dataset.classes=[1, 2]: null, as dataset.task=regression",
        ),
        *(
            (
                {"levels": wrong},
                f"dataset.levels={wrong}: expected lists of texts by column, or null",
            )
            for wrong in (["a"], {"q": "a"}, {"q": []}, {"q": [0.5]}, {"q": None})
        ),
        (
            {"levels": {"other": ["a"]}},
            "dataset.levels=other: a column that dataset.categorical names",
        ),
        *(
            (
                {"levels": {"q": wrong}},
                f"dataset.levels.q={wrong}: each level once; an empty cell is a missing one",
            )
            for wrong in (["a", "a"], [""])
        ),
        ({"min_level_rows": 0}, "dataset.min_level_rows=0: expected an integer >= 1"),
    ],
)
def test_names_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    """The message names the key, the value and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        from_dict({"dataset": TABLE | options})
    assert str(caught.value) == message
