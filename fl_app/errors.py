"""Exceptions of fl_app, in one tree, and how a text becomes fit to be shown.

Texts of nodes, trackers and files reach a terminal, and texts of the tracker's libraries repeat
its address with the password. So whatever is shown or logged passes through :func:`printable`: our
exceptions when they become text, the records of the log ``fl_app`` before any handler sees them,
and the console.

::

    FlAppError                    anything fl_app raises on purpose
    ├── InputError                the user's mistake, found before any work      exit status 2
    │   ├── ConfigError           a config key: its name, its value, what is allowed
    │   └── DataError             a table or a file: its name, its problem, what is allowed
    ├── DiskError                 no room for a run's record              exit status 1
    ├── FederationError           nodes and replies: too few, none usable         exit status 1
    └── RunError                  a run that a runtime reports as failed          exit status 1

    KeyboardInterrupt
    └── SignalInterrupt           Ctrl-C, SIGTERM, SIGHUP        exit status 128 + its number

References
----------
Unicode, bidirectional controls: https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters
"""

from __future__ import annotations

import codecs
import logging
import os
import re
import signal
from typing import IO

__all__ = [
    "ADDRESS",
    "DIVERGED",
    "ConfigError",
    "DataError",
    "DiskError",
    "FederationError",
    "FlAppError",
    "InputError",
    "RunError",
    "SignalInterrupt",
    "masked",
    "one_line",
    "plain_where_needed",
    "printable",
    "sayable",
]

_PLAIN = {"\N{GREEK CAPITAL LETTER SIGMA}": "sum", "\N{PLUS-MINUS SIGN}": "+/-"}
_PLAIN |= {"\N{MULTIPLICATION SIGN}": "x", "\N{MIDDLE DOT}": "*", "\N{SUPERSCRIPT TWO}": "^2"}
_PLAIN |= {"\N{HORIZONTAL ELLIPSIS}": "...", **dict.fromkeys("\N{EN DASH}\N{EM DASH}", "-")}
_PLAIN |= {**dict.fromkeys("─━═", "-"), **dict.fromkeys("│┃║", "|")}
"""What stands for a character that an output cannot say; "+" for the rest of a box."""

DIVERGED = "training diverged"
"""What the error of a run says that failed because of its own steps."""
_ASKED = {
    "SIGTERM": "interrupted by SIGTERM, which kill, a container or a batch system sends",
    "SIGHUP": "interrupted by SIGHUP: the terminal was closed",
}
_LONGEST = 4000
_HIDDEN = "***"

# What a terminal obeys or hides: C0 and C1 controls, line separators, marks that turn the direction
# of text or have no width; and halves of characters, which no encoding can write.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
# One URI each: a comma, or what names a value, before the next one separates them.
ADDRESS = re.compile(r"""://(?:(?![,:=]\w+://)[^\s"'<>])*""")
_DATABASE = re.compile(r"(?:postgres(?:ql)?|mysql|mssql)(?:\+\w+)?$")
# A value of a `uri`, or the beginning of a text, whose scheme was forgotten; perhaps after others.
_BARE = re.compile(
    r"""((?:^(?!uri|\S*://)(?=[\w.+-]*:)|(?<![a-z])uri["']?[=:\s]\s*["'\[]*)"""
    r"""(?:\w[\w+.-]*://[^\s,@]*,)*)"""
    r"""(?!\w[\w+.-]*:/)[^\s"'<>]*@""",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"([?&;][\w.%-]*(?:pass|pwd|secret|token|credential|api_?key)[\w.%-]*=)[^&;#]*", re.IGNORECASE
)


def masked(text: str) -> str:
    """Return a text whose URIs may be shown: without passwords, tokens and secret options.

    Parameters
    ----------
    text : str
        Any text. A URI in it ends at a blank or a quotation mark.

    Returns
    -------
    str
        ``***`` stands for the password in ``user:password@``, for all before the ``@`` of a web
        address that has no colon there (a token; a database's is its user), for all before the
        ``@`` of a ``uri=`` without a scheme, and for the values of ``?password=``, ``token=`` and
        their like.

    Examples
    --------
    >>> masked("at http://me:secret@host/a and postgresql://me@host/db?sslpassword=x")
    'at http://me:***@host/a and postgresql://me@host/db?sslpassword=***'
    """
    if "@" in text:
        text = _BARE.sub(rf"\1{_HIDDEN}@", text)
    return ADDRESS.sub(_mask, text) if "://" in text else text


