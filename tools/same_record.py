"""Says whether fl_app still leaves the record that ``tools/same_record.json`` holds.

``python -m tools.same_record`` runs seven strategies on four data sets in process, some bad
configs and ``--cfg job``, each as a user types it, in an empty home. It compares parameters, tags,
every round's metrics, artifacts, models, exit statuses and what was printed, names what differs
and leaves with 1. It uses the command line and MLflow's client only, so that it outlives any move
inside the package. `LEFT_OUT` has what is not compared, `VARYING` what is replaced in texts.
Whoever means a difference commits what ``--write`` makes of the file.

The file has the last value of a series and the digest of all, and of a long text the digest:
``--full FILE`` writes everything, to be compared by ``diff`` with that of another commit. With
``--all``, four strategies on two data sets in worker processes and in Flower's simulation engine
must have the same metrics and final weights as in process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import yaml
from threadpoolctl import threadpool_info

ROOT = Path(__file__).resolve().parents[1]
FILE = Path(__file__).with_suffix(".json")

SIZE = ("num_clients=5", "num_server_rounds=3", "tracking.figures=true")
STRATEGIES = "fedavg,fedadam,fedmedian,krum,fedstacking,local,pooled"
TABLE = ("dataset=tabular", "dataset.path=sick.csv", "dataset.target='is it'")
SWEEPS = {
    "sets": (f"strategy={STRATEGIES}", "dataset=digits,diabetes,wine"),
    "table": (f"strategy={STRATEGIES}", *TABLE, "dataset.missing=mean"),
}
ELSEWHERE = ("strategy=fedavg,fedadam,krum,fedstacking", "dataset=digits,diabetes")
RUNTIMES = {
    "workers": (*ELSEWHERE, "runtime.num_workers=2"),
    "simulation": (*ELSEWHERE, "runtime=simulation"),
}
BAD = (
    "num_clients=0",
    "num_clients=abc",
    "num_server_rounds=1.5",
    "seed=-1",
    "fraction_train=2",
    "nothing=1",
    "=3",
    "--nonsense",
    "dataset=nothing",
    "dataset.test_fraction=1",
    "dataset=diabetes model=softmax",
    "partitioner=dirichlet partitioner.alpha=0",
    "dataset=tabular",
    "dataset=tabular dataset.path=nowhere.csv dataset.target=sick",
    "dataset=tabular dataset.path=sick.csv dataset.target=nobody",
    "dataset=tabular dataset.path=sick.csv dataset.target=visits",
    "model.dtype=float16",
    "model.learning_rate=fast",
    "strategy.eta=1",
    "strategy=fedadam strategy.eta=0",
    "strategy=krum num_clients=4",
    "strategy=fedstacking strategy.base_models=[forest]",
    "strategy=fedstacking privacy=dp_fixed",
    "strategy=pooled runtime=simulation",
    "faults.kind=x",
    "objective=server/accuracy",
    "tracking.keep_weights=some",
    "tracking.uri=ftp://nowhere",
    "-m strategy=fedavg,nothing",
    "-m strategy=fedavg,krum num_clients=4",
)
CONFIGS = (
    "",
    "strategy=fedstacking dataset=tabular partitioner=dirichlet model=mlp privacy=dp_fixed",
    "strategy=fedadam dataset=heart_disease partitioner=natural runtime=deployment tracking=none",
    "method=fedstacking_trees runtime=simulation seed=7",
    "experiment=two_lines",
)

LEFT_OUT = {
    # of the process, the machine, the commit or the time
    "tags": (
        *("fl_app.process", "fl_app.spool", "flwr.run_id", "sweep.id", "versions"),
        *("git.commit", "mlflow.source.git.commit", "mlflow.user"),
    ),
    "metrics": ("cost/seconds",),
    # of a model: our code, which is what changes, and MLflow's list of versions
    "models": ("*/fl_app.zip", "*/pyfunc_model.py", "*/conda.yaml", "*/python_env.yaml", "*/*.txt"),
}
"""Names that are not compared."""
VARYING = {
    r"\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d-\d+": "SWEEP",
    r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00": "TIME",
    r"\b[0-9a-f]{32}\b": "ID",
    r'(?<=commit )[0-9a-f]{12}|(?<="commit": ")[0-9a-f]{40}': "COMMIT",
    r"\b[\d.]+ s\b": "SECONDS",
    r"^waiting for the tracker.*\n": "",  # where the disk is busy
}
"""What is replaced in texts."""
# Of MLflow's own file of a model.
KEPT_OF_MLMODEL = ("flavors.python_function.loader_module", "metadata", "signature")

Record = dict[str, dict[str, dict[str, str]]]
"""Texts by run, kind and name."""


class Scratch:
    """An empty home for each command, and a table of its own to read.

    Parameters
    ----------
    folder : Path
        Where everything is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = ["age,pain,visits,is it"]
        for i in range(120):
            age, pain = 30 + 37 * i * i % 41, ("none", "on effort", "at rest")[i * i % 7 % 3]
            sick = "sick" if age + 5 * (i % 4) > 57 or pain == "at rest" else "well"
            rows.append(f"{age if i % 50 else ''},{pain},{1 + i % 8},{sick}")
        (folder / "sick.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def run(self, home: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``fl-app`` of this tree."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "FL_APP_"))}
        env |= {
            "PYTHONPATH": str(ROOT),
            "FL_APP_HOME": str(self.folder / home),
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "COLUMNS": "200",
        }
        command = [sys.executable, "-m", "fl_app", *words]
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )

    def printed(self, done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
        """Return a command's exit status and what it printed."""
        out, err = self.tidy(done.stdout), self.tidy(done.stderr)
        return {"printed": {"status": str(done.returncode), "stdout": out, "stderr": err}}

    def tidy(self, text: str) -> str:
        """Replace what belongs to this one run of the command: folders, times and ids."""
        text = text.replace(str(self.folder), "SCRATCH").replace(str(ROOT), "ROOT")
        for pattern, word in VARYING.items():
            text = re.sub(pattern, word, text, flags=re.MULTILINE)
        return text

    def sweep(self, name: str, words: Sequence[str]) -> Record:
        """Run a sweep and read its runs from MLflow."""
        done = self.run(name, "-m", *SIZE, *words, f"hydra.sweep.dir=out/{name}")
        record = {f"sweep of {name}": self.printed(done)}
        if (self.folder / name / "mlflow.db").is_file():
            record |= self.runs(f"sqlite:///{self.folder / name}/mlflow.db")
        return record

    def runs(self, uri: str) -> Record:
        """Read all runs of a store."""
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        places = [e.experiment_id for e in client.search_experiments()]
        found = client.search_runs(places, max_results=1000)
        models: dict[str, list[Any]] = {}
        for model in client.search_logged_models(places, max_results=1000):
            models.setdefault(model.source_run_id, []).append(model)
        record: Record = {}
        for run in found:
            tags, own = dict(run.data.tags), models.get(run.info.run_id, [])
            if tags.get("dataset") == "tabular":
                del tags["config.sha256"]  # of the table's folder too
            if logged := tags.get("mlflow.loggedArtifacts"):  # in the order of two threads
                tags["mlflow.loggedArtifacts"] = str(sorted(map(str, json.loads(logged))))
            steps = {output.model_id: output.step for output in run.outputs.model_outputs}
            history = {key: _series(client, run.info.run_id, key) for key in run.data.metrics}
            inputs = {
                used.dataset.name: f"{used.dataset.source_type} {used.dataset.digest}"
                for used in run.inputs.dataset_inputs
            }
            texts = {
                "run": {"name": run.info.run_name, "status": run.info.status},
                "inputs": inputs,
                "params": {key: self.tidy(text) for key, text in run.data.params.items()},
                "tags": {key: self.tidy(text) for key, text in tags.items()},
                "metrics": history,
                "artifacts": dict(self.files(run.info.artifact_uri)),
                "models": {m.name: f"{m.status} at step {steps.get(m.model_id)}" for m in own},
            }
            for model in own:
                for path, text in self.files(model.artifact_location):
                    texts["models"][f"{model.name}/{path}"] = text
            name = run.info.run_name
            if "strategy" in tags:
                name = f"{tags['strategy']} on {tags['dataset']}"
            record[name] = {kind: _compared(kind, own) for kind, own in texts.items()}
        return record

    def files(self, uri: str) -> Iterator[tuple[str, str]]:
        """Yield path and content of each file in a folder, as comparable text."""
        folder = Path(url2pathname(urlparse(uri).path))
        for file in sorted(folder.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file.relative_to(folder).as_posix(), self.content(file)

    def content(self, file: Path) -> str:
        """Return what a file holds, without what its format adds."""
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                held = {name: arrays[name] for name in arrays.files}
            return "\n".join(
                f"{name} {a.dtype} {a.shape} {_digest(np.ascontiguousarray(a).tobytes())}"
                for name, a in sorted(held.items())
            )
        if file.name == "MLmodel":
            whole = yaml.safe_load(file.read_text("utf-8"))
            return json.dumps({key: _at(whole, key) for key in KEPT_OF_MLMODEL}, sort_keys=True)
        try:
            return self.tidy(file.read_text("utf-8"))
        except UnicodeDecodeError:
            return f"{file.stat().st_size} bytes {_digest(file.read_bytes())}"


def _compared(kind: str, texts: Mapping[str, str]) -> dict[str, str]:
    out = LEFT_OUT.get(kind, ())
    return {name: texts[name] for name in sorted(texts) if not any(fnmatch(name, o) for o in out)}


def _series(client: Any, run_id: str, key: str) -> str:
    history = sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))
    return " ".join(f"{step}:{value!r}" for step, value in history)


