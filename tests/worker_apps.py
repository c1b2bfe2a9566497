"""A ClientApp that does what its message says: workers import it, so it imports little."""

from __future__ import annotations

import logging
import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from threadpoolctl import threadpool_info

from fl_app.grid import InProcessGrid, in_process
from fl_app.grid.arrays import LazyArray

W = np.arange(6.0).reshape(2, 3)


class MuteError(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError


def act(message: Message, context: Context) -> Message:
    """Count the call in the state, do what the message asks for, and answer what is to be seen."""
    state = context.state
    history: Any = state.config_records["own"]["calls"] if "own" in state else []
    history.append(len(history) + 1)
    state["own"] = ConfigRecord({"calls": history})
    state["arrays"] = ArrayRecord({"w": Array(W + len(history))})
    asked = message.content.config_records["do"] if "do" in message.content else ConfigRecord()
    partition = context.node_config["partition-id"]
    if asked.get("only", partition) == partition:
        reply = _do(str(asked.get("what", "")), asked, message, context)
        if reply is not None:
            return reply  # type: ignore[no-any-return]
    names = sorted(state)
    told = ConfigRecord(
        {"n": len(history), "names": names, "partition": partition, "of": _config(context)}
    )
    return Message(RecordDict({"told": told}), reply_to=message)


def _config(context: Context) -> str:
    return repr((sorted(context.node_config.items()), sorted(context.run_config.items())))


def _do(what: str, asked: ConfigRecord, message: Message, context: Context) -> Any:
    answer = Message(RecordDict(), reply_to=message)
    match what:
        case "raise":
            raise RuntimeError("boom")
        case "raise mute":
            raise MuteError
        case "exit":
            raise SystemExit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "return 7":
            return 7
        case "return the message":
            return message
        case "reply twice":
            return Message(RecordDict(), reply_to=answer)
        case "forge":
            vars(answer.metadata)["_src_node_id"] += 1
            return answer
        case "neither":
            vars(answer)["_content"] = None
            return answer
        case "error reply":
            return Message(Error(17, "refused"), reply_to=message)
        case "change run_config":
            context.run_config["lr"] = 9.0
        case "change node_config":
            context.node_config["seen"] = True
        case "new state":
            context.state = RecordDict({"own": ConfigRecord({"calls": [7] * 100})})
        case "no state":
            context.state = None  # type: ignore[assignment]
        case "attribute":
            context.more = [1]  # type: ignore[attr-defined]
        case "has attribute":
            answer.content["more"] = ConfigRecord({"it": context.more})  # type: ignore[attr-defined]
            return answer
        case "not picklable":
            context.more = lambda: 0  # type: ignore[attr-defined]
        case "echo":
            return Message(message.content, reply_to=message)
        case "harm":
            return _harm(message)
        case "tell":
            answer.content["told"] = _surroundings(message)
            return answer
        case "log":
            logging.getLogger("tests.client").warning("partition %s", asked["only"])
            logging.getLogger("tests.client").debug("nobody wants to know")
        case "die":
            os._exit(3)
        case "get SIGINT":
            os.kill(os.getpid(), signal.SIGINT)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "meet":
            _meet(Path(str(asked["folder"])), message)
        case "stay":
            Path(str(asked["folder"]), str(os.getpid())).touch()
            while True:
                time.sleep(0.01)
        case "start":
            answer.content["told"] = _start(str(asked["end"]))
            return answer
        case "nest":
            with InProcessGrid(app, num_supernodes=2, num_workers=2) as grid:
                messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
                replies = list(grid.send_and_receive(messages))
            answer.content["nested"] = ConfigRecord({"failed": [r.has_error() for r in replies]})
            return answer
    return None


def _harm(message: Message) -> Message:
    """Change all that can be changed."""
    content = message.content
    record = content.array_records["arrays"]
    mine = record["w"].numpy()
    mine += 1
    record["w"] = Array(mine)
    classes: Any = content.config_records["do"]["list"]
    classes.append(3)
    content["junk"] = ConfigRecord()
    reply = Message(content, reply_to=message)
    message.metadata.dst_node_id = 5
    message.content = RecordDict()
    return reply


def _start(end: str) -> ConfigRecord:
    """Use processes and end them; leave one that sleeps, and perhaps end like the worker's call."""
    fork = get_context("fork")
    with fork.Pool(2) as pool:
        lengths = pool.map(len, ["a", "bb", "ccc"])
    left = fork.Process(target=time.sleep, args=(600,), daemon=True)
    left.start()
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return ConfigRecord({"lengths": lengths, "left": left.pid or 0})


def _surroundings(message: Message) -> ConfigRecord:
    own = Message(RecordDict(), 5, "train")
    arrays = message.content.array_records["arrays"] if "arrays" in message.content else {}
    return ConfigRecord(
        {
            "pid": os.getpid(),
            "in_process": in_process(),
            "identity": [TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id],
            "sender": [own.metadata.run_id, own.metadata.src_node_id],
            "threads": [int(library["num_threads"]) for library in threadpool_info()],
            "held": [isinstance(array, LazyArray) for array in arrays.values()],
        }
    )


def _meet(folder: Path, message: Message) -> None:
    """Wait until another one waits: calls that are not made side by side fail."""
    (folder / str(message.metadata.dst_node_id)).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("nobody came")
        time.sleep(0.001)


app = ClientApp()
for _register in (app.train, app.evaluate, app.query):
    _register()(act)
