"""Federated boosted trees: in each round every client adds one boosting round's trees.

Flower's ``FedXgbBagging``, with three differences. Trees of more than two classes are merged, where
Flower's ``aggregate_bagging`` keeps a client's first tree only and calls it the first class's. The
mean of the clients' steps is added in place of their sum, so that ``eta`` means the same for any
number of clients (Flower's example divides it by their number where ``scaled_lr`` is set, on the
client). And trees travel as checked arrays (:mod:`fl_app.models.boosted`), not as a file for
xgboost to read.

References
----------
Flower, ``FedXgbBagging``:
https://flower.ai/docs/framework/ref-api/flwr.serverapp.strategy.FedXgbBagging.html
Flower, its example: https://github.com/adap/flower/tree/main/examples/xgboost-comprehensive
Breiman 1996, "Bagging Predictors", https://doi.org/10.1007/BF00058655.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fl_app.federation import protocol
from fl_app.federation.replies import ReplySpec
from fl_app.grid.arrays import hold, read
from fl_app.grid.messages import records_of
from fl_app.models.base import Arrays
from fl_app.models.boosted import BoostedTrees

__all__ = ["FedXgbBagging"]


class FedXgbBagging(FedAvg):
    """Bagging of the clients' new trees, as a Flower strategy.

    A ``train`` message brings the whole ensemble; the reply holds the trees of one boosting round
    on the client's rows, and nothing else. Both have the arrays of :mod:`fl_app.models.boosted`.

    Parameters
    ----------
    ensemble : BoostedTrees
        What replies are checked and merged by.
    **kwargs
        As for Flower's FedAvg.
    """

    def __init__(self, ensemble: BoostedTrees, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ensemble = ensemble
        self._sent: Arrays = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the ensemble."""
        self._sent = read(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the clients' trees in the order of the replies, which :meth:`reply_spec` checks."""
        contents = [message.content for message in replies]
        trees = [read(content.array_records[self.arrayrecord_key]) for content in contents]
        grown = self.ensemble.grown(self._sent, trees)
        return hold(grown, copy=False), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    # ------------------------------------------------------------------------- for the house
    def reply_spec(self, server_round: int, arrays: ArrayRecord) -> ReplySpec:
        """Expect exactly the new trees."""
        return ReplySpec(None, check=self._check)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the arrays that are sent are all that a round leaves."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in :meth:`state_dict`."""

    def samples_all(self, server_round: int) -> bool:
        """No round needs all clients."""
        return False

    def is_model(self, name: str) -> bool:
        """Return False: a few trees are no model."""
        return False

    def _check(self, message: Message) -> None:
        arrays = records_of(message)[protocol.ARRAYS]
        assert isinstance(arrays, ArrayRecord)
        self.ensemble.check(read(arrays))
