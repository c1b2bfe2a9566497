"""What is looked for before a run starts: whatever would fail for certain."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from fl_app.config.options import DeploymentConfig, MlflowConfig
from fl_app.config.run_request import RunRequest
from fl_app.config.strategy_options import FedStackingConfig, FedXgbBaggingConfig
from fl_app.data.client_data import largest_partition, partition_of
from fl_app.errors import ConfigError
from fl_app.home import home_dir
from fl_app.tracking.mlflow.uri import check_uri, default_uri

__all__ = ["check_before", "with_whole_uri"]


def check_before(request: RunRequest) -> None:
    """Find what would fail for certain, before anything starts.

    Raises
    ------
    InputError
        If the data cannot be dealt to the clients, or where output goes cannot be used.
    """
    # What imports Flower is imported where it is needed: a launcher can do without.
    if request.config.privacy.is_private:
        from fl_app.federation.privacy import require_accountant

        require_accountant(request.config)
    runtime = request.config.runtime
    if not isinstance(runtime, DeploymentConfig) or runtime.nodes is not None:
        # At somebody's SuperLink the nodes that are online decide how the rows are dealt, if so.
        partition_of(request.config, 0)
        if isinstance(request.config.strategy, FedXgbBaggingConfig):
            from fl_app.models.boosted import require_xgboost

            require_xgboost()
        if isinstance(request.config.strategy, FedStackingConfig):
            from fl_app.strategies import check_rows

            check_rows(request.config.strategy, *largest_partition(request.config))
    _check_folder("FL_APP_HOME", home_dir())
    if request.config.output_dir is not None:
        _check_folder("output_dir", Path(request.config.output_dir))
    if isinstance(request.config.tracking, MlflowConfig):
        check_uri(request.config.tracking.uri or default_uri())


def with_whole_uri(request: RunRequest) -> RunRequest:
    """Return a request whose tracking URI means the same from any working directory.

    Raises
    ------
    ConfigError
        If the URI cannot be used.
    """
    tracking = request.config.tracking
    if not isinstance(tracking, MlflowConfig):
        return request
    uri = check_uri(tracking.uri or default_uri())
    return replace(request, config=replace(request.config, tracking=replace(tracking, uri=uri)))


def _check_folder(name: str, folder: Path) -> None:
    """Make a folder and try it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        allowed = f"a folder that can be written to ({error.strerror})"
        raise ConfigError(name, folder, allowed) from None
