"""Kills runs at drawn instants, lets them go on, and compares them with one that nobody killed.

``make kill`` runs it: exit status 1 if anything differs. What is compared is the digest of the
final weights, ``result.json``, and all that MLflow has: each (key, step) once with its value (but
for seconds), params, models with their rounds, the weights of each round. Under privacy, where
noise has no seed, it is epsilon: one release for each round and one more for each kill.

A process kills itself with SIGKILL in one of the ``PHASES`` of ``tests/kills.py``, before or after
a call that is drawn, or by a timer. In the simulation and in a deployment, whose processes are
Flower's, the harness kills: the ServerApp's process after a round that is drawn, or the launcher.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import machine
from tests.kills import HOOKS, PHASES, ROUNDS, Kill, Lab

_TASK = ("dataset=wine", "num_clients=4", f"num_server_rounds={ROUNDS}", "tracking.figures=false")


class Kind(NamedTuple):
    """Runs of one kind: its overrides, how many are killed, and the rounds where most kills are."""

    name: str
    words: tuple[str, ...]
    trials: int = 10
    rounds: tuple[int, ...] = ()

    @property
    def runtime(self) -> str:
        """The runtime whose processes are Flower's; else empty."""
        return self.name if self.name in ("simulation", "deployment") else ""

    @property
    def is_private(self) -> bool:
        return self.name.startswith("dp_")

    def command(self, folder: Path) -> list[str]:
        given = {word.partition("=")[0]: word for word in (*_TASK, *self.words)}
        if self.runtime == "deployment":
            del given["num_clients"]
        return ["fl-app", *given.values(), f"output_dir={folder}"]


KINDS = (
    Kind("fedavg", ("strategy=fedavg",)),
    Kind("fedadam", ("strategy=fedadam",)),
    Kind("fedyogi", ("strategy=fedyogi",)),
    Kind("fedstacking", ("strategy=fedstacking",), rounds=(ROUNDS - 1, ROUNDS)),
    Kind("workers", ("strategy=fedadam", "seed=1", "runtime.num_workers=2")),
    Kind("fraction_train", ("fraction_train=.5", "fraction_evaluate=.5")),
    Kind("dp_fixed", ("privacy=dp_fixed",), 3),
    Kind("dp_adaptive", ("privacy=dp_adaptive",), 3),
    Kind("simulation", ("strategy=fedadam", "seed=2", "runtime=simulation"), 3),
    Kind("deployment", ("strategy=fedadam", "runtime=deployment", "runtime.superlink=lab"), 3),
)


