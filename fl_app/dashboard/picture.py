"""The picture of a run: server and clients, round by round, as data for one inline component.

:func:`picture` turns a run into plain JSON; ``picture.html``, ``.css`` and ``.js`` draw it, play it
and let a round be chosen. A value goes to the browser once: clients' values and who took part are
two packed tables, so that 100 clients and 500 rounds are 330 kB.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.colours import CIVIDIS, ROLES
from fl_app.dashboard.metric_values import Metric, shown_rows, strip, unit, values
from fl_app.dashboard.progress import phase
from fl_app.dashboard.view import Exchange, RunView

__all__ = ["MARKS", "assets", "picture"]

MARKS = {"unknown": 0, "not asked": 1, "replied": 2, "failed": 3, "waiting": 4}
"""What a client did in a round's training: the numbers of the packed table."""

_PHASES = {
    "collect": "collecting base models",
    "stack": "stacking, provisional",
    "select": "choosing the stack",
}
_LONGEST_REASON = 300


def assets() -> tuple[str, str, str]:
    """Return HTML, CSS and JavaScript of the component, for ``st.components.v2.component``."""
    html, css, js = (
        Path(__file__).with_name(f"picture.{kind}").read_text("utf-8")
        for kind in ("html", "css", "js")
    )
    return html, css, js


def picture(view: RunView, metric: Metric | None, at: int | None = None) -> dict[str, Any]:
    """Return what the component draws of a run.

    Parameters
    ----------
    view : RunView
        The run.
    metric : Metric, optional
        Whose values are shown; None before the first round.
    at : int, optional
        The round that is shown when the component appears; by default it follows the run. Later
        only the component itself moves.

    Returns
    -------
    dict
        JSON values only. ``values`` and ``marks`` are base64 of tables with a row a round and a
        column a client: float32, little-endian, NaN where there is no value, and uint8 of
        :data:`MARKS`. Both are empty under privacy.
    """
    rounds = view.rounds
    table = strip(view, metric.name).T if metric and not view.private else np.empty((0, 0))
    clients = _clients(view, table.shape[1])
    marks = np.zeros((len(rounds), clients), np.uint8)
    for row, r in zip(marks, () if view.private else rounds, strict=not view.private):
        _mark(row, r.train, MARKS["unknown"])
    wide = np.full((len(rounds), clients), np.nan, "<f4")
    wide[: table.shape[0], : table.shape[1]] = table
    failures, reasons = _failures(view) if not view.private else ([], [])
    sizes = {k: n for r in rounds for k, n in r.sizes.items()}
    sizes |= {k: rows for k, (rows, _) in view.roster.items()}
    shown = {k: _PHASES[p] for k, r in enumerate(rounds) if (p := view.stack_phase(r))}
    return {
        "run": view.name,
        "live": view.active,
        "phase": phase(view, view.sign_ms / 1000),
        "at": at,
        "clients": clients,
        "total": max(view.total, rounds[-1].server_round if rounds else 0),
        "private": view.why_private,
        "rows": [sizes.get(k) for k in range(clients)] if sizes and not view.private else [],
        "metric": metric.name if metric else "",
        "unit": unit(view, metric.name) if metric else "",
        "higher": metric is None or metric.higher is not False,
        "where": metric.rows if metric else "",
        "whose": "clients' own, mean" if metric and metric.source == "train" else "",
        "own": shown_rows(view),
        "rounds": [r.server_round for r in rounds],
        "server": _numbers(values(view, metric) if metric else [math.nan] * len(rounds)),
        "down": _numbers([r.down for r in rounds]),
        "up": _numbers([r.up for r in rounds]),
        "asked": [r.train.num_asked for r in rounds],
        "replied": [r.train.num_replied for r in rounds],
        "failed": [r.train.num_failed for r in rounds],
        "phases": [shown.get(k, "") for k in range(len(rounds))] if shown else [],
        "back": [r.server_round for r in rounds if r.went_back],
        "values": "" if view.private else _packed(wide),
        "marks": "" if view.private else _packed(marks),
        "failures": failures,
        "reasons": reasons,
        "now": _now(view, clients),
        "nodes": _nodes(view),
        "ramp": CIVIDIS[::-1],
        "colours": [ROLES["server"].colour, ROLES["worst"].colour],
    }


def _clients(view: RunView, measured: int) -> int:
    """Return how many clients are drawn: all that are known of, else as many as were asked."""
    exchanges = [e for r in view.rounds for e in (r.train, r.evaluate)]
    if view.in_round is not None:
        exchanges += [view.in_round.train, view.in_round.evaluate]
    if view.private:
        return max([view.clients, *(e.num_asked for e in exchanges)])
    largest = [max([*e.asked, *e.replied, *e.failed], default=-1) for e in exchanges]
    return max([view.clients, measured, *(k + 1 for k in largest)])


def _mark(row: NDArray[np.uint8], exchange: Exchange, waiting: int) -> None:
    """Write into a row, in place, what each client did in an exchange."""
    if exchange.asked:
        row[:] = MARKS["not asked"]
        row[[*exchange.asked]] = waiting
    row[[*exchange.replied]] = MARKS["replied"]
    row[[*exchange.failed]] = MARKS["failed"]


def _failures(view: RunView) -> tuple[list[list[int]], list[str]]:
    """Return (round, client, number of the reason, 1 if in evaluation) of each, and the reasons."""
    failures: list[list[int]] = []
    reasons: dict[str, int] = {}
    for r in view.rounds:
        for evaluates, exchange in enumerate((r.train, r.evaluate)):
            for client, reason in sorted(exchange.failed.items()):
                number = reasons.setdefault(_short(reason), len(reasons))
                failures.append([r.server_round, client, number, evaluates])
    return failures, [*reasons]


def _short(reason: str) -> str:
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 1]}…"


def _now(view: RunView, clients: int) -> dict[str, Any] | None:
    """Return the round that is not over; None where there is none or it is recorded already."""
    inside = view.in_round
    if inside is None or not view.active or view.round(inside.server_round) is not None:
        return None
    # In its second half a round still shows who trained.
    trained, now = inside.train, inside.now
    row = np.zeros(clients, np.uint8)
    if not view.private:
        _mark(row, trained, MARKS["waiting"] if inside.exchange == "train" else MARKS["unknown"])
    return {
        "round": inside.server_round,
        "evaluates": inside.exchange != "train",
        "closed": inside.closed,
        "one": inside.one_by_one,
        "marks": [] if view.private else row.tolist(),
        "asked": now.num_asked,
        "replied": now.num_replied,
        "failures": []
        if view.private
        else [[k, _short(reason)] for k, reason in sorted(now.failed.items())],
    }


def _nodes(view: RunView) -> list[int]:
    """Return how many nodes are there and how many are waited for; empty at other times."""
    if view.rounds or view.stage != "nodes":
        return []
    online, wanted = (view.facts.get(key) for key in ("online", "wanted"))
    return [online, wanted] if isinstance(online, int) and isinstance(wanted, int) else []


def _numbers(numbers: Iterable[float]) -> list[float | None]:
    """Return values as JSON has them, to four digits or, if larger, to whole numbers."""
    return [
        (round(v) if abs(v) >= 1e4 else float(f"{v:.4g}")) if math.isfinite(v) else None
        for v in map(float, numbers)
    ]


def _packed(table: NDArray[Any]) -> str:
    return base64.b64encode(table.tobytes()).decode("ascii")
