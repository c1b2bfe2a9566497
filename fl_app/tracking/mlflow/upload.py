"""Carries one journal to a tracking server, from where it stopped.

Live sending and replay are the same act: read the journal from where the marker ``sent`` says,
send, move the marker. Everything that is sent carries the journal's own timestamps and names, so
that sending a piece twice leaves what sending it once does. Nothing here knows MLflow: see
:class:`Store` for what is asked of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from fl_app.errors import FlAppError, one_line
from fl_app.tracking.files import is_whole_npz
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_disk import is_full
from fl_app.tracking.metric_names import MetricNames, artifact_path
from fl_app.tracking.round_texts import table_pieces

__all__ = [
    "MAX_REASON",
    "Metric",
    "Pace",
    "Run",
    "RunDeletedError",
    "StoppedError",
    "Store",
    "Upload",
]

_LOG = logging.getLogger("fl_app")
_TABLE = "clients/evaluate.json"
_MAX_PARAM, _MAX_TAG = 6000, 8000
_BATCH = 1000
_MODEL_TRIES = 5
_SLOW_SECONDS = 0.05
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
MAX_REASON = 300
"""Characters of what a tracking server or its client says that are shown."""


class Run(NamedTuple):
    """A run in a tracking server."""

    run_id: str
    experiment_id: str


class Metric(NamedTuple):
    """One value of one curve."""

    key: str
    value: float
    timestamp_ms: int
    step: int


class Store(Protocol):
    """What a sender asks of a tracking server. Every method may raise when it is not there."""

    def connect(self) -> None:
        """Make sure that the server answers."""
        ...

    def find_run(self, target: Mapping[str, Any], name: str) -> Run | None:
        """Return the run that was made for a journal."""
        ...

    def create_run(self, target: Mapping[str, Any], name: str, start: Mapping[str, Any]) -> Run:
        """Make the run of a journal."""
        ...

    def keep_one(self, run: Run, name: str) -> None:
        """Delete what else was made for a journal: an answer that is lost is asked for again."""
        ...

    def run_state(self, run: Run) -> Literal["active", "deleted", "missing", "trashed"]:
        """Return what became of a run; it is trashed with its experiment, which can be undone."""
        ...

    def log(
        self,
        run: Run,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add metrics, params and tags."""
        ...

    def log_dataset(self, run: Run, dataset: Mapping[str, str]) -> None:
        """Add what the run learns from to its inputs."""
        ...

    def log_file(self, run: Run, file: Path, path: str) -> None:
        """Add a file as the artifact with a path, whose last part is its name."""
        ...

    def log_table(self, run: Run, path: str) -> None:
        """Tell the UI that an artifact is a table."""
        ...

    def log_model(
        self,
        run: Run,
        name: str,
        files: Path,
        metrics: Sequence[Metric],
        step: int,
        known: Mapping[str, Any],
        keep: Callable[[Mapping[str, Any]], None],
    ) -> str:
        """Add the model in `files` (``arrays.npz``, ``spec.json``) and return its id.

        `known` is what an earlier try has last given to `keep`, so that it goes on from there. Of
        the run's models of this name it is the only one then.
        """
        ...

    def register(self, run: Run, model_id: str, name: str) -> None:
        """Register a model."""
        ...

    def end_run(self, run: Run, status: str, end_ms: int) -> None:
        """Close a run."""
        ...

    def reopen_run(self, run: Run, start: Mapping[str, Any]) -> None:
        """Say that a run that was closed goes on, in the process that its start names."""
        ...


class RunDeletedError(FlAppError):
    """The run was deleted in the tracking server: nobody waits for the rest of it."""


class StoppedError(FlAppError):
    """Sending was asked to stop between two calls."""


class Pace:
    """Keeps a sender from slowing the training, and can stop it between two calls.

    The interpreter runs one thread at a time, so while the sender computes the training waits. A
    rest after each call holds the sender to a share of the time, in so far as the process has
    anything else to do: a server that waits for its nodes is not kept from sending.

    Parameters
    ----------
    hurry : Event, optional
        No rests once it is set; by default there are none.
    stop : callable, optional
        Asked at each rest.
    share : float, default 0.05
        Share of the time that the sender may compute beside a busy process.
    """

    def __init__(
        self,
        hurry: threading.Event | None = None,
        stop: Callable[[], bool] | None = None,
        share: float = 0.05,
    ) -> None:
        self._hurry, self._stop = hurry, stop
        self._factor = 1 / share - 1
        self._clocks: tuple[float, float, float] | None = None  # of the sender's own thread

    def rest(self) -> None:
        """Rest in proportion to what was computed since the last rest.

        Raises
        ------
        StoppedError
            If `stop` says so.
        """
        if self._hurry is not None:
            self._hurry.wait(self._due())
        if self._stop is not None and self._stop():
            raise StoppedError("stopped")

    def _due(self) -> float:
        """Return the seconds to rest; a period of rests and calls ends here."""
        now = time.thread_time(), time.process_time(), time.monotonic()
        before, self._clocks = self._clocks or now, now
        own, process, elapsed = (b - a for a, b in zip(before, now, strict=True))
        busy = min(1.0, (process - own) / elapsed) if elapsed > 0 else 0.0
        return own * self._factor * busy


