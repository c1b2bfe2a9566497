"""Rounds a second of other federated-learning packages beside fl_app, on the task of ``rounds``.

``python -m benchmarks.peers`` runs it. Each peer has an environment of its own, made once below a
cache folder, and a script in ``peer_apps`` that does the task with the peer's own FedAvg, in one
process with one thread. All train on the same encoded rows; only the order of batches is each
one's own, so that accuracies need not be equal but near (exit status 1 otherwise). A peer that
cannot be installed or run here is skipped with its reason.

fl_app, the plain NumPy loop and the peers are timed in turn, from the end of the first round to the
end of the last. As it is, fl_app also scores each client's rows after training, which the peers are
spared: a second row of fl_app, whose clients only train as the others' do, gives the ratios at
equal arithmetic.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.arithmetic import Arrays, Rows, metrics, prepared, sgd, zeros
from benchmarks.machine import machine
from benchmarks.rounds import LOOP, OURS, PACKAGES, config, loop, ours, unscored
from fl_app.aggregation import arrays_digest
from fl_app.config.schema import Config
from fl_app.seeding import generator, one_thread

APPS = Path(__file__).parent / "peer_apps"
TORCH = "torch==2.13.0"
EQUAL = "fl_app, clients unscored"
TOLERANCE = 0.015  # of accuracy, between two orders of batches
MANY, FEWER = 1000, 10  # with that many clients, that many rounds are enough
MINUTES = 30  # for one command of a peer
QUIET = {"TQDM_DISABLE": "1"} | {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")
}


@dataclass(frozen=True)
class Recipe:
    """What pip installs, and the interpreter: a name on PATH, or none for this one."""

    pins: tuple[str, ...]
    python: str = ""


PEERS: Mapping[str, Sequence[Recipe]] = {
    "fed-playground": [Recipe(("fed-playground==0.2.1",))],
    "blazefl": [
        Recipe(("blazefl[contrib,reproducibility]==3.0.0", TORCH), "python3.14"),
        Recipe(("blazefl[contrib,reproducibility]==2.0.3", TORCH), "python3.13"),
        Recipe(("blazefl[contrib,reproducibility]==2.0.3", TORCH), "python3.12"),
    ],
    "pfl": [Recipe(("pfl==0.6.0", TORCH))],
    "fluke": [Recipe(("fluke-fl==0.8.1", TORCH))],
}


@dataclass(frozen=True)
class Timed:
    """One run: seconds a round, the final accuracy on the test rows, and the package's version."""

    seconds: float
    accuracy: float
    version: str = ""


class MissingPeerError(Exception):
    """A peer cannot be had; the text says why in one line."""


def environment(recipes: Sequence[Recipe], folder: Path) -> Path:
    """Return the interpreter of an environment by the first recipe that works here.

    Raises
    ------
    MissingPeerError
        If none does, with the reason of each.
    """
    reasons = []
    for recipe in recipes:
        try:
            return installed(recipe, folder / (recipe.python or "python"))
        except MissingPeerError as error:
            reasons.append(str(error))
    raise MissingPeerError("; ".join(reasons))


def installed(recipe: Recipe, folder: Path) -> Path:
    """Make the environment, unless a file that was written last says that it is there."""
    python, done = folder / "bin" / "python", folder / "recipe.json"
    wanted = json.dumps([recipe.python, *recipe.pins])
    if not (done.exists() and done.read_text() == wanted):
        call([interpreter(recipe.python), "-m", "venv", "--clear", str(folder)])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        call([*pip, *recipe.pins])
        done.write_text(wanted)
    return python


def interpreter(name: str) -> str:
    """Return the path of an interpreter that starts: a name on PATH may be a shim of none."""
    found = shutil.which(name) if name else sys.executable
    if found is None:
        raise MissingPeerError(f"no {name} on PATH")
    try:
        call([found, "-c", ""])
    except MissingPeerError:
        raise MissingPeerError(f"{name} on PATH does not start") from None
    return found


def call(command: Sequence[str], folder: Path | None = None) -> str:
    """Run a command and return what it prints.

    Raises
    ------
    MissingPeerError
        If it fails or does not end, with its last word.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * MINUTES,
            cwd=folder,
            env=os.environ | QUIET,
        )
    except subprocess.TimeoutExpired:
        raise MissingPeerError(f"{command[0]} did not end in {MINUTES} minutes") from None
    if done.returncode:
        raise MissingPeerError(last_word(done.stderr or done.stdout, done.returncode))
    return done.stdout


def last_word(text: str, status: int) -> str:
    """Return the last line, or the last that pip calls an error: it may go on with advice."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [f"exit status {status}"])[-1]


def export(clients: Sequence[Rows], test: Rows, path: Path) -> None:
    """Write all rows, one client's after the other's, and how many each has."""
    np.savez(
        path,
        x=np.concatenate([x for x, _ in clients]),
        y=np.concatenate([y for _, y in clients]),
        sizes=np.array([len(x) for x, _ in clients]),
        test_x=test[0],
        test_y=test[1],
    )


def timed(command: Sequence[str], folder: Path) -> Timed:
    """Run a peer's script and read the JSON line that it prints last."""
    *_, line = call(command, folder).splitlines() or [""]
    try:
        told = json.loads(line)
        return Timed(told["seconds_per_round"], told["accuracy"], told["version"])
    except (ValueError, TypeError, KeyError):
        raise MissingPeerError(f"printed {line!r}, not its result") from None


