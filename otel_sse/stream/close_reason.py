"""Why a stream is over: which error counts, and which cause comes first.

A close has several sources: what the application set, the exception that left it, the end of the
body, a disconnect, the server's shutdown. ``resolve_error`` finds out which error counts, and
``classify_close`` takes the first cause in the order that docs/endings.md describes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Final

from otel_sse import semconv
from otel_sse.process.event_loops import running_loop
from otel_sse.process.server_facts import (
    is_cancellation,
    is_from_background_task,
    is_timeout,
    unwrap_framework_error,
)
from otel_sse.process.signals import in_main_thread

TIMEOUTS: Final = (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)
# By name, since neither Starlette nor anyio need be installed.
_CLIENT_DISCONNECT: Final = "ClientDisconnect"
_BROKEN_PIPE: Final = "BrokenResourceError"
_MAX_WRAPPERS: Final = 100


def resolve_error(
    error: BaseException | None,
    *,
    disconnected: bool,
    cut: bool,
    send_error: BaseException | None,
) -> tuple[BaseException | None, bool]:
    """The error that counts, and whether the peer has disconnected.

    Args:
        error: what left the application.
        disconnected: the peer is known to have disconnected.
        cut: the server or the process ended the stream.
        send_error: what the send raised that found the peer disconnected.

    """
    if error is None:
        return None, disconnected
    if is_error(error) and (disconnected or (cut and _is_from_cleanup(error))):
        # The clean-up's: the stream was over before it.
        return None, disconnected
    if is_from_background_task(error):
        # It ran after the stream.
        return None, disconnected
    if _is_from_send(error, send_error):
        return None, True
    if _class_names(error) == {_BROKEN_PIPE}:
        context = error.__context__
        # A cancellation, of any event loop, is the cause of the broken pipe.
        error = error if context is None or is_error(context) else context
    return error, disconnected


def classify_close(
    error: BaseException | None,
    *,
    reason: str | None,
    completed: bool,
    disconnected: bool,
    cut_first: bool,
    cut: bool,
) -> str:
    """The value of ``sse.close.reason``, by the first cause that applies.

    Args:
        error: the error that counts; see ``resolve_error``.
        reason: what the application set.
        completed: the end of the body was written to a peer that was there.
        disconnected: the peer has disconnected.
        cut_first: the server had begun to cut the stream before that.
        cut: the server or the process ended the stream.

    """
    if reason is not None:
        return reason
    if error is not None and is_error(error):
        return semconv.TIMEOUT if _is_timeout(root_cause(error)) else semconv.ERROR
    if completed:
        return semconv.COMPLETED
    if disconnected and not cut_first:
        return semconv.CLIENT_DISCONNECT
    if cut or isinstance(error, (KeyboardInterrupt, SystemExit)):
        return semconv.SERVER_SHUTDOWN
    if disconnected:
        return semconv.CLIENT_DISCONNECT
    # Cancelled, or returned in the middle of the body, and nothing explains it.
    return semconv.UNKNOWN


def is_error(error: BaseException) -> bool:
    """Whether it is an exception that the application has raised, rather than one that cancels it
    or ends the process. Most are an ``Exception``, but an application may have others.
    """
    if isinstance(error, Exception):
        return True
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return False
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        # In a thread of a server's pool it ends what the thread does, and nothing else.
        return not in_main_thread() and running_loop() is None
    return not is_cancellation(error) and all(map(is_error, _group_members(error)))


def root_cause(error: BaseException) -> BaseException:
    """The application's own exception, without what a task group or a framework has added."""
    # Bounded: causes may form a circle.
    for _ in range(_MAX_WRAPPERS):
        members = _group_members(error)
        if len(members) == 1:
            inner: BaseException | None = members[0]
        elif type(error).__name__ == _CLIENT_DISCONNECT:
            inner = error.__context__
        else:
            inner = unwrap_framework_error(error)
        if inner is None:
            break
        error = inner
    return error


def _is_from_send(error: BaseException | None, send_error: BaseException | None) -> bool:
    """Whether ``error`` comes of ``send_error``: it means only that the peer has disconnected.

    Starlette raises ClientDisconnect for any OSError in a stream, also the application's.
    """
    # Causes may form a circle.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if error is send_error:
            return True
        seen.add(id(error))
        error = _came_from(error)
    return False


def _is_from_cleanup(error: BaseException) -> bool:
    """Whether ``error`` was raised while the application was being cancelled. A time-out of its own
    is a cancellation, too, but its error.
    """
    if _is_timeout(root_cause(error)):
        return False
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        members = _group_members(cause)
        cause = members[0] if len(members) == 1 else _came_from(cause)
        if cause is not None and not is_error(cause):
            return True
    return False


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TIMEOUTS) or is_timeout(error)


def _came_from(error: BaseException) -> BaseException | None:
    """What ``error`` was raised from, or while handling it."""
    # Not by ``or``: an exception may be false.
    return error.__context__ if error.__cause__ is None else error.__cause__


def _class_names(error: BaseException | None) -> set[str]:
    """The name of the class of ``error``, or the names of those that a task group has wrapped."""
    members = _group_members(error)
    return {name for each in members for name in _class_names(each)} or {type(error).__name__}


def _group_members(error: BaseException | None) -> tuple[BaseException, ...]:
    """The errors of an exception group; none of any other, whatever it has by that name."""
    members = getattr(error, "exceptions", None)
    return members if isinstance(members, tuple) else ()
