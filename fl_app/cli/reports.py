"""Files of ``fl-kit report`` that are looked at: one HTML page, and figures for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_app.dashboard.split import split_of_text
from fl_app.errors import InputError
from fl_app.home import write
from fl_app.report import Comparison, Outcome
from fl_app.report.clients import Recorded, read_clients
from fl_app.report.figures import Deal, draw_figures
from fl_app.report.html import to_html
from fl_app.report.writing import whole_report

__all__ = ["deal_of", "write_pages"]

_PLACES = {
    "Data and split": ["split"],
    "Differences": ["curves", "bytes"],
    "Fairness": ["clients"],
}
"""Figures by the heading under which they stand."""


def write_pages(
    comparison: Comparison,
    outcomes: Sequence[Outcome],
    command: str,
    uri: str | None,
    html: str = "",
    figures: str = "",
) -> list[str]:
    """Write a report as one HTML file, its figures as SVG and PDF, or both.

    Parameters
    ----------
    comparison, outcomes, command
        As in :func:`~fl_app.report.write_report`.
    uri : str, optional
        Tracking URI, where runs tell of their clients.
    html : str
        The page's path, "" for none.
    figures : str
        The figures' folder, "" for none.

    Returns
    -------
    list of str
        The files, and why a figure is not among them.

    Raises
    ------
    InputError
        If a place cannot be written to.
    """
    recorded = read_clients(uri, comparison)
    formats = ("svg", "pdf") if figures else ("svg",)
    deal, told = deal_of(recorded), recorded.told
    pictures = draw_figures(comparison, deal, recorded.ends, told, formats)
    lines = []
    if html:
        title = f"{comparison.metric} by {comparison.design.key.name}"
        places = {name: [pictures[one] for one in own] for name, own in _PLACES.items()}
        text = to_html(title, whole_report(comparison, outcomes, command), places)
        lines.append(_write("--html", Path(html), text))
    if figures:
        for name, picture in pictures.items():
            for kind, content in picture.files.items():
                lines.append(_write("--figures", Path(figures, f"{name}.{kind}"), content))
            lines += [] if picture.files else [f"no figure {name}: {picture.caption}"]
    return lines


def _write(option: str, path: Path, content: str | bytes) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path.resolve(), content, sync=False)  # a link stays one
    except OSError as error:
        raise InputError(option, path, f"a place to write to ({error.strerror})") from None
    return str(path)


def deal_of(recorded: Recorded) -> Deal | None:
    """Return rows by class and client, dealt again where that gives what was recorded; else rows.

    Parameters
    ----------
    recorded : Recorded
        What the baseline's run tells of its clients.

    Returns
    -------
    Deal or None
        Of the clients that took part; None where the run tells none.
    """
    rows, told = recorded.rows, recorded.told
    if not rows:
        return None
    split = split_of_text(recorded.config, recorded.data_sha256) if recorded.config else None
    dealt = {} if split is None else dict(enumerate(split.sizes))
    if split is not None and (split.pooled or rows.items() <= dealt.items()):
        clients = tuple(dealt if split.pooled else sorted(rows))
        counts = tuple(tuple(own[k] for k in clients) for own in split.counts)
        return Deal(split.labels, clients, counts, f"{told}, dealt again from its config and data")
    clients = tuple(sorted(rows))
    told += ", as recorded, all classes together: they cannot be dealt again here"
    return Deal(("all rows",), clients, (tuple(rows[k] for k in clients),), told)
