"""Composes a config with Hydra and hands it over typed. Only this file and ``__main__`` know Hydra.

References
----------
Hydra, compose API: https://hydra.cc/docs/advanced/compose_api/
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl_app.errors import ConfigError
from fl_app.schema import BASE_MODELS, GROUPS, SECTIONS, Config, effective, from_dict

__all__ = ["Sweep", "check_sweep", "compose_config", "config_dir", "explain", "typed"]

HydraErrors = (HydraException, OmegaConfBaseException)

# GlobalHydra is one for the process: two threads that compose at a time would swap theirs.
_composing = threading.Lock()


def config_dir() -> Path:
    """Return the folder of the YAML files: beside the package, or inside an installed one.

    Never looked up from the working directory: Flower unpacks a bundle elsewhere.
    """
    beside = Path(__file__).parents[1] / "conf"
    return beside if beside.is_dir() else Path(__file__).parent / "conf"


def compose_config(overrides: Sequence[str]) -> Config:
    """Compose a config outside of ``fl-app``, as a ServerApp under ``flwr run`` does.

    Parameters
    ----------
    overrides : sequence of str
        Hydra overrides, for example ``["strategy=fedadam", "seed=3"]``.

    Raises
    ------
    ConfigError
        For every mistake in them.
    """
    with _composing, _own_hydra():
        try:
            composed = compose("config", overrides=list(overrides), return_hydra_config=True)
        # Hydra raises a bare ValueError where a group's value is no name (``dataset=null``).
        except (*HydraErrors, ValueError) as error:
            raise explain(error, overrides) from None
    if composed.hydra.mode == RunMode.MULTIRUN:
        raise ConfigError("hydra.mode", "MULTIRUN", "one run; a sweep needs fl-app --multirun")
    return typed(_without_hydra(composed))


@dataclass(frozen=True)
class Sweep:
    """What is known of a sweep before its first job.

    Parameters
    ----------
    keys : tuple of str
        The keys that are swept, none for a single run.
    same : mapping of int to int
        Number of a job that would be the same run as an earlier one -> number of the first such;
        empty where another sweeper than Hydra's basic one draws the values.
    """

    keys: tuple[str, ...] = ()
    same: Mapping[int, int] = field(default_factory=dict)


def check_sweep(overrides: Sequence[str], multirun: bool) -> Sweep:
    """Find a sweep's mistakes, and its jobs that are the same run, before the first one starts.

    Each distinct choice of groups is composed once; values are checked on top of it. Hydra's basic
    sweeper is looked through job by job, other sweepers draw their values themselves.

    Parameters
    ----------
    overrides : sequence of str
        As typed, those that sweep and those that do not.
    multirun : bool
        Whether ``--multirun`` was typed; an experiment may be a multirun by itself.

    Returns
    -------
    Sweep

    Raises
    ------
    ConfigError
        For the first job that cannot be.
    """
    with _composing, _own_hydra():
        try:
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
            whole = compose("config", overrides=fixed, return_hydra_config=True)
            if not multirun and whole.hydra.mode != RunMode.MULTIRUN:
                return Sweep()
            sweeper = whole.hydra.sweeper
            params = [f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()]
            # As the sweeper does: what was typed takes the place of what is given.
            given = [*OverridesParser.create().parse_overrides(params), *parsed]
            last = {o.get_key_element(): o for o in given}
            swept = tuple(key for key, o in last.items() if o.is_sweep_override())
            same: dict[int, int] = {}
            if sweeper._target_ == _BASIC:
                first: dict[frozenset[tuple[str, str]], int] = {}
                for number, job in enumerate(BasicSweeper.split_arguments(given, None)[0]):
                    run = frozenset(effective(_check_job(tuple(job))).items())
                    if first.setdefault(run, number) != number:
                        same[number] = first[run]
            else:
                typed(_without_hydra(whole))
        except (*HydraErrors, ValueError) as error:
            raise explain(error, overrides) from None
    return Sweep(swept, same)


_BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


def _check_job(overrides: tuple[str, ...]) -> Config:
    """Compose a job's groups, which are few, and set its values on a copy, which is fast."""
    chosen = tuple(o for o in overrides if _is_choice(o))
    values = [o for o in overrides if not _is_choice(o) and not o.startswith("hydra.")]
    config = _chosen(chosen).copy()
    try:
        for override in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(config, override.key_or_group, override.value())
    except (*HydraErrors, ValueError, KeyError):
        # What is no plain value of a known key is for Hydra to compose, or to refuse.
        config = compose("config", overrides=list(overrides))
    try:
        return typed(config)
    except ConfigError as error:
        raise ConfigError(
            error.field, error.value, f"{error.allowed}{_in_job(overrides)}"
        ) from None


