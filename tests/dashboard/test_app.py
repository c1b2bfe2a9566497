"""The page's script without a browser: what it shows, what it takes, and what it never does."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="Streamlit is not installed")
from streamlit.testing.v1 import AppTest

from fl_app.dashboard import (
    app,
    arguments,
    choices,
    process_control,
    processes,
    run_files,
    split,
    uploads,
)
from fl_app.dashboard.choices import EXAMPLES, Choices
from fl_app.dashboard.view import RunView
from fl_app.errors import InputError
from fl_app.tracking.journal_reader import JournalReader
from tests.recorded import GONE, NAME, Record, real_runs

PAGE = Path(app.__file__).with_name("page.py")
LESSON = "The lesson: a weighted average"
OTHER = "20260102-030406-0123abcd"
CHEAP = Choices(dataset="iris", clients=3, rounds=3)
"""Choices that are dealt and checked in no time."""


@pytest.fixture(autouse=True)
def _main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back what AppTest takes: processes that are spawned later begin with ``__main__``."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "fl_app_home"


def opened(query: Mapping[str, str] = {}, chosen: Choices = CHEAP) -> AppTest:
    """Open the page in a tab of its own; whatever happens, no traceback is on it."""
    at = AppTest.from_file(PAGE, default_timeout=60)
    for key, value in {**choices.to_query(chosen), **query}.items():
        at.query_params[key] = value
    return whole(at.run())


def whole(at: AppTest) -> AppTest:
    """Return a page that has all its parts and shows no exception."""
    assert [e.value for e in at.exception] == []
    assert {"Start", "Stop"} <= {b.label for b in at.button}
    assert at.selectbox(key="c_data").options
    return at


def button(at: AppTest, label: str) -> Any:
    return next(b for b in at.button if b.label == label)


def chosen_in(at: AppTest) -> Choices:
    found = at.session_state["chosen"]
    assert isinstance(found, Choices)
    return found


def query_of(at: AppTest) -> dict[str, str]:
    """Return the address; AppTest keeps a list a key once a test has set one."""
    return {k: v if isinstance(v, str) else v[0] for k, v in at.query_params.items()}


def said(at: AppTest) -> str:
    """Return all that stands on the page as text, as it is read."""
    parts = [e.value for kind in (at.markdown, at.subheader, at.error, at.warning) for e in kind]
    return "\n".join(part.replace("\\", "") for part in parts)


def tables(at: AppTest) -> list[Any]:
    return [e.value for e in at.dataframe]


# ---------------------------------------------------------------------------- choices
def test_it_opens_on_the_defaults() -> None:
    """Nothing is complained of, the split is there, and nothing is in the address."""
    at = opened(chosen=Choices())
    assert chosen_in(at) == Choices()
    assert query_of(at) == {}
    assert (list(at.error), list(at.warning)) == ([], [])
    assert (button(at, "Start").disabled, button(at, "Stop").disabled) == (False, True)
    assert at.main.expander[0].label.startswith("The split: ")
    assert len(at.main.get("vega_lite_chart") or at.main.get("arrow_vega_lite_chart")) == 2
    assert "Press **Start**" in at.info[0].value


def test_an_example_sets_every_field() -> None:
    """Whatever was chosen before, also by the example before; the address names it alone."""
    at = opened({"rounds": "7", "fraction": "0.5"}, Choices(dataset="wine", strategy="krum"))
    for name, example in EXAMPLES.items():
        at.selectbox(key="c_example").set_value(name).run()
        whole(at)
        found = chosen_in(at)
        differ = [f.name for f in fields(Choices) if vars(found)[f.name] != vars(example)[f.name]]
        assert differ == [], name
        assert query_of(at) == {"example": name}
        assert choices.LOOK_AT[name] in [m.value for m in at.sidebar.markdown]
        assert not button(at, "Start").disabled


def test_what_is_chosen_stands_in_the_address_and_comes_back() -> None:
    """Another tab with the same address has the same choices."""
    at = opened()
    at.selectbox(key="c_partitioner").set_value("dirichlet")
    at.selectbox(key="c_strategy").set_value("fedadam")
    at.number_input(key="c_rounds").set_value(4)
    at.number_input(key="c_clients").set_value(5)
    at.select_slider(key="c_fraction").set_value(0.4)
    at.selectbox(key="c_learning_rate").set_value(0.03)
    whole(at.run())
    at.select_slider(key="c_alpha").set_value(0.1)
    whole(at.run())
    expected = replace(
        CHEAP,
        partitioner="dirichlet",
        alpha=0.1,
        strategy="fedadam",
        rounds=4,
        clients=5,
        fraction=0.4,
        learning_rate=0.03,
    )
    assert chosen_in(at) == expected
    assert query_of(at) == choices.to_query(expected)
    again = opened(query_of(at), Choices())
    assert chosen_in(again) == expected
    assert (list(again.error), list(again.warning)) == ([], [])


BAD = {
    "example": "no such thing",
    "dataset": "../../etc/passwd",
    "partitioner": "$(reboot)",
    "alpha": "nan",
    "clients": "99999",
    "model": "mlp;rm",
    "strategy": "<script>alert(1)</script>",
    "both": "maybe",
    "rounds": "-1",
    "fraction": "2",
    "seed": "1e9",
    "min_replies": "0",
    "local_epochs": "x" * 5000,
    "batch_size": "1.5",
    "learning_rate": "inf",
    "runtime": "deployment",
    "faulty": "-3",
    "fault": "sabotage",
    "upload": "../../../etc/passwd",
    "target": "y",
    "task": "clustering",
    "key": "k",
    "features": "[1",
    "output_dir": "/tmp/x",
    "tracking.uri": "http://elsewhere.example",
}


def test_each_bad_value_of_the_address_is_one_sentence() -> None:
    """The page is whole, and what is wrong is as if it were not there."""
    for some in (list(BAD)[:9], list(BAD)[9:18], list(BAD)[18:]):
        at = opened({key: BAD[key] for key in some}, Choices())
        texts = [warning.value.replace("\\", "") for warning in at.warning]
        assert sorted(re.split("[=:]", text)[0] for text in texts) == sorted(some)
        assert all(len(text) < 600 and "\n" not in text for text in texts)
        assert chosen_in(at) == Choices()
        assert query_of(at) == {}
        assert not button(at, "Start").disabled


def test_what_cannot_run_is_a_sentence_and_start_is_disabled() -> None:
    """Until it is mended; what a number may be at most is never exceeded."""
    at = opened(chosen=replace(CHEAP, clients=500))
    assert [e.value.replace("\\", "") for e in at.error] == [
        arguments.check(replace(CHEAP, clients=500))
    ]
    assert button(at, "Start").disabled
    assert not any(e.label.startswith("The split") for e in at.main.expander)
    at.number_input(key="c_clients").set_value(3)
    whole(at.run())
    assert list(at.error) == []
    assert not button(at, "Start").disabled


def test_other_data_take_along_what_fits_alone() -> None:
    """A split, a model or a client number that the new data do not know goes; the rounds stay."""
    at = opened({"seed": "3"}, replace(EXAMPLES["Four hospitals"], rounds=9))
    assert at.number_input(key="c_fixed").value == 4
    at.selectbox(key="c_data").set_value("two_lines")
    whole(at.run())
    assert list(at.error) == []
    found = chosen_in(at)
    assert (found.dataset, found.partitioner, found.rounds) == ("two_lines", "natural", 9)
    assert at.number_input(key="c_fixed").value == 2
    at.selectbox(key="c_data").set_value("iris")
    whole(at.run())
    assert chosen_in(at) == Choices(dataset="iris", rounds=9)
    assert list(at.error) == []


def test_a_file_of_ones_own() -> None:
    """What `fl-kit check` says stands beside it; without a file there is nothing to start."""
    at = opened()
    at.selectbox(key="c_data").set_value(app._OWN_FILE)
    whole(at.run())
    assert button(at, "Start").disabled
    rows = "".join(f"{k},{k % 7},{'ab'[k % 2]}\n" for k in range(60)).encode()
    at.file_uploader(key="c_file").upload("bad.csv", b"x\n1\n", "text/csv")
    whole(at.run())
    assert "file=bad.csv: it has one column only" in said(at)
    assert button(at, "Start").disabled
    at.file_uploader(key="c_file").upload("own.csv", b"x,z,kind\n" + rows, "text/csv")
    whole(at.run())
    assert "file=" not in said(at)
    kept = chosen_in(at).upload
    assert query_of(at) == {"rounds": "3", "upload": kept, "target": "kind"}
    at = opened({"upload": kept}, Choices(clients=3, rounds=2))
    assert list(at.error) == []
    assert at.selectbox(key="c_target").value == "kind"
    assert "60 rows, 3 columns" in said(at)
    assert not button(at, "Start").disabled
    at.selectbox(key="c_target").set_value("x")
    whole(at.run())
    assert query_of(at)["target"] == "x"
    assert "target: x" in said(at)


# ---------------------------------------------------------------------------- start and stop
QUICK = """
import json, pathlib, sys
(pathlib.Path("0")).mkdir()
pathlib.Path("0/result.json").write_text(json.dumps({"status": "FINISHED", "error": ""}))
print("did", *sys.argv[1:])
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what is started end at once."""
    monkeypatch.setattr(process_control, "_COMMAND", (sys.executable, "-c", QUICK))
    yield
    assert all(not launch.running or launch.process.is_gone() for launch in processes.find())


@pytest.mark.usefixtures("quick")
def test_start_writes_a_launch_of_these_choices(home: Path) -> None:
    """The address then names it, and a tab that is opened by it shows the same."""
    at = opened()
    button(at, "Start").click()
    whole(at.run())
    (launch,) = processes.find(home)
    assert list(launch.overrides) == arguments.overrides(CHEAP)
    assert launch.choices == choices.to_query(CHEAP)
    assert query_of(at) == {**choices.to_query(CHEAP), "run": launch.id}
    again = opened({"run": launch.id})
    assert again.selectbox(key="c_run").value == launch.id
    assert "iris fedavg seed 0" in again.selectbox(key="c_run").options[0]
    assert any("num_server_rounds=3" in code.value for code in again.code)


@pytest.mark.usefixtures("quick")
def test_a_run_whose_file_is_gone_says_so(home: Path) -> None:
    """Also where it is chosen in the list: what is chosen then is not what has run."""
    kept = uploads.save(None, b"x,y\n" + b"1,0\n2,1\n" * 30, "own.csv")
    chosen = Choices(upload=kept.id, target="y", clients=2, rounds=2)
    words = arguments.overrides(chosen)
    launch = process_control.start(home, words, choices=choices.to_query(chosen))
    kept.path.unlink()
    assert f"dataset.path={kept.path}" in arguments.five_seeds(launch.overrides)
    at = opened()
    at.selectbox(key="c_run").set_value(launch.id)
    whole(at.run())
    assert "there is no such file any more" in at.warning[0].value


def test_a_start_and_a_stop_that_fail_are_sentences(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise InputError("start", "run 5", "at most 4 runs at a time: wait for one to end")

    monkeypatch.setattr(process_control, "start", refuse)
    at = opened()
    button(at, "Start").click()
    whole(at.run())
    assert "start=run 5: at most 4 runs at a time" in at.error[0].value.replace("\\", "")
    assert "run" not in query_of(at)
    assert list(at.run().error) == [], "it is said once"


# ---------------------------------------------------------------------------- runs on the disk
@pytest.fixture
def lesson(home: Path) -> RunView:
    return real_runs(home, ["experiment=two_lines"])[0]


def test_a_run_of_the_command_line_is_shown_whole(lesson: RunView) -> None:
    """Its last round explained: the products on the page add up to the aggregate there."""
    at = opened({"run": lesson.name})
    text = said(at)
    assert "finished after 5 rounds" in text
    assert "What the server made of round 5" in text
    assert "What the models know after round 5" in text
    assert button(at, "Stop").disabled
    assert "two_lines fedavg seed 0 (finished)" in at.selectbox(key="c_run").options[0]
    assert query_of(at)["run"] == lesson.name
    made = next(t for t in tables(at) if "n_k/N" in t.columns).set_index("client")
    assert list(made.index) == ["0", "1", "Σ", "FedAvg returned"]
    recorded = lesson.rounds[-1].aggregation["aggregate"]
    for name in ("coef.x", "intercept"):
        product = made[f"n_k/N · {name}"]
        value = np.ravel(recorded[name.partition(".")[0]])[0]
        assert product[["0", "1"]].sum() == pytest.approx(value, abs=1e-6)
        assert product[["Σ", "FedAvg returned"]].tolist() == pytest.approx([value] * 2, abs=1e-6)


def test_a_private_run_says_why_there_is_nothing_of_a_client(home: Path) -> None:
    told = {"rule": "FedAvg", "num_examples": None, "clients": [], "aggregate": {"norm": 1.0}}
    cost = {"cost/clients_asked": 4, "cost/clients_replied": 3, "cost/clients_failed": 1}
    record = Record(home, sent=True).begin(GONE)
    params = {"privacy.name": "dp_fixed", "num_clients": "4"}
    texts = {"config/config.yaml": "num_clients: 4\ndataset: {name: iris}\n"}
    record.start(params=params, process=GONE, texts=texts).rounds(0, clients=())
    record.rounds(1, clients=(), metrics=cost, texts={"aggregation/round_0001.json": told})
    record.end()
    at = opened({"run": NAME})
    assert "Under differential privacy" in said(at)
    assert "4 clients were asked, 3 replied" in said(at)
    assert "The split of this run" not in [e.label for e in at.expander]


@pytest.mark.parametrize("now", ["gone", "another"])
def test_rows_that_are_not_those_of_the_run_are_not_shown(home: Path, now: str) -> None:
    """Neither as a split nor below what the models know; all else of the run is."""
    own = home / "own.csv"
    home.mkdir()
    own.write_text("a,b,y\n" + "1,2,u\n3,4,v\n" * 20)
    words = ["dataset=tabular", f"dataset.path={own}", "dataset.target=y", "num_clients=2"]
    (view,) = real_runs(home, [*words, "dataset.task=classification", "num_server_rounds=1"])
    assert split.GONE not in said(opened({"run": view.name}))
    own.unlink() if now == "gone" else own.write_text("a,b,y\n" + "2,1,v\n3,4,u\n" * 20)
    app._rows.clear()
    app._dealt_before.clear()
    at = opened({"run": view.name})
    assert list(at.error) == []
    assert said(at).count(split.GONE) == 2
    assert "The products add up to what FedAvg returned" in said(at)


def test_a_launch_that_could_not_write_its_end_says_why(home: Path) -> None:
    """As on a full disk: its log knows more than its record, which has no spec either."""
    record = Record(home, sent=True).begin(GONE)
    folder = home / "dashboard" / "launches" / "20260102-030405-000-0123abcd"
    record.start(process=GONE, output_dir=str(folder / "0")).rounds(0, 1)
    folder.mkdir(parents=True)
    launch = {"argv": [], "process": GONE, "time": 1.0, "overrides": [], "sweep": False}
    (folder / "launch.json").write_text(json.dumps(launch | {"choices": {}}))
    (folder / "log.txt").write_text("fl-app: no space left\n")
    at = opened({"run": folder.name})
    assert "ended in round 2: no space left" in said(at)
    assert "What kind of models these are is not recorded" in said(at)


BROKEN: dict[str, list[bytes]] = {
    "start": [b"{"],
    "rounds": [b'{"server_round": "x"}', b"\x00", b'{"server_round": 1, "metrics": {"a": "b"}}'],
    "events": [b'{"event": "roster", "nodes": [[1]]}', b"null", b'{"event": "model", "spec": 3}'],
    "notes": [b'{"texts": {"clients/roster.json": "[[["}}'],
    "end": [b'"x"'],
    "sent": [b'{"run_id": {}, "experiment_id": []}'],
}


@pytest.mark.parametrize("where", ["begun", "over"])
def test_broken_rows_are_shown_as_far_as_they_go(home: Path, where: str) -> None:
    record = Record(home, sent=True).begin(GONE)
    if where == "over":
        record.start(process=GONE).rounds(0, 1).end()
    with record.journal() as journal:
        for name, contents in BROKEN.items():
            many = name in ("rounds", "events", "notes")
            columns = {"rounds": "server_round, content", "events": "content", "notes": "content"}
            for content in map(zlib.compress, contents):
                if many:
                    marks = "7, ?" if name == "rounds" else "?"
                    query = f"INSERT INTO {name} ({columns[name]}) VALUES ({marks})"
                    journal._write([(query, (content,))])
                elif where == "begun":
                    query = "INSERT OR REPLACE INTO facts VALUES (?, ?)"
                    journal._write([(query, (name, content))])
    at = opened({"run": NAME})
    assert list(at.error) == []
    assert ("ended" if where == "begun" else "finished") in said(at)


@pytest.mark.parametrize(
    "name", [OTHER, "20260102-030405-000-0123abcd", "../../x", "<b>", "x" * 999]
)
def test_a_run_that_is_not_there_is_a_sentence(name: str) -> None:
    """And the address forgets it."""
    at = opened({"run": name})
    (error,) = at.main.error
    assert "there is no such run on this machine" in error.value
    assert len(error.value) < 200
    assert "run" not in query_of(at)


def test_a_run_that_vanishes_while_it_is_shown(lesson: RunView, home: Path) -> None:
    """Or in part; the page goes on."""
    at = opened({"run": lesson.name})
    record = Record(home, lesson.name)
    with record.journal() as journal:
        journal.drop_arrays("seen", range(100))
    whole(at.run())
    assert "What the models know" in said(at)
    shutil.rmtree(home / "runs" / lesson.name)
    whole(at.run())
    assert "there is no such run on this machine" in said(at)


def test_a_run_that_goes_on_says_what_it_does(home: Path) -> None:
    """Before round 0, in a round, and at its end."""
    record = Record(home).begin().events(("nodes", {"online": 3, "wanted": 4}))
    at = opened({"run": NAME})
    assert "waiting for nodes: 3 of 4" in said(at)
    record.start().rounds(0, 1)
    record.events(("asked", {"round": 2, "exchange": "train", "clients": [0, 1, 2]}))
    record.events(("reply", {"round": 2, "exchange": "train", "client": 1}))
    whole(at.run())
    assert "round 2 of 3: 1 of 3 clients have replied" in said(at)
    assert "What the server made of round 1" in said(at)
    record.rounds(2, 3).events(("end", {"status": "FAILED", "error": "client 1 failed: *no* $x$"}))
    record.end("FAILED", "client 1 failed: *no* $x$")
    whole(at.run())
    assert "failed: client 1 failed: *no* $x$" in said(at)


def test_two_runs_of_a_launch_stand_side_by_side(home: Path) -> None:
    """With both tables, and the command that runs five seeds."""
    jobs = ["dataset=iris", "num_clients=3", "num_server_rounds=3", "model.local_epochs=1"]
    real_runs(home, [*jobs, "strategy=fedavg"], [*jobs, "strategy=fedstacking"])
    folder = home / "dashboard" / "launches" / "20260102-030405-000-0123abcd"
    folder.mkdir(parents=True)
    launch = {
        "argv": ["-m", "strategy=fedavg,fedstacking"],
        "process": GONE,
        "time": 1.0,
        "overrides": ["strategy=fedavg,fedstacking", "seed=0"],
        "sweep": True,
        "choices": choices.to_query(replace(CHEAP, both=True)),
    }
    (folder / "launch.json").write_text(json.dumps(launch))
    for job, head in enumerate(reversed(run_files.runs(home))):
        (folder / str(job)).mkdir()
        (folder / str(job) / "result.json").write_text('{"status": "FINISHED"}')
        content = JournalReader(home / "runs" / head.name).start
        content["run"]["output_dir"] = str(folder / str(job))
        Record(home, head.name, sent=True).fact("start", content)
    run_files._STARTS.clear()
    at = opened({"run": folder.name})
    text = said(at)
    assert "Side by side, on one split" in text
    assert "At equal rounds: round 3" in text
    assert "At equal bytes" in text
    assert "One seed is an anecdote" in text
    assert any("seed=range(0,5)" in code.value for code in at.code)
    methods = [list(t["method"]) for t in tables(at) if "method" in t.columns]
    assert methods == [["fedavg", "fedstacking"]] * 2


# ---------------------------------------------------------------------------- errors of our own
def test_an_error_of_the_page_is_a_sentence(
    lesson: RunView, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a part of it that part alone; the log has the traceback."""

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("<b>division</b> by *zero*")

    with monkeypatch.context() as patch:
        patch.setattr(app.explain, "explain", broken)
        at = opened({"run": lesson.name})
        assert "This cannot be shown: " in at.error[0].value
        assert not button(at, "Start").disabled
    assert "Traceback" in caplog.text
    whole(at.run())
    assert list(at.error) == []
    monkeypatch.setattr(arguments, "check", broken)
    at.run()
    assert list(at.exception) == []
    assert "This cannot be shown: " in at.error[0].value
    assert "Runs are not affected" in at.error[0].value
