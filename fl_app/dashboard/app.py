"""The page: widgets and layout. What it knows comes from files; what it says, from pure functions.

Streamlit runs :func:`main` from top to bottom for each tab and each interaction, and the part that
shows a run once a second while the run goes on. A tab keeps nothing that matters: choices and the
run that is shown stand in its address, runs and launches on the disk.
"""

from __future__ import annotations

import html
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import streamlit as st

from fl_app.dashboard import (
    arguments,
    charts,
    choices,
    compare,
    explain,
    picture,
    process_control,
    processes,
    progress,
    regions,
    run_files,
    split,
    uploads,
)
from fl_app.dashboard.choices import Choices
from fl_app.dashboard.line_chart import Chart
from fl_app.dashboard.live import Tail
from fl_app.dashboard.metric_values import Metric, metrics
from fl_app.dashboard.processes import Launch
from fl_app.dashboard.replies import Table
from fl_app.dashboard.view import RunView
from fl_app.errors import FlAppError, InputError, one_line, printable
from fl_app.home import home_dir

__all__ = ["main"]

_LOG = logging.getLogger("fl_app")
_OWN_FILE = "a CSV file of your own"
_TICK, _SLOW_TICK, _MANY_ROUNDS = 1.0, 3.0, 200
_TALL, _SHORT = 14, 8
_Badge = Literal["blue", "orange", "green", "red"]
_BADGES: Mapping[str, tuple[_Badge, str]] = {
    **dict.fromkeys(("waiting", "starting", "running"), ("blue", ":material/autorenew:")),
    **dict.fromkeys(("stopping", "stopped", "killed"), ("orange", ":material/stop_circle:")),
    "finished": ("green", ":material/check:"),
}
_STYLE = Path(__file__).with_name("page.css")
_HTML, _CSS, _JS = picture.assets()
_exchange = st.components.v2.component("fl_app_exchange", html=_HTML, css=_CSS, js=_JS)


def main() -> None:
    """Draw the page; whatever goes wrong is one sentence on it."""
    st.set_page_config("fl_app: federated learning", layout="wide")
    st.html(_STYLE)
    try:
        _page(home_dir())
    except Exception as error:
        _excuse(error)


def _excuse(error: Exception) -> None:
    if not isinstance(error, FlAppError):
        _LOG.exception("the page could not be drawn")
    st.error(f"This cannot be shown: {_plain(one_line(error))}. Runs are not affected by it.")


def _page(home: Path) -> None:
    chosen, complaints = _begun(home)
    with st.sidebar:
        chosen = _widgets(chosen, home)
        fault = arguments.check(chosen, home)
        shown = _buttons(chosen, fault, home)
    st.session_state["chosen"] = chosen
    st.query_params.from_dict(choices.to_query(chosen) | ({"run": shown} if shown else {}))
    for text in complaints:
        st.warning(_plain(text))
    if failure := st.session_state.pop("failure", ""):
        st.error(_plain(failure))
    if fault:
        st.error(_plain(fault))
    elif _waits(chosen):
        st.info("Choose a CSV file on the left: its split appears here, then it can be started.")
        fault = "no file"
    else:
        _split(chosen, home, open_=not shown)
    if shown:
        active = run_files.goes_on(shown, home)
        tick = _SLOW_TICK if chosen.rounds > _MANY_ROUNDS else _TICK
        st.fragment(_watched, run_every=tick if active else None)(shown, home, active)
    elif not fault:
        st.info("Press **Start**: the run appears here. Every choice stands in the address.")


# ---------------------------------------------------------------------------- choices
def _begun(home: Path) -> tuple[Choices, Sequence[str]]:
    """Return the tab's choices; at its first run those of the address, with complaints."""
    if "chosen" not in st.session_state:
        query = st.query_params.to_dict()
        shown = st.session_state["shown"] = query.pop("run", "")
        launch = processes.get(shown, home)
        if launch is not None and not query:
            query = dict(launch.choices)
        chosen, complaints = choices.from_query(query, home)
        st.session_state["chosen"], st.session_state["complaints"] = chosen, complaints
    return st.session_state["chosen"], st.session_state.pop("complaints", ())


def _take(chosen: Choices) -> None:
    """Put choices into the widgets."""
    st.session_state["chosen"] = chosen
    st.session_state["complaints"] = ()
    st.session_state.pop("refused", None)
    for f in fields(Choices):
        st.session_state.pop(f"c_{f.name}", None)
    st.session_state["c_example"] = chosen.example or None
    st.session_state["c_data"] = _OWN_FILE if chosen.upload else chosen.dataset


