"""Where records go: the tracking URI, checked before any work, and its default.

References
----------
MLflow, backend stores: https://mlflow.org/docs/latest/self-hosting/architecture/backend-store/
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from fl_app.config.passwords import whole
from fl_app.errors import ConfigError, masked
from fl_app.home import home_dir

__all__ = [
    "charts_url",
    "check_uri",
    "default_uri",
    "is_http",
    "masked",
    "run_url",
    "sqlite_path",
    "sqlite_uri",
    "ui_command",
]

_ALLOWED = (
    "sqlite:////absolute/path.db, http(s)://host[:port], or postgresql://, mysql:// or mssql:// "
    "with an installed driver"
)
_DATABASES = frozenset({"postgresql", "mysql", "mssql"})
_UI = "http://127.0.0.1:5000"
_MODE = "workflowType=machine_learning"
"""Without it MLflow 3 opens the page in its mode for language models."""


def default_uri(home: str | Path | None = None) -> str:
    """Return the tracking URI of a user who gave none.

    Parameters
    ----------
    home : path, optional
        As in :func:`~fl_app.home.home_dir`.

    Returns
    -------
    str
        ``MLFLOW_TRACKING_URI`` if set, else ``mlflow.db`` in the home.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(home_dir(home) / "mlflow.db")


def check_uri(uri: str, field: str = "tracking.uri") -> str:
    """Reject a tracking URI that can never work.

    A server is not contacted: one that is down now may be there later. The directory of a SQLite
    file is made and tried.

    Parameters
    ----------
    uri : str
        ``sqlite:///``, ``http://``, ``https://``, ``postgresql://``, ``mysql://``, ``mssql://``.
    field : str, default "tracking.uri"
        What the user calls it.

    Returns
    -------
    str
        `uri`, with the password that a masked one stands for; a relative SQLite path is made
        absolute, so that it means the same file everywhere.

    Raises
    ------
    ConfigError
        If it is malformed, of another kind (MLflow's file store is gone), or cannot be written.
    """
    if re.search(r"""[\s"'<>]""", uri) and sqlite_path(uri) is None:
        # Where it would end is not known, so nothing of it is shown.
        field_value = f"{uri.partition('://')[0][:20]}://..." if "://" in uri else "..."
        raise ConfigError(
            field, field_value, "no blanks and quotation marks (%20, %22 stand for them)"
        )
    uri = whole(uri)
    scheme = re.match(r"[a-z]+", uri)
    kind = scheme.group() if scheme else ""
    try:
        if kind == "sqlite":
            return _check_sqlite(uri)
        if kind in ("http", "https"):
            if not uri.startswith(f"{kind}://") or not _has_host(uri):
                raise ValueError("no host, or no port from 1 to 65535")
            return uri.rstrip("/")
        if kind in _DATABASES:
            return _check_database(uri)
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(field, masked(uri), f"{error}; allowed: {_ALLOWED}") from None
    raise ConfigError(field, masked(uri), f"must be {_ALLOWED}")


def _has_host(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # which repeats what it took for the port: half a password, perhaps
        return False


def _check_sqlite(uri: str) -> str:
    path = sqlite_path(uri)
    if path is None:
        raise ValueError("not a SQLite file, in whose path %3F stands for a question mark")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass  # SQLite writes its journal beside the file
    if path.exists():
        _check_file(path)
    return sqlite_uri(path)


def _check_file(path: Path) -> None:
    """Let SQLite look at a file.

    Nobody else may: a process that closes any file descriptor of a database drops all locks that
    its connections hold on it, and another process may then take the log that they write to.
    https://www.sqlite.org/howtocorrupt.html, section 2.2
    """
    import sqlite3

    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(f"no permission to write to {path}")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=0.0)) as file:
            file.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise ValueError(str(error)) from None
    except sqlite3.DatabaseError:
        raise ValueError("the file is not a SQLite database") from None


def _check_database(uri: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
    except SQLAlchemyError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except ModuleNotFoundError as error:
        if error.name != "psycopg":  # which `postgresql://` means
            raise
        raise ValueError("its driver is missing: pip install 'fl-app[postgres]'") from None
    if not url.host or not url.database:
        raise ValueError("no host or no database")
    return uri


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite URI's file, None for any other URI.

    ``%20`` and its like stand for characters, as SQLAlchemy reads them; ``~`` is the home.
    """
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    if match is None or match.group(1) == ":memory:":
        return None
    return Path(unquote(match.group(1))).expanduser().absolute()


def sqlite_uri(path: Path) -> str:
    """Return the URI that :func:`sqlite_path` reads as this path."""
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    # MLflow makes the folder that `sqlite:///` names, without reading `%25` as SQLAlchemy does.
    return f"sqlite{'' if quoted == str(path) else '+pysqlite'}:///{quoted}"


def is_http(uri: str) -> bool:
    """Return whether a URI is that of a tracking server."""
    return uri.startswith(("http://", "https://"))


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page in the UI.

    Parameters
    ----------
    uri : str
        Tracking URI. The UI of a server is the server; for a database it is the one that
        :func:`ui_command` opens.
    experiment_id, run_id : str
        MLflow's ids.

    Returns
    -------
    str
    """
    return f"{_runs_page(uri, experiment_id)}/{run_id}?{_MODE}"


def charts_url(uri: str, experiment_id: str, where: str = "", view: str = "") -> str:
    """Return the address of the charts over an experiment's runs in the UI.

    Parameters
    ----------
    uri : str
        As in :func:`run_url`.
    experiment_id : str
        MLflow's id.
    where : str, optional
        Which runs, as MLflow's search takes it.
    view : str, optional
        Key of a shared view, which has its own filter: MLflow opens none beside another one.
    """
    choice = f"viewStateShareKey={quote(view)}" if view else f"searchFilter={quote(where)}"
    return f"{_runs_page(uri, experiment_id)}?{_MODE}&compareRunsMode=CHART&{choice}"


def _runs_page(uri: str, experiment_id: str) -> str:
    # Without the user: a browser would take "***" for the password.
    base = re.sub(r"://[^/]*@", "://", uri) if is_http(uri) else _UI
    return f"{base}/#/experiments/{experiment_id}/runs"


def ui_command(uri: str) -> str:
    """Return the command that opens the UI on a store.

    Parameters
    ----------
    uri : str
        Tracking URI.

    Returns
    -------
    str
        One line for a shell; empty for a server, which is its own UI. By default MLflow would
        start 15 processes with 2.5 GB; so it is two with 0.4 GB.
    """
    if is_http(uri):
        return ""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", masked(uri)]
    command += ["--host", "127.0.0.1", "--port", "5000", "--workers", "1"]
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.join(command)}"
