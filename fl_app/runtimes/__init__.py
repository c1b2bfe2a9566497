"""Runs a config in one of the runtimes and returns its true end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_app.config.run_request import RunRequest
from fl_app.lazy import exporter

if TYPE_CHECKING:
    from fl_app.runtimes.result import RunResult

__all__ = ["RunResult", "run"]

__getattr__ = exporter(__name__, {"result": ["RunResult"]})


def run(request: RunRequest) -> RunResult:
    """Run an experiment in the runtime that its config names.

    Parameters
    ----------
    request : RunRequest
        The config and where it came from; ``output_dir`` is set.

    Returns
    -------
    RunResult

    Raises
    ------
    InputError
        For what can be found before the run starts.
    FlAppError
        If the run did not finish; then ``result.json`` says why.
    """
    from fl_app.runtimes.result import RunResult, read_result, result_written

    if request.config.resume is not None:
        from fl_app.experiment.resuming import same_run

        request = same_run(request, elsewhere=request.config.runtime.name == "deployment")
    folder, ended = request.config.output_dir or "", list[RunResult]()
    with result_written(folder):
        ended.append(_run(request))
    return ended[0] if ended else read_result(folder)


def _run(request: RunRequest) -> RunResult:
    # One runtime is imported, not all, and the simulation's with little more: it starts Flower
    # first, which takes seconds, and imports the rest meanwhile.
    if request.config.runtime.name == "simulation":
        from fl_app.runtimes import simulation

        return simulation.run(request)  # which checks while its SuperLink starts
    from fl_app.runtimes.checks import check_before

    check_before(request)
    if request.config.runtime.name == "deployment":
        from fl_app.runtimes import deployment

        return deployment.run(request)
    from fl_app.runtimes import inprocess

    return inprocess.run(request)