class Trial:
    """One run that is killed so many times, and goes on until it is finished."""

    def __init__(self, kind: Kind, lab: Lab, draw: random.Random, seconds: float) -> None:
        self.kind, self.lab, self.draw, self.seconds = kind, lab, draw, seconds
        self.kills = self.again = self.went_on = self.sent = 0
        self.name, self.resumed, self.story = "", False, list[str]()
        self.folder, self.differ = lab.output(), list[str]()

    def run(self, wanted: int) -> None:
        """Kill it so many times, in so far as it comes to where that was drawn."""
        while True:
            done = max(0, self.lab.journal(self.name).count_rounds() - 1) if self.resumed else 0
            room = not (self.kind.runtime or self.kind.is_private) or done < ROUNDS - 1
            kill = self._drawn(done) if self.kills < wanted and room else None
            if self._killed(kill):
                self.kills += 1
                if self._is_over():
                    return
            elif self.kills or self.story[-1] != "exit 0":
                return
            else:  # it never came to where it was to be killed: another one
                self.folder = self.lab.output()
                self.story.clear()

    def _drawn(self, done: int) -> Kill:
        """Draw where it is killed, of whose rounds so many are done."""
        draw, kind = self.draw, self.kind
        if kind.runtime:
            return Kill("after round", number=draw.randint(max(done, 1), ROUNDS - 1))
        if kind.is_private:
            number = draw.randint(1, ROUNDS - done)
            return Kill("aggregated", HOOKS, "aggregate_train", True, number)
        phase = draw.choice([phase for phase in PHASES if self.resumed or phase != "resume"])
        if phase == "timer":
            return Kill(phase, number=round(draw.uniform(0, self.seconds), 3))
        owner, name, times = draw.choice(PHASES[phase])
        number = draw.randint(1, times)
        if phase in ("round", "commit"):
            number = draw.choice(kind.rounds) if kind.rounds and draw.random() < 0.7 else number
            number = max(1, number - done)
        return Kill(phase, owner, name, draw.random() < 0.5, number)

    def _killed(self, kill: Kill | None) -> bool:
        """Begin the run, or let it go on; return whether it was killed."""
        which = [f"resume={self.draw.choice((self.name, 'last'))}"] if self.resumed else []
        words, before = [*self.kind.command(self.folder), *which], self.lab.names()
        process = self.lab.begin(words, self.folder, None if self.kind.runtime else kill)
        dead = False
        if self.kind.runtime and kill is not None:
            dead = self._kill_from_outside(process, before, int(kill.number))
        process.join()
        if not self.resumed:
            self.name = (sorted(self.lab.names() - before) or [""])[0]
        self.went_on += self.resumed
        if not self.kind.runtime:
            dead = process.exitcode == -signal.SIGKILL
        self.story.append(str(kill) if dead else f"exit {process.exitcode}")
        if dead and self.lab.restart is not None and self.draw.random() < 0.5:
            self.lab.restart()
            self.story.append("other SuperNodes")
        return dead

    def _kill_from_outside(self, process: Any, before: set[str], number: int) -> bool:
        """Kill the ServerApp or the launcher after a round; return whether it came to that."""
        from fl_app.home import Process
        from fl_app.tracking.journal_reader import UNREADABLE

        launcher = self.kind.runtime == "simulation" and self.draw.random() < 0.5
        while process.is_alive():
            time.sleep(0.01)
            names = [self.name] if self.resumed else sorted(self.lab.names() - before)
            with contextlib.suppress(*UNREADABLE, KeyError):
                journal = self.lab.journal(names[0]) if names else None
                if journal is None or journal.count_rounds() <= number or journal.end:
                    continue
                server_app = Process(**journal.start["process"])
                if server_app.is_gone():  # it is the one before
                    continue
                os.kill(process.pid if launcher else server_app.pid, signal.SIGKILL)
                deadline = time.monotonic() + 60
                while not server_app.is_gone():
                    assert time.monotonic() < deadline, "the ServerApp outlives its launcher"
                    time.sleep(0.1)
                process.kill()  # it would wait a minute for Flower's own notice
                self.story.append("launcher" if launcher else "ServerApp")
                return True
        return False

    def _is_over(self) -> bool:
        """Send a run whose end is on the disk; else see whether it can go on."""
        journal = self.lab.journal(self.name) if self.name else None
        if journal is not None and journal.end.get("status") == "FINISHED":
            sync = self.lab.begin(["fl-kit", "sync"], self.folder)
            sync.join()
            self.sent += 1
            self.story.append(f"sync: exit {sync.exitcode}")
            return True
        before = self.resumed
        self.resumed = journal is not None and bool(journal.kept("state"))
        assert self.resumed or not before, f"{self.name} has nothing any more to go on from"
        self.again += not self.resumed
        return False


def record(lab: Lab, name: str, folder: Path) -> dict[str, Any]:
    """Return all that a finished run has left but for times and ids, flat."""
    import mlflow

    from fl_app.aggregation import arrays_digest
    from fl_app.tracking.files import read_npz

    result, journal = json.loads((folder / "result.json").read_text()), lab.journal(name)
    client = mlflow.MlflowClient(f"sqlite:///{lab.home}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`fl_app.spool` = '{name}'")
    run_id, tags = run.info.run_id, run.data.tags
    found = {f"result {k}": result.get(k) for k in ("status", "weights_sha256", "error")}
    found |= {f"result {k}": v for k, v in result["metrics"].items()}
    found |= {f"param {k}": v for k, v in run.data.params.items() if k != "output_dir"}
    found |= {tag: tags.get(tag) for tag in ("weights.sha256", "privacy.epsilon", "error")}
    found |= {"status": run.info.status, "result run": result["run_id"] in (None, run_id)}
    found["rounds"] = [line["server_round"] for line, _ in journal.rounds()]
    found["kept"] = [journal.kept("state"), journal.kept("now"), (journal.folder / "lock").exists()]
    last = 0
    for key in run.data.metrics:
        values = client.get_metric_history(run_id, key)
        last = max(last, *(m.timestamp for m in values))
        found[f"{key}: a value a step"] = len({m.step for m in values}) == len(values)
        found |= {f"{key} {m.step}": repr(m.value) for m in values if "seconds" not in key}
    found["ends after its rounds"] = run.info.end_time >= last
    steps = {output.model_id: output.step for output in run.outputs.model_outputs}
    models = client.search_logged_models([run.info.experiment_id])
    own = [m for m in models if m.source_run_id == run_id]
    found["models"] = sorted((m.name, m.status.value, steps.get(m.model_id)) for m in own)
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    for path in (path for path in root.rglob("*") if path.is_file()):
        is_weights = path.parent.name == "weights"
        content = arrays_digest(read_npz(path)) if is_weights else path.name
        content = path.read_text() if path.parent.name == "clients" else content
        found[f"artifact {path.relative_to(root)}"] = content
    return found


