"""What ``fl-kit init`` writes and ``fl-kit options`` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from fl_app.config.plugins import load_installed, offered_by, open_project, project_in
from fl_app.config.registry import GROUPS
from fl_app.errors import InputError

__all__ = ["init", "options"]

_TEMPLATE = Path(__file__).parent / "template"


def init(folder: str | Path) -> list[Path]:
    """Write a Flower project that uses this package, with a model and a data set of its own.

    Parameters
    ----------
    folder : path
        A new or empty folder; its name is the project's.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    InputError
        If it is no such folder, or no package of Python can have its name.
    """
    root = Path(folder).expanduser().absolute()
    package = re.sub(r"\W+", "_", root.name.lower(), flags=re.ASCII).strip("_")
    if not package.isidentifier() or not _is_free(package):
        raise InputError("DIR", folder, "a folder with a name that a new package can have")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError("DIR", folder, "a folder that is new or empty")
    words, written = {"PACKAGE": package, "NAME": package.replace("_", "-")}, []
    for file in sorted(_TEMPLATE.rglob("*.in")):
        name = file.relative_to(_TEMPLATE).as_posix().removesuffix(".in")
        text = file.read_text(encoding="utf-8")
        for word, replacement in words.items():
            name = name.replace(word, replacement)
            text = re.sub(rf"\b{word}\b|(?<=_){word}", replacement, text)
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _is_free(package: str) -> bool:
    """Say whether no module that is installed has a name."""
    try:
        import_module(package)
    except ImportError:
        return True
    return False


def options(group: str = "", app: str | None = None) -> Iterator[str]:
    """Yield a line for each option: its name, what it is, and whom it is from.

    Parameters
    ----------
    group : str, optional
        One group; by default all.
    app : path, optional
        A project's folder; by default the working directory, if it is one.

    Raises
    ------
    ConfigError, InputError
        For no such group, no such project, or options that cannot be imported.
    """
    if group and group not in GROUPS:
        raise InputError("GROUP", group, f"one of {', '.join(GROUPS)}")
    open_project(project_in(app or ".", asked=app is not None))
    load_installed()
    chosen = {group: GROUPS[group]} if group else GROUPS
    lines = [
        (f"{key}={name}", _first_sentence(option.__doc__ or ""), offered_by(option))
        for key, known in chosen.items()
        for name, option in known.items()
    ]
    width = max(len(name) for name, _, _ in lines)
    for name, sentence, owner in lines:
        yield f"{name:{width}}  {sentence} [{owner}]"


def _first_sentence(text: str) -> str:
    """Return the first sentence of a docstring, as one line."""
    line = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", line, maxsplit=1)[0]