def _mask(found: re.Match[str]) -> str:
    text, begin = found[0].rstrip("]},"), found.start()  # of a mapping or a list around it
    rest = found[0][len(text) :]
    scheme = found.string[max(0, begin - 30) : begin].lower()
    web = scheme.endswith(("http", "https"))
    authority = re.split(r"[/?#]", text[3:], maxsplit=1)[0]
    if "@" in authority:
        owner = authority.rpartition("@")[0]
    elif ":" in authority and not (web and authority.rpartition(":")[2].isdigit()):
        owner = text[3:].rpartition("@")[0]  # a password that holds a slash, as SQLAlchemy takes it
    else:
        owner = ""
    user, colon, _ = owner.partition(":")
    if colon:
        text = f"://{user}:{_HIDDEN}{text[3 + len(owner) :]}"
    elif owner and not _DATABASE.search(scheme):
        text = f"://{_HIDDEN}{text[3 + len(owner) :]}"
    return _SECRET.sub(rf"\1{_HIDDEN}", text) + rest


def printable(text: object, most: int = _LONGEST) -> str:
    r"""Return a text as one line that can be shown to a person, whoever wrote it.

    Parameters
    ----------
    text : object
        What to show; ``str`` is taken of it.
    most : int, default 4000
        Characters that are kept.

    Returns
    -------
    str
        Passwords are masked; line ends and tabs are blanks; other control characters, marks that
        turn the direction of text, and halves of characters are ``?``.

    Examples
    --------
    >>> printable("a\x1b[2Jb\nc")
    'a?[2Jb c'
    """
    whole = str(text)
    # Masked before it is cut: half a URI would not be known as one. So its end is left out too.
    shown = masked(whole[: most + _LONGEST])
    shown = _CONTROL.sub(lambda found: " " if found[0].isspace() else "?", shown)
    if len(whole) > most + _LONGEST:
        return f"{shown[:-_LONGEST][: most - 3]}..."
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    bad = error.object[error.start : error.end]
    shown = (_PLAIN.get(c) or ("+" if "─" <= c <= "╿" else f"\\u{ord(c):04x}") for c in bad)
    return "".join(shown), error.end


codecs.register_error("fl_app.plain", _replace)


def plain_where_needed(stream: IO[str]) -> None:
    """Let an output whose encoding lacks characters (cp1252, ASCII) say them in plain ones.

    Parameters
    ----------
    stream : text file
        Standard output, for example; one that cannot be told so is left as it is.
    """
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="fl_app.plain")


def sayable(text: str, encoding: str | None) -> str:
    """Return a text as an output with an encoding can say it.

    Examples
    --------
    >>> sayable("0.5 ± 0.1", "ascii")
    '0.5 +/- 0.1'
    """
    known = encoding or "utf-8"
    return text.encode(known, "fl_app.plain").decode(known)


def one_line(error: BaseException, most: int = _LONGEST) -> str:
    """Return an exception as one printable line: its class where it is not ours, and its text."""
    text = " ".join(str(error).split())
    if not isinstance(error, FlAppError | SignalInterrupt):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return printable(text, most)


class FlAppError(Exception):
    """Base class of every exception that fl_app raises on purpose; its text is printable."""

    exit_status = 1

    def __str__(self) -> str:
        """Return the text as it may be shown."""
        return printable(super().__str__())


class InputError(FlAppError):
    """A mistake in what the user gave, said in one line.

    Parameters
    ----------
    field : str
        Name of the offending field, as the user types it (``strategy.server_learning_rate``).
    value : object
        The value that was given.
    allowed : str
        What is allowed instead.
    """

    exit_status = 2

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}={_show(value)}: {allowed}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        """Make it anew in another process: an exception is pickled by its message alone."""
        return type(self), (self.field, self.value, self.allowed)


class ConfigError(InputError):
    """A config key with a wrong name, type or value."""


class DataError(InputError):
    """A table or file that a run cannot use."""


class DiskError(FlAppError):
    """A disk without room for a run's record: the run ends, and what was recorded stays."""


class FederationError(FlAppError):
    """Too few nodes or replies for a round to have a result."""


class RunError(FlAppError):
    """A run that ended as failed or stopped in the runtime that ran it."""


class SignalInterrupt(KeyboardInterrupt):
    """A signal asks the process to end; whatever ends for Ctrl-C ends for it.

    Parameters
    ----------
    signum : int
        SIGINT, SIGTERM or SIGHUP.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """What a process returns that it ends: 128 and its number, as shells count."""
        return 128 + self.signum

    def __str__(self) -> str:
        """Say in plain words who asked."""
        return _ASKED.get(signal.Signals(self.signum).name, "interrupted")


def _show(value: object) -> str:
    """Show a value as a config would, on one line of at most 80 characters; a path whole."""
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    most = _LONGEST if isinstance(value, os.PathLike) else 80
    return printable(" ".join(str(value).split()), most)


def _clean(record: logging.LogRecord) -> bool:
    """Make what is logged printable, whichever handler there is."""
    record.msg, record.args = printable(record.getMessage(), _LONGEST // 2), ()
    return True


logging.getLogger("fl_app").addFilter(_clean)
