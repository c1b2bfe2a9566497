"""``fl-app``: one run, or a multirun, from a Hydra command line.

Exit status: 0 done, 1 the run failed, 2 bad input (one line, no traceback), 130 interrupted, 143
ended by SIGTERM, 129 by SIGHUP. A run that was over when the signal came, while MLflow still got
the rest, is done.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

# Hydra would print its own errors and exit with 1; ours are one line and 2.
os.environ["HYDRA_FULL_ERROR"] = "1"

import hydra
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import fl_app
from fl_app.cli.broken_pipe import reader_may_leave
from fl_app.cli.job_processes import end_jobs, ends_with_its_sweep, job_log
from fl_app.cli.own_path import folder_stays_off_the_path
from fl_app.config.compose import config_dir, offer, searched, typed
from fl_app.config.dataset_options import TabularConfig
from fl_app.config.hydra_errors import HydraErrors, explain
from fl_app.config.passwords import keep_secrets
from fl_app.config.plugins import open_project, project_in
from fl_app.config.run_request import unheeded, without_secrets
from fl_app.config.schema import Config, objective_of
from fl_app.errors import FlAppError, SignalInterrupt, masked, one_line, printable
from fl_app.outputs import outputs_may_fail
from fl_app.runtimes.signals import forget_interrupt, raise_if_interrupted, signals_interrupt

if TYPE_CHECKING:
    from fl_app.cli.jobs import Job
    from fl_app.report import RunSummary
    from fl_app.runtimes import RunResult

__all__ = ["main"]


_failures: list[FlAppError] = []
_begun: list[bool] = []


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
def job(composed: DictConfig) -> float | None:
    """Run one job and return its objective, for sweepers that optimise.

    A job that fails on purpose returns None: raised through Hydra, it would print a line of
    Hydra's own before ours. In a sweep it also says its line at once, and the others go on.
    """
    _begun.append(True)
    with outputs_may_fail():  # here too: a job of a sweep may have a process of its own
        return _job(composed)


def _job(composed: DictConfig) -> float | None:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        with ends_with_its_sweep(str(HydraConfig.get().runtime.choices.get("hydra/launcher"))):
            return _job_of_sweep(composed)
    try:
        config = _config(composed)
        if earlier := _finished(config):
            print(printable(f"{earlier.title}: skipped, finished as run {earlier.run_id}"))
            return earlier.metrics.get(objective_of(config))
        result = _run(config)
    except FlAppError as error:
        _failures.append(error)
        return None
    if why := forget_interrupt():
        print(printable(f"fl-app: {why}; the run was over and is whole"), file=sys.stderr)
    return result.metrics.get(objective_of(config))


def _job_of_sweep(composed: DictConfig) -> float | None:
    """Run one job of a sweep, and note how it ended for whoever started the sweep."""
    from fl_app.cli.jobs import Job, note, resumed_or_begun, same_as, swept, with_config
    from fl_app.config.sweep import heeded

    raise_if_interrupted()
    state = HydraConfig.get()
    task = _typed_words(state)
    overrides = swept([o.removeprefix("++") for o in task])
    job = Job(int(state.job.num), overrides, "FAILED", sweep_id=_sweep_id(state))
    try:
        config = _config(composed)
        lacking = heeded(task, config)[1]
        overrides = [o for o in overrides if o.partition("=")[0] not in lacking]
        job = with_config(replace(job, overrides=overrides), config)
        if (first := same_as(job.number)) is not None:
            why = unheeded(config, job.overrides)
            why = f"no {', '.join(lacking)} in strategy={config.strategy.name}" if lacking else why
            text = f"job {job.number}: the same run as job {first}{f' ({why})' if why else ''}"
            print(printable(text))
            note(replace(job, status="SKIPPED", same_as=first))
            return None
        if earlier := _finished(config):
            text = f"{' '.join(job.overrides)}: skipped, finished as run {earlier.run_id}"
            print(printable(text))
            note(replace(job, status="SKIPPED", metrics=earlier.metrics, run_id=earlier.run_id))
            return earlier.metrics.get(objective_of(config))
        note(replace(job, status="KILLED", error="its process was killed"))  # if nothing follows
        result = _run(resumed_or_begun(config))
    except FlAppError as error:
        note(replace(job, error=str(error)))
        print(printable(f"fl-app: {' '.join(job.overrides)}: {error}"), file=sys.stderr)
        return None
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        note(replace(job, status=status, error=one_line(error)))
        raise
    metrics = {name: value for name, value in result.metrics.items() if value is not None}
    run_id = result.run_id or ""
    note(replace(job, status=result.status, metrics=metrics, run_id=run_id))
    return result.metrics.get(objective_of(config))


def _finished(config: Config) -> RunSummary | None:
    if not config.skip_finished:
        return None
    from fl_app.cli.sweep import finished_before

    return finished_before(config)


def _typed_words(state: HydraConf) -> list[str]:
    """Return the overrides as they were typed, what is in ``${}`` too."""
    words = cast(list[str], OmegaConf.to_container(state.overrides.task, resolve=False))
    if state.mode != RunMode.MULTIRUN:
        return words
    from fl_app.config.sweep import unescaped

    return [*map(unescaped, words)]


def _sweep_id(state: HydraConf) -> str:
    from fl_app.cli.jobs import id_of

    chosen = any(o.startswith("hydra.sweep.dir=") for o in state.overrides.hydra)
    return id_of(state.sweep.dir, chosen)


def _config(composed: DictConfig) -> Config:
    """Return a job's config, with its own folder and with paths that any process can read."""
    state = HydraConfig.get()
    _mask_files(state)
    forced = state.mode == RunMode.MULTIRUN
    words = [o for o in _typed_words(state) if not (forced and o.startswith("++"))]
    config = without_secrets(typed(composed, words))
    folder = config.output_dir or state.runtime.output_dir
    config = replace(config, output_dir=str(Path(folder).expanduser().absolute()))
    if isinstance(config.dataset, TabularConfig) and config.dataset.path is not None:
        # Relative to where the command was typed, whatever process will read it.
        path = str(Path(config.dataset.path).expanduser().absolute())
        config = replace(config, dataset=replace(config.dataset, path=path))
    return config


