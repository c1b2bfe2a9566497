"""Finds the run that ``resume=`` names, checks that it is the same one, and hands it over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fl_app.config.options import MlflowConfig
from fl_app.config.run_request import RunRequest, param_of, versions
from fl_app.config.schema import LAST, Config
from fl_app.config.serialization import digest, flatten, parse, to_json
from fl_app.errors import ConfigError, one_line
from fl_app.federation.protocol import run_digest
from fl_app.home import RUN_NAME, home_dir
from fl_app.tracking.checkpoints import Checkpoint, read_checkpoint, read_rounds
from fl_app.tracking.housekeeping import LeftRun, cannot_resume, left_runs
from fl_app.tracking.journal import Journal
from fl_app.tracking.journal_reader import UNREADABLE, JournalReader
from fl_app.tracking.records import RoundRecord, Status

__all__ = ["Resumed", "can_go_on", "code_of", "same_run", "sweep_of", "take_over"]

_FREE = ("runtime", "tracking", "output_dir", "skip_finished", "resume", "resume_anyway")
"""What may be another than it was: it decides no number."""
_MAX_NAMED = 5


@dataclass(frozen=True)
class Resumed:
    """A run that goes on here.

    Parameters
    ----------
    journal : Journal
        Its journal, held.
    checkpoint : Checkpoint
        Where it stands.
    rounds : sequence of RoundRecord
        What is known of its rounds.
    releases : sequence of int
        Under privacy, how many clients each round has asked, also those that are not whole.
    seconds : float
        What its rounds took.
    facts : mapping of str to str
        Tags and texts that it has learnt after its start.
    status : {"FAILED", "KILLED"}
        How it broke off.
    """

    journal: Journal
    checkpoint: Checkpoint
    rounds: list[RoundRecord]
    releases: list[int]
    seconds: float
    facts: Mapping[str, str]
    status: Status = "KILLED"

    def check(self, key: str, now: str) -> None:
        """Compare what a run learns with what it was before.

        Raises
        ------
        ConfigError
            If it is not the same, with the difference.
        """
        before = self.facts.get(key)
        if before is not None and _canonical(before) != _canonical(now):
            was, is_ = _short(before, now), _short(now, before)
            allowed = f"a run of the same data and nodes; its {key} was {was}, and is {is_}"
            raise ConfigError("resume", self.journal.name, allowed)


def same_run(request: RunRequest, elsewhere: bool = False) -> RunRequest:
    """Return a request that names the run which goes on, with that run's config.

    Parameters
    ----------
    request : RunRequest
        With ``resume`` in its config, or without: then it is returned itself.
    elsewhere : bool, default False
        Whether the run may be another machine's: then one that is not found here is its affair.

    Raises
    ------
    ConfigError
        If there is no such run, it cannot go on, or its config is another one.
    """
    config, home = request.config, home_dir()
    if config.resume is None:
        return request
    if config.resume == LAST:
        run = next(_broken(home, digest(config)), None)
        if run is None and elsewhere:
            return request
        if run is None:
            raise ConfigError("resume", LAST, f"a run of this config that broke off{_named(home)}")
        return replace(request, config=replace(config, resume=run.folder.name))
    run = next((r for r in left_runs(home) if _is(r, config.resume)), None)
    if run is None and elsewhere:
        return request
    if run is None:
        raise ConfigError("resume", config.resume, f"a run of {home}{_named(home)}")
    if why := run.cannot_resume:
        raise ConfigError("resume", config.resume, f"a run that broke off; {why}")
    before = _config_of(run)
    old, new = flatten(before), flatten(config)
    for key in dict.fromkeys(map(param_of, request.overrides)):
        if not key.startswith(_FREE) and key in new and old.get(key) != new[key]:
            was = f"{old[key]}, as it was" if key in old else "left out, as it was"
            raise ConfigError(key, new[key], f"{was} in the run {run.folder.name}")
    mine = {param_of(o).partition(".")[0] for o in request.overrides}
    keep = {name: getattr(config, name) for name in _FREE if name in mine}
    keep |= {"output_dir": config.output_dir, "resume": run.folder.name, "skip_finished": False}
    return replace(request, config=replace(before, **keep))


def can_go_on(config: Config) -> bool:
    """Return whether ``resume=last`` finds a run of this config."""
    return next(_broken(home_dir(), digest(config)), None) is not None


def sweep_of(digests: Sequence[str]) -> str:
    """Return the id of the newest sweep of this home with a run of such a config; "" for none."""
    for run in left_runs(home_dir()):
        tags = _tags(run)
        if tags.get("config.sha256") in digests and (sweep_id := tags.get("sweep.id")):
            return sweep_id
    return ""


def take_over(config: Config) -> Resumed:
    """Take the run that a config names, and check that code and versions are what they were.

    Raises
    ------
    ConfigError
        If it cannot go on, somebody else writes it, or it is not the same code.
    """
    name = str(config.resume)
    folder = home_dir() / "runs" / name
    try:
        journal = Journal.claim(folder)
    except UNREADABLE as error:
        raise ConfigError("resume", name, f"a readable journal ({one_line(error)})") from None
    if journal is None:
        known = folder.exists()
        allowed = "a run that nobody writes or sends now" if known else f"a run of {home_dir()}"
        raise ConfigError("resume", name, allowed)
    try:
        return _read(journal, config)
    except BaseException:
        with suppress(*UNREADABLE):
            if journal.sent.get("whole"):
                journal.mark_whole()
        journal.release()
        raise


def _read(journal: Journal, config: Config) -> Resumed:
    try:
        journal.check()
        start, end, whole = journal.start, journal.end, journal.has_checkpoint()
        checkpoint = read_checkpoint(journal) if whole else None
        rounds = [] if checkpoint is None else read_rounds(journal, checkpoint)
    except (*UNREADABLE, KeyError) as error:
        raise ConfigError("resume", journal.name, f"a whole journal ({one_line(error)})") from None
    if why := cannot_resume(str(end.get("status", "")), str(end.get("error", "")), whole):
        raise ConfigError("resume", journal.name, f"a run that broke off; {why}")
    assert checkpoint is not None
    recorded = bool(start["target"])
    if recorded != isinstance(config.tracking, MlflowConfig):
        allowed = "mlflow, where the run is" if recorded else "not mlflow, where the run is not"
        raise ConfigError("tracking", config.tracking.name, allowed)
    tags = dict(start["run"]["tags"])
    if (given := digest(config)) != tags["config.sha256"]:
        raise ConfigError("resume", journal.name, f"a run of this config (config.sha256 {given})")
    for key, now in code_of(config).items():
        if (before := checkpoint.state["code"][key]) != now and not config.resume_anyway:
            raise ConfigError(key, now, f"{before}, as before; or resume_anyway=true")
    facts: dict[str, str] = {}
    for note, _ in journal.notes():
        facts |= {**note["tags"], **note["texts"]}
    events = (event for event, _ in journal.events())
    releases = [int(e["count"]) for e in events if e.get("event") == "release"]
    status: Status = "FAILED" if end.get("status") == "FAILED" else "KILLED"
    seconds = sum(r.cost.get("seconds", 0.0) for r in rounds)
    return Resumed(journal, checkpoint, rounds, releases, seconds, facts, status)


def code_of(config: Config) -> dict[str, str]:
    """Return what makes a run's numbers beside its config: source and packages."""
    numbers = ", ".join(f"{name} {number}" for name, number in versions().items())
    return {"versions": numbers, "code": run_digest(to_json(config))}


