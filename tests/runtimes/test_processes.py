"""The table of processes, by which all that a SuperLink has started is found."""

from __future__ import annotations

import os
import shutil

import pytest

from fl_app.runtimes.processes import process_table, ps_table


def test_ps_tells_what_proc_tells() -> None:
    """Where there is no /proc, the listing of ps names the same processes and parents."""
    if shutil.which("ps") is None:
        pytest.skip("there is no ps here")
    (ours,) = [p for p in ps_table() if p.pid == os.getpid()]
    assert (ours.parent, ours.session, ours.zombie) == (os.getppid(), os.getpgrp(), False)
    (ours,) = [p for p in process_table() if p.pid == os.getpid()]
    assert (ours.parent, ours.session, ours.zombie) == (os.getppid(), os.getsid(0), False)
