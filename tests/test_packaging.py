"""The repository holds one truth: pins, YAML and schema, bundle and package agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import fl_app
from fl_app.config.compose import config_dir
from fl_app.config.run_request import _KEYS
from fl_app.config.schema import GROUPS, SECTIONS, Config
from fl_app.config.serialization import to_dict
from tests.wheel import build_wheel
from tools import pins, template

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OPTIONS = [(group, name) for group, options in GROUPS.items() for name in options]


def _yaml(path: str) -> dict[str, Any]:
    data = yaml.safe_load((ROOT / "conf" / path).read_text())
    assert isinstance(data, dict)
    return data


# ---------------------------------------------------------------------------- pins
def test_the_pins_are_written_twice_and_equal() -> None:
    """Flower's own installation of a bundle reads pyproject.toml, everybody else the file."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == pins
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==\S+", pin) for pin in pins)


def test_pins_are_renewed_in_their_place() -> None:
    """The rest of pyproject.toml stays as it is, and so does a list that did not change."""
    text = (ROOT / "pyproject.toml").read_text()
    own = PROJECT["tool"]["uv"]["constraint-dependencies"]
    assert pins.with_pins(text, own) == text
    renewed = pins.with_pins(text, ["a==1", "b==2"])
    assert tomllib.loads(renewed)["tool"]["uv"]["constraint-dependencies"] == ["a==1", "b==2"]
    assert pins.with_pins(renewed, own) == text


def test_every_dependency_is_pinned() -> None:
    """What the project asks for, core and extras, has one exact version."""
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pinned = {line.partition("==")[0] for line in lines}
    project = PROJECT["project"]
    extras = [
        d for name, of in project["optional-dependencies"].items() if name != "all" for d in of
    ]
    for wanted in [*project["dependencies"], *extras]:
        assert re.split(r"[\[<>=~!; ]", wanted)[0].lower() in pinned, wanted


def test_what_is_installed_admits_every_python_that_asks_for_it() -> None:
    """`uv sync` of a bundle resolves core and extras for all of `requires-python`."""
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=").partition(",")[0] + ".0"
    python = {"python_full_version": lowest, "python_version": lowest.rpartition(".")[0]}
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *(one for of in extras.values() for one in of)]
    todo, seen = [(Requirement(one), "") for one in asked], set()
    while todo:
        wanted, extra = todo.pop()
        key = (canonicalize_name(wanted.name), extra, *sorted(wanted.extras))
        if wanted.marker is not None and not wanted.marker.evaluate({**python, "extra": extra}):
            continue
        if key in seen or wanted.name == "fl-app":
            continue
        seen.add(key)
        try:
            about = distribution(wanted.name).metadata
        except PackageNotFoundError:  # an extra that is not in this environment
            continue
        assert lowest in SpecifierSet(about.get("Requires-Python", "")), wanted.name
        needs = [Requirement(one) for one in requires(wanted.name) or ()]
        todo += [(need, name) for need in needs for name in ("", *wanted.extras)]


def test_every_python_and_every_flower_of_the_ranges_is_tried() -> None:
    """Besides the lowest Python and the pinned Flower, which run all other tests."""
    project = PROJECT["project"]
    lowest, above = map(int, re.findall(r"3\.(\d+)", project["requires-python"]))
    flower = re.match(r"flwr\[simulation\]>=1\.(\d+),<1\.(\d+)$", project["dependencies"][0])
    assert flower is not None
    tried = re.findall(r"^under 3\.(\d+) 1\.(\d+)", (ROOT / ".ci/versions").read_text(), re.M)
    assert {int(python) for python, _ in tried} == set(range(lowest + 1, above))
    assert {int(release) for _, release in tried} == set(range(int(flower[1]), int(flower[2])))


# ---------------------------------------------------------------------------- conf and schema
def test_every_option_has_a_file_and_every_file_an_option() -> None:
    """Hydra's groups are the schema's, option by option, besides the presets'."""
    files = {
        (path.parent.name, path.stem)
        for path in (ROOT / "conf").glob("*/*.yaml")
        if path.parent.name not in ("experiment", "method", "sweep")
    }
    assert files == set(OPTIONS)
    assert list((ROOT / "conf").glob("*.yaml")) == [ROOT / "conf" / "config.yaml"]


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_a_file_says_what_the_schema_says(group: str, name: str) -> None:
    """Each key of the option stands in its file, with the schema's default and type."""
    written, defaults = _yaml(f"{group}/{name}.yaml"), to_dict(GROUPS[group][name](name=name))
    assert written == defaults
    assert {k: type(v) for k, v in written.items()} == {k: type(v) for k, v in defaults.items()}


