"""What is handed to ``flwr run``: a folder that holds the app and nothing else."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

import fl_app
from fl_app.config.compose import config_dir
from fl_app.config.plugins import Project, opened
from fl_app.errors import masked
from fl_app.temporary import temporary_dir

__all__ = ["app_dir"]

_LEFT_OUT = ("conf/local/", "outputs/", "multirun/", "tests/")


@contextmanager
def app_dir() -> Iterator[Path]:
    """Yield a folder with just the app: Flower reads every file below the one it is given.

    The app is the open project, which finds this package where it is installed, or this package.
    """
    package = Path(fl_app.__file__).parent
    with temporary_dir() as folder:
        root = folder / "app"
        root.mkdir()
        if (project := opened()) is not None:
            _copy(project, root, package / "runtimes" / "bundle.toml")
        else:
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


def _copy(project: Project, root: Path, ours: Path) -> None:
    """Copy a project's modules and its ``conf/``, or what its ``fab-include`` names; no data."""
    own: dict[str, Any] = tomllib.loads((project.root / "pyproject.toml").read_text("utf-8"))
    app = own["tool"]["flwr"]["app"]
    tops = {module.partition(".")[0] for module in project.modules} - {"fl_app"}
    usual = [*(f"{top}/**/*.py" for top in tops), *(f"{top}.py" for top in tops), "conf/**/*.yaml"]
    refused = {p for pattern in app.pop("fab-exclude", ()) for p in _matching(project, pattern)}
    for pattern in app.get("fab-include", usual):
        for file in _matching(project, pattern) - refused:
            name = file.relative_to(project.root)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
            if file.is_file() and not hidden and not name.as_posix().startswith(_LEFT_OUT):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, root / name)
    app["fab-include"] = ["**/*"]  # Flower refuses patterns that match nothing
    # Flower lets a run set only the keys that stand there.
    known = tomllib.loads(ours.read_text("utf-8"))["tool"]["flwr"]["app"]["config"]
    app["config"] = known | app.get("config", {})
    (root / "pyproject.toml").write_text(tomli_w.dumps(own), encoding="utf-8")


def _matching(project: Project, pattern: str) -> set[Path]:
    return set(project.root.glob(pattern.lstrip("/")))
