"""A run that broke off goes on: with the bits of one that did not, and only if it is the same."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.client_app import app as client_app
from fl_app.config.compose import compose_config
from fl_app.config.run_request import RunRequest
from fl_app.errors import ConfigError, FederationError
from fl_app.experiment import resuming
from fl_app.federation.federated import Federated
from fl_app.grid import run_in_process
from fl_app.home import home_dir
from fl_app.runtimes import RunResult
from fl_app.runtimes import run as run_request
from fl_app.runtimes.result import read_result
from fl_app.server_app import app as server_app
from fl_app.stacking import pool
from fl_app.stacking.choosing import SolveStack
from fl_app.tracking.checkpoints import read_checkpoint
from fl_app.tracking.housekeeping import left_runs
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import JournalReader
from tests.kit import fl_kit

ROUNDS = 5
WAYS = [
    "strategy=fedavg",
    "strategy=fedavg fraction_train=.5 fraction_evaluate=.5",
    "strategy=fedprox model=mlp",
    "strategy=fedavgm strategy.server_momentum=.9",
    "strategy=fedadam",
    "strategy=fedyogi model.dtype=float32",
    "strategy=fedadagrad",
    "strategy=qfedavg model.learning_rate=.1",
    "strategy=fedmedian",
    "strategy=fedtrimmedavg num_clients=6",
    "strategy=krum num_clients=6",
    "strategy=multikrum num_clients=6",
    "strategy=bulyan num_clients=8",
    "strategy=local",
    "strategy=pooled",
    "strategy=pooled strategy.base_models=[logistic]",
    "strategy=n_average",
    "strategy=fedstacking",
    "strategy=fedstacking strategy.personal_gate=true",
    "strategy=fedstacking strategy.global_member=ls dataset=diabetes fraction_train=.5",
    "strategy=fedstacking strategy.global_member=none fraction_train=.5",
    "strategy=fedavg faults.clients=1 faults.kind=flip",
    "strategy=fedavg dataset=two_lines partitioner=natural num_clients=2",
]


def words_of(*more: str) -> list[str]:
    """Return the words of a small run; later ones win."""
    own = ["dataset=wine", "num_clients=4", f"num_server_rounds={ROUNDS}", "tracking=none"]
    chosen: dict[str, str] = {}
    for word in (*own, *(w for words in more for w in words.split())):
        chosen[word.partition("=")[0]] = word
    return [*chosen.values()]


def run(tmp_path: Path, words: list[str]) -> RunResult:
    """Run a config as the command line does."""
    config = compose_config([*words, f"output_dir={tmp_path}"])
    return run_request(RunRequest(config, tuple(words)))


@contextlib.contextmanager
def interrupted(hook: str, number: int) -> Iterator[None]:
    """Interrupt a run when a hook is called for so manieth time."""
    calls = []
    call = getattr(Federated, hook)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return call(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Federated, hook, counted)
        with pytest.raises(KeyboardInterrupt):
            yield
    while left_runs(home_dir())[0].state == "running":  # its end is sent
        time.sleep(0.05)


def newest() -> JournalReader:
    """Return the journal of the newest run of this home."""
    return JournalReader(left_runs(home_dir())[0].folder)


def history(journal: JournalReader) -> dict[int, Mapping[str, float]]:
    """Return the metrics of a run's rounds but for seconds; each round is there once."""
    lines = [line for line, _ in journal.rounds()]
    rounds = {
        line["server_round"]: {k: v for k, v in line["metrics"].items() if k != "cost/seconds"}
        for line in lines
    }
    assert len(lines) == len(rounds)
    return rounds


def same(one: JournalReader, other: JournalReader) -> None:
    """Assert that two finished runs have the same rounds and models."""
    np.testing.assert_equal(history(one), history(other))
    models = one.end["models"]
    assert [(m["name"], m["server_round"]) for m in models] == [
        (m["name"], m["server_round"]) for m in other.end["models"]
    ]
    for model in models:
        key = f"model/{model['name']}", model["server_round"]
        np.testing.assert_equal(one.arrays(*key), other.arrays(*key))


