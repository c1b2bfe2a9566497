"""The nodes of a grid: their ids, and configs that Flower could carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import UserConfig
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY

from fl_app.errors import ConfigError

__all__ = ["NodeConfigs", "check_count", "flat_config", "node_configs_of", "node_id_of"]

NodeConfigs = Mapping[int, UserConfig] | Sequence[UserConfig]


def node_id_of(partition: int) -> int:
    """Return a node id below 2**63 that nobody takes for a partition id.

    An odd factor permutes the integers modulo a power of two, so that ids are distinct; this one
    (2**64 over the golden ratio) also scatters them.
    """
    return (partition + 2) * 0x9E3779B97F4A7C15 % 2**63


def check_count(field: str, value: object, least: int) -> None:
    """Raise ConfigError unless a value is an int of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(field, value, f"an integer of at least {least}")


def flat_config(field: str, config: object) -> UserConfig:
    """Copy a config after checking that Flower could carry it."""
    if not isinstance(config, Mapping):
        raise ConfigError(field, config, "a mapping of names to bool, int, float or str")
    for name, value in config.items():
        if not isinstance(name, str):
            raise ConfigError(field, name, "names are str")
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"{field}.{name}", value, "a bool, int, float or str")
    return dict(config)


def node_configs_of(num_supernodes: int, node_configs: NodeConfigs | None) -> list[UserConfig]:
    """Return the config of each node, in the order of partitions."""
    given = node_configs if node_configs is not None else {}
    if not isinstance(given, Mapping):
        given = dict(enumerate(given))
    for partition in given:
        if partition not in range(num_supernodes):
            allowed = f"keys are partition ids, 0 to {num_supernodes - 1}"
            raise ConfigError("node_configs", partition, allowed)
    return [
        {PARTITION_ID_KEY: i, NUM_PARTITIONS_KEY: num_supernodes}
        | flat_config(f"node_configs.{i}", given.get(i, {}))
        for i in range(num_supernodes)
    ]
