"""Composes a config with Hydra and hands it over typed.

Beside it, ``config.sweep``, ``config.hydra_errors``, ``config.site`` and ``cli.run`` know Hydra.

References
----------
Hydra, compose API: https://hydra.cc/docs/advanced/compose_api/
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import fl_app
from fl_app.config.checking import having
from fl_app.config.hydra_errors import HydraErrors, explain, parse_overrides
from fl_app.config.options import DeploymentConfig
from fl_app.config.plugins import foreign_options, look_for, opened
from fl_app.config.schema import BUNDLES, GROUPS, Config
from fl_app.config.serialization import from_dict, to_dict
from fl_app.config.site import named, settings
from fl_app.errors import ConfigError

__all__ = [
    "compose_config",
    "config_dir",
    "offer",
    "own_hydra",
    "searched",
    "typed",
    "without_hydra",
]

# GlobalHydra is one for the process: two threads that compose at a time would swap theirs.
_composing = threading.Lock()


def config_dir() -> Path:
    """Return the folder of the YAML files: inside an installed package, or beside a source tree's.

    Never looked up from the working directory: Flower unpacks a bundle elsewhere. Inside first,
    as other packages may leave a ``conf`` beside an installed one.
    """
    package = Path(fl_app.__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


class ProjectConf(SearchPathPlugin):
    """Puts ``conf/`` of the open project on Hydra's search path, behind this package's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append it."""
        if (project := opened()) is not None and project.conf is not None:
            search_path.append("fl_app.project", f"file://{project.conf}")


def offer(overrides: Sequence[str]) -> None:
    """Let Hydra know the options of others: those that are imported, and those that are named.

    An option without a YAML file has its class's defaults.

    Parameters
    ----------
    overrides : sequence of str
        As typed.

    Raises
    ------
    ConfigError
        If a module that might have one cannot be imported.
    """
    for key, _, value in (o.partition("=") for o in overrides):
        if (group := key.lstrip("+")) in GROUPS:
            for name in re.findall(r"[\w-]+", value):
                look_for(group, name)
    project = opened()
    folder = Path() if project is None or project.conf is None else project.conf
    for group, name, option in foreign_options():
        if not (folder / group / f"{name}.yaml").is_file():
            ConfigStore.instance().store(name=name, node=to_dict(option()), group=group)
    if project is not None:
        Plugins.instance().register(ProjectConf)


def compose_config(overrides: Sequence[str], *, at_superlink: bool = False) -> Config:
    """Compose a config outside of ``fl-app``, as a ServerApp under ``flwr run`` does.

    Parameters
    ----------
    overrides : sequence of str
        Hydra overrides, for example ``["strategy=fedadam", "seed=3"]``.
    at_superlink : bool, default False
        Whether it is for a run that is at a SuperLink already, and so needs none of its own.

    Raises
    ------
    ConfigError
        For every mistake in them.
    """
    offer(overrides)
    with own_hydra():
        try:
            composed = compose("config", overrides=list(overrides), return_hydra_config=True)
        # Hydra raises a bare ValueError where a group's value is no name (``dataset=null``).
        except (*HydraErrors, ValueError) as error:
            raise explain(error, overrides) from None
    if composed.hydra.mode == RunMode.MULTIRUN:
        raise ConfigError("hydra.mode", "MULTIRUN", "one run; a sweep needs fl-app --multirun")
    return typed(without_hydra(composed), overrides, at_superlink=at_superlink)


def searched(overrides: Sequence[str], folder: str | None) -> list[str]:
    """Return overrides that look for configs in a folder too, as ``--config-dir`` does."""
    if folder is None:
        return list(overrides)
    key = "hydra.searchpath"
    typed_ = [o for o in overrides if o.startswith(f"{key}=")]
    paths = [path for o in parse_overrides(typed_) for path in cast(list[str], o.value())]
    paths.append(f"file://{Path(folder).absolute()}")
    shown = ",".join(f"'{path}'" for path in paths)
    return [*(o for o in overrides if o not in typed_), f"{key}=[{shown}]"]


def without_hydra(composed: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's own keys."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


@contextmanager
def own_hydra() -> Iterator[None]:
    """Leave the Hydra application around a run, where there is one, as it was."""
    with _composing:
        outer, outer_config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                yield
        finally:
            GlobalHydra.instance().hydra = outer
            HydraConfig.instance().cfg = outer_config


def typed(
    composed: DictConfig, overrides: Sequence[str] = (), *, at_superlink: bool = False
) -> Config:
    """Return a composed config as the checked, frozen :class:`~fl_app.config.schema.Config`.

    Parameters
    ----------
    composed : DictConfig
        From Hydra, without its own keys.
    overrides : sequence of str
        What was typed. Where that chooses a group's option, what a file set for another option of
        the group (``partitioner.alpha``) is left out; what was typed itself never is.
    at_superlink : bool, default False
        As of :func:`compose_config`.

    Raises
    ------
    ConfigError
        For a value that the schema does not allow.
    """
    try:
        data = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise named(_unresolved(composed, error), overrides) from None
    if not isinstance(data, Mapping):
        raise ConfigError("config", data, "a mapping")
    keys = {o.partition("=")[0].lstrip("+") for o in overrides}
    kept = {str(key): value for key, value in data.items() if key not in BUNDLES}
    for group in GROUPS:
        if isinstance(values := kept.get(group), Mapping):
            # What a site sets is for the options that have it, whoever chose this one.
            chosen = {"method", group} & keys
            kept[group] = _of_option(group, values, keys, None if chosen else settings())
    try:
        return from_dict(kept if at_superlink else _with_nodes(kept, keys))
    except ConfigError as error:
        raise named(error, overrides) from None


def _of_option(
    group: str, values: Mapping[Any, Any], keys: Collection[str], loose: Collection[str] | None
) -> dict[Any, Any]:
    """Return a group's values without those, of `loose` if given, that only other options have."""
    name = values.get("name")
    if isinstance(name, str):
        look_for(group, name)  # a process of joblib's does not know a project's options yet
    return {
        key: value
        for key, value in values.items()
        if (dotted := f"{group}.{key}") in keys
        or (loose is not None and dotted not in loose)
        or not (options := having(group, str(key)))
        or name in options
    }


