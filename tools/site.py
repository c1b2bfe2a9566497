"""Makes the documentation as one site: ``make docs``, or ``python -m tools.site [FOLDER]``.

The pages stay where they are read without it. Here those of ``mkdocs.yml`` are gathered with the
files that they link to, beside a page of reference for each public package that stands there, made
of its docstrings. A page that is missing or a link that leads nowhere is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def named() -> list[str]:
    """Return the pages of the navigation."""
    return re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text())


def gather(folder: Path) -> None:
    """Put all that the site is made of into a folder.

    Raises
    ------
    FileNotFoundError
        If there is no such page.
    """
    for name in named():
        page = folder / name
        page.parent.mkdir(exist_ok=True)
        if page.parent.name == "reference":
            page.write_text(f"# fl_app.{page.stem}\n\n::: fl_app.{page.stem}\n")
            continue
        shutil.copy(ROOT / name, page)
        for link in _LINK.findall(page.read_text()):
            source = (ROOT / name).parent / link
            if source.is_file() and source.suffix != ".md":
                copy = folder / source.resolve().relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)


def main() -> int:
    """Build the site; return the builder's exit status."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").absolute()
    with tempfile.TemporaryDirectory() as folder:
        gather(Path(folder))
        command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
        env = os.environ | {"SITE_PAGES": folder, "SITE_DIR": str(site), "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=env, check=False, stderr=subprocess.PIPE, text=True
        )
    if done.returncode:  # quiet, it would not count its warnings
        print(done.stderr, file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
