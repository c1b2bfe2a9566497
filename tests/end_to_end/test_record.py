"""One run through the real apps and a real MLflow store, read back as a user would."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from mlflow import MlflowClient

from fl_app.aggregation import arrays_digest
from fl_app.colours import strategy_style
from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.errors import FederationError
from fl_app.federation.federated import Federated
from fl_app.report import read_these
from fl_app.runtimes import RunResult, run


@dataclass
class Recorded:
    """A finished run and what MLflow holds of it."""

    result: RunResult
    client: Any
    folder: Path

    @property
    def run(self) -> Any:
        return self.client.get_run(self.result.run_id)

    def steps(self, key: str) -> list[int]:
        return sorted(m.step for m in self.client.get_metric_history(self.result.run_id, key))

    def values(self, key: str) -> list[float]:
        found = self.client.get_metric_history(self.result.run_id, key)
        return [m.value for m in sorted(found, key=lambda m: m.step)]

    def artifact(self, path: str) -> Path:
        return Path(self.client.download_artifacts(self.result.run_id, path, str(self.folder)))

    def paths(self, folder: str) -> list[str]:
        return sorted(f.path for f in self.client.list_artifacts(self.result.run_id, folder))

    def weights(self, server_round: int) -> dict[str, np.ndarray]:
        with np.load(self.artifact(f"weights/round_{server_round:04d}.npz")) as arrays:
            return dict(arrays)

    def aggregation(self, server_round: int) -> dict[str, Any]:
        text = self.artifact(f"aggregation/round_{server_round:04d}.json").read_text()
        found: dict[str, Any] = json.loads(text)
        return found

    def model(self, name: str) -> Any:
        import mlflow

        return mlflow.pyfunc.load_model(self.model_uri(name))

    def model_uri(self, name: str) -> str:
        import mlflow

        mlflow.set_tracking_uri(self.client.tracking_uri)
        found = self.client.search_logged_models([self.run.info.experiment_id])
        model = next(m for m in found if m.name == name and m.source_run_id == self.result.run_id)
        return f"models:/{model.model_id}"


def recorded(home: Path, *overrides: str) -> Recorded:
    uri = f"sqlite:///{home}/mlflow.db"
    output = home / "out"
    config = compose_config([*overrides, f"tracking.uri={uri}", f"output_dir={output}"])
    result = run(RunRequest(config, overrides))
    folder = home / "downloads"
    folder.mkdir(exist_ok=True)
    return Recorded(result, MlflowClient(uri), folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("record")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_APP_HOME", str(folder))
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        yield folder


@pytest.fixture(scope="module")
def digits(home: Path) -> Recorded:
    return recorded(home, "num_clients=4", "num_server_rounds=3", "partitioner=dirichlet")


@pytest.fixture(scope="module")
def diabetes(home: Path) -> Recorded:
    return recorded(home, "dataset=diabetes", "num_clients=3", "num_server_rounds=4")


@pytest.fixture(scope="module")
def lines(home: Path) -> Recorded:
    return recorded(home, "experiment=two_lines", "dataset.rows=[2,6]")


def test_each_metric_has_every_round(digits: Recorded) -> None:
    """``server/`` starts before training at step 0, everything else at round 1."""
    metrics = ("log_loss", "accuracy", "brier")
    for m in metrics:
        assert digits.steps(f"server/{m}") == [0, 1, 2, 3]
        assert digits.steps(f"train/{m}") == digits.steps(f"eval/{m}") == [1, 2, 3]
        for tail in ("worst", "p10", "gap"):
            assert digits.steps(f"fairness/{m}_{tail}") == [1, 2, 3]
        for client in range(4):
            assert digits.steps(f"train_client_{m}/{client:03d}") == [1, 2, 3]
            assert digits.steps(f"eval_client_{m}/{client:03d}") == [1, 2, 3]
    for m in ("balanced_accuracy", "roc_auc", "majority_share", "predicted_classes"):
        assert digits.steps(f"server/{m}") == [0, 1, 2, 3]
        assert digits.steps(f"eval/{m}") == [1, 2, 3]
        assert f"train/{m}" not in digits.run.data.metrics
    for cost in ("bytes_up", "bytes_down", "seconds"):
        assert digits.steps(f"cost/{cost}") == [1, 2, 3]
    assert digits.values("cost/clients_asked") == digits.values("cost/clients_replied") == [4.0] * 3
    assert digits.values("cost/clients_failed") == [0.0] * 3
    assert digits.steps("model/update_norm") == [1, 2, 3]


def test_tags_and_params_tell_the_run(digits: Recorded) -> None:
    """Tags of the contract are there; params are the flat config without folders."""
    tags, params = digits.run.data.tags, digits.run.data.params
    assert digits.run.info.status == "FINISHED"
    wanted = {"strategy": "fedavg", "dataset": "digits", "model": "softmax", "seed": "0"}
    assert wanted.items() <= tags.items()
    assert tags["runtime"] == params["runtime.name"] == "inprocess"
    assert tags["partitioner"] == params["partitioner.name"] == "dirichlet"
    assert params["num_clients"] == "4"
    assert "output_dir" not in params
    assert all(len(tags[k]) == 64 for k in ("config.sha256", "data.sha256", "weights.sha256"))
    assert tags["mlflow.runColor"] == strategy_style("fedavg")[0]


def test_tags_count_the_rows(digits: Recorded) -> None:
    """The seed draws a fifth of 1797 rows for the test, and each client a tenth of its own."""
    tags = digits.run.data.tags
    assert tags["data.seed_draws"] == "test"
    rows, test, train, held = (
        int(tags[f"data.{what}"]) for what in ("rows", "test_rows", "train_rows", "validation_rows")
    )
    assert (rows, test) == (1797, round(1797 * 0.2))
    assert train + held == rows - test
    assert held == pytest.approx((rows - test) / 10, abs=4 / 2)


def losses_of(told: Recorded) -> dict[str, Any]:
    """Return the losses of a run's final model."""
    with np.load(told.artifact("losses/final.npz"), allow_pickle=False) as stored:
        return dict(stored)


