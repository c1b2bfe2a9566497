"""The engines side by side: equal bits, on a Ray cluster that is there already."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support import BIN, ROOT, command, end_processes, free_port

pytestmark = pytest.mark.slow

_MARK = "FL_APP_TEST_RAY"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Ray head, and end it; yield its HOST:PORT."""
    folder = tmp_path_factory.mktemp("r")
    port, mark = free_port(), str(folder)
    words = ["--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    words += [f"--ray-client-server-port={free_port()}", "--include-dashboard=false"]
    words += [f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]
    # Not below pytest's folder: Ray's socket paths would be too long.
    scratch = Path(f"/tmp/ray-{os.getpid()}")
    with (folder / "ray.log").open("w") as log:
        ray = subprocess.Popen(
            [str(BIN / "ray"), "start", *words, f"--temp-dir={scratch}"],
            env=os.environ | {_MARK: mark},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(ray, folder / "ray.log")
        yield f"127.0.0.1:{port}"
    finally:
        end_processes(_MARK, mark)
        ray.wait(10)
        shutil.rmtree(scratch, ignore_errors=True)


def _wait(ray: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until Ray says that it is up."""
    deadline = time.monotonic() + 120
    while "block forever" not in log.read_text():
        if ray.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(log.read_text())
        time.sleep(0.1)


def test_all_runtimes_have_the_same_bits(head: str) -> None:
    """Five strategies, half of the clients: in process, in workers and in Ray, whose jobs wait."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.bits", "--seeds=1", "--simulation"),
            *("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"runtime.ray_address={head}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1 + 5 + 1
    assert "equal bits in every row" in done.stdout
    assert f"waiting for another run to leave the Ray cluster at {head}" in done.stderr


def test_clients_fail_alike_in_all_runtimes(head: str, tmp_path: Path) -> None:
    """Crashes, NaN and flipped moves of three clients: the same bits, and the reason is said."""
    words = ["-m", "tracking=none", "num_server_rounds=5", "faults.clients=3"]
    words += [
        "faults.kind=crash,nan,flip",
        "strategy=fedmedian",
        "hydra.sweep.subdir=${faults.kind}",
    ]
    engines = {
        "here": ["runtime=inprocess"],
        "workers": ["runtime.num_workers=2"],
        "ray": ["runtime=simulation", f"runtime.ray_address={head}"],
    }
    found = {}
    for name, engine in engines.items():
        done = command("fl-app", *words, *engine, f"hydra.sweep.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "dropped: the client failed: " in done.stdout
        assert "crashed on purpose (faults.kind=crash)" in done.stdout
        results = [tmp_path / name / kind / "result.json" for kind in ("crash", "flip")]
        found[name] = [json.loads(path.read_text())["weights_sha256"] for path in results]
    assert found["here"] == found["workers"] == found["ray"]
    assert len(set(found["here"])) == 2
