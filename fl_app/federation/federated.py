"""Wraps a strategy: seeded cohorts before it, checked and sorted replies after it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fl_app.errors import FederationError
from fl_app.federation import protocol
from fl_app.federation.averaging import (
    average_evaluate,
    average_metrics,
    average_train,
    messages_to,
)
from fl_app.federation.ending import Ending
from fl_app.federation.measures import Exchange, Measures
from fl_app.federation.replies import ReplySpec, accept, overflowed, spec_of
from fl_app.federation.roster import Node, Roster
from fl_app.federation.sampling import choose_cohort
from fl_app.federation.stepping import Stepping
from fl_app.grid.arrays import hold, items_of, read
from fl_app.grid.messages import metric_record, records_of, sender
from fl_app.grid.private_copies import quick_message
from fl_app.grid.view import GridView

__all__ = ["Federated", "Participation", "ReplyContract"]

log = logging.getLogger("fl_app")


@dataclass(frozen=True)
class Participation:
    """Who takes part.

    Parameters
    ----------
    seed : int
        The run's seed.
    fraction_train, fraction_evaluate : float
        Shares of the roster in a round's training and evaluation; 0 for no evaluation.
    min_replies : int
        Usable replies below which a training round fails.
    """

    seed: int
    fraction_train: float = 1.0
    fraction_evaluate: float = 1.0
    min_replies: int = 1


@runtime_checkable
class ReplyContract(Protocol):
    """A strategy that says itself what a training reply of a round must look like, and who replies.

    A strategy without these methods gets the default: arrays like those it sent out. Where a spec
    names no metrics, they are those of every training reply.
    """

    def reply_spec(self, server_round: int, arrays: ArrayRecord) -> ReplySpec:
        """Return what a usable training reply of this round looks like."""
        ...

    def samples_all(self, server_round: int) -> bool:
        """Return whether all nodes train in this round, whatever ``fraction_train`` is."""
        ...


class Federated(Strategy):
    """A strategy that sees only its cohort and only usable replies, in order of partition.

    Parameters
    ----------
    strategy : Strategy
        Any of Flower's strategies or one of ours. It takes all nodes that it is shown
        (``fraction_train=1``, ``min_*_nodes=1``).
    roster : Roster
        The nodes of the run.
    participation : Participation
        Who takes part.
    train_metrics, evaluate_metrics : frozenset of str, optional
        The metrics that replies must hold; None for any.
    measures : Measures, optional
        What replies hold beside them, which decides the federation's ratios in place of the
        strategy's mean of the clients' ratios; None for nothing.
    ending : Ending, optional
        Watches the training loss, which it names; by default arrays alone are watched.
    stepping : Stepping, optional
        Decides on the clients' step, and on rounds to be thrown away; None where the config does.

    Attributes
    ----------
    accepted : frozenset of int
        Node ids whose replies were used in the last exchange.
    dropped : dict of int to str
        The reason for each partition that was asked and whose reply was not used, or did not come.
    """

    def __init__(
        self,
        strategy: Strategy,
        roster: Roster,
        participation: Participation,
        train_metrics: frozenset[str] | None = None,
        evaluate_metrics: frozenset[str] | None = None,
        measures: Measures | None = None,
        ending: Ending | None = None,
        stepping: Stepping | None = None,
    ) -> None:
        self.ending, self.stepping = ending or Ending(), stepping
        self.strategy, self.roster, self.participation = strategy, roster, participation
        self.accepted: frozenset[int] = frozenset()
        self.dropped: dict[int, str] = {}
        self._contract = strategy if isinstance(strategy, ReplyContract) else None
        # Flower's QFedAvg names a further metric that it weighs clients by.
        loss_key = getattr(strategy, "train_loss_key", None)
        if train_metrics is not None and loss_key is not None:
            train_metrics = train_metrics | {loss_key}
        self._metrics = {"train": train_metrics, "evaluate": evaluate_metrics}
        self._measures = measures
        self._warned: set[Exchange] = set()
        self._asked: dict[int, Node] = {}
        self._sent: list[Message] = []
        self._spec = ReplySpec(None)
        self._start = ArrayRecord()

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Show the strategy its cohort and let it make the messages."""
        contract = self._contract
        fraction = self.participation.fraction_train
        if contract is not None and contract.samples_all(server_round):
            fraction = 1.0
        cohort = choose_cohort(
            self._present(grid),
            fraction,
            self.participation.min_replies,
            self.participation.seed,
            "train",
            server_round,
        )
        if len(cohort) < self.participation.min_replies:
            raise FederationError(
                f"round {server_round}: {len(cohort)} nodes are there, "
                f"min_replies={self.participation.min_replies}"
            )
        if contract is not None:
            spec = contract.reply_spec(server_round, arrays)
        else:
            spec = ReplySpec(spec_of(arrays))
        self._spec = self._completed(spec, "train")
        config, self._start = config.copy(), arrays
        if self.stepping is not None:
            config[protocol.LEARNING_RATE] = step = self.stepping.step
            if hasattr(self.strategy, "client_learning_rate"):  # Flower's QFedAvg
                self.strategy.client_learning_rate = step
        return self._messages("train", server_round, arrays, config, grid, cohort)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Hand over the usable replies; where the round is thrown away, return what was sent.

        Raises
        ------
        FederationError
            If there are fewer than ``min_replies``, or training diverged.
        """
        where, replies = f"round {server_round}, train", list(replies)
        rows = {n.partition: (n.num_examples, n.left_out) for n in self._asked.values()}
        usable, dropped = accept(replies, self._asked, self._spec, where, self._sent, rows)
        self.accepted, self.dropped = frozenset(m.metadata.src_node_id for m in usable), dropped
        lost = self._overflowed(replies) & dropped.keys() if dropped else set()
        if len(usable) + len(lost) < self.participation.min_replies:
            raise FederationError(self._shortfall(server_round, len(usable), dropped))
        judged = self._is_judged(server_round)
        if judged and not self._counts(server_round, usable, lost):
            return self._stay(server_round, usable)
        if len(usable) < self.participation.min_replies:
            error = self.ending.diverged if 2 * len(lost) >= len(self._asked) else FederationError
            raise error(self._shortfall(server_round, len(usable), dropped))
        averaged = average_train(self.strategy, usable)
        arrays, metrics = averaged or self.strategy.aggregate_train(
            server_round, [quick_message(reply) for reply in usable]
        )
        if judged and metrics is not None:
            self.ending.watch(server_round, items_of(metrics).get(self.ending.loss))
        metrics = self._with_ratios("train", usable, metrics)
        return (None if arrays is None else self._checked(server_round, arrays)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Show the strategy the nodes that have validation rows, or a share of them."""
        self._asked, self._sent = {}, []
        candidates = [n for n in self._present(grid) if n.num_validation > 0]
        if self.participation.fraction_evaluate == 0 or not candidates:
            return []
        cohort = choose_cohort(
            candidates,
            self.participation.fraction_evaluate,
            1,
            self.participation.seed,
            "evaluate",
            server_round,
        )
        self._spec = self._completed(ReplySpec(None), "evaluate")
        return self._messages("evaluate", server_round, arrays, config.copy(), grid, cohort)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Hand over the usable replies; a round without any has no ``eval/`` metrics."""
        where = f"round {server_round}, evaluate"
        rows = {
            n.partition: (n.num_validation, n.left_out_validation) for n in self._asked.values()
        }
        usable, self.dropped = accept(replies, self._asked, self._spec, where, self._sent, rows)
        self.accepted = frozenset(m.metadata.src_node_id for m in usable)
        if not usable:
            return None
        averaged = average_evaluate(self.strategy, usable)
        metrics = averaged or self.strategy.aggregate_evaluate(
            server_round, [quick_message(reply) for reply in usable]
        )
        return self._with_ratios("evaluate", usable, metrics)

    def round_metrics(self, server_round: int) -> Mapping[str, float]:
        """Return the round's step and the loss of the last round that counted."""
        stepping = self.stepping
        if stepping is None:
            return {}
        metrics = {
            "model/learning_rate": stepping.used,
            "model/last_loss": stepping.last_loss,
            "model/went_back": float(stepping.went_back),
        }
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round's step and the run's end are made of."""
        stepping = None if self.stepping is None else self.stepping.state_dict()
        return {"stepping": stepping, "last_loss": self.ending.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in :meth:`state_dict`."""
        if self.stepping is not None:
            self.stepping.load_state_dict(state["stepping"])
        self.ending.last = state["last_loss"]

    def _is_judged(self, server_round: int) -> bool:
        """Return whether the round's metrics are those of the model that is trained."""
        trains = getattr(self.strategy, "trains", None)
        return trains is None or bool(trains(server_round))

    def _overflowed(self, replies: Iterable[Message]) -> set[int]:
        """Return the partitions whose replies are not finite."""
        sent = [m.metadata for m in self._sent]
        nodes = (self._asked.get(sender(m, sent)) for m in replies if overflowed(m))
        return {node.partition for node in nodes if node is not None}

    def _counts(self, server_round: int, usable: Iterable[Message], lost: Iterable[int]) -> bool:
        """Ask the step whether the round counts."""
        if self.stepping is None or not self.stepping.adapts:
            return True
        losses = dict.fromkeys(lost, (1.0, math.inf))
        for reply in usable:
            metrics = items_of(records_of(reply)[protocol.METRICS])
            node = self._asked[reply.metadata.src_node_id]
            losses[node.partition] = metrics[protocol.NUM_EXAMPLES], metrics[self.ending.loss]
        try:
            return self.stepping.counts(losses)
        except OverflowError as error:
            raise self.ending.diverged(f"round {server_round}: {error}") from None

    def _stay(
        self, server_round: int, usable: list[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Return what was sent; the strategy, whose state stays too, sees no model."""
        keep = getattr(self.strategy, "stay", None)
        if keep is not None and usable:
            keep(server_round, usable)
        metrics = average_metrics(usable) if usable else None
        loss = math.inf if metrics is None else items_of(metrics).get(self.ending.loss, math.inf)
        self.ending.stay(float(loss))
        return self._start, self._with_ratios("train", usable, metrics)

    def _completed(self, spec: ReplySpec, exchange: Exchange) -> ReplySpec:
        """Add what every reply of an exchange must hold to what the strategy asks for."""
        measures = self._measures
        check = None if measures is None else partial(measures.fault, exchange)
        names = self._metrics[exchange] if spec.metrics is None else spec.metrics
        return replace(spec, metrics=names, check_measures=check)

    def _with_ratios(
        self, exchange: Exchange, replies: Sequence[Message], metrics: MetricRecord | None
    ) -> MetricRecord | None:
        """Put the ratios over all rows in the place of the strategy's means of ratios."""
        measures = self._measures
        if measures is None or metrics is None or measures.fewest(exchange) is None:
            return metrics
        self._warn_of_left_out(exchange, measures)
        means = {k: v for k, v in items_of(metrics).items() if k not in measures.names}
        return metric_record(means | measures.merge(exchange, replies))

    def _warn_of_left_out(self, exchange: Exchange, measures: Measures) -> None:
        """Say once a run which clients the ratios of an exchange are not about."""
        fewest = measures.fewest(exchange) or 0
        if exchange in self._warned:
            return
        self._warned.add(exchange)
        train = exchange == "train"
        rows = [n.num_examples if train else n.num_validation for n in self.roster]
        few = [n for n in rows if 0 < n < fewest]
        if few:
            where = "train" if train else "eval"
            log.warning(
                "%s: without %d of %d clients, which have fewer than %d rows (%d of %d rows)",
                " and ".join(f"{where}/{name}" for name in measures.names),
                len(few),
                len(rows),
                fewest,
                sum(few),
                sum(rows),
            )

    def _checked(self, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        """Refuse what no client could train on, and bring arrays back to the dtype that was sent.

        Flower's FedOpt makes float64 of float32, and infinity of a large step.
        """
        wanted = {name: dtype for name, (_, dtype) in (self._spec.arrays or {}).items()}
        typed = {}
        for name, values in read(arrays).items():
            with np.errstate(over="ignore"):
                typed[name] = values.astype(wanted.get(name, values.dtype), copy=False)
            if values.dtype.kind == "f" and not np.isfinite(typed[name]).all():
                raise self.ending.diverged(
                    f"round {server_round}: the aggregate of array {name} holds NaN or infinity"
                )
        return hold(typed, copy=False)

    def _present(self, grid: Grid) -> list[Node]:
        online = set(grid.get_node_ids())
        return [node for node in self.roster if node.node_id in online]

    def _messages(
        self,
        what: Exchange,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        cohort: list[Node],
    ) -> list[Message]:
        """Let the strategy make the messages of an exchange; note them in order of partition."""
        members = {node.node_id: node for node in cohort}
        messages: Iterable[Message] | None = messages_to(
            self.strategy, what, server_round, arrays, config, list(members)
        )
        if messages is None:
            configure = getattr(self.strategy, f"configure_{what}")
            messages = configure(server_round, arrays, config, GridView(grid, list(members)))
        asked = [(members[m.metadata.dst_node_id], m) for m in messages]
        asked.sort(key=lambda pair: pair[0].partition)
        self._asked = {node.node_id: node for node, _ in asked}
        self._sent = [message for _, message in asked]
        return self._sent

    def _shortfall(self, server_round: int, usable: int, dropped: Mapping[int, str]) -> str:
        reasons = "; ".join(f"partition {p}: {why}" for p, why in sorted(dropped.items())[:3])
        return (
            f"round {server_round}: {usable} usable replies of {len(self._asked)} asked, "
            f"min_replies={self.participation.min_replies}. {reasons}"
        )
