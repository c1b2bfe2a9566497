"""Renews the pins: ``constraints.txt``, and ``[tool.uv]`` of ``pyproject.toml`` with them.

The lowest Python decides, so that one list of versions holds for all. Old pins do not count.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tools import template

ROOT = Path(__file__).parents[1]
_HEAD = "# Exact versions of the core and of every extra, resolved together (make pins)."


def resolved(project: Path) -> list[str]:
    """Return the newest versions that go together, as ``name==version``.

    Raises
    ------
    subprocess.CalledProcessError
        If there are none, or no index can be reached.
    """
    lowest = re.search(r'requires-python = ">=([\d.]+)', project.read_text())
    assert lowest is not None
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config"]
    command += ["--all-extras", "--no-header", "--no-annotate", "--no-emit-index-url"]
    command += ["--python-version", lowest[1], str(project)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def with_pins(text: str, pins: list[str]) -> str:
    """Return the text of a ``pyproject.toml`` with these pins instead of its own."""
    lines = "".join(f'    "{pin}",\n' for pin in pins)
    start = "constraint-dependencies = [\n"
    text, times = re.subn(rf"(?<={re.escape(start)}).*?(?=^\])", lines, text, flags=re.M | re.S)
    assert times == 1
    return text


def main() -> None:
    """Write both files, and what is made of them."""
    project = ROOT / "pyproject.toml"
    pins = resolved(project)
    (ROOT / "constraints.txt").write_text("\n".join([_HEAD, *pins, ""]))
    project.write_text(with_pins(project.read_text(), pins))
    template.main()


if __name__ == "__main__":
    main()
