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

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_app.errors import ConfigError, DataError, FederationError
from fl_app.federation.protocol import StackRequest
from fl_app.federation.replies import ReplySpec
from fl_app.grid.arrays import hold, read
from fl_app.stacking.choosing import FAMILY_NUMBERS, Select, SolveStack
from fl_app.stacking.collecting import Collect
from fl_app.stacking.members import Member
from fl_app.stacking.phases import Made, Plan, check_finite

__all__ = ["FAMILY_NUMBERS", "PHASES", "FedStacking", "NAverage"]

log = logging.getLogger("fl_app")

PHASES = ("collect", "stack", "select")
"""What a round does; ``stack/phase`` is the position in here."""


class NAverage(FedAvg):
    """All clients' base models, averaged by their rows or by majority vote: an ensemble made once.

    What FedStacking learns to do better than. Every round collects base models of clients that
    have not sent theirs; with all clients in each round nothing changes after the first.

    Parameters
    ----------
    combine : {"rows", "classes", "votes"}, default "rows"
        Average of the models' outputs weighted by their clients' rows, or for each class by their
        rows of it; or the share of the models whose likeliest class it is. The last two are for
        classification.
    num_outputs, bounds, partitions, check_member, min_rows_per_sum
        As for :class:`FedStacking`.
    **kwargs
        As for Flower's FedAvg.
    """

    def __init__(
        self,
        *,
        num_outputs: int,
        bounds: tuple[Sequence[float], Sequence[float]] | None = None,
        combine: str = "rows",
        partitions: Mapping[int, int] | None = None,
        check_member: Callable[[Member], None] | None = None,
        min_rows_per_sum: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        low, high = bounds or ((), ())
        self.plan = Plan(
            num_outputs,
            (tuple(map(float, low)), tuple(map(float, high))),
            combine,
            min_rows_per_sum=min_rows_per_sum,
            max_members=sys.maxsize,
            check_member=check_member or check_finite,
        )
        self.partitions: Mapping[int, int] = {} if partitions is None else partitions
        self._forget()

    def _forget(self) -> None:
        """Begin a run: nothing of another one is known."""
        self._collect = Collect(self.plan)
        self._phases: dict[str, Collect | SolveStack | Select] = {Collect.name: self._collect}
        self._checked: dict[tuple[int, str], tuple[Any, int]] = {}  # by node and message
        self._made = Made({}, {})

    # ------------------------------------------------------------------------- Flower's hooks
    def phase(self, server_round: int) -> str:
        """Return what a round does, a word of :data:`PHASES`: every round collects."""
        return Collect.name

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send what the round's phase needs; in the last two rounds to all nodes."""
        if server_round == 1:
            self._forget()
        self._checked = {}
        if self.samples_all(server_round):
            nodes = list(grid.get_node_ids())
        else:
            sampled = super().configure_train(server_round, arrays, config, grid)
            nodes = [message.metadata.dst_node_id for message in sampled]
        phase, contents = self._phases[self.phase(server_round)], dict[int, RecordDict]()
        clients = [*map(self._key_of, nodes)]
        for settings, message, group in phase.ask(read(arrays), clients, server_round):
            request = StackRequest(
                phase.name,
                server_round,
                num_folds=self.plan.num_folds,
                min_rows=self.plan.min_rows_per_sum,
                client_folds=self.plan.client_folds,
                **settings,
            )
            sent_config = config.copy()
            sent_config.update(request.to_settings())
            sent = hold(message.to_arrays(), copy=False)
            content = RecordDict({self.arrayrecord_key: sent, self.configrecord_key: sent_config})
            contents |= dict.fromkeys(group, content)
        return [Message(contents[self._key_of(n)], n, MessageType.TRAIN) for n in nodes]

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
        answers: dict[int, tuple[Any, int]] = {}
        contents: dict[int, RecordDict] = {}
        for message in sorted(valid, key=self._key):
            key = self._key(message)
            try:
                answers[key], contents[key] = self._answer(server_round, message), message.content
            # Bytes of anybody's making raise anything: MemoryError, TokenError, BadZipFile.
            except Exception as error:
                text = " ".join(str(error).split())[:300]
                log.warning("round %d: reply of %d dropped: %s", server_round, key, text)
        if not answers:
            raise FederationError(f"round {server_round}: no usable reply")
        phase = self._phases[self.phase(server_round)]
        try:
            self._keep(server_round, phase.take(answers))
        except (DataError, np.linalg.LinAlgError) as error:
            raise FederationError(f"round {server_round}, {phase.name}: {error}") from None
        metrics = self.train_metrics_aggr_fn([*contents.values()], self.weighted_by_key)
        return hold(self._made.arrays), metrics

    def _keep(self, server_round: int, made: Made) -> None:
        number = float(PHASES.index(self.phase(server_round)))
        self._made = replace(made, metrics={"stack/phase": number, **made.metrics})

    def _answer(self, server_round: int, message: Message) -> tuple[Any, int]:
        """Return a reply and its rows, parsed already if somebody checked it before."""
        return self._checked.pop(_id(message), None) or self._parse(server_round, message)

    def _parse(self, server_round: int, message: Message) -> tuple[Any, int]:
        """Return a reply and its rows; raise for one that does not keep the contract."""
        arrays = read(next(iter(message.content.array_records.values())))
        metrics = next(iter(message.content.metric_records.values()))
        rows = int(metrics[self.weighted_by_key])  # type: ignore[arg-type]
        if rows < 1:
            raise DataError(self.weighted_by_key, rows, "at least 1")
        phase = self._phases[self.phase(server_round)]
        reply: Any = phase.reply.from_arrays(arrays)
        phase.check(reply, rows)
        if left := arrays.keys() - reply.to_arrays().keys():
            allowed = f"nothing but the {phase.name} phase's"
            raise DataError("arrays", ", ".join(sorted(left)), allowed)
        return reply, rows

    def _key_of(self, node: int) -> int:
        return self.partitions.get(node, node)

    def _key(self, message: Message) -> int:
        return self._key_of(message.metadata.src_node_id)

    # ------------------------------------------------------------------------- for the house
    def samples_all(self, server_round: int) -> bool:
        """All nodes take part in the sums and in the choice, whatever the fraction."""
        return self.phase(server_round) != Collect.name

    def trains(self, server_round: int) -> bool:
        """Return whether a round's metrics are those of a global member that is trained."""
        return self.plan.global_member == "fedavg" and not self.samples_all(server_round)

    def is_model(self, name: str) -> bool:
        """Return whether an array of a reply is a model's: a client's sums are not recorded."""
        return name.startswith(("global/", "base/"))

    def stay(self, server_round: int, replies: Iterable[Message]) -> None:
        """Take the base models of a round that is thrown away; the global member stays."""
        ordered = sorted(replies, key=self._key)
        self._collect.keep({self._key(m): self._answer(server_round, m) for m in ordered})
        bases = float(len(self._collect.bases))
        self._keep(server_round, Made({}, {"stack/base_models": bases}))

    def state_dict(self) -> dict[str, Any]:
        """Return the members and totals over clients; no client's own sums are kept."""
        return {name: phase.state_dict() for name, phase in self._phases.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in :meth:`state_dict`."""
        for name, phase in self._phases.items():
            phase.load_state_dict(state[name])

    def reply_spec(self, server_round: int, arrays: ArrayRecord) -> ReplySpec:
        """Return what a usable reply of this round looks like."""

        def check(message: Message) -> None:
            self._checked[_id(message)] = self._parse(server_round, message)

        return ReplySpec(None, check=check)

    def round_metrics(self, server_round: int) -> Mapping[str, float]:
        """Return ``stack/…`` of the round."""
        return self._made.metrics

    def round_texts(self, server_round: int) -> Mapping[str, str]:
        """Return the tables of candidates and members, from round T-1 on."""
        return self._made.texts


def _id(message: Message) -> tuple[int, str]:
    return message.metadata.src_node_id, message.metadata.message_id


class FedStacking(NAverage):
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
        global_member: str = "fedavg",
        num_folds: int = 4,
        client_folds: bool = False,
        max_members: int | None = None,
        personal_gate: bool = False,
        num_features: int | None = None,
        **kwargs: Any,
    ) -> None:
        if num_rounds < 3:
            allowed = "strategy=fedstacking needs at least 3 rounds"
            raise ConfigError("num_server_rounds", num_rounds, allowed)
        super().__init__(**kwargs)
        self.num_rounds = num_rounds
        self.plan = replace(
            self.plan,
            global_member=global_member,
            num_folds=num_folds,
            client_folds=client_folds,
            max_members=max_members,
            personal_gate=personal_gate,
            num_features=num_features,
        )
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        stack = SolveStack(self.plan, self._collect)
        self._phases |= {stack.name: stack, Select.name: Select(self.plan, stack)}

    def phase(self, server_round: int) -> str:
        """Return what a round does: a word of :data:`PHASES`."""
        if server_round > self.num_rounds:
            raise FederationError(f"round {server_round}: num_rounds={self.num_rounds} are over")
        return PHASES[max(0, server_round - self.num_rounds + 2)]
