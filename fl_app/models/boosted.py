"""Boosted trees of a federation: fitted by xgboost, carried by named arrays, predicted by NumPy.

Clients continue the ensemble by one boosting round each, and its trees are all that leaves them.
xgboost is needed where trees are fitted, and nowhere else: nothing that came over a wire reaches
its parser, and a logged model predicts without it. Arrays are those of :mod:`fl_app.models.trees`
with values of width 1, whose trees are dealt to the R outputs in turn, and ``start`` (R,) float64,
the raw outputs before the first tree. R is T targets, 1 for two classes (log odds of the second), 0
for one, else C.

References
----------
Chen and Guestrin 2016, "XGBoost: A Scalable Tree Boosting System",
https://arxiv.org/abs/1603.02754. Parameters: https://xgboost.readthedocs.io/en/stable/parameter.html
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_app.config.dataset_options import MIN_LEVEL_ROWS
from fl_app.config.options import Task
from fl_app.config.strategy_options import FedXgbBaggingConfig
from fl_app.errors import ConfigError, DataError
from fl_app.models.base import Arrays
from fl_app.models.estimators import num_scores, probabilities
from fl_app.models.trees import TREES, Forest, Nodes, Received, check_trees, encode_trees, single

__all__ = ["START", "BoostedTrees", "require_xgboost"]

Floats = NDArray[np.float64]
START = "start"
_LEAST_SHARE = 1e-3
"""Share that a class has at the start at least: nobody may have told of it."""


def require_xgboost() -> None:
    """Check that the package is there that fits trees.

    Raises
    ------
    ConfigError
        If it is not, with what to install.
    """
    if find_spec("xgboost") is None:
        allowed = "needs the extra xgboost: pip install 'fl-app[xgboost]'"
        raise ConfigError("strategy", "fedxgbbagging", allowed)


@dataclass(frozen=True)
class BoostedTrees:
    """An ensemble of boosted trees that grows by what clients fit.

    Parameters
    ----------
    task : {"regression", "classification"}
        The task.
    num_features, num_outputs : int
        D, and C or T.

    Notes
    -----
    Raw outputs are added up tree by tree in float64. Those of rows that nobody can write to are
    remembered while the rows live: of an ensemble that begins like the last one only the new trees
    are walked, to the same bits.
    """

    task: Task
    num_features: int
    num_outputs: int
    _memory: dict[int, tuple[Any, Arrays, Floats]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def columns(self) -> int:
        """R, the raw outputs, and the trees of a boosting round."""
        return num_scores(self.num_outputs) if self.task == "classification" else self.num_outputs

    # ------------------------------------------------------------------------ the server's side
    def begin(self, constant: Sequence[float]) -> dict[str, NDArray[Any]]:
        """Return the ensemble without trees.

        Parameters
        ----------
        constant : sequence of float
            What it says of every row: C shares of classes, or T targets in the model's unit.
        """
        start = np.array(constant, np.float64)
        if self.task == "classification":
            start = np.log(np.maximum(start, _LEAST_SHARE))
            start = start[1:] - start[0] if self.num_outputs <= 2 else start
        return {START: start} | encode_trees([])

    def check(self, arrays: Arrays) -> None:
        """Reject what is not exactly the trees of one boosting round.

        Raises
        ------
        DataError
            Naming the array and what is allowed: names, dtype, shape, finite and bounded values,
            features below D, children after their parent, depth and nodes in bounds, R trees.
        """
        if arrays.keys() != set(TREES):
            raise DataError("trees", ", ".join(sorted(arrays)), f"arrays {', '.join(TREES)}")
        reader = Received("trees", arrays)
        check_trees(reader, self.num_features, 1)
        one_round = len(arrays["sizes"]) == self.columns
        reader.demand("sizes", one_round, f"the {self.columns} new trees of one boosting round")

    @staticmethod
    def grown(arrays: Arrays, replies: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
        """Return the ensemble with the mean of the clients' steps.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            The ensemble.
        replies : sequence of mapping of str to ndarray
            Each client's new trees, at least one client. Each tree's values are divided by their
            number, so that ``eta`` is the step of the round whatever the number of clients.
        """
        share = np.float32(len(replies))
        parts = [arrays, *({**trees, "value": trees["value"] / share} for trees in replies)]
        return {START: arrays[START]} | {n: np.concatenate([p[n] for p in parts]) for n in TREES}

    # ------------------------------------------------------------------------ the client's side
    def fit(
        self,
        arrays: Arrays,
        x: NDArray[Any],
        y: NDArray[Any],
        params: FedXgbBaggingConfig,
        rng: np.random.Generator,
    ) -> dict[str, NDArray[Any]]:
        """Return the trees of one boosting round more on a client's rows.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            The ensemble.
        x, y : ndarray
            Features (n, D), finite; class numbers (n,) or targets (n, T). n at least 1.
        params : FedXgbBaggingConfig
            xgboost's parameters.
        rng : numpy.random.Generator
            Draws the seed of ``subsample``.

        Raises
        ------
        ConfigError
            Without the package.
        """
        require_xgboost()
        import xgboost

        if not self.columns:  # of one class there is nothing to learn
            return encode_trees([])
        margin = self._raw(arrays, x).astype(np.float32)
        data = xgboost.DMatrix(single(x), label=y, base_margin=margin, nthread=1)
        booster = xgboost.train(self._settings(params, rng), data, num_boost_round=1)
        model = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]["model"]
        assert model["tree_info"] == [*range(self.columns)]
        return encode_trees([_nodes(tree) for tree in model["trees"]])

    def _settings(self, params: FedXgbBaggingConfig, rng: np.random.Generator) -> dict[str, Any]:
        """Return what xgboost is told; left alone, it takes a base score from a client's labels."""
        objective: dict[str, Any] = {"objective": "reg:squarederror"}
        least = params.min_child_weight
        if least is None:
            least = MIN_LEVEL_ROWS if self.task == "regression" else 1.0
        if self.task == "classification":
            objective = {"objective": "binary:logistic"}
            if self.columns > 1:
                objective = {"objective": "multi:softprob", "num_class": self.num_outputs}
        return objective | {
            "eta": params.eta,
            "max_depth": params.max_depth,
            "min_child_weight": least,
            "reg_lambda": params.reg_lambda,
            "subsample": params.subsample,
            "tree_method": "hist",
            "base_score": 0.5,
            "nthread": 1,
            "seed": int(rng.integers(2**31)),
            "verbosity": 0,
        }

    # ------------------------------------------------------------------------ what it says
    def predict(self, arrays: Arrays, x: NDArray[Any], further: Arrays | None = None) -> Floats:
        """Return probabilities (n, C), or targets (n, T) in the model's unit.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            The ensemble.
        x : ndarray of shape (n, D)
            Features, finite.
        further : mapping of str to ndarray, optional
            Trees that come after its own, as :meth:`fit` returned them.
        """
        raw = self._raw(arrays, x)
        if further is not None:
            raw = self._added(raw, further, x)
        return probabilities(raw) if self.task == "classification" else raw

    def _raw(self, arrays: Arrays, x: NDArray[Any]) -> Floats:
        """Return the raw outputs (n, R), not to be written to."""
        key = id(x)
        _, known, raw = self._memory.get(key, (None, None, None))
        if known is None or raw is None or not _begins_with(arrays, known):
            known = {START: arrays[START]} | {name: arrays[name][:0] for name in TREES}
            raw = np.tile(arrays[START], (len(x), 1))
        raw = self._added(raw, {name: arrays[name][len(known[name]) :] for name in TREES}, x)
        if not x.flags.writeable:
            forget = weakref.ref(x, lambda _: self._memory.pop(key, None))
            self._memory[key] = forget, arrays, raw
        return raw

    def _added(self, raw: Floats, trees: Arrays, x: NDArray[Any]) -> Floats:
        """Add the leaves of trees to raw outputs, in their order."""
        if not len(trees["sizes"]):
            return raw
        value, rounds = trees["value"][:, 0].astype(np.float64), len(trees["sizes"]) // self.columns
        sums, first = [], 0
        for leaves in Forest.decode(trees).leaves(x):
            steps = value[leaves].reshape(len(leaves), rounds, self.columns)
            begin = raw[first : first + len(leaves), None]
            sums.append(np.add.accumulate(np.concatenate([begin, steps], axis=1), axis=1)[:, -1])
            first += len(leaves)
        return np.concatenate(sums)


def _begins_with(arrays: Arrays, known: Arrays) -> bool:
    """Return whether an ensemble is another one with trees added."""
    return all(np.array_equal(arrays[n][: len(known[n])], known[n]) for n in (START, *TREES))


def _nodes(tree: Mapping[str, Any]) -> Nodes:
    """Read one tree of xgboost's JSON: left where a feature is below the condition, in float32."""
    left, right = (np.maximum(tree[f"{side}_children"], 0) for side in ("left", "right"))
    condition = np.array(tree["split_conditions"], np.float32)  # of a leaf: its value
    threshold = np.nextafter(condition, np.float32(-np.inf))
    return Nodes(np.array(tree["split_indices"]), threshold, left, right, condition)
