"""Processes that end when the one that has started them is gone, whatever ended it.

SIGKILL leaves nobody time to end others, so those look: a process whose parent is gone gets another
one, on every system that is no Windows.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

__all__ = ["LOOK_SECONDS", "when_parent_is_gone"]

LOOK_SECONDS = 0.5


def when_parent_is_gone(parent: int, call: Callable[[], object]) -> None:
    """Call something, in a thread, once this process no longer has its parent.

    Parameters
    ----------
    parent : int
        Number of the process that has started this one, as that one knows it: it may be gone
        before this one begins.
    call : callable
        Ends this process, in the midst of whatever it does.
    """

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        call()

    threading.Thread(target=look, name="fl_app-parent", daemon=True).start()
