"""What remains of a run when it has ended: models, losses, figures, ``result.json``."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

from fl_app.config.options import MlflowConfig
from fl_app.config.schema import Config
from fl_app.data.client_data import partition_of
from fl_app.errors import one_line
from fl_app.home import write
from fl_app.models.serving import Predictor
from fl_app.outputs import Steady
from fl_app.tracking import MlflowTracker
from fl_app.tracking.best_round import BestRound
from fl_app.tracking.console import LINE_PREFIX, RESULT_MARK
from fl_app.tracking.records import LoggedModel, RoundRecord, Status

__all__ = ["draw_figures", "kept_result", "logged_models", "result_of", "show_result"]

_log = logging.getLogger("fl_app")


def logged_models(best: BestRound, predictor: Predictor, private: bool) -> list[LoggedModel]:
    """Return the final round's model, and the best one where there are validation rows.

    Parameters
    ----------
    best : BestRound
        Has both rounds.
    predictor : Predictor
        What a model is.
    private : bool
        Whether the run is under differential privacy: then there is no best model, as rows without
        noise would choose it.
    """
    spec = predictor.to_spec()
    rounds = {"final": best.last, "best": None if private else best.best}
    return [
        LoggedModel(name, r.server_round, r.arrays, spec)
        for name, r in rounds.items()
        if r is not None
    ]


def draw_figures(
    config: Config,
    runtime: str,
    best: BestRound,
    predictor: Predictor,
    private: bool,
    swept: bool = False,
) -> dict[str, bytes]:
    """Draw the run; a picture that cannot be drawn costs a warning only.

    Parameters
    ----------
    config : Config
        The run's config.
    runtime : str
        What really ran it.
    best : BestRound
        Has its rounds.
    predictor : Predictor
        What a model is.
    private : bool
        Whether the run is under differential privacy: then no picture shows the clients' rows.
    swept : bool, default False
        Whether it is one of a sweep, whose runs are drawn only where ``tracking.figures=true``.

    Returns
    -------
    dict of str to bytes
        PNGs by path; empty where the config asks for none.
    """
    tracking = config.tracking
    wanted = isinstance(tracking, MlflowConfig) and tracking.figures
    if not (not swept if wanted is None else wanted):
        return {}
    try:
        return _draw(config, runtime, best, predictor, private)
    except Exception as error:
        _log.warning("the figures were not drawn: %s", one_line(error))
        return {}


def _draw(
    config: Config, runtime: str, best: BestRound, predictor: Predictor, private: bool
) -> dict[str, bytes]:
    from fl_app.tracking import figures

    if best.last is None:
        return {}
    metric = best.objective.partition("/")[2]
    drawn = {
        "figures/learning_curves.png": figures.draw_curves(best.rounds),
        f"figures/clients_{metric}.png": figures.draw_clients(best.last, metric),
    }
    if runtime != "deployment" and not config.strategy.is_pooled and not private:
        parts = range(min(config.num_clients, figures.MAX_BARS))
        targets = {k: partition_of(config, k).train.target for k in parts}
        labels = predictor.encoding.labels
        drawn["figures/data.png"] = figures.draw_data(targets, labels, config.num_clients)
    return {path: picture for path, picture in drawn.items() if picture is not None}


def result_of(
    status: Status,
    last: RoundRecord | None,
    seconds: float,
    weights: str | None,
    error: str,
    mlflow: MlflowTracker | None,
    epsilon: float | None = None,
) -> dict[str, Any]:
    """Make the content of ``result.json``.

    Parameters
    ----------
    status : {"FINISHED", "FAILED", "KILLED"}
        How the run ended.
    last : RoundRecord or None
        Its last round, None where there was none.
    seconds : float
        Its duration.
    weights : str or None
        SHA-256 of the final arrays.
    error : str
        Why it failed, or "".
    mlflow : MlflowTracker or None
        What has recorded it.
    epsilon : float, optional
        Under privacy: what was spent, also for rounds that were asked and are not recorded.
    """
    metrics: dict[str, float] = {}
    if last is not None:
        parts = {"train": last.train, "eval": last.evaluate, "server": last.server}
        metrics = {f"{p}/{m}": v for p, values in parts.items() for m, v in values.items()}
    if epsilon is not None:
        metrics["privacy/epsilon"] = epsilon
    result: dict[str, Any] = {
        "run_id": None if mlflow is None else mlflow.run_id,
        "status": status,
        "metrics": {key: v if math.isfinite(v) else None for key, v in metrics.items()},
        "weights_sha256": weights,
        "seconds": round(seconds, 3),
    }
    if error:
        result["error"] = error
    if mlflow is not None:
        result["link"] = mlflow.url
    return result


def kept_result(result: dict[str, Any], folder: Path) -> str:
    """Write ``result.json``; return why it could not be written, or "".

    Parameters
    ----------
    result : dict
        Its content.
    folder : Path
        Where to; made if need be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "result.json", f"{json.dumps(result, indent=2, allow_nan=False)}\n")
    except OSError as error:
        return f"{folder / 'result.json'} cannot be written: {one_line(error)}"
    return ""


def show_result(result: dict[str, Any]) -> None:
    """Show the result on standard output, for a launcher on another machine.

    It sees the log and not the folder.
    """
    out = Steady(sys.stdout)
    out.write(f"{LINE_PREFIX}{RESULT_MARK}{json.dumps(result, allow_nan=False)}\n")
    out.flush()
