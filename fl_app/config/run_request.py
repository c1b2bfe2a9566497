"""How a run is asked for: from our launcher as one JSON text, or from Flower's run-config.

Flower hands a ServerApp a flat run-config. Our launcher fills ``config-json`` alone; a user of
``flwr run`` fills ``overrides`` and Flower's habitual keys, and the config is composed here.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fl_app.config.options import MlflowConfig, RuntimeConfig
from fl_app.config.passwords import keep_secrets, whole
from fl_app.config.rules import check
from fl_app.config.schema import GROUPS, Config
from fl_app.config.serialization import parse, to_dict, without_effect
from fl_app.errors import ConfigError, masked
from fl_app.temporary import temporary_dir

__all__ = [
    "NO_PASSWORD",
    "RunRequest",
    "git_commit",
    "handed_over",
    "param_of",
    "read_launch",
    "read_num_clients",
    "read_runtime",
    "unheeded",
    "versions",
    "without_secrets",
]

_PACKAGES = ("fl-app", "flwr", "mlflow", "numpy", "scikit-learn", "scipy")

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

NO_PASSWORD = (
    "no password: Flower hands it to every SuperNode; set MLFLOW_TRACKING_URI, or "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, where the SuperLink runs"
)
"""What is allowed in a run-config that leaves this machine, or that Flower alone handles."""


@dataclass(frozen=True)
class RunRequest:
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

    Notes
    -----
    A password in the tracking URI is masked in all of it, and kept for this process and those that
    it starts (:func:`fl_app.config.passwords.keep_secrets`).
    """

    config: Config
    overrides: tuple[str, ...] = ()
    sweep_id: str = ""
    commit: str = ""
    swept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Mask what may be a password."""
        object.__setattr__(self, "config", without_secrets(self.config))
        object.__setattr__(self, "overrides", tuple(map(masked, self.overrides)))
        object.__setattr__(self, "swept", tuple(map(masked, self.swept)))

    def to_json(self, uri_file: str = "") -> str:
        """Return the text for the run-config key ``config-json``.

        Parameters
        ----------
        uri_file : str, optional
            File on the ServerApp's machine from which :meth:`from_json` takes the tracking URI.
        """
        return json.dumps(
            {
                "uri_file": uri_file,
                "config": to_dict(self.config),
                "overrides": list(self.overrides),
                "sweep_id": self.sweep_id,
                "commit": self.commit,
                "swept": list(self.swept),
            }
        )

    @classmethod
    def from_json(cls, text: str, num_clients: int | None = None) -> RunRequest:
        """Read :meth:`to_json`'s form back, and check its config.

        Parameters
        ----------
        text : str
            What came in ``config-json``.
        num_clients : int, optional
            Nodes of the federation, which decide whatever the config says: but not where all rows
            are in one place.

        Raises
        ------
        ConfigError
            If it is not that form, or no valid config.
        """
        request = _parsed(text)
        config = request.config
        if num_clients is not None and not config.strategy.is_pooled:
            config = replace(config, num_clients=num_clients)
        return replace(request, config=check(config))


@lru_cache(maxsize=8)
def _parsed(text: str) -> RunRequest:
    """Read the launcher's JSON, once a process; the rules between its keys are not checked yet."""
    try:
        data: dict[str, Any] = json.loads(text)
        config, overrides = data["config"], tuple(map(str, data["overrides"]))
        sweep_id, commit = str(data["sweep_id"]), str(data["commit"])
        swept = tuple(map(str, data.get("swept", ())))
        uri_file = str(data.get("uri_file", ""))
    except (ValueError, KeyError, TypeError) as error:
        allowed = f"the launcher's own JSON, not to be typed ({error!r})"
        raise ConfigError("config-json", text, allowed) from None
    request = RunRequest(parse(config), overrides, sweep_id, commit, swept)
    return replace(request, config=_with_uri(request.config, uri_file)) if uri_file else request


def without_secrets(config: Config) -> Config:
    """Return a config whose tracking URI is masked; the whole one is kept for whoever uses it."""
    tracking = config.tracking
    if not isinstance(tracking, MlflowConfig) or tracking.uri is None:
        return config
    return replace(config, tracking=replace(tracking, uri=keep_secrets(tracking.uri)))


