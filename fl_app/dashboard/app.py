"""The page: widgets and layout. What it knows comes from files; what it says, from pure functions.

Streamlit runs :func:`main` from top to bottom for each tab and each interaction, and the part that
shows a run once a second while the run goes on. A tab keeps nothing that matters: choices and the
run that is shown stand in its address, runs and launches on the disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import streamlit as st

from fl_app.dashboard import (
    charts,
    choices,
    compare,
    explain,
    launches,
    live,
    picture,
    regions,
    split,
    uploads,
)
from fl_app.dashboard.choices import Choices
from fl_app.dashboard.live import RunView
from fl_app.errors import FlAppError, InputError, one_line, printable
from fl_app.tracking.spool import home_dir

__all__ = ["main"]

_LOG = logging.getLogger("fl_app")
_OWN_FILE = "a CSV file of your own"
_TICK, _SLOW_TICK, _MANY_ROUNDS = 1.0, 3.0, 200
_LISTED = 40
_WORDS = {
    "iid": "iid: like one another",
    "dirichlet": "dirichlet: skewed by label",
    "shards": "shards: a few labels each",
    "quantity": "quantity: unequal sizes",
    "natural": "natural: as collected",
}
_BADGES = {
    "running": ("blue", ":material/autorenew:"),
    "stopping": ("orange", ":material/hourglass:"),
    "finished": ("green", ":material/check:"),
}
_STYLE = """<style>
.stMainBlockContainer { padding: 2.4rem 2rem 3rem; max-width: 1600px; }
.stMain [data-testid=stHorizontalBlock] { flex-wrap: wrap; }
.stMain [data-testid=stColumn] { min-width: min(21rem, 100%); }
@media (max-width: 900px) { .stMainBlockContainer { padding: 2.4rem 1rem 2rem; } }
</style>"""

_exchange = st.components.v2.component(
    "fl_app_exchange", **dict(zip(("html", "css", "js"), picture.assets(), strict=True))
)


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
        fault = choices.check(chosen, home)
        shown = _buttons(chosen, fault, home)
    st.session_state["chosen"] = chosen
    st.query_params.from_dict(choices.to_query(chosen) | ({"run": shown} if shown else {}))
    for text in complaints:
        st.warning(_plain(text))
    if failure := st.session_state.pop("failure", ""):
        st.error(_plain(failure))
    if fault:
        st.error(_plain(fault))
    _split(chosen, fault, home, open_=not shown)
    if shown:
        launch = _launch(shown, home)
        heads = _heads(shown, home)
        active = (launch is not None and launch.active) or any(h.status in live.ACTIVE for h in heads)
        many = chosen.rounds > _MANY_ROUNDS
        tick = (_SLOW_TICK if many else _TICK) if active else None
        st.fragment(_watched, run_every=tick)(shown, home, active)
    elif not fault:
        st.info("Press **Start**: the run appears here. Every choice stands in the address.")


# ---------------------------------------------------------------------------- choices
def _begun(home: Path) -> tuple[Choices, Sequence[str]]:
    """Return the tab's choices; at its first run those of the address, with complaints."""
    if "chosen" not in st.session_state:
        chosen, complaints = choices.from_query(st.query_params.to_dict(), home)
        st.session_state["chosen"], st.session_state["complaints"] = chosen, complaints
        st.session_state["shown"] = st.query_params.get("run", "")
    return st.session_state["chosen"], st.session_state.get("complaints", ())


def _take(chosen: Choices) -> None:
    """Put choices into the widgets."""
    st.session_state["chosen"] = chosen
    st.session_state["complaints"] = ()
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
        natural = "natural" in choices.offered(fresh)["partitioner"] and name not in _DEALT
        chosen = replace(fresh, partitioner="natural") if natural else fresh
    _take(chosen)
    st.session_state["c_data"] = name


_DEALT: frozenset[str] = frozenset()


def _key(name: str, value: Any, options: Sequence[Any] | None = None) -> str:
    """Return a widget's key, with a value in place where it has none or one that does not fit."""
    key = f"c_{name}"
    if key not in st.session_state or (
        options is not None and st.session_state[key] not in options
    ):
        fits = options is None or value in options
        st.session_state[key] = value if fits else (options[0] if options else None)
    return key


def _pick(label: str, name: str, chosen: Choices, options: Sequence[str], **more: Any) -> str:
    return str(
        st.selectbox(label, options, key=_key(name, getattr(chosen, name), options), **more)
    )


def _number(label: str, name: str, chosen: Choices, high: float | None = None, **more: Any) -> int:
    low, top = map(int, choices.LIMITS[name])
    top = int(top if high is None else high)
    key = _key(name, getattr(chosen, name))
    st.session_state[key] = min(max(int(st.session_state[key] or low), low), top)
    return int(st.number_input(label, low, top, step=1, key=key, **more))


def _widgets(chosen: Choices, home: Path) -> Choices:
    st.subheader("Experiment", anchor=False)
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
    options = choices.offered(chosen, home) if ready else dict(choices.OPTIONS)
    return _experiment(chosen, options, home)


