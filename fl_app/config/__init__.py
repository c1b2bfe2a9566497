"""Experiments as typed configs: options, rules between them, how Hydra composes them."""

from typing import TYPE_CHECKING

from fl_app.lazy import exporter

if TYPE_CHECKING:
    from fl_app.config.checking import SIGNS, having, sign, who_has
    from fl_app.config.compose import compose_config, config_dir, searched, typed
    from fl_app.config.dataset_options import MAX_AUTO_LEVELS, MIN_LEVEL_ROWS, DatasetConfig, Levels
    from fl_app.config.hydra_errors import explain
    from fl_app.config.options import (
        FaultsConfig,
        ModelConfig,
        PartitionerConfig,
        PrivacyConfig,
        Task,
        TrackingConfig,
    )
    from fl_app.config.registry import opt, register
    from fl_app.config.rules import check, check_names, kept_weights
    from fl_app.config.schema import (
        GROUPS,
        SECTIONS,
        Config,
        data_name,
        min_level_rows_of,
        objective_of,
        task_of,
    )
    from fl_app.config.serialization import (
        digest,
        effective,
        flatten,
        from_dict,
        from_json,
        to_dict,
        to_json,
        without_effect,
    )
    from fl_app.config.strategy_options import StrategyConfig, has_base_models
    from fl_app.config.sweep import Sweep, check_sweep, heeded, unescaped

__all__ = [
    "GROUPS",
    "MAX_AUTO_LEVELS",
    "MIN_LEVEL_ROWS",
    "SECTIONS",
    "SIGNS",
    "Config",
    "DatasetConfig",
    "FaultsConfig",
    "Levels",
    "ModelConfig",
    "PartitionerConfig",
    "PrivacyConfig",
    "StrategyConfig",
    "Sweep",
    "Task",
    "TrackingConfig",
    "check",
    "check_names",
    "check_sweep",
    "compose_config",
    "config_dir",
    "data_name",
    "digest",
    "effective",
    "explain",
    "flatten",
    "from_dict",
    "from_json",
    "has_base_models",
    "having",
    "heeded",
    "kept_weights",
    "min_level_rows_of",
    "objective_of",
    "opt",
    "register",
    "searched",
    "sign",
    "task_of",
    "to_dict",
    "to_json",
    "typed",
    "unescaped",
    "who_has",
    "without_effect",
]

_HOMES = {
    "compose": ["compose_config", "config_dir", "searched", "typed"],
    "checking": ["SIGNS", "having", "sign", "who_has"],
    "dataset_options": ["DatasetConfig", "Levels", "MAX_AUTO_LEVELS", "MIN_LEVEL_ROWS"],
    "hydra_errors": ["explain"],
    "options": [
        "FaultsConfig",
        "ModelConfig",
        "PartitionerConfig",
        "PrivacyConfig",
        "Task",
        "TrackingConfig",
    ],
    "registry": ["opt", "register"],
    "rules": ["check", "check_names", "kept_weights"],
    "schema": [
        "Config",
        "GROUPS",
        "SECTIONS",
        "data_name",
        "min_level_rows_of",
        "objective_of",
        "task_of",
    ],
    "serialization": [
        "digest",
        "effective",
        "flatten",
        "from_dict",
        "from_json",
        "to_dict",
        "to_json",
        "without_effect",
    ],
    "strategy_options": ["StrategyConfig", "has_base_models"],
    "sweep": ["Sweep", "check_sweep", "heeded", "unescaped"],
}

__getattr__ = exporter(__name__, _HOMES)
