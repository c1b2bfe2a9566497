"""The model that a run logs, as MLflow's "models from code" loads it: arrays, spec and this file.

MLflow copies this file and the part of fl_app that predicts, packed, into the model, and runs it
when the model is loaded. No pickle takes part, so it loads under
``MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

__all__ = ["FederatedModel"]


class FederatedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A model that takes raw rows and returns one label or number for each, or probabilities."""

    def load_context(self, context: Any) -> None:
        """Build the predictor from the artifacts ``arrays``, ``spec`` and ``code``."""
        sys.path.insert(0, context.artifacts["code"])
        from fl_app.models.serving import predictor

        spec = json.loads(Path(context.artifacts["spec"]).read_text(encoding="utf-8"))
        with np.load(context.artifacts["arrays"], allow_pickle=False) as arrays:
            self._predict: Callable[..., Any] = predictor(spec, dict(arrays))

    # MLflow reads the hint: with a DataFrame it leaves rows and signature as they are.
    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        """Predict raw rows, a pandas DataFrame with the columns of the raw data.

        ``params={"output": "probabilities"}`` asks for those of the classes in place of labels.
        """
        return self._predict(model_input, (params or {}).get("output", "predictions"))


mlflow.models.set_model(FederatedModel())