def _take_example() -> None:
    if name := st.session_state["c_example"]:
        _take(choices.EXAMPLES[name])
    else:
        _take(replace(st.session_state["chosen"], example=""))


def _take_data() -> None:
    """Choose other data: what was chosen for the old ones goes."""
    name = st.session_state["c_data"]
    chosen = replace(Choices(), rounds=st.session_state["chosen"].rounds)
    if name != _OWN_FILE:
        fresh = replace(chosen, dataset=name)
        natural = "natural" in arguments.offered(fresh)["partitioner"]
        chosen = replace(fresh, partitioner="natural") if natural else fresh
    _take(chosen)
    st.session_state["c_data"] = name


def _take_file(home: Path) -> None:
    """Choose the file that was given; one that is refused leaves none chosen."""
    given = st.session_state["c_file"]
    if given is None:
        return
    chosen = replace(st.session_state["chosen"], upload="", target="", task="", key="", features=())
    refused = ""
    try:
        kept = uploads.save(home, given.getvalue(), given.name)
        chosen = replace(chosen, upload=kept.id, target=kept.target)
    except InputError as error:
        refused = str(error)
    _take(chosen)
    st.session_state["c_data"], st.session_state["refused"] = _OWN_FILE, refused


def _take_key() -> None:
    """Deal rows by a column that was chosen for that."""
    if st.session_state["c_key"]:
        st.session_state["c_partitioner"] = "natural"


def _key(name: str, value: Any, options: Sequence[Any] | None = None) -> str:
    """Return a widget's key, with a value in place where it has none or one that does not fit."""
    key = f"c_{name}"
    if key not in st.session_state or (
        options is not None and st.session_state[key] not in options
    ):
        fits = options is None or value in options
        st.session_state[key] = value if fits else (options[0] if options else None)
    return key


def _pick(
    label: str, name: str, chosen: Choices, options: Sequence[str], at: Any = st, **more: Any
) -> str:
    key = _key(name, getattr(chosen, name), options)
    return str(at.selectbox(label, options, key=key, **more))


def _number(
    label: str,
    name: str,
    chosen: Choices,
    high: float | None = None,
    low: int | None = None,
    at: Any = st,
    **more: Any,
) -> int:
    first, top = map(int, choices.LIMITS[name])
    low, top = first if low is None else low, int(top if high is None else high)
    key = _key(name, getattr(chosen, name))
    st.session_state[key] = min(max(int(st.session_state[key] or low), low), top)
    return int(at.number_input(label, low, top, step=1, key=key, **more))


def _widgets(chosen: Choices, home: Path) -> Choices:
    st.selectbox(
        "Start from",
        list(choices.EXAMPLES),
        key=_key("example", chosen.example or None, [*choices.EXAMPLES, None]),
        index=None,
        placeholder="a ready example",
        on_change=_take_example,
    )
    if chosen.example in choices.LOOK_AT:
        st.markdown(choices.LOOK_AT[chosen.example])
    data = [*choices.OPTIONS["dataset"], _OWN_FILE]
    name = st.selectbox(
        "Data",
        data,
        key=_key("data", _OWN_FILE if chosen.upload else chosen.dataset, data),
        on_change=_take_data,
    )
    chosen = _own_file(chosen, home) if name == _OWN_FILE else replace(chosen, dataset=name)
    ready = name != _OWN_FILE or chosen.upload
    options = arguments.offered(chosen, home) if ready else dict(choices.OPTIONS)
    return _experiment(chosen, options, home)