def _epsilon(kind: Kind, releases: int) -> float:
    """Return what so many rounds of all four clients cost, by Flower's accountant alone."""
    from flwr.serverapp import GaussianPrivacyEvent, PrivacyConfig, RdpAccountant
    from flwr.serverapp import NeighboringRelation as Relation
    from flwr.serverapp import SamplingMethod as Sampling

    from fl_app.config.compose import compose_config

    own: Any = compose_config([*_TASK, *kind.words]).privacy
    relation, sampling = Relation.ADD_OR_REMOVE_ONE, Sampling.NO_AMPLIFICATION
    accountant = RdpAccountant(PrivacyConfig(own.delta, 4, relation, sampling))
    for _ in range(releases):
        accountant.compose(GaussianPrivacyEvent(own.noise_multiplier, 4, 4))
    return float(accountant.get_privacy_spent().epsilon)


def differences(usual: Mapping[str, Any], trial: Trial) -> list[str]:
    """Compare a run that was killed with the record of one that was not."""
    try:
        own, wanted = record(trial.lab, trial.name, trial.folder), dict(usual)
    except Exception as error:
        said = (trial.folder / "out.txt").read_text().strip().splitlines()[-1:]
        return [f"{type(error).__name__}: {error} ({' '.join(said)})"]
    if trial.kind.is_private:
        epsilon = _epsilon(trial.kind, ROUNDS + trial.kills)
        wanted = {key: wanted[key] for key in ("status", "result status", "rounds", "kept")}
        wanted |= {"privacy.epsilon": f"{epsilon:.6g}", "result privacy/epsilon": epsilon}
        wanted |= {f"privacy/epsilon {ROUNDS}": repr(epsilon)}
        own = {key: own.get(key) for key in wanted}
    pairs = [(key, wanted.get(key), own.get(key)) for key in dict.fromkeys([*wanted, *own])]
    differ = [f"{key} {str(b)[:60]}, not {str(a)[:60]}" for key, a, b in pairs if a != b]
    return [*differ[:5], *([f"{len(differ) - 5} more"] if len(differ) > 5 else [])]


def killed(kind: Kind, lab: Lab, seed: int, trials: int | None = None) -> list[Trial]:
    """Kill runs of a kind; the same seed draws the same instants."""
    draw, done = random.Random(f"{seed} {kind.name}"), list[Trial]()
    with lab.federation() if kind.runtime == "deployment" else contextlib.nullcontext():
        folder, before, begin = lab.output(), lab.names(), time.monotonic()
        process = lab.begin(kind.command(folder), folder)
        process.join()
        assert process.exitcode == 0, (folder / "out.txt").read_text()
        seconds = time.monotonic() - begin
        (name,) = lab.names() - before
        usual = record(lab, name, folder)
        for number in range(kind.trials if trials is None else trials):
            trial = Trial(kind, lab, draw, seconds)
            trial.run(number % 2 + 1 if kind.is_private else draw.choice((1, 2)))
            trial.differ = differences(usual, trial)
            said = "; ".join(trial.differ) or "equal"
            print(f"{kind.name} {number + 1}: {' | '.join(trial.story)}: {said}", flush=True)
            done.append(trial)
    return done


def table(done: Sequence[Sequence[Trial]], seed: int) -> str:
    """Return what docs/reliability.md shows."""
    columns = ("kills", "went_on", "again", "sent")
    where = f"{platform.system()}, {machine('flwr', 'mlflow', 'numpy')}"
    lines = [
        f"Seed {seed}, {date.today()}, {where}.\n",
        "| kind | runs | kills | went on | started again | only sent | equal |",
        "|---|---|---|---|---|---|---|",
    ]
    for own in done:
        sums = [sum(getattr(trial, name) for trial in own) for name in columns]
        cells = [own[0].kind.name, len(own), *sums, sum(not trial.differ for trial in own)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS])
    parser.add_argument("--trials", type=int, help="of each kind; by default 10 or 3")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        lab, kinds = Lab(Path(scratch)), [kind for kind in KINDS if kind.name in given.kinds]
        done = [killed(kind, lab, given.seed, given.trials) for kind in kinds]
    print(f"\n{table(done, given.seed)}")
    if any(trial.differ for own in done for trial in own):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
