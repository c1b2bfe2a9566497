"""Observes any Flower strategy round by round: what was sent, what came back, what it became.

``Strategy.start()`` calls four hooks and ``evaluate_fn``. While the strategy's own ``start()``
runs, its hooks are replaced on the instance by ones that do the same and look on; ``start()``
itself is never copied. Nothing is changed: messages, replies and results pass through as they are,
and an exception of the observer never reaches the training; but for a disk without room for the
run's record (``DiskError``), which ends it.

References
----------
Flower, ``Strategy``: https://flower.ai/docs/framework/ref-api/flwr.serverapp.strategy.Strategy.html
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Result, Strategy

from fl_app.errors import ConfigError, FlAppError
from fl_app.tracking.chain import chain, may_be_observed, replaced_hooks
from fl_app.tracking.records import RunFacts, Tracker
from fl_app.tracking.watch import Watch

__all__ = ["TrackedStrategy"]


class TrackedStrategy(Strategy):
    """A strategy that shows every round of the strategy it wraps to a tracker.

    Usable alone in any Flower app, whatever `strategy` does in its ``start()``. A tracker that
    nobody started is started with the run and finished with it: ``FINISHED``, ``KILLED`` after
    Ctrl-C, ``FAILED`` after any other exception. All other attributes, read and set, are those of
    `strategy`.

    Parameters
    ----------
    strategy : Strategy
        The strategy to observe, which may be any of Flower's wrappers. Where it (or a strategy
        inside it, found through attributes named ``strategy``) has them, these are used:
        ``accepted``, a frozenset of the node ids whose replies counted in the last exchange;
        ``dropped``, a mapping of partition to reason for the others;
        ``is_model(name)``, whether an array of a reply belongs to a model: others are not recorded;
        ``round_metrics(server_round)``, metrics of its own under their full key;
        ``round_texts(server_round)``, text artifacts; ``weighted_by_key``, the weight's name.
        Without ``accepted`` a client is any reply without error; without ``dropped`` the reason is
        the reply's error, or that none came in time.
    tracker : Tracker
        Sees the run; several are joined by :class:`fl_app.tracking.Trackers`.
    partitions : mapping of int to int, optional
        Node id -> partition. Read when needed, so it may be filled later. Without it partitions are
        those that the grid knows (``InProcessGrid``) or that replies tell in a metric or config
        value named ``partition-id``. If there are none, clients are numbered by sorted node id in
        the order in which rounds ask them, which is said, and no number is called a partition.
        Where some are known, the other nodes are -1, -2 and so on.
    value_names : mapping of str to sequence of str, optional
        Names of the arrays' values, as in :class:`~fl_app.tracking.records.RunFacts`. Read when
        needed.
    private : bool, default False
        Whether clients are protected (differential privacy): then no client is recorded, neither
        its arrays and their norm nor its metrics, only how many were asked and replied. So it is,
        whatever is said here, in and around Flower's wrappers for differential privacy; noise that
        clients add (``LocalDpMod``) can not be seen from the server.
    higher_is_better : mapping of str to bool, optional
        For metrics whose name does not tell it: whether a larger value is better. Without it such a
        metric has no worst client, which is said once.
    rule : str, optional
        Name of the aggregation; by default the class name of the innermost strategy.

    Raises
    ------
    TypeError
        If `strategy` is no strategy of ``flwr.serverapp.strategy``.
    ConfigError
        If `higher_is_better` is no mapping of names to bool.

    Notes
    -----
    A ``start()`` that begins with the arrays with which the last one ended goes on with its run:
    ``start(num_rounds=1)`` in a loop is one run. So is everything in a ``with`` block of the
    tracked strategy, which a loop of your own over the hooks needs to tell how it ended. Inside
    another strategy, and in such a loop, ``evaluate_fn`` is not seen: :meth:`evaluated` takes what
    it gives.

    Rounds are counted from 1 over the run, 0 is the state before training.

    ``cost/bytes_down`` and ``cost/bytes_up`` sum :func:`~fl_app.tracking.contents.content_bytes`
    over all messages sent and all replies received, evaluation included; of messages to clients
    without their ConfigRecords, which are instructions and the run's description.
    ``cost/clients_*`` count the training exchange of the round (the evaluation's where there was no
    training); a node that was asked and whose reply did not count has failed. ``cost/seconds`` is
    what a clock on the wall shows between the ends of two rounds, whatever was done meanwhile; the
    first one counts from the start, with the evaluation before training.

    Examples
    --------
    ::

        TrackedStrategy(FedAvg(), MlflowTracker(experiment_name="x")).start(
            grid=grid, initial_arrays=arrays, num_rounds=3
        )

        with TrackedStrategy(FedAvg(), MlflowTracker(experiment_name="x")) as strategy:
            for server_round in range(1, 4):
                messages = strategy.configure_train(server_round, arrays, config, grid)
                replies = grid.send_and_receive(messages)
                arrays, metrics = strategy.aggregate_train(server_round, replies)
                strategy.evaluated(server_round, arrays, MetricRecord({"accuracy": 0.9}))
    """

    strategy: Strategy
    tracker: Tracker
    _watch: Watch

    def __init__(
        self,
        strategy: Strategy,
        tracker: Tracker,
        *,
        partitions: Mapping[int, int] | None = None,
        value_names: Mapping[str, Sequence[str]] | None = None,
        private: bool = False,
        rule: str | None = None,
        higher_is_better: Mapping[str, bool] | None = None,
    ) -> None:
        given: object = strategy
        if not isinstance(given, Strategy):
            kind = f"{type(given).__module__}.{type(given).__name__}"
            old = hasattr(given, "configure_fit")
            why = ", which Flower's older API calls (configure_fit)" if old else ""
            raise TypeError(
                f"strategy must be a strategy of flwr.serverapp.strategy, got {kind}{why}"
            )
        facts = RunFacts(
            rule or type([*chain(strategy)][-1]).__name__,
            {} if value_names is None else value_names,
            _directions(higher_is_better or {}),
        )
        watch = Watch(strategy, tracker, partitions, private, facts)
        vars(self).update(strategy=strategy, tracker=tracker, _watch=watch)
        # Ends a run that nobody ended: somebody else's loop does not say that it is over.
        weakref.finalize(self, watch.leave)

    def __getattr__(self, name: str) -> Any:
        """Return the wrapped strategy's attribute."""
        if name == "strategy":  # not there before __init__, nor while a copy is made
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the wrapped strategy's attribute."""
        setattr(self.strategy, name, value)

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the strategy's own ``start``, which takes the same arguments.

        Raises
        ------
        FlAppError
            If that ``start`` never calls a hook or ``evaluate_fn``: there would be nothing to see.
        """
        strategy, watch = self.strategy, self._watch
        if not may_be_observed(strategy):
            raise FlAppError(
                f"{type(strategy).__name__}.start() calls neither its hooks (configure_train, "
                "aggregate_train, ...) nor evaluate_fn, so TrackedStrategy can see no round of it: "
                "let it call them, or do without TrackedStrategy"
            )
        call = inspect.signature(strategy.start).bind(*args, **kwargs)
        # An evaluate_fn that nobody gave would be a steering one: its start() may ask for it.
        for given in (call.arguments, call.arguments.get(_rest(call), {})):
            if given.get("evaluate_fn") is not None:
                given["evaluate_fn"] = watch.evaluation(given["evaluate_fn"])
        given = {**call.arguments, **call.arguments.get(_rest(call), {})}
        with watch.start(given), replaced_hooks(strategy, watch.hook):
            return strategy.start(*call.args, **call.kwargs)

    def go_on(
        self, server_round: int, arrays: ArrayRecord, bytes_up: int = 0, bytes_down: int = 0
    ) -> None:
        """Take over a run that another process has begun, before ``start(num_rounds=T - k)``.

        That begins with `arrays`, calls the hooks and ``evaluate_fn`` with the rounds k + 1 to T,
        and does not evaluate `arrays` once more. The tracker was started by whoever calls this, and
        knows the rounds before.

        Parameters
        ----------
        server_round : int
            k, the last round of that run.
        arrays : ArrayRecord
            The global arrays after it.
        bytes_up, bytes_down : int
            What clients have sent, and were sent, by then.
        """
        self._watch.go_on(server_round, arrays, bytes_up, bytes_down)

    def configure_train(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """Delegate, and note who is asked."""
        seen: Iterable[Message] = self._seen("configure_train", args, kwargs)
        return seen

    def aggregate_train(
        self, *args: Any, **kwargs: Any
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Delegate, and note the replies and what became of them."""
        seen: tuple[ArrayRecord | None, MetricRecord | None] = self._seen(
            "aggregate_train", args, kwargs
        )
        return seen

    def configure_evaluate(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """Delegate, and note who is asked."""
        seen: Iterable[Message] = self._seen("configure_evaluate", args, kwargs)
        return seen

    def aggregate_evaluate(self, *args: Any, **kwargs: Any) -> MetricRecord | None:
        """Delegate, and note the replies and what became of them."""
        seen: MetricRecord | None = self._seen("aggregate_evaluate", args, kwargs)
        return seen

    def _seen(self, hook: str, args: Any, kwargs: Any) -> Any:
        return self._watch.hook(hook, getattr(self.strategy, hook))(*args, **kwargs)

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        self.strategy.summary()

    def evaluated(
        self, server_round: int, arrays: ArrayRecord, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Tell the tracker what the server made of a round, where no ``start`` of ours does.

        Parameters
        ----------
        server_round : int
            The round, as the hooks got it; 0 for the state before training.
        arrays : ArrayRecord
            Global arrays after the round.
        metrics : MetricRecord, optional
            The server's own metrics of them.
        """
        self._watch.evaluated(server_round, arrays, metrics)

    def saw(self, replies: Sequence[Message]) -> None:
        """Tell the tracker of replies to an exchange that is not over; for a grid that sees them.

        Parameters
        ----------
        replies : sequence of Message
            Those that came together.
        """
        self._watch.saw(replies)

    def __enter__(self) -> TrackedStrategy:
        """Begin a block that is one run, whatever is called in it."""
        self._watch.enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the run, with the exception that ended the block."""
        self._watch.leave(error)


def _rest(call: inspect.BoundArguments) -> str:
    """Return the name of what takes all further keywords; empty where nothing does."""
    names = {p.kind: name for name, p in call.signature.parameters.items()}
    return names.get(inspect.Parameter.VAR_KEYWORD, "")


def _directions(given: Mapping[str, bool]) -> dict[str, bool]:
    if not isinstance(given, Mapping) or not all(isinstance(v, bool) for v in given.values()):
        raise ConfigError("higher_is_better", given, "a mapping of metrics' names to True or False")
    return {str(name): higher for name, higher in given.items()}