def final_arrays(cfg: Config, clients: Sequence[Rows], test: Rows) -> Arrays:
    """Return the arrays that fl_app ends with; it tells but their digest."""
    rate, arrays = float(cfg.model.learning_rate), zeros(test)
    total = sum(len(x) for x, _ in clients)
    with one_thread():
        for server_round in range(1, cfg.num_server_rounds + 1):
            mean: Arrays = {}
            for k, rows in enumerate(clients):
                rng = generator(cfg.seed, "train", server_round, k)
                own = sgd(arrays, rows, rate, cfg.model.batch_size, rng)
                for name, array in own.items():
                    term = array * (len(rows[0]) / total)
                    mean[name] = mean[name] + term if name in mean else term
            arrays = mean
    return arrays


def take_turns(
    variants: Mapping[str, Callable[[], Timed]], repeats: int
) -> tuple[dict[str, list[Timed]], dict[str, str]]:
    """Call all variants in turn; return the runs, and the reasons of those that are missing."""
    found: dict[str, list[Timed]] = {name: [] for name in variants}
    missing: dict[str, str] = {}
    for _ in range(repeats):
        for name in list(found):
            try:
                found[name].append(variants[name]())
            except MissingPeerError as error:
                missing[name] = str(error)
                del found[name]
    return found, missing


def check(found: Mapping[str, Sequence[Timed]]) -> None:
    """Exit with status 1 and the numbers if a peer learnt something else."""
    (first, *_) = found[OURS]
    wrong = {
        name: run.accuracy
        for name, runs in found.items()
        for run in runs
        if not abs(run.accuracy - first.accuracy) <= TOLERANCE
    }
    if wrong:
        told = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in wrong.items())
        raise SystemExit(
            f"final accuracy differs by more than {TOLERANCE} from fl_app's"
            f" {first.accuracy:.4f}: {told}"
        )


def table(found: Mapping[str, Sequence[Timed]]) -> str:
    """Return medians, and medians of the ratios of neighbours in time."""
    heads = f"{'rounds/s':>10}{'x the loop':>12}{'x fl_app':>10}{'unscored':>10}{'accuracy':>10}"
    lines = [f"  {'':26}{heads}"]
    for name, runs in found.items():
        seconds = [run.seconds for run in runs]
        of_loop, of_ours, of_equal = (
            statistics.median(
                own / base.seconds for own, base in zip(seconds, found[other], strict=True)
            )
            for other in (LOOP, OURS, EQUAL)
        )
        lines.append(
            f"  {f'{name} {runs[-1].version}':26}{1 / statistics.median(seconds):10.2f}"
            f"{of_loop:12.2f}{of_ours:10.2f}{of_equal:10.2f}{runs[-1].accuracy:10.4f}"
        )
    return "\n".join(lines)


def measure(
    num_clients: int, rounds: int, repeats: int, peers: Mapping[str, Path]
) -> dict[str, str]:
    """Print the table for so many clients; return why which peers are missing."""
    cfg = config(num_clients, rounds)
    clients, test = prepared(cfg)
    arrays = final_arrays(cfg, clients, test)
    expected, accuracy = arrays_digest(arrays), metrics(arrays, test)["accuracy"]

    def own(run: Callable[[], tuple[float, str]]) -> Timed:
        run()  # a peer's process has worked for seconds when its first round ends
        seconds, digest = run()
        if digest != expected:
            raise SystemExit(f"final weights differ: {digest}, expected {expected}")
        return Timed(seconds, accuracy)

    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npz"
        export(clients, test, rows)
        words = [num_clients, rounds, cfg.model.batch_size, cfg.model.learning_rate]
        variants = {
            OURS: partial(own, lambda: ours(num_clients, rounds, tracked=False)),
            EQUAL: partial(own, lambda: unscored(num_clients, rounds)),
            LOOP: partial(own, lambda: loop(num_clients, rounds)),
        }
        take_turns(variants, 1)  # imports and fills caches
        for name, python in peers.items():
            script = APPS / f"{name.replace('-', '_')}_app.py"
            command = [str(python), "-I", str(script), str(rows), *map(str, words)]
            variants[name] = partial(timed, command, Path(folder))
        found, missing = take_turns(variants, repeats)
    check(found)
    print(f"\nK={num_clients}, {rounds} rounds, medians of {repeats} interleaved runs")
    print(table(found), flush=True)
    return missing


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--rounds", type=int, default=20, help=f"at most {FEWER} from {MANY} clients on"
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--envs", type=Path, metavar="DIR", default=cache / "fl_app-peers")
    told = parser.parse_args(arguments)
    if told.rounds < 2 or told.repeats < 1:
        parser.error("--rounds must be at least 2, --repeats at least 1")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    print(machine(*PACKAGES), flush=True)
    peers = {}
    for name in told.peers:
        try:
            peers[name] = environment(PEERS[name], told.envs.absolute() / name)
        except MissingPeerError as error:
            print(f"{name}: skipped: {error}", flush=True)
    for k in told.clients:
        rounds = told.rounds if k < MANY else min(told.rounds, FEWER)
        if rounds < told.rounds:
            print(f"\n{rounds} rounds instead of {told.rounds} with K={k}, for all")
        for name, reason in measure(k, rounds, told.repeats, peers).items():
            print(f"{name}: skipped: {reason}", flush=True)
            del peers[name]


if __name__ == "__main__":
    main()
