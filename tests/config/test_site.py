"""A site's own settings: who reads them, what goes before them, and how they are refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fl_app.config.compose import compose_config, config_dir
from fl_app.config.options import MlflowConfig, NoTrackingConfig
from fl_app.config.run_request import read_launch
from fl_app.config.site import site_file
from fl_app.config.strategy_options import FedAdamConfig
from fl_app.config.sweep import check_sweep
from fl_app.dashboard.arguments import check, overrides
from fl_app.dashboard.choices import Choices
from fl_app.errors import ConfigError
from fl_app.runtimes.bundle import app_dir

ROOT = Path(__file__).parents[2]


def write(text: str) -> None:
    site_file().parent.mkdir(parents=True, exist_ok=True)
    site_file().write_text(text)


def test_they_come_before_an_experiment_and_what_is_typed() -> None:
    """The site's values win over ``conf/config.yaml``, and lose against whoever asks for a run."""
    before = compose_config([])
    write(
        "defaults: [{override /dataset: wine}, {override /tracking: none}]\n"
        "seed: 7\nnum_clients: 4\nmodel: {l2: 0.5, local_epochs: 3}\n"
    )
    own = compose_config([])
    assert (own.dataset.name, own.tracking) == ("wine", NoTrackingConfig())
    assert (own.seed, own.num_clients, own.model.l2, own.model.local_epochs) == (7, 4, 0.5, 3)
    lesson = compose_config(["experiment=two_lines"])
    assert (lesson.dataset.name, lesson.num_clients, lesson.model.local_epochs) == (
        *("two_lines", 2),
        5,
    )
    assert (lesson.seed, lesson.model.l2, lesson.tracking) == (7, 0.5, NoTrackingConfig())
    typed = compose_config(["dataset=digits", "seed=1", "tracking=mlflow"])
    assert (typed.dataset.name, typed.seed, typed.tracking) == ("digits", 1, MlflowConfig())
    assert compose_config(["~local@_global_"]) == before
    site_file().unlink()
    assert compose_config([]) == before


def test_a_key_counts_where_the_option_has_it() -> None:
    """A site sets FedAdam's step and a SuperLink once, whatever its runs choose."""
    write("strategy: {eta: 0.2}\nruntime: {superlink: hospital}\n")
    plain = compose_config([])
    assert (plain.strategy.name, plain.runtime.name) == ("fedavg", "inprocess")
    adam = compose_config(["strategy=fedadam", "runtime=deployment"])
    assert adam.strategy == FedAdamConfig(eta=0.2)
    assert adam.runtime.superlink == "hospital"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no such key of the chosen strategy"):
        compose_config(["strategy.eta=0.3"])


def test_the_page_shows_settings_that_can_be() -> None:
    """The example of docs/config.md composes, with all that it sets."""
    page = (ROOT / "docs/config.md").read_text()
    write(textwrap.dedent("".join(re.findall(r"^    .*\n", page, re.MULTILINE))))
    config = compose_config([])
    assert (config.dataset.name, config.min_rows) == ("heart_disease", 20)
    assert compose_config(["runtime=deployment"]).runtime.superlink == "hospital"  # type: ignore[attr-defined]


def test_every_composer_reads_them() -> None:
    """Flower's run-config, a sweep's check and the page; each sees a change at once."""
    write("min_rows: 6\n")
    assert read_launch({"seed": "3"}, 5).config.min_rows == 6
    assert check_sweep(["seed=1,2"], True).keys == ("seed",)
    assert check(Choices(rounds=1)) == ""
    write("min_rows: 0\n")
    for compose in (
        lambda: read_launch({"seed": "3"}, 5),
        lambda: check_sweep(["seed=1,2"], True),
    ):
        with pytest.raises(ConfigError, match=r"min_rows=0: .* sets it\)"):
            compose()
    assert "min_rows=0" in check(Choices(rounds=1))


