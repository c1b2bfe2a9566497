"""Makes the ``pyproject.toml`` of the bundles that Flower is handed, from the repository's own.

It holds what a node needs to install and start the app; the extras and the tools stay here.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import tomli_w

ROOT = Path(__file__).parents[1]
FILE = ROOT / "fl_app" / "runtimes" / "bundle.toml"
_KEPT = ("name", "version", "description", "license", "requires-python", "dependencies")


def template() -> str:
    """Return the text of the file."""
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = {key: own["project"][key] for key in _KEPT}
    tools = {key: own["tool"][key] for key in ("flwr", "uv")}
    head = "# Made of the repository's pyproject.toml by `make template`.\n"
    return head + tomli_w.dumps({"project": project, "tool": tools})


def main() -> None:
    """Write the file."""
    FILE.write_text(template())


if __name__ == "__main__":
    main()