def _mask_files(state: HydraConf) -> None:
    """Mask passwords that stood in a YAML file, in the copies that Hydra has written."""
    folder = Path(state.runtime.output_dir)
    for file in [
        *folder.glob(f"{state.output_subdir}/*.yaml"),
        Path(state.sweep.dir, "multirun.yaml"),
    ]:
        if file.is_file() and (shown := masked(text := file.read_text("utf-8"))) != text:
            file.write_text(shown, "utf-8")


def _run(config: Config) -> RunResult:
    state = HydraConfig.get()
    sweep = _sweep_id(state) if state.mode == RunMode.MULTIRUN else ""
    # Hydra's own work (--help, --cfg, bad overrides) must not wait for Flower and MLflow.
    from fl_app.config.run_request import RunRequest, git_commit
    from fl_app.runtimes import run

    kept, swept_words = _typed_words(state), list[str]()
    if sweep:
        from fl_app.cli.jobs import swept
        from fl_app.config.sweep import heeded

        kept = heeded(kept, config)[0]
        swept_words = swept(kept)
    return run(RunRequest(config, tuple(kept), sweep, git_commit(), tuple(swept_words)))


@reader_may_leave()
@folder_stays_off_the_path()
def main() -> None:
    """Run the command line; a run goes on and ends as it would where nobody can read of it."""
    status: str | int | None = 0
    with outputs_may_fail() as out:
        try:
            with signals_interrupt(end_jobs):
                try:
                    _main()
                    raise_if_interrupted()
                except SignalInterrupt as error:
                    _fail(str(error), error.exit_status)
                except KeyboardInterrupt:  # of a worker's call
                    _fail("interrupted", 130)
        except SystemExit as end:
            status = end.code
    if out.failure is not None and not _begun:
        status = status or 1  # there was nothing to do but to print
    if status:
        sys.exit(status)


def _main() -> None:
    if "--version" in sys.argv[1:]:  # Hydra would tell its own
        print(f"fl-app {fl_app.__version__}")
        return
    # Hydra writes and prints what was typed.
    sys.argv[1:] = [_without_secrets(_at_home(word)) for word in sys.argv[1:]]
    _open_project()
    with job_log() as path:
        compared = True
        try:
            _check_first()
            _hydra(path)
            raise_if_interrupted()
        except KeyboardInterrupt:
            compared = False  # who is told to end has no time
            raise
        finally:
            jobs = _jobs(path)
            if jobs:
                from fl_app.cli.sweep import has_failed, summarise

                print(summarise(jobs, compared))
    if jobs and has_failed(jobs):
        sys.exit(1)


