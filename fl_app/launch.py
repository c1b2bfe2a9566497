"""How a run is asked for: from our launcher as one JSON text, or from Flower's run-config.

Flower hands a ServerApp a flat run-config. Our launcher fills ``config-json`` alone; a user of
``flwr run`` fills ``overrides`` and Flower's habitual keys, and the config is composed here.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from fl_app.errors import ConfigError
from fl_app.schema import Config, MlflowConfig, RuntimeConfig, check, from_dict, to_dict

__all__ = ["Launch", "git_commit", "read_launch", "read_runtime"]

_HABITS = {
    "experiment": "experiment",
    "dataset": "dataset",
    "partitioner": "partitioner",
    "model": "model",
    "strategy": "strategy",
    "num-server-rounds": "num_server_rounds",
    "seed": "seed",
}
"""Run-config keys that stand for one override each."""
_KEYS = ("overrides", *_HABITS, "tracking-uri", "output-dir", "config-json")


@dataclass(frozen=True)
class Launch:
    """A config and where it came from.

    Parameters
    ----------
    config : Config
        What to run.
    overrides : tuple of str
        The overrides that the user typed.
    sweep_id : str
        The sweep that the run belongs to, or "".
    commit : str
        Git commit of fl_app's source, or "" where it is no git tree.
    swept : tuple of str
        Those of the overrides that differ from job to job of the sweep.
    """

    config: Config
    overrides: tuple[str, ...] = ()
    sweep_id: str = ""
    commit: str = ""
    swept: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the text for the run-config key ``config-json``."""
        return json.dumps(
            {
                "config": to_dict(self.config),
                "overrides": list(self.overrides),
                "sweep_id": self.sweep_id,
                "commit": self.commit,
                "swept": list(self.swept),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """Read :meth:`to_json`'s form back.

        Raises
        ------
        ConfigError
            If it is not that form.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            config, overrides = data["config"], tuple(map(str, data["overrides"]))
            sweep_id, commit = str(data["sweep_id"]), str(data["commit"])
            swept = tuple(map(str, data.get("swept", ())))
        except (ValueError, KeyError, TypeError) as error:
            allowed = f"the launcher's own JSON, not to be typed ({error!r})"
            raise ConfigError("config-json", text, allowed) from None
        return cls(from_dict(config), overrides, sweep_id, commit, swept)


def read_launch(run_config: Mapping[str, Any], num_clients: int) -> Launch:
    """Read Flower's run-config.

    Parameters
    ----------
    run_config : mapping
        ``context.run_config``; an empty value counts as not given.
    num_clients : int
        Nodes of the federation, which decide whatever the config says.

    Raises
    ------
    ConfigError
        If there is another key, ``config-json`` stands beside others, or for any mistake in the
        overrides.
    """
    given = {key: value for key, value in run_config.items() if value != ""}
    for key in given.keys() - set(_KEYS):
        raise ConfigError(key, given[key], f"no such key; allowed are {', '.join(_KEYS)}")
    if "config-json" in given:
        others = sorted(given.keys() - {"config-json"})
        if others:
            raise ConfigError(others[0], given[others[0]], "nothing beside config-json")
        launch = Launch.from_json(str(given["config-json"]))
        if launch.config.strategy.name == "pooled":
            return launch
        config = check(replace(launch.config, num_clients=num_clients))
        return replace(launch, config=config)

    from fl_app.config import compose_config

    overrides = _split(str(given.get("overrides", "")))
    overrides += [f"{name}={given[key]}" for key, name in _HABITS.items() if key in given]
    config = compose_config([*overrides, f"num_clients={num_clients}"])
    if "tracking-uri" in given and isinstance(config.tracking, MlflowConfig):
        config = replace(config, tracking=replace(config.tracking, uri=str(given["tracking-uri"])))
    if "output-dir" in given:
        config = replace(config, output_dir=_absolute(str(given["output-dir"])))
    return Launch(config, tuple(overrides), commit=git_commit())


def read_runtime(run_config: Mapping[str, Any]) -> RuntimeConfig:
    """Read the runtime's options alone: what a run needs before its clients can be counted.

    Parameters
    ----------
    run_config : mapping
        As in :func:`read_launch`.

    Raises
    ------
    ConfigError
        For a mistake in the options of ``runtime``.
    """
    if run_config.get("config-json"):
        return Launch.from_json(str(run_config["config-json"])).config.runtime

    from fl_app.config import compose_config

    overrides = _split(str(run_config.get("overrides", "")))
    own = [o for o in overrides if o.lstrip("+").startswith(("runtime=", "runtime."))]
    return compose_config(own).runtime


def _split(text: str) -> list[str]:
    """Split overrides as a shell would."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError("overrides", text, f"overrides as on a command line ({error})") from None


def _absolute(path: str) -> str:
    if not Path(path).is_absolute():
        raise ConfigError("output-dir", path, "an absolute path: a SuperLink has its own folder")
    return path


@cache
def git_commit() -> str:
    """Return the commit of fl_app's own source, or "" where that is no git tree."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