def _experiment(chosen: Choices, options: Mapping[str, tuple[str, ...]], home: Path) -> Choices:
    picked: dict[str, Any] = {}
    if not chosen.upload and (made := arguments.drawn(chosen.dataset)):
        for at, (name, number) in zip(st.columns(2), made.items(), strict=False):
            picked[name] = _drawn_number(chosen, name, number, at)
    a, b = st.columns(2)
    names = options["partitioner"]
    words = " · ".join(choices.SPLITS.get(name, name) for name in names)
    picked["partitioner"] = _pick("Split", "partitioner", chosen, names, a, help=words)
    chosen = replace(chosen, **picked)
    fixed = _fixed(chosen, home)
    if fixed is None:
        picked["clients"] = _number("Clients K", "clients", chosen, at=b)
    else:
        b.number_input("Clients K", fixed, fixed, fixed, disabled=True, key="c_fixed")
    if chosen.partitioner in ("dirichlet", "quantity"):
        steps = sorted({0.05, 0.1, 0.3, 0.5, 1.0, 3.0, 10.0, 100.0, chosen.alpha})
        key = _key("alpha", chosen.alpha, steps)
        picked["alpha"] = st.select_slider("α (small: unequal)", steps, key=key)
    a, b = st.columns(2)
    both = bool(st.session_state.get("c_both", chosen.both))
    picked["model"] = _pick("Model", "model", chosen, options["model"], a)
    strategies = options["strategy"]
    picked["strategy"] = _pick("Strategy", "strategy", chosen, strategies, b, disabled=both)
    key = _key("both", chosen.both)
    picked["both"] = st.toggle("Averaging and stacking, on this split", key=key)
    a, b = st.columns(2)
    picked["rounds"] = _number("Rounds", "rounds", chosen, at=a)
    picked["seed"] = _number("Seed", "seed", chosen, at=b)
    steps = sorted({*(k / 10 for k in range(1, 11)), chosen.fraction})
    key = _key("fraction", chosen.fraction, steps)
    picked["fraction"] = st.select_slider(
        "Clients asked in a round", steps, key=key, format_func=lambda share: f"{share:.0%}"
    )
    with st.expander("Local training, faults, engine", expanded=bool(chosen.faulty)):
        picked |= _details(chosen, options, fixed or picked.get("clients", chosen.clients))
    return replace(chosen, **picked)


def _drawn_number(chosen: Choices, name: str, made: arguments.Drawn, at: Any) -> int:
    """Ask for rows or classes of data that are made; 0 stands for what they begin with."""
    now: dict[str, Any] = {name: getattr(chosen, name) or made.begins}
    number = _number(made.label, name, replace(chosen, **now), low=2, at=at)
    return 0 if number == made.begins else number


def _details(
    chosen: Choices, options: Mapping[str, tuple[str, ...]], clients: int
) -> dict[str, Any]:
    a, b = st.columns(2)
    epochs = _number("Local epochs", "local_epochs", chosen, at=a)
    batch = _number("Batch (0: all rows)", "batch_size", chosen, at=b, help="Rows of a step.")
    rates = sorted({0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, chosen.learning_rate or 0.1})
    words = {"auto": None, **{f"{rate:g}": rate for rate in rates}}
    now = "auto" if chosen.learning_rate is None else f"{chosen.learning_rate:g}"
    rate = st.selectbox("Learning rate", [*words], key=_key("learning_rate", now, [*words]))
    a, b = st.columns(2)
    about = "crash: no reply in half of the rounds; nan: NaN; flip: four steps back"
    fewest = "A round with fewer usable ones fails, and the run with it."
    engine = "simulation: Flower's Ray engine"
    return {
        "local_epochs": epochs,
        "batch_size": batch,
        "learning_rate": words[rate],
        "faulty": _number("Faulty clients", "faulty", chosen, clients, at=a),
        "fault": _pick("Fault", "fault", chosen, options["fault"], b, help=about),
        "min_replies": _number("Fewest replies", "min_replies", chosen, clients, help=fewest),
        "runtime": _pick("Engine", "runtime", chosen, options["runtime"], help=engine),
    }


def _fixed(chosen: Choices, home: Path) -> int | None:
    try:
        return arguments.fixed_clients(chosen, home)
    except InputError:
        return None  # `check` says why


def _own_file(chosen: Choices, home: Path) -> Choices:
    """Take a file, and what to do with it; what `fl-kit check` says stands beside it."""
    st.file_uploader(
        "CSV file, 20 MB at most",
        type=["csv"],
        max_upload_size=20,
        key="c_file",
        on_change=_take_file,
        args=(home,),
    )
    if refused := st.session_state.get("refused"):
        st.error(_plain(refused))
    if not chosen.upload:
        st.markdown("The file stays on this machine, in a folder that only you can read.")
        return chosen
    columns = uploads.columns(chosen.upload, home)
    if not chosen.target:
        chosen = replace(chosen, target=uploads.open(chosen.upload, home).target)
    target = _pick("Column to predict", "target", chosen, columns)
    chosen = replace(chosen, target=target)
    tasks = choices.OPTIONS["task"]
    with_guess = {"": "guess from its cells"}
    task = _pick("Task", "task", chosen, tasks, format_func=lambda name: with_guess.get(name, name))
    none = ("", *(name for name in columns if name != target))
    key = _pick(
        "Client of each row",
        "key",
        chosen,
        none,
        format_func=lambda name: name or "no column says it",
        help="Column whose values are the clients of a natural split.",
        on_change=_take_key,
    )
    chosen = replace(chosen, task=task, key=key)
    others = [name for name in columns if name not in (target, key)]
    known = [name for name in chosen.features if name in others]
    features = st.multiselect(
        "Columns to predict from", others, key=_key("features", known), placeholder="all others"
    )
    chosen = replace(chosen, features=tuple(features))
    kept = uploads.open(
        chosen.upload, home, target=target, task=task, key=key, features=chosen.features
    )
    if missing := [option for option in kept.options if option.startswith("dataset.missing=")]:
        st.markdown(f"Missing cells: `{missing[0]}`.")
    with st.expander("What fl-kit check says", expanded=not kept.usable):
        st.markdown("\n".join(f"- {_plain(text)}" for text in kept.sentences))
    return chosen


