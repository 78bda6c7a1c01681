"""What is known of servers and frameworks beyond their public interfaces, in one place.

Each function here relies on something that its owner does not document or may change. ``FACTS``
lists them: what is relied on, the versions that it was checked with, and the test that fails
where it no longer holds. Where a fact does not hold, the function returns what means "not known".
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, Final, NamedTuple

from otel_sse.process.backlog import Transport


class Fact(NamedTuple):
    """``versions`` are those that it was checked with; ``test`` is the test that would notice."""

    owner: str
    fact: str
    versions: str
    test: str


FACTS: Final = (
    Fact(
        "uvicorn",
        "send is bound to an object with a transport; its signal handler is bound to the server, "
        "whose config has timeout_graceful_shutdown",
        "0.30 to 0.54",
        "tests/e2e/test_shutdown.py",
    ),
    Fact(
        "hypercorn",
        "some objects behind send stands one with context.terminated, set when the server stops",
        "0.17 to 0.18",
        "tests/e2e/test_endings.py",
    ),
    Fact(
        "gunicorn",
        "a forked worker has the arbiter on its stack, whose cfg has graceful_timeout; the arbiter "
        "passes SIGINT on as SIGQUIT",
        "23 to 27",
        "tests/e2e/test_shutdown.py",
    ),
    Fact(
        "granian",
        "a forked worker has the server on its stack, which has workers_kill_timeout",
        "2.0 to 2.8",
        "tests/e2e/test_shutdown.py",
    ),
    Fact(
        "aiohttp",
        "a request's protocol has no _manager once the connection is lost, and has _force_close "
        "where the server closes it",
        "3.11 to 3.14",
        "tests/e2e/test_endings.py",
    ),
    Fact("trio", "its time-outs are called TooSlowError", "0.25 to 0.35", "tests/e2e/test_trio.py"),
    Fact(
        "Litestar",
        "the scope has path_template",
        "2.0 to 2.24",
        "tests/e2e/test_frameworks.py",
    ),
    Fact(
        "Starlette, Litestar",
        "an exception that has a handler is wrapped in one that says that the response has started",
        "Starlette 0.35 to 1.10, Litestar 2.0 to 2.24",
        "tests/e2e/test_wrapped_errors.py",
    ),
    Fact(
        "Starlette",
        "background tasks run in the module starlette.background",
        "0.35 to 1.10",
        "tests/e2e/test_background_tasks.py",
    ),
    Fact(
        "opentelemetry-instrumentation-requests",
        "its spans have the scope of its name, and are current around the adapter",
        "0.61b0 to 0.66b1",
        "tests/e2e/test_coexistence.py",
    ),
)

# Seconds after which a process that was asked to stop is killed, where nothing is known:
# `docker stop` allows 10 s, the shortest of the usual limits.
DEFAULT_KILL_TIMEOUT: Final = 10.0

TRIO_TIMEOUT: Final = "TooSlowError"
CONTRIB_REQUESTS_SCOPE: Final = "opentelemetry.instrumentation.requests"

# Objects that are looked at between a framework's send and the server's: far more than any stack
# of middleware has, and a bound for objects that make new ones whenever they are looked at.
_MAX_OBJECTS: Final = 10_000
# Where servers and middleware keep the send that they wrap.
_INNER: Final = ("__self__", "__wrapped__", "func", "send", "_send", "_receive", "writer")


def find_transport(channel: Any) -> Transport | None:
    """The asyncio transport behind an ASGI ``send`` or ``receive``; None where none is found.

    Servers bind them to the object that holds it, directly or some objects deep; middleware wraps
    them in objects and closures.
    """
    found: Transport | None = _find_behind(channel, _transport)
    return found


def is_server_stopping(channel: Any) -> bool:
    """Whether the server behind ``channel`` is stopping. Only hypercorn shows it there."""
    return "hypercorn" in sys.modules and _find_behind(channel, _terminated) is not None


def kill_timeout(handler: Any, frame: FrameType | None) -> float:
    """Seconds until the live streams are cut by the server or the process is killed.

    Args:
        handler: the server's own signal handler: uvicorn's knows when uvicorn cuts them.
        frame: the frame that the signal interrupted: a forked worker of gunicorn or granian has
            its master on the stack, which kills the worker in the end.

    Returns:
        Infinity where the server cuts the streams itself.

    """
    while frame is not None:
        master: Any = frame.f_locals.get("self")
        home = type(master).__module__.partition(".")[0]
        config = getattr(master, "cfg", None) if home == "gunicorn" else master
        name = {"gunicorn": "graceful_timeout", "granian": "workers_kill_timeout"}.get(home, "")
        if hasattr(config, name):
            return float(getattr(config, name) or DEFAULT_KILL_TIMEOUT)
        frame = frame.f_back
    uvicorn = getattr(getattr(handler, "__self__", None), "config", None)
    own = getattr(uvicorn, "timeout_graceful_shutdown", None)
    return DEFAULT_KILL_TIMEOUT if own is None else float("inf")


def uses_sigquit() -> bool:
    """Whether SIGQUIT may ask this process to stop: gunicorn's master sends it for a SIGINT."""
    return "gunicorn" in sys.modules


