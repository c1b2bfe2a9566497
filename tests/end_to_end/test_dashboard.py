"""The page in a real browser: start, watch, choose rounds, stop, come back, compare, be refused."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_app.dashboard import arguments, choices, process_control, processes, run_files
from fl_app.dashboard.choices import Choices
from fl_app.dashboard.live import Tail
from fl_app.dashboard.view import RunView
from tests.dashboard.test_app import BAD as BAD_VALUES
from tests.dashboard.test_app import LESSON
from tests.dashboard.test_uploads import BAD as BAD_FILES
from tests.dashboard.test_uploads import GOOD
from tests.end_to_end.browser import NARROW, Server, Tab, browsing, serving
from tests.recorded import LIVING, Record, real_runs, round_line

pytestmark = pytest.mark.slow

QUICK = {"dataset": "iris", "clients": 3, "rounds": 3}
LONG = Choices(model="mlp", local_epochs=100, rounds=500)
Open = Callable[..., Tab]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return the server of all these tests; in the end it has listened and spoken here alone."""
    with serving(tmp_path_factory.mktemp("page")) as found:
        yield found
        listening, others = found.sockets()
        assert listening == [f"127.0.0.1:{found.port}"]
        assert {address.partition(":")[0] for address in others} <= {"127.0.0.1"}
        assert "Traceback" not in found.log.read_text()


@pytest.fixture(scope="module")
def context(browser: Any, server: Server) -> Iterator[Any]:
    """Return a browser of one user, with its cookies."""
    found = browser.new_context()
    yield found
    found.close()


@pytest.fixture
def open_tab(context: Any, server: Server) -> Iterator[Open]:
    """Return what opens tabs; in the end none of them has complained or left this machine."""
    tabs = []

    def opened(
        viewport: Any = None, within: Any = context, at: Server = server, **query: Any
    ) -> Tab:
        tab = Tab(within, at.link(**query), **({"viewport": viewport} if viewport else {}))
        tabs.append(tab)
        return tab.ready()

    yield opened
    for tab in tabs:
        tab.close()


@pytest.fixture(scope="module")
def lesson(server: Server) -> RunView:
    """Return a run of the lesson, over, as the page reads it."""
    return real_runs(server.home, ["experiment=two_lines"])[0]