@pytest.mark.parametrize(("place", "words"), enumerate(WAYS))
def test_it_goes_on_with_the_bits_of_a_run_that_was_not_interrupted(
    place: int, words: str, tmp_path: Path
) -> None:
    """Broken off in the middle of a round, early twice; FedStacking in each of its phases."""
    given = words_of(words)
    whole = run(tmp_path, given)
    uninterrupted = newest()
    all_points = (("aggregate_train", 2), ("configure_evaluate", 4), ("aggregate_train", 5))
    points = all_points if "fedstacking" in words else (all_points[place % 3],)
    for hook, number in points:
        with interrupted(hook, number):
            run(tmp_path, given)
        first = newest()
        if number == 2:
            with interrupted(hook, 2):
                run(tmp_path, [*given, "resume=last"])
        again = run(tmp_path, [*given, "resume=last"])
        assert newest() == first
        assert (again.weights_sha256, again.metrics) == (whole.weights_sha256, whole.metrics)
        same(newest(), uninterrupted)
        assert newest().kept("state") == newest().kept("now") == []


def test_a_run_that_had_done_all_its_rounds_has_its_end_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is started: the final arrays, models and table come from the journal."""
    given = words_of()
    whole = run(tmp_path, given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fl_app.experiment.run.logged_models", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Federated, "configure_train", None)
        again = run(tmp_path, [*given, "resume=last"])
    assert again.weights_sha256 == whole.weights_sha256
    same(newest(), JournalReader(left_runs(home_dir())[1].folder))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_another_runtime_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Workers have no memory of the rounds before: what clients keep is a cache."""
    given = words_of("strategy=fedstacking")
    whole = run(tmp_path, given)
    with interrupted("aggregate_train", 4):
        run(tmp_path, given)
    again = run(tmp_path, [*given, "resume=last", "runtime.num_workers=2"])
    assert again.weights_sha256 == whole.weights_sha256


def test_stock_flower_goes_on(tmp_path: Path) -> None:
    """`flwr run . --run-config 'overrides="resume=…"'`: with the config, or with a name alone."""
    given = words_of("strategy=fedadam")
    whole = run(tmp_path, given).weights_sha256

    def flower(*words: str) -> str | None:
        run_config = {"overrides": " ".join(words), "output-dir": str(tmp_path)}
        run_in_process(server_app, client_app, num_supernodes=4, run_config=run_config)
        return read_result(str(tmp_path)).weights_sha256

    for words in (["resume=last", *given], []):
        with interrupted("aggregate_train", 3):
            flower(*given)
        assert flower(*(words or [f"resume={newest().name}"])) == whole


def test_privacy_counts_rounds_that_were_asked(tmp_path: Path) -> None:
    """A round that broke off was asked: its repetition is one more release, and so is a second."""
    pytest.importorskip("dp_accounting")
    given = words_of("privacy=dp_adaptive", "num_clients=6")
    run(tmp_path, [*given, "num_server_rounds=7"])
    seven = _epsilon(newest())
    with interrupted("aggregate_train", 3):
        run(tmp_path, given)
    with interrupted("aggregate_train", 1):
        run(tmp_path, [*given, "resume=last"])
    last = run(tmp_path, [*given, "resume=last"])
    assert _epsilon(newest()) == seven
    assert newest().end["tags"]["privacy.epsilon"] == f"{seven:.6g}"
    assert last.metrics["privacy/epsilon"] == seven


def _epsilon(journal: JournalReader) -> float:
    return history(journal)[max(history(journal))]["privacy/epsilon"]