def _experiment(
    chosen: Choices, options: Mapping[str, tuple[str, ...]], home: Path
) -> Choices:
    found: dict[str, Any] = {}
    a, b = st.columns(2)
    with a:
        found["partitioner"] = _pick(
            "Split",
            "partitioner",
            chosen,
            options["partitioner"],
            format_func=lambda name: name,
            help=" · ".join(_WORDS.get(name, name) for name in options["partitioner"]),
        )
    chosen = replace(chosen, **found)
    fixed = _fixed(chosen, home)
    with b:
        if fixed is None:
            found["clients"] = _number("Clients K", "clients", chosen)
        else:
            st.number_input("Clients K", fixed, fixed, fixed, disabled=True, key="c_fixed")
    if chosen.partitioner in ("dirichlet", "quantity"):
        steps = sorted({0.05, 0.1, 0.3, 0.5, 1.0, 3.0, 10.0, 100.0, chosen.alpha})
        key = _key("alpha", chosen.alpha, steps)
        found["alpha"] = st.select_slider("α (small: unequal)", steps, key=key)
    a, b = st.columns(2)
    with a:
        found["model"] = _pick("Model", "model", chosen, options["model"])
    with b:
        found["strategy"] = _pick(
            "Strategy", "strategy", chosen, options["strategy"], disabled=_is_on("both", chosen)
        )
    found["both"] = st.toggle(
        "Averaging and stacking, on this split", key=_key("both", chosen.both)
    )
    a, b = st.columns(2)
    with a:
        found["rounds"] = _number("Rounds", "rounds", chosen)
    with b:
        found["seed"] = _number("Seed", "seed", chosen)
    found["fraction"] = _fraction(chosen)
    with st.expander("Local training, faults, engine", expanded=bool(chosen.faulty)):
        found |= _details(chosen, options, fixed or found.get("clients", chosen.clients))
    return replace(chosen, **found)


def _is_on(name: str, chosen: Choices) -> bool:
    return bool(st.session_state.get(f"c_{name}", getattr(chosen, name)))


def _fraction(chosen: Choices) -> float:
    steps = sorted({*(k / 10 for k in range(1, 11)), chosen.fraction})
    key = _key("fraction", chosen.fraction, steps)
    return float(
        st.select_slider(
            "Clients asked in a round", steps, key=key, format_func=lambda share: f"{share:.0%}"
        )
    )


def _details(
    chosen: Choices, options: Mapping[str, tuple[str, ...]], clients: int
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    a, b = st.columns(2)
    with a:
        found["local_epochs"] = _number("Local epochs", "local_epochs", chosen)
    with b:
        found["batch_size"] = _number(
            "Batch (0: all rows)", "batch_size", chosen, help="Rows of a step."
        )
    rates = sorted({0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, chosen.learning_rate or 0.1})
    key = _key("learning_rate", chosen.learning_rate, [None, *rates])
    found["learning_rate"] = st.selectbox(
        "Learning rate",
        [None, *rates],
        key=key,
        format_func=lambda rate: "auto" if rate is None else f"{rate:g}",
    )
    if choices.LIMITS["faulty"][1] > 0:
        a, b = st.columns(2)
        with a:
            found["faulty"] = _number("Faulty clients", "faulty", chosen, clients)
        with b:
            found["fault"] = _pick("They", "fault", chosen, options["fault"])
    found["runtime"] = _pick(
        "Engine", "runtime", chosen, options["runtime"], help="simulation: Flower's Ray engine"
    )
    return found


def _fixed(chosen: Choices, home: Path) -> int | None:
    try:
        return choices.fixed_clients(chosen, home)
    except InputError:
        return None  # `check` says why


def _own_file(chosen: Choices, home: Path) -> Choices:
    """Take a file, and what to do with it; what `fl-kit check` says stands beside it."""
    given = st.file_uploader("CSV file, 20 MB at most", type=["csv"], max_upload_size=20)
    if given is not None and st.session_state.get("uploaded") != given.file_id:
        st.session_state["uploaded"] = given.file_id
        try:
            kept = uploads.save(home, given.getvalue(), given.name)
            chosen = replace(chosen, upload=kept.id, target=kept.target, task="", key="")
            _take(chosen)
            st.session_state["c_data"] = _OWN_FILE
            st.session_state.pop("refused", None)
        except InputError as error:
            st.session_state["refused"] = str(error)
    if refused := st.session_state.get("refused"):
        st.error(_plain(refused))
    if not chosen.upload:
        st.markdown("The file stays on this machine, in a folder that only you can read.")
        return chosen
    columns = uploads.columns(chosen.upload, home)
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
    )
    chosen = replace(chosen, task=task, key=key)
    kept = uploads.open(chosen.upload, home, target=target, task=task, key=key)
    with st.expander("What fl-kit check says", expanded=not kept.usable):
        st.markdown("\n".join(f"- {_plain(text)}" for text in kept.sentences))
    return chosen