def _with_nodes(data: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Say how many SuperNodes a run has that starts its own: so many clients, all waited for.

    A number that was typed, or that is no default, stays: the rules say whether it fits.
    """
    runtime = data.get("runtime")
    if not isinstance(runtime, Mapping) or runtime.get("name") != DeploymentConfig.name:
        return data
    nodes = DeploymentConfig.own_nodes if runtime.get("nodes") is None else runtime["nodes"]
    # What is no such number is refused with the other values of a wrong type.
    if runtime.get("superlink") is not None or type(nodes) is not int or nodes < 1:
        return data
    changed = {**data, "runtime": {**runtime, "nodes": nodes}}
    if data.get("num_clients") == Config.num_clients and "num_clients" not in keys:
        changed["num_clients"] = nodes
    waits = "runtime.wait_for_nodes"
    if runtime.get("wait_for_nodes") == DeploymentConfig.wait_for_nodes and waits not in keys:
        changed["runtime"]["wait_for_nodes"] = nodes
    return changed


def _unresolved(composed: DictConfig, error: OmegaConfBaseException) -> ConfigError:
    key = str(error.full_key or "")
    value: Any = OmegaConf.to_container(composed, resolve=False)
    for part in key.split(".") if key else ():
        value = value.get(part) if isinstance(value, Mapping) else None
    why = str(error).splitlines()[0].partition("while resolving interpolation: ")
    return ConfigError(key or "config", value, f"a value that resolves ({why[2] or why[0]})")