# ---------------------------------------------------------------------------- start, stop, runs
def _buttons(chosen: Choices, fault: str, home: Path) -> str:
    """Draw Start, Stop and the list of runs; return what is shown."""
    shown = str(st.session_state["shown"])
    listed = run_files.listed(home)
    launch = processes.get(shown, home)
    if shown and launch is None and not run_files.heads_of(home, shown):
        st.session_state["failure"] = f"run={shown[:60]}: there is no such run on this machine"
        shown = st.session_state["shown"] = ""
    go, end = st.columns(2)
    go.button(
        "Start",
        type="primary",
        icon=":material/play_arrow:",
        disabled=bool(fault) or _waits(chosen),
        on_click=_start,
        args=(chosen, home),
        width="stretch",
    )
    end.button(
        "Stop",
        icon=":material/stop:",
        disabled=launch is None or not launch.running,
        on_click=_stop,
        args=(launch,),
        width="stretch",
    )
    if shown and shown not in listed:
        listed = {shown: shown} | listed
    st.session_state["c_run"] = shown or None
    st.selectbox(
        "Runs on this machine",
        list(listed),
        key="c_run",
        index=None,
        placeholder="none is shown",
        format_func=lambda name: listed.get(name, name),
        on_change=_show,
        args=(home,),
    )
    return shown


def _waits(chosen: Choices) -> bool:
    """Say whether a file is still to be chosen."""
    return st.session_state.get("c_data") == _OWN_FILE and not chosen.upload


def _start(chosen: Choices, home: Path) -> None:
    try:
        uploads.tidy(home)
        words, query = arguments.overrides(chosen, home), choices.to_query(chosen)
        launch = process_control.start(home, words, sweep=chosen.both, choices=query)
        st.session_state["shown"] = launch.id
    except InputError as error:
        st.session_state["failure"] = str(error)


def _stop(launch: Launch) -> None:
    try:
        process_control.stop(launch)
    except InputError as error:
        st.session_state["failure"] = str(error)


def _show(home: Path) -> None:
    """Show a run; one that the page has started brings its choices along."""
    shown = st.session_state["shown"] = st.session_state["c_run"] or ""
    launch = processes.get(shown, home)
    if launch is not None:
        chosen, complaints = choices.from_query(launch.choices, home)
        _take(chosen)
        st.session_state["complaints"] = complaints


# ---------------------------------------------------------------------------- the split
_dealt = st.cache_data(max_entries=16, show_spinner=False)(split.split_of)
_dealt_before = st.cache_data(max_entries=16, show_spinner=False)(split.split_of_text)


def _split(chosen: Choices, home: Path, open_: bool) -> None:
    """Show who gets which rows, before anything trains."""
    preview = _dealt(arguments.jobs(chosen, home)[0])
    with st.expander(f"The split: {preview.sentences[0]}", expanded=open_, key=f"split-{open_}"):
        _deal(preview, "next")


def _own_split(view: RunView) -> None:
    """Show who has which rows in a run that somebody else started."""
    if view.private:
        return  # whoever has the data could deal them again, but the page shows no client
    preview = _dealt_before(view.config, view.tags.get("data.sha256", ""))
    if preview is None and not view.roster:
        return
    with st.expander("The split of this run", key="own-split"):
        if preview is not None:
            _deal(preview, "own")
            return
        sizes = [view.roster.get(k, (0, 0))[0] for k in range(view.clients)]
        _chart(charts.split_sizes(sizes), "own-sizes")
        at_nodes = "As the nodes told; which labels their rows have, only they know."
        st.markdown(at_nodes if view.runtime == "deployment" else split.GONE)


