"""What stands beside every number: the machine's size, its load and the versions that matter."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version


def machine(*packages: str) -> str:
    """Return one line: cores, load, Python and the versions of some packages."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {python}; {versions}"
