"""Final weights of several strategies in several runtimes: equal bits, or exit status 1.

``make bench-bits`` runs it: ten clients with a Dirichlet split of digits, half of them drawn in
each round, every strategy below with every seed, in this process, in worker processes and in
Flower's simulation engine. What is compared is ``weights_sha256`` of ``result.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

STRATEGIES = ("fedavg", "fedadam", "fedmedian", "krum", "fedstacking")
RUNTIMES: Mapping[str, Sequence[str]] = {
    "inprocess": ["runtime=inprocess"],
    "2 workers": ["runtime=inprocess", "runtime.num_workers=2"],
    "simulation": ["runtime=simulation"],
}
TASK = (
    "num_clients=10",
    "fraction_train=0.5",
    "num_server_rounds=3",
    "partitioner=dirichlet",
    "tracking=none",
)

Digests = dict[tuple[str, int], str]


def sweep(folder: Path, strategies: Sequence[str], seeds: int, overrides: Sequence[str]) -> Digests:
    """Run a sweep over strategies and seeds; return the digest of each job's final weights."""
    words = [
        *("-m", *TASK, *overrides),
        f"strategy={','.join(strategies)}",
        f"seed={','.join(map(str, range(seeds)))}",
        f"hydra.sweep.dir={folder}",
        "hydra.sweep.subdir=${strategy.name}-${seed}",
    ]
    command = [str(Path(sys.executable).parent / "fl-app"), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", file=sys.stderr)
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode} of: {' '.join(command)}")
    return {
        (name, seed): json.loads((folder / f"{name}-{seed}" / "result.json").read_text())[
            "weights_sha256"
        ]
        for name in strategies
        for seed in range(seeds)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument(
        "--simulation", nargs="*", default=[], help="more overrides of the sweep in the engine"
    )
    arguments = parser.parse_args()
    found: dict[str, Digests] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FL_APP_HOME"] = scratch  # the lock of a Ray cluster is kept in it
        for runtime, overrides in RUNTIMES.items():
            more = arguments.simulation if runtime == "simulation" else []
            folder = Path(scratch) / str(len(found))
            found[runtime] = sweep(
                folder, arguments.strategies, arguments.seeds, [*overrides, *more]
            )
    differ = 0
    print(f"{'strategy':12} seed  " + "  ".join(f"{runtime:16}" for runtime in found))
    for name, seed in found["inprocess"]:
        digests = [by_job[name, seed] for by_job in found.values()]
        differ += len(set(digests)) > 1
        print(f"{name:12} {seed:4}  " + "  ".join(f"{digest[:16]}" for digest in digests))
    if len({digest for by_job in found.values() for digest in by_job.values()}) == 1:
        raise SystemExit("all runs have the same weights: nothing was compared")
    if differ:
        raise SystemExit(f"{differ} of {len(found['inprocess'])} rows differ between runtimes")
    print("equal bits in every row")


if __name__ == "__main__":
    main()
