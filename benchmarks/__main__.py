"""All that ``make bench`` measures, one after the other."""

from __future__ import annotations

import subprocess
import sys

PARTS = (
    ("benchmarks.rounds",),
    ("benchmarks.profile",),
    ("benchmarks.commands",),
    ("benchmarks.workers",),
    ("benchmarks.stacking", "--table", "speed"),
)


def main() -> None:
    """Run each part in a process of its own, so that none warms another one's caches."""
    failed = []
    for module, *arguments in PARTS:
        print(f"\n== {module}", flush=True)
        done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
        if done.returncode:
            failed.append(module)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
