"""Against MLflow's own server, behind a proxy that is slow, fails, or loses what is said."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from fl_app.cli.run import main
from fl_app.tracking import LoggedModel, MlflowTracker, RoundRecord, RunEnd, RunStart, replay
from fl_app.tracking.journal import Journal
from fl_app.tracking.mlflow import tracker as tracker_module
from fl_app.tracking.mlflow.upload import Pace
from tests.kit import fl_kit
from tests.servers import FaultyProxy, faulty_proxy, mlflow_server, sent, until

pytestmark = pytest.mark.slow
END_SECONDS = 10.0 + 1.5  # and a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the server that the tests of this module share; yield its port."""
    with mlflow_server(tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def proxy(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Run a proxy; no store has cost anybody's patience before.

    It computes in this process: that is no training, beside which a sender would have to rest.
    """
    monkeypatch.setattr(tracker_module, "_behind", set())
    monkeypatch.setattr(Pace, "_due", lambda self: 0.0)
    with faulty_proxy(server) as proxy:
        yield proxy


def record(server_round: int) -> RoundRecord:
    arrays = {"w": np.full(2, float(server_round))}
    return RoundRecord(server_round, arrays, server={"mse": 1 / (server_round + 3)})


def models(last: int) -> list[LoggedModel]:
    spec = {"columns": ["a"]}
    return [LoggedModel(name, last, {"w": np.ones(2)}, spec) for name in ("final", "best")]


def recorded(
    uri: str, home: Path, name: str, num_rounds: int = 3, register_as: str | None = None
) -> tuple[MlflowTracker, list[float]]:
    """Record a run; return its tracker and the seconds of each call, the end's last."""
    tracker = MlflowTracker(uri, name, home=home, register_as=register_as)
    tracker.start(RunStart(name, {"a": "1"}, {"t": "1"}, {"config/config.yaml": "a: 1"}))
    seconds = []
    for server_round in range(num_rounds):
        begin = time.monotonic()
        tracker.record(record(server_round))
        seconds.append(time.monotonic() - begin)
    begin = time.monotonic()
    tracker.finish(RunEnd("FINISHED", models=models(num_rounds - 1)))
    return tracker, [*seconds, time.monotonic() - begin]


def is_whole(port: int, name: str, num_rounds: int = 3) -> bool:
    """Say whether the server has one run of this name, whole, with one model of each name."""
    client = MlflowClient(f"http://127.0.0.1:{port}")
    experiment = client.get_experiment_by_name(name)
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "server/mse")
    weights = client.list_artifacts(run.info.run_id, "weights")
    logged = client.search_logged_models([experiment.experiment_id])
    for found in logged:
        paths = {f.path for f in client.list_logged_model_artifacts(found.model_id)}
        assert {"MLmodel", "artifacts", "pyfunc_model.py"} <= paths
    return (
        run.info.status == "FINISHED"
        and sorted((m.step, m.value) for m in history)
        == [(r, 1 / (r + 3)) for r in range(num_rounds)]
        and len(weights) == num_rounds
        and sorted((m.name, str(m.status)) for m in logged)
        == [("best", "READY"), ("final", "READY")]
    )


def once(proxy: FaultyProxy) -> bool:
    """Say whether each file came once."""
    return max(Counter(proxy.files).values()) == 1


@pytest.mark.parametrize("delay", [0.2, 2.0])
def test_a_slow_server_gets_each_file_once(
    delay: float, proxy: FaultyProxy, server: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No round waits, the end ten seconds at most; what is left goes on where it stopped."""
    proxy.delay = delay
    name, num_rounds = f"slow {delay}", 3 if delay < 1 else 1
    with caplog.at_level(logging.WARNING, "fl_app"):
        _, seconds = recorded(proxy.uri, tmp_path, name, num_rounds)
    assert max(seconds[:-1]) < 1
    assert seconds[-1] < END_SECONDS
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == len(Journal.pending(tmp_path))
    assert all("model best): it waits in" in line and "fl-kit sync" in line for line in said)
    sent(tmp_path)
    assert is_whole(server, name, num_rounds)
    assert once(proxy)


@pytest.mark.parametrize("fault", ["drop", "500"])
def test_a_server_that_fails_now_and_then(
    fault: str, proxy: FaultyProxy, server: int, tmp_path: Path
) -> None:
    """Each third request: MLflow's client asks again, and so do we."""
    numbers = itertools.count(1)
    proxy.fault = lambda method, path: fault if next(numbers) % 3 == 0 else ""
    recorded(proxy.uri, tmp_path, fault)
    sent(tmp_path)
    assert is_whole(server, fault)
    assert once(proxy)


def test_lost_answers_leave_one_of_each(proxy: FaultyProxy, server: int, tmp_path: Path) -> None:
    """The server makes a run, a model, a version, and the answer is lost: it is asked for again."""
    lost: list[str] = []

    def lose(method: str, path: str) -> str:
        makes = method == "POST" and not path.endswith(("search", "log-batch"))
        if not makes or lost.count(path) == 2:
            return ""
        lost.append(path)
        return "lose"

    proxy.fault = lose
    tracker, _ = recorded(proxy.uri, tmp_path, "lost", register_as="lost")
    sent(tmp_path)
    made = Counter(path.rpartition("mlflow/")[2] for path in lost)
    assert {"runs/create", "logged-models", "model-versions/create"} <= set(made)
    assert is_whole(server, "lost")
    client = MlflowClient(f"http://127.0.0.1:{server}")
    (version,) = client.search_model_versions("name = 'lost'")
    assert version.run_id == tracker.run_id
    assert client.get_model_version_by_alias("lost", "champion").version == version.version


def test_a_loss_and_a_return_are_a_line_each(
    proxy: FaultyProxy, server: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a run; nobody waits meanwhile, and all arrives."""
    tracker = MlflowTracker(proxy.uri, "lost and back", home=tmp_path)

    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records]

    with caplog.at_level(logging.WARNING, "fl_app"):
        tracker.start(RunStart("lost and back"))
        proxy.fault = lambda method, path: "drop"
        begin = time.monotonic()
        tracker.record(record(0))
        tracker.record(record(1))
        assert time.monotonic() - begin < 1
        until(lines)
        proxy.fault = lambda method, path: ""
        until(lambda: len(lines()) > 1)
        tracker.record(record(2))
        tracker.finish(RunEnd("FINISHED", models=models(2)))
    first, second = lines()
    assert "cannot be used now" in first
    assert "answers again" in second
    assert is_whole(server, "lost and back")
    assert once(proxy)


def test_a_server_that_hangs_costs_a_sweep_ten_seconds(
    proxy: FaultyProxy, server: int, tmp_path: Path
) -> None:
    """The first of its runs waits at its end; the others not; all is sent when it is back."""
    proxy.delay = 30.0
    for number in range(3):
        begin = time.monotonic()
        _, seconds = recorded(proxy.uri, tmp_path, f"hangs {number}")
        assert max(seconds[:-1]) < 1
        assert seconds[-1] < (END_SECONDS if number == 0 else 1.0)
        assert time.monotonic() - begin < 5 + END_SECONDS if number == 0 else 3.0
    proxy.delay = 0.0
    sent(tmp_path)
    assert all(is_whole(server, f"hangs {number}") for number in range(3))


def test_a_run_whose_server_is_away_says_last_what_waits(
    proxy: FaultyProxy,
    server: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ends with 0; ``fl-kit sync`` sends it when the server is there."""
    proxy.fault = lambda method, path: "drop"
    words = ["dataset=wine", "num_clients=2", "num_server_rounds=2", "tracking.figures=false"]
    monkeypatch.setattr(sys, "argv", ["fl-app", *words, f"tracking.uri={proxy.uri}"])
    main()  # and leaves with 0
    said = capsys.readouterr()
    assert said.err == ""
    last = said.out.splitlines()[-1]
    assert "(3 rounds, its end, model final, model best): it waits in" in last
    assert str(next((tmp_path / "fl_app_home" / "runs").iterdir())) in last
    assert "until fl-kit sync or the next run sends it" in last
    assert said.out.count("cannot be used now") == 1
    proxy.fault = lambda method, path: ""
    assert fl_kit(monkeypatch, "sync") == 0
    assert capsys.readouterr().out.rstrip().endswith(": sent")
    assert is_whole_run(server, "wine")


def is_whole_run(port: int, experiment: str) -> bool:
    """Say whether the only run of an experiment has its end and its models."""
    client = MlflowClient(f"http://127.0.0.1:{port}")
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    logged = client.search_logged_models([found.experiment_id])
    return run.info.status == "FINISHED" and {m.name for m in logged} == {"final", "best"}


@pytest.mark.skipif(
    find_spec("flask_wtf") is None, reason="Flask-WTF is not installed (make test-slow does)"
)
def test_basic_auth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no password is told so in a line; what waited is sent by who has one."""
    config = tmp_path / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"database_uri = sqlite:///{tmp_path}/auth.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "any",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "sekret-word-1",
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
    }
    home = tmp_path / "home"
    with mlflow_server(tmp_path, "--app-name", "basic-auth", **secrets) as port:
        uri = f"http://127.0.0.1:{port}"
        recorded(uri, home, "auth")
        (reason,) = replay(home).waiting.values()
        assert "401" in reason or "not authenticated" in reason
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sekret-word-1")
        recorded(uri, home, "auth again")  # and what waited
        sent(home)
        assert is_whole(port, "auth")
        assert is_whole(port, "auth again")
    kept = (path for path in home.rglob("*") if path.is_file())
    assert not [path for path in kept if b"sekret-word-1" in path.read_bytes()]
