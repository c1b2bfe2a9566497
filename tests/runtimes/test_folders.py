"""``fl-kit run APP_DIR``: other people's apps, as their folders are, in this process."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp.strategy import Strategy
from sklearn.datasets import make_regression

from .kit import fl_kit

_PROJECT = """
[project]
name = "their-app"
version = "0.1.0"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"
[tool.flwr.app.config]
num-server-rounds = 2
name = "x"
[tool.flwr.app.config.train]
step = 1.0
"""

_SERVER = """
import json
from pathlib import Path
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    config = context.run_config
    result = FedAvg().start(
        grid=grid, initial_arrays=ArrayRecord([np.zeros(2)]), num_rounds=config["num-server-rounds"]
    )
    found = {"arrays": result.arrays.to_numpy_ndarrays()[0].tolist(), "config": dict(config)}
    Path("result.json").write_text(json.dumps(found))
"""

# Each adds its partition and the step to what it gets.
_NUMPY = """
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    step = context.run_config["train.step"] + context.node_config["partition-id"]
    arrays = [a + step for a in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1, "niceness": 1.0})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "m": metrics}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    metrics = {"num-examples": 5, "accuracy": 0.5 + context.node_config["partition-id"] / 10}
    return Message(RecordDict({"m": MetricRecord(metrics)}), reply_to=message)
"""

_MODS = """
def add_one(message, context, call_next):
    reply = call_next(message, context)
    if "arrays" in reply.content:
        arrays = [a + 1 for a in reply.content["arrays"].to_numpy_ndarrays()]
        reply.content["arrays"] = ArrayRecord(arrays)
    return reply
"""

_SKLEARN = """
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import make_regression
from sklearn.linear_model import LinearRegression

app = ClientApp()

def rows(context):
    x, y = make_regression(50, 2, random_state=0)
    own = slice(context.node_config["partition-id"], None, context.node_config["num-partitions"])
    return x[own], y[own]

