"""Builds a model from its config by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fl_app.config.options import MlpConfig, ModelConfig, Task
from fl_app.models.base import Model
from fl_app.models.linear import Linear
from fl_app.models.mlp import Mlp
from fl_app.models.softmax import Softmax

__all__ = ["build"]


def build(config: ModelConfig, num_features: int, num_outputs: int, task: Task) -> Model:
    """Build the model that a checked config names.

    Parameters
    ----------
    config : ModelConfig
        Its name is no longer ``auto``.
    num_features : int
        D, the number of encoded features.
    num_outputs : int
        C classes or T targets.
    task : {"regression", "classification"}
        The task, for models that do both.
    """
    return _MODELS[config.name](config, num_features, num_outputs, task)


def _mlp(config: ModelConfig, num_features: int, num_outputs: int, task: Task) -> Model:
    assert isinstance(config, MlpConfig)
    return Mlp(config, num_features, num_outputs, task, config.hidden_units)


_MODELS: Mapping[str, Callable[[ModelConfig, int, int, Task], Model]] = {
    "linear": lambda config, d, t, task: Linear(config, d, t),
    "softmax": lambda config, d, c, task: Softmax(config, d, c),
    "mlp": _mlp,
}
