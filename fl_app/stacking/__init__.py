"""Stacked generalization of a federation's models, from sums over rows alone; pure NumPy.

Clients hold rows, the server holds none. Each client writes down what the chosen members' models
and one global model say about its rows (meta-features F) beside the truth Y, and sends the sums
F'F and F'Y by fold. From these sums the server solves every way of combining the models, prices
each by cross-validation, and lets the clients count what the candidates get right on rows that
they are new to. Every function is pure: rows or sums in, numbers out. A federation calls them so:

=======  =======================================================================================
who      what
=======  =======================================================================================
client   :func:`row_folds`; fits its base model and one without each fold
server   :func:`choose_members`, :class:`Layout`
client   :func:`out_of_fold`, :func:`features`, :func:`targets`, :func:`sum_folds`, :func:`sums`
server   :func:`check_sums`, :func:`pool`, :func:`candidates`, :func:`provisional`
client   :func:`scores`
server   :func:`check_scores`, :func:`pool_scores`, :func:`choose`
anybody  :func:`predict`; a client, if it likes, :func:`gate`
=======  =======================================================================================

Only a client's *own* block is out-of-fold, and that of a global member solved by least squares:
every other member is new to its rows anyway, and a global member trained by averaging is taken as
it is, for copies of it, each without a fold, would cost more than they gain (docs/stacking.md). A
meta-feature is the square root of a probability. A model then writes a unit vector (the inner
product of two is their Bhattacharyya coefficient), and a linear map sees how sure it is, which
plain probabilities hide by always summing to 1.

**Sums are no hiding place.** Whoever knows the members can solve a client's sums for its rows:
:func:`equations` counts where that is possible, and a test does it.

References
----------
Wolpert 1992, "Stacked generalization", https://doi.org/10.1016/S0893-6080(05)80023-1.
Breiman 1996, "Stacked regressions" (non-negative weights), https://doi.org/10.1007/BF00117832.
Allouah et al. 2024, "Revisiting Ensembling in One-Shot Federated Learning" (FENS: federated
training of the combiner), https://arxiv.org/abs/2411.07182.
Guha, Talwalkar and Smith 2019, "One-Shot Federated Learning" (choosing members),
https://arxiv.org/abs/1902.11175.
Lawson and Hanson 1974, "Solving Least Squares Problems" (non-negative least squares).
Duchi et al. 2008, "Efficient Projections onto the l1-Ball", https://doi.org/10.1145/1390156.1390191.
"""

from typing import TYPE_CHECKING

from fl_app.lazy import exporter

if TYPE_CHECKING:
    from fl_app.stacking.choice import (
        GATES,
        by_fold,
        check_scores,
        choose,
        choose_members,
        gate,
        max_members,
        pool_scores,
        scores,
    )
    from fl_app.stacking.combining import DOUBT, combine, influence, predict
    from fl_app.stacking.families import (
        AVERAGES,
        FAMILIES,
        INTERCEPT,
        PENALTIES,
        Candidate,
        candidates,
        class_shares,
        provisional,
    )
    from fl_app.stacking.folds import SumFolds, out_of_fold, row_folds, sum_folds
    from fl_app.stacking.layout import Layout, bounds, features, targets
    from fl_app.stacking.linear_member import least_squares, linear_sums, predict_linear
    from fl_app.stacking.members import Member, Stack, unpack, unpack_members
    from fl_app.stacking.pooled_sums import (
        Pooled,
        Sums,
        can_be_solved_for,
        check_sums,
        equations,
        pool,
        sums,
    )
    from fl_app.stacking.strategy import FedStacking, NAverage

__all__ = [
    "AVERAGES",
    "DOUBT",
    "FAMILIES",
    "GATES",
    "INTERCEPT",
    "PENALTIES",
    "Candidate",
    "FedStacking",
    "Layout",
    "Member",
    "NAverage",
    "Pooled",
    "Stack",
    "SumFolds",
    "Sums",
    "bounds",
    "by_fold",
    "can_be_solved_for",
    "candidates",
    "check_scores",
    "check_sums",
    "choose",
    "choose_members",
    "class_shares",
    "combine",
    "equations",
    "features",
    "gate",
    "influence",
    "least_squares",
    "linear_sums",
    "max_members",
    "out_of_fold",
    "pool",
    "pool_scores",
    "predict",
    "predict_linear",
    "provisional",
    "row_folds",
    "scores",
    "sum_folds",
    "sums",
    "targets",
    "unpack",
    "unpack_members",
]

_HOMES = {
    "choice": [
        "GATES",
        "by_fold",
        "check_scores",
        "choose",
        "choose_members",
        "gate",
        "max_members",
        "pool_scores",
        "scores",
    ],
    "combining": ["DOUBT", "combine", "influence", "predict"],
    "families": [
        "AVERAGES",
        "Candidate",
        "FAMILIES",
        "INTERCEPT",
        "PENALTIES",
        "candidates",
        "class_shares",
        "provisional",
    ],
    "folds": ["SumFolds", "out_of_fold", "row_folds", "sum_folds"],
    "layout": ["Layout", "bounds", "features", "targets"],
    "linear_member": ["least_squares", "linear_sums", "predict_linear"],
    "members": ["Member", "Stack", "unpack", "unpack_members"],
    "pooled_sums": [
        "Pooled",
        "Sums",
        "can_be_solved_for",
        "check_sums",
        "equations",
        "pool",
        "sums",
    ],
    "strategy": ["FedStacking", "NAverage"],
}

__getattr__ = exporter(__name__, _HOMES)