def test_final_losses_are_those_of_the_test_rows(digits: Recorded, diabetes: Recorded) -> None:
    """A loss for each test row, whose mean is the last round's metric, in few bytes."""
    for told, names in ((digits, ["accuracy", "brier", "log_loss"]), (diabetes, ["mae", "mse"])):
        losses = losses_of(told)
        assert sorted(losses) == names
        for name, own in losses.items():
            assert own.shape == (int(told.run.data.tags["data.test_rows"]),)
            assert own.dtype == np.float32
            assert own.mean() == pytest.approx(told.values(f"server/{name}")[-1], rel=1e-5)


def test_no_test_rows_or_privacy_means_no_losses(home: Path) -> None:
    """Without test rows there are none, and a private run's record holds nothing a row."""
    few = ("num_clients=4", "num_server_rounds=1", "tracking.figures=false")
    none = recorded(home, *few, "dataset=iris", "dataset.test_fraction=0")
    for told in (none, recorded(home, *few, "privacy=dp_fixed")):
        assert told.run.info.status == "FINISHED"
        assert told.paths("losses") == []
    assert none.run.data.tags["data.test_rows"] == "0"
    assert not any(k.startswith("server/") for k in none.run.data.metrics)


def test_a_report_reads_losses_where_seeds_share_the_test_rows(home: Path) -> None:
    """FLamby's 254 rows are the same for each seed: their losses come with the run."""
    words = ("dataset=heart_disease", "dataset.split=flamby", "partitioner=natural")
    told = recorded(home, *words, "num_clients=4", "num_server_rounds=2", "tracking.figures=false")
    for metric in ("server/accuracy", "eval/accuracy"):
        uri = told.client.tracking_uri
        (found,) = read_these(uri, [told.result.run_id], metric)
        if metric.startswith("eval"):
            assert found.losses is None
        else:
            assert found.losses is not None
            assert found.losses.shape == (254,)
            assert found.losses.mean() == pytest.approx(found.curves[metric][2], rel=1e-5)


