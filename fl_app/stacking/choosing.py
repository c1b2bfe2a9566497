"""The phases that solve a stack from the clients' sums and choose by the clients' counts."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.aggregation import checked
from fl_app.errors import DataError, FederationError
from fl_app.models.base import Arrays
from fl_app.models.estimators import MAX_VALUE
from fl_app.stacking.collecting import Collect
from fl_app.stacking.members import LS, Member, Stack
from fl_app.stacking.messages import SelectMessage, SelectReply, StackMessage, StackReply
from fl_app.stacking.phases import Asked, Made, Plan, check_sums

__all__ = ["FAMILY_NUMBERS", "Select", "SolveStack"]

log = logging.getLogger("fl_app")

FAMILY_NUMBERS: Mapping[str, int] = {
    name: number for number, name in enumerate((*stacking.AVERAGES, *stacking.FAMILIES, "ridge"))
}
"""``stack/family`` of each family of weights."""


@dataclass
class SolveStack:
    """Solve all families; the candidate of least cross-validated error is the model for now."""

    plan: Plan
    collected: Collect
    members: Mapping[int, Member] = field(default_factory=dict)
    stackers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    table: Sequence[stacking.Candidate] = ()
    pooled: stacking.Pooled | None = None
    name: ClassVar[str] = "stack"
    reply: ClassVar[type[StackReply]] = StackReply

    @property
    def layout(self) -> stacking.Layout:
        """What the columns of the meta-features are."""
        return self.plan.layout(len(self.members))

    def ask(self, sent: Arrays, clients: Sequence[int], server_round: int) -> Asked:
        """Send all models, and say how many sums can be solved for their rows."""
        self.fix_members(server_round)
        self._warn_of_open_sums(clients)
        yield {}, StackMessage(**self.models(self.plan.global_member == "fedavg")), clients

    def fix_members(self, server_round: int) -> None:
        """Choose the members, once: they stay when sums are out."""
        known = self.collected
        if not known.bases:
            raise FederationError(f"round {server_round}: no client has sent a base model")
        if self.plan.global_member == LS and known.global_member is None:
            raise FederationError(
                f"round {server_round}: no client had enough rows for strategy.global_member="
                f"{LS}; fedavg and none need fewer"
            )
        self.members = self.members or known.members()

    def models(self, with_global: bool) -> dict[str, Any]:
        """Return the parameters of :class:`StackMessage`."""
        known, plan = self.collected, self.plan
        return {
            "bounds": plan.bounds,
            "members": self.members,
            "folds": known.folds,
            "weights": known.average(self.members) if plan.global_member == "none" else None,
            "global_member": known.global_member if with_global else None,
        }

    def check(self, reply: StackReply, rows: int) -> None:
        """Check the sums."""
        check_sums(self.plan, reply.sums, self.layout.width, rows, bounded=True)

    def take(self, answers: Mapping[int, tuple[StackReply, int]]) -> Made:
        """Solve all families from the sums."""
        parts = {key: reply.sums for key, (reply, _) in answers.items()}
        self.stackers = {key: tuple(part.fold.tolist()) for key, part in parts.items()}
        self.pooled = pooled = stacking.pool(parts, self.plan.num_folds)
        self._solve(pooled)
        metrics = {"stack/members": float(len(self.members)), "stack/rows": pooled.num_examples}
        if self.plan.num_features is not None:
            sizes = np.concatenate([part.gram[:, -1] for part in parts.values()])
            metrics["stack/open_sums"] = float(sum(self._is_open(int(size)) for size in sizes))
        return self.made(self.provisional, None, metrics)

    def _solve(self, pooled: stacking.Pooled) -> None:
        known = self.collected.rows_of(self.members)
        self.table = stacking.candidates(self.layout, pooled, *known)

    def state_dict(self) -> dict[str, Any]:
        """Return the total over clients, and who is in it with rows of which folds."""
        pooled = None if self.pooled is None else vars(self.pooled)
        return {"pooled": pooled, "stackers": self.stackers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in :meth:`state_dict`, after that of the phase before."""
        self.stackers = state["stackers"]
        if state["pooled"] is not None:
            self.members = self.collected.members()
            self.pooled = stacking.Pooled(**state["pooled"])
            self._solve(self.pooled)

    @property
    def provisional(self) -> int:
        """The candidate that is the model until the clients have counted."""
        return self.table.index(stacking.provisional(self.table))

    def made(
        self, number: int, counts: NDArray[np.float64] | None, metrics: Mapping[str, float]
    ) -> Made:
        """Make a candidate the model, and write down why."""
        chosen, known = self.table[number], self.collected
        losses: dict[str, float] = {}
        for candidate in self.table:
            if np.isfinite(candidate.loss):
                name = f"stack/loss_{candidate.family}"
                losses[name] = min(candidate.loss, losses.get(name, np.inf))
        family = float(FAMILY_NUMBERS[chosen.family])
        choice = {"stack/family": family, "stack/lambda": chosen.penalty}
        stack = Stack(self.members, known.global_member, chosen.weights, *self.plan.bounds)
        texts = {
            "stack/candidates.json": self._candidates_table(number, counts),
            "stack/members.json": self._members_table(chosen.weights),
        }
        return Made(stack.to_arrays(), {**metrics, **losses, **choice}, texts)

    def _candidates_table(self, chosen: int, counts: NDArray[np.float64] | None) -> str:
        """Return all candidates, with the clients' counts (A, 3) if they came."""
        rows = []
        for number, candidate in enumerate(self.table):
            row: dict[str, Any] = {
                "candidate": candidate.name,
                "family": candidate.family,
                "lambda": candidate.penalty,
                "cv_loss": candidate.loss,
            }
            if counts is not None:
                examples, right, loss = counts[number].tolist()
                row |= {"rows": int(examples), "right": int(right), "loss": loss / examples}
            rows.append(row | {"chosen": number == chosen})
        return _table(rows)

    def _members_table(self, weights: NDArray[Any]) -> str:
        """Return the members and the global one by falling influence."""
        known, share = self.collected, stacking.influence(self.layout, weights).tolist()
        rows: list[dict[str, Any]] = [
            {"member": f"{key:03d}", "kind": member.kind, "num_examples": known.rows[key]}
            for key, member in self.members.items()
        ]
        if known.global_member is not None:
            rows.append({"member": "global", "kind": known.global_member.kind})
        rows = [row | {"influence": influence} for row, influence in zip(rows, share, strict=True)]
        return _table(sorted(rows, key=lambda row: -row["influence"]))

    def _warn_of_open_sums(self, clients: Sequence[int]) -> None:
        """Say before the sums are made how many of them can be solved for their rows."""
        rows, plan = self.collected.rows, self.plan
        known = [rows[key] for key in clients if key in rows]
        floor, folds = plan.min_rows_per_sum, 1 if plan.client_folds else plan.num_folds
        # Rows spread evenly over the folds, unless classes are too small for that.
        sizes = [max(floor, rows // folds) for rows in known if rows >= floor]
        open_sizes = sorted(size for size in sizes if self._is_open(size))
        if open_sizes:
            log.warning(
                "strategy=fedstacking: whoever knows the members may solve the sums of %d of %d "
                "clients heard so far for their rows: r = %d to %d rows of p = %d features in a "
                "sum, which is up to 2 E equations, E = %d (docs/stacking.md, What it reveals)",
                len(open_sizes),
                len(sizes),
                open_sizes[0],
                open_sizes[-1],
                plan.num_features,
                stacking.equations(self.layout),
            )

    def _is_open(self, num_examples: int) -> bool:
        """Return whether a sum over so many rows can be solved for them; False if unknown."""
        features = self.plan.num_features
        return features is not None and stacking.can_be_solved_for(
            self.layout, num_examples, features
        )


@dataclass
class Select:
    """Choose by the clients' counts."""

    plan: Plan
    stack: SolveStack
    name: ClassVar[str] = "select"
    reply: ClassVar[type[SelectReply]] = SelectReply

    def ask(self, sent: Arrays, clients: Sequence[int], server_round: int) -> Asked:
        """Send all models, and the candidates' weights that are new to the client's rows."""
        self.stack.fix_members(server_round)
        gate, table, number = self.plan.personal_gate, self.stack.table, self.stack.provisional
        models = self.stack.models(gate or self.plan.global_member == "fedavg")
        finals = [c.weights for c in table] if gate else ()
        alike: dict[tuple[int, ...] | None, list[int]] = {}
        for key in clients:
            alike.setdefault(self._new_folds(key), []).append(key)
        for folds, group in alike.items():
            candidates = [
                {0: c.weights} if folds is None else {fold: c.fold_weights[fold] for fold in folds}
                for c in table
            ]
            message = SelectMessage(**models, candidates=candidates, finals=finals)
            yield {"is_new": folds is None, "provisional": number, "gate": gate}, message, group

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it is the last phase."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in :meth:`state_dict`."""

    def _new_folds(self, key: int) -> tuple[int, ...] | None:
        """Return the folds whose weights are new to the client's rows; None: it is in no sum."""
        folds = self.stack.stackers.get(key)
        return folds if self.plan.client_folds or folds is None else (*range(self.plan.num_folds),)

    def check(self, reply: SelectReply, rows: int) -> None:
        """Check the counts."""
        count, gates = len(self.stack.table), reply.gates
        checked("scores", reply.scores, np.float64, (count, 3), MAX_VALUE)
        stacking.check_scores(self.stack.layout, reply.scores, count, rows)
        if (gates is not None) != self.plan.personal_gate:
            allowed = "an array gates" if gates is None else "nothing but the select phase's"
            raise DataError("arrays", ", ".join(reply.to_arrays()), allowed)
        if gates is not None:
            checked("gates", gates, np.float64, (count, 4), MAX_VALUE)
            good = (gates >= 0).all() and (gates[:, 0] <= 1).all()
            if not good or (self.plan.has_classes and (gates[:, 2:] > gates[:, 1:2]).any()):
                raise DataError("gates", gates.ravel()[:8], "shares, rows, and no more rows right")

    def take(self, answers: Mapping[int, tuple[SelectReply, int]]) -> Made:
        """Take the candidate that is right most often."""
        counts = stacking.pool_scores({key: reply.scores for key, (reply, _) in answers.items()})
        chosen = stacking.choose(self.stack.layout, self.stack.table, counts)
        number = self.stack.table.index(chosen)
        gates = [reply.gates[number] for reply, _ in answers.values() if reply.gates is not None]
        metrics = self._gate_metrics(np.stack(gates)) if gates else {}
        return self.stack.made(number, counts, {"stack/rows": float(counts[0, 0]), **metrics})

    def _gate_metrics(self, gates: NDArray[Any]) -> dict[str, float]:
        """Compare the stack without and with the gate on all validation rows, (K, 4)."""
        rows = gates[:, 1].sum()
        name = "accuracy" if self.plan.has_classes else "mse"
        metrics = {"stack/gate_open": float((gates[:, 0] > 0).mean())}
        if rows:
            metrics[f"stack/ungated_{name}"] = float(gates[:, 2].sum() / rows)
            metrics[f"stack/gated_{name}"] = float(gates[:, 3].sum() / rows)
        return metrics


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an MLflow table artifact; NaN becomes null."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    data = [[_cell(row.get(column)) for column in columns] for row in rows]
    return json.dumps({"columns": columns, "data": data}, allow_nan=False)


def _cell(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
