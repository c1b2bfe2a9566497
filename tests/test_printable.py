"""What others write cannot command the operator's terminal, wherever it is shown."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fl_app.cli import kit
from fl_app.cli import run as command
from fl_app.client_app import app
from fl_app.config.compose import compose_config
from fl_app.config.passwords import keep_secrets, whole
from fl_app.config.run_request import RunRequest
from fl_app.errors import (
    ConfigError,
    DataError,
    FlAppError,
    InputError,
    masked,
    one_line,
    plain_where_needed,
    printable,
    sayable,
)
from fl_app.federation import description, protocol
from fl_app.report import RunSummary
from fl_app.report.rendering import TextTable, show, to_markdown, to_text
from fl_app.runtimes import deployment, run, simulation
from fl_app.tracking.console import LINE_PREFIX, ConsoleTracker

from .kit import fl_kit

EVIL = (
    "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\u200b\ud800"
    "\u2028\x85fl_app | result {}\r\nnext\tline"
)
"""Sets the title, clears the screen, colours, turns the direction, begins lines of its own."""


def is_clean(text: str) -> bool:
    """Tell whether a text holds only what a terminal shows; ends of lines are ours."""
    return all(c == "\n" or (c.isprintable() or c == " ") for c in text)


@given(st.text(), st.integers(3, 50))
def test_any_text_becomes_one_printable_line(text: str, most: int) -> None:
    """Bounded, without controls, the same when done twice; a text that is fit stays as it is."""
    for alphabet in (text, EVIL + text):
        shown = printable(alphabet, most)
        assert len(shown) <= most
        # str.isprintable() refuses more, private and unassigned characters; the terminal does not.
        assert not any(
            ord(c) < 32 or 127 <= ord(c) < 160 or "\ud800" <= c <= "\udfff" for c in shown
        )
        assert len(shown.splitlines()) <= 1
        assert printable(shown, most) == shown
    assert printable("µ Größe 数 🙂 a b") == "µ Größe 数 🙂 a b"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@host:5000/x", "http://me:***@host:5000/x"),
        ("https://secret@host", "https://***@host"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql+psycopg://me:se/cr@et@h/db", "postgresql+psycopg://me:***@h/db"),
        ("mysql://:secret@host/db", "mysql://:***@host/db"),
        (
            "postgresql://h/db?user=me&password=secret&a=b",
            "postgresql://h/db?user=me&password=***&a=b",
        ),
        ("postgresql://h/db?sslPassword=secret", "postgresql://h/db?sslPassword=***"),
        ("http://h/?access_token=secret#x", "http://h/?access_token=***#x"),
        ("x=http://a:secret@h,http://b:secret@i", "x=http://a:***@h,http://b:***@i"),
        ("sqlite:////home/me:you@x/f.db", "sqlite:////home/me:you@x/f.db"),
        ("url 'http://me:secret@h' failed", "url 'http://me:***@h' failed"),
        ("no address: a@b", "no address: a@b"),
        ("databricks://secret@h", "databricks://***@h"),
        ("x://secret@h", "x://***@h"),
        ("mysql+pymysql://me@h/db", "mysql+pymysql://me@h/db"),
        ("me:secret@h", "***@h"),
        ("tracking.uri=me:sec/ret@h", "tracking.uri=***@h"),
        ("tracking.uri='secret@h'", "tracking.uri='***@h'"),
        ("tracking={name: mlflow, uri: me:secret@h}", "tracking={name: mlflow, uri: ***@h}"),
        ("fl-kit report --uri me:secret@h", "fl-kit report --uri ***@h"),
        ("tracking.uri=sqlite:///a,me:secret@h", "tracking.uri=sqlite:///a,***@h"),
        ("tracking.uri=http://h/,http://me:secret@h", "tracking.uri=http://h/,http://me:***@h"),
        ("tracking.uri=sqlite:////home/me:you@x", "tracking.uri=sqlite:////home/me:you@x"),
        ("model@stack=linear", "model@stack=linear"),
        ("dataset.path=C:a@b.csv", "dataset.path=C:a@b.csv"),
        ("model_uri: models:/iris@best", "model_uri: models:/iris@best"),
        ("{uri: http://me:secret@[::1]:5000}", "{uri: http://me:***@[::1]:5000}"),
        ("{uri: http://me:sec}ret@h}", "{uri: http://me:***@h}"),
        ("{uri: http://h?password=secret}", "{uri: http://h?password=***}"),
        (
            "{uri:http://a:secret@h},{uri:http://b:secret@i}",
            "{uri:http://a:***@h},{uri:http://b:***@i}",
        ),
    ],
)
def test_secrets_of_addresses_are_masked(uri: str, shown: str) -> None:
    """User names, hosts and plain options stay; what is masked stays as it is."""
    assert masked(uri) == masked(shown) == shown


@pytest.mark.parametrize(
    "uri", ["http://me:secret@h:1", "http://secret@[::1]", "mysql://me:sec}ret@h,i/db"]
)
@pytest.mark.parametrize(
    "typed", ["uri={}", "{{uri: {}}}", "{{uri: {}, a: b}}", "[{{uri:{},a:b}},{{a:b}}]", "{}/"]
)
def test_an_address_is_found_whole(uri: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that was typed in a mapping or a list is kept for whoever has the masked URI."""
    monkeypatch.setenv("FL_APP_TRACKING_URIS", "")
    assert "ret@" not in keep_secrets(typed.format(uri))
    assert whole(masked(uri)).rstrip("/") == uri
    with pytest.raises(ConfigError, match="which is not kept"):
        whole(masked(f"{uri}0"))


