"""Starlette and what is built on it: FastAPI, sse-starlette, MCP servers.

The hook is ``Router.__call__``: inside every middleware, so a span of other instrumentation is
current there and no content coding has been applied, and outside every endpoint, so raw ASGI
applications below a mount are seen too. Mounts nest routers: the outermost one is the frame of
the request, and one inside other middleware watches from there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import wraps
from typing import Any

from starlette.routing import Match, Mount, Router

from otel_sse.asgi import Scope, telling
from otel_sse.instrumentor import SSEInstrumentor


class SSEStarletteInstrumentor(SSEInstrumentor):
    """Tells every event stream that passes a Starlette router."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("starlette >= 0.35",)

    def _install(self) -> None:
        self._patch(
            Router,
            "__call__",
            lambda original: wraps(original)(telling(original, lambda _: self.telemetry, _route)),
        )


def _route(router: Router, root_path: str, scope: Scope) -> tuple[str | None, bool]:
    return template(router.routes, {**scope, "root_path": root_path})


def template(routes: Iterable[Any], scope: dict[str, Any]) -> tuple[str | None, bool]:
    """The path template that ``scope`` matches in ``routes``, through mounts; None for none. And
    whether it is of the whole path, not only of a mount.

    Matching again costs nothing until a stream starts, and holds for every version: what the
    router leaves in the scope names only the innermost route.
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
            # A router that FastAPI includes: its routes are known with their whole path.
            routes = [getattr(each, "starlette_route", None) or each for each in included()]
            continue
        scope.update(child_scope)
        prefix = (prefix or "") + getattr(route, "path", "") or None
        if not isinstance(route, Mount) and not hasattr(route, "host"):
            return prefix, True
        routes = route.routes
