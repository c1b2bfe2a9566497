"""What the tests of stacking share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet_flower() -> Iterator[None]:
    """Leave Flower's log out of what a failing test shows."""
    before = logging.getLogger("flwr").level
    logging.getLogger("flwr").setLevel(logging.ERROR)
    yield
    logging.getLogger("flwr").setLevel(before)
