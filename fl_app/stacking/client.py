"""What a client does in each phase of FedStacking: fit, add up, count.

The message contract stands in :class:`~fl_app.stacking.strategy.FedStacking`, the messages in
:mod:`fl_app.stacking.messages`. Nothing here keeps state that could not be made again: folds are
functions of the partition, fits of the run's seed too, and a node's memory of them (Flower's
``context.state``, which stays on the node) only saves time. Were folds drawn by the seed, each run
of a sweep would tell sums over other rows, and enough of them solve for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.aggregation import arrays_digest
from fl_app.config.dataset_options import MIN_LEVEL_ROWS
from fl_app.config.schema import METRICS, Config
from fl_app.config.strategy_options import BaseModelsConfig, FedStackingConfig
from fl_app.data.client_data import Encoded
from fl_app.data.encoding import Encoding
from fl_app.errors import DataError
from fl_app.federation.protocol import StackRequest
from fl_app.federation.stepping import Stepping, first_step
from fl_app.grid.arrays import hold, read
from fl_app.models import estimators
from fl_app.models.base import Arrays
from fl_app.models.metrics import score
from fl_app.seeding import generator
from fl_app.stacking.members import LS, MODEL, Member, MemberModels
from fl_app.stacking.messages import (
    BaseModel,
    Bounds,
    CollectMessage,
    CollectReply,
    Packed,
    SelectMessage,
    SelectReply,
    StackMessage,
    StackReply,
)

__all__ = ["StackClient"]

Said = tuple[Packed, NDArray[Any]]


@dataclass(frozen=True)
class StackClient:
    """One client of one run.

    Parameters
    ----------
    config : Config
        The run's config, with ``strategy=fedstacking``.
    encoding : Encoding
        The federation's encoding.
    models : MemberModels
        What the models of the run are.
    partition : int
        The client's partition.
    rows : Encoded
        Its rows.
    memory : RecordDict
        What the node remembers: read and written.
    """

    config: Config
    encoding: Encoding
    models: MemberModels
    partition: int
    rows: Encoded
    memory: RecordDict

    def answer(
        self, request: StackRequest, received: Arrays
    ) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        """Do what a message asks.

        Parameters
        ----------
        request : StackRequest
            The message's settings.
        received : mapping of str to ndarray
            The message's arrays.

        Returns
        -------
        (arrays, outputs)
            Of the reply; what the global model of the phase says of the training rows, in the raw
            unit.
        """
        phases: Mapping[str, tuple[type[Packed], Callable[[StackRequest, Any], Said]]] = {
            "collect": (CollectMessage, self._collect),
            "stack": (StackMessage, self._stack),
            "select": (SelectMessage, self._select),
        }
        message, do = phases[request.phase]
        reply, outputs = do(request, message.from_arrays(received))
        return reply.to_arrays(), self.encoding.in_units(outputs)

    # ------------------------------------------------------------------------- collect
    def _collect(self, request: StackRequest, message: CollectMessage) -> Said:
        """Train the global member; add the base model if asked."""
        trained: Arrays = {}
        base: BaseModel | None = None
        if message.trained:
            rng = generator(self.config.seed, "train", request.server_round, self.partition)
            trained = self.models.model.fit(
                message.trained, self.rows.x, self.rows.y, rng, learning_rate=request.learning_rate
            )
        if request.send_base and self._num_rows >= max(self.config.min_rows, request.min_rows):
            linear = self._linear(request, message.bounds)[0] if self._has_ls else None
            base = BaseModel(self._base(request), self._counts, linear)
        model = Member(MODEL, trained) if trained else self._base(request)
        none_of_ls = stacking.Layout(1, self._width, False)  # they do not look at it
        return CollectReply(trained, base), self.models.outputs(model, self.rows.x, none_of_ls)

    # ------------------------------------------------------------------------- stack
    def _stack(self, request: StackRequest, message: StackMessage) -> Said:
        """Add up products of the members' outputs and the truth."""
        features, outputs = self._features(request, message)
        truth = stacking.targets(message.layout(self._width), self.rows.y)
        return StackReply(stacking.sums(features, truth, self._split(request))), outputs

    def _features(
        self, request: StackRequest, message: StackMessage
    ) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Return the meta-features of the training rows and the global model's outputs on them.

        The outputs are the global member's, or without one the average of the members, whose
        weights then come with them.
        """
        layout, blocks = message.layout(self._width), []
        for partition, member in message.members.items():
            self.models.check(member)
            if partition == self.partition and self._is_own(member, request):
                blocks.append(self._own_block(request, layout))
            else:
                blocks.append(self.models.outputs(member, self.rows.x, layout))
        if layout.has_global:
            blocks.append(self._global_block(request, message, layout))
        features = stacking.features(layout, blocks)
        if message.weights is not None:
            return features, stacking.combine(layout, features, message.weights)
        if not self._has_ls:
            return features, blocks[-1]
        alone = np.zeros((layout.num_blocks, layout.num_outputs))
        alone[-1] = 1.0  # scores of least squares become probabilities as in a stack
        return features, stacking.combine(layout, features, alone)

    def _global_block(
        self, request: StackRequest, message: StackMessage, layout: stacking.Layout
    ) -> NDArray[Any]:
        """Return the global member's outputs; of least squares, by a model without the row."""
        x = self.rows.x
        if message.global_member is not None and not self._has_ls:
            return self.models.outputs(message.global_member, x, layout)
        folds = self._linear(request, message.bounds)[1]
        without = [self.models.outputs(member, x, layout) for member in message.folds]
        return stacking.out_of_fold(without, folds)

    # ------------------------------------------------------------------------- select
    def _select(self, request: StackRequest, message: SelectMessage) -> Said:
        """Count what each candidate gets right on rows that it is new to."""
        layout, table = message.layout(self._width), message.candidates
        features, _ = self._features(request, message)
        truth = stacking.targets(layout, self.rows.y)
        split = self._split(request)
        if request.is_new:
            zeros = np.zeros(self._num_rows, np.int64)
            split = stacking.SumFolds(zeros, np.ones(self._num_rows, np.bool_))
        counts = stacking.scores(layout, features, truth, split, table, request.min_rows)
        outputs = stacking.by_fold(layout, features, split, table[request.provisional])
        if not request.gate:
            return SelectReply(counts), outputs
        stacks = [stacking.by_fold(layout, features, split, weights) for weights in table]
        return SelectReply(counts, self._gates(request, message, stacks)), outputs

    def _gates(
        self,
        request: StackRequest,
        message: SelectMessage,
        stacks: list[NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Try the personal gate for each candidate, and price it on the validation rows.

        Returns an array of shape (A, 4): share of the own model, validation rows, and the sum over
        them of rows right (regression: squared errors) without and with the gate.
        """
        layout = message.layout(self._width)
        own_outputs = self._own_block(request, layout)
        truth = stacking.targets(layout, self.rows.y)
        x = self.rows.x_eval
        all_models = [*message.members.values()]
        if message.global_member is not None:
            all_models.append(message.global_member)
        features = stacking.features(
            layout, [self.models.outputs(m, x, layout) for m in all_models]
        )
        alone = self.models.outputs(self._base(request), x, layout)
        rows = []
        for stacked, final in zip(stacks, message.finals, strict=True):
            share = stacking.gate(layout, own_outputs, stacked, truth)
            together = stacking.combine(layout, features, final)
            gated = share * alone + (1 - share) * together
            rows.append([share, float(len(x)), self._worth(together), self._worth(gated)])
        return np.array(rows)

    def _worth(self, outputs: NDArray[Any]) -> float:
        """Return validation rows right, or the sum of their mean squared errors in raw units."""
        if self.encoding.task == "classification":
            return float((outputs.argmax(axis=1) == self.rows.truth_eval).sum())
        error = self.encoding.in_units(outputs) - self.rows.truth_eval
        return float(np.square(error).mean(axis=1).sum())

    # ------------------------------------------------------------------------- own rows
    def _base(self, request: StackRequest) -> Member:
        """Return the base model fitted on all training rows."""
        kind = self._kind
        everything = np.ones(self._num_rows, np.bool_)
        return Member(
            kind, self._remember("base", lambda: self._fit(kind, "base", everything, request))
        )

    def _is_own(self, member: Member, request: StackRequest) -> bool:
        """Return whether a model is the own base model, bit for bit."""
        base, digest = self._base(request), arrays_digest
        return member.kind == base.kind and digest(member.arrays) == digest(base.arrays)

    def _fit(
        self, kind: str, purpose: str, kept: NDArray[np.bool_], request: StackRequest
    ) -> dict[str, NDArray[Any]]:
        """Fit a base model on some of the rows."""
        x, y = self.rows.x, self.rows.y
        alone = self.config.strategy.is_pooled  # no row has to be kept from anybody
        if kind == "gaussian_nb" and not alone:
            # Its arrays are means over the rows of a class: the floor of every other sum. Mean and
            # variance of two rows are those two.
            floor = max(3, request.min_rows)
            kept = kept & (np.bincount(y[kept], minlength=self._width)[y] >= floor)
            if not kept.any():
                kept, x = np.ones(len(y), np.bool_), np.zeros_like(x)
        rng = generator(self.config.seed, purpose, 0, self.partition)
        if kind != MODEL:
            task, outputs = self.encoding.task, self._width
            # A leaf of one row tells its target; boosting's leaves are larger anyway.
            params: Mapping[str, float] = {}
            if alone:
                params = estimators.DEFAULTS.get(kind, {})
            elif kind == "random_forest":
                params = {"min_samples_leaf": request.min_rows}
            return estimators.fit(
                kind, x[kept], y[kept], task=task, num_outputs=outputs, rng=rng, params=params
            )
        return self._descend(x[kept], y[kept], self.rows.truth[kept], rng)

    def _descend(
        self, x: NDArray[Any], y: NDArray[Any], truth: NDArray[Any], rng: np.random.Generator
    ) -> dict[str, NDArray[Any]]:
        """Train the run's model on rows of one's own for as many rounds as the run has.

        With ``model.learning_rate=auto`` the step follows these rows' loss, as it follows the
        federation's in its rounds: which step the server is at does not matter.
        """
        model, task, rate = self.models.model, self.encoding.task, self.config.model.learning_rate
        arrays = model.start(generator(self.config.seed, "model"))
        stepping = Stepping(
            first_step(task, self.models.num_features) if rate == "auto" else rate,
            adapts=rate == "auto",
        )
        for _ in range(self.config.num_server_rounds):
            moved = model.fit(arrays, x, y, rng, learning_rate=stepping.step)
            outputs = self.encoding.in_units(model.predict(moved, x))
            loss = score(task, outputs, truth)[METRICS[task][0]]
            if stepping.counts({0: (1.0, loss)}):
                arrays = moved
        return arrays

    def _own_block(self, request: StackRequest, layout: stacking.Layout) -> NDArray[np.float64]:
        """Return the own base model's outputs out-of-fold.

        A fold without any other rows gets outputs that say nothing.
        """

        def make() -> dict[str, NDArray[Any]]:
            folds = self._row_folds(request)
            kind = self._kind
            nothing = 1 / self._width if layout.classes else 0.0
            block = np.full((self._num_rows, self._width), nothing)
            for fold in np.unique(folds):
                rows = folds == fold
                if not rows.all():
                    fitted = Member(kind, self._fit(kind, f"base-fold-{fold}", ~rows, request))
                    block[rows] = self.models.outputs(fitted, self.rows.x[rows], layout)
            return {"outputs": block}

        return self._remember("own", make)["outputs"]

    def _row_generator(self, purpose: str) -> np.random.Generator:
        """Return what deals the rows: the same in every run, whatever its seed."""
        return generator(0, purpose, 0, self.partition)

    def _row_folds(self, request: StackRequest) -> NDArray[np.int64]:
        classes = self.encoding.task == "classification"
        rng = self._row_generator("folds")
        return stacking.row_folds(self.rows.y, request.num_folds, rng, classes)

    def _split(self, request: StackRequest) -> stacking.SumFolds:
        return stacking.sum_folds(
            self.rows.y,
            request.num_folds,
            request.min_rows,
            self._row_generator("stack"),
            classes=self.encoding.task == "classification",
            by_client=request.client_folds,
        )

    def _linear(
        self, request: StackRequest, bounds: Bounds
    ) -> tuple[stacking.Sums | None, NDArray[np.int64]]:
        """Return the sums for one-shot least squares, and the fold whose model is new to each row.

        With fewer rows than the floor there are no sums, and every model is new to every row.
        """
        layout = stacking.Layout(1, self._width, False, *bounds)
        options = self._strategy
        assert isinstance(options, FedStackingConfig)
        try:
            part, split = stacking.linear_sums(
                layout,
                self.rows.x,
                self.rows.y,
                request.num_folds,
                request.min_rows,
                self._row_generator("linear"),
                options.ls_rows_per_feature,
            )
        except DataError:
            return None, np.zeros(self._num_rows, np.int64)
        return part, split.fold

    def _remember(
        self, name: str, make: Callable[[], dict[str, NDArray[Any]]]
    ) -> dict[str, NDArray[Any]]:
        """Return what the node remembers under a name, or make it and remember it."""
        key = f"stack-{name}"
        known = self.memory.get(key)
        if isinstance(known, ArrayRecord):
            return read(known)
        made = make()
        self.memory[key] = hold(made)
        return made

    @property
    def _strategy(self) -> BaseModelsConfig:
        assert isinstance(self.config.strategy, BaseModelsConfig)
        return self.config.strategy

    @property
    def _kind(self) -> str:
        return self._strategy.kind_of(self.partition)

    @property
    def _has_ls(self) -> bool:
        options = self._strategy
        return isinstance(options, FedStackingConfig) and options.global_member == LS

    @property
    def _num_rows(self) -> int:
        return len(self.rows.x)

    @property
    def _width(self) -> int:
        return self.models.num_outputs

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Training rows of each class, (C,), 0 for a few; of all, (1,), for regression."""
        if self.encoding.task == "regression":
            return np.array([self._num_rows])
        counts = np.bincount(self.rows.y, minlength=self._width)
        return np.where(counts < MIN_LEVEL_ROWS, 0, counts)
