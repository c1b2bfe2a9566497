"""What a curious server can make of one of FedStacking's sums: the rows behind it.

It breaks no rule: it has sent the members and the global member itself, so that the
meta-features F(x) of any row are a function that it knows, and it is sent G = F'F and Q = F'Y. It
looks for rows x that have these sums. The last row of Q counts the rows of each class, so the
labels are known, up to an order that is no matter. The client's own block, if it is a member, comes
from models that never left it: the attack does without.

L-BFGS from small random rows, drawn to the mean by a weak penalty, comes near; for few unknowns
Levenberg's and Marquardt's method then goes down to what float32 leaves.

References
----------
Liu and Nocedal 1989, "On the limited memory BFGS method", https://doi.org/10.1007/BF01589116.
Moré 1978, "The Levenberg-Marquardt algorithm", https://doi.org/10.1007/BFb0067700.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, linear_sum_assignment, minimize

from fl_app import stacking
from fl_app.seeding import one_thread
from fl_app.stacking.members import Member, unpack, unpack_members
from tests.stacks import Reply

Floats = NDArray[np.float64]

FEW = 300
"""Unknowns up to which the second method is affordable."""
NOISE = 1e-5
"""Squared distance of the sums below which the rows behind them have been found."""


@dataclass(frozen=True)
class Told:
    """One sum, and the models whose outputs are in it: a softmax of ``coef x + intercept`` each.

    Shapes: ``coef`` (B, C, p), ``intercept`` (B, C), ``gram`` (D, D), ``cross`` (D, C).
    """

    coef: Floats
    intercept: Floats
    gram: Floats
    cross: Floats

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Return the class of each row, which the sum tells, in rising order."""
        counts = np.round(self.cross[-1]).astype(np.int64)
        return np.repeat(np.arange(len(counts)), counts)

    @cached_property
    def truth(self) -> Floats:
        return np.asarray(np.eye(self.coef.shape[1])[self.labels])

    @property
    def layout(self) -> stacking.Layout:
        """Return the columns that are attacked: without the client's own block."""
        return stacking.Layout(len(self.coef), self.coef.shape[1], False)

    def blocks(self, x: Floats) -> Floats:
        """Return the roots of all models' probabilities, (r, B, C)."""
        models, outputs, features = self.coef.shape
        scores = (x @ self.coef.reshape(-1, features).T).reshape(-1, models, outputs)
        scores += self.intercept
        scores -= scores.max(axis=2, keepdims=True)
        share = np.exp(scores)
        return np.asarray(np.sqrt(share / share.sum(axis=2, keepdims=True)))

    def rest(self, blocks: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the meta-features, and how far their sums are from those that came."""
        f = np.column_stack([blocks.reshape(len(blocks), -1), np.ones(len(blocks))])
        return f, f.T @ f - self.gram, f.T @ self.truth - self.cross

    def loss(self, flat: Floats, penalty: float) -> tuple[float, Floats]:
        """Return half the squared distance of the sums, with a penalty on rows, and its slope."""
        x = flat.reshape(len(self.labels), -1)
        blocks = self.blocks(x)
        f, gram, cross = self.rest(blocks)
        value = np.square(gram).sum() / 2 + np.square(cross).sum() + penalty * np.square(x).sum()
        slope = 2 * (f @ gram + self.truth @ cross.T)[:, :-1].reshape(blocks.shape)
        along = (slope * blocks).sum(axis=2, keepdims=True)
        slope = (slope - along * blocks) * blocks / 2  # of the root of a softmax
        slope = slope.reshape(len(x), -1) @ self.coef.reshape(-1, x.shape[1])
        return float(value), (slope + 2 * penalty * x).ravel()

    def distance(self, flat: Floats) -> Floats:
        """Return how far each of the numbers that came is from that of some rows."""
        _, gram, cross = self.rest(self.blocks(flat.reshape(len(self.labels), -1)))
        return np.concatenate([gram[np.triu_indices(len(gram))], cross.ravel()])

    def slopes(self, flat: Floats) -> Floats:
        """Return the derivatives of :meth:`distance`, one column an unknown."""
        x = flat.reshape(len(self.labels), -1)
        blocks = self.blocks(x)
        f = self.rest(blocks)[0]
        mean = np.einsum("rbc,bcp->rbp", np.square(blocks), self.coef)
        moved = blocks[..., None] * (self.coef - mean[:, :, None]) / 2
        moved = moved.reshape(len(x), -1, x.shape[1])
        moved = np.concatenate([moved, np.zeros((len(x), 1, x.shape[1]))], axis=1)
        i, j = np.triu_indices(f.shape[1])
        gram = moved[:, i] * f[:, j, None] + moved[:, j] * f[:, i, None]
        cross = moved[:, :, None] * self.truth[:, None, :, None]
        both = np.concatenate([gram, cross.reshape(len(x), -1, x.shape[1])], axis=1)
        return both.transpose(1, 0, 2).reshape(both.shape[1], -1)

    def solve(self, starts: int = 5, steps: int = 3000) -> Floats:
        """Return the rows (r, p) of the nearest sums that were found."""
        size, best, least = len(self.labels) * self.coef.shape[2], None, np.inf
        for start in range(starts):
            with one_thread():
                flat = self._descend(0.1 * np.random.default_rng(start).normal(size=size), steps)
            value, _ = self.loss(flat, 0.0)
            if value < least:
                best, least = flat, value
            if least < NOISE:
                break
        assert best is not None
        return best.reshape(len(self.labels), -1)

    def _descend(self, flat: Floats, steps: int) -> Floats:
        """Go down from one start."""
        options = {"maxiter": steps, "maxfun": 10 * steps, "maxcor": 30, "ftol": 0, "gtol": 1e-12}
        run: Any = {"jac": True, "method": "L-BFGS-B", "options": options}
        flat = minimize(self.loss, flat, args=(1e-6,), **run).x
        if flat.size <= FEW:
            close = dict.fromkeys(("xtol", "ftol", "gtol"), 1e-15)
            flat = least_squares(self.distance, flat, self.slopes, max_nfev=50, **close).x
        return np.asarray(flat)


def told(reply: Reply, outputs: int) -> list[Told]:
    """Return the sums of a client's reply, with all that the server itself has sent for them."""
    part = stacking.Sums.from_arrays(unpack("sums", reply.arrays))
    members = unpack_members(reply.sent)
    others = [scores(member, outputs) for k, member in members.items() if k != reply.partition]
    found = []
    for number, fold in enumerate(part.fold.tolist()):
        prefix = "global" if "global/model/coef" in reply.sent else f"fold_{fold}"
        whole = Member.from_arrays(prefix, reply.sent)
        models = others + ([scores(whole, outputs)] if whole else [])
        coef, intercept = (np.stack(arrays) for arrays in zip(*models, strict=True))
        width = part.cross.shape[1]
        gram = np.zeros((width, width))
        gram[np.triu_indices(width)] = part.gram[number]
        gram = np.maximum(gram, gram.T)  # products of roots are not negative
        known = [k != reply.partition for k in members] + [True] * (whole is not None)
        kept = np.append(np.repeat(known, outputs), True)
        cross = part.cross[number].astype(np.float64)
        found.append(Told(coef, intercept, gram[np.ix_(kept, kept)], cross[kept]))
    return found


def scores(member: Member, outputs: int) -> tuple[Floats, Floats]:
    """Return a softmax's or a logistic regression's ``coef`` and ``intercept`` of all classes."""
    coef, intercept = (member.arrays[name].astype(np.float64) for name in ("coef", "intercept"))
    if "present" not in member.arrays:
        return coef, intercept
    seen = np.flatnonzero(member.arrays["present"])
    all_coef, all_intercept = np.zeros((outputs, coef.shape[1])), np.full(outputs, -np.inf)
    all_intercept[seen] = 0.0
    # Of two classes there are the log odds of the second, of one there is nothing.
    told = seen[len(seen) - len(coef) :]
    all_coef[told], all_intercept[told] = coef, intercept
    return all_coef, all_intercept


def pair(found: Floats, labels: NDArray[Any], x: Floats, y: NDArray[Any]) -> NDArray[np.int64]:
    """Return, for each row that was found, the nearest row of its class; each only once."""
    apart = np.square(found[:, None] - x[None]).mean(axis=2) + 1e6 * (labels[:, None] != y[None])
    return np.asarray(linear_sum_assignment(apart)[1])