def test_the_page_runs_what_it_shows() -> None:
    """A choice that is as the page begins is told all the same where the site says otherwise."""
    plain = overrides(Choices())
    assert not any(word.startswith(("model.", "faults.")) for word in plain)
    write("model: {local_epochs: 9, learning_rate: 0.5}\nfaults: {clients: 2}\nmin_rows: 6\n")
    words = overrides(Choices())
    assert [word for word in words if word not in plain] == [
        "model.local_epochs=1",
        "model.learning_rate=auto",
        "faults.clients=0",
        "faults.kind=crash",
    ]
    config = compose_config(words)
    assert (config.model.local_epochs, config.model.learning_rate) == (1, "auto")
    assert (config.faults.clients, config.min_rows) == (0, 6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed: 1", "sed=1: no such key"),
        ("seed: -1", "seed=-1: expected an integer >= 0"),
        ("seed: ${nowhere}", "seed=${nowhere}: a value that resolves"),
        ("dataset: wine", "dataset=wine: a mapping of its keys; an option is chosen by `defaults"),
        ("dataset: {name: wine}", "dataset={'name': 'wine'}: a mapping of its keys; an option"),
        ("dataset: {rowz: 1}", "dataset.rowz=1: no such key"),
        ("dataset: {test_fraction: 1}", "dataset.test_fraction=1: expected a finite number"),
        ("faults: {kinds: nan}", "faults.kinds=nan: no such key"),
        ("faults: 3", "faults=3: a mapping of its keys ("),
        ("defaults: [{override /dataset: nosuch}]", "dataset=nosuch: one of breast_cancer"),
        ("defaults: [{override /nosuch: x}]", "defaults={'override /nosuch': 'x'}: a list of"),
        ("defaults: [{dataset: wine}]", "defaults={'dataset': 'wine'}: a list of `override"),
        ("defaults: [3]", "defaults=3: a list of `override"),
        ("defaults: wine", "defaults=wine: a list of `override"),
        ("hydra: {nosuch: 1}", "hydra={'nosuch': 1}: Key 'nosuch' not in 'HydraConf'"),
    ],
)
def test_a_mistake_names_the_key_and_the_file(text: str, said: str) -> None:
    """One line: the key, its value, what is allowed, and where it stands."""
    write(text)
    with pytest.raises(ConfigError) as raised:
        compose_config([])
    told = str(raised.value)
    assert told.startswith(said)
    assert told.endswith(f"({site_file()} sets it)")
    assert "\n" not in told


@pytest.mark.parametrize("text", ["a: [", "- 3", "3"])
def test_what_is_no_mapping_names_the_file(text: str) -> None:
    """Neither broken YAML nor a list gets to Hydra."""
    write(text)
    with pytest.raises(ConfigError) as raised:
        compose_config([])
    assert raised.value.field == str(site_file())


def test_a_mistake_of_the_command_line_is_its_own() -> None:
    """What is typed, and what the site does not set, is not laid at its door."""
    write("seed: 3\n")
    for words in (["seed=-1"], ["num_clients=0"]):
        with pytest.raises(ConfigError) as raised:
            compose_config(words)
        assert "sets it" not in str(raised.value)


@pytest.mark.parametrize("words", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
def test_the_command_leaves_with_2(words: list[str], tmp_path: Path) -> None:
    """One line and no traceback, for a run and for a sweep."""
    write("strategy: {alpha: 3}\n")
    command = [sys.executable, "-m", "fl_app", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fl-app: strategy.alpha=3: no such key")
    assert done.stderr.count("\n") == 1
    assert str(site_file()) in done.stderr


def test_they_are_in_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes get the house's ``conf/``, also where the home is the source tree."""
    write("seed: 3\n")
    with app_dir() as folder:
        plain = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    conf = tmp_path / "conf"
    shutil.copytree(config_dir(), conf)
    shutil.copytree(site_file().parent, conf / "local", dirs_exist_ok=True)
    monkeypatch.setattr("fl_app.runtimes.bundle.config_dir", lambda: conf)
    with app_dir() as folder:
        assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == plain
    assert not any("local" in path.parts for path in plain)
    # Stock Flower leaves out what .gitignore names, and refuses a pattern that matches no file.
    assert "/conf/local/" in (ROOT / ".gitignore").read_text().splitlines()
