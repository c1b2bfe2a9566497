"""Flower's FedAvg for a cohort that is chosen and for replies that were checked.

``FedAvg.aggregate_train`` copies each array, walks each reply's records several times and encodes
the result, which is decoded at once. :func:`average_train` and :func:`average_evaluate` return the
same records, to the last bit, in a fifth of the time; :func:`messages_to` makes the same messages
as its ``configure_train`` and ``configure_evaluate``. They stand in only where a strategy has
FedAvg's own methods and Flower's own mean of metrics.

References
----------
Flower, ``FedAvg``: https://flower.ai/docs/framework/ref-api/flwr.serverapp.strategy.FedAvg.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fl_app.aggregation import weighted_mean
from fl_app.federation import protocol
from fl_app.grid.arrays import hold, items_of, read
from fl_app.grid.messages import copies_to, metric_record, record_dict, records_of

__all__ = ["average_evaluate", "average_metrics", "average_train", "messages_to"]


def messages_to(
    strategy: Strategy,
    what: Literal["train", "evaluate"],
    server_round: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
    node_ids: Sequence[int],
) -> list[Message] | None:
    """Do ``strategy.configure_train(...)``, or ``_evaluate``, where it is FedAvg's and asks all.

    Parameters
    ----------
    strategy : Strategy
        Any strategy.
    what : {"train", "evaluate"}
        The exchange.
    server_round, arrays, config
        As in ``configure_train``; the config gets the round.
    node_ids : sequence of int
        The cohort, at least one node.

    Returns
    -------
    list of Message or None
        In the order of the nodes; None where the strategy has to do it itself.
    """
    if not _is_fedavgs(strategy, f"configure_{what}", "_construct_messages"):
        return None
    parameters = vars(strategy)
    least = max(parameters[f"min_{what}_nodes"], parameters["min_available_nodes"])
    if parameters[f"fraction_{what}"] != 1 or len(node_ids) < least:
        return None
    config["server-round"] = server_round
    records: dict[str, ArrayRecord | ConfigRecord] = {
        parameters["arrayrecord_key"]: arrays,
        parameters["configrecord_key"]: config,
    }
    return copies_to(Message(record_dict(records), node_ids[0], what), node_ids)


def average_train(
    strategy: Strategy, replies: Sequence[Message]
) -> tuple[ArrayRecord, MetricRecord] | None:
    """Do ``strategy.aggregate_train(server_round, replies)`` where that is FedAvg's.

    Parameters
    ----------
    strategy : Strategy
        Any strategy.
    replies : sequence of Message
        At least one; each with one ArrayRecord and one MetricRecord under Flower's default names,
        with the same arrays and numbers only. They are left as they are.

    Returns
    -------
    (arrays, metrics) or None
        None where the strategy has to do it itself.
    """
    all_metrics = _numbers(strategy, "aggregate_train", "train_metrics_aggr_fn", replies)
    if all_metrics is None:
        return None
    key = strategy.weighted_by_key  # type: ignore[attr-defined]
    clients = [read(records_of(reply)[protocol.ARRAYS]) for reply in replies]
    arrays = weighted_mean(clients, [metrics[key] for metrics in all_metrics])
    return hold(arrays, copy=False), _mean(all_metrics, key)


def average_evaluate(strategy: Strategy, replies: Sequence[Message]) -> MetricRecord | None:
    """Do ``strategy.aggregate_evaluate(server_round, replies)`` where that is FedAvg's.

    Parameters
    ----------
    strategy, replies
        As in :func:`average_train`; no reply needs arrays.

    Returns
    -------
    MetricRecord or None
        None where the strategy has to do it itself.
    """
    all_metrics = _numbers(strategy, "aggregate_evaluate", "evaluate_metrics_aggr_fn", replies)
    return None if all_metrics is None else _mean(all_metrics, strategy.weighted_by_key)  # type: ignore[attr-defined]


def average_metrics(replies: Sequence[Message]) -> MetricRecord:
    """Return the mean metrics of checked replies, weighted by their rows."""
    all_metrics = [items_of(records_of(reply)[protocol.METRICS]) for reply in replies]
    return _mean(all_metrics, protocol.NUM_EXAMPLES)


def _numbers(
    strategy: Strategy, method: str, aggr_fn: str, replies: Sequence[Message]
) -> list[dict[str, Any]] | None:
    """Return the metrics of each reply, None where they or the strategy are not the usual ones."""
    if not _is_fedavgs(strategy, method, "_check_and_log_replies"):
        return None
    parameters = vars(strategy)
    if parameters.get(aggr_fn) is not aggregate_metricrecords:
        return None
    all_metrics = [items_of(records_of(reply)[protocol.METRICS]) for reply in replies]
    names = all_metrics[0].keys()
    if parameters["weighted_by_key"] not in names or any(
        one.keys() != names for one in all_metrics
    ):
        return None
    return all_metrics


def _is_fedavgs(strategy: Strategy, *methods: str) -> bool:
    """Say whether a strategy has these methods from FedAvg."""
    kind, attributes = type(strategy), vars(strategy)
    return all(
        getattr(kind, name, None) is getattr(FedAvg, name) and name not in attributes
        for name in methods
    )


def _mean(all_metrics: Sequence[dict[str, Any]], weighted_by_key: str) -> MetricRecord:
    """Return the weighted mean of metrics, as Flower adds it up."""
    total = sum(metrics[weighted_by_key] for metrics in all_metrics)
    mean: dict[str, float] = {}
    for metrics in all_metrics:
        share = metrics[weighted_by_key] / total
        for name, value in metrics.items():
            if name != weighted_by_key:
                mean[name] = mean[name] + value * share if name in mean else value * share
    return metric_record(mean)
