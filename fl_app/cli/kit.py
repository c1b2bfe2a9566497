"""``fl-kit``: the commands around a run.

Exit status as for ``fl-app``: 0 done, 1 failed, 2 bad input (one line), 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from typing import Annotated, cast

import click
import typer

import fl_app
from fl_app.cli.broken_pipe import reader_may_leave
from fl_app.config.options import Task
from fl_app.errors import FlAppError, InputError, printable
from fl_app.home import home_dir

__all__ = ["main"]

app = typer.Typer(
    name="fl-kit",
    help="""\b
    The commands around a federated run; fl-app makes the run itself.
    They compare what it recorded, show it live or in MLflow, send what waits;
    they say beforehand whether a file of yours could be used.

    \b
      fl-kit check patients.csv --target outcome
      fl-kit report --baseline strategy=fedavg --metric server/accuracy
      fl-kit dashboard
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"fl-kit {fl_app.__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Take what stands before a command."""


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the page on 127.0.0.1.")] = 5000,
    uri: Annotated[str, typer.Option(help="Tracking URI; default: where runs are logged.")] = "",
) -> None:
    """Open the MLflow UI on the store that runs are logged to; Ctrl-C ends it."""
    _check_free(port)
    from fl_app.tracking.mlflow.uri import check_uri, default_uri, is_http

    store = check_uri(uri or default_uri())
    if is_http(store):
        raise InputError("tracking URI", store, "a database: a server is its own UI, open it there")
    # By default MLflow would start 15 processes with 2.5 GB for this.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    # Every user of the machine sees a process's arguments, and a URI may hold a password.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = store
    words = [sys.executable, "-m", "mlflow", "server"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    print(f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning", flush=True)
    home_dir().mkdir(parents=True, exist_ok=True)
    os.chdir(home_dir())  # uvicorn looks for modules in its working directory first
    os.execv(words[0], words)


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(help="Port of the page on 127.0.0.1.")] = 8501,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page where there is a screen.")
    ] = True,
) -> None:
    """Open the live page: choose, start and watch runs; Ctrl-C ends the page, not the runs."""
    _check_free(port)
    from fl_app.dashboard.start import serve

    serve(port, browser)


@app.command()
def runs(
    last: Annotated[int, typer.Option("-n", "--last", help="The newest so many; 0: all.")] = 20,
) -> None:
    """List the runs that this machine has kept: how they ended, and what waits for MLflow."""
    from fl_app.cli.runs import table

    table(home_dir(), last)


@app.command()
def sync(
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    uri: Annotated[
        str, typer.Option(help="Send all to this store instead of the one that each run names.")
    ] = "",
) -> None:
    """Send what waits for MLflow: exit status 0 if nothing waits any more, else 1."""
    from fl_app.cli.runs import send

    if not send(home_dir(), uri or None, watch):
        raise typer.Exit(1)


@app.command()
def clean(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN]...", help="These, whether sent or not.")
    ] = None,
    days: Annotated[float, typer.Option(help="Else what is over, sent and so old.")] = 7.0,
) -> None:
    """Remove runs from this machine; what MLflow has of them stays there."""
    if days < 0:
        raise InputError("--days", days, "a number from 0")
    from fl_app.cli.runs import remove

    remove(home_dir(), names or (), days)


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="CSV or Parquet file.")],
    target: Annotated[list[str] | None, typer.Option(help="Column to predict.")] = None,
    task: Annotated[str, typer.Option(help="regression or classification; default: guess.")] = "",
    features: Annotated[list[str] | None, typer.Option(help="Columns to predict from.")] = None,
    categorical: Annotated[list[str] | None, typer.Option(help="Columns taken as texts.")] = None,
    key: Annotated[str, typer.Option(help="Column that names each row's client.")] = "",
) -> None:
    """Say what a node would say of its file: exit status 0 if a run could use it, 2 if not."""
    if task not in ("", "regression", "classification"):
        raise InputError("--task", task, "regression or classification")
    from fl_app.data.file_report import report

    kind = cast(Task, task) if task else None
    checked = report(file, target or None, kind, features or None, categorical or None, key or None)
    print(checked.render())
    if not checked.usable:
        raise typer.Exit(2)


@app.command()
def run(
    app_dir: Annotated[str, typer.Argument(help="Folder of a Flower app.")],
    num_supernodes: Annotated[
        int, typer.Option("-n", "--num-supernodes", help="Number of clients.")
    ] = 10,
    config: Annotated[
        list[str] | None,
        typer.Option("-c", "--run-config", help="As for flwr run: 'key=1 name=\"x\"' or a file."),
    ] = None,
    num_workers: Annotated[int, typer.Option(help="Processes that the clients run in.")] = 1,
    track: Annotated[
        bool, typer.Option("--track", help="Record the app's strategy in MLflow, round by round.")
    ] = False,
) -> None:
    """Run any Flower app in this process, as flwr run would in its simulation."""
    from fl_app.runtimes.folders import run_folder

    print(printable(run_folder(app_dir, num_supernodes, config or (), num_workers, track)))