def test_final_weights_are_the_last_rounds(digits: Recorded) -> None:
    """The digest in tags and result is that of the last npz; every round has one."""
    assert digits.paths("weights") == [f"weights/round_{r:04d}.npz" for r in range(4)]
    digest = arrays_digest(digits.weights(3))
    assert digest == digits.result.weights_sha256 == digits.run.data.tags["weights.sha256"]


def test_update_norm_is_the_distance_between_rounds(diabetes: Recorded) -> None:
    """``model/update_norm`` of round t is |W(t) - W(t-1)| over all arrays."""
    for server_round, norm in enumerate(diabetes.values("model/update_norm"), start=1):
        new, old = diabetes.weights(server_round), diabetes.weights(server_round - 1)
        squares = sum(float(np.square(new[k] - old[k]).sum()) for k in new)
        assert norm == pytest.approx(np.sqrt(squares), rel=1e-12)


def test_small_weights_are_curves(diabetes: Recorded) -> None:
    """Ten coefficients and the intercept are metrics under their feature's name."""
    final = diabetes.weights(4)
    assert diabetes.values("model/coef.bmi")[-1] == pytest.approx(final["coef"][0, 2], rel=1e-12)
    assert diabetes.values("model/intercept")[-1] == pytest.approx(final["intercept"][0], rel=1e-12)


@pytest.mark.parametrize("name", ["diabetes", "lines"])
def test_aggregate_is_the_sum_of_weighted_arrays(name: str, request: pytest.FixtureRequest) -> None:
    """Σ n_k/N · W_k of the artifact equals its aggregate and the npz to 1e-12."""
    run_: Recorded = request.getfixturevalue(name)
    for server_round in range(1, len(run_.paths("weights"))):
        told, weights = run_.aggregation(server_round), run_.weights(server_round)
        total = sum(c["num_examples"] for c in told["clients"])
        assert total == told["num_examples"]
        assert [c["partition"] for c in told["clients"]] == list(range(len(told["clients"])))
        for key, array in weights.items():
            terms = [c["weight"] * np.asarray(c["arrays"][key]) for c in told["clients"]]
            np.testing.assert_allclose(sum(terms), array, rtol=0, atol=1e-12)
            np.testing.assert_allclose(told["aggregate"][key], array, rtol=0, atol=1e-12)
        for c in told["clients"]:
            assert c["weight"] == pytest.approx(c["num_examples"] / total, rel=1e-15)


