"""Draws docs/lesson.svg from a run of the lesson: ``make pictures``, or this module by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from fl_app.colours import HUES, QUIET
from fl_app.tracking.journal_reader import JournalReader

PATH = Path(__file__).parents[1] / "docs" / "lesson.svg"
_CLIENTS = HUES[1], HUES[2]
_AVERAGE = HUES[0]


def rounds() -> list[dict[str, Any]]:
    """Run the lesson; return what the server made of each round, with its score of it."""
    with tempfile.TemporaryDirectory() as home:
        words = ("experiment=two_lines", "tracking=none", f"output_dir={home}/out")
        command = [sys.executable, "-m", "fl_app", *words]
        subprocess.run(command, env=os.environ | {"FL_APP_HOME": home}, check=True)
        (folder,) = (Path(home) / "runs").iterdir()
        lines = [line for line, _ in JournalReader(folder).rounds()]
    found = []
    for line in lines:
        told = json.loads(next(iter(line["texts"].values()), '{"clients": []}'))
        metrics = line["metrics"]
        weights = metrics["model/coef.x"], metrics["model/intercept"]
        own = [(c["arrays"]["coef"][0][0], c["arrays"]["intercept"][0]) for c in told["clients"]]
        found.append({"mse": metrics["server/mse"], "average": weights, "clients": own})
    return found


def draw(found: list[dict[str, Any]]) -> Figure:
    """Draw what the clients hold, and their lines and the average in each round."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    x = np.array([-1.0, 1.0])
    panels = figure.subplots(2, 3, sharey=True).flat
    for number, (axis, one) in enumerate(zip(panels, found, strict=True)):
        for k, (slope, colour) in enumerate(zip((2, 1), _CLIENTS, strict=True)):
            axis.plot(x, slope * x + 1, "os"[k], color=colour, label=f"rows of client {k}")
        for k, (slope, intercept) in enumerate(one["clients"]):
            label = f"W_{k}: client {k}, trained"
            axis.plot(x, slope * x + intercept, "--", color=_CLIENTS[k], label=label)
        slope, intercept = one["average"]
        axis.plot(x, slope * x + intercept, color=_AVERAGE, linewidth=2.5, label="W: the average")
        text = f"W({number}) = ({slope:.3f}, {intercept:.3f})   mse {one['mse']:.3f}"
        axis.set_title(text if number else f"before round 1: {text}", fontsize=9)
        axis.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1, 2, 3))
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8, labelcolor=QUIET)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Draw it: the same run gives the same file."""
    with rc_context({"svg.hashsalt": "lesson", "svg.fonttype": "none"}):
        draw(rounds()).savefig(PATH, metadata={"Date": None})


if __name__ == "__main__":
    main()
