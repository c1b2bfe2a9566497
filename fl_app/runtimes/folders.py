"""Runs any Flower app, a folder with a ``pyproject.toml``, in this process.

References
----------
Flower, the app's folder: https://flower.ai/docs/framework/how-to-configure-pyproject-toml.html
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, cast

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.common.config import get_fused_config_from_dir, get_project_config, parse_config_args
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from flwr.supercore.object_ref import load_app

from fl_app.errors import FlAppError, InputError, RunError, one_line
from fl_app.grid import InProcessGrid, has_main, run_in_process
from fl_app.tracking import MlflowTracker, TrackedStrategy

__all__ = ["run_folder"]

_PAIR = re.compile(r"""\S+?=('[^']*'|"[^"]*"|\S+)""")  # as Flower reads them
_APPS: Mapping[str, type] = {"serverapp": ServerApp, "clientapp": ClientApp}


def run_folder(
    folder: str | Path,
    num_supernodes: int,
    config: Sequence[str] = (),
    num_workers: int = 1,
    track: bool = False,
) -> str:
    """Run the Flower app of a folder in this process.

    Parameters
    ----------
    folder : path
        With the app's ``pyproject.toml``.
    num_supernodes, num_workers : int
        As in :class:`~fl_app.grid.InProcessGrid`.
    config : sequence of str
        As for ``flwr run -c``: ``key=value`` pairs in TOML, or one TOML file.
    track : bool, default False
        Whether to record each ``start`` of a strategy in MLflow, in an experiment named after the
        project.

    Returns
    -------
    str
        What came of it, one line.

    Raises
    ------
    InputError
        If the folder holds no app that can be run so, or an argument cannot be used; before any
        client is called.
    RunError
        If the ServerApp raised or left by ``sys.exit``; its traceback is on stderr. If no call of
        a client had a reply. If nothing was recorded where it was asked for.
    """
    path = Path(folder).expanduser().resolve()
    project, components = _project(path)
    run_config = _run_config(path, config)
    server_app, client_app = (_load(path, kind, components) for kind in _APPS)
    if track and not has_main(server_app):
        raise InputError(
            "--track", True, f"a strategy with start(): {path.name}'s ServerApp is old"
        )
    grids: list[InProcessGrid] = []

    def serve(grid: Grid, context: Context) -> None:
        grids.append(cast(InProcessGrid, grid))
        try:
            server_app(grid=grid, context=context)
        except FlAppError:
            raise
        except SystemExit as end:
            if end.code:
                raise RunError(f"the ServerApp left by sys.exit({end.code!r})") from None
        except Exception as error:
            traceback.print_exc()
            raise RunError(f"the ServerApp raised {one_line(error)}") from error

    run = partial(run_in_process, cast(ServerApp, serve), client_app)
    if not track:
        run(num_supernodes, run_config, num_workers=num_workers)
    else:
        with _tracked(project) as tracked:
            run(num_supernodes, run_config, num_workers=num_workers)
        if not tracked:
            raise RunError("--track: nothing was recorded, as the app started no strategy")
    (grid,) = grids
    if grid.num_failed and grid.num_failed == grid.num_replies:
        raise RunError(f"all {grid.num_failed} calls of clients failed; the log says why")
    return f"{project}: {grid.num_replies} replies of clients, {grid.num_failed} of them errors"


def _project(path: Path) -> tuple[str, Mapping[str, Any]]:
    """Return the project's name and the app's components."""
    try:
        config = get_project_config(path)
    except (OSError, ValueError) as error:
        raise InputError(
            "APP_DIR", path, f"the folder of a Flower app ({one_line(error)})"
        ) from None
    components = config["tool"]["flwr"]["app"]["components"]
    for kind in _APPS:
        if kind not in components:
            raise InputError("APP_DIR", path, f"an app with a {kind}; an agentapp has none")
    return str(config["project"]["name"]), components


def _run_config(path: Path, config: Sequence[str]) -> dict[str, Any]:
    """Return the app's run-config with the user's values."""
    for text in config:
        if not text.endswith(".toml") and _PAIR.sub("", text).strip():
            raise InputError(
                "-c", text, "key=value pairs in TOML, texts in quotes, or a .toml file"
            )
    try:
        return dict(get_fused_config_from_dir(path, parse_config_args([*config])))
    except (OSError, ValueError) as error:
        allowed = f"keys of [tool.flwr.app.config] with flat values ({one_line(error)})"
        raise InputError("-c", " ".join(config), allowed) from None


def _load(path: Path, kind: str, components: Mapping[str, Any]) -> Any:
    """Return one of the two apps."""
    reference, wanted = components[kind], _APPS[kind]
    try:
        app = load_app(reference, ValueError, path)
    except (Exception, SystemExit) as error:
        raise InputError(kind, reference, f"what can be imported ({one_line(error)})") from error
    if not isinstance(app, wanted):
        raise InputError(kind, reference, f"a {wanted.__name__}, not {type(app).__name__}")
    file = getattr(sys.modules[reference.partition(":")[0]], "__file__", None)
    if file is None or path not in Path(file).resolve().parents:
        raise InputError(kind, reference, f"a module of {path}; here it is that of {file}")
    return app


@contextmanager
def _tracked(experiment: str) -> Iterator[Mapping[int, Strategy]]:
    """Let every strategy that is started be observed; give those that were, by id."""
    found: dict[int, Strategy] = {}
    running: list[Strategy] = []

    def watched(start: Any) -> Any:
        @wraps(start)
        def observed(self: Strategy, *args: Any, **more: Any) -> Any:
            if running or isinstance(self, TrackedStrategy):  # a start inside a start, or the app's
                found.setdefault(id(self), self)
                return start(self, *args, **more)
            if id(self) not in found:
                # Kept, so that an app that starts it round by round has one record.
                tracker = MlflowTracker(experiment_name=experiment)
                found[id(self)] = TrackedStrategy(self, tracker)
            running.append(self)
            try:
                return found[id(self)].start(*args, **more)
            finally:
                running.pop()

        return observed

    originals = {one: vars(one)["start"] for one in _classes(Strategy) if "start" in vars(one)}
    for one, start in originals.items():
        setattr(one, "start", watched(start))  # noqa: B010
    try:
        yield found
    finally:
        for one, start in originals.items():
            setattr(one, "start", start)  # noqa: B010


def _classes(base: Any) -> Iterator[type]:
    yield base
    for derived in base.__subclasses__():
        if not issubclass(derived, TrackedStrategy):
            yield from _classes(derived)
