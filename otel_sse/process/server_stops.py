"""Which servers are stopping, with a signal or without one.

A worker is recycled, a program sets ``should_exit``, a server runs in a thread that gets no signal:
what ends the streams then is the server all the same. Two servers have an object for each server
that their connections refer to, and that shows it:

- uvicorn: the ``ServerState`` of its protocols. Its ``Server`` is found by that once, in the
  coroutine that runs it; ``should_exit`` is its own sign, and its ``shutdown`` is wrapped, since a
  worker that is recycled sets none. Where uvicorn was stopped by a signal it raises that again
  right after ``shutdown``, and its default action ends the process in that moment: what is to be
  exported is exported before.
- hypercorn: the ``WorkerContext``, whose event ``terminated`` is set. Its workers get no signal
  from their parent, and on Python 3.12 and later they wait for ever for their connections.

aiohttp, Tornado and Sanic cut each connection by itself, see their files in ``servers``. Granian's
workers and gunicorn's are always asked by a signal.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, Final

from otel_sse.process.event_loops import EventLoop, running_loop
from otel_sse.process.server_facts import (
    find_server,
    find_uvicorn_server,
    has_stop_signal,
    is_stop_event_set,
    is_stop_requested,
)

OnStop = Callable[[EventLoop | None], None]
BeforeSignal = Callable[[], None]

_lock: Final = threading.Lock()
# Replaced as a whole, so that other threads may read it.
_servers: tuple[_Server, ...] = ()


class _Server:
    """A server that serves a stream, or has done so; it must not outlive the server itself.

    Attributes:
        identity: what its connections refer to.
        uvicorn: the Server, if it is uvicorn's, and if it is still there.
        loop: its event loop.
        began: its shutdown has begun.

    """

    __slots__ = ("began", "identity", "loop", "uvicorn")

    def __init__(self, identity: Any) -> None:
        self.identity: weakref.ref[Any] = weakref.ref(identity)
        self.loop = running_loop()
        self.uvicorn: Callable[[], Any] = lambda: None
        self.began = False

    def is_stopping(self) -> bool:
        return self.began or is_stop_requested(self.uvicorn()) or is_stop_event_set(self.identity())


def observe_server(channel: Any, on_stop: OnStop, before_signal: BeforeSignal) -> None:
    """Observes the server behind ``channel``, if it is not observed yet. Raises nothing.

    Args:
        channel: an ASGI ``send``, called in the server's event loop.
        on_stop: called, with that loop, when a server stops that nothing else may announce.
        before_signal: called before a signal's default action ends the process.

    """
    with suppress(Exception):
        identity = find_server(channel)
        if identity is None or any(each.identity() is identity for each in _servers):
            return
        server = _Server(identity)
        _add(server)
        uvicorn = find_uvicorn_server(identity)
        if uvicorn is not None:
            server.uvicorn = weakref.ref(uvicorn)
            _wrap_shutdown(uvicorn, server, before_signal)
        elif hasattr(identity, "terminated"):
            _wrap_event(identity.terminated, server, on_stop)


def is_server_stopping(channel: Any) -> bool:
    """Whether the server behind ``channel``, an ASGI ``send``, is stopping, as far as it shows."""
    # Looked for only while any of them is stopping: it takes some 20 us.
    if not any(each.is_stopping() for each in _servers):
        return False
    identity = find_server(channel)
    # A server that is gone has no identity either.
    return identity is not None and any(
        each.identity() is identity and each.is_stopping() for each in _servers
    )


def is_end_observed() -> bool:
    """Whether the server of this event loop calls ``before_signal`` at its end."""
    loop = running_loop()
    return any(each.loop == loop and each.uvicorn() is not None for each in _servers)


def _add(server: _Server) -> None:
    global _servers
    with _lock:
        _servers = (*(each for each in _servers if each.identity() is not None), server)


def _wrap_shutdown(uvicorn: Any, server: _Server, before_signal: BeforeSignal) -> None:
    original = uvicorn.shutdown

    @wraps(original)
    async def shutdown(*args: Any, **kwargs: Any) -> Any:
        server.began = True
        result = await original(*args, **kwargs)
        if has_stop_signal(uvicorn):
            with suppress(Exception):
                before_signal()
        return result

    uvicorn.shutdown = shutdown


def _wrap_event(event: Any, server: _Server, on_stop: OnStop) -> None:
    original = event.set

    @wraps(original)
    async def set_event(*args: Any, **kwargs: Any) -> Any:
        server.began = True
        with suppress(Exception):
            on_stop(running_loop())
        return await original(*args, **kwargs)

    event.set = set_event
