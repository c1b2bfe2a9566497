"""``runtime=simulation``: Flower's Ray engine, on a SuperLink that lives as long as the run.

Flower makes as many actors as the whole Ray cluster has room for, whoever uses it already. Two runs
that begin on one existing cluster at the same time would therefore each hold actors that wait for
the other's: here they take turns.

References
----------
https://docs.ray.io/en/latest/cluster/running-applications/job-submission/quickstart.html
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from filelock import FileLock, Timeout

from fl_app.config.options import SimulationConfig
from fl_app.config.run_request import RunRequest, handed_over
from fl_app.errors import InputError, RunError, printable
from fl_app.runtimes.bundle import app_dir
from fl_app.runtimes.result import (
    RunResult,
    RunStoppedError,
    check_ray,
    forget_result,
    has_result,
    read_result,
)
from fl_app.runtimes.signals import signals_unwind
from fl_app.runtimes.submit import Outcome, submit
from fl_app.runtimes.superlink import PrivateSuperLink

__all__ = ["run"]

# In Flower's own spellings, in its log: a run's status says "An error was encountered" alone.
_CRASH = re.compile(r"An exception occurr?ed ?!! (.+)")


def run(request: RunRequest) -> RunResult:
    """Run an experiment through ``flwr run`` and follow it to its true end.

    Parameters
    ----------
    request : RunRequest
        With ``output_dir`` set to an absolute path.

    Raises
    ------
    InputError
        For what can be found before the run starts: it is looked for while the SuperLink starts.
    RunError
        If the run failed or was stopped, with the ServerApp's own message.
    """
    runtime = request.config.runtime
    assert isinstance(runtime, SimulationConfig)
    address = runtime.ray_address
    if address is not None:
        check_ray(address)
    env = {} if address is None else {"RAY_ADDRESS": address}
    output_dir, submitted, begun = request.config.output_dir or "", False, False
    try:
        with (
            signals_unwind(),
            ExitStack() as turn,  # ends after the SuperLink, and so after its actors
            app_dir() as folder,
            PrivateSuperLink(env=env, wait=False) as link,
        ):
            # Half a second of imports, while the SuperLink does its own.
            from fl_app.runtimes.checks import check_before, with_whole_uri

            # The ServerApp has another working directory: what is relative would be lost there.
            request = with_whole_uri(request)
            config = request.config

            crashes: list[str] = []

            def read(line: str) -> None:
                nonlocal begun
                if found := _CRASH.search(line):
                    crashes.append(found[1])
                begun |= _show(line)

            def ready() -> None:
                nonlocal submitted
                check_before(request)
                forget_result(output_dir)
                if address is not None:
                    turn.enter_context(_turn(address))
                print(
                    f"flwr run: {config.num_clients} SuperNodes, "
                    "starting Flower's simulation engine",
                    flush=True,
                )
                link.wait()
                submitted = True

            with handed_over(request) as text:
                try:
                    outcome = submit(
                        folder,
                        link.name,
                        run_config={"config-json": text},
                        num_supernodes=config.num_clients,
                        client_num_cpus=runtime.num_cpus,
                        env=link.client_env,
                        flwr_home=link.flwr_home,
                        on_line=read,
                        patience=0.0,
                        ready=ready,
                    )
                except RunError as error:
                    raise RunError(link.killed() or str(error)) from None
            if outcome.status == "completed":
                link.grace = 0.0  # Ray has ended; what is left has nothing to save
        return _end(outcome, output_dir, crashes)
    except InputError:
        raise
    except BaseException as error:
        if submitted:  # before, an interrupt may have left half a module of what sends
            from fl_app.tracking import replay

            # Flower ends a ServerApp without its `finally`: what its journal has is sent here.
            replay()
        if begun and isinstance(error, RunError) and not has_result(output_dir):
            raise RunStoppedError(str(error)) from None  # as its record says
        raise


@contextmanager
def _turn(address: str) -> Iterator[None]:
    """Hold a cluster, as soon as no other run of this user is on it."""
    from fl_app.home import home_dir

    lock = FileLock(home_dir() / f"ray-{zlib.crc32(address.encode()):08x}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waits = f"waiting for another run to leave the Ray cluster at {address}"
        print(printable(waits), flush=True)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _show(line: str) -> bool:
    """Print a line of Flower's log if it is our own; return whether it is."""
    from fl_app.tracking.console import own_text

    if (text := own_text(line)) is not None:
        print(printable(text), flush=True)
    return text is not None


def _end(outcome: Outcome, output_dir: str, crashes: Sequence[str] = ()) -> RunResult:
    """Return a run's result, or raise what it failed with, as Flower's status and log tell."""
    if outcome.status != "completed":
        details = " ".join(" ".join([outcome.details, *crashes[:1]]).split())
        kind = RunStoppedError if outcome.status == "stopped" else RunError
        raise kind(f"the run {outcome.status}: {details or 'Flower gave no reason'}")
    result = read_result(output_dir)
    if result.status != "FINISHED":
        raise RunError(f"the run ended {result.status}: {result.error}")
    return result
