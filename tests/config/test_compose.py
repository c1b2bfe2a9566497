"""Composing with Hydra: the same config everywhere, and one line for every mistake."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from fl_app.config.compose import compose_config, config_dir
from fl_app.config.dataset_options import DatasetConfig, TabularConfig
from fl_app.config.options import DeploymentConfig, LinearConfig, ModelConfig
from fl_app.config.schema import GROUPS, Config
from fl_app.config.serialization import digest, from_dict, from_json, to_json
from fl_app.config.strategy_options import FedAdamConfig, StrategyConfig
from fl_app.errors import ConfigError

EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
KEYS = ", ".join(sorted(f.name for f in fields(Config)))


def _keys(kind: type) -> str:
    return ", ".join(sorted(f.name for f in fields(kind)))


def _options(group: str) -> str:
    return ", ".join(sorted(GROUPS[group]))


# ---------------------------------------------------------------------------- composing
def test_composing_nothing_gives_the_schemas_defaults() -> None:
    """The YAML files say what the schema says: no default is told twice and differently."""
    assert compose_config([]) == from_dict({})


def test_composing_twice_gives_equal_configs() -> None:
    """Composing has no memory, and its result survives the way to a client."""
    overrides = ["strategy=fedadam", "strategy.eta=0.3", "partitioner=dirichlet", "seed=3"]
    one, two = compose_config(overrides), compose_config(overrides)
    assert one == two
    assert digest(one) == digest(two)
    assert from_json(to_json(one)) == one
    assert isinstance(one.strategy, FedAdamConfig)
    assert (one.strategy.eta, one.strategy.tau, one.seed) == (0.3, 1e-3, 3)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_changes_the_config(name: str) -> None:
    """An experiment's own values win over ``config.yaml``, and what is typed wins over both."""
    single = "hydra.mode=RUN"  # an experiment may be a sweep by itself
    config = compose_config([f"experiment={name}", single])
    assert config != compose_config([])
    typed = compose_config([f"experiment={name}", single, "num_server_rounds=97"])
    assert typed.num_server_rounds == 97


def test_a_sweep_is_no_single_run() -> None:
    """Under ``flwr run``, which makes one run, an experiment that is a sweep is refused."""
    with pytest.raises(ConfigError, match="needs fl-app --multirun"):
        compose_config(["experiment=stacking_vs_averaging"])


def test_the_lesson_is_as_its_documentation_says() -> None:
    """``experiment=two_lines`` is full-batch descent on two clients with natural rows."""
    config = compose_config(["experiment=two_lines"])
    assert (config.dataset.name, config.partitioner.name) == ("two_lines", "natural")
    assert (config.num_clients, config.num_server_rounds) == (2, 5)
    assert config.model == LinearConfig(local_epochs=5, batch_size=0, learning_rate=0.1)


# ---------------------------------------------------------------------------- SuperNodes of its own
@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        ([], 2),
        (["runtime.nodes=3"], 3),
        (["runtime.nodes=3", "num_clients=3", "runtime.wait_for_nodes=3"], 3),
        (["experiment=two_lines"], 2),
        (["dataset=heart_disease", "runtime.nodes=4"], 4),
    ],
)
def test_supernodes_of_its_own_are_the_clients(words: list[str], nodes: int) -> None:
    """Where no SuperLink is named, so many clients are there, and waited for, as nodes start."""
    config = compose_config(["runtime=deployment", *words])
    assert config.num_clients == nodes
    assert config.runtime == DeploymentConfig(nodes=nodes, wait_for_nodes=nodes)
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    "words", [["num_clients=1", "runtime.wait_for_nodes=5"], ["num_clients=7"]]
)
def test_a_named_superlink_has_nodes_of_somebody_elses(words: list[str]) -> None:
    """Neither there nor at a SuperLink that has the run already does anything say how many."""
    named = compose_config(["runtime=deployment", "runtime.superlink=lab", *words])
    there = compose_config(["runtime=deployment", *words], at_superlink=True)
    assert isinstance(named.runtime, DeploymentConfig)
    assert isinstance(there.runtime, DeploymentConfig)
    assert named.runtime.nodes is there.runtime.nodes is None
    assert f"num_clients={named.num_clients}" in words
    assert (named.num_clients, named.runtime.wait_for_nodes) == (
        there.num_clients,
        there.runtime.wait_for_nodes,
    )