def mlflow_status(server: Server, launch_id: str) -> str:
    """Return what MLflow's store says of a launch's run."""
    (head,) = [head for head in run_files.runs(server.home) if head.launch == launch_id]
    view = Tail(server.home, head.name).read()
    assert view is not None
    with sqlite3.connect(server.home / "mlflow.db") as store:
        run_id = view.mlflow.url.rpartition("/runs/")[2].partition("?")[0]
        found = store.execute("SELECT status FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
    return str(found[0])


def newest(tab: Tab) -> int:
    """Return the newest round that the picture has."""
    tab.picture("round").wait_for()
    return int(tab.picture("round").get_attribute("max"))


def explained(tab: Tab, server_round: int) -> None:
    """Wait until the explanation is of a round, and see that the picture is too."""
    tab.sees(f"What the server made of round {server_round}")
    tab.sees(f"What the models know after round {server_round}")
    tab.until(lambda: f"round {server_round} of " in tab.picture("say").inner_text())


# ---------------------------------------------------------------------------- start and watch
def test_the_lesson_is_started_and_watched_to_its_end(open_tab: Open, server: Server) -> None:
    """By its name; the run is MLflow's then, and a link leads there."""
    tab = open_tab(example=LESSON, rounds=4)
    tab.sees("4 rows train on 2 clients")
    name = tab.start()
    tab.badge("running", "finished")
    tab.badge("finished")
    explained(tab, 4)
    assert tab.button("Stop").is_disabled()
    assert tab.query == {"example": LESSON, "rounds": "4", "run": name}
    link = tab.page.get_by_role("link", name="MLflow")
    link.wait_for()
    assert mlflow_status(server, name) == "FINISHED"
    assert tab.page.locator(".vega-embed canvas, .vega-embed svg").count() >= 3


def test_a_round_is_chosen_by_slider_keyboard_and_play(open_tab: Open, lesson: RunView) -> None:
    """And the explanation follows: round 3's products add up to what the server recorded."""
    tab = open_tab(run=lesson.name)
    explained(tab, 5)
    tab.picture("round").fill("3")
    explained(tab, 3)
    recorded = lesson.rounds[3].aggregation["aggregate"]

    def rows() -> dict[str, dict[str, str]]:
        return {row["client"]: row for row in tab.table("n_k/N")}

    def sum_is_there() -> bool:
        cell = rows().get("Σ", {}).get("n_k/N · coef.x")
        return cell is not None and abs(float(cell) - recorded["coef"][0][0]) < 1e-6

    tab.until(sum_is_there)
    for column, array in (("n_k/N · coef.x", "coef"), ("n_k/N · intercept", "intercept")):
        told = {client: float(row[column]) for client, row in rows().items()}
        value = float(np.ravel(recorded[array])[0])
        assert told["0"] + told["1"] == pytest.approx(value, abs=1e-6)
        assert [told["Σ"], told["FedAvg returned"]] == pytest.approx([value] * 2, abs=1e-6)
    tab.picture("pad").focus()
    tab.page.keyboard.press("ArrowLeft")
    explained(tab, 2)
    tab.picture("speed").select_option("very fast")
    tab.picture("play").click()
    explained(tab, 5)
    tab.picture("round").fill("0")
    tab.sees("Nothing was sent yet")


# ---------------------------------------------------------------------------- come back, stop
class TestARunThatGoesOn:
    """For longer than these tests look at it."""

    @pytest.fixture(scope="class")
    def going(self, server: Server) -> Iterator[processes.Launch]:
        words = arguments.overrides(LONG, server.home)
        found = process_control.start(server.home, words, choices=choices.to_query(LONG))
        yield found
        process_control.stop(found)

    def test_a_reload_in_the_middle_finds_it(self, open_tab: Open, going: processes.Launch) -> None:
        tab = open_tab(run=going.id)
        tab.badge("running")
        before = newest(tab)
        tab.page.reload()
        tab.ready().badge("running")
        tab.until(lambda: newest(tab) > before)
        assert tab.query["run"] == going.id
        assert tab.button("Stop").is_enabled()

    def test_it_outlives_the_pages_server(
        self, open_tab: Open, server: Server, going: processes.Launch
    ) -> None:
        """Started again, it has the run: in the tab that was open, and by the same link."""
        tab = open_tab(run=going.id)
        tab.badge("running")
        before = newest(tab)
        server.end()
        tab.page.wait_for_timeout(500)
        assert going.running
        server.start()
        tab.until(lambda: newest(tab) > before)
        tab.badge("running")
        tab.until(lambda: tab.query.get("run") == going.id)
        other = open_tab(run=going.id)
        other.badge("running")
        assert newest(other) >= before
        tab.forgive_an_absent_server()


def test_another_browser_finds_a_run_and_stops_it(
    open_tab: Open, browser: Any, server: Server
) -> None:
    """It is "stopping" until its process is gone, in both; MLflow has it as KILLED."""
    tab = open_tab(**choices.to_query(LONG))
    name = tab.start()
    tab.badge("running")
    newest(tab)
    elsewhere = browser.new_context()
    other = open_tab(within=elsewhere)
    other.page.get_by_label("Runs on this machine").click()
    other.page.get_by_role("option", name=re.compile("digits fedavg seed 0 .running")).first.click()
    assert other.shown() == name
    other.badge("running")
    launch = processes.get(name, server.home)
    assert launch is not None
    other.button("Stop", disabled=False).click()
    other.badge("stopping", "stopped")
    tab.badge("stopping", "stopped")
    for each in (other, tab):
        each.badge("stopped")
        assert launch.process.is_gone()
        each.sees("stopped in round")
        each.button("Stop", disabled=True).wait_for()
    assert mlflow_status(server, name) == "KILLED"


# ---------------------------------------------------------------------------- side by side
def test_two_strategies_side_by_side(open_tab: Open) -> None:
    """One click, one sweep; at equal rounds, at equal bytes, and no winner of one seed."""
    tab = open_tab(**QUICK, both="true")
    tab.start()
    tab.badge("finished")
    tab.sees("Side by side, on one split")
    tab.sees("At equal rounds: round 3")
    tab.sees(re.compile("^At equal bytes: "))
    tab.sees("One seed is an anecdote")
    tab.sees("seed=range")
    tab.until(lambda: sum("method" in found[0] for found in tab.tables()) == 2)
    for table in tab.tables():
        if "method" in table[0]:
            assert [row["method"] for row in table] == ["fedavg", "fedstacking"]
    tab.page.get_by_role("radio", name="fedstacking").click()
    tab.sees("What the server made of round 3")
    tab.page.set_viewport_size(NARROW)
    assert fits(tab)


# ---------------------------------------------------------------------------- bad input
def test_a_file_of_ones_own_good_and_bad(open_tab: Open) -> None:
    """Five kinds of bad files are a sentence each; a good one can be started from."""
    tab = open_tab()
    tab.page.get_by_label("Data", exact=True).click()
    tab.page.get_by_role("option", name="a CSV file of your own").click()
    given = tab.page.locator("input[type=file]")
    for kind in ("a picture", "latin-1", "one column", "no rows", "ragged"):
        content, says = BAD_FILES[kind]
        file = {"name": f"{kind}.csv", "mimeType": "text/csv", "buffer": content}
        given.set_input_files([file])
        tab.sees(re.compile(f"file={kind}.csv: .*{re.escape(says)}"))
        assert tab.button("Start").is_disabled()
    rows = GOOD + b"".join(b"%d,Ulm,%d\n" % (k, k % 2) for k in range(60))
    given.set_input_files([{"name": "own.csv", "mimeType": "text/csv", "buffer": rows}])
    tab.sees(re.compile("^The split: "))
    tab.button("Start", disabled=False).wait_for()
    tab.sees("What fl-kit check says").click()
    tab.sees("64 rows, 3 columns")
    assert re.fullmatch("[0-9a-f]{16}", tab.query["upload"])
    assert tab.page.get_by_text("file=").count() == 0


@pytest.mark.parametrize("part", range(3))
def test_bad_values_in_every_field_of_the_address(open_tab: Open, part: int) -> None:
    """Each is a sentence; the page is as if they were not there."""
    some = [*BAD_VALUES][9 * part : 9 * part + 9]
    tab = open_tab(**{key: BAD_VALUES[key] for key in some})
    tab.sees(re.compile("^The split: 1298 rows train on 10 clients"))
    warnings = tab.page.locator(".stMain [data-testid=stAlert]")
    tab.until(lambda: warnings.count() >= len(some))
    told = {re.split("[=:]", text)[0].split()[-1] for text in warnings.all_inner_texts()}
    assert told >= set(some)
    assert tab.query == {}
    tab.button("Start", disabled=False).wait_for()


def test_choices_that_cannot_run_and_numbers_out_of_range(open_tab: Open) -> None:
    """A sentence, and no Start, until they are mended."""
    tab = open_tab(dataset="iris", clients=500)
    tab.sees("num_clients=500: at most one client a training")
    assert tab.button("Start").is_disabled()
    clients = tab.page.get_by_label("Clients K")
    clients.fill("3")
    clients.press("Enter")
    tab.button("Start", disabled=False).wait_for()
    rounds = tab.page.get_by_label("Rounds", exact=True)
    rounds.fill("100000")
    rounds.press("Enter")
    tab.page.get_by_label("Seed").focus()
    tab.button("Start", disabled=False).wait_for()
    assert int(tab.query.get("rounds", 20)) <= 500


def test_a_wrong_token_opens_nothing(browser: Any, server: Server) -> None:
    """Not the page, not its script, and nothing of it is loaded."""
    context = browser.new_context()
    page = context.new_page()
    for query in ("", f"?token={'0' * 64}", "?token=%00&rounds=3"):
        answer = page.goto(f"http://127.0.0.1:{server.port}/{query}")
        assert answer.status == 403
        assert "needs its token" in page.content() or "token" in page.inner_text("body")
        assert page.locator("script").count() == 0
    assert context.cookies() == []
    context.close()


# ---------------------------------------------------------------------------- what goes wrong
def test_by_keyboard_alone_a_run_that_fails_names_client_and_reason(open_tab: Open) -> None:
    """Tab to Start, Enter; a reply is missing, and the page says whose and why."""
    tab = open_tab(**QUICK, min_replies=3, faulty=1, fault="crash")
    tab.button("Start", disabled=False).wait_for()
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        if tab.page.evaluate("document.activeElement.innerText").endswith("Start"):
            break
    tab.page.keyboard.press("Enter")
    tab.shown()
    tab.badge("failed")
    tab.sees(re.compile("partition 2.*crashed on purpose"))
    tab.sees("Log and command")


def test_a_client_that_fails_is_named_with_its_reason(open_tab: Open, server: Server) -> None:
    """In the picture of the round, and in its explanation."""
    words = [f"{key}={value}" for key, value in (("dataset", "iris"), ("num_clients", 3))]
    words += ["num_server_rounds=4", "faults.clients=1", "faults.kind=crash"]
    (view,) = real_runs(server.home, words)
    lost = next(r for r in view.rounds if r.train.failed)
    tab = open_tab(run=view.name)
    tab.sees("What the server made of round 4")
    tab.picture("round").fill(str(lost.server_round))
    tab.sees(f"What the server made of round {lost.server_round}")
    tab.sees(re.compile("client 2 failed: .*crashed on purpose"))
    tab.until(lambda: any("reason" in found[0] for found in tab.tables()))
    (row,) = [row for row in tab.table("reason") if row["to"] == "train"]
    assert row["client"] == "2"
    assert "crashed on purpose" in row["reason"]


def test_without_mlflow_rounds_are_shown_and_it_is_said(
    browser: Any, tmp_path: Path, open_tab: Open
) -> None:
    """A tracking server that is not there costs no run, and no round of the picture."""
    context = browser.new_context()
    with serving(tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9") as away:
        tab = open_tab(within=context, at=away, **QUICK)
        tab.start()
        tab.badge("finished")
        tab.sees("What the server made of round 3")
        tab.sees("the rest waits on this machine")
        tab.page.goto("about:blank")
    assert "Traceback" not in away.log.read_text()


# ---------------------------------------------------------------------------- for everybody
def fits(tab: Tab) -> bool:
    """Return whether the page is as wide as its window."""
    read = "e => [e.scrollWidth, e.clientWidth]"
    parts = (tab.page.locator(part).first.evaluate(read) for part in ("html", ".stMain"))
    return all(width <= room + 1 for width, room in parts)


def test_at_800_pixels_nothing_is_cut(open_tab: Open, lesson: RunView) -> None:
    """With the choices beside it, and without."""
    tab = open_tab(viewport=NARROW, run=lesson.name)
    explained(tab, 5)
    tab.page.locator(".vega-embed").nth(5).wait_for()
    assert fits(tab)
    tab.page.set_viewport_size({"width": 640, "height": 900})
    tab.page.wait_for_timeout(300)
    assert fits(tab)


def test_who_prefers_no_motion_gets_none(browser: Any, open_tab: Open, lesson: RunView) -> None:
    """Rounds follow each other, but nothing travels."""
    tab = open_tab(within=browser.new_context(reduced_motion="reduce"), run=lesson.name)
    explained(tab, 5)
    tab.picture("round").fill("1")
    explained(tab, 1)
    tab.picture("play").click()
    places = set()
    while "round 5 of" not in tab.picture("say").inner_text():
        places.add(tab.picture("mover.down").get_attribute("cy"))
    assert len(places) == 1
    explained(tab, 5)


# ---------------------------------------------------------------------------- many clients
K, R = 100, 500


def many(home: Path, name: str, rounds: int) -> Record:
    """Record a run of 100 clients that goes on."""
    record = Record(home, name).begin()
    record.start(params={"num_clients": str(K)}, process=LIVING, num_server_rounds=R)
    record.events(("roster", {"nodes": [[k, 13 + k, 4] for k in range(K)]}))
    for server_round in range(rounds + 1):
        record.line(many_line(server_round))
    return record


def many_line(server_round: int) -> dict[str, Any]:
    """Return a line as a real run writes it: 26 kB, no number like another."""
    draw = np.random.default_rng(server_round).random
    norms, scores = draw(K).tolist(), draw((K, 3)).round(12).tolist()
    clients = [
        {"partition": k, "num_examples": 13 + k, "weight": 0.01, "arrays": {"norm": norms[k]}}
        for k in range(K)
    ]
    told = {"rule": "FedAvg", "clients": clients, "asked": [*range(K)], "failed": {}}
    path = f"aggregation/round_{server_round:04d}.json"
    cost = {"cost/clients_asked": K, "cost/clients_replied": K}
    texts = {path: told | {"server_round": server_round}} if server_round else {}
    line = round_line(server_round, metrics=cost, clients=range(K), texts=texts)
    for row, values in zip(line["clients"], scores, strict=server_round > 0):
        row |= dict(zip(("accuracy", "log_loss", "brier"), values, strict=True))
    return line


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return what processes have used of processors."""
    used = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def descendants() -> set[int]:
    """Return the processes that this one has started, and theirs: the browser's, not the page's."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def resident(pid: int) -> float:
    """Return a process's memory in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def answer(tab: Tab, *rounds: int) -> float:
    """Return in how many seconds a choice of a round reaches the explanation, at best."""
    took = []
    for server_round in rounds:
        begin = time.perf_counter()
        tab.picture("round").fill(str(server_round))
        tab.sees(re.compile(rf"^What the server made of round {server_round}$"))
        took.append(time.perf_counter() - begin)
    return min(took)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
def test_many_clients_and_rounds_cost_little(browser: Any, tmp_path: Path) -> None:
    """100 clients, 500 rounds, going on: below one core, 60 MB; a choice is answered in time."""
    context = browser.new_context()
    with serving(tmp_path) as server:
        (lesson,) = real_runs(server.home, ["experiment=two_lines"])
        tab = Tab(context, server.link()).ready()
        tab.sees(re.compile("^The split: "))
        tab.page.goto(server.link(run=lesson.name))
        explained(tab, 5)
        quick = answer(tab, 1, 2, 3, 4)
        idle = resident(server.process.pid)  # with all that a page of any run imports
        record = many(server.home, "20360102-030405-0123abcd", R - 20)
        tab.page.goto(server.link(run=record.name))
        tab.sees(f"What the server made of round {R - 20}")
        browsers = descendants() - {server.process.pid}
        before, begin = cpu_seconds(browsers), time.monotonic()
        for server_round in range(R - 19, R - 9):
            record.line(many_line(server_round))
            tab.page.wait_for_timeout(1000)
        cores = (cpu_seconds(browsers) - before) / (time.monotonic() - begin)
        slow = answer(tab, 100, 200, 300, 400)
        grown = resident(server.process.pid) - idle
        tab.close()
    told = (
        f"{cores:.2f} cores, {grown:.0f} MB over {idle:.0f}, {slow:.2f} s, the lesson {quick:.2f} s"
    )
    print(told)
    assert cores < 1, told
    assert grown < 60, told
    assert slow < max(1.0, 6 * quick), told
