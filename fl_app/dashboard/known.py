"""Which models there were after a round of a run, by what it left on disk.

A run's journal keeps for each round the global arrays after it and what each accepted client sent.
What these arrays are depends on the strategy: a client of FedStacking sends the global member as it
trained it and once its base model, and no model at all in the two rounds that combine them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_app import stacking
from fl_app.config.strategy_options import is_pooled
from fl_app.data.table import Table
from fl_app.models.base import Arrays
from fl_app.models.serving import Predictor
from fl_app.stacking.members import MODEL, Member, Stack, unpack
from fl_app.tracking.journal_reader import UNREADABLE, JournalReader

__all__ = ["KeptModels", "Known", "known"]

Floats = NDArray[np.float64]
LOOK_BACK = 20
"""Rounds in which a client's last model is looked for."""
_AVERAGED = "averaged model", "The averaged model"
_WORDS = {
    **dict.fromkeys(("fedavg", "fedprox", "fedstacking"), _AVERAGED),
    "fedxgbbagging": ("boosted trees", "The boosted trees of all clients"),
    "pooled": ("pooled model", "The model of all rows in one place"),
}
"""Title and words of what a strategy makes; of others it is the server's model."""


class KeptModels(Mapping[int, Arrays]):
    """The arrays of each round that a run kept, read when they are asked for.

    Parameters
    ----------
    folder : Path
        The run's folder, ``FL_APP_HOME/runs/<name>``.
    """

    def __init__(self, folder: Path) -> None:
        self._journal = JournalReader(folder)

    def __getitem__(self, server_round: int) -> Arrays:
        """Return ``global/<array>`` and ``client/003/<array>`` of a round."""
        try:
            return _read(self._journal, server_round)
        except Exception:  # not there yet, or pruned; a broken archive raises anything
            raise KeyError(server_round) from None

    def __iter__(self) -> Iterator[int]:
        """Yield the rounds in order."""
        try:
            return iter(self._journal.kept("seen"))
        except UNREADABLE:
            return iter(())

    def __len__(self) -> int:
        """Return how many rounds were kept."""
        return sum(1 for _ in self)


@lru_cache(maxsize=64)
def _read(journal: JournalReader, server_round: int) -> Arrays:
    return journal.arrays("seen", server_round)


