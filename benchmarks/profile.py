"""Where the time of a round goes, in microseconds a client.

``python -m benchmarks.profile`` runs softmax regression on digits in process, without a record, and
times the parts of a round by wrapping the functions that do them. Time inside a wrapped function
that a part of it wraps again counts for the inner one, so that the rows add up to the whole. The
NumPy loop of ``benchmarks.rounds``, which does the same arithmetic, stands below.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from flwr.clientapp import ClientApp

from benchmarks.machine import machine
from benchmarks.rounds import PACKAGES, loop, ours
from fl_app import client_app
from fl_app.federation import federated, protocol
from fl_app.grid import InProcessGrid
from fl_app.models.softmax import Softmax

PARTS = (
    (federated.Federated, "configure_train", "server: choose clients, make messages"),
    (InProcessGrid, "send_and_receive", "grid: identity, private copies, checks"),
    (ClientApp, "__call__", "client: find the function, the run and the rows"),
    (protocol, "read_arrays", "client: read arrays"),
    (Softmax, "fit", "client: SGD"),
    (client_app._Federation, "score", "client: metrics"),
    (protocol, "reply", "client: make the reply"),
    (federated, "accept", "server: check replies"),
    (federated, "average_train", "server: weighted average"),
)
REST = "server: evaluation, and all else"


class Stopwatch:
    """Sums the time of each part, without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                self.seconds[part] += spent - self._inside.pop()
                self._inside[-1] += spent

        return timed

    @contextmanager
    def around(self) -> Iterator[None]:
        """Time all parts inside the block."""
        patches = [
            mock.patch.object(owner, name, self.wrap(part, getattr(owner, name)))
            for owner, name, part in PARTS
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


def profile(num_clients: int, rounds: int, repeats: int) -> None:
    """Print the medians of the repeats."""
    found: dict[str, list[float]] = defaultdict(list)
    wholes, loops = [], []
    unit = 1e6 / (num_clients * rounds)
    ours(num_clients, rounds, tracked=False)  # keeps the rows prepared
    for _ in range(repeats):
        watch = Stopwatch()
        with watch.around():
            whole = ours(num_clients, rounds, tracked=False)[0] * 1e6 / num_clients
        for part, seconds in watch.seconds.items():
            found[part].append(seconds * unit)
        found[REST].append(whole - sum(watch.seconds.values()) * unit)
        wholes.append(ours(num_clients, rounds, tracked=False)[0] * 1e6 / num_clients)
        loops.append(loop(num_clients, rounds)[0] * 1e6 / num_clients)
    print(f"\nK={num_clients}, {rounds} rounds, microseconds a client, medians of {repeats}")
    for part in [*(part for _, _, part in PARTS), REST]:
        print(f"  {part:50} {statistics.median(found[part]):7.1f}")
    print(f"  {'a round as it is, nothing wrapped':50} {statistics.median(wholes):7.1f}")
    print(f"  {'the NumPy loop':50} {statistics.median(loops):7.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    print(machine(*PACKAGES))
    for num_clients in arguments.clients:
        profile(num_clients, arguments.rounds, arguments.repeats)


if __name__ == "__main__":
    main()