def test_stacking_keeps_no_clients_own_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal of a run that broke off holds the total over clients, and no part of it."""
    parts: list[Any] = []
    take = SolveStack.take

    def seen(self: SolveStack, answers: Mapping[int, tuple[Any, int]]) -> Any:
        parts.extend(reply.sums for reply, _ in answers.values())
        return take(self, answers)

    monkeypatch.setattr(SolveStack, "take", seen)
    with interrupted("aggregate_train", ROUNDS):
        run(tmp_path, words_of("strategy=fedstacking strategy.global_member=ls dataset=diabetes"))
    kept = read_checkpoint(newest())
    assert kept is not None
    total = pool(dict(enumerate(parts)), 4)
    stack = kept.state["strategy"][-1]["stack"]
    np.testing.assert_array_equal(stack["pooled"]["cross"], total.cross)
    raw = [newest().arrays("state", number) for number in newest().kept("state")]
    held = [array.ravel() for arrays in raw for array in arrays.values() if array.dtype.kind == "f"]
    assert len(parts) == 4
    for part in parts:
        for own in (part.gram, part.cross):
            first = own.ravel()[:8].astype(np.float64)
            assert not any(_holds(array, first) for array in held)


def _holds(array: Any, first: Any) -> bool:
    if array.size < first.size:
        return False
    windows = np.lib.stride_tricks.sliding_window_view(array.astype(np.float64), first.size)
    return bool((windows == first).all(axis=1).any())


# ---------------------------------------------------------------------------- refused


def broken_off(tmp_path: Path, *words: str) -> str:
    """Return the name of a run that broke off in its third round."""
    with interrupted("aggregate_train", 3):
        run(tmp_path, words_of(*words))
    return newest().name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=1"], "seed=1: 0, as it was in the run"),
        (["strategy=fedprox"], "strategy.name=fedprox: fedavg, as it was in the run"),
        (["num_server_rounds=9"], "num_server_rounds=9: 5, as it was in the run"),
        (["strategy=fedadam", "strategy.eta=.2"], "strategy.name=fedadam: fedavg, as it was"),
    ],
)
def test_another_config_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    """With the key, both values, and without a round."""
    name = broken_off(tmp_path)
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, [*words, f"resume={name}"])
    assert str(caught.value).startswith(said)


def test_the_config_is_the_journals(tmp_path: Path) -> None:
    """Of a run that is named nothing else has to be typed."""
    whole = run(tmp_path, words_of("strategy=fedadam"))
    name = broken_off(tmp_path, "strategy=fedadam")
    assert run(tmp_path, [f"resume={name}"]).weights_sha256 == whole.weights_sha256


def test_what_was_skipped_or_not_is_no_part_of_it(tmp_path: Path) -> None:
    """`skip_finished=true resume=last`, as a sweep goes on."""
    words = ["tracking=mlflow", "tracking.figures=false"]
    broken_off(tmp_path, *words)
    again = run(tmp_path, [*words_of(*words), "skip_finished=true", "resume=last"])
    assert again.status == "FINISHED"


def test_what_cannot_go_on_is_refused(tmp_path: Path) -> None:
    """A run that is finished, unknown, held by somebody, or that diverged."""
    run(tmp_path, words_of())
    finished = newest().name
    with pytest.raises(ConfigError, match="this one is finished"):
        run(tmp_path, [f"resume={finished}"])
    with pytest.raises(ConfigError, match=r"none of this home broke off"):
        run(tmp_path, [*words_of(), "resume=last"])
    with pytest.raises(ConfigError, match="resume=nothing"):
        run(tmp_path, ["resume=nothing"])
    name = broken_off(tmp_path)
    held = Journal.claim(home_dir() / "runs" / name)
    assert held is not None
    with pytest.raises(ConfigError, match="this one goes on"):
        run(tmp_path, [f"resume={name}"])
    held.release()
    with pytest.raises(FederationError, match="diverged"):
        run(tmp_path, words_of("dataset=diabetes", "model.learning_rate=100"))
    diverged = newest().name
    with pytest.raises(ConfigError, match="training diverged, and would again"):
        run(tmp_path, [f"resume={diverged}"])
    assert [run_.state for run_ in left_runs(home_dir())] == ["failed", "killed", "finished"]


def test_a_run_stays_in_mlflow_or_out_of_it(tmp_path: Path) -> None:
    """Else one half of it would be nowhere."""
    name = broken_off(tmp_path)
    with pytest.raises(ConfigError, match="tracking=mlflow: not mlflow, where the run is not"):
        run(tmp_path, [f"resume={name}", "tracking=mlflow"])


def test_other_code_is_refused_unless_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So are other versions; and with resume_anyway=true it is the user's affair."""
    name = broken_off(tmp_path)
    monkeypatch.setattr(resuming, "versions", lambda: {"numpy": "0.1"})
    with pytest.raises(ConfigError, match=r"versions=numpy 0\.1: .*or resume_anyway=true"):
        run(tmp_path, [f"resume={name}"])
    assert run(tmp_path, [f"resume={name}", "resume_anyway=true"]).status == "FINISHED"