class Upload:
    """Carries one journal to a store, from where it stopped.

    Parameters
    ----------
    journal : Journal
        Held by the caller.
    store : Store
        Where to.
    pace : Pace
        Asked after each call.
    fresh : bool, default False
        Whether the journal was just made, so that no run can exist for it yet.
    """

    def __init__(self, journal: Journal, store: Store, pace: Pace, fresh: bool = False) -> None:
        self.journal, self._store, self._pace = journal, store, pace
        self.marks = 0
        self._marked = time.monotonic()
        self._start, self._sent = journal.start, journal.sent
        self._may_exist = not fresh
        self._tag_names = MetricNames()
        self._rows, self._rows_due = 0, 1

    @property
    def run(self) -> Run | None:
        """The run in the store, None while it is unknown."""
        sent = self._sent
        return Run(sent["run_id"], sent["experiment_id"]) if "run_id" in sent else None

    def send(self) -> None:
        """Send what is new.

        Raises
        ------
        RunDeletedError
            If somebody deleted the run.
        Exception
            Whatever the store raises; what was sent before is marked.
        """
        try:
            self._send()
        except StoppedError:
            raise
        except Exception:
            self._keep()
            if self._state() != "missing":
                raise
            self._sent = {}  # the store was made anew: once more, into a new run
            self._send()

    def close_first(self, end: Mapping[str, Any]) -> None:
        """Say how the run ended, before the rest is sent.

        Parameters
        ----------
        end : mapping
            As :attr:`Journal.end` holds it.

        Raises
        ------
        RunDeletedError, Exception
            As :meth:`send`.
        """
        if not self._sent.get("closed"):
            self._store.end_run(self.run or self._found_or_made(), end["status"], end["end_ms"])
            self._mark(told=True)

    def close(self, end: Mapping[str, Any]) -> None:
        """Send what is new, then the table, the end and the models.

        A model that cannot be logged although the store answers is tried again, then left out,
        which a tag of the run says. One that finds no room on the disk here is not given up.

        Parameters
        ----------
        end : mapping
            As :attr:`Journal.end` holds it.

        Raises
        ------
        RunDeletedError, Exception
            As :meth:`send`.
        """
        self.send()
        run = self._opened()
        try:
            self._send_end(run, end)
            self._send_models(run, end.get("models", []))
        except StoppedError:
            raise
        except Exception as error:
            self._keep()
            if self._state() == "missing":
                self._sent = {}  # the next try makes a new run
            if not self._sent.get("closed") or getattr(error, "errno", None) in _NO_ROOM:
                raise
            self._give_up(run, error)

    # ------------------------------------------------------------ parts

    def _send_end(self, run: Run, end: Mapping[str, Any]) -> None:
        if self._sent.get("closed"):
            return
        self._send_table(run)
        tags = {**end.get("tags", {}), **({"error": end["error"]} if end.get("error") else {})}
        self._send_texts_and_tags(run, end.get("texts", {}), tags)
        self._send_files(run)
        self._store.keep_one(run, self.journal.name)  # a request may have come late
        self._store.end_run(run, end["status"], end["end_ms"])
        self._mark(closed=True, files=[])

    def _give_up(self, run: Run, error: Exception) -> None:
        """Raise `error`, or say that its models are left out."""
        self._store.connect()  # if it is not there, that is the reason, and time will tell
        failures = self._sent.get("model_failures", 0) + 1
        self._mark(model_failures=failures)
        self.marks -= 1  # no progress
        if failures < _MODEL_TRIES:
            raise error
        reason = one_line(error, MAX_REASON)
        self._store.log(run, tags={"models.error": f"not logged: {reason}"})
        _LOG.warning("the models of run %s were not logged: %s", run.run_id, reason)

    def _send(self) -> None:
        run = self._opened()
        self._send_notes(run)
        for lines, offset in _batches(self.journal.rounds(self._sent.get("rounds", 0))):
            self._send_rounds(run, lines, offset)
        for row in sorted(self.journal.damaged):
            self._leave_out(run, f"row {row.split()[1]} of its {row.split()[0]}")

    def _opened(self) -> Run:
        run = self.run or self._found_or_made()
        if not self._sent.get("opened"):
            given = self._start["run"]
            params, texts = _shortened(MetricNames()(given["params"]), _MAX_PARAM, "params")
            self._store.log(run, params=params)
            self._pace.rest()
            if given.get("dataset"):
                self._store.log_dataset(run, given["dataset"])
            self._send_texts_and_tags(run, {**texts, **given["texts"]}, given["tags"])
            self._mark(opened=True, files=[])
        if self._sent.get("ended"):
            if self._store.run_state(run) == "deleted":
                self._sent = {}  # it goes on, so somebody wants it: once more, into a new run
                return self._opened()
            self._store.reopen_run(run, self._start)
            self._mark(ended=False, closed=False, files=[])
        return run

    def _found_or_made(self) -> Run:
        target, name = self._start["target"], self.journal.name
        run = self._store.find_run(target, name) if self._may_exist else None
        # A server that does not answer in time may still have made the run.
        self._may_exist = True
        if run is None:
            run = self._store.create_run(target, name, self._start)
            self._store.keep_one(run, name)
        self._mark(run_id=run.run_id, experiment_id=run.experiment_id)
        self._pace.rest()
        return run

    def _send_notes(self, run: Run) -> None:
        for note, offset in self.journal.notes(self._sent.get("notes", 0)):
            self._send_texts_and_tags(run, note["texts"], note["tags"])
            self._mark(notes=offset, files=[])

    def _send_texts_and_tags(
        self, run: Run, texts: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        short, long_texts = _shortened(self._tag_names(tags), _MAX_TAG, "tags")
        if short:
            self._store.log(run, tags=short)
            self._pace.rest()
        with self._outbox() as outbox:
            for path, text in {**long_texts, **texts}.items():
                _put_text(outbox, path, text)
            self._send_folder(run, outbox)
        for path in (path for path, text in texts.items() if _is_table(text)):
            self._store.log_table(run, path)

    def _send_rounds(self, run: Run, lines: Sequence[Mapping[str, Any]], offset: int) -> None:
        self._store.log(run, metrics=[m for line in lines for m in _metrics(line)])
        self._pace.rest()
        numbers = [line["server_round"] for line in lines]
        with self._outbox() as outbox:
            for number in set(numbers) & set(self.journal.kept("weights")):
                self._put_weights(run, outbox, "weights", number)
            for line in lines:
                for path_, text in line["texts"].items():
                    _put_text(outbox, path_, text)
            self._send_folder(run, outbox)
        for path_ in {p: None for line in lines for p, t in line["texts"].items() if _is_table(t)}:
            self._store.log_table(run, path_)
        self._mark(rounds=offset, files=[])
        self.journal.drop_arrays("weights", numbers)
        self._pace.rest()
        self._rows += sum(len(line["clients"]) for line in lines)
        if self._rows >= self._rows_due:
            # The table is one file: sending it when it has doubled costs no more than its length.
            self._send_table(run)
            self._rows_due = 2 * self._rows

    def _put_weights(self, run: Run, outbox: Path, kind: str, server_round: int) -> None:
        file = outbox / "weights" / f"round_{server_round:04d}.npz"
        file.parent.mkdir(exist_ok=True)
        if not self._has_copied(kind, server_round, file):
            file.unlink(missing_ok=True)
            self._leave_out(run, f"weights/{file.name}")

    def _has_copied(self, kind: str, server_round: int, file: Path) -> bool:
        """Copy arrays into a file; return whether they are whole."""
        try:
            self.journal.copy_arrays(kind, server_round, file)
        except sqlite3.OperationalError:  # not now
            raise
        except sqlite3.DatabaseError:  # a page of the journal
            return False
        return is_whole_npz(file)

    def _leave_out(self, run: Run, what: str) -> None:
        """Say, once and in the run too, what is damaged on this machine; the rest is sent."""
        known = self._sent.get("damaged", [])
        if what in known:
            return
        self._store.log(run, tags={"damaged": ", ".join([*known, what])[:_MAX_TAG]})
        self._mark(damaged=[*known, what])
        _LOG.warning(
            "%s of run %s is damaged in %s: MLflow gets the rest",
            what,
            self.journal.name,
            self.journal.folder,
        )

    def _send_files(self, run: Run) -> None:
        """Send the weights of the last rounds and the end's files."""
        with self._outbox() as outbox:
            for number in self.journal.kept("last"):
                self._put_weights(run, outbox, "last", number)
            for path, content in self.journal.files():
                file = outbox / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            self._send_folder(run, outbox)

    def _send_folder(self, run: Run, outbox: Path) -> None:
        """Send the files of a folder but those that an earlier try of the same step has sent."""
        for file in sorted(path for path in outbox.rglob("*") if path.is_file()):
            path, done = file.relative_to(outbox).as_posix(), self._sent.get("files", [])
            if path not in done:
                self._store.log_file(run, file, path)
                self._keep(files=[*done, path])
                self._pace.rest()

    def _send_table(self, run: Run) -> None:
        columns, size = dict[str, None](), 0
        for row in self._table_rows():
            columns |= dict.fromkeys(row)
            size += 1
        if size == self._sent.get("table", 0):
            return
        with self._outbox() as outbox:
            file = outbox / _TABLE
            file.parent.mkdir()
            with file.open("w", encoding="utf-8") as text:  # never all of it in memory
                text.writelines(table_pieces([*columns], islice(self._table_rows(), size)))
            self._store.log_file(run, file, _TABLE)
        self._store.log_table(run, _TABLE)
        self._mark(table=size)
        self._pace.rest()

    def _table_rows(self) -> Iterator[Mapping[str, Any]]:
        return (row for line, _ in self.journal.rounds() for row in line["clients"])

    def _send_models(self, run: Run, models: Sequence[Mapping[str, Any]]) -> None:
        known: dict[str, str] = self._sent.get("models", {})
        for model in models:
            name, step = model["name"], model["server_round"]
            if name in known:
                continue
            lines = (line for line, _ in self.journal.rounds() if line["server_round"] == step)
            metrics = [m for line in lines for m in _metrics(line) if _is_summary(m.key)]
            with self._outbox() as outbox:
                if not self._has_copied(f"model/{name}", step, outbox / "arrays.npz"):
                    self._leave_out(run, f"model {name}")
                    continue
                (outbox / "spec.json").write_text(json.dumps(model["spec"]))
                begun = self._sent.get("model", {})
                begun = begun if begun.get("name") == name else {}
                model_id = self._store.log_model(
                    run, name, outbox, metrics, step, begun, partial(self._keep_model, name)
                )
                known = {**known, name: model_id}
            self._mark(models=known, model={})
            self._pace.rest()
        registered_name = self._start["target"].get("register_as")
        chosen = known.get("best") or known.get("final")
        if registered_name and chosen and not self._sent.get("registered"):
            self._store.register(run, chosen, registered_name)
            self._mark(registered=True)

    def _keep_model(self, name: str, begun: Mapping[str, Any]) -> None:
        self._keep(model={**begun, "name": name})
        self._pace.rest()

    def _state(self) -> str:
        """Return what became of the run after sending to it failed."""
        state = "active"
        if self.run is not None:
            with contextlib.suppress(Exception):
                state = self._store.run_state(self.run)
        if state == "deleted":
            raise RunDeletedError("the run was deleted in the tracking server")
        if state == "trashed":
            raise FlAppError("its experiment was deleted in the tracking server: restore it there")
        return state

    @contextlib.contextmanager
    def _outbox(self) -> Iterator[Path]:
        # Beside the journal, whose arrays have a second name there; elsewhere where it is full.
        own = self.journal.folder
        where = None if is_full(own) else own
        with tempfile.TemporaryDirectory(prefix="outbox-", dir=where) as folder:
            yield Path(folder)

    def _mark(self, **sent: Any) -> None:
        self._sent = {**self._sent, **sent}
        self.journal.mark_sent(self._sent)
        self._marked = time.monotonic()
        self.marks += 1

    def _keep(self, **sent: Any) -> None:
        """Mark what a step has done so far: at once where that takes long, or where it fails."""
        self._sent = {**self._sent, **sent}
        if not sent or time.monotonic() - self._marked > _SLOW_SECONDS:
            before = self.marks
            self._mark()
            self.marks = before
        self.marks += bool(sent)


def _metrics(line: Mapping[str, Any]) -> list[Metric]:
    stamp, step = line["timestamp_ms"], line["server_round"]
    return [Metric(key, value, stamp, step) for key, value in line["metrics"].items()]


def _is_summary(key: str) -> bool:
    return key.startswith(("train/", "eval/", "server/", "fairness/"))


def _batches(
    lines: Iterator[tuple[dict[str, Any], int]],
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Group lines so that a group fills one call, with the offset after the group."""
    group: list[dict[str, Any]] = []
    size = after = 0
    for line, offset in lines:
        if group and size + len(line["metrics"]) > _BATCH:
            yield group, after
            group, size = [], 0
        group.append(line)
        size, after = size + len(line["metrics"]), offset
    if group:
        yield group, after


def _shortened(
    values: Mapping[str, str], limit: int, folder: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Move values that the server would cut into text artifacts, and say so in their place."""
    short, texts = {}, {}
    for key, value in values.items():
        short[key] = str(value)
        if len(short[key]) > limit:
            path = f"{folder}/{key.replace('/', '_')}.txt"
            texts[path] = short[key]
            short[key] = f"{short[key][:200]}... ({len(texts[path])} characters, see {path})"
    return short, texts


def _put_text(outbox: Path, path: str, text: str) -> None:
    file = outbox / artifact_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _is_table(text: str) -> bool:
    """Return whether a text artifact is a table as MLflow writes them."""
    return text.startswith('{"columns": ')