def test_half_an_address_is_not_shown() -> None:
    """Wherever a text is cut, no beginning of a password is left over."""
    for blanks in range(60):
        text = "x" * blanks + " http://me:secret@host"
        assert "sec" not in printable(text, 40)
        assert "sec" not in str(InputError("k", text, "other"))
        assert "sec" not in printable(text + "y" * 10_000, blanks + 15)


@pytest.mark.parametrize(
    "piece", ["://a:", "://a,b", ",aaaa", "?pass", "http://", "://h?p=", "uri=", "uri=a://,"]
)
def test_no_text_takes_long(piece: str) -> None:
    """A node's text of any length costs what its first 8000 characters cost."""
    counted = masked(piece * 2000)
    assert len(counted) <= len(piece) * 2000
    assert len(printable(piece * 1_000_000)) <= 4000


def test_errors_and_log_lines_are_clean(caplog: pytest.LogCaptureFixture) -> None:
    """An exception of ours, anybody's in one line, and a record of our log, before any handler."""
    for error in (FlAppError(EVIL), DataError(EVIL, EVIL, EVIL)):
        assert is_clean(str(error))
    assert is_clean(one_line(ValueError(EVIL)))
    logging.getLogger("fl_app").warning("%s says %s", "node", EVIL)
    assert is_clean(caplog.messages[-1])


def tampered(answer: Callable[[Message, Context], Message]) -> ClientApp:
    """Make a client of which partition 0 answers by `answer`, the others as they should."""

    def act(message: Message, context: Context) -> Message:
        return (answer if context.node_config["partition-id"] == 0 else app)(message, context)

    hostile = ClientApp()
    for kind in (hostile.query("describe"), hostile.train(), hostile.evaluate()):
        kind(act)
    return hostile


def raising(at: str) -> Callable[[Message, Context], Message]:
    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == at:
            raise RuntimeError(EVIL)
        return app(message, context)

    return answer


def describing(**changes: Any) -> Callable[[Message, Context], Message]:
    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type != protocol.DESCRIBE:
            return reply
        told = description.to_record(replace(description.from_message(reply), **changes))
        return Message(told, reply_to=message)

    return answer


def babbling(message: Message, context: Context) -> Message:
    """Add a metric of that name in training."""
    reply = app(message, context)
    if message.metadata.message_type == "train":
        reply.content["metrics"][EVIL] = 1.0
    return reply