def _at(whole: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        whole = (whole or {}).get(key)
    return whole


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def collect(elsewhere: bool) -> tuple[Record, list[str]]:
    """Run everything, two commands at a time.

    Parameters
    ----------
    elsewhere : bool
        Whether other runtimes are compared too.

    Returns
    -------
    record : Record
        With nothing shortened.
    differing : list of str
        A line for each number or digest of another runtime that is not that of this process.
    """
    differing: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        scratch = Scratch(Path(folder).resolve())
        sweeps = [pool.submit(scratch.sweep, *sweep) for sweep in SWEEPS.items()]
        words = {
            **{f"bad: {text}": text.split() for text in BAD},
            **{f"--cfg job {text}".strip(): ["--cfg", "job", *text.split()] for text in CONFIGS},
        }
        short = {name: pool.submit(scratch.run, "short", *own) for name, own in words.items()}
        record = {name: texts for sweep in sweeps for name, texts in sweep.result().items()}
        record |= {name: scratch.printed(done.result()) for name, done in short.items()}
        for runtime in RUNTIMES if elsewhere else ():
            found = scratch.sweep(runtime, RUNTIMES[runtime])
            printed = found.pop(f"sweep of {runtime}")["printed"]
            if printed["status"] != "0" or len(found) != 8:
                differing.append(f"{runtime}: {len(found)} of 8 runs, {printed}")
            own = {name: _weights_and_metrics(texts) for name, texts in found.items()}
            here = {name: _weights_and_metrics(record[name]) for name in found if name in record}
            lines = differences(shortened(here), shortened(own))
            differing += [f"{runtime}: {line}" for line in lines]
    return dict(sorted(record.items())), differing


def _weights_and_metrics(texts: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    digest = texts.get("tags", {}).get("weights.sha256", "none")
    return {"metrics": dict(texts.get("metrics", {})), "tags": {"weights.sha256": digest}}


def shorten(text: str) -> str:
    """Return a text of at most 48 characters, or its end and the digest of all of it."""
    if len(text) <= 48 and "\n" not in text:
        return text
    end = text.split()[-1] if re.fullmatch(r"(\d+:\S+ ?)+", text) else f"{len(text)} characters"
    return f"{end} #{_digest(text.encode())[:8]}"


def shortened(record: Record) -> Record:
    """Return the record as the file holds it; what commands print to stderr stays as it is."""
    return {
        name: {
            kind: {k: t if k == "stderr" else shorten(t) for k, t in texts.items()}
            for kind, texts in kinds.items()
        }
        for name, kinds in record.items()
    }


def differences(before: Record, after: Record) -> list[str]:
    """Return a line for each text that is not the same in both records."""
    old, new = _flat(before), _flat(after)
    return [
        f"{name}: {_shown(old.get(name))} -> {_shown(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(record: Record) -> dict[str, str]:
    return {
        f"{name}, {kind} {key}": text
        for name, kinds in record.items()
        for kind, texts in kinds.items()
        for key, text in texts.items()
    }


def _shown(text: str | None) -> str:
    return "absent" if text is None else repr(text)


def machine() -> dict[str, str]:
    """Return what the last bits of a number depend on."""
    import scipy.linalg  # noqa: F401  its BLAS counts too

    packages = ("flwr", "hydra-core", "matplotlib", "mlflow", "numpy", "scikit-learn", "scipy")
    blas = {
        f"{lib.get('internal_api')} {lib.get('version')} {lib.get('architecture', '')}".strip()
        for lib in threadpool_info()
        if lib.get("user_api") == "blas"
    }
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "blas": ", ".join(sorted(blas)),
        **{name: version(name) for name in packages},
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.same_record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help="write the file anew")
    parser.add_argument("--all", action="store_true", help="workers and the simulation too")
    parser.add_argument("--full", type=Path, metavar="FILE", help="write the whole record to FILE")
    arguments = parser.parse_args()
    record, differing = collect(arguments.all)
    if arguments.full:
        arguments.full.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    runs = sum("weights.sha256" in kinds.get("tags", {}) for kinds in record.values())
    if arguments.write:
        content = {"machine": machine(), "record": shortened(record)}
        FILE.write_text(json.dumps(content, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {FILE}: {runs} runs")
    else:
        held = json.loads(FILE.read_text("utf-8"))
        differing = differences(held["record"], shortened(record)) + differing
        now = machine()
        for key in [key for key in now if now[key] != held["machine"].get(key)]:
            print(f"written with {key} {held['machine'].get(key)}, this is {now[key]}")
    for line in differing:
        print(line)
    if differing:
        sys.exit(f"{len(differing)} differences")
    print(f"the same record: {runs} runs, {len(record) - runs} other texts")


if __name__ == "__main__":
    main()
