"""A run at somebody's SuperLink: what is sent, what comes back, what is refused before any work."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fl_app.client_app import app as client_app
from fl_app.config.compose import compose_config
from fl_app.config.options import DeploymentConfig
from fl_app.config.passwords import whole
from fl_app.config.run_request import RunRequest, read_runtime
from fl_app.config.schema import Config
from fl_app.errors import ConfigError, FederationError, InputError, RunError
from fl_app.grid import InProcessGrid
from fl_app.grid.view import GridView
from fl_app.runtimes import RunResult, deployment, run
from fl_app.runtimes.submit import submit
from fl_app.server_app import app as server_app
from fl_app.server_app import wait_for_online
from fl_app.tracking.console import LINE_PREFIX, RESULT_MARK
from tests.end_to_end.support import free_port, server_context
from tests.flower_apps import FakeFlwr

NOTES = ["Using SuperLink: far", "Successfully started run 7"]
REPORT = {
    "run_id": "abc",
    "status": "FINISHED",
    "metrics": {"train/mse": 0.5, "eval/mse": None},
    "weights_sha256": "00ff",
    "seconds": 1.5,
}


def ends(state: str, details: str = "N/A") -> list[dict[str, Any]]:
    """Build the one answer of ``flwr ls``."""
    run_ = {"run-id": "7", "status": f"finished:{state}", "status-details": details}
    return [{"success": True, "runs": [run_]}]


def reported(**changes: Any) -> str:
    """Build the log's line with the result."""
    return f"{LINE_PREFIX}{RESULT_MARK}{json.dumps(REPORT | changes)}"


class Far:
    """A SuperLink that answers, and a ``flwr`` command that says what it is told to."""

    def __init__(self, folder: Path, address: str) -> None:
        self.address, self.output = address, folder / "out"
        self.fake = FakeFlwr(folder / "fake", NOTES, ends("completed"))
        self.arrived: list[Config] = []
        self.connect(f'address = "{address}"\ninsecure = true')

    def script(self, printed: list[str], end: list[dict[str, Any]]) -> None:
        """Let ``flwr run`` print something and ``flwr ls`` answer something."""
        (self.fake.directory / "run.json").write_text(json.dumps(printed))
        (self.fake.directory / "ls.json").write_text(json.dumps(end))

    def connect(self, entry: str) -> None:
        """Write Flower's connection."""
        (self.fake.directory / "config.toml").write_text(f"[superlink.far]\n{entry}\n")

    def config(self, *overrides: str) -> Config:
        words = ["runtime=deployment", "runtime.superlink=far", f"output_dir={self.output}"]
        return compose_config([*words, *overrides])

    def run(self, *overrides: str) -> RunResult:
        return run(RunRequest(self.config(*overrides)))

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.output / "result.json").read_text())
        return found

    def shipped(self) -> Config:
        """Return the config that arrived at the ServerApp."""
        return self.arrived[-1]

    def handed_on(self) -> str:
        """Return the run-config as Flower hands it to every SuperNode."""
        return (self.fake.directory / "run-config.json").read_text()

    def submit(self, *words: Any, **named: Any) -> Any:
        """Submit, and read the run-config as the ServerApp does: while the launcher waits."""
        self.arrived.append(RunRequest.from_json(named["run_config"]["config-json"]).config)
        return submit(*words, **named)


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    server = HTTPServer(("127.0.0.1", 0), _Health)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    far = Far(tmp_path, f"127.0.0.1:{server.server_port}")
    monkeypatch.setattr(deployment, "submit", far.submit)
    for key, value in far.fake.env.items():
        monkeypatch.setenv(key, value)
    try:
        yield far
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# ---------------------------------------------------------------------------- what comes back
def test_the_reported_result_is_the_result(far: Far, capsys: pytest.CaptureFixture[str]) -> None:
    """``result.json`` says here what it says there; only our other lines are shown."""
    log = ["Flower's own line", f"{LINE_PREFIX}round 1/1", LINE_PREFIX.rstrip(), reported()]
    far.script([*NOTES, *log], ends("completed"))
    result = far.run()
    assert result == RunResult(**REPORT)
    assert far.result() == REPORT
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"flwr run: SuperLink far at {far.address}", "round 1/1", ""]