@app.command()
def init(folder: Annotated[str, typer.Argument(metavar="DIR", help="A new folder.")]) -> None:
    """Write a Flower project that uses this package: a model, a data set, a test, a README."""
    from fl_app.cli.project import init as write

    written = write(folder)
    for path in written:
        print(printable(path))
    print(printable(f"cd {shlex.quote(folder)}; README.md says what to type"))


@app.command()
def options(
    group: Annotated[str, typer.Argument(help="dataset, model, strategy, ...; default: all.")] = "",
    app_dir: Annotated[str | None, typer.Option("--app", help="Folder of a project.")] = None,
) -> None:
    """Say what a config can choose, one line each, and from whom it is."""
    from fl_app.cli.project import options as lines

    for line in lines(group, app_dir):
        print(printable(line))


@app.command()
def report(
    mlflow_experiment: Annotated[str, typer.Option(help="MLflow experiment; default: all.")] = "",
    sweep: Annotated[str, typer.Option(help="Only runs of this sweep (tag sweep.id).")] = "",
    metric: Annotated[str, typer.Option(help="What is compared.")] = "server/accuracy",
    baseline: Annotated[
        str,
        typer.Option(
            help="KEY=VALUE[,KEY=VALUE]: the compared params, the values to compare with."
        ),
    ] = "strategy=fedavg",
    tune: Annotated[
        list[str] | None,
        typer.Option(help="Param whose best value counts, chosen by seed: model.learning_rate."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="Metric that chooses; default: eval/accuracy or eval/mse.")
    ] = "",
    expect: Annotated[
        list[str] | None, typer.Option(help="'a>b', 'a>b+0.01' or 'a>b-0.01', to be checked.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit status 1 if an expectation does not hold, or on too little."
        ),
    ] = False,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Param that may differ between paired runs; * allowed.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only runs with these params: KEY=VALUE[,VALUE].")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Differences up to this are ties.")] = 0.0,
    target: Annotated[
        float | None, typer.Option(help="Say in which round the metric first is as good as this.")
    ] = None,
    out: Annotated[str, typer.Option(help="Folder for report.md, .tex, .csv and .json.")] = "",
    html: Annotated[str, typer.Option(help="File for all of it as one page, with figures.")] = "",
    figures: Annotated[str, typer.Option(help="Folder for the figures as SVG and PDF.")] = "",
    store: Annotated[
        bool, typer.Option("--store", help="Store these in MLflow too, with the sweep of --sweep.")
    ] = False,
    uri: Annotated[str, typer.Option(help="Tracking URI; default: where runs are logged.")] = "",
) -> None:
    """Compare runs in pairs that agree on everything but the baseline's params and what is tuned.

    Tables: each at its end, where rounds differ; at equal rounds; at equal bytes.
    """
    from fl_app import report as reporting

    name, sweep_id = mlflow_experiment or None, sweep or None
    if store and not sweep:
        raise InputError("--store", True, "only with --sweep, whose comparison it is")
    if strict and not expect:
        raise InputError("--strict", True, "at least one --expect, which it is about")
    reporting.check_target(target)
    for option, place in {"--out": out, "--html": html, "--figures": figures}.items():
        if place:
            reporting.check_place(option, place, option != "--html")
    runs = reporting.read_runs(
        uri or None, experiment=name, sweep=sweep_id, metric=metric, by=by if tune else None
    )
    runs = reporting.select(runs, where or ())
    comparison = reporting.compare(
        runs,
        baseline=baseline,
        metric=metric,
        ignore=ignore or (),
        tolerance=tolerance,
        tune=tune or (),
        by=by,
        target=target,
    )
    if strict:
        counted = comparison.design.runs.values()
        reporting.check_sound(run for seeds in counted for run in seeds.values())
    outcomes = [reporting.expect(comparison, text) for text in expect or ()]
    blocks = [*reporting.comparison_blocks(comparison, outcomes)]
    blocks += [*reporting.target_blocks(comparison), *reporting.sentences(comparison)]
    reporting.show(blocks)
    command = shlex.join(["fl-kit", *sys.argv[1:]])
    if out:
        for path in reporting.write_report(out, comparison, outcomes, command):
            print(printable(path))
    if html or figures:
        from fl_app.cli.reports import write_pages

        for line in write_pages(comparison, outcomes, command, uri or None, html, figures):
            print(printable(line))
    if store:
        run_id = reporting.store_report(uri or None, sweep, comparison, outcomes, command)
        print(f"stored in MLflow as the run comparison, {run_id}")
    if strict and not all(outcome.holds_strictly for outcome in outcomes):
        raise typer.Exit(1)


@reader_may_leave()
def main() -> None:
    """Run the command line."""
    try:
        status = app(standalone_mode=False)
        if isinstance(status, int) and status:
            sys.exit(status)
    except FlAppError as error:
        _fail(str(error), error.exit_status)
    except click.exceptions.NoArgsIsHelpError:
        sys.exit(2)  # the help is printed
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)


def _check_free(port: int) -> None:
    if not 1 <= port <= 65535:
        raise InputError("--port", port, "an integer from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError("--port", port, f"a free port ({error.strerror})") from None


def _fail(text: str, status: int) -> None:
    print(f"fl-kit: {printable(text)}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
