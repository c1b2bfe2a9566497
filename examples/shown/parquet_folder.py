"""``dataset=parquet_folder``: a folder of Parquet files, each a natural client."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from fl_app.config import DatasetConfig, opt, register
from fl_app.data.table import numeric_table
from fl_app.errors import ConfigError


@dataclass(frozen=True)
class ParquetFolderConfig(DatasetConfig):
    """Numeric columns of all Parquet files of a folder; the last one is predicted."""

    task: ClassVar[str] = "regression"
    has_clients: ClassVar[bool] = True

    name: str = "parquet_folder"
    folder: str = opt("", "The folder, absolute.")


def load(config, seed):
    """Read the files in the order of their names."""
    files = sorted(Path(config.folder).glob("*.parquet"))
    if not (config.folder and files):
        raise ConfigError("dataset.folder", config.folder, "a folder with Parquet files")
    frames = [pd.read_parquet(file) for file in files]
    owners = np.repeat(np.arange(len(files)), [len(frame) for frame in frames])
    *names, target = frames[0].columns
    whole = pd.concat(frames)[[*names, target]].to_numpy(np.float64)
    own = owners, [file.stem for file in files]
    return numeric_table("regression", whole[:, :-1], names, whole[:, -1], [target], *own)


register(ParquetFolderConfig, build=load)
