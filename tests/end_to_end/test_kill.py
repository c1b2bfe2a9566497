"""Two runs of each kind are killed at drawn instants and end as one that nobody killed.

``make kill`` (:mod:`benchmarks.kill`) does the same with more runs, the simulation and a
deployment. The seed is drawn for each run of the tests, which end with it; the same again:
``FL_APP_KILL_SEED=… pytest -m slow tests/end_to_end/test_kill.py``.
"""

from __future__ import annotations

import os

import pytest

from benchmarks.kill import KINDS, Kind, killed
from tests.kills import Lab

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.runtime], ids=lambda k: k.name)
def test_a_killed_run_ends_as_one_that_was_not(kind: Kind, lab: Lab) -> None:
    """The same weights, history, models and costs; under privacy, epsilon with each kill."""
    if kind.is_private:
        pytest.importorskip("dp_accounting")
    seed = int(os.environ["FL_APP_KILL_SEED"])
    for trial in killed(kind, lab, seed, trials=2):
        assert not trial.differ, f"seed {seed}: {' | '.join(trial.story)}"