@pytest.mark.parametrize(
    "answer",
    [
        raising(protocol.DESCRIBE),
        raising("train"),
        raising("evaluate"),
        describing(code=EVIL),
        describing(task=EVIL),
        describing(columns=[EVIL]),
        describing(num_examples=EVIL),
        describing(num_validation=EVIL),
        babbling,
    ],
)
def test_no_node_commands_the_terminal(
    answer: Callable[[Message, Context], Message],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Failures, and every field of a handshake or reply that is put into a message."""
    monkeypatch.setattr("fl_app.runtimes.inprocess.client_app", tampered(answer))
    words = ["dataset=iris", "num_clients=3", "num_server_rounds=1", "tracking=none"]
    run(RunRequest(compose_config([*words, f"output_dir={tmp_path}"])))
    out, err = capfd.readouterr()
    assert is_clean(out)
    assert is_clean(err)
    assert "owned" in out
    assert not any(line.startswith("fl_app |") for line in out.splitlines())


def test_no_log_of_a_run_elsewhere_commands_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """A launcher repeats lines of a ServerApp that may run anybody's code."""
    deployment._Log()(f"{LINE_PREFIX}{EVIL}")
    simulation._show(f"{LINE_PREFIX}{EVIL}")
    assert is_clean(capfd.readouterr().out)


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_no_run_that_was_found_commands_the_terminal(
    sweep: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A tracker says which run is skipped, in a name and an id of its own."""
    found = RunSummary(EVIL, {}, name=f"{EVIL} http://me:secret@h")
    monkeypatch.setattr(command, "_finished", lambda config: found)
    monkeypatch.setattr(command, "_begun", [])
    monkeypatch.chdir(tmp_path)
    words = [*sweep, "dataset=iris", "tracking=none"]
    monkeypatch.setattr(sys, "argv", ["fl-app", *words])
    command.main()
    out, err = capfd.readouterr()
    assert "skipped, finished as run" in out
    assert "owned" in out
    assert "secret" not in out + err
    assert is_clean(out)
    assert is_clean(err)


def test_no_word_that_was_typed_commands_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A flag that is none is refused in one line, without what a terminal obeys."""
    words = ["fl-app", "dataset=iris", "-m", "seed=0", f"--no{EVIL}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    err = capfd.readouterr().err
    assert err.startswith("fl-app: unrecognized arguments: --no")
    assert len(err.splitlines()) == 1
    assert is_clean(err)


def test_no_table_commands_the_terminal() -> None:
    """A tracking server's names, in a report on a terminal, in a pipe, in Markdown."""
    blocks = [EVIL, TextTable(EVIL, (EVIL, "b"), ((EVIL, EVIL),))]
    assert is_clean(to_text(blocks))
    assert is_clean(to_markdown(blocks))
    screen = io.StringIO()
    show(blocks, Console(file=screen, force_terminal=True, no_color=True, width=80))
    assert "]0;owned\x07" not in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
    assert "\x9b" not in screen.getvalue()


def test_the_console_prints_no_commands() -> None:
    """With a prefix, each line of ours begins with it, whatever stands in the text."""
    for prefix in ("", LINE_PREFIX):
        screen = io.StringIO()
        ConsoleTracker(prefix, Console(file=screen, width=200)).say(EVIL)
        assert is_clean(screen.getvalue())
        assert len(screen.getvalue().splitlines()) == 1


@pytest.mark.parametrize("where", ["header", "cell", "label", "target"])
def test_no_file_commands_the_terminal(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """``fl-kit check`` shows headers, cells and labels; what is no column is repeated."""
    evil = EVIL.replace("\ud800", "").replace("\r\n", "").replace("\x85", "").replace("\u2028", "")
    head, cells, target = ["age", "y"], [["30", "a"], ["40", "b"]] * 3, "y"
    if where == "header":
        head[0] = evil
    elif where == "cell":
        cells[1][0] = evil
    elif where == "label":
        cells[0][1] = evil
    else:
        target = evil
    file = tmp_path / "rows.csv"
    lines = [",".join(row) for row in [head, *cells]]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["fl-kit", "check", str(file), "--target", target])
    with contextlib.suppress(SystemExit):  # some of these files can be used
        kit.main()
    out, err = capfd.readouterr()
    assert "owned" in out + err
    assert is_clean(out)
    assert is_clean(err)


def test_a_trackers_answer_is_one_clean_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tracking server says when it refuses is shown in the warning."""

    def refuse(*_: Any) -> None:
        raise OSError(EVIL)

    monkeypatch.setattr("fl_app.tracking.mlflow.backend.MlflowStore.create_run", refuse)
    monkeypatch.setattr("fl_app.tracking.mlflow.backend.MlflowStore.find_run", refuse)
    monkeypatch.setattr("fl_app.tracking.mlflow.uploader._LAST_TRY_SECONDS", 0.0)
    words = ["dataset=iris", "num_clients=2", "num_server_rounds=1", "tracking.figures=false"]
    run(RunRequest(compose_config([*words, f"output_dir={tmp_path}"])))
    out, err = capfd.readouterr()
    assert "owned" in out
    assert is_clean(out)
    assert is_clean(err)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "iso-8859-1", "utf-8"])
def test_any_output_can_say_what_we_say(encoding: str) -> None:
    """What an encoding has stays; Σ, ±, × and boxes are plain where it lacks them; all is said."""
    text = "W(1) = Σ n_k/N · W_k: 0.5 ± 0.1 at 2 × its bytes², ┃ ━━ ┏ … größe 数"
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    plain_where_needed(stream)
    print(text, file=stream, flush=True)
    shown = raw.getvalue().decode(encoding).rstrip("\n")
    assert shown == sayable(text, encoding)
    if encoding == "utf-8":
        assert shown == text
    if encoding == "ascii":
        assert shown == (
            "W(1) = sum n_k/N * W_k: 0.5 +/- 0.1 at 2 x its bytes^2, | -- + ... "
            "gr\\u00f6\\u00dfe \\u6570"
        )
    if encoding == "cp1252":
        assert "0.5 ± 0.1 at 2 × its bytes², | -- + … größe" in shown


@pytest.mark.parametrize("prefix", ["", LINE_PREFIX])
def test_a_lesson_on_an_ascii_terminal(prefix: str, tmp_path: Path) -> None:
    """The whole of a run is said; behind Flower's log, already when it is written there."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii", write_through=True)
    console = ConsoleTracker(prefix, Console(file=stream, width=200))
    if prefix:
        stream.reconfigure(errors="strict")
    console.say("W(1) = Σ n_k/N · W_k")
    assert raw.getvalue().decode("ascii") == f"{prefix}W(1) = sum n_k/N * W_k\n"


@pytest.mark.parametrize("words", [["experiment=two_lines"], ["-m", "dataset=iris", "seed=0,1"]])
def test_a_run_on_an_ascii_terminal(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The lesson's Σ and the sweep's ± cost no traceback after the work is done."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    monkeypatch.setattr(command, "_begun", [])
    words = [*words, "tracking=none", "num_server_rounds=1", "num_clients=2"]
    monkeypatch.setattr(sys, "argv", ["fl-app", *words])
    command.main()
    out = raw.getvalue().decode("ascii")
    assert ("W(1) = sum n_k/N * W_k" if words[0] != "-m" else "mean +/- sd over seeds") in out


def test_a_check_on_an_ascii_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of columns are said, too."""
    file = tmp_path / "rows.csv"
    file.write_text("größe,y\n" + "1,a\n2,b\n" * 6, encoding="utf-8")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    assert fl_kit(monkeypatch, "check", str(file), "--target", "y") == 0
    assert b"gr\\u00f6\\u00dfe" in raw.getvalue()