def test_the_top_file_says_what_the_schema_says() -> None:
    """Top keys have the schema's defaults, and the defaults list its default options."""
    written, config = _yaml("config.yaml"), Config()
    top = {f.name: getattr(config, f.name) for f in fields(Config)}
    top |= {name: to_dict(top[name]) for name in SECTIONS}
    assert {k: v for k, v in written.items() if k not in ("defaults", "hydra")} == {
        k: v for k, v in top.items() if not is_dataclass(v)
    }
    chosen = [entry for entry in written["defaults"] if isinstance(entry, dict)]
    options = {k: v for entry in chosen for k, v in entry.items() if k in GROUPS}
    assert options == {k: v.name for k, v in top.items() if is_dataclass(v)}
    order = [
        entry if isinstance(entry, str) else next(iter(entry)) for entry in written["defaults"]
    ]
    # Else an experiment's own values are silently lost.
    site = order.index("optional local@_global_")
    assert order.index("_self_") < site < min(map(order.index, ("experiment", "method", "sweep")))
    assert all(order.index(group) < order.index("_self_") for group in GROUPS)


def test_no_yaml_names_code() -> None:
    """Names are looked up in a registry: nothing in ``conf/`` could be imported or called."""
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert "_target_" not in path.read_text(), path


# ---------------------------------------------------------------------------- bundle and package
def test_flower_may_override_exactly_the_keys_that_are_read() -> None:
    """Flower refuses a run-config key that does not stand here; all are "" for "as conf/ says"."""
    keys = PROJECT["tool"]["flwr"]["app"]["config"]
    assert list(keys) == list(_KEYS)
    assert set(keys.values()) == {""}


def test_the_bundle_carries_the_yaml_files() -> None:
    """What Flower unpacks has ``conf/`` where ``config_dir`` looks."""
    assert config_dir() == ROOT / "conf"
    patterns = PROJECT["tool"]["flwr"]["app"]["fab-include"]
    assert {"fl_app/**/*", "conf/**/*"} <= set(patterns)
    assert all(any(ROOT.glob(pattern)) for pattern in patterns)
    # Flower leaves such names out of a bundle, and the two ends' code would differ.
    left_out = [*(ROOT / "fl_app").rglob("test_*.py"), *(ROOT / "fl_app").rglob("*_test.py")]
    assert left_out == []


def test_the_version_is_written_twice_and_equal() -> None:
    """Flower reads pyproject.toml; in its bundle nothing is installed that could be asked."""
    assert fl_app.__version__ == PROJECT["project"]["version"]


def test_the_template_is_made_of_the_project() -> None:
    """What a bundle says of itself is what the repository says (`make template`)."""
    assert template.FILE.read_text() == template.template()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the wheel was unpacked into, beside a stranger's ``conf``."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("dist"))) as wheel:
        wheel.extractall(folder)
    (folder / "conf").mkdir()
    (folder / "conf" / "config.yaml").write_text("seed: 99\n")
    return folder


def _where_installed(folder: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_wheel_reads_its_own_conf(installed: Path) -> None:
    """A ``conf`` that another package has left beside it in site-packages is not ours."""
    printed = _where_installed(installed, "-m", "fl_app", "--cfg", "job")
    assert yaml.safe_load(printed)["seed"] == 0


def test_a_wheel_makes_the_bundle_that_the_repository_makes(installed: Path) -> None:
    """Both ends of a run agree on the code, whatever way it was installed."""
    code = (
        "from fl_app.runtimes.bundle import app_dir\n"
        "from hashlib import sha256\n"
        "with app_dir() as root:\n"
        "    for path in sorted(p for p in root.rglob('*') if p.is_file()):\n"
        "        print(path.relative_to(root), sha256(path.read_bytes()).hexdigest())\n"
    )
    bundle = _where_installed(installed, "-c", code)
    assert bundle == _where_installed(ROOT, "-c", code)
    names = [line.split()[0] for line in bundle.splitlines()]
    assert {"pyproject.toml", "conf/config.yaml", "fl_app/server_app.py"} <= set(names)
    assert not (installed / "fl_app" / "pyproject.toml").exists()


def test_a_client_process_loads_neither_hydra_nor_mlflow() -> None:
    """A SuperNode starts fast and needs no tracking: its app imports neither."""
    code = (
        "import sys, fl_app.client_app; print(*{'hydra', 'omegaconf', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_mathematics_of_stacking_loads_no_flower() -> None:
    """Packages import what they export at its first use: sums and members need NumPy alone."""
    code = (
        "import sys, fl_app.config, fl_app.grid, fl_app.tracking; from fl_app import stacking\n"
        "stacking.Layout, stacking.candidates, stacking.choose, stacking.Stack\n"
        "print(*{'flwr', 'hydra', 'mlflow', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def _files() -> list[Path]:
    """Return the files that are, or would be, in git."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git tree")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_repository_holds_sources_only() -> None:
    """Nothing generated, binary or large: no run's output, no cache, no model."""
    generated = {
        ".pyc",
        ".db",
        ".log",
        ".npz",
        ".npy",
        ".pkl",
        ".joblib",
        ".whl",
        ".fab",
        ".sqlite",
    }
    folders = {"__pycache__", "outputs", "multirun", "mlruns", "mlartifacts", "dist", "build"}
    for path in _files():
        assert path.suffix not in generated, path
        assert not folders & set(path.relative_to(ROOT).parts), path
        assert path.stat().st_size < 300_000, path
