"""One call of a ClientApp, as Flower's simulation engine makes it."""

from __future__ import annotations

import logging
import traceback
from contextvars import ContextVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fl_app.grid.private_copies import is_used, private_context, private_message
from fl_app.grid.replies import check_reply, error_reply

__all__ = ["call_client", "in_process"]

_log = logging.getLogger("fl_app.grid")
_in_client: ContextVar[bool] = ContextVar("fl_app_in_client", default=False)


def in_process() -> bool:
    """Say whether the caller runs inside a ClientApp that an ``InProcessGrid`` has called.

    Returns
    -------
    bool
        False in a ServerApp, in every other runtime, and in threads that a ClientApp starts.
    """
    return _in_client.get()


def call_client(
    client_app: ClientApp, message: Message, private: Message, before: Context
) -> tuple[Message, Context | None]:
    """Call a ClientApp; what it raises, and what is no reply, becomes an error reply.

    The engine hands a copy of the Context to the client and stores what comes back with a reply:
    after an exception the old one is in force.

    Parameters
    ----------
    client_app : ClientApp
        The app.
    message : Message
        As delivered; left as it is.
    private : Message
        A private copy of it, for the client.
    before : Context
        The node's; left as it is.

    Returns
    -------
    reply : Message
        A private one.
    after : Context or None
        The node's from now on; None if it stays as it was.
    """
    node_id = message.metadata.dst_node_id
    context = private_context(before)
    calling = _in_client.set(True)
    try:
        reply = client_app(message=private, context=context)
    except (Exception, SystemExit) as error:
        # Text: a handler that keeps a record's exc_info would keep the client's data alive.
        trace = "".join(traceback.format_exception(error))
        _log.error("ClientApp of node %s raised an exception\n%s", node_id, trace)
        return error_reply(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, error), None
    finally:
        _in_client.reset(calling)
    try:
        check_reply(reply, message)
        reply = private_message(reply)
        after = private_context(context) if is_used(context, before) else None
        if after is not None and after.run_config != before.run_config:
            raise ValueError("The `run_config` field of the `Context` object cannot be modified")
    except Exception as error:
        _log.error("ClientApp of node %s cannot be understood: %s", node_id, str(error))
        return error_reply(message, ErrorCode.UNKNOWN, error), None
    return reply, after
