"""What is going on in a run, or how it ended, in one sentence."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from fl_app.dashboard.processes import Launch, log_tail
from fl_app.dashboard.view import InRound, RunView, counted, whole

__all__ = ["phase", "sentence"]


def phase(
    view: RunView | None, now: float, since: float | None = None, runtime: str = "inprocess"
) -> str:
    """Say in one sentence what is going on, or how it ended.

    Parameters
    ----------
    view : RunView or None
        The run; None while a launch has none yet.
    now : float
        Unix time in seconds.
    since : float, optional
        Unix time at which a run that is not there yet was launched.
    runtime : str, default "inprocess"
        Of a run that is not there yet.

    Returns
    -------
    str
        With the seconds since the last sign of life while the run goes on.
    """
    if view is None:
        early = (
            "importing" if runtime == "inprocess" else "importing, then starting Flower's engine"
        )
        return f"{early}{_ago(now - since if since else math.nan)}"
    done = view.rounds[-1].server_round if view.rounds else -1
    match view.status:
        case "finished":
            return f"finished after {counted(max(done, 0), 'round')}"
        case "failed" | "killed" | "lost":
            word = {"failed": "failed", "killed": "stopped", "lost": "ended"}[view.status]
            where = f" in round {done + 1}" if 0 <= done < view.total else ""
            unsaid = ("", "KeyboardInterrupt", "interrupted")
            why = "" if view.error in unsaid else f": {view.error}"
            return f"{word}{where if done >= 0 else ' before round 0'}{why}"
        case "unknown":
            return f"perhaps running: {view.error}"
    return f"{_activity(view, done)}{_ago(now - view.sign_ms / 1000)}"


def _activity(view: RunView, done: int) -> str:
    facts = view.facts
    if view.closing:
        recorded = view.params.get("tracking.name") != "none"
        return "sending the rest to MLflow" if recorded else "writing the end"
    if view.stage == "ending":
        return "all rounds are over: writing models and figures"
    if view.in_round is not None:
        return _inside(view.in_round, view.total)
    if done >= 0:
        of = f" of {view.total}" if view.total else ""
        return f"round {done}{of} is over" if done else "round 0 is over: the model before training"
    online, wanted = whole(facts.get("online")), whole(facts.get("wanted"))
    waiting = f"waiting for nodes: {online} of {wanted}" if wanted else "waiting for nodes"
    there = f"{counted(online, 'node is', 'nodes are')} there"
    return {
        "nodes": waiting if online < max(1, wanted) else there,
        "tracking": "starting MLflow",
        "data": "reading the data",
        "handshake": f"handshake with {counted(whole(facts.get('asked')), 'client')}",
        "roster": "building the model",
        "model": "scoring the model before training",
    }.get(view.stage, "starting")


def _inside(at: InRound, total: int) -> str:
    where = f"round {at.server_round}" + (f" of {total}" if total else "")
    now, trains = at.now, at.exchange == "train"
    if at.closed:
        work = "combining" if trains else "adding up the scores of"
        lost = f", {now.num_failed} failed" if now.num_failed else ""
        return f"{where}: {work} {counted(now.num_replied, 'reply', 'replies')}{lost}"
    if at.one_by_one:
        verb = "replied" if trains else "sent their scores"
        return f"{where}: {now.num_replied} of {counted(now.num_asked, 'client')} have {verb}"
    verb = "train" if trains else "evaluate"
    return f"{where}: {counted(now.num_asked, 'client')} {verb}{'s' if now.num_asked == 1 else ''}"


def _ago(seconds: float) -> str:
    if not seconds >= 1:
        return ""
    if seconds < 120:
        return f", {seconds:.0f} s"
    return f", {seconds / 60:.0f} min" if seconds < 7200 else f", {seconds / 3600:.0f} h"


def sentence(
    launch: Launch | None, state: str, view: RunView | None, views: Sequence[RunView]
) -> str:
    """Say what goes on, or how it ended, of a run or of what the page has started.

    Parameters
    ----------
    launch : Launch or None
        What the page has started; None for a run of others.
    state : str
        The launch's.
    view : RunView or None
        The run that is shown; None while there is none.
    views : sequence of RunView
        All runs of the launch.
    """
    if launch is None:
        return phase(view, time.time())
    if not launch.running and (view is None or view.active):
        return launch.reason or "it ended without a word"
    if view is not None and view.status == "lost" and (why := launch.reason):
        return f"{phase(replace(view, error=''), time.time())}: {why}"
    if state == "stopping":
        return "asked to end; what it did so far is kept"
    if launch.running and views and not any(v.active for v in views):
        return "its process is ending"
    if not views and (lines := log_tail(launch, 1)):
        return f"{lines[-1]}, {time.time() - launch.time:.0f} s"
    return phase(view, time.time(), launch.time, launch.runtime)
