"""Starlette and what is built on it: FastAPI, sse-starlette, MCP servers.

The hook is ``Router.__call__``: inside every middleware, so a span of another instrumentation is
current there and no content coding has been applied, and outside every endpoint, so raw ASGI
applications below a mount are observed too. Mounts nest routers: the outermost one is the frame of
the request, and one inside another middleware observes the request from there.

The other hooks are small. Three kinds of stream do their work in tasks that start before the
response does, so the context of those is attached early: FastAPI's own event streams and routes
inside a BaseHTTPMiddleware of their own where the route is handled, sse-starlette's
``data_sender_callable`` where the response is called. And the close of a stream is decided before
a background task begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial, wraps
from types import FunctionType, ModuleType
from typing import Any, Final

from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Host, Match, Mount, Route, Router

from otel_sse.instrumentor import Hooks
from otel_sse.servers.asgi import Receive, Scope, Send, attach_early, wrap_asgi_app
from otel_sse.stream.request import current_request

# Middlewares of one route that are looked at.
_MAX_MIDDLEWARES: Final = 100


class StarletteHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch(
            Router,
            "__call__",
            lambda original: wraps(original)(
                wrap_asgi_app(original, lambda _: self.telemetry, _route)
            ),
        )
        self._patch(Route, "handle", _handle)
        self._patch(BackgroundTask, "__call__", _run_background_task)


class FastAPIHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        # Older versions have Starlette's.
        if "handle" in vars(module.APIRoute):
            self._patch(module.APIRoute, "handle", _handle)


class SSEStarletteHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        self._patch(module.EventSourceResponse, "__call__", _call_response)


def _handle(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    def handle(route: Any, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Not a coroutine function: most requests must not pay for another frame.
        app = getattr(route, "app", None)
        # A function is an endpoint without a middleware of its own.
        special = type(app) is not FunctionType and _runs_elsewhere(app)
        if special or getattr(route, "is_sse_stream", False):
            return _run_attached(scope, partial(original, route, scope, receive, send))
        return original(route, scope, receive, send)

    return handle


def _runs_elsewhere(app: Any) -> bool:
    """Whether the endpoint of a route's ``app`` runs in another task than its response."""
    # Middleware keeps what it wraps as ``app``. Bounded: they may form a circle.
    for _ in range(_MAX_MIDDLEWARES):
        if app is None or isinstance(app, BaseHTTPMiddleware):
            break
        app = getattr(app, "app", None)
    return isinstance(app, BaseHTTPMiddleware)


def _call_response(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    def call(response: Any, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if getattr(response, "data_sender_callable", None) is not None:
            return _run_attached(scope, partial(original, response, scope, receive, send))
        return original(response, scope, receive, send)

    return call


async def _run_attached(scope: Scope, run: Callable[[], Awaitable[None]]) -> None:
    request = attach_early(scope)
    try:
        await run()
    finally:
        if request is not None:
            request.detach()


def _run_background_task(
    original: Callable[..., Awaitable[None]],
) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    def call(task: Any) -> Awaitable[None]:
        request = current_request.get()
        if request is not None and request.stream is not None:
            request.stream.close()
        return original(task)

    return call


def _route(router: Router, scope: dict[str, Any]) -> tuple[str | None, bool]:
    return template(router.routes, scope)


def template(routes: Iterable[Any], scope: dict[str, Any]) -> tuple[str | None, bool]:
    """The path template that ``scope`` matches in ``routes``, through mounts; None for none. And
    whether it matches the whole path, not only a mount's part.

    The routes are matched again, when a stream starts: what the router puts into the scope names
    only the innermost route, and differs between versions.
    """
    prefix: str | None = None
    while True:
        for route in routes:
            # Below a mount there may be anything that has an attribute ``routes``.
            matches = getattr(route, "matches", None)
            if matches is None:
                continue
            match, child_scope = matches(scope)
            if match is Match.FULL:
                break
        else:
            return prefix, False
        included = getattr(route, "effective_route_contexts", None)
        if included is not None:
            # A router that FastAPI includes: its routes have their whole path.
            routes = [getattr(each, "starlette_route", None) or each for each in included()]
            continue
        scope.update(child_scope)
        prefix = (prefix or "") + getattr(route, "path", "") or None
        if not isinstance(route, (Mount, Host)):
            return prefix, True
        inner = route.routes
        routes = inner if isinstance(inner, (list, tuple)) else ()
