"""Options of others: of a project's folder, or of an installed distribution.

A project is the folder of a Flower app whose ``pyproject.toml`` has a table ``[tool.fl_app]``. To
open it is to import the modules of its two components, which register its options. Nothing of any
other folder is imported. A distribution names modules as entry points of the group
``fl_app.options``; they are imported when a config names an option that nobody else has.

Processes that this one starts open the same project as soon as they are asked for an option that
they do not know: it stands in an environment variable.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from fl_app.config.registry import GROUPS, modules_of
from fl_app.errors import ConfigError, one_line

__all__ = [
    "Project",
    "digest_of",
    "find_project",
    "foreign_options",
    "load_installed",
    "look_for",
    "offered_by",
    "open_project",
    "opened",
    "project_in",
]

ENTRY_POINTS = "fl_app.options"
VARIABLE = "FL_APP_PROJECT"
_COMPONENTS = ("clientapp", "serverapp")


@dataclass(frozen=True)
class Project:
    """A folder with options.

    Parameters
    ----------
    root : Path
        The folder, absolute.
    name : str
        The project's name.
    modules : tuple of str
        The modules of its components: the ClientApp's, then the ServerApp's.
    """

    root: Path
    name: str
    modules: tuple[str, ...]

    @property
    def conf(self) -> Path | None:
        """Its folder of YAML files, where it has one."""
        return found if (found := self.root / "conf").is_dir() else None


_project: Project | None = None


def opened() -> Project | None:
    """Return the project of this process."""
    return _project


def project_in(folder: str | Path, asked: bool = False) -> Project | None:
    """Read what project a folder is; nothing is imported.

    Parameters
    ----------
    folder : path
        Any folder.
    asked : bool, default False
        Whether somebody says that it is one.

    Returns
    -------
    Project or None
        None where its ``pyproject.toml`` has no table ``[tool.fl_app]``, or there is none.

    Raises
    ------
    ConfigError
        If it is not what is asked for, or has the table and not both components.
    """
    root = Path(folder).expanduser().absolute()
    allowed = "a folder whose pyproject.toml has [tool.flwr.app.components] and [tool.fl_app]"
    try:
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
        tables = _tables(text) if "[tool.fl_app" in text else {}
    except (OSError, ValueError) as error:
        if not asked:
            return None
        raise ConfigError("--app", root, f"{allowed} ({one_line(error)})") from None
    tool = tables.get("tool", {})
    if "fl_app" not in tool:
        if asked:
            raise ConfigError("--app", root, allowed)
        return None
    components = tool.get("flwr", {}).get("app", {}).get("components", {})
    modules = tuple(str(components.get(key, "")).partition(":")[0] for key in _COMPONENTS)
    if not all(modules):
        raise ConfigError("--app", root, f"{allowed}; of its components {_COMPONENTS} one is none")
    return Project(root, str(tables.get("project", {}).get("name", root.name)), modules)


def _tables(text: str) -> dict[str, Any]:
    import tomllib  # which most folders need not

    return tomllib.loads(text)


def open_project(project: Project | None) -> None:
    """Import the modules of a project's components, here and in processes started from here.

    Parameters
    ----------
    project : Project or None
        None: there is no project.

    Raises
    ------
    ConfigError
        If one of them cannot be imported, with file and line; or if another module has its name.
    """
    global _project
    _project = project
    os.environ.pop(VARIABLE, None)
    if project is not None:
        os.environ[VARIABLE] = str(project.root)
        for name in project.modules:
            _take(project, name)


def find_project() -> Project | None:
    """Return the project that this process has been started in; nothing is imported.

    Flower puts an app's folder on the path of the processes that it starts.
    """
    global _project
    if _project is None:
        roots = [os.environ[VARIABLE]] if VARIABLE in os.environ else [p for p in sys.path if p]
        _project = next(filter(None, map(project_in, roots)), None)
    return _project


def _take(project: Project, name: str) -> None:
    """Import one of a project's own modules."""
    if str(project.root) not in sys.path:
        sys.path.insert(0, str(project.root))
    file = Path(_imported(name, "--app", str(project.root)).__file__ or "").resolve()
    if project.root.resolve() not in file.parents and not _is_ours(name):
        raise ConfigError("--app", project.root, f"{name} to be a module of it, not {file}")


