"""``fl-app``: one run, or a multirun, from a Hydra command line.

Exit status: 0 done, 1 the run failed, 2 bad input (one line, no traceback), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

# Hydra would print its own errors and exit with 1; ours are one line and 2.
os.environ["HYDRA_FULL_ERROR"] = "1"

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fl_app.config import HydraErrors, config_dir, explain, typed
from fl_app.errors import FlAppError
from fl_app.schema import TabularConfig

__all__ = ["main"]


_failures: list[FlAppError] = []
_begun: list[bool] = []


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
def job(composed: DictConfig) -> float | None:
    """Run one job and return its objective, for sweepers that optimise."""
    _begun.append(True)
    try:
        return _run(composed)
    except FlAppError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        # Raised through Hydra, a failed job prints a line of Hydra's own before ours.
        _failures.append(error)
        return None


def _run(composed: DictConfig) -> float | None:
    config = typed(composed)
    state = HydraConfig.get()
    folder = config.output_dir or state.runtime.output_dir
    config = replace(config, output_dir=str(Path(folder).absolute()))
    if isinstance(config.dataset, TabularConfig) and config.dataset.path is not None:
        # Relative to where the command was typed, whatever process will read it.
        path = str(Path(config.dataset.path).expanduser().absolute())
        config = replace(config, dataset=replace(config.dataset, path=path))
    sweep = Path(state.sweep.dir).name if state.mode == RunMode.MULTIRUN else ""
    # Hydra's own work (--help, --cfg, bad overrides) must not wait for Flower and MLflow.
    from fl_app.launch import Launch, git_commit
    from fl_app.runtimes import run

    result = run(Launch(config, tuple(state.overrides.task), sweep, git_commit()))
    return result.metrics.get(config.objective or "")


def main() -> None:
    """Run the command line."""
    try:
        job()
        for failure in _failures:
            raise failure
    except HydraErrors as error:
        _fail(str(explain(error, [a for a in sys.argv[1:] if "=" in a])), 2)
    except FlAppError as error:
        _fail(str(error), error.exit_status)
    except ValueError as error:
        # Hydra has no class of its own for `dataset=null`; ours would be one of the above.
        if _begun:
            raise
        _fail(str(explain(error, [a for a in sys.argv[1:] if "=" in a])), 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(text: str, status: int) -> None:
    print(f"fl-app: {text}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
