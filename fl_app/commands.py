"""``fl-kit``: the commands around a run.

Exit status as for ``fl-app``: 0 done, 1 failed, 2 bad input (one line), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import typer

from fl_app.errors import FlAppError, InputError

__all__ = ["main"]

app = typer.Typer(
    name="fl-kit",
    help="The commands around a federated run; fl-app makes the run itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Keep `ui` a command of its own while it is the only one."""


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the page on 127.0.0.1.")] = 5000,
    uri: Annotated[str, typer.Option(help="Tracking URI; default: where runs are logged.")] = "",
) -> None:
    """Open the MLflow UI on the store that runs are logged to; Ctrl-C ends it."""
    if not 1 <= port <= 65535:
        raise InputError("--port", port, "an integer from 1 to 65535")
    from fl_app.tracking.store import check_uri, default_uri, is_http

    store = check_uri(uri or default_uri())
    if is_http(store):
        raise InputError("tracking URI", store, "a database: a server is its own UI, open it there")
    # By default MLflow would start 15 processes with 2.5 GB for this.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    print(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning", flush=True)
    os.execv(words[0], words)


def main() -> None:
    """Run the command line."""
    try:
        app(standalone_mode=False)
    except FlAppError as error:
        _fail(str(error), error.exit_status)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)


def _fail(text: str, status: int) -> None:
    print(f"fl-kit: {text}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
