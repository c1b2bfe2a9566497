"""The phase that collects base models, and takes a step of the global member."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.aggregation import weighted_mean
from fl_app.errors import DataError
from fl_app.models.base import Arrays
from fl_app.stacking.members import LS, MODEL, Member, Stack, pack_range
from fl_app.stacking.messages import BaseModel, CollectMessage, CollectReply, Packed
from fl_app.stacking.phases import Made, Plan, check_form, check_like, check_sums

__all__ = ["Collect"]

log = logging.getLogger("fl_app")


@dataclass
class Collect:
    """Average the global member, and keep what is new of base models."""

    plan: Plan
    bases: dict[int, BaseModel] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    linear: dict[int, stacking.Sums] = field(default_factory=dict)
    global_member: Member | None = None
    folds: Sequence[Member] = ()
    sent: Arrays = field(default_factory=dict)
    name: ClassVar[str] = "collect"
    reply: ClassVar[type[Packed]] = CollectReply

    @property
    def _trained(self) -> Arrays:
        """The global member that clients train."""
        return self.sent if self.plan.global_member == "fedavg" else {}

    def begin(self, sent: Arrays, keys: Sequence[int], server_round: int) -> None:
        """Take the global member as it is now."""
        self.sent = sent
        if self.plan.global_member == "fedavg":
            self.global_member = Member(MODEL, sent)

    def group(self, key: int) -> bool:
        """Return whether the client's base model is still wanted."""
        return key not in self.bases

    def ask(self, group: bool) -> tuple[Mapping[str, Any], CollectMessage]:
        """Ask for a step of the global member, and for the base model."""
        message = CollectMessage(self._trained, self.plan.low, self.plan.high)
        return {"send_base": group}, message

    def check(self, reply: CollectReply, rows: int) -> None:
        """Check the global member against what was sent, and the base model."""
        plan = self.plan
        if self._trained:
            check_like("global", reply.trained, self._trained)
        elif reply.trained:
            raise DataError("arrays", "global/…", "nothing but the collect phase's")
        if reply.base is None:
            return
        plan.check_member(reply.base.member)
        counts, linear = reply.base.counts, reply.base.linear
        check_form("counts", counts, np.int64, (1 if plan.low else plan.num_outputs,))
        if (counts < 0).any() or counts.sum() > rows:
            raise DataError("counts", counts, f"at most {rows} rows over all classes")
        if linear is not None:
            if plan.global_member != LS:
                allowed = "no sums for least squares, they were not asked for"
                raise DataError("linear", "sums", allowed)
            width = linear.cross.shape[1] if linear.cross.ndim == 3 else 0
            check_sums(plan, linear, width, rows, bounded=False)

    def keep(self, replies: Mapping[int, CollectReply], rows: Mapping[int, int]) -> None:
        """Keep the base models and numbers of rows that are new."""
        self.rows = {**rows, **self.rows}
        for key, reply in replies.items():
            if reply.base is not None and key not in self.bases:
                self.bases[key] = reply.base
                if reply.base.linear is not None:
                    self.linear[key] = reply.base.linear

    def take(self, replies: Mapping[int, CollectReply], rows: Mapping[int, int]) -> Made:
        """Return the global member, or without one the members' average."""
        self.keep(replies, rows)
        return Made(self._model(replies, rows), {"stack/base_models": float(len(self.bases))})

    def _model(self, replies: Mapping[int, CollectReply], rows: Mapping[int, int]) -> Arrays:
        if self.plan.global_member == "fedavg":
            average = weighted_mean([r.trained for r in replies.values()], [*rows.values()])
            self.global_member = Member(MODEL, average)
            return average
        if self.plan.global_member == LS and self.linear:
            return self._solve_linear()
        if self.plan.global_member == LS or not self.bases:
            # This round's clients had too few rows; another round's may have enough.
            return dict(self.sent)
        members, votes = self.members(), self.plan.combine == "votes"
        low, high = self.plan.low, self.plan.high
        return Stack(members, None, self.average(members), low, high, votes).to_arrays()

    def _solve_linear(self) -> Arrays:
        """Solve least squares from all sums so far, and without each fold."""
        widths = {key: part.cross.shape[1] for key, part in self.linear.items()}
        common, _ = Counter(widths.values()).most_common(1)[0]
        for key in [key for key, width in widths.items() if width != common]:
            log.warning(
                "sums of %d for least squares left out: %d columns, most have %d",
                key,
                widths[key],
                common,
            )
            del self.linear[key]
        solved = stacking.least_squares(stacking.pool(self.linear, self.plan.num_folds))
        *self.folds, self.global_member = (Member(LS, {"weights": own}) for own in solved)
        return self.global_member.to_arrays("global") | pack_range(self.plan.low, self.plan.high)

    def members(self) -> dict[int, Member]:
        """Return the members among the base models that are here."""
        keys = sorted(self.bases)
        most = self.plan.max_members or stacking.max_members(self.plan.num_outputs)
        chosen = stacking.choose_members(*self.told(keys), most)
        return {keys[k]: self.bases[keys[k]].member for k in chosen}

    def told(self, keys: Iterable[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the rows (m,) of clients, and their rows of each class (m, C) or (m, 1)."""
        keys = list(keys)
        rows = np.array([self.rows[key] for key in keys], dtype=np.float64)
        return rows, np.stack([self.bases[key].counts for key in keys])

    def average(self, members: Iterable[int]) -> NDArray[np.float32]:
        """Return the weights of members that are not learnt, (m, C)."""
        rows, counts = self.told(members)
        if self.plan.combine == "classes":
            return stacking.class_shares(rows, counts, self.plan.num_outputs).astype(np.float32)
        shares = np.full(len(rows), 1 / len(rows)) if self.plan.combine == "votes" else None
        shares = rows / rows.sum() if shares is None else shares
        shape = (len(rows), self.plan.num_outputs)
        return np.broadcast_to(shares[:, None], shape).astype(np.float32)
