"""Randomness as an argument, and arithmetic on one thread."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from fl_app.seeding import generator, one_thread

keys = st.tuples(
    st.integers(0, 2**40),
    st.sampled_from(["cohort-train", "partition", "model"]),
    st.integers(0, 1000),
    st.integers(0, 1000),
)


def _draw(key: tuple[int, str, int, int]) -> list[int]:
    return [int(v) for v in generator(*key).integers(2**62, size=4)]


@given(a=keys, b=keys)
def test_a_stream_is_a_function_of_its_four_words(
    a: tuple[int, str, int, int], b: tuple[int, str, int, int]
) -> None:
    """The same words give the same stream, other words another one."""
    assert _draw(a) == _draw(a)
    assert (_draw(a) == _draw(b)) == (a == b)


@pytest.mark.parametrize("position", range(4))
def test_each_word_counts(position: int) -> None:
    """Changing one word alone, from its default too, gives another stream."""
    base = (0, "train", 0, 0)
    other: list[int | str] = list(base)
    other[position] = "evaluate" if position == 1 else 1
    assert _draw(base) != _draw(tuple(other))  # type: ignore[arg-type]


def test_another_process_draws_the_same() -> None:
    """A stream does not depend on the process, as hashes of texts would."""
    code = "from fl_app.seeding import generator; print(generator(7, 'x', 2, 3).integers(2**62))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == generator(7, "x", 2, 3).integers(2**62)


def test_global_generators_are_left_alone() -> None:
    """Making and using a generator neither reads nor moves Python's and NumPy's global state."""
    before = random.getstate(), repr(np.random.get_state())
    generator(0, "x").normal(size=3)
    assert (random.getstate(), repr(np.random.get_state())) == before


# ---------------------------------------------------------------------------- one_thread
def _threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info()}


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Give every library two threads, so that a limit to one can be seen."""
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(limits=2):
        if 2 not in _threads():
            pytest.skip("no library here can have two threads")
        yield


@pytest.mark.usefixtures("two_threads")
def test_one_thread_inside_and_as_before_outside() -> None:
    """All libraries have one thread inside, also after an inner use, and their own outside."""
    before = _threads()
    with one_thread():
        assert _threads() == {1}
        with one_thread():
            assert _threads() == {1}
        assert _threads() == {1}
    assert _threads() == before


@pytest.mark.usefixtures("two_threads")
def test_an_exception_lifts_the_limit() -> None:
    """The limit ends with its block, however that ends."""
    before = _threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        _ = 1 / 0
    assert _threads() == before


def test_threads_that_overlap_do_not_lift_each_others_limit() -> None:
    """BLAS has one limit for the process: it holds until the last thread has left."""
    code = """
import threading
import numpy
from threadpoolctl import threadpool_info
from fl_app.seeding import one_thread

def blas():
    return max(i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas")

entered, left = threading.Event(), threading.Event()

def first():
    with one_thread():
        entered.set()
        second_in.wait()
    left.set()

second_in = threading.Event()
seen = [blas()]
thread = threading.Thread(target=first)
thread.start()
entered.wait()
with one_thread():
    second_in.set()
    left.wait()
    seen.append(blas())
seen.append(blas())
thread.join()
print(seen)
"""
    before, inside, after = _run_with_two_threads(code)
    assert inside == 1
    assert after == before


def test_a_library_that_is_loaded_inside_is_held_from_the_next_use_on() -> None:
    """SciPy comes late in a run: what it loads must not keep threads of its own."""
    code = """
from threadpoolctl import threadpool_info
from fl_app.seeding import one_thread

def most():
    return max(i["num_threads"] for i in threadpool_info())

seen = []
with one_thread():
    import scipy.linalg  # brings a BLAS of its own
    seen.append(most())
    with one_thread():
        seen.append(most())
seen.append(most())
with one_thread():
    seen.append(most())
print(seen)
"""
    loaded, held, after, again = _run_with_two_threads(code)
    assert (held, again) == (1, 1)
    assert after == loaded


def _run_with_two_threads(code: str) -> list[int]:
    """Run a program that prints a list, where libraries start with two threads if they can."""
    env = os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    return [int(item) for item in done.stdout.strip(" []\n").split(",")]
