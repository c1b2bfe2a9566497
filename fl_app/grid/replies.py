"""What Flower's link makes of a reply: checked, late, or an error in its stead."""

from __future__ import annotations

import time

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import (
    SUPERLINK_NODE_ID,
    ErrorCode,
)

from fl_app.grid.messages import answers, expiry

__all__ = ["CallTimes", "check_reply", "error_reply", "link_error"]


class CallTimes:
    """How long each node's own calls have taken in an exchange, as if nodes called side by side.

    Parameters
    ----------
    arrived : float
        Unix time in seconds at which the messages came.
    timeout : float or None
        Seconds that a node has.
    """

    def __init__(self, arrived: float, timeout: float | None) -> None:
        self._arrived, self._timeout = arrived, timeout
        self._begun: dict[int, float] = {}
        self._spent: dict[int, float] = {}

    def begin(self, message: Message) -> None:
        """Note that a message's call begins."""
        self._begun[message.metadata.dst_node_id] = time.monotonic()

    def end(self, message: Message) -> None:
        """Note that a message's call has ended."""
        node_id = message.metadata.dst_node_id
        seconds = time.monotonic() - self._begun.pop(node_id)
        self._spent[node_id] = self._spent.get(node_id, 0.0) + seconds

    def are_over(self, message: Message) -> bool:
        """Say whether the timeout of a message's node is over."""
        spent = self._spent.get(message.metadata.dst_node_id, 0.0)
        return self._timeout is not None and spent >= self._timeout

    def expiry(self, message: Message) -> Message | None:
        """Return the error that stands for a message whose time to live is over."""
        spent = self._spent.get(message.metadata.dst_node_id, 0.0)
        if expiry(message) >= self._arrived + spent:
            return None
        reason = "Message Unavailable: its time to live is over"
        return link_error(message, ErrorCode.MESSAGE_UNAVAILABLE, reason)


def check_reply(reply: object, message: Message) -> None:
    """Raise ValueError where Flower's link would not take a reply."""
    if not isinstance(reply, Message):
        raise ValueError(f"a ClientApp returns a Message, not {type(reply).__name__}")
    if not answers(reply, message):
        raise ValueError("the Message is no reply to the one received: Message(..., reply_to=...)")
    if reply.has_content() == reply.has_error():
        raise ValueError("a reply has either a content or an error")
    if reply.has_content() and not isinstance(reply.content, RecordDict):
        raise ValueError(f"a content is a RecordDict, not {type(reply.content).__name__}")


def error_reply(message: Message, code: int, error: BaseException) -> Message:
    """Make the error reply of a node, with the engine's form of a reason."""
    try:
        text = str(error)
    except Exception as second:
        text = f"no text: {type(second).__name__}"
    return Message(Error(code, f"{type(error)}:<'{text}'>"), reply_to=message)


def link_error(message: Message, code: int, reason: str) -> Message:
    """Make the error that Flower's link sends in a node's stead: it comes from the link."""
    asked = message.metadata
    created_at = time.time()
    metadata = Metadata(
        run_id=asked.run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=created_at,
        ttl=max(asked.created_at + asked.ttl - created_at, 0),
        message_type=asked.message_type,
        src_task_id=asked.dst_task_id,
        dst_task_id=asked.src_task_id,
    )
    return make_message(metadata, error=Error(code, reason))
