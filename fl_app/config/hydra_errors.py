"""Says Hydra's errors in one line: the key, the value, what is allowed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from fl_app.config.schema import BUNDLES, GROUPS, SECTIONS
from fl_app.config.serialization import from_dict
from fl_app.config.site import named
from fl_app.config.strategy_options import BASE_MODELS
from fl_app.errors import ConfigError

__all__ = ["HydraErrors", "explain", "parse_overrides"]

HydraErrors = (HydraException, OmegaConfBaseException)
_PLUGINS = ("joblib", "optuna", "submitit_local", "submitit_slurm")
"""Launchers and sweepers of the extra ``sweep``."""


def explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Say Hydra's error in one line: the key, the value, what is allowed."""
    return named(_explained(error, overrides), overrides)


def _explained(error: Exception, overrides: Sequence[str]) -> ConfigError:
    text = str(error)
    if isinstance(error, MissingConfigException) and (
        match := re.search(r"Could not find '(?:.*/)?([^/']+)/([^/']*)'", text)
    ):
        listed = text.partition("Available options in")[2].partition("Config search path")[0]
        allowed = ", ".join(line.strip() for line in listed.split("\n")[1:] if line.strip())
        if f"'hydra/{match[1]}/" in text:
            missing = "its plugin is missing: pip install 'fl-app[sweep]'"
            hint = missing if match[2] in _PLUGINS else f"one of {allowed}"
            return ConfigError(f"hydra/{match[1]}", match[2], hint)
        if match[1] == "model" and match[2] in BASE_MODELS:
            allowed += "; scikit-learn's estimators are base models of strategy=fedstacking: "
            allowed += f"strategy.base_models=[{match[2]}]"
        return ConfigError(match[1], match[2], f"one of {allowed}")
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
        if key in BUNDLES and value.lower() == "null":
            return ConfigError(key, value, f"the name of a file of conf/{key}; none: leave it out")
    return ConfigError("override", " ".join(overrides), f"GROUP=NAME ({' '.join(text.split())})")


def _explain_key(text: str, overrides: Sequence[str]) -> ConfigError:
    """Explain an override of a key that does not exist, by asking the schema for its word."""
    sweep = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^'=]*)=([^']*)'", text)
    if sweep:
        return ConfigError(sweep[1], sweep[2], "one value; a sweep needs fl-app --multirun")
    if match := re.search(r"Multiple values for (\S+)\. To override", text):
        return ConfigError(match[1], _value(match[1], overrides), "it without +, once")
    if match := re.search(r"Error merging override (\S+?)=(.*)", text):
        why = " ".join(text.partition("\n")[2].partition("full_key")[0].split())
        return ConfigError(match[1].lstrip("+"), match[2], why or "a value that Hydra takes")
    match = re.search(r"Could not override '([^']+)'", text)
    if not match:
        return ConfigError("override", " ".join(text.split()), "an override that Hydra can apply")
    key = match[1].partition("@")[0]
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
        if not equals or "${" in value or not parse_overrides([quoted]):
            return ""
    except HydraException:
        return ""
    return f"; brackets, blanks and signs stand in quotation marks: {shlex.quote(quoted)}"


def _line(error: Any) -> str:
    """Return an error's text in one line, without Hydra's link to its grammar."""
    return " ".join(str(error).split()).partition(" See https://hydra.cc")[0]


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Return overrides as Hydra reads them."""
    return OverridesParser.create().parse_overrides(list(overrides))
