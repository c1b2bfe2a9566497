"""What must hold between the fields of a config."""

from __future__ import annotations

from dataclasses import fields, replace

from fl_app.config.checking import sign
from fl_app.config.dataset_options import DatasetConfig, TabularConfig
from fl_app.config.options import (
    DeploymentConfig,
    MlflowConfig,
    ModelConfig,
    NaturalConfig,
    SimulationConfig,
    Task,
)
from fl_app.config.registry import GROUPS
from fl_app.config.schema import METRICS, RATIOS, Config, cohort_size, task_of
from fl_app.config.strategy_options import (
    BASE_MODELS,
    REFUSED,
    BaseModelsConfig,
    FedStackingConfig,
    NAverageConfig,
    PooledConfig,
)
from fl_app.errors import ConfigError

__all__ = ["check", "check_names", "kept_weights"]


def check(config: Config) -> Config:
    """Check what no key can say alone, and resolve ``model=auto``.

    Raises
    ------
    ConfigError
        Where two keys contradict each other.
    """
    task = task_of(config.dataset)
    config = replace(config, model=_resolve_model(config.model, config.dataset, task))
    if isinstance(config.strategy, BaseModelsConfig):
        config = replace(config, strategy=_resolve_base_models(config.strategy, task))
    if config.min_replies > config.num_clients:
        allowed = f"at most {_clients_key(config)}={config.num_clients}"
        raise ConfigError("min_replies", config.min_replies, allowed)
    _check_objective(config, task)
    _check_nodes(config)
    _check_tabular(config)
    _check_clients(config)
    _check_cohort(config)
    _check_privacy(config)
    _check_faults(config)
    _check_baselines(config)
    _check_stacking(config)
    if isinstance(config.tracking, MlflowConfig):
        check_names(config.tracking.experiment_name, config.tracking.register_as)
        kept_weights(config.tracking.keep_weights)
    if isinstance(config.runtime, SimulationConfig) and config.runtime.ray_address is not None:
        ray_head(config.runtime.ray_address)
    if config.skip_finished and not isinstance(config.tracking, MlflowConfig):
        allowed = f"false with tracking={config.tracking.name}: finished runs are found in MLflow"
        raise ConfigError("skip_finished", True, allowed)
    return config


def check_names(experiment_name: str | None, register_as: str | None) -> None:
    """Reject names under which MLflow cannot keep, search or load; None is no name.

    Raises
    ------
    ConfigError
        For the first such name.
    """
    if experiment_name is not None and not 1 <= len(experiment_name) <= 500:
        raise ConfigError("tracking.experiment_name", experiment_name, "1 to 500 characters")
    if register_as is None:
        return
    # A search quotes the name, and `models:/NAME@champion` is a URI.
    bad = set(register_as) & set("/:@?#'\"`") or not register_as.isprintable()
    if bad or not register_as.strip(" .") or len(register_as) > 256:
        allowed = "a name of 1 to 256 characters, none of them / : @ ? # or a quotation mark"
        raise ConfigError("tracking.register_as", register_as, allowed)


def kept_weights(text: str) -> tuple[int, int]:
    """Read which rounds' weights a record keeps: ``all``, ``none``, ``last:K`` or ``every:K``.

    Returns
    -------
    tuple of (int, int)
        `every`: rounds 0, `every`, 2 `every` and so on are kept as they end, 0 for none; and as
        many of the last rounds are kept, too.

    Raises
    ------
    ConfigError
        For anything else.
    """
    word, colon, number = str(text).partition(":")
    if not colon and word in ("all", "none"):
        return int(word == "all"), 0
    if word in ("last", "every") and number.isdecimal() and number.isascii() and int(number):
        return (0, int(number)) if word == "last" else (int(number), 1)
    allowed = "all, none, last:K (the last K rounds) or every:K (each Kth and the last), K from 1"
    raise ConfigError("tracking.keep_weights", text, allowed)