def param_of(override: str) -> str:
    """Return the recorded parameter that an override sets."""
    key = override.partition("=")[0].lstrip("+~")
    return f"{key}.name" if key in GROUPS else key


def unheeded(config: Config, overrides: Sequence[str]) -> str:
    """Say which of some overrides change no number of a run; "" where each does."""
    none = without_effect(config)
    keys = dict.fromkeys(o.partition("=")[0].lstrip("+") for o in overrides if param_of(o) in none)
    have = "has" if len(keys) == 1 else "have"
    return f"{', '.join(keys)} {have} no effect on strategy={config.strategy.name}" if keys else ""


@contextmanager
def handed_over(request: RunRequest) -> Iterator[str]:
    """Yield :meth:`RunRequest.to_json` for a ServerApp of this machine, without the tracking URI.

    Flower hands the run-config to every SuperNode and writes it to the SuperLink's database. So
    the URI stands in a file that only this user can read, and that is gone with the block.
    """
    tracking = request.config.tracking
    if not isinstance(tracking, MlflowConfig) or tracking.uri is None:
        yield request.to_json()
        return
    config = replace(request.config, tracking=replace(tracking, uri=None))
    with temporary_dir() as folder:
        file = folder / "uri"
        file.touch(mode=0o600)
        file.write_text(whole(tracking.uri))
        yield replace(request, config=config).to_json(str(file))


def _with_uri(config: Config, file: str) -> Config:
    if not isinstance(config.tracking, MlflowConfig):
        return config
    try:
        uri = Path(file).read_text()
    except OSError as error:
        allowed = (
            f"a file of this machine's user that starts the run ({error.strerror}); where the "
            "SuperLink is another user's or behind a tunnel, name a tracking server without a "
            "password"
        )
        raise ConfigError("tracking.uri", file, allowed) from None
    return replace(config, tracking=replace(config.tracking, uri=uri))


def read_launch(run_config: Mapping[str, Any], num_clients: int) -> RunRequest:
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
    for key in ("tracking-uri", "overrides"):
        if masked(str(given.get(key, ""))) != str(given.get(key, "")):
            raise ConfigError(key, given[key], NO_PASSWORD)
    for key in given.keys() - set(_KEYS):
        raise ConfigError(key, given[key], f"no such key; allowed are {', '.join(_KEYS)}")
    if "config-json" in given:
        others = sorted(given.keys() - {"config-json"})
        if others:
            raise ConfigError(others[0], given[others[0]], "nothing beside config-json")
        return RunRequest.from_json(str(given["config-json"]), num_clients)

    from fl_app.config.compose import compose_config

    overrides = _split(str(given.get("overrides", "")))
    overrides += [f"{name}={given[key]}" for key, name in _HABITS.items() if key in given]
    config = compose_config([*overrides, f"num_clients={num_clients}"], at_superlink=True)
    if "tracking-uri" in given and isinstance(config.tracking, MlflowConfig):
        config = replace(config, tracking=replace(config.tracking, uri=str(given["tracking-uri"])))
    if "output-dir" in given:
        config = replace(config, output_dir=_absolute(str(given["output-dir"])))
    return RunRequest(config, tuple(overrides), commit=git_commit())


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
        return _parsed(str(run_config["config-json"])).config.runtime

    from fl_app.config.compose import compose_config

    overrides = _split(str(run_config.get("overrides", "")))
    of_runtime = [o for o in overrides if o.lstrip("+").startswith(("runtime=", "runtime."))]
    return compose_config(of_runtime, at_superlink=True).runtime


def read_num_clients(run_config: Mapping[str, Any]) -> int:
    """Return how many clients our launcher simulates; 0 where ``flwr run`` alone knows."""
    text = run_config.get("config-json")
    return _parsed(str(text)).config.num_clients if text else 0


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
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    import subprocess  # of use to runs only, and not to Hydra's own work

    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python and of the packages that decide a run's numbers."""
    numbers = {"Python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # in Flower's bundle nothing is installed
            numbers[name] = version(name)
    return numbers
