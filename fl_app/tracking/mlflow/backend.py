"""MLflow as a sender uses it: the only part of fl_app that talks to MLflow while a run goes on.

MLflow's fluent functions keep the run and the server in globals of the process; everything here
goes through ``MlflowClient``, so that several runs, and the user's own MLflow, do not meet. MLflow
is imported when it is first used, never with this module.

References
----------
MLflow, ``MlflowClient``: https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html
MLflow, models from code: https://mlflow.org/docs/latest/ml/model/models-from-code/
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import math
import os
import shutil
import sqlite3
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from fl_app.home import Process
from fl_app.tracking.liveness import liveness
from fl_app.tracking.mlflow.chart_view import keep_view_of_run
from fl_app.tracking.mlflow.upload import Metric, Run
from fl_app.tracking.mlflow.uri import is_http, sqlite_path, sqlite_uri

__all__ = ["MlflowStore", "load_mlflow", "no_progress_bars", "quiet"]

_LOG = logging.getLogger("fl_app")
_SPOOL_TAG, _PROCESS_TAG = "fl_app.spool", "fl_app.process"
_DATABASE_SECONDS = 5
_ROUND_TAG = "fl_app.server_round"
_SERVED = (
    "__init__.py",
    "errors.py",
    "seeding.py",
    "lazy.py",
    "config",
    "aggregation.py",
    "stacking",
    "data",
    "models",
)
_MODEL_FILES = {"arrays": "arrays.npz", "spec": "spec.json"}
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "scikit-learn", "threadpoolctl")


class MlflowStore:
    """A tracking server or database, a :class:`~fl_app.tracking.mlflow.upload.Store` of uploads.

    Parameters
    ----------
    uri : str
        As :func:`~fl_app.tracking.mlflow.uri.check_uri` returns it.
    home : Path
        Where artifacts of a database without a directory of its own go.
    """

    def __init__(self, uri: str, home: Path) -> None:
        self.uri, self.home = uri, home
        self._is_reached = is_http(uri) or sqlite_path(uri) is not None
        self.viewed: set[str] = set()
        """Ids of the runs made here that a chart view was kept for."""

    def connect(self) -> None:
        """Make sure that the server answers; a SQLite file is made where there is none."""
        self._client.search_experiments(max_results=1)

    @property
    def _client(self) -> Any:
        path = sqlite_path(self.uri)
        if path is not None:
            _prepare_sqlite(path)
        if not self._is_reached:
            _ask_database(self.uri)
            self._is_reached = True
        # Clients are cheap, and MLflow keeps the connection of a URI.
        return load_mlflow().MlflowClient(self.uri)

    def find_run(self, target: Mapping[str, Any], name: str) -> Run | None:
        """Return the run that was made for a journal."""
        client = self._client
        experiment = client.get_experiment_by_name(target["experiment"])
        if experiment is None:
            return None
        found = client.search_runs(
            [experiment.experiment_id], f"tags.`{_SPOOL_TAG}` = '{name}'", max_results=1
        )
        return Run(found[0].info.run_id, experiment.experiment_id) if found else None

    def create_run(self, target: Mapping[str, Any], name: str, start: Mapping[str, Any]) -> Run:
        """Make the run of a journal, in its experiment, at its true time."""
        experiment_id = self.experiment_id(target["experiment"])
        tags = {
            _SPOOL_TAG: name,
            _PROCESS_TAG: _writer(start),
            "mlflow.source.name": start["run"]["tags"].get("mlflow.source.name", "fl_app"),
            "mlflow.source.type": "LOCAL",
            "mlflow.user": _user(),
        }
        client, said = self._client, start["run"]
        made = client.create_run(experiment_id, start["start_ms"], tags, said["name"] or None)
        run = Run(made.info.run_id, experiment_id)
        if keep_view_of_run(client, self.uri, run, said["name"], said["tags"]):
            self.viewed.add(run.run_id)
        return run

    def keep_one(self, run: Run, name: str) -> None:
        """Delete the other runs that were made for a journal; MLflow's client repeats requests."""
        if not is_http(self.uri):
            return
        client = self._client
        for other in client.search_runs([run.experiment_id], f"tags.`{_SPOOL_TAG}` = '{name}'"):
            if other.info.run_id != run.run_id:
                client.delete_run(other.info.run_id)

    def experiment_id(self, name: str) -> str:
        """Return the id of an experiment, made where it is not there."""
        client = self._client
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(client.create_experiment(name, self._artifacts()))
            except Exception:  # somebody else made it in between
                experiment = client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            _LOG.warning("MLflow experiment %r was deleted; it is restored for this run", name)
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _artifacts(self) -> str | None:
        """Return where artifacts go; MLflow's default would be the working directory."""
        if is_http(self.uri):
            return None  # the server decides
        path = sqlite_path(self.uri)
        folder = (self.home if path is None else path.parent) / "artifacts"
        return folder.as_uri()

    def run_state(self, run: Run) -> Literal["active", "deleted", "missing", "trashed"]:
        """Return what became of a run; it is trashed with its experiment, which can be undone."""
        client = self._client
        try:
            stage = client.get_run(run.run_id).info.lifecycle_stage
        except Exception as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return "missing"
            raise
        if stage == "active":
            return "active"
        around = client.get_experiment(run.experiment_id).lifecycle_stage
        return "deleted" if around == "active" else "trashed"

    def log(
        self,
        run: Run,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add metrics, params and tags, in as few calls as MLflow's limits allow."""
        client, entities = self._client, load_mlflow().entities
        for chunk in _chunks(metrics, 1000):
            sent = [entities.Metric(m.key, float(m.value), m.timestamp_ms, m.step) for m in chunk]
            client.log_batch(run.run_id, metrics=sent, synchronous=True)
        for pairs in _chunks(list((params or {}).items()), 100):
            sent = [entities.Param(key, value) for key, value in pairs]
            client.log_batch(run.run_id, params=sent, synchronous=True)
        for pairs in _chunks(list((tags or {}).items()), 100):
            sent = [entities.RunTag(key, value) for key, value in pairs]
            client.log_batch(run.run_id, tags=sent, synchronous=True)

    def log_dataset(self, run: Run, dataset: Mapping[str, str]) -> None:
        """Add what the run learns from to its inputs; MLflow keeps 36 characters of a digest."""
        entities = load_mlflow().entities
        found = entities.Dataset(
            name=dataset["name"],
            digest=dataset["digest"][:36],
            source_type="fl_app",
            source=dataset["source"],
        )
        context = entities.InputTag(key="mlflow.data.context", value="train")
        inputs = [entities.DatasetInput(found, [context])]
        try:
            self._client.log_inputs(run.run_id, datasets=inputs)
        except load_mlflow().exceptions.MlflowException as error:
            # Two runs on the same new data set: MLflow looks for it and then inserts it. The other
            # one's is there now.
            if "unique" not in str(error).lower():
                raise
            self._client.log_inputs(run.run_id, datasets=inputs)

    def log_file(self, run: Run, file: Path, path: str) -> None:
        """Add a file as the artifact with a path, whose last part is its name."""
        self._client.log_artifact(run.run_id, str(file), path.rpartition("/")[0] or None)

    def log_table(self, run: Run, path: str) -> None:
        """Tell the UI that an artifact is a table, besides those that it knows of."""
        key = "mlflow.loggedArtifacts"
        known = json.loads(self._client.get_run(run.run_id).data.tags.get(key, "[]"))
        if (entry := {"path": path, "type": "table"}) not in known:
            value = json.dumps([*known, entry])
            self._client.set_tag(run.run_id, key, value, synchronous=True)

    def log_model(
        self,
        run: Run,
        name: str,
        files: Path,
        metrics: Sequence[Metric],
        step: int,
        known: Mapping[str, Any],
        keep: Callable[[Mapping[str, Any]], None],
    ) -> str:
        """Add a model that predicts from raw rows; that of the same round is left alone.

        `known` and `keep` hold its id and the files of it that were sent. Temporary files, MLflow's
        too, are in the folder around `files`.
        """
        client, entities = self._client, load_mlflow().entities
        where = f"name = '{name}' AND source_run_id = '{run.run_id}'"
        model = None
        for old in client.search_logged_models([run.experiment_id], where):
            is_ready = str(old.status) == "READY" and old.tags.get(_ROUND_TAG) == str(step)
            if is_ready or old.model_id == known.get("model_id"):
                model = old
        if model is None:
            model = client.create_logged_model(
                run.experiment_id, name, run.run_id, tags={_ROUND_TAG: str(step)}
            )
            client.log_outputs(run.run_id, [entities.LoggedModelOutput(model.model_id, step)])
            known = {"model_id": model.model_id, "files": []}
            keep(known)
        if str(model.status) != "READY":
            self._fill_model(run, model, files, metrics, known, keep)
        # Of rounds before, where the run goes on; and what requests made whose answers were lost.
        for old in client.search_logged_models([run.experiment_id], where):
            if old.model_id != model.model_id:
                client.delete_logged_model(old.model_id)
        return str(model.model_id)

    def _fill_model(
        self,
        run: Run,
        model: Any,
        files: Path,
        metrics: Sequence[Metric],
        known: Mapping[str, Any],
        keep: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Send a model's files, from where an earlier try stopped, and its metrics."""
        client, entities = self._client, load_mlflow().entities
        with tempfile.TemporaryDirectory(dir=files.parent) as folder, no_progress_bars():
            root = Path(folder, "model")
            with _temporary_files_in(files.parent):
                _save_model(root, files, model, run)
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                path, done = file.relative_to(root).as_posix(), known["files"]
                if path not in done:
                    place = path.rpartition("/")[0] or None
                    client.log_model_artifact(model.model_id, str(file), place)
                    known = {**known, "files": [*done, path]}
                    keep(known)
        own = [
            entities.Metric(m.key, float(m.value), m.timestamp_ms, m.step, model.model_id)
            for m in metrics
            if not math.isnan(m.value)  # a model's page would show 0
        ]
        for chunk in _chunks(own, 1000):
            client.log_batch(run.run_id, metrics=chunk, synchronous=True)
        client.finalize_logged_model(model.model_id, "READY")

    def register(self, run: Run, model_id: str, name: str) -> None:
        """Register a model as a new version, the champion unless a younger run is that already."""
        client = self._client
        with contextlib.suppress(Exception):  # it is there already; else the next call says so
            client.create_registered_model(name)
        # A source "models:/<id>" would be looked up in the server of MLflow's globals.
        source = client.get_logged_model(model_id).artifact_location
        where = f"name = '{name}' AND run_id = '{run.run_id}'"
        if all(v.source != source for v in client.search_model_versions(where)):
            client.create_model_version(
                name, source, run.run_id, model_id=model_id, await_creation_for=0
            )
        found = client.search_model_versions(where)
        version = min((v.version for v in found if v.source == source), key=int)
        champion = client.get_registered_model(name).aliases.get("champion")
        reigning = None if champion is None else client.get_model_version(name, champion).run_id
        if reigning in (None, run.run_id) or self._start_ms(reigning) <= self._start_ms(run.run_id):
            client.set_registered_model_alias(name, "champion", version)
        for old in found:  # of the run's rounds before, and doubles as of a model
            if old.version != version:
                client.delete_model_version(name, old.version)

    def _start_ms(self, run_id: str | None) -> int:
        return int(self._client.get_run(run_id).info.start_time) if run_id else 0

    def end_run(self, run: Run, status: str, end_ms: int) -> None:
        """Close a run at its true time."""
        self._client.set_terminated(run.run_id, status, end_ms)

    def reopen_run(self, run: Run, start: Mapping[str, Any]) -> None:
        """Say that a run that was closed goes on, in the process that its start names now."""
        self._client.set_tag(run.run_id, _PROCESS_TAG, _writer(start))
        self._client.update_run(run.run_id, "RUNNING")

    def reap(self, pending: set[str]) -> None:
        """Close runs that say RUNNING although their process is gone.

        Of other homes only those whose process this one would see: another container of this host
        may have its name, and the processes there have numbers of their own.

        Parameters
        ----------
        pending : set of str
            Runs of this home that are not sent: sending will close them, with all that they hold.
        """
        client = self._client
        own = Process.current().host
        where = f"attributes.status = 'RUNNING' AND tags.`{_PROCESS_TAG}` LIKE '{own}/%'"
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        for run in client.search_runs(ids, where) if ids else ():
            host, pid, started = run.data.tags[_PROCESS_TAG].split("/", 2)
            name = run.data.tags.get(_SPOOL_TAG)
            if name in pending or not pid.isdecimal():
                continue
            process = Process(host, int(pid), started)
            folder = self.home / "runs" / (name or "no run of ours")
            is_ours = folder.is_dir()
            if (is_ours or process.is_near()) and liveness(folder, process) == "gone":
                run_id = run.info.run_id
                curves = (client.get_metric_history(run_id, key) for key in run.data.metrics)
                stamps = [metric.timestamp for curve in curves for metric in curve]
                client.set_terminated(run_id, "KILLED", max([run.info.start_time, *stamps]))


def _writer(start: Mapping[str, Any]) -> str:
    """Return the process that writes a run, as a tag."""
    process = Process(**start["process"])
    return f"{process.host}/{process.pid}/{process.started}"


_temporary = threading.Lock()


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let temporary files be in a folder that has room: MLflow's own have no choice of theirs.

    Those that other threads make meanwhile are there too, and stay as long as they want them.
    """
    with _temporary:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def load_mlflow() -> Any:
    """Import MLflow, with limits where the user has set none."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    # "View run ... at" and the URI with its password; our own console names the run's page.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    return mlflow


def _ask_database(uri: str) -> None:
    """Raise at once where a database does not answer: MLflow itself asks again for 100 s."""
    import sqlalchemy

    has_limit = not uri.startswith("mssql")
    engine = sqlalchemy.create_engine(
        uri,
        poolclass=sqlalchemy.pool.NullPool,
        connect_args={"connect_timeout": _DATABASE_SECONDS} if has_limit else {},
    )
    engine.connect().close()


def _prepare_sqlite(path: Path) -> None:
    """Make a SQLite store where there is none; one process at a time.

    MLflow itself does not lock here: of 8 processes that start on a new file all 8 fail. Nor can
    it go on with a file in which it was killed, so a new one gets its name when it is whole.
    """
    if _is_made(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=120):
        if _is_made(path):
            return
        part = path.with_name(f"{path.name}.part")
        for leftover in path.parent.glob(f"{part.name}*"):
            leftover.unlink()
        if path.exists():  # of another program, or empty: MLflow adds its tables
            shutil.copyfile(path, part)
        _make_tables(part)
        with contextlib.closing(sqlite3.connect(part)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            # MLflow gives its experiment "Default" a folder in whatever directory is current now.
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0",
                ((path.parent / "artifacts").as_uri(),),
            )
            connection.commit()
        part.replace(path)
        _disconnect(load_mlflow().MlflowClient(sqlite_uri(path)))


def _make_tables(path: Path) -> None:
    client = load_mlflow().MlflowClient(sqlite_uri(path))
    client.search_experiments(max_results=1)
    _disconnect(client)


def _disconnect(client: Any) -> None:
    """Close a client's connections: they would stay with a file that was renamed or removed."""
    client._tracking_client.store.engine.dispose()


def _is_made(path: Path) -> bool:
    if not path.exists():
        return False
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection:
        where = "type = 'table' AND name = 'alembic_version'"
        return bool(connection.execute(f"SELECT 1 FROM sqlite_master WHERE {where}").fetchone())


class _Mute(logging.Filter):
    """Drops what chosen threads log: their failures are told once, in one line of our own.

    That line may go through the same handler, where somebody shares one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int | None] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread not in self.threads or record.name.partition(".")[0] == "fl_app"


_MUTE = _Mute()
_NOISY = ("urllib3.connectionpool", "alembic.runtime.migration", "alembic.runtime.plugins")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the log lines of MLflow and its libraries in this thread from the terminal."""
    load_mlflow()
    for handler in logging.getLogger("mlflow").handlers:
        handler.addFilter(_MUTE)
    for name in _NOISY:
        logging.getLogger(name).addFilter(_MUTE)
    thread = threading.get_ident()
    outer = thread in _MUTE.threads
    _MUTE.threads.add(thread)
    try:
        yield
    finally:
        if not outer:
            _MUTE.threads.discard(thread)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch off the bars that MLflow draws for every copy of a file."""
    name = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _save_model(path: Path, files: Path, model: Any, run: Run) -> None:
    """Write a model in MLflow's form: its code, its arrays and its spec, no pickle."""
    mlflow = load_mlflow()
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    spec = json.loads((files / "spec.json").read_text())
    columns = [ColSpec(AnyType(), name) for name in spec.get("columns", ())]
    params = ParamSchema([ParamSpec("output", DataType.string, "predictions")])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises an input example: a row of somebody's data
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={
                **{name: (files / file).as_uri() for name, file in _MODEL_FILES.items()},
                "code": _packed(Path(folder)).as_uri(),
            },
            signature=ModelSignature(Schema(columns), params=params) if columns else None,
            metadata={"classes": spec.get("encoding", {}).get("labels", [])},
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                run_id=run.run_id,
                model_id=model.model_id,
            ),
        )


def _packed(folder: Path) -> Path:
    """Return the part of the package that predicts as one file: each one costs a request."""
    package = Path(__file__).parents[2]
    with zipfile.ZipFile(folder / "fl_app.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in _SERVED:
            found = (
                [package / name] if name.endswith(".py") else sorted((package / name).rglob("*.py"))
            )
            for file in found:
                packed.write(file, file.relative_to(package.parent))
    return folder / "fl_app.zip"


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