def ray_head(address: str) -> tuple[str, int]:
    """Read ``runtime.ray_address``.

    Returns
    -------
    tuple of (str, int)
        Host and port.

    Raises
    ------
    ConfigError
        If it is not ``HOST:PORT``. Ray's own ``auto`` and ``ray://`` are refused: which cluster a
        run used shall be told by its config, and Ray Client is no driver for Flower's engine.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in address or not (port.isascii() and port.isdigit() and int(port) < 2**16):
        allowed = "HOST:PORT of a Ray head, as `ray start --head` prints it"
        raise ConfigError("runtime.ray_address", address, allowed)
    return host, int(port)


def _resolve_model(model: ModelConfig, dataset: DatasetConfig, task: Task) -> ModelConfig:
    models = GROUPS["model"]
    if model.name == "auto":
        own = {f.name: getattr(model, f.name) for f in fields(model)}
        name = "linear" if task == "regression" else "softmax"
        model = models[name](**own | {"name": name})
    if task not in model.tasks:
        fitting = [name for name, kind in models.items() if task in kind.tasks]
        allowed = f"dataset={dataset.name} is a {task} task; allowed are {', '.join(fitting)}"
        raise ConfigError("model", model.name, allowed)
    return model


def _check_objective(config: Config, task: Task) -> None:
    own = METRICS[task]
    allowed = [f"eval/{m}" for m in own + RATIOS[task]] + [f"train/{m}" for m in own]
    if config.objective is not None and config.objective not in allowed:
        raise ConfigError("objective", config.objective, f"one of {', '.join(allowed)}, or null")


def _check_clients(config: Config) -> None:
    dataset = config.dataset
    if dataset.clients is not None and config.num_clients != dataset.clients[0]:
        (number, why), key = dataset.clients, _clients_key(config)
        raise ConfigError(
            key,
            config.num_clients,
            f"dataset={dataset.name} has exactly {number} clients, {why}: {key}={number}",
        )
    if config.partitioner.name == "natural" and not dataset.has_clients:
        having = sorted(name for name, kind in GROUPS["dataset"].items() if kind.has_clients)
        raise ConfigError(
            "partitioner",
            "natural",
            f"dataset={dataset.name} has no natural clients; "
            f"data sets that have: {', '.join(having)}",
        )


def _clients_key(config: Config) -> str:
    """Return the key that says how many clients there are."""
    runtime = config.runtime
    own = isinstance(runtime, DeploymentConfig) and runtime.nodes is not None
    return "runtime.nodes" if own else "num_clients"


def _check_nodes(config: Config) -> None:
    """Check what a run asks for that starts SuperNodes of its own."""
    runtime = config.runtime
    if not isinstance(runtime, DeploymentConfig) or runtime.nodes is None:
        return
    if runtime.superlink is not None:
        allowed = (
            f"null with runtime.superlink={runtime.superlink}, whose SuperNodes somebody else "
            "starts; runtime.superlink=null starts some for the run"
        )
        raise ConfigError("runtime.nodes", runtime.nodes, allowed)
    if isinstance(config.dataset, TabularConfig):
        allowed = (
            "a data set whose rows are dealt, with runtime.superlink=null; a SuperNode reads only "
            "the file of its own node-config: start SuperNodes with data=FILE and name their "
            "SuperLink (docs/deployment.md)"
        )
        raise ConfigError("dataset", config.dataset.name, allowed)
    numbers = {
        "num_clients": config.num_clients,
        "runtime.wait_for_nodes": runtime.wait_for_nodes,
    }
    for name, number in numbers.items():
        if number != runtime.nodes:
            allowed = (
                f"as many as runtime.nodes={runtime.nodes}, which with runtime.superlink=null are "
                "the clients"
            )
            raise ConfigError(name, number, allowed)


def _check_tabular(config: Config) -> None:
    dataset, partitioner = config.dataset, config.partitioner
    natural = isinstance(partitioner, NaturalConfig)
    key = partitioner.key if isinstance(partitioner, NaturalConfig) else None
    if not isinstance(dataset, TabularConfig):
        if key is not None:
            raise ConfigError(
                "partitioner.key", key, "null: only dataset=tabular has columns to name"
            )
        return
    if not dataset.target:
        raise ConfigError("dataset.target", dataset.target, "the name of the column to predict")
    if dataset.path is None and config.runtime.name != "deployment":
        raise ConfigError("dataset.path", None, "the path of a CSV or Parquet file")
    if natural and key is None:
        allowed = "the column that names each row's client, for partitioner=natural"
        raise ConfigError("partitioner.key", key, allowed)
    _check_names(dataset)
    _check_signs(dataset)
    for column in dataset.exclude:
        if column in (dataset.features or ()):
            allowed = "a column that dataset.features does not name"
            raise ConfigError("dataset.exclude", column, allowed)


def _check_signs(dataset: TabularConfig) -> None:
    """Check what separates cells, decimals and groups of digits."""
    signs = {
        "separator": (dataset.separator, ("comma", "semicolon", "tab", "pipe", "space")),
        "decimal": (dataset.decimal, ("dot", "comma")),
        "thousands": (dataset.thousands, ("comma", "dot", "space", "apostrophe")),
    }
    for name, (value, words) in signs.items():
        known = {None, *words, *map(sign, words)}
        if value not in known:
            raise ConfigError(f"dataset.{name}", value, f"one of {', '.join(words)}")
    if dataset.thousands is not None and sign(dataset.thousands) == sign(dataset.decimal):
        allowed = f"another sign than dataset.decimal={dataset.decimal}"
        raise ConfigError("dataset.thousands", dataset.thousands, allowed)


def _check_names(dataset: TabularConfig) -> None:
    """Check the classes and levels that the config names."""
    classes = dataset.classes
    if classes is not None:
        if dataset.task != "classification":
            raise ConfigError("dataset.classes", list(classes), "null, as dataset.task=regression")
        # A column of labels holds texts alone or numbers alone.
        if len(set(classes)) < max(2, len(classes)) or len(set(map(type, classes))) > 1:
            allowed = "at least 2 different classes, all whole numbers or all texts"
            raise ConfigError("dataset.classes", list(classes), allowed)
    for column, levels in (dataset.levels or {}).items():
        if dataset.categorical != "auto" and column not in dataset.categorical:
            allowed = "a column that dataset.categorical names"
            raise ConfigError("dataset.levels", column, allowed)
        if len(set(levels)) < len(levels) or "" in levels:
            allowed = "each level once; an empty cell is a missing one"
            raise ConfigError(f"dataset.levels.{column}", list(levels), allowed)


def _check_cohort(config: Config) -> None:
    size, (fewest, rule) = cohort_size(config), config.strategy.fewest_replies
    if size < fewest:
        raise ConfigError(
            _clients_key(config),
            config.num_clients,
            f"strategy={config.strategy.name} needs at least {fewest} clients in a round ({rule}), "
            f"fraction_train={config.fraction_train:g} gives {size}",
        )


def _check_privacy(config: Config) -> None:
    if config.privacy.is_private and not config.strategy.takes_noise:
        taking = [name for name, kind in GROUPS["strategy"].items() if kind.takes_noise]
        allowed = f"none with strategy={config.strategy.name}; noise is for {', '.join(taking)}"
        raise ConfigError("privacy", config.privacy.name, allowed)


def _check_faults(config: Config) -> None:
    count, strategy = config.faults.clients, config.strategy
    if not count:
        return
    if config.runtime.name == "deployment":
        allowed = "0 with runtime=deployment: faults are for simulated clients"
        raise ConfigError("faults.clients", count, allowed)
    if strategy.is_reference:
        allowed = f"0 with strategy={strategy.name}: it has no clients that train together"
        raise ConfigError("faults.clients", count, allowed)
    if count > config.num_clients:
        raise ConfigError("faults.clients", count, f"at most num_clients={config.num_clients}")
    if config.faults.kind == "flip" and strategy.unmoved:
        allowed = f"crash or nan with {strategy.unmoved}: no client moves a model that it was sent"
        raise ConfigError("faults.kind", "flip", allowed)


def _check_baselines(config: Config) -> None:
    own, name = config.strategy, config.strategy.name
    if own.is_pooled and config.runtime.name != "inprocess":
        raise ConfigError(
            "strategy",
            name,
            f"all rows in one place exist with runtime=inprocess only, not {config.runtime.name}",
        )
    if own.is_pooled and config.min_replies != 1:
        raise ConfigError("min_replies", config.min_replies, f"strategy={name} has one client: 1")
    if own.is_reference and config.fraction_train != 1:
        raise ConfigError(
            "fraction_train", config.fraction_train, f"strategy={name} trains every client: 1"
        )


def require_base_model(name: str, task: Task, field_name: str = "strategy.base_models") -> None:
    """Reject a name that is no base model or does not fit the task.

    Parameters
    ----------
    name : str
        A key of :data:`BASE_MODELS`.
    task : {"regression", "classification"}
        The task of the run.
    field_name : str, default "strategy.base_models"
        Config key that the message names.

    Raises
    ------
    ConfigError
        If the name is unknown, refused on purpose, or of the other task.
    """
    fitting = ", ".join(n for n, tasks in BASE_MODELS.items() if task in tasks)
    if name.lower() in REFUSED:
        raise ConfigError(field_name, name, f"{REFUSED[name.lower()]}; allowed are {fitting}")
    if name not in BASE_MODELS:
        raise ConfigError(field_name, name, f"no such base model; allowed are {fitting}")
    if task not in BASE_MODELS[name]:
        raise ConfigError(field_name, name, f"does not fit a {task} task; allowed are {fitting}")


def _resolve_base_models(strategy: BaseModelsConfig, task: Task) -> BaseModelsConfig:
    pooled = isinstance(strategy, PooledConfig)
    if strategy.base_models is None:
        if pooled:
            return strategy
        default = "ridge" if task == "regression" else "logistic"
        return replace(strategy, base_models=(default,))
    if not strategy.base_models:
        fitting = ", ".join(n for n, tasks in BASE_MODELS.items() if task in tasks)
        raise ConfigError("strategy.base_models", [], f"at least one of {fitting}")
    for name in strategy.base_models:
        require_base_model(name, task)
    if pooled and (len(strategy.base_models) > 1 or "model" in strategy.base_models):
        allowed = "one of scikit-learn's with strategy=pooled; null: the run's model"
        raise ConfigError("strategy.base_models", list(strategy.base_models), allowed)
    return strategy


def _check_stacking(config: Config) -> None:
    own = config.strategy
    regression = task_of(config.dataset) == "regression"
    if isinstance(own, NAverageConfig) and own.combine != "rows" and regression:
        allowed = "rows for a regression task, which has no classes"
        raise ConfigError("strategy.combine", own.combine, allowed)
    if not isinstance(own, FedStackingConfig):
        return
    if config.num_server_rounds < 3:
        raise ConfigError(
            "num_server_rounds",
            config.num_server_rounds,
            "strategy=fedstacking needs at least 3: to collect, to stack, to select",
        )