def test_other_data_is_refused(tmp_path: Path) -> None:
    """A table whose cells have changed is another one."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(60, 3)).round(3)

    def write() -> None:
        rows = "\n".join(",".join(map(str, row)) for row in table)
        (tmp_path / "t.csv").write_text(f"a,b,y\n{rows}\n")

    write()
    data = f"dataset=tabular dataset.path={tmp_path}/t.csv dataset.target=y dataset.task=regression"
    name = broken_off(tmp_path, data)
    table[7, 1] += 0.5
    write()
    with pytest.raises(ConfigError, match=r"its data\.sha256 was .*, and is "):
        run(tmp_path, [f"resume={name}"])
    assert newest().end["status"] == "KILLED", "it is what it was"
    table[7, 1] -= 0.5
    write()
    assert run(tmp_path, [f"resume={name}"]).status == "FINISHED"


def test_a_nodes_other_file_is_refused(tmp_path: Path) -> None:
    """Two cells change places, which neither rows nor moments tell; the digest does."""
    rng = np.random.default_rng(0)
    tables = [rng.integers(0, 9, size=(30, 3)) for _ in range(2)]
    files = [tmp_path / f"{k}.csv" for k in range(2)]

    def write() -> None:
        for file, table in zip(files, tables, strict=True):
            rows = "\n".join(",".join(map(str, row)) for row in table)
            file.write_text(f"a,b,y\n{rows}\n")

    def flower(*words: str) -> str | None:
        run_config = {"overrides": " ".join(words), "output-dir": str(tmp_path)}
        nodes = [{"data": str(file)} for file in files]
        run_in_process(server_app, client_app, 2, run_config=run_config, node_configs=nodes)
        return read_result(str(tmp_path)).weights_sha256

    write()
    named = f"dataset.path={files[0]} dataset.target=y dataset.task=regression"
    words = words_of(f"dataset=tabular {named} num_clients=2")
    whole = flower(*words)
    with interrupted("aggregate_train", 3):
        flower(*words)
    name = newest().name
    was = tables[1][[3, 7], 0]
    assert was[0] != was[1]
    tables[1][[3, 7], 0] = was[::-1]
    write()
    with pytest.raises(ConfigError, match=r"its clients/roster\.json was .*, and is "):
        flower(f"resume={name}")
    tables[1][[3, 7], 0] = was
    write()
    assert flower(f"resume={name}") == whole


def test_a_strategy_that_cannot_tell_its_state_is_named_before_round_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its run is not offered to go on."""
    monkeypatch.setattr("fl_app.experiment.strategy_state.FLOWERS", {})
    with interrupted("aggregate_train", 3):
        run(tmp_path, words_of())
    out = capsys.readouterr().out
    said = "this run cannot be resumed: FedAvg has no state_dict() and load_state_dict()"
    assert out.index(said) < out.index("round 0/")
    assert "go on with" not in out
    with pytest.raises(ConfigError, match="none of this home broke off"):
        run(tmp_path, [*words_of(), "resume=last"])


# ---------------------------------------------------------------------------- MLflow


def test_mlflow_has_one_run_with_each_value_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RUNNING again, FINISHED in the end, `final` and `best` once, and Flower's both runs named."""
    import mlflow

    given = words_of("tracking=mlflow", "tracking.figures=false")
    with interrupted("aggregate_train", 3):
        run(tmp_path, given)
    assert f"go on with: fl-app resume={newest().name}" in capsys.readouterr().out
    again = run(tmp_path, [*given, "resume=last"])
    client = mlflow.MlflowClient(f"sqlite:///{home_dir()}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [r.info.run_id for r in runs] == [again.run_id]
    assert runs[0].info.status == "FINISHED"
    assert len(runs[0].data.tags["flwr.run_ids"].split()) == 2
    for key in runs[0].data.metrics:
        steps = [m.step for m in client.get_metric_history(str(again.run_id), key)]
        assert len(steps) == len(set(steps))
    losses = client.get_metric_history(str(again.run_id), "server/log_loss")
    assert sorted(m.step for m in losses) == [*range(ROUNDS + 1)]
    assert runs[0].info.end_time >= max(m.timestamp for m in losses)
    experiment = runs[0].info.experiment_id
    models = client.search_logged_models([experiment])
    assert sorted(m.name for m in models) == ["best", "final"]


def test_a_run_that_was_deleted_meanwhile_is_made_anew(tmp_path: Path) -> None:
    """With all its rounds."""
    import mlflow

    given = words_of("tracking=mlflow", "tracking.figures=false")
    with interrupted("aggregate_train", 3):
        run(tmp_path, given)
    client = mlflow.MlflowClient(f"sqlite:///{home_dir()}/mlflow.db")
    old = str(newest().sent["run_id"])
    client.delete_run(old)
    again = run(tmp_path, [*given, "resume=last"])
    assert again.run_id != old
    losses = client.get_metric_history(str(again.run_id), "server/log_loss")
    assert [m.step for m in losses] == [*range(ROUNDS + 1)]


def test_runs_says_what_can_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list names the run that broke off."""
    name = broken_off(tmp_path)
    capsys.readouterr()
    assert fl_kit(monkeypatch, "runs") == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert "yes" in row.split()