def is_event_loop_handler(handler: Any) -> bool:
    """Whether an event loop has installed the signal handler for ``add_signal_handler``."""
    return str(getattr(handler, "__module__", "")).partition(".")[0] in ("asyncio", "uvloop")


def is_aiohttp_peer_lost(protocol: Any) -> bool:
    """Whether the connection of an ``aiohttp.web`` request is lost."""
    return getattr(protocol, "_manager", None) is None


def is_aiohttp_closing(protocol: Any) -> bool:
    """Whether ``aiohttp.web`` closes the connection of a request."""
    return bool(getattr(protocol, "_force_close", False))


def route_in_scope(scope: Mapping[str, Any]) -> str | None:
    """The route that a framework has put into the ASGI scope; Litestar does."""
    route: str | None = scope.get("path_template")
    return route


def unwrap_framework_error(error: BaseException) -> BaseException | None:
    """The application's exception that a framework has wrapped since the response had started.

    Starlette and Litestar do that with an exception for which the application has a handler.
    """
    text = str(error.args[0]) if error.args else ""
    wrapped = text == "Caught handled exception, but response already started." or (
        text == "Exception caught after response started" and "litestar" in type(error).__module__
    )
    return error.__cause__ if wrapped else None


def is_from_background_task(error: BaseException) -> bool:
    """Whether ``error`` was raised in a background task of Starlette, after the response."""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__name__") == "starlette.background":
            return True
        traceback = traceback.tb_next
    return False


def _transport(item: Any) -> Any:
    for name in ("transport", "_transport"):
        transport = getattr(item, name, None)
        if callable(getattr(transport, "get_write_buffer_size", None)):
            return transport
    return None


def _terminated(item: Any) -> Any:
    terminated = getattr(getattr(item, "context", None), "terminated", None)
    return terminated if terminated is not None and terminated.is_set() else None


def _find_behind(channel: Any, wanted: Callable[[Any], Any]) -> Any:
    # The nearest first. They refer back to each other, and are kept, so that no id is reused.
    queue = deque([channel])
    seen = {id(channel): channel}
    while queue and len(seen) < _MAX_OBJECTS:
        item = queue.popleft()
        # An attribute of an unknown object may raise anything: the search ends there alone.
        with suppress(Exception):
            found = wanted(item)
            if found is not None:
                return found
            for each in _wrapped_by(item):
                if id(each) not in seen:
                    seen[id(each)] = each
                    queue.append(each)
    return None


def _wrapped_by(item: Any) -> list[Any]:
    found = [getattr(item, name, None) for name in _INNER]
    free = getattr(getattr(item, "__code__", None), "co_freevars", ())
    for name, cell in zip(free, getattr(item, "__closure__", None) or (), strict=False):
        if name.endswith(("send", "receive")):
            found.append(cell.cell_contents)
    return [each for each in found if each is not None]