# ---------------------------------------------------------------------------- start, stop, runs
def _buttons(chosen: Choices, fault: str, home: Path) -> str:
    """Draw Start, Stop and the list of runs; return what is shown."""
    shown = st.session_state["shown"]
    found = launches.find(home)
    heads = live.runs(home)
    known = {launch.id for launch in found} | {head.name for head in heads}
    if shown and shown not in known:
        st.warning(f"run={_plain(shown[:60])}: no run of this home has this name.")
        shown = st.session_state["shown"] = ""
    current = next((launch for launch in found if launch.id == shown), None)
    waits = bool(chosen.upload == "" and st.session_state.get("c_data") == _OWN_FILE)
    go, end = st.columns(2)
    go.button(
        "Start",
        type="primary",
        icon=":material/play_arrow:",
        disabled=bool(fault) or waits,
        on_click=_start,
        args=(chosen, home),
        width="stretch",
    )
    end.button(
        "Stop",
        icon=":material/stop:",
        disabled=current is None or not current.active,
        on_click=_stop,
        args=(current,),
        width="stretch",
    )
    listed = _listed(found, heads)
    names = list(listed)
    if shown and shown not in listed:  # a job of a launch, or one beyond the list's end
        names, listed = [shown, *names], {shown: shown} | listed
    if st.session_state.get("c_run") != (shown or None):
        st.session_state["c_run"] = shown or None
    st.selectbox(
        "Runs on this machine",
        names,
        key="c_run",
        index=None,
        placeholder="none is shown",
        format_func=lambda name: listed.get(name, name),
        on_change=_show,
    )
    return str(shown)


def _listed(found: Sequence[launches.Launch], heads: Sequence[live.RunHead]) -> dict[str, str]:
    """Return what can be shown, newest first, with its words in the list."""
    items = [(launch.time, launch.id, f"{launch.title} ({launch.state})") for launch in found]
    items += [
        (head.start_ms / 1000, head.name, f"{_title(head)} ({head.status})")
        for head in heads
        if not head.launch
    ]
    items.sort(reverse=True)
    return {
        name: f"{time.strftime('%d %b %H:%M:%S', time.localtime(at))} {_plain(words)}"
        for at, name, words in items[:_LISTED]
    }


def _title(head: live.RunHead) -> str:
    words = (head.dataset, head.strategy, f"seed {head.seed}" if head.seed else "")
    return " ".join(filter(None, words)) or head.title or "a run that begins"


def _start(chosen: Choices, home: Path) -> None:
    try:
        uploads.tidy(home)
        launch = launches.start(home, chosen)
        st.session_state["shown"] = launch.id
    except InputError as error:
        st.session_state["failure"] = str(error)


def _stop(launch: launches.Launch) -> None:
    try:
        launches.stop(launch)
    except InputError as error:
        st.session_state["failure"] = str(error)


def _show() -> None:
    st.session_state["shown"] = st.session_state["c_run"] or ""


# ---------------------------------------------------------------------------- the split
@st.cache_data(max_entries=16, show_spinner=False)
def _cached_split(words: tuple[str, ...]) -> split.Split:
    return split.split_of(words)


def _split(chosen: Choices, fault: str, home: Path, open_: bool) -> None:
    if fault:
        return
    found = _cached_split(tuple(choices.jobs(chosen, home)[0]))
    with st.expander(f"The split: {found.sentence}", expanded=open_):
        for spec, alt in charts.split_charts(found):
            st.vega_lite_chart(spec=spec, width="stretch", alt=alt)


# ---------------------------------------------------------------------------- a run
@st.cache_resource(max_entries=8, show_spinner=False)
def _tail(home: Path, name: str) -> live.Tail:
    return live.Tail(home, name)


def _launch(shown: str, home: Path) -> launches.Launch | None:
    return next((launch for launch in launches.find(home) if launch.id == shown), None)


def _heads(shown: str, home: Path) -> list[live.RunHead]:
    heads = [head for head in live.runs(home) if shown in (head.launch, head.name)]
    return sorted(heads, key=lambda head: (head.job, head.name))


def _watched(shown: str, home: Path, active: bool) -> None:
    """Draw a run; once a second while it goes on."""
    try:
        _run(shown, home, active)
    except Exception as error:
        _excuse(error)


def _run(shown: str, home: Path, active: bool) -> None:
    launch = _launch(shown, home)
    views = [v for head in _heads(shown, home) if (v := _tail(home, head.name).read())]
    goes_on = launch.active if launch is not None else any(v.active for v in views)
    if active != goes_on:
        st.rerun()  # once: with another timer, and with the buttons as they are now
    drawn = [view for view in views if view.rounds]
    view, metric = _head_line(launch, views, drawn, shown)
    if not drawn or view is None or metric is None:
        _nothing_yet(launch, views)
        return
    left, right = st.columns([11, 9])
    with left:
        at = _picture(view, metric, shown)
    with right:
        spec, alt = charts.curves(view, metric, at)
        st.vega_lite_chart(spec=spec, width="stretch", alt=alt, key=f"curves-{shown}")
    if len(views) > 1:
        _side_by_side(launch, drawn, metric, home)
    _explained(view, at)
    _known(view, at, home)
    _log(launch)