def test_unequal_rows_weigh_the_lines(lines: Recorded) -> None:
    """With 2 and 6 rows the slope goes to 2·1/4 + 1·3/4, what is left shrinks by 0.8^5 a round.

    The server scores the average line on the rows of both: there is no noise.
    """
    slope, intercept = 2 / 4 + 1 * 3 / 4, 1.0
    left = 0.8 ** (5 * 5)
    final = lines.weights(5)
    assert final["coef"][0, 0] == pytest.approx(slope * (1 - left), rel=1e-12)
    assert final["intercept"][0] == pytest.approx(intercept * (1 - left), rel=1e-12)
    assert not any(k.startswith("eval/") for k in lines.run.data.metrics)
    rows = [
        (x, (2, 1)[k] * x + 1) for k, n in enumerate((2, 6)) for x in (-1, 1) for _ in range(n // 2)
    ]
    errors = [final["coef"][0, 0] * x + final["intercept"][0] - y for x, y in rows]
    assert lines.values("server/mse")[-1] == pytest.approx(np.mean(np.square(errors)), rel=1e-12)
    assert lines.run.data.tags["data.test_rows"] == "8"


def test_logged_model_predicts_what_the_run_reported(digits: Recorded) -> None:
    """The stored model, fed raw integer rows of the test set, has ``server/accuracy``."""
    import pandas as pd

    from fl_app.data.client_data import test_table

    config = compose_config(["num_clients=4", "num_server_rounds=3", "partitioner=dirichlet"])
    test = test_table(config)
    frame = pd.DataFrame(test.numeric.astype(int), columns=list(test.columns))
    model = digits.model("final")
    labels = model.predict(frame)
    assert labels.shape == (len(test),)
    assert (labels == test.target).mean() == digits.values("server/accuracy")[-1]
    classes = model.metadata.metadata["classes"]
    p = model.predict(frame, params={"output": "probabilities"})
    assert [classes[i] for i in p.argmax(axis=1)] == labels.tolist()
    own = p[np.arange(len(test)), test.target.astype(int)]
    assert -np.log(own).mean() == pytest.approx(digits.values("server/log_loss")[-1], rel=1e-9)


def test_regression_model_predicts_in_the_targets_unit(diabetes: Recorded) -> None:
    """The stored model's mean squared error on raw test rows is ``server/mse``."""
    import pandas as pd

    from fl_app.data.client_data import test_table

    test = test_table(compose_config(["dataset=diabetes", "num_clients=3"]))
    numbers = diabetes.model("final").predict(
        pd.DataFrame(test.numeric, columns=list(test.columns))
    )
    error = np.square(np.asarray(numbers) - test.target[:, 0]).mean()
    assert error == pytest.approx(diabetes.values("server/mse")[-1], rel=1e-12)


def test_best_model_is_that_of_the_best_validation_round(digits: Recorded) -> None:
    """``best`` holds the arrays of the first round with the highest ``eval/accuracy``."""
    best_round = int(np.argmax(digits.values("eval/accuracy"))) + 1
    from mlflow.artifacts import download_artifacts

    folder = Path(
        download_artifacts(digits.model_uri("best"), dst_path=str(digits.folder / "best"))
    )
    with np.load(next(folder.rglob("arrays.npz"))) as arrays:
        assert arrays_digest(dict(arrays)) == arrays_digest(digits.weights(best_round))


def test_result_file_says_the_same(digits: Recorded) -> None:
    """``result.json`` has the last round's metrics under MLflow's keys."""
    for key, value in digits.result.metrics.items():
        assert digits.values(key)[-1] == value
    assert digits.result.status == "FINISHED"
    assert digits.result.seconds > 0


@pytest.fixture(scope="module")
def own_table(home: Path) -> tuple[Recorded, Path]:
    """Record a run on a CSV with spaces in names, categories, missing cells and text labels."""
    import pandas as pd

    from fl_app.seeding import generator

    rng = generator(0, "csv")
    age = rng.normal(50, 10, size=80)
    pain = rng.choice(["none", "on effort", "at rest"], size=80)
    sick = (age > 52) | (pain == "at rest")
    frame = pd.DataFrame(
        {
            "patient's age": age.round(),
            "chest pain": pain,
            "visits": rng.integers(1, 9, size=80),
            "how is it": np.where(sick, "sick", "well"),
        }
    )
    frame.loc[3, "patient's age"] = None
    frame.loc[5, "chest pain"] = None
    path = home / "my patients.csv"
    frame.to_csv(path, index=False)
    run_ = recorded(
        home,
        "dataset=tabular",
        f"dataset.path='{path}'",
        "dataset.target='how is it'",
        "dataset.categorical=['chest pain']",
        "dataset.missing=mean",
        "num_clients=3",
        "num_server_rounds=8",
        "tracking.register_as=patients",
    )
    return run_, path


def test_own_tables_model_predicts_its_raw_rows(own_table: tuple[Recorded, Path]) -> None:
    """The logged model takes the CSV's rows as pandas reads them and returns its text labels."""
    import pandas as pd

    from fl_app.data.client_data import test_table

    run_, path = own_table
    frame = pd.read_csv(path)
    labels = run_.model("final").predict(frame)
    assert set(labels) <= {"sick", "well"}
    assert (labels == frame["how is it"]).mean() > (frame["how is it"] == "sick").mean()
    config = compose_config(
        [
            "dataset=tabular",
            f"dataset.path='{path}'",
            "dataset.target='how is it'",
            "dataset.categorical=['chest pain']",
            "dataset.missing=mean",
        ]
    )
    test = test_table(config)
    rows = pd.DataFrame(test.numeric, columns=list(test.numeric_names))
    rows["chest pain"] = test.categorical[:, 0]
    correct = (run_.model("final").predict(rows) == test.target).mean()
    assert correct == run_.values("server/accuracy")[-1]


def test_best_model_is_registered_as_champion(own_table: tuple[Recorded, Path]) -> None:
    """``register_as`` gives the best model a version with the alias ``champion``."""
    run_, _ = own_table
    version = run_.client.get_model_version_by_alias("patients", "champion")
    assert version.run_id == run_.result.run_id


def test_data_is_an_input_of_the_run(own_table: tuple[Recorded, Path]) -> None:
    """MLflow lists the file with the beginning of its digest, and the figures are artifacts."""
    run_, path = own_table
    (used,) = run_.run.inputs.dataset_inputs
    assert used.dataset.name == path.name
    assert run_.run.data.tags["data.sha256"].startswith(used.dataset.digest)
    assert run_.paths("figures") == [
        "figures/clients_accuracy.png",
        "figures/data.png",
        "figures/learning_curves.png",
    ]


@pytest.fixture(scope="module")
def private(home: Path) -> Recorded:
    overrides = ["num_clients=4", "num_server_rounds=3", "strategy=fedadam", "privacy=dp_adaptive"]
    return recorded(home, *overrides, "tracking.register_as=private")


def test_under_privacy_no_client_is_in_the_record(private: Recorded) -> None:
    """No metric, table, figure, term or model tells of one client or was chosen by its rows."""
    run, client = private.run, private.client
    own = ("train_client_", "eval_client_", "fairness/")
    assert [key for key in run.data.metrics if key.startswith(own)] == []
    assert {"train/accuracy", "eval/accuracy", "server/accuracy"} <= run.data.metrics.keys()
    assert private.paths("figures") == ["figures/learning_curves.png"]
    assert "clients" not in {f.path for f in client.list_artifacts(private.result.run_id)}
    for server_round in (1, 2, 3):
        told = private.aggregation(server_round)
        assert (told["clients"], told["num_examples"]) == ([], None)
    models = client.search_logged_models([run.info.experiment_id])
    (final,) = [m for m in models if m.source_run_id == private.result.run_id]
    assert final.name == "final"
    champion = client.get_model_version_by_alias("private", "champion")
    assert champion.source == final.artifact_location


def test_epsilon_is_in_the_record(private: Recorded) -> None:
    """It grows from round to round, and the run's tag has the last."""
    first, second, third = private.values("privacy/epsilon")
    assert 0 < first < second < third
    assert private.values("privacy/delta") == [1e-5] * 3
    assert private.values("privacy/clipping_norm")[0] == 0.1  # the default
    assert float(private.run.data.tags["privacy.epsilon"]) == pytest.approx(third, rel=1e-5)


def test_a_failed_private_run_says_what_it_spent(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A round that fails has no record, but it was asked: the last line and the tag count it."""
    aggregate = Federated.aggregate_train

    def fail(self: Federated, server_round: int, replies: Iterable[Message]) -> Any:
        if server_round == 2:
            raise FederationError("nobody replied")
        return aggregate(self, server_round, replies)

    monkeypatch.setattr(Federated, "aggregate_train", fail)
    name = "tracking.experiment_name=spent"
    with pytest.raises(FederationError, match="nobody replied"):
        recorded(home, "dataset=iris", "num_clients=3", "privacy=dp_fixed", name)
    said = [x for x in capsys.readouterr().out.splitlines() if "privacy: epsilon" in x]
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("spent").experiment_id])
    assert run.info.status == "FAILED"
    spent = float(run.data.tags["privacy.epsilon"])
    assert spent > run.data.metrics["privacy/epsilon"]
    (line,) = said
    assert line.startswith(f"privacy: epsilon {spent:.4g} at delta 1e-05 after 2 rounds, for one")
