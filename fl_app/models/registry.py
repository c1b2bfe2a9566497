"""Builds a model from its config by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_app.models.base import Model
from fl_app.models.linear import Linear
from fl_app.models.softmax import Softmax
from fl_app.schema import ModelConfig

__all__ = ["build"]

_MODELS: Mapping[str, Callable[[ModelConfig, int, int], Model]] = {
    "linear": Linear,
    "softmax": Softmax,
}


def build(config: ModelConfig, num_features: int, num_outputs: int) -> Model:
    """Build the model that a checked config names.

    Parameters
    ----------
    config : ModelConfig
        Its name is no longer ``auto``.
    num_features : int
        D, the number of encoded features.
    num_outputs : int
        C classes or T targets.
    """
    return _MODELS[config.name](config, num_features, num_outputs)
