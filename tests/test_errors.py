"""Errors say one line, and say it in another process too."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from fl_app.errors import ConfigError, DataError, FlAppError, InputError, RunError


def fail(error: FlAppError) -> None:
    raise error


@pytest.mark.parametrize("kind", [InputError, ConfigError, DataError])
def test_an_error_of_a_worker_arrives_as_it_was(kind: type[InputError]) -> None:
    """A pool of processes hands it over: the same class, fields, line and exit status."""
    error = kind("seed", -1, "at least 0")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool, pytest.raises(kind) as caught:
        pool.submit(fail, error).result()
    found = caught.value
    assert (found.field, found.value, found.allowed) == ("seed", -1, "at least 0")
    assert str(found) == "seed=-1: at least 0"
    assert found.exit_status == 2


def test_a_failed_run_is_no_bad_input() -> None:
    """The exit statuses tell a mistake from a failure."""
    assert RunError("it stopped").exit_status == 1
    assert isinstance(RunError("it stopped"), FlAppError)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "null"), (True, "true"), ("a\nb", "a b"), ("x" * 99, "x" * 77 + "...")],
)
def test_a_value_is_shown_as_a_config_would(value: object, shown: str) -> None:
    """On one line, and not without end."""
    assert str(InputError("key", value, "other")) == f"key={shown}: other"
