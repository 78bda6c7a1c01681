"""Any ASGI application: ``SSEMiddleware``, and what wraps the ASGI call of a framework or a server.

Both are stateless: each request has a ``RequestObserver``, which is in its scope.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from functools import wraps
from typing import Any

from opentelemetry import context as otel_context

from otel_sse.process.server_stops import is_server_stopping
from otel_sse.servers.asgi_observer import (
    KEY,
    App,
    Message,
    Receive,
    RequestObserver,
    RouteOf,
    Router,
    Scope,
    Send,
)
from otel_sse.servers.middleware import Middleware
from otel_sse.stream.request import Request, RequestState, current_request
from otel_sse.stream.sharing import shutdown_handler
from otel_sse.telemetry.telemetry import Telemetry


def wrap_asgi_app(
    run: Callable[..., Awaitable[Any]],
    holder: Any = None,
    route_of: RouteOf | None = None,
) -> Callable[[Any, Scope, Receive, Send], Awaitable[Any]]:
    """An ASGI ``__call__`` that runs ``run`` with the same arguments and records its stream.

    It returns what ``run`` does: nothing, or else the server reports it.

    Args:
        run: takes the owner of the call, scope, receive and send.
        holder: has the telemetry as an attribute, None where nothing is to be recorded; by default
            the owner.
        route_of: gives the route when a stream starts, and whether it matches the whole path; it
            takes the owner and a scope with the paths as they were before routing, and leaves in
            that the root path that it has reached.

    """

    async def call(owner: Any, scope: Scope, receive: Receive, send: Send) -> Any:
        telemetry: Telemetry | None = (owner if holder is None else holder).telemetry
        if telemetry is None or scope["type"] != "http":
            if telemetry is not None and scope["type"] == "lifespan":
                send = _exporting(telemetry, send)
            return await run(owner, scope, receive, send)
        outer: RequestObserver | None = scope.get(KEY)
        if outer is not None and outer.request.over:
            # In a copy of the scope of another request.
            outer = None
        # The paths are read now: routing changes them, and so do some applications.
        around = None if outer is None else outer.router
        # A test may call an application with less than a server gives it.
        path = scope.get("path", "")
        router: Router = (route_of, owner, path, scope.get("root_path", ""), around)
        if outer is not None:
            outer.router = router
            return await _run_nested(telemetry, outer, run, owner, scope, receive, send)
        request = Request()
        observer = RequestObserver(telemetry, request, scope, receive, send, router)
        previous = current_request.get()
        current_request.set(request)
        scope[KEY] = observer
        # Not held by this frame, which lives as long as the stream.
        del router
        try:
            result = await run(owner, scope, observer.receive, observer.send)
        except BaseException as error:
            _close(request, send, error)
            raise
        else:
            # Asked here, since to call a function takes longer.
            if request.known_state is not None:
                _close(request, send)
        finally:
            scope.pop(KEY, None)
            observer.scope = None
            request.finish(previous)
        return result

    return call


def as_coroutine_function(
    call: Callable[[Any, Scope, Receive, Send], Awaitable[Any]], original: Callable[..., Any]
) -> Callable[[Any, Scope, Receive, Send], Awaitable[Any]]:
    """``call``, which takes the place of ``original`` and returns a coroutine of another function.

    By a coroutine function servers and test clients know ASGI 3 from ASGI 2. Python 3.12 can mark
    one; before that it has to have a coroutine of its own, which takes time and memory.
    """
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(wraps(original)(call))

    @wraps(original)
    async def awaiting(owner: Any, scope: Scope, receive: Receive, send: Send) -> Any:
        return await call(owner, scope, receive, send)

    return awaiting


def request_of(scope: Scope) -> RequestObserver | None:
    """The observer of the request of ``scope``, while there is one."""
    observer: RequestObserver | None = scope.get(KEY)
    return observer


def note_route(scope: Scope, route: str | None) -> None:
    """Notes the route of a framework that shows it only within its own call."""
    observer: RequestObserver | None = scope.get(KEY)
    if observer is None or observer.router is None or not route:
        return
    found = (route, True)
    observer.router = (lambda *_: found, *observer.router[1:])


def attach_early(scope: Scope) -> RequestState | None:
    """Attaches the context of the request of ``scope`` before its response starts, unless the
    application has a span of its own current or the response has no body.

    Returns:
        The request, where that has been done.

    """
    observer: RequestObserver | None = scope.get(KEY)
    if observer is None or scope.get("method") == "HEAD":
        return None
    state = observer.request.state
    if state.span is not None:
        return None
    state.attach()
    return state


def _close(request: Request, send: Send, error: BaseException | None = None) -> None:
    if request.stream is not None:
        request.stream.close(error, cut=is_server_stopping(send))


def _exporting(telemetry: Telemetry, send: Send) -> Send:
    """``send`` of a lifespan: after its end the process may end without any other sign."""

    async def exporting(message: Message) -> None:
        kind = message.get("type") if isinstance(message, MutableMapping) else None
        if kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            try:
                await shutdown_handler.export()
            except Exception:
                telemetry.failures.log_failure_once("the lifespan's end")
        await send(message)

    return exporting


async def _run_nested(
    telemetry: Telemetry,
    outer: RequestObserver,
    run: Any,
    owner: Any,
    scope: Scope,
    receive: Receive,
    send: Send,
) -> Any:
    """Runs a part of a request that is observed already.

    Where middleware in between has wrapped ``send``, which may encode the bytes or have a span of
    its own, the request is observed from inside that. So it is for another telemetry.
    """
    if send == outer.send and telemetry is outer.telemetry:
        return await run(owner, scope, receive, send)
    scope[KEY] = outer.inner = inner = outer.nested(telemetry, send)
    state = outer.request.state
    context = state.context
    if state.stream is None:
        # A stream that starts in here has the span that is current now as its parent.
        state.context = otel_context.get_current()
    try:
        return await run(owner, scope, receive, inner.send)
    except Exception as error:
        # Closed here: what is outside may go on waiting for a client that does not read.
        inner.close(error)
        raise
    finally:
        # The span that is the parent in here may not be one outside.
        state.detach()
        scope[KEY], outer.inner = outer, None
        inner.scope = None
        outer.router = outer.router and outer.router[4]
        if state.stream is None:
            state.context = context


class SSEMiddleware(Middleware[App]):
    """Records the event streams of an ASGI application.

    Put it innermost, inside other instrumentation, so that its spans are children of theirs.
    Everything that is not a stream, and every byte of one, passes unchanged.
    """

    __call__ = wrap_asgi_app(
        lambda self, scope, receive, send: self.app(scope, receive, send),
    )
