"""One run: handshake, strategy, start, result."""

from typing import TYPE_CHECKING

from fl_app.lazy import exporter

if TYPE_CHECKING:
    from fl_app.experiment.run import Run, federated_of

__all__ = ["Run", "federated_of"]

__getattr__ = exporter(__name__, {"run": ["Run", "federated_of"]})
