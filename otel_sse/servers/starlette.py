"""Starlette and what is built on it: FastAPI, sse-starlette, MCP servers.

The hook is ``Router.__call__``: inside every middleware, so a span of another instrumentation is
current there and no content coding has been applied, and outside every endpoint, so raw ASGI
applications below a mount are observed too. Mounts nest routers: the outermost one is the frame of
the request, and one inside another middleware observes the request from there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import wraps
from typing import Any

from starlette.routing import Match, Mount, Router

from otel_sse.instrumentor import SSEInstrumentor
from otel_sse.servers.asgi import Scope, wrap_asgi_app


class SSEStarletteInstrumentor(SSEInstrumentor):
    """Records every event stream that passes a Starlette router."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("starlette >= 0.35",)

    def _install(self) -> None:
        self._patch(
            Router,
            "__call__",
            lambda original: wraps(original)(
                wrap_asgi_app(original, lambda _: self.telemetry, _route)
            ),
        )


def _route(router: Router, root_path: str, scope: Scope) -> tuple[str | None, bool]:
    return template(router.routes, {**scope, "root_path": root_path})


def template(routes: Iterable[Any], scope: dict[str, Any]) -> tuple[str | None, bool]:
    """The path template that ``scope`` matches in ``routes``, through mounts; None for none. And
    whether it matches the whole path, not only a mount's part.

    The routes are matched again, when a stream starts: what the router puts into the scope names
    only the innermost route, and differs between versions.
    """
    prefix: str | None = None
    while True:
        for route in routes:
            match, child_scope = route.matches(scope)
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
        if not isinstance(route, Mount) and not hasattr(route, "host"):
            return prefix, True
        routes = route.routes
