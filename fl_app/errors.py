"""Exceptions of fl_app, in one tree.

::

    FlAppError                    anything fl_app raises on purpose
    ├── InputError                the user's mistake, found before any work      exit status 2
    │   ├── ConfigError           a config key: its name, its value, what is allowed
    │   └── DataError             a table or a file: its name, its problem, what is allowed
    ├── FederationError           nodes and replies: too few, none usable         exit status 1
    └── RunError                  a run that a runtime reports as failed          exit status 1
"""

from __future__ import annotations

__all__ = ["ConfigError", "DataError", "FederationError", "FlAppError", "InputError", "RunError"]


class FlAppError(Exception):
    """Base class of every exception that fl_app raises on purpose."""

    exit_status = 1


class InputError(FlAppError):
    """A mistake in what the user gave, said in one line.

    Parameters
    ----------
    field : str
        Name of the offending field, as the user types it (``strategy.server_learning_rate``).
    value : object
        The value that was given.
    allowed : str
        What is allowed instead.
    """

    exit_status = 2

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}={_show(value)}: {allowed}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        """Make it anew in another process: an exception is pickled by its message alone."""
        return type(self), (self.field, self.value, self.allowed)


class ConfigError(InputError):
    """A config key with a wrong name, type or value."""


class DataError(InputError):
    """A table or file that a run cannot use."""


class FederationError(FlAppError):
    """Too few nodes or replies for a round to have a result."""


class RunError(FlAppError):
    """A run that ended as failed or stopped in the runtime that ran it."""


def _show(value: object) -> str:
    """Show a value as a config would, on one line of at most 80 characters."""
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
