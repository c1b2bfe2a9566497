"""What was chosen, as arguments of ``fl-app``, and which choices go together.

Names of options come from :data:`fl_app.config.schema.GROUPS`; what fits together,
``compose_config`` says.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fl_app.config.compose import compose_config
from fl_app.config.options import Task
from fl_app.config.overrides import quoted
from fl_app.config.schema import GROUPS, Config, task_of
from fl_app.config.serialization import from_dict
from fl_app.config.site import settings, site_text
from fl_app.dashboard import uploads
from fl_app.dashboard.choices import DEFAULTS, OPTIONS, Choices
from fl_app.data.catalogue import load
from fl_app.data.client_data import most_rows
from fl_app.errors import ConfigError, InputError

__all__ = [
    "Drawn",
    "check",
    "command",
    "drawn",
    "five_seeds",
    "fixed_clients",
    "jobs",
    "offered",
    "overrides",
    "task_for",
]
_KEYS: Mapping[str, str] = {
    "rounds": "num_server_rounds",
    "fraction": "fraction_train",
    "min_replies": "min_replies",
    "local_epochs": "model.local_epochs",
    "batch_size": "model.batch_size",
    "learning_rate": "model.learning_rate",
    "seed": "seed",
}
_ALWAYS = ("rounds", "seed")


def task_for(choices: Choices, home: Path | None = None) -> Task:
    """Return the task of the chosen data.

    Raises
    ------
    InputError
        If there is no such upload.
    """
    if choices.upload:
        return _opened(choices, home).task
    return task_of(GROUPS["dataset"][choices.dataset](name=choices.dataset))


def offered(choices: Choices, home: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Return :data:`OPTIONS` without those that do not fit the chosen data.

    Raises
    ------
    InputError
        If there is no such upload.
    """
    task = task_for(choices, home)
    data = {"name": "tabular", "target": "y", "path": "y", "task": task}
    if not choices.upload:
        data = {"name": choices.dataset}
    fitting = {
        group: tuple(name for name in OPTIONS[group] if _fits(group, name, tuple(data.items())))
        for group in ("partitioner", "model")
    }
    return {**OPTIONS, **fitting}


@lru_cache(maxsize=256)
def _fits(group: str, name: str, dataset: tuple[tuple[str, str], ...]) -> bool:
    """Ask the schema, which names the group where its option does not go with the data set."""
    try:
        from_dict({"dataset": dict(dataset), group: {"name": name}, "num_clients": 2})
    except ConfigError as error:
        return error.field != group
    return True


def fixed_clients(choices: Choices, home: Path | None = None) -> int | None:
    """Return how many clients the chosen data have, or None where that can be chosen.

    Raises
    ------
    InputError
        If there is no such upload, or it cannot be read with these columns.
    """
    if not choices.upload and choices.dataset == "two_lines":
        return 2
    if choices.partitioner != "natural" or (choices.upload and not choices.key):
        return None
    if not choices.upload and choices.partitioner not in offered(choices)["partitioner"]:
        return None
    config = compose_config([*_data(choices, home), "partitioner=iid"])
    table = load(config.dataset, choices.seed, choices.key or None)
    return None if table.owners is None else int(table.owners.max()) + 1


def check(choices: Choices, home: Path | None = None) -> str:
    """Return why the choices cannot run, in one sentence; "" if they can.

    Whatever ``fl-app`` itself looks for before a run starts: keys at odds, data that cannot be
    dealt to that many clients, folders that cannot be written to.
    """
    from fl_app.config.run_request import RunRequest
    from fl_app.runtimes.checks import check_before

    try:
        for job in jobs(choices, home):
            config = _composed(tuple(job), site_text())
            check_before(RunRequest(config))
        if config.dataset.standardize and most_rows(config) < config.min_rows:
            allowed = f"as many as leave one of them {config.min_rows} rows is allowed"
            raise ConfigError("clients", config.num_clients, allowed)
    except InputError as error:
        return str(error)
    return ""


@lru_cache(maxsize=64)
def _composed(overrides: tuple[str, ...], site: str) -> Config:
    """Compose a config anew where the overrides or the site's own settings are others."""
    return compose_config(overrides)


