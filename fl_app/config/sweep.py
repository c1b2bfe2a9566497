"""A sweep's mistakes, and its jobs that are the same run, before the first one starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from fl_app.config.checking import having, who_has
from fl_app.config.compose import offer, own_hydra, typed, without_hydra
from fl_app.config.hydra_errors import HydraErrors, explain, parse_overrides
from fl_app.config.schema import BUNDLES, GROUPS, LAST, Config, objective_of
from fl_app.config.serialization import digest, effective
from fl_app.config.site import site_text
from fl_app.errors import ConfigError

__all__ = ["Sweep", "check_sweep", "heeded", "unescaped"]

_BASIC = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


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
    resumed : tuple of str
        Digests of the jobs' configs, where ``resume=last`` looks for runs of them.
    """

    keys: tuple[str, ...] = ()
    same: Mapping[int, int] = field(default_factory=dict)
    overrides: tuple[str, ...] = field(default=(), compare=False)
    resumed: tuple[str, ...] = ()


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
    with own_hydra():
        try:
            parsed = parse_overrides(overrides)
            plain = [o for o in parsed if not o.is_sweep_override()]
            # What only some options have can be composed when it is known which are swept.
            whole = _composed([o for o in plain if not _is_partial(o)])
            if not multirun and whole.hydra.mode != RunMode.MULTIRUN:
                return Sweep(overrides=tuple(overrides))
            sweeper = whole.hydra.sweeper
            params = parse_overrides([f"{k}={v}" for k, v in (sweeper.get("params") or {}).items()])
            swept = {o.get_key_element() for o in [*params, *parsed] if o.is_sweep_override()}
            forced = [o for o in parsed if _is_partial(o) and {"method", _parts(o)[0]} & swept]
            lines = [f"++{o.input_line}" if o in forced else o.input_line or "" for o in parsed]
            parsed = parse_overrides(lines)
            # As the sweeper does: what was typed takes the place of what is given.
            given = [*params, *parsed]
            last = {o.get_key_element(): o for o in given}
            keys = tuple(key for key, o in last.items() if o.is_sweep_override())
            if sweeper._target_ == _BASIC:
                jobs = BasicSweeper.split_arguments(given, None)[0]
                same, resumed = _check_jobs(jobs, whole, parsed)
            else:
                whole = _composed([o for o in parsed if not o.is_sweep_override()])
                _check_drawn(typed(without_hydra(whole), _unforced(lines)), sweeper)
                same, resumed = {}, ()
        except (*HydraErrors, ValueError) as error:
            raise explain(error, overrides) from None
    return Sweep(keys, same, tuple(lines), resumed)


def _composed(overrides: Sequence[Override]) -> DictConfig:
    lines = [o.input_line or "" for o in overrides]
    return compose("config", overrides=lines, return_hydra_config=True)


def _parts(override: Override) -> tuple[str, str]:
    group, _, option = override.key_or_group.partition(".")
    return group, option


def _is_partial(override: Override) -> bool:
    """Return whether some options only of a group have the key that is set as it stands."""
    options = having(*_parts(override))
    special = override.is_add() or override.is_force_add() or override.is_delete()
    return bool(options) and len(options) < len(GROUPS[_parts(override)[0]]) and not special


def _check_jobs(
    jobs: Sequence[Sequence[str]], whole: DictConfig, overrides: Sequence[Override]
) -> tuple[dict[int, int], tuple[str, ...]]:
    """Check each job, and that each key is one of some job.

    Returns which are the same run, and the digests of those that may go on with another one.
    """
    first: dict[frozenset[tuple[str, str]], int] = {}
    same: dict[int, int] = {}
    resumed: list[str] = []
    forced = [o for o in overrides if o.is_force_add() and having(*_parts(o))]
    unheeded = {o.key_or_group: o for o in forced}
    for number, job in enumerate(jobs):
        _pretend(whole, number)
        config = _check_job(tuple(job))
        for key in [key for key in unheeded if _has(config, key)]:
            del unheeded[key]
        if config.resume == LAST:
            resumed.append(digest(config))
        run = frozenset(effective(config).items())
        if first.setdefault(run, number) != number:
            same[number] = first[run]
    for key, override in unheeded.items():
        group, option = _parts(override)
        value = (override.input_line or "").partition("=")[2]
        allowed = f"a key of an option of {group} that is swept over; {who_has(group, option)}"
        raise ConfigError(key, value, allowed)
    return same, tuple(resumed)


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


def _check_job(overrides: tuple[str, ...]) -> Config:
    """Compose a job's groups, which are few, and set its values on a copy, which is fast."""
    chosen = tuple(o for o in overrides if _is_choice(o) or o.startswith("hydra.searchpath="))
    values = [o for o in overrides if not _is_choice(o) and not o.startswith("hydra.")]
    config = _chosen(chosen, site_text()).copy()
    try:
        for override in parse_overrides(values):
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
    return key in {*GROUPS, *BUNDLES} or "/" in key


@lru_cache(maxsize=64)
def _chosen(choices: tuple[str, ...], site: str) -> DictConfig:
    return compose("config", overrides=list(choices))


def unescaped(override: str) -> str:
    """Return an override of a sweep's job as it is typed: Hydra escapes what stands in a value."""
    return re.sub(r"\\([\s,:=()\[\]{}])", r"\1", override)
