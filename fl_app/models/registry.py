"""Builds a model from its config by name."""

from __future__ import annotations

from fl_app.config.options import LinearConfig, MlpConfig, ModelConfig, SoftmaxConfig, Task
from fl_app.config.registry import builder_of, register
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
    model: Model = builder_of(config)(config, num_features, num_outputs, task)
    return model


register(LinearConfig, build=lambda config, d, t, task: Linear(config, d, t))
register(SoftmaxConfig, build=lambda config, d, c, task: Softmax(config, d, c))
register(MlpConfig, build=lambda config, d, k, task: Mlp(config, d, k, task, config.hidden_units))
