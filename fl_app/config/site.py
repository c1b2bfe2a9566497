"""A site's own settings: ``FL_APP_HOME/conf/local/default.yaml``, for all runs of that home.

They come after ``conf/config.yaml`` and before ``experiment=``, ``method=``, ``sweep=`` and what is
typed, whoever composes: ``fl-app``, a ServerApp, a sweep's check, the live page.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from fl_app.config.checking import having
from fl_app.config.schema import GROUPS, SECTIONS, Config
from fl_app.errors import ConfigError
from fl_app.home import home_dir

__all__ = ["named", "settings", "site_file", "site_text"]

_ALSO = ("defaults", "hydra")


class SitePath(SearchPathPlugin):
    """Lets Hydra look into ``FL_APP_HOME/conf`` too, after everything else."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder, once the site's own settings in it are read and known."""
        settings()
        folder = home_dir() / "conf"
        if folder.is_dir():
            search_path.append("fl_app_home", f"file://{folder}")


Plugins.instance().register(SitePath)


def site_file() -> Path:
    """Return the file of the site's own settings, which need not exist."""
    return home_dir() / "conf" / "local" / "default.yaml"


def site_text() -> str:
    """Return what stands in the file; "" where there is none.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    try:
        return site_file().read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:
        raise ConfigError(str(site_file()), "unreadable", f"UTF-8 ({error})") from None


def settings() -> Collection[str]:
    """Return the keys that the site sets, dotted; a group alone where it chooses the option.

    Raises
    ------
    ConfigError
        If the file is no YAML of known keys.
    """
    text = site_text()
    return _keys(text, site_file()) if text else ()


@lru_cache(maxsize=1)
def _keys(text: str, file: Path) -> Collection[str]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        why = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(str(file), text, f"YAML ({why})") from None
    if not isinstance(data or {}, Mapping):
        raise ConfigError(str(file), data, "a mapping of keys to values")
    found: list[str] = []
    for key, value in (data or {}).items():
        if key == "defaults":
            found += _chosen(value, file)
        elif key in GROUPS or key in SECTIONS:
            found += _below(key, value, file)
        elif key not in {*(f.name for f in fields(Config)), *_ALSO}:
            raise _wrong(key, value, "no such key; docs/config.md has all", file)
        else:
            found.append(key)
    return frozenset(found)


def _chosen(value: Any, file: Path) -> list[str]:
    """Read the list of options that the site chooses."""
    items = value if isinstance(value, list) else [value]
    groups = []
    for item in items:
        name = str(next(iter(item))) if isinstance(item, Mapping) and item else ""
        group = name.removeprefix("override /")
        if group == name or not (group in GROUPS or group.startswith("hydra/")):
            told = f"a list of `override /GROUP: NAME`, GROUP one of {', '.join(GROUPS)}"
            raise _wrong("defaults", item, told, file)
        groups.append(group)
    return groups


def _below(group: str, value: Any, file: Path) -> list[str]:
    """Read the keys of a group, of any of its options, or of a section."""
    if not isinstance(value, Mapping) or (group in GROUPS and "name" in value):
        how = f"; an option is chosen by `defaults: [override /{group}: NAME]`"
        told = f"a mapping of its keys{how if group in GROUPS else ''}"
        raise _wrong(group, value, told, file)
    if group in GROUPS:
        strange = [key for key in value if not having(group, str(key))]
    else:
        strange = [*(value.keys() - {f.name for f in fields(SECTIONS[group])})]
    for key in strange:
        raise _wrong(f"{group}.{key}", value[key], "no such key; docs/config.md has all", file)
    return [f"{group}.{key}" for key in value]


def _wrong(key: str, value: Any, told: str, file: Path) -> ConfigError:
    return ConfigError(str(key), value, f"{told} ({file} sets it)")


def named(error: ConfigError, overrides: Iterable[str]) -> ConfigError:
    """Name the file in an error of a key that it sets and that was not typed."""
    key, text = error.field, str(error.value)
    if "'local/default'" in text:  # what stands below hydra, in Hydra's words
        why = text.partition("composing config: ")[2].partition(" full_key:")[0]
        return _wrong("hydra", yaml.safe_load(site_text()).get("hydra"), why or text, site_file())
    typed = {o.partition("=")[0].lstrip("+~") for o in overrides}
    ways = {key, key.removesuffix(".name")}
    if ways & typed or not ways & {*settings()}:
        return error
    return ConfigError(key, error.value, f"{error.allowed} ({site_file()} sets it)")
