"""An ending's witnesses: what each error says, and whose word counts first."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Final

from otel_sse import semconv

TIMEOUTS: Final = (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)
_TOO_SLOW: Final = "TooSlowError"  # trio's
_DISCONNECT: Final = {"ClientDisconnect"}
_BROKEN: Final = {"BrokenResourceError"}


def weigh(
    error: BaseException | None, gone: bool, failure: BaseException | None
) -> tuple[BaseException | None, bool]:
    """The error that counts of what left the application, and whether the peer has left.

    Args:
        error: what left the application.
        gone: the peer is known to have left.
        failure: what the send raised that found the peer gone.

    """
    if _follows(error, gone, failure):
        return None, True
    if error is not None and _kinds(error) == _BROKEN:
        around = error.__context__
        # Cancelled, by any event loop.
        error = error if around is None or isinstance(around, Exception) else around
    return error, gone


def verdict(
    error: BaseException | None, *, said: str | None, completed: bool, cut: bool, gone: bool
) -> str:
    """The reason, by the first of the contract's witnesses that speaks."""
    if said is not None:
        return said
    if isinstance(error, Exception):
        inner = innermost(error)
        late = isinstance(inner, TIMEOUTS) or type(inner).__name__ == _TOO_SLOW
        return semconv.TIMEOUT if late else semconv.ERROR
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return semconv.SERVER_SHUTDOWN
    if completed:
        return semconv.COMPLETED
    if cut and not gone:
        return semconv.SERVER_SHUTDOWN
    if gone:
        return semconv.CLIENT_DISCONNECT
    # Cancelled, or returned in the middle of the body, and nothing explains it.
    return semconv.UNKNOWN


def innermost(error: BaseException) -> BaseException:
    """What a task group, or a framework that takes it for a disconnect, has wrapped."""
    if type(error).__name__ == "ClientDisconnect" and error.__context__ is not None:
        return error.__context__
    while len(inner := _inside(error)) == 1:
        error = inner[0]
    return error


def _follows(error: BaseException | None, gone: bool, failure: BaseException | None) -> bool:
    """Whether ``error`` says no more than that the peer has left.

    Starlette makes a ClientDisconnect of any OSError in a stream, the application's too. The
    pipe inside of FastAPI's own streams breaks when the response is given up.
    """
    if gone and _kinds(error) in (_DISCONNECT, _BROKEN):
        return True
    # Causes may lead round in a circle.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if error is failure:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _kinds(error: BaseException | None) -> set[str]:
    """The names of the classes of ``error``, or of what a task group has wrapped."""
    return {kind for each in _inside(error) for kind in _kinds(each)} or {type(error).__name__}


def _inside(error: BaseException | None) -> tuple[BaseException, ...]:
    """The errors of a group; of any other, whatever it has by that name, none."""
    inner = getattr(error, "exceptions", None)
    return inner if isinstance(inner, tuple) else ()
