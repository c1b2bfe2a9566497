"""``tracking=csv``: every metric of every round as a line of a file."""

import csv
from dataclasses import dataclass

from fl_app.config import TrackingConfig, opt, register


@dataclass(frozen=True)
class CsvConfig(TrackingConfig):
    """Lines of round, metric and value."""

    name: str = "csv"
    path: str = opt("metrics.csv", "The file, absolute where Flower starts the ServerApp.")


class CsvTracker:
    """Sees a run and writes; it cannot steer, and its failure fails no run."""

    def __init__(self, path):
        self.path = path

    def start(self, run):
        """Begin the file."""
        self._write("w", [("round", "metric", "value")])

    def annotate(self, tags, texts):
        """Leave out what is no number."""

    def record(self, record):
        """Append a round."""
        parts = {"train": record.train, "eval": record.evaluate, "server": record.server}
        metrics = ((f"{part}/{name}", v) for part, own in parts.items() for name, v in own.items())
        self._write("a", [(record.server_round, name, value) for name, value in metrics])

    def finish(self, end):
        """Add nothing: each line is on the disk."""

    def _write(self, mode, lines):
        with open(self.path, mode, newline="") as file:
            csv.writer(file).writerows(lines)


register(CsvConfig, build=lambda config, run_name: CsvTracker(config.tracking.path))
