"""What every test has: homes and stores of its own, and examples that are the same in each run."""

from __future__ import annotations

import gc
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

# Read when Flower and MLflow are imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

# Of tests/end_to_end/test_kill.py; here, so that all processes of pytest-xdist have the same one.
os.environ.setdefault("FL_APP_KILL_SEED", str(random.SystemRandom().randrange(10**6)))

_BEGAN = time.monotonic()

settings.register_profile(
    "fl_app", derandomize=True, database=None, deadline=None, max_examples=40, print_blob=False
)
settings.load_profile("fl_app")
# With `make test-fresh` only: others each time; what failed is tried first in the next.
settings.register_profile(
    "fresh",
    settings.get_profile("fl_app"),
    derandomize=False,
    database=DirectoryBasedExampleDatabase(Path(__file__).parents[1] / ".hypothesis" / "examples"),
    max_examples=200,
    print_blob=True,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run of the tests be ended in order, with its summary, when its time is up."""
    parser.addoption("--seconds", type=float, default=math.inf, help="begin no test after these")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Begin no further test after the last second."""
    if time.monotonic() - _BEGAN > item.config.getoption("seconds"):
        item.session.shouldstop = "time is up"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say with which seed runs were killed."""
    if terminalreporter.config.option.markexpr == "slow":
        terminalreporter.write_line(f"FL_APP_KILL_SEED={os.environ['FL_APP_KILL_SEED']}")


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> None:
    """Let collections, of which Flower makes one a reply in places, skip what is there already."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _tables_are_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let MLflow make its tables in one file, which takes seconds; other stores begin as copies."""
    from fl_app.tracking.mlflow import backend

    first, make = tmp_path_factory.mktemp("store") / "mlflow.db", backend._make_tables

    def copy(path: Path) -> None:
        if path.exists():  # of another program, or empty
            make(path)
            return
        if not first.exists():
            make(first)
        shutil.copyfile(first, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_make_tables", copy)
        yield


@pytest.fixture(autouse=True)
def _own_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a test writes, and what it would find of the user's, in its own folder."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("FL_APP_HOME", str(tmp_path / "fl_app_home"))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr_home"))
    # Hydra's outputs, and MLflow's store where no URI is set, go to the working directory.
    monkeypatch.chdir(tmp_path)