def _broken(home: Path, sha256: str) -> Iterator[LeftRun]:
    """Yield the runs of a config that broke off, the newest first."""
    for run in left_runs(home):
        if not run.cannot_resume and _tags(run).get("config.sha256") == sha256:
            yield run


def _named(home: Path) -> str:
    runs = [run for run in left_runs(home) if not run.cannot_resume]
    if not runs:
        return "; none of this home broke off with a round to go on from"
    listed = ", ".join(f"{run.folder.name} ({run.title})" for run in runs[:_MAX_NAMED])
    return f"; that broke off: {listed}{', ...' if len(runs) > _MAX_NAMED else ''}"


def _is(run: LeftRun, name: str) -> bool:
    """Return whether a run has a name on this machine, or an id in MLflow."""
    if RUN_NAME.fullmatch(name):
        return run.folder.name == name
    try:
        return bool(JournalReader(run.folder).sent.get("run_id") == name)
    except UNREADABLE:
        return False


def _tags(run: LeftRun) -> Mapping[str, str]:
    try:
        tags: Mapping[str, str] = JournalReader(run.folder).start["run"]["tags"]
    except (*UNREADABLE, KeyError):
        return {}
    return tags


def _config_of(run: LeftRun) -> Config:
    try:
        text = JournalReader(run.folder).start["run"]["texts"]["config/config.yaml"]
    except (*UNREADABLE, KeyError):
        raise ConfigError("resume", run.folder.name, "a run that fl-app has started") from None
    return parse(yaml.safe_load(text))


def _canonical(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _short(text: str, other: str) -> str:
    """Return a text, or of a long one the part that differs."""
    begin = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    begin = max(0, begin - 20) if len(text) > 80 else 0
    end = begin + 80
    return f"{'...' if begin else ''}{text[begin:end]}{'...' if end < len(text) else ''}"
