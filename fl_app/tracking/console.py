"""What a run says on the terminal: a line a round, the lesson of a small model, a closing table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import IO, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fl_app.errors import printable, sayable
from fl_app.outputs import Steady
from fl_app.tracking.metric_names import bytes_text
from fl_app.tracking.records import RoundRecord, RunEnd, RunStart

__all__ = ["LINE_PREFIX", "RESULT_MARK", "ConsoleTracker", "own_text"]

LINE_PREFIX = "fl_app | "
"""Begins our lines in Flower's log, so that a launcher can pick them out."""

RESULT_MARK = "result "
"""Begins, after the prefix, the line with the content of ``result.json``."""

_PATIENCE = 5.0
"""Seconds of silence after which we say what is waited for."""
_WENT_BACK = "model/went_back"
_LESSON_VALUES, _LESSON_CLIENTS = 4, 8
_SHORT = {"accuracy": "acc", "log_loss": "loss", "mse": "mse", "r2": "r2"}
"""Metrics of the round's line; the closing table has all."""


def own_text(line: str) -> str | None:
    """Return what we said in a line of Flower's log, None where the line is not ours."""
    mark = LINE_PREFIX.rstrip()  # an empty line of ours has lost its blank
    return line.removeprefix(mark).removeprefix(" ") if line.startswith(mark) else None


