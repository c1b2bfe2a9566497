"""The phase that collects base models, and takes a step of the global member."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.aggregation import checked, weighted_mean
from fl_app.errors import DataError
from fl_app.models.base import Arrays
from fl_app.stacking.members import LS, MODEL, Member, Stack, check_like, pack_range
from fl_app.stacking.messages import BaseModel, CollectMessage, CollectReply
from fl_app.stacking.phases import Asked, Made, Plan, check_sums

__all__ = ["Collect"]

log = logging.getLogger("fl_app")


@dataclass
class Collect:
    """Average the global member, and keep what is new of base models."""

    plan: Plan
    bases: dict[int, BaseModel] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    widths: dict[int, int] = field(default_factory=dict)
    totals: dict[int, stacking.Pooled] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)
    global_member: Member | None = None
    folds: Sequence[Member] = ()
    sent: Arrays = field(default_factory=dict)
    name: ClassVar[str] = "collect"
    reply: ClassVar[type[CollectReply]] = CollectReply

    @property
    def _trained(self) -> Arrays:
        """The global member that clients train."""
        return self.sent if self.plan.global_member == "fedavg" else {}

    def ask(self, sent: Arrays, clients: Sequence[int], server_round: int) -> Asked:
        """Ask for a step of the global member, and for base models that are still wanted."""
        self.sent = sent
        if self.plan.global_member == "fedavg":
            self.global_member = Member(MODEL, sent)
        message = CollectMessage(self.plan.bounds, self._trained)
        yield {"send_base": True}, message, [key for key in clients if key not in self.bases]
        yield {"send_base": False}, message, [key for key in clients if key in self.bases]

    def check(self, reply: CollectReply, rows: int) -> None:
        """Check the global member against what was sent, and the base model."""
        plan, base = self.plan, reply.base
        if self._trained:
            check_like("global", reply.trained, self._trained)
        elif reply.trained:
            raise DataError("arrays", "global/…", "nothing but the collect phase's")
        if base is None:
            return
        plan.check_member(base.member)
        checked("counts", base.counts, np.int64, (plan.num_outputs if plan.has_classes else 1,))
        if (base.counts < 0).any() or base.counts.sum() > rows:
            raise DataError("counts", base.counts, f"at most {rows} rows over all classes")
        if base.linear is not None:
            if plan.global_member != LS:
                raise DataError("linear", "sums", f"none where global_member is not {LS}")
            shape = base.linear.cross.shape
            width = shape[1] if len(shape) == 3 else 0
            check_sums(plan, base.linear, width, rows, bounded=False)

    def keep(self, answers: Mapping[int, tuple[CollectReply, int]]) -> None:
        """Keep the base models and numbers of rows that are new."""
        for key, (reply, rows) in answers.items():
            self.rows.setdefault(key, rows)
            if reply.base is not None and key not in self.bases:
                self.bases[key] = replace(reply.base, linear=None)
                if reply.base.linear is not None:
                    self._add(key, reply.base.linear)

    def _add(self, key: int, part: stacking.Sums) -> None:
        """Add a client's sums for least squares to the total of those with as many columns."""
        if part.num_examples:
            self.widths[key] = width = part.cross.shape[1]
            total = stacking.pool({key: part}, self.plan.num_folds)
            self.totals[width] = self.totals[width] + total if width in self.totals else total

    def take(self, answers: Mapping[int, tuple[CollectReply, int]]) -> Made:
        """Return the global member, or without one the members' average."""
        self.keep(answers)
        return Made(self._model(answers), {"stack/base_models": float(len(self.bases))})

    def _model(self, answers: Mapping[int, tuple[CollectReply, int]]) -> Arrays:
        plan = self.plan
        if plan.global_member == "fedavg":
            replies, rows = zip(*answers.values(), strict=True)
            average = weighted_mean([reply.trained for reply in replies], rows)
            self.global_member = Member(MODEL, average)
            return average
        if not (self.totals if plan.global_member == LS else self.bases):
            # This round's clients had too few rows; another round's may have enough.
            return dict(self.sent)
        if plan.global_member == LS:
            return self._solve_linear()
        members, votes = self.members(), plan.combine == "votes"
        return Stack(members, None, self.average(members), *plan.bounds, votes=votes).to_arrays()

    def _solve_linear(self) -> Arrays:
        """Solve least squares from all sums so far, and without each fold."""
        common, _ = Counter(self.widths.values()).most_common(1)[0]
        for key, width in self.widths.items():
            if width != common and key not in self.told:
                text = "sums of %d for least squares left out: %d columns, most have %d"
                log.warning(text, key, width, common)
                self.told.add(key)
        solved = stacking.least_squares(self.totals[common])
        *self.folds, self.global_member = (Member(LS, {"weights": weights}) for weights in solved)
        return self.global_member.to_arrays("global") | pack_range(*self.plan.bounds)

    def state_dict(self) -> dict[str, Any]:
        """Return the base models, their rows, the global member, and totals over clients."""
        model, bases = self.global_member, self.bases.items()
        return {
            "bases": {k: (b.member.kind, b.member.arrays, b.counts) for k, b in bases},
            "rows": self.rows,
            "widths": self.widths,
            "totals": {width: vars(total) for width, total in self.totals.items()},
            "global_member": None if model is None else (model.kind, model.arrays),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in :meth:`state_dict`."""
        bases, model = state["bases"].items(), state["global_member"]
        self.bases = {k: BaseModel(Member(kind, a), counts) for k, (kind, a, counts) in bases}
        self.rows, self.widths = state["rows"], state["widths"]
        totals = state["totals"].items()
        self.totals = {width: stacking.Pooled(**total) for width, total in totals}
        self.global_member = None if model is None else Member(*model)
        if self.totals and self.plan.global_member == LS:
            self._solve_linear()

    def members(self) -> dict[int, Member]:
        """Return the members among the base models that are here."""
        clients = sorted(self.bases)
        most = self.plan.max_members or stacking.max_members(self.plan.num_outputs)
        chosen = stacking.choose_members(*self.rows_of(clients), most)
        return {clients[k]: self.bases[clients[k]].member for k in chosen}

    def rows_of(self, clients: Iterable[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the rows (m,) of clients, and their rows of each class (m, C) or (m, 1)."""
        clients = list(clients)
        rows = np.array([self.rows[key] for key in clients], dtype=np.float64)
        return rows, np.stack([self.bases[key].counts for key in clients])

    def average(self, members: Iterable[int]) -> NDArray[np.float32]:
        """Return the weights of members that are not learnt, (m, C)."""
        rows, counts = self.rows_of(members)
        if self.plan.combine == "classes":
            return stacking.class_shares(rows, counts, self.plan.num_outputs).astype(np.float32)
        if self.plan.combine == "votes":
            rows = np.ones(len(rows))
        return np.tile(rows[:, None] / rows.sum(), self.plan.num_outputs).astype(np.float32)
