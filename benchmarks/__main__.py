"""All that ``make bench`` measures, one after the other."""

from __future__ import annotations

import subprocess
import sys

PARTS = ("rounds", "profile", "commands", "workers")


def main() -> None:
    """Run each part in a process of its own, so that none warms another one's caches."""
    failed = []
    for part in PARTS:
        module = f"benchmarks.{part}"
        print(f"\n== {module}", flush=True)
        if subprocess.run([sys.executable, "-m", module], check=False).returncode:
            failed.append(module)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
