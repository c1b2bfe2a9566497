"""FedStacking: clients train base models, the server learns from sums how to combine them.

Wolpert's stacked generalization as a Flower strategy. Clients upload one base model each; the
server sends some of them (the *members*) to everybody, gets sums over rows back, solves every way
of combining them, and lets the clients count which one is right most often on rows that it is new
to. The mathematics is in :mod:`fl_app.stacking`.

References
----------
Wolpert 1992, "Stacked generalization", https://doi.org/10.1016/S0893-6080(05)80023-1.
Allouah et al. 2024, "Revisiting Ensembling in One-Shot Federated Learning",
https://arxiv.org/abs/2411.07182 (an ensemble sent back, a combiner learnt by its holders).
Guha, Talwalkar and Smith 2019, "One-Shot Federated Learning", https://arxiv.org/abs/1902.11175
(choosing members). ``FedStack`` (https://arxiv.org/abs/2209.13080) is another method.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.aggregation import weighted_mean
from fl_app.errors import ConfigError, DataError, FederationError
from fl_app.federation.replies import ReplySpec
from fl_app.grid.arrays import hold, read
from fl_app.models.base import Arrays
from fl_app.models.estimators import MAX_VALUE
from fl_app.stacking.members import LS, MODEL, Member, Stack, pack, pack_members, pack_range, unpack

__all__ = ["FAMILY_NUMBERS", "PHASES", "FedStacking", "NAverage"]

log = logging.getLogger("fl_app")

PHASES = ("collect", "stack", "select")
"""What a round does; ``stack/phase`` is the position in here."""
FAMILY_NUMBERS: Mapping[str, int] = {
    name: number for number, name in enumerate((*stacking.AVERAGES, *stacking.FAMILIES, "ridge"))
}
"""``stack/family`` of each family of weights."""
GLOBAL_MEMBERS = ("fedavg", "ls", "none")


class FedStacking(FedAvg):
    """Stacked generalization over a federation.

    Rounds 1 … T-2 *collect*: one FedAvg step of the global member, and once from each client its
    base model. Round T-1 *stacks*: members go out to all clients, sums come back, all ways of
    combining them are solved. Round T *selects*: the candidates go to all clients, counts come
    back, the best becomes the model.

    Parameters
    ----------
    num_rounds : int
        T, at least 3: the ``num_rounds`` of ``start()``.
    num_outputs : int
        C classes, at least 2, or T targets.
    bounds : (sequence of float, sequence of float), optional
        Lowest and highest value of each target, for regression (:func:`fl_app.stacking.bounds`
        makes them of moments); None for classification.
    global_member : {"fedavg", "ls", "none"}, default "fedavg"
        The federation's own model among the members: trained by averaging, solved at once by least
        squares, or none.
    num_folds : int, default 4
        V, at least 2.
    client_folds : bool, default False
        Whether all rows of a client belong to one fold of the sums: a V-th of the bytes, for 50
        clients or more.
    min_rows_per_sum : int, default 3
        Rows of a class (regression: rows) below which clients leave rows out of a sum.
    max_members : int, optional
        Members at most; by default ``min(32, 420 // C)``.
    personal_gate : bool, default False
        Whether clients also try to mix the stack with their own model, which is reported apart.
    partitions : mapping of int to int, optional
        Node id -> partition, which orders sums and names members; by default node ids themselves.
    check_member : callable (Member) -> None, optional
        Raises :class:`~fl_app.errors.FlAppError` for a base model that is not usable. By default
        its arrays must be finite numbers.
    num_features : int, optional
        Columns of the clients' tables. With it a warning before the sums are made says how many of
        them can be solved for their rows (:func:`fl_app.stacking.can_be_solved_for`), and
        ``stack/open_sums`` counts them among those that came; without it nobody is warned.
    **kwargs
        As for Flower's FedAvg.

    Raises
    ------
    ConfigError, DataError
        If a parameter is out of range.

    Notes
    -----
    *Message contract*, for a ClientApp of your own; arrays are in the record ``arrays``, settings
    in the record ``config``. A ``train`` message has ``server-round`` and these settings:
    ``stack-phase``, ``stack-num-folds``, ``stack-client-folds``, ``stack-min-rows``.

    ``collect`` (also ``stack-send-base``: whether the base model is still wanted)
        In: with ``fedavg``, ``global/<array>``. Out: the same after local training. If it is
        wanted and can be given, ``base/<kind>/<array>`` and ``counts``, int64, training rows of
        each class (C,), where few rows may count 0, or of all (1,); with ``ls`` also ``linear/`` +
        the arrays of :class:`fl_app.stacking.Sums` from :func:`fl_app.stacking.linear_sums`, if the
        client has enough rows.
    ``stack``
        In: ``member/<partition>/<kind>/<array>``; with ``fedavg`` ``global/model/<array>``; with
        ``ls`` ``fold_<v>/ls/weights``, solved without fold v of :func:`linear_sums
        <fl_app.stacking.linear_sums>`, for :func:`fl_app.stacking.predict_linear`; with ``none``
        ``weights``. Out: ``sums/`` + the arrays of :class:`fl_app.stacking.Sums`. Deal the folds
        of :func:`fl_app.stacking.sum_folds` alike in every run, by the partition alone: with folds
        that change with the seed, each run of a sweep tells sums over other rows, and enough of
        them solve for every row.
    ``select`` (also ``stack-is-new``, ``stack-provisional``, ``stack-gate``)
        In: as in ``stack``, and ``candidate/<number>/<fold>``, the weights without that fold; with
        the gate ``final/<number>``, and ``global/ls/weights`` with ``ls``. Out: ``scores`` of
        :func:`fl_app.stacking.scores`; with the gate ``gates`` (A, 4): share of the own model,
        validation rows, sum of rows right (squared errors) over them without and with it.

    For regression ``low`` and ``high`` (T,) come with every message. Every reply has a record
    ``metrics`` with ``num-examples``, its training rows. ``evaluate`` messages are FedAvg's; their
    arrays are those of :mod:`~fl_app.stacking.members`, a stack's from round T-1 on at the
    latest. The initial arrays are the global member's; with ``ls`` and ``none`` they are only
    passed on.

    A reply that does not keep the contract is left out with a warning. All sums are over whoever
    answered; a client may miss any round, and a member may be gone once its base model is here.

    Examples
    --------
    >>> FedStacking(num_rounds=2, num_outputs=3)
    Traceback (most recent call last):
        ...
    fl_app.errors.ConfigError: num_server_rounds=2: strategy=fedstacking needs at least 3 rounds
    """

    def __init__(
        self,
        *,
        num_rounds: int,
        num_outputs: int,
        bounds: tuple[Sequence[float], Sequence[float]] | None = None,
        global_member: str = "fedavg",
        num_folds: int = 4,
        client_folds: bool = False,
        min_rows_per_sum: int = 3,
        max_members: int | None = None,
        personal_gate: bool = False,
        partitions: Mapping[int, int] | None = None,
        check_member: Callable[[Member], None] | None = None,
        num_features: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        limits = (
            ("num_server_rounds", num_rounds, 3, "strategy=fedstacking needs at least 3 rounds"),
            ("strategy.num_folds", num_folds, 2, "expected an integer >= 2"),
            ("strategy.min_rows_per_sum", min_rows_per_sum, 1, "expected an integer >= 1"),
            ("strategy.max_members", 1 if max_members is None else max_members, 1, "at least 1"),
            ("num_outputs", num_outputs, 1 if bounds else 2, "expected 2 classes or 1 target"),
        )
        for name, value, least, allowed in limits:
            if value < least:
                raise ConfigError(name, value, allowed)
        if global_member not in GLOBAL_MEMBERS:
            allowed = f"one of {', '.join(GLOBAL_MEMBERS)}"
            raise ConfigError("strategy.global_member", global_member, allowed)
        self.num_rounds, self.num_outputs = num_rounds, num_outputs
        self.low, self.high = (tuple(map(float, side)) for side in bounds or ((), ()))
        stacking.Layout(1, num_outputs, False, self.low, self.high)  # rejects bounds
        self.global_member, self.num_folds = global_member, num_folds
        self.client_folds, self.min_rows_per_sum = client_folds, min_rows_per_sum
        self.max_members = max_members or stacking.max_members(num_outputs)
        self.personal_gate = personal_gate
        self.partitions: Mapping[int, int] = {} if partitions is None else partitions
        self._check_member = check_member or _check_finite
        self.num_features = num_features
        self._forget()

    def _forget(self) -> None:
        """Begin a run: nothing of another one is known."""
        self._bases: dict[int, Member] = {}
        self._rows: dict[int, int] = {}
        self._counts: dict[int, NDArray[Any]] = {}
        self._linear: dict[int, stacking.Sums] = {}
        self._global: Member | None = None
        self._folds: list[Member] = []
        self._chosen: Sequence[int] | None = None
        self._stackers: dict[int, tuple[int, ...]] = {}
        self._table: Sequence[stacking.Candidate] = ()
        self._provisional = 0
        self._good: set[str] = set()
        self._sent: Arrays = {}
        self._metrics: dict[str, float] = {}
        self._texts: dict[str, str] = {}

    # ------------------------------------------------------------------------- Flower's hooks
    def phase(self, server_round: int) -> str:
        """Return what a round does: a word of :data:`PHASES`."""
        if server_round > self.num_rounds:
            raise FederationError(f"round {server_round}: num_rounds={self.num_rounds} are over")
        return PHASES[max(0, server_round - self.num_rounds + 2)]

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send what the round's phase needs; in the last two rounds to all nodes."""
        if server_round == 1:
            self._forget()
        phase = self.phase(server_round)
        self._good = set()
        if phase != "collect":
            nodes = list(grid.get_node_ids())
        else:
            sampled = super().configure_train(server_round, arrays, config, grid)
            nodes = [message.metadata.dst_node_id for message in sampled]
        self._sent = read(arrays)
        if phase == "collect" and self.global_member == "fedavg":
            self._global = Member(MODEL, self._sent)
        if phase != "collect":
            if not self._bases:
                raise FederationError(f"round {server_round}: no client has sent a base model")
            if self.global_member == LS and self._global is None:
                raise FederationError(
                    f"round {server_round}: no client had enough rows for strategy.global_member="
                    f"{LS}; fedavg and none need fewer"
                )
            self._chosen = list(self._members())
        if phase == "stack":
            self._warn_of_open_sums(nodes)
        settings: dict[str, Any] = {
            "server-round": server_round,
            "stack-phase": phase,
            "stack-num-folds": self.num_folds,
            "stack-client-folds": self.client_folds,
            "stack-min-rows": self.min_rows_per_sum,
        }
        config.update(settings)
        return [
            Message(content, node, MessageType.TRAIN)
            for node, content in self._contents(phase, nodes, config)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies in and return the model so far.

        Raises
        ------
        FederationError
            If no usable reply came, or none with a row.
        """
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        usable = {self._key(m): m for m in valid if self._is_usable(server_round, m)}
        if not usable:
            raise FederationError(f"round {server_round}: no usable reply")
        phase = self.phase(server_round)
        take = {"collect": self._collect, "stack": self._stack, "select": self._select}
        self._metrics, self._texts = {"stack/phase": float(PHASES.index(phase))}, {}
        try:
            arrays = take[phase]({key: usable[key] for key in sorted(usable)})
        except (DataError, np.linalg.LinAlgError) as error:
            raise FederationError(f"round {server_round}, {phase}: {error}") from None
        contents = [usable[key].content for key in sorted(usable)]
        return hold(arrays), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    # ------------------------------------------------------------------------- for the house
    def samples_all(self, server_round: int) -> bool:
        """All nodes take part in the sums and in the choice, whatever the fraction."""
        return self.phase(server_round) != "collect"

    def trains(self, server_round: int) -> bool:
        """Return whether a round's metrics are those of a global member that is trained."""
        return self.global_member == "fedavg" and self.phase(server_round) == "collect"

    def is_model(self, name: str) -> bool:
        """Return whether an array of a reply is a model's: a client's sums are not recorded."""
        return name.startswith(("global/", "base/"))

    def stay(self, server_round: int, replies: Iterable[Message]) -> None:
        """Take the base models of a round that is thrown away; the global member stays."""
        by_key = {self._key(message): message for message in replies}
        self._take_bases({key: by_key[key] for key in sorted(by_key)})
        phase = float(PHASES.index(self.phase(server_round)))
        bases = float(len(self._bases))
        self._metrics, self._texts = {"stack/phase": phase, "stack/base_models": bases}, {}

    def reply_spec(self, server_round: int, arrays: ArrayRecord) -> ReplySpec:
        """Return what a usable reply of this round looks like."""
        return ReplySpec(None, check=lambda message: self._note(server_round, message))

    def round_metrics(self, server_round: int) -> Mapping[str, float]:
        """Return ``stack/…`` of the round."""
        return self._metrics

    def round_texts(self, server_round: int) -> Mapping[str, str]:
        """Return the tables of candidates and members, from round T-1 on."""
        return self._texts

    # ------------------------------------------------------------------------- asking
    def _shared(self, phase: str) -> ArrayRecord:
        """Return the arrays that every node gets in a round."""
        arrays = pack_range(self.low, self.high)
        if phase == "collect":
            if self.global_member == "fedavg" and self._global is not None:
                arrays |= pack("global", self._global.arrays)
            return hold(arrays, copy=False)
        arrays |= pack_members(self._members())
        for fold, without in enumerate(self._folds):
            arrays |= without.to_arrays(f"fold_{fold}")
        if self.global_member == "none":
            arrays["weights"] = self._n_average()
        gates = phase == "select" and self.personal_gate
        if gates:
            arrays |= {f"final/{k:02d}": c.weights for k, c in enumerate(self._table)}
        if self._global is not None and (gates or self.global_member == "fedavg"):
            arrays |= self._global.to_arrays("global")
        return hold(arrays, copy=False)

    def _contents(
        self, phase: str, nodes: Iterable[int], config: ConfigRecord
    ) -> Iterable[tuple[int, RecordDict]]:
        """Yield each node with what it gets; nodes with equal contents share the arrays."""
        shared = self._shared(phase)
        kinds: dict[tuple[Any, ...], RecordDict] = {}
        for node in nodes:
            kind = self._kind_of_content(phase, self._key_of(node))
            if kind not in kinds:
                arrays, own = shared.copy(), config.copy()
                if phase == "collect":
                    own["stack-send-base"] = kind[0]
                if phase == "select":
                    own["stack-is-new"] = kind[0] is None
                    own["stack-provisional"] = self._provisional
                    own["stack-gate"] = self.personal_gate
                    arrays.update(hold(self._candidate_arrays(kind[0]), copy=False))
                kinds[kind] = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: own})
            yield node, kinds[kind]

    def _kind_of_content(self, phase: str, key: int) -> tuple[Any, ...]:
        """Return all that makes one node's message differ from another's in a round."""
        if phase == "collect":
            return (key not in self._bases,)
        if phase == "stack":
            return ()
        folds = self._stackers.get(key)
        if folds is None:
            return (None,)
        return (folds if self.client_folds and folds else tuple(range(self.num_folds)),)

    def _candidate_arrays(self, folds: tuple[int, ...] | None) -> dict[str, NDArray[Any]]:
        """Return the candidates' weights without these folds; the final ones for new rows."""
        arrays: dict[str, NDArray[Any]] = {}
        for number, candidate in enumerate(self._table):
            if folds is None:
                arrays[f"candidate/{number:02d}/0"] = candidate.weights
            else:
                for fold in folds:
                    arrays[f"candidate/{number:02d}/{fold}"] = candidate.fold_weights[fold]
        return arrays

    def _warn_of_open_sums(self, nodes: Iterable[int]) -> None:
        """Say before the sums are made how many of them can be solved for their rows."""
        known = [self._rows[key] for key in map(self._key_of, nodes) if key in self._rows]
        floor, folds = self.min_rows_per_sum, 1 if self.client_folds else self.num_folds
        # Rows spread evenly over the folds, unless classes are too small for that.
        sizes = [max(floor, rows // folds) for rows in known if rows >= floor]
        found = sorted(size for size in sizes if self._is_open(size))
        if found:
            log.warning(
                "strategy=fedstacking: whoever knows the members may solve the sums of %d of %d "
                "clients heard so far for their rows: r = %d to %d rows of p = %d features in a "
                "sum, which is up to 2 E equations, E = %d (docs/stacking.md, What it reveals)",
                len(found),
                len(sizes),
                found[0],
                found[-1],
                self.num_features,
                stacking.equations(self._layout()),
            )

    def _is_open(self, num_examples: int) -> bool:
        """Return whether a sum over so many rows can be solved for them; False if unknown."""
        features, layout = self.num_features, self._layout()
        return features is not None and stacking.can_be_solved_for(layout, num_examples, features)

    # ------------------------------------------------------------------------- collect
    def _collect(self, replies: Mapping[int, Message]) -> dict[str, NDArray[Any]]:
        """Average the global member, and keep what is new of base models."""
        received = self._take_bases(replies)
        self._metrics["stack/base_models"] = float(len(self._bases))
        if self.global_member == "fedavg":
            return self._average(replies, received)
        if self.global_member == "ls" and self._linear:
            return self._solve_linear()
        if self.global_member == "ls" or not self._bases:
            # This round's clients had too few rows; another round's may have enough.
            return dict(self._sent)
        return self._ensemble().to_arrays()

    def _ensemble(self) -> Stack:
        """Return the base models so far without a global member, and not learnt."""
        return Stack(self._members(), None, self._n_average(), self.low, self.high)

    def _take_bases(self, replies: Mapping[int, Message]) -> dict[int, Arrays]:
        """Keep the base models and numbers of rows that are new; return each reply's arrays."""
        received: dict[int, Arrays] = {}
        for key, message in replies.items():
            received[key] = arrays = self._read(message)
            self._rows.setdefault(key, self._num_examples(message))
            base = Member.from_arrays("base", arrays)
            if base is not None and key not in self._bases:
                self._bases[key], self._counts[key] = base, arrays["counts"]
                if linear := unpack("linear", arrays):
                    self._linear[key] = stacking.Sums.from_arrays(linear)
        return received

    def _average(
        self, replies: Mapping[int, Message], received: Mapping[int, Arrays]
    ) -> dict[str, NDArray[Any]]:
        """Take one step of FedAvg with the global member."""
        rows = [self._num_examples(message) for message in replies.values()]
        average = weighted_mean([unpack("global", a) for a in received.values()], rows)
        self._global = Member(MODEL, average)
        return average

    def _solve_linear(self) -> dict[str, NDArray[Any]]:
        """Solve least squares from all sums so far, and without each fold."""
        widths = {key: part.cross.shape[1] for key, part in self._linear.items()}
        common, _ = Counter(widths.values()).most_common(1)[0]
        for key in [key for key, width in widths.items() if width != common]:
            log.warning(
                "sums of %d for least squares left out: %d columns, most have %d",
                key,
                widths[key],
                common,
            )
            del self._linear[key]
        solved = stacking.least_squares(stacking.pool(self._linear, self.num_folds))
        *without, everything = (Member(LS, {"weights": weights}) for weights in solved)
        self._folds, self._global = without, everything
        return everything.to_arrays("global") | pack_range(self.low, self.high)

    def _members(self) -> dict[int, Member]:
        """Return the members among the base models that are here; they stay once sums are out."""
        if self._chosen is not None:
            return {key: self._bases[key] for key in self._chosen}
        keys = sorted(self._bases)
        chosen = stacking.choose_members(*self._told(keys), self.max_members)
        return {keys[k]: self._bases[keys[k]] for k in chosen}

    def _told(self, keys: Iterable[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the rows (m,) of clients, and their rows of each class (m, C) or (m, 1)."""
        keys = list(keys)
        rows = np.array([self._rows[key] for key in keys], dtype=np.float64)
        return rows, np.stack([self._counts[key] for key in keys])

    def _n_average(self) -> NDArray[np.float32]:
        """Return the weights of the members' average by their rows, (m, C)."""
        rows, _ = self._told(self._members())
        shares = (rows / rows.sum())[:, None]
        return np.broadcast_to(shares, (len(rows), self.num_outputs)).astype(np.float32)

    # ------------------------------------------------------------------------- stack, select
    def _layout(self) -> stacking.Layout:
        has_global = self.global_member != "none"
        return stacking.Layout(
            len(self._members()), self.num_outputs, has_global, self.low, self.high
        )

    def _stack(self, replies: Mapping[int, Message]) -> dict[str, NDArray[Any]]:
        """Solve all families; the one of least cross-validated error is the model for now."""
        parts = {
            key: stacking.Sums.from_arrays(unpack("sums", self._read(message)))
            for key, message in replies.items()
        }
        self._stackers = {key: tuple(part.fold.tolist()) for key, part in parts.items()}
        members = self._members()
        pooled = stacking.pool(parts, self.num_folds)
        self._table = stacking.candidates(self._layout(), pooled, *self._told(members))
        chosen = stacking.provisional(self._table)
        self._provisional = self._table.index(chosen)
        self._metrics |= {
            "stack/members": float(len(members)),
            "stack/rows": pooled.num_examples,
        } | self._losses()
        if self.num_features is not None:
            sizes = np.concatenate([part.gram[:, -1] for part in parts.values()])
            open_sums = sum(self._is_open(int(size)) for size in sizes)
            self._metrics["stack/open_sums"] = float(open_sums)
        return self._take(chosen, None)

    def _losses(self) -> dict[str, float]:
        """Return the least cross-validated error of each family that has one."""
        losses: dict[str, float] = {}
        for candidate in self._table:
            if np.isfinite(candidate.loss):
                name = f"stack/loss_{candidate.family}"
                losses[name] = min(candidate.loss, losses.get(name, np.inf))
        return losses

    def _select(self, replies: Mapping[int, Message]) -> dict[str, NDArray[Any]]:
        """Choose by the clients' counts."""
        received = {key: self._read(message) for key, message in replies.items()}
        counts = stacking.pool_scores({key: arrays["scores"] for key, arrays in received.items()})
        chosen = stacking.choose(self._layout(), self._table, counts)
        self._metrics |= {"stack/rows": float(counts[0, 0])} | self._losses()
        if self.personal_gate:
            number = self._table.index(chosen)
            gates = np.stack([arrays["gates"][number] for arrays in received.values()])
            self._metrics |= self._gate_metrics(gates)
        return self._take(chosen, counts)

    def _gate_metrics(self, gates: NDArray[Any]) -> dict[str, float]:
        """Compare the stack without and with the gate on all validation rows, (K, 4)."""
        rows = gates[:, 1].sum()
        name = "mse" if self.low else "accuracy"
        metrics = {"stack/gate_open": float((gates[:, 0] > 0).mean())}
        if rows:
            metrics[f"stack/ungated_{name}"] = float(gates[:, 2].sum() / rows)
            metrics[f"stack/gated_{name}"] = float(gates[:, 3].sum() / rows)
        return metrics

    def _take(
        self, chosen: stacking.Candidate, counts: NDArray[np.float64] | None
    ) -> dict[str, NDArray[Any]]:
        """Make a candidate the model, and write down why."""
        members = self._members()
        self._metrics |= {
            "stack/family": float(FAMILY_NUMBERS[chosen.family]),
            "stack/lambda": chosen.penalty,
        }
        self._texts = {
            "stack/candidates.json": _table(self._candidate_rows(chosen, counts)),
            "stack/members.json": _table(self._member_rows(members, chosen)),
        }
        return Stack(members, self._global, chosen.weights, self.low, self.high).to_arrays()

    def _candidate_rows(
        self, chosen: stacking.Candidate, counts: NDArray[np.float64] | None
    ) -> list[dict[str, Any]]:
        rows = []
        for number, candidate in enumerate(self._table):
            row: dict[str, Any] = {
                "candidate": candidate.name,
                "family": candidate.family,
                "lambda": candidate.penalty,
                "cv_loss": candidate.loss,
            }
            if counts is not None:
                examples, right, loss = counts[number].tolist()
                row |= {"rows": int(examples), "right": int(right), "loss": loss / examples}
            rows.append(row | {"chosen": candidate is chosen})
        return rows

    def _member_rows(
        self, members: Mapping[int, Member], chosen: stacking.Candidate
    ) -> list[dict[str, Any]]:
        share = stacking.influence(self._layout(), chosen.weights).tolist()
        rows: list[dict[str, Any]] = [
            {
                "member": f"{key:03d}",
                "kind": member.kind,
                "num_examples": self._rows[key],
                "influence": share[position],
            }
            for position, (key, member) in enumerate(members.items())
        ]
        if self._global is not None:
            rows.append({"member": "global", "kind": self._global.kind, "influence": share[-1]})
        return sorted(rows, key=lambda row: -row["influence"])

    # ------------------------------------------------------------------------- replies
    def _key_of(self, node: int) -> int:
        return self.partitions.get(node, node)

    def _key(self, message: Message) -> int:
        return self._key_of(message.metadata.src_node_id)

    def _read(self, message: Message) -> dict[str, NDArray[Any]]:
        return read(next(iter(message.content.array_records.values())))

    def _num_examples(self, message: Message) -> int:
        metrics = next(iter(message.content.metric_records.values()))
        return int(metrics[self.weighted_by_key])  # type: ignore[arg-type]

    def _note(self, server_round: int, message: Message) -> None:
        """Check a reply for whoever stands before this strategy, and remember that it is good."""
        self._check(server_round, message)
        self._good.add(message.metadata.message_id)

    def _is_usable(self, server_round: int, message: Message) -> bool:
        if message.metadata.message_id in self._good:
            return True
        try:
            self._check(server_round, message)
        # Bytes of anybody's making raise anything: MemoryError, TokenError, BadZipFile.
        except Exception as error:
            who, text = self._key(message), " ".join(str(error).split())
            log.warning("round %d: reply of %d dropped: %s", server_round, who, text[:300])
            return False
        return True

    def _check(self, server_round: int, message: Message) -> None:
        """Raise for a reply that does not keep the contract."""
        arrays, rows = self._read(message), self._num_examples(message)
        if rows < 1:
            raise DataError(self.weighted_by_key, rows, "at least 1")
        phase = self.phase(server_round)
        left = {"collect": self._check_collect, "stack": self._check_stack}.get(
            phase, self._check_select
        )(arrays, rows, self._key(message))
        if left:
            raise DataError("arrays", ", ".join(sorted(left)), f"nothing but the {phase} phase's")

    def _check_collect(self, arrays: Arrays, rows: int, key: int) -> set[str]:
        left = set(arrays)
        if self.global_member == "fedavg" and self._global is not None:
            _check_like("global", unpack("global", arrays), self._global.arrays)
            left -= {f"global/{name}" for name in self._global.arrays}
        base = Member.from_arrays("base", arrays)
        if base is None:
            return left
        self._check_member(base)
        counts = _take_array(arrays, "counts", np.int64, (1 if self.low else self.num_outputs,))
        if (counts < 0).any() or counts.sum() > rows:
            raise DataError("counts", counts, f"at most {rows} rows over all classes")
        if linear := unpack("linear", arrays):
            self._check_linear(stacking.Sums.from_arrays(linear), rows)
        return {n for n in left if not n.startswith(("base/", "linear/"))} - {"counts"}

    def _check_linear(self, part: stacking.Sums, rows: int) -> None:
        if self.global_member != "ls":
            raise DataError("linear", "sums", "no sums for least squares, they were not asked for")
        width = part.cross.shape[1] if part.cross.ndim == 3 else 0
        stacking.check_sums(
            part,
            width=width,
            num_outputs=self.num_outputs,
            num_folds=self.num_folds,
            num_examples=rows,
            bounded=False,
        )

    def _check_stack(self, arrays: Arrays, rows: int, key: int) -> set[str]:
        part = stacking.Sums.from_arrays(unpack("sums", arrays))
        stacking.check_sums(
            part,
            width=self._layout().width,
            num_outputs=self.num_outputs,
            num_folds=self.num_folds,
            num_examples=rows,
            bounded=True,
        )
        return {name for name in arrays if not name.startswith("sums/")}

    def _check_select(self, arrays: Arrays, rows: int, key: int) -> set[str]:
        count = len(self._table)
        scores = _take_array(arrays, "scores", np.float64, (count, 3))
        _check_bounded("scores", scores)
        stacking.check_scores(self._layout(), scores, count, rows)
        if not self.personal_gate:
            return set(arrays) - {"scores"}
        gates = _take_array(arrays, "gates", np.float64, (count, 4))
        _check_bounded("gates", gates)
        good = (gates >= 0).all() and (gates[:, 0] <= 1).all()
        if not good or (not self.low and (gates[:, 2:] > gates[:, 1:2]).any()):
            raise DataError("gates", gates.ravel()[:8], "shares, rows, and no more rows right")
        return set(arrays) - {"scores", "gates"}


class NAverage(FedStacking):
    """All clients' base models, averaged by their rows or by majority vote: an ensemble made once.

    What FedStacking learns to do better than. Every round collects base models of clients that
    have not sent theirs; with all clients in each round nothing changes after the first.

    Parameters
    ----------
    combine : {"rows", "classes", "votes"}, default "rows"
        Average of the models' outputs weighted by their clients' rows, or for each class by their
        rows of it; or the share of the models whose likeliest class it is. The last two are for
        classification.
    num_outputs, bounds, partitions, check_member
        As for :class:`FedStacking`.
    **kwargs
        As for Flower's FedAvg.
    """

    def __init__(self, *, combine: str = "rows", **kwargs: Any) -> None:
        super().__init__(num_rounds=3, global_member="none", max_members=sys.maxsize, **kwargs)
        if combine not in ("rows", "classes", "votes")[: 1 if self.low else 3]:
            raise ConfigError("strategy.combine", combine, "rows; for classes also classes, votes")
        self.combine = combine

    def phase(self, server_round: int) -> str:
        """Every round collects."""
        return "collect"

    def _ensemble(self) -> Stack:
        """Return the base models so far, combined as asked."""
        average = super()._ensemble()
        if self.combine == "rows":
            return average
        if self.combine == "votes":
            equal = np.full_like(average.weights, 1 / len(average.weights))
            return replace(average, weights=equal, votes=True)
        told = self._told(average.members)
        weights = stacking.class_shares(*told, self.num_outputs).astype(np.float32)
        return replace(average, weights=weights)


def _take_array(
    arrays: Arrays, name: str, dtype: type[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return an array of a reply that must have this dtype and shape."""
    if name not in arrays:
        raise DataError("arrays", ", ".join(sorted(arrays)), f"an array {name}")
    array = arrays[name]
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        allowed = f"{np.dtype(dtype).name} of shape {shape}"
        raise DataError(name, f"{array.dtype} {array.shape}", allowed)
    return array


def _check_like(prefix: str, arrays: Arrays, pattern: Arrays) -> None:
    """Reject arrays that differ from a pattern in names, dtypes or shapes, or are not bounded."""
    if arrays.keys() != pattern.keys():
        raise DataError(prefix, ", ".join(sorted(arrays)), f"arrays {', '.join(pattern)}")
    for name, like in pattern.items():
        _check_bounded(f"{prefix}/{name}", _take_array(arrays, name, like.dtype.type, like.shape))


def _check_finite(member: Member) -> None:
    """Reject a base model whose arrays are not finite, bounded numbers, or that has none."""
    if not member.arrays:
        raise DataError(f"base/{member.kind}", "no arrays", "at least one")
    for name, array in member.arrays.items():
        _check_bounded(f"base/{member.kind}/{name}", array)


def _check_bounded(name: str, array: NDArray[Any]) -> None:
    """Reject what is no number, or one whose square a sum could not hold."""
    numeric = array.dtype.kind in "fiub"
    if not numeric or not (np.abs(array.astype(np.float64)) <= MAX_VALUE).all():
        allowed = f"finite numbers of at most {MAX_VALUE:g}"
        raise DataError(name, array.ravel()[:8], allowed)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an MLflow table artifact; NaN becomes null."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    data = [[_cell(row.get(column)) for column in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data}, allow_nan=False)


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
