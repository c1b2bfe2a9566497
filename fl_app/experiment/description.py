"""What is said of a run before its first round: its name, params, tags and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fl_app.colours import strategy_style
from fl_app.config.dataset_options import TabularConfig
from fl_app.config.options import NaturalConfig
from fl_app.config.run_request import RunRequest, versions
from fl_app.config.schema import Config, data_name
from fl_app.config.serialization import digest, flatten, to_dict, without_effect
from fl_app.data.client_data import seed_draws, whole_table
from fl_app.data.table import Table
from fl_app.federation.roster import Roster
from fl_app.tracking.records import RunStart

__all__ = ["row_tags", "run_name", "run_start", "site_names", "value_names"]

_NAMED = {"strategy", "seed", "partitioner", "partitioner.alpha", "num_clients", "model", "privacy"}
_NAMED |= {"faults.clients", "faults.kind", "method"}


def run_start(request: RunRequest, runtime: str, flwr_run_id: int) -> RunStart:
    """Describe a run that begins.

    Parameters
    ----------
    request : RunRequest
        The config and where it came from.
    runtime : str
        What really runs it.
    flwr_run_id : int
        Flower's id of the run.
    """
    config = request.config
    tags = {
        "strategy": config.strategy.name,
        "dataset": config.dataset.name,
        "model": config.model.name,
        "partitioner": config.partitioner.name,
        "runtime": runtime,
        "seed": str(config.seed),
        "config.sha256": digest(config),
        "config.without_effect": " ".join(without_effect(config)),
        "flwr.run_id": str(flwr_run_id),
        "sweep.id": request.sweep_id,
        "git.commit": request.commit,
        "mlflow.source.git.commit": request.commit,
        "mlflow.runColor": strategy_style(config.strategy.name)[0],
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    return RunStart(
        name=run_name(config, request.swept),
        params=flatten(config),
        tags={key: value for key, value in tags.items() if value},
        texts={
            "config/config.yaml": yaml.safe_dump(to_dict(config), sort_keys=False),
            "config/overrides.yaml": yaml.safe_dump(list(request.overrides)),
        },
        num_server_rounds=config.num_server_rounds,
        dataset={} if runtime == "deployment" else _dataset(config),
        output_dir=config.output_dir or "",
    )


def _dataset(config: Config) -> dict[str, str]:
    """Name the data for MLflow's list of inputs; in a deployment only the nodes know it."""
    dataset = config.dataset
    source = dataset.path if isinstance(dataset, TabularConfig) else f"fl_app:{dataset.name}"
    sha256 = whole_table(config).sha256
    return {"name": data_name(config), "digest": sha256, "source": source or dataset.name}


def run_name(config: Config, swept: Sequence[str] = ()) -> str:
    """Name a run, what tells it apart first: the UI shows about 18 characters.

    What else a sweep is over stands between the strategy, or the method, and the seed. A table of
    the user's own is last: its file, or, where each node has a file of its own, its target.

    Parameters
    ----------
    config : Config
        The run's config.
    swept : sequence of str, default ()
        Its overrides that differ from job to job of a sweep.
    """
    alpha = getattr(config.partitioner, "alpha", None)
    deal = config.partitioner.name if alpha is None else f"{config.partitioner.name} {alpha:g}"
    private = "" if not config.privacy.is_private else f" {config.privacy.name}"
    faults = config.faults
    faulty = f" {faults.clients} {faults.kind}" if faults.clients else ""
    pairs = [override.lstrip("+").partition("=") for override in swept]
    what = next((value for key, _, value in pairs if key == "method"), config.strategy.name)
    others = [(key.rpartition(".")[2], value) for key, _, value in pairs if key not in _NAMED]
    more = "".join(f" {key}={value}" for key, value in others)
    name = f"{what}{private}{faulty}{more} s{config.seed}"
    name = f"{name} {deal} K{config.num_clients} {config.model.name}"
    if not isinstance(config.dataset, TabularConfig):
        return name
    target = config.dataset.target or ()
    targets = target if isinstance(target, str) else " ".join(target)
    return f"{name} {targets if config.runtime.name == 'deployment' else data_name(config)}"


def row_tags(config: Config, runtime: str, roster: Roster, test: Table | None) -> dict[str, str]:
    """Say how many rows are for what, and which of them the seed draws.

    Parameters
    ----------
    config : Config
        The run's config.
    runtime : str
        What really runs it.
    roster : Roster
        The nodes of the run.
    test : Table or None
        The server's test rows; None in a deployment.
    """
    own_files = runtime == "deployment" and isinstance(config.dataset, TabularConfig)
    counts = {
        "data.train_rows": sum(node.num_examples for node in roster),
        "data.validation_rows": sum(node.num_validation for node in roster),
    }
    if test is not None:
        counts |= {"data.rows": len(whole_table(config)), "data.test_rows": len(test)}
    drawn = "nothing" if own_files else seed_draws(config)
    return {"data.seed_draws": drawn} | {name: str(count) for name, count in counts.items()}


def site_names(config: Config, runtime: str) -> dict[int, str]:
    """Return the natural clients' names by partition, where rows are dealt and they have any.

    A node with a file of its own tells no name beside its partition's number.
    """
    dealt = runtime != "deployment" and isinstance(config.partitioner, NaturalConfig)
    return dict(enumerate(whole_table(config).owner_names)) if dealt else {}


def value_names(
    arrays: Mapping[str, Any], features: tuple[str, ...], outputs: tuple[str, ...], roster: Roster
) -> dict[str, list[str]]:
    """Name the values of ``coef`` and ``intercept`` by feature and, of several, by output."""
    if set(arrays) != {"coef", "intercept"}:
        return {}
    one = len(outputs) == 1
    names = {
        "coef": [f if one else f"{o}.{f}" for o in outputs for f in features],
        "intercept": [""] if one else list(outputs),
    }
    clients = {f"{n.partition:03d}/{key}": value for n in roster for key, value in names.items()}
    return names | clients