AS_MANY = "as many as runtime.nodes=2, which with runtime.superlink=null are the clients"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_clients=3"], f"num_clients=3: {AS_MANY}"),
        (["num_clients=10"], f"num_clients=10: {AS_MANY}"),
        (["runtime.wait_for_nodes=1"], f"runtime.wait_for_nodes=1: {AS_MANY}"),
        (["runtime.nodes=0"], "runtime.nodes=0: expected an integer >= 1, or null"),
        (["runtime.nodes=few"], "runtime.nodes=few: expected an integer >= 1, or null"),
        (
            ["runtime.superlink=lab", "runtime.nodes=2"],
            "runtime.nodes=2: null with runtime.superlink=lab, whose SuperNodes somebody else "
            "starts; runtime.superlink=null starts some for the run",
        ),
        (
            ["dataset=tabular", "dataset.path=a.csv", "dataset.target=y"],
            "dataset=tabular: a data set whose rows are dealt, with runtime.superlink=null; a "
            "SuperNode reads only the file of its own node-config: start SuperNodes with data=FILE "
            "and name their SuperLink (docs/deployment.md)",
        ),
        (["min_replies=3"], "min_replies=3: at most runtime.nodes=2"),
        (
            ["strategy=krum"],
            "runtime.nodes=2: strategy=krum needs at least 5 clients in a round (2f + 3 with f=1), "
            "fraction_train=1 gives 2",
        ),
    ],
)
def test_what_supernodes_of_its_own_cannot_do(words: list[str], message: str) -> None:
    """One sentence names both keys, or says what to do."""
    with pytest.raises(ConfigError) as caught:
        compose_config(["runtime=deployment", *words])
    assert str(caught.value) == message


# ---------------------------------------------------------------------------- Hydra's state
def test_the_hydra_application_around_is_left_as_it_was() -> None:
    """Before and after, with success and with an error, the outer Hydra is in force."""
    assert not GlobalHydra.instance().is_initialized()
    compose_config([])
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert outer is not None
        compose_config(["seed=1"])
        assert GlobalHydra.instance().hydra is outer
        with pytest.raises(ConfigError):
            compose_config(["seed=x"])
        with pytest.raises(ConfigError):
            compose_config(["nothing=x"])
        assert GlobalHydra.instance().hydra is outer


def test_a_run_may_compose_inside_a_hydra_application(tmp_path: Path) -> None:
    """Inside ``@hydra.main`` composing works, and Hydra's own state survives it."""
    program = tmp_path / "application.py"
    program.write_text(
        "import hydra\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "from hydra.core.hydra_config import HydraConfig\n"
        "from fl_app.config import compose_config, config_dir, typed\n"
        "@hydra.main(version_base='1.3', config_path=str(config_dir()), config_name='config')\n"
        "def job(composed):\n"
        "    outer = GlobalHydra.instance().hydra\n"
        "    inner = compose_config(['seed=7'])\n"
        "    assert GlobalHydra.instance().hydra is outer\n"
        "    print(typed(composed).seed, inner.seed, HydraConfig.get().job.name)\n"
        "job()\n"
    )
    done = subprocess.run(
        [sys.executable, program, "seed=3"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["3", "7", "application"], done.stderr


def test_threads_may_compose_at_a_time() -> None:
    """Hydra's state is one for the process; each thread still gets its own config."""
    found: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: compose_config([f"seed={i}"]).seed}))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: i for i in range(6)}


