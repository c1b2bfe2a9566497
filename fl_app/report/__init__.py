"""Reads the record and compares runs, in pairs that agree on everything but one param.

Reading (:mod:`~fl_app.report.reading`) gives plain :class:`RunSummary` objects; pairing and
statistics are pure functions of them; rendering turns their results into blocks of text that a
terminal, a file or a page can show.

Examples
--------
::

    runs = read_runs(experiment="wine")
    comparison = compare(runs, baseline="strategy=fedavg", metric="server/accuracy")
    show(comparison_blocks(comparison, [expect(comparison, "fedadam>fedavg-0.01")]))
"""

from fl_app.report.budgets import Pair, Point
from fl_app.report.comparing import Comparison, check_target, compare
from fl_app.report.convergence import Verdict, judge
from fl_app.report.expectations import Outcome, expect
from fl_app.report.intervals import Interval
from fl_app.report.reading import find_finished, read_runs, read_these
from fl_app.report.rendering import (
    Block,
    TextTable,
    comparison_blocks,
    show,
    to_markdown,
    to_text,
)
from fl_app.report.runs import RunSummary, select
from fl_app.report.sections import report_sections, target_blocks
from fl_app.report.soundness import check_sound
from fl_app.report.storing import store_report
from fl_app.report.summary import (
    Summary,
    SummaryRow,
    summary_blocks,
    summary_table,
)
from fl_app.report.tables import Row, Table
from fl_app.report.tuning import Choice, Tuning
from fl_app.report.verdict import sentences, verdict
from fl_app.report.writing import check_place, write_report

__all__ = [
    "Block",
    "Choice",
    "Comparison",
    "Interval",
    "Outcome",
    "Pair",
    "Point",
    "Row",
    "RunSummary",
    "Summary",
    "SummaryRow",
    "Table",
    "TextTable",
    "Tuning",
    "Verdict",
    "check_place",
    "check_sound",
    "check_target",
    "compare",
    "comparison_blocks",
    "expect",
    "find_finished",
    "judge",
    "read_runs",
    "read_these",
    "report_sections",
    "select",
    "sentences",
    "show",
    "store_report",
    "summary_blocks",
    "summary_table",
    "target_blocks",
    "to_markdown",
    "to_text",
    "verdict",
    "write_report",
]
