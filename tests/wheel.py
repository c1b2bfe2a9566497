"""The package's wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["build_wheel"]


def build_wheel(folder: Path) -> Path:
    """Build it into a folder, and return it."""
    root = Path(__file__).parents[1]
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, str(folder)], cwd=root, check=True, capture_output=True)
    return next(folder.glob("*.whl"))
