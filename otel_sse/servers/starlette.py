"""Starlette and what is built on it: FastAPI, sse-starlette, MCP servers.

The hook is ``Router.__call__``: inside every middleware, so a span of another instrumentation is
current there and no content coding has been applied, and outside every endpoint, so raw ASGI
applications below a mount are observed too. Mounts nest routers: the outermost one is the frame of
the request, and one inside another middleware observes the request from there.

A response of middleware or of an exception's handler passes no router: ``Response.__call__`` is the
frame of that one.

The other hooks are small. Three kinds of stream do their work in tasks that start before the
response does, so the context of those is attached early: FastAPI's own event streams where the
route is handled, routes inside a BaseHTTPMiddleware of their own where that is called, and
sse-starlette's ``data_sender_callable`` where the response is. And the close of a stream is decided
before a background task begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial, wraps
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response, StreamingResponse
from starlette.routing import Host, Match, Mount, Router

from otel_sse.instrumentor import Hooks, observed_apps
from otel_sse.servers.asgi import as_coroutine_function, attach_early, wrap_asgi_app
from otel_sse.servers.asgi_observer import Receive, Scope, Send
from otel_sse.stream.request import find_current_request

# Kinds of a route's endpoint.
_ENDPOINTS: Final = (FunctionType, MethodType, partial, type)


class StarletteHooks(Hooks):
    def install(self, _: ModuleType) -> None:
        self._patch_frame(Router, "__call__", wrap_asgi_app, _route)
        self._patch(BaseHTTPMiddleware, "__call__", _attaching_early(_is_middleware_of_route))
        for kind in (Response, StreamingResponse):
            self._patch(kind, "__call__", partial(_observe_outside, self))
        self._patch(BackgroundTask, "__call__", _run_background_task)
        self._mark_observed(Router)


class StarletteApplicationHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        # The module of its router is imported within this one, and patched before it.
        if Router in observed_apps:
            self._mark_observed(module.Starlette)


class FastAPIHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        # Older versions have Starlette's.
        if "handle" in vars(module.APIRoute):
            self._patch(module.APIRoute, "handle", _attaching_early(_is_event_stream_route))


class SSEStarletteHooks(Hooks):
    def install(self, module: ModuleType) -> None:
        attaching = _attaching_early(_has_data_sender)
        self._patch(
            module.EventSourceResponse,
            "__call__",
            lambda original: _observe_outside(self, attaching(original)),
        )


def _observe_outside(
    hooks: Hooks, original: Callable[..., Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    """Observes a response that is called outside of every router."""
    observed = wrap_asgi_app(original, hooks)

    def call(response: Any, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # A router puts itself there.
        run = original if "router" in scope else observed
        return run(response, scope, receive, send)

    return as_coroutine_function(call, original)


def _attaching_early(starts_work: Callable[[Any, Scope], bool]) -> Callable[[Any], Any]:
    """Wraps an ASGI method, so that the context is attached for it where ``starts_work`` holds of
    its owner and the scope.
    """

    def wrap(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def attaching(owner: Any, scope: Scope, receive: Receive, send: Send) -> None:
            request = attach_early(scope)
            try:
                await original(owner, scope, receive, send)
            finally:
                if request is not None:
                    request.detach()

        def call(owner: Any, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            run = attaching if starts_work(owner, scope) else original
            return run(owner, scope, receive, send)

        return as_coroutine_function(call, original)

    return wrap


def _is_middleware_of_route(_: Any, scope: Scope) -> bool:
    # A route has a function or class for its endpoint. What a Mount mounts has a router of its own
    # inside its middleware, that observes the request from there.
    return isinstance(scope.get("endpoint"), _ENDPOINTS)


def _is_event_stream_route(route: Any, _: Scope) -> bool:
    return getattr(route, "is_sse_stream", False)


def _has_data_sender(response: Any, _: Scope) -> bool:
    return getattr(response, "data_sender_callable", None) is not None


def _run_background_task(
    original: Callable[..., Awaitable[None]],
) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    async def call(task: Any) -> None:
        request = find_current_request()
        if request is not None and request.stream is not None:
            request.stream.close()
        await original(task)

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