class ConsoleTracker:
    """Prints each round, and a table at the end.

    A model of at most 4 values on at most 8 clients is shown in full each round: every client's
    arrays, n_k, n_k/N, the products and their sum. An output that fails is printed to no more.

    Parameters
    ----------
    prefix : str, default ""
        Begins every line, so that the lines can be found in another program's log.
    console : rich.console.Console, optional
        Where to print; standard output by default.

    Attributes
    ----------
    brief : bool
        Whether a run is one line, as one job of a sweep; set before the run starts.
    """

    def __init__(self, prefix: str = "", console: Console | None = None) -> None:
        self.prefix, self.brief = prefix, False
        self.at_end: Callable[[], None] = lambda: None
        self._name = ""
        self._plain = bool(prefix)
        self.console = console or Console(
            file=sys.stdout,
            width=None if not prefix else 110,
            highlight=False,
            no_color=self._plain,
        )
        self.console.file = cast(IO[str], Steady(self.console.file))
        self._total = 0
        self._last: RoundRecord | None = None
        self._progress: Progress | None = None

    def start(self, run: RunStart) -> None:
        """Say what begins."""
        self._total, self._name = run.num_server_rounds, run.name
        if self.brief:
            return
        self._print(run.name)
        if self.console.is_terminal and not self._plain:
            self._progress = Progress(
                TextColumn("rounds"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._progress.add_task("rounds", total=self._total or None)
            self._progress.start()

    def annotate(self, tags: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Show nothing."""

    def record(self, record: RoundRecord) -> None:
        """Print a round."""
        self._last = record
        if self.brief:
            return
        self._print(self._line(record))
        if _is_lesson(record):
            self._print(_lesson(record))
        if self._progress is not None and record.server_round:
            self._progress.advance(self._progress.task_ids[0])

    def finish(self, end: RunEnd) -> None:
        """Print the closing table, and what :attr:`at_end` has to say."""
        if self._progress is not None:
            self._progress.stop()
        if self.brief:
            if end.status == "FINISHED" and self._last is not None:
                self._print(f"{self._name} | {self._line(self._last)}")
            return
        if end.status != "FINISHED":
            self._print(f"{end.status}: {end.error}")
        if self._last is not None:
            self._print(_closing(self._last))
            if _is_lesson(self._last) and self._last.server:
                self._print("train: the clients' W_k, each on its own rows; server: its own W")
            self._print_note(self._last)
        self.at_end()

    def go_on(self, last: RoundRecord) -> None:
        """Say that the run goes on after a round."""
        self._last = last
        self._print(f"goes on after round {last.server_round}/{self._total}")
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0], last.server_round)

    def say(self, text: str) -> None:
        """Print a line of text."""
        self._print(text)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say what is waited for, if the block takes long."""
        timer = Timer(_PATIENCE, self.say, [f"waiting for {what}"])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _line(self, r: RoundRecord) -> str:
        width = len(str(self._total))
        parts = [f"round {r.server_round:>{width}}/{self._total}"]
        for name, metrics in (("server", r.server), ("eval", r.evaluate), ("train", r.train)):
            shown = [f"{_SHORT[k]} {v:.4g}" for k, v in metrics.items() if k in _SHORT]
            if shown:
                parts.append(f"{name} {' '.join(shown)}")
        if r.server_round:
            cost = r.cost
            parts.append(
                f"{cost['clients_replied']:.0f}/{cost['clients_asked']:.0f} clients"
                f" {cost['seconds']:.2f} s"
                f" {bytes_text(cost['bytes_up'])} up {bytes_text(cost['bytes_down'])} down so far"
            )
        if r.extra.get(_WENT_BACK):
            parts.append("thrown away")
        return " | ".join(parts)

    def _print_note(self, last: RoundRecord) -> None:
        """Say where numbers of the table are of another model, or hide that one tells nothing."""
        if last.extra.get(_WENT_BACK):
            self._print("note: train is of this round, which was thrown away; all else is not")
        for name, metrics in (("server", last.server), ("eval", last.evaluate)):
            if metrics.get("predicted_classes") == 1:
                self._print(
                    f"note: the model says one class for every row of {name}/; whoever always "
                    f"says the most frequent class has accuracy {metrics['majority_share']:.4f}"
                )
                return

    def _print(self, what: str | Table) -> None:
        if isinstance(what, str):
            what = printable(what)
        if not self.prefix:
            self.console.print(what, markup=False, soft_wrap=isinstance(what, str))
            return
        with self.console.capture() as capture:
            self.console.print(what, markup=False, soft_wrap=isinstance(what, str))
        lines = capture.get().splitlines()
        text = "".join(f"{self.prefix}{line}".rstrip() + "\n" for line in lines)
        # One write: Flower's log splits what comes in several and mixes it with other threads'. It
        # prints it in other processes, too, which lose what they cannot say.
        self.console.file.write(sayable(text, self.console.encoding))
        self.console.file.flush()


def _is_lesson(record: RoundRecord) -> bool:
    clients = record.train_clients
    size = sum(np.size(a) for a in record.arrays.values())
    # Where a reply is no model, as with most members of a stack, nothing is averaged.
    shapes = _shapes(record.arrays)
    shown = all(c.arrays is not None and _shapes(c.arrays) == shapes for c in clients)
    return 0 < len(clients) <= _LESSON_CLIENTS and size <= _LESSON_VALUES and shown


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(values) for name, values in arrays.items()}


def _lesson(record: RoundRecord) -> Table:
    """Show the weighted average W(t+1) = sum_k n_k/N W_k with its terms."""
    names = [
        printable(f"{array}.{value}".rstrip("."))
        for array, values in record.arrays.items()
        for value in record.run.value_names.get(array, [str(i) for i in range(np.size(values))])
    ]
    total = sum(c.num_examples for c in record.train_clients)
    table = Table(title=f"W({record.server_round}) = Σ n_k/N · W_k", title_justify="left", box=None)
    for head in ("client k", "n_k", "n_k/N", *names, *(f"n_k/N · {n}" for n in names)):
        table.add_column(head, justify="right")
    terms = []
    for client in record.train_clients:
        values = _flat(client.arrays or {})
        share = client.num_examples / total
        terms.append(share * values)
        row = (str(client.partition), f"{client.num_examples:g}", f"{share:.4g}")
        table.add_row(*row, *_numbers(values), *_numbers(terms[-1]))
    blank = [""] * len(names)
    table.add_row("sum", f"{total:g}", "1", *blank, *_numbers(np.sum(terms, axis=0)))
    table.add_row(f"{record.run.rule}:", "", "", *blank, *_numbers(_flat(record.arrays)))
    return table


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(a) for a in arrays.values()])


def _numbers(values: Sequence[float] | np.ndarray) -> list[str]:
    return [f"{float(v):.6f}" for v in values]


def _closing(last: RoundRecord) -> Table:
    """Show the last round's metrics: one row each, a column for train, eval and server.

    And one for a stack that clients have mixed with their own models.
    """
    table = Table(title=f"after round {last.server_round}", title_justify="left")
    table.add_column("metric")
    sources = {"train": last.train, "eval": last.evaluate, "server": last.server}
    gated = "stack/gated_"
    sources |= {
        "gated": {k.removeprefix(gated): v for k, v in last.extra.items() if k.startswith(gated)}
    }
    shown = {name: metrics for name, metrics in sources.items() if metrics}
    for name in shown:
        table.add_column(name, justify="right")
    for metric in dict.fromkeys(m for metrics in shown.values() for m in metrics):
        form = "g" if metric in ("predicted_classes", "roc_auc_left_out") else ".4f"
        cells = (f"{ms[metric]:{form}}" if metric in ms else "" for ms in shown.values())
        table.add_row(metric, *cells)
    return table