def _in_job(overrides: Sequence[str]) -> str:
    return f" (job {' '.join(overrides)})"


def _is_choice(override: str) -> bool:
    """Return whether an override chooses an option of a group."""
    key = override.partition("=")[0].lstrip("+~").partition("@")[0]
    return key in {*GROUPS, "experiment", "method", "sweep"} or "/" in key


@lru_cache(maxsize=64)
def _chosen(choices: tuple[str, ...]) -> DictConfig:
    return compose("config", overrides=list(choices))


def _without_hydra(composed: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Leave the Hydra application around a run, where there is one, as it was."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def typed(composed: DictConfig) -> Config:
    """Return a composed config as the checked, frozen :class:`~fl_app.schema.Config`.

    Raises
    ------
    ConfigError
        For a value that the schema does not allow.
    """
    try:
        data = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError("config", _line(error), "keys that resolve") from None
    if not isinstance(data, Mapping):
        raise ConfigError("config", data, "a mapping")
    words = ("experiment", "method", "sweep")
    return from_dict({str(key): value for key, value in data.items() if key not in words})


_PLUGINS = ("joblib", "optuna", "submitit_local", "submitit_slurm")
"""Launchers and sweepers of the extra ``sweep``."""


def explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Say Hydra's error in one line: the key, the value, what is allowed."""
    text = str(error)
    if isinstance(error, MissingConfigException) and (
        found := re.search(r"Could not find '(?:.*/)?([^/']+)/([^/']*)'", text)
    ):
        listed = text.partition("Available options in")[2].partition("Config search path")[0]
        allowed = ", ".join(line.strip() for line in listed.split("\n")[1:] if line.strip())
        if "hydra/" in text and found[2] in _PLUGINS:
            extra = "its plugin is missing: pip install 'fl-app[sweep]'"
            return ConfigError(f"hydra/{found[1]}", found[2], extra)
        if found[1] == "model" and found[2] in BASE_MODELS:
            allowed += "; scikit-learn's estimators are base models of strategy=fedstacking: "
            allowed += f"strategy.base_models=[{found[2]}]"
        return ConfigError(found[1], found[2], f"one of {allowed}")
    if isinstance(error, OverrideParseException):
        return ConfigError("override", error.override, f"KEY=VALUE ({_line(error)})")
    if isinstance(error, ConfigCompositionException):
        return _explain_key(text, overrides)
    if isinstance(error, ValueError):
        return _explain_choice(text, overrides)
    return ConfigError("config", _line(error), "a config that Hydra can compose")


def _explain_choice(text: str, overrides: Sequence[str]) -> ConfigError:
    """Explain a group's value that is not the name of an option."""
    for key, _, value in (o.partition("=") for o in overrides):
        if key.lstrip("+") in GROUPS and value.lower() == "null":
            return ConfigError(key, value, f"one of {', '.join(sorted(GROUPS[key.lstrip('+')]))}")
    return ConfigError("override", " ".join(overrides), f"GROUP=NAME ({' '.join(text.split())})")


def _explain_key(text: str, overrides: Sequence[str]) -> ConfigError:
    """Explain an override of a key that does not exist, by asking the schema for its word."""
    sweep = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^'=]*)=([^']*)'", text)
    if sweep:
        return ConfigError(sweep[1], sweep[2], "one value; a sweep needs fl-app --multirun")
    found = re.search(r"Could not override '([^']+)'", text)
    if not found:
        return ConfigError("override", " ".join(text.split()), "an override that Hydra can apply")
    key = found[1].partition("@")[0]
    value = next((o.partition("=")[2] for o in overrides if o.split("=")[0] == key), "")
    group, _, option = key.partition(".")
    try:
        if option and group in GROUPS:
            chosen = dict(o.split("=", 1) for o in overrides if "=" in o).get(group)
            name = chosen or next(iter(GROUPS[group]))
            from_dict({group: {"name": name, option: value}})
        elif option and group in SECTIONS:
            from_dict({group: {option: value}})
        else:
            from_dict({key: value})
    except ConfigError as error:
        return error
    return ConfigError(key, value, "a key of the chosen option; see fl-app --cfg job")


def _line(error: Any) -> str:
    """Return an error's text in one line, without Hydra's link to its grammar."""
    return " ".join(str(error).split()).partition(" See https://hydra.cc")[0]
