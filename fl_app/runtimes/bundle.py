"""What is handed to ``flwr run``: a folder that holds the app and nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fl_app
from fl_app.config.compose import config_dir
from fl_app.errors import masked

__all__ = ["app_dir"]


@contextmanager
def app_dir() -> Iterator[Path]:
    """Yield a folder with just the app: Flower reads every file below the one it is given."""
    package = Path(fl_app.__file__).parent
    with tempfile.TemporaryDirectory(prefix="fl-app-") as folder:
        root = Path(folder)
        shutil.copy(package / "runtimes" / "bundle.toml", root / "pyproject.toml")
        ignored = shutil.ignore_patterns("__pycache__", "conf")
        shutil.copytree(package, root / "fl_app", ignore=ignored)
        # A site's own settings stay with it, also where FL_APP_HOME is the source tree.
        shutil.copytree(config_dir(), root / "conf", ignore=shutil.ignore_patterns("local"))
        for file in root.glob("conf/**/*.yaml"):
            # The bundle goes to every SuperNode, and a site's own defaults may hold a password.
            if (shown := masked(text := file.read_text(encoding="utf-8"))) != text:
                file.write_text(shown, encoding="utf-8")
        yield root
