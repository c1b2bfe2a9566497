"""SuperNodes as processes, started with Flower's stock command and ended by their ids."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fl_app.runtimes import superlink
from fl_app.runtimes.processes import ProcessFamily
from fl_app.runtimes.superlink import PrivateSuperLink, search_path

__all__ = ["dealt", "supernodes"]


def dealt(number: int) -> list[str]:
    """Return the node-configs of SuperNodes that know their partition and nothing else."""
    return [f"partition-id={k} num-partitions={number}" for k in range(number)]


@contextmanager
def supernodes(
    link: PrivateSuperLink, node_configs: Sequence[str], env: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a SuperNode for each node-config as long as the block lasts."""
    command = Path(sys.executable).with_name("flower-supernode")
    ours = {"PATH": search_path(os.environ), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    environment = os.environ | link.client_env | ours | dict(env or {})
    with ExitStack() as stack:
        for node_config in node_configs:
            arguments = ["--insecure", "--superlink", link.address]
            arguments += ["--host", "127.0.0.1", "--port", str(superlink._free_port())]
            node = subprocess.Popen(
                [command, *arguments, "--node-config", node_config],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=link.flwr_home,
                env=environment,
                start_new_session=True,
            )
            stack.callback(ProcessFamily(node).end, 5.0)
        yield