def overrides(choices: Choices, home: Path | None = None) -> list[str]:
    """Return the choices as overrides, one run or, with `both`, a sweep over two strategies.

    Parameters
    ----------
    choices : Choices
        The choices.
    home : Path, optional
        Where uploads are.

    Raises
    ------
    InputError
        If the uploaded file is gone or cannot be used so.
    """
    return _overrides(choices, home, ",".join(choices.strategies))


def jobs(choices: Choices, home: Path | None = None) -> list[list[str]]:
    """Return the overrides of each run alone, as ``compose_config`` takes them.

    Raises
    ------
    InputError
        If the uploaded file is gone or cannot be used so.
    """
    return [_overrides(choices, home, name) for name in choices.strategies]


def command(choices: Choices, home: Path | None = None) -> str:
    """Return the command that does the same, quoted for a shell.

    Raises
    ------
    InputError
        If the uploaded file is gone or cannot be used so.
    """
    return shlex.join(["fl-app", *["-m"] * choices.both, *overrides(choices, home)])


def five_seeds(overrides: Sequence[str]) -> str:
    """Return the command that does for five seeds what overrides do for one, quoted for a shell.

    Parameters
    ----------
    overrides : sequence of str
        As :func:`overrides` makes them; what has run needs no file to be told again.
    """
    words = [
        f"seed=range({seed},{int(seed) + 5})" if name == "seed" and seed.isdecimal() else word
        for word in overrides
        for name, _, seed in [word.partition("=")]
    ]
    return shlex.join(["fl-app", "-m", *words])


def _overrides(choices: Choices, home: Path | None, strategy: str) -> list[str]:
    clients = fixed_clients(choices, home) or choices.clients
    words = [*_data(choices, home), f"partitioner={choices.partitioner}"]
    option = GROUPS["partitioner"][choices.partitioner]
    if any(f.name == "alpha" for f in fields(option)):
        words.append(f"partitioner.alpha={choices.alpha}")
    if choices.upload and choices.key and choices.partitioner == "natural":
        words.append(f"partitioner.key={quoted(choices.key)}")
    words += [f"num_clients={clients}", f"model={choices.model}", f"strategy={strategy}"]
    site = settings()
    for name, key in _KEYS.items():
        value = getattr(choices, name)
        if name in _ALWAYS or value != getattr(DEFAULTS, name) or key in site:
            words.append(f"{key}={'auto' if value is None else value}")
    if choices.faulty or any(key.startswith("faults.") for key in site):
        words += [f"faults.clients={choices.faulty}", f"faults.kind={choices.fault}"]
    return [*words, f"runtime={choices.runtime}"]


def _data(choices: Choices, home: Path | None) -> list[str]:
    if not choices.upload:
        wanted = [(made, getattr(choices, name)) for name, made in drawn(choices.dataset).items()]
        more = [made.override.format(number) for made, number in wanted if number]
        return [f"dataset={choices.dataset}", *more]
    upload = _opened(choices, home)
    return [
        "dataset=tabular",
        f"dataset.path={quoted(str(upload.path))}",
        f"dataset.target={quoted(upload.target)}",
        f"dataset.task={upload.task}",
        *upload.options,
    ]


class Drawn(NamedTuple):
    """A number that decides on data that are made: what it counts, its override, its default."""

    label: str
    override: str
    begins: int


def drawn(dataset: str) -> dict[str, Drawn]:
    """Return those fields of :class:`Choices` that such data have."""
    option = GROUPS["dataset"][dataset]()
    if dataset == "two_lines":
        first, begins = option.rows
        return {"examples": Drawn("Rows of client 1", f"dataset.rows=[{first},{{}}]", begins)}
    fields_of = {"examples": ("Rows", "num_examples"), "classes": ("Classes", "num_classes")}
    return {
        name: Drawn(label, f"dataset.{key}={{}}", getattr(option, key))
        for name, (label, key) in fields_of.items()
        if hasattr(option, key)
    }


def _opened(choices: Choices, home: Path | None) -> uploads.Upload:
    key = choices.key if choices.partitioner == "natural" else ""
    return uploads.open(
        choices.upload,
        home,
        target=choices.target,
        task=choices.task,
        key=key,
        features=choices.features,
    )