def _deal(dealt: split.Split, key: str) -> None:
    counts = np.array(dealt.counts)
    by_label = (
        charts.split_heat(dealt.labels, counts)
        if dealt.task == "classification"
        else charts.split_histogram(dealt.edges, counts, dealt.target)
    )
    _chart(charts.split_sizes(dealt.sizes), f"{key}-sizes")
    _chart(by_label, f"{key}-labels")
    st.markdown("  \n".join(map(_plain, dealt.sentences[1:])))


def _chart(chart: Chart, key: str, at: Any = st) -> None:
    at.vega_lite_chart(spec=chart.spec, width="stretch", alt=chart.alt, key=key)
    if chart.note:
        at.markdown(_plain(chart.note))


# ---------------------------------------------------------------------------- a run
@st.cache_resource(max_entries=16, show_spinner=False)
def _tail(home: Path, name: str) -> Tail:
    return Tail(home, name)


def _watched(shown: str, home: Path, active: bool) -> None:
    """Draw a run; once a second while it goes on."""
    try:
        _run(shown, home, active)
    except Exception as error:
        _excuse(error)


def _run(shown: str, home: Path, active: bool) -> None:
    if active and not run_files.goes_on(shown, home):
        st.rerun()  # once: the timer goes, and the buttons are as they should be now
    launch = processes.get(shown, home)
    tails = (_tail(home, head.name) for head in run_files.heads_of(home, shown))
    views = [view for tail in tails if (view := tail.read())]
    begun = [view for view in views if view.rounds]
    view = _head_line(launch, views, shown)
    metric = _metric(view, shown) if view is not None and view.rounds else None
    if view is not None:
        at = _body(view, metric, shown)
        if launch is None:
            _own_split(view)
        if len(begun) > 1 and metric is not None:
            _side_by_side(begun, metric, launch)
        if view.rounds:
            _explained(view, at)
            _known(view, at, home)
    _log(launch, failed=not begun and not active)


def _head_line(launch: Launch | None, views: Sequence[RunView], shown: str) -> RunView | None:
    """Say how it goes; let one of several runs be chosen, and return it if there is one."""
    line = st.container(horizontal=True, vertical_alignment="center", key="headline")
    current = next((v for v in views if v.active), views[-1] if views else None)
    state = launch.state if launch is not None else (current.status if current else "starting")
    colour, icon = _BADGES.get(state, ("red", ":material/error:"))
    line.badge(state, icon=icon, color=colour)
    if len(views) > 1:
        names = [v.name for v in views]
        titles = {v.name: v.strategy or "begins" for v in views}
        picked = line.segmented_control(
            "Strategy",
            names,
            default=current.name if current is not None and current.active else names[0],
            format_func=titles.__getitem__,
            key=f"pick-{shown}-{len(names)}",
            label_visibility="collapsed",
        )
        current = next((v for v in views if v.name == picked), views[0])
    line.markdown(_plain(progress.sentence(launch, state, current, views)))
    if current is not None:
        _mlflow(line, current)
    return current


def _mlflow(line: Any, view: RunView) -> None:
    link = view.mlflow
    if link.url:
        how = f"needs `{link.command}`" if link.command else None
        line.link_button(
            "MLflow", link.url, icon=":material/open_in_new:", type="tertiary", help=how
        )
    if link.sentence and (view.rounds or not view.active):
        line.markdown(_plain(link.sentence))


def _metric(view: RunView, shown: str) -> Metric | None:
    by_name = {metric.name: metric for metric in metrics(view)}
    if not by_name:
        return None
    first = next(iter(by_name))
    name = st.segmented_control(
        "Metric", list(by_name), default=first, key=f"metric-{shown}", label_visibility="collapsed"
    )
    return by_name.get(name or first, by_name[first])


def _body(view: RunView, metric: Metric | None, shown: str) -> int:
    """Draw picture and curves; return the round that the picture shows."""
    newest = view.rounds[-1].server_round if view.rounds else 0
    left, right = st.columns([11, 9])
    with left:
        chosen = _exchange(
            data=picture.picture(view, metric),
            key=f"exchange-{view.name}",
            default={"round": None},
            on_round_change=lambda: None,
        ).round
    at = newest if chosen is None or view.round(int(chosen)) is None else int(chosen)
    if metric is not None:
        _chart(charts.curves(view, metric, at), f"curves-{shown}", right)
    return at


