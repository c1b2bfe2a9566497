"""Runs a config in one of the runtimes and returns its true end."""

from __future__ import annotations

from fl_app.config.run_request import RunRequest
from fl_app.runtimes.result import RunResult, result_written

__all__ = ["RunResult", "run"]


def run(launch: RunRequest) -> RunResult:
    """Run an experiment in the runtime that its config names.

    Parameters
    ----------
    launch : RunRequest
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
    with result_written(launch.config.output_dir or ""):
        return _run(launch)


def _run(launch: RunRequest) -> RunResult:
    # One runtime is imported, not all, and the simulation's with little more: it starts Flower
    # first, which takes seconds, and imports the rest meanwhile.
    if launch.config.runtime.name == "simulation":
        from fl_app.runtimes import simulation

        return simulation.run(launch)  # which checks while its SuperLink starts
    from fl_app.runtimes.checks import check_before

    check_before(launch)
    if launch.config.runtime.name == "deployment":
        from fl_app.runtimes import deployment

        return deployment.run(launch)
    from fl_app.runtimes import inprocess

    return inprocess.run(launch)