# ---------------------------------------------------------------------------- mistakes
RATE = "expected a finite number > 0, or auto"
QUOTED = "; brackets, blanks and signs stand in quotation marks: "
SHARE = "expected a finite number > 0 and <= 1"
MISTAKES = [
    # names of options and keys
    ("strategy=nope", f"strategy=nope: one of {_options('strategy')}"),
    ("strategy=FedAvg", f"strategy=FedAvg: one of {_options('strategy')}"),
    ("strategy=", f"strategy=: one of {_options('strategy')}"),
    ("dataset=null", f"dataset=null: one of {_options('dataset')}"),
    ("experiment=nope", f"experiment=nope: one of {', '.join(EXPERIMENTS)}"),
    ("dataset.name=[1]", f"dataset.name=[1]: one of {', '.join(GROUPS['dataset'])}"),
    ("foo=1", f"foo=1: no such key; allowed are {KEYS}"),
    ("sed=1", f"sed=1: no such key; did you mean seed? allowed are {KEYS}"),
    (
        "num-server-rounds=3",
        f"num-server-rounds=3: no such key; did you mean num_server_rounds? allowed are {KEYS}",
    ),
    ("+new=1", f"new=1: no such key; allowed are {KEYS}"),
    ("++new=1", f"new=1: no such key; allowed are {KEYS}"),
    ("+model.new=1", f"model.new=1: no such key; allowed are {_keys(ModelConfig)}"),
    (
        "model.learning_rat=1",
        "model.learning_rat=1: no such key; did you mean learning_rate? "
        f"allowed are {_keys(ModelConfig)}",
    ),
    *(
        (
            f"{typed}strategy.eta=3",
            "strategy.eta=3: no such key of the chosen strategy; "
            "fedadam, fedyogi, fedadagrad, fedxgbbagging have it",
        )
        for typed in ("", "+", "++", "strategy=fedavg ")
    ),
    ("strategy.nope=3", f"strategy.nope=3: no such key; allowed are {_keys(StrategyConfig)}"),
    ("model.hidden_units=3", "model.hidden_units=3: no such key of the chosen model; mlp has it"),
    (
        "strategy=fedadam strategy.eata=1",
        f"strategy.eata=1: no such key; did you mean eta? allowed are {_keys(FedAdamConfig)}",
    ),
    (
        "dataset.rows=[1,2]",
        "dataset.rows=[1,2]: no such key of the chosen dataset; two_lines has it",
    ),
    ("dataset.x=1", f"dataset.x=1: no such key; allowed are {_keys(DatasetConfig)}"),
    ("hydra.nope=3", "hydra.nope=3: a key of Hydra's own: fl-app --cfg hydra shows them"),
    ("hydra.mode=x", "hydra.mode=x: Invalid value 'x', expected one of [RUN, MULTIRUN]"),
    ("+experiment=two_lines", "experiment=two_lines: it without +, once"),
    ("method=null", "method=null: the name of a file of conf/method; none: leave it out"),
    # types and ranges
    ("num_clients=abc", "num_clients=abc: expected an integer >= 1"),
    ("num_clients=1.5", "num_clients=1.5: expected an integer >= 1"),
    ("num_clients=0", "num_clients=0: expected an integer >= 1"),
    ("num_server_rounds=-3", "num_server_rounds=-3: expected an integer >= 1"),
    ("fraction_train=0", f"fraction_train=0: {SHARE}"),
    ("fraction_train=1.5", f"fraction_train=1.5: {SHARE}"),
    ("dataset.test_fraction=1", "dataset.test_fraction=1: expected a finite number >= 0 and < 1"),
    ("seed=-1", "seed=-1: expected an integer >= 0"),
    ("model.learning_rate=nan", f"model.learning_rate=nan: {RATE}"),
    ("model.learning_rate=inf", f"model.learning_rate=inf: {RATE}"),
    ("model.learning_rate=abc", f"model.learning_rate=abc: {RATE}"),
    ("model.dtype=float16", "model.dtype=float16: expected one of float32, float64"),
    ("model.l2=" + "9" * 400, f"model.l2={'9' * 77}...: expected a finite number >= 0"),
    # keys at odds
    ("min_replies=11", "min_replies=11: at most num_clients=10"),
    (
        "strategy=local fraction_train=0.5",
        "fraction_train=0.5: strategy=local trains every client: 1",
    ),
    (
        "strategy=pooled runtime=simulation",
        "strategy=pooled: all rows in one place exist with runtime=inprocess only, not simulation",
    ),
    (
        "dataset=two_lines",
        "num_clients=10: dataset=two_lines has exactly 2 clients, one a line: num_clients=2",
    ),
    # syntax
    ("seed", "override=seed: KEY=VALUE"),
    ("seed=[1", f"override=seed=[1: KEY=VALUE{QUOTED}'seed=\"[1\"'"),
    ("seed=${seed", "override=seed=${seed: KEY=VALUE"),
    ("output_dir=~/x", f"override=output_dir=~/x: KEY=VALUE{QUOTED}'output_dir=\"~/x\"'"),
    (
        "dataset.features=[age(y),b]",
        f"override=dataset.features=[age(y),b]: KEY=VALUE{QUOTED}"
        '\'dataset.features=["age(y)","b"]\'',
    ),
    ("=3", "override==3: GROUP=NAME (Config group override must be a string or a list. Got int)"),
    ("seed=1,2", "seed=1,2: one value; a sweep needs fl-app --multirun"),
    ("seed=range(1,3)", "seed=range(1,3): one value; a sweep needs fl-app --multirun"),
    ("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN: one run; a sweep needs fl-app --multirun"),
    (
        "seed=${nope}",
        "seed=${nope}: a value that resolves (Interpolation key 'nope' not found)",
    ),
    (
        "model.l2=${oc.env:FL_APP_NONE}",
        "model.l2=${oc.env:FL_APP_NONE}: a value that resolves "
        "(\"Environment variable 'FL_APP_NONE' not found\")",
    ),
    (
        "seed=${now:%Y}",
        f"seed={datetime.now().year}: expected an integer >= 0, not a text "
        "(${oc.decode:...} makes a number of one)",
    ),
    *[
        (
            f"runtime=simulation runtime.ray_address={address}",
            f"runtime.ray_address={address}: HOST:PORT of a Ray head, "
            "as `ray start --head` prints it",
        )
        for address in ("auto", "ray://10.0.0.1:10001", "head:", ":6379", "head:99999")
    ],
    ("runtime.num_workers=0", "runtime.num_workers=0: expected an integer >= 1"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_is_one_line(overrides: str, message: str) -> None:
    """The error names the key as it was typed, its value and what is allowed; exit status 2."""
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides.split(" "))
    assert str(caught.value) == message
    assert caught.value.exit_status == 2
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ("model=linear", "model=linear: dataset=digits is a classification task; allowed are "),
        ("dataset=diabetes model=softmax", "model=softmax: dataset=diabetes is a regression task"),
        ("partitioner=natural", "partitioner=natural: dataset=digits has no natural clients; "),
        ("objective=eval/mse", "objective=eval/mse: one of eval/log_loss, eval/accuracy"),
        ("partitioner.alpha=1", "partitioner.alpha=1: no such key of the chosen partitioner; "),
        (
            "tracking=none tracking.uri=x",
            "tracking.uri=x: no such key of the chosen tracking; mlflow",
        ),
        ("a b", "override=a"),
        ("~nothing", "override=Could not delete from config. 'nothing' does not exist."),
    ],
)
def test_a_mistake_with_a_longer_list_is_one_line_too(overrides: str, key: str) -> None:
    """As above, where the list of what is allowed grows with the catalogue."""
    with pytest.raises(ConfigError) as caught:
        compose_config(overrides.split(" "))
    assert str(caught.value).startswith(key)
    assert "\n" not in str(caught.value)