@pytest.mark.parametrize(
    ("state", "status"), [("failed", "FAILED"), ("stopped", "KILLED")], ids=["failed", "stopped"]
)
@pytest.mark.parametrize("log", [[], [reported()]], ids=["silent", "reported"])
def test_the_superlinks_word_counts(state: str, status: str, log: list[str], far: Far) -> None:
    """A run that did not complete is no success, whatever its ServerApp said before."""
    far.script([*NOTES, *log], ends(state, "no  heartbeat\nreceived"))
    with pytest.raises(RunError, match=f"^the run {state}: no heartbeat received$"):
        far.run()
    assert (far.result()["status"], far.result()["error"]) == (status, "no heartbeat received")


def test_the_serverapps_reason_is_told(far: Far) -> None:
    """The error that the ServerApp wrote down is the error here, without Flower's words."""
    far.script(
        [*NOTES, reported(status="FAILED", error="no node")], ends("failed", "Flower: no node")
    )
    with pytest.raises(RunError, match=r"^the run failed: no node$"):
        far.run()
    assert far.result()["error"] == "no node"


@pytest.mark.parametrize("said", ["", "result {", "result 3", 'result {"x": 1}'])
def test_a_log_without_a_result_leaves_the_status(
    said: str, far: Far, capsys: pytest.CaptureFixture[str]
) -> None:
    """A completed run stays one; what is not known is empty, and the run can be found."""
    far.script([*NOTES, f"{LINE_PREFIX}{said}"], ends("completed"))
    result = far.run()
    assert (result.status, result.run_id, result.weights_sha256) == ("FINISHED", None, None)
    assert far.result()["metrics"] == {}
    assert "flwr.run_id=7" in capsys.readouterr().out


def test_a_refused_run_has_a_result(far: Far) -> None:
    """Flower's refusal is the error, on the terminal and in ``result.json``."""
    far.script(["Using SuperLink: far", "no such app"], ends("completed"))
    with pytest.raises(RunError, match="Flower refused the run: no such app"):
        far.run()
    assert far.result()["status"] == "FAILED"


# ---------------------------------------------------------------------------- what is sent
def test_only_what_both_ends_understand_is_sent(far: Far) -> None:
    """No folder and no file of this machine; the store of this machine by its full name."""
    words = ["dataset=tabular", "dataset.path=/home/me/mine.csv", "dataset.target=y"]
    far.run(*words, "tracking.uri=sqlite:///here.db", "runtime.round_timeout=9")
    config = far.shipped()
    assert config.output_dir is None
    assert getattr(config.dataset, "path", "") is None
    assert getattr(config.tracking, "uri", "") == f"sqlite:///{Path.cwd()}/here.db"
    assert config.runtime == DeploymentConfig(superlink="far", round_timeout=9.0)
    assert not any(name in far.handed_on() for name in ("here.db", "mine.csv", "/out"))


def test_no_node_is_handed_a_password(far: Far) -> None:
    """Flower gives the run-config to every SuperNode: the URI goes to the ServerApp by a file."""
    uri = "http://me:sekret@127.0.0.1:9/x"
    words = [f"tracking.uri={uri}", "dataset.path=/home/me/mine.csv", "seed=1"]
    run(RunRequest(far.config("seed=1", f"tracking.uri={uri}"), tuple(words)))
    assert getattr(far.shipped().tracking, "uri", "") == "http://me:***@127.0.0.1:9/x"
    assert whole("http://me:***@127.0.0.1:9/x") == uri
    text = far.handed_on()
    assert not any(word in text for word in ("sekret", "me:", "127.0.0.1:9/x", "mine.csv"))
    assert "seed=1" in text
    handed = Path(json.loads(json.loads(text)["config-json"])["uri_file"])
    assert not handed.exists()