def look_for(group: str, name: str) -> type[Any] | None:
    """Return an option by name, wherever it is; None where nobody has it.

    Raises
    ------
    ConfigError
        If a module that might have it cannot be imported.
    """
    options = GROUPS[group]
    if name not in options and (_project is not None or VARIABLE in os.environ):
        project = find_project()
        for module in project.modules if project else ():
            if name not in options:  # a client can mostly do without the ServerApp's
                _take(cast(Project, project), module)
    if name not in options:
        load_installed()
    return options.get(name)


@cache
def load_installed() -> None:
    """Import what installed distributions name as options.

    Raises
    ------
    ConfigError
        If one cannot be imported, with file and line.
    """
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda e: (_owner(e), e.name)):
        _imported(entry.module, f"entry point {entry.name}", _owner(entry))


def foreign_options() -> Iterator[tuple[str, str, type[Any]]]:
    """Yield group, name and class of every option that is known and not of this package."""
    for group, options in GROUPS.items():
        for name, option in options.items():
            if any(not _is_ours(module) for module in modules_of(option)):
                yield group, name, option


def offered_by(option: type[Any]) -> str:
    """Return whom an option is from: ``fl_app``, the project's name, or a distribution's."""
    module = option.__module__
    if _is_ours(module):
        return "fl_app"
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "").resolve()
    if _project is not None and _project.root.resolve() in file.parents:
        return f"{_project.name} ({_project.root})"
    top = module.partition(".")[0]
    own = {_owner(e) for e in entry_points(group=ENTRY_POINTS) if e.module.split(".")[0] == top}
    return ", ".join(sorted(own)) or module


def _owner(entry: EntryPoint) -> str:
    return "" if entry.dist is None else str(entry.dist.name)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "fl_app"


def _imported(name: str, field: str, value: str) -> ModuleType:
    """Import a module of somebody else's; say where it fails."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        allowed = f"modules that can be imported; {_place(error)}{one_line(error)}"
        raise ConfigError(field, value, allowed) from error


def _place(error: BaseException) -> str:
    """Say in which file and line of somebody else's an exception began."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).resolve().parents[1]
    own = [f for f in frames if not f.filename.startswith("<") and _is_outside(f.filename, here)]
    return f"{own[-1].filename}:{own[-1].lineno}: " if own else ""


def _is_outside(file: str, here: Path) -> bool:
    return here not in Path(file).resolve().parents and Path(file) != Path(importlib.__file__)


# ---------------------------------------------------------------------------- the code of options
def digest_of(options: Mapping[str, str]) -> str:
    """Return the SHA-256 of the modules that others have registered some options in.

    With the modules of the same package, or of the project, that these import; "" where all of the
    options are this package's.

    Parameters
    ----------
    options : mapping of str to str
        Names by group.

    Raises
    ------
    LookupError
        For an option that is not known here, ``GROUP=NAME``.
    """
    names: set[str] = set()
    for group, name in options.items():
        option = look_for(group, name)
        if option is None:
            raise LookupError(f"{group}={name}")
        names |= {module for module in modules_of(option) if not _is_ours(module)}
    if not names:
        return ""
    state = hashlib.sha256()
    for name, file in sorted(_closure(names).items()):
        state.update(name.encode())
        state.update(file.read_bytes())
    return state.hexdigest()


def _closure(names: Iterable[str]) -> dict[str, Path]:
    """Return modules and what beside them they import, with their files; nothing is imported."""
    found: dict[str, Path] = {}
    for start in names:
        file = Path(getattr(sys.modules[start], "__file__", None) or "").resolve()
        base = file.parents[start.count(".") + (file.name == "__init__.py")]
        is_open = any(map(project_in, (base, base.parent)))
        top, waiting = start.partition(".")[0], [start]
        while waiting:
            name = waiting.pop()
            at = _file_at(base, name) if is_open or name.partition(".")[0] == top else None
            if at is None or name in found:
                continue
            found[name] = at
            parent = name.rpartition(".")[0]
            waiting += [parent, *_imports(at, name if at.name == "__init__.py" else parent)]
    return found


def _file_at(base: Path, name: str) -> Path | None:
    """Return the file of a module below a folder of the path, if it is there."""
    stem = base.joinpath(*name.split("."))
    files = (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")
    return next((file for file in files if name and file.is_file()), None)


def _imports(file: Path, package: str) -> Iterator[str]:
    """Yield the names of what a file may import, wherever in it."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parents = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