def test_how_a_name_is_quoted() -> None:
    """What the sentence says can be typed: names with blanks and brackets, alone and in a list."""
    for typed in ("dataset.target=age (y)", "dataset.features=[age (y),b]", "dataset.target=a[1]"):
        words = ["dataset=tabular", "dataset.path=x.csv", "dataset.target=y"]
        with pytest.raises(ConfigError) as caught:
            compose_config([*words, typed])
        (said,) = shlex.split(str(caught.value).partition("quotation marks: ")[2])
        dataset = compose_config([*words, said]).dataset
        assert isinstance(dataset, TabularConfig)
        key, _, value = typed.partition("=")
        names = getattr(dataset, key.removeprefix("dataset."))
        assert (f"[{','.join(names)}]" if value.startswith("[") else names) == value


@pytest.mark.parametrize("chosen", ["partitioner=iid", "method=fedavg_mlp", "model=linear"])
def test_a_choice_goes_before_what_an_experiment_set_for_another(
    chosen: str, tmp_path: Path
) -> None:
    """Values of a file that the chosen option has no key for are left out; typed ones are not."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /partitioner: dirichlet}, {override /strategy: fedadam},"
        " {override /model: mlp}, {override /dataset: diabetes}]\n"
        "partitioner: {alpha: 3}\nstrategy: {eta: 0.5}\nmodel: {hidden_units: 7}\n"
    )
    words = [f"hydra.searchpath=[{tmp_path}]", "experiment=own"]
    kept = compose_config(words)
    assert (kept.partitioner.alpha, kept.strategy.eta, kept.model.hidden_units) == (3, 0.5, 7)  # type: ignore[attr-defined]
    config = compose_config([*words, chosen])
    group = chosen.partition("=")[0]
    own = {"partitioner": "alpha", "method": "eta", "model": "hidden_units"}[group]
    assert not hasattr(getattr(config, "strategy" if group == "method" else group), own)
    if group == "partitioner":
        with pytest.raises(ConfigError, match="no such key of the chosen partitioner"):
            compose_config([*words, chosen, "partitioner.alpha=2"])


def test_composing_does_not_look_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower unpacks a bundle elsewhere: a ``conf`` that happens to lie about is not read."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("seed: 99\n")
    monkeypatch.chdir(tmp_path)
    assert compose_config([]).seed == 0


def test_classes_and_levels_are_typed_on_the_command_line() -> None:
    """Names with spaces stand in Hydra's braces as they are."""
    config = compose_config(
        [
            "dataset=tabular",
            "dataset.path=rows.csv",
            "dataset.target=y",
            "dataset.categorical=[q,chest pain]",
            "dataset.classes=[no,yes]",
            "dataset.levels={q:[a,b],chest pain:[1,2]}",
        ]
    )
    assert isinstance(config.dataset, TabularConfig)
    assert config.dataset.classes == ("no", "yes")
    assert config.dataset.levels == {"q": ("a", "b"), "chest pain": ("1", "2")}