def _side_by_side(views: Sequence[RunView], metric: Metric, launch: Launch | None) -> None:
    st.subheader("Side by side, on one split", anchor=False)
    compared = compare.compare(views)
    a, b = st.columns(2)
    _chart(charts.versus(views, metric), "by-round", a)
    _chart(charts.versus(views, metric, "MB"), "by-bytes", b)
    for place, table in enumerate(compared.tables):
        _table(table, f"compared-{place}")
    st.markdown("  \n".join(map(_plain, compared.sentences)))
    if launch is not None:
        st.code(arguments.five_seeds(launch.overrides), language=None, wrap_lines=True)


def _table(table: Table, key: str) -> None:
    if table.title:
        st.markdown(f"**{_plain(table.title)}**")
    config: dict[str, Any] = {
        name: st.column_config.ProgressColumn(name, min_value=0, max_value=1, format="%.4f")
        for name in table.shares
    }
    if any(len(str(row[0])) > _SHORT for row in table.rows):
        config[table.columns[0]] = st.column_config.Column(width=150)
    st.dataframe(
        table.records(),
        hide_index=True,
        height="content" if len(table.rows) <= _TALL else 460,
        placeholder="",
        column_config=config,
        key=key,
    )


def _explained(view: RunView, at: int) -> None:
    explained = explain.explain(view, at)
    st.subheader(_plain(explained.title), anchor=False)
    if explained.formula:
        st.latex(explained.formula)
        st.markdown(
            "n_k: the rows that client k trains on; N: their sum over the replies; W_k: the model "
            f"that it sent, after training from the server's of round {at - 1}."
        )
    for place, table in enumerate(explained.tables):
        _table(table, f"made-{place}")
    for text in explained.sentences:
        st.markdown(_plain(text))
    if by_value := charts.model_values(view, at):
        columns = st.columns(len(by_value))
        for place, (column, chart) in enumerate(zip(columns, by_value, strict=True)):
            _chart(chart, f"value-{place}", column)


@st.cache_resource(max_entries=4, show_spinner=False)
def _rows(text: str, sha256: str) -> Mapping[int, Any] | None:
    config = split.config_of_text(text, sha256)
    return None if config is None else regions.rows_of(config)


@st.cache_data(max_entries=64, show_spinner=False)
def _drawn(
    folder: Path, at: int, _view: RunView, _rows: Mapping[int, Any]
) -> regions.Pictures | None:
    kept, strategy, total = regions.KeptModels(folder), _view.strategy, _view.total
    return regions.draw(_view.spec, kept, _rows, at, strategy=strategy, num_rounds=total)


def _known(view: RunView, at: int, home: Path) -> None:
    """Show what the models know, where a picture can."""
    st.subheader(f"What the models know after round {at}", anchor=False)
    folder = run_files.run_dir(home, view.name)
    lack = regions.why_not(
        view.spec,
        runtime=view.runtime,
        private=view.private,
        num_clients=view.clients,
        kept=at in regions.KeptModels(folder),
        over=not view.active,
    )
    dealt = None if lack else _rows(view.config, view.tags.get("data.sha256", ""))
    lack = lack or ("" if dealt else split.GONE)
    pictures = _drawn(folder, at, view, dealt) if dealt else None
    if pictures is None:
        st.markdown(_plain(lack or "Nothing of this round is kept."))
        return
    st.markdown("Points and shares: rows to train on, a client's own and all clients'.")
    if pictures.legend:
        st.html("".join(_mark(mark) for mark in pictures.legend))
    with st.container(horizontal=True, key="known"):
        for place, panel in enumerate(pictures.panels):
            st.vega_lite_chart(spec=panel.chart, width="content", key=f"known-{place}")


def _mark(mark: regions.Mark) -> str:
    sign = f'<span style="color:{mark.colour}" aria-hidden="true">{mark.sign}</span>'
    words = f"{html.escape(mark.label)}: {mark.rows} rows"
    return f'<span style="margin-right:1.2em">{sign} {words}</span>'


def _log(launch: Launch | None, failed: bool) -> None:
    if launch is None:
        return
    with st.expander("Log and command", expanded=failed):
        st.code(shlex.join(["fl-app", *launch.argv]), language=None, wrap_lines=True)
        lines = "\n".join(processes.log_tail(launch, 40)) or "nothing yet"
        st.code(lines, language=None, wrap_lines=True)


def _plain(text: str) -> str:
    """Return a text with what Markdown would take for its own made harmless."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~$:])", r"\\\1", printable(text))
