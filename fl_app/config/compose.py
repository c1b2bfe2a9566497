"""Composes a config with Hydra and hands it over typed.

Only this file, ``config.site`` and ``cli.run`` know Hydra.

References
----------
Hydra, compose API: https://hydra.cc/docs/advanced/compose_api/
"""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

import fl_app
from fl_app.config.checking import having, who_has
from fl_app.config.plugins import foreign_options, look_for, opened
from fl_app.config.schema import GROUPS, SECTIONS, Config, objective_of
from fl_app.config.serialization import effective, from_dict, to_dict
from fl_app.config.site import named, settings, site_text
from fl_app.config.strategy_options import BASE_MODELS
from fl_app.errors import ConfigError

__all__ = [
    "Sweep",
    "check_sweep",
    "compose_config",
    "config_dir",
    "explain",
    "heeded",
    "offer",
    "searched",
    "typed",
    "unescaped",
]

HydraErrors = (HydraException, OmegaConfBaseException)
_BUNDLES = ("experiment", "method", "sweep")
"""Groups of files that set keys of the others, and are no part of a config."""

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
    own = Path() if project is None or project.conf is None else project.conf
    for group, name, option in foreign_options():
        if not (own / group / f"{name}.yaml").is_file():
            ConfigStore.instance().store(name=name, node=to_dict(option()), group=group)
    if project is not None:
        Plugins.instance().register(ProjectConf)


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
    offer(overrides)
    with _composing, _own_hydra():
        try:
            composed = compose("config", overrides=list(overrides), return_hydra_config=True)
        # Hydra raises a bare ValueError where a group's value is no name (``dataset=null``).
        except (*HydraErrors, ValueError) as error:
            raise explain(error, overrides) from None
    if composed.hydra.mode == RunMode.MULTIRUN:
        raise ConfigError("hydra.mode", "MULTIRUN", "one run; a sweep needs fl-app --multirun")
    return typed(_without_hydra(composed), overrides)


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
    overrides : tuple of str
        What Hydra is to be given: as typed, but ``++strategy.eta`` where some only of the swept
        strategies have ``eta``.
    """

    keys: tuple[str, ...] = ()
    same: Mapping[int, int] = field(default_factory=dict)
    overrides: tuple[str, ...] = field(default=(), compare=False)


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
    offer(overrides)
    with _composing, _own_hydra():
        try:
            parsed = _parse(overrides)
            plain = [o for o in parsed if not o.is_sweep_override()]
            # What only some options have can be composed when it is known which are swept.
            whole = _composed([o for o in plain if not _is_partial(o)])
            if not multirun and whole.hydra.mode != RunMode.MULTIRUN:
                return Sweep(overrides=tuple(overrides))
            sweeper = whole.hydra.sweeper
            params = _parse([f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()])
            swept = {o.get_key_element() for o in [*params, *parsed] if o.is_sweep_override()}
            forced = [o for o in parsed if _is_partial(o) and {"method", _parts(o)[0]} & swept]
            lines = [f"++{o.input_line}" if o in forced else o.input_line or "" for o in parsed]
            parsed = _parse(lines)
            # As the sweeper does: what was typed takes the place of what is given.
            given = [*params, *parsed]
            last = {o.get_key_element(): o for o in given}
            keys = tuple(key for key, o in last.items() if o.is_sweep_override())
            if sweeper._target_ == _BASIC:
                same = _check_jobs(BasicSweeper.split_arguments(given, None)[0], whole, parsed)
            else:
                whole = _composed([o for o in parsed if not o.is_sweep_override()])
                _check_drawn(typed(_without_hydra(whole), _unforced(lines)), sweeper)
                same = {}
        except (*HydraErrors, ValueError) as error:
            raise explain(error, overrides) from None
    return Sweep(keys, same, tuple(lines))


def searched(overrides: Sequence[str], folder: str | None) -> list[str]:
    """Return overrides that look for configs in a folder too, as ``--config-dir`` does."""
    if folder is None:
        return list(overrides)
    key = "hydra.searchpath"
    typed_ = [o for o in overrides if o.startswith(f"{key}=")]
    paths = [path for o in _parse(typed_) for path in cast(list[str], o.value())]
    paths.append(f"file://{Path(folder).absolute()}")
    shown = ",".join(f"'{path}'" for path in paths)
    return [*(o for o in overrides if o not in typed_), f"{key}=[{shown}]"]


def _parse(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _composed(overrides: Sequence[Override]) -> DictConfig:
    lines = [o.input_line or "" for o in overrides]
    return compose("config", overrides=lines, return_hydra_config=True)


def _parts(override: Override) -> tuple[str, str]:
    group, _, option = override.key_or_group.partition(".")
    return group, option


def _is_partial(override: Override) -> bool:
    """Return whether some options only of a group have the key that is set as it stands."""
    found = having(*_parts(override))
    special = override.is_add() or override.is_force_add() or override.is_delete()
    return bool(found) and len(found) < len(GROUPS[_parts(override)[0]]) and not special


def _check_jobs(
    jobs: Sequence[Sequence[str]], whole: DictConfig, overrides: Sequence[Override]
) -> dict[int, int]:
    """Check each job, and that each key is one of some job; return which are the same run."""
    first: dict[frozenset[tuple[str, str]], int] = {}
    same: dict[int, int] = {}
    forced = [o for o in overrides if o.is_force_add() and having(*_parts(o))]
    unheeded = {o.key_or_group: o for o in forced}
    for number, job in enumerate(jobs):
        _pretend(whole, number)
        config = _check_job(tuple(job))
        for key in [key for key in unheeded if _has(config, key)]:
            del unheeded[key]
        run = frozenset(effective(config).items())
        if first.setdefault(run, number) != number:
            same[number] = first[run]
    for key, override in unheeded.items():
        group, option = _parts(override)
        value = (override.input_line or "").partition("=")[2]
        allowed = f"a key of an option of {group} that is swept over; {who_has(group, option)}"
        raise ConfigError(key, value, allowed)
    return same


def _has(config: Config, key: str) -> bool:
    group, _, option = key.partition(".")
    return hasattr(getattr(config, group), option)


def _pretend(whole: DictConfig, number: int) -> None:
    """Give ``${hydra:…}`` what a job will find there, as far as it is known before it starts."""
    with read_write(whole.hydra):
        whole.hydra.job.num, whole.hydra.job.id = number, str(number)
        whole.hydra.runtime.output_dir = str(Path(whole.hydra.sweep.dir, str(number)).absolute())
    HydraConfig.instance().set_config(whole)


def _check_drawn(config: Config, sweeper: DictConfig) -> None:
    """Check that trials will have a value to be chosen by, and that the best is looked for."""
    from fl_app.models.directions import higher_is_better

    objective = objective_of(config)
    none = {"dataset.val_fraction": config.dataset.val_fraction}
    none |= {"fraction_evaluate": config.fraction_evaluate}
    for key, value in none.items():
        if objective.startswith("eval/") and not value:
            allowed = f"more than 0, or objective=train/...: there is no {objective} to choose by"
            raise ConfigError(key, f"{value:g}", allowed)
    direction = sweeper.get("direction")
    best = "maximize" if higher_is_better(objective) else "minimize"
    if direction is not None and str(getattr(direction, "name", direction)) != best:
        shown = str(getattr(direction, "name", direction))
        raise ConfigError("hydra.sweeper.direction", shown, f"{best} for objective={objective}")


def _unforced(overrides: Sequence[str]) -> list[str]:
    return [o for o in overrides if not o.startswith("++")]


def heeded(overrides: Sequence[str], config: Config) -> tuple[list[str], list[str]]:
    """Return the overrides of a sweep's job as a single run has them, and keys that it has not."""
    forced = [o for o in overrides if o.startswith("++")]
    keys = {o: o.lstrip("+").partition("=")[0] for o in forced}
    lacking = [o for o in forced if "." in keys[o] and not _has(config, keys[o])]
    kept = [o.removeprefix("++") for o in overrides if o not in lacking]
    return kept, [keys[o] for o in lacking]


_BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


def _check_job(overrides: tuple[str, ...]) -> Config:
    """Compose a job's groups, which are few, and set its values on a copy, which is fast."""
    chosen = tuple(o for o in overrides if _is_choice(o) or o.startswith("hydra.searchpath="))
    values = [o for o in overrides if not _is_choice(o) and not o.startswith("hydra.")]
    config = _chosen(chosen, site_text()).copy()
    try:
        for override in _parse(values):
            key, value = override.key_or_group, override.value()
            OmegaConf.update(config, key, value, force_add=override.is_force_add())
    except (*HydraErrors, ValueError, KeyError):
        # What is no plain value of a known key is for Hydra to compose, or to refuse.
        config = compose("config", overrides=list(overrides))
    try:
        return typed(config, _unforced(overrides))
    except ConfigError as error:
        raise ConfigError(
            error.field, error.value, f"{error.allowed}{_in_job(overrides)}"
        ) from None


def _in_job(overrides: Sequence[str]) -> str:
    return f" (job {' '.join(unescaped(o.removeprefix('++')) for o in overrides)})"


def _is_choice(override: str) -> bool:
    """Return whether an override chooses an option of a group."""
    key = override.partition("=")[0].lstrip("+~").partition("@")[0]
    return key in {*GROUPS, *_BUNDLES} or "/" in key


