"""Random generators from their purpose, and single-threaded arithmetic.

Every draw in fl_app comes from ``generator(seed, purpose, server_round, partition)``: no global
state, so that no order of calls, no process and no runtime changes it.

References
----------
NumPy, "Parallel random number generation": https://numpy.org/doc/stable/reference/random/parallel.html
threadpoolctl: https://github.com/joblib/threadpoolctl
"""

from __future__ import annotations

import sys
import threading
import zlib
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
from threadpoolctl import OpenBLASController, ThreadpoolController

__all__ = ["generator", "later", "one_thread"]

_WORD = 2**32


def generator(
    seed: int, purpose: str, server_round: int = 0, partition: int = 0
) -> np.random.Generator:
    """Make the generator of one purpose.

    Parameters
    ----------
    seed : int
        The run's seed, at least 0.
    purpose : str
        What is drawn, for example ``"partition"``; other words give independent streams.
    server_round : int, default 0
        Round of the draw, 0 for draws before the first round.
    partition : int, default 0
        Partition that draws; 0 also for the server's own draws (give those their own purpose).

    Returns
    -------
    numpy.random.Generator

    Examples
    --------
    >>> a = generator(0, "cohort", 3).integers(1000, size=3)
    >>> b = generator(0, "cohort", 3).integers(1000, size=3)
    >>> bool((a == b).all())
    True
    """
    words = (seed, zlib.crc32(purpose.encode()), server_round, partition)
    # An array of words takes half the time of a tuple, and has no room for a larger number.
    entropy = np.array(words, np.uint32) if max(words) < _WORD and min(words) >= 0 else words
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def later(
    seed: int, purpose: str, server_round: int = 0, partition: int = 0
) -> np.random.Generator:
    """Return what stands for :func:`generator` until the first draw, which often never comes.

    Parameters
    ----------
    seed, purpose, server_round, partition
        As for :func:`generator`.

    Returns
    -------
    numpy.random.Generator
        To draw from; it is no instance of that class.
    """
    return cast(np.random.Generator, _Later((seed, purpose, server_round, partition)))


class _Later:
    """Has the attributes of a generator that it makes when it is asked for one of them."""

    def __init__(self, words: tuple[int, str, int, int]) -> None:
        self._words = words

    @cached_property
    def _made(self) -> np.random.Generator:
        return generator(*self._words)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)


class _Own(threading.local):
    """What one thread has limited: 0 modules outside of :func:`one_thread`."""

    modules = 0
    openmp: tuple[Any, ...] = ()


_own = _Own()
_lock = threading.Lock()
_threads_inside = 0
_blas: list[Any] = []


class one_thread:  # noqa: N801
    """Holds BLAS and OpenMP to one thread, so that sums have one order and so one value.

    For ``with``. An inner use costs nothing, unless modules were imported since: their libraries
    are then held too. OpenMP has a limit for each thread, BLAS one for the process, which is lifted
    when the last thread leaves. What is imported inside the innermost use is not held.
    """

    __slots__ = ("_outermost",)

    def __enter__(self) -> None:
        global _threads_inside
        self._outermost = not _own.modules
        if self._outermost:
            with _lock:
                _threads_inside += 1
        try:
            if _own.modules != len(sys.modules):
                _hold()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._outermost:
            _let_go()


def _hold() -> None:
    """Limit the libraries that are loaded now."""
    _own.modules = len(sys.modules)
    controller = _controller(_own.modules)
    _own.openmp += (controller.select(user_api="openmp").limit(limits=1),)
    with _lock:
        _take_control()
        _blas.append(controller.select(user_api="blas").limit(limits=1))


def _let_go() -> None:
    """Lift the limits in reverse order: each remembers the one before."""
    global _threads_inside
    for limit in reversed(_own.openmp):
        limit.restore_original_limits()
    _own.modules, _own.openmp = 0, ()
    with _lock:
        _threads_inside -= 1
        if not _threads_inside:
            _take_control()
            while _blas:
                _blas.pop().restore_original_limits()
            _take_control()


def _take_control() -> None:
    """Let this thread set OpenBLAS: threadpoolctl leaves that to the first thread that did."""
    # Versions before 3.8 let every thread.
    clear = getattr(OpenBLASController, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)


@lru_cache(maxsize=1)
def _controller(num_modules: int) -> Any:
    """Find the loaded libraries, again only after an import: a search takes milliseconds."""
    return ThreadpoolController()