@app.train()
def train(message, context):
    x, y = rows(context)
    model = LinearRegression().fit(x, y)
    metrics = MetricRecord({"num-examples": len(y), "r2": model.score(x, y)})
    arrays = ArrayRecord([model.coef_])
    return Message(RecordDict({"arrays": arrays, "m": metrics}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    x, y = rows(context)
    error = float(np.mean((x @ message.content["arrays"].to_numpy_ndarrays()[0] - y) ** 2))
    metrics = MetricRecord({"num-examples": len(y), "mse": error})
    return Message(RecordDict({"m": metrics}), reply_to=message)
"""

_TORCH = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    step = context.run_config["train.step"] + context.node_config["partition-id"]
    state = message.content["arrays"].to_torch_state_dict()
    arrays = ArrayRecord({name: value + step for name, value in state.items()})
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "m": metrics}), reply_to=message)

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"m": MetricRecord({"num-examples": 1})}), reply_to=message)
"""

_OWN_MAIN = """
import json
from pathlib import Path
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
import numpy as np

app = ServerApp()

@app.main()
def main(grid, context):
    content = RecordDict({"arrays": ArrayRecord([np.zeros(2)])})
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    sums = [r.content["arrays"].to_numpy_ndarrays()[0] for r in grid.send_and_receive(messages)]
    Path("result.json").write_text(json.dumps({"arrays": np.mean(sums, axis=0).tolist()}))
"""

_OLD_CLIENT = """
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp

class Client(NumPyClient):
    def __init__(self, step):
        self.step = step

    def fit(self, parameters, config):
        return [p + self.step for p in parameters], 1, {}

    def evaluate(self, parameters, config):
        return 0.0, 1, {}

def client_fn(context):
    step = context.run_config["train.step"] + context.node_config["partition-id"]
    return Client(step).to_client()

app = ClientApp(client_fn=client_fn)
"""

_OLD_STRATEGY = """
import json
from pathlib import Path
import numpy as np
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import ServerApp

class Keeping(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        found = {"arrays": parameters_to_ndarrays(parameters)[0].tolist()}
        Path("result.json").write_text(json.dumps(found))
        return parameters, metrics

def strategy():
    return Keeping(initial_parameters=ndarrays_to_parameters([np.zeros(2)]))
"""

_OLD_SERVER = """
def server_fn(context):
    rounds = context.run_config["num-server-rounds"]
    return ServerAppComponents(strategy=strategy(), config=ServerConfig(num_rounds=rounds))

app = ServerApp(server_fn=server_fn)
"""

_SECURE_SERVER = """
app = ServerApp()

@app.main()
def main(grid, context):
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    secure = SecAggPlusWorkflow(1.0, 0.5, max_weight=1.0)
    legacy = LegacyContext(context, config, strategy())
    DefaultWorkflow(fit_workflow=secure)(grid, legacy)
"""

# Twice the mean of 1, 2, 3, 4; a mod adds 1 to each.
SUM = [5.0, 5.0]
APPS = {
    "numpy": (_SERVER, _NUMPY, SUM),
    "mods": (
        _SERVER,
        _NUMPY.replace("app = ClientApp()", _MODS + "app = ClientApp(mods=[add_one])"),
        [7.0, 7.0],
    ),
    "own main": (_OWN_MAIN, _NUMPY, [2.5, 2.5]),
    "old": (_OLD_STRATEGY + _OLD_SERVER, _OLD_CLIENT, SUM),
    "old config": (
        _OLD_STRATEGY + "app = ServerApp(config=ServerConfig(num_rounds=2), strategy=strategy())\n",
        _OLD_CLIENT,
        SUM,
    ),
    "secure sums": (
        _OLD_STRATEGY + _SECURE_SERVER,
        _OLD_CLIENT + "app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])\n",
        SUM,
    ),
}
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is no dependency")


@pytest.fixture(autouse=True)
def _own_imports() -> Iterator[None]:
    """Forget the apps' modules, which all have one package's name."""
    path, before = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "their_app":
            del sys.modules[name]


def write(folder: Path, server: str, client: str, package: str = "their_app") -> Path:
    """Write an app's folder."""
    (folder / package).mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PROJECT.format(package=package))
    (folder / package / "__init__.py").touch()
    (folder / package / "server_app.py").write_text(server)
    (folder / package / "client_app.py").write_text(client)
    return folder


def result() -> dict[str, object]:
    found: dict[str, object] = json.loads(Path("result.json").read_text())
    return found


@pytest.mark.parametrize("name", APPS)
def test_an_app_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two rounds of four clients end with what they add up to, whatever the app is made of."""
    server, client, expected = APPS[name]
    folder = write(tmp_path / "app", server, client)
    assert fl_kit(monkeypatch, "run", str(folder), "-n", "4") == 0
    assert result()["arrays"] == pytest.approx(expected, abs=1e-4)
    assert "their-app: " in capsys.readouterr().out.splitlines()[-1]


def test_an_app_of_scikit_learn_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of four clients finds the plane that its rows lie in, and so does their mean."""
    folder = write(tmp_path / "app", _SERVER, _SKLEARN)
    assert fl_kit(monkeypatch, "run", str(folder), "-n", "4") == 0
    coef = make_regression(50, 2, coef=True, random_state=0)[2]
    assert np.allclose(result()["arrays"], coef)  # type: ignore[arg-type]


@needs_torch
def test_an_app_of_torch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors come and go as in Flower's own engine."""
    folder = write(tmp_path / "app", _SERVER.replace("[np.zeros(2)]", '{"w": np.zeros(2)}'), _TORCH)
    assert fl_kit(monkeypatch, "run", str(folder), "-n", "4") == 0
    assert result()["arrays"] == SUM


@pytest.mark.slow
def test_an_app_runs_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They import the app from its folder."""
    folder = write(tmp_path / "app", _SERVER, _NUMPY)
    assert fl_kit(monkeypatch, "run", str(folder), "-n", "4", "--num-workers", "2") == 0
    assert result()["arrays"] == SUM


def test_config_is_flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs, several of them, and a TOML file; what is not given is as the project says."""
    folder = write(tmp_path / "app", _SERVER, _NUMPY)
    words = ["-c", "num-server-rounds=1 train.step=3", "-c", "name='a b'"]
    assert fl_kit(monkeypatch, "run", str(folder), "-n", "2", *words) == 0
    config = {"num-server-rounds": 1, "train.step": 3, "name": "a b"}
    assert result() == {"arrays": [3.5, 3.5], "config": config}
    Path("more.toml").write_text("num-server-rounds = 3\n[train]\nstep = 0.5\n")
    assert fl_kit(monkeypatch, "run", str(folder), "-n", "2", "-c", "more.toml") == 0
    config = {"num-server-rounds": 3, "train.step": 0.5, "name": "x"}
    assert result() == {"arrays": [3.0, 3.0], "config": config}


def test_app_is_tracked_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every round is in MLflow, in the project's experiment, and Flower is as it was."""
    from mlflow import MlflowClient

    from fl_app.tracking.mlflow.uri import default_uri

    start = Strategy.start
    folder = write(tmp_path / "app", _SERVER, _NUMPY)
    assert fl_kit(monkeypatch, "run", str(folder), "-n", "4", "--track") == 0
    assert Strategy.start is start
    assert result()["arrays"] == SUM
    client = MlflowClient(default_uri())
    experiment = client.get_experiment_by_name("their-app")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/accuracy"] == pytest.approx(0.65)
    assert run.data.metrics["fairness/accuracy_worst"] == pytest.approx(0.5)
    steps = client.get_metric_history(run.info.run_id, "eval/accuracy")
    assert [metric.step for metric in steps] == [1, 2]


_RAISES = """
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    {what}
"""
_FAILS = _NUMPY.replace("    step =", "    raise ValueError('no rows')\n    step =").replace(
    "    metrics = {", "    raise ValueError('no rows')\n    metrics = {"
)


@pytest.mark.parametrize(
    ("server", "client", "words", "message"),
    [
        (
            _RAISES.format(what="raise LookupError('where')"),
            _NUMPY,
            [],
            "raised LookupError: where",
        ),
        (_RAISES.format(what="raise SystemExit(3)"), _NUMPY, [], "left by sys.exit(3)"),
        (
            _SERVER.replace("FedAvg()", "FedAvg(min_available_nodes=9)"),
            _NUMPY,
            [],
            "waits for more",
        ),
        (
            _SERVER.split("    found =")[0],
            _FAILS,
            [],
            "all 16 calls of clients failed; the log says why",
        ),
        (_OWN_MAIN, _NUMPY, ["--track"], "--track: nothing was recorded"),
    ],
)
def test_failed_run_is_status_1(
    server: str,
    client: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last line says what happened."""
    folder = write(tmp_path / "app", server, client)
    assert fl_kit(monkeypatch, "run", str(folder), "-n", "4", *words) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (("version", "versio"), [], 'APP_DIR=.*Property "version" missing'),
        (("clientapp =", "other ="), [], 'APP_DIR=.*Property "clientapp" missing'),
        (("server_app:app", "server:app"), [], "serverapp=their_app.server:app: .*No module"),
        (("server_app:app", "server_app:np"), [], "serverapp=.*: a ServerApp, not module"),
        (("their_app.client_app", "tests.worker_apps"), [], "clientapp=.*: a module of .*/app;"),
        (("", ""), ["-c", "rounds=3"], "-c=rounds=3: keys of .*'rounds' is not present"),
        (("", ""), ["-c", "name=x"], "configuration string is in an invalid format"),
        (("", ""), ["-c", "train.step=1 more"], "-c=train.step=1 more: key=value pairs"),
        (("", ""), ["-c", "no.toml"], "-c=no.toml: .*No such file"),
        (("", ""), ["-n", "0"], "num_supernodes=0: an integer of at least 1"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    change: tuple[str, str],
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is wrong, by name, and exit status 2."""
    folder = write(tmp_path / "app", _SERVER, _NUMPY)
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace(*change))
    assert fl_kit(monkeypatch, "run", str(folder), *words) == 2
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert len(err.splitlines()) == 1
    assert not Path("result.json").exists()


@pytest.mark.parametrize("name", ["old", "old config"])
def test_old_strategy_cannot_be_tracked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no ``start`` that could be observed."""
    folder = write(tmp_path / "app", *APPS[name][:2])
    assert fl_kit(monkeypatch, "run", str(folder), "--track") == 2
    assert "--track=true: a strategy with start()" in capsys.readouterr().err


def test_no_folder_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there, or holds no app."""
    assert fl_kit(monkeypatch, "run", "nowhere") == 2
    assert "Cannot find pyproject.toml" in capsys.readouterr().err