@dataclass(frozen=True)
class Known:
    """One model that there was after a round.

    Parameters
    ----------
    kind : {"client", "server", "stack"}
        Whose it is.
    partition : int or None
        The client's.
    title : str
        Its name, for a chart.
    what : str
        What it is, for a sentence that begins with it.
    predictor : Predictor
        How its arrays predict.
    arrays : mapping of str to ndarray
        Its arrays.
    share : float or None, default None
        Share of the stack's weights that are this member's (:func:`fl_app.stacking.influence`).
    base : str, default ""
        Kind of a base model; empty for what the predictor itself predicts from.
    """

    kind: Literal["client", "server", "stack"]
    partition: int | None
    title: str
    what: str
    predictor: Predictor
    arrays: Arrays
    share: float | None = None
    base: str = ""

    def outputs(self, table: Table) -> Floats:
        """Return probabilities of shape (n, C) or targets of shape (n, 1) for raw rows."""
        predictor = self.predictor
        x = predictor.encoding.features(table).astype(predictor.model.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if not self.base:
                return np.asarray(predictor.outputs(self.arrays, x), np.float64)
            members = predictor.kinds()
            layout = stacking.Layout(1, members.num_outputs, False)
            outputs = members.outputs(Member(self.base, self.arrays), x, layout)
            return np.asarray(predictor.encoding.in_units(outputs), np.float64)


def known(
    spec: Mapping[str, Any],
    kept: Mapping[int, Arrays],
    server_round: int,
    *,
    strategy: str = "fedavg",
    num_rounds: int = 0,
) -> list[Known]:
    """Return the models that there were after a round: clients' in order, server's, stack.

    Parameters
    ----------
    spec : mapping
        :meth:`fl_app.models.serving.Predictor.to_spec` of the run.
    kept : mapping of int to mapping of str to ndarray
        The arrays of each round, as :class:`KeptModels` reads them.
    server_round : int
        0 to T.
    strategy : str
        The run's strategy.
    num_rounds : int
        T.

    Returns
    -------
    list of Known
        A client that sent nothing in the round stands with what it sent last, up to
        :data:`LOOK_BACK` rounds before. Once base models are combined, each client stands with its
        member. Empty if nothing of the round is kept.
    """
    predictor = Predictor.from_spec(spec)
    whole = unpack("global", kept.get(server_round, {}))
    stacks = strategy == "fedstacking" and server_round >= num_rounds - 1
    if "weights" not in whole:
        clients = _clients(predictor, kept, server_round)
        return [*clients, *_server(predictor, whole, strategy, server_round)]
    stack = Stack.from_arrays(whole)
    shares = stacking.influence(stack.layout, stack.weights).tolist()
    clients = [
        _base(predictor, partition, member, share)
        for (partition, member), share in zip(stack.members.items(), shares, strict=False)
    ]
    if not stacks:
        return [*clients, *_server(predictor, whole, strategy, server_round)]
    alone = stack.global_member
    if alone is not None:
        clients.append(_global(predictor, whole, alone, shares[-1], num_rounds - 2))
    final = server_round >= num_rounds
    title = "stack" if final else "stack so far"
    what = "The stack" if final else "The stack so far (the choice falls in the next round)"
    return [*clients, Known("stack", None, title, what, predictor, whole)]


def _clients(predictor: Predictor, kept: Mapping[int, Arrays], server_round: int) -> list[Known]:
    """Return the last model that each client sent up to a round."""
    last: dict[int, Known] = {}
    for sent in range(server_round, max(0, server_round - LOOK_BACK), -1):
        by_client: dict[int, dict[str, NDArray[Any]]] = {}
        for name, array in unpack("client", kept.get(sent, {})).items():
            client, _, rest = name.partition("/")
            by_client.setdefault(int(client), {})[rest] = array
        late = f", sent in round {sent}," if sent < server_round else ""
        for partition in by_client.keys() - last.keys():
            model = _sent(predictor, partition, by_client[partition], late)
            if model is not None:
                last[partition] = model
    return [last[partition] for partition in sorted(last)]


def _sent(predictor: Predictor, partition: int, arrays: Arrays, late: str) -> Known | None:
    """Return the model in one client's reply: what it trained, else its base model, else None."""
    base = Member.from_arrays("base", arrays) if predictor.stacked else None
    trained = unpack("global", arrays) if predictor.stacked else arrays
    if trained:
        plain = replace(predictor, many=False, stacked=False)
        return Known(
            "client", partition, f"client {partition}", f"Its own model{late}", plain, trained
        )
    return None if base is None else _base(predictor, partition, base, None, late)


def _base(
    predictor: Predictor, partition: int, member: Member, share: float | None, late: str = ""
) -> Known:
    """Return a client's base model."""
    kind = "" if member.kind == MODEL else f" ({member.kind.replace('_', ' ')})"
    words = f"client {partition}", f"Its base model{kind}{late}"
    return Known("client", partition, *words, predictor, member.arrays, share, member.kind)


def _global(predictor: Predictor, whole: Arrays, member: Member, share: float, made: int) -> Known:
    """Return the federation's own model in a stack, and the round that made it."""
    if member.kind == MODEL:
        title, what = _AVERAGED
        words, arrays = (title, f"{what} of round {made}"), member.arrays
    else:
        words = "least squares", "Least squares over all clients"
        ends = {name: whole[name] for name in ("low", "high") if name in whole}
        arrays = member.to_arrays("global") | ends
    return Known("server", None, *words, predictor, arrays, share)


def _server(predictor: Predictor, whole: Arrays, strategy: str, server_round: int) -> list[Known]:
    """Return what the server has, where it has anything."""
    if not whole or (predictor.many and server_round):
        return []  # where each client keeps its own, the server has no model
    if server_round == 0:
        words = "start", "The model that all start from"
    elif "votes" in whole:
        words = "majority vote", "The majority vote of the base models"
    elif "weights" in whole and not is_pooled(strategy):
        words = "average", "The average of what the base models say"
    else:
        words = _WORDS.get(strategy, ("server's model", "The server's model"))
    # Before the first round all clients of `local` have the same arrays, under their plain names.
    use = replace(predictor, many=False)
    return [Known("server", None, *words, use, whole)]