@lru_cache(maxsize=64)
def _chosen(choices: tuple[str, ...], site: str) -> DictConfig:
    return compose("config", overrides=list(choices))


def _without_hydra(composed: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Leave the Hydra application around a run, where there is one, as it was."""
    outer, outer_config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer
        HydraConfig.instance().cfg = outer_config


def typed(composed: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """Return a composed config as the checked, frozen :class:`~fl_app.config.schema.Config`.

    Parameters
    ----------
    composed : DictConfig
        From Hydra, without its own keys.
    overrides : sequence of str
        What was typed. Where that chooses a group's option, what a file set for another option of
        the group (``partitioner.alpha``) is left out; what was typed itself never is.

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
    kept = {str(key): value for key, value in data.items() if key not in _BUNDLES}
    for group in GROUPS:
        if isinstance(own := kept.get(group), Mapping):
            # What a site sets is for the options that have it, whoever chose this one.
            chosen = {"method", group} & keys
            kept[group] = _of_option(group, own, keys, None if chosen else settings())
    try:
        return from_dict(kept)
    except ConfigError as error:
        raise named(error, overrides) from None


def _of_option(
    group: str, own: Mapping[Any, Any], keys: Collection[str], loose: Collection[str] | None
) -> dict[Any, Any]:
    """Return a group's values without those, of `loose` if given, that only other options have."""
    name = own.get("name")
    return {
        key: value
        for key, value in own.items()
        if (dotted := f"{group}.{key}") in keys
        or (loose is not None and dotted not in loose)
        or not (found := having(group, str(key)))
        or name in found
    }


def _unresolved(composed: DictConfig, error: OmegaConfBaseException) -> ConfigError:
    key = str(error.full_key or "")
    value: Any = OmegaConf.to_container(composed, resolve=False)
    for part in key.split(".") if key else ():
        value = value.get(part) if isinstance(value, Mapping) else None
    why = str(error).splitlines()[0].partition("while resolving interpolation: ")
    return ConfigError(key or "config", value, f"a value that resolves ({why[2] or why[0]})")


_PLUGINS = ("joblib", "optuna", "submitit_local", "submitit_slurm")
"""Launchers and sweepers of the extra ``sweep``."""


def explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Say Hydra's error in one line: the key, the value, what is allowed."""
    return named(_explained(error, overrides), overrides)


def _explained(error: Exception, overrides: Sequence[str]) -> ConfigError:
    text = str(error)
    if isinstance(error, MissingConfigException) and (
        found := re.search(r"Could not find '(?:.*/)?([^/']+)/([^/']*)'", text)
    ):
        listed = text.partition("Available options in")[2].partition("Config search path")[0]
        allowed = ", ".join(line.strip() for line in listed.split("\n")[1:] if line.strip())
        if f"'hydra/{found[1]}/" in text:
            extra = "its plugin is missing: pip install 'fl-app[sweep]'"
            told = extra if found[2] in _PLUGINS else f"one of {allowed}"
            return ConfigError(f"hydra/{found[1]}", found[2], told)
        if found[1] == "model" and found[2] in BASE_MODELS:
            allowed += "; scikit-learn's estimators are base models of strategy=fedstacking: "
            allowed += f"strategy.base_models=[{found[2]}]"
        return ConfigError(found[1], found[2], f"one of {allowed}")
    if isinstance(error, OverrideParseException):
        return ConfigError("override", error.override, f"KEY=VALUE{_quoting(error.override)}")
    if isinstance(error, ConfigCompositionException):
        return _explain_key(f"{text}\n{error.__cause__ or ''}", overrides)
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        return _explain_choice(text, overrides)
    return ConfigError("config", _line(error), "a config that Hydra can compose")


def _explain_choice(text: str, overrides: Sequence[str]) -> ConfigError:
    """Explain a group's value that is not the name of an option."""
    for key, _, value in (o.partition("=") for o in overrides):
        if key.lstrip("+") in GROUPS and value.lower() == "null":
            return ConfigError(key, value, f"one of {', '.join(sorted(GROUPS[key.lstrip('+')]))}")
        if key in _BUNDLES and value.lower() == "null":
            return ConfigError(key, value, f"the name of a file of conf/{key}; none: leave it out")
    return ConfigError("override", " ".join(overrides), f"GROUP=NAME ({' '.join(text.split())})")


def _explain_key(text: str, overrides: Sequence[str]) -> ConfigError:
    """Explain an override of a key that does not exist, by asking the schema for its word."""
    sweep = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^'=]*)=([^']*)'", text)
    if sweep:
        return ConfigError(sweep[1], sweep[2], "one value; a sweep needs fl-app --multirun")
    if found := re.search(r"Multiple values for (\S+)\. To override", text):
        return ConfigError(found[1], _value(found[1], overrides), "it without +, once")
    if found := re.search(r"Error merging override (\S+?)=(.*)", text):
        why = " ".join(text.partition("\n")[2].partition("full_key")[0].split())
        return ConfigError(found[1].lstrip("+"), found[2], why or "a value that Hydra takes")
    found = re.search(r"Could not override '([^']+)'", text)
    if not found:
        return ConfigError("override", " ".join(text.split()), "an override that Hydra can apply")
    key = found[1].partition("@")[0]
    value = _value(key, overrides)
    if key.startswith("hydra."):
        return ConfigError(key, value, "a key of Hydra's own: fl-app --cfg hydra shows them")
    group, _, option = key.partition(".")
    try:
        if option and group in GROUPS:
            chosen = _value(group, overrides).split(",")[0]
            name = chosen if chosen in GROUPS[group] else next(iter(GROUPS[group]))
            from_dict({group: {"name": name, option: value}})
        elif option and group in SECTIONS:
            from_dict({group: {option: value}})
        else:
            from_dict({key: value})
    except ConfigError as error:
        return error
    return ConfigError(key, value, "a key of the chosen option; see fl-app --cfg job")


def _value(key: str, overrides: Sequence[str]) -> str:
    """Return what was typed last for a key."""
    values = [o.partition("=")[2] for o in overrides if o.partition("=")[0].lstrip("+") == key]
    return values[-1] if values else ""


def _quoting(override: str) -> str:
    """Say how an override that Hydra cannot read is quoted, where that helps."""
    key, equals, value = override.partition("=")
    is_list = value[:1] + value[-1:] == "[]"
    names = value[1:-1].split(",") if is_list else [value]
    shown = ",".join(f'"{name.strip()}"' for name in names)
    quoted = f"{key}=[{shown}]" if is_list else f"{key}={shown}"
    try:
        if not equals or "${" in value or not _parse([quoted]):
            return ""
    except HydraException:
        return ""
    return f"; brackets, blanks and signs stand in quotation marks: {shlex.quote(quoted)}"


def unescaped(override: str) -> str:
    """Return an override of a sweep's job as it is typed: Hydra escapes what stands in a value."""
    return re.sub(r"\\([\s,:=()\[\]{}])", r"\1", override)


def _line(error: Any) -> str:
    """Return an error's text in one line, without Hydra's link to its grammar."""
    return " ".join(str(error).split()).partition(" See https://hydra.cc")[0]
