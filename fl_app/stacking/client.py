"""What a client does in each phase of FedStacking: fit, add up, count.

The message contract stands in :class:`~fl_app.stacking.strategy.FedStacking`. Nothing here keeps
state that could not be made again: folds are functions of the partition, fits of the run's seed
too, and a node's memory of them (Flower's ``context.state``, which stays on the node) only saves
time. Were folds drawn by the seed, each run of a sweep would tell sums over other rows, and enough
of them solve for every row.
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
from fl_app.config.options import MIN_LEVEL_ROWS
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
from fl_app.stacking.members import (
    LS,
    MODEL,
    Member,
    MemberModels,
    pack,
    unpack,
    unpack_members,
    unpack_range,
)

__all__ = ["StackClient"]

Answer = tuple[dict[str, NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class StackClient:
    """One client of one run.

    Parameters
    ----------
    config : Config
        The run's config, with ``strategy=fedstacking``.
    encoding : Encoding
        The federation's encoding.
    kinds : MemberModels
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
    kinds: MemberModels
    partition: int
    rows: Encoded
    memory: RecordDict

    def answer(self, request: StackRequest, received: Arrays) -> Answer:
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
        phases: Mapping[str, Callable[[StackRequest, Arrays], Answer]] = {
            "collect": self._collect,
            "stack": self._stack,
            "select": self._select,
        }
        arrays, outputs = phases[request.phase](request, received)
        return arrays, self.encoding.in_units(outputs)

    # ------------------------------------------------------------------------- collect
    def _collect(self, request: StackRequest, received: Arrays) -> Answer:
        """Train the global member; add the base model if asked."""
        arrays: dict[str, NDArray[Any]] = {}
        outputs: NDArray[Any] | None = None
        if start := unpack("global", received):
            rng = generator(self.config.seed, "train", request.server_round, self.partition)
            rate = request.learning_rate
            trained = self.kinds.model.fit(start, self.rows.x, self.rows.y, rng, learning_rate=rate)
            arrays |= pack("global", trained)
            outputs = self.kinds.outputs(Member(MODEL, trained), self.rows.x, self._no_layout)
        if request.send_base and self._num_rows >= max(self.config.min_rows, request.min_rows):
            arrays |= self._base(request).to_arrays("base")
            arrays["counts"] = self._counts
            if self._has_ls:
                arrays |= pack("linear", self._linear(request, received)[0])
        if outputs is None:
            outputs = self._outputs(self._base(request))
        return arrays, outputs

    def _base(self, request: StackRequest) -> Member:
        """Return the base model fitted on all training rows."""
        kind = self._kind
        everything = np.ones(self._num_rows, np.bool_)
        return Member(
            kind, self._remember("base", lambda: self._fit(kind, "base", everything, request))
        )

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
        own, task, rate = self.kinds.model, self.encoding.task, self.config.model.learning_rate
        arrays = own.start(generator(self.config.seed, "model"))
        stepping = Stepping(
            first_step(task, self.kinds.num_features) if rate == "auto" else rate,
            adapts=rate == "auto",
        )
        for _ in range(self.config.num_server_rounds):
            moved = own.fit(arrays, x, y, rng, learning_rate=stepping.step)
            outputs = self.encoding.in_units(own.predict(moved, x))
            loss = score(task, outputs, truth)[METRICS[task][0]]
            if stepping.counts({0: (1.0, loss)}):
                arrays = moved
        return arrays

    # ------------------------------------------------------------------------- stack
    def _stack(self, request: StackRequest, received: Arrays) -> Answer:
        """Add up products of the members' outputs and the truth."""
        members = unpack_members(received)
        layout = self._layout(received, members)
        features, outputs = self._features(request, received, members, layout)
        truth = stacking.targets(layout, self.rows.y)
        part = stacking.sums(features, truth, self._split(request))
        return pack("sums", part.to_arrays()), outputs

    def _layout(self, received: Arrays, members: Mapping[int, Member]) -> stacking.Layout:
        has_global = any(name.startswith(("fold_", "global/")) for name in received)
        return stacking.Layout(len(members), self._width, has_global, *unpack_range(received))

    def _features(
        self,
        request: StackRequest,
        received: Arrays,
        members: Mapping[int, Member],
        layout: stacking.Layout,
    ) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Return the meta-features of the training rows and the global model's outputs on them.

        The outputs are the global member's, or without one the average of the members, whose
        weights then come with them.
        """
        blocks = []
        for partition, member in members.items():
            self.kinds.check(member)
            own = partition == self.partition and _same(member, self._base(request))
            blocks.append(
                self._own_block(request, layout)
                if own
                else self.kinds.outputs(member, self.rows.x, layout)
            )
        if layout.has_global:
            blocks.append(self._global_block(request, received, layout))
        features = stacking.features(layout, blocks)
        if not layout.has_global:
            return features, stacking.combine(layout, features, received["weights"])
        if not self._has_ls:
            return features, blocks[-1]
        alone = np.zeros((layout.num_blocks, layout.num_outputs))
        alone[-1] = 1.0  # scores of least squares become probabilities as in a stack
        return features, stacking.combine(layout, features, alone)

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
                    block[rows] = self.kinds.outputs(fitted, self.rows.x[rows], layout)
            return {"outputs": block}

        return self._remember("own", make)["outputs"]

    def _global_block(
        self, request: StackRequest, received: Arrays, layout: stacking.Layout
    ) -> NDArray[Any]:
        """Return the global member's outputs; of least squares, by a model without the row."""
        if not self._has_ls:
            return self.kinds.outputs(_global_of(received), self.rows.x, layout)
        folds = self._linear(request, received)[1]
        without = []
        for fold in range(request.num_folds):
            member = Member.from_arrays(f"fold_{fold}", received)
            assert member is not None
            without.append(self.kinds.outputs(member, self.rows.x, layout))
        return stacking.out_of_fold(without, folds)

    # ------------------------------------------------------------------------- select
    def _select(self, request: StackRequest, received: Arrays) -> Answer:
        """Count what each candidate gets right on rows that it is new to."""
        members = unpack_members(received)
        layout = self._layout(received, members)
        features, _ = self._features(request, received, members, layout)
        truth = stacking.targets(layout, self.rows.y)
        split = self._split(request)
        if request.is_new:
            zeros = np.zeros(self._num_rows, np.int64)
            split = stacking.SumFolds(zeros, np.ones(self._num_rows, np.bool_))
        table = _candidates(received)
        counts = stacking.scores(layout, features, truth, split, table, request.min_rows)
        outputs = stacking.by_fold(layout, features, split, table[request.provisional])
        arrays: dict[str, NDArray[Any]] = {"scores": counts}
        if request.gate:
            stacks = [stacking.by_fold(layout, features, split, weights) for weights in table]
            arrays["gates"] = self._gates(request, received, members, layout, stacks)
        return arrays, outputs

    def _gates(
        self,
        request: StackRequest,
        received: Arrays,
        members: Mapping[int, Member],
        layout: stacking.Layout,
        stacks: list[NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Try the personal gate for each candidate, and price it on the validation rows.

        Returns an array of shape (A, 4): share of the own model, validation rows, and the sum over
        them of rows right (regression: squared errors) without and with the gate.
        """
        own = self._own_block(request, layout)
        truth = stacking.targets(layout, self.rows.y)
        x = self.rows.x_eval
        everybody = [*members.values()]
        if layout.has_global:
            everybody.append(_global_of(received))
        features = stacking.features(layout, [self.kinds.outputs(m, x, layout) for m in everybody])
        alone = self.kinds.outputs(self._base(request), x, layout)
        rows = []
        for number, stacked in enumerate(stacks):
            share = stacking.gate(layout, own, stacked, truth)
            together = stacking.combine(layout, features, received[f"final/{number:02d}"])
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
    @property
    def _strategy(self) -> BaseModelsConfig:
        assert isinstance(self.config.strategy, BaseModelsConfig)
        return self.config.strategy

    @property
    def _kind(self) -> str:
        return self._strategy.kind_of(self.partition)

    @property
    def _has_ls(self) -> bool:
        own = self._strategy
        return isinstance(own, FedStackingConfig) and own.global_member == LS

    @property
    def _num_rows(self) -> int:
        return len(self.rows.x)

    @property
    def _width(self) -> int:
        return self.kinds.num_outputs

    @property
    def _no_layout(self) -> stacking.Layout:
        """A layout for models of which none is ``ls``: they do not look at it."""
        return stacking.Layout(1, self._width, False)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Training rows of each class, (C,), 0 for a few; of all, (1,), for regression."""
        if self.encoding.task == "regression":
            return np.array([self._num_rows])
        counts = np.bincount(self.rows.y, minlength=self._width)
        return np.where(counts < MIN_LEVEL_ROWS, 0, counts)

    def _outputs(self, member: Member) -> NDArray[np.float64]:
        return self.kinds.outputs(member, self.rows.x, self._no_layout)

    def _dealer(self, purpose: str) -> np.random.Generator:
        """Return what deals the rows: the same in every run, whatever its seed."""
        return generator(0, purpose, 0, self.partition)

    def _row_folds(self, request: StackRequest) -> NDArray[np.int64]:
        classes = self.encoding.task == "classification"
        rng = self._dealer("folds")
        return stacking.row_folds(self.rows.y, request.num_folds, rng, classes)

    def _split(self, request: StackRequest) -> stacking.SumFolds:
        return stacking.sum_folds(
            self.rows.y,
            request.num_folds,
            request.min_rows,
            self._dealer("stack"),
            classes=self.encoding.task == "classification",
            by_client=request.client_folds,
        )

    def _linear(
        self, request: StackRequest, received: Arrays
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        """Return the sums for one-shot least squares, and the fold whose model is new to each row.

        With fewer rows than the floor there are no sums, and every model is new to every row.
        """
        layout = stacking.Layout(1, self._width, False, *unpack_range(received))
        own = self._strategy
        assert isinstance(own, FedStackingConfig)
        try:
            part, split = stacking.linear_sums(
                layout,
                self.rows.x,
                self.rows.y,
                request.num_folds,
                request.min_rows,
                self._dealer("linear"),
                own.ls_rows_per_feature,
            )
        except DataError:
            return {}, np.zeros(self._num_rows, np.int64)
        return part.to_arrays(), split.fold

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


def _same(one: Member, other: Member) -> bool:
    """Return whether two models are equal bit for bit."""
    return (
        one.kind == other.kind
        and one.arrays.keys() == other.arrays.keys()
        and all(
            a.dtype == other.arrays[name].dtype and np.array_equal(a, other.arrays[name])
            for name, a in one.arrays.items()
        )
    )


def _global_of(received: Arrays) -> Member:
    """Return the global member of a message."""
    member = Member.from_arrays("global", received)
    assert member is not None
    return member


def _candidates(received: Arrays) -> list[dict[int, NDArray[Any]]]:
    """Read each candidate's weights by fold."""
    table: dict[str, dict[int, NDArray[Any]]] = {}
    for name, array in unpack("candidate", received).items():
        number, _, fold = name.partition("/")
        table.setdefault(number, {})[int(fold)] = array
    return [table[number] for number in sorted(table)]
