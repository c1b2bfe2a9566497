"""Predictions from final arrays: for the server's test, the closing report and a logged model.

The one place that knows how the arrays of a finished round become a prediction, so that what a
run reported and what its logged model predicts cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.options import ModelConfig
from fl_app.config.schema import GROUPS, Config
from fl_app.config.serialization import to_dict
from fl_app.config.strategy_options import FedXgbBaggingConfig, has_base_models
from fl_app.data.encoding import Encoding
from fl_app.data.frames import features_from_frame
from fl_app.errors import DataError
from fl_app.models.base import Arrays, Model
from fl_app.models.boosted import BoostedTrees
from fl_app.models.metrics import row_losses, score_all
from fl_app.models.registry import build
from fl_app.seeding import one_thread
from fl_app.stacking.members import MemberModels, StackModel

__all__ = ["Predictor", "predictor", "split_members"]


@dataclass(frozen=True)
class Predictor:
    """How global arrays predict.

    Parameters
    ----------
    encoding : Encoding
        The federation's encoding.
    model : ModelConfig
        The clients' model.
    many : bool, default False
        Whether the arrays hold one model for each client, named ``007/coef``
        (``strategy=local``): scores are then the mean of the models' scores, and a prediction is
        the mean of their outputs.
    stacked : bool, default False
        Whether they are a stack's (``strategy=fedstacking``, :mod:`fl_app.stacking.members`).
    boosted : bool, default False
        Whether they are boosted trees (``strategy=fedxgbbagging``, :mod:`fl_app.models.boosted`).
    """

    encoding: Encoding
    model: ModelConfig
    many: bool = False
    stacked: bool = False
    boosted: bool = False

    @classmethod
    def of(cls, config: Config, encoding: Encoding, many: bool = False) -> Predictor:
        """Return how the arrays of a run with this config predict."""
        strategy = config.strategy
        stacked = has_base_models(strategy)
        return cls(encoding, config.model, many, stacked, isinstance(strategy, FedXgbBaggingConfig))

    def outputs(self, arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
        """Return probabilities of shape (n, C) or targets of shape (n, T), in their raw unit."""
        if not self.many:
            return self._one(arrays, x)
        members = split_members(arrays).values()
        return np.asarray(np.mean([self._one(member, x) for member in members], axis=0))

    def score(self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
        """Score encoded rows by :func:`fl_app.models.metrics.score_all`.

        Under ``many`` the mean over the clients' models, of what all of them have.
        """
        task = self.encoding.task
        if not self.many:
            return score_all(task, self._one(arrays, x), y)
        members = split_members(arrays).values()
        scores = [score_all(task, self._one(member, x), y) for member in members]
        common = [name for name in scores[0] if all(name in s for s in scores)]
        return {name: float(np.mean([s[name] for s in scores])) for name in common}

    def row_losses(
        self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any]
    ) -> dict[str, NDArray[np.float32]]:
        """Return each row's share in :meth:`score`, of the metrics that are means over rows."""
        members = list(split_members(arrays).values()) if self.many else [arrays]
        totals: dict[str, NDArray[Any]] = {}
        for member in members:
            for name, losses in row_losses(self.encoding.task, self._one(member, x), y).items():
                totals[name] = totals.get(name, 0.0) + losses / len(members)
        with np.errstate(over="ignore"):
            return {name: losses.astype(np.float32) for name, losses in totals.items()}

    def _one(self, arrays: Arrays, x: NDArray[Any]) -> NDArray[Any]:
        return self.encoding.in_units(self._model.predict(arrays, x))

    @cached_property
    def _model(self) -> Model | StackModel | BoostedTrees:
        if self.boosted:
            return self.ensemble
        return StackModel(self.kinds()) if self.stacked else self.build()

    @cached_property
    def ensemble(self) -> BoostedTrees:
        """What boosted trees are here; it remembers what they said of rows."""
        features, outputs = len(self.encoding.feature_names), len(self.encoding.output_names)
        return BoostedTrees(self.encoding.task, features, outputs)

    def kinds(self) -> MemberModels:
        """Return what the models of a stack are."""
        encoding = self.encoding
        features, outputs = len(encoding.feature_names), len(encoding.output_names)
        return MemberModels(self.build(), encoding.task, features, outputs)

    def build(self) -> Model:
        """Build the clients' model for this encoding."""
        return build(
            self.model,
            len(self.encoding.feature_names),
            len(self.encoding.output_names),
            self.encoding.task,
        )

    def to_spec(self) -> dict[str, Any]:
        """Return the JSON-ready description that :func:`predictor` takes."""
        return {
            "columns": list(self.encoding.columns),
            "encoding": self.encoding.to_dict(),
            "model": to_dict(self.model),
            "many": self.many,
            "stacked": self.stacked,
            "boosted": self.boosted,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Predictor:
        """Read :meth:`to_spec`'s form back."""
        model: ModelConfig = GROUPS["model"][spec["model"]["name"]](**spec["model"])
        encoding = Encoding.from_dict(spec["encoding"])
        flags = (bool(spec.get(kind)) for kind in ("many", "stacked", "boosted"))
        return cls(encoding, model, *flags)


def predictor(spec: Mapping[str, Any], arrays: Arrays) -> Callable[[Any], NDArray[Any]]:
    """Return a function from raw rows to predictions.

    Parameters
    ----------
    spec : mapping
        As :meth:`Predictor.to_spec` gives it.
    arrays : mapping of str to ndarray
        The final arrays.

    Returns
    -------
    callable
        Takes a pandas DataFrame with the raw columns and returns one label (as in the raw data)
        or one number a row, or (n, T) for T targets. With ``output="probabilities"`` those of the
        C classes, (n, C), in the order of ``spec["encoding"]["labels"]``: numbers by value, then
        texts by letter.

    Notes
    -----
    The callable raises :class:`~fl_app.errors.DataError` for another output, or for probabilities
    of a regression.
    """
    served = Predictor.from_spec(spec)
    encoding = served.encoding
    known = ("predictions", "probabilities")[: 2 if encoding.task == "classification" else 1]

    def predict(frame: Any, output: str = "predictions") -> NDArray[Any]:
        if output not in known:
            allowed = f"{' or '.join(known)}, for a {encoding.task}"
            raise DataError("output", output, allowed)
        x = encoding.features(features_from_frame(frame, encoding)).astype(served.model.dtype)
        with one_thread():
            outputs = served.outputs(arrays, x)
        return outputs if output == "probabilities" else encoding.predictions(outputs)

    return predict


def split_members(arrays: Arrays) -> dict[str, dict[str, NDArray[Any]]]:
    """Split ``007/coef`` names into one mapping of arrays for each client, in order."""
    members: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        client, _, array_name = name.partition("/")
        members.setdefault(client, {})[array_name] = array
    return {client: members[client] for client in sorted(members)}
