"""Sweeps as typed: checked first, one run a job, a table at the end, left out where done before."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fl_app.cli import kit
from fl_app.cli import run as command
from fl_app.config.compose import compose_config, config_dir
from fl_app.config.run_request import read_launch
from fl_app.config.schema import Config
from fl_app.config.sweep import Sweep, check_sweep
from fl_app.errors import ConfigError
from fl_app.report import find_finished, read_runs
from fl_app.runtimes import RunResult
from fl_app.tracking.mlflow.uri import default_uri

from .support import command as fl_command
from .support import free_port

SMALL = ("dataset=wine", "num_clients=3", "num_server_rounds=3", "tracking.figures=false")
Typed = Callable[..., int]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Type ``fl-app`` in a folder of its own; return the exit status."""
    monkeypatch.setenv("FL_APP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)

    def type_words(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fl-app", *words])
        monkeypatch.setattr(command, "_failures", [])
        monkeypatch.setattr(command, "_begun", [])
        try:
            command.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return type_words


def test_a_sweep_ends_with_its_table(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    """Every job is one line and one run with the sweep's id; the comparison with FedAvg follows."""
    assert typed("-m", *SMALL, "strategy=fedavg,fedprox", "seed=0,1") == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if "| round 3/3 |" in line]) == 4
    assert "mean ± sd over seeds" in out
    assert "at equal rounds" in out
    assert "at equal bytes" in out
    runs = read_runs(experiment="wine")
    assert [run.status for run in runs] == ["FINISHED"] * 4
    assert len({run.tags["sweep.id"] for run in runs}) == 1
    assert {(run.params["strategy.name"], run.seed) for run in runs} == {
        (name, seed) for name in ("fedavg", "fedprox") for seed in "01"
    }
    where = out.partition("the runs in MLflow: fl-kit ui, filter ")[2].splitlines()[0]
    client = MlflowClient(default_uri())
    (wine,) = [e for e in client.search_experiments() if e.name == "wine"]
    found = client.search_runs([wine.experiment_id], where)
    assert {run.run_id for run in runs} < {run.info.run_id for run in found}


def test_runs_of_a_sweep_are_drawn_where_that_is_asked(typed: Typed) -> None:
    """Twenty runs would draw sixty pictures that few look at; a run by itself is drawn."""
    small = [word for word in SMALL if "figures" not in word]
    assert typed("-m", *small, "seed=0") == 0
    assert typed("-m", *small, "seed=1", "tracking.figures=true") == 0
    assert typed(*small, "seed=2") == 0
    client = MlflowClient(default_uri())
    pictures = {
        run.seed: len(client.list_artifacts(run.run_id, "figures"))
        for run in read_runs(experiment="wine")
    }
    assert pictures == {"0": 0, "1": 3, "2": 3}


def test_what_is_finished_is_skipped(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    """The same sweep again makes no run; another value makes its own only; so does a single run."""
    words = ["-m", *SMALL, "seed=0,1", "skip_finished=true"]
    assert typed(*words) == 0
    assert "skipped" not in capsys.readouterr().out
    assert typed(*words) == 0
    out = capsys.readouterr().out
    assert out.count("skipped, finished as run") == 2
    assert "mean ± sd over seeds" in out
    assert len(read_runs(experiment="wine")) == 2
    assert typed("-m", *SMALL, "seed=0,1,2", "skip_finished=true") == 0
    assert capsys.readouterr().out.count("skipped") == 2
    assert typed(*SMALL, "seed=2", "skip_finished=true") == 0
    assert "skipped" in capsys.readouterr().out
    assert len(read_runs(experiment="wine")) == 3


RATES = ("model.learning_rate=0.1,0.5", "seed=0,1")


def test_what_changes_nothing_is_run_once(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate that no client uses: one run a seed, a line for each other job, status 0, one row."""
    assert typed("-m", *SMALL, "strategy=fedavg,n_average", *RATES) == 0
    out = capsys.readouterr().out
    why = "(model.learning_rate has no effect on strategy=n_average)"
    assert f"job 6: the same run as job 4 {why}" in out
    assert f"job 7: the same run as job 5 {why}" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("strategy=n_average")]
    assert [row[:3] for row in rows] == [["strategy=n_average,", "learning_rate=-", "2"]]
    assert out.count("strategy=fedavg, learning_rate=") == 2
    runs = read_runs(experiment="wine")
    told = [(r.params["strategy.name"], r.tags.get("config.without_effect")) for r in runs]
    none = "model.batch_size model.l2 model.learning_rate model.local_epochs model.local_steps"
    none = f"{none} model.name"
    assert sorted(told) == [("fedavg", None)] * 4 + [("n_average", none)] * 2


def test_runs_that_differ_by_their_runtime_are_two() -> None:
    """Whoever compares runtimes, or asks for the same twice, gets what the words say."""
    words = ["strategy=n_average", "model.l2=0,1", "runtime=inprocess,simulation"]
    assert check_sweep(words, True).same == {2: 0, 3: 1}
    assert check_sweep(["model.l2=0,1", "seed=3,3"], True).same == {1: 0, 3: 2}
    drawn = ["strategy=n_average", "sweep=learning_rate"]
    with suppress(ConfigError):  # without Optuna's plugin
        assert check_sweep(drawn, True).same == {}


def test_jobs_are_numbered_as_hydra_numbers_them(
    typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is typed takes the place of what an experiment sweeps over, where that stands."""
    words = ["experiment=heart_disease", "num_server_rounds=3", "tracking=none", "seed=3"]
    words += ["model.learning_rate=0.2,0.1", "strategy=n_average,local"]
    same = check_sweep(words, False).same
    assert typed(*words) == 0
    out = capsys.readouterr().out
    assert same == {1: 0}
    assert "job 1: the same run as job 0 (model.learning_rate has no" in out
    assert out.count("| round 3/3 |") == 3
    assert out.count("strategy=local") == 2


def test_a_typed_key_without_effect_is_said(
    typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line at the start of a run; none of what was not typed, or has an effect."""
    own = (*SMALL[:-1], "strategy=n_average", "tracking=none")
    assert typed(*own, "model=mlp", "model.hidden_units=3", "model.dtype=float32") == 0
    said = "model, model.hidden_units have no effect on strategy=n_average\n"
    assert said in capsys.readouterr().out
    assert typed(*own, "strategy.base_models=[model]", "model.l2=0.1") == 0
    assert "no effect" not in capsys.readouterr().out
    assert typed(*own) == 0
    assert "no effect" not in capsys.readouterr().out


def test_another_rate_is_the_same_finished_run(
    typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    """``skip_finished`` finds a run that differs by what changes none of its numbers."""
    own = (*SMALL, "strategy=n_average")
    assert typed(*own) == 0
    assert typed(*own, "skip_finished=true", "model.learning_rate=0.3") == 0
    assert "skipped, finished as run" in capsys.readouterr().out
    assert len(read_runs(experiment="wine")) == 1


def test_a_run_is_found_by_config_and_data(typed: Typed) -> None:
    """Both digests decide; a store that is not there has no run, and is not made by asking."""
    assert find_finished(None, {"config.sha256": "x"}) is None
    assert typed(*SMALL) == 0
    (run,) = read_runs(experiment="wine")
    tags = {name: run.tags[name] for name in ("config.sha256", "data.sha256")}
    found = find_finished(None, tags)
    assert found is not None
    assert found.run_id == run.run_id
    for name in tags:
        assert find_finished(None, {**tags, name: "other"}) is None


def test_a_failed_job_leaves_the_others(
    typed: Typed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job fails while it runs: the others finish, the table names it, the status is 1."""
    from fl_app import client_app

    whole = client_app._federation

    def broken(config_json: str, encoding_json: str) -> object:
        if '"seed":1' in config_json:
            raise RuntimeError("no disk")
        return whole(config_json, encoding_json)

    monkeypatch.setattr(client_app, "_federation", broken)
    assert typed("-m", *SMALL, "seed=0,1,2") == 1
    told = capsys.readouterr()
    assert "FAILED: job 1: seed=1: round 1: 0 usable replies" in told.out
    assert "Error executing job" not in told.err
    statuses = {run.seed: run.status for run in read_runs(experiment="wine")}
    assert statuses == {"0": "FINISHED", "1": "FAILED", "2": "FINISHED"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["model.learning_rate=0.1,-1"], "model.learning_rate=-1: expected a finite number > 0"),
        (["strategy=fedstacking", "num_server_rounds=4,2"], "num_server_rounds=2: strategy="),
        (["strategy=fedavg,nope"], "strategy=nope: one of "),
        (["sede=0,1"], "sede=0,1: no such key; did you mean seed?"),
        (
            ["strategy=fedavg,krum", "num_clients=2"],
            "num_clients=2: strategy=krum needs at least 5",
        ),
        (["seed=0,1", "dataset.test_fraction=2"], "dataset.test_fraction=2: expected"),
        (["seed=0,1", "skip_finished=true", "tracking=none"], "skip_finished=true: false with"),
        (["hydra/launcher=nope", "seed=0,1"], "hydra/launcher=nope: one of "),
    ],
)
def test_a_mistake_in_one_job_stops_all(
    words: list[str], text: str, typed: Typed, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Found before the first job starts: one line, status 2, nothing run and no store made."""
    assert typed("-m", *words) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"fl-app: {text}")
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert not (tmp_path / "home").exists()


def test_experiments_that_are_sweeps_say_so() -> None:
    """Their keys are swept without ``-m``; what is typed takes the place of a swept key."""
    hospitals = "experiment=heart_disease"
    assert set(check_sweep([hospitals], False).keys) == {"strategy", "seed"}
    assert check_sweep([hospitals, "seed=3"], False).keys == ("strategy",)
    stacking = {"method", "model.learning_rate", "seed"}
    assert set(check_sweep(["experiment=stacking_vs_averaging"], False).keys) == stacking
    iid = ["experiment=stacking_vs_averaging", "partitioner=iid"]
    assert set(check_sweep(iid, False).keys) == stacking
    assert check_sweep(["experiment=two_lines"], False) == Sweep()
    drawn = {"model.learning_rate", "model.local_epochs"}
    assert set(check_sweep(["sweep=learning_rate"], False).keys) == drawn
    with pytest.raises(ConfigError, match="objective=eval/mse: one of eval/log_loss"):
        check_sweep(["sweep=learning_rate_regression"], False)
    with pytest.raises(ConfigError, match="num_server_rounds=2"):
        check_sweep(["experiment=stacking_vs_averaging", "num_server_rounds=2"], False)


METHODS = "method=fedavg_softmax,fedavg_mlp,fedstacking_none,n_average"


def test_methods_are_compared_tuned(
    typed: Typed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each level is a strategy with its model; the rate is tuned; a sentence for each rival.

    The command that is said makes the same tables.
    """
    rates = "model.learning_rate=0.02,0.32"
    assert typed("-m", *SMALL, METHODS, rates, "seed=0,1") == 0
    out = capsys.readouterr().out
    assert out.count("the same run as job") == 4
    assert "fedavg_mlp learning_rate=0.02 s0 iid K3 mlp | round 3/3" in out
    assert "model=mlp, strategy=fedavg, learning_rate=0.32" in out
    assert "model.learning_rate by eval/accuracy: fedavg" in out
    assert "n_average softmax: nothing to tune" in out
    (stack,) = [line for line in out.splitlines() if line.startswith("fedstacking softmax is ")]
    assert "in server/accuracy, at " in stack
    assert "its bytes" in stack
    (again,) = [line for line in out.splitlines() if line.startswith("the same again: fl-kit ")]
    assert "--tune model.learning_rate --by eval/accuracy" in again
    monkeypatch.setattr(sys, "argv", shlex.split(again.partition(": ")[2]))
    kit.main()
    table = out.partition("at equal rounds")[2].partition("at equal bytes")[0]
    assert table in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(p.stem for p in (config_dir() / "method").glob("*")))
def test_a_method_is_a_bundle(name: str) -> None:
    """Each is a config by itself, by ``flwr run`` too, and goes before an experiment's choice."""
    data = "diabetes" if name.endswith(("_linear", "_ridge")) else "wine"
    words = [f"method={name}", f"dataset={data}"]
    config = compose_config(words)
    assert name.startswith(config.strategy.name)
    assert config.model.name == name.partition("_")[2] or config.strategy.name != "fedavg"
    assert read_launch({"overrides": " ".join(words)}, 10).config == config
    others = ["experiment=two_lines", "model=auto", "partitioner=iid", "model.local_epochs=1"]
    lesson = compose_config([*others, *words])
    assert lesson.strategy == config.strategy
    own = config.num_server_rounds
    assert lesson.num_server_rounds == (5 if own == 10 else own)


def test_a_method_that_is_none() -> None:
    """The options are listed."""
    with pytest.raises(ConfigError, match="method=nope: one of fedavg_linear"):
        compose_config(["method=nope"])


def test_names_of_runs_tell_jobs_apart(typed: Typed) -> None:
    """What a sweep is over stands in the names of its runs."""
    assert typed("-m", *SMALL, "model.learning_rate=0.1,0.5", "seed=0,1") == 0
    names = {run.name for run in read_runs(experiment="wine")}
    assert len(names) == 4
    assert all(("learning_rate=0.1" in name) != ("learning_rate=0.5" in name) for name in names)


def test_the_experiment_on_hospitals(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    """``experiment=heart_disease`` runs its seven strategies on paired seeds and compares them."""
    words = ["experiment=heart_disease", "seed=0,1", "num_server_rounds=3"]
    assert typed(*words, "tracking.figures=false") == 0
    out = capsys.readouterr().out
    table = out.partition("at equal rounds")[2].partition("at equal bytes")[0]
    for name in ("local", "n_average", "fedprox", "fedadam", "fedstacking", "pooled"):
        (line,) = [row for row in table.splitlines() if row.startswith(f"{name} ")]
        assert "[" in line


def test_optuna_needs_its_plugin(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    """The preset's trials are runs; the value that they are judged by comes back to Optuna."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert typed("-m", *SMALL, "sweep=learning_rate", "hydra.sweeper.n_trials=2") == 0
    assert len(read_runs(experiment="wine")) == 2
    assert "mean ± sd over seeds" in capsys.readouterr().out


QUICK = ("dataset=iris", "num_clients=2", "num_server_rounds=1", "tracking=none")


def test_what_some_strategies_have_is_for_those(
    typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others run once; the record of each has what it heeds, as a single run would take it."""
    words = ["-m", *SMALL, "strategy=fedavg,fedadam", "strategy.eta=0.1,0.2"]
    assert typed(*words) == 0
    out = capsys.readouterr().out
    assert "job 1: the same run as job 0 (no strategy.eta in strategy=fedavg)" in out
    runs = read_runs(experiment="wine")
    found = sorted((r.params["strategy.name"], r.params.get("strategy.eta", "")) for r in runs)
    assert found == [("fedadam", "0.1"), ("fedadam", "0.2"), ("fedavg", "")]
    assert typed("-m", *QUICK, "method=fedavg_softmax,fedprox", "seed=0") == 2
    capsys.readouterr()
    words = ["-m", *QUICK[:2], "tracking=none", "num_server_rounds=3", "strategy.max_members=2"]
    assert typed(*words, "method=fedavg_softmax,fedstacking") == 0
    assert capsys.readouterr().out.count("| round 3/3 |") == 2
    for key, value in (("strategy.beta", "0.1"), ("++strategy.beta", "0.1,0.2")):
        assert typed("-m", *QUICK, "strategy=fedavg,fedadam", f"{key}={value}") == 2
        assert capsys.readouterr().err == (
            f"fl-app: strategy.beta={value}: a key of an option of strategy that is swept over; "
            "fedtrimmedavg has it\n"
        )


@pytest.mark.parametrize("how", ["--config-dir", "hydra.searchpath"])
def test_an_own_experiment_in_a_sweep(
    how: str, typed: Typed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found, checked before the first job, and its runs named by what was swept over."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    own.write_text("# @package _global_\nnum_server_rounds: 2\n")
    where = ["--config-dir", "mine"] if how == "--config-dir" else [f"{how}=[{tmp_path}/mine]"]
    words = [*where, *QUICK[:2], "tracking=none", "experiment=own"]
    assert typed("-m", *words, "seed=0,1") == 0
    out = capsys.readouterr().out
    assert "fedavg s0 iid K2 softmax | round 2/2 |" in out
    assert typed("-m", *words, "seed=0,x") == 2
    assert capsys.readouterr().err.startswith("fl-app: seed=x: expected an integer >= 0 (job ")
    own.write_text("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,x'}}}")
    assert typed(*words) == 2
    assert "seed=x: expected an integer" in capsys.readouterr().err
    assert typed("hydra.mode=MULTIRUN", *QUICK, "seed=0,x") == 2
    assert "seed=x: expected an integer" in capsys.readouterr().err


def test_two_sweeps_in_one_folder_are_two(typed: Typed) -> None:
    """Each has a ``sweep.id`` of its own, all jobs of a sweep the same."""
    for _ in range(2):
        assert typed("-m", *SMALL, "seed=0,1", "hydra.sweep.dir=one") == 0
    ids = [run.tags["sweep.id"] for run in read_runs(experiment="wine")]
    assert sorted(ids.count(one) for one in set(ids)) == [2, 2]


def test_a_job_may_name_what_hydra_knows_of_it(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``${hydra:…}`` and ``${oc.env:…}`` are each job's own, in the checks as in the runs."""
    monkeypatch.setenv("FOLDER", str(tmp_path / "out"))
    folder = "output_dir=${oc.env:FOLDER}/${hydra:job.num}"
    assert typed("-m", *QUICK, "model.l2=0,1", "seed=${hydra:job.num}", folder) == 0
    assert sorted(path.parent.name for path in (tmp_path / "out").glob("*/result.json")) == [*"01"]
    assert check_sweep(["strategy=n_average", "model.l2=0,1", "seed=${hydra:job.num}"], True) == (
        Sweep(("model.l2",))
    )


def test_words_may_stand_in_any_order(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags among overrides; ``~`` behind a key is the home, which no shell puts there."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert typed(QUICK[0], "-m", *QUICK[1:], "seed=0,1", "hydra.sweep.dir=~/swept") == 0
    assert len([*(tmp_path / "me" / "swept").glob("?")]) == 2
    uri = "tracking.uri=sqlite:///~/m.db"
    assert typed(*QUICK[:3], "tracking.figures=false", uri, "output_dir=~/out") == 0
    assert (tmp_path / "me" / "m.db").exists()
    assert (tmp_path / "me" / "out" / "result.json").exists()
    assert typed("-m", *QUICK, "hydra.mode=RUN", "seed=0,1") == 0


OPTUNA = ("-m", *QUICK, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")


def test_optuna_is_told_what_it_cannot_choose_by(
    typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    """No objective, or the worst in place of the best: before the first trial; no value: after."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    rates = "model.learning_rate=interval(1e30,1e40)"
    best = "hydra.sweeper.direction=maximize"
    assert typed(*OPTUNA, rates) == 2
    assert "direction=minimize: maximize for objective=eval/accuracy" in capsys.readouterr().err
    assert typed(*OPTUNA, rates, best, "fraction_evaluate=0") == 2
    assert "there is no eval/accuracy to choose by" in capsys.readouterr().err
    assert typed(*OPTUNA, rates, best, "num_server_rounds=2", "model.local_epochs=1") == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "fl-app: no trial ended with a value to choose by"
    assert out.count("training diverged") == 2


@pytest.mark.slow
def test_sixteen_jobs_in_processes_on_a_new_store(tmp_path: Path) -> None:
    """Joblib's launcher on a store that does not exist yet: 16 FINISHED, then 16 skipped."""
    words = ("fl-app", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "dataset=wine")
    sweep = ("strategy=fedavg,fedstacking", "seed=range(8)", "tracking.figures=false")
    home = str(tmp_path / "home")
    first = fl_command(*words, *sweep, cwd=tmp_path, FL_APP_HOME=home)
    assert first.returncode == 0, first.stderr
    runs = read_runs(f"sqlite:///{home}/mlflow.db", experiment="wine")
    assert [run.status for run in runs] == ["FINISHED"] * 16
    again = fl_command(*words, *sweep, "skip_finished=true", cwd=tmp_path, FL_APP_HOME=home)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped, finished as run") == 16
    assert len(read_runs(f"sqlite:///{home}/mlflow.db", experiment="wine")) == 16


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_ends_a_sweep(
    typed: Typed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    swallowed: bool,
) -> None:
    """With its status, and no further job, also where the first job's code has swallowed it."""
    begun: list[int] = []

    def run(config: Config) -> RunResult:
        begun.append(config.seed)
        with suppress(BaseException) if swallowed else nullcontext():
            signal.raise_signal(signal.SIGTERM)
        return RunResult("", "FINISHED", {}, None, 0.0)

    monkeypatch.setattr(command, "_run", run)
    assert typed("-m", "seed=0,1,2", *SMALL) == 143
    assert begun == [0]
    assert capsys.readouterr().err.startswith("fl-app: interrupted by SIGTERM")


def test_a_ray_cluster_that_is_not_there(typed: Typed, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody listens at ``ray_address``: one line, exit status 2, and no store."""
    address = f"127.0.0.1:{free_port()}"
    assert typed("runtime=simulation", f"runtime.ray_address={address}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fl-app: runtime.ray_address={address}: HOST:PORT of a Ray head that")
    assert error.count("\n") == 1
    assert not Path("home/mlflow.db").exists()