def test_a_far_superlink_gets_no_password(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no way to its ServerApp alone, so it is refused, wherever the URI comes from."""
    monkeypatch.setattr(deployment, "_is_here", lambda host: False)
    with pytest.raises(ConfigError, match=r"^tracking\.uri=http://me:\*\*\*@h: no password"):
        far.run("tracking.uri=http://me:sekret@h")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://sekret@h")
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI=https://\*\*\*@h: no password"):
        far.run()
    assert far.fake.calls("run") == []


def test_rows_are_not_dealt_here(far: Far) -> None:
    """The nodes that are online decide: a number of clients without data is no mistake."""
    far.run("dataset=iris", "num_clients=1000")
    assert far.shipped().num_clients == 1000


@pytest.mark.parametrize("uri", ["http://mlflow.example:5000", None])
def test_a_far_store_is_the_one_that_is_named(
    uri: str | None, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another machine's stores only what the user named is sent; else that machine's own."""
    monkeypatch.setattr(deployment, "_is_here", lambda host: False)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    far.run()
    assert getattr(far.shipped().tracking, "uri", "") == uri


def test_a_file_is_no_store_for_another_machine(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite here cannot be written from there, which is found before the run is submitted."""
    monkeypatch.setattr(deployment, "_is_here", lambda host: False)
    with pytest.raises(ConfigError, match=r"tracking\.uri=sqlite:.*: a server that 127"):
        far.run("tracking.uri=sqlite:///here.db")
    assert far.fake.calls("run") == []


def test_this_machine_is_known_by_its_addresses() -> None:
    """A name counts by where it leads; 203.0.113.0/24 belongs to nobody (RFC 5737)."""
    assert deployment._is_here("localhost")
    assert not deployment._is_here("203.0.113.77")


# ---------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, r"runtime.superlink=near: a \[superlink.NAME\] of .*: far"),
        ('address = "127.0.0.1:{closed}"\ninsecure = true', "far: a SuperLink that answers: http:"),
        ('address = "127.0.0.1:{open}"', "far: a SuperLink that answers: https:"),
        ('address = "127.0.0.1:none"\ninsecure = true', "does not .Invalid port: 'none'"),
        ('address = ":local:"', "runtime.superlink=far: a connection with an address"),
        ("options.num-supernodes = 3", "runtime.superlink=far: a connection with an address"),
        ('address = "a:1"\nroot-certificates = "/no.crt"', "root-certificates=/no.crt: the abs"),
    ],
)
def test_no_superlink_no_run(entry: str | None, message: str, far: Far) -> None:
    """What is not there, or cannot be talked to, is one line before any command is called."""
    overrides = ["runtime.superlink=near"] if entry is None else []
    if entry is not None:
        ports = {"closed": free_port(), "open": far.address.rpartition(":")[2]}
        for key, port in ports.items():
            entry = entry.replace(f"{{{key}}}", str(port))
        far.connect(entry)
    with pytest.raises(InputError, match=message) as error:
        far.run(*overrides)
    assert "\n" not in str(error.value)
    assert far.fake.calls("run") == []
    assert not (far.output / "result.json").exists()


# ---------------------------------------------------------------------------- the ServerApp's side
class Growing(GridView):
    """A grid to which a node comes with every look."""

    def __init__(self, grid: InProcessGrid) -> None:
        super().__init__(grid, sorted(grid.get_node_ids()))
        self.looks = 0

    def get_node_ids(self) -> list[int]:
        self.looks += 1
        return sorted(self._node_ids)[: self.looks]


def test_a_run_waits_for_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins when enough are online, and says once what it waits for."""
    monkeypatch.setattr("fl_app.server_app._REMOTE_POLL", 0.0)
    said: list[str] = []
    with InProcessGrid(client_app, num_supernodes=5) as grid:
        growing = Growing(grid)
        assert wait_for_online(growing, 3, said.append) == sorted(grid.get_node_ids())[:3]
    assert said == ["waiting for 3 SuperNodes, 1 online"]
    assert growing.looks == 3


def test_too_few_nodes_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message names the option, its value and how many there are."""
    monkeypatch.setattr("fl_app.server_app._REMOTE_POLL", 0.0)
    with (
        InProcessGrid(client_app, num_supernodes=2) as grid,
        pytest.raises(FederationError, match=r"wait_for_nodes=3: 2 SuperNodes online"),
    ):
        wait_for_online(grid, 3, lambda text: None, timeout=0.0)


@pytest.mark.parametrize(
    ("run_config", "expected"),
    [
        ({}, None),
        ({"overrides": "dataset=two_lines", "seed": "3"}, None),
        ({"overrides": "runtime=deployment runtime.wait_for_nodes=4 dataset=two_lines"}, 4),
    ],
)
def test_the_runtimes_options_are_read_before_the_clients_are_counted(
    run_config: dict[str, str], expected: int | None
) -> None:
    """Neither a missing runtime nor a data set that needs two clients is in the way."""
    found = read_runtime(run_config)
    assert getattr(found, "wait_for_nodes", None) == expected


def test_the_launchers_own_form_tells_the_runtime() -> None:
    """``config-json`` holds the options as they were typed."""
    config = compose_config(["runtime=deployment", "runtime.nodes=4"])
    assert read_runtime({"config-json": RunRequest(config).to_json()}) == config.runtime


class Listening(GridView):
    """A deployment's grid, as far as a ServerApp can tell, that notes how long it may take."""

    def __init__(self, grid: InProcessGrid) -> None:
        super().__init__(grid, sorted(grid.get_node_ids()))
        self.timeouts: list[float | None] = []
        self.contents: list[str] = []

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        messages = list(messages)
        self.timeouts.append(timeout)
        self.contents += [str(m.content.config_records) for m in messages]
        return super().send_and_receive(messages, timeout=timeout)


def deployed(*overrides: str, clients: int) -> Listening:
    """Run the two apps as in a deployment, over a grid that is not known as ours."""
    config = compose_config([*overrides, f"num_clients={clients}"])
    with InProcessGrid(client_app, num_supernodes=clients) as grid:
        listening = Listening(grid)
        server_app(listening, server_context({"config-json": RunRequest(config).to_json()}))
    return listening


def result_line(text: str) -> dict[str, Any]:
    """Read the result off the log."""
    start = f"{LINE_PREFIX}{RESULT_MARK}"
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    found: dict[str, Any] = json.loads(line.removeprefix(start))
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=two_lines"],
        ["dataset=wine", "model=mlp"],
        ["dataset=penguins", "strategy=fedadam", "partitioner=dirichlet"],
        ["dataset=heart_disease", "strategy=local", "dataset.test_fraction=0.5"],
        ["dataset=diabetes", "strategy=qfedavg"],
        ["dataset=wine", "strategy=fedstacking", "num_server_rounds=4"],
    ],
    ids=lambda words: " ".join(words),
)
def test_no_test_set_changes_no_bit(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the server's test rows the encoding is the same, and so are the final weights."""
    words = ["num_server_rounds=2", *overrides]
    deployed(*words, "runtime=deployment", "tracking=none", clients=2)
    there = result_line(capsys.readouterr().out)
    words += ["num_clients=2", "tracking=none", f"output_dir={tmp_path}/here"]
    here = run(RunRequest(compose_config(words)))
    assert there["weights_sha256"] == here.weights_sha256
    assert there["metrics"] == {k: v for k, v in here.metrics.items() if "server/" not in k}


def test_every_exchange_has_the_rounds_timeout() -> None:
    """``runtime.round_timeout`` holds for the handshake, for training and for evaluation."""
    words = ["dataset=iris", "runtime=deployment", "tracking=none", "num_server_rounds=1"]
    listening = deployed(*words, "runtime.round_timeout=17", clients=2)
    assert listening.timeouts == [17.0, 17.0, 17.0]


def test_no_client_is_told_where_the_record_is(tmp_path: Path) -> None:
    """A tracking URI may hold a password, and folders of the server are nobody's business."""
    uri = f"sqlite:///{tmp_path}/secret.db"
    words = ["dataset=iris", "runtime=deployment", "num_server_rounds=1", "tracking.figures=false"]
    listening = deployed(
        *words, f"tracking.uri={uri}", f"output_dir={tmp_path}/secret-out", clients=2
    )
    assert (tmp_path / "secret.db").exists()
    assert listening.contents
    assert not any("secret" in content for content in listening.contents)


def test_the_record_tells_a_deployment(tmp_path: Path) -> None:
    """Its options are params; there is neither a digest of data nor a test set's metric."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = ["dataset=iris", "runtime=deployment", "num_server_rounds=1", f"tracking.uri={uri}"]
    deployed(*words, "runtime.round_timeout=17", clients=2)
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("iris").experiment_id])
    assert found.data.tags["runtime"] == found.data.params["runtime.name"] == "deployment"
    assert found.data.params["runtime.round_timeout"] == "17.0"
    assert "data.sha256" not in found.data.tags
    assert found.data.tags["data.seed_draws"] == "test"  # the nodes deal iris by it
    assert not {"data.rows", "data.test_rows"} & found.data.tags.keys()
    assert not any(key.startswith("server/") for key in found.data.metrics)


def test_a_nodes_own_file_has_rows_that_no_seed_draws(tmp_path: Path) -> None:
    """With tables of the nodes' own every seed has the same rows, and no file names the run."""
    from mlflow import MlflowClient

    rows = [f"{x},{x % 2}" for x in range(40)]
    (tmp_path / "own.csv").write_text("\n".join(["x,y", *rows]))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = ["dataset=tabular", f"dataset.path={tmp_path}/own.csv", "dataset.target=y"]
    words += ["dataset.task=classification", "num_server_rounds=1", "tracking.figures=false"]
    words += ["runtime=deployment", "runtime.superlink=lab", f"tracking.uri={uri}"]
    deployed(*words, clients=2)
    client = MlflowClient(uri)
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert client.get_experiment(found.info.experiment_id).name == "tabular"
    assert found.info.run_name == "fedavg s0 iid K2 softmax y"
    assert found.data.tags["data.seed_draws"] == "nothing"
    assert int(found.data.tags["data.train_rows"]) > 0