def _jobs(log: Path) -> list[Job]:
    """Return the jobs of a sweep; those of other commands are none."""
    if not log.stat().st_size:
        return []
    from fl_app.cli.jobs import read_jobs

    return read_jobs(log)


def _without_secrets(word: str) -> str:
    if re.search(r"""(?:://|uri=["']?(?!["']))[^@]*[\s"'<>][^@]*@""", word):
        _fail("a URI holds no blanks and quotation marks (%20, %22 stand for them)", 2)
    return keep_secrets(word)


def _at_home(word: str) -> str:
    """Put the home where ``~`` begins a path: shells do not, behind ``KEY=``."""
    return re.sub(r"((?:^|[=,\[])(?:sqlite:///)?)~(?=/)", rf"\1{Path.home()}", word)


def _open_project() -> None:
    """Open the project that ``--app DIR`` names, or that the working directory is."""
    words, folder = sys.argv[1:], None
    for number, word in enumerate(words):
        if word == "--app" or word.startswith("--app="):
            size = 1 if "=" in word else 2
            folder = word.partition("=")[2] if size == 1 else "".join(words[number + 1 :][:1])
            sys.argv[1:] = words[:number] + words[number + size :]
            break
    try:
        open_project(project_in(folder or ".", asked=folder is not None))
        offer(sys.argv[1:])
    except FlAppError as error:
        _fail(str(error), error.exit_status)


def _check_first() -> None:
    """Check all jobs of a sweep before the first one starts, and give Hydra what it can read."""
    words = sys.argv[1:]
    args, rest = get_args_parser().parse_known_args(words)
    if unknown := [word for word in rest if word.startswith("-")]:
        _fail(f"unrecognized arguments: {' '.join(unknown)}", 2)
    overrides = [*args.overrides, *rest]
    if args.multirun:  # it wins, and Hydra would warn
        words = [word for word in words if not word.startswith("hydra.mode=")]
        overrides = [o for o in overrides if not o.startswith("hydra.mode=")]
    flags = list(words)
    for word in overrides:
        flags.remove(word)
    # Hydra's parser wants all overrides together.
    sys.argv[1:] = [*flags, *overrides]
    # Whoever asks for help or names another config gets Hydra's own answer.
    asks = (args.help, args.hydra_help, args.cfg, args.info, args.shell_completion)
    others = (args.config_path, args.config_name, args.experimental_rerun)
    may = ("experiment=", "sweep=", "hydra.mode=")
    if any(asks) or any(others) or not (args.multirun or any(o.startswith(may) for o in overrides)):
        return
    from fl_app.config.sweep import check_sweep

    try:
        sweep = check_sweep(searched(overrides, args.config_dir), args.multirun)
    except FlAppError as error:
        _fail(str(error), error.exit_status)
    if sweep.keys:
        sys.argv[1:] = [*flags, *sweep.overrides]
    from fl_app.cli.jobs import tell_swept

    tell_swept(sweep)


def _hydra(log: Path) -> None:
    """Let Hydra run one job or a sweep; leave with one line and a status for what goes wrong."""
    try:
        job()
        for failure in _failures:
            raise failure
    except HydraErrors as error:
        _fail(str(explain(error, [a for a in sys.argv[1:] if "=" in a])), 2)
    except FlAppError as error:
        _fail(str(error), error.exit_status)
    except OSError as error:
        from fl_app.tracking.journal_disk import trouble

        if not (full := trouble(error)):
            raise
        given = [a for a in sys.argv if a.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
        folder = given[-1].partition("=")[2] if given else os.getcwd()
        _fail(f"{full}: no run can begin in {folder}", 1)
    except RuntimeError as error:
        from concurrent.futures import BrokenExecutor

        if not isinstance(error, BrokenExecutor):
            raise
        from fl_app.cli.sweep import cut_short
        from fl_app.tracking import replay

        replay()  # so that MLflow has how they ended
        _fail(cut_short(_jobs(log)), 1)
    except ValueError as error:
        # Hydra has no class of its own for `dataset=null`; ours would be one of the above.
        if (jobs := _jobs(log)) and all(job.failed or not job.metrics for job in jobs):
            _fail("no trial ended with a value to choose by", 1)
        if _begun or jobs:
            raise
        _fail(str(explain(error, [a for a in sys.argv[1:] if "=" in a])), 2)


def _fail(text: str, status: int) -> None:
    print(f"fl-app: {printable(text)}", file=sys.stderr)
    sys.exit(status)
